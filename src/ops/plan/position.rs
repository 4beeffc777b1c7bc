//! An LSN as a target: everything that ends at or before it (RECOVERY.md 2).
//!
//! PostgreSQL stops after the first record that STARTS at or past its target. So the record to name is the last complete one
//! that ends at or before what was asked; the padding after a switch belongs to the switch. A position inside a page header
//! (`pg_current_wal_insert_lsn` gives such) means the page's start: no record ends in between.

use super::branches::warn_of_others;
use super::drops::warn_inside;
use super::ends::{earliest, gap_refusal, newest, oldest_usable};
use super::finish::{Draft, stop_record};
use super::halt::Step;
use super::line::{Line, LineEnd};
use super::look::if_readable;
use super::outcome::{RecoveryPlan, Stop, StopKind, StopRecord};
use super::refusal::Refusal;
use super::select::{Query, backups_on};
use super::world::{PlanBackup, RecordSpan, Want};
use crate::wal::event::Event;
use crate::wal::lsn::Lsn;
use crate::wal::page::{LONG_HEADER, SHORT_HEADER};

/// Plans a recovery to `asked`.
pub(super) fn plan(query: &Query<'_>, asked: Lsn) -> Step<RecoveryPlan> {
    let target = before_header(query, asked);
    let (backup, mut line) = choose(query, target)?;
    line.settle_to(target)?;
    if line.stored_around(target)? < target {
        return Err(beyond(query, line)?.into());
    }
    let record = record_ending_by(&line, target)?;
    let Some((index, span)) = record else {
        return Err(too_early(query, target)?.into());
    };
    let is_it = |event: &&Event| event.lsn == span.lsn && event.end == span.end;
    let event = if_readable(line.events(index).map(|e| e.iter().find(is_it).map(stop_record)))?;
    let unknown = StopRecord { lsn: span.lsn, end: span.end, time: None, xid: None, what: StopKind::Other };
    let stop = match event.unwrap_or(unknown) {
        // The record that ends the backup ends at its stop. An annex that knows of none so late is not to be followed.
        record if record.end.aligned() < backup.stop_lsn => Stop::Immediate { lsn: backup.stop_lsn },
        record => Stop::Lsn(record),
    };
    let mut warnings = warn_inside(backup, &mut line, &stop)?;
    warnings.extend(warn_of_others(query, backup, target));
    Draft { backup, stop, warnings }.finish(query, line)
}

fn before_header(query: &Query<'_>, lsn: Lsn) -> Lsn {
    let page = lsn.page_start();
    let first = page.get().is_multiple_of(query.world.segment_size.bytes());
    let header = if first { LONG_HEADER } else { SHORT_HEADER };
    if lsn.page_offset() <= header { page } else { lsn }
}

/// The newest backup that is consistent by `target`, and its line.
fn choose<'a>(query: &'a Query<'a>, target: Lsn) -> Step<(&'a PlanBackup, Line<'a>)> {
    for backup in query.backups.iter().filter(|b| b.stop_lsn <= target) {
        let mut line = query.line(backup);
        line.settle_to(backup.stop_lsn)?;
        if line.reaches(backup.stop_lsn)? {
            return Ok((*backup, line));
        }
    }
    Err(too_early(query, target)?.into())
}

fn too_early(query: &Query<'_>, target: Lsn) -> Step<Refusal> {
    let named = query.named;
    let permits = |b: &&PlanBackup| b.stop_lsn <= target;
    let other = named.and_then(|_| backups_on(query.world, &query.history).into_iter().find(permits));
    Ok(Refusal::TooEarly {
        target: query.target.clone(),
        backup: named.map(|b| b.id.clone()),
        earliest: earliest(query, oldest_usable(query)?)?,
        other_backup: other.map(|b| b.id.clone()),
    })
}

/// The target lies past what the line holds.
fn beyond(query: &Query<'_>, mut line: Line<'_>) -> Step<Refusal> {
    line.settle_all()?;
    match line.end {
        LineEnd::Gap(gap) => gap_refusal(query, &line, gap),
        LineEnd::Open | LineEnd::Fork { .. } => {
            Ok(Refusal::NotCovered { target: query.target.clone(), latest: newest(query, &line)? })
        }
    }
}

/// The last complete record that ends at or before `target`, and the link it starts in.
fn record_ending_by(line: &Line<'_>, target: Lsn) -> Step<Option<(usize, RecordSpan)>> {
    for index in (0..=line.index_near(target.saturating_sub(1))).rev() {
        let Some(link) = line.links.get(index) else { break };
        let facts = line.summary(index)?;
        let crossing = line.crossing_end(index)?.filter(|end| *end <= target);
        if let (Some(end), Some(tail)) = (crossing, &facts.tail) {
            return Ok(Some((index, RecordSpan { lsn: tail.lsn, end })));
        }
        if facts.last_record.is_none() && !facts.decoded {
            return Err(super::look::undecoded(link, facts).into());
        }
        let by = target.min(link.limit);
        let found = match facts.last_record.filter(|record| record.end <= by) {
            Some(last) => Some(last),
            None if facts.last_record.is_none() => None,
            None => *line.facts.records.get(&(link.name, by)).ok_or(Want::RecordEndingBy(link.name, by))?,
        };
        if let Some(span) = found {
            return Ok(Some((index, span)));
        }
    }
    Ok(None)
}
