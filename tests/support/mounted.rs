//! Small file systems: what is full or read-only for real.
//!
//! They lie in memory and go with the test. Mounting takes root: where it is not allowed a test is skipped, and says so.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::cluster::{give_to_server, run};

/// A file system in memory; unmounted with the test.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// One of that size (`64m`). `None`, said as a skipped test does, where mounting is not allowed.
    pub fn at(at: &Path, size: &str) -> Result<Option<Self>> {
        fs::create_dir_all(at)?;
        let options = format!("size={size},mode=0755");
        let output =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "pitr-test"]).arg(at).output();
        if !output.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: mounting a small file system needs root");
            return Ok(None);
        }
        give_to_server(at)?;
        Ok(Some(Self(at.to_owned())))
    }

    /// Where it is mounted.
    pub fn place(&self) -> &Path {
        &self.0
    }

    /// Mounts it again with other options, such as `ro`.
    pub fn remount(&self, options: &str) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0)).map(drop)
    }

    /// Takes all of its room but so many KiB.
    pub fn fill(&self, but_kib: u64) -> Result<Filler> {
        let path = self.0.join("filler");
        let free = nix::sys::statvfs::statvfs(&self.0)?;
        let bytes = i64::try_from(free.blocks_available() * free.fragment_size() - (but_kib << 10))?;
        nix::fcntl::posix_fallocate(fs::File::create(&path)?, 0, bytes)?;
        Ok(Filler(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

/// What fills a disk, until it is dropped.
#[derive(Debug)]
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}
