//! PostgreSQL's own `backup_manifest`: the list of a base backup's files with sizes and checksums.
//!
//! ```text
//!  { "PostgreSQL-Backup-Manifest-Version": 2,
//!  "System-Identifier": 7712244905592793365,            version 2 (17+) only
//!  "Files": [
//!  { "Path": "base/1/112", "Size": 8192, ..., "Checksum-Algorithm": "CRC32C", "Checksum": "0fd4..." },
//!  ],
//!  "WAL-Ranges": [ { "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" } ],
//!  "Manifest-Checksum": "<64 hex>"}                     SHA-256 of every byte before this line
//! ```
//! [`ManifestReader`] takes the file in chunks of any size and gives out one entry at a time: linear time, and memory for one
//! entry and two lines (each at most [`MAX_ENTRY_BYTES`]) whatever the size of the cluster. Entries come before the checksum
//! is known: only a successful [`ManifestReader::finish`] makes them true. Unknown keys are errors, as they are to
//! `pg_verifybackup`. Source of truth: `backup_manifest.c`, `parse_manifest.c` of PostgreSQL 13 to 18.

mod json;

use std::fmt;

use sha2::{Digest, Sha256};

use crate::wal::{Lsn, SystemId, TimelineId};
use json::{Splitter, Token};

/// Longest entry, and longest line, that is read. A path has at most 1024 bytes, six times that when escaped.
pub const MAX_ENTRY_BYTES: usize = 64 * 1024;

/// Most WAL ranges: one for each timeline that a backup crosses.
const MAX_WAL_RANGES: usize = 10_000;

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not JSON of the shape that PostgreSQL writes.
    #[error("backup_manifest at byte {at}: {why}")]
    Syntax {
        /// Offset in the file.
        at: u64,
        /// What is wrong.
        why: String,
    },
    /// Written by a server that this program does not know.
    #[error("backup_manifest has version {0}, known are 1 (PostgreSQL 13 to 16) and 2 (17 and later)")]
    Version(u64),
    /// The checksum does not match.
    #[error("backup_manifest states checksum {stated}, its bytes give {computed}")]
    Checksum {
        /// In the file, in hexadecimal digits.
        stated: String,
        /// Of the bytes, in hexadecimal digits.
        computed: String,
    },
    /// The file ends early.
    #[error("backup_manifest ends early")]
    Incomplete,
    /// A path that leads out of the data directory.
    #[error("backup_manifest lists the path {0:?}, which is not inside a data directory")]
    Path(String),
    /// A path twice.
    #[error("backup_manifest lists {0:?} twice")]
    Duplicate(String),
}

/// Checksum algorithm of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// CRC-32C; four bytes in the memory order of the server.
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The algorithm that PostgreSQL calls `name`, without regard to case.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Crc32c, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// PostgreSQL's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }

    /// Bytes of a checksum.
    pub fn length(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// A checksum as the manifest states it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FileChecksum {
    /// Which algorithm.
    pub algorithm: Algorithm,
    /// Its bytes, in the order of the hexadecimal digits.
    pub bytes: Box<[u8]>,
}

impl fmt::Debug for FileChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `CRC32C:839206e3`.
impl fmt::Display for FileChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), hex(&self.bytes))
    }
}

/// A running checksum of one of PostgreSQL's algorithms. CRC-32C comes out in little-endian order, that of every server this
/// program supports.
#[derive(Debug, Clone)]
pub struct FileHasher(Hasher);

#[derive(Debug, Clone)]
enum Hasher {
    Crc32c(u32),
    Sha224(sha2::Sha224),
    Sha256(Sha256),
    Sha384(Box<sha2::Sha384>),
    Sha512(Box<sha2::Sha512>),
}

impl FileHasher {
    /// A checksum of no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Crc32c => Hasher::Crc32c(0),
            Algorithm::Sha224 => Hasher::Sha224(sha2::Sha224::new()),
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha384 => Hasher::Sha384(Box::default()),
            Algorithm::Sha512 => Hasher::Sha512(Box::default()),
        })
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Hasher::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Hasher::Sha224(sha) => sha.update(bytes),
            Hasher::Sha256(sha) => sha.update(bytes),
            Hasher::Sha384(sha) => sha.update(bytes),
            Hasher::Sha512(sha) => sha.update(bytes),
        }
    }

    /// The checksum of all bytes.
    pub fn finish(self) -> FileChecksum {
        let (algorithm, bytes): (_, Box<[u8]>) = match self.0 {
            Hasher::Crc32c(crc) => (Algorithm::Crc32c, Box::new(crc.to_le_bytes())),
            Hasher::Sha224(sha) => (Algorithm::Sha224, sha.finalize().as_slice().into()),
            Hasher::Sha256(sha) => (Algorithm::Sha256, sha.finalize().as_slice().into()),
            Hasher::Sha384(sha) => (Algorithm::Sha384, sha.finalize().as_slice().into()),
            Hasher::Sha512(sha) => (Algorithm::Sha512, sha.finalize().as_slice().into()),
        };
        FileChecksum { algorithm, bytes }
    }
}

