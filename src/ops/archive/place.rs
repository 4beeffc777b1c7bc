//! One repository to store in, and what has to be known of it before anything is put there.
//!
//! ```text
//!  identity ─ is it this cluster's? │ format ─ may this pitr write? │ floor ─ is it still wanted? │ histories ─ is it reachable?
//!      └── asked each time by a command; an agent remembers the answers for five minutes (REPOSITORY.md 2) ──┘
//! ```
//! Invariants: nothing is remembered of a repository that failed; a directory shows its identity for every file, and takes the file only
//! where it showed it, since the disk may be unmounted at any moment; a history is remembered only when it and those of its ancestors are
//! stored, which nothing undoes but retention of the whole timeline.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::push::{Offer, TWO_PROMOTED, directory_of};
use super::{conflict, evidence};
use crate::error::{Error, Result};
use crate::repo::objects::Floor;
use crate::repo::path::SystemObject;
use crate::repo::{RepoError, Repository, System};
use crate::wal::timeline::MAX_HISTORY_BYTES;
use crate::wal::{SystemId, TimelineHistory, TimelineId, WalFileName};

/// How long an agent goes by what it saw.
const REMEMBERED: Duration = Duration::from_secs(300);

/// A repository to store in.
#[derive(Debug, Clone)]
pub struct Place {
    repository: Repository,
    memory: Option<Arc<Mutex<Option<Remembered>>>>,
}

#[derive(Debug, Clone)]
struct Remembered {
    since: Instant,
    system: System,
    floor: Option<Floor>,
    /// Those that are stored with all of their ancestors'.
    histories: BTreeMap<TimelineId, TimelineHistory>,
}

/// A place that was looked at.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) system: System,
    /// Timelines whose history must be stored before the file.
    pub(super) missing: Vec<TimelineId>,
}

impl Place {
    /// All of `repositories`, nothing of which is remembered.
    pub(super) fn all(repositories: &[Repository]) -> Vec<Self> {
        repositories.iter().map(|r| Self { repository: r.clone(), memory: None }).collect()
    }

