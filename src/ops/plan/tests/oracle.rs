//! Random histories against brute force: what should happen is worked out from all records, without summaries or wants, and a
//! small simulation of PostgreSQL replays every plan from the segments it lists.
//!
//! Each case compares the whole answer: the stop, what is kept, the kind of refusal. A failure prints its seed.

use std::collections::BTreeMap;

use super::generate::{Generated, Rng, generate, next_position};
use super::model::{Model, Rec, size};
use super::{ask, ask_with};
use crate::ops::plan::*;
use crate::wal::event::EventKind;
use crate::wal::lsn::Lsn;
use crate::wal::segment::{SegmentName, SegmentNo};
use crate::wal::time::PgTime;
use crate::wal::timeline::{TimelineHistory, TimelineId};

const CASES: u64 = 250;
/// Rounds of fetching that any case may take: summaries, and then bodies here and there.
const ROUNDS: usize = 40;

/// What should be answered.
#[derive(Debug, PartialEq)]
enum Expect {
    Stop(Lsn),
    Immediate,
    EndOfWal,
    TooEarly,
    NotCovered,
    Gap,
    Stepped,
    HoldsLater,
    Branches,
    NotFound,
    /// No backup can be made consistent: which refusal says so does not matter.
    Unusable,
}

fn end_time(rec: &Rec) -> Option<PgTime> {
    rec.kind.as_ref().and_then(EventKind::stop_time)
}

fn commit_time(rec: &Rec) -> Option<PgTime> {
    end_time(rec).filter(|_| matches!(rec.kind, Some(EventKind::Commit { .. })))
}

fn is_stop(rec: &Rec) -> bool {
    end_time(rec).is_some() || matches!(rec.kind, Some(EventKind::Prepare { .. }))
}

/// The timeline a record of a route was written on.
fn writer(history: &TimelineHistory, rec: &Rec) -> TimelineId {
    history.owner(rec.lsn)
}

fn touched(rec: &Rec) -> Vec<SegmentNo> {
    let last = SegmentNo::ending_at(rec.end, size());
    (SegmentNo::containing(rec.lsn, size()).get()..=last.get()).map(SegmentNo::new).collect()
}

/// The records that can be replayed along a route from `from` on, and how that ends.
struct Replay<'a> {
    recs: Vec<&'a Rec>,
    /// Whole bytes are there up to here.
    stored_to: Lsn,
    gap: bool,
}

/// Whether a segment of that name would be asked for on the route, and is stored.
fn is_stored_on(model: &Model, history: &TimelineHistory, v: TimelineId, n: SegmentNo) -> bool {
    let (begin, end) = (history.begin(v).unwrap(), history.end(v).unwrap_or(Lsn::MAX));
    let asked = SegmentNo::containing(begin, size()) <= n && n <= SegmentNo::ending_at(end, size());
    asked && model.stored[&v].contains(&n)
}

/// Recovery takes the newest name that is stored, whatever that copy holds.
fn newest_stored(model: &Model, history: &TimelineHistory, n: SegmentNo) -> Option<TimelineId> {
    history.route().filter(|v| is_stored_on(model, history, *v, n)).max()
}

/// Whether recovery finds all of a record.
fn is_whole(model: &Model, history: &TimelineHistory, rec: &Rec) -> bool {
    let owner = writer(history, rec);
    touched(rec).into_iter().all(|n| {
        newest_stored(model, history, n).is_some_and(|v| {
            v >= owner && model.file_end(SegmentName::new(v, n, size())) >= rec.end.min(n.end(size()))
        })
    })
}

