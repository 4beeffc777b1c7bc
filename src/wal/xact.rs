//! Transaction ends: COMMIT, ABORT, PREPARE and the second phase of two-phase commit, as WAL records them.
//!
//! ```text
//!  time 8 │ xinfo 4 │ database 8 │ subxacts │ relations │ stats │ invalidations │ two-phase xid 4 │ …
//!         └ if 0x80 in info; each further part only if its bit is set in xinfo  └ the xid we want
//! ```
//! The time stands first in all versions. The xid of a prepared transaction stands behind lists of any length, one of which
//! differs between versions. Pure. Source of truth: `xact.h`, `xactdesc.c`, `twophase.c` of PostgreSQL 13 to 18.

use super::event::EventKind;
use super::page::{PgMajor, u32_at};
use super::record::RecordHeader;
use super::time::PgTime;

const COMMIT: u8 = 0x00;
const PREPARE: u8 = 0x10;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const OPERATION: u8 = 0x70;
const HAS_XINFO: u8 = 0x80;

const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_DROPPED_STATS: u32 = 1 << 8; // 15+

/// How much of the body [`decode`] wants. The times stand within the first bytes; the lists before a two-phase xid are
/// followed this far and no further.
pub(super) fn prefix(info: u8) -> usize {
    match info & OPERATION {
        COMMIT | ABORT | PREPARE => 80,
        COMMIT_PREPARED | ABORT_PREPARED => 64 << 10,
        _ => 0, // assignments and invalidations (14+): not an end
    }
}

/// The transaction and the event, or `None` for records that end nothing. The xid is 0 for the second phase of a transaction
/// whose lists (subtransactions, dropped relations, invalidations) reach beyond `main`: about 64 KiB.
pub(super) fn decode(major: PgMajor, header: &RecordHeader, main: &[u8]) -> Option<(u32, EventKind)> {
    let time = |at: usize| {
        let bytes = main.get(at..)?.first_chunk()?;
        Some(PgTime::from_raw(i64::from_le_bytes(*bytes)))
    };
    let second_phase = || prepared_xid(major, header.info, main).unwrap_or(0);
    match header.info & OPERATION {
        COMMIT => Some((header.xid, EventKind::Commit { time: time(0)?, prepared: false })),
        ABORT => Some((header.xid, EventKind::Abort { time: time(0)?, prepared: false })),
        PREPARE => {
            let time = time(16)?; // after magic, length, xid, database
            Some((u32_at(main, 8), EventKind::Prepare { time }))
        }
        COMMIT_PREPARED => Some((second_phase(), EventKind::Commit { time: time(0)?, prepared: true })),
        ABORT_PREPARED => Some((second_phase(), EventKind::Abort { time: time(0)?, prepared: true })),
        _ => None,
    }
}

fn prepared_xid(major: PgMajor, info: u8, main: &[u8]) -> Option<u32> {
    if info & HAS_XINFO == 0 {
        return None;
    }
    let word = |at: usize| main.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b));
    let xinfo = word(8)?;
    if xinfo & HAS_TWOPHASE == 0 {
        return None;
    }
    let mut at = 12_usize;
    if xinfo & HAS_DATABASE != 0 {
        at += 8;
    }
    let stats_item = match major {
        PgMajor::V13 | PgMajor::V14 => 0, // the bit is not used there
        PgMajor::V15 | PgMajor::V16 | PgMajor::V17 => 12,
        PgMajor::V18 => 16, // object ids grew to 64 bits
    };
    let lists = [
        (HAS_SUBXACTS, 4),
        (HAS_RELATIONS, 12),
        (HAS_DROPPED_STATS, stats_item),
        (HAS_INVALIDATIONS, 16), // aborts have none
    ];
    for (bit, item) in lists {
        if xinfo & bit != 0 && item != 0 {
            let count = usize::try_from(word(at)?).ok()?;
            at = at.checked_add(4)?.checked_add(count.checked_mul(item)?)?;
        }
    }
    word(at)
}

/// The main data of a commit or abort at `time`, for tests: with `prepared`, one of the second phase.
#[cfg(any(test, feature = "testing"))]
pub(super) fn encode_end(time: PgTime, prepared: Option<u32>) -> Vec<u8> {
    let mut main = time.raw().to_le_bytes().to_vec();
    if let Some(xid) = prepared {
        main.extend(HAS_TWOPHASE.to_le_bytes());
        main.extend(xid.to_le_bytes());
    }
    main
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(info: u8) -> RecordHeader {
        let mut bytes = [0; 24];
        bytes[4] = 9; // xid
        bytes[16] = info;
        bytes[17] = 1;
        RecordHeader::parse(&bytes)
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn prepared_xid_stands_behind_every_list() {
        let xinfo = HAS_DATABASE | HAS_SUBXACTS | HAS_RELATIONS | HAS_INVALIDATIONS | HAS_TWOPHASE;
        let mut main = words(&[5, 0, xinfo | HAS_DROPPED_STATS, 1, 2, 2, 70, 71, 1, 1, 2, 3]);
        main.extend(words(&[1, 1, 2, 3])); // one dropped statistics entry of 15 to 17
        main.extend(words(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 4711]));
        let expected = EventKind::Commit { time: PgTime::from_raw(5), prepared: true };
        assert_eq!(decode(PgMajor::V15, &header(0x80 | COMMIT_PREPARED), &main), Some((4711, expected)));
    }

    #[test]
    fn statistics_entries_grew_in_18() {
        let mut main = words(&[5, 0, HAS_TWOPHASE | HAS_DROPPED_STATS, 1, 1, 2, 3, 4]);
        main.extend(words(&[4711]));
        assert_eq!(prepared_xid(PgMajor::V18, 0x80, &main), Some(4711));
        assert_eq!(prepared_xid(PgMajor::V17, 0x80, &main), Some(4), "17 reads three words per entry");
    }

    #[test]
    fn lists_beyond_the_kept_prefix_leave_the_xid_unknown_and_the_time_known() {
        let main = words(&[5, 0, HAS_TWOPHASE | HAS_SUBXACTS, u32::MAX, 1]);
        let expected = EventKind::Abort { time: PgTime::from_raw(5), prepared: true };
        assert_eq!(decode(PgMajor::V13, &header(0x80 | ABORT_PREPARED), &main), Some((0, expected)));
    }
}
