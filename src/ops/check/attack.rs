//! `check --attack`: what somebody who has these credentials could destroy.
//!
//! ```text
//!  store::attack   tries it, on objects of its own ─► verdict: survives | destroyable | unknown
//! ```
//! A directory is not tried: whoever may write there may delete there. What is tried is tried on fresh objects, and on a delete marker, which
//! no object lock covers: so the verdict is also about objects whose retention is over. What the credentials may do with the bucket itself
//! is not seen, nor what a later `expire` does that believes a forged tombstone; both are in docs/roles.md. Source of truth: REPOSITORY.md 2
//! and 4.

use super::Grade;
use crate::error::Result;
use crate::repo::Repository;
use crate::repo::path::cluster_dir;
use crate::store::{Attempt, Content, Outcome, Protection, StoreUrl, Tried, Versions};

/// What an attack came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// What is stored stays, or can be brought back.
    Survives,
    /// What is stored can be lost.
    Destroyable,
    /// Neither could be shown.
    Unknown,
}

impl Verdict {
    /// A name for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Survives => "survives",
            Self::Destroyable => "destroyable",
            Self::Unknown => "unknown",
        }
    }

    /// How bad it is.
    pub const fn grade(self) -> Grade {
        match self {
            Self::Survives => Grade::Good,
            Self::Destroyable | Self::Unknown => Grade::Risk,
        }
    }
}

/// An attack on one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttackReport {
    /// The repository's name.
    pub repository: String,
    /// Its URL.
    pub url: String,
    /// What the bucket says of itself; `None`: it was not asked, or did not answer.
    pub protection: Option<Protection>,
    /// What was tried; nothing in a directory.
    pub tried: Vec<Tried>,
    /// Keys of which something stayed: the object, or a version of it below a delete marker.
    pub left_behind: Vec<String>,
    /// What it came to.
    pub verdict: Verdict,
    /// The verdict as a sentence.
    pub why: String,
}

/// Attacks objects of its own in `repository`.
///
/// # Errors
/// If the store does not answer, or a newer pitr writes there.
pub async fn attack(repository: &Repository) -> Result<AttackReport> {
    repository.check_writable().await?;
    let store = repository.store();
    let mut report = AttackReport {
        repository: repository.name().to_owned(),
        url: store.url().to_string(),
        protection: None,
        tried: Vec::new(),
        left_behind: Vec::new(),
        verdict: Verdict::Destroyable,
        why: "nothing was tried: a directory protects nothing from the user who owns it, nor from root; keep another repository where \
              this host cannot delete"
            .to_owned(),
    };
    if matches!(store.url(), StoreUrl::File(_)) {
        return Ok(report);
    }
    report.protection = store.protection().await.ok().flatten();
    let attack = store.attack(&cluster_dir(repository.cluster())).await?;
    (report.verdict, report.why) = verdict(&attack.tried, report.protection.as_ref());
    (report.tried, report.left_behind) = (attack.tried, attack.left_behind);
    Ok(report)
}

/// What follows from the attempts.
fn verdict(tried: &[Tried], protection: Option<&Protection>) -> (Verdict, String) {
    let names = |wanted: &dyn Fn(&Tried) -> bool| {
        let names: Vec<&str> = tried.iter().filter(|t| wanted(t)).map(|t| said(t.attempt)).collect();
        names.join(", ")
    };
    let destroyed = names(&|t| t.content == Content::Gone);
    if !destroyed.is_empty() {
        return (
            Verdict::Destroyable,
            format!("an attacker with these credentials can destroy the repository: {destroyed}"),
        );
    }
    let done = |t: &Tried| t.outcome == Outcome::Done;
    if tried.iter().any(|t| t.attempt == Attempt::DeleteUnlocked && done(t)) {
        let retention = protection.and_then(|p| p.retention.as_ref());
        let retention = retention.map_or_else(String::new, |retention| format!(" ({retention})"));
        return (
            Verdict::Destroyable,
            format!(
                "an attacker with these credentials can destroy all that is older than its retention{retention}: he may delete by version \
                 what no retention holds"
            ),
        );
    }
    let unclear = names(&|t| match (&t.outcome, &t.content) {
        (Outcome::Unclear(_), _) => true,
        (Outcome::Done, Content::Unknown(_)) => true,
        (Outcome::Done | Outcome::Refused(_) | Outcome::NotTried(_), _) => false,
    });
    if !unclear.is_empty() {
        return (Verdict::Unknown, format!("it cannot be said whether what is stored survives: {unclear}"));
    }
    let hidden = names(&|t| done(t) && t.content == Content::ByVersion);
    let mut why = "what is stored survives who has these credentials".to_owned();
    if !hidden.is_empty() {
        why.push_str(&format!("; what he hides ({hidden}) is brought back by its version"));
    }
    if guessed(tried, protection) {
        why.push_str(
            "; of what is older than its retention that is so only if he may not delete versions, which could not be tried on any that \
             is stored",
        );
    }
    (Verdict::Survives, why)
}

