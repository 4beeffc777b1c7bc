//! Packs that no key at hand opens: is each, byte for byte, what was stored?
//!
//! ```text
//!  verdict (mac) ─► a digest for each pack ─► GET 8 MiB, GET 8 MiB, … ─► digest of the object
//! ```
//! What is inside is not looked at. The digests are as good as the verdict, which bears the mac of the seal key: who has that key can
//! write another verdict. Of a backup that was taken before verdicts had them nothing is known of its packs but that they are there and
//! how large they are together; it is named, so that nobody takes it for checked. Memory: one piece for each read in flight.

use std::sync::Arc;

use futures_util::StreamExt as _;

use super::backups::{Known, packs_of, take_note};
use super::folder::Look;
use crate::codec::{Hasher, ShortDigest, len_u64};
use crate::error::{Error, Kind, Result};
use crate::repo::System;
use crate::repo::catalog::Catalog;
use crate::repo::objects::{Backup, Verdict};
use crate::repo::path::{BackupId, BackupObject, SystemObject};

/// Bytes of a pack that are held at a time: as many as of a plain one.
const PIECE: u64 = 8 << 20;

/// One pack to be read.
struct Due {
    object: SystemObject,
    size: u64,
    digest: ShortDigest,
}

/// Checks the packs that the sample takes of those that `verdict` needs.
pub(super) async fn check(
    look: &mut Look<'_>,
    catalog: &Catalog,
    verdict: &Backup,
    known: &mut Known,
) -> Result<()> {
    let due = due(look, catalog, verdict, known);
    let (system, budget) = (look.system.clone(), Arc::clone(&look.budget));
    let read = |due: Due| {
        let (system, budget) = (system.clone(), Arc::clone(&budget));
        async move {
            let _share = budget.take(due.size.min(PIECE)).await;
            let read = match compare(&system, &verdict.id, &due).await {
                Err(error) if error.kind() == Kind::Corrupt => compare(&system, &verdict.id, &due).await,
                read => read,
            };
            (due, read)
        }
    };
    let mut done = Vec::new();
    {
        let jobs = look.request.jobs.max(1);
        let mut reads = std::pin::pin!(futures_util::stream::iter(due).map(read).buffer_unordered(jobs));
        while let Some((due, read)) = reads.next().await {
            look.passed(due.size);
            done.push((due, read));
        }
    }
    for (due, read) in done {
        take_note(look, &verdict.id, due.object, due.size, read, known)?;
    }
    Ok(())
}

/// The packs to be read. Of those that were read for another backup, what is known counts for this one.
fn due(look: &mut Look<'_>, catalog: &Catalog, verdict: &Backup, known: &Known) -> Vec<Due> {
    let (mut due, mut unread) = (Vec::new(), false);
    for (of, number) in packs_of(verdict) {
        let object = SystemObject::Backup(of.clone(), BackupObject::Pack(number));
        let key = look.system.keys().key(&object);
        // One that is not there was named before.
        let Some(size) = look.listed.get(&object).copied() else { continue };
        match known.get(&object) {
            Some(true) => continue,
            Some(false) => {
                look.folder.findings.also_needed(&key, &verdict.id);
                look.broken.insert(verdict.id.clone());
                continue;
            }
            None if !look.request.sample.takes(&key) => continue,
            None => {}
        }
        match digest_of(catalog, of, number) {
            Some(digest) => due.push(Due { object, size, digest }),
            None => {
                unread = true;
                look.passed(size);
            }
        }
    }
    if unread {
        look.folder.unread.push(verdict.id.clone());
    }
    due
}

/// What the verdict of backup `of` says of its pack.
fn digest_of(catalog: &Catalog, of: &BackupId, number: u32) -> Option<ShortDigest> {
    let Some(Verdict::Complete(verdict)) = &catalog.get(of)?.verdict else { return None };
    verdict.pack_digests.get(usize::try_from(number).ok()?).copied()
}

/// Reads the whole pack, a piece at a time.
async fn compare(system: &System, needed_by: &BackupId, due: &Due) -> Result<()> {
    let key = system.keys().key(&due.object);
    let damaged = |what: &str| Error::corrupt(format!("{key} is damaged: {what}"));
    let (mut hasher, mut at) = (Hasher::new(), 0);
    while at < due.size {
        let end = due.size.min(at.saturating_add(PIECE));
        let piece = system.repository().store().get_range(&key, at..end).await?;
        let Some(piece) = piece else { return Err(system.gone(needed_by, &key).await.into()) };
        if at.saturating_add(len_u64(&piece)) != end {
            return Err(damaged("it ends before the size that the store lists"));
        }
        // Megabytes take a processor for milliseconds: not on the reactor.
        let work = tokio::task::spawn_blocking(move || {
            hasher.update(&piece);
            hasher
        });
        hasher = work.await.map_err(|e| Error::failed("a checking thread ended early").source(e))?;
        at = end;
    }
    if hasher.digest().short() == due.digest {
        Ok(())
    } else {
        Err(damaged("its digest is not the one in the verdict"))
    }
}
