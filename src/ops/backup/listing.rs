//! What a backup holds, kept small while it streams: one compressed row per member.
//!
//! ```text
//!  begin ─ extend* ─ end      one member at a time, in the order of the tar stream
//!  seal                       sorted by path, duplicates refused: the order of the manifest
//! ```
//! A million files take tens of megabytes (`runs`), so that the bound on memory (DESIGN 6) holds for large clusters. Invariants: the
//! extents of a file are in order, without gaps, and their lengths add up to its size. Pure.

use crate::error::{Error, Result};
use crate::ops::runs::{RowKind, Rows, Runs, Sorted, unreadable};
use crate::pgwire::tar::{Member, MemberKind};
use crate::repo::binary::{Reader, Writer};
pub(super) use crate::repo::manifest::Extent;
use crate::repo::manifest::coalesce;

/// One member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Its path.
    pub(super) path: &'a [u8],
    /// What it is.
    pub(super) kind: RowKind,
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
    /// Where a link points.
    pub(super) target: &'a [u8],
    extents: &'a [u8],
}

impl Row<'_> {
    /// Where its bytes are.
    pub(super) fn extents(&self) -> Vec<Extent> {
        let mut reader = Reader::new(self.extents);
        std::iter::from_fn(|| Some(Extent { pack: reader.u32()?, offset: reader.u64()?, len: reader.u64()? }))
            .collect()
    }
}

/// The member that comes in.
#[derive(Debug)]
struct Coming {
    member: Member,
    crc: u32,
    got: u64,
    extents: Vec<Extent>,
}

/// All members of a backup.
#[derive(Debug, Default)]
pub(super) struct Listing {
    runs: Runs,
    coming: Option<Coming>,
    members: u64,
    bytes: u64,
    extents: u64,
}

impl Listing {
    /// Pieces of files so far, of which a manifest has room for [`MAX_EXTENTS`](crate::repo::manifest::MAX_EXTENTS).
    pub(super) fn extents(&self) -> u64 {
        self.extents
    }

    /// Pieces of the open member so far.
    pub(super) fn pieces(&self) -> usize {
        self.coming.as_ref().map_or(0, |coming| coming.extents.len())
    }

    /// The next member begins.
    pub(super) fn begin(&mut self, member: Member) {
        self.coming = Some(Coming { member, crc: 0, got: 0, extents: Vec::new() });
    }

    /// The next `extent.len` bytes of the member lie there; `crc` is their CRC-32C.
    pub(super) fn extend(&mut self, extent: Extent, crc: u32) {
        let Some(coming) = &mut self.coming else { return };
        // Frames are far below 4 GiB; on a 64-bit machine this is exact.
        let len = usize::try_from(extent.len).unwrap_or(usize::MAX);
        coming.crc = if coming.got == 0 { crc } else { crc32c::crc32c_combine(coming.crc, crc, len) };
        coming.got = coming.got.saturating_add(extent.len);
        coming.extents.push(extent);
        coalesce(&mut coming.extents);
    }

    /// The member is complete.
    ///
    /// # Errors
    /// If its bytes do not add up.
    pub(super) fn end(&mut self) -> Result<()> {
        let Some(Coming { member, crc, got, extents }) = self.coming.take() else { return Ok(()) };
        let (kind, size, target) = match &member.kind {
            MemberKind::File { size } => (RowKind::File, *size, &[][..]),
            MemberKind::Directory => (RowKind::Directory, 0, &[][..]),
            MemberKind::Symlink { target } => (RowKind::Symlink, 0, target.as_slice()),
        };
        if size != got {
            let path = String::from_utf8_lossy(&member.path).into_owned();
            return Err(Error::failed(format!("{path:?} was announced with {size} bytes, {got} came")));
        }
        let mut row = Writer::default();
        row.u8(kind.code())
            .u64(size)
            .u64(member.mtime)
            .u32(crc)
            .u32(member.mode)
            .u32(member.uid)
            .u32(member.gid);
        // The header of a tar member bounds the length of a target; `push` bounds the row.
        row.u32(u32::try_from(target.len()).unwrap_or(u32::MAX)).bytes(target);
        for part in &extents {
            row.u32(part.pack).u64(part.offset).u64(part.len);
        }
        self.extents = self.extents.saturating_add(u64::try_from(extents.len()).unwrap_or(u64::MAX));
        self.members = self.members.saturating_add(1);
        self.bytes = self.bytes.saturating_add(size);
        self.runs.push(&member.path, &row.0)
    }

    /// Sorts by path.
    ///
    /// # Errors
    /// If a path came twice.
    pub(super) fn seal(self) -> Result<Sealed> {
        let sealed = Sealed { rows: self.runs.sort()?, members: self.members, bytes: self.bytes };
        let (mut rows, mut last) = (sealed.rows.rows(), None::<Vec<u8>>);
        while let Some((path, _)) = rows.next()? {
            if last.as_deref() == Some(path) {
                let path = String::from_utf8_lossy(path).into_owned();
                return Err(Error::failed(format!("the server sent {path:?} twice")));
            }
            let last = last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(path);
        }
        Ok(sealed)
    }
}

