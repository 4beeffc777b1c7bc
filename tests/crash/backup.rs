//! `backup`: whole or not there, and the next one succeeds at once, because the lease of a dead process does not hold it up.
//!
//! What was taken is judged file by file with the server's own manifest, and the last one is restored and started.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::support::audit::{Auditor, Objects, objects_in};
use super::support::cluster::Install;
use super::support::site::{Answer, Site, small_site};
use super::{KILLED, Point, Work, age, kill_at_each};

struct Backup<'a> {
    site: &'a Site,
    auditor: Auditor,
    before: Objects,
}

/// Identifiers of complete backups, by their verdicts.
fn complete(objects: &Objects) -> BTreeSet<String> {
    let verdicts =
        objects.iter().filter(|(_, bytes)| String::from_utf8_lossy(bytes).contains("\"complete\""));
    verdicts
        .filter_map(|(key, _)| Some(key.strip_suffix("/backup.json")?.rsplit('/').next()?.to_owned()))
        .collect()
}

impl Backup<'_> {
    fn folders(&self) -> Result<Vec<PathBuf>> {
        let dir = self.site.folder()?.join("backups");
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }
}

impl Work for Backup<'_> {
    fn name(&self) -> String {
        "backup".into()
    }

    fn least(&self, _: Point) -> u64 {
        12
    }

    /// As expiry would: dozens of backups would be read again for every audit. The newest is the one the next run finds.
    fn world(&mut self) -> Result<()> {
        let mut folders = self.folders()?;
        folders.sort_by_key(|path| path.metadata().and_then(|found| found.created()).ok());
        folders.pop();
        folders.iter().try_for_each(fs::remove_dir_all)?;
        self.before = objects_in(&self.site.repository)?;
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        self.site.pitr(&["backup"])
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let after = objects_in(&self.site.repository)?;
        self.auditor.check(&self.before, &after)?;
        let whole = complete(&after);
        ensure!(
            answer.code == KILLED || whole.len() > complete(&self.before).len(),
            "a yes without a verdict"
        );
        let info = self.site.json(&["info", "--json"])?;
        for listed in info["repositories"][0]["backups"].as_array().context("backups")? {
            let id = listed["id"].as_str().context("an id")?;
            ensure!(
                listed["restorable"] != true || whole.contains(id),
                "{id} is listed and not whole: {info}"
            );
        }
        self.before = after;
        Ok(())
    }
}

#[test]
fn a_backup_is_whole_or_not_there_wherever_it_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    let auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
    let mut work = Backup { site: &site, auditor, before: Objects::new() };
    // Its calls that create are steps of `file://` too; reading calls differ only in what came before them.
    for point in [Point::Call, Point::Step] {
        kill_at_each(&mut work, point)?;
    }
    ensure!(work.auditor.whole_backups() > 20, "{} backups were taken", work.auditor.whole_backups());
    let (copy, _) = site.restored(&["--backup", complete(&work.before).last().context("a backup")?])?;
    ensure!(copy.psql("SELECT count(*) FROM t")? == "1000");
    lease_of_another_host_runs_out(&site)
}

/// On the host of the dead process its lease counts for nothing; elsewhere it does until it has shown no life for a quarter of an hour.
fn lease_of_another_host_runs_out(site: &Site) -> Result<()> {
    let mut command = site.pitr(&["backup"])?;
    let killed = Answer::of(command.env("PITR_TEST_FAULTS", "kill@create/pack-:1"))?;
    ensure!(killed.code == KILLED, "{killed:?}");
    let leases = fs::read_dir(site.folder()?.join("leases"))?.flatten().map(|entry| entry.path());
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u32>().ok();
    let lease = &leases.max_by_key(number).context("a lease")?;
    let text = fs::read_to_string(lease)?;
    let mut document: serde_json::Value = serde_json::from_str(&text)?;
    document["process"]["host"] = "elsewhere".into();
    document.as_object_mut().context("an object")?.remove("sum");
    fs::write(lease, serde_json::to_vec_pretty(&document)?)?;
    site.ask(&["backup"])?.expect(8, &["elsewhere"])?;
    age(&site.folder()?.join("leases"), Duration::from_secs(16 * 60))?;
    age(&site.folder()?.join("backups"), Duration::from_secs(16 * 60))?;
    site.ask(&["backup"])?.expect(0, &[])
}
