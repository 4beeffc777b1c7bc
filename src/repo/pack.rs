//! Packs: the tar stream of a base backup, cut into objects that are each readable alone and at any place.
//!
//! ```text
//!  pack-00000.tar.zst   │ zstd frame │ zstd frame │ … │ table (skippable frame) │      cat pack-* | zstd -d | tar x
//!  table                52 2A 4D 18 │ length │ entry × count │ count u32 │ crc u32
//!  entry                offset u64 │ stored u32 │ plain offset u64 │ plain u32 │ BLAKE3 of the plain bytes, 32
//! ```
//! Invariants: frames follow each other without a hole, from offset 0 in the object and in the plain stream; each states its
//! size, is checked by its digest, and has at most [`MAX_FRAME`] plain bytes. A file's bytes are a range of the plain stream of
//! one pack and may span frames. The table's place is known from the object's size: its last bytes hold the count. Pure.

use std::ops::Range;

use bytes::Bytes;

use super::binary::{FRAME_HEAD, FrameKind, Reader, Writer, skippable, skippable_len};
use super::path::MAX_PACKS;
use crate::codec::{CodecError, Compression, Digest, FrameEncoder, FrameOpener, Hasher, len_u64};

/// Plain bytes of a frame, unless the stream ends earlier.
pub const FRAME_BYTES: usize = 4 << 20;
/// Most plain bytes of a frame that a reader accepts.
pub const MAX_FRAME: usize = 16 << 20;
/// Stored bytes at which the packs of a backup of usual size are closed.
pub const TARGET: u64 = 32 << 20;
/// From this number on packs are larger ([`target_of`]): 1.5 TiB are stored by then.
const LARGER_FROM: u32 = MAX_PACKS / 2;
/// So are they within a file that so many have a piece of: a GiB of it is stored, and of a file of PostgreSQL's that is all, as it is compiled.
const LARGER_WITHIN: usize = 32;
/// Smallest and largest such bound. What one more frame adds stays below [`MAX_PACK`].
pub const TARGET_RANGE: Range<u64> = 8 << 20..96 << 20;
/// Largest pack.
pub const MAX_PACK: u64 = 128 << 20;
/// Most frames in a pack.
pub const MAX_FRAMES: usize = 1 << 16;
/// Bytes of an entry of the table.
const ENTRY: usize = 8 + 4 + 8 + 4 + 32;
/// Bytes after the entries: count and checksum.
pub const TRAILER: usize = 8;

/// Stored bytes at which pack `number` is closed, in whose beginning a file goes on that has `pieces` already: [`MAX_PACKS`] of them hold
/// 6 TiB as stored, and those that one file may have pieces in (`MAX_FILE_EXTENTS`) 91 GiB.
pub const fn target_of(number: u32, pieces: usize) -> u64 {
    if number < LARGER_FROM && pieces < LARGER_WITHIN { TARGET } else { TARGET_RANGE.end }
}

