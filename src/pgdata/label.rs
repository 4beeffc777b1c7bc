//! `backup_label` and `tablespace_map`: what a base backup says about itself.
//!
//! ```text
//!  START WAL LOCATION: 0/2000028 (file 000000010000000000000002)     16385 /srv/fast disk
//!  CHECKPOINT LOCATION: 0/2000060                                    16386 /srv/odd\\name
//!  BACKUP METHOD: streamed                                           └ one tablespace per line; a backslash protects
//!  BACKUP FROM: primary                                                line ends and, since 14, itself
//!  START TIME: 2025-10-17 10:30:00 UTC
//!  LABEL: nightly
//!  START TIMELINE: 1
//!  INCREMENTAL FROM LSN: 0/1000028      17+, incremental backups only
//!  INCREMENTAL FROM TLI: 1
//! ```
//! A backup label is stored and restored byte for byte; it is read here, never written. A tablespace map is rewritten to move
//! tablespaces. Paths are bytes: PostgreSQL promises no encoding. Lines are taken in PostgreSQL's order, as its own reader does, so
//! that a label with a line end in it cannot pose as another line. Source of truth: `xlogbackup.c`, `xlogrecovery.c`.

use crate::wal::{Lsn, PgMajor, SegmentName, TimelineId};

/// Longest label file that is read. PostgreSQL's label text has at most 1024 bytes, the other lines are short.
pub const MAX_LABEL_BYTES: usize = 16 * 1024;

/// Longest line of a tablespace map: PostgreSQL's reader has a buffer of `MAXPGPATH` = 1024 bytes with its terminator.
const MAX_MAP_LINE: usize = 1022;

/// Why a label or a map cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// More bytes than PostgreSQL writes.
    #[error("backup_label has {0} bytes, more than the {MAX_LABEL_BYTES} that are read")]
    TooLong(usize),
    /// A line is not what PostgreSQL writes there.
    #[error("backup_label has {found:?} where \"{expected}\" is expected")]
    Line {
        /// How the line begins in PostgreSQL's files.
        expected: &'static str,
        /// What stands there, shortened.
        found: String,
    },
    /// A line of the map is not an OID and a path.
    #[error("tablespace_map line {line} is not an OID and a path")]
    MapLine {
        /// Number of the line, from 1.
        line: usize,
    },
    /// A tablespace path that PostgreSQL could not read back.
    #[error("tablespace {oid} cannot be written into tablespace_map: {why}")]
    Unwritable {
        /// OID of the tablespace.
        oid: u32,
        /// What is wrong with its path.
        why: &'static str,
    },
}

/// How the backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupMethod {
    /// Over the replication protocol, or by the non-exclusive functions.
    Streamed,
    /// By the exclusive functions, which ended with 14: a crash in between leaves this file in the data directory.
    Exclusive,
}

/// Where the backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupFrom {
    /// On the primary.
    Primary,
    /// On a standby: recovery must reach the control file's minimum recovery point instead of a record.
    Standby,
}

/// A parsed `backup_label`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where recovery starts to read.
    pub start_lsn: Lsn,
    /// The segment of `start_lsn`, as the server named it.
    pub start_segment: SegmentName,
    /// The checkpoint record that the backup began with.
    pub checkpoint_lsn: Lsn,
    /// How it was taken.
    pub method: BackupMethod,
    /// Where it was taken.
    pub from: BackupFrom,
    /// When, in the server's log zone: informative only.
    pub start_time: String,
    /// The label given to the backup.
    pub label: String,
    /// The timeline of `start_lsn`.
    pub start_timeline: TimelineId,
    /// PostgreSQL's own incremental backup (17 and later): start LSN and timeline of the backup it builds on.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

impl BackupLabel {
    /// Parses a `backup_label`.
    ///
    /// # Errors
    /// [`LabelError`] if a line is missing, out of order or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, LabelError> {
        if bytes.len() > MAX_LABEL_BYTES {
            return Err(LabelError::TooLong(bytes.len()));
        }
        let text = String::from_utf8_lossy(bytes);
        if !text.ends_with('\n') {
            return Err(wrong("the end of the last line", text.lines().last().unwrap_or("")));
        }
        let mut lines = Lines { rest: text.lines() };
        let (start_lsn, start_segment) = lines.value("START WAL LOCATION: ", |v| {
            let (lsn, file) = v.split_once(" (file ")?;
            Some((lsn.parse().ok()?, SegmentName::parse(file.strip_suffix(')')?).ok()?))
        })?;
        let checkpoint_lsn = lines.value("CHECKPOINT LOCATION: ", |v| v.parse().ok())?;
        let method = lines.value("BACKUP METHOD: ", |v| match v {
            "streamed" => Some(BackupMethod::Streamed),
            "pg_start_backup" => Some(BackupMethod::Exclusive),
            _ => None,
        })?;
        let from = lines.value("BACKUP FROM: ", |v| match v {
            "primary" | "master" => Some(BackupFrom::Primary),
            "standby" => Some(BackupFrom::Standby),
            _ => None,
        })?;
        let start_time = lines.value("START TIME: ", |v| Some(v.to_owned()))?;
        let label = lines.value("LABEL: ", |v| Some(v.to_owned()))?;
        let start_timeline = lines.value("START TIMELINE: ", timeline)?;
        let incremental_from = if lines.is_at_end() {
            None
        } else {
            let lsn = lines.value("INCREMENTAL FROM LSN: ", |v| v.parse().ok())?;
            Some((lsn, lines.value("INCREMENTAL FROM TLI: ", timeline)?))
        };
        lines.end()?;
        Ok(Self {
            start_lsn,
            start_segment,
            checkpoint_lsn,
            method,
            from,
            start_time,
            label,
            start_timeline,
            incremental_from,
        })
    }
}

