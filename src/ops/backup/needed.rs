//! Which WAL a backup needs, and what the stored segments say about the moments it can serve.
//!
//! ```text
//!  WAL-Ranges of backup_manifest ─► segment names            one per segment number: of two timelines the newer
//!  header + annex of each        ─► reaches far enough?      a short copy of the last segment may end before the stop
//!                                ─► largest commit time      in [start, stop): earlier moments need an older backup (RECOVERY.md 1)
//! ```
//! Pure. Source of truth: `AddWALInfoToBackupManifest` in `backup_manifest.c`; a stop position on a segment's border needs the
//! segment before it.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::pgdata::backup_manifest::WalRange;
use crate::repo::annex::{self, Annex};
use crate::repo::walobject::WalHeader;
use crate::wal::scan::{Fragment, join};
use crate::wal::{Lsn, PgMajor, PgTime, SegmentName, SegmentNo, SegmentScan, SegmentSize};

/// The segments that hold `ranges`, in WAL order. In a segment in which a timeline forks off, the newer one's copy holds both
/// sides, and the older one's may exist only as `.partial`.
pub(super) fn segments(ranges: &[WalRange], size: SegmentSize) -> Vec<SegmentName> {
    let mut newest = BTreeMap::new();
    for range in ranges.iter().filter(|range| range.start < range.end) {
        let first = SegmentNo::containing(range.start, size).get();
        let last = SegmentNo::ending_at(range.end, size).get();
        for number in first..=last {
            let timeline = newest.entry(number).or_insert(range.timeline);
            *timeline = range.timeline.max(*timeline);
        }
    }
    newest.into_iter().map(|(number, line)| SegmentName::new(line, SegmentNo::new(number), size)).collect()
}

/// Most segments that one backup can need: 16 TiB of WAL in the smallest segments.
const MOST_SEGMENTS: u64 = 1 << 24;

/// The ranges from the backup's start on. PostgreSQL 13.0 to 13.4 let the oldest one begin where its timeline does
/// (`AddWALInfoToBackupManifest`), although nothing before the start is needed.
pub(super) fn from_start(ranges: Vec<WalRange>, start: Lsn) -> Vec<WalRange> {
    let later = ranges.into_iter().filter(|range| range.end >= start);
    later.map(|range| WalRange { start: range.start.max(start), ..range }).collect()
}

/// Holds the manifest's ranges against start and stop, which the server told beside it: what they leave out nobody would wait for.
///
/// # Errors
/// Where they differ, and for more WAL than was ever written during a backup.
pub(super) fn check_ranges(ranges: &[WalRange], (start, stop): (Lsn, Lsn), size: SegmentSize) -> Result<()> {
    let first = ranges.iter().map(|range| range.start).min().unwrap_or(Lsn::MAX);
    let last = ranges.iter().map(|range| range.end).max().unwrap_or(Lsn::ZERO);
    let mut sorted: Vec<&WalRange> = ranges.iter().collect();
    sorted.sort_by_key(|range| (range.start, range.end));
    let whole = sorted.iter().zip(sorted.iter().skip(1)).all(|(one, next)| one.end == next.start);
    if (first, last) != (start, stop) || !whole {
        let holes = if whole { "" } else { " with holes" };
        return Err(Error::failed(format!(
            "backup_manifest names WAL from {first} to {last}{holes}, but the server made the backup from {start} to {stop}"
        )));
    }
    if stop.bytes_since(start) / size.bytes() >= MOST_SEGMENTS {
        return Err(Error::failed(format!(
            "the server made the backup from {start} to {stop}, which is more WAL than any backup needs"
        )));
    }
    Ok(())
}

/// Whether the stored copy described by `header` holds what is needed of it: all of the segment, or everything below `stop`.
pub(super) fn reaches(header: &WalHeader, stop: Lsn) -> bool {
    header.valid.is_none_or(|valid| !valid.end.may_have_longer_copy() || valid.to >= stop)
}

