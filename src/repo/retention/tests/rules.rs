//! The rules of retention, one small catalog each.
//!
//! Hours count from Saturday, 2024-11-30, 00:00 UTC; a commit each hour, a segment of WAL each hour.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use jiff::tz::TimeZone;

use super::world::{SEGMENT, World, at, tli};
use crate::repo::path::BackupId;
use crate::repo::retention::{
    Failure, Freeze, HeldBackup, Holdings, Marked, Plan, Policy, Reason, Removal, Spans, plan, removal,
};

fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

fn window(n: u64) -> Policy {
    Policy { window: hours(n), ..Policy::default() }
}

/// A life with a backup before each of these hours.
fn world(backups: &[i64], until: i64) -> World {
    let mut world = World::new();
    while world.hour < until {
        if backups.contains(&world.hour) {
            world.backup();
        }
        world.live(SEGMENT);
    }
    world
}

fn decide(policy: &Policy, world: &World) -> Plan {
    plan(policy, &world.holdings(), at(world.hour), &TimeZone::UTC)
}

fn gone(plan: &Plan, world: &World) -> Vec<usize> {
    let place = |id: &BackupId| world.backups.iter().position(|b| b.id == *id).unwrap();
    plan.go.iter().map(|going| place(&going.id)).collect()
}

/// The floor of timeline 1, as `first keep...`.
fn floor(plan: &Plan, holdings: &Holdings) -> String {
    let lines = plan.floor(holdings.floor.as_ref(), &holdings.wal);
    let Some(line) = lines.iter().flatten().find(|line| line.timeline == tli(1)) else {
        return "all".to_owned();
    };
    let number = |name: crate::wal::SegmentName| name.number(holdings.segment_size).unwrap().get();
    let keep = line.keep.iter().map(|range| format!(" {}-{}", number(range.first), number(range.last)));
    format!("{}{}", number(line.first), keep.collect::<String>())
}

#[test]
fn the_window_rests_on_the_newest_backup_that_can_restore_its_start() {
    let world = world(&[5, 20, 40, 60], 70);
    // Window: 40 to 70. The backup of hour 40 is finished twenty minutes later, so the one before it is needed.
    let plan = decide(&window(30), &world);
    assert_eq!(gone(&plan, &world), [0]);
    assert_eq!(floor(&plan, &world.holdings()), "21 6-6", "until its tombstone is old");
    assert_eq!(plan.window.before, Some(world.backups[0].earliest));
    assert_eq!(plan.window.left, Some(world.backups[1].earliest));
    let later = decide(&window(29), &world);
    assert_eq!(gone(&later, &world), [0, 1]);
    assert_eq!(floor(&later, &world.holdings()), "41 6-6 21-21");
}

#[test]
fn older_backups_keep_the_wal_that_makes_them_consistent_and_no_more() {
    let world = world(&[5, 29, 40, 60], 70);
    let policy = Policy { daily: hours(72), ..window(12) };
    let plan = decide(&policy, &world);
    assert_eq!(gone(&plan, &world), [0; 0], "the second of its day is the anchor");
    assert_eq!(floor(&plan, &world.holdings()), "41 6-6 30-30");
    let plan = decide(&Policy { daily: hours(72), ..window(9) }, &world);
    assert_eq!(gone(&plan, &world), [2]);
    assert_eq!(floor(&plan, &world.holdings()), "61 6-6 30-30 41-41");
}

#[test]
fn the_last_sound_backup_never_goes() {
    let mut world = world(&[5], 6);
    world.hour = 24 * 400;
    let plan = decide(&window(1), &world);
    assert!(plan.go.is_empty());
    assert!(matches!(plan.frozen, Some(Freeze::Silent { .. })), "{:?}", plan.frozen);
    assert!(plan.keep[&world.backups[0].id].contains(&Reason::Newest));
    let mut old = world.holdings();
    old.superseded = true;
    let plan = super::super::plan(&window(1), &old, at(world.hour), &TimeZone::UTC);
    assert!(
        plan.frozen.is_none() && plan.go.is_empty(),
        "a cluster that went on elsewhere is silent, not failing"
    );
}

