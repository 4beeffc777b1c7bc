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
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::ops::plan::World;
use crate::wal::page::PageHeader;
use crate::wal::{PAGE_SIZE, SegmentName, WalFileName};

use super::directory::{Place, State};

/// The files of the old directory that the repository lacks: histories first, then segments in order. Of the `unfinished` segments
/// a copy is stored that ends early. Where the control file is lost, each segment still says whose it is; a history does not.
pub fn find(place: &Place, world: &World, unfinished: &[SegmentName]) -> Vec<PathBuf> {
    let is_known = match &place.state {
        State::Cluster(Some(control)) if control.system_id == world.system_id => true,
        State::Cluster(None) => false,
        _ => return Vec::new(),
    };
    let Ok(entries) = std::fs::read_dir(place.path.join("pg_wal")) else { return Vec::new() };
    let mut found: Vec<(WalFileName, PathBuf)> = Vec::new();
    for entry in entries.flatten() {
        let parsed = entry.file_name().to_str().and_then(|name| WalFileName::parse(name).ok());
        match parsed {
            Some(name @ WalFileName::History(timeline))
                if is_known && !world.histories.contains_key(&timeline) =>
            {
                found.push((name, entry.path()));
            }
            Some(name @ WalFileName::Segment(segment))
                if (is_wanted(segment, world) || unfinished.contains(&segment))
                    && holds(&entry.path(), segment, world) =>
            {
                found.push((name, entry.path()));
            }
            _ => {}
        }
    }
    let is_segment = |name: &WalFileName| matches!(name, WalFileName::Segment(_));
    found.sort_by_key(|(name, _)| (is_segment(name), *name));
    found.into_iter().map(|(_, path)| path).collect()
}

/// True if the repository lacks the segment, and has not given it up.
fn is_wanted(name: SegmentName, world: &World) -> bool {
    let Ok(number) = name.number(world.segment_size) else { return false };
    let stored = world.stored.get(&name.timeline()).is_some_and(|line| line.contains(&number));
    let expired = world.floor.get(&name.timeline()).is_some_and(|floor| number < *floor);
    !stored && !expired
}

/// True if the file's first page is that of the segment its name says, of this cluster: not so in a recycled file.
fn holds(path: &Path, name: SegmentName, world: &World) -> bool {
    let Ok(number) = name.number(world.segment_size) else { return false };
    let mut page = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PAGE_SIZE).read_to_end(&mut page));
    let header = read.ok().and_then(|_| PageHeader::parse(&page).ok());
    let Some(header) = header else { return false };
    let ours = header.long.is_some_and(|long| long.system_id == world.system_id);
    ours && header.address == number.start(world.segment_size)
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
            floor: BTreeMap::new(),
        };
        let place = Place::inspect(dir.path()).unwrap();
        assert_eq!(place.state, State::Cluster(None));
        assert_eq!(find(&place, &world, &[]), Vec::<PathBuf>::new());
        let real = place.path.join("pg_wal").join(name.to_string());
        assert_eq!(find(&place, &world, &[name]), std::slice::from_ref(&real));
        world.stored.clear();
        assert_eq!(find(&place, &world, &[]), [real]);
        world.system_id = crate::wal::SystemId::new(1);
        assert_eq!(find(&place, &world, &[]), Vec::<PathBuf>::new());
    }
}
