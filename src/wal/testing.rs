//! Synthetic WAL for tests, fuzz targets and benches: the bytes a server would have written.
//!
//! ```text
//!  Wal::starting_at(lsn).commit(t1).filler(20_000).switch().commit(t2).segments()
//! ```
//! Every record has the right CRC and predecessor, every page the right header; what is wrong in a test was made wrong by it.
//! It shares no code with the scanner beyond names and the decoding tables' constants: it is the other half of the check.
//! Source of truth: `xloginsert.c`, `xlog.c` of PostgreSQL 13 to 18. Panics on misuse: it is for tests.

use super::lsn::{Lsn, PAGE_SIZE};
use super::page::{PgMajor, SystemId};
use super::record::{RM_XACT, RM_XLOG};
use super::segment::{SegmentName, SegmentNo, SegmentSize};
use super::time::PgTime;
use super::timeline::TimelineId;
use super::{xact, xlog};

/// A stream of WAL being written.
#[derive(Debug, Clone)]
pub struct Wal {
    magic: u16,
    system_id: SystemId,
    size: SegmentSize,
    timeline: TimelineId,
    /// First byte of `bytes`, a segment boundary.
    start: Lsn,
    bytes: Vec<u8>,
    /// Per segment, the timeline that was current when its last byte was written.
    timelines: Vec<TimelineId>,
    prev: Lsn,
    xid: u32,
    records: Vec<(Lsn, Lsn)>,
}

impl Wal {
    /// An empty stream of PostgreSQL 15, timeline 1, segments of 1 MiB, from the segment that holds `lsn` on.
    pub fn starting_at(lsn: Lsn) -> Self {
        Self {
            magic: PgMajor::V15.magic(),
            system_id: SystemId::new(7_300_000_000_000_000_001),
            size: SegmentSize::new(1 << 20).expect("1 MiB is a segment size"),
            timeline: TimelineId::FIRST,
            start: lsn,
            bytes: Vec::new(),
            timelines: Vec::new(),
            prev: Lsn::ZERO,
            xid: 700,
            records: Vec::new(),
        }
        .aligned()
    }

    /// Segments of `size`. Before the first record.
    #[must_use]
    pub fn segment_size(mut self, size: SegmentSize) -> Self {
        assert!(self.bytes.is_empty(), "the segment size is fixed by the first record");
        self.size = size;
        self.aligned()
    }

    /// Pages of `major`.
    #[must_use]
    pub fn major(self, major: PgMajor) -> Self {
        self.magic(major.magic())
    }

    /// Pages with any magic.
    #[must_use]
    pub fn magic(mut self, magic: u16) -> Self {
        self.magic = magic;
        self
    }

    /// Pages of the cluster `id`.
    #[must_use]
    pub fn system(mut self, id: SystemId) -> Self {
        self.system_id = id;
        self
    }

    /// From here on, new pages are of `timeline`: what a promotion at this place leaves behind.
    #[must_use]
    pub fn promoted_to(mut self, timeline: TimelineId) -> Self {
        self.timeline = timeline;
        if let Some(last) = self.timelines.last_mut() {
            *last = timeline;
        }
        self
    }

    fn aligned(mut self) -> Self {
        self.start = SegmentNo::containing(self.start, self.size).start(self.size);
        self.prev = self.start.saturating_sub(64); // some record at the end of the segment before
        self
    }

    /// The transaction id that the next commit or abort takes.
    pub fn next_xid(&self) -> u32 {
        self.xid
    }

    /// Where the next byte goes.
    pub fn position(&self) -> Lsn {
        self.start.saturating_add(len(&self.bytes))
    }

    /// Start and end of every record so far.
    pub fn records(&self) -> &[(Lsn, Lsn)] {
        &self.records
    }

    /// A commit at `time`.
    #[must_use]
    pub fn commit(self, time: PgTime) -> Self {
        self.transaction(0x00, &xact::encode_end(time, None))
    }

    /// An abort at `time`.
    #[must_use]
    pub fn abort(self, time: PgTime) -> Self {
        self.transaction(0x20, &xact::encode_end(time, None))
    }

    /// PREPARE TRANSACTION at `time`.
    #[must_use]
    pub fn prepare(self, time: PgTime) -> Self {
        let mut main = [0x57F9_4534_u32, 80, self.xid, 5].map(u32::to_le_bytes).concat();
        main.extend(time.raw().to_le_bytes());
        main.extend([0; 56]);
        self.transaction(0x10, &main)
    }

    /// COMMIT PREPARED of `xid` at `time`.
    #[must_use]
    pub fn commit_prepared(self, xid: u32, time: PgTime) -> Self {
        self.main_record(RM_XACT, 0x30 | 0x80, 0, &xact::encode_end(time, Some(xid)))
    }

    /// A restore point.
    #[must_use]
    pub fn restore_point(self, time: PgTime, name: &str) -> Self {
        let mut main = time.raw().to_le_bytes().to_vec();
        main.extend(name.bytes().take(xlog::RESTORE_POINT_NAME - 1));
        main.resize(8 + xlog::RESTORE_POINT_NAME, 0);
        self.main_record(RM_XLOG, xlog::RESTORE_POINT, 0, &main)
    }

    /// An online checkpoint at `seconds` since 1970, whose redo position is its own start.
    #[must_use]
    pub fn checkpoint(self, seconds: i64) -> Self {
        let mut main = vec![0; 88];
        main[0..8].copy_from_slice(&self.position().aligned().get().to_le_bytes());
        main[8..12].copy_from_slice(&self.timeline.get().to_le_bytes());
        main[64..72].copy_from_slice(&seconds.to_le_bytes());
        self.main_record(RM_XLOG, 0x10, 0, &main)
    }

