//! A backup counts only with its WAL: wait until every repository holds each segment from start to stop, then look into them.
//!
//! ```text
//!  missing in a repository? ─► poll ─► there, and it reaches the stop ─► next
//!        │ a moment later      read from this host's pg_wal, if it is complete there, and stored by the one road into the archive
//!        │ last segment        ask a primary for a switch, should it still write into it
//!        └ no progress for the patience ─► fail, with the archiver's own words
//! ```
//! The archiver decides nothing here: not `.done`, not pg_stat_archiver, only what the repository holds (REPOSITORY.md 4, W5).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::facts;
use super::needed::{self, LargestCommit};
use super::target::{self, Targets, failure};
use crate::clock;
use crate::error::{Error, Result};
use crate::ops::Progress;
use crate::pgdata::backup_manifest::WalRange;
use crate::pgwire::Sql;
use crate::repo::System;
use crate::repo::annex::Annex;
use crate::wal::{Lsn, PgTime, SegmentNo, SegmentScan, SegmentSize, TimelineId, WalFileName};

/// Between two looks at the repositories: first often, a healthy archiver needs a second; then seldom.
const POLLS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// How long the archiver may have before we read `pg_wal` ourselves and say what is missing.
const ARCHIVER_GRACE: Duration = Duration::from_secs(10);
/// Headers that are read at one time.
const LOOKS: usize = 8;

/// What is waited for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The manifest's ranges.
    pub(super) ranges: &'a [WalRange],
    /// Where the backup starts.
    pub(super) start: Lsn,
    /// Where it stops.
    pub(super) stop: Lsn,
    /// The timeline at its stop, whose history must be there.
    pub(super) timeline: TimelineId,
    /// Size of a segment.
    pub(super) size: SegmentSize,
    /// The server is a standby.
    pub(super) in_recovery: bool,
    /// The data directory, if it is on this host.
    pub(super) local: Option<PathBuf>,
    /// How long nothing new may come before it is given up.
    pub(super) patience: Duration,
}

/// Waits until every repository has the WAL.
pub(super) async fn wait(
    wanted: &Wanted<'_>,
    sql: &mut Sql,
    targets: &Targets,
    progress: &dyn Progress,
) -> Result<()> {
    let mut missing = Missing::new(wanted, targets);
    let began = Instant::now();
    let (mut last_news, mut told) = (began, false);
    loop {
        if missing.look(wanted.stop).await? {
            last_news = Instant::now();
        }
        let Some((name, repository)) = missing.first() else { return Ok(()) };
        if last_news.elapsed() >= wanted.patience {
            return Err(gave_up(name, &repository, sql).await);
        }
        let [often, seldom] = POLLS;
        if began.elapsed() < ARCHIVER_GRACE {
            clock::sleep(often).await;
            continue;
        }
        if !std::mem::replace(&mut told, true) {
            progress.note(&missing.message(wanted));
        }
        if !help(wanted, &missing.names(), sql, targets, progress).await {
            clock::sleep(seldom).await;
        }
    }
}

/// What each repository still lacks.
struct Missing<'a> {
    left: Vec<(&'a System, Vec<WalFileName>)>,
}

impl<'a> Missing<'a> {
    fn new(wanted: &Wanted<'_>, targets: &'a Targets) -> Self {
        let mut names: Vec<WalFileName> =
            needed::segments(wanted.ranges, wanted.size).into_iter().map(WalFileName::Segment).collect();
        // Without its history nothing of a timeline can be found by recovery (RECOVERY.md 8).
        if wanted.timeline > TimelineId::FIRST {
            names.push(WalFileName::History(wanted.timeline));
        }
        Self { left: targets.iter().map(|system| (system, names.clone())).collect() }
    }

    /// Drops what has arrived; true if something has.
    async fn look(&mut self, stop: Lsn) -> Result<bool> {
        let mut news = false;
        for (system, names) in &mut self.left {
            let before = names.len();
            let system: &System = system;
            *names = stream::iter(std::mem::take(names))
                .map(|name| async move { Ok::<_, Error>((name, is_stored(system, name, stop).await?)) })
                .buffered(LOOKS)
                .try_filter_map(async |(name, stored)| Ok((!stored).then_some(name)))
                .try_collect()
                .await?;
            news |= names.len() < before;
        }
        Ok(news)
    }

