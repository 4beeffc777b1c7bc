//! WAL records: header, CRC, and where in a record its main data lies.
//!
//! ```text
//!  header 24                         │ body
//!  len xid prev info rmgr pad crc    │ block refs… origin? toplevel? main-data header │ block data… │ main data
//!  └ CRC-32C: body first, then these 20 bytes                                                      └ always last
//! ```
//! A record arrives in slices (it crosses pages, and callers read in pieces). `Assembly` runs the CRC over the slices as
//! they pass and copies only the header and, for the few records that become events, a bounded prefix of the body. Pure.
//! Source of truth: `xlogrecord.h`, `ValidXLogRecord` and `DecodeXLogRecord` in `xlogreader.c`.

use super::event::EventKind;
use super::lsn::Lsn;
use super::page::{PgMajor, u16_at, u32_at, u64_at};
use super::{xact, xlog};

/// Bytes of a record's header (`SizeOfXLogRecord`).
pub const RECORD_HEADER: usize = 24;

/// Resource manager of checkpoints, restore points, switches.
pub const RM_XLOG: u8 = 0;
/// Resource manager of transaction ends.
pub const RM_XACT: u8 = 1;
/// Resource manager of CREATE and DROP DATABASE.
pub const RM_DBASE: u8 = 4;
/// Resource manager of CREATE and DROP TABLESPACE.
pub const RM_TBLSPC: u8 = 5;

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of the whole record, header included (`xl_tot_len`).
    pub total: u32,
    /// The transaction that wrote it, 0 for none.
    pub xid: u32,
    /// Start of the record before it.
    pub prev: Lsn,
    /// What it is to its resource manager (upper half), and generic flags (lower half).
    pub info: u8,
    /// Resource manager.
    pub rmid: u8,
    /// CRC-32C as stored.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads a header. Any 24 bytes are one; whether it makes sense is for the reader to check.
    pub fn parse(bytes: &[u8; RECORD_HEADER]) -> Self {
        let [.., info, rmid, _, _, _, _, _, _] = *bytes;
        Self {
            total: u32_at(bytes, 0),
            xid: u32_at(bytes, 4),
            prev: Lsn::new(u64_at(bytes, 8)),
            info,
            rmid,
            crc: u32_at(bytes, 20),
        }
    }

    /// What the record is to its resource manager, without the generic flags.
    pub fn operation(&self) -> u8 {
        self.info & 0xF0
    }

    /// True for `XLOG_SWITCH`, after which the rest of the segment is padding.
    pub fn is_switch(&self) -> bool {
        self.rmid == RM_XLOG && self.operation() == xlog::SWITCH
    }

    /// How much of the body must be at hand to read the event from it; 0 for records that are none.
    pub(super) fn prefix(&self) -> usize {
        match self.rmid {
            RM_XACT => xact::prefix(self.info),
            RM_XLOG if xlog::is_event(self.operation()) => 4 << 10,
            RM_DBASE | RM_TBLSPC => 4 << 10,
            _ => 0,
        }
    }
}

/// CRC-32C of a record: over the body, whose CRC is given, then over the header without its last field.
pub fn record_crc(body_crc: u32, header: &[u8; RECORD_HEADER]) -> u32 {
    let [covered @ .., _, _, _, _] = header;
    crc32c::crc32c_append(body_crc, covered)
}

/// CRC-32C of a record that is all at hand. Most records are short, and of those the calls cost more than the bytes: such a one is
/// laid out in the order of its CRC first, so that one call does.
pub(super) fn whole_record_crc(header: &[u8; RECORD_HEADER], body: &[u8]) -> u32 {
    const SHORT: usize = 128;
    let [covered @ .., _, _, _, _] = header;
    let mut ordered = [0_u8; SHORT];
    let length = body.len().saturating_add(covered.len());
    let Some((first, last)) = ordered.get_mut(..length).and_then(|all| all.split_at_mut_checked(body.len()))
    else {
        return record_crc(crc32c::crc32c(body), header);
    };
    first.copy_from_slice(body);
    last.copy_from_slice(covered);
    crc32c::crc32c(ordered.get(..length).unwrap_or(&ordered))
}

