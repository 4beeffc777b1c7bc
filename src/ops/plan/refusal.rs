//! Refusals: why a moment cannot be reached, and which moments near it can.
//!
//! A refusal carries the data a person needs for the next command, not only a sentence. The text is one lower-case sentence;
//! what to do about it is [`Refusal::hint`]. Whoever prints decides on wording around it.

use super::request::RecoveryTarget;
use crate::seal::Epoch;
use crate::wal::lsn::Lsn;
use crate::wal::segment::SegmentName;
use crate::wal::time::PgTime;
use crate::wal::timeline::TimelineId;

/// What helps whose identity does not open all that is needed.
pub const OTHER_IDENTITY: &str = "give an identity that opens that epoch, by --identity FILE or as identity_file under [keys]; `pitr key test` tells what one opens";

/// A moment that can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Its time, if known: `--to`.
    pub time: Option<PgTime>,
    /// Its position: `--to-lsn`.
    pub lsn: Lsn,
    /// The timeline it lies on.
    pub timeline: TimelineId,
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.time {
            Some(time) => write!(f, "{time} (LSN {}, timeline {})", self.lsn, self.timeline),
            None => write!(f, "LSN {} on timeline {}", self.lsn, self.timeline),
        }
    }
}

/// Missing WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// First missing segment, or the one whose stored copy ends early.
    pub first: SegmentName,
    /// Last missing segment before stored ones follow.
    pub last: SegmentName,
    /// Why it is one.
    pub hole: Hole,
}

/// Why WAL is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// It is not stored.
    Missing,
    /// It lies below the floor: given up by expiry, not lost.
    Expired,
    /// The first segment is stored, but good only in part: an unfinished copy, or one that was accepted as damaged.
    Partial,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self.hole {
            Hole::Missing => "missing",
            Hole::Expired => "expired",
            Hole::Partial => "good only in part",
        };
        if self.first == self.last {
            write!(f, "segment {} is {how}", self.first)
        } else {
            write!(f, "segments {} to {} are {how}", self.first, self.last)
        }
    }
}

