//! One file put in place of another, in one step.
//!
//! [`Delivery`] is how archive-get hands a segment to the server: an inode of its own (the server recycles the file
//! in place, so a hard link would let it write into a cache or a repository), mode 0600, complete and fsynced before
//! it has the name that the server looks for. [`write_replace`] does the same for a configuration file, [`write_new`] for a file of
//! secrets, which replaces nothing.
//! Invariants: the destination is the old file or the whole new one, at every moment; a failure leaves the old one
//! and no temporary file.
//! Source of truth: RECOVERY.md 18; `RestoreArchivedFile` in `xlogarchive.c`, PostgreSQL 13 to 18.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::nameless::{NewFile, Strategy};
use super::{Context as _, DurableError, FILE_MODE, Owner, name_of, parent_of, sync_dir};

/// A file on its way to its place. Dropped before [`Delivery::finish`], it leaves nothing.
#[derive(Debug)]
pub struct Delivery {
    new: NewFile,
    name: OsString,
    target: PathBuf,
}

impl Delivery {
    /// Starts a file for `target`, on the same file system, with mode 0600.
    pub fn begin(target: &Path, owner: Option<Owner>) -> Result<Self, DurableError> {
        Self::begin_with(target, FILE_MODE, owner, Strategy::Best)
    }

    pub(super) fn begin_with(
        target: &Path,
        mode: u32,
        owner: Option<Owner>,
        strategy: Strategy,
    ) -> Result<Self, DurableError> {
        let name = name_of(target)?.to_os_string();
        let new = NewFile::begin(parent_of(target), mode, owner, strategy)?;
        Ok(Self { new, name, target: target.to_path_buf() })
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), DurableError> {
        self.new.file().write_all(bytes).context("write", &self.target)
    }

    /// Makes the file durable and puts it in its place, replacing what is there, if it is still `wanted` then; false, and nothing is left, if
    /// not. The directory is not fsynced: after a crash the server asks again.
    pub fn finish_if(self, wanted: impl Fn() -> bool) -> Result<bool, DurableError> {
        self.new.publish_over(&self.name, wanted)
    }

    /// As [`Delivery::finish_if`], for what is wanted in any case.
    pub fn finish(self) -> Result<(), DurableError> {
        self.finish_if(|| true).map(drop)
    }
}

/// So that a decoder can write straight into it.
impl Write for Delivery {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.new.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.new.file().flush()
    }
}

/// Writes a small file durably in place of `target`, with exactly this mode.
pub fn write_replace(
    target: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Option<Owner>,
) -> Result<(), DurableError> {
    let mut delivery = Delivery::begin_with(target, mode, owner, Strategy::Best)?;
    delivery.append(bytes)?;
    delivery.finish()?;
    sync_dir(parent_of(target))
}

/// Writes a small file durably where none is, with exactly this mode; false, and nothing is changed, if one is there.
pub fn write_new(target: &Path, bytes: &[u8], mode: u32, owner: Option<Owner>) -> Result<bool, DurableError> {
    let mut new = NewFile::begin(parent_of(target), mode, owner, Strategy::Best)?;
    new.file().write_all(bytes).context("write", target)?;
    if !new.publish_new(name_of(target)?)? {
        return Ok(false);
    }
    sync_dir(parent_of(target))?;
    Ok(true)
}
