//! The manifest: any lines are answered; what is accepted is sorted, stays inside the data directory and comes back when written again.
//!
//! The input is one frame of lines of files; header, one pack and the index are put around it by a writer that is not under test here.
//! Up to an empty line it is the header's frame too, and all of it is also an index. What a restore makes of an accepted manifest, its image and
//! the places of its files, is made. Source of truth: FORMAT.md, "Manifest".
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pitr::codec::{Compression, Digest, compress};
use pitr::ops::restore::Purpose;
use pitr::ops::restore::image::Image;
use pitr::ops::restore::layout::{Layout, version_folder};
use pitr::ops::restore::tablespaces::Tablespace;
use pitr::repo::manifest::{FileEntry, Manifest, ManifestWriter};

const HEAD: &str = concat!(
    r#"{"pitr":"manifest 1","backup":"20251017-103000-1a2b3c4d","system":"1","packs":1}"#,
    "\n",
    r#"{"backup":"20251017-103000-1a2b3c4d","pack":0,"stored":400,"plain":1000000,"frames":3,"#,
    r#""digest":"71047057ef49a19e7bcc4909e21736465fe184e80b743f581b744a466ca17a8b","#,
    r#""table":"71047057ef49a19e7bcc4909e21736465fe184e80b743f581b744a466ca17a8b"}"#,
    "\n",
);

const LINE: &[u8] = b"{\"p\":\"a\",\"t\":\"d\",\"mode\":\"700\",\"mtime\":0,\"uid\":0,\"gid\":0}\n";

fuzz_target!(|data: (&str, &[u8])| {
    let (first, lines) = data;
    let _ = Manifest::open(Bytes::copy_from_slice(lines));
    read(object(HEAD.as_bytes(), first, lines));
    if let Some(end) = lines.windows(2).position(|two| two == b"\n\n") {
        read(object(&lines[..=end], first, &lines[end + 2..]));
    }
    read(indexed(lines));
});

fn read(object: Bytes) {
    let Ok(manifest) = Manifest::open(object) else { return };
    let entries = manifest.entries().collect::<Result<Vec<FileEntry>, _>>();
    let image = Image::of(&manifest);
    let Ok(entries) = entries else { return assert!(image.is_err()) };
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
    if let Ok(image) = image {
        restored(&image, manifest.packs().len());
    }
}

/// Each piece lies in a pack that there is, behind the one before it, and each file goes to a place inside.
fn restored(image: &Image, packs: usize) {
    let (mut pieces, mut claimed) = (image.pieces(), 0);
    for pack in 0..packs as u32 {
        for piece in pieces.of_pack(pack).expect("memory") {
            assert!(piece.pack == pack && piece.offset >= claimed && piece.at + piece.len <= piece.file.size);
            claimed = piece.end();
        }
        claimed = 0;
    }
    assert!(pieces.peek(&|_| true).expect("memory").is_none(), "a piece of no pack");
    let tablespace = Tablespace { oid: 16385, original: "/there".into(), place: Some("/here".into()) };
    for purpose in [Purpose::Copy, Purpose::Replace] {
        let layout = Layout::new(purpose, std::slice::from_ref(&tablespace));
        let mut rows = image.rows();
        while let Some(row) = rows.next_row().expect("memory") {
            let _ = version_folder(row.path);
            let Some((tree, place)) = layout.destination(row.path) else { continue };
            assert!(
                tree <= 1 && place.components().all(|part| matches!(part, std::path::Component::Normal(_)))
            );
            assert!(!place.as_os_str().is_empty(), "{place:?}");
        }
    }
}

/// One good frame of the header, one of files, and any index of the right length.
fn indexed(index: &[u8]) -> Bytes {
    let Some(split) = index.len().checked_sub(20) else { return Bytes::new() };
    let frames = [HEAD.as_bytes(), LINE].map(|plain| compress(plain, Compression::Stored).expect("small"));
    let (entries, counts) = index.split_at(split);
    let size = (index.len() as u32 + 8).to_le_bytes();
    let index = [entries, &size, counts].concat();
    let crc = crc32fast::hash(&index).to_le_bytes();
    [&frames.concat(), [0x53, 0x2A, 0x4D, 0x18].as_slice(), &size, &index, &crc].concat().into()
}

fn object(head: &[u8], first: &str, lines: &[u8]) -> Bytes {
    let mut object = Vec::new();
    let mut index = Vec::new();
    for (plain, path) in [(head, ""), (lines, first)] {
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
