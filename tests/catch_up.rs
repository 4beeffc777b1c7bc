//! An optional repository that was away gets what it missed, although the server has long removed it.
//!
//! A real server archives through the agent, with its segments recycled at once. The oracle: the objects of both repositories are the same
//! byte for byte, and a restore from the one that was away alone brings every row back.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use support::agent::{Agent, all_archived, configure, own_repository, status};
use support::cluster::Install;
use support::site::{Site, SiteOptions, until};

/// Keeps no WAL that it does not need.
const KEEPS_NONE: &str = "wal_keep_size = 0\nmin_wal_size = 2MB\nmax_wal_size = 4MB\nautovacuum = off\n";

/// A site with a second, optional repository, and an agent's socket.
fn site(install: &Install) -> Result<(Site, PathBuf)> {
    let site = Site::new(install, &SiteOptions { conf: KEEPS_NONE, ..SiteOptions::default() })?;
    let other = site.place().join("other");
    let second =
        format!("[[repository]]\nname = \"other\"\nrequired = false\nurl = \"file://{}\"\n", other.display());
    configure(&site, &format!("{}{second}", own_repository(&site)))?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--json"])?;
    Ok((site, other))
}

/// Some segments of WAL, the last of them complete; its name.
fn write_wal(site: &Site, mark: u32) -> Result<String> {
    site.cluster.psql("CREATE TABLE IF NOT EXISTS t (mark int, text text)")?;
    site.cluster.psql(&format!(
        "INSERT INTO t SELECT {mark}, md5(n::text) || md5((n + {mark})::text) FROM generate_series(1, 20000) n"
    ))?;
    let name = site.cluster.psql("SELECT pg_walfile_name(pg_switch_wal())")?;
    site.cluster.psql("CHECKPOINT")?;
    Ok(name)
}

/// The WAL objects below the root of a repository.
fn objects(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "wal" || end == "history") {
                found.insert(path.strip_prefix(root)?.to_owned(), fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

fn is_stored(site: &Site, segment: &str) -> Result<bool> {
    Ok(site.object(segment)?.exists())
}

/// Until the optional repository has everything that the other one has, and the agent knows it.
fn caught_up(site: &Site, other: &Path, agent: &Agent) -> Result<()> {
    has_everything(site, other, agent)?;
    until(
        || Ok(status(site)?["repositories"][1]["behind"] == false),
        || format!("{:?}\n{}", status(site), agent.log()),
    )
}

fn has_everything(site: &Site, other: &Path, agent: &Agent) -> Result<()> {
    let lacks = || -> Result<Vec<PathBuf>> {
        let there = objects(other)?;
        Ok(objects(&site.repository)?.into_keys().filter(|key| !there.contains_key(key)).collect())
    };
    until(|| Ok(lacks()?.is_empty()), || format!("{:?} are lacking\n{}", lacks(), agent.log()))?;
    let there = objects(other)?;
    for (key, bytes) in objects(&site.repository)? {
        // One that was stored from `pg_wal` twice may be compressed otherwise: how hard depends on the queue.
        let other = there.get(&key).context("it was there")?;
        let same = *other == bytes || zstd::decode_all(&other[..])? == zstd::decode_all(&bytes[..])?;
        ensure!(same, "{} is not the same in both", key.display());
    }
    Ok(())
}

#[test]
fn what_left_pg_wal_meanwhile_is_copied_and_restores_everything() -> Result<()> {
    for major in [13, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let (site, other) = site(&install)?;
        let agent = Agent::start(&site)?;
        write_wal(&site, 1)?;
        site.json(&["backup", "--repository", "other", "--json"])?;
        let aside = site.place().join("aside");
        fs::rename(&other, &aside)?;
        let mut missed = Vec::new();
        for mark in 2..8 {
            let name = write_wal(&site, mark)?;
            until(|| is_stored(&site, &name), || format!("{name}\n{}", agent.log()))?;
            missed.push(name);
        }
        let gone = |name: &String| !site.cluster.data.join("pg_wal").join(name).exists();
        until(
            || site.cluster.psql("CHECKPOINT").map(|_| missed.iter().filter(|name| gone(name)).count() > 2),
            || "the server keeps its WAL".to_owned(),
        )?;
        let said = status(&site)?;
        ensure!(said["repositories"][1]["failing"].is_string(), "{said}");
        fs::rename(&aside, &other)?;
        write_wal(&site, 8)?;
        caught_up(&site, &other, &agent)?;
        ensure!(agent.log().contains("repository other was caught up"), "{}", agent.log());

        // With nothing but what was away.
        fs::rename(&site.repository, site.place().join("lost"))?;
        let (copy, _) = site.restored(&["--repository", "other"])?;
        let marks = copy.psql("SELECT string_agg(mark || ':' || n, ' ' ORDER BY mark) FROM (SELECT mark, count(*) n FROM t GROUP BY 1) s")?;
        ensure!(marks == "1:20000 2:20000 3:20000 4:20000 5:20000 6:20000 7:20000 8:20000", "{marks}");
    }
    Ok(())
}

#[test]
fn what_was_stored_past_an_agent_that_stood_still_is_copied_too() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, other) = site(&install)?;
    let agent = Agent::start(&site)?;
    write_wal(&site, 1)?;
    caught_up(&site, &other, &agent)?;
    agent.stand_still()?;
    let aside = site.place().join("aside");
    fs::rename(&other, &aside)?;
    let mut last = String::new();
    for mark in 2..5 {
        last = write_wal(&site, mark)?;
    }
    until(|| is_stored(&site, &last), || site.cluster.log_text())?;
    // Acknowledged: no agent is asked for them any more.
    all_archived(&site)?;
    let lacking = objects(&site.repository)?.len() - objects(&aside)?.len();
    ensure!(lacking >= 3, "{lacking}");
    fs::rename(&aside, &other)?;
    agent.signal(Signal::SIGCONT)?;
    let last = write_wal(&site, 5)?;
    until(|| is_stored(&site, &last), || agent.log())?;
    has_everything(&site, &other, &agent)
}

