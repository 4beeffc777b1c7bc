//! A restored data directory: made by many threads, then made durable as a whole.
//!
//! Files are created once (never over an existing one), written at offsets from several threads and closed without
//! fsync; `settle` then makes all of them durable, with [`sync_tree`] where the file system cannot do it in one sweep. Until
//! that has returned, the directory is not restored.
//! Invariants: a path out of a manifest cannot lead out of the root; memory does not grow with the number of files.
//! Source of truth: RECOVERY.md 21; `SyncDataDirectory` in `fd.c` for what PostgreSQL itself fsyncs.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};

use super::crash::point;
use super::{Context as _, DurableError, Owner, make_dir, parent_of, sync_dir};

/// Paths between the walker and the threads that fsync.
const QUEUE: usize = 256;

/// Creates files and directories below one root.
#[derive(Debug, Clone)]
pub struct TreeWriter {
    root: PathBuf,
    owner: Option<Owner>,
}

impl TreeWriter {
    /// A writer below `root`, which must exist or be made with [`TreeWriter::make_root`].
    pub fn new(root: impl Into<PathBuf>, owner: Option<Owner>) -> Self {
        Self { root: root.into(), owner }
    }

    /// The directory everything goes into.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the root itself (not its parents); an existing one is given owner and mode too.
    pub fn make_root(&self, mode: u32) -> Result<(), DurableError> {
        make_dir(&self.root, mode, self.owner)?;
        self.dress(&self.root, mode)
    }

    /// Makes a directory with exactly this mode, and those above it. An existing one gets the mode.
    pub fn create_dir(&self, below: &Path, mode: u32) -> Result<(), DurableError> {
        let target = self.resolve(below)?;
        let mut at = self.root.clone();
        for part in below.components() {
            at.push(part);
            make_dir(&at, mode, self.owner)?;
            point("tree-directory");
        }
        self.dress(&target, mode)
    }

    /// Creates a file that must not exist, with exactly this mode. Its directory must exist.
    pub fn create_file(&self, below: &Path, mode: u32) -> Result<RestoreFile, DurableError> {
        let path = self.resolve(below)?;
        let mut options = File::options();
        options.write(true).create_new(true).mode(mode).custom_flags(nix::libc::O_NOFOLLOW);
        let file = options.open(&path).context("create", &path)?;
        point("tree-file");
        file.set_permissions(Permissions::from_mode(mode)).context("set the mode of", &path)?;
        if let Some(owner) = self.owner {
            owner.give(&file, &path)?;
        }
        Ok(RestoreFile { file, path })
    }

    /// Creates a symbolic link that must not exist; a tablespace is one.
    pub fn create_symlink(&self, below: &Path, leads_to: &Path) -> Result<(), DurableError> {
        let path = self.resolve(below)?;
        std::os::unix::fs::symlink(leads_to, &path).context("create the link", &path)?;
        point("tree-link");
        if let Some(owner) = self.owner {
            std::os::unix::fs::lchown(&path, Some(owner.uid), Some(owner.gid)).context("give away", &path)?;
        }
        Ok(())
    }

    /// The place of a path of the backup; refuses one that leads out of the root.
    pub fn resolve(&self, below: &Path) -> Result<PathBuf, DurableError> {
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        if plain && below.file_name().is_some() {
            return Ok(self.root.join(below));
        }
        let cause =
            io::Error::new(io::ErrorKind::InvalidInput, "the name leads out of the restored directory");
        Err(DurableError::new("restore", below, cause))
    }

    /// Sets mode and owner of a directory.
    fn dress(&self, path: &Path, mode: u32) -> Result<(), DurableError> {
        let dir = super::open_dir(path)?;
        dir.set_permissions(Permissions::from_mode(mode)).context("set the mode of", path)?;
        self.owner.map_or(Ok(()), |owner| owner.give(&dir, path))
    }
}

/// A file being restored; shared by the threads that write its parts.
#[derive(Debug)]
pub struct RestoreFile {
    file: File,
    path: PathBuf,
}

impl RestoreFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes at an offset; any number of threads at a time.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DurableError> {
        point("tree-bytes");
        self.file.write_all_at(bytes, offset).context("write", &self.path)
    }

    /// Sets the time of its last change, once its bytes are there.
    pub fn set_modified(&self, time: std::time::SystemTime) -> Result<(), DurableError> {
        self.file.set_modified(time).context("set the time of", &self.path)
    }
}

/// Fsyncs every file and directory at and below `root`, with this many threads, and the directory that holds the
/// root. Links are not followed: tablespaces and a `pg_wal` elsewhere are trees of their own. The first failure is
/// reported, with its path; what comes after it is not tried.
pub fn sync_tree(root: &Path, threads: usize) -> Result<(), DurableError> {
    let (sender, receiver) = mpsc::sync_channel::<PathBuf>(QUEUE);
    let queue = Mutex::new(receiver);
    let failure: Mutex<Option<DurableError>> = Mutex::default();
    let fail = |error: DurableError| {
        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    };
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(path) = next else { return };
                    // After a failure the queue is only emptied, so that the walker does not wait forever.
                    if !failed() {
                        sync_path(&path).unwrap_or_else(fail);
                    }
                }
            });
        }
        walk(root, &failed, &sender).unwrap_or_else(fail);
        drop(sender);
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => sync_dir(parent_of(root)),
    }
}

/// Sends every regular file and directory below `root`, depth first; the stack holds directories only.
fn walk(root: &Path, stop: &impl Fn() -> bool, to: &mpsc::SyncSender<PathBuf>) -> Result<(), DurableError> {
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).context("list", &dir)? {
            let entry = entry.context("list", &dir)?;
            let kind = entry.file_type().context("look at", &entry.path())?;
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_file() && to.send(entry.path()).is_err() {
                return Ok(());
            }
            if stop() {
                return Ok(());
            }
        }
        if to.send(dir).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn sync_path(path: &Path) -> Result<(), DurableError> {
    let mut options = File::options();
    options.read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    options.open(path).and_then(|file| file.sync_all()).context("fsync", path)
}

/// Removes one file so that it stays removed after a power cut (`pg_control` before a directory is overwritten);
/// false if there was none.
pub fn remove_durably(path: &Path) -> Result<bool, DurableError> {
    match std::fs::remove_file(path) {
        Ok(()) => {
            point("removed");
            sync_dir(parent_of(path)).map(|()| true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DurableError::new("remove", path, error)),
    }
}

/// Renames a file or directory within one file system, never over an existing one, durably (`--move-aside`).
pub fn move_aside(from: &Path, to: &Path) -> Result<(), DurableError> {
    let (from_dir, to_dir) = (super::open_dir(parent_of(from))?, super::open_dir(parent_of(to))?);
    let flags = nix::fcntl::RenameFlags::RENAME_NOREPLACE;
    let (from_name, to_name) = (super::name_of(from)?, super::name_of(to)?);
    point("not-moved");
    nix::fcntl::renameat2(&from_dir, from_name, &to_dir, to_name, flags).context("move aside", from)?;
    point("moved");
    sync_dir(parent_of(from))?;
    sync_dir(parent_of(to))
}
