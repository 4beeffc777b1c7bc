//! Fetching: packs by ranged reads, frames checked, bytes written where they belong.
//!
//! ```text
//!  pieces (by pack, offset) ─► frames that hold them ─► groups of <= 8 MiB stored ─┬─► GET range ─► frame: zstd, BLAKE3, CRC ─► put
//!                                                                                  ├─► …    `jobs` at a time
//!                                                                                  └─► …
//!  a file in one part: its CRC-32C before a byte is written      in several: put together when the last is there
//! ```
//! Invariants: no byte reaches a file before the digest of its frame matched; memory is `jobs` groups with their pieces,
//! whatever the size of the cluster; a frame is put once; what the manifest promises is there, or it fails.
//! Two checks of different origin: the frame's digest is ours, the file's CRC is PostgreSQL's.

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Semaphore;

use crate::codec::FrameOpener;
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::repo::manifest::PackLine;
use crate::repo::pack::{FrameEntry, PackTable};

use super::image::{File, Image, Piece, Pieces};

/// Stored bytes of one ranged read. Two frames of the size that backups write; one larger frame is a group of its own.
const GROUP_BYTES: u64 = 8 << 20;
/// Plain bytes of one: what compresses well would else make groups of countless small files.
const GROUP_PLAIN: u64 = 64 << 20;

/// Where packs come from.
pub trait Packs: Send + Sync {
    /// The frames of a pack; the manifest vouches for them.
    fn table(&self, pack: &PackLine) -> impl Future<Output = Result<PackTable>> + Send;
    /// Bytes of a pack, exactly as many as asked for; of an encrypted one, of what it holds.
    fn read(&self, pack: &PackLine, range: Range<u64>) -> impl Future<Output = Result<Bytes>> + Send;
    /// What an encrypted pack holds, once its own digest was found right; `None` of one that is not encrypted.
    fn whole(&self, _pack: &PackLine) -> impl Future<Output = Result<Option<Bytes>>> + Send {
        std::future::ready(Ok(None))
    }
}

/// Where bytes of files go. Called by many threads at a time.
pub trait Sink: Send + Sync + 'static {
    /// Takes bytes of `file` from offset `at` on. Every byte comes once.
    ///
    /// # Errors
    /// Ends the whole fetch.
    fn put(&self, file: &File, at: u64, bytes: &[u8]) -> Result<()>;
}

/// A part of a file that was put, and is not the whole of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    file: Arc<File>,
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

/// Fetches the files whose path is `wanted` into `sink`, `jobs` reads at a time.
///
/// Dropped, or failed, it leaves files half written: the caller's marker says so.
///
/// # Errors
/// Kind `Corrupt` for damaged or missing bytes, else as store and sink answer.
pub async fn fetch<P: Packs, S: Sink>(
    packs: &P,
    image: &Image,
    wanted: &(dyn Fn(&[u8]) -> bool + Sync),
    jobs: usize,
    sink: &Arc<S>,
    progress: &dyn Progress,
) -> Result<()> {
    let asked = AtomicU64::new(0);
    let cut = Cut { packs, image, wanted, asked: &asked, pieces: image.pieces(), pack: None };
    let groups = stream::try_unfold(cut, |mut cut| async move {
        let group = cut.next().await?;
        Ok(group.map(|group| (group, cut)))
    });
    // Reads wait for the store, the rest for a processor: more threads than those would only contend for the files.
    let cores = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    let workers = Semaphore::new(jobs.clamp(1, cores));
    let mut done = std::pin::pin!(
        groups
            .map(|group: Result<Group>| async { perform(packs, group?, Arc::clone(sink), &workers).await })
            .buffer_unordered(jobs.max(1))
    );
    let (mut begun, mut got) = (Begun::default(), 0_u64);
    while let Some(written) = done.next().await {
        let written = written?;
        progress.advance(written.bytes);
        got = got.saturating_add(written.bytes);
        written.parts.into_iter().try_for_each(|part| begun.note(part))?;
    }
    let asked = asked.load(Ordering::Relaxed);
    if asked != got || !begun.0.is_empty() {
        return Err(Error::corrupt(format!(
            "the packs hold {got} of the {asked} bytes that the manifest names"
        )));
    }
    Ok(())
}

/// The groups of a fetch, one after another. What is held of the pieces are those of one group.
struct Cut<'a, P> {
    packs: &'a P,
    image: &'a Image,
    wanted: &'a (dyn Fn(&[u8]) -> bool + Sync),
    /// Bytes of the pieces so far.
    asked: &'a AtomicU64,
    pieces: Pieces<'a>,
    /// Index and frames of the pack that is being cut.
    pack: Option<(u32, Cutter)>,
}

