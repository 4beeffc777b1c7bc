//! Timeline histories: any bytes are answered, and what is accepted tells one story of who owns which byte.
//!
//! The first four bytes of the input are the timeline, the rest is the file.
//! Source of truth: `readTimeLineHistory` in PostgreSQL's `timeline.c`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::wal::{Lsn, TimelineHistory, TimelineId};

fuzz_target!(|data: (u32, u64, &[u8])| {
    let (timeline, lsn, content) = data;
    let Some(timeline) = TimelineId::new(timeline) else { return };
    let Ok(history) = TimelineHistory::parse(timeline, content) else { return };
    let lsn = Lsn::new(lsn);
    let owner = history.owner(lsn);
    assert!(history.contains(owner));
    assert!(history.begin(owner).is_some_and(|begin| begin <= lsn));
    assert!(history.end(owner).is_none_or(|end| lsn < end));
    assert!(history.route().zip(history.route().skip(1)).all(|(a, b)| a < b));
});
