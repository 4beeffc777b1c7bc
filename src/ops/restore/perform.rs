//! The restore itself: what was decided is done, in an order that a kill at any point leaves harmless.
//!
//! ```text
//!  pin ─► lock ─► old contents aside ─► marker ─► directories, empty files ─► restore_command tried ─► packs ─► settings ─► sync ─► pg_control
//!                               └ from here on the directory is "unfinished"                                        and no longer ┘
//! ```
//! Without `global/pg_control` PostgreSQL refuses to start; a repeated restore knows the marker and begins anew. Invariants: nothing
//! is overwritten that the marker does not prove ours; `pg_control` appears only when every other byte is durable and every digest
//! matched; old tablespaces are moved before a marker can name their places. Source of truth: RECOVERY.md 21 to 23.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::durable::{self, DirLock, Owner, Settle, TreeWriter};
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::pgdata::conf::{self, IncludeKind, ItemKind};
use crate::pgdata::paths::required_directories;

use super::Purpose;
use super::directory::{Place, State, cannot, durable_error};
use super::fetch;
use super::hold::Hold;
use super::layout;
use super::marker::{self, Marker};
use super::moving;
use super::outside::{self, Home};
use super::prepare::{LOG_DIR, Prepared, SOCKET_DIR};
use super::tablespaces::{self, Room};
use super::trees::Trees;
use super::trial::Trial;
use crate::ops::runs::RowKind;

/// How often a restore looks whether there is enough to be written ahead, and how much is enough.
const AHEAD_EVERY: Duration = Duration::from_millis(100);
const AHEAD_BYTES: u64 = 128 << 20;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The restored directory.
    pub target: PathBuf,
    /// Files written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where the old contents are.
    pub aside: Option<PathBuf>,
    /// Files written outside the data directory.
    pub outside: Vec<PathBuf>,
    /// Why the backup could not be kept from expiring while it was read, if it could not.
    pub unpinned: Option<String>,
}

/// Performs a restore.
///
/// Cancelled, it ends with kind `Interrupted` and releases its pin; dropped or killed, it leaves a pin that runs out by itself. In
/// all these cases the directory is unfinished (see the module).
///
/// # Errors
/// As store and file system answer; kind `Corrupt` if stored bytes are damaged, `Busy` if another restore is at work there.
pub async fn perform(
    prepared: &Prepared,
    jobs: usize,
    now: Timestamp,
    cancel: &CancellationToken,
    progress: &dyn Progress,
) -> Result<Report> {
    let note = format!("restore to {}", prepared.place.path.display());
    let verdict = prepared.stored.verdict();
    let hold = Hold::take(prepared.stored.system(), &verdict.id, verdict.wal_floor, note, now);
    let mut hold = hold.await?;
    let unpinned = hold.refused();
    let work = Work { prepared, jobs, progress };
    let done = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::interrupted("the restore was interrupted").hint(
            "what is in the target directory is unfinished: repeat the command, or delete the directory",
        )),
        done = Box::pin(work.run()) => done,
        () = hold.renew(progress) => Err(Error::failed("renewing the pin ended")),
    };
    hold.release(progress).await;
    done.map(|report| Report { unpinned, ..report })
}

struct Work<'a> {
    prepared: &'a Prepared,
    jobs: usize,
    progress: &'a dyn Progress,
}

