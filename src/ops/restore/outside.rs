//! Configuration that does not live in the data directory (Debian: `/etc/postgresql/15/main`), for a replacement.
//!
//! ```text
//!  the backup's catalogue names it ─┬─ it is on this host ........ kept, never touched
//!                                   ├─ it is not, text known ..... written to the same place, as the restore ends
//!                                   └─ it is not, text unknown ... said; the server cannot start without it
//! ```
//! A new host has PostgreSQL installed but not this cluster's folder; with the same files in the same places `pg_ctlcluster` finds
//! the cluster. Source of truth: RECOVERY.md 24; `pg_ctlcluster` of postgresql-common.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::ops::backup::catalogue::{Catalogue, ConfigRole};
use crate::pgdata::conf::{self, ItemKind};

use super::configuration::Files;

/// Largest configuration file that is looked at.
pub const MAX_CONF_BYTES: u64 = 1 << 20;

/// Where the main configuration file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// In the data directory: restored with it.
    DataDir,
    /// On this host already.
    Kept(PathBuf),
    /// To be written from the catalogue.
    Written {
        /// The main file.
        main: PathBuf,
        /// All files and their texts.
        files: Vec<(PathBuf, Vec<u8>)>,
    },
    /// Elsewhere, and its text is not known.
    Missing(PathBuf),
}

impl Home {
    /// The main file, if it is outside the data directory.
    pub fn outside(&self) -> Option<&Path> {
        match self {
            Self::DataDir => None,
            Self::Kept(main) | Self::Missing(main) | Self::Written { main, .. } => Some(main),
        }
    }
}

/// Where the configuration of the cluster is, for a server whose data will be in `target`.
pub fn home(catalogue: Option<&Catalogue>, target: &Path) -> Home {
    let Some(catalogue) = catalogue else { return Home::DataDir };
    let Some(config) = catalogue.files.iter().find(|f| f.role == ConfigRole::Config) else {
        return Home::DataDir;
    };
    let main = PathBuf::from(&config.path);
    if config.in_data_directory || !main.is_absolute() {
        return Home::DataDir;
    }
    if main.exists() {
        return Home::Kept(main);
    }
    if config.text.is_none() {
        return Home::Missing(main);
    }
    let mut files = Vec::new();
    for file in catalogue.files.iter().filter(|f| !f.in_data_directory) {
        let path = PathBuf::from(&file.path);
        if let Some(text) = file.text.as_ref().filter(|_| path.is_absolute() && !path.exists()) {
            let moved = file.role == ConfigRole::Config
                && catalogue.data_directory.as_deref().map(Path::new) != Some(target);
            let text = if moved { with_data_directory(text, target) } else { text.clone().into_bytes() };
            files.push((path, text));
        }
    }
    Home::Written { main, files }
}

/// The mode of a configuration file that is written.
///
/// Debian's commands, and its `psql`, run as anybody and read the port in the main file, which `pg_createcluster` makes readable to
/// all. One that holds a password is not, whatever it was.
pub fn mode(home: &Home, path: &Path, text: &[u8]) -> u32 {
    let main = matches!(home, Home::Written { main, .. } if main == path);
    let debian = path.starts_with("/etc/postgresql") || path.starts_with("/etc/postgresql-common");
    // A file that cannot be parsed may hold anything.
    let secret = conf::parse(text).map_or(true, |items| {
        items.iter().any(|item| match &item.kind {
            ItemKind::Setting { value, .. } => value.to_ascii_lowercase().contains("passw"),
            ItemKind::Include { .. } => false,
        })
    });
    if main && debian && !secret { 0o644 } else { 0o640 }
}

/// The configuration, pointing to another data directory.
fn with_data_directory(text: &str, target: &Path) -> Vec<u8> {
    let mut out = conf::strip_settings(text.as_bytes(), |name| name == "data_directory");
    if out.last().is_some_and(|b| *b != b'\n') {
        out.push(b'\n');
    }
    let shown = target.display().to_string();
    // A path with a NUL byte cannot exist.
    let quoted = conf::quote_value(&shown).unwrap_or_default();
    out.extend_from_slice(format!("data_directory = {quoted}\n").as_bytes());
    out
}