/// The transaction and the event in a record whose CRC was checked, or `None` for a record of no interest. `body` is the body,
/// or a prefix of at least the length that `Assembly` keeps; what does not lie in it is not known (see `xact::decode`).
pub fn decode(major: PgMajor, header: &RecordHeader, body: &[u8]) -> Option<(u32, EventKind)> {
    if header.prefix() == 0 {
        return None;
    }
    let main = main_data(major, header, body)?;
    match header.rmid {
        RM_XACT => xact::decode(major, header, main),
        RM_XLOG => xlog::decode_xlog(header, main).map(|kind| (header.xid, kind)),
        RM_DBASE => xlog::decode_database(major, header, main).map(|kind| (header.xid, kind)),
        RM_TBLSPC => xlog::decode_tablespace(header, main).map(|kind| (header.xid, kind)),
        _ => None,
    }
}

/// The main data, as far as it lies inside `body`, a prefix of the record's body. `None` if the headers before it are not
/// what PostgreSQL writes, or are not all there.
pub(super) fn main_data<'a>(major: PgMajor, header: &RecordHeader, body: &'a [u8]) -> Option<&'a [u8]> {
    let body_len = usize::try_from(header.total).ok()?.checked_sub(RECORD_HEADER)?;
    let mut at = 0_usize; // in the headers
    let mut data = 0_usize; // bytes that the headers so far announce, at the end of the body
    while body_len.checked_sub(at)? > data {
        let id = *body.get(at)?;
        at += 1;
        match id {
            0..=32 => {
                let (len, announced) = block_reference(major, body.get(at..)?)?;
                at += len;
                data = data.checked_add(announced)?;
            }
            252 => at += 4, // xid of the top-level transaction
            253 => at += 2, // replication origin
            254 | 255 => {
                let len = match id {
                    255 => usize::from(*body.get(at)?),
                    _ => usize::try_from(u32::from_le_bytes(*body.get(at..)?.first_chunk()?)).ok()?,
                };
                let start = body_len.checked_sub(len)?;
                return body.get(start.min(body.len())..);
            }
            _ => return None,
        }
    }
    body.get(..0) // no main data at all
}

/// Length of a block reference after its id byte, and how much block data it announces.
fn block_reference(major: PgMajor, bytes: &[u8]) -> Option<(usize, usize)> {
    const HAS_IMAGE: u8 = 0x10;
    const SAME_RELATION: u8 = 0x80;
    const IMAGE_HAS_HOLE: u8 = 0x01;
    let compressed: u8 = match major {
        PgMajor::V13 | PgMajor::V14 => 0x02,
        PgMajor::V15 | PgMajor::V16 | PgMajor::V17 | PgMajor::V18 => 0x04 | 0x08 | 0x10,
    };
    let flags = *bytes.first()?;
    let mut data = usize::from(u16::from_le_bytes(*bytes.get(1..)?.first_chunk()?));
    let mut at = 3;
    if flags & HAS_IMAGE != 0 {
        let image = bytes.get(at..at + 5)?;
        data += usize::from(u16_at(image, 0));
        let info = *image.last()?;
        at += 5;
        if info & IMAGE_HAS_HOLE != 0 && info & compressed != 0 {
            at += 2;
        }
    }
    if flags & SAME_RELATION == 0 {
        at += 12;
    }
    Some((at + 4, data))
}

/// One record as it arrives, slice by slice. Reused from record to record.
#[derive(Debug)]
pub(super) struct Assembly {
    start: Lsn,
    header: [u8; RECORD_HEADER],
    have: u64,
    body_crc: u32,
    /// How much of the body is kept. To be set between the header and the body.
    pub(super) keep: usize,
    /// The kept prefix of the body.
    pub(super) body: Vec<u8>,
}

