//! WAL objects: one file of PostgreSQL's archive as one object that describes itself.
//!
//! ```text
//!  0    50 2A 4D 18 │ 504 │ pitr1 wal ⏎ key=value ⏎ … crc=… ⏎ spaces      header, 512 bytes, readable with `head -c 512`
//!  512  annex (skippable frame)                                            what the scan learned
//!       one zstd frame, content size stated                                the file itself: `zstd -d OBJECT` yields it
//! ```
//! Invariants: a header has exactly one spelling, so every changed bit is seen; `body` covers every byte after it and `tag` the
//! plain bytes; fields come in one order, and all of them at their widest fit. Readers check in the order crc, format, asked
//! for, mac, body, age, content, size, tag, so that damage, a foreign object and a newer pitr are told apart. Sealed objects, and how
//! one is opened: `sealed.rs`. Pure.

mod sealed;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::annex::{Annex, AnnexError};
use super::binary::{FRAME_HEAD, FrameKind, skippable_len};
pub use sealed::{Lock, Sealer, check_body, open, open_with, parse_info, parse_info_with, stored_prefix};

use super::path::ClusterName;
use crate::codec::{
    CodecError, Compression, Digest, FrameDecoder, FrameEncoder, Hasher, ShortDigest, len_u64,
};
use crate::seal::{Epoch, SealError};
use crate::wal::scan::{SegmentEnd, SegmentScan};
use crate::wal::timeline::MAX_HISTORY_BYTES;
use crate::wal::{Lsn, PgTime, SegmentNo, SegmentSize, SystemId, WalFileName};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 512;
/// Bytes of it that hold text.
const TEXT_BYTES: usize = HEADER_BYTES - FRAME_HEAD;
/// The newest format this program reads and the one it writes.
pub const FORMAT: u32 = 1;
/// What one ranged read should ask for: header and annex of nearly every segment.
pub const INFO_BYTES: u64 = 4096;

/// How the content is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Compressed.
    Zstd,
    /// Raw blocks of a zstd frame.
    None,
}

/// How the valid WAL of a stored segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WalEnd {
    /// With the segment.
    Full,
    /// With a switch; the rest is padding.
    Switch,
    /// Earlier: a copy of an unfinished segment.
    Short,
    /// At damage that an operator accepted: WAL has a gap here.
    Damaged,
}

impl WalEnd {
    const ALL: [Self; 4] = [Self::Full, Self::Switch, Self::Short, Self::Damaged];

    fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Switch => "switch",
            Self::Short => "short",
            Self::Damaged => "damaged",
        }
    }

    /// Whether a longer copy of the segment may be stored beside this one.
    pub fn may_have_longer_copy(self) -> bool {
        matches!(self, Self::Short | Self::Damaged)
    }
}

impl From<SegmentEnd> for WalEnd {
    fn from(end: SegmentEnd) -> Self {
        match end {
            SegmentEnd::Full => Self::Full,
            SegmentEnd::Switch => Self::Switch,
            SegmentEnd::Short => Self::Short,
        }
    }
}

/// The part of a segment that is valid WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Valid {
    /// First byte after the last valid record.
    pub to: Lsn,
    /// Half of the BLAKE3 of the plain bytes from the segment's start up to there.
    pub head: ShortDigest,
    /// How it ends.
    pub end: WalEnd,
}

/// The header of a WAL object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalHeader {
    /// The cluster's folder.
    pub cluster: ClusterName,
    /// The system identifier.
    pub system: SystemId,
    /// The file's name.
    pub name: WalFileName,
    /// Its size in bytes.
    pub size: u64,
    /// How it is kept.
    pub codec: Codec,
    /// Key epoch of a sealed object.
    pub key: Option<Epoch>,
    /// Smallest and largest time of its commits and aborts.
    pub commits: Option<(PgTime, PgTime)>,
    /// What of it is valid WAL; of every segment, and of a partial one that was scanned.
    pub valid: Option<Valid>,
    /// Identity of the content: BLAKE3 of the plain bytes (sealed: keyed).
    pub tag: Digest,
    /// BLAKE3 of bytes 512 and on.
    pub body: Digest,
    /// Keyed digest of the header in a sealed repository.
    pub mac: Option<ShortDigest>,
}

/// A header that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No WAL object of pitr.
    #[error("this is not a WAL object: it does not begin with a header of 512 bytes")]
    NotOurs,
    /// A damaged header.
    #[error("the header's checksum differs")]
    Crc,
    /// Written by a newer pitr.
    #[error("the header has format {0}, this pitr reads up to {FORMAT}")]
    NewerFormat(u32),
    /// A header that no pitr writes.
    #[error("the header's field {0:?} is missing, misplaced or malformed")]
    Field(&'static str),
}

