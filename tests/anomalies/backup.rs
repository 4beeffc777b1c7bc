//! `backup` and `info`: the server is real and shared by all rounds, the repository is the directory that it archives into.
//!
//! A backup is whole or not there. What was taken is judged file by file with the server's own manifest.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Result, ensure};
use pitr::error::Error;
use pitr::ops::Progress;
use pitr::ops::backup::{BackupRequest, WAL_PATIENCE, backup};
use pitr::pgwire::{Checkpoint, ConnInfo, Deadlines, Environment};
use pitr::repo::Repository;
use pitr::store::{Store, StoreOptions};
use tokio_util::sync::CancellationToken;

use super::archive::Info;
use super::support::audit::{Auditor, Objects, objects_in};
use super::support::cluster::Install;
use super::support::site::small_site;
use super::{Command, Said, survive, survive_apart, wait};

/// Backups that run at a time.
const WORLDS: usize = 3;

/// A directory as a store; new files belong to whom it belongs to.
pub fn store_at(repository: &Path) -> Result<Store> {
    let url = format!("file://{}", repository.display());
    let owner = pitr::durable::Owner::of(repository)?.to_give();
    Ok(Store::open(&url.parse()?, &StoreOptions { owner, ..StoreOptions::default() })?)
}

/// What a backup had to say on its way.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Progress for Notes {
    fn begin(&self, _phase: &str, _total: Option<u64>) {}
    fn total(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}

    fn note(&self, text: &str) {
        self.all().push(text.to_owned());
    }
}

struct Backup {
    /// Its repository, into which the server archives too.
    repository: PathBuf,
    request: BackupRequest,
    notes: Notes,
    /// Complete backups before this round.
    before: usize,
}

/// Complete backups by their verdicts.
fn complete(objects: &Objects) -> usize {
    let verdicts = objects.iter().filter(|(key, _)| key.ends_with("/backup.json"));
    verdicts.filter(|(_, bytes)| String::from_utf8_lossy(bytes).contains("\"complete\"")).count()
}

impl Backup {
    /// As expiry would: a hundred backups would be read again for every audit. The newest is the one the next run finds.
    fn forget_all_but_the_newest(&self) -> Result<()> {
        let cluster = std::fs::read_dir(self.repository.join("main"))?.flatten();
        let folders = cluster.filter_map(|entry| std::fs::read_dir(entry.path().join("backups")).ok());
        let mut backups = folders.flatten().map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        backups.sort_by_key(|path| path.metadata().and_then(|found| found.created()).ok());
        backups.pop();
        backups.iter().try_for_each(|backup| Ok(std::fs::remove_dir_all(backup)?))
    }
}

impl Command for Backup {
    fn name(&self) -> String {
        "backup".into()
    }

    fn least_calls(&self) -> usize {
        12
    }

    fn world(&mut self) -> Result<Store> {
        self.forget_all_but_the_newest()?;
        self.before = complete(&objects_in(&self.repository)?);
        self.notes.all().clear();
        store_at(&self.repository)
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let done = wait(false, backup(&self.request, &[repository], &self.notes, &CancellationToken::new()));
        done.map(|_| Said::Done)
    }

    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()> {
        // The auditor has taken every complete one apart: here only that a yes is one.
        ensure!(said.is_err() || complete(after) > self.before, "a yes without a verdict");
        if let Err(error) = said {
            ensure!(error.exit_code() != 8, "the one before was taken for a living one: {}", error.report());
        }
        Ok(())
    }

    /// Where the server's archiver is late, it stores what it waits for itself, and says what hinders it. The archiver may come yet.
    fn can_do_without(&self, call: &str) -> bool {
        let Some((_, file)) = call.split_once("/wal/").and_then(|(_, key)| key.rsplit_once('/')) else {
            return false;
        };
        let hindered = format!("cannot store {} from", file.trim_end_matches(".wal"));
        self.notes.all().iter().any(|note| note.starts_with(&hindered))
    }

    fn believes_a_lie(&self) -> bool {
        true
    }
}

#[test]
fn whatever_call_of_backup_fails_it_is_whole_or_not_there() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let request = BackupRequest {
        conninfo: ConnInfo::parse(&site.cluster.conninfo(), &Environment::default())?,
        deadlines: Deadlines::default(),
        data_dir: Some(site.cluster.data.clone()),
        label: "anomalies".into(),
        checkpoint: Checkpoint::Fast,
        max_rate: None,
        wal_patience: WAL_PATIENCE,
    };
    // Every segment is archived into all of them, and each has a backup of its own running.
    let repositories: Vec<PathBuf> = (0..WORLDS).map(|n| site.place().join(format!("repo-{n}"))).collect();
    let section = |(n, path): (usize, &PathBuf)| {
        format!("[[repository]]\nname = \"main-{n}\"\nurl = \"file://{}\"\n", path.display())
    };
    site.write_config(&repositories.iter().enumerate().map(section).collect::<String>())?;
    site.json(&["init", "--json"])?;
    let worlds = repositories.into_iter().map(|repository| {
        let auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
        (Backup { repository, request: request.clone(), notes: Notes::default(), before: 0 }, auditor)
    });
    let auditors = survive_apart(worlds.collect())?;
    let whole: usize = auditors.iter().map(Auditor::whole_backups).sum();
    ensure!(whole > 50, "{whole} backups were taken");
    Ok(())
}

#[test]
fn whatever_call_of_info_fails_it_shows_all_or_nothing() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    site.backup()?;
    site.switch()?;
    let mut auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
    survive(&mut Info::new(objects_in(&site.repository)?), &mut auditor)
}