/// The refusal to delete a version may be the object lock's alone, which holds only what is fresh: there was no delete marker to try it on.
fn guessed(tried: &[Tried], protection: Option<&Protection>) -> bool {
    let of = |attempt| tried.iter().find(|t| t.attempt == attempt);
    let refused = |attempt| of(attempt).is_some_and(|t| matches!(t.outcome, Outcome::Refused(_)));
    let made = of(Attempt::DeleteVersion).is_some_and(|t| !matches!(t.content, Content::Unknown(_)));
    let marked = of(Attempt::Delete).is_some_and(|t| t.outcome == Outcome::Done);
    let shown = marked && refused(Attempt::DeleteUnlocked);
    protection.is_none_or(|p| p.lock) && made && refused(Attempt::DeleteVersion) && !shown
}

/// An attempt in words.
pub const fn said(attempt: Attempt) -> &'static str {
    match attempt {
        Attempt::Overwrite => "overwrite",
        Attempt::Delete => "delete",
        Attempt::DeleteVersion => "delete by version",
        Attempt::DeleteUnlocked => "delete a marker",
        Attempt::ShortenRetention => "shorten retention",
    }
}

/// What a bucket says of itself, in words.
pub fn protection_text(protection: &Protection) -> String {
    let versions = match protection.versions {
        Versions::Kept => "it keeps versions",
        Versions::Suspended => "versions are suspended",
        Versions::None => "it keeps no versions",
    };
    match (protection.lock, &protection.retention) {
        (true, Some(retention)) => format!("{versions}; object lock: {retention} for every new object"),
        (true, None) => format!("{versions}; object lock is on, and new objects get no retention"),
        (false, _) => format!("{versions}; no object lock"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(attempt: Attempt, outcome: Outcome, content: Content) -> Tried {
        Tried { attempt, key: "k".to_owned(), outcome, content }
    }

    fn no() -> Outcome {
        Outcome::Refused("403".to_owned())
    }

    #[test]
    fn one_lost_content_decides_whatever_was_refused() {
        let all = [
            tried(Attempt::Overwrite, Outcome::Done, Content::ByVersion),
            tried(Attempt::Delete, no(), Content::Intact),
            tried(Attempt::DeleteVersion, Outcome::Done, Content::Gone),
        ];
        let (verdict, why) = verdict(&all, None);
        assert_eq!(verdict, Verdict::Destroyable);
        assert!(why.ends_with("can destroy the repository: delete by version"), "{why}");
    }

    #[test]
    fn what_is_only_hidden_survives_and_is_named() {
        let all = [
            tried(Attempt::Overwrite, Outcome::Done, Content::ByVersion),
            tried(Attempt::Delete, no(), Content::Intact),
            tried(Attempt::DeleteVersion, no(), Content::Intact),
            tried(Attempt::ShortenRetention, Outcome::NotTried("x".to_owned()), Content::Intact),
        ];
        let (verdict, why) = verdict(&all, None);
        assert_eq!(verdict, Verdict::Survives);
        assert!(why.contains("(overwrite) is brought back"), "{why}");
    }

    #[test]
    fn a_yes_without_a_look_at_the_content_is_no_survival() {
        let unknown = || Content::Unknown("403".to_owned());
        let of = |outcome, content| verdict(&[tried(Attempt::Delete, outcome, content)], None).0;
        assert_eq!(of(Outcome::Done, unknown()), Verdict::Unknown);
        assert_eq!(of(Outcome::Unclear("500".to_owned()), Content::Intact), Verdict::Unknown);
        // Nothing of its own to try it on, and a no all the same.
        assert_eq!(of(no(), unknown()), Verdict::Survives);
        assert_eq!(of(Outcome::Done, Content::Intact), Verdict::Survives);
    }

    /// Object lock holds what is fresh. Who may delete versions destroys the rest, and that nobody could try is said.
    #[test]
    fn a_lock_that_refuses_what_is_fresh_is_no_survival_of_what_is_old() {
        let lock = Protection {
            versions: Versions::Kept,
            lock: true,
            retention: Some("COMPLIANCE, 3 days".to_owned()),
        };
        let of = |delete: Outcome, unlocked: Outcome, lock: Option<&Protection>| {
            let all = [
                tried(Attempt::Delete, delete, Content::ByVersion),
                tried(Attempt::DeleteVersion, no(), Content::Intact),
                tried(Attempt::DeleteUnlocked, unlocked, Content::Intact),
            ];
            verdict(&all, lock)
        };
        let (found, why) = of(Outcome::Done, Outcome::Done, Some(&lock));
        assert_eq!(found, Verdict::Destroyable);
        assert!(why.contains("all that is older than its retention (COMPLIANCE, 3 days)"), "{why}");
        // Without the right to ask for the bucket's settings it is the same.
        assert_eq!(of(no(), Outcome::Done, None).0, Verdict::Destroyable);
        let untried = "which could not be tried on any that is stored";
        let (found, why) = of(Outcome::Done, no(), Some(&lock));
        assert!(found == Verdict::Survives && !why.contains(untried), "{why}");
        for (unlocked, lock) in [(no(), Some(&lock)), (no(), None), (Outcome::NotTried(String::new()), None)]
        {
            let (found, why) = of(no(), unlocked, lock);
            assert!(found == Verdict::Survives && why.ends_with(untried), "{why}");
        }
        let none = Protection { lock: false, retention: None, ..lock };
        let (found, why) = of(no(), no(), Some(&none));
        assert!(found == Verdict::Survives && !why.contains(untried), "{why}");
    }
}
