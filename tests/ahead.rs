//! What recovery will ask for is there before it asks, and is what it would have got; without that, recovery is only slower.
//!
//! A directory that looks like a recovering server's asks as PostgreSQL does, while the repository is taken away: what is still delivered
//! was fetched ahead. Then real servers recover while whoever fetches ahead for them is killed.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::agent::{Agent, configure, own_repository};
use support::cluster::{Install, Stop, as_server, give_to_server, run};
use support::recovering::{Recovering, SPOOL, archived, segment_of};
use support::site::{Answer, Site, SiteOptions, open, until};

/// Segments that are asked for in order come from the spool while the repository is away, and none of them is another's.
fn served_from_the_spool(site: &Site, at: &Recovering, names: &[String], flags: &[&str]) -> Result<()> {
    let (first, rest) = names.split_first().context("segments")?;
    at.ask(site, first, flags)?.expect(0, &[])?;
    at.replayed(site, first)?;
    let ahead = rest.get(..8).context("more segments than are fetched ahead")?;
    at.is_spooled(ahead)?;
    let aside = site.place().join("aside");
    fs::rename(&site.repository, &aside)?;
    for name in ahead {
        at.ask(site, name, flags)?.expect(0, &[])?;
        at.replayed(site, name)?;
    }
    // The same again: it was handed over, and is not there any more. Not to know is no end of WAL.
    for name in [&ahead[7], &rest[8]] {
        let answer = at.ask(site, name, flags)?;
        ensure!((200..=220).contains(&answer.code), "{answer:?}");
    }
    fs::rename(&aside, &site.repository)?;
    for name in [&ahead[7], &ahead[7], &rest[8]] {
        at.ask(site, name, flags)?.expect(0, &[])?;
        at.replayed(site, name)?;
    }
    Ok(())
}

#[test]
fn a_recovery_without_an_agent_leaves_somebody_behind_who_fetches_ahead() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 240_000)?;
    let at = Recovering::new(&site, "recovering")?;
    served_from_the_spool(&site, &at, &names, &["--timeline", "1"])?;
    // At the end of WAL nothing is kept: not there is not there.
    let last = names.last().context("segments")?;
    at.ask(&site, last, &["--timeline", "1"])?.expect(0, &[])?;
    let next = site.cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)")?;
    at.ask(&site, &next, &["--timeline", "1"])?.expect(1, &[])?;
    site.cluster.psql("CREATE TABLE more ()")?;
    ensure!(site.switch()? == next);
    at.ask(&site, &next, &["--timeline", "1"])?.expect(0, &[])?;
    at.replayed(&site, &next)?;
    // The server is gone: so is its spool, within a moment.
    let spool = at.data.join(SPOOL);
    ensure!(spool.exists());
    drop(at);
    until(|| Ok(!spool.exists()), || format!("{} stays", spool.display()))
}

#[test]
fn an_agent_fetches_ahead_for_its_server() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 240_000)?;
    let at = Recovering::new(&site, "recovering")?;
    let socket = configure(&site, &own_repository(&site))?;
    let text = fs::read_to_string(&site.config)?;
    let data = site.cluster.data.display().to_string();
    fs::write(&site.config, text.replace(&data, &at.data.display().to_string()))?;
    // Without a server in there nobody is left behind: it is the agent that answers.
    fs::remove_file(at.data.join("postmaster.pid"))?;
    let agent = Agent::start(&site)?;
    ensure!(socket.exists());
    served_from_the_spool(&site, &at, &names, &["--repository", "main"])?;
    // One errand after another: what was fetched for the first is not given to the second.
    at.ask(&site, &names[0], &["--timeline", "1"])?.expect(0, &[])?;
    at.replayed(&site, &names[0])?;
    let ahead = names.get(1..9).context("segments")?;
    at.is_spooled(ahead)?;
    // Killed in the middle, and its successor begins with an empty spool.
    agent.end(Signal::SIGKILL)?;
    at.ask(&site, &names[1], &["--timeline", "1"])?.expect(0, &[])?;
    at.replayed(&site, &names[1])?;
    let _agent = Agent::start(&site)?;
    at.ask(&site, &names[5], &["--timeline", "1"])?.expect(0, &[])?;
    at.replayed(&site, &names[5])?;
    let ahead = names.get(6..14).context("segments")?;
    at.is_spooled(ahead)?;
    // Taken away by somebody who tidied up, it is made again.
    fs::remove_dir_all(at.data.join(SPOOL))?;
    at.ask(&site, &names[5], &["--timeline", "1"])?.expect(0, &[])?;
    at.is_spooled(ahead)?;
    // What its asker could not take goes when the next one asks.
    let mut command = site.pitr(&["archive-get"])?;
    command.current_dir(&at.data).args(["--timeline", "1", &names[6], "pg_wal/none/RECOVERYXLOG"]);
    let answer = Answer::of(&mut command)?;
    ensure!((200..=220).contains(&answer.code) && answer.err.contains("cannot take"), "{answer:?}");
    at.ask(&site, &names[7], &["--timeline", "1"])?.expect(0, &[])?;
    at.is_spooled(names.get(8..16).context("segments")?)
}

