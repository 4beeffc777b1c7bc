//! The two ends a recovery can always name: as soon as the backup is consistent, and all there is; and the moments that
//! refusals offer instead.
//!
//! All there is means all that follows without a hole. A hole with WAL behind it stops PostgreSQL in the middle of replay
//! (`archive-get` answers "doubt", never "absent"), so such a plan is refused before it begins.

use super::drops;
use super::finish::Draft;
use super::halt::Step;
use super::line::{Line, LineEnd};
use super::look::if_readable;
use super::outcome::{RecoveryPlan, Stop, Warning};
use super::refusal::{Gap, Moment, Refusal};
use super::select::{Query, backups_on};
use super::world::PlanBackup;
use crate::wal::lsn::Lsn;
use crate::wal::time::PgTime;

/// Links looked at together on the way back from the end.
const BLOCK: usize = 16;

/// Plans a recovery to the end of what is stored.
pub(super) fn plan_latest(query: &Query<'_>) -> Step<RecoveryPlan> {
    let (backup, mut line) = consistent(query)?;
    line.settle_all()?;
    let mut warnings = Vec::new();
    match line.end {
        LineEnd::Open => {}
        LineEnd::Fork { timeline, fork } => warnings.push(Warning::EndsAtFork { timeline, fork }),
        LineEnd::Gap(gap) => return Err(gap_refusal(query, &line, gap)?.into()),
    }
    let stop = Stop::EndOfWal { lsn: line.valid_to()? };
    Draft { backup, stop, warnings }.finish(query, line)
}

/// Plans a recovery that ends as soon as the backup is consistent.
pub(super) fn plan_immediate(query: &Query<'_>) -> Step<RecoveryPlan> {
    let (backup, mut line) = consistent(query)?;
    let stop = Stop::Immediate { lsn: backup.stop_lsn };
    let warnings = drops::warn_inside(backup, &mut line, &stop)?;
    Draft { backup, stop, warnings }.finish(query, line)
}

/// The newest backup that its WAL makes consistent.
fn consistent<'a>(query: &'a Query<'a>) -> Step<(&'a PlanBackup, Line<'a>)> {
    for backup in &query.backups {
        let mut line = query.line(backup);
        line.settle_to(backup.stop_lsn)?;
        if line.reaches(backup.stop_lsn)? {
            return Ok((*backup, line));
        }
    }
    Err(unusable(query).into())
}

/// The oldest backup that its WAL makes consistent.
pub(super) fn oldest_usable<'a>(query: &'a Query<'a>) -> Step<&'a PlanBackup> {
    for backup in query.backups.iter().rev() {
        let mut line = query.line(backup);
        line.settle_to(backup.stop_lsn)?;
        if line.reaches(backup.stop_lsn)? {
            return Ok(*backup);
        }
    }
    Err(unusable(query).into())
}

/// Why not one backup of the route can be made consistent.
pub(super) fn unusable(query: &Query<'_>) -> Refusal {
    let gap = query.backups.first().map(|backup| query.line(backup).end);
    match gap {
        Some(LineEnd::Gap(gap)) => {
            Refusal::Gap { target: query.target.clone(), gap, before: None, after: None, after_backup: None }
        }
        Some(LineEnd::Open | LineEnd::Fork { .. }) | None => {
            Refusal::NoBackup { timeline: Some(query.history.timeline()) }
        }
    }
}

/// The first moment a backup can reach: the largest time of an end inside it, and not before it began (RECOVERY.md 1; the
/// latter because commits before its start are in it too, whatever WAL after its start says).
pub(super) fn earliest(query: &Query<'_>, backup: &PlanBackup) -> Step<Moment> {
    let mut line = query.line(backup);
    line.settle_to(backup.stop_lsn)?;
    let inside = if_readable(line.largest_end(backup.start_lsn, backup.stop_lsn))?;
    let time = backup.started_at.max(inside.unwrap_or(backup.started_at));
    Ok(query.moment(Some(time), backup.stop_lsn))
}

/// The newest moment of a line: the time of the last record that has one, or of a backup ended on it, and where its WAL ends.
pub(super) fn newest(query: &Query<'_>, line: &Line<'_>) -> Step<Moment> {
    let end = line.valid_to()?;
    let start = line.start_of(0);
    let ended = |b: &&PlanBackup| start <= b.start_lsn && b.stop_lsn <= end;
    let backups = backups_on(query.world, &query.history);
    let mut time: Option<PgTime> = backups.into_iter().filter(ended).map(|b| b.stop_time).max();
    for index in (0..line.links.len()).rev() {
        line.settle_behind(index, index % BLOCK)?;
        if let Some(found) = if_readable(line.largest_time(index, Lsn::ZERO))? {
            time = time.max(Some(found));
            break;
        }
    }
    Ok(query.moment(time, end))
}

/// The refusal for a target that lies in or behind the gap which ends `line`, the line of a usable backup.
pub(super) fn gap_refusal(query: &Query<'_>, line: &Line<'_>, gap: Gap) -> Step<Refusal> {
    let before = newest(query, line)?;
    let later = backups_on(query.world, &query.history).into_iter().rev().find(|b| b.start_lsn >= before.lsn);
    let after = later.map(|backup| earliest(query, backup)).transpose()?;
    Ok(Refusal::Gap {
        target: query.target.clone(),
        gap,
        before: Some(before),
        after,
        after_backup: later.map(|b| b.id.clone()),
    })
}
