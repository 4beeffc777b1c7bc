//! The scanner: a push parser over one segment. Its outcome does not depend on how the bytes were cut into pieces.
//!
//! ```text
//!  bytes ─► page header ─► checked (place, magic, timeline, continuation)     ┌► Padding  after a switch
//!     └───► page body  ─► Head ─► Between ─► Record ─► CRC ─► event, counters ┤
//!                                   └──◄───────┘                              ├► Broken   WAL stopped; does it go on later?
//!                                                                             └► Blind    a newer server's WAL, not understood
//! ```
//! Where valid WAL stops, one question decides: is this an unfinished segment (a restored tail, a `.partial`, a recycled file)
//! or a damaged one? If any later page carries the magic and address expected there, WAL went on, so it is damage. A record
//! whose pages are all there but whose CRC is wrong, in the segment's very last page, is told apart by what follows it.
//!
//! Never refused, since PostgreSQL replays or writes it: old pages after the end (recycled files), anything after a switch,
//! abandoned records (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`), a record that crosses either end or covers the whole segment,
//! pages of the parent timeline at the start, unknown resource managers, a newer page magic. Pure; memory is bounded but for
//! the events of [`Keep::All`].

use super::error::{Fault, ScanError};
use super::summary::{CommitSummary, FRAGMENT_BYTES, Fragment, SegmentEnd, SegmentScan};
use crate::wal::event::{Event, EventKind};
use crate::wal::lsn::{Lsn, PAGE_SIZE};
use crate::wal::page::{LONG_HEADER, LongHeader, PageHeader, PgMajor};
use crate::wal::record::{
    Assembly, Progress, RECORD_HEADER, RM_XLOG, RecordHeader, decode, whole_record_crc,
};
use crate::wal::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::wal::timeline::TimelineId;

/// The most events that a summary lists; more are counted in `events_dropped`. A segment of 16 MiB full of nothing but restore
/// points has 160,000; real ones have a handful.
pub const MAX_EVENTS: usize = 10_000;

/// Zero bytes at the end of the segment from which on what is wrong in the last page counts as cut off there.
const CUT_ZEROS: u64 = 64;

/// Bytes of a record that is all header.
const SHORT_RECORD: u64 = 24;

/// What to keep of transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Their [`CommitSummary`] alone; memory is bounded.
    Summary,
    /// Also each as an event, and long fragments, so that [`super::join()`] finds the xid of a prepared transaction in them. For
    /// one segment at a time, whose commits may number a million per 64 MiB.
    All,
}

/// A complete record whose CRC was checked, as an observer sees it.
#[derive(Debug, Clone, Copy)]
pub struct RecordInfo<'a> {
    /// First byte.
    pub lsn: Lsn,
    /// First byte after it, not rounded up.
    pub end: Lsn,
    /// The header.
    pub header: &'a RecordHeader,
    /// What it means, for records that mean something here.
    pub event: Option<&'a Event>,
}

/// Scans one segment.
#[derive(Debug)]
pub struct Scanner {
    name: SegmentName,
    size: SegmentSize,
    keep: Keep,
    start: Lsn,
    segment_end: Lsn,
    /// The next byte to arrive.
    pos: Lsn,
    page: PageBuffer,
    first: Option<FirstPage>,
    timeline: u32,
    state: State,
    record: Assembly,
    head: Option<Fragment>,
    /// Last byte of the last page that is not zero.
    last_nonzero: Option<Lsn>,
    found: Found,
}

/// What records have told so far.
#[derive(Debug, Default)]
struct Found {
    records: u64,
    first_record: Option<Lsn>,
    first_previous: Option<Lsn>,
    last_record: Option<Lsn>,
    last_record_end: Option<Lsn>,
    commits: CommitSummary,
    events: Vec<Event>,
    events_dropped: u64,
}

#[derive(Debug, Clone, Copy)]
struct FirstPage {
    header: PageHeader,
    long: LongHeader,
    timeline: TimelineId,
    major: Option<PgMajor>,
}

