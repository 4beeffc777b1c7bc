//! Base backups of real servers, taken by the program as users run it, and judged by tools that are not ours.
//!
//! The oracles: `zstd` and `tar` unpack what is stored, `pg_verifybackup` compares it with the server's own manifest, and the manifest of
//! pitr is compared with the unpacked files. Nothing here restores: that has its own tests.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};
use pitr::durable::Owner;
use pitr::ops::Silent;
use pitr::ops::backup::catalogue::{Catalogue, ConfigRole};
use pitr::ops::backup::{BackupRequest, WAL_PATIENCE, backup};
use pitr::pgdata::backup_manifest::crc32c_hex;
use pitr::pgwire::{Checkpoint, ConnInfo, Deadlines, Environment};
use pitr::repo::manifest::FileKind;
use pitr::repo::objects::{Backup, Checksums, Verdict};
use pitr::repo::path::{BackupObject, Sealing};
use pitr::repo::{NewIdentity, Repository, System};
use pitr::store::{Store, StoreOptions};
use pitr::wal::{PgMajor, SegmentSize, SystemId};
use tokio_util::sync::CancellationToken;

use support::cluster::{Cluster, Install, MAJORS, Options, Stop, as_server, give_to_server, run, scratch};

const PITR: &str = env!("CARGO_BIN_EXE_pitr");

/// A cluster that archives into a repository of its own.
struct World {
    cluster: Cluster,
    // Kept for its directory.
    _place: tempfile::TempDir,
    config: PathBuf,
    repository: PathBuf,
    system: System,
}

impl World {
    fn new(install: &Install) -> Result<Self> {
        let place = scratch("pitr-repo-")?;
        let repository = place.path().join("repo");
        Self::at(install, place, repository)
    }

    fn at(install: &Install, place: tempfile::TempDir, repository: PathBuf) -> Result<Self> {
        let config = place.path().join("pitr.toml");
        let conf = format!(
            "wal_level = replica\narchive_mode = on\narchive_command = '{PITR} --config {} archive-push %p'\n\
             checkpoint_timeout = 1h\n",
            config.display()
        );
        let cluster = Cluster::init(install, &Options { segment_mib: 1, conf, ..Options::default() })?;
        let text = format!(
            "cluster = \"main\"\ntimezone = \"UTC\"\nstate_dir = \"{}\"\n[postgres]\nconninfo = \"{}\"\ndata_dir = \"{}\"\n\
             [[repository]]\nname = \"local\"\nurl = \"file://{}\"\n",
            place.path().join("state").display(),
            cluster.conninfo(),
            cluster.data.display(),
            repository.display(),
        );
        fs::write(&config, text)?;
        give_to_server(&config)?;
        cluster.start()?;
        let system = wait(identity(&cluster, &repository))?;
        Ok(Self { cluster, _place: place, config, repository, system })
    }

    fn pitr(&self, args: &[&str]) -> Result<Command> {
        let mut command = as_server(PITR)?;
        command.arg("--config").arg(&self.config).args(args);
        Ok(command)
    }

    fn backup(&self) -> Result<Output> {
        Ok(self.pitr(&["backup", "--json"])?.output()?)
    }