/// Where the server is the first process of a container it takes over who is left behind, and any exit code but 0 for a crash of its own.
#[test]
fn whoever_cannot_fetch_ahead_ends_well_and_is_not_started_where_somebody_does() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 130_000)?;
    let at = Recovering::new(&site, "recovering")?;
    at.ask(&site, &names[0], &["--timeline", "1"])?.expect(0, &[])?;
    until(|| Ok(owners_of(&at.data).len() == 1), || format!("{:?}", owners_of(&at.data)))?;
    let ahead = |file: &str| -> Result<Answer> {
        let mut command = site.pitr(&["fetch-ahead", file])?;
        Answer::of(command.current_dir(&at.data))
    };
    ahead(&names[0])?.expect(0, &["another process's"])?;
    ahead("no-segment")?.expect(0, &["cannot fetch ahead of that"])?;
    // The door is shut: each get works alone, and sees that somebody has the spool.
    fs::remove_file(at.data.join(SPOOL).join("socket"))?;
    for name in names.get(1..4).context("segments")? {
        at.ask(&site, name, &["--timeline", "1"])?.expect(0, &[])?;
        ensure!(owners_of(&at.data).len() == 1, "{:?}", owners_of(&at.data));
    }
    Ok(())
}

#[test]
fn a_trial_recovery_beside_an_agent_works_alone_and_is_not_warned_of_it() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 130_000)?;
    configure(&site, &own_repository(&site))?;
    let agent = Agent::start(&site)?;
    let at = Recovering::new(&site, "trial")?;
    for name in names.get(..4).context("segments")? {
        let answer = at.ask(&site, name, &["--timeline", "1"])?;
        ensure!(answer.code == 0 && answer.err.is_empty(), "{answer:?}\n{}", agent.log());
        at.replayed(&site, name)?;
    }
    ensure!(!site.cluster.data.join(SPOOL).exists() && at.data.join(SPOOL).exists());
    Ok(())
}

/// Recovery that begins again further back, as that of a standby does: only what is next lies there.
fn goes_back(site: &Site, at: &Recovering, names: &[String]) -> Result<()> {
    let flags = ["--timeline", "1"];
    let ask = |n: usize| -> Result<()> {
        let name = names.get(n).context("more segments")?;
        at.ask(site, name, &flags)?.expect(0, &[])?;
        at.replayed(site, name)
    };
    let next_lie_there = |n: usize| at.is_spooled(names.get(n + 1..n + 9).context("more segments")?);
    for n in [30, 20, 10, 0] {
        ask(n)?;
        next_lie_there(n)?;
    }
    // Faster than they are fetched.
    for n in [30, 20, 10, 0] {
        ask(n)?;
    }
    next_lie_there(0)?;
    // Part of what lies there is wanted further on.
    ask(5)?;
    next_lie_there(5)?;
    ask(2)?;
    next_lie_there(2)
}

#[test]
fn a_recovery_that_goes_back_leaves_nothing_behind_without_an_agent() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 600_000)?;
    let at = Recovering::new(&site, "recovering")?;
    goes_back(&site, &at, &names)
}

