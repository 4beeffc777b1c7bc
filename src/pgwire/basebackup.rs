//! `BASE_BACKUP`: the command for each version, and its answers turned into one sequence of events.
//!
//! ```text
//!              13, 14                                15 and later
//!  Start       T D C      start LSN, timeline        the same
//!  Tablespaces T D* C     the data directory last    the same
//!  Copy        H d* c     for each row of the list   H, then n(ame) d(ata) p(rogress) m(anifest) frames, c
//!              H d* c     the manifest, if asked
//!  End         T D C      end LSN, timeline          the same
//!  Command     C          BASE_BACKUP                the same; or an error if checksums were wrong
//! ```
//! Pure: messages in, events out, data as slices. Invariants: archives come in the order of the tablespace list, all of them and
//! none twice; [`BackupEvent::Ended`] alone is no success, only [`BaseBackup::is_done`] is. Source of truth: `basebackup.c`,
//! `basebackup_copy.c`, `repl_gram.y` of PostgreSQL 13 to 18.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::message::{Message, Row, ServerNotice, WireError, memory_of};
use super::replication::Cells;
use crate::wal::{Lsn, TimelineId};

/// The name by which errors call the command.
const COMMAND: &str = "BASE_BACKUP";
/// First version with the parenthesised options and the single copy stream.
const SINGLE_COPY_VERSION: u32 = 150_000;
/// Longest label, in bytes (`MAXPGPATH` in `basebackup.c`).
const MAX_LABEL: usize = 1024;
/// More tablespaces than any server has; a bound for the list held in memory.
const MAX_TABLESPACES: usize = 100_000;
/// The same bound for their bytes: the longest names and places there can be are some KiB.
const MAX_ROW_BYTES: usize = 64 << 20;
/// Warnings kept for [`BackupFailure::Checksums`]; the server itself says at most five per file.
const MAX_WARNINGS: usize = 200;

/// How the checkpoint at the start is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once, at the price of a burst of writes.
    Fast,
    /// Spread over time: the first answer can take minutes.
    Spread,
}

/// What to ask for. Never part of it: the WAL (it goes through the archive), and waiting for the archiver (we know better than the
/// server whether a segment is stored). Tablespaces are always described by `tablespace_map`, never by links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Ends up in `backup_label`: one line, at most 1024 bytes.
    pub label: String,
    /// How the checkpoint is made.
    pub checkpoint: Checkpoint,
    /// Ask for the size of each tablespace beforehand (the server walks all files once more for it).
    pub estimate_sizes: bool,
    /// Limit in kB/s, 32 to 1048576.
    pub max_rate: Option<u32>,
    /// Ask for the server's `backup_manifest`, with CRC-32C (SHA-256 more than doubles the server's work).
    pub manifest: bool,
    /// Let the server check page checksums: only it can read a torn page again.
    pub verify_checksums: bool,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        Self {
            label: "pitr base backup".into(),
            checkpoint: Checkpoint::Fast,
            estimate_sizes: true,
            max_rate: None,
            manifest: true,
            verify_checksums: true,
        }
    }
}

/// Options that no server accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A label that would break `backup_label`.
    #[error("the backup label {0}")]
    Label(&'static str),
    /// A rate out of range.
    #[error("a rate of {0} kB/s is not possible (32 to 1048576)")]
    MaxRate(u32),
}