    fn good_backup(&self) -> Result<Backup> {
        let output = self.backup()?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}: {said}\n{}", output.status, self.cluster.log_text());
        let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(json["schema"] == "pitr.backup.v1", "{json}");
        let complete = self.complete()?;
        let found = complete.into_iter().find(|backup| json["id"] == backup.id.as_str());
        found.with_context(|| format!("{} is not listed", json["id"]))
    }

    /// What became of every backup, by its verdict.
    /// Complete ones first, then abandoned, then those without: within one second the order of ids is chance.
    fn verdicts(&self) -> Result<Vec<Option<Verdict>>> {
        let ids = wait(self.system.repository().store().list_dirs(&self.system.keys().backups_dir()))?;
        let found = ids.iter().map(|id| Ok(wait(self.system.verdict(&id.parse()?))?));
        let mut found: Vec<Option<Verdict>> = found.collect::<Result<_>>()?;
        found.sort_by_key(|verdict| match verdict {
            Some(Verdict::Complete(_)) => 0,
            Some(Verdict::Abandoned(_)) => 1,
            None => 2,
        });
        Ok(found)
    }

    fn complete(&self) -> Result<Vec<Backup>> {
        let verdicts = self.verdicts()?.into_iter().flatten();
        Ok(verdicts
            .filter_map(|verdict| match verdict {
                Verdict::Complete(backup) => Some(*backup),
                Verdict::Abandoned(_) => None,
            })
            .collect())
    }

    fn repository_again(&self) -> Repository {
        self.system.repository().clone()
    }

    fn object(&self, backup: &Backup, object: BackupObject) -> PathBuf {
        self.repository.join(self.system.keys().backup(&backup.id, object))
    }

    /// Unpacks a backup as the manual tells people to do without pitr.
    fn unpack(&self, backup: &Backup) -> Result<tempfile::TempDir> {
        let into = scratch("pitr-unpacked-")?;
        let dir = self.object(backup, BackupObject::Intent);
        let script = format!(
            "set -o pipefail; cat {}/pack-* | zstd -dc | tar -x -C {} --no-same-owner",
            dir.parent().context("a folder")?.display(),
            into.path().display()
        );
        run(as_server("/bin/bash")?.args(["-c", &script]))?;
        let names = script.replace("tar -x", "tar -t").replace("--no-same-owner", "| tail -n 1");
        let last = run(as_server("/bin/bash")?.args(["-c", &names]))?;
        // A standby's copy is consistent only if its control file is younger than all other files.
        ensure!(last.trim() == "global/pg_control", "the last member is {last}");
        Ok(into)
    }
}

/// Blocks on a call of the library.
fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

async fn identity(cluster: &Cluster, at: &Path) -> Result<System> {
    let owner = Owner::of(&cluster.data)?.to_give();
    let store = Store::open(
        &format!("file://{}", at.display()).parse()?,
        &StoreOptions { owner, ..StoreOptions::default() },
    )?;
    store.make_root().await?;
    let system: u64 = cluster.psql("SELECT system_identifier FROM pg_control_system()")?.parse()?;
    let major = PgMajor::from_number(cluster.install.major).context("a known major")?;
    let new = NewIdentity {
        system: SystemId::new(system),
        major,
        segment_size: SegmentSize::new(1 << 20)?,
        sealing: Sealing::Plain,
    };
    let repository = Repository::new(store, "local", "main".parse()?, true);
    Ok(repository.create_identity(new, jiff::Timestamp::now()).await?.0)
}

/// Transactions until it is dropped.
struct Load(Child);

