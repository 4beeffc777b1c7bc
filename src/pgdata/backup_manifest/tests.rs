//! Tests of the manifest reader: any chunking gives the same answer, each flipped byte is noticed, bounds hold.
//! tests/pgdata.rs reads what a real `pg_basebackup` wrote.

use super::*;
use proptest::prelude::*;

/// A manifest with a right checksum around `files` and `more` top-level text.
fn manifest(head: &str, files: &[&str], ranges: &str) -> String {
    let mut text = format!("{{ {head},\n\"Files\": [");
    text.push_str(&files.iter().map(|f| format!("\n{f}")).collect::<Vec<_>>().join(","));
    text.push_str(&format!("\n],\n\"WAL-Ranges\": [\n{ranges}\n],\n"));
    let checksum = hex(&Sha256::digest(text.as_bytes()));
    format!("{text}\"Manifest-Checksum\": \"{checksum}\"}}\n")
}

const V1: &str = "\"PostgreSQL-Backup-Manifest-Version\": 1";
const V2: &str = "\"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 18446744073709551615";
const RANGE: &str = r#"{ "Timeline": 2, "Start-LSN": "0/A00028", "End-LSN": "0/A00100" }"#;
const FILES: [&str; 3] = [
    r#"{ "Path": "PG_VERSION", "Size": 3, "Last-Modified": "2025-10-17 10:30:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "8a744722" }"#,
    r#"{ "Encoded-Path": "62ff7d", "Size": 4294967296, "Last-Modified": "2025-10-17 10:30:00 GMT" }"#,
    r#"{ "Path": "a\"}\\b\u00e4", "Size": 0, "Checksum-Algorithm": "sha224", "Checksum": "d14a028c2a3a2bc9476102bb288234c415a2b01f828ea62ac5b3e42f" }"#,
];

