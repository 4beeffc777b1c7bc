//! The JSON of a manifest, in pieces: a splitter that finds keys, values and array elements in a stream of bytes, and the
//! parsers of those pieces.
//!
//! The splitter knows the one shape a manifest has, an object whose values are scalars or arrays of flat objects; the pieces
//! it cuts out are complete JSON values of at most the given length and are parsed by `serde_json`. Invariant: a byte is
//! looked at once and kept only while its piece is open.

use std::borrow::Cow;

use super::{Algorithm, Fault, FileChecksum, ManifestError, ManifestFile, WalRange, syntax};
use crate::pgdata::paths;
use crate::wal::TimelineId;

/// A piece of the manifest.
#[derive(Debug)]
pub(super) enum Token {
    /// `"key": scalar`.
    Value {
        /// The key.
        key: String,
        /// The scalar as it stands.
        raw: Vec<u8>,
    },
    /// `"key": [`.
    ArrayStart {
        /// The key.
        key: String,
    },
    /// One object of the array under `key`.
    Element {
        /// The key.
        key: String,
        /// The object as it stands.
        raw: Vec<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    KeyOrEnd,
    Key,
    InKey,
    Colon,
    Value,
    InString,
    InScalar,
    ElementOrEnd,
    Element,
    InElement,
    AfterElement,
    AfterValue,
    End,
}

/// Cuts a manifest into tokens.
#[derive(Debug)]
pub(super) struct Splitter {
    place: Place,
    offset: u64,
    key: String,
    piece: Vec<u8>,
    most: usize,
    /// Inside a string of an element, and whether the byte before was a backslash.
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    pub(super) fn new(most: usize) -> Self {
        let (key, piece) = (String::new(), Vec::new());
        Self { place: Place::Start, offset: 0, key, piece, most, in_string: false, escaped: false }
    }

    /// Bytes taken so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// True once the closing brace was seen.
    pub(super) fn is_complete(&self) -> bool {
        self.place == Place::End
    }

    /// Takes one byte; gives the token that it completes.
    pub(super) fn push(&mut self, byte: u8) -> Result<Option<Token>, ManifestError> {
        self.offset = self.offset.saturating_add(1);
        self.step(byte).map_err(|why| ManifestError::Syntax { at: self.offset, why: why.to_owned() })
    }

    fn step(&mut self, byte: u8) -> Result<Option<Token>, &'static str> {
        match self.place {
            Place::InKey | Place::InString => return self.string(byte),
            Place::InElement => return self.element(byte),
            Place::InScalar => return self.scalar(byte),
            _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => return Ok(None),
            _ => {}
        }
        let next = match (self.place, byte) {
            (Place::Start, b'{') => Place::KeyOrEnd,
            (Place::KeyOrEnd | Place::AfterValue, b'}') => Place::End,
            (Place::KeyOrEnd | Place::Key, b'"') => {
                self.keep(byte)?;
                Place::InKey
            }
            (Place::Colon, b':') => Place::Value,
            (Place::Value, b'[') => {
                self.place = Place::ElementOrEnd;
                return Ok(Some(Token::ArrayStart { key: self.key.clone() }));
            }
            (Place::Value, b'"') => {
                self.keep(byte)?;
                Place::InString
            }
            (Place::Value, b'-' | b'0'..=b'9' | b'a'..=b'z') => {
                self.keep(byte)?;
                Place::InScalar
            }
            (Place::ElementOrEnd | Place::Element, b'{') => {
                self.keep(byte)?;
                Place::InElement
            }
            (Place::ElementOrEnd | Place::AfterElement, b']') => Place::AfterValue,
            (Place::AfterElement, b',') => Place::Element,
            (Place::AfterValue, b',') => Place::Key,
            _ => return Err("this is not the JSON of a backup manifest"),
        };
        self.place = next;
        Ok(None)
    }

