//! WAL segments: how the stream is cut into files, and how those files are named (`xlog_internal.h`).
//!
//! ```text
//!  00000002 0000000A 000000C3                     segment
//!  └ TLI ─┘ └ log ─┘ └ seg ─┘    .partial          unfinished last segment of an old timeline
//!                                .00000028.backup  backup history; the number is the start LSN's offset
//!  00000002.history                                timeline history
//! ```
//! A name does not tell the segment size: `log` and `seg` mean an LSN only together with a [`SegmentSize`]. Pure.

use std::fmt;

use super::lsn::Lsn;
use super::timeline::TimelineId;

/// Size of a segment: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u32);

/// A size that no cluster can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes is not a WAL segment size (a power of two from 1 MiB to 1 GiB)")]
pub struct SegmentSizeError(pub u64);

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// A segment of `bytes` bytes.
    ///
    /// # Errors
    /// [`SegmentSizeError`] unless `bytes` is a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<Self, SegmentSizeError> {
        match u32::try_from(bytes) {
            Ok(n) if n.is_power_of_two() && (1 << 20..=1 << 30).contains(&n) => Ok(Self(n)),
            _ => Err(SegmentSizeError(bytes)),
        }
    }

    /// Bytes in a segment.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Segments per log id, the middle field of a name (`XLogSegmentsPerXLogId`).
    pub fn segments_per_log(self) -> u64 {
        (1_u64 << 32) / u64::from(self.0)
    }
}

impl serde::Serialize for SegmentSize {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SegmentSize {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// Position of a segment in the stream: `LSN / segment size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNo(u64);

impl SegmentNo {
    /// The segment numbered `n`.
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The segment whose bytes include `lsn`.
    pub fn containing(lsn: Lsn, size: SegmentSize) -> Self {
        Self(lsn.get() / size.bytes())
    }

    /// The last segment needed to read up to, not including, `end`: a position on a boundary needs the segment before it.
    pub fn ending_at(end: Lsn, size: SegmentSize) -> Self {
        Self(end.get().saturating_sub(1) / size.bytes())
    }

    /// LSN of the first byte.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.0.saturating_mul(size.bytes()))
    }

    /// LSN of the byte after the last.
    pub fn end(self, size: SegmentSize) -> Lsn {
        self.start(size).saturating_add(size.bytes())
    }

    /// The segment after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The segment before this one; segment 0 is its own predecessor.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// Name of a segment file: 24 upper-case hexadecimal digits. Sorts by timeline, then by position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    seg: u32,
}

impl SegmentName {
    /// The name of segment `number` on `timeline` in a cluster with segments of `size`. Segments beyond the last LSN are held at it.
    pub fn new(timeline: TimelineId, number: SegmentNo, size: SegmentSize) -> Self {
        let per_log = size.segments_per_log();
        let number = number.get().min(SegmentNo::containing(Lsn::MAX, size).get());
        let log = u32::try_from(number / per_log).unwrap_or(u32::MAX);
        let seg = u32::try_from(number % per_log).unwrap_or(u32::MAX);
        Self { timeline, log, seg }
    }

    /// The first segment of a log, in clusters with segments of any size.
    pub fn first_of_log(timeline: TimelineId, log: u32) -> Self {
        Self { timeline, log, seg: 0 }
    }

    /// The timeline in the name.
    pub fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// The middle field: the upper 32 bits of the segment's LSNs.
    pub fn log(self) -> u32 {
        self.log
    }

    /// Its place in the stream, to be compared with names of other timelines.
    pub fn place(self) -> (u32, u32) {
        (self.log, self.seg)
    }

    /// Which segment this is in a cluster with segments of `size`.
    ///
    /// # Errors
    /// [`NameError::WrongSize`] if no such segment exists at this size (`000000FF` is the last of a log at 16 MiB).
    pub fn number(self, size: SegmentSize) -> Result<SegmentNo, NameError> {
        let per_log = size.segments_per_log();
        if u64::from(self.seg) >= per_log {
            return Err(NameError::WrongSize { name: self.to_string(), size });
        }
        Ok(SegmentNo(u64::from(self.log).saturating_mul(per_log).saturating_add(u64::from(self.seg))))
    }

