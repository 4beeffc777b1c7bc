//! Putting a record together that crosses from one segment into the next, from what the scans of both kept of it.
//!
//! ```text
//!  segment n          │ n+1 (more, if the record is huge)
//!  … ▌ header │ body  ║ body ▐ …
//!    └ tail ──────────╨ head ┘     CRC of the whole = CRCs of the parts, combined
//! ```
//! So a commit at the seam of two segments is found, and checked, without reading either again. Pure.
//! Source of truth: `xlogreader.c`; the CRC algebra is that of zlib's `crc32_combine`.

use super::summary::Fragment;
use crate::wal::event::Event;
use crate::wal::lsn::Lsn;
use crate::wal::page::PgMajor;
use crate::wal::record::{RECORD_HEADER, RecordHeader, decode, record_crc};

/// A record that crosses segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing {
    /// First byte.
    pub lsn: Lsn,
    /// First byte after it.
    pub end: Lsn,
    /// Its header.
    pub header: RecordHeader,
    /// What it means, for records that mean something here. For COMMIT PREPARED and ABORT PREPARED the xid is 0 if it stands
    /// beyond the bytes that the fragments kept.
    pub event: Option<Event>,
}

/// Why fragments do not make a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The segment after the tail's does not continue its record: it was abandoned after a crash, or the segments are of
    /// different histories.
    #[error("the record at {0} is not continued by the segment after it")]
    NotContinued(Lsn),
    /// The record goes on in a segment that was not given.
    #[error("the record at {0} ends in a later segment")]
    Unfinished(Lsn),
    /// The parts fit, and the CRC says that one of them is damaged.
    #[error("the record at {0}, which crosses segments, has a wrong CRC")]
    Crc(Lsn),
}

/// The record whose `tail` ends one segment and whose `heads` open the following ones, in order.
///
/// # Errors
/// [`JoinError`] if they are not the parts of one complete and intact record.
pub fn join(tail: &Fragment, heads: &[&Fragment], major: PgMajor) -> Result<Crossing, JoinError> {
    let not_continued = JoinError::NotContinued(tail.lsn);
    let mut before = tail;
    for head in heads {
        let left = before.total.checked_sub(before.len);
        if head.lsn.page_start() != before.end || left != Some(head.total) || !before.goes_on() {
            return Err(not_continued);
        }
        before = head;
    }
    if before.goes_on() || heads.is_empty() {
        return Err(JoinError::Unfinished(tail.lsn));
    }
    let mut first_bytes = tail.bytes.clone();
    if tail.len == length(&tail.bytes) {
        // All of the tail is kept, so what the next segment opens with follows it.
        first_bytes.extend(heads.iter().take(1).flat_map(|head| &head.bytes));
    }
    let (header, body) = first_bytes.split_first_chunk::<RECORD_HEADER>().ok_or(not_continued)?;
    let crc = body_crc(tail, heads).ok_or(not_continued)?;
    let parsed = RecordHeader::parse(header);
    if u64::from(parsed.total) != tail.total {
        return Err(not_continued);
    }
    if record_crc(crc, header) != parsed.crc {
        return Err(JoinError::Crc(tail.lsn));
    }
    let (lsn, end) = (tail.lsn, before.end);
    let event = decode(major, &parsed, body).map(|(xid, kind)| Event { lsn, end, xid, kind });
    Ok(Crossing { lsn, end, header: parsed, event })
}

/// CRC-32C of the record's body.
fn body_crc(tail: &Fragment, heads: &[&Fragment]) -> Option<u32> {
    let header_left = u64::try_from(RECORD_HEADER).ok()?.saturating_sub(tail.len);
    let mut crc = tail.crc;
    for (index, head) in heads.iter().enumerate() {
        let (part, length) = match index {
            0 => without_front(head, header_left)?,
            _ => (head.crc, head.len),
        };
        crc = combine(crc, part, length)?;
    }
    Some(crc)
}

/// CRC-32C and length of a fragment without its first `skip` bytes, which are at hand: appending the rest to them gives the
/// CRC of all, and that step can be undone.
fn without_front(head: &Fragment, skip: u64) -> Option<(u32, u64)> {
    let front = head.bytes.get(..usize::try_from(skip).ok()?)?;
    let rest = head.len.checked_sub(skip)?;
    Some((combine(crc32c::crc32c(front), head.crc, rest)?, rest))
}

/// CRC-32C of two byte strings put together, from theirs and the length of the second. The crate's function does not shift for
/// an empty second string but ignores its CRC, which is right only if that is 0.
fn combine(first: u32, second: u32, second_len: u64) -> Option<u32> {
    match second_len {
        0 => Some(first ^ second),
        _ => Some(crc32c::crc32c_combine(first, second, usize::try_from(second_len).ok()?)),
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