impl<P: Packs> Cut<'_, P> {
    async fn next(&mut self) -> Result<Option<Group>> {
        loop {
            if let Some((index, cutter)) = &mut self.pack {
                let group = cutter.next(&mut |end| {
                    let piece = self.pieces.next_before(*index, end, self.wanted)?;
                    self.asked.fetch_add(piece.as_ref().map_or(0, |p| p.len), Ordering::Relaxed);
                    Ok(piece)
                })?;
                if group.is_some() {
                    return Ok(group);
                }
                // What lies behind the last frame is asked for, and will be missed.
                while let Some(piece) = self.pieces.next_before(*index, u64::MAX, self.wanted)? {
                    self.asked.fetch_add(piece.len, Ordering::Relaxed);
                }
                self.pack = None;
            }
            let Some(index) = self.pieces.peek(self.wanted)?.map(|piece| piece.pack) else { return Ok(None) };
            let pack = usize::try_from(index).ok().and_then(|i| self.image.packs().get(i));
            let pack =
                pack.ok_or_else(|| Error::corrupt("the manifest names a pack that it does not list"))?;
            let table = self.packs.table(pack).await?;
            self.pack = Some((index, Cutter::new(table, pack.clone(), Frames::Wanted)));
        }
    }
}

/// Cuts the frames of one pack into groups.
#[derive(Debug)]
pub(in crate::ops) struct Cutter {
    table: PackTable,
    pack: PackLine,
    frames: Frames,
    /// The next frame.
    at: usize,
    /// The piece that goes on in it.
    crossing: Option<Piece>,
}

impl Cutter {
    /// From the first frame of `pack` on.
    pub(in crate::ops) fn new(table: PackTable, pack: PackLine, frames: Frames) -> Self {
        Self { table, pack, frames, at: 0, crossing: None }
    }

    /// The next group. `more` gives the next piece of the pack that begins before an offset.
    ///
    /// # Errors
    /// Those of `more`.
    pub(in crate::ops) fn next(
        &mut self,
        more: &mut dyn FnMut(u64) -> Result<Option<Piece>>,
    ) -> Result<Option<Group>> {
        let mut group: Option<Group> = None;
        while let Some(frame) = self.table.frames().get(self.at).copied() {
            if group.as_ref().is_some_and(|group| !group.has_room(&frame)) {
                break;
            }
            self.at = self.at.saturating_add(1);
            let held = frame.plain_range();
            let mut found: Vec<Piece> = self.crossing.take().into_iter().collect();
            while let Some(piece) = more(held.end)? {
                found.push(piece);
            }
            self.crossing = found.last().filter(|piece| piece.end() > held.end).cloned();
            match &mut group {
                None if found.is_empty() && self.frames == Frames::Wanted => {}
                None => {
                    group = Some(Group { pack: self.pack.clone(), frames: vec![frame], pieces: found });
                }
                Some(_) if found.is_empty() && self.frames == Frames::Wanted => break,
                Some(group) => {
                    // A piece that crosses from the frame before is there already.
                    let known = usize::from(group.pieces.last() == found.first());
                    group.pieces.extend(found.into_iter().skip(known));
                    group.frames.push(frame);
                }
            }
        }
        Ok(group)
    }
}

impl Group {
    fn start(&self) -> u64 {
        self.frames.first().map_or(0, |f| f.offset)
    }

    fn plain_start(&self) -> u64 {
        self.frames.first().map_or(0, |f| f.plain_offset)
    }

    /// May the frame that follows be read with it?
    fn has_room(&self, next: &FrameEntry) -> bool {
        next.range().end.saturating_sub(self.start()) <= GROUP_BYTES
            && next.plain_range().end.saturating_sub(self.plain_start()) <= GROUP_PLAIN
    }

    /// Where it lies in the object.
    pub(in crate::ops) fn range(&self) -> Range<u64> {
        self.start()..self.frames.last().map_or(0, |f| f.range().end)
    }

    /// Checks every frame and hands out what belongs to a file. What is there of `into` was done by an attempt that met damage:
    /// those frames are left out, so that nothing is put twice.
    ///
    /// # Errors
    /// Kind `Corrupt` for a damaged frame or file, before anything of the frame was put; else what the sink answers.
    pub(in crate::ops) fn write<S: Sink>(&self, stored: &[u8], sink: &S, into: &mut Written) -> Result<()> {
        let opener = FrameOpener::new().map_err(|e| Error::failed("cannot open a pack").source(e));
        let mut opener = opener?;
        for frame in self.frames.iter().skip(into.frames) {
            let plain = self.open(frame, stored, &mut opener)?;
            let parts = self.parts_in(frame, plain)?;
            for (part, bytes) in parts {
                sink.put(&part.file, part.at, bytes)?;
                into.bytes = into.bytes.saturating_add(part.len);
                if part.len < part.file.size {
                    into.parts.push(part);
                }
            }
            into.frames = into.frames.saturating_add(1);
        }
        Ok(())
    }

