//! Promotion, forks, dead stores and the RPO, on real servers: what makes a restore wrong although every file is there.
//!
//! The history of these tests: rows 1 to 20 on timeline 1; a server restored to row 10 takes over and commits rows 1001 to 1010 on
//! timeline 2, while the old one had gone on archiving past the fork. Rules: RECOVERY 7, 9, 15, and the promise P7.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use support::cluster::{Cluster, Install, Stop, give_to_server};
use support::log::{CLOCK, Client, Commit, assert_rows, rows};
use support::site::{Answer, Site, SiteOptions, settle, switch, until};

/// Two timelines in one repository.
struct Forked {
    site: Site,
    old: Client,
    /// Where the new primary parted from the old one.
    fork: Commit,
    successor: Cluster,
    new: Client,
}

impl Forked {
    fn make(major: u32) -> Result<Option<Self>> {
        let Some(install) = Install::find_or_skip(major) else { return Ok(None) };
        let site = Site::new(&install, &SiteOptions::default())?;
        let mut old = Client::connect(&site.cluster, 1)?;
        old.commits(5)?;
        site.backup()?;
        let fork = old.commits(5)?;
        old.commits(10)?;
        site.cluster.psql("SELECT pg_create_restore_point('the end of the old primary')")?;
        site.switch()?;
        site.cluster.stop(Stop::Fast)?;
        let successor = Self::take_over(&site, &["--to", &fork.time])?;
        let new = Client::connect(&successor, 1001)?;
        let mut forked = Self { site, old, fork, successor, new };
        forked.new.commits(10)?;
        forked.archive()?;
        Ok(Some(forked))
    }

    /// Restores a new primary that goes on archiving into the same repository.
    fn take_over(site: &Site, target: &[&str]) -> Result<Cluster> {
        let successor = Cluster::around(&site.cluster.install)?;
        let dir = successor.data.display().to_string();
        let mut args = vec!["restore", "--replace", "--target-dir", dir.as_str(), "--json"];
        args.extend(target);
        let plan = site.json(&args)?;
        ensure!(plan["purpose"] == "replace", "{plan}");
        successor.append_conf("postgresql.conf", &successor.own_settings())?;
        successor.start()?;
        successor.wait_for("SELECT pg_is_in_recovery()", "f")?;
        Ok(successor)
    }

    /// Waits until all WAL of the new primary is stored.
    fn archive(&self) -> Result<String> {
        self.successor.psql("SELECT pg_create_restore_point('sign of life')")?;
        switch(&self.successor, |name| Ok(self.site.object(name)?.exists()))
    }

    fn kept(&self) -> Vec<u64> {
        self.old.up_to(&self.fork)
    }

    fn check(&self, target: &[&str], expected: &[u64]) -> Result<()> {
        let what = format!("{target:?}");
        let (copy, _) = self.site.restored(target).with_context(|| what.clone())?;
        assert_rows(&rows(&copy)?, expected, &what)
    }

    fn plan(&self, target: &[&str]) -> Result<Answer> {
        let dir = self.site.place().join("nothing").display().to_string();
        let mut args = vec!["restore", "--copy", "--dry-run", "--json", "--target-dir", dir.as_str()];
        args.extend(target);
        self.site.ask(&args)
    }
}

fn two_timelines(major: u32) -> Result<()> {
    let Some(mut forked) = Forked::make(major)? else { return Ok(()) };
    ensure!(rows(&forked.successor)? == [forked.kept(), forked.new.all()].concat());
    ensure!(forked.site.object("00000002.history")?.exists());
    let later = forked.new.log.get(4).cloned().context("a commit")?;
    forked.new.commits(2)?;
    forked.archive()?;

    forked.check(&[], &[forked.kept(), forked.new.all()].concat())?;
    forked.check(&["--to", &later.time], &[forked.kept(), forked.new.up_to(&later)].concat())?;
    forked.check(&["--timeline", "1"], &forked.old.all())?;
    let lost = forked.old.log.get(14).cloned().context("a commit")?;
    forked.check(&["--timeline", "1", "--to", &lost.time], &forked.old.up_to(&lost))?;
    let before_the_fork = forked.old.log.get(6).cloned().context("a commit")?;
    forked.check(&["--to", &before_the_fork.time], &forked.old.up_to(&before_the_fork))?;
    // Both lines of history claim this moment: the operator decides.
    forked.plan(&["--to", &lost.time])?.expect(4, &["--timeline 1", "--timeline 2"])?;
    forked.check(&["--timeline", "2", "--to", &lost.time], &forked.kept())
}

#[test]
fn a_second_timeline_and_the_abandoned_first_one_can_both_be_restored_15() -> Result<()> {
    two_timelines(15)
}

#[test]
fn a_second_timeline_and_the_abandoned_first_one_can_both_be_restored_18() -> Result<()> {
    two_timelines(18)
}

