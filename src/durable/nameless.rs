//! A file that has no name until it is complete.
//!
//! With O_TMPFILE the kernel frees the bytes of a killed process by itself. Where the file system has no such
//! files (some network and overlay file systems), a temporary name stands in, held under flock(2) while its
//! writer lives: a later process removes those that nobody holds, and never one that is being written.
//! Invariants: [`NewFile::publish_new`] never replaces a name; [`NewFile::publish_over`] replaces it in one step;
//! whichever way it ends, the temporary name is gone.
//! Source of truth: open(2) O_TMPFILE, linkat(2), renameat2(2) RENAME_NOREPLACE, flock(2).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::crash::point;
use super::{Context as _, DurableError, Owner, open_dir};

/// How every temporary name of ours begins; listings leave such names out.
const TEMPORARY_PREFIX: &str = ".pitr-tmp-";
/// Tries at a temporary name: each can only fail when a sweep catches the file between its creation and its lock.
const NAME_TRIES: u32 = 16;
/// Directories remembered as swept; beyond it we forget and sweep again, which is merely slower.
const SWEPT_LIMIT: usize = 4096;

/// True for the temporary names this module makes.
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes())
}

/// How the unfinished file is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strategy {
    /// Without a name if the file system can, else under a temporary name.
    Best,
    /// Under a temporary name, whatever the file system can.
    #[cfg(any(test, feature = "testing"))]
    Named,
}

/// A file being written.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    dir: File,
    dir_path: PathBuf,
    /// The temporary name, while there is one.
    temporary: Option<PathBuf>,
}

impl NewFile {
    /// Starts a file that will get its name in `dir`.
    pub(super) fn begin(
        dir: &Path,
        mode: u32,
        owner: Option<Owner>,
        strategy: Strategy,
    ) -> Result<Self, DurableError> {
        let dir_file = open_dir(dir)?;
        let nameless = if strategy == Strategy::Best { open_nameless(&dir_file, dir, mode)? } else { None };
        let (file, temporary) = match nameless {
            Some(file) => (file, None),
            None => {
                sweep_once(dir)?;
                let (file, name) = open_temporary(dir, mode)?;
                (file, Some(name))
            }
        };
        let new = Self { file, dir: dir_file, dir_path: dir.to_path_buf(), temporary };
        // The umask may have taken bits from the mode that was asked for.
        new.file
            .set_permissions(Permissions::from_mode(mode))
            .context("set the mode of a new file in", dir)?;
        if let Some(owner) = owner {
            owner.give(&new.file, dir)?;
        }
        Ok(new)
    }

    /// Where the bytes go.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes the bytes durable and gives them `name`, which must be free: false if it is taken. The directory is
    /// left to the caller to fsync.
    pub(super) fn publish_new(mut self, name: &OsStr) -> Result<bool, DurableError> {
        let target = self.dir_path.join(name);
        self.file.sync_all().context("fsync", &target)?;
        point("written");
        let linked = match &self.temporary {
            None => self.link_nameless(name),
            Some(temporary) => self.link_temporary(temporary, name),
        };
        match linked {
            Ok(()) => {
                point("named");
                self.forget_temporary();
                Ok(true)
            }
            Err(Errno::EEXIST) => Ok(false),
            Err(Errno::EINVAL) if self.temporary.is_some() => Err(DurableError::new(
                "create",
                &target,
                std::io::Error::new(
                    std::io::ErrorKind::Unsupported,
                    "the file system has neither hard links nor a rename that does not replace",
                ),
            )),
            Err(errno) => Err(DurableError::new("create", &target, errno)),
        }
    }

    /// Makes the bytes durable and puts them in place of whatever has `name`, if they are still `wanted` then; false if not.
    pub(super) fn publish_over(
        mut self,
        name: &OsStr,
        wanted: impl Fn() -> bool,
    ) -> Result<bool, DurableError> {
        let target = self.dir_path.join(name);
        self.file.sync_all().context("fsync", &target)?;
        point("replacement-written");
        if !wanted() {
            return Ok(false);
        }
        if self.temporary.is_none() {
            match self.link_nameless(name) {
                Ok(()) => {
                    point("replaced");
                    return Ok(true);
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(DurableError::new("create", &target, errno)),
            }
            sweep_once(&self.dir_path)?;
            let temporary = self.dir_path.join(temporary_name(&self.dir_path)?);
            // Locked first: a sweep must not take it between the two steps.
            self.file.try_lock().ok();
            let bare = temporary.file_name().unwrap_or_default();
            self.link_nameless(bare).context("create", &temporary)?;
            self.temporary = Some(temporary);
        }
        if let Some(temporary) = &self.temporary {
            let bare = temporary.file_name().unwrap_or_default();
            point("replacement-waits");
            nix::fcntl::renameat(&self.dir, bare, &self.dir, name).context("replace", &target)?;
            self.temporary = None;
            point("replaced");
        }
        Ok(true)
    }

    /// Gives a nameless file a name. `/proc` is the way that needs no privilege.
    fn link_nameless(&self, name: &OsStr) -> Result<(), Errno> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        nix::unistd::linkat(AT_FDCWD, own.as_str(), &self.dir, name, AtFlags::AT_SYMLINK_FOLLOW)
    }

