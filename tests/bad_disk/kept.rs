//! Late failures, continued: what an operator decides (`init`, `accept`, `pin`), and what the agent stores.
//!
//! A decision that could not be made durable was not taken, so far as anybody was told: the command fails, says where, and repeated it
//! succeeds. The agent's no is the archiver's no.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::late::{Work, first_segment, refuse_everywhere, remove, site, words};
use super::support::agent::{configure, own_repository};
use super::support::audit::{Auditor, objects_in};
use super::support::cluster::{Install, give_to_server};
use super::support::site::{Site, until};
use super::{Harm, no_strace, refused, traced};

/// `init`, which writes the configuration and makes the repository.
struct Init<'a> {
    site: &'a Site,
    conninfo: String,
    root: PathBuf,
}

impl Work for Init<'_> {
    fn args(&self) -> Vec<String> {
        let url = format!("file://{}", self.root.display());
        words(&["init", "--superuser", &self.conninfo, "--repository", &url, "--cluster", "main"])
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.root)?;
        remove(&self.site.config)
    }

    fn audit(&mut self, good: bool) -> Result<()> {
        let found = if self.root.exists() { objects_in(&self.root)? } else { Default::default() };
        let identity = found.keys().any(|key| key.ends_with("/identity.json"));
        let mark = found.contains_key("main/format/1.json");
        ensure!(mark || !identity, "a folder of a format that nothing names: {:?}", found.keys());
        ensure!(!good || identity && self.site.config.exists(), "a yes, and {:?}", found.keys());
        Ok(())
    }
}

#[test]
fn a_repository_is_initialised_only_if_no_sync_link_or_write_failed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    let (conninfo, root) = (site.cluster.conninfo(), site.place().join("another"));
    let mut work = Init { site: &site, conninfo, root };
    let hits = refuse_everywhere(
        &site,
        &mut work,
        &["fsync", "fdatasync", "linkat", "renameat", "renameat2", "mkdir"],
    )?;
    ensure!(hits["fsync"] >= 3 && hits["linkat"] >= 1 && hits["mkdir"] >= 1, "{hits:?}");
    Ok(())
}

struct Accept {
    segment: PathBuf,
    /// The record of the gap, and the segment as it is stored.
    objects: [PathBuf; 2],
}

impl Work for Accept {
    fn args(&self) -> Vec<String> {
        words(&["accept", &self.segment.display().to_string(), "--damaged"])
    }

    fn world(&mut self) -> Result<()> {
        self.objects.iter().try_for_each(|object| remove(object))
    }

    fn audit(&mut self, good: bool) -> Result<()> {
        let [record, stored] = self.objects.each_ref().map(|object| object.exists());
        ensure!(record || !stored, "the segment is stored, and nothing says that it is damaged");
        ensure!(stored || !good, "a yes, and it is not stored");
        Ok(())
    }
}

#[test]
fn a_damaged_segment_is_accepted_only_if_no_sync_link_or_write_failed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    let (first, content) = first_segment(&site)?;
    let name = format!("{}000000EE", first.get(..16).context("a name")?);
    let segment = site.place().join(&name);
    fs::write(&segment, content)?;
    give_to_server(&segment)?;
    let stored = site.object(&name)?;
    let objects = [stored.with_file_name(format!("{name}.gap.json")), stored];
    let mut work = Accept { segment, objects };
    let hits = refuse_everywhere(&site, &mut work, &["fsync", "fdatasync", "linkat"])?;
    ensure!(hits["fsync"] >= 4 && hits["linkat"] >= 1, "{hits:?}");
    Ok(())
}

struct Pin<'a> {
    site: &'a Site,
    backup: String,
    pins: PathBuf,
}

impl Work for Pin<'_> {
    fn args(&self) -> Vec<String> {
        words(&["pin", &self.backup, "--reason", "audit"])
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.pins)
    }

    fn audit(&mut self, good: bool) -> Result<()> {
        let info = self.site.json(&["info", "--json"])?;
        let backup = &info["repositories"][0]["backups"][0];
        ensure!(backup["restorable"] == true, "{info}");
        ensure!(!good || backup["pinned"] == true, "a yes, and it is not pinned: {info}");
        Ok(())
    }
}

#[test]
fn a_backup_is_pinned_only_if_no_sync_link_or_write_failed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    let backup = site.backup()?["id"].as_str().context("an id")?.to_owned();
    let pins = site.folder()?.join("pins");
    let mut work = Pin { site: &site, backup, pins };
    let hits = refuse_everywhere(&site, &mut work, &["fsync", "fdatasync", "linkat", "mkdir"])?;
    ensure!(hits["fsync"] >= 3 && hits["linkat"] >= 1 && hits["mkdir"] >= 1, "{hits:?}");
    Ok(())
}

/// An agent under strace; killed when dropped.
struct Traced(Child);

impl Traced {
    /// From its `nth` sync on, each thread's fail.
    fn start(site: &Site, harm: Harm, nth: u64, log: &Path) -> Result<Self> {
        let said = fs::File::create(site.place().join("agent.log"))?;
        // The agent is our child, and strace its own.
        let mut command = traced(&site.pitr(&["agent"])?, harm, &format!("{nth}+"), log, &["-D"])?;
        let agent = Self(command.stdout(Stdio::null()).stderr(said).spawn()?);
        let said = || fs::read_to_string(site.place().join("agent.log")).unwrap_or_default();
        until(|| Ok(site.ask(&["agent", "--status"])?.code != 5), said)?;
        Ok(agent)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // One that ended already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_agent_says_yes_to_the_archiver_only_of_what_it_could_sync() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    site.cluster.psql("ALTER SYSTEM SET archive_command = 'false'")?;
    site.cluster.psql("SELECT pg_reload_conf()")?;
    configure(&site, &own_repository(&site))?;
    let (segment, content) = first_segment(&site)?;
    let object = site.object(&segment)?;
    let (push, log) = (format!("pg_wal/{segment}"), site.place().join("strace.log"));
    let harm = Harm { call: "fsync", error: "EIO" };
    for (refusals, nth) in (1..50).enumerate() {
        remove(object.parent().context("a directory")?)?;
        let agent = Traced::start(&site, harm, nth, &log)?;
        let answer = site.ask(&["archive-push", &push])?;
        let calls = refused(&fs::read_to_string(&log)?);
        let what = format!("from sync {nth} on: {calls:?}: {answer:?}");
        ensure!(
            !answer.err.contains("works alone") && !answer.err.contains("itself"),
            "the agent did not do it: {what}"
        );
        drop(agent);
        if calls.is_empty() {
            ensure!(answer.code == 0, "{what}");
            ensure!(Auditor::comes_back(&objects_in(&site.repository)?, &segment, &content), "{what}");
            ensure!(refusals >= 4, "only {refusals} syncs failed");
            return Ok(());
        }
        ensure!(answer.code == 1, "it says yes: {what}");
        answer.expect(1, &["Input/output error", "HINT: "])?;
        // The archiver asks again, and nothing is in the way.
        site.ask(&["archive-push", &push])?.expect(0, &[])?;
        ensure!(Auditor::comes_back(&objects_in(&site.repository)?, &segment, &content), "{what}");
    }
    anyhow::bail!("the agent syncs for ever")
}
