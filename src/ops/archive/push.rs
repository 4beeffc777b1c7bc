//! `archive-push`: one file into every required repository.
//!
//! ```text
//!  read, check, compress ──────────┐
//!  per repository: identity,       ├─► histories of its timeline ─► PUT to all at once ─► compare where something was there
//!  format, floor, histories ───────┘
//! ```
//! Invariants: nothing is acknowledged before every required repository holds it durably; no segment of a timeline above 1 before
//! its history and those of its ancestors (a segment without them is unreachable, and the next promotion would take its timeline
//! again); what is stored is never replaced. A damaged segment is refused unless an operator accepted it ([`accept()`]). Optional repositories that fail, or are
//! late where the required ones have answered, are a warning: they are caught up later.
//! A crash before the PUT leaves nothing; after it, the repeated command finds its own bytes and says yes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{Semaphore, watch};

use super::file::{WalContent, WalSource, small_object, unbuildable};
use super::place::{Ready, missing_ancestors, own_history};
use super::{COPY_MARKER, Place, data_directories};
use super::{accept, conflict, evidence};
use crate::codec::Compression;
use crate::error::{Error, Kind, Result};
use crate::pgdata::ControlFile;
use crate::repo::archive::Stored;
use crate::repo::objects::AcceptedGap;
use crate::repo::path::ClusterName;
use crate::repo::walobject::Sealer;
use crate::repo::{Repository, System};
use crate::wal::{SegmentSize, SystemId, TimelineHistory, TimelineId, WalFileName};

/// How long an optional repository may be silent once all required ones have answered.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// How long it then has for the file, and a second more for each MiB: a slow line still stores, a dead one holds nothing up.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Advice where two histories of one timeline meet.
pub(super) const TWO_PROMOTED: &str =
    "two servers were promoted to the same timeline: only one of them may go on archiving here";

/// How files are packed.
#[derive(Debug, Clone)]
pub struct Packing {
    /// How hard they are compressed.
    pub compression: Compression,
    /// Who stores many at once reads and compresses only as many as there are processors.
    pub turns: Option<Arc<Semaphore>>,
    /// Set as soon as the file is packed.
    pub packed: Arc<OnceLock<Packed>>,
}

/// That a file was read and compressed.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    /// When.
    pub at: Instant,
    /// How long it took, without waiting for its turn.
    pub took: Duration,
}

impl From<Compression> for Packing {
    fn from(compression: Compression) -> Self {
        Self { compression, turns: None, packed: Arc::default() }
    }
}

/// What came of one file, place by place.
#[derive(Debug)]
pub struct Offered {
    /// The file.
    pub name: WalFileName,
    /// Who wrote it.
    pub system: SystemId,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of the object.
    pub stored: u64,
    /// What each place answered, in their order.
    pub outcomes: Vec<Result<Stored>>,
}

impl Offered {
    /// Archived is what all required places have; the optional ones that have not are a warning. Where only optional ones were asked for, by
    /// name, there is nobody else to have it: then each counts.
    fn judge(self, places: &[Place]) -> Result<PushReport> {
        let Self { name, system, size, stored, outcomes } = self;
        let mut report =
            PushReport { name, system, size, stored, outcomes: Vec::new(), warnings: Vec::new() };
        let mut failure = None;
        let all_count = !places.iter().any(|place| place.repository().is_required());
        for (outcome, place) in outcomes.into_iter().zip(places) {
            let repository = place.repository();
            match outcome {
                Ok(stored) => report.outcomes.push((repository.name().to_owned(), stored)),
                Err(e) if repository.is_required() || all_count => failure = failure.or(Some(e)),
                Err(e) => {
                    let text = format!("optional repository {}: {}", repository.name(), e.report());
                    report.warnings.push(text);
                }
            }
        }
        match failure {
            Some(e) => Err(e),
            None => Ok(report),
        }
    }
}