#[test]
fn a_recovery_that_goes_back_leaves_nothing_behind_with_an_agent() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 600_000)?;
    let at = Recovering::new(&site, "recovering")?;
    configure(&site, &own_repository(&site))?;
    let text = fs::read_to_string(&site.config)?;
    let data = site.cluster.data.display().to_string();
    fs::write(&site.config, text.replace(&data, &at.data.display().to_string()))?;
    fs::remove_file(at.data.join("postmaster.pid"))?;
    let _agent = Agent::start(&site)?;
    goes_back(&site, &at, &names)
}

/// A store that takes connections and never answers, as a repository in TOML. Its name goes before those of the others.
fn silent_store(site: &Site, listener: &TcpListener) -> Result<String> {
    let keys = site.place().join("keys");
    fs::write(&keys, "aws_access_key_id = A\naws_secret_access_key = S\n")?;
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
    give_to_server(&keys)?;
    Ok(format!(
        "[archive]\ntimeout = \"1s\"\n[[repository]]\nname = \"silent\"\nrequired = false\nurl = \"s3://bucket/pre\"\n\
         endpoint = \"http://{}\"\nallow_http = true\nregion = \"us-east-1\"\ncredentials_file = \"{}\"\n",
        listener.local_addr()?,
        keys.display()
    ))
}

#[test]
fn a_repository_that_is_silent_keeps_nothing_from_being_fetched_ahead_from_another() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 240_000)?;
    let at = Recovering::new(&site, "recovering")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    configure(&site, &format!("{}{}", silent_store(&site, &listener)?, own_repository(&site)))?;
    let text = fs::read_to_string(&site.config)?;
    let data = site.cluster.data.display().to_string();
    fs::write(&site.config, text.replace(&data, &at.data.display().to_string()))?;
    fs::remove_file(at.data.join("postmaster.pid"))?;
    let _agent = Agent::start(&site)?;
    at.ask(&site, &names[0], &["--timeline", "1"])?.expect(0, &[])?;
    at.replayed(&site, &names[0])?;
    let ahead = names.get(1..9).context("segments")?;
    at.is_spooled(ahead)?;
    fs::rename(&site.repository, site.place().join("aside"))?;
    for name in ahead {
        at.ask(&site, name, &["--timeline", "1"])?.expect(0, &[])?;
        at.replayed(&site, name)?;
    }
    Ok(())
}

#[test]
fn who_is_left_behind_ends_when_he_is_told_though_the_store_is_silent() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 1000)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // With the usual deadlines: it would wait for minutes.
    let silent = silent_store(&site, &listener)?.replace("timeout = \"1s\"", "timeout = \"10m\"");
    site.write_config(&silent.replace("required = false\n", ""))?;
    for server_ends in [false, true] {
        let mut at = Recovering::new(&site, &format!("recovering-{server_ends}"))?;
        let mut command = site.pitr(&["fetch-ahead", &names[0]])?;
        let mut left = command.current_dir(&at.data).spawn()?;
        let spool = at.data.join(SPOOL);
        until(|| Ok(spool.join("socket").exists()), || "nobody listens".to_owned())?;
        if server_ends {
            at.server.kill()?;
            at.server.wait()?;
        } else {
            kill(Pid::from_raw(i32::try_from(left.id())?), Signal::SIGTERM)?;
        }
        let mut ended = None;
        for _ in 0..400 {
            ended = left.try_wait()?;
            if ended.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if ended.is_none() {
            left.kill()?;
            left.wait()?;
        }
        ensure!(ended.is_some(), "it lives on, server ends: {server_ends}");
        ensure!(!spool.exists(), "its spool is left, server ends: {server_ends}");
    }
    Ok(())
}

