//! Digests and compression: BLAKE3 for the identity of content, zstd frames for size.
//!
//! ```text
//!  plain bytes ──► Hasher ──► Digest (64 hex digits), ShortDigest (32)
//!       └────────► FrameEncoder ──► one zstd frame ──► FrameDecoder ──► plain bytes, never more than allowed
//! ```
//! Invariants: a frame states its content size and (compressed ones) carries zstd's checksum; a decoder accepts exactly one
//! frame, complete, and stops before it hands out a byte more than its limit. Pure: no IO, no clock.
//! Source of truth: RFC 8878 (zstd frames), the BLAKE3 paper.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

mod warm;

use warm::Warm;

/// Size of the chunks in which encoders hand out their bytes.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Most a zstd block can hold (RFC 8878, 3.1.1.2.4).
const MAX_BLOCK: usize = 128 * 1024;
/// Largest window a decoder will allocate, as a power of two: what `zstd -d` accepts without being asked for more.
const MAX_WINDOW_LOG: u32 = 27;

/// A BLAKE3 digest. Prints as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// The first half of a [`Digest`], where 512 bytes must hold everything. Prints as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortDigest([u8; 16]);

/// Text that is not the hexadecimal form of a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest of {digits} lower-case hexadecimal digits")]
pub struct DigestError {
    text: String,
    digits: usize,
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// A digest read from a binary format.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 16 bytes.
    pub fn short(&self) -> ShortDigest {
        let mut half = [0; 16];
        half.copy_from_slice(&self.0[..16]);
        ShortDigest(half)
    }
}

impl ShortDigest {
    /// A short digest read from a binary format.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// `bytes` as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|n| char::from_digit(n.into(), 16));
    // It may be a key: a text that grows leaves copies of its beginning behind.
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    text.extend(digits);
    text
}

/// The bytes that lower-case hexadecimal `text` stands for; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    // As in `hex`.
    let mut bytes = Vec::with_capacity(pairs.len());
    for &[high, low] in pairs {
        bytes.push(digit(high)? << 4 | digit(low)?);
    }
    Some(bytes)
}

fn unhex_array<const N: usize>(text: &str) -> Result<[u8; N], DigestError> {
    let bad = || DigestError { text: text.chars().take(80).collect(), digits: N * 2 };
    if text.len() != N * 2 {
        return Err(bad());
    }
    unhex(text).and_then(|bytes| bytes.try_into().ok()).ok_or_else(bad)
}

macro_rules! digest_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                unhex_array(text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_text!(Digest);
digest_text!(ShortDigest);

/// A digest in the making.
#[derive(Debug, Clone, Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken so far.
    pub fn digest(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// What can go wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// zstd does not accept the bytes, or its checksum differs.
    #[error("not an intact zstd frame: {0}")]
    Zstd(String),
    /// The frame holds more than the reader allows.
    #[error("the zstd frame holds more than the {0} bytes that belong there")]
    TooLarge(u64),
    /// The bytes end inside the frame.
    #[error("the zstd frame is cut off")]
    Cut,
    /// Bytes follow the frame.
    #[error("bytes follow the end of the zstd frame")]
    Trailing,
    /// A writer pushed another number of bytes than it had announced.
    #[error("{pushed} bytes were written into a frame announced with {pledged}")]
    Pledge {
        /// Announced size.
        pledged: u64,
        /// Bytes pushed.
        pushed: u64,
    },
}

impl CodecError {
    /// zstd reports its errors as `io::Error` with a name such as "Restored data doesn't match checksum".
    #[expect(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
    fn zstd(error: std::io::Error) -> Self {
        Self::Zstd(error.to_string())
    }
}

/// How the plain bytes are kept in their frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Compressed by zstd at this level.
    Zstd {
        /// 1 to 22.
        level: i32,
    },
    /// Raw blocks of a zstd frame: nothing is compressed, and `zstd -d` still reads it.
    Stored,
}

/// Pledged-size zstd frame, written as the bytes come; memory is the compressed output plus zstd's window.
pub struct FrameEncoder {
    kind: Kind,
    pledged: u64,
    pushed: u64,
    out: Chunks,
}

enum Kind {
    Zstd(Box<Warm>),
    Stored(Vec<u8>),
}

impl fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut state = f.debug_struct("FrameEncoder");
        state.field("pledged", &self.pledged).field("pushed", &self.pushed).finish_non_exhaustive()
    }
}

