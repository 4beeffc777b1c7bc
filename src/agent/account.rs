//! What the agent knows of its queue: which file is where, and what may be stored next. In memory only.
//!
//! ```text
//!             local     cloud (optional)                a lane for each repository: its own cursor,
//!  …C2        yes       yes         done                its own number of files under way, its own rest after a failure
//!  …C3        yes       under way   ─► "archived"       yes counts what is required, and waits for nothing else
//!  …C4        under way lacks                           behind: kept while the file is in pg_wal, then left to the catching up
//! ```
//! Invariants: what is known speaks of one file ([`FileIdentity`]); another one under the name makes it void. A lane that failed is tried by
//! one attempt at a time once its rest is over. No input or output here: whoever asks holds the lock for moments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::effort::Pace;
use super::queue::{FileIdentity, Turn};
use crate::error::{Error, Kind};

/// First rest of what failed.
const REST: Duration = Duration::from_secs(1);
/// After which what somebody else stored meanwhile has come to its end.
const SETTLED: Duration = Duration::from_mins(1);
/// Longest time without a look whether an optional lane is behind.
const HOUR: Duration = Duration::from_hours(1);
/// Longest rest of a lane or a file.
pub(super) const LONGEST_REST: Duration = Duration::from_secs(60);

/// How long to leave alone what failed.
#[derive(Debug, Default)]
pub(super) struct Rest {
    failures: u32,
    until: Option<Instant>,
}

impl Rest {
    /// It failed (again): each rest is twice the one before, up to `longest`.
    pub(super) fn failed(&mut self, longest: Duration) {
        let span = REST.saturating_mul(1 << self.failures.min(12)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(Instant::now() + span);
    }

    /// Whether it may be tried again.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    /// Whether it failed the last time.
    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }
}

/// Whether a repository has a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    No,
    UnderWay,
    Yes,
}

/// What is known of one file.
#[derive(Debug)]
struct Known {
    /// The file that `Held::Yes` speaks of.
    identity: Option<FileIdentity>,
    held: Vec<Held>,
    /// It is in the queue.
    ready: bool,
    /// Who waits for it.
    askers: usize,
    /// It failed by itself, and is left alone for a while unless somebody asks.
    rest: Rest,
    /// Why it is refused, and by which lane if by one.
    refused: Option<(Option<usize>, String)>,
}

impl Known {
    fn new(lanes: usize) -> Self {
        let held = vec![Held::No; lanes];
        Self { identity: None, held, ready: false, askers: 0, rest: Rest::default(), refused: None }
    }

    fn lanes(&self, held: Held) -> impl Iterator<Item = usize> {
        self.held.iter().enumerate().filter(move |(_, h)| **h == held).map(|(i, _)| i)
    }

    /// Nothing of what was stored counts any more.
    fn reset(&mut self) {
        self.identity = None;
        self.held.iter_mut().filter(|held| **held == Held::Yes).for_each(|held| *held = Held::No);
    }
}

/// How one repository fares.
#[derive(Debug)]
struct Lane {
    name: String,
    required: bool,
    rest: Rest,
    failing: Option<String>,
    /// It fails by not answering, which takes its time.
    silent: bool,
    /// An attempt is finding out whether it is back.
    trying: bool,
    /// Files under way.
    flying: usize,
    /// It may lack what has left the queue.
    behind: bool,
    /// Since when files may have been stored past this process, which this lane may lack.
    doubted: Option<Instant>,
    /// When it was begun to catch it up.
    checked: Instant,
    /// Files copied there so far, while it is being caught up.
    copied: Option<u64>,
}

impl Lane {
    fn may_try(&self, most: usize) -> bool {
        self.flying < most && (self.failing.is_none() || (self.rest.is_over() && !self.trying))
    }
}

/// How it goes with one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStatus {
    /// The repository's name.
    pub repository: String,
    /// Whether a file counts as archived only when it is there.
    pub required: bool,
    /// Files that it lacks, of the queue and of what is still in `pg_wal`.
    pub lacks: usize,
    /// Why it fails, if it does.
    pub failing: Option<String>,
    /// It may lack files that have left `pg_wal`: they are copied from another repository.
    pub behind: bool,
    /// So many were copied so far, if that is under way.
    pub copied: Option<u64>,
}

/// Files of the queue that cannot be stored for a reason of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refused {
    /// How many.
    pub files: usize,
    /// The first one, and all that is to be said of it.
    pub first: Option<(String, String)>,
}

