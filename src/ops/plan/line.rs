//! A line: the stored segments along one timeline's route, from a position on, for as long as they follow each other.
//!
//! ```text
//!   route of TLI 2     1│1│1│1│2│2│2│          the child's copy of the fork segment is taken if stored
//!   ..., it is missing 1│1│1│1▌                the parent's is cut at the fork, and the line ends there
//! ```
//! Invariants: links ascend by one; a link is the newest stored name whose timeline has begun by then, as recovery chooses
//! (`XLogFileReadAnyTLI`); bytes at or past `limit` of a link are never looked at. A segment whose valid WAL ends before it
//! does ends the line, which only its summary tells: so a line is first laid by listing, then settled by facts. One that was accepted
//! with damage in it is known from the listing.

use super::halt::{Step, Wants};
use super::refusal::{Gap, Hole};
use super::world::{Facts, SegmentFacts, Want, World};
use crate::wal::lsn::Lsn;
use crate::wal::scan::{CommitSummary, Fragment, SegmentEnd};
use crate::wal::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::wal::timeline::{TimelineHistory, TimelineId};

/// One segment of a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) name: SegmentName,
    pub(super) number: SegmentNo,
    /// First byte of this file that is not on the route: the fork to a newer timeline, else the segment's end.
    pub(super) limit: Lsn,
}

/// Why a line ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum LineEnd {
    /// Nothing later is stored.
    Open,
    /// The newest timeline has nothing stored yet.
    Fork { timeline: TimelineId, fork: Lsn },
    /// WAL is missing that is known to have existed.
    Gap(Gap),
}

/// Stored segments that follow each other on one route.
#[derive(Debug, Clone)]
pub(super) struct Line<'a> {
    pub(super) world: &'a World,
    pub(super) facts: &'a Facts,
    pub(super) links: Vec<Link>,
    pub(super) end: LineEnd,
    /// Links whose summaries were checked.
    settled: usize,
}

/// The segments that may bear one timeline's name on a route.
struct Reign {
    timeline: TimelineId,
    first: SegmentNo,
    last: SegmentNo,
    end: Lsn,
}

fn reigns(history: &TimelineHistory, size: SegmentSize) -> Vec<Reign> {
    let reign = |timeline: TimelineId| {
        let begin = history.begin(timeline).unwrap_or(Lsn::ZERO);
        let end = history.end(timeline).unwrap_or(Lsn::MAX);
        let (first, last) = (SegmentNo::containing(begin, size), SegmentNo::ending_at(end, size));
        Reign { timeline, first, last, end }
    };
    let mut all: Vec<Reign> = history.route().map(reign).collect();
    all.reverse();
    all
}

impl<'a> Line<'a> {
    /// Lays the line from the segment that holds `from`, by listing alone.
    pub(super) fn lay(world: &'a World, facts: &'a Facts, history: &'a TimelineHistory, from: Lsn) -> Self {
        let size = world.segment_size;
        let reigns = reigns(history, size);
        let stored = |timeline: TimelineId, number: SegmentNo| {
            world.stored.get(&timeline).is_some_and(|set| set.contains(&number))
        };
        let mut links: Vec<Link> = Vec::new();
        let mut number = SegmentNo::containing(from, size);
        let mut reached = from;
        while let Some(reign) =
            reigns.iter().find(|r| r.first <= number && number <= r.last && stored(r.timeline, number))
        {
            let limit = number.end(size).min(reign.end);
            links.push(Link { name: SegmentName::new(reign.timeline, number, size), number, limit });
            reached = limit;
            if limit < number.end(size) {
                break;
            }
            number = number.next();
        }
        let end = Self::why(world, history, &reigns, reached);
        let mut line = Self { world, facts, links, end, settled: 0 };
        let stops = |link: &Link| world.damaged.get(&link.name).is_some_and(|to| to.aligned() < link.limit);
        if let Some(index) = line.links.iter().position(stops)
            && let Some(name) = line.links.get(index).map(|link| link.name)
        {
            // Damage is what has valid WAL behind it: it is a gap whether or not anything later is stored.
            line.end = LineEnd::Gap(Gap { first: name, last: name, hole: Hole::Partial });
            line.truncate(index);
        }
        line
    }

