//! Backups: every object that a verdict or a manifest names is there, has its size, and holds what was written.
//!
//! ```text
//!  verdict ─► manifest (digest, every frame, every line) ─► packs: own and foreign ─► bodies, `jobs` at a time
//!          └► the server's manifest, the catalogue           --decode: files by pack, CRC against the server's own
//!          └► without a key: packs by the digests in the verdict ([`locked`])
//! ```
//! Manifests and what stands beside them are read always; packs as the sample says. A pack that several backups refer to is read once,
//! and its damage counts for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;

use super::documents::is_live;
use super::finding::{Fault, Subject, needed_by};
use super::folder::{Look, Read};
use super::packs::{PACK_BYTES, check_twice};
use super::{locked, twice};
use crate::error::{Error, Result};
use crate::ops::restore::fetch::Begun;
use crate::ops::restore::image::{Image, Piece, Pieces};
use crate::ops::restore::stored::StoredBackup;
use crate::repo::catalog::{BackupInfo, BackupState, Catalog};
use crate::repo::manifest::{Manifest, PackLine};
use crate::repo::objects::{Backup, Verdict};
use crate::repo::path::{BackupId, BackupObject, SystemObject};

/// Packs that were read, and whether they were good.
pub(super) type Known = BTreeMap<SystemObject, bool>;

/// Checks every backup that exists.
pub(super) async fn check(look: &mut Look<'_>, catalog: &Catalog) -> Result<()> {
    let mut known = Known::new();
    for info in catalog.backups.iter().filter(|info| is_live(&info.state)) {
        if !look.asked_for(&info.id) {
            continue;
        }
        check_documents(look, info);
        if let Some(Verdict::Complete(verdict)) = &info.verdict {
            let stored = StoredBackup::new(look.system.clone(), (**verdict).clone());
            check_backup(look, catalog, &stored, &mut known).await?;
        }
        check_state(look, info);
    }
    Ok(())
}

/// What only the two documents together show.
fn check_documents(look: &mut Look<'_>, info: &BackupInfo) {
    let key = |object| look.system.keys().backup(&info.id, object);
    if let (BackupState::Unreadable(what), None) = (&info.state, &info.unreadable) {
        let key = key(BackupObject::Verdict);
        look.folder.findings.add(Fault::Damaged, key, what.clone(), needed_by(&info.id));
    }
    let complete = matches!(info.verdict, Some(Verdict::Complete(_)));
    if complete && !info.files.has(BackupObject::Intent) {
        let (key, what) = (key(BackupObject::Intent), "without it the verdict does not count");
        look.folder.findings.add(Fault::Missing, key, what, needed_by(&info.id));
    }
}

/// What the catalog found wrong is a finding, whoever looks. Last: where an object was named, that says more.
fn check_state(look: &mut Look<'_>, info: &BackupInfo) {
    let (BackupState::Damaged(what), Some(Verdict::Complete(verdict))) = (&info.state, &info.verdict) else {
        return;
    };
    if look.broken.contains(&info.id) || look.folder.findings.concern(&info.id) {
        return;
    }
    // Only the sizes of its packs together are in the verdict: which of them is damaged, a key shows, or its digest.
    let key = |n| look.system.keys().backup(&info.id, BackupObject::Pack(n));
    let last = verdict.packs.count.checked_sub(1).filter(|last| *last > 0).map(key);
    look.folder.findings.add_range(Fault::Damaged, key(0), last, what.clone(), needed_by(&info.id));
    look.broken.insert(info.id.clone());
}

async fn check_backup(
    look: &mut Look<'_>,
    catalog: &Catalog,
    stored: &StoredBackup,
    known: &mut Known,
) -> Result<()> {
    let verdict = stored.verdict();
    check_names(look, verdict);
    if let Some(epoch) = verdict.key.filter(|epoch| !look.has_wrap(*epoch)) {
        missing(look, &SystemObject::Wrap(epoch, 1), &verdict.id);
    }
    let manifest = SystemObject::Backup(verdict.id.clone(), BackupObject::Manifest);
    let opens = look.opens(verdict.key, &manifest).await?;
    check_extras(look, stored, opens).await?;
    let Some(size) = look.listed.get(&manifest) else {
        return Ok(());
    };
    if !opens {
        // What it names cannot be known; that it is whole can.
        let read = || stored.stored(BackupObject::Manifest, &verdict.manifest);
        match again(read).await {
            Ok(()) => look.seen(*size),
            Err(error) => damaged(look, verdict, BackupObject::Manifest, error)?,
        }
        return locked::check(look, catalog, verdict, known).await;
    }
    let manifest = match twice(|| look.system.manifest(verdict)).await.map_err(Error::from) {
        Ok(manifest) => manifest,
        Err(error) => return damaged(look, verdict, BackupObject::Manifest, error),
    };
    let decode = look.request.decode;
    let lines = manifest.packs().to_vec();
    // Decompressing and parsing a million lines takes seconds: not on the reactor.
    let work = tokio::task::spawn_blocking(move || read_manifest(&manifest, decode));
    let image = match work.await.map_err(|e| Error::failed("reading the manifest ended early").source(e))? {
        Ok(image) => image,
        Err(error) => return damaged(look, verdict, BackupObject::Manifest, error),
    };
    look.seen(*size);
    check_packs(look, stored, &lines, image, known).await
}

