//! Creating and reading the small JSON objects: put if absent, and find out who was first.
//!
//! A create that finds its key taken reads what is there: the same bytes are our own, whose reply was lost, or those of a writer
//! who means the same; others are handed to the caller, who decides. An object that is gone when it is read is created again.
//! In a sealed folder every document is closed with a mac and read with one: here, and nowhere else.
//! Source of truth: FORMAT.md, "Writing an object".

use std::time::Duration;

use bytes::Bytes;

use super::objects::{Closing, Document, DocumentError, MAX_DOCUMENT, decode, decode_as, encode, encode_as};
use super::{RepoError, Repository, System};
use crate::clock;
use crate::store::{Created, Payload};

/// How often an object may be absent after a create said that it exists: a delete races with us.
pub(super) const ATTEMPTS: u32 = 5;
/// Pause before creating again.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// What a create of a document came to.
#[derive(Debug)]
pub(super) enum Put<D> {
    /// What is stored are our bytes.
    Ours,
    /// Somebody else was first, with this.
    Theirs(D),
}

impl System {
    /// What the documents of this folder end with.
    pub(super) fn closing<'a>(&'a self, key: &'a str) -> Closing<'a> {
        match self.seal_key() {
            None => Closing::Sum,
            Some(seal) => Closing::Mac { seal, place: key },
        }
    }

    /// Creates `document` at `key`, or reads what is there.
    pub(super) async fn put_document<D: Document>(
        &self,
        key: &str,
        document: &D,
    ) -> Result<Put<D>, RepoError> {
        self.repository.put_document(key, document, self.closing(key)).await
    }

    /// The document at `key`; `None` if the store proves that there is none.
    pub(super) async fn get_document<D: Document>(&self, key: &str) -> Result<Option<D>, RepoError> {
        let bytes = self.repository.store().get_limited(key, MAX_DOCUMENT).await?;
        bytes.map(|bytes| self.document(key, &bytes)).transpose()
    }

    /// The document at a key below `dir` that a listing has; `None` only if another one has it no longer. Expiry lets go of what is taken
    /// for gone, and a single denial by a store that is not well must not do that.
    pub(super) async fn get_listed<D: Document>(&self, key: &str, dir: &str) -> Result<Option<D>, RepoError> {
        if let Some(document) = self.get_document(key).await? {
            return Ok(Some(document));
        }
        if self.store().list(dir).await?.iter().all(|object| object.key != key) {
            return Ok(None);
        }
        self.get_document(key).await?.map(Some).ok_or_else(|| self.repository.unstable(key))
    }

    /// The number of the next one after `key`, which has `number`. There is none after the last: pitr never gets there, others can.
    pub(super) fn after(&self, number: u32, key: &str) -> Result<u32, RepoError> {
        let last =
            || self.repository.corrupt(key, &"its number is the last there is, which pitr never reaches");
        number.checked_add(1).ok_or_else(last)
    }

    /// The document that `bytes`, read at `key`, are.
    pub(super) fn document<D: Document>(&self, key: &str, bytes: &[u8]) -> Result<D, RepoError> {
        decode_as(bytes, self.closing(key)).map_err(|e| self.repository.document_error(key, &e))
    }
}

impl Repository {
    /// Creates `document` at `key`, or reads what is there.
    pub(super) async fn put_document<D: Document>(
        &self,
        key: &str,
        document: &D,
        closing: Closing<'_>,
    ) -> Result<Put<D>, RepoError> {
        match self.put_bytes(key, encode_as(document, closing).into()).await? {
            None => Ok(Put::Ours),
            Some(theirs) => {
                decode_as(&theirs, closing).map(Put::Theirs).map_err(|e| self.document_error(key, &e))
            }
        }
    }

    /// As [`Self::put_document`], for what belongs to no folder, or says itself whether its folder is sealed.
    pub(super) async fn put_clear<D: Document>(&self, key: &str, document: &D) -> Result<Put<D>, RepoError> {
        match self.put_bytes(key, encode(document).into()).await? {
            None => Ok(Put::Ours),
            Some(theirs) => decode(&theirs).map(Put::Theirs).map_err(|e| self.document_error(key, &e)),
        }
    }

    /// Creates a small object; `Some` are the bytes of another one that is there instead.
    pub(super) async fn put_bytes(&self, key: &str, bytes: Bytes) -> Result<Option<Bytes>, RepoError> {
        if crate::codec::len_u64(&bytes) > MAX_DOCUMENT {
            return Err(RepoError::Unwritable {
                key: key.to_owned(),
                what: format!("it would have {} bytes, and nobody could read it", bytes.len()),
            });
        }
        for _ in 0..ATTEMPTS {
            if self.store().create(key, bytes.clone()).await? == Created::New {
                return Ok(None);
            }
            match self.store().get_limited(key, MAX_DOCUMENT).await? {
                Some(theirs) if theirs == bytes => return Ok(None),
                Some(theirs) => return Ok(Some(theirs)),
                None => clock::sleep(PAUSE).await,
            }
        }
        Err(self.unstable(key))
    }

    /// Creates a large object whose name nobody else writes; succeeds if exactly these bytes are there afterwards.
    pub(super) async fn put_exact(&self, key: &str, body: Payload) -> Result<(), RepoError> {
        for _ in 0..ATTEMPTS {
            if self.store().create(key, body.clone()).await? == Created::New {
                return Ok(());
            }
            let Some(info) = self.store().head(key).await? else {
                clock::sleep(PAUSE).await;
                continue;
            };
            if info.size != body.len() {
                return Err(self.conflict(key));
            }
            match self.store().get_limited(key, body.len()).await? {
                Some(theirs) if theirs == body.to_bytes() => return Ok(()),
                Some(_) => return Err(self.conflict(key)),
                None => clock::sleep(PAUSE).await,
            }
        }
        Err(self.unstable(key))
    }

    pub(super) fn document_error(&self, key: &str, error: &DocumentError) -> RepoError {
        match error {
            DocumentError::NewerFormat { .. } => {
                RepoError::NewerFormat { repository: self.name().to_owned(), what: format!("{key}: {error}") }
            }
            DocumentError::Forged { .. } => self.forged(key, error),
            DocumentError::Damaged { .. } | DocumentError::OtherKind { .. } => self.corrupt(key, error),
        }
    }
}