/// A CRC-32C as a manifest writes it: the four bytes as they lie in the memory of a little-endian server.
pub fn crc32c_hex(crc: u32) -> String {
    hex(&crc.to_le_bytes())
}

/// One file of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory, `/` between its parts, never `..`. Bytes: PostgreSQL promises no encoding.
    pub path: Vec<u8>,
    /// Bytes in the file.
    pub size: u64,
    /// `YYYY-MM-DD HH:MM:SS GMT`.
    pub last_modified: Option<String>,
    /// Absent if the backup was taken with `MANIFEST_CHECKSUMS 'NONE'`.
    pub checksum: Option<FileChecksum>,
}

/// WAL that recovery of the backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// Its timeline.
    pub timeline: TimelineId,
    /// First byte needed.
    pub start: Lsn,
    /// The byte after the last.
    pub end: Lsn,
}

/// What a manifest says beside its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestSummary {
    /// 1 or 2.
    pub version: u64,
    /// The cluster, stated since version 2.
    pub system_id: Option<SystemId>,
    /// Number of files.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Newest timeline first.
    pub wal_ranges: Vec<WalRange>,
    /// The verified checksum of the manifest, 64 hexadecimal digits.
    pub checksum: String,
}

/// A whole manifest in memory: for tests and small clusters; [`ManifestReader`] has no such bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgManifest {
    /// All but the files.
    pub summary: ManifestSummary,
    /// Sorted by path.
    pub files: Vec<ManifestFile>,
}

impl PgManifest {
    /// Parses and verifies a manifest, and checks that no path occurs twice. Memory: a small multiple of the file.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut files = Vec::new();
        let mut reader = ManifestReader::new();
        reader.push(bytes, &mut |file| files.push(file))?;
        let summary = reader.finish()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        for (one, next) in files.iter().zip(files.iter().skip(1)) {
            if one.path == next.path {
                return Err(ManifestError::Duplicate(String::from_utf8_lossy(&one.path).into_owned()));
            }
        }
        Ok(Self { summary, files })
    }
}

/// Reads a manifest in chunks.
#[derive(Debug)]
pub struct ManifestReader {
    splitter: Splitter,
    hash: LineHash,
    version: Option<u64>,
    system_id: Option<SystemId>,
    seen: Seen,
    files: u64,
    bytes: u64,
    wal_ranges: Vec<WalRange>,
    stated: Option<String>,
}

#[derive(Debug, Default)]
struct Seen {
    files: bool,
    wal_ranges: bool,
}

impl Default for ManifestReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ManifestReader {
    /// A reader before the first byte.
    pub fn new() -> Self {
        Self {
            splitter: Splitter::new(MAX_ENTRY_BYTES),
            hash: LineHash::default(),
            version: None,
            system_id: None,
            seen: Seen::default(),
            files: 0,
            bytes: 0,
            wal_ranges: Vec::new(),
            stated: None,
        }
    }

