//! The files of a backup, held small: what the manifest says, by path and in the order of fetching.
//!
//! ```text
//!  manifest (by path)            image: two lists of sorted, compressed rows (`runs`)
//!  base/5/1259  pack 3 @ 0  ──►  rows     by path               directories, empty files, links; decisions
//!  base/5/2619  pack 0 @ 9  ──►  pieces   by pack and offset    what one ranged read brings belongs together
//! ```
//! Both are read as streams, a frame at a time: tens of bytes a file, so that the bound on memory (DESIGN 6) holds for millions of
//! them. The manifest's reader has made sure that paths ascend and stay inside, and that extents add up; here no two files may claim
//! the same bytes of a pack. A manifest that says otherwise is damaged, and nothing is written. Pure.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ops::runs::{RowKind, Rows, Runs, Sorted, unreadable};
use crate::repo::binary::{Reader, Writer};
use crate::repo::manifest::{FileEntry, FileKind, Manifest, PackLine};

/// One file, directory or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Relative to the data directory.
    pub path: &'a [u8],
    /// What it is.
    pub kind: RowKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of a file.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Where a link points.
    pub target: &'a [u8],
}

/// A file, as its pieces know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative to the data directory.
    pub path: Vec<u8>,
    /// No other file of the backup has it.
    pub number: u32,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// CRC-32C of its bytes, where the server's manifest knows it.
    pub crc: Option<u32>,
}

/// A run of bytes of a file, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Index of the pack in [`Image::packs`].
    pub pack: u32,
    /// Offset in the pack's plain bytes.
    pub offset: u64,
    /// Offset in the file.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Whose they are.
    pub file: Arc<File>,
}

impl Piece {
    /// First byte after it, in the pack.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// All files of a backup.
#[derive(Debug, Default)]
pub struct Image {
    rows: Sorted,
    pieces: Sorted,
    packs: Vec<PackLine>,
    files: u32,
    bytes: u64,
}

impl Image {
    /// The files that `manifest` lists. Takes about two microseconds a file: not for the reactor.
    ///
    /// # Errors
    /// Kind `Corrupt` for a manifest that cannot be read, or in which two files claim the same bytes.
    pub fn of(manifest: &Manifest) -> Result<Self> {
        let mut image = Self { packs: manifest.packs().to_vec(), ..Self::default() };
        let (mut rows, mut pieces) = (Runs::default(), Runs::default());
        for entry in manifest.entries() {
            let entry = entry.map_err(|e| Error::corrupt(e.to_string()).source(e))?;
            image.push(&entry, &mut rows, &mut pieces)?;
        }
        (image.rows, image.pieces) = (rows.sort()?, pieces.sort()?);
        image.check_claims()?;
        Ok(image)
    }

    fn push(&mut self, entry: &FileEntry, rows: &mut Runs, pieces: &mut Runs) -> Result<()> {
        let path = entry.path.as_bytes();
        let mode = entry.mode & 0o7777;
        let (kind, size, target) = match &entry.kind {
            FileKind::File { size, .. } => (RowKind::File, *size, &[][..]),
            FileKind::Directory => (RowKind::Directory, 0, &[][..]),
            FileKind::Symlink { target } => (RowKind::Symlink, 0, target.as_slice()),
        };
        let mut row = Writer::default();
        row.u8(kind.code()).u32(mode).u64(size).u64(entry.mtime.cast_unsigned()).bytes(target);
        rows.push(path, &row.0)?;
        let FileKind::File { extents, checksum, .. } = &entry.kind else { return Ok(()) };
        self.bytes = self.bytes.saturating_add(size);
        let crc = checksum.as_deref().and_then(crc_of);
        let mut at = 0_u64;
        for extent in extents {
            let mut key = [0; PIECE_KEY];
            let (pack, offset) = key.split_at_mut(4);
            pack.copy_from_slice(&extent.pack.to_be_bytes());
            offset.copy_from_slice(&extent.offset.to_be_bytes());
            let mut piece = Writer::default();
            piece.u64(at).u64(extent.len).u32(self.files).u32(mode).u64(size);
            piece
                .u64(entry.mtime.cast_unsigned())
                .flag(crc.is_some())
                .u32(crc.unwrap_or_default())
                .bytes(path);
            pieces.push(&key, &piece.0)?;
            at = at.saturating_add(extent.len);
        }
        // The manifest bounds extents, not files; beyond this a number would not be a file's own.
        self.files = self.files.checked_add(1).ok_or_else(|| Error::corrupt("it lists too many files"))?;
        Ok(())
    }

