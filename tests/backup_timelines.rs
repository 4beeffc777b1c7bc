//! Backups of servers whose history is not the plain one: a promoted primary, a standby that followed a switch, a copy in disguise.
//!
//! What each test trusts: the rows of what is restored, the history file as the server has it, exit codes.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::cluster::{Cluster, Install, Stop, run, scratch};
use support::restored::{Restored, Source, walk};

/// Makes the configuration speak as a role that may replicate and nothing else, of a server it knows nothing of.
fn as_few(source: &Source) -> Result<()> {
    source.cluster.psql("CREATE ROLE few LOGIN REPLICATION")?;
    let text = fs::read_to_string(&source.config)?.replace("user=postgres", "user=few");
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("data_dir")).collect();
    fs::write(&source.config, kept.join("\n"))?;
    Ok(())
}

/// Stops a server and promotes it, though it follows nobody.
fn to_the_next_timeline(cluster: &Cluster) -> Result<()> {
    cluster.stop(Stop::Fast)?;
    cluster.append_conf("standby.signal", "")?;
    cluster.start()?;
    cluster.promote()
}

fn stored_history(source: &Source, name: &str) -> Result<Option<PathBuf>> {
    let mut found = None;
    walk(&source.repository, &mut |path| {
        if path.file_name().is_some_and(|n| n == name) {
            found = Some(path.to_owned());
        }
    })?;
    Ok(found)
}

#[test]
fn the_history_comes_from_the_server_itself_where_nothing_else_brings_it() -> Result<()> {
    for major in [13, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let source = Source::new(&install, "")?;
        source.row(1)?;
        to_the_next_timeline(&source.cluster)?;
        source.row(2)?;
        source.archive_all()?;
        let name = "00000002.history";
        let object = stored_history(&source, name)?.context("archiving stored the history")?;
        fs::remove_file(&object)?;
        as_few(&source)?;
        // From here on WAL is pushed from where no history lies: that is refused until the backup has brought it.
        let outbox = scratch("pitr-outbox-")?;
        let copy = format!("ALTER SYSTEM SET archive_command = 'cp %p {}/%f'", outbox.path().display());
        source.cluster.psql(&copy)?;
        source.cluster.psql("SELECT pg_reload_conf()")?;
        let mut command = source.command(&["backup", "--json"])?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while child.try_wait()?.is_none() && Instant::now() < deadline {
            for entry in fs::read_dir(outbox.path())? {
                source.pitr(&["archive-push", &entry?.path().display().to_string()])?;
            }
            thread::sleep(Duration::from_millis(100));
        }
        child.kill().ok();
        support::restored::Said::of(&child.wait_with_output()?).expect(0)?;
        let object = stored_history(&source, name)?.context("the backup did not bring the history")?;
        let plain = run(std::process::Command::new("zstd").args(["-dcq"]).arg(&object))?;
        ensure!(plain == fs::read_to_string(source.cluster.data.join("pg_wal").join(name))?, "{plain}");
        let target = source.target("copy");
        source.restore(&target, &["--copy"])?.expect(0)?;
        ensure!(Restored::start_copy(&install, &target)?.promoted()?.rows()? == "1,2");
    }
    Ok(())
}

/// Made by `pg_basebackup` from a server that was promoted before, a replica has the history of its timeline and none before it.
#[test]
fn a_server_that_never_had_the_history_of_a_timeline_before_its_parent_archives_and_is_backed_up()
-> Result<()> {
    for major in [13, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let source = Source::new(&install, "")?;
        source.row(1)?;
        for _ in 0..2 {
            to_the_next_timeline(&source.cluster)?;
        }
        source.row(2)?;
        source.archive_all()?;
        let name = "00000002.history";
        let own = source.cluster.data.join("pg_wal").join(name);
        let real = fs::read_to_string(&own)?;
        fs::remove_file(&own)?;
        let forget = || -> Result<()> {
            Ok(fs::remove_file(stored_history(&source, name)?.context("it is stored")?)?)
        };
        let stored = || -> Result<String> {
            let object = stored_history(&source, name)?.context("it is not stored")?;
            run(std::process::Command::new("zstd").args(["-dcq"]).arg(object))
        };
        forget()?;
        source.row(3)?;
        source.archive_all()?;
        ensure!(stored()? == real, "archiving stored {}", stored()?);
        forget()?;
        source.backup()?;
        ensure!(stored()? == real, "the backup stored {}", stored()?);
        let target = source.target("copy");
        source.restore(&target, &["--copy"])?.expect(0)?;
        ensure!(Restored::start_copy(&install, &target)?.promoted()?.rows()? == "1,2,3");
    }
    Ok(())
}

#[test]
fn a_copy_is_found_out_by_what_it_sends() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    as_few(&source)?;
    fs::write(source.cluster.data.join("pitr.copy"), "")?;
    let said = source.pitr(&["backup"])?;
    ensure!(said.code == 9 && said.err.contains("is a copy"), "{said:?}");
    Ok(())
}

