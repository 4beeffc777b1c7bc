//! The server's own `backup_manifest`, held compressed until it is stored: about 170 bytes a file, a tenth of that this way.
//!
//! It comes after all files, when the last packs are still on their way, and is needed twice: to be compared and to be stored. Pure.

use bytes::Bytes;

use crate::codec::{Compression, compress, decompress};
use crate::error::{Error, Result};

/// Plain bytes that are compressed at a time.
const PIECE: usize = 1 << 20;
/// It is held for seconds.
const COMPRESSION: Compression = Compression::Zstd { level: 1 };

/// Text, in compressed pieces.
#[derive(Debug, Default)]
pub(super) struct Held {
    pieces: Vec<Box<[u8]>>,
    open: Vec<u8>,
}

impl Held {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(PIECE) {
            self.open.extend_from_slice(part);
            if self.open.len() >= PIECE {
                self.pieces.push(compress(&self.open, COMPRESSION).map_err(unheld)?.into_boxed_slice());
                self.open.clear();
            }
        }
        Ok(())
    }

    /// Shows all of it, a piece at a time.
    ///
    /// # Errors
    /// The first of `each`, or if zstd has no memory.
    pub(super) fn read<E: From<Error>>(
        &self,
        mut each: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.pieces.iter().try_for_each(|piece| each(&plain(piece)?))?;
        each(&self.open)
    }

    /// All of it, as it came.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub(super) fn chunks(self) -> Result<Vec<Bytes>> {
        // Each compressed piece goes as its plain bytes come.
        let mut chunks = self
            .pieces
            .into_iter()
            .map(|piece| plain(&piece).map(Bytes::from))
            .collect::<Result<Vec<_>>>()?;
        chunks.push(self.open.into());
        Ok(chunks)
    }
}

fn plain(piece: &[u8]) -> Result<Vec<u8>> {
    let limit = u64::try_from(2 * PIECE).unwrap_or(u64::MAX);
    decompress(piece, limit).map_err(unheld)
}

fn unheld(error: crate::codec::CodecError) -> Error {
    Error::failed("the server's backup_manifest cannot be held").source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_comes_back_in_any_cut() {
        let text: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        for cut in [1 << 16, PIECE + 1, 3 * PIECE] {
            let mut held = Held::default();
            text.chunks(cut).for_each(|part| held.push(part).unwrap());
            let mut seen = Vec::new();
            let shown: Result<()> = held.read(|part| {
                seen.extend_from_slice(part);
                Ok(())
            });
            shown.unwrap();
            assert!(!held.pieces.is_empty() && seen == text);
            assert!(held.chunks().unwrap().concat() == text);
        }
    }
}