    /// Parses 24 upper-case hexadecimal digits.
    ///
    /// # Errors
    /// [`NameError::NotWal`] for anything else, timeline 0 included.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match WalFileName::parse(text)? {
            WalFileName::Segment(name) => Ok(name),
            WalFileName::Partial(_) | WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                Err(NameError::NotWal(text.to_owned()))
            }
        }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.get(), self.log, self.seg)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A file name that PostgreSQL's archiver or startup process can pass to a command (`pgarch.h`, `VALID_XFN_CHARS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A complete segment.
    Segment(SegmentName),
    /// The unfinished last segment of a timeline that was left; recovery never asks for it.
    Partial(SegmentName),
    /// The history of a timeline.
    History(TimelineId),
    /// A backup history file: the segment a backup started in, and the offset of its start LSN there.
    BackupHistory(SegmentName, u32),
}

/// A name that is not one of the four kinds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a name of PostgreSQL's.
    #[error("{0:?} is not the name of a WAL segment, a .partial, a .history or a .backup file")]
    NotWal(String),
    /// The last field is too large for the cluster's segment size.
    #[error("{name} cannot exist in a cluster with segments of {} bytes", size.bytes())]
    WrongSize {
        /// The offending name.
        name: String,
        /// The cluster's segment size.
        size: SegmentSize,
    },
}

impl WalFileName {
    /// Parses a file name (no directory). Only upper-case hexadecimal is accepted, as PostgreSQL itself writes.
    ///
    /// # Errors
    /// [`NameError::NotWal`] with at most 64 characters of the offending text.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bad = || NameError::NotWal(text.chars().take(64).collect());
        let (stem, suffix) = text.split_once('.').map_or((text, None), |(a, b)| (a, Some(b)));
        match (stem.len(), suffix) {
            (24, None) => Ok(Self::Segment(segment(stem).ok_or_else(bad)?)),
            (24, Some("partial")) => Ok(Self::Partial(segment(stem).ok_or_else(bad)?)),
            (8, Some("history")) => Ok(Self::History(hex8(stem).and_then(TimelineId::new).ok_or_else(bad)?)),
            (24, Some(rest)) => {
                let offset = rest.strip_suffix(".backup").and_then(hex8).ok_or_else(bad)?;
                Ok(Self::BackupHistory(segment(stem).ok_or_else(bad)?, offset))
            }
            _ => Err(bad()),
        }
    }

    /// The timeline in the name.
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::BackupHistory(name, _) => name.timeline,
            Self::History(timeline) => timeline,
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "{name}"),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.get()),
            Self::BackupHistory(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
        }
    }
}

fn hex8(text: &str) -> Option<u32> {
    let upper = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if upper { u32::from_str_radix(text, 16).ok() } else { None }
}

