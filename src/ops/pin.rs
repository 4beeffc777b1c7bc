//! `pin` and `unpin`: an operator keeps a backup from expiring for as long as he needs it.
//!
//! Any complete backup can be pinned, one with damaged pages too: it may be all there is of what they held. A pin keeps the backup and
//! the WAL that makes it consistent; with its WAL, everything from its start on, on every timeline, which
//! grows for as long as the pin stands. A backup is pinned in every repository that holds it: each has a retention of its own.
//! Source of truth: REPOSITORY.md 4, "Readers".

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::repo::path::{BackupId, PinId, PinKind};
use crate::repo::pins::Pinned;
use crate::repo::{Repository, System};
use crate::wal::{Lsn, SegmentName, SegmentNo};

/// A pin that was made or released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinDone {
    /// In which repository.
    pub repository: String,
    /// The pin.
    pub pin: PinId,
}

/// Pins a backup wherever it is.
///
/// # Errors
/// Kind `NotFound` if it is nowhere, or has expired; as the store says if no pin can be created.
pub async fn pin(
    repositories: &[Repository],
    id: &BackupId,
    reason: &str,
    with_wal: bool,
    now: Timestamp,
) -> Result<Vec<PinDone>> {
    let mut done = Vec::new();
    for repository in repositories {
        for system in systems(repository).await? {
            let Some(backup) = system.complete_backup(id).await? else { continue };
            let size = system.identity().segment_size;
            // A pin holds what comes at or after its segment: the last one there can be holds nothing but the backup itself.
            let last = SegmentName::new(backup.timeline, SegmentNo::containing(Lsn::MAX, size), size);
            let wal_from = if with_wal { backup.wal_floor } else { last };
            match system.pin(PinKind::Operator, id, wal_from, reason, now).await? {
                Pinned::Yes(pin) => done.push(PinDone { repository: repository.name().to_owned(), pin }),
                Pinned::NotAllowed(refused) => {
                    let what = format!("cannot pin in repository {}", repository.name());
                    return Err(Error::from(refused).context(what));
                }
            }
        }
    }
    if done.is_empty() {
        return Err(Error::not_found(format!("there is no backup {id} that could be pinned"))
            .hint("see `pitr info`; one that has expired cannot be kept any more"));
    }
    Ok(done)
}

/// Releases every operator's pin of a backup. Readers' pins run out by themselves.
///
/// # Errors
/// Kind `NotFound` if there is none.
pub async fn unpin(repositories: &[Repository], id: &BackupId) -> Result<Vec<PinDone>> {
    let mut done = Vec::new();
    for repository in repositories {
        for system in systems(repository).await? {
            for listed in system.pins().await? {
                let pin = listed.pin;
                if listed.released || pin.kind != PinKind::Operator || pin.backup != *id {
                    continue;
                }
                system.release(&pin.id).await?;
                done.push(PinDone { repository: repository.name().to_owned(), pin: pin.id });
            }
        }
    }
    if done.is_empty() {
        return Err(Error::not_found(format!("backup {id} is not pinned")).hint("see `pitr info`"));
    }
    Ok(done)
}

async fn systems(repository: &Repository) -> Result<Vec<System>> {
    let mut systems = Vec::new();
    for identity in repository.identities().await? {
        systems.push(repository.open(identity.system).await?);
    }
    Ok(systems)
}
