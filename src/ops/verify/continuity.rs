//! Which WAL must be there: from each backup's start to its stop, and on to the newest segment of every timeline that goes on from it.
//!
//! ```text
//!  TLI 1   ▐ start ═══════ stop ════════╤═══════════ newest          all of it
//!  TLI 2                                ╘ fork ══════════ newest      the child's own copy of the fork's segment; of the parent up to it
//! ```
//! What is needed and not stored is a gap, unless the floor has given it up. Segments older than every backup's start are needed by
//! nothing; behind the newest one nothing can be missed. Pure. Rules: RECOVERY 7, 10; FORMAT.md, "Absence".

use std::collections::{BTreeMap, BTreeSet};

use crate::repo::objects::Floor;
use crate::repo::retention::{Spans, StoredWal, above};
use crate::wal::{Lsn, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

/// Where a backup lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) timeline: TimelineId,
    pub(super) start: Lsn,
    pub(super) stop: Lsn,
}

impl Place {
    /// The segments it needs to become consistent.
    pub(super) fn segments(&self, size: SegmentSize) -> (SegmentNo, SegmentNo) {
        let stop = self.stop.max(self.start.saturating_add(1));
        (SegmentNo::containing(self.start, size), SegmentNo::ending_at(stop, size))
    }
}

/// What is known to decide.
pub(super) struct Ground<'a> {
    pub(super) size: SegmentSize,
    pub(super) stored: &'a BTreeMap<TimelineId, BTreeSet<SegmentNo>>,
    pub(super) histories: &'a BTreeMap<TimelineId, TimelineHistory>,
    pub(super) floor: Option<&'a Floor>,
}

/// Segments that are missing one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Missing {
    pub(super) timeline: TimelineId,
    pub(super) first: SegmentNo,
    pub(super) last: SegmentNo,
}

