//! What somebody with these credentials could destroy, found out by trying it on objects made for that.
//!
//! ```text
//!  for each attempt:   create probe-attack-… ─► overwrite | delete | delete its version | delete it and its delete marker's version
//!                                                         | shorten its retention, then delete its version
//!                                            └► is the first content still there?   as it is, by its version, or not at all
//! ```
//! Object lock keeps what is fresh, and what is attacked is fresh. A delete marker is never retained: whether that can be deleted by version
//! tells what becomes of objects whose retention is over.
//! Nothing is touched that this process did not create in the same call, and the names say what they are: `verify` passes
//! them over, and they may go. What the credentials may do with the bucket itself (its policy, its lifecycle, its settings)
//! is not tried: that cannot be undone.
//! Source of truth: REPOSITORY.md 2 (create-only), the S3 API on versions and object lock.

use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;

use super::error::{Fault, StoreErrorKind};
use super::policy::within;
use super::s3::{Bucket, is_without_lock};
use super::{Class, Payload, Store, StoreError};
use crate::clock;

/// How long a retention lasts that was shortened, so that its end can be waited for. The store wants it in the future.
const SHORTENED: Duration = Duration::from_secs(3);
/// Times of retentions have whole seconds, and clocks of a store's parts differ.
const MARGIN: Duration = Duration::from_secs(2);
/// An object of an attack is small.
const READ_LIMIT: u64 = 4096;

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Other content under the same name, without a condition.
    Overwrite,
    /// Deleting, as `expire` does.
    Delete,
    /// Deleting the version that has the content, past a retention in governance mode if the credentials may.
    DeleteVersion,
    /// Deleting by version what no object lock covers: the delete marker over the object.
    DeleteUnlocked,
    /// Ending a retention early, and then deleting the version.
    ShortenRetention,
}

impl Attempt {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 5] =
        [Self::Overwrite, Self::Delete, Self::DeleteVersion, Self::DeleteUnlocked, Self::ShortenRetention];

    /// A name for JSON and for the object's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overwrite => "overwrite",
            Self::Delete => "delete",
            Self::DeleteVersion => "delete-version",
            Self::DeleteUnlocked => "delete-unlocked",
            Self::ShortenRetention => "shorten-retention",
        }
    }
}

/// What the store said to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// No, and why.
    Refused(String),
    /// Yes.
    Done,
    /// It does not apply here, and why.
    NotTried(String),
    /// Neither yes nor no.
    Unclear(String),
}

/// What became of the content that was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// It is read under its name.
    Intact,
    /// It is read by its version, and no longer by its name alone.
    ByVersion,
    /// It cannot be read any more.
    Gone,
    /// That could not be found out, and why.
    Unknown(String),
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// What was tried.
    pub attempt: Attempt,
    /// The object's key.
    pub key: String,
    /// What the store said.
    pub outcome: Outcome,
    /// What is left of the object.
    pub content: Content,
}

/// All attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attack {
    /// One by one, in order.
    pub tried: Vec<Tried>,
    /// Keys of which something stayed: the object, or a version of it below a delete marker.
    pub left_behind: Vec<String>,
}

/// The object that one attempt is made on.
struct Victim {
    key: String,
    body: Bytes,
    /// It could be created.
    made: bool,
    /// Its version, or why that is not known. `None`: no versions are kept.
    version: Result<Option<String>, String>,
    born: Instant,
    /// When the store says that it was created.
    store_time: Timestamp,
}

impl Store {
    /// Tries to destroy objects of its own below `prefix` (empty, or ending with `/`), with the credentials of this store.
    ///
    /// Dropped, it leaves objects whose text says that they may go.
    ///
    /// # Errors
    /// If the store does not answer. That it refuses is a result.
    pub async fn attack(&self, prefix: &str) -> Result<Attack, StoreError> {
        let nonce =
            clock::nonce().map_err(|error| self.failed("attack", prefix, Fault::usage(error.to_string())))?;
        let mut attack = Attack { tried: Vec::new(), left_behind: Vec::new() };
        for attempt in Attempt::ALL {
            let key = format!("{prefix}probe-attack-{nonce}-{}", attempt.name());
            let victim = match self.victim(key.clone()).await {
                Ok(victim) => victim,
                Err(error) => {
                    attack.left_behind.extend((error.class == Class::Unknown).then_some(key));
                    return Err(with_left_behind(error, &attack.left_behind));
                }
            };
            let outcome = self.attempt(attempt, &victim).await;
            let content = self.content(&victim).await;
            if self.stays(attempt, &victim, &outcome, &content).await {
                attack.left_behind.push(victim.key.clone());
            }
            attack.tried.push(Tried { attempt, key: victim.key, outcome, content });
        }
        Ok(attack)
    }

