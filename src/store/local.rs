//! `file://`: a directory as a store, over `durable`.
//!
//! A key is a path below the directory. Objects are created without ever replacing one and are durable before the
//! answer; directories are never removed, so a directory counts only if there is an object in it.
//! Invariants: an absent directory of the URL (an unmounted disk) is a fault, never an empty store; listings walk
//! only what can match, in key order, and tolerate concurrent creates and deletes; they come in pages, so that a deadline is one of a page
//! and not of all (a network's file system takes a millisecond for each file); a link that leads nowhere (another unmounted disk) is a
//! fault. What is created goes to the file system that was there at the first look, or fails.
//! Source of truth: REPOSITORY.md section 2 "Local disk".

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// After so many looks at files and folders a page of a listing may end.
const PAGE_LOOKS: usize = 1_000;
/// And after so long. Each page reads the folder that it goes on in again: on a fast disk one page is best.
const PAGE_TIME: Duration = Duration::from_secs(1);
/// Sorts behind every part of a key, which is ASCII: a folder's name with it lies behind all that is in the folder.
const BEHIND: char = char::MAX;

/// How much of a listing is one page.
#[derive(Debug, Clone, Copy)]
struct Pace {
    looks: usize,
    time: Duration,
}

/// A directory of objects.
#[derive(Debug, Clone)]
pub(super) struct Local {
    root: Arc<durable::Root>,
    pace: Pace,
    /// File work of its own at a time. Of a file system that hangs, a network's whose server is gone, no call returns, and whoever gave it up
    /// leaves its thread behind: they must not take those of other repositories.
    places: Arc<Semaphore>,
}

impl Local {
    pub(super) fn new(path: &Path, owner: Option<Owner>) -> Self {
        let root = Arc::new(durable::Root::new(path, owner));
        let pace = Pace { looks: PAGE_LOOKS, time: PAGE_TIME };
        Self { root, pace, places: Arc::new(Semaphore::new(MOST_AT_ONCE)) }
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
        let mut walk = Walk::new(listing, self.pace);
        let done = self.walk(dir, name, &mut walk)?;
        let mut page = walk.page;
        page.token = (!done).then_some(walk.at);
        Ok(page)
    }

    /// Adds what is in the directory `dir` and below, in key order. False: the page is full.
    fn walk(&self, dir: &str, begins: &str, walk: &mut Walk<'_>) -> Result<bool, Fault> {
        walk.looks = walk.looks.saturating_add(1);
        for (name, is_dir) in self.entries(dir, begins)? {
            let key = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if walk.has_passed(&key, is_dir) {
                continue;
            }
            if walk.is_full() {
                return Ok(false);
            }
            if !is_dir {
                if let Some(found) = self.file(&key, walk)? {
                    walk.page.objects.push(found);
                }
            } else if walk.listing.fold {
                match self.seek(&key, walk)? {
                    Sought::Found => walk.page.dirs.push(key.clone()),
                    Sought::Nothing => {}
                    Sought::Unfinished => return Ok(false),
                }
                walk.reach_end_of(&key);
            } else {
                if !self.walk(&key, "", walk)? {
                    return Ok(false);
                }
                walk.reach_end_of(&key);
            }
        }
        Ok(true)
    }

    /// The object at `key`, which the walk has reached then; `None` if it was deleted since it was listed.
    fn file(&self, key: &str, walk: &mut Walk<'_>) -> Result<Option<ObjectInfo>, Fault> {
        walk.looks = walk.looks.saturating_add(1);
        walk.reach(key.to_owned());
        let path = self.path(key)?;
        self.look(&path)?.map(|found| describe(key.to_owned(), &path, &found)).transpose()
    }

