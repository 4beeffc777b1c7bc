//! The annex of a WAL object: what the scan of the segment learned, stored with it in the same object.
//!
//! ```text
//!  51 2A 4D 18 │ length u32 │ section │ section │ … │ crc u32
//!  section     kind u16 │ length u32 │ value            kinds ascend, each at most once
//! ```
//! Section 0 lists the kinds that the scan looked for: a listed kind without a section means none was found, a kind that is not
//! listed means nobody looked. Readers skip kinds they do not know. The CRC-32 lets a planner trust the first kilobytes of an
//! object without reading the rest. Invariants: at most [`MAX_ANNEX`] bytes; a list longer than [`MAX_LIST`] keeps its first
//! entries and says so. Numbers are little-endian. Pure.

use super::binary::{FRAME_HEAD, FrameKind, Reader, Writer, skippable, skippable_len};
use crate::wal::event::{Event, EventKind};
use crate::wal::scan::{Backstep, CommitSummary, FRAGMENT_BYTES, Fragment, SegmentScan, Stamp};
use crate::wal::{Lsn, PgTime, TimelineId};

/// Largest annex, its frame head included.
pub const MAX_ANNEX: usize = 256 * 1024;
/// Most entries of one list.
pub const MAX_LIST: usize = 256;
/// Most databases of one DROP DATABASE record.
const MAX_DATABASES: usize = 64;
/// Most entries of the list of tablespaces: each can be long.
const MAX_TABLESPACES: usize = 16;
/// Longest place of a tablespace (`MAXPGPATH`).
const MAX_PLACE: usize = 1024;
/// Longest restore point name: PostgreSQL's 63 bytes, each replaced by a three-byte character if it is not UTF-8.
const MAX_NAME: usize = 63 * 3;

/// Kinds of sections.
pub mod kind {
    /// The kinds looked for.
    pub const LOOKED_FOR: u16 = 0;
    /// Page magic and major version.
    pub const WRITER: u16 = 1;
    /// Timelines of the pages, number of records, first and last record.
    pub const SPAN: u16 = 2;
    /// Counts and extremes of commits and aborts.
    pub const COMMITS: u16 = 3;
    /// The end of a record from the segment before.
    pub const HEAD: u16 = 4;
    /// The beginning of a record that goes on in the next segment.
    pub const TAIL: u16 = 5;
    /// Restore points.
    pub const RESTORE_POINTS: u16 = 16;
    /// Checkpoints.
    pub const CHECKPOINTS: u16 = 17;
    /// Ends of recovery.
    pub const RECOVERY_ENDS: u16 = 18;
    /// Ends of base backups.
    pub const BACKUP_ENDS: u16 = 19;
    /// Segment switches.
    pub const SWITCHES: u16 = 20;
    /// Parameter changes.
    pub const PARAMETERS: u16 = 21;
    /// DROP DATABASE.
    pub const DATABASE_DROPS: u16 = 22;
    /// CREATE DATABASE.
    pub const DATABASE_CREATES: u16 = 23;
    /// Abandoned records.
    pub const OVERWRITES: u16 = 24;

    /// CREATE TABLESPACE.
    pub const TABLESPACE_CREATES: u16 = 25;

    /// The lists of events.
    pub const LISTS: [u16; 10] = [
        RESTORE_POINTS,
        CHECKPOINTS,
        RECOVERY_ENDS,
        BACKUP_ENDS,
        SWITCHES,
        PARAMETERS,
        DATABASE_DROPS,
        DATABASE_CREATES,
        OVERWRITES,
        TABLESPACE_CREATES,
    ];
}

/// What a scan learned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annex {
    /// Kinds that were looked for, ascending.
    pub looked_for: Vec<u16>,
    /// Who wrote the segment.
    pub writer: Option<WalWriter>,
    /// Which records it holds.
    pub span: Option<Span>,
    /// Commits and aborts.
    pub commits: Option<CommitSummary>,
    /// The end of a record from the segment before.
    pub head: Option<Fragment>,
    /// The beginning of a record that goes on in the next segment.
    pub tail: Option<Fragment>,
    /// Events in WAL order, without commits, aborts and prepares.
    pub events: Vec<Event>,
    /// Lists that are incomplete, ascending: there were more than fit. What is missing is later than what is there.
    pub overflowed: Vec<u16>,
}

/// The PostgreSQL that wrote a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalWriter {
    /// Page magic.
    pub magic: u16,
    /// Major version, 0 if the magic was not known.
    pub major: u16,
}