impl WalHeader {
    /// The 512 bytes.
    ///
    /// # Errors
    /// [`HeaderError::Field`] if the fields contradict each other: nothing is written that [`Self::parse`] would refuse.
    pub fn encode(&self) -> Result<[u8; HEADER_BYTES], HeaderError> {
        self.check()?;
        let mut text = self.text();
        let crc = crc32fast::hash(text.as_bytes());
        push(&mut text, format_args!("crc={crc:08x}\n"));
        let mut out = [b' '; HEADER_BYTES];
        let (head, room) = out.split_at_mut(FRAME_HEAD);
        head.copy_from_slice(&frame_head());
        room.get_mut(..text.len()).ok_or(HeaderError::Field("cluster"))?.copy_from_slice(text.as_bytes());
        Ok(out)
    }

    /// All lines but the last.
    fn text(&self) -> String {
        let mut text = self.lines();
        if let Some(mac) = self.mac {
            push(&mut text, format_args!("mac={mac}\n"));
        }
        text
    }

    /// The lines that the mac covers.
    fn lines(&self) -> String {
        let mut text = String::with_capacity(TEXT_BYTES);
        push(&mut text, format_args!("pitr{FORMAT} wal\ncluster={}\nsys={}\n", self.cluster, self.system));
        push(&mut text, format_args!("name={}\nsize={}\n", self.name, self.size));
        let codec = match self.codec {
            Codec::Zstd => "zstd",
            Codec::None => "none",
        };
        push(&mut text, format_args!("codec={codec}\n"));
        match self.key {
            Some(epoch) => push(&mut text, format_args!("key={epoch}\n")),
            None => push(&mut text, format_args!("key=none\n")),
        }
        if let Some((min, max)) = self.commits {
            push(&mut text, format_args!("commits={},{}\n", min.unix_micros(), max.unix_micros()));
        }
        if let Some(valid) = &self.valid {
            push(&mut text, format_args!("valid_to={}\nhead={}\n", valid.to, valid.head));
            push(&mut text, format_args!("end={}\n", valid.end.word()));
        }
        push(&mut text, format_args!("tag={}\nbody={}\n", self.tag, self.body));
        text
    }

