//! The window: which spans of time each timeline can be restored to, for `info` and `status`.
//!
//! Cheap by intent: listings, the verdicts, and the summaries at the ends of spans. A segment in the middle whose stored copy
//! ends early shows only when a restore is planned, or by `verify`. A moment inside a span may still be refused for what only
//! WAL tells (a clock set back, two branches).

use super::ends::{earliest, newest};
use super::halt::{Halt, Step};
use super::line::{Line, LineEnd};
use super::refusal::{Gap, Moment};
use super::request::RecoveryTarget;
use super::select::{Query, backups_on, history_of, timelines};
use super::world::{Facts, PlanBackup, Want, World};
use crate::wal::timeline::TimelineId;

/// What can be restored on one timeline's route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The timeline.
    pub timeline: TimelineId,
    /// Spans without a hole, oldest first.
    pub spans: Vec<Span>,
}

/// A span of time without a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The backups it can be reached from, oldest first.
    pub backups: Vec<String>,
    /// Its first moment.
    pub earliest: Moment,
    /// Its newest moment: what `--to` its time still accepts.
    pub latest: Moment,
    /// What is missing behind it.
    pub gap: Option<Gap>,
}

/// The windows of all timelines that have a restorable backup, oldest timeline first.
///
/// # Errors
/// The facts still needed: never empty.
pub fn window(world: &World, facts: &Facts) -> Result<Vec<Window>, Vec<Want>> {
    let mut windows = Vec::new();
    for timeline in timelines(world).into_iter().rev() {
        match spans(world, facts, timeline) {
            Ok(spans) if spans.is_empty() => {}
            Ok(spans) => windows.push(Window { timeline, spans }),
            Err(Halt::Need(wants)) => return Err(wants),
            // What cannot be read has no window that could be promised.
            Err(Halt::Refuse(_)) => {}
        }
    }
    Ok(windows)
}

fn spans(world: &World, facts: &Facts, timeline: TimelineId) -> Step<Vec<Span>> {
    let target = RecoveryTarget::Latest;
    let Some(history) = history_of(world, timeline) else { return Ok(Vec::new()) };
    let backups = backups_on(world, &history);
    let query =
        Query { target: &target, world, facts, history, backups, named: None, decided: true, now: None };
    let mut spans: Vec<Span> = Vec::new();
    let mut current: Option<Line<'_>> = None;
    for backup in query.backups.iter().rev() {
        let joins = current.as_ref().is_some_and(|line| line.index_of(backup.start_lsn).is_some());
        if let (true, Some(span)) = (joins, spans.last_mut()) {
            span.backups.push(backup.id.clone());
            continue;
        }
        let mut line = query.line(backup);
        line.settle_to(backup.stop_lsn)?;
        if !line.reaches(backup.stop_lsn)? {
            continue;
        }
        line.settle_behind(line.links.len().saturating_sub(1), 0)?;
        spans.push(Span {
            backups: vec![backup.id.clone()],
            earliest: first_moment(&query, backup)?,
            latest: newest(&query, &line)?,
            gap: match line.end {
                LineEnd::Gap(gap) => Some(gap),
                LineEnd::Open | LineEnd::Fork { .. } => None,
            },
        });
        current = Some(line);
    }
    Ok(spans)
}

/// As [`earliest`], from the verdict if it tells.
fn first_moment(query: &Query<'_>, backup: &PlanBackup) -> Step<Moment> {
    match backup.latest_commit_inside {
        Some(inside) => Ok(query.moment(Some(inside.max(backup.started_at)), backup.stop_lsn)),
        None => earliest(query, backup),
    }
}