#[derive(Debug)]
enum State {
    /// In the rest of a record of an earlier segment.
    Head { left: u64 },
    /// Where a record may start, perhaps after padding.
    Between,
    /// In a record.
    Record,
    /// After a switch.
    Padding,
    /// Valid WAL stopped.
    Broken(Break),
    /// Records of a newer server that do not follow the rules known here.
    Blind,
}

/// Where and why valid WAL stopped.
#[derive(Debug)]
struct Break {
    lsn: Lsn,
    fault: Fault,
    /// The page in which it showed.
    page: Lsn,
    /// Where the next record would start, and its first bytes so far: if it names this one as its predecessor, WAL went on.
    next: Lsn,
    next_bytes: Vec<u8>,
}

/// The header of the current page as it arrives.
#[derive(Debug)]
struct PageBuffer {
    bytes: [u8; 40],
    have: usize,
    need: usize,
}

impl Keep {
    /// How much of a crossing record's fragments is kept.
    fn fragment_bytes(self) -> usize {
        match self {
            Self::Summary => FRAGMENT_BYTES,
            Self::All => 64 << 10,
        }
    }
}

impl Scanner {
    /// A scanner for the segment called `name` in a cluster with segments of `size`.
    ///
    /// # Errors
    /// [`ScanError::Name`] if that name cannot exist at this size.
    pub fn new(name: SegmentName, size: SegmentSize, keep: Keep) -> Result<Self, ScanError> {
        let number: SegmentNo = name.number(size)?;
        let start = number.start(size);
        Ok(Self {
            name,
            size,
            keep,
            start,
            segment_end: number.end(size),
            pos: start,
            page: PageBuffer::new(),
            first: None,
            timeline: 0,
            state: State::Between,
            record: Assembly::new(),
            head: None,
            last_nonzero: None,
            found: Found::default(),
        })
    }

