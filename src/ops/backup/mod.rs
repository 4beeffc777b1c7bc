//! `backup`: a base backup over the replication protocol, stored while it streams, real with its last object.
//!
//! ```text
//!  prepare   is this the right server, may it be backed up                     nothing is written
//!  target    lease, intent.json: the WAL that will be needed is kept           from here on: abandoned if anything fails
//!  stream    BASE_BACKUP ─► assemble ─► packer ─► pack-*                       bounded memory, several threads; pages are checked
//!  check     every file against the server's backup_manifest
//!  publish   catalogue, backup_manifest, manifest
//!  wal       every segment from start to stop is stored
//!  wraps     of the key that it was sealed with are there still
//!  verdict   backup.json {complete}                                            the backup exists after this object;
//!                                                                              with damaged pages it is marked, and used only by name
//! ```
//! A run that dies leaves objects without a verdict: never listed, recognised by the next run, removed by `expire`. A run that
//! fails says so itself with the verdict {abandoned}. Both creates are of the same key, so exactly one of "complete" and "abandoned"
//! is ever true. Source of truth: REPOSITORY.md 4 (order of writes), RECOVERY.md 24 to 26, `basebackup.c` of PostgreSQL 13 to 18.

mod assemble;
pub mod catalogue;
mod check;
mod facts;
mod held;
mod histories;
mod listing;
mod needed;
mod packer;
mod pages;
mod prepare;
mod publish;
mod stream;
mod target;
mod wal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock as _, SystemClock};
use crate::codec::ShortDigest;
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::pgdata::backup_manifest::WalRange;
use crate::pgdata::page::{self, PageLayout, PageLook};
use crate::pgdata::{BackupLabel, ControlFile};
use crate::pgwire::{BaseBackupOptions, Checkpoint, ChecksumFailure, ConnInfo, Deadlines, TablespaceInfo};
use crate::repo::manifest::ManifestHeader;
use crate::repo::objects::{Backup, BackupKind, Checksums, ObjectRef, PackTotals, Status, Tablespace};
use crate::repo::pack::PackInfo;
use crate::repo::path::{BackupObject, MAX_PACKS};
use crate::repo::{Repository, this_process};
use crate::seal::Epoch;
use crate::wal::{PgTime, SegmentName, SegmentNo};
use held::Held;
use listing::Sealed;
use prepare::Server;
use stream::Transfer;
use target::Targets;

/// How long nothing of the missing WAL may arrive before a backup is given up.
pub const WAL_PATIENCE: Duration = Duration::from_secs(600);

/// Messages of the server about damaged pages that are kept.
const MOST_TOLD: usize = 20;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// The server, for both kinds of session.
    pub conninfo: ConnInfo,
    /// How long to wait for its answers.
    pub deadlines: Deadlines,
    /// The data directory of the configuration, for a role that may not ask the server.
    pub data_dir: Option<PathBuf>,
    /// Kept with the backup.
    pub label: String,
    /// How the server makes the first checkpoint.
    pub checkpoint: Checkpoint,
    /// Limit of the transfer in kB/s.
    pub max_rate: Option<u32>,
    /// How long nothing of the missing WAL may arrive ([`WAL_PATIENCE`]).
    pub wal_patience: Duration,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupReport {
    /// The verdict that was stored.
    pub backup: Backup,
    /// The repositories that have it.
    pub repositories: Vec<String>,
    /// From the first checks to the verdict.
    pub took: Duration,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Takes a full backup of the server into every one of `repositories`. One with damaged pages is kept, since it may be all there is,
/// and says so: [`Checksums::Corrupt`], with what is known of them.
///
/// Dropped, or ended by `cancel`, it leaves a backup without verdict or an abandoned one, and nothing that a later run stumbles over.
///
/// # Errors
/// Kind `Refused` for a copy or a foreign cluster, `Busy` while another backup runs, `Corrupt` if what arrived is not what was sent,
/// `Interrupted` after `cancel`; otherwise what failed, and where.
pub async fn backup(
    request: &BackupRequest,
    repositories: &[Repository],
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<BackupReport> {
    let began = std::time::Instant::now();
    let stopped = || Error::new(Kind::Interrupted, "the backup was interrupted");
    progress.begin("looking at the server", None);
    let mut server = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(stopped()),
        server = prepare::server(request) => server?,
    };
    for warning in &server.warnings {
        progress.note(&format!("warning: {warning}"));
    }
    let targets = Targets::claim(repositories, &server).await?;
    let done = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(stopped()),
        // Boxed: the state of a whole backup should not travel with every caller's.
        done = Box::pin(perform(request, &mut server, &targets, progress)) => done,
        never = targets.heartbeat() => match never {},
    };
    progress.end();
    match done {
        Ok((backup, warnings)) => Ok(BackupReport {
            backup,
            repositories: targets.iter().map(|system| system.repository().name().to_owned()).collect(),
            took: began.elapsed(),
            warnings,
        }),
        Err(error) => {
            server.abandon().await;
            targets.abandon(&error).await;
            Err(error)
        }
    }
}

