//! The planner: whatever verdicts, histories and annexes say, it comes to an end, and its plan is one that a restore can follow.
//!
//! The input says what a repository holds, what is asked, and what each object answers when the planner asks for it. Sizes, positions and
//! times are mostly near each other, now and then at an end of their range. Records that cross segments get the CRC that they need, or
//! nothing behind it would be reached. Source of truth: `src/ops/plan`, RECOVERY.md.
#![no_main]

#[path = "plan/made.rs"]
mod made;

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use made::{BASES, Made, SEGMENTS, size};
use pitr::ops::plan::{
    Answer, Facts, MAX_WANTS, PlanBackup, PlanRequest, RecordSpan, RecoveryPlan, RecoveryTarget, Stop,
    TimelineChoice, Want, World, plan, window,
};
use pitr::wal::{Lsn, SegmentName, SegmentNo, SystemId, TimelineHistory, TimelineId};

/// Far more than there are facts: each round takes at least one.
const ROUNDS: usize = 2_000;

fuzz_target!(|data: &[u8]| {
    let mut made = Made::new(data);
    let world = world(&mut made);
    let request = request(&mut made, &world);
    let mut facts = Facts::default();
    let answer = until(|| {
        let answer = plan(&request, &world, &facts);
        if let Answer::Need(wants) = &answer {
            learn(&mut made, &world, &mut facts, wants);
        }
        (!matches!(answer, Answer::Need(_))).then_some(answer)
    });
    match answer {
        Answer::Plan(found) => judge(&request, &world, &found),
        Answer::Refuse(refusal) => assert!(!refusal.to_string().is_empty()),
        Answer::Need(_) => unreachable!("it was asked until it had an answer"),
    }
    let windows = until(|| match window(&world, &facts) {
        Ok(windows) => Some(windows),
        Err(wants) => {
            learn(&mut made, &world, &mut facts, &wants);
            None
        }
    });
    for span in windows.iter().flat_map(|window| &window.spans) {
        assert!(!span.backups.is_empty());
        assert!(span.backups.iter().all(|id| world.backups.iter().any(|b| b.id == *id && b.is_offered())));
    }
});

fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    (0..ROUNDS).find_map(|_| ask()).expect("it comes to an end")
}

fn world(made: &mut Made<'_>) -> World {
    let base = BASES[made.below(3)];
    made.first = base;
    let mut histories = BTreeMap::new();
    for number in 2..=3 {
        let timeline = TimelineId::new(number).expect("not 0");
        let parents = 1 + made.below(2);
        let lines: String =
            (1..=parents).map(|parent| format!("{parent}\t{}\tno reason\n", made.lsn())).collect();
        if let Ok(history) = TimelineHistory::parse(timeline, lines.as_bytes()) {
            histories.insert(timeline, history);
        }
    }
    let (mut stored, mut damaged, mut floor) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for number in 1..=3 {
        let timeline = TimelineId::new(number).expect("not 0");
        let holes = if made.flag() { 0 } else { made.number() };
        let numbers: BTreeSet<SegmentNo> =
            (0..SEGMENTS).filter(|i| holes >> i & 1 == 0).map(|i| SegmentNo::new(base + i)).collect();
        if made.below(8) == 0
            && let Some(number) = numbers.iter().nth(made.below(4))
        {
            let end = number.start(size()).saturating_add(made.number() % size().bytes());
            damaged.insert(SegmentName::new(timeline, *number, size()), end);
        }
        if made.below(8) == 0 {
            floor.insert(timeline, SegmentNo::new(base + made.below(4) as u64));
        }
        if made.below(8) != 0 || number == 1 {
            stored.insert(timeline, numbers);
        }
    }
    let backups = (0..1 + made.below(3)).map(|n| backup(made, n)).collect();
    World { system_id: SystemId::new(1), segment_size: size(), backups, histories, stored, damaged, floor }
}