/// Reads every line; the files only if they are wanted.
fn read_manifest(manifest: &Manifest, decode: bool) -> Result<Option<Image>> {
    let wrong = |what: String| Error::corrupt(format!("the manifest is damaged: {what}"));
    if decode {
        return Image::of(manifest).map(Some);
    }
    manifest.entries().try_for_each(|entry| entry.map(drop)).map_err(|e| wrong(e.to_string())).map(|()| None)
}

/// Takes note of damage to one of a backup's own objects.
fn damaged(look: &mut Look<'_>, verdict: &Backup, object: BackupObject, error: Error) -> Result<()> {
    if let Read::Damage(error) = Read::of(error)? {
        let key = look.system.keys().backup(&verdict.id, object);
        look.folder.findings.add(Fault::Damaged, key, error.to_string(), needed_by(&verdict.id));
        look.broken.insert(verdict.id.clone());
    }
    Ok(())
}

/// Every object that the verdict names is there.
fn check_names(look: &mut Look<'_>, verdict: &Backup) {
    let own = |object| SystemObject::Backup(verdict.id.clone(), object);
    let extras = [
        (BackupObject::Manifest, true),
        (BackupObject::PgManifest, verdict.pg_manifest.is_some()),
        (BackupObject::Catalogue, verdict.catalogue.is_some()),
    ];
    let named = extras.into_iter().filter(|(_, named)| *named).map(|(object, _)| own(object));
    let packs = packs_of(verdict).map(|(of, n)| SystemObject::Backup(of.clone(), BackupObject::Pack(n)));
    for object in named.chain(packs) {
        if !look.listed.contains_key(&object) {
            missing(look, &object, &verdict.id);
        }
    }
}

/// The packs that a backup needs, its own and foreign ones: whose, and their numbers.
pub(super) fn packs_of(verdict: &Backup) -> impl Iterator<Item = (&BackupId, u32)> {
    let foreign = verdict.references.iter().flat_map(|refs| refs.packs.iter().map(|n| (&refs.backup, n)));
    (0..verdict.packs.count).map(|n| (&verdict.id, n)).chain(foreign)
}

fn missing(look: &mut Look<'_>, object: &SystemObject, id: &BackupId) {
    let key = look.system.keys().key(object);
    if !look.folder.findings.also_needed(&key, id) {
        let what = format!("backup {id} needs it");
        look.folder.findings.add(Fault::Missing, key, what, needed_by(id));
    }
    look.broken.insert(id.clone());
}

/// What a restore does without: the server's own manifest, and what the server said of itself.
async fn check_extras(look: &mut Look<'_>, stored: &StoredBackup, open: bool) -> Result<()> {
    let verdict = stored.verdict();
    for (object, wanted) in
        [(BackupObject::PgManifest, verdict.pg_manifest), (BackupObject::Catalogue, verdict.catalogue)]
    {
        let listed = SystemObject::Backup(verdict.id.clone(), object);
        let (Some(wanted), Some(size)) = (wanted, look.listed.get(&listed).copied()) else { continue };
        let read = || async {
            if open {
                stored.object(object, &wanted).await.map(drop)
            } else {
                stored.stored(object, &wanted).await
            }
        };
        match again(read).await.map_err(Read::of) {
            Ok(()) => look.seen(size),
            Err(sorted) => {
                if let Read::Damage(error) = sorted? {
                    let key = look.system.keys().key(&listed);
                    let subject = Subject::Extra(verdict.id.clone());
                    look.folder.findings.add(Fault::Damaged, key, error.to_string(), subject);
                }
            }
        }
    }
    Ok(())
}

/// As [`twice`], for what a verdict vouches for: damage and loss are looked at a second time.
async fn again<F: Future<Output = Result<()>>>(read: impl Fn() -> F) -> Result<()> {
    match read().await {
        Err(error) if error.kind() == crate::error::Kind::Corrupt => read().await,
        read => read,
    }
}

