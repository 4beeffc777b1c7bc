//! Two files claim one name: say where they part.
//!
//! The stored one stays. The report names the first record that differs, because that is what decides between "two primaries are
//! archiving here" and "this host's file is damaged". Reading both again is fine here: it happens once in a blue moon.

use std::path::Path;

use super::file::WalContent;
use crate::error::Error;
use crate::repo::System;
use crate::repo::walobject::WalHeader;
use crate::wal::scan::{Keep, Scanner};
use crate::wal::{Lsn, SegmentName, SegmentSize, WalFileName};

/// The error for a file whose name is taken by other content.
pub(super) async fn describe(
    system: &System,
    path: &Path,
    offered: &WalContent,
    stored: &WalHeader,
    repository: &str,
) -> Error {
    let name = stored.name;
    let text = format!(
        "{name} is already archived in repository {repository} with other content (stored {}, offered {})",
        stored.tag.short(),
        offered.object.header.tag.short()
    );
    let hint = match name {
        WalFileName::History(_) => {
            "two servers were promoted to the same timeline: only one of them may go on archiving here"
        }
        _ => {
            "two servers may be archiving under one name (split brain), or this file was changed; nothing was replaced. Compare both with pg_waldump"
        }
    };
    let error = Error::refused(text).hint(hint);
    match parting(system, path, name).await {
        Some(place) => error.source(place),
        None => error,
    }
}

async fn parting(system: &System, path: &Path, name: WalFileName) -> Option<String> {
    let fetched = system.fetch_wal(name).await.ok()??;
    let path = path.to_owned();
    let size = system.identity().segment_size;
    let compared = tokio::task::spawn_blocking(move || {
        let (stored, offered) = (fetched.plain().ok()?, std::fs::read(path).ok()?);
        let same = stored.iter().zip(&offered).take_while(|(a, b)| a == b).count();
        let at = u64::try_from(same).ok()?;
        match name {
            WalFileName::Segment(segment) => Some(record_at(segment, size, &offered, at)),
            WalFileName::Partial(_) | WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                Some(format!("they differ from byte {at} on"))
            }
        }
    });
    compared.await.ok()?
}

/// Names the record of `bytes` that holds the byte at `offset`.
fn record_at(name: SegmentName, size: SegmentSize, bytes: &[u8], offset: u64) -> String {
    let Ok(number) = name.number(size) else { return format!("they differ from byte {offset} on") };
    let place: Lsn = number.start(size).saturating_add(offset);
    let mut last = None;
    if let Ok(mut scanner) = Scanner::new(name, size, Keep::Summary) {
        // Damage ends the walk; the last record seen still tells where.
        let _ = scanner.push_observed(bytes, &mut |record| {
            if record.lsn <= place {
                last = Some((record.lsn, record.header.xid));
            }
        });
    }
    match last {
        Some((lsn, xid)) => {
            format!("the first difference is at {place}, in the record at {lsn} (transaction {xid})")
        }
        None => format!("the first difference is at {place}"),
    }
}
