//! `restore`: whole, or a directory that PostgreSQL refuses; repeated, it succeeds over what it left.
//!
//! A restore is compared file by file with one that met no fault, and that one is started: its rows are the oracle.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use pitr::error::Error;
use pitr::ops::Silent;
use pitr::ops::facts::Archive;
use pitr::ops::plan::{PlanRequest, RecoveryTarget};
use pitr::ops::restore::stored::StoredBackup;
use pitr::ops::restore::{self, Purpose, Request};
use pitr::pgdata::recovery::Action;
use pitr::repo::Repository;
use pitr::store::Store;
use tokio_util::sync::CancellationToken;

use super::backup::store_at;
use super::support::audit::{Auditor, Objects};
use super::support::cluster::{Install, scratch_in_memory};
use super::support::restored::Restored;
use super::support::site::{Site, small_site};
use super::support::tree::{Tree, differ, tree, without_own};
use super::{Command, Said, survive_apart, wait};

/// Restores that run at a time.
const WORLDS: usize = 3;

struct Restore<'a> {
    site: &'a Site,
    target: PathBuf,
    /// A restore without faults.
    good: &'a Tree,
}

async fn run(site: &Site, repository: &Repository, target: &Path) -> Result<(), Error> {
    let now = jiff::Timestamp::now();
    let none =
        || Error::not_found("repository main holds nothing of this cluster").hint("is the disk mounted?");
    let system = repository.open_current().await?.ok_or_else(none)?;
    let mut archive = Archive::read(&system).await?;
    let plan = archive.plan(&PlanRequest::new(RecoveryTarget::Latest)).await?;
    let verdict = archive.backup(&plan.backup).cloned().ok_or_else(none)?;
    let request = Request {
        target_dir: target.to_owned(),
        purpose: Some(Purpose::Copy),
        move_aside: false,
        moves: Vec::new(),
        action: Action::Promote,
    };
    let around = restore::Site {
        binary: site.program().to_owned(),
        config: Some(site.config.clone()),
        keys: restore::settings::KeyFlags::default(),
        data_dir: Some(site.cluster.data.clone()),
        bin_dir: Some(site.cluster.install.bin.clone()),
        rpo: std::time::Duration::from_secs(300),
        now,
    };
    let stored = StoredBackup::new(archive.system.clone(), verdict);
    let prepared = restore::prepare(stored, plan, Purpose::Copy, &request, &around).await?;
    restore::perform(&prepared, 2, now, &CancellationToken::new(), &Silent).await.map(drop)
}

impl Command for Restore<'_> {
    fn name(&self) -> String {
        "restore".into()
    }

    fn least_calls(&self) -> usize {
        15
    }

    fn world(&mut self) -> Result<Store> {
        if self.target.exists() {
            fs::remove_dir_all(&self.target)?;
        }
        store_at(&self.site.repository)
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        // Repeated after a success it would be refused, as it should.
        if self.target.join("global/pg_control").exists() {
            return Ok(Said::Done);
        }
        wait(false, run(self.site, &repository, &self.target)).map(|()| Said::Done)
    }

    fn audit(&self, said: &Result<Said, Error>, _: &Objects) -> Result<()> {
        let startable = self.target.join("global/pg_control").exists();
        ensure!(said.is_err() || startable, "a yes, and there is no pg_control");
        if startable {
            let wrong = differ(self.good, &without_own(tree(&self.target)?));
            ensure!(wrong.is_empty(), "it could start, and differs: {wrong:?}");
        }
        Ok(())
    }

    /// Credentials that may only read restore too; the report then says that nothing keeps the backup from expiring.
    fn can_do_without(&self, call: &str) -> bool {
        call.starts_with("create") && call.contains("/pins/")
    }

    fn believes_a_lie(&self) -> bool {
        true
    }
}

#[test]
fn whatever_call_of_restore_fails_nothing_half_restored_can_start() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    site.cluster.psql("CREATE TABLE later AS SELECT 42 AS n")?;
    site.switch()?;
    let place = scratch_in_memory("pitr-restored-")?;
    let reference = place.path().join("reference");
    let plain = super::repository(store_at(&site.repository)?)?;
    wait(false, run(&site, &plain, &reference)).map_err(|error| anyhow::anyhow!(error.report()))?;
    let good = without_own(tree(&reference)?);
    let server = Restored::start_copy(&install, &reference)?.promoted()?;
    ensure!(server.psql("SELECT count(*) || ' ' || (SELECT n FROM later) FROM t")? == "1000 42");
    drop(server);
    let worlds = (0..WORLDS).map(|n| {
        let target = place.path().join(format!("target-{n}"));
        let auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
        (Restore { site: &site, target, good: &good }, auditor)
    });
    survive_apart(worlds.collect()).map(drop)
}