    /// The first of the segments that are stored without a hole up to the one that holds `lsn`; that one itself if none is.
    pub(super) fn first_before(world: &World, history: &TimelineHistory, lsn: Lsn) -> SegmentNo {
        let reigns = reigns(history, world.segment_size);
        let stored = |number: SegmentNo| {
            let named = |r: &Reign| {
                r.first <= number
                    && number <= r.last
                    && world.stored.get(&r.timeline).is_some_and(|set| set.contains(&number))
            };
            reigns.iter().any(named)
        };
        let mut first = SegmentNo::containing(lsn, world.segment_size);
        while first.get() > 0 && stored(first.previous()) {
            first = first.previous();
        }
        first
    }

    /// Why nothing follows at `reached`.
    fn why(world: &World, history: &TimelineHistory, reigns: &[Reign], reached: Lsn) -> LineEnd {
        let size = world.segment_size;
        let (timeline, begin) = (history.timeline(), history.begin(history.timeline()).unwrap_or(Lsn::ZERO));
        let missing = SegmentNo::containing(reached, size);
        let later = |r: &Reign| {
            let from = missing.next().max(r.first);
            let set = world.stored.get(&r.timeline)?;
            if from > r.last { None } else { set.range(from..=r.last).next().copied() }
        };
        let next = reigns.iter().filter_map(later).min();
        if next.is_none() && reached >= begin {
            return match history.fork() {
                Some(fork) if fork.switch == reached => LineEnd::Fork { timeline, fork: reached },
                _ => LineEnd::Open,
            };
        }
        let last = next.map_or_else(|| SegmentNo::ending_at(begin, size), SegmentNo::previous).max(missing);
        let first = SegmentName::new(history.owner(reached), missing, size);
        let last_from = last.start(size).max(reached);
        let expired = world.floor.get(&first.timeline()).is_some_and(|floor| missing < *floor);
        let hole = if expired { Hole::Expired } else { Hole::Missing };
        LineEnd::Gap(Gap { first, last: SegmentName::new(history.owner(last_from), last, size), hole })
    }

    /// Looks at the summaries of the first links up to and including `upto` (and the one after, which may hold the end of a
    /// crossing record), and cuts the line where its WAL ends although more should follow.
    pub(super) fn settle(&mut self, upto: usize) -> Step<()> {
        let until = self.links.len().min(upto.saturating_add(2));
        let mut wants = Wants::default();
        for link in self.links.iter().take(until).skip(self.settled) {
            if !self.facts.summaries.contains_key(&link.name) && !wants.add(Want::Summary(link.name)) {
                break;
            }
        }
        wants.settle()?;
        for index in self.settled.saturating_sub(1)..until {
            let limit = self.links.get(index).map_or(Lsn::ZERO, |link| link.limit);
            let known_next = index.saturating_add(1) < until;
            if ends_early(self.summary(index)?, limit) || (known_next && self.parts_from_next(index)?) {
                self.cut_after(index);
                return Ok(());
            }
        }
        self.settled = self.settled.max(until);
        Ok(())
    }

    fn cut_after(&mut self, index: usize) {
        let last = index.saturating_add(1) == self.links.len();
        let Some(name) = self.links.get(index).map(|link| link.name) else { return };
        self.end = match self.end {
            LineEnd::Open if last => LineEnd::Open,
            LineEnd::Gap(gap) if last => LineEnd::Gap(Gap { first: name, ..gap }),
            LineEnd::Open | LineEnd::Fork { .. } | LineEnd::Gap(_) => {
                LineEnd::Gap(Gap { first: name, last: name, hole: Hole::Partial })
            }
        };
        self.links.truncate(index.saturating_add(1));
        self.settled = self.links.len();
    }

    /// Looks at all summaries.
    pub(super) fn settle_all(&mut self) -> Step<()> {
        self.settle(usize::MAX - 2)
    }

    /// Looks at the summaries up to the segment that holds the byte before `end`.
    pub(super) fn settle_to(&mut self, end: Lsn) -> Step<()> {
        match self.index_of(end.saturating_sub(1)) {
            Some(index) => self.settle(index),
            None => self.settle_all(),
        }
    }

    /// The link that holds `lsn`, if it is on the line by listing.
    pub(super) fn index_of(&self, lsn: Lsn) -> Option<usize> {
        let first = self.links.first()?.number.get();
        let index = SegmentNo::containing(lsn, self.world.segment_size).get().checked_sub(first)?;
        usize::try_from(index).ok().filter(|i| *i < self.links.len())
    }

