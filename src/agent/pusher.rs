//! What is stored where, and what is stored next: before PostgreSQL asks for it.
//!
//! ```text
//!  archive_status/*.ready ─► files, in order ─► attempts, some at once ─► one file, repositories that lack it
//!                                                     │ each tells the account as soon as it has answered
//!  "is this one archived?" ─► in every required one, and the file is still the one that was stored ─► yes
//!                         └─► else an attempt now, and its result
//!  an optional one that lacks what has left pg_wal ─► copied from a repository that has it
//! ```
//! Invariants: yes is said only for bytes that are durable in every required repository, while the file under the name is the one they came
//! from ([`FileIdentity`]); all that is known is in memory ([`Account`]), and what is lost with it is stored again and found there. An
//! attempt goes on when its asker leaves.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::account::{Account, Found, LaneStatus, Refused, Rest};
use super::effort::effort;
use super::outlook::{Look, Outlook, Watch};
use super::queue::{FileIdentity, Turn};
use super::system_of;
use crate::codec::Compression;
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::ops::archive::{COPY_MARKER, Packed, Packing, Place, catch_up, store_each};
use crate::ops::check::Grade;
use crate::repo::Repository;

/// Attempts for one asker: another one is needed only if the file became another while the one before ended.
const TRIES: u32 = 3;
/// Between two looks whether a repository is behind.
const LOOK: Duration = Duration::from_secs(1);
/// Longest rest after catching up failed.
const LONGEST_REST: Duration = Duration::from_mins(15);

/// Stores the files of one `pg_wal`.
#[derive(Debug)]
pub struct Pusher {
    places: Vec<Place>,
    data_dir: PathBuf,
    compression: Compression,
    ahead: usize,
    processors: usize,
    /// One for each processor: who reads and compresses holds one.
    turns: Arc<Semaphore>,
    /// Handed on to who takes over when keys or credentials were renewed.
    account: Arc<Mutex<Account>>,
    watch: Mutex<Watch>,
    /// Moves whenever a repository has answered.
    ended: watch::Sender<u64>,
    /// A store refused the credentials: they may have been renewed.
    denied: AtomicBool,
}

/// How it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Files in the queue.
    pub ready: usize,
    /// Of them, those that a required repository lacks.
    pub waiting: usize,
    /// The first of those.
    pub first_waiting: Option<String>,
    /// Files under way.
    pub under_way: usize,
    /// What cannot be stored for a reason of its own.
    pub refused: Refused,
    /// The compression of the next file.
    pub compression: Compression,
    /// How WAL is compressed when there is time.
    pub configured: Compression,
    /// Every repository.
    pub lanes: Vec<LaneStatus>,
    /// What that means for the promise, and for the disk.
    pub outlook: Outlook,
}

impl Pusher {
    /// A pusher that knows nothing yet. `ahead` files may be under way to each place at once.
    pub(super) fn new(
        places: Vec<Place>,
        data_dir: PathBuf,
        compression: Compression,
        ahead: usize,
        watch: Watch,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let lanes = places.iter().map(Place::repository).map(|r| (r.name().to_owned(), r.is_required()));
        let account = Arc::new(Mutex::new(Account::new(lanes, ahead)));
        Self {
            places,
            data_dir,
            compression,
            ahead: ahead.max(1),
            processors,
            turns: Arc::new(Semaphore::new(processors)),
            account,
            watch: Mutex::new(watch),
            ended: watch::Sender::new(0),
            denied: AtomicBool::new(false),
        }
    }

    /// Goes on with what another one knows, which was made from the same configuration: what it stored is stored, and what it has under
    /// way is told to both.
    pub(super) fn after(mut self, other: &Self) -> Self {
        let lanes = |pusher: &Self| -> Vec<(String, bool)> {
            pusher.repositories().map(|r| (r.name().to_owned(), r.is_required())).collect()
        };
        if self.data_dir == other.data_dir && lanes(&self) == lanes(other) {
            self.account = Arc::clone(&other.account);
            self.ended = other.ended.clone();
        }
        self
    }

