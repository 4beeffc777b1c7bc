//! Deleting: the only place of the product that does.
//!
//! ```text
//!  a dead backup   packs that nobody refers to ─► manifest and what is beside it ─► intent ─► backup.json ─► expired.json
//!                  a pack remains: its intent, verdict and tombstone stay with it; so do those of the failure that freezes retention
//!  WAL             what the floors of the whole grace let go, and nobody announced a need of since
//!  leftovers       pins that no longer count, leases and floors that were followed by others
//! ```
//! Each arrow is a border: nothing to its right is deleted before everything to its left is gone, so that a run that ends anywhere leaves
//! a folder that says what it is. What is not there is deleted; so runs may repeat, resume, and run at once. Memory: the keys of one
//! backup, or of one folder of WAL.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};

use super::look::Look;
use crate::error::{Error, Result};
use crate::repo::System;
use crate::repo::catalog::BackupInfo;
use crate::repo::objects::{Floor, PackRefs, PackSet, Verdict};
use crate::repo::path::{BackupId, BackupObject, PinKind};
use crate::repo::pins::READER_COUNTS;
use crate::repo::retention::Holds;
use crate::store::{StoreError, StoreErrorKind};
use crate::wal::{SegmentNo, TimelineId};

/// Deletes in flight.
const DELETES: usize = 16;
/// A floor is read right after it was listed: one that was followed by another this long ago is read by nobody. Where the grace is
/// longer it counts: the floors of that time say which WAL may go.
const FLOOR_STAYS: SignedDuration = SignedDuration::from_hours(24);

/// What was deleted, or in a dry run would have been.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Backups of which nothing is left.
    pub backups: Vec<BackupId>,
    /// Backups whose packs are in part needed by others, and stay.
    pub remain: Vec<BackupId>,
    /// Objects of backups.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// WAL segments, with their copies and what belongs to them.
    pub wal_objects: u64,
    /// Their bytes.
    pub wal_bytes: u64,
    /// Pins, leases and floors.
    pub leftovers: u64,
}

/// Deletes from one system folder, or counts what it would delete.
#[derive(Debug)]
pub(super) struct Remover<'a> {
    system: &'a System,
    dry_run: bool,
    pub(super) done: Deleted,
}

impl<'a> Remover<'a> {
    pub(super) fn new(system: &'a System, dry_run: bool) -> Self {
        Self { system, dry_run, done: Deleted::default() }
    }

