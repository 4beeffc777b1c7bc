//! An agent that a test started, beside a [`Site`].
//!
//! It runs as the servers' user with the site's configuration, in which [`configure`] named a socket; what it logs is kept beside it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::site::{Site, until};

/// Writes a configuration with an agent's socket and these repositories (TOML); where the socket will be.
pub fn configure(site: &Site, repositories: &str) -> Result<PathBuf> {
    let socket = site.place().join("agent.sock");
    site.write_config(&format!("[agent]\nsocket = \"{}\"\n{repositories}", socket.display()))?;
    Ok(socket)
}

/// The one repository that a site begins with, as TOML.
pub fn own_repository(site: &Site) -> String {
    format!("[[repository]]\nname = \"main\"\nurl = \"file://{}\"\n", site.repository.display())
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts `pitr agent` and waits until it answers. What it logs goes to a file in the site's place.
    pub fn start(site: &Site) -> Result<Self> {
        Self::begin(site, site.pitr(&["-v", "agent"])?)
    }

    /// The same of one that other processes of its user may look into.
    pub fn start_open(site: &Site) -> Result<Self> {
        let mut command = site.pitr(&["-v", "agent"])?;
        command.env("PITR_TEST_TRACED", "1");
        Self::begin(site, command)
    }

    fn begin(site: &Site, command: Command) -> Result<Self> {
        let agent = Self::spawn(site, command)?;
        until(|| Ok(site.ask(&["agent", "--status"])?.code != 5), || agent.log())?;
        Ok(agent)
    }

    /// Starts a command that is one, such as one that is killed on its way; whether it answers is not waited for.
    pub fn spawn(site: &Site, mut command: Command) -> Result<Self> {
        let log = site.place().join("agent.log");
        let file = fs::File::options().append(true).create(true).open(&log)?;
        let child = command.stdout(Stdio::null()).stderr(file).spawn()?;
        Ok(Self { child, log })
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Stops it, and waits until none of its threads runs: they stop one after the other.
    pub fn stand_still(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let threads = format!("/proc/{}/task", self.pid()?);
        let stopped = || -> Result<bool> {
            let mut states = Vec::new();
            for thread in fs::read_dir(&threads)? {
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                states.extend(stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('T')));
            }
            Ok(states.iter().all(|stopped| *stopped))
        };
        until(stopped, || format!("it runs on\n{}", self.log()))
    }

    /// How it ended, if it does within the time.
    pub fn ends_within(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends it a signal and waits for its end.
    pub fn end(mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent's account of itself.
pub fn status(site: &Site) -> Result<Value> {
    let answer = site.ask(&["--json", "agent", "--status"])?;
    ensure!(answer.code == 0 || answer.code == 2, "{answer:?}");
    serde_json::from_str(&answer.out).with_context(|| format!("{answer:?}"))
}

/// Segments that the server marked, by the mark.
pub fn marked(site: &Site, mark: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(site.cluster.data.join("pg_wal/archive_status"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(mark).filter(|name| name.len() == 24).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Every segment that PostgreSQL was told is archived comes back as it is in `pg_wal`.
pub fn all_is_there(site: &Site) -> Result<usize> {
    let done = marked(site, ".done")?;
    let to = site.place().join("fetched");
    for name in &done {
        let own = fs::read(site.cluster.data.join("pg_wal").join(name))?;
        let answer = site.ask(&["archive-get", name, &to.display().to_string()])?;
        ensure!(answer.code == 0, "{name}: {answer:?}");
        ensure!(fs::read(&to)? == own, "{name} is not what the server wrote");
    }
    Ok(done.len())
}

/// Waits until PostgreSQL has nothing left to archive.
pub fn all_archived(site: &Site) -> Result<()> {
    let waits = || marked(site, ".ready");
    until(|| Ok(waits()?.is_empty()), || format!("{:?} wait\n{}", waits(), site.cluster.log_text()))
}
