//! Fetching: packs by ranged reads, frames checked, bytes written where they belong.
//!
//! ```text
//!  pieces (by pack, offset) ─► frames that hold them ─► groups of <= 8 MiB stored ─┬─► GET range ─► frame: zstd, BLAKE3 ─► pwrite
//!                                                                                  ├─► …    `jobs` at a time
//!                                                                                  └─► …
//!  all there ─► CRC-32C of every file, put together from its parts, against the server's own manifest
//! ```
//! Invariants: no byte reaches a file before the digest of its frame matched; memory is `jobs` groups, whatever the size of the
//! cluster; a group is read again from its first frame, never from the pack's; what the manifest promises is there, or it fails.
//! Two checks of different origin: the frame's digest is ours, the file's CRC is PostgreSQL's.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::repo::manifest::PackLine;
use crate::repo::pack::{FrameEntry, PackTable};

use super::image::{Image, Piece};

/// Stored bytes of one ranged read. Two frames of the size that backups write; one larger frame is a group of its own.
const GROUP_BYTES: u64 = 8 << 20;
/// Pack tables that are fetched ahead of the bytes.
const TABLES_AHEAD: usize = 2;

/// Where packs come from.
pub trait Packs: Send + Sync {
    /// The frames of a pack.
    fn table(&self, pack: &PackLine) -> impl Future<Output = Result<PackTable>> + Send;
    /// Bytes of a pack's object, exactly as many as asked for.
    fn read(&self, pack: &PackLine, range: Range<u64>) -> impl Future<Output = Result<Bytes>> + Send;
}

/// Where bytes of files go. Called by many threads at a time.
pub trait Sink: Send + Sync + 'static {
    /// Takes bytes of the file `row` from offset `at` on.
    ///
    /// # Errors
    /// Ends the whole fetch.
    fn put(&self, row: u32, at: u64, bytes: &[u8]) -> Result<()>;
}

/// A part of a file that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    row: u32,
    at: u64,
    len: u64,
    crc: u32,
}

/// Which frames of a pack are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Frames {
    /// Those that hold bytes of a wanted file.
    Wanted,
    /// All.
    All,
}

/// Frames that are read together.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Group {
    pack: PackLine,
    frames: Vec<FrameEntry>,
    pieces: Vec<Piece>,
}

/// Fetches `pieces` (ordered as in an image) into `sink`, `jobs` reads at a time.
///
/// Dropped, or failed, it leaves files half written: the caller's marker says so.
///
/// # Errors
/// Kind `Corrupt` for damaged or missing bytes, else as store and sink answer.
pub async fn fetch<P: Packs, S: Sink>(
    packs: &P,
    image: &Image,
    pieces: &[Piece],
    jobs: usize,
    sink: &Arc<S>,
    progress: &dyn Progress,
) -> Result<()> {
    let runs: Vec<&[Piece]> = pieces.chunk_by(|a, b| a.pack == b.pack).collect();
    let tables = stream::iter(runs).map(|run| groups_of(packs, image, run)).buffered(TABLES_AHEAD);
    let groups = tables.map_ok(|groups| stream::iter(groups.into_iter().map(Ok))).try_flatten();
    let mut done = std::pin::pin!(
        groups
            .map(|group: Result<Group>| async { perform(packs, group?, Arc::clone(sink)).await })
            .buffer_unordered(jobs.max(1))
    );
    let mut parts = Vec::new();
    while let Some(group) = done.next().await {
        let group = group?;
        progress.advance(group.iter().map(|p| p.len).sum());
        parts.extend(group);
    }
    check_files(image, pieces, parts)
}

/// Cuts the frames that hold `run`, all of one pack, into groups.
async fn groups_of<P: Packs>(packs: &P, image: &Image, run: &[Piece]) -> Result<Vec<Group>> {
    let index = run.first().and_then(|p| usize::try_from(p.pack).ok());
    let Some(pack) = index.and_then(|i| image.packs().get(i)) else { return Ok(Vec::new()) };
    Ok(groups(&packs.table(pack).await?, pack, run, Frames::Wanted))
}

/// Cuts frames of `pack` into groups; `run` are its pieces of wanted files.
pub(in crate::ops) fn groups(
    table: &PackTable,
    pack: &PackLine,
    run: &[Piece],
    frames: Frames,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for frame in table.frames() {
        let held = frame.plain_range();
        let from = run.partition_point(|p| p.end() <= held.start);
        let to = run.partition_point(|p| p.offset < held.end);
        let wanted = run.get(from..to).unwrap_or_default();
        if wanted.is_empty() && frames == Frames::Wanted {
            continue;
        }
        let joins = |last: &&mut Group| {
            last.frames.last().is_some_and(|l| l.range().end == frame.offset)
                && frame.range().end.saturating_sub(last.start()) <= GROUP_BYTES
        };
        match groups.last_mut().filter(joins) {
            Some(last) => {
                // A piece that crosses from the frame before is there already.
                let known = usize::from(last.pieces.last() == wanted.first());
                last.pieces.extend(wanted.iter().skip(known));
                last.frames.push(*frame);
            }
            None => {
                groups.push(Group { pack: pack.clone(), frames: vec![*frame], pieces: wanted.to_vec() });
            }
        }
    }
    groups
}

