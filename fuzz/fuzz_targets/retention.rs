//! What may go: whatever verdicts, floors, pins and the policy say, the decision is made, and nothing goes that somebody holds.
//!
//! The input says what a folder holds: dates of any year, positions of any kind, floors and pins that name what is not there.
//! Source of truth: `src/repo/retention`, REPOSITORY.md 4.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use libfuzzer_sys::arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use pitr::repo::objects::{Floor, KeptRange, Nonce, TimelineFloor};
use pitr::repo::path::BackupId;
use pitr::repo::retention::{
    Failure, HeldBackup, Holdings, LetGo, Marked, Plan, Policy, Spans, StoredWal, above, plan,
};
use pitr::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

/// 2025-10-17.
const NOW: i64 = 1_760_700_000;
/// Segments that there may be of a timeline.
const SEGMENTS: u64 = 40;

fuzz_target!(|data: &[u8]| {
    let mut made = Made(Unstructured::new(data));
    let (policy, mut holdings, now) = (made.policy(), made.holdings(), made.time());
    let zone = TimeZone::get(if made.flag() { "America/New_York" } else { "Asia/Jakarta" }).expect("a zone");
    let found = plan(&policy, &holdings, now, &zone);
    judge(&holdings, &found);
    // The next run sees the floor of this one; what it holds then it held before.
    let wal = holdings.all_wal();
    if let Some(lines) = found.floor(holdings.floor.as_ref(), &wal) {
        let before = holdings.kept_wal();
        holdings.floor = Some(Floor { nonce: NONCE, created: now, timelines: lines });
        let after = holdings.kept_wal();
        assert!(after.iter().all(|(timeline, spans)| {
            let old = before.get(timeline);
            let unbroken = |first| old.is_some_and(|old| old.contains(first));
            spans.iter().all(|(first, last)| unbroken(first) && unbroken(last))
        }));
        judge(&holdings, &plan(&policy, &holdings, now, &zone));
    }
});

const NONCE: Nonce = Nonce::new([7; 16]);

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("one MiB")
}

fn judge(holdings: &Holdings, plan: &Plan) {
    let going: BTreeSet<&BackupId> = plan.go.iter().map(|going| &going.id).collect();
    let all: BTreeSet<&BackupId> = holdings.backups.iter().map(|b| &b.id).collect();
    assert!(plan.keep.keys().all(|id| all.contains(id) && !going.contains(id)));
    assert_eq!(plan.keep.len() + going.len(), all.len());
    for backup in &holdings.backups {
        assert!(!backup.pinned || plan.keep.contains_key(&backup.id), "pinned, and goes: {backup:?}");
    }
    let sound = holdings.backups.iter().filter(|b| b.unsound.is_none());
    if let Some(newest) = sound.max_by_key(|b| (b.stop_time, &b.id)) {
        assert!(plan.keep.contains_key(&newest.id), "the newest sound one goes");
        assert!(plan.keeps_a_sound_one());
    }
    if plan.frozen.is_some() {
        assert!(
            plan.floor(holdings.floor.as_ref(), &holdings.all_wal()).is_none(),
            "it is frozen, and lets WAL go"
        );
        // But for copies of the same damage.
        assert!(plan.go.iter().all(|g| holdings.backups.iter().any(|b| b.id == g.id && b.corrupt)));
    }
    for name in holdings.pins.iter().chain(&holdings.running) {
        assert!(plan.holds.holds(*name), "{name} is not held");
    }
    // What is kept now and held stays in the floor.
    let wal = holdings.all_wal();
    if let Some(lines) = plan.floor(holdings.floor.as_ref(), &wal) {
        let now = holdings.floor.as_ref().map_or(wal.clone(), |floor| above(&floor.timelines, &wal, size()));
        let then = above(&lines, &wal, size());
        for (timeline, spans) in &now {
            for (first, last) in spans.iter() {
                for number in [first, last, first.midpoint(last)] {
                    let name = SegmentName::new(*timeline, SegmentNo::new(number), size());
                    let stays = then.get(timeline).is_some_and(|spans| spans.contains(number));
                    assert!(stays || !plan.holds.holds(name), "{name} is held, and goes");
                }
            }
        }
    }
}

/// What is left of the input; when it is used up, everything is zero.
struct Made<'a>(Unstructured<'a>);

