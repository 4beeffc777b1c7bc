//! What a scan learned about a segment. Plain values: the repository stores them beside the segment, planning reads them.
//!
//! Only records that lie wholly inside the segment are counted, timed and listed. The one that came from the segment before
//! (`head`) and the one that goes on in the next (`tail`) appear as fragments; together they make one.
//! No PostgreSQL structure is mirrored here.

use crate::wal::event::Event;
use crate::wal::lsn::Lsn;
use crate::wal::page::{PgMajor, SystemId};
use crate::wal::segment::{SegmentName, SegmentSize};
use crate::wal::time::PgTime;
use crate::wal::timeline::TimelineId;

/// Bytes of a [`Fragment`] that a summary keeps: enough for the header and the time of any transaction record, but not for the
/// xid of every prepared one.
pub const FRAGMENT_BYTES: usize = 128;

/// How the valid WAL of a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SegmentEnd {
    /// With the segment: the next one goes on where this one stops.
    Full,
    /// With a switch; the rest is padding, and the next segment goes on.
    Switch,
    /// Before the segment does, without a switch: a copy of an unfinished segment, to which a longer one may exist.
    Short,
}

/// What one segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentScan {
    /// The segment.
    pub name: SegmentName,
    /// Its size.
    pub size: SegmentSize,
    /// The cluster that wrote it.
    pub system_id: SystemId,
    /// The page magic, whether known or not.
    pub magic: u16,
    /// The PostgreSQL that wrote it; `None` for one that is newer than this program.
    pub major: Option<PgMajor>,
    /// False if `major` is `None`: `events` and `commits` were then not looked for, and say nothing. If moreover the records
    /// could not be followed at all, `records` is 0, `end` is `Full` and `valid_to` the segment's end.
    pub decoded: bool,
    /// First byte of the segment.
    pub start: Lsn,
    /// First byte after the last valid record; the segment's end if `end` is `Full`; the segment's start if it is `Short` and
    /// no record is complete.
    pub valid_to: Lsn,
    /// How valid WAL ends.
    pub end: SegmentEnd,
    /// Timeline in the first page: lower than the name's in the first segment of a timeline, which opens with copied pages.
    pub first_timeline: TimelineId,
    /// Timeline in the last valid page.
    pub last_timeline: TimelineId,
    /// The bytes that open the segment, if they belong to a record of an earlier one.
    pub head: Option<Fragment>,
    /// The record that starts here and ends in a later segment.
    pub tail: Option<Fragment>,
    /// Complete records that start here.
    pub records: u64,
    /// Start of the first complete record.
    pub first_record: Option<Lsn>,
    /// Where the record before that one starts, as it says itself: in an earlier segment, or 0/0 in a new cluster.
    pub first_previous: Option<Lsn>,
    /// Start of the last complete record.
    pub last_record: Option<Lsn>,
    /// First byte after the last complete record, not rounded up.
    pub last_record_end: Option<Lsn>,
    /// Commits, aborts and prepares of complete records.
    pub commits: CommitSummary,
    /// Events of complete records in WAL order. Without commits, aborts and prepares if the scan kept only a summary.
    pub events: Vec<Event>,
    /// Events that are missing in `events`, because there were more than a scan keeps. They are the later ones.
    pub events_dropped: u64,
}

/// A transaction's end (or PREPARE) as a place to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Start of the record.
    pub lsn: Lsn,
    /// First byte after it.
    pub end: Lsn,
    /// Its time.
    pub time: PgTime,
    /// The transaction.
    pub xid: u32,
}

/// A time that lies below an earlier one in WAL order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backstep {
    /// The largest time seen before.
    pub from: PgTime,
    /// The record whose time is lower.
    pub to: Stamp,
}

/// The transaction ends of a segment. "Ends" are commits and aborts, prepared ones included: the records whose time recovery
/// compares with its target. PREPARE counts in `last_stop` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommitSummary {
    /// Commits, prepared ones included.
    pub commits: u64,
    /// Aborts, prepared ones included.
    pub aborts: u64,
    /// PREPARE TRANSACTION records.
    pub prepares: u64,
    /// First end in WAL order.
    pub first: Option<Stamp>,
    /// Last end in WAL order.
    pub last: Option<Stamp>,
    /// Smallest time of an end.
    pub min: Option<PgTime>,
    /// Largest time of an end.
    pub max: Option<PgTime>,
    /// Last commit, abort or prepare in WAL order.
    pub last_stop: Option<Stamp>,
    /// The largest fall of an end's time below the largest before it in this segment.
    pub backstep: Option<Backstep>,
}

impl CommitSummary {
    /// Takes up one event; those that are neither commit, abort nor prepare change nothing.
    pub fn add(&mut self, event: &Event) {
        use crate::wal::event::EventKind::{Abort, Commit, Prepare};
        let (time, counter) = match event.kind {
            Commit { time, .. } => (time, &mut self.commits),
            Abort { time, .. } => (time, &mut self.aborts),
            Prepare { time } => (time, &mut self.prepares),
            _ => return,
        };
        *counter = counter.saturating_add(1);
        let stamp = Stamp { lsn: event.lsn, end: event.end, time, xid: event.xid };
        self.last_stop = Some(stamp);
        if matches!(event.kind, Prepare { .. }) {
            return;
        }
        if let Some(from) = self.max.filter(|max| *max > time) {
            let fall = from.micros_since(time);
            let largest = self.backstep.map_or(0, |b| b.from.micros_since(b.to.time));
            if fall > largest {
                self.backstep = Some(Backstep { from, to: stamp });
            }
        }
        self.first.get_or_insert(stamp);
        self.last = Some(stamp);
        self.min = Some(self.min.map_or(time, |min| min.min(time)));
        self.max = Some(self.max.map_or(time, |max| max.max(time)));
    }
}

/// The part of a crossing record that lies in one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// First of its bytes: of a tail the start of the record, of a head the first byte after the first page header.
    pub lsn: Lsn,
    /// First byte after it: of a head the end of the record, if it ends here; otherwise the end of the segment.
    pub end: Lsn,
    /// Bytes of the record from `lsn` on, in this segment and later ones: of a tail the whole record.
    pub total: u64,
    /// Bytes of the record in this segment, page headers not counted.
    pub len: u64,
    /// CRC-32C of those bytes; of a tail without the first 24, the record's header.
    pub crc: u32,
    /// The first of those bytes: at most [`FRAGMENT_BYTES`] of a summary, up to 64 KiB of a scan that keeps all.
    pub bytes: Vec<u8>,
}

impl Fragment {
    /// True if the record goes on in the next segment.
    pub fn goes_on(&self) -> bool {
        self.len < self.total
    }
}