/// What a push came to.
#[derive(Debug)]
pub struct PushReport {
    /// The file.
    pub name: WalFileName,
    /// Who wrote it.
    pub system: SystemId,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of the object.
    pub stored: u64,
    /// What each repository answered.
    pub outcomes: Vec<(String, Stored)>,
    /// Optional repositories that do not have it yet, and why.
    pub warnings: Vec<String>,
}

/// Stores one file of `pg_wal`. Safe to repeat: equal content is success, other content is refused and replaces nothing.
///
/// `data_dir` is the configured data directory; it tells whose a history file is, which carries no system identifier.
///
/// # Errors
/// `Usage` for a name that is not PostgreSQL's; `Corrupt` for a file that is not a whole, valid segment; `Refused` for another
/// cluster's, for a copy's, and where other content is stored under the name; otherwise what failed.
pub async fn store_file(
    repositories: &[Repository],
    path: &Path,
    data_dir: Option<&Path>,
    compression: Compression,
) -> Result<PushReport> {
    refuse_copies(&data_directories(path, data_dir))?;
    store_file_of_copy(repositories, path, data_dir, compression).await
}

/// As [`store_file`], whatever the data directory is marked as: for `init --adopt`, which takes the mark away as its last step.
///
/// # Errors
/// As [`store_file`].
pub(in crate::ops) async fn store_file_of_copy(
    repositories: &[Repository],
    path: &Path,
    data_dir: Option<&Path>,
    compression: Compression,
) -> Result<PushReport> {
    match store_sound(repositories, path, data_dir, compression).await {
        // The archiver must get past a segment that an operator accepted with damage in it.
        Err(e) if e.kind() == Kind::Corrupt => {
            accept::store_accepted(repositories, path, data_dir, compression).await?.ok_or(e)
        }
        stored => stored,
    }
}

async fn store_sound(
    repositories: &[Repository],
    path: &Path,
    data_dir: Option<&Path>,
    compression: Compression,
) -> Result<PushReport> {
    let places = Place::all(repositories);
    store_in(&places, path, data_dir, compression.into(), Waits::ForRequired, |_, _| {}).await?.judge(&places)
}

/// Stores one file of `pg_wal` in every place, each for itself: for who keeps account of what is where. `told` hears of each place (by its
/// number) as soon as it has answered, which may be long before the slowest has. Whether the directory is marked as a copy is the
/// caller's to look at.
///
/// # Errors
/// As [`store_file`], for what is wrong with the file itself. Nothing was stored then.
pub async fn store_each(
    places: &[Place],
    path: &Path,
    data_dir: Option<&Path>,
    packing: Packing,
    told: impl Fn(usize, &Result<Stored>) + Sync,
) -> Result<Offered> {
    store_in(places, path, data_dir, packing, Waits::ForAll, told).await
}

async fn store_in(
    places: &[Place],
    path: &Path,
    data_dir: Option<&Path>,
    packing: Packing,
    waits: Waits,
    told: impl Fn(usize, &Result<Stored>) + Sync,
) -> Result<Offered> {
    let source = WalSource::open(path)?;
    let (name, origin) = (source.name, source.origin);
    let system = match origin {
        Some((system, _)) => system,
        None => control_of(&data_directories(path, data_dir), name)?.system_id,
    };
    let cluster = cluster_of(places.iter().map(Place::repository))?;
    let Packing { compression, turns, packed } = packing;
    let sealer = origin.and_then(|_| common_sealer(places));
    let reading = async move {
        let turn = match turns {
            Some(turns) => turns.acquire_owned().await.ok(),
            None => None,
        };
        let reading = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let content =
                source.read(&cluster, system, compression).and_then(|content| sealed(content, sealer));
            // Nobody has set it before.
            let _ = packed.set(Packed { at: Instant::now(), took: began.elapsed() });
            drop(turn);
            content
        });
        reading.await.map_err(|e| Error::failed(format!("reading {name} was cut off")).source(e))?
    };
    let offer = Offer { path, name, system, segment_size: origin.map(|(_, size)| size), compression };
    offer.to_each(places, reading, None, waits, told).await
}

