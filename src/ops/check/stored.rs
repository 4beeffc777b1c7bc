//! What a restore of the newest moment would find in a repository, by names alone.
//!
//! ```text
//!  newest complete backup ──► every segment of the server's timeline and its parents ──► the newest one that the server archived
//! ```
//! Whoever can delete may take away the newest objects: what is left is genuine and complete in itself, and only the server knows how far
//! it archived. So this is asked where the server is. Listings alone, from the backup on: `pitr verify` reads what is stored.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{Finding, Grade};
use crate::clock::{Clock as _, SystemClock};
use crate::error::{Error, Result};
use crate::repo::System;
use crate::repo::archive::ListedSegment;
use crate::repo::objects::{Backup, Checksums};
use crate::repo::retention::{Route, StoredWal};
use crate::wal::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

/// How long a new cluster may be without a backup before that is a finding.
const FIRST_BACKUP: SignedDuration = SignedDuration::from_hours(24);

/// Checks one repository, up to `archived`; without it, up to what is stored.
pub(super) async fn look(system: &System, archived: Option<SegmentName>) -> Vec<Finding> {
    let what = format!("WAL in repository {}", system.repository().name());
    match try_look(system, archived, &what).await {
        Ok(found) => found,
        Err(e) => vec![Finding::failed(&what, &e)],
    }
}

async fn try_look(system: &System, archived: Option<SegmentName>, what: &str) -> Result<Vec<Finding>> {
    let catalog = system.catalog().await?;
    let sound: Vec<&Backup> = catalog.complete().filter(|b| b.checksums != Checksums::Corrupt).collect();
    if sound.is_empty() {
        let damaged = catalog.complete().next().is_some();
        return Ok(vec![no_backup(what, damaged, system.identity().created, SystemClock.now())]);
    }
    let Some(newest) = newest_timeline(system, archived).await? else {
        let none = Finding::new(
            Grade::Bad,
            what,
            "backups are stored and no WAL is, without which none can be restored",
        );
        return Ok(vec![
            none.hint("somebody deleted it: `pitr verify` tells what still restores; then `pitr backup`"),
        ]);
    };
    let Some(history) = system.history(newest).await? else {
        let text = format!(
            "{}.history is missing, without which timeline {} cannot be reached",
            newest.hex(),
            newest.get()
        );
        return Ok(vec![
            Finding::new(Grade::Bad, what, text)
                .hint("the server has it in pg_wal: `pitr archive-push` it, or run `pitr backup`"),
        ]);
    };
    let leads = |backup: &&Backup| {
        history.contains(backup.timeline)
            && history.end(backup.timeline).is_none_or(|end| backup.stop_lsn <= end)
    };
    let Some(backup) = sound.into_iter().filter(leads).max_by_key(|backup| backup.start_lsn) else {
        let text = format!("no complete backup leads to timeline {}, which is the newest", newest.get());
        return Ok(vec![
            Finding::new(Grade::Risk, what, text)
                .hint("its newest moments cannot be restored: run `pitr backup`"),
        ]);
    };
    let way = Way::list(system, &history, backup).await?;
    way.judge(system, archived, what).await
}

/// Who has set it up a moment ago is about to take the first one. `damaged`: there are some, and the server's pages were damaged.
fn no_backup(what: &str, damaged: bool, created: Timestamp, now: Timestamp) -> Finding {
    if damaged {
        return Finding::new(Grade::Risk, what, "every backup that is stored holds damaged pages")
            .hint("`pitr info` names them: mend the server's relations, then run `pitr backup`");
    }
    let is_new = now.duration_since(created) < FIRST_BACKUP;
    let grade = if is_new { Grade::Good } else { Grade::Risk };
    Finding::new(grade, what, "no complete backup is stored: nothing can be restored")
        .hint("run `pitr backup`; if there was one, `pitr verify` tells what is missing")
}

/// The timeline that the server archives, or the newest of which WAL is stored.
async fn newest_timeline(system: &System, archived: Option<SegmentName>) -> Result<Option<TimelineId>> {
    if let Some(archived) = archived {
        return Ok(Some(archived.timeline()));
    }
    let timelines = system.timelines().await?;
    Ok(timelines
        .into_iter()
        .filter(|(_, found)| found.first_wal.is_some())
        .map(|(timeline, _)| timeline)
        .next_back())
}

/// From a backup along a timeline and its parents.
struct Way<'a> {
    backup: &'a Backup,
    history: &'a TimelineHistory,
    stored: BTreeMap<SegmentName, ListedSegment>,
}

