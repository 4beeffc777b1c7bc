//! `expire --backup`: one chosen backup, by the same protocol: a tombstone now, deletion by a later run.
//!
//! Refused where it would take the last sound backup, or moments that the window promises. Two such commands at once can mark the last
//! two backups; then neither is deleted, because a run that finds no sound backup beside the marked ones deletes none of them.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::look::{Look, Stored};
use super::store_time;
use crate::error::{Error, Result};
use crate::repo::catalog::BackupState;
use crate::repo::path::BackupId;
use crate::repo::retention::{Policy, Removal, removal};
use crate::repo::{Repository, System};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct OneRequest {
    /// The backup.
    pub id: BackupId,
    /// What the repository promises.
    pub policy: Option<Policy>,
    /// Go on although moments of the window will be lost.
    pub below_promise: bool,
    /// Only say whether it may go.
    pub dry_run: bool,
    /// The time of this host.
    pub now: Timestamp,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum One {
    /// It is marked, or in a dry run could be.
    Marked {
        /// Moments of the window are lost with it.
        breaks_window: bool,
    },
    /// It was marked before.
    Before,
}

/// Marks one backup.
///
/// # Errors
/// Kind `NotFound` for a backup that is not there, `Refused` where it must stay.
pub async fn one(repository: &Repository, request: &OneRequest) -> Result<One> {
    repository.check_writable().await?;
    let (id, name) = (&request.id, repository.name());
    let store_now = store_time(repository, request.now, request.dry_run).await?;
    for identity in repository.identities().await? {
        let system = repository.open(identity.system).await?;
        let look = Look::read(&system, store_now, SignedDuration::ZERO).await?;
        let Some(info) = look.catalog.get(id) else { continue };
        return match &info.state {
            BackupState::Complete | BackupState::Damaged(_) | BackupState::Unreadable(_) => {
                mark(&system, &look, request, store_now).await
            }
            BackupState::Expired | BackupState::Abandoned => Ok(One::Before),
            BackupState::Unfinished => Err(Error::refused(format!("backup {id} is not finished"))
                .hint("it is running; if its writer died, expire marks it after a day")),
            BackupState::Garbage => Err(not_found(id, name)),
        };
    }
    Err(not_found(id, name))
}

fn not_found(id: &BackupId, repository: &str) -> Error {
    Error::not_found(format!("repository {repository} has no backup {id}")).hint("see `pitr info`")
}

async fn mark(system: &System, look: &Look, request: &OneRequest, store_now: Timestamp) -> Result<One> {
    let mut stored = Stored::read(system).await?;
    stored.set_aside(look.timelines());
    // As for a whole run: neither clock alone makes a moment of the window old.
    let now = request.now.min(store_now);
    let holdings = look.holdings(system, &stored, &BTreeSet::new(), store_now, false);
    let id = &request.id;
    let found = removal(request.policy.as_ref(), &holdings, id, now);
    let breaks_window = match found {
        Removal::Harmless => false,
        Removal::BreaksWindow if request.below_promise => true,
        Removal::BreaksWindow => {
            return Err(Error::refused(format!(
                "without backup {id} not every moment of the promised window could be restored"
            ))
            .hint("wait until the window has moved on, or say --below-promise"));
        }
        Removal::Last => {
            return Err(Error::refused(format!("without backup {id} no sound backup would be left"))
                .hint("take another one first: `pitr backup`"));
        }
        Removal::Pinned => {
            return Err(Error::refused(format!("backup {id} is pinned"))
                .hint(format!("see `pitr info`; `pitr unpin {id}` releases it")));
        }
    };
    if !request.dry_run {
        system.expire(id, "chosen by an operator", now).await.map_err(super::denied)?;
    }
    Ok(One::Marked { breaks_window })
}
