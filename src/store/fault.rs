//! A store that fails on purpose: the n-th call is refused, loses its reply, is cut short, stalls, looks at an old
//! listing or denies an object that is there.
//!
//! It sits below deadlines and repetition, so that a test may watch them work, or take them away
//! ([`super::Policy::once`]) and see what a single failure does to whoever called. Calls are counted from 1.
//! Invariant: a fault that is not "lost" has no effect on the store beneath; a lost one has its whole effect.
//!
//! As text, for whole processes (`PITR_TEST_FAULTS`): `EFFECT[@CALL[/KEY]]:N[+]`, separated by commas. `fail:3` is the
//! third call; `lost@create/backup.json:1` the first create of a key that contains `backup.json`; `fail@list:2+` every
//! listing from the second on. Effects: `fail`, `deny`, `lost`, `short`, `stall`, `stale`, `lie`, `hide`, `panic`, `kill`, `killed-after`. Each hit is a warning
//! that begins with `injected`, so that a test can tell a run that met its fault from one that made fewer calls.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::backend::{Backend, Created, Listing, ObjectInfo, Opened, Page, Payload};
use super::error::{Fault, StoreErrorKind};
use super::s3::Bucket;
use super::{Policy, Store};
use crate::durable;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing is done, and the store says "not now".
    Fail,
    /// Nothing is done, and the store says "not you".
    Deny,
    /// It is done; the reply is lost.
    Lost,
    /// A body ends in the middle. Calls without a body fail.
    Short,
    /// It is not done and never answered.
    Stall,
    /// A listing lacks the newest object that was created through this store. Other calls work.
    Stale,
    /// An object that is there is said not to be. Calls that cannot say so work.
    Lie,
    /// A delete leaves a delete marker, as where versions are kept: whoever asks for the object is told so. Other calls work.
    Hide,
    /// The program itself fails in the middle of the call, before anything is done.
    Panic,
    /// The process is killed before anything is done.
    Kill,
    /// It is done, and the process is killed before it sees the reply.
    KilledAfter,
}

/// One fault: which call, and what happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What happens.
    pub effect: Effect,
    /// Only calls of this name: create, open, head, list, delete.
    pub call: Option<String>,
    /// Only keys (or prefixes) that contain this.
    pub key: Option<String>,
    /// Which of the calls that match, from 1.
    pub nth: u64,
    /// That one and all later ones.
    pub onwards: bool,
}

/// A text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fault of the form EFFECT[@CALL[/KEY]]:N[+]")]
pub struct RuleError(String);

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let fail = || RuleError(text.to_owned());
        let (what, which) = text.rsplit_once(':').ok_or_else(fail)?;
        let (effect, place) =
            what.split_once('@').map_or((what, None), |(effect, place)| (effect, Some(place)));
        let (call, key) = place.map_or((None, None), |place| match place.split_once('/') {
            Some((call, key)) => (Some(call), Some(key)),
            None => (Some(place), None),
        });
        let effect = match effect {
            "fail" => Effect::Fail,
            "deny" => Effect::Deny,
            "lost" => Effect::Lost,
            "short" => Effect::Short,
            "stall" => Effect::Stall,
            "stale" => Effect::Stale,
            "lie" => Effect::Lie,
            "hide" => Effect::Hide,
            "panic" => Effect::Panic,
            "kill" => Effect::Kill,
            "killed-after" => Effect::KilledAfter,
            _ => return Err(fail()),
        };
        let (nth, onwards) = which.strip_suffix('+').map_or((which, false), |nth| (nth, true));
        let owned = |part: Option<&str>| part.filter(|part| !part.is_empty()).map(str::to_owned);
        Ok(Self {
            effect,
            call: owned(call),
            key: owned(key),
            nth: nth.parse().map_err(|_| fail())?,
            onwards,
        })
    }
}

#[derive(Default)]
struct State {
    /// Each rule with the calls that matched it so far.
    rules: Vec<(Rule, u64)>,
    calls: Vec<String>,
    /// Bytes of the bodies that were opened.
    read: u64,
    /// The key created last, for stale listings.
    newest: Option<String>,
    /// Keys under a delete marker.
    hidden: BTreeSet<String>,
}

/// The control of a store that fails on purpose, and the record of its calls.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.state().rules.iter().map(|(rule, _)| rule)).finish()
    }
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds rules from text, each counting from now.
    pub fn add(&self, text: &str) -> Result<(), RuleError> {
        let rules = text.split(',').map(str::trim).filter(|rule| !rule.is_empty());
        let rules: Vec<Rule> = rules.map(str::parse).collect::<Result<_, _>>()?;
        self.state().rules.extend(rules.into_iter().map(|rule| (rule, 0)));
        Ok(())
    }

    /// From now on nothing fails.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// The calls so far, as `create KEY`.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Bytes of the bodies that were opened so far.
    pub fn bytes_read(&self) -> u64 {
        self.state().read
    }

    /// Counts a call, and says what is to happen to it: the first rule that it hits.
    fn hit(&self, call: &str, key: &str) -> Option<Effect> {
        let mut state = self.state();
        state.calls.push(format!("{call} {key}"));
        let mut effect = None;
        for (rule, seen) in &mut state.rules {
            let matches = rule.call.as_ref().is_none_or(|wanted| wanted == call)
                && rule.key.as_ref().is_none_or(|part| key.contains(part.as_str()));
            if matches {
                *seen += 1;
                let hit = *seen == rule.nth || (rule.onwards && *seen > rule.nth);
                if hit && effect.is_none() {
                    effect = Some(rule.effect);
                }
            }
        }
        if let Some(effect) = effect {
            tracing::warn!("injected {effect:?} on {call} {key}");
        }
        effect
    }
}

