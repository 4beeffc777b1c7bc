//! Retention by intent: from what was promised and what is there to what may go. Pure; printing its [`Plan`] is `--dry-run`.
//!
//! ```text
//!        monthly          daily    daily      window = 7d
//!   ────────[M]────────────[D]──────[D]────┬──[A]─────[B]─────[C]───► now
//!        [start,stop]  [start,stop]        │   └ all WAL from A's start on
//!                                          └ now - window: A is the newest backup that can restore this moment
//! ```
//! * `window`: every moment of it can be restored. Kept: the newest backup whose earliest moment lies at or before its start (the
//!   *anchor*; never one that an older one contradicts about the time), every later one, and all WAL from the anchor on. That is decided for the newest timeline and for every other one of
//!   which WAL was stored within the window, each along its own route, so that a branch is kept as long as a moment of it is promised.
//! * `daily` to `yearly`: the first sound backup of each period ([`Period`]), with the WAL from its start to its stop.
//! * Never the last sound backup, never a pinned one; nothing while backups fail ([`Freeze`]).
//! * WAL that cannot be read (an operator accepted it with damage, a good copy may have come since) is neither trusted nor given up: no
//!   promise rests on it, and what a promise would rest on if it were good stays ([`Reason::Unread`]).
//! * `grace`: what goes is first marked: a backup by its tombstone, WAL by a floor above it. The mark must stand for the grace before
//!   anything is deleted ([`LetGo`]), for whatever reason it goes: who planned a restore before it has that long to finish.
//!
//! Source of truth: REPOSITORY.md 4, RECOVERY.md 1 and 7, INTERFACE (configuration).

mod freeze;
mod hold;
mod period;
mod route;
mod spans;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

pub use freeze::{Failure, Freeze};
pub use hold::{Holds, above, both, without};
pub use period::Period;
pub use route::{Route, StoredWal};
pub use spans::Spans;

use super::objects::{Backup, Checksums, Floor, TimelineFloor};
use super::path::BackupId;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

/// How long a tombstone stands before its backup is deleted: a restore that could not pin has that long to finish.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(7 * 86_400);

/// How far the clocks of writer, server and store may be apart before a date is one of the future.
const APART: SignedDuration = SignedDuration::from_hours(1);

/// What a repository promises to keep. A zero keeps nothing for that reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Any moment this far back can be restored.
    pub window: Duration,
    /// One backup of each day, this far back.
    pub daily: Duration,
    /// One of each week.
    pub weekly: Duration,
    /// One of each month.
    pub monthly: Duration,
    /// One of each year.
    pub yearly: Duration,
    /// Between the tombstone of a backup and its deletion.
    pub grace: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let none = Duration::ZERO;
        Self { window: none, daily: none, weekly: none, monthly: none, yearly: none, grace: DEFAULT_GRACE }
    }
}

impl Policy {
    /// How far back backups are kept for a period.
    pub fn span(&self, period: Period) -> Duration {
        match period {
            Period::Day => self.daily,
            Period::Week => self.weekly,
            Period::Month => self.monthly,
            Period::Year => self.yearly,
        }
    }

    /// True if nothing is promised at all.
    pub fn keeps_nothing(&self) -> bool {
        self.window.is_zero() && Period::ALL.into_iter().all(|period| self.span(period).is_zero())
    }
}

/// A backup with a complete verdict and no tombstone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBackup {
    /// The backup.
    pub id: BackupId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where replay of it starts.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// When it began, by the server's clock.
    pub started_at: Timestamp,
    /// The moment of its stop, by the server's clock: what it restores without more WAL.
    pub stop_time: Timestamp,
    /// When it was finished, by its writer's clock.
    pub finished_at: Timestamp,
    /// The earliest moment that can be restored from it.
    pub earliest: Timestamp,
    /// Why it cannot be relied on, if so: something of it or of its WAL is missing, or the server's pages were corrupt.
    pub unsound: Option<String>,
    /// That is all because of WAL that cannot be read: it is sound if that is.
    pub unsure: bool,
    /// The server's pages were.
    pub corrupt: bool,
    /// Somebody needs it.
    pub pinned: bool,
}