impl Load {
    fn on(cluster: &Cluster) -> Result<Self> {
        run(cluster.client("pgbench", "postgres")?.args(["-i", "-q", "-s", "2"]))?;
        let mut bench = cluster.client("pgbench", "postgres")?;
        bench.args(["-n", "-c", "2", "-T", "300", "-R", "200"]).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(bench.spawn()?))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What `backup_manifest` and pitr's manifest say, against files on disk.
fn assert_intact(world: &World, backup: &Backup) -> Result<()> {
    let unpacked = world.unpack(backup)?;
    let manifest = wait(world.system.manifest(backup))?;
    let mut files = BTreeMap::new();
    for entry in manifest.entries() {
        let entry = entry?;
        let path = unpacked.path().join(entry.path.to_string());
        match entry.kind {
            FileKind::File { size, checksum, .. } => {
                let bytes = fs::read(&path)?;
                ensure!(u64::try_from(bytes.len())? == size, "{}: size", entry.path);
                let crc = format!("CRC32C:{}", crc32c_hex(crc32c::crc32c(&bytes)));
                ensure!(checksum == Some(crc), "{}: checksum", entry.path);
            }
            FileKind::Directory => ensure!(path.is_dir(), "{} is no directory", entry.path),
            FileKind::Symlink { .. } => ensure!(path.is_symlink(), "{} is no link", entry.path),
        }
        files.insert(entry.path.to_string(), entry.mode);
    }
    ensure!(files.len() == usize::try_from(backup.files)?, "the verdict counts {} files", backup.files);
    ensure!(
        files.contains_key("pg_wal/archive_status") && files.contains_key("pg_replslot"),
        "empty directories"
    );
    fs::copy(world.object(backup, BackupObject::PgManifest), unpacked.path().join("backup_manifest"))?;
    give_to_server(&unpacked.path().join("backup_manifest"))?;
    run(as_server(world.cluster.install.tool("pg_verifybackup"))?.arg("-n").arg(unpacked.path()))?;
    Ok(())
}

/// All WAL from start to stop is stored, in the words of the repository.
fn assert_wal_is_there(world: &World, backup: &Backup) -> Result<()> {
    let listed = wait(world.system.segments(backup.timeline))?;
    let size = backup.segment_size;
    let first = pitr::wal::SegmentNo::containing(backup.start_lsn, size).get();
    let last = pitr::wal::SegmentNo::ending_at(backup.stop_lsn, size).get();
    for number in first..=last {
        let name = pitr::wal::SegmentName::new(backup.timeline, pitr::wal::SegmentNo::new(number), size);
        ensure!(listed.iter().any(|segment| segment.name == name), "{name} is not stored");
    }
    Ok(())
}

fn backup_under_load(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let world = World::new(&install)?;
    let load = Load::on(&world.cluster)?;
    let first = world.good_backup()?;
    let second = world.good_backup()?;
    // Pages change under the hands of the reader all the while: none of them may be called damaged.
    let third = world.good_backup()?;
    drop(load);
    for backup in [&first, &second] {
        assert_intact(&world, backup)?;
        assert_wal_is_there(&world, backup)?;
        ensure!(backup.window_earliest.is_some(), "there were commits");
        ensure!(backup.stop_time >= backup.started_at, "{} {}", backup.stop_time, backup.started_at);
    }
    ensure!(second.stop_lsn > first.stop_lsn);
    for backup in [&first, &second, &third] {
        ensure!(backup.checksums == Checksums::Ok && backup.damage.is_empty(), "{:?}", backup.damage);
    }
    Ok(())
}

#[test]
fn a_backup_under_load_is_what_the_server_sent_13() -> Result<()> {
    backup_under_load(MAJORS[0])
}

#[test]
fn a_backup_under_load_is_what_the_server_sent_14() -> Result<()> {
    backup_under_load(MAJORS[1])
}

#[test]
fn a_backup_under_load_is_what_the_server_sent_15() -> Result<()> {
    backup_under_load(MAJORS[2])
}

#[test]
fn a_backup_under_load_is_what_the_server_sent_16() -> Result<()> {
    backup_under_load(MAJORS[3])
}

#[test]
fn a_backup_under_load_is_what_the_server_sent_17() -> Result<()> {
    backup_under_load(MAJORS[4])
}

#[test]
fn a_backup_under_load_is_what_the_server_sent_18() -> Result<()> {
    backup_under_load(MAJORS[5])
}

#[test]
fn tablespaces_and_an_idle_server() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let space = world.cluster.root().join("a \\ space");
    fs::create_dir(&space)?;
    give_to_server(&space)?;
    let location = space.display();
    world.cluster.psql(&format!(
        "CREATE TABLESPACE far LOCATION '{location}'; CREATE TABLE t TABLESPACE far AS SELECT generate_series(1, 100000) n"
    ))?;
    let oid = world.cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'far'")?;
    let backup = world.good_backup()?;
    assert_intact(&world, &backup)?;
    let spaces: Vec<_> = backup.tablespaces.iter().map(|t| (t.oid.to_string(), t.location.clone())).collect();
    assert_eq!(spaces, [(oid.clone(), space.display().to_string())]);
    let manifest = wait(world.system.manifest(&backup))?;
    let prefix = format!("pg_tblspc/{oid}/PG_15_");
    ensure!(
        manifest.entries().filter_map(Result::ok).any(|e| e.path.to_string().starts_with(&prefix)),
        "{prefix}"
    );
    // Nothing happens on the server any more: the backup must not wait for somebody's transaction.
    let began = Instant::now();
    let idle = world.good_backup()?;
    ensure!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_wal_is_there(&world, &idle)
}

#[test]
fn a_lost_connection_leaves_no_backup_and_says_so() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    world.cluster.psql("CREATE TABLE t AS SELECT repeat('x', 100) x FROM generate_series(1, 100000)")?;
    let running = world.pitr(&["backup", "--max-rate", "2MiB"])?.stderr(Stdio::piped()).spawn()?;
    world
        .cluster
        .wait_for("SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase LIKE 'streaming%'", "1")?;
    world.cluster.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")?;
    let output = running.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    ensure!(said.contains("the base backup was interrupted"), "{said}");
    let verdicts = world.verdicts()?;
    ensure!(matches!(verdicts.as_slice(), [Some(Verdict::Abandoned(_))]), "{verdicts:?}");
    world.good_backup().map(drop)
}

