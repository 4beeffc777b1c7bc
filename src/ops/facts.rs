//! What the planner knows: one repository's view of one cluster, and the facts it asks for.
//!
//! ```text
//!  listings, verdicts, histories, floor ─► World ─┐
//!                                                 ├─► planner ─► answer
//!  header + annex (one small GET), or a scan ─► Facts ◄── "I need these" ─┘
//! ```
//! The planner is pure and asks for what decides; [`Archive::resolve`] fetches that and asks again, until it has an answer. Used by
//! `restore` for plans and by `info` for windows. Invariants: a segment that is gone when it is fetched is taken out of the world,
//! so that the answer is that of an archive without it; every other failure ends the planning. Source of truth: `ops::plan`.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;

use crate::error::{Error, Kind, Result};
use crate::ops::plan::{
    self, Answer, Facts, PlanBackup, PlanRequest, RecordSpan, RecoveryPlan, Refusal, RefusalClass,
    SegmentFacts, Want, World,
};
use crate::repo::System;
use crate::repo::annex::kind;
use crate::repo::archive::{Fetched, SegmentInfo};
use crate::repo::catalog::{BackupState, Catalog, Run, runs, wal_complete};
use crate::repo::objects::{Backup, Checksums, Floor, Verdict};
use crate::repo::walobject::WalEnd;
use crate::wal::scan::{Keep, RecordInfo, Scanner, SegmentEnd};
use crate::wal::{
    Lsn, PgMajor, PgTime, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName,
};

/// Small reads in flight: they are all latency.
const SUMMARY_READERS: usize = 16;
/// Segments that are scanned at a time: each is held whole.
const BODY_READERS: usize = 2;
/// Rounds of asking. Each takes at least one fact nobody has; real plans need a handful.
const MAX_ROUNDS: usize = 10_000;

/// A repository's view of a cluster, listed.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Where it was read.
    pub system: System,
    /// Its backups.
    pub catalog: Catalog,
    /// What the planner sees.
    pub world: World,
    /// What was fetched so far.
    pub facts: Facts,
    /// Bytes of each segment in the store.
    pub stored_bytes: BTreeMap<SegmentName, u64>,
}

impl Archive {
    /// Lists everything a plan begins with: a few requests per timeline and one per backup.
    ///
    /// # Errors
    /// If one of the objects cannot be read: a plan without it could be another one.
    pub async fn read(system: &System) -> Result<Self> {
        let (catalog, timelines, floor) =
            (system.catalog().await?, system.timelines().await?, system.floor().await?);
        let size = system.identity().segment_size;
        let mut histories = BTreeMap::new();
        let mut stored: BTreeMap<TimelineId, BTreeSet<SegmentNo>> = BTreeMap::new();
        let mut stored_bytes = BTreeMap::new();
        let mut damaged = BTreeMap::new();
        for (timeline, found) in timelines {
            if found.history
                && let Some(history) = system.history(timeline).await?
            {
                histories.insert(timeline, history);
            }
            if found.first_wal.is_none() {
                continue;
            }
            for listed in system.segments(timeline).await? {
                let kept = floor.as_ref().is_none_or(|f| f.keeps(listed.name));
                if let Some(number) = listed.name.number(size).ok().filter(|_| kept) {
                    stored.entry(timeline).or_default().insert(number);
                    stored_bytes.insert(listed.name, listed.stored);
                    if listed.accepted
                        && let Some(end) = system.accepted_end(listed.name).await?
                    {
                        damaged.insert(listed.name, end);
                    }
                }
            }
        }
        let mut archive = Self::of(system, catalog, histories, stored, damaged, floor.as_ref());
        archive.stored_bytes = stored_bytes;
        Ok(archive)
    }

    /// The view that these listings make.
    pub(in crate::ops) fn of(
        system: &System,
        catalog: Catalog,
        histories: BTreeMap<TimelineId, TimelineHistory>,
        stored: BTreeMap<TimelineId, BTreeSet<SegmentNo>>,
        damaged: BTreeMap<SegmentName, Lsn>,
        floor: Option<&Floor>,
    ) -> Self {
        let size = system.identity().segment_size;
        let world = World {
            system_id: system.identity().system,
            segment_size: size,
            backups: backups(&catalog, &stored, &damaged, size),
            histories,
            stored,
            damaged,
            floor: floors(floor, size),
        };
        let (facts, stored_bytes) = (Facts::default(), BTreeMap::new());
        Self { system: system.clone(), catalog, world, facts, stored_bytes }
    }