fn replay(model: &Model, timeline: TimelineId, from: Lsn) -> Replay<'_> {
    let history = &model.timelines[&timeline].history;
    let on_route = |v: &TimelineId, n: SegmentNo| is_stored_on(model, history, *v, n);
    let newest = |n: SegmentNo| newest_stored(model, history, n);
    let here = |rec: &&Rec| is_whole(model, history, rec);
    let mut stored_to = from;
    let mut damaged = false;
    let mut n = SegmentNo::containing(from, size());
    while let Some(v) = newest(n) {
        let limit = n.end(size()).min(history.end(v).unwrap_or(Lsn::MAX));
        let name = SegmentName::new(v, n, size());
        let facts = model.facts_of(name);
        let short = facts.end == crate::wal::scan::SegmentEnd::Short;
        stored_to = if short { facts.valid_to.aligned().min(limit) } else { limit };
        damaged = short && stored_to < limit && model.damaged().contains_key(&name);
        n = n.next();
        if limit < n.start(size()) || short {
            break;
        }
    }
    let listed_to = n.start(size()).min(history.begin(timeline).unwrap().max(stored_to));
    let later = history.route().any(|v| {
        let after = SegmentNo::containing(listed_to, size()).next().max(n);
        model.stored[&v].iter().any(|m| *m >= after && on_route(&v, *m))
    });
    let gap = later || damaged || stored_to < history.begin(timeline).unwrap();
    let route = model.route(timeline).into_iter();
    let recs: Vec<&Rec> = route.filter(|r| r.lsn >= from).take_while(here).collect();
    Replay { recs, stored_to, gap }
}

struct Setting<'a> {
    model: &'a Model,
    timeline: TimelineId,
    /// Restorable backups on the route, newest first, with what can be replayed from each; only consistent ones.
    usable: Vec<(&'a PlanBackup, Replay<'a>)>,
    any: bool,
}

fn on_route(backup: &PlanBackup, history: &TimelineHistory) -> bool {
    history.contains(backup.timeline)
        && history.begin(backup.timeline).unwrap() <= backup.start_lsn
        && history.end(backup.timeline).is_none_or(|end| backup.stop_lsn <= end)
}

fn setting(model: &Model) -> Option<Setting<'_>> {
    let good = |t: &TimelineId| {
        let history = &model.timelines[t].history;
        model.backups.iter().any(|b| b.restorable && !b.corrupt && on_route(b, history))
    };
    let timeline = model.timelines.keys().copied().filter(good).max()?;
    let history = &model.timelines[&timeline].history;
    let mut backups: Vec<&PlanBackup> =
        model.backups.iter().filter(|b| b.restorable && !b.corrupt && on_route(b, history)).collect();
    backups.sort_by_key(|b| std::cmp::Reverse(b.stop_lsn));
    let with = |b: &'_ PlanBackup| replay(model, timeline, b.start_lsn);
    let all: Vec<_> = backups.into_iter().map(|b| (b, with(b))).collect();
    let any = !all.is_empty();
    let consistent =
        |b: &PlanBackup, r: &Replay<'_>| r.recs.iter().any(|rec| rec.end.aligned() == b.stop_lsn);
    let usable = all.into_iter().filter(|(b, r)| consistent(b, r)).collect();
    Some(Setting { model, timeline, usable, any })
}

fn parting(a: &TimelineHistory, b: &TimelineHistory) -> Lsn {
    // The first position that the two routes give to different timelines.
    let forks = a.parents().iter().chain(b.parents()).map(|entry| entry.switch);
    forks.filter(|lsn| a.owner(*lsn) != b.owner(*lsn)).min().unwrap()
}

