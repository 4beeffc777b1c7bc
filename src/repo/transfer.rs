//! WAL of one repository as another one needs it: what is where, folder by folder, and an object as it is.
//!
//! ```text
//!  wal/<TLI>/<LOG>/   256 segments of 16 MiB: listed on both sides, compared by name, so memory does not grow with the archive
//! ```
//! Invariants: an object that is handed on was whole when it was read; it says itself whose it is, and goes to the same cluster and system
//! only. Nothing is decompressed, so an encrypted object needs no key.

use std::collections::BTreeMap;

use super::path::SystemObject;
use super::{RepoError, System};
use crate::wal::{SegmentName, TimelineId, WalFileName};

/// A segment's place among those of all timelines.
pub type WalPlace = (u32, u32);

/// Where a file belongs; `None` for a history.
pub fn place_of(name: WalFileName) -> Option<WalPlace> {
    match name {
        WalFileName::Segment(segment)
        | WalFileName::Partial(segment)
        | WalFileName::BackupHistory(segment, _) => Some(segment.place()),
        WalFileName::History(_) => None,
    }
}

impl System {
    /// The oldest segment of which something is stored, on any timeline; `None` if there is no WAL.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn oldest_wal(&self) -> Result<Option<WalPlace>, RepoError> {
        let timelines = self.timelines().await?;
        Ok(timelines.into_values().filter_map(|found| place_of(found.first_wal?)).min())
    }

    /// The logs of the timeline of which something is stored, each by the name of its first segment, in order.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn logs(&self, timeline: TimelineId) -> Result<Vec<SegmentName>, RepoError> {
        let names = self.repository().store().list_dirs(&self.keys().timeline_dir(timeline)).await?;
        let log = |name: &String| u32::from_str_radix(name.trim_end_matches('/'), 16).ok();
        Ok(names.iter().filter_map(log).map(|log| SegmentName::first_of_log(timeline, log)).collect())
    }

    /// The files in the log of `segment`, each with the number of its copies.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn files_of_log(&self, segment: SegmentName) -> Result<BTreeMap<WalFileName, u32>, RepoError> {
        let mut files = BTreeMap::new();
        for object in self.repository().store().list(&self.keys().segment_dir(segment)).await? {
            if let Some(SystemObject::Wal(name, _)) = self.keys().parse(&object.key) {
                *files.entry(name).or_default() += 1;
            }
        }
        Ok(files)
    }
}