    /// Where it stores.
    pub(super) fn repositories(&self) -> impl Iterator<Item = &Repository> {
        self.places.iter().map(Place::repository)
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Told whenever a repository has answered.
    pub fn ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_pg_wal(&self, turn: &Turn) -> PathBuf {
        self.data_dir.join("pg_wal").join(turn.name())
    }

    /// Makes sure that the file is stored in every required repository; warnings are about optional ones.
    ///
    /// # Errors
    /// What keeps it from being stored. An error about the file itself, or about what is stored under its name, is of another kind than
    /// `Failed`: then only a command that looks for itself can say the whole of it.
    pub async fn push(self: &Arc<Self>, turn: &Turn, path: &Path) -> Result<Vec<String>> {
        let _asking = Asking::new(self, turn);
        let mut ended = self.ended();
        let (mut tries, mut waited) = (0, false);
        loop {
            ended.mark_unchanged();
            if waited && let Some(why) = self.lock().unanswered(turn) {
                return Err(Error::failed(why)
                    .unanswered()
                    .hint("PostgreSQL keeps the file and offers it again; `pitr agent --status` says more"));
            }
            let found = self.lock().find(turn, tries < TRIES);
            match found {
                Found::Stored(identity, warnings) => match FileIdentity::of(path) {
                    Ok(now) if now == identity => return Ok(warnings),
                    _ => self.lock().doubt(turn),
                },
                // The sender lives as long as this does.
                Found::Busy => {
                    waited = true;
                    drop(ended.changed().await);
                }
                Found::Restless => {
                    return Err(Error::refused(format!("{} changes while it is stored", path.display())));
                }
                Found::Open(lanes) => {
                    tries += 1;
                    self.attempt_for_asker(turn, lanes).await?;
                }
            }
        }
    }

    /// Ends when the required ones of `lanes` have answered: the others may take their time.
    async fn attempt_for_asker(self: &Arc<Self>, turn: &Turn, lanes: Vec<usize>) -> Result<()> {
        let required = |i: &usize| self.places.get(*i).is_some_and(|p| p.repository().is_required());
        let waited_for: Vec<usize> = lanes.iter().copied().filter(required).collect();
        let mut ended = self.ended();
        let mut attempt = tokio::spawn(Arc::clone(self).attempt(turn.clone(), lanes));
        loop {
            ended.mark_unchanged();
            if self.lock().is_there(turn, &waited_for) {
                return Ok(());
            }
            tokio::select! {
                biased;
                done = &mut attempt => {
                    return done.map_err(|e| Error::refused("an attempt was cut off").source(e))?;
                }
                // The sender lives as long as this does.
                _ = ended.changed() => {}
            }
        }
    }

    /// Starts as many attempts as may be under way. Needs a runtime.
    pub fn fill(self: &Arc<Self>) {
        loop {
            let next = self.lock().next();
            let Some((turn, lanes)) = next else { return };
            // What comes of it is told to the account, and to whoever asks.
            tokio::spawn(Arc::clone(self).attempt(turn, lanes));
        }
    }

    /// Stores one file that was taken in the lanes that were taken with it. The first failure of a required one is its result.
    async fn attempt(self: Arc<Self>, turn: Turn, lanes: Vec<usize>) -> Result<()> {
        let path = self.in_pg_wal(&turn);
        let places: Vec<Place> = lanes.iter().filter_map(|i| self.places.get(*i)).cloned().collect();
        let flight = Flight { pusher: &self, turn: &turn, open: Mutex::new(lanes.iter().copied().collect()) };
        let compression = self.effort();
        let packed = Arc::default();
        let packing =
            Packing { compression, turns: Some(Arc::clone(&self.turns)), packed: Arc::clone(&packed) };
        let changed = || Error::refused(format!("{} changed while it was read", path.display()));
        let stored = async {
            durable::crash_point("agent-takes");
            let before = FileIdentity::of(&path)
                .map_err(|e| Error::refused(format!("cannot read {}", path.display())).source(e))?;
            let told = |i: usize, outcome: &Result<_>| {
                let Some(lane) = lanes.get(i) else { return };
                durable::crash_point("agent-stored");
                match outcome {
                    Ok(_) if FileIdentity::of(&path).is_ok_and(|now| now == before) => {
                        if let Some(packed) = packed.get() {
                            self.note_pace(&turn, *lane, *packed, compression);
                        }
                        flight.landed(*lane, Ok(before));
                    }
                    // Of which file it was is not known: nothing is.
                    Ok(_) => {}
                    Err(e) => {
                        self.notice(e);
                        flight.landed(*lane, Err(e));
                    }
                }
            };
            let offered = store_each(&places, &path, Some(&self.data_dir), packing, told).await?;
            let now = FileIdentity::of(&path).map_err(|e| changed().source(e))?;
            if now == before { Ok(offered.outcomes) } else { Err(changed()) }
        };
        let stored = stored.await;
        // Before the file is given up: lanes that have not answered lack it.
        drop(flight);
        match stored {
            Ok(outcomes) => {
                let mut required =
                    outcomes.into_iter().zip(&places).filter(|(_, p)| p.repository().is_required());
                required.try_for_each(|(outcome, _)| outcome.map(drop))
            }
            Err(e) => {
                self.lock().fail(&turn, &e);
                Err(e)
            }
        }
    }

    fn notice(&self, error: &Error) {
        if error.kind() == Kind::Key {
            self.is_denied();
        }
    }

    /// The credentials were refused, and nobody has looked for others yet.
    pub(super) fn is_denied(&self) {
        self.denied.store(true, Ordering::Relaxed);
    }

    /// Whether a store, a required one or not, refused the credentials since this was last asked.
    pub(super) fn take_denied(&self) -> bool {
        self.denied.swap(false, Ordering::Relaxed)
    }

    fn effort(&self) -> Compression {
        let account = self.lock();
        let busy = account.pace.is_held_by_packing(self.processors.min(self.ahead), self.ahead);
        effort(self.compression, account.waiting().count(), self.ahead, busy)
    }

    /// A file that was packed with that compression was stored just now.
    fn note_pace(&self, turn: &Turn, lane: usize, packed: Packed, compression: Compression) {
        let required = self.places.get(lane).is_some_and(|place| place.repository().is_required());
        // Small files say nothing of segments, and the queue waits for no optional repository.
        if !required || !turn.is_segment() {
            return;
        }
        let mut account = self.lock();
        account.pace.stored(lane, packed.at.elapsed());
        if compression == self.compression {
            account.pace.packed(packed.took);
        }
    }

    /// Takes over what the queue is now.
    pub fn queue(&self, ready: &BTreeSet<Turn>) {
        self.lock().queue(ready, |turn| self.in_pg_wal(turn).exists());
    }

    /// Somebody was told to store a file by himself.
    pub fn is_passed_by(&self) {
        self.lock().doubt_optional(false);
    }

    /// This process stood still so long that nobody waited for it.
    pub fn has_slept(&self) {
        self.lock().doubt_optional(true);
    }

    /// How it goes.
    pub fn status(&self) -> Status {
        let compression = self.effort();
        let account = self.lock();
        Status {
            ready: account.ready().count(),
            waiting: account.waiting().count(),
            first_waiting: account.waiting().next().map(|turn| turn.name().to_owned()),
            under_way: account.under_way(),
            refused: account.refused(),
            compression,
            configured: self.compression,
            lanes: account.lanes(),
            outlook: self.watch.lock().unwrap_or_else(PoisonError::into_inner).outlook().clone(),
        }
    }

    /// Looks at how long the queue is, and at the disk; logs what is to be said of it.
    pub fn look_out(&self) {
        let (files, first) = {
            let account = self.lock();
            (account.ready().count(), account.ready().next().map(|turn| turn.name().to_owned()))
        };
        let look = Look::take(&self.data_dir, files, first);
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((grade, text)) = watch.see(&look, Instant::now()) {
            match grade {
                Grade::Bad => tracing::error!("{text}"),
                Grade::Risk | Grade::Good => tracing::warn!("{text}"),
            }
        }
    }

    /// Copies to each place what it lacks and another one has, whenever it is behind, until `life` ends. Needs a runtime.
    pub fn keep_up(self: &Arc<Self>, life: &CancellationToken) {
        if self.places.len() < 2 {
            return;
        }
        for lane in 0..self.places.len() {
            let (pusher, life) = (Arc::clone(self), life.clone());
            tokio::spawn(async move { life.run_until_cancelled(pusher.keep_one_up(lane)).await });
        }
    }

    async fn keep_one_up(&self, lane: usize) {
        let Some(target) = self.places.get(lane).map(Place::repository) else { return };
        let mut rest = Rest::default();
        loop {
            crate::clock::sleep(LOOK).await;
            let may = rest.is_over() && !self.data_dir.join(COPY_MARKER).exists();
            if !may || !self.lock().take_behind(lane) {
                continue;
            }
            let catching_up = CatchingUp { pusher: self, lane, well: false };
            let result = self.catch_up(lane, target).await;
            catching_up.end(result.is_ok());
            match result {
                Ok(()) => rest = Rest::default(),
                Err(e) => {
                    self.notice(&e);
                    if !rest.has_failed() {
                        tracing::warn!("repository {} cannot be caught up: {}", target.name(), e.report());
                    }
                    rest.failed(LONGEST_REST);
                }
            }
        }
    }

    async fn catch_up(&self, lane: usize, target: &Repository) -> Result<()> {
        let system = system_of(&self.data_dir).ok_or_else(|| {
            Error::failed(format!("{} does not tell which cluster it is", self.data_dir.display()))
        })?;
        let other = |i: &usize| *i != lane;
        // What is required has everything that was acknowledged.
        let mut sources: Vec<&Repository> = (0..self.places.len())
            .filter(other)
            .filter_map(|i| self.places.get(i))
            .map(Place::repository)
            .collect();
        sources.sort_by_key(|source| !source.is_required());
        let tell = |copied| self.lock().catching_up(lane, Some(copied), false);
        let done = catch_up(&sources, target, system, tell).await?;
        for left in done.left.values() {
            tracing::warn!("repository {} still lacks WAL: {left}", target.name());
        }
        if done.files > 0 {
            tracing::warn!(
                "repository {} was caught up: {} files, {} bytes",
                target.name(),
                done.files,
                done.bytes
            );
        }
        Ok(())
    }
}

/// A lane is being caught up, and is behind again unless that ends well: whoever takes over begins once more.
struct CatchingUp<'a> {
    pusher: &'a Pusher,
    lane: usize,
    well: bool,
}