impl HeldBackup {
    /// What its verdict tells, and the WAL that `holdings` keep; `missing` is what is known to be missing of its own objects.
    pub fn new(backup: &Backup, missing: Option<String>, holdings: &Holdings, pinned: bool) -> Self {
        let corrupt = backup.checksums == Checksums::Corrupt;
        let damaged = || corrupt.then(|| "it holds corrupt pages".to_owned());
        let held = Self {
            id: backup.id.clone(),
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            started_at: backup.started_at,
            stop_time: backup.stop_time,
            finished_at: backup.finished_at,
            // RECOVERY.md 1; where no commit is known between start and stop, the stop is the safe answer.
            earliest: backup.window_earliest.map_or(backup.stop_time, |inside| inside.max(backup.started_at)),
            unsound: None,
            unsure: false,
            corrupt,
            pinned,
        };
        let with = |wal: &StoredWal| held.is_consistent(wal, &holdings.histories, holdings.segment_size);
        let whole = with(&holdings.kept_wal());
        let perhaps = !whole && with(&holdings.kept(&holdings.all_wal()));
        let no_wal = || {
            let what = if perhaps { "cannot be read" } else { "is missing" };
            (!whole).then(|| format!("WAL between its start and its stop {what}"))
        };
        let unsure = perhaps && missing.is_none() && !corrupt;
        Self { unsound: missing.or_else(no_wal).or_else(damaged), unsure, ..held }
    }

    /// Whether the WAL from its start to its stop is there: on its own timeline, or on the route to one that was forked off later,
    /// whose first segment repeats what its parent had in it.
    pub fn is_consistent(
        &self,
        wal: &StoredWal,
        histories: &BTreeMap<TimelineId, TimelineHistory>,
        size: SegmentSize,
    ) -> bool {
        let (first, last) = hold::segments(self.start_lsn, self.stop_lsn, size);
        let own = wal.get(&self.timeline).is_some_and(|spans| spans.contains_all(first, last));
        let leads = |history: &TimelineHistory| {
            let route = Route::new(history.clone(), size);
            route.holds(self) && route.reach(wal, self.start_lsn) >= self.stop_lsn
        };
        own || histories.values().any(leads)
    }
}

/// A backup of which only the WAL matters here: it has a tombstone that has not outlived the grace. It keeps what makes it consistent;
/// what follows is kept as other WAL is that is let go ([`LetGo`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where replay of it starts.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
}

/// Which of the WAL that is given up has waited for the grace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetGo {
    /// All of it: there is no grace.
    AtOnce,
    /// None: when it began there was no floor.
    Nothing,
    /// What lies below the first segment of each of these, which are all that counted at some time of the grace.
    Below(Vec<Floor>),
}

/// What one system folder of a repository holds.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// Backups that can be kept or expired.
    pub backups: Vec<HeldBackup>,
    /// Backups that are expired but not yet to be deleted.
    pub marked: Vec<Marked>,
    /// First segments that unfinished backups may need.
    pub running: Vec<SegmentName>,
    /// First segments that pins hold, on every timeline.
    pub pins: Vec<SegmentName>,
    /// Attempts that came to nothing.
    pub failures: Vec<Failure>,
    /// The stored histories.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The stored segments that can be replayed.
    pub wal: StoredWal,
    /// Stored ones of which nobody could look whether they can.
    pub unread: StoredWal,
    /// When WAL of each timeline was stored last, by the store's clock.
    pub last_stored: BTreeMap<TimelineId, Timestamp>,
    /// The floor that counts.
    pub floor: Option<Floor>,
    /// What the grace leaves of it.
    pub let_go: LetGo,
    /// The cluster has gone on under another system identifier, and is backed up there.
    pub superseded: bool,
}

impl Holdings {
    /// The route to `timeline`. One whose history is not stored is a route by itself.
    pub fn route(&self, timeline: TimelineId) -> Route {
        let alone = || TimelineHistory::alone(timeline);
        Route::new(self.histories.get(&timeline).cloned().unwrap_or_else(alone), self.segment_size)
    }

    /// All stored WAL, replayable or unread.
    pub fn all_wal(&self) -> StoredWal {
        both(&self.wal, &self.unread)
    }

    /// The stored WAL that the floor keeps, of what can be replayed.
    pub fn kept_wal(&self) -> StoredWal {
        self.kept(&self.wal)
    }

    fn kept(&self, wal: &StoredWal) -> StoredWal {
        let lines = self.floor.as_ref().map_or(&[][..], |floor| &floor.timelines);
        above(lines, wal, self.segment_size)
    }

