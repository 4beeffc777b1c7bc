//! Late failures, command by command: `archive-push`, `archive-get`, `backup`, `expire`, `restore`.
//!
//! What was refused is named, what was not made durable is not vouched for, and repeating the command makes all good. Names show what they
//! showed before, or the whole new content; the oracle is what the server wrote, or a run that nothing disturbed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::support::audit::{Auditor, Objects, objects_in};
use super::support::cluster::{Install, scratch_in_memory};
use super::support::site::{Answer, Site, SiteOptions};
use super::{Harm, harmed, no_strace};

/// No thread of these commands makes more such calls; a loop that gets here does not end.
const MOST_CALLS: u64 = 5_000;

/// One command in one world.
pub trait Work {
    /// Its arguments.
    fn args(&self) -> Vec<String>;

    /// Exit codes of a failure of the disk.
    fn codes(&self) -> &'static [i32] {
        &[1]
    }

    /// Makes the world anew.
    fn world(&mut self) -> Result<()>;

    /// What must hold now. `good`: nothing was refused, or the command said yes.
    fn audit(&mut self, good: bool) -> Result<()>;

    /// A call whose failure the command may survive, because nothing rests on it.
    fn can_do_without(&self, _call: &str) -> bool {
        false
    }
}

fn command(site: &Site, work: &dyn Work) -> Result<Command> {
    let args = work.args();
    site.pitr(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Refuses the first, second, … call of this kind; says in how many runs something was refused: fewer than there are such calls, where several
/// threads share them, since each counts its own. Whoever expects a number allows for two.
fn refuse_each(site: &Site, work: &mut dyn Work, harm: Harm) -> Result<usize> {
    let log = site.place().join("strace.log");
    // Beyond the first calls those of many files are alike.
    let all = std::iter::successors(Some(1), |n| Some(n + 1 + n / 8 * 4)).take_while(|n| *n < MOST_CALLS);
    for (hits, nth) in all.enumerate() {
        work.world()?;
        let (answer, calls) = harmed(&command(site, work)?, harm, &nth.to_string(), &log)?;
        let what = format!("{:?}, {harm:?} at call {nth}: {calls:?}: {answer:?}", work.args());
        if calls.is_empty() {
            ensure!(answer.code == 0, "{what}: it fails, and nothing was refused");
            work.audit(true).context(what)?;
            return Ok(hits);
        }
        judge(site, work, harm, &answer, &calls).with_context(|| what.clone())?;
        work.audit(answer.code == 0).with_context(|| what.clone())?;
        let again = Answer::of(&mut command(site, work)?)?;
        ensure!(again.code == 0, "{what}\nrepeated: {again:?}");
        work.audit(true).with_context(|| format!("{what}\nrepeated: {again:?}"))?;
    }
    anyhow::bail!("{:?} does not end", work.args())
}

fn judge(site: &Site, work: &dyn Work, harm: Harm, answer: &Answer, calls: &[String]) -> Result<()> {
    if answer.code == 0 {
        ensure!(calls.iter().all(|call| work.can_do_without(call)), "it says yes");
        return Ok(());
    }
    ensure!(work.codes().contains(&answer.code), "another exit code");
    let words = match harm.error {
        "ENOSPC" => "No space left on device",
        _ => "Input/output error",
    };
    ensure!(answer.err.contains(words), "it does not say why");
    ensure!(answer.err.contains("HINT: "), "no advice");
    // The directory at least: a file that has no name yet is called by the one it was to get.
    let inside = format!("{}/", site.cluster.data.display());
    let shown = |dir: String| dir.strip_prefix(&inside).map(str::to_owned).unwrap_or(dir);
    let mut places = calls.iter().flat_map(|call| places(call)).map(shown);
    ensure!(places.any(|place| answer.err.contains(&place)), "it does not say where");
    Ok(())
}

/// The places that a refused call was about, as strace shows descriptors and names; one without a name yet is in a directory.
fn places(call: &str) -> Vec<String> {
    let of_descriptors = call.split('<').skip(1).filter_map(|rest| rest.split_once('>'));
    let named = call.split_once("(\"").and_then(|(_, rest)| rest.split_once('"'));
    let paths = of_descriptors.chain(named).map(|(path, _)| path).filter(|path| path.starts_with('/'));
    paths.map(|path| path.split_once("/#").map_or(path, |(dir, _)| dir).to_owned()).collect()
}

/// Each of these calls; how often one was refused.
pub fn refuse_everywhere(
    site: &Site,
    work: &mut dyn Work,
    calls: &[&'static str],
) -> Result<BTreeMap<&'static str, usize>> {
    let mut hits = BTreeMap::new();
    for call in calls {
        let error = if call.contains("write") { "ENOSPC" } else { "EIO" };
        hits.insert(*call, refuse_each(site, work, Harm { call, error })?);
    }
    Ok(hits)
}

/// A small server that archives into a repository in memory, where a real fsync costs nothing.
pub fn site(install: &Install) -> Result<Site> {
    let place = scratch_in_memory("pitr-late-")?;
    let url = format!("file://{}", place.path().join("repo").display());
    let conf = "wal_keep_size = 4GB\nautovacuum = off\n";
    let site = Site::at(install, &SiteOptions { conf, ..SiteOptions::default() }, place, &url, None)?;
    for database in ["template0", "template1"] {
        site.cluster.psql(&format!("ALTER DATABASE {database} IS_TEMPLATE false"))?;
        site.cluster.psql(&format!("DROP DATABASE {database}"))?;
    }
    site.cluster.psql("CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 1000) n")?;
    site.switch()?;
    Ok(site)
}

pub fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(fs::remove_dir_all(path)?),
        Ok(_) => Ok(fs::remove_file(path)?),
        Err(_) => Ok(()),
    }
}