    /// Takes the next bytes of the segment.
    ///
    /// # Errors
    /// [`ScanError`] as soon as it is certain; the scanner is then of no further use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        self.push_observed(bytes, &mut |_| {})
    }

    /// As [`Scanner::push`], and shows every complete record to `observe`, in WAL order.
    ///
    /// # Errors
    /// As [`Scanner::push`].
    pub fn push_observed(
        &mut self,
        mut bytes: &[u8],
        observe: &mut dyn FnMut(&RecordInfo<'_>),
    ) -> Result<(), ScanError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if length > self.segment_end.bytes_since(self.pos) {
            let found = self.pos.bytes_since(self.start).saturating_add(length);
            return Err(ScanError::TooLong { name: self.name, found, expected: self.size });
        }
        while !bytes.is_empty() {
            let page_start = self.pos.page_start();
            if self.page.missing() > 0 {
                let used = self.page.take(bytes);
                bytes = self.advance(bytes, used);
                if self.page.missing() == 0 {
                    self.page_header(page_start)?;
                }
            } else {
                let room = PAGE_SIZE - self.pos.page_offset();
                let room = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
                let used = self.body(bytes.get(..room).unwrap_or(bytes), observe)?;
                bytes = self.advance(bytes, used);
                if self.pos.page_offset() == 0 {
                    self.page = PageBuffer::new();
                }
            }
        }
        Ok(())
    }

    /// The result, once all bytes were pushed.
    ///
    /// # Errors
    /// [`ScanError::TooShort`] if bytes are missing, [`ScanError::Damaged`] if the last page decides so.
    pub fn finish(self) -> Result<SegmentScan, ScanError> {
        if self.pos < self.segment_end {
            let found = self.pos.bytes_since(self.start);
            return Err(ScanError::TooShort { name: self.name, found, expected: self.size });
        }
        let Some(first) = self.first else {
            return Err(ScanError::NotWal { name: self.name, magic: 0 }); // no segment has zero bytes
        };
        let (end, valid_to) = self.ending()?;
        let blind = matches!(self.state, State::Blind);
        let tail = self.tail();
        let found = if blind || self.only_record_is_recycled() { Found::default() } else { self.found };
        Ok(SegmentScan {
            name: self.name,
            size: self.size,
            system_id: first.long.system_id,
            magic: first.header.magic,
            major: first.major,
            decoded: first.major.is_some(),
            start: self.start,
            valid_to,
            end,
            first_timeline: first.timeline,
            last_timeline: TimelineId::new(self.timeline).unwrap_or(first.timeline),
            head: self.head.filter(|_| !blind),
            tail,
            records: found.records,
            first_record: found.first_record,
            first_previous: found.first_previous,
            last_record: found.last_record,
            last_record_end: found.last_record_end,
            commits: found.commits,
            events: found.events,
            events_dropped: found.events_dropped,
        })
    }

    /// The result as if the rest of the segment were zeros: for the stored pieces of an unfinished segment.
    ///
    /// # Errors
    /// As [`Scanner::finish`].
    pub fn finish_padded(mut self) -> Result<SegmentScan, ScanError> {
        const ZEROS: [u8; 8192] = [0; 8192];
        while self.pos < self.segment_end {
            let left = usize::try_from(self.segment_end.bytes_since(self.pos)).unwrap_or(usize::MAX);
            self.push(ZEROS.get(..left).unwrap_or(&ZEROS))?;
        }
        self.finish()
    }

    // -- pages -----------------------------------------------------------------------------------------------------------

    fn page_header(&mut self, page_start: Lsn) -> Result<(), ScanError> {
        let Ok(header) = PageHeader::parse(self.page.filled()) else {
            return Ok(()); // unreachable: `need` follows the flags
        };
        let Some(first) = self.first else {
            return self.first_page(header);
        };
        let expected = header.magic == first.header.magic && header.address == page_start;
        match &self.state {
            State::Padding | State::Blind => return Ok(()),
            State::Broken(broken) if expected => {
                let (lsn, fault) = (broken.lsn, broken.fault);
                return self.damaged(lsn, fault);
            }
            State::Broken(_) => return Ok(()),
            State::Head { .. } | State::Between | State::Record => {}
        }
        let fault = if expected {
            self.page_fault(&header)
        } else {
            Some(Fault::ForeignPage { magic: header.magic, address: header.address })
        };
        if let Some(fault) = fault {
            self.stop(page_start, fault, page_start, Lsn::MAX);
        }
        Ok(())
    }

    /// What is wrong with a page that stands at its place.
    fn page_fault(&mut self, header: &PageHeader) -> Option<Fault> {
        if !header.flags.is_known() || header.flags.is_long() {
            return Some(Fault::PageFlags(header.flags.raw()));
        }
        self.page_timeline(header.timeline).or_else(|| self.continuation(header))
    }

    fn first_page(&mut self, header: PageHeader) -> Result<(), ScanError> {
        let name = self.name;
        let oldest = PgMajor::ALL.map(PgMajor::magic).into_iter().min().unwrap_or(u16::MAX);
        // PostgreSQL counts up within D000 to DFFF.
        if header.magic < oldest || header.magic >= 0xE000 {
            return Err(ScanError::NotWal { name, magic: header.magic });
        }
        if header.address != self.start {
            return Err(ScanError::Misplaced { name, found: header.address, expected: self.start });
        }
        let Some(long) = header.long.filter(|_| header.flags.is_known()) else {
            let fault = Fault::PageFlags(header.flags.raw());
            return Err(ScanError::Damaged { name, lsn: self.start, fault });
        };
        if u64::from(long.segment_size) != self.size.bytes() {
            return Err(ScanError::OtherSegmentSize { name, found: long.segment_size, expected: self.size });
        }
        if u64::from(long.page_size) != PAGE_SIZE {
            return Err(ScanError::OtherPageSize { name, found: long.page_size });
        }
        if let Some(fault) = self.page_timeline(header.timeline) {
            return Err(ScanError::Damaged { name, lsn: self.start, fault });
        }
        let timeline = TimelineId::new(header.timeline).unwrap_or_else(|| self.name.timeline());
        self.first = Some(FirstPage { header, long, timeline, major: PgMajor::from_magic(header.magic) });
        if header.flags.continues() && header.remaining > 0 && !header.flags.overwrites() {
            let total = u64::from(header.remaining);
            self.state = State::Head { left: total };
            self.head = Some(Fragment {
                lsn: self.pos,
                end: self.segment_end,
                total,
                len: 0,
                crc: 0,
                bytes: Vec::new(),
            });
        }
        Ok(())
    }

    /// Takes up the timeline of the next page: they do not descend, and do not pass the one in the name.
    fn page_timeline(&mut self, found: u32) -> Option<Fault> {
        let (lowest, highest) = (self.timeline.max(1), self.name.timeline());
        if (lowest..=highest.get()).contains(&found) {
            self.timeline = found;
            return None;
        }
        Some(Fault::PageTimeline { found, lowest, highest })
    }

    /// A page goes on with the record that the page before it left unfinished, or gives it up.
    fn continuation(&mut self, header: &PageHeader) -> Option<Fault> {
        let expected = match &self.state {
            State::Head { left } => *left,
            State::Record => self.record.left().unwrap_or(0),
            State::Between | State::Padding | State::Broken(_) | State::Blind => 0,
        };
        if header.flags.overwrites() && !header.flags.continues() {
            // The server crashed before it had written the rest.
            if matches!(self.state, State::Head { .. }) {
                self.head = None;
            }
            self.state = State::Between;
            return None;
        }
        let found = if header.flags.continues() { header.remaining } else { 0 };
        let fits = u64::from(found) == expected && header.flags.continues() == (expected > 0);
        (!fits).then_some(Fault::Continuation { found, expected })
    }

    // -- records ---------------------------------------------------------------------------------------------------------

    /// Takes bytes of one page's body from the front of `chunk`; returns how many, at least one.
    fn body(&mut self, chunk: &[u8], observe: &mut dyn FnMut(&RecordInfo<'_>)) -> Result<usize, ScanError> {
        match &mut self.state {
            State::Head { left } => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(chunk.len());
                *left -= u64::try_from(n).unwrap_or(0);
                let done = *left == 0;
                self.head_bytes(chunk.get(..n).unwrap_or(chunk), done);
                if done {
                    self.state = State::Between;
                }
                Ok(n)
            }
            State::Between => {
                let padding = self.pos.aligned().bytes_since(self.pos);
                if padding > 0 {
                    return Ok(usize::try_from(padding).unwrap_or(usize::MAX).min(chunk.len()));
                }
                let whole = self.whole_records(chunk, observe);
                if whole > 0 {
                    return Ok(whole);
                }
                self.record.begin(self.pos);
                self.state = State::Record;
                self.record_bytes(chunk, observe)
            }
            State::Record => self.record_bytes(chunk, observe),
            State::Broken(broken) => {
                if broken.names_predecessor(self.pos, chunk) {
                    let (lsn, fault) = (broken.lsn, broken.fault);
                    self.damaged(lsn, fault)?;
                }
                Ok(chunk.len())
            }
            State::Padding | State::Blind => Ok(chunk.len()),
        }
    }

    fn head_bytes(&mut self, bytes: &[u8], done: bool) {
        let length = u64::try_from(bytes.len()).unwrap_or(0);
        if let Some(head) = &mut self.head {
            head.crc = crc32c::crc32c_append(head.crc, bytes);
            let room = self.keep.fragment_bytes().saturating_sub(head.bytes.len());
            head.bytes.extend(bytes.iter().take(room));
            head.len += length;
            if done {
                head.end = self.pos.saturating_add(length);
            }
        }
    }

    fn record_bytes(
        &mut self,
        chunk: &[u8],
        observe: &mut dyn FnMut(&RecordInfo<'_>),
    ) -> Result<usize, ScanError> {
        let (used, progress) = self.record.feed(chunk);
        let start = self.record.start();
        let page = self.pos.page_start();
        if let Some(total) = self.record.total().filter(|total| u64::from(*total) < SHORT_RECORD) {
            self.stop(start, Fault::RecordLength(total), page, Lsn::MAX);
            return Ok(used);
        }
        if progress != Progress::Partial && self.record.have() == SHORT_RECORD {
            let header = self.record.header();
            if !self.follows(header.prev) {
                self.stop(start, Fault::RecordPrevious(header.prev), page, Lsn::MAX);
                return Ok(used);
            }
            self.record.keep = self.kept_of(start, &header);
        }
        if progress == Progress::Complete {
            let end = self.pos.saturating_add(u64::try_from(used).unwrap_or(0));
            if self.record.crc_matches() {
                let (header, body) = (self.record.header(), std::mem::take(&mut self.record.body));
                self.complete(start, end, &header, &body, observe);
                self.record.body = body; // its memory serves for the next one
            } else {
                self.stop(start, Fault::RecordCrc, page, end.aligned());
            }
        }
        Ok(used)
    }

    /// How much is kept of the body of the record at `start`: what its event is read from, and of one that may cross the segment's
    /// end what the fragment needs. Page headers take less than its own length.
    fn kept_of(&self, start: Lsn, header: &RecordHeader) -> usize {
        let reach = u64::from(header.total).saturating_mul(2).saturating_add(2 * LONG_HEADER);
        let crosses = start.saturating_add(reach) >= self.segment_end;
        header.prefix().max(if crosses { self.keep.fragment_bytes() } else { 0 })
    }

    /// A record must name its predecessor; of the first one only that it lies before the segment is known.
    fn follows(&self, prev: Lsn) -> bool {
        match self.found.last_record {
            Some(last) => prev == last,
            None => prev < self.start || self.start.is_zero(),
        }
    }

    /// Takes records that lie whole in `chunk`, from its front, where they are; returns how many bytes, padding included. Most
    /// records of most segments: they need no assembling. What is not valid is left, and judged where it is assembled.
    fn whole_records(&mut self, chunk: &[u8], observe: &mut dyn FnMut(&RecordInfo<'_>)) -> usize {
        let mut used = 0;
        while let Some((header, body)) = chunk.get(used..).and_then(whole_record) {
            let parsed = RecordHeader::parse(header);
            if !self.follows(parsed.prev) || whole_record_crc(header, body) != parsed.crc {
                break;
            }
            let lsn = self.pos.saturating_add(u64::try_from(used).unwrap_or(0));
            let end = lsn.saturating_add(parsed.total.into());
            // As much as is kept of one that is assembled: what is found does not depend on how the bytes come.
            let kept = body.get(..self.kept_of(lsn, &parsed)).unwrap_or(body);
            self.complete(lsn, end, &parsed, kept, observe);
            let padded = RECORD_HEADER.saturating_add(body.len()).next_multiple_of(8);
            used = used.saturating_add(padded).min(chunk.len());
            if !matches!(self.state, State::Between) {
                break;
            }
        }
        used
    }

    /// Takes note of a record whose CRC was checked; `body` is all of it, or the prefix that was kept.
    fn complete(
        &mut self,
        lsn: Lsn,
        end: Lsn,
        header: &RecordHeader,
        body: &[u8],
        observe: &mut dyn FnMut(&RecordInfo<'_>),
    ) {
        self.found.records += 1;
        if self.found.first_record.is_none() {
            self.found.first_record = Some(lsn);
            self.found.first_previous = Some(header.prev);
        }
        self.found.last_record = Some(lsn);
        self.found.last_record_end = Some(end);
        self.state = if header.is_switch() { State::Padding } else { State::Between };
        if header.prefix() == 0 {
            return observe(&RecordInfo { lsn, end, header, event: None }); // most records
        }
        let decoded = self.first.and_then(|first| first.major).and_then(|major| decode(major, header, body));
        let event = decoded.map(|(xid, kind)| Event { lsn, end, xid, kind });
        observe(&RecordInfo { lsn, end, header, event: event.as_ref() });
        if let Some(event) = event {
            self.found.add(event, self.keep);
        }
    }

    // -- the end of valid WAL --------------------------------------------------------------------------------------------

    /// Valid WAL stops before `lsn`; `page` is where that showed, `next` where another record might start.
    fn stop(&mut self, lsn: Lsn, fault: Fault, page: Lsn, next: Lsn) {
        self.state = State::Broken(Break { lsn, fault, page, next, next_bytes: Vec::new() });
    }

    /// WAL went on after what is wrong at `lsn`.
    fn damaged(&mut self, lsn: Lsn, fault: Fault) -> Result<(), ScanError> {
        let newer = self.first.is_some_and(|first| first.major.is_none());
        if newer {
            // Rules may have changed since; the segment's place and owner were checked, and that must do.
            self.state = State::Blind;
            return Ok(());
        }
        Err(ScanError::Damaged { name: self.name, lsn, fault })
    }

    fn ending(&self) -> Result<(SegmentEnd, Lsn), ScanError> {
        let last = self.found.last_record_end.filter(|_| !self.only_record_is_recycled());
        match &self.state {
            State::Head { .. } | State::Between | State::Record | State::Blind => {
                Ok((SegmentEnd::Full, self.segment_end))
            }
            State::Padding => Ok((SegmentEnd::Switch, last.unwrap_or(self.start))),
            State::Broken(broken) => {
                let newer = self.first.is_some_and(|first| first.major.is_none());
                if !newer && self.last_page_is_damaged(broken) {
                    let (lsn, fault) = (broken.lsn, broken.fault);
                    return Err(ScanError::Damaged { name: self.name, lsn, fault });
                }
                match (&self.head, last) {
                    (Some(head), None) if is_end_of_switch(head) => Ok((SegmentEnd::Switch, head.end)),
                    (_, last) => Ok((SegmentEnd::Short, last.unwrap_or(self.start))),
                }
            }
        }
    }

    /// Nothing proves the first record of a segment to be of this place: its CRC does not cover its position, and what it names
    /// as its predecessor is out of sight. Where valid WAL stops right behind it, and that predecessor is more than a segment
    /// away, it is the first record of the old content of a recycled file.
    fn only_record_is_recycled(&self) -> bool {
        let nearest = self.start.saturating_sub(self.size.bytes());
        matches!(self.state, State::Broken(_))
            && self.found.records == 1
            && self.head.is_none()
            && self.found.first_previous.is_some_and(|previous| previous < nearest)
    }

    /// What shows to be wrong in the last page has no later page to decide it. A page header, or a record that began in an
    /// earlier page, was cut off there if zeros follow; otherwise the page was written, so WAL went on, and it is damage.
    fn last_page_is_damaged(&self, broken: &Break) -> bool {
        let last_page = self.segment_end.saturating_sub(PAGE_SIZE);
        let written = match broken.fault {
            Fault::ForeignPage { .. } => false,
            Fault::PageFlags(_) | Fault::PageTimeline { .. } | Fault::Continuation { .. } => true,
            Fault::RecordLength(_) | Fault::RecordPrevious(_) | Fault::RecordCrc => {
                broken.lsn.page_start() != last_page
            }
        };
        let zeros = match self.last_nonzero {
            Some(lsn) => self.segment_end.bytes_since(lsn).saturating_sub(1),
            None => PAGE_SIZE,
        };
        broken.page == last_page && written && zeros < CUT_ZEROS
    }

    /// Moves on by `used` bytes from the front of `bytes`; returns the rest.
    fn advance<'a>(&mut self, bytes: &'a [u8], used: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(used.min(bytes.len()));
        if self.pos.page_start().saturating_add(PAGE_SIZE) >= self.segment_end
            && let Some(last) = taken.iter().rposition(|byte| *byte != 0)
        {
            self.last_nonzero = Some(self.pos.saturating_add(u64::try_from(last).unwrap_or(0)));
        }
        self.pos = self.pos.saturating_add(u64::try_from(taken.len()).unwrap_or(u64::MAX));
        rest
    }

    fn tail(&self) -> Option<Fragment> {
        let total = self.record.total()?;
        matches!(self.state, State::Record).then(|| Fragment {
            lsn: self.record.start(),
            end: self.segment_end,
            total: u64::from(total),
            len: self.record.have(),
            crc: self.record.body_crc(),
            bytes: self.record.first_bytes(self.keep.fragment_bytes()),
        })
    }
}

impl Found {
    fn add(&mut self, event: Event, keep: Keep) {
        self.commits.add(&event);
        let ends = matches!(
            event.kind,
            EventKind::Commit { .. } | EventKind::Abort { .. } | EventKind::Prepare { .. }
        );
        match keep {
            Keep::All => self.events.push(event),
            Keep::Summary if ends => {}
            Keep::Summary if self.events.len() < MAX_EVENTS => self.events.push(event),
            Keep::Summary => self.events_dropped += 1,
        }
    }
}

impl Break {
    /// True if the record after the broken one, in the same page, starts in `bytes` (which stand at `pos`) or before them and
    /// names the broken one as its predecessor.
    fn names_predecessor(&mut self, pos: Lsn, bytes: &[u8]) -> bool {
        const LENGTH_XID_PREV: u64 = 16;
        let end = self.next.saturating_add(LENGTH_XID_PREV);
        if self.next.page_start() != self.page || pos >= end || self.next_bytes.len() == 16 {
            return false;
        }
        let skip = usize::try_from(self.next.bytes_since(pos)).unwrap_or(usize::MAX);
        let room = 16 - self.next_bytes.len();
        self.next_bytes.extend(bytes.iter().skip(skip).take(room));
        match self.next_bytes.last_chunk::<8>() {
            Some(prev) if self.next_bytes.len() == 16 => Lsn::new(u64::from_le_bytes(*prev)) == self.lsn,
            _ => false,
        }
    }
}

impl PageBuffer {
    fn new() -> Self {
        Self { bytes: [0; 40], have: 0, need: 24 }
    }

    fn missing(&self) -> usize {
        self.need - self.have
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(..self.have).unwrap_or(&self.bytes)
    }

    /// Takes header bytes from the front of `from`; returns how many.
    fn take(&mut self, from: &[u8]) -> usize {
        let room = self.bytes.get_mut(self.have..self.need).unwrap_or_default();
        let n = room.len().min(from.len());
        for (to, byte) in room.iter_mut().zip(from) {
            *to = *byte;
        }
        self.have += n;
        let long = PageHeader::parse(self.filled()).is_err_and(|error| error.needed == LONG_HEADER);
        if self.have == self.need && long {
            self.need = 40;
        }
        n
    }
}

/// The record at the front of `bytes`, header and body, if all of it is there.
fn whole_record(bytes: &[u8]) -> Option<(&[u8; RECORD_HEADER], &[u8])> {
    let header = bytes.first_chunk::<RECORD_HEADER>()?;
    let [a, b, c, d, ..] = *header;
    let total = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    Some((header, bytes.get(RECORD_HEADER..total)?))
}

/// True if a head's last eight bytes are those of an `XLOG_SWITCH`: a switch asked for so late that its own record, all header,
/// crossed into this segment. The rest of this segment is then padding.
fn is_end_of_switch(head: &Fragment) -> bool {
    if head.goes_on() || !matches!(head.total, 8 | 16) {
        return false;
    }
    match head.bytes.last_chunk::<8>() {
        Some([info, rmid, pad0, pad1, ..]) => {
            *rmid == RM_XLOG && info & 0xF0 == crate::wal::xlog::SWITCH && *pad0 == 0 && *pad1 == 0
        }
        None => false,
    }
}
