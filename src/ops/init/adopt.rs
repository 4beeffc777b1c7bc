//! `init --adopt`: a copy becomes a primary of its own.
//!
//! ```text
//!  histories of its timeline stored ─► pitr.copy removed ─► (settings, by init) ─► a full backup
//! ```
//! A copy that was promoted runs on a new timeline whose history nobody archived. Were archiving just switched on, its segments would
//! be unreachable and the next promotion elsewhere would take the same timeline (RECOVERY 8); so the history goes first. The mark
//! of a copy goes last: one whose history is refused (another server holds the timeline) stays a copy. May be repeated: an absent
//! marker and stored histories are fine.

use std::path::Path;

use crate::codec::Compression;
use crate::durable;
use crate::error::{Error, Result};
use crate::ops::archive::{COPY_MARKER, store_file_of_copy};
use crate::repo::Repository;
use crate::wal::WalFileName;

/// Stores every history file of `pg_wal`, then takes the marker away. Returns the histories.
///
/// # Errors
/// Kind `NotFound` if there is no `pg_wal`; another content under a stored history's name is a split brain and refused.
pub async fn adopt(
    repositories: &[Repository],
    data_dir: &Path,
    compression: Compression,
) -> Result<Vec<WalFileName>> {
    let pg_wal = data_dir.join("pg_wal");
    let entries = std::fs::read_dir(&pg_wal).map_err(|e| {
        Error::not_found(format!("{} cannot be read", pg_wal.display()))
            .source(e)
            .hint("name the copy with --data-dir")
    })?;
    let mut histories: Vec<WalFileName> = entries
        .flatten()
        .filter_map(|entry| WalFileName::parse(&entry.file_name().to_string_lossy()).ok())
        .filter(|name| matches!(name, WalFileName::History(_)))
        .collect();
    histories.sort();
    for name in &histories {
        store_file_of_copy(repositories, &pg_wal.join(name.to_string()), Some(data_dir), compression).await?;
    }
    durable::remove_durably(&data_dir.join(COPY_MARKER))
        .map_err(|e| Error::failed("cannot remove the mark of a copy").source(e))?;
    Ok(histories)
}
