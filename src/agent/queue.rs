//! What waits to be archived: the `.ready` files of `archive_status`, in the order in which PostgreSQL offers them.
//!
//! ```text
//!  pg_wal/archive_status/00000002.history.ready            histories first (`ready_file_comparator` in pgarch.c)
//!                        000000010000000000000007.ready    then by name
//!                        000000010000000000000006.done     archived: of no interest
//! ```
//! A `.ready` file is made when the file it names is finished, and goes when PostgreSQL was told that it is archived; until then the file
//! is not touched. So what can be stored ahead of being asked is exactly this list.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use crate::ops::archive::Stamp;
use crate::wal::WalFileName;

/// A file's place in the queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn {
    later: bool,
    name: String,
}

impl Turn {
    /// The place of a file.
    pub fn of(name: WalFileName) -> Self {
        Self { later: !matches!(name, WalFileName::History(_)), name: name.to_string() }
    }

    /// Whether it is a segment of WAL.
    pub fn is_segment(&self) -> bool {
        matches!(WalFileName::parse(&self.name), Ok(WalFileName::Segment(_)))
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The queue now.
///
/// # Errors
/// If the directory cannot be read.
pub fn ready(archive_status: &Path) -> std::io::Result<BTreeSet<Turn>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(archive_status)? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|text| text.strip_suffix(".ready"));
        if let Some(name) = name.and_then(|text| WalFileName::parse(text).ok()) {
            found.insert(Turn::of(name));
        }
    }
    Ok(found)
}

/// Which file it is, and that nothing was written to it since: what the agent stored under a name is what lies there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    stamp: Stamp,
    first_page: blake3::Hash,
}

impl FileIdentity {
    /// Looks at the file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        let stamp = Stamp::from(&file.metadata()?);
        let mut page = Vec::new();
        file.by_ref().take(crate::wal::PAGE_SIZE).read_to_end(&mut page)?;
        Ok(Self { stamp, first_page: blake3::hash(&page) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, bytes: &[u8]) {
        crate::durable::write_replace(path, bytes, 0o600, None).unwrap();
    }

    #[test]
    fn the_queue_is_in_the_servers_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "000000010000000000000007.ready",
            "000000010000000000000006.done",
            "000000010000000000000005.ready",
            "000000010000000000000005.00000028.backup.ready",
            "00000002.history.ready",
            "core.ready",
        ] {
            write(&dir.path().join(name), b"");
        }
        let turns: Vec<String> = ready(dir.path()).unwrap().iter().map(|t| t.name().to_owned()).collect();
        assert_eq!(
            turns,
            [
                "00000002.history",
                "000000010000000000000005",
                "000000010000000000000005.00000028.backup",
                "000000010000000000000007",
            ]
        );
        assert!(ready(&dir.path().join("no")).is_err());
    }

    #[test]
    fn another_file_of_the_name_is_another_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        write(&one, &[1; 20_000]);
        write(&two, &[1; 20_000]);
        let first = FileIdentity::of(&one).unwrap();
        assert_eq!(first, FileIdentity::of(&one).unwrap());
        std::fs::rename(&two, &one).unwrap();
        assert_ne!(first, FileIdentity::of(&one).unwrap(), "an inode of its own");
        // The same inode, with the time put back: the first page tells.
        let first = FileIdentity::of(&one).unwrap();
        let time = std::fs::metadata(&one).unwrap().modified().unwrap();
        let mut file = std::fs::OpenOptions::new().write(true).open(&one).unwrap();
        std::io::Write::write_all(&mut file, &[2; 8]).unwrap();
        file.set_modified(time).unwrap();
        assert_ne!(first, FileIdentity::of(&one).unwrap());
    }
}