    /// The verdict of a complete backup.
    pub fn backup(&self, id: &str) -> Option<&Backup> {
        self.catalog.complete().find(|b| b.id.as_str() == id)
    }

    /// Plans a recovery.
    ///
    /// # Errors
    /// Kind `Unreachable` or `NotFound` for a refusal, with what can be reached as the hint; else as the store answers.
    pub async fn plan(&mut self, request: &PlanRequest) -> Result<RecoveryPlan> {
        self.refuse_unreadable(request)?;
        let answer = self.answer(request).await?;
        answer.map(|plan| *plan).map_err(|refusal| self.with_unused(refused(&refusal)))
    }

    /// The planner's answer, a plan or a refusal.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn answer(&mut self, request: &PlanRequest) -> Result<Result<Box<RecoveryPlan>, Box<Refusal>>> {
        self.resolve(|world, facts| match plan::plan(request, world, facts) {
            Answer::Need(wants) => Err(wants),
            Answer::Plan(plan) => Ok(Ok(plan)),
            Answer::Refuse(refusal) => Ok(Err(refusal)),
        })
        .await
    }

    /// What a person should know of backups that cannot be read, or are used only by name.
    pub fn unused_warnings(&self) -> Vec<String> {
        let unreadable = self.catalog.unreadable();
        let unreadable = unreadable.map(|(id, what)| format!("backup {id} cannot be used: {what}"));
        let corrupt = self.world.backups.iter().filter(|backup| backup.restorable && backup.corrupt);
        let corrupt = corrupt.map(|backup| {
            let id = &backup.id;
            format!("backup {id} is passed over, since it holds damaged pages: `--backup {id}` takes it all the same")
        });
        unreadable.chain(corrupt).collect()
    }

    /// A backup that was asked for by name, and is damaged.
    fn refuse_unreadable(&self, request: &PlanRequest) -> Result<()> {
        let named = request.backup.as_deref().unwrap_or_default();
        match self.catalog.unreadable().find(|(id, _)| id.as_str() == named) {
            Some((id, what)) => Err(Error::corrupt(format!("backup {id} is unreadable: {what}"))
                .hint("leave --backup out to use another backup; another repository may hold a good copy of the object")),
            None => Ok(()),
        }
    }

    /// A backup that cannot be read, or is passed over, may be the one that would have reached the target.
    fn with_unused(&self, error: Error) -> Error {
        let warnings = self.unused_warnings();
        if warnings.is_empty() {
            return error;
        }
        let hint =
            error.advice().into_iter().map(str::to_owned).chain(warnings).collect::<Vec<_>>().join("\n");
        error.hint(hint)
    }

    /// Asks until there is an answer; what is needed for it is fetched in between.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn resolve<T>(&mut self, ask: impl Fn(&World, &Facts) -> Result<T, Vec<Want>>) -> Result<T> {
        self.resolve_around(ask, &mut |_, error| Err(error)).await
    }

    /// As [`Self::resolve`]; a segment that `damaged` takes note of is taken out of the world, as if it were not there.
    ///
    /// # Errors
    /// As the store answers, and what `damaged` returns.
    pub(in crate::ops) async fn resolve_around<T>(
        &mut self,
        ask: impl Fn(&World, &Facts) -> Result<T, Vec<Want>>,
        damaged: &mut dyn FnMut(SegmentName, Error) -> Result<()>,
    ) -> Result<T> {
        for _ in 0..MAX_ROUNDS {
            match ask(&self.world, &self.facts) {
                Ok(answer) => return Ok(answer),
                Err(wants) if wants.is_empty() => break,
                Err(wants) => self.fetch(wants, damaged).await?,
            }
        }
        Err(Error::failed("planning does not end").hint("this is a fault of pitr: please report it"))
    }

    async fn fetch(
        &mut self,
        wants: Vec<Want>,
        damaged: &mut dyn FnMut(SegmentName, Error) -> Result<()>,
    ) -> Result<()> {
        let mut bodies: BTreeMap<SegmentName, Vec<Want>> = BTreeMap::new();
        let mut summaries = Vec::new();
        for want in wants {
            match want {
                Want::Summary(name) => summaries.push(name),
                other => bodies.entry(other.segment()).or_default().push(other),
            }
        }
        let system = self.system.clone();
        let read = |name: SegmentName| {
            let system = system.clone();
            // Listed, and said not to be there: expired meanwhile, or one wrong answer, which would cost all that is reached over it.
            async move {
                match system.segment_info(name).await {
                    Ok(None) => (name, system.segment_info(name).await),
                    info => (name, info),
                }
            }
        };
        let mut infos = futures_util::stream::iter(summaries).map(read).buffer_unordered(SUMMARY_READERS);
        let mut gone = Vec::new();
        while let Some((name, info)) = infos.next().await {
            match info {
                Ok(Some(info)) => {
                    self.facts.summaries.insert(name, segment_facts(&info));
                }
                Ok(None) => gone.push(name),
                Err(error) => {
                    damaged(name, error.into())?;
                    gone.push(name);
                }
            }
        }
        let scan = |(name, wants): (SegmentName, Vec<Want>)| {
            let system = system.clone();
            async move { (name, learn(&system, name, wants).await) }
        };
        let mut scans = futures_util::stream::iter(bodies).map(scan).buffer_unordered(BODY_READERS);
        while let Some((name, learned)) = scans.next().await {
            match learned {
                Ok(Some(learned)) => learned.into_facts(&mut self.facts),
                Ok(None) => gone.push(name),
                Err(error) => {
                    damaged(name, error)?;
                    gone.push(name);
                }
            }
        }
        for name in gone {
            self.forget(name);
        }
        Ok(())
    }

    /// A segment that was listed and is gone.
    fn forget(&mut self, name: SegmentName) {
        self.stored_bytes.remove(&name);
        if let (Some(line), Ok(number)) =
            (self.world.stored.get_mut(&name.timeline()), name.number(self.world.segment_size))
        {
            line.remove(&number);
        }
    }
}

