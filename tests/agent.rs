//! The agent: what it says yes to is there, and without it everything goes on.
//!
//! Real servers archive through it while it is killed, stopped, fooled and starved. The oracle for what is archived is the server's own
//! file under the same name (`pg_wal` keeps them all here), compared byte for byte with what `archive-get` delivers.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use support::agent::{Agent, all_archived, all_is_there, configure, marked, own_repository, status};
use support::cluster::{Install, Stop, as_server, give_to_server};
use support::site::{Site, SiteOptions, until};

/// Keeps its WAL, so that what was archived can be compared.
const KEEPS: &str = "wal_keep_size = 4GB\nautovacuum = off\narchive_timeout = 0\n";

fn site(install: &Install, archives: bool) -> Result<Site> {
    Site::new(install, &SiteOptions { conf: KEEPS, archives, ..SiteOptions::default() })
}

/// Writes some segments of WAL and ends the last one.
fn write_wal(site: &Site, rows: u32) -> Result<()> {
    site.cluster.psql("CREATE TABLE IF NOT EXISTS t (n int, text text)")?;
    site.cluster.psql(&format!(
        "INSERT INTO t SELECT n, md5(n::text) || md5((n + 1)::text) FROM generate_series(1, {rows}) n"
    ))?;
    site.cluster.psql("SELECT pg_switch_wal()")?;
    Ok(())
}

/// An archiver that fails, so that segments gather; and back again.
fn block(site: &Site) -> Result<String> {
    let command = site.cluster.psql("SHOW archive_command")?;
    set_command(site, "false")?;
    Ok(command)
}

fn set_command(site: &Site, command: &str) -> Result<()> {
    site.cluster.psql(&format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''")))?;
    site.cluster.psql("SELECT pg_reload_conf()")?;
    Ok(())
}

/// What a push of the file under that name says, in the form that the server uses.
fn push(site: &Site, name: &str) -> Result<support::site::Answer> {
    site.ask(&["archive-push", &format!("pg_wal/{name}")])
}

#[test]
fn wal_is_stored_before_the_server_asks_and_acknowledged_when_it_does() -> Result<()> {
    for major in [13, 15, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let site = site(&install, true)?;
        configure(&site, &own_repository(&site))?;
        let command = block(&site)?;
        let agent = Agent::start(&site)?;
        write_wal(&site, 60_000)?;
        let ready = marked(&site, ".ready")?;
        ensure!(ready.len() >= 5, "{ready:?}");
        // Nobody asked, and all is stored: each of them, since a count may be that of an older look at the queue.
        for name in &ready {
            until(|| Ok(site.object(name)?.exists()), || format!("{name}\n{}", agent.log()))?;
        }
        let said = || status(&site);
        until(
            || Ok(said()?["waiting"] == 0 && said()?["ready"].as_u64() >= u64::try_from(ready.len()).ok()),
            || format!("{:?}\n{}", said(), agent.log()),
        )?;
        ensure!(marked(&site, ".ready")?.len() >= ready.len(), "and nothing is acknowledged");
        // Whether the agent answers from what it knows: with the repository out of reach, what it stored is yes, what it did not is no.
        let aside = site.place().join("aside");
        fs::rename(&site.repository, &aside)?;
        push(&site, &ready[0])?.expect(0, &[])?;
        fs::rename(&aside, &site.repository)?;
        set_command(&site, &command)?;
        all_archived(&site)?;
        ensure!(all_is_there(&site)? >= ready.len());
        ensure!(agent.end(Signal::SIGTERM)?.success());
        ensure!(!site.place().join("agent.sock").exists(), "its socket is gone");
    }
    Ok(())
}

#[test]
fn killed_again_and_again_it_loses_nothing_that_was_acknowledged() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, true)?;
    configure(&site, &own_repository(&site))?;
    for round in 0..12_u64 {
        let agent = Agent::start(&site)?;
        write_wal(&site, 12_000)?;
        // At a different moment each time; sometimes the client goes first.
        std::thread::sleep(std::time::Duration::from_millis(17 * round));
        if round % 3 == 0 {
            let pattern = format!("{} archive-push", site.config.display());
            Command::new("pkill").args(["-KILL", "-f", &pattern]).status()?;
        }
        agent.end(Signal::SIGKILL)?;
    }
    // And without any: PostgreSQL goes on through archive-push alone.
    write_wal(&site, 12_000)?;
    all_archived(&site)?;
    ensure!(all_is_there(&site)? >= 12);
    // A socket that a killed one left is taken over.
    let agent = Agent::start(&site)?;
    ensure!(status(&site)?["waiting"] == 0);
    // A second one is one too many.
    let mut second = site.pitr(&["agent"])?;
    support::site::Answer::of(&mut second)?.expect(8, &["another agent listens"])?;
    drop(agent);
    site.ask(&["agent", "--status"])?.expect(5, &["no agent answers"])
}