/// The records of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Timeline in the first page.
    pub first_timeline: TimelineId,
    /// Timeline in the last valid page.
    pub last_timeline: TimelineId,
    /// Complete records that start in the segment.
    pub records: u64,
    /// Start of the first.
    pub first_record: Option<Lsn>,
    /// Start of the record before it, in an earlier segment.
    pub first_previous: Option<Lsn>,
    /// Start of the last.
    pub last_record: Option<Lsn>,
    /// First byte after the last.
    pub last_record_end: Option<Lsn>,
}

/// Bytes that are no annex, or not all of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnexError {
    /// More bytes of the object are needed.
    #[error("the annex needs {0} bytes")]
    NeedMore(usize),
    /// Not an annex, or a damaged one.
    #[error("the annex is damaged: {0}")]
    Damaged(&'static str),
}

impl Annex {
    /// What `scan` learned. A scan that could not decode the records of a newer PostgreSQL leaves commits and lists unlisted.
    pub fn from_scan(scan: &SegmentScan) -> Self {
        let followed = scan.decoded || scan.records > 0;
        let mut looked_for = vec![kind::WRITER];
        if followed {
            looked_for.extend([kind::SPAN, kind::HEAD, kind::TAIL]);
        }
        if scan.decoded {
            looked_for.push(kind::COMMITS);
            looked_for.extend(kind::LISTS);
        }
        looked_for.sort_unstable();
        let mut annex = Self {
            looked_for,
            writer: Some(WalWriter {
                magic: scan.magic,
                major: scan.major.and_then(|m| u16::try_from(m.number()).ok()).unwrap_or(0),
            }),
            span: followed.then_some(Span {
                first_timeline: scan.first_timeline,
                last_timeline: scan.last_timeline,
                records: scan.records,
                first_record: scan.first_record,
                first_previous: scan.first_previous,
                last_record: scan.last_record,
                last_record_end: scan.last_record_end,
            }),
            commits: scan.decoded.then_some(scan.commits),
            head: scan.head.clone().filter(|_| followed),
            tail: scan.tail.clone().filter(|_| followed),
            events: Vec::new(),
            overflowed: Vec::new(),
        };
        if scan.decoded {
            annex.keep_events(&scan.events, scan.events_dropped > 0);
        }
        annex
    }

    /// Of a segment that is damaged from its first byte on: there is nothing to look for.
    pub fn of_nothing() -> Self {
        let mut looked_for = vec![kind::COMMITS, kind::HEAD, kind::TAIL];
        looked_for.extend(kind::LISTS);
        Self { looked_for, commits: Some(CommitSummary::default()), ..Self::default() }
    }

    fn keep_events(&mut self, events: &[Event], dropped: bool) {
        let mut counts = [0; kind::LISTS.len()];
        for event in events {
            let Some(index) = kind::LISTS.iter().position(|k| Some(*k) == kind_of(&event.kind)) else {
                continue;
            };
            if let Some(count) = counts.get_mut(index) {
                *count += 1;
                if *count <= most(kind_of(&event.kind)) {
                    self.events.push(event.clone());
                }
            }
        }
        let lists = kind::LISTS.into_iter().zip(counts);
        self.overflowed =
            lists.filter(|(k, count)| dropped || *count > most(Some(*k))).map(|(k, _)| k).collect();
    }

    /// Whether a scan looked for `kind`; if not, its absence says nothing.
    pub fn looked_for(&self, kind: u16) -> bool {
        self.looked_for.contains(&kind)
    }

    /// Whether all events of the list `kind` are here.
    pub fn complete(&self, kind: u16) -> bool {
        self.looked_for(kind) && !self.overflowed.contains(&kind)
    }

