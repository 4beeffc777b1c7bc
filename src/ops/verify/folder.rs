//! The folder of one system identifier: all looks at it, in order, and what they share.
//!
//! ```text
//!  identity ─► catalog, documents ─► floor, histories ─► backups ─► WAL ─► effect
//! ```
//! What is damaged does not end the look: the rest is looked at without it. Without an identity the folder is no cluster's, so all
//! that can be said is what that costs.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::budget::Budget;
use super::finding::{Affected, Fault, Subject, needed_by};
use super::survey::Listed;
use super::{Folder, Leftover, Request, Unopened, backups, documents, effect, twice, wal};
use crate::error::{Error, Result};
use crate::ops::Progress;
use crate::repo::catalog::{BackupState, Catalog};
use crate::repo::objects::Floor;
use crate::repo::path::{BackupId, BackupObject, Sealing, SystemKeys, SystemObject};
use crate::repo::{Repository, System};
use crate::seal::Epoch;
use crate::wal::WalFileName;

/// What all looks at one folder share.
pub(super) struct Look<'a> {
    pub(super) system: System,
    pub(super) listed: &'a Listed,
    pub(super) request: &'a Request,
    pub(super) folder: &'a mut Folder,
    pub(super) budget: Arc<Budget>,
    pub(super) progress: &'a dyn Progress,
    /// Which WAL is kept; `None`: all, or it cannot be read.
    pub(super) floor: Option<Floor>,
    /// The floor cannot be read: no restore can be planned.
    pub(super) blind: bool,
    /// Backups that lack something they need.
    pub(super) broken: BTreeSet<BackupId>,
}

/// Looks at the folder that `listed` lists.
pub(super) async fn look(
    repository: &Repository,
    request: &Request,
    listed: &Listed,
    folder: &mut Folder,
    progress: &dyn Progress,
) -> Result<()> {
    let Some(system) = open(repository, listed, folder).await? else { return Ok(()) };
    folder.identity = Some(system.identity().clone());
    (folder.locked, folder.unverified) = (!system.can_open(), system.is_unverified());
    let mut look = Look {
        system,
        listed,
        request,
        folder,
        budget: Arc::new(Budget::new()),
        progress,
        floor: None,
        blind: false,
        broken: BTreeSet::new(),
    };
    progress.begin("small objects", None);
    let catalog = look.system.catalog().await?;
    documents::check(&mut look, &catalog).await?;
    look.read_floor().await?;
    let histories = wal::histories(&mut look, &catalog).await?;
    let running = look.running().await?;
    look.list_leftovers(&catalog, running.as_ref());
    progress.begin("verifying", Some(look.due(&catalog)));
    backups::check(&mut look, &catalog).await?;
    let line = wal::check(&mut look, &catalog, &histories).await?;
    effect::settle(&mut look, catalog, histories, line).await
}

/// Opens the folder; `None` if its identity is lost, which is then a finding.
async fn open(repository: &Repository, listed: &Listed, folder: &mut Folder) -> Result<Option<System>> {
    let system = folder.system;
    let key = SystemKeys::new(repository.cluster(), system, Sealing::Plain).key(&SystemObject::Identity);
    let (fault, what) = match twice(|| repository.check_identity(&key)).await {
        Ok(true) => match repository.open(system).await {
            Ok(opened) => return Ok(Some(opened)),
            Err(e) if e.is_damage() => (Fault::Damaged, e.to_string()),
            Err(e) => return Err(e.into()),
        },
        Ok(false) => {
            (Fault::Missing, "without it the folder is no cluster's, and nothing in it is found".to_owned())
        }
        Err(e) if e.is_damage() => (Fault::Damaged, e.to_string()),
        Err(e) => return Err(e.into()),
    };
    folder.findings.add(fault, key, what, Subject::Folder);
    let lost = listed.keys().filter_map(|object| match object {
        SystemObject::Backup(id, BackupObject::Verdict) => {
            Some(Affected { id: id.clone(), restorable: false })
        }
        _ => None,
    });
    if let Some(finding) = folder.findings.kept.last_mut() {
        finding.affected = lost.collect();
    }
    Ok(None)
}

