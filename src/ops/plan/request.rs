//! What is asked of the planner: a moment, a timeline, a backup.
//!
//! Everything is typed and absolute here: times carry no zone, names are PostgreSQL's own. Text, zones and defaults are the
//! caller's. The words follow `recovery_target_*` of PostgreSQL, with one difference: an LSN means "everything that ends at
//! or before it" (RECOVERY.md 2).

use std::fmt;

use crate::wal::lsn::Lsn;
use crate::wal::time::PgTime;
use crate::wal::timeline::TimelineId;

/// Where recovery is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// The end of what is archived.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// What was committed at or before this moment, and nothing younger.
    Time(PgTime),
    /// Everything that ends at or before this position.
    Lsn(Lsn),
    /// Up to the end of this transaction, included.
    Xid(u32),
    /// Up to just before the end of this transaction.
    BeforeXid(u32),
    /// A restore point made by `pg_create_restore_point`.
    Name(String),
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the latest moment"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Time(time) => write!(f, "{time}"),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::BeforeXid(xid) => write!(f, "just before transaction {xid}"),
            Self::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

/// Which line of history to follow, said by a person. Saying nothing is not the same as [`TimelineChoice::Latest`]: unsaid,
/// a moment that two lines claim is refused (RECOVERY.md 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimelineChoice {
    /// The highest timeline that descends from the backup.
    Latest,
    /// This one.
    Number(TimelineId),
}

/// One question to the planner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRequest {
    /// Where to end.
    pub target: RecoveryTarget,
    /// On which timeline; `None`: the highest that descends from the backup, unless two lines claim the moment.
    pub timeline: Option<TimelineChoice>,
    /// From which backup; `None`: the newest that permits the target.
    pub backup: Option<String>,
    /// The present, if it is known: a later time in WAL was made by a clock that was wrong.
    pub now: Option<PgTime>,
}

impl PlanRequest {
    /// The question for `target` with nothing else said.
    pub fn new(target: RecoveryTarget) -> Self {
        Self { target, timeline: None, backup: None, now: None }
    }
}
