//! `restore`, beside the server and in its place: the directory is the old one, or one that PostgreSQL refuses, or the whole new one.
//!
//! A copy is compared file by file with one that was not killed, and that one is started: its rows are the oracle. In place, the old
//! directory must be found byte for byte, here or aside, whatever happened.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::support::cluster::{Cluster, Install, Stop, scratch_in_memory};
use super::support::restored::Restored;
use super::support::site::{Answer, Site, small_site};
use super::support::tree::{Tree, aside, differ, without_own};
use super::{KILLED, Point, Work, age, kill_at_each, remove, tree};

/// The steps around the end, of which each counts: among those of all files the loop leaves some out.
const DECISIVE: [&str; 6] = ["replacement-written", "replaced", "unsettled", "settled", "not-moved", "moved"];

/// A site with a backup, and a row that only WAL has.
fn site(install: &Install) -> Result<Site> {
    let site = small_site(install)?;
    site.backup()?;
    site.cluster.psql("CREATE TABLE later AS SELECT 42 AS n")?;
    site.switch()?;
    Ok(site)
}

struct Copy<'a> {
    site: &'a Site,
    target: PathBuf,
    /// A restore that nobody killed.
    good: Tree,
    /// Every round begins with what a restore left that was killed when all files were there.
    over_leftovers: bool,
}

impl Work for Copy<'_> {
    fn name(&self) -> String {
        format!("restore --copy, over leftovers: {}", self.over_leftovers)
    }

    fn least(&self, point: Point) -> u64 {
        match point {
            Point::Step => 100,
            Point::StepNamed("leftover") => 10,
            Point::StepNamed(_) => 1,
            Point::Call | Point::CallDone => 15,
        }
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.target)?;
        if self.over_leftovers {
            let mut command = self.command()?;
            Point::StepNamed("settled").arm(1, &mut command);
            let killed = Answer::of(&mut command)?;
            ensure!(killed.code == KILLED, "{killed:?}");
        }
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let target = self.target.display().to_string();
        self.site.pitr(&["restore", "--copy", "--target-dir", &target])
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        ensure!(self.is_done() || answer.code == KILLED, "a yes, and there is no pg_control");
        if self.is_done() {
            let wrong = differ(&self.good, &without_own(tree(&self.target)?));
            ensure!(wrong.is_empty(), "it could start, and differs: {wrong:?}");
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.target.join("global/pg_control").exists()
    }
}

#[test]
fn a_copy_is_whole_or_refused_wherever_its_restore_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install)?;
    let place = scratch_in_memory("pitr-killed-")?;
    let target = place.path().join("target");
    let mut work = Copy { site: &site, target: target.clone(), good: Tree::new(), over_leftovers: false };
    Answer::of(&mut work.command()?)?.expect(0, &[])?;
    work.good = without_own(tree(&target)?);
    let server = Restored::start_copy(&install, &target)?.promoted()?;
    ensure!(server.psql("SELECT count(*) || ' ' || (SELECT n FROM later) FROM t")? == "1000 42");
    drop(server);
    let decisive = DECISIVE.map(Point::StepNamed);
    for point in [Point::Call, Point::CallDone, Point::Step].into_iter().chain(decisive) {
        kill_at_each(&mut work, point)?;
    }
    work.over_leftovers = true;
    kill_at_each(&mut work, Point::StepNamed("leftover"))?;
    pins_of_the_dead_run_out(&site)
}

/// Each killed restore left a pin that counts for three days.
fn pins_of_the_dead_run_out(site: &Site) -> Result<()> {
    let pins = || -> Result<usize> {
        let dir = fs::read_dir(site.folder()?.join("pins"))?;
        Ok(dir.flatten().filter(|entry| !entry.path().to_string_lossy().ends_with(".released")).count())
    };
    let pinned = || -> Result<bool> {
        Ok(site.json(&["info", "--json"])?["repositories"][0]["backups"][0]["pinned"] == true)
    };
    ensure!(pins()? > 10 && pinned()?, "what killed restores read is kept");
    age(&site.folder()?.join("pins"), Duration::from_secs(73 * 3600))?;
    ensure!(!pinned()?, "their pins do not run out");
    site.ask(&["expire"])?.expect(0, &[])?;
    ensure!(pins()? == 0, "expiry does not remove them");
    Ok(())
}

struct Replace<'a> {
    site: &'a Site,
    /// The old data directory.
    old: Tree,
    /// What a restore in its place comes to that nobody kills.
    good: Tree,
    /// Its newest segment, which nothing but the restore archives.
    newest: String,
}

impl Replace<'_> {
    fn data(&self) -> &PathBuf {
        &self.site.cluster.data
    }
}

impl Work for Replace<'_> {
    fn name(&self) -> String {
        "restore --replace --move-aside".into()
    }

    fn least(&self, point: Point) -> u64 {
        match point {
            Point::Step => 100,
            Point::StepNamed(_) => 1,
            Point::Call | Point::CallDone => 15,
        }
    }

    fn world(&mut self) -> Result<()> {
        if let Some(aside) = aside(self.data())?.pop() {
            remove(self.data())?;
            fs::rename(aside, self.data())?;
        }
        remove(&self.site.object(&self.newest)?)
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.site.pitr(&["restore", "--replace", "--move-aside"])?;
        // The data directory itself may be gone.
        command.current_dir(self.site.place());
        Ok(command)
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let aside = aside(self.data())?;
        ensure!(aside.len() <= 1, "moved aside twice: {aside:?}");
        let old = aside.first().unwrap_or_else(|| self.data());
        let lost = differ(&self.old, &tree(old)?);
        ensure!(lost.is_empty(), "the old directory is not what it was: {lost:?}");
        if aside.is_empty() {
            ensure!(answer.code == KILLED, "a yes, and nothing was moved aside");
            return Ok(());
        }
        ensure!(self.is_done() || answer.code == KILLED, "a yes, and there is no pg_control");
        ensure!(
            self.site.object(&self.newest)?.exists(),
            "the newest WAL of the old directory is not stored"
        );
        if self.is_done() {
            let wrong = differ(&self.good, &without_own(tree(self.data())?));
            ensure!(wrong.is_empty(), "it could start, and differs: {wrong:?}");
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        aside(self.data()).is_ok_and(|aside| !aside.is_empty())
            && self.data().join("global/pg_control").exists()
    }
}

#[test]
fn the_old_directory_stays_whole_wherever_the_restore_in_its_place_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install)?;
    site.cluster.psql("CREATE TABLE newest AS SELECT 43 AS n")?;
    let newest = site.cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    site.cluster.crash()?;
    let old = tree(&site.cluster.data)?;
    let mut work = Replace { site: &site, old, good: Tree::new(), newest };
    Answer::of(&mut work.command()?)?.expect(0, &[])?;
    work.good = without_own(tree(&site.cluster.data)?);
    for point in [Point::Call, Point::Step].into_iter().chain(DECISIVE.map(Point::StepNamed)) {
        kill_at_each(&mut work, point)?;
    }
    let cluster: &Cluster = &site.cluster;
    cluster.start()?;
    cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
    let rows = cluster.psql("SELECT (SELECT n FROM later) || ' ' || (SELECT n FROM newest)")?;
    ensure!(rows == "42 43", "{rows}");
    cluster.stop(Stop::Fast).context("it stops")
}
