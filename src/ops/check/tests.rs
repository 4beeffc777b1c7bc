//! What `check` says of the live part, for servers as they are met.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

use std::collections::BTreeMap;
use std::time::Duration;

use super::live::{End, Holder, Live, Queue, Slot, judge, of_this_server};
use super::room::Room;
use super::{Finding, Grade};
use crate::ops::init::facts::{Archiver, ServerFacts, Setting};
use crate::wal::{Lsn, PgMajor, SegmentSize, SystemId, TimelineId};

const RPO: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 16 * MIB;

/// A server of 17 as `init` leaves it, but for these settings.
pub(super) fn facts(changed: &[(&str, &str)]) -> ServerFacts {
    let usual = [
        ("archive_mode", "on"),
        ("archive_command", "/usr/local/bin/pitr --config /etc/pitr/pitr.toml archive-push %p"),
        ("archive_library", ""),
        ("archive_timeout", "60"),
        ("wal_level", "replica"),
        ("max_wal_senders", "10"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
    ];
    let setting = |(name, value): &(&str, &str)| {
        ((*name).to_owned(), Setting { value: (*value).to_owned(), file: None, pending_restart: false })
    };
    ServerFacts {
        major: PgMajor::from_version_num(170_000).unwrap(),
        version: "17.0".to_owned(),
        system: SystemId::new(1),
        segment_size: SegmentSize::DEFAULT,
        data_dir: None,
        bin_dir: None,
        timezone: "UTC".to_owned(),
        in_recovery: false,
        superuser: false,
        settings: usual.iter().chain(changed).map(setting).collect::<BTreeMap<_, _>>(),
        archiver: Archiver {
            last_archived: Some("000000010000000000000004".to_owned()),
            archived_ago: Some(20),
            ..Archiver::default()
        },
    }
}

fn failing(archived_ago: Option<u64>) -> ServerFacts {
    let mut facts = facts(&[]);
    facts.archiver.archived_ago = archived_ago;
    facts.archiver.last_failed = Some("000000010000000000000005".to_owned());
    (facts.archiver.failed_ago, facts.archiver.failures, facts.archiver.failing) = (Some(7), 12, true);
    facts
}

/// Segments that wait, the oldest for so long.
fn queue(segments: u64, oldest_seconds: u64) -> Queue {
    let oldest = (segments > 0).then(|| "000000010000000000000005".to_owned());
    Queue { files: segments, segments, bytes: segments * SEGMENT, oldest, oldest_seconds }
}

/// Nothing waits, and the end of WAL is 1 MiB into the segment behind the newest archived one.
fn live() -> Live {
    let end = End {
        lsn: Lsn::new(5 * SEGMENT + MIB),
        at: 0,
        timeline: TimelineId::new(1).unwrap(),
        redo: Lsn::new(5 * SEGMENT + 200),
        redo_seconds: 4000,
    };
    Live {
        role: "pitr".to_owned(),
        queue: Some(queue(0, 0)),
        end: Some(end),
        slot: None,
        holder: None,
        growth: None,
        room: Some(Room { free: 100 << 30, segment: SEGMENT, growth: None }),
    }
}

fn found(facts: &ServerFacts, live: &Live, what: &str) -> Finding {
    let findings = judge(facts, live, RPO);
    assert!(findings.iter().all(|f| f.grade == Grade::Good || f.hint.is_some()), "{findings:?}");
    findings.into_iter().find(|f| f.what == what).unwrap_or_else(|| panic!("no finding {what}"))
}

#[test]
fn an_idle_server_has_nothing_to_say_but_that_all_is_well() {
    let findings = judge(&facts(&[]), &live(), RPO);
    let said: Vec<_> = findings.iter().map(|f| (f.grade, f.what.as_str(), f.found.as_str())).collect();
    assert_eq!(
        said,
        [
            (Grade::Good, "archiver", "last archived: 000000010000000000000004, 20s ago"),
            (Grade::Good, "archive queue", "nothing waits"),
            (Grade::Good, "pg_wal", "100.0 GiB free; neither the archiver nor a slot holds WAL back"),
        ]
    );
}

#[test]
fn a_queue_is_judged_by_the_age_of_its_oldest_file() {
    for (segments, age, grade) in [
        (1000, 10, Grade::Good),
        (1, 150, Grade::Good),
        (1, 151, Grade::Risk),
        (1, 300, Grade::Risk),
        (1, 301, Grade::Bad),
    ] {
        let finding =
            found(&facts(&[]), &Live { queue: Some(queue(segments, age)), ..live() }, "archive queue");
        assert_eq!(finding.grade, grade, "{finding:?}");
        assert!(finding.found.contains("000000010000000000000005"), "{finding:?}");
    }
    let finding = found(&facts(&[]), &Live { queue: Some(queue(3, 301)), ..live() }, "archive queue");
    let want = "3 files are waiting (48.0 MiB), 000000010000000000000005 for 5m 01s; promised are 5m 00s";
    assert_eq!(finding.found, want);
}

#[test]
fn a_failing_archiver_says_what_fails_how_often_and_since_when() {
    let waits = |age| Live { queue: Some(queue(2, age)), ..live() };
    let finding = found(&failing(Some(90)), &waits(80), "archiver");
    let want = "000000010000000000000005 fails: 12 failures, the last 7s ago; \
                last archived: 000000010000000000000004, 1m 30s ago";
    assert_eq!((finding.grade, finding.found.as_str()), (Grade::Risk, want));
    assert_eq!(found(&failing(Some(90)), &waits(301), "archiver").grade, Grade::Bad);
    // The server was idle for long; what fails waits since a moment.
    assert_eq!(found(&failing(Some(9000)), &waits(5), "archiver").grade, Grade::Risk);
    assert_eq!(found(&failing(None), &waits(5), "archiver").grade, Grade::Bad, "it never worked");
    let unseen = Live { queue: None, ..live() };
    assert_eq!(found(&failing(Some(301)), &unseen, "archiver").grade, Grade::Bad);
    assert_eq!(found(&failing(Some(300)), &unseen, "archiver").grade, Grade::Risk);
    assert_eq!(found(&failing(Some(9000)), &live(), "archiver").grade, Grade::Good, "nothing waits for it");
}

#[test]
fn wal_that_no_switch_brings_into_the_archive_is_found() {
    let mut busy = live();
    let end = busy.end.as_mut().unwrap();
    // A checkpoint long ago began behind more than an idle server writes, in a segment that is not archived.
    end.redo = Lsn::new(5 * SEGMENT + (64 << 10));
    assert_eq!(found(&facts(&[]), &busy, "archive queue").grade, Grade::Risk);
    assert!(found(&facts(&[]), &busy, "archive queue").found.contains("1h 06m ago"));
    busy.end.as_mut().unwrap().redo_seconds = 300;
    assert_eq!(found(&facts(&[]), &busy, "archive queue").grade, Grade::Good, "within the promise");
    let mut other = busy.clone();
    let end = other.end.as_mut().unwrap();
    (end.redo_seconds, end.timeline) = (4000, TimelineId::new(2).unwrap());
    assert_eq!(
        found(&facts(&[]), &other, "archive queue").grade,
        Grade::Good,
        "positions of another timeline"
    );
}

#[test]
fn a_queue_that_may_not_be_seen_is_a_note_and_says_what_to_grant() {
    let unseen = |segments: u64, redo: u64| {
        let mut live = Live { queue: None, ..live() };
        let end = live.end.as_mut().unwrap();
        (end.lsn, end.redo) = (Lsn::new((5 + segments) * SEGMENT + MIB), Lsn::new(5 * SEGMENT + redo));
        found(&facts(&[]), &live, "archive queue")
    };
    let note = unseen(0, 200);
    assert_eq!(note.grade, Grade::Good);
    assert!(note.hint.is_some_and(|hint| hint.contains("GRANT pg_monitor TO pitr;")));
    let ahead = unseen(3, 200);
    assert!(ahead.grade == Grade::Good && ahead.found.contains("3 segments ahead"), "{ahead:?}");
    let late = unseen(3, MIB);
    assert!(late.grade == Grade::Risk && late.found.contains("3 segments ahead"), "{late:?}");
    let mut fresh = facts(&[]);
    fresh.archiver.last_archived = None;
    let finding = found(&fresh, &Live { queue: None, ..live() }, "archive queue");
    assert_eq!((finding.grade, finding.found.as_str()), (Grade::Good, "role pitr may not list it"));
}

#[test]
fn a_disk_that_fills_is_said_with_when_and_why() {
    let filling = |free, growth, holder| Live {
        slot: Some(Slot { name: "old".to_owned(), held: 5 << 30, limit: None, active: false }),
        holder: Some(holder),
        room: Some(Room { free, segment: SEGMENT, growth }),
        ..live()
    };
    let finding = found(&facts(&[]), &filling(10 << 30, Some(MIB), Holder::Archiver), "pg_wal");
    let want = "10.0 GiB free, full in about 2h 50m at 1.0 MiB a second; WAL is held by the archiver";
    assert_eq!((finding.grade, finding.found.as_str()), (Grade::Risk, want));
    let slot = found(&facts(&[]), &filling(MIB << 10, Some(MIB), Holder::Slot("old".to_owned())), "pg_wal");
    assert!(slot.grade == Grade::Bad && slot.found.ends_with("held by slot old (5.0 GiB)"), "{slot:?}");
    assert!(slot.hint.is_some_and(|hint| hint.contains("pg_drop_replication_slot('old')")));
    let still = found(&facts(&[]), &filling(10 << 30, Some(0), Holder::Archiver), "pg_wal");
    assert!(still.grade == Grade::Good && still.found.contains("does not grow"), "{still:?}");
    let full = Live { room: Some(Room { free: MIB, segment: SEGMENT, growth: None }), ..live() };
    assert_eq!(found(&facts(&[]), &full, "pg_wal").grade, Grade::Bad);
}

#[test]
fn a_standby_archives_only_if_it_always_does() {
    let mut standby = facts(&[]);
    standby.in_recovery = true;
    let named = |facts: &ServerFacts| -> Vec<String> {
        judge(facts, &Live { end: None, ..live() }, RPO).into_iter().map(|f| f.what).collect()
    };
    assert_eq!(named(&standby), ["pg_wal"]);
    standby = ServerFacts { in_recovery: true, ..facts(&[("archive_mode", "always")]) };
    assert_eq!(named(&standby), ["archiver", "archive queue", "pg_wal"]);
    assert_eq!(named(&facts(&[("archive_mode", "off")])), ["pg_wal"]);
}

#[test]
fn wal_is_held_by_an_archiver_that_does_not_get_on_or_by_a_slot_that_nobody_reads() {
    let held = |facts: &ServerFacts, queue: Option<Queue>, slot: Option<Slot>| {
        Live { queue, slot, ..live() }.who_holds(facts, Some(10 << 30))
    };
    let well = facts(&[]);
    assert_eq!(held(&well, Some(queue(0, 0)), None), None);
    assert_eq!(held(&well, Some(queue(50, 59)), None), None, "it is at work");
    assert_eq!(held(&well, Some(queue(1, 60)), None), Some(Holder::Archiver));
    assert_eq!(held(&failing(Some(90)), Some(queue(1, 2)), None), Some(Holder::Archiver));
    assert_eq!(held(&failing(Some(90)), Some(queue(0, 0)), None), None, "that failure is past");
    assert_eq!(held(&failing(Some(90)), None, None), Some(Holder::Archiver), "as far as can be seen");
    let history = Queue { segments: 0, bytes: 0, ..queue(1, 600) };
    assert_eq!(held(&well, Some(history), None), None, "a history fills no disk");
    assert_eq!(held(&facts(&[("archive_mode", "off")]), Some(queue(9, 600)), None), None);
    let slot = |held, limit| Some(Slot { name: "s".to_owned(), held, limit, active: false });
    let by_slot = Some(Holder::Slot("s".to_owned()));
    let read = |held| slot(held, None).map(|slot| Slot { active: true, ..slot });
    assert_eq!(held(&well, Some(queue(0, 0)), read(64 * SEGMENT - 1)), None, "its reader keeps up");
    assert_eq!(held(&well, Some(queue(0, 0)), read(64 * SEGMENT)), by_slot, "connected, and far behind");
    assert_eq!(held(&well, Some(queue(0, 0)), slot(SEGMENT - 1, None)), None);
    assert_eq!(held(&well, Some(queue(0, 0)), slot(SEGMENT, None)), by_slot);
    assert_eq!(
        held(&well, Some(queue(0, 0)), slot(SEGMENT, Some(10 << 30))),
        None,
        "ended before the disk is full"
    );
    assert_eq!(held(&well, Some(queue(0, 0)), slot(SEGMENT, Some(11 << 30))), by_slot);
}

#[test]
fn a_directory_of_another_server_under_the_same_path_is_not_looked_at() {
    let place = tempfile::tempdir().unwrap();
    let looked_at = || of_this_server(place.path(), 1_700_000_005).is_some();
    assert!(!looked_at(), "nothing runs there");
    for (lines, ours) in [
        ("4711\n/data\n1700000000\n5432\n/run\n*\n", true),
        ("4711\n/data\n1699990000\n5432\n/run\n*\n", false),
        ("4711\n/data\n", false),
        ("4711\n/data\nyesterday\n", false),
        ("", false),
    ] {
        std::fs::write(place.path().join("postmaster.pid"), lines).unwrap();
        assert_eq!(looked_at(), ours, "{lines:?}");
    }
}
