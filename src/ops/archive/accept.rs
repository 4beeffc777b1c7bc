//! `accept`: an operator's decision to archive a segment that is damaged, so that archiving gets past it.
//!
//! ```text
//!  segment ─► scan: where does valid WAL stop? ─► object with `end=damaged`, valid up to there
//!                                                 per repository: record of the gap ─► the object itself
//! ```
//! A damaged segment in `pg_wal` stops the archiver for good: it offers the same file again and again. What can be saved is what lies
//! before the damage, and all that comes after the next backup. Invariants: a sound segment is refused; the file is stored as it is,
//! so that nobody's later look at it is lost; the record of the gap is there before the object, so that every listing that shows the
//! segment shows the gap; nothing that is stored is replaced, and a good copy that turns up later is stored beside the damaged one.
//! The decision is kept in the repository: `archive-push` of that segment says yes from then on. Source of truth: REPOSITORY.md 3.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::data_directories;
use super::file::{BLOCK, WalContent, read_full, unbuildable, unreadable};
use super::push::{Offer, PushReport, cluster_of, control_of, refuse_copies};
use crate::clock::{Clock as _, SystemClock};
use crate::codec::Compression;
use crate::error::{Error, Result};
use crate::repo::objects::AcceptedGap;
use crate::repo::path::ClusterName;
use crate::repo::walobject::{Asked, Facts, WalObjectBuilder};
use crate::repo::{Repository, nonce, this_process};
use crate::wal::page::PageHeader;
use crate::wal::scan::{Keep, ScanError, Scanner};
use crate::wal::{Lsn, SegmentName, SegmentSize, SystemId, WalFileName};

/// What accepting came to.
#[derive(Debug)]
pub struct AcceptReport {
    /// What was stored where.
    pub push: PushReport,
    /// What is wrong with the segment.
    pub damage: String,
    /// First byte after the last valid record of it.
    pub valid_to: Lsn,
}

/// Stores a damaged segment and records the gap, in every repository. Safe to repeat.
///
/// # Errors
/// `Usage` for a file that is no segment, `Refused` for one that is sound and where other content is stored under its name,
/// `Corrupt` for one that is cut off, `Failed` if nobody can tell whose it is; otherwise what failed.
pub async fn accept(
    repositories: &[Repository],
    path: &Path,
    data_dir: Option<&Path>,
    compression: Compression,
) -> Result<AcceptReport> {
    refuse_copies(&data_directories(path, data_dir))?;
    let wounded = Wounded::open(path, data_dir)?;
    let offer = wounded.offer(compression);
    let segment = wounded.segment;
    let found = wounded.read(cluster_of(repositories.iter())?, compression).await?;
    let Some((content, damage)) = found else {
        return Err(Error::refused(format!("{segment} is sound: there is no damage to accept"))
            .hint("`pitr archive-push` stores it; what does its error say?"));
    };
    let valid_to = content.object.header.valid.map_or(Lsn::ZERO, |valid| valid.to);
    let gap = AcceptedGap {
        segment,
        valid_to,
        damage: damage.clone(),
        nonce: nonce()?,
        created: SystemClock.now(),
        process: this_process(),
    };
    let push = offer.to(repositories, std::future::ready(Ok(content)), Some(&gap)).await?;
    Ok(AcceptReport { push, damage, valid_to })
}

/// For `archive-push` of a damaged segment: stores it if an operator accepted it in every required repository. `None`: nobody did, or
/// it is not damaged. An optional repository that was away when it was accepted gets the record now.
///
/// # Errors
/// As [`accept`].
pub(super) async fn store_accepted(
    repositories: &[Repository],
    path: &Path,
    data_dir: Option<&Path>,
    compression: Compression,
) -> Result<Option<PushReport>> {
    // Whatever this cannot make sense of has been refused already, with a better error.
    let Ok(wounded) = Wounded::open(path, data_dir) else { return Ok(None) };
    let mut accepted = None;
    for repository in repositories {
        let gap = async { repository.open(wounded.system).await?.accepted_gap(wounded.segment).await };
        match (gap.await, repository.is_required()) {
            (Ok(Some(gap)), _) => accepted = Some(gap),
            (Ok(None), true) => return Ok(None),
            (Err(e), true) => return Err(e.into()),
            (Ok(None) | Err(_), false) => {}
        }
    }
    let Some(gap) = accepted else { return Ok(None) };
    let offer = wounded.offer(compression);
    match wounded.read(cluster_of(repositories.iter())?, compression).await? {
        Some((content, _)) => {
            offer.to(repositories, std::future::ready(Ok(content)), Some(&gap)).await.map(Some)
        }
        None => Ok(None),
    }
}

/// A segment that may be damaged anywhere, its first page included.
#[derive(Debug)]
struct Wounded {
    path: PathBuf,
    segment: SegmentName,
    system: SystemId,
    size: SegmentSize,
}