    /// Moves a temporary name to `name` without replacing: a hard link, or the rename that refuses, on file
    /// systems without hard links. EINVAL: it has neither.
    fn link_temporary(&self, temporary: &Path, name: &OsStr) -> Result<(), Errno> {
        let bare = temporary.file_name().unwrap_or_default();
        match nix::unistd::linkat(&self.dir, bare, &self.dir, name, AtFlags::empty()) {
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK) => {
                rename_to_free(&self.dir, bare, name)
            }
            linked => linked,
        }
    }

    fn forget_temporary(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let bare = temporary.file_name().unwrap_or_default();
            // After a rename it is gone already; a leftover is swept by a later process.
            nix::unistd::unlinkat(&self.dir, bare, UnlinkatFlags::NoRemoveDir).ok();
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        self.forget_temporary();
    }
}

/// Renames within a directory, unless the new name is taken (EEXIST).
pub(super) fn rename_to_free(dir: &File, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
    nix::fcntl::renameat2(dir, from, dir, to, RenameFlags::RENAME_NOREPLACE)
}

/// A file without a name, or `None` where the file system has none (or `/proc`, which names it, is not mounted).
fn open_nameless(dir: &File, path: &Path, mode: u32) -> Result<Option<File>, DurableError> {
    if !Path::new("/proc/self/fd").exists() {
        return Ok(None);
    }
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match nix::fcntl::openat(dir, ".", flags, Mode::from_bits_truncate(mode)) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(DurableError::new("create a file in", path, errno)),
    }
}

/// A file under a temporary name that this process holds locked.
fn open_temporary(dir: &Path, mode: u32) -> Result<(File, PathBuf), DurableError> {
    for _ in 0..NAME_TRIES {
        let path = dir.join(temporary_name(dir)?);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(mode).custom_flags(nix::libc::O_NOFOLLOW);
        let file = options.open(&path).context("create", &path)?;
        match file.try_lock() {
            // A sweep may have come between creation and lock: then the name is gone and we take another.
            Ok(()) if file.metadata().context("look at", &path)?.nlink() == 0 => {}
            Err(std::fs::TryLockError::WouldBlock) => {}
            // A file system without locks cannot sweep either.
            Ok(()) | Err(std::fs::TryLockError::Error(_)) => return Ok((file, path)),
        }
    }
    let cause = std::io::Error::other("other processes keep removing the temporary file");
    Err(DurableError::new("create a file in", dir, cause))
}

fn temporary_name(dir: &Path) -> Result<String, DurableError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| {
        DurableError::new("name a file in", dir, std::io::Error::other(error.to_string()))
    })?;
    Ok(format!("{TEMPORARY_PREFIX}{:016x}", u64::from_be_bytes(random)))
}

/// Removes what killed processes left in `dir`, the first time this process needs a temporary name there.
fn sweep_once(dir: &Path) -> Result<(), DurableError> {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    {
        let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.len() >= SWEPT_LIMIT {
            swept.clear();
        }
        if !swept.insert(dir.to_path_buf()) {
            return Ok(());
        }
    }
    sweep(dir)
}

/// Removes the temporary files of `dir` that no living process holds.
pub(super) fn sweep(dir: &Path) -> Result<(), DurableError> {
    for entry in std::fs::read_dir(dir).context("list", dir)? {
        let entry = entry.context("list", dir)?;
        if !is_temporary(&entry.file_name()) {
            continue;
        }
        // Whoever removed it meanwhile did our work; one we may not open is not ours to remove.
        let Ok(file) = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(entry.path())
        else {
            continue;
        };
        if file.try_lock().is_ok() {
            std::fs::remove_file(entry.path()).ok();
        }
    }
    Ok(())
}