    /// Removes what an attempt left, as far as the credentials may. True: something stays.
    async fn stays(&self, attempt: Attempt, victim: &Victim, outcome: &Outcome, content: &Content) -> bool {
        // Also of an object that could not be created: a write without a condition may have made it.
        let written = attempt == Attempt::Overwrite && matches!(outcome, Outcome::Done | Outcome::Unclear(_));
        if !written && (!victim.made || *content == Content::Gone) {
            return false;
        }
        // Where it is hidden, another delete would only add a marker.
        let hidden = *content == Content::ByVersion && !written;
        let removed = !hidden && self.remove_probe(&victim.key).await.is_ok();
        let keeps_versions =
            if victim.made { victim.version != Ok(None) } else { self.0.backend.bucket().is_some() };
        !removed || keeps_versions
    }

    async fn victim(&self, key: String) -> Result<Victim, StoreError> {
        let body = Bytes::from(format!("pitr check --attack: made to be attacked, safe to delete: {key}\n"));
        let made = match self.create(&key, body.clone()).await {
            Ok(_) => true,
            Err(error) if is_refusal(error.kind) => false,
            Err(error) => return Err(error),
        };
        let (mut version, mut store_time) = (Ok(None), Timestamp::UNIX_EPOCH);
        if made {
            if let Ok(Some(info)) = self.head(&key).await {
                store_time = info.modified;
            }
            if let Some(bucket) = self.0.backend.bucket() {
                let asked = self.0.policy.run(0, || within(self.0.policy.attempt(0), bucket.version(&key)));
                version = asked.await.map_err(|fault| fault.cause);
            }
        }
        Ok(Victim { key, body, made, version, born: Instant::now(), store_time })
    }

    async fn attempt(&self, attempt: Attempt, victim: &Victim) -> Outcome {
        let deadline = self.0.policy.attempt(0);
        let done = match attempt {
            Attempt::Overwrite => {
                let other: Payload = Bytes::from_static(b"pitr check --attack: other content\n").into();
                let overwrite = || within(deadline, self.0.backend.overwrite(&victim.key, &other));
                self.0.policy.run(other.len(), overwrite).await
            }
            Attempt::Delete => {
                self.0.policy.run(0, || within(deadline, self.0.backend.delete(&victim.key))).await
            }
            Attempt::DeleteVersion => match self.0.backend.bucket() {
                Some(bucket) => self.delete_version(bucket, victim).await,
                None => return Outcome::NotTried("only S3 is asked by version".to_owned()),
            },
            Attempt::DeleteUnlocked => match self.0.backend.bucket() {
                Some(bucket) => return self.delete_unlocked(bucket, victim).await,
                None => return Outcome::NotTried("only S3 is asked by version".to_owned()),
            },
            Attempt::ShortenRetention => match self.0.backend.bucket() {
                Some(bucket) => return self.shorten(bucket, victim).await,
                None => return Outcome::NotTried("only S3's object lock is known".to_owned()),
            },
        };
        outcome(done)
    }

    async fn delete_version(&self, bucket: &Bucket, victim: &Victim) -> Result<(), Fault> {
        // Where none are kept, an object still has a version that is called so.
        let version = match &victim.version {
            Ok(version) => version.as_deref().unwrap_or("null"),
            Err(cause) => return Err(Fault::permanent(StoreErrorKind::Other, cause.clone())),
        };
        let delete = || within(self.0.policy.attempt(0), bucket.delete_past_retention(&victim.key, version));
        self.0.policy.run(0, delete).await
    }

