//! Records that cross into a later segment: each segment alone knows only its fragment of one.
//!
//! Such a record belongs to the segment in which it starts, and exists only if the line holds the segment in which it ends:
//! PostgreSQL replays a record whole or not at all. A tail that the next segment does not continue is fine if that segment
//! says so (`XLOG_OVERWRITE_CONTRECORD`) and the end of usable WAL if not, as it is for the server (`xlogreader.c`).

use super::halt::Step;
use super::line::Line;
use super::world::SegmentFacts;
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::Lsn;
use crate::wal::page::PgMajor;
use crate::wal::scan::{Crossing, Fragment, JoinError, join};

impl Line<'_> {
    /// The record that crosses out of link `index`, if one does and the line holds all of it.
    fn crossing(&self, index: usize) -> Step<Option<Crossing>> {
        Ok(self.try_crossing(index)?.and_then(Result::ok))
    }

    fn try_crossing(&self, index: usize) -> Step<Option<Result<Crossing, JoinError>>> {
        let facts = self.summary(index)?;
        let Some(tail) = &facts.tail else { return Ok(None) };
        let Some(first) = self.links.get(index).filter(|link| tail.end <= link.limit) else {
            return Ok(None);
        };
        let mut heads: Vec<&Fragment> = Vec::new();
        let mut last = first.name;
        let mut at = index;
        loop {
            at = at.saturating_add(1);
            let Some(link) = self.links.get(at) else { break };
            let Some(head) = &self.summary(at)?.head else { break };
            if head.end > link.limit {
                break;
            }
            heads.push(head);
            last = link.name;
            if !head.goes_on() {
                break;
            }
        }
        // What a record means depends on the version; where it lies does not.
        let joined = || {
            let crossing = join(tail, &heads, facts.major.unwrap_or(PgMajor::V18))?;
            let event = crossing.event.filter(|_| facts.major.is_some());
            Ok(Crossing { event, ..crossing })
        };
        Ok(Some(self.facts.joins.get_or((first.name, last), joined)))
    }

    /// Where the record that crosses out of link `index` ends.
    pub(super) fn crossing_end(&self, index: usize) -> Step<Option<Lsn>> {
        Ok(self.crossing(index)?.map(|crossing| crossing.end))
    }

    /// The event in the record that crosses out of link `index`, if it is one.
    pub(super) fn crossing_event(&self, index: usize) -> Step<Option<Event>> {
        Ok(self.crossing(index)?.and_then(|crossing| crossing.event))
    }

    /// Start and transaction of the record that crosses out of link `index`.
    pub(super) fn crossing_xid(&self, index: usize) -> Step<Option<(Lsn, u32)>> {
        Ok(self.crossing(index)?.map(|crossing| (crossing.lsn, crossing.header.xid)))
    }

    /// True if link `index` and the next are not parts of one stream: PostgreSQL would end recovery between them.
    pub(super) fn parts_from_next(&self, index: usize) -> Step<bool> {
        let next = index.saturating_add(1);
        if self.links.get(next).is_none() {
            return Ok(false);
        }
        let (facts, follower) = (self.summary(index)?, self.summary(next)?);
        if !facts.decoded || !follower.decoded {
            return Ok(false);
        }
        let starts_new = facts.tail.is_none() && !facts.head.as_ref().is_some_and(Fragment::goes_on);
        if starts_new {
            return Ok(follower.head.is_some());
        }
        Ok(match self.try_crossing(index)? {
            Some(Err(JoinError::NotContinued(_) | JoinError::Unfinished(_))) if follower.head.is_none() => {
                !abandons(follower)
            }
            Some(Err(JoinError::NotContinued(_) | JoinError::Crc(_))) => true,
            // Unfinished with a head: the line ends inside the record, which only its last link can tell.
            Some(Err(JoinError::Unfinished(_)) | Ok(_)) | None => false,
        })
    }
}

/// True if the segment says, or cannot be asked whether, it abandons the record before it.
fn abandons(facts: &SegmentFacts) -> bool {
    let overwrites = |event: &Event| matches!(event.kind, EventKind::OverwriteContrecord { .. });
    !facts.events_complete || facts.events.first().is_some_and(overwrites)
}
