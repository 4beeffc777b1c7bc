//! WAL: every object is what it was when it was archived, and every record follows the one before it.
//!
//! ```text
//!  listing ─► segments in order ─► body: header, digest, tag, annex (--decode: every record) ─┬─► chain with the one before
//!                                  `jobs` at a time, results in order                         └─► ends early though more follows?
//! ```
//! A segment that is not read today ends the chain; one that is read after it takes the annex of the one before, which is a small
//! ranged read. What is bad is left out of the [`Line`], so that all that follows is said of an archive without it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt as _;

use super::chain::Chain;
use super::continuity::{Ground, Missing, Place};
use super::documents::is_live;
use super::finding::{Fault, Subject};
use super::folder::Look;
use super::{Leftover, twice};
use crate::error::{Error, Result};
use crate::repo::annex::Annex;
use crate::repo::archive::Fetched;
use crate::repo::catalog::{BackupInfo, Catalog};
use crate::repo::objects::Verdict;
use crate::repo::path::{BackupId, SystemObject};
use crate::repo::walobject::{WalEnd, WalHeader};
use crate::repo::{RepoError, System};
use crate::seal::Epoch;
use crate::wal::scan::{Keep, ScanError, Scanner};
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};

pub(super) type Histories = BTreeMap<TimelineId, TimelineHistory>;
pub(super) type Numbers = BTreeMap<TimelineId, BTreeSet<SegmentNo>>;

/// The WAL that recovery could use.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Segments that are there, whole, and follow each other.
    pub(super) good: Numbers,
    /// Segments that an operator accepted as damaged, and where their valid WAL ends.
    pub(super) accepted: BTreeMap<SegmentName, Lsn>,
    /// The backups that were looked at, and where they lie.
    pub(super) backups: Vec<(BackupId, Place)>,
}