    fn first(&self) -> Option<(WalFileName, String)> {
        self.left
            .iter()
            .find_map(|(system, names)| Some((*names.first()?, system.repository().name().to_owned())))
    }

    fn names(&self) -> BTreeSet<WalFileName> {
        self.left.iter().flat_map(|(_, names)| names.iter().copied()).collect()
    }

    fn message(&self, wanted: &Wanted<'_>) -> String {
        let lacks = |(system, names): &(&System, Vec<WalFileName>)| {
            let name = names.first()?;
            let more = names.len().saturating_sub(1);
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            Some(format!("{name}{rest} in repository {}", system.repository().name()))
        };
        let lacking: Vec<String> = self.left.iter().filter_map(lacks).collect();
        let hint = if wanted.in_recovery {
            "; on an idle primary run SELECT pg_switch_wal() there, so that the last segment is archived"
        } else {
            ""
        };
        format!("waiting for WAL that is not stored yet: {}{hint}", lacking.join(", "))
    }
}

async fn is_stored(system: &System, name: WalFileName, stop: Lsn) -> Result<bool> {
    match name {
        WalFileName::Segment(segment) => {
            let found = system.segment_info(segment).await.map_err(failure)?;
            Ok(found.is_some_and(|found| needed::reaches(&found.header, stop)))
        }
        other => Ok(system.fetch_wal_to_check(other).await.map_err(failure)?.is_some()),
    }
}

/// Does what this process can so that the missing arrive; true if it stored something. Failures are not errors here: the wait goes
/// on, and ends with its own.
async fn help(
    wanted: &Wanted<'_>,
    missing: &BTreeSet<WalFileName>,
    sql: &mut Sql,
    targets: &Targets,
    progress: &dyn Progress,
) -> bool {
    let current = match wanted.in_recovery {
        true => None,
        false => facts::write_position(sql).await.ok(),
    };
    let current = current.map(|lsn| SegmentNo::containing(lsn, wanted.size));
    let number = |name: &WalFileName| match name {
        WalFileName::Segment(segment) => segment.number(wanted.size).ok(),
        _ => None,
    };
    if current.is_some() && missing.iter().any(|name| number(name) == current) {
        // BASE_BACKUP switches by itself at its end; this is for a server that did not come to it.
        facts::switch_segment(sql).await;
    }
    let Some(data_dir) = &wanted.local else { return false };
    let pg_wal = data_dir.join("pg_wal");
    let mut stored = false;
    for name in missing {
        let closed = number(name).is_some_and(|number| current.is_some_and(|current| number < current));
        let path = pg_wal.join(name.to_string());
        if !(closed || is_offered(&pg_wal, *name)) || !path.exists() {
            continue;
        }
        match targets.archive(&path, data_dir).await {
            Ok(()) => stored = true,
            // The same reason will stop the others.
            Err(error) => {
                progress.note(&format!("cannot store {name} from {}: {error}", pg_wal.display()));
                break;
            }
        }
    }
    stored
}

/// Whether the server itself calls the file complete.
fn is_offered(pg_wal: &Path, name: WalFileName) -> bool {
    let status = pg_wal.join("archive_status");
    [".ready", ".done"].iter().any(|end| status.join(format!("{name}{end}")).exists())
}

async fn gave_up(name: WalFileName, repository: &str, sql: &mut Sql) -> Error {
    let error =
        Error::failed(format!("WAL {name} did not arrive in repository {repository}; the backup needs it"));
    match facts::archiver(sql).await {
        Ok(said) => error.hint(format!("is archive_command working? the server's archiver says: {said}")),
        Err(_) => error.hint("is archive_command working? look into pg_stat_archiver and the server's log"),
    }
}