    /// The newest timeline of which anything is known.
    pub fn newest_timeline(&self) -> TimelineId {
        let backups = self.backups.iter().map(|b| b.timeline);
        let stored = self.wal.keys().chain(self.unread.keys()).chain(self.histories.keys()).copied();
        backups.chain(stored).max().unwrap_or(TimelineId::FIRST)
    }

    /// The newest timeline, that of the newest sound backup, and those of which WAL was stored at or after `start`: a moment of theirs may
    /// be promised.
    fn alive(&self, start: Timestamp) -> BTreeSet<TimelineId> {
        let recent = self.last_stored.iter().filter(|(_, at)| **at >= start).map(|(timeline, _)| *timeline);
        let backed_up = self.sound().last().map(|backup| backup.timeline);
        recent.chain([self.newest_timeline()]).chain(backed_up).collect()
    }

    /// Backups on a route that an older one contradicts: it was made before, by its position, and is dated after. The clock of the server
    /// was behind then, or ahead before. What is dated in the future contradicts nobody: a year that was wrong once would never end.
    fn misdated(&self, route: &Route, now: Timestamp) -> BTreeSet<&BackupId> {
        let mut on: Vec<&HeldBackup> = self.backups.iter().filter(|b| route.holds(b)).collect();
        on.sort_by_key(|b| b.stop_lsn);
        let (mut doubted, mut latest) = (BTreeSet::new(), Timestamp::MIN);
        for backup in on {
            if backup.earliest < latest {
                doubted.insert(&backup.id);
            }
            if !is_future(backup.earliest, now) {
                latest = latest.max(backup.earliest);
            }
        }
        doubted
    }

    /// Backups to rely on, by time.
    fn sound(&self) -> Vec<&HeldBackup> {
        let mut sound: Vec<&HeldBackup> = self.backups.iter().filter(|b| b.unsound.is_none()).collect();
        sound.sort_by(|a, b| (a.stop_time, &a.id).cmp(&(b.stop_time, &b.id)));
        sound
    }

    /// The same if one backup is sound after all.
    fn trusting(&self, id: &BackupId) -> Self {
        let mut trusting = self.clone();
        let backup = trusting.backups.iter_mut().find(|b| b.id == *id);
        backup.into_iter().for_each(|b| b.unsound = None);
        trusting
    }

    /// The same if all unread WAL from `start` on is good, and none before it.
    fn trusting_from(&self, start: Lsn) -> Self {
        let from = Spans::one(SegmentNo::containing(start, self.segment_size).get(), u64::MAX);
        let good = self.unread.iter().map(|(timeline, spans)| (*timeline, spans.and(&from))).collect();
        let mut trusting = Self { wal: both(&self.wal, &good), ..self.clone() };
        let wal = trusting.kept_wal();
        for backup in trusting.backups.iter_mut().filter(|b| b.unsure) {
            if backup.is_consistent(&wal, &self.histories, self.segment_size) {
                backup.unsound = None;
            }
        }
        trusting
    }

    /// What is held whatever the policy: unfinished backups, tombstones within the grace, pins.
    pub fn holds(&self) -> Holds {
        let mut holds = Holds::new(self.segment_size);
        for name in &self.running {
            let start = name.number(self.segment_size).map_or(Lsn::ZERO, |n| n.start(self.segment_size));
            holds.from_with_descendants(name.timeline(), start, &self.histories);
        }
        for marked in &self.marked {
            holds.range(marked.timeline, marked.start_lsn, marked.stop_lsn, &self.histories);
        }
        self.pins.iter().for_each(|name| holds.everywhere(*name));
        holds
    }

    /// Holds what was given up too short a time ago, whoever needed it before.
    fn hold_grace(&self, holds: &mut Holds) {
        let floors: &[Floor] = match &self.let_go {
            LetGo::AtOnce => return,
            LetGo::Nothing => &[],
            LetGo::Below(floors) => floors,
        };
        for (timeline, stored) in self.all_wal() {
            let first = |floor: &Floor| {
                let line = floor.timelines.iter().find(|line| line.timeline == timeline)?;
                line.first.number(self.segment_size).ok().map(SegmentNo::get)
            };
            let lowest = floors.iter().map(|floor| first(floor).unwrap_or(0)).min().unwrap_or(0);
            // Kept ranges begin with what is stored, for those who read the floor.
            let lowest = lowest.max(stored.first().unwrap_or(0));
            holds.spans(timeline, &Spans::one(lowest, u64::MAX));
        }
    }

