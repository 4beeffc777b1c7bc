//! Random lives of a cluster: after every run, every promised point that could be restored before still can.
//!
//! Promised: every moment of the window, on whatever branch it happened; a sound backup for each day, week, month and year that had one;
//! the newest sound backup; what pins and running backups named.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use proptest::prelude::*;

use super::world::{Moment, Random, World, at, tli};
use crate::repo::path::BackupId;
use crate::repo::retention::{HeldBackup, Period, Policy, Removal, plan, removal};
use crate::wal::SegmentName;

fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

fn policies() -> impl Strategy<Value = Policy> {
    (0_u64..12, prop_oneof![Just(0_u64), 3..40_u64], prop_oneof![Just(0_u64), 1..10_u64], 0_u64..4, 0_u64..2)
        .prop_map(|(window, daily, weeks, months, years)| Policy {
            window: days(window),
            daily: days(daily),
            weekly: days(weeks * 7),
            monthly: days(months * 31),
            yearly: days(years * 366),
            grace: Duration::ZERO,
        })
}

fn zones() -> impl Strategy<Value = TimeZone> {
    prop_oneof![Just("UTC"), Just("Asia/Jakarta"), Just("America/New_York")]
        .prop_map(|name| TimeZone::get(name).unwrap())
}

/// A day of the calendar as one number, by civil arithmetic of its own: years, months, weeks and days since a Monday.
fn key(period: Period, date: Date) -> i64 {
    let monday = jiff::civil::date(2024, 1, 1);
    let day = i64::from(date.since(monday).unwrap().get_days());
    match period {
        Period::Day => day,
        Period::Week => day.div_euclid(7),
        Period::Month => i64::from(date.year()) * 12 + i64::from(date.month()),
        Period::Year => i64::from(date.year()),
    }
}

/// Which periods of the last `span` have one of these backups.
fn represented<'a>(
    period: Period,
    span: Duration,
    backups: impl Iterator<Item = &'a HeldBackup>,
    hour: i64,
    zone: &TimeZone,
) -> BTreeSet<i64> {
    let oldest = at(hour) - SignedDuration::try_from(span).unwrap();
    let date = |b: &HeldBackup| b.stop_time.to_zoned(zone.clone()).date();
    // A period with a moment of the span in it. One whose last day lies within it has.
    let within = |b: &&HeldBackup| {
        let day = date(b);
        let last = match period {
            Period::Day => day,
            Period::Week => day + (7 - i64::from(day.weekday().to_monday_one_offset())).days(),
            Period::Month => day.last_of_month(),
            Period::Year => day.last_of_year(),
        };
        (last + 1.day()).to_zoned(zone.clone()).unwrap().timestamp() > oldest
    };
    backups.filter(within).map(|b| key(period, date(b))).collect()
}

/// What must be restorable after a run at `hour`.
struct Promised {
    moments: Vec<Moment>,
    periods: Vec<(Period, BTreeSet<i64>)>,
    any_sound: bool,
}

fn promised(world: &World, policy: &Policy, zone: &TimeZone) -> Promised {
    let start = at(world.hour) - SignedDuration::try_from(policy.window).unwrap();
    let sound = || world.backups.iter().filter(|b| world.is_sound(b));
    Promised {
        moments: world
            .moments
            .iter()
            .copied()
            .filter(|m| at(m.hour) >= start && world.restores(*m))
            .collect(),
        periods: Period::ALL
            .map(|period| (period, represented(period, policy.span(period), sound(), world.hour, zone)))
            .to_vec(),
        any_sound: sound().next().is_some(),
    }
}

