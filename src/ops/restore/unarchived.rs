//! WAL that only the old data directory holds: the newest commits of a server that died before it could archive them.
//!
//! ```text
//!  pg_wal/00000001…C1   stored already                      left alone
//!  pg_wal/00000001…C2   whole, not stored                   stored before anything is planned or moved
//!  pg_wal/00000001…C3   the segment being written           stored as what it is: a copy that ends early
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

/// The files of the old directory that the repository lacks: histories first, then segments in order.
pub fn find(place: &Place, world: &World) -> Vec<PathBuf> {
    match &place.state {
        State::Cluster(Some(control)) if control.system_id == world.system_id => {}
        _ => return Vec::new(),
    }
    let Ok(entries) = std::fs::read_dir(place.path.join("pg_wal")) else { return Vec::new() };
    let mut found: Vec<(WalFileName, PathBuf)> = Vec::new();
    for entry in entries.flatten() {
        let parsed = entry.file_name().to_str().and_then(|name| WalFileName::parse(name).ok());
        match parsed {
            Some(name @ WalFileName::History(timeline)) if !world.histories.contains_key(&timeline) => {
                found.push((name, entry.path()));
            }
            Some(name @ WalFileName::Segment(segment))
                if is_wanted(segment, world) && holds(&entry.path(), segment, world) =>
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