#[test]
fn ctrl_c_ends_a_backup_with_130_and_the_next_one_succeeds() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    world.cluster.psql("CREATE TABLE t AS SELECT repeat('x', 100) x FROM generate_series(1, 100000)")?;
    let mut running = world.pitr(&["backup", "--max-rate", "2MiB"])?.stderr(Stdio::null()).spawn()?;
    world
        .cluster
        .wait_for("SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase LIKE 'streaming%'", "1")?;
    signal(&running, nix::sys::signal::Signal::SIGINT)?;
    assert_eq!(running.wait()?.code(), Some(130));
    let verdicts = world.verdicts()?;
    ensure!(matches!(verdicts.as_slice(), [Some(Verdict::Abandoned(_))]), "{verdicts:?}");
    world.good_backup().map(drop)
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(child.id())?), signal)?)
}

#[test]
fn a_second_backup_meanwhile_is_busy_and_leaves_nothing() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    world.cluster.psql("CREATE TABLE t AS SELECT repeat('x', 100) x FROM generate_series(1, 100000)")?;
    let mut running = world.pitr(&["backup", "--max-rate", "4MiB"])?.stderr(Stdio::null()).spawn()?;
    world
        .cluster
        .wait_for("SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase LIKE 'streaming%'", "1")?;
    let second = world.backup()?;
    assert_eq!(second.status.code(), Some(8), "{}", String::from_utf8_lossy(&second.stderr));
    assert_eq!(world.verdicts()?, [None]);
    ensure!(running.wait()?.success());
    ensure!(matches!(world.verdicts()?.as_slice(), [Some(Verdict::Complete(_))]));
    Ok(())
}

#[test]
fn killed_at_any_moment_it_leaves_nothing_that_stops_the_next() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    world.cluster.psql("CREATE TABLE t AS SELECT repeat('x', 100) x FROM generate_series(1, 200000)")?;
    let began = Instant::now();
    world.good_backup()?;
    let whole = began.elapsed();
    let moments = 12;
    for moment in 1..=moments {
        let mut running = world.pitr(&["backup"])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        thread::sleep(whole * moment / moments);
        running.kill()?;
        let status = running.wait()?;
        let before = world.complete()?.len();
        let next =
            world.good_backup().with_context(|| format!("after a kill at {moment}/{moments} ({status})"))?;
        ensure!(world.complete()?.len() == before + 1, "{moment}: only the new one is added");
        if moment == moments {
            assert_intact(&world, &next)?;
        }
    }
    for backup in world.complete()? {
        assert_wal_is_there(&world, &backup)?;
    }
    Ok(())
}

#[test]
fn a_full_repository_is_a_clear_error_and_no_backup() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let place = scratch("pitr-full-")?;
    let repository = place.path().join("small");
    fs::create_dir(&repository)?;
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"]).arg(&repository).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED mounting a small file system needs root");
        return Ok(());
    }
    give_to_server(&repository)?;
    let result = (|| {
        let world = World::at(&install, place, repository.clone())?;
        // Random text, which does not compress.
        world.cluster.psql(
            "CREATE TABLE t AS SELECT md5(random()::text) || md5(random()::text) x FROM generate_series(1, 300000)",
        )?;
        let output = world.backup()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        ensure!(said.contains("No space left") && said.contains("make room in the repository"), "{said}");
        assert_eq!(world.complete()?, Vec::new());
        Ok(())
    })();
    Command::new("umount").arg("--lazy").arg(&repository).status()?;
    result
}

/// A page of a table on the server's disk is overwritten behind its back.
fn damage(world: &World, file: &str, block: usize, edit: impl Fn(&mut [u8])) -> Result<()> {
    world.cluster.psql("CHECKPOINT")?;
    let path = world.cluster.data.join(file);
    let mut bytes = fs::read(&path)?;
    edit(bytes.get_mut(block * 8192..(block + 1) * 8192).context("no such block")?);
    Ok(fs::write(&path, bytes)?)
}

