//! A time becomes a position (RECOVERY.md 1, 3, 4).
//!
//! ```text
//!          start      stop LSN                 over: first end with time > T
//!  backup    ├───────────┤                      ▼
//!  ends      c1    c2        c3   a4   p5  ·  · c6      c7      stop = START of p5, inclusive
//!                            └ candidates ┘
//! ```
//! The backup must not hold an end with time > T itself, nor may any lie before it: where the clock was set back, a backup that began
//! before T by the clock holds what was committed after T. Without c6 the stop is the last candidate all the same, never "latest",
//! provided that something stored shows that the archive goes as far as T. PostgreSQL would stop before c6 too, but only if c6
//! exists; naming p5 needs no later record. PostgreSQL would also replay a PREPARE that was made after T and before c6: p5 is a stop
//! only if its own time is not above T, so that a transaction is not left prepared at a moment at which it was not yet.

use super::branches;
use super::drops;
use super::ends::{earliest, gap_refusal, newest, oldest_usable};
use super::finish::{Draft, stop_record};
use super::halt::Step;
use super::line::{Line, LineEnd};
use super::look::{is_commit, stamp};
use super::outcome::{RecoveryPlan, Stop, StopRecord, Warning};
use super::refusal::{Moment, Refusal};
use super::select::{Query, backups_on, on_route};
use super::world::PlanBackup;
use crate::wal::event::Event;
use crate::wal::lsn::Lsn;
use crate::wal::scan::Stamp;
use crate::wal::segment::SegmentNo;
use crate::wal::time::PgTime;

/// A time may lie this much below an earlier one in WAL order without the clock having been set back: transactions take their
/// time before their place in WAL.
const JITTER_MICROS: i64 = 1_000_000;
/// How far the clocks of two hosts may be apart before one of them is wrong.
const APART_MICROS: i64 = 3600 * 1_000_000;
/// A day.
const LONG_AGO_MICROS: i64 = 86_400 * 1_000_000;

/// Plans a recovery to `time`.
pub(super) fn plan(query: &Query<'_>, time: PgTime) -> Step<RecoveryPlan> {
    let (backup, mut line, mut warnings) = choose(query, time)?;
    line.settle_all()?;
    let over = line.first_over(backup.stop_lsn, time)?;
    if !query.decided {
        branches::refuse_if_two(query, backup, &line, over.as_ref(), time)?;
    }
    if over.is_none() && !covered(query, backup, &line, time)? {
        return Err(match line.end {
            LineEnd::Gap(gap) => gap_refusal(query, &line, gap)?.into(),
            LineEnd::Open | LineEnd::Fork { .. } => {
                Refusal::NotCovered { target: query.target.clone(), latest: newest(query, &line)? }.into()
            }
        });
    }
    let before = over.as_ref().map_or(Lsn::MAX, |event| event.lsn);
    let stop = match line.last_stop(backup.stop_lsn, before, Some(time))? {
        Some(event) => Stop::Lsn(stop_record(&event)),
        None => Stop::Immediate { lsn: backup.stop_lsn },
    };
    if let Some(over) = &over {
        refuse_if_stepped_back(query, backup, &line, &stop, over, time)?;
    }
    let last = line.links.len().saturating_sub(1);
    let (stop, moved) = drops::move_before(backup, &line, stop, last, Some(time))?;
    warnings.extend(moved);
    Draft { backup, stop, warnings }.finish(query, line)
}

/// The newest backup that holds nothing younger than `time`, and its line. Whoever names one takes what was committed before it, by a clock
/// that was set back then, into the bargain.
fn choose<'a>(query: &'a Query<'a>, time: PgTime) -> Step<(&'a PlanBackup, Line<'a>, Vec<Warning>)> {
    let mut doubtful = None;
    for backup in &query.backups {
        if backup.started_at > time || backup.latest_commit_inside.is_some_and(|inside| inside > time) {
            continue;
        }
        let mut line = query.line(backup);
        line.settle_to(backup.stop_lsn)?;
        let reached = line.reaches(backup.stop_lsn)?;
        if !reached || earliest(query, backup)?.time.is_none_or(|earliest| earliest > time) {
            continue;
        }
        match before(query, backup, time)?.filter(|before| *before > time) {
            None => return Ok((*backup, line, Vec::new())),
            // While the backup was about to begin.
            Some(later) if !is_step(backup, later) => {}
            Some(later) if query.named.is_some() => {
                return Ok((*backup, line, vec![Warning::HoldsLater { up_to: later }]));
            }
            Some(later) => doubtful = doubtful.or(Some((*backup, later))),
        }
    }
    if let Some((backup, later)) = doubtful {
        let (target, backup) = (query.target.clone(), backup.id.clone());
        return Err(Refusal::HoldsLater { target, backup, up_to: later }.into());
    }
    let oldest = oldest_usable(query)?;
    let Moment { time: inside, .. } = earliest(query, oldest)?;
    let about = before(query, oldest, time)?.filter(|later| !is_step(oldest, *later));
    Err(Refusal::TooEarly {
        target: query.target.clone(),
        backup: query.named.map(|b| b.id.clone()),
        earliest: query.moment(inside.max(about), oldest.stop_lsn),
        other_backup: query.named.and_then(|named| older_for(query, named, time)),
    }
    .into())
}

/// Whether a time from before a backup is later than its end: only a clock that was set back makes it so.
fn is_step(backup: &PlanBackup, before: PgTime) -> bool {
    before.micros_since(backup.stop_time) > JITTER_MICROS
}

