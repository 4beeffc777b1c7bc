//! Names below a data directory: which must exist, which a backup leaves out, which are relations.
//!
//! ```text
//!  base/16384/16400        main fork of a relation          base/16384/t3_16400   temporary, left out
//!  base/16384/16400.2      its third GiB                    base/pgsql_tmp/...    left out
//!  base/16384/16400_init   marks an unlogged relation       global/1262           shared by all databases
//!  pg_tblspc/16385/PG_15_202209061/16384/16401              in a tablespace
//! ```
//! Paths are relative to the data directory, `/` between parts, bytes without promised encoding. The rules are those of
//! BASE_BACKUP; a copy that is made by other means must obey the same ones. Pure. Source of truth: `basebackup.c`, `relpath.c`,
//! `reinit.c`, `initdb.c` of PostgreSQL 13 to 18.

use crate::wal::PgMajor;

/// Directories without which a server does not start or complains, beside those that hold files. initdb makes them with the mode of
/// the data directory itself: 0700, or 0750 with group access.
const REQUIRED: &[&str] = &[
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_xact",
];

/// Files that no backup holds: they speak of one run of one server, or are made by the backup itself.
const EXCLUDED_FILES: &[&str] = &[
    "backup_label",
    "backup_manifest",
    "current_logfiles.tmp",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "tablespace_map",
];

/// Directories of the data directory that are stored empty. WAL reaches the repository by its own road.
const EMPTIED: &[&str] = &[
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// The directories that must exist after a restore, parents before children.
pub fn required_directories(major: PgMajor) -> impl Iterator<Item = &'static str> {
    let summaries = (major >= PgMajor::V17).then_some("pg_wal/summaries");
    REQUIRED.iter().copied().chain(summaries)
}

/// Modes of a data directory: the server refuses any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Directories 0700, files 0600.
    Owner,
    /// Directories 0750, files 0640: `initdb --allow-group-access`.
    Group,
}

impl Access {
    /// The access that a data directory of mode `mode` grants (PostgreSQL looks at the directory alone).
    pub fn of_mode(mode: u32) -> Self {
        if mode & 0o050 == 0 { Self::Owner } else { Self::Group }
    }

    /// Mode of directories.
    pub fn directory_mode(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::Group => 0o750,
        }
    }

    /// Mode of files.
    pub fn file_mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o640,
        }
    }
}

/// What a backup does with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathClass {
    /// It belongs to the backup. Main forks of unlogged relations do not, but only their `_init` fork tells: see [`init_fork_of`].
    Stored,
    /// A directory whose contents are left out.
    EmptyDirectory,
    /// Left out, by a rule of its own or because it lies below an [`PathClass::EmptyDirectory`].
    Excluded,
}

/// Takes the leading `./` off that BASE_BACKUP writes before some directories, and the slash off that ends directories.
pub fn normalise(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    while let Some(rest) = path.strip_suffix(b"/") {
        path = rest;
    }
    path
}

/// True for a relative path that stays inside its directory: no empty, `.` or `..` part, no NUL byte. All else must never be
/// joined to a directory that is written to.
pub fn is_inside(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

/// What a backup does with `path`, a normalised path relative to the data directory.
pub fn classify(path: &[u8]) -> PathClass {
    if EMPTIED.iter().any(|dir| path == dir.as_bytes())
        || path == b"pg_wal/archive_status"
        || path == b"pg_wal/summaries"
    {
        return PathClass::EmptyDirectory;
    }
    let below = |dir: &str| path.strip_prefix(dir.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
    if EMPTIED.iter().any(|dir| below(dir)) {
        return PathClass::Excluded;
    }
    // The server looks at every part by its name alone, wherever it is.
    if path.split(|b| *b == b'/').any(is_excluded_name) || is_temporary_relation(path) {
        return PathClass::Excluded;
    }
    PathClass::Stored
}

fn is_excluded_name(name: &[u8]) -> bool {
    EXCLUDED_FILES.iter().any(|file| name == file.as_bytes())
        || name.starts_with(b"pgsql_tmp")
        || name.starts_with(b"pg_internal.init") // also pg_internal.init.<pid>
        || name == b".DS_Store"
}

/// Which fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The data.
    Main,
    /// Free space map.
    FreeSpace,
    /// Visibility map.
    Visibility,
    /// What an unlogged relation is reset to.
    Init,
}

/// Where a relation's files lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// `global`.
    Shared,
    /// `base/<database>`.
    Database(u32),
    /// `pg_tblspc/<tablespace>/PG_<major>_<catalogue>/<database>`.
    Tablespace {
        /// OID of the tablespace.
        tablespace: u32,
        /// OID of the database.
        database: u32,
    },
}