    fn keep(&mut self, byte: u8) -> Result<(), &'static str> {
        if self.piece.len() >= self.most {
            return Err("an entry is too long");
        }
        self.piece.push(byte);
        Ok(())
    }

    /// Keeps a byte of a string; true if it is the closing quote.
    fn closes_string(&mut self, byte: u8) -> Result<bool, &'static str> {
        self.keep(byte)?;
        let closes = byte == b'"' && !self.escaped;
        self.escaped = byte == b'\\' && !self.escaped;
        Ok(closes)
    }

    fn string(&mut self, byte: u8) -> Result<Option<Token>, &'static str> {
        if !self.closes_string(byte)? {
            return Ok(None);
        }
        let raw = std::mem::take(&mut self.piece);
        if self.place == Place::InKey {
            self.key = serde_json::from_slice(&raw).map_err(|_| "a key is not a JSON string")?;
            self.place = Place::Colon;
            return Ok(None);
        }
        self.place = Place::AfterValue;
        Ok(Some(Token::Value { key: std::mem::take(&mut self.key), raw }))
    }

    fn scalar(&mut self, byte: u8) -> Result<Option<Token>, &'static str> {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-') {
            self.keep(byte)?;
            return Ok(None);
        }
        let token = Token::Value { key: std::mem::take(&mut self.key), raw: std::mem::take(&mut self.piece) };
        self.place = Place::AfterValue;
        self.step(byte)?; // a blank, a comma or the closing brace: none of them gives a token
        Ok(Some(token))
    }

    fn element(&mut self, byte: u8) -> Result<Option<Token>, &'static str> {
        if self.in_string {
            self.in_string = !self.closes_string(byte)?;
            return Ok(None);
        }
        self.keep(byte)?;
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => return Err("an entry holds another object or array"),
            b'}' => {
                self.place = Place::AfterElement;
                // The next entry is about as long as this one.
                let next = Vec::with_capacity(self.piece.len());
                let raw = std::mem::replace(&mut self.piece, next);
                return Ok(Some(Token::Element { key: self.key.clone(), raw }));
            }
            _ => {}
        }
        Ok(None)
    }
}

/// A number without sign, fraction or exponent, exact to 64 bits.
pub(super) fn unsigned(raw: &[u8]) -> Result<u64, Fault> {
    serde_json::from_slice(raw).map_err(|_| syntax("a number is not a whole number of 64 bits"))
}

/// A JSON string.
pub(super) fn string(raw: &[u8]) -> Result<String, Fault> {
    serde_json::from_slice(raw).map_err(|_| syntax("a value is not a JSON string"))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileJson<'a> {
    #[serde(rename = "Path", borrow)]
    path: Option<Cow<'a, str>>,
    #[serde(rename = "Encoded-Path", borrow)]
    encoded_path: Option<Cow<'a, str>>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: Option<String>,
    #[serde(rename = "Checksum-Algorithm", borrow)]
    algorithm: Option<Cow<'a, str>>,
    #[serde(rename = "Checksum", borrow)]
    checksum: Option<Cow<'a, str>>,
}

/// An element of `Files`.
pub(super) fn file(raw: &[u8]) -> Result<ManifestFile, Fault> {
    let json: FileJson<'_> = serde_json::from_slice(raw).map_err(|e| syntax(&reason(&e)))?;
    let path = match (json.path, json.encoded_path) {
        (Some(path), None) => path.into_owned().into_bytes(),
        (None, Some(digits)) => unhex(&digits).ok_or_else(|| syntax("Encoded-Path is not hexadecimal"))?,
        _ => return Err(syntax("a file needs one of Path and Encoded-Path")),
    };
    if !paths::is_inside(&path) {
        return Err(Fault::Other(ManifestError::Path(String::from_utf8_lossy(&path).into_owned())));
    }
    let checksum = match (json.algorithm.as_deref(), json.checksum.as_deref()) {
        (None, None) => None,
        (Some(name), None) if name.eq_ignore_ascii_case("none") => None,
        (Some(name), Some(digits)) => {
            let algorithm = Algorithm::parse(name).ok_or_else(|| syntax("an unknown checksum algorithm"))?;
            let bytes = unhex(digits).filter(|b| b.len() == algorithm.length());
            let bytes = bytes.ok_or_else(|| syntax("a checksum has the wrong length"))?;
            Some(FileChecksum { algorithm, bytes: bytes.into() })
        }
        _ => return Err(syntax("a file needs both or none of Checksum-Algorithm and Checksum")),
    };
    Ok(ManifestFile { path, size: json.size, last_modified: json.last_modified, checksum })
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeJson<'a> {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN", borrow)]
    start: Cow<'a, str>,
    #[serde(rename = "End-LSN", borrow)]
    end: Cow<'a, str>,
}

/// An element of `WAL-Ranges`.
pub(super) fn wal_range(raw: &[u8]) -> Result<WalRange, Fault> {
    let json: RangeJson<'_> = serde_json::from_slice(raw).map_err(|e| syntax(&reason(&e)))?;
    let timeline = TimelineId::new(json.timeline).ok_or_else(|| syntax("timeline 0 does not exist"))?;
    let lsn = |text: &str| text.parse().map_err(|_| syntax("a WAL range has a malformed LSN"));
    let range = WalRange { timeline, start: lsn(&json.start)?, end: lsn(&json.end)? };
    if range.start > range.end {
        return Err(syntax("a WAL range ends before it starts"));
    }
    Ok(range)
}

/// serde_json's words without its line and column, which count from the start of the piece.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().chars().take(200).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}
