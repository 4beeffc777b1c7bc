//! `pitr.restoring`: the file that says "a restore was at work here, and has not ended".
//!
//! ```text
//!  pitr.restoring (text) ──► everything else ──► pitr.restoring (pg_control's bytes) ──► rename to global/pg_control
//! ```
//! The last step is one rename: the marker goes away in the moment `pg_control` appears. So a directory is either unfinished
//! (marker, no `pg_control`: PostgreSQL refuses to start, a repeated restore takes it as its own) or finished, never between.
//! Source of truth: RECOVERY.md 21; `ReadControlFile` in `xlog.c` for the refusal.

use std::path::{Path, PathBuf};

use crate::durable::{self, Owner};
use crate::error::Result;

use super::directory::durable_error;

/// Name of the marker, at the top of the data directory.
pub const NAME: &str = "pitr.restoring";

/// Longest marker that is read.
const MAX_BYTES: u64 = 1024 * 1024;

/// What the marker tells a later restore.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Marker {
    /// The backup that was being restored.
    pub backup: String,
    /// Tablespace directories (those that hold PostgreSQL's `PG_*` folder) into which the restore wrote.
    pub tablespaces: Vec<PathBuf>,
    /// For people who find the file.
    pub note: String,
}

impl Marker {
    /// The marker of a restore of `backup` that writes into these tablespaces too.
    pub fn new(backup: &str, tablespaces: Vec<PathBuf>) -> Self {
        let note = "an unfinished pitr restore; PostgreSQL cannot start here; repeat the restore or delete the directory";
        Self { backup: backup.to_owned(), tablespaces, note: note.to_owned() }
    }

    /// Puts the marker down, durably.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn write(&self, root: &Path, owner: Option<Owner>) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        durable::write_replace(&root.join(NAME), &text, 0o600, owner).map_err(durable_error)
    }

    /// The marker of an unfinished restore in `root`, if there is one that can be read.
    pub fn read(root: &Path) -> Option<Self> {
        let path = root.join(NAME);
        let small = path.symlink_metadata().is_ok_and(|m| m.is_file() && m.len() <= MAX_BYTES);
        if !small {
            return None;
        }
        Self::parse(&std::fs::read(path).ok()?)
    }

    /// The marker whose bytes these are.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Ends the restore: `pg_control` appears and the marker goes away, in one step. Everything else must be durable before.
///
/// # Errors
/// As the file system answers; the restore is then unfinished.
pub fn finish(root: &Path, control: &[u8], mode: u32, owner: Option<Owner>) -> Result<()> {
    let (marker, last) = (root.join(NAME), root.join("global/pg_control"));
    durable::write_replace(&marker, control, mode, owner).map_err(durable_error)?;
    durable::move_aside(&marker, &last).map_err(|error| {
        // Renamed, and it is not known to be durable: taken back, so that what failed cannot start and can be repeated.
        if last.exists() {
            durable::move_aside(&last, &marker).ok();
        }
        durable_error(error)
    })
}