fn backups(
    catalog: &Catalog,
    stored: &BTreeMap<TimelineId, BTreeSet<SegmentNo>>,
    damaged: &BTreeMap<SegmentName, Lsn>,
    size: SegmentSize,
) -> Vec<PlanBackup> {
    let mut lines: BTreeMap<TimelineId, Vec<Run>> = BTreeMap::new();
    for (timeline, numbers) in stored {
        let names = numbers.iter().map(|number| SegmentName::new(*timeline, *number, size));
        lines.insert(*timeline, runs(names, size));
    }
    // Damage between its start and its stop: it never becomes consistent.
    let holed = |backup: &Backup| {
        let inside = |name: &SegmentName| {
            name.timeline() == backup.timeline
                && name.number(size).is_ok_and(|n| backup.start_lsn < n.end(size))
        };
        damaged.iter().any(|(name, end)| {
            inside(name)
                && name.number(size).is_ok_and(|n| n.start(size) < backup.stop_lsn)
                && *end < backup.stop_lsn
        })
    };
    let planned = |info: &crate::repo::catalog::BackupInfo| {
        let Some(Verdict::Complete(backup)) = &info.verdict else { return None };
        if info.state == BackupState::Garbage {
            return None;
        }
        let line = lines.get(&backup.timeline).map(Vec::as_slice).unwrap_or_default();
        let wal = wal_complete(line, backup.timeline, size, backup.start_lsn, backup.stop_lsn);
        Some(PlanBackup {
            id: backup.id.to_string(),
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            started_at: pg_time(backup.started_at),
            stop_time: pg_time(backup.stop_time),
            latest_commit_inside: backup.window_earliest.map(pg_time),
            restorable: info.state == BackupState::Complete && wal.is_ok() && !holed(backup),
            corrupt: backup.checksums == Checksums::Corrupt,
        })
    };
    catalog.backups.iter().filter_map(planned).collect()
}

fn pg_time(time: jiff::Timestamp) -> PgTime {
    PgTime::from_unix_micros(time.as_microsecond())
}

fn floors(floor: Option<&Floor>, size: SegmentSize) -> BTreeMap<TimelineId, SegmentNo> {
    let lines = floor.map(|f| f.timelines.as_slice()).unwrap_or_default();
    lines.iter().filter_map(|line| Some((line.timeline, line.first.number(size).ok()?))).collect()
}

