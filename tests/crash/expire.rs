//! `expire`: whatever a run that nobody kills keeps is kept at every kill, nothing half deleted is offered, and the next run finishes.
//!
//! One world in which backups are marked, and one in which what was marked is deleted; each round begins with a copy of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::support::audit::objects_in;
use super::support::cluster::Install;
use super::support::promise::{Promise, data};
use super::support::site::{Answer, Site, small_site};
use super::{Point, Work, copy, kill_everywhere};

struct Expire<'a> {
    site: &'a Site,
    /// The repository as each round finds it.
    world: PathBuf,
    /// What all runs there may be leave.
    promise: Promise,
    /// The next run deletes what this one marks.
    deletes: bool,
}

fn expire(site: &Site) -> Result<()> {
    site.ask(&["expire"])?.expect(0, &[])
}

impl Work for Expire<'_> {
    fn name(&self) -> String {
        format!("expire, {}", if self.deletes { "deleting" } else { "marking" })
    }

    fn least(&self, point: Point) -> u64 {
        if point == Point::Step { 4 } else { 12 }
    }

    fn world(&mut self) -> Result<()> {
        copy(&self.world, &self.site.repository)
    }

    fn command(&self) -> Result<Command> {
        self.site.pitr(&["expire"])
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let whole = self.promise.check(&objects_in(&self.site.repository)?)?;
        let info = self.site.json(&["info", "--json"])?;
        let listed = info["repositories"][0]["backups"].as_array().context("backups")?;
        let restorable = listed.iter().filter(|backup| backup["restorable"] == true).count();
        ensure!(restorable >= 1 && restorable <= whole, "{info}");
        if answer.code == 0 && self.deletes {
            // What came in a killed run too late for it goes with the next.
            expire(self.site)?;
            self.promise.check_finished(&objects_in(&self.site.repository)?)?;
        }
        Ok(())
    }
}

/// A site with three backups, of which the last is promised.
fn site(install: &Install) -> Result<Site> {
    let site = small_site(install)?;
    let url = format!("url = \"file://{}\"", site.repository.display());
    let retention = "retention = { window = \"1ms\", grace = \"0\" }";
    site.write_config(&format!("[[repository]]\nname = \"only\"\n{url}\n{retention}\n"))?;
    for n in 1..=3 {
        site.backup()?;
        site.cluster.psql(&format!("INSERT INTO t VALUES ({n}, 'more')"))?;
        site.switch()?;
    }
    Ok(site)
}

fn frozen(site: &Site, at: &Path) -> Result<PathBuf> {
    copy(&site.repository, at)?;
    Ok(at.to_owned())
}

#[test]
fn what_is_kept_is_whole_and_the_rest_goes_wherever_expire_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install)?;
    let fresh = frozen(&site, &site.place().join("fresh"))?;
    expire(&site)?;
    let marked = frozen(&site, &site.place().join("marked"))?;
    expire(&site)?;
    expire(&site)?;
    let left = objects_in(&site.repository)?;
    let before = data(objects_in(&fresh)?);
    for (world, deletes) in [(fresh, false), (marked, true)] {
        let promise = Promise::new(&site.cluster.data.join("pg_wal"), left.clone());
        let kept = promise.kept().len();
        ensure!(kept + 10 < before.len(), "little was deleted: {kept} of {}", before.len());
        kill_everywhere(&mut Expire { site: &site, world, promise, deletes })?;
    }
    let (copy, _) = site.restored(&[])?;
    ensure!(copy.psql("SELECT count(*) FROM t")? == "1003");
    Ok(())
}
