//! Golden bytes of every stored format, and proof that the tools FORMAT.md names read them without pitr.
//!
//! A fixture in `tests/fixtures/format` changes only together with FORMAT.md and a new format number. `PITR_BLESS=1` writes those that
//! are missing; one that differs is never overwritten: remove it by hand, and say why in the commit.
//! Compressed bytes depend on the zstd library: if an upgrade of it changes them, the old fixture must still be read.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]
#![expect(clippy::disallowed_methods, reason = "fixtures and scratch files of tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use jiff::Timestamp;
use pitr::codec::{Compression, Digest, ShortDigest, compress};
use pitr::repo::annex::{Annex, Span, WalWriter, kind};
use pitr::repo::manifest::{
    self, Extent, FileEntry, FileKind, Manifest, ManifestHeader, ManifestWriter, PackLine,
};
use pitr::repo::objects::{
    Abandoned, Alive, Backup, BackupKind, Checksums, Document, Expired, Floor, FormatMark, Identity, Intent,
    KeptRange, Lease, Nonce, ObjectRef, PackRefs, PackTotals, Pin, Process, Status, Tablespace,
    TimelineFloor, Verdict, decode, encode,
};
use pitr::repo::pack::{Pack, PackBuilder, PackTable, TARGET, compress_frame};
use pitr::repo::path::{BackupId, ClusterName, PinId, PinKind};
use pitr::repo::walobject::{
    Asked, Codec, Facts, Valid, WalEnd, WalHeader, WalObjectBuilder, open, parse_info,
};
use pitr::wal::scan::{Backstep, CommitSummary, Fragment, SegmentScan, Stamp};
use pitr::wal::{
    Event, EventKind, Lsn, PgMajor, PgTime, SegmentEnd, SegmentName, SegmentSize, SystemId, TimelineId,
    WalFileName,
};

const ZSTD: Compression = Compression::Zstd { level: 1 };
const MIB: u64 = 1 << 20;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format").join(name)
}

