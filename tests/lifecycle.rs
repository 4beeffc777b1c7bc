//! The main promise on real servers of 13 to 18: back up under load, damage nothing, come back to exactly the moment asked for.
//!
//! A client keeps its own log of what it committed between which moments; pgbench writes beside it. Every restored server must hold
//! the rows that the log puts before the target, no more and no less, and no half transaction of pgbench. All restores of one test
//! come from one backup, so they also show that a restore changes nothing in the repository.

mod support;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pitr::wal::Lsn;
use serde_json::Value;
use support::cluster::{Cluster, Install, run};
use support::log::{CLOCK, Client, Commit, Load, assert_balanced, assert_rows, rows};
use support::site::{Site, SiteOptions};

/// How much of the matrix a major gets.
#[derive(Clone, Copy, PartialEq)]
enum Targets {
    All,
    TimeLsnLatest,
}

/// A cluster with a history: what was committed when, and the backup that all restores start from.
struct History {
    site: Site,
    client: Client,
    backup: Value,
    /// Its last row was committed before the backup began.
    early: Commit,
    /// Commits after the backup, far apart, with others between them.
    marks: Vec<Commit>,
    /// The last commit of all; a moment after it and before the archive's end.
    quiet: String,
}

impl History {
    fn make(install: &Install, targets: Targets) -> Result<Self> {
        let site = Site::new(install, &SiteOptions { segment_mib: 16, ..SiteOptions::default() })?;
        site.cluster.psql("CREATE EXTENSION amcheck")?;
        let load = Load::on(&site.cluster, 100)?;
        let mut client = Client::connect(&site.cluster, 1)?;
        let early = client.commits(10)?;
        let backup = client.during(|| site.backup())?;
        let mut marks = Vec::new();
        for n in 0..5 {
            marks.push(client.commits(8)?);
            if n == 2 {
                site.cluster.psql("SELECT pg_create_restore_point('noon')")?;
            }
            if n == 3 && targets == Targets::All {
                site.switch()?;
            }
        }
        load.end(&site.cluster)?;
        client.commits(3)?;
        let quiet = site.cluster.psql(&format!("SELECT {CLOCK}"))?;
        // A time in WAL after the last commit: so the archive covers the quiet moment.
        site.cluster.psql("SELECT pg_create_restore_point('end')")?;
        site.switch()?;
        Ok(Self { site, client, backup, early, marks, quiet })
    }

    /// Restores, opens, and compares.
    fn check(&self, what: &str, target: &[&str], expected: &[u64]) -> Result<Cluster> {
        let (copy, plan) = self.site.restored(target).with_context(|| what.to_owned())?;
        ensure!(plan["backup"] == self.backup["id"], "{what}: {plan}");
        assert_rows(&rows(&copy)?, expected, what)?;
        assert_balanced(&copy).with_context(|| what.to_owned())?;
        ensure!(copy.psql("SHOW archive_mode")? == "off", "{what}: a copy archives");
        amcheck(&copy)?;
        Ok(copy)
    }

    /// What the backup alone holds: commits that end at or before its stop.
    fn at_stop(&self) -> Result<(Vec<u64>, Vec<u64>)> {
        let stop: Lsn = self.backup["stop_lsn"].as_str().context("stop_lsn")?.parse()?;
        let surely = self.client.log.iter().filter(|c| c.after <= stop).map(|c| c.n).collect();
        let perhaps = self.client.log.iter().filter(|c| c.before < stop).map(|c| c.n).collect();
        Ok((surely, perhaps))
    }
}

/// `pg_amcheck` of this very major, where there is one.
fn amcheck(cluster: &Cluster) -> Result<()> {
    if cluster.install.own_tool("pg_amcheck").is_some() {
        run(cluster.client("pg_amcheck", "postgres")?.args(["--heapallindexed", "--no-dependent-indexes"]))?;
    }
    Ok(())
}