#[test]
fn an_agent_that_does_not_answer_is_no_obstacle() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, true)?;
    let socket = configure(&site, &own_repository(&site))?;
    block(&site)?;
    write_wal(&site, 30_000)?;
    let ready = marked(&site, ".ready")?;
    let [first, second, third, ..] = ready.as_slice() else { anyhow::bail!("{ready:?}") };
    let agent = Agent::start(&site)?;
    agent.stand_still()?;
    push(&site, first)?.expect(0, &["works alone", "did not answer"])?;
    agent.signal(Signal::SIGCONT)?;
    agent.end(Signal::SIGKILL)?;
    // Nobody behind the socket.
    push(&site, second)?.expect(0, &[])?;
    fs::remove_file(&socket)?;
    // One that greets and then talks nonsense.
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
    give_to_server(&socket)?;
    let nonsense = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"+=\xff\xff\xff\xff")?;
        let mut rest = Vec::new();
        // The client hangs up; how does not matter.
        let _ = stream.read_to_end(&mut rest);
        Ok(())
    });
    push(&site, third)?.expect(0, &["works alone"])?;
    nonsense.join().map_err(|_| anyhow::anyhow!("the listener failed"))??;
    for name in [first, second, third] {
        ensure!(site.object(name)?.exists(), "{name}");
    }
    Ok(())
}

#[test]
fn a_foreign_user_is_neither_answered_nor_believed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: becoming another user takes root");
        return Ok(());
    }
    let site = site(&install, false)?;
    let socket = configure(&site, &own_repository(&site))?;
    let agent = Agent::start(&site)?;
    let mode = fs::metadata(&socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    // Whatever the mode: a foreigner's connection is closed without a word.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({:?})\nprint(len(s.recv(10)))",
        socket.display().to_string()
    );
    let nobody = |script: &str| {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script]).current_dir("/tmp").uid(65534).gid(65534);
        command
    };
    let heard = nobody(&script).output()?;
    ensure!(heard.stdout == b"0\n", "{heard:?}");
    ensure!(agent.log().contains("user 65534"), "{}", agent.log());
    agent.end(Signal::SIGTERM)?;
    // A foreigner who poses as the agent, and says yes to everything.
    let door = site.place().join("door");
    fs::create_dir(&door)?;
    fs::set_permissions(&door, fs::Permissions::from_mode(0o777))?;
    let socket = door.join("s");
    site.write_config(&format!("[agent]\nsocket = \"{}\"\n{}", socket.display(), own_repository(&site)))?;
    let script = format!(
        "import os, socket, time\ns = socket.socket(socket.AF_UNIX)\ns.bind({path:?})\nos.chmod({path:?}, 0o666)\ns.listen()\n\
         while True:\n c, _ = s.accept()\n c.send(b'+=' + (4).to_bytes(4, 'little') + b'yes\\0')\n time.sleep(1)\n c.close()",
        path = socket.display().to_string()
    );
    let mut liar = nobody(&script).stderr(Stdio::inherit()).spawn()?;
    let listens = || Ok(fs::metadata(&socket).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o666));
    until(listens, || "the liar does not listen".to_owned())?;
    site.cluster.psql("SELECT pg_switch_wal()")?;
    let name = site.cluster.psql("SELECT min(name) FROM pg_ls_waldir()")?;
    let answer = push(&site, &name);
    liar.kill()?;
    liar.wait()?;
    answer?.expect(0, &["user 65534 listens"])?;
    ensure!(site.object(&name)?.exists(), "it was stored all the same");
    Ok(())
}