#[test]
fn nothing_goes_while_newer_backups_fail_or_are_damaged() {
    let world = world(&[5, 20, 40], 50);
    let policy = window(9);
    assert_eq!(gone(&decide(&policy, &world), &world), [0, 1]);
    let failure =
        |hour| Failure { id: BackupId::new(at(hour), 9), began: at(hour), what: "disk full".into() };
    let frozen = |failures: Vec<Failure>| {
        let holdings = Holdings { failures, ..world.holdings() };
        let plan = plan(&policy, &holdings, at(50), &TimeZone::UTC);
        assert_eq!(plan.floor(None, &holdings.wal).is_none(), plan.frozen.is_some());
        assert_eq!(plan.go.is_empty(), plan.frozen.is_some());
        plan.frozen
    };
    assert_eq!(frozen(vec![failure(41)]), Some(Freeze::Failing(failure(41))));
    assert_eq!(frozen(vec![failure(39)]), None, "success came after it");
    assert_eq!(frozen(vec![failure(40)]), None, "it began while the sound one ran: a lost race");
    let mut damaged = world.holdings();
    damaged.backups[2].unsound = Some("it holds corrupt pages".into());
    let plan = plan(&policy, &damaged, at(50), &TimeZone::UTC);
    assert!(
        matches!(&plan.frozen, Some(Freeze::Failing(f)) if f.what.contains("corrupt")),
        "{:?}",
        plan.frozen
    );
    assert!(plan.go.is_empty());
}

#[test]
fn a_backup_of_the_future_hides_no_failure() {
    let mut world = world(&[5, 20], 30);
    world.backup_by(500);
    world.live(SEGMENT);
    let failing =
        |world: &World, holdings: &Holdings| match plan(&window(9), holdings, at(world.hour), &TimeZone::UTC)
            .frozen
        {
            Some(Freeze::Failing(failure)) => Some(failure.what),
            _ => None,
        };
    assert_eq!(failing(&world, &world.holdings()), None);
    let failure = Failure { id: BackupId::new(at(31), 9), began: at(31), what: "disk full".into() };
    let failed = Holdings { failures: vec![failure], ..world.holdings() };
    assert_eq!(failing(&world, &failed).as_deref(), Some("disk full"));
    // A damaged one that lies behind it, and a sound one behind that.
    world.backup();
    world.live(SEGMENT);
    let mut damaged = world.holdings();
    damaged.backups[3].unsound = Some("corrupt".into());
    assert_eq!(failing(&world, &damaged).as_deref(), Some("corrupt"));
    world.backup();
    let mut followed = world.holdings();
    followed.backups[3].unsound = Some("corrupt".into());
    assert_eq!(failing(&world, &followed), None);
}

#[test]
fn of_corrupt_backups_only_the_newest_stays_beside_a_sound_one() {
    let mut world = world(&[5, 20, 40, 42, 44], 50);
    world.backups.iter_mut().skip(2).for_each(|backup| backup.corrupt = true);
    let policy = window(20);
    let decided = decide(&policy, &world);
    assert!(decided.frozen.is_some() && decided.floor(None, &world.holdings().wal).is_none());
    assert_eq!(gone(&decided, &world), [2, 3]);
    world.backups[2].pinned = true;
    assert_eq!(gone(&decide(&policy, &world), &world), [3]);
    // With nothing sound beside them, each may be worth something.
    world.backups.drain(..2);
    assert_eq!(gone(&decide(&policy, &world), &world), [0; 0]);
}