/// The one backup of this world with damaged pages, after one that must find them.
fn corrupt_backup(world: &World, place: &str) -> Result<Backup> {
    let output = world.backup()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{said}");
    ensure!(said.contains(place), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        json["checksums"] == "corrupt" && json["damage"].as_array().is_some_and(|l| !l.is_empty()),
        "{json}"
    );
    let mut marked = world.complete()?;
    marked.retain(|backup| backup.checksums == Checksums::Corrupt);
    ensure!(marked.len() == 1, "{marked:?}");
    let backup = marked.remove(0);
    // By our own look, whatever the server said.
    ensure!(backup.damage.iter().any(|line| line.starts_with(place)), "{:?}", backup.damage);
    Ok(backup)
}

#[test]
fn damaged_pages_are_reported_and_not_kept_as_a_good_backup() -> Result<()> {
    // Before 15 each archive is a copy of its own.
    for install in [13, 15].into_iter().filter_map(Install::find_or_skip) {
        damaged_pages(&install).with_context(|| format!("PostgreSQL {}", install.major))?;
    }
    Ok(())
}

fn damaged_pages(install: &Install) -> Result<()> {
    let world = World::new(install)?;
    world.cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 10000) n")?;
    let file = world.cluster.psql("SELECT pg_relation_filepath('t')")?;
    damage(&world, &file, 3, |page| page[5000] ^= 0xFF)?;
    let corrupt = corrupt_backup(&world, &format!("{file}, block 3: it carries checksum "))?;
    // It is what the server holds, and listed as what it is.
    assert_intact(&world, &corrupt)?;
    assert_wal_is_there(&world, &corrupt)?;
    let info: serde_json::Value = serde_json::from_str(&run(&mut world.pitr(&["info", "--json"])?)?)?;
    let listed = &info["repositories"][0]["backups"][0];
    ensure!(listed["id"] == corrupt.id.as_str() && listed["restorable"] == false, "{info}");
    ensure!(
        listed["state"].as_str().is_some_and(|s| s.contains("corrupt") && s.contains("block 3")),
        "{info}"
    );
    ensure!(info["repositories"][0]["window"]["latest"].is_null(), "{info}");
    let looked = run(&mut world.pitr(&["verify"])?)?;
    ensure!(looked.contains(&format!("backup {} holds damaged pages", corrupt.id)), "{looked}");
    // It is not taken unless it is asked for.
    let elsewhere = world.cluster.root().join("elsewhere").display().to_string();
    let restore = |more: &[&str]| -> Result<Output> {
        let args = ["restore", "--dry-run", "--json", "--copy", "--target-dir", &elsewhere];
        Ok(world.pitr(&args)?.args(more).output()?)
    };
    let refused = restore(&[])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && said.contains(&format!("--backup {}", corrupt.id)), "{said}");
    let named = restore(&["--backup", corrupt.id.as_str()])?;
    let said = String::from_utf8_lossy(&named.stderr);
    ensure!(named.status.success() && said.contains("damaged pages"), "{said}");
    // The page is mended; the next backup is good, and the one that is used.
    damage(&world, &file, 3, |page| page[5000] ^= 0xFF)?;
    let good = world.good_backup()?;
    assert_eq!(good.checksums, Checksums::Ok);
    damage(&world, &file, 3, |page| page[5000] ^= 0xFF)?;
    assert_eq!(world.backup()?.status.code(), Some(6));
    let plan = restore(&[])?;
    let json: serde_json::Value = serde_json::from_slice(&plan.stdout)?;
    ensure!(json["backup"] == good.id.as_str() || json["backup"]["id"] == good.id.as_str(), "{json}");
    Ok(())
}

#[test]
fn a_damaged_page_that_the_server_passes_over_is_found_in_tablespaces_too() -> Result<()> {
    for install in [13, 18].into_iter().filter_map(Install::find_or_skip) {
        let world = World::new(&install)?;
        let space = world.cluster.root().join("far");
        fs::create_dir(&space)?;
        give_to_server(&space)?;
        world.cluster.psql(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()))?;
        world.cluster.psql("CREATE TABLE t TABLESPACE far AS SELECT generate_series(1, 10000) n")?;
        let file = world.cluster.psql("SELECT pg_relation_filepath('t')")?;
        // The server takes a page for newer than the backup by its LSN alone.
        damage(&world, &file, 7, |page| page[..8].fill(0xEE))?;
        // A sector that is gone looks like a page that was half written, and does so still when it is read again.
        damage(&world, &file, 3, |page| page[..512].fill(0))?;
        let corrupt = corrupt_backup(&world, &format!("{file}, block 7: it carries checksum "))?;
        let [late, zero, ..] = corrupt.damage.as_slice() else { anyhow::bail!("{:?}", corrupt.damage) };
        ensure!(late.contains("EEEEEEEE/EEEEEEEE lies past the end"), "{late}");
        ensure!(zero.starts_with(&format!("{file}, block 3: new by its header but not empty")), "{zero}");
    }
    Ok(())
}

