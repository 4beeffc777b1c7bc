//! Control files: any bytes are answered, and with a right checksum every field reads without a panic.
//!
//! The input is laid over a file of zeros; its checksum is then made right, or the fields would never be reached. The same is done with a
//! data page, of which one bit is then changed. Source of truth: `pg_control.h`, `checksum_impl.h`, `bufpage.c`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pgdata::control::{CONTROL_FILE_SIZE, ControlFile};
use pitr::pgdata::page::{PageLook, checksum, look};

fuzz_target!(|data: &[u8]| {
    page(data);
    let _ = ControlFile::parse(data);
    let mut file = [0; CONTROL_FILE_SIZE];
    let length = data.len().min(CONTROL_FILE_SIZE);
    file[..length].copy_from_slice(&data[..length]);
    let crc_at = if file[8..12] == 1800_u32.to_le_bytes() { 292 } else { 288 };
    // The parser tells the right checksum itself.
    if let Err(pitr::pgdata::control::ControlError::Crc { computed, .. }) = ControlFile::parse(&file) {
        file[crc_at..crc_at + 4].copy_from_slice(&computed.to_le_bytes());
        if let Ok(control) = ControlFile::parse(&file) {
            assert_eq!(control.system_id.get().to_le_bytes(), file[..8]);
            assert!(control.major().is_none_or(|major| (13..=18).contains(&major.number())));
        }
    }
});

fn page(data: &[u8]) {
    let _ = look(data, 0);
    let Some(([a, b, c, d, power, flip], content)) = data.split_first_chunk() else { return };
    let block = u32::from_le_bytes([*a, *b, *c, *d]);
    let mut page = vec![0; 1024 << (power % 6)];
    let length = content.len().min(page.len());
    page[..length].copy_from_slice(&content[..length]);
    let sum = checksum(&page, block);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    let before = look(&page, block);
    assert!(!matches!(before, PageLook::Wrong(_)));
    if before == PageLook::Right {
        // Beyond `upper`, which makes a page look new. One in 65,535 changes has the same checksum.
        page[18 + usize::from(*flip)] ^= 1;
        if let PageLook::Wrong(wrong) = look(&page, block) {
            assert_eq!((wrong.stored, wrong.computed), (sum, checksum(&page, block)));
        } else {
            assert_eq!(checksum(&page, block), sum);
        }
    }
}
