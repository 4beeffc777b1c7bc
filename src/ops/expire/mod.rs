//! `expire`: retention by intent, and the only command that deletes.
//!
//! ```text
//!  look      listings, verdicts, pins, floor                    D1: what is dead is fixed here, from what earlier runs marked
//!  plan      repo::retention                                    --dry-run ends after saying what the rest would do
//!  mark      E1: expired.json, and {abandoned} for the silent
//!  floor     floor/<n>.json: which WAL is still kept            nothing below it is taken or promised from here on
//!  look      D2: the same again                                 whoever announced a need before the marks is seen now
//!  delete    D3: dead backups that nobody refers to, WAL that nobody needs, leftovers
//! ```
//! A backup is marked in one run and deleted in a later one, when the grace is over; WAL likewise, once a floor that let it go has stood
//! that long. Safety rests on this order, never on clocks: a
//! writer looks for tombstone and floor *after* its intent, a reader *after* its pin, and this command looks for intents and pins
//! *after* the tombstones it acts on and after its floor. It may be killed anywhere, repeated, and run several times at once.
//! Source of truth: REPOSITORY.md 4 and 7.

mod delete;
mod look;
mod one;
mod others;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

pub use delete::Deleted;
pub use one::{One, OneRequest, one};

use crate::error::{Error, Result};
use crate::ops::Progress;
use crate::repo::objects::{Floor, Identity, TimelineFloor};
use crate::repo::path::{BackupId, BackupObject};
use crate::repo::retention::{DEFAULT_GRACE, Freeze, Plan, Policy, Spans, StoredWal, above, plan, without};
use crate::repo::{RepoError, Repository, System};
use crate::store::StoreErrorKind;
use delete::Remover;
use look::{Look, Mark, Stored};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct ExpireRequest {
    /// What the repository keeps; `None`: nothing is given up, only what was marked before is deleted.
    pub policy: Option<Policy>,
    /// Whose days, weeks, months and years.
    pub zone: TimeZone,
    /// The time of this host.
    pub now: Timestamp,
    /// Say it, and do nothing.
    pub dry_run: bool,
}

/// A backup that is marked and waits for the grace to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The backup.
    pub id: BackupId,
    /// From when on a run deletes it, by the store's clock.
    pub until: Timestamp,
}

/// WAL that is given up and stays for the grace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalWaiting {
    /// Segments.
    pub segments: u64,
    /// From when on a run deletes the last of them, by the store's clock.
    pub until: Timestamp,
}

/// What became of one system folder.
#[derive(Debug)]
pub struct SystemReport {
    /// Whose folder.
    pub identity: Identity,
    /// The cluster has gone on under another system identifier.
    pub superseded: bool,
    /// What was decided; `None` without a policy.
    pub plan: Option<Plan>,
    /// Backups that were marked because their writers are gone.
    pub abandoned: Vec<BackupId>,
    /// Backups that earlier runs marked and that stay for now.
    pub waiting: Vec<Waiting>,
    /// WAL that this run or earlier ones let go of and that stays for now.
    pub wal_waiting: Option<WalWaiting>,
    /// What was deleted.
    pub deleted: Deleted,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Expires what a repository no longer promises, in every system folder of the cluster. `others` are the other configured
/// repositories.
///
/// Dropped or killed anywhere, it leaves a readable repository; repeating it goes on.
///
/// # Errors
/// Kind `NotFound` if the repository holds nothing of the cluster, `Key` if a delete is refused, `Corrupt` if something that might
/// speak for a backup cannot be read; otherwise as the store answers.
pub async fn expire(
    repository: &Repository,
    others: &[Repository],
    request: &ExpireRequest,
    progress: &dyn Progress,
) -> Result<Vec<SystemReport>> {
    repository.check_writable().await?;
    let mut identities = repository.identities().await?;
    // The current one first: it tells whether the others have been followed by a backup.
    identities.reverse();
    if identities.is_empty() {
        return Err(super::info::no_cluster(repository));
    }
    let store_now = store_time(repository, request.now, request.dry_run).await?;
    let mut reports: Vec<SystemReport> = Vec::new();
    for identity in identities {
        let system = repository.open(identity.system).await?;
        let superseded = reports.iter().any(|r| r.plan.as_ref().is_some_and(Plan::keeps_a_sound_one));
        let run = Run { system: &system, others, request, store_now, superseded };
        reports.push(run.run(progress).await?);
    }
    Ok(reports)
}

/// The store's time. A dry run may have credentials that cannot create: then this host's time serves, as nothing depends on it.
async fn store_time(repository: &Repository, now: Timestamp, dry_run: bool) -> Result<Timestamp> {
    match repository.store_time().await {
        Err(RepoError::Store(e))
            if dry_run && matches!(e.kind, StoreErrorKind::Credentials | StoreErrorKind::Denied) =>
        {
            Ok(now)
        }
        other => other.map_err(denied),
    }
}

/// Who may not create what gives something up is told who may.
fn denied(error: RepoError) -> Error {
    let refused = matches!(&error, RepoError::Store(e) if e.is_forbidden());
    let error = Error::from(error);
    match refused {
        true => error.hint(
            "run expire with credentials that may give something up, the expirer of docs/roles.md; nothing was deleted without them",
        ),
        false => error,
    }
}

struct Run<'a> {
    system: &'a System,
    others: &'a [Repository],
    request: &'a ExpireRequest,
    store_now: Timestamp,
    superseded: bool,
}

