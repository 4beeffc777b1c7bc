//! `file://`: a directory as a store, over `durable`.
//!
//! A key is a path below the directory. Objects are created without ever replacing one and are durable before the
//! answer; directories are never removed, so a directory counts only if there is an object in it.
//! Invariants: an absent directory of the URL (an unmounted disk) is a fault, never an empty store; listings walk
//! only what can match, in key order, and tolerate concurrent creates and deletes; a link that leads nowhere (another
//! unmounted disk) is a fault. What is created goes to the file system that was there at the first look, or fails.
//! Source of truth: REPOSITORY.md section 2 "Local disk".

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::backend::{Backend, Created, Listing, ObjectInfo, Opened, Page, Payload};
use super::error::{Fault, StoreErrorKind};
use super::memory::clamp;
use super::url::check_key;
use crate::durable::{self, Creation, DurableError, Owner};

/// Bytes read from a file at once.
const READ_CHUNK: u64 = 4 << 20;

/// A directory of objects.
#[derive(Debug, Clone)]
pub(super) struct Local(Arc<durable::Root>);

impl Local {
    pub(super) fn new(path: &Path, owner: Option<Owner>) -> Self {
        Self(Arc::new(durable::Root::new(path, owner)))
    }

    /// Runs file work off the reactor.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let this = self.clone();
        let work = move || {
            this.0.note();
            work(&this)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            Err(Fault::permanent(StoreErrorKind::Other, format!("the file work ended early: {error}")))
        })
    }

    /// The fault of an absent root, if that is what it is.
    fn check_root(&self) -> Result<(), Fault> {
        self.0.check().map_err(|error| match error.source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                Fault::permanent(StoreErrorKind::NoRoot, format!("no directory {}", self.0.path().display()))
            }
            _ => error.into(),
        })
    }

    fn fault(&self, action: &'static str, path: &Path, error: io::Error) -> Fault {
        match self.check_root() {
            Err(fault) => fault,
            Ok(()) => DurableError::new(action, path, error).into(),
        }
    }

    /// What is at a path; `None` if nothing is, which an absent root does not prove.
    fn look(&self, path: &Path) -> Result<Option<Metadata>, Fault> {
        match path.metadata() {
            Ok(found) => Ok(found.is_file().then_some(found)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                self.check_root()?;
                if path.is_symlink() {
                    return Err(self.fault("follow the link", path, error));
                }
                Ok(None)
            }
            Err(error) => Err(self.fault("look at", path, error)),
        }
    }

    fn path(&self, key: &str) -> Result<PathBuf, Fault> {
        self.0.resolve(Path::new(key)).map_err(Fault::from)
    }

    fn create_now(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        let key = Path::new(key);
        let created = self.0.create(key, body.chunks());
        match created.map_err(|error| self.check_root().err().unwrap_or_else(|| error.into()))? {
            Creation::New => Ok(Created::New),
            Creation::Exists => {
                // Our own bytes may be there from a process that was killed before its fsync.
                self.0.sync_existing(key)?;
                Ok(Created::Exists)
            }
        }
    }

    fn head_now(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        let path = self.path(key)?;
        self.look(&path)?.map(|found| describe(key.to_owned(), &path, &found)).transpose()
    }

    fn open_now(&self, key: &str) -> Result<Option<(File, ObjectInfo)>, Fault> {
        let path = self.path(key)?;
        if self.look(&path)?.is_none() {
            return Ok(None);
        }
        match File::open(&path).and_then(|file| file.metadata().map(|found| (file, found))) {
            Ok((file, found)) => Ok(Some((file, describe(key.to_owned(), &path, &found)?))),
            // Deleted between the two looks.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.fault("read", &path, error)),
        }
    }

    fn list_now(&self, listing: &Listing) -> Result<Page, Fault> {
        let (dir, name) = listing.prefix.rsplit_once('/').unwrap_or(("", &listing.prefix));
        let mut page = Page::default();
        self.walk(dir, name, listing, &mut page)?;
        Ok(page)
    }

    /// Adds what is in the directory `dir` and below, in key order. False: the page is full.
    fn walk(&self, dir: &str, begins: &str, listing: &Listing, page: &mut Page) -> Result<bool, Fault> {
        for (name, is_dir) in self.entries(dir, begins)? {
            let key = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let after = listing.after.as_deref().unwrap_or("");
            if !is_dir {
                let path = self.path(&key)?;
                // Deleted since it was listed: leave it out.
                if key.as_str() > after
                    && let Some(found) = self.look(&path)?
                {
                    page.objects.push(describe(key, &path, &found)?);
                }
            } else if listing.fold {
                if self.has_object(&key)? {
                    page.dirs.push(key);
                }
            } else {
                let all = format!("{key}/");
                let before = all.as_str() < after && !after.starts_with(&all);
                if !before && !self.walk(&key, "", listing, page)? {
                    return Ok(false);
                }
            }
            if listing.limit.is_some_and(|limit| page.objects.len() >= limit) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The names in a directory that can be parts of keys, in the order of the keys below them.
    fn entries(&self, dir: &str, begins: &str) -> Result<Vec<(String, bool)>, Fault> {
        let path = if dir.is_empty() { self.0.path().to_path_buf() } else { self.path(dir)? };
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                self.check_root()?;
                return Ok(Vec::new());
            }
            Err(error) => return Err(self.fault("list", &path, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.fault("list", &path, error))?;
            let Some(name) = part_of_key(&entry.file_name(), dir, begins) else { continue };
            let kind = entry.file_type().map_err(|error| self.fault("look at", &entry.path(), error))?;
            let is_dir = kind.is_dir() || (kind.is_symlink() && entry.path().is_dir());
            names.push((name, is_dir));
        }
        names.sort_by_cached_key(|(name, is_dir)| if *is_dir { format!("{name}/") } else { name.clone() });
        Ok(names)
    }

    /// Is there any object below this directory? One that `expire` emptied no longer exists, as on S3.
    fn has_object(&self, dir: &str) -> Result<bool, Fault> {
        let listing = Listing { limit: Some(1), ..Listing::default() };
        let mut page = Page::default();
        self.walk(dir, "", &listing, &mut page)?;
        Ok(!page.objects.is_empty())
    }
}

