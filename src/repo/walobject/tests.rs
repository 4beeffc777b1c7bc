//! Tests of WAL objects: nothing that changed is taken for what was written, and the reason is told apart.
//!
//! Golden bytes, and reading with the real `zstd`, are in `tests/formats.rs`.
//! The sample scan is not a real one: the object does not care what the numbers mean.

use proptest::prelude::*;

use super::*;
use crate::wal::scan::{CommitSummary, Stamp};
use crate::wal::{PgMajor, SegmentName, TimelineId};

pub(crate) fn segment() -> SegmentName {
    SegmentName::parse("000000010000000000000003").unwrap()
}

/// A scan of a segment of 1 MiB whose valid WAL has `valid` bytes.
pub(crate) fn scan(valid: u64, end: SegmentEnd) -> SegmentScan {
    let start = Lsn::new(3 << 20);
    let stamp = |offset, micros| Stamp {
        lsn: start.saturating_add(offset),
        end: start.saturating_add(offset + 34),
        time: PgTime::from_unix_micros(micros),
        xid: 740,
    };
    let (first, last) = (stamp(0x100, 1_760_697_000_000_000), stamp(0x400, 1_760_697_001_000_000));
    SegmentScan {
        name: segment(),
        size: SegmentSize::new(1 << 20).unwrap(),
        system_id: SystemId::new(7_301_234_567_890_123_456),
        magic: 0xD110,
        major: Some(PgMajor::V15),
        decoded: true,
        start,
        valid_to: start.saturating_add(valid),
        end,
        first_timeline: TimelineId::FIRST,
        last_timeline: TimelineId::FIRST,
        head: None,
        tail: None,
        records: 12,
        first_record: Some(start.saturating_add(40)),
        first_previous: Some(Lsn::ZERO),
        last_record: Some(start.saturating_add(0x400)),
        last_record_end: Some(start.saturating_add(0x422)),
        commits: CommitSummary {
            commits: 2,
            first: Some(first),
            last: Some(last),
            min: Some(first.time),
            max: Some(last.time),
            last_stop: Some(last),
            ..CommitSummary::default()
        },
        events: Vec::new(),
        events_dropped: 0,
    }
}

fn asked() -> Asked {
    Asked {
        cluster: "main".parse().unwrap(),
        system: SystemId::new(7_301_234_567_890_123_456),
        name: WalFileName::Segment(segment()),
    }
}

fn content() -> Vec<u8> {
    (0u32..1 << 18).flat_map(|n| (n / 5).to_le_bytes()).collect()
}

fn build(plain: &[u8], facts: Facts<'_>, compression: Compression) -> (WalHeader, Vec<u8>) {
    let mut builder = WalObjectBuilder::new(asked(), len_u64(plain), compression).unwrap();
    plain.chunks(100_000).for_each(|piece| builder.push(piece).unwrap());
    let object = builder.finish(facts).unwrap();
    assert_eq!(object.stored(), len_u64(&object.chunks.concat()));
    (object.header, object.chunks.concat())
}

fn open_all(object: &[u8], asked: &Asked) -> Result<Vec<u8>, WalObjectError> {
    let mut plain = Vec::new();
    open(object, asked, |bytes| plain.extend_from_slice(bytes)).map(|_| plain)
}

pub(crate) fn widest() -> WalHeader {
    WalHeader {
        cluster: "x".repeat(40).parse().unwrap(),
        system: SystemId::new(u64::MAX),
        name: WalFileName::parse("FFFFFFFFFFFFFFFF00000003.partial").unwrap(),
        size: 1 << 30,
        codec: Codec::Zstd,
        key: Epoch::new(9999),
        commits: Some((PgTime::from_raw(i64::MIN), PgTime::from_raw(i64::MIN + 1))),
        valid: Some(Valid {
            to: Lsn::new(0xFFFF_FFFF_FFFF_FFFF),
            head: ShortDigest::from_bytes([255; 16]),
            end: WalEnd::Damaged,
        }),
        tag: Digest::from_bytes([255; 32]),
        body: Digest::from_bytes([255; 32]),
        mac: Some(ShortDigest::from_bytes([255; 16])),
    }
}

