//! A model of a cluster's WAL: records on timelines, backups, and what of it is stored.
//!
//! It answers the planner's wants mechanically from its records, and knows nothing of the planner. Pages are left out (only a
//! segment's long header is there); records that cross segments have real bytes, so that fragments join.

use std::collections::{BTreeMap, BTreeSet};

use crate::ops::plan::{Facts, PlanBackup, RecordSpan, SegmentFacts, Want, World};
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::Lsn;
use crate::wal::page::{PgMajor, SystemId};
use crate::wal::scan::{CommitSummary, Fragment, SegmentEnd};
use crate::wal::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::wal::time::PgTime;
use crate::wal::timeline::{TimelineHistory, TimelineId};

pub const SEGMENT: u64 = 1 << 20;
const HEADER: u64 = 40;

pub fn size() -> SegmentSize {
    SegmentSize::new(SEGMENT).unwrap()
}

pub fn tli(n: u32) -> TimelineId {
    TimelineId::new(n).unwrap()
}

/// Seconds on the test's clock.
pub fn at(seconds: i64) -> PgTime {
    PgTime::from_raw(seconds * 1_000_000)
}

#[derive(Debug, Clone)]
pub struct Rec {
    pub lsn: Lsn,
    pub end: Lsn,
    pub len: u64,
    pub xid: u32,
    pub kind: Option<EventKind>,
}

impl Rec {
    pub fn event(&self) -> Option<Event> {
        self.kind.clone().map(|kind| Event { lsn: self.lsn, end: self.end, xid: self.xid, kind })
    }

    pub fn crosses(&self) -> bool {
        SegmentNo::containing(self.lsn, size()) != SegmentNo::ending_at(self.end, size())
    }

    fn bytes(&self) -> Vec<u8> {
        let (rmid, info, time) = match self.kind {
            Some(EventKind::Commit { time, .. }) => (1, 0x00, time),
            Some(EventKind::Abort { time, .. }) => (1, 0x20, time),
            None => (10, 0, at(0)),
            ref other => panic!("{other:?} cannot cross in this model"),
        };
        let main = u8::try_from(self.len - 26).unwrap();
        let mut body = vec![0xFF, main];
        body.extend(time.raw().to_le_bytes());
        body.resize(usize::from(main) + 2, 0);
        let mut header = Vec::new();
        header.extend(u32::try_from(self.len).unwrap().to_le_bytes());
        header.extend(self.xid.to_le_bytes());
        header.extend(0_u64.to_le_bytes());
        header.extend([info, rmid, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &header);
        header.extend(crc.to_le_bytes());
        header.extend(body);
        header
    }

    /// The fragments of a crossing record.
    fn fragments(&self) -> (Fragment, Fragment) {
        let border = SegmentNo::containing(self.lsn, size()).end(size());
        let (bytes, in_first) = (self.bytes(), border.bytes_since(self.lsn));
        let (first, second) = bytes.split_at(usize::try_from(in_first).unwrap());
        let kept = |b: &[u8]| b.iter().take(128).copied().collect::<Vec<u8>>();
        let tail = Fragment {
            lsn: self.lsn,
            end: border,
            total: self.len,
            len: in_first,
            crc: crc32c::crc32c(first.get(24..).unwrap_or(&[])),
            bytes: kept(first),
        };
        let head = Fragment {
            lsn: border.saturating_add(HEADER),
            end: self.end,
            total: self.len - in_first,
            len: self.len - in_first,
            crc: crc32c::crc32c(second),
            bytes: kept(second),
        };
        (tail, head)
    }
}

/// One timeline: its own records, from its fork on.
#[derive(Debug, Clone)]
pub struct Timeline {
    pub history: TimelineHistory,
    pub begin: Lsn,
    pub recs: Vec<Rec>,
    /// Where the next record goes.
    pub pos: Lsn,
}

impl Timeline {
    /// Appends a record of `len` bytes, which may cross into the next segment.
    pub fn push(&mut self, len: u64, xid: u32, kind: Option<EventKind>) -> Rec {
        let mut lsn = self.pos;
        if lsn.get().is_multiple_of(SEGMENT) {
            lsn = lsn.saturating_add(HEADER);
        }
        let border = SegmentNo::containing(lsn, size()).end(size());
        let mut end = lsn.saturating_add(len);
        if end > border {
            end = end.saturating_add(HEADER);
        }
        let switch = kind == Some(EventKind::Switch);
        self.pos = if switch { border } else { end.aligned() };
        let rec = Rec { lsn, end, len, xid, kind };
        self.recs.push(rec.clone());
        rec
    }

