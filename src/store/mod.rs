//! The seam between pitr and wherever its bytes are kept: create, read, list, delete.
//!
//! ```text
//!  Store      deadlines, repetition, limits, order of listings, errors with the whole URL
//!    (fault)  feature `testing`: the n-th call fails, loses its reply, stalls, is cut short; (schedule) a seed orders the calls
//!  Backend    local (over durable)   remote (S3, GCS, Azure over object_store)   memory
//! ```
//! Invariants: an object is created or not, never replaced; `None` means that the store proved the absence, while
//! a missing bucket, an unmounted disk, a delete marker and silence are errors; a create whose reply was lost is
//! created again with the same bytes; memory is bounded by the caller's limit; every call ends.
//! Source of truth: REPOSITORY.md section 2. Every kind of store passes the same suite, tests/store_conformance.rs.

#[cfg(feature = "testing")]
pub mod answers;
mod attack;
mod backend;
mod builder;
mod credentials;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod fault;
mod http;
mod local;
mod memory;
mod options;
mod policy;
mod probe;
mod remote;
mod s3;
#[cfg(any(test, feature = "testing"))]
pub mod schedule;
mod tls;
mod url;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

use backend::{Backend, Listing, Opened, Page};
use error::Fault;
use policy::within;

pub use attack::{Attack, Attempt, Content, Outcome, Tried};
pub use backend::{Created, Folder, ObjectInfo, Payload};
pub use credentials::{CredentialsError, parse_credentials_file, static_profile_keys};
pub use error::{Class, StoreError, StoreErrorKind};
pub use options::{Settings, StoreOptions};
pub use policy::Policy;
pub use probe::ProbeReport;
pub use s3::{Protection, Versions};
pub use url::{KEY_LIMIT, KeyError, StoreUrl, UrlError, check_key};

/// The largest object [`Store::get`] returns: a segment of 1 GiB that does not compress, with its header and annex.
pub const OBJECT_LIMIT: u64 = (1 << 30) + (64 << 20);
/// Memory set aside before the first byte of a body has come; what the store claims of its size is not trusted.
const FIRST_BUFFER: u64 = 32 << 20;

/// A place for objects. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    backend: Arc<dyn Backend>,
    url: StoreUrl,
    policy: Policy,
    /// The store has no conditional create and the operator knows it.
    unsafe_create: bool,
    /// A mark of what it was opened with.
    credentials: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.0.url)
    }
}

impl Store {
    /// Opens a store. Nothing is asked of it yet: an unreachable one shows with the first call.
    pub fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, StoreError> {
        let backend: Arc<dyn Backend> = match url {
            StoreUrl::File(path) => Arc::new(local::Local::new(path, options.owner)),
            StoreUrl::Memory(name) => memory::Memory::named(name),
            _ => Arc::new(
                remote::Remote::open(url, options).map_err(|fault| fault.on("open", url.to_string()))?,
            ),
        };
        #[cfg(feature = "testing")]
        let backend = fault::from_environment(backend);
        let (url, policy, unsafe_create) = (url.clone(), options.policy(), options.allow_unsafe_store);
        let credentials = builder::credentials(&url, options);
        Ok(Self(Arc::new(Inner { backend, url, policy, unsafe_create, credentials })))
    }

    /// The same store with other deadlines.
    #[must_use]
    pub fn with_policy(&self, policy: Policy) -> Self {
        self.rebuilt(Arc::clone(&self.0.backend), policy)
    }

    /// The same store for who looks at it anew. A directory goes by the file system that was under its path at the first call: who stays
    /// for long, and asks again whose it is, asks through a new one. Elsewhere it is this one.
    #[must_use]
    pub fn anew(&self) -> Self {
        match self.0.backend.anew() {
            Some(backend) => self.rebuilt(backend, self.0.policy),
            None => self.clone(),
        }
    }

    /// Whether both were opened with the same credentials: those that are found in files and variables.
    pub fn has_credentials_of(&self, other: &Self) -> bool {
        self.0.credentials == other.0.credentials
    }

    /// True for a `file://` store.
    pub fn is_directory(&self) -> bool {
        matches!(self.0.url, StoreUrl::File(_))
    }

    fn rebuilt(&self, backend: Arc<dyn Backend>, policy: Policy) -> Self {
        let Inner { url, unsafe_create, credentials, .. } = &*self.0;
        let (url, unsafe_create, credentials) = (url.clone(), *unsafe_create, *credentials);
        Self(Arc::new(Inner { backend, url, policy, unsafe_create, credentials }))
    }

    /// Where it is.
    pub fn url(&self) -> &StoreUrl {
        &self.0.url
    }

    /// True if the operator accepted a store without conditional create: what pitr promises of stored objects is
    /// then not claimed, and shown as degraded.
    pub fn is_unsafe(&self) -> bool {
        self.0.unsafe_create
    }

    /// Makes the directory of a `file://` store, durably, with its parents. Elsewhere nothing: buckets are made by
    /// whoever pays for them.
    pub async fn make_root(&self) -> Result<(), StoreError> {
        self.0.backend.make_root().await.map_err(|fault| self.failed("make", "", fault))
    }

