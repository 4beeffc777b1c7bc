//! WAL that only the old data directory holds: the newest commits of a server that died before it could archive them.
//!
//! ```text
//!  pg_wal/00000001…C1   stored already                      left alone
//!  pg_wal/00000001…C2   whole, not stored                   stored before anything is planned or moved
//!  pg_wal/00000001…C3   the segment being written           stored as what it is: a copy that ends early, or one that is longer
//!                                                           than such a copy of an earlier restore
//!  pg_wal/00000001…C9   recycled, still with old contents   recognised by its first page, left alone
//! ```
//! Only a directory of the very cluster that is restored counts. Its server does not run: that was made sure of before.
//! Source of truth: RECOVERY.md 3 and 21; `InstallXLogFileSegment` in `xlog.c` for recycling.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use crate::codec::Compression;
use crate::error::{Error, Result};
use crate::ops::archive::file::WalSource;
use crate::ops::archive::{COPY_MARKER, store_file};
use crate::ops::plan::World;
use crate::repo::{Repository, System};
use crate::wal::page::PageHeader;
use crate::wal::scan::Stamp;
use crate::wal::{Lsn, PAGE_SIZE, SegmentName, WalFileName};

use super::directory::{Place, State, cannot};

/// Segments that are scanned, from the newest back, to learn what the newest commit is.
const SCANNED: usize = 4;

/// What only an old data directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unarchived {
    /// The directory.
    pub data_dir: PathBuf,
    /// Histories first, then segments in order.
    pub files: Vec<PathBuf>,
    /// The newest commit in the newest of them, if one was found there.
    pub newest_commit: Option<Stamp>,
    /// First byte after the last valid record of the newest one that could be read.
    pub end: Option<Lsn>,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Rescue {
    /// Files that every required repository holds now.
    pub stored: usize,
    /// What an optional repository did not take.
    pub warnings: Vec<String>,
    /// The first file that could not be stored, and why.
    pub failed: Option<(PathBuf, Error)>,
}

impl Unarchived {
    /// `3 files of pg_wal in /srv/main are not archived (…C1 to …C3, up to 0/C3001234, newest commit 2025-…)`.
    pub fn describe(&self) -> String {
        let name = |path: Option<&PathBuf>| {
            path.and_then(|p| p.file_name()).unwrap_or_default().to_string_lossy().into_owned()
        };
        let mut text = format!(
            "{} files of pg_wal in {} are not archived ({} to {}",
            self.files.len(),
            self.data_dir.display(),
            name(self.files.first()),
            name(self.files.last())
        );
        if let Some(end) = self.end {
            text.push_str(&format!(", up to {end}"));
        }
        if let Some(commit) = self.newest_commit {
            text.push_str(&format!(", newest commit {}", commit.time));
        }
        text.push(')');
        text
    }
}

/// Looks into `place`, the directory of a server that does not run. `None` if it holds nothing that the repository lacks, or is
/// not a directory of this cluster. Of the `unfinished` segments a copy is stored that ends early. Where the control file is lost,
/// each segment still says whose it is; a history does not.
///
/// # Errors
/// If `pg_wal` cannot be read: it may hold the newest commits.
pub fn look(
    place: &Place,
    world: &World,
    unfinished: &[SegmentName],
    system: &System,
) -> Result<Option<Unarchived>> {
    // What a copy wrote is no history of the cluster.
    if place.path.join(COPY_MARKER).exists() {
        return Ok(None);
    }
    let files = find(place, world, unfinished)?;
    if files.is_empty() {
        return Ok(None);
    }
    let mut found = Unarchived { data_dir: place.path.clone(), files, newest_commit: None, end: None };
    for file in found.files.iter().rev().take(SCANNED) {
        let scanned = WalSource::open(file).and_then(|source| {
            let (cluster, id) = (system.repository().cluster().clone(), system.identity().system);
            source.read(&cluster, id, Compression::Stored)
        });
        // One that cannot be read is reported when it is stored.
        let Some(scan) = scanned.ok().and_then(|content| content.scan) else { continue };
        found.end = found.end.or(Some(scan.valid_to));
        found.newest_commit = scan.commits.last;
        if found.newest_commit.is_some() {
            break;
        }
    }
    Ok(Some(found))
}

/// Stores the files, in order: what comes after one that cannot be stored is of no use, for recovery would not get there.
///
/// Dropped, it has stored some of them; repeating is harmless.
pub async fn store(found: &Unarchived, repositories: &[Repository], compression: Compression) -> Rescue {
    let mut rescue = Rescue::default();
    for file in &found.files {
        match store_file(repositories, file, Some(&found.data_dir), compression).await {
            Ok(report) => {
                rescue.stored += 1;
                rescue.warnings.extend(report.warnings);
            }
            Err(error) => {
                rescue.failed = Some((file.clone(), error));
                break;
            }
        }
    }
    rescue
}

