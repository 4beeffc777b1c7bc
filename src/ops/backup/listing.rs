//! What a backup holds, kept small while it streams: one row of fixed size per member, all names in one buffer.
//!
//! ```text
//!  begin ─ extend* ─ end      one member at a time, in the order of the tar stream
//!  seal                       sorted by path, duplicates refused: the order of the manifest
//! ```
//! A million files take about 100 bytes each, so that the bound on memory (DESIGN 6) holds for large clusters. Invariants: the
//! extents of a file are in order, without gaps, and their lengths add up to its size. Pure.

use crate::pgwire::tar::{Member, MemberKind};

/// Most bytes of names that are held.
const MOST_NAME_BYTES: usize = 1 << 30;

/// A part of a file in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Number of the pack.
    pub(super) pack: u32,
    /// Where it starts in the pack's plain bytes.
    pub(super) offset: u64,
    /// Its length.
    pub(super) len: u64,
}

/// What a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; its target follows the path in the names.
    Symlink,
}

/// One member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Bytes of a file.
    pub(super) size: u64,
    /// Modification time, seconds since 1970.
    pub(super) mtime: u64,
    /// CRC-32C of a file's bytes.
    pub(super) crc: u32,
    /// Permission bits.
    pub(super) mode: u32,
    /// Owner on the server.
    pub(super) uid: u32,
    /// Group on the server.
    pub(super) gid: u32,
    /// What it is.
    pub(super) kind: RowKind,
    name_at: u32,
    name_len: u16,
    target_len: u16,
    first_extent: u32,
    extents: u32,
}

/// A stream of members that cannot be a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ListingError {
    /// Two members have one path.
    #[error("the server sent {0:?} twice")]
    Twice(String),
    /// More names than are held.
    #[error("the backup holds more than {MOST_NAME_BYTES} bytes of file names")]
    TooMany,
    /// Data do not add up to the announced size.
    #[error("{path:?} was announced with {announced} bytes, {found} came")]
    Size {
        /// The member.
        path: String,
        /// By its header.
        announced: u64,
        /// Bytes received.
        found: u64,
    },
}

/// All members of a backup.
#[derive(Debug, Default)]
pub(super) struct Listing {
    names: Vec<u8>,
    rows: Vec<Row>,
    extents: Vec<Extent>,
    got: u64,
}

impl Listing {
    /// The next member begins.
    pub(super) fn begin(&mut self, member: &Member) -> Result<(), ListingError> {
        let (kind, size, target) = match &member.kind {
            MemberKind::File { size } => (RowKind::File, *size, &[][..]),
            MemberKind::Directory => (RowKind::Directory, 0, &[][..]),
            MemberKind::Symlink { target } => (RowKind::Symlink, 0, target.as_slice()),
        };
        let short = |bytes: &[u8]| u16::try_from(bytes.len()).map_err(|_| ListingError::TooMany);
        let index = |n: usize| u32::try_from(n).map_err(|_| ListingError::TooMany);
        let row = Row {
            size,
            mtime: member.mtime,
            crc: 0,
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            kind,
            name_at: index(self.names.len())?,
            name_len: short(&member.path)?,
            target_len: short(target)?,
            first_extent: index(self.extents.len())?,
            extents: 0,
        };
        self.names.extend_from_slice(&member.path);
        self.names.extend_from_slice(target);
        if self.names.len() > MOST_NAME_BYTES {
            return Err(ListingError::TooMany);
        }
        self.rows.push(row);
        self.got = 0;
        Ok(())
    }

    /// The next `extent.len` bytes of the last member lie there; `crc` is their CRC-32C.
    pub(super) fn extend(&mut self, extent: Extent, crc: u32) {
        let Some(row) = self.rows.last_mut() else { return };
        // Frames are far below 4 GiB; on a 64-bit machine this is exact.
        let len = usize::try_from(extent.len).unwrap_or(usize::MAX);
        row.crc = if self.got == 0 { crc } else { crc32c::crc32c_combine(row.crc, crc, len) };
        self.got = self.got.saturating_add(extent.len);
        let joins = |last: &Extent| {
            row.extents > 0
                && last.pack == extent.pack
                && last.offset.saturating_add(last.len) == extent.offset
        };
        match self.extents.last_mut() {
            Some(last) if joins(last) => last.len = last.len.saturating_add(extent.len),
            _ => {
                self.extents.push(extent);
                row.extents = row.extents.saturating_add(1);
            }
        }
    }

    /// The last member is complete.
    pub(super) fn end(&mut self) -> Result<(), ListingError> {
        match self.rows.last() {
            Some(row) if row.size != self.got => Err(ListingError::Size {
                path: String::from_utf8_lossy(self.path(row)).into_owned(),
                announced: row.size,
                found: self.got,
            }),
            _ => Ok(()),
        }
    }

    /// Sorts by path.
    pub(super) fn seal(mut self) -> Result<Sealed, ListingError> {
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by(|a, b| self.path(a).cmp(self.path(b)));
        self.rows = rows;
        let twice = self.rows.array_windows().find(|[a, b]| self.path(a) == self.path(b));
        if let Some([row, _]) = twice {
            return Err(ListingError::Twice(String::from_utf8_lossy(self.path(row)).into_owned()));
        }
        Ok(Sealed(self))
    }