#[test]
fn the_widest_header_fits() {
    let header = widest();
    let bytes = header.encode().unwrap();
    assert_eq!(WalHeader::parse(&bytes), Ok(header.clone()));
    let used = header.text().len() + "crc=00000000\n".len();
    assert_eq!((used, TEXT_BYTES), (475, 504), "room is left for one more short field");
}

#[test]
fn what_was_stored_comes_back() {
    let (plain, scan) = (content(), scan(1 << 20, SegmentEnd::Full));
    for compression in [Compression::Zstd { level: 1 }, Compression::Stored] {
        let (header, object) = build(&plain, Facts::Scanned(&scan), compression);
        assert_eq!(header.tag, Digest::of(&plain));
        assert_eq!(header.valid.unwrap().head, header.tag.short());
        assert!(open_all(&object, &asked()).unwrap() == plain);
        assert_eq!(parse_info(&object).unwrap(), (header, Annex::from_scan(&scan)));
    }
}

#[test]
fn head_covers_the_valid_bytes_alone() {
    let (plain, scan) = (content(), scan(300_001, SegmentEnd::Short));
    let (header, object) = build(&plain, Facts::Scanned(&scan), Compression::Zstd { level: 1 });
    assert_eq!(header.valid.unwrap().head, Digest::of(&plain[..300_001]).short());
    assert_eq!(stored_prefix(&object, &asked(), 4711, Lock::None), Ok(Digest::of(&plain[..4711])));
}

#[test]
fn every_changed_bit_of_an_object_is_seen() {
    let (_, zeros) =
        build(&vec![0; 1 << 20], Facts::Scanned(&scan(0, SegmentEnd::Short)), Compression::Zstd { level: 1 });
    for object in [(zeros, asked()), (history_object(), history())] {
        let (object, asked) = object;
        for bit in 0..object.len() * 8 {
            let mut bad = object.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = open_all(&bad, &asked).unwrap_err();
            let expected = match bit / 8 {
                0..8 => matches!(error, WalObjectError::Header(HeaderError::NotOurs)),
                8..HEADER_BYTES => matches!(error, WalObjectError::Header(HeaderError::Crc)),
                _ => error == WalObjectError::Body,
            };
            assert!(expected, "bit {bit}: {error}");
        }
        for len in 0..object.len() {
            assert!(open_all(&object[..len], &asked).is_err(), "cut at {len}");
        }
    }
}

fn history() -> Asked {
    Asked { name: WalFileName::parse("00000002.history").unwrap(), ..asked() }
}

fn history_object() -> Vec<u8> {
    let content = b"1\t0/3000000\tno recovery target specified\n";
    let mut builder = WalObjectBuilder::new(history(), len_u64(content), Compression::Stored).unwrap();
    builder.push(content).unwrap();
    builder.finish(Facts::Unscanned).unwrap().chunks.concat()
}

/// The object with another header of the caller's making, checksum and all.
fn reheaded(object: &[u8], change: impl FnOnce(&mut WalHeader)) -> Vec<u8> {
    let mut header = WalHeader::parse(object).unwrap();
    change(&mut header);
    [&header.encode().unwrap(), &object[HEADER_BYTES..]].concat()
}