/// The largest time of an end that lies before a backup, as far as WAL is stored without a hole and can be read. What is dated in the future of
/// now was made by a clock that was wrong, and set right before the backup: it was committed when it stands there. WAL is read back to a backup
/// that ended a day before `time`, since a window may be hours to read; all of it if an older backup is dated after `time`, as one is that
/// was taken by a clock that was ahead by more.
fn before(query: &Query<'_>, backup: &PlanBackup, time: PgTime) -> Step<Option<PgTime>> {
    let (size, mut largest) = (query.world.segment_size, None);
    let until = query.now.map(|now| PgTime::from_raw(now.raw().saturating_add(APART_MICROS)));
    let older = || {
        query.world.backups.iter().filter(|b| on_route(b, &query.history) && b.stop_lsn <= backup.start_lsn)
    };
    let long_ago =
        older().filter(|b| time.micros_since(b.stop_time) > LONG_AGO_MICROS).max_by_key(|b| b.start_lsn);
    let is_doubtful = |b: &PlanBackup| b.stop_time > time && until.is_none_or(|until| b.stop_time <= until);
    let enough = long_ago.filter(|_| !older().any(is_doubtful));
    let from = enough.map_or(SegmentNo::new(0), |b| SegmentNo::containing(b.start_lsn, size));
    let mut from = Line::first_before(query.world, &query.history, backup.start_lsn).max(from);
    while from.start(size) < backup.start_lsn {
        let mut line = Line::lay(query.world, query.facts, &query.history, from.start(size));
        line.settle_to(backup.start_lsn)?;
        let Some(last) = line.links.last() else { break };
        largest = largest.max(line.largest_readable_end(backup.start_lsn, until)?);
        // A copy that ends early ends the line; what comes after it counts all the same.
        from = last.number.next();
    }
    Ok(largest)
}

/// An older backup on the route that should permit `time`.
fn older_for(query: &Query<'_>, named: &PlanBackup, time: PgTime) -> Option<String> {
    let permits = |b: &&&PlanBackup| b.stop_lsn < named.stop_lsn && b.stop_time <= time;
    backups_on(query.world, &query.history).iter().find(permits).map(|b| b.id.clone())
}

/// RECOVERY.md 3: something stored on the line carries a time at or after `time`, or a backup that lies on it was ended then.
fn covered(query: &Query<'_>, backup: &PlanBackup, line: &Line<'_>, time: PgTime) -> Step<bool> {
    let end = line.valid_to()?;
    let later = |b: &&PlanBackup| backup.stop_lsn <= b.stop_lsn && b.stop_lsn <= end && b.stop_time >= time;
    if backups_on(query.world, &query.history).iter().any(later) {
        return Ok(true);
    }
    for index in (0..line.links.len()).rev() {
        if line.largest_time(index, backup.start_lsn)?.is_some_and(|largest| largest >= time) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// RECOVERY.md 4: after `over`, a commit at or before `time` whose clock was set back.
fn refuse_if_stepped_back(
    query: &Query<'_>,
    backup: &PlanBackup,
    line: &Line<'_>,
    stop: &Stop,
    over: &Event,
    time: PgTime,
) -> Step<()> {
    let Some((from, to)) = fall(line, over, time)? else { return Ok(()) };
    let late = last_at_or_before(line, over, time)?.unwrap_or(to);
    let early = match stop {
        Stop::Lsn(StopRecord { end, time, .. }) => query.moment(*time, end.aligned()),
        Stop::Immediate { .. } | Stop::EndOfWal { .. } => {
            Moment { time: None, ..query.moment(None, backup.stop_lsn) }
        }
    };
    Err(Refusal::ClockSteppedBack {
        target: query.target.clone(),
        fell_from: from,
        fell_to: to.time,
        early,
        late: query.moment(Some(late.time), late.end.aligned()),
    }
    .into())
}

/// The first commit after `over` that `time` should include, but that follows a time more than [`JITTER_MICROS`] above its own:
/// that time, and the commit.
fn fall(line: &Line<'_>, over: &Event, time: PgTime) -> Step<Option<(PgTime, Stamp)>> {
    let mut highest = over.kind.stop_time().unwrap_or(time);
    for index in line.index_near(over.lsn)..line.links.len() {
        let commits = line.commits(index)?;
        let (Some(min), Some(max)) = (commits.min, commits.max) else { continue };
        let fell = min <= time && highest.max(max).micros_since(min) > JITTER_MICROS;
        if !fell {
            highest = highest.max(max);
            continue;
        }
        for event in line.events(index)?.within(over.lsn, Lsn::MAX) {
            let Some(at) = event.kind.stop_time() else { continue };
            let fell = at <= time && highest.micros_since(at) > JITTER_MICROS;
            match stamp(event).filter(|_| fell && is_commit(event)) {
                Some(commit) => return Ok(Some((highest, commit))),
                None => highest = highest.max(at),
            }
        }
    }
    Ok(None)
}

/// The last commit after `over` that `time` should include.
fn last_at_or_before(line: &Line<'_>, over: &Event, time: PgTime) -> Step<Option<Stamp>> {
    for index in (line.index_near(over.lsn)..line.links.len()).rev() {
        if line.commits(index)?.min.is_none_or(|min| min > time) {
            continue;
        }
        let wanted = |e: &&Event| is_commit(e) && e.kind.stop_time().is_some_and(|at| at <= time);
        if let Some(found) = line.events(index)?.within(over.lsn, Lsn::MAX).rfind(wanted).and_then(stamp) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