/// A pack or a frame that cannot be used, or one that would break a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The table is damaged.
    #[error("the pack's table is damaged: {0}")]
    Table(&'static str),
    /// A frame's bytes are damaged.
    #[error("the frame at {offset} is damaged: {cause}")]
    Frame {
        /// Where it starts in the pack.
        offset: u64,
        /// What is wrong.
        cause: CodecError,
    },
    /// A frame holds other bytes than were stored.
    #[error("the frame at {offset} holds other bytes than were stored")]
    Digest {
        /// Where it starts in the pack.
        offset: u64,
    },
    /// A frame is larger, or a pack has more of them, than the format allows.
    #[error("{0} exceeds what the pack format allows")]
    Bound(&'static str),
}

/// One frame, ready for a pack.
#[derive(Debug, Clone)]
pub struct CompressedFrame {
    chunks: Vec<Bytes>,
    stored: u32,
    plain: u32,
    digest: Digest,
}

impl CompressedFrame {
    /// Plain bytes in it.
    pub fn plain_len(&self) -> u64 {
        self.plain.into()
    }

    /// Its own bytes.
    pub fn stored_len(&self) -> u64 {
        self.stored.into()
    }

    /// BLAKE3 of the plain bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// Compresses the plain bytes of one frame. Costs time: not for the thread that reads the socket.
///
/// # Errors
/// [`PackError::Bound`] for more than [`MAX_FRAME`] bytes or none.
pub fn compress_frame(plain: &[u8], compression: Compression) -> Result<CompressedFrame, PackError> {
    if plain.is_empty() || plain.len() > MAX_FRAME {
        return Err(PackError::Bound("the size of a frame"));
    }
    let zstd = |cause| PackError::Frame { offset: 0, cause };
    let mut encoder = FrameEncoder::new(compression, len_u64(plain)).map_err(zstd)?;
    encoder.push(plain).map_err(zstd)?;
    let chunks = encoder.finish().map_err(zstd)?;
    let stored = chunks.iter().map(Bytes::len).sum::<usize>();
    let small = |n: usize| u32::try_from(n).map_err(|_| PackError::Bound("the size of a frame"));
    Ok(CompressedFrame {
        stored: small(stored)?,
        plain: small(plain.len())?,
        digest: Digest::of(plain),
        chunks,
    })
}

/// Where a frame lies and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// First byte in the pack.
    pub offset: u64,
    /// Bytes in the pack.
    pub stored: u32,
    /// First byte in the pack's plain stream.
    pub plain_offset: u64,
    /// Plain bytes.
    pub plain: u32,
    /// BLAKE3 of the plain bytes.
    pub digest: Digest,
}

impl FrameEntry {
    /// Its bytes in the pack.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.stored.into())
    }

    /// Its bytes in the plain stream.
    pub fn plain_range(&self) -> Range<u64> {
        self.plain_offset..self.plain_offset.saturating_add(self.plain.into())
    }

    /// The plain bytes of the frame whose stored bytes are `stored`; `with` holds them.
    ///
    /// # Errors
    /// [`PackError::Frame`] or [`PackError::Digest`].
    pub fn open<'o>(&self, stored: &[u8], with: &'o mut FrameOpener) -> Result<&'o [u8], PackError> {
        // Tables with frames above the bound are refused; this one may come from elsewhere.
        let len = usize::try_from(self.plain).ok().filter(|len| *len <= MAX_FRAME);
        let len = len.ok_or(PackError::Bound("the size of a frame"))?;
        let plain = with.open(stored, len);
        let plain = plain.map_err(|cause| PackError::Frame { offset: self.offset, cause })?;
        if plain.len() == len && Digest::of(plain) == self.digest {
            Ok(plain)
        } else {
            Err(PackError::Digest { offset: self.offset })
        }
    }
}

/// The table of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackTable {
    frames: Vec<FrameEntry>,
}

/// Bytes of the table of a pack with `frames` frames, its own frame head included.
pub fn table_bytes(frames: u32) -> u64 {
    let fixed = u64::try_from(FRAME_HEAD + TRAILER).expect("16 fits");
    u64::from(frames).saturating_mul(u64::try_from(ENTRY).expect("56 fits")).saturating_add(fixed)
}

impl PackTable {
    /// The frames, in order.
    pub fn frames(&self) -> &[FrameEntry] {
        &self.frames
    }

    /// Bytes of the frames in the pack: where the table starts.
    pub fn stored_len(&self) -> u64 {
        self.frames.last().map_or(0, |f| f.range().end)
    }

    /// Bytes of the plain stream.
    pub fn plain_len(&self) -> u64 {
        self.frames.last().map_or(0, |f| f.plain_range().end)
    }

    /// The frames that hold `len` plain bytes from `offset` on; `None` if the pack does not hold them all.
    pub fn covering(&self, offset: u64, len: u64) -> Option<&[FrameEntry]> {
        let end = offset.checked_add(len).filter(|end| *end <= self.plain_len())?;
        let first = self.frames.partition_point(|f| f.plain_range().end <= offset);
        let last = self.frames.partition_point(|f| f.plain_offset < end);
        self.frames.get(first..last.max(first))
    }

    fn push(&mut self, stored: u32, plain: u32, digest: Digest) {
        let (offset, plain_offset) = (self.stored_len(), self.plain_len());
        self.frames.push(FrameEntry { offset, stored, plain_offset, plain, digest });
    }