impl FrameEncoder {
    /// A frame that will hold exactly `pledged` bytes.
    ///
    /// # Errors
    /// [`CodecError::Zstd`] if zstd has no memory or does not know the level.
    pub fn new(compression: Compression, pledged: u64) -> Result<Self, CodecError> {
        let mut out = Chunks::default();
        let kind = match compression {
            Compression::Zstd { level } => Kind::Zstd(Box::new(Warm::take(level, pledged)?)),
            Compression::Stored => {
                out.append(&stored_frame_header(pledged));
                Kind::Stored(Vec::new())
            }
        };
        Ok(Self { kind, pledged, pushed: 0, out })
    }

    /// Takes the next plain bytes.
    ///
    /// # Errors
    /// [`CodecError::Pledge`] for more than was announced.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        self.pushed = self.pushed.saturating_add(len_u64(bytes));
        if self.pushed > self.pledged {
            return Err(CodecError::Pledge { pledged: self.pledged, pushed: self.pushed });
        }
        match &mut self.kind {
            Kind::Zstd(warm) => {
                let encoder = &mut warm.encoder;
                let mut input = InBuffer::around(bytes);
                while input.pos() < bytes.len() {
                    self.out.fill(|out| encoder.run(&mut input, out))?;
                }
            }
            Kind::Stored(block) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    // A full block waits for the next byte, so that the last one can be marked as last.
                    if block.len() == MAX_BLOCK {
                        self.out.append_block(block, false);
                    }
                    let (now, later) = rest.split_at(rest.len().min(MAX_BLOCK - block.len()));
                    block.extend_from_slice(now);
                    rest = later;
                }
            }
        }
        Ok(())
    }

    /// The whole frame.
    ///
    /// # Errors
    /// [`CodecError::Pledge`] for less than was announced.
    pub fn finish(mut self) -> Result<Vec<Bytes>, CodecError> {
        if self.pushed != self.pledged {
            return Err(CodecError::Pledge { pledged: self.pledged, pushed: self.pushed });
        }
        match self.kind {
            Kind::Zstd(mut warm) => {
                while self.out.fill(|out| warm.encoder.finish(out, true))? > 0 {}
                warm.keep();
            }
            Kind::Stored(mut block) => self.out.append_block(&mut block, true),
        }
        Ok(self.out.finish())
    }
}

/// Frame header of a stored frame: content size in 8 bytes, window 1 MiB, no checksum (RFC 8878, 3.1.1.1).
fn stored_frame_header(size: u64) -> [u8; 14] {
    let mut header = [0x28, 0xB5, 0x2F, 0xFD, 0xC0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0];
    header[6..].copy_from_slice(&size.to_le_bytes());
    header
}

/// Output in pieces of [`CHUNK`], so that a segment's worth of bytes never needs one contiguous allocation.
#[derive(Default)]
struct Chunks {
    done: Vec<Bytes>,
    open: Vec<u8>,
}

impl Chunks {
    /// One step of an encoder into the open chunk; its hint is returned.
    fn fill(
        &mut self,
        step: impl FnOnce(&mut OutBuffer<'_, Vec<u8>>) -> std::io::Result<usize>,
    ) -> Result<usize, CodecError> {
        if self.open.capacity() == self.open.len() {
            self.turn();
        }
        let filled = self.open.len();
        let hint = step(&mut OutBuffer::around_pos(&mut self.open, filled)).map_err(CodecError::zstd)?;
        Ok(hint)
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.open.len() + bytes.len() > self.open.capacity() {
            self.turn();
        }
        self.open.extend_from_slice(bytes);
    }

    fn append_block(&mut self, block: &mut Vec<u8>, last: bool) {
        // Block header: bit 0 = last, bits 1-2 = 0 for raw, the size above them (RFC 8878, 3.1.1.2).
        let size = u32::try_from(block.len()).expect("a block holds at most 128 KiB");
        let [a, b, c, _] = (size << 3 | u32::from(last)).to_le_bytes();
        self.append(&[a, b, c]);
        self.append(block);
        block.clear();
    }

    fn turn(&mut self) {
        let mut full = std::mem::replace(&mut self.open, Vec::with_capacity(CHUNK));
        full.shrink_to_fit();
        if !full.is_empty() {
            self.done.push(full.into());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.turn();
        self.done
    }
}

/// One frame of `plain`, contiguous.
///
/// # Errors
/// As [`FrameEncoder::new`].
pub fn compress(plain: &[u8], compression: Compression) -> Result<Vec<u8>, CodecError> {
    let mut encoder = FrameEncoder::new(compression, len_u64(plain))?;
    encoder.push(plain)?;
    Ok(encoder.finish()?.concat())
}

/// The content of the one frame that `frame` consists of.
///
/// # Errors
/// [`CodecError`] unless it is exactly one intact frame of at most `limit` bytes.
pub fn decompress(frame: &[u8], limit: u64) -> Result<Vec<u8>, CodecError> {
    let mut plain = Vec::new();
    let mut decoder = FrameDecoder::new(limit)?;
    decoder.push(frame, |bytes| plain.extend_from_slice(bytes))?;
    decoder.finish()?;
    Ok(plain)
}

/// Opens whole frames of known size, one after the other, into one buffer: nothing is allocated or copied per frame.
pub struct FrameOpener {
    inner: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
}

impl fmt::Debug for FrameOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameOpener").field("buffer", &self.plain.capacity()).finish_non_exhaustive()
    }
}

