//! The tar archives of a base backup, read as they arrive.
//!
//! ```text
//!  push(chunk) ──►  header 512 │ body … │ zeros to 512 │ header 512 │ …  │ two zero blocks (15 and later)
//!  next()      ──►  Member       Data…    MemberEnd      Member
//! ```
//! Chunks may be cut anywhere; body slices are parts of the chunk that was pushed, never copies. Memory: one header.
//! Invariant: a member that leaves here has a relative path without `.`, `..` or empty parts, and exactly `size` bytes of data.
//! Pure. Source of truth: `src/port/tar.c` and `basebackup.c`; the server writes plain ustar, so everything it cannot write
//! (hard links, devices, pax and GNU extensions) is refused by name instead of being half understood.

use bytes::{Buf, Bytes};

/// The unit of a tar archive.
pub const BLOCK: usize = 512;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file of so many bytes.
    File {
        /// Bytes of data that follow.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link; the target is as stored, absolute or not.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
}

/// The head of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Relative path, without a leading `./` and without a trailing `/`. Bytes, because file names are bytes.
    pub path: Vec<u8>,
    /// File, directory or link.
    pub kind: MemberKind,
    /// Permission bits.
    pub mode: u32,
    /// Numeric owner on the server.
    pub uid: u32,
    /// Numeric group on the server.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u64,
}

/// What reading yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarItem {
    /// A member begins.
    Member(Member),
    /// Part of its data, never empty. Holds the whole read buffer alive: do not keep small ones for long.
    Data(Bytes),
    /// The member is complete; follows every [`TarItem::Member`].
    MemberEnd,
}

/// How an archive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarEnd {
    /// With the two zero blocks of the format (PostgreSQL 15 and later).
    Terminated,
    /// Right after a member (PostgreSQL 13 and 14 send no terminator).
    Bare,
}

