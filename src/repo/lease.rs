//! The lease: one backup at a time, by courtesy. No safety depends on it; two backups at once are merely waste.
//!
//! ```text
//!  leases/<n>.json, the highest n:   its backup has a verdict ────────────────► free
//!                                    objects younger than 15 minutes ─────────► held
//!                                    older, or its process is gone from here ─► stale: intent, abandon it, lease n + 1
//! ```
//! Ages are differences of two times of the same store. Who loses a race for n + 1 abandons its own intent.
//! Source of truth: FORMAT.md, "Backups".

use jiff::{SignedDuration, Timestamp};

use super::document::Put;
use super::objects::{Intent, Lease, Process};
use super::path::{BackupId, SystemObject};
use super::{RepoError, System, this_process};
use crate::store::ObjectInfo;
use crate::wal::WalFileName;

/// A running backup shows life more often than this: a pack, or a sign of life every five minutes.
pub const STALE_AFTER: SignedDuration = SignedDuration::from_mins(15);

/// Who holds the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseState {
    /// Nobody.
    Free {
        /// The number of the next lease.
        next: u32,
    },
    /// A backup that shows life.
    Held(Lease),
    /// A backup whose writer is gone.
    Stale {
        /// Its lease.
        lease: Lease,
        /// The number of the next lease.
        next: u32,
    },
}

impl System {
    /// Who holds the lease now.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn lease_state(&self) -> Result<LeaseState, RepoError> {
        let leases = self.store().list(&self.keys.lease_dir()).await?;
        let newest = leases.iter().filter_map(|o| Some((self.lease_number(o)?, o))).max_by_key(|(n, _)| *n);
        let Some((n, object)) = newest else { return Ok(LeaseState::Free { next: 1 }) };
        let next = self.after(n, &object.key)?;
        let lease = self.get_document::<Lease>(&object.key).await?;
        let lease = lease.ok_or_else(|| self.repository.missing(&object.key))?;
        let verdict = self.has_verdict(&lease.backup).await;
        if matches!(verdict, Ok(true)) {
            return Ok(LeaseState::Free { next });
        }
        let objects = self.store().list(&self.keys.backup_dir(&lease.backup)).await?;
        // Its intent came before the lease: an empty folder was expired since, verdict and all.
        if objects.is_empty() {
            return Ok(LeaseState::Free { next });
        }
        // Under a delete marker while others are left: not expiry's.
        verdict?;
        if is_gone(&lease.process, &this_process()) {
            return Ok(LeaseState::Stale { lease, next });
        }
        let newest = objects.iter().map(|o| o.modified).chain([object.modified]).max();
        let age = self.repository.store_time().await?.duration_since(newest.unwrap_or(object.modified));
        Ok(if age >= STALE_AFTER { LeaseState::Stale { lease, next } } else { LeaseState::Held(lease) })
    }

    fn lease_number(&self, object: &ObjectInfo) -> Option<u32> {
        match self.keys.parse(&object.key)? {
            SystemObject::Lease(n) => Some(n),
            _ => None,
        }
    }

    /// Begins a backup: creates its intent, abandons the stale backup it takes over from, and takes the lease. `state` is what
    /// [`Self::lease_state`] said before the intent was made; the intent of a take-over names the stale backup's packs.
    ///
    /// A crash leaves an intent, which expiry abandons after a day.
    ///
    /// # Errors
    /// [`RepoError::Busy`] if another backup holds the lease or was faster; the own intent is then abandoned.
    pub async fn begin_backup(
        &self,
        intent: &Intent,
        state: &LeaseState,
        now: Timestamp,
    ) -> Result<(), RepoError> {
        let next = match state {
            LeaseState::Held(lease) => return Err(busy(lease.backup.clone(), &lease.process)),
            LeaseState::Free { next } => {
                self.create_intent(intent).await?;
                *next
            }
            LeaseState::Stale { lease, next } => {
                self.create_intent(intent).await?;
                // If it turns out to be complete after all, it holds no lease either.
                self.abandon(&lease.backup, &format!("backup {} took over", intent.id), now).await?;
                *next
            }
        };
        self.check_floor_holds(intent, now).await?;
        let lease = Lease {
            backup: intent.id.clone(),
            nonce: intent.nonce,
            created: now,
            process: intent.process.clone(),
        };
        match self.put_document(&self.keys.key(&SystemObject::Lease(next)), &lease).await? {
            Put::Ours => Ok(()),
            Put::Theirs(theirs) => {
                let reason = format!("backup {} took the lease first", theirs.backup);
                self.abandon(&intent.id, &reason, now).await?;
                Err(busy(theirs.backup, &theirs.process))
            }
        }
    }
}

impl System {
    /// W3 of the WAL: whether the floor, looked at after the intent was created, still keeps what the backup may need. Expiry looks for
    /// intents after it created a floor and before it deletes WAL, so one of the two sees the other.
    ///
    /// # Errors
    /// [`RepoError::BelowFloor`] after abandoning the intent.
    async fn check_floor_holds(&self, intent: &Intent, now: Timestamp) -> Result<(), RepoError> {
        if self.floor().await?.is_none_or(|floor| floor.keeps_from(intent.wal_floor)) {
            return Ok(());
        }
        self.abandon(&intent.id, "the WAL it may need has expired", now).await?;
        let name = WalFileName::Segment(intent.wal_floor);
        Err(RepoError::BelowFloor { repository: self.repository.name().to_owned(), name })
    }
}

fn busy(id: BackupId, process: &Process) -> RepoError {
    RepoError::Busy { id, host: process.host.clone(), pid: process.pid }
}

/// Whether `process` is known to have ended: only said of one that ran here, since this host was started.
fn is_gone(process: &Process, here: &Process) -> bool {
    let same_host = process.host == here.host && process.boot == here.boot && !here.boot.is_empty();
    // Where /proc hides processes that are not dumpable, signals do not.
    let pid = i32::try_from(process.pid).ok().filter(|pid| *pid > 0).map(nix::unistd::Pid::from_raw);
    same_host && pid.is_none_or(|pid| nix::sys::signal::kill(pid, None) == Err(nix::errno::Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_gone_only_once_it_has() {
        let here = this_process();
        assert!(!is_gone(&here, &here));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let other = Process { pid: child.id(), ..here.clone() };
        assert!(!is_gone(&other, &here));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_gone(&other, &here));
        assert!(!is_gone(&Process { boot: "another".to_owned(), ..other.clone() }, &here));
        assert!(is_gone(&Process { pid: u32::MAX, ..other }, &here), "no process has that number");
    }
}