    /// Bytes left in the segment.
    pub fn room(&self) -> u64 {
        SEGMENT - self.pos.get() % SEGMENT
    }

    pub fn commit(&mut self, xid: u32, time: PgTime) -> Rec {
        self.push(40, xid, Some(EventKind::Commit { time, prepared: false }))
    }

    pub fn other(&mut self, xid: u32) -> Rec {
        self.push(64, xid, None)
    }

    /// Fills the segment but for `left` bytes (a multiple of 8).
    pub fn fill(&mut self, left: u64) {
        let start = if self.pos.get().is_multiple_of(SEGMENT) { HEADER } else { 0 };
        let room = self.room() - start;
        if room > left {
            self.push(room - left, 0, None);
        }
    }
}

#[derive(Debug, Clone)]
pub struct Model {
    pub timelines: BTreeMap<TimelineId, Timeline>,
    pub backups: Vec<PlanBackup>,
    pub stored: BTreeMap<TimelineId, BTreeSet<SegmentNo>>,
    pub floor: BTreeMap<TimelineId, SegmentNo>,
    /// Stored copies that end early, at a record's end.
    pub cuts: BTreeMap<SegmentName, Lsn>,
}

impl Model {
    pub fn new() -> Self {
        let first = Timeline {
            history: TimelineHistory::first(),
            begin: Lsn::new(SEGMENT),
            recs: Vec::new(),
            pos: Lsn::new(SEGMENT),
        };
        Self {
            timelines: BTreeMap::from([(TimelineId::FIRST, first)]),
            backups: Vec::new(),
            stored: BTreeMap::new(),
            floor: BTreeMap::new(),
            cuts: BTreeMap::new(),
        }
    }

    pub fn on(&mut self, timeline: u32) -> &mut Timeline {
        self.timelines.get_mut(&tli(timeline)).unwrap()
    }

    /// Opens timeline `child` on `parent` at the record boundary `fork`.
    pub fn fork(&mut self, child: u32, parent: u32, fork: Lsn) {
        let mut text = String::new();
        for entry in self.timelines[&tli(parent)].history.parents() {
            text += &format!("{}\t{}\tx\n", entry.timeline, entry.switch);
        }
        text += &format!("{parent}\t{fork}\tx\n");
        let history = TimelineHistory::parse(tli(child), text.as_bytes()).unwrap();
        let timeline = Timeline { history, begin: fork, recs: Vec::new(), pos: fork };
        self.timelines.insert(tli(child), timeline);
    }

    /// A backup from `start` to here, ended by its record.
    pub fn end_backup(&mut self, id: &str, timeline: u32, start: Lsn, started: PgTime, ended: PgTime) {
        let rec = self.on(timeline).push(32, 0, Some(EventKind::BackupEnd { start }));
        self.backups.push(PlanBackup {
            id: id.to_owned(),
            timeline: tli(timeline),
            start_lsn: start,
            stop_lsn: rec.end.aligned(),
            started_at: started,
            stop_time: ended,
            latest_commit_inside: None,
            restorable: true,
            corrupt: false,
        });
    }

    /// Stores every segment of every timeline, the unfinished last ones as short copies.
    pub fn store_all(&mut self) {
        for (id, timeline) in &self.timelines {
            let (first, last) =
                (SegmentNo::containing(timeline.begin, size()), SegmentNo::ending_at(timeline.pos, size()));
            let set = (first.get()..=last.get()).map(SegmentNo::new).collect();
            self.stored.insert(*id, if timeline.pos > timeline.begin { set } else { BTreeSet::new() });
        }
    }

    pub fn lose(&mut self, timeline: u32, segment: u64) {
        self.stored.get_mut(&tli(timeline)).unwrap().remove(&SegmentNo::new(segment));
    }

    pub fn world(&self) -> World {
        let histories = self.timelines.iter().filter(|(id, _)| **id != TimelineId::FIRST);
        World {
            system_id: SystemId::new(7),
            segment_size: size(),
            backups: self.backups.clone(),
            histories: histories.map(|(id, t)| (*id, t.history.clone())).collect(),
            stored: self.stored.clone(),
            damaged: self.damaged(),
            floor: self.floor.clone(),
        }
    }

    /// Every second copy that ends early is one that was accepted with damage in it: a gap, even if nothing later is stored.
    pub fn damaged(&self) -> BTreeMap<SegmentName, Lsn> {
        let even = |name: &&SegmentName| name.number(size()).unwrap().get().is_multiple_of(2);
        let facts = self.cuts.keys().filter(even).map(|name| (*name, self.facts_of(*name)));
        facts.filter(|(_, f)| f.end == SegmentEnd::Short).map(|(name, f)| (name, f.valid_to)).collect()
    }