#[test]
fn silence_of_twice_the_promised_distance_freezes() {
    let world = world(&[5, 20], 21);
    let plan_at =
        |policy: Policy, hour| plan(&policy, &world.holdings(), at(hour), &TimeZone::UTC).frozen.is_some();
    let daily = Policy { daily: hours(24 * 30), ..window(24 * 7) };
    assert_eq!([68, 69].map(|hour| plan_at(daily, hour)), [false, true]);
    assert_eq!([24 * 7 + 20, 24 * 7 + 21].map(|hour| plan_at(window(24 * 7), hour)), [false, true]);
    let weekly = Policy { weekly: hours(24 * 365), ..Policy::default() };
    assert_eq!([24 * 14 + 20, 24 * 14 + 21].map(|hour| plan_at(weekly, hour)), [false, true]);
}

#[test]
fn a_repository_without_a_sound_backup_keeps_all() {
    let mut world = world(&[5], 30);
    world.stored.remove(&(1, 6));
    let plan = decide(&window(1), &world);
    assert_eq!(plan.frozen, Some(Freeze::NoBackup));
    assert!(plan.go.is_empty() && plan.floor(None, &world.holdings().wal).is_none());
}

#[test]
fn an_abandoned_branch_stays_as_long_as_a_moment_of_it_is_promised() {
    let mut world = world(&[5, 20, 40], 50);
    let fork = world.moments[29];
    world.fork(fork);
    while world.hour < 80 {
        if world.hour == 60 {
            world.backup();
        }
        world.live(SEGMENT);
    }
    let lines = |plan: &Plan| plan.floor(None, &world.holdings().wal).unwrap_or_default();
    // Hour 46 happened on timeline 1, and is restored from the backup of hour 40 there.
    let plan = decide(&window(34), &world);
    assert_eq!(gone(&plan, &world), [0], "hour 20 leads to timeline 2");
    assert_eq!(floor(&plan, &world.holdings()), "21 6-6");
    assert_eq!(lines(&plan).len(), 1, "all of timeline 2");
    // No moment of timeline 1 past the fork is promised: timeline 2 rests on its own backup.
    let plan = decide(&window(15), &world);
    assert_eq!(gone(&plan, &world), [0, 1, 2]);
    assert_eq!(
        floor(&plan, &world.holdings()),
        "52 6-6 21-21 41-41",
        "all that is stored of timeline 1, and nothing that is not"
    );
    assert_eq!(lines(&plan).len(), 2);
    // Between the two: the route of timeline 2 goes through the ancestor.
    let plan = decide(&window(25), &world);
    assert_eq!(gone(&plan, &world), [0, 2]);
    assert_eq!(floor(&plan, &world.holdings()), "21 6-6");
}

#[test]
fn a_branch_that_was_left_stands_for_a_day_only_if_no_other_backup_does() {
    let mut world = world(&[25, 30], 31);
    let fork = world.moments[26];
    world.fork(fork);
    world.live(SEGMENT);
    world.backup();
    let policy = Policy { daily: hours(24 * 10), ..Policy::default() };
    while world.hour < 100 {
        world.live(SEGMENT);
        if world.hour % 24 == 1 {
            world.backup();
        }
    }
    let plan = decide(&policy, &world);
    assert_eq!(gone(&plan, &world)[..2], [1, 2], "hour 25 lies before the fork");
    world.backups.remove(0);
    let plan = decide(&policy, &world);
    assert_eq!(
        gone(&plan, &world)[..1],
        [0],
        "hour 32 on the living timeline before hour 30 on the dead one"
    );
    world.backups.remove(1);
    assert!(!gone(&decide(&policy, &world), &world).contains(&0), "better that one than none");
}

#[test]
fn what_an_earlier_floor_let_go_no_later_one_keeps() {
    let mut world = world(&[5, 20, 40, 60], 70);
    let first = decide(&window(20), &world);
    assert_eq!(floor(&first, &world.holdings()), "41 6-6 21-21");
    let keep = world.backups[0].clone();
    world.perform(&first);
    world.backups.insert(0, keep);
    let plan = decide(&window(500), &world);
    assert_eq!(floor(&plan, &world.holdings()), "all", "nothing to raise");
    assert!(world.floor.is_some());
}

