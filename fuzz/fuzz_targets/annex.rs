//! The annex of a WAL object: any sections are answered, and what is accepted comes back when written again.
//!
//! The input is the sections; frame and checksum are put around it. Unknown kinds are skipped, so bytes may differ; values may not.
//! Source of truth: FORMAT.md, "Annex".
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::repo::annex::Annex;

fuzz_target!(|sections: &[u8]| {
    let _ = Annex::parse(sections);
    let Ok(len) = u32::try_from(sections.len() + 4) else { return };
    let frame = [
        &[0x51, 0x2A, 0x4D, 0x18],
        len.to_le_bytes().as_slice(),
        sections,
        &crc32fast::hash(sections).to_le_bytes(),
    ]
    .concat();
    let Ok((annex, used)) = Annex::parse(&frame) else { return };
    assert_eq!(used, frame.len());
    let (again, _) = Annex::parse(&annex.encode()).expect("what was read can be written");
    assert_eq!(again, annex);
});