    /// The whole skippable frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let mut section = |kind: u16, value: &Writer| {
            let len = u32::try_from(value.0.len()).expect("sections are bounded by MAX_LIST short entries");
            out.u16(kind).u32(len).bytes(&value.0);
        };
        let mut looked = Writer::default();
        for kind in &self.looked_for {
            looked.u16(*kind);
        }
        section(kind::LOOKED_FOR, &looked);
        if let Some(writer) = &self.writer {
            section(kind::WRITER, Writer::default().u16(writer.magic).u16(writer.major));
        }
        if let Some(span) = &self.span {
            section(kind::SPAN, &write_span(span));
        }
        if let Some(commits) = &self.commits {
            section(kind::COMMITS, &write_commits(commits));
        }
        for (kind, fragment) in [(kind::HEAD, &self.head), (kind::TAIL, &self.tail)] {
            if let Some(fragment) = fragment {
                section(kind, &write_fragment(fragment));
            }
        }
        for kind in kind::LISTS {
            let events = self.events.iter().filter(|e| kind_of(&e.kind) == Some(kind));
            let events: Vec<&Event> = events.take(MAX_LIST).collect();
            let overflowed = self.overflowed.contains(&kind);
            if !events.is_empty() || overflowed {
                section(kind, &write_list(&events, overflowed));
            }
        }
        let crc = crc32fast::hash(&out.0);
        skippable(FrameKind::Annex, &out.u32(crc).0)
    }

    /// Reads an annex at the start of `bytes`; also how many bytes its frame has.
    ///
    /// # Errors
    /// [`AnnexError::NeedMore`] names how many bytes of the frame are needed, if `bytes` ends before it.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), AnnexError> {
        if bytes.len() < FRAME_HEAD {
            return Err(AnnexError::NeedMore(FRAME_HEAD));
        }
        let len =
            skippable_len(FrameKind::Annex, bytes).ok_or(AnnexError::Damaged("no annex stands here"))?;
        let total = len.saturating_add(FRAME_HEAD);
        if total > MAX_ANNEX {
            return Err(AnnexError::Damaged("larger than any"));
        }
        let payload = bytes.get(FRAME_HEAD..total).ok_or(AnnexError::NeedMore(total))?;
        let (sections, crc) = payload.split_last_chunk::<4>().ok_or(AnnexError::Damaged("no checksum"))?;
        if crc32fast::hash(sections) != u32::from_le_bytes(*crc) {
            return Err(AnnexError::Damaged("its checksum differs"));
        }
        let annex = Self::parse_sections(sections).ok_or(AnnexError::Damaged("a section is malformed"))?;
        Ok((annex, total))
    }

    fn parse_sections(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let mut annex = Self::default();
        let mut last = None;
        while !reader.is_empty() {
            let kind = reader.u16()?;
            let len = usize::try_from(reader.u32()?).ok()?;
            let mut value = Reader::new(reader.take(len)?);
            if last.is_some_and(|last| last >= kind) {
                return None;
            }
            last = Some(kind);
            match kind {
                kind::LOOKED_FOR => annex.looked_for = read_kinds(&mut value)?,
                kind::WRITER => annex.writer = Some(WalWriter { magic: value.u16()?, major: value.u16()? }),
                kind::SPAN => annex.span = Some(read_span(&mut value)?),
                kind::COMMITS => annex.commits = Some(read_commits(&mut value)?),
                kind::HEAD => annex.head = Some(read_fragment(&mut value)?),
                kind::TAIL => annex.tail = Some(read_fragment(&mut value)?),
                list if kind::LISTS.contains(&list) => annex.read_list(list, &mut value)?,
                _ => continue,
            }
            if !value.is_empty() {
                return None;
            }
        }
        annex.events.sort_by_key(|event| event.lsn);
        Some(annex)
    }

    fn read_list(&mut self, kind: u16, value: &mut Reader<'_>) -> Option<()> {
        if value.flag()? {
            self.overflowed.push(kind);
        }
        let count = usize::try_from(value.u32()?).ok().filter(|n| *n <= MAX_LIST)?;
        for _ in 0..count {
            let (lsn, end, xid) = (value.lsn()?, value.lsn()?, value.u32()?);
            self.events.push(Event { lsn, end, xid, kind: read_event(kind, value)? });
        }
        Some(())
    }
}

/// Most entries of a list.
fn most(kind: Option<u16>) -> usize {
    if kind == Some(kind::TABLESPACE_CREATES) { MAX_TABLESPACES } else { MAX_LIST }
}

/// The list an event belongs to; `None` for commits, aborts and prepares, of which there can be millions.
fn kind_of(event: &EventKind) -> Option<u16> {
    match event {
        EventKind::Commit { .. } | EventKind::Abort { .. } | EventKind::Prepare { .. } => None,
        EventKind::RestorePoint { .. } => Some(kind::RESTORE_POINTS),
        EventKind::Checkpoint { .. } => Some(kind::CHECKPOINTS),
        EventKind::EndOfRecovery { .. } => Some(kind::RECOVERY_ENDS),
        EventKind::BackupEnd { .. } => Some(kind::BACKUP_ENDS),
        EventKind::Switch => Some(kind::SWITCHES),
        EventKind::ParameterChange { .. } => Some(kind::PARAMETERS),
        EventKind::DatabaseDrop { .. } => Some(kind::DATABASE_DROPS),
        EventKind::DatabaseCreate { .. } => Some(kind::DATABASE_CREATES),
        EventKind::OverwriteContrecord { .. } => Some(kind::OVERWRITES),
        EventKind::TablespaceCreate { .. } => Some(kind::TABLESPACE_CREATES),
    }
}

