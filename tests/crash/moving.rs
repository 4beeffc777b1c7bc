//! A directory that goes aside in more than one step: with tablespaces, or out of a mount point.
//!
//! ```text
//!  killed      each file of the old cluster is there once, here or aside, and each link leads to its own files or to where they go
//!  repeated    one directory aside, whole, with links that lead to its own files: it starts, as the new one does
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::support::cluster::{Install, Stop, give_to_server, scratch_in_memory};
use super::support::mounted::Mounted;
use super::support::restored::Restored;
use super::support::site::{Answer, Site, small_site};
use super::support::tree::{Tree, aside, copy, differ, remove, tree};
use super::{KILLED, Point, Work, kill_at_each};

/// What pitr has of its own in a directory that is on its way.
const ON_ITS_WAY: [&str; 2] = ["pitr.moving", "pitr.link"];

fn without(mut tree: Tree, names: &[&str]) -> Tree {
    tree.retain(|path, _| !names.iter().any(|name| path == Path::new(name)));
    tree
}

/// Names of the folders that keep what was in a mount point or in the place of a tablespace.
fn kept_in(place: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(place)?.collect::<std::io::Result<Vec<_>>>()?;
    let is_kept = |entry: &&fs::DirEntry| entry.file_name().to_string_lossy().starts_with("pitr.before-");
    Ok(entries.iter().filter(is_kept).map(fs::DirEntry::path).collect())
}

struct Tablespaces<'a> {
    site: &'a Site,
    /// Where the tablespaces are, each with a copy of it as it was.
    places: [(PathBuf, PathBuf); 2],
    /// The data directory as it was.
    saved: PathBuf,
}

impl Tablespaces<'_> {
    fn data(&self) -> &Path {
        &self.site.cluster.data
    }

    /// Each tablespace of the old directory is where its link leads; or, on its way, where the link led before.
    fn links(&self, old: &Path, on_its_way: bool) -> Result<()> {
        for (place, saved) in &self.places {
            let (mut links, mut found) = (fs::read_dir(old.join("pg_tblspc"))?, None);
            while let Some(entry) = links.next().transpose()? {
                let leads_to = fs::read_link(entry.path())?;
                found = found.or_else(|| leads_to.starts_with(place).then_some(leads_to));
            }
            let leads_to = found.with_context(|| format!("no link leads to {}", place.display()))?;
            let (was, there) = (tree(saved)?, tree(&leads_to)?);
            let before = || -> Result<Tree> {
                let kept = leads_to.file_name().map(PathBuf::from).unwrap_or_default();
                let mut all = tree(place)?;
                all.retain(|path, _| !path.starts_with(&kept));
                Ok(all)
            };
            let whole = there == was || (on_its_way && there.is_empty() && before()? == was);
            ensure!(whole, "{} is not the tablespace it was: {:?}", leads_to.display(), differ(&was, &there));
        }
        Ok(())
    }
}

impl Work for Tablespaces<'_> {
    fn name(&self) -> String {
        "restore --replace --move-aside of a cluster with tablespaces".into()
    }

    fn least(&self, _: Point) -> u64 {
        1
    }

    fn world(&mut self) -> Result<()> {
        aside(self.data())?.iter().try_for_each(|old| remove(old))?;
        copy(&self.saved, self.data())?;
        self.places.iter().try_for_each(|(place, saved)| copy(saved, place))
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.site.pitr(&["restore", "--replace", "--move-aside", "--json"])?;
        command.current_dir(self.site.place());
        Ok(command)
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let aside = aside(self.data())?;
        ensure!(aside.len() <= 1, "moved aside twice: {aside:?}");
        let old = aside.first().map_or_else(|| self.data(), PathBuf::as_path);
        let on_its_way = answer.code == KILLED;
        let ignored = if on_its_way { ON_ITS_WAY.as_slice() } else { &[] };
        let lost = differ(&tree(&self.saved)?, &without(tree(old)?, ignored));
        ensure!(lost.is_empty(), "the old directory is not what it was: {lost:?}");
        self.links(old, on_its_way)?;
        ensure!(on_its_way || self.is_done(), "a yes, and there is no new directory");
        Ok(())
    }

    fn is_done(&self) -> bool {
        aside(self.data()).is_ok_and(|aside| !aside.is_empty())
            && self.data().join("global/pg_control").exists()
    }
}

