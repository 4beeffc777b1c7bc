//! The restore itself: what was decided is done, in an order that a kill at any point leaves harmless.
//!
//! ```text
//!  pin ─► lock ─► old contents aside ─► marker ─► directories, empty files ─► restore_command tried ─► packs ─► settings ─► fsync ─► pg_control
//!                               └ from here on the directory is "unfinished"                                        and no longer ┘
//! ```
//! Without `global/pg_control` PostgreSQL refuses to start; a repeated restore knows the marker and begins anew. Invariants: nothing
//! is overwritten that the marker does not prove ours; `pg_control` appears only when every other byte is durable and every digest
//! matched; old tablespaces are moved before a marker can name their places. Source of truth: RECOVERY.md 21 to 23.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;
use tokio_util::sync::CancellationToken;

use crate::durable::{self, DirLock, DurableError, Owner, TreeWriter};
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::pgdata::conf::{self, IncludeKind, ItemKind};
use crate::pgdata::paths::required_directories;

use super::Purpose;
use super::directory::{Place, State, cannot, durable_error};
use super::fetch::{self, Sink};
use super::hold::Hold;
use super::image::{Image, Piece, RowKind};
use super::layout::{self, Destination, Layout};
use super::marker::{self, Marker};
use super::outside::Home;
use super::prepare::{LOG_DIR, Prepared, SOCKET_DIR};
use super::tablespaces::{self, Room};
use super::trial::Trial;

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
    /// The backup could not be kept from expiring while it was read.
    pub unpinned: bool,
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
    let unpinned = !hold.is_pinned();
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
        let trees = Trees::new(p);
        self.skeleton(&trees)?;
        self.try_command().await?;
        let image = &p.image;
        let wanted: Vec<Piece> =
            image.pieces().iter().filter(|piece| trees.destination(piece.row).is_some()).copied().collect();
        let total = wanted.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.len));
        self.progress.begin("restoring files", Some(total));
        let trees = Arc::new(trees);
        fetch::fetch(&p.stored, image, &wanted, self.jobs, &trees, self.progress).await?;
        self.progress.end();
        let outside = self.own_files(&trees)?;
        trees.links(image)?;
        trees.times(image)?;
        self.progress.begin("making it durable", None);
        self.sync().await?;
        self.progress.end();
        marker::finish(&p.place.path, &p.control, p.access.file_mode(), p.owner())?;
        let files = image.rows().iter().filter(|row| row.kind == RowKind::File).count();
        Ok(Report {
            target: p.place.path.clone(),
            files: u64::try_from(files).unwrap_or(u64::MAX),
            bytes: total,
            aside: p.aside.clone(),
            outside,
            unpinned: false,
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
        p.place.clear(aside, &root, p.access.directory_mode())?;
        if p.place.state == State::Absent || (p.place.is_occupied() && !p.place.mount_point) {
            locks.push(lock(&p.place.path)?);
        }
        Marker::new(p.stored.verdict().id.as_str(), marked).write(&p.place.path, p.owner())?;
        Ok(locks)
    }

    /// Empties the places of tablespaces; returns those that the marker must name.
    fn clear_tablespaces(&self) -> Result<Vec<PathBuf>> {
        let p = self.prepared;
        let mut marked = match p.place.state {
            State::Leftover => {
                let known = Marker::read(&p.place.path).map(|m| m.tablespaces).unwrap_or_default();
                [known, tablespaces::mapped_in(&p.place.path, p.stored.verdict().major)].concat()
            }
            _ => Vec::new(),
        };
        for old in &p.old_tablespaces {
            old.set_aside(&p.place.path, p.owner())?;
        }
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

    /// All directories, and all files without their bytes.
    fn skeleton(&self, trees: &Trees) -> Result<()> {
        let p = self.prepared;
        let mode = p.access.directory_mode();
        for writer in trees.writers.iter().skip(1) {
            writer.make_root(0o700).map_err(durable_error)?;
        }
        let root = trees.root();
        for dir in required_directories(p.stored.verdict().major) {
            root.create_dir(Path::new(dir), mode).map_err(durable_error)?;
        }
        if p.purpose == Purpose::Copy {
            for dir in [SOCKET_DIR, LOG_DIR] {
                root.create_dir(Path::new(dir), 0o700).map_err(durable_error)?;
            }
        }
        for row in p.image.rows() {
            let Some((tree, path)) = trees.layout.destination(p.image.path(row)) else { continue };
            let Some(writer) = trees.writers.get(tree) else { continue };
            match row.kind {
                RowKind::Directory => writer.create_dir(&path, row.mode).map_err(durable_error)?,
                RowKind::File => create(writer, &path, row.mode, mode).map_err(durable_error)?,
                RowKind::Symlink => {}
            }
        }
        Ok(())
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
                .and_then(|()| write(path, bytes, 0o640));
            match made {
                Ok(()) => written.push(path.clone()),
                Err(error) => {
                    self.progress.note(&format!("{} could not be written: {error}", path.display()));
                }
            }
        }
        Ok(written)
    }

    async fn sync(&self) -> Result<()> {
        let places = self.prepared.tablespaces.iter().filter_map(|(t, _)| t.place.clone());
        let roots: Vec<PathBuf> = std::iter::once(self.prepared.place.path.clone()).chain(places).collect();
        let threads = self.jobs;
        let synced = tokio::task::spawn_blocking(move || {
            roots.iter().try_for_each(|root| durable::sync_tree(root, threads))
        });
        synced
            .await
            .map_err(|e| Error::failed("a syncing thread ended early").source(e))?
            .map_err(durable_error)
    }
}

