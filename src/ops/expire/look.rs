//! What a run of `expire` knows: listings, verdicts and pins, turned into what retention decides on.
//!
//! ```text
//!  Stored   WAL by span, histories            read once: what is stored later is newer than any floor
//!  Look     catalog, pins, floor  ─► Holdings  read twice: to decide, and again before anything is deleted
//! ```
//! Ages are differences of two times of the store. One object that cannot be read ends the run, and is named: it might have spoken
//! for what is about to be deleted. But for WAL, which these credentials need not read: then nobody knows whether what was accepted with
//! damage has a good copy by now, and retention is told so. Source of truth: REPOSITORY.md 4.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};
use crate::repo::catalog::{BackupInfo, BackupState, Catalog};
use crate::repo::objects::{Checksums, Floor, Verdict};
use crate::repo::path::{BackupId, BackupObject};
use crate::repo::pins::ListedPin;
use crate::repo::retention::{Failure, HeldBackup, Holdings, LetGo, Marked, Spans, StoredWal, both};
use crate::repo::{RepoError, System};
use crate::wal::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

/// A backup without a verdict and without a new object for this long has no writer any more.
pub(super) const SILENT_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// Most timelines that are named one by one.
const MOST_TOLD: usize = 10;

/// The WAL of a system folder.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    pub(super) wal: StoredWal,
    /// Segments that were accepted with damage, and that these credentials may not read.
    pub(super) unread: StoredWal,
    /// What a person should know of all that.
    pub(super) notes: Vec<String>,
    /// How many copies there are of a segment, if more than one.
    pub(super) copies: BTreeMap<(TimelineId, u64), usize>,
    pub(super) last_stored: BTreeMap<TimelineId, Timestamp>,
    pub(super) histories: BTreeMap<TimelineId, TimelineHistory>,
}

impl Stored {
    /// The timelines of which a file of WAL is stored.
    pub(super) fn timelines(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.last_stored.keys().copied()
    }

    /// All segments, replayable or unread.
    pub(super) fn all(&self) -> StoredWal {
        both(&self.wal, &self.unread)
    }

    /// Lists all WAL, a folder at a time.
    pub(super) async fn read(system: &System) -> Result<Self> {
        let size = system.identity().segment_size;
        let mut stored = Self::default();
        for (timeline, found) in system.timelines().await? {
            if found.history
                && let Some(history) = system.history(timeline).await?
            {
                stored.histories.insert(timeline, history);
            }
            for folder in system.wal_folders(timeline).await? {
                stored.read_folder(system, &folder, timeline).await?;
            }
        }
        stored.notes.extend(note(&stored.unread, size));
        Ok(stored)
    }

    /// Sets aside the WAL of timelines that no restore can follow: neither a history nor a backup leads to them. It is neither counted on nor
    /// given up. A name alone could else make one the newest, or raise a floor for a timeline that is still to come.
    pub(super) fn set_aside(&mut self, backups: impl Iterator<Item = TimelineId>) {
        let led_to: BTreeSet<TimelineId> =
            self.histories.keys().copied().chain([TimelineId::FIRST]).chain(backups).collect();
        for timeline in self.last_stored.keys().filter(|timeline| !led_to.contains(timeline)).take(MOST_TOLD)
        {
            self.notes.push(format!(
                "WAL of timeline {timeline} is neither counted on nor given up: neither {}.history nor a backup is stored that leads to it",
                timeline.hex()
            ));
        }
        for wal in [&mut self.wal, &mut self.unread] {
            wal.retain(|timeline, _| led_to.contains(timeline));
        }
        self.last_stored.retain(|timeline, _| led_to.contains(timeline));
    }

    async fn read_folder(&mut self, system: &System, folder: &str, timeline: TimelineId) -> Result<()> {
        let size = system.identity().segment_size;
        let listed = system.wal_in(folder).await?;
        let (mut damaged, mut unread) = (BTreeSet::new(), BTreeSet::new());
        for record in listed.iter().filter(|listed| listed.accepted) {
            // A good copy may have come since.
            match system.accepted_end(record.segment).await {
                Ok(None) => {}
                Ok(Some(_)) => {
                    damaged.insert(record.segment);
                }
                Err(RepoError::Store(e)) if e.is_forbidden() => {
                    unread.insert(record.segment);
                }
                Err(e) => return Err(e.into()),
            }
        }
        for listed in listed {
            let last = self.last_stored.entry(timeline).or_insert(listed.object.modified);
            *last = listed.object.modified.max(*last);
            if let Ok(number) = listed.segment.number(size).map(SegmentNo::get)
                && listed.replayable
                && !damaged.contains(&listed.segment)
            {
                let all = if unread.contains(&listed.segment) { &mut self.unread } else { &mut self.wal };
                let spans = all.entry(timeline).or_default();
                if spans.contains(number) {
                    *self.copies.entry((timeline, number)).or_insert(1) += 1;
                }
                spans.add(number, number);
            }
        }
        Ok(())
    }
}

