//! How a JSON object ends: with a sum, which sees accidents, or with a mac, which sees forgers.
//!
//! Both cover every byte before the comma that precedes them; a mac covers the object's key as well, so that one put under another name
//! is seen. In a sealed folder an object without a mac is refused; in a plain one a person may have mended it and left the sum out. Pure.

use serde::Deserialize;

use super::{Document, DocumentError, MAX_DOCUMENT};
use crate::codec::{Digest, ShortDigest};
use crate::seal::SealKey;

/// What a document ends with, and is held against.
#[derive(Debug, Clone, Copy)]
pub enum Closing<'a> {
    /// A sum: sees accidents.
    Sum,
    /// A mac by the cluster's seal key, which covers the object's own key.
    Mac {
        /// The seal key.
        seal: &'a SealKey,
        /// The object's key.
        place: &'a str,
    },
}

impl Closing<'_> {
    fn member(&self) -> &'static str {
        match self {
            Self::Sum => SUM,
            Self::Mac { .. } => MAC,
        }
    }

    fn of(&self, covered: &[u8]) -> ShortDigest {
        match self {
            Self::Sum => Digest::of(covered).short(),
            Self::Mac { seal, place } => seal.document_mac(place, covered),
        }
    }
}

/// The bytes of `document` with a sum.
pub fn encode<D: Document>(document: &D) -> Vec<u8> {
    encode_as(document, Closing::Sum)
}

/// The bytes of `document`: indented JSON, `pitr` first, `closing` last.
pub fn encode_as<D: Document>(document: &D, closing: Closing<'_>) -> Vec<u8> {
    let body =
        serde_json::to_string_pretty(document).expect("these structs hold nothing that JSON cannot say");
    let rest = body.strip_prefix('{').expect("a struct is a JSON object");
    let covered = rest.strip_suffix(CLOSE).expect("a pretty object that is not empty ends so");
    let mut text = format!("{{\n  \"pitr\": \"{} {}\",{covered}", D::KIND, D::FORMAT);
    let sum = closing.of(text.as_bytes());
    text.push_str(&format!("{}{sum}\"{CLOSE}\n", closing.member()));
    text.into_bytes()
}

/// How an indented object ends, and what precedes the sum's digits.
const CLOSE: &str = "\n}";
const SUM: &str = ",\n  \"sum\": \"";
const MAC: &str = ",\n  \"mac\": \"";

/// The sum or mac that a document states, and the one it should.
fn sums(bytes: &[u8], closing: Closing<'_>) -> Option<(ShortDigest, ShortDigest)> {
    let rest = bytes.strip_suffix(b"\n")?.strip_suffix(CLOSE.as_bytes())?.strip_suffix(b"\"")?;
    let (before, digits) = rest.split_at_checked(rest.len().checked_sub(32)?)?;
    let covered = before.strip_suffix(closing.member().as_bytes())?;
    let stated = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((stated, closing.of(covered)))
}

/// Whether a document carries a sum, as all do that pitr writes.
pub fn has_sum(bytes: &[u8]) -> bool {
    sums(bytes, Closing::Sum).is_some()
}

/// Reads what [`encode`] wrote, here or in another version.
///
/// # Errors
/// [`DocumentError`].
pub fn decode<D: Document>(bytes: &[u8]) -> Result<D, DocumentError> {
    decode_as(bytes, Closing::Sum)
}

/// Reads what [`encode_as`] wrote with the same closing.
///
/// # Errors
/// [`DocumentError`]; with a mac, [`DocumentError::Forged`] for an object without it.
pub fn decode_as<D: Document>(bytes: &[u8], closing: Closing<'_>) -> Result<D, DocumentError> {
    let damaged = |what: String| DocumentError::Damaged { kind: D::KIND, what };
    if crate::codec::len_u64(bytes) > MAX_DOCUMENT {
        return Err(damaged(format!("{} bytes are more than any has", bytes.len())));
    }
    check_head(bytes, D::KIND, D::FORMAT, closing)?;
    serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))
}

pub(super) fn check_head(
    bytes: &[u8],
    kind: &'static str,
    known: u32,
    closing: Closing<'_>,
) -> Result<(), DocumentError> {
    #[derive(Deserialize)]
    struct Head {
        pitr: String,
    }
    // The sum first, which is the same in every format: a changed bit must not pass for a later one.
    match (sums(bytes, closing), closing) {
        (Some((stated, found)), _) if stated == found => {}
        // A person may have mended it.
        (None, Closing::Sum) => {}
        (Some(_), Closing::Sum) => {
            return Err(DocumentError::Damaged { kind, what: "its sum differs".to_owned() });
        }
        (Some(_), Closing::Mac { .. }) => {
            let what = "has a mac that is not that of the cluster's seal key for this name";
            return Err(DocumentError::Forged { kind, what });
        }
        (None, Closing::Mac { .. }) => {
            return Err(DocumentError::Forged {
                kind,
                what: "has no mac, in a folder in which every one has",
            });
        }
    }
    let head: Head =
        serde_json::from_slice(bytes).map_err(|e| DocumentError::Damaged { kind, what: e.to_string() })?;
    let format =
        head.pitr.strip_prefix(kind).and_then(|r| r.strip_prefix(' ')).and_then(|n| n.parse::<u32>().ok());
    match format {
        Some(format) if (1..=known).contains(&format) => Ok(()),
        Some(format) if format > known => Err(DocumentError::NewerFormat { kind, format, known }),
        _ => Err(DocumentError::OtherKind { kind, found: head.pitr.chars().take(60).collect() }),
    }
}
