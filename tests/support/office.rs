//! A cluster whose repository is encrypted, and the machine of its operator, who has what the host does not.
//!
//! The host has the host file and nothing that opens. The office keeps the identities, in a directory of its own that is gone when it is
//! dropped; tests that lose the host lose all but that.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::cluster::{Install, as_server, scratch};
use super::keys;
use super::site::{Answer, Site, SiteOptions};

/// Where an operator keeps what the host does not have.
#[derive(Debug)]
pub struct Office {
    place: tempfile::TempDir,
}

impl Office {
    /// Makes the keys of cluster `main`. The host file goes where the host will look for it.
    pub fn new(host_file: &Path) -> Result<Self> {
        let place = scratch("pitr-office-")?;
        let office = Self { place };
        let made = keys::init(host_file, office.place.path(), &[])?;
        for file in [host_file, &office.daily(), &office.offline()] {
            let mode = fs::metadata(file)?.permissions().mode() & 0o7777;
            ensure!(mode == 0o600, "{} has mode {mode:o}", file.display());
        }
        let secret = office.secret(&office.daily())?;
        ensure!(!made.out.contains(&secret) && !made.out.contains("SECRET"), "{}", made.out);
        Ok(office)
    }

    /// The identity file of every day.
    pub fn daily(&self) -> PathBuf {
        keys::daily(self.place.path())
    }

    /// The identity file that is kept elsewhere.
    pub fn offline(&self) -> PathBuf {
        keys::offline(self.place.path())
    }

    /// Runs the program here, where no configuration is.
    pub fn pitr(&self, args: &[&str]) -> Result<Answer> {
        Answer::of(as_server(env!("CARGO_BIN_EXE_pitr"))?.current_dir(self.place.path()).args(args))
    }

    /// The line of an identity file that opens.
    pub fn secret(&self, file: &Path) -> Result<String> {
        let text = fs::read_to_string(file)?;
        let line = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1"));
        line.map(str::to_owned).with_context(|| format!("no key in {}", file.display()))
    }
}

/// A cluster whose repository is encrypted, and its office. `more` belongs to the `[[repository]]`.
pub fn sealed(
    install: &Install,
    options: &SiteOptions,
    url: impl Fn(&Path) -> String,
    more: impl Fn(&Path) -> Result<String>,
) -> Result<(Site, Office)> {
    let place = scratch("pitr-sealed-")?;
    let host_file = place.path().join("main.host");
    let office = Office::new(&host_file)?;
    let (url, more) = (url(place.path()), more(place.path())?);
    let more = format!("{more}[keys]\nhost_file = \"{}\"\n", host_file.display());
    Ok((Site::at(install, options, place, &url, Some(&more))?, office))
}

/// The same, with a repository beside it.
pub fn sealed_here(install: &Install) -> Result<(Site, Office)> {
    let url = |place: &Path| format!("file://{}", place.join("repo").display());
    // With fsync off, `check` would say so.
    let options = SiteOptions { conf: "fsync = on\n", ..SiteOptions::default() };
    sealed(install, &options, url, |_| Ok(String::new()))
}
