//! A store whose calls happen in an order that a seed decides, at times that a test decides.
//!
//! ```text
//!  actor 0   ──▌ create    ▌ list   ▌ delete          each ▌ waits until the test lets this actor do one call
//!  actor 1   ────▌ get  ▌ create
//!  step(n)   lets actor n do one call, and runs it to its next one
//! ```
//! Actors are futures over stores of their own ([`Schedule::store`]) that share what is beneath. Between two steps nothing moves, so a test
//! may audit the store, drop an actor (a kill between two calls), move the store's clock, or start another. Listings come in pages of a
//! few keys, as a large bucket's do: what is created or deleted in between is on them or not.
//! Invariants: one seed and one program is one history; a call that was let through is done before the step ends; times of objects are
//! the schedule's, so that ages are exact.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use super::backend::{Backend, Created, Listing, ObjectInfo, Opened, Page, Payload};
use super::error::Fault;
use super::s3::Bucket;
use super::{Policy, Store};

/// Keys on a page of a listing, where nobody says otherwise.
const PAGE: usize = 3;

#[derive(Debug, Default)]
struct Gates {
    next_ticket: u64,
    /// Calls that wait, by actor.
    waiting: BTreeMap<usize, BTreeMap<u64, Option<Waker>>>,
    granted: BTreeSet<u64>,
    /// Calls under way, by actor.
    running: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct State {
    random: u64,
    gates: Gates,
    now: Timestamp,
    times: BTreeMap<String, Timestamp>,
    calls: Vec<String>,
    page: usize,
    /// Of so many replies to calls that change something one is lost; 0: none.
    lost: usize,
}

/// The order of calls, and the store's clock.
#[derive(Clone)]
pub struct Schedule(Arc<Mutex<State>>);

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({})", self.now())
    }
}

/// Something that calls stores, under a schedule.
pub struct Actor<'a> {
    number: usize,
    future: Pin<Box<dyn Future<Output = ()> + 'a>>,
}

impl fmt::Debug for Actor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Actor({})", self.number)
    }
}

impl<'a> Actor<'a> {
    /// What `future` does with stores that were made for `number`. A number is used once: an actor that is started again is a new one.
    pub fn new(number: usize, future: impl Future<Output = ()> + 'a) -> Self {
        Self { number, future: Box::pin(future) }
    }

    /// Its number.
    pub fn number(&self) -> usize {
        self.number
    }
}

