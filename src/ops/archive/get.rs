//! `archive-get`: one file out of the archive, whole and checked, or proven not to be there, or an error.
//!
//! ```text
//!  repositories in turn: GET ─ found ─► open into a private file beside the destination ─► fsync ─► rename
//!                            ├ unfinished ─► kept, the others are asked ─► nobody has more, and all of them say so? ─► as found
//!                            └ 404 everywhere ─► absence proven by every repository? ─► "absent"   else an error
//! ```
//! PostgreSQL takes "absent" as the end of WAL and opens the database, so it is said only when every repository that was asked is
//! reachable, shows its identity in the same call, holds no later segment of the timeline, and has not given the file up. A copy of an
//! unfinished segment is an end of WAL too, and is handed over on the same proof. With `--timeline`, what a parent timeline holds past
//! the fork is never delivered: that segment is cut there and padded with zeros (RECOVERY 7). `.partial` files are never served for
//! their full name.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::select_ok;
use tokio::sync::OnceCell;

use crate::durable::{Delivery, DurableError};
use crate::error::{Error, Result};
use crate::repo::archive::{Absence, Fetched};
use crate::repo::{RepoError, Repository, System};
use crate::wal::{Lsn, SegmentName, SegmentSize, SystemId, TimelineHistory, TimelineId, WalFileName};

/// The next repository is asked for the course of a recovery if those before it have not answered by then.
const HEAD_START: Duration = Duration::from_secs(3);
/// A repository that failed is asked last for what is fetched ahead, for so long.
const ASKED_LAST: Duration = Duration::from_mins(1);

/// What a get came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    /// The file is there, synced.
    Delivered {
        /// The repository it came from.
        repository: String,
        /// Its size.
        size: u64,
    },
    /// It is in no repository, and that is proven.
    Absent,
}

/// Where recovery goes, as far as it was told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Route {
    /// The timeline it ends on.
    pub timeline: Option<TimelineId>,
    /// The position it stops at: a segment whose stored copy ends early is enough if it reaches there.
    pub until: Option<Lsn>,
}

/// What each timeline's segments are cut at on the way.
#[derive(Debug, Clone)]
struct Forks {
    history: TimelineHistory,
    size: SegmentSize,
}

/// Fetches `name` into `destination`. `system` is the cluster's system identifier if it is known from the data directory; without
/// it the repository's newest one is meant. It is put there only if it is still `wanted` when it is whole.
///
/// # Errors
/// Anything that is not proven absence: an unreachable repository, damage, a hole, WAL that retention gave up, a full disk, nobody who wants it.
/// The destination is then untouched.
pub async fn get_file(
    repositories: &[Repository],
    name: WalFileName,
    destination: &Path,
    system: Option<SystemId>,
    route: Route,
    wanted: impl Fn() -> bool + Copy + Send + 'static,
) -> Result<Got> {
    let mut asked: Vec<System> = Vec::new();
    let mut failures: Vec<Error> = Vec::new();
    let mut unfinished: Option<Found> = None;
    for repository in repositories {
        match look(repository, name, system, route).await {
            Ok((_, Some(copy))) if copy.ends.is_some() => {
                unfinished = Some(longer(unfinished, copy));
            }
            Ok((_, Some(copy))) => match deliver(copy, destination, wanted).await {
                Ok(got) => return Ok(got),
                // A damaged copy here says nothing about the next repository's; a full disk does.
                Err(e) => failures.push(e),
            },
            Ok((opened, None)) => asked.push(opened),
            Err(e) => failures.push(e.context(format!("repository {}", repository.name()))),
        }
    }
    if let Some(e) = failures.into_iter().next() {
        return Err(e);
    }
    if asked.is_empty() && unfinished.is_none() {
        return Err(Error::usage("no repository is configured")
            .hint("add a [[repository]] to the configuration, or run `pitr init`"));
    }
    // Recovery ends in an unfinished segment as it does before one that is absent: both need that nobody has more.
    for opened in &asked {
        prove_absent(opened, name, route.timeline).await?;
    }
    match unfinished {
        Some(copy) => deliver(copy, destination, wanted).await,
        None => Ok(Got::Absent),
    }
}

