//! The pin that keeps a backup and its WAL from expiring while they are read.
//!
//! ```text
//!  pin ──► renewed every day (counts three) ──► released: at the end, after a failure, after Ctrl-C
//! ```
//! A kill leaves a pin that runs out by itself. Where no object can be created (credentials that may only read, a full disk) the grace
//! between tombstone and deletion is the limit, and the report says so. Source of truth: REPOSITORY.md 4, "Readers".

use std::time::Duration;

use jiff::Timestamp;

use crate::clock;
use crate::error::Result;
use crate::ops::Progress;
use crate::repo::System;
use crate::repo::path::{BackupId, PinId, PinKind};
use crate::repo::pins::Pinned;
use crate::wal::SegmentName;

/// A reader's pin counts for three days: two renewals may fail.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// A store that does not answer must not keep an interrupted command from ending.
const RELEASE_PATIENCE: Duration = Duration::from_secs(20);

/// A pin of this process.
pub(super) struct Hold<'a> {
    system: &'a System,
    backup: &'a BackupId,
    wal_from: SegmentName,
    note: String,
    began: Timestamp,
    /// How often it was renewed.
    renewals: u32,
    pin: Option<PinId>,
    /// Why there is none.
    refused: Option<String>,
}

impl<'a> Hold<'a> {
    /// Pins `backup` and the WAL from `wal_from` on.
    ///
    /// # Errors
    /// If the backup has expired, or the store does not answer.
    pub(super) async fn take(
        system: &'a System,
        backup: &'a BackupId,
        wal_from: SegmentName,
        note: String,
        now: Timestamp,
    ) -> Result<Self> {
        let mut hold =
            Self { system, backup, wal_from, note, began: now, renewals: 0, pin: None, refused: None };
        hold.pin = hold.create().await?;
        Ok(hold)
    }

    /// Why the backup could not be pinned, if it could not.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.clone()
    }

    async fn create(&mut self) -> Result<Option<PinId>> {
        let elapsed = RENEW_AFTER.saturating_mul(self.renewals);
        let now = self.began.checked_add(elapsed).unwrap_or(self.began);
        let pinned = self.system.pin(PinKind::Reader, self.backup, self.wal_from, &self.note, now).await?;
        Ok(match pinned {
            Pinned::Yes(id) => Some(id),
            Pinned::NotAllowed(refused) => {
                self.refused = Some(refused.cause);
                None
            }
        })
    }

    /// Renews the pin each day, for ever. A renewal that fails is tried again a day later.
    pub(super) async fn renew(&mut self, progress: &dyn Progress) {
        loop {
            clock::sleep(RENEW_AFTER).await;
            self.renewals = self.renewals.saturating_add(1);
            match self.create().await {
                Ok(None) => {}
                Ok(new) => {
                    if let Some(old) = std::mem::replace(&mut self.pin, new) {
                        // An old pin that stays only counts on.
                        self.system.release(&old).await.ok();
                    }
                }
                Err(error) => progress.note(&format!("the backup's pin could not be renewed: {error}")),
            }
        }
    }

    /// Releases the pin.
    pub(super) async fn release(self, progress: &dyn Progress) {
        let Some(id) = &self.pin else { return };
        let failed = match tokio::time::timeout(RELEASE_PATIENCE, self.system.release(id)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store does not answer".to_owned(),
        };
        progress.note(&format!("the pin {id} could not be released and runs out in three days: {failed}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Silent;
    use crate::repo::path::Sealing;
    use crate::repo::{NewIdentity, Repository};
    use crate::store::{Store, StoreOptions, StoreUrl};
    use crate::wal::{PgMajor, SegmentSize, SystemId};

    async fn system() -> System {
        let url: StoreUrl = "memory:".parse().unwrap();
        let store = Store::open(&url, &StoreOptions::default()).unwrap();
        let new = NewIdentity {
            system: SystemId::new(7),
            major: PgMajor::V15,
            segment_size: SegmentSize::DEFAULT,
            sealing: Sealing::Plain,
        };
        let repository = Repository::new(store, "local", "main".parse().unwrap(), true);
        repository.create_identity(new, Timestamp::UNIX_EPOCH).await.unwrap().0
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_restore_renews_its_pin_each_day_and_ends_without_one() {
        let (system, backup) = (system().await, "20251017-103000-1a2b3c4d".parse::<BackupId>().unwrap());
        let from = SegmentName::parse("000000010000000000000002").unwrap();
        let take = Hold::take(&system, &backup, from, "test".to_owned(), Timestamp::UNIX_EPOCH);
        let mut hold = take.await.unwrap();
        assert!(hold.refused().is_none());
        let days = Duration::from_secs(2 * 24 * 60 * 60 + 60);
        assert!(tokio::time::timeout(days, hold.renew(&Silent)).await.is_err(), "renewing ended");
        let pins = system.pins().await.unwrap();
        let mut made: Vec<_> =
            pins.iter().map(|p| (p.pin.created.as_second() / 86_400, p.released)).collect();
        made.sort_unstable();
        assert_eq!(made, [(0, true), (1, true), (2, false)]);
        hold.release(&Silent).await;
        assert!(system.pins().await.unwrap().iter().all(|p| p.released));
    }
}