    /// Is there any object below this directory? One that `expire` emptied no longer exists, as on S3.
    fn seek(&self, dir: &str, walk: &mut Walk<'_>) -> Result<Sought, Fault> {
        walk.looks = walk.looks.saturating_add(1);
        for (name, is_dir) in self.entries(dir, "")? {
            let key = format!("{dir}/{name}");
            if walk.has_passed(&key, is_dir) {
                continue;
            }
            if walk.is_full() {
                return Ok(Sought::Unfinished);
            }
            if !is_dir {
                if self.file(&key, walk)?.is_some() {
                    return Ok(Sought::Found);
                }
                continue;
            }
            match self.seek(&key, walk)? {
                Sought::Nothing => walk.reach_end_of(&key),
                other => return Ok(other),
            }
        }
        Ok(Sought::Nothing)
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
}

/// A listing on its way through the directories.
struct Walk<'a> {
    listing: &'a Listing,
    pace: Pace,
    began: Instant,
    /// Up to here pages before this one came, or nobody wants to know.
    from: &'a str,
    /// Up to here this one came; empty if it is not beyond `from`.
    at: String,
    looks: usize,
    page: Page,
}

impl<'a> Walk<'a> {
    fn new(listing: &'a Listing, pace: Pace) -> Self {
        let began = Instant::now();
        let from = listing.after.as_deref().max(listing.token.as_deref()).unwrap_or("");
        Self { listing, pace, began, from, at: String::new(), looks: 0, page: Page::default() }
    }

    /// Nothing at this key, or in this directory, is asked for any more.
    fn has_passed(&self, key: &str, is_dir: bool) -> bool {
        if !is_dir {
            return key <= self.from;
        }
        let all = format!("{key}/");
        all.as_str() < self.from && !self.from.starts_with(&all)
    }

    fn reach(&mut self, place: String) {
        // What is looked through again is no way forward.
        if place.as_str() > self.from {
            self.at = place;
        }
    }

    fn reach_end_of(&mut self, dir: &str) {
        self.reach(format!("{dir}/{BEHIND}"));
    }

    fn is_full(&self) -> bool {
        let enough = self.listing.limit.is_some_and(|limit| self.page.objects.len() >= limit);
        let long = self.looks >= self.pace.looks && self.began.elapsed() >= self.pace.time;
        // A page that comes no further would be followed by itself for ever.
        !self.at.is_empty() && (enough || long)
    }
}