/// Of verdicts nobody has checked that what they say goes together.
fn backup(made: &mut Made<'_>, number: usize) -> PlanBackup {
    let (start_lsn, started_at) = (made.lsn(), made.time());
    PlanBackup {
        id: format!("backup {number}"),
        timeline: made.timeline(),
        start_lsn,
        stop_lsn: if made.below(8) == 0 {
            made.lsn()
        } else {
            start_lsn.saturating_add(made.number() % (3 << 20))
        },
        started_at,
        stop_time: made.time(),
        latest_commit_inside: made.flag().then(|| made.time()),
        restorable: made.below(8) != 0,
        corrupt: made.below(8) == 0,
    }
}

fn request(made: &mut Made<'_>, world: &World) -> PlanRequest {
    let target = match made.below(8) {
        0 => RecoveryTarget::Latest,
        1 => RecoveryTarget::Immediate,
        2 => RecoveryTarget::Lsn(made.lsn()),
        3 => RecoveryTarget::Xid(made.xid()),
        4 => RecoveryTarget::BeforeXid(made.xid()),
        5 => RecoveryTarget::Name(made.name()),
        _ => RecoveryTarget::Time(made.time()),
    };
    let timeline = match made.below(6) {
        0 => Some(TimelineChoice::Latest),
        1 => Some(TimelineChoice::Number(made.timeline())),
        _ => None,
    };
    let backup = (made.below(6) == 0).then(|| world.backups[0].id.clone());
    PlanRequest { target, timeline, backup, now: made.flag().then(|| made.time()) }
}

/// Answers what was asked for, and holds against the planner what it may ask.
fn learn(made: &mut Made<'_>, world: &World, facts: &mut Facts, wants: &[Want]) {
    assert!(!wants.is_empty() && wants.len() <= MAX_WANTS);
    for want in wants {
        let name = want.segment();
        let number = name.number(size()).expect("a segment");
        assert!(world.stored.get(&name.timeline()).is_some_and(|line| line.contains(&number)), "{want:?}");
        let new = match *want {
            Want::Summary(name) => facts.summaries.insert(name, made.summary(name)).is_none(),
            Want::Events(name) => facts.events.insert(name, made.scanned(name)).is_none(),
            Want::RecordEndingBy(name, by) => {
                let record = made.record(name).filter(|record| record.end <= by);
                facts.records.insert((name, by), record).is_none()
            }
            Want::FirstRecordOf(name, xid) => {
                let first = made.record(name).map(|RecordSpan { lsn, .. }| lsn);
                facts.first_of_xid.insert((name, xid), first).is_none()
            }
        };
        assert!(new, "{want:?} was known");
    }
}

/// What is true of every plan, whoever wrote what it rests on.
fn judge(request: &PlanRequest, world: &World, plan: &RecoveryPlan) {
    let backup = world.backups.iter().find(|b| b.id == plan.backup).expect("it is one of those there are");
    assert!(backup.restorable && (request.backup.is_some() || !backup.corrupt), "{plan:?}");
    let numbers: Vec<u64> =
        plan.segments.iter().map(|s| s.number(size()).expect("a segment").get()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a hole: {plan:?}");
    for name in &plan.segments {
        let number = name.number(size()).expect("a segment");
        assert!(world.stored[&name.timeline()].contains(&number), "{name} is not stored");
    }
    assert!(plan.segments.windows(2).all(|pair| pair[0].timeline() <= pair[1].timeline()), "{plan:?}");
    let first = SegmentNo::containing(backup.start_lsn, size()).get();
    assert_eq!(numbers.first(), Some(&first), "{plan:?}");
    let end = plan.stop.end();
    assert!(numbers.last().is_some_and(|last| end <= SegmentNo::new(*last).end(size())), "{plan:?}");
    // Below it PostgreSQL would refuse to open, or worse.
    assert!(end >= backup.stop_lsn, "{plan:?}");
    if let Stop::Lsn(record) = &plan.stop {
        assert!(record.lsn < record.end, "{plan:?}");
        let below = |limit: Lsn| record.end <= limit;
        assert!(!matches!(request.target, RecoveryTarget::Lsn(limit) if !below(limit)), "{plan:?}");
    }
}
