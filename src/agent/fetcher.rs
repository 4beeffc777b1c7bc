//! What recovery will ask for next: fetched, checked and decompressed before it does.
//!
//! ```text
//!  restore_command ─► client ─► "spooled" ─► rename onto pg_wal/RECOVERYXLOG            the file is private: nothing else names it
//!                                   ▲
//!  pg_wal/pitr-spool/  NAME of the next segments of the route, each whole and synced ◄── as many as there is room for
//!                      and the histories that were asked for: they will be again, when recovery ends
//! ```
//! Invariants: the spool is only what its living owner says of it: it holds a lock there, and begins and ends with an empty directory. What
//! is kept ahead can never be answered otherwise later: no absence, no copy that may grow (RECOVERY.md 12), everything cut as the
//! route says (RECOVERY.md 7). What is handed over is forgotten, so a second question is answered anew. Bounded by number, by bytes, and by
//! the room on the disk, which replay needs more.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::account::Rest;
use super::system_of;
use super::wire::Errand;
use crate::durable;
use crate::error::{Error, Result};
use crate::ops::archive::{Course, Got, Route, Source, get_ahead, get_file};
use crate::repo::Repository;
use crate::repo::transfer::place_of;
use crate::wal::{Lsn, SegmentName, SystemId, TimelineId, WalFileName};

/// The spool below the data directory.
pub const SPOOL: &str = "pg_wal/pitr-spool";
/// Most files ahead, and most bytes of them.
const MOST_FILES: u64 = 8;
const MOST_BYTES: u64 = 256 << 20;
/// Segments that must still fit on the disk beside those ahead.
const ROOM: u64 = 8;
/// Longest rest after the course of a recovery could not be read.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// Who has waited for a fetch for so long, and it failed, need not wait for another one that asks the same repositories.
pub(super) const ENOUGH: Duration = Duration::from_secs(10);
/// After which silence a recovery is taken to be over.
const IDLE: Duration = Duration::from_secs(60);

/// Whether the server of that directory has still to recover; `xlogrecovery.c` removes the file when recovery ends.
pub fn is_recovering(data_dir: &Path) -> bool {
    ["recovery.signal", "standby.signal"].iter().any(|name| data_dir.join(name).exists())
}

