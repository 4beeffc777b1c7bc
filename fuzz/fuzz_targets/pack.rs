//! The table of a pack: any bytes are answered; frames of an accepted one follow each other, and cover what they say.
//!
//! The input is the entries; frame, count and checksum are put around them.
//! Source of truth: FORMAT.md, "Pack".
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::codec::FrameOpener;
use pitr::repo::pack::PackTable;

fuzz_target!(|data: (u64, u64, &[u8])| {
    let (offset, len, entries) = data;
    let _ = PackTable::parse(entries);
    let Ok(count) = u32::try_from(entries.len() / 56) else { return };
    let entries = &entries[..entries.len() / 56 * 56];
    let payload = [entries, &count.to_le_bytes()].concat();
    let size = u32::try_from(payload.len() + 4).expect("inputs are small");
    let crc = crc32fast::hash(&payload).to_le_bytes();
    let tail = [&[0x52, 0x2A, 0x4D, 0x18], size.to_le_bytes().as_slice(), &payload, &crc].concat();
    let Ok(table) = PackTable::parse(&tail) else { return };
    assert_eq!(table.encode(), tail);
    let frames = table.frames();
    assert!(
        frames
            .windows(2)
            .all(|w| w[0].range().end == w[1].offset && w[0].plain_range().end == w[1].plain_offset)
    );
    if let Some(covering) = table.covering(offset, len) {
        let bytes: u64 = covering.iter().map(|f| u64::from(f.plain)).sum();
        assert!(bytes >= len);
        let mut opener = FrameOpener::new().expect("memory");
        for frame in covering {
            let _ = frame.open(entries, &mut opener);
        }
    }
});
