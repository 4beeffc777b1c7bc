//! Restores of real servers by the program as users run it.
//!
//! What each test trusts: the rows a restored server returns, the files it finds in its directory, exit codes. A directory without
//! `global/pg_control` is one that PostgreSQL refuses; that is what every failure must leave.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use support::cluster::{Install, MAJORS, Stop, give_to_server, scratch};
use support::restored::{Restored, Source};

fn no_control(target: &Path) -> bool {
    !target.join("global/pg_control").exists()
}

fn lines(data: &Path, file: &str) -> Result<Vec<String>> {
    Ok(fs::read_to_string(data.join(file))?.lines().map(str::to_owned).collect())
}

#[test]
fn a_copy_reaches_a_time_a_position_a_name_and_the_latest_moment() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    source.row(1)?;
    source.backup()?;
    let second = source.row(2)?;
    let position = source.cluster.psql("SELECT pg_current_wal_insert_lsn()")?;
    source.row(3)?;
    source.cluster.psql("SELECT pg_create_restore_point('before four')")?;
    source.row(4)?;
    source.archive_all()?;
    for (name, flags, rows) in [
        ("time", vec!["--to", &second], "1,2"),
        ("lsn", vec!["--to-lsn", &position], "1,2"),
        ("name", vec!["--to-name", "before four"], "1,2,3"),
        ("latest", vec![], "1,2,3,4"),
        ("now", vec!["--immediate"], "1"),
    ] {
        let target = source.target(name);
        let said = source.restore(&target, &flags)?.expect(0)?.json()?;
        ensure!(said["purpose"] == "copy", "{said}");
        ensure!(!target.join("pitr.restoring").exists(), "the marker was left");
        let server = Restored::start_copy(&install, &target)?.promoted()?;
        let found = server.rows()?;
        ensure!(found == rows, "{name}: {found} instead of {rows}\n{}", server.log_text());
        server.psql("CREATE TABLE after_promotion ()")?;
        drop(server);
        source.pitr(&["restore", "--finish", "--target-dir", &target.display().to_string()])?.expect(0)?;
        let left = lines(&target, "postgresql.auto.conf")?;
        ensure!(!left.iter().any(|l| l.contains("recovery") || l.contains("restore_command")), "{left:?}");
    }
    // The source noticed nothing, and its archive has no other timeline.
    ensure!(source.cluster.psql("SELECT count(*) FROM t")? == "4");
    ensure!(!source.repository.join("main").join("00000002.history").exists());
    Ok(())
}

#[test]
fn every_supported_major_comes_back() -> Result<()> {
    for major in MAJORS {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let source = Source::new(&install, "")?;
        source.row(1)?;
        source.backup()?;
        source.row(2)?;
        source.archive_all()?;
        let target = source.target("copy");
        source.restore(&target, &["--action", "pause"])?.expect(0)?;
        let server = Restored::start_copy(&install, &target)?;
        let paused = "SELECT pg_get_wal_replay_pause_state()";
        let paused = if major >= 14 { (paused, "paused") } else { ("SELECT pg_is_wal_replay_paused()", "t") };
        server.wait_for(paused.0, paused.1).with_context(|| format!("PostgreSQL {major}"))?;
        ensure!(server.rows()? == "1,2", "PostgreSQL {major}: {}\n{}", server.rows()?, server.log_text());
        let early = source.pitr(&["restore", "--finish", "--target-dir", &target.display().to_string()])?;
        ensure!(early.code == 9 && early.err.contains("recovery.signal"), "{early:?}");
        server.psql("SELECT pg_wal_replay_resume()")?;
        server.promoted()?.psql("CREATE TABLE after_promotion ()")?;
    }
    Ok(())
}

