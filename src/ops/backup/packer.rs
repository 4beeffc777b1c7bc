//! Frames become packs, packs become objects: compression on several threads, order kept, memory bounded.
//!
//! ```text
//!  reader ──► press (blocking threads, FRAMES at most) ──► packer, in order ──► put (UNDER_WAY at most) ──► every repository
//!             CRC-32C of each file's part, pages, BLAKE3, zstd     pack, extents        one conditional create each
//! ```
//! The packer is a task of its own, so that nothing of this slows the
//! one that reads the socket. What is in memory at one time: a few frames, one open pack and the packs under way, 256 MiB in the worst case. A pack is closed
//! once it has 32 MiB, of very large backups and within very large files 96 MiB, which then go one at a time. Nothing here knows what the bytes mean, but for the pages of relations, which are checked on the way. If it is dropped, uploads end where they are: packs
//! without a verdict are garbage that the next run and `expire` recognise.

use std::num::NonZeroUsize;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{JoinError, JoinHandle, JoinSet};

use super::assemble::{Frame, Part};
use super::listing::{Extent, Listing};
use super::pages::{Finding, PageFindings, PageRule};
use super::publish::object_ref;
use super::target::Targets;
use crate::codec::Compression;
use crate::error::{Error, Result};
use crate::repo::manifest::{MAX_EXTENTS, MAX_FILE_EXTENTS};
use crate::repo::objects::ObjectRef;
use crate::repo::pack::{self, CompressedFrame, PackBuilder, PackInfo, compress_frame};
use crate::repo::path::{BackupObject, MAX_PACKS};

/// Bytes of packs under way to the repositories at one time: three of usual size, or a large one.
const UNDER_WAY: u64 = 96 << 20;
/// Most threads that compress: more than a server should spare, and their frames would not fit the memory.
const MOST_WORKERS: usize = 8;
/// Of the fastest levels the best for table data; the one pg_basebackup is compared with.
const COMPRESSION: Compression = Compression::Zstd { level: 1 };

/// Frames that may exist at one time, from the first byte until they are in a pack.
pub(super) fn frames_in_flight() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cores.min(MOST_WORKERS).saturating_add(2)
}

/// A frame whose digests and compression are done.
#[derive(Debug)]
pub(super) struct Pressed {
    frame: CompressedFrame,
    parts: Vec<Part>,
    /// Of each [`Part::Data`], in order.
    looked: Vec<Looked>,
}

/// What a piece of a file shows.
#[derive(Debug, Default)]
struct Looked {
    /// CRC-32C.
    crc: u32,
    /// Pages that are not plainly right.
    findings: Vec<Finding>,
}

/// A frame on its way, with the permit that bounds how many there are.
#[derive(Debug)]
pub(super) struct Pressing {
    work: JoinHandle<Result<Pressed>>,
    permit: OwnedSemaphorePermit,
}

impl Pressing {
    /// Starts the work on a blocking thread. Pages are judged by `rule`, if there is one.
    pub(super) fn start(frame: Frame, rule: Option<PageRule>, permit: OwnedSemaphorePermit) -> Self {
        Self { work: tokio::task::spawn_blocking(move || press(frame, rule)), permit }
    }
}

fn press(frame: Frame, rule: Option<PageRule>) -> Result<Pressed> {
    let Frame { plain, parts } = frame;
    let looked = parts
        .iter()
        .filter_map(|part| match part {
            Part::Data { at, len, block } => {
                let data = plain.get(*at..at.saturating_add(*len)).unwrap_or_default();
                let findings = rule.zip(*block).map(|(rule, first)| rule.examine(data, first));
                Some(Looked { crc: crc32c::crc32c(data), findings: findings.unwrap_or_default() })
            }
            Part::Begin(_) | Part::End => None,
        })
        .collect();
    let frame = compress_frame(&plain, COMPRESSION).map_err(unpackable)?;
    Ok(Pressed { frame, parts, looked })
}

/// What the packs hold.
#[derive(Debug)]
pub(super) struct Packed {
    /// All members.
    pub(super) listing: Listing,
    /// All packs, by number.
    pub(super) packs: Vec<PackInfo>,
    /// Pages that are not plainly right.
    pub(super) pages: PageFindings,
}

