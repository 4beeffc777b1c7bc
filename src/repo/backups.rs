//! Backups in a repository: the writer's protocol, and reading what became of each.
//!
//! ```text
//!  W2 intent ─► W3 is the parent usable? ─► W4 packs, manifest ─► W5 WAL is there ─► W6 verdict      (alive while it waits)
//!                                                              expiry: abandoned ──► the same key: one of the two wins
//! ```
//! Invariants: a verdict is the last object of a backup; who creates it second learns who was first; a complete verdict whose nonce is
//! not its intent's is no backup. Safety rests on this order, never on a clock. Source of truth: FORMAT.md, "Backups".
//!
//! Expiry may be at work beside a reader, so an object that was listed may be gone. Where the bucket keeps versions it then lies under a
//! delete marker, as it does when somebody else deleted it: what is left of the backup tells the two apart ([`System::went`]).

use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::catalog::{BackupFiles, Catalog};
use super::document::Put;
use super::manifest::Manifest;
use super::objects::{
    Abandoned, Alive, Backup, Checksums, Document, Expired, Intent, Nonce, Status, Verdict, encode_as,
};
use super::path::{BackupId, BackupObject, SystemObject};
use super::{RepoError, System, nonce, this_process};
use crate::codec::Digest;
use crate::store::Payload;
use crate::wal::TimelineId;

/// JSON objects of backups that are read at a time.
const READERS: usize = 8;

/// Who began backups on a timeline, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Their intents, newest first.
    pub intents: Vec<Intent>,
    /// No backup was left out.
    pub all: bool,
}

/// What abandoning a backup came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Abandonment {
    /// It is abandoned, now or before.
    Done,
    /// Its writer was faster: it is complete.
    Complete(Box<Backup>),
}

impl System {
    /// W2: creates the intent. Nothing else of the backup may be written before.
    ///
    /// # Errors
    /// [`RepoError::Conflict`] if the id is taken.
    pub async fn create_intent(&self, intent: &Intent) -> Result<(), RepoError> {
        self.create_own(&intent.id, BackupObject::Intent, intent).await
    }

    async fn create_own<D: Document>(
        &self,
        id: &BackupId,
        object: BackupObject,
        document: &D,
    ) -> Result<(), RepoError> {
        let key = self.keys.backup(id, object);
        match self.put_document(&key, document).await? {
            Put::Ours => Ok(()),
            Put::Theirs(_) => Err(self.repository.conflict(&key)),
        }
    }

