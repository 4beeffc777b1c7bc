//! Where each file of the backup goes: which tree, under which name, or nowhere.
//!
//! ```text
//!  base/5/1259                          data directory
//!  pg_tblspc/16385/PG_15_…/5/16400      the tablespace's own place
//!  postgresql.conf          of a copy   postgresql.conf.source, kept for the user and never read by the server
//!  global/pg_control, postgresql.auto.conf, tablespace_map    written by the restore itself, not here
//!  pg_wal/…, *.signal, postmaster.pid   of another server's life: nowhere
//! ```
//! Pure. Source of truth: RECOVERY.md 21 to 23, facts/wal-recovery 8.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::Purpose;
use super::tablespaces::Tablespace;

/// The control file.
pub const CONTROL: &str = "global/pg_control";
/// Settings made by ALTER SYSTEM.
pub const AUTO_CONF: &str = "postgresql.auto.conf";
/// Where the tablespaces are.
pub const TABLESPACE_MAP: &str = "tablespace_map";
pub use crate::ops::archive::COPY_MARKER;
/// What the source's configuration files are called in a copy.
pub const KEPT_SUFFIX: &str = ".source";

/// Files of the top level that a copy does not run with.
const SOURCE_CONFIGURATION: [&str; 4] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", AUTO_CONF];
/// Files of the top level that the restore writes itself.
const WRITTEN_HERE: [&str; 2] = [CONTROL, TABLESPACE_MAP];
/// Files of the top level that speak of the life of another server.
const LEFT_OUT: [&str; 10] = [
    "backup_manifest",
    "current_logfiles",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.conf",
    "recovery.signal",
    "standby.signal",
    super::marker::NAME,
    super::moving::NAME,
    COPY_MARKER,
];
/// Directories that are restored empty.
const EMPTY: [&str; 7] =
    ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_wal"];

/// A place: which tree (0 is the data directory, then the tablespaces in order) and the path in it.
pub type Destination = (usize, PathBuf);

/// The trees of a restore.
#[derive(Debug, Clone)]
pub struct Layout {
    purpose: Purpose,
    /// OID and tree of each tablespace that lies elsewhere.
    tablespaces: Vec<(String, usize)>,
}

impl Layout {
    /// The layout for these tablespaces. Those without a place of their own stay in the data directory.
    pub fn new(purpose: Purpose, tablespaces: &[Tablespace]) -> Self {
        let elsewhere = tablespaces.iter().filter(|t| t.place.is_some());
        Self { purpose, tablespaces: elsewhere.map(|t| t.oid.to_string()).zip(1..).collect() }
    }

    /// Where the file called `path` goes; `None`: nowhere.
    pub fn destination(&self, path: &[u8]) -> Option<Destination> {
        let is = |name: &&str| name.as_bytes() == path;
        if WRITTEN_HERE.iter().any(is) || LEFT_OUT.iter().any(is) {
            return None;
        }
        let below = |dir: &&str| path.strip_prefix(dir.as_bytes()).is_some_and(|r| r.starts_with(b"/"));
        if EMPTY.iter().any(below) && path != b"pg_wal/archive_status" {
            return None;
        }
        if SOURCE_CONFIGURATION.iter().any(is) {
            let kept = || [path, KEPT_SUFFIX.as_bytes()].concat();
            return match self.purpose {
                Purpose::Copy => Some((0, path_of(&kept()))),
                Purpose::Replace if path == AUTO_CONF.as_bytes() => None,
                Purpose::Replace => Some((0, path_of(path))),
            };
        }
        // What an earlier restore had kept makes room for what this one keeps.
        let older = path.strip_suffix(KEPT_SUFFIX.as_bytes());
        if self.purpose == Purpose::Copy
            && older.is_some_and(|stem| SOURCE_CONFIGURATION.iter().any(|n| n.as_bytes() == stem))
        {
            return None;
        }
        match self.tablespace(path) {
            Some((_, b"")) => None,
            Some((tree, rest)) => Some((tree, path_of(rest))),
            None => Some((0, path_of(path))),
        }
    }

