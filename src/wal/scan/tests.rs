//! The scanner against WAL that [`Wal`] writes: what is accepted, what is short, what is damage, and what is learned.
//!
//! Sizes are PostgreSQL's smallest (segments of 1 MiB), so that a record can cover a whole segment in a test. Real WAL is
//! compared with `pg_waldump` in `tests/waldump.rs`. Properties stand at the end: pieces do not matter, records taken whole
//! are judged as assembled ones are, and no flipped byte of valid WAL goes unnoticed.

use super::*;
use crate::wal::record::RecordHeader;
use crate::wal::testing::Wal;
use crate::wal::{Event, EventKind, Lsn, PAGE_SIZE, PgMajor, PgTime, SegmentName, SegmentSize, TimelineId};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn at(segment: u64, offset: u64) -> Lsn {
    Lsn::new(segment * MIB + offset)
}

fn t(seconds: i64) -> PgTime {
    PgTime::from_raw(seconds * 1_000_000)
}

fn wal() -> Wal {
    Wal::starting_at(at(3, 0))
}

fn scan_pieces(segment: &(SegmentName, Vec<u8>), piece: usize, keep: Keep) -> Result<SegmentScan, ScanError> {
    let mut scanner = Scanner::new(segment.0, size(), keep)?;
    for bytes in segment.1.chunks(piece) {
        scanner.push(bytes)?;
    }
    scanner.finish()
}

fn scan(segment: &(SegmentName, Vec<u8>)) -> Result<SegmentScan, ScanError> {
    scan_pieces(segment, 1 << 16, Keep::All)
}

fn scans(wal: &Wal) -> Vec<SegmentScan> {
    wal.segments().iter().map(|segment| scan(segment).unwrap()).collect()
}

/// The segment with `change` applied to its bytes.
fn changed(segment: &(SegmentName, Vec<u8>), change: impl FnOnce(&mut Vec<u8>)) -> (SegmentName, Vec<u8>) {
    let mut copy = segment.clone();
    change(&mut copy.1);
    copy
}

fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.get() % MIB).unwrap()
}

fn zero_from(segment: &(SegmentName, Vec<u8>), lsn: Lsn) -> (SegmentName, Vec<u8>) {
    changed(segment, |bytes| bytes[offset(lsn)..].fill(0))
}

/// End of the last record that is complete if zeros follow from `cut` on: one that ends in zeros may be cut in these.
fn last_complete(wal: &Wal, segment: &(SegmentName, Vec<u8>), cut: Lsn) -> Lsn {
    let zeros = segment.1[..offset(cut)].len()..;
    let survives = |end: Lsn| {
        end <= cut || segment.1[zeros.clone()][..offset(end) - offset(cut)].iter().all(|b| *b == 0)
    };
    wal.records()
        .iter()
        .rev()
        .map(|r| r.1)
        .find(|end| *end < at(4, 0) && survives(*end))
        .unwrap_or_else(|| at(3, 0))
}

fn fault(result: Result<SegmentScan, ScanError>) -> (Lsn, Fault) {
    match result {
        Err(ScanError::Damaged { lsn, fault, .. }) => (lsn, fault),
        other => panic!("expected damage, got {other:?}"),
    }
}

#[test]
fn events_of_complete_records_are_listed_in_wal_order() {
    let wal = wal()
        .checkpoint(1_000)
        .commit(t(10))
        .filler(9_000)
        .abort(t(9))
        .restore_point(t(11), "before upgrade")
        .prepare(t(12))
        .commit_prepared(702, t(13))
        .switch();
    let scan = scan(&wal.segments()[0]).unwrap();
    let at = |i: usize| wal.records()[i];
    let event = |i: usize, xid, kind| Event { lsn: at(i).0, end: at(i).1, xid, kind };
    let redo = at(0).0;
    assert_eq!(
        scan.events,
        [
            event(
                0,
                0,
                EventKind::Checkpoint {
                    time: PgTime::from_unix_seconds(1_000),
                    redo: Lsn::new(redo.get() - 40),
                    shutdown: false,
                    timeline: TimelineId::FIRST
                }
            ),
            event(1, 700, EventKind::Commit { time: t(10), prepared: false }),
            event(3, 701, EventKind::Abort { time: t(9), prepared: false }),
            event(4, 0, EventKind::RestorePoint { time: t(11), name: "before upgrade".into() }),
            event(5, 702, EventKind::Prepare { time: t(12) }),
            event(6, 702, EventKind::Commit { time: t(13), prepared: true }),
            event(7, 0, EventKind::Switch),
        ]
    );
    assert_eq!((scan.end, scan.valid_to), (SegmentEnd::Switch, at(7).1));
    assert_eq!(
        (scan.records, scan.commits.commits, scan.commits.aborts, scan.commits.prepares),
        (8, 2, 1, 1)
    );
    assert_eq!(
        (scan.first_record, scan.first_previous, scan.last_record),
        (Some(at(0).0), Some(Lsn::new(3 * MIB - 64)), Some(at(7).0))
    );
}