impl BaseBackupOptions {
    /// The command in the grammar of a server of `version_num`; neither grammar is understood by the other side of 15.
    ///
    /// # Errors
    /// [`OptionsError`] for what the server would refuse, or what would break `backup_label`.
    pub fn command(&self, version_num: u32) -> Result<String, OptionsError> {
        let label = self.quoted_label()?;
        if let Some(rate) = self.max_rate.filter(|rate| !(32..=1_048_576).contains(rate)) {
            return Err(OptionsError::MaxRate(rate));
        }
        let rate = self.max_rate.map(|rate| format!("MAX_RATE {rate}"));
        let manifest = |word: &str| self.manifest.then(|| word.to_owned());
        let mut words = vec![Some(format!("LABEL {label}"))];
        if version_num >= SINGLE_COPY_VERSION {
            let checkpoint = if self.checkpoint == Checkpoint::Fast { "fast" } else { "spread" };
            words.extend([
                Some(format!("PROGRESS {}", self.estimate_sizes)),
                Some(format!("CHECKPOINT '{checkpoint}'")),
                Some("WAIT false".into()),
                Some("TABLESPACE_MAP true".into()),
                Some(format!("VERIFY_CHECKSUMS {}", self.verify_checksums)),
                rate,
                manifest("MANIFEST 'yes'"),
                manifest("MANIFEST_CHECKSUMS 'CRC32C'"),
            ]);
            return Ok(format!("{COMMAND} ({})", joined(words, ", ")));
        }
        words.extend([
            self.estimate_sizes.then(|| "PROGRESS".into()),
            (self.checkpoint == Checkpoint::Fast).then(|| "FAST".into()),
            Some("NOWAIT".into()),
            Some("TABLESPACE_MAP".into()),
            (!self.verify_checksums).then(|| "NOVERIFY_CHECKSUMS".into()),
            rate,
            manifest("MANIFEST 'yes'"),
            manifest("MANIFEST_CHECKSUMS 'CRC32C'"),
        ]);
        Ok(format!("{COMMAND} {}", joined(words, " ")))
    }

    /// The replication grammar knows no escape but the doubled quote (`repl_scanner.l`).
    fn quoted_label(&self) -> Result<String, OptionsError> {
        if self.label.len() > MAX_LABEL {
            return Err(OptionsError::Label("is longer than 1024 bytes"));
        }
        if self.label.chars().any(char::is_control) {
            return Err(OptionsError::Label("must be one line without control characters"));
        }
        Ok(format!("'{}'", self.label.replace('\'', "''")))
    }
}

fn joined(words: Vec<Option<String>>, between: &str) -> String {
    words.into_iter().flatten().collect::<Vec<_>>().join(between)
}

/// A row of the tablespace list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceInfo {
    /// Its oid; none for the data directory itself.
    pub oid: Option<u32>,
    /// Where it lies on the server, as bytes; relative for one inside the data directory; none for the data directory itself.
    pub location: Option<Vec<u8>>,
    /// The server's estimate in bytes, if sizes were asked for.
    pub size: Option<u64>,
}

/// What a base backup consists of, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// The checkpoint is done; WAL is needed from here.
    Started {
        /// Redo position of the checkpoint.
        lsn: Lsn,
        /// Timeline of the backup's start.
        timeline: TimelineId,
    },
    /// What will be sent, the data directory last.
    Tablespaces(Vec<TablespaceInfo>),
    /// A tar archive begins.
    ArchiveBegin {
        /// Oid of the tablespace; none for the data directory.
        tablespace: Option<u32>,
    },
    /// Its bytes, cut anywhere; never empty.
    ArchiveData(Bytes),
    /// It is complete.
    ArchiveEnd,
    /// The server's `backup_manifest` begins.
    ManifestBegin,
    /// Its bytes, cut anywhere; never empty. It ends before [`BackupEvent::Ended`].
    ManifestData(Bytes),
    /// 15 and later: uncompressed bytes of all archives so far, about once a second.
    Progress {
        /// Cumulative over the archives.
        bytes: u64,
    },
    /// Something the server wants to tell, at any point.
    Notice(ServerNotice),
    /// All data is sent; WAL is needed up to here.
    Ended {
        /// The position up to which WAL makes the backup consistent.
        lsn: Lsn,
        /// Timeline of the backup's end.
        timeline: TimelineId,
    },
}

/// The page checksums of the source are wrong: the backup is complete, and a faithful copy of damaged pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumFailure {
    /// The error that came in place of success.
    pub error: ServerNotice,
    /// What the server said about files and blocks, the first 200 messages.
    pub warnings: Vec<ServerNotice>,
    /// Warnings beyond those.
    pub more_warnings: u64,
    /// End of the backup, as in [`BackupEvent::Ended`].
    pub end: (Lsn, TimelineId),
}

