//! The manifest of a backup: every file of the cluster, and where each of its bytes lies.
//!
//! ```text
//!  frame 0..      header line, one line per pack              zstd frames of about 1 MiB of JSON Lines
//!  frame n..      one line per file, sorted by path bytes     zstd -d manifest.jsonl.zst | jq .
//!  index          53 2A 4D 18 │ length │ entries │ trailer    which frame holds which paths
//! ```
//! An extent is a range of the plain stream of a pack, the backup's own or an earlier backup's; so a manifest is a full map
//! whatever the kind of backup. Invariants, kept by the writer and checked by the reader: paths ascend strictly and stay inside
//! the data directory; extents of a file add up to its size and lie inside their packs; at most [`MAX_FILE_EXTENTS`] per file
//! and [`MAX_EXTENTS`] in all. Written and read as a stream. Pure.

mod index;
mod line;

use std::fmt;

use bytes::Bytes;

pub use index::{FrameIndex, IndexEntry};

use super::path::BackupId;
use crate::codec::{CodecError, Compression, Digest, Hasher, compress, decompress, len_u64, unhex};
use crate::wal::SystemId;

/// Plain bytes at which a frame is closed.
pub const FRAME_BYTES: usize = 1 << 20;
/// Longest line.
pub const MAX_LINE: usize = 256 << 10;
/// Most extents of a file; one that needs more is stored anew.
pub const MAX_FILE_EXTENTS: usize = 1000;
/// Most extents of a manifest; a backup that needs more is made a full one.
pub const MAX_EXTENTS: u64 = 2_000_000;
/// Most pack lines: a backup's own and the foreign ones it refers to.
pub const MAX_PACK_LINES: u32 = 1_000_000;
/// Longest path.
pub const MAX_PATH: usize = 4096;

/// A manifest that cannot be read, or one that would break a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The index is damaged.
    #[error("the manifest's index is damaged: {0}")]
    Index(&'static str),
    /// A frame is damaged.
    #[error("the manifest's frame at {offset} is damaged: {cause}")]
    Frame {
        /// Where it starts.
        offset: u64,
        /// What is wrong.
        cause: CodecError,
    },
    /// A frame holds other bytes than were written.
    #[error("the manifest's frame at {offset} holds other bytes than were written")]
    Digest {
        /// Where it starts.
        offset: u64,
    },
    /// A line is not what belongs there.
    #[error("a line of the manifest is malformed: {0}")]
    Line(String),
    /// Paths do not ascend.
    #[error("{0} does not come after the path before it")]
    Order(Path),
    /// Extents do not add up to the file's size, or leave their pack.
    #[error("the extents of {0} do not add up to the file")]
    Extents(Path),
    /// More extents than a file or a manifest may have.
    #[error("{0} needs more extents than a manifest may hold")]
    TooManyExtents(Path),
    /// Written by a newer pitr.
    #[error("the manifest has format {0}, this pitr reads up to 1")]
    NewerFormat(u32),
}

/// A path relative to the data directory: not empty, not absolute, without `.`, `..` and empty parts. Bytes, since file names of
/// PostgreSQL are in no particular encoding.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Vec<u8>);

impl Path {
    /// The path with these bytes.
    ///
    /// # Errors
    /// [`ManifestError::Line`] for one that leaves the data directory or is none.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, ManifestError> {
        let bytes = bytes.into();
        let part = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
        if bytes.len() <= MAX_PATH && !bytes.contains(&0) && bytes.split(|b| *b == b'/').all(part) {
            Ok(Self(bytes))
        } else {
            let shown: String = String::from_utf8_lossy(&bytes).chars().take(200).collect();
            Err(ManifestError::Line(format!("{shown:?} is not a path inside the data directory")))
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHeader {
    /// The backup.
    pub backup: BackupId,
    /// The system identifier.
    pub system: SystemId,
}

/// A pack that extents refer to, by its place among these lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackLine {
    /// The backup whose pack it is.
    pub backup: BackupId,
    /// Its number there.
    pub number: u32,
    /// What a reader must know of it.
    pub info: super::pack::PackInfo,
}

/// A range of the plain stream of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Which pack: index among the manifest's pack lines.
    pub pack: u32,
    /// First plain byte.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File {
        /// Its size.
        size: u64,
        /// Where its bytes are, in order.
        extents: Vec<Extent>,
        /// PostgreSQL's own checksum of it, as its manifest says: `CRC32C:1a2b3c4d`.
        checksum: Option<String>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points; bytes, of any form.
        target: Vec<u8>,
    },
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its path.
    pub path: Path,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Owner's number.
    pub uid: u32,
    /// Group's number.
    pub gid: u32,
    /// Owner's name, empty if unknown.
    pub user: String,
    /// Group's name, empty if unknown.
    pub group: String,
}