#[test]
fn a_plan_is_shown_and_nothing_is_written() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    let none = source.restore(&source.target("x"), &["--dry-run"])?;
    ensure!(none.code == 5, "{none:?}");
    let id = source.backup()?;
    source.row(1)?;
    let moment = source.row(2)?;
    source.archive_all()?;
    let target = source.target("x");
    let uncovered = source.restore(&target, &["--dry-run", "--to", &moment])?;
    ensure!(uncovered.code == 4 && uncovered.err.contains("not covered"), "{uncovered:?}");
    source.row(3)?;
    source.archive_all()?;
    let covered = source.restore(&target, &["--dry-run", "--to", &moment])?.expect(0)?.json()?;
    ensure!(covered["stop"] == "record" && covered["first_lost"]["lsn"].is_string(), "{covered}");
    let plan = source.restore(&target, &["--dry-run", "--to-lsn", "0/FFFFFFF0"])?;
    ensure!(plan.code == 4, "{plan:?}");
    let plan = source.restore(&target, &["--dry-run"])?.expect(0)?.json()?;
    ensure!(plan["backup"] == id.as_str() && plan["dry_run"] == true, "{plan}");
    ensure!(plan["segments"].as_u64() > Some(0) && plan["bytes_to_fetch"].as_u64() > Some(0), "{plan}");
    ensure!(
        plan["settings"].as_array().is_some_and(|s| s.iter().any(|s| s["name"] == "restore_command")),
        "{plan}"
    );
    ensure!(!target.exists(), "a dry run made the directory");
    Ok(())
}

#[test]
fn a_replacement_rescues_wal_keeps_its_settings_and_archives_again() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "work_mem = 5MB\n")?;
    source.cluster.psql("ALTER SYSTEM SET maintenance_work_mem = '17MB'")?;
    source.row(1)?;
    source.backup()?;
    source.row(2)?;
    source.archive_all()?;
    // The newest commit is only in pg_wal: the server dies before it can archive it.
    source.row(3)?;
    let data = source.cluster.data.clone();
    let running = source.restore(&data, &["--replace", "--move-aside"])?;
    ensure!(running.code == 9 && running.err.contains("a server runs"), "{running:?}");
    source.cluster.crash()?;
    let occupied = source.restore(&data, &["--replace"])?;
    ensure!(occupied.code == 9 && occupied.err.contains("--move-aside"), "{occupied:?}");
    let unsaid = source.restore(&data, &["--move-aside"])?;
    ensure!(unsaid.code == 9 && unsaid.err.contains("--replace"), "{unsaid:?}");
    let mode = fs::metadata(&data)?.permissions().mode();
    let owner = fs::metadata(&data)?.uid();
    let said = source.restore(&data, &["--replace", "--move-aside"])?.expect(0)?.json()?;
    let aside = said["moved_aside"].as_str().context("moved aside")?.to_owned();
    ensure!(Path::new(&aside).join("global/pg_control").exists(), "the old directory is gone");
    ensure!(fs::metadata(&data)?.permissions().mode() == mode && fs::metadata(&data)?.uid() == owner);
    let auto = lines(&data, "postgresql.auto.conf")?;
    for line in
        ["maintenance_work_mem = '17MB'", "synchronous_standby_names = ''", "recovery_target_timeline = '1'"]
    {
        ensure!(auto.iter().any(|l| l == line), "{line} is missing in {auto:?}");
    }
    source.cluster.start()?;
    source.cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
    let rows = source.cluster.psql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")?;
    ensure!(rows == "1,2,3", "{rows}\n{}", source.cluster.log_text());
    ensure!(source.cluster.psql("SHOW work_mem")? == "5MB");
    source.pitr(&["restore", "--finish"])?.expect(0)?;
    let auto = lines(&data, "postgresql.auto.conf")?;
    ensure!(!auto.iter().any(|l| l.contains("restore_command")), "{auto:?}");
    ensure!(auto.iter().any(|l| l == "maintenance_work_mem = '17MB'"), "{auto:?}");
    source.row(4)?;
    source.archive_all()
}

