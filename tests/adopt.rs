//! `pitr init --adopt` on real servers: a restored copy that was promoted becomes a primary of its own.
//!
//! What it archives afterwards, and its backups, restore; a second copy on the same timeline damages nothing. The oracles are rows and the
//! files of the repository. Rule: RECOVERY 8.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::cluster::{Cluster, Install, Stop, as_server, give_to_server};
use support::site::{Answer, Site, settle, small_site, switch};

/// What is archived with, as the server has it.
const SETTING: &str = "SELECT setting FROM pg_settings WHERE name = 'archive_command'";

/// A promoted copy, and the configuration that is to be its own.
struct Promoted<'a> {
    site: &'a Site,
    copy: Cluster,
    config: PathBuf,
}

impl<'a> Promoted<'a> {
    fn new(site: &'a Site, name: &str) -> Result<Self> {
        let (copy, _) = site.restored(&[])?;
        Self::around(site, copy, name)
    }

    fn around(site: &'a Site, copy: Cluster, name: &str) -> Result<Self> {
        let config = site.place().join(format!("{name}.toml"));
        let text = format!(
            "cluster = \"main\"\ntimezone = \"UTC\"\n[postgres]\nconninfo = \"{}\"\ndata_dir = \"{}\"\nbin_dir = \"{}\"\n\
             [[repository]]\nname = \"local\"\nurl = \"file://{}\"\n",
            copy.conninfo(),
            copy.data.display(),
            copy.install.bin.display(),
            site.repository.display(),
        );
        fs::write(&config, text)?;
        give_to_server(&config)?;
        Ok(Self { site, copy, config })
    }

    fn pitr(&self, args: &[&str]) -> Result<Answer> {
        let mut command = as_server(self.site.program())?;
        Answer::of(command.current_dir(&self.copy.data).arg("--config").arg(&self.config).args(args))
    }

    fn adopt(&self) -> Result<Answer> {
        self.pitr(&["init", "--superuser", &self.copy.conninfo(), "--adopt", "--json"])
    }

    fn is_marked(&self) -> bool {
        self.copy.data.join("pitr.copy").exists()
    }
}

fn json(answer: &Answer) -> Result<Value> {
    ensure!(answer.code == 0, "{answer:?}");
    serde_json::from_str(&answer.out).with_context(|| format!("{answer:?}"))
}

fn adopted(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    site.switch()?;
    let new = Promoted::new(&site, "new")?;
    ensure!(new.is_marked() && new.copy.psql("SHOW archive_mode")? == "off");
    new.copy.psql("CREATE TABLE new AS SELECT 7 AS n")?;
    new.pitr(&["backup"])?.expect(9, &["copy", "--adopt"])?;

    let done = json(&new.adopt()?)?;
    ensure!(done["adopted"] == serde_json::json!(["00000002.history"]), "{done}");
    ensure!(done["restart_needed"] == true && !new.is_marked(), "{done}");
    let history = site.folder()?.join("wal/00000002.history");
    ensure!(history.exists(), "the history is stored before a segment can be");
    new.copy.stop(Stop::Fast)?;
    new.copy.start()?;
    new.copy.psql("INSERT INTO new VALUES (8)")?;
    let segment = switch(&new.copy, |name| Ok(site.object(name)?.exists()))?;
    ensure!(segment.starts_with("00000002"), "{segment}");
    // The original goes on, on its own timeline.
    site.cluster.psql("CREATE TABLE old AS SELECT 1 AS n")?;
    ensure!(site.switch()?.starts_with("00000001"));

    let backup = json(&new.pitr(&["backup", "--full", "--json"])?)?;
    ensure!(backup["timeline"] == 2, "{backup}");
    new.copy.psql("INSERT INTO new VALUES (9)")?;
    switch(&new.copy, |name| Ok(site.object(name)?.exists()))?;
    let rows = |cluster: &Cluster| cluster.psql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM new");
    let (from_new_backup, _) = site.restored(&[])?;
    ensure!(rows(&from_new_backup)? == "7 8 9", "the newest timeline, from its own backup");
    // The copy's WAL continues the original's backup too.
    let listed = site.json(&["info", "--json"])?;
    let backups = listed["repositories"][0]["backups"].as_array().context("backups")?;
    let first = backups.iter().filter_map(|b| b["id"].as_str()).min().context("the first backup")?;
    let (from_old_backup, _) = site.restored(&["--backup", first])?;
    ensure!(rows(&from_old_backup)? == "7 8 9", "the newest timeline, from the original's backup");
    ensure!(json(&new.adopt()?)?["restart_needed"] == false, "once more changes nothing");
    Ok(())
}

#[test]
fn a_promoted_copy_becomes_a_primary_whose_wal_and_backups_count_13() -> Result<()> {
    adopted(13)
}

#[test]
fn a_promoted_copy_becomes_a_primary_whose_wal_and_backups_count_18() -> Result<()> {
    adopted(18)
}

#[test]
fn of_two_copies_promoted_to_one_timeline_only_one_archives() -> Result<()> {
    let Some(install) = Install::find_or_skip(16) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    let early = site.cluster.psql("SELECT pg_create_restore_point('early')")?;
    site.cluster.psql("CREATE TABLE later AS SELECT 1 AS n")?;
    site.switch()?;
    let first = Promoted::new(&site, "first")?;
    let twin = Promoted::new(&site, "twin")?;
    let (copy, _) = site.restored(&["--to-name", "early"])?;
    let other = Promoted::around(&site, copy, "other")?;
    json(&first.adopt()?)?;

    // It parted from its parent elsewhere: its history says so.
    let (before, setting) = (site.listing()?, other.copy.psql(SETTING)?);
    other.adopt()?.expect(9, &["00000002.history", "two servers"]).context(early)?;
    ensure!(other.is_marked(), "its mark is gone, and its history is another's");
    ensure!(other.copy.psql(SETTING)? == setting);
    ensure!(site.listing()? == before);

    // Two that ended at the same record have the same history; what they write then differs.
    json(&twin.adopt()?)?;
    let fill = |one: &Promoted, n: u32| -> Result<PathBuf> {
        one.copy.psql(&format!("CREATE TABLE mine AS SELECT {n} AS n"))?;
        let segment = one.copy.psql("SELECT pg_walfile_name(pg_switch_wal())")?;
        Ok(one.copy.data.join("pg_wal").join(segment))
    };
    let (ours, theirs) = (fill(&first, 1)?, fill(&twin, 2)?);
    ensure!(ours.file_name() == theirs.file_name(), "{} {}", ours.display(), theirs.display());
    first.pitr(&["archive-push", &ours.display().to_string()])?.expect(0, &[])?;
    let before = site.listing()?;
    twin.pitr(&["archive-push", &theirs.display().to_string()])?.expect(9, &["differ"])?;
    ensure!(site.listing()? == before);
    Ok(())
}

#[test]
fn a_copy_still_in_recovery_is_not_adopted() -> Result<()> {
    let Some(install) = Install::find_or_skip(16) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    site.switch()?;
    let (copy, _) = site.restore(&["--action", "pause"])?;
    settle(&copy)?;
    copy.start()?;
    let paused = Promoted::around(&site, copy, "paused")?;
    paused.copy.wait_for("SELECT pg_is_in_recovery()", "t")?;
    let before = site.listing()?;
    paused.adopt()?.expect(9, &["in recovery", "promote"])?;
    ensure!(paused.is_marked() && site.listing()? == before);
    Ok(())
}