    /// A record of `bytes` bytes in all (at least 26; a few less where no such length exists) that means nothing, of a resource
    /// manager nobody knows. It has no zero byte in its data.
    #[must_use]
    pub fn filler(self, bytes: usize) -> Self {
        let data = bytes.checked_sub(24 + 2).expect("a record with main data has at least 26 bytes");
        let data = if data > 258 { data - 3 } else { data.min(255) }; // a long length takes three bytes more
        let noise: Vec<u8> = (0..data).map(|i| u8::try_from(i % 251).unwrap_or(0) | 1).collect();
        self.main_record(200, 0x70, 0, &noise)
    }

    /// A record with main data alone.
    #[must_use]
    pub fn main_record(self, rmid: u8, info: u8, xid: u32, main: &[u8]) -> Self {
        let mut body = match u8::try_from(main.len()) {
            Ok(short) => vec![255, short],
            Err(_) => {
                let long = u32::try_from(main.len()).expect("less than 4 GiB");
                [&[254][..], &long.to_le_bytes()].concat()
            }
        };
        body.extend_from_slice(main);
        self.record(rmid, info, xid, &body)
    }

    /// Any record.
    #[must_use]
    pub fn record(mut self, rmid: u8, info: u8, xid: u32, body: &[u8]) -> Self {
        while !self.position().get().is_multiple_of(8) {
            self.bytes.push(0);
        }
        let total = u32::try_from(24 + body.len()).expect("less than 4 GiB");
        let mut record = total.to_le_bytes().to_vec();
        record.extend(xid.to_le_bytes());
        record.extend(self.prev.get().to_le_bytes());
        record.extend([info, rmid, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend_from_slice(body);
        self.page_header_if_due(0, 0);
        let start = self.position();
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            self.page_header_if_due(1, rest.len());
            let room = usize::try_from(PAGE_SIZE - self.position().page_offset()).expect("a page");
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend_from_slice(now);
            rest = later;
        }
        self.prev = start;
        self.records.push((start, self.position()));
        self
    }

    /// Breaks the next record off after `keep` of its bytes, as a crash does, and goes on at the next page as the server does
    /// after it: with a page that says so, and an `XLOG_OVERWRITE_CONTRECORD`.
    #[must_use]
    pub fn abandoned(self, bytes: usize, keep: usize) -> Self {
        let (prev, count) = (self.prev, self.records.len());
        let mut wal = self.filler(bytes);
        let lost = wal.records.pop().map(|(start, _)| start).expect("just written");
        assert_eq!(wal.records.len(), count, "nothing else was written");
        let page =
            lost.saturating_add(u64::try_from(keep).expect("small")).page_start().saturating_add(PAGE_SIZE);
        let cut = usize::try_from(page.bytes_since(wal.start)).expect("in memory");
        assert!(cut < wal.bytes.len(), "the abandoned record must reach its next page");
        wal.bytes.truncate(cut);
        let size = usize::try_from(wal.size.bytes()).expect("fits memory");
        wal.timelines.truncate(cut.div_ceil(size));
        wal.prev = prev;
        wal.page_header_if_due(8, 0);
        let mut main = lost.get().to_le_bytes().to_vec();
        main.extend([0; 8]);
        wal.main_record(RM_XLOG, 0xD0, 0, &main)
    }

    /// A switch: the rest of the segment is zeros.
    #[must_use]
    pub fn switch(self) -> Self {
        let mut wal = self.record(RM_XLOG, xlog::SWITCH, 0, &[]);
        let end = SegmentNo::ending_at(wal.position(), wal.size).end(wal.size);
        wal.bytes.resize(usize::try_from(end.bytes_since(wal.start)).expect("in memory"), 0);
        wal
    }

    /// Small records up to the very end of the segment, if `step` allows it; else with one that crosses into the next.
    #[must_use]
    pub fn fill_segment(self, step: usize) -> Self {
        let end = SegmentNo::containing(self.position(), self.size).end(self.size);
        let mut wal = self;
        while wal.position() < end {
            wal = wal.filler(step);
        }
        wal
    }

    /// All segments, the last one padded with zeros.
    pub fn segments(&self) -> Vec<(SegmentName, Vec<u8>)> {
        let size = usize::try_from(self.size.bytes()).expect("fits memory");
        let first = SegmentNo::containing(self.start, self.size);
        self.bytes
            .chunks(size)
            .zip(&self.timelines)
            .enumerate()
            .map(|(index, (chunk, timeline))| {
                let number = SegmentNo::new(first.get() + u64::try_from(index).expect("small"));
                let mut bytes = chunk.to_vec();
                bytes.resize(size, 0);
                (SegmentName::new(*timeline, number, self.size), bytes)
            })
            .collect()
    }

    fn transaction(mut self, info: u8, main: &[u8]) -> Self {
        let xid = self.xid;
        self.xid += 1;
        self.main_record(RM_XACT, info, xid, main)
    }

    fn page_header_if_due(&mut self, flags: u16, remaining: usize) {
        let at = self.position();
        if at.page_offset() != 0 {
            return;
        }
        let long = at.get().is_multiple_of(self.size.bytes());
        if long {
            self.timelines.push(self.timeline);
        }
        let flags = flags | if long { 2 } else { 0 };
        let remaining = u32::try_from(remaining).expect("less than 4 GiB");
        self.bytes.extend(self.magic.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(self.timeline.get().to_le_bytes());
        self.bytes.extend(at.get().to_le_bytes());
        self.bytes.extend(remaining.to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(self.system_id.get().to_le_bytes());
            self.bytes.extend(u32::try_from(self.size.bytes()).expect("at most 1 GiB").to_le_bytes());
            self.bytes.extend(u32::try_from(PAGE_SIZE).expect("8192").to_le_bytes());
        }
    }
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("a length fits 64 bits")
}
