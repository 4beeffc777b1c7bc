//! What is stored where, and what is stored next: before PostgreSQL asks for it.
//!
//! ```text
//!  archive_status/*.ready ─► files, in order ─► attempts, some at once ─► one file, every repository that lacks it
//!                                                     │ per repository: has it / failed, rests / one attempt shows whether it is back
//!  "is this one archived?" ─► stored by an attempt, and the file is still the one that was stored ─► yes
//!                         └─► else an attempt now, and its result
//! ```
//! Invariants: yes is said only for bytes that are durable in every required repository, while the file under the name is the one they came
//! from ([`FileIdentity`]); all that is known is in memory, and what is lost with it is stored again and found there. A repository that fails
//! keeps the others from nothing: after its first failure one attempt at a time tries it. An attempt goes on when its asker leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use super::effort::effort;
use super::queue::{FileIdentity, Turn};
use crate::codec::Compression;
use crate::error::{Error, Kind, Result};
use crate::ops::archive::{Packing, Place, store_each};

/// First and longest rest of what failed.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Attempts for one asker: another one is needed only if the file became another while the one before ended.
const TRIES: u32 = 3;

/// Stores the files of one `pg_wal`.
#[derive(Debug)]
pub struct Pusher {
    places: Vec<Place>,
    data_dir: PathBuf,
    compression: Compression,
    ahead: usize,
    /// One for each processor: who reads and compresses holds one.
    turns: Arc<Semaphore>,
    state: Mutex<State>,
    /// Moves whenever an attempt has ended.
    ended: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<Turn, Known>,
    lanes: Vec<Lane>,
    flying: usize,
}

/// What is known of one file.
#[derive(Debug)]
struct Known {
    /// The file that `has` speaks of.
    identity: Option<FileIdentity>,
    /// Which places have it.
    has: Vec<bool>,
    /// It is in the queue.
    ready: bool,
    /// Who waits for it.
    askers: usize,
    /// An attempt is under way.
    busy: bool,
    /// It failed by itself, and is left alone for a while unless somebody asks.
    rest: Rest,
}

/// How long to leave alone what failed.
#[derive(Debug, Default)]
struct Rest {
    failures: u32,
    until: Option<Instant>,
}

impl Rest {
    fn failed(&mut self) {
        let span = REST.saturating_mul(1 << self.failures.min(6)).min(LONGEST_REST);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(Instant::now() + span);
    }

    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }
}

/// How one place fares.
#[derive(Debug, Default)]
struct Lane {
    rest: Rest,
    failing: Option<String>,
    /// An attempt is finding out whether it is back.
    trying: bool,
}

impl Lane {
    fn may_try(&self) -> bool {
        self.failing.is_none() || (self.rest.is_over() && !self.trying)
    }
}

/// How it goes with one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStatus {
    /// The repository's name.
    pub repository: String,
    /// Whether a file counts as archived only when it is there.
    pub required: bool,
    /// Files of the queue that it lacks.
    pub lacks: usize,
    /// Why it fails, if it does.
    pub failing: Option<String>,
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
    /// Attempts under way.
    pub under_way: usize,
    /// The compression of the next file.
    pub compression: Compression,
    /// Every repository.
    pub lanes: Vec<LaneStatus>,
}

/// What an asker finds.
enum Found {
    Stored(FileIdentity, Vec<String>),
    Busy,
    Open(Vec<usize>),
    /// It has to be stored once more, and was often enough.
    Restless,
}