#[test]
fn another_file_under_a_name_that_was_stored_is_not_acknowledged() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, true)?;
    configure(&site, &own_repository(&site))?;
    block(&site)?;
    let _agent = Agent::start(&site)?;
    write_wal(&site, 30_000)?;
    let ready = marked(&site, ".ready")?;
    until(|| Ok(status(&site)?["waiting"] == 0), || format!("{:?}", status(&site)))?;
    let name = &ready[1];
    push(&site, name)?.expect(0, &[])?;
    // Written to in place, far behind the first page: only its time and the bytes tell.
    let path = site.cluster.data.join("pg_wal").join(name);
    let good = fs::read(&path)?;
    let middle = good.len() / 2;
    let bad: Vec<u8> = good.get(middle..middle + 64).context("a segment")?.iter().map(|b| !b).collect();
    let file = fs::File::options().write(true).open(&path)?;
    file.write_all_at(&bad, u64::try_from(middle)?)?;
    let answer = push(&site, name)?;
    ensure!(answer.code == 6 || answer.code == 9, "{answer:?}");
    // The same bytes in another file are the same segment.
    fs::remove_file(&path)?;
    fs::write(&path, &good)?;
    give_to_server(&path)?;
    push(&site, name)?.expect(0, &[])?;
    push(&site, name)?.expect(0, &[])?;
    // What lies elsewhere is none of the agent's business, and right all the same.
    let elsewhere = site.place().join(name);
    fs::copy(&path, &elsewhere)?;
    give_to_server(&elsewhere)?;
    site.ask(&["archive-push", &elsewhere.display().to_string()])?.expect(0, &["nothing else"])
}

#[test]
fn what_was_added_to_the_configuration_counts_from_the_next_segment_on() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, true)?;
    let other = site.place().join("other");
    let second = format!("[[repository]]\nname = \"other\"\nurl = \"file://{}\"\n", other.display());
    let both = format!("{}{second}", own_repository(&site));
    configure(&site, &both)?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--json"])?;
    configure(&site, &own_repository(&site))?;
    block(&site)?;
    let agent = Agent::start(&site)?;
    write_wal(&site, 30_000)?;
    until(|| Ok(status(&site)?["waiting"] == 0), || agent.log())?;
    let ready = marked(&site, ".ready")?;
    // A second place is required from now on: what the agent stored before is not enough any more.
    configure(&site, &both)?;
    let folder = site.folder()?;
    let system = folder.file_name().context("a folder")?.to_owned();
    let stored = |name: &str| {
        let (timeline, log) = (name.get(..8).unwrap_or_default(), name.get(8..16).unwrap_or_default());
        other
            .join("main")
            .join(&system)
            .join("wal")
            .join(timeline)
            .join(log)
            .join(format!("{name}.wal"))
            .exists()
    };
    push(&site, &ready[0])?.expect(0, &["goes by another configuration"])?;
    ensure!(stored(&ready[0]));
    until(|| Ok(status(&site)?["repositories"].as_array().map(Vec::len) == Some(2)), || agent.log())?;
    until(|| Ok(ready.iter().all(|name| stored(name))), || agent.log())?;
    push(&site, &ready[1])?.expect(0, &[])?;
    // One that cannot be read changes nothing for the agent, and is the command's to report.
    configure(&site, &format!("nonsense = 1\n{both}"))?;
    push(&site, &ready[1])?.expect(3, &["nonsense"])?;
    until(|| Ok(agent.log().contains("cannot be used")), || agent.log())?;
    configure(&site, &both)?;
    push(&site, &ready[1])?.expect(0, &[])?;
    // Told to, it reads all of it again, and stays.
    let again = "the configuration was read again";
    let times = agent.log().matches(again).count();
    agent.signal(Signal::SIGHUP)?;
    until(|| Ok(agent.log().matches(again).count() > times), || agent.log())?;
    push(&site, &ready[1])?.expect(0, &[])?;
    // One that stored in part of them would be taken for one that stores in all.
    let partly = site.ask(&["--repository", "other", "agent"])?;
    partly.expect(3, &["every repository", "without --repository"])
}

/// What a lone `archive-push` stores of a file with the hardest compression.
fn hardest(site: &Site, name: &str) -> Result<Vec<u8>> {
    let own = fs::read_to_string(&site.config)?;
    let place = site.place().join(format!("hardest-{name}"));
    let text = format!(
        "[archive]\nlevel = 19\n[[repository]]\nname = \"main\"\nurl = \"file://{}\"\n",
        place.display()
    );
    site.write_config(&text)?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--json"])?;
    push(site, name)?.expect(0, &[])?;
    let inside = site.object(name)?;
    let stored = fs::read(place.join(inside.strip_prefix(&site.repository)?))?;
    fs::write(&site.config, own)?;
    fs::remove_dir_all(&place)?;
    Ok(stored)
}