/// Files of the backup by their place after the restore, over those of this host.
#[derive(Debug, Default)]
pub struct RestoredFiles {
    held: BTreeMap<PathBuf, Vec<u8>>,
}

impl RestoredFiles {
    /// Adds a file that will be at `path`.
    pub fn add(&mut self, path: PathBuf, bytes: Vec<u8>) {
        self.held.insert(path, bytes);
    }

    /// Takes over the files of `other`.
    pub fn extend_from(&mut self, other: &Self) {
        self.held.extend(other.held.iter().map(|(path, bytes)| (path.clone(), bytes.clone())));
    }

    /// Takes over what [`home`] will write.
    pub fn add_home(&mut self, home: &Home) {
        if let Home::Written { files, .. } = home {
            self.held.extend(files.iter().cloned());
        }
    }
}

impl Files for RestoredFiles {
    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        if let Some(held) = self.held.get(path) {
            return Some(held.clone());
        }
        let small = std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_CONF_BYTES);
        if small { std::fs::read(path).ok() } else { None }
    }

    fn list(&self, path: &Path) -> Option<Vec<String>> {
        let held =
            self.held.keys().filter(|p| p.parent() == Some(path)).filter_map(|p| p.file_name()?.to_str());
        let mut names: Vec<String> = held.map(str::to_owned).collect();
        if let Ok(entries) = std::fs::read_dir(path) {
            names.extend(entries.flatten().filter_map(|e| e.file_name().into_string().ok()));
        } else if names.is_empty() {
            return None;
        }
        names.sort();
        names.dedup();
        Some(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_main_file_is_readable_to_all_unless_it_holds_a_password() {
        let main = Path::new("/etc/postgresql/15/main/postgresql.conf");
        let home = Home::Written { main: main.to_owned(), files: Vec::new() };
        assert_eq!(mode(&home, main, b"port = 5433\n#password_encryption = md5\n"), 0o644);
        assert_eq!(mode(&home, main, b"primary_conninfo = 'host=a Password=b'\n"), 0o640);
        assert_eq!(mode(&home, Path::new("/etc/postgresql/15/main/pg_hba.conf"), b""), 0o640);
        let elsewhere = Path::new("/srv/conf/postgresql.conf");
        let home = Home::Written { main: elsewhere.to_owned(), files: Vec::new() };
        assert_eq!(mode(&home, elsewhere, b""), 0o640);
    }
    use crate::ops::backup::catalogue::ConfigFile;

    fn catalogue(path: &str, text: Option<&str>) -> Catalogue {
        Catalogue {
            data_directory: Some("/var/lib/postgresql/15/main".into()),
            files: vec![ConfigFile {
                role: ConfigRole::Config,
                path: path.into(),
                in_data_directory: false,
                text: text.map(str::to_owned),
            }],
            ..Catalogue::default()
        }
    }

    #[test]
    fn a_configuration_that_this_host_lacks_is_written_where_it_was() {
        let known =
            catalogue("/nowhere/15/main/postgresql.conf", Some("port = 5432\ndata_directory = '/old'\n"));
        let target = Path::new("/srv/it's");
        let Home::Written { main, files } = home(Some(&known), target) else { panic!("not written") };
        assert_eq!(main, Path::new("/nowhere/15/main/postgresql.conf"));
        assert_eq!(String::from_utf8_lossy(&files[0].1), "port = 5432\ndata_directory = '/srv/it''s'\n");
        let same = home(Some(&known), Path::new("/var/lib/postgresql/15/main"));
        assert!(matches!(same, Home::Written { files, .. } if files[0].1.ends_with(b"'/old'\n")));
        assert!(matches!(home(Some(&catalogue("/nowhere/x.conf", None)), target), Home::Missing(_)));
        assert_eq!(home(None, target), Home::DataDir);
    }

    #[test]
    fn a_configuration_that_is_here_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("postgresql.conf");
        crate::durable::write_replace(&main, b"", 0o600, None).unwrap();
        assert_eq!(home(Some(&catalogue(main.to_str().unwrap(), Some(""))), dir.path()), Home::Kept(main));
    }
}