/// The other route to a second timeline: a standby that streamed and was promoted.
fn promoted_standby(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions::default())?;
    let mut old = Client::connect(&site.cluster, 1)?;
    old.commits(5)?;
    site.backup()?;
    old.commits(5)?;
    site.switch()?;
    let standby = Cluster::around(&install)?;
    let dir = standby.data.display().to_string();
    site.json(&["restore", "--replace", "--target-dir", &dir, "--json"])?;
    standby.append_conf("postgresql.conf", &standby.own_settings())?;
    // Behind the recovery settings, which say that there is no primary.
    let primary = format!("primary_conninfo = '{}'\n", site.cluster.conninfo());
    standby.append_conf("postgresql.auto.conf", &primary)?;
    fs::rename(standby.data.join("recovery.signal"), standby.data.join("standby.signal"))?;
    standby.start()?;
    standby.wait_for("SELECT status FROM pg_stat_wal_receiver", "streaming")?;
    old.commits(10)?;
    let end = site.cluster.psql("SELECT pg_current_wal_flush_lsn()")?;
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t")?;
    ensure!(standby.psql("SELECT pg_is_in_recovery()")? == "t", "a standby does not open by itself");
    site.cluster.stop(Stop::Immediate)?;
    standby.promote()?;
    let mut new = Client::connect(&standby, 1001)?;
    let mark = new.commits(5)?;
    new.commits(5)?;
    standby.psql("SELECT pg_create_restore_point('sign of life')")?;
    switch(&standby, |name| Ok(site.object(name)?.exists()))?;
    // What the standby had received of the unfinished segment is kept under its own name.
    let partial = |path: &PathBuf| path.to_string_lossy().ends_with(".partial.wal");
    ensure!(site.listing()?.keys().any(partial), "no partial segment: {}", standby.log_text());
    for (target, expected) in [
        (vec![], [old.all(), new.all()].concat()),
        (vec!["--to", mark.time.as_str()], [old.all(), new.up_to(&mark)].concat()),
    ] {
        let (copy, plan) = site.restored(&target)?;
        ensure!(plan["recovery_target_timeline"] == 2, "{plan}");
        assert_rows(&rows(&copy)?, &expected, &format!("{target:?}"))?;
    }
    Ok(())
}

#[test]
fn the_timeline_of_a_promoted_standby_can_be_restored_15() -> Result<()> {
    promoted_standby(15)
}

#[test]
fn the_timeline_of_a_promoted_standby_can_be_restored_18() -> Result<()> {
    promoted_standby(18)
}

/// RECOVERY 7: `00000002.history` is stored, its fork segment is not. PostgreSQL alone would replay timeline 1 past the fork.
fn late_fork_segment(major: u32) -> Result<()> {
    let Some(forked) = Forked::make(major)? else { return Ok(()) };
    let (folder, aside) = (forked.site.folder()?.join("wal/00000002"), forked.site.place().join("aside"));
    let segments = |dir: &PathBuf| -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for log in fs::read_dir(dir)? {
            found.extend(
                fs::read_dir(log?.path())?.collect::<Result<Vec<_>, _>>()?.iter().map(fs::DirEntry::path),
            );
        }
        found.sort();
        Ok(found)
    };
    let fork_segment = segments(&folder)?.first().cloned().context("a segment")?;
    let name = fork_segment.file_stem().context("a name")?.to_string_lossy().into_owned();
    let parent = name.replacen("00000002", "00000001", 1);
    ensure!(forked.site.object(&parent)?.exists(), "both timelines have {parent}");
    forked.successor.stop(Stop::Fast)?;

    // The fork segment alone is late: a hole that no recovery may jump.
    fs::rename(&fork_segment, &aside)?;
    let latest = forked.plan(&["--timeline", "2"])?;
    if latest.code == 0 {
        forked.check(&["--timeline", "2"], &forked.kept())?;
    } else {
        latest.expect(4, &[&name])?;
    }
    fs::rename(&aside, &fork_segment)?;

    // Nothing of timeline 2 but its history: the plan ends at the fork, and so does recovery.
    fs::rename(&folder, &aside)?;
    forked.check(&[], &forked.kept())?;
    let out = forked.site.place().join("out").display().to_string();
    let get = |name: &str, timeline: &[&str]| {
        let mut args = vec!["archive-get"];
        args.extend(timeline);
        args.extend([name, out.as_str()]);
        forked.site.ask(&args)
    };
    get(&parent, &["--timeline", "2"])?.expect(0, &[])?;
    let cut = fs::read(&out)?;
    get(&parent, &[])?.expect(0, &[])?;
    let whole = fs::read(&out)?;
    let history = fs::read_to_string(forked.successor.data.join("pg_wal/00000002.history"))?;
    let fork: pitr::wal::Lsn = history.split('\t').nth(1).context("the fork")?.parse()?;
    let at = usize::try_from(fork.get() % (1 << 20))?;
    ensure!(cut[..at] == whole[..at] && cut[at..].iter().all(|byte| *byte == 0), "not cut at {fork}");
    ensure!(whole[at..].iter().any(|byte| *byte != 0), "the old primary went on past the fork");
    // And when it arrives after all, the rest is there.
    fs::rename(&aside, &folder)?;
    forked.check(&[], &[forked.kept(), forked.new.all()].concat())
}