    /// The skippable frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        for frame in &self.frames {
            out.u64(frame.offset).u32(frame.stored).u64(frame.plain_offset).u32(frame.plain);
            out.bytes(frame.digest.as_bytes());
        }
        out.u32(u32::try_from(self.frames.len()).expect("at most MAX_FRAMES frames"));
        let crc = crc32fast::hash(&out.0);
        skippable(FrameKind::PackTable, &out.u32(crc).0)
    }

    /// How many frames the table at the end of `tail` lists, which must be at least the last [`TRAILER`] bytes of a pack.
    ///
    /// # Errors
    /// [`PackError::Table`] for fewer bytes or an impossible number.
    pub fn count(tail: &[u8]) -> Result<u32, PackError> {
        let trailer = tail.last_chunk::<TRAILER>().ok_or(PackError::Table("it is cut off"))?;
        let count = Reader::new(trailer).u32().unwrap_or(u32::MAX);
        let possible = usize::try_from(count).is_ok_and(|n| (1..=MAX_FRAMES).contains(&n));
        if possible { Ok(count) } else { Err(PackError::Table("its number of frames is impossible")) }
    }

    /// Reads the table at the end of `tail`: the last bytes of a pack, at least [`table_bytes`] of them.
    ///
    /// # Errors
    /// [`PackError::Table`].
    pub fn parse(tail: &[u8]) -> Result<Self, PackError> {
        let cut = || PackError::Table("it is cut off");
        let size = usize::try_from(table_bytes(Self::count(tail)?)).map_err(|_| cut())?;
        let start = tail.len().checked_sub(size).ok_or_else(cut)?;
        let frame = tail.get(start..).ok_or_else(cut)?;
        if skippable_len(FrameKind::PackTable, frame) != size.checked_sub(FRAME_HEAD) {
            return Err(PackError::Table("it does not start where it should"));
        }
        let payload = frame.get(FRAME_HEAD..).unwrap_or_default();
        let (checked, crc) = payload.split_last_chunk::<4>().ok_or_else(cut)?;
        if crc32fast::hash(checked) != u32::from_le_bytes(*crc) {
            return Err(PackError::Table("its checksum differs"));
        }
        let mut table = Self::default();
        for entry in checked.as_chunks::<ENTRY>().0 {
            let found = read_entry(entry).ok_or_else(cut)?;
            if usize::try_from(found.plain).is_ok_and(|n| n > MAX_FRAME)
                || found.stored == 0
                || found.plain == 0
            {
                return Err(PackError::Table("a frame has an impossible size"));
            }
            table.push(found.stored, found.plain, found.digest);
            if table.frames.last() != Some(&found) {
                return Err(PackError::Table("frames do not follow each other"));
            }
        }
        Ok(table)
    }
}

fn read_entry(entry: &[u8]) -> Option<FrameEntry> {
    let mut reader = Reader::new(entry);
    Some(FrameEntry {
        offset: reader.u64()?,
        stored: reader.u32()?,
        plain_offset: reader.u64()?,
        plain: reader.u32()?,
        digest: Digest::from_bytes(reader.array()?),
    })
}

/// What a manifest records of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackInfo {
    /// Bytes of the object.
    pub stored: u64,
    /// Plain bytes.
    pub plain: u64,
    /// Number of frames; with it and `stored` the table's place is known.
    pub frames: u32,
    /// BLAKE3 of the object's bytes as stored.
    pub digest: Digest,
    /// BLAKE3 of the table's bytes. Through the table it vouches for every frame, also of a pack that is read in parts.
    pub table: Digest,
}

impl PackInfo {
    /// Where the table lies in the object; `None` if the numbers contradict each other.
    pub fn table_range(&self) -> Option<Range<u64>> {
        Some(self.stored.checked_sub(table_bytes(self.frames))?..self.stored)
    }

    /// The table at the end of `tail`, the last plain bytes of the pack; the very one that this records.
    ///
    /// # Errors
    /// [`PackError::Table`].
    pub fn vouched_table(&self, tail: &[u8]) -> Result<PackTable, PackError> {
        let size = usize::try_from(table_bytes(self.frames)).ok();
        let bytes = size.and_then(|size| tail.get(tail.len().checked_sub(size)?..));
        let bytes = bytes.ok_or(PackError::Table("it is cut off"))?;
        if Digest::of(bytes) != self.table {
            return Err(PackError::Table("its digest is not the one in the manifest"));
        }
        let table = PackTable::parse(bytes)?;
        if table.plain_len() == self.plain {
            Ok(table)
        } else {
            Err(PackError::Table("it and the manifest differ about the pack's size"))
        }
    }
}

/// A pack ready to be created.
#[derive(Debug, Clone)]
pub struct Pack {
    /// All its bytes.
    pub chunks: Vec<Bytes>,
    /// What the manifest records of it.
    pub info: PackInfo,
}

