//! Little-endian numbers and zstd skippable frames: the vocabulary of our binary formats.
//!
//! ```text
//!  skippable frame   magic u32 (0x184D2A50 + n) │ length u32 │ payload      zstd reads over it
//!  n = 0 header of a WAL object    1 annex    2 table of a pack    3 index of a manifest
//! ```
//! Every read is checked: too few bytes are an answer, never a panic, and no allocation follows a length from outside. Pure.
//! Source of truth: RFC 8878, 3.1.2 (skippable frames).

use crate::wal::{Lsn, PgTime};

/// Bytes before the payload of a skippable frame.
pub(crate) const FRAME_HEAD: usize = 8;

/// Which skippable frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// The header of a WAL object.
    Header,
    /// The annex of a WAL object.
    Annex,
    /// The table of a pack.
    PackTable,
    /// The index of a manifest.
    ManifestIndex,
}

impl FrameKind {
    /// The first four bytes of such a frame.
    pub(crate) const fn magic(self) -> [u8; 4] {
        let n = match self {
            Self::Header => 0x50,
            Self::Annex => 0x51,
            Self::PackTable => 0x52,
            Self::ManifestIndex => 0x53,
        };
        [n, 0x2A, 0x4D, 0x18]
    }
}

/// `payload` as a skippable frame.
pub(crate) fn skippable(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("payloads are bounded far below 4 GiB by their writers");
    let mut frame = kind.magic().to_vec();
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Payload length that the head of a frame of `kind` states; `None` for other bytes or fewer than eight.
pub(crate) fn skippable_len(kind: FrameKind, bytes: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(bytes);
    let magic = reader.array::<4>()?;
    let len = reader.u32()?;
    if magic == kind.magic() { usize::try_from(len).ok() } else { None }
}

/// Reads numbers off the front of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (now, later) = self.0.split_at_checked(len)?;
        self.0 = later;
        Some(now)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn lsn(&mut self) -> Option<Lsn> {
        self.u64().map(Lsn::new)
    }

    pub(crate) fn time(&mut self) -> Option<PgTime> {
        self.array().map(i64::from_le_bytes).map(PgTime::from_raw)
    }

    /// 0 or 1; any other byte is no answer.
    pub(crate) fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// Appends numbers.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, n: u8) -> &mut Self {
        self.bytes(&[n])
    }

    pub(crate) fn u16(&mut self, n: u16) -> &mut Self {
        self.bytes(&n.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, n: u32) -> &mut Self {
        self.bytes(&n.to_le_bytes())
    }

    pub(crate) fn i32(&mut self, n: i32) -> &mut Self {
        self.bytes(&n.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, n: u64) -> &mut Self {
        self.bytes(&n.to_le_bytes())
    }

    pub(crate) fn lsn(&mut self, lsn: Lsn) -> &mut Self {
        self.u64(lsn.get())
    }

    pub(crate) fn time(&mut self, time: PgTime) -> &mut Self {
        self.bytes(&time.raw().to_le_bytes())
    }

    pub(crate) fn flag(&mut self, flag: bool) -> &mut Self {
        self.u8(u8::from(flag))
    }
}