impl Setting<'_> {
    fn time(&self, time: PgTime) -> Expect {
        let fits = |b: &PlanBackup, r: &Replay<'_>| {
            let inside = r.recs.iter().filter(|rec| rec.lsn < b.stop_lsn).filter_map(|rec| end_time(rec));
            let about = self.before(b).filter(|max| max.micros_since(b.stop_time) <= 1_000_000);
            b.started_at <= time && inside.chain(about).max().is_none_or(|max| max <= time)
        };
        let young: Vec<_> = self.usable.iter().filter(|(b, r)| fits(b, r)).collect();
        let holds_later = |b: &PlanBackup| self.before(b).is_some_and(|max| max > time);
        let Some((backup, line)) = young.iter().find(|(b, _)| !holds_later(b)) else {
            return match (self.usable.is_empty(), young.is_empty()) {
                (true, _) => Expect::Unusable,
                (_, true) => Expect::TooEarly,
                _ => Expect::HoldsLater,
            };
        };
        let after: Vec<&Rec> = line.recs.iter().copied().filter(|r| r.lsn >= backup.stop_lsn).collect();
        let over = after.iter().position(|rec| end_time(rec).is_some_and(|t| t > time));
        if self.ambiguous(backup, line, over.map(|at| after[at]), time) {
            return Expect::Branches;
        }
        if over.is_none() && !self.covered(backup, line, time) {
            return if line.gap { Expect::Gap } else { Expect::NotCovered };
        }
        if let Some(at) = over {
            let mut highest = time;
            for rec in &after[at..] {
                let fell = |t: PgTime| t <= time && highest.micros_since(t) > 1_000_000;
                if commit_time(rec).is_some_and(fell) {
                    return Expect::Stepped;
                }
                highest = highest.max(end_time(rec).unwrap_or(highest));
            }
        }
        let before = over.map_or(Lsn::MAX, |at| after[at].lsn);
        self.moved(backup, line, before, Some(time))
    }

    /// The largest time of what ended before a backup, of the records that are stored whole in segments that follow each other up to it.
    fn before(&self, backup: &PlanBackup) -> Option<PgTime> {
        let route = self.model.route(self.timeline).into_iter();
        let earlier: Vec<&Rec> = route.filter(|rec| rec.lsn < backup.start_lsn).collect();
        let history = &self.model.timelines[&self.timeline].history;
        let mut first = SegmentNo::containing(backup.start_lsn, size());
        while first.get() > 0 && newest_stored(self.model, history, first.previous()).is_some() {
            first = first.previous();
        }
        let whole =
            |rec: &&&Rec| touched(rec).into_iter().all(|n| n >= first) && is_whole(self.model, history, rec);
        earlier.iter().filter(whole).filter_map(|rec| end_time(rec)).max()
    }

    fn covered(&self, backup: &PlanBackup, line: &Replay<'_>, time: PgTime) -> bool {
        let alive = |rec: &&&Rec| !matches!(rec.kind, Some(EventKind::Prepare { .. }));
        let mut times = line.recs.iter().filter(alive).filter_map(|rec| rec.kind.as_ref()?.time());
        let ended = |b: &PlanBackup| line.recs.iter().any(|rec| rec.end.aligned() == b.stop_lsn);
        let history = &self.model.timelines[&self.timeline].history;
        let mut backups =
            self.model.backups.iter().filter(|b| b.restorable && !b.corrupt && on_route(b, history));
        times.any(|t| t >= time)
            || backups.any(|b| b.stop_lsn >= backup.stop_lsn && b.stop_time >= time && ended(b))
    }

    fn ambiguous(&self, backup: &PlanBackup, line: &Replay<'_>, over: Option<&Rec>, time: PgTime) -> bool {
        let own = &self.model.timelines[&self.timeline].history;
        self.model.timelines.values().filter(|other| other.history.timeline() != self.timeline).any(|other| {
            let parted = parting(own, &other.history);
            if parted < backup.stop_lsn || over.is_some_and(|rec| rec.lsn < parted) {
                return false;
            }
            let past = |rec: &&&Rec| rec.lsn >= parted;
            let first = line.recs.iter().filter(past).find_map(|rec| rec.kind.as_ref()?.time());
            let other = replay(self.model, other.history.timeline(), parted);
            let mut kept = other.recs.iter().take_while(|rec| end_time(rec).is_none_or(|t| t <= time));
            first.is_none_or(|first| time < first) && kept.any(|rec| commit_time(rec).is_some())
        })
    }

    /// The last stop before `before`, moved before drops. Whatever was prepared after `until` is not there.
    fn moved(&self, backup: &PlanBackup, line: &Replay<'_>, before: Lsn, until: Option<PgTime>) -> Expect {
        let later = |r: &Rec| match r.kind {
            Some(EventKind::Prepare { time }) => until.is_some_and(|until| time > until),
            _ => false,
        };
        let last = |before: Lsn| {
            line.recs
                .iter()
                .rfind(|r| backup.stop_lsn <= r.lsn && r.lsn < before && is_stop(r) && !later(r))
                .map(|r| r.lsn)
        };
        let mut stop = last(before);
        loop {
            let Some(at) = stop else { return Expect::Immediate };
            let begun = |rec: &&&Rec| {
                let Some(EventKind::DatabaseDrop { .. }) = rec.kind else { return None };
                let ended =
                    line.recs.iter().any(|e| e.xid == rec.xid && e.lsn <= at && end_time(e).is_some());
                let first = line.recs.iter().find(|r| r.xid == rec.xid).map(|r| r.lsn);
                first.filter(|first| *first <= at && !ended)
            };
            match line.recs.iter().filter_map(|rec| begun(&rec)).min() {
                Some(first) if first >= backup.stop_lsn => stop = last(first),
                _ => return Expect::Stop(at),
            }
        }
    }

    fn lsn(&self, lsn: Lsn) -> Expect {
        // Inside a segment's long header: nothing ends there.
        let lsn = if lsn.get() % (1 << 20) <= 40 { lsn.page_start() } else { lsn };
        let Some((_, line)) = self.usable.iter().find(|(b, _)| b.stop_lsn <= lsn) else {
            return if self.usable.is_empty() { Expect::Unusable } else { Expect::TooEarly };
        };
        if lsn > line.stored_to {
            return if line.gap { Expect::Gap } else { Expect::NotCovered };
        }
        Expect::Stop(line.recs.iter().rfind(|rec| rec.end <= lsn).unwrap().lsn)
    }

    fn latest(&self) -> Expect {
        match self.usable.first() {
            None => Expect::Unusable,
            Some((_, line)) if line.gap => Expect::Gap,
            Some(_) => Expect::EndOfWal,
        }
    }

    /// The newest backup with a match before the next newer one, and the first match there.
    fn first(&self, matches: impl Fn(&Rec) -> bool) -> Result<(usize, Lsn), Expect> {
        let mut before = Lsn::MAX;
        for (index, (backup, line)) in self.usable.iter().enumerate() {
            let stretch = |r: &&&Rec| backup.stop_lsn <= r.lsn && r.lsn < before;
            if let Some(found) = line.recs.iter().filter(stretch).find(|rec| matches(rec)) {
                return Ok((index, found.lsn));
            }
            before = backup.stop_lsn;
        }
        Err(match self.usable.first() {
            None => Expect::Unusable,
            Some((_, line)) if line.gap => Expect::Gap,
            Some(_) => Expect::NotFound,
        })
    }

    fn expect(&self, target: &RecoveryTarget) -> Expect {
        let ends = |xid: u32| move |rec: &Rec| rec.xid == xid && end_time(rec).is_some();
        match target {
            RecoveryTarget::Latest => self.latest(),
            RecoveryTarget::Immediate => {
                if self.usable.is_empty() {
                    Expect::Unusable
                } else {
                    Expect::Immediate
                }
            }
            RecoveryTarget::Time(time) => self.time(*time),
            RecoveryTarget::Lsn(lsn) => self.lsn(*lsn),
            RecoveryTarget::Xid(xid) => {
                self.first(ends(*xid)).map_or_else(|e| e, |(_, lsn)| Expect::Stop(lsn))
            }
            RecoveryTarget::BeforeXid(xid) => match self.first(ends(*xid)) {
                Ok((index, lsn)) => self.moved(self.usable[index].0, &self.usable[index].1, lsn, None),
                Err(expect) => expect,
            },
            RecoveryTarget::Name(name) => {
                let named = |rec: &Rec| matches!(&rec.kind, Some(EventKind::RestorePoint { name: n, .. }) if n == name);
                self.first(named).map_or_else(|e| e, |(_, lsn)| Expect::Stop(lsn))
            }
        }
    }
}

