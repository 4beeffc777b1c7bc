//! What the planner knows: the world (from listings and verdicts) and the facts (fetched because it asked).
//!
//! The world is complete before planning starts and costs a few listings. Facts are what stored segments say of themselves;
//! there may be very many, so the planner asks only for those that decide, and is run again with them. Facts nobody asked for
//! never change an answer. A segment that was listed but is gone when fetched: take it out of [`World::stored`], plan anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::seal::Epoch;
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::Lsn;
use crate::wal::page::{PgMajor, SystemId};
use crate::wal::scan::{CommitSummary, Crossing, Fragment, JoinError, SegmentEnd, SegmentScan};
use crate::wal::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::wal::time::PgTime;
use crate::wal::timeline::{TimelineHistory, TimelineId};

/// One repository's view of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// The cluster.
    pub system_id: SystemId,
    /// Its segment size.
    pub segment_size: SegmentSize,
    /// Its backups, in any order.
    pub backups: Vec<PlanBackup>,
    /// The stored histories. Timeline 1 has none and needs none.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The segments `archive-get` would deliver, by listing: complete or short copies, without `.partial` and without those
    /// that expiry has given up.
    pub stored: BTreeMap<TimelineId, BTreeSet<SegmentNo>>,
    /// Of these, the ones that an operator accepted with damage in them, and where their valid WAL ends: a line ends there.
    pub damaged: BTreeMap<SegmentName, Lsn>,
    /// Per timeline, the first segment that is still promised: what is missing below it expired and is no gap.
    pub floor: BTreeMap<TimelineId, SegmentNo>,
}

/// One backup, from its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanBackup {
    /// Its identifier.
    pub id: String,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Redo position: replay starts here.
    pub start_lsn: Lsn,
    /// End of backup: consistent once replay has reached it.
    pub stop_lsn: Lsn,
    /// The server's clock just before the backup began.
    pub started_at: PgTime,
    /// The server's clock just before the backup was ended, so that all that was committed by then lies before `stop_lsn`.
    pub stop_time: PgTime,
    /// Largest commit time in [start, stop), if the verdict knows it. Only saves fetching: WAL itself is asked too.
    pub latest_commit_inside: Option<PgTime>,
    /// Complete, not expired, every byte there.
    pub restorable: bool,
    /// Pages of the server were damaged when it was taken: used only if it is asked for by name.
    pub corrupt: bool,
}

impl PlanBackup {
    /// It may be used though nobody named it.
    pub fn is_offered(&self) -> bool {
        self.restorable && !self.corrupt
    }
}

/// What was fetched so far. Grows from run to run; nothing in it is ever replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// What header and annex of a segment tell.
    pub summaries: HashMap<SegmentName, SegmentFacts>,
    /// Every event of a segment's complete records, in WAL order.
    pub events: HashMap<SegmentName, Vec<Event>>,
    /// The last complete record that starts in the segment and ends at or before the position.
    pub records: HashMap<(SegmentName, Lsn), Option<RecordSpan>>,
    /// Start of the first record that carries the transaction and lies wholly in the segment.
    pub first_of_xid: HashMap<(SegmentName, u32), Option<Lsn>>,
    pub(super) joins: Joins,
}

impl Facts {
    /// The epochs of which no key is at hand, and the first segment that was met of each.
    pub fn unopened(&self) -> BTreeMap<Epoch, SegmentName> {
        let mut found: BTreeMap<Epoch, SegmentName> = BTreeMap::new();
        for (name, facts) in &self.summaries {
            if let Some(epoch) = facts.locked {
                let first = found.entry(epoch).or_insert(*name);
                *first = (*first).min(*name);
            }
        }
        found
    }
}

/// Records put together from fragments, by the segments of tail and last head: every run needs them all again, and checking
/// their CRCs is the costliest thing planning does. A cache, so it is equal to any other.
#[derive(Debug, Default)]
pub(super) struct Joins(Mutex<HashMap<(SegmentName, SegmentName), Result<Crossing, JoinError>>>);

impl Joins {
    pub(super) fn get_or(
        &self,
        key: (SegmentName, SegmentName),
        join: impl FnOnce() -> Result<Crossing, JoinError>,
    ) -> Result<Crossing, JoinError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(key).or_insert_with(join).clone()
    }
}

impl Clone for Joins {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Joins {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Joins {}

/// One fact the planner cannot go on without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Want {
    /// Header and annex: goes into [`Facts::summaries`].
    Summary(SegmentName),
    /// A scan of the body: goes into [`Facts::events`].
    Events(SegmentName),
    /// A scan of the body: goes into [`Facts::records`].
    RecordEndingBy(SegmentName, Lsn),
    /// A scan of the body: goes into [`Facts::first_of_xid`].
    FirstRecordOf(SegmentName, u32),
}

impl Want {
    /// The segment to look into.
    pub fn segment(self) -> SegmentName {
        match self {
            Self::Summary(name)
            | Self::Events(name)
            | Self::RecordEndingBy(name, _)
            | Self::FirstRecordOf(name, _) => name,
        }
    }
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordSpan {
    /// Its first byte.
    pub lsn: Lsn,
    /// The first byte after it, not rounded up.
    pub end: Lsn,
}

/// What is known of a stored segment without reading its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFacts {
    /// The PostgreSQL that wrote it, if known.
    pub major: Option<PgMajor>,
    /// False: commits and events were not looked for (a PostgreSQL newer than the program that stored it), or are not known here.
    pub decoded: bool,
    /// The epoch whose key it takes to know them, if that is why.
    pub locked: Option<Epoch>,
    /// First byte after the last valid record; the segment's end if `end` is `Full`.
    pub valid_to: Lsn,
    /// How valid WAL ends.
    pub end: SegmentEnd,
    /// The bytes that open it, if they belong to a record of an earlier segment.
    pub head: Option<Fragment>,
    /// The record that starts here and ends later.
    pub tail: Option<Fragment>,
    /// The last complete record.
    pub last_record: Option<RecordSpan>,
    /// Commits, aborts, prepares.
    pub commits: CommitSummary,
    /// The other events, in WAL order.
    pub events: Vec<Event>,
    /// False: `events` is not all of them, or some kind was not looked for; the body must be asked.
    pub events_complete: bool,
}

impl From<&SegmentScan> for SegmentFacts {
    fn from(scan: &SegmentScan) -> Self {
        let last_record =
            scan.last_record.zip(scan.last_record_end).map(|(lsn, end)| RecordSpan { lsn, end });
        let others = |event: &&Event| {
            !matches!(
                event.kind,
                EventKind::Commit { .. } | EventKind::Abort { .. } | EventKind::Prepare { .. }
            )
        };
        Self {
            major: scan.major,
            decoded: scan.decoded,
            locked: None,
            valid_to: scan.valid_to,
            end: scan.end,
            head: scan.head.clone(),
            tail: scan.tail.clone(),
            last_record,
            commits: scan.commits,
            events: scan.events.iter().filter(others).cloned().collect(),
            events_complete: scan.events_dropped == 0,
        }
    }
}