/// Whether a directory holds an object.
enum Sought {
    Found,
    Nothing,
    /// The page is full, and it is not known yet.
    Unfinished,
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
        let (root, places) = (Arc::new(self.root.anew()), Arc::clone(&self.places));
        Some(Arc::new(Self { root, pace: self.pace, places }))
    }

    async fn make_root(&self) -> Result<(), Fault> {
        self.run(|this| this.root.make().map_err(Fault::from)).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Policy, Store, StoreOptions};
    use super::*;

    #[tokio::test]
    async fn whoever_begins_anew_has_the_places_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(dir.path(), None);
        let all = u32::try_from(MOST_AT_ONCE).unwrap();
        let taken = Arc::clone(&local.places).acquire_many_owned(all).await.unwrap();
        let anew = local.anew().unwrap();
        let head = || tokio::time::timeout(Duration::from_millis(20), anew.head("none"));
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
            let given_up = tokio::time::timeout(Duration::from_millis(20), call).await;
            assert!(given_up.is_err());
        }
        for _ in 0..3 {
            let call = apart(&places, || ());
            let none = tokio::time::timeout(Duration::from_millis(20), call).await;
            assert!(none.is_err(), "they have the places still");
        }
        release.send(()).unwrap();
        release.send(()).unwrap();
        // It serves again.
        apart(&places, || ()).await.unwrap();
    }

    /// A directory on a network that takes 100 ms to look at a file.
    #[derive(Debug)]
    struct Slow(Local);

    #[async_trait]
    impl Backend for Slow {
        async fn list(&self, listing: &Listing) -> Result<Page, Fault> {
            let page = self.0.list(listing).await?;
            let objects = u32::try_from(page.objects.len()).unwrap();
            tokio::time::sleep(Duration::from_millis(100) * objects).await;
            Ok(page)
        }
        async fn create(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
            self.0.create(key, body).await
        }
        async fn overwrite(&self, key: &str, body: &Payload) -> Result<(), Fault> {
            self.0.overwrite(key, body).await
        }
        async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
            self.0.open(key, range).await
        }
        async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
            self.0.head(key).await
        }
        async fn delete(&self, key: &str) -> Result<(), Fault> {
            self.0.delete(key).await
        }
        async fn make_root(&self) -> Result<(), Fault> {
            self.0.make_root().await
        }
    }

    /// Files of these names, and a directory whose pages end after so many looks.
    fn with_files(dir: &Path, names: &[String], looks: usize) -> Local {
        for name in names {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            durable::write_new(&path, b"x", 0o600, None).unwrap();
        }
        Local { pace: Pace { looks, time: Duration::ZERO }, ..Local::new(dir, None) }
    }

    /// All of a listing, and how many pages it took.
    async fn pages(local: &Local, prefix: &str, fold: bool) -> (Vec<String>, Vec<String>, usize) {
        let mut listing = Listing { prefix: prefix.to_owned(), fold, ..Listing::default() };
        let (mut objects, mut dirs, mut count) = (Vec::new(), Vec::new(), 0);
        loop {
            let page = local.list(&listing).await.unwrap();
            objects.extend(page.objects.into_iter().map(|info| info.key));
            dirs.extend(page.dirs);
            count += 1;
            let further = page.token.is_none() || page.token != listing.token;
            assert!(count < 1_000 && further, "it comes to no end at {:?}", page.token);
            match page.token {
                Some(token) => listing.token = Some(token),
                None => return (objects, dirs, count),
            }
        }
    }

    #[tokio::test]
    async fn pages_end_anywhere_and_nothing_is_lost_or_listed_twice_between_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut names: Vec<String> = (0..40).map(|n| format!("a/{}/{n:02}", n / 7)).collect();
        names.extend(["a-b/1", "a.b", "a/0-1", "a/0.1", "a/5/deep/er/1", "b/1", "c"].map(str::to_owned));
        for looks in [1, 2, 3, 5, 8, 1_000] {
            let local = with_files(dir.path(), &names, looks);
            for empty in ["a/1-/x/y", "a/3/z/z", "b/e/1", "b/e/2", "b/e/3", "e/1/1", "e/2/2", "e/3"] {
                std::fs::create_dir_all(dir.path().join(empty)).unwrap();
            }
            names.sort();
            let (objects, _, count) = pages(&local, "", false).await;
            assert_eq!(objects, names, "{looks}");
            assert_eq!(count > 1, looks < 1_000, "{looks}: {count}");
            let below: Vec<String> = names.iter().filter(|name| name.starts_with("a/")).cloned().collect();
            assert_eq!(pages(&local, "a/", false).await.0, below);
            let (objects, dirs, count) = pages(&local, "", true).await;
            assert_eq!(
                (objects, dirs),
                (vec!["a.b".into(), "c".into()], vec!["a-b".into(), "a".into(), "b".into()])
            );
            assert_eq!(count > 1, looks < 9, "{looks}: {count}");
            assert_eq!(pages(&local, "a/", true).await.1, ["a/0", "a/1", "a/2", "a/3", "a/4", "a/5"]);
            names.iter().for_each(|name| drop(std::fs::remove_file(dir.path().join(name))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_may_take_longer_than_a_deadline_that_each_page_keeps() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..1_500).map(|n| format!("wal/{}/{n:04}", n / 256)).collect();
        let local = with_files(dir.path(), &names, 200);
        let plain = Store::open(&"memory:".parse().unwrap(), &StoreOptions::default()).unwrap();
        let policy = Policy { base: Duration::from_secs(60), ..Policy::default() }.once();
        let store = plain.rebuilt(Arc::new(Slow(local)), policy);
        let found = store.list("wal/").await.unwrap();
        assert_eq!(found.into_iter().map(|info| info.key).collect::<Vec<_>>(), names);
        let rest = store.list_after("wal/", Some("wal/5/1400"), None).await.unwrap();
        assert_eq!(rest.len(), 99);
        assert_eq!(store.list_after("wal/", Some("wal/1/0300"), Some(3)).await.unwrap().len(), 3);
    }
}