/// Reads every history that is needed.
pub(super) async fn histories(look: &mut Look<'_>, catalog: &Catalog) -> Result<Histories> {
    let mut wanted: BTreeSet<TimelineId> = BTreeSet::new();
    for (_, place) in places(look, catalog) {
        wanted.insert(place.timeline);
    }
    if look.request.backup.is_none() {
        let segments = look.listed.keys().filter_map(segment_of);
        wanted.extend(segments.filter(|(name, _)| keeps(look, *name)).map(|(name, _)| name.timeline()));
        wanted.extend(look.listed.keys().filter_map(|object| match object {
            SystemObject::Wal(WalFileName::History(timeline), _) => Some(*timeline),
            _ => None,
        }));
    }
    let mut histories = Histories::new();
    for timeline in wanted.into_iter().filter(|timeline| *timeline != TimelineId::FIRST) {
        let object = SystemObject::Wal(WalFileName::History(timeline), 1);
        let key = look.system.keys().key(&object);
        let Some(size) = look.listed.get(&object).copied() else {
            let what = format!("without it nothing of timeline {timeline} can be used");
            look.folder.findings.add(Fault::Missing, key, what, Subject::History(timeline));
            continue;
        };
        let lacks =
            look.system.seal_key().is_some() && !look.listed.contains_key(&SystemObject::Ancestry(timeline));
        if lacks && !note_ancestry(look, timeline).await? {
            continue;
        }
        match twice(|| look.system.history(timeline)).await {
            Ok(Some(history)) => {
                look.seen(size);
                histories.insert(timeline, history);
            }
            Ok(None) => look.gone(&object, Subject::History(timeline)).await?,
            Err(e) if e.is_hidden() => look.gone(&object, Subject::History(timeline)).await?,
            Err(e) if e.is_damage() => {
                look.folder.findings.add(Fault::Damaged, key, e.to_string(), Subject::History(timeline));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(histories)
}

/// The parents of a timeline, which a sealed folder keeps in clear beside its history, are gone. Whoever opens the history reads them there;
/// false for all others.
async fn note_ancestry(look: &mut Look<'_>, timeline: TimelineId) -> Result<bool> {
    let opens = match look.system.fetch_to_check(WalFileName::History(timeline), 1).await {
        Ok(fetched) => fetched.is_none_or(|fetched| fetched.can_open()),
        // Damage of the history is told where it is read.
        Err(e) if e.is_damage() || e.is_hidden() => true,
        Err(e) => return Err(e.into()),
    };
    let subject = if opens { Subject::Aside } else { Subject::History(timeline) };
    let what = format!(
        "without it nobody without a key knows the parents of timeline {timeline}: archive-push of its history puts it again"
    );
    let key = look.system.keys().key(&SystemObject::Ancestry(timeline));
    look.folder.findings.add(Fault::Missing, key, what, subject);
    Ok(opens)
}

fn segment_of(object: &SystemObject) -> Option<(SegmentName, u32)> {
    match object {
        SystemObject::Wal(WalFileName::Segment(name), copy) => Some((*name, *copy)),
        _ => None,
    }
}

fn keeps(look: &Look<'_>, name: SegmentName) -> bool {
    look.floor.as_ref().is_none_or(|floor| floor.keeps(name))
}

/// Where the backups lie that were looked at.
fn places(look: &Look<'_>, catalog: &Catalog) -> Vec<(BackupId, Place)> {
    let place = |info: &BackupInfo| match &info.verdict {
        Some(Verdict::Complete(verdict)) if is_live(&info.state) && look.asked_for(&info.id) => {
            let (timeline, start, stop) = (verdict.timeline, verdict.start_lsn, verdict.stop_lsn);
            Some((info.id.clone(), Place { timeline, start, stop }))
        }
        _ => None,
    };
    catalog.backups.iter().filter_map(place).collect()
}

/// One segment, with its copies and their sizes.
#[derive(Debug, Clone)]
struct Segment {
    name: SegmentName,
    number: SegmentNo,
    copies: Vec<(u32, u64)>,
    due: bool,
}

/// What reading a segment came to.
enum Outcome {
    NotDue,
    Gone(SystemObject),
    /// A later copy is listed, the first one is not: nobody finds it.
    Headless(SystemObject),
    Bad(SystemObject, RepoError),
    /// The longest copy.
    Good(Box<Copy>),
}

/// A copy that is what was stored.
struct Copy {
    header: WalHeader,
    annex: Annex,
    /// It was looked into.
    opened: bool,
}

/// Checks all WAL that is kept.
pub(super) async fn check(look: &mut Look<'_>, catalog: &Catalog, histories: &Histories) -> Result<Line> {
    let mut line = Line { backups: places(look, catalog), ..Line::default() };
    let segments = segments(look, &line);
    for segment in &segments {
        line.good.entry(segment.name.timeline()).or_default().insert(segment.number);
    }
    // What is missing is asked of the listing: a damaged segment is reported as itself.
    let missing = missing(look, &line, histories);
    check_segments(look, segments, histories, &mut line).await?;
    for gap in missing {
        report_gap(look, gap);
    }
    if look.request.backup.is_none() {
        check_others(look).await?;
    }
    Ok(line)
}

/// The segments to look at, in order; those that the floor gave up are left over.
fn segments(look: &mut Look<'_>, line: &Line) -> Vec<Segment> {
    let size = look.system.identity().segment_size;
    let mut found: Vec<Segment> = Vec::new();
    let mut expired = Leftover {
        of: "WAL".to_owned(),
        why: "below the floor, to be deleted by expire",
        objects: 0,
        bytes: 0,
    };
    for (object, bytes) in look.listed {
        let Some((name, copy)) = segment_of(object) else { continue };
        let Ok(number) = name.number(size) else { continue };
        let needed = line.backups.iter().any(|(_, place)| {
            let (first, last) = place.segments(size);
            place.timeline == name.timeline() && (first..=last).contains(&number)
        });
        if look.request.backup.is_some() && !needed {
            continue;
        }
        if !keeps(look, name) {
            expired.objects += 1;
            expired.bytes = expired.bytes.saturating_add(*bytes);
            continue;
        }
        match found.last_mut().filter(|last| last.name == name) {
            Some(last) => last.copies.push((copy, *bytes)),
            None => {
                let due = look.request.sample.takes(&look.system.keys().wal(WalFileName::Segment(name)));
                found.push(Segment { name, number, copies: vec![(copy, *bytes)], due });
            }
        }
    }
    if expired.objects > 0 && look.request.backup.is_none() {
        look.folder.leftovers.push(expired);
    }
    found
}

async fn check_segments(
    look: &mut Look<'_>,
    segments: Vec<Segment>,
    histories: &Histories,
    line: &mut Line,
) -> Result<()> {
    let (system, decode, jobs) = (look.system.clone(), look.request.decode, look.request.jobs.max(1));
    let budget = Arc::clone(&look.budget);
    let read = |segment: Segment| {
        let (system, budget) = (&system, &budget);
        async move {
            let outcome = read_segment(system, budget, &segment, decode).await;
            outcome.map(|outcome| (segment, outcome))
        }
    };
    let mut reads = std::pin::pin!(futures_util::stream::iter(segments).map(read).buffered(jobs));
    let mut walk = Walk { histories, line, chain: Chain::default(), last: None, lost: BTreeMap::new() };
    while let Some(done) = reads.next().await {
        let (segment, outcome) = done?;
        walk.take(look, &segment, outcome).await?;
    }
    for ((timeline, epoch), (first, last)) in walk.lost {
        let key = look.system.keys().key(&SystemObject::Wrap(epoch, 1));
        let what = format!("without a wrap of epoch {epoch} nobody can read what it sealed");
        look.folder.findings.add(Fault::Missing, key, what, wal_subject(timeline, first, last));
    }
    Ok(())
}

/// The walk along all segments, in order.
struct Walk<'a> {
    histories: &'a Histories,
    line: &'a mut Line,
    chain: Chain,
    /// The segment that the chain ends with.
    last: Option<(TimelineId, SegmentNo)>,
    /// Segments of epochs without wraps: the first and the last of each.
    lost: BTreeMap<(TimelineId, Epoch), (SegmentNo, SegmentNo)>,
}

impl Walk<'_> {
    async fn take(&mut self, look: &mut Look<'_>, segment: &Segment, outcome: Outcome) -> Result<()> {
        let bytes: u64 = segment.copies.iter().map(|(_, size)| size).sum();
        match outcome {
            Outcome::NotDue => self.last = None,
            Outcome::Gone(object) => {
                look.passed(bytes);
                self.leave_out(segment.name.timeline(), segment.number);
                look.gone(&object, wal_subject(segment.name.timeline(), segment.number, segment.number))
                    .await?;
            }
            Outcome::Headless(object) => {
                let key = look.system.keys().key(&object);
                let what = "a later copy of the segment is stored, the first one is not".to_owned();
                self.bad(look, segment, Fault::Missing, key, what);
            }
            Outcome::Bad(object, error) => {
                look.passed(bytes);
                let key = look.system.keys().key(&object);
                self.bad(look, segment, Fault::Damaged, key, error.to_string());
            }
            Outcome::Good(read) => {
                for (_, size) in &segment.copies {
                    look.seen(*size);
                }
                if let Some(epoch) = read.header.key {
                    self.look_at_key(look, segment, epoch, read.opened);
                }
                self.join(look, segment, &read.header, &read.annex).await?;
            }
        }
        Ok(())
    }

    /// Takes note of what was not looked into, and of what nobody can look into any more.
    fn look_at_key(&mut self, look: &mut Look<'_>, segment: &Segment, epoch: Epoch, opened: bool) {
        if !opened && look.system.can_open() {
            look.unopened(epoch, &SystemObject::Wal(WalFileName::Segment(segment.name), 1));
        }
        if !look.has_wrap(epoch) {
            let (timeline, number) = (segment.name.timeline(), segment.number);
            self.leave_out(timeline, number);
            self.lost.entry((timeline, epoch)).or_insert((number, number)).1 = number;
        }
    }

    /// Links a good segment to the one before it.
    async fn join(
        &mut self,
        look: &mut Look<'_>,
        segment: &Segment,
        header: &WalHeader,
        annex: &Annex,
    ) -> Result<()> {
        let (timeline, number) = (segment.name.timeline(), segment.number);
        if let Some(valid) = header.valid.filter(|valid| valid.end == WalEnd::Damaged) {
            self.line.accepted.insert(segment.name, valid.to);
            // Nothing follows from it for the next one.
            (self.chain, self.last) = (Chain::default(), Some((timeline, number)));
            return Ok(());
        }
        if self.last != Some((timeline, number.previous())) {
            self.chain = self.chain_before(look, timeline, number).await?;
        }
        self.last = Some((timeline, number));
        let copy = segment.copies.last().map_or(1, |(copy, _)| *copy);
        let key = look.system.keys().key(&SystemObject::Wal(WalFileName::Segment(segment.name), copy));
        if let Err(what) = self.chain.follow(annex) {
            self.bad(look, segment, Fault::Damaged, key, what);
            // What it says of itself still holds for the next one.
            self.last = Some((timeline, number));
            return Ok(());
        }
        if let Some(valid) = header.valid.filter(|valid| valid.end == WalEnd::Short)
            && self.goes_on(look, timeline, number)
        {
            let what =
                format!("only an unfinished copy is stored, up to {}, though WAL goes on after it", valid.to);
            self.bad(look, segment, Fault::Gap, key, what);
        }
        Ok(())
    }

    /// Whether WAL that is stored goes on after a segment, on its timeline or on a child that left it later. A child that left it in
    /// this very segment has a copy of its own.
    fn goes_on(&self, look: &Look<'_>, timeline: TimelineId, number: SegmentNo) -> bool {
        let size = look.system.identity().segment_size;
        let later = |of: TimelineId| self.line.good.get(&of).and_then(|line| line.last()) > Some(&number);
        let leaves_later = |history: &TimelineHistory| {
            history.end(timeline).is_some_and(|end| SegmentNo::containing(end, size) > number)
        };
        later(timeline) || self.histories.values().any(|h| leaves_later(h) && later(h.timeline()))
    }

    /// The chain as it is before segment `number`: from the annex of the one before it, on this timeline or on the parent.
    async fn chain_before(&self, look: &Look<'_>, timeline: TimelineId, number: SegmentNo) -> Result<Chain> {
        let size = look.system.identity().segment_size;
        let (before, start) = (number.previous(), number.start(size));
        let stored = |of: &TimelineId| self.line.good.get(of).is_some_and(|line| line.contains(&before));
        let parent = || {
            let history = self.histories.get(&timeline)?;
            Some(history.owner(start.saturating_sub(1))).filter(|owner| *owner != timeline)
        };
        let mut chain = Chain::default();
        let Some(of) = [Some(timeline), parent()].into_iter().flatten().find(stored) else {
            return Ok(chain);
        };
        if start.is_zero() {
            return Ok(chain);
        }
        match twice(|| look.system.segment_info(SegmentName::new(of, before, size))).await {
            Ok(Some(info)) if info.header.valid.is_some_and(|v| !v.end.may_have_longer_copy()) => {
                // What comes before that one is not known, so nothing can be wrong with it.
                chain.follow(&info.annex).ok();
            }
            // Short, gone, or damaged: that is found where it is looked at itself.
            Ok(_) => {}
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e.into()),
        }
        Ok(chain)
    }

    fn bad(&mut self, look: &mut Look<'_>, segment: &Segment, fault: Fault, key: String, what: String) {
        let (timeline, number) = (segment.name.timeline(), segment.number);
        look.folder.findings.add(fault, key, what, wal_subject(timeline, number, number));
        self.leave_out(timeline, number);
    }

    fn leave_out(&mut self, timeline: TimelineId, number: SegmentNo) {
        if let Some(line) = self.line.good.get_mut(&timeline) {
            line.remove(&number);
        }
        self.last = None;
    }
}