    /// [`Self::holds`], what makes every backup of the folder consistent, and what the grace keeps: what no deletion of WAL may touch.
    pub fn holds_with_backups(&self) -> Holds {
        let mut holds = self.holds();
        self.hold_grace(&mut holds);
        self.backups.iter().for_each(|b| holds.range(b.timeline, b.start_lsn, b.stop_lsn, &self.histories));
        holds
    }
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A moment of the window is restored from it.
    Window,
    /// It stands for the period that begins on this day.
    Stands(Period, Date),
    /// It is the newest sound one.
    Newest,
    /// Somebody needs it.
    Pinned,
    /// It is not sound, and newer than the window's start or than every sound one: worth a look.
    Recent,
    /// It would stay for one of these reasons if WAL that cannot be read is good.
    Unread,
    /// Nothing goes while backups fail.
    Frozen,
}

/// A backup that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Going {
    /// The backup.
    pub id: BackupId,
    /// The moment that is restored from it without more WAL.
    pub moment: Timestamp,
    /// Why, for people; stored in the tombstone.
    pub why: String,
}

/// The moments that can be restored up to the end of the stored WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Start of the promise; `None` if no window is promised.
    pub promised: Option<Timestamp>,
    /// Every moment since then can be restored now.
    pub before: Option<Timestamp>,
    /// And afterwards.
    pub left: Option<Timestamp>,
}

/// What stays, what goes, and which WAL is held.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Why nothing goes.
    pub frozen: Option<Freeze>,
    /// Backups that stay, by id, with every reason.
    pub keep: BTreeMap<BackupId, BTreeSet<Reason>>,
    /// Backups that go, oldest first.
    pub go: Vec<Going>,
    /// The WAL that stays.
    pub holds: Holds,
    /// What of it is given up and stays for the grace alone.
    pub waiting: StoredWal,
    /// What can be restored.
    pub window: Window,
}

impl Plan {
    /// Whether a backup stays that can be relied on.
    pub fn keeps_a_sound_one(&self) -> bool {
        self.keep.values().any(|reasons| reasons.contains(&Reason::Newest))
    }

    /// The lines of the floor that lets go of what is not held; `None` if there is nothing more to let go. `before` is the floor that
    /// counts now.
    pub fn floor(&self, before: Option<&Floor>, wal: &StoredWal) -> Option<Vec<TimelineFloor>> {
        if self.frozen.is_some() { None } else { self.holds.floor(before, wal) }
    }
}

/// The time `span` before `now`.
fn before(now: Timestamp, span: Duration) -> Timestamp {
    let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    now.checked_sub(span).unwrap_or(Timestamp::MIN)
}

/// Whether a date is later than the clocks of two hosts that differ a little explain.
fn is_future(date: Timestamp, now: Timestamp) -> bool {
    date.duration_since(now) > APART
}

/// Decides what may go.
pub fn plan(policy: &Policy, holdings: &Holdings, now: Timestamp, zone: &TimeZone) -> Plan {
    let frozen = freeze::freeze(policy, holdings, &holdings.sound(), now);
    let decide = |holdings: &Holdings| decide(policy, holdings, frozen.is_some(), now, zone);
    let (mut keep, mut holds) = decide(holdings);
    // Trusting one at a time finds whatever is needed in any case: the fewer of the others are sound, the more rests on this one.
    for unsure in holdings.backups.iter().filter(|b| b.unsure) {
        let (kept, held) = decide(&holdings.trusting(&unsure.id));
        if kept.has(&unsure.id) && !keep.has(&unsure.id) {
            keep.add(&unsure.id, Reason::Unread);
        }
        holds.also(&held);
    }
    let promised = left(holdings, &holds, frozen.is_some());
    let window = window(policy, holdings, &keep, &promised, before(now, policy.window));
    holdings.hold_grace(&mut holds);
    let waiting = without(left(holdings, &holds, frozen.is_some()), &promised);
    let go = going(holdings, &keep, policy);
    Plan { frozen, keep: keep.0, go, holds, waiting, window }
}