#[test]
fn summary_keeps_first_last_extremes_and_the_largest_backstep() {
    let wal =
        wal().commit(t(50)).commit(t(70)).abort(t(45)).commit(t(60)).commit(t(71)).prepare(t(99)).switch();
    let scan = scan_pieces(&wal.segments()[0], 4096, Keep::Summary).unwrap();
    let stamp = |i: usize, seconds, xid| Stamp {
        lsn: wal.records()[i].0,
        end: wal.records()[i].1,
        time: t(seconds),
        xid,
    };
    assert_eq!(
        scan.commits,
        CommitSummary {
            commits: 4,
            aborts: 1,
            prepares: 1,
            first: Some(stamp(0, 50, 700)),
            last: Some(stamp(4, 71, 704)),
            min: Some(t(45)),
            max: Some(t(71)),
            last_stop: Some(stamp(5, 99, 705)),
            backstep: Some(Backstep { from: t(70), to: stamp(2, 45, 702) }),
        }
    );
    assert_eq!(scan.events.iter().map(|e| &e.kind).collect::<Vec<_>>(), [&EventKind::Switch]);
}

#[test]
fn a_full_segment_is_valid_to_its_end() {
    for step in [64, 1000, 20_000] {
        let scans = scans(&wal().fill_segment(step).commit(t(1)).switch());
        assert_eq!((scans[0].end, scans[0].valid_to), (SegmentEnd::Full, at(4, 0)), "step {step}");
        assert_eq!(scans[0].tail.is_some(), scans[1].head.is_some());
        assert_eq!(scans[1].commits.commits, 1);
    }
}

#[test]
fn a_record_that_covers_whole_segments_is_joined_from_its_fragments() {
    let big = wal().commit(t(1)).filler(5_000).filler(3 * 1024 * 1024).commit(t(2)).switch();
    let scans = scans(&big);
    assert_eq!(scans.len(), 4);
    for middle in &scans[1..3] {
        assert_eq!((middle.records, middle.end, &middle.tail), (0, SegmentEnd::Full, &None));
        assert!(middle.head.as_ref().unwrap().goes_on());
    }
    let tail = scans[0].tail.as_ref().unwrap();
    let heads: Vec<&Fragment> = scans[1..].iter().map(|s| s.head.as_ref().unwrap()).collect();
    let whole = join(tail, &heads, PgMajor::V15).unwrap();
    assert_eq!((whole.lsn, whole.end), big.records()[2]);
    assert_eq!((whole.header.rmid, whole.event), (200, None));
    assert_eq!(join(tail, &heads[..2], PgMajor::V15), Err(JoinError::Unfinished(tail.lsn)));
    assert_eq!(join(tail, &[heads[0], heads[2]], PgMajor::V15), Err(JoinError::NotContinued(tail.lsn)));
}

/// Records up to `distance` bytes before the end of the segment.
fn up_to(distance: u64) -> Wal {
    let goal = at(4, 0).saturating_sub(distance);
    let mut wal = wal().filler(1000);
    while wal.position().aligned() < goal {
        let left = goal.bytes_since(wal.position().aligned());
        let in_page = PAGE_SIZE - wal.position().aligned().page_offset();
        let next = if left > 2048 {
            1024
        } else if left < 64 || in_page < 2048 {
            left
        } else {
            left / 16 * 8
        };
        wal = wal.filler(usize::try_from(next).unwrap());
    }
    assert_eq!(wal.position().aligned(), goal);
    wal
}

