//! Why a segment is refused. Each message names the segment, and the position where there is one.
//!
//! "Refused" is strong: PostgreSQL goes on offering a segment that its archive refuses, and `pg_wal` fills. So nothing that
//! PostgreSQL itself would replay may end here; see the cases in [`super::Scanner`]. Pure.

use crate::wal::lsn::{Lsn, PAGE_SIZE};
use crate::wal::segment::{NameError, SegmentName, SegmentSize};
use crate::wal::timeline::TimelineId;

/// Why a segment is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The name does not exist at the cluster's segment size.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The file is too long.
    #[error("{name} has {found} bytes or more, but segments of this cluster have {}", expected.bytes())]
    TooLong {
        /// The segment.
        name: SegmentName,
        /// Bytes seen so far.
        found: u64,
        /// The cluster's segment size.
        expected: SegmentSize,
    },
    /// The file is too short.
    #[error("{name} has {found} bytes, but segments of this cluster have {}", expected.bytes())]
    TooShort {
        /// The segment.
        name: SegmentName,
        /// Bytes in the file.
        found: u64,
        /// The cluster's segment size.
        expected: SegmentSize,
    },
    /// Not WAL, or of a PostgreSQL before 13.
    #[error("{name} is not WAL of PostgreSQL 13 or later: it opens with the page magic {magic:04X}")]
    NotWal {
        /// The segment.
        name: SegmentName,
        /// What stands where the magic should.
        magic: u16,
    },
    /// The content belongs under another name.
    #[error("{name} should hold WAL from {expected} on, but its first page says {found}")]
    Misplaced {
        /// The segment.
        name: SegmentName,
        /// The first page's address.
        found: Lsn,
        /// The address that the name means.
        expected: Lsn,
    },
    /// A cluster with another segment size wrote it.
    #[error("{name} was written with segments of {found} bytes, not {}", expected.bytes())]
    OtherSegmentSize {
        /// The segment.
        name: SegmentName,
        /// The size in its first page.
        found: u32,
        /// The size that was expected.
        expected: SegmentSize,
    },
    /// A server with another WAL page size wrote it.
    #[error("{name} was written with WAL pages of {found} bytes; only {PAGE_SIZE} is supported")]
    OtherPageSize {
        /// The segment.
        name: SegmentName,
        /// The size in its first page.
        found: u32,
    },
    /// Valid WAL stops, and goes on later in the segment.
    #[error("{name} is damaged at {lsn}: {fault}")]
    Damaged {
        /// The segment.
        name: SegmentName,
        /// The record, or the page, that is wrong.
        lsn: Lsn,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What is wrong with a page or record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The page was not written by this server for this place.
    #[error("the page has magic {magic:04X} and address {address}")]
    ForeignPage {
        /// What stands where the magic should.
        magic: u16,
        /// What stands where the address should.
        address: Lsn,
    },
    /// The page's flags do not fit its place.
    #[error("the page has the flags {0:04X}")]
    PageFlags(u16),
    /// The page's timeline is not one this segment can hold there.
    #[error("the page is of timeline {found}, expected {lowest} to {highest}")]
    PageTimeline {
        /// The timeline in the page.
        found: u32,
        /// The timeline of the page before it.
        lowest: u32,
        /// The timeline in the segment's name.
        highest: TimelineId,
    },
    /// The page does not go on with the record that the page before it left unfinished, or goes on where none was.
    #[error("the page continues a record by {found} bytes, expected {expected}")]
    Continuation {
        /// Bytes that the page announces.
        found: u32,
        /// Bytes that are missing.
        expected: u64,
    },
    /// The record's length is below that of its header; 0 where no record was written.
    #[error("the record claims a length of {0} bytes")]
    RecordLength(u32),
    /// The record does not follow the one before it.
    #[error("the record says that the one before it starts at {0}")]
    RecordPrevious(Lsn),
    /// The record's checksum is wrong.
    #[error("the record's CRC is wrong")]
    RecordCrc,
}
