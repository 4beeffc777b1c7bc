//! Scanning one WAL segment: bytes in, in pieces of any size; out comes what an archive must know of it.
//!
//! ```text
//!  previous ─┐ segment                                        ┌─ next
//!      ══════╪═▌ head │ record │ record │ … │ record │ tail ▐═╪══════
//!            └ a record goes on        ▲                      └ a record goes on
//!                                      └ complete records: CRC checked, events read
//! ```
//! Pure and of bounded memory. Source of truth: `xlogreader.c` of PostgreSQL 13 to 18.

mod error;
mod join;
mod scanner;
mod summary;
#[cfg(test)]
mod tests;

pub use error::{Fault, ScanError};
pub use join::{Crossing, JoinError, join};
pub use scanner::{Keep, MAX_EVENTS, RecordInfo, Scanner};
pub use summary::{Backstep, CommitSummary, FRAGMENT_BYTES, Fragment, SegmentEnd, SegmentScan, Stamp};