    /// Takes the next bytes and gives `sink` every file that is complete. After an error the reader is spent.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(ManifestFile)) -> Result<(), ManifestError> {
        let at = self.splitter.offset();
        self.hash.push(bytes).map_err(|why| syntax(why).at(at))?;
        for &byte in bytes {
            if let Some(token) = self.splitter.push(byte)? {
                self.token(token, sink).map_err(|why| why.at(self.splitter.offset()))?;
            }
        }
        Ok(())
    }

    /// Ends the file and verifies its checksum.
    ///
    /// # Errors
    /// [`ManifestError::Incomplete`], [`ManifestError::Checksum`].
    pub fn finish(self) -> Result<ManifestSummary, ManifestError> {
        let (Some(version), Some(stated)) = (self.version, self.stated) else {
            return Err(ManifestError::Incomplete);
        };
        if !self.splitter.is_complete() || !self.seen.files || !self.seen.wal_ranges {
            return Err(ManifestError::Incomplete);
        }
        let computed = self.hash.finish()?;
        if computed != stated.to_ascii_lowercase() {
            return Err(ManifestError::Checksum { stated, computed });
        }
        Ok(ManifestSummary {
            version,
            system_id: self.system_id,
            files: self.files,
            bytes: self.bytes,
            wal_ranges: self.wal_ranges,
            checksum: computed,
        })
    }

    fn token(&mut self, token: Token, sink: &mut dyn FnMut(ManifestFile)) -> Result<(), Fault> {
        if self.stated.is_some() {
            return Err(syntax("something follows Manifest-Checksum"));
        }
        match token {
            Token::Value { key, raw } => self.value(&key, &raw),
            Token::ArrayStart { key } => {
                self.need_version()?;
                let seen = match key.as_str() {
                    "Files" => &mut self.seen.files,
                    "WAL-Ranges" => &mut self.seen.wal_ranges,
                    other => return Err(unknown(other)),
                };
                if std::mem::replace(seen, true) {
                    Err(syntax(&format!("{key} occurs twice")))
                } else {
                    Ok(())
                }
            }
            Token::Element { key, raw } if key == "Files" => {
                let file = json::file(&raw)?;
                self.files += 1;
                self.bytes = self.bytes.checked_add(file.size).ok_or_else(|| syntax("the sizes overflow"))?;
                sink(file);
                Ok(())
            }
            Token::Element { raw, .. } => {
                if self.wal_ranges.len() >= MAX_WAL_RANGES {
                    return Err(syntax("too many WAL ranges"));
                }
                self.wal_ranges.push(json::wal_range(&raw)?);
                Ok(())
            }
        }
    }

    fn value(&mut self, key: &str, raw: &[u8]) -> Result<(), Fault> {
        match key {
            "PostgreSQL-Backup-Manifest-Version" if self.version.is_none() => {
                let version = json::unsigned(raw)?;
                if !matches!(version, 1 | 2) {
                    return Err(Fault::Other(ManifestError::Version(version)));
                }
                self.version = Some(version);
            }
            "System-Identifier" if self.system_id.is_none() => {
                if self.need_version()? < 2 {
                    return Err(unknown(key));
                }
                self.system_id = Some(SystemId::new(json::unsigned(raw)?));
            }
            "Manifest-Checksum" => {
                if self.need_version()? >= 2 && self.system_id.is_none() {
                    return Err(syntax("System-Identifier is missing"));
                }
                let stated = json::string(raw)?;
                if stated.len() != 64 || !stated.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(syntax("Manifest-Checksum is not 64 hexadecimal digits"));
                }
                self.stated = Some(stated);
            }
            other => return Err(unknown(other)),
        }
        Ok(())
    }

    /// The version comes first, because it tells which keys there may be.
    fn need_version(&self) -> Result<u64, Fault> {
        self.version.ok_or_else(|| syntax("it does not begin with PostgreSQL-Backup-Manifest-Version"))
    }
}

/// A [`ManifestError`] whose place the reader fills in.
#[derive(Debug)]
enum Fault {
    Syntax(String),
    Other(ManifestError),
}

impl Fault {
    fn at(self, at: u64) -> ManifestError {
        match self {
            Self::Syntax(why) => ManifestError::Syntax { at, why },
            Self::Other(error) => error,
        }
    }
}

fn syntax(why: &str) -> Fault {
    Fault::Syntax(why.to_owned())
}

fn unknown(key: &str) -> Fault {
    let shown: String = key.chars().take(60).collect();
    Fault::Syntax(format!("unexpected key {shown:?}"))
}

/// SHA-256 of every line but the last, in one pass: a line is hashed once another line has ended after it.
#[derive(Debug, Default)]
struct LineHash {
    sha: Sha256,
    /// The last complete line, if there is one, and what follows it.
    last: Vec<u8>,
    partial: Vec<u8>,
}

impl LineHash {
    fn push(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            if self.partial.len() + piece.len() > MAX_ENTRY_BYTES {
                return Err("a line is too long");
            }
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.sha.update(&self.last);
                std::mem::swap(&mut self.last, &mut self.partial);
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// The digest, if the last line is the checksum's and has its line end, as PostgreSQL writes it: nothing else may escape
    /// the digest.
    fn finish(self) -> Result<String, ManifestError> {
        let is_own_line = self.last.trim_ascii_start().starts_with(b"\"Manifest-Checksum\"");
        if !self.partial.is_empty() || !is_own_line {
            return Err(ManifestError::Incomplete);
        }
        Ok(hex(&self.sha.finalize()))
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing into a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests;