/// An archive that is damaged, or holds what a base backup never does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The header's own sum does not match.
    #[error("the tar header at byte {at} has checksum {stored}, but its bytes sum up to {computed}")]
    Checksum {
        /// Offset of the header in the archive.
        at: u64,
        /// What the header says, as text.
        stored: String,
        /// What its bytes say.
        computed: u32,
    },
    /// Not ustar.
    #[error("the tar header at byte {at} is not in the ustar format")]
    Magic {
        /// Offset of the header in the archive.
        at: u64,
    },
    /// A number that is not octal and not base-256, or does not fit.
    #[error("the {field} of tar member {path:?} is not a number that can be used")]
    Number {
        /// Name of the header's field.
        field: &'static str,
        /// Path of the member.
        path: String,
    },
    /// A path that leads out of the target, or nowhere.
    #[error("tar member {path:?} is refused: {reason}")]
    Path {
        /// The path as stored.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A kind of member that PostgreSQL does not write.
    #[error("tar member {path:?} is {kind}, which a base backup never contains")]
    Kind {
        /// Path of the member.
        path: String,
        /// The kind in words.
        kind: String,
    },
    /// The archive stops in the middle of something.
    #[error("the tar archive ends in the middle of {within}")]
    Truncated {
        /// What was being read.
        within: String,
    },
    /// Bytes after the terminator.
    #[error("the tar archive goes on after its end, at byte {at}")]
    AfterEnd {
        /// Offset of the block in the archive.
        at: u64,
    },
    /// A name that cannot be written (see `tarwrite`).
    #[error("{path:?} cannot be a tar member: {reason}")]
    Unwritable {
        /// The path.
        path: String,
        /// Why not.
        reason: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Collecting a header, so many bytes are here.
    Header,
    /// Inside a body: bytes of data, then bytes of padding to come.
    Body { left: u64, padding: u64 },
    /// One zero block was seen, or more.
    End,
    /// An error was returned; the position is lost.
    Failed,
}

/// A streaming reader of one archive.
#[derive(Debug)]
pub struct TarReader {
    state: State,
    chunk: Bytes,
    header: [u8; BLOCK],
    filled: usize,
    at: u64,
    zero_blocks: u64,
    path: String,
}

impl Default for TarReader {
    fn default() -> Self {
        Self::new()
    }
}

impl TarReader {
    /// A reader at the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            chunk: Bytes::new(),
            header: [0; BLOCK],
            filled: 0,
            at: 0,
            zero_blocks: 0,
            path: String::new(),
        }
    }

    /// Hands over the next bytes. Call [`TarReader::next`] until it returns `None` before pushing again.
    ///
    /// # Panics
    /// If the chunk before was not read to its end: a mistake of the caller that would lose data.
    pub fn push(&mut self, chunk: Bytes) {
        assert!(self.chunk.is_empty(), "the chunk before was not read to its end");
        self.chunk = chunk;
    }

    /// The next item, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`TarError`]; the reader is of no further use then.
    #[expect(clippy::should_implement_trait, reason = "None means `push more`, not `the end`")]
    pub fn next(&mut self) -> Result<Option<TarItem>, TarError> {
        let result = self.step();
        if result.is_err() {
            self.state = State::Failed;
            self.chunk.clear();
        }
        result
    }

    fn step(&mut self) -> Result<Option<TarItem>, TarError> {
        loop {
            match self.state {
                State::Body { left: 0, padding: 0 } => {
                    self.state = State::Header;
                    return Ok(Some(TarItem::MemberEnd));
                }
                _ if self.chunk.is_empty() => return Ok(None),
                State::Body { left: 0, padding } => {
                    let skipped = self.take(padding).len();
                    self.state = State::Body { left: 0, padding: padding.saturating_sub(length(skipped)) };
                }
                State::Body { left, padding } => {
                    let data = self.take(left);
                    self.state = State::Body { left: left.saturating_sub(length(data.len())), padding };
                    return Ok(Some(TarItem::Data(data)));
                }
                State::Header | State::End => {
                    if let Some(member) = self.block()? {
                        return Ok(Some(TarItem::Member(member)));
                    }
                }
                State::Failed => return Err(lost()),
            }
        }
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// [`TarError::Truncated`] if it ends in the middle of a header, of a member, or of its terminator.
    pub fn finish(self) -> Result<TarEnd, TarError> {
        let truncated = |within: String| Err(TarError::Truncated { within });
        match self.state {
            State::Header | State::End if self.filled > 0 => truncated("a header".into()),
            State::Header => Ok(TarEnd::Bare),
            State::End if self.zero_blocks < 2 => truncated("its terminator".into()),
            State::End => Ok(TarEnd::Terminated),
            State::Body { .. } => truncated(format!("member {:?}", self.path)),
            State::Failed => Err(lost()),
        }
    }

    /// At most `limit` bytes off the front of the chunk.
    fn take(&mut self, limit: u64) -> Bytes {
        let count = usize::try_from(limit).unwrap_or(usize::MAX).min(self.chunk.len());
        self.at = self.at.saturating_add(length(count));
        self.chunk.split_to(count)
    }

    /// Collects a header block; when it is whole, a member begins or the archive ends.
    fn block(&mut self) -> Result<Option<Member>, TarError> {
        let free = self.header.get_mut(self.filled..).unwrap_or_default();
        let count = free.len().min(self.chunk.len());
        if let Some(room) = free.get_mut(..count) {
            self.chunk.copy_to_slice(room);
        }
        self.filled = self.filled.saturating_add(count);
        self.at = self.at.saturating_add(length(count));
        if self.filled < BLOCK {
            return Ok(None);
        }
        self.filled = 0;
        let at = self.at.saturating_sub(length(BLOCK));
        if self.header.iter().all(|&byte| byte == 0) {
            self.zero_blocks = self.zero_blocks.saturating_add(1);
            self.state = State::End;
            return Ok(None);
        }
        if self.state == State::End {
            return Err(TarError::AfterEnd { at });
        }
        let member = parse_header(&self.header, at)?;
        let left = if let MemberKind::File { size } = member.kind { size } else { 0 };
        self.path = String::from_utf8_lossy(&member.path).into_owned();
        self.state = State::Body { left, padding: padding(left) };
        Ok(Some(member))
    }
}

/// The answer to whoever goes on after an error.
fn lost() -> TarError {
    TarError::Truncated { within: "a member that could not be read".into() }
}

