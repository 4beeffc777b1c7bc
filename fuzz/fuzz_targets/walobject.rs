//! WAL objects: any bytes are answered; a header that is accepted has one spelling, and what is opened is what its tag says.
//!
//! The input is tried as it is, and once more as the text of a header with the right frame and checksum, so that the fuzzer gets behind them.
//! Source of truth: FORMAT.md, "WAL objects".
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::codec::Digest;
use pitr::repo::walobject::{Asked, WalHeader, open, parse_info};

fuzz_target!(|data: &[u8]| {
    check(data);
    let (text, body) = data.split_at(data.len().min(480));
    let crc = format!("crc={:08x}\n", crc32fast::hash(text));
    let mut object = [&[0x50, 0x2A, 0x4D, 0x18, 0xF8, 1, 0, 0], text, crc.as_bytes()].concat();
    object.resize(512, b' ');
    object.extend_from_slice(body);
    check(&object);
});

fn check(object: &[u8]) {
    let Ok(header) = WalHeader::parse(object) else { return };
    assert_eq!(header.encode().as_ref().map(<[u8; 512]>::as_slice), Ok(&object[..512]));
    let _ = parse_info(object);
    let asked = Asked { cluster: header.cluster.clone(), system: header.system, name: header.name };
    let mut plain = Vec::new();
    if open(object, &asked, |bytes| plain.extend_from_slice(bytes)).is_ok() {
        assert_eq!((Digest::of(&plain), plain.len() as u64), (header.tag, header.size));
    }
    assert!(plain.len() as u64 <= header.size, "more was handed out than the header says");
}