/// What an asker finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is stored, if it is this file; what is said of optional repositories.
    Stored(FileIdentity, Vec<String>),
    /// Somebody is storing it.
    Busy,
    /// It was taken for the asker, to be stored in these lanes.
    Open(Vec<usize>),
    /// It has to be stored once more, and was often enough.
    Restless,
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct Account {
    files: BTreeMap<Turn, Known>,
    lanes: Vec<Lane>,
    ahead: usize,
    /// How long files took of late.
    pub(super) pace: Pace,
}

impl Account {
    /// One that knows of these repositories (name; is it required?) and nothing else. Up to `ahead` files may be under way to each.
    pub(super) fn new(lanes: impl Iterator<Item = (String, bool)>, ahead: usize) -> Self {
        let lane = |(name, required)| Lane {
            name,
            required,
            rest: Rest::default(),
            failing: None,
            silent: false,
            trying: false,
            flying: 0,
            behind: false,
            doubted: None,
            checked: Instant::now(),
            copied: None,
        };
        let mut lanes: Vec<Lane> = lanes.map(lane).collect();
        // What happened before this process began is not known.
        let alone = lanes.len() < 2;
        lanes.iter_mut().for_each(|lane| lane.behind = !alone);
        let pace = Pace::new(lanes.len());
        Self { files: BTreeMap::new(), lanes, ahead: ahead.max(1), pace }
    }

    fn file(&mut self, turn: &Turn) -> &mut Known {
        let lanes = self.lanes.len();
        self.files.entry(turn.clone()).or_insert_with(|| Known::new(lanes))
    }

    /// Somebody waits for the file: it is not forgotten meanwhile.
    pub(super) fn ask(&mut self, turn: &Turn) {
        self.file(turn).askers += 1;
    }

    /// He does not any more.
    pub(super) fn leave(&mut self, turn: &Turn) {
        if let Some(file) = self.files.get_mut(turn) {
            file.askers = file.askers.saturating_sub(1);
        }
    }

    /// What an asker has to do; an open file is taken for him if it `may` be stored.
    pub(super) fn find(&mut self, turn: &Turn, may: bool) -> Found {
        self.file(turn);
        let Self { files, lanes, ahead, .. } = self;
        let Some(file) = files.get_mut(turn) else { return Found::Busy };
        let required = |i: &usize| lanes.get(*i).is_some_and(|lane| lane.required);
        let open: Vec<usize> = file.lanes(Held::No).filter(required).collect();
        if open.is_empty() && file.lanes(Held::UnderWay).any(|i| required(&i)) {
            return Found::Busy;
        }
        if let Some(identity) = file.identity.filter(|_| open.is_empty()) {
            let text = |i: usize| {
                let lane = lanes.get(i);
                let why = lane.and_then(|lane| lane.failing.clone());
                let name = lane.map(|lane| lane.name.as_str()).unwrap_or_default();
                format!("optional repository {name}: {}", why.unwrap_or_else(|| "not stored yet".to_owned()))
            };
            return Found::Stored(identity, file.lanes(Held::No).map(text).collect());
        }
        if !may {
            return Found::Restless;
        }
        // Who asks does not wait for a repository's rest to be over: PostgreSQL has waited itself.
        let tries = |i: &usize| required(i) || lanes.get(*i).is_some_and(|lane| lane.may_try(*ahead));
        let chosen: Vec<usize> = file.lanes(Held::No).filter(tries).collect();
        take(file, lanes, &chosen);
        Found::Open(chosen)
    }

    /// Why a required lane that lacks the file takes nothing just now, if it is one that does not answer: whoever waited for that once
    /// need not wait for it again.
    pub(super) fn unanswered(&self, turn: &Turn) -> Option<String> {
        let file = self.files.get(turn)?;
        let silent =
            |lane: &&Lane| lane.required && lane.silent && lane.failing.is_some() && !lane.rest.is_over();
        let lane = file.lanes(Held::No).filter_map(|i| self.lanes.get(i)).find(silent)?;
        lane.failing.clone()
    }

    /// Whether all of these lanes have the file.
    pub(super) fn is_there(&self, turn: &Turn, lanes: &[usize]) -> bool {
        let has = |i: &usize| {
            self.files.get(turn).is_some_and(|file| file.held.get(*i).is_some_and(|held| *held == Held::Yes))
        };
        lanes.iter().all(has)
    }

