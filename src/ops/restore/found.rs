//! Which small files of a backup are read before anything is decided.
//!
//! ```text
//!  decisive        pg_control, label, map, version, postgresql.auto.conf      always, each bounded by itself
//!  configuration   *.conf, and what is in folders such as conf.d               within a bound on all; what is left out is said
//!  perhaps         other small files outside PostgreSQL's own folders          in the room that those leave: an include may name them
//! ```
//! Folders of other people's files lie in data directories. Invariant: however many there are, no decisive file is ever left out, and none
//! that is there is taken for absent or empty. Pure.

use std::collections::BTreeMap;

use super::image::{Image, Row};
use super::{layout, outside};
use crate::error::{Error, Result};
use crate::ops::runs::RowKind;
use crate::pgdata::paths::Access;

/// Configuration files of the backup that are looked at.
const MAX_CONF_FILES: usize = 500;
/// Bytes of them in all: they are held in memory, beside the packs.
const MAX_CONF_TOTAL: u64 = 16 << 20;
/// Largest decisive file. PostgreSQL's own have kilobytes.
const MAX_DECISIVE: u64 = 16 << 20;
/// Files that a restore cannot be decided without.
const DECISIVE: [&str; 5] =
    [layout::CONTROL, layout::AUTO_CONF, layout::TABLESPACE_MAP, "backup_label", "PG_VERSION"];

/// What one look over all files shows.
pub(super) struct Found {
    decisive: Group,
    configuration: Group,
    perhaps: Group,
    /// The first file of configuration for which there is no room, and how many there are.
    left_out: Option<(String, u64)>,
    /// The mode of the directories.
    pub(super) access: Access,
    /// The folder of this PostgreSQL in its tablespaces.
    pub(super) version_folder: Option<String>,
}

/// Files with their sizes.
#[derive(Default)]
struct Group {
    files: BTreeMap<Vec<u8>, u64>,
    bytes: u64,
}

impl Group {
    fn add(&mut self, path: &[u8], size: u64) {
        self.bytes = self.bytes.saturating_add(size);
        self.files.insert(path.to_vec(), size);
    }

    /// As [`Self::add`], within the bounds; false: there is no room for it.
    fn add_bounded(&mut self, path: &[u8], size: u64) -> bool {
        let fits = self.bytes.saturating_add(size) <= MAX_CONF_TOTAL && self.files.len() < MAX_CONF_FILES;
        let takes = fits && size <= outside::MAX_CONF_BYTES;
        if takes {
            self.add(path, size);
        }
        takes
    }
}

impl Found {
    /// Looks over all files of `image`.
    ///
    /// # Errors
    /// Kind `Refused` for a decisive file that is too large to be one.
    pub(super) fn scan(image: &Image) -> Result<Self> {
        let mut found = Self::default();
        let mut rows = image.rows();
        while let Some(row) = rows.next_row()? {
            found.take(&row)?;
        }
        Ok(found)
    }

    fn take(&mut self, row: &Row<'_>) -> Result<()> {
        match row.kind {
            RowKind::Directory if row.path == b"base" => self.access = Access::of_mode(row.mode),
            RowKind::File => self.file(row.path, row.size)?,
            RowKind::Directory | RowKind::Symlink => {}
        }
        if self.version_folder.is_none() {
            self.version_folder = layout::version_folder(row.path);
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], size: u64) -> Result<()> {
        if let Some(name) = DECISIVE.iter().find(|name| name.as_bytes() == path) {
            if size > MAX_DECISIVE {
                return Err(Error::refused(format!(
                    "the backup's {name} has {size} bytes, more than the {MAX_DECISIVE} that a restore takes"
                ))
                .hint("restore from a backup in which it is smaller (--backup); `pitr info` lists them"));
            }
            self.decisive.add(path, size);
        } else if !may_be_configuration(path) {
            return Ok(());
        } else if is_configuration(path) {
            if !self.configuration.add_bounded(path, size) {
                let first = || (String::from_utf8_lossy(path).into_owned(), 0);
                let (_, count) = self.left_out.get_or_insert_with(first);
                *count = count.saturating_add(1);
            }
        } else {
            self.perhaps.add_bounded(path, size);
        }
        Ok(())
    }

    /// The files to read: what may be configuration takes no room from what is.
    pub(super) fn files(&self) -> BTreeMap<Vec<u8>, u64> {
        let mut all = Group { files: self.configuration.files.clone(), bytes: self.configuration.bytes };
        for (path, size) in &self.perhaps.files {
            all.add_bounded(path, *size);
        }
        all.files.extend(self.decisive.files.iter().map(|(path, size)| (path.clone(), *size)));
        all.files
    }

