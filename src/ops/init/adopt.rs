//! `init --adopt`: a copy becomes a primary of its own.
//!
//! ```text
//!  pitr.copy removed ─► histories of its timeline stored ─► (settings, by init) ─► a full backup
//! ```
//! A copy that was promoted runs on a new timeline whose history nobody archived. Were archiving just switched on, its segments would
//! be unreachable and the next promotion elsewhere would take the same timeline (RECOVERY 8); so the history goes first. May be
//! repeated: an absent marker and stored histories are fine.

use std::path::Path;

use crate::codec::Compression;
use crate::durable;
use crate::error::{Error, Result};
use crate::ops::archive::{COPY_MARKER, store_file};
use crate::repo::Repository;
use crate::wal::WalFileName;

/// Takes the marker away and stores every history file of `pg_wal`. Returns the histories.
///
/// # Errors
/// Kind `NotFound` if there is no `pg_wal`; another content under a stored history's name is a split brain and refused.
pub async fn adopt(
    repositories: &[Repository],
    data_dir: &Path,
    compression: Compression,
) -> Result<Vec<WalFileName>> {
    durable::remove_durably(&data_dir.join(COPY_MARKER))
        .map_err(|e| Error::failed("cannot remove the mark of a copy").source(e))?;
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
        store_file(repositories, &pg_wal.join(name.to_string()), Some(data_dir), compression).await?;
    }
    Ok(histories)
}