/// Name of the first segment of the server, and its bytes.
pub fn first_segment(site: &Site) -> Result<(String, Vec<u8>)> {
    let path = site.cluster.wal_files()?.into_iter().next().context("a segment")?;
    let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
    Ok((name.to_owned(), fs::read(&path)?))
}

pub fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

struct Push<'a> {
    site: &'a Site,
    segment: String,
    content: Vec<u8>,
    /// It is stored already: the server asks again after it crashed.
    stored: bool,
    auditor: Auditor,
    before: Objects,
}

impl Work for Push<'_> {
    fn args(&self) -> Vec<String> {
        words(&["archive-push", &format!("pg_wal/{}", self.segment)])
    }

    fn world(&mut self) -> Result<()> {
        let object = self.site.object(&self.segment)?;
        if !self.stored {
            // With its directory, which then must be made durable too.
            remove(object.parent().context("a directory")?)?;
        }
        self.before = objects_in(&self.site.repository)?;
        Ok(())
    }

    fn audit(&mut self, good: bool) -> Result<()> {
        let after = objects_in(&self.site.repository)?;
        self.auditor.check(&self.before, &after)?;
        let comes_back = Auditor::comes_back(&after, &self.segment, &self.content);
        ensure!(comes_back || !good, "a yes, and it does not come back");
        self.before = after;
        Ok(())
    }
}

#[test]
fn a_segment_is_acknowledged_only_if_no_sync_link_or_write_failed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    let (segment, content) = first_segment(&site)?;
    // The whole way up to the root and what holds it.
    for (stored, syncs) in [(false, 4), (true, 4)] {
        let auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
        let (segment, content) = (segment.clone(), content.clone());
        let mut push = Push { site: &site, segment, content, stored, auditor, before: Objects::new() };
        let hits = refuse_everywhere(
            &site,
            &mut push,
            &["fsync", "fdatasync", "linkat", "renameat", "renameat2", "mkdir"],
        )?;
        ensure!(hits["fsync"] >= syncs, "{hits:?}");
    }
    Ok(())
}

struct Get<'a> {
    site: &'a Site,
    segment: String,
    content: Vec<u8>,
    /// What has the name before.
    old: Option<Vec<u8>>,
}

impl Get<'_> {
    fn destination(&self) -> PathBuf {
        self.site.cluster.data.join("pg_wal/RECOVERYXLOG")
    }
}