impl<'a> Way<'a> {
    async fn list(system: &System, history: &'a TimelineHistory, backup: &'a Backup) -> Result<Self> {
        let size = system.identity().segment_size;
        let from = SegmentNo::containing(backup.start_lsn, size);
        let mut stored = BTreeMap::new();
        for timeline in history.route().filter(|timeline| *timeline >= backup.timeline) {
            let listed = system.segments_from(SegmentName::new(timeline, from, size)).await?;
            stored.extend(listed.into_iter().map(|listed| (listed.name, listed)));
        }
        Ok(Self { backup, history, stored })
    }

    fn by_number(&self, size: SegmentSize) -> StoredWal {
        let mut wal = StoredWal::new();
        for name in self.stored.keys() {
            if let Ok(number) = name.number(size) {
                wal.entry(name.timeline()).or_default().add(number.get(), number.get());
            }
        }
        wal
    }

    async fn judge(
        &self,
        system: &System,
        archived: Option<SegmentName>,
        what: &str,
    ) -> Result<Vec<Finding>> {
        let newest = self.stored.keys().rfind(|name| name.timeline() == self.history.timeline()).copied();
        let size = system.identity().segment_size;
        let start = SegmentNo::containing(self.backup.start_lsn, size);
        // What lies before the backup says nothing of it: its WAL may have been stored by `pitr backup` itself.
        let archived = archived.filter(|name| name.number(size).is_ok_and(|number| number >= start));
        // Behind what the server archived an agent stores ahead, in any order.
        let Some(last) = archived.or(newest) else {
            let text = format!("nothing of timeline {} is stored", self.history.timeline().get());
            return Ok(vec![Finding::new(Grade::Good, what, text)]);
        };
        let end = last
            .number(size)
            .map_err(|e| Error::failed(format!("{last} is no segment of this cluster")).source(e))?;
        let route = Route::new(self.history.clone(), size);
        let missing = route.missing(&self.by_number(size), self.backup.start_lsn, end);
        let id = &self.backup.id;
        if let Some((timeline, first)) = missing.iter().find_map(|(tli, spans)| Some((*tli, spans.first()?)))
        {
            let first = SegmentName::new(timeline, SegmentNo::new(first), size);
            let many = match missing.iter().fold(0, |sum: u64, (_, spans)| sum.saturating_add(spans.count()))
            {
                1 => String::new(),
                n => format!(" and {} more up to {last} are", n.saturating_sub(1)),
            };
            let is = if many.is_empty() { " is" } else { "" };
            let text =
                format!("{first}{many}{is} missing: from backup {id}, nothing behind that can be restored");
            return Ok(vec![match archived {
                Some(_) => Finding::new(Grade::Bad, what, text).hint(
                    "the server archived behind it: somebody deleted it, or a server that was promoted never archived it; `pitr verify` tells what still restores; run `pitr backup`, and find out who may delete there",
                ),
                // Of an optional repository, or where the server does not say how far it is, it may be under way.
                None => Finding::new(Grade::Risk, what, text)
                    .hint("it is not stored yet, or gone: `pitr agent` stores what it lacks; else run `pitr backup`"),
            }]);
        }
        for listed in self.stored.values().filter(|listed| listed.accepted) {
            if system.accepted_end(listed.name).await?.is_some() {
                let text = format!(
                    "it has a gap at {}, which was accepted as damaged after the newest backup began",
                    listed.name
                );
                return Ok(vec![
                    Finding::new(Grade::Risk, what, text)
                        .hint("nothing that was committed after it can be restored: run `pitr backup`"),
                ]);
            }
        }
        let count = end.get().saturating_sub(start.get()).saturating_add(1);
        let text = format!("all {count} segments from backup {id} to {last} are there");
        Ok(vec![Finding::new(Grade::Good, what, text)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_without_a_sound_backup_is_at_risk_after_a_day_or_at_once_if_there_are_damaged_ones() {
        let found = |damaged, hours| {
            let created = Timestamp::UNIX_EPOCH;
            no_backup("x", damaged, created, created + SignedDuration::from_hours(hours))
        };
        assert_eq!((found(false, 23).grade, found(false, 24).grade), (Grade::Good, Grade::Risk));
        let damaged = found(true, 1);
        assert!(damaged.grade == Grade::Risk && damaged.found.contains("damaged pages"), "{damaged:?}");
    }
}