pub(super) fn wal_subject(timeline: TimelineId, first: SegmentNo, last: SegmentNo) -> Subject {
    Subject::Wal { timeline, first, last }
}

/// Reads every copy of a segment.
async fn read_segment(
    system: &System,
    budget: &super::budget::Budget,
    segment: &Segment,
    decode: bool,
) -> Result<Outcome> {
    let name = WalFileName::Segment(segment.name);
    if segment.copies.first().is_none_or(|(copy, _)| *copy != 1) {
        return Ok(Outcome::Headless(SystemObject::Wal(name, 1)));
    }
    if !segment.due {
        return Ok(Outcome::NotDue);
    }
    let mut longest = None;
    for (copy, size) in &segment.copies {
        let _share = budget.take(*size).await;
        match twice(|| read_copy(system, name, *copy, decode)).await {
            Ok(Some(read)) => longest = Some(read),
            Ok(None) => return Ok(Outcome::Gone(SystemObject::Wal(name, *copy))),
            Err(e) if e.is_hidden() => return Ok(Outcome::Gone(SystemObject::Wal(name, *copy))),
            Err(e) if e.is_damage() => return Ok(Outcome::Bad(SystemObject::Wal(name, *copy), e)),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(longest.map_or(Outcome::NotDue, |read| Outcome::Good(Box::new(read))))
}

async fn read_copy(
    system: &System,
    name: WalFileName,
    copy: u32,
    decode: bool,
) -> Result<Option<Copy>, RepoError> {
    let Some(fetched) = system.fetch_to_check(name, copy).await? else { return Ok(None) };
    let key = system.keys().key(&SystemObject::Wal(name, copy));
    let repository = system.repository().name().to_owned();
    let size = system.identity().segment_size;
    // Decompressing and decoding take a processor for long: not on the reactor.
    let work = tokio::task::spawn_blocking(move || {
        let found = inspect(&fetched, name, size, decode)?;
        let (header, annex) = found.map_err(|what| RepoError::Corrupt { repository, key, what })?;
        Ok(Copy { header, annex, opened: fetched.can_open() })
    });
    work.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())).map(Some)
}