/// The largest commit or abort time of a backup's WAL, gathered segment by segment in WAL order.
#[derive(Debug, Default)]
pub(super) struct LargestCommit {
    largest: Option<PgTime>,
    crossing: Option<Crossing>,
    unknown: bool,
}

/// A record that goes on in the next segment, and what of it was seen.
#[derive(Debug)]
struct Crossing {
    tail: Fragment,
    heads: Vec<Fragment>,
}

impl LargestCommit {
    /// The next segment, all of which counts.
    pub(super) fn segment(&mut self, annex: &Annex) {
        match annex.commits.filter(|_| annex.looked_for(annex::kind::COMMITS)) {
            Some(commits) => self.see(commits.max),
            None => self.unknown = true,
        }
        let major = annex.writer.and_then(|writer| PgMajor::from_magic(writer.magic));
        self.cross(annex.head.as_ref(), annex.tail.as_ref(), major);
    }

    /// The next segment, of which the records that start in `[from, to)` count. The scan kept all events.
    pub(super) fn part(&mut self, scan: &SegmentScan, from: Lsn, to: Lsn) {
        if !scan.decoded {
            self.unknown = true;
        }
        let inside = scan.events.iter().filter(|event| event.lsn >= from && event.lsn < to);
        let largest = inside.filter_map(|event| event.kind.stop_time()).max();
        self.see(largest);
        let tail = scan.tail.as_ref().filter(|tail| tail.lsn >= from && tail.lsn < to);
        self.cross(scan.head.as_ref(), tail, scan.major);
    }

    fn see(&mut self, time: Option<PgTime>) {
        self.largest = self.largest.max(time);
    }

    /// A commit whose record lies in two segments is in the list of neither.
    fn cross(&mut self, head: Option<&Fragment>, tail: Option<&Fragment>, major: Option<PgMajor>) {
        if let Some(mut open) = self.crossing.take() {
            open.heads.extend(head.cloned());
            if head.is_some_and(Fragment::goes_on) {
                self.crossing = Some(open);
                return;
            }
            let heads: Vec<&Fragment> = open.heads.iter().collect();
            // Pieces that do not fit are a record that was abandoned after a crash, or damage that `verify` finds.
            let joined = major.and_then(|major| join(&open.tail, &heads, major).ok());
            if let Some(event) = joined.and_then(|crossing| crossing.event) {
                self.see(event.kind.stop_time());
            }
        }
        self.crossing = tail.map(|tail| Crossing { tail: tail.clone(), heads: Vec::new() });
    }