fn said(answer: &Result<RecoveryPlan, Box<Refusal>>) -> Expect {
    match answer {
        Ok(plan) => match &plan.stop {
            Stop::Lsn(record) => Expect::Stop(record.lsn),
            Stop::Immediate { .. } => Expect::Immediate,
            Stop::EndOfWal { .. } => Expect::EndOfWal,
        },
        Err(refusal) => match **refusal {
            Refusal::TooEarly { .. } => Expect::TooEarly,
            Refusal::NotCovered { .. } => Expect::NotCovered,
            Refusal::Gap { before: Some(_), .. } => Expect::Gap,
            Refusal::ClockSteppedBack { .. } => Expect::Stepped,
            Refusal::HoldsLater { .. } => Expect::HoldsLater,
            Refusal::TwoBranches { .. } => Expect::Branches,
            Refusal::XidNotFound { .. } | Refusal::NameNotFound { .. } => Expect::NotFound,
            _ => Expect::Unusable,
        },
    }
}

/// What PostgreSQL does with a plan: replays the records of the listed segments, in order, until it stops.
fn postgres<'a>(model: &'a Model, plan: &RecoveryPlan) -> Vec<&'a Rec> {
    let backup = model.backups.iter().find(|b| b.id == plan.backup).unwrap();
    let history = &model.timelines[&plan.recovery_target_timeline].history;
    let mut expected = SegmentNo::containing(backup.start_lsn, size());
    for name in &plan.segments {
        assert_eq!(name.number(size()), Ok(expected), "segments follow each other");
        assert!(model.stored[&name.timeline()].contains(&expected), "{name} is stored");
        assert!(history.contains(name.timeline()), "{name} is on the route PostgreSQL is told");
        expected = expected.next();
    }
    let listed = |rec: &Rec, n: SegmentNo| {
        let here = |name: &&SegmentName| name.number(size()) == Ok(n);
        plan.segments.iter().find(here).is_some_and(|name| {
            name.timeline() >= writer(history, rec) && model.file_end(*name) >= rec.end.min(n.end(size()))
        })
    };
    let mut replayed = Vec::new();
    for rec in model.route(plan.recovery_target_timeline).into_iter().filter(|r| r.lsn >= backup.start_lsn) {
        let consistent = replayed.last().is_some_and(|last: &&Rec| next_position(last) >= backup.stop_lsn);
        if matches!(plan.stop, Stop::Immediate { .. }) && consistent {
            break;
        }
        if !touched(rec).into_iter().all(|n| listed(rec, n)) {
            break;
        }
        replayed.push(rec);
        if matches!(&plan.stop, Stop::Lsn(record) if rec.lsn >= record.lsn) {
            break;
        }
    }
    let last = replayed.last().unwrap();
    assert!(next_position(last) >= backup.stop_lsn, "consistent at the stop");
    if let Stop::Lsn(record) = &plan.stop {
        assert_eq!((last.lsn, last.end), (record.lsn, record.end), "PostgreSQL stops where the plan says");
        assert_eq!(
            plan.segments.last().unwrap().number(size()),
            Ok(SegmentNo::ending_at(record.end, size())),
            "not a segment more than needed"
        );
    }
    replayed
}

