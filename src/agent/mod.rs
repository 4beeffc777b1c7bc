//! `pitr agent`: one process that stays, for what PostgreSQL would else start a program for each time.
//!
//! ```text
//!  archive_command ─► client ──socket──► server ─► pusher  ─► repositories
//!  restore_command ─┘   │ nobody there, or unsure  │  ▲
//!                       └─► works alone            │  └── queue: archive_status, looked at each second and after each file
//!                                                  └► fetcher ─► pg_wal/pitr-spool: the next segments of the route
//! ```
//! Invariants: an agent makes things faster and nothing else. No state on disk is trusted, nothing needs it to be there, and killing it at any
//! moment loses nothing that was said yes to. What it answers is true of the configuration that the asker goes by (its fingerprint);
//! when that file changes, or a file of keys that it names, or on SIGHUP, the agent reads it again.

mod account;
pub mod client;
mod effort;
pub mod fetcher;
mod keyfiles;
mod outlook;
mod pusher;
mod queue;
mod server;
mod socket;
pub mod wire;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock as _, SystemClock};
use crate::codec::Compression;
use crate::error::{Error, Result};
use crate::ops::archive::{COPY_MARKER, Place};
use crate::pgdata::ControlFile;
use crate::repo::{Keyring, Repository};
use crate::wal::{SegmentName, SegmentSize, SystemId};
use fetcher::{Fetcher, sweep};
use keyfiles::KeyFiles;
use outlook::Watch;
use pusher::Pusher;
use queue::Turn;
use server::{Desk, Generation, Wish};
use socket::Socket;

/// Between two looks at the queue when nothing happens.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks, this means that the process stood still: an asker waits for a second to be heard, and then stores by himself.
const SLEPT: Duration = Duration::from_millis(1500);
/// Between two looks whether the server lives. Whoever stops a server may remove its directory next, and would meet a spool that is being
/// removed: `pg_ctl` looks every 100 ms whether the server has stopped.
const WATCH: Duration = Duration::from_millis(20);
/// After a reading of the queue it is let alone so many times as long as that took: a hundred thousand files wait there, and each one that is
/// stored changes the directory.
const READS: u32 = 20;
/// And for no longer than this, however long a disk made it take.
const LONGEST_LET_ALONE: Duration = Duration::from_secs(5);
/// Most bytes of the files under way to one repository: each is held compressed until it is stored, and may not compress at all.
const UNDER_WAY: u64 = 256 << 20;
/// Least time between two readings of the configuration.
const RELOAD: Duration = Duration::from_secs(2);

/// What an agent goes by.
#[derive(Debug)]
pub struct Setup {
    /// The fingerprint of the configuration.
    pub config: String,
    /// Where it listens.
    pub socket: PathBuf,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where WAL goes.
    pub repositories: Vec<Repository>,
    /// The files that the keys of the repositories were read from.
    pub key_files: Vec<PathBuf>,
    /// How WAL is compressed when there is time.
    pub compression: Compression,
    /// Files under way at once.
    pub push_ahead: usize,
    /// Longest that a file shall wait.
    pub rpo: Duration,
}

impl Setup {
    fn seals(&self) -> bool {
        self.repositories.iter().any(|repository| repository.keys().and_then(Keyring::host).is_some())
    }
}

/// Runs until `cancel`. `load` reads the configuration again; `ready` is called once questions are taken.
///
/// # Errors
/// `Busy` if another agent has the socket, or takes its place; `Failed` if it cannot be made.
pub async fn run(
    setup: Setup,
    load: impl Fn() -> Result<Setup> + Send + Sync + 'static,
    ready: impl FnOnce(),
    cancel: &CancellationToken,
) -> Result<()> {
    let mut told = hangups()?;
    let mut socket = Socket::reserve(&setup.socket)?;
    sweep(&setup.data_dir);
    let (reload, mut wishes) = mpsc::channel(1);
    let (generation, mut life) = begin(&setup, None, &reload, cancel);
    let mut seals = setup.seals();
    let desk = Arc::new(Desk {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        current: RwLock::new(generation),
        reload: reload.clone(),
    });
    let listener = socket.listen()?;
    let mut keeping = tokio::spawn(socket.keep(listener, Arc::clone(&desk)));
    ready();
    let load = Arc::new(load);
    loop {
        let wish = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            lost = &mut keeping => {
                life.cancel();
                return lost.map_or(Ok(()), Err);
            }
            wish = wishes.recv() => wish,
            _ = told.recv() => Some(Wish::Keys),
        };
        let load = Arc::clone(&load);
        // The file may lie where reading hangs.
        let loaded = tokio::task::spawn_blocking(move || load());
        let Some(loaded) = cancel.run_until_cancelled(loaded).await else { break };
        match loaded {
            Ok(Ok(new)) if new.socket != setup.socket => {
                tracing::warn!("the configuration names another socket: restart the agent");
            }
            // It was the asker who went by another file.
            Ok(Ok(new)) if wish == Some(Wish::Configuration) && new.config == desk.generation().config => {}
            // Refused for another reason than that they are old.
            Ok(Ok(new)) if wish == Some(Wish::Credentials) && desk.generation().goes_by(&new) => {}
            Ok(Ok(new)) if seals && !new.seals() && new.config == desk.generation().config => {
                tracing::warn!(
                    "the host file cannot be used any more: the agent goes on with what it read before"
                );
            }
            Ok(Ok(new)) => {
                let before = desk.generation();
                let (generation, next) = begin(&new, Some(&before), &reload, cancel);
                seals = new.seals();
                std::mem::replace(&mut life, next).cancel();
                *desk.current.write().unwrap_or_else(PoisonError::into_inner) = generation;
                tracing::info!("the configuration was read again");
            }
            Ok(Err(e)) => tracing::warn!("the configuration was changed and cannot be used: {}", e.report()),
            Err(e) => tracing::warn!("the configuration cannot be read again: {e}"),
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = crate::clock::sleep(RELOAD) => {}
        }
    }
    keeping.abort();
    // The socket is gone when this is over.
    let _ = keeping.await;
    Ok(())
}

