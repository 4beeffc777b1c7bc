//! A server whose clock a test sets: forward to a day on which clocks change, and back.
//!
//! Debian's libfaketime is loaded into PostgreSQL 15, the one server here that comes from the same distribution. It reads an offset from a
//! file at every look at the clock, so all processes of the server change at once. Programs that the server runs, pitr among them, are
//! static or keep their own clock. SKIPPED where the library is not installed.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Result, ensure};
use jiff::Timestamp;

use super::cluster::{Cluster, as_server, give_to_server};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The clock of a server.
#[derive(Debug)]
pub struct ServerClock(PathBuf);

impl ServerClock {
    /// A clock that is kept in a file of `place`; `None`, with a word, where the library is not there.
    pub fn find_or_skip(place: &Path) -> Result<Option<Self>> {
        if !Path::new(LIBRARY).exists() {
            eprintln!("SKIPPED: libfaketime is not installed, see tests/setup.sh");
            return Ok(None);
        }
        Ok(Some(Self(place.join("clock"))))
    }

    /// Sets it; a running server goes by it from now on.
    pub fn set(&self, moment: &str) -> Result<()> {
        let offset = moment.parse::<Timestamp>()?.as_second() - Timestamp::now().as_second();
        let new = self.0.with_extension("new");
        fs::write(&new, format!("{offset:+}\n"))?;
        give_to_server(&new)?;
        Ok(fs::rename(new, &self.0)?)
    }

    /// Starts a server that goes by it.
    pub fn start(&self, cluster: &Cluster) -> Result<()> {
        let mut start = as_server(cluster.install.bin.join("pg_ctl"))?;
        start.env("LD_PRELOAD", LIBRARY).env("FAKETIME_TIMESTAMP_FILE", &self.0);
        start
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DONT_RESET", "1");
        start
            .args(["-s", "-w", "-t", "90", "-D"])
            .arg(&cluster.data)
            .arg("-l")
            .arg(&cluster.log)
            .arg("start");
        let status = start.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "it did not start:\n{}", cluster.log_text());
        Ok(())
    }
}
