//! The catalog: what listings tell of a repository, judged.
//!
//! ```text
//!  intent  verdict    tombstone   packs
//!  yes     complete   no          all there, sizes add up      complete: listed, restorable once its WAL is there too
//!  yes     complete   yes                                      expired
//!  yes     none                                                unfinished: running, or its writer died
//!  any     abandoned                                           abandoned
//!  no      complete   no          all there                    damaged: the intent was lost
//!  no      complete               not all there                garbage, never listed
//!  one of the two was read and is not intact, or they do not belong together: unreadable, listed, never used
//! ```
//! Pure: from keys, sizes and documents that were read to values. Source of truth: FORMAT.md, "Backups".

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::objects::{Backup, Intent, Verdict};
use super::path::{BackupId, BackupObject};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};

/// The objects of one backup in a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupFiles {
    objects: BTreeMap<BackupObject, (u64, Timestamp)>,
}

impl BackupFiles {
    /// Takes up one object.
    pub fn add(&mut self, object: BackupObject, size: u64, modified: Timestamp) {
        self.objects.insert(object, (size, modified));
    }

    /// Leaves one object out: it does not count.
    pub fn remove(&mut self, object: BackupObject) {
        self.objects.remove(&object);
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Whether the object is there.
    pub fn has(&self, object: BackupObject) -> bool {
        self.objects.contains_key(&object)
    }

    /// Its size.
    pub fn size(&self, object: BackupObject) -> Option<u64> {
        self.objects.get(&object).map(|(size, _)| *size)
    }

    /// Store time of its creation.
    pub fn created(&self, object: BackupObject) -> Option<Timestamp> {
        self.objects.get(&object).map(|(_, modified)| *modified)
    }

    /// All of them, with their sizes.
    pub fn iter(&self) -> impl Iterator<Item = (BackupObject, u64)> + '_ {
        self.objects.iter().map(|(object, (size, _))| (*object, *size))
    }

    /// Numbers and sizes of the packs.
    pub fn packs(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.iter().filter_map(|(object, size)| match object {
            BackupObject::Pack(n) => Some((n, size)),
            _ => None,
        })
    }

    /// Bytes of all its objects.
    pub fn stored(&self) -> u64 {
        self.iter().fold(0, |sum, (_, size)| sum.saturating_add(size))
    }

    /// Store time of its newest object.
    pub fn newest(&self) -> Option<Timestamp> {
        self.objects.values().map(|(_, modified)| *modified).max()
    }
}

/// What became of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupState {
    /// All its objects are there, those of other backups it refers to included. Whether its WAL is there: [`wal_complete`].
    Complete,
    /// It was complete, but objects are missing.
    Damaged(String),
    /// It has no verdict: it is running, or its writer died.
    Unfinished,
    /// It will never be.
    Abandoned,
    /// It has a tombstone.
    Expired,
    /// Left over from a deletion, or never anybody's.
    Garbage,
    /// Its intent or its verdict is damaged: what became of it cannot be told. Which object, and what is wrong with it.
    Unreadable(String),
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupInfo {
    /// Its id.
    pub id: BackupId,
    /// Its objects.
    pub files: BackupFiles,
    /// Its intent.
    pub intent: Option<Intent>,
    /// Its verdict.
    pub verdict: Option<Verdict>,
    /// Which of the two was read and is damaged, and how; that one is then `None` above.
    pub unreadable: Option<String>,
    /// What became of it.
    pub state: BackupState,
}

impl BackupInfo {
    /// The verdict of a backup that is complete.
    pub fn complete(&self) -> Option<&Backup> {
        match (&self.state, &self.verdict) {
            (BackupState::Complete, Some(Verdict::Complete(backup))) => Some(backup),
            _ => None,
        }
    }
}

/// All backups of a system folder, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The backups, oldest first.
    pub backups: Vec<BackupInfo>,
}

impl Catalog {
    /// Takes up a backup; its state is known after [`Self::judge`].
    pub fn add(
        &mut self,
        id: BackupId,
        files: BackupFiles,
        intent: Option<Intent>,
        verdict: Option<Verdict>,
        unreadable: Option<String>,
    ) {
        self.backups.push(BackupInfo { id, files, intent, verdict, unreadable, state: BackupState::Garbage });
    }

    /// Decides what became of each backup.
    pub fn judge(&mut self) {
        self.backups.sort_by(|a, b| a.id.cmp(&b.id));
        let packs: BTreeMap<BackupId, BTreeSet<u32>> =
            self.backups.iter().map(|b| (b.id.clone(), b.files.packs().map(|(n, _)| n).collect())).collect();
        for backup in &mut self.backups {
            backup.state = state_of(backup, &packs);
        }
    }

    /// The backup called `id`.
    pub fn get(&self, id: &BackupId) -> Option<&BackupInfo> {
        self.backups.iter().find(|b| b.id == *id)
    }

    /// The complete backups, oldest first.
    pub fn complete(&self) -> impl Iterator<Item = &Backup> {
        self.backups.iter().filter_map(BackupInfo::complete)
    }