    /// Creates an object unless its key is taken. [`Created::New`] means stored, durably. [`Created::Exists`] says
    /// nothing about who stored what: it may be our own bytes, the reply to which was lost. The caller compares tags;
    /// if it then finds no object, it waits and creates again.
    ///
    /// Dropped, it leaves the object, or none.
    pub async fn create(&self, key: &str, body: impl Into<Payload>) -> Result<Created, StoreError> {
        let body = body.into();
        self.check(key, "create")?;
        let attempt = async || {
            if self.0.unsafe_create {
                self.create_unsafely(key, &body).await
            } else {
                self.create_once(key, &body).await
            }
        };
        let done = self.0.policy.run(body.len(), attempt).await;
        done.map_err(|fault| self.failed("create", key, fault))
    }

    async fn create_once(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        let deadline = self.0.policy.attempt(body.len());
        // A deadline says nothing about what the store did.
        match tokio::time::timeout(deadline, self.0.backend.create(key, body)).await {
            Ok(done) => done,
            Err(_) => {
                let cause = format!("no answer within {} s", deadline.as_secs());
                Err(Fault::unreachable(cause).outcome_unknown())
            }
        }
    }

    /// For a store that ignores the condition or does not know it: a look before and a look after. Two writers at
    /// once can still both believe that they won; hence the name.
    async fn create_unsafely(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        let deadline = self.0.policy.attempt(body.len());
        if within(deadline, self.0.backend.head(key)).await?.is_some() {
            return Ok(Created::Exists);
        }
        let created = match self.create_once(key, body).await {
            Err(fault) if fault.kind == StoreErrorKind::Unsupported => {
                let overwritten = within(deadline, self.0.backend.overwrite(key, body)).await;
                overwritten.map_err(Fault::outcome_unknown).map(|()| Created::New)?
            }
            created => created?,
        };
        if created == Created::New && self.read_once(key, None, body.len()).await? != Some(body.to_bytes()) {
            return Ok(Created::Exists);
        }
        Ok(created)
    }