/// Zero bytes that follow `size` bytes of data.
pub fn padding(size: u64) -> u64 {
    size.wrapping_neg() % length(BLOCK)
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Reads a header block that is not all zeros.
///
/// # Errors
/// [`TarError`] as described there; `at` is only used to name the place.
pub fn parse_header(header: &[u8; BLOCK], at: u64) -> Result<Member, TarError> {
    let computed = checksum(header);
    if octal(field(header, 148, 8)) != Some(u64::from(computed)) {
        let stored = String::from_utf8_lossy(text(field(header, 148, 8))).into_owned();
        return Err(TarError::Checksum { at, stored, computed });
    }
    // "ustar", NUL, "00" by POSIX and PostgreSQL; "ustar  " by GNU, whose bytes at 345 are not a prefix.
    let posix = match field(header, 257, 8) {
        b"ustar\x0000" => true,
        b"ustar  \0" => false,
        _ => return Err(TarError::Magic { at }),
    };
    let mut stored = if posix { text(field(header, 345, 155)).to_vec() } else { Vec::new() };
    if !stored.is_empty() {
        stored.push(b'/');
    }
    stored.extend_from_slice(text(field(header, 0, 100)));
    let shown = String::from_utf8_lossy(&stored).into_owned();
    let number = |name, from, len| {
        number(field(header, from, len)).ok_or_else(|| TarError::Number { field: name, path: shown.clone() })
    };
    let small = |name, from, len| {
        let narrow = |n| u32::try_from(n).map_err(|_| TarError::Number { field: name, path: shown.clone() });
        number(name, from, len).and_then(narrow)
    };
    let size = number("size", 124, 12)?;
    let kind = kind(field(header, 156, 1), size, text(field(header, 157, 100)), &shown)?;
    let path = normalise(&stored, &kind)?;
    let mode = small("mode", 100, 8)? & 0o7777;
    let (uid, gid) = (small("owner", 108, 8)?, small("group", 116, 8)?);
    Ok(Member { path, kind, mode, uid, gid, mtime: number("time", 136, 12)? })
}

fn kind(flag: &[u8], size: u64, link: &[u8], path: &str) -> Result<MemberKind, TarError> {
    let refused = |kind: String| Err(TarError::Kind { path: path.to_owned(), kind });
    let kind = match flag.first().copied().unwrap_or(0) {
        b'0' | 0 if i64::try_from(size).is_err() => {
            return Err(TarError::Number { field: "size", path: path.to_owned() });
        }
        b'0' | 0 => return Ok(MemberKind::File { size }),
        b'5' => MemberKind::Directory,
        b'2' if link.is_empty() => return refused("a symbolic link without a target".into()),
        b'2' => MemberKind::Symlink { target: link.to_vec() },
        b'1' => return refused("a hard link".into()),
        b'3' | b'4' => return refused("a device".into()),
        b'6' => return refused("a named pipe".into()),
        b'x' | b'g' => return refused("a pax extension header".into()),
        b'L' | b'K' => return refused("a GNU long-name entry".into()),
        b'S' => return refused("a sparse file".into()),
        other => return refused(format!("of the unknown type 0x{other:02x}")),
    };
    if size != 0 { refused("a directory or link with data".into()) } else { Ok(kind) }
}

/// A relative path without `.`, `..` and empty parts. Directories and links carry a trailing `/` in PostgreSQL's archives, and two
/// directories inside `pg_wal` a leading `./`.
fn normalise(stored: &[u8], kind: &MemberKind) -> Result<Vec<u8>, TarError> {
    let refused = |reason| TarError::Path { path: String::from_utf8_lossy(stored).into_owned(), reason };
    let mut path = stored;
    if path.starts_with(b"/") {
        return Err(refused("it is absolute"));
    }
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    if !matches!(kind, MemberKind::File { .. }) {
        path = path.strip_suffix(b"/").unwrap_or(path);
    }
    if path.is_empty() {
        return Err(refused("it names nothing"));
    }
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b".." => return Err(refused("it leads out of the directory")),
            b"" | b"." => return Err(refused("it has an empty part")),
            _ => {}
        }
    }
    Ok(path.to_vec())
}

/// The bytes of a header field; every caller stays inside the block.
fn field(header: &[u8; BLOCK], from: usize, len: usize) -> &[u8] {
    header.get(from..from.saturating_add(len)).unwrap_or_default()
}

/// A field up to its first zero byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The sum of all bytes, with the checksum's own field taken as spaces.
pub(super) fn checksum(header: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    sum(header).saturating_sub(sum(field(header, 148, 8))).saturating_add(8 * u32::from(b' '))
}

fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, rest)) => rest.iter().try_fold(0_u64, |value, &byte| {
            value.checked_mul(256).and_then(|value| value.checked_add(u64::from(byte)))
        }),
        _ => octal(field),
    }
}

/// Octal digits after optional spaces, ended by a space, a zero byte or the field. An empty field is 0, as tar programs write it.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at_checked(end)?;
    if !rest.iter().all(|byte| matches!(byte, b' ' | 0)) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