#[test]
fn while_the_queue_is_long_it_compresses_less_and_then_as_configured_again() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let processors = std::thread::available_parallelism()?.get();
    // Where each file under way has a processor to itself it is compressing no less that holds the queue up.
    for ahead in [1, processors, processors + 6] {
        eases(&install, ahead).with_context(|| format!("{ahead} under way"))?;
    }
    Ok(())
}

fn eases(install: &Install, ahead: usize) -> Result<()> {
    let site = site(install, true)?;
    let archive = format!("[archive]\nlevel = 19\npush_ahead = {ahead}\n");
    configure(&site, &format!("{archive}{}", own_repository(&site)))?;
    let command = block(&site)?;
    // Long enough to be met by the questions below.
    let rows = u32::try_from((ahead * 5).max(60) * 9_000)?;
    write_wal(&site, rows)?;
    let ready = marked(&site, ".ready")?;
    ensure!(ready.len() > ahead * 4, "{}", ready.len());
    let agent = Agent::start(&site)?;
    let said = || status(&site);
    let less = || -> Result<bool> {
        let said = said()?;
        Ok(said["level"].as_i64() < Some(19) && said["configured_level"] == 19)
    };
    until(less, || format!("{:?}\n{}", said(), agent.log()))?;
    let shown = |words: &str| Ok(site.ask(&["agent", "--status"])?.out.contains(words));
    until(
        || shown("while the queue is long, else 19"),
        || format!("{:?}", site.ask(&["agent", "--status"])),
    )?;
    let drained = || -> Result<bool> {
        let said = said()?;
        Ok(said["waiting"] == 0 && said["ready"].as_u64() >= u64::try_from(ready.len()).ok())
    };
    until(drained, || format!("{:?}\n{}", said(), agent.log()))?;
    // Those behind the first ones that were under way, which nothing waited for yet. Of the rest some may have got all that was configured.
    let mut behind = ready.iter().skip(ahead);
    let eased = behind.try_fold(false, |eased, name| -> Result<bool> {
        Ok(eased || fs::read(site.object(name)?)?.len() > hardest(&site, name)?.len())
    })?;
    ensure!(eased, "all were compressed as if there was time");
    ensure!(said()?["level"] == 19, "{:?}", said());
    ensure!(shown("compresses with level 19\n")?);
    write_wal(&site, 100)?;
    let all = marked(&site, ".ready")?;
    let idle: Vec<&String> = all.iter().filter(|name| !ready.contains(name)).collect();
    for name in &idle {
        until(|| Ok(site.object(name)?.exists()), || agent.log())?;
        ensure!(fs::read(site.object(name)?)? == hardest(&site, name)?, "{name} was given less");
    }
    ensure!(!idle.is_empty());
    set_command(&site, &command)?;
    all_archived(&site)?;
    all_is_there(&site).map(drop)
}

/// Gives a site another required repository; its directory.
fn two_repositories(site: &Site) -> Result<std::path::PathBuf> {
    let other = site.place().join("other");
    let second = format!("[[repository]]\nname = \"other\"\nurl = \"file://{}\"\n", other.display());
    configure(site, &format!("{}{second}", own_repository(site)))?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--json"])?;
    Ok(other)
}

#[test]
fn a_repository_that_is_down_keeps_the_others_from_nothing() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, true)?;
    let other = two_repositories(&site)?;
    let command = block(&site)?;
    let aside = site.place().join("aside");
    fs::rename(&other, &aside)?;
    let agent = Agent::start(&site)?;
    write_wal(&site, 80_000)?;
    let ready = marked(&site, ".ready")?;
    ensure!(ready.len() > 8, "more than are under way at once: {ready:?}");
    // The repository that works gets all of it.
    for name in &ready {
        until(|| Ok(site.object(name)?.exists()), || format!("{name}\n{}", agent.log()))?;
    }
    // An object has its name before it is durable, and only then the agent counts it.
    let all = || Ok(status(&site)?["repositories"][0]["lacks"] == 0);
    until(all, || format!("{:?}\n{}", status(&site), agent.log()))?;
    let said = status(&site)?;
    ensure!(said["waiting"].as_u64() >= Some(8), "{said}");
    ensure!(said["repositories"][0]["failing"].is_null(), "{said}");
    ensure!(said["repositories"][1]["failing"].is_string(), "{said}");
    site.ask(&["agent", "--status"])?.expect(2, &[])?;
    // Required is required.
    let answer = push(&site, &ready[0])?;
    ensure!((1..=125).contains(&answer.code) && answer.err.contains("HINT"), "{answer:?}");
    // When it is back, so is archiving.
    fs::rename(&aside, &other)?;
    set_command(&site, &command)?;
    all_archived(&site)?;
    until(|| Ok(status(&site)?["waiting"] == 0), || format!("{:?}\n{}", status(&site), agent.log()))?;
    ensure!(agent.log().contains("takes WAL again"), "{}", agent.log());
    for repository in ["main", "other"] {
        let to = site.place().join("fetched").display().to_string();
        site.ask(&["--repository", repository, "archive-get", &ready[0], &to])?.expect(0, &[])?;
    }
    Ok(())
}