    /// Whether the backup has this decisive file.
    pub(super) fn has(&self, path: &str) -> bool {
        self.decisive.files.contains_key(path.as_bytes())
    }

    /// What is not known of the configuration, in words.
    pub(super) fn warning(&self) -> Option<String> {
        let (first, count) = self.left_out.as_ref()?;
        Some(format!(
            "{count} configuration files of the backup are too large or too many to be looked at, {first} first: \
             they are restored, and what they set was not checked"
        ))
    }
}

impl Default for Found {
    fn default() -> Self {
        Self {
            decisive: Group::default(),
            configuration: Group::default(),
            perhaps: Group::default(),
            left_out: None,
            access: Access::of_mode(0o700),
            version_folder: None,
        }
    }
}

fn may_be_configuration(path: &[u8]) -> bool {
    let own = |dir: &[u8]| path.starts_with(dir);
    !(own(b"base/") || own(b"global/") || own(b"log/") || (own(b"pg_") && path.contains(&b'/')))
}

/// By its name, or by that of a folder as `include_dir` has them: `conf.d`, `postgresql.conf.d`.
fn is_configuration(path: &[u8]) -> bool {
    let mut parts = path.rsplit(|byte| *byte == b'/');
    let name = parts.next().unwrap_or_default();
    name.ends_with(b".conf") || parts.any(|folder| folder.ends_with(b"conf.d"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    /// A file of each path and size, in the order of a manifest.
    fn found(files: &[(String, u64)]) -> Result<Found> {
        let mut files = files.to_vec();
        files.sort();
        let mut found = Found::default();
        for (path, size) in &files {
            let path = path.as_bytes();
            found.take(&Row {
                path,
                kind: RowKind::File,
                mode: 0o600,
                size: *size,
                mtime: 0,
                target: &[],
            })?;
        }
        Ok(found)
    }

    fn named(files: &[(&str, u64)]) -> Vec<(String, u64)> {
        files.iter().map(|(path, size)| ((*path).to_owned(), *size)).collect()
    }

    fn many(folder: &str, end: &str, count: u64, size: u64) -> Vec<(String, u64)> {
        (0..count).map(|n| (format!("{folder}/{n:04}{end}"), size)).collect()
    }

    #[test]
    fn files_of_other_people_take_no_room_from_what_decides() {
        let own = named(&[
            ("PG_VERSION", 3),
            ("backup_label", 200),
            ("global/pg_control", 8192),
            ("postgresql.auto.conf", 500),
            ("postgresql.conf", 30_000),
            ("tablespace_map", 90),
            ("conf.d/10-more", 70),
        ]);
        for clutter in [many("Logs", "", 16, 1 << 20), many("Logs", "", 700, 10)] {
            let mut files = own.clone();
            files.extend(clutter);
            let found = found(&files).unwrap();
            let read = found.files();
            for (path, size) in &own {
                assert_eq!(read.get(path.as_bytes()), Some(size), "{path}");
            }
            let others = read.iter().filter(|(path, _)| !DECISIVE.iter().any(|d| d.as_bytes() == **path));
            assert!(others.clone().map(|(_, size)| size).sum::<u64>() <= MAX_CONF_TOTAL);
            assert!(others.count() <= MAX_CONF_FILES);
            assert!(DECISIVE.iter().all(|name| found.has(name)) && found.warning().is_none());
        }
        assert!(!found(&named(&[("PG_VERSION", 3)])).unwrap().has(layout::AUTO_CONF));
    }

    #[test]
    fn configuration_that_has_no_room_is_named_and_decides_nothing() {
        let mut files = many("conf.d", ".conf", 17, 1 << 20);
        files.extend(named(&[("postgresql.auto.conf", 1 << 20), ("tablespace_map", 4 << 20)]));
        let all = found(&files).unwrap();
        assert!(all.has(layout::AUTO_CONF) && all.has(layout::TABLESPACE_MAP));
        let said = all.warning().unwrap();
        assert!(said.starts_with("1 configuration files") && said.contains("conf.d/0016.conf"), "{said}");
        let large = found(&named(&[("site.conf", outside::MAX_CONF_BYTES + 1), ("pg_wal/x.conf", 1 << 30)]));
        let said = large.unwrap().warning().unwrap();
        assert!(said.contains("site.conf") && !said.contains("pg_wal"), "{said}");
    }

    #[test]
    fn a_decisive_file_that_is_too_large_is_refused_by_name() {
        let error = found(&named(&[("postgresql.auto.conf", MAX_DECISIVE + 1)])).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.message().contains("postgresql.auto.conf"), "{error}");
        assert!(found(&named(&[("postgresql.auto.conf", MAX_DECISIVE)])).is_ok());
    }
}