fn timeline(text: &str) -> Option<TimelineId> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    TimelineId::new(text.parse().ok()?)
}

struct Lines<'a> {
    rest: std::str::Lines<'a>,
}

impl Lines<'_> {
    fn value<T>(&mut self, start: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<T, LabelError> {
        let line = self.rest.next().unwrap_or("");
        line.strip_prefix(start).and_then(read).ok_or_else(|| wrong(start, line))
    }

    fn is_at_end(&self) -> bool {
        self.rest.clone().next().is_none()
    }

    fn end(mut self) -> Result<(), LabelError> {
        self.rest.next().map_or(Ok(()), |line| Err(wrong("the end", line)))
    }
}

fn wrong(expected: &'static str, line: &str) -> LabelError {
    LabelError::Line { expected: expected.trim_end(), found: line.chars().take(80).collect() }
}

/// One tablespace of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLink {
    /// OID of the tablespace: its name under `pg_tblspc`.
    pub oid: u32,
    /// The directory it points to: absolute, or relative to the data directory for an in-place tablespace.
    pub path: Vec<u8>,
}

/// A parsed `tablespace_map`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablespaceMap {
    /// In the order of the file.
    pub links: Vec<TablespaceLink>,
}

impl TablespaceMap {
    /// Parses a `tablespace_map`. Empty lines are skipped, as PostgreSQL does.
    ///
    /// # Errors
    /// [`LabelError::MapLine`].
    pub fn parse(bytes: &[u8], major: PgMajor) -> Result<Self, LabelError> {
        let mut links = Vec::new();
        let mut line = Vec::new();
        let mut number = 1;
        let mut rest = bytes.iter().copied().peekable();
        while let Some(byte) = rest.next() {
            match (byte, rest.peek()) {
                (b'\\', Some(&next)) if next == b'\n' || next == b'\r' || protects_itself(major) => {
                    line.push(next);
                    rest.next();
                }
                (b'\n' | b'\r', _) => {
                    links.extend(map_line(&line, number)?);
                    line.clear();
                    number += usize::from(byte == b'\n');
                }
                _ => line.push(byte),
            }
        }
        // PostgreSQL ends every line; a last one without its end was cut off.
        if line.is_empty() { Ok(Self { links }) } else { Err(LabelError::MapLine { line: number }) }
    }

    /// The file that PostgreSQL reads back as these links.
    ///
    /// # Errors
    /// [`LabelError::Unwritable`] for a path that is empty, holds a NUL byte or is longer than PostgreSQL reads.
    pub fn to_bytes(&self, major: PgMajor) -> Result<Vec<u8>, LabelError> {
        let mut file = Vec::new();
        for link in &self.links {
            let head = format!("{} ", link.oid);
            if let Some(why) = unwritable(&link.path, head.len(), major) {
                return Err(LabelError::Unwritable { oid: link.oid, why });
            }
            file.extend_from_slice(head.as_bytes());
            for &byte in &link.path {
                if matches!(byte, b'\n' | b'\r') || (byte == b'\\' && protects_itself(major)) {
                    file.push(b'\\');
                }
                file.push(byte);
            }
            file.push(b'\n');
        }
        Ok(file)
    }
}

/// Until 13 a backslash protects line ends but not itself, so that one before a line end cannot be written.
fn protects_itself(major: PgMajor) -> bool {
    major >= PgMajor::V14
}

/// What PostgreSQL would not read back, if anything.
fn unwritable(path: &[u8], head: usize, major: PgMajor) -> Option<&'static str> {
    let before_line_end = |pair: &[u8]| matches!(pair, [b'\\', b'\n' | b'\r']);
    if path.is_empty() {
        Some("the path is empty")
    } else if path.contains(&0) {
        Some("the path holds a NUL byte")
    } else if head.saturating_add(path.len()) > MAX_MAP_LINE {
        Some("the path is too long")
    } else if path.first().is_some_and(|b| b.is_ascii_whitespace() || *b == 0x0B) {
        // Between the OID and the path PostgreSQL skips blanks.
        Some("the path starts with a blank")
    } else if !protects_itself(major) && (path.ends_with(b"\\") || path.windows(2).any(before_line_end)) {
        Some("PostgreSQL 13 cannot read a backslash before a line end")
    } else {
        None
    }
}

