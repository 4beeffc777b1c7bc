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

/// Segments that follow each other on one timeline, both ends included.
#[derive(Debug, Clone, Copy)]
struct Leg {
    timeline: TimelineId,
    first: u64,
    last: u64,
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
        let mut reach = SegmentNo::containing(from, self.size).get();
        for leg in self.legs(from) {
            let Some((_, last)) = wal.get(&leg.timeline).and_then(|spans| spans.span_of(leg.first)) else {
                break;
            };
            reach = last.min(leg.last).saturating_add(1);
            if last < leg.last {
                break;
            }
        }
        SegmentNo::new(reach).start(self.size)
    }

    /// The segments on the route from `from`'s own to `last` that `wal` lacks, by timeline, oldest first. Their number is not bounded by what is
    /// stored, nor is the work by their number.
    pub fn missing(&self, wal: &StoredWal, from: Lsn, last: SegmentNo) -> Vec<(TimelineId, Spans)> {
        let lacks = |leg: Leg| {
            let wanted = Spans::one(leg.first, leg.last.min(last.get()));
            let lacked = wal.get(&leg.timeline).map_or_else(|| wanted.clone(), |spans| wanted.without(spans));
            (leg.timeline, lacked)
        };
        let legs = self.legs(from).take_while(|leg| leg.first <= last.get());
        legs.map(lacks).filter(|(_, lacked)| !lacked.is_empty()).collect()
    }

    /// The route from `from`'s segment on: which segments are whose.
    fn legs(&self, from: Lsn) -> impl Iterator<Item = Leg> {
        let mut next = Some(SegmentNo::containing(from, self.size).get());
        std::iter::from_fn(move || {
            let first = next?;
            let timeline = self.history.owner(SegmentNo::new(first).end(self.size).saturating_sub(1));
            let last = self
                .history
                .end(timeline)
                .map_or(u64::MAX, |fork| SegmentNo::containing(fork, self.size).get().saturating_sub(1));
            next = last.checked_add(1).filter(|_| first <= last);
            (first <= last).then_some(Leg { timeline, first, last })
        })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    /// Timeline 3, which left 2 and 1 at these positions.
    fn history(mut forks: [u64; 2]) -> TimelineHistory {
        forks.sort_unstable();
        let [first, second] = forks.map(|fork| Lsn::new(fork << 18));
        TimelineHistory::parse(tli(3), format!("1\t{first}\ta\n2\t{second}\tb\n").as_bytes()).unwrap()
    }

    proptest! {
        /// Forks lie on every quarter of a segment, so on boundaries too, and both in one segment.
        #[test]
        fn what_a_route_lacks_is_what_a_walk_along_its_segments_does_not_find(
            forks in any::<[u8; 2]>().prop_map(|forks| forks.map(|fork| 1 + u64::from(fork % 80))),
            stored in prop::collection::btree_set((1_u32..4, 0_u64..24), 0..72),
            from in 0_u64..24,
            last in 0_u64..24,
        ) {
            let mut wal = StoredWal::new();
            stored.iter().for_each(|(timeline, n)| wal.entry(tli(*timeline)).or_default().add(*n, *n));
            let route = Route::new(history(forks), size());
            let owner = |n: u64| route.history.owner(SegmentNo::new(n).end(size()).saturating_sub(1));
            let is_stored = |n: u64| stored.contains(&(owner(n).get(), n));
            let mut expected: Vec<(TimelineId, Spans)> = Vec::new();
            for n in (from..=last).filter(|n| !is_stored(*n)) {
                match expected.last_mut().filter(|(timeline, _)| *timeline == owner(n)) {
                    Some((_, spans)) => spans.add(n, n),
                    None => expected.push((owner(n), Spans::one(n, n))),
                }
            }
            let start = SegmentNo::new(from).start(size());
            prop_assert_eq!(route.missing(&wal, start, SegmentNo::new(last)), expected);
            let reach = (from..).find(|n| !is_stored(*n)).unwrap();
            prop_assert_eq!(route.reach(&wal, start), SegmentNo::new(reach).start(size()));
        }
    }

    /// A name in a bucket may say so.
    #[test]
    fn the_last_segment_there_can_be_is_no_more_work_than_another() {
        let route = Route::new(history([4, 9]), size());
        let last = SegmentNo::containing(Lsn::MAX, size());
        let lacked = route.missing(&StoredWal::new(), Lsn::new(1 << 20), last);
        let spans = [(2, (1, 1)), (3, (2, last.get()))].map(|(n, (a, b))| (tli(n), Spans::one(a, b)));
        assert_eq!(lacked, spans);
    }
}
