//! From faults to restore points: which backups no longer restore, which moments are lost, and what still works.
//!
//! ```text
//!  spans without what is bad    ├── A ──┤        ├──── B ────┤        by the planner, as `info` shows them
//!  a fault between them                 ╳
//!  lost                                 ╞════════╡                    from the last moment of A to the first of B
//! ```
//! What is bad is taken out of the planner's world, so that "still works" is what a restore would say. A fault that lies inside a span
//! costs no moment: another backup, or another way, reaches all of them. Every route is asked, since one segment may serve several.

use std::collections::{BTreeMap, BTreeSet};

use super::continuity::Place;
use super::documents::is_live;
use super::finding::{Affected, Fault, Finding, Lost, Subject};
use super::folder::Look;
use super::wal::{Histories, Line, wal_subject};
use super::{Backup, Known, twice};
use crate::error::{Kind, Result};
use crate::ops::facts::Archive;
use crate::ops::plan::{self, Moment, Span, Window};
use crate::repo::catalog::{BackupState, Catalog};
use crate::repo::path::BackupId;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};

/// Fills in what the findings cost, and what is left.
pub(super) async fn settle(
    look: &mut Look<'_>,
    catalog: Catalog,
    histories: Histories,
    line: Line,
) -> Result<()> {
    let unread: Vec<BackupId> = catalog
        .backups
        .iter()
        .filter(|info| matches!(info.state, BackupState::Unreadable(_)) && look.asked_for(&info.id))
        .map(|info| info.id.clone())
        .collect();
    let live: BTreeSet<BackupId> =
        catalog.backups.iter().filter(|b| is_live(&b.state)).map(|b| b.id.clone()).collect();
    let floor = look.floor.clone();
    let mut archive = Archive::of(
        &look.system,
        catalog,
        histories,
        line.good.clone(),
        line.accepted.clone(),
        floor.as_ref(),
    );
    mark_broken(look, &mut archive);
    look.folder.windows = windows(look, &mut archive).await?;
    let planned = archive.world.backups.iter();
    let mut backups: BTreeMap<BackupId, bool> =
        planned.filter_map(|b| Some((b.id.parse().ok()?, b.restorable))).collect();
    backups.retain(|id, _| live.contains(id) && look.asked_for(id));
    backups.extend(unread.into_iter().map(|id| (id, false)));
    let ends = ends(look, &archive).await?;
    let cost = Cost {
        size: look.system.identity().segment_size,
        blind: look.blind,
        backups: &backups,
        places: &line.backups,
        histories: &archive.world.histories,
        windows: &look.folder.windows,
        ends: &ends,
    };
    for finding in &mut look.folder.findings.kept {
        (finding.affected, finding.lost) = (cost.affected(&finding.subject), cost.lost(&finding.subject));
    }
    let accepted: Vec<Finding> = line.accepted.keys().map(|name| cost.accepted(look, *name)).collect();
    for finding in accepted {
        if finding.lost.iter().all(|lost| lost.resumes) {
            look.folder.known.push(Known { object: finding.object, lost: finding.lost });
        } else {
            look.folder.findings.count += 1;
            look.folder.findings.kept.push(finding);
        }
    }
    let corrupt = |id: &BackupId| archive.world.backups.iter().any(|b| b.corrupt && b.id == id.as_str());
    let shown = |(id, restorable)| Backup { corrupt: corrupt(&id), id, restorable };
    look.folder.backups = backups.into_iter().map(shown).collect();
    Ok(())
}

/// A backup without something it needs, or on a timeline that is not found, does not restore.
fn mark_broken(look: &Look<'_>, archive: &mut Archive) {
    let world = &mut archive.world;
    for backup in &mut world.backups {
        let found = backup.timeline == TimelineId::FIRST || world.histories.contains_key(&backup.timeline);
        backup.restorable &= found && !look.blind && !look.broken.iter().any(|id| id.as_str() == backup.id);
    }
}

