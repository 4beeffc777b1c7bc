//! `archive-push`: one file into every required repository.
//!
//! ```text
//!  read, check, compress ──────────┐
//!  per repository: identity,       ├─► histories of its timeline ─► PUT to all at once ─► compare where something was there
//!  format, floor, histories ───────┘
//! ```
//! Invariants: nothing is acknowledged before every required repository holds it durably; no segment of a timeline above 1 before
//! its history and those of its ancestors (a segment without them is unreachable, and the next promotion would take its timeline
//! again); what is stored is never replaced. Optional repositories that fail are a warning: they are caught up later.
//! A crash before the PUT leaves nothing; after it, the repeated command finds its own bytes and says yes.

use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use super::conflict;
use super::file::{WalContent, WalSource};
use super::{COPY_MARKER, data_directories};
use crate::codec::Compression;
use crate::error::{Error, Result};
use crate::pgdata::ControlFile;
use crate::repo::archive::Stored;
use crate::repo::{RepoError, Repository, System};
use crate::wal::{SegmentSize, SystemId, TimelineHistory, TimelineId, WalFileName};

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
    let directories = data_directories(path, data_dir);
    refuse_copies(&directories)?;
    let source = WalSource::open(path)?;
    let (name, size) = (source.name, source.size);
    let origin = source.origin;
    let system = match origin {
        Some((system, _)) => system,
        None => system_of(&directories, name)?,
    };
    let cluster = repositories
        .first()
        .map(|r| r.cluster().clone())
        .ok_or_else(|| Error::usage("no repository is configured"))?;
    let reading = tokio::task::spawn_blocking(move || source.read(&cluster, system, compression));
    let (read, ready) =
        tokio::join!(reading, join_all(repositories.iter().map(|r| prepare(r, name, system, origin))));
    let content = read.map_err(|e| Error::failed(format!("reading {name} was cut off")).source(e))??;
    let mut report = PushReport {
        name,
        system,
        size,
        stored: content.object.stored(),
        outcomes: Vec::new(),
        warnings: Vec::new(),
    };
    let puts = ready
        .into_iter()
        .zip(repositories)
        .map(|(ready, repository)| put(ready, repository, &content, path, compression));
    let mut failure = None;
    for (outcome, repository) in join_all(puts).await.into_iter().zip(repositories) {
        match outcome {
            Ok(stored) => report.outcomes.push((repository.name().to_owned(), stored)),
            Err(e) if repository.is_required() => failure = failure.or(Some(e)),
            Err(e) => {
                report.warnings.push(format!("optional repository {}: {}", repository.name(), e.report()));
            }
        }
    }
    match failure {
        Some(e) => Err(e),
        None => Ok(report),
    }
}

/// Looks at one repository while the file is read. The timelines returned are those whose history must be stored first.
async fn prepare(
    repository: &Repository,
    name: WalFileName,
    system: SystemId,
    origin: Option<(SystemId, SegmentSize)>,
) -> Result<(System, Vec<TimelineId>)> {
    let opened = match repository.open(system).await {
        Err(RepoError::NoIdentity { .. }) => return Err(foreign(repository, name, system).await),
        opened => opened?,
    };
    if let Some((_, size)) = origin.filter(|(_, size)| *size != opened.identity().segment_size) {
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
        missing_histories(&opened, name)
    );
    writable?;
    above?;
    Ok((opened, missing?))
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
async fn missing_histories(system: &System, name: WalFileName) -> Result<Vec<TimelineId>> {
    let needs = matches!(name, WalFileName::Segment(_) | WalFileName::Partial(_))
        && name.timeline() != TimelineId::FIRST;
    if !needs {
        return Ok(Vec::new());
    }
    let Some(history) = system.history(name.timeline()).await? else {
        return Ok(vec![name.timeline()]);
    };
    missing_ancestors(system, &history).await
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

/// Histories first, then the file itself, into one repository.
async fn put(
    ready: Result<(System, Vec<TimelineId>)>,
    repository: &Repository,
    content: &WalContent,
    path: &Path,
    compression: Compression,
) -> Result<Stored> {
    let (system, missing) = ready?;
    store_histories(&system, missing, path, compression).await?;
    match system.put_wal(&content.object).await? {
        Stored::Conflict(stored) => {
            Err(conflict::describe(&system, path, content, &stored, repository.name()).await)
        }
        stored => Ok(stored),
    }
}

async fn store_histories(
    system: &System,
    mut missing: Vec<TimelineId>,
    path: &Path,
    compression: Compression,
) -> Result<()> {
    let pg_wal = path.parent().unwrap_or_else(|| Path::new("."));
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

fn refuse_copies(directories: &[PathBuf]) -> Result<()> {
    let Some(marked) = directories.iter().find(|dir| dir.join(COPY_MARKER).exists()) else { return Ok(()) };
    Err(Error::refused(format!(
        "{} is a copy that pitr restored: nothing is archived from it",
        marked.display()
    ))
    .hint("`pitr init --adopt` makes it a primary of its own"))
}

/// The system identifier of the data directory, from its control file: for files that do not say whose they are.
fn system_of(directories: &[PathBuf], name: WalFileName) -> Result<SystemId> {
    let mut tried = Vec::new();
    for dir in directories {
        let path = dir.join("global/pg_control");
        match std::fs::read(&path) {
            Ok(bytes) => match ControlFile::parse(&bytes) {
                Ok(control) => return Ok(control.system_id),
                Err(e) => tried.push(format!("{}: {e}", path.display())),
            },
            Err(e) => tried.push(format!("{}: {e}", path.display())),
        }
    }
    Err(Error::failed(format!("cannot tell which cluster {name} belongs to:\n{}", tried.join("\n")))
        .hint("the configuration's data_dir must be the data directory, and readable"))
}
