//! The manifest: any lines are answered; what is accepted is sorted, stays inside the data directory and comes back when written again.
//!
//! The input is one frame of lines of files; header, one pack and the index are put around it by a writer that is not under test here.
//! Source of truth: FORMAT.md, "Manifest".
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pitr::codec::{Compression, Digest, compress};
use pitr::repo::manifest::{FileEntry, Manifest, ManifestWriter};

const HEAD: &str = concat!(
    r#"{"pitr":"manifest 1","backup":"20251017-103000-1a2b3c4d","system":"1","packs":1}"#,
    "\n",
    r#"{"backup":"20251017-103000-1a2b3c4d","pack":0,"stored":400,"plain":1000000,"frames":3,"#,
    r#""digest":"71047057ef49a19e7bcc4909e21736465fe184e80b743f581b744a466ca17a8b","#,
    r#""table":"71047057ef49a19e7bcc4909e21736465fe184e80b743f581b744a466ca17a8b"}"#,
    "\n",
);

fuzz_target!(|data: (&str, &[u8])| {
    let (first, lines) = data;
    let _ = Manifest::open(Bytes::copy_from_slice(lines));
    let Ok(manifest) = Manifest::open(object(first, lines)) else { return };
    let Ok(entries) = manifest.entries().collect::<Result<Vec<FileEntry>, _>>() else { return };
    assert!(entries.windows(2).all(|w| w[0].path < w[1].path));
    let mut writer =
        ManifestWriter::new(manifest.header(), manifest.packs(), Compression::Stored).expect("it was read");
    for entry in &entries {
        assert!(!entry.path.as_bytes().split(|b| *b == b'/').any(|part| part == b".." || part.is_empty()));
        writer.push(entry).expect("what was read can be written");
    }
    let again = Manifest::open(writer.finish().expect("it can be finished").chunks.concat().into())
        .expect("it can be read");
    assert!(again.entries().map(|e| e.expect("and each line")).eq(entries));
});

fn object(first: &str, lines: &[u8]) -> Bytes {
    let mut object = Vec::new();
    let mut index = Vec::new();
    for (plain, path) in [(HEAD.as_bytes(), ""), (lines, first)] {
        let stored = compress(plain, Compression::Stored).expect("small");
        index.extend_from_slice(&(object.len() as u64).to_le_bytes());
        index.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        index.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        index.extend_from_slice(Digest::of(plain).as_bytes());
        index.extend_from_slice(&(path.len() as u16).to_le_bytes());
        index.extend_from_slice(path.as_bytes());
        object.extend_from_slice(&stored);
    }
    let files = lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()).count() as u64;
    let size = (index.len() + 28) as u32;
    index.extend_from_slice(&size.to_le_bytes());
    index.extend_from_slice(&2_u32.to_le_bytes());
    index.extend_from_slice(&files.to_le_bytes());
    index.extend_from_slice(&0_u64.to_le_bytes());
    let crc = crc32fast::hash(&index);
    index.extend_from_slice(&crc.to_le_bytes());
    object.extend_from_slice(&[0x53, 0x2A, 0x4D, 0x18]);
    object.extend_from_slice(&size.to_le_bytes());
    object.extend_from_slice(&index);
    object.into()
}