#[test]
fn half_a_page_is_noted_and_without_checksums_nothing_is_claimed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    world.cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 10000) n; CHECKPOINT")?;
    let file = world.cluster.psql("SELECT pg_relation_filepath('t')")?;
    let path = world.cluster.data.join(&file);
    let mut bytes = fs::read(&path)?;
    let blocks = bytes.len() / 8192;
    bytes.extend_from_slice(&[7; 1000]);
    fs::write(&path, &bytes)?;
    let output = world.backup()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success() && json["checksums"] == "ok", "{json}");
    let note = format!("{file}, block {blocks}: the file ends 1000 bytes into it");
    let warned = json["warnings"].as_array().context("warnings")?;
    ensure!(warned.iter().any(|w| w.as_str().is_some_and(|w| w.starts_with(&note))), "{json}");
    // No relation by its name, so none of ours; up to 16 the server counts it, and its word counts.
    fs::write(path.with_file_name("stray"), [&[0; 8][..], &[7; 8184]].concat())?;
    let output = world.backup()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.code() == Some(6) && json["checksums"] == "corrupt", "{json}");
    let told = json["damage"].as_array().context("damage")?;
    ensure!(told.iter().any(|line| line.as_str().is_some_and(|line| line.contains("/stray"))), "{json}");
    fs::remove_file(path.with_file_name("stray"))?;
    bytes.truncate(blocks * 8192);
    bytes[5000] ^= 0xFF;
    fs::write(&path, &bytes)?;
    world.cluster.stop(Stop::Fast)?;
    run(as_server(install.tool("pg_checksums"))?.arg("--disable").arg(&world.cluster.data))?;
    world.cluster.start()?;
    assert_eq!(world.good_backup()?.checksums, Checksums::Off);
    Ok(())
}

#[test]
fn a_copy_and_a_foreign_cluster_are_refused_before_anything_is_written() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let marker = world.cluster.data.join("pitr.copy");
    fs::write(&marker, "")?;
    let output = world.backup()?;
    assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(&marker)?;
    let other = Cluster::init(&install, &Options { segment_mib: 1, ..Options::default() })?;
    other.append_conf("postgresql.conf", "wal_level = replica")?;
    other.start()?;
    let text = fs::read_to_string(&world.config)?.replace(&world.cluster.conninfo(), &other.conninfo());
    fs::write(&world.config, text)?;
    let output = world.backup()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{said}");
    ensure!(said.contains("pitr init"), "{said}");
    assert_eq!(world.verdicts()?, Vec::new());
    Ok(())
}

#[test]
fn wal_that_the_archiver_does_not_bring_is_taken_from_pg_wal() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    world.cluster.psql("ALTER SYSTEM SET archive_command = '/bin/false'")?;
    world.cluster.psql("SELECT pg_reload_conf()")?;
    let backup = world.good_backup()?;
    assert_wal_is_there(&world, &backup)
}

#[test]
fn a_role_with_few_rights_is_enough_and_waiting_for_wal_ends_with_the_archivers_words() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    world.cluster.psql("CREATE ROLE backup LOGIN REPLICATION")?;
    let good = wait(backup(
        &request(&world, "backup")?,
        &[world.repository_again()],
        &Silent,
        &CancellationToken::new(),
    ))?;
    ensure!(good.warnings.iter().any(|w| w.contains("configuration files")), "{:?}", good.warnings);
    assert_intact(&world, &good.backup)?;
    world.cluster.psql("ALTER SYSTEM SET archive_command = '/bin/false'")?;
    world.cluster.psql("SELECT pg_reload_conf()")?;
    let patient = BackupRequest { wal_patience: Duration::from_secs(4), ..request(&world, "backup")? };
    let failed = wait(backup(&patient, &[world.repository_again()], &Silent, &CancellationToken::new()));
    let said = failed.expect_err("no WAL, no backup").report();
    ensure!(said.contains("did not arrive in repository local") && said.contains("it fails: "), "{said}");
    ensure!(matches!(
        world.verdicts()?.as_slice(),
        [Some(Verdict::Complete(_)), Some(Verdict::Abandoned(_))]
    ));
    Ok(())
}