/// One of several lines of history that claim a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    /// Its newest timeline.
    pub timeline: TimelineId,
    /// What this line would restore: its last commit at or before the time asked for, past the fork; `None`: the fork itself.
    pub last_commit: Option<Moment>,
    /// First sign of life on this line past the fork.
    pub first_time: Option<PgTime>,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No backup can be restored at all, or none on the timeline asked for.
    #[error("there is no restorable backup{}", on(*.timeline))]
    NoBackup {
        /// The timeline asked for, if one was.
        timeline: Option<TimelineId>,
    },
    /// The backup asked for is not here.
    #[error("there is no backup {id}")]
    UnknownBackup {
        /// Its identifier.
        id: String,
    },
    /// The backup asked for is incomplete or expired.
    #[error("backup {id} cannot be restored: it is incomplete or expired")]
    BackupNotRestorable {
        /// Its identifier.
        id: String,
    },
    /// The backup asked for is not on the timeline asked for.
    #[error("backup {id} is not on the route of timeline {timeline}")]
    BackupNotOnTimeline {
        /// The backup.
        id: String,
        /// The timeline.
        timeline: TimelineId,
    },
    /// The timeline asked for is unknown: no history and no segment.
    #[error("timeline {timeline} has no stored history")]
    UnknownTimeline {
        /// The timeline.
        timeline: TimelineId,
    },
    /// The moment lies before the end of every usable backup.
    #[error("{target} lies before the first moment that {} can reach, {earliest}", whom(.backup))]
    TooEarly {
        /// What was asked.
        target: RecoveryTarget,
        /// The backup asked for, if one was.
        backup: Option<String>,
        /// The nearest later moment that can be reached.
        earliest: Moment,
        /// A backup that was not asked for but reaches the target's side, if a backup was named.
        other_backup: Option<String>,
    },
    /// Nothing stored proves that all up to the moment is stored.
    #[error("{target} is not covered by the archive, which ends at {latest}")]
    NotCovered {
        /// What was asked.
        target: RecoveryTarget,
        /// The newest moment that can be reached.
        latest: Moment,
    },
    /// WAL is missing between the backup and the moment.
    #[error("{target} cannot be reached: {gap}")]
    Gap {
        /// What was asked.
        target: RecoveryTarget,
        /// What is missing.
        gap: Gap,
        /// The newest moment before the gap.
        before: Option<Moment>,
        /// The first moment after it, by a later backup.
        after: Option<Moment>,
        /// That backup.
        after_backup: Option<String>,
    },
    /// The server's clock was set back: the moment was passed twice.
    #[error("the clock was set back from {fell_from} to {fell_to}, so {target} was passed more than once: at LSN {} and at LSN {}", .early.lsn, .late.lsn)]
    ClockSteppedBack {
        /// What was asked.
        target: RecoveryTarget,
        /// The clock before.
        fell_from: PgTime,
        /// The clock after.
        fell_to: PgTime,
        /// Where PostgreSQL would stop: nothing younger by the clock, but commits that the clock dates at or before the target are lost.
        early: Moment,
        /// The last commit that the clock dates at or before the target; what was committed before it with later times is kept.
        late: Moment,
    },
    /// The server's clock was set back before a backup: it began before the moment by the clock, and holds commits of after it.
    #[error(
        "{target} cannot be told: the clock was set back before backup {backup} began, which holds what was committed up to {up_to}"
    )]
    HoldsLater {
        /// What was asked.
        target: RecoveryTarget,
        /// The newest such backup.
        backup: String,
        /// The largest time of a commit or abort that lies before it.
        up_to: PgTime,
    },
    /// Two lines of history claim the moment.
    #[error("{target} belongs to more than one timeline, which part at LSN {fork}: {}", list(.branches))]
    TwoBranches {
        /// What was asked.
        target: RecoveryTarget,
        /// Where they part.
        fork: Lsn,
        /// The lines, the one that would be taken by `--timeline latest` first.
        branches: Vec<Branch>,
    },
    /// No transaction of that number ends on the route.
    #[error(
        "no commit or rollback of transaction {xid} is archived between LSN {from} and LSN {to} on timeline {timeline}"
    )]
    XidNotFound {
        /// The transaction.
        xid: u32,
        /// Searched from here.
        from: Lsn,
        /// To here.
        to: Lsn,
        /// On the route of this timeline.
        timeline: TimelineId,
    },
    /// No restore point of that name is on the route.
    #[error("no restore point {name:?} is archived after LSN {from} on timeline {timeline}")]
    NameNotFound {
        /// The name.
        name: String,
        /// Searched from here.
        from: Lsn,
        /// On the route of this timeline.
        timeline: TimelineId,
        /// The newest restore points that are there.
        known: Vec<(String, PgTime)>,
    },
    /// WAL of a PostgreSQL that this program, or the one that stored it, cannot read.
    #[error("segment {segment} was written by a PostgreSQL that is too new to look for {target} in it")]
    Undecoded {
        /// What was asked.
        target: RecoveryTarget,
        /// The segment.
        segment: SegmentName,
    },
    /// No key at hand opens what is known of a segment.
    #[error(
        "segment {segment} is sealed with epoch {epoch}, which no identity at hand opens, to look for {target} in it"
    )]
    Locked {
        /// What was asked.
        target: RecoveryTarget,
        /// The segment.
        segment: SegmentName,
        /// What sealed it.
        epoch: Epoch,
    },
}

/// What kind of answer a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalClass {
    /// The moment cannot be reached (exit 4).
    Unreachable,
    /// What was named does not exist (exit 5).
    NotFound,
    /// A key is missing (exit 7).
    Key,
}

