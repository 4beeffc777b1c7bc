//! Who asked for a file is gone: what he would have been given is not put where the next one asks for another (RECOVERY.md 18).
//!
//! A shell stands for the one that PostgreSQL starts; the file's sync is slow, and meanwhile the shell is killed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::no_strace;
use super::support::agent::{Agent, configure, own_repository};
use super::support::cluster::{Install, as_server};
use super::support::recovering::{Recovering, SPOOL, archived};
use super::support::site::until;

#[test]
fn a_file_is_not_put_there_for_an_asker_that_was_killed_meanwhile() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let (site, names) = archived(&install, 20_000)?;
    for killed in [false, true] {
        let at = Recovering::new(&site, &format!("killed-{killed}"))?;
        // Nobody is to fetch ahead.
        fs::remove_file(at.data.join("postmaster.pid"))?;
        let pg_wal = at.data.join("pg_wal");
        let slow = format!(
            "strace -f -qq -e trace=fsync -e inject=fsync:delay_enter=3000000:when=1 -o {}.log {} --config {} archive-get {} pg_wal/RECOVERYXLOG; exit $?",
            at.data.display(),
            site.program().display(),
            site.config.display(),
            names[0]
        );
        let mut shell: Command = as_server("/bin/sh")?;
        shell.env("PITR_TEST_TRACED", "1").current_dir(&at.data).args(["-c", &slow]);
        let mut shell = shell.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        until(|| Ok(is_written_to(&pg_wal)), || format!("nothing is written in {}", pg_wal.display()))?;
        if killed {
            shell.kill()?;
        }
        shell.wait()?;
        // pitr goes on, to its end.
        until(|| Ok(!is_written_to(&pg_wal)), || format!("something is written in {}", pg_wal.display()))?;
        ensure!(pg_wal.join("RECOVERYXLOG").exists() != killed, "killed: {killed}");
        let left = fs::read_dir(&pg_wal)?.flatten().count();
        ensure!(left == usize::from(!killed), "{left} files");
    }
    Ok(())
}

/// The agent fetches it, slowly; whoever asked hears of it as an orphan, and neither takes it nor fetches it alone.
#[test]
fn nor_by_an_agent_that_went_on_fetching_it() -> Result<()> {
    let Some(install) = Install::find_or_skip(15).filter(|_| !no_strace()) else { return Ok(()) };
    let (site, names) = archived(&install, 20_000)?;
    let at = Recovering::new(&site, "beside")?;
    fs::remove_file(at.data.join("postmaster.pid"))?;
    let own = site.cluster.data.display().to_string();
    configure(&site, &own_repository(&site))?;
    let text = fs::read_to_string(&site.config)?;
    fs::write(&site.config, text.replace(&own, &at.data.display().to_string()))?;
    let mut slow = as_server("strace")?;
    slow.env("PITR_TEST_TRACED", "1").args([
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync",
    ]);
    slow.args(["-e", "inject=fsync:delay_enter=3000000", "--"]).arg(site.program());
    slow.arg("--config").arg(&site.config).args(["-v", "agent"]);
    let agent = Agent::spawn(&site, slow)?;
    until(|| Ok(site.ask(&["agent", "--status"])?.code != 5), || agent.log())?;
    let (pg_wal, spool) = (at.data.join("pg_wal"), at.data.join(SPOOL));
    let ask = format!(
        "{} --config {} archive-get {} pg_wal/RECOVERYXLOG; exit $?",
        site.program().display(),
        site.config.display(),
        names[0]
    );
    let mut shell: Command = as_server("/bin/sh")?;
    shell.current_dir(&at.data).args(["-c", &ask]).stdin(Stdio::null()).stderr(Stdio::null());
    let mut shell = shell.spawn()?;
    until(|| Ok(is_written_to(&spool)), || agent.log())?;
    shell.kill()?;
    shell.wait()?;
    let asks = || {
        let commands = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut commands = commands.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        commands.any(|words| {
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains("archive-get") && words.contains(&site.config.display().to_string())
        })
    };
    until(|| Ok(!asks()), || "it asks for ever".to_owned())?;
    ensure!(!pg_wal.join("RECOVERYXLOG").exists(), "{}", agent.log());
    Ok(())
}

/// Whether a process has a file open there that has no name yet.
fn is_written_to(directory: &Path) -> bool {
    let nameless = format!("{}/#", directory.display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let open = processes.filter_map(|process| fs::read_dir(process.path().join("fd")).ok());
    let mut files = open.flatten().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    files.any(|file| file.to_string_lossy().starts_with(&nameless))
}