/// Whoever wants the configuration to be read again sends SIGHUP, as to a server.
fn hangups() -> Result<Signal> {
    signal(SignalKind::hangup()).map_err(|e| Error::failed("cannot listen to SIGHUP").source(e))
}

/// What fetches ahead for one recovery where there is no agent.
#[derive(Debug)]
pub struct Prefetch {
    /// The fingerprint of the configuration that the askers go by.
    pub config: String,
    /// Where it listens: below the spool.
    pub socket: PathBuf,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where WAL comes from.
    pub repositories: Vec<Repository>,
    /// The segment that was fetched last.
    pub from: SegmentName,
    /// How it was.
    pub errand: wire::Errand,
}

/// Fetches ahead until recovery has asked for nothing for a minute, `lives` says that it is over or its server gone, or `cancel`.
///
/// # Errors
/// If another process fetches ahead already, or the socket cannot be made.
pub async fn prefetch(setup: Prefetch, lives: impl Fn() -> bool, cancel: &CancellationToken) -> Result<()> {
    let Prefetch { config, socket, data_dir, repositories, from, errand } = setup;
    let fetcher = Arc::new(Fetcher::new(repositories, data_dir));
    // Whoever has the spool has the socket in it.
    fetcher.begin(from, &errand)?;
    let mut socket = Socket::reserve(&socket)?;
    let (reload, _wishes) = mpsc::channel(1);
    let generation = Arc::new(Generation { config, pusher: None, fetcher: Arc::clone(&fetcher) });
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let desk = Arc::new(Desk { version, current: RwLock::new(generation), reload });
    let serving = tokio::spawn(server::serve(socket.listen()?, desk));
    while !cancel.is_cancelled() && lives() && !fetcher.rest() {
        crate::clock::sleep(WATCH).await;
    }
    serving.abort();
    drop(socket);
    fetcher.end();
    Ok(())
}

/// Starts what works by one configuration, with what is known of the same one `before`; it stops when the token is cancelled.
fn begin(
    setup: &Setup,
    before: Option<&Generation>,
    reload: &mpsc::Sender<Wish>,
    cancel: &CancellationToken,
) -> (Arc<Generation>, CancellationToken) {
    let keys = KeyFiles::read(&setup.key_files, SystemClock.now());
    let places = setup.repositories.iter().cloned().map(Place::remembering).collect();
    let segment = control_of(&setup.data_dir).map_or(SegmentSize::DEFAULT, |control| control.segment_size);
    let watch = Watch::new(segment.bytes(), setup.rpo);
    let (data_dir, compression) = (setup.data_dir.clone(), setup.compression);
    let ahead = setup.push_ahead.min(most_under_way(segment));
    let pusher = Pusher::new(places, data_dir, compression, ahead, watch);
    // Of another configuration's repositories nothing is known.
    let known = before.filter(|before| before.config == setup.config).and_then(|b| b.pusher.as_ref());
    let pusher = Arc::new(match known {
        Some(known) => pusher.after(known),
        None => pusher,
    });
    let fetcher = Arc::new(Fetcher::new(setup.repositories.clone(), setup.data_dir.clone()));
    let life = cancel.child_token();
    tokio::spawn(store_ahead(Arc::clone(&pusher), Arc::clone(&fetcher), reload.clone(), life.clone()));
    tokio::spawn(life.clone().run_until_cancelled_owned(watch_keys(keys, reload.clone())));
    pusher.keep_up(&life);
    (Arc::new(Generation { config: setup.config.clone(), pusher: Some(pusher), fetcher }), life)
}

/// Files of this size that may be under way at once; one in any case.
fn most_under_way(segment: SegmentSize) -> usize {
    usize::try_from(UNDER_WAY / segment.bytes().max(1)).unwrap_or(usize::MAX).max(1)
}

