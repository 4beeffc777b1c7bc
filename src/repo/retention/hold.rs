//! Which WAL is held, and the floor that says so.
//!
//! ```text
//!  held from on     anchors of the window, running backups, readers' pins                                ─► first
//!  held ranges      what makes an older backup consistent, a marked one too; what was let go too short
//!                   a time ago; what another repository still lacks                                      ─► keep
//!  floor            new = held, and never more than the floor before it kept; what was kept without a hole may be held from on again
//! ```
//! The last line is what makes floors safe without clocks: who reads any floor after announcing a need, and finds the need kept, was
//! announced before everything that a lower-numbered floor lets go was looked for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::route::StoredWal;
use super::spans::Spans;
use crate::repo::objects::{Floor, KeptRange, TimelineFloor};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

/// WAL that must stay.
#[derive(Debug, Clone)]
pub struct Holds {
    size: SegmentSize,
    from: BTreeMap<TimelineId, u64>,
    everywhere: Option<u64>,
    ranges: BTreeMap<TimelineId, Spans>,
}

impl Holds {
    /// Nothing is held.
    pub fn new(size: SegmentSize) -> Self {
        Self { size, from: BTreeMap::new(), everywhere: None, ranges: BTreeMap::new() }
    }

    /// Everything of `timeline` from the segment on that holds `lsn`.
    pub fn from(&mut self, timeline: TimelineId, lsn: Lsn) {
        let number = SegmentNo::containing(lsn, self.size).get();
        let first = self.from.entry(timeline).or_insert(number);
        *first = number.min(*first);
    }

    /// The same, and everything of the timelines that descend from it.
    pub fn from_with_descendants(
        &mut self,
        timeline: TimelineId,
        lsn: Lsn,
        histories: &BTreeMap<TimelineId, TimelineHistory>,
    ) {
        self.from(timeline, lsn);
        for history in histories.values().filter(|h| h.timeline() != timeline && h.contains(timeline)) {
            self.from(history.timeline(), Lsn::ZERO);
        }
    }

    /// Everything from `name`'s place on, whatever the timeline.
    pub fn everywhere(&mut self, name: SegmentName) {
        // A name that cannot be placed holds everything.
        let number = name.number(self.size).map_or(0, SegmentNo::get);
        self.everywhere = Some(self.everywhere.map_or(number, |first| first.min(number)));
    }

    /// What makes a backup consistent: from the segment of its start to the one its stop needs. Where a timeline was forked off in
    /// that last one, so is that timeline's: it begins with the same bytes, and PostgreSQL asks for it first on that route.
    pub fn range(
        &mut self,
        timeline: TimelineId,
        start: Lsn,
        stop: Lsn,
        histories: &BTreeMap<TimelineId, TimelineHistory>,
    ) {
        let (first, last) = segments(start, stop, self.size);
        self.ranges.entry(timeline).or_default().add(first, last);
        let begins = |h: &TimelineHistory| {
            h.fork().map(|fork| SegmentNo::containing(fork.switch, self.size).get()) == Some(last)
                && h.end(timeline).is_some_and(|end| stop <= end)
        };
        for history in histories.values().filter(|h| begins(h)) {
            self.ranges.entry(history.timeline()).or_default().add(last, last);
        }
    }

    /// Segments by number.
    pub fn spans(&mut self, timeline: TimelineId, spans: &Spans) {
        self.ranges.entry(timeline).or_default().add_all(spans);
    }

    /// What `other` holds too.
    pub fn also(&mut self, other: &Self) {
        for (timeline, number) in &other.from {
            let first = self.from.entry(*timeline).or_insert(*number);
            *first = (*number).min(*first);
        }
        self.everywhere = self.everywhere.into_iter().chain(other.everywhere).min();
        other.ranges.iter().for_each(|(timeline, spans)| self.spans(*timeline, spans));
    }

    /// Whether the segment is held. One that cannot be placed is.
    pub fn holds(&self, name: SegmentName) -> bool {
        let Ok(number) = name.number(self.size).map(SegmentNo::get) else { return true };
        self.first(name.timeline()).is_some_and(|first| first <= number)
            || self.ranges.get(&name.timeline()).is_some_and(|spans| spans.contains(number))
    }

    fn first(&self, timeline: TimelineId) -> Option<u64> {
        self.from.get(&timeline).copied().into_iter().chain(self.everywhere).min()
    }

    /// The lines of the floor that lets everything else go, if that is more than `before` let go.
    pub fn floor(&self, before: Option<&Floor>, wal: &StoredWal) -> Option<Vec<TimelineFloor>> {
        let old = |timeline| before.and_then(|f| f.timelines.iter().find(|line| line.timeline == timeline));
        let named = before.into_iter().flat_map(|f| f.timelines.iter().map(|line| line.timeline));
        let timelines: BTreeSet<TimelineId> = wal.keys().copied().chain(named).collect();
        let lines: Vec<TimelineFloor> = timelines
            .into_iter()
            .filter_map(|timeline| self.line(timeline, old(timeline), wal.get(&timeline)))
            .collect();
        let was = before.map_or(&[][..], |f| &f.timelines);
        (lines != was).then_some(lines)
    }