/// Says which segments could not be looked at, and what that means.
fn note(unread: &StoredWal, size: SegmentSize) -> Option<String> {
    let named = unread.iter().flat_map(|(timeline, spans)| spans.iter().map(|span| (*timeline, span.0)));
    let first = named.map(|(timeline, n)| SegmentName::new(timeline, SegmentNo::new(n), size)).next()?;
    let count: u64 = unread.values().map(Spans::count).sum();
    let rest = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
    Some(format!(
        "{first}{rest} was accepted with damage, and these credentials may not read whether a good copy has come: no promise rests on it, and nothing is given up for it"
    ))
}

/// A tombstone or an abandoned verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) id: BackupId,
    /// Store time of its creation.
    pub(super) at: Timestamp,
    /// The backup was complete.
    pub(super) complete: bool,
    /// It was abandoned with all of its files stored.
    pub(super) nearly: bool,
    /// It holds damaged pages.
    pub(super) corrupt: bool,
}

/// Backups, pins and floor at one moment.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) catalog: Catalog,
    pub(super) floor: Option<Floor>,
    /// Store time of its creation.
    pub(super) floor_since: Option<Timestamp>,
    let_go: LetGo,
    /// The pins that count.
    pins: Vec<ListedPin>,
}

impl Look {
    /// Reads every intent, verdict, tombstone and pin, the floor, and those that counted within the grace.
    pub(super) async fn read(system: &System, now: Timestamp, grace: SignedDuration) -> Result<Self> {
        let catalog = system.catalog().await?;
        let mut pins = system.pins().await?;
        pins.retain(|pin| pin.counts(now));
        let let_go = if grace.is_zero() {
            LetGo::AtOnce
        } else {
            let floors = system.floors_since(now.checked_sub(grace).unwrap_or(Timestamp::MIN)).await?;
            floors.map_or(LetGo::Nothing, LetGo::Below)
        };
        let floor_since = system.floors().await?.last().map(|listed| listed.object.modified);
        Ok(Self { catalog, pins, floor: system.floor().await?, floor_since, let_go })
    }

    /// What retention decides on. For the backups in `dead` nothing is held any more, unless somebody pinned them; that one failed is known
    /// for as long as its verdict is there.
    pub(super) fn holdings(
        &self,
        system: &System,
        stored: &Stored,
        dead: &BTreeSet<BackupId>,
        now: Timestamp,
        superseded: bool,
    ) -> Holdings {
        let mut holdings = Holdings {
            segment_size: system.identity().segment_size,
            backups: Vec::new(),
            marked: Vec::new(),
            running: Vec::new(),
            pins: self.pins.iter().map(|listed| listed.pin.wal_from).collect(),
            failures: Vec::new(),
            histories: stored.histories.clone(),
            wal: stored.wal.clone(),
            unread: stored.unread.clone(),
            last_stored: stored.last_stored.clone(),
            floor: self.floor.clone(),
            let_go: self.let_go.clone(),
            superseded,
        };
        for info in &self.catalog.backups {
            let pinned = self.is_pinned(&info.id);
            if pinned || !dead.contains(&info.id) || info.state == BackupState::Abandoned {
                sort(info, pinned, now, &mut holdings);
            }
        }
        holdings
    }

    /// The timelines of backups, finished or not.
    pub(super) fn timelines(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.catalog.backups.iter().filter_map(|info| match &info.verdict {
            Some(Verdict::Complete(backup)) => Some(backup.timeline),
            Some(Verdict::Abandoned(_)) | None => info.intent.as_ref().map(|intent| intent.timeline),
        })
    }

    /// Refuses to go on if an intent or a verdict that might speak for others' packs cannot be read. Those of the dead do not matter.
    ///
    /// # Errors
    /// Kind `Corrupt`, naming the object.
    pub(super) fn check_readable(&self, dead: &BTreeSet<BackupId>) -> Result<()> {
        let unreadable = |info: &&BackupInfo| !dead.contains(&info.id) && info.unreadable.is_some();
        let Some(info) = self.catalog.backups.iter().find(unreadable) else { return Ok(()) };
        let what = info.unreadable.clone().unwrap_or_default();
        let marked = info.files.has(BackupObject::Expired);
        let hint = match marked {
            true => "it is marked; once the grace has passed it no longer counts".to_owned(),
            false => format!(
                "another repository may hold a good copy; to give this backup up: `pitr expire --backup {}`",
                info.id
            ),
        };
        Err(Error::corrupt(format!(
            "nothing is deleted while an object cannot be read that may speak for others: {what}"
        ))
        .hint(hint))
    }