    /// A place for many files: what it says is gone by for some minutes.
    pub fn remembering(repository: Repository) -> Self {
        Self { repository, memory: Some(Arc::default()) }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Asks everything anew the next time.
    pub(super) fn forget(&self) {
        if let Some(memory) = &self.memory {
            *memory.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn remembered(&self, system: SystemId) -> Option<Remembered> {
        let memory = self.memory.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |r: &&Remembered| r.since.elapsed() < REMEMBERED && r.system.identity().system == system;
        memory.as_ref().filter(fresh).cloned()
    }

    fn remember(&self, remembered: Remembered) {
        if let Some(memory) = &self.memory {
            *memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(remembered);
        }
    }

    /// Looks at the repository while the file is read.
    pub(super) async fn prepare(&self, offer: &Offer<'_>) -> Result<Ready> {
        let pg_wal = directory_of(offer.path);
        if let Some(known) = self.remembered(offer.system) {
            if !is_still_there(&known.system).await? {
                return Err(foreign(&self.repository, offer.name, offer.system).await);
            }
            self.check(&known.system, offer)?;
            self.check_floor(known.floor.as_ref(), offer.name)?;
            return self.with_histories(known, offer.name, pg_wal).await;
        }
        // What was remembered holds on to the directory that it was read from.
        let repository = if self.memory.is_some() { self.repository.anew() } else { self.repository.clone() };
        let system = match repository.open(offer.system).await {
            Err(RepoError::NoIdentity { .. }) => {
                return Err(foreign(&self.repository, offer.name, offer.system).await);
            }
            opened => opened?,
        };
        self.check(&system, offer)?;
        let (writable, sealer, floor, histories) = tokio::join!(
            repository.check_writable(),
            system.sealer(),
            system.floor(),
            missing_histories(&system, offer.name, pg_wal)
        );
        writable?;
        sealer?;
        let floor = floor?;
        self.check_floor(floor.as_ref(), offer.name)?;
        let (missing, complete) = histories?;
        let histories = complete.into_iter().map(|h| (h.timeline(), h)).collect();
        self.remember(Remembered { since: Instant::now(), system: system.clone(), floor, histories });
        Ok(Ready { system, missing })
    }

    async fn with_histories(&self, mut known: Remembered, name: WalFileName, pg_wal: &Path) -> Result<Ready> {
        let system = known.system.clone();
        if let Some(stored) = known.histories.get(&name.timeline()).filter(|_| needs_history(name)) {
            refuse_other_history(&system, stored, pg_wal).await?;
            return Ok(Ready { system, missing: Vec::new() });
        }
        let (missing, complete) = missing_histories(&system, name, pg_wal).await?;
        if let Some(history) = complete {
            known.histories.insert(history.timeline(), history);
            self.remember(known);
        }
        Ok(Ready { system, missing })
    }

    fn check(&self, system: &System, offer: &Offer<'_>) -> Result<()> {
        let expected = system.identity().segment_size;
        let Some(size) = offer.segment_size.filter(|size| *size != expected) else { return Ok(()) };
        Err(Error::refused(format!(
            "{} has segments of {} bytes, but system {} was initialised in repository {} with {}",
            offer.name,
            size.bytes(),
            offer.system,
            self.repository.name(),
            expected.bytes(),
        ))
        .hint("pg_resetwal can change the segment size: take the cluster for a new one, under a new name"))
    }

    /// WAL that retention has given up would never be read, and never be deleted again.
    fn check_floor(&self, floor: Option<&Floor>, name: WalFileName) -> Result<()> {
        match name {
            WalFileName::Segment(segment) if floor.is_some_and(|floor| !floor.keeps(segment)) => {
                Err(RepoError::BelowFloor { repository: self.repository.name().to_owned(), name }.into())
            }
            _ => Ok(()),
        }
    }
}

/// Whether a directory still has the identity that was read there: without its disk it is an empty one.
async fn is_still_there(system: &System) -> Result<bool> {
    let store = system.repository().store();
    if !store.is_directory() {
        return Ok(true);
    }
    let identity = system.keys().key(&SystemObject::Identity);
    Ok(store.head(&identity).await.map_err(RepoError::from)?.is_some())
}

/// No folder of this system identifier: another cluster, or one that was never initialised.
async fn foreign(repository: &Repository, name: WalFileName, system: SystemId) -> Error {
    let others = match repository.systems().await {
        Ok(systems) => systems,
        Err(e) => return e.into(),
    };
    let (cluster, place) = (repository.cluster(), repository.name());
    if others.is_empty() {
        return Error::not_found(format!(
            "repository {place} holds no cluster {cluster}, so {name} cannot be stored"
        ))
        .hint("run `pitr init`; if it was run before, is the disk mounted, and is the URL right?");
    }
    let known: Vec<String> = others.iter().map(ToString::to_string).collect();
    Error::refused(format!("{name} was written by system {system}, but cluster {cluster} in repository {place} is system {}", known.join(", ")))
        .hint("another cluster's archive_command points here, or this one is new under an old name: then `pitr init --system-id`")
}

/// Whether a file is of no use without the history of its timeline.
fn needs_history(name: WalFileName) -> bool {
    matches!(name, WalFileName::Segment(_) | WalFileName::Partial(_)) && name.timeline() != TimelineId::FIRST
}

/// Timelines on the way to `name` whose history is not stored, the segment's own first; and the segment's history, if all are. Ancestors
/// of a history that is not stored either are found when it is read from `pg_wal`.
async fn missing_histories(
    system: &System,
    name: WalFileName,
    pg_wal: &Path,
) -> Result<(Vec<TimelineId>, Option<TimelineHistory>)> {
    if !needs_history(name) {
        return Ok((Vec::new(), None));
    }
    let Some(history) = system.history(name.timeline()).await? else {
        return Ok((vec![name.timeline()], None));
    };
    refuse_other_history(system, &history, pg_wal).await?;
    let missing = missing_ancestors(system, &history).await?;
    let complete = missing.is_empty().then_some(history);
    Ok((missing, complete))
}

/// The server's own history of a segment's timeline must be the stored one: of two servers that were promoted to one timeline only
/// one may archive here. PostgreSQL offers no history of the time when archiving was off (RECOVERY 8), so a segment may be the first
/// file that could show it. A history that the server removed proves nothing.
async fn refuse_other_history(system: &System, stored: &TimelineHistory, pg_wal: &Path) -> Result<()> {
    let Some(own) = other_history(stored, pg_wal)? else { return Ok(()) };
    let (name, repository) = (WalFileName::History(stored.timeline()), system.repository().name());
    let sides = evidence::of_both(system, &pg_wal.join(name.to_string()), None, name, None).await;
    let forks = own.and_then(|own| conflict::parted(stored, &own));
    let cause = forks.map_or_else(|| sides.clone(), |forks| format!("{forks}\n{sides}"));
    Err(Error::refused(format!(
        "{name} in {} is not the one that is archived in repository {repository}: this server left its parent elsewhere",
        pg_wal.display()
    ))
    .hint(TWO_PROMOTED)
    .source(cause))
}

/// The server's own history of the timeline, if it is not the stored one; `Some(None)` for one that cannot be understood.
fn other_history(stored: &TimelineHistory, pg_wal: &Path) -> Result<Option<Option<TimelineHistory>>> {
    let name = WalFileName::History(stored.timeline());
    let Some(own) = own_history(name, pg_wal)? else { return Ok(None) };
    let own = TimelineHistory::parse(stored.timeline(), &own).ok();
    Ok(if own.as_ref() == Some(stored) { None } else { Some(own) })
}

/// The server's own file of that name, if it has one.
pub(super) fn own_history(name: WalFileName, pg_wal: &Path) -> Result<Option<Vec<u8>>> {
    let Ok(file) = std::fs::File::open(pg_wal.join(name.to_string())) else { return Ok(None) };
    let mut own = Vec::new();
    let limit = u64::try_from(MAX_HISTORY_BYTES).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut own).map_err(|e| {
        Error::failed(format!("cannot read {name} in {}", pg_wal.display()))
            .source(e)
            .hint("run the command as the owner of the data directory")
    })?;
    Ok(Some(own))
}

pub(super) async fn missing_ancestors(system: &System, history: &TimelineHistory) -> Result<Vec<TimelineId>> {
    let mut missing = Vec::new();
    for parent in history.parents().iter().filter(|p| p.timeline != TimelineId::FIRST) {
        if system.history(parent.timeline).await?.is_none() {
            missing.push(parent.timeline);
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::write_replace;

    #[test]
    fn a_server_whose_own_history_is_another_one_does_not_archive_on_that_timeline() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("00000002.history");
        let put = |text: &str| write_replace(&own, text.as_bytes(), 0o600, None).unwrap();
        let timeline = TimelineId::new(2).unwrap();
        let stored = TimelineHistory::parse(timeline, b"1\t0/3000100\tx\n").unwrap();
        let check = || other_history(&stored, dir.path()).unwrap();
        assert_eq!(check(), None);
        put("1\t0/3000100\tx\n");
        assert_eq!(check(), None);
        put("1\t0/4000100\tx\n");
        let own = check().flatten().unwrap();
        assert_eq!(
            conflict::parted(&stored, &own).unwrap(),
            "the stored one leaves timeline 1 at 0/3000100, the offered one timeline 1 at 0/4000100"
        );
        put("torn");
        assert_eq!(check(), Some(None));
    }
}