fn map_line(line: &[u8], number: usize) -> Result<Option<TablespaceLink>, LabelError> {
    if line.is_empty() {
        return Ok(None);
    }
    let bad = || LabelError::MapLine { line: number };
    let blank = line.iter().position(|b| *b == b' ').ok_or_else(bad)?;
    let (oid, path) = line.split_at(blank);
    let path = path.get(1..).unwrap_or_default();
    let oid = std::str::from_utf8(oid).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    let oid = oid.and_then(|t| t.parse().ok()).filter(|n| *n != 0).ok_or_else(bad)?;
    if path.is_empty() || path.contains(&0) || path.first().is_some_and(u8::is_ascii_whitespace) {
        return Err(bad());
    }
    Ok(Some(TablespaceLink { oid, path: path.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
        START TIME: 2025-10-17 10:30:00 WIB\nLABEL: nightly: one\nSTART TIMELINE: 2\n";

    #[test]
    fn a_label_of_each_kind_is_read() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        assert_eq!((label.start_lsn, label.checkpoint_lsn), (Lsn::new(0x200_0028), Lsn::new(0x200_0060)));
        assert_eq!(label.start_segment.to_string(), "000000010000000000000002");
        assert_eq!((label.method, label.from), (BackupMethod::Streamed, BackupFrom::Standby));
        assert_eq!(
            (label.start_time.as_str(), label.label.as_str()),
            ("2025-10-17 10:30:00 WIB", "nightly: one")
        );
        assert_eq!((label.start_timeline.get(), label.incremental_from), (2, None));

        let incremental = format!("{LABEL}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabel::parse(incremental.as_bytes()).unwrap();
        assert_eq!(label.incremental_from, Some((Lsn::new(0x100_0028), TimelineId::FIRST)));
    }

    #[test]
    fn a_label_text_with_a_line_end_cannot_pose_as_the_timeline() {
        let bad = LABEL.replace("nightly: one", "x\nSTART TIMELINE: 9");
        assert_eq!(
            BackupLabel::parse(bad.as_bytes()).unwrap_err().to_string(),
            "backup_label has \"START TIMELINE: 2\" where \"INCREMENTAL FROM LSN:\" is expected"
        );
    }

    #[test]
    fn a_label_cut_anywhere_is_refused() {
        for cut in 0..LABEL.len() {
            assert!(BackupLabel::parse(&LABEL.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn map_keeps_blanks_and_protects_line_ends() {
        let map =
            TablespaceMap::parse(b"16385 /srv/fast disk\n\n16386 /a\\\nb\\\\c\n", PgMajor::V14).unwrap();
        assert_eq!(map.links[0], TablespaceLink { oid: 16385, path: b"/srv/fast disk".to_vec() });
        assert_eq!(map.links[1], TablespaceLink { oid: 16386, path: b"/a\nb\\c".to_vec() });
        let old = TablespaceMap::parse(b"16386 /a\\\nb\\\\c\n", PgMajor::V13).unwrap();
        assert_eq!(old.links, [TablespaceLink { oid: 16386, path: b"/a\nb\\\\c".to_vec() }]);
        for bad in ["16385\n", "x /a\n", "0 /a\n", "16385 /a", "16385 /a\\", "16385 \n", "16385  /a\n"] {
            assert!(TablespaceMap::parse(bad.as_bytes(), PgMajor::V15).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn version_13_cannot_write_a_backslash_before_a_line_end() {
        for path in ["/a\\", "/a\\\nb"] {
            let map = TablespaceMap { links: vec![TablespaceLink { oid: 7, path: path.into() }] };
            assert!(
                matches!(map.to_bytes(PgMajor::V13), Err(LabelError::Unwritable { oid: 7, .. })),
                "{path:?}"
            );
            assert!(map.to_bytes(PgMajor::V14).is_ok());
        }
    }

    proptest! {
        #[test]
        fn a_written_map_is_read_back(
            oids in proptest::collection::vec((1_u32.., "/[ -~\r\n\\\\]{0,40}"), 0..5), old: bool
        ) {
            let major = if old { PgMajor::V13 } else { PgMajor::V14 };
            let links = oids.into_iter().map(|(oid, p)| TablespaceLink { oid, path: p.into_bytes() }).collect();
            let map = TablespaceMap { links };
            match map.to_bytes(major) {
                Ok(bytes) => prop_assert_eq!(TablespaceMap::parse(&bytes, major).unwrap(), map),
                Err(error) => prop_assert!(old, "{error}"),
            }
        }
    }
}