#[test]
fn an_agent_that_is_killed_while_it_copies_goes_on_after_it_was_started_again() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, other) = site(&install)?;
    let mut agent = Agent::start(&site)?;
    let mut last = write_wal(&site, 1)?;
    caught_up(&site, &other, &agent)?;
    agent.end(Signal::SIGKILL)?;
    // Without an agent nobody tries again.
    let aside = site.place().join("aside");
    fs::rename(&other, &aside)?;
    for mark in 2..8 {
        last = write_wal(&site, mark)?;
    }
    until(|| is_stored(&site, &last), || site.cluster.log_text())?;
    fs::rename(&aside, &other)?;
    let lacking = objects(&site.repository)?.len() - objects(&other)?.len();
    ensure!(lacking > 6, "{lacking}");
    for _ in 0..5 {
        agent = Agent::start(&site)?;
        std::thread::sleep(std::time::Duration::from_millis(1050));
        agent.end(Signal::SIGKILL)?;
    }
    agent = Agent::start(&site)?;
    caught_up(&site, &other, &agent)
}

#[test]
fn damage_is_named_and_stays_where_it_is() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, other) = site(&install)?;
    let agent = Agent::start(&site)?;
    write_wal(&site, 1)?;
    caught_up(&site, &other, &agent)?;
    agent.end(Signal::SIGTERM)?;
    let aside = site.place().join("aside");
    fs::rename(&other, &aside)?;
    let hurt = write_wal(&site, 2)?;
    let whole = write_wal(&site, 3)?;
    until(|| is_stored(&site, &whole), || site.cluster.log_text())?;
    fs::rename(&aside, &other)?;
    let path = site.object(&hurt)?;
    let mut bytes = fs::read(&path)?;
    *bytes.last_mut().context("a byte")? ^= 1;
    fs::write(&path, bytes)?;
    let agent = Agent::start(&site)?;
    let key = |name: &str| -> Result<PathBuf> {
        Ok(other.join(site.object(name)?.strip_prefix(&site.repository)?))
    };
    let whole = key(&whole)?;
    until(|| Ok(whole.exists()), || agent.log())?;
    until(|| Ok(agent.log().contains("still lacks WAL")), || agent.log())?;
    ensure!(agent.log().contains(&hurt) && agent.log().contains("damaged"), "{}", agent.log());
    ensure!(!key(&hurt)?.exists(), "damage was copied");
    Ok(())
}

#[test]
fn a_queue_that_waits_too_long_is_said_in_the_log_and_by_the_status() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let options = SiteOptions { conf: KEEPS_NONE, rpo: "2s", ..SiteOptions::default() };
    let site = Site::new(&install, &options)?;
    configure(&site, &format!("{}[promise]\nrpo = \"2s\"\n", own_repository(&site)))?;
    let agent = Agent::start(&site)?;
    write_wal(&site, 1)?;
    until(|| Ok(status(&site)?["ready"] == 0), || agent.log())?;
    let answer = site.ask(&["agent", "--status"])?;
    ensure!(answer.code == 0 && answer.out.contains("free"), "{answer:?}");
    let aside = site.place().join("aside");
    fs::rename(&site.repository, &aside)?;
    let name = write_wal(&site, 2)?;
    until(|| Ok(agent.log().contains("wait to be archived, ")), || agent.log())?;
    until(|| Ok(status(&site)?["oldest_waits_seconds"].as_u64() > Some(2)), || agent.log())?;
    let said = status(&site)?;
    ensure!(said["at_risk"] == true && said["free_bytes"].as_u64() > Some(0), "{said}");
    ensure!(agent.log().contains("promised are 2s"), "{}", agent.log());
    let answer = site.ask(&["agent", "--status"])?;
    ensure!(answer.code == 2 && answer.out.contains("the oldest waits for"), "{answer:?}");
    fs::rename(&aside, &site.repository)?;
    until(|| is_stored(&site, &name), || agent.log())?;
    until(|| Ok(agent.log().contains("as it should be again")), || agent.log())
}
