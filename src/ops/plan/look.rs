//! Looking for records on a line: summaries decide where they can, bodies are asked for only where they must be.
//!
//! Every question is about records that START in a range of positions, and answers by summary and by body agree. Ranges are
//! half open. "Ends" are commits and aborts, prepared ones included: what PostgreSQL compares with a target time; "stops" are
//! ends and PREPARE (RECOVERY.md 1).

use super::halt::{Halt, Step};
use super::line::{Line, Link};
use super::refusal::Refusal;
use super::request::RecoveryTarget;
use super::world::{SegmentFacts, Want};
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::Lsn;
use crate::wal::scan::{CommitSummary, Stamp};
use crate::wal::time::PgTime;

/// Links looked at together by a walk that ends as soon as it finds something. A power of two.
const BLOCK: usize = 64;

/// The events of one link that lie on the line.
pub(super) struct LinkEvents<'a> {
    stored: &'a [Event],
    crossing: Option<Event>,
    limit: Lsn,
}

impl LinkEvents<'_> {
    /// In WAL order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Event> {
        let limit = self.limit;
        self.stored.iter().filter(move |event| event.end <= limit).chain(&self.crossing)
    }

    /// Those that start in [from, before).
    pub(super) fn within(&self, from: Lsn, before: Lsn) -> impl DoubleEndedIterator<Item = &Event> {
        self.iter().filter(move |event| from <= event.lsn && event.lsn < before)
    }
}

/// True for commits, aborts and prepares.
pub(super) fn is_stop(event: &Event) -> bool {
    event.kind.stop_time().is_some() || matches!(event.kind, EventKind::Prepare { .. })
}

/// True for commits.
pub(super) fn is_commit(event: &Event) -> bool {
    matches!(event.kind, EventKind::Commit { .. })
}

/// The event as a stamp, if it carries a time.
pub(super) fn stamp(event: &Event) -> Option<Stamp> {
    event.kind.time().map(|time| Stamp { lsn: event.lsn, end: event.end, time, xid: event.xid })
}

