//! An agent that a test started, beside a [`Site`].
//!
//! It runs as the servers' user with the site's configuration, in which [`configure`] named a socket; what it logs is kept beside it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
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
        let log = site.place().join("agent.log");
        let file = std::fs::File::options().append(true).create(true).open(&log)?;
        let mut command = site.pitr(&["-v", "agent"])?;
        let child = command.stdout(Stdio::null()).stderr(file).spawn()?;
        let agent = Self { child, log };
        until(|| Ok(site.ask(&["agent", "--status"])?.code != 5), || agent.log())?;
        Ok(agent)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
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