#[test]
fn a_commit_at_the_seam_is_found_wherever_its_header_is_cut() {
    for distance in (8..=32).step_by(8) {
        let wal = up_to(distance).commit(t(77)).filler(500).switch();
        let scans = scans(&wal);
        let (lsn, end) = wal.records()[wal.records().len() - 3];
        let (tail, head) = (scans[0].tail.as_ref().unwrap(), scans[1].head.as_ref().unwrap());
        assert_eq!((tail.lsn, tail.len, tail.total, head.total), (lsn, distance, 34, 34 - distance));
        let expected = Event { lsn, end, xid: 700, kind: EventKind::Commit { time: t(77), prepared: false } };
        assert_eq!(
            join(tail, &[head], PgMajor::V15).unwrap().event,
            Some(expected),
            "cut {distance} bytes in"
        );

        let flipped = changed(&wal.segments()[1], |bytes| bytes[41] ^= 1);
        let head = scan(&flipped).unwrap().head.unwrap();
        assert_eq!(join(tail, &[&head], PgMajor::V15), Err(JoinError::Crc(lsn)));
    }
}

#[test]
fn a_switch_whose_own_record_crosses_makes_padding_of_the_next_segment() {
    for distance in [8, 16] {
        let wal = up_to(distance).switch().commit(t(1)).switch();
        let scans = scans(&wal);
        assert_eq!((scans[0].end, scans[1].end), (SegmentEnd::Full, SegmentEnd::Switch));
        assert_eq!(scans[1].valid_to, at(4, 40 + 24 - distance));
        let whole =
            join(scans[0].tail.as_ref().unwrap(), &[scans[1].head.as_ref().unwrap()], PgMajor::V15).unwrap();
        assert_eq!(whole.event.unwrap().kind, EventKind::Switch);
    }
}

#[test]
fn wal_that_stops_anywhere_and_is_followed_by_zeros_is_short() {
    let wal = wal()
        .commit(t(1))
        .filler(30_000)
        .commit(t(2))
        .filler(100)
        .filler(40_000)
        .commit(t(3))
        .fill_segment(3000);
    let segment = &wal.segments()[0];
    let cuts = (40..131_072).step_by(8).chain([8192, 8193, 8200, 16_384 + 23, 24_576 + 24]).map(|o| at(3, o));
    for cut in cuts {
        let scan = scan(&zero_from(segment, cut)).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let expected = last_complete(&wal, segment, cut);
        assert_eq!((scan.end, scan.valid_to), (SegmentEnd::Short, expected), "cut at {cut}");
        assert_eq!(scan.tail, None);
    }
}

#[test]
fn a_head_cut_off_by_zeros_is_short_and_valid_to_nothing() {
    let wal = wal().filler(600_000).filler(1_000_000).commit(t(1)).switch();
    let segment = &wal.segments()[1];
    for cut in [at(4, 40), at(4, 8192), at(4, 8192 + 10), at(4, 300_000)] {
        let scan = scan(&zero_from(segment, cut)).unwrap();
        assert_eq!((scan.end, scan.valid_to, scan.records), (SegmentEnd::Short, at(4, 0), 0), "cut at {cut}");
    }
}

#[test]
fn old_pages_of_a_recycled_file_are_the_end() {
    let old = Wal::starting_at(at(1, 0)).fill_segment(700).segments().remove(0).1;
    let wal = wal().commit(t(1)).filler(30_000).commit(t(2)).fill_segment(3000);
    let segment = &wal.segments()[0];
    for cut in [wal.records()[2].1, at(3, 16_384), at(3, 20_000), at(3, 40), at(3, MIB - 8192)] {
        let recycled = changed(segment, |bytes| bytes[offset(cut)..].copy_from_slice(&old[offset(cut)..]));
        let scan = scan(&recycled).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let expected = last_complete(&wal, segment, cut);
        assert_eq!((scan.end, scan.valid_to), (SegmentEnd::Short, expected), "cut at {cut}");
    }
}