#[test]
fn a_late_fork_segment_never_lets_the_parent_go_on_15() -> Result<()> {
    late_fork_segment(15)
}

#[test]
fn a_late_fork_segment_never_lets_the_parent_go_on_18() -> Result<()> {
    late_fork_segment(18)
}

/// P3. The repository goes away in the middle of a recovery to the end of WAL: PostgreSQL must stop, and go on when it is back.
fn dead_store(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions::default())?;
    let mut client = Client::connect(&site.cluster, 1)?;
    client.commits(5)?;
    site.backup()?;
    let mut segments = Vec::new();
    for _ in 0..4 {
        client.commits(5)?;
        segments.push(site.switch()?);
    }
    let (copy, _) = site.restore(&[])?;
    let command = site.place().join("command.sh");
    let auto = fs::read_to_string(copy.data.join("postgresql.auto.conf"))?;
    let line = auto.lines().find(|line| line.starts_with("restore_command")).context("restore_command")?;
    let (_, value) = line.split_once(" = ").context("a value")?;
    let original = value.trim_matches('\'').replace("''", "'").replace("%f", "$1").replace("%p", "$2");
    let away = site.place().join("away");
    let script = format!(
        "#!/bin/sh\nif [ $1 = {} ] && [ -d {repo} ]; then mv {repo} {}; fi\n{original}\n",
        segments[2],
        away.display(),
        repo = site.repository.display()
    );
    fs::write(&command, script)?;
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755))?;
    give_to_server(&command)?;
    let replaced = format!("restore_command = '{} %f \"%p\"'", command.display());
    fs::write(copy.data.join("postgresql.auto.conf"), auto.replace(line, &replaced))?;

    settle(&copy)?;
    // Whether the start is called a success depends on how far recovery has come by then.
    drop(copy.start());
    let ended = || {
        let open = copy.psql("SELECT pg_is_in_recovery()").is_ok_and(|answer| answer == "f");
        ensure!(!open, "the database opened:\n{}", copy.log_text());
        Ok(copy.postmaster_pid().is_none())
    };
    until(ended, || format!("the server goes on:\n{}", copy.log_text()))?;
    let log = copy.log_text();
    ensure!(away.exists() && log.contains("FATAL") && !log.contains("selected new timeline"), "{log}");
    ensure!(copy.data.join("recovery.signal").exists());
    fs::rename(&away, &site.repository)?;
    fs::write(&command, format!("#!/bin/sh\n{original}\n"))?;
    copy.start()?;
    copy.wait_for("SELECT pg_is_in_recovery()", "f")?;
    assert_rows(&rows(&copy)?, &client.all(), "after the repository came back")
}

#[test]
fn a_dead_store_stops_recovery_and_never_opens_the_database_15() -> Result<()> {
    dead_store(15)
}

#[test]
fn a_dead_store_stops_recovery_and_never_opens_the_database_18() -> Result<()> {
    dead_store(18)
}

/// P7 with `archive_command` alone: nobody switches a segment, nobody commits again.
#[test]
fn a_commit_on_a_quiet_server_is_in_the_repository_within_the_promise() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions { rpo: "50s", ..SiteOptions::default() })?;
    ensure!(site.cluster.psql("SHOW archive_timeout")? == "10s");
    let mut client = Client::connect(&site.cluster, 1)?;
    client.commits(3)?;
    site.backup()?;
    let before: jiff::Timestamp = site.cluster.psql(&format!("SELECT {CLOCK}"))?.parse()?;
    let deadline = Instant::now() + Duration::from_secs(50);
    let commit = client.commit()?;
    // From here on nobody does anything. No other record of these minutes has a time.
    loop {
        let info = site.json(&["info", "--json"])?;
        let latest = info["repositories"][0]["window"]["latest"].as_str().context("window")?;
        if latest.parse::<jiff::Timestamp>()? >= before {
            break;
        }
        ensure!(Instant::now() < deadline, "{commit:?} is not covered: {info}\n{}", site.cluster.log_text());
        thread::sleep(Duration::from_millis(200));
    }
    site.cluster.crash()?;
    let (copy, _) = site.restored(&[])?;
    assert_rows(&rows(&copy)?, &client.all(), "after the loss of the host")
}
