//! `pitr check --attack`: a line for each attempt, and what follows from them.
//!
//! 0: what is stored survives who has these credentials; 2: it does not, or that cannot be said; 1: the store does not answer. With several
//! repositories the worst counts, and `--repository` asks about one.

use serde_json::{Value, json};

use crate::cli::args::Common;
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::output;
use crate::error::Result;
use crate::ops::check::Grade;
use crate::ops::check::attack::{AttackReport, attack, protection_text, said};
use crate::store::{Content, Outcome, Protection, Tried, Versions};

/// Attacks every chosen repository.
///
/// # Errors
/// If one does not answer; the others were asked, and shown.
pub async fn run(context: &Context, common: &Common) -> Result<Ended> {
    let (mut reports, mut failure) = (Vec::new(), None);
    for repository in &context.repositories()? {
        match attack(repository).await {
            Ok(report) => reports.push(report),
            Err(error) => {
                let error = error.context(format!("repository {}", repository.name()));
                if let Some(earlier) = failure.replace(error) {
                    output::warn(&earlier.report());
                }
            }
        }
    }
    if common.json {
        if !reports.is_empty() {
            let rows: Vec<Value> = reports.iter().map(json).collect();
            output::json(&json!({ "schema": "pitr.check-attack.v1", "repositories": rows }));
        }
    } else {
        output::say(&reports.iter().map(text).collect::<String>());
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let worst = reports.iter().map(|report| report.verdict.grade()).max();
    Ok(if worst.is_none_or(|grade| grade == Grade::Good) { Ended::Well } else { Ended::AtRisk })
}

fn text(report: &AttackReport) -> String {
    let mut text = format!("repository {} {}\n", report.repository, report.url);
    if let Some(protection) = &report.protection {
        text.push_str(&format!("the bucket: {}\n", protection_text(protection)));
    }
    for tried in &report.tried {
        let (outcome, reason) = outcome(&tried.outcome);
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        let (name, left) = (said(tried.attempt), content(tried));
        text.push_str(&format!("  {name:18} {outcome}{reason}; {left}\n"));
    }
    for key in &report.left_behind {
        text.push_str(&format!("left behind, may go: {key}\n"));
    }
    let word = if report.verdict.grade() == Grade::Good { "ok" } else { "at risk" };
    text.push_str(&format!("{word:8} {}\n", report.why));
    text
}

fn outcome(outcome: &Outcome) -> (&'static str, &str) {
    match outcome {
        Outcome::Refused(why) => ("refused", why),
        Outcome::Done => ("done", ""),
        Outcome::NotTried(why) => ("not tried", why),
        Outcome::Unclear(why) => ("unclear", why),
    }
}

fn content(tried: &Tried) -> String {
    match &tried.content {
        Content::Intact => "the content is as it was".to_owned(),
        Content::ByVersion => "the content can still be read by its version".to_owned(),
        Content::Gone => "THE CONTENT IS GONE".to_owned(),
        Content::Unknown(why) => format!("the content cannot be read: {why}"),
    }
}

fn json(report: &AttackReport) -> Value {
    let tried = report.tried.iter().map(|tried| {
        let (outcome, reason) = outcome(&tried.outcome);
        let content = match &tried.content {
            Content::Intact => "intact",
            Content::ByVersion => "by_version",
            Content::Gone => "gone",
            Content::Unknown(_) => "unknown",
        };
        json!({
            "tried": tried.attempt.name().replace('-', "_"),
            "object": tried.key,
            "outcome": outcome.replace(' ', "_"),
            "reason": (!reason.is_empty()).then_some(reason),
            "content": content,
        })
    });
    json!({
        "name": report.repository,
        "url": report.url,
        "bucket": report.protection.as_ref().map(bucket),
        "attempts": tried.collect::<Vec<_>>(),
        "left_behind": report.left_behind,
        "verdict": report.verdict.name(),
        "why": report.why,
    })
}

fn bucket(protection: &Protection) -> Value {
    let versions = match protection.versions {
        Versions::Kept => "kept",
        Versions::Suspended => "suspended",
        Versions::None => "none",
    };
    json!({ "versions": versions, "object_lock": protection.lock, "retention": protection.retention })
}