    fn check(&self) -> Result<(), HeaderError> {
        let field = |good: bool, name| if good { Ok(()) } else { Err(HeaderError::Field(name)) };
        field(self.key.is_some() == self.mac.is_some(), "mac")?;
        field(self.size <= max_size(self.name), "size")?;
        field(self.commits.is_none_or(|(min, max)| min <= max), "commits")?;
        let segment = match self.name {
            WalFileName::Segment(name) => {
                field(self.valid.is_some(), "valid_to")?;
                name
            }
            WalFileName::Partial(name) => name,
            WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                field(self.commits.is_none(), "commits")?;
                return field(self.valid.is_none(), "valid_to");
            }
        };
        let Some(valid) = &self.valid else { return field(self.commits.is_none(), "commits") };
        let size = SegmentSize::new(self.size).map_err(|_| HeaderError::Field("size"))?;
        let number = segment.number(size).map_err(|_| HeaderError::Field("name"))?;
        let inside = (number.start(size)..=number.end(size)).contains(&valid.to);
        field(inside, "valid_to")?;
        field(valid.end != WalEnd::Full || valid.to == number.end(size), "end")
    }

    /// Reads the first 512 bytes of an object; more may follow.
    ///
    /// # Errors
    /// [`HeaderError`], checksum first.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(HeaderError::NotOurs)?;
        if skippable_len(FrameKind::Header, header) != Some(TEXT_BYTES) {
            return Err(HeaderError::NotOurs);
        }
        let padded = header.get(FRAME_HEAD..).unwrap_or_default();
        let text = std::str::from_utf8(padded).map_err(|_| HeaderError::Crc)?.trim_end_matches(' ');
        // The last line is the checksum of all lines before it, in this format and in every later one.
        let split = text.rfind("crc=").and_then(|at| text.split_at_checked(at));
        let (lines, crc) = split.ok_or(HeaderError::Crc)?;
        if crc != format!("crc={:08x}\n", crc32fast::hash(lines.as_bytes())) {
            return Err(HeaderError::Crc);
        }
        let parsed = Self::parse_lines(lines)?;
        parsed.check()?;
        // Printed again it must be the same: numbers with leading zeros, for one, are no second spelling.
        if parsed.text() == lines { Ok(parsed) } else { Err(HeaderError::Field("spelling")) }
    }

    fn parse_lines(lines: &str) -> Result<Self, HeaderError> {
        let mut lines = Lines(lines.lines().peekable());
        let format = lines.0.next().and_then(|l| l.strip_prefix("pitr")?.strip_suffix(" wal"));
        match format.and_then(|n| n.parse::<u32>().ok()) {
            Some(FORMAT) => {}
            Some(newer) if newer > FORMAT => return Err(HeaderError::NewerFormat(newer)),
            _ => return Err(HeaderError::Field("pitr")),
        }
        let cluster = lines.take("cluster", |v| v.parse().ok())?;
        let system = lines.take("sys", |v| v.parse().ok())?;
        let name = lines.take("name", |v| WalFileName::parse(v).ok())?;
        let size = lines.take("size", |v| v.parse().ok())?;
        let codec = lines.take("codec", |v| match v {
            "zstd" => Some(Codec::Zstd),
            "none" => Some(Codec::None),
            _ => None,
        })?;
        let key = lines.take("key", |v| match v {
            "none" => Some(None),
            epoch => epoch.parse().ok().map(Some),
        })?;
        let commits = lines.take_optional("commits", |v| {
            let (min, max) = v.split_once(',')?;
            let time = |micros: &str| micros.parse().ok().map(PgTime::from_unix_micros);
            Some((time(min)?, time(max)?))
        })?;
        let to = lines.take_optional("valid_to", |v| v.parse::<Lsn>().ok())?;
        let valid = match to {
            None => None,
            Some(to) => Some(Valid {
                to,
                head: lines.take("head", |v| v.parse().ok())?,
                end: lines.take("end", |v| WalEnd::ALL.into_iter().find(|end| end.word() == v))?,
            }),
        };
        let tag = lines.take("tag", |v| v.parse().ok())?;
        let body = lines.take("body", |v| v.parse().ok())?;
        let mac = lines.take_optional("mac", |v| v.parse().ok())?;
        if lines.0.next().is_some() {
            return Err(HeaderError::Field("unknown"));
        }
        Ok(Self { cluster, system, name, size, codec, key, commits, valid, tag, body, mac })
    }

    /// The segment's start, if this is one whose WAL was scanned.
    pub fn segment_start(&self) -> Option<Lsn> {
        let (WalFileName::Segment(name) | WalFileName::Partial(name)) = self.name else { return None };
        let size = SegmentSize::new(self.size).ok()?;
        name.number(size).ok().map(|number: SegmentNo| number.start(size))
    }
}

fn frame_head() -> [u8; FRAME_HEAD] {
    let [a, b, c, d] = FrameKind::Header.magic();
    let [e, f, g, h] = u32::try_from(TEXT_BYTES).expect("504 fits").to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a String accepts all text");
}

fn max_size(name: WalFileName) -> u64 {
    match name {
        WalFileName::Segment(_) | WalFileName::Partial(_) => 1 << 30,
        WalFileName::History(_) | WalFileName::BackupHistory(..) => {
            u64::try_from(MAX_HISTORY_BYTES).expect("1 MiB fits")
        }
    }
}

struct Lines<'a>(std::iter::Peekable<std::str::Lines<'a>>);

impl Lines<'_> {
    fn take<T>(&mut self, key: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, HeaderError> {
        self.take_optional(key, read)?.ok_or(HeaderError::Field(key))
    }

    fn take_optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, HeaderError> {
        let value = self.0.peek().and_then(|line| line.strip_prefix(key)?.strip_prefix('='));
        let Some(value) = value else { return Ok(None) };
        let read = read(value).ok_or(HeaderError::Field(key))?;
        self.0.next();
        Ok(Some(read))
    }
}

/// What a reader asked for; an object that says otherwise lies under the wrong key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The cluster's folder.
    pub cluster: ClusterName,
    /// The system identifier.
    pub system: SystemId,
    /// The file's name.
    pub name: WalFileName,
}

