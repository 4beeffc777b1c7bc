//! Between repositories: WAL that another one still wants and lacks is not given up here.
//!
//! ```text
//!  here    ───────────────▓▓▓▓▓▓▓▓▓▓──────►        goes: ▓
//!  there          floor ─►──────  ─────────►       lacks two of them: they stay here, as kept ranges of the floor
//! ```
//! It has a segment if it holds as many copies of it as there are here: of two the second is the longer, or the good one that came after
//! one with damage in it. A copy that an operator accepted with damage there is none: the good one is here. Headers of other segments are
//! not read, so that it counts as lacking where in doubt.
//! A repository that does not answer counts as lacking everything, and so does one that knows nothing of the cluster (a disk that is not
//! mounted looks like that). One that is answered for in this run has what it wants for good: objects are never changed, and its own
//! floor only rises. Backups are owed to nobody. Source of truth: REPOSITORY.md 4, "Between repositories".

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::repo::objects::Floor;
use crate::repo::retention::{Spans, StoredWal};
use crate::repo::{Repository, System};
use crate::wal::{SegmentName, SegmentNo, TimelineId};

/// What is owed, and what a person should know of it.
#[derive(Debug, Default)]
pub(super) struct Owed {
    pub(super) wal: StoredWal,
    pub(super) notes: Vec<String>,
}

impl Owed {
    fn add(&mut self, timeline: TimelineId, spans: &Spans) {
        if !spans.is_empty() {
            self.wal.entry(timeline).or_default().add_all(spans);
        }
    }

    fn everything(&mut self, giving_up: &StoredWal, note: String) {
        giving_up.iter().for_each(|(timeline, spans)| self.add(*timeline, spans));
        self.notes.push(note);
    }
}

/// What of `giving_up` the other repositories still want and lack.
pub(super) async fn owed(
    system: &System,
    others: &[Repository],
    giving_up: &StoredWal,
    copies: &BTreeMap<(TimelineId, u64), usize>,
) -> Owed {
    let mut owed = Owed::default();
    if giving_up.values().all(Spans::is_empty) {
        return owed;
    }
    for other in others {
        match lacking(system, other, giving_up, copies).await {
            Ok(Some(lacks)) => {
                let count: u64 = lacks.values().map(Spans::count).sum();
                lacks.iter().for_each(|(timeline, spans)| owed.add(*timeline, spans));
                if count > 0 {
                    owed.notes.push(format!(
                        "{count} segments stay because repository {} lacks them",
                        other.name()
                    ));
                }
            }
            Ok(None) => owed.everything(
                giving_up,
                format!(
                    "no WAL is given up: repository {} knows nothing of cluster {} (is it initialised, is the disk mounted?)",
                    other.name(),
                    other.cluster()
                ),
            ),
            Err(error) => owed.everything(
                giving_up,
                format!("no WAL is given up: repository {} does not answer: {error}", other.name()),
            ),
        }
    }
    owed
}

/// What `other` wants and lacks; `None` if it knows nothing of the cluster.
async fn lacking(
    system: &System,
    other: &Repository,
    giving_up: &StoredWal,
    copies: &BTreeMap<(TimelineId, u64), usize>,
) -> Result<Option<StoredWal>> {
    let identities = other.identities().await?;
    if identities.is_empty() {
        return Ok(None);
    }
    // It has the cluster under other system identifiers only: it began after this one had ended.
    if identities.iter().all(|identity| identity.system != system.identity().system) {
        return Ok(Some(BTreeMap::new()));
    }
    let there = other.open(system.identity().system).await?;
    if there.identity().segment_size != system.identity().segment_size {
        return Err(Error::refused(format!("repository {} has another segment size", other.name())));
    }
    let floor = there.floor().await?;
    let oldest = oldest(&there).await?;
    let mut lacks = BTreeMap::new();
    for (timeline, spans) in giving_up {
        let wanted = wanted(spans, *timeline, floor.as_ref(), oldest, &there);
        let copies_here = |number| copies.get(&(*timeline, number)).copied().unwrap_or(1);
        let missing = wanted.without(&stored_there(&there, *timeline, &wanted, copies_here).await?);
        if !missing.is_empty() {
            lacks.insert(*timeline, missing);
        }
    }
    Ok(Some(lacks))
}

/// The place of the oldest segment it has, on any timeline.
async fn oldest(there: &System) -> Result<Option<u64>> {
    let size = there.identity().segment_size;
    let mut oldest: Option<u64> = None;
    for timeline in there.timelines().await?.into_keys() {
        let Some(folder) = there.wal_folders(timeline).await?.into_iter().next() else { continue };
        let first = there.wal_in(&folder).await?.into_iter().find(|listed| listed.replayable);
        let number = first.and_then(|listed| listed.segment.number(size).ok()).map(SegmentNo::get);
        oldest = oldest.into_iter().chain(number).min();
    }
    Ok(oldest)
}

/// What of `spans` it wants: what its floor keeps; without a floor, everything from its oldest segment on.
fn wanted(
    spans: &Spans,
    timeline: TimelineId,
    floor: Option<&Floor>,
    oldest: Option<u64>,
    there: &System,
) -> Spans {
    let size = there.identity().segment_size;
    let Some(oldest) = oldest else { return Spans::default() };
    match floor {
        None => spans.and(&Spans::one(oldest, u64::MAX)),
        Some(floor) => spans
            .iter()
            .flat_map(|(first, last)| first..=last)
            .filter(|n| floor.keeps(SegmentName::new(timeline, SegmentNo::new(*n), size)))
            .collect(),
    }
}

/// What of `wanted` is stored there, in as many copies as here; only the folders that matter are listed.
async fn stored_there(
    there: &System,
    timeline: TimelineId,
    wanted: &Spans,
    copies_here: impl Fn(u64) -> usize,
) -> Result<Spans> {
    let size = there.identity().segment_size;
    let folders: BTreeSet<u64> = wanted
        .iter()
        .flat_map(|(first, last)| first / size.segments_per_log()..=last / size.segments_per_log())
        .collect();
    let mut stored = Spans::default();
    for log in folders {
        let name = SegmentName::new(timeline, SegmentNo::new(log * size.segments_per_log()), size);
        let (mut copies, mut accepted) = (BTreeMap::<u64, usize>::new(), Vec::new());
        for listed in there.wal_in(&there.keys().segment_dir(name)).await? {
            if listed.accepted {
                accepted.push(listed.segment);
            } else if let Ok(number) = listed.segment.number(size).map(SegmentNo::get)
                && listed.replayable
            {
                *copies.entry(number).or_default() += 1;
            }
        }
        for segment in accepted {
            // A good copy may have come since; what cannot be looked at is taken for damaged.
            if !matches!(there.accepted_end(segment).await, Ok(None)) {
                copies.remove(&segment.number(size).map_or(0, SegmentNo::get));
            }
        }
        for (number, _) in copies.into_iter().filter(|(number, found)| *found >= copies_here(*number)) {
            stored.add(number, number);
        }
    }
    Ok(stored)
}
