//! Random clusters: transactions with jittering clocks, crossing records, switches, drops, backups, forks, holes.
//!
//! Everything follows from one seed. The clock of a transaction lies up to 0.4 s behind the moment its record is written; now
//! and then the whole clock is set. What the generator makes is what servers do: a checkpoint lies between the first record
//! of a DROP DATABASE and its files' removal, children begin at record boundaries, backups end on the timeline they began on.

use std::collections::BTreeMap;

use super::model::{Model, Rec, size, tli};
use crate::wal::event::EventKind;
use crate::wal::lsn::Lsn;
use crate::wal::segment::{SegmentName, SegmentNo};
use crate::wal::time::PgTime;
use crate::wal::timeline::TimelineId;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(u64::try_from(from.len()).unwrap())).unwrap();
        &from[at]
    }

    pub fn micros(&mut self, below: i64) -> i64 {
        i64::try_from(self.below(u64::try_from(below).unwrap())).unwrap()
    }
}

/// Where the next record would have gone.
pub fn next_position(rec: &Rec) -> Lsn {
    match rec.kind {
        Some(EventKind::Switch) => SegmentNo::containing(rec.lsn, size()).end(size()),
        _ => rec.end.aligned(),
    }
}

pub struct Generated {
    pub model: Model,
    /// No clock was ever set.
    pub steady: bool,
}

struct Server<'a> {
    rng: &'a mut Rng,
    model: &'a mut Model,
    timeline: u32,
    now: i64,
    offset: i64,
    xid: u32,
    prepared: Vec<u32>,
    steady: bool,
    open: Option<(Lsn, PgTime)>,
    names: u32,
    written: &'a mut BTreeMap<(TimelineId, Lsn), i64>,
}

impl Server<'_> {
    fn clock(&self) -> PgTime {
        PgTime::from_raw(self.now + self.offset)
    }

    fn time(&mut self) -> PgTime {
        PgTime::from_raw(self.now + self.offset - self.rng.micros(400_000))
    }

    fn push(&mut self, len: u64, xid: u32, kind: Option<EventKind>) -> Rec {
        let rec = self.model.on(self.timeline).push(len, xid, kind);
        self.written.insert((tli(self.timeline), rec.lsn), self.now);
        rec
    }

    /// A record that must not cross: the rest of the segment is filled if there is no room.
    fn whole(&mut self, len: u64, xid: u32, kind: Option<EventKind>) -> Rec {
        if self.model.on(self.timeline).room() < len + 48 {
            self.model.on(self.timeline).fill(0);
        }
        self.push(len, xid, kind)
    }

    fn fresh(&mut self) -> u32 {
        self.xid += 1;
        self.xid
    }

    fn commit(&mut self, len: u64) {
        let (time, xid) = (self.time(), self.fresh());
        self.push(len, xid, Some(EventKind::Commit { time, prepared: false }));
    }

    fn checkpoint(&mut self, redo: Lsn) {
        let seconds = self.clock().raw().div_euclid(1_000_000) * 1_000_000;
        let kind = EventKind::Checkpoint {
            time: PgTime::from_raw(seconds),
            redo,
            shutdown: false,
            timeline: tli(self.timeline),
        };
        self.whole(114, 0, Some(kind));
    }

    fn plain(&mut self) {
        self.now += self.rng.micros(3_000_000);
        match self.rng.below(100) {
            0..40 => self.commit(40),
            40..48 => {
                let (time, xid) = (self.time(), self.fresh());
                self.push(40, xid, Some(EventKind::Abort { time, prepared: false }));
            }
            48..60 => {
                let xid = self.xid + 1;
                self.push(64, xid, None);
            }
            60..78 => {
                let len = 100_000 + self.rng.below(200_000);
                self.whole(len, 0, None);
            }
            _ => {
                let left = 8 * (1 + self.rng.below(4));
                let len = 40 + self.rng.below(150);
                self.model.on(self.timeline).fill(left);
                match self.rng.below(3) {
                    0 => drop(self.push(len, 0, None)),
                    _ => self.commit(len),
                }
            }
        }
    }

    fn drop_database(&mut self) {
        // Records of the next number may be lying about already, farther back than a drop begins.
        self.fresh();
        let xid = self.fresh();
        self.whole(60, xid, None);
        for _ in 0..self.rng.below(4) {
            self.plain();
        }
        let redo = self.whole(40, 0, None).lsn;
        for _ in 0..self.rng.below(2) {
            self.plain();
        }
        self.checkpoint(redo);
        for _ in 0..self.rng.below(3) {
            self.plain();
        }
        self.whole(60, xid, Some(EventKind::DatabaseDrop { databases: vec![16_384] }));
        for _ in 0..self.rng.below(2) {
            self.plain();
        }
        let time = self.time();
        if self.rng.chance(90) {
            self.push(40, xid, Some(EventKind::Commit { time, prepared: false }));
        }
    }

    fn backup(&mut self, id: &str) {
        match self.open.take() {
            None => {
                let started = self.clock();
                self.now += 1;
                let start = self.whole(48, 0, None).lsn;
                self.open = Some((start, started));
            }
            Some((start, started)) => {
                let ended = self.clock();
                if self.model.on(self.timeline).room() < 100 {
                    self.model.on(self.timeline).fill(0);
                }
                self.model.end_backup(id, self.timeline, start, started, ended);
            }
        }
    }

    fn act(&mut self, step: u64) {
        match self.rng.below(100) {
            0..4 => {
                let time = self.clock();
                self.names += 1;
                let name = format!("p{}", self.names / 2);
                self.whole(98, 0, Some(EventKind::RestorePoint { time, name }));
            }
            4..9 => {
                let redo = self.model.on(self.timeline).pos;
                self.plain();
                self.checkpoint(redo);
            }
            9..13 => {
                let (time, xid) = (self.time(), self.fresh());
                self.prepared.push(xid);
                self.whole(200, xid, Some(EventKind::Prepare { time }));
            }
            13..16 => {
                let time = self.time();
                if let Some(xid) = self.prepared.pop() {
                    self.whole(80, xid, Some(EventKind::Commit { time, prepared: true }));
                }
            }
            16..19 => {
                self.whole(24, 0, Some(EventKind::Switch));
            }
            19..22 => self.model.on(self.timeline).fill(0),
            22..24 => self.drop_database(),
            24..34 => self.backup(&format!("b{}-{step}", self.timeline)),
            34 if self.rng.chance(50) => {
                self.offset += self.rng.micros(60_000_000) - 45_000_000;
                self.steady = false;
            }
            _ => self.plain(),
        }
    }
}