fn segment(text: &str) -> Option<SegmentName> {
    let timeline = text.get(0..8).and_then(hex8).and_then(TimelineId::new)?;
    Some(SegmentName {
        timeline,
        log: text.get(8..16).and_then(hex8)?,
        seg: text.get(16..24).and_then(hex8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes() -> impl Strategy<Value = SegmentSize> {
        (20_u32..=30).prop_map(|power| SegmentSize::new(1 << power).unwrap())
    }

    fn timelines() -> impl Strategy<Value = TimelineId> {
        (1_u32..).prop_map(|n| TimelineId::new(n).unwrap())
    }

    #[test]
    fn names_are_those_of_postgresql() {
        let name = |lsn: &str, size| {
            let lsn: Lsn = lsn.parse().unwrap();
            SegmentName::new(TimelineId::FIRST, SegmentNo::containing(lsn, size), size).to_string()
        };
        let small = SegmentSize::new(1 << 20).unwrap();
        let large = SegmentSize::new(1 << 30).unwrap();
        assert_eq!(name("A/C3FFFFFF", SegmentSize::DEFAULT), "000000010000000A000000C3");
        assert_eq!(name("0/FFFFFFFF", SegmentSize::DEFAULT), "0000000100000000000000FF");
        assert_eq!(name("1/0", SegmentSize::DEFAULT), "000000010000000100000000");
        assert_eq!(name("0/FFFFFFFF", small), "000000010000000000000FFF");
        assert_eq!(name("2/C0000000", large), "000000010000000200000003");
    }

    #[test]
    fn a_name_of_another_segment_size_is_noticed() {
        let name = SegmentName::parse("000000010000000000000100").unwrap();
        let wrong = name.number(SegmentSize::DEFAULT);
        assert_eq!(wrong, Err(NameError::WrongSize { name: name.to_string(), size: SegmentSize::DEFAULT }));
        assert!(name.number(SegmentSize::new(1 << 20).unwrap()).is_ok());
    }

    #[test]
    fn sizes_no_cluster_can_have_are_refused() {
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 32, u64::MAX] {
            assert_eq!(SegmentSize::new(bytes), Err(SegmentSizeError(bytes)));
        }
    }

    #[test]
    fn only_the_four_kinds_are_wal_file_names() {
        let good = [
            "00000001000000000000000A",
            "00000001000000000000000A.partial",
            "00000002.history",
            "00000001000000000000000A.00000028.backup",
        ];
        for text in good {
            assert_eq!(WalFileName::parse(text).unwrap().to_string(), text);
        }
        let bad = [
            "",
            "00000001000000000000000a",
            "00000000000000000000000A",
            "0000000100000000000000A",
            "00000001000000000000000A0",
            "00000000.history",
            "00000002.History",
            "00000002.history.gz",
            "00000001000000000000000A.",
            "00000001000000000000000A.0000028.backup",
            "00000001000000000000000A.partial.partial",
            "+0000001000000000000000A",
            "../00000002.history",
            "0000000100000000000000\u{e9}",
        ];
        for text in bad {
            assert!(WalFileName::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn every_segment_has_one_name(timeline in timelines(), size in sizes(), lsn: u64) {
            let number = SegmentNo::containing(Lsn::new(lsn), size);
            let name = SegmentName::new(timeline, number, size);
            prop_assert_eq!(SegmentName::parse(&name.to_string()), Ok(name));
            prop_assert_eq!(name.number(size), Ok(number));
            prop_assert_eq!(name.timeline(), timeline);
            prop_assert_eq!(u64::from(name.log()), lsn >> 32);
        }

        #[test]
        fn containing_and_ending_at_agree_off_boundaries_and_differ_on_them(size in sizes(), segment in 1_u64..1 << 30, offset in 1_u64..1 << 30) {
            let boundary = SegmentNo::new(segment).start(size);
            prop_assert_eq!(SegmentNo::containing(boundary, size), SegmentNo::new(segment));
            prop_assert_eq!(SegmentNo::ending_at(boundary, size), SegmentNo::new(segment - 1));
            let inside = boundary.saturating_add(offset % size.bytes()).saturating_add(u64::from(offset % size.bytes() == 0));
            prop_assert_eq!(SegmentNo::containing(inside, size), SegmentNo::ending_at(inside, size));
        }

        #[test]
        fn names_sort_as_positions_do(size in sizes(), a in 0_u64..1 << 33, b in 0_u64..1 << 33) {
            let name = |n| SegmentName::new(TimelineId::FIRST, SegmentNo::new(n % (size.segments_per_log() << 32)), size);
            let numbers = (name(a).number(size).unwrap(), name(b).number(size).unwrap());
            prop_assert_eq!(numbers.0.cmp(&numbers.1), name(a).to_string().cmp(&name(b).to_string()));
        }

        #[test]
        fn no_name_lies_behind_the_last_segment(size in sizes(), beyond in any::<u64>()) {
            let last = SegmentNo::containing(Lsn::MAX, size);
            let name = SegmentName::new(TimelineId::FIRST, SegmentNo::new(last.get().saturating_add(beyond)), size);
            prop_assert_eq!(name.number(size), Ok(last));
        }

        #[test]
        fn segments_tile_the_stream(size in sizes(), n in 0_u64..1 << 33) {
            let number = SegmentNo::new(n);
            prop_assert_eq!(number.end(size), number.next().start(size));
            prop_assert_eq!(number.next().previous(), number);
            prop_assert_eq!(SegmentNo::containing(number.end(size).saturating_sub(1), size), number);
        }

        #[test]
        fn any_text_is_answered(text in ".{0,60}") {
            if let Ok(name) = WalFileName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