    /// The marker is a version that nothing retains. Where none can be made, a version that is not there has to do: who may not delete
    /// versions is refused before that is looked at.
    async fn delete_unlocked(&self, bucket: &Bucket, victim: &Victim) -> Outcome {
        if victim.made && victim.version == Ok(None) {
            return Outcome::NotTried("no versions are kept".to_owned());
        }
        let deadline = self.0.policy.attempt(0);
        let marked = self.0.policy.run(0, || within(deadline, bucket.delete_by_name(&victim.key))).await;
        let (version, marked) = match marked {
            Ok(Some(marker)) => (marker, true),
            Ok(None) => return Outcome::NotTried("deleting it left no delete marker".to_owned()),
            Err(fault) if is_refusal(fault.kind) => ("null".to_owned(), false),
            Err(fault) => return outcome(Err(fault)),
        };
        let done = self.0.policy.run(0, || within(deadline, bucket.delete(&victim.key, &version))).await;
        match done {
            // That it is not there is no answer to who may.
            Err(fault) if !marked && matches!(fault.kind, StoreErrorKind::NoRoot | StoreErrorKind::Other) => {
                Outcome::NotTried(fault.cause)
            }
            done => outcome(done),
        }
    }

    async fn shorten(&self, bucket: &Bucket, victim: &Victim) -> Outcome {
        let Ok(Some(version)) = &victim.version else {
            return Outcome::NotTried("no version of it is known".to_owned());
        };
        match self.protection().await {
            Ok(Some(protection)) if !protection.lock => {
                return Outcome::NotTried("the bucket has no object lock".to_owned());
            }
            Ok(Some(protection)) if protection.retention.is_none() => {
                return Outcome::NotTried("the bucket gives new objects no retention".to_owned());
            }
            // Who may not ask for the settings may still be able to shorten.
            Ok(_) | Err(_) => {}
        }
        let until = victim.store_time.checked_add(victim.born.elapsed() + SHORTENED + MARGIN);
        let until = until.unwrap_or(Timestamp::MAX);
        let shorten = || within(self.0.policy.attempt(0), bucket.shorten(&victim.key, version, until));
        match self.0.policy.run(0, shorten).await {
            Ok(()) => {}
            Err(fault) if is_without_lock(&fault) => return Outcome::NotTried(fault.cause),
            Err(fault) => return outcome(Err(fault)),
        }
        clock::sleep(SHORTENED + MARGIN + MARGIN).await;
        // Bypassing has been tried: what counts here is that the retention is over.
        let delete = || within(self.0.policy.attempt(0), bucket.delete(&victim.key, version));
        match outcome(self.0.policy.run(0, delete).await) {
            Outcome::Refused(why) => Outcome::Refused(format!("shortened, and its version stays: {why}")),
            other => other,
        }
    }

    /// Whether the first content can still be read, under its name or by its version.
    async fn content(&self, victim: &Victim) -> Content {
        if !victim.made {
            return Content::Unknown("no object could be made to try it on".to_owned());
        }
        let current = self.get_limited(&victim.key, READ_LIMIT).await;
        if let Ok(Some(bytes)) = &current
            && *bytes == victim.body
        {
            return Content::Intact;
        }
        let (bucket, version) = match (self.0.backend.bucket(), &victim.version) {
            (Some(bucket), Ok(Some(version))) => (bucket, version),
            (Some(_), Err(cause)) => return Content::Unknown(cause.clone()),
            // Nothing keeps a version.
            (_, _) => {
                return match current {
                    Ok(_) => Content::Gone,
                    Err(error) => Content::Unknown(error.cause),
                };
            }
        };
        let read = || within(self.0.policy.attempt(0), bucket.read(&victim.key, version));
        match self.0.policy.run(0, read).await {
            Ok(Some(bytes)) if bytes == victim.body => Content::ByVersion,
            Ok(_) => Content::Gone,
            Err(fault) => Content::Unknown(fault.cause),
        }
    }
}

/// The failure, and what the attempts before it left.
fn with_left_behind(error: StoreError, keys: &[String]) -> StoreError {
    if keys.is_empty() {
        return error;
    }
    let cause = format!("{}; left behind, may go: {}", error.cause, keys.join(", "));
    StoreError { cause, ..error }
}

fn is_refusal(kind: StoreErrorKind) -> bool {
    matches!(kind, StoreErrorKind::Credentials | StoreErrorKind::Denied)
}

fn outcome(done: Result<(), Fault>) -> Outcome {
    match done {
        Ok(()) => Outcome::Done,
        Err(fault) if is_refusal(fault.kind) => Outcome::Refused(fault.cause),
        Err(fault) if fault.kind == StoreErrorKind::Unsupported => Outcome::NotTried(fault.cause),
        Err(fault) => Outcome::Unclear(fault.cause),
    }
}