/// What header and annex of a segment tell the planner. What nobody looked for is marked as such, never as "none".
pub fn segment_facts(info: &SegmentInfo) -> SegmentFacts {
    let annex = &info.annex;
    let span = annex.span;
    let last = span.and_then(|s| Some(RecordSpan { lsn: s.last_record?, end: s.last_record_end? }));
    let end = match info.header.valid.map(|v| v.end) {
        Some(WalEnd::Full) => SegmentEnd::Full,
        Some(WalEnd::Switch) => SegmentEnd::Switch,
        Some(WalEnd::Short | WalEnd::Damaged) | None => SegmentEnd::Short,
    };
    SegmentFacts {
        major: annex.writer.and_then(|w| PgMajor::from_number(u32::from(w.major))),
        decoded: annex.looked_for(kind::COMMITS),
        locked: info.locked,
        valid_to: info.header.valid.map(|v| v.to).or_else(|| info.header.segment_start()).unwrap_or_default(),
        end,
        head: annex.head.clone(),
        tail: annex.tail.clone(),
        last_record: last,
        commits: annex.commits.unwrap_or_default(),
        events: annex.events.clone(),
        events_complete: kind::LISTS.iter().all(|list| annex.complete(*list)),
    }
}

/// What a scan of one segment's body answered.
#[derive(Debug, Default)]
struct Learned {
    events: Option<(SegmentName, Vec<crate::wal::Event>)>,
    records: Vec<((SegmentName, Lsn), Option<RecordSpan>)>,
    first_of_xid: Vec<((SegmentName, u32), Option<Lsn>)>,
}

impl Learned {
    fn into_facts(self, facts: &mut Facts) {
        facts.events.extend(self.events);
        facts.records.extend(self.records);
        facts.first_of_xid.extend(self.first_of_xid);
    }
}

async fn learn(system: &System, name: SegmentName, wants: Vec<Want>) -> Result<Option<Learned>> {
    let fetched = system.fetch_wal(WalFileName::Segment(name)).await?;
    let Some(fetched) = fetched else { return Ok(None) };
    let size = system.identity().segment_size;
    // Decompressing and scanning take a processor for long: not on the reactor.
    let scanned = tokio::task::spawn_blocking(move || scan(&fetched, name, size, &wants)).await;
    scanned.map_err(|e| Error::failed(format!("the scan of {name} ended early")).source(e))?.map(Some)
}

fn scan(fetched: &Fetched, name: SegmentName, size: SegmentSize, wants: &[Want]) -> Result<Learned> {
    let events = wants.iter().any(|want| matches!(want, Want::Events(_)));
    let mut learned = Learned::default();
    for want in wants {
        match want {
            Want::RecordEndingBy(name, lsn) => learned.records.push(((*name, *lsn), None)),
            Want::FirstRecordOf(name, xid) => learned.first_of_xid.push(((*name, *xid), None)),
            Want::Summary(_) | Want::Events(_) => {}
        }
    }
    let unreadable = |e: crate::wal::scan::ScanError| Error::corrupt(format!("{name}: {e}")).source(e);
    let keep = if events { Keep::All } else { Keep::Summary };
    let mut scanner = Scanner::new(name, size, keep).map_err(unreadable)?;
    let mut failed = None;
    let mut observe = |record: &RecordInfo<'_>| {
        for ((_, by), found) in &mut learned.records {
            if record.end <= *by {
                *found = Some(RecordSpan { lsn: record.lsn, end: record.end });
            }
        }
        for ((_, xid), first) in &mut learned.first_of_xid {
            if record.header.xid == *xid {
                first.get_or_insert(record.lsn);
            }
        }
    };
    // What lies behind damage that was accepted is not looked at.
    let valid = fetched.header.valid.filter(|valid| valid.end == WalEnd::Damaged);
    let start = fetched.header.segment_start().unwrap_or_default();
    let mut left = valid.map_or(u64::MAX, |valid| valid.to.bytes_since(start));
    let opened = fetched.open(|bytes| {
        let (bytes, _) = bytes.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
        left = left.saturating_sub(crate::codec::len_u64(bytes));
        if failed.is_none() {
            failed = scanner.push_observed(bytes, &mut observe).err();
        }
    });
    opened?;
    let scan = match (failed, valid) {
        (Some(error), _) => return Err(unreadable(error)),
        // Nothing of it is good: no page says what it is.
        (None, Some(valid)) if valid.to == start => None,
        (None, Some(_)) => Some(scanner.finish_padded().map_err(unreadable)?),
        (None, None) => Some(scanner.finish().map_err(unreadable)?),
    };
    learned.events = events.then(|| (name, scan.map_or_else(Vec::new, |scan| scan.events)));
    Ok(learned)
}

/// A refusal as the program's error.
pub fn refused(refusal: &Refusal) -> Error {
    let kind = match refusal.class() {
        RefusalClass::Unreachable => Kind::Unreachable,
        RefusalClass::NotFound => Kind::NotFound,
        RefusalClass::Key => Kind::Key,
    };
    Error::new(kind, refusal.to_string()).hint(refusal.hint())
}
