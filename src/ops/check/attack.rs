//! `check --attack`: what somebody who has these credentials could destroy.
//!
//! ```text
//!  store::attack   tries it, on objects of its own ─► verdict: survives | destroyable | unknown
//! ```
//! A directory is not tried: whoever may write there may delete there. The verdict is about objects that are stored already. What the
//! credentials may do with the bucket itself is not seen, nor what a later `expire` does that believes a forged tombstone; both are in
//! docs/roles.md. Source of truth: REPOSITORY.md 2 and 4.

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
    /// Keys of the objects that could not be removed afterwards.
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
    (report.verdict, report.why) = verdict(&attack.tried);
    (report.tried, report.left_behind) = (attack.tried, attack.left_behind);
    Ok(report)
}

/// What follows from the attempts.
fn verdict(tried: &[Tried]) -> (Verdict, String) {
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
    let unclear = names(&|t| match (&t.outcome, &t.content) {
        (Outcome::Unclear(_), _) => true,
        (Outcome::Done, Content::Unknown(_)) => true,
        (Outcome::Done | Outcome::Refused(_) | Outcome::NotTried(_), _) => false,
    });
    if !unclear.is_empty() {
        return (Verdict::Unknown, format!("it cannot be said whether what is stored survives: {unclear}"));
    }
    let hidden = names(&|t| done(t) && t.content == Content::ByVersion);
    let survives = "what is stored survives who has these credentials";
    let why = match hidden.as_str() {
        "" => survives.to_owned(),
        hidden => format!("{survives}; what he hides ({hidden}) is brought back by its version"),
    };
    (Verdict::Survives, why)
}

/// An attempt in words.
pub const fn said(attempt: Attempt) -> &'static str {
    match attempt {
        Attempt::Overwrite => "overwrite",
        Attempt::Delete => "delete",
        Attempt::DeleteVersion => "delete by version",
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
        let (verdict, why) = verdict(&all);
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
        let (verdict, why) = verdict(&all);
        assert_eq!(verdict, Verdict::Survives);
        assert!(why.contains("(overwrite) is brought back"), "{why}");
    }

    #[test]
    fn a_yes_without_a_look_at_the_content_is_no_survival() {
        let unknown = || Content::Unknown("403".to_owned());
        let of = |outcome, content| verdict(&[tried(Attempt::Delete, outcome, content)]).0;
        assert_eq!(of(Outcome::Done, unknown()), Verdict::Unknown);
        assert_eq!(of(Outcome::Unclear("500".to_owned()), Content::Intact), Verdict::Unknown);
        // Nothing of its own to try it on, and a no all the same.
        assert_eq!(of(no(), unknown()), Verdict::Survives);
        assert_eq!(of(Outcome::Done, Content::Intact), Verdict::Survives);
    }
}