/// Bytes that a process has read so far.
fn bytes_read(agent: &Agent) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/io", agent.pid()?))?;
    let read = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    Ok(read.context("no count")?.trim().parse()?)
}

#[test]
fn a_repository_that_refuses_costs_the_others_nothing_more() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, true)?;
    let other = two_repositories(&site)?;
    block(&site)?;
    // Folders of WAL cannot be made there.
    let folder = other.join("main").join(site.folder()?.file_name().context("a folder")?);
    let mode = |mode: u32| fs::set_permissions(&folder, fs::Permissions::from_mode(mode));
    mode(0o555)?;
    let agent = Agent::start_open(&site)?;
    write_wal(&site, 160_000)?;
    let ready = marked(&site, ".ready")?;
    ensure!(ready.len() >= 16, "{ready:?}");
    let lacks =
        |i: usize| -> Result<u64> { status(&site)?["repositories"][i]["lacks"].as_u64().context("a number") };
    // A count may be that of an older look at the queue.
    let all = u64::try_from(ready.len())?;
    until(|| Ok(lacks(1)? >= all && lacks(0)? == 0), || format!("{:?}\n{}", status(&site), agent.log()))?;
    let before = bytes_read(&agent)?;
    for name in ready.iter().take(3) {
        let answer = push(&site, name)?;
        ensure!((1..=125).contains(&answer.code), "{answer:?}");
        // Longer than between two readings of the configuration.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        ensure!(lacks(0)? == 0, "it begins anew: {:?}\n{}", status(&site), agent.log());
    }
    // One file for each time that the other was tried, and not the queue.
    let grown = bytes_read(&agent)?.saturating_sub(before);
    ensure!(grown < all << 20, "{grown} bytes were read\n{}", agent.log());
    mode(0o755)?;
    push(&site, &ready[0])?.expect(0, &[])?;
    until(|| Ok(lacks(1)? == 0), || format!("{:?}\n{}", status(&site), agent.log()))
}

#[test]
fn nothing_is_stored_under_the_mount_point_of_a_disk_that_was_unmounted() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, true)?;
    configure(&site, &own_repository(&site))?;
    block(&site)?;
    let disk = site.place().join("disk");
    fs::rename(&site.repository, &disk)?;
    fs::create_dir(&site.repository)?;
    give_to_server(&site.repository)?;
    let mount = || Command::new("mount").arg("--bind").arg(&disk).arg(&site.repository).status();
    let umount = || Command::new("umount").arg(&site.repository).status();
    if !mount().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a disk takes root");
        return Ok(());
    }
    let tried = (|| -> Result<()> {
        let agent = Agent::start(&site)?;
        write_wal(&site, 12_000)?;
        // From here on the agent goes by what the repository said of itself.
        let before = marked(&site, ".ready")?;
        before.iter().try_for_each(|name| push(&site, name)?.expect(0, &[]))?;
        // While it is written to, it is busy.
        until(|| Ok(umount()?.success()), || "it stays mounted".to_owned())?;
        write_wal(&site, 12_000)?;
        let ready = marked(&site, ".ready")?;
        let name = ready.iter().find(|name| !before.contains(name)).context("a segment")?;
        push(&site, name)?.expect(5, &["is the disk mounted"])?;
        until(|| Ok(status(&site)?["repositories"][0]["failing"].is_string()), || agent.log())?;
        ensure!(fs::read_dir(&site.repository)?.next().is_none(), "under the mount point");
        ensure!(mount()?.success());
        push(&site, name)?.expect(0, &[])?;
        ensure!(site.object(name)?.exists());
        until(|| Ok(status(&site)?["waiting"] == 0), || format!("{:?}\n{}", status(&site), agent.log()))?;
        agent.end(Signal::SIGTERM)?;
        Ok(())
    })();
    // What is not mounted cannot be unmounted.
    let _ = Command::new("umount").arg("--lazy").arg(&site.repository).status();
    tried
}