impl FrameOpener {
    /// With an empty buffer.
    ///
    /// # Errors
    /// [`CodecError::Zstd`] if zstd has no memory.
    pub fn new() -> Result<Self, CodecError> {
        Ok(Self { inner: zstd::bulk::Decompressor::new().map_err(CodecError::zstd)?, plain: Vec::new() })
    }

    /// The content of the one frame that `frame` consists of: `len` bytes, which sizes the buffer, so it must be a bounded number.
    ///
    /// # Errors
    /// [`CodecError`] unless it is exactly one intact frame of that many bytes.
    pub fn open(&mut self, frame: &[u8], len: usize) -> Result<&[u8], CodecError> {
        match zstd::zstd_safe::find_frame_compressed_size(frame) {
            Ok(size) if size == frame.len() => {}
            Ok(size) if size < frame.len() => return Err(CodecError::Trailing),
            Ok(_) | Err(_) => return Err(CodecError::Cut),
        }
        self.plain.clear();
        self.plain.reserve(len);
        self.inner.decompress_to_buffer(frame, &mut self.plain).map_err(CodecError::zstd)?;
        if self.plain.len() > len {
            return Err(CodecError::TooLarge(u64::try_from(len).unwrap_or(u64::MAX)));
        }
        Ok(&self.plain)
    }
}

/// Reads exactly one frame, pushed in any pieces; memory is one block plus the frame's window (at most 128 MiB).
pub struct FrameDecoder {
    inner: Decoder<'static>,
    buffer: Vec<u8>,
    limit: u64,
    given: u64,
    ended: bool,
}

impl fmt::Debug for FrameDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut state = f.debug_struct("FrameDecoder");
        state.field("limit", &self.limit).field("given", &self.given).finish_non_exhaustive()
    }
}

impl FrameDecoder {
    /// A decoder that hands out at most `limit` bytes.
    ///
    /// # Errors
    /// [`CodecError::Zstd`] if zstd has no memory.
    pub fn new(limit: u64) -> Result<Self, CodecError> {
        let mut inner = Decoder::new().map_err(CodecError::zstd)?;
        inner.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).map_err(CodecError::zstd)?;
        Ok(Self { inner, buffer: vec![0; MAX_BLOCK], limit, given: 0, ended: false })
    }

    /// Takes the next stored bytes and hands every plain byte they yield to `plain`.
    ///
    /// # Errors
    /// [`CodecError`]; what was handed out before it must be thrown away.
    pub fn push(&mut self, stored: &[u8], mut plain: impl FnMut(&[u8])) -> Result<(), CodecError> {
        let mut input = InBuffer::around(stored);
        loop {
            if self.ended {
                return if input.pos() < stored.len() { Err(CodecError::Trailing) } else { Ok(()) };
            }
            let mut output = OutBuffer::around(self.buffer.as_mut_slice());
            let hint = self.inner.run(&mut input, &mut output).map_err(CodecError::zstd)?;
            let written = output.as_slice();
            let (full, count) = (written.len() == MAX_BLOCK, len_u64(written));
            self.given = self.given.saturating_add(count);
            if self.given > self.limit {
                return Err(CodecError::TooLarge(self.limit));
            }
            plain(written);
            self.ended = hint == 0;
            // More output may be waiting as long as the buffer came back full.
            if !self.ended && input.pos() == stored.len() && !full {
                return Ok(());
            }
        }
    }

    /// States that no more bytes come; the number of bytes handed out.
    ///
    /// # Errors
    /// [`CodecError::Cut`] if the frame has not ended.
    pub fn finish(self) -> Result<u64, CodecError> {
        if self.ended { Ok(self.given) } else { Err(CodecError::Cut) }
    }
}

