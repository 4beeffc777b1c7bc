//! The transfer: BASE_BACKUP from the first row to CommandComplete, with the packer running behind it.
//!
//! ```text
//!  BackupEvent ─► Assembler ─► frame ─(permit)─► press ─► Packer        one after the other, bounded by the permits
//!       └─ manifest, start, stop, warnings          meanwhile: a sample of the server's clock every SAMPLE_EVERY
//! ```
//! Only `Done` after the end position makes a good backup; wrong page checksums come as an error after all data (RECOVERY.md 26),
//! and what arrived is then a faithful copy of damaged pages. Our own check says which they are. The samples tell up to which time the archive covers everything once the WAL up to the stop is there: a sample taken before the
//! stop position, never the time at which the client saw the end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::assemble::{Assembler, Frame, Kept};
use super::facts::{self, Sample};
use super::held::Held;
use super::packer::{Packed, Packer, Pressing, frames_in_flight};
use super::pages::PageRule;
use super::prepare::Server;
use super::target::Targets;
use crate::clock;
use crate::error::{Error, Result};
use crate::ops::Progress;
use crate::pgdata::page::PageLayout;
use crate::pgwire::basebackup::{BackupEvent, BaseBackupOptions, ChecksumFailure, TablespaceInfo};
use crate::pgwire::tar::TarError;
use crate::pgwire::{BaseBackupStream, ConnError, Sql};
use crate::wal::{Lsn, TimelineId};

/// Time between two samples of the server's clock.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// Samples that are kept: the stop may lie a little before what the client has read, not minutes.
const MOST_SAMPLES: usize = 64;
/// Warnings of the server that are kept for the report.
const MOST_WARNINGS: usize = 20;

/// Position and timeline.
pub(super) type Position = (Lsn, TimelineId);

/// A transfer of which everything arrived.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Where replay starts.
    pub(super) start: Position,
    /// Where it is consistent.
    pub(super) stop: Position,
    /// Tablespaces beside the data directory.
    pub(super) tablespaces: Vec<TablespaceInfo>,
    /// Members and packs.
    pub(super) packed: Packed,
    /// The server's `backup_manifest`.
    pub(super) manifest: Held,
    /// Files the backup itself reads.
    pub(super) kept: Kept,
    /// What the server warned of.
    pub(super) warnings: Vec<String>,
    /// What it said of damaged pages, in place of success.
    pub(super) damage: Option<Box<ChecksumFailure>>,
    /// The last sample before the stop, if there is one.
    pub(super) sample: Option<Sample>,
}

/// Everything of a transfer but the packs.
#[derive(Debug, Default)]
struct Heard {
    start: Option<Position>,
    stop: Option<Position>,
    tablespaces: Vec<TablespaceInfo>,
    manifest: Held,
    warnings: Vec<String>,
    damage: Option<Box<ChecksumFailure>>,
}

/// Runs the transfer.
pub(super) async fn transfer(
    server: &mut Server,
    options: &BaseBackupOptions,
    targets: &Targets,
    progress: &dyn Progress,
) -> Result<Transfer> {
    let Server { replication, sql, first, .. } = server;
    let (in_recovery, pages) = (server.facts.in_recovery, server.facts.pages);
    let now_on = server.identity.timeline;
    let over = CancellationToken::new();
    let (frames, packer_end) = mpsc::channel(frames_in_flight());
    let reading = async {
        let _guard = over.clone().drop_guard();
        let stream = replication.base_backup(options).await.map_err(lost)?;
        read(stream, (pages, now_on), frames, progress).await
    };
    // A set, because dropping it ends the task.
    let mut packer = JoinSet::new();
    packer.spawn(Packer::new(targets.clone()).run(packer_end));
    let packing = async {
        let ended = || Error::failed("the packing task ended");
        packer.join_next().await.ok_or_else(ended)?.map_err(|error| ended().source(error))?
    };
    let transfer = async { tokio::try_join!(packing, reading) };
    let (transferred, samples) = tokio::join!(transfer, sample_until(over.clone(), sql, in_recovery));
    let (packed, (heard, kept)) = transferred?;
    let none = || Error::failed("the server ended the base backup without a start or stop position");
    let (start, stop) = (heard.start.ok_or_else(none)?, heard.stop.ok_or_else(none)?);
    let sample =
        first.iter().copied().chain(samples).filter(|sample| sample.lsn <= stop.0).max_by_key(|s| s.lsn);
    Ok(Transfer {
        start,
        stop,
        tablespaces: heard.tablespaces,
        packed,
        manifest: heard.manifest,
        kept,
        warnings: heard.warnings,
        damage: heard.damage,
        sample,
    })
}

