//! Two lines of history that claim one moment (RECOVERY.md 7).
//!
//! ```text
//!  TLI 1  ──┬── c ── c ── T        abandoned, but its commits happened
//!  TLI 2    └─────────────────── first sign of life after T
//! ```
//! Ambiguous: T lies before the first timestamped record of the route past the point where the lines part, and the other line
//! holds commits at or before T past it. Then a person decides. Anything later is the route's alone, anything earlier is common.

use super::halt::Step;
use super::line::Line;
use super::look::if_readable;
use super::outcome::Warning;
use super::refusal::{Branch, Moment, Refusal};
use super::select::{Query, history_of, timelines};
use super::world::PlanBackup;
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::Lsn;
use crate::wal::scan::Stamp;
use crate::wal::segment::SegmentNo;
use crate::wal::time::PgTime;
use crate::wal::timeline::TimelineHistory;

/// Microseconds by which the time in a checkpoint record may lie before the checkpoint (`pg_time_t`, whole seconds).
const CHECKPOINT_GRAIN: i64 = 999_999;

/// Where two routes part; `None` if they have nothing in common.
pub(super) fn parting(a: &TimelineHistory, b: &TimelineHistory) -> Option<Lsn> {
    let mut parted = None;
    for (one, other) in a.route().zip(b.route()) {
        if one != other {
            break;
        }
        let (end, other_end) = (a.end(one).unwrap_or(Lsn::MAX), b.end(one).unwrap_or(Lsn::MAX));
        parted = Some(end.min(other_end));
        if end != other_end {
            break;
        }
    }
    parted
}

/// The other routes that the backup is on, with the point where they leave the query's.
fn others(query: &Query<'_>, backup: &PlanBackup) -> Vec<(TimelineHistory, Lsn)> {
    let other = |timeline| {
        let history = history_of(query.world, timeline)?;
        let parted = parting(&query.history, &history)?;
        Some((history, parted)).filter(|_| timeline != query.history.timeline() && parted >= backup.stop_lsn)
    };
    timelines(query.world).into_iter().filter_map(other).collect()
}

/// Refuses if another line holds commits that `time` should include. `over` is the first end above `time` on the route.
pub(super) fn refuse_if_two(
    query: &Query<'_>,
    backup: &PlanBackup,
    line: &Line<'_>,
    over: Option<&Event>,
    time: PgTime,
) -> Step<()> {
    let mut claims: Vec<(Lsn, Branch)> = Vec::new();
    let mut own = None;
    for (history, parted) in others(query, backup) {
        if over.is_some_and(|over| over.lsn < parted) {
            continue;
        }
        let first_time = first_time(line, parted)?;
        if first_time.is_some_and(|first| first <= time) {
            continue;
        }
        let mut other = Line::lay(query.world, query.facts, &history, parted);
        let Some(commit) = last_claimed(&mut other, parted, time)? else { continue };
        let owner = history.owner(commit.lsn);
        let moment = Moment { time: Some(commit.time), lsn: commit.end.aligned(), timeline: owner };
        let branch = Branch {
            timeline: history.timeline(),
            last_commit: Some(moment),
            first_time: self::first_time(&other, parted)?,
        };
        own = own.or(Some(first_time));
        claims.push((parted, branch));
    }
    let Some(fork) = claims.iter().map(|(parted, _)| *parted).min() else { return Ok(()) };
    let chosen = Branch { timeline: query.history.timeline(), last_commit: None, first_time: own.flatten() };
    let branches = std::iter::once(chosen).chain(claims.into_iter().map(|(_, branch)| branch)).collect();
    Err(Refusal::TwoBranches { target: query.target.clone(), fork, branches }.into())
}

/// The last commit on `line` at or past `parted` that a recovery to `time` along it would keep.
fn last_claimed(line: &mut Line<'_>, parted: Lsn, time: PgTime) -> Step<Option<Stamp>> {
    let mut index = 0;
    let mut before = Lsn::MAX;
    while index < line.links.len() {
        line.settle_ahead(index)?;
        if line.commits(index)?.max.is_some_and(|max| max > time) {
            let over = |e: &&Event| e.kind.stop_time().is_some_and(|at| at > time);
            if let Some(event) = line.events(index)?.within(parted, Lsn::MAX).find(over) {
                before = event.lsn;
                break;
            }
        }
        index = index.saturating_add(1);
    }
    line.last_commit(parted, before)
}

/// The first time any record carries at or past `parted`, at its latest: a checkpoint's is in whole seconds, rounded down, and a
/// server that reached its target opens its timeline with one. Taken as it stands, a timeline would seem to begin before commits
/// of the line it left. An exact time in the same segment may show that it began earlier within that second.
fn first_time(line: &Line<'_>, parted: Lsn) -> Step<Option<PgTime>> {
    for index in line.index_near(parted)..line.links.len() {
        let time =
            if_readable(line.events(index).map(|events| earliest_time(events.within(parted, Lsn::MAX))))?;
        if time.is_some() {
            return Ok(time);
        }
    }
    Ok(None)
}

fn earliest_time<'a>(events: impl Iterator<Item = &'a Event>) -> Option<PgTime> {
    let mut rounded: Option<PgTime> = None;
    for event in events {
        let Some(time) = event.kind.time() else { continue };
        if !matches!(event.kind, EventKind::Checkpoint { .. }) {
            return Some(rounded.map_or(time, |rounded| rounded.min(time)));
        }
        let latest = PgTime::from_raw(time.raw().saturating_add(CHECKPOINT_GRAIN));
        rounded = Some(rounded.map_or(latest, |rounded| rounded.min(latest)));
    }
    rounded
}

/// Other lines on which `lsn` lies too, past the point where they part from the route.
pub(super) fn warn_of_others(query: &Query<'_>, backup: &PlanBackup, lsn: Lsn) -> Vec<Warning> {
    if query.decided {
        return Vec::new();
    }
    let number = SegmentNo::ending_at(lsn, query.world.segment_size);
    let holds = |(history, parted): &(TimelineHistory, Lsn)| {
        let owner = history.owner(lsn.saturating_sub(1));
        let stored = query.world.stored.get(&owner).is_some_and(|set| set.contains(&number));
        *parted < lsn && stored && owner == history.timeline()
    };
    let warning =
        |(history, fork): (TimelineHistory, Lsn)| Warning::OtherBranch { timeline: history.timeline(), fork };
    others(query, backup).into_iter().filter(holds).map(warning).collect()
}