/// A file of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// Where it lies.
    pub place: Place,
    /// Its number: the relation's OID at first, a new one after each rewrite.
    pub number: u32,
    /// Which fork.
    pub fork: Fork,
    /// Which segment, from 0. A page's number is `segment * blocks per segment + index in the file`.
    pub segment: u32,
}

impl RelationFile {
    /// Parses a normalised path; `None` for all that is no relation, temporary ones included.
    pub fn parse(path: &[u8]) -> Option<Self> {
        let (place, name) = place(path)?;
        let (number, fork, segment) = relation_name(name)?;
        Some(Self { place, number, fork, segment })
    }
}

fn place(path: &[u8]) -> Option<(Place, &[u8])> {
    let parts: Vec<&[u8]> = path.splitn(6, |b| *b == b'/').collect();
    match parts.as_slice() {
        [b"global", name] => Some((Place::Shared, name)),
        [b"base", database, name] => Some((Place::Database(oid(database)?), name)),
        [b"pg_tblspc", tablespace, version, database, name] if version.starts_with(b"PG_") => {
            Some((Place::Tablespace { tablespace: oid(tablespace)?, database: oid(database)? }, name))
        }
        _ => None,
    }
}

/// `<number>[_fork][.<segment>]`, none of the numbers with leading zeros, as the server itself writes them.
fn relation_name(name: &[u8]) -> Option<(u32, Fork, u32)> {
    let mut stem = name;
    let mut segment = 0;
    if let Some(dot) = name.iter().position(|b| *b == b'.') {
        let (before, after) = name.split_at(dot);
        stem = before;
        segment = oid(after.get(1..)?)?;
    }
    let (number, fork) = match stem.iter().position(|b| *b == b'_').map(|at| stem.split_at(at)) {
        None => (stem, Fork::Main),
        Some((number, b"_fsm")) => (number, Fork::FreeSpace),
        Some((number, b"_vm")) => (number, Fork::Visibility),
        Some((number, b"_init")) => (number, Fork::Init),
        Some(_) => return None,
    };
    Some((oid(number)?, fork, segment))
}

