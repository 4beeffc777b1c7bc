//! `check`: is what was promised still true right now? Fast, and safe to run from cron.
//!
//! ```text
//!  settings     archive_mode, archive_command, archive_timeout against the RPO, and what else can undermine archiving
//!  live         the archiver's own account of itself, its queue against the RPO, the room that pg_wal has left
//!  repository   identity, format, a race of creates; wraps and age of its keys
//!  stored       a complete backup, and every segment from it to the newest one that the server archived
//!  round trip   one real segment: pushed by the server, fetched, compared with the server's file
//! ```
//! Every finding names the thing and the next command. "At risk" is what works now and will not for long; "failed" is what does not
//! work. Nothing is changed but one WAL switch on an idle server, and probe objects that are deleted again.

pub mod attack;
mod keys;
pub mod live;
pub mod room;
pub mod settings;
mod stored;

use std::path::Path;
use std::time::Duration;

use crate::clock::{self, Clock as _, SystemClock};
use crate::error::{Error, Result};
use crate::ops::init::{self, facts::ServerFacts, facts::failed};
use crate::pgwire::Sql;
use crate::repo::{Repository, System};
use crate::wal::{SegmentName, WalFileName};

/// How long a switched segment may take to be archived before that is a finding.
const ARCHIVER_PATIENCE: Duration = Duration::from_secs(30);
/// How long an optional repository may be behind a required one without being so.
const OPTIONAL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Works now, and a promise is in danger.
    Risk,
    /// Does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub grade: Grade,
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What to do, if anything.
    pub hint: Option<String>,
}

