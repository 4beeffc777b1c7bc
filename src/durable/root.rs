//! A directory of write-once files: what a `file://` repository rests on.
//!
//! Creating never replaces, and says yes only when the file, its name and every directory on the way down from the
//! root are durable. A process that was killed between mkdir and fsync leaves directories that look fine and are
//! not durable; so the first yes below a directory fsyncs the whole way up, and remembers it.
//! Invariants: an absent root (an unmounted disk) is an error, never "not there"; directories are never removed,
//! so that what was remembered as durable stays so. A root is one tree for as long as it is used: where another file
//! system is under its path than at the first look, or a directory is gone that was durable, nothing is said yes to.
//! Source of truth: REPOSITORY.md section 2 "Local disk".

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::crash::point;
use super::nameless::{NewFile, Strategy};
use super::{
    Context as _, DIR_MODE, DurableError, FILE_MODE, Moved, Owner, make_dir, open_dir, parent_of, sync_dir,
};

/// Directories remembered as durable; beyond it we forget them all, which costs fsyncs and nothing else.
const SYNCED_LIMIT: usize = 4096;

/// What a create found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// The file is new, and durable.
    New,
    /// The name was taken. Nothing is promised of the file that has it: see [`Root::sync_existing`].
    Exists,
}

/// The root of a tree of write-once files.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    owner: Option<Owner>,
    strategy: Strategy,
    synced: Mutex<BTreeSet<PathBuf>>,
    mount: OnceLock<Mount>,
}

/// Which mounted file system a directory is on. Inode numbers would say more, and some network file systems give out others after a while.
#[derive(Debug, Clone, Copy)]
struct Mount {
    device: u64,
    /// Tells two mounts of one device apart; `None` without /proc.
    number: Option<u64>,
}

impl Mount {
    fn of(dir: &File) -> io::Result<Self> {
        let device = dir.metadata()?.dev();
        let mut text = String::new();
        let told = File::open(format!("/proc/self/fdinfo/{}", dir.as_raw_fd()))
            .and_then(|file| file.take(4096).read_to_string(&mut text));
        let line = told.ok().and_then(|_| text.lines().find_map(|line| line.strip_prefix("mnt_id:")));
        Ok(Self { device, number: line.and_then(|number| number.trim().parse().ok()) })
    }

    fn is(self, other: Self) -> bool {
        let same = self.number.zip(other.number).is_none_or(|(one, two)| one == two);
        self.device == other.device && same
    }
}

impl Root {
    /// A root at `path`, which need not exist yet; nothing is touched. New files and directories are given to
    /// `owner`, if one is named.
    pub fn new(path: impl Into<PathBuf>, owner: Option<Owner>) -> Self {
        let (synced, mount) = (Mutex::default(), OnceLock::new());
        Self { path: path.into(), owner, strategy: Strategy::Best, synced, mount }
    }

