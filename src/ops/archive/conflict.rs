//! Two files claim one name: say where they part.
//!
//! The stored one stays. The report names the first record that differs, because that is what decides between "two primaries are
//! archiving here" and "this host's file is damaged", and what is known of who they are ([`evidence`]). Reading both again is fine here: it
//! happens once in a blue moon.

use std::path::Path;

use super::evidence;
use super::file::WalContent;
use crate::error::Error;
use crate::repo::System;
use crate::repo::walobject::WalHeader;
use crate::wal::scan::{Keep, Scanner};
use crate::wal::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};

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
    let commits = offered.scan.as_ref().and_then(|scan| scan.commits.min.zip(scan.commits.max));
    let sides = evidence::of_both(system, path, commits, name, Some(stored)).await;
    let cause = match parting(system, path, name).await {
        Some(place) => format!("{place}\n{sides}"),
        None => sides,
    };
    Error::refused(text).hint(hint).source(cause)
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
            WalFileName::History(timeline) => Some(
                forks(timeline, &stored, &offered)
                    .unwrap_or_else(|| format!("they differ from byte {at} on")),
            ),
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => {
                Some(format!("they differ from byte {at} on"))
            }
        }
    });
    compared.await.ok()?
}

/// Where each of two histories leaves the parent.
fn forks(timeline: TimelineId, stored: &[u8], offered: &[u8]) -> Option<String> {
    let parse = |bytes| TimelineHistory::parse(timeline, bytes).ok();
    parted(&parse(stored)?, &parse(offered)?)
}

/// The same, of histories that were read; `None` if they part earlier.
pub(super) fn parted(stored: &TimelineHistory, offered: &TimelineHistory) -> Option<String> {
    let (stored, offered) = (stored.fork()?, offered.fork()?);
    (stored != offered).then(|| {
        format!(
            "the stored one leaves timeline {} at {}, the offered one timeline {} at {}",
            stored.timeline, stored.switch, offered.timeline, offered.switch
        )
    })
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
