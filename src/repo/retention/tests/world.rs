//! A cluster and its repository in a few numbers: hours, positions, segments, timelines.
//!
//! Each hour is one commit. A fork is what a point-in-time recovery leaves: a new timeline that begins at an earlier moment, while the
//! old one ends. Segments are stored as they begin; backups take an hour or less.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};

use crate::repo::objects::{Floor, Nonce};
use crate::repo::path::BackupId;
use crate::repo::retention::{HeldBackup, Holdings, LetGo, Marked, Plan, StoredWal};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

pub(super) const SEGMENT: u64 = 1 << 20;

/// Where hours count from: a Saturday, so that weeks, months and years all begin somewhere in between.
pub(super) fn at(hour: i64) -> Timestamp {
    let start: Timestamp = "2024-11-30T00:00:00Z".parse().unwrap();
    start + SignedDuration::from_hours(hour)
}

pub(super) fn tli(n: u32) -> TimelineId {
    TimelineId::new(n).unwrap()
}

/// A generator that a failed case can be repeated with.
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    pub(super) timeline: u32,
    pub(super) lsn: u64,
    pub(super) hour: i64,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) hour: i64,
    pub(super) timeline: u32,
    lsn: u64,
    /// Parents of each timeline, oldest first, with the position it was left at.
    parents: BTreeMap<u32, Vec<(u32, u64)>>,
    pub(super) moments: Vec<Moment>,
    pub(super) stored: BTreeSet<(u32, u64)>,
    /// What of it was accepted with damage and cannot be read.
    pub(super) unread: BTreeSet<(u32, u64)>,
    /// What of that has damage in it, which no run sees.
    pub(super) damaged: BTreeSet<(u32, u64)>,
    last_stored: BTreeMap<u32, i64>,
    pub(super) backups: Vec<HeldBackup>,
    pub(super) running: Vec<SegmentName>,
    pub(super) pins: Vec<SegmentName>,
    pub(super) floor: Option<Floor>,
    /// Hours.
    pub(super) grace: i64,
    /// Tombstones, with the hour of each.
    pub(super) marked: Vec<(i64, HeldBackup)>,
    /// All floors, likewise.
    floors: Vec<(i64, Floor)>,
    counter: u32,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            hour: 0,
            timeline: 1,
            lsn: SEGMENT + 100,
            parents: BTreeMap::from([(1, Vec::new())]),
            moments: Vec::new(),
            stored: BTreeSet::from([(1, 1)]),
            unread: BTreeSet::new(),
            damaged: BTreeSet::new(),
            last_stored: BTreeMap::new(),
            backups: Vec::new(),
            running: Vec::new(),
            pins: Vec::new(),
            floor: None,
            grace: 0,
            marked: Vec::new(),
            floors: Vec::new(),
            counter: 0,
        }
    }

    /// An hour passes, with one commit at its end and `bytes` of WAL.
    pub(super) fn live(&mut self, bytes: u64) {
        let first = self.lsn / SEGMENT;
        self.lsn += bytes;
        self.hour += 1;
        for number in first..=self.lsn / SEGMENT {
            self.stored.insert((self.timeline, number));
        }
        self.last_stored.insert(self.timeline, self.hour);
        self.moments.push(Moment { timeline: self.timeline, lsn: self.lsn, hour: self.hour });
    }

    /// A backup of the present moment.
    pub(super) fn backup(&mut self) -> BackupId {
        self.backup_by(0)
    }

    /// A backup of the present moment, by a server whose clock is `ahead` by so many hours.
    pub(super) fn backup_by(&mut self, ahead: i64) -> BackupId {
        self.counter += 1;
        let (start_lsn, started_at) = (Lsn::new(self.lsn), at(self.hour + ahead));
        self.lsn += 2000;
        for number in start_lsn.get() / SEGMENT..=self.lsn / SEGMENT {
            self.stored.insert((self.timeline, number));
        }
        let id = BackupId::new(started_at, self.counter);
        let stop = started_at + SignedDuration::from_mins(20);
        self.backups.push(HeldBackup {
            id: id.clone(),
            timeline: tli(self.timeline),
            start_lsn,
            stop_lsn: Lsn::new(self.lsn),
            started_at,
            stop_time: stop,
            finished_at: stop,
            earliest: stop,
            unsound: None,
            unsure: false,
            corrupt: false,
            pinned: false,
        });
        id
    }

    /// The cluster is brought back to `to` and goes on from there.
    pub(super) fn fork(&mut self, to: Moment) {
        let mut parents = self.parents[&to.timeline].clone();
        parents.push((to.timeline, to.lsn));
        self.timeline = *self.parents.keys().last().unwrap() + 1;
        self.parents.insert(self.timeline, parents);
        self.lsn = to.lsn;
        self.stored.insert((self.timeline, self.lsn / SEGMENT));
        self.last_stored.insert(self.timeline, self.hour);
    }

    pub(super) fn name(&self, timeline: u32, number: u64) -> SegmentName {
        SegmentName::new(tli(timeline), SegmentNo::new(number), size())
    }

    /// The segment that is being written.
    pub(super) fn here(&self) -> SegmentName {
        self.name(self.timeline, self.lsn / SEGMENT)
    }

    /// The timeline whose bytes end a segment, on the route to `timeline`, up to `limit`.
    fn owner(&self, timeline: u32, number: u64, limit: u64) -> u32 {
        let last = ((number + 1) * SEGMENT).min(limit) - 1;
        self.parents[&timeline].iter().find(|(_, left)| last < *left).map_or(timeline, |(parent, _)| *parent)
    }

    fn is_on(&self, timeline: u32, backup: &HeldBackup) -> bool {
        let parents = &self.parents[&timeline];
        let own = backup.timeline.get() == timeline;
        own || parents.iter().any(|(p, left)| *p == backup.timeline.get() && backup.stop_lsn.get() <= *left)
    }

    /// Whether a moment can be restored, found out segment by segment.
    pub(super) fn restores(&self, moment: Moment) -> bool {
        self.backups.iter().any(|backup| self.way(backup, moment).is_some())
    }

    /// The segments that bring a backup to a moment, if all are stored.
    pub(super) fn way(&self, backup: &HeldBackup, moment: Moment) -> Option<Vec<(u32, u64)>> {
        // By position alone: whatever a clock said, what lies behind the stop can be reached.
        let leads = self.is_on(moment.timeline, backup) && backup.stop_lsn.get() <= moment.lsn;
        let needed = |number| (self.owner(moment.timeline, number, moment.lsn), number);
        let numbers = backup.start_lsn.get() / SEGMENT..=(moment.lsn - 1) / SEGMENT;
        let way: Vec<(u32, u64)> = numbers.map(needed).collect();
        (leads && way.iter().all(|segment| self.is_good(segment))).then_some(way)
    }

    fn is_good(&self, segment: &(u32, u64)) -> bool {
        self.stored.contains(segment) && !self.damaged.contains(segment)
    }

    /// Whether a backup can be made consistent, on its own timeline or on the way to another.
    pub(super) fn is_sound(&self, backup: &HeldBackup) -> bool {
        self.is_sound_with(backup, |segment| self.is_good(segment))
    }

    fn is_sound_with(&self, backup: &HeldBackup, good: impl Fn(&(u32, u64)) -> bool) -> bool {
        let numbers = || backup.start_lsn.get() / SEGMENT..=(backup.stop_lsn.get() - 1) / SEGMENT;
        let own = numbers().all(|number| good(&(backup.timeline.get(), number)));
        let by_way_of = |timeline: u32| {
            self.is_on(timeline, backup) && numbers().all(|n| good(&(self.owner(timeline, n, u64::MAX), n)))
        };
        own || self.parents.keys().any(|timeline| by_way_of(*timeline))
    }

    /// What a run of expire sees.
    pub(super) fn holdings(&self) -> Holdings {
        let (mut wal, mut unread) = (StoredWal::new(), StoredWal::new());
        for segment in &self.stored {
            let all = if self.unread.contains(segment) { &mut unread } else { &mut wal };
            all.entry(tli(segment.0)).or_default().add(segment.1, segment.1);
        }
        let histories = self.parents.iter().filter(|(_, parents)| !parents.is_empty());
        let history = |(timeline, parents): (&u32, &Vec<(u32, u64)>)| {
            let mut text = String::new();
            for (parent, left) in parents {
                writeln!(text, "{parent}\t{}\tpitr", Lsn::new(*left)).unwrap();
            }
            (tli(*timeline), TimelineHistory::parse(tli(*timeline), text.as_bytes()).unwrap())
        };
        let judged = |backup: &HeldBackup| {
            let known = self.is_sound_with(backup, |s| self.stored.contains(s) && !self.unread.contains(s));
            let perhaps = self.is_sound_with(backup, |s| self.stored.contains(s));
            let no_wal = (!known).then(|| "WAL is missing".to_owned());
            HeldBackup {
                unsound: no_wal.or_else(|| backup.corrupt.then(|| "its pages are corrupt".to_owned())),
                unsure: perhaps && !known && !backup.corrupt,
                ..backup.clone()
            }
        };
        Holdings {
            segment_size: size(),
            backups: self.backups.iter().map(judged).collect(),
            marked: self.marked.iter().filter(|(hour, _)| !self.is_old(*hour)).map(of_marked).collect(),
            running: self.running.clone(),
            pins: self.pins.clone(),
            failures: Vec::new(),
            histories: histories.map(history).collect(),
            wal,
            unread,
            last_stored: self.last_stored.iter().map(|(t, hour)| (tli(*t), at(*hour))).collect(),
            floor: self.floor.clone(),
            let_go: match self.grace {
                0 => LetGo::AtOnce,
                _ => match self.floors.iter().rposition(|(hour, _)| self.is_old(*hour)) {
                    Some(first) => {
                        LetGo::Below(self.floors[first..].iter().map(|(_, f)| f.clone()).collect())
                    }
                    None => LetGo::Nothing,
                },
            },
            superseded: false,
        }
    }

    fn is_old(&self, hour: i64) -> bool {
        self.hour - hour >= self.grace
    }

    /// Does what a plan says: marks, raises the floor, deletes what earlier runs marked and WAL that nobody holds.
    pub(super) fn perform(&mut self, plan: &Plan) {
        let (hour, grace, wal) = (self.hour, self.grace, self.holdings().all_wal());
        self.marked.retain(|(marked, _)| hour - marked < grace);
        let (goes, stays) =
            self.backups.drain(..).partition(|b| plan.go.iter().any(|going| going.id == b.id));
        self.backups = stays;
        self.marked.extend(Vec::into_iter(goes).map(|backup| (hour, backup)));
        if let Some(timelines) = plan.floor(self.floor.as_ref(), &wal) {
            let floor = Floor { nonce: Nonce::new([0; 16]), created: at(hour), timelines };
            self.floors.push((hour, floor.clone()));
            self.floor = Some(floor);
        }
        let Some(floor) = self.floor.as_ref().filter(|_| plan.frozen.is_none()) else { return };
        let marked = self.marked.iter().map(of_marked).collect();
        let needed = Holdings { marked, ..self.holdings() }.holds_with_backups();
        let stays = |t: u32, n: u64| {
            let name = SegmentName::new(tli(t), SegmentNo::new(n), size());
            floor.keeps(name) || needed.holds(name)
        };
        self.stored.retain(|(t, n)| stays(*t, *n));
    }
}

fn of_marked((_, backup): &(i64, HeldBackup)) -> Marked {
    Marked { timeline: backup.timeline, start_lsn: backup.start_lsn, stop_lsn: backup.stop_lsn }
}

pub(super) fn size() -> SegmentSize {
    SegmentSize::new(SEGMENT).unwrap()
}
