//! Values that the input chooses: what an annex or a scan may say of a segment.

use libfuzzer_sys::arbitrary::Unstructured;
use pitr::ops::plan::{RecordSpan, SegmentFacts};
use pitr::seal::Epoch;
use pitr::wal::event::{Event, EventKind};
use pitr::wal::scan::{Backstep, CommitSummary, FRAGMENT_BYTES, Fragment, SegmentEnd, Stamp};
use pitr::wal::{Lsn, PgMajor, PgTime, SegmentName, SegmentSize, TimelineId};

/// Segments of each timeline that are stored, holes aside.
pub const SEGMENTS: u64 = 12;
/// Where the stored WAL begins: at its beginning, across the names of two logs, at its end.
pub const BASES: [u64; 3] = [1, 4090, (u64::MAX >> 20) - SEGMENTS + 1];
/// A header of a record (`XLogRecord`).
const RECORD_HEADER: usize = 24;

/// The smallest there is.
pub fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("one MiB")
}

/// What is left of the input; when it is used up, everything is zero.
pub struct Made<'a> {
    bytes: Unstructured<'a>,
    /// The first segment there is.
    pub first: u64,
    /// The record that the segment before began and did not end.
    crossing: Option<Vec<u8>>,
}

impl<'a> Made<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { bytes: Unstructured::new(data), first: 0, crossing: None }
    }

    pub fn number(&mut self) -> u64 {
        self.bytes.arbitrary().unwrap_or(0)
    }

    /// From 0 to `n` - 1, by one byte of the input.
    pub fn below(&mut self, n: u8) -> usize {
        usize::from(self.bytes.arbitrary::<u8>().unwrap_or(0) % n)
    }

    pub fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    pub fn timeline(&mut self) -> TimelineId {
        TimelineId::new(1 + self.below(3) as u32).expect("not 0")
    }

    pub fn lsn(&mut self) -> Lsn {
        let number = self.number();
        match self.below(16) {
            // Room for a record behind it.
            15 => Lsn::new(number.min(u64::MAX - 8192)),
            _ => Lsn::new(self.first << 20).saturating_add(number % ((SEGMENTS + 1) << 20)),
        }
    }

    /// A position in a segment.
    fn within(&mut self, name: SegmentName) -> Lsn {
        let start = name.number(size()).expect("a segment").start(size());
        // Room for a record behind it, in the very last segment too.
        start.saturating_add(self.number() % (size().bytes() - 8192))
    }

    pub fn time(&mut self) -> PgTime {
        match self.below(16) {
            0 => PgTime::from_raw(i64::MIN),
            1 => PgTime::from_raw(i64::MAX),
            2 => PgTime::from_raw(self.number().cast_signed()),
            _ => PgTime::from_raw(800_000_000_000_000 + self.below(64) as i64 * 1_000_000),
        }
    }

    pub fn xid(&mut self) -> u32 {
        self.below(32) as u32
    }

    pub fn name(&mut self) -> String {
        ["a", "b", ""][self.below(3)].to_owned()
    }

    fn stamp(&mut self) -> Option<Stamp> {
        let lsn = self.lsn();
        let stamp = Stamp { lsn, end: end_of(lsn), time: self.time(), xid: self.xid() };
        (self.below(4) != 0).then_some(stamp)
    }

    /// What header and annex of a segment say. All of it is checked for its form only.
    pub fn summary(&mut self, name: SegmentName) -> SegmentFacts {
        let number = name.number(size()).expect("a segment");
        let (end, valid_to) = match self.below(8) {
            0 => (SegmentEnd::Switch, self.within(name)),
            1 => (SegmentEnd::Short, self.within(name)),
            _ => (SegmentEnd::Full, number.end(size())),
        };
        let (head, tail) = self.fragments(name);
        SegmentFacts {
            major: [Some(PgMajor::V13), Some(PgMajor::V18), None][self.below(3)],
            decoded: self.below(16) != 1,
            locked: (self.below(16) == 1).then_some(Epoch::FIRST),
            valid_to,
            end,
            head,
            tail,
            last_record: self.any_record(name),
            commits: self.commits(),
            events: self.events(name, false),
            events_complete: self.below(8) != 1,
        }
    }

    fn commits(&mut self) -> CommitSummary {
        let count = |made: &mut Self| if made.flag() { made.below(4) as u64 } else { made.number() };
        CommitSummary {
            commits: count(self),
            aborts: count(self),
            prepares: count(self),
            first: self.stamp(),
            last: self.stamp(),
            min: self.flag().then(|| self.time()),
            max: self.flag().then(|| self.time()),
            last_stop: self.stamp(),
            backstep: self.stamp().filter(|_| self.flag()).map(|to| Backstep { from: self.time(), to }),
        }
    }

    /// What opens a segment and what ends it. A record that the one before began is mostly ended, with bytes that fit.
    fn fragments(&mut self, name: SegmentName) -> (Option<Fragment>, Option<Fragment>) {
        let number = name.number(size()).expect("a segment");
        let (start, after) = (number.start(size()), number.end(size()));
        let head = match self.crossing.take() {
            Some(rest) if self.below(8) != 0 => {
                let lsn = start.saturating_add(40);
                Some(whole(lsn, lsn.saturating_add(rest.len() as u64), &rest))
            }
            _ => self.wild(name),
        };
        let tail = match self.below(4) {
            0 => self.wild(name),
            1 => {
                let record = self.crossing_record();
                let cut = 8 + self.below(32).min(record.len() - 9);
                self.crossing = Some(record[cut..].to_vec());
                let tail = whole(after.saturating_sub(cut as u64), after, &record[..cut]);
                let crc = crc32c::crc32c(record.get(RECORD_HEADER..cut).unwrap_or_default());
                Some(Fragment { total: record.len() as u64, crc, ..tail })
            }
            _ => None,
        };
        (head, tail)
    }

    /// Anything that begins in the segment.
    fn wild(&mut self, name: SegmentName) -> Option<Fragment> {
        if self.below(4) != 1 {
            return None;
        }
        let (lsn, end, total, len) = (self.within(name), self.lsn(), self.number(), self.number());
        let bytes: [u8; 40] = self.bytes.arbitrary().unwrap_or([0; 40]);
        Some(Fragment { lsn, end, total, len, crc: self.xid(), bytes: bytes[..self.below(41)].to_vec() })
    }

    /// A record with a right CRC and whatever else.
    fn crossing_record(&mut self) -> Vec<u8> {
        let body: [u8; 64] = self.bytes.arbitrary().unwrap_or([0; 64]);
        let body = &body[..self.below(64)];
        let mut record = vec![0; RECORD_HEADER];
        record.extend_from_slice(body);
        let total = record.len() as u32;
        record[..4].copy_from_slice(&total.to_le_bytes());
        record[4..8].copy_from_slice(&self.xid().to_le_bytes());
        record[16] = self.below(255) as u8;
        record[17] = self.below(16) as u8;
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record[..20]);
        record[20..24].copy_from_slice(&crc.to_le_bytes());
        record
    }

    fn any_record(&mut self, name: SegmentName) -> Option<RecordSpan> {
        let lsn = self.within(name);
        self.flag().then_some(RecordSpan { lsn, end: end_of(lsn) })
    }

    /// A record of a body that was scanned: it lies in the segment.
    pub fn record(&mut self, name: SegmentName) -> Option<RecordSpan> {
        let after = name.number(size()).expect("a segment").end(size());
        self.any_record(name).filter(|record| record.end <= after)
    }

    /// All events of a body that was scanned: they ascend.
    pub fn scanned(&mut self, name: SegmentName) -> Vec<Event> {
        let mut events = self.events(name, true);
        let end = name.number(size()).expect("a segment").end(size());
        let start = name.number(size()).expect("a segment").start(size());
        events.retain(|event| event.lsn < event.end && event.lsn >= start && event.end <= end);
        events
    }

    /// Sorted by position, as the reader of an annex sorts them.
    fn events(&mut self, name: SegmentName, commits: bool) -> Vec<Event> {
        let count = self.below(6);
        let mut events: Vec<Event> = (0..count).map(|_| self.event(name, commits)).collect();
        events.sort_by_key(|event| event.lsn);
        events
    }

    fn event(&mut self, name: SegmentName, commits: bool) -> Event {
        let lsn = if self.below(8) == 1 { self.lsn() } else { self.within(name) };
        Event { lsn, end: end_of(lsn), xid: self.xid(), kind: self.kind(commits) }
    }

    fn kind(&mut self, commits: bool) -> EventKind {
        let time = self.time();
        match self.below(if commits { 16 } else { 10 }) {
            0 => EventKind::RestorePoint { time, name: self.name() },
            1 => {
                let (redo, shutdown, timeline) = (self.lsn(), self.flag(), self.timeline());
                EventKind::Checkpoint { time, redo, shutdown, timeline }
            }
            2 => EventKind::EndOfRecovery { time, timeline: self.timeline(), previous: self.timeline() },
            3 => EventKind::BackupEnd { start: self.lsn() },
            4 => EventKind::Switch,
            5 => EventKind::ParameterChange {
                max_connections: self.number() as i32,
                max_worker_processes: self.number() as i32,
                max_wal_senders: self.number() as i32,
                max_prepared_xacts: self.number() as i32,
                max_locks_per_xact: self.number() as i32,
                wal_level: self.below(4) as i32 - 1,
            },
            6 => EventKind::DatabaseDrop { databases: vec![self.xid(); self.below(3)] },
            7 => EventKind::DatabaseCreate { database: self.xid() },
            8 => EventKind::TablespaceCreate { tablespace: self.xid(), place: vec![b'/'; self.below(3)] },
            9 => EventKind::OverwriteContrecord { lsn: self.lsn() },
            10 | 11 => EventKind::Abort { time, prepared: self.flag() },
            12 => EventKind::Prepare { time },
            _ => EventKind::Commit { time, prepared: self.flag() },
        }
    }
}

/// A fragment with all its bytes, as far as fragments keep them.
fn whole(lsn: Lsn, end: Lsn, bytes: &[u8]) -> Fragment {
    let kept = bytes[..bytes.len().min(FRAGMENT_BYTES)].to_vec();
    let len = bytes.len() as u64;
    Fragment { lsn, end, total: len, len, crc: crc32c::crc32c(bytes), bytes: kept }
}

/// One record at a position ends at one place, whoever speaks of it.
fn end_of(lsn: Lsn) -> Lsn {
    lsn.saturating_add(RECORD_HEADER as u64 + lsn.get() / 8 % 4096)
}
