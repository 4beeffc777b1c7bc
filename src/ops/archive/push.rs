//! `archive-push`: one file into every required repository.
//!
//! ```text
//!  read, check, compress ──────────┐
//!  per repository: identity,       ├─► histories of its timeline ─► PUT to all at once ─► compare where something was there
//!  format, floor, histories ───────┘
//! ```
//! Invariants: nothing is acknowledged before every required repository holds it durably; no segment of a timeline above 1 before
//! its history and those of its ancestors (a segment without them is unreachable, and the next promotion would take its timeline
//! again); what is stored is never replaced. A damaged segment is refused unless an operator accepted it ([`accept()`]). Optional repositories that fail are a warning: they are caught up later.
//! A crash before the PUT leaves nothing; after it, the repeated command finds its own bytes and says yes.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use super::file::{WalContent, WalSource, small_object};
use super::{COPY_MARKER, data_directories};
use super::{accept, conflict};
use crate::codec::Compression;
use crate::error::{Error, Kind, Result};
use crate::pgdata::ControlFile;
use crate::repo::archive::Stored;
use crate::repo::objects::AcceptedGap;
use crate::repo::path::ClusterName;
use crate::repo::{RepoError, Repository, System};
use crate::wal::timeline::MAX_HISTORY_BYTES;
use crate::wal::{SegmentSize, SystemId, TimelineHistory, TimelineId, WalFileName};

/// Advice where two histories of one timeline meet.
const TWO_PROMOTED: &str =
    "two servers were promoted to the same timeline: only one of them may go on archiving here";

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
    let source = WalSource::open(path)?;
    let (name, origin) = (source.name, source.origin);
    let system = match origin {
        Some((system, _)) => system,
        None => control_of(&data_directories(path, data_dir), name)?.system_id,
    };
    let cluster = cluster_of(repositories)?;
    let reading = tokio::task::spawn_blocking(move || source.read(&cluster, system, compression));
    let reading = async move {
        reading.await.map_err(|e| Error::failed(format!("reading {name} was cut off")).source(e))?
    };
    let offer = Offer { path, name, system, segment_size: origin.map(|(_, size)| size), compression };
    offer.to(repositories, reading, None).await
}

/// The cluster that all of `repositories` are opened for.
pub(super) fn cluster_of(repositories: &[Repository]) -> Result<ClusterName> {
    repositories.first().map(|r| r.cluster().clone()).ok_or_else(|| {
        Error::usage("no repository is configured")
            .hint("add a [[repository]] to the configuration, or run `pitr init`")
    })
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
        let (read, ready) = tokio::join!(reading, join_all(repositories.iter().map(|r| self.prepare(r))));
        let content = read?;
        let mut report = PushReport {
            name: self.name,
            system: self.system,
            size: content.object.header.size,
            stored: content.object.stored(),
            outcomes: Vec::new(),
            warnings: Vec::new(),
        };
        let puts = ready.into_iter().map(|ready| self.put(ready, &content, gap));
        let mut failure = None;
        for (outcome, repository) in join_all(puts).await.into_iter().zip(repositories) {
            match outcome {
                Ok(stored) => report.outcomes.push((repository.name().to_owned(), stored)),
                Err(e) if repository.is_required() => failure = failure.or(Some(e)),
                Err(e) => {
                    report.warnings.push(format!(
                        "optional repository {}: {}",
                        repository.name(),
                        e.report()
                    ));
                }
            }
        }
        match failure {
            Some(e) => Err(e),
            None => Ok(report),
        }
    }

    /// Looks at one repository while the file is read. The timelines returned are those whose history must be stored first.
    async fn prepare(&self, repository: &Repository) -> Result<(System, Vec<TimelineId>)> {
        let (name, system) = (self.name, self.system);
        let opened = match repository.open(system).await {
            Err(RepoError::NoIdentity { .. }) => return Err(foreign(repository, name, system).await),
            opened => opened?,
        };
        if let Some(size) = self.segment_size.filter(|size| *size != opened.identity().segment_size) {
            let expected = opened.identity().segment_size.bytes();
            return Err(Error::refused(format!(
                "{name} has segments of {} bytes, but system {system} was initialised in repository {} with {expected}",
                size.bytes(),
                repository.name(),
            ))
            .hint("pg_resetwal can change the segment size: take the cluster for a new one, under a new name"));
        }
        let (writable, above, missing) = tokio::join!(
            repository.check_writable(),
            opened.check_above_floor(name),
            missing_histories(&opened, name, directory_of(self.path))
        );
        writable?;
        above?;
        Ok((opened, missing?))
    }

    /// Histories first, then the record of a gap, then the file itself, into one repository.
    async fn put(
        &self,
        ready: Result<(System, Vec<TimelineId>)>,
        content: &WalContent,
        gap: Option<&AcceptedGap>,
    ) -> Result<Stored> {
        let (system, missing) = ready?;
        store_histories(&system, missing, self.path, self.compression).await?;
        if let Some(gap) = gap {
            system.record_gap(gap).await?;
        }
        match system.put_wal(&content.object).await? {
            Stored::Conflict(stored) => {
                Err(conflict::describe(&system, self.path, content, &stored, system.repository().name())
                    .await)
            }
            stored => Ok(stored),
        }
    }
}

