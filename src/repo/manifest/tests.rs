//! Tests of the manifest: what was written comes back in order, and nothing that breaks a rule is written or read.
//!
//! Golden bytes, and reading with the real `zstd`, are in `tests/formats.rs`.
//! Random manifests are made of few names, so that equal and neighbouring paths are common.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::repo::pack::PackInfo;

const ZSTD: Compression = Compression::Zstd { level: 1 };

fn id() -> BackupId {
    "20251017-103000-1a2b3c4d".parse().unwrap()
}

fn header() -> ManifestHeader {
    ManifestHeader { backup: id(), system: SystemId::new(7_301_234_567_890_123_456) }
}

fn packs() -> Vec<PackLine> {
    let (digest, table) = (Digest::of(b"pack"), Digest::of(b"table"));
    let info = PackInfo { stored: 40_000, plain: 1 << 30, frames: 300, digest, table };
    (0..2).map(|number| PackLine { backup: id(), number, info }).collect()
}

fn entry(path: &[u8], kind: FileKind) -> FileEntry {
    let (user, group) = ("postgres".to_owned(), String::new());
    FileEntry { path: Path::new(path).unwrap(), kind, mode: 0o600, mtime: -1, uid: 26, gid: 26, user, group }
}

fn file(path: &[u8], extents: &[(u32, u64, u64)]) -> FileEntry {
    let extents: Vec<Extent> =
        extents.iter().map(|&(pack, offset, len)| Extent { pack, offset, len }).collect();
    let size = extents.iter().map(|e| e.len).sum();
    entry(path, FileKind::File { size, extents, checksum: Some("CRC32C:1a2b3c4d".to_owned()) })
}

fn write(entries: &[FileEntry]) -> Result<ManifestObject, ManifestError> {
    let mut writer = ManifestWriter::new(&header(), &packs(), ZSTD)?;
    entries.iter().try_for_each(|e| writer.push(e))?;
    writer.finish()
}

fn object(entries: &[FileEntry]) -> Bytes {
    let object = write(entries).unwrap();
    let bytes = object.chunks.concat();
    assert_eq!((object.stored, object.digest), (len_u64(&bytes), Digest::of(&bytes)));
    bytes.into()
}

fn read(object: Bytes) -> Result<Vec<FileEntry>, ManifestError> {
    Manifest::open(object)?.entries().collect()
}

#[test]
fn every_kind_of_file_and_name_comes_back() {
    let entries = [
        file(b"PG_VERSION", &[(0, 512, 3)]),
        entry(b"base", FileKind::Directory),
        file(b"base/1/1249", &[(0, 1024, 8192), (1, 0, 8192)]),
        file(b"base/1/empty", &[]),
        file(b"odd \" \\ \n name", &[]),
        entry(b"pg_tblspc/16400", FileKind::Symlink { target: b"/disk/\xff".to_vec() }),
        entry(b"pg_tblspc/16401", FileKind::Symlink { target: b"/disk/b".to_vec() }),
        file(b"\xff\xfe", &[]),
    ];
    let manifest = Manifest::open(object(&entries)).unwrap();
    assert_eq!((manifest.header(), manifest.packs(), manifest.files()), (&header(), packs().as_slice(), 8));
    assert_eq!(manifest.entries().collect::<Result<Vec<_>, _>>().unwrap(), entries);
    for entry in &entries {
        assert_eq!(manifest.find(&entry.path), Ok(Some(entry.clone())));
    }
    for absent in ["A", "base/1/125", "zzz"] {
        assert_eq!(manifest.find(&Path::new(absent).unwrap()), Ok(None), "{absent}");
    }
}

#[test]
fn paths_that_leave_the_data_directory_are_none() {
    for bad in ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a\0b", &"a/".repeat(3000)] {
        assert!(Path::new(bad).is_err(), "{bad:?}");
    }
    assert!(Path::new("a..b/...").is_ok());
}

#[test]
fn an_entry_that_breaks_a_rule_is_not_written() {
    let path = |text: &str| Path::new(text).unwrap();
    let two = [file(b"b", &[]), file(b"a", &[])];
    assert_eq!(write(&two).unwrap_err(), ManifestError::Order(path("a")));
    assert_eq!(write(&[file(b"a", &[]), file(b"a", &[])]).unwrap_err(), ManifestError::Order(path("a")));
    for extents in [[(2, 0, 1)], [(0, 1 << 30, 1)], [(0, u64::MAX, 1)], [(0, 0, 0)]] {
        assert_eq!(
            write(&[file(b"a", &extents)]).unwrap_err(),
            ManifestError::Extents(path("a")),
            "{extents:?}"
        );
    }
    let many: Vec<_> = (0..1001).map(|n| (0, n * 100, 8)).collect();
    assert_eq!(write(&[file(b"a", &many)]).unwrap_err(), ManifestError::TooManyExtents(path("a")));
    assert!(write(&[file(b"a", &many[..1000])]).is_ok());
}