    /// Every record on the route of a timeline, stored or not.
    pub fn route(&self, timeline: TimelineId) -> Vec<&Rec> {
        let history = &self.timelines[&timeline].history;
        let of = |id: TimelineId| {
            let end = history.end(id).unwrap_or(Lsn::MAX);
            self.timelines[&id].recs.iter().filter(move |rec| rec.lsn < end)
        };
        history.route().flat_map(of).collect()
    }

    /// Where WAL ends in the file of one segment: its end, or short of it.
    pub fn file_end(&self, name: SegmentName) -> Lsn {
        let number = name.number(size()).unwrap();
        let whole = self.timelines[&name.timeline()].pos.min(number.end(size()));
        self.cuts.get(&name).map_or(whole, |cut| whole.min(*cut))
    }

    pub fn facts_of(&self, name: SegmentName) -> SegmentFacts {
        let number = name.number(size()).unwrap();
        let (start, end) = (number.start(size()), number.end(size()));
        let route = self.route(name.timeline());
        let here_to = self.file_end(name);
        let starts = |rec: &&Rec| start <= rec.lsn && rec.lsn < here_to;
        let inside: Vec<&Rec> = route.iter().copied().filter(starts).collect();
        let mut commits = CommitSummary::default();
        let mut events = Vec::new();
        for event in inside.iter().filter(|rec| !rec.crosses()).filter_map(|rec| rec.event()) {
            commits.add(&event);
            let stop = event.kind.stop_time().is_some() || matches!(event.kind, EventKind::Prepare { .. });
            if !stop {
                events.push(event);
            }
        }
        let crossing = |rec: &&&Rec| rec.crosses();
        let tail = inside.iter().find(crossing).map(|rec| rec.fragments().0);
        let into = |rec: &&&Rec| rec.crosses() && SegmentNo::containing(rec.lsn, size()).next() == number;
        let head = route.iter().find(into).map(|rec| rec.fragments().1);
        let last = inside.iter().rfind(|rec| !rec.crosses());
        let switched = last.is_some_and(|rec| rec.kind == Some(EventKind::Switch));
        let short = here_to < end;
        let valid_to = if short || switched {
            last.map_or_else(|| head.as_ref().map_or(start, |h| h.end), |rec| rec.end)
        } else {
            end
        };
        SegmentFacts {
            major: Some(PgMajor::V15),
            decoded: true,
            locked: None,
            valid_to,
            end: if short {
                SegmentEnd::Short
            } else if switched {
                SegmentEnd::Switch
            } else {
                SegmentEnd::Full
            },
            head,
            tail,
            last_record: last.map(|rec| RecordSpan { lsn: rec.lsn, end: rec.end }),
            commits,
            events,
            events_complete: true,
        }
    }

    /// Complete records that start in a segment.
    fn complete(&self, name: SegmentName) -> Vec<&Rec> {
        let number = name.number(size()).unwrap();
        let end = self.file_end(name);
        let inside =
            |rec: &&Rec| SegmentNo::containing(rec.lsn, size()) == number && rec.lsn < end && !rec.crosses();
        self.route(name.timeline()).into_iter().filter(inside).collect()
    }

    /// Answers one want.
    pub fn fetch(&self, want: Want, facts: &mut Facts) {
        let name = want.segment();
        let stored = self.stored.get(&name.timeline()).unwrap();
        assert!(stored.contains(&name.number(size()).unwrap()), "{want:?} is not stored");
        match want {
            Want::Summary(_) => {
                assert!(facts.summaries.insert(name, self.facts_of(name)).is_none(), "{want:?} again");
            }
            Want::Events(_) => {
                let events = self.complete(name).iter().filter_map(|rec| rec.event()).collect();
                assert!(facts.events.insert(name, events).is_none(), "{want:?} again");
            }
            Want::RecordEndingBy(_, lsn) => {
                let found = self.complete(name).into_iter().rfind(|rec| rec.end <= lsn);
                let span = found.map(|rec| RecordSpan { lsn: rec.lsn, end: rec.end });
                assert!(facts.records.insert((name, lsn), span).is_none(), "{want:?} again");
            }
            Want::FirstRecordOf(_, xid) => {
                let first = self.complete(name).into_iter().find(|rec| rec.xid == xid).map(|rec| rec.lsn);
                assert!(facts.first_of_xid.insert((name, xid), first).is_none(), "{want:?} again");
            }
        }
    }
}