/// What stays and which WAL is held, as far as backups are known to be sound.
fn decide(
    policy: &Policy,
    holdings: &Holdings,
    frozen: bool,
    now: Timestamp,
    zone: &TimeZone,
) -> (Keep, Holds) {
    let sound = holdings.sound();
    let mut keep = Keep::default();
    let mut holds = holdings.holds();
    let start = before(now, policy.window);
    let main = holdings.route(holdings.newest_timeline());
    for timeline in holdings.alive(start) {
        hold_window(holdings, timeline, &sound, (start, now), (&mut keep, &mut holds));
    }
    // One that is dated into another period takes nobody's place there.
    let doubted = holdings.misdated(&main, now);
    let dated: Vec<&HeldBackup> = sound.iter().copied().filter(|b| !doubted.contains(&&b.id)).collect();
    for (period, among) in Period::ALL.into_iter().flat_map(|period| [(period, &sound), (period, &dated)]) {
        let span = policy.span(period);
        for (id, begin) in period::chosen(period, span, among, |b| main.holds(b), now, zone) {
            keep.add(&id, Reason::Stands(period, begin));
        }
    }
    let newest = sound.last().copied();
    let newest_corrupt = holdings.backups.iter().filter(|b| b.corrupt).max_by_key(|b| (b.stop_time, &b.id));
    for backup in &holdings.backups {
        // A server with a damaged page makes one such copy after the other, and while nothing goes they would fill the store.
        let replaced =
            newest.is_some() && backup.corrupt && newest_corrupt.is_some_and(|n| n.id != backup.id);
        let recent = backup.stop_time >= start || newest.is_none_or(|n| backup.stop_time > n.stop_time);
        let reasons = [
            (backup.unsound.is_none() && backup.stop_time >= start, Reason::Window),
            (backup.unsound.is_some() && recent && !replaced, Reason::Recent),
            (newest.is_some_and(|n| n.id == backup.id), Reason::Newest),
            (backup.pinned, Reason::Pinned),
            (frozen && !replaced, Reason::Frozen),
        ];
        for (_, reason) in reasons.into_iter().filter(|(holds, _)| *holds) {
            keep.add(&backup.id, reason);
        }
        // One that goes holds it until it is deleted: its tombstone is not yet seen among those of earlier runs.
        holds.range(backup.timeline, backup.start_lsn, backup.stop_lsn, &holdings.histories);
    }
    (keep, holds)
}

/// The stored WAL that the floor keeps once it was raised to what is held.
fn left(holdings: &Holdings, holds: &Holds, frozen: bool) -> StoredWal {
    let wal = holdings.all_wal();
    match holds.floor(holdings.floor.as_ref(), &wal) {
        Some(lines) if !frozen => above(&lines, &wal, holdings.segment_size),
        Some(_) | None => holdings.kept(&wal),
    }
}

#[derive(Default)]
struct Keep(BTreeMap<BackupId, BTreeSet<Reason>>);

impl Keep {
    fn add(&mut self, id: &BackupId, reason: Reason) {
        self.0.entry(id.clone()).or_default().insert(reason);
    }

    fn has(&self, id: &BackupId) -> bool {
        self.0.contains_key(id)
    }
}

/// The backup that the window rests on along a route: the newest that can restore its start, else the oldest there is.
///
/// A server whose clock is behind dates its backup before the start although it was made within the window, and all WAL before it would go.
/// One that an older one contradicts is none to rest on.
fn anchor<'a>(
    holdings: &Holdings,
    route: &Route,
    sound: &[&'a HeldBackup],
    (start, now): (Timestamp, Timestamp),
) -> Option<&'a HeldBackup> {
    let doubted = holdings.misdated(route, now);
    let on = || sound.iter().copied().filter(|b| route.holds(b));
    let early = on().filter(|b| b.earliest <= start && !doubted.contains(&&b.id)).max_by_key(|b| b.stop_lsn);
    early.or_else(|| on().min_by_key(|b| b.stop_lsn))
}

/// Keeps what the window needs along one route.
fn hold_window(
    holdings: &Holdings,
    timeline: TimelineId,
    sound: &[&HeldBackup],
    times: (Timestamp, Timestamp),
    (keep, holds): (&mut Keep, &mut Holds),
) {
    let route = &holdings.route(timeline);
    let Some(anchor) = anchor(holdings, route, sound, times) else {
        // No backup leads there. Should one come from elsewhere, its WAL is still here.
        route.timelines().for_each(|timeline| holds.from(timeline, Lsn::ZERO));
        return;
    };
    for backup in sound.iter().filter(|b| route.holds(b) && b.stop_lsn >= anchor.stop_lsn) {
        keep.add(&backup.id, Reason::Window);
    }
    for timeline in route.timelines().skip_while(|timeline| *timeline != anchor.timeline) {
        let from = if timeline == anchor.timeline { anchor.start_lsn } else { Lsn::ZERO };
        holds.from(timeline, from);
    }
}

