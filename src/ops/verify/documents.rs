//! The small objects, bit for bit: what is damaged in them is damage even where readers could still make sense of it.
//!
//! Those of backups that are dead anyway are left alone: deletion takes them away in any order.

use futures_util::StreamExt as _;

use super::finding::{Fault, Subject, needed_by};
use super::folder::Look;
use super::twice;
use crate::error::Result;
use crate::repo::catalog::{BackupState, Catalog};
use crate::repo::path::{BackupObject, SystemObject};
use crate::repo::scrutiny::is_document;

/// Small reads in flight: they are all latency.
const SMALL_READERS: usize = 16;

/// Checks every small object of the folder, or of the one backup that was asked for.
pub(super) async fn check(look: &mut Look<'_>, catalog: &Catalog) -> Result<()> {
    let newest_floor = look.newest_floor();
    let wanted: Vec<(SystemObject, u64)> = look
        .listed
        .iter()
        .filter(|(object, _)| is_document(object) && wanted(look, catalog, object))
        .map(|(object, size)| (object.clone(), *size))
        .collect();
    let system = look.system.clone();
    let read = |(object, size): (SystemObject, u64)| {
        let system = system.clone();
        async move {
            let read = twice(|| system.check_document(&object)).await;
            (object, size, read)
        }
    };
    let mut reads = futures_util::stream::iter(wanted).map(read).buffered(SMALL_READERS);
    while let Some((object, size, read)) = reads.next().await {
        let subject = || match &object {
            SystemObject::Backup(id, BackupObject::Intent | BackupObject::Verdict) => needed_by(id),
            SystemObject::Identity => Subject::Folder,
            SystemObject::Floor(n) if Some(*n) == newest_floor => Subject::Folder,
            _ => Subject::Aside,
        };
        match read {
            Ok(true) => look.seen(size),
            Ok(false) => look.gone(&object, subject()).await?,
            Err(e) if e.is_hidden() => look.gone(&object, subject()).await?,
            Err(e) if e.is_damage() => {
                let key = look.system.keys().key(&object);
                look.folder.findings.add(Fault::Damaged, key, e.to_string(), subject());
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn wanted(look: &Look<'_>, catalog: &Catalog, object: &SystemObject) -> bool {
    match object {
        SystemObject::Backup(id, _) => {
            look.asked_for(id) && catalog.get(id).is_some_and(|info| is_live(&info.state))
        }
        _ => look.request.backup.is_none(),
    }
}

/// Whether the backup may still be restored, or become one that can.
pub(super) fn is_live(state: &BackupState) -> bool {
    match state {
        BackupState::Complete
        | BackupState::Damaged(_)
        | BackupState::Unfinished
        | BackupState::Unreadable(_) => true,
        BackupState::Abandoned | BackupState::Expired | BackupState::Garbage => false,
    }
}
