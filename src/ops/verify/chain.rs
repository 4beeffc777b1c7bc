//! The chain of records across segments: each begins where the one before it ends.
//!
//! ```text
//!  segment n      … ▌record R │ first half of S      tail: S              last record: R
//!  segment n + 1  second half of S │ T …             head: S, CRC joined  first previous: S
//! ```
//! Every segment was checked alone when it was archived; that two of them belong together shows only here: a record that crosses
//! is put together and its CRC checked, and the first record of a segment must name the last one before it. What the annexes do
//! not tell (a newer server's WAL) ends the chain without a verdict. Pure. Rules: `wal::scan::join`, `xlogreader.c`.

use crate::repo::annex::Annex;
use crate::wal::event::EventKind;
use crate::wal::scan::{Fragment, JoinError, join};
use crate::wal::{Lsn, PgMajor};

/// What is known of all segments so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Chain {
    /// The segment before was followed: what it left open is known.
    known: bool,
    /// The record that was begun and goes on.
    open: Option<Open>,
    /// Start of the last record that is complete.
    last: Option<Lsn>,
}

#[derive(Debug, Clone)]
struct Open {
    tail: Fragment,
    heads: Vec<Fragment>,
}

impl Chain {
    /// Goes on with the next segment.
    ///
    /// # Errors
    /// What does not fit, in words. The chain then goes on from this segment.
    pub(super) fn follow(&mut self, annex: &Annex) -> Result<(), String> {
        let (Some(span), Some(major)) = (annex.span, major_of(annex)) else {
            *self = Self::default();
            return Ok(());
        };
        let previous = self.take_head(annex, major);
        if span.records == 0 && annex.tail.is_none() && annex.head.as_ref().is_some_and(Fragment::goes_on) {
            // All of it is the middle of one record.
            return previous.map(drop);
        }
        let previous = match previous {
            Ok(previous) => previous,
            Err(what) => {
                self.go_on(annex, None);
                return Err(what);
            }
        };
        self.go_on(annex, previous);
        match (span.first_previous, previous) {
            (Some(named), Some(before)) if named != before => Err(format!(
                "its first record follows one at {named}, but the last one before it is at {before}"
            )),
            _ => Ok(()),
        }
    }

    fn go_on(&mut self, annex: &Annex, previous: Option<Lsn>) {
        self.known = true;
        self.last = annex.span.and_then(|span| span.last_record).or(previous);
        if let Some(tail) = &annex.tail {
            self.open = Some(Open { tail: tail.clone(), heads: Vec::new() });
        }
    }

    /// Closes the record that is open with what the segment begins with; the start of the last record before its first.
    fn take_head(&mut self, annex: &Annex, major: PgMajor) -> Result<Option<Lsn>, String> {
        let Some(mut open) = self.open.take() else {
            return match annex.head {
                Some(_) if self.known => {
                    Err("it begins with the rest of a record that the segment before it does not begin"
                        .to_owned())
                }
                Some(_) => Ok(None),
                None => Ok(self.last.filter(|_| self.known)),
            };
        };
        let lsn = open.tail.lsn;
        let Some(head) = &annex.head else {
            // Given up after a crash: the server says so where it went on.
            let given_up = annex
                .events
                .iter()
                .any(|event| matches!(event.kind, EventKind::OverwriteContrecord { lsn: at } if at == lsn));
            let told = given_up || !annex.complete(crate::repo::annex::kind::OVERWRITES);
            return if told { Ok(self.last) } else { Err(JoinError::NotContinued(lsn).to_string()) };
        };
        open.heads.push(head.clone());
        if head.goes_on() {
            self.open = Some(open);
            return Ok(None);
        }
        let heads: Vec<&Fragment> = open.heads.iter().collect();
        join(&open.tail, &heads, major).map(|_| Some(lsn)).map_err(|e| e.to_string())
    }
}

fn major_of(annex: &Annex) -> Option<PgMajor> {
    annex.writer.and_then(|writer| PgMajor::from_number(u32::from(writer.major)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::scan::{Keep, Scanner};
    use crate::wal::testing::Wal;
    use crate::wal::{PgTime, SegmentSize, TimelineId};

    fn annexes(wal: &Wal) -> Vec<Annex> {
        let scan = |(name, bytes): (crate::wal::SegmentName, Vec<u8>)| {
            let mut scanner = Scanner::new(name, SegmentSize::new(1 << 20).unwrap(), Keep::Summary).unwrap();
            scanner.push(&bytes).unwrap();
            Annex::from_scan(&scanner.finish().unwrap())
        };
        wal.segments().into_iter().map(scan).collect()
    }

    fn time() -> PgTime {
        PgTime::from_unix_seconds(1_760_000_000)
    }

    fn start() -> Wal {
        Wal::starting_at(Lsn::new(3 << 20)).commit(time())
    }

    /// What following the annexes in turn said.
    fn follow<'a>(annexes: impl IntoIterator<Item = &'a Annex>) -> Vec<Result<(), String>> {
        let mut chain = Chain::default();
        annexes.into_iter().map(|annex| chain.follow(annex)).collect()
    }

    #[test]
    fn wal_as_servers_write_it_is_one_chain() {
        let two = TimelineId::new(2).unwrap();
        let worlds = [
            start().fill_segment(1000).fill_segment(700).commit(time()),
            start().switch().commit(time()).switch().commit(time()),
            start().filler(3 << 20).commit(time()).fill_segment(500).commit(time()),
            start().fill_segment(9000).promoted_to(two).fill_segment(1000).commit(time()),
            start().fill_segment(500).abandoned(20_000, 9000).commit(time()).fill_segment(500).commit(time()),
            // Given up on the border of two segments.
            start()
                .filler((1 << 20) - 30_000)
                .abandoned(60_000, 20_000)
                .commit(time())
                .switch()
                .commit(time()),
        ];
        for (n, wal) in worlds.iter().enumerate() {
            let annexes = annexes(wal);
            assert!(annexes.len() > 1, "world {n}");
            let said = follow(&annexes);
            assert!(said.iter().all(Result::is_ok), "world {n}: {said:?}");
        }
    }

    #[test]
    fn a_segment_of_another_history_does_not_fit() {
        let one = annexes(&start().fill_segment(1000).fill_segment(1000).commit(time()));
        let other = annexes(&start().commit(time()).fill_segment(1000).fill_segment(1000).commit(time()));
        let said = follow([&one[0], &other[1], &other[2]]);
        assert!(said[0].is_ok() && said[1].is_err() && said[2].is_ok(), "{said:?}");
        // Where no record crosses, the name of the predecessor tells.
        let one = annexes(&start().switch().commit(time()));
        let other = annexes(&start().commit(time()).switch().commit(time()));
        let said = follow([&one[0], &other[1]]);
        assert!(said[1].as_ref().is_err_and(|what| what.contains("follows one at")), "{said:?}");
        let said = follow([&one[0], &annexes(&start().filler(2 << 20).commit(time()))[1]]);
        assert!(said[1].as_ref().is_err_and(|what| what.contains("does not begin")), "{said:?}");
        let said = follow([&annexes(&start().filler(1 << 20).commit(time()))[0], &one[1]]);
        assert!(said[1].as_ref().is_err_and(|what| what.contains("not continued")), "{said:?}");
    }

    #[test]
    fn what_was_not_seen_is_no_fault() {
        let all = annexes(&start().fill_segment(1000).fill_segment(1000).commit(time()));
        assert!(follow(&all[1..]).iter().all(Result::is_ok));
        let blind = Annex::default();
        assert!(follow([&all[0], &blind, &all[1]]).iter().all(Result::is_ok));
    }
}
