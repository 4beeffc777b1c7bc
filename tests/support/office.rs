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
use super::restored::walk;
use super::site::{Answer, Site, SiteOptions};

/// What no byte in the repository may say.
pub const IN_ROWS: &str = "the patient in room seven";
/// The same.
pub const IN_CONF: &str = "pitr_test.secret_of_the_configuration";

/// Puts that into rows and into the configuration.
pub fn fill(site: &Site) -> Result<()> {
    site.cluster.append_conf("postgresql.conf", &format!("{IN_CONF} = 'x'\n"))?;
    site.cluster.psql("SELECT pg_reload_conf()")?;
    site.cluster.psql(&format!(
        "CREATE TABLE t AS SELECT n, '{IN_ROWS} ' || n AS said FROM generate_series(1, 2000) n"
    ))?;
    Ok(())
}

/// The rows, in one line.
pub const ROWS: &str = "SELECT count(*) || ' ' || md5(string_agg(said, ',' ORDER BY n)) FROM t";

/// The objects that say it, or that show by their first bytes that they are not encrypted.
pub fn is_in_clear(repository: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    walk(repository, &mut |path| {
        let bytes = fs::read(path).unwrap_or_default();
        let says = |word: &str| bytes.windows(word.len()).any(|w| w == word.as_bytes());
        // What zstd leaves as it is would be seen; a frame that is not encrypted shows by its magic at an object's start or behind a header.
        let frame = [0, 512].iter().any(|at| bytes.get(*at..at + 4) == Some(&[0x28, 0xB5, 0x2F, 0xFD]));
        let annex = bytes.get(512..516) == Some(&[0x51, 0x2A, 0x4D, 0x18]);
        if says(IN_ROWS) || says(IN_CONF) || frame || annex {
            found.push(path.display().to_string());
        }
    })?;
    Ok(found)
}

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

    /// The public key of an identity file.
    pub fn public(&self, file: &Path) -> Result<String> {
        let text = fs::read_to_string(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix("# public key: "));
        line.map(str::to_owned).with_context(|| format!("no public key in {}", file.display()))
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