#[test]
fn what_could_destroy_something_is_refused_before_anything_is_written() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    let tablespace = scratch("pitr-ts-")?;
    source.cluster.psql(&format!(
        "CREATE TABLESPACE fast LOCATION '{0}'; CREATE TABLE in_fast (n int) TABLESPACE fast; INSERT INTO in_fast VALUES (7)",
        tablespace.path().display()
    ))?;
    source.row(1)?;
    source.backup()?;
    let target = source.target("copy");
    let refused = |flags: &[&str], says: &str| -> Result<()> {
        let said = source.restore(&target, flags)?;
        ensure!(said.code == 9 && said.err.contains(says), "{flags:?}: {said:?}");
        Ok(())
    };
    // A copy must not write where the source's tablespaces are.
    refused(&[], &tablespace.path().display().to_string())?;
    ensure!(!target.exists(), "something was written");
    let elsewhere = source.target("fast");
    let moved = format!("{}={}", tablespace.path().display(), elsewhere.display());
    // Something else is in the way.
    fs::create_dir(&target)?;
    give_to_server(&target)?;
    fs::write(target.join("important"), "x")?;
    refused(&["--tablespace", &moved], "not empty")?;
    ensure!(fs::read_to_string(target.join("important"))? == "x" && !elsewhere.exists());
    // It is kept when that is asked for, and the tablespace goes to its new place.
    let said = source.restore(&target, &["--tablespace", &moved, "--move-aside"])?.expect(0)?.json()?;
    let aside = said["moved_aside"].as_str().context("moved aside")?.to_owned();
    ensure!(fs::read_to_string(Path::new(&aside).join("important"))? == "x");
    let server = Restored::start_copy(&install, &target)?.promoted()?;
    ensure!(server.psql("SELECT n FROM in_fast")? == "7");
    ensure!(
        server.psql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'")?
            == elsewhere.display().to_string()
    );
    Ok(())
}

#[test]
fn settings_that_would_archive_or_stop_wrongly_are_refused() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    source.cluster.append_conf("postgresql.conf", "archive_mode = always\nrecovery_target_name = 'old'\n")?;
    source.backup()?;
    let target = source.target("new");
    let always = source.restore(&target, &["--replace"])?;
    ensure!(always.code == 9 && always.err.contains("archive_mode = always"), "{always:?}");
    source.cluster.append_conf("postgresql.conf", "archive_mode = on\n")?;
    source.backup()?;
    let leftover = source.restore(&target, &["--replace"])?;
    ensure!(leftover.code == 9 && leftover.err.contains("recovery_target_name"), "{leftover:?}");
    ensure!(!target.exists());
    // A copy inherits neither.
    source.restore(&target, &["--copy"])?.expect(0).map(drop)
}

#[test]
fn a_copy_reaches_nothing_of_its_source() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let outside = scratch("pitr-outside-")?;
    let (pid_file, logs) = (outside.path().join("server.pid"), outside.path().join("logs"));
    fs::create_dir(&logs)?;
    give_to_server(&logs)?;
    let touched = outside.path().join("touched");
    let source = Source::new(
        &install,
        &format!(
            "external_pid_file = '{}'\nlog_directory = '{}'\narchive_cleanup_command = 'touch {2}'\n\
             recovery_end_command = 'touch {2}'\nsynchronous_standby_names = 'nobody'\nsynchronous_commit = local\n",
            pid_file.display(),
            logs.display(),
            touched.display()
        ),
    )?;
    source.cluster.psql(&format!("ALTER SYSTEM SET external_pid_file = '{}/x'", outside.path().display()))?;
    source.row(1)?;
    source.backup()?;
    source.archive_all()?;
    let before = fs::read_to_string(&pid_file)?;
    let target = source.target("copy");
    source.restore(&target, &[])?.expect(0)?;
    let server = Restored::start_copy(&install, &target)?.promoted()?;
    ensure!(server.rows()? == "1");
    server.psql("SET statement_timeout = '20s'; INSERT INTO t VALUES (9, '')")?;
    server.psql("SELECT pg_switch_wal()")?;
    ensure!(server.psql("SHOW archive_mode")? == "off");
    drop(server);
    ensure!(fs::read_to_string(&pid_file)? == before, "the source's pid file was changed");
    ensure!(fs::read_dir(&logs)?.next().is_none(), "something was logged where the source logs");
    ensure!(!touched.exists(), "a command of the source was run");
    ensure!(!outside.path().join("x").exists());
    let kept = fs::read_to_string(target.join("postgresql.conf.source"))?;
    ensure!(kept.contains("external_pid_file"), "the source's configuration was not kept");
    ensure!(target.join("pitr.copy").exists());
    Ok(())
}