    /// No two files claim the same bytes of a pack.
    fn check_claims(&self) -> Result<()> {
        let (mut rows, mut claimed) = (self.pieces.rows(), (0, 0));
        while let Some((key, value)) = rows.next()? {
            let Some(next) = Claim::read(key, value) else { return Err(unreadable()) };
            if next.pack == claimed.0 && next.offset < claimed.1 {
                let path = String::from_utf8_lossy(next.path).into_owned();
                return Err(Error::corrupt(format!(
                    "{path:?} and another file claim the same bytes of a pack"
                )));
            }
            claimed = (next.pack, next.offset.saturating_add(next.len));
        }
        Ok(())
    }

    /// All files, directories and links, by path.
    pub fn rows(&self) -> ImageRows<'_> {
        ImageRows(self.rows.rows())
    }

    /// All pieces, by pack and offset.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces { rows: self.pieces.rows(), ahead: None }
    }

    /// The packs, in the order of the manifest.
    pub fn packs(&self) -> &[PackLine] {
        &self.packs
    }

    /// How many regular files.
    pub fn files(&self) -> u64 {
        self.files.into()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Pack and offset, big-endian: their order as bytes is their order.
const PIECE_KEY: usize = 12;

/// Rows by path.
#[derive(Debug)]
pub struct ImageRows<'a>(Rows<'a>);

impl ImageRows<'_> {
    /// The next one.
    ///
    /// # Errors
    /// If there is no memory to open it.
    pub fn next_row(&mut self) -> Result<Option<Row<'_>>> {
        let Some((path, value)) = self.0.next()? else { return Ok(None) };
        read_row(path, value).ok_or_else(unreadable).map(Some)
    }
}

fn read_row<'a>(path: &'a [u8], value: &'a [u8]) -> Option<Row<'a>> {
    let mut reader = Reader::new(value);
    let kind = RowKind::of(reader.u8()?)?;
    let (mode, size, mtime) = (reader.u32()?, reader.u64()?, reader.u64()?.cast_signed());
    Some(Row { path, kind, mode, size, mtime, target: reader.rest() })
}

/// Pieces by pack and offset.
#[derive(Debug)]
pub struct Pieces<'a> {
    rows: Rows<'a>,
    /// What was looked at and not taken.
    ahead: Option<Piece>,
}

impl Pieces<'_> {
    /// The next piece of a file whose path is `wanted`; it stays the next one.
    ///
    /// # Errors
    /// If there is no memory to open it.
    pub fn peek(&mut self, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Option<&Piece>> {
        while self.ahead.is_none() {
            let Some((key, value)) = self.rows.next()? else { return Ok(None) };
            let claim = Claim::read(key, value).ok_or_else(unreadable)?;
            if wanted(claim.path) {
                self.ahead = Some(claim.piece());
            }
        }
        Ok(self.ahead.as_ref())
    }

    /// Takes the next wanted piece, if it lies in the pack at index `pack` and begins before `end`.
    ///
    /// # Errors
    /// As [`Pieces::peek`].
    pub fn next_before(
        &mut self,
        pack: u32,
        end: u64,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Option<Piece>> {
        let here = self.peek(wanted)?.is_some_and(|piece| piece.pack == pack && piece.offset < end);
        Ok(if here { self.ahead.take() } else { None })
    }

    /// All pieces of the pack at index `pack`; those of packs before it are passed over.
    ///
    /// # Errors
    /// As [`Pieces::peek`].
    pub fn of_pack(&mut self, pack: u32) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        while self.peek(&|_| true)?.is_some_and(|piece| piece.pack <= pack) {
            pieces.extend(self.ahead.take().filter(|piece| piece.pack == pack));
        }
        Ok(pieces)
    }
}

/// A piece as it is held.
#[derive(Debug, Clone, Copy)]
struct Claim<'a> {
    pack: u32,
    offset: u64,
    at: u64,
    len: u64,
    number: u32,
    mode: u32,
    size: u64,
    mtime: i64,
    crc: Option<u32>,
    path: &'a [u8],
}

impl<'a> Claim<'a> {
    fn read(key: &[u8], value: &'a [u8]) -> Option<Self> {
        let (pack, offset) = key.split_first_chunk::<4>()?;
        let mut reader = Reader::new(value);
        Some(Self {
            pack: u32::from_be_bytes(*pack),
            offset: u64::from_be_bytes(*offset.first_chunk()?),
            at: reader.u64()?,
            len: reader.u64()?,
            number: reader.u32()?,
            mode: reader.u32()?,
            size: reader.u64()?,
            mtime: reader.u64()?.cast_signed(),
            crc: {
                let known = reader.flag()?;
                let crc = reader.u32()?;
                known.then_some(crc)
            },
            path: reader.rest(),
        })
    }

    fn piece(&self) -> Piece {
        let (number, mode, size, mtime, crc) = (self.number, self.mode, self.size, self.mtime, self.crc);
        let file = Arc::new(File { path: self.path.to_vec(), number, mode, size, mtime, crc });
        Piece { pack: self.pack, offset: self.offset, at: self.at, len: self.len, file }
    }
}