/// Opens an object, and decodes it if asked to; the inner error is what its records say.
fn inspect(
    fetched: &Fetched,
    name: WalFileName,
    size: SegmentSize,
    decode: bool,
) -> Result<Result<(WalHeader, Annex), String>, RepoError> {
    if !fetched.can_open() {
        // Whose it is, that nobody forged it, and that no byte changed: what can be told without a key.
        return fetched.check_stored().map(|()| Ok((fetched.header.clone(), Annex::default())));
    }
    let annex = fetched.annex()?;
    let header = fetched.header.clone();
    let scanner = match name {
        WalFileName::Segment(segment) if decode => Some(Scanner::new(segment, size, Keep::Summary)),
        _ => None,
    };
    let mut scanner = match scanner.transpose() {
        Ok(scanner) => scanner,
        Err(e) => return Ok(Err(e.to_string())),
    };
    let mut failed = None;
    fetched.open(|bytes| {
        if let (None, Some(scanner)) = (&failed, &mut scanner) {
            failed = scanner.push(bytes).err();
        }
    })?;
    let scan = match (failed, scanner) {
        (_, None) => return Ok(Ok((header, annex))),
        (Some(error), _) => Err(error),
        (None, Some(scanner)) => scanner.finish(),
    };
    Ok(compare(header, annex, scan))
}

