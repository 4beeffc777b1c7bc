//! Pins: who reads a backup keeps it, and the WAL after it, from being deleted.
//!
//! ```text
//!  create pins/<id>.json ─► the backup has no tombstone ─► read …            an operator's pin counts until <id>.released exists
//! ```
//! The order is the point: a pin created before the tombstone was looked for is seen by every deletion that follows. Credentials that
//! may only read cannot pin, nor can anybody on a full disk: then the grace between tombstone and deletion is the limit, and the caller
//! says so.
//! Source of truth: FORMAT.md, "Backups".

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::document::Put;
use super::objects::Pin;
use super::path::{BackupId, PinId, PinKind, SystemObject};
use super::scrutiny::RELEASED;
use super::{RepoError, System, this_process};
use crate::clock::{self, Clock as _, SystemClock};
use crate::store::{ObjectInfo, StoreError, StoreErrorKind};
use crate::wal::SegmentName;

/// Largest object that releases a pin.
const MAX_RELEASE: u64 = 4096;
/// How long a reader's pin counts, by the store's clock. A reader that needs longer pins again.
pub const READER_COUNTS: SignedDuration = SignedDuration::from_hours(72);

/// A pin in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPin {
    /// The pin.
    pub pin: Pin,
    /// Store time of its creation.
    pub created: Timestamp,
    /// It no longer counts.
    pub released: bool,
}

/// What pinning came to.
#[derive(Debug, Clone)]
pub enum Pinned {
    /// The backup stays until the pin is released or runs out.
    Yes(PinId),
    /// No object can be created here, which is no reason not to read: credentials or a mount that may only read, a full disk.
    NotAllowed(StoreError),
}

impl ListedPin {
    /// Whether it still holds anything at the store's time `now`.
    pub fn counts(&self, now: Timestamp) -> bool {
        let fresh = self.pin.kind == PinKind::Operator || now.duration_since(self.created) < READER_COUNTS;
        fresh && !self.released
    }
}

/// Whether a reader's pin is so old that expiry may have deleted it; by this host's clock, since nothing is deleted upon it.
fn has_run_out(id: &PinId, created: Timestamp) -> bool {
    id.kind() == PinKind::Reader && SystemClock.now().duration_since(created) >= READER_COUNTS
}

impl System {
    /// Pins a backup and the WAL from `wal_from` on, then checks that the backup has not expired. Renewing is pinning again.
    ///
    /// # Errors
    /// [`RepoError::Expired`].
    pub async fn pin(
        &self,
        kind: PinKind,
        backup: &BackupId,
        wal_from: SegmentName,
        note: &str,
        now: Timestamp,
    ) -> Result<Pinned, RepoError> {
        let id = PinId::new(kind, u64::from_le_bytes(clock::random_bytes()?));
        let pin = Pin {
            id: id.clone(),
            kind,
            created: now,
            backup: backup.clone(),
            wal_from,
            note: note.to_owned(),
            process: this_process(),
        };
        let key = self.keys.key(&SystemObject::Pin(id.clone()));
        let pinned = match self.put_document(&key, &pin).await {
            Ok(Put::Ours) => Pinned::Yes(id),
            Ok(Put::Theirs(_)) => return Err(self.repository.conflict(&key)),
            Err(RepoError::Store(e))
                if matches!(
                    e.kind,
                    StoreErrorKind::Denied | StoreErrorKind::Credentials | StoreErrorKind::Full
                ) =>
            {
                Pinned::NotAllowed(e)
            }
            Err(e) => return Err(e),
        };
        if self.is_expired(backup).await? {
            if let Pinned::Yes(id) = &pinned {
                // The tombstone was first: the pin holds nothing. What is left of it runs out by itself.
                self.release(id).await.ok();
            }
            return Err(RepoError::Expired { id: backup.clone() });
        }
        Ok(pinned)
    }

    /// Releases a pin: it no longer counts, and expiry deletes it.
    ///
    /// # Errors
    /// [`RepoError::Forged`] if something else lies there that releases nothing.
    pub async fn release(&self, id: &PinId) -> Result<(), RepoError> {
        let key = self.keys.key(&SystemObject::PinReleased(id.clone()));
        match self.repository.put_bytes(&key, bytes::Bytes::from(self.released(&key))).await? {
            Some(_) if self.seal_key().is_some() => {
                Err(self.repository.forged(&key, &"it does not release its pin"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// All pins, released ones included.
    ///
    /// # Errors
    /// [`RepoError`] if one cannot be read.
    pub async fn pins(&self) -> Result<Vec<ListedPin>, RepoError> {
        self.pins_among(self.store().list(&self.keys.pin_dir()).await?).await
    }

    /// The pins of a listing.
    pub(super) async fn pins_among(&self, objects: Vec<ObjectInfo>) -> Result<Vec<ListedPin>, RepoError> {
        let (mut released, mut gone) = (BTreeSet::new(), BTreeSet::new());
        let mut found = Vec::new();
        for object in objects {
            match self.keys.parse(&object.key) {
                Some(SystemObject::PinReleased(id)) => match self.is_release(&object.key).await {
                    Ok(true) => {
                        released.insert(id);
                    }
                    Ok(false) => {}
                    // What releases a pin is deleted after it.
                    Err(e) if e.is_hidden() => {
                        gone.insert(id);
                    }
                    Err(e) => return Err(e),
                },
                Some(SystemObject::Pin(_)) => found.push(object),
                _ => {}
            }
        }
        let mut pins = Vec::new();
        for object in found {
            let went =
                |id: &PinId| released.contains(id) || gone.contains(id) || has_run_out(id, object.modified);
            let read = self.get_listed::<Pin>(&object.key, &self.keys.pin_dir()).await;
            let pin = match (read, self.keys.parse(&object.key)) {
                // Under a delete marker only what expiry may delete is gone.
                (Err(e), Some(SystemObject::Pin(id))) if e.is_hidden() && went(&id) => continue,
                (pin, _) => pin?,
            };
            // One that went meanwhile no longer counts.
            let Some(pin) = pin else { continue };
            let released = released.contains(&pin.id);
            pins.push(ListedPin { pin, created: object.modified, released });
        }
        Ok(pins)
    }

    /// What is stored to release a pin; in a sealed folder with a mac, since whoever releases lets things be deleted.
    pub(super) fn released(&self, key: &str) -> String {
        match self.seal_key() {
            None => RELEASED.to_owned(),
            Some(seal) => format!("{RELEASED}mac {}\n", seal.document_mac(key, RELEASED.as_bytes())),
        }
    }

    /// Whether the object at `key` releases its pin. In a plain folder its being there says so.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn is_release(&self, key: &str) -> Result<bool, RepoError> {
        if self.seal_key().is_none() {
            return Ok(true);
        }
        let found = self.store().get_limited(key, MAX_RELEASE).await?;
        Ok(found.is_some_and(|bytes| bytes == self.released(key)))
    }
}