/// What every place will seal with, if they all do and with the same key: then the plain form is needed by nobody.
fn common_sealer(places: &[Place]) -> Option<Sealer> {
    let mut sealers = places.iter().map(|place| place.repository().seals_with());
    let first = sealers.next()??;
    sealers.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

fn sealed(content: WalContent, sealer: Option<Sealer>) -> Result<WalContent> {
    let Some(sealer) = sealer else { return Ok(content) };
    let WalContent { object, scan } = content;
    let name = object.header.name;
    let object = object.into_sealed(&sealer).map_err(|e| unbuildable(name, e))?;
    Ok(WalContent { object, scan })
}

/// The cluster that all of `repositories` are opened for.
pub(super) fn cluster_of<'a>(mut repositories: impl Iterator<Item = &'a Repository>) -> Result<ClusterName> {
    repositories.next().map(|r| r.cluster().clone()).ok_or_else(|| {
        Error::usage("no repository is configured")
            .hint("add a [[repository]] to the configuration, or run `pitr init`")
    })
}

/// Whose answers are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// All places'.
    ForAll,
    /// Those of the required ones, and a moment for the others; where none is required, all.
    ForRequired,
}

/// A file that is offered to repositories.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer<'a> {
    pub(super) path: &'a Path,
    pub(super) name: WalFileName,
    pub(super) system: SystemId,
    /// Of a file that holds WAL.
    pub(super) segment_size: Option<SegmentSize>,
    pub(super) compression: Compression,
}