/// An object that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalObjectError {
    /// Its header cannot be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// It is another one's.
    #[error("it says it is {found}, {asked} was asked for")]
    Foreign {
        /// What it says.
        found: String,
        /// What was asked for.
        asked: String,
    },
    /// It is encrypted, and nobody gave a key.
    #[error("it takes the key of epoch {0}")]
    Sealed(Epoch),
    /// It is encrypted, and the keys at hand do not open it.
    #[error("it takes the key of epoch {epoch}: {cause}")]
    Age {
        /// The epoch that it names.
        epoch: Epoch,
        /// What is wrong.
        cause: SealError,
    },
    /// An object that is not encrypted where all are.
    #[error("it is not encrypted, in a folder in which everything is")]
    Unsealed,
    /// It was not written with the cluster's seal key, or changed since.
    #[error("its mac is not that of the cluster's seal key")]
    Mac,
    /// Bytes after the header differ from what was written.
    #[error("its body is damaged: the digest differs")]
    Body,
    /// The annex is damaged.
    #[error(transparent)]
    Annex(#[from] AnnexError),
    /// The frame is damaged.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The content has another size than the header says.
    #[error("it holds {found} bytes instead of {size}")]
    Size {
        /// As the header says.
        size: u64,
        /// As found.
        found: u64,
    },
    /// The content is not what was archived.
    #[error("its content differs from what was archived: the tag differs")]
    Tag,
}

impl WalHeader {
    /// Checks that this is the object asked for.
    ///
    /// # Errors
    /// [`WalObjectError::Foreign`].
    pub fn check_asked(&self, asked: &Asked) -> Result<(), WalObjectError> {
        let found = Asked { cluster: self.cluster.clone(), system: self.system, name: self.name };
        if found == *asked {
            return Ok(());
        }
        let text = |a: &Asked| format!("{} of system {} in cluster {}", a.name, a.system, a.cluster);
        Err(WalObjectError::Foreign { found: text(&found), asked: text(asked) })
    }
}