impl Work for Get<'_> {
    fn args(&self) -> Vec<String> {
        words(&["archive-get", &self.segment, "pg_wal/RECOVERYXLOG"])
    }

    fn codes(&self) -> &'static [i32] {
        &[201]
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.destination())?;
        if let Some(old) = &self.old {
            fs::write(self.destination(), old)?;
            super::support::cluster::give_to_server(&self.destination())?;
        }
        Ok(())
    }

    fn audit(&mut self, good: bool) -> Result<()> {
        let found = fs::read(self.destination()).ok();
        let whole = found.as_ref() == Some(&self.content);
        ensure!(whole || (!good && found == self.old), "neither the old file nor the new one");
        Ok(())
    }
}

#[test]
fn a_segment_that_could_not_be_delivered_is_doubt_and_never_the_end_of_wal() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    let (segment, content) = first_segment(&site)?;
    for old in [None, Some(b"of an earlier attempt".to_vec())] {
        let renames = usize::from(old.is_some());
        let (segment, content) = (segment.clone(), content.clone());
        let mut get = Get { site: &site, segment, content, old };
        let hits =
            refuse_everywhere(&site, &mut get, &["fsync", "fdatasync", "linkat", "renameat", "renameat2"])?;
        ensure!(hits["fsync"] >= 1 && hits["linkat"] >= 1, "{hits:?}");
        ensure!(hits["renameat"] >= renames, "{hits:?}");
    }
    Ok(())
}

/// What a backup is judged by: the auditor takes each verdict's packs apart.
struct Backup<'a> {
    site: &'a Site,
    auditor: Auditor,
    before: Objects,
}

/// Verdicts of complete backups.
fn complete(objects: &Objects) -> usize {
    let verdicts = objects.iter().filter(|(key, _)| key.ends_with("/backup.json"));
    verdicts.filter(|(_, bytes)| String::from_utf8_lossy(bytes).contains("\"complete\"")).count()
}

impl Work for Backup<'_> {
    fn args(&self) -> Vec<String> {
        words(&["backup"])
    }

    /// As expiry would: the auditor need not take dozens apart.
    fn world(&mut self) -> Result<()> {
        for entry in fs::read_dir(self.site.folder()?.join("backups"))?.flatten() {
            remove(&entry.path())?;
        }
        remove(&self.site.folder()?.join("leases"))?;
        self.before = objects_in(&self.site.repository)?;
        Ok(())
    }

    fn audit(&mut self, good: bool) -> Result<()> {
        let after = objects_in(&self.site.repository)?;
        self.auditor.check(&self.before, &after)?;
        ensure!(!good || complete(&after) > complete(&self.before), "a yes without a verdict");
        self.before = after;
        Ok(())
    }
}

#[test]
fn a_backup_is_complete_only_if_no_sync_link_or_write_failed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    site.backup()?;
    let auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
    let mut work = Backup { site: &site, auditor, before: Objects::new() };
    let hits = refuse_everywhere(&site, &mut work, &["fsync", "fdatasync", "linkat", "mkdir"])?;
    ensure!(hits["fsync"] >= 2 && hits["linkat"] >= 1, "{hits:?}");
    Ok(())
}

struct Copy {
    target: PathBuf,
    /// A restore that nothing disturbed.
    good: BTreeMap<PathBuf, Vec<u8>>,
}

/// Every file of a restored directory but those in which two restores of one backup differ: a free port, the time.
fn restored(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let own = ["postgresql.conf", "postgresql.auto.conf", "pitr.copy"];
    let mut found = BTreeMap::new();
    super::support::restored::walk(root, &mut |path| {
        let name = path.strip_prefix(root).unwrap_or(path).to_owned();
        if !own.iter().any(|own| name == Path::new(own)) {
            found.insert(name, fs::read(path).unwrap_or_default());
        }
    })?;
    Ok(found)
}

