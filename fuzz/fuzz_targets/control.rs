//! Control files: any bytes are answered, and with a right checksum every field reads without a panic.
//!
//! The input is laid over a file of zeros; its checksum is then made right, or the fields would never be reached.
//! Source of truth: `src/include/catalog/pg_control.h`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pgdata::control::{CONTROL_FILE_SIZE, ControlFile};

fuzz_target!(|data: &[u8]| {
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