    /// The tree and the path in it, for what lies in a tablespace elsewhere.
    fn tablespace<'p>(&self, path: &'p [u8]) -> Option<(usize, &'p [u8])> {
        let rest = path.strip_prefix(b"pg_tblspc/")?;
        let (oid, rest) = match rest.iter().position(|b| *b == b'/') {
            Some(slash) => (rest.get(..slash)?, rest.get(slash.saturating_add(1)..)?),
            None => (rest, &b""[..]),
        };
        let known = self.tablespaces.iter().find(|(own, _)| own.as_bytes() == oid)?;
        Some((known.1, rest))
    }
}

/// The folder of a tablespace that belongs to one major version and catalogue: `PG_15_202209061`, from a path of the backup that
/// lies in a tablespace.
pub fn version_folder(path: &[u8]) -> Option<String> {
    let in_tablespaces = path.strip_prefix(b"pg_tblspc/")?;
    let folder = in_tablespaces.split(|b| *b == b'/').nth(1)?;
    let text = std::str::from_utf8(folder).ok()?;
    text.starts_with("PG_").then(|| text.to_owned())
}

fn path_of(bytes: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goes(purpose: Purpose, path: &str) -> Option<(usize, String)> {
        let elsewhere = |oid, place: Option<&str>| Tablespace {
            oid,
            original: PathBuf::from("/o"),
            place: place.map(PathBuf::from),
        };
        let layout = Layout::new(purpose, &[elsewhere(16384, None), elsewhere(16385, Some("/n"))]);
        layout.destination(path.as_bytes()).map(|(tree, path)| (tree, path.display().to_string()))
    }

    #[test]
    fn a_replacement_keeps_its_configuration_and_a_copy_sets_it_aside() {
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            assert_eq!(goes(Purpose::Replace, name), Some((0, name.to_owned())));
            assert_eq!(goes(Purpose::Copy, name), Some((0, format!("{name}.source"))));
            assert_eq!(goes(Purpose::Copy, &format!("{name}.source")), None);
        }
        assert_eq!(goes(Purpose::Replace, AUTO_CONF), None);
        assert_eq!(goes(Purpose::Copy, AUTO_CONF), Some((0, format!("{AUTO_CONF}.source"))));
    }

    #[test]
    fn tablespaces_go_to_their_places_and_in_place_ones_stay() {
        let at = |path| goes(Purpose::Replace, path);
        assert_eq!(at("pg_tblspc/16385/PG_15_1/5/1"), Some((1, "PG_15_1/5/1".to_owned())));
        assert_eq!(at("pg_tblspc/16385"), None);
        assert_eq!(at("pg_tblspc/16384/PG_15_1/5/1"), Some((0, "pg_tblspc/16384/PG_15_1/5/1".to_owned())));
        assert_eq!(at("pg_tblspc"), Some((0, "pg_tblspc".to_owned())));
        let folder = version_folder(b"pg_tblspc/16385/PG_15_202209061/5");
        assert_eq!(folder, Some("PG_15_202209061".to_owned()));
        assert_eq!(version_folder(b"pg_tblspc/16385/x/5"), None);
        assert_eq!(version_folder(b"base/16385/PG_15_202209061"), None);
    }

    #[test]
    fn nothing_of_another_servers_life_is_restored() {
        for gone in [
            "global/pg_control",
            "tablespace_map",
            "standby.signal",
            "recovery.signal",
            "postmaster.pid",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.done",
            "pg_replslot/s/state",
            "pitr.copy",
            "pitr.restoring",
        ] {
            assert_eq!(goes(Purpose::Replace, gone), None, "{gone}");
        }
        for kept in
            ["pg_wal", "pg_wal/archive_status", "pg_replslot", "backup_label", "pg_walx", "base/5/pg_wal"]
        {
            assert_eq!(goes(Purpose::Copy, kept), Some((0, kept.to_owned())), "{kept}");
        }
    }
}
