//! A directory that looks like a recovering server's, in which a test asks for WAL as the server would.
//!
//! The server is a process of the test that does nothing: whoever fetches ahead for it lives as long as it does.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use anyhow::{Result, ensure};

use super::cluster::{Install, as_server, give_to_server};
use super::site::{Answer, Site, SiteOptions, until};

/// Where who fetches ahead keeps what he has, below the data directory.
pub const SPOOL: &str = "pg_wal/pitr-spool";

/// A site that has archived some segments, oldest first, all of which `pg_wal` still has.
pub fn archived(install: &Install, rows: u32) -> Result<(Site, Vec<String>)> {
    let conf = "wal_keep_size = 4GB\nautovacuum = off\narchive_timeout = 0\n";
    let site = Site::new(install, &SiteOptions { conf, ..SiteOptions::default() })?;
    let sql = format!("CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, {rows}) n");
    site.cluster.psql(&sql)?;
    let last = site.switch()?;
    let mut names: Vec<String> = site
        .cluster
        .wal_files()?
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .filter(|name| name.len() == 24 && *name <= last)
        .collect();
    names.sort();
    Ok((site, names))
}

/// A directory in which `archive-get` takes itself for a recovering server's; the server is a process of the test.
#[derive(Debug)]
pub struct Recovering {
    /// Its data directory.
    pub data: PathBuf,
    /// What takes the place of the server's process.
    pub server: Child,
}

impl Recovering {
    /// Makes the directory `name` in the site's place.
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

    /// The segments that lie in its spool, in order.
    pub fn spooled(&self) -> Vec<String> {
        let names = fs::read_dir(self.data.join(SPOOL)).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| segment_of(&entry.file_name().to_string_lossy()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Waits until these lie there, and no others.
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
