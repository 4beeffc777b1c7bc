//! Packs of an encrypted repository: most of one is fetched whole, little of one in parts.
//!
//! ```text
//!  most    GET pack ─► digest of the manifest ─► age ─► kept for the reads that follow
//!  little  GET head, GET tail ─► age ─► table, whose digest is in the manifest ─► GET the chunks of some frames ─► age ─► each frame's digest
//! ```
//! age accepts every pack that was made for the same key, so what comes back is held against digests for which the verdict's mac vouches:
//! that of the whole pack, or that of its table, in which each frame has one. A part that fails does not say whether the pack is damaged, is
//! another one, or takes a key that is not at hand. All of the pack does: in doubt it is fetched. Invariant: a pack that is kept whole was
//! checked; nothing else is believed before its digest was right.

use std::ops::Range;

use bytes::Bytes;

use super::fetch::{PACKS_AHEAD, Share};
use super::kept::Kept;
use super::stored::{ELSEWHERE, StoredBackup};
use crate::error::{Error, Kind, Result};
use crate::repo::manifest::PackLine;
use crate::repo::objects::ObjectRef;
use crate::repo::pack::{PackTable, table_bytes};
use crate::seal::parts::{self, Held, Layout};

/// Packs kept whole: those that reads are in, the last of one and the first of the next, and those announced.
const WHOLE: usize = 2 + PACKS_AHEAD;
/// Packs of which the ends are kept, some 140 KB each: more than reads are in flight.
const ENDS: usize = 16;

/// What was fetched of encrypted packs.
#[derive(Debug, Default)]
pub(super) struct SealedPacks {
    /// Plain bytes.
    whole: Kept<Bytes, WHOLE>,
    ends: Kept<Ends, ENDS>,
}

/// Start and end of an encrypted pack: what opens any part of it, and its table.
#[derive(Debug, Clone)]
struct Ends {
    layout: Layout,
    held: Held,
}

impl StoredBackup {
    /// The frames of a pack, vouched for.
    pub(super) async fn sealed_table(&self, pack: &PackLine, share: Share) -> Result<PackTable> {
        if let Some(table) = sure(self.table_in_parts(pack, share).await)? {
            return Ok(table);
        }
        let whole = self.whole(pack).await?;
        pack.info.vouched_table(&whole).map_err(|e| self.damaged(pack, &e))
    }

    /// Bytes of what a pack holds.
    pub(super) async fn sealed_read(
        &self,
        pack: &PackLine,
        share: Share,
        range: Range<u64>,
    ) -> Result<Bytes> {
        if let Some(bytes) = sure(self.read_in_parts(pack, share, range.clone()).await)? {
            return Ok(bytes);
        }
        let whole = self.whole(pack).await?;
        let at = |n: u64| usize::try_from(n).ok().filter(|n| *n <= whole.len());
        match (at(range.start), at(range.end)) {
            (Some(start), Some(end)) if start <= end => Ok(whole.slice(start..end)),
            _ => Err(self.damaged(pack, &"it is shorter than its manifest says")),
        }
    }

    /// Begins to fetch what will be read of a pack first.
    pub(super) fn begin_sealed(&self, pack: &PackLine, share: Share) {
        let (backup, pack) = (self.clone(), pack.clone());
        // A failure is not kept: whoever reads the pack meets it again.
        tokio::spawn(async move {
            match share {
                Share::Most => backup.whole(&pack).await.map(drop).ok(),
                Share::Little => backup.ends(&pack).await.map(drop).ok(),
            }
        });
    }

    /// `None` if it is better to have the whole pack.
    async fn table_in_parts(&self, pack: &PackLine, share: Share) -> Result<Option<PackTable>> {
        if self.is_better_whole(pack, share) {
            return Ok(None);
        }
        let len = self.ends(pack).await?.layout.plain_len();
        let start = len.checked_sub(table_bytes(pack.info.frames));
        let start = start.ok_or_else(|| self.damaged(pack, &"it is shorter than its table"))?;
        let tail = self.part(pack, start..len).await?;
        pack.info.vouched_table(&tail).map(Some).map_err(|e| self.damaged(pack, &e))
    }

    async fn read_in_parts(&self, pack: &PackLine, share: Share, range: Range<u64>) -> Result<Option<Bytes>> {
        if self.is_better_whole(pack, share) {
            return Ok(None);
        }
        self.part(pack, range).await.map(Some)
    }

    fn is_better_whole(&self, pack: &PackLine, share: Share) -> bool {
        share == Share::Most || self.sealed.whole.at_hand(&self.pack_key(pack)).is_some()
    }

    /// The plain bytes of a pack, all of them, vouched for.
    async fn whole(&self, pack: &PackLine) -> Result<Bytes> {
        let key = self.pack_key(pack);
        let wanted = ObjectRef { stored: pack.info.stored, digest: pack.info.digest };
        let fetch = || async {
            let stored = self.vouched(&key, &wanted).await?;
            Ok(self.system().unsealed(&key, stored).await?)
        };
        self.sealed.whole.get(&key, fetch).await
    }

    /// Plain bytes of a pack, from the chunks that hold them. Nothing vouches for them yet.
    async fn part(&self, pack: &PackLine, plain: Range<u64>) -> Result<Bytes> {
        let key = self.pack_key(pack);
        let Ends { layout, mut held } = self.ends(pack).await?;
        let chunks = layout.chunks(&plain);
        let missing = held.missing(chunks.ok_or_else(|| self.damaged(pack, &"it ends before a frame"))?);
        if !missing.is_empty() {
            let start = missing.start;
            held = held.with(start, self.range(&key, missing).await?);
        }
        Ok(self.system().unsealed_range(&key, held, plain).await?)
    }

    async fn ends(&self, pack: &PackLine) -> Result<Ends> {
        let (key, stored) = (self.pack_key(pack), pack.info.stored);
        let head = 0..parts::HEAD.min(stored);
        let tail = stored.saturating_sub(parts::tail_for(table_bytes(pack.info.frames))).max(head.end);
        let fetch = || async {
            // One question after the other would be waited for twice.
            let (first, last) =
                tokio::try_join!(self.range(&key, head), self.range_or_none(&key, tail..stored))?;
            let layout = Layout::of(&first, stored).map_err(|e| self.damaged(pack, &e))?;
            Ok(Ends { layout, held: Held::of(stored).with(0, first).with(tail, last) })
        };
        self.sealed.ends.get(&key, fetch).await
    }

    async fn range_or_none(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() { Ok(Bytes::new()) } else { self.range(key, range).await }
    }

    fn damaged(&self, pack: &PackLine, what: &dyn std::fmt::Display) -> Error {
        Error::corrupt(format!("{} is damaged: {what}", self.pack_key(pack))).hint(ELSEWHERE)
    }
}

/// What parts say for sure: `None` where they cannot tell damage from a key that is not at hand.
fn sure<T>(found: Result<Option<T>>) -> Result<Option<T>> {
    match found {
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Key) => Ok(None),
        found => found,
    }
}

#[cfg(test)]
mod tests;