/// A plan keeps and loses what it says, and nothing younger than a target time.
fn check_plan(world: &Generated, target: &RecoveryTarget, plan: &RecoveryPlan) {
    let model = &world.model;
    let replayed = postgres(model, plan);
    let kept = replayed.iter().rfind(|rec| commit_time(rec).is_some()).map(|rec| rec.lsn);
    assert_eq!(plan.last_kept.map(|stamp| stamp.lsn), kept);
    let last = replayed.last().unwrap().lsn;
    let backup = model.backups.iter().find(|b| b.id == plan.backup).unwrap();
    if let RecoveryTarget::Time(time) = target {
        let young = |rec: &&&Rec| commit_time(rec).is_some_and(|t| t > *time);
        assert_eq!(replayed.iter().find(young).map(|rec| rec.lsn), None, "younger than the target");
        // Where the clock was set back, what is not stored any more cannot be asked.
        let before = model.route(backup.timeline).into_iter().filter(|rec| rec.lsn < backup.start_lsn);
        let young = |rec: &&Rec| commit_time(rec).is_some_and(|t| t > *time);
        assert!(
            !world.steady || before.into_iter().all(|rec| !young(&rec)),
            "younger, from before the backup"
        );
    }
    if let Some(lost) = plan.first_lost {
        assert!(lost.lsn > last);
        let timeline = setting(model).unwrap().timeline;
        let between = |rec: &&Rec| last < rec.lsn && rec.lsn < lost.lsn && commit_time(rec).is_some();
        assert!(!model.route(timeline).iter().any(between), "no commit between kept and lost");
    }
    for pair in plan.route.windows(2) {
        assert_eq!(pair[0].to, pair[1].from);
    }
    assert_eq!(plan.route.first().map(|step| step.from), Some(backup.start_lsn));
}

