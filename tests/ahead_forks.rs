//! A fork on the way of recovery (RECOVERY 7), with an agent and with who fetches ahead without one.
//!
//! What a parent holds at or past the fork is no part of the child's history, whoever delivers it: the segment of the fork is cut and padded
//! with zeros, and what follows it is absent. The child's own segment of the fork may be archived late: its absence is never kept.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use pitr::wal::{SegmentName, SegmentSize};
use support::agent::{Agent, configure, own_repository};
use support::cluster::{Install, give_to_server};
use support::recovering::{Recovering, SPOOL, archived};
use support::site::{Site, until};

/// Bytes of the fork's segment that are the child's too.
const SHARED: usize = 0x5_0028;
const ROUTE: [&str; 2] = ["--timeline", "2"];

/// Archives a file of this content as one of the cluster's.
fn archive(site: &Site, name: &str, content: &[u8]) -> Result<()> {
    let path = site.cluster.data.join("pg_wal").join(name);
    fs::write(&path, content)?;
    give_to_server(&path)?;
    site.ask(&["archive-push", path.to_str().context("a path")?])?.expect(0, &[])
}

/// Recovery on the route of timeline 2, which leaves timeline 1 in the third of `names`.
fn recovers(site: &Site, at: &Recovering, names: &[String]) -> Result<()> {
    let [first, second, fork, beyond, far, ..] = names else { anyhow::bail!("{names:?}") };
    let size = SegmentSize::new(1 << 20)?;
    let lsn = SegmentName::parse(fork)?.number(size)?.start(size).saturating_add(u64::try_from(SHARED)?);
    archive(site, "00000002.history", format!("1\t{lsn}\tno recovery target specified\n").as_bytes())?;
    let own = fs::read(site.cluster.data.join("pg_wal").join(fork))?;
    ensure!(own[SHARED..].iter().any(|byte| *byte != 0), "nothing would be cut");
    let child = fork.replacen("00000001", "00000002", 1);
    let delivered = at.data.join("pg_wal/RECOVERYXLOG");
    let cut = || -> Result<()> {
        at.ask(site, fork, &ROUTE)?.expect(0, &[])?;
        let bytes = fs::read(&delivered)?;
        ensure!(bytes.len() == own.len() && bytes[..SHARED] == own[..SHARED], "not what both share");
        ensure!(bytes[SHARED..].iter().all(|byte| *byte == 0), "what the child does not have");
        Ok(fs::remove_file(&delivered)?)
    };
    let absent = |name: &str| -> Result<()> {
        let answer = at.ask(site, name, &ROUTE)?;
        ensure!(answer.code == 1 && !delivered.exists(), "{name}: {answer:?}");
        Ok(())
    };
    at.ask(site, first, &ROUTE)?.expect(0, &[])?;
    at.replayed(site, first)?;
    until(|| Ok(at.spooled().contains(second)), || format!("{:?}", at.spooled()))?;
    at.ask(site, second, &ROUTE)?.expect(0, &[])?;
    at.replayed(site, second)?;
    // As the server asks: the child's first, then the parent's.
    for _ in 0..2 {
        absent(&child)?;
        cut()?;
        absent(beyond)?;
        absent(far)?;
    }
    // On the parent's own route nothing is cut, and nothing of that is kept for the child's.
    for name in [fork, beyond] {
        at.ask(site, name, &["--timeline", "1"])?.expect(0, &[])?;
        at.replayed(site, name)?;
    }
    cut()?;
    absent(beyond)?;
    absent(&child)?;
    archive(site, &child, &own)?;
    at.ask(site, &child, &ROUTE)?.expect(0, &[])?;
    at.replayed(site, &child)?;
    let next = beyond.split_at(8).1;
    absent(&format!("{}{next}", child.split_at(8).0))?;
    ensure!(at.data.join(SPOOL).exists(), "nobody fetched ahead");
    Ok(())
}

#[test]
fn an_agent_cuts_a_parent_at_the_fork_and_keeps_no_absence_of_the_child() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 60_000)?;
    let at = Recovering::new(&site, "recovering")?;
    configure(&site, &own_repository(&site))?;
    let text = fs::read_to_string(&site.config)?;
    let (data, recovering) = (site.cluster.data.display().to_string(), at.data.display().to_string());
    fs::write(&site.config, text.replace(&data, &recovering))?;
    // Without a server in there nobody is left behind: it is the agent that answers.
    fs::remove_file(at.data.join("postmaster.pid"))?;
    let agent = Agent::start(&site)?;
    recovers(&site, &at, &names).with_context(|| agent.log())
}

#[test]
fn who_is_left_behind_cuts_a_parent_at_the_fork_and_keeps_no_absence_of_the_child() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 60_000)?;
    let at = Recovering::new(&site, "recovering")?;
    recovers(&site, &at, &names)
}