impl Refusal {
    /// Which exit code it leads to.
    pub fn class(&self) -> RefusalClass {
        match self {
            Self::NoBackup { .. }
            | Self::UnknownBackup { .. }
            | Self::UnknownTimeline { .. }
            | Self::XidNotFound { .. }
            | Self::NameNotFound { .. } => RefusalClass::NotFound,
            Self::BackupNotRestorable { .. }
            | Self::BackupNotOnTimeline { .. }
            | Self::TooEarly { .. }
            | Self::NotCovered { .. }
            | Self::Gap { .. }
            | Self::ClockSteppedBack { .. }
            | Self::HoldsLater { .. }
            | Self::TwoBranches { .. }
            | Self::Undecoded { .. } => RefusalClass::Unreachable,
            Self::Locked { .. } => RefusalClass::Key,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoBackup { timeline: None } => "make one with pitr backup".to_owned(),
            Self::NoBackup { timeline: Some(_) }
            | Self::UnknownBackup { .. }
            | Self::UnknownTimeline { .. }
            | Self::BackupNotOnTimeline { .. } => "pitr info lists backups and timelines".to_owned(),
            Self::BackupNotRestorable { .. } => "leave --backup out to use the best one".to_owned(),
            Self::TooEarly { earliest, other_backup, .. } => match other_backup {
                Some(id) => format!("use --backup {id}, or a target at or after {earliest}"),
                None => format!("the earliest moment is {earliest}"),
            },
            Self::NotCovered { latest, .. } => {
                format!("use --to latest to restore all there is, up to {latest}")
            }
            Self::Gap { before, after, after_backup, .. } => {
                gap_hint(*before, *after, after_backup.as_deref())
            }
            Self::ClockSteppedBack { early, late, .. } => {
                format!("decide with --to-lsn {} or --to-lsn {}", early.lsn, late.lsn)
            }
            Self::HoldsLater { backup, up_to, .. } => {
                format!(
                    "--backup {backup} takes it with all of that, from {up_to} on nothing is doubtful, and --to-lsn decides by position"
                )
            }
            Self::TwoBranches { branches, .. } => {
                let choices: Vec<String> =
                    branches.iter().map(|b| format!("--timeline {}", b.timeline)).collect();
                format!("decide with {}", choices.join(" or "))
            }
            Self::XidNotFound { .. } => "another line of history can be searched with --timeline".to_owned(),
            Self::NameNotFound { known, .. } if known.is_empty() => {
                "there is none at all on this timeline".to_owned()
            }
            Self::NameNotFound { known, .. } => {
                let names: Vec<String> =
                    known.iter().map(|(name, time)| format!("{name:?} of {time}")).collect();
                format!("there are: {}", names.join(", "))
            }
            Self::Undecoded { .. } => "use a newer pitr, or --to latest".to_owned(),
            Self::Locked { .. } => OTHER_IDENTITY.to_owned(),
        }
    }
}

fn gap_hint(before: Option<Moment>, after: Option<Moment>, backup: Option<&str>) -> String {
    let earlier = before.map(|m| format!("the nearest earlier moment is {m}: --to-lsn {}", m.lsn));
    let later = after.map(|m| match backup {
        Some(id) => format!("the nearest later one is {m}, from backup {id}"),
        None => format!("the nearest later one is {m}"),
    });
    match (earlier, later) {
        (Some(earlier), Some(later)) => format!("{earlier}; {later}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "no moment around it can be reached".to_owned(),
    }
}

fn on(timeline: Option<TimelineId>) -> String {
    timeline.map_or_else(String::new, |t| format!(" on the route of timeline {t}"))
}

fn whom(backup: &Option<String>) -> String {
    backup.as_ref().map_or_else(|| "any backup".to_owned(), |id| format!("backup {id}"))
}

fn list(branches: &[Branch]) -> String {
    let one = |b: &Branch| match b.last_commit {
        Some(moment) => format!("timeline {} up to {moment}", b.timeline),
        None => format!("timeline {} up to the fork", b.timeline),
    };
    branches.iter().map(one).collect::<Vec<_>>().join(", ")
}