impl Offer<'_> {
    /// Stores what `reading` yields in every repository; the repositories are looked at meanwhile. `gap` is recorded first.
    pub(super) async fn to(
        self,
        repositories: &[Repository],
        reading: impl Future<Output = Result<WalContent>>,
        gap: Option<&AcceptedGap>,
    ) -> Result<PushReport> {
        let places = Place::all(repositories);
        self.to_each(&places, reading, gap, Waits::ForRequired, |_, _| {}).await?.judge(&places)
    }

    async fn to_each(
        self,
        places: &[Place],
        reading: impl Future<Output = Result<WalContent>>,
        gap: Option<&AcceptedGap>,
        waits: Waits,
        told: impl Fn(usize, &Result<Stored>) + Sync,
    ) -> Result<Offered> {
        let (give, taken) = watch::channel(None::<Arc<WalContent>>);
        let reading = async move {
            let content = Arc::new(reading.await?);
            give.send_replace(Some(Arc::clone(&content)));
            Ok::<_, Error>(content)
        };
        let required = |place: &Place| place.repository().is_required();
        let needed = places.iter().filter(|place| required(place)).count();
        // Required places that have not answered.
        let unanswered = watch::Sender::new(needed);
        let (told, this, unanswered) = (&told, &self, &unanswered);
        let puts = places.iter().enumerate().map(|(i, place)| {
            let (mut taken, needs) = (taken.clone(), required(place));
            let hurried = waits == Waits::ForRequired && needed > 0 && !needs;
            let hurry = hurried.then(|| unanswered.subscribe());
            async move {
                let ready = this.in_time(hurry.clone(), FIRST_WORD, Box::pin(place.prepare(this))).await;
                // Nothing comes of a file that cannot be read: all this is dropped then.
                let content = taken.wait_for(Option::is_some).await.ok().and_then(|content| content.clone());
                let outcome = match content {
                    Some(content) => {
                        let long = LAST_WORD + Duration::from_secs(content.object.stored() >> 20);
                        this.in_time(hurry, long, Box::pin(this.put(ready, &content, gap))).await
                    }
                    None => Err(Error::failed(format!("{} could not be read", this.name))),
                };
                if outcome.is_err() {
                    place.forget();
                }
                if needs {
                    unanswered.send_modify(|left| *left = left.saturating_sub(1));
                }
                told(i, &outcome);
                outcome
            }
        });
        let storing = async { Ok::<_, Error>(join_all(puts).await) };
        let (content, outcomes) = tokio::try_join!(reading, storing)?;
        let (size, stored) = (content.object.header.size, content.object.stored());
        Ok(Offered { name: self.name, system: self.system, size, stored, outcomes })
    }

    /// What `work` comes to. Who is in a hurry gives it so long once no required place is left in `hurry`, and drops it then: what is under way is a
    /// create, which is done whole or not at all.
    async fn in_time<T>(
        &self,
        hurry: Option<watch::Receiver<usize>>,
        long: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Some(mut hurry) = hurry else { return work.await };
        let late = async {
            // The sender lives as long as this does.
            drop(hurry.wait_for(|left| *left == 0).await);
            crate::clock::sleep(long).await;
        };
        tokio::select! {
            biased;
            done = work => done,
            () = late => Err(Error::failed(format!(
                "{} is not stored there yet: the required repositories have it, and this one did not answer within {} s after them",
                self.name,
                long.as_secs()
            ))
            .hint("archiving goes on without it; `pitr agent` stores there what it lacks, when it answers again")),
        }
    }

    /// Histories first, then the record of a gap, then the file itself, into one repository.
    async fn put(
        &self,
        ready: Result<Ready>,
        content: &WalContent,
        gap: Option<&AcceptedGap>,
    ) -> Result<Stored> {
        let Ready { system, missing } = ready?;
        store_histories(&system, self.name.timeline(), missing, self.path, self.compression).await?;
        if let Some(gap) = gap {
            system.record_gap(gap).await?;
        }
        let stored = match system.put_wal(&content.object).await? {
            // Whether one goes on where the other ends cannot be seen in what was sealed ahead: the file is read once more.
            Stored::Conflict(_) if content.object.header.key.is_some() => {
                system.put_wal(&self.read_again(&system).await?.object).await?
            }
            stored => stored,
        };
        match stored {
            Stored::Conflict(stored) => {
                Err(conflict::describe(&system, self.path, content, &stored, system.repository().name())
                    .await)
            }
            stored => Ok(stored),
        }
    }

    async fn read_again(&self, from: &System) -> Result<WalContent> {
        let Self { name, system, compression, .. } = *self;
        let (path, cluster) = (self.path.to_owned(), from.repository().cluster().clone());
        let reading =
            tokio::task::spawn_blocking(move || WalSource::open(&path)?.read(&cluster, system, compression));
        reading.await.map_err(|e| Error::failed(format!("reading {name} was cut off")).source(e))?
    }
}

/// The directory a file of `pg_wal` is in.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("."))
}

async fn store_histories(
    system: &System,
    child: TimelineId,
    mut missing: Vec<TimelineId>,
    path: &Path,
    compression: Compression,
) -> Result<()> {
    let pg_wal = directory_of(path);
    let mut wanted_by = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    while let Some(timeline) = missing.pop() {
        let name = WalFileName::History(timeline);
        let file: PathBuf = pg_wal.join(name.to_string());
        if !file.exists() {
            let Some(content) = history_of_ancestor(system, child, timeline, pg_wal).await? else {
                return Err(Error::refused(format!(
                    "{wanted_by} cannot be stored: {name}, without which it is unreachable, is neither in repository {} nor in {}",
                    system.repository().name(),
                    pg_wal.display()
                ))
                .hint("copy the history file from the server that was promoted into pg_wal; PostgreSQL keeps the segment meanwhile"));
            };
            store_history(system, timeline, &content, compression).await?;
            continue;
        }
        let (cluster, id) = (system.repository().cluster().clone(), system.identity().system);
        let content = WalSource::open(&file)?.read(&cluster, id, compression)?;
        if let Stored::Conflict(stored) = system.put_wal(&content.object).await? {
            return Err(
                conflict::describe(system, &file, &content, &stored, system.repository().name()).await
            );
        }
        let history = system.history(timeline).await?;
        if let Some(history) = history {
            missing.extend(missing_ancestors(system, &history).await?);
        }
        wanted_by = name.to_string();
    }
    Ok(())
}