/// A request of `role`, without a configured data directory.
fn request(world: &World, role: &str) -> Result<BackupRequest> {
    let conninfo = world.cluster.conninfo().replace("user=postgres", &format!("user={role}"));
    Ok(BackupRequest {
        conninfo: ConnInfo::parse(&conninfo, &Environment::default())?,
        deadlines: Deadlines::default(),
        data_dir: None,
        label: "by the library".into(),
        checkpoint: Checkpoint::Fast,
        max_rate: None,
        wal_patience: WAL_PATIENCE,
    })
}

#[test]
fn the_catalogue_keeps_what_the_files_do_not_say() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    world.cluster.psql("CREATE DATABASE \"Kunden\"")?;
    let backup = world.good_backup()?;
    let bytes = fs::read(world.object(&backup, BackupObject::Catalogue))?;
    let catalogue = Catalogue::decode(&bytes)?;
    let names: Vec<&str> = catalogue.databases.iter().map(|database| database.name.as_str()).collect();
    ensure!(names.contains(&"Kunden") && names.contains(&"postgres"), "{names:?}");
    assert_eq!(catalogue.setting("archive_mode"), Some("on"));
    assert_eq!(catalogue.missing, Vec::<String>::new());
    let hba = catalogue.files.iter().find(|file| file.role == ConfigRole::Hba).context("pg_hba.conf")?;
    ensure!(
        hba.in_data_directory
            && hba.text == Some(fs::read_to_string(world.cluster.data.join("pg_hba.conf"))?)
    );
    Ok(())
}

#[test]
fn every_required_repository_gets_the_same_backup_and_an_optional_one_none() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let place = scratch("pitr-more-")?;
    let (second, optional) = (place.path().join("second"), place.path().join("optional"));
    let mut text = fs::read_to_string(&world.config)?;
    for (name, at, required) in [("second", &second, true), ("optional", &optional, false)] {
        text.push_str(&format!(
            "[[repository]]\nname = \"{name}\"\nurl = \"file://{}\"\nrequired = {required}\n",
            at.display()
        ));
    }
    fs::write(&world.config, text)?;
    let others = [wait(identity(&world.cluster, &second))?, wait(identity(&world.cluster, &optional))?];
    let backup = world.good_backup()?;
    let [second, optional] = &others;
    assert_eq!(wait(second.verdict(&backup.id))?, Some(Verdict::Complete(Box::new(backup.clone()))));
    assert_eq!(wait(second.segments(backup.timeline))?, wait(world.system.segments(backup.timeline))?);
    ensure!(wait(optional.verdict(&backup.id))?.is_none());
    Ok(())
}

#[test]
fn a_standby_can_be_backed_up() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let standby = Cluster::around(&install)?;
    let mut copy = world.cluster.client("pg_basebackup", "")?;
    run(copy.arg("-D").arg(&standby.data).args(["-X", "stream", "-c", "fast", "-R"]))?;
    standby.append_conf("postgresql.conf", &standby.own_settings())?;
    standby.start()?;
    world.cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 10000) n; CHECKPOINT")?;
    world.cluster.psql("SELECT pg_switch_wal()")?;
    let replayed = format!(
        "SELECT pg_last_wal_replay_lsn() >= '{}'",
        world.cluster.psql("SELECT pg_current_wal_lsn()")?
    );
    standby.wait_for(&replayed, "t")?;
    let text = fs::read_to_string(&world.config)?.replace(&world.cluster.conninfo(), &standby.conninfo());
    fs::write(&world.config, text)?;
    let load = Load::on(&world.cluster)?;
    let backup = world.good_backup()?;
    drop(load);
    ensure!(backup.from_standby && backup.checksums == Checksums::Ok, "{:?}", backup.damage);
    assert_intact(&world, &backup)?;
    assert_wal_is_there(&world, &backup)
}