/// Puts frames into packs and packs into the repositories.
#[derive(Debug)]
pub(super) struct Packer {
    targets: Targets,
    listing: Listing,
    /// The open member's.
    path: Vec<u8>,
    pages: PageFindings,
    open: PackBuilder,
    /// At which the open pack is closed.
    target: u64,
    next: u32,
    puts: JoinSet<Result<Put>>,
    /// Targets of the packs in `puts`.
    under_way: u64,
    packs: Vec<(u32, PackInfo)>,
    /// Makes a pack that is closed at so many bytes.
    make: fn(u64) -> PackBuilder,
}

/// A pack that is stored.
#[derive(Debug)]
struct Put {
    number: u32,
    info: PackInfo,
    target: u64,
}

impl Packer {
    /// Packs for these repositories.
    pub(super) fn new(targets: Targets) -> Self {
        Self::with(targets, PackBuilder::new)
    }

    fn with(targets: Targets, make: fn(u64) -> PackBuilder) -> Self {
        let target = pack::target_of(0, 0);
        Self {
            targets,
            listing: Listing::default(),
            path: Vec::new(),
            pages: PageFindings::default(),
            open: make(target),
            target,
            next: 0,
            puts: JoinSet::new(),
            under_way: 0,
            packs: Vec::new(),
            make,
        }
    }

    /// Takes frames until there are no more, and waits until every pack is stored.
    ///
    /// # Errors
    /// The first failure of a repository, or members that do not add up.
    pub(super) async fn run(mut self, mut frames: mpsc::Receiver<Pressing>) -> Result<Packed> {
        while let Some(Pressing { work, permit }) = frames.recv().await {
            let pressed =
                work.await.map_err(|error| Error::failed("a compressing thread ended").source(error))??;
            self.take(pressed).await?;
            drop(permit);
            // A repository that failed should end the backup now, not a pack later.
            while let Some(done) = self.puts.try_join_next() {
                self.stored(done)?;
            }
        }
        self.close().await?;
        while let Some(done) = self.puts.join_next().await {
            self.stored(done)?;
        }
        self.packs.sort_unstable_by_key(|(number, _)| *number);
        let packs = self.packs.into_iter().map(|(_, info)| info).collect();
        Ok(Packed { listing: self.listing, packs, pages: self.pages })
    }

