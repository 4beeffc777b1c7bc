//! When retention stands still: old backups are worth most when new ones fail.
//!
//! ```text
//!  sound     sound     FAILED               nothing is given up until a later backup is sound
//!  sound     sound     damaged, corrupt     the same
//!  sound     sound     ......................... now    silence: twice the distance that the promises ask for
//! ```
//! Decided from what the repository knows: verdicts, what is missing of a backup, and when each began. Its clocks are the writers'; a
//! wrong one can only freeze too early or too late, and what is deleted never depends on it. Pure.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::{HeldBackup, Holdings, Period, Policy, before};
use crate::repo::path::BackupId;

/// An attempt that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The backup.
    pub id: BackupId,
    /// When it began.
    pub began: Timestamp,
    /// What happened, for people.
    pub what: String,
}

/// Why nothing is given up now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freeze {
    /// There is no sound backup.
    NoBackup,
    /// The newest attempts failed or are damaged.
    Failing(Failure),
    /// No new backup for too long.
    Silent {
        /// When the newest sound one was finished.
        newest: Timestamp,
        /// How long the next may take.
        allowed: Duration,
    },
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBackup => f.write_str("there is no sound backup yet"),
            Self::Failing(failure) => {
                write!(f, "no sound backup since backup {} failed: {}", failure.id, failure.what)
            }
            Self::Silent { newest, allowed } => write!(
                f,
                "the newest sound backup was finished at {newest}, more than {} days ago",
                allowed.as_secs() / 86_400
            ),
        }
    }
}

/// Shortest silence that means something: a daily backup that failed once.
const LEAST_SILENCE: Duration = Duration::from_secs(2 * 86_400);

/// How long no backup may be finished: twice the shortest period that is kept, or the window where only that is promised.
fn allowed_silence(policy: &Policy) -> Duration {
    let kept = Period::ALL.into_iter().find(|period| !policy.span(*period).is_zero());
    kept.map_or(policy.window, |period| period.length() * 2).max(LEAST_SILENCE)
}

/// Whether to stand still, and why. `sound` is sorted by time.
pub(super) fn freeze(
    policy: &Policy,
    holdings: &Holdings,
    sound: &[&HeldBackup],
    now: Timestamp,
) -> Option<Freeze> {
    let Some(newest) = sound.iter().max_by_key(|b| b.finished_at) else { return Some(Freeze::NoBackup) };
    let damaged = holdings.backups.iter().filter_map(|b| {
        let what = b.unsound.clone()?;
        Some(Failure { id: b.id.clone(), began: b.started_at, what })
    });
    // One that began while the newest sound one was still running says nothing new: it lost a race, or was followed by success.
    let later =
        holdings.failures.iter().cloned().chain(damaged).filter(|failure| failure.began > newest.finished_at);
    if let Some(failure) = later.max_by_key(|failure| failure.began) {
        return Some(Freeze::Failing(failure));
    }
    let allowed = allowed_silence(policy);
    let silent = !holdings.superseded && newest.finished_at < before(now, allowed);
    silent.then_some(Freeze::Silent { newest: newest.finished_at, allowed })
}