/// A cluster and what of it is stored.
pub fn generate(seed: u64) -> Generated {
    let mut rng = Rng(seed);
    let mut model = Model::new();
    let mut written = BTreeMap::new();
    let (mut now, mut xid, mut steady) = (1_000_000_000_i64, 100_u32, true);
    let lines = 1 + rng.below(4);
    for timeline in 1..=u32::try_from(lines).unwrap() {
        if timeline > 1 {
            let known: Vec<u32> = model.timelines.keys().map(|id| id.get()).collect();
            let parent = *rng.pick(&known);
            let recs = model.on(parent).recs.clone();
            if recs.is_empty() {
                continue;
            }
            let tail = rng.chance(60);
            let late = recs.len().saturating_sub(8);
            let rec = if tail { rng.pick(&recs[late..]) } else { rng.pick(&recs) };
            model.fork(timeline, parent, next_position(rec));
            let forked = written.get(&(tli(parent), rec.lsn)).copied().unwrap_or(now);
            now = if rng.chance(50) { forked } else { now } + rng.micros(20_000_000);
        }
        let (actions, bare) = (5 + rng.below(60), rng.chance(10));
        let mut server = Server {
            rng: &mut rng,
            model: &mut model,
            timeline,
            now,
            offset: 0,
            xid,
            prepared: Vec::new(),
            steady: true,
            open: None,
            names: 0,
            written: &mut written,
        };
        if timeline > 1 && bare {
            continue;
        }
        if timeline > 1 {
            let time = server.clock();
            let kind =
                EventKind::EndOfRecovery { time, timeline: tli(timeline), previous: TimelineId::FIRST };
            server.whole(50, 0, Some(kind));
        }
        for step in 0..actions {
            server.act(step);
        }
        steady &= server.steady;
        xid = server.xid;
        now = now.max(server.now);
    }
    store(&mut rng, &mut model);
    Generated { model, steady }
}

/// Makes the stored copy of a segment end early, after some record.
fn cut(rng: &mut Rng, model: &mut Model, name: SegmentName) {
    let number = name.number(size()).unwrap();
    // A copy that ends with a switch is a whole one.
    let within = |rec: &&Rec| {
        let switch = rec.kind == Some(EventKind::Switch);
        SegmentNo::containing(rec.lsn, size()) == number && !rec.crosses() && !switch
    };
    let ends: Vec<Lsn> =
        model.route(name.timeline()).into_iter().filter(within).map(|rec| rec.end.aligned()).collect();
    if !ends.is_empty() {
        let end = *rng.pick(&ends);
        model.cuts.insert(name, end);
    }
}

fn store(rng: &mut Rng, model: &mut Model) {
    model.store_all();
    let timelines: Vec<TimelineId> = model.timelines.keys().copied().collect();
    for timeline in timelines {
        let segments: Vec<SegmentNo> = model.stored[&timeline].iter().copied().collect();
        for (index, segment) in segments.iter().enumerate() {
            let edge = index == 0 || index + 1 == segments.len();
            if rng.chance(if edge { 15 } else { 3 }) {
                model.lose(timeline.get(), segment.get());
            } else if rng.chance(3) {
                cut(rng, model, SegmentName::new(timeline, *segment, size()));
            }
        }
    }
    for index in 0..model.backups.len() {
        let backup = model.backups[index].clone();
        let inside = |rec: &&Rec| backup.start_lsn <= rec.lsn && rec.lsn < backup.stop_lsn;
        let times = |rec: &Rec| match rec.kind {
            Some(EventKind::Commit { time, .. }) => Some(time),
            _ => None,
        };
        let latest = model.route(backup.timeline).into_iter().filter(inside).filter_map(times).max();
        model.backups[index].latest_commit_inside = if rng.chance(50) { latest } else { None };
        model.backups[index].restorable = rng.chance(95);
        model.backups[index].corrupt = rng.chance(3);
    }
}
