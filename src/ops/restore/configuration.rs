//! The configuration that a restored server will run with, read before it is there.
//!
//! ```text
//!  postgresql.conf ─ includes, followed as the server does ─┐
//!  postgresql.auto.conf ────────────────────────────────────┴─► every setting with file and line; the last of a name counts
//! ```
//! The files come from the backup (in the data directory) or from this host (Debian keeps them elsewhere); where a file can be
//! read from is the caller's. What cannot be read is named, and not guessed. Source of truth: `guc-file.l`, `ParseConfigFile`.

use std::path::{Path, PathBuf};

use crate::pgdata::conf::{self, IncludeKind, Item, ItemKind};
use crate::pgdata::control::RequiredSettings;

/// How deep includes may nest (`CONF_FILE_MAX_DEPTH`).
const MAX_DEPTH: usize = 10;
/// Files that are read at most: a circle of includes ends by depth, a wide one by this.
const MAX_FILES: usize = 500;

/// One setting and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name, lower case.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: usize,
}

/// All settings of a server's files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// In the order in which the server reads them.
    pub settings: Vec<Setting>,
    /// Files that could not be read, or lines that the server would refuse.
    pub unclear: Vec<String>,
    files: usize,
}

/// Where configuration files can be read.
pub trait Files {
    /// The content of `path` (absolute), if it can be had.
    fn read(&self, path: &Path) -> Option<Vec<u8>>;
    /// The names in the directory `path`, in any order.
    fn list(&self, path: &Path) -> Option<Vec<String>>;
}

impl Configuration {
    /// Reads `main` and what it includes, then `auto`.
    pub fn read(files: &dyn Files, main: &Path, auto: &Path) -> Self {
        let mut all = Self::default();
        all.file(files, main, 0, Missing::Tell);
        all.file(files, auto, 0, Missing::Ignore);
        all
    }

    /// The value in effect.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.setting(name).map(|s| s.value.as_str())
    }

    /// The setting in effect.
    pub fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().rev().find(|s| s.name == name)
    }

    /// Of the five settings that must not be below the primary's, those that are: name and the value they need (RECOVERY.md 25).
    pub fn too_small(&self, required: &RequiredSettings) -> Vec<(String, String)> {
        // PostgreSQL's defaults apply to what no file names.
        let default = |name: &str| match name {
            "max_connections" => 100,
            "max_worker_processes" => 8,
            "max_wal_senders" => 10,
            "max_locks_per_transaction" => 64,
            _ => 0,
        };
        let set = |name: &str| self.value(name).and_then(|v| v.trim().parse::<u32>().ok());
        let wanting = required
            .by_name()
            .into_iter()
            .filter(|(name, least)| set(name).unwrap_or_else(|| default(name)) < *least);
        wanting.map(|(name, least)| (name.to_owned(), least.to_string())).collect()
    }

    fn file(&mut self, files: &dyn Files, path: &Path, depth: usize, missing: Missing) {
        self.files += 1;
        if depth > MAX_DEPTH || self.files > MAX_FILES {
            self.unclear.push(format!("{}: includes are nested too deeply", path.display()));
            return;
        }
        let Some(text) = files.read(path) else {
            if missing == Missing::Tell {
                self.unclear.push(format!("{} could not be read", path.display()));
            }
            return;
        };
        match conf::parse(&text) {
            Ok(items) => self.items(files, path, items, depth),
            Err(error) => self.unclear.push(format!("{}: {error}", path.display())),
        }
    }

    fn items(&mut self, files: &dyn Files, file: &Path, items: Vec<Item>, depth: usize) {
        let dir = file.parent().unwrap_or_else(|| Path::new("/"));
        for Item { line, kind } in items {
            match kind {
                ItemKind::Setting { name, value } => {
                    self.settings.push(Setting { name, value, file: file.to_owned(), line });
                }
                ItemKind::Include { kind: IncludeKind::File, path } => {
                    self.file(files, &dir.join(path), depth + 1, Missing::Tell);
                }
                ItemKind::Include { kind: IncludeKind::FileIfExists, path } => {
                    self.file(files, &dir.join(path), depth + 1, Missing::Ignore);
                }
                ItemKind::Include { kind: IncludeKind::Directory, path } => {
                    self.directory(files, &dir.join(path), depth + 1);
                }
            }
        }
    }

    fn directory(&mut self, files: &dyn Files, path: &Path, depth: usize) {
        let Some(mut names) = files.list(path) else {
            self.unclear.push(format!("{} could not be listed", path.display()));
            return;
        };
        names.retain(|name| name.ends_with(".conf") && !name.starts_with('.'));
        names.sort();
        for name in names {
            self.file(files, &path.join(name), depth, Missing::Tell);
        }
    }
}

/// What to do about a file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Tell,
    Ignore,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Held(Vec<(&'static str, &'static str)>);

    impl Files for Held {
        fn read(&self, path: &Path) -> Option<Vec<u8>> {
            self.0.iter().find(|(p, _)| Path::new(p) == path).map(|(_, text)| text.as_bytes().to_vec())
        }
        fn list(&self, path: &Path) -> Option<Vec<String>> {
            let below = self.0.iter().filter_map(|(p, _)| p.strip_prefix(path.to_str()?)?.strip_prefix('/'));
            Some(below.map(str::to_owned).collect())
        }
    }

    fn read(files: &[(&'static str, &'static str)]) -> Configuration {
        Configuration::read(&Held(files.to_vec()), Path::new("/d/postgresql.conf"), Path::new("/d/auto"))
    }

    #[test]
    fn the_last_setting_counts_and_includes_stand_where_they_are_named() {
        let conf = read(&[
            ("/d/postgresql.conf", "port = 1\ninclude_dir 'conf.d'\ninclude_if_exists 'x'\nwork_mem = 2MB\n"),
            ("/d/conf.d/b.conf", "port = 3\n"),
            ("/d/conf.d/a.conf", "port = 2\ninclude '../c'\n"),
            ("/d/conf.d/.hidden.conf", "port = 9\n"),
            ("/d/conf.d/../c", "work_mem = 1MB\n"),
            ("/d/auto", "archive_mode = always\n"),
        ]);
        assert_eq!((conf.value("port"), conf.value("work_mem")), (Some("3"), Some("2MB")));
        let always = conf.setting("archive_mode").unwrap();
        assert_eq!((always.file.as_path(), always.line), (Path::new("/d/auto"), 1));
        assert!(conf.unclear.is_empty(), "{:?}", conf.unclear);
    }

    #[test]
    fn a_circle_of_includes_ends_and_missing_files_are_named() {
        let circle = read(&[("/d/postgresql.conf", "include 'postgresql.conf'\n")]);
        assert!(circle.unclear.iter().any(|u| u.contains("too deeply")));
        let missing = read(&[("/d/postgresql.conf", "include 'gone'\n")]);
        assert_eq!(missing.unclear, ["/d/gone could not be read"]);
    }

    #[test]
    fn settings_below_the_primarys_are_found_defaults_included() {
        let required = RequiredSettings {
            max_connections: 200,
            max_worker_processes: 8,
            max_wal_senders: 20,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
        };
        let conf = read(&[("/d/postgresql.conf", "max_wal_senders = 20\n")]);
        assert_eq!(conf.too_small(&required), [("max_connections".to_owned(), "200".to_owned())]);
    }
}
