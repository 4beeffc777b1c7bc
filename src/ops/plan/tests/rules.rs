//! One test per rule of RECOVERY.md.
//!
//! Worlds are written record by record; times are seconds on the test's clock. `base` is a cluster with one backup from second
//! 10 to second 20, a commit before, one inside and one after it.

use super::model::{Model, SEGMENT, at, size, tli};
use super::{ask, to};
use crate::ops::plan::*;
use crate::wal::event::EventKind;
use crate::wal::lsn::Lsn;
use crate::wal::segment::{SegmentName, SegmentNo};
use crate::wal::time::PgTime;

struct Base {
    model: Model,
    after: Lsn,
}

fn base() -> Base {
    let mut model = Model::new();
    model.on(1).commit(1, at(5));
    let start = model.on(1).other(0).lsn;
    model.on(1).commit(2, at(15));
    model.end_backup("b1", 1, start, at(10), at(20));
    let after = model.on(1).commit(3, at(30)).lsn;
    model.store_all();
    Base { model, after }
}

fn stop_lsn(plan: &RecoveryPlan) -> Lsn {
    match &plan.stop {
        Stop::Lsn(record) => record.lsn,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_time_stops_at_the_start_of_the_last_end_before_the_first_that_is_too_late() {
    let Base { mut model, .. } = base();
    let prepare = model.on(1).push(200, 9, Some(EventKind::Prepare { time: at(39) })).lsn;
    let over = model.on(1).push(40, 5, Some(EventKind::Abort { time: at(41), prepared: false })).lsn;
    model.on(1).commit(6, at(50));
    model.store_all();
    let plan = to(&model, RecoveryTarget::Time(at(40))).unwrap();
    assert_eq!(stop_lsn(&plan), prepare);
    assert_eq!(plan.last_kept.unwrap().xid, 3);
    assert_eq!(plan.first_lost.unwrap().xid, 6);
    assert!(prepare < over);
}

#[test]
fn a_transaction_that_was_prepared_after_the_time_is_not_there() {
    let Base { mut model, .. } = base();
    let kept = model.on(1).commit(5, at(35));
    model.on(1).push(200, 9, Some(EventKind::Prepare { time: at(39) }));
    let prepare = model.on(1).push(200, 10, Some(EventKind::Prepare { time: at(45) })).lsn;
    model.on(1).commit(6, at(50));
    model.store_all();
    assert_eq!(stop_lsn(&to(&model, RecoveryTarget::Time(at(38))).unwrap()), kept.lsn);
    // PostgreSQL's own targets go by position alone.
    assert_eq!(stop_lsn(&to(&model, RecoveryTarget::BeforeXid(6)).unwrap()), prepare);
}

#[test]
fn a_time_on_an_idle_database_is_immediate_not_latest() {
    let Base { mut model, .. } = base();
    model.on(1).recs.pop();
    model.on(1).push(114, 0, Some(checkpoint(25, Lsn::ZERO)));
    model.store_all();
    let plan = to(&model, RecoveryTarget::Time(at(22))).unwrap();
    assert_eq!(plan.stop, Stop::Immediate { lsn: model.backups[0].stop_lsn });
}

fn checkpoint(seconds: i64, redo: Lsn) -> EventKind {
    EventKind::Checkpoint { time: at(seconds), redo, shutdown: false, timeline: tli(1) }
}

#[test]
fn a_time_that_nothing_stored_reaches_is_not_covered() {
    let Base { model, .. } = base();
    let refusal = to(&model, RecoveryTarget::Time(at(31))).unwrap_err();
    let Refusal::NotCovered { latest, .. } = &*refusal else { panic!("{refusal}") };
    assert_eq!(latest.time, Some(at(30)));
    assert_eq!(refusal.class(), RefusalClass::Unreachable);
    assert!(to(&model, RecoveryTarget::Time(at(30))).is_ok(), "the newest moment offered is accepted");
}

#[test]
fn a_time_before_a_commit_inside_the_backup_is_too_early() {
    let Base { model, .. } = base();
    for seconds in [3, 12, 14] {
        let refusal = to(&model, RecoveryTarget::Time(at(seconds))).unwrap_err();
        let Refusal::TooEarly { earliest, .. } = *refusal else { panic!("{refusal}") };
        assert_eq!(earliest.time, Some(at(15)));
    }
    let plan = to(&model, RecoveryTarget::Time(at(15))).unwrap();
    assert_eq!(plan.stop, Stop::Immediate { lsn: model.backups[0].stop_lsn });
}

#[test]
fn a_crossing_commit_counts_at_its_start_and_needs_the_segment_it_ends_in() {
    let Base { mut model, .. } = base();
    model.on(1).fill(32);
    let crossing = model.on(1).commit(7, at(40));
    model.on(1).commit(8, at(60));
    model.store_all();
    assert!(crossing.crosses());
    let plan = to(&model, RecoveryTarget::Time(at(50))).unwrap();
    assert_eq!(stop_lsn(&plan), crossing.lsn);
    assert_eq!(plan.segments.len(), 2);
    assert_eq!(plan.last_kept.unwrap().xid, 7);
    let before = to(&model, RecoveryTarget::Time(at(39))).unwrap();
    assert_eq!((stop_lsn(&before), before.segments.len()), (base().after, 1));
}

#[test]
fn an_lsn_means_the_last_record_that_ends_at_or_before_it() {
    let Base { mut model, after } = base();
    let next = model.on(1).other(0);
    model.store_all();
    let target = |lsn| to(&model, RecoveryTarget::Lsn(lsn)).map(|plan| stop_lsn(&plan));
    let inside = next.end.saturating_sub(1);
    assert_eq!(target(inside), Ok(after));
    assert_eq!(target(next.end), Ok(next.lsn));
    let Refusal::NotCovered { latest, .. } = *target(next.end.saturating_add(1)).unwrap_err() else {
        panic!()
    };
    assert_eq!(latest.lsn, next.end);
}

#[test]
fn padding_after_a_switch_belongs_to_the_switch() {
    let Base { mut model, .. } = base();
    let switch = model.on(1).push(24, 0, Some(EventKind::Switch));
    model.store_all();
    for lsn in
        [switch.end, switch.end.saturating_add(5000), Lsn::new(2 * SEGMENT), Lsn::new(2 * SEGMENT + 40)]
    {
        let plan = to(&model, RecoveryTarget::Lsn(lsn)).unwrap();
        assert_eq!(stop_lsn(&plan), switch.lsn, "{lsn}");
        assert_eq!(plan.segments.len(), 1);
    }
}

#[test]
fn a_clock_set_back_is_refused_with_both_positions() {
    let Base { mut model, .. } = base();
    let early = model.on(1).commit(4, at(100));
    model.on(1).commit(5, at(200));
    let late = model.on(1).commit(6, at(90));
    model.on(1).commit(7, at(220));
    model.store_all();
    let refusal = to(&model, RecoveryTarget::Time(at(150))).unwrap_err();
    let Refusal::ClockSteppedBack { early: first, late: second, fell_from, fell_to, .. } = &*refusal else {
        panic!("{refusal}")
    };
    assert_eq!((first.lsn, second.lsn), (early.end.aligned(), late.end.aligned()));
    assert_eq!((*fell_from, *fell_to), (at(200), at(90)));
    assert_eq!(stop_lsn(&to(&model, RecoveryTarget::Lsn(second.lsn)).unwrap()), late.lsn);
    assert!(to(&model, RecoveryTarget::Time(at(210))).is_ok());
}

/// From second 0 on: a backup each day, and segments of commits between them.
fn days(count: i64) -> Model {
    let Base { mut model, .. } = base();
    for day in 1..=count {
        for hour in 0..6 {
            model.on(1).commit(9, at(86_400 * (day - 1) + 3600 * (hour + 1)));
            model.on(1).fill(0);
        }
        let start = model.on(1).other(0).lsn;
        model.end_backup(&format!("day {day}"), 1, start, at(86_400 * day), at(86_400 * day + 60));
    }
    model
}

#[test]
fn wal_before_a_backup_is_read_back_for_a_day_unless_a_backup_shows_that_the_clock_was_ahead() {
    let oldest = |model: &Model, seconds: i64| {
        let (world, mut facts) = (model.world(), Facts::default());
        let request = PlanRequest::new(RecoveryTarget::Time(at(seconds)));
        let first = model.backups[0].start_lsn;
        while let Answer::Need(wants) = plan(&request, &world, &facts) {
            wants.into_iter().for_each(|want| model.fetch(want, &mut facts));
        }
        facts.summaries.contains_key(&SegmentName::new(tli(1), SegmentNo::containing(first, size()), size()))
    };
    let mut model = days(6);
    let last = 86_400 * 6 + 7200;
    model.on(1).commit(10, at(last));
    model.on(1).commit(11, at(last + 7200));
    model.store_all();
    assert!(!oldest(&model, last + 60), "all of it was read");
    model.backups[1].stop_time = at(last + 3600);
    assert!(oldest(&model, last + 60), "a backup of then is dated after the target");
}

#[test]
fn a_backup_behind_a_clock_that_was_set_back_is_passed_over_or_must_be_named() {
    let Base { mut model, .. } = base();
    let early = model.on(1).commit(4, at(100)).lsn;
    model.on(1).commit(5, at(1000));
    let start = model.on(1).other(0).lsn;
    model.end_backup("b2", 1, start, at(110), at(120));
    model.on(1).commit(6, at(2000));
    model.store_all();
    let target = RecoveryTarget::Time(at(130));
    let plan = to(&model, target.clone()).unwrap();
    assert_eq!((plan.backup.as_str(), stop_lsn(&plan)), ("b1", early));
    let named = PlanRequest { backup: Some("b2".into()), ..PlanRequest::new(target.clone()) };
    let plan = ask(&model, &named).0.unwrap();
    assert_eq!(plan.warnings, [Warning::HoldsLater { up_to: at(1000) }]);
    model.backups.remove(0);
    // By a clock that was in the future of now it was committed when it stands there.
    let now = PlanRequest { now: Some(at(200)), ..PlanRequest::new(target.clone()) };
    let far = PlanRequest { now: Some(at(200 - 3600)), ..now.clone() };
    assert!(matches!(&*ask(&model, &now).0.unwrap_err(), Refusal::HoldsLater { .. }), "clocks may be apart");
    assert_eq!(ask(&model, &far).0.unwrap().warnings, []);
    let refusal = to(&model, target).unwrap_err();
    assert!(
        matches!(&*refusal, Refusal::HoldsLater { backup, up_to, .. } if backup == "b2" && *up_to == at(1000))
    );
    assert_eq!(to(&model, RecoveryTarget::Time(at(1500))).unwrap().backup, "b2");
    // Committed while the backup was about to begin: no clock was set back.
    model.backups[0].stop_time = at(1000);
    let refusal = to(&model, RecoveryTarget::Time(at(130))).unwrap_err();
    assert!(
        matches!(&*refusal, Refusal::TooEarly { earliest, .. } if earliest.time == Some(at(1000))),
        "{refusal}"
    );
}

#[test]
fn commits_that_take_their_place_a_little_late_are_no_clock_set_back() {
    let Base { mut model, .. } = base();
    let (just, late) = (PgTime::from_raw(100_000_000), PgTime::from_raw(99_600_000));
    model.on(1).commit(5, just);
    model.on(1).commit(6, late);
    model.store_all();
    assert!(to(&model, RecoveryTarget::Time(PgTime::from_raw(99_900_000))).is_ok());
}
#[test]
fn a_stop_inside_drop_database_moves_before_its_first_record() {
    let Base { mut model, .. } = base();
    let kept = model.on(1).commit(4, at(40)).lsn;
    let first = model.on(1).other(50).lsn;
    model.on(1).commit(5, at(41));
    let redo = model.on(1).other(0).lsn;
    model.on(1).push(114, 0, Some(checkpoint(42, redo)));
    let drop = model.on(1).push(60, 50, Some(EventKind::DatabaseDrop { databases: vec![16384] })).lsn;
    let commit = model.on(1).commit(50, at(45));
    model.on(1).commit(6, at(60));
    model.store_all();
    let plan = to(&model, RecoveryTarget::Time(at(44))).unwrap();
    assert_eq!(stop_lsn(&plan), kept);
    assert!(
        matches!(plan.warnings[..], [Warning::MovedBeforeDrop { xid: 50, first: f, drop: d, .. }] if f == first && d == drop)
    );
    let plan = to(&model, RecoveryTarget::BeforeXid(50)).unwrap();
    assert_eq!(stop_lsn(&plan), kept);
    let done = to(&model, RecoveryTarget::Time(at(50))).unwrap();
    assert_eq!((stop_lsn(&done), done.warnings), (commit.lsn, Vec::new()));
    let exact = to(&model, RecoveryTarget::Lsn(drop)).unwrap();
    assert!(matches!(exact.warnings[..], [Warning::InsideDrop { xid: 50, .. }]));
}

#[test]
fn a_missing_fork_segment_ends_the_plan_at_the_fork() {
    let Base { mut model, .. } = base();
    let fork = model.on(1).pos;
    model.on(1).commit(90, at(35));
    model.fork(2, 1, fork);
    model.store_all();
    let plan = to(&model, RecoveryTarget::Latest).unwrap();
    assert_eq!(plan.stop, Stop::EndOfWal { lsn: fork });
    assert_eq!(plan.last_kept.unwrap().xid, 3);
    assert_eq!(plan.recovery_target_timeline, tli(2));
    assert_eq!(plan.warnings, [Warning::EndsAtFork { timeline: tli(2), fork }]);
}

#[test]
fn the_lost_end_of_a_parent_and_the_child_before_its_first_record_are_two_branches() {
    let Base { mut model, .. } = base();
    let fork = model.on(1).pos;
    let lost = model.on(1).commit(90, at(35));
    model.fork(2, 1, fork);
    let end_of_recovery = EventKind::EndOfRecovery { time: at(40), timeline: tli(2), previous: tli(1) };
    model.on(2).push(50, 0, Some(end_of_recovery));
    let own = model.on(2).commit(91, at(50));
    model.store_all();
    let refusal = to(&model, RecoveryTarget::Time(at(37))).unwrap_err();
    let Refusal::TwoBranches { fork: parted, branches, .. } = &*refusal else { panic!("{refusal}") };
    assert_eq!((*parted, branches.len()), (fork, 2));
    assert_eq!((branches[0].timeline, branches[1].timeline), (tli(2), tli(1)));
    let mut request = PlanRequest::new(RecoveryTarget::Time(at(35)));
    request.timeline = Some(TimelineChoice::Number(tli(1)));
    let plan = ask(&model, &request).0.unwrap();
    assert_eq!((stop_lsn(&plan), plan.recovery_target_timeline), (lost.lsn, tli(1)));
    request.timeline = Some(TimelineChoice::Latest);
    assert_eq!(ask(&model, &request).0.unwrap().last_kept.unwrap().xid, 3);
    let child = to(&model, RecoveryTarget::Time(at(50))).unwrap();
    assert_eq!((stop_lsn(&child), child.recovery_target_timeline), (own.lsn, tli(2)));
    let common = to(&model, RecoveryTarget::Time(at(32))).unwrap();
    assert_eq!(common.last_kept.unwrap().xid, 3);
}

#[test]
fn a_child_that_opens_with_a_checkpoint_may_be_a_second_younger_than_it_says() {
    let Base { mut model, .. } = base();
    let fork = model.on(1).pos;
    let later = |micros| PgTime::from_raw(at(35).raw() + micros);
    model.on(1).commit(90, later(60_000));
    model.fork(2, 1, fork);
    model.on(2).push(114, 0, Some(checkpoint(35, fork)));
    model.on(2).commit(91, at(50));
    model.store_all();
    let refusal = to(&model, RecoveryTarget::Time(later(70_000))).unwrap_err();
    assert!(matches!(&*refusal, Refusal::TwoBranches { .. }), "{refusal}");
}

#[test]
fn a_stop_before_the_fork_names_the_parent_so_that_the_new_history_ascends() {
    let Base { mut model, after } = base();
    model.on(1).commit(4, at(40));
    let fork = model.on(1).pos;
    model.fork(2, 1, fork);
    model.on(2).commit(91, at(50));
    model.store_all();
    let plan = to(&model, RecoveryTarget::Time(at(35))).unwrap();
    assert_eq!((stop_lsn(&plan), plan.recovery_target_timeline), (after, tli(1)));
    assert!(plan.segments.iter().all(|name| name.timeline() == tli(1)));
    model.lose(1, 1);
    let plan = to(&model, RecoveryTarget::Time(at(35))).unwrap();
    assert_eq!(plan.recovery_target_timeline, tli(2), "only the child's copy of the segment is stored");
}

#[test]
fn a_gap_refuses_and_names_the_moments_around_it() {
    let Base { mut model, .. } = base();
    for n in 0..3 {
        model.on(1).fill(0);
        model.on(1).commit(10 + n, at(100 + i64::from(n) * 10));
    }
    let start = model.on(1).other(0).lsn;
    model.end_backup("b2", 1, start, at(125), at(130));
    model.on(1).commit(20, at(140));
    model.store_all();
    model.lose(1, 3);
    let refusal = to(&model, RecoveryTarget::Time(at(112))).unwrap_err();
    let Refusal::Gap { gap, before, after, after_backup, .. } = &*refusal else { panic!("{refusal}") };
    assert_eq!(gap.to_string(), "segment 000000010000000000000003 is missing");
    assert_eq!((before.unwrap().time, after.unwrap().time), (Some(at(100)), Some(at(125))));
    assert_eq!(after_backup.as_deref(), Some("b2"));
    assert_eq!(to(&model, RecoveryTarget::Latest).unwrap().backup, "b2");
    let mut request = PlanRequest::new(RecoveryTarget::Latest);
    request.backup = Some("b1".to_owned());
    assert!(matches!(*ask(&model, &request).0.unwrap_err(), Refusal::Gap { .. }));
    assert!(to(&model, RecoveryTarget::Time(at(100))).is_ok(), "the moment offered is accepted");
    assert!(to(&model, RecoveryTarget::Lsn(before.unwrap().lsn)).is_ok());
}

#[test]
fn restore_points_are_found_by_position_and_duplicates_are_shown() {
    let Base { mut model, .. } = base();
    let point = |s| Some(EventKind::RestorePoint { time: at(s), name: "p".to_owned() });
    let first = model.on(1).push(98, 0, point(40)).lsn;
    let second = model.on(1).push(98, 0, point(50));
    model.store_all();
    let plan = to(&model, RecoveryTarget::Name("p".to_owned())).unwrap();
    assert_eq!(stop_lsn(&plan), first);
    assert_eq!(plan.warnings, [Warning::DuplicateName { others: vec![(at(50), second.end.aligned())] }]);
    let refusal = to(&model, RecoveryTarget::Name("q".to_owned())).unwrap_err();
    assert_eq!(refusal.class(), RefusalClass::NotFound);
    assert!(refusal.hint().contains("\"p\""), "{}", refusal.hint());
}

#[test]
fn a_transaction_is_included_or_excluded() {
    let Base { model, after } = base();
    assert_eq!(stop_lsn(&to(&model, RecoveryTarget::Xid(3)).unwrap()), after);
    let plan = to(&model, RecoveryTarget::BeforeXid(3)).unwrap();
    assert_eq!(plan.stop, Stop::Immediate { lsn: model.backups[0].stop_lsn });
    assert!(matches!(*to(&model, RecoveryTarget::Xid(2)).unwrap_err(), Refusal::XidNotFound { .. }));
}

#[test]
fn windows_end_at_moments_that_can_be_restored() {
    let Base { model, .. } = base();
    let world = model.world();
    let mut facts = Facts::default();
    let windows = loop {
        match window(&world, &facts) {
            Ok(windows) => break windows,
            Err(wants) => wants.into_iter().for_each(|want| model.fetch(want, &mut facts)),
        }
    };
    let [Window { timeline, spans }] = &windows[..] else { panic!("{windows:?}") };
    assert_eq!((*timeline, spans.len()), (tli(1), 1));
    assert_eq!((spans[0].earliest.time, spans[0].latest.time), (Some(at(15)), Some(at(30))));
    assert!(to(&model, RecoveryTarget::Time(at(15))).is_ok());
}

#[test]
fn a_parents_copy_that_ends_before_the_stop_is_not_relied_on() {
    let Base { mut model, after } = base();
    let fork = model.on(1).pos;
    model.fork(2, 1, fork);
    model.on(2).commit(91, at(50));
    model.store_all();
    let parents = SegmentName::new(tli(1), SegmentNo::new(1), size());
    model.cuts.insert(parents, model.backups[0].stop_lsn);
    let plan = to(&model, RecoveryTarget::Time(at(35))).unwrap();
    assert_eq!((stop_lsn(&plan), plan.recovery_target_timeline), (after, tli(2)));
}

#[test]
fn wal_missing_before_a_fork_is_a_gap_even_if_nothing_later_is_stored() {
    let Base { mut model, .. } = base();
    model.on(1).fill(0);
    model.on(1).commit(4, at(40));
    let fork = model.on(1).pos;
    model.fork(2, 1, fork);
    model.store_all();
    model.lose(1, 2);
    let refusal = to(&model, RecoveryTarget::Latest).unwrap_err();
    let Refusal::Gap { gap, before, .. } = &*refusal else { panic!("{refusal}") };
    assert_eq!(gap.to_string(), "segment 000000010000000000000002 is missing");
    assert_eq!(before.unwrap().time, Some(at(30)));
}