impl CatchingUp<'_> {
    fn end(mut self, well: bool) {
        self.well = well;
    }
}

impl Drop for CatchingUp<'_> {
    fn drop(&mut self) {
        self.pusher.lock().catching_up(self.lane, None, !self.well);
    }
}

/// Somebody waits for a file: it is not forgotten meanwhile.
struct Asking<'a> {
    pusher: &'a Pusher,
    turn: &'a Turn,
}

impl<'a> Asking<'a> {
    fn new(pusher: &'a Pusher, turn: &'a Turn) -> Self {
        pusher.lock().ask(turn);
        Self { pusher, turn }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.pusher.lock().leave(self.turn);
    }
}

/// An attempt under way, however it ends: whoever waits for it is told.
struct Flight<'a> {
    pusher: &'a Pusher,
    turn: &'a Turn,
    /// Lanes that have not answered.
    open: Mutex<BTreeSet<usize>>,
}

impl Flight<'_> {
    fn landed(&self, lane: usize, outcome: std::result::Result<FileIdentity, &Error>) {
        if self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&lane) {
            self.pusher.lock().note(self.turn, lane, outcome);
            self.pusher.ended.send_modify(|n| *n = n.wrapping_add(1));
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        let mut account = self.pusher.lock();
        open.into_iter().for_each(|lane| account.release(self.turn, lane));
        drop(account);
        self.pusher.ended.send_modify(|n| *n = n.wrapping_add(1));
    }
}