/// A standby that followed a promotion begins at its last restartpoint, which may lie before the fork, and ends behind it (`stoptli` of
/// `do_pg_backup_stop`): no timeline holds such a backup from start to stop.
///
/// # Errors
/// Kind `Refused`.
pub(super) fn one_timeline(start: TimelineId, stop: TimelineId) -> Result<()> {
    if start == stop {
        return Ok(());
    }
    Err(Error::refused(format!(
        "the standby followed a promotion: a backup of it would begin on timeline {start} and end on timeline {stop}"
    ))
    .hint(
        "repeat it after the standby's next restartpoint: run CHECKPOINT on the new primary, and try again when the standby has \
         replayed it; or back up the primary",
    ))
}

/// Samples the clock until `over`. An SQL session that fails ends the sampling and nothing else.
async fn sample_until(over: CancellationToken, sql: &mut Sql, in_recovery: bool) -> VecDeque<Sample> {
    let mut samples = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            () = over.cancelled() => return samples,
            () = clock::sleep(SAMPLE_EVERY) => {}
        }
        match facts::sample(sql, in_recovery).await {
            Ok(Some(sample)) => samples.push_back(sample),
            Ok(None) => {}
            Err(_) => return samples,
        }
        if samples.len() > MOST_SAMPLES {
            samples.pop_front();
        }
    }
}

/// Reads to the end. Frames go to `sink`, which the packer empties; the permits bound how many exist. `pages` is given if their
/// checksums are to be checked; the server was on `now_on` when it was asked.
async fn read(
    mut stream: BaseBackupStream<'_>,
    (pages, now_on): (Option<PageLayout>, TimelineId),
    sink: mpsc::Sender<Pressing>,
    progress: &dyn Progress,
) -> Result<(Heard, Kept)> {
    let permits = Arc::new(Semaphore::new(frames_in_flight()));
    let mut heard = Heard::default();
    let mut assembler = Assembler::new(pages);
    let mut rule = None;
    while let Some(event) = next(&mut stream, &mut heard).await? {
        match event {
            BackupEvent::Started { lsn, timeline } => {
                one_timeline(timeline, now_on)?;
                heard.start = Some((lsn, timeline));
                rule = pages.map(|layout| PageRule { layout, start: lsn });
            }
            BackupEvent::Ended { lsn, timeline } => heard.stop = Some((lsn, timeline)),
            BackupEvent::Tablespaces(list) => {
                let total = list.iter().filter_map(|space| space.size).fold(0_u64, u64::saturating_add);
                progress.begin("copying", Some(total).filter(|total| *total > 0));
                heard.tablespaces = list.into_iter().filter(|space| space.oid.is_some()).collect();
            }
            BackupEvent::ArchiveBegin { tablespace } => assembler.archive(tablespace).map_err(damaged)?,
            BackupEvent::ArchiveData(bytes) => {
                assembler.push(bytes);
                while let Some(frame) = assembler.frame().map_err(damaged)? {
                    let bytes = frame.plain.len();
                    hand_over(frame, rule, &permits, &sink).await?;
                    progress.advance(u64::try_from(bytes).unwrap_or(u64::MAX));
                }
            }
            BackupEvent::ManifestData(bytes) => heard.manifest.push(&bytes)?,
            BackupEvent::Notice(notice) if notice.severity == "WARNING" => {
                progress.note(&format!("WARNING of the server: {}", notice.message));
                if heard.warnings.len() < MOST_WARNINGS {
                    heard.warnings.push(notice.message);
                }
            }
            BackupEvent::ArchiveEnd
            | BackupEvent::ManifestBegin
            | BackupEvent::Progress { .. }
            | BackupEvent::Notice(_) => {}
        }
    }
    let (last, kept) = assembler.finish().map_err(damaged)?;
    hand_over(last, rule, &permits, &sink).await?;
    progress.end();
    Ok((heard, kept))
}

/// The next event. That pages are damaged comes after all data, in place of the end: it is one.
async fn next(stream: &mut BaseBackupStream<'_>, heard: &mut Heard) -> Result<Option<BackupEvent>> {
    match stream.next().await {
        Err(ConnError::Checksums(failure)) => {
            heard.damage = Some(failure);
            Ok(None)
        }
        other => other.map_err(lost),
    }
}

/// The connection or the command failed.
fn lost(error: ConnError) -> Error {
    facts::connection(error).context("the base backup was interrupted")
}

async fn hand_over(
    frame: Frame,
    rule: Option<PageRule>,
    permits: &Arc<Semaphore>,
    sink: &mpsc::Sender<Pressing>,
) -> Result<()> {
    // The semaphore is never closed, and the packer ends early only with an error of its own, which is the one reported.
    let gone = || Error::failed("the repository does not take the backup any more");
    let permit = Arc::clone(permits).acquire_owned().await.map_err(|_| gone())?;
    sink.send(Pressing::start(frame, rule, permit)).await.map_err(|_| gone())
}

fn damaged(error: TarError) -> Error {
    Error::failed("the server's archives cannot be read").source(error)
}
