//! From a decided stop to the whole plan: the segments, the timeline PostgreSQL is told, what is kept and what is lost.
//!
//! The timeline told is the oldest on the route that holds the stop and under which every needed segment is stored. PostgreSQL
//! writes it as the parent of the timeline it opens, with the stop as the fork (`writeTimeLineHistory` in `timeline.c`): a
//! newer one, which began after the stop, would leave a history whose forks do not ascend.

use super::halt::Step;
use super::line::{Line, LineEnd};
use super::look::if_readable;
use super::outcome::{Met, RecoveryPlan, RouteStep, Stop, StopKind, StopRecord, Warning};
use super::select::{Query, history_of};
use super::world::PlanBackup;
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::Lsn;
use crate::wal::segment::{SegmentName, SegmentNo};
use crate::wal::timeline::{TimelineHistory, TimelineId};

/// A stop at an event.
pub(super) fn stop_record(event: &Event) -> StopRecord {
    let what = match event.kind {
        EventKind::Commit { .. } => StopKind::Commit,
        EventKind::Abort { .. } => StopKind::Abort,
        EventKind::Prepare { .. } => StopKind::Prepare,
        EventKind::RestorePoint { .. } => StopKind::RestorePoint,
        EventKind::Checkpoint { .. }
        | EventKind::EndOfRecovery { .. }
        | EventKind::BackupEnd { .. }
        | EventKind::Switch
        | EventKind::ParameterChange { .. }
        | EventKind::DatabaseDrop { .. }
        | EventKind::DatabaseCreate { .. }
        | EventKind::TablespaceCreate { .. }
        | EventKind::OverwriteContrecord { .. } => StopKind::Other,
    };
    let xid = (event.xid != 0).then_some(event.xid);
    StopRecord { lsn: event.lsn, end: event.end, time: event.kind.time(), xid, what }
}

/// What is decided before a plan is complete.
pub(super) struct Draft<'a> {
    pub(super) backup: &'a PlanBackup,
    pub(super) stop: Stop,
    pub(super) warnings: Vec<Warning>,
}

impl Draft<'_> {
    /// Completes the plan. `line` is the line the stop was found on.
    pub(super) fn finish(self, query: &Query<'_>, mut line: Line<'_>) -> Step<RecoveryPlan> {
        let Draft { backup, stop, mut warnings } = self;
        let end = stop.end();
        let (timeline, segments) = match stop {
            Stop::EndOfWal { .. } => (query.history.timeline(), names(&line, line.links.len())),
            Stop::Lsn(_) | Stop::Immediate { .. } => told(query, backup, &line, end)?,
        };
        let hole_behind = match stop {
            Stop::EndOfWal { .. } => false,
            Stop::Lsn(_) | Stop::Immediate { .. } => hole_behind(query, backup, timeline, end)?,
        };
        let bound = match &stop {
            Stop::Lsn(record) => record.lsn.saturating_add(1),
            Stop::Immediate { lsn } => *lsn,
            Stop::EndOfWal { .. } => Lsn::MAX,
        };
        let last_kept = if_readable(line.last_commit(backup.start_lsn, bound))?;
        let first_lost = match stop {
            Stop::EndOfWal { .. } => None,
            Stop::Lsn(_) | Stop::Immediate { .. } => if_readable(line.first_commit(bound))?,
        };
        let met = met(&mut line, backup.start_lsn, end)?;
        warnings.extend(without_history(query));
        let bytes = query.world.segment_size.bytes();
        let count = u64::try_from(segments.len()).unwrap_or(u64::MAX);
        Ok(RecoveryPlan {
            backup: backup.id.clone(),
            target: query.target.clone(),
            route: route(&query.history, backup.start_lsn, end),
            recovery_target_timeline: timeline,
            wal_bytes: count.saturating_mul(bytes),
            segments,
            hole_behind,
            last_kept,
            first_lost,
            met,
            warnings,
            stop,
        })
    }
}

/// What replay meets in [from, end). Segments that nobody could look into are passed over.
fn met(line: &mut Line<'_>, from: Lsn, end: Lsn) -> Step<Met> {
    line.settle_to(end)?;
    let mut met = Met::default();
    for index in line.index_near(from)..line.links.len() {
        if line.start_of(index) >= end {
            break;
        }
        let Some(events) = if_readable(line.marks(index).map(Some))? else { continue };
        events.within(from, end).for_each(|event| met.add(event));
    }
    Ok(met)
}

fn names(line: &Line<'_>, count: usize) -> Vec<SegmentName> {
    line.links.iter().take(count).map(|link| link.name).collect()
}

/// The timeline to tell PostgreSQL, and the segments to `end` along it.
fn told(
    query: &Query<'_>,
    backup: &PlanBackup,
    line: &Line<'_>,
    end: Lsn,
) -> Step<(TimelineId, Vec<SegmentName>)> {
    let owner = query.history.owner(end.saturating_sub(1));
    for timeline in query.history.route().filter(|t| owner <= *t && *t < query.history.timeline()) {
        let Some(history) = history_of(query.world, timeline) else { continue };
        if !query.history.parents().starts_with(history.parents()) {
            continue;
        }
        let mut shorter = Line::lay(query.world, query.facts, &history, backup.start_lsn);
        let Some(last) = shorter.index_of(end.saturating_sub(1)) else { continue };
        shorter.settle(last)?;
        shorter.truncate(last);
        if shorter.valid_to()? >= end {
            return Ok((timeline, names(&shorter, last.saturating_add(1))));
        }
    }
    let count = line.index_near(end.saturating_sub(1)).saturating_add(1);
    Ok((query.history.timeline(), names(line, count)))
}

/// Whether the segment after the one that holds the byte before `end` is one that `archive-get` refuses on the way to `timeline`.
fn hole_behind(query: &Query<'_>, backup: &PlanBackup, timeline: TimelineId, end: Lsn) -> Step<bool> {
    let Some(history) = history_of(query.world, timeline) else { return Ok(false) };
    let mut line = Line::lay(query.world, query.facts, &history, backup.start_lsn);
    let Some(last) = line.index_of(end.saturating_sub(1)) else { return Ok(false) };
    line.settle(last.saturating_add(1))?;
    let size = query.world.segment_size;
    let next = SegmentNo::containing(end.saturating_sub(1), size).next();
    Ok(match line.end {
        LineEnd::Gap(gap) => gap.first.number(size).is_ok_and(|first| first <= next),
        LineEnd::Open | LineEnd::Fork { .. } => false,
    })
}

/// The stretches of the route between two positions.
fn route(history: &TimelineHistory, from: Lsn, to: Lsn) -> Vec<RouteStep> {
    let step = |timeline| {
        let begin = history.begin(timeline).unwrap_or(Lsn::ZERO).max(from);
        let end = history.end(timeline).unwrap_or(Lsn::MAX).min(to);
        (begin < end).then_some(RouteStep { timeline, from: begin, to: end })
    };
    history.route().filter_map(step).collect()
}

/// Timelines whose segments are stored without a history.
fn without_history(query: &Query<'_>) -> Vec<Warning> {
    let stored = query.world.stored.iter().filter(|(_, set)| !set.is_empty()).map(|(timeline, _)| *timeline);
    stored
        .filter(|timeline| history_of(query.world, *timeline).is_none())
        .map(|timeline| Warning::HistoryMissing { timeline })
        .collect()
}