/// Joins extents that continue each other.
pub fn coalesce(extents: &mut Vec<Extent>) {
    extents.dedup_by(|next, last| {
        let continues = last.pack == next.pack && last.offset.checked_add(last.len) == Some(next.offset);
        if continues {
            last.len = last.len.saturating_add(next.len);
        }
        continues
    });
}

/// What the rules about extents need to know of all lines before.
#[derive(Debug, Clone, Default)]
struct Rules {
    pack_sizes: Vec<u64>,
    last: Option<Path>,
    files: u64,
    extents: u64,
}

impl Rules {
    fn admit(&mut self, entry: &FileEntry) -> Result<(), ManifestError> {
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return Err(ManifestError::Order(entry.path.clone()));
        }
        if let FileKind::File { size, extents, .. } = &entry.kind {
            self.extents = self.extents.saturating_add(u64::try_from(extents.len()).unwrap_or(u64::MAX));
            if extents.len() > MAX_FILE_EXTENTS || self.extents > MAX_EXTENTS {
                return Err(ManifestError::TooManyExtents(entry.path.clone()));
            }
            let lies_inside = |extent: &Extent| {
                let pack = usize::try_from(extent.pack).ok().and_then(|n| self.pack_sizes.get(n));
                let end = extent.offset.checked_add(extent.len);
                extent.len > 0 && pack.is_some_and(|plain| end.is_some_and(|end| end <= *plain))
            };
            let total = extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.len));
            if total != Some(*size) || !extents.iter().all(lies_inside) {
                return Err(ManifestError::Extents(entry.path.clone()));
            }
        }
        self.files = self.files.saturating_add(1);
        self.last = Some(entry.path.clone());
        Ok(())
    }
}

/// Writes a manifest.
#[derive(Debug)]
pub struct ManifestWriter {
    compression: Compression,
    rules: Rules,
    frame: Vec<u8>,
    first: Vec<u8>,
    chunks: Vec<Bytes>,
    stored: u64,
    index: FrameIndex,
}

/// A finished manifest.
#[derive(Debug, Clone)]
pub struct ManifestObject {
    /// All its bytes.
    pub chunks: Vec<Bytes>,
    /// Their number.
    pub stored: u64,
    /// BLAKE3 of them.
    pub digest: Digest,
    /// Files in it.
    pub files: u64,
    /// Extents in it.
    pub extents: u64,
}

impl ManifestWriter {
    /// A manifest that refers to `packs`.
    ///
    /// # Errors
    /// [`ManifestError`] if there are too many packs.
    pub fn new(
        header: &ManifestHeader,
        packs: &[PackLine],
        compression: Compression,
    ) -> Result<Self, ManifestError> {
        let count = u32::try_from(packs.len()).ok().filter(|n| *n <= MAX_PACK_LINES);
        let count = count.ok_or_else(|| ManifestError::Line("too many packs".to_owned()))?;
        let mut writer = Self {
            compression,
            rules: Rules { pack_sizes: packs.iter().map(|p| p.info.plain).collect(), ..Rules::default() },
            frame: Vec::new(),
            first: Vec::new(),
            chunks: Vec::new(),
            stored: 0,
            index: FrameIndex::default(),
        };
        writer.line(&line::header(header, count))?;
        for pack in packs {
            writer.line(&line::pack(pack))?;
        }
        writer.close_frame()?;
        Ok(writer)
    }

    /// Adds a file; paths must ascend.
    ///
    /// # Errors
    /// [`ManifestError`] for an entry that breaks a rule; nothing of it is then written.
    pub fn push(&mut self, entry: &FileEntry) -> Result<(), ManifestError> {
        self.rules.admit(entry)?;
        if self.frame.is_empty() {
            self.first = entry.path.as_bytes().to_vec();
        }
        self.line(&line::file(entry))
    }