/// The largest commit time in [start, stop); `None` if nothing was committed, or the WAL was written by a newer PostgreSQL than this
/// program knows. The first and the last segment are read whole: they hold records of before and after. Nothing if a key that it takes is
/// not at hand.
pub(super) async fn window_earliest(wanted: &Wanted<'_>, system: &System) -> Result<Option<Option<PgTime>>> {
    let names = needed::segments(wanted.ranges, wanted.size);
    let ends = [names.first().copied(), names.last().copied()];
    let mut largest = LargestCommit::default();
    let mut pieces = stream::iter(names)
        .map(|name| async move {
            if ends.contains(&Some(name)) {
                let scan = target::scan(system, name).await?;
                return Ok::<_, Error>(scan.map_or(Piece::Locked, |scan| Piece::Whole(Box::new(scan))));
            }
            let found = system.segment_info(name).await.map_err(failure)?;
            let name =
                || format!("{name} was in repository {} and is not any more", system.repository().name());
            let found = found.ok_or_else(|| Error::corrupt(name()))?;
            Ok(if found.locked.is_some() { Piece::Locked } else { Piece::Summary(Box::new(found.annex)) })
        })
        .buffered(LOOKS);
    while let Some(piece) = pieces.try_next().await? {
        match piece {
            Piece::Whole(scan) => largest.part(&scan, wanted.start, wanted.stop),
            Piece::Summary(annex) => largest.segment(&annex),
            Piece::Locked => return Ok(None),
        }
    }
    Ok(Some(largest.finish()))
}

/// A time that no commit in the backup's WAL is later than, by what stands in clear: `stop`, or a segment's largest. Later than the largest
/// commit inside, so moments between the two are left to an older backup.
pub(super) async fn latest_in_clear(wanted: &Wanted<'_>, system: &System, stop: PgTime) -> Result<PgTime> {
    let headers = stream::iter(needed::segments(wanted.ranges, wanted.size))
        .map(|name| async move { system.segment_info(name).await.map_err(failure) })
        .buffered(LOOKS);
    headers
        .try_fold(stop, async |latest, found| {
            let commits = found.and_then(|found| found.header.commits);
            Ok(commits.map_or(latest, |(_, max)| latest.max(max)))
        })
        .await
}

/// What is read of a segment.
enum Piece {
    /// The first and the last: everything.
    Whole(Box<SegmentScan>),
    /// Those between.
    Summary(Box<Annex>),
    /// No key at hand opens it.
    Locked,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::path::Sealing;
    use crate::repo::{NewIdentity, Repository};
    use crate::store::{Policy, Store, StoreOptions};
    use crate::wal::{PgMajor, SystemId};

    #[tokio::test(start_paused = true)]
    async fn headers_are_looked_at_side_by_side() {
        let store = Store::open(&"memory:".parse().unwrap(), &StoreOptions::default()).unwrap();
        let (store, faults) = store.with_faults(Policy::default());
        let repository = Repository::new(store, "local", "main".parse().unwrap(), true);
        let size = SegmentSize::DEFAULT;
        let facts = NewIdentity {
            system: SystemId::new(7),
            major: PgMajor::V15,
            segment_size: size,
            sealing: Sealing::Plain,
        };
        let system = repository.create_identity(facts, jiff::Timestamp::UNIX_EPOCH).await.unwrap().0;
        let (start, stop) = (Lsn::new(size.bytes()), Lsn::new(21 * size.bytes()));
        let ranges = [WalRange { timeline: TimelineId::FIRST, start, end: stop }];
        let wanted = Wanted {
            ranges: &ranges,
            start,
            stop,
            timeline: TimelineId::FIRST,
            size,
            in_recovery: false,
            local: None,
            patience: Duration::ZERO,
        };
        faults.add("stall@open/000000010000000000000001:1").unwrap();
        let before = faults.calls().len();
        let latest = latest_in_clear(&wanted, &system, PgTime::from_unix_micros(77)).await.unwrap();
        assert_eq!(latest, PgTime::from_unix_micros(77));
        let calls = faults.calls().split_off(before);
        let of = |n: u64| {
            let name = format!("00000001{n:016X}");
            calls.iter().filter(|call| call.contains(&name)).count()
        };
        assert!((1..=20).all(|n| of(n) > 0) && of(1) > of(2), "{calls:?}");
        let again = calls.iter().skip(1).position(|call| call.contains("000000010000000000000001"));
        assert!(again.is_some_and(|between| between + 1 >= LOOKS), "{calls:?}");
    }
}