#[test]
fn neighbouring_extents_are_joined() {
    let extent = |pack, offset, len| Extent { pack, offset, len };
    let mut extents =
        vec![extent(0, 0, 8), extent(0, 8, 8), extent(0, 16, 1), extent(0, 18, 1), extent(1, 19, 1)];
    coalesce(&mut extents);
    assert_eq!(extents, [extent(0, 0, 17), extent(0, 18, 1), extent(1, 19, 1)]);
}

#[test]
fn a_pack_without_the_digest_of_its_table_is_refused_by_name() {
    let told = line::pack(&packs()[0]);
    assert_eq!(line::parse_pack(told.as_bytes()), Ok(packs().remove(0)));
    let (rest, _) = told.split_once(",\"table\"").unwrap();
    let error = line::parse_pack(format!("{rest}}}").as_bytes()).unwrap_err().to_string();
    assert!(error.contains("missing field `table`"), "{error}");
}

#[test]
fn packs_that_no_backup_has_are_refused_by_number() {
    let first = packs().remove(0);
    let refused = |change: fn(&mut PackLine)| {
        let mut pack = first.clone();
        change(&mut pack);
        line::parse_pack(line::pack(&pack).as_bytes()).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|pack| pack.number = 100_000));
    assert!(refused(|pack| pack.info.stored = (128 << 20) + 1));
    assert!(refused(|pack| pack.info.frames = (1 << 16) + 1));
}

#[test]
fn lines_before_the_files_are_bounded_by_what_was_announced() {
    let lines = |announced: u32| {
        let mut head = Head::default();
        let mut read = |text: String| head.read(text.as_bytes());
        read(line::header(&header(), announced) + "\n")?;
        for pack in packs() {
            read(line::pack(&pack) + "\n\n\n")?;
        }
        head.finish().map(|(_, packs)| packs.len())
    };
    assert_eq!(lines(2), Ok(2));
    for (announced, said) in
        [(1, "1 packs are announced, and more"), (3, "2 listed"), (1_000_001, "more than")]
    {
        let error = lines(announced).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert!(Head::default().finish().is_err(), "no header at all");
}

#[test]
fn a_large_manifest_is_read_frame_by_frame_and_searched_by_opening_one() {
    let entries: Vec<_> =
        (0..30_000).map(|n| file(format!("base/16384/{n:08}").as_bytes(), &[(0, n * 8192, 8192)])).collect();
    let manifest = Manifest::open(object(&entries)).unwrap();
    assert!(manifest.index.entries.len() > 3, "{}", manifest.index.entries.len());
    assert!(manifest.entries().map(Result::unwrap).eq(entries.iter().cloned()));
    for entry in entries.iter().step_by(997) {
        assert_eq!(manifest.find(&entry.path).unwrap().as_ref(), Some(entry));
    }
}

#[test]
fn every_changed_bit_is_seen_or_changes_nothing() {
    let entries = [file(b"PG_VERSION", &[(0, 512, 3)]), entry(b"base", FileKind::Directory)];
    let good = object(&entries);
    for bit in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = read(bad.into()) {
            assert_eq!(read, entries, "bit {bit}");
        }
    }
    for len in 0..good.len() {
        assert!(read(good.slice(..len)).is_err(), "cut at {len}");
    }
}

#[test]
fn a_missing_frame_is_seen() {
    let entries: Vec<_> =
        (0..9000).map(|n| file(format!("{n:08}").as_bytes(), &[(0, n * 8192, 8192)])).collect();
    let good = object(&entries);
    let index = FrameIndex::parse(&good).unwrap();
    assert!(index.entries.len() >= 3);
    let second = usize::try_from(index.entries[1].offset).unwrap();
    let third = usize::try_from(index.entries[2].offset).unwrap();
    let bad = [&good[..second], &good[third..]].concat();
    assert!(read(bad.into()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_set_of_files_comes_back_sorted(
        files in proptest::collection::btree_map(
            proptest::collection::vec(any::<u8>(), 1..4), proptest::collection::vec((0u32..2, 0u64..1000, 1u64..1000), 0..4), 0..40),
    ) {
        let files: BTreeMap<_, _> = files.into_iter().filter(|(path, _)| Path::new(path.clone()).is_ok()).collect();
        let entries: Vec<_> = files.iter().map(|(path, extents)| file(path, extents)).collect();
        prop_assert_eq!(read(object(&entries)).unwrap(), entries);
    }

    #[test]
    fn no_line_makes_the_reader_panic(text in "[\\[\\]{}\":a-z0-9,/.-]{0,80}") {
        let _ = line::parse_file(text.as_bytes());
        let _ = line::parse_pack(text.as_bytes());
        let _ = line::parse_header(text.as_bytes());
    }

    #[test]
    fn no_bytes_make_the_index_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 20u32..200) {
        let mut bytes = bytes;
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&[0; 20]);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let _ = FrameIndex::parse(&bytes);
    }
}
