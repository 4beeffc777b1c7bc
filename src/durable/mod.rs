//! Local files that survive kill -9 and power loss; the only module that may create a local file.
//!
//! ```text
//!  nameless   a file without a name (O_TMPFILE), or a locked temporary one where the file system has none
//!  root       a directory of write-once files: what a `file://` repository rests on
//!  deliver    one file put in place of another: archive-get's result, a configuration file
//!  tree       a restored data directory: files written at offsets by many threads
//!  settle     what makes such a directory durable, at once
//!  crash      the points at which tests kill the process
//! ```
//! Invariants: a name never shows a half-written file; "yes" is said only after fsync of the file, of its
//! directory and, once per process, of every directory up to the root; nothing existing is replaced unless the
//! function says so in its name; errors name the path and the cause.
//! Source of truth: REPOSITORY.md section 2 "Local disk", RECOVERY.md 18 and 21; open(2), linkat(2), fsync(2).
//! No part of pitr's own types is used here.

mod crash;
mod deliver;
mod nameless;
mod root;
mod settle;
mod tree;

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};

#[cfg(any(test, feature = "testing"))]
pub(crate) use crash::die;
pub(crate) use crash::point as crash_point;
pub use deliver::{Delivery, write_new, write_replace};
pub use nameless::is_temporary;
pub use root::{Creation, Root};
pub use settle::Settle;
pub use tree::{RestoreFile, TreeWriter, move_aside, remove_durably, sync_tree};

/// Mode of every file a repository is made of: the bytes of a database are in it.
pub const FILE_MODE: u32 = 0o600;
/// Mode of every directory of a repository.
pub const DIR_MODE: u32 = 0o700;

/// Something the local file system refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct DurableError {
    /// What was tried, as a verb: "create", "fsync".
    pub action: &'static str,
    /// The file or directory it was tried on.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// A tree is not the one that it was.
#[derive(Debug, thiserror::Error)]
#[error("another directory is there than before: it was unmounted, or replaced")]
struct Moved;

impl DurableError {
    pub(crate) fn new(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { action, path: path.to_path_buf(), source: source.into() }
    }

    /// The disk or the quota is full.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Another tree is there than at the first look.
    pub fn is_moved(&self) -> bool {
        let Some(cause) = self.source.get_ref() else { return false };
        cause.is::<Moved>()
    }

    /// Repeating will not help before somebody changes permissions or the mount.
    pub fn is_denied(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// Adds action and path to the result of a system call.
trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, DurableError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, DurableError> {
        self.map_err(|source| DurableError::new(action, path, source))
    }
}

/// Who shall own what is created. Only root may give files away; for anybody else this must be absent or name
/// the process itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Numeric user.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

impl Owner {
    /// The owner of an existing file or directory, such as the data directory.
    pub fn of(path: &Path) -> Result<Self, DurableError> {
        use std::os::unix::fs::MetadataExt as _;
        let found = std::fs::metadata(path).context("look at", path)?;
        Ok(Self { uid: found.uid(), gid: found.gid() })
    }

    /// `Some(owner)` if this process is root and so has files to give away; `None` otherwise.
    pub fn to_give(self) -> Option<Self> {
        Uid::effective().is_root().then_some(self)
    }

    fn give(self, file: &File, path: &Path) -> Result<(), DurableError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        nix::unistd::fchown(file, Some(uid), Some(gid)).context("give away", path)
    }
}

/// Opens a directory for fsync and for the *at calls.
fn open_dir(path: &Path) -> Result<File, DurableError> {
    let mut options = File::options();
    options.read(true).custom_flags(nix::libc::O_DIRECTORY);
    options.open(path).context("open directory", path)
}

/// An advisory lock on a directory, held until it is dropped. The directory may be renamed meanwhile.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "the lock lives as long as this")] nix::fcntl::Flock<File>);

impl DirLock {
    /// Locks `path`; `None` if another process has it locked.
    ///
    /// # Errors
    /// If it is no directory, or its file system knows no locks.
    pub fn take(path: &Path) -> Result<Option<Self>, DurableError> {
        use nix::errno::Errno;
        match nix::fcntl::Flock::lock(open_dir(path)?, nix::fcntl::FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self(lock))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(DurableError::new("lock", path, errno)),
        }
    }
}

/// Bytes that this process may still write on the file system of `path` (or of the directory above, if it does not exist yet).
pub fn free_bytes(path: &Path) -> Option<u64> {
    let at = path.ancestors().find(|p| p.exists())?;
    let stat = nix::sys::statvfs::statvfs(at).ok()?;
    stat.blocks_available().checked_mul(stat.fragment_size())
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), DurableError> {
    open_dir(path)?.sync_all().context("fsync directory", path)
}

/// Makes one directory; true if it is new. An existing one keeps its mode and owner.
fn make_dir(path: &Path, mode: u32, owner: Option<Owner>) -> Result<bool, DurableError> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(false),
        Err(error) => return Err(DurableError::new("create directory", path, error)),
    }
    if let Some(owner) = owner {
        // Not through a link that somebody put in place of the new directory.
        let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
        let made = File::options().read(true).custom_flags(flags).open(path);
        owner.give(&made.context("open directory", path)?, path)?;
    }
    Ok(true)
}

/// The directory a file is in; `.` for a bare name.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The last component, which is what gets created.
fn name_of(path: &Path) -> Result<&std::ffi::OsStr, DurableError> {
    path.file_name().ok_or_else(|| {
        DurableError::new("create", path, io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))
    })
}

#[cfg(test)]
mod tests;
