//! `expire`: whatever a run that nobody kills keeps is kept at every kill, nothing half deleted is offered, and the next run finishes.
//!
//! One world in which backups are marked, and one in which what was marked is deleted; each round begins with a copy of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::support::audit::{Auditor, Objects, objects_in};
use super::support::cluster::Install;
use super::support::site::{Answer, Site, small_site};
use super::{Point, Work, copy, kill_everywhere};

struct Expire<'a> {
    site: &'a Site,
    /// The repository as each round finds it.
    world: PathBuf,
    /// The objects that all runs there may be leave.
    kept: Objects,
    /// The next run deletes what this one marks.
    deletes: bool,
}

/// Backups and WAL; everything else has numbers or names of its own in every run.
fn data(objects: Objects) -> Objects {
    let is_data = |key: &str| key.contains("/backups/") || key.contains("/wal/");
    objects.into_iter().filter(|(key, _)| is_data(key)).collect()
}

/// Without backups that are given up: they may be whole or half there.
fn offered(mut objects: Objects) -> Objects {
    let tombs = objects.keys().filter_map(|key| key.strip_suffix("expired.json").map(str::to_owned));
    for folder in tombs.collect::<BTreeSet<_>>() {
        objects.retain(|key, _| !key.starts_with(&folder));
    }
    objects
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
        let now = objects_in(&self.site.repository)?;
        let lost: Vec<_> = self.kept.iter().filter(|(key, bytes)| now.get(*key) != Some(*bytes)).collect();
        ensure!(
            lost.is_empty(),
            "gone, or changed: {:?}",
            lost.iter().map(|(key, _)| key).collect::<Vec<_>>()
        );
        // A new one, because what was whole before may not be so any more.
        let mut auditor = Auditor::of_server(&self.site.cluster.data.join("pg_wal"));
        auditor.check(&Objects::new(), &offered(now.clone()))?;
        let info = self.site.json(&["info", "--json"])?;
        let listed = info["repositories"][0]["backups"].as_array().context("backups")?;
        let restorable = listed.iter().filter(|backup| backup["restorable"] == true).count();
        ensure!(restorable >= 1 && restorable <= auditor.whole_backups(), "{info}");
        if answer.code == 0 && self.deletes {
            // What came in a killed run too late for it goes with the next.
            expire(self.site)?;
            let left = data(objects_in(&self.site.repository)?);
            ensure!(left == self.kept, "{:?} is left of {:?}", left.keys(), self.kept.keys());
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
    let kept = data(objects_in(&site.repository)?);
    let before = data(objects_in(&fresh)?);
    ensure!(kept.len() + 10 < before.len(), "little was deleted: {} of {}", kept.len(), before.len());
    for (world, deletes) in [(fresh, false), (marked, true)] {
        kill_everywhere(&mut Expire { site: &site, world, kept: kept.clone(), deletes })?;
    }
    let (copy, _) = site.restored(&[])?;
    ensure!(copy.psql("SELECT count(*) FROM t")? == "1003");
    Ok(())
}