impl Work<'_> {
    async fn run(&self) -> Result<Report> {
        let p = self.prepared;
        self.wal_is_kept().await?;
        let _locks = self.clear()?;
        let trees = Arc::new(Trees::new(p));
        // Begun before the first byte is written: what fails to reach the disk from here on is told at the end.
        let settle = self.settle()?;
        let total = self.skeleton(&trees)?;
        self.try_command().await?;
        self.progress.begin("restoring files", Some(total));
        let wanted = |path: &[u8]| trees.takes(path);
        let fetching = fetch::fetch(&p.stored, &p.image, &wanted, self.jobs, &trees, self.progress);
        tokio::select! {
            biased;
            done = fetching => done?,
            never = write_ahead(&settle, &trees) => match never {},
        }
        self.progress.end();
        let outside = self.own_files(&trees)?;
        trees.links(&p.image)?;
        self.progress.begin("making it durable", None);
        self.sync(settle).await?;
        self.progress.end();
        marker::finish(&p.place.path, &p.control, p.access.file_mode(), p.owner())?;
        Ok(Report {
            target: p.place.path.clone(),
            files: p.image.files(),
            bytes: total,
            aside: p.aside.clone(),
            outside,
            unpinned: None,
        })
    }

    /// Expiry may have let WAL go between the plan and the pin. Later it sees the pin.
    async fn wal_is_kept(&self) -> Result<()> {
        let system = self.prepared.stored.system();
        let Some(floor) = system.floor().await? else { return Ok(()) };
        let gone = self.prepared.plan.segments.iter().find(|name| !floor.keeps(**name));
        gone.map_or(Ok(()), |name| {
            let gone = Error::not_found(format!("{name} has expired since the restore was planned"));
            Err(gone.hint("repeat the command: it plans with what is left"))
        })
    }

    /// Makes target and tablespaces empty, and puts the marker down. Two restores into one directory, or a server that was started
    /// since the plan was made, meet here: the locks are held until the restore ends.
    fn clear(&self) -> Result<Vec<DirLock>> {
        let p = self.prepared;
        let mut locks = Vec::new();
        if p.place.state != State::Absent {
            locks.push(lock(&p.place.path)?);
        }
        if Place::inspect(&p.place.path)? != p.place {
            return Err(Error::refused(format!(
                "{} changed while the restore was decided",
                p.place.path.display()
            ))
            .hint("somebody else is at work there: look what it is, and repeat the command"));
        }
        let marked = self.clear_tablespaces()?;
        let root = TreeWriter::new(&p.place.path, p.owner());
        let aside = p.aside.as_deref().unwrap_or(&p.place.path);
        if p.place.is_occupied() && !p.old_tablespaces.is_empty() && !p.place.mount_point {
            moving::begin(&p.place.path, aside, p.owner())?;
        }
        p.place.clear(aside, &root, p.access.directory_mode(), p.owner())?;
        if p.place.state == State::Absent || (p.place.is_occupied() && !p.place.mount_point) {
            locks.push(lock(&p.place.path)?);
        }
        if p.aside.is_some() {
            p.old_tablespaces.iter().try_for_each(|old| old.set_aside(aside, p.owner()))?;
            moving::end(aside)?;
        }
        Marker::new(p.stored.verdict().id.as_str(), marked).write(&p.place.path, p.owner())?;
        Ok(locks)
    }

    /// Empties the places of tablespaces of a killed restore; returns those that the marker must name.
    fn clear_tablespaces(&self) -> Result<Vec<PathBuf>> {
        let p = self.prepared;
        let mut marked = match p.place.state {
            State::Leftover => {
                let known = Marker::read(&p.place.path).map(|m| m.tablespaces).unwrap_or_default();
                [known, tablespaces::mapped_in(&p.place.path, p.stored.verdict().major)].concat()
            }
            _ => Vec::new(),
        };
        for (tablespace, room) in &p.tablespaces {
            let (Some(place), Some(version)) = (&tablespace.place, &p.version_folder) else { continue };
            if *room == Room::Leftover {
                let inside = place.join(version);
                std::fs::remove_dir_all(&inside).map_err(|e| cannot("remove", &inside, e))?;
            }
            if !marked.contains(place) {
                marked.push(place.clone());
            }
        }
        Ok(marked)
    }

    /// All directories, and the files that have no bytes; returns the bytes of the others.
    fn skeleton(&self, trees: &Trees) -> Result<u64> {
        let p = self.prepared;
        let mode = p.access.directory_mode();
        let root = trees.root();
        for dir in required_directories(p.stored.verdict().major) {
            root.create_dir(Path::new(dir), mode).map_err(durable_error)?;
        }
        if p.purpose == Purpose::Copy {
            for dir in [SOCKET_DIR, LOG_DIR] {
                root.create_dir(Path::new(dir), 0o700).map_err(durable_error)?;
            }
        }
        let (mut rows, mut total) = (p.image.rows(), 0_u64);
        while let Some(row) = rows.next_row()? {
            let Some((writer, path)) = trees.destination(row.path) else { continue };
            match row.kind {
                RowKind::Directory => writer.create_dir(&path, row.mode).map_err(durable_error)?,
                RowKind::File if row.size == 0 => trees.empty_file(writer, &path, &row)?,
                RowKind::File => total = total.saturating_add(row.size),
                RowKind::Symlink => {}
            }
        }
        Ok(total)
    }

    async fn try_command(&self) -> Result<()> {
        let p = self.prepared;
        let Some(segment) = p.plan.segments.first() else { return Ok(()) };
        let trial = Trial {
            command: &p.settings.restore_command,
            root: &p.place.path,
            segment: *segment,
            size: p.stored.verdict().segment_size,
            owner: p.owner(),
            binary: &p.binary,
        };
        trial.run().await
    }

    /// Writes settings, markers and the tablespace map; returns what was written outside the data directory.
    fn own_files(&self, trees: &Trees) -> Result<Vec<PathBuf>> {
        let p = self.prepared;
        let root = trees.root();
        let write = |path: &Path, bytes: &[u8], mode| {
            durable::write_replace(path, bytes, mode, p.owner()).map_err(durable_error)
        };
        for file in &p.files {
            let path = root.resolve(&file.path).map_err(durable_error)?;
            write(&path, &file.bytes, p.access.file_mode())?;
        }
        if !p.tablespaces.is_empty() {
            let known: Vec<_> = p.tablespaces.iter().map(|(t, _)| t.clone()).collect();
            write(
                &root.root().join(layout::TABLESPACE_MAP),
                &tablespaces::map_bytes(&known, p.stored.verdict().major)?,
                p.access.file_mode(),
            )?;
        }
        let Home::Written { files, .. } = &p.home else { return Ok(Vec::new()) };
        let mut written = Vec::new();
        for (path, bytes) in files {
            let above = path.parent().unwrap_or_else(|| Path::new("/"));
            let included = include_directories(above, bytes);
            let made = make_dirs(above, p.owner())
                .and_then(|()| included.iter().try_for_each(|dir| make_dirs(dir, p.owner())))
                .and_then(|()| write(path, bytes, outside::mode(&p.home, path, bytes)));
            match made {
                Ok(()) => written.push(path.clone()),
                Err(error) => {
                    self.progress.note(&format!("{} could not be written: {error}", path.display()));
                }
            }
        }
        Ok(written)
    }

    /// Makes the places of the tablespaces, which may lie on file systems of their own, and takes note of all of them.
    fn settle(&self) -> Result<Arc<Settle>> {
        let p = self.prepared;
        let places = p.tablespaces.iter().filter_map(|(t, _)| t.place.clone());
        let mut roots = vec![p.place.path.clone()];
        for place in places {
            TreeWriter::new(&place, p.owner()).make_root(0o700).map_err(durable_error)?;
            roots.push(place);
        }
        Settle::begin(roots).map(Arc::new).map_err(durable_error)
    }

    async fn sync(&self, settle: Arc<Settle>) -> Result<()> {
        let threads = self.jobs;
        let synced = tokio::task::spawn_blocking(move || settle.finish(threads)).await;
        synced.map_err(|e| Error::failed("a syncing thread ended early").source(e))?.map_err(durable_error)
    }
}