/// Everything between the intent and the verdict.
async fn perform(
    request: &BackupRequest,
    server: &mut Server,
    targets: &Targets,
    progress: &dyn Progress,
) -> Result<(Backup, Vec<String>)> {
    let options = BaseBackupOptions {
        label: format!("pitr {}", targets.id()),
        checkpoint: request.checkpoint,
        max_rate: request.max_rate,
        ..BaseBackupOptions::default()
    };
    progress.begin("waiting for the server's checkpoint", None);
    let transfer = stream::transfer(server, &options, targets, progress).await?;
    let mut verified = verified(transfer, server)?;
    progress.begin("storing the manifest", None);
    let metadata = store_metadata(&mut verified, server, targets).await?;
    progress.begin("waiting for WAL", None);
    let window_earliest = settle_wal(request, &verified, server, targets, progress).await?;
    let mut warnings = std::mem::take(&mut server.warnings);
    warnings.append(&mut verified.warnings);
    let backup = verdict(request, server, targets, &verified, &metadata, window_earliest)?;
    targets.are_wrapped().await?;
    targets.publish(&backup).await?;
    Ok((backup, warnings))
}

/// Is what arrived what the server sent, and does it describe itself as the server did?
fn verified(transfer: Transfer, server: &Server) -> Result<Verified> {
    let (start, timeline) = transfer.start;
    stream::one_timeline(timeline, transfer.stop.1)?;
    if start < server.floor_lsn {
        return Err(Error::failed(format!(
            "the backup starts at {start}, before {}, from which on its WAL is kept",
            server.floor_lsn
        )));
    }
    let damaged = |what: &str| Error::failed(format!("the server sent no usable {what}"));
    let label = BackupLabel::parse(&transfer.kept.label).map_err(|e| damaged("backup_label").source(e))?;
    let control =
        ControlFile::parse(&transfer.kept.control).map_err(|e| damaged("global/pg_control").source(e))?;
    let layout = PageLayout::new(control.block_size, control.relation_segment_blocks);
    let pages = layout.filter(|_| control.has_checksums());
    let says = (label.start_lsn, control.system_id, control.segment_size, pages);
    if says != (start, server.identity.system_id, server.segment_size, server.facts.pages) {
        return Err(Error::failed("backup_label or pg_control of the backup contradict the server"));
    }
    let sealed = transfer.packed.listing.seal()?;
    // A role that may not look into the data directory learns it here.
    if transfer.kept.is_copy {
        return Err(prepare::is_a_copy());
    }
    let summary = check::against_manifest(&transfer.manifest, &sealed).map_err(|error| {
        Error::corrupt("what arrived is not what the server sent").source(error).hint(
            "the network or this host's memory changed bytes; nothing of this backup will be used, take another",
        )
    })?;
    if summary.system_id.is_some_and(|system| system != server.identity.system_id) {
        return Err(Error::failed("backup_manifest names another cluster than the server"));
    }
    let ranges = needed::from_start(summary.wal_ranges, start);
    needed::check_ranges(&ranges, (start, transfer.stop.0), server.segment_size)?;
    let local = server.local.as_deref().zip(pages);
    let again = |path: &[u8], block| local.and_then(|(dir, layout)| look_again(dir, layout, path, block));
    let report = transfer.packed.pages.judge(transfer.stop.0, again);
    let mut warnings = transfer.warnings;
    warnings.extend(report.notes);
    Ok(Verified {
        sent: sealed,
        ranges,
        packs: transfer.packed.packs,
        manifest: transfer.manifest,
        start: transfer.start,
        stop: transfer.stop,
        tablespaces: transfer.tablespaces,
        checksums: control.has_checksums(),
        damage: damage_of(report.damage, transfer.damage.as_deref()),
        stop_time: transfer.sample.map(|sample| sample.time),
        checkpoint_time: Timestamp::from_second(control.checkpoint.time)
            .map_err(|e| damaged("checkpoint time").source(e))?,
        warnings,
    })
}

