//! The plan: which backup, which route, where to stop, which segments, what is kept and what is lost.
//!
//! A plan is a plain value. Printing it is `--dry-run`; performing it needs no further decision. Its invariants: the stop is a
//! record on the route that PostgreSQL reaches consistently from the backup; every segment from the backup's start to the one
//! in which the stop record ends is listed, under the name recovery will ask for, without a gap.

use std::fmt;

use super::refusal::Refusal;
use super::request::RecoveryTarget;
use super::world::Want;
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::Lsn;
use crate::wal::scan::Stamp;
use crate::wal::segment::SegmentName;
use crate::wal::time::PgTime;
use crate::wal::timeline::TimelineId;

/// What the planner says.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The decision.
    Plan(Box<RecoveryPlan>),
    /// Fetch these and ask again. At most [`super::MAX_WANTS`], never one that is already a fact.
    Need(Vec<Want>),
    /// It cannot be done, or not without a person's decision.
    Refuse(Box<Refusal>),
}

/// A recovery, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// Identifier of the backup to start from.
    pub backup: String,
    /// What was asked.
    pub target: RecoveryTarget,
    /// Where PostgreSQL stops.
    pub stop: Stop,
    /// The timelines replayed, oldest first, from the backup's start to the stop.
    pub route: Vec<RouteStep>,
    /// `recovery_target_timeline`, and `--timeline` of `archive-get`. Never newer than the stop needs: PostgreSQL names it as
    /// the parent of the timeline it opens, so a newer one would write a history that does not ascend.
    pub recovery_target_timeline: TimelineId,
    /// The segments replay needs, in order, under the names recovery finds them by.
    pub segments: Vec<SegmentName>,
    /// Their size.
    pub wal_bytes: u64,
    /// What replay meets that the restored directory must be ready for.
    pub met: Met,
    /// Behind the last of them WAL is missing that was there: recovery must not look ahead (PostgreSQL 15 and later fetch the next
    /// segment while they replay this one, and what `archive-get` answers to a hole ends recovery).
    pub hole_behind: bool,
    /// The last commit that will be there, if one is replayed.
    pub last_kept: Option<Stamp>,
    /// The first stored commit after the stop.
    pub first_lost: Option<Stamp>,
    /// What a person should know before saying yes.
    pub warnings: Vec<Warning>,
}

/// Where PostgreSQL stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// `recovery_target_lsn = lsn`, `recovery_target_inclusive = on`.
    Lsn(StopRecord),
    /// `recovery_target = 'immediate'`: as soon as the backup is consistent.
    Immediate {
        /// Where that is.
        lsn: Lsn,
    },
    /// No target: replay all there is on the timeline.
    EndOfWal {
        /// Where that is, as stored now.
        lsn: Lsn,
    },
}

impl Stop {
    /// The first byte that is not replayed.
    pub fn end(&self) -> Lsn {
        match self {
            Self::Lsn(record) => record.end,
            Self::Immediate { lsn } | Self::EndOfWal { lsn } => *lsn,
        }
    }
}

/// The last record to be replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopRecord {
    /// Its start: what PostgreSQL is told.
    pub lsn: Lsn,
    /// The first byte after it.
    pub end: Lsn,
    /// Its time, if it has one and it is known.
    pub time: Option<PgTime>,
    /// Its transaction, if it has one and it is known.
    pub xid: Option<u32>,
    /// What it is.
    pub what: StopKind,
}

/// What kind of record a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopKind {
    /// A commit.
    Commit,
    /// A rollback.
    Abort,
    /// PREPARE TRANSACTION.
    Prepare,
    /// A restore point.
    RestorePoint,
    /// Any other record.
    Other,
}

impl fmt::Display for StopKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Commit => "commit",
            Self::Abort => "rollback",
            Self::Prepare => "PREPARE TRANSACTION",
            Self::RestorePoint => "restore point",
            Self::Other => "record",
        })
    }
}

/// `WAL_LEVEL_MINIMAL` of `xlog.h`.
const WAL_LEVEL_MINIMAL: i32 = 0;

/// What replay meets on its way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Met {
    /// The largest of each setting that a server in recovery must not have below the primary's (RECOVERY.md 25), where the
    /// primary changed one: connections, worker processes, WAL senders, prepared transactions, locks per transaction.
    pub required: Option<[u32; 5]>,
    /// Tablespaces that are made: OID and place. Replay makes them at that very place, whatever the restore maps.
    pub tablespaces: Vec<(u32, Vec<u8>)>,
    /// Where the server began to write with `wal_level = minimal`. What it loaded in bulk from there on is in no WAL: 14 and later end
    /// with FATAL there, 13 may open without it (`CheckRequiredParameterValues` in `xlog.c`).
    pub minimal: Option<Lsn>,
}