/// What can be restored. A segment that shows to be bad only now is a finding like any other.
async fn windows(look: &mut Look<'_>, archive: &mut Archive) -> Result<Vec<Window>> {
    if look.blind {
        return Ok(Vec::new());
    }
    loop {
        let mut bad = Vec::new();
        let found = archive
            .resolve_around(plan::window, &mut |name, error| {
                if !matches!(error.kind(), Kind::Corrupt | Kind::Refused) {
                    return Err(error);
                }
                bad.push((name, error));
                Ok(())
            })
            .await?;
        if bad.is_empty() {
            return Ok(found);
        }
        let size = archive.world.segment_size;
        for (name, error) in bad {
            let Ok(number) = name.number(size) else { continue };
            let key = look.system.keys().wal(WalFileName::Segment(name));
            let subject = wal_subject(name.timeline(), number, number);
            look.folder.findings.add(Fault::Damaged, key, error.to_string(), subject);
            for backup in &mut archive.world.backups {
                let place =
                    Place { timeline: backup.timeline, start: backup.start_lsn, stop: backup.stop_lsn };
                let (first, last) = place.segments(size);
                backup.restorable &= backup.timeline != name.timeline() || !(first..=last).contains(&number);
            }
        }
    }
}

/// Where the stored WAL of each route ends: what lies behind a fault reaches to there.
async fn ends(look: &Look<'_>, archive: &Archive) -> Result<BTreeMap<TimelineId, Moment>> {
    let world = &archive.world;
    let mut ends = BTreeMap::new();
    for (timeline, line) in &world.stored {
        let Some(number) = line.last() else { continue };
        let name = SegmentName::new(*timeline, *number, world.segment_size);
        match twice(|| look.system.segment_info(name)).await {
            Ok(Some(info)) => {
                let lsn = info.header.valid.map_or_else(|| number.end(world.segment_size), |valid| valid.to);
                let time = info.header.commits.map(|(_, max)| max);
                ends.insert(*timeline, Moment { time, lsn, timeline: *timeline });
            }
            Ok(None) => {}
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(ends)
}

/// What is known to say what a fault costs.
struct Cost<'a> {
    size: SegmentSize,
    blind: bool,
    /// Backups that exist, and whether they restore.
    backups: &'a BTreeMap<BackupId, bool>,
    places: &'a [(BackupId, Place)],
    histories: &'a BTreeMap<TimelineId, TimelineHistory>,
    windows: &'a [Window],
    ends: &'a BTreeMap<TimelineId, Moment>,
}

impl Cost<'_> {
    fn affected(&self, subject: &Subject) -> Vec<Affected> {
        let of = |id: &BackupId| Affected {
            id: id.clone(),
            restorable: self.backups.get(id).copied().unwrap_or(false),
        };
        match subject {
            Subject::Folder => self.backups.keys().map(of).collect(),
            Subject::Backups(ids) => ids.iter().map(of).collect(),
            Subject::Extra(id) => vec![of(id)],
            Subject::Wal { timeline, first, last } => {
                let needs = |place: &Place| {
                    let (from, to) = place.segments(self.size);
                    place.timeline == *timeline && from <= *last && *first <= to
                };
                self.places.iter().filter(|(_, place)| needs(place)).map(|(id, _)| of(id)).collect()
            }
            Subject::History(timeline) => self
                .places
                .iter()
                .filter(|(_, place)| place.timeline == *timeline)
                .map(|(id, _)| of(id))
                .collect(),
            Subject::Aside => Vec::new(),
        }
    }

    fn lost(&self, subject: &Subject) -> Vec<Lost> {
        let mut lost: Vec<Lost> = match subject {
            Subject::Folder if self.blind => {
                vec![Lost { timeline: TimelineId::FIRST, from: None, to: None, resumes: false }]
            }
            Subject::Backups(ids) => ids.iter().flat_map(|id| self.lost_with(id)).collect(),
            Subject::Wal { timeline, first, last } => {
                self.routes().filter_map(|history| self.lost_on(&history, *timeline, *first, *last)).collect()
            }
            Subject::History(timeline) => {
                let to = self.ends.get(timeline).copied();
                vec![Lost { timeline: *timeline, from: None, to, resumes: false }]
            }
            Subject::Folder | Subject::Extra(_) | Subject::Aside => Vec::new(),
        };
        let mut known = BTreeSet::new();
        let lsn = |moment: Option<Moment>| moment.map(|m| m.lsn);
        lost.retain(|l| known.insert((lsn(l.from), lsn(l.to), l.resumes)));
        lost
    }

    /// Every route that can be followed, oldest timeline first.
    fn routes(&self) -> impl Iterator<Item = TimelineHistory> {
        std::iter::once(TimelineHistory::first()).chain(self.histories.values().cloned())
    }

    fn spans(&self, timeline: TimelineId) -> &[Span] {
        self.windows.iter().find(|w| w.timeline == timeline).map(|w| w.spans.as_slice()).unwrap_or_default()
    }

    /// The moments that a backup which no longer restores takes with it.
    fn lost_with(&self, id: &BackupId) -> Vec<Lost> {
        let place = self.places.iter().find(|(known, _)| known == id).map(|(_, place)| *place);
        let (Some(place), Some(false)) = (place, self.backups.get(id)) else { return Vec::new() };
        let on = |history: &TimelineHistory| {
            history.begin(place.timeline).is_some_and(|begin| begin <= place.start)
                && history.end(place.timeline).is_none_or(|end| place.stop <= end)
        };
        let routes = self.routes().filter(on);
        routes.filter_map(|history| self.between(history.timeline(), place.stop, place.stop)).collect()
    }

    /// The moments that WAL which is bad takes with it, on one route.
    fn lost_on(
        &self,
        history: &TimelineHistory,
        timeline: TimelineId,
        first: SegmentNo,
        last: SegmentNo,
    ) -> Option<Lost> {
        let (start, end) = (first.start(self.size), last.end(self.size));
        let begin = history.begin(timeline)?;
        let leaves = history.end(timeline);
        // A child has its own copy of the segment in which it left its parent.
        let on_route =
            end > begin && leaves.is_none_or(|leaves| SegmentNo::containing(leaves, self.size) > first);
        let replayed = self.places.iter().any(|(_, place)| {
            history.contains(place.timeline)
                && place.start < end
                && history.end(place.timeline).is_none_or(|fork| place.stop <= fork)
        });
        if on_route && replayed { self.between(history.timeline(), start, end) } else { None }
    }

    /// The moments around a fault from `start` to `end`; nothing if a span reaches over it.
    fn between(&self, timeline: TimelineId, start: Lsn, end: Lsn) -> Option<Lost> {
        let spans = self.spans(timeline);
        if spans.iter().any(|span| span.earliest.lsn <= start && end <= span.latest.lsn) {
            return None;
        }
        let from = spans.iter().rev().find(|span| span.earliest.lsn <= start).map(|span| span.latest);
        let next = spans.iter().find(|span| span.earliest.lsn > start).map(|span| span.earliest);
        let resumes = next.is_some();
        let behind = || self.ends.get(&timeline).copied().filter(|last| last.lsn >= end);
        Some(Lost { timeline, from, to: next.or_else(behind), resumes })
    }

    /// A segment that an operator accepted as damaged, as a finding.
    fn accepted(&self, look: &Look<'_>, name: SegmentName) -> Finding {
        let number = name.number(self.size).unwrap_or(SegmentNo::new(0));
        let subject = wal_subject(name.timeline(), number, number);
        Finding {
            fault: Fault::Gap,
            object: look.system.keys().wal(WalFileName::Segment(name)),
            through: None,
            what: "it was accepted as damaged, and no backup was taken since".to_owned(),
            affected: self.affected(&subject),
            lost: self.lost(&subject),
            subject,
        }
    }
}
