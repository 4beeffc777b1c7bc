//! `info`: what a repository holds of a cluster, and which moments can be restored from it.
//!
//! Listings, verdicts and the headers at the ends of WAL runs; no segment is opened. What is shown as restorable is: a complete
//! verdict without damaged pages, every pack it names in the listing, and every segment from its start to its stop. Rules: REPOSITORY 4 (verdict, intent,
//! tombstone), INTERFACE (JSON).

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::{Clock as _, SystemClock};
use crate::error::{Error, Result};
use crate::ops::facts::Archive;
use crate::ops::plan::{self, PlanBackup, Window};
use crate::repo::Repository;
use crate::repo::catalog::{BackupState, Run, runs};
use crate::repo::objects::{Backup, Identity, Verdict};
use crate::repo::path::BackupId;
use crate::seal::Epoch;
use crate::wal::{PgTime, SegmentName, SystemId, TimelineId};

/// One backup as shown.
#[derive(Debug, Clone)]
pub struct ShownBackup {
    /// Its identifier.
    pub id: String,
    /// Its verdict, if it ever had one that says "complete".
    pub verdict: Option<Box<Backup>>,
    /// Everything it needs is there, and no page of it is damaged.
    pub restorable: bool,
    /// Why not, or what it is.
    pub state: String,
    /// Somebody keeps it from expiring.
    pub pinned: bool,
}

/// WAL of one timeline.
#[derive(Debug, Clone)]
pub struct ShownWal {
    /// The timeline.
    pub timeline: TimelineId,
    /// Segments without a hole between them, in order.
    pub runs: Vec<Run>,
    /// Bytes in the store.
    pub stored: u64,
}

/// What one repository holds.
#[derive(Debug)]
pub struct RepositoryInfo {
    /// The repository's name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The identity shown.
    pub identity: Identity,
    /// It is encrypted and no key is at hand: commit times and restore points are not known.
    pub locked: bool,
    /// An identity is at hand that does not open what these epochs sealed: the first segment of each that was met.
    pub unopened: BTreeMap<Epoch, SegmentName>,
    /// It is encrypted, and nothing but the repository itself vouches for its seal key.
    pub unverified: bool,
    /// Older or other identities under the same name.
    pub others: Vec<Identity>,
    /// Backups, oldest first.
    pub backups: Vec<ShownBackup>,
    /// WAL per timeline.
    pub wal: Vec<ShownWal>,
    /// What can be restored, per timeline.
    pub windows: Vec<Window>,
}

impl RepositoryInfo {
    /// The span of the newest timeline that can be restored: the earliest and the newest moment.
    pub fn window(&self) -> Option<(Option<PgTime>, Option<PgTime>)> {
        let window = self.windows.iter().max_by_key(|w| w.timeline)?;
        let (first, last) = (window.spans.first()?, window.spans.last()?);
        Some((first.earliest.time, last.latest.time))
    }
}

/// Reads one repository: what it holds of `system`, or of the newest one under the cluster's name.
///
/// # Errors
/// Kind `NotFound` if it holds nothing of it; else what could not be read.
pub async fn read(repository: &Repository, system: Option<SystemId>) -> Result<RepositoryInfo> {
    let mut identities = repository.identities().await?;
    let newest = identities.len().checked_sub(1).ok_or_else(|| no_cluster(repository))?;
    let place = system.map_or(Some(newest), |id| identities.iter().position(|known| known.system == id));
    let identity = place.map(|at| identities.remove(at)).ok_or_else(|| {
        let known: Vec<String> = identities.iter().map(|known| known.system.to_string()).collect();
        Error::not_found(format!("repository {} holds nothing of that system", repository.name()))
            .hint(format!("it holds {}", known.join(", ")))
    })?;
    let system = repository.open(identity.system).await?;
    let mut archive = Archive::read(&system).await?;
    let windows = archive.resolve(plan::window).await?;
    let planned: BTreeMap<&str, &PlanBackup> =
        archive.world.backups.iter().map(|b| (b.id.as_str(), b)).collect();
    let pins = system.pins().await?;
    // Readers' pins by this host's clock: it only shows what expiry decides by the store's.
    let counting = pins.iter().filter(|listed| listed.counts(SystemClock.now()));
    let pinned: BTreeSet<&BackupId> = counting.map(|listed| &listed.pin.backup).collect();
    let backups = archive
        .catalog
        .backups
        .iter()
        .filter(|info| info.state != BackupState::Garbage)
        .map(|info| {
            let planned = planned.get(info.id.as_str()).copied();
            let verdict = match &info.verdict {
                Some(Verdict::Complete(backup)) => Some(backup.clone()),
                _ => None,
            };
            let state = state(&info.state, planned, verdict.as_deref());
            ShownBackup {
                id: info.id.to_string(),
                verdict,
                restorable: planned.is_some_and(PlanBackup::is_offered),
                state,
                pinned: pinned.contains(&info.id),
            }
        })
        .collect();
    Ok(RepositoryInfo {
        name: repository.name().to_owned(),
        url: repository.store().url().to_string(),
        wal: wal(&archive),
        locked: !system.can_open(),
        unopened: if system.can_open() { archive.facts.unopened() } else { BTreeMap::new() },
        unverified: system.is_unverified(),
        identity,
        others: identities,
        backups,
        windows,
    })
}

/// The error for a repository that knows nothing of the cluster.
pub fn no_cluster(repository: &Repository) -> Error {
    Error::not_found(format!("repository {} holds no cluster {}", repository.name(), repository.cluster()))
        .hint("`pitr init` creates it; is the cluster's name right, and is the disk mounted?")
}

fn state(state: &BackupState, planned: Option<&PlanBackup>, verdict: Option<&Backup>) -> String {
    let (restorable, corrupt) = planned.map_or((false, false), |b| (b.restorable, b.corrupt));
    match state {
        BackupState::Complete if !restorable => {
            "not restorable: WAL between its start and its stop is missing or damaged".to_owned()
        }
        BackupState::Complete if corrupt => {
            let first = verdict.and_then(|verdict| verdict.damage.first());
            let first = first.map(|line| format!(" ({line})")).unwrap_or_default();
            format!("corrupt: it holds damaged pages{first}; only `restore --backup` takes it")
        }
        BackupState::Complete => "restorable".to_owned(),
        BackupState::Damaged(what) => format!("not restorable: {what}"),
        BackupState::Unfinished => "running, or its writer died".to_owned(),
        BackupState::Abandoned => "abandoned".to_owned(),
        BackupState::Expired => "expired: to be deleted".to_owned(),
        BackupState::Garbage => "left over".to_owned(),
        BackupState::Unreadable(what) => format!("unreadable: {what}"),
    }
}

fn wal(archive: &Archive) -> Vec<ShownWal> {
    let size = archive.world.segment_size;
    let shown = |(timeline, numbers): (&TimelineId, &BTreeSet<crate::wal::SegmentNo>)| {
        let names: Vec<SegmentName> = numbers.iter().map(|n| SegmentName::new(*timeline, *n, size)).collect();
        let stored = names.iter().filter_map(|n| archive.stored_bytes.get(n)).sum();
        ShownWal { timeline: *timeline, runs: runs(names, size), stored }
    };
    archive.world.stored.iter().map(shown).collect()
}