fn write_list(events: &[&Event], overflowed: bool) -> Writer {
    let mut out = Writer::default();
    out.flag(overflowed).u32(u32::try_from(events.len()).expect("at most MAX_LIST events"));
    for event in events {
        out.lsn(event.lsn).lsn(event.end).u32(event.xid);
        write_event(&mut out, &event.kind);
    }
    out
}

fn write_event(out: &mut Writer, event: &EventKind) {
    match event {
        EventKind::Commit { .. }
        | EventKind::Abort { .. }
        | EventKind::Prepare { .. }
        | EventKind::Switch => {}
        EventKind::RestorePoint { time, name } => {
            let (name, _) = name.split_at(name.floor_char_boundary(MAX_NAME));
            out.time(*time)
                .u8(u8::try_from(name.len()).expect("at most MAX_NAME bytes"))
                .bytes(name.as_bytes());
        }
        EventKind::Checkpoint { time, redo, shutdown, timeline } => {
            out.time(*time).lsn(*redo).flag(*shutdown).u32(timeline.get());
        }
        EventKind::EndOfRecovery { time, timeline, previous } => {
            out.time(*time).u32(timeline.get()).u32(previous.get());
        }
        EventKind::BackupEnd { start } => {
            out.lsn(*start);
        }
        EventKind::ParameterChange {
            max_connections,
            max_worker_processes,
            max_wal_senders,
            max_prepared_xacts,
            max_locks_per_xact,
            wal_level,
        } => {
            out.i32(*max_connections).i32(*max_worker_processes).i32(*max_wal_senders);
            out.i32(*max_prepared_xacts).i32(*max_locks_per_xact).i32(*wal_level);
        }
        EventKind::DatabaseDrop { databases } => {
            let databases = databases.get(..MAX_DATABASES).unwrap_or(databases);
            out.u8(u8::try_from(databases.len()).expect("at most MAX_DATABASES"));
            for database in databases {
                out.u32(*database);
            }
        }
        EventKind::DatabaseCreate { database } => {
            out.u32(*database);
        }
        EventKind::OverwriteContrecord { lsn } => {
            out.lsn(*lsn);
        }
        EventKind::TablespaceCreate { tablespace, place } => {
            let place = place.get(..MAX_PLACE).unwrap_or(place);
            out.u32(*tablespace).u16(u16::try_from(place.len()).expect("at most MAX_PLACE")).bytes(place);
        }
    }
}

fn read_event(kind: u16, value: &mut Reader<'_>) -> Option<EventKind> {
    Some(match kind {
        kind::RESTORE_POINTS => {
            let time = value.time()?;
            let len = usize::from(value.u8()?);
            let name = std::str::from_utf8(value.take(len)?).ok()?.to_owned();
            EventKind::RestorePoint { time, name }
        }
        kind::CHECKPOINTS => EventKind::Checkpoint {
            time: value.time()?,
            redo: value.lsn()?,
            shutdown: value.flag()?,
            timeline: TimelineId::new(value.u32()?)?,
        },
        kind::RECOVERY_ENDS => EventKind::EndOfRecovery {
            time: value.time()?,
            timeline: TimelineId::new(value.u32()?)?,
            previous: TimelineId::new(value.u32()?)?,
        },
        kind::BACKUP_ENDS => EventKind::BackupEnd { start: value.lsn()? },
        kind::SWITCHES => EventKind::Switch,
        kind::PARAMETERS => EventKind::ParameterChange {
            max_connections: value.i32()?,
            max_worker_processes: value.i32()?,
            max_wal_senders: value.i32()?,
            max_prepared_xacts: value.i32()?,
            max_locks_per_xact: value.i32()?,
            wal_level: value.i32()?,
        },
        kind::DATABASE_DROPS => {
            let count = usize::from(value.u8()?);
            if count > MAX_DATABASES {
                return None;
            }
            EventKind::DatabaseDrop { databases: (0..count).map(|_| value.u32()).collect::<Option<_>>()? }
        }
        kind::DATABASE_CREATES => EventKind::DatabaseCreate { database: value.u32()? },
        kind::OVERWRITES => EventKind::OverwriteContrecord { lsn: value.lsn()? },
        kind::TABLESPACE_CREATES => {
            let tablespace = value.u32()?;
            let len = usize::from(value.u16()?);
            if len > MAX_PLACE {
                return None;
            }
            EventKind::TablespaceCreate { tablespace, place: value.take(len)?.to_vec() }
        }
        _ => return None,
    })
}