/// What can be restored before and after, along the main route.
fn window(
    policy: &Policy,
    holdings: &Holdings,
    keep: &Keep,
    promised: &StoredWal,
    start: Timestamp,
) -> Window {
    let main = &holdings.route(holdings.newest_timeline());
    let (sound, now) = (holdings.sound(), holdings.kept_wal());
    let left = without(promised.clone(), &holdings.unread);
    let kept: Vec<&HeldBackup> = sound.iter().copied().filter(|b| keep.has(&b.id)).collect();
    Window {
        promised: (!policy.window.is_zero()).then_some(start),
        before: since(main, &now, &sound),
        left: since(main, &left, &kept),
    }
}

/// The earliest moment from which on everything can be restored along the route.
fn since(route: &Route, wal: &StoredWal, sound: &[&HeldBackup]) -> Option<Timestamp> {
    let on = || sound.iter().filter(|b| route.holds(b));
    let end = on().map(|b| route.reach(wal, b.start_lsn)).max()?;
    // The first in WAL, which a wrong clock cannot make another.
    on().filter(|b| route.reach(wal, b.start_lsn) == end).min_by_key(|b| b.stop_lsn).map(|b| b.earliest)
}

fn going(holdings: &Holdings, keep: &Keep, policy: &Policy) -> Vec<Going> {
    let why = |backup: &HeldBackup| match &backup.unsound {
        Some(what) if backup.corrupt => format!("{what}, and there is a sound backup"),
        Some(what) => format!("older than the window, and {what}"),
        None if policy.window.is_zero() => "kept for no promise".to_owned(),
        None => "older than the window, and kept for no other promise".to_owned(),
    };
    let gone = holdings.backups.iter().filter(|b| !keep.has(&b.id));
    let mut go: Vec<Going> =
        gone.map(|b| Going { id: b.id.clone(), moment: b.stop_time, why: why(b) }).collect();
    go.sort_by(|a, b| (a.moment, &a.id).cmp(&(b.moment, &b.id)));
    go
}

/// What removing one backup would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing that is promised.
    Harmless,
    /// Moments of the window could no longer be restored.
    BreaksWindow,
    /// No sound backup would be left.
    Last,
    /// Somebody needs it.
    Pinned,
}

/// What removing `id` would mean. Without a policy there is no window, but a last backup all the same.
pub fn removal(policy: Option<&Policy>, holdings: &Holdings, id: &BackupId, now: Timestamp) -> Removal {
    let sound = holdings.sound();
    let rest: Vec<&HeldBackup> = sound.iter().copied().filter(|b| b.id != *id).collect();
    if holdings.backups.iter().any(|b| b.id == *id && b.pinned) {
        return Removal::Pinned;
    }
    if rest.is_empty() {
        return Removal::Last;
    }
    let Some(policy) = policy else { return Removal::Harmless };
    // Whatever of the unread WAL is good: most rests on this one if what it needs is, and nothing before it.
    let trusting = holdings.backups.iter().find(|b| b.id == *id).map(|b| holdings.trusting_from(b.start_lsn));
    let holdings = trusting.as_ref().unwrap_or(holdings);
    let sound = holdings.sound();
    let rest: Vec<&HeldBackup> = sound.iter().copied().filter(|b| b.id != *id).collect();
    let (start, wal) = (before(now, policy.window), holdings.kept_wal());
    let breaks = holdings.alive(start).into_iter().any(|timeline| {
        let route = holdings.route(timeline);
        let Some(anchor) = anchor(holdings, &route, &sound, (start, now)) else { return false };
        let promised = Spans::one(anchor.stop_lsn.get(), u64::MAX);
        let covered = |backups: &[&HeldBackup]| route.covered(&wal, backups.iter().copied()).and(&promised);
        covered(&sound) != covered(&rest)
    });
    if breaks { Removal::BreaksWindow } else { Removal::Harmless }
}
