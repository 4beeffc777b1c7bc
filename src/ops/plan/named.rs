//! Targets with a name: a transaction, or a restore point.
//!
//! Both become positions, so that PostgreSQL stops at exactly the record shown, whatever else carries the same number or name:
//! by itself it stops at the first match after the backup's start, even before consistency. Backups are tried newest first,
//! each for the stretch from its stop to that of the next newer one, so the newest match with the shortest replay is found.

use super::drops::{NEAR, move_before, warn_inside};
use super::ends::{gap_refusal, unusable};
use super::finish::{Draft, stop_record};
use super::halt::{Step, Wants};
use super::line::{Line, LineEnd};
use super::outcome::{RecoveryPlan, Stop, Warning};
use super::refusal::Refusal;
use super::select::Query;
use super::world::{PlanBackup, Want};
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::Lsn;
use crate::wal::time::PgTime;

/// Bodies asked for at once while a transaction is searched: it is most likely in the first.
const BODIES: usize = 8;
/// Restore points named in a refusal.
const KNOWN: usize = 10;

/// Whether the transaction itself is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edge {
    /// Its end is the last record replayed.
    Included,
    /// The stop lies before its end.
    Excluded,
}

/// Where a search looks, backup by backup.
struct Stretch<'a> {
    backup: &'a PlanBackup,
    line: Line<'a>,
    before: Lsn,
}

/// The stretches of a route, newest first: each from a usable backup's stop to the next newer one's. Settled.
struct Stretches<'a> {
    query: &'a Query<'a>,
    next: usize,
    before: Lsn,
    /// The newest usable line, for refusals.
    newest: Option<Line<'a>>,
}

impl<'a> Stretches<'a> {
    fn new(query: &'a Query<'a>) -> Self {
        Self { query, next: 0, before: Lsn::MAX, newest: None }
    }

    fn next(&mut self) -> Step<Option<Stretch<'a>>> {
        while let Some(backup) = self.query.backups.get(self.next).copied() {
            self.next = self.next.saturating_add(1);
            let mut line = self.query.line(backup);
            line.settle_to(backup.stop_lsn)?;
            if !line.reaches(backup.stop_lsn)? {
                continue;
            }
            let before = std::mem::replace(&mut self.before, backup.stop_lsn);
            line.settle_to(before)?;
            if self.newest.is_none() {
                self.newest = Some(line.clone());
            }
            return Ok(Some(Stretch { backup, line, before }));
        }
        Ok(None)
    }

    /// Nothing found: in a gap, perhaps, or nowhere (`refusal`, told where the search began and ended).
    fn refuse(self, refusal: impl FnOnce(Lsn, Lsn) -> Refusal) -> Step<Refusal> {
        let Some(line) = self.newest else { return Ok(unusable(self.query)) };
        match line.end {
            LineEnd::Gap(gap) => gap_refusal(self.query, &line, gap),
            LineEnd::Open | LineEnd::Fork { .. } => Ok(refusal(self.before, line.valid_to()?)),
        }
    }
}

/// Plans a recovery to the end of transaction `xid`.
pub(super) fn plan_xid(query: &Query<'_>, xid: u32, edge: Edge) -> Step<RecoveryPlan> {
    let mut stretches = Stretches::new(query);
    while let Some(Stretch { backup, mut line, before }) = stretches.next()? {
        let Some(end) = end_of(&line, backup.stop_lsn, before, xid)? else { continue };
        if edge == Edge::Included {
            let stop = Stop::Lsn(stop_record(&end));
            let warnings = warn_inside(backup, &mut line, &stop)?;
            return Draft { backup, stop, warnings }.finish(query, line);
        }
        let stop = match line.last_stop(backup.stop_lsn, end.lsn, None)? {
            Some(event) => Stop::Lsn(stop_record(&event)),
            None => Stop::Immediate { lsn: backup.stop_lsn },
        };
        let horizon = line.index_near(end.lsn).saturating_add(NEAR);
        line.settle(horizon)?;
        let (stop, warnings) = move_before(backup, &line, stop, horizon, None)?;
        return Draft { backup, stop, warnings }.finish(query, line);
    }
    let timeline = query.history.timeline();
    Err(stretches.refuse(|from, to| Refusal::XidNotFound { xid, from, to, timeline })?.into())
}