impl Pusher {
    /// A pusher that knows nothing yet. `ahead` files may be under way at once.
    pub fn new(places: Vec<Place>, data_dir: PathBuf, compression: Compression, ahead: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let lanes = places.iter().map(|_| Lane::default()).collect();
        Self {
            places,
            data_dir,
            compression,
            ahead: ahead.max(1),
            turns: Arc::new(Semaphore::new(processors)),
            state: Mutex::new(State { files: BTreeMap::new(), lanes, flying: 0 }),
            ended: watch::Sender::new(0),
        }
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Told whenever an attempt has ended.
    pub fn ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the file is stored in every required repository; warnings are about optional ones.
    ///
    /// # Errors
    /// What keeps it from being stored. An error about the file itself, or about what is stored under its name, is of another kind than
    /// `Failed`: then only a command that looks for itself can say the whole of it.
    pub async fn push(self: &Arc<Self>, turn: &Turn, path: &Path) -> Result<Vec<String>> {
        let _asking = Asking::new(self, turn);
        let mut ended = self.ended();
        let mut tries = 0;
        loop {
            ended.mark_unchanged();
            match self.find(turn, tries < TRIES) {
                Found::Stored(identity, warnings) => match FileIdentity::of(path) {
                    Ok(now) if now == identity => return Ok(warnings),
                    _ => self.doubt(turn),
                },
                // The sender lives as long as this does.
                Found::Busy => drop(ended.changed().await),
                Found::Restless => {
                    return Err(Error::refused(format!("{} changes while it is stored", path.display())));
                }
                Found::Open(lanes) => {
                    tries += 1;
                    let attempt = tokio::spawn(Arc::clone(self).attempt(turn.clone(), lanes));
                    attempt.await.map_err(|e| Error::refused("an attempt was cut off").source(e))??;
                }
            }
        }
    }

    /// What an asker has to do; an open file is taken if it `may` be stored.
    fn find(&self, turn: &Turn, may: bool) -> Found {
        let mut guard = self.lock();
        let State { files, lanes, flying } = &mut *guard;
        let file = files.entry(turn.clone()).or_insert_with(|| Known::new(self.places.len()));
        if file.busy {
            return Found::Busy;
        }
        let required = |i: &usize| self.places.get(*i).is_some_and(|p| p.repository().is_required());
        let lacking: Vec<usize> = file.lacking().collect();
        if let Some(identity) = file.identity.filter(|_| !lacking.iter().any(required)) {
            let text = |i: usize| {
                let why = lanes.get(i).and_then(|lane| lane.failing.clone());
                let name = self.places.get(i).map(|p| p.repository().name()).unwrap_or_default();
                format!("optional repository {name}: {}", why.unwrap_or_else(|| "not stored yet".to_owned()))
            };
            return Found::Stored(identity, lacking.into_iter().map(text).collect());
        }
        if !may {
            return Found::Restless;
        }
        let tries = |i: &usize| required(i) || lanes.get(*i).is_some_and(Lane::may_try);
        let chosen: Vec<usize> = lacking.into_iter().filter(tries).collect();
        take(file, lanes, flying, &chosen);
        Found::Open(chosen)
    }

    /// The file under the name is not the one that was stored.
    fn doubt(&self, turn: &Turn) {
        if let Some(file) = self.lock().files.get_mut(turn).filter(|file| !file.busy) {
            *file = Known { ready: file.ready, askers: file.askers, ..Known::new(self.places.len()) };
        }
    }

    /// Starts as many attempts as may be under way. Needs a runtime.
    pub fn fill(self: &Arc<Self>) {
        while let Some((turn, lanes)) = self.next() {
            // What comes of it is told to the state, and to whoever asks.
            tokio::spawn(Arc::clone(self).attempt(turn, lanes));
        }
    }

    fn next(&self) -> Option<(Turn, Vec<usize>)> {
        let mut guard = self.lock();
        let State { files, lanes, flying } = &mut *guard;
        if *flying >= self.ahead {
            return None;
        }
        for (turn, file) in files.iter_mut().filter(|(_, f)| f.ready && !f.busy && f.rest.is_over()) {
            let may_try = |i: &usize| lanes.get(*i).is_some_and(Lane::may_try);
            let chosen: Vec<usize> = file.lacking().filter(may_try).collect();
            if !chosen.is_empty() {
                take(file, lanes, flying, &chosen);
                return Some((turn.clone(), chosen));
            }
        }
        None
    }

    /// Stores one file that was taken in the places that were taken with it.
    async fn attempt(self: Arc<Self>, turn: Turn, lanes: Vec<usize>) -> Result<()> {
        let flight = Flight { pusher: &self, turn: &turn, lanes: &lanes };
        let path = self.data_dir.join("pg_wal").join(turn.name());
        let places: Vec<Place> = lanes.iter().filter_map(|i| self.places.get(*i)).cloned().collect();
        let packing = Packing { compression: self.effort(), turns: Some(Arc::clone(&self.turns)) };
        let unreadable =
            |e: std::io::Error| Error::refused(format!("cannot read {}", path.display())).source(e);
        let stored = async {
            let before = FileIdentity::of(&path).map_err(unreadable)?;
            let offered = store_each(&places, &path, Some(&self.data_dir), packing).await?;
            if FileIdentity::of(&path).map_err(unreadable)? != before {
                return Err(Error::refused(format!("{} changed while it was read", path.display())));
            }
            Ok((before, offered.outcomes))
        };
        let result = match stored.await {
            Ok((identity, outcomes)) => self.settle(&turn, identity, outcomes, &lanes),
            Err(e) => {
                self.fail(&turn, &e);
                Err(e)
            }
        };
        drop(flight);
        result
    }

    fn fail(&self, turn: &Turn, error: &Error) {
        tracing::warn!("{} cannot be stored: {}", turn.name(), error.report());
        if let Some(file) = self.lock().files.get_mut(turn) {
            file.rest.failed();
        }
    }

    /// Takes note of what each place said; the first failure of a required one is the asker's answer.
    fn settle<T>(
        &self,
        turn: &Turn,
        identity: FileIdentity,
        outcomes: Vec<Result<T>>,
        lanes: &[usize],
    ) -> Result<()> {
        let mut failure = None;
        let mut guard = self.lock();
        let State { files, lanes: all, .. } = &mut *guard;
        let Some(file) = files.get_mut(turn) else { return Ok(()) };
        if file.identity.is_some_and(|known| known != identity) {
            file.has.fill(false);
        }
        file.identity = Some(identity);
        for (outcome, i) in outcomes.into_iter().zip(lanes) {
            let (Some(place), Some(lane), Some(has)) =
                (self.places.get(*i), all.get_mut(*i), file.has.get_mut(*i))
            else {
                continue;
            };
            let name = place.repository().name();
            match outcome {
                Ok(_) => {
                    *has = true;
                    if lane.failing.take().is_some() {
                        tracing::warn!("repository {name} takes WAL again");
                    }
                    lane.rest = Rest::default();
                }
                Err(e) => {
                    let own = matches!(e.kind(), Kind::Refused | Kind::Corrupt | Kind::Usage);
                    if own {
                        // It is this file that is refused there; others may pass.
                        file.rest.failed();
                        tracing::warn!("{} is refused by repository {name}: {}", turn.name(), e.report());
                    } else {
                        if lane.failing.is_none() {
                            tracing::warn!("repository {name} takes no WAL: {}", e.report());
                        }
                        lane.rest.failed();
                        lane.failing = Some(e.to_string());
                    }
                    if place.repository().is_required() {
                        failure = failure.or(Some(e));
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn effort(&self) -> Compression {
        let busy = self.turns.available_permits() == 0;
        effort(self.compression, self.waiting(&self.lock()).count(), self.ahead, busy)
    }

    fn waiting<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Turn> {
        let lacks = |file: &Known| {
            let required = |i: usize| self.places.get(i).is_some_and(|p| p.repository().is_required());
            file.lacking().any(required)
        };
        state.files.iter().filter(move |(_, file)| file.ready && lacks(file)).map(|(turn, _)| turn)
    }

    /// Takes over what the queue is now.
    pub fn queue(&self, ready: BTreeSet<Turn>) {
        let mut guard = self.lock();
        let files = &mut guard.files;
        files.values_mut().for_each(|file| file.ready = false);
        for turn in ready {
            files.entry(turn).or_insert_with(|| Known::new(self.places.len())).ready = true;
        }
        files.retain(|_, file| file.ready || file.busy || file.askers > 0);
    }

    /// How it goes.
    pub fn status(&self) -> Status {
        let compression = self.effort();
        let state = self.lock();
        let lacks = |i: usize| {
            state.files.values().filter(|f| f.ready && f.has.get(i).is_some_and(|has| !has)).count()
        };
        let lane = |(i, (place, lane)): (usize, (&Place, &Lane))| LaneStatus {
            repository: place.repository().name().to_owned(),
            required: place.repository().is_required(),
            lacks: lacks(i),
            failing: lane.failing.clone(),
        };
        Status {
            ready: state.files.values().filter(|file| file.ready).count(),
            waiting: self.waiting(&state).count(),
            first_waiting: self.waiting(&state).next().map(|turn| turn.name().to_owned()),
            under_way: state.flying,
            compression,
            lanes: self.places.iter().zip(&state.lanes).enumerate().map(lane).collect(),
        }
    }
}

impl Known {
    fn new(places: usize) -> Self {
        Self {
            identity: None,
            has: vec![false; places],
            ready: false,
            askers: 0,
            busy: false,
            rest: Rest::default(),
        }
    }

    fn lacking(&self) -> impl Iterator<Item = usize> {
        self.has.iter().enumerate().filter(|(_, has)| !**has).map(|(i, _)| i)
    }
}

fn take(file: &mut Known, lanes: &mut [Lane], flying: &mut usize, chosen: &[usize]) {
    file.busy = true;
    *flying += 1;
    for i in chosen {
        if let Some(lane) = lanes.get_mut(*i).filter(|lane| lane.failing.is_some()) {
            lane.trying = true;
        }
    }
}

/// Somebody waits for a file: it is not forgotten meanwhile.
struct Asking<'a> {
    pusher: &'a Pusher,
    turn: &'a Turn,
}

impl<'a> Asking<'a> {
    fn new(pusher: &'a Pusher, turn: &'a Turn) -> Self {
        let mut state = pusher.lock();
        let file = state.files.entry(turn.clone()).or_insert_with(|| Known::new(pusher.places.len()));
        file.askers += 1;
        Self { pusher, turn }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.pusher.lock().files.get_mut(self.turn) {
            file.askers = file.askers.saturating_sub(1);
        }
    }
}

/// An attempt under way, however it ends: whoever waits for it is told.
struct Flight<'a> {
    pusher: &'a Pusher,
    turn: &'a Turn,
    lanes: &'a [usize],
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut guard = self.pusher.lock();
        let State { files, lanes, flying } = &mut *guard;
        *flying = flying.saturating_sub(1);
        if let Some(file) = files.get_mut(self.turn) {
            file.busy = false;
        }
        for i in self.lanes {
            if let Some(lane) = lanes.get_mut(*i) {
                lane.trying = false;
            }
        }
        drop(guard);
        self.pusher.ended.send_modify(|n| *n = n.wrapping_add(1));
    }
}