fn check(world: &World, promised: &Promised, policy: &Policy, zone: &TimeZone) -> Result<(), TestCaseError> {
    for moment in &promised.moments {
        prop_assert!(world.restores(*moment), "{moment:?} is lost at hour {}: {:?}", world.hour, world.floor);
    }
    let sound = || world.backups.iter().filter(|b| world.is_sound(b));
    for (period, wanted) in &promised.periods {
        let span = policy.span(*period);
        let found = represented(*period, span, sound(), world.hour, zone);
        if !span.is_zero() {
            prop_assert_eq!(&found, wanted, "{:?} at hour {}", period, world.hour);
        }
    }
    prop_assert!(!promised.any_sound || sound().next().is_some(), "no sound backup is left");
    Ok(())
}

/// How far ahead the server's clock is: mostly not at all. Behind, it is behind a backup of before that is not dated in the future: a virtual
/// machine that was asleep.
fn ahead(world: &World, random: &mut Random) -> i64 {
    let past = world.backups.iter().map(|b| b.earliest).filter(|earliest| *earliest <= at(world.hour));
    let Some(latest) = past.max() else { return 0 };
    match random.below(12) {
        0 | 1 => {
            let age = at(world.hour).duration_since(latest).as_hours();
            -age - 1 - i64::try_from(random.below(40 * 24)).unwrap()
        }
        2 => i64::try_from(random.below(100)).unwrap(),
        _ => 0,
    }
}

/// A day with clocks that are wrong, and nothing else that is.
fn day_of_clocks(world: &mut World, random: &mut Random) {
    life(world, random, true, true);
}

/// Something happens: a day of life with whatever may go wrong in it.
fn day(world: &mut World, random: &mut Random, calm: bool) {
    life(world, random, calm, false);
    if !calm && random.one_in(12) {
        let back = usize::try_from(random.below(60)).unwrap();
        let to = world.moments.iter().rev().nth(back).copied().unwrap_or(world.moments[0]);
        world.fork(to);
    }
    if !calm && random.one_in(15) {
        let nth = usize::try_from(random.below(40)).unwrap();
        if let Some(lost) = world.stored.iter().rev().nth(nth).copied() {
            world.stored.remove(&lost);
        }
    }
}

/// WAL, backups, pins.
fn life(world: &mut World, random: &mut Random, calm: bool, clocks: bool) {
    for _ in 0..6 {
        let bytes = if random.one_in(3) { 300 } else { random.below(1 << 20) };
        world.live(bytes);
        world.hour += i64::try_from(random.below(6)).unwrap();
        if random.one_in(if calm { 6 } else { 9 }) {
            world.backup_by(if clocks { ahead(world, random) } else { 0 });
        }
    }
    if random.one_in(10) {
        let nth = usize::try_from(random.below(8)).unwrap();
        if let Some(backup) = world.backups.iter_mut().rev().nth(nth) {
            backup.pinned = !backup.pinned;
        }
    }
    world.running = if random.one_in(8) { vec![world.here()] } else { Vec::new() };
    world.pins = match (random.below(8), world.stored.iter().nth(3).copied()) {
        (0, Some((timeline, number))) => vec![world.name(timeline, number)],
        (1, _) => vec![world.here()],
        _ => Vec::new(),
    };
}

/// Of the moments since `left` none lies between two that can be restored and cannot, though all that is unread has damage in it.
fn check_window(world: &World, left: Option<Timestamp>) -> Result<(), TestCaseError> {
    let mut worst = world.clone();
    worst.damaged.clone_from(&world.unread);
    let since = |m: &&Moment| m.timeline == world.timeline && left.is_some_and(|left| at(m.hour) >= left);
    let restores: Vec<bool> = world.moments.iter().filter(since).map(|m| worst.restores(*m)).collect();
    prop_assert!(
        restores.is_sorted_by(|a, b| a >= b),
        "{left:?} is said at hour {}: {restores:?}",
        world.hour
    );
    Ok(())
}

/// A restore of somebody who cannot pin.
#[derive(Debug)]
struct Planned {
    hour: i64,
    backup: BackupId,
    way: Vec<(u32, u64)>,
}