/// Why a base backup is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupFailure {
    /// The server gave up.
    #[error("the server ended the base backup: {0}")]
    Server(Box<ServerNotice>),
    /// All data arrived, but pages of it have wrong checksums.
    #[error("pages of the source are damaged: {}", .0.error.message)]
    Checksums(Box<ChecksumFailure>),
    /// The answers do not follow the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Where in the sequence of answers we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Start,
    Tablespaces,
    /// Before a copy stream (13, 14: before each).
    BeforeCopy,
    Copy(Current),
    End,
    Command,
    Ready,
    Done,
}

/// What the bytes of a copy stream belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    Nothing,
    Archive,
    Manifest,
}

/// The state of one `BASE_BACKUP`: feed messages, take events.
#[derive(Debug)]
pub struct BaseBackup {
    single_copy: bool,
    manifest: Manifest,
    step: Step,
    rows: Vec<Row>,
    /// Bytes of all rows so far.
    row_bytes: usize,
    /// Oids of the list, in order; `None` is the data directory.
    archives: Vec<Option<u32>>,
    begun: usize,
    end: Option<(Lsn, TimelineId)>,
    warnings: Vec<ServerNotice>,
    more_warnings: u64,
    failure: Option<BackupFailure>,
    events: VecDeque<BackupEvent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manifest {
    NotAsked,
    Awaited,
    Begun,
}

impl BaseBackup {
    /// The state right after `options.command(version_num)` was sent.
    pub fn new(version_num: u32, options: &BaseBackupOptions) -> Self {
        Self {
            single_copy: version_num >= SINGLE_COPY_VERSION,
            manifest: if options.manifest { Manifest::Awaited } else { Manifest::NotAsked },
            step: Step::Start,
            rows: Vec::new(),
            row_bytes: 0,
            archives: Vec::new(),
            begun: 0,
            end: None,
            warnings: Vec::new(),
            more_warnings: 0,
            failure: None,
            events: VecDeque::new(),
        }
    }

    /// True until data can come: the checkpoint is being made, or sizes are being estimated (13 and 14 tell the position first).
    pub fn is_preparing(&self) -> bool {
        matches!(self.step, Step::Start | Step::Tablespaces)
    }

    /// True once the server has confirmed the backup and is ready for another command.
    pub fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    /// The failure that the server has announced, if the connection ends before it is ready again.
    pub fn take_failure(&mut self) -> Option<BackupFailure> {
        self.failure.take()
    }