#[test]
fn a_tombstone_keeps_its_wal_until_it_is_old() {
    let world = world(&[5, 20, 40, 60], 70);
    let mut holdings = world.holdings();
    let second = holdings.backups.remove(1);
    holdings.marked.push(Marked {
        timeline: second.timeline,
        start_lsn: second.start_lsn,
        stop_lsn: second.stop_lsn,
    });
    let decided = |holdings: &Holdings| floor(&plan(&window(20), holdings, at(70), &TimeZone::UTC), holdings);
    assert_eq!(decided(&holdings), "41 6-6 21-21");
    holdings.marked.clear();
    assert_eq!(decided(&holdings), "41 6-6");
}

/// The moments that `backup` can be brought to now.
fn reached(world: &World, backup: &HeldBackup) -> usize {
    world.moments.iter().filter(|moment| world.way(backup, **moment).is_some()).count()
}

/// A day passes, with a backup at its end.
fn day(world: &mut World) {
    (0..24).for_each(|_| world.live(SEGMENT));
    world.backup();
}

#[test]
fn whoever_planned_a_restore_before_the_mark_has_the_grace_to_finish_it() {
    let mut world = world(&[5, 20, 40, 60], 70);
    world.grace = 48;
    let (first, third) = (world.backups[0].clone(), world.backups[2].clone());
    let before = reached(&world, &first);
    assert_eq!(before, 65, "every hour since");
    let policy = window(9);
    let plan = decide(&policy, &world);
    assert_eq!(gone(&plan, &world), [0, 1, 2]);
    assert_eq!(floor(&plan, &world.holdings()), "61 1-60", "the promise begins later, and nothing goes yet");
    assert_eq!(plan.window.left, Some(world.backups[3].earliest));
    assert_eq!(plan.waiting.values().map(Spans::count).sum::<u64>(), 60 - 3, "three make backups consistent");
    world.perform(&plan);
    day(&mut world);
    world.perform(&decide(&policy, &world));
    (0..23).for_each(|_| world.live(SEGMENT));
    world.perform(&decide(&policy, &world));
    assert!(world.marked.len() == 4 && reached(&world, &first) == before + 24 + 23, "47 hours later");
    world.live(SEGMENT);
    world.backup();
    world.perform(&decide(&policy, &world));
    assert_eq!(world.marked.len(), 1, "the fourth was marked a day later");
    assert_eq!((reached(&world, &first), reached(&world, &third)), (0, 0));
    assert!(!world.stored.contains(&(1, 60)) && world.stored.contains(&(1, 61)));
}

#[test]
fn wal_behind_a_backup_that_stays_for_its_day_has_the_same_grace() {
    let mut world = world(&[5, 29, 53], 70);
    world.grace = 48;
    let first = world.backups[0].clone();
    let before = reached(&world, &first);
    // Somebody types hours for days. Nothing is marked: each stands for its day.
    let policy = Policy { daily: hours(24 * 30), ..window(7) };
    let plan = decide(&policy, &world);
    assert_eq!(gone(&plan, &world), [0; 0]);
    assert_eq!(floor(&plan, &world.holdings()), "54 1-53");
    world.perform(&plan);
    assert_eq!(reached(&world, &first), before);
    // He sees it the next day, and nothing was lost.
    day(&mut world);
    let mended = decide(&Policy { window: hours(24 * 7), ..policy }, &world);
    world.perform(&mended);
    (0..3).for_each(|_| {
        day(&mut world);
        world.perform(&decide(&Policy { window: hours(24 * 7), ..policy }, &world));
    });
    assert_eq!(reached(&world, &first), before + 4 * 24);
    // He does not: what makes each consistent is left.
    let mut late = world.clone();
    (0..3).for_each(|_| {
        day(&mut late);
        late.perform(&decide(&policy, &late));
    });
    assert_eq!((reached(&late, &first), late.is_sound(&first)), (0, true));
}