impl Made<'_> {
    fn number(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    fn below(&mut self, n: u8) -> u64 {
        u64::from(self.0.arbitrary::<u8>().unwrap_or(0) % n)
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn timeline(&mut self) -> TimelineId {
        TimelineId::new(1 + self.below(3) as u32).expect("not 0")
    }

    fn time(&mut self) -> Timestamp {
        match self.below(16) {
            0 => Timestamp::MIN,
            1 => Timestamp::MAX,
            2 => Timestamp::from_second(self.number() as i64 % 100_000_000_000)
                .unwrap_or(Timestamp::UNIX_EPOCH),
            // Half a year around the present, by hours.
            _ => {
                let hours = i64::from(self.0.arbitrary::<u16>().unwrap_or(0) % 4380) - 3000;
                Timestamp::from_second(NOW + hours * 3600).expect("in range")
            }
        }
    }

    fn duration(&mut self) -> Duration {
        match self.below(8) {
            0 => Duration::from_secs(self.number()),
            1 | 2 => Duration::ZERO,
            _ => Duration::from_secs(self.below(60) * 86_400),
        }
    }

    fn policy(&mut self) -> Policy {
        Policy {
            window: self.duration(),
            daily: self.duration(),
            weekly: self.duration(),
            monthly: self.duration(),
            yearly: self.duration(),
            grace: self.duration(),
        }
    }

    fn lsn(&mut self) -> Lsn {
        let number = self.number();
        Lsn::new(if self.below(16) == 1 { number } else { number % (SEGMENTS << 20) })
    }

    fn segment(&mut self) -> SegmentName {
        let (timeline, number) = (self.timeline(), self.lsn());
        SegmentName::new(timeline, SegmentNo::containing(number, size()), size())
    }

    fn wal(&mut self) -> StoredWal {
        let mut wal = BTreeMap::new();
        for _ in 0..self.below(4) {
            let timeline = self.timeline();
            let holes = if self.flag() { 0 } else { self.number() };
            let spans: Spans = (0..SEGMENTS).filter(|i| holes >> i & 1 == 0).collect();
            wal.insert(timeline, spans);
        }
        wal
    }

    fn floor(&mut self) -> Floor {
        let mut timelines = Vec::new();
        for _ in 0..self.below(4) {
            let keep = (0..self.below(3)).map(|_| KeptRange { first: self.segment(), last: self.segment() });
            let keep = keep.collect();
            let first = self.segment();
            timelines.push(TimelineFloor { timeline: first.timeline(), first, keep });
        }
        // As a writer makes it: one for each timeline.
        timelines.sort_by_key(|line: &TimelineFloor| line.timeline);
        timelines.dedup_by_key(|line: &mut TimelineFloor| line.timeline);
        Floor { nonce: NONCE, created: self.time(), timelines }
    }

    fn backup(&mut self, number: u64) -> HeldBackup {
        let start_lsn = self.lsn();
        let corrupt = self.below(8) == 1;
        let unsound = corrupt || self.below(4) == 1;
        HeldBackup {
            id: id(number),
            timeline: self.timeline(),
            start_lsn,
            stop_lsn: if self.below(8) == 1 {
                self.lsn()
            } else {
                start_lsn.saturating_add(self.number() % (3 << 20))
            },
            started_at: self.time(),
            stop_time: self.time(),
            finished_at: self.time(),
            earliest: self.time(),
            unsound: unsound.then(|| "it is not whole".to_owned()),
            unsure: unsound && !corrupt && self.flag(),
            corrupt,
            pinned: self.below(8) == 1,
        }
    }

    fn holdings(&mut self) -> Holdings {
        let mut histories = BTreeMap::new();
        for number in 2..=3 {
            let timeline = TimelineId::new(number).expect("not 0");
            let parents = 1 + self.below(2);
            let lines: String =
                (1..=parents).map(|parent| format!("{parent}\t{}\tno reason\n", self.lsn())).collect();
            if let Ok(history) = TimelineHistory::parse(timeline, lines.as_bytes()) {
                histories.insert(timeline, history);
            }
        }
        let failure =
            |made: &mut Self, n| Failure { id: id(100 + n), began: made.time(), what: String::new() };
        let marked = |made: &mut Self| Marked {
            timeline: made.timeline(),
            start_lsn: made.lsn(),
            stop_lsn: made.lsn(),
        };
        Holdings {
            segment_size: size(),
            backups: (0..self.below(6)).map(|n| self.backup(n)).collect(),
            marked: (0..self.below(3)).map(|_| marked(self)).collect(),
            running: (0..self.below(3)).map(|_| self.segment()).collect(),
            pins: (0..self.below(3)).map(|_| self.segment()).collect(),
            failures: (0..self.below(3)).map(|n| failure(self, n)).collect(),
            histories,
            wal: self.wal(),
            unread: self.wal(),
            last_stored: (0..self.below(4)).map(|_| (self.timeline(), self.time())).collect(),
            floor: self.flag().then(|| self.floor()),
            let_go: match self.below(3) {
                0 => LetGo::AtOnce,
                1 => LetGo::Nothing,
                _ => LetGo::Below((0..self.below(3)).map(|_| self.floor()).collect()),
            },
            superseded: self.flag(),
        }
    }
}

fn id(number: u64) -> BackupId {
    format!("20251017-103000-{number:08x}").parse().expect("a name")
}