/// A page as it is in its file now, if that can be read here.
fn look_again(data_dir: &Path, layout: PageLayout, path: &[u8], block: u32) -> Option<PageLook> {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(data_dir.join(std::ffi::OsStr::from_bytes(path))).ok()?;
    let mut page = vec![0; layout.block_bytes()];
    file.read_exact_at(&mut page, layout.offset(block)).ok()?;
    Some(page::look(&page, block))
}

/// Damaged pages by our own look; what the server said counts where we saw nothing, as in files that are no relation's.
fn damage_of(mut ours: Vec<String>, servers: Option<&ChecksumFailure>) -> Vec<String> {
    if let (true, Some(failure)) = (ours.is_empty(), servers) {
        ours.extend(failure.warnings.iter().take(MOST_TOLD).map(|warning| warning.message.clone()));
        ours.push(failure.error.message.clone());
    }
    ours
}

/// A transfer that is what the server sent.
struct Verified {
    sent: Sealed,
    ranges: Vec<WalRange>,
    packs: Vec<PackInfo>,
    manifest: Held,
    start: stream::Position,
    stop: stream::Position,
    tablespaces: Vec<TablespaceInfo>,
    checksums: bool,
    /// Damaged pages, a line each.
    damage: Vec<String>,
    stop_time: Option<PgTime>,
    /// Of the control file: everything committed by then lies before the start. On an idle standby nothing newer is known.
    checkpoint_time: Timestamp,
    warnings: Vec<String>,
}

/// The three objects beside the packs.
struct Metadata {
    key: Option<Epoch>,
    catalogue: ObjectRef,
    pg_manifest: ObjectRef,
    manifest: ObjectRef,
}

async fn store_metadata(verified: &mut Verified, server: &Server, targets: &Targets) -> Result<Metadata> {
    let catalogue =
        server.catalogue.encode().map_err(|e| Error::failed("cannot write the catalogue").source(e))?;
    let catalogue = put(targets, BackupObject::Catalogue, vec![catalogue.into()]).await?;
    let pg_manifest =
        put(targets, BackupObject::PgManifest, std::mem::take(&mut verified.manifest).chunks()?).await?;
    let header = ManifestHeader { backup: targets.id().clone(), system: server.identity.system_id };
    let manifest = publish::manifest(&header, &verified.packs, &verified.sent)?;
    let manifest = put(targets, BackupObject::Manifest, manifest.chunks).await?;
    Ok(Metadata { catalogue, pg_manifest, manifest, key: targets.epoch().await? })
}

async fn put(targets: &Targets, object: BackupObject, chunks: Vec<Bytes>) -> Result<ObjectRef> {
    let chunks = targets.sealed(chunks).await?;
    let found = publish::object_ref(&chunks);
    targets.put(object, chunks).await?;
    Ok(found)
}

