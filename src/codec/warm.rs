//! Encoders between two frames: their tables, some MiB of memory, need not be mapped and cleared again for the next one.
//!
//! What ends a frame gives its encoder back; the next frame of the same level takes it. Invariants: a frame from a used encoder holds what a
//! frame from a new one would, if not always in the same bytes (zstd 1.5.7 salts the tables of some levels anew for each frame); an encoder whose frame was given up or failed is never used again; at most [`MOST`] are kept, and none of a level
//! whose tables are large.

use std::sync::{Mutex, MutexGuard, PoisonError};

use zstd::stream::raw::{CParameter, Encoder};

use super::CodecError;

/// Encoders that are kept: as many as segments are compressed at a time by default on the largest machines.
const MOST: usize = 8;
/// Highest level that is kept: its tables and window take about 8 MiB, those of the highest a hundred times that.
const HIGHEST: i32 = 9;

static IDLE: Mutex<Vec<Warm>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Warm>> {
    // A list of whole encoders is whole, whoever panicked beside it.
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An encoder at the beginning of a frame.
pub(super) struct Warm {
    level: i32,
    pub(super) encoder: Encoder<'static>,
}

impl Warm {
    /// One for a frame of `pledged` bytes, used before if there is one.
    ///
    /// # Errors
    /// [`CodecError::Zstd`] if zstd has no memory or does not know the level.
    pub(super) fn take(level: i32, pledged: u64) -> Result<Self, CodecError> {
        let mut warm = match used(level) {
            Some(warm) => warm,
            None => Self::new(level)?,
        };
        warm.encoder.set_pledged_src_size(Some(pledged)).map_err(CodecError::zstd)?;
        Ok(warm)
    }

    fn new(level: i32) -> Result<Self, CodecError> {
        let mut encoder = Encoder::new(level).map_err(CodecError::zstd)?;
        encoder.set_parameter(CParameter::ChecksumFlag(true)).map_err(CodecError::zstd)?;
        Ok(Self { level, encoder })
    }

    /// Keeps it for the next frame. Only for one whose frame has ended.
    pub(super) fn keep(mut self) {
        use zstd::stream::raw::Operation as _;
        if self.level > HIGHEST || self.encoder.reinit().is_err() {
            return;
        }
        let mut idle = idle();
        // The oldest goes: the level in use may have changed.
        let gone = (idle.len() >= MOST).then(|| idle.remove(0));
        idle.push(self);
        drop(idle);
        // Its tables are given back when nobody waits for the list.
        drop(gone);
    }
}

fn used(level: i32) -> Option<Warm> {
    let mut idle = idle();
    let at = idle.iter().rposition(|warm| warm.level == level)?;
    Some(idle.remove(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Compression, FrameEncoder, compress, decompress};

    /// Tests of one process share the list.
    static ALONE: Mutex<()> = Mutex::new(());

    fn kept(level: i32) -> usize {
        idle().iter().filter(|warm| warm.level == level).count()
    }

    fn text(bytes: u32) -> Vec<u8> {
        (0..bytes / 4).flat_map(|n| (n / 7).to_le_bytes()).collect()
    }

    #[test]
    fn what_a_used_encoder_packed_is_what_was_given_to_it() {
        let _alone = ALONE.lock();
        let compression = Compression::Zstd { level: 7 };
        let texts = [text(3 << 20), text(1000), Vec::new(), text(2 << 20)];
        idle().retain(|warm| warm.level != 7);
        for round in 0..3 {
            for (n, plain) in texts.iter().enumerate() {
                assert_eq!(kept(7), usize::from(round + n > 0), "the one is used again and again");
                let frame = compress(plain, compression).unwrap();
                assert!(decompress(&frame, 4 << 20).unwrap() == *plain);
            }
        }
    }

    #[test]
    fn what_was_given_up_in_the_middle_is_not_used_again() {
        let _alone = ALONE.lock();
        let begin = || FrameEncoder::new(Compression::Zstd { level: 8 }, 1000).unwrap();
        idle().retain(|warm| warm.level != 8);
        let mut left = begin();
        left.push(&[1; 500]).unwrap();
        drop(left);
        let mut short = begin();
        short.push(&[1; 500]).unwrap();
        short.finish().unwrap_err();
        let mut long = begin();
        long.push(&[1; 1001]).unwrap_err();
        drop(long);
        assert_eq!(kept(8), 0);
    }

    #[test]
    fn few_are_kept_and_none_that_is_large() {
        let _alone = ALONE.lock();
        let begin = |level| {
            let mut frame = FrameEncoder::new(Compression::Zstd { level }, 4).unwrap();
            frame.push(b"four").unwrap();
            frame
        };
        let many: Vec<FrameEncoder> = (0..MOST * 2).map(|_| begin(6)).collect();
        many.into_iter().for_each(|frame| drop(frame.finish().unwrap()));
        assert!(idle().len() <= MOST && kept(6) > 0);
        begin(HIGHEST + 1).finish().unwrap();
        assert_eq!(kept(HIGHEST + 1), 0);
    }
}