    fn path(&self, row: &Row) -> &[u8] {
        self.name(row, 0, row.name_len)
    }

    fn name(&self, row: &Row, skip: u16, len: u16) -> &[u8] {
        let from = usize::try_from(row.name_at).unwrap_or(usize::MAX).saturating_add(usize::from(skip));
        self.names.get(from..from.saturating_add(usize::from(len))).unwrap_or_default()
    }
}

/// A [`Listing`] sorted by path.
#[derive(Debug)]
pub(super) struct Sealed(Listing);

impl Sealed {
    /// All members, sorted.
    pub(super) fn rows(&self) -> &[Row] {
        &self.0.rows
    }

    /// Its path.
    pub(super) fn path(&self, row: &Row) -> &[u8] {
        self.0.path(row)
    }

    /// Where a link points.
    pub(super) fn target(&self, row: &Row) -> &[u8] {
        self.0.name(row, row.name_len, row.target_len)
    }

    /// Where its bytes are.
    pub(super) fn extents(&self, row: &Row) -> &[Extent] {
        let from = usize::try_from(row.first_extent).unwrap_or(usize::MAX);
        let count = usize::try_from(row.extents).unwrap_or(usize::MAX);
        self.0.extents.get(from..from.saturating_add(count)).unwrap_or_default()
    }

    /// Position of `path` in [`Sealed::rows`].
    pub(super) fn find(&self, path: &[u8]) -> Option<usize> {
        self.0.rows.binary_search_by(|row| self.path(row).cmp(path)).ok()
    }

    /// Bytes of all files.
    pub(super) fn file_bytes(&self) -> u64 {
        self.0.rows.iter().fold(0, |sum, row| sum.saturating_add(row.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, size: u64) -> Member {
        let kind = MemberKind::File { size };
        Member { path: path.into(), kind, mode: 0o600, uid: 1, gid: 2, mtime: 3 }
    }

    fn extent(pack: u32, offset: u64, len: u64) -> Extent {
        Extent { pack, offset, len }
    }

    #[test]
    fn members_come_out_sorted_by_their_bytes_and_keep_what_is_theirs() {
        let mut listing = Listing::default();
        for path in ["base/2", "base-x", "base/10"] {
            listing.begin(&file(path, 4)).unwrap();
            listing.extend(extent(0, 512, 4), u32::try_from(path.len()).unwrap());
            listing.end().unwrap();
        }
        let link = MemberKind::Symlink { target: b"/there".to_vec() };
        listing.begin(&Member { kind: link, ..file("a", 0) }).unwrap();
        listing.end().unwrap();
        let sealed = listing.seal().unwrap();
        let shown: Vec<_> = sealed.rows().iter().map(|r| (sealed.path(r), sealed.target(r), r.crc)).collect();
        let want: [(&[u8], &[u8], u32); 4] =
            [(b"a", b"/there", 0), (b"base-x", b"", 6), (b"base/10", b"", 7), (b"base/2", b"", 6)];
        assert_eq!(shown, want);
        assert_eq!((sealed.find(b"base/10"), sealed.find(b"base/1")), (Some(2), None));
        assert_eq!(sealed.file_bytes(), 12);
    }

    #[test]
    fn a_path_that_comes_twice_is_refused() {
        let mut listing = Listing::default();
        for path in ["x", "y", "x"] {
            listing.begin(&file(path, 0)).unwrap();
        }
        assert_eq!(listing.seal().unwrap_err(), ListingError::Twice("x".into()));
    }

    #[test]
    fn extents_join_within_a_pack_and_never_across_files() {
        let mut listing = Listing::default();
        listing.begin(&file("a", 12)).unwrap();
        for part in [extent(0, 512, 4), extent(0, 516, 4), extent(1, 0, 4)] {
            listing.extend(part, 0);
        }
        listing.end().unwrap();
        listing.begin(&file("b", 4)).unwrap();
        listing.extend(extent(1, 4, 4), 0);
        listing.end().unwrap();
        let sealed = listing.seal().unwrap();
        let extents: Vec<_> = sealed.rows().iter().map(|r| sealed.extents(r).to_vec()).collect();
        assert_eq!(extents, [vec![extent(0, 512, 8), extent(1, 0, 4)], vec![extent(1, 4, 4)]]);
    }

    #[test]
    fn bytes_that_do_not_add_up_are_an_error() {
        let mut listing = Listing::default();
        listing.begin(&file("a", 5)).unwrap();
        listing.extend(extent(0, 0, 4), 0);
        assert_eq!(listing.end(), Err(ListingError::Size { path: "a".into(), announced: 5, found: 4 }));
    }

    proptest! {
        #[test]
        fn the_checksum_of_parts_is_that_of_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..4000), cut in 1_usize..700,
        ) {
            let mut listing = Listing::default();
            let size = u64::try_from(bytes.len()).unwrap();
            listing.begin(&file("a", size)).unwrap();
            for part in bytes.chunks(cut) {
                let len = u64::try_from(part.len()).unwrap();
                listing.extend(extent(0, 0, len), crc32c::crc32c(part));
            }
            listing.end().unwrap();
            let sealed = listing.seal().unwrap();
            prop_assert_eq!(sealed.rows()[0].crc, crc32c::crc32c(&bytes));
        }
    }
}