/// A [`Listing`] sorted by path.
#[derive(Debug)]
pub(super) struct Sealed {
    rows: Sorted,
    members: u64,
    bytes: u64,
}

impl Sealed {
    /// All members, by path.
    pub(super) fn rows(&self) -> Members<'_> {
        Members(self.rows.rows())
    }

    /// How many.
    pub(super) fn members(&self) -> u64 {
        self.members
    }

    /// Bytes of all files.
    pub(super) fn file_bytes(&self) -> u64 {
        self.bytes
    }
}

/// Reads members in order.
#[derive(Debug)]
pub(super) struct Members<'a>(Rows<'a>);

impl Members<'_> {
    /// The next one.
    ///
    /// # Errors
    /// If there is no memory to open it.
    pub(super) fn next(&mut self) -> Result<Option<Row<'_>>> {
        let Some((path, value)) = self.0.next()? else { return Ok(None) };
        read(path, value).ok_or_else(unreadable).map(Some)
    }
}

fn read<'a>(path: &'a [u8], value: &'a [u8]) -> Option<Row<'a>> {
    let mut reader = Reader::new(value);
    let kind = RowKind::of(reader.u8()?)?;
    let (size, mtime, crc) = (reader.u64()?, reader.u64()?, reader.u32()?);
    let (mode, uid, gid) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let length = usize::try_from(reader.u32()?).ok()?;
    let target = reader.take(length)?;
    Some(Row { path, kind, size, mtime, crc, mode, uid, gid, target, extents: reader.rest() })
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

    /// What `seen` tells of every member.
    fn told<T>(sealed: &Sealed, seen: impl Fn(&Row<'_>) -> T) -> Vec<T> {
        let (mut rows, mut told) = (sealed.rows(), Vec::new());
        while let Some(row) = rows.next().unwrap() {
            told.push(seen(&row));
        }
        told
    }

    #[test]
    fn members_come_out_sorted_by_their_bytes_and_keep_what_is_theirs() {
        let mut listing = Listing::default();
        for path in ["base/2", "base-x", "base/10"] {
            listing.begin(file(path, 4));
            listing.extend(extent(0, 512, 4), u32::try_from(path.len()).unwrap());
            listing.end().unwrap();
        }
        let link = MemberKind::Symlink { target: b"/there".to_vec() };
        listing.begin(Member { kind: link, ..file("a", 0) });
        listing.end().unwrap();
        let sealed = listing.seal().unwrap();
        let shown = told(&sealed, |r| (r.path.to_vec(), r.kind, r.target.to_vec(), r.crc, r.mode));
        let of = |path: &str, kind, target: &str, crc| (path.into(), kind, target.into(), crc, 0o600);
        let want = [
            of("a", RowKind::Symlink, "/there", 0),
            of("base-x", RowKind::File, "", 6),
            of("base/10", RowKind::File, "", 7),
            of("base/2", RowKind::File, "", 6),
        ];
        assert_eq!(shown, want);
        assert_eq!((sealed.members(), sealed.file_bytes()), (4, 12));
    }

    #[test]
    fn a_path_that_comes_twice_is_refused() {
        let mut listing = Listing::default();
        for path in ["x", "y", "x"] {
            listing.begin(file(path, 0));
            listing.end().unwrap();
        }
        assert!(listing.seal().unwrap_err().message().contains("\"x\" twice"));
    }

    #[test]
    fn extents_join_within_a_pack_and_never_across_files() {
        let mut listing = Listing::default();
        listing.begin(file("a", 12));
        for part in [extent(0, 512, 4), extent(0, 516, 4), extent(1, 0, 4)] {
            listing.extend(part, 0);
        }
        listing.end().unwrap();
        listing.begin(file("b", 4));
        listing.extend(extent(1, 4, 4), 0);
        listing.end().unwrap();
        let extents = told(&listing.seal().unwrap(), |row| (row.size, row.extents()));
        let want = [(12, vec![extent(0, 512, 8), extent(1, 0, 4)]), (4, vec![extent(1, 4, 4)])];
        assert_eq!(extents, want);
    }

    #[test]
    fn bytes_that_do_not_add_up_are_an_error() {
        let mut listing = Listing::default();
        listing.begin(file("a", 5));
        listing.extend(extent(0, 0, 4), 0);
        let error = listing.end().unwrap_err();
        assert!(error.message().contains("announced with 5 bytes, 4 came"), "{error}");
    }

    proptest! {
        #[test]
        fn the_checksum_of_parts_is_that_of_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..4000), cut in 1_usize..700,
        ) {
            let mut listing = Listing::default();
            let size = u64::try_from(bytes.len()).unwrap();
            listing.begin(file("a", size));
            for part in bytes.chunks(cut) {
                let len = u64::try_from(part.len()).unwrap();
                listing.extend(extent(0, 0, len), crc32c::crc32c(part));
            }
            listing.end().unwrap();
            prop_assert_eq!(told(&listing.seal().unwrap(), |row| row.crc), [crc32c::crc32c(&bytes)]);
        }
    }
}