    /// The file under the name is not the one that was stored.
    pub(super) fn doubt(&mut self, turn: &Turn) {
        if let Some(file) = self.files.get_mut(turn) {
            file.reset();
        }
    }

    /// Takes the next file that may be stored ahead, and the lanes for it.
    pub(super) fn next(&mut self) -> Option<(Turn, Vec<usize>)> {
        let Self { files, lanes, ahead, .. } = self;
        let wanted = |file: &Known| (file.ready || file.identity.is_some()) && file.rest.is_over();
        for (turn, file) in files.iter_mut().filter(|(_, file)| wanted(file)) {
            let may_try = |i: &usize| lanes.get(*i).is_some_and(|lane| lane.may_try(*ahead));
            let chosen: Vec<usize> = file.lanes(Held::No).filter(may_try).collect();
            if !chosen.is_empty() {
                take(file, lanes, &chosen);
                return Some((turn.clone(), chosen));
            }
        }
        None
    }

    /// The lane has taken the file, or failed to. An error of the lane's is told once, until it is well again.
    pub(super) fn note(&mut self, turn: &Turn, lane: usize, outcome: Result<FileIdentity, &Error>) {
        self.release(turn, lane);
        let Self { files, lanes, .. } = self;
        let (Some(file), Some(lane), i) = (files.get_mut(turn), lanes.get_mut(lane), lane) else { return };
        match outcome {
            Ok(identity) => {
                if file.identity.is_some_and(|known| known != identity) {
                    file.reset();
                }
                file.identity = Some(identity);
                if let Some(held) = file.held.get_mut(i) {
                    *held = Held::Yes;
                }
                if file.refused.as_ref().is_some_and(|(by, _)| by.is_none_or(|by| by == i)) {
                    file.refused = None;
                }
                if lane.failing.take().is_some() {
                    tracing::warn!("repository {} takes WAL again", lane.name);
                    // Who stored past this process meanwhile could not store there either.
                    lane.behind |= !lane.required;
                }
                lane.rest = Rest::default();
            }
            Err(e) if matches!(e.kind(), Kind::Refused | Kind::Corrupt | Kind::Usage) => {
                // It is this file that is refused there; others may pass.
                file.rest.failed(LONGEST_REST);
                tracing::warn!("{} is refused by repository {}: {}", turn.name(), lane.name, e.report());
                file.refused = Some((Some(i), e.report()));
            }
            Err(e) => {
                if lane.failing.is_none() {
                    tracing::warn!("repository {} takes no WAL: {}", lane.name, e.report());
                }
                lane.rest.failed(LONGEST_REST);
                lane.failing = Some(e.to_string());
                lane.silent = e.is_unanswered();
            }
        }
    }