/// What the scan of the file said.
#[derive(Debug, Clone, Copy)]
pub enum Facts<'a> {
    /// A segment, or a partial one, that was scanned.
    Scanned(&'a SegmentScan),
    /// A segment with damage that an operator accepted; the scan covers what lies before it. `None`: nothing does.
    Damaged(Option<&'a SegmentScan>),
    /// A file without WAL in it, or a partial segment that no scan could read.
    Unscanned,
}

/// A WAL object ready to be created.
#[derive(Debug, Clone)]
pub struct WalObject {
    /// Its header.
    pub header: WalHeader,
    /// All its bytes, header first.
    pub chunks: Vec<Bytes>,
    /// Digest of the plain bytes up to the end of valid WAL: what a sealed `head` is made of.
    prefix: Option<Digest>,
    /// The same object sealed, once somebody needed it: several repositories take the same bytes.
    sealed: Arc<Mutex<Option<sealed::Cached>>>,
}

impl WalObject {
    /// Bytes of the object.
    pub fn stored(&self) -> u64 {
        self.chunks.iter().map(|c| len_u64(c)).sum()
    }
}

/// Makes a WAL object out of a file that is read once, in pieces of any size. Memory is the compressed file.
#[derive(Debug)]
pub struct WalObjectBuilder {
    asked: Asked,
    size: u64,
    codec: Codec,
    whole: Hasher,
    frame: FrameEncoder,
}

impl WalObjectBuilder {
    /// An object for a file of exactly `size` bytes.
    ///
    /// # Errors
    /// [`WalObjectError::Header`] if such a file cannot be that large.
    pub fn new(asked: Asked, size: u64, compression: Compression) -> Result<Self, WalObjectError> {
        if size > max_size(asked.name) {
            return Err(HeaderError::Field("size").into());
        }
        let codec = match compression {
            Compression::Zstd { .. } => Codec::Zstd,
            Compression::Stored => Codec::None,
        };
        Ok(Self { asked, size, codec, whole: Hasher::new(), frame: FrameEncoder::new(compression, size)? })
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// [`WalObjectError::Codec`] for more bytes than announced.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), WalObjectError> {
        self.whole.update(bytes);
        Ok(self.frame.push(bytes)?)
    }

    /// The object. `facts` come from the scan that saw the same bytes.
    ///
    /// # Errors
    /// [`WalObjectError`] for fewer bytes than announced, or facts that contradict the file's name or size.
    pub fn finish(self, facts: Facts<'_>) -> Result<WalObject, WalObjectError> {
        let frame = self.frame.finish()?;
        let tag = self.whole.digest();
        let (annex, commits, valid, prefix) = match facts {
            Facts::Unscanned => (Annex::default(), None, None, None),
            Facts::Damaged(None) => {
                let valid = nothing_valid(&self.asked, self.size)?;
                (Annex::of_nothing(), None, Some(valid), Some(Digest::of(b"")))
            }
            Facts::Scanned(scan) | Facts::Damaged(Some(scan)) => {
                let prefix = scan.valid_to.bytes_since(scan.start);
                let head = if prefix == self.size { tag } else { prefix_digest(&frame, prefix, self.size)? };
                let damaged = matches!(facts, Facts::Damaged(_));
                let end = if damaged { WalEnd::Damaged } else { scan.end.into() };
                let valid = Valid { to: scan.valid_to, head: head.short(), end };
                (Annex::from_scan(scan), scan.commits.min.zip(scan.commits.max), Some(valid), Some(head))
            }
        };
        let annex = Bytes::from(annex.encode());
        let mut body = Hasher::new();
        std::iter::once(&annex).chain(&frame).for_each(|chunk| body.update(chunk));
        let header = WalHeader {
            cluster: self.asked.cluster,
            system: self.asked.system,
            name: self.asked.name,
            size: self.size,
            codec: self.codec,
            key: None,
            commits,
            valid,
            tag,
            body: body.digest(),
            mac: None,
        };
        let first = Bytes::copy_from_slice(&header.encode()?);
        let chunks = [first, annex].into_iter().chain(frame).collect();
        Ok(WalObject { header, chunks, prefix, sealed: Arc::default() })
    }
}

/// What is valid of a segment that is damaged from its first byte on.
fn nothing_valid(asked: &Asked, size: u64) -> Result<Valid, HeaderError> {
    let WalFileName::Segment(segment) = asked.name else { return Err(HeaderError::Field("end")) };
    let size = SegmentSize::new(size).map_err(|_| HeaderError::Field("size"))?;
    let number = segment.number(size).map_err(|_| HeaderError::Field("name"))?;
    Ok(Valid { to: number.start(size), head: Digest::of(b"").short(), end: WalEnd::Damaged })
}

/// Digest of the first `prefix` plain bytes. Where valid WAL ends is known only when all of it was read; instead of a second
/// look at the file, what was just compressed is opened again, up to there. Rare: most segments are full.
fn prefix_digest(frame: &[Bytes], prefix: u64, size: u64) -> Result<Digest, CodecError> {
    let mut hasher = Hasher::new();
    let mut missing = prefix;
    let mut decoder = FrameDecoder::new(size)?;
    for chunk in frame {
        decoder.push(chunk, |bytes| {
            let wanted = usize::try_from(missing).unwrap_or(usize::MAX).min(bytes.len());
            let (wanted, _) = bytes.split_at(wanted);
            hasher.update(wanted);
            missing = missing.saturating_sub(len_u64(wanted));
        })?;
        if missing == 0 {
            break;
        }
    }
    Ok(hasher.digest())
}

/// How a file relates to the one stored under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameName {
    /// The same bytes.
    Equal,
    /// The stored copy holds all valid WAL of this one: nothing need be written.
    StoredCovers,
    /// This one holds all valid WAL of the stored copy, and more: it belongs beside it.
    Extends,
    /// Neither: two histories claim one name.
    Different,
    /// The valid part of the longer one up to the end of the shorter one must be known; it has this many bytes.
    NeedPrefix {
        /// Which of the two must be read.
        of: Side,
        /// How many bytes of it.
        bytes: u64,
    },
}

/// One of the two compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is stored.
    Stored,
    /// What is offered.
    Offered,
}

/// Compares `offered` with what is `stored` under its name. `prefix` is the answer to an earlier [`SameName::NeedPrefix`].
pub fn compare(stored: &WalHeader, offered: &WalHeader, prefix: Option<ShortDigest>) -> SameName {
    let same_file = |h: &WalHeader| (h.cluster.clone(), h.system, h.name, h.size);
    if same_file(stored) != same_file(offered) {
        return SameName::Different;
    }
    if stored.tag == offered.tag {
        return SameName::Equal;
    }
    let (Some(old), Some(new), Some(start)) = (stored.valid, offered.valid, stored.segment_start()) else {
        return SameName::Different;
    };
    if old.to == new.to {
        return if old.head == new.head { SameName::StoredCovers } else { SameName::Different };
    }
    let (longer, shorter_head, bytes, agree) = if old.to > new.to {
        (Side::Stored, new.head, new.to.bytes_since(start), SameName::StoredCovers)
    } else if old.end.may_have_longer_copy() {
        (Side::Offered, old.head, old.to.bytes_since(start), SameName::Extends)
    } else {
        return SameName::Different;
    };
    match prefix {
        None => SameName::NeedPrefix { of: longer, bytes },
        Some(prefix) if prefix == shorter_head => agree,
        Some(_) => SameName::Different,
    }
}

#[cfg(test)]
pub(crate) mod tests;