#[test]
fn anything_may_follow_a_switch() {
    let wal = wal().commit(t(1)).switch();
    let clean = scan(&wal.segments()[0]).unwrap();
    let end = offset(clean.valid_to);
    let noisy = changed(&wal.segments()[0], |bytes| bytes[end..].fill(0xAB));
    assert_eq!(scan(&noisy).unwrap(), clean);
}

#[test]
fn a_well_formed_record_after_a_switch_is_padding() {
    let wal = wal().commit(t(1)).record(0, 0x40, 0, &[]).commit(t(2)).filler(60);
    let segment = changed(&wal.segments()[0], |bytes| bytes.resize(1 << 20, 0));
    for piece in [ASSEMBLED, 100, 8192, 1 << 20] {
        let scan = scan_pieces(&segment, piece, Keep::All).unwrap();
        assert_eq!((scan.records, scan.commits.commits, scan.end), (2, 1, SegmentEnd::Switch), "{piece}");
        assert_eq!(scan.valid_to, wal.records()[1].1);
    }
}

#[test]
fn what_is_wrong_before_valid_pages_is_damage() {
    let wal = wal().commit(t(1)).filler(30_000).commit(t(2)).fill_segment(3000);
    let segment = &wal.segments()[0];
    let (second, second_end) = wal.records()[1];
    let flipped = |lsn: Lsn, bit: u8| changed(segment, |bytes| bytes[offset(lsn)] ^= bit);
    assert_eq!(fault(scan(&flipped(second.saturating_add(100), 1))), (second, Fault::RecordCrc));
    assert!(
        matches!(fault(scan(&flipped(second.saturating_add(8), 1))), (lsn, Fault::RecordPrevious(_)) if lsn == second)
    );
    let zeroed = changed(segment, |bytes| bytes[offset(second)..offset(second) + 24].fill(0));
    assert_eq!(fault(scan(&zeroed)), (second, Fault::RecordLength(0)));
    let page = at(3, 8192);
    let header = |byte: u64, bit| fault(scan(&flipped(page.saturating_add(byte), bit)));
    assert!(matches!(header(0, 1), (lsn, Fault::ForeignPage { .. }) if lsn == page));
    assert!(matches!(header(8, 1), (lsn, Fault::ForeignPage { .. }) if lsn == page));
    assert!(matches!(header(2, 1), (lsn, Fault::Continuation { found: 0, .. }) if lsn == page));
    assert_eq!(header(2, 2), (page, Fault::PageFlags(3)));
    assert_eq!(header(3, 0x80), (page, Fault::PageFlags(0x8001)));
    assert!(matches!(header(4, 2), (lsn, Fault::PageTimeline { found: 3, .. }) if lsn == page));
    assert!(matches!(header(16, 1), (lsn, Fault::Continuation { .. }) if lsn == page));
    let lost = changed(segment, |bytes| bytes[16_384..16_384 + 8192].fill(0));
    assert!(matches!(fault(scan(&lost)), (lsn, Fault::ForeignPage { .. }) if lsn == at(3, 16_384)));
    assert!(second_end > at(3, 24_576));
}

#[test]
fn a_flipped_byte_in_the_last_page_is_damage_if_a_record_follows() {
    let wal = up_to(4000).filler(1000).filler(1000).filler(2000);
    let segment = &wal.segments()[0];
    let records: Vec<_> = wal.records().iter().rev().take(3).copied().collect();
    let body = |i: usize| scan(&changed(segment, |bytes| bytes[offset(records[i].0) + 50] ^= 1));
    assert_eq!(fault(body(2)), (records[2].0, Fault::RecordCrc));
    assert_eq!(fault(body(1)), (records[1].0, Fault::RecordCrc));
    assert_eq!(scan(segment).unwrap().end, SegmentEnd::Full);
}

#[test]
fn a_flipped_byte_in_a_long_last_record_is_damage() {
    let wal = up_to(50_000).filler(50_000 - 6 * 24);
    let segment = &wal.segments()[0];
    assert_eq!(scan(segment).unwrap().end, SegmentEnd::Full);
    let (last, end) = *wal.records().last().unwrap();
    assert!(end <= at(4, 0) && last < at(4, 0).saturating_sub(49_000));
    let result = scan(&changed(segment, |bytes| bytes[offset(last) + 20_000] ^= 1));
    assert_eq!(fault(result), (last, Fault::RecordCrc));
}

