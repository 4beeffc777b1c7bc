//! Frames become packs, packs become objects: compression on several threads, order kept, memory bounded.
//!
//! ```text
//!  reader ──► press (blocking threads, FRAMES at most) ──► packer, in order ──► put (PUTS_IN_FLIGHT at most) ──► every repository
//!             CRC-32C of each file's part, pages, BLAKE3, zstd     pack, extents        one conditional create each
//! ```
//! The packer is a task of its own, so that nothing of this slows the
//! one that reads the socket. What is in memory at one time: a few frames, one open pack and the packs under way, 256 MiB in the worst case. A pack is closed
//! once it has 32 MiB, of very large backups 96 MiB, which then go one at a time. Nothing here knows what the bytes mean, but for the pages of relations, which are checked on the way. If it is dropped, uploads end where they are: packs
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
use crate::repo::manifest::MAX_EXTENTS;
use crate::repo::objects::ObjectRef;
use crate::repo::pack::{self, CompressedFrame, PackBuilder, PackInfo, compress_frame};
use crate::repo::path::{BackupObject, MAX_PACKS};

/// Packs of usual size under way to the repositories at one time.
const PUTS_IN_FLIGHT: usize = 3;
/// Most threads that compress: more than a server should spare, and their frames would not fit the memory.
const MOST_WORKERS: usize = 8;
/// Of the fastest levels the best for table data; the one pg_basebackup is compared with.
const COMPRESSION: Compression = Compression::Zstd { level: 1 };

/// Packs as large as this one under way at one time.
fn puts_in_flight(number: u32) -> usize {
    if pack::target_of(number) > pack::TARGET { 1 } else { PUTS_IN_FLIGHT }
}

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
    next: u32,
    puts: JoinSet<Result<(u32, PackInfo)>>,
    packs: Vec<(u32, PackInfo)>,
}

impl Packer {
    /// Packs for these repositories.
    pub(super) fn new(targets: Targets) -> Self {
        Self {
            targets,
            listing: Listing::default(),
            path: Vec::new(),
            pages: PageFindings::default(),
            open: PackBuilder::new(pack::target_of(0)),
            next: 0,
            puts: JoinSet::new(),
            packs: Vec::new(),
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
        while self.puts.len() >= puts_in_flight(number) {
            if let Some(done) = self.puts.join_next().await {
                self.stored(done)?;
            }
        }
        self.next = number.saturating_add(1);
        let pack = std::mem::replace(&mut self.open, PackBuilder::new(pack::target_of(self.next)));
        let targets = self.targets.clone();
        let mut pack = pack.finish().map_err(unpackable)?;
        self.puts.spawn(async move {
            let chunks = targets.sealed(pack.chunks).await?;
            // What the manifest vouches for is the object as it is stored.
            let ObjectRef { stored, digest } = object_ref(&chunks);
            (pack.info.stored, pack.info.digest) = (stored, digest);
            targets.put(BackupObject::Pack(number), chunks).await?;
            Ok((number, pack.info))
        });
        Ok(())
    }

    fn stored(&mut self, done: std::result::Result<Result<(u32, PackInfo)>, JoinError>) -> Result<()> {
        self.packs.push(done.map_err(|error| Error::failed("an upload ended").source(error))??);
        Ok(())
    }
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

fn not_a_backup(error: Error) -> Error {
    error.context("the server's archives are not a base backup")
}

fn unpackable(error: pack::PackError) -> Error {
    Error::failed("cannot pack a piece of the backup").source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_grow_and_go_one_at_a_time_then() {
        assert_eq!((puts_in_flight(0), puts_in_flight(MAX_PACKS - 1)), (PUTS_IN_FLIGHT, 1));
        let under_way =
            |number| pack::target_of(number) * (u64::try_from(puts_in_flight(number)).unwrap() + 1);
        assert!((0..MAX_PACKS).all(|number| under_way(number) <= 192 << 20), "the bound on memory");
    }

    #[test]
    fn more_files_than_a_manifest_has_room_for_are_refused_by_number() {
        assert!(check_extents(MAX_EXTENTS).is_ok());
        let error = check_extents(MAX_EXTENTS + 1).unwrap_err();
        assert!(error.message().contains("more than 2000000 files"), "{error}");
    }
}
