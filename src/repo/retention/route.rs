//! Routes: which segments lead from a backup to the newest moment, through the forks in between.
//!
//! ```text
//!  route of TLI 3    1│1│1│1│2│2│3│3│      a segment belongs to the newest timeline that has begun by its end
//!                          └ fork  └ fork
//! ```
//! What `archive-get --timeline` and the planner do with bytes is done here with whole segments: a fork's segment counts as the child's
//! alone, so that a route never reaches farther here than it does there. Source of truth: RECOVERY.md 7 and 10, `ops::plan`. Pure.

use std::collections::BTreeMap;

use super::HeldBackup;
use super::spans::Spans;
use crate::wal::{Lsn, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

/// The stored segments of each timeline, by number.
pub type StoredWal = BTreeMap<TimelineId, Spans>;

/// The way from the oldest ancestor to one timeline.
#[derive(Debug, Clone)]
pub struct Route {
    history: TimelineHistory,
    size: SegmentSize,
}

impl Route {
    /// The route that ends in `history`'s timeline.
    pub fn new(history: TimelineHistory, size: SegmentSize) -> Self {
        Self { history, size }
    }

    /// Its timelines, oldest first.
    pub fn timelines(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.history.route()
    }

    /// Whether the backup's end lies on it: one past a fork belongs to the branch that was left.
    pub fn holds(&self, backup: &HeldBackup) -> bool {
        self.history.contains(backup.timeline)
            && self.history.end(backup.timeline).is_none_or(|fork| backup.stop_lsn <= fork)
    }

    /// Where the route first lacks a byte after `from`, by whole segments; `from`'s own segment if that is missing.
    pub fn reach(&self, wal: &StoredWal, from: Lsn) -> Lsn {
        let mut number = SegmentNo::containing(from, self.size).get();
        while let Some(last) = self.run_from(wal, number) {
            number = last.saturating_add(1);
        }
        SegmentNo::new(number).start(self.size)
    }

    /// The last segment of the run on the route that begins with `number`.
    fn run_from(&self, wal: &StoredWal, number: u64) -> Option<u64> {
        let timeline = self.history.owner(SegmentNo::new(number).end(self.size).saturating_sub(1));
        let run = wal.get(&timeline)?.span_of(number)?;
        let until = self
            .history
            .end(timeline)
            .map_or(u64::MAX, |fork| SegmentNo::containing(fork, self.size).get().saturating_sub(1));
        Some(run.1.min(until)).filter(|last| number <= *last)
    }

    /// What can be restored along the route from any of `backups`: the positions from a backup's end to where its WAL ends.
    pub fn covered<'a>(&self, wal: &StoredWal, backups: impl IntoIterator<Item = &'a HeldBackup>) -> Spans {
        let mut covered = Spans::default();
        for backup in backups.into_iter().filter(|b| self.holds(b)) {
            let reach = self.reach(wal, backup.start_lsn).max(backup.stop_lsn);
            covered.add(backup.stop_lsn.get(), reach.get());
        }
        covered
    }
}