#[test]
fn an_abandoned_record_is_passed_over() {
    let wal = wal().commit(t(1)).abandoned(30_000, 9_000).commit(t(2)).switch();
    let scan = scan(&wal.segments()[0]).unwrap();
    let kinds: Vec<_> = scan.events.iter().map(|e| e.kind.clone()).collect();
    let lost = Lsn::new(wal.records()[0].1.aligned().get());
    assert_eq!(kinds[1], EventKind::OverwriteContrecord { lsn: lost });
    assert_eq!((kinds.len(), scan.end), (4, SegmentEnd::Switch));
}

#[test]
fn a_record_abandoned_at_the_seam_leaves_a_tail_without_a_head() {
    let wal = up_to(104).abandoned(30_000, 50).commit(t(2)).switch();
    let scans = scans(&wal);
    assert_eq!((scans[0].end, scans[0].tail.is_some()), (SegmentEnd::Full, true));
    assert_eq!((&scans[1].head, scans[1].records, scans[1].commits.commits), (&None, 3, 1));
}

#[test]
fn the_first_segment_of_a_timeline_opens_with_pages_of_its_parent() {
    let two = TimelineId::new(2).unwrap();
    let wal = wal().commit(t(1)).filler(20_000).promoted_to(two).filler(20_000).commit(t(2)).switch();
    let segment = &wal.segments()[0];
    let result = scan(segment).unwrap();
    assert_eq!(segment.0.timeline(), two);
    assert_eq!((result.first_timeline, result.last_timeline, result.records), (TimelineId::FIRST, two, 5));

    let as_parent = (
        SegmentName::parse(&segment.0.to_string().replacen("00000002", "00000001", 1)).unwrap(),
        segment.1.clone(),
    );
    assert!(matches!(fault(scan(&as_parent)).1, Fault::PageTimeline { found: 2, .. }));
}

#[test]
fn a_newer_server_is_archived_without_being_understood() {
    let wal = wal().magic(0xD121).commit(t(1)).filler(30_000).fill_segment(3000);
    let segment = &wal.segments()[0];
    let result = scan(segment).unwrap();
    assert_eq!(
        (result.major, result.decoded, result.magic, result.end),
        (None, false, 0xD121, SegmentEnd::Full)
    );
    assert_eq!((result.records > 2, result.events.len()), (true, 0));

    let strange = changed(segment, |bytes| bytes[9000] ^= 1);
    let result = scan(&strange).unwrap();
    assert_eq!(
        (result.end, result.valid_to, result.records, result.decoded),
        (SegmentEnd::Full, at(4, 0), 0, false)
    );
}

#[test]
fn content_of_another_place_size_or_kind_is_refused() {
    let wal = wal().commit(t(1)).switch();
    let (name, bytes) = wal.segments().remove(0);
    let other = SegmentName::parse("000000010000000000000004").unwrap();
    let moved = scan(&(other, bytes.clone()));
    assert_eq!(moved, Err(ScanError::Misplaced { name: other, found: at(3, 0), expected: at(4, 0) }));
    let byte = |at: usize, value: u8| scan(&changed(&(name, bytes.clone()), |b| b[at] = value));
    assert_eq!(byte(1, 0xD0), Err(ScanError::NotWal { name, magic: 0xD010 }));
    assert!(matches!(byte(34, 0x80), Err(ScanError::OtherSegmentSize { .. })));
    assert_eq!(byte(37, 0x40), Err(ScanError::OtherPageSize { name, found: 0x4000 }));
    assert!(matches!(scan(&(name, bytes[1..].to_vec())), Err(ScanError::NotWal { .. })));
    let found = MIB - 1;
    assert_eq!(
        scan(&(name, bytes[..bytes.len() - 1].to_vec())),
        Err(ScanError::TooShort { name, found, expected: size() })
    );
    let long = [bytes, vec![0]].concat();
    assert!(matches!(scan(&(name, long)), Err(ScanError::TooLong { .. })));
    let beyond = SegmentName::parse("000000010000000000001000").unwrap();
    assert!(matches!(Scanner::new(beyond, size(), Keep::Summary), Err(ScanError::Name(_))));
}

