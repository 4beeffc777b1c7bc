//! Real file systems that are full, read-only or find out late: under the repository, and under what `archive-get` writes.
//!
//! Whatever writes says what is full or read-only and what to do, and leaves nothing half done; whatever only reads works: a full or
//! write-protected repository is one to restore from. Needs root, to mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::support::agent::{Agent, configure, own_repository, status};
use super::support::audit::{Auditor, Objects, objects_in};
use super::support::cluster::{Cluster, Install, give_to_server, run, scratch};
use super::support::mounted::Mounted;
use super::support::site::{Site, SiteOptions, open, until};

/// A server whose repository is a small file system, with a backup, a row that only WAL has, and three segments that are not
/// archived yet.
struct World {
    site: Site,
    small: Mounted,
    waiting: Vec<String>,
}

impl World {
    fn new(install: &Install) -> Result<Option<Self>> {
        let place = scratch("pitr-full-")?;
        let repository = place.path().join("repo");
        let Some(small) = Mounted::at(&repository, "64m")? else { return Ok(None) };
        let url = format!("file://{}", repository.display());
        let conf = "wal_keep_size = 4GB\nautovacuum = off\n";
        let site = Site::at(install, &SiteOptions { conf, ..SiteOptions::default() }, place, &url, None)?;
        site.backup()?;
        site.cluster.psql("CREATE TABLE t AS SELECT 42 AS n")?;
        site.switch()?;
        let rows = "CREATE TABLE random AS SELECT md5(random()::text) x FROM generate_series(1, 60000)";
        site.cluster.psql("ALTER SYSTEM SET archive_command = 'false'; SELECT pg_reload_conf();")?;
        site.cluster.psql(rows)?;
        site.cluster.psql("SELECT pg_switch_wal()")?;
        let mut waiting = Vec::new();
        for path in site.cluster.wal_files()? {
            let name = path.file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
            if !site.object(&name)?.exists() {
                waiting.push(name);
            }
        }
        // The last one is being written.
        waiting.pop();
        ensure!(waiting.len() >= 3, "{waiting:?}");
        Ok(Some(Self { site, small, waiting }))
    }

    fn objects(&self) -> Result<Objects> {
        let mut found = objects_in(&self.site.repository)?;
        found.remove("filler");
        Ok(found)
    }

    /// The commands that only read do their work, and what they restore can be opened.
    fn can_be_read(&self) -> Result<()> {
        self.site.ask(&["info"])?.expect(0, &[])?;
        self.site.ask(&["verify"])?.expect(0, &[])?;
        let first = self.site.cluster.wal_files()?.into_iter().find(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            self.site.object(name).is_ok_and(|object| object.exists())
        });
        let first = first.context("an archived segment")?;
        let name = first.file_name().and_then(|name| name.to_str()).context("a name")?;
        self.site.ask(&["archive-get", name, "pg_wal/RECOVERYXLOG"])?.expect(0, &[])?;
        ensure!(fs::read(self.site.cluster.data.join("pg_wal/RECOVERYXLOG"))? == fs::read(&first)?);
        let copy = Cluster::around(&self.site.cluster.install)?;
        let target = copy.data.display().to_string();
        let answer = self.site.ask(&["restore", "--copy", "--target-dir", &target])?;
        ensure!(answer.code == 0 && answer.out.contains("could not be pinned"), "{answer:?}");
        open(&copy)?;
        ensure!(copy.psql("SELECT n FROM t")? == "42");
        Ok(())
    }
}