#[test]
fn a_standby_that_followed_a_timeline_switch_can_be_backed_up_and_restored() -> Result<()> {
    for major in [13, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        follows_a_switch(&install).with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

fn follow(standby: &Cluster, primary: &Cluster) -> Result<()> {
    standby.append_conf("postgresql.auto.conf", &format!("primary_conninfo = '{}'\n", primary.conninfo()))
}

fn follows_a_switch(install: &Install) -> Result<()> {
    let source = Source::new(install, "")?;
    source.row(1)?;
    let standby = || -> Result<Cluster> {
        let standby = Cluster::around(install)?;
        let mut copy = source.cluster.client("pg_basebackup", "")?;
        run(copy.arg("-D").arg(&standby.data).args(["-X", "stream", "-c", "fast"]))?;
        standby.append_conf("postgresql.conf", &standby.own_settings())?;
        // Not by -R: a newer client writes what an older server does not know.
        follow(&standby, &source.cluster)?;
        standby.append_conf("standby.signal", "")?;
        standby.start()?;
        Ok(standby)
    };
    let (heir, follower) = (standby()?, standby()?);
    source.row(2)?;
    let end = source.cluster.psql("SELECT pg_current_wal_flush_lsn()")?;
    for one in [&heir, &follower] {
        one.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t")?;
    }
    source.cluster.crash()?;
    // As on a busy server, whose checkpoint after the promotion takes minutes.
    let checkpointer = heir.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")?;
    let checkpointer = Pid::from_raw(checkpointer.parse()?);
    kill(checkpointer, Signal::SIGSTOP)?;
    heir.promote()?;
    heir.psql("INSERT INTO t VALUES (3, '')")?;
    follow(&follower, &heir)?;
    follower.stop(Stop::Fast)?;
    follower.start()?;
    follower.wait_for("SELECT received_tli FROM pg_stat_wal_receiver", "2")?;
    follower.wait_for("SELECT count(*) FROM t", "3")?;
    let text = fs::read_to_string(&source.config)?;
    fs::write(&source.config, text.replace(&source.cluster.conninfo(), &follower.conninfo()))?;
    let refused = source.pitr(&["backup"])?;
    ensure!(
        refused.code == 9 && refused.err.contains("begin on timeline 1 and end on timeline 2"),
        "{refused:?}"
    );
    kill(checkpointer, Signal::SIGCONT)?;
    heir.psql("CHECKPOINT")?;
    let checkpoint = heir.psql("SELECT pg_current_wal_flush_lsn()")?;
    follower.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{checkpoint}'"), "t")?;
    let mut command = source.command(&["backup", "--json"])?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // An idle primary would never end its segment.
    while child.try_wait()?.is_none() {
        heir.psql("INSERT INTO t SELECT max(n) + 1, '' FROM t")?;
        heir.psql("SELECT pg_switch_wal()")?;
        thread::sleep(Duration::from_millis(300));
    }
    support::restored::Said::of(&child.wait_with_output()?).expect(0)?;
    heir.psql("INSERT INTO t SELECT max(n) + 1, '' FROM t")?;
    let rows = heir.psql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")?;
    let name = heir.psql("SELECT pg_walfile_name(pg_switch_wal())")?;
    heir.wait_for(&format!("SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver"), "t")?;
    let target = source.target("copy");
    source.restore(&target, &["--copy"])?.expect(0)?;
    let server = Restored::start_copy(install, &target)?.promoted()?;
    ensure!(server.rows()? == rows, "{} instead of {rows}\n{}", server.rows()?, server.log_text());
    Ok(())
}

#[test]
fn a_timeline_whose_forks_descend_is_archived_and_restored() -> Result<()> {
    for major in [13, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        forks_descend(&install).with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

/// Recovery towards timeline 2 that ends before timeline 2 begins, which `restore` would not do but a person may.
fn forks_descend(install: &Install) -> Result<()> {
    let source = Source::new(install, "")?;
    source.row(1)?;
    source.backup()?;
    source.row(2)?;
    source.cluster.stop(Stop::Fast)?;
    source.cluster.append_conf("standby.signal", "")?;
    source.cluster.start()?;
    source.cluster.promote()?;
    source.row(3)?;
    source.archive_all()?;
    source.cluster.stop(Stop::Fast)?;
    let target = source.target("by-hand");
    source.restore(&target, &["--replace", "--immediate"])?.expect(0)?;
    let auto = target.join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto)?.replace("--timeline 1", "--timeline 2");
    let text = text.replace("recovery_target_timeline = '1'", "recovery_target_timeline = '2'");
    fs::write(&auto, text)?;
    let server =
        Restored::start(install, &target, source.cluster.socket.clone(), "5432".to_owned())?.promoted()?;
    let history = fs::read_to_string(target.join("pg_wal/00000003.history"))?;
    ensure!(history.lines().filter(|line| !line.is_empty()).count() == 2, "{history}");
    server.psql("INSERT INTO t VALUES (9, '')")?;
    let name = server.psql("SELECT pg_walfile_name(pg_switch_wal())")?;
    server.wait_for(&format!("SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver"), "t")?;
    server.stop(Stop::Fast)?;
    let copy = source.target("copy");
    source.restore(&copy, &["--copy"])?.expect(0)?;
    let restored = Restored::start_copy(install, &copy)?.promoted()?;
    ensure!(restored.rows()? == "1,9", "{}\n{}", restored.rows()?, restored.log_text());
    Ok(())
}