    /// The whole object, up to [`OBJECT_LIMIT`]; `None` if the store proves that there is none.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.get_limited(key, OBJECT_LIMIT).await
    }

    /// The whole object; one larger than `limit` is refused before it is read.
    pub async fn get_limited(&self, key: &str, limit: u64) -> Result<Option<Bytes>, StoreError> {
        self.read(key, None, limit).await
    }

    /// The part of the object that lies in `range`: shorter, or empty, where the object ends before it. `None` if the
    /// store proves that there is no object.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let limit = range.end.saturating_sub(range.start);
        if limit == 0 {
            return Ok(self.head(key).await?.map(|_| Bytes::new()));
        }
        self.read(key, Some(range), limit).await
    }

    async fn read(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        self.check(key, "read")?;
        let attempt = || self.read_once(key, range.clone(), limit);
        let expected = range.as_ref().map_or(0, |range| range.end - range.start);
        self.0.policy.run(expected, attempt).await.map_err(|fault| self.failed("read", key, fault))
    }

    async fn read_once(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Option<Bytes>, Fault> {
        let opened = within(self.0.policy.attempt(0), self.0.backend.open(key, range)).await?;
        let Some(opened) = opened else { return Ok(None) };
        let length = opened.range.end.saturating_sub(opened.range.start);
        if length > limit {
            let cause = format!("it has {length} bytes, more than the {limit} that are expected of it");
            return Err(Fault::permanent(StoreErrorKind::TooLarge, cause));
        }
        within(self.0.policy.attempt(length), collect(opened, length)).await.map(Some)
    }

    /// Size and time of an object; `None` if the store proves that there is none.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        self.check(key, "look at")?;
        let attempt = || within(self.0.policy.attempt(0), self.0.backend.head(key));
        self.0.policy.run(0, attempt).await.map_err(|fault| self.failed("look at", key, fault))
    }

    /// Every object whose key begins with `prefix`, in the order of keys. The prefix need not end at a `/`.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.list_after(prefix, None, None).await
    }

    /// Objects whose key begins with `prefix` and sorts after `after`, in the order of keys, at most `limit` of them.
    pub async fn list_after(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let after = after.map(str::to_owned);
        let mut listing = Listing { prefix: prefix.to_owned(), after, limit, ..Listing::default() };
        let mut found = Vec::new();
        while let Some(page) = self.next_page(&mut listing).await? {
            // Some servers ignore where a listing shall start, Azure among them: its small pages would be many.
            let wanted = |info: &ObjectInfo| listing.after.as_ref().is_none_or(|after| info.key > *after);
            if !page.objects.iter().all(wanted) {
                listing.limit = None;
            }
            found.extend(page.objects.into_iter().filter(wanted));
            if limit.is_some_and(|limit| found.len() >= limit) {
                break;
            }
        }
        found.sort();
        // An object written while the pages are read may be on two of them.
        found.dedup_by(|one, other| one.key == other.key);
        found.truncate(limit.unwrap_or(usize::MAX));
        Ok(found)
    }

    /// The names that follow `prefix` up to the next `/`, in order: the folders in a folder. A folder is there if
    /// there is an object in it. `prefix` is empty or ends with `/`.
    pub async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        Ok(self.list_folder(prefix).await?.dirs)
    }

    /// What is directly in a folder, however much is in the folders below. `prefix` is as for [`Self::list_dirs`].
    pub async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        if !(prefix.is_empty() || prefix.ends_with('/')) {
            return Err(self.failed("list", prefix, Fault::usage("a folder's name ends with /")));
        }
        let mut listing = Listing { prefix: prefix.to_owned(), fold: true, ..Listing::default() };
        let mut folder = Folder::default();
        while let Some(page) = self.next_page(&mut listing).await? {
            let strip = |dir: &String| dir.strip_prefix(prefix).map(str::to_owned);
            folder.dirs.extend(page.dirs.iter().filter_map(strip));
            folder.objects.extend(page.objects);
        }
        folder.dirs.sort();
        folder.dirs.dedup();
        folder.objects.sort();
        // As in a listing of all.
        folder.objects.dedup_by(|one, other| one.key == other.key);
        Ok(folder)
    }

    /// The next page, or `None` after the last. Repeats a page that failed, not those before it.
    async fn next_page(&self, listing: &mut Listing) -> Result<Option<Page>, StoreError> {
        // An empty token, which no store gives, marks the end.
        if listing.token.as_deref() == Some("") {
            return Ok(None);
        }
        let prefix = listing.prefix.as_str();
        url::check_prefix(prefix)
            .map_err(|error| self.failed("list", prefix, Fault::usage(error.to_string())))?;
        let attempt = || within(self.0.policy.attempt(0), self.0.backend.list(listing));
        let page = self.0.policy.run(0, attempt).await.map_err(|fault| self.failed("list", prefix, fault))?;
        listing.token = Some(page.token.clone().unwrap_or_default());
        Ok(Some(page))
    }

    /// Deletes an object, durably; one that is not there is success. For `expire` alone: nothing else may call it, and
    /// `tests/tidy.rs` looks.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.check(key, "delete")?;
        let attempt = || within(self.0.policy.attempt(0), self.0.backend.delete(key));
        self.0.policy.run(0, attempt).await.map_err(|fault| self.failed("delete", key, fault))
    }

    /// Removes an object that this process made to learn something of the store. Its name says so, or it stays.
    pub async fn remove_probe(&self, key: &str) -> Result<(), StoreError> {
        let name = key.rsplit('/').next().unwrap_or_default();
        if !name.starts_with("probe-") {
            return Err(self.failed("remove", key, Fault::usage("it is no probe")));
        }
        self.delete(key).await
    }

    /// What the bucket does with an object that is overwritten or deleted; `None` if that is nothing this kind of store can be
    /// asked.
    pub async fn protection(&self) -> Result<Option<Protection>, StoreError> {
        let Some(bucket) = self.0.backend.bucket() else { return Ok(None) };
        // Nothing depends on it: it is asked once.
        match within(self.0.policy.attempt(0), bucket.protection()).await {
            Ok(protection) => Ok(Some(protection)),
            // Servers that keep no versions do not know the question.
            Err(fault) if fault.kind == StoreErrorKind::Unsupported => Ok(None),
            Err(fault) => Err(self.failed("ask for the settings of", "", fault)),
        }
    }

    fn check(&self, key: &str, action: &'static str) -> Result<(), StoreError> {
        check_key(key).map_err(|error| self.failed(action, key, Fault::usage(error.to_string())))
    }

    fn failed(&self, action: &'static str, key: &str, fault: Fault) -> StoreError {
        let url = &self.0.url;
        fault.on(action, if key.is_empty() { url.to_string() } else { format!("{url}/{key}") })
    }
}

/// The body in one piece, exactly as long as was announced.
async fn collect(opened: Opened, length: u64) -> Result<Bytes, Fault> {
    let mut body = opened.body;
    let Some(first) = body.next().await.transpose()? else {
        return if length == 0 { Ok(Bytes::new()) } else { Err(cut_short(0, length)) };
    };
    let size = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    // One piece, as from a local file or memory: no copy.
    let mut whole = if size(&first) == length {
        first
    } else {
        let mut joined = BytesMut::with_capacity(usize::try_from(length.min(FIRST_BUFFER)).unwrap_or(0));
        joined.extend_from_slice(&first);
        while let Some(piece) = body.next().await.transpose()? {
            joined.extend_from_slice(&piece);
            if size(&joined) > length {
                break;
            }
        }
        joined.freeze()
    };
    if size(&whole) == length { Ok(std::mem::take(&mut whole)) } else { Err(cut_short(size(&whole), length)) }
}

fn cut_short(got: u64, length: u64) -> Fault {
    Fault::unreachable(format!("{got} bytes came instead of {length}"))
}

#[cfg(test)]
mod tests;