/// The name, if a key can have it: not our temporary files, not what a file system keeps for itself.
fn part_of_key(name: &OsStr, dir: &str, begins: &str) -> Option<String> {
    let name = name.to_str()?;
    let ours = name.starts_with(begins) && check_key(name).is_ok();
    let foreign = dir.is_empty() && name == "lost+found";
    (ours && !foreign).then(|| name.to_owned())
}

fn describe(key: String, path: &Path, found: &Metadata) -> Result<ObjectInfo, Fault> {
    let written = found.modified().map_err(|error| DurableError::new("look at", path, error))?;
    let modified = Timestamp::try_from(written).unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(ObjectInfo { key, size: found.len(), modified })
}

/// Reads the range in chunks, each off the reactor. A file that ends early delivers less; the facade notices.
fn read(
    file: File,
    path: PathBuf,
    range: Range<u64>,
) -> impl futures_util::Stream<Item = Result<Bytes, Fault>> {
    let start = (Arc::new(file), path, range);
    futures_util::stream::try_unfold(start, |(file, path, range)| async move {
        let length = (range.end - range.start).min(READ_CHUNK);
        if length == 0 {
            return Ok(None);
        }
        let from = Arc::clone(&file);
        let bytes = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            from.read_exact_at(&mut bytes, range.start).map(|()| bytes)
        })
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| DurableError::new("read", &path, error))?;
        Ok(Some((Bytes::from(bytes), (file, path, range.start + length..range.end))))
    })
}

#[async_trait]
impl Backend for Local {
    async fn create(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        let (key, body) = (key.to_owned(), body.clone());
        self.run(move |this| this.create_now(&key, &body)).await
    }

    async fn overwrite(&self, _key: &str, _body: &Payload) -> Result<(), Fault> {
        Err(Fault::permanent(StoreErrorKind::Unsupported, "a local file is never overwritten"))
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
        let (key, path) = (key.to_owned(), self.path(key)?);
        let Some((file, info)) = self.run(move |this| this.open_now(&key)).await? else { return Ok(None) };
        let range = clamp(range, info.size);
        let body = read(file, path, range.clone()).boxed();
        Ok(Some(Opened { info, range, body }))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        let key = key.to_owned();
        self.run(move |this| this.head_now(&key)).await
    }

    async fn list(&self, listing: &Listing) -> Result<Page, Fault> {
        let listing = listing.clone();
        self.run(move |this| this.list_now(&listing)).await
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        let key = key.to_owned();
        self.run(move |this| {
            this.check_root()?;
            this.0.remove(Path::new(&key)).map(drop).map_err(Fault::from)
        })
        .await
    }

    fn anew(&self) -> Option<Arc<dyn Backend>> {
        Some(Arc::new(Self(Arc::new(self.0.anew()))))
    }

    async fn make_root(&self) -> Result<(), Fault> {
        self.run(|this| this.0.make().map_err(Fault::from)).await
    }
}
