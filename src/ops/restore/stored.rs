//! One backup in one repository, opened for reading: manifest, catalogue, packs, single files.
//!
//! Everything that comes back was checked against a digest that the verdict or the manifest states. Absence is told apart from
//! damage: a pack that is gone because the backup expired meanwhile is not corruption, one that is gone without a tombstone is. One under a
//! delete marker without a tombstone is neither: somebody deleted it, and it may be brought back.
//! Source of truth: REPOSITORY.md 4.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::codec::{Digest, len_u64};
use crate::error::{Error, Result};
use crate::ops::Silent;
use crate::ops::backup::catalogue::Catalogue;
use crate::repo::manifest::PackLine;
use crate::repo::objects::{Backup, ObjectRef};
use crate::repo::pack::PackTable;
use crate::repo::path::BackupObject;
use crate::repo::{RepoError, System};
use crate::store::{Store, StoreError};

use super::fetch::{self, Packs, Sink};
use super::image::{File, Image};
use super::sealed::Shared;

/// Reads in flight while small files are looked at.
const SMALL_JOBS: usize = 4;

/// A backup whose verdict is complete.
#[derive(Debug, Clone)]
pub struct StoredBackup {
    system: System,
    verdict: Arc<Backup>,
    pub(super) sealed: Arc<Shared>,
}

impl StoredBackup {
    /// The backup with this verdict, in the folder of `system`.
    pub fn new(system: System, verdict: Backup) -> Self {
        Self { system, verdict: Arc::new(verdict), sealed: Arc::default() }
    }

    /// Its verdict.
    pub fn verdict(&self) -> &Backup {
        &self.verdict
    }

    /// Whether its objects are age files.
    pub(in crate::ops) fn is_encrypted(&self) -> bool {
        self.system.seal_key().is_some()
    }

    /// The folder it is in.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// All files.
    ///
    /// # Errors
    /// Kind `Corrupt` if the manifest is damaged or missing.
    pub async fn image(&self) -> Result<Image> {
        let manifest = self.system.manifest(&self.verdict).await?;
        let (backup, system) = (manifest.header().backup.clone(), manifest.header().system);
        // Decompressing and parsing the entries of a million files takes seconds: not on the reactor.
        let read = tokio::task::spawn_blocking(move || Image::of(&manifest)).await;
        let read = read.map_err(|e| Error::failed("reading the manifest ended early").source(e))?;
        let id = &self.verdict.id;
        let image = read.map_err(|e| e.context(format!("the manifest of backup {id} cannot be used")))?;
        if backup != *id || system != self.verdict.system {
            return Err(Error::corrupt(format!("the manifest of backup {id} says it is that of {backup}")));
        }
        Ok(image)
    }

    /// What the server said about itself; `None` if the backup has no catalogue or it cannot be read, and why.
    ///
    /// # Errors
    /// Only if the store does not answer: a backup restores without its catalogue.
    pub async fn catalogue(&self) -> Result<(Option<Catalogue>, Option<String>)> {
        let Some(wanted) = self.verdict.catalogue else { return Ok((None, None)) };
        let object = match self.object(BackupObject::Catalogue, &wanted).await {
            Ok(object) => object,
            Err(error) if error.kind() == crate::error::Kind::Corrupt => {
                return Ok((None, Some(error.to_string())));
            }
            Err(error) => return Err(error),
        };
        match Catalogue::decode(&object) {
            Ok(catalogue) => Ok((Some(catalogue), None)),
            Err(error) => Ok((None, Some(error.to_string()))),
        }
    }

