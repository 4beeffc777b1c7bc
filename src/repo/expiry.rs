//! What expiry reads and creates in a repository. It deletes nothing: that is `ops::expire` alone.
//!
//! ```text
//!  wal_folders ─► wal_in     stored WAL, a folder (256 segments of 16 MiB) at a time, so that memory does not grow with the archive
//!  raise_floor               floor n + 1 is made from floor n: what one let go, none after it keeps again
//!  pins, leases, old floors  with the store's time of each
//! ```
//! Invariant: a floor never keeps what a lower-numbered one let go, whoever makes it: the number is taken by the create.
//! Source of truth: REPOSITORY.md 4, FORMAT.md "JSON objects".

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::document::{ATTEMPTS, Put};
use super::objects::{Floor, TimelineFloor};
use super::path::{PinId, SystemObject};
use super::{RepoError, System, nonce};
use crate::store::ObjectInfo;
use crate::wal::{SegmentName, TimelineId, WalFileName};

/// Floors that are read at a time.
const READERS: usize = 8;

/// A file of `pg_wal` in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedWal {
    /// The segment it is, or belongs to.
    pub segment: SegmentName,
    /// True for a segment that recovery can be given, whole or a copy of an unfinished one.
    pub replayable: bool,
    /// True for the record that the segment was accepted with damage in it.
    pub accepted: bool,
    /// Its object.
    pub object: ObjectInfo,
}

/// An object that only counts for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedNumber {
    /// Its number.
    pub number: u32,
    /// Its object.
    pub object: ObjectInfo,
}

/// The objects of one pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinObject {
    /// The pin.
    pub id: PinId,
    /// True for the object that says it is released.
    pub release: bool,
    /// The object.
    pub object: ObjectInfo,
}

impl System {
    /// The folders of stored segments of one timeline, in order: the keys that all of their objects begin with.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn wal_folders(&self, timeline: TimelineId) -> Result<Vec<String>, RepoError> {
        let dir = self.keys.timeline_dir(timeline);
        let names = self.store().list_dirs(&dir).await?;
        Ok(names.iter().map(|name| format!("{dir}{name}/")).collect())
    }

    /// What is stored in one of [`Self::wal_folders`], in order.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn wal_in(&self, folder: &str) -> Result<Vec<ListedWal>, RepoError> {
        let objects = self.store().list(folder).await?;
        let listed = |object: ObjectInfo| {
            let (segment, replayable, accepted) = match self.keys.parse(&object.key)? {
                SystemObject::Wal(WalFileName::Segment(segment), _) => (segment, true, false),
                SystemObject::Wal(
                    WalFileName::Partial(segment) | WalFileName::BackupHistory(segment, _),
                    _,
                ) => (segment, false, false),
                SystemObject::Gap(segment) => (segment, false, true),
                _ => return None,
            };
            Some(ListedWal { segment, replayable, accepted, object })
        };
        Ok(objects.into_iter().filter_map(listed).collect())
    }

    /// Creates the next floor from the one that counts, as often as another run is faster; the floor that counts afterwards.
    /// `lines` makes them from the floor before, or says that there is nothing to raise.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn raise_floor(
        &self,
        lines: impl Fn(Option<&Floor>) -> Option<Vec<TimelineFloor>>,
        now: Timestamp,
    ) -> Result<Option<Floor>, RepoError> {
        let mut key = String::new();
        for _ in 0..ATTEMPTS {
            let number = self.newest_floor().await?;
            let before = match number {
                None => None,
                Some(n) => {
                    key = self.keys.key(&SystemObject::Floor(n));
                    let floor = self.get_document::<Floor>(&key).await?;
                    Some(floor.ok_or_else(|| self.repository.missing(&key))?)
                }
            };
            let Some(timelines) = lines(before.as_ref()) else { return Ok(before) };
            let floor = Floor { nonce: nonce()?, created: now, timelines };
            key = self.keys.key(&SystemObject::Floor(self.after(number.unwrap_or(0), &key)?));
            match self.put_document(&key, &floor).await? {
                Put::Ours => return Ok(Some(floor)),
                Put::Theirs(_) => {}
            }
        }
        Err(self.repository.unstable(&key))
    }

    /// All floors, the newest last.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn floors(&self) -> Result<Vec<ListedNumber>, RepoError> {
        self.numbered(&self.keys.floor_dir()).await
    }

    /// All floors that counted at `then`, by the store's clock, or later; `None` if there was none at `then`, or if one is gone.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn floors_since(&self, then: Timestamp) -> Result<Option<Vec<Floor>>, RepoError> {
        let floors = self.floors().await?;
        let Some(first) = floors.iter().rposition(|listed| listed.object.modified <= then) else {
            return Ok(None);
        };
        let reads = floors.iter().skip(first).map(|listed| self.get_document::<Floor>(&listed.object.key));
        let read: Vec<Option<Floor>> =
            futures_util::stream::iter(reads).buffered(READERS).try_collect().await?;
        Ok(read.into_iter().collect())
    }

    /// All leases, the newest last.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn leases(&self) -> Result<Vec<ListedNumber>, RepoError> {
        self.numbered(&self.keys.lease_dir()).await
    }

    async fn numbered(&self, dir: &str) -> Result<Vec<ListedNumber>, RepoError> {
        let objects = self.store().list(dir).await?;
        let numbered = |object: ObjectInfo| match self.keys.parse(&object.key)? {
            SystemObject::Floor(number) | SystemObject::Lease(number) => {
                Some(ListedNumber { number, object })
            }
            _ => None,
        };
        let mut found: Vec<ListedNumber> = objects.into_iter().filter_map(numbered).collect();
        found.sort_by_key(|listed| listed.number);
        Ok(found)
    }

    /// The objects of all pins.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn pin_objects(&self) -> Result<Vec<PinObject>, RepoError> {
        let objects = self.store().list(&self.keys.pin_dir()).await?;
        let pin = |object: ObjectInfo| match self.keys.parse(&object.key)? {
            SystemObject::Pin(id) => Some(PinObject { id, release: false, object }),
            SystemObject::PinReleased(id) => Some(PinObject { id, release: true, object }),
            _ => None,
        };
        Ok(objects.into_iter().filter_map(pin).collect())
    }
}
