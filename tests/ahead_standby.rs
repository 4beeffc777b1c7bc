//! A standby that lives from the archive alone, as one does whose primary is out of reach: it asks for the next segment again and again at the
//! end of WAL, gets each as soon as it is there, is stopped and started, and promoted.
//!
//! Real servers; the oracle are the primary's rows. What was fetched ahead for it is gone when it is.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;

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