/// The server's own manifest against the restored directory, before a server changes it.
fn verify(site: &Site, copy: &Cluster, backup: &str) -> Result<()> {
    let manifest = site.folder()?.join("backups").join(backup).join("backup_manifest");
    let mut verify = support::cluster::as_server(site.cluster.install.tool("pg_verifybackup"))?;
    verify.arg("--no-parse-wal").arg("--manifest-path").arg(&manifest);
    // What a restore writes itself, or puts into effect (links of tablespaces).
    let own = [
        "postgresql.conf",
        "postgresql.auto.conf",
        "pg_hba.conf",
        "pg_ident.conf",
        "recovery.signal",
        "pitr.copy",
        "tablespace_map",
    ];
    for name in own {
        verify.args(["--ignore", name]);
        verify.args(["--ignore", &format!("{name}.source")]);
    }
    run(verify.arg(&copy.data)).map(drop)
}

fn life(major: u32, targets: Targets) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let history = History::make(&install, targets)?;
    let (site, client, marks) = (&history.site, &history.client, &history.marks);
    // The host is lost; nothing but restores touches the repository from here on.
    site.cluster.crash()?;
    let before = site.listing()?;
    refusals(&history)?;

    let up_to = |mark: &Commit| client.up_to(mark);
    history.check("a time between commits", &["--to", &marks[1].time], &up_to(&marks[1]))?;
    let lsn = marks[3].after.to_string();
    history.check("an LSN", &["--to-lsn", &lsn], &up_to(&marks[3]))?;
    let latest = history.check("latest", &[], &client.all())?;
    latest.psql("INSERT INTO ledger VALUES (1000000)")?;
    if targets == Targets::All {
        history.check("a time after the last commit", &["--to", &history.quiet], &client.all())?;
        let (xid, n) = (marks[2].xid.to_string(), marks[2].n);
        history.check("a transaction", &["--to-xid", &xid], &up_to(&marks[2]))?;
        let without: Vec<u64> = up_to(&marks[2]).into_iter().filter(|row| *row != n).collect();
        history.check("before a transaction", &["--to-before-xid", &xid], &without)?;
        history.check("a restore point", &["--to-name", "noon"], &up_to(&marks[2]))?;
        immediate(&history)?;
    }
    ensure!(site.listing()? == before, "restores and copies changed the repository");
    Ok(())
}

/// Targets that cannot be reached, and what is offered instead.
fn refusals(history: &History) -> Result<()> {
    let site = &history.site;
    let dir = site.place().join("nothing");
    let plan = |target: &[&str]| {
        let mut args =
            vec!["restore", "--copy", "--dry-run", "--target-dir", dir.to_str().unwrap_or_default()];
        args.extend(target);
        site.ask(&args)
    };
    plan(&["--to", "2099-01-01T00:00:00Z"])?.expect(4, &["not covered", "--to latest"])?;
    plan(&["--to", &history.early.time])?.expect(4, &["earliest moment"])?;
    plan(&["--to-xid", "4000000000"])?.expect(5, &["4000000000"])?;
    plan(&["--to-name", "midnight"])?.expect(5, &["midnight", "noon"])?;
    plan(&["--to-lsn", "FFFF/0"])?.expect(4, &["--to latest"])?;
    // The moments that `info` calls the first and the last can be restored, and it knows the backup.
    let info = site.json(&["info", "--json"])?;
    let repository = &info["repositories"][0];
    ensure!(info["schema"] == "pitr.info.v1" && repository["backups"][0]["restorable"] == true, "{info}");
    ensure!(repository["backups"][0]["id"] == history.backup["id"], "{info}");
    for end in ["earliest", "latest"] {
        let time = repository["window"][end].as_str().with_context(|| format!("{end}: {info}"))?;
        plan(&["--to", time, "--json"])?.expect(0, &[]).with_context(|| format!("{end}: {info}"))?;
    }
    ensure!(!dir.exists(), "a plan has written something");
    Ok(())
}

/// The first consistent moment: what was committed when the backup ended.
fn immediate(history: &History) -> Result<()> {
    let (copy, plan) = history.site.restore(&["--immediate"])?;
    let id = plan["backup"].as_str().context("backup")?;
    if copy.install.own_tool("pg_verifybackup").is_some() {
        verify(&history.site, &copy, id)?;
    }
    support::site::open(&copy)?;
    let (surely, perhaps) = history.at_stop()?;
    let found = rows(&copy)?;
    ensure!(
        found.starts_with(&surely) && perhaps.starts_with(&found),
        "immediate: {found:?}, not {surely:?}"
    );
    assert_balanced(&copy)?;
    amcheck(&copy)
}