impl Ground<'_> {
    /// What is missing of what these backups need. The work is that of the holes and the stored segments, whatever a wrong LSN asks for.
    pub(super) fn missing(&self, backups: &[Place]) -> Vec<Missing> {
        let spans = |numbers: &BTreeSet<SegmentNo>| numbers.iter().map(|number| number.get()).collect();
        let stored: StoredWal = self.stored.iter().map(|(timeline, n)| (*timeline, spans(n))).collect();
        let mut lacked = StoredWal::new();
        for (timeline, first, last) in self.needed(backups) {
            let wanted = Spans::one(first.get(), last.get());
            let holes = stored.get(&timeline).map_or_else(|| wanted.clone(), |stored| wanted.without(stored));
            lacked.entry(timeline).or_default().add_all(&holes);
        }
        let kept = above(self.floor.map_or(&[][..], |floor| &floor.timelines), &lacked, self.size);
        let of = |(timeline, spans): (TimelineId, Spans)| {
            let missing = |(first, last)| Missing {
                timeline,
                first: SegmentNo::new(first),
                last: SegmentNo::new(last),
            };
            spans.iter().map(missing).collect::<Vec<_>>()
        };
        kept.into_iter().flat_map(of).collect()
    }

    /// Ranges of segments, both ends included.
    fn needed(&self, backups: &[Place]) -> BTreeSet<(TimelineId, SegmentNo, SegmentNo)> {
        let mut needed = BTreeSet::new();
        for backup in backups {
            let (first, last) = backup.segments(self.size);
            let newest = self.newest(backup.timeline).unwrap_or(last);
            needed.insert((backup.timeline, first, last.max(newest)));
            for history in self.histories.values() {
                self.need_route(history, backup, first, &mut needed);
            }
        }
        needed.retain(|(_, first, last)| first <= last);
        needed
    }

    /// What the route of a later timeline needs from the backup on.
    fn need_route(
        &self,
        history: &TimelineHistory,
        backup: &Place,
        first: SegmentNo,
        needed: &mut BTreeSet<(TimelineId, SegmentNo, SegmentNo)>,
    ) {
        let goes_by = history.timeline() != backup.timeline
            && history.begin(backup.timeline).is_some_and(|begin| begin <= backup.start)
            && history.end(backup.timeline).is_some_and(|end| backup.stop <= end);
        let (true, Some(newest)) = (goes_by, self.newest(history.timeline())) else { return };
        for timeline in history.route().skip_while(|timeline| *timeline != backup.timeline) {
            let begin = history.begin(timeline).unwrap_or(Lsn::ZERO);
            let from =
                if timeline == backup.timeline { first } else { SegmentNo::containing(begin, self.size) };
            match history.end(timeline) {
                // The segment of the fork is the child's; the very first one has nothing before it.
                Some(end) if end < Lsn::new(self.size.bytes()) => {}
                Some(end) => {
                    needed.insert((timeline, from, SegmentNo::containing(end, self.size).previous()));
                }
                None => {
                    needed.insert((timeline, from, newest));
                }
            }
        }
    }

    fn newest(&self, timeline: TimelineId) -> Option<SegmentNo> {
        self.stored.get(&timeline)?.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::objects::{KeptRange, Nonce, TimelineFloor};
    use crate::wal::SegmentName;

    const MIB: u64 = 1 << 20;

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    fn name(timeline: u32, n: u64) -> SegmentName {
        SegmentName::new(tli(timeline), SegmentNo::new(n), SegmentSize::new(MIB).unwrap())
    }

    /// What is missing of `stored`, as `timeline:first-last`.
    fn missing(
        stored: &[(u32, &[u64])],
        histories: &[(u32, &str)],
        floor: Option<&Floor>,
        backups: &[(u32, u64, u64)],
    ) -> String {
        let stored = stored
            .iter()
            .map(|(timeline, numbers)| (tli(*timeline), numbers.iter().map(|n| SegmentNo::new(*n)).collect()))
            .collect();
        let histories = histories
            .iter()
            .map(|(n, text)| (tli(*n), TimelineHistory::parse(tli(*n), text.as_bytes()).unwrap()))
            .collect();
        let place = |(timeline, start, stop): &(u32, u64, u64)| Place {
            timeline: tli(*timeline),
            start: Lsn::new(start * MIB + 40),
            stop: Lsn::new(stop * MIB + 400),
        };
        let size = SegmentSize::new(MIB).unwrap();
        let ground = Ground { size, stored: &stored, histories: &histories, floor };
        let places: Vec<Place> = backups.iter().map(place).collect();
        let text = |gap: Missing| format!("{}:{}-{}", gap.timeline, gap.first.get(), gap.last.get());
        ground.missing(&places).into_iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn wal_is_needed_from_the_oldest_backup_to_the_newest_segment() {
        let none: &[(u32, &str)] = &[];
        assert_eq!(missing(&[(1, &[3, 4, 5, 6])], none, None, &[(1, 4, 4)]), "");
        assert_eq!(missing(&[(1, &[1, 4, 6, 9])], none, None, &[(1, 4, 4)]), "1:5-5 1:7-8");
        assert_eq!(missing(&[(1, &[1, 9])], none, None, &[(1, 4, 5), (1, 8, 8)]), "1:4-8");
        assert_eq!(missing(&[], none, None, &[(1, 4, 5)]), "1:4-5");
        assert_eq!(missing(&[(1, &[1, 9])], none, None, &[]), "");
    }

    #[test]
    fn a_child_needs_its_own_copy_of_the_fork_and_its_parent_up_to_there() {
        // Forked inside segment 6: 100 bytes in.
        let child: &[(u32, &str)] = &[(2, "1\t0/600064\tx\n")];
        assert_eq!(missing(&[(1, &[4, 5]), (2, &[6, 7])], child, None, &[(1, 4, 4)]), "");
        assert_eq!(missing(&[(1, &[4]), (2, &[6, 7])], child, None, &[(1, 4, 4)]), "1:5-5");
        assert_eq!(missing(&[(1, &[4, 5]), (2, &[7])], child, None, &[(1, 4, 4)]), "2:6-6");
        assert_eq!(
            missing(&[(1, &[4, 5])], child, None, &[(1, 4, 4)]),
            "",
            "the child has nothing stored yet"
        );
        // The parent went on past the fork: what is there of it is needed by its own route.
        assert_eq!(missing(&[(1, &[4, 5, 6, 8]), (2, &[6])], child, None, &[(1, 4, 4)]), "1:7-7");
        // A backup that ends past the fork is not on the child's route.
        assert_eq!(missing(&[(1, &[6, 7]), (2, &[8])], child, None, &[(1, 6, 7)]), "");
        // On the border of two segments, the parent's last one is whole.
        let border: &[(u32, &str)] = &[(2, "1\t0/600000\tx\n")];
        assert_eq!(missing(&[(1, &[4]), (2, &[6])], border, None, &[(1, 4, 4)]), "1:5-5");
        let grandchild: &[(u32, &str)] = &[(2, "1\t0/600064\tx\n"), (3, "1\t0/600064\tx\n2\t0/800064\ty\n")];
        assert_eq!(missing(&[(1, &[4, 5]), (2, &[6]), (3, &[8])], grandchild, None, &[(1, 4, 4)]), "2:7-7");
    }

    #[test]
    fn what_the_floor_gave_up_is_no_gap() {
        let line = TimelineFloor {
            timeline: tli(1),
            first: name(1, 8),
            keep: vec![KeptRange { first: name(1, 2), last: name(1, 3) }],
        };
        let floor =
            Floor { nonce: Nonce::new([0; 16]), created: jiff::Timestamp::UNIX_EPOCH, timelines: vec![line] };
        let backups = [(1, 2, 3), (1, 8, 8)];
        assert_eq!(missing(&[(1, &[2, 3, 8, 9])], &[], Some(&floor), &backups), "");
        assert_eq!(missing(&[(1, &[2, 9])], &[], Some(&floor), &backups), "1:3-3 1:8-8");
    }

    /// A floor, a name or a position may say any number.
    #[test]
    fn a_hole_of_any_size_is_no_more_work_than_a_small_one() {
        let far = 1 << 40;
        let line = TimelineFloor { timeline: tli(1), first: name(1, far), keep: Vec::new() };
        let floor =
            Floor { nonce: Nonce::new([0; 16]), created: jiff::Timestamp::UNIX_EPOCH, timelines: vec![line] };
        let stored: &[(u32, &[u64])] = &[(1, &[2, 3, far])];
        assert_eq!(missing(stored, &[], Some(&floor), &[(1, 2, 3)]), "");
        assert_eq!(missing(stored, &[], None, &[(1, 2, 3)]), format!("1:4-{}", far - 1));
    }
}