impl Met {
    pub(super) fn add(&mut self, event: &Event) {
        match &event.kind {
            EventKind::ParameterChange {
                max_connections,
                max_worker_processes,
                max_wal_senders,
                max_prepared_xacts,
                max_locks_per_xact,
                wal_level,
            } => {
                if *wal_level == WAL_LEVEL_MINIMAL {
                    self.minimal.get_or_insert(event.lsn);
                }
                let found = [
                    max_connections,
                    max_worker_processes,
                    max_wal_senders,
                    max_prepared_xacts,
                    max_locks_per_xact,
                ];
                let mut largest = self.required.unwrap_or_default();
                for (known, found) in largest.iter_mut().zip(found) {
                    *known = u32::try_from(*found).unwrap_or(0).max(*known);
                }
                self.required = Some(largest);
            }
            EventKind::TablespaceCreate { tablespace, place } if !place.is_empty() => {
                self.tablespaces.push((*tablespace, place.clone()));
            }
            _ => {}
        }
    }
}

/// A stretch of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteStep {
    /// The timeline.
    pub timeline: TimelineId,
    /// First byte replayed on it.
    pub from: Lsn,
    /// First byte no longer replayed on it: the fork, or the stop.
    pub to: Lsn,
}

/// Something that does not prevent the recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// The clock was set back before the backup that was named began.
    HoldsLater {
        /// The largest time of a commit or abort before it.
        up_to: PgTime,
    },
    /// The stop was moved back, so that a database whose DROP had begun is whole.
    MovedBeforeDrop {
        /// The dropping transaction.
        xid: u32,
        /// Its first record.
        first: Lsn,
        /// Its DROP DATABASE record.
        drop: Lsn,
        /// The stop without this rule.
        unmoved: Lsn,
    },
    /// The stop lies inside a DROP DATABASE: that database will be unusable.
    InsideDrop {
        /// The dropping transaction.
        xid: u32,
        /// Its first record: everything that ends at or before it is safe to stop at.
        first: Lsn,
        /// Its DROP DATABASE record.
        drop: Lsn,
    },
    /// The timeline's own first segment is not stored (yet): the plan ends where the timeline begins.
    EndsAtFork {
        /// The timeline that is not there.
        timeline: TimelineId,
        /// Where it begins.
        fork: Lsn,
    },
    /// Another line of history also has this position, past the point where the lines part.
    OtherBranch {
        /// The other timeline.
        timeline: TimelineId,
        /// Where they part.
        fork: Lsn,
    },
    /// The restore point's name was used more than once; the first after the backup is taken.
    DuplicateName {
        /// The others: time and position.
        others: Vec<(PgTime, Lsn)>,
    },
    /// Segments of this timeline are stored, its history is not: nothing on it can be used.
    HistoryMissing {
        /// The timeline.
        timeline: TimelineId,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HoldsLater { up_to } => write!(
                f,
                "the clock was set back before this backup began: it holds what was committed up to {up_to} by the clock of then"
            ),
            Self::MovedBeforeDrop { xid, first, unmoved, .. } => write!(
                f,
                "transaction {xid} was dropping a database at {unmoved}; stopping before its first record at {first} instead, \
                 where the database is whole"
            ),
            Self::InsideDrop { xid, first, .. } => write!(
                f,
                "transaction {xid} is dropping a database at the stop, which will be unusable; --to-lsn {first} keeps it"
            ),
            Self::EndsAtFork { timeline, fork } => write!(
                f,
                "the first segment of timeline {timeline} is not archived; recovery ends where it begins, at {fork}"
            ),
            Self::OtherBranch { timeline, fork } => {
                write!(f, "timeline {timeline} also has this position; the lines part at {fork}")
            }
            Self::DuplicateName { others } => {
                write!(f, "this restore point's name was used again")?;
                for (time, lsn) in others {
                    write!(f, ", at {time} ({lsn})")?;
                }
                Ok(())
            }
            Self::HistoryMissing { timeline } => write!(
                f,
                "segments of timeline {timeline} are archived, but {}.history is not; they cannot be used",
                timeline.hex()
            ),
        }
    }
}