#[test]
fn a_restore_in_place_and_the_server_after_it_go_well_beside_a_running_agent() -> Result<()> {
    for major in [15, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let site = site(&install, true)?;
        configure(&site, &own_repository(&site))?;
        let agent = Agent::start(&site)?;
        write_wal(&site, 1000)?;
        site.backup()?;
        write_wal(&site, 60_000)?;
        all_archived(&site)?;
        let rows = "SELECT count(*), sum(n) FROM t";
        let wanted = site.cluster.psql(rows)?;
        site.cluster.stop(Stop::Fast)?;
        site.json(&["restore", "--replace", "--move-aside", "--json"])?;
        site.cluster.start()?;
        site.cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
        ensure!(site.cluster.psql(rows)? == wanted);
        ensure!(site.cluster.log_text().contains("restored log file"), "{}", site.cluster.log_text());
        // On the new timeline the same agent goes on.
        write_wal(&site, 30_000)?;
        all_archived(&site)?;
        let done = marked(&site, ".done")?;
        ensure!(done.iter().any(|name| name.starts_with("00000002")), "{done:?}");
        all_is_there(&site)?;
        ensure!(status(&site)?["waiting"] == 0, "{:?}\n{}", status(&site), agent.log());
    }
    Ok(())
}

#[test]
fn file_work_that_hangs_does_not_keep_it_from_ending() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, true)?;
    configure(&site, &own_repository(&site))?;
    block(&site)?;
    write_wal(&site, 12_000)?;
    let ready = marked(&site, ".ready")?;
    // Whoever opens it, to see whether it is durable, waits for a writer that never comes.
    let object = site.object(ready.last().context("a segment")?)?;
    let folder = object.parent().context("a folder")?;
    let missing: Vec<_> = folder.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
    for dir in missing.iter().rev() {
        fs::create_dir(dir)?;
        give_to_server(dir)?;
    }
    ensure!(Command::new("mkfifo").arg(&object).status()?.success());
    give_to_server(&object)?;
    let mut agent = Agent::start(&site)?;
    let others = ready.len() - 1;
    let hangs = || -> Result<bool> {
        let said = status(&site)?;
        Ok(said["under_way"] == 1 && said["ready"].as_u64() > u64::try_from(others).ok())
    };
    until(hangs, || format!("{:?}\n{}", status(&site), agent.log()))?;
    agent.signal(Signal::SIGTERM)?;
    let ended = agent.ends_within(std::time::Duration::from_secs(30))?;
    ensure!(ended.is_some_and(|status| status.success()), "{ended:?}\n{}", agent.log());
    Ok(())
}

#[test]
fn systemd_is_told_when_questions_are_taken() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, false)?;
    configure(&site, &own_repository(&site))?;
    let notify = site.place().join("notify");
    let told = UnixDatagram::bind(&notify)?;
    fs::set_permissions(&notify, fs::Permissions::from_mode(0o666))?;
    told.set_read_timeout(Some(std::time::Duration::from_secs(60)))?;
    let mut command = as_server(site.program())?;
    command.arg("--config").arg(&site.config).arg("agent").env("NOTIFY_SOCKET", &notify);
    let mut agent = command.stderr(Stdio::null()).spawn()?;
    let mut heard = [0; 64];
    let mut next = || -> Result<String> {
        let length = told.recv(&mut heard)?;
        Ok(String::from_utf8_lossy(heard.get(..length).unwrap_or_default()).into_owned())
    };
    ensure!(next()?.contains("READY=1"));
    ensure!(status(&site)?["waiting"] == 0);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM)?;
    ensure!(agent.wait()?.success());
    ensure!(next()?.contains("STOPPING=1"));
    Ok(())
}

#[test]
fn without_what_it_needs_it_says_what_is_missing() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install, false)?;
    let started = |text: &str| -> Result<support::site::Answer> {
        fs::write(&site.config, text)?;
        site.ask(&["agent"])
    };
    let rest = own_repository(&site);
    started(&format!("cluster = \"main\"\n{rest}"))?.expect(3, &["data_dir"])?;
    let place = |socket: &Path| {
        let (socket, data) = (socket.display(), site.cluster.data.display());
        format!(
            "cluster = \"main\"\n[postgres]\ndata_dir = \"{data}\"\n[agent]\nsocket = \"{socket}\"\n{rest}"
        )
    };
    let long = site.place().join("x".repeat(120));
    started(&place(&long))?.expect(1, &["107 bytes"])?;
    started(&place(Path::new("/proc/no/such.sock")))?.expect(1, &["the directory of the agent's socket"])
}
