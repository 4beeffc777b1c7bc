//! Tests of the annex: what a scan learned comes back, bounded, and what it did not look for is not taken for absent.
//!
//! Golden bytes are in `tests/formats.rs`.
//! Random annexes are compared as values; damaged ones must be refused, never misread.

use proptest::prelude::*;

use super::*;
use crate::repo::walobject::tests::scan;
use crate::wal::scan::SegmentEnd;

fn event(n: u64, kind: EventKind) -> Event {
    Event { lsn: Lsn::new(n * 100), end: Lsn::new(n * 100 + 50), xid: 7, kind }
}

#[test]
fn a_scan_that_could_not_decode_claims_nothing_about_commits() {
    let mut scan = scan(1 << 20, SegmentEnd::Full);
    scan.decoded = false;
    scan.major = None;
    scan.magic = 0xD121;
    scan.records = 0;
    let annex = Annex::from_scan(&scan);
    assert_eq!(annex.looked_for, [kind::WRITER]);
    assert_eq!(annex.writer, Some(WalWriter { magic: 0xD121, major: 0 }));
    assert_eq!((annex.commits, annex.span), (None, None));
    assert!(!annex.complete(kind::RESTORE_POINTS));
}

#[test]
fn a_list_that_is_too_long_keeps_its_first_entries_and_says_so() {
    let mut scan = scan(1 << 20, SegmentEnd::Full);
    let many = u64::try_from(MAX_LIST).unwrap() + 5;
    scan.events = (1..=many).map(|n| event(n, EventKind::DatabaseCreate { database: 5 })).collect();
    scan.events.push(event(many + 1, EventKind::Switch));
    let annex = Annex::from_scan(&scan);
    assert_eq!(annex.overflowed, [kind::DATABASE_CREATES]);
    assert_eq!(annex.events.len(), MAX_LIST + 1);
    assert!(annex.complete(kind::SWITCHES) && !annex.complete(kind::DATABASE_CREATES));
    scan.events_dropped = 1;
    assert_eq!(Annex::from_scan(&scan).overflowed, kind::LISTS, "which events a scan dropped is not known");
    let (back, _) = Annex::parse(&annex.encode()).unwrap();
    assert_eq!(back, annex);
}

#[test]
fn the_largest_annex_stays_within_its_bound() {
    let mut scan = scan(1 << 20, SegmentEnd::Full);
    let each = u64::try_from(MAX_LIST).unwrap();
    for n in 1..=each {
        scan.events.push(event(
            n,
            EventKind::RestorePoint { time: PgTime::from_raw(0), name: "\u{fffd}".repeat(63) },
        ));
        scan.events.push(event(n, EventKind::DatabaseDrop { databases: vec![u32::MAX; 200] }));
        for kind in [
            EventKind::Checkpoint {
                time: PgTime::from_raw(0),
                redo: Lsn::MAX,
                shutdown: true,
                timeline: TimelineId::FIRST,
            },
            EventKind::EndOfRecovery {
                time: PgTime::from_raw(0),
                timeline: TimelineId::FIRST,
                previous: TimelineId::FIRST,
            },
            EventKind::ParameterChange {
                max_connections: -1,
                max_worker_processes: 0,
                max_wal_senders: 1,
                max_prepared_xacts: 2,
                max_locks_per_xact: 3,
                wal_level: 4,
            },
            EventKind::BackupEnd { start: Lsn::MAX },
            EventKind::DatabaseCreate { database: 1 },
            EventKind::OverwriteContrecord { lsn: Lsn::MAX },
            EventKind::TablespaceCreate { tablespace: 1, place: vec![b'x'; 2000] },
            EventKind::Switch,
        ] {
            scan.events.push(event(n, kind));
        }
    }
    let frame = Annex::from_scan(&scan).encode();
    assert!(frame.len() <= MAX_ANNEX, "{}", frame.len());
    assert!(Annex::parse(&frame).is_ok());
}

#[test]
fn kinds_of_the_future_are_skipped() {
    let annex = Annex::from_scan(&scan(1 << 20, SegmentEnd::Full));
    let frame = annex.encode();
    let mut sections = Writer(frame[FRAME_HEAD..frame.len() - 4].to_vec());
    sections.u16(900).u32(3).bytes(b"new");
    let crc = crc32fast::hash(&sections.0);
    let frame = skippable(FrameKind::Annex, &sections.u32(crc).0);
    assert_eq!(Annex::parse(&frame), Ok((annex, frame.len())));
}