impl Wounded {
    /// Finds out whose segment it is: by the data directory, else by its first page.
    fn open(path: &Path, data_dir: Option<&Path>) -> Result<Self> {
        let text = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Ok(segment) = SegmentName::parse(&text) else {
            return Err(Error::usage(format!("{} is not a WAL segment's name", path.display())).hint(
                "only segments can be accepted: `pitr accept pg_wal/00000001000000000000002A --damaged`",
            ));
        };
        let mut file = File::open(path).map_err(|e| unreadable(path, e))?;
        let length = file.metadata().map_err(|e| unreadable(path, e))?.len();
        let directories = data_directories(path, data_dir);
        let (system, size) = match control_of(&directories, WalFileName::Segment(segment)) {
            Ok(control) => (control.system_id, control.segment_size),
            Err(e) => first_page(&mut file).ok_or(e)?,
        };
        if length != size.bytes() {
            return Err(Error::corrupt(format!(
                "{segment} has {length} bytes, but segments of this cluster have {}",
                size.bytes()
            ))
            .hint(format!("if the rest of it is lost, fill it up: `truncate -s {} FILE`", size.bytes())));
        }
        Ok(Self { path: path.to_owned(), segment, system, size })
    }

    fn offer(&self, compression: Compression) -> Offer<'_> {
        let name = WalFileName::Segment(self.segment);
        Offer { path: &self.path, name, system: self.system, segment_size: Some(self.size), compression }
    }

    /// Reads it and makes its object; `None` if it is sound.
    async fn read(
        &self,
        cluster: ClusterName,
        compression: Compression,
    ) -> Result<Option<(WalContent, String)>> {
        let (path, segment, size) = (self.path.clone(), self.segment, self.size);
        let asked = Asked { cluster, system: self.system, name: WalFileName::Segment(segment) };
        let work = tokio::task::spawn_blocking(move || {
            let Some(error) = find_damage(&path, segment, size)? else { return Ok(None) };
            let sound = match &error {
                ScanError::Damaged { lsn, .. } => *lsn,
                // Its first page is not what it must be: nothing in it can be believed.
                _ => segment.number(size).map(|n| n.start(size)).unwrap_or_default(),
            };
            let content = build(&path, segment, size, sound, asked, compression)?;
            Ok(Some((content, error.to_string())))
        });
        work.await.map_err(|e| Error::failed(format!("reading {segment} was cut off")).source(e))?
    }
}

/// Whose segment it is, if its first page can be read.
fn first_page(file: &mut File) -> Option<(SystemId, SegmentSize)> {
    let mut page = vec![0_u8; 8192];
    let read = read_full(file, &mut page).ok()?;
    page.truncate(read);
    let long = PageHeader::parse(&page).ok()?.long?;
    Some((long.system_id, SegmentSize::new(u64::from(long.segment_size)).ok()?))
}

/// Hands the file to `take` in blocks.
fn blocks(path: &Path, mut take: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
    let mut file = File::open(path).map_err(|e| unreadable(path, e))?;
    let mut block = vec![0_u8; BLOCK];
    loop {
        let read = read_full(&mut file, &mut block).map_err(|e| unreadable(path, e))?;
        let (bytes, _) = block.split_at(read.min(block.len()));
        if bytes.is_empty() || !take(bytes)? {
            return Ok(());
        }
    }
}

/// What is wrong with the segment; `None`: nothing.
fn find_damage(path: &Path, segment: SegmentName, size: SegmentSize) -> Result<Option<ScanError>> {
    let mut scanner =
        Scanner::new(segment, size, Keep::Summary).map_err(|e| Error::usage(e.to_string()).source(e))?;
    let mut found = None;
    blocks(path, |bytes| {
        found = scanner.push(bytes).err();
        Ok(found.is_none())
    })?;
    Ok(found.or_else(|| scanner.finish().err()))
}

/// The object of the whole file, of which what lies before `sound` is valid.
fn build(
    path: &Path,
    segment: SegmentName,
    size: SegmentSize,
    sound: Lsn,
    asked: Asked,
    compression: Compression,
) -> Result<WalContent> {
    let name = asked.name;
    let mut builder =
        WalObjectBuilder::new(asked, size.bytes(), compression).map_err(|e| unbuildable(name, e))?;
    let mut scanner = Scanner::new(segment, size, Keep::Summary).ok();
    let start = segment.number(size).map(|n| n.start(size)).unwrap_or(sound);
    let mut left = usize::try_from(sound.bytes_since(start)).unwrap_or(usize::MAX);
    blocks(path, |bytes| {
        builder.push(bytes).map_err(|e| unbuildable(name, e))?;
        let (valid, _) = bytes.split_at(left.min(bytes.len()));
        left = left.saturating_sub(valid.len());
        // The file changed under our hands: nothing of it is promised then.
        scanner = scanner.take().and_then(|mut scan| scan.push(valid).is_ok().then_some(scan));
        Ok(true)
    })?;
    let scan = scanner.filter(|_| sound > start).and_then(|scan| scan.finish_padded().ok());
    let object = builder.finish(Facts::Damaged(scan.as_ref())).map_err(|e| unbuildable(name, e))?;
    Ok(WalContent { object, scan })
}