/// `bytes.len()` in the type stored sizes have.
pub(crate) fn len_u64(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: [Compression; 2] = [Compression::Zstd { level: 1 }, Compression::Stored];

    #[test]
    fn an_opener_takes_exactly_one_frame_of_exactly_that_size_again_and_again() {
        let mut opener = FrameOpener::new().unwrap();
        for plain in [&[7_u8; 100_000][..], b"short", &[]] {
            for compression in BOTH {
                let frame = compress(plain, compression).unwrap();
                assert_eq!(opener.open(&frame, plain.len()).unwrap(), plain);
                let cut = frame.get(..frame.len() - 1).unwrap();
                assert_eq!(opener.open(cut, plain.len()), Err(CodecError::Cut));
                let two = [frame.as_slice(), &frame].concat();
                assert_eq!(opener.open(&two, 2 * plain.len()), Err(CodecError::Trailing));
                if let Some(less) = plain.len().checked_sub(1) {
                    assert!(
                        opener.open(&frame, less).is_err(),
                        "the buffer may be larger, the answer is not"
                    );
                }
            }
        }
        assert!(opener.open(b"no frame at all", 5).is_err());
    }

    #[test]
    fn digests_print_as_hexadecimal_and_come_back() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.short().to_string(), "af1349b9f5f9a1a6a0404dea36dcc949");
        for bad in [
            "",
            "AF1349B9F5F9A1A6A0404DEA36DCC949",
            "af1349b9f5f9a1a6a0404dea36dcc94",
            "\u{e9}f1349b9f5f9a1a6a0404dea36dcc9",
        ] {
            assert!(bad.parse::<ShortDigest>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        for compression in BOTH {
            let frame = compress(&b"segment ".repeat(9), compression).unwrap();
            for end in 0..frame.len() {
                assert_eq!(
                    decompress(&frame[..end], 1000),
                    Err(CodecError::Cut),
                    "{compression:?} cut at {end}"
                );
            }
        }
    }

    #[test]
    fn a_second_frame_is_refused() {
        for compression in BOTH {
            let frame = compress(b"one", compression).unwrap();
            assert_eq!(decompress(&frame.repeat(2), 1000), Err(CodecError::Trailing));
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = compress(&vec![0; 64 << 20], Compression::Zstd { level: 1 }).unwrap();
        let mut given = 0;
        let mut decoder = FrameDecoder::new(1 << 20).unwrap();
        let result = decoder.push(&bomb, |bytes| given += bytes.len());
        assert_eq!(result, Err(CodecError::TooLarge(1 << 20)));
        assert!(given <= 1 << 20);
    }

    #[test]
    fn the_announced_size_is_kept() {
        for compression in BOTH {
            let mut encoder = FrameEncoder::new(compression, 2).unwrap();
            encoder.push(b"a").unwrap();
            assert_eq!(encoder.finish().unwrap_err(), CodecError::Pledge { pledged: 2, pushed: 1 });
            let mut encoder = FrameEncoder::new(compression, 2).unwrap();
            assert_eq!(encoder.push(b"abc"), Err(CodecError::Pledge { pledged: 2, pushed: 3 }));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_bytes_in_any_pieces_come_back(
            seed in proptest::collection::vec(any::<u8>(), 0..2000), times in 1usize..300,
            cut in 1usize..100_000, stored: bool,
        ) {
            let plain = seed.repeat(times);
            let compression = if stored { Compression::Stored } else { Compression::Zstd { level: 3 } };
            let mut encoder = FrameEncoder::new(compression, len_u64(&plain)).unwrap();
            for piece in plain.chunks(cut) {
                encoder.push(piece).unwrap();
            }
            let frame = encoder.finish().unwrap().concat();
            prop_assert_eq!(&frame, &compress(&plain, compression).unwrap());
            let mut back = Vec::new();
            let mut decoder = FrameDecoder::new(len_u64(&plain)).unwrap();
            for piece in frame.chunks(cut.div_ceil(7)) {
                decoder.push(piece, |bytes| back.extend_from_slice(bytes)).unwrap();
            }
            prop_assert_eq!(decoder.finish().unwrap(), len_u64(&plain));
            prop_assert!(back == plain);
        }
    }
}