impl Work for Copy {
    fn args(&self) -> Vec<String> {
        words(&["restore", "--copy", "--target-dir", &self.target.display().to_string()])
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.target)
    }

    fn audit(&mut self, good: bool) -> Result<()> {
        let could_start = self.target.join("global/pg_control").exists();
        ensure!(could_start == good, "it could start: {could_start}");
        if good {
            let found = restored(&self.target)?;
            let wrong: Vec<_> =
                found.iter().filter(|(path, bytes)| self.good.get(*path) != Some(bytes)).collect();
            ensure!(
                wrong.is_empty() && found.len() == self.good.len(),
                "{:?}",
                wrong.iter().map(|(p, _)| p).collect::<Vec<_>>()
            );
        }
        Ok(())
    }
}

#[test]
fn a_restored_directory_can_start_only_if_no_sync_rename_or_write_failed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    site.backup()?;
    let target = site.place().join("target");
    let mut work = Copy { target: target.clone(), good: BTreeMap::new() };
    Answer::of(&mut command(&site, &work)?)?.expect(0, &[])?;
    work.good = restored(&target)?;
    let hits = refuse_everywhere(
        &site,
        &mut work,
        &["fsync", "fdatasync", "syncfs", "linkat", "renameat", "renameat2", "mkdir", "pwrite64"],
    )?;
    ensure!(
        hits["syncfs"] >= 1 && hits["renameat2"] >= 1 && hits["pwrite64"] >= 3 && hits["fsync"] >= 3,
        "{hits:?}"
    );
    Ok(())
}

struct Expire<'a> {
    site: &'a Site,
    /// The repository as each round finds it.
    world: PathBuf,
    /// The data that all runs there may be leave.
    kept: Objects,
}

/// Backups and WAL; everything else has numbers or names of its own in every run.
fn data(objects: Objects) -> Objects {
    let is_data = |key: &str| key.contains("/backups/") || key.contains("/wal/");
    objects.into_iter().filter(|(key, _)| is_data(key)).collect()
}

impl Work for Expire<'_> {
    fn args(&self) -> Vec<String> {
        words(&["expire"])
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.site.repository)?;
        let mut copy = Command::new("cp");
        super::support::cluster::run(copy.arg("-a").args([&self.world, &self.site.repository])).map(drop)
    }

    fn audit(&mut self, good: bool) -> Result<()> {
        let left = data(objects_in(&self.site.repository)?);
        let lost: Vec<_> = self.kept.iter().filter(|(key, bytes)| left.get(*key) != Some(*bytes)).collect();
        ensure!(
            lost.is_empty(),
            "gone, or changed: {:?}",
            lost.iter().map(|(key, _)| key).collect::<Vec<_>>()
        );
        ensure!(
            !good || left.len() == self.kept.len(),
            "{:?} is left of {:?}",
            left.keys(),
            self.kept.keys()
        );
        Ok(())
    }

    fn can_do_without(&self, call: &str) -> bool {
        // What told the store's time is removed, if it can be; the next run does not mind it.
        call.contains("/repo/main>")
    }
}

#[test]
fn expire_keeps_what_it_keeps_and_owns_up_to_every_sync_that_failed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let site = site(&install)?;
    let url = format!("url = \"file://{}\"", site.repository.display());
    let retention = "retention = { window = \"1ms\", grace = \"0\" }";
    site.write_config(&format!("[[repository]]\nname = \"only\"\n{url}\n{retention}\n"))?;
    for n in 1..=3 {
        site.backup()?;
        site.cluster.psql(&format!("INSERT INTO t VALUES ({n}, 'more')"))?;
        site.switch()?;
    }
    let expire = || site.ask(&["expire"])?.expect(0, &[]);
    expire()?;
    let world = site.place().join("marked");
    super::support::cluster::run(Command::new("cp").arg("-a").args([&site.repository, &world]))?;
    expire()?;
    expire()?;
    let kept = data(objects_in(&site.repository)?);
    let mut work = Expire { site: &site, world, kept };
    let hits = refuse_everywhere(&site, &mut work, &["fsync", "fdatasync", "linkat", "unlink", "unlinkat"])?;
    ensure!(hits["fsync"] >= 2 && hits["unlink"] >= 1, "{hits:?}");
    Ok(())
}
