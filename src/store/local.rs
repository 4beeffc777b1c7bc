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
use tokio::sync::Semaphore;

use super::backend::{Backend, Created, Listing, ObjectInfo, Opened, Page, Payload};
use super::error::{Fault, StoreErrorKind};
use super::memory::clamp;
use super::url::check_key;
use crate::durable::{self, Creation, DurableError, Owner};

/// Bytes read from a file at once.
const READ_CHUNK: u64 = 4 << 20;
/// File work of one repository at a time, on a disk that has more than enough to do with it.
const MOST_AT_ONCE: usize = 16;

/// A directory of objects.
#[derive(Debug, Clone)]
pub(super) struct Local {
    root: Arc<durable::Root>,
    /// File work of its own at a time. Of a file system that hangs, a network's whose server is gone, no call returns, and whoever gave it up
    /// leaves its thread behind: they must not take those of other repositories.
    places: Arc<Semaphore>,
}

impl Local {
    pub(super) fn new(path: &Path, owner: Option<Owner>) -> Self {
        let root = Arc::new(durable::Root::new(path, owner));
        Self { root, places: Arc::new(Semaphore::new(MOST_AT_ONCE)) }
    }

    /// Runs file work off the reactor.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let this = self.clone();
        let work = move || {
            this.root.note();
            work(&this)
        };
        apart(&self.places, work).await.unwrap_or_else(|error| {
            Err(Fault::permanent(StoreErrorKind::Other, format!("the file work ended early: {error}")))
        })
    }

    /// The fault of an absent root, if that is what it is.
    fn check_root(&self) -> Result<(), Fault> {
        self.root.check().map_err(|error| match error.source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Fault::permanent(
                StoreErrorKind::NoRoot,
                format!("no directory {}", self.root.path().display()),
            ),
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
        self.root.resolve(Path::new(key)).map_err(Fault::from)
    }

    fn create_now(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        let key = Path::new(key);
        let created = self.root.create(key, body.chunks());
        match created.map_err(|error| self.check_root().err().unwrap_or_else(|| error.into()))? {
            Creation::New => Ok(Created::New),
            Creation::Exists => {
                // Our own bytes may be there from a process that was killed before its fsync.
                self.root.sync_existing(key)?;
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
        let path = if dir.is_empty() { self.root.path().to_path_buf() } else { self.path(dir)? };
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

/// Runs file work on a thread that may block; its place is free when it is done, however long that takes, and not when it was given up. Whoever
/// finds none waits, and has a deadline.
async fn apart<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    // It is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok();
    tokio::task::spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    })
    .await
}

/// Reads the range in chunks, each off the reactor. A file that ends early delivers less; the facade notices.
fn read(
    file: File,
    path: PathBuf,
    range: Range<u64>,
    places: Arc<Semaphore>,
) -> impl futures_util::Stream<Item = Result<Bytes, Fault>> {
    let start = (Arc::new(file), path, range, places);
    futures_util::stream::try_unfold(start, |(file, path, range, places)| async move {
        let length = (range.end - range.start).min(READ_CHUNK);
        if length == 0 {
            return Ok(None);
        }
        let from = Arc::clone(&file);
        let bytes = apart(&places, move || {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            from.read_exact_at(&mut bytes, range.start).map(|()| bytes)
        })
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| DurableError::new("read", &path, error))?;
        Ok(Some((Bytes::from(bytes), (file, path, range.start + length..range.end, places))))
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
        let body = read(file, path, range.clone(), Arc::clone(&self.places)).boxed();
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
            this.root.remove(Path::new(&key)).map(drop).map_err(Fault::from)
        })
        .await
    }

    fn anew(&self) -> Option<Arc<dyn Backend>> {
        // What hangs there hangs for this one too.
        Some(Arc::new(Self { root: Arc::new(self.root.anew()), places: Arc::clone(&self.places) }))
    }

    async fn make_root(&self) -> Result<(), Fault> {
        self.run(|this| this.root.make().map_err(Fault::from)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_begins_anew_has_the_places_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(dir.path(), None);
        let all = u32::try_from(MOST_AT_ONCE).unwrap();
        let taken = Arc::clone(&local.places).acquire_many_owned(all).await.unwrap();
        let anew = local.anew().unwrap();
        let head = || tokio::time::timeout(std::time::Duration::from_millis(20), anew.head("none"));
        assert!(head().await.is_err(), "all of them hang");
        drop(taken);
        assert!(anew.head("none").await.unwrap().is_none());
    }

    /// A network file system whose server is gone: calls are given up, and their threads stay.
    #[tokio::test]
    async fn what_hangs_takes_its_own_places_and_no_more_however_often_it_is_given_up() {
        let places = Arc::new(Semaphore::new(2));
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Arc::new(std::sync::Mutex::new(hangs));
        for _ in 0..2 {
            let hangs = Arc::clone(&hangs);
            let call = apart(&places, move || hangs.lock().map(|hangs| hangs.recv().is_ok()).is_ok());
            let given_up = tokio::time::timeout(std::time::Duration::from_millis(20), call).await;
            assert!(given_up.is_err());
        }
        for _ in 0..3 {
            let call = apart(&places, || ());
            let none = tokio::time::timeout(std::time::Duration::from_millis(20), call).await;
            assert!(none.is_err(), "they have the places still");
        }
        release.send(()).unwrap();
        release.send(()).unwrap();
        // It serves again.
        apart(&places, || ()).await.unwrap();
    }
}