    fn line(
        &self,
        timeline: TimelineId,
        old: Option<&TimelineFloor>,
        wal: Option<&Spans>,
    ) -> Option<TimelineFloor> {
        let kept = old.map(|line| kept_of(line, self.size));
        // At most what is stored goes: WAL that is still to come is kept until a later run looks at it.
        let beyond = wal.and_then(Spans::last).map_or(0, |last| last.saturating_add(1));
        let old_first = old.map_or(0, |line| line.first.number(self.size).map_or(0, SegmentNo::get));
        let from = self.first(timeline).unwrap_or(beyond).min(beyond);
        // What is held from on may begin in what was kept before without a hole: then it is promised again.
        let unbroken = kept.as_ref().and_then(|kept| kept.span_of(old_first)).map_or(0, |(start, _)| start);
        let first = from.max(unbroken);
        let lets_go = wal.and_then(Spans::first).is_some_and(|oldest| oldest < first);
        if old.is_none() && !lets_go {
            return None;
        }
        // Of what lies below, only what was not let go before: a hold from further down cannot bring that back.
        let mut held = self.ranges.get(&timeline).cloned().unwrap_or_default();
        held.add(from, u64::MAX);
        let below = first.checked_sub(1).map(|last| Spans::one(0, last)).unwrap_or_default();
        let held = held.and(&below);
        let keep = kept.map_or_else(|| held.clone(), |kept| held.and(&kept));
        let name = |number| SegmentName::new(timeline, SegmentNo::new(number), self.size);
        Some(TimelineFloor {
            timeline,
            first: name(first),
            keep: keep
                .iter()
                .map(|(first, last)| KeptRange { first: name(first), last: name(last) })
                .collect(),
        })
    }
}

/// The segments from a backup's start to its stop.
pub(super) fn segments(start: Lsn, stop: Lsn, size: SegmentSize) -> (u64, u64) {
    let end = stop.max(start.saturating_add(1));
    (SegmentNo::containing(start, size).get(), SegmentNo::ending_at(end, size).get())
}

/// The segments that a line of a floor keeps.
fn kept_of(line: &TimelineFloor, size: SegmentSize) -> Spans {
    let number = |name: SegmentName| name.number(size).map_or(0, SegmentNo::get);
    let mut kept = Spans::one(number(line.first), u64::MAX);
    line.keep.iter().for_each(|range| kept.add(number(range.first), number(range.last)));
    kept
}

/// What the lines of a floor keep of the stored WAL.
pub fn above(lines: &[TimelineFloor], wal: &StoredWal, size: SegmentSize) -> StoredWal {
    let of = |(timeline, spans): (&TimelineId, &Spans)| {
        let own = lines.iter().filter(|line| line.timeline == *timeline);
        (*timeline, own.fold(spans.clone(), |kept, line| kept.and(&kept_of(line, size))))
    };
    wal.iter().map(of).collect()
}

/// The segments of either.
pub fn both(one: &StoredWal, other: &StoredWal) -> StoredWal {
    let mut both = one.clone();
    other.iter().for_each(|(timeline, spans)| both.entry(*timeline).or_default().add_all(spans));
    both
}

/// What of `wal` is not in `other`.
pub fn without(wal: StoredWal, other: &StoredWal) -> StoredWal {
    let rest = |(timeline, spans): (TimelineId, Spans)| {
        let rest = other.get(&timeline).map_or_else(|| spans.clone(), |other| spans.without(other));
        (timeline, rest)
    };
    wal.into_iter().map(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No writer makes two lines for a timeline. A reader that followed one alone would call what the other gave up a gap, or the reverse.
    #[test]
    fn what_two_lines_keep_is_what_both_do() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let name = |n| SegmentName::new(TimelineId::FIRST, SegmentNo::new(n), size);
        let line = |first, kept: (u64, u64)| TimelineFloor {
            timeline: TimelineId::FIRST,
            first: name(first),
            keep: vec![KeptRange { first: name(kept.0), last: name(kept.1) }],
        };
        let lines = vec![line(8, (2, 4)), line(6, (3, 5))];
        let wal = StoredWal::from([(TimelineId::FIRST, Spans::one(0, 9))]);
        let kept: Vec<u64> =
            (0..=9).filter(|n| above(&lines, &wal, size)[&TimelineId::FIRST].contains(*n)).collect();
        assert_eq!(kept, [3, 4, 8, 9]);
        let nonce = crate::repo::objects::Nonce::new([0; 16]);
        let floor = Floor { nonce, created: jiff::Timestamp::UNIX_EPOCH, timelines: lines };
        assert_eq!(kept, (0..=9).filter(|n| floor.keeps(name(*n))).collect::<Vec<_>>());
    }
}