/// One that leads through no WAL that was given up already.
fn planned(world: &World, random: &mut Random) -> Option<Planned> {
    let nth = |count: usize, random: &mut Random| {
        let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
        usize::try_from(random.below(count)).ok()
    };
    let backup = world.backups.get(nth(world.backups.len(), random)?)?;
    let moment = world.moments.get(nth(world.moments.len(), random)?)?;
    let way = world.way(backup, *moment)?;
    let promised = |name: SegmentName| world.floor.as_ref().is_none_or(|floor| floor.keeps_from(name));
    let all = way.iter().all(|(timeline, number)| promised(world.name(*timeline, *number)));
    all.then(|| Planned { hour: world.hour, backup: backup.id.clone(), way })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn after_any_run_every_promised_point_still_restores(seed: u64, policy in policies(), zone in zones()) {
        let (mut world, mut random) = (World::new(), Random(seed));
        for _ in 0..70 {
            day(&mut world, &mut random, false);
            if random.one_in(4) {
                continue;
            }
            let wanted = promised(&world, &policy, &zone);
            let before = world.clone();
            let decided = plan(&policy, &world.holdings(), at(world.hour), &zone);
            world.perform(&decided);
            check(&world, &wanted, &policy, &zone)?;
            for backup in before.backups.iter().filter(|b| b.pinned) {
                let still = world.backups.iter().any(|b| b.id == backup.id);
                prop_assert!(still && world.is_sound(backup) == before.is_sound(backup), "a pinned backup went");
            }
            for name in &before.running {
                let from = name.number(super::world::size()).unwrap().get();
                let needed = |(t, n): &&(u32, u64)| tli(*t) == name.timeline() && *n >= from;
                prop_assert!(before.stored.iter().filter(needed).all(|s| world.stored.contains(s)));
            }
            for name in &before.pins {
                let from = name.number(super::world::size()).unwrap().get();
                let kept = |(t, n): &&(u32, u64)| {
                    *n >= from && before.floor.as_ref().is_none_or(|f| f.keeps(before.name(*t, *n)))
                };
                prop_assert!(before.stored.iter().filter(kept).all(|s| world.stored.contains(s)));
            }
            // What was marked without a grace goes now.
            let again = plan(&policy, &world.holdings(), at(world.hour), &zone);
            world.perform(&again);
            let again = plan(&policy, &world.holdings(), at(world.hour), &zone);
            prop_assert!(again.go.is_empty(), "a second run at the same moment has more to expire: {:?}", again.go);
            prop_assert!(again.floor(world.floor.as_ref(), &world.holdings().all_wal()).is_none(), "or more WAL");
            let says = decided.window.left;
            prop_assert!(decided.frozen.is_some() || says <= decided.window.before.max(says), "{:?}", decided.window);
        }
    }

    /// A server's clock is wrong now and then, and an older backup says so.
    #[test]
    fn a_wrong_clock_lets_nothing_go_that_is_promised(seed: u64, policy in policies(), zone in zones()) {
        let (mut world, mut random) = (World::new(), Random(seed));
        for _ in 0..70 {
            day_of_clocks(&mut world, &mut random);
            let wanted = promised(&world, &policy, &zone);
            let decided = plan(&policy, &world.holdings(), at(world.hour), &zone);
            world.perform(&decided);
            check(&world, &wanted, &policy, &zone)?;
        }
    }

    /// Whoever planned a restore, of any moment that was promised or that a backup holds by itself, and told nobody, has the grace to
    /// finish it, though backups are marked, the window moves on, and somebody promises less from one run to the next.
    #[test]
    fn a_restore_that_was_planned_before_has_the_grace(seed: u64, policy in policies(), zone in zones(), grace in 1_i64..300) {
        let (mut world, mut random) = (World::new(), Random(seed));
        world.grace = grace;
        let mut restores: Vec<Planned> = Vec::new();
        for _ in 0..70 {
            day(&mut world, &mut random, false);
            restores.retain(|planned| world.hour - planned.hour < grace);
            (0..6).for_each(|_| restores.extend(planned(&world, &mut random)));
            let hasty = Policy { window: Duration::from_secs(3600), ..policy };
            let policy = if random.one_in(5) { &hasty } else { &policy };
            let before = world.clone();
            let decided = plan(policy, &world.holdings(), at(world.hour), &zone);
            world.perform(&decided);
            for planned in &restores {
                let there = world.backups.iter().chain(world.marked.iter().map(|(_, b)| b));
                prop_assert!(there.into_iter().any(|b| b.id == planned.backup), "its backup is gone: {planned:?}");
                for (timeline, number) in planned.way.iter().filter(|s| before.stored.contains(*s)) {
                    let kept = world.floor.as_ref().is_none_or(|f| f.keeps(world.name(*timeline, *number)));
                    prop_assert!(kept && world.stored.contains(&(*timeline, *number)), "{number} is lost: {planned:?}");
                }
            }
        }
    }

    /// Segments with damage were accepted, good copies of some came, and who expires may not look. Whatever is true: what is promised
    /// stays, nothing is said to be restorable that rests on them, and who removes one backup is told what it means.
    #[test]
    fn what_cannot_be_read_is_neither_trusted_nor_given_up(seed: u64, policy in policies(), zone in zones()) {
        let (mut world, mut random) = (World::new(), Random(seed));
        for _ in 0..70 {
            day(&mut world, &mut random, false);
            if random.one_in(4) {
                let nth = usize::try_from(random.below(60)).unwrap();
                let accepted = world.stored.iter().rev().nth(nth).copied();
                world.unread.extend(accepted);
                world.damaged.extend(accepted.filter(|_| random.one_in(2)));
            }
            let wanted = promised(&world, &policy, &zone);
            let holdings = world.holdings();
            for backup in world.backups.iter().filter(|_| !policy.window.is_zero()) {
                if removal(Some(&policy), &holdings, &backup.id, at(world.hour)) == Removal::Harmless {
                    let mut without = world.clone();
                    without.backups.retain(|b| b.id != backup.id);
                    for moment in &wanted.moments {
                        prop_assert!(without.restores(*moment), "{} was needed: {moment:?}", backup.id);
                    }
                }
            }
            let decided = plan(&policy, &holdings, at(world.hour), &zone);
            world.perform(&decided);
            check(&world, &wanted, &policy, &zone)?;
            check_window(&world, decided.window.left)?;
        }
    }

    /// What was chosen once stays chosen: no run makes the choice of an earlier one vanish.
    #[test]
    fn a_year_of_daily_runs_keeps_what_each_period_ever_had(seed: u64, policy in policies(), zone in zones()) {
        let (mut world, mut random) = (World::new(), Random(seed));
        let mut all: Vec<HeldBackup> = Vec::new();
        for _ in 0..400 {
            let known = world.backups.len();
            day(&mut world, &mut random, true);
            all.extend(world.backups.iter().skip(known).cloned());
            let decided = plan(&policy, &world.holdings(), at(world.hour), &zone);
            world.perform(&decided);
            for period in Period::ALL.into_iter().filter(|period| !policy.span(*period).is_zero()) {
                let span = policy.span(period);
                let (ever, now) = (
                    represented(period, span, all.iter(), world.hour, &zone),
                    represented(period, span, world.backups.iter(), world.hour, &zone),
                );
                prop_assert_eq!(ever, now, "{:?} at hour {}", period, world.hour);
            }
            let most = Period::ALL.iter().map(|p| policy.span(*p).as_secs() / p.length().as_secs() + 3).sum::<u64>();
            let window = world.backups.iter().filter(|b| {
                b.stop_time >= at(world.hour) - SignedDuration::try_from(policy.window).unwrap()
            });
            let pinned = world.backups.iter().filter(|b| b.pinned);
            let bound = usize::try_from(most).unwrap() + window.count() + pinned.count() + 2;
            prop_assert!(
                decided.frozen.is_some() || world.backups.len() <= bound,
                "{} backups are kept for {policy:?}",
                world.backups.len()
            );
        }
    }
}