#[test]
fn a_changed_bit_or_a_cut_is_seen() {
    let frame = Annex::from_scan(&scan(1 << 20, SegmentEnd::Full)).encode();
    for bit in 0..frame.len() * 8 {
        let mut bad = frame.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Annex::parse(&bad).is_err(), "bit {bit}");
    }
    for len in 0..frame.len() {
        let needed = if len < FRAME_HEAD { FRAME_HEAD } else { frame.len() };
        assert_eq!(Annex::parse(&frame[..len]), Err(AnnexError::NeedMore(needed)), "cut at {len}");
    }
}

fn stamps() -> impl Strategy<Value = Option<Stamp>> {
    proptest::option::of(any::<(u64, u64, i64, u32)>().prop_map(|(lsn, end, time, xid)| Stamp {
        lsn: Lsn::new(lsn),
        end: Lsn::new(end),
        time: PgTime::from_raw(time),
        xid,
    }))
}

fn fragments() -> impl Strategy<Value = Option<Fragment>> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..=FRAGMENT_BYTES);
    let fragment =
        (any::<(u64, u64, u64, u64, u32)>(), bytes).prop_map(|((lsn, end, total, len, crc), bytes)| {
            Fragment { lsn: Lsn::new(lsn), end: Lsn::new(end), total, len, crc, bytes }
        });
    proptest::option::of(fragment)
}

fn kinds() -> impl Strategy<Value = EventKind> {
    let time = any::<i64>().prop_map(PgTime::from_raw);
    let timeline = (1u32..).prop_map(|n| TimelineId::new(n).unwrap());
    let lsn = any::<u64>().prop_map(Lsn::new);
    prop_oneof![
        (time.clone(), "\\PC{0,20}").prop_map(|(time, name)| EventKind::RestorePoint { time, name }),
        (time.clone(), lsn.clone(), any::<bool>(), timeline.clone()).prop_map(
            |(time, redo, shutdown, timeline)| EventKind::Checkpoint { time, redo, shutdown, timeline }
        ),
        (time, timeline.clone(), timeline).prop_map(|(time, timeline, previous)| EventKind::EndOfRecovery {
            time,
            timeline,
            previous
        }),
        lsn.clone().prop_map(|start| EventKind::BackupEnd { start }),
        Just(EventKind::Switch),
        any::<[i32; 6]>().prop_map(|[a, b, c, d, e, f]| EventKind::ParameterChange {
            max_connections: a,
            max_worker_processes: b,
            max_wal_senders: c,
            max_prepared_xacts: d,
            max_locks_per_xact: e,
            wal_level: f,
        }),
        proptest::collection::vec(any::<u32>(), 0..5)
            .prop_map(|databases| EventKind::DatabaseDrop { databases }),
        any::<u32>().prop_map(|database| EventKind::DatabaseCreate { database }),
        lsn.prop_map(|lsn| EventKind::OverwriteContrecord { lsn }),
        (any::<u32>(), proptest::collection::vec(1..=255_u8, 0..30))
            .prop_map(|(tablespace, place)| EventKind::TablespaceCreate { tablespace, place }),
    ]
}

proptest! {
    #[test]
    fn whatever_a_scan_learned_comes_back(
        kinds in proptest::collection::vec(kinds(), 0..30), head in fragments(), tail in fragments(), first in stamps(),
        last in stamps(), last_stop in stamps(), min: Option<i64>, max: Option<i64>, fell: bool, previous: Option<u64>,
        dropped in 0u64..2,
    ) {
        let mut scan = scan(1 << 20, SegmentEnd::Full);
        scan.events = (1..).zip(kinds).map(|(n, kind)| event(n, kind)).collect();
        (scan.head, scan.tail, scan.events_dropped) = (head, tail, dropped);
        scan.first_previous = previous.map(Lsn::new);
        scan.commits = CommitSummary {
            commits: 3, aborts: 2, prepares: 1, first, last, last_stop,
            min: min.map(PgTime::from_raw), max: max.map(PgTime::from_raw),
            backstep: first.filter(|_| fell).map(|to| Backstep { from: PgTime::from_raw(9), to }),
        };
        let annex = Annex::from_scan(&scan);
        prop_assert_eq!(&annex.events, &scan.events);
        let frame = annex.encode();
        let (back, len) = Annex::parse(&frame).unwrap();
        prop_assert_eq!(len, frame.len());
        prop_assert_eq!(back, annex);
    }

    #[test]
    fn sections_of_any_bytes_are_read_or_refused(
        sections in proptest::collection::vec((0u16..26, proptest::collection::vec(any::<u8>(), 0..80)), 0..6),
    ) {
        let mut out = Writer::default();
        for (kind, value) in &sections {
            out.u16(*kind).u32(u32::try_from(value.len()).unwrap()).bytes(value);
        }
        let crc = crc32fast::hash(&out.0);
        let _ = Annex::parse(&skippable(FrameKind::Annex, &out.u32(crc).0));
    }
}