/// What a repository holds of a file.
struct Found {
    repository: String,
    fetched: Fetched,
    /// Where a parent's segment is cut.
    cut: Option<u64>,
    /// Where its WAL ends, if that is before the end of the segment and before where recovery stops: a longer copy may be elsewhere.
    ends: Option<Lsn>,
}

/// Of two unfinished copies the one with more WAL; of equals the first.
fn longer(one: Option<Found>, other: Found) -> Found {
    match one {
        Some(one) if one.ends >= other.ends => one,
        _ => other,
    }
}

/// A repository that one recovery reads ahead from, opened once: neither its identity nor a history ever changes, so they are not asked for
/// again with every segment.
#[derive(Debug)]
pub struct Source {
    repository: Repository,
    system: Option<SystemId>,
    route: Route,
    opened: OnceCell<(System, Option<Forks>)>,
    /// When it failed, and how.
    failed: Mutex<Option<(Instant, String)>>,
}

impl Source {
    /// `repository`, as the recovery of `system` along `route` sees it.
    pub fn new(repository: Repository, system: Option<SystemId>, route: Route) -> Self {
        Self { repository, system, route, opened: OnceCell::new(), failed: Mutex::default() }
    }

    /// How it failed a short while ago, if it did.
    fn failure(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().filter(|(then, _)| then.elapsed() < ASKED_LAST).map(|(_, text)| text.clone())
    }