/// The files of the old directory that the repository lacks.
fn find(place: &Place, world: &World, unfinished: &[SegmentName]) -> Result<Vec<PathBuf>> {
    let is_known = match &place.state {
        State::Cluster(Some(control)) if control.system_id == world.system_id => true,
        State::Cluster(None) => false,
        _ => return Ok(Vec::new()),
    };
    let pg_wal = place.path.join("pg_wal");
    let entries = match std::fs::read_dir(&pg_wal) {
        // No such name at all: somebody removed it. A link that leads nowhere is a file system that is not mounted.
        Err(e) if e.kind() == ErrorKind::NotFound && pg_wal.symlink_metadata().is_err() => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(|e| unreadable(&pg_wal, e))?,
    };
    let mut found: Vec<(WalFileName, PathBuf)> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| unreadable(&pg_wal, e))?;
        let parsed = entry.file_name().to_str().and_then(|name| WalFileName::parse(name).ok());
        match parsed {
            Some(name @ WalFileName::History(timeline))
                if is_known && !world.histories.contains_key(&timeline) =>
            {
                found.push((name, entry.path()));
            }
            Some(name @ WalFileName::Segment(segment))
                if (is_wanted(segment, world) || unfinished.contains(&segment))
                    && holds(&entry.path(), segment, world)? =>
            {
                found.push((name, entry.path()));
            }
            _ => {}
        }
    }
    let is_segment = |name: &WalFileName| matches!(name, WalFileName::Segment(_));
    found.sort_by_key(|(name, _)| (is_segment(name), *name));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn unreadable(path: &Path, cause: std::io::Error) -> Error {
    cannot("read", path, cause).hint(
        "it may hold the newest commits, which are stored before anything is touched: make it readable (is its file system \
         mounted?), or give up what is in it with --without-old-wal",
    )
}

/// True if the repository lacks the segment, and has not given it up.
fn is_wanted(name: SegmentName, world: &World) -> bool {
    let Ok(number) = name.number(world.segment_size) else { return false };
    let stored = world.stored.get(&name.timeline()).is_some_and(|line| line.contains(&number));
    let expired = world.floor.get(&name.timeline()).is_some_and(|floor| number < *floor);
    !stored && !expired
}

/// True if the file's first page is that of the segment its name says, of this cluster: not so in a recycled file.
fn holds(path: &Path, name: SegmentName, world: &World) -> Result<bool> {
    let Ok(number) = name.number(world.segment_size) else { return Ok(false) };
    let mut page = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PAGE_SIZE).read_to_end(&mut page));
    read.map_err(|e| unreadable(path, e))?;
    let Ok(header) = PageHeader::parse(&page) else { return Ok(false) };
    let ours = header.long.is_some_and(|long| long.system_id == world.system_id);
    Ok(ours && header.address == number.start(world.segment_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::write_replace;
    use crate::wal::Lsn;
    use crate::wal::testing::Wal;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn a_segment_stored_in_part_is_wanted_again_even_where_the_control_file_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let wal = Wal::starting_at(Lsn::new(1 << 20)).filler(20_000);
        let (name, bytes) = wal.segments().into_iter().next().unwrap();
        let path = dir.path().join("pg_wal").join(name.to_string());
        write_replace(&path, &bytes, 0o600, None).unwrap();
        write_replace(&dir.path().join("pg_wal/00000002.history"), b"1\t0/100\tx\n", 0o600, None).unwrap();
        write_replace(&dir.path().join("PG_VERSION"), b"15\n", 0o600, None).unwrap();
        let header = PageHeader::parse(bytes.get(..8192).unwrap()).unwrap().long.unwrap();
        let size = crate::wal::SegmentSize::new(u64::from(header.segment_size)).unwrap();
        let line = BTreeSet::from([name.number(size).unwrap()]);
        let mut world = World {
            system_id: header.system_id,
            segment_size: size,
            backups: Vec::new(),
            histories: BTreeMap::new(),
            stored: BTreeMap::from([(name.timeline(), line)]),
            damaged: BTreeMap::new(),
            floor: BTreeMap::new(),
        };
        let place = Place::inspect(dir.path()).unwrap();
        assert_eq!(place.state, State::Cluster(None));
        assert_eq!(find(&place, &world, &[]).unwrap(), Vec::<PathBuf>::new());
        let real = place.path.join("pg_wal").join(name.to_string());
        assert_eq!(find(&place, &world, &[name]).unwrap(), std::slice::from_ref(&real));
        world.stored.clear();
        assert_eq!(find(&place, &world, &[]).unwrap(), [real]);
        world.system_id = crate::wal::SystemId::new(1);
        assert_eq!(find(&place, &world, &[]).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_pg_wal_that_cannot_be_read_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        write_replace(&dir.path().join("PG_VERSION"), b"15\n", 0o600, None).unwrap();
        let world = World {
            system_id: crate::wal::SystemId::new(1),
            segment_size: crate::wal::SegmentSize::DEFAULT,
            backups: Vec::new(),
            histories: BTreeMap::new(),
            stored: BTreeMap::new(),
            damaged: BTreeMap::new(),
            floor: BTreeMap::new(),
        };
        let place = Place::inspect(dir.path()).unwrap();
        assert_eq!(find(&place, &world, &[]).unwrap(), Vec::<PathBuf>::new());
        std::os::unix::fs::symlink("/nowhere/pg_wal", dir.path().join("pg_wal")).unwrap();
        let error = find(&place, &world, &[]).unwrap_err();
        assert!(error.message().contains("pg_wal"), "{error}");
    }
}