/// Fills one pack.
#[derive(Debug)]
pub struct PackBuilder {
    target: u64,
    chunks: Vec<Bytes>,
    table: PackTable,
    hasher: Hasher,
}

impl PackBuilder {
    /// An empty pack that is full at `target` stored bytes, held within [`TARGET_RANGE`].
    pub fn new(target: u64) -> Self {
        Self::full_at(target.clamp(TARGET_RANGE.start, TARGET_RANGE.end))
    }

    /// As [`Self::new`], of any size: a thousand packs of a test have no room.
    #[cfg(test)]
    pub(crate) fn tiny(target: u64) -> Self {
        Self::full_at(target)
    }

    fn full_at(target: u64) -> Self {
        Self { target, chunks: Vec::new(), table: PackTable::default(), hasher: Hasher::new() }
    }

    /// Adds a frame; its first plain byte has the offset that [`Self::plain_len`] said before.
    ///
    /// # Errors
    /// [`PackError::Bound`] if the pack had better been finished before.
    pub fn push(&mut self, frame: CompressedFrame) -> Result<(), PackError> {
        if self.is_full() {
            return Err(PackError::Bound("the size of a pack"));
        }
        self.table.push(frame.stored, frame.plain, frame.digest);
        frame.chunks.iter().for_each(|chunk| self.hasher.update(chunk));
        self.chunks.extend(frame.chunks);
        Ok(())
    }

    /// Plain bytes so far.
    pub fn plain_len(&self) -> u64 {
        self.table.plain_len()
    }

    /// Stored bytes so far, without the table.
    pub fn stored_len(&self) -> u64 {
        self.table.stored_len()
    }

    /// True once it should be finished.
    pub fn is_full(&self) -> bool {
        self.stored_len() >= self.target || self.table.frames.len() >= MAX_FRAMES
    }

    /// True as long as nothing was added.
    pub fn is_empty(&self) -> bool {
        self.table.frames.is_empty()
    }

