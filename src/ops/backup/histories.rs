//! The histories of the timelines that a backup lies on, from the server itself: without them recovery finds nothing of what is stored.
//!
//! ```text
//!  the backup's timeline ─► TIMELINE_HISTORY ─► stored, or the same as what is stored ─► its ancestors likewise
//! ```
//! Archiving brings them first, so mostly they are there and only compared: a server whose history is another one is not the
//! cluster that archives here (RECOVERY.md 8). A history that the server has removed is left to the wait for WAL.

use super::facts;
use super::target::{Targets, WAL_COMPRESSION};
use crate::error::Result;
use crate::ops::archive::store_history;
use crate::pgwire::ReplicationConn;
use crate::wal::{TimelineHistory, TimelineId};

/// Brings the history of `timeline` and of its ancestors into every repository.
///
/// # Errors
/// Kind `Refused` if another history of one of them is stored; else as server and store answer.
pub(super) async fn bring(
    replication: &mut ReplicationConn,
    targets: &Targets,
    timeline: TimelineId,
) -> Result<()> {
    let mut wanted = vec![timeline];
    let mut child: Option<Vec<u8>> = None;
    while let Some(timeline) = wanted.pop().filter(|timeline| *timeline > TimelineId::FIRST) {
        let file = replication.timeline_history(timeline).await.map_err(facts::connection)?;
        // A server that was made of a promoted one never had those of the timelines before.
        let derived = || TimelineHistory::file_of_ancestor(child.as_deref()?, timeline);
        let Some(content) = file.map(|file| file.content.to_vec()).or_else(derived) else { return Ok(()) };
        for system in targets.iter() {
            let history = store_history(system, timeline, &content, WAL_COMPRESSION).await?;
            wanted.extend(history.parents().last().map(|parent| parent.timeline));
        }
        wanted.dedup();
        child = Some(content);
    }
    Ok(())
}
