//! Names of WAL files: whatever parses prints as it was written, and means the same segment at every size at which it exists.
//!
//! Names come from the server's command line and from listings of a bucket; neither is to be trusted.
//! Source of truth: `XLogFileName` and `VALID_XFN_CHARS` of PostgreSQL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::wal::{SegmentName, SegmentSize, WalFileName};

fuzz_target!(|text: &str| {
    let Ok(name) = WalFileName::parse(text) else { return };
    assert_eq!(name.to_string(), text);
    if let WalFileName::Segment(name) | WalFileName::Partial(name) | WalFileName::BackupHistory(name, _) =
        name
    {
        for power in 20..=30 {
            let size = SegmentSize::new(1 << power).expect("a power of two in range");
            if let Ok(number) = name.number(size) {
                assert_eq!(SegmentName::new(name.timeline(), number, size), name);
                assert!(number.start(size) <= number.end(size));
            }
        }
    }
});
