//! How long a call may take, and how often it is repeated.
//!
//! Every attempt has a deadline that grows with its bytes, so that a large body on a slow line is not cut off and a
//! stalled connection still ends. Attempts are few and their waits random, so that many hosts that lost one store do
//! not come back in step; longer patience belongs to the caller, who can tell people about it.
//! Source of truth: REPOSITORY.md section 2 ("Deadline per request").

use std::time::Duration;

use tokio::time::Instant;

use super::error::{Class, Fault};
use crate::clock;

/// The slowest line on which a body must get through.
const BYTES_PER_SECOND: u64 = 1 << 20;
/// No attempt begins later than this many deadlines of one attempt after the first: the call ends one deadline later.
const BEGIN_WITHIN: u32 = 2;

/// Deadlines and repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What an attempt may take, before its bytes are counted.
    pub base: Duration,
    /// Attempts in all; 1 never repeats.
    pub attempts: u32,
    /// The longest first wait; it doubles with each.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(60),
            attempts: 6,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(5),
        }
    }
}

impl Policy {
    /// Never repeats: for callers that have their own patience, and for tests of what a single failure does.
    pub fn once(self) -> Self {
        Self { attempts: 1, ..self }
    }

    /// What one attempt may take that moves this many bytes.
    pub fn attempt(&self, bytes: u64) -> Duration {
        self.base + Duration::from_secs(bytes / BYTES_PER_SECOND)
    }

    /// A random wait before the attempt after `done` attempts.
    fn wait(&self, done: u32) -> Duration {
        let doubled = self.first_wait.saturating_mul(1 << done.saturating_sub(1).min(16));
        let longest = doubled.min(self.longest_wait);
        // Without randomness the longest wait will do.
        let part = clock::random_bytes().map_or(u16::MAX, u16::from_le_bytes);
        longest.mul_f64(0.5 + 0.5 * f64::from(part) / f64::from(u16::MAX))
    }

    /// Runs `attempt` until it succeeds, fails for good, or patience ends. Once one attempt may have taken effect,
    /// later refusals to answer do not make the outcome known.
    pub(super) async fn run<T, F>(&self, bytes: u64, mut attempt: impl FnMut() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let last_begin = Instant::now() + self.attempt(bytes) * BEGIN_WITHIN;
        let mut unknown = false;
        for done in 1.. {
            let fault = match attempt().await {
                Ok(value) => return Ok(value),
                Err(fault) if fault.class == Class::Permanent => return Err(fault),
                Err(fault) => fault,
            };
            unknown |= fault.class == Class::Unknown;
            let wait = self.wait(done);
            if done >= self.attempts || Instant::now() + wait > last_begin {
                let cause = match done {
                    1 => fault.cause.clone(),
                    _ => format!("{} (after {done} attempts)", fault.cause),
                };
                let fault = Fault { cause, ..fault };
                return Err(if unknown { fault.outcome_unknown() } else { fault });
            }
            tracing::debug!(cause = %fault.cause, done, "the store did not answer; trying again");
            clock::sleep(wait).await;
        }
        Err(Fault::unreachable("no attempt was allowed"))
    }
}

/// Ends an attempt at its deadline.
pub(super) async fn within<T>(
    deadline: Duration,
    attempt: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let ended = tokio::time::timeout(deadline, attempt).await;
    ended.unwrap_or_else(|_| {
        Err(Fault::unreachable(format!("no answer within {} s", deadline.as_secs_f64().ceil())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::error::StoreErrorKind;

    #[test]
    fn a_deadline_grows_with_the_bytes() {
        let policy = Policy::default();
        assert_eq!(policy.attempt(0), Duration::from_secs(60));
        assert_eq!(policy.attempt(64 << 20), Duration::from_secs(124));
    }

    #[test]
    fn waits_double_up_to_the_longest_and_are_never_zero() {
        let policy = Policy::default();
        for done in 1..40 {
            let wait = policy.wait(done);
            assert!(wait >= policy.first_wait / 2 && wait <= policy.longest_wait, "{done}: {wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_help_is_repeated_and_an_unknown_outcome_stays_unknown() {
        let policy = Policy::default();
        let run = |faults: Vec<Fault>| async move {
            let (mut calls, mut faults) = (0, faults.into_iter());
            let done = policy
                .run(0, || {
                    calls += 1;
                    std::future::ready(faults.next().map_or(Ok(()), Err))
                })
                .await;
            (calls, done.map_err(|fault| fault.class))
        };
        let retry = || Fault::unreachable("x");
        let unknown = || retry().outcome_unknown();
        let permanent = || Fault::permanent(StoreErrorKind::Credentials, "x");
        assert_eq!(run(vec![retry(), unknown()]).await, (3, Ok(())));
        assert_eq!(run(vec![retry(), permanent()]).await, (2, Err(Class::Permanent)));
        let mut many = vec![unknown()];
        many.extend((0..9).map(|_| retry()));
        assert_eq!(run(many).await, (6, Err(Class::Unknown)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_store_ends_within_three_deadlines() {
        let (policy, begin) = (Policy::default(), Instant::now());
        let stalled = policy.run::<(), _>(0, || within(policy.attempt(0), std::future::pending())).await;
        assert_eq!(stalled.map_err(|fault| fault.class), Err(Class::Retry));
        assert!(begin.elapsed() <= policy.base * (BEGIN_WITHIN + 1), "{:?}", begin.elapsed());
    }
}