    /// The content of small files, by path. What is not there is absent.
    ///
    /// # Errors
    /// As [`fetch::fetch`].
    pub async fn files(
        &self,
        image: &Image,
        paths: &BTreeMap<Vec<u8>, u64>,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let content =
            |(path, size): (&Vec<u8>, &u64)| (path.clone(), vec![0; usize::try_from(*size).unwrap_or(0)]);
        let sink = Arc::new(Memory(Mutex::new(paths.iter().map(content).collect())));
        let wanted = |path: &[u8]| paths.contains_key(path);
        fetch::fetch(self, image, &wanted, SMALL_JOBS, &sink, &Silent).await?;
        let files = std::mem::take(&mut *sink.0.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(files)
    }

    /// The content of an object that the verdict vouches for.
    ///
    /// # Errors
    /// Kind `Corrupt` if it is damaged or lost, `NotFound` if the backup has expired meanwhile, `Key` if no key at hand opens it.
    pub(in crate::ops) async fn object(&self, object: BackupObject, wanted: &ObjectRef) -> Result<Bytes> {
        let key = self.system.keys().backup(&self.verdict.id, object);
        let bytes = self.vouched(&key, wanted).await?;
        Ok(self.system.unsealed(&key, self.verdict.key, bytes).await?)
    }

    /// As [`Self::object`], as it is stored: what can be looked at without a key.
    ///
    /// # Errors
    /// As [`Self::object`], but for the key.
    pub(in crate::ops) async fn stored(&self, object: BackupObject, wanted: &ObjectRef) -> Result<()> {
        let key = self.system.keys().backup(&self.verdict.id, object);
        self.vouched(&key, wanted).await.map(drop)
    }

    pub(super) async fn vouched(&self, key: &str, wanted: &ObjectRef) -> Result<Bytes> {
        let found = self.there(self.store().get_limited(key, wanted.stored).await).await?;
        let Some(bytes) = found else { return Err(self.gone(key).await) };
        // Megabytes take a processor for long: not on the reactor.
        let hashed = bytes.clone();
        let digest = tokio::task::spawn_blocking(move || Digest::of(&hashed)).await;
        let digest = digest.map_err(|e| Error::failed("reading was cut off").source(e))?;
        if len_u64(&bytes) != wanted.stored || digest != wanted.digest {
            return Err(Error::corrupt(format!("{key} is damaged: its digest differs")).hint(ELSEWHERE));
        }
        Ok(bytes)
    }

    /// Nothing, where this backup expired in a bucket with versions.
    async fn there(&self, read: Result<Option<Bytes>, StoreError>) -> Result<Option<Bytes>> {
        Ok(self.system.unless_went(&self.verdict.id, read.map_err(RepoError::from)).await?)
    }

    /// The error for an object that is not there: expired meanwhile, or lost.
    async fn gone(&self, key: &str) -> Error {
        self.system.gone(&self.verdict.id, key).await.into()
    }

    fn store(&self) -> &Store {
        self.system.repository().store()
    }

    pub(super) fn pack_key(&self, pack: &PackLine) -> String {
        self.system.keys().backup(&pack.backup, BackupObject::Pack(pack.number))
    }

    pub(super) async fn range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let wanted = range.end.saturating_sub(range.start);
        let found = self.there(self.store().get_range(key, range).await).await?;
        let Some(bytes) = found else { return Err(self.gone(key).await) };
        if len_u64(&bytes) != wanted {
            return Err(Error::corrupt(format!("{key} is shorter than its manifest says")).hint(ELSEWHERE));
        }
        Ok(bytes)
    }
}

pub(super) const ELSEWHERE: &str =
    "restore from another backup (--backup) or another repository (--repository)";

impl Packs for StoredBackup {
    async fn table(&self, pack: &PackLine) -> Result<PackTable> {
        if self.is_encrypted() {
            return self.sealed_table(pack).await;
        }
        let key = self.pack_key(pack);
        let damaged = |what: String| Error::corrupt(format!("{key} is damaged: {what}")).hint(ELSEWHERE);
        let place = pack.info.table_range();
        let place = place.ok_or_else(|| damaged("the manifest contradicts itself".to_owned()))?;
        let tail = self.range(&key, place).await?;
        pack.info.vouched_table(&tail).map_err(|e| damaged(e.to_string()))
    }

    async fn read(&self, pack: &PackLine, range: Range<u64>) -> Result<Bytes> {
        if self.is_encrypted() {
            self.sealed_read(pack, range).await
        } else {
            self.range(&self.pack_key(pack), range).await
        }
    }

    async fn whole(&self, pack: &PackLine) -> Result<Option<Bytes>> {
        if self.is_encrypted() { self.sealed_whole(pack).await.map(Some) } else { Ok(None) }
    }
}

/// Files in memory.
struct Memory(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Sink for Memory {
    fn put(&self, file: &File, at: u64, bytes: &[u8]) -> Result<()> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let place = files.get_mut(&file.path).and_then(|f| f.get_mut(at..at.saturating_add(bytes.len())));
        place.map(|p| p.copy_from_slice(bytes)).ok_or_else(|| Error::corrupt("a file is larger than it says"))
    }
}