impl Look<'_> {
    /// Whether the backup is the one that was asked for, or all are.
    pub(super) fn asked_for(&self, id: &BackupId) -> bool {
        self.request.backup.as_ref().is_none_or(|asked| asked == id)
    }

    /// An object was read and is what it should be.
    pub(super) fn seen(&mut self, bytes: u64) {
        let extent = &mut self.folder.extent;
        extent.read += 1;
        extent.bytes = extent.bytes.saturating_add(bytes);
        self.progress.advance(bytes);
    }

    /// Whether what `epoch` sealed can be opened. If not although an identity is at hand, `object` is noted.
    pub(super) async fn opens(&mut self, epoch: Option<Epoch>, object: &SystemObject) -> Result<bool> {
        if !self.system.can_open() {
            return Ok(epoch.is_none());
        }
        let opens = self.system.opens(epoch).await?;
        if let Some(epoch) = epoch.filter(|_| !opens) {
            self.unopened(epoch, object);
        }
        Ok(opens)
    }

    /// An object was looked at without its key, although an identity is at hand.
    pub(super) fn unopened(&mut self, epoch: Epoch, object: &SystemObject) {
        let first = || Unopened { objects: 0, first: self.system.keys().key(object) };
        let noted = self.folder.unopened.entry(epoch).or_insert_with(first);
        noted.objects = noted.objects.saturating_add(1);
    }

    /// Whether the folder has a wrap of the epoch's key.
    pub(super) fn has_wrap(&self, epoch: Epoch) -> bool {
        let of_it = SystemObject::Wrap(epoch, 0)..=SystemObject::Wrap(epoch, u32::MAX);
        self.listed.range(of_it).next().is_some()
    }

    /// An object was damaged, or is not to be counted.
    pub(super) fn passed(&self, bytes: u64) {
        self.progress.advance(bytes);
    }

    /// An object was listed and is not there: expired meanwhile, or lost.
    pub(super) async fn gone(&mut self, object: &SystemObject, subject: Subject) -> Result<()> {
        let expired = match object {
            SystemObject::Backup(id, _) => self.system.went(id).await?,
            SystemObject::Wal(WalFileName::Segment(name), _) | SystemObject::Gap(name) => {
                self.system.floor().await?.is_some_and(|floor| !floor.keeps(*name))
            }
            _ => subject == Subject::Aside,
        };
        if !expired {
            let key = self.system.keys().key(object);
            self.folder.findings.add(Fault::Missing, key, "it went while it was looked at", subject);
        }
        Ok(())
    }

    pub(super) fn newest_floor(&self) -> Option<u32> {
        let number = |object: &SystemObject| match object {
            SystemObject::Floor(n) => Some(*n),
            _ => None,
        };
        self.listed.keys().filter_map(number).max()
    }

    async fn read_floor(&mut self) -> Result<()> {
        match self.system.floor().await {
            Ok(floor) => self.floor = floor,
            Err(e) if e.is_damage() => self.blind = true,
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Bytes of bodies that will be read.
    fn due(&self, catalog: &Catalog) -> u64 {
        let taken = |object: &SystemObject| self.request.sample.takes(&self.system.keys().key(object));
        let due = self.listed.iter().filter(|(object, _)| match object {
            SystemObject::Wal(WalFileName::History(_), _) => false,
            SystemObject::Wal(..) => self.request.backup.is_none() && taken(object),
            SystemObject::Backup(id, kind) => {
                let live = catalog.get(id).is_some_and(|info| documents::is_live(&info.state));
                let body = match kind {
                    BackupObject::Pack(_) => taken(object),
                    BackupObject::Manifest | BackupObject::PgManifest | BackupObject::Catalogue => true,
                    _ => false,
                };
                live && self.asked_for(id) && body
            }
            _ => false,
        });
        due.fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// The backup that may be running: the one that took the newest lease. `None`: that cannot be read, so each may be.
    async fn running(&self) -> Result<Option<BackupId>> {
        let newest = self.listed.keys().filter_map(|object| match object {
            SystemObject::Lease(n) => Some(*n),
            _ => None,
        });
        let Some(n) = newest.max() else { return Ok(None) };
        match self.system.lease(n).await {
            Ok(lease) => Ok(lease.map(|lease| lease.backup)),
            Err(e) if e.is_damage() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// What belongs to no backup that is or may become one.
    fn list_leftovers(&mut self, catalog: &Catalog, running: Option<&BackupId>) {
        for info in
            catalog.backups.iter().filter(|info| self.request.backup.as_ref().is_none_or(|id| *id == info.id))
        {
            // A writer that dies is abandoned by the one after it. Who has a manifest, no verdict and a successor had a verdict.
            let written = info.files.has(BackupObject::Manifest);
            if info.state == BackupState::Unfinished && written && running.is_some_and(|id| *id != info.id) {
                let key = self.system.keys().backup(&info.id, BackupObject::Verdict);
                let what = "a later backup was begun, so this one had a verdict";
                self.folder.findings.add(Fault::Missing, key, what, needed_by(&info.id));
                continue;
            }
            let why = match &info.state {
                BackupState::Unfinished => "running, or its writer died",
                BackupState::Abandoned => "abandoned, to be deleted by expire",
                BackupState::Expired => "expired, to be deleted by expire",
                BackupState::Garbage => "what a deletion left",
                BackupState::Complete | BackupState::Damaged(_) | BackupState::Unreadable(_) => continue,
            };
            let objects =
                self.listed.keys().filter(|o| matches!(o, SystemObject::Backup(id, _) if *id == info.id));
            self.folder.leftovers.push(Leftover {
                of: format!("backup {}", info.id),
                why,
                objects: u64::try_from(objects.count()).unwrap_or(u64::MAX),
                bytes: info.files.stored(),
            });
        }
    }
}

/// An error of one backup's reader: what it means for the look.
pub(super) enum Read {
    /// The object is damaged or lost.
    Damage(Error),
    /// The backup expired meanwhile: no matter.
    Expired,
}

impl Read {
    /// Sorts `error`.
    ///
    /// # Errors
    /// `error` itself, if nothing was learned.
    pub(super) fn of(error: Error) -> Result<Self> {
        match error.kind() {
            crate::error::Kind::Corrupt | crate::error::Kind::Refused => Ok(Self::Damage(error)),
            crate::error::Kind::NotFound => Ok(Self::Expired),
            _ => Err(error),
        }
    }
}