/// No folder of this system identifier: another cluster, or one that was never initialised.
async fn foreign(repository: &Repository, name: WalFileName, system: SystemId) -> Error {
    let others = match repository.systems().await {
        Ok(systems) => systems,
        Err(e) => return e.into(),
    };
    let (cluster, place) = (repository.cluster(), repository.name());
    if others.is_empty() {
        return Error::not_found(format!(
            "repository {place} holds no cluster {cluster}, so {name} cannot be stored"
        ))
        .hint("run `pitr init`; if it was run before, is the disk mounted, and is the URL right?");
    }
    let known: Vec<String> = others.iter().map(ToString::to_string).collect();
    Error::refused(format!("{name} was written by system {system}, but cluster {cluster} in repository {place} is system {}", known.join(", ")))
        .hint("another cluster's archive_command points here, or this one is new under an old name: then `pitr init --system-id`")
}

/// Timelines on the way to `name` whose history is not stored, the segment's own first. Ancestors of a history that is not
/// stored either are found when it is read from `pg_wal`.
async fn missing_histories(system: &System, name: WalFileName, pg_wal: &Path) -> Result<Vec<TimelineId>> {
    let needs = matches!(name, WalFileName::Segment(_) | WalFileName::Partial(_))
        && name.timeline() != TimelineId::FIRST;
    if !needs {
        return Ok(Vec::new());
    }
    let Some(history) = system.history(name.timeline()).await? else {
        return Ok(vec![name.timeline()]);
    };
    refuse_other_history(&history, pg_wal, system.repository().name())?;
    missing_ancestors(system, &history).await
}

/// The server's own history of a segment's timeline must be the stored one: of two servers that were promoted to one timeline only
/// one may archive here. PostgreSQL offers no history of the time when archiving was off (RECOVERY 8), so a segment may be the first
/// file that could show it. A history that the server removed proves nothing.
fn refuse_other_history(stored: &TimelineHistory, pg_wal: &Path, repository: &str) -> Result<()> {
    let name = WalFileName::History(stored.timeline());
    let Ok(file) = std::fs::File::open(pg_wal.join(name.to_string())) else { return Ok(()) };
    let mut own = Vec::new();
    let limit = u64::try_from(MAX_HISTORY_BYTES).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut own).map_err(|e| {
        Error::failed(format!("cannot read {name} in {}", pg_wal.display()))
            .source(e)
            .hint("run the command as the owner of the data directory")
    })?;
    if TimelineHistory::parse(stored.timeline(), &own).is_ok_and(|own| own == *stored) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{name} in {} is not the one that is archived in repository {repository}: this server left its parent elsewhere",
        pg_wal.display()
    ))
    .hint(TWO_PROMOTED))
}

/// The directory a file of `pg_wal` is in.
fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("."))
}

async fn missing_ancestors(system: &System, history: &TimelineHistory) -> Result<Vec<TimelineId>> {
    let mut missing = Vec::new();
    for parent in history.parents().iter().filter(|p| p.timeline != TimelineId::FIRST) {
        if system.history(parent.timeline).await?.is_none() {
            missing.push(parent.timeline);
        }
    }
    Ok(missing)
}

async fn store_histories(
    system: &System,
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
            return Err(Error::refused(format!(
                "{wanted_by} cannot be stored: {name}, without which it is unreachable, is neither in repository {} nor in {}",
                system.repository().name(),
                pg_wal.display()
            ))
            .hint("copy the history file from the server that was promoted into pg_wal; PostgreSQL keeps the segment meanwhile"));
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
        Stored::Conflict(_) => Err(Error::refused(format!(
            "the server's {name} is not the one that is archived in repository {}: it left its parent elsewhere",
            system.repository().name()
        ))
        .hint(TWO_PROMOTED)),
        _ => Ok(history),
    }
}

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
    use crate::durable::write_replace;
    use crate::error::Kind;

    #[test]
    fn a_server_whose_own_history_is_another_one_does_not_archive_on_that_timeline() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("00000002.history");
        let put = |text: &str| write_replace(&own, text.as_bytes(), 0o600, None).unwrap();
        let timeline = TimelineId::new(2).unwrap();
        let stored = TimelineHistory::parse(timeline, b"1\t0/3000100\tx\n").unwrap();
        let check = || refuse_other_history(&stored, dir.path(), "local");
        check().unwrap();
        put("1\t0/3000100\tx\n");
        check().unwrap();
        for other in ["1\t0/4000100\tx\n", "torn"] {
            put(other);
            assert_eq!(check().unwrap_err().kind(), Kind::Refused, "{other}");
        }
    }

    #[test]
    fn a_file_without_an_owner_belongs_to_the_directory_it_lies_in() {
        let found = data_directories(Path::new("/srv/b/pg_wal/00000002.history"), Some(Path::new("/srv/a")));
        assert_eq!(found, [Path::new("/srv/b"), Path::new("/srv/a")]);
        let found = data_directories(Path::new("pg_wal/00000002.history"), Some(Path::new("/srv/a")));
        assert_eq!(found.first().map(PathBuf::as_path), Some(Path::new(".")));
    }
}