/// Whether somebody fetches ahead for the server of that directory.
pub fn is_owned(data_dir: &Path) -> bool {
    let lock = File::open(data_dir.join(SPOOL).join(Spool::LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Removes what a process that was killed left in the spool, unless somebody has it, or the server recovers and may want it just now.
pub fn sweep(data_dir: &Path) {
    let spool = data_dir.join(SPOOL);
    let Ok(found) = std::fs::metadata(&spool) else { return };
    // Of a clock that was set back it is old enough when that has passed.
    let idle = || found.modified().ok().and_then(|then| then.elapsed().ok()).is_some_and(|age| age >= IDLE);
    if found.is_dir() && (!is_recovering(data_dir) || idle()) {
        // It empties it, and is dropped.
        let _ = Spool::take(&spool);
    }
}

/// Fetches for the recovery of one data directory.
#[derive(Debug)]
pub struct Fetcher {
    repositories: Vec<Repository>,
    data_dir: PathBuf,
    now: Mutex<Now>,
}

/// What is under way.
#[derive(Debug, Default)]
struct Now {
    spool: Option<Arc<Spool>>,
    recovery: Option<Arc<Recovery>>,
    /// Recoveries so far: each has names of its own in the spool, since fetches of the one before may still end.
    count: u64,
}

/// One recovery: its spool, and what lies in it.
#[derive(Debug)]
struct Recovery {
    errand: Errand,
    repositories: Vec<Repository>,
    /// The same, for what is fetched ahead.
    sources: Vec<Source>,
    system: Option<SystemId>,
    route: Route,
    spool: Arc<Spool>,
    number: u64,
    /// Fetches so far: each has a place of its own.
    fetches: AtomicU64,
    state: Mutex<State>,
    ended: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    course: Option<Course>,
    /// Somebody is finding out.
    seeking: bool,
    rest: Rest,
    /// The segment that was asked for last.
    reached: Option<SegmentName>,
    files: BTreeMap<WalFileName, Slot>,
    /// What was handed over last. Whoever asked has taken it when the next is handed over, or was killed, or could not.
    handed: Option<PathBuf>,
    /// What could not be fetched since a store gave no answer, and what was to be said of it.
    unanswered: BTreeMap<WalFileName, String>,
    /// Nothing is fetched ahead from here on, until recovery got there by itself.
    end: Option<SegmentName>,
    asked: Instant,
}

impl State {
    /// Whether it is what recovery asks for now, or among the next. By place alone, as a segment may be looked for on several timelines.
    fn is_wanted(&self, name: WalFileName) -> bool {
        let (Some(place), Some(reached)) = (place_of(name), self.reached) else { return true };
        let last = self
            .course
            .as_ref()
            .and_then(|course| (0..most_ahead(course)).try_fold(reached, |segment, _| course.after(segment)));
        place >= reached.place() && last.is_none_or(|last| place <= last.place())
    }

    /// What is under way is dropped when it lands.
    fn drop_unwanted(&mut self) {
        let mut files = std::mem::take(&mut self.files);
        let mut unanswered = std::mem::take(&mut self.unanswered);
        unanswered.retain(|name, _| self.is_wanted(*name));
        self.unanswered = unanswered;
        files.retain(|name, slot| match slot {
            Slot::Ready(path) if !self.is_wanted(*name) => {
                remove(path);
                false
            }
            _ => true,
        });
        self.files = files;
    }

    fn segments(&self) -> usize {
        self.files.keys().filter(|name| matches!(name, WalFileName::Segment(_))).count()
    }
}

/// Segments that may lie ahead.
fn most_ahead(course: &Course) -> u64 {
    (MOST_BYTES / course.segment_bytes().max(1)).clamp(1, MOST_FILES)
}

#[derive(Debug, PartialEq, Eq)]
enum Slot {
    UnderWay,
    /// It lies there.
    Ready(PathBuf),
}

impl Fetcher {
    /// A fetcher for the server in `data_dir`.
    pub fn new(repositories: Vec<Repository>, data_dir: PathBuf) -> Self {
        Self { repositories, data_dir, now: Mutex::default() }
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Fetches a file; where it lies, or `None` for proven absence.
    ///
    /// # Errors
    /// As [`get_file`], and if the spool cannot be used.
    pub async fn get(&self, name: WalFileName, errand: &Errand) -> Result<Option<PathBuf>> {
        let recovery = self.recovery(errand)?;
        let found = recovery.get(name).await;
        // However long it took: whoever asked takes it now.
        recovery.lock().asked = Instant::now();
        found
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recovery(&self, errand: &Errand) -> Result<Arc<Recovery>> {
        let mut now = self.lock();
        // Somebody may have tidied up in pg_wal.
        let same = |recovery: &&Arc<Recovery>| recovery.errand == *errand && recovery.spool.is_there();
        if let Some(recovery) = now.recovery.as_ref().filter(same) {
            return Ok(Arc::clone(recovery));
        }
        let spool = match &now.spool {
            Some(spool) if spool.is_there() => Arc::clone(spool),
            _ => Arc::new(Spool::take(&self.data_dir.join(SPOOL))?),
        };
        now.spool = Some(Arc::clone(&spool));
        now.count = now.count.saturating_add(1);
        let recovery = Arc::new(Recovery::begin(self, errand, spool, now.count)?);
        now.recovery = Some(Arc::clone(&recovery));
        Ok(recovery)
    }

    /// Begins to fetch what follows `segment`. Needs a runtime.
    ///
    /// # Errors
    /// If the spool cannot be used, or is another process's.
    pub fn begin(&self, segment: SegmentName, errand: &Errand) -> Result<()> {
        let recovery = self.recovery(errand)?;
        recovery.reach(WalFileName::Segment(segment));
        recovery.seek_course();
        Ok(())
    }

    /// Lets go of the spool.
    pub fn end(&self) {
        let mut now = self.lock();
        (now.recovery, now.spool) = (None, None);
    }

    /// Ends a recovery that has not asked for a while; true if none is left.
    pub fn rest(&self) -> bool {
        // What somebody waits for, or is being fetched, may take longer than that.
        let idle = |recovery: &Arc<Recovery>| {
            Arc::strong_count(recovery) == 1 && recovery.lock().asked.elapsed() >= IDLE
        };
        let mut now = self.lock();
        let over = now.recovery.as_ref().is_none_or(idle);
        if over {
            (now.recovery, now.spool) = (None, None);
        }
        over
    }
}

impl Recovery {
    fn begin(fetcher: &Fetcher, errand: &Errand, spool: Arc<Spool>, number: u64) -> Result<Self> {
        let named = |repository: &&Repository| match &errand.repository {
            Some(name) => repository.name() == name,
            None => true,
        };
        let repositories: Vec<Repository> = fetcher.repositories.iter().filter(named).cloned().collect();
        let unclear = |what: &str| Error::usage(format!("{what} of the errand cannot be understood"));
        if repositories.is_empty() {
            return Err(unclear("the repository"));
        }
        if let Some(seal) = &errand.seal
            && !repositories.iter().all(|repository| repository.believes(seal))
        {
            return Err(Error::usage("the asker believes another seal key than the agent's configuration"));
        }
        let until = errand.until.as_deref().map(str::parse::<Lsn>).transpose();
        let route = Route {
            timeline: match errand.timeline {
                Some(n) => Some(TimelineId::new(n).ok_or_else(|| unclear("the timeline"))?),
                None => None,
            },
            until: until.map_err(|_| unclear("the end"))?,
        };
        let system = errand.system.map(SystemId::new).or_else(|| system_of(&fetcher.data_dir));
        let source = |repository: &Repository| Source::new(repository.clone(), system, route);
        Ok(Self {
            errand: errand.clone(),
            sources: repositories.iter().map(source).collect(),
            repositories,
            system,
            route,
            spool,
            number,
            fetches: AtomicU64::new(0),
            state: Mutex::new(State {
                course: None,
                seeking: false,
                rest: Rest::default(),
                reached: None,
                files: BTreeMap::new(),
                handed: None,
                unanswered: BTreeMap::new(),
                end: None,
                asked: Instant::now(),
            }),
            ended: watch::Sender::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches a file; where it lies.
    async fn get(self: &Arc<Self>, name: WalFileName) -> Result<Option<PathBuf>> {
        self.reach(name);
        self.seek_course();
        let taken = self.take(name).await.inspect_err(|_| self.make_room())?;
        if let Some(path) = taken {
            durable::crash_point("agent-hands-over");
            self.hand_over(&path);
            self.go_on(name);
            return Ok(Some(path));
        }
        // The next ones are on their way while this one is; at the end of WAL there are none, however often it is asked.
        if let WalFileName::Segment(segment) = name {
            self.fetch_ahead(segment);
        }
        let path = self.file(name);
        match get_file(&self.repositories, name, &path, self.system, self.route, || true).await {
            Ok(Got::Absent) => Ok(None),
            Ok(Got::Delivered { .. }) => {
                self.hand_over(&path);
                self.go_on(name);
                Ok(Some(path))
            }
            Err(e) => {
                self.make_room();
                Err(e)
            }
        }
    }

    /// The one before goes, if it was left lying there: nobody else knows of it.
    fn hand_over(&self, path: &Path) {
        let before = self.lock().handed.replace(path.to_owned());
        before.iter().for_each(|before| remove(before));
    }

    /// Segments that lie ahead must not take the room of what is asked for now, which the asker fetches by itself next.
    fn make_room(&self) {
        let mut state = self.lock();
        let Some(segment) = state.course.as_ref().map(Course::segment_bytes) else { return };
        if self.spool.has_room(segment.saturating_mul(2)) {
            return;
        }
        state.files.retain(|name, slot| match (name, slot) {
            (WalFileName::Segment(_), Slot::Ready(path)) => {
                remove(path);
                false
            }
            _ => true,
        });
    }

    /// Where a file lies once it is fetched. It may be fetched again before its asker has taken the first one away, and none is another's to
    /// remove: each has a place of its own.
    fn file(&self, name: WalFileName) -> PathBuf {
        let fetch = self.fetches.fetch_add(1, Ordering::Relaxed);
        self.spool.path.join(format!("{}.{fetch}-{name}", self.number))
    }

    /// Recovery asks for `name`: segments before it are of no use any more; nor are those far ahead, if it goes back.
    fn reach(&self, name: WalFileName) {
        let mut state = self.lock();
        state.asked = Instant::now();
        let WalFileName::Segment(segment) = name else { return };
        state.reached = Some(segment);
        state.drop_unwanted();
    }

    /// `name` was there: what comes after it may be, whatever was taken for the end before it. A history is asked for once more when
    /// recovery ends, where doubt is fatal: it is kept ready.
    fn go_on(self: &Arc<Self>, name: WalFileName) {
        match name {
            WalFileName::Segment(segment) => {
                let mut state = self.lock();
                if state.end.is_some_and(|end| end.place() <= segment.place()) {
                    state.end = None;
                }
                drop(state);
                self.fetch_ahead(segment);
            }
            WalFileName::History(_) => self.begin_fetch(&mut self.lock(), name),
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => {}
        }
    }

    /// Finds out where recovery goes, beside what is asked for meanwhile: nobody waits for it, and once it is known fetching ahead begins.
    fn seek_course(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.course.is_some() || state.seeking || !state.rest.is_over() {
            return;
        }
        state.seeking = true;
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let course = Course::of(&this.sources).await;
            this.found_course(course);
        });
    }

    fn found_course(self: &Arc<Self>, course: Result<Option<Course>>) {
        let mut state = self.lock();
        state.seeking = false;
        match course {
            Ok(course) => {
                if let Some(timeline) = self.route.timeline.filter(|t| *t != TimelineId::FIRST) {
                    self.begin_fetch(&mut state, WalFileName::History(timeline));
                }
                state.course = course;
                let reached = state.reached;
                drop(state);
                reached.into_iter().for_each(|segment| self.fetch_ahead(segment));
            }
            // Without it nothing is fetched ahead; whoever asks is told by get_file what is wrong.
            Err(e) => {
                state.rest.failed(LONGEST_REST);
                tracing::info!("nothing is fetched ahead: {}", e.report());
            }
        }
    }

    /// Takes a file out of the spool's account, once it is there; `None` if it is not on its way either.
    ///
    /// # Errors
    /// Of its fetch, if that was waited for so long that it is of no use to begin another one.
    async fn take(&self, name: WalFileName) -> Result<Option<PathBuf>> {
        let mut ended = self.ended.subscribe();
        let began = Instant::now();
        loop {
            ended.mark_unchanged();
            {
                let mut state = self.lock();
                match state.files.get(&name) {
                    Some(Slot::UnderWay) => {}
                    Some(Slot::Ready(path)) => {
                        let path = path.clone();
                        state.files.remove(&name);
                        return Ok(Some(path));
                    }
                    None => {
                        let why = state.unanswered.remove(&name);
                        return match why.filter(|_| began.elapsed() >= ENOUGH) {
                            Some(why) => Err(Error::failed(why).unanswered()),
                            None => Ok(None),
                        };
                    }
                }
            }
            // The sender lives as long as this does.
            let _ = ended.changed().await;
        }
    }

    /// Starts what may be fetched ahead of `segment`.
    fn fetch_ahead(self: &Arc<Self>, segment: SegmentName) {
        let mut state = self.lock();
        let Some(course) = state.course.clone() else { return };
        let bytes = course.segment_bytes().max(1);
        let most = most_ahead(&course);
        if !self.spool.has_room(bytes.saturating_mul(most.saturating_add(ROOM))) {
            return;
        }
        let mut next = segment;
        for _ in 0..most {
            let Some(name) = course.after(next) else { return };
            if state.end.is_some_and(|end| end.place() <= name.place()) {
                return;
            }
            next = name;
            let name = WalFileName::Segment(name);
            // What is still on its way for where recovery was before takes a place too.
            if !state.files.contains_key(&name) && state.segments() as u64 >= most {
                return;
            }
            self.begin_fetch(&mut state, name);
        }
    }

    fn begin_fetch(self: &Arc<Self>, state: &mut State, name: WalFileName) {
        if let Entry::Vacant(free) = state.files.entry(name) {
            free.insert(Slot::UnderWay);
            state.unanswered.remove(&name);
            tokio::spawn(Arc::clone(self).fetch(name));
        }
    }

    async fn fetch(self: Arc<Self>, name: WalFileName) {
        let _told = Told(&self, name);
        let path = self.file(name);
        let fetched = get_ahead(&self.sources, name, &path).await;
        durable::crash_point("agent-fetched");
        let mut state = self.lock();
        let wanted = state.is_wanted(name);
        match fetched {
            Ok(Some(_)) if wanted => {
                state.files.insert(name, Slot::Ready(path));
            }
            Ok(Some(_)) => {
                remove(&path);
                state.files.remove(&name);
            }
            other => {
                if let Err(e) = other {
                    tracing::info!("{name} is not fetched ahead: {}", e.report());
                    if e.is_unanswered() {
                        state.unanswered.insert(name, e.to_string());
                    }
                }
                state.files.remove(&name);
                if let WalFileName::Segment(segment) = name
                    && state.end.is_none_or(|end| segment.place() < end.place())
                {
                    state.end = Some(segment);
                }
            }
        }
        // Its place is free for what is wanted now.
        let reached = state.reached.filter(|_| !wanted);
        drop(state);
        reached.into_iter().for_each(|segment| self.fetch_ahead(segment));
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        let state = self.lock();
        let ready = state.files.values().filter_map(|slot| match slot {
            Slot::Ready(path) => Some(path),
            Slot::UnderWay => None,
        });
        ready.chain(&state.handed).for_each(|path| remove(path));
    }
}

fn remove(path: &Path) {
    // What stays is removed when the spool is let go.
    let _ = std::fs::remove_file(path);
}

/// Tells those who wait for a file that its fetch has ended, however it did.
struct Told<'a>(&'a Recovery, WalFileName);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        // After a panic it would be waited for until the end of days.
        let mut state = self.0.lock();
        if state.files.get(&self.1) == Some(&Slot::UnderWay) {
            state.files.remove(&self.1);
        }
        drop(state);
        self.0.ended.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// The directory, emptied, and the right to it.
#[derive(Debug)]
struct Spool {
    path: PathBuf,
    lock: File,
}

impl Spool {
    const LOCK: &str = "lock";
    /// Where its owner may listen.
    const SOCKET: [&str; 2] = ["socket", "socket.lock"];

    fn take(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| {
            Error::failed(format!("cannot use {} to fetch ahead", path.display())).source(e)
        };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        let mut open = File::options();
        open.write(true).create(true).truncate(false).mode(0o600);
        let lock = open.open(path.join(Self::LOCK)).map_err(failed)?;
        let busy = || Error::busy(format!("{} is another process's", path.display()));
        lock.try_lock().map_err(|e| busy().source(e))?;
        // The owner before may have removed the very file that was locked here.
        let mine = lock.metadata().map_err(failed)?.ino();
        if std::fs::metadata(path.join(Self::LOCK)).map_err(failed)?.ino() != mine {
            return Err(busy());
        }
        let spool = Self { path: path.to_owned(), lock };
        spool.empty().map_err(failed)?;
        Ok(spool)
    }

    /// Removes all but the lock and a socket.
    fn empty(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let spooled = entry.file_type()?.is_file() && entry.file_name() != Self::LOCK;
            if spooled {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Whether what was locked is still what others would find.
    fn is_there(&self) -> bool {
        let inode = |found: std::io::Result<std::fs::Metadata>| found.ok().map(|found| found.ino());
        let own = inode(self.lock.metadata());
        own.is_some() && inode(std::fs::metadata(self.path.join(Self::LOCK))) == own
    }

    fn has_room(&self, bytes: u64) -> bool {
        durable::free_bytes(&self.path).is_some_and(|free| free >= bytes)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // What is there instead is another owner's.
        if !self.is_there() {
            return;
        }
        // A directory that stays is emptied by the next owner.
        let _ = self.empty();
        // Of a process that was killed.
        for left in Self::SOCKET {
            let _ = std::fs::remove_file(self.path.join(left));
        }
        let _ = std::fs::remove_file(self.path.join(Self::LOCK));
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_that_waits_for_a_slow_store_is_not_over() {
        let dir = tempfile::tempdir().unwrap();
        DirBuilder::new().create(dir.path().join("pg_wal")).unwrap();
        let url = "memory://slow".parse().unwrap();
        let store = crate::store::Store::open(&url, &crate::store::StoreOptions::default()).unwrap();
        let repository = Repository::new(store, "slow", "main".parse().unwrap(), true);
        let fetcher = Fetcher::new(vec![repository], dir.path().to_owned());
        let directory = dir.path().to_owned();
        let errand =
            Errand { directory, repository: None, timeline: None, until: None, system: Some(7), seal: None };
        let asks = fetcher.recovery(&errand).unwrap();
        asks.lock().asked = Instant::now().checked_sub(IDLE).unwrap();
        assert!(!fetcher.rest(), "somebody waits");
        assert!(dir.path().join(SPOOL).exists());
        drop(asks);
        assert!(fetcher.rest());
        assert!(!dir.path().join(SPOOL).exists());
    }

    #[test]
    fn a_spool_that_was_left_goes_unless_somebody_has_it_or_the_server_recovers() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join(SPOOL);
        let put = |path: PathBuf| durable::write_replace(&path, b"", 0o600, None).unwrap();
        let left = || {
            DirBuilder::new().recursive(true).create(&spool).unwrap();
            let names = ["lock", "socket.lock", "1-000000010000000000000001"];
            names.iter().for_each(|name| put(spool.join(name)));
            drop(std::os::unix::net::UnixListener::bind(spool.join("socket")));
        };
        sweep(dir.path());
        left();
        sweep(dir.path());
        assert!(!spool.exists());
        left();
        put(dir.path().join("standby.signal"));
        sweep(dir.path());
        assert!(spool.join("1-000000010000000000000001").exists());
        File::open(&spool).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        sweep(dir.path());
        assert!(!spool.exists(), "a standby that asks for nothing");
        left();
        std::fs::remove_file(dir.path().join("standby.signal")).unwrap();
        let taken = Spool::take(&spool).unwrap();
        sweep(dir.path());
        assert!(spool.join("lock").exists());
        drop(taken);
        assert!(!spool.exists());
    }
}