/// Waits for the WAL and asks it for the largest commit time.
async fn settle_wal(
    request: &BackupRequest,
    verified: &Verified,
    server: &mut Server,
    targets: &Targets,
    progress: &dyn Progress,
) -> Result<Option<PgTime>> {
    let wanted = wal::Wanted {
        ranges: &verified.ranges,
        start: verified.start.0,
        stop: verified.stop.0,
        timeline: verified.stop.1,
        size: server.segment_size,
        in_recovery: server.facts.in_recovery,
        local: server.local.clone(),
        patience: request.wal_patience,
    };
    histories::bring(&mut server.replication, targets, wanted.timeline).await?;
    wal::wait(&wanted, &mut server.sql, targets, progress).await?;
    let system = targets.first()?;
    if system.can_open()
        && let Some(earliest) = wal::window_earliest(&wanted, system).await?
    {
        return Ok(earliest);
    }
    // Without a key no commit is read: everything inside is taken to be as late as the server's own clock at the stop.
    let stop =
        verified.stop_time.unwrap_or_else(|| PgTime::from_unix_micros(SystemClock.now().as_microsecond()));
    wal::latest_in_clear(&wanted, system, stop).await.map(Some)
}

fn verdict(
    request: &BackupRequest,
    server: &Server,
    targets: &Targets,
    verified: &Verified,
    metadata: &Metadata,
    window_earliest: Option<PgTime>,
) -> Result<Backup> {
    let packs = pack_totals(&verified.packs)?;
    let cluster_bytes = verified.sent.file_bytes();
    let (start, timeline) = verified.start;
    let beside = [metadata.catalogue.stored, metadata.pg_manifest.stored, metadata.manifest.stored];
    Ok(Backup {
        status: Status::Complete,
        id: targets.id().clone(),
        nonce: targets.nonce(),
        kind: BackupKind::Full,
        cluster: targets.first()?.repository().cluster().clone(),
        system: server.identity.system_id,
        major: server.major,
        server_version: server.facts.version_num,
        segment_size: server.segment_size,
        timeline,
        start_lsn: start,
        stop_lsn: verified.stop.0,
        started_at: server.started_at,
        finished_at: SystemClock.now(),
        stop_time: verified.stop_time.and_then(timestamp).unwrap_or(verified.checkpoint_time),
        window_earliest: window_earliest.and_then(timestamp),
        key: metadata.key,
        wal_floor: SegmentName::new(
            timeline,
            SegmentNo::containing(start, server.segment_size),
            server.segment_size,
        ),
        label: request.label.clone(),
        from_standby: server.facts.in_recovery,
        checksums: match (verified.damage.is_empty(), verified.checksums) {
            (false, _) => Checksums::Corrupt,
            (true, true) => Checksums::Ok,
            (true, false) => Checksums::Off,
        },
        damage: verified.damage.clone(),
        cluster_bytes,
        new_bytes: cluster_bytes,
        stored_bytes: beside.iter().fold(packs.stored, |sum, bytes| sum.saturating_add(*bytes)),
        files: verified.sent.members(),
        tablespaces: verified.tablespaces.iter().filter_map(tablespace).collect(),
        packs,
        pack_digests: pack_digests(&verified.packs, metadata.key.is_some()),
        references: Vec::new(),
        manifest: metadata.manifest,
        pg_manifest: Some(metadata.pg_manifest),
        catalogue: Some(metadata.catalogue),
        process: this_process(),
    })
}

fn pack_totals(packs: &[PackInfo]) -> Result<PackTotals> {
    let count = u32::try_from(packs.len()).ok().filter(|count| *count <= MAX_PACKS);
    let count = count.ok_or_else(packer::too_many)?;
    let sum = |part: fn(&PackInfo) -> u64| packs.iter().map(part).fold(0_u64, u64::saturating_add);
    Ok(PackTotals { count, stored: sum(|pack| pack.stored), plain: sum(|pack| pack.plain) })
}

/// What stands in for an encrypted manifest where nobody has a key.
fn pack_digests(packs: &[PackInfo], encrypted: bool) -> Vec<ShortDigest> {
    if encrypted { packs.iter().map(|pack| pack.digest.short()).collect() } else { Vec::new() }
}

fn tablespace(info: &TablespaceInfo) -> Option<Tablespace> {
    let location = info.location.as_deref().unwrap_or_default();
    Some(Tablespace { oid: info.oid?, location: String::from_utf8_lossy(location).into_owned() })
}

fn timestamp(time: PgTime) -> Option<Timestamp> {
    Timestamp::from_microsecond(time.unix_micros()).ok()
}
