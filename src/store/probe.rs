//! Does the store keep the one promise that pitr rests on: that of many creates of one key, one wins?
//!
//! Some servers ignore the condition of a conditional write, others check it and let several racers win. So a store
//! is asked, not believed: eight creates of one fresh key with different bodies, at once.
//! Invariant: a report says "safe" only if exactly one create won, the object is the winner's, and a later create of
//! the same key was refused.
//! Source of truth: REPOSITORY.md section 2, "Probe".

use futures_util::future::join_all;

use super::error::{Class, Fault};
use super::{Created, Payload, Store, StoreError};
use crate::clock;

/// Racers.
const RACERS: usize = 8;
/// Size of a racer's body: large enough that the requests overlap.
const BODY: usize = 64 << 10;
/// Races run before a lost reply is reported as a store that does not answer.
const RACES: usize = 3;

/// What a race of creates showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// Creates that were told they won; one is right.
    pub winners: usize,
    /// The object read back is the body of a winner.
    pub readback_equal: bool,
    /// A create after the race was told that the key is taken.
    pub later_refused: bool,
    /// The key of the object that could not be deleted afterwards (a bucket with object lock).
    pub left_behind: Option<String>,
}

impl ProbeReport {
    /// The store keeps the promise.
    pub fn is_safe(&self) -> bool {
        self.winners == 1 && self.readback_equal && self.later_refused
    }
}

impl Store {
    /// Races eight creates of one fresh key below `prefix` (empty, or ending with `/`) and removes it again. It tells
    /// about the store as it is, also where `allow_unsafe_store` is set.
    pub async fn probe_create_race(&self, prefix: &str) -> Result<ProbeReport, StoreError> {
        let mut last = None;
        for _ in 0..RACES {
            match self.race_once(prefix).await {
                // A lost reply: who won cannot be told. Another race, with another key.
                Err(error) if error.class() != Class::Permanent => last = Some(error),
                report => return report,
            }
        }
        Err(last.unwrap_or_else(|| self.failed("probe", prefix, Fault::unreachable("no race was run"))))
    }

    async fn race_once(&self, prefix: &str) -> Result<ProbeReport, StoreError> {
        let nonce =
            clock::nonce().map_err(|error| self.failed("probe", prefix, Fault::usage(error.to_string())))?;
        let key = format!("{prefix}probe-{nonce}");
        self.check(&key, "probe")?;
        let bodies: Vec<Payload> = (0..RACERS).map(|racer| body(&nonce, racer).into()).collect();
        let race = join_all(bodies.iter().map(|body| self.create_once(&key, body))).await;
        let mut winners = Vec::new();
        let (mut losers, mut not_now, mut lost_reply) = (0, None, None);
        for (body, outcome) in bodies.iter().zip(race) {
            match outcome {
                Ok(Created::New) => winners.push(body.to_bytes()),
                Ok(Created::Exists) => losers += 1,
                // Nothing was done: this one did not race. GCS takes about one write of a key per second.
                Err(fault) if fault.class == Class::Retry => not_now = Some(fault),
                Err(fault) => lost_reply = Some(fault),
            }
        }
        let raced = winners.len() + losers >= 2;
        if let Some(fault) = lost_reply.or_else(|| not_now.filter(|_| !raced)) {
            self.remove_probe(&key).await.ok();
            return Err(self.failed("probe", &key, fault));
        }
        let stored = self.get_limited(&key, u64::MAX).await?;
        let late: Payload = body(&nonce, RACERS).into();
        let later = self.0.policy.run(late.len(), || self.create_once(&key, &late)).await;
        let later = later.map_err(|fault| self.failed("probe", &key, fault))?;
        let left_behind = self.remove_probe(&key).await.is_err().then_some(key);
        Ok(ProbeReport {
            winners: winners.len(),
            readback_equal: stored.is_some_and(|stored| winners.contains(&stored)),
            later_refused: later == Created::Exists,
            left_behind,
        })
    }
}

/// A body that no other racer has, as text so that a leftover explains itself.
fn body(nonce: &str, racer: usize) -> Vec<u8> {
    let line = format!("pitr: a test of conditional creates, safe to delete: {nonce} {racer}\n");
    line.into_bytes().into_iter().cycle().take(BODY).collect()
}