#[test]
fn tablespaces_go_aside_or_are_gone_on_with_wherever_a_replacement_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let scratch = scratch_in_memory("pitr-moving-")?;
    let places =
        ["one", "two"].map(|name| (scratch.path().join(name), scratch.path().join(format!("{name}.was"))));
    for (n, (place, _)) in places.iter().enumerate() {
        fs::create_dir(place)?;
        give_to_server(place)?;
        site.cluster.psql(&format!("CREATE TABLESPACE ts{n} LOCATION '{}'", place.display()))?;
        site.cluster.psql(&format!("CREATE TABLE in_ts{n} TABLESPACE ts{n} AS SELECT 1 AS n"))?;
    }
    site.backup()?;
    site.cluster.psql("UPDATE in_ts0 SET n = 2")?;
    site.cluster.psql("UPDATE in_ts1 SET n = 3")?;
    site.switch()?;
    site.cluster.stop(Stop::Fast)?;
    let saved = scratch.path().join("data.was");
    copy(&site.cluster.data, &saved)?;
    places.iter().try_for_each(|(place, was)| copy(place, was))?;
    let mut work = Tablespaces { site: &site, places, saved };
    // Between the directory and the first tablespace, between link and folder, between folder and link, before the end.
    for name in ["not-moved", "moved", "tree-link", "removed"] {
        kill_at_each(&mut work, Point::StepNamed(name))?;
    }
    let both = "SELECT (SELECT n FROM in_ts0), (SELECT n FROM in_ts1)";
    site.cluster.start()?;
    site.cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
    ensure!(site.cluster.psql(both)? == "2|3");
    site.cluster.psql("UPDATE in_ts0 SET n = 7")?;
    site.cluster.stop(Stop::Fast)?;
    let old = aside(&site.cluster.data)?.pop().context("the old directory")?;
    let conf = fs::read_to_string(old.join("postgresql.conf"))?;
    fs::write(old.join("postgresql.conf"), conf + "archive_mode = off\n")?;
    let old = Restored::start(&install, &old, site.cluster.socket.clone(), "5432".to_owned())?;
    ensure!(old.psql(both)? == "2|3", "the old directory has the new one's tablespace");
    old.stop(Stop::Fast)
}

#[test]
fn what_is_in_a_mount_point_goes_aside_whole_however_often_the_restore_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    site.switch()?;
    site.cluster.stop(Stop::Fast)?;
    let scratch = scratch_in_memory("pitr-mounted-")?;
    let target = scratch.path().join("mounted");
    let Some(_mounted) = Mounted::at(&target, "512m")? else { return Ok(()) };
    let was = tree(&site.cluster.data)?;
    let text = target.display().to_string();
    let command = || site.pitr(&["restore", "--copy", "--move-aside", "--target-dir", &text]);
    for (name, nth) in
        [("replaced", 1), ("moved", 1), ("moved", 2), ("not-moved", 9), ("moved", 20), ("removed", 1)]
    {
        for entry in fs::read_dir(&target)? {
            remove(&entry?.path())?;
        }
        for entry in fs::read_dir(&site.cluster.data)? {
            let entry = entry?;
            copy(&entry.path(), &target.join(entry.file_name()))?;
        }
        // The second one goes on from where the first one was killed, and is killed there in turn.
        for round in [nth, 1] {
            let mut killed = command()?;
            Point::StepNamed(name).arm(round, &mut killed);
            let answer = Answer::of(&mut killed)?;
            let what = format!("{name} {nth}: {answer:?}");
            ensure!(answer.code == KILLED || round == 1, "{what}");
            halves(&target, &was).context(what)?;
            if answer.code == 0 {
                break;
            }
        }
        let what = format!("{name} {nth}, repeated");
        let is_there = |dir: &PathBuf| dir.join("global/pg_control").exists();
        if !(is_there(&target) && kept_in(&target)?.first().is_some_and(is_there)) {
            let answer = Answer::of(&mut command()?)?;
            ensure!(answer.code == 0, "{what}: {answer:?}");
        }
        let kept = kept_in(&target)?;
        ensure!(kept.len() == 1, "moved aside twice: {kept:?}, {what}");
        let lost = differ(&was, &tree(&kept[0])?);
        ensure!(lost.is_empty(), "the old directory is not what it was: {lost:?}, {what}");
        ensure!(target.join("global/pg_control").exists() && !target.join("pitr.moving").exists(), "{what}");
    }
    let server = Restored::start_copy(&install, &target)?.promoted()?;
    ensure!(server.psql("SELECT count(*) FROM t")? == "1000");
    server.stop(Stop::Fast)
}

/// Every file is in one of the two halves, and neither can start, unless one has everything.
fn halves(target: &Path, was: &Tree) -> Result<()> {
    let kept = kept_in(target)?;
    ensure!(kept.len() <= 1, "{kept:?}");
    let here = tree(target)?;
    let aside = kept.first().map_or_else(|| Ok(Tree::new()), |kept| tree(kept))?;
    let aside = without(aside, &ON_ITS_WAY);
    let stays = |path: &Path| {
        !path.starts_with("pitr.restoring") && !path.to_string_lossy().starts_with("pitr.before-")
    };
    let here: Tree = here.into_iter().filter(|(path, _)| stays(path)).collect();
    let both: Tree = here.iter().chain(&aside).map(|(path, bytes)| (path.clone(), bytes.clone())).collect();
    if aside.len() < was.len() {
        ensure!(differ(was, &both).is_empty(), "lost: {:?}", differ(was, &both));
        ensure!(here.len() + aside.len() == was.len(), "a file is in both halves");
        let can_start = here.contains_key(Path::new("global/pg_control"));
        ensure!(!can_start || aside.is_empty(), "it could start with half of its files");
    } else {
        ensure!(differ(was, &aside).is_empty(), "lost: {:?}", differ(was, &aside));
    }
    Ok(())
}
