//! What a kind of store must be able to do: one attempt of each call, no retries and no deadlines.
//!
//! The facade above adds those, once for all; the fault injector sits in between. Keys are checked before they get
//! here. Listings are pages in any order; the facade sorts.
//! Invariants: `create` never replaces; "not there" is `None` and means proven; whatever is doubtful is a fault.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;

use super::error::Fault;
use super::s3::Bucket;

/// The body of an object, in pieces that need not be joined.
#[derive(Debug, Clone, Default)]
pub struct Payload(Vec<Bytes>);

impl Payload {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|chunk| u64::try_from(chunk.len()).unwrap_or(u64::MAX)).sum()
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Bytes::is_empty)
    }

    /// The pieces, in order.
    pub fn chunks(&self) -> &[Bytes] {
        &self.0
    }

    /// The body in one piece.
    pub fn to_bytes(&self) -> Bytes {
        match self.0.as_slice() {
            [one] => one.clone(),
            many => many.concat().into(),
        }
    }
}

impl From<Vec<Bytes>> for Payload {
    fn from(chunks: Vec<Bytes>) -> Self {
        Self(chunks)
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(vec![bytes])
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(vec![bytes.into()])
    }
}

impl From<&'static str> for Payload {
    fn from(text: &'static str) -> Self {
        Self(vec![Bytes::from_static(text.as_bytes())])
    }
}

/// What a create found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is new, and it is ours.
    New,
    /// The key is taken: by another writer, or by ourselves if a reply was lost. The caller compares tags.
    Exists,
}

/// What a listing tells of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectInfo {
    /// The key, below the URL of the store.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When the store says it was written: the store's clock, of use only against other times of the same store.
    pub modified: Timestamp,
}

/// What is directly in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Folder {
    /// Its objects, in the order of keys.
    pub objects: Vec<ObjectInfo>,
    /// Names of the folders in it that hold an object, in order, without the `/`.
    pub dirs: Vec<String>,
}

/// An object opened for reading.
pub(super) struct Opened {
    /// Of the whole object.
    pub(super) info: ObjectInfo,
    /// What `body` will deliver.
    pub(super) range: Range<u64>,
    pub(super) body: BoxStream<'static, Result<Bytes, Fault>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.range, self.info)
    }
}

/// What is asked of one page of a listing.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing {
    /// Only keys that begin with this.
    pub(super) prefix: String,
    /// Only keys after this one; a back end may ignore it.
    pub(super) after: Option<String>,
    /// Fold what follows the next `/` into a directory.
    pub(super) fold: bool,
    /// Keys per page, if the caller wants few.
    pub(super) limit: Option<usize>,
    /// Where the last page ended.
    pub(super) token: Option<String>,
}

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<ObjectInfo>,
    /// With `fold`: keys up to and without the `/`.
    pub(super) dirs: Vec<String>,
    /// Present if there is more.
    pub(super) token: Option<String>,
}

/// One kind of store.
#[async_trait]
pub(super) trait Backend: fmt::Debug + Send + Sync {
    /// Creates the object unless the key is taken.
    async fn create(&self, key: &str, body: &Payload) -> Result<Created, Fault>;

    /// Writes without a condition, for stores that have none; only `allow_unsafe_store` leads here.
    async fn overwrite(&self, key: &str, body: &Payload) -> Result<(), Fault>;

    /// Opens the object, or a range of it cut to its size.
    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault>;

    /// Size and time of the object.
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault>;

    /// One page of keys.
    async fn list(&self, listing: &Listing) -> Result<Page, Fault>;

    /// Deletes the object; one that is not there is success.
    async fn delete(&self, key: &str) -> Result<(), Fault>;

    /// Makes the place of the store, where pitr may (a local directory).
    async fn make_root(&self) -> Result<(), Fault>;

    /// The same store for who looks at it anew, if this one goes by what it saw at its first look (a local directory).
    fn anew(&self) -> Option<Arc<dyn Backend>> {
        None
    }

    /// The requests that only S3 has.
    fn bucket(&self) -> Option<&Bucket> {
        None
    }
}