/// A repository that is behind and ends with an unfinished copy stands before one that has all.
#[test]
fn what_is_unfinished_in_one_repository_comes_whole_from_another() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 60_000)?;
    let (behind, cut) = (site.place().join("behind"), names.get(2).context("segments")?);
    let copied = Command::new("cp").arg("-a").args([&site.repository, &behind]).status()?;
    ensure!(copied.success());
    for name in names.iter().skip(2) {
        fs::remove_file(behind.join(site.object(name)?.strip_prefix(&site.repository)?))?;
    }
    let of_behind = format!("[[repository]]\nname = \"behind\"\nurl = \"file://{}\"\n", behind.display());
    site.write_config(&of_behind)?;
    let mut short = fs::read(site.cluster.data.join("pg_wal").join(cut))?;
    let half = short.len() / 2;
    short.get_mut(half..).context("a half")?.fill(0);
    let path = site.place().join(cut);
    fs::write(&path, &short)?;
    give_to_server(&path)?;
    site.ask(&["archive-push", path.to_str().context("a path")?])?.expect(0, &[])?;
    site.write_config(&format!("{of_behind}{}", own_repository(&site)))?;
    let at = Recovering::new(&site, "recovering")?;
    for flags in [&["--timeline", "1"][..], &[]] {
        let (first, rest) = names.split_first().context("segments")?;
        at.ask(&site, first, flags)?.expect(0, &[])?;
        at.replayed(&site, first)?;
        at.is_spooled(&rest[..rest.len().min(8)])?;
        for name in rest {
            at.ask(&site, name, flags)?.expect(0, &[])?;
            at.replayed(&site, name)?;
        }
        // Asked for again it is not in the spool any more.
        at.ask(&site, cut, flags)?.expect(0, &[])?;
        at.replayed(&site, cut)?;
    }
    // Where nobody has the rest it is handed over, and still not kept.
    for name in names.iter().skip(2) {
        fs::remove_file(site.object(name)?)?;
    }
    let at = Recovering::new(&site, "again")?;
    for name in [&names[0], &names[1], cut] {
        at.ask(&site, name, &[])?.expect(0, &[])?;
        ensure!(!at.spooled().contains(cut), "kept, though it may grow");
    }
    ensure!(fs::read(at.data.join("pg_wal/RECOVERYXLOG"))? == short);
    Ok(())
}

#[test]
fn a_history_that_recovery_asks_for_again_at_its_end_is_kept_ready() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 60_000)?;
    let history = site.cluster.data.join("pg_wal/00000002.history");
    let fork = site.cluster.psql("SELECT pg_current_wal_lsn()")?;
    fs::write(&history, format!("1\t{fork}\tno recovery target specified\n"))?;
    give_to_server(&history)?;
    site.ask(&["archive-push", "pg_wal/00000002.history"])?.expect(0, &[])?;
    let at = Recovering::new(&site, "recovering")?;
    // A route that goes there is told by its flags, and another one is not: both times it is asked for in the beginning.
    for flags in [&["--timeline", "2"][..], &[]] {
        at.ask(&site, &names[0], flags)?.expect(0, &[])?;
        at.replayed(&site, &names[0])?;
        at.ask(&site, "00000002.history", flags)?.expect(0, &[])?;
        at.replayed(&site, "00000002.history")?;
        let ready = || -> Result<bool> {
            let entries = fs::read_dir(at.data.join(SPOOL))?.flatten();
            let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            Ok(names.any(|name| name.ends_with("-00000002.history")))
        };
        until(ready, || format!("{flags:?}: no history is kept"))?;
        let aside = site.place().join("aside");
        fs::rename(&site.repository, &aside)?;
        at.ask(&site, "00000002.history", flags)?.expect(0, &[])?;
        at.replayed(&site, "00000002.history")?;
        fs::rename(&aside, &site.repository)?;
    }
    Ok(())
}

#[test]
fn who_is_left_behind_holds_nothing_of_the_server() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 20_000)?;
    let at = Recovering::new(&site, "recovering")?;
    // A descriptor that comes along, as PostgreSQL's do. That its log pipe does not stay open shows in that the answer ends at all.
    let script = "exec 7</etc/passwd; exec \"$@\"";
    let mut command = as_server("/bin/sh")?;
    command
        .current_dir(&at.data)
        .args(["-c", script, "sh"])
        .arg(site.program())
        .arg("--config")
        .arg(&site.config);
    Answer::of(command.args(["archive-get", &names[0], "pg_wal/RECOVERYXLOG"]))?.expect(0, &[])?;
    let process = || owner_of(&at.data).context("nobody fetches ahead");
    until(|| Ok(at.data.join(SPOOL).join("socket").exists()), || "nobody listens".to_owned())?;
    let own = PathBuf::from("/proc").join(process()?);
    for entry in fs::read_dir(own.join("fd"))? {
        let path = fs::read_link(entry?.path()).unwrap_or_default();
        ensure!(path != Path::new("/etc/passwd"), "{}", path.display());
    }
    let stat = fs::read_to_string(own.join("stat"))?;
    let session = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3)).context("a session")?;
    ensure!(session == process()?, "a session of its own");
    Ok(())
}