impl Group {
    fn start(&self) -> u64 {
        self.frames.first().map_or(0, |f| f.offset)
    }

    /// Where it lies in the object.
    pub(in crate::ops) fn range(&self) -> Range<u64> {
        self.start()..self.frames.last().map_or(0, |f| f.range().end)
    }

    /// Checks every frame and hands out what belongs to a file.
    ///
    /// # Errors
    /// Kind `Corrupt` for a damaged frame, else what the sink answers.
    pub(in crate::ops) fn write<S: Sink>(&self, stored: &[u8], sink: &S) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        for frame in &self.frames {
            let plain = self.open(frame, stored)?;
            let held = frame.plain_range();
            for piece in &self.pieces {
                let (from, to) = (piece.offset.max(held.start), piece.end().min(held.end));
                if from >= to {
                    continue;
                }
                let bytes = cut(&plain, from - held.start, to - held.start)
                    .ok_or_else(|| damaged(&self.pack, frame, "it is shorter than its table says"))?;
                let at = piece.at.saturating_add(from - piece.offset);
                sink.put(piece.row, at, bytes)?;
                parts.push(Part { row: piece.row, at, len: to - from, crc: crc32c::crc32c(bytes) });
            }
        }
        Ok(parts)
    }

    fn open(&self, frame: &FrameEntry, stored: &[u8]) -> Result<Vec<u8>> {
        let start = self.start();
        let range = frame.range();
        let bytes = cut(stored, range.start.saturating_sub(start), range.end.saturating_sub(start));
        let bytes = bytes.ok_or_else(|| damaged(&self.pack, frame, "the object ends before it"))?;
        frame.open(bytes).map_err(|e| damaged(&self.pack, frame, &e.to_string()))
    }
}

fn cut(bytes: &[u8], from: u64, to: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
}

/// Reads and writes one group. Damage is read a second time: what the store holds and what a read brought are not the same.
async fn perform<P: Packs, S: Sink>(packs: &P, group: Group, sink: Arc<S>) -> Result<Vec<Part>> {
    let group = Arc::new(group);
    let mut again = true;
    loop {
        let stored = packs.read(&group.pack, group.range()).await?;
        let (work, into) = (Arc::clone(&group), Arc::clone(&sink));
        let written = tokio::task::spawn_blocking(move || work.write(&stored, &*into)).await;
        let written =
            written.unwrap_or_else(|e| Err(Error::failed("a writing thread ended early").source(e)));
        match written {
            Err(error) if error.kind() == Kind::Corrupt && again => again = false,
            result => return result,
        }
    }
}

/// Every file whose pieces were asked for is whole, and is what the server's manifest says.
fn check_files(image: &Image, pieces: &[Piece], mut parts: Vec<Part>) -> Result<()> {
    let sum = |lens: &mut dyn Iterator<Item = u64>| lens.fold(0_u64, u64::saturating_add);
    let asked = sum(&mut pieces.iter().map(|p| p.len));
    let got = sum(&mut parts.iter().map(|p| p.len));
    if asked != got {
        return Err(Error::corrupt(format!(
            "the packs hold {got} of the {asked} bytes that the manifest names"
        )));
    }
    settle_files(image, &mut parts)
}

/// Compares the files of which all parts are there with the server's manifest, and leaves the parts of the others.
///
/// # Errors
/// Kind `Corrupt`, naming the first file that is another one.
pub(in crate::ops) fn settle_files(image: &Image, parts: &mut Vec<Part>) -> Result<()> {
    parts.sort_unstable_by_key(|p| (p.row, p.at));
    let mut left = Vec::new();
    for file in parts.chunk_by(|a, b| a.row == b.row) {
        let Some(row) = file.first().and_then(|p| image.row(p.row)) else { continue };
        if file.iter().fold(0_u64, |sum, p| sum.saturating_add(p.len)) != row.size {
            left.extend_from_slice(file);
            continue;
        }
        let mut crc = 0;
        for part in file {
            // Parts are far below 4 GiB; on a 64-bit machine this is exact.
            let len = usize::try_from(part.len).unwrap_or(usize::MAX);
            crc = crc32c::crc32c_combine(crc, part.crc, len);
        }
        if row.crc.is_some_and(|expected| expected != crc) {
            let path = String::from_utf8_lossy(image.path(row)).into_owned();
            return Err(Error::corrupt(format!(
                "{path} has CRC-32C {crc:08x}, PostgreSQL's manifest says {:08x}",
                row.crc.unwrap_or_default()
            )));
        }
    }
    *parts = left;
    Ok(())
}

fn damaged(pack: &PackLine, frame: &FrameEntry, what: &str) -> Error {
    Error::corrupt(format!(
        "pack {:05} of backup {} is damaged at byte {}: {what}",
        pack.number, pack.backup, frame.offset
    ))
    .hint("restore from another backup (--backup) or another repository (--repository)")
}

#[cfg(test)]
mod tests;