fn refused(text: &str) -> String {
    PgManifest::parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_manifest_of_version_2_is_read_exactly() {
    let parsed = PgManifest::parse(manifest(V2, &FILES, RANGE).as_bytes()).unwrap();
    assert_eq!((parsed.summary.version, parsed.summary.system_id), (2, Some(SystemId::new(u64::MAX))));
    assert_eq!((parsed.summary.files, parsed.summary.bytes), (3, 4_294_967_299));
    let range = &parsed.summary.wal_ranges[0];
    assert_eq!((range.timeline.get(), range.start, range.end), (2, Lsn::new(0xA0_0028), Lsn::new(0xA0_0100)));
    let paths: Vec<&[u8]> = parsed.files.iter().map(|f| f.path.as_slice()).collect();
    assert_eq!(paths, [b"PG_VERSION".as_slice(), "a\"}\\b\u{e4}".as_bytes(), b"b\xff}"]);
    assert_eq!(format!("{:?}", parsed.files[0].checksum), "Some(CRC32C:8a744722)");
    assert_eq!(parsed.files[2].checksum, None);
}

#[test]
fn version_1_has_no_system_identifier() {
    assert_eq!(PgManifest::parse(manifest(V1, &[], RANGE).as_bytes()).unwrap().summary.system_id, None);
    let mixed = V2.replace(": 2", ": 1");
    assert!(refused(&manifest(&mixed, &[], RANGE)).ends_with("unexpected key \"System-Identifier\""));
    let absent = V1.replace(": 1", ": 2");
    assert!(refused(&manifest(&absent, &[], RANGE)).ends_with("System-Identifier is missing"));
}

#[test]
fn checksums_are_written_as_postgresql_writes_them() {
    assert_eq!(crc32c_hex(0xE306_9283), "839206e3");
    for (algorithm, start) in [
        (Algorithm::Crc32c, "839206e3"),
        (Algorithm::Sha224, "9b3e61bf"),
        (Algorithm::Sha256, "15e2b0d3"),
        (Algorithm::Sha384, "eb455d56"),
        (Algorithm::Sha512, "d9e6762d"),
    ] {
        let mut hasher = FileHasher::new(algorithm);
        hasher.update(b"1234");
        hasher.update(b"56789");
        let checksum = hasher.finish();
        assert_eq!(checksum.bytes.len(), algorithm.length());
        assert!(hex(&checksum.bytes).starts_with(start), "{checksum}");
    }
}

#[test]
fn every_changed_byte_and_every_cut_is_noticed() {
    let good = manifest(V2, &FILES, RANGE).into_bytes();
    let checksum_line = good.len() - 2 - 64 - 3;
    for at in 0..good.len() {
        let mut bad = good.clone();
        // Another digit of a number, another letter of a name: mostly still valid JSON.
        bad[at] ^= if at > checksum_line && bad[at].is_ascii_alphabetic() { 1 } else { 3 };
        assert!(PgManifest::parse(&bad).is_err(), "byte {at} of {}", String::from_utf8_lossy(&bad));
        assert!(PgManifest::parse(&good[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn what_pg_verifybackup_would_refuse_is_refused() {
    let with = |file: &str| refused(&manifest(V2, &[file], RANGE));
    for (file, why) in [
        (r#"{ "Path": "a" }"#, "missing field `Size`"),
        (r#"{ "Size": 1 }"#, "a file needs one of Path and Encoded-Path"),
        (r#"{ "Path": "a", "Encoded-Path": "61", "Size": 1 }"#, "a file needs one of Path and Encoded-Path"),
        (r#"{ "Encoded-Path": "6", "Size": 1 }"#, "Encoded-Path is not hexadecimal"),
        (r#"{ "Path": "a", "Size": 1.5 }"#, "invalid type: floating point `1.5`, expected u64"),
        (
            r#"{ "Path": "a", "Size": 1, "Checksum": "00" }"#,
            "a file needs both or none of Checksum-Algorithm and Checksum",
        ),
        (
            r#"{ "Path": "a", "Size": 1, "Checksum-Algorithm": "CRC32C", "Checksum": "00" }"#,
            "a checksum has the wrong length",
        ),
        (
            r#"{ "Path": "a", "Size": 1, "Checksum-Algorithm": "MD5", "Checksum": "00" }"#,
            "an unknown checksum algorithm",
        ),
        (r#"{ "Path": "a", "Size": 1, "More": [1] }"#, "an entry holds another object or array"),
    ] {
        assert!(with(file).ends_with(why), "{file}: {}", with(file));
    }
    for path in ["/etc/passwd", "../x", "a/../b", "a//b", "", "./a", "a/", "a\\u0000"] {
        assert!(
            with(&format!("{{ \"Path\": \"{path}\", \"Size\": 1 }}")).contains("not inside a data directory")
        );
    }
    let twice = r#"{ "Path": "a", "Size": 1 }"#;
    assert_eq!(refused(&manifest(V2, &[twice, twice], RANGE)), "backup_manifest lists \"a\" twice");
    assert!(refused(&manifest(&V1.replace(": 1", ": 3"), &[], RANGE)).contains("has version 3"));
    assert!(refused(&manifest(&format!("{V1}, \"X\": 1"), &[], RANGE)).ends_with("unexpected key \"X\""));
    assert!(refused("[]").starts_with("backup_manifest at byte 1:"));
}

#[test]
fn an_endless_entry_or_line_is_refused_at_its_bound() {
    let mut reader = ManifestReader::new();
    let mut taken = 0;
    reader
        .push(b"{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [ { \"Path\": \"", &mut |_| ())
        .unwrap();
    while reader.push(&[b'a'; 1000], &mut |_| ()).is_ok() {
        taken += 1000;
        assert!(taken <= MAX_ENTRY_BYTES);
    }
}

#[test]
fn a_large_manifest_takes_linear_time() {
    let files: Vec<String> =
        (0..100_000).map(|n| format!(r#"{{ "Path": "base/5/{n}", "Size": 8192 }}"#)).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let text = manifest(V2, &files, RANGE);
    assert_eq!(PgManifest::parse(text.as_bytes()).unwrap().summary.files, 100_000);
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_answer(cuts in proptest::collection::vec(0_usize..900, 0..12)) {
        let text = manifest(V2, &FILES, RANGE);
        let whole = PgManifest::parse(text.as_bytes()).unwrap();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let (mut reader, mut files) = (ManifestReader::new(), Vec::new());
        for pair in cuts.windows(2) {
            reader.push(&text.as_bytes()[pair[0]..pair[1]], &mut |f| files.push(f)).unwrap();
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        prop_assert_eq!(PgManifest { summary: reader.finish().unwrap(), files }, whole);
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(prop_oneof![
        Just(b'{'), Just(b'"'), Just(b'}'), Just(b'['), Just(b'\\'), Just(b':'), Just(b','), any::<u8>()], 0..80)) {
        let _ = PgManifest::parse(&bytes);
    }
}
