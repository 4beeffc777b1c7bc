//! The files of a backup, held small: what the manifest says, ordered for fetching.
//!
//! ```text
//!  manifest (by path)            image
//!  base/5/1259  pack 3 @ 0  ──►  rows, one per file, by path        names in one buffer
//!  base/5/2619  pack 0 @ 9  ──►  pieces, by pack and offset         what one ranged read brings belongs together
//! ```
//! About 100 bytes a file, so that the bound on memory (DESIGN 6) holds for a million of them. The manifest's reader has made sure
//! that paths ascend and stay inside, and that extents add up; here no two files may claim the same bytes of a pack. A manifest
//! that says otherwise is damaged, and nothing is written. Pure.

use crate::repo::manifest::{FileEntry, FileKind, Manifest, ManifestError, PackLine};

/// Bytes of names that are held at most.
const MAX_NAME_BYTES: usize = 1 << 30;
/// Files and pieces that are held at most (REPOSITORY.md 4 allows two million extents).
const MAX_ROWS: usize = 16 << 20;

/// What a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; what it points to is its target.
    Symlink,
}

/// One file, directory or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// What it is.
    pub kind: RowKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of a file.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// CRC-32C of a file's bytes, where the server's manifest knows it.
    pub crc: Option<u32>,
    name_at: usize,
    name_len: u16,
    target_len: u16,
}

/// A run of bytes of a file, and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index of the pack in [`Image::packs`].
    pub pack: u32,
    /// Index of the file in [`Image::rows`].
    pub row: u32,
    /// Offset in the pack's plain bytes.
    pub offset: u64,
    /// Offset in the file.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

impl Piece {
    /// First byte after it, in the pack.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A manifest that no backup has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Two files claim the same bytes of a pack.
    #[error("{0:?} and another file claim the same bytes of a pack")]
    Overlap(String),
    /// More than is held.
    #[error("the manifest holds more files than this pitr can restore")]
    TooMany,
}

/// All files of a backup.
#[derive(Debug, Default)]
pub struct Image {
    names: Vec<u8>,
    rows: Vec<Row>,
    pieces: Vec<Piece>,
    packs: Vec<PackLine>,
}

impl Image {
    /// The files that `manifest` lists.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn of(manifest: &Manifest) -> Result<Self, ImageError> {
        let mut image = Self { packs: manifest.packs().to_vec(), ..Self::default() };
        for entry in manifest.entries() {
            image.push(&entry?)?;
        }
        image.seal()
    }

    fn push(&mut self, entry: &FileEntry) -> Result<(), ImageError> {
        let index = u32::try_from(self.rows.len()).map_err(|_| ImageError::TooMany)?;
        let (kind, size, target, crc) = match &entry.kind {
            FileKind::File { size, extents, checksum } => {
                let mut at = 0_u64;
                for extent in extents {
                    let (pack, offset, len) = (extent.pack, extent.offset, extent.len);
                    self.pieces.push(Piece { pack, row: index, offset, at, len });
                    at = at.saturating_add(len);
                }
                (RowKind::File, *size, &[][..], checksum.as_deref().and_then(crc_of))
            }
            FileKind::Directory => (RowKind::Directory, 0, &[][..], None),
            FileKind::Symlink { target } => (RowKind::Symlink, 0, target.as_slice(), None),
        };
        let short = |bytes: &[u8]| u16::try_from(bytes.len()).map_err(|_| ImageError::TooMany);
        let path = entry.path.as_bytes();
        self.rows.push(Row {
            kind,
            mode: entry.mode & 0o7777,
            size,
            mtime: entry.mtime,
            crc,
            name_at: self.names.len(),
            name_len: short(path)?,
            target_len: short(target)?,
        });
        self.names.extend_from_slice(path);
        self.names.extend_from_slice(target);
        let full = self.names.len() > MAX_NAME_BYTES || self.rows.len().max(self.pieces.len()) > MAX_ROWS;
        if full { Err(ImageError::TooMany) } else { Ok(()) }
    }

    /// Orders the pieces.
    fn seal(mut self) -> Result<Self, ImageError> {
        self.pieces.sort_unstable_by_key(|p| (p.pack, p.offset));
        let overlap = |w: &[Piece; 2]| w[0].pack == w[1].pack && w[0].end() > w[1].offset;
        if let Some([_, second]) = self.pieces.array_windows().find(|w| overlap(w)) {
            let path = self.row(second.row).map(|r| String::from_utf8_lossy(self.path(r)).into_owned());
            return Err(ImageError::Overlap(path.unwrap_or_default()));
        }
        Ok(self)
    }

    /// All files, by path.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The file a piece belongs to.
    pub fn row(&self, index: u32) -> Option<&Row> {
        self.rows.get(usize::try_from(index).ok()?)
    }

    /// All pieces, by pack and offset.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The packs, in the order of the manifest.
    pub fn packs(&self) -> &[PackLine] {
        &self.packs
    }

    /// The path of a row.
    pub fn path(&self, row: &Row) -> &[u8] {
        self.name(row.name_at, row.name_len)
    }

    /// Where a link points.
    pub fn target(&self, row: &Row) -> &[u8] {
        self.name(row.name_at.saturating_add(usize::from(row.name_len)), row.target_len)
    }

    /// The index of the file called `path`.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let at = self.rows.binary_search_by(|row| self.path(row).cmp(path)).ok()?;
        u32::try_from(at).ok()
    }

    /// The rows below the directory `dir` (with its slash).
    pub fn below<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = &'a Row> + 'a {
        let from = self.rows.partition_point(|row| self.path(row) < dir);
        self.rows.iter().skip(from).take_while(move |row| self.path(row).starts_with(dir))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.rows.iter().fold(0, |sum, row| sum.saturating_add(row.size))
    }

    fn name(&self, at: usize, len: u16) -> &[u8] {
        self.names.get(at..at.saturating_add(usize::from(len))).unwrap_or_default()
    }
}

