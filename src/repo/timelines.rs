//! Which timelines a repository knows, without listing their segments, and what of them proves that a file is absent.
//!
//! ```text
//!  wal/00000002.history   ┐ one listing of wal/, with what is in its folders left out
//!  wal/00000002/          ┘  └─► has it a file of WAL? some requests each, several at once
//! ```
//! Invariants: a name that is none of ours counts for nothing, and costs no request of its own. A folder counts if a file of WAL is in it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::archive::Absence;
use super::path::SystemObject;
use super::{RepoError, System};
use crate::store::Folder;
use crate::wal::{SegmentName, TimelineId, WalFileName};

/// Keys per request where the first few decide, unless they are foreign.
const FEW: usize = 20;
/// Keys per request behind foreign ones: what a page of S3 holds.
const MANY: usize = 1_000;
/// Folders that are looked into at once.
const LOOKS: usize = 16;

/// What is stored of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimelinePresence {
    /// Its history file is.
    pub history: bool,
    /// The first of its other files.
    pub first_wal: Option<WalFileName>,
}

impl System {
    /// The timelines of which something is stored, and what. One listing and some requests per timeline, whatever the number of segments.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn timelines(&self) -> Result<BTreeMap<TimelineId, TimelinePresence>, RepoError> {
        let named = self.named_timelines().await?;
        let mut found: BTreeMap<TimelineId, TimelinePresence> = BTreeMap::new();
        for timeline in named.histories {
            found.entry(timeline).or_default().history = true;
        }
        let look = |timeline| async move { Ok::<_, RepoError>((timeline, self.first_wal(timeline).await?)) };
        let mut looks = futures_util::stream::iter(named.folders).map(look).buffered(LOOKS);
        while let Some((timeline, first)) = looks.try_next().await? {
            if first.is_some() {
                found.entry(timeline).or_default().first_wal = first;
            }
        }
        Ok(found)
    }

    /// What the names in the folder of all WAL say.
    async fn named_timelines(&self) -> Result<Named, RepoError> {
        let Folder { objects, dirs } = self.store().list_folder(&self.keys().wal_dir()).await?;
        let history = |key: &str| match self.keys().parse(key)? {
            SystemObject::Wal(WalFileName::History(timeline), _) => Some(timeline),
            _ => None,
        };
        let folder = |name: &String| {
            let timeline = TimelineId::new(u32::from_str_radix(name, 16).ok()?)?;
            // Not in another spelling.
            (timeline.hex() == *name).then_some(timeline)
        };
        Ok(Named {
            histories: objects.iter().filter_map(|object| history(&object.key)).collect(),
            folders: dirs.iter().filter_map(folder).collect(),
        })
    }

    /// The first file of WAL in the folder of a timeline.
    async fn first_wal(&self, timeline: TimelineId) -> Result<Option<WalFileName>, RepoError> {
        self.first_after(&self.keys().timeline_dir(timeline), None, Some).await
    }

    /// A segment, complete or partial, of the same timeline that comes after `name`.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn later_wal(&self, name: SegmentName) -> Result<Option<SegmentName>, RepoError> {
        // `0` sorts behind the dot that every suffix of the segment's own objects begins with. Servers disagree on how `~` is signed.
        let after = format!("{}{name}0", self.keys().segment_dir(name));
        self.first_after(&self.keys().timeline_dir(name.timeline()), Some(after), |later| match later {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => Some(segment),
            WalFileName::History(_) | WalFileName::BackupHistory(..) => None,
        })
        .await
    }

    /// The first file in `dir` behind the key `after` that is `wanted`.
    async fn first_after<T>(
        &self,
        dir: &str,
        mut after: Option<String>,
        wanted: impl Fn(WalFileName) -> Option<T>,
    ) -> Result<Option<T>, RepoError> {
        let mut keys = FEW;
        loop {
            let page = self.store().list_after(dir, after.as_deref(), Some(keys)).await?;
            let Some(last) = page.last() else { return Ok(None) };
            let found = page.iter().find_map(|object| match self.keys().parse(&object.key)? {
                SystemObject::Wal(name, _) => wanted(name),
                _ => None,
            });
            if found.is_some() {
                return Ok(found);
            }
            after = Some(last.key.clone());
            keys = MANY;
        }
    }

    /// Whether the history of `timeline`, which a look did not find, is truly absent: nothing that is stored needs it.
    pub(super) async fn history_absence(&self, timeline: TimelineId) -> Result<Absence, RepoError> {
        let named = self.named_timelines().await?;
        // Looked for even where the listing names no folder: it may have come since.
        if self.first_wal(timeline).await?.is_some() {
            return Ok(Absence::Doubt(format!("WAL of timeline {timeline} is stored")));
        }
        for later in named.histories.into_iter().filter(|later| *later > timeline) {
            if self.history(later).await?.is_some_and(|h| h.contains(timeline)) {
                return Ok(Absence::Doubt(format!(
                    "the history of timeline {later} names it as an ancestor"
                )));
            }
        }
        Ok(Absence::Proven)
    }
}

/// Timelines by name.
struct Named {
    /// Those whose history is stored.
    histories: BTreeSet<TimelineId>,
    /// Those that have a folder.
    folders: BTreeSet<TimelineId>,
}