    /// The same root, as if it had never been looked at: for who looks anew at what is there.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self { strategy: self.strategy, ..Self::new(&self.path, self.owner) }
    }

    /// As [`Root::new`], as if the file system had no nameless files.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_temporary_names(path: impl Into<PathBuf>) -> Self {
        Self { strategy: Strategy::Named, ..Self::new(path, None) }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the root and its missing parents, durably. An existing root keeps its mode and owner.
    pub fn make(&self) -> Result<(), DurableError> {
        let mut missing = Vec::new();
        let mut at = self.path.as_path();
        while !at.is_dir() {
            missing.push(at);
            at = parent_of(at);
        }
        for dir in missing.into_iter().rev() {
            make_dir(dir, DIR_MODE, self.owner)?;
            point("root-made");
            sync_dir(dir)?;
            sync_dir(parent_of(dir))?;
        }
        Ok(())
    }

    /// Creates `below` with these bytes unless it exists. [`Creation::New`] means durable. Killed at any moment, it
    /// leaves the whole file or none.
    pub fn create(&self, below: &Path, chunks: &[impl AsRef<[u8]>]) -> Result<Creation, DurableError> {
        let target = self.resolve(below)?;
        // Held, so that it cannot be unmounted meanwhile; what was pulled away all the same shows in the second look.
        let _held = self.same()?;
        let created = self.create_at(&target, chunks)?;
        self.same()?;
        Ok(created)
    }

    fn create_at(&self, target: &Path, chunks: &[impl AsRef<[u8]>]) -> Result<Creation, DurableError> {
        let dir = parent_of(target);
        self.make_dirs(dir)?;
        // Spares the writing; the link decides.
        if target.symlink_metadata().is_ok() {
            return Ok(Creation::Exists);
        }
        let mut new = NewFile::begin(dir, FILE_MODE, self.owner, self.strategy)?;
        for chunk in chunks {
            new.file().write_all(chunk.as_ref()).context("write", target)?;
        }
        if !new.publish_new(super::name_of(target)?)? {
            return Ok(Creation::Exists);
        }
        self.sync_up_from(dir)?;
        Ok(Creation::New)
    }

    /// Makes an existing file and the way to it durable. Whoever finds its own bytes under a name that was taken
    /// calls this before saying yes: the process that wrote them may have died before its fsync.
    pub fn sync_existing(&self, below: &Path) -> Result<(), DurableError> {
        let target = self.resolve(below)?;
        File::open(&target).and_then(|file| file.sync_all()).context("fsync", &target)?;
        self.sync_up_from(parent_of(&target))?;
        self.same().map(drop)
    }

    /// Removes a file, durably; false if there was none. Its directory stays.
    pub fn remove(&self, below: &Path) -> Result<bool, DurableError> {
        let target = self.resolve(below)?;
        let _held = self.same()?;
        match std::fs::remove_file(&target) {
            Ok(()) => {
                point("removed");
                sync_dir(parent_of(&target)).map(|()| true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.check().map(|()| false),
            Err(error) => Err(DurableError::new("remove", &target, error)),
        }
    }

    /// Refuses a root that is not there: a disk that is not mounted must not look like an empty repository.
    pub fn check(&self) -> Result<(), DurableError> {
        std::fs::read_dir(&self.path).map(drop).context("open the directory of the repository", &self.path)
    }

    /// Notes which mounted file system the root is on, unless that is known: what is created goes there, or fails. Whoever reads first and
    /// creates by what he read calls this before. A root that is not there is the reader's to notice.
    pub fn note(&self) {
        if self.mount.get().is_none() {
            // It fails again for whoever needs it.
            let _ = self.same();
        }
    }

    /// The root, held open, if it is on the file system that it was on at the first look.
    fn same(&self) -> Result<File, DurableError> {
        let dir = open_dir(&self.path)?;
        let now = Mount::of(&dir).context("look at", &self.path)?;
        if self.mount.get_or_init(|| now).is(now) { Ok(dir) } else { Err(self.moved(&self.path)) }
    }

    fn moved(&self, path: &Path) -> DurableError {
        DurableError::new("use", path, io::Error::other(Moved))
    }

    /// The place of a relative path below the root; refuses one that leads out of it.
    pub fn resolve(&self, below: &Path) -> Result<PathBuf, DurableError> {
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        if plain && below.file_name().is_some() {
            return Ok(self.path.join(below));
        }
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "the name leads out of the repository");
        Err(DurableError::new("use", below, cause))
    }

    fn make_dirs(&self, dir: &Path) -> Result<(), DurableError> {
        if dir.is_dir() {
            return Ok(());
        }
        self.check()?;
        let below = dir.strip_prefix(&self.path).unwrap_or_else(|_| Path::new(""));
        let mut at = self.path.clone();
        for part in below.components() {
            at.push(part);
            let was_there = self.synced.lock().unwrap_or_else(PoisonError::into_inner).contains(&at);
            if was_there && !at.is_dir() {
                return Err(self.moved(&at));
            }
            if make_dir(&at, DIR_MODE, self.owner)? {
                point("directory-made");
            }
        }
        Ok(())
    }

    /// Fsyncs `dir`, and every directory above it up to the root that this process has not yet seen durable.
    fn sync_up_from(&self, dir: &Path) -> Result<(), DurableError> {
        let is_done = |at: &Path| self.synced.lock().unwrap_or_else(PoisonError::into_inner).contains(at);
        sync_dir(dir)?;
        let mut fresh = Vec::new();
        let mut at = dir;
        while !is_done(at) {
            fresh.push(at.to_path_buf());
            if at == self.path {
                self.sync_own_name()?;
                break;
            }
            at = parent_of(at);
            sync_dir(at)?;
        }
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if synced.len() >= SYNCED_LIMIT {
            synced.clear();
        }
        synced.extend(fresh);
        Ok(())
    }

    /// Fsyncs the directory that the root's own name is in. That one is somebody else's: who may not open it cannot, and above a mount
    /// point it is another file system's.
    fn sync_own_name(&self) -> Result<(), DurableError> {
        let above = parent_of(&self.path);
        let device = |path: &Path| path.metadata().map(|found| found.dev()).context("look at", path);
        match open_dir(above) {
            Err(error) if error.is_denied() => Ok(()),
            Err(error) => Err(error),
            Ok(_) if device(above)? != device(&self.path)? => Ok(()),
            Ok(dir) => dir.sync_all().context("fsync directory", above),
        }
    }
}