/// `CRC32C:1a2b3c4d`: the bytes of the checksum in the order of PostgreSQL's manifest, lowest first.
fn crc_of(checksum: &str) -> Option<u32> {
    let bytes = crate::codec::unhex(checksum.strip_prefix("CRC32C:")?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// A manifest in memory, as a backup would have written it: for the tests of what reads one.
#[cfg(test)]
pub(super) fn manifest_of(packs: &[PackLine], entries: &[FileEntry]) -> Result<Manifest, ManifestError> {
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
    use crate::repo::manifest::{Extent, Path};
    use crate::repo::pack::PackInfo;

    /// Path, size, extents.
    type Told<'a> = (&'a str, u64, &'a [(u32, u64, u64)]);

    fn pushed(files: &[Told<'_>]) -> Result<Image, ImageError> {
        let info = PackInfo { stored: 9000, plain: 8000, frames: 1, digest: Digest::of(b"") };
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
            mtime: 7,
            uid: 1,
            gid: 1,
            user: String::new(),
            group: String::new(),
        };
        Image::of(&manifest_of(&packs, &files.iter().map(entry).collect::<Vec<_>>())?)
    }

    #[test]
    fn pieces_are_ordered_for_fetching_and_know_their_files() {
        let image = pushed(&[("a", 12, &[(3, 512, 8), (0, 0, 4)]), ("base/1", 4, &[(0, 512, 4)])]).unwrap();
        let pieces: Vec<_> = image.pieces().iter().map(|p| (p.pack, p.row, p.offset, p.at, p.len)).collect();
        assert_eq!(pieces, [(0, 0, 0, 8, 4), (0, 1, 512, 0, 4), (3, 0, 512, 0, 8)]);
        assert_eq!((image.find(b"base/1"), image.find(b"base")), (Some(1), None));
        assert_eq!((image.below(b"base/").count(), image.bytes()), (1, 16));
        let row = image.row(0).unwrap();
        assert_eq!((row.crc, row.mode, image.path(row)), (Some(0x00FF_0201), 0o640, &b"a"[..]));
    }

    #[test]
    fn two_files_cannot_claim_the_same_bytes() {
        let refused = pushed(&[("a", 4, &[(0, 0, 4)]), ("b", 4, &[(0, 3, 4)])]).unwrap_err();
        assert_eq!(refused, ImageError::Overlap("b".into()));
        assert!(matches!(pushed(&[("a", 5, &[(0, 0, 4)])]), Err(ImageError::Manifest(_))));
    }
}