/// A decimal number above 0 without leading zeros.
fn oid(digits: &[u8]) -> Option<u32> {
    if digits.first() == Some(&b'0') || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `t<backend>_<relation name>` in a database's directory.
fn is_temporary_relation(path: &[u8]) -> bool {
    let Some((_, name)) = place(path) else { return false };
    let Some(rest) = name.strip_prefix(b"t") else { return false };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    digits > 0
        && rest
            .get(digits..)
            .and_then(|r| r.strip_prefix(b"_"))
            .is_some_and(|name| relation_name(name).is_some())
}

/// The path of the `_init` fork beside a relation's file. If it exists the relation is unlogged, and of its files only that fork is
/// stored. `None` for an `_init` fork itself and for what is no relation.
pub fn init_fork_of(path: &[u8]) -> Option<Vec<u8>> {
    let file = RelationFile::parse(path).filter(|file| file.fork != Fork::Init)?;
    let end = path.iter().rposition(|b| *b == b'/')?;
    let mut init = path.get(..=end)?.to_vec();
    init.extend_from_slice(format!("{}_init", file.number).as_bytes());
    Some(init)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn relations_are_told_from_everything_beside_them() {
        let parse = |path: &str| RelationFile::parse(path.as_bytes());
        let at = |place, number, fork, segment| Some(RelationFile { place, number, fork, segment });
        assert_eq!(parse("global/1262"), at(Place::Shared, 1262, Fork::Main, 0));
        assert_eq!(parse("base/5/16400.12"), at(Place::Database(5), 16400, Fork::Main, 12));
        assert_eq!(parse("base/5/16400_vm.1"), at(Place::Database(5), 16400, Fork::Visibility, 1));
        assert_eq!(
            parse("pg_tblspc/16385/PG_15_202209061/5/4294967295_fsm"),
            at(Place::Tablespace { tablespace: 16385, database: 5 }, u32::MAX, Fork::FreeSpace, 0)
        );
        for none in [
            "global/pg_control",
            "base/5/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/t3_16400",
            "base/5/0",
            "base/5/016400",
            "base/5/16400.0",
            "base/5/16400.01",
            "base/5/4294967296",
            "base/5/16400_x",
            "base/5/16400.",
            "base/5/+1",
            "base/5/",
            "base/x/1",
            "pg_xact/0000",
            "base/5/6/7",
            "pg_tblspc/16385/X/5/1",
            "INCREMENTAL.16400",
            "base/5/INCREMENTAL.1",
        ] {
            assert_eq!(parse(none), None, "{none}");
        }
    }

    #[test]
    fn a_backup_leaves_out_what_basebackup_leaves_out() {
        use PathClass::{EmptyDirectory, Excluded, Stored};
        for (path, class) in [
            ("PG_VERSION", Stored),
            ("pg_stat", Stored),
            ("pg_stat/pgstat.stat", Stored),
            ("log/x", Stored),
            ("standby.signal", Stored),
            ("postgresql.auto.conf", Stored),
            ("pg_wal_backup/x", Stored),
            ("base/5/16400_init", Stored),
            ("base/5/tx_1", Stored),
            ("t3_16400", Stored),
            ("global/pg_control", Stored),
            ("postmaster.pid", Excluded),
            ("backup_label", Excluded),
            ("base/5/t3_16400_vm.1", Excluded),
            ("pg_tblspc/16385/PG_15_202209061/5/t3_16400", Excluded),
            ("base/pgsql_tmp/pgsql_tmp1.2", Excluded),
            ("base/5/pg_internal.init.77", Excluded),
            ("global/pg_internal.init", Excluded),
            ("pg_wal", EmptyDirectory),
            ("pg_wal/archive_status", EmptyDirectory),
            ("pg_replslot", EmptyDirectory),
            ("pg_wal/000000010000000000000001", Excluded),
            ("pg_replslot/s/state", Excluded),
        ] {
            assert_eq!(classify(path.as_bytes()), class, "{path}");
        }
    }

    #[test]
    fn the_init_fork_lies_beside_its_relation() {
        assert_eq!(init_fork_of(b"base/5/16400_vm.1").unwrap(), b"base/5/16400_init");
        assert_eq!(init_fork_of(b"base/5/16400_init"), None);
        assert_eq!(init_fork_of(b"PG_VERSION"), None);
    }

    #[test]
    fn required_directories_come_parents_first() {
        for major in PgMajor::ALL {
            let all: Vec<_> = required_directories(major).collect();
            for (at, dir) in all.iter().enumerate() {
                let parent = dir.rsplit_once('/').map(|(parent, _)| parent);
                assert!(parent.is_none_or(|p| all[..at].contains(&p)), "{dir}");
            }
            assert_eq!(all.contains(&"pg_wal/summaries"), major >= PgMajor::V17);
        }
    }

    #[test]
    fn names_of_a_stream_are_normalised_before_they_are_judged() {
        assert_eq!(normalise(b"./pg_wal/archive_status/"), b"pg_wal/archive_status");
        for bad in ["", "/", "/a", "a//b", "../a", "a/..", "./a", "a\0"] {
            assert!(!is_inside(bad.as_bytes()), "{bad:?}");
        }
        assert!(is_inside(b"base/1/..x"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = (classify(&path), RelationFile::parse(&path), init_fork_of(&path), is_inside(normalise(&path)));
        }
    }
}