#[test]
fn a_full_repository_takes_nothing_half_and_can_be_restored_from() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let Some(world) = World::new(&install)? else { return Ok(()) };
    let mut auditor = Auditor::of_server(&world.site.cluster.data.join("pg_wal"));
    let before = world.objects()?;
    auditor.check(&Objects::new(), &before)?;
    let push = format!("pg_wal/{}", world.waiting[0]);
    for (args, kib) in [
        (vec!["archive-push", &push], 0),
        (vec!["archive-push", &push], 16),
        (vec!["archive-push", &push], 128),
        (vec!["backup"], 0),
        (vec!["backup"], 64),
        (vec!["backup"], 512),
        (vec!["expire"], 0),
    ] {
        let filler = world.small.fill(kib)?;
        let answer = world.site.ask(&args)?;
        let full = ["No space left on device", "HINT: make room in the repository"];
        answer.expect(1, &full).with_context(|| format!("{args:?} with {kib} KiB"))?;
        ensure!(answer.err.contains(&*world.site.repository.to_string_lossy()), "{answer:?}");
        drop(filler);
        auditor.check(&before, &world.objects()?).with_context(|| format!("{args:?} with {kib} KiB"))?;
    }
    let filler = world.small.fill(0)?;
    world.can_be_read()?;
    drop(filler);
    for name in &world.waiting {
        world.site.ask(&["archive-push", &format!("pg_wal/{name}")])?.expect(0, &[])?;
    }
    world.site.ask(&["backup"])?.expect(0, &[])?;
    auditor.check(&before, &world.objects()?)?;
    ensure!(auditor.whole_backups() == 2, "{}", auditor.whole_backups());
    Ok(())
}

#[test]
fn a_full_repository_gets_no_yes_from_an_agent_until_there_is_room() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let Some(world) = World::new(&install)? else { return Ok(()) };
    let mut auditor = Auditor::of_server(&world.site.cluster.data.join("pg_wal"));
    let before = world.objects()?;
    auditor.check(&Objects::new(), &before)?;
    configure(&world.site, &own_repository(&world.site))?;
    let push = format!("pg_wal/{}", world.waiting[0]);
    for kib in [0, 16, 128] {
        let filler = world.small.fill(kib)?;
        let agent = Agent::start(&world.site)?;
        let full = ["No space left on device", "HINT: make room in the repository"];
        world.site.ask(&["archive-push", &push])?.expect(1, &full).with_context(|| agent.log())?;
        ensure!(status(&world.site)?["repositories"][0]["failing"].is_string(), "{kib} KiB");
        agent.end(nix::sys::signal::Signal::SIGKILL)?;
        drop(filler);
        auditor.check(&before, &world.objects()?).with_context(|| format!("{kib} KiB"))?;
    }
    let filler = world.small.fill(0)?;
    let agent = Agent::start(&world.site)?;
    ensure!(world.site.ask(&["archive-push", &push])?.code == 1);
    drop(filler);
    // The same agent goes on by itself.
    for name in &world.waiting {
        until(|| Ok(world.site.object(name)?.exists()), || agent.log())?;
        world.site.ask(&["archive-push", &format!("pg_wal/{name}")])?.expect(0, &[])?;
    }
    auditor.check(&before, &world.objects()?)
}

#[test]
fn a_read_only_repository_refuses_every_write_and_can_be_restored_from() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let Some(world) = World::new(&install)? else { return Ok(()) };
    let id = world.site.json(&["info", "--json"])?["repositories"][0]["backups"][0]["id"]
        .as_str()
        .context("an id")?
        .to_owned();
    world.small.remount("ro")?;
    let before = world.objects()?;
    let push = format!("pg_wal/{}", world.waiting[0]);
    for args in [vec!["archive-push", &push], vec!["backup"], vec!["expire"], vec!["pin", &id]] {
        let answer = world.site.ask(&args)?;
        answer.expect(7, &["Read-only file system", "HINT: "]).with_context(|| format!("{args:?}"))?;
        ensure!(answer.err.contains(&*world.site.repository.to_string_lossy()), "{answer:?}");
    }
    let check = world.site.ask(&["check"])?;
    ensure!(check.code == 1 && check.out.contains("Read-only file system"), "{check:?}");
    world.can_be_read()?;
    ensure!(world.objects()? == before);
    world.small.remount("rw")?;
    world.site.ask(&["archive-push", &push])?.expect(0, &[])
}

