//! Which timeline and which backups come into question, before the target is looked at.
//!
//! A backup is on a route if its timeline is, and if it was complete before the route left that timeline. Unsaid, the route is
//! that of the highest timeline that descends from a usable backup. Histories that contradict each other never meet here:
//! each route is judged by its own history alone, as recovery does.

use super::halt::Step;
use super::line::Line;
use super::refusal::{Moment, Refusal};
use super::request::{PlanRequest, RecoveryTarget, TimelineChoice};
use super::world::{Facts, PlanBackup, World};
use crate::wal::lsn::Lsn;
use crate::wal::time::PgTime;
use crate::wal::timeline::{TimelineHistory, TimelineId};

/// The question, with timeline and backups settled.
pub(super) struct Query<'a> {
    pub(super) target: &'a RecoveryTarget,
    pub(super) world: &'a World,
    pub(super) facts: &'a Facts,
    /// The route.
    pub(super) history: TimelineHistory,
    /// Backups on it that may be used, newest first; only the one that was asked for, if one was. Never empty.
    pub(super) backups: Vec<&'a PlanBackup>,
    /// The backup that was asked for.
    pub(super) named: Option<&'a PlanBackup>,
    /// A person chose the timeline.
    pub(super) decided: bool,
    /// The present, if it is known.
    pub(super) now: Option<PgTime>,
}

/// The history of a timeline, if it is known.
pub(super) fn history_of(world: &World, timeline: TimelineId) -> Option<TimelineHistory> {
    match world.histories.get(&timeline) {
        Some(history) => Some(history.clone()),
        None => (timeline == TimelineId::FIRST).then(TimelineHistory::first),
    }
}

/// Timelines whose route can be followed, newest first.
pub(super) fn timelines(world: &World) -> Vec<TimelineId> {
    let mut all: Vec<TimelineId> = world.histories.keys().copied().collect();
    if !all.contains(&TimelineId::FIRST) {
        all.push(TimelineId::FIRST);
    }
    all.sort_unstable();
    all.reverse();
    all
}

/// True if `backup` lies on the route.
pub(super) fn on_route(backup: &PlanBackup, history: &TimelineHistory) -> bool {
    let (Some(begin), end) = (history.begin(backup.timeline), history.end(backup.timeline)) else {
        return false;
    };
    begin <= backup.start_lsn && end.is_none_or(|end| backup.stop_lsn <= end)
}

/// Backups on a route that are offered, newest first.
pub(super) fn backups_on<'a>(world: &'a World, history: &TimelineHistory) -> Vec<&'a PlanBackup> {
    let mut found: Vec<&PlanBackup> =
        world.backups.iter().filter(|b| b.is_offered() && on_route(b, history)).collect();
    found.sort_by(|a, b| (b.stop_lsn, b.start_lsn, &b.id).cmp(&(a.stop_lsn, a.start_lsn, &a.id)));
    found
}

/// Settles timeline and backups.
pub(super) fn select<'a>(request: &'a PlanRequest, world: &'a World, facts: &'a Facts) -> Step<Query<'a>> {
    let named = request.backup.as_ref().map(|id| named_backup(world, id)).transpose()?;
    let history = match request.timeline {
        Some(TimelineChoice::Number(timeline)) => {
            history_of(world, timeline).ok_or(Refusal::UnknownTimeline { timeline })?
        }
        Some(TimelineChoice::Latest) | None => newest_route(world, named)?,
    };
    let timeline = history.timeline();
    let mut backups = backups_on(world, &history);
    if let Some(backup) = named {
        if !on_route(backup, &history) {
            return Err(Refusal::BackupNotOnTimeline { id: backup.id.clone(), timeline }.into());
        }
        backups = vec![backup];
    }
    if backups.is_empty() {
        return Err(Refusal::NoBackup { timeline: request.timeline.is_some().then_some(timeline) }.into());
    }
    let decided = request.timeline.is_some();
    Ok(Query { target: &request.target, world, facts, history, backups, named, decided, now: request.now })
}

fn named_backup<'a>(world: &'a World, id: &str) -> Step<&'a PlanBackup> {
    let backup = world.backups.iter().find(|b| b.id == id);
    let backup = backup.ok_or_else(|| Refusal::UnknownBackup { id: id.to_owned() })?;
    if backup.restorable {
        Ok(backup)
    } else {
        Err(Refusal::BackupNotRestorable { id: id.to_owned() }.into())
    }
}

fn newest_route(world: &World, named: Option<&PlanBackup>) -> Step<TimelineHistory> {
    let holds = |history: &TimelineHistory| match named {
        Some(backup) => on_route(backup, history),
        None => !backups_on(world, history).is_empty(),
    };
    let mut known = timelines(world).into_iter().filter_map(|timeline| history_of(world, timeline));
    match (known.find(holds), named) {
        (Some(history), _) => Ok(history),
        (None, None) => Err(Refusal::NoBackup { timeline: None }.into()),
        (None, Some(backup)) => Err(Refusal::UnknownTimeline { timeline: backup.timeline }.into()),
    }
}

impl<'a> Query<'a> {
    /// The line from a backup's start along the route.
    pub(super) fn line(&'a self, backup: &PlanBackup) -> Line<'a> {
        Line::lay(self.world, self.facts, &self.history, backup.start_lsn)
    }

    /// A moment on the route.
    pub(super) fn moment(&self, time: Option<PgTime>, lsn: Lsn) -> Moment {
        Moment { time, lsn, timeline: self.history.owner(lsn.saturating_sub(1)) }
    }
}