impl Schedule {
    /// The schedule of a seed; the store's clock stands at `now`.
    pub fn new(seed: u64, now: Timestamp) -> Self {
        let gates = Gates::default();
        let state = State {
            random: seed,
            gates,
            now,
            times: BTreeMap::new(),
            calls: Vec::new(),
            page: PAGE,
            lost: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number below `n`, from the seed.
    pub fn below(&self, n: usize) -> usize {
        let mut state = self.state();
        // SplitMix64.
        state.random = state.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state.random ^ (state.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let n = u64::try_from(n.max(1)).unwrap_or(u64::MAX);
        usize::try_from((z ^ (z >> 31)) % n).unwrap_or(0)
    }

    /// From now on listings come in pages of `keys`.
    pub fn set_page(&self, keys: usize) {
        self.state().page = keys.max(1);
    }

    /// From now on the reply to one in `n` creates and deletes is lost when the call has been done.
    pub fn lose_one_reply_in(&self, n: usize) {
        self.state().lost = n;
    }

    /// True once in `n`.
    pub fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// The store's time.
    pub fn now(&self) -> Timestamp {
        self.state().now
    }

    /// Moves the store's clock.
    pub fn advance(&self, span: SignedDuration) {
        let mut state = self.state();
        state.now = state.now.saturating_add(span).unwrap_or(Timestamp::MAX);
    }

    /// The calls that were let through, as `2 create KEY`.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// The last of them.
    pub fn last_call(&self) -> Option<String> {
        self.state().calls.last().cloned()
    }

    /// `store` as the actor `number` sees it: each call waits for a step.
    pub fn store(&self, store: &Store, number: usize) -> Store {
        self.wrap(store, Some(number))
    }

    /// `store` with the schedule's clock and without waiting: to set things up, and to audit.
    pub fn free(&self, store: &Store) -> Store {
        self.wrap(store, None)
    }

    fn wrap(&self, store: &Store, actor: Option<usize>) -> Store {
        let inner = Arc::clone(&store.0.backend);
        // Calls wait as long as the test lets them: deadlines would be another source of order. What is repeated is a lost reply.
        let policy = Policy { base: Duration::from_secs(1 << 30), attempts: 3, ..Policy::default() };
        store.rebuilt(Arc::new(Scheduled { inner, schedule: self.clone(), actor }), policy)
    }

    /// Lets `actor` do one call, and runs it up to the next one or its end; true if it has ended. One that has not begun runs up to its
    /// first call. Sleeps are slept, which under a paused clock takes no time.
    pub async fn step(&self, actor: &mut Actor<'_>) -> bool {
        self.grant(actor.number);
        std::future::poll_fn(|context| match actor.future.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if self.is_at_gate(actor.number) => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn grant(&self, actor: usize) {
        let waiting: Vec<u64> =
            self.state().gates.waiting.get(&actor).into_iter().flat_map(|w| w.keys().copied()).collect();
        let Some(ticket) = waiting.get(self.below(waiting.len())).copied() else { return };
        let waker = {
            let mut state = self.state();
            state.gates.granted.insert(ticket);
            state.gates.waiting.get_mut(&actor).and_then(|waiting| waiting.remove(&ticket))
        };
        if let Some(waker) = waker.flatten() {
            waker.wake();
        }
    }

    fn is_at_gate(&self, actor: usize) -> bool {
        let state = self.state();
        let waits = state.gates.waiting.get(&actor).is_some_and(|waiting| !waiting.is_empty());
        waits && state.gates.running.get(&actor).copied().unwrap_or(0) == 0
    }
}

/// One call, from its arrival at the gate to its end, or to being dropped.
struct Pass<'a> {
    schedule: &'a Schedule,
    actor: usize,
    ticket: u64,
    through: bool,
}

impl<'a> Pass<'a> {
    async fn new(schedule: &'a Schedule, actor: usize) -> Self {
        let ticket = {
            let mut state = schedule.state();
            state.gates.next_ticket += 1;
            let ticket = state.gates.next_ticket;
            state.gates.waiting.entry(actor).or_default().insert(ticket, None);
            ticket
        };
        let mut pass = Self { schedule, actor, ticket, through: false };
        std::future::poll_fn(|context| {
            let mut state = schedule.state();
            if state.gates.granted.remove(&ticket) {
                *state.gates.running.entry(actor).or_default() += 1;
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            state.gates.waiting.entry(actor).or_default().insert(ticket, Some(waker));
            Poll::Pending
        })
        .await;
        pass.through = true;
        pass
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.schedule.state();
        if self.through {
            let running = state.gates.running.entry(self.actor).or_default();
            *running = running.saturating_sub(1);
        } else {
            state.gates.granted.remove(&self.ticket);
            if let Some(waiting) = state.gates.waiting.get_mut(&self.actor) {
                waiting.remove(&self.ticket);
            }
        }
    }
}

#[derive(Debug)]
struct Scheduled {
    inner: Arc<dyn Backend>,
    schedule: Schedule,
    actor: Option<usize>,
}

impl Scheduled {
    async fn pass(&self, call: &str, key: &str) -> Option<Pass<'_>> {
        let actor = self.actor?;
        let pass = Pass::new(&self.schedule, actor).await;
        self.schedule.state().calls.push(format!("{actor} {call} {key}"));
        Some(pass)
    }

    /// The fate of the reply to a call that was done.
    fn reply(&self, call: &str) -> Result<(), Fault> {
        let lost = self.schedule.state().lost;
        if self.actor.is_none() || lost == 0 || !self.schedule.one_in(lost) {
            return Ok(());
        }
        self.schedule.state().calls.push(format!("{} lost {call}", self.actor.unwrap_or_default()));
        let fault = Fault::unreachable(format!("injected loss of the reply to {call}"));
        Err(if call == "create" { fault.outcome_unknown() } else { fault })
    }

    fn dated(&self, mut info: ObjectInfo) -> ObjectInfo {
        if let Some(time) = self.schedule.state().times.get(&info.key) {
            info.modified = *time;
        }
        info
    }

    fn date(&self, key: &str) {
        let mut state = self.schedule.state();
        let now = state.now;
        state.times.insert(key.to_owned(), now);
    }
}

#[async_trait]
impl Backend for Scheduled {
    async fn create(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        let _pass = self.pass("create", key).await;
        let created = self.inner.create(key, body).await?;
        if created == Created::New {
            self.date(key);
        }
        self.reply("create").map(|()| created)
    }

    async fn overwrite(&self, key: &str, body: &Payload) -> Result<(), Fault> {
        let _pass = self.pass("create", key).await;
        self.inner.overwrite(key, body).await?;
        self.date(key);
        Ok(())
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
        let _pass = self.pass("open", key).await;
        let opened = self.inner.open(key, range).await?;
        Ok(opened.map(|opened| Opened { info: self.dated(opened.info.clone()), ..opened }))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        let _pass = self.pass("head", key).await;
        Ok(self.inner.head(key).await?.map(|info| self.dated(info)))
    }

    async fn list(&self, listing: &Listing) -> Result<Page, Fault> {
        let _pass = self.pass("list", &listing.prefix).await;
        let after = listing.token.clone().or_else(|| listing.after.clone());
        let mut page = self.inner.list(&Listing { after, token: None, ..listing.clone() }).await?;
        let keys = self.schedule.state().page;
        if !listing.fold && self.actor.is_some() && page.objects.len() > keys {
            page.objects.sort();
            page.objects.truncate(keys);
            page.token = page.objects.last().map(|info| info.key.clone());
        }
        page.objects = page.objects.into_iter().map(|info| self.dated(info)).collect();
        Ok(page)
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        let _pass = self.pass("delete", key).await;
        self.inner.delete(key).await?;
        self.schedule.state().times.remove(key);
        self.reply("delete")
    }

    fn bucket(&self) -> Option<&Bucket> {
        self.inner.bucket()
    }

    async fn make_root(&self) -> Result<(), Fault> {
        self.inner.make_root().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::store::StoreOptions;

    fn history(seed: u64) -> (Vec<String>, Vec<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let plain = Store::open(&"memory:".parse().unwrap(), &StoreOptions::default()).unwrap();
            let schedule = Schedule::new(seed, Timestamp::UNIX_EPOCH);
            let writer = |number: usize| {
                let store = schedule.store(&plain, number);
                Actor::new(number, async move {
                    for n in 0..4 {
                        store.create(&format!("k/{number}/{n}"), "x").await.unwrap();
                        crate::clock::sleep(Duration::from_secs(3)).await;
                        store.list("k/").await.unwrap();
                    }
                })
            };
            let mut actors = vec![writer(0), writer(1), writer(2)];
            while !actors.is_empty() {
                let at = schedule.below(actors.len());
                if schedule.step(actors.get_mut(at).unwrap()).await {
                    actors.remove(at);
                }
            }
            let keys = plain.list("").await.unwrap().into_iter().map(|info| info.key).collect();
            (schedule.calls(), keys)
        })
    }

    #[test]
    fn one_seed_is_one_history_and_another_seed_another() {
        let (calls, keys) = history(7);
        assert_eq!(history(7).0, calls);
        assert_ne!(history(8).0, calls);
        assert_eq!(keys.len(), 12);
        let creates = calls.iter().filter(|call| call.contains("create")).count();
        assert!(creates == 12 && calls.len() > 30, "listings come in pages: {calls:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn between_steps_nothing_happens_and_a_dropped_actor_does_no_more() {
        let plain = Store::open(&"memory:".parse().unwrap(), &StoreOptions::default()).unwrap();
        let schedule = Schedule::new(1, Timestamp::UNIX_EPOCH);
        let store = schedule.store(&plain, 0);
        let mut actor = Actor::new(0, async move {
            let both = (store.create("a", "x"), store.create("b", "x"));
            futures_util::future::join(both.0, both.1).await.0.unwrap();
        });
        assert!(!schedule.step(&mut actor).await);
        assert_eq!(plain.list("").await.unwrap().len(), 0, "it stands before its first calls");
        schedule.advance(SignedDuration::from_hours(1));
        assert!(!schedule.step(&mut actor).await);
        drop(actor);
        let found = schedule.free(&plain).list("").await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found.first().unwrap().modified.as_second(), 3600);
    }
}