impl Run<'_> {
    async fn run(&self, progress: &dyn Progress) -> Result<SystemReport> {
        progress.begin("listing WAL and backups", None);
        let mut stored = Stored::read(self.system).await?;
        let look = Look::read(self.system, self.store_now, self.grace()).await?;
        stored.set_aside(look.timelines());
        let marks: Vec<Mark> = look.marks().collect();
        let dead = self.dead(&marks);
        look.check_readable(&dead)?;
        let holdings = look.holdings(self.system, &stored, &dead, self.store_now, self.superseded);
        // A clock of this host that runs ahead must not make backups old.
        let now = self.request.now.min(self.store_now);
        let plan =
            self.request.policy.as_ref().map(|policy| plan(policy, &holdings, now, &self.request.zone));
        let mut report = SystemReport {
            identity: self.system.identity().clone(),
            superseded: self.superseded,
            plan,
            abandoned: Vec::new(),
            waiting: self.waiting(&marks, &dead),
            wal_waiting: None,
            deleted: Deleted::default(),
            notes: stored.notes.clone(),
        };
        self.mark(&look, &mut report).await?;
        let floor = self.floor(&stored, &look, &mut report).await?;
        report.wal_waiting = self.wal_waiting(&look, floor.as_ref(), report.plan.as_ref());
        self.sweep(&stored, &marks, &dead, floor.as_ref(), &mut report).await?;
        progress.end();
        Ok(report)
    }

    fn grace(&self) -> SignedDuration {
        let grace = self.request.policy.as_ref().map_or(DEFAULT_GRACE, |policy| policy.grace);
        SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX)
    }

    /// D1: what was marked long enough ago, seen before anything is marked in this run.
    fn dead(&self, marks: &[Mark]) -> BTreeSet<BackupId> {
        let old = marks.iter().filter(|mark| self.store_now.duration_since(mark.at) >= self.grace());
        old.map(|mark| mark.id.clone()).collect()
    }

    fn waiting(&self, marks: &[Mark], dead: &BTreeSet<BackupId>) -> Vec<Waiting> {
        let young = marks.iter().filter(|mark| !dead.contains(&mark.id));
        young
            .map(|mark| Waiting {
                id: mark.id.clone(),
                until: mark.at.checked_add(self.grace()).unwrap_or(Timestamp::MAX),
            })
            .collect()
    }

    /// The last of it goes when the newest floor has stood for the grace.
    fn wal_waiting(&self, look: &Look, floor: Option<&Floor>, plan: Option<&Plan>) -> Option<WalWaiting> {
        let segments: u64 = plan?.waiting.values().map(Spans::count).sum();
        let since = look.floor_since.filter(|_| floor == look.floor.as_ref()).unwrap_or(self.store_now);
        let until = since.checked_add(self.grace()).unwrap_or(Timestamp::MAX);
        (segments > 0).then_some(WalWaiting { segments, until })
    }

    /// E1: tombstones for what goes, and the verdict for what never came to one.
    async fn mark(&self, look: &Look, report: &mut SystemReport) -> Result<()> {
        let now = self.request.now;
        for info in look.silent(self.store_now) {
            report.abandoned.push(info.id.clone());
            if self.request.dry_run {
                continue;
            }
            // A verdict without its intent is nobody's backup, and its key is taken.
            if info.files.has(BackupObject::Verdict) {
                self.system.expire(&info.id, "its intent is missing", now).await.map_err(denied)?;
            } else {
                self.system.abandon(&info.id, "no new object for 24 hours", now).await.map_err(denied)?;
            }
        }
        for going in report.plan.iter().flat_map(|plan| &plan.go).filter(|_| !self.request.dry_run) {
            self.system.expire(&going.id, &going.why, now).await.map_err(denied)?;
        }
        Ok(())
    }

    /// Creates the floor that follows from the plan; the one that counts afterwards, or would.
    async fn floor(&self, stored: &Stored, look: &Look, report: &mut SystemReport) -> Result<Option<Floor>> {
        let Some(plan) = &mut report.plan else { return Ok(look.floor.clone()) };
        let wal = stored.all();
        let Some(lines) = plan.floor(look.floor.as_ref(), &wal) else { return Ok(look.floor.clone()) };
        let giving_up = self.giving_up(&wal, look, &lines);
        let owed = others::owed(self.system, self.others, &giving_up, &stored.copies).await;
        owed.wal.iter().for_each(|(timeline, spans)| plan.holds.spans(*timeline, spans));
        report.notes.extend(owed.notes);
        let lines = |before: Option<&Floor>| plan.floor(before, &wal);
        if !self.request.dry_run {
            return self.system.raise_floor(lines, self.request.now).await.map_err(denied);
        }
        let planned =
            |timelines| Ok(Floor { nonce: crate::repo::nonce()?, created: self.request.now, timelines });
        match lines(look.floor.as_ref()) {
            Some(timelines) => planned(timelines).map(Some),
            None => Ok(look.floor.clone()),
        }
    }

    /// What is stored and kept now, and would not be.
    fn giving_up(&self, wal: &StoredWal, look: &Look, lines: &[TimelineFloor]) -> StoredWal {
        let size = self.system.identity().segment_size;
        let old = look.floor.as_ref().map_or(&[][..], |floor| &floor.timelines);
        let (now, then) = (above(old, wal, size), above(lines, wal, size));
        without(now, &then)
    }

    /// D2 and D3.
    async fn sweep(
        &self,
        stored: &Stored,
        marks: &[Mark],
        dead: &BTreeSet<BackupId>,
        floor: Option<&Floor>,
        report: &mut SystemReport,
    ) -> Result<()> {
        let again = Look::read(self.system, self.store_now, self.grace()).await?;
        again.check_readable(dead)?;
        let holdings = again.holdings(self.system, stored, dead, self.store_now, self.superseded);
        let freeze = report.plan.as_ref().and_then(|plan| plan.frozen.as_ref());
        let frozen = freeze.is_some();
        // While nothing sound is left beside it, or backups fail, what was complete once is not touched, whoever marked it; nor then what
        // is said to be abandoned and may be complete: its verdict is all that tells, and may have been replaced. Only
        // that a server with damaged pages may not fill the store: its copies go while there is a sound backup.
        let alone = holdings.backups.iter().all(|b| b.unsound.is_some());
        let careful = frozen || alone;
        let spares =
            |mark: &Mark| mark.complete && (alone || frozen && !mark.corrupt) || mark.nearly && alone;
        let spared = |id: &BackupId| marks.iter().any(|mark| mark.id == *id && spares(mark));
        let goes: BTreeSet<BackupId> =
            dead.iter().filter(|id| !again.is_pinned(id) && !spared(id)).cloned().collect();
        // What says that backups fail goes when they no longer do.
        let evidence = match freeze {
            Some(Freeze::Failing(failure)) => goes.get(&failure.id).cloned(),
            Some(Freeze::NoBackup | Freeze::Silent { .. }) | None => None,
        };
        let stay = dead.difference(&goes).chain(&evidence);
        report.waiting.extend(stay.map(|id| Waiting { id: id.clone(), until: Timestamp::MAX }));
        let mut remover = Remover::new(self.system, self.request.dry_run);
        remover.backups(&goes, evidence.as_ref(), &again).await?;
        if let Some(floor) = floor.filter(|_| !careful) {
            remover.wal(stored.timelines(), floor, &holdings.holds_with_backups()).await?;
        }
        remover.leftovers(self.store_now, self.grace()).await?;
        report.deleted = remover.done;
        Ok(())
    }
}