    fn line(&mut self, line: &str) -> Result<(), ManifestError> {
        if line.len() >= MAX_LINE {
            return Err(ManifestError::Line(format!("it would have {} bytes", line.len())));
        }
        self.frame.extend_from_slice(line.as_bytes());
        self.frame.push(b'\n');
        if self.frame.len() >= FRAME_BYTES { self.close_frame() } else { Ok(()) }
    }

    fn close_frame(&mut self) -> Result<(), ManifestError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let offset = self.stored;
        let stored = compress(&self.frame, self.compression)
            .map_err(|cause| ManifestError::Frame { offset, cause })?;
        let small = |n: usize| u32::try_from(n).map_err(|_| ManifestError::Index("a frame is too large"));
        self.index.entries.push(IndexEntry {
            offset,
            stored: small(stored.len())?,
            plain: small(self.frame.len())?,
            digest: Digest::of(&self.frame),
            first: std::mem::take(&mut self.first),
        });
        self.stored = self.stored.saturating_add(len_u64(&stored));
        self.chunks.push(stored.into());
        self.frame.clear();
        Ok(())
    }

    /// The object.
    ///
    /// # Errors
    /// [`ManifestError`] if zstd fails.
    pub fn finish(mut self) -> Result<ManifestObject, ManifestError> {
        self.close_frame()?;
        (self.index.files, self.index.extents) = (self.rules.files, self.rules.extents);
        let index = Bytes::from(self.index.encode()?);
        let stored = self.stored.saturating_add(len_u64(&index));
        self.chunks.push(index);
        let mut hasher = Hasher::new();
        self.chunks.iter().for_each(|chunk| hasher.update(chunk));
        let (files, extents) = (self.rules.files, self.rules.extents);
        Ok(ManifestObject { chunks: self.chunks, stored, digest: hasher.digest(), files, extents })
    }
}

/// A manifest whose stored bytes are at hand; one frame at a time is opened.
#[derive(Debug, Clone)]
pub struct Manifest {
    object: Bytes,
    index: FrameIndex,
    header: ManifestHeader,
    packs: Vec<PackLine>,
    first_file_frame: usize,
}

impl Manifest {
    /// Opens the manifest that `object` is.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn open(object: Bytes) -> Result<Self, ManifestError> {
        let index = FrameIndex::parse(&object)?;
        let first_file_frame = index.entries.partition_point(|e| e.first.is_empty());
        let mut head = Head::default();
        for entry in index.entries.iter().take(first_file_frame) {
            head.read(&open_frame(&object, entry)?)?;
        }
        let (header, packs) = head.finish()?;
        Ok(Self { object, index, header, packs, first_file_frame })
    }

    /// Its first line.
    pub fn header(&self) -> &ManifestHeader {
        &self.header
    }

    /// The packs extents refer to.
    pub fn packs(&self) -> &[PackLine] {
        &self.packs
    }

    /// Files in it.
    pub fn files(&self) -> u64 {
        self.index.files
    }

    /// All files in order of their paths. After an error nothing more comes.
    pub fn entries(&self) -> Entries<'_> {
        let pack_sizes = self.packs.iter().map(|p| p.info.plain).collect();
        Entries {
            manifest: self,
            rules: Rules { pack_sizes, ..Rules::default() },
            next_frame: self.first_file_frame,
            frame: Vec::new().into_iter(),
            ended: false,
        }
    }

    /// The entry of `path`; opens one frame.
    ///
    /// # Errors
    /// [`ManifestError`] if that frame is damaged.
    pub fn find(&self, path: &Path) -> Result<Option<FileEntry>, ManifestError> {
        let after = self.index.entries.partition_point(|e| e.first.as_slice() <= path.as_bytes());
        let Some(entry) = after.checked_sub(1).filter(|n| *n >= self.first_file_frame) else {
            return Ok(None);
        };
        let Some(entry) = self.index.entries.get(entry) else { return Ok(None) };
        let found = parse_frame(&self.object, entry)?.into_iter().find(|e| e.path == *path);
        let Some(found) = found else { return Ok(None) };
        let pack_sizes = self.packs.iter().map(|p| p.info.plain).collect();
        Rules { pack_sizes, ..Rules::default() }.admit(&found)?;
        Ok(Some(found))
    }
}