    /// The largest time; `None` if there was no commit, or a segment could not be understood.
    pub(super) fn finish(self) -> Option<PgTime> {
        self.largest.filter(|_| !self.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::scan::{CommitSummary, SegmentEnd, Stamp};
    use crate::wal::{Event, EventKind, SystemId, TimelineId};

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn line(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    fn range(timeline: u32, start: u64, end: u64) -> WalRange {
        WalRange { timeline: line(timeline), start: Lsn::new(start), end: Lsn::new(end) }
    }

    fn names(ranges: &[WalRange]) -> Vec<String> {
        segments(ranges, SIZE).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_manifest_that_names_other_wal_than_the_backups_is_refused() {
        let (start, fork, stop) = (0x0200_0028, 0x0350_0000, 0x0400_0100);
        let said = |ranges: &[WalRange], stop: u64| {
            let found = check_ranges(ranges, (Lsn::new(start), Lsn::new(stop)), SIZE);
            found.map_err(|error| error.message().to_owned()).err().unwrap_or_default()
        };
        let both = [range(2, fork, stop), range(1, start, fork)];
        // As 13.4 says it of a server that was promoted twice.
        let from_the_fork = vec![range(3, 0x0100_0000, stop), range(2, 0x0080_0000, 0x0100_0000)];
        let clipped = from_start(from_the_fork.clone(), Lsn::new(start));
        assert_eq!(clipped, [range(3, start, stop)]);
        assert_eq!(said(&clipped, stop), "");
        assert!(said(&from_the_fork, stop).contains("names WAL from 0/800000 "));
        assert_eq!(said(&both, stop), "");
        for (wrong, words) in [
            (&both[..1], "names WAL from 0/3500000"),
            (&both[1..], "to 0/3500000, but"),
            (&[], "names WAL from FFFFFFFF/FFFFFFFF"),
            (&[range(2, fork + 1, stop), both[1]], "with holes"),
            (&[range(1, start, u64::MAX)], "to FFFFFFFF/FFFFFFFF, but"),
        ] {
            assert!(said(wrong, stop).contains(words), "{wrong:?}: {}", said(wrong, stop));
        }
        assert!(said(&[range(1, start, u64::MAX)], u64::MAX).contains("more WAL than any"));
    }

    #[test]
    fn a_stop_on_a_border_needs_the_segment_before_it() {
        assert_eq!(names(&[range(1, 0x0200_0028, 0x0300_0000)]), ["000000010000000000000002"]);
        assert_eq!(
            names(&[range(1, 0x0200_0028, 0x0300_0001)]),
            ["000000010000000000000002", "000000010000000000000003"]
        );
    }

    #[test]
    fn in_the_segment_of_a_fork_the_newer_timeline_is_needed() {
        // Newest first, as the server writes them.
        let ranges = [range(2, 0x0350_0000, 0x0400_0100), range(1, 0x0200_0028, 0x0350_0000)];
        assert_eq!(
            names(&ranges),
            ["000000010000000000000002", "000000020000000000000003", "000000020000000000000004"]
        );
    }

    fn scan(events: Vec<Event>) -> SegmentScan {
        SegmentScan {
            name: SegmentName::new(line(1), SegmentNo::new(2), SIZE),
            size: SIZE,
            system_id: SystemId::new(7),
            magic: PgMajor::V15.magic(),
            major: Some(PgMajor::V15),
            decoded: true,
            start: Lsn::new(0x0200_0000),
            valid_to: Lsn::new(0x0300_0000),
            end: SegmentEnd::Switch,
            first_timeline: line(1),
            last_timeline: line(1),
            head: None,
            tail: None,
            records: 1,
            first_record: None,
            first_previous: None,
            last_record: None,
            last_record_end: None,
            commits: CommitSummary::default(),
            events,
            events_dropped: 0,
        }
    }

    fn commit(lsn: u64, time: i64) -> Event {
        let kind = EventKind::Commit { time: PgTime::from_raw(time), prepared: false };
        Event { lsn: Lsn::new(lsn), end: Lsn::new(lsn + 40), xid: 9, kind }
    }

    #[test]
    fn only_commits_between_start_and_stop_count_in_the_first_and_last_segment() {
        let events = vec![commit(0x0200_0100, 900), commit(0x0200_0200, 30), commit(0x0200_0300, 800)];
        let mut largest = LargestCommit::default();
        largest.part(&scan(events), Lsn::new(0x0200_0101), Lsn::new(0x0200_0300));
        assert_eq!(largest.finish(), Some(PgTime::from_raw(30)));
    }

    #[test]
    fn a_segment_between_counts_by_its_summary_and_one_not_understood_makes_the_answer_unknown() {
        let stamp = |time| {
            let lsn = Lsn::new(0x0200_0100);
            Some(Stamp { lsn, end: lsn, time: PgTime::from_raw(time), xid: 1 })
        };
        let mut known = scan(Vec::new());
        known.commits.last = stamp(70);
        known.commits.max = Some(PgTime::from_raw(70));
        let mut largest = LargestCommit::default();
        largest.segment(&Annex::from_scan(&known));
        assert_eq!(largest.finish(), Some(PgTime::from_raw(70)));
        let mut largest = LargestCommit::default();
        largest.segment(&Annex::from_scan(&SegmentScan { decoded: false, ..known }));
        assert_eq!(largest.finish(), None);
        assert_eq!(LargestCommit::default().finish(), None);
    }
}