    /// Whether anybody needs the backup.
    pub(super) fn is_pinned(&self, id: &BackupId) -> bool {
        self.pins.iter().any(|listed| listed.pin.backup == *id)
    }

    /// Every tombstone and abandoned verdict.
    pub(super) fn marks(&self) -> impl Iterator<Item = Mark> + '_ {
        self.catalog.backups.iter().filter_map(mark)
    }

    /// Backups whose writers are gone and that nobody has said so of.
    pub(super) fn silent(&self, now: Timestamp) -> impl Iterator<Item = &BackupInfo> + '_ {
        self.catalog.backups.iter().filter(move |info| mark(info).is_none() && is_silent(info, now))
    }
}

fn mark(info: &BackupInfo) -> Option<Mark> {
    let tombstone = info.files.created(BackupObject::Expired);
    let abandoned = match &info.verdict {
        Some(Verdict::Abandoned(_)) => info.files.created(BackupObject::Verdict),
        Some(Verdict::Complete(_)) | None => None,
    };
    let at = tombstone.into_iter().chain(abandoned).min()?;
    // One whose verdict cannot be read any more may have been.
    let decided =
        info.files.has(BackupObject::Verdict) && !matches!(info.verdict, Some(Verdict::Abandoned(_)));
    let complete = decided && info.state == BackupState::Expired;
    let nearly =
        matches!(info.verdict, Some(Verdict::Abandoned(_))) && info.files.has(BackupObject::Manifest);
    let corrupt = matches!(&info.verdict, Some(Verdict::Complete(b)) if b.checksums == Checksums::Corrupt);
    Some(Mark { id: info.id.clone(), at, complete, nearly, corrupt })
}

fn is_silent(info: &BackupInfo, now: Timestamp) -> bool {
    let unfinished = matches!(info.state, BackupState::Unfinished | BackupState::Garbage);
    unfinished && info.files.newest().is_none_or(|newest| now.duration_since(newest) >= SILENT_AFTER)
}

/// Puts a backup where retention looks for it.
fn sort(info: &BackupInfo, pinned: bool, now: Timestamp, holdings: &mut Holdings) {
    let complete = match &info.verdict {
        Some(Verdict::Complete(backup)) => Some(&**backup),
        Some(Verdict::Abandoned(_)) | None => None,
    };
    let began = info.intent.as_ref().map(|intent| intent.started_at);
    match (&info.state, complete) {
        (BackupState::Complete, Some(backup)) => {
            let held = HeldBackup::new(backup, None, holdings, pinned);
            holdings.backups.push(held);
        }
        (BackupState::Damaged(what), Some(backup)) => {
            let held = HeldBackup::new(backup, Some(what.clone()), holdings, pinned);
            holdings.backups.push(held);
        }
        (BackupState::Expired, Some(backup)) => holdings.marked.push(Marked {
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
        }),
        (BackupState::Unfinished | BackupState::Expired, _) => {
            holdings.running.extend(info.intent.as_ref().map(|intent| intent.wal_floor));
            if is_silent(info, now) {
                holdings.failures.extend(began.map(|began| Failure {
                    id: info.id.clone(),
                    began,
                    what: "its writer is gone".to_owned(),
                }));
            }
        }
        (BackupState::Abandoned, _) => {
            if let Some(Verdict::Abandoned(verdict)) = &info.verdict {
                // A run that was interrupted took the intent and left the verdict. That is as late as whoever gave the backup up: it would
                // make a failure of long ago newer than the backups that followed it, and freeze retention.
                let began = began.or_else(|| info.id.began());
                holdings.failures.push(Failure {
                    id: info.id.clone(),
                    began: began.unwrap_or(verdict.created),
                    what: verdict.reason.clone(),
                });
            }
        }
        (BackupState::Unreadable(what), _) => {
            holdings.running.extend(info.intent.as_ref().map(|intent| intent.wal_floor));
            let began = began.or_else(|| complete.map(|backup| backup.started_at));
            holdings.failures.extend(began.map(|began| Failure {
                id: info.id.clone(),
                began,
                what: what.clone(),
            }));
        }
        (BackupState::Complete | BackupState::Damaged(_) | BackupState::Garbage, _) => {}
    }
}