/// One pack to be read.
struct Due {
    object: SystemObject,
    line: PackLine,
    /// Its place in the manifest.
    index: u32,
}

async fn check_packs(
    look: &mut Look<'_>,
    stored: &StoredBackup,
    lines: &[PackLine],
    image: Option<Image>,
    known: &mut Known,
) -> Result<()> {
    let id = &stored.verdict().id;
    let due = due_packs(look, id, lines, image.as_ref(), known);
    let (packs, budget) = (Arc::new(stored.clone()), Arc::clone(&look.budget));
    let read = |(due, pieces): (Due, Result<Vec<Piece>>)| {
        let (packs, budget) = (Arc::clone(&packs), Arc::clone(&budget));
        async move {
            // An encrypted pack is held whole, as it is stored and opened.
            let whole = due.line.info.stored.saturating_mul(2);
            let _share = budget.take(if packs.is_encrypted() { whole } else { PACK_BYTES }).await;
            let read = match pieces {
                Ok(pieces) => check_twice(packs, &due.line, &pieces).await,
                Err(error) => Err(error),
            };
            (due, read)
        }
    };
    let jobs = look.request.jobs.max(1);
    let mut done = Vec::new();
    // Files of which a pack was read and another was not (yet).
    let mut begun = Begun::default();
    {
        let mut pieces = image.as_ref().map(Image::pieces);
        let due = due.into_iter().map(|due| {
            let pieces = pieces_of(pieces.as_mut(), due.index);
            (due, pieces)
        });
        let mut reads = std::pin::pin!(futures_util::stream::iter(due).map(read).buffer_unordered(jobs));
        while let Some((due, read)) = reads.next().await {
            let outcome = read.and_then(|parts| parts.into_iter().try_for_each(|part| begun.note(part)));
            look.progress.advance(due.line.info.stored);
            done.push((due.object, due.line.info.stored, outcome));
        }
    }
    for (object, size, outcome) in done {
        take_note(look, id, object, size, outcome, known)?;
    }
    Ok(())
}

/// Takes note of what reading a pack came to.
pub(super) fn take_note(
    look: &mut Look<'_>,
    id: &BackupId,
    object: SystemObject,
    size: u64,
    outcome: Result<()>,
    known: &mut Known,
) -> Result<()> {
    let good = match outcome.map_err(Read::of) {
        Ok(()) => {
            look.folder.extent.read += 1;
            look.folder.extent.bytes = look.folder.extent.bytes.saturating_add(size);
            true
        }
        Err(sorted) => {
            if let Read::Damage(error) = sorted? {
                let key = look.system.keys().key(&object);
                look.folder.findings.add(Fault::Damaged, key, error.to_string(), needed_by(id));
                look.broken.insert(id.clone());
            }
            false
        }
    };
    known.insert(object, good);
    Ok(())
}

/// The packs that the sample takes and that were not read before; of the others, only what is known of them counts.
fn due_packs(
    look: &mut Look<'_>,
    id: &BackupId,
    lines: &[PackLine],
    image: Option<&Image>,
    known: &Known,
) -> Vec<Due> {
    let mut due = Vec::new();
    for (line, index) in lines.iter().zip(0_u32..) {
        let object = SystemObject::Backup(line.backup.clone(), BackupObject::Pack(line.number));
        let key = look.system.keys().key(&object);
        match (look.listed.get(&object), known.get(&object)) {
            (None, _) => missing(look, &object, id),
            (Some(size), _) if *size != line.info.stored => {
                if !look.folder.findings.also_needed(&key, id) {
                    let what = format!("it has {size} bytes instead of {}", line.info.stored);
                    look.folder.findings.add(Fault::Damaged, key, what, needed_by(id));
                }
                look.broken.insert(id.clone());
            }
            (Some(_), Some(false)) => {
                look.folder.findings.also_needed(&key, id);
                look.broken.insert(id.clone());
            }
            // Other files of it may be this backup's.
            (Some(_), Some(true)) if image.is_none() => {}
            (Some(_), _) if look.request.sample.takes(&key) => {
                due.push(Due { object, line: line.clone(), index });
            }
            (Some(_), _) => {}
        }
    }
    due
}

/// The pieces of the pack at `index`; asked for in ascending order.
fn pieces_of(pieces: Option<&mut Pieces<'_>>, index: u32) -> Result<Vec<Piece>> {
    pieces.map_or(Ok(Vec::new()), |pieces| pieces.of_pack(index))
}