/// Compares `bytes` with the fixture called `name`.
fn golden(name: &str, bytes: &[u8]) {
    let path = fixture(name);
    if !path.exists() && std::env::var_os("PITR_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    assert!(path.exists(), "{name} is missing; PITR_BLESS=1 writes it");
    let stored = fs::read(&path).unwrap();
    assert!(
        stored == bytes,
        "{name}: the format changed\nstored: {}\n   now: {}",
        shown(&stored),
        shown(bytes)
    );
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(3000).collect()
}

/// What a shell makes of `script` with the fixtures as its directory.
fn shell(script: &str) -> Vec<u8> {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(fixture(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cluster() -> ClusterName {
    "main".parse().unwrap()
}

fn system() -> SystemId {
    SystemId::new(7_301_234_567_890_123_456)
}

fn segment(text: &str) -> SegmentName {
    SegmentName::parse(text).unwrap()
}

fn id() -> BackupId {
    "20251017-103000-1a2b3c4d".parse().unwrap()
}

fn process() -> Process {
    Process {
        host: "db1".to_owned(),
        boot: "3f8a0c1e-9d57-4a53-8a4e-0d6c4a5d9a11".to_owned(),
        pid: 4711,
        version: "0.1.0".to_owned(),
    }
}

fn content() -> Vec<u8> {
    let mut content = b"what a segment holds is no concern of this test ".repeat(200);
    content.resize(1 << 20, 0);
    content
}

fn stamp(offset: u64, seconds: i64) -> Stamp {
    let lsn = Lsn::new(3 * MIB + offset);
    Stamp {
        lsn,
        end: lsn.saturating_add(34),
        time: PgTime::from_unix_seconds(1_760_697_000 + seconds),
        xid: 740,
    }
}

fn every_event() -> Vec<Event> {
    let at = PgTime::from_unix_seconds(1_760_697_000);
    let two = TimelineId::new(2).unwrap();
    let kinds = [
        EventKind::RestorePoint { time: at, name: "before the upgrade".to_owned() },
        EventKind::Checkpoint { time: at, redo: Lsn::new(3 * MIB + 40), shutdown: true, timeline: two },
        EventKind::EndOfRecovery { time: at, timeline: two, previous: TimelineId::FIRST },
        EventKind::BackupEnd { start: Lsn::new(2 * MIB) },
        EventKind::Switch,
        EventKind::ParameterChange {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_xacts: 0,
            max_locks_per_xact: 64,
            wal_level: 1,
        },
        EventKind::DatabaseDrop { databases: vec![16384, 16385] },
        EventKind::DatabaseCreate { database: 16386 },
        EventKind::OverwriteContrecord { lsn: Lsn::new(3 * MIB - 8) },
        EventKind::TablespaceCreate { tablespace: 16387, place: b"/srv/fast".to_vec() },
    ];
    let event = |(n, kind): (u64, EventKind)| Event {
        lsn: Lsn::new(3 * MIB + n * 0x100),
        end: Lsn::new(3 * MIB + n * 0x100 + 50),
        xid: 740,
        kind,
    };
    (1..).zip(kinds).map(event).collect()
}

fn scan(valid: u64, end: SegmentEnd) -> SegmentScan {
    let start = Lsn::new(3 * MIB);
    let fragment =
        |lsn, end, total, len| Fragment { lsn, end, total, len, crc: 0x1234_5678, bytes: (0..128).collect() };
    let past = start.saturating_add(MIB);
    SegmentScan {
        name: segment("000000010000000000000003"),
        size: SegmentSize::new(MIB).unwrap(),
        system_id: system(),
        magic: PgMajor::V15.magic(),
        major: Some(PgMajor::V15),
        decoded: true,
        start,
        valid_to: start.saturating_add(valid),
        end,
        first_timeline: TimelineId::FIRST,
        last_timeline: TimelineId::FIRST,
        head: Some(fragment(start.saturating_add(40), start.saturating_add(100), 60, 60)),
        tail: Some(fragment(Lsn::new(past.get() - 200), past, 8192, 200)),
        records: 12,
        first_record: Some(start.saturating_add(104)),
        first_previous: Some(Lsn::new(3 * MIB - 60)),
        last_record: Some(start.saturating_add(0x900)),
        last_record_end: Some(start.saturating_add(0x932)),
        commits: CommitSummary {
            commits: 3,
            aborts: 1,
            prepares: 1,
            first: Some(stamp(0x80, 0)),
            last: Some(stamp(0x8C0, 9)),
            min: Some(stamp(0, 0).time),
            max: Some(stamp(0, 12).time),
            last_stop: Some(stamp(0x8F0, 10)),
            backstep: Some(Backstep { from: stamp(0, 12).time, to: stamp(0x8C0, 9) }),
        },
        events: every_event(),
        events_dropped: 0,
    }
}

fn asked(name: &str) -> Asked {
    Asked { cluster: cluster(), system: system(), name: WalFileName::parse(name).unwrap() }
}

fn wal_object(name: &str, plain: &[u8], facts: Facts<'_>, compression: Compression) -> Vec<u8> {
    let size = u64::try_from(plain.len()).unwrap();
    let mut builder = WalObjectBuilder::new(asked(name), size, compression).unwrap();
    builder.push(plain).unwrap();
    builder.finish(facts).unwrap().chunks.concat()
}

#[test]
fn the_header_of_a_segment_reads_like_this() {
    let object = wal_object(
        "000000010000000000000003",
        &content(),
        Facts::Scanned(&scan(9600, SegmentEnd::Short)),
        ZSTD,
    );
    golden("segment.wal", &object);
    let text = String::from_utf8(shell("head -c 512 segment.wal | tail -c +9")).unwrap();
    let digest = Digest::of(&content());
    let (head, body) = (Digest::of(&content()[..9600]).short(), Digest::of(&object[512..]));
    let lines = format!(
        "pitr1 wal\ncluster=main\nsys=7301234567890123456\nname=000000010000000000000003\nsize=1048576\ncodec=zstd\n\
         key=none\ncommits=1760697000000000,1760697012000000\nvalid_to=0/302580\nhead={head}\nend=short\ntag={digest}\n\
         body={body}\n"
    );
    assert_eq!(text, format!("{:504}", format!("{lines}crc={:08x}\n", crc32fast::hash(lines.as_bytes()))));
    let (header, annex) = parse_info(&object[..4096.min(object.len())]).unwrap();
    assert_eq!(header.valid, Some(Valid { to: Lsn::new(3 * MIB + 9600), head, end: WalEnd::Short }));
    assert_eq!(annex, Annex::from_scan(&scan(9600, SegmentEnd::Short)));
    assert!(annex.encode().len() + 512 < 4096, "one small read must suffice");
}

#[test]
fn zstd_reads_a_segment_whole_and_behind_its_header() {
    let content = content();
    assert!(shell("zstd -qdc segment.wal") == content);
    assert!(shell("tail -c +513 segment.wal | zstd -qdc") == content);
    let mut plain = Vec::new();
    let object = fs::read(fixture("segment.wal")).unwrap();
    open(&object, &asked("000000010000000000000003"), |bytes| plain.extend_from_slice(bytes)).unwrap();
    assert!(plain == content);
}

#[test]
fn zstd_reads_a_file_that_is_stored_without_compression() {
    let history = b"1\t0/3000000\tno recovery target specified\n\n";
    golden("history.wal", &wal_object("00000002.history", history, Facts::Unscanned, Compression::Stored));
    assert_eq!(shell("zstd -qdc history.wal"), history);
    let mut large = content().repeat(3);
    large.extend_from_slice(b"an odd end");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.zst");
    fs::write(&path, compress(&large, Compression::Stored).unwrap()).unwrap();
    assert!(shell(&format!("zstd -qdc '{}'", path.display())) == large);
}

/// The widest header there can be: whatever is added to the format later must fit behind it.
#[test]
fn the_widest_header_fits_into_512_bytes() {
    let header = WalHeader {
        cluster: "x".repeat(40).parse().unwrap(),
        system: SystemId::new(u64::MAX),
        name: WalFileName::parse("FFFFFFFFFFFFFFFF00000003.partial").unwrap(),
        size: 1 << 30,
        codec: Codec::Zstd,
        key: pitr::seal::Epoch::new(9999),
        commits: Some((PgTime::from_unix_micros(i64::MIN + (1 << 50)), PgTime::from_raw(0))),
        valid: Some(Valid { to: Lsn::MAX, head: ShortDigest::from_bytes([0xAB; 16]), end: WalEnd::Damaged }),
        tag: Digest::from_bytes([0xCD; 32]),
        body: Digest::from_bytes([0xEF; 32]),
        mac: Some(ShortDigest::from_bytes([0x12; 16])),
    };
    let bytes = header.encode().unwrap();
    golden("header-widest.bin", &bytes);
    assert_eq!(WalHeader::parse(&bytes), Ok(header));
}

#[test]
fn the_annex_has_every_section() {
    let annex = Annex::from_scan(&scan(MIB, SegmentEnd::Full));
    golden("annex.bin", &annex.encode());
    let (read, len) = Annex::parse(&fs::read(fixture("annex.bin")).unwrap()).unwrap();
    assert_eq!((read, len), (annex.clone(), annex.encode().len()));
    assert_eq!(annex.writer, Some(WalWriter { magic: 0xD110, major: 15 }));
    assert!(matches!(annex.span, Some(Span { records: 12, .. })));
    assert!(kind::LISTS.iter().all(|k| annex.complete(*k)));
}

/// A tar stream in two packs, cut inside a member.
fn packs() -> Vec<Pack> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, size) in [("PG_VERSION", 3_u8), ("base/1/1249", 200)] {
        let data = vec![b'0' + size % 10; usize::from(size) * 100];
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(data.len()).unwrap());
        header.set_mode(0o600);
        header.set_mtime(1_760_697_000);
        header.set_cksum();
        tar.append_data(&mut header, path, data.as_slice()).unwrap();
    }
    let stream = tar.into_inner().unwrap();
    let frames: Vec<_> = stream.chunks(5000).map(|plain| compress_frame(plain, ZSTD).unwrap()).collect();
    frames
        .chunks(3)
        .map(|frames| {
            let mut builder = PackBuilder::new(TARGET);
            frames.iter().for_each(|frame| builder.push(frame.clone()).unwrap());
            builder.finish().unwrap()
        })
        .collect()
}

#[test]
fn zstd_and_tar_read_the_packs_of_a_backup() {
    let packs = packs();
    assert_eq!(packs.len(), 2);
    for (n, pack) in packs.iter().enumerate() {
        golden(&format!("pack-{n:05}.tar.zst"), &pack.chunks.concat());
        let stored = fs::read(fixture(&format!("pack-{n:05}.tar.zst"))).unwrap();
        let table = PackTable::parse(&stored).unwrap();
        assert_eq!(table.plain_len(), pack.info.plain);
        let start = usize::try_from(pack.info.table_range().unwrap().start).unwrap();
        assert_eq!(PackTable::parse(&stored[start..]).unwrap(), table);
    }
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().display().to_string();
    shell(&format!("cat pack-* | zstd -qd | tar x -C '{to}'"));
    assert_eq!(fs::read(directory.path().join("PG_VERSION")).unwrap(), vec![b'3'; 300]);
    assert_eq!(fs::read(directory.path().join("base/1/1249")).unwrap(), vec![b'0'; 20_000]);
    assert_eq!(shell("cat pack-* | tar --zstd -t"), b"PG_VERSION\nbase/1/1249\n");
}

#[test]
fn zstd_reads_the_manifest_as_lines_of_json() {
    let packs = packs();
    let line = |(number, pack): (u32, &Pack)| PackLine { backup: id(), number, info: pack.info };
    let lines: Vec<_> = (0..).zip(&packs).map(line).collect();
    let entry = |path: &[u8], kind| FileEntry {
        path: manifest::Path::new(path).unwrap(),
        kind,
        mode: 0o600,
        mtime: 1_760_697_000,
        uid: 26,
        gid: 26,
        user: "postgres".to_owned(),
        group: "postgres".to_owned(),
    };
    let extents =
        vec![Extent { pack: 0, offset: 2048, len: 12_952 }, Extent { pack: 1, offset: 0, len: 7048 }];
    let entries = [
        entry(b"base", FileKind::Directory),
        entry(
            b"base/1/1249",
            FileKind::File { size: 20_000, extents, checksum: Some("CRC32C:1a2b3c4d".to_owned()) },
        ),
        entry(b"pg_tblspc/16400", FileKind::Symlink { target: b"/disk/\xff".to_vec() }),
        entry(b"\xff", FileKind::File { size: 0, extents: Vec::new(), checksum: None }),
    ];
    let mut writer =
        ManifestWriter::new(&ManifestHeader { backup: id(), system: system() }, &lines, ZSTD).unwrap();
    entries.iter().for_each(|e| writer.push(e).unwrap());
    golden("manifest.jsonl.zst", &writer.finish().unwrap().chunks.concat());
    golden("manifest.jsonl", &shell("zstd -qdc manifest.jsonl.zst"));
    let manifest = Manifest::open(fs::read(fixture("manifest.jsonl.zst")).unwrap().into()).unwrap();
    assert_eq!(manifest.packs(), lines);
    assert_eq!(manifest.entries().map(Result::unwrap).collect::<Vec<_>>(), entries);
}

fn document<D: Document + PartialEq + std::fmt::Debug>(name: &str, document: &D) {
    golden(name, &encode(document));
    assert_eq!(decode::<D>(&fs::read(fixture(name)).unwrap()).as_ref(), Ok(document), "{name}");
}

#[test]
fn the_marks_of_a_folder_look_like_this() {
    let created = time("2025-10-17T10:30:00Z");
    let nonce = Nonce::new([0x5A; 16]);
    document("format.json", &FormatMark { format: 1, created, version: "0.1.0".to_owned() });
    let identity = Identity {
        cluster: cluster(),
        system: system(),
        major: PgMajor::V15,
        segment_size: SegmentSize::DEFAULT,
        sealed: false,
        sequence: 1,
        created,
        nonce,
        version: "0.1.0".to_owned(),
    };
    document("identity.json", &identity);
    let kept =
        KeptRange { first: segment("000000010000000000000003"), last: segment("000000010000000000000005") };
    let line = TimelineFloor {
        timeline: TimelineId::FIRST,
        first: segment("000000010000000100000000"),
        keep: vec![kept],
    };
    document("floor.json", &Floor { nonce, created, timelines: vec![line] });
    document("lease.json", &Lease { backup: id(), nonce, created, process: process() });
    let pin = Pin {
        id: PinId::new(PinKind::Operator, 0x0123_4567_89AB_CDEF),
        kind: PinKind::Operator,
        created,
        backup: id(),
        wal_from: segment("000000010000000000000003"),
        note: "before the audit".to_owned(),
        process: process(),
    };
    document("pin.json", &pin);
}

fn references() -> Vec<PackRefs> {
    let packs = [0, 1, 2, 7].into_iter().collect();
    vec![PackRefs { backup: "20251010-103000-00000001".parse().unwrap(), packs }]
}

fn backup() -> Backup {
    Backup {
        status: Status::Complete,
        id: id(),
        nonce: Nonce::new([0x5A; 16]),
        kind: BackupKind::Incremental,
        cluster: cluster(),
        system: system(),
        major: PgMajor::V15,
        server_version: 150_018,
        segment_size: SegmentSize::DEFAULT,
        timeline: TimelineId::FIRST,
        start_lsn: Lsn::new(0x16_B374_D848),
        stop_lsn: Lsn::new(0x16_B374_FFFF),
        started_at: time("2025-10-17T10:30:00.123456Z"),
        finished_at: time("2025-10-17T10:40:00Z"),
        stop_time: time("2025-10-17T10:39:58.5Z"),
        window_earliest: Some(time("2025-10-17T10:39:57.000001Z")),
        key: None,
        wal_floor: segment("0000000100000016000000B3"),
        label: "before the upgrade".to_owned(),
        from_standby: false,
        checksums: Checksums::Ok,
        damage: Vec::new(),
        cluster_bytes: 50_000_000_000,
        new_bytes: 2_000_000_000,
        stored_bytes: 700_000_000,
        files: 12_345,
        tablespaces: vec![Tablespace { oid: 16_400, location: "/disk/fast".to_owned() }],
        packs: PackTotals { count: 21, stored: 690_000_000, plain: 2_010_000_000 },
        pack_digests: Vec::new(),
        references: references(),
        manifest: ObjectRef { stored: 9_000_000, digest: Digest::of(b"manifest") },
        pg_manifest: Some(ObjectRef { stored: 900_000, digest: Digest::of(b"backup_manifest") }),
        catalogue: None,
        process: process(),
    }
}

#[test]
fn the_documents_of_a_backup_look_like_this() {
    let created = time("2025-10-17T10:30:00Z");
    let nonce = Nonce::new([0x5A; 16]);
    let intent = Intent {
        id: id(),
        nonce,
        cluster: cluster(),
        system: system(),
        kind: BackupKind::Incremental,
        started_at: created,
        timeline: TimelineId::FIRST,
        wal_floor: segment("0000000100000016000000B3"),
        references: references(),
        takes_over: Some("20251017-090000-0badcafe".parse().unwrap()),
        process: process(),
    };
    document("intent.json", &intent);
    document("alive.json", &Alive { id: id(), nonce, created });
    document("expired.json", &Expired { id: id(), nonce, created, reason: "older than 7 days".to_owned() });
    document("backup.json", &backup());
    let sealed = Backup {
        key: Some("e0001".parse().unwrap()),
        packs: PackTotals { count: 2, ..backup().packs },
        pack_digests: vec![Digest::of(b"pack 0").short(), Digest::of(b"pack 1").short()],
        ..backup()
    };
    document("backup-digests.json", &sealed);
    let abandoned = Abandoned {
        status: Status::Abandoned,
        id: id(),
        nonce,
        created,
        reason: "no sign of life for 24 hours".to_owned(),
        process: process(),
    };
    document("abandoned.json", &abandoned);
    let read = |name: &str| Verdict::decode(&fs::read(fixture(name)).unwrap()).unwrap();
    assert_eq!(read("backup.json"), Verdict::Complete(Box::new(backup())));
    assert_eq!(read("abandoned.json"), Verdict::Abandoned(abandoned));
}

/// The script for restoring without pitr, as FORMAT.md prints it, on a small archive.
#[test]
fn the_restore_script_of_the_format_page_serves_files_and_says_absent_only_of_what_is() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("FORMAT.md")).unwrap();
    let script = page.split_once("cat > restore.sh <<'END'\n").unwrap().1.split_once("\nEND\n").unwrap().0;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let log = root.join("wal/00000001/00000000");
    fs::create_dir_all(&log).unwrap();
    fs::write(root.join("restore.sh"), script).unwrap();
    let segment = |n: u8, end| {
        let facts = scan(9600, end);
        wal_object("000000010000000000000003", &vec![n; 1 << 20], Facts::Scanned(&facts), ZSTD)
    };
    let object = |file: &str| log.join(format!("0000000100000000000000{file}"));
    for (file, n, end) in [
        ("03.wal", 1, SegmentEnd::Short),
        ("03.2.wal", 2, SegmentEnd::Switch),
        ("03.3.wal", 3, SegmentEnd::Short),
        ("03.partial.wal", 9, SegmentEnd::Short),
        ("04.wal", 4, SegmentEnd::Short),
    ] {
        fs::write(object(file), segment(n, end)).unwrap();
    }
    fs::copy(fixture("identity.json"), root.join("identity.json")).unwrap();
    fs::copy(fixture("history.wal"), root.join("wal/00000002.history")).unwrap();
    let get = |name: &str| {
        let to = root.join("restored");
        fs::remove_file(&to).ok();
        let status =
            Command::new("sh").arg(root.join("restore.sh")).arg(root).args([name]).arg(&to).status().unwrap();
        (status.code(), fs::read(&to).ok().map(|bytes| (bytes.first().copied().unwrap_or(0), bytes.len())))
    };
    let (third, fourth, fatal) = ("000000010000000000000003", "000000010000000000000004", (Some(200), None));
    assert_eq!(get(third), (Some(0), Some((2, 1 << 20))), "the copy that is whole");
    assert_eq!(get(fourth), (Some(0), Some((4, 1 << 20))), "the last one may be unfinished");
    assert_eq!(get("000000010000000000000005"), (Some(1), None));
    assert_eq!(get("00000002.history"), (Some(0), Some((b'1', 42))));
    assert_eq!(get("00000003.history"), (Some(1), None));
    assert_eq!(
        get("00000001.history"),
        (Some(1), None),
        "PostgreSQL asks for it at the end of every recovery"
    );

    fs::rename(object("03.wal"), object("away")).unwrap();
    assert_eq!(get(third), fatal, "a second copy without a first one");
    fs::rename(object("away"), object("03.wal")).unwrap();
    fs::remove_file(object("03.2.wal")).unwrap();
    assert_eq!(get(third), fatal, "unfinished, and WAL goes on");
    fs::remove_file(object("03.wal")).unwrap();
    assert_eq!(get(third), fatal, "a hole");
    fs::write(object("04.wal"), &segment(4, SegmentEnd::Short)[..600]).unwrap();
    assert_eq!(get(fourth).0, fatal.0, "cut off");
    fs::remove_file(root.join("identity.json")).unwrap();
    assert_eq!(get("000000010000000000000005"), fatal, "a disk that is gone");
}