    /// The file is not under way to the lane any more.
    pub(super) fn release(&mut self, turn: &Turn, lane: usize) {
        if let Some(held) = self.files.get_mut(turn).and_then(|file| file.held.get_mut(lane))
            && *held == Held::UnderWay
        {
            *held = Held::No;
        }
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.flying = lane.flying.saturating_sub(1);
            lane.trying = false;
        }
    }

    /// The file itself could not be stored. One that has left the queue is gone: what lacks it is caught up.
    pub(super) fn fail(&mut self, turn: &Turn, error: &Error) {
        let Some(file) = self.files.get_mut(turn) else { return };
        if file.ready || file.askers > 0 {
            tracing::warn!("{} cannot be stored: {}", turn.name(), error.report());
            file.rest.failed(LONGEST_REST);
            file.refused = Some((None, error.report()));
        } else {
            self.forget(|other, _| other != turn);
        }
    }

    /// Takes over what the queue is now. `is_there` says whether a file is still in `pg_wal`.
    pub(super) fn queue(&mut self, ready: &BTreeSet<Turn>, is_there: impl Fn(&Turn) -> bool) {
        self.files.values_mut().for_each(|file| file.ready = false);
        ready.iter().for_each(|turn| self.file(turn).ready = true);
        self.forget(|turn, file| file.identity.is_some() && is_there(turn));
    }

    /// Forgets what is not in the queue and nobody waits for, unless somebody lacks it and it is `kept` for him.
    fn forget(&mut self, kept: impl Fn(&Turn, &Known) -> bool) {
        let Self { files, lanes, .. } = self;
        files.retain(|turn, file| {
            let lacking = file.lanes(Held::No).next().is_some();
            let busy = file.lanes(Held::UnderWay).next().is_some();
            if file.ready || busy || file.askers > 0 || (lacking && kept(turn, file)) {
                return true;
            }
            // Of a required one it was somebody else who stored it there, or PostgreSQL would still have it.
            for i in file.lanes(Held::No) {
                if let Some(lane) = lanes.get_mut(i).filter(|lane| !lane.required) {
                    lane.behind = true;
                }
            }
            false
        });
    }

    /// Files may be stored past this process, about now or, if it `slept`, before: of those nothing is known here, and optional repositories
    /// may lack them.
    pub(super) fn doubt_optional(&mut self, slept: bool) {
        if self.lanes.len() < 2 {
            return;
        }
        for lane in self.lanes.iter_mut().filter(|lane| !lane.required) {
            lane.behind |= slept;
            lane.doubted.get_or_insert_with(Instant::now);
        }
    }

    /// Whether the lane is behind: true once, and then only when it is again. An optional one may be so unseen, by what others store.
    pub(super) fn take_behind(&mut self, lane: usize) -> bool {
        let Some(lane) = self.lanes.get_mut(lane) else { return false };
        let settled = lane.doubted.is_some_and(|since| since.elapsed() >= SETTLED);
        let due = settled || (!lane.required && lane.checked.elapsed() >= HOUR);
        if settled {
            lane.doubted = None;
        }
        let behind = std::mem::take(&mut lane.behind) || due;
        if behind {
            lane.checked = Instant::now();
        }
        behind
    }

    /// How the catching up of a lane goes: files so far, while it is under way; `behind` if it came to no good end.
    pub(super) fn catching_up(&mut self, lane: usize, copied: Option<u64>, behind: bool) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.copied = copied;
            lane.behind |= behind;
        }
    }

    /// Files of the queue that a required repository lacks.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Turn> {
        let required = |i: usize| self.lanes.get(i).is_some_and(|lane| lane.required);
        let lacks = move |file: &Known| {
            file.held.iter().enumerate().any(|(i, held)| *held != Held::Yes && required(i))
        };
        self.files.iter().filter(move |(_, file)| file.ready && lacks(file)).map(|(turn, _)| turn)
    }

    /// Files in the queue.
    pub(super) fn ready(&self) -> impl Iterator<Item = &Turn> {
        self.files.iter().filter(|(_, file)| file.ready).map(|(turn, _)| turn)
    }

    /// Files of the queue that are refused.
    pub(super) fn refused(&self) -> Refused {
        let mut refused = self.files.iter().filter(|(_, file)| file.ready).filter_map(|(turn, file)| {
            let (_, why) = file.refused.as_ref()?;
            Some((turn.name().to_owned(), why.clone()))
        });
        let first = refused.next();
        Refused { files: usize::from(first.is_some()) + refused.count(), first }
    }

    /// Files under way.
    pub(super) fn under_way(&self) -> usize {
        self.files.values().filter(|file| file.lanes(Held::UnderWay).next().is_some()).count()
    }

    /// Every repository.
    pub(super) fn lanes(&self) -> Vec<LaneStatus> {
        let lacks = |i: usize| {
            let lacking = |file: &&Known| file.held.get(i).is_some_and(|held| *held != Held::Yes);
            self.files.values().filter(|file| file.ready || file.identity.is_some()).filter(lacking).count()
        };
        let status = |(i, lane): (usize, &Lane)| LaneStatus {
            repository: lane.name.clone(),
            required: lane.required,
            lacks: lacks(i),
            failing: lane.failing.clone(),
            behind: lane.behind || lane.doubted.is_some(),
            copied: lane.copied,
        };
        self.lanes.iter().enumerate().map(status).collect()
    }
}

