//! How much of each pack a fetch wants, known before the pack is touched.
//!
//! ```text
//!  pieces of the fetch ─► scout, a few packs ahead ─► (pack, most or little of it) ─► announced, then read
//! ```
//! A pack of an encrypted repository is one age file. A range of it costs its two ends besides, so that all of it is fetched as soon as more
//! than a third is wanted (REPOSITORY.md 5). What counts are frames, not bytes: a file of ten bytes takes the frame that it lies in. Pure.

use std::collections::VecDeque;

use super::image::Pieces;
use crate::error::Result;
use crate::repo::manifest::PackLine;
use crate::repo::pack::FRAME_BYTES;

/// Plain bytes of a step: of a frame, as backups make them. Which frames there are, only a pack's table says.
const STEP: u64 = 4 << 20;
const _: () = assert!(FRAME_BYTES == 4 << 20);

/// How much of a pack is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// More than a third.
    Most,
    /// A third or less.
    Little,
}

/// Looks at the packs of a fetch before they are read.
#[derive(Debug)]
pub(super) struct Scout<'a> {
    pieces: Pieces<'a>,
    ahead: VecDeque<(u32, Share)>,
}

impl<'a> Scout<'a> {
    /// Looks through these pieces, all of them.
    pub(super) fn new(pieces: Pieces<'a>) -> Self {
        Self { pieces, ahead: VecDeque::new() }
    }

    /// How much of the next pack is wanted. It and the `ahead` packs that come after it were handed to `found`, each once, in order.
    ///
    /// # Errors
    /// As [`Pieces::peek`].
    pub(super) fn next(
        &mut self,
        wanted: &dyn Fn(&[u8]) -> bool,
        packs: &[PackLine],
        ahead: usize,
        mut found: impl FnMut(&PackLine, Share),
    ) -> Result<Option<Share>> {
        while self.ahead.len() <= ahead {
            let Some((index, share)) = self.look(wanted, packs)? else { break };
            if let Some(pack) = usize::try_from(index).ok().and_then(|index| packs.get(index)) {
                found(pack, share);
            }
            self.ahead.push_back((index, share));
        }
        Ok(self.ahead.pop_front().map(|(_, share)| share))
    }

    fn look(&mut self, wanted: &dyn Fn(&[u8]) -> bool, packs: &[PackLine]) -> Result<Option<(u32, Share)>> {
        let Some(index) = self.pieces.peek(wanted)?.map(|piece| piece.pack) else { return Ok(None) };
        let steps = |bytes: u64| bytes.div_ceil(STEP);
        let (mut touched, mut next) = (0_u64, 0_u64);
        while let Some(piece) = self.pieces.next_before(index, u64::MAX, wanted)? {
            let (first, end) = (piece.offset.checked_div(STEP).unwrap_or(0), steps(piece.end()));
            touched = touched.saturating_add(end.saturating_sub(first.max(next)));
            next = next.max(end);
        }
        let pack = usize::try_from(index).ok().and_then(|index| packs.get(index));
        let all = pack.map_or(0, |pack| steps(pack.info.plain));
        let share = if touched.saturating_mul(3) > all { Share::Most } else { Share::Little };
        Ok(Some((index, share)))
    }
}