/// Asks for the configuration to be read again whenever a file of keys was replaced.
async fn watch_keys(mut keys: KeyFiles, reload: mpsc::Sender<Wish>) {
    loop {
        crate::clock::sleep(LOOK).await;
        // A full channel may hold a wish of which nothing comes.
        if keys.have_changed() && reload.try_send(Wish::Keys).is_ok() {
            keys.note();
        }
    }
}

/// Looks at the queue and stores what is in it, for as long as it lives.
async fn store_ahead(
    pusher: Arc<Pusher>,
    fetcher: Arc<Fetcher>,
    reload: mpsc::Sender<Wish>,
    life: CancellationToken,
) {
    let archive_status = pusher.data_dir().join("pg_wal/archive_status");
    let marker = pusher.data_dir().join(COPY_MARKER);
    let mut ended = pusher.ended();
    let mut queue = Queue::new(archive_status);
    let mut looked = None::<Instant>;
    while !life.is_cancelled() {
        ended.mark_unchanged();
        fetcher.rest();
        // Nothing is archived from a copy.
        if !marker.exists() {
            if let Some(ready) = queue.look() {
                pusher.queue(&ready);
            }
            pusher.fill();
        }
        if looked.is_none_or(|then| then.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            sweep(pusher.data_dir());
            pusher.look_out();
            if pusher.take_denied() {
                // They may have been changed under the same configuration. A full channel may hold a wish of which nothing comes.
                if reload.try_send(Wish::Credentials).is_err() {
                    pusher.is_denied();
                }
            }
        }
        let asleep = Instant::now();
        tokio::select! {
            () = life.cancelled() => break,
            // The sender lives as long as the pusher does.
            _ = ended.changed() => {}
            () = crate::clock::sleep(LOOK) => {}
        }
        if asleep.elapsed() >= SLEPT {
            pusher.has_slept();
        }
    }
}

/// Whose data directory it is, if that can be told.
fn system_of(data_dir: &Path) -> Option<SystemId> {
    control_of(data_dir).map(|control| control.system_id)
}

fn control_of(data_dir: &Path) -> Option<ControlFile> {
    let bytes = std::fs::read(data_dir.join("global/pg_control")).ok()?;
    ControlFile::parse(&bytes).ok()
}

/// `archive_status` as far as it is known: read again when it was changed, and of a long one not all the time.
struct Queue {
    archive_status: PathBuf,
    seen: Option<Timestamp>,
    /// Until then it is not read again.
    rests: Option<Instant>,
    complained: bool,
}

impl Queue {
    fn new(archive_status: PathBuf) -> Self {
        Self { archive_status, seen: None, rests: None, complained: false }
    }

    /// What is in it, if that may be something else than at the last look.
    fn look(&mut self) -> Option<BTreeSet<Turn>> {
        let now = changed(&self.archive_status);
        let same = now.is_some() && now == self.seen;
        if same || self.rests.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let began = Instant::now();
        let ready = queue::ready(&self.archive_status);
        self.seen = now;
        let span = began.elapsed().saturating_mul(READS).min(LONGEST_LET_ALONE);
        self.rests = Some(Instant::now() + span);
        match ready {
            Ok(ready) => {
                self.complained = false;
                Some(ready)
            }
            Err(e) => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!("cannot read {}: {e}", self.archive_status.display());
                }
                None
            }
        }
    }
}

/// When the directory was last changed; `None` if that was just now, so that another change may not show in its time.
fn changed(directory: &Path) -> Option<Timestamp> {
    let modified = std::fs::metadata(directory).and_then(|found| found.modified()).ok()?;
    let modified = Timestamp::try_from(modified).ok()?;
    (SystemClock.now().duration_since(modified) > SignedDuration::from_millis(50)).then_some(modified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_queue_is_not_read_all_the_time_and_nothing_in_it_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let put = |n: u32| {
            let path = dir.path().join(format!("00000001000000000000000{n}.ready"));
            crate::durable::write_replace(&path, b"", 0o600, None).unwrap();
        };
        put(1);
        let mut queue = Queue::new(dir.path().to_owned());
        assert_eq!(queue.look().map(|ready| ready.len()), Some(1));
        put(2);
        queue.rests = Instant::now().checked_add(LOOK);
        assert_eq!(queue.look(), None, "it rests");
        queue.rests = Some(Instant::now());
        let before = Instant::now();
        assert_eq!(queue.look().map(|ready| ready.len()), Some(2));
        let rests = queue.rests.unwrap();
        assert!(rests > before && rests <= Instant::now() + LONGEST_LET_ALONE, "a multiple of what it took");
        // Not just changed any more, and seen so.
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        std::fs::File::open(dir.path()).unwrap().set_modified(long_ago).unwrap();
        queue.rests = None;
        assert!(queue.look().is_some());
        queue.rests = None;
        assert_eq!(queue.look(), None, "it is as it was");
    }

    #[test]
    fn large_segments_are_under_way_in_small_numbers() {
        let most = |mib: u64| most_under_way(SegmentSize::new(mib << 20).unwrap());
        assert_eq!([1, 16, 64, 256, 1024].map(most), [256, 16, 4, 1, 1]);
    }
}