    /// The link that holds `lsn`, or the nearest one.
    pub(super) fn index_near(&self, lsn: Lsn) -> usize {
        let last = self.links.len().saturating_sub(1);
        let before = self.links.first().is_some_and(|link| lsn < link.number.start(self.world.segment_size));
        if before { 0 } else { self.index_of(lsn).unwrap_or(last) }
    }

    /// First byte of a link.
    pub(super) fn start_of(&self, index: usize) -> Lsn {
        self.links.get(index).map_or(Lsn::MAX, |link| link.number.start(self.world.segment_size))
    }

    /// The summary of a link; past the end, of a segment that holds nothing.
    pub(super) fn summary(&self, index: usize) -> Step<&'a SegmentFacts> {
        match self.links.get(index) {
            Some(link) => self.facts.summaries.get(&link.name).ok_or_else(|| Want::Summary(link.name).into()),
            None => Ok(&NOTHING),
        }
    }

    /// First byte after the last complete record, rounded up to where the next may start; padding after a switch counts.
    pub(super) fn valid_to(&self) -> Step<Lsn> {
        self.valid_in(self.links.len())
    }

    /// As [`Line::valid_to`], of records that start in the first `count` links.
    fn valid_in(&self, count: usize) -> Step<Lsn> {
        let mut count = count;
        while let Some(index) = count.checked_sub(1) {
            let facts = self.summary(index)?;
            let limit = self.links.get(index).map_or(Lsn::ZERO, |link| link.limit);
            if let Some(tail) = facts.tail.as_ref().filter(|tail| tail.lsn < limit) {
                return Ok(if self.crossing_end(index)?.is_some() { limit } else { tail.lsn });
            }
            if !facts.head.as_ref().is_some_and(Fragment::goes_on) {
                return Ok(match facts.end {
                    SegmentEnd::Full | SegmentEnd::Switch => limit,
                    SegmentEnd::Short => facts.valid_to.aligned().min(limit),
                });
            }
            count = index;
        }
        Ok(self.links.first().map_or(Lsn::ZERO, |link| link.number.start(self.world.segment_size)))
    }

    /// True if the line holds every record that ends at or before `lsn`. Wants the line settled to there.
    pub(super) fn reaches(&self, lsn: Lsn) -> Step<bool> {
        match self.index_of(lsn.saturating_sub(1)) {
            Some(index) => Ok(self.valid_in(index.saturating_add(1))? >= lsn),
            None => Ok(false),
        }
    }

    /// First byte after what is stored of the link that holds the byte before `lsn`: of a whole segment, its end.
    pub(super) fn stored_around(&self, lsn: Lsn) -> Step<Lsn> {
        let Some(index) = self.index_of(lsn.saturating_sub(1)) else { return Ok(Lsn::ZERO) };
        let facts = self.summary(index)?;
        let limit = self.links.get(index).map_or(Lsn::ZERO, |link| link.limit);
        Ok(match facts.end {
            SegmentEnd::Short => facts.valid_to.aligned().min(limit),
            SegmentEnd::Full | SegmentEnd::Switch => limit,
        })
    }

    /// The line without what follows link `last`.
    pub(super) fn truncate(&mut self, last: usize) {
        self.links.truncate(last.saturating_add(1));
    }

    /// Looks at the summaries of a link and of some before it.
    pub(super) fn settle_behind(&self, index: usize, links: usize) -> Step<()> {
        let mut wants = Wants::default();
        for link in self.links.iter().take(index.saturating_add(1)).skip(index.saturating_sub(links)) {
            if !self.facts.summaries.contains_key(&link.name) && !wants.add(Want::Summary(link.name)) {
                break;
            }
        }
        wants.settle()
    }
}

fn ends_early(facts: &SegmentFacts, limit: Lsn) -> bool {
    facts.end == SegmentEnd::Short && facts.valid_to.aligned() < limit
}

/// A segment that holds nothing.
static NOTHING: SegmentFacts = SegmentFacts {
    major: None,
    decoded: true,
    locked: None,
    valid_to: Lsn::ZERO,
    end: SegmentEnd::Short,
    head: None,
    tail: None,
    last_record: None,
    commits: CommitSummary {
        commits: 0,
        aborts: 0,
        prepares: 0,
        first: None,
        last: None,
        min: None,
        max: None,
        last_stop: None,
        backstep: None,
    },
    events: Vec::new(),
    events_complete: true,
};