fn take(file: &mut Known, lanes: &mut [Lane], chosen: &[usize]) {
    for i in chosen {
        if let Some(held) = file.held.get_mut(*i) {
            *held = Held::UnderWay;
        }
        if let Some(lane) = lanes.get_mut(*i) {
            lane.flying += 1;
            lane.trying = lane.failing.is_some();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::WalFileName;

    const LOCAL: usize = 0;
    const CLOUD: usize = 1;

    fn account(ahead: usize) -> Account {
        Account::new([("local".to_owned(), true), ("cloud".to_owned(), false)].into_iter(), ahead)
    }

    fn turn(n: u32) -> Turn {
        Turn::of(WalFileName::parse(&format!("0000000100000000{n:08X}")).unwrap())
    }

    fn queue(account: &mut Account, segments: std::ops::Range<u32>) {
        account.queue(&segments.map(turn).collect(), |_| true);
    }

    /// A file of its own for each number.
    fn identity(n: u8) -> FileIdentity {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        crate::durable::write_replace(&path, &[n; 9000], 0o600, None).unwrap();
        FileIdentity::of(&path).unwrap()
    }

    fn away() -> Error {
        Error::failed("no answer").unanswered()
    }

    #[test]
    fn an_optional_repository_that_is_slow_keeps_nobody_waiting() {
        let (mut account, file) = (account(2), identity(1));
        queue(&mut account, 1..10);
        assert_eq!(account.next(), Some((turn(1), vec![LOCAL, CLOUD])));
        assert_eq!(account.find(&turn(1), true), Found::Busy);
        account.note(&turn(1), LOCAL, Ok(file));
        assert_eq!(account.find(&turn(1), true), Found::Stored(file, Vec::new()), "on its way there");
        // Two are under way to the cloud: the required one goes on alone.
        assert_eq!(account.next(), Some((turn(2), vec![LOCAL, CLOUD])));
        account.note(&turn(2), LOCAL, Ok(file));
        for n in 3..5 {
            assert_eq!(account.next(), Some((turn(n), vec![LOCAL])), "{n}");
        }
        assert_eq!(account.next(), None, "two are under way to each");
        account.note(&turn(1), CLOUD, Ok(file));
        assert_eq!(account.next(), Some((turn(3), vec![CLOUD])), "from where it is");
    }

    #[test]
    fn a_required_repository_that_is_away_is_no_yes_and_keeps_the_others_from_nothing() {
        let (mut account, file) = (account(8), identity(1));
        account.lanes.iter_mut().for_each(|lane| lane.required = true);
        queue(&mut account, 1..4);
        assert_eq!(account.next(), Some((turn(1), vec![LOCAL, CLOUD])));
        account.note(&turn(1), LOCAL, Err(&away()));
        account.note(&turn(1), CLOUD, Ok(file));
        for n in 2..4 {
            assert_eq!(account.next(), Some((turn(n), vec![CLOUD])), "the first rests");
            account.note(&turn(n), CLOUD, Ok(file));
        }
        assert_eq!(account.next(), None);
        assert_eq!(account.find(&turn(2), true), Found::Open(vec![LOCAL]), "who asks does not wait");
        assert_eq!(account.find(&turn(2), true), Found::Busy);
        account.note(&turn(2), LOCAL, Err(&away()));
        assert_eq!(account.find(&turn(2), false), Found::Restless);
        assert_eq!(account.waiting().count(), 3);
    }

    #[test]
    fn who_waited_for_a_repository_that_does_not_answer_need_not_wait_again() {
        let (mut account, file) = (account(8), identity(1));
        queue(&mut account, 1..2);
        account.next();
        account.note(&turn(1), CLOUD, Err(&away()));
        assert_eq!(account.unanswered(&turn(1)), None, "nobody waits for an optional one");
        account.note(&turn(1), LOCAL, Err(&away()));
        assert_eq!(account.unanswered(&turn(1)).as_deref(), Some("no answer"));
        account.lanes[LOCAL].rest = Rest::default();
        assert_eq!(account.unanswered(&turn(1)), None, "it may be back");
        for at_once in [Error::key("not you"), Error::failed("the disk is full")] {
            account.note(&turn(1), LOCAL, Err(&at_once));
            assert_eq!(account.unanswered(&turn(1)), None, "that takes no time: {at_once}");
        }
        account.note(&turn(1), LOCAL, Err(&away()));
        account.note(&turn(1), LOCAL, Ok(file));
        assert_eq!(account.unanswered(&turn(1)), None);
    }

    #[test]
    fn what_an_optional_repository_lacks_is_stored_from_pg_wal_and_then_caught_up() {
        let (mut account, file) = (account(8), identity(1));
        assert!(account.take_behind(CLOUD) && account.take_behind(LOCAL), "nothing is known yet");
        queue(&mut account, 1..2);
        assert_eq!(account.next(), Some((turn(1), vec![LOCAL, CLOUD])));
        account.note(&turn(1), CLOUD, Err(&away()));
        account.note(&turn(1), LOCAL, Ok(file));
        // PostgreSQL has it archived; the file is still there.
        queue(&mut account, 2..2);
        assert_eq!(account.lanes()[CLOUD].lacks, 1);
        account.lanes[CLOUD].rest = Rest::default();
        assert_eq!(account.next(), Some((turn(1), vec![CLOUD])));
        account.note(&turn(1), CLOUD, Err(&away()));
        assert!(!account.take_behind(CLOUD));
        account.queue(&BTreeSet::new(), |_| false);
        assert!(account.files.is_empty());
        assert!(account.take_behind(CLOUD) && !account.take_behind(CLOUD) && !account.take_behind(LOCAL));
    }

    #[test]
    fn what_others_may_have_stored_is_looked_for_in_optional_repositories() {
        let (mut account, file) = (account(8), identity(1));
        let long_ago = |span| Instant::now().checked_sub(span).unwrap();
        assert!(account.take_behind(CLOUD) && account.take_behind(LOCAL), "nothing is known yet");
        let settle = |account: &mut Account| {
            account.lanes.iter_mut().for_each(|lane| lane.doubted = lane.doubted.map(|_| long_ago(SETTLED)));
        };
        // An asker does it by himself: that takes its time.
        account.doubt_optional(false);
        assert!(account.lanes()[CLOUD].behind && !account.lanes()[LOCAL].behind);
        assert!(!account.take_behind(CLOUD), "he is not done yet");
        settle(&mut account);
        assert!(account.take_behind(CLOUD) && !account.take_behind(CLOUD) && !account.take_behind(LOCAL));
        assert!(!account.lanes()[CLOUD].behind);
        // This process stood still: at once, and what was under way then.
        account.doubt_optional(true);
        assert!(account.take_behind(CLOUD) && !account.take_behind(CLOUD));
        settle(&mut account);
        assert!(account.take_behind(CLOUD) && !account.take_behind(LOCAL));
        // The repository was away, and is back.
        queue(&mut account, 1..2);
        account.next();
        account.note(&turn(1), CLOUD, Err(&away()));
        assert!(!account.take_behind(CLOUD));
        account.note(&turn(1), CLOUD, Ok(file));
        assert!(account.take_behind(CLOUD) && !account.take_behind(CLOUD));
        // Nothing of all that, and an hour has passed.
        account.lanes.iter_mut().for_each(|lane| lane.checked = long_ago(HOUR));
        assert!(account.take_behind(CLOUD) && !account.take_behind(CLOUD) && !account.take_behind(LOCAL));
    }

    #[test]
    fn a_file_that_went_while_it_was_read_is_caught_up() {
        let (mut account, file) = (account(8), identity(1));
        account.take_behind(CLOUD);
        queue(&mut account, 1..2);
        account.next();
        account.note(&turn(1), LOCAL, Ok(file));
        queue(&mut account, 2..2);
        account.release(&turn(1), CLOUD);
        account.fail(&turn(1), &away());
        assert!(account.files.is_empty() && account.take_behind(CLOUD));
    }

    #[test]
    fn what_was_stored_of_another_file_counts_for_nothing() {
        let (mut account, one, two) = (account(8), identity(1), identity(2));
        account.lanes.iter_mut().for_each(|lane| lane.required = true);
        queue(&mut account, 1..2);
        account.next();
        account.note(&turn(1), LOCAL, Ok(one));
        account.note(&turn(1), CLOUD, Ok(two));
        assert_eq!(account.find(&turn(1), true), Found::Open(vec![LOCAL]));
        account.note(&turn(1), LOCAL, Ok(two));
        assert_eq!(account.find(&turn(1), true), Found::Stored(two, Vec::new()));
        account.doubt(&turn(1));
        assert_eq!(account.find(&turn(1), true), Found::Open(vec![LOCAL, CLOUD]));
    }

    #[test]
    fn a_lane_that_failed_is_tried_by_one_attempt() {
        let (mut account, file) = (account(8), identity(1));
        queue(&mut account, 1..9);
        account.next();
        account.note(&turn(1), CLOUD, Err(&away()));
        account.note(&turn(1), LOCAL, Ok(file));
        assert_eq!(account.next(), Some((turn(2), vec![LOCAL])));
        account.lanes[CLOUD].rest = Rest::default();
        assert_eq!(account.next(), Some((turn(1), vec![CLOUD])), "the oldest that it lacks");
        assert_eq!(account.next(), Some((turn(3), vec![LOCAL])));
        account.note(&turn(1), CLOUD, Ok(file));
        assert_eq!(account.next(), Some((turn(2), vec![CLOUD])));
        assert_eq!(account.lanes()[CLOUD].failing, None);
    }
}