    /// The backups whose intent or verdict is damaged, and what is wrong with it.
    pub fn unreadable(&self) -> impl Iterator<Item = (&BackupId, &str)> {
        self.backups.iter().filter_map(|backup| match &backup.state {
            BackupState::Unreadable(what) => Some((&backup.id, what.as_str())),
            _ => None,
        })
    }
}

fn state_of(backup: &BackupInfo, packs: &BTreeMap<BackupId, BTreeSet<u32>>) -> BackupState {
    let expired = backup.files.has(BackupObject::Expired);
    match (&backup.verdict, &backup.intent) {
        (Some(Verdict::Abandoned(_)), _) => BackupState::Abandoned,
        // What a tombstone says of it is true whatever the others say.
        (Some(Verdict::Complete(_)) | None, Some(_)) if expired => BackupState::Expired,
        _ if expired && backup.unreadable.is_some() => BackupState::Expired,
        _ if backup.unreadable.is_some() => {
            BackupState::Unreadable(backup.unreadable.clone().unwrap_or_default())
        }
        (Some(Verdict::Complete(verdict)), Some(intent)) if verdict.nonce != intent.nonce => {
            BackupState::Unreadable(format!(
                "intent.json and backup.json of backup {} do not belong together: their nonces differ",
                backup.id
            ))
        }
        (Some(Verdict::Complete(verdict)), Some(_)) => match missing_of(verdict, &backup.files, packs) {
            Some(what) => BackupState::Damaged(what),
            None => BackupState::Complete,
        },
        // A writer that slept past its own deletion leaves a verdict alone; where all else is there, the intent was lost.
        (Some(Verdict::Complete(verdict)), None)
            if !expired && missing_of(verdict, &backup.files, packs).is_none() =>
        {
            BackupState::Damaged("intent.json is missing".to_owned())
        }
        (Some(Verdict::Complete(_)) | None, None) => BackupState::Garbage,
        (None, Some(_)) => BackupState::Unfinished,
    }
}

fn missing_of(
    verdict: &Backup,
    files: &BackupFiles,
    packs: &BTreeMap<BackupId, BTreeSet<u32>>,
) -> Option<String> {
    let vouched = [
        (BackupObject::Manifest, Some(verdict.manifest)),
        (BackupObject::PgManifest, verdict.pg_manifest),
        (BackupObject::Catalogue, verdict.catalogue),
    ];
    for (object, expected) in vouched {
        let Some(expected) = expected else { continue };
        match files.size(object) {
            None => return Some(format!("{object:?} is missing")),
            Some(size) if size != expected.stored => {
                return Some(format!("{object:?} has {size} bytes instead of {}", expected.stored));
            }
            Some(_) => {}
        }
    }
    let own = packs.get(&verdict.id);
    if let Some(n) = (0..verdict.packs.count).find(|n| own.is_none_or(|own| !own.contains(n))) {
        return Some(format!("pack {n} is missing"));
    }
    let own_packs = files.packs().filter(|(n, _)| *n < verdict.packs.count);
    let stored = own_packs.fold(0_u64, |sum, (_, size)| sum.saturating_add(size));
    if stored != verdict.packs.stored {
        return Some(format!("its packs have {stored} bytes instead of {}", verdict.packs.stored));
    }
    for refs in &verdict.references {
        let theirs = packs.get(&refs.backup);
        if let Some(n) = refs.packs.iter().find(|n| theirs.is_none_or(|theirs| !theirs.contains(n))) {
            return Some(format!("pack {n} of backup {} is missing", refs.backup));
        }
    }
    None
}

/// Segments without a hole between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First.
    pub first: SegmentName,
    /// Last.
    pub last: SegmentName,
}

/// The runs that sorted `names` of one timeline form. Names that cannot exist at `size` are left out.
pub fn runs(names: impl IntoIterator<Item = SegmentName>, size: SegmentSize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for name in names {
        let Ok(number) = name.number(size) else { continue };
        match runs.last_mut() {
            Some(run) if run.last.number(size).is_ok_and(|last| last.next() == number || last == number) => {
                run.last = name;
            }
            _ => runs.push(Run { first: name, last: name }),
        }
    }
    runs
}

/// Whether all WAL from `start` up to `stop` on `timeline` lies in `runs`; else the first missing segment.
///
/// # Errors
/// The first missing segment.
pub fn wal_complete(
    runs: &[Run],
    timeline: TimelineId,
    size: SegmentSize,
    start: Lsn,
    stop: Lsn,
) -> Result<(), SegmentName> {
    let mut number = SegmentNo::containing(start, size);
    let last = SegmentNo::ending_at(stop.max(start.saturating_add(1)), size);
    while number <= last {
        let name = SegmentName::new(timeline, number, size);
        let run = runs.iter().find(|run| (run.first..=run.last).contains(&name)).ok_or(name)?;
        number = run.last.number(size).map_err(|_| name)?.next();
    }
    Ok(())
}