#[test]
fn who_is_left_behind_ends_with_recovery_and_with_the_server() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 1000)?;
    for server_ends in [false, true] {
        let mut at = Recovering::new(&site, &format!("recovering-{server_ends}"))?;
        at.ask(&site, &names[0], &[])?.expect(0, &[])?;
        until(|| Ok(at.data.join(SPOOL).join("socket").exists()), || "nobody listens".to_owned())?;
        if server_ends {
            at.server.kill()?;
            at.server.wait()?;
        } else {
            fs::remove_file(at.data.join("recovery.signal"))?;
        }
        until(|| Ok(owner_of(&at.data).is_none()), || format!("it lives on, server ends: {server_ends}"))?;
        ensure!(!at.data.join(SPOOL).exists(), "its spool is left");
    }
    Ok(())
}

#[test]
fn nothing_is_fetched_ahead_onto_a_disk_that_replay_needs() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 20_000)?;
    let at = Recovering::new(&site, "recovering")?;
    let pg_wal = at.data.join("pg_wal");
    // Room for twelve segments of 1 MiB: four short of those ahead and as many again.
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "pitr-test"]).arg(&pg_wal).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a small file system needs root");
        return Ok(());
    }
    give_to_server(&pg_wal)?;
    let recovered = (|| -> Result<()> {
        for name in names.iter().take(2) {
            at.ask(&site, name, &["--timeline", "1"])?.expect(0, &[])?;
            at.replayed(&site, name)?;
            until(|| Ok(at.data.join(SPOOL).join("socket").exists()), || "nobody listens".to_owned())?;
            ensure!(at.spooled().is_empty(), "{:?}", at.spooled());
        }
        Ok(())
    })();
    Command::new("umount").arg("--lazy").arg(&pg_wal).status()?;
    recovered
}

#[test]
fn large_segments_are_fetched_ahead_in_small_numbers() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    for (segment_mib, most) in [(64, 4), (256, 1)] {
        let conf = "wal_keep_size = 8GB\nautovacuum = off\narchive_timeout = 0\n";
        let site = Site::new(&install, &SiteOptions { segment_mib, conf, ..SiteOptions::default() })?;
        let mut names = Vec::new();
        for n in 0..most + 3 {
            site.cluster.psql(&format!("CREATE TABLE t{n} ()"))?;
            names.push(site.switch()?);
        }
        let at = Recovering::new(&site, "recovering")?;
        for (n, name) in names.iter().enumerate() {
            at.ask(&site, name, &["--timeline", "1"])?.expect(0, &[])?;
            at.replayed(&site, name)?;
            let ahead = names.get(n + 1..).context("segments")?;
            at.is_spooled(ahead.get(..most).unwrap_or(ahead))?;
            let sizes = fs::read_dir(at.data.join(SPOOL))?.flatten();
            let bytes: u64 = sizes.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
            ensure!(bytes <= 256 * MIB, "{bytes} bytes lie there");
        }
    }
    Ok(())
}

#[test]
fn nobody_is_left_behind_for_a_person_who_fetches_a_file() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 1000)?;
    let to = site.place().join("fetched");
    let mut command = site.pitr(&["archive-get", &names[0]])?;
    Answer::of(command.arg(&to))?.expect(0, &[])?;
    ensure!(!site.cluster.data.join(SPOOL).exists());
    // Nor beside a server that does not recover.
    site.ask(&["archive-get", &names[0], "pg_wal/RECOVERYXLOG"])?.expect(0, &[])?;
    ensure!(!site.cluster.data.join(SPOOL).exists());
    Ok(())
}