/// Lets the disk work while packs are still read: the kernel would begin after half a minute, or when memory is short.
async fn write_ahead(settle: &Arc<Settle>, trees: &Trees) -> Infallible {
    let mut begun = 0;
    loop {
        clock::sleep(AHEAD_EVERY).await;
        let written = trees.written();
        if written.saturating_sub(begun) >= AHEAD_BYTES {
            begun = written;
            let settle = Arc::clone(settle);
            let _ = tokio::task::spawn_blocking(move || settle.ahead()).await;
        }
    }
}

fn lock(dir: &Path) -> Result<DirLock> {
    DirLock::take(dir).map_err(durable_error)?.ok_or_else(|| {
        Error::new(Kind::Busy, format!("another restore is at work in {}", dir.display()))
            .hint("let it end, or stop it and repeat the command")
    })
}

/// Directories that a configuration file in `above` includes: PostgreSQL does not start without them, empty or not (Debian's
/// `conf.d`).
fn include_directories(above: &Path, text: &[u8]) -> Vec<PathBuf> {
    let items = conf::parse(text).unwrap_or_default();
    let included = items.into_iter().filter_map(|item| match item.kind {
        ItemKind::Include { kind: IncludeKind::Directory, path } => Some(above.join(path)),
        ItemKind::Include { .. } | ItemKind::Setting { .. } => None,
    });
    included.collect()
}

/// Directories of a configuration outside the data directory, from the first that is missing on.
fn make_dirs(dir: &Path, owner: Option<Owner>) -> Result<()> {
    let exists = dir.ancestors().find(|p| p.is_dir()).unwrap_or_else(|| Path::new("/"));
    match dir.strip_prefix(exists) {
        Ok(missing) if !missing.as_os_str().is_empty() => {
            TreeWriter::new(exists, owner).create_dir(missing, 0o755).map_err(durable_error)?;
            // Each new name, from the deepest up to the one in the directory that was there.
            let made = dir.ancestors().take_while(|above| *above != exists);
            made.filter_map(Path::parent).try_for_each(durable::sync_dir).map_err(durable_error)
        }
        _ => Ok(()),
    }
}