    /// W3: whether packs of `id` may be referred to: not if its pages are damaged. To be asked after the intent was created, never before.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn usable_parent(&self, id: &BackupId) -> Result<Option<Box<Backup>>, RepoError> {
        Ok(self.complete_backup(id).await?.filter(|backup| backup.checksums != Checksums::Corrupt))
    }

    /// The backup `id`, if it is complete and not expired. Its pages may be damaged.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn complete_backup(&self, id: &BackupId) -> Result<Option<Box<Backup>>, RepoError> {
        let verdict = self.unless_went(id, self.verdict(id).await).await?;
        let Some(Verdict::Complete(backup)) = verdict else { return Ok(None) };
        let owner = self.unless_went(id, self.intent(id).await).await?.map(|intent| intent.nonce);
        let complete = owner == Some(backup.nonce) && !self.is_expired(id).await?;
        Ok(complete.then_some(backup))
    }

    /// W4: stores a pack, a manifest or another object of a running backup.
    ///
    /// # Errors
    /// [`RepoError::Conflict`] if other bytes are there.
    pub async fn put_backup_object(
        &self,
        id: &BackupId,
        object: BackupObject,
        body: impl Into<Payload>,
    ) -> Result<(), RepoError> {
        let (key, body) = (self.keys.backup(id, object), body.into());
        self.check_sealed(&key, object, &body)?;
        self.repository.put_exact(&key, body).await
    }

    /// A sign of life while a writer waits; `k` counts from 1.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn create_alive(
        &self,
        id: &BackupId,
        nonce: Nonce,
        k: u32,
        now: Timestamp,
    ) -> Result<(), RepoError> {
        let alive = Alive { id: id.clone(), nonce, created: now };
        self.create_own(id, BackupObject::Alive(k), &alive).await
    }

    /// W6: publishes the backup. It exists once this returns.
    ///
    /// # Errors
    /// [`RepoError::Abandoned`] if the backup was abandoned meanwhile.
    pub async fn publish(&self, backup: &Backup) -> Result<(), RepoError> {
        if backup.status != Status::Complete {
            let key = self.keys.backup(&backup.id, BackupObject::Verdict);
            return Err(RepoError::Unwritable { key, what: "its status must be complete".to_owned() });
        }
        match self.decide(&backup.id, backup).await? {
            None => Ok(()),
            Some(Verdict::Abandoned(theirs)) => {
                Err(RepoError::Abandoned { id: backup.id.clone(), reason: theirs.reason })
            }
            Some(Verdict::Complete(theirs)) if theirs.nonce == backup.nonce => Ok(()),
            Some(Verdict::Complete(theirs)) => {
                let reason =
                    format!("process {} on {} published it", theirs.process.pid, theirs.process.host);
                Err(RepoError::Abandoned { id: backup.id.clone(), reason })
            }
        }
    }

    /// Abandons a backup that has no verdict: by its own writer after a failure, by expiry, or by whoever takes over its lease.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn abandon(
        &self,
        id: &BackupId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Abandonment, RepoError> {
        let abandoned = Abandoned {
            status: Status::Abandoned,
            id: id.clone(),
            nonce: nonce()?,
            created: now,
            reason: reason.to_owned(),
            process: this_process(),
        };
        Ok(match self.decide(id, &abandoned).await? {
            None | Some(Verdict::Abandoned(_)) => Abandonment::Done,
            Some(Verdict::Complete(backup)) => Abandonment::Complete(backup),
        })
    }

    /// Creates the verdict, or reads the one that is there.
    async fn decide<D: Document>(&self, id: &BackupId, ours: &D) -> Result<Option<Verdict>, RepoError> {
        let key = self.keys.backup(id, BackupObject::Verdict);
        let bytes = encode_as(ours, self.closing(&key));
        let Some(theirs) = self.repository.put_bytes(&key, bytes.into()).await? else { return Ok(None) };
        self.verdict_of(&key, &theirs).map(Some)
    }

    /// The verdict that `bytes`, read at `key`, are.
    pub(super) fn verdict_of(&self, key: &str, bytes: &[u8]) -> Result<Verdict, RepoError> {
        Verdict::decode_as(bytes, self.closing(key)).map_err(|e| self.repository.document_error(key, &e))
    }

    /// E1: creates the tombstone of a backup. New readers and writers keep away from it; nothing is deleted yet.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn expire(&self, id: &BackupId, reason: &str, now: Timestamp) -> Result<(), RepoError> {
        let (id, reason) = (id.clone(), reason.to_owned());
        let key = self.keys.backup(&id, BackupObject::Expired);
        let expired = Expired { id, nonce: nonce()?, created: now, reason };
        // Another one's tombstone is as good.
        self.put_document(&key, &expired).await.map(|_| ())
    }

    /// Whether the backup has a tombstone, or had one: it is the last of a backup that expiry deletes.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn is_expired(&self, id: &BackupId) -> Result<bool, RepoError> {
        match self.has_tombstone(id).await {
            Err(e) if e.is_hidden() && self.listed(id).await?.is_empty() => Ok(true),
            found => found,
        }
    }

    async fn has_tombstone(&self, id: &BackupId) -> Result<bool, RepoError> {
        let key = self.keys.backup(id, BackupObject::Expired);
        if self.seal_key().is_none() {
            return Ok(self.store().head(&key).await?.is_some());
        }
        // One that somebody planted must not let a backup go.
        match self.get_document::<Expired>(&key).await {
            Ok(found) => Ok(found.is_some()),
            Err(RepoError::Forged { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The backup's intent.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn intent(&self, id: &BackupId) -> Result<Option<Intent>, RepoError> {
        let key = self.keys.backup(id, BackupObject::Intent);
        let Some(intent) = self.get_document::<Intent>(&key).await? else { return Ok(None) };
        self.check_own(&key, id, &intent.id).map(|()| Some(intent))
    }

    /// The intents of backups that were begun on `timeline`, of the `most` newest backups. One that cannot be read is left out.
    ///
    /// # Errors
    /// [`RepoError::Store`] if the backups cannot be listed.
    pub async fn begun_on(&self, timeline: TimelineId, most: usize) -> Result<Begun, RepoError> {
        let folders = self.store().list_dirs(&self.keys.backups_dir()).await?;
        let ids: Vec<BackupId> =
            folders.iter().filter_map(|dir| dir.trim_end_matches('/').parse().ok()).collect();
        let most = most.min(ids.len());
        let mut begun = Begun { intents: Vec::new(), all: most == ids.len() };
        // Made here and not in the stream: a closure over borrowed ids is not general enough for a task.
        let reads: Vec<_> = ids.iter().rev().take(most).map(|id| self.intent(id)).collect();
        let mut reads = futures_util::stream::iter(reads).buffered(READERS);
        while let Some(read) = reads.next().await {
            match read {
                Ok(intent) => begun.intents.extend(intent.filter(|intent| intent.timeline == timeline)),
                Err(_) => begun.all = false,
            }
        }
        Ok(begun)
    }

    /// An object in a backup's folder must say that it is that backup's.
    fn check_own(&self, key: &str, id: &BackupId, found: &BackupId) -> Result<(), RepoError> {
        if found == id {
            Ok(())
        } else {
            Err(self.repository.corrupt(key, &format!("it is that of backup {found}")))
        }
    }

    /// The backup's verdict.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn verdict(&self, id: &BackupId) -> Result<Option<Verdict>, RepoError> {
        let key = self.keys.backup(id, BackupObject::Verdict);
        let limit = super::objects::MAX_DOCUMENT;
        let Some(bytes) = self.store().get_limited(&key, limit).await? else { return Ok(None) };
        let verdict = self.verdict_of(&key, &bytes)?;
        self.check_own(&key, id, verdict.id()).map(|()| Some(verdict))
    }

    /// Whether the backup has a verdict, of whichever kind, readable or not: its writer is done.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn has_verdict(&self, id: &BackupId) -> Result<bool, RepoError> {
        Ok(self.store().head(&self.keys.backup(id, BackupObject::Verdict)).await?.is_some())
    }

    /// The manifest of a complete backup, checked against its verdict.
    ///
    /// # Errors
    /// [`RepoError::Corrupt`], or [`RepoError::Expired`] if it went meanwhile.
    pub async fn manifest(&self, backup: &Backup) -> Result<Manifest, RepoError> {
        let key = self.keys.backup(&backup.id, BackupObject::Manifest);
        let found = self.store().get_limited(&key, backup.manifest.stored).await;
        let found = self.unless_went(&backup.id, found.map_err(RepoError::from)).await?;
        let Some(bytes) = found else { return Err(self.gone(&backup.id, &key).await) };
        if Digest::of(&bytes) != backup.manifest.digest {
            return Err(self.repository.corrupt(&key, &"its digest is not the one in the verdict"));
        }
        let bytes = self.unsealed(&key, backup.key, bytes).await?;
        Manifest::open(bytes).map_err(|e| self.repository.corrupt(&key, &e))
    }

    /// The error for an object that a backup vouches for and that is not there.
    pub async fn gone(&self, id: &BackupId, key: &str) -> RepoError {
        match self.went(id).await {
            Ok(true) => RepoError::Expired { id: id.clone() },
            Ok(false) => self.repository.missing(key),
            Err(e) => e,
        }
    }

    /// Whether expiry took a backup of which something is not there: it is marked, or nothing of it is left, its mark included, which goes
    /// last.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn went(&self, id: &BackupId) -> Result<bool, RepoError> {
        let files = self.left(id).await?;
        if files.is_empty() || files.has(BackupObject::Expired) {
            return Ok(true);
        }
        if !files.has(BackupObject::Verdict) {
            return Ok(false);
        }
        // An abandoned backup needs no tombstone, and its verdict goes last.
        match self.verdict(id).await {
            Ok(verdict) => Ok(matches!(verdict, Some(Verdict::Abandoned(_)))),
            Err(e) if e.is_damage() => Ok(false),
            Err(e) if e.is_hidden() && self.listed(id).await?.is_empty() => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Nothing, where `read` met a delete marker and it was expiry that deleted. Any other marker stays a doubt.
    ///
    /// # Errors
    /// As `read`.
    pub async fn unless_went<T>(
        &self,
        id: &BackupId,
        read: Result<Option<T>, RepoError>,
    ) -> Result<Option<T>, RepoError> {
        match read {
            Err(e) if e.is_hidden() && self.went(id).await? => Ok(None),
            read => read,
        }
    }

    /// What is left of one backup; a tombstone that somebody planted left out.
    async fn left(&self, id: &BackupId) -> Result<BackupFiles, RepoError> {
        let mut files = self.listed(id).await?;
        if let Err(e) = self.drop_planted(id, &mut files).await {
            if !e.is_hidden() {
                return Err(e);
            }
            // It went this very moment, and the others before it.
            files = self.listed(id).await?;
            files.remove(BackupObject::Expired);
        }
        Ok(files)
    }

    async fn drop_planted(&self, id: &BackupId, files: &mut BackupFiles) -> Result<(), RepoError> {
        if files.has(BackupObject::Expired) && self.seal_key().is_some() && !self.has_tombstone(id).await? {
            files.remove(BackupObject::Expired);
        }
        Ok(())
    }

    /// What a listing of it tells.
    pub(super) async fn listed(&self, id: &BackupId) -> Result<BackupFiles, RepoError> {
        let mut files = BackupFiles::default();
        for object in self.store().list(&self.keys.backup_dir(id)).await? {
            if let Some(SystemObject::Backup(_, kind)) = self.keys.parse(&object.key) {
                files.add(kind, object.size, object.modified);
            }
        }
        Ok(files)
    }

    /// Everything a listing of the backups tells, with every intent, verdict and tombstone. One that was read and is damaged makes
    /// its own backup unreadable, and no other. What expiry deletes meanwhile is as it is afterwards.
    ///
    /// # Errors
    /// [`RepoError`] if the store does not answer.
    pub async fn catalog(&self) -> Result<Catalog, RepoError> {
        let mut files = std::collections::BTreeMap::<BackupId, BackupFiles>::new();
        for object in self.store().list(&self.keys.backups_dir()).await? {
            if let Some(SystemObject::Backup(id, kind)) = self.keys.parse(&object.key) {
                files.entry(id).or_default().add(kind, object.size, object.modified);
            }
        }
        let reads = files.into_iter().map(|(id, files)| self.read_backup(id, files));
        let mut results = futures_util::stream::iter(reads).buffered(READERS);
        let mut catalog = Catalog::default();
        while let Some(read) = results.next().await {
            let Some((id, files, read)) = read? else { continue };
            catalog.add(id, files, read.intent, read.verdict, read.damage);
        }
        catalog.judge();
        Ok(catalog)
    }

    /// `None` if nothing is left of the backup.
    pub(super) async fn read_backup(
        &self,
        id: BackupId,
        mut files: BackupFiles,
    ) -> Result<Option<(BackupId, BackupFiles, Read)>, RepoError> {
        let mut read = Read::default();
        match self.drop_planted(&id, &mut files).await {
            Err(e) if e.is_hidden() => read.note(Err(e))?.unwrap_or(()),
            done => done?,
        }
        if files.has(BackupObject::Intent) {
            read.intent = read.note(self.intent(&id).await)?;
        }
        if files.has(BackupObject::Verdict) {
            read.verdict = read.note(self.verdict(&id).await)?;
        }
        if read.lacks {
            files = self.left(&id).await?;
            if files.is_empty() {
                return Ok(None);
            }
            if !self.went(&id).await? {
                if let Some(hidden) = read.hidden.take() {
                    return Err(hidden);
                }
                read = self.read_again(&id, &files).await?;
            }
        }
        Ok(Some((id, files, read)))
    }

    /// What a listing has of a backup that did not go, though it was said not to be there. A backup without its verdict would look as if its
    /// writer had died, and one without its intent as if nobody had written it: a store that contradicts itself ends the look.
    async fn read_again(&self, id: &BackupId, files: &BackupFiles) -> Result<Read, RepoError> {
        let mut read = Read::default();
        if files.has(BackupObject::Intent) {
            read.intent = read.note(self.intent(id).await)?;
        }
        if files.has(BackupObject::Verdict) {
            read.verdict = read.note(self.verdict(id).await)?;
        }
        if !read.lacks {
            return Ok(read);
        }
        let object = if read.verdict.is_none() { BackupObject::Verdict } else { BackupObject::Intent };
        Err(read.hidden.unwrap_or_else(|| self.repository.unstable(&self.keys.backup(id, object))))
    }
}

/// What was read of a backup that was listed.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) intent: Option<Intent>,
    pub(super) verdict: Option<Verdict>,
    /// Which of the two is damaged, and how.
    damage: Option<String>,
    /// Something that was listed is not there.
    lacks: bool,
    /// It is so because of a delete marker.
    hidden: Option<RepoError>,
}

impl Read {
    /// What was read, or nothing and a note of why. Every other failure is one: nothing is known then.
    fn note<T>(&mut self, read: Result<Option<T>, RepoError>) -> Result<Option<T>, RepoError> {
        match read {
            Err(error) if error.is_damage() => {
                self.damage.get_or_insert_with(|| error.to_string());
                Ok(None)
            }
            Err(error) if error.is_hidden() => {
                self.lacks = true;
                self.hidden.get_or_insert(error);
                Ok(None)
            }
            read => {
                self.lacks |= matches!(read, Ok(None));
                read
            }
        }
    }
}
