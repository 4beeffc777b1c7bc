//! What PostgreSQL writes into its write-ahead log, read without PostgreSQL.
//!
//! ```text
//!  stream     ───────────────────────────────────────────────►  one per cluster, addressed by LSN
//!  timeline   ── TLI 1 ───┬─ TLI 2 ──                            forks at promotion
//!  segment    │ 16 MiB │ 16 MiB │ 16 MiB │                      a file; name = timeline + position
//!  page       │8K│8K│8K│…                                       states who wrote it (system id) and where it belongs
//!  record     ▐███▌▐██▌▐█████│██▌                               CRC-32C; may cross pages and segments
//! ```
//! Pure: bytes in, values out. No IO, no clock, no logging, no allocation sized by outside bytes.
//! Source of truth: `src/include/access/xlog_internal.h`, `xlogrecord.h`, `xlogreader.c` of PostgreSQL 13 to 18.

pub mod event;
pub mod lsn;
pub mod page;
pub mod record;
pub mod scan;
pub mod segment;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod timeline;
mod xact;
mod xlog;

pub use event::{Event, EventKind};
pub use lsn::{Lsn, PAGE_SIZE};
pub use page::{PgMajor, SystemId};
pub use scan::{CommitSummary, Keep, ScanError, Scanner, SegmentEnd, SegmentScan, Stamp};
pub use segment::{NameError, SegmentName, SegmentNo, SegmentSize, SegmentSizeError, WalFileName};
pub use time::PgTime;
pub use timeline::{HistoryEntry, HistoryError, TimelineHistory, TimelineId};