    fn note<T>(&self, outcome: &Result<T>) {
        let failed = outcome.as_ref().err().map(|e| (Instant::now(), e.to_string()));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    async fn opened(&self) -> Result<&(System, Option<Forks>)> {
        let begun = Instant::now();
        let open = async || {
            // Who has waited while another one failed need not find out for himself.
            let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some((_, text)) = failed.filter(|(then, _)| *then > begun) {
                return Err(Error::failed(text));
            }
            let outcome = self.open().await;
            self.note(&outcome);
            outcome
        };
        self.opened.get_or_try_init(open).await
    }

    async fn open(&self) -> Result<(System, Option<Forks>)> {
        let opened = open(&self.repository, self.system).await?;
        let forks = match self.route.timeline {
            Some(timeline) => Some(forks(&opened, timeline).await?),
            None => None,
        };
        Ok((opened, forks))
    }

    /// As [`get_ahead`], from here.
    async fn get_ahead(&self, name: WalFileName, destination: &Path) -> Result<Ahead> {
        let (opened, forks) = self.opened().await?;
        let found = find(opened, name, forks.as_ref(), self.route.until).await?;
        let Some(copy) = found else { return Ok(Ahead::NotHere) };
        if copy.fetched.header.valid.is_some_and(|valid| valid.end.may_have_longer_copy()) {
            return Ok(Ahead::MayGrow);
        }
        let size = copy.fetched.header.size;
        deliver(copy, destination, || true).await.map(|_| Ahead::Delivered(size))
    }
}

/// What a repository has of a file that was not asked for yet.
enum Ahead {
    Delivered(u64),
    MayGrow,
    NotHere,
}

/// As [`get_file`], before it is asked for: only what can never be answered otherwise later. `None`: not there, or only as a copy that may
/// grow. Repositories that have not answered yet, or failed just now, are asked last.
///
/// # Errors
/// As [`get_file`], if no repository has it; whoever is then asked for the file has to find out for itself.
pub async fn get_ahead(sources: &[Source], name: WalFileName, destination: &Path) -> Result<Option<u64>> {
    let mut sources: Vec<&Source> = sources.iter().collect();
    sources.sort_by_key(|source| (source.failure().is_some(), !source.opened.initialized()));
    let mut failure = None;
    for source in sources {
        let outcome = source.get_ahead(name, destination).await;
        source.note(&outcome);
        match outcome {
            Ok(Ahead::Delivered(size)) => return Ok(Some(size)),
            // The next repository may have all of it.
            Ok(Ahead::MayGrow | Ahead::NotHere) => {}
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Where a recovery goes: what it will ask for next.
#[derive(Debug, Clone)]
pub struct Course {
    history: Option<TimelineHistory>,
    size: SegmentSize,
}

impl Course {
    /// The course of a recovery, as the first of its sources that answers knows it; those in front have a head start.
    ///
    /// # Errors
    /// If that can be read from none.
    pub async fn of(sources: &[Source]) -> Result<Option<Self>> {
        if sources.is_empty() {
            return Ok(None);
        }
        let asked = sources.iter().enumerate().map(|(i, source)| {
            Box::pin(async move {
                let turn = u32::try_from(i).unwrap_or(u32::MAX);
                crate::clock::sleep(HEAD_START.saturating_mul(turn)).await;
                source.opened().await
            })
        });
        let ((opened, forks), _) = select_ok(asked).await?;
        let history = forks.as_ref().map(|forks| forks.history.clone());
        Ok(Some(Self { history, size: opened.identity().segment_size }))
    }

    /// Bytes in a segment.
    pub fn segment_bytes(&self) -> u64 {
        self.size.bytes()
    }

    /// What is asked for after `name`: the next segment, of the newest timeline of the route that has begun by then (RECOVERY.md 10);
    /// without a route, of the same timeline.
    pub fn after(&self, name: SegmentName) -> Option<SegmentName> {
        let number = name.number(self.size).ok()?.next();
        let last = number.end(self.size).saturating_sub(1);
        let timeline = match &self.history {
            Some(history) => history.owner(last),
            None => name.timeline(),
        };
        Some(SegmentName::new(timeline, number, self.size))
    }
}

/// One repository's answer.
async fn look(
    repository: &Repository,
    name: WalFileName,
    system: Option<SystemId>,
    route: Route,
) -> Result<(System, Option<Found>)> {
    let opened = open(repository, system).await?;
    let forks = match (name, route.timeline) {
        (WalFileName::Segment(_), Some(timeline)) => Some(forks(&opened, timeline).await?),
        _ => None,
    };
    let found = find(&opened, name, forks.as_ref(), route.until).await?;
    Ok((opened, found))
}

async fn open(repository: &Repository, system: Option<SystemId>) -> Result<System> {
    match system {
        Some(system) => Ok(repository.open(system).await?),
        None => repository.open_current().await?.ok_or_else(|| {
            Error::not_found(format!(
                "repository {} holds no cluster {}",
                repository.name(),
                repository.cluster()
            ))
            .hint("is this the right repository and cluster name, and is the disk mounted?")
        }),
    }
}

async fn find(
    opened: &System,
    name: WalFileName,
    forks: Option<&Forks>,
    until: Option<Lsn>,
) -> Result<Option<Found>> {
    // The history of timeline 1 never exists, and PostgreSQL asks for it after replay is done: no doubt may stop it there.
    if name == WalFileName::History(TimelineId::FIRST) {
        return Ok(None);
    }
    let cut = match (name, forks) {
        (WalFileName::Segment(segment), Some(forks)) => match forks.cut(segment)? {
            Cut::Whole => None,
            Cut::At(bytes) => Some(bytes),
            Cut::Off => return Ok(None),
        },
        _ => None,
    };
    let place = || opened.repository().name().to_owned();
    // Recovery leaves the timeline inside this segment, or stops in it: what comes later is of no interest, if all up to there is here.
    let stops = cut.map(|bytes| cut_position(opened, name, bytes)).into_iter().chain(until).min();
    let suffices = |valid_to: Lsn| stops.is_some_and(|end| end <= valid_to.aligned());
    let fetched = match opened.fetch_for_recovery(name).await {
        Err(RepoError::Unfinished { valid_to, .. }) if suffices(valid_to) => opened.fetch_wal(name).await?,
        Err(RepoError::Store(error)) if opened.expired_by_marker(name, &error).await? => {
            return Err(RepoError::BelowFloor { repository: place(), name }.into());
        }
        fetched => fetched?,
    };
    let Some(fetched) = fetched else { return Ok(None) };
    let valid = fetched.header.valid.filter(|valid| valid.end.may_have_longer_copy());
    let ends = valid.map(|valid| valid.to).filter(|to| !suffices(*to));
    if let (WalFileName::Segment(segment), Some(forks), Some(valid_to)) = (name, forks, ends)
        && forks.goes_past(segment)?
    {
        return Err(RepoError::Unfinished { repository: place(), name, valid_to }.into());
    }
    let ends = ends.filter(|_| matches!(name, WalFileName::Segment(_)));
    Ok(Some(Found { repository: place(), fetched, cut, ends }))
}

/// The position `bytes` into the segment called `name`.
fn cut_position(system: &System, name: WalFileName, bytes: u64) -> Lsn {
    let size = system.identity().segment_size;
    match name {
        WalFileName::Segment(segment) => {
            segment.number(size).map_or(Lsn::MAX, |n| n.start(size).saturating_add(bytes))
        }
        WalFileName::Partial(_) | WalFileName::History(_) | WalFileName::BackupHistory(..) => Lsn::MAX,
    }
}

async fn forks(system: &System, timeline: TimelineId) -> Result<Forks> {
    let history = system.history(timeline).await?.ok_or_else(|| {
        Error::failed(format!(
            "the history of timeline {timeline}, which recovery goes to, is not in repository {}",
            system.repository().name()
        ))
        .hint("push the history file from the server that was promoted: `pitr archive-push pg_wal/FILE`")
    })?;
    Ok(Forks { history, size: system.identity().segment_size })
}

/// What of a segment a route may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// All of it.
    Whole,
    /// Its first bytes; the rest belongs to a child.
    At(u64),
    /// Nothing: the route left the timeline before it, or never was on it.
    Off,
}

impl Forks {
    fn cut(&self, name: SegmentName) -> Result<Cut> {
        let number = name.number(self.size).map_err(|e| Error::usage(e.to_string()))?;
        if !self.history.contains(name.timeline()) {
            return Ok(Cut::Off);
        }
        let Some(end): Option<Lsn> = self.history.end(name.timeline()) else { return Ok(Cut::Whole) };
        let (first, last) = (number.start(self.size), number.end(self.size));
        Ok(if end >= last {
            Cut::Whole
        } else if end <= first {
            Cut::Off
        } else {
            Cut::At(end.bytes_since(first))
        })
    }

    /// True if the route was on a parent through all of the segment: a child forked off later, so the segment once was there. Its
    /// absence is a hole even where nothing later of the same timeline is stored.
    fn goes_past(&self, name: SegmentName) -> Result<bool> {
        let number = name.number(self.size).map_err(|e| Error::usage(e.to_string()))?;
        let (begin, end) = (self.history.begin(name.timeline()), self.history.end(name.timeline()));
        let begun = begin.is_some_and(|begin| begin <= number.start(self.size));
        Ok(begun && end.is_some_and(|end| number.end(self.size) <= end))
    }
}

/// Writes the file beside the destination and renames it into place once all of it was checked and synced.
async fn deliver(copy: Found, destination: &Path, wanted: impl Fn() -> bool + Send + 'static) -> Result<Got> {
    let Found { repository, fetched, cut, .. } = copy;
    let path = destination.to_owned();
    let work = tokio::task::spawn_blocking(move || write(&fetched, &path, cut, &wanted));
    let size = work.await.map_err(|e| Error::failed("writing the file was cut off").source(e))??;
    Ok(Got::Delivered { repository, size })
}

fn write(fetched: &Fetched, path: &Path, cut: Option<u64>, wanted: &dyn Fn() -> bool) -> Result<u64> {
    let failed = |e: DurableError| {
        let hint = match () {
            () if e.is_full() => {
                "the disk of the data directory is full: make room, then start the server again; recovery goes on"
            }
            () if e.is_denied() => "is it mounted read-only? the server's user must be able to write there",
            () => "mend the disk of the data directory, then start the server again; recovery goes on",
        };
        Error::failed(format!("cannot write {}", path.display())).source(e).hint(hint)
    };
    let mut delivery = Delivery::begin(path, None).map_err(failed)?;
    let mut broken = None;
    let mut left = cut.unwrap_or(u64::MAX);
    fetched.open(|bytes| {
        let whole = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (kept, dropped) = bytes.split_at(whole);
        left = left.saturating_sub(u64::try_from(kept.len()).unwrap_or(u64::MAX));
        if broken.is_none() {
            let zeros = vec![0_u8; dropped.len()];
            broken = delivery
                .append(kept)
                .and_then(|()| if zeros.is_empty() { Ok(()) } else { delivery.append(&zeros) })
                .err();
        }
    })?;
    if let Some(e) = broken {
        return Err(failed(e));
    }
    // The next one may ask for another file under this very name by now (RECOVERY.md 18).
    if !delivery.finish_if(wanted).map_err(failed)? {
        return Err(Error::failed(format!("who asked for {} is gone", path.display()))
            .hint("nothing was put there; PostgreSQL asks again when it recovers"));
    }
    Ok(fetched.header.size)
}

/// Turns "not found" into proof, or into the error that says why it is none.
async fn prove_absent(system: &System, name: WalFileName, timeline: Option<TimelineId>) -> Result<()> {
    // A segment that the route does not see is absent for it whatever lies there.
    let mut must_exist = false;
    if let (WalFileName::Segment(segment), Some(timeline)) = (name, timeline) {
        let forks = forks(system, timeline).await?;
        if forks.cut(segment)? == Cut::Off {
            return Ok(());
        }
        must_exist = forks.goes_past(segment)?;
    }
    let place = system.repository().name();
    match system.absence(name).await? {
        Absence::Proven if must_exist => {
            Err(Error::failed(format!("{name} is not in repository {place}, but the route goes on past it"))
                .hint("WAL has a hole here; `pitr info` shows what is there"))
        }
        Absence::Proven => Ok(()),
        Absence::Present => {
            Err(Error::failed(format!("{name} appeared in repository {place} while it was looked for"))
                .hint("try again"))
        }
        Absence::Expired => Err(RepoError::BelowFloor { repository: place.to_owned(), name }.into()),
        Absence::Doubt(why) => {
            Err(Error::failed(format!("{name} is not in repository {place}, but should be: {why}"))
                .hint("WAL has a hole here; `pitr info` shows what is there"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    #[test]
    fn a_course_changes_timelines_in_the_segment_of_the_fork() {
        let size = SegmentSize::DEFAULT;
        let history = TimelineHistory::parse(timeline(3), b"1\t0/3000100\tx\n2\t0/5000000\ty\n").unwrap();
        let name = |tli: u32, n: u64| SegmentName::new(timeline(tli), crate::wal::SegmentNo::new(n), size);
        let course = Course { history: Some(history), size };
        let ways = [(1, 1, 1), (1, 2, 2), (2, 3, 2), (2, 4, 3), (3, 5, 3)];
        for (from, n, to) in ways {
            assert_eq!(course.after(name(from, n)), Some(name(to, n + 1)), "{from} {n}");
        }
        let alone = Course { history: None, size };
        assert_eq!(alone.after(name(7, 9)), Some(name(7, 10)));
    }

    #[test]
    fn a_parent_is_seen_up_to_its_fork_and_no_further() {
        let size = SegmentSize::DEFAULT;
        let history = TimelineHistory::parse(timeline(3), b"1\t0/3000100\tx\n2\t0/5000000\ty\n").unwrap();
        let forks = Forks { history, size };
        let cut = |tli: u32, n: u64| {
            let name = SegmentName::new(timeline(tli), crate::wal::SegmentNo::new(n), size);
            forks.cut(name).unwrap()
        };
        assert_eq!(cut(1, 2), Cut::Whole);
        assert_eq!(cut(1, 3), Cut::At(0x100));
        assert_eq!(cut(1, 4), Cut::Off);
        // A fork on a border: the segment before it is whole, the one after it is the child's.
        assert_eq!(cut(2, 4), Cut::Whole);
        assert_eq!(cut(2, 5), Cut::Off);
        assert_eq!(cut(3, 9), Cut::Whole);
        assert_eq!(cut(4, 1), Cut::Off);
        let goes_past = |tli: u32, n: u64| {
            let name = SegmentName::new(timeline(tli), crate::wal::SegmentNo::new(n), size);
            forks.goes_past(name).unwrap()
        };
        // Whole segments of a parent, the last one up to the fork included; neither a shared one nor the last timeline's.
        assert!(goes_past(1, 1) && goes_past(1, 2) && goes_past(2, 4));
        assert!(!goes_past(1, 3) && !goes_past(2, 3) && !goes_past(2, 5) && !goes_past(3, 6));
    }
}
