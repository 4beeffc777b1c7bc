//! Packs of an encrypted repository: a restore reads them in parts, as plain ones; `verify`, and who is in doubt, whole.
//!
//! ```text
//!  parts  GET head, GET tail ─► age ─► table, whose digest is in the manifest ─► GET the chunks of some frames ─► age ─► each frame's digest
//!  whole  GET pack ─► digest of the manifest ─► age
//! ```
//! Where all of a pack is wanted, parts come to its bytes and a chunk of 64 KiB for each read; they take the memory of the reads in flight,
//! not of packs, and one connection brings only a part of what a store can give.
//!
//! age accepts every pack that was made for the same key, so what comes back is held against digests for which the verdict's mac vouches:
//! that of the whole pack, or that of its table, in which each frame has one. A part that fails does not say whether the pack is damaged, is
//! another one, or takes a key that is not at hand. It may also have been read badly, the ends that are kept included: once more, with new
//! ends. All of the pack decides: in doubt it is fetched, one pack at a time. Invariants: nothing is believed before its digest was right;
//! a bad read costs no more memory than one pack.

use std::ops::Range;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::fetch::part_of;
use super::kept::Kept;
use super::stored::{ELSEWHERE, StoredBackup};
use crate::error::{Error, Kind, Result};
use crate::repo::manifest::PackLine;
use crate::repo::objects::ObjectRef;
use crate::repo::pack::{PackTable, table_bytes};
use crate::seal::parts::{self, Held, Layout};

/// Packs of which the ends are kept, some 140 KB each: more than reads are in flight.
const ENDS: usize = 16;

/// What all readers of an encrypted backup share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The ends that were fetched of packs. They may be wrong.
    ends: Kept<Ends, ENDS>,
    /// The right to hold a whole pack because parts left a doubt.
    doubt: Semaphore,
}

impl Default for Shared {
    fn default() -> Self {
        Self { ends: Kept::default(), doubt: Semaphore::new(1) }
    }
}

/// Start and end of an encrypted pack: what opens any part of it, and its table.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    layout: Layout,
    held: Held,
}

impl StoredBackup {
    /// The frames of a pack, vouched for.
    pub(super) async fn sealed_table(&self, pack: &PackLine) -> Result<PackTable> {
        if let Some(table) = self.in_parts(pack, || self.table_in_parts(pack)).await? {
            return Ok(table);
        }
        let _one = self.sealed.doubt.acquire().await;
        let whole = self.sealed_whole(pack).await?;
        pack.info.vouched_table(&whole).map_err(|e| self.damaged(pack, &e))
    }

    /// Bytes of what a pack holds.
    pub(super) async fn sealed_read(&self, pack: &PackLine, range: Range<u64>) -> Result<Bytes> {
        if let Some(bytes) = self.in_parts(pack, || self.part(pack, range.clone())).await? {
            return Ok(bytes);
        }
        let _one = self.sealed.doubt.acquire().await;
        let whole = self.sealed_whole(pack).await?;
        let part = part_of(&whole, &range);
        // A slice would hold all of it for longer than the right to.
        part.map(|part| Bytes::copy_from_slice(&part))
            .ok_or_else(|| self.damaged(pack, &"it is shorter than its manifest says"))
    }

    /// What parts say for sure, asked twice: the ends that were kept may have been read badly.
    async fn in_parts<T, F: Future<Output = Result<T>>>(
        &self,
        pack: &PackLine,
        read: impl Fn() -> F,
    ) -> Result<Option<T>> {
        for _ in 0..2 {
            if let Some(found) = sure(read().await)? {
                return Ok(Some(found));
            }
            self.sealed.ends.forget(&self.pack_key(pack));
        }
        Ok(None)
    }

    /// What a pack holds, all of it, vouched for.
    pub(super) async fn sealed_whole(&self, pack: &PackLine) -> Result<Bytes> {
        let key = self.pack_key(pack);
        let wanted = ObjectRef { stored: pack.info.stored, digest: pack.info.digest };
        let stored = self.vouched(&key, &wanted).await?;
        Ok(self.system().unsealed(&key, self.verdict().key, stored).await?)
    }

    async fn table_in_parts(&self, pack: &PackLine) -> Result<PackTable> {
        let len = self.ends(pack).await?.layout.plain_len();
        let start = len.checked_sub(table_bytes(pack.info.frames));
        let start = start.ok_or_else(|| self.damaged(pack, &"it is shorter than its table"))?;
        let tail = self.part(pack, start..len).await?;
        pack.info.vouched_table(&tail).map_err(|e| self.damaged(pack, &e))
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
        Ok(self.system().unsealed_range(&key, self.verdict().key, held, plain).await?)
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
fn sure<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Key) => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests;