/// The commit or abort of `xid` that starts in [from, before). Looks first where the numbers of ending transactions pass it.
fn end_of(line: &Line<'_>, from: Lsn, before: Lsn, xid: u32) -> Step<Option<Event>> {
    let (low, high) = (line.index_near(from), line.index_near(before.saturating_sub(1)));
    let mut pivot = high;
    let mut busy = Vec::new();
    for index in low..=high {
        let commits = line.commits(index)?;
        let Some(last) = commits.last else { continue };
        busy.push(index);
        if pivot == high && !precedes(last.xid, xid) {
            pivot = index;
        }
    }
    let near = pivot.saturating_sub(1);
    let (behind, ahead): (Vec<usize>, Vec<usize>) = busy.into_iter().partition(|index| *index < near);
    let order: Vec<usize> = ahead.into_iter().chain(behind.into_iter().rev()).collect();
    for (place, index) in order.iter().enumerate() {
        let missing = |index: &usize| {
            let link = line.links.get(*index)?;
            (!line.facts.events.contains_key(&link.name)).then_some(Want::Events(link.name))
        };
        if missing(index).is_some() {
            let mut wants = Wants::default();
            order.iter().skip(place).take(BODIES).filter_map(missing).for_each(|want| {
                wants.add(want);
            });
            wants.settle()?;
        }
        let wanted = |e: &&Event| e.xid == xid && e.kind.stop_time().is_some();
        if let Some(event) = line.events(*index)?.within(from, before).find(wanted) {
            return Ok(Some(event.clone()));
        }
    }
    Ok(None)
}

/// True if transaction `a` was begun before `b`, as far as numbers that wrap around tell (`TransactionIdPrecedes`).
fn precedes(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

/// Plans a recovery to the restore point `name`.
pub(super) fn plan_name(query: &Query<'_>, name: &str) -> Step<RecoveryPlan> {
    let mut stretches = Stretches::new(query);
    let mut known: Vec<(String, PgTime)> = Vec::new();
    while let Some(Stretch { backup, mut line, before }) = stretches.next()? {
        let points = restore_points(&line, backup.stop_lsn, before)?;
        let mut matches = points.iter().filter(|(point, _, _)| point == name).map(|(_, time, e)| (*time, e));
        let Some((_, first)) = matches.next() else {
            let room = KNOWN.saturating_sub(known.len());
            known.extend(points.into_iter().rev().take(room).map(|(point, time, _)| (point, time)));
            continue;
        };
        let stop = Stop::Lsn(stop_record(first));
        let others: Vec<(PgTime, Lsn)> = matches.map(|(time, e)| (time, e.end.aligned())).collect();
        let mut warnings = warn_inside(backup, &mut line, &stop)?;
        if !others.is_empty() {
            warnings.push(Warning::DuplicateName { others });
        }
        return Draft { backup, stop, warnings }.finish(query, line);
    }
    let (timeline, name) = (query.history.timeline(), name.to_owned());
    Err(stretches.refuse(|from, _| Refusal::NameNotFound { name, from, timeline, known })?.into())
}

/// Every restore point that starts in [from, before).
fn restore_points(line: &Line<'_>, from: Lsn, before: Lsn) -> Step<Vec<(String, PgTime, Event)>> {
    let mut found = Vec::new();
    for index in line.index_near(from)..=line.index_near(before.saturating_sub(1)) {
        for event in line.marks(index)?.within(from, before) {
            if let EventKind::RestorePoint { time, name } = &event.kind {
                found.push((name.clone(), *time, event.clone()));
            }
        }
    }
    Ok(found)
}