#[test]
fn a_piece_of_a_segment_is_scanned_as_if_zeros_followed() {
    let wal = wal().commit(t(1)).filler(30_000).commit(t(2)).fill_segment(3000);
    let (name, bytes) = wal.segments().remove(0);
    let cut = wal.records()[2].1;
    let mut scanner = Scanner::new(name, size(), Keep::All).unwrap();
    scanner.push(&bytes[..offset(cut)]).unwrap();
    assert_eq!(scanner.finish_padded(), scan(&zero_from(&(name, bytes), cut)));
}

#[test]
fn every_major_writes_times_alike() {
    for major in PgMajor::ALL {
        let wal = wal().major(major).commit(t(5)).commit_prepared(9, t(6)).switch();
        let scan = scan(&wal.segments()[0]).unwrap();
        assert_eq!((scan.major, scan.commits.commits, scan.commits.max), (Some(major), 2, Some(t(6))));
        assert_eq!(scan.events[1].xid, 9);
    }
}

/// Any byte of valid WAL that no checksum and no rule covers: padding between records, and header bits without meaning here.
fn insignificant(wal: &Wal, lsn: Lsn, mask: u8) -> bool {
    let in_page = lsn.page_offset();
    let long = lsn.get() % MIB < PAGE_SIZE;
    let header = if long { 40 } else { 24 };
    let flags = in_page == 2 && mask == 4;
    let unused = (20..24).contains(&in_page);
    let cluster = long && (24..32).contains(&in_page);
    let padding =
        in_page >= header && !wal.records().iter().any(|(start, end)| (*start..*end).contains(&lsn));
    // The length of a continuation that is not announced.
    let no_remainder = (16..20).contains(&in_page)
        && !wal.records().iter().any(|(start, end)| *start < lsn.page_start() && lsn.page_start() < *end);
    flags || unused || cluster || padding || no_remainder
}

fn history() -> impl Strategy<Value = Wal> {
    let step = prop_oneof![
        4 => (26_usize..400).prop_map(|n| (0_u8, n)),
        2 => (400_usize..40_000).prop_map(|n| (0, n)),
        3 => (0_usize..1000).prop_map(|n| (1, n)),
        1 => (0_usize..1000).prop_map(|n| (2, n)),
        1 => (9_000_usize..30_000).prop_map(|n| (3, n)),
    ];
    (proptest::collection::vec(step, 1..60), 0_u8..3, 26_usize..5000).prop_map(|(steps, ending, fill)| {
        let wal = steps.into_iter().fold(wal(), |wal, (what, n)| {
            let time = t(i64::try_from(n).unwrap());
            match what {
                0 => wal.filler(n),
                1 => wal.commit(time),
                2 => wal.restore_point(time, "here"),
                _ => wal.filler(n).abandoned(n, n / 16),
            }
        });
        match ending {
            0 => wal.switch(),
            1 => wal.fill_segment(fill),
            _ => wal.filler(26),
        }
    })
}

/// What becomes of a segment's bytes before they are scanned.
#[derive(Debug, Clone)]
enum Harm {
    Flip {
        at: usize,
        mask: u8,
    },
    /// The length of the n-th record becomes another.
    Length {
        record: usize,
        to: u32,
    },
    /// The n-th record names another predecessor, with a CRC that is right: where it lies in one page.
    Stray {
        record: usize,
    },
    /// Zeros from here on, as in a file that is still being written.
    Cut {
        at: usize,
    },
    /// Older WAL of the same shape from here on, as in a recycled file.
    Recycled {
        at: usize,
    },
}

fn harm() -> impl Strategy<Value = Harm> {
    let near = 0_usize..40_000; // where `dense` has its records
    prop_oneof![
        4 => (near.clone(), 1_u8..).prop_map(|(at, mask)| Harm::Flip { at, mask }),
        3 => (0_usize..300, 0_u32..9_000).prop_map(|(record, to)| Harm::Length { record, to }),
        3 => (0_usize..300).prop_map(|record| Harm::Stray { record }),
        2 => near.clone().prop_map(|at| Harm::Cut { at }),
        2 => near.prop_map(|at| Harm::Recycled { at }),
    ]
}