/// Iterates over the files of a manifest.
#[derive(Debug)]
pub struct Entries<'a> {
    manifest: &'a Manifest,
    rules: Rules,
    next_frame: usize,
    frame: std::vec::IntoIter<FileEntry>,
    ended: bool,
}

impl Entries<'_> {
    fn step(&mut self) -> Result<Option<FileEntry>, ManifestError> {
        loop {
            if let Some(entry) = self.frame.next() {
                self.rules.admit(&entry)?;
                return Ok(Some(entry));
            }
            let Some(frame) = self.manifest.index.entries.get(self.next_frame) else {
                let whole = self.rules.files == self.manifest.index.files;
                return if whole {
                    Ok(None)
                } else {
                    Err(ManifestError::Index("its number of files is wrong"))
                };
            };
            self.next_frame = self.next_frame.saturating_add(1);
            self.frame = parse_frame(&self.manifest.object, frame)?.into_iter();
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<FileEntry, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step().transpose();
        self.ended = !matches!(step, Some(Ok(_)));
        step
    }
}

/// The lines before the files. A frame is let go before the next one is opened, and no more packs are kept than were announced.
#[derive(Default)]
struct Head {
    header: Option<(ManifestHeader, u32)>,
    packs: Vec<PackLine>,
}

impl Head {
    fn read(&mut self, frame: &[u8]) -> Result<(), ManifestError> {
        for line in frame.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let Some((_, count)) = &self.header else {
                self.header = Some(line::parse_header(line)?);
                continue;
            };
            if u32::try_from(self.packs.len()).is_ok_and(|listed| listed >= *count) {
                return Err(ManifestError::Line(format!("{count} packs are announced, and more are listed")));
            }
            self.packs.push(line::parse_pack(line)?);
        }
        Ok(())
    }

    fn finish(self) -> Result<(ManifestHeader, Vec<PackLine>), ManifestError> {
        let none = || ManifestError::Line("there is no line that says whose manifest it is".to_owned());
        let (header, count) = self.header.ok_or_else(none)?;
        if u32::try_from(self.packs.len()) != Ok(count) {
            let listed = self.packs.len();
            return Err(ManifestError::Line(format!("{count} packs are announced, {listed} listed")));
        }
        Ok((header, self.packs))
    }
}

fn open_frame(object: &[u8], entry: &IndexEntry) -> Result<Vec<u8>, ManifestError> {
    let offset = entry.offset;
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let len = usize::try_from(entry.stored).unwrap_or(usize::MAX);
    let stored = object.get(start..).and_then(|rest| rest.get(..len));
    let stored = stored.ok_or(ManifestError::Index("a frame lies outside the object"))?;
    let plain =
        decompress(stored, entry.plain.into()).map_err(|cause| ManifestError::Frame { offset, cause })?;
    let whole = len_u64(&plain) == u64::from(entry.plain) && Digest::of(&plain) == entry.digest;
    if whole { Ok(plain) } else { Err(ManifestError::Digest { offset }) }
}

fn parse_frame(object: &[u8], entry: &IndexEntry) -> Result<Vec<FileEntry>, ManifestError> {
    let plain = open_frame(object, entry)?;
    let lines = plain.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    let entries = lines.map(line::parse_file).collect::<Result<Vec<_>, _>>()?;
    if entries.first().is_none_or(|e| e.path.as_bytes() != entry.first) {
        return Err(ManifestError::Index("a frame does not begin with the path it should"));
    }
    Ok(entries)
}

/// Text if it is UTF-8, else hexadecimal: one of the two members is present.
fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(crate::codec::hex(bytes))),
    }
}

fn bytes_of(text: Option<String>, hex: Option<&str>) -> Option<Vec<u8>> {
    match (text, hex) {
        (Some(text), None) => Some(text.into_bytes()),
        // A path that is UTF-8 has one spelling.
        (None, Some(hex)) => unhex(hex).filter(|bytes| std::str::from_utf8(bytes).is_err()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
