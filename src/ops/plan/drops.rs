//! DROP DATABASE and the stop (RECOVERY.md 5): it acts before its commit, so a stop inside it leaves a ruin.
//!
//! ```text
//!  dropping transaction   first record ··· checkpoint ··· files removed (XLOG_DBASE) · commit
//!                         └──────────── a stop in here loses the database ───────────┘
//! ```
//! `dropdb` (`dbcommands.c`) marks the database, requests a checkpoint and waits for it, removes the files, writes its record
//! and commits at once. So its first record lies at most a few checkpoints before its drop record, and its commit close
//! behind: the bounds below rest on that, and only they keep the search from reading all WAL.

use super::finish::stop_record;
use super::halt::{Step, Wants};
use super::line::Line;
use super::look::if_readable;
use super::outcome::{Stop, Warning};
use super::world::{PlanBackup, Want};
use crate::wal::event::EventKind;
use crate::wal::lsn::Lsn;
use crate::wal::time::PgTime;

/// Completed checkpoints before the drop record among which the first record of its transaction lies: the one waited for,
/// one that ran when it was requested, and one more for others' requests.
const CHECKPOINTS: usize = 3;
/// Segments behind a drop record in which its commit must follow; also how far past a stop that is not searched to the end of
/// WAL a drop is noticed.
pub(super) const NEAR: usize = 64;

/// A DROP DATABASE record.
#[derive(Debug, Clone, Copy)]
struct Drop {
    lsn: Lsn,
    xid: u32,
}

/// A stop inside a drop.
struct Inside {
    drop: Drop,
    first: Lsn,
}

/// Moves a stop that lies inside a drop to the last end or PREPARE before the dropping transaction's first record. Drops up to
/// link `horizon` are considered; nothing of after `until` is stopped at.
pub(super) fn move_before(
    backup: &PlanBackup,
    line: &Line<'_>,
    stop: Stop,
    horizon: usize,
    until: Option<PgTime>,
) -> Step<(Stop, Vec<Warning>)> {
    let mut warnings = Vec::new();
    let mut stop = stop;
    while let Some(Inside { drop, first }) = inside(backup, line, &stop, horizon)? {
        let Stop::Lsn(record) = &stop else {
            warnings.push(Warning::InsideDrop { xid: drop.xid, first, drop: drop.lsn });
            break;
        };
        if first < backup.stop_lsn {
            warnings.push(Warning::InsideDrop { xid: drop.xid, first, drop: drop.lsn });
            break;
        }
        warnings.push(Warning::MovedBeforeDrop { xid: drop.xid, first, drop: drop.lsn, unmoved: record.lsn });
        stop = match line.last_stop(backup.stop_lsn, first, until)? {
            Some(event) => Stop::Lsn(stop_record(&event)),
            None => Stop::Immediate { lsn: backup.stop_lsn },
        };
    }
    Ok((stop, warnings))
}

/// Warns about a stop inside a drop, where the stop is what a person asked for.
pub(super) fn warn_inside(backup: &PlanBackup, line: &mut Line<'_>, stop: &Stop) -> Step<Vec<Warning>> {
    let horizon = line.index_near(stop.end().saturating_sub(1)).saturating_add(NEAR);
    line.settle(horizon)?;
    let found = if_readable(inside(backup, line, stop, horizon))?;
    let warning = |i: Inside| Warning::InsideDrop { xid: i.drop.xid, first: i.first, drop: i.drop.lsn };
    Ok(found.map(warning).into_iter().collect())
}

/// The first position whose record is not replayed.
fn bound(stop: &Stop) -> Lsn {
    match stop {
        Stop::Lsn(record) => record.lsn.saturating_add(1),
        Stop::Immediate { lsn } | Stop::EndOfWal { lsn } => *lsn,
    }
}

/// The drop that `stop` lies inside of; the one that began first, if there are several.
fn inside(backup: &PlanBackup, line: &Line<'_>, stop: &Stop, horizon: usize) -> Step<Option<Inside>> {
    let bound = bound(stop);
    let at = line.index_near(bound.saturating_sub(1));
    let until = horizon.saturating_add(1).min(line.links.len());
    let mut found: Option<Inside> = None;
    for index in at.saturating_sub(NEAR)..until {
        for event in line.marks(index)?.iter() {
            let EventKind::DatabaseDrop { .. } = event.kind else { continue };
            let drop = Drop { lsn: event.lsn, xid: event.xid };
            if drop.xid == 0 || drop.lsn < backup.start_lsn || ended(line, drop, bound)? {
                continue;
            }
            let Some(first) = first_record(backup, line, drop, bound)? else { continue };
            if found.as_ref().is_none_or(|inside| first < inside.first) {
                found = Some(Inside { drop, first });
            }
        }
    }
    Ok(found)
}

/// True if the dropping transaction ended before `bound`.
fn ended(line: &Line<'_>, drop: Drop, bound: Lsn) -> Step<bool> {
    if drop.lsn >= bound {
        return Ok(false);
    }
    for index in line.index_near(drop.lsn)..=line.index_near(bound.saturating_sub(1)) {
        let commits = line.commits(index)?;
        if commits.commits == 0 && commits.aborts == 0 {
            continue;
        }
        let events = line.events(index)?;
        if events.within(drop.lsn, bound).any(|e| e.xid == drop.xid && e.kind.stop_time().is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first record of the dropping transaction, if it lies before `bound`.
fn first_record(backup: &PlanBackup, line: &Line<'_>, drop: Drop, bound: Lsn) -> Step<Option<Lsn>> {
    let from = earliest_begin(backup, line, drop)?;
    let before = bound.min(drop.lsn.saturating_add(1));
    if from >= before {
        return Ok(None);
    }
    let mut wants = Wants::default();
    let mut first: Option<Lsn> = None;
    for index in line.index_near(from)..=line.index_near(before.saturating_sub(1)) {
        let Some(link) = line.links.get(index) else { break };
        let crossing = line.crossing_xid(index)?.filter(|(_, xid)| *xid == drop.xid).map(|(lsn, _)| lsn);
        match line.facts.first_of_xid.get(&(link.name, drop.xid)) {
            Some(whole) => {
                let here = whole.filter(|lsn| *lsn >= from).into_iter().chain(crossing).min();
                first = first.into_iter().chain(here).min();
            }
            None if wants.add(Want::FirstRecordOf(link.name, drop.xid)) => {}
            None => break,
        }
    }
    wants.settle()?;
    Ok(first.filter(|lsn| *lsn < before))
}

/// A position before which the dropping transaction has no record.
fn earliest_begin(backup: &PlanBackup, line: &Line<'_>, drop: Drop) -> Step<Lsn> {
    let mut seen = 0;
    for index in (0..=line.index_near(drop.lsn)).rev() {
        for event in line.marks(index)?.within(backup.start_lsn, drop.lsn).rev() {
            if let EventKind::Checkpoint { redo, .. } = event.kind {
                seen += 1;
                if seen == CHECKPOINTS {
                    return Ok(redo.max(backup.start_lsn));
                }
            }
        }
    }
    Ok(backup.start_lsn)
}