/// Where an `Assembly` stands after a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes are needed.
    Partial,
    /// The header is there, for the first time; the body has not begun.
    Header,
    /// The last byte is there.
    Complete,
}

impl Assembly {
    pub(super) fn new() -> Self {
        let header = [0; RECORD_HEADER];
        Self { start: Lsn::ZERO, header, have: 0, body_crc: 0, keep: 0, body: Vec::new() }
    }

    /// Begins the record at `start`.
    pub(super) fn begin(&mut self, start: Lsn) {
        self.start = start;
        self.have = 0;
        self.body_crc = 0;
        self.keep = 0;
        self.body.clear();
    }

    /// Takes bytes from the front of `chunk`, but not past the header, nor past the end; returns how many. The first eight
    /// bytes of a record never cross a page, so a caller that feeds whole pages learns the length with the first slice.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> (usize, Progress) {
        let have = usize::try_from(self.have).unwrap_or(usize::MAX);
        if let Some(room) = self.header.get_mut(have..).filter(|room| !room.is_empty()) {
            let n = room.len().min(chunk.len());
            for (to, from) in room.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.have += u64::try_from(n).unwrap_or(0);
            let progress = match self.left() {
                Some(0) => Progress::Complete,
                _ if have + n == RECORD_HEADER => Progress::Header,
                _ => Progress::Partial,
            };
            return (n, progress);
        }
        let left = usize::try_from(self.left().unwrap_or(0)).unwrap_or(usize::MAX);
        let slice = chunk.get(..left).unwrap_or(chunk);
        self.body_crc = crc32c::crc32c_append(self.body_crc, slice);
        let missing = self.keep.saturating_sub(self.body.len());
        if missing > 0 {
            self.body.extend_from_slice(slice.get(..missing).unwrap_or(slice));
        }
        self.have += u64::try_from(slice.len()).unwrap_or(0);
        let progress = if slice.len() == left { Progress::Complete } else { Progress::Partial };
        (slice.len(), progress)
    }

    pub(super) fn start(&self) -> Lsn {
        self.start
    }

    /// Bytes taken so far.
    pub(super) fn have(&self) -> u64 {
        self.have
    }

    /// Bytes of the whole record, once its first four bytes are there.
    pub(super) fn total(&self) -> Option<u32> {
        (self.have >= 4).then(|| u32_at(&self.header, 0))
    }

    /// Bytes still to come, once that is known. 0 for a length that is below what is already there.
    pub(super) fn left(&self) -> Option<u64> {
        self.total().map(|total| u64::from(total).saturating_sub(self.have))
    }

    /// The header; zeros stand for what is not there yet.
    pub(super) fn header(&self) -> RecordHeader {
        RecordHeader::parse(&self.header)
    }

    /// CRC-32C of the body so far.
    pub(super) fn body_crc(&self) -> u32 {
        self.body_crc
    }

    /// True if the stored CRC is that of the bytes.
    pub(super) fn crc_matches(&self) -> bool {
        record_crc(self.body_crc, &self.header) == self.header().crc
    }

    /// The first bytes of the record, header first, at most `limit`, as far as they were kept.
    pub(super) fn first_bytes(&self, limit: usize) -> Vec<u8> {
        let header = usize::try_from(self.have).unwrap_or(usize::MAX).min(RECORD_HEADER);
        self.header.iter().take(header).chain(&self.body).take(limit).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_record_has_the_crc_of_its_parts_at_every_length() {
        let header = std::array::from_fn(|i| u8::try_from(i * 7 + 1).unwrap());
        let body: Vec<u8> = (0_u8..=255).cycle().skip(3).take(600).collect();
        for length in 0..body.len() {
            let body = &body[..length];
            let parts = record_crc(crc32c::crc32c(body), &header);
            assert_eq!(whole_record_crc(&header, body), parts, "a body of {length}");
        }
    }
}