#[test]
fn damage_and_loss_in_the_repository_are_told_apart_and_leave_nothing_that_starts() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    source.row(1)?;
    source.backup()?;
    source.archive_all()?;
    let packs = source.packs()?;
    let pack = packs.first().context("a pack")?;
    let whole = fs::read(pack)?;
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    fs::write(pack, &damaged)?;
    let target = source.target("copy");
    let said = source.restore(&target, &[])?;
    ensure!(said.code == 6 && said.err.contains("pack"), "{said:?}");
    ensure!(no_control(&target), "a damaged restore could start");
    let lost = source.target("lost");
    fs::rename(pack, &lost)?;
    let said = source.restore(&target, &[])?;
    ensure!([5, 6].contains(&said.code), "{said:?}");
    ensure!(no_control(&target));
    // What is healed restores, over the leftovers of the failed attempt.
    fs::write(pack, &whole)?;
    give_to_server(pack)?;
    source.restore(&target, &[])?.expect(0)?;
    ensure!(Restored::start_copy(&install, &target)?.promoted()?.rows()? == "1");
    Ok(())
}

#[test]
fn a_restore_that_was_killed_anywhere_is_repeated() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    let tablespace = scratch("pitr-ts-")?;
    source.cluster.psql(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'; CREATE TABLE in_fast AS SELECT generate_series(1, 1000) AS n; \
         ALTER TABLE in_fast SET TABLESPACE fast",
        tablespace.path().display()
    ))?;
    source.row(1)?;
    source.backup()?;
    source.archive_all()?;
    let (target, elsewhere) = (source.target("copy"), source.target("fast"));
    let moved = format!("{}={}", tablespace.path().display(), elsewhere.display());
    let target_text = target.display().to_string();
    let flags = ["restore", "--target-dir", &target_text, "--tablespace", &moved, "--jobs", "1"];
    let mut killed = 0;
    for wait in [30, 60, 100, 150, 200, 300, 400, 600, 800, 1200] {
        let mut child = source.command(&flags)?.spawn()?;
        std::thread::sleep(Duration::from_millis(wait));
        if child.try_wait()?.is_some() {
            break;
        }
        child.kill()?;
        child.wait()?;
        killed += 1;
        // Killed after its last step: what it left counts as finished, and is judged below.
        if !no_control(&target) {
            break;
        }
    }
    ensure!(killed > 0, "the restore was too fast to be killed");
    if no_control(&target) {
        source.pitr(&flags)?.expect(0)?;
    }
    ensure!(!target.join("pitr.restoring").exists());
    let server = Restored::start_copy(&install, &target)?.promoted()?;
    ensure!(server.psql("SELECT count(*) FROM in_fast")? == "1000" && server.rows()? == "1");
    server.stop(Stop::Fast)?;
    // A finished one is not anybody's leftovers any more.
    let again = source.pitr(&flags)?;
    ensure!(again.code == 9, "{again:?}");
    Ok(())
}

#[test]
fn a_command_that_does_not_work_for_the_server_is_found_before_anything_can_start() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    if !nix::unistd::geteuid().is_root() {
        return Ok(()); // only root can read what the server's user cannot
    }
    let source = Source::new(&install, "")?;
    source.row(1)?;
    source.backup()?;
    let target = source.target("copy");
    let private = source.place.path().join("private.toml");
    fs::copy(&source.config, &private)?;
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600))?;
    let mut root = std::process::Command::new(support::restored::PITR);
    root.env_clear().arg("--config").arg(&private).args(["restore", "--target-dir"]).arg(&target);
    let said = support::restored::Said::of(&root.output()?);
    ensure!(said.code != 0 && said.err.contains("restore_command does not work"), "{said:?}");
    ensure!(no_control(&target));
    // As root with a configuration that the server can read: files belong to the server's user.
    let mut root = std::process::Command::new(support::restored::PITR);
    root.env_clear().arg("--config").arg(&source.config).args(["restore", "--target-dir"]).arg(&target);
    support::restored::Said::of(&root.output()?).expect(0)?;
    let server = fs::metadata(&source.cluster.data)?.uid();
    let mut strangers = Vec::new();
    support::restored::walk(&target, &mut |path| {
        let meta = path.symlink_metadata();
        if meta.map_or(true, |m| m.uid() != server || m.permissions().mode() & 0o077 != 0) {
            strangers.push(path.to_owned());
        }
    })?;
    ensure!(strangers.is_empty(), "wrong owner or mode: {strangers:?}");
    ensure!(Restored::start_copy(&install, &target)?.promoted()?.rows()? == "1");
    Ok(())
}