#[test]
fn every_moment_of_13_can_be_restored() -> Result<()> {
    life(13, Targets::TimeLsnLatest)
}

#[test]
fn every_moment_of_14_can_be_restored() -> Result<()> {
    life(14, Targets::TimeLsnLatest)
}

#[test]
fn every_moment_of_15_can_be_restored() -> Result<()> {
    life(15, Targets::All)
}

#[test]
fn every_moment_of_16_can_be_restored() -> Result<()> {
    life(16, Targets::TimeLsnLatest)
}

#[test]
fn every_moment_of_17_can_be_restored() -> Result<()> {
    life(17, Targets::TimeLsnLatest)
}

#[test]
fn every_moment_of_18_can_be_restored() -> Result<()> {
    life(18, Targets::All)
}

/// P6. Nothing was committed after the backup, so no commit can mark the moment; a later sign of life covers it.
fn idle(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions::default())?;
    let mut client = Client::connect(&site.cluster, 1)?;
    client.commits(20)?;
    site.backup()?;
    let between = site.cluster.psql(&format!("SELECT {CLOCK}"))?;
    let (dir, target) = (site.place().join("nothing"), ["--to", between.as_str()]);
    // So far nothing shows that the archive reaches so far.
    let mut args = vec!["restore", "--dry-run", "--copy", "--target-dir", dir.to_str().context("a path")?];
    args.extend(target);
    site.ask(&args)?.expect(4, &["not covered"])?;
    site.cluster.psql("CHECKPOINT; SELECT pg_create_restore_point('a sign of life')")?;
    site.switch()?;
    let (copy, _) = site.restored(&target)?;
    assert_rows(&rows(&copy)?, &client.all(), "an idle database")?;
    let (copy, _) = site.restored(&[])?;
    assert_rows(&rows(&copy)?, &client.all(), "latest of an idle database")
}

#[test]
fn a_moment_of_an_idle_15_can_be_restored() -> Result<()> {
    idle(15)
}

#[test]
fn a_moment_of_an_idle_18_can_be_restored() -> Result<()> {
    idle(18)
}

/// What the restore prints is enough: the directory starts with the command it names, as it is, and `--finish` cleans up.
#[test]
fn a_restored_copy_starts_with_the_command_that_is_printed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions::default())?;
    let mut client = Client::connect(&site.cluster, 1)?;
    client.commits(5)?;
    site.backup()?;
    client.commits(5)?;
    site.switch()?;
    let (copy, plan) = site.restore(&[])?;
    let start = plan["start"].as_str().context("start")?;
    run(support::cluster::as_server("/bin/sh")?.args(["-c", &format!("{start} >/dev/null 2>&1")]))?;
    let conf = std::fs::read_to_string(copy.data.join("postgresql.conf"))?;
    let value = |name: &str| {
        let line = conf.lines().filter_map(|line| line.split_once(" = ")).rfind(|(key, _)| *key == name);
        line.map(|(_, value)| value.trim_matches(['\'', '"']).to_owned()).context(name.to_owned())
    };
    let (port, socket) = (value("port")?, value("unix_socket_directories")?);
    ensure!(Path::new(&socket).starts_with(copy.root()) || Path::new(&socket).is_absolute(), "{socket}");
    support::site::until(
        || {
            let mut psql = support::cluster::as_server(install.tool("psql"))?;
            psql.args(["-XqAt", "-h", &socket, "-p", &port, "-U", "postgres", "-d", "postgres"]);
            let answer = run(psql.args(["-c", "SELECT pg_is_in_recovery() OR count(*) <> 10 FROM ledger"]));
            Ok(answer.is_ok_and(|answer| answer.trim() == "f"))
        },
        || format!("it does not open; {start}\n{conf}"),
    )?;
    let target = copy.data.display().to_string();
    let finished = site.json(&["restore", "--finish", "--target-dir", &target, "--json"])?;
    ensure!(finished["finished"] == true && finished["changed"] == true, "{finished}");
    let auto = std::fs::read_to_string(copy.data.join("postgresql.auto.conf"))?;
    ensure!(!auto.contains("restore_command") && !auto.contains("recovery_target"), "{auto}");
    Ok(())
}