impl Finding {
    fn new(grade: Grade, what: &str, found: impl Into<String>) -> Self {
        Self { grade, what: what.to_owned(), found: found.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failure as a finding.
    pub fn failed(what: &str, error: &Error) -> Self {
        let found = error
            .report()
            .lines()
            .filter(|l| !l.starts_with("HINT"))
            .map(str::trim)
            .collect::<Vec<_>>()
            .join("; ");
        let finding = Self::new(Grade::Bad, what, found.trim_start_matches("error: "));
        match error.advice() {
            Some(hint) => finding.hint(hint),
            None => finding,
        }
    }
}

/// Checks one repository: identity, format, and whether it keeps conditional creates.
pub async fn repository(repository: &Repository, facts: Option<&ServerFacts>) -> Vec<Finding> {
    let what = format!("repository {}", repository.name());
    let mut found = Vec::new();
    let system = match identity(repository, facts).await {
        Ok(system) => system,
        Err(e) => {
            found.push(Finding::failed(&what, &e));
            return found;
        }
    };
    match init::probe(repository).await {
        Ok(_) if repository.store().is_unsafe() => {
            found.push(Finding::new(
                Grade::Risk,
                &what,
                "DEGRADED: it keeps no conditional creates, a second writer could go unseen",
            ));
        }
        Ok(left) => {
            let stays = left.map_or_else(String::new, |key| {
                format!("; nothing can be deleted, so {key} stays, which may go")
            });
            let url = repository.store().url();
            let text = format!("{url}: writes, reads, one winner of a race{stays}");
            found.push(Finding::new(Grade::Good, &what, text));
            found.extend(bucket(repository).await);
        }
        Err(e) => found.push(Finding::failed(&what, &e)),
    }
    if system.seal_key().is_some() {
        found.extend(keys::repository(repository, SystemClock.now()).await);
    }
    let archived =
        facts.filter(|_| repository.is_required()).and_then(|facts| facts.archiver.newest_segment());
    found.extend(stored::look(&system, archived).await);
    found
}

/// What a bucket does with what is overwritten or deleted. Who may not ask for its settings is none the worse for it.
async fn bucket(repository: &Repository) -> Option<Finding> {
    let text = match repository.store().protection().await {
        Ok(protection) => attack::protection_text(&protection?),
        Err(e) => format!("versions and object lock are not known: {}", e.cause),
    };
    Some(Finding::new(Grade::Good, &format!("bucket of {}", repository.name()), text))
}

async fn identity(repository: &Repository, facts: Option<&ServerFacts>) -> Result<System> {
    repository.check_writable().await?;
    match facts {
        Some(facts) => repository.open(facts.system).await.map_err(Error::from),
        None => repository.open_current().await?.ok_or_else(|| {
            Error::not_found(format!("it holds no cluster {}", repository.cluster()))
                .hint("`pitr init` creates it")
        }),
    }
}

/// One real segment, there and back: the newest archived one, else one that the server is made to switch.
pub async fn round_trip(sql: &mut Sql, facts: &ServerFacts, repositories: &[Repository]) -> Finding {
    match try_round_trip(sql, facts, repositories).await {
        Ok(finding) => finding,
        Err(e) => Finding::failed("round trip", &e),
    }
}

async fn try_round_trip(sql: &mut Sql, facts: &ServerFacts, repositories: &[Repository]) -> Result<Finding> {
    if facts.in_recovery && facts.archiver.last_archived.is_none() {
        let text = "not tried: a standby archives nothing";
        return Ok(
            Finding::new(Grade::Good, "round trip", text).hint("run `pitr check` against its primary too")
        );
    }
    let Some(name) = archived_segment(sql, facts).await? else {
        return Ok(Finding::new(
            Grade::Bad,
            "round trip",
            format!("no segment was archived within {} s", ARCHIVER_PATIENCE.as_secs()),
        )
        .hint("the server's log shows what archive-push said"));
    };
    for repository in repositories.iter().filter(|r| r.is_required()) {
        let system = repository.open(facts.system).await?;
        let fetched = system.fetch_wal_to_check(WalFileName::Segment(name)).await?.ok_or_else(|| {
            Error::failed(format!(
                "the server archived {name}, but repository {} does not have it",
                repository.name()
            ))
            .hint("archive_command reaches another repository, or answers yes without storing")
        })?;
        let file =
            facts.data_dir.as_deref().unwrap_or_else(|| Path::new("")).join("pg_wal").join(name.to_string());
        // Not there any more: recycled. Its digest is checked all the same.
        let own = std::fs::read(&file).ok();
        let compared = tokio::task::spawn_blocking(move || {
            if fetched.can_open() {
                return fetched.plain().map(|plain| own.is_none_or(|own| own == plain));
            }
            // Without a key its tag still tells whether it is this file.
            fetched.check_stored().map(|()| own.is_none_or(|own| fetched.holds(&own)))
        });
        let same = compared.await.map_err(|e| Error::failed("reading was cut off").source(e))??;
        if !same {
            return Err(Error::corrupt(format!(
                "{name} in repository {} differs from the server's file",
                repository.name()
            )));
        }
    }
    let text = format!("{name} comes back as it was archived");
    let lacking = lacking(name, facts, repositories).await;
    if lacking.is_empty() {
        return Ok(Finding::new(Grade::Good, "round trip", text));
    }
    let text = format!("{text}; optional repository {} does not have it", lacking.join(", "));
    Ok(Finding::new(Grade::Risk, "round trip", text)
        .hint("`pitr agent` stores there what it lacks; without an agent nobody does"))
}

/// Optional repositories that do not hold the segment, nor get it while one waits. Of one that cannot be asked, more is said elsewhere.
async fn lacking(name: SegmentName, facts: &ServerFacts, repositories: &[Repository]) -> Vec<String> {
    let mut found = Vec::new();
    for repository in repositories.iter().filter(|repository| !repository.is_required()) {
        let Ok(system) = repository.open(facts.system).await else { continue };
        let mut waited = Duration::ZERO;
        while matches!(system.segment_header(name).await, Ok(None)) {
            if waited >= OPTIONAL_PATIENCE {
                found.push(repository.name().to_owned());
                break;
            }
            clock::sleep(LOOK).await;
            waited = waited.saturating_add(LOOK);
        }
    }
    found
}

async fn archived_segment(sql: &mut Sql, facts: &ServerFacts) -> Result<Option<SegmentName>> {
    let newest = facts.archiver.newest_segment();
    if newest.is_some() || facts.in_recovery {
        return Ok(newest);
    }
    // Nothing was ever archived: a restore point gives an idle server something to switch.
    sql.one("select pg_create_restore_point('pitr check')").await.map_err(failed)?;
    sql.one("select pg_switch_wal()").await.map_err(failed)?;
    let mut waited = Duration::ZERO;
    while waited < ARCHIVER_PATIENCE {
        let last = sql.one("select last_archived_wal from pg_stat_archiver").await.map_err(failed)?;
        if let Some(name) = last.as_deref().and_then(|n| SegmentName::parse(n).ok()) {
            return Ok(Some(name));
        }
        clock::sleep(LOOK).await;
        waited = waited.saturating_add(LOOK);
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