#[test]
fn readers_check_in_the_order_of_the_format() {
    let object = history_object();
    let spare = Asked { cluster: "spare".parse().unwrap(), ..history() };
    let damaged = reheaded(&object, |h| h.body = Digest::of(b""));
    assert!(matches!(open_all(&damaged, &spare), Err(WalObjectError::Foreign { .. })));
    assert_eq!(open_all(&damaged, &history()), Err(WalObjectError::Body));
    let longer = reheaded(&object, |h| h.size += 1);
    assert_eq!(open_all(&longer, &history()), Err(WalObjectError::Size { size: 42, found: 41 }));
    let shorter = reheaded(&object, |h| h.size -= 1);
    assert_eq!(open_all(&shorter, &history()), Err(CodecError::TooLarge(40).into()));
    let other = reheaded(&object, |h| h.tag = Digest::of(b""));
    assert_eq!(open_all(&other, &history()), Err(WalObjectError::Tag));
    let sealed =
        reheaded(&object, |h| (h.key, h.mac) = (Epoch::new(3), Some(ShortDigest::from_bytes([0; 16]))));
    assert_eq!(open_all(&sealed, &history()), Err(WalObjectError::Sealed(Epoch::new(3).unwrap())));
}

#[test]
fn a_newer_format_is_refused_by_name_and_a_second_spelling_as_malformed() {
    let with = |from: &str, to: &str| {
        let object = history_object();
        let text = std::str::from_utf8(&object[8..HEADER_BYTES]).unwrap();
        let lines = text.split_once("crc=").unwrap().0.replacen(from, to, 1);
        let text = format!("{lines}crc={:08x}\n", crc32fast::hash(lines.as_bytes()));
        WalHeader::parse(&[&object[..8], format!("{text:504}").as_bytes()].concat())
    };
    assert!(with("zstd", "zstd").is_ok());
    assert_eq!(with("pitr1 ", "pitr2 "), Err(HeaderError::NewerFormat(2)));
    assert_eq!(with("size=41", "size=041"), Err(HeaderError::Field("spelling")));
    assert_eq!(with("size=41", "size=4194967296"), Err(HeaderError::Field("size")));
    assert_eq!(with("key=none", "key=e0001"), Err(HeaderError::Field("mac")));
    assert_eq!(with("codec=", "colour=red\ncodec="), Err(HeaderError::Field("codec")));
    assert_eq!(with("codec=none", "codec=lz4"), Err(HeaderError::Field("codec")));
    assert_eq!(
        with("name=00000002.history", "name=000000010000000000000003"),
        Err(HeaderError::Field("valid_to"))
    );
}

#[test]
fn facts_that_contradict_the_file_are_not_written() {
    let mut builder = WalObjectBuilder::new(asked(), 1 << 21, Compression::Zstd { level: 1 }).unwrap();
    builder.push(&vec![0; 1 << 21]).unwrap();
    let scan = scan(1 << 20, SegmentEnd::Full);
    assert_eq!(
        builder.finish(Facts::Scanned(&scan)).unwrap_err(),
        WalObjectError::Header(HeaderError::Field("valid_to")),
        "a scan of a segment of another size"
    );
    let large = WalObjectBuilder::new(history(), (1 << 20) + 1, Compression::Stored);
    assert_eq!(large.unwrap_err(), WalObjectError::Header(HeaderError::Field("size")));
}

/// The relation of two copies, each given as its valid bytes and its end; both have `content` up to `fork`, then differ.
fn relation(stored: (u64, SegmentEnd), offered: (u64, SegmentEnd), fork: usize) -> SameName {
    let ours = content();
    let mut theirs = content();
    theirs[fork..].iter_mut().for_each(|b| *b ^= 0x55);
    let side = |plain: &[u8], (valid, end)| {
        build(plain, Facts::Scanned(&scan(valid, end)), Compression::Zstd { level: 1 })
    };
    let ((old, old_object), (new, _)) = (side(&ours, stored), side(&theirs, offered));
    match compare(&old, &new, None) {
        SameName::NeedPrefix { of, bytes } => {
            let prefix = match of {
                Side::Stored => stored_prefix(&old_object, &asked(), bytes, Lock::None).unwrap().short(),
                Side::Offered => Digest::of(&theirs[..usize::try_from(bytes).unwrap()]).short(),
            };
            compare(&old, &new, Some(prefix))
        }
        decided => decided,
    }
}