    /// The pack.
    ///
    /// # Errors
    /// [`PackError::Bound`] for a pack without a frame.
    pub fn finish(mut self) -> Result<Pack, PackError> {
        let frames =
            u32::try_from(self.table.frames.len()).map_err(|_| PackError::Bound("the number of frames"))?;
        if frames == 0 {
            return Err(PackError::Bound("an empty pack"));
        }
        let table = Bytes::from(self.table.encode());
        self.hasher.update(&table);
        let info = PackInfo {
            stored: self.table.stored_len().saturating_add(len_u64(&table)),
            plain: self.table.plain_len(),
            frames,
            digest: self.hasher.digest(),
            table: Digest::of(&table),
        };
        self.chunks.push(table);
        Ok(Pack { chunks: self.chunks, info })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ZSTD: Compression = Compression::Zstd { level: 1 };

    fn pack(pieces: &[Vec<u8>]) -> (Vec<u8>, PackInfo) {
        let mut builder = PackBuilder::new(TARGET);
        for piece in pieces {
            builder.push(compress_frame(piece, ZSTD).unwrap()).unwrap();
        }
        let pack = builder.finish().unwrap();
        (pack.chunks.concat(), pack.info)
    }

    #[test]
    fn all_packs_together_hold_six_tebibytes_and_none_is_too_large() {
        let all: u64 = (0..MAX_PACKS).map(|n| target_of(n, 0)).sum();
        assert!(all >= 6 << 40, "{all}");
        assert!((0..MAX_PACKS).all(|n| target_of(n, 0) <= TARGET_RANGE.end));
        assert_eq!(target_of(0, 0), TARGET);
    }

    #[test]
    fn one_file_may_have_ninety_gibibytes_as_stored() {
        let all: u64 = (0..crate::repo::manifest::MAX_FILE_EXTENTS)
            .zip(7..)
            .map(|(pieces, number)| target_of(number, pieces))
            .sum();
        assert!((90 << 30..92 << 30).contains(&all), "{all}");
        assert_eq!(target_of(0, LARGER_WITHIN - 1), TARGET, "a GiB of it is what every backup has");
    }

    #[test]
    fn the_table_is_found_by_the_recorded_numbers_and_by_the_object_alone() {
        let (object, info) = pack(&[b"first".to_vec(), b"second".to_vec()]);
        assert_eq!(info.stored, len_u64(&object));
        assert_eq!(info.digest, Digest::of(&object));
        let start = usize::try_from(info.table_range().unwrap().start).unwrap();
        let table = PackTable::parse(&object[start..]).unwrap();
        assert_eq!(PackTable::parse(&object), Ok(table.clone()));
        assert_eq!(info.vouched_table(&object), Ok(table.clone()));
        assert_eq!(PackTable::count(&object[object.len() - TRAILER..]), Ok(2));
        assert_eq!((table.plain_len(), table.stored_len()), (11, u64::try_from(start).unwrap()));
    }

    #[test]
    fn a_table_other_than_the_recorded_one_is_refused_however_good_it_is() {
        let (object, info) = pack(&[b"first".to_vec(), b"second".to_vec()]);
        // As many frames, as many bytes, another content: what somebody could put there who may write.
        let (other, _) = pack(&[b"First".to_vec(), b"second".to_vec()]);
        assert!(PackTable::parse(&other).is_ok());
        let refused = |tail: &[u8], info: PackInfo| info.vouched_table(tail).unwrap_err().to_string();
        assert!(refused(&other, info).contains("its digest"));
        assert!(refused(&object[object.len() - 20..], info).contains("cut off"));
        assert!(refused(&object, PackInfo { plain: 12, ..info }).contains("differ"));
        assert!(refused(&object, PackInfo { frames: u32::MAX, ..info }).contains("cut off"));
    }

    #[test]
    fn a_pack_is_closed_at_its_bound() {
        let mut builder = PackBuilder::new(0);
        let noise: Vec<u8> = (0u64..1 << 16).flat_map(|n| *Digest::of(&n.to_le_bytes()).as_bytes()).collect();
        let frame = compress_frame(&noise, ZSTD).unwrap();
        while !builder.is_full() {
            builder.push(frame.clone()).unwrap();
        }
        assert!(builder.stored_len() >= 8 << 20);
        assert_eq!(builder.push(frame), Err(PackError::Bound("the size of a pack")));
        assert!(compress_frame(&vec![0; MAX_FRAME + 1], ZSTD).is_err());
        assert!(PackBuilder::new(TARGET).finish().is_err());
    }

    #[test]
    fn every_changed_bit_of_a_pack_is_seen() {
        let (object, info) = pack(&[b"first".to_vec(), b"second".to_vec()]);
        let table_at = usize::try_from(info.table_range().unwrap().start).unwrap();
        for bit in 0..object.len() * 8 {
            let mut bad = object.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Digest::of(&bad), info.digest);
            match PackTable::parse(&bad) {
                Err(_) => assert!(bit / 8 >= table_at, "bit {bit}"),
                Ok(table) => {
                    assert!(bit / 8 < table_at, "bit {bit}");
                    let at = |n: u64| usize::try_from(n).unwrap();
                    let mut with = FrameOpener::new().unwrap();
                    let mut open = |f: &FrameEntry| {
                        f.open(&bad[at(f.range().start)..at(f.range().end)], &mut with).map(<[u8]>::to_vec)
                    };
                    let opened: Result<Vec<_>, _> = table.frames().iter().map(&mut open).collect();
                    // A frame has a bit or two that mean nothing to zstd; what it yields is never other bytes.
                    assert!(opened.is_err() || opened.unwrap().concat() == b"firstsecond", "bit {bit}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_range_is_read_from_the_frames_that_cover_it(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..12),
            at in 0usize..3000, len in 0usize..3000,
        ) {
            let plain = pieces.concat();
            let (object, _) = pack(&pieces);
            let table = PackTable::parse(&object).unwrap();
            let (offset, size) = (u64::try_from(at).unwrap(), u64::try_from(len).unwrap());
            let Some(frames) = table.covering(offset, size) else {
                prop_assert!(at + len > plain.len());
                return Ok(());
            };
            let (mut out, mut with) = (Vec::new(), FrameOpener::new().unwrap());
            for frame in frames {
                let range = usize::try_from(frame.range().start).unwrap()..usize::try_from(frame.range().end).unwrap();
                out.extend_from_slice(frame.open(&object[range], &mut with).unwrap());
            }
            let skip = frames.first().map_or(0, |f| at - usize::try_from(f.plain_offset).unwrap());
            prop_assert_eq!(&out[skip..skip + len], &plain[at..at + len]);
            prop_assert!(frames.iter().all(|f| f.plain_range().end > offset && f.plain_offset < offset + size));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), count in 0u32..4) {
            let mut bytes = bytes;
            bytes.extend_from_slice(&count.to_le_bytes());
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            let _ = PackTable::parse(&bytes);
        }
    }
}
