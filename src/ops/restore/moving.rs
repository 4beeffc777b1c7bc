//! `pitr.moving`: the file that says "this directory is on its way aside, and not all of it is there yet".
//!
//! ```text
//!  pitr.moving, in the old directory ─► the directory, or all that is in a mount point ─► its tablespaces, one by one ─► removed
//! ```
//! One rename needs no such file: a directory without tablespaces has moved or has not. Where there is more than one, a kill between
//! two of them would leave the old cluster in two halves that nobody knows of. Invariant: whoever finds the file goes on with that
//! very move, to that very place; it names the place, so that one in a directory that was renamed by hand means nothing.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::durable::{self, Owner, TreeWriter};
use crate::error::Result;

use super::directory::{cannot, durable_error};

/// Name of the file, at the top of the directory that moves.
pub const NAME: &str = "pitr.moving";
/// How folders begin that keep what was in a mount point, or in the place of a tablespace.
pub(super) const KEPT: &str = "pitr.before-";
/// Longest path that is read.
const MAX_BYTES: u64 = 64 * 1024;

/// Whether an entry of the root of a file system stays there: it is the file system's own, or was moved aside before.
pub(super) fn stays(name: &std::ffi::OsStr) -> bool {
    name == "lost+found" || name.as_bytes().starts_with(KEPT.as_bytes())
}

/// Where a move of what is (or was) at `path` was interrupted.
///
/// # Errors
/// If what may be such a place cannot be looked at.
pub fn unfinished(path: &Path, mount_point: bool) -> Result<Option<PathBuf>> {
    let (folder, begins) = match (mount_point, path.parent(), path.file_name()) {
        (true, ..) => (path, KEPT.as_bytes().to_vec()),
        (false, Some(above), Some(name)) => (above, [name.as_bytes(), b".before-"].concat()),
        (false, ..) => return Ok(None),
    };
    let entries = match std::fs::read_dir(folder) {
        // Whoever may not look there has moved nothing there either.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(None);
        }
        entries => entries.map_err(|e| cannot("list", folder, e))?,
    };
    let mut newest = None;
    for entry in entries {
        let entry = entry.map_err(|e| cannot("list", folder, e))?;
        if entry.file_name().as_bytes().starts_with(&begins) && is_moving_to(&entry.path())? {
            newest = newest.max(Some(entry.path()));
        }
    }
    Ok(newest)
}

/// Whether a move to `kept` has begun and not ended.
fn is_moving_to(kept: &Path) -> Result<bool> {
    let file = kept.join(NAME);
    match file.symlink_metadata() {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_BYTES => {}
        _ => return Ok(false),
    }
    let said = std::fs::read(&file).map_err(|e| cannot("read", &file, e))?;
    Ok(said.strip_suffix(b"\n").unwrap_or(&said) == kept.as_os_str().as_bytes())
}

/// Says, durably and in `directory`, that it is on its way to `kept`.
///
/// # Errors
/// As the file system answers.
pub fn begin(directory: &Path, kept: &Path, owner: Option<Owner>) -> Result<()> {
    let text = [kept.as_os_str().as_bytes(), b"\n"].concat();
    durable::write_replace(&directory.join(NAME), &text, 0o600, owner).map_err(durable_error)
}

/// All that was to move is in `kept`.
///
/// # Errors
/// As the file system answers.
pub fn end(kept: &Path) -> Result<()> {
    durable::remove_durably(&kept.join(NAME)).map(drop).map_err(durable_error)
}

/// Moves every entry of the root of a file system into a directory of its own there, or those that an interrupted move left.
/// `pg_control` goes first: a server cannot start with half of its files.
///
/// # Errors
/// As the file system answers; what was moved stays moved.
pub(super) fn move_contents(from: &Path, to: &Path, writer: &TreeWriter, owner: Option<Owner>) -> Result<()> {
    let name = to.file_name().map(PathBuf::from).unwrap_or_default();
    writer.create_dir(&name, 0o700).map_err(durable_error)?;
    begin(to, to, owner)?;
    let entries = std::fs::read_dir(from).map_err(|e| cannot("list", from, e))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(|e| cannot("list", from, e))?.file_name());
    }
    names.sort_by_key(|name| (name != "global", name.clone()));
    for name in names.iter().filter(|name| !stays(name)) {
        durable::move_aside(&from.join(name), &to.join(name)).map_err(durable_error)?;
    }
    Ok(())
}