impl Store {
    /// This store with faults, and their control. `policy` decides what is repeated.
    pub fn with_faults(&self, policy: Policy) -> (Self, Faults) {
        let faults = Faults::default();
        let backend = FaultStore { inner: Arc::clone(&self.0.backend), faults: faults.clone() };
        (self.rebuilt(Arc::new(backend), policy), faults)
    }
}

/// The back end with the faults that the environment asks for, in programs built for tests.
#[cfg(feature = "testing")]
#[expect(clippy::disallowed_methods, reason = "a switch of test programs, no part of any configuration")]
pub(super) fn from_environment(inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
    let Ok(text) = std::env::var("PITR_TEST_FAULTS") else { return inner };
    let faults = Faults::default();
    if let Err(error) = faults.add(&text) {
        // A test that asks for an impossible fault must not pass for want of it.
        tracing::error!("PITR_TEST_FAULTS: {error}");
        faults.add("deny:1+").ok();
    }
    Arc::new(FaultStore { inner, faults })
}

#[derive(Debug)]
struct FaultStore {
    inner: Arc<dyn Backend>,
    faults: Faults,
}

impl FaultStore {
    fn check_hidden(&self, key: &str) -> Result<(), Fault> {
        match self.faults.state().hidden.contains(key) {
            true => Err(Fault::permanent(StoreErrorKind::Hidden, "it is hidden by a delete marker")),
            false => Ok(()),
        }
    }

    /// Does the call unless a fault prevents it; the remaining effect is the caller's to apply.
    async fn around<T>(
        &self,
        call: &str,
        key: &str,
        done: impl Future<Output = Result<T, Fault>>,
    ) -> Result<(T, Option<Effect>), Fault> {
        let effect = self.faults.hit(call, key);
        let not_now = || Fault::unreachable(format!("injected fault on {call}"));
        match effect {
            Some(Effect::Fail) => Err(not_now()),
            Some(Effect::Deny) => {
                Err(Fault::permanent(StoreErrorKind::Credentials, format!("injected refusal of {call}")))
            }
            Some(Effect::Stall) => std::future::pending().await,
            #[expect(clippy::panic, reason = "a defect, to see what it does to whoever called")]
            Some(Effect::Panic) => panic!("injected panic on {call}"),
            Some(Effect::Kill) => durable::die(),
            Some(Effect::KilledAfter) => {
                let _ = done.await; // whatever the reply, nobody sees it
                durable::die()
            }
            Some(Effect::Lost) => {
                done.await?;
                let lost = Fault::unreachable(format!("injected loss of the reply to {call}"));
                Err(if call == "create" { lost.outcome_unknown() } else { lost })
            }
            Some(Effect::Short) if call != "open" => Err(not_now()),
            Some(Effect::Short | Effect::Stale | Effect::Lie | Effect::Hide) | None => {
                Ok((done.await?, effect))
            }
        }
    }
}

#[async_trait]
impl Backend for FaultStore {
    async fn create(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        let (created, _) = self.around("create", key, self.inner.create(key, body)).await?;
        if created == Created::New {
            self.faults.state().hidden.remove(key);
            self.faults.state().newest = Some(key.to_owned());
        }
        Ok(created)
    }

    async fn overwrite(&self, key: &str, body: &Payload) -> Result<(), Fault> {
        self.around("create", key, self.inner.overwrite(key, body)).await.map(|_| ())
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
        self.check_hidden(key)?;
        match self.around("open", key, self.inner.open(key, range)).await? {
            (Some(opened), Some(Effect::Short)) => {
                let halve = |bytes: bytes::Bytes| bytes.slice(..bytes.len() / 2);
                Ok(Some(Opened { body: opened.body.take(1).map_ok(halve).boxed(), ..opened }))
            }
            (_, Some(Effect::Lie)) => Ok(None),
            (opened, _) => {
                let range = opened.as_ref().map_or(0..0, |opened| opened.range.clone());
                self.faults.state().read += range.end - range.start;
                Ok(opened)
            }
        }
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        self.check_hidden(key)?;
        let (info, effect) = self.around("head", key, self.inner.head(key)).await?;
        Ok(info.filter(|_| effect != Some(Effect::Lie)))
    }

    async fn list(&self, listing: &Listing) -> Result<Page, Fault> {
        let (mut page, effect) = self.around("list", &listing.prefix, self.inner.list(listing)).await?;
        if effect == Some(Effect::Stale) {
            let newest = self.faults.state().newest.clone();
            page.objects.retain(|info| Some(&info.key) != newest.as_ref());
        }
        Ok(page)
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        let ((), effect) = self.around("delete", key, self.inner.delete(key)).await?;
        if effect == Some(Effect::Hide) {
            self.faults.state().hidden.insert(key.to_owned());
        }
        Ok(())
    }

    fn anew(&self) -> Option<Arc<dyn Backend>> {
        let inner = self.inner.anew()?;
        Some(Arc::new(Self { inner, faults: self.faults.clone() }))
    }

    fn bucket(&self) -> Option<&Bucket> {
        self.inner.bucket()
    }

    async fn make_root(&self) -> Result<(), Fault> {
        self.inner.make_root().await
    }
}
