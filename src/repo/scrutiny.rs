//! Looking at one small object for its own sake: is it what its key says, bit for bit?
//!
//! Readers are lenient where a person may have had to mend an object by hand (`objects`): they take one without a sum. Here nothing
//! is taken on trust: kind, format, sum or mac, and that it says of itself what its key says. For `verify`; decides nothing else.
//! Source of truth: FORMAT.md, "JSON objects".

use bytes::Bytes;

use super::objects::{
    AcceptedGap, Alive, Ancestry, Closing, Document, Expired, Floor, FormatMark, Identity, Intent, Lease,
    MAX_DOCUMENT, Pin, decode, has_sum,
};
use super::path::{self, BackupObject, SystemObject};
use super::{RepoError, Repository, System};

/// What a released pin holds.
pub(super) const RELEASED: &str = "released\n";

impl Repository {
    /// Checks the mark of format `n`. False: the store proves that it is not there.
    ///
    /// # Errors
    /// [`RepoError`]; see [`RepoError::is_damage`].
    pub async fn check_format_mark(&self, n: u32) -> Result<bool, RepoError> {
        let key = path::format_key(self.cluster(), n);
        let Some(bytes) = self.small(&key).await? else { return Ok(false) };
        let mark: FormatMark = self.intact(&key, &bytes)?;
        self.says(&key, mark.format == n, "of another format").map(|()| true)
    }

    /// Checks the identity of a system folder. False: the store proves that it is not there.
    ///
    /// # Errors
    /// As [`Self::check_format_mark`].
    pub async fn check_identity(&self, key: &str) -> Result<bool, RepoError> {
        let Some(bytes) = self.small(key).await? else { return Ok(false) };
        let identity: Identity = decode(&bytes).map_err(|e| self.document_error(key, &e))?;
        // The mac of a sealed one is looked at when the folder is opened.
        self.says(key, identity.sealed || has_sum(&bytes), "without a sum").map(|()| true)
    }

    async fn small(&self, key: &str) -> Result<Option<Bytes>, RepoError> {
        Ok(self.store().get_limited(key, MAX_DOCUMENT).await?)
    }

    fn intact<D: Document>(&self, key: &str, bytes: &[u8]) -> Result<D, RepoError> {
        let document = decode(bytes).map_err(|e| self.document_error(key, &e))?;
        self.says(key, has_sum(bytes), "without a sum").map(|()| document)
    }

    fn says(&self, key: &str, good: bool, what: &str) -> Result<(), RepoError> {
        if good { Ok(()) } else { Err(self.corrupt(key, &format!("the object is {what}"))) }
    }
}

impl System {
    fn intact<D: Document>(&self, key: &str, bytes: &[u8]) -> Result<D, RepoError> {
        match self.closing(key) {
            Closing::Sum => self.repository.intact(key, bytes),
            Closing::Mac { .. } => self.document(key, bytes),
        }
    }

    /// The lease numbered `n`.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn lease(&self, n: u32) -> Result<Option<Lease>, RepoError> {
        self.get_document(&self.keys.key(&SystemObject::Lease(n))).await
    }

    /// Checks the small object at `object`'s key. False: the store proves that it is not there. An object of another kind is true.
    ///
    /// # Errors
    /// As [`Repository::check_format_mark`].
    pub async fn check_document(&self, object: &SystemObject) -> Result<bool, RepoError> {
        let (key, repository) = (self.keys.key(object), &self.repository);
        let other = "that of another key";
        if !is_document(object) {
            return Ok(true);
        }
        let Some(bytes) = repository.small(&key).await? else { return Ok(false) };
        let own = match object {
            SystemObject::Identity => {
                let identity = self.intact::<Identity>(&key, &bytes)?;
                identity.cluster == *repository.cluster() && identity.system == self.identity.system
            }
            SystemObject::Gap(segment) => self.intact::<AcceptedGap>(&key, &bytes)?.segment == *segment,
            SystemObject::Floor(_) => self.intact::<Floor>(&key, &bytes).map(|_| true)?,
            SystemObject::Lease(_) => self.intact::<Lease>(&key, &bytes).map(|_| true)?,
            SystemObject::Pin(id) => self.intact::<Pin>(&key, &bytes)?.id == *id,
            SystemObject::PinReleased(_) => bytes == self.released(&key),
            SystemObject::Ancestry(timeline) => {
                let ancestry = self.intact::<Ancestry>(&key, &bytes)?;
                ancestry.timeline == *timeline && ancestry.history().is_ok()
            }
            SystemObject::Backup(id, BackupObject::Intent) => self.intact::<Intent>(&key, &bytes)?.id == *id,
            SystemObject::Backup(id, BackupObject::Verdict) => {
                let verdict = self.verdict_of(&key, &bytes)?;
                let summed = self.seal_key().is_some() || has_sum(&bytes);
                repository.says(&key, summed, "without a sum")?;
                verdict.id() == id
            }
            SystemObject::Backup(id, BackupObject::Alive(_)) => self.intact::<Alive>(&key, &bytes)?.id == *id,
            SystemObject::Backup(id, BackupObject::Expired) => {
                self.intact::<Expired>(&key, &bytes)?.id == *id
            }
            SystemObject::Wal(..) | SystemObject::Wrap(..) | SystemObject::Backup(..) => true,
        };
        repository.says(&key, own, other).map(|()| true)
    }
}

/// Whether `object` is one of the small ones that are read whole.
pub fn is_document(object: &SystemObject) -> bool {
    match object {
        // Wraps are held against the host's by `check`, and opened by who has a key.
        SystemObject::Wal(..) | SystemObject::Wrap(..) => false,
        SystemObject::Backup(_, object) => match object {
            BackupObject::Intent | BackupObject::Verdict | BackupObject::Alive(_) | BackupObject::Expired => {
                true
            }
            BackupObject::Pack(_)
            | BackupObject::Manifest
            | BackupObject::PgManifest
            | BackupObject::Catalogue => false,
        },
        SystemObject::Identity
        | SystemObject::Gap(_)
        | SystemObject::Ancestry(_)
        | SystemObject::Floor(_)
        | SystemObject::Lease(_)
        | SystemObject::Pin(_)
        | SystemObject::PinReleased(_) => true,
    }
}