    /// Deletes all of `keys`; the first refusal ends the run.
    async fn remove(&self, keys: Vec<String>) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let store = self.system.repository().store();
        let each = keys.into_iter().map(|key| async move { store.delete(&key).await });
        let mut deletes = futures_util::stream::iter(each).buffer_unordered(DELETES);
        while deletes.try_next().await.map_err(refused)?.is_some() {}
        Ok(())
    }

    /// D3: deletes the backups in `dead`, as far as nobody refers to their packs. `look` was taken after `dead` was fixed. Of `evidence`
    /// intent and verdict stay.
    pub(super) async fn backups(
        &mut self,
        dead: &BTreeSet<BackupId>,
        evidence: Option<&BackupId>,
        look: &Look,
    ) -> Result<()> {
        let needed = references(look, dead);
        for info in look.catalog.backups.iter().filter(|info| dead.contains(&info.id)) {
            self.backup(info, needed.get(&info.id), evidence == Some(&info.id)).await?;
        }
        Ok(())
    }

    async fn backup(&mut self, info: &BackupInfo, needed: Option<&PackSet>, evidence: bool) -> Result<()> {
        let is_needed = |pack: u32| needed.is_some_and(|needed| needed.contains(pack));
        let remains = info.files.packs().any(|(pack, _)| is_needed(pack));
        type Step = fn(BackupObject) -> bool;
        let data: [Step; 2] = [
            |object| matches!(object, BackupObject::Pack(_)),
            |object| {
                matches!(
                    object,
                    BackupObject::Manifest
                        | BackupObject::PgManifest
                        | BackupObject::Catalogue
                        | BackupObject::Alive(_)
                )
            },
        ];
        let signs: [Step; 3] = [
            |object| object == BackupObject::Intent,
            |object| object == BackupObject::Verdict,
            |object| object == BackupObject::Expired,
        ];
        let steps = data.iter().chain(if remains || evidence { &[][..] } else { &signs[..] });
        for step in steps {
            let unneeded = |object: BackupObject| !matches!(object, BackupObject::Pack(n) if is_needed(n));
            let objects = info.files.iter().filter(|(object, _)| step(*object) && unneeded(*object));
            let (mut keys, mut bytes) = (Vec::new(), 0_u64);
            for (object, size) in objects {
                keys.push(self.system.keys().backup(&info.id, object));
                bytes = bytes.saturating_add(size);
            }
            let count = u64::try_from(keys.len()).unwrap_or(u64::MAX);
            self.remove(keys).await?;
            self.done.objects = self.done.objects.saturating_add(count);
            self.done.bytes = self.done.bytes.saturating_add(bytes);
        }
        if remains {
            self.done.remain.push(info.id.clone());
        } else if !evidence {
            self.done.backups.push(info.id.clone());
        }
        Ok(())
    }

    /// Deletes the WAL that `floor` let go and `needed` does not hold.
    pub(super) async fn wal(
        &mut self,
        timelines: impl Iterator<Item = TimelineId>,
        floor: &Floor,
        needed: &Holds,
    ) -> Result<()> {
        let size = self.system.identity().segment_size;
        for timeline in timelines {
            let Some(line) = floor.timelines.iter().find(|line| line.timeline == timeline) else { continue };
            let end = line.first.number(size).map_or(0, SegmentNo::get);
            for folder in self.system.wal_folders(timeline).await? {
                // Folders in order: behind the floor's own there is nothing to delete.
                let listed = self.system.wal_in(&folder).await?;
                let numbers =
                    || listed.iter().filter_map(|l| l.segment.number(size).ok()).map(SegmentNo::get);
                if numbers().min().is_some_and(|first| first >= end) {
                    break;
                }
                let goes = listed.iter().filter(|l| !floor.keeps(l.segment) && !needed.holds(l.segment));
                let (mut keys, mut bytes) = (Vec::new(), 0_u64);
                for listed in goes {
                    keys.push(listed.object.key.clone());
                    bytes = bytes.saturating_add(listed.object.size);
                }
                let count = u64::try_from(keys.len()).unwrap_or(u64::MAX);
                self.remove(keys).await?;
                self.done.wal_objects = self.done.wal_objects.saturating_add(count);
                self.done.wal_bytes = self.done.wal_bytes.saturating_add(bytes);
            }
        }
        Ok(())
    }

    /// Deletes pins that no longer count, and leases and floors that were followed by others.
    pub(super) async fn leftovers(&mut self, now: Timestamp, grace: SignedDuration) -> Result<()> {
        let pins = self.system.pin_objects().await?;
        let mut released = BTreeSet::new();
        for pin in pins.iter().filter(|p| p.release) {
            // Its name alone says nothing: who can write to the bucket can plant one.
            if self.system.is_release(&pin.object.key).await? {
                released.insert(&pin.id);
            }
        }
        let ran_out = |p: &&crate::repo::expiry::PinObject| {
            p.id.kind() == PinKind::Reader && now.duration_since(p.object.modified) >= READER_COUNTS
        };
        let (gone, live): (Vec<_>, Vec<_>) =
            pins.iter().filter(|p| !p.release).partition(|p| released.contains(&p.id) || ran_out(p));
        let mut first: Vec<String> = gone.iter().map(|p| p.object.key.clone()).collect();
        let leases = self.system.leases().await?;
        let followed = leases.len().saturating_sub(1);
        first.extend(leases.iter().take(followed).map(|listed| listed.object.key.clone()));
        let floors = self.system.floors().await?;
        let old = floors.windows(2).filter_map(|pair| match pair {
            [floor, next] if now.duration_since(next.object.modified) >= grace.max(FLOOR_STAYS) => {
                Some(floor)
            }
            _ => None,
        });
        first.extend(old.map(|listed| listed.object.key.clone()));
        // A release goes after its pin: without it the pin would count again. What was planted beside a pin that counts stays to be seen.
        let holds = |p: &&crate::repo::expiry::PinObject| live.iter().any(|pin| pin.id == p.id);
        let releases = pins.iter().filter(|p| p.release && !holds(p));
        let second: Vec<String> = releases.map(|p| p.object.key.clone()).collect();
        for keys in [first, second] {
            let count = u64::try_from(keys.len()).unwrap_or(u64::MAX);
            self.remove(keys).await?;
            self.done.leftovers = self.done.leftovers.saturating_add(count);
        }
        Ok(())
    }
}

/// D2: the packs of dead backups that anybody not in `dead` refers to: by verdict, or by intent.
fn references(look: &Look, dead: &BTreeSet<BackupId>) -> BTreeMap<BackupId, PackSet> {
    let mut needed: BTreeMap<BackupId, PackSet> = BTreeMap::new();
    for info in look.catalog.backups.iter().filter(|info| !dead.contains(&info.id)) {
        let verdict: &[PackRefs] = match &info.verdict {
            Some(Verdict::Complete(backup)) => &backup.references,
            Some(Verdict::Abandoned(_)) | None => &[],
        };
        let intent = info.intent.as_ref().map_or(&[][..], |intent| &intent.references);
        for refs in verdict.iter().chain(intent).filter(|refs| dead.contains(&refs.backup)) {
            needed.entry(refs.backup.clone()).or_default().add_all(&refs.packs);
        }
    }
    needed
}

/// A refused delete says which object, and that nothing is lost by it. Credentials that ran out or are wrong are another matter: the store's
/// own advice is the right one.
fn refused(error: StoreError) -> Error {
    let may_not = error.is_forbidden() || error.kind == StoreErrorKind::Denied;
    let error = Error::from(error);
    match may_not {
        true => error.hint(
            "run expire with credentials that may delete (S3: s3:DeleteObject; the expirer of docs/roles.md); what is marked stays marked until then",
        ),
        false => error,
    }
}