/// `CRC32C:1a2b3c4d`: the bytes of the checksum in the order of PostgreSQL's manifest, lowest first.
fn crc_of(checksum: &str) -> Option<u32> {
    let bytes = crate::codec::unhex(checksum.strip_prefix("CRC32C:")?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// A manifest in memory, as a backup would have written it: for the tests of what reads one.
#[cfg(test)]
pub(super) fn manifest_of(
    packs: &[PackLine],
    entries: &[FileEntry],
) -> std::result::Result<Manifest, crate::repo::manifest::ManifestError> {
    use crate::codec::Compression;
    use crate::repo::manifest::{ManifestHeader, ManifestWriter};
    let header = ManifestHeader {
        backup: "20251017-103000-1a2b3c4d".parse().unwrap(),
        system: crate::wal::SystemId::new(7),
    };
    let mut writer = ManifestWriter::new(&header, packs, Compression::Stored)?;
    for entry in entries {
        writer.push(entry)?;
    }
    Manifest::open(writer.finish()?.chunks.concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Digest;
    use crate::error::Kind;
    use crate::repo::manifest::{Extent, Path};
    use crate::repo::pack::PackInfo;

    /// Path, size, extents.
    type Told<'a> = (&'a str, u64, &'a [(u32, u64, u64)]);

    fn pushed(files: &[Told<'_>]) -> Result<Image> {
        let info = PackInfo {
            stored: 9000,
            plain: 8000,
            frames: 1,
            digest: Digest::of(b""),
            table: Digest::of(b""),
        };
        let backup = || "20251017-103000-1a2b3c4d".parse().unwrap();
        let packs: Vec<_> = (0..4).map(|number| PackLine { backup: backup(), number, info }).collect();
        let entry = |(path, size, extents): &Told<'_>| FileEntry {
            path: Path::new(*path).unwrap(),
            kind: FileKind::File {
                size: *size,
                extents: extents
                    .iter()
                    .map(|(pack, offset, len)| Extent { pack: *pack, offset: *offset, len: *len })
                    .collect(),
                checksum: Some("CRC32C:0102ff00".to_owned()),
            },
            mode: 0o640,
            mtime: -7,
            uid: 1,
            gid: 1,
            user: String::new(),
            group: String::new(),
        };
        let entries: Vec<_> = files.iter().map(entry).collect();
        let manifest = manifest_of(&packs, &entries).map_err(|e| Error::corrupt(e.to_string()))?;
        Image::of(&manifest)
    }

    #[test]
    fn pieces_are_ordered_for_fetching_and_know_their_files() {
        let image = pushed(&[("a", 12, &[(3, 512, 8), (0, 0, 4)]), ("base/1", 4, &[(0, 512, 4)])]).unwrap();
        let mut pieces = image.pieces();
        let found = [0, 3].map(|pack| pieces.of_pack(pack).unwrap());
        let told = found.each_ref().map(|run| {
            run.iter().map(|p| (p.pack, p.file.number, p.offset, p.at, p.len)).collect::<Vec<_>>()
        });
        assert_eq!(told, [vec![(0, 0, 0, 8, 4), (0, 1, 512, 0, 4)], vec![(3, 0, 512, 0, 8)]]);
        let file = &found[1][0].file;
        assert_eq!((file.path.as_slice(), file.size, file.crc), (&b"a"[..], 12, Some(0x00FF_0201)));
        assert_eq!((image.bytes(), image.files()), (16, 2));
        let (mut pieces, in_base) = (image.pieces(), |path: &[u8]| path.starts_with(b"base"));
        assert_eq!(pieces.next_before(0, 512, &in_base).unwrap(), None, "it begins at 512");
        assert_eq!(pieces.next_before(0, 513, &in_base).unwrap().unwrap().file.path, b"base/1");
        assert_eq!(pieces.peek(&in_base).unwrap(), None);
    }

    #[test]
    fn rows_come_by_path_with_what_the_manifest_says() {
        let image = pushed(&[("a", 4, &[(0, 0, 4)]), ("b", 0, &[])]).unwrap();
        let mut rows = image.rows();
        let row = |path, size| Row { path, kind: RowKind::File, mode: 0o640, size, mtime: -7, target: &[] };
        assert_eq!(rows.next_row().unwrap(), Some(row(b"a", 4)));
        assert_eq!(rows.next_row().unwrap(), Some(row(b"b", 0)));
        assert_eq!(rows.next_row().unwrap(), None);
    }

    #[test]
    fn two_files_cannot_claim_the_same_bytes() {
        let refused = pushed(&[("a", 4, &[(0, 0, 4)]), ("b", 4, &[(0, 3, 4)])]).unwrap_err();
        assert_eq!(refused.kind(), Kind::Corrupt);
        assert!(refused.message().contains("\"b\" and another file"), "{refused}");
        assert_eq!(pushed(&[("a", 5, &[(0, 0, 4)])]).unwrap_err().kind(), Kind::Corrupt);
    }
}