#[test]
fn a_chosen_backup_goes_unless_the_window_or_the_last_one_depends_on_it() {
    let world = world(&[5, 20, 40, 60], 70);
    let ask = |world: &World, nth: usize, hours| {
        removal(Some(&window(hours)), &world.holdings(), &world.backups[nth].id, at(70))
    };
    assert_eq!(ask(&world, 0, 30), Removal::Harmless, "older than the anchor");
    assert_eq!(ask(&world, 1, 30), Removal::Harmless, "the one before restores the same, its WAL is there");
    assert_eq!(ask(&world, 2, 30), Removal::Harmless, "in between");
    assert_eq!(ask(&world, 0, 100), Removal::BreaksWindow, "nothing older restores what it does");
    let mut gap = world.clone();
    gap.stored.remove(&(1, 30));
    assert_eq!(ask(&gap, 2, 30), Removal::BreaksWindow, "the ones before do not reach across the gap");
    let mut pinned = world.clone();
    pinned.backups[2].pinned = true;
    assert_eq!(ask(&pinned, 2, 30), Removal::Pinned);
    let mut last = world;
    last.backups.truncate(1);
    assert_eq!(ask(&last, 0, 30), Removal::Last);
    assert_eq!(removal(None, &last.holdings(), &last.backups[0].id, at(70)), Removal::Last);
}

/// In a folder in clear a history can be planted with it. Without a window only a timeline that counts tells what lies behind a backup.
#[test]
fn the_newest_timeline_takes_nothing_from_behind_the_newest_sound_backup_if_it_does_not_come_from_there() {
    let world = world(&[5, 20], 30);
    let mut holdings = world.holdings();
    let planted = tli(9);
    let history = crate::wal::TimelineHistory::parse(planted, b"8\t0/100000\tplanted\n").unwrap();
    holdings.histories.insert(planted, history);
    holdings.wal.insert(planted, Spans::one(1, 1));
    // An idle server: nothing of its own was stored at this very moment.
    holdings.last_stored.insert(tli(1), at(29));
    let policy = Policy { daily: hours(96), ..Policy::default() };
    let plan = plan(&policy, &holdings, at(world.hour), &TimeZone::UTC);
    let last = holdings.wal[&tli(1)].last().unwrap();
    let behind = world.backups[1].stop_lsn.get() / SEGMENT + 1..=last;
    let name = |n| crate::wal::SegmentName::new(tli(1), crate::wal::SegmentNo::new(n), holdings.segment_size);
    assert!(behind.clone().count() > 3 && behind.clone().all(|n| plan.holds.holds(name(n))), "{behind:?}");
}

#[test]
fn a_backup_whose_last_segment_only_a_forked_off_timeline_repeats_counts_there() {
    let mut world = World::new();
    world.live(SEGMENT);
    world.backup();
    world.live(300);
    world.fork(*world.moments.last().unwrap());
    (0..40).for_each(|_| world.live(SEGMENT));
    world.backup();
    // Its own copy of the segment is lost; timeline 2 begins with the same bytes.
    let segment = world.backups[0].stop_lsn.get() / SEGMENT;
    assert!(world.stored.remove(&(1, segment)) && world.stored.contains(&(2, segment)));
    let decided = decide(&window(30), &world);
    assert_eq!(gone(&decided, &world), [0; 0]);
    let lost = world.moments[2];
    assert!(world.restores(lost));
    world.perform(&decided);
    assert!(world.restores(lost));
    // As one of its day it keeps that segment too.
    (0..2).for_each(|_| world.live(SEGMENT));
    let decided = decide(&Policy { daily: hours(96), ..window(1) }, &world);
    world.perform(&decided);
    assert!(world.stored.contains(&(2, segment)) && world.is_sound(&world.backups[0]));
    assert!(!world.stored.contains(&(2, segment + 1)));
}