fn lock(dir: &Path) -> Result<DirLock> {
    DirLock::take(dir).map_err(durable_error)?.ok_or_else(|| {
        Error::new(Kind::Busy, format!("another restore is at work in {}", dir.display()))
            .hint("let it end, or stop it and repeat the command")
    })
}

/// A file without its bytes; makes its directory if no row did.
fn create(writer: &TreeWriter, path: &Path, mode: u32, dir_mode: u32) -> Result<(), DurableError> {
    match writer.create_file(path, mode) {
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
            if let Some(above) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                writer.create_dir(above, dir_mode)?;
            }
            writer.create_file(path, mode).map(|_| ())
        }
        other => other.map(|_| ()),
    }
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

/// The trees that are written: the data directory and each tablespace elsewhere.
struct Trees {
    layout: Layout,
    writers: Vec<TreeWriter>,
    /// Where each file goes, by row: worked out once, since every frame of a large file needs it. A copy of the paths, because
    /// writing threads outlive borrows.
    goes: Vec<Option<Destination>>,
}

impl Trees {
    fn new(p: &Prepared) -> Self {
        let places = p.tablespaces.iter().filter_map(|(t, _)| t.place.as_ref());
        let roots = std::iter::once(&p.place.path).chain(places);
        let writers = roots.map(|root| TreeWriter::new(root, p.owner())).collect();
        let goes = p.image.rows().iter().map(|row| match row.kind {
            RowKind::File => p.layout.destination(p.image.path(row)),
            RowKind::Directory | RowKind::Symlink => None,
        });
        Self { layout: p.layout.clone(), writers, goes: goes.collect() }
    }

    /// The data directory.
    fn root(&self) -> &TreeWriter {
        self.writers.first().expect("new() puts the data directory first")
    }

    fn destination(&self, row: u32) -> Option<&Destination> {
        self.goes.get(usize::try_from(row).ok()?)?.as_ref()
    }

    /// Symbolic links come last, so that no file can be written through one. Those of tablespaces are PostgreSQL's to make.
    fn links(&self, image: &Image) -> Result<()> {
        for row in image.rows().iter().filter(|row| row.kind == RowKind::Symlink) {
            let path = image.path(row);
            if path.starts_with(b"pg_tblspc/") {
                continue;
            }
            if let Some((0, path)) = self.layout.destination(path) {
                use std::os::unix::ffi::OsStrExt as _;
                let target = Path::new(std::ffi::OsStr::from_bytes(image.target(row)));
                self.root().create_symlink(&path, target).map_err(durable_error)?;
            }
        }
        Ok(())
    }

    /// Modification times, for later comparisons (`--delta`) and for people.
    fn times(&self, image: &Image) -> Result<()> {
        for (row, goes) in image.rows().iter().zip(&self.goes) {
            let Some((tree, path)) = goes else { continue };
            let Some(writer) = self.writers.get(*tree) else { continue };
            let path = writer.resolve(path).map_err(durable_error)?;
            let time = TimeSpec::new(row.mtime, 0);
            nix::sys::stat::utimensat(
                nix::fcntl::AT_FDCWD,
                &path,
                &time,
                &time,
                UtimensatFlags::NoFollowSymlink,
            )
            .map_err(|e| cannot("set the time of", &path, e.into()))?;
        }
        Ok(())
    }
}

impl Sink for Trees {
    fn put(&self, row: u32, at: u64, bytes: &[u8]) -> Result<()> {
        let Some((tree, path)) = self.destination(row) else { return Ok(()) };
        let Some(writer) = self.writers.get(*tree) else { return Ok(()) };
        let file = writer.open_file(path).map_err(durable_error)?;
        file.write_at(at, bytes).map_err(durable_error)
    }
}