impl<'a> Line<'a> {
    /// Every event of a link.
    pub(super) fn events(&self, index: usize) -> Step<LinkEvents<'a>> {
        let facts = self.summary(index)?;
        let Some(link) = self.links.get(index) else {
            return Ok(LinkEvents { stored: &[], crossing: None, limit: Lsn::ZERO });
        };
        self.decoded(index)?;
        let counts = facts.commits;
        let none = counts.commits == 0 && counts.aborts == 0 && counts.prepares == 0;
        let stored: &'a [Event] = if none && facts.events_complete {
            &facts.events
        } else {
            self.facts.events.get(&link.name).ok_or(Want::Events(link.name))?
        };
        Ok(LinkEvents { stored, crossing: self.crossing_event(index)?, limit: link.limit })
    }

    /// The events of a link that are neither ends nor prepares.
    pub(super) fn marks(&self, index: usize) -> Step<LinkEvents<'a>> {
        let facts = self.summary(index)?;
        if !facts.events_complete {
            return self.events(index);
        }
        self.decoded(index)?;
        let limit = self.links.get(index).map_or(Lsn::ZERO, |link| link.limit);
        Ok(LinkEvents { stored: &facts.events, crossing: self.crossing_event(index)?, limit })
    }

    /// Halts if nobody could look into this segment.
    fn decoded(&self, index: usize) -> Step<()> {
        let facts = self.summary(index)?;
        match self.links.get(index) {
            Some(link) if !facts.decoded => Err(undecoded(link, facts).into()),
            _ => Ok(()),
        }
    }

    /// The commits of a link, its crossing record included and what lies past a fork left out.
    pub(super) fn commits(&self, index: usize) -> Step<CommitSummary> {
        let facts = self.summary(index)?;
        self.decoded(index)?;
        let Some(link) = self.links.get(index) else { return Ok(CommitSummary::default()) };
        let mut commits = CommitSummary::default();
        if link.limit < link.number.end(self.world.segment_size) {
            self.events(index)?.iter().for_each(|event| commits.add(event));
        } else {
            commits = facts.commits;
            if let Some(event) = self.crossing_event(index)? {
                commits.add(&event);
            }
        }
        Ok(commits)
    }

    /// Halts for the facts of a link and of some after it, in blocks, so that walking on asks once a block.
    pub(super) fn settle_ahead(&mut self, index: usize) -> Step<()> {
        self.settle((index | (BLOCK - 1)).saturating_add(1))
    }

    /// The first end at or after `from` whose time is above `time`.
    pub(super) fn first_over(&self, from: Lsn, time: PgTime) -> Step<Option<Event>> {
        for index in self.index_near(from)..self.links.len() {
            if self.commits(index)?.max.is_some_and(|max| max > time) {
                let over = |e: &&Event| e.kind.stop_time().is_some_and(|t| t > time);
                if let Some(event) = self.events(index)?.within(from, Lsn::MAX).find(over) {
                    return Ok(Some(event.clone()));
                }
            }
        }
        Ok(None)
    }

    /// The largest time of an end in [from, before).
    pub(super) fn largest_end(&self, from: Lsn, before: Lsn) -> Step<Option<PgTime>> {
        let mut largest = None;
        for index in self.index_near(from)..self.links.len() {
            if self.start_of(index) >= before {
                break;
            }
            largest = largest.max(self.largest_end_in(index, from, before, largest)?);
        }
        Ok(largest)
    }

    /// As [`Self::largest_end`] from the line's first segment on, of those that can be read, and of no time above `until`.
    pub(super) fn largest_readable_end(&self, before: Lsn, until: Option<PgTime>) -> Step<Option<PgTime>> {
        let mut largest = None;
        let is_sane = |time: &PgTime| until.is_none_or(|until| *time <= until);
        for index in 0..self.links.len() {
            if self.start_of(index) >= before {
                break;
            }
            let found = if_readable(self.largest_end_in(index, Lsn::ZERO, before, largest))?;
            largest = largest.max(match found {
                Some(time) if !is_sane(&time) => {
                    let times = |events: LinkEvents<'_>| {
                        let ends = events.within(Lsn::ZERO, before).filter_map(|e| e.kind.stop_time());
                        ends.filter(is_sane).max()
                    };
                    if_readable(self.events(index).map(times))?
                }
                found => found,
            });
        }
        Ok(largest)
    }

    /// The largest time of an end in [from, before) in one link; `known`, or less, if none is above that.
    fn largest_end_in(
        &self,
        index: usize,
        from: Lsn,
        before: Lsn,
        known: Option<PgTime>,
    ) -> Step<Option<PgTime>> {
        let commits = self.commits(index)?;
        let whole = from <= self.start_of(index) && self.start_of(index.saturating_add(1)) <= before;
        if whole || commits.max.is_none() || commits.max <= known {
            return Ok(commits.max.filter(|_| whole));
        }
        let events = self.events(index)?;
        Ok(events.within(from, before).filter_map(|e| e.kind.stop_time()).max())
    }

    /// The last stop in [from, before) that is not of after `until`.
    pub(super) fn last_stop(&self, from: Lsn, before: Lsn, until: Option<PgTime>) -> Step<Option<Event>> {
        let in_time = |e: &Event| until.is_none_or(|until| e.kind.time().is_some_and(|time| time <= until));
        self.last_that(from, before, |commits| commits.last_stop, |event| is_stop(event) && in_time(event))
    }

    /// The last commit in [from, before).
    pub(super) fn last_commit(&self, from: Lsn, before: Lsn) -> Step<Option<Stamp>> {
        let first = |c: &CommitSummary| if c.commits > 0 { c.last } else { None };
        Ok(self.last_that(from, before, first, is_commit)?.as_ref().and_then(stamp))
    }

    /// The last event in [from, before) that `matches`; `place` tells from a summary whether there may be one.
    fn last_that(
        &self,
        from: Lsn,
        before: Lsn,
        place: impl Fn(&CommitSummary) -> Option<Stamp>,
        matches: impl Fn(&Event) -> bool,
    ) -> Step<Option<Event>> {
        if self.links.is_empty() || before <= from {
            return Ok(None);
        }
        for index in (self.index_near(from)..=self.index_near(before.saturating_sub(1))).rev() {
            if place(&self.commits(index)?).is_some() {
                let events = self.events(index)?;
                if let Some(event) = events.within(from, before).rfind(|event| matches(event)) {
                    return Ok(Some(event.clone()));
                }
            }
        }
        Ok(None)
    }

    /// The first commit at or after `from`. Looks ahead as far as it takes, a few segments at a time.
    pub(super) fn first_commit(&mut self, from: Lsn) -> Step<Option<Stamp>> {
        let mut index = self.index_near(from);
        while index < self.links.len() {
            self.settle_ahead(index)?;
            if self.commits(index)?.commits > 0 {
                let found = self.events(index)?.within(from, Lsn::MAX).find(|e| is_commit(e)).and_then(stamp);
                if found.is_some() {
                    return Ok(found);
                }
            }
            index = index.saturating_add(1);
        }
        Ok(None)
    }

    /// The largest time in link `index`, of records that start at or past `from`, that shows how far the archive goes
    /// (RECOVERY.md 3). PREPARE is not one of them.
    pub(super) fn largest_time(&self, index: usize, from: Lsn) -> Step<Option<PgTime>> {
        let alive = |event: &Event| match event.kind {
            EventKind::Prepare { .. } => None,
            _ => event.kind.time(),
        };
        if self.start_of(index) < from {
            return Ok(self.events(index)?.within(from, Lsn::MAX).filter_map(alive).max());
        }
        let marks = self.marks(index)?.iter().filter_map(alive).max();
        Ok(self.commits(index)?.max.max(marks))
    }
}

/// Nobody could look into this segment. The target is filled in where the question is known.
pub(super) fn undecoded(link: &Link, facts: &SegmentFacts) -> Refusal {
    let (target, segment) = (RecoveryTarget::Latest, link.name);
    match facts.locked {
        Some(epoch) => Refusal::Locked { target, segment, epoch },
        None => Refusal::Undecoded { target, segment },
    }
}

/// `step`, or nothing if what it looked at cannot be read: for answers that only inform.
pub(super) fn if_readable<T>(step: Step<Option<T>>) -> Step<Option<T>> {
    match step {
        Err(Halt::Refuse(refusal))
            if matches!(*refusal, Refusal::Undecoded { .. } | Refusal::Locked { .. }) =>
        {
            Ok(None)
        }
        other => other,
    }
}
