//! pitr beside pgBackRest, walked as docs/from-pgbackrest.md says: one server, both archives, and each restores by itself.
//!
//! Debian's pgBackRest is real, and so is what it leaves: its own restore of its own repository is started and compared too.
#![cfg(feature = "testing")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use support::cluster::{Cluster, Install, Stop, as_server, give_to_server, run, scratch};
use support::site::{Site, SiteOptions, open, switch};

const ROWS: &str = "SELECT string_agg(n::text, ',' ORDER BY n) FROM t";

/// pgBackRest with a repository of its own.
struct Rest {
    place: tempfile::TempDir,
    conf: PathBuf,
}

impl Rest {
    fn new(cluster: &Cluster) -> Result<Self> {
        let place = scratch("pitr-rest-")?;
        let (at, conf) = (place.path().display(), place.path().join("pgbackrest.conf"));
        let text = format!(
            "[global]\nrepo1-path={at}/repository\nrepo1-retention-full=2\nlog-path={at}\nlock-path={at}/lock\nspool-path={at}/spool\n\
             log-level-console=error\nstart-fast=y\n[main]\npg1-path={}\npg1-socket-path={}\npg1-user=postgres\n",
            cluster.data.display(),
            cluster.socket.display(),
        );
        fs::write(&conf, text)?;
        give_to_server(&conf)?;
        Ok(Self { place, conf })
    }

    fn text(&self) -> String {
        format!("pgbackrest --config={} --stanza=main", self.conf.display())
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = as_server("pgbackrest")?;
        command.arg(format!("--config={}", self.conf.display())).arg("--stanza=main").args(args);
        run(command.current_dir(self.place.path()))
    }
}

fn installed() -> bool {
    Command::new("pgbackrest").arg("version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn both_archive_the_same_wal_and_each_brings_it_back() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    if !installed() {
        println!("SKIPPED needs pgbackrest; tests/setup.sh installs it");
        return Ok(());
    }
    let site =
        Site::new(&install, &SiteOptions { archives: false, segment_mib: 16, ..SiteOptions::default() })?;
    let rest = Rest::new(&site.cluster)?;
    let theirs = format!("{} archive-push %p", rest.text());
    let settings = format!("fsync = on\narchive_mode = on\narchive_command = '{theirs}'\n");
    site.cluster.append_conf("postgresql.conf", &settings)?;
    site.cluster.stop(Stop::Fast)?;
    site.cluster.start()?;
    rest.run(&["stanza-create"])?;
    site.cluster.psql("CREATE TABLE t AS SELECT 1 AS n")?;

    pgbackrest_is_not_taken_for_pitr_and_not_replaced(&site, &theirs)?;
    let ours = format!("{} --config {} archive-push %p", site.program().display(), site.config.display());
    site.cluster
        .psql(&format!("ALTER SYSTEM SET archive_command = '{theirs} && {ours}'; SELECT pg_reload_conf()"))?;
    let conninfo = site.cluster.conninfo();
    let again = site.json(&["init", "--superuser", &conninfo, "--apply", "--json"])?;
    let settings = again["settings"].to_string();
    ensure!(!settings.contains("archive_command") && settings.contains("archive_timeout"), "{again}");
    ensure!(site.cluster.psql("SHOW archive_command")? == format!("{theirs} && {ours}"), "both stay");
    site.ask(&["check"])?.expect(0, &[])?;
    rest.run(&["backup", "--type=full"])?;
    site.backup()?;
    site.cluster.psql("INSERT INTO t VALUES (2)")?;
    let name = switch(&site.cluster, |name| Ok(site.object(name)?.exists()))?;
    ensure!(holds(&rest.place.path().join("repository"), &name)?, "{name} is in pgBackRest's archive too");

    a_repository_that_is_away_holds_both_up(&site)?;
    let (copy, _) = site.restored(&["--to", "latest"])?;
    ensure!(copy.psql(ROWS)? == "1,2,3");
    copy.stop(Stop::Fast)?;
    let theirs = Cluster::around(&install)?;
    fs::create_dir_all(&theirs.data)?;
    give_to_server(&theirs.data)?;
    run(as_server("chmod")?.arg("700").arg(&theirs.data))?;
    rest.run(&[&format!("--pg1-path={}", theirs.data.display()), "--archive-mode=off", "restore"])?;
    open(&theirs)?;
    ensure!(theirs.psql(ROWS)? == "1,2,3");
    theirs.stop(Stop::Fast)
}

fn pgbackrest_is_not_taken_for_pitr_and_not_replaced(site: &Site, theirs: &str) -> Result<()> {
    let conninfo = site.cluster.conninfo();
    let refused = site.ask(&["init", "--superuser", &conninfo, "--apply"])?;
    refused.expect(9, &["another archiver is at work", &format!("{theirs} && "), "when the other may go"])?;
    ensure!(site.cluster.psql("SHOW archive_command")? == theirs, "it stays as it is");
    let check = site.ask(&["check"])?;
    ensure!(check.code != 0 && check.out.contains("does not run pitr"), "{check:?}");
    Ok(())
}

/// PostgreSQL keeps the segment and offers it to both again; neither minds what it has already.
fn a_repository_that_is_away_holds_both_up(site: &Site) -> Result<()> {
    let away = site.place().join("away");
    fs::rename(&site.repository, &away)?;
    site.cluster.psql("INSERT INTO t VALUES (3); SELECT pg_switch_wal()")?;
    site.cluster.wait_for("SELECT failed_count > 0 FROM pg_stat_archiver", "t")?;
    fs::rename(&away, &site.repository)?;
    switch(&site.cluster, |name| Ok(site.object(name)?.exists())).map(|_| ())
}

/// Is a file whose name begins with `name` below `dir`?
fn holds(dir: &Path, name: &str) -> Result<bool> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let found = if entry.file_type()?.is_dir() {
            holds(&entry.path(), name)?
        } else {
            entry.file_name().to_string_lossy().starts_with(name)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
