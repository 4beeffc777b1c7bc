//! The old data directory: what it holds that the archive lacks, and storing that before anything is planned.
//!
//! ```text
//!  target holds a cluster ─────────────┐
//!  else the configured data_dir ───────┴─► runs? said   dead? its pg_wal is stored (a replacement) or told of (a copy)
//! ```
//! Invariant: a restore to the newest moment does not go on without WAL that is there and cannot be stored, unless told to: what it
//! would lose are the newest commits. Source of truth: RECOVERY.md 3 and 21.

use std::path::PathBuf;

use crate::cli::output;
use crate::codec::Compression;
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::ops::facts::Archive;
use crate::ops::plan::RecoveryTarget;
use crate::ops::restore::directory::Place;
use crate::ops::restore::unarchived::{self, Unarchived};
use crate::ops::restore::{Purpose, Request, Site};
use crate::repo::Repository;
use crate::wal::SegmentName;

/// What is known of the old data directory.
#[derive(Debug, Default)]
pub(super) struct Old {
    /// What it holds that the archive lacks.
    pub(super) found: Option<Unarchived>,
    /// A server runs in it.
    running: Option<PathBuf>,
    /// It is a copy that is restored: nothing is stored for it.
    copy: bool,
    /// Why it could not be looked at, where that was allowed.
    unread: Option<String>,
}

/// How its WAL is stored.
pub(super) struct Policy {
    /// Of new objects.
    pub(super) compression: Compression,
    /// The restore may go on without what cannot be stored.
    pub(super) may_lose: bool,
}

/// What storing it came to.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// What a person should know.
    pub(super) warnings: Vec<String>,
    /// The archive may hold more now: also of a file that failed, which one of several repositories may have taken.
    pub(super) tried: bool,
}

/// Looks for the old data directory and into it. Writes nothing.
pub(super) async fn look(archive: &Archive, request: &Request, site: &Site, may_lose: bool) -> Result<Old> {
    let mut old = Old { copy: request.purpose == Some(Purpose::Copy), ..Old::default() };
    let target = Place::inspect(&request.target_dir)?;
    target.check_free(request.move_aside)?;
    let place = match &site.data_dir {
        _ if target.is_occupied() => Some(target),
        Some(configured) => match Place::inspect(configured) {
            Ok(place) => Some(place),
            Err(e) if e.kind() == Kind::Refused => {
                old.running = Some(configured.clone());
                None
            }
            // No directory above it: a new host.
            Err(_) => None,
        },
        None => None,
    };
    // Before an interrupted restore moved anything, it had stored what was to be stored.
    let whole = |place: &Place| place.is_occupied() && place.unfinished.is_none();
    let Some(place) = place.filter(whole) else { return Ok(old) };
    match unarchived::look(&place, &archive.world, &unfinished(archive).await?, &archive.system) {
        Ok(found) => old.found = found,
        Err(error) if may_lose => old.unread = Some(error.to_string()),
        Err(error) => return Err(error),
    }
    Ok(old)
}

impl Old {
    /// What a person should know before a plan for `target`.
    pub(super) fn warnings(&self, target: &RecoveryTarget, dry_run: bool) -> Vec<String> {
        let mut said: Vec<String> = self.unread.iter().cloned().collect();
        if let Some(dir) = self.running.as_ref().filter(|_| *target == RecoveryTarget::Latest) {
            said.push(format!(
                "a server runs in {}: commits that it has not archived yet are not in reach; SELECT pg_switch_wal() there makes \
                 it archive what it has",
                dir.display()
            ));
        }
        said.extend(self.found.as_ref().and_then(|found| match (self.copy, dry_run) {
            (true, _) => Some(format!("{}: nothing is stored for a copy", found.describe())),
            (false, true) => Some(format!(
                "{}: a restore stores them first, and may then reach later moments",
                found.describe()
            )),
            (false, false) => None,
        }));
        said
    }

    /// Stores what was found.
    ///
    /// # Errors
    /// Kind `Refused` if a file cannot be stored and the policy does not allow to lose it.
    pub(super) async fn store(
        &self,
        repositories: &[Repository],
        policy: &Policy,
        progress: &dyn Progress,
    ) -> Result<Stored> {
        let Some(found) = self.found.as_ref().filter(|found| !found.files.is_empty()) else {
            return Ok(Stored::default());
        };
        let rescue = unarchived::store(found, repositories, policy.compression).await;
        progress.note(&format!(
            "stored {} of {} files of pg_wal that were not archived",
            rescue.stored,
            found.files.len()
        ));
        let mut done = Stored { warnings: rescue.warnings, tried: true };
        let Some((file, cause)) = rescue.failed else { return Ok(done) };
        let text = format!("{} could not be stored", file.display());
        if policy.may_lose {
            done.warnings.push(format!("{text}: {}", cause.report().trim_end()));
            return Ok(done);
        }
        output::warn(cause.report().trim_end());
        Err(Error::refused(format!("{text}: what was committed from there on would be lost"))
            .source(cause.to_string())
            .hint(
                "nothing was touched. Mend the cause and repeat; or name the moment to restore to (--to, --to-lsn); or give up \
                 what cannot be stored with --without-old-wal",
            ))
    }
}

/// The newest segments of each timeline of which only a copy that ends early is stored: the server may have gone on writing them.
async fn unfinished(archive: &Archive) -> Result<Vec<SegmentName>> {
    let mut found = Vec::new();
    for (timeline, line) in &archive.world.stored {
        let Some(last) = line.last() else { continue };
        let name = SegmentName::new(*timeline, *last, archive.world.segment_size);
        let valid = archive.system.segment_info(name).await?.and_then(|info| info.header.valid);
        if valid.is_some_and(|valid| valid.end.may_have_longer_copy()) {
            found.push(name);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Silent;

    #[tokio::test]
    async fn the_archive_is_read_again_only_after_something_was_put_into_it() {
        let policy = Policy { compression: Compression::Zstd { level: 1 }, may_lose: true };
        let found = |files: Vec<PathBuf>| {
            let found = Unarchived { data_dir: "/nowhere".into(), files, newest_commit: None, end: None };
            Old { found: Some(found), ..Old::default() }
        };
        for nothing in [Old::default(), found(Vec::new())] {
            assert!(!nothing.store(&[], &policy, &Silent).await.unwrap().tried);
        }
        let failed = found(vec!["/nowhere/pg_wal/000000010000000000000001".into()]);
        let stored = failed.store(&[], &policy, &Silent).await.unwrap();
        assert!(stored.tried && stored.warnings.len() == 1, "one of several repositories may have it");
    }
}