#[test]
fn real_recoveries_end_well_while_whoever_fetches_ahead_is_killed() -> Result<()> {
    for major in [13, 15, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let (site, _) = archived(&install, 1000)?;
        site.backup()?;
        site.cluster.psql("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1001, 200000) n")?;
        site.switch()?;
        let rows = "SELECT count(*), sum(n), md5(string_agg(text, '' ORDER BY n)) FROM t";
        let wanted = site.cluster.psql(rows)?;
        for killed in [false, true] {
            let (copy, _) = site.restore(&[])?;
            let (spool, over, seen) = (copy.data.join(SPOOL), AtomicBool::new(false), AtomicBool::new(false));
            let found = std::thread::scope(|scope| -> Result<String> {
                scope.spawn(|| watch(&spool, &over, &seen, killed.then_some(copy.data.as_path())));
                let found = open(&copy).and_then(|()| copy.psql(rows));
                over.store(true, Ordering::Relaxed);
                found
            })?;
            ensure!(found == wanted, "{major}, killed: {killed}");
            ensure!(seen.load(Ordering::Relaxed), "{major}: nothing was fetched ahead");
            let log = copy.log_text();
            ensure!(log.contains("restored log file"), "{log}");
            if install.own_tool("pg_amcheck").is_some() {
                run(copy.client("pg_amcheck", "postgres")?.arg("--install-missing"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_real_recovery_ends_well_while_its_agent_is_killed_and_started_again() -> Result<()> {
    for major in [13, 15, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let (site, _) = archived(&install, 1000)?;
        configure(&site, &own_repository(&site))?;
        site.backup()?;
        site.cluster.psql("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1001, 500000) n")?;
        site.switch()?;
        let rows = "SELECT count(*), sum(n), md5(string_agg(text, '' ORDER BY n)) FROM t";
        let wanted = site.cluster.psql(rows)?;
        site.cluster.stop(Stop::Fast)?;
        site.json(&["restore", "--replace", "--move-aside", "--json"])?;
        let (over, spool) = (AtomicBool::new(false), site.cluster.data.join(SPOOL));
        let (found, kills) = std::thread::scope(|scope| {
            let killing = scope.spawn(|| kill_agents(&site, &spool, &over));
            let recovered = || -> Result<String> {
                site.cluster.start()?;
                site.cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
                site.cluster.psql(rows)
            };
            let found = recovered();
            over.store(true, Ordering::Relaxed);
            (found, killing.join())
        });
        let kills = kills.map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(found? == wanted, "{major}");
        ensure!(kills >= 3, "{major}: it was killed {kills} times");
        if install.own_tool("pg_amcheck").is_some() {
            run(site.cluster.client("pg_amcheck", "postgres")?.arg("--install-missing"))?;
        }
    }
    Ok(())
}

/// Starts an agent and kills it as soon as it has fetched something, or somebody else has, until recovery is over; how often.
fn kill_agents(site: &Site, spool: &Path, over: &AtomicBool) -> Result<usize> {
    let mut kills = 0;
    while !over.load(Ordering::Relaxed) {
        let agent = Agent::start(site)?;
        let fetched = || {
            let entries = fs::read_dir(spool).into_iter().flatten().flatten();
            let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.any(|name| segment_of(&name).is_some())
        };
        while !over.load(Ordering::Relaxed) && !fetched() {
            std::thread::sleep(Duration::from_millis(5));
        }
        kills += usize::from(!over.load(Ordering::Relaxed));
        agent.end(Signal::SIGKILL)?;
        // Who was left behind by archive-get meanwhile has the spool: it goes the same way.
        if let Some(pid) = owner_of(&site.cluster.data).and_then(|pid| pid.parse().ok()) {
            // It may have ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    Ok(kills)
}

/// Notes that there was a spool with something in it, and kills its owner now and then.
fn watch(spool: &Path, over: &AtomicBool, seen: &AtomicBool, kills: Option<&Path>) {
    while !over.load(Ordering::Relaxed) {
        let full = fs::read_dir(spool)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| segment_of(&entry.file_name().to_string_lossy()).is_some());
        seen.fetch_or(full, Ordering::Relaxed);
        if let Some(data) = kills.filter(|_| full) {
            let owner = owner_of(data);
            let killed = owner.map(|pid| Command::new("kill").args(["-KILL", &pid]).status());
            drop(killed);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The process that fetches ahead in `data`.
fn owner_of(data: &Path) -> Option<String> {
    owners_of(data).into_iter().next()
}

/// The processes that do, or try to.
fn owners_of(data: &Path) -> Vec<String> {
    let found = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let ours = command.windows(11).any(|word| word == b"fetch-ahead")
            && fs::read_link(entry.path().join("cwd")).ok()? == data;
        ours.then(|| entry.file_name().to_string_lossy().into_owned())
    });
    found.collect()
}
