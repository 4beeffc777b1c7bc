//! A standby that lives from the archive alone, as one does whose primary is out of reach: it asks for the next segment again and again at the
//! end of WAL, gets each as soon as it is there, is stopped and started, and promoted.
//!
//! Real servers; the oracle are the primary's rows. What was fetched ahead for it is gone when it is.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use support::agent::{Agent, configure, own_repository};
use support::cluster::{Cluster, Install, Stop, give_to_server};
use support::recovering::{SPOOL, archived};
use support::site::{Site, settle, until};

const ROWS: &str = "SELECT count(*), sum(n), md5(string_agg(text, '' ORDER BY n)) FROM t";

/// An agent for the copy, which has the configuration to itself: the primary goes by another file.
fn agent_of(site: &Site, copy: &Cluster) -> Result<Agent> {
    let primary = site.place().join("primary.toml");
    fs::copy(&site.config, &primary)?;
    give_to_server(&primary)?;
    let command = site.cluster.psql("SHOW archive_command")?;
    let command = command.replace(&site.config.display().to_string(), &primary.display().to_string());
    let command = command.replace('\'', "''");
    site.cluster.psql(&format!("ALTER SYSTEM SET archive_command = '{command}'"))?;
    site.cluster.psql("SELECT pg_reload_conf()")?;
    configure(site, &own_repository(site))?;
    let text = fs::read_to_string(&site.config)?;
    let (own, its) = (site.cluster.data.display().to_string(), copy.data.display().to_string());
    fs::write(&site.config, text.replace(&own, &its))?;
    Agent::start(site)
}

/// Follows three times, is stopped and started, follows, is promoted. `agent`: one of its own answers it.
fn follows(install: &Install, agent: bool) -> Result<()> {
    let (site, _) = archived(install, 1000)?;
    site.backup()?;
    let (copy, _) = site.restore(&[])?;
    fs::rename(copy.data.join("recovery.signal"), copy.data.join("standby.signal"))?;
    settle(&copy)?;
    copy.append_conf("postgresql.conf", "wal_retrieve_retry_interval = '200ms'\n")?;
    let spool = copy.data.join(SPOOL);
    let beside = if agent { Some(agent_of(&site, &copy)?) } else { None };
    copy.start()?;
    let mut from = 1000;
    let mut grows = |rows: u32| -> Result<String> {
        let (first, last) = (from + 1, from + rows);
        from = last;
        let values = format!("SELECT n, md5(n::text) FROM generate_series({first}, {last}) n");
        site.cluster.psql(&format!("INSERT INTO t {values}"))?;
        site.switch()?;
        site.cluster.psql(ROWS)
    };
    // Some segments at once, and one alone, which it waits for.
    for rows in [60_000, 10, 10] {
        copy.wait_for(ROWS, &grows(rows)?)?;
    }
    copy.stop(Stop::Fast)?;
    if !agent {
        until(|| Ok(!spool.exists()), || format!("{} stays", spool.display()))?;
    }
    let meanwhile = grows(60_000)?;
    copy.start()?;
    copy.wait_for(ROWS, &meanwhile)?;
    copy.wait_for(ROWS, &grows(10)?)?;
    let wanted = site.cluster.psql(ROWS)?;
    copy.promote()?;
    ensure!(copy.psql(ROWS)? == wanted, "promoted, it has other rows");
    if !agent {
        until(|| Ok(!spool.exists()), || format!("{} stays", spool.display()))?;
    }
    let log = copy.log_text();
    ensure!(log.contains("restored log file") && !log.contains("untracked child"), "{log}");
    drop(beside);
    Ok(())
}

#[test]
fn a_standby_without_an_agent_follows_is_stopped_and_promoted() -> Result<()> {
    for major in [13, 15, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        follows(&install, false)?;
    }
    Ok(())
}

#[test]
fn a_standby_beside_its_agent_follows_is_stopped_and_promoted() -> Result<()> {
    for major in [13, 15, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        follows(&install, true)?;
    }
    Ok(())
}

/// Ends the server of a container with it.
struct Container(Child, PathBuf);

impl Drop for Container {
    fn drop(&mut self) {
        // With its first process all others of a namespace go.
        let _ = self.0.kill();
        let _ = self.0.wait();
        // It names process 1, which is somebody else out here.
        let _ = fs::remove_file(self.1.join("postmaster.pid"));
    }
}

/// In a container that has no init the server inherits who fetches ahead, and takes a child that ends with more than 1 for one of its own that
/// crashed. Here he never gets the spool, which another process has.
#[test]
fn a_server_that_is_the_first_process_of_its_container_recovers_undisturbed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let contained = || {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
        command
    };
    if !contained().arg("true").status().is_ok_and(|ended| ended.success()) {
        eprintln!("skipped: a namespace of processes cannot be made here (it takes root)");
        return Ok(());
    }
    let (site, _) = archived(&install, 1000)?;
    site.backup()?;
    site.cluster.psql("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1001, 100000) n")?;
    site.switch()?;
    let wanted = site.cluster.psql(ROWS)?;
    let (copy, _) = site.restore(&[])?;
    settle(&copy)?;
    let spool = copy.data.join(SPOOL);
    fs::create_dir(&spool)?;
    let lock = fs::File::create(spool.join("lock"))?;
    lock.lock()?;
    for path in [&spool, &spool.join("lock")] {
        give_to_server(path)?;
    }
    let log = site.place().join("container.log");
    let mut command = contained();
    command.env_clear().current_dir(site.place()).stdin(Stdio::null());
    command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    command.args(["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]);
    command.arg(install.bin.join("postgres")).arg("-D").arg(&copy.data);
    command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let _container = Container(command.spawn()?, copy.data.clone());
    copy.wait_for("SELECT pg_is_in_recovery()", "f")?;
    ensure!(copy.psql(ROWS)? == wanted, "other rows");
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains("restored log file"), "{said}");
    ensure!(!said.contains("terminating any other active server processes"), "{said}");
    Ok(())
}