    /// The next event that the messages so far amount to.
    pub fn next_event(&mut self) -> Option<BackupEvent> {
        self.events.pop_front()
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// [`BackupFailure`]. After `Server` and `Checksums` the connection is ready for another command.
    pub fn on(&mut self, message: Message) -> Result<(), BackupFailure> {
        match message {
            Message::Notice(notice) => self.note(*notice),
            Message::ParameterStatus(..) => {}
            Message::Error(error) => {
                let failure = self.failed(*error);
                self.failure.get_or_insert(failure);
            }
            Message::ReadyForQuery if self.failure.is_some() => {
                self.failure.take().map_or(Ok(()), Err)?;
            }
            _ if self.failure.is_some() => {} // rows that were under way
            other => self.advance(other)?,
        }
        Ok(())
    }

    fn note(&mut self, notice: ServerNotice) {
        if notice.severity == "WARNING" {
            if self.warnings.len() < MAX_WARNINGS {
                self.warnings.push(notice.clone());
            } else {
                self.more_warnings = self.more_warnings.saturating_add(1);
            }
        }
        self.events.push_back(BackupEvent::Notice(notice));
    }

    /// `ERRCODE_DATA_CORRUPTED` after the end position is how the server reports checksums; anywhere else it is an ordinary error.
    fn failed(&mut self, error: ServerNotice) -> BackupFailure {
        match self.end {
            Some(end) if error.code == "XX001" => BackupFailure::Checksums(Box::new(ChecksumFailure {
                error,
                warnings: std::mem::take(&mut self.warnings),
                more_warnings: self.more_warnings,
                end,
            })),
            _ => BackupFailure::Server(Box::new(error)),
        }
    }

    fn advance(&mut self, message: Message) -> Result<(), WireError> {
        match (self.step, message) {
            (Step::Start | Step::Tablespaces | Step::End, Message::RowDescription) => {}
            (Step::Start | Step::Tablespaces | Step::End, Message::DataRow(row)) => {
                self.row_bytes = self.row_bytes.saturating_add(memory_of(&row));
                if self.rows.len() >= MAX_TABLESPACES || self.row_bytes > MAX_ROW_BYTES {
                    return Err(wrong(format!("more than {MAX_TABLESPACES} rows, or {MAX_ROW_BYTES} bytes")));
                }
                self.rows.push(row);
            }
            (Step::Start, Message::CommandComplete(_)) => {
                let (lsn, timeline) = self.position()?;
                self.events.push_back(BackupEvent::Started { lsn, timeline });
                self.step = Step::Tablespaces;
            }
            (Step::Tablespaces, Message::CommandComplete(_)) => self.tablespaces()?,
            (Step::BeforeCopy, Message::CopyOut) if self.single_copy => {
                self.step = Step::Copy(Current::Nothing);
            }
            (Step::BeforeCopy, Message::CopyOut) => self.copy_begins()?,
            (Step::Copy(current), Message::CopyData(data)) if self.single_copy => {
                self.frame(current, data)?;
            }
            (Step::Copy(current), Message::CopyData(data)) => self.data(current, data)?,
            (Step::Copy(current), Message::CopyDone) => self.copy_ends(current)?,
            (Step::End, Message::CommandComplete(_)) => {
                let (lsn, timeline) = self.position()?;
                self.end = Some((lsn, timeline));
                self.events.push_back(BackupEvent::Ended { lsn, timeline });
                self.step = Step::Command;
            }
            (Step::Command, Message::CommandComplete(tag)) if tag == COMMAND => self.step = Step::Ready,
            (Step::Ready, Message::ReadyForQuery) => self.step = Step::Done,
            (step, message) => {
                return Err(WireError::Unexpected { got: message.name(), expected: expected(step) });
            }
        }
        Ok(())
    }

    /// The single row of a result that is a position and a timeline.
    fn position(&mut self) -> Result<(Lsn, TimelineId), WireError> {
        let rows = std::mem::take(&mut self.rows);
        let [row] = &rows[..] else {
            return Err(wrong(format!("{} rows instead of a position", rows.len())));
        };
        let cells = Cells { command: COMMAND, row };
        Ok((cells.parsed(0, "WAL position")?, cells.timeline(1)?))
    }

    fn tablespaces(&mut self) -> Result<(), WireError> {
        let rows = std::mem::take(&mut self.rows);
        let list = rows.iter().map(tablespace).collect::<Result<Vec<_>, _>>()?;
        self.archives = list.iter().map(|tablespace| tablespace.oid).collect();
        match self.archives.split_last() {
            Some((None, others)) if others.iter().all(Option::is_some) => {}
            _ => return Err(wrong("the data directory is not the last of the tablespaces".into())),
        }
        self.events.push_back(BackupEvent::Tablespaces(list));
        self.step = Step::BeforeCopy;
        Ok(())
    }

    /// 13 and 14: the streams are nameless, their order tells what they are.
    fn copy_begins(&mut self) -> Result<(), WireError> {
        if let Some(&tablespace) = self.archives.get(self.begun) {
            self.begun = self.begun.saturating_add(1);
            self.events.push_back(BackupEvent::ArchiveBegin { tablespace });
            self.step = Step::Copy(Current::Archive);
            return Ok(());
        }
        self.manifest_begins()
    }

    fn manifest_begins(&mut self) -> Result<(), WireError> {
        if self.manifest != Manifest::Awaited || self.begun < self.archives.len() {
            return Err(wrong("a manifest that was not asked for, or before all archives".into()));
        }
        self.manifest = Manifest::Begun;
        self.events.push_back(BackupEvent::ManifestBegin);
        self.step = Step::Copy(Current::Manifest);
        Ok(())
    }

    fn copy_ends(&mut self, current: Current) -> Result<(), WireError> {
        if current == Current::Archive {
            self.events.push_back(BackupEvent::ArchiveEnd);
        }
        let complete = self.begun == self.archives.len() && self.manifest != Manifest::Awaited;
        if self.single_copy && !complete {
            return Err(wrong("the data ends before all archives and the manifest were sent".into()));
        }
        self.step = if complete { Step::End } else { Step::BeforeCopy };
        Ok(())
    }

    fn data(&mut self, current: Current, data: Bytes) -> Result<(), WireError> {
        if data.is_empty() {
            return Ok(());
        }
        self.events.push_back(match current {
            Current::Archive => BackupEvent::ArchiveData(data),
            Current::Manifest => BackupEvent::ManifestData(data),
            Current::Nothing => return Err(wrong("data that belongs to no archive".into())),
        });
        Ok(())
    }

    /// 15 and later: the first byte tells what a frame is.
    fn frame(&mut self, current: Current, mut frame: Bytes) -> Result<(), WireError> {
        let kind = frame.first().copied();
        frame.advance(usize::from(kind.is_some()));
        match kind {
            Some(b'd') => return self.data(current, frame),
            Some(b'p') => {
                let bytes = frame.first_chunk::<8>().filter(|_| frame.len() == 8);
                let bytes = bytes.and_then(|bytes| u64::try_from(i64::from_be_bytes(*bytes)).ok());
                let bytes = bytes.ok_or_else(|| wrong("a progress frame without a number".into()))?;
                self.events.push_back(BackupEvent::Progress { bytes });
                return Ok(());
            }
            Some(b'n' | b'm') if current == Current::Manifest => {
                return Err(wrong("more data after the manifest".into()));
            }
            Some(b'n' | b'm') => {}
            other => return Err(wrong(format!("a frame of unknown kind {other:?}"))),
        }
        if current == Current::Archive {
            self.events.push_back(BackupEvent::ArchiveEnd);
        }
        if kind == Some(b'm') { self.manifest_begins() } else { self.archive_begins(&frame) }
    }

    fn archive_begins(&mut self, frame: &[u8]) -> Result<(), WireError> {
        let name = frame.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        let Some(&tablespace) = self.archives.get(self.begun) else {
            return Err(wrong(format!("archive {name:?} after the last one")));
        };
        let awaited = tablespace.map_or_else(|| "base.tar".to_owned(), |oid| format!("{oid}.tar"));
        if name != awaited {
            return Err(wrong(format!("archive {name:?} where {awaited:?} should come")));
        }
        self.begun = self.begun.saturating_add(1);
        self.events.push_back(BackupEvent::ArchiveBegin { tablespace });
        self.step = Step::Copy(Current::Archive);
        Ok(())
    }
}

fn tablespace(row: &Row) -> Result<TablespaceInfo, WireError> {
    let cells = Cells { command: COMMAND, row };
    let oid = cells.optional(0).map(|_| cells.parsed::<u32>(0, "tablespace oid")).transpose()?;
    let location = cells.optional(1).map(|bytes| bytes.to_vec());
    let kilobytes = cells.optional(2).map(|_| cells.parsed::<u64>(2, "tablespace size")).transpose()?;
    if oid.is_some() != location.is_some() {
        return Err(wrong("a tablespace without oid or location".into()));
    }
    Ok(TablespaceInfo { oid, location, size: kilobytes.map(|kilobytes| kilobytes.saturating_mul(1024)) })
}

fn wrong(reason: String) -> WireError {
    WireError::Answer { command: COMMAND, reason }
}

fn expected(step: Step) -> &'static str {
    match step {
        Step::Start => "the start of the base backup",
        Step::Tablespaces => "the list of tablespaces",
        Step::BeforeCopy => "a copy stream",
        Step::Copy(_) => "data of the base backup",
        Step::End => "the end of the base backup",
        Step::Command => "the confirmation of the base backup",
        Step::Ready => "ReadyForQuery",
        Step::Done => "nothing",
    }
}

#[cfg(test)]
mod tests;
