//! The segment scanner: well-formed records of any content are accepted, damaged segments are answered, and the size of the
//! pieces never matters.
//!
//! ```text
//!  first byte even:  records [rmgr, info, length u16, body…]*   get right headers and CRCs, so the decoders see any body
//!            odd:    patches [offset u24, length u8, bytes…]*   over a segment with everything in it
//! ```
//! Source of truth: the rules in `src/wal/scan/scanner.rs`.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pitr::wal::scan::{ScanError, SegmentScan};
use pitr::wal::testing::Wal;
use pitr::wal::{Keep, Lsn, PgMajor, PgTime, Scanner, SegmentEnd, SegmentName, SegmentSize};

const MIB: usize = 1 << 20;

fn scan(name: SegmentName, bytes: &[u8], piece: usize) -> Result<SegmentScan, ScanError> {
    let size = SegmentSize::new(1 << 20).expect("1 MiB");
    let mut scanner = Scanner::new(name, size, Keep::All)?;
    for piece in bytes.chunks(piece.max(1)) {
        scanner.push(piece)?;
    }
    scanner.finish()
}

fn base() -> &'static (SegmentName, Vec<u8>) {
    static BASE: OnceLock<(SegmentName, Vec<u8>)> = OnceLock::new();
    BASE.get_or_init(|| {
        let time = PgTime::from_raw(800_000_000_000_000);
        let wal =
            Wal::starting_at(Lsn::new(3 << 20)).filler(MIB + 9_000).commit(time).restore_point(time, "here");
        let wal =
            wal.prepare(time).commit_prepared(702, time).abandoned(30_000, 9_000).abort(time).checkpoint(9);
        wal.fill_segment(20_000).segments().remove(1)
    })
}

fn records(mut data: &[u8], major: PgMajor) {
    let mut wal = Wal::starting_at(Lsn::new(5 << 20)).major(major);
    let mut written = 0;
    while let [rmgr, info, low, high, rest @ ..] = data {
        let (body, rest) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        data = rest;
        if (*rmgr, info & 0xF0) == (0, 0x40) {
            continue; // a switch ends the segment, and what follows is not looked at
        }
        wal = wal.record(*rmgr, *info, 7, body);
        written += 1;
        if wal.position() > Lsn::new((6 << 20) - 100_000) {
            break;
        }
    }
    let Some((name, bytes)) = wal.segments().into_iter().next() else { return };
    let scan = scan(name, &bytes, 8192).expect("well-formed WAL");
    assert_eq!((scan.records, scan.end), (written, SegmentEnd::Short));
}

fuzz_target!(|data: &[u8]| {
    let [mode, piece, rest @ ..] = data else { return };
    if mode % 2 == 0 {
        let majors = PgMajor::ALL;
        return records(rest, majors[usize::from(*piece) % majors.len()]);
    }
    let (name, mut bytes) = base().clone();
    let mut patches = rest;
    while let [a, b, c, length, more @ ..] = patches {
        let (patch, more) = more.split_at(usize::from(*length).min(more.len()));
        let at = usize::try_from(u32::from_le_bytes([*a, *b, *c, 0])).unwrap_or(0) % MIB;
        let end = (at + patch.len()).min(MIB);
        bytes[at..end].copy_from_slice(&patch[..end - at]);
        patches = more;
    }
    let whole = scan(name, &bytes, MIB);
    assert_eq!(scan(name, &bytes, usize::from(*piece) * 37 + 11), whole);
    if let Ok(scan) = whole {
        assert!(scan.start <= scan.valid_to && scan.valid_to <= Lsn::new(5 << 20));
        assert!(scan.events.windows(2).all(|pair| pair[0].lsn < pair[1].lsn));
    }
});