#[test]
fn a_segment_for_a_full_or_read_only_disk_is_doubt_and_leaves_nothing() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let Some(world) = World::new(&install)? else { return Ok(()) };
    let place = world.site.place().join("small");
    let Some(small) = Mounted::at(&place, "512k")? else { return Ok(()) };
    let stored = world.site.cluster.wal_files()?;
    let segment =
        stored.iter().find(|path| !world.waiting.iter().any(|name| path.ends_with(name))).context("one")?;
    let name = segment.file_name().and_then(|name| name.to_str()).context("a name")?;
    let destination = place.join("RECOVERYXLOG");
    let args = ["archive-get", name, destination.to_str().context("a path")?];
    let shown = destination.display().to_string();
    let names = || -> Result<usize> { Ok(fs::read_dir(&place)?.count()) };
    world
        .site
        .ask(&args)?
        .expect(201, &["No space left on device", &shown, "HINT: the disk", "make room"])?;
    ensure!(names()? == 0, "something is left");
    small.remount("size=8m,ro")?;
    world
        .site
        .ask(&args)?
        .expect(201, &["Read-only file system", &shown, "HINT: is it mounted read-only?"])?;
    ensure!(names()? == 0, "something is left");
    small.remount("rw")?;
    world.site.ask(&args)?.expect(0, &[])?;
    ensure!(fs::read(&destination)? == fs::read(segment)?);
    Ok(())
}

/// A file system that has promised more than its disk can hold: writes succeed, and the kernel finds out when it is asked to sync.
struct Thin {
    place: PathBuf,
    disk: Mounted,
    image: PathBuf,
}

impl Thin {
    /// `None`, said as a skipped test does, where there are no loop devices.
    fn mount(place: &Path, disk: &Path) -> Result<Option<Self>> {
        let Some(disk) = Mounted::at(disk, "8m")? else { return Ok(None) };
        let image = disk.place().join("image");
        fs::File::create(&image)?.set_len(96 << 20)?;
        let made =
            Command::new("mkfs.ext4").args(["-q", "-J", "size=4", "-E", "nodiscard"]).arg(&image).output();
        let thin = Self { place: place.to_owned(), disk, image };
        fs::create_dir_all(place)?;
        if !made.is_ok_and(|output| output.status.success()) || thin.again().is_err() {
            eprintln!("SKIPPED: no loop device, or no mkfs.ext4");
            return Ok(None);
        }
        give_to_server(place)?;
        Ok(Some(thin))
    }

    fn again(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.place)).map(drop)
    }

    fn unmount(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.place)).map(drop)
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.place).status().ok();
    }
}

#[test]
fn what_was_acknowledged_is_on_a_disk_whose_syncs_begin_to_fail() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let place = scratch("pitr-thin-")?;
    let (repository, disk) = (place.path().join("repo"), place.path().join("disk"));
    let Some(thin) = Thin::mount(&repository, &disk)? else { return Ok(()) };
    let options = SiteOptions { conf: "wal_keep_size = 4GB\n", archives: false, ..SiteOptions::default() };
    let site = Site::at(&install, &options, place, &format!("file://{}", repository.display()), None)?;
    let rows =
        "CREATE TABLE t AS SELECT decode(md5(random()::text), 'hex') x FROM generate_series(1, 400000)";
    site.cluster.psql(rows)?;
    let mut files = site.cluster.wal_files()?;
    // The last one is being written.
    files.pop();
    let mut acknowledged = Vec::new();
    let failed = files.iter().find_map(|file| {
        let answer = site.ask(&["archive-push", file.to_str()?]).ok()?;
        acknowledged.extend((answer.code == 0).then_some(file));
        (answer.code != 0).then_some(answer)
    });
    let failed = failed.context("the disk held it all")?;
    ensure!([1, 7].contains(&failed.code) && failed.err.contains("HINT: "), "{failed:?}");
    ensure!(acknowledged.len() > 3, "{acknowledged:?}");
    // What is only in memory is forgotten.
    thin.unmount()?;
    thin.disk.remount("size=96m")?;
    thin.again()?;
    let stored = objects_in(&site.repository)?;
    for file in &acknowledged {
        let name = file.file_name().and_then(|name| name.to_str()).context("a name")?;
        ensure!(Auditor::comes_back(&stored, name, &fs::read(file)?), "{name} was acknowledged, and is gone");
    }
    // With room again, all is taken.
    files
        .iter()
        .try_for_each(|file| site.ask(&["archive-push", file.to_str().unwrap_or_default()])?.expect(0, &[]))
}