/// What was found in the records against what the object says of them.
fn compare(
    header: WalHeader,
    annex: Annex,
    scan: Result<crate::wal::scan::SegmentScan, ScanError>,
) -> Result<(WalHeader, Annex), String> {
    let accepted = header.valid.is_some_and(|valid| valid.end == WalEnd::Damaged);
    let scan = match scan {
        Ok(scan) => scan,
        Err(ScanError::Damaged { .. }) if accepted => return Ok((header, annex)),
        Err(error) => return Err(error.to_string()),
    };
    let found = Annex::from_scan(&scan);
    let same = annex.span == found.span && annex.head == found.head && annex.tail == found.tail;
    let same = same && annex.commits == found.commits && header.valid.is_some_and(|v| v.to == scan.valid_to);
    // A pitr that did not know this server's WAL left these out.
    if same || accepted || annex.span.is_none() || annex.commits.is_none() {
        return Ok((header, annex));
    }
    Err("its annex says other things than its records".to_owned())
}

/// Partial segments and backup history files: nothing that a restore reads, but stored all the same.
async fn check_others(look: &mut Look<'_>) -> Result<()> {
    let others: Vec<(SystemObject, u64)> = look
        .listed
        .iter()
        .filter(|(object, _)| {
            matches!(object, SystemObject::Wal(WalFileName::Partial(_) | WalFileName::BackupHistory(..), _))
        })
        .filter(|(object, _)| look.request.sample.takes(&look.system.keys().key(object)))
        .map(|(object, size)| (object.clone(), *size))
        .collect();
    let (system, jobs) = (look.system.clone(), look.request.jobs.max(1));
    let budget = Arc::clone(&look.budget);
    let read = |(object, size): (SystemObject, u64)| {
        let (system, budget) = (&system, &budget);
        async move {
            let _share = budget.take(size).await;
            let read = match &object {
                SystemObject::Wal(name, copy) => twice(|| read_copy(system, *name, *copy, false)).await,
                _ => Ok(None),
            };
            (object, size, read)
        }
    };
    let mut reads = std::pin::pin!(futures_util::stream::iter(others).map(read).buffer_unordered(jobs));
    while let Some((object, size, read)) = reads.next().await {
        match read {
            Ok(Some(_)) => look.seen(size),
            Ok(None) => look.passed(size),
            Err(e) if e.is_damage() => {
                look.passed(size);
                let key = look.system.keys().key(&object);
                look.folder.findings.add(Fault::Damaged, key, e.to_string(), Subject::Aside);
            }
            Err(e) => return Err(Error::from(e)),
        }
    }
    Ok(())
}

/// What must be there and is not listed.
fn missing(look: &Look<'_>, line: &Line, histories: &Histories) -> Vec<Missing> {
    if look.blind {
        return Vec::new();
    }
    let none = Histories::new();
    let histories = if look.request.backup.is_none() { histories } else { &none };
    let size = look.system.identity().segment_size;
    let ground = Ground { size, stored: &line.good, histories, floor: look.floor.as_ref() };
    ground.missing(&line.backups.iter().map(|(_, place)| *place).collect::<Vec<_>>())
}

fn report_gap(look: &mut Look<'_>, gap: Missing) {
    let size = look.system.identity().segment_size;
    let key =
        |number| look.system.keys().wal(WalFileName::Segment(SegmentName::new(gap.timeline, number, size)));
    let (first, last) = (key(gap.first), key(gap.last));
    let through = (gap.first != gap.last).then_some(last);
    let what = format!("WAL from {} to {} is not stored", gap.first.start(size), gap.last.end(size));
    let subject = wal_subject(gap.timeline, gap.first, gap.last);
    look.folder.findings.add_range(Fault::Gap, first, through, what, subject);
}