fn harmed(wal: &Wal, old: &[u8], harms: &[Harm]) -> (SegmentName, Vec<u8>) {
    changed(&wal.segments()[0], |bytes| {
        for harm in harms {
            match *harm {
                Harm::Flip { at, mask } => bytes[at] ^= mask,
                Harm::Cut { at } => bytes[at..].fill(0),
                Harm::Recycled { at } => bytes[at..].copy_from_slice(&old[at..]),
                Harm::Length { record, to } => {
                    let (start, _) = wal.records()[record % wal.records().len()];
                    if start < at(4, 0) {
                        bytes[offset(start)..offset(start) + 4].copy_from_slice(&to.to_le_bytes());
                    }
                }
                Harm::Stray { record } => {
                    let (start, end) = wal.records()[record % wal.records().len()];
                    if end < at(4, 0) && start.page_start() == end.page_start() {
                        stray(&mut bytes[offset(start)..offset(end)]);
                    }
                }
            }
        }
    })
}

fn stray(record: &mut [u8]) {
    record[8..16].copy_from_slice(&at(2, 64).get().to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// Records of every small length, so that most lie whole in a page, with all that ends a run of them.
fn dense() -> impl Strategy<Value = Wal> {
    let step = prop_oneof![
        12 => (24_usize..160).prop_map(|n| (0_u8, n)),
        3 => (160_usize..9_000).prop_map(|n| (0, n)),
        4 => (0_usize..1000).prop_map(|n| (1, n)),
        1 => (0_usize..1000).prop_map(|n| (2, n)),
        1 => (9_000_usize..12_000).prop_map(|n| (3, n)),
    ];
    (proptest::collection::vec(step, 20..120), any::<bool>()).prop_map(|(steps, switch)| {
        let wal = steps.into_iter().fold(wal().filler(26), |wal, (what, n)| match what {
            0 => wal.record(200, 0x70, 0, &vec![7; n - 24]),
            1 => wal.commit(t(i64::try_from(n).unwrap())),
            2 => wal.restore_point(t(5), "here").prepare(t(6)).commit_prepared(9, t(7)).checkpoint(8),
            _ => wal.abandoned(n, n / 16),
        });
        if switch { wal.switch() } else { wal }
    })
}

/// Everything that a scan tells: each record as the observer saw it, and the result.
type Told = (Vec<(Lsn, Lsn, RecordHeader, Option<Event>)>, Result<SegmentScan, ScanError>);

/// Pushes the front of the segment in pieces, and the rest, where nothing is whole, in one.
fn told(segment: &(SegmentName, Vec<u8>), piece: usize, keep: Keep) -> Told {
    let mut scanner = Scanner::new(segment.0, size(), keep).unwrap();
    let mut seen = Vec::new();
    let mut push = |bytes: &[u8]| {
        let record = &mut |r: &RecordInfo<'_>| seen.push((r.lsn, r.end, *r.header, r.event.cloned()));
        scanner.push_observed(bytes, record)
    };
    let (front, rest) = segment.1.split_at(65_536);
    let pushed = front.chunks(piece).chain([rest]).try_for_each(&mut push);
    let result = pushed.and_then(|()| scanner.finish());
    (seen, result)
}

/// Shorter than a record's header: nothing is ever whole, so all is assembled.
const ASSEMBLED: usize = 23;

#[test]
fn every_size_of_pieces_tells_the_same_of_damaged_wal() {
    let wal = (0..90).fold(wal(), |wal, n| match n % 9 {
        0..5 => wal.filler(26 + n * 3),
        5 => wal.commit(t(5)),
        6 => wal.filler(700),
        7 => wal.record(200, 0, 0, &[]), // all header
        _ => wal.restore_point(t(9), "here"),
    });
    let in_one_page = |i: &usize| {
        let (start, end) = wal.records()[*i];
        end.bytes_since(start) > 40 && start.page_start() == end.page_start()
    };
    let record = (60..90).find(in_one_page).unwrap();
    let flip = Harm::Flip { at: offset(wal.records()[record].0) + 30, mask: 4 };
    for (harms, whole) in [(vec![], 90), (vec![flip], record), (vec![Harm::Stray { record }], record)] {
        let segment = harmed(&wal, &[], &harms);
        let assembled = told(&segment, ASSEMBLED, Keep::All);
        assert_eq!(assembled.0.len(), whole, "{harms:?}");
        for piece in 1..=8_300 {
            assert_eq!(told(&segment, piece, Keep::All), assembled, "pieces of {piece}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whole_records_are_judged_as_assembled_ones_are(
        wal in dense(),
        harms in proptest::collection::vec(harm(), 0..4),
        pieces in proptest::collection::vec(prop_oneof![1_usize..400, 400_usize..17_000, Just(8192)], 6),
        keep in prop_oneof![Just(Keep::Summary), Just(Keep::All)],
    ) {
        let old = Wal::starting_at(at(1, 0)).fill_segment(90).segments().remove(0).1;
        let segment = harmed(&wal, &old, &harms);
        let assembled = told(&segment, ASSEMBLED, keep);
        for piece in pieces {
            prop_assert_eq!(&told(&segment, piece, keep), &assembled, "pieces of {}", piece);
        }
    }

    #[test]
    fn pieces_do_not_matter(wal in history(), piece in 1_usize..70_000, damage in proptest::option::of((0_usize..1_000_000, 1_u8..))) {
        for segment in wal.segments() {
            let segment = changed(&segment, |bytes| if let Some((at, mask)) = damage { bytes[at] ^= mask });
            let whole = scan_pieces(&segment, 1 << 20, Keep::All);
            prop_assert_eq!(scan_pieces(&segment, piece, Keep::All), whole.clone());
            prop_assert_eq!(scan_pieces(&segment, 8 + piece % 57, Keep::All), whole);
        }
    }

    #[test]
    fn every_event_of_the_stream_is_found_once(wal in history()) {
        let scans = scans(&wal);
        let mut found: Vec<(Lsn, Lsn)> = Vec::new();
        for (index, (name, bytes)) in wal.segments().iter().enumerate() {
            let mut scanner = Scanner::new(*name, size(), Keep::All).unwrap();
            scanner.push_observed(bytes, &mut |record| found.push((record.lsn, record.end))).unwrap();
            if let Some((tail, head)) = scans[index].tail.as_ref().zip(scans.get(index + 1).and_then(|s| s.head.as_ref())) {
                let whole = join(tail, &[head], PgMajor::V15).unwrap();
                found.push((whole.lsn, whole.end));
            }
        }
        prop_assert_eq!(found.as_slice(), wal.records());
    }

    #[test]
    fn no_flipped_byte_of_valid_wal_goes_unnoticed(wal in history(), place in 0.0..1.0_f64, mask in 1_u8..) {
        let segment = wal.segments().remove(0);
        let clean = scan(&segment).unwrap();
        let valid = clean.valid_to.bytes_since(clean.start);
        let target = (0..valid).find(|o| u32::try_from(*o).map_or(0.0, f64::from) >= place * u32::try_from(valid).map_or(0.0, f64::from));
        let lsn = clean.start.saturating_add(target.unwrap_or(0));
        let flipped = scan(&changed(&segment, |bytes| bytes[offset(lsn)] ^= mask));
        if insignificant(&wal, lsn, mask) {
            return Ok(());
        }
        match flipped {
            Err(_) => {}
            Ok(scan) => {
                prop_assert_ne!(&scan, &clean, "{} ^ {:02X} changed nothing", lsn, mask);
                prop_assert!(scan.end == SegmentEnd::Short || scan.tail != clean.tail, "{:?}", scan);
            }
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..3000), at_offset in 0_usize..200_000) {
        let segment = wal().filler(60_000).commit(t(1)).fill_segment(3000).segments().remove(0);
        let noisy = changed(&segment, |b| b[at_offset..at_offset + bytes.len()].copy_from_slice(&bytes));
        let _ = scan(&noisy); // an answer of any kind, no panic
    }
}