#[test]
fn copies_of_one_segment_are_told_from_two_histories() {
    use SegmentEnd::{Full, Short, Switch};
    const ALL: u64 = 1 << 20;
    const NEVER: usize = 1 << 20;
    assert_eq!(relation((ALL, Full), (ALL, Full), NEVER), SameName::Equal);
    assert_eq!(relation((ALL, Full), (ALL, Full), 500_000), SameName::Different);
    assert_eq!(relation((ALL, Full), (ALL, Full), NEVER - 1), SameName::Different);
    assert_eq!(
        relation((9000, Short), (ALL, Full), 9000),
        SameName::Extends,
        "recycled bytes behind the end may differ"
    );
    assert_eq!(relation((9000, Short), (ALL, Full), 8999), SameName::Different);
    assert_eq!(relation((9000, Short), (9500, Short), 9000), SameName::Extends);
    assert_eq!(relation((9000, Short), (9500, Switch), 9000), SameName::Extends);
    assert_eq!(relation((9500, Short), (9000, Short), 9000), SameName::StoredCovers);
    assert_eq!(relation((9500, Short), (9000, Short), 8999), SameName::Different);
    assert_eq!(relation((ALL, Full), (9000, Short), 9000), SameName::StoredCovers);
    assert_eq!(
        relation((9000, Switch), (9000, Switch), 9000),
        SameName::StoredCovers,
        "only padding differs"
    );
    assert_eq!(relation((9000, Switch), (9000, Switch), 8999), SameName::Different);
    assert_eq!(
        relation((9000, Switch), (ALL, Full), 9000),
        SameName::Different,
        "nothing can follow a switch"
    );
}

proptest! {
    #[test]
    fn any_header_comes_back(
        cluster in "[a-z0-9][a-z0-9_-]{0,39}", system: u64, name_at in 0usize..4, low in any::<i64>(), high in any::<i64>(),
        has_commits: bool, epoch in proptest::option::of(1u32..=9999), offset in 0u64..=1 << 20, end in 0usize..4,
        bytes: [u8; 32],
    ) {
        let names = ["000000010000000000000003", "000000010000000000000003.partial", "0000000A.history",
                     "000000010000000000000003.00000028.backup"];
        let name = WalFileName::parse(names[name_at]).unwrap();
        let wal = name_at < 2;
        let end = WalEnd::ALL[end];
        let offset = if end == WalEnd::Full { 1 << 20 } else { offset };
        let valid = Valid {
            to: Lsn::new(3 << 20).saturating_add(offset),
            head: Digest::from_bytes(bytes).short(),
            end,
        };
        // Times beyond what Unix microseconds can say are held at the ends, in every header alike.
        let time = |micros| PgTime::from_unix_micros(PgTime::from_raw(micros).unix_micros());
        let (low, high) = (time(low), time(high));
        let header = WalHeader {
            cluster: cluster.parse().unwrap(), system: SystemId::new(system), name, size: 1 << 20, codec: Codec::None,
            key: epoch.and_then(Epoch::new), commits: (has_commits && wal).then_some((low.min(high), low.max(high))),
            valid: wal.then_some(valid), tag: Digest::of(&bytes), body: Digest::from_bytes(bytes),
            mac: epoch.map(|_| Digest::of(b"x").short()),
        };
        prop_assert_eq!(WalHeader::parse(&header.encode().unwrap()), Ok(header));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700), text in "[a-z0-9=,/\n]{0,300}") {
        let _ = parse_info(&bytes);
        let lines = format!("pitr1 wal\n{text}\n");
        let text = format!("{lines}crc={:08x}\n", crc32fast::hash(lines.as_bytes()));
        let _ = WalHeader::parse(&[frame_head().as_slice(), format!("{text:504}").as_bytes(), &bytes].concat());
    }
}
