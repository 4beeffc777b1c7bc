//! The index of a manifest: where its frames lie and with which path each begins.
//!
//! ```text
//!  entry     offset u64 │ stored u32 │ plain u32 │ BLAKE3 32 │ length u16 │ first path     no path: header and packs
//!  trailer   payload length u32 │ entries u32 │ files u64 │ extents u64 │ crc u32           the last 28 bytes
//! ```
//! Found from the end of the object. Invariants: frames follow each other from offset 0 on without a hole; first paths ascend.
//! Pure.

use super::{FRAME_BYTES, MAX_LINE, MAX_PATH, ManifestError};
use crate::codec::{Digest, len_u64};
use crate::repo::binary::{FRAME_HEAD, FrameKind, Reader, Writer, skippable, skippable_len};

/// Bytes of the trailer.
pub const TRAILER: usize = 4 + 4 + 8 + 8 + 4;
/// Largest index: a million files are some hundred frames.
const MAX_INDEX: usize = 64 << 20;

/// Where a frame lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// First byte in the object.
    pub offset: u64,
    /// Bytes in the object.
    pub stored: u32,
    /// Plain bytes.
    pub plain: u32,
    /// BLAKE3 of the plain bytes.
    pub digest: Digest,
    /// Path of its first line; empty for frames before the first file.
    pub first: Vec<u8>,
}

/// All frames of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrameIndex {
    /// In order.
    pub entries: Vec<IndexEntry>,
    /// Files in the manifest.
    pub files: u64,
    /// Extents in the manifest.
    pub extents: u64,
}

impl FrameIndex {
    pub(super) fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let mut out = Writer::default();
        for entry in &self.entries {
            out.u64(entry.offset).u32(entry.stored).u32(entry.plain).bytes(entry.digest.as_bytes());
            out.u16(u16::try_from(entry.first.len()).expect("a path has at most MAX_PATH bytes"));
            out.bytes(&entry.first);
        }
        let payload = out.0.len().saturating_add(TRAILER);
        if payload > MAX_INDEX {
            return Err(ManifestError::Index("it is too large"));
        }
        let small = |n: usize| u32::try_from(n).expect("checked against MAX_INDEX");
        out.u32(small(payload)).u32(small(self.entries.len())).u64(self.files).u64(self.extents);
        let crc = crc32fast::hash(&out.0);
        Ok(skippable(FrameKind::ManifestIndex, &out.u32(crc).0))
    }

    /// Reads the index at the end of `tail`, which must hold all of it.
    ///
    /// # Errors
    /// [`ManifestError::Index`].
    pub fn parse(tail: &[u8]) -> Result<Self, ManifestError> {
        let bad = ManifestError::Index;
        let cut = || bad("it is cut off");
        let size = tail.last_chunk::<TRAILER>().and_then(|t| Reader::new(t).u32()).ok_or_else(cut)?;
        let size =
            usize::try_from(size).ok().filter(|n| (TRAILER..=MAX_INDEX).contains(n)).ok_or_else(cut)?;
        let start = tail.len().checked_sub(size).and_then(|n| n.checked_sub(FRAME_HEAD)).ok_or_else(cut)?;
        let frame = tail.get(start..).ok_or_else(cut)?;
        if skippable_len(FrameKind::ManifestIndex, frame) != Some(size) {
            return Err(ManifestError::Index("it does not start where it should"));
        }
        let payload = frame.get(FRAME_HEAD..).unwrap_or_default();
        let (checked, crc) = payload.split_last_chunk::<4>().ok_or_else(cut)?;
        if crc32fast::hash(checked) != u32::from_le_bytes(*crc) {
            return Err(ManifestError::Index("its checksum differs"));
        }
        let index = Self::read(checked).ok_or(ManifestError::Index("an entry is malformed"))?;
        let end = index.entries.last().map_or(0, |e| e.offset.saturating_add(e.stored.into()));
        let object_may_be_partial = end >= len_u64(tail.get(..start).unwrap_or_default());
        if object_may_be_partial { Ok(index) } else { Err(ManifestError::Index("frames are missing")) }
    }

    fn read(checked: &[u8]) -> Option<Self> {
        let (entries, trailer) = checked.split_last_chunk::<{ TRAILER - 4 }>()?;
        let mut trailer = Reader::new(trailer);
        let (_, count, files, extents) = (trailer.u32()?, trailer.u32()?, trailer.u64()?, trailer.u64()?);
        let mut reader = Reader::new(entries);
        let mut index = Self { entries: Vec::new(), files, extents };
        let mut offset = 0_u64;
        while !reader.is_empty() {
            let entry = IndexEntry {
                offset: reader.u64()?,
                stored: reader.u32()?,
                plain: reader.u32()?,
                digest: Digest::from_bytes(reader.array()?),
                first: {
                    let len = usize::from(reader.u16()?);
                    reader.take(len)?.to_vec()
                },
            };
            let sizes = entry.offset == offset
                && usize::try_from(entry.plain).is_ok_and(|n| n <= FRAME_BYTES.saturating_add(MAX_LINE));
            let ascends = index.entries.last().is_none_or(|last| {
                last.first < entry.first || (last.first.is_empty() && entry.first.is_empty())
            });
            if !sizes || !ascends || entry.first.len() > MAX_PATH {
                return None;
            }
            offset = offset.checked_add(entry.stored.into())?;
            index.entries.push(entry);
        }
        (u32::try_from(index.entries.len()) == Ok(count)).then_some(index)
    }
}