    async fn take(&mut self, pressed: Pressed) -> Result<()> {
        let Pressed { frame, parts, looked } = pressed;
        if self.open.is_full() {
            self.close().await?;
        }
        let base = self.open.plain_len();
        self.open.push(frame).map_err(unpackable)?;
        let mut looked = looked.into_iter();
        for part in parts {
            match part {
                Part::Begin(member) => {
                    self.path.clone_from(&member.path);
                    self.listing.begin(*member);
                }
                Part::Data { at, len, .. } => {
                    let Looked { crc, findings } = looked.next().unwrap_or_default();
                    for finding in findings {
                        self.pages.add(&self.path, finding);
                    }
                    let offset = base.saturating_add(u64::try_from(at).unwrap_or(u64::MAX));
                    let len = u64::try_from(len).unwrap_or(u64::MAX);
                    self.listing.extend(Extent { pack: self.next, offset, len }, crc);
                    check_pieces(self.listing.pieces(), &self.path)?;
                }
                Part::End => {
                    self.listing.end().map_err(not_a_backup)?;
                    check_extents(self.listing.extents())?;
                }
            }
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let number = self.next;
        if number >= MAX_PACKS {
            return Err(too_many());
        }
        let target = self.target;
        while !has_room(self.under_way, target) {
            let Some(done) = self.puts.join_next().await else { break };
            self.stored(done)?;
        }
        self.next = number.saturating_add(1);
        self.target = pack::target_of(self.next, self.listing.pieces());
        let pack = std::mem::replace(&mut self.open, (self.make)(self.target));
        let targets = self.targets.clone();
        let mut pack = pack.finish().map_err(unpackable)?;
        self.under_way = self.under_way.saturating_add(target);
        self.puts.spawn(async move {
            let chunks = targets.sealed(pack.chunks).await?;
            // What the manifest vouches for is the object as it is stored.
            let ObjectRef { stored, digest } = object_ref(&chunks);
            (pack.info.stored, pack.info.digest) = (stored, digest);
            targets.put(BackupObject::Pack(number), chunks).await?;
            Ok(Put { number, info: pack.info, target })
        });
        Ok(())
    }

    fn stored(&mut self, done: std::result::Result<Result<Put>, JoinError>) -> Result<()> {
        let Put { number, info, target } =
            done.map_err(|error| Error::failed("an upload ended").source(error))??;
        self.under_way = self.under_way.saturating_sub(target);
        self.packs.push((number, info));
        Ok(())
    }
}

/// Whether a pack may go while these are under way; any may go alone.
const fn has_room(under_way: u64, target: u64) -> bool {
    under_way == 0 || under_way.saturating_add(target) <= UNDER_WAY
}

/// More could be stored, and never be read.
pub(super) fn too_many() -> Error {
    Error::failed(format!("the backup takes more than {MAX_PACKS} packs"))
        .hint("it has more than 6 TiB as stored, which pitr cannot hold yet: please report it")
}

/// Found out when the first one too many comes, not when everything was sent and the manifest is written.
fn check_extents(extents: u64) -> Result<()> {
    if extents <= MAX_EXTENTS {
        return Ok(());
    }
    Err(Error::failed(format!("the backup has more than {MAX_EXTENTS} files with something in them"))
        .hint("pitr cannot hold so many yet: please report it"))
}

/// The same of one file: an hour may lie between the piece that is one too many and the manifest.
fn check_pieces(pieces: usize, path: &[u8]) -> Result<()> {
    if pieces <= MAX_FILE_EXTENTS {
        return Ok(());
    }
    let path = String::from_utf8_lossy(path);
    Err(Error::failed(format!("file {path:?} takes more than {MAX_FILE_EXTENTS} packs"))
        .hint("it has more than 90 GiB as stored, which pitr cannot hold: if it is a core dump, or no file of PostgreSQL's, move it out of the data directory"))
}

fn not_a_backup(error: Error) -> Error {
    error.context("the server's archives are not a base backup")
}

fn unpackable(error: pack::PackError) -> Error {
    Error::failed("cannot pack a piece of the backup").source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::pgwire::tar::{Member, MemberKind};

    #[test]
    fn packs_grow_and_go_one_at_a_time_then() {
        let (usual, large) = (pack::target_of(0, 0), pack::target_of(MAX_PACKS - 1, 0));
        let under_way = |target: u64| (0..).take_while(|n| has_room(n * target, target)).count();
        assert_eq!((under_way(usual), under_way(large)), (3, 1));
        assert!(!has_room(usual, large) && !has_room(large, usual), "small ones beside a large one");
        assert!(UNDER_WAY + large <= 192 << 20, "the bound on memory, with the open pack");
    }

    fn frame(begins: Option<(&str, u64)>, data: usize, ends: bool) -> Frame {
        let mut parts = Vec::new();
        if let Some((path, size)) = begins {
            let kind = MemberKind::File { size };
            let member = Member { path: path.into(), kind, mode: 0o600, uid: 1, gid: 1, mtime: 1 };
            parts.push(Part::Begin(Box::new(member)));
        }
        parts.push(Part::Data { at: 0, len: data, block: None });
        parts.extend(ends.then_some(Part::End));
        Frame { plain: vec![7; data], parts }
    }

    #[tokio::test]
    async fn a_file_in_too_many_packs_is_refused_by_name_when_the_first_too_many_comes() {
        // Packs of a byte: each frame has one of its own. No repository takes them.
        let mut packer = Packer::with(Targets::none(), |_| PackBuilder::tiny(1));
        let take = async |packer: &mut Packer, frame| {
            (packer.puts, packer.under_way) = (JoinSet::new(), 0);
            packer.take(press(frame, None).unwrap()).await
        };
        let size = u64::try_from(MAX_FILE_EXTENTS).unwrap();
        for n in 0..MAX_FILE_EXTENTS {
            let begins = (n == 0).then_some(("base/1/fits", size));
            take(&mut packer, frame(begins, 1, n + 1 == MAX_FILE_EXTENTS)).await.unwrap();
            let number = u32::try_from(n).unwrap();
            assert_eq!(packer.target, pack::target_of(number, n), "{n} pieces were there when it began");
        }
        take(&mut packer, frame(Some(("core.77", 1 << 40)), 1, false)).await.unwrap();
        assert_eq!(packer.target, pack::TARGET, "the next file begins small");
        for _ in 1..MAX_FILE_EXTENTS {
            take(&mut packer, frame(None, 1, false)).await.unwrap();
        }
        let error = take(&mut packer, frame(None, 1, false)).await.unwrap_err();
        assert!(error.message().contains("\"core.77\" takes more than 1000 packs"), "{error}");
    }

    #[test]
    fn more_files_than_a_manifest_has_room_for_are_refused_by_number() {
        assert!(check_extents(MAX_EXTENTS).is_ok());
        let error = check_extents(MAX_EXTENTS + 1).unwrap_err();
        assert!(error.message().contains("more than 2000000 files"), "{error}");
    }
}
