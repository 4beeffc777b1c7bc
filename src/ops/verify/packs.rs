//! One pack, read whole: its digest, its table, every frame; and, if the files in it are wanted, their checksums.
//!
//! In groups of frames, one after another, so that a pack of 128 MiB takes no more memory than one of 8. An encrypted one is held: its
//! digest is that of an age file, and what that holds is looked at in the same groups. The readers are those of `restore`: what passes here
//! is what a restore would write.

use std::sync::Arc;

use crate::codec::Hasher;
use crate::error::{Error, Result};
use crate::ops::restore::fetch::{Cutter, Frames, Packs, Part, Sink, Written, part_of};
use crate::ops::restore::image::{File, Piece};
use crate::repo::manifest::PackLine;

/// Memory that reading a pack takes: a group as stored, and one frame plain.
pub(super) const PACK_BYTES: u64 = 24 << 20;

/// A sink for bytes that were only to be looked at.
struct Nowhere;

impl Sink for Nowhere {
    fn put(&self, _file: &File, _at: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Checks the pack, and the files in it that `pieces` (ordered) name; the parts of those that lie elsewhere too.
///
/// # Errors
/// Kind `Corrupt` for damage, `NotFound` if the backup expired meanwhile, else as the store answers.
pub(super) async fn check<P: Packs>(packs: &P, pack: &PackLine, pieces: &[Piece]) -> Result<Vec<Part>> {
    let whole = packs.whole(pack).await?;
    let table = match &whole {
        Some(whole) => pack.info.vouched_table(whole).map_err(|e| damaged(pack, &e.to_string()))?,
        None => packs.table(pack).await?,
    };
    let (mut hasher, mut parts) = (Hasher::new(), Vec::new());
    let end = table.stored_len();
    let mut cutter = Cutter::new(table, pack.clone(), Frames::All);
    let mut pieces = pieces.iter().peekable();
    while let Some(group) = cutter.next(&mut |end| Ok(pieces.next_if(|p| p.offset < end).cloned()))? {
        let stored = match &whole {
            Some(whole) => {
                part_of(whole, &group.range()).ok_or_else(|| damaged(pack, "it ends before a frame"))?
            }
            None => packs.read(pack, group.range()).await?,
        };
        // Decompressing takes a processor for long: not on the reactor.
        let stored_so = whole.is_none();
        let work = tokio::task::spawn_blocking(move || {
            if stored_so {
                hasher.update(&stored);
            }
            let mut written = Written::default();
            group.write(&stored, &Nowhere, &mut written).map(|()| (hasher, written.parts))
        });
        let done = work.await.map_err(|e| Error::failed("a checking thread ended early").source(e))?;
        let (hashed, found) = done?;
        hasher = hashed;
        parts.extend(found);
    }
    if whole.is_some() {
        return Ok(parts);
    }
    let rest = packs.read(pack, end..pack.info.stored).await?;
    hasher.update(&rest);
    if hasher.digest() == pack.info.digest {
        return Ok(parts);
    }
    Err(damaged(pack, "its digest is not the one in the manifest"))
}

fn damaged(pack: &PackLine, what: &str) -> Error {
    Error::corrupt(format!("pack {:05} of backup {} is damaged: {what}", pack.number, pack.backup))
}

/// As [`check`]; damage is read a second time.
pub(super) async fn check_twice<P: Packs>(
    packs: Arc<P>,
    pack: &PackLine,
    pieces: &[Piece],
) -> Result<Vec<Part>> {
    match check(&*packs, pack, pieces).await {
        Err(error) if error.kind() == crate::error::Kind::Corrupt => check(&*packs, pack, pieces).await,
        done => done,
    }
}