fn targets(rng: &mut Rng, model: &Model) -> Vec<RecoveryTarget> {
    let recs: Vec<&Rec> = model.timelines.values().flat_map(|t| &t.recs).collect();
    let mut targets = vec![RecoveryTarget::Latest, RecoveryTarget::Immediate];
    for _ in 0..6 {
        let rec = *rng.pick(&recs);
        let shift = *rng.pick(&[0, 0, 1, -1, 700_000, -700_000, 5_000_000, -5_000_000]);
        if let Some(time) = rec.kind.as_ref().and_then(EventKind::time) {
            targets.push(RecoveryTarget::Time(PgTime::from_raw(time.raw() + shift)));
        }
        let mut lsn =
            rng.pick(&[rec.lsn, rec.end, next_position(rec), Lsn::new(rec.end.get() + 3)]).to_owned();
        let first_page = lsn.get() % (1 << 20) < 8192;
        if !first_page && (1..=24).contains(&lsn.page_offset()) {
            // The model has no page headers, and such positions mean the page's start.
            lsn = lsn.page_start();
        }
        targets.push(RecoveryTarget::Lsn(lsn));
        targets.push(RecoveryTarget::Xid(rec.xid));
        targets.push(RecoveryTarget::BeforeXid(rec.xid));
    }
    targets.push(RecoveryTarget::Name(format!("p{}", rng.below(3))));
    targets.retain(|target| !matches!(target, RecoveryTarget::Xid(0) | RecoveryTarget::BeforeXid(0)));
    targets
}

/// Every summary and every body.
fn everything(model: &Model) -> Facts {
    let mut facts = Facts::default();
    for (timeline, segments) in &model.stored {
        for segment in segments {
            let name = SegmentName::new(*timeline, *segment, size());
            model.fetch(Want::Summary(name), &mut facts);
            model.fetch(Want::Events(name), &mut facts);
        }
    }
    facts
}

fn check(seed: u64) -> Vec<&'static str> {
    let world = generate(seed);
    let Some(setting) = setting(&world.model) else { return vec!["no backup"] };
    assert!(setting.any);
    let mut kinds = Vec::new();
    for target in targets(&mut Rng(seed ^ 0xABCD), &world.model) {
        let (answer, rounds) = ask(&world.model, &PlanRequest::new(target.clone()));
        let expected = setting.expect(&target);
        assert_eq!(said(&answer), expected, "{target:?} on {:?}: {answer:#?}", setting.timeline);
        assert!(rounds <= ROUNDS, "{target:?} took {rounds} rounds");
        if seed.is_multiple_of(4) {
            let (knowing, _) =
                ask_with(&world.model, &PlanRequest::new(target.clone()), everything(&world.model));
            assert_eq!(answer, knowing, "{target:?} is answered differently when more is known");
        }
        if let Ok(plan) = &answer {
            check_plan(&world, &target, plan);
        }
        kinds.push(match expected {
            Expect::Stop(_) => "stop",
            Expect::Immediate => "immediate",
            Expect::EndOfWal => "end",
            Expect::TooEarly => "too early",
            Expect::NotCovered => "not covered",
            Expect::Gap => "gap",
            Expect::Stepped => "stepped",
            Expect::HoldsLater => "holds later",
            Expect::Branches => "branches",
            Expect::NotFound => "not found",
            Expect::Unusable => "unusable",
        });
    }
    kinds
}

/// Runs seeds `from`, `from` + 1, …; how often each kind of answer was right.
fn run(from: u64, cases: u64) -> BTreeMap<&'static str, u64> {
    let mut seen = BTreeMap::new();
    for seed in from..from + cases {
        match std::panic::catch_unwind(|| check(seed)) {
            Ok(kinds) => kinds.into_iter().for_each(|kind| *seen.entry(kind).or_insert(0) += 1),
            Err(_) => panic!("seed {seed}"),
        }
    }
    seen
}

#[test]
fn plans_and_refusals_are_those_of_brute_force() {
    let seen = run(0, CASES);
    for kind in
        ["stop", "immediate", "end", "too early", "not covered", "gap", "stepped", "branches", "not found"]
    {
        assert!(seen.get(kind).is_some_and(|n| *n >= 5), "too few cases of {kind}: {seen:?}");
    }
}

#[test]
#[ignore = "minutes: for a change of the planner"]
fn plans_and_refusals_are_those_of_brute_force_many_times() {
    run(100_000, 3_000);
}