/// The history of `ancestor` out of that of `child`, as it is in `pg_wal` or stored. A server that was made of a promoted one has its
/// timeline's history and need not have those of the timelines before.
async fn history_of_ancestor(
    system: &System,
    child: TimelineId,
    ancestor: TimelineId,
    pg_wal: &Path,
) -> Result<Option<Vec<u8>>> {
    let name = WalFileName::History(child);
    let content = match own_history(name, pg_wal)? {
        Some(own) => own,
        None => match system.fetch_wal_to_check(name).await? {
            Some(stored) if stored.can_open() => stored.plain()?,
            _ => return Ok(None),
        },
    };
    Ok(TimelineHistory::file_of_ancestor(&content, ancestor))
}

/// Stores the history of a timeline whose bytes came from the server itself, or finds that the same is stored.
///
/// # Errors
/// `Corrupt` for bytes that are no history of it, `Refused` where another one is stored.
pub(in crate::ops) async fn store_history(
    system: &System,
    timeline: TimelineId,
    content: &[u8],
    compression: Compression,
) -> Result<TimelineHistory> {
    let name = WalFileName::History(timeline);
    let history = TimelineHistory::parse(timeline, content).map_err(|e| {
        Error::corrupt(format!("the server's {name} is damaged"))
            .source(e)
            .hint("copy it from the server that was promoted")
    })?;
    let object = small_object(system.asked(name), content, compression)?;
    match system.put_wal(&object).await? {
        Stored::Conflict(stored) => Err(Error::refused(format!(
            "the server's {name} is not the one that is archived in repository {}: it left its parent elsewhere",
            system.repository().name()
        ))
        .hint(TWO_PROMOTED)
        .source(evidence::of_stored(system, name, Some(&stored)).await)),
        _ => Ok(history),
    }
}

/// # Errors
/// `Refused` if one of the directories is a copy that nothing may be archived from.
pub(super) fn refuse_copies(directories: &[PathBuf]) -> Result<()> {
    let Some(marked) = directories.iter().find(|dir| dir.join(COPY_MARKER).exists()) else { return Ok(()) };
    Err(Error::refused(format!(
        "{} is a copy that pitr restored: nothing is archived from it",
        marked.display()
    ))
    .hint("`pitr init --adopt` makes it a primary of its own"))
}

/// The control file of the data directory: for files that do not say whose they are.
pub(super) fn control_of(directories: &[PathBuf], name: WalFileName) -> Result<ControlFile> {
    let mut tried = Vec::new();
    for dir in directories {
        let path = dir.join("global/pg_control");
        match std::fs::read(&path) {
            Ok(bytes) => match ControlFile::parse(&bytes) {
                Ok(control) => return Ok(control),
                Err(e) => tried.push(format!("{}: {e}", path.display())),
            },
            Err(e) => tried.push(format!("{}: {e}", path.display())),
        }
    }
    Err(Error::failed(format!("cannot tell which cluster {name} belongs to:\n{}", tried.join("\n")))
        .hint("the configuration's data_dir must be the data directory, and readable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_owner_belongs_to_the_directory_it_lies_in() {
        let found = data_directories(Path::new("/srv/b/pg_wal/00000002.history"), Some(Path::new("/srv/a")));
        assert_eq!(found, [Path::new("/srv/b"), Path::new("/srv/a")]);
        let found = data_directories(Path::new("pg_wal/00000002.history"), Some(Path::new("/srv/a")));
        assert_eq!(found.first().map(PathBuf::as_path), Some(Path::new(".")));
    }
}
