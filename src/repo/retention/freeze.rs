//! When retention stands still: old backups are worth most when new ones fail.
//!
//! ```text
//!  sound     sound     FAILED               nothing is given up until a later backup is sound
//!  sound     sound     damaged, corrupt     the same
//!  sound     sound     ......................... now    silence: twice the distance that the promises ask for
//! ```
//! Decided from what the repository knows: verdicts, what is missing of a backup, where and when each began. Its clocks are the writers'; a
//! wrong one can only freeze too early or too late, and what is deleted never depends on it. Pure.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::{HeldBackup, Holdings, Period, Policy, before, is_future};
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
    // One that is dated in the future was not: it would hide all that fails until then.
    let dated = sound.iter().filter(|b| !is_future(b.finished_at, now)).max_by_key(|b| b.finished_at);
    let newest = dated.or_else(|| sound.iter().min_by_key(|b| b.finished_at));
    let Some(newest) = newest else { return Some(Freeze::NoBackup) };
    // One that began while a sound one was still running says nothing new: it lost a race, or was followed by success. Positions on one
    // timeline tell that whatever the clocks say.
    let is_later = |damaged: &HeldBackup| {
        sound.iter().all(|b| match b.timeline == damaged.timeline {
            true => b.stop_lsn <= damaged.start_lsn,
            false => damaged.started_at > newest.finished_at,
        })
    };
    let damaged = holdings.backups.iter().filter(|b| is_later(b)).filter_map(|b| {
        let what = b.unsound.clone()?;
        Some(Failure { id: b.id.clone(), began: b.started_at, what })
    });
    // What failed by the clock of the future was followed by success if that was dated later still.
    let last = sound.iter().map(|b| b.finished_at).max();
    let failed = holdings.failures.iter().filter(|failure| match is_future(failure.began, now) {
        true => last.is_none_or(|last| failure.began > last),
        false => failure.began > newest.finished_at,
    });
    let failed = failed.cloned();
    if let Some(failure) = failed.chain(damaged).max_by_key(|failure| failure.began) {
        return Some(Freeze::Failing(failure));
    }
    let allowed = allowed_silence(policy);
    let silent = !holdings.superseded && newest.finished_at < before(now, allowed);
    silent.then_some(Freeze::Silent { newest: newest.finished_at, allowed })
}
