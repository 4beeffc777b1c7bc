//! A server that recovers, as `archive-get` sees it: a directory and a process, without PostgreSQL.
//!
//! It asks for one file after the other, as `restore_command` does; what it gets is held against the file of the server that wrote it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use anyhow::{Result, ensure};

use super::cluster::{as_server, give_to_server};
use super::site::{Answer, Site, until};

/// Where files are fetched ahead to, below the data directory.
pub const SPOOL: &str = "pg_wal/pitr-spool";

/// A directory in which `archive-get` takes itself for a recovering server's; the server is a process of the test.
#[derive(Debug)]
pub struct Recovering {
    /// The data directory.
    pub data: PathBuf,
    /// What is taken for its server.
    pub server: Child,
}

impl Recovering {
    /// One below the site's place; the server waits for ten minutes.
    pub fn new(site: &Site, name: &str) -> Result<Self> {
        let data = site.place().join(name);
        for directory in [data.clone(), data.join("pg_wal"), data.join("global")] {
            fs::create_dir(&directory)?;
            give_to_server(&directory)?;
        }
        let control = data.join("global/pg_control");
        fs::copy(site.cluster.data.join("global/pg_control"), &control)?;
        give_to_server(&control)?;
        let server = as_server("/bin/sleep")?.arg("600").spawn()?;
        fs::write(data.join("postmaster.pid"), format!("{}\n", server.id()))?;
        fs::write(data.join("recovery.signal"), "")?;
        Ok(Self { data, server })
    }

    /// Asks for a file as the server does, with the flags that `restore` writes.
    pub fn ask(&self, site: &Site, file: &str, more: &[&str]) -> Result<Answer> {
        let mut command = site.pitr(&["archive-get"])?;
        command.current_dir(&self.data).args(more).args([file, "pg_wal/RECOVERYXLOG"]);
        Answer::of(&mut command)
    }

    /// Takes what was delivered away, as replay does.
    pub fn replayed(&self, site: &Site, file: &str) -> Result<()> {
        let delivered = self.data.join("pg_wal/RECOVERYXLOG");
        let own = site.cluster.data.join("pg_wal").join(file);
        ensure!(fs::read(&delivered)? == fs::read(own)?, "{file} is not what the server wrote");
        Ok(fs::remove_file(delivered)?)
    }

    /// Segments in its spool, in order.
    pub fn spooled(&self) -> Vec<String> {
        let names = fs::read_dir(self.data.join(SPOOL)).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| segment_of(&entry.file_name().to_string_lossy()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Waits until these are the segments in its spool.
    pub fn is_spooled(&self, names: &[String]) -> Result<()> {
        until(|| Ok(self.spooled() == names), || format!("{:?} instead of {names:?}", self.spooled()))
    }
}

impl Drop for Recovering {
    fn drop(&mut self) {
        // Whoever fetches ahead for it ends with it.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The segment that a file of the spool is.
pub fn segment_of(file: &str) -> Option<String> {
    file.split_once('-').map(|(_, name)| name.to_owned()).filter(|name| name.len() == 24)
}