fn read_kinds(value: &mut Reader<'_>) -> Option<Vec<u16>> {
    let mut kinds = Vec::new();
    while !value.is_empty() {
        let kind = value.u16()?;
        if kinds.last().is_some_and(|last| *last >= kind) {
            return None;
        }
        kinds.push(kind);
    }
    Some(kinds)
}

fn write_span(span: &Span) -> Writer {
    let mut out = Writer::default();
    out.u32(span.first_timeline.get()).u32(span.last_timeline.get()).u64(span.records);
    for lsn in [span.first_record, span.first_previous, span.last_record, span.last_record_end] {
        out.flag(lsn.is_some()).lsn(lsn.unwrap_or(Lsn::ZERO));
    }
    out
}

fn read_span(value: &mut Reader<'_>) -> Option<Span> {
    let first_timeline = TimelineId::new(value.u32()?)?;
    let last_timeline = TimelineId::new(value.u32()?)?;
    let records = value.u64()?;
    let mut lsn = || optional(value, Reader::lsn);
    let (first_record, first_previous, last_record, last_record_end) = (lsn()?, lsn()?, lsn()?, lsn()?);
    Some(Span {
        first_timeline,
        last_timeline,
        records,
        first_record,
        first_previous,
        last_record,
        last_record_end,
    })
}

/// A flag, then the value: all zeros if the flag is 0.
fn optional<'a, T>(value: &mut Reader<'a>, read: impl Fn(&mut Reader<'a>) -> Option<T>) -> Option<Option<T>> {
    let present = value.flag()?;
    let before = value.rest();
    let read = read(value)?;
    let width = before.len().saturating_sub(value.rest().len());
    let zero = before.iter().take(width).all(|b| *b == 0);
    if present { Some(Some(read)) } else { zero.then_some(None) }
}

fn write_commits(commits: &CommitSummary) -> Writer {
    let mut out = Writer::default();
    out.u64(commits.commits).u64(commits.aborts).u64(commits.prepares);
    for stamp in [commits.first, commits.last, commits.last_stop] {
        out.flag(stamp.is_some());
        write_stamp(&mut out, stamp);
    }
    for time in [commits.min, commits.max] {
        out.flag(time.is_some()).time(time.unwrap_or(PgTime::from_raw(0)));
    }
    out.flag(commits.backstep.is_some()).time(commits.backstep.map_or(PgTime::from_raw(0), |b| b.from));
    write_stamp(&mut out, commits.backstep.map(|b| b.to));
    out
}

fn read_commits(value: &mut Reader<'_>) -> Option<CommitSummary> {
    let (commits, aborts, prepares) = (value.u64()?, value.u64()?, value.u64()?);
    let [first, last, last_stop] =
        [optional(value, read_stamp)?, optional(value, read_stamp)?, optional(value, read_stamp)?];
    let [min, max] = [optional(value, Reader::time)?, optional(value, Reader::time)?];
    let backstep = optional(value, |value| Some(Backstep { from: value.time()?, to: read_stamp(value)? }))?;
    Some(CommitSummary { commits, aborts, prepares, first, last, min, max, last_stop, backstep })
}

fn write_stamp(out: &mut Writer, stamp: Option<Stamp>) {
    let none = Stamp { lsn: Lsn::ZERO, end: Lsn::ZERO, time: PgTime::from_raw(0), xid: 0 };
    let stamp = stamp.unwrap_or(none);
    out.lsn(stamp.lsn).lsn(stamp.end).time(stamp.time).u32(stamp.xid);
}

fn read_stamp(value: &mut Reader<'_>) -> Option<Stamp> {
    Some(Stamp { lsn: value.lsn()?, end: value.lsn()?, time: value.time()?, xid: value.u32()? })
}

fn write_fragment(fragment: &Fragment) -> Writer {
    let mut out = Writer::default();
    let bytes = fragment.bytes.get(..FRAGMENT_BYTES).unwrap_or(&fragment.bytes);
    out.lsn(fragment.lsn).lsn(fragment.end).u64(fragment.total).u64(fragment.len).u32(fragment.crc);
    out.u8(u8::try_from(bytes.len()).expect("at most FRAGMENT_BYTES")).bytes(bytes);
    out
}

fn read_fragment(value: &mut Reader<'_>) -> Option<Fragment> {
    let (lsn, end, total, len, crc) = (value.lsn()?, value.lsn()?, value.u64()?, value.u64()?, value.u32()?);
    let kept = usize::from(value.u8()?);
    if kept > FRAGMENT_BYTES {
        return None;
    }
    Some(Fragment { lsn, end, total, len, crc, bytes: value.take(kept)?.to_vec() })
}

#[cfg(test)]
mod tests;