    /// What is wanted of a frame, with the checksums of it; files that lie in it as a whole are compared.
    fn parts_in<'b>(&self, frame: &FrameEntry, plain: &'b [u8]) -> Result<Vec<(Part, &'b [u8])>> {
        let held = frame.plain_range();
        let from = self.pieces.partition_point(|p| p.end() <= held.start);
        let mut parts = Vec::new();
        for piece in self.pieces.iter().skip(from).take_while(|p| p.offset < held.end) {
            let (from, to) = (piece.offset.max(held.start), piece.end().min(held.end));
            let bytes = cut(plain, from - held.start, to - held.start)
                .ok_or_else(|| damaged(&self.pack, frame, "it is shorter than its table says"))?;
            let at = piece.at.saturating_add(from - piece.offset);
            let part = Part { file: Arc::clone(&piece.file), at, len: to - from, crc: crc32c::crc32c(bytes) };
            if part.len == part.file.size {
                compare(&part.file, part.crc)?;
            }
            parts.push((part, bytes));
        }
        Ok(parts)
    }

    fn open<'o>(&self, frame: &FrameEntry, stored: &[u8], with: &'o mut FrameOpener) -> Result<&'o [u8]> {
        let start = self.start();
        let range = frame.range();
        let bytes = cut(stored, range.start.saturating_sub(start), range.end.saturating_sub(start));
        let bytes = bytes.ok_or_else(|| damaged(&self.pack, frame, "the object ends before it"))?;
        frame.open(bytes, with).map_err(|e| damaged(&self.pack, frame, &e.to_string()))
    }
}

/// These bytes of `whole`, if it has them.
pub(in crate::ops) fn part_of(whole: &Bytes, range: &Range<u64>) -> Option<Bytes> {
    cut(whole, range.start, range.end).map(|part| whole.slice_ref(part))
}

fn cut(bytes: &[u8], from: u64, to: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
}

/// What was done of a group.
#[derive(Debug, Default)]
pub(in crate::ops) struct Written {
    /// Parts of files that lie elsewhere too.
    pub(in crate::ops) parts: Vec<Part>,
    /// Bytes put.
    bytes: u64,
    /// Frames that are done.
    frames: usize,
}

/// Reads and writes one group. Damage is read a second time: what the store holds and what a read brought are not the same.
async fn perform<P: Packs, S: Sink>(
    packs: &P,
    group: Group,
    sink: Arc<S>,
    workers: &Semaphore,
) -> Result<Written> {
    let group = Arc::new(group);
    let mut written = Written::default();
    let mut again = true;
    loop {
        let stored = packs.read(&group.pack, group.range()).await?;
        let _worker = workers.acquire().await;
        let (work, into) = (Arc::clone(&group), Arc::clone(&sink));
        // Decompressing takes a processor for long: not on the reactor.
        let task = tokio::task::spawn_blocking(move || {
            let done = work.write(&stored, &*into, &mut written);
            (written, done)
        });
        let done = task.await.map_err(|e| Error::failed("a writing thread ended early").source(e))?;
        written = done.0;
        match done.1 {
            Err(error) if error.kind() == Kind::Corrupt && again => again = false,
            result => return result.map(|()| written),
        }
    }
}

/// Files of which a part is there and another is not.
#[derive(Debug, Default)]
pub(in crate::ops) struct Begun(HashMap<u32, (u64, Vec<Part>)>);

impl Begun {
    /// Takes note of a part, and compares the file if that was the last.
    ///
    /// # Errors
    /// Kind `Corrupt` if the file is another one than the server's manifest says.
    pub(in crate::ops) fn note(&mut self, part: Part) -> Result<()> {
        let (number, size) = (part.file.number, part.file.size);
        let (got, parts) = self.0.entry(number).or_default();
        *got = got.saturating_add(part.len);
        parts.push(part);
        if *got < size {
            return Ok(());
        }
        let Some((_, mut parts)) = self.0.remove(&number) else { return Ok(()) };
        parts.sort_unstable_by_key(|p| p.at);
        let crc = parts.iter().fold(0, |crc, part| {
            // Parts are far below 4 GiB; on a 64-bit machine this is exact.
            crc32c::crc32c_combine(crc, part.crc, usize::try_from(part.len).unwrap_or(usize::MAX))
        });
        parts.first().map_or(Ok(()), |part| compare(&part.file, crc))
    }
}

/// Is the file the one of the server's manifest?
fn compare(file: &File, crc: u32) -> Result<()> {
    match file.crc {
        Some(expected) if expected != crc => Err(Error::corrupt(format!(
            "{} has CRC-32C {crc:08x}, PostgreSQL's manifest says {expected:08x}",
            String::from_utf8_lossy(&file.path)
        ))),
        _ => Ok(()),
    }
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
