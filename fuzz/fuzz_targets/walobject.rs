//! WAL objects: any bytes are answered; a header that is accepted has one spelling, and what is opened is what its tag says.
//!
//! The input is tried as it is, and once more as the text of a header with the right frame and checksum, so that the fuzzer gets behind them.
//! A header that is accepted is then given the digest of whatever body follows, and the mac and the encryption of a sealed folder.
//! Source of truth: FORMAT.md, "WAL objects".
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pitr::codec::Digest;
use pitr::repo::walobject::{
    Asked, HEADER_BYTES, Lock, Sealer, WalHeader, WalObject, WalObjectError, check_body, open, open_with,
    parse_info, parse_info_with, stored_prefix,
};
use pitr::seal::{Epoch, Identity, SealKey};

/// The secrets of a cluster.
struct Keys {
    sealer: Sealer,
    epochs: BTreeMap<Epoch, Identity>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let identity = Identity::generate();
    let sealer = Sealer { key: SealKey::new([7; 32]), epoch: Epoch::FIRST, recipient: identity.recipient() };
    Keys { sealer, epochs: BTreeMap::from([(Epoch::FIRST, identity)]) }
});

fuzz_target!(|data: &[u8]| {
    check(data);
    let (text, body) = data.split_at(end_of_text(data));
    let crc = format!("crc={:08x}\n", crc32fast::hash(text));
    let mut object = [&[0x50, 0x2A, 0x4D, 0x18, 0xF8, 1, 0, 0], text, crc.as_bytes()].concat();
    object.resize(512, b' ');
    object.extend_from_slice(body);
    check(&object);
});

/// Where the lines of a header end: after the body's digest, and the mac if there is one.
fn end_of_text(data: &[u8]) -> usize {
    let line = |from: usize| data[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at + 1);
    let found = data.windows(6).position(|part| part == b"\nbody=").and_then(|at| line(at + 1));
    let with_mac = found.filter(|at| data[*at..].starts_with(b"mac=")).and_then(line);
    with_mac.or(found).unwrap_or(data.len()).min(480)
}

fn check(object: &[u8]) {
    let Ok(header) = WalHeader::parse(object) else { return };
    assert_eq!(header.encode().as_ref().map(<[u8; 512]>::as_slice), Ok(&object[..512]));
    let _ = parse_info(object);
    behind(&header, &object[HEADER_BYTES..]);
    let asked = Asked { cluster: header.cluster.clone(), system: header.system, name: header.name };
    let mut plain = Vec::new();
    if open(object, &asked, |bytes| plain.extend_from_slice(bytes)).is_ok() {
        assert_eq!((Digest::of(&plain), plain.len() as u64), (header.tag, header.size));
    }
    assert!(plain.len() as u64 <= header.size, "more was handed out than the header says");
}

/// The body behind a header that vouches for it, plain and sealed.
fn behind(header: &WalHeader, body: &[u8]) {
    let asked = Asked { cluster: header.cluster.clone(), system: header.system, name: header.name };
    let header = WalHeader { body: Digest::of(body), key: None, mac: None, ..header.clone() };
    let Ok(head) = header.encode() else { return };
    let plain = [&head[..], body].concat();
    let opened = open(&plain, &asked, |_| {});
    let object = WalObject::verbatim(header, plain.into(), Some(Digest::of(b"a prefix")));
    let Ok(sealed) = object.sealed(&KEYS.sealer) else { return };
    let bytes: Bytes = sealed.chunks.concat().into();
    let lock = Lock::Sealed { key: &KEYS.sealer.key, epochs: &KEYS.epochs };
    let mut again = 0;
    let found = open_with(&bytes, &asked, lock, |piece| again += piece.len() as u64);
    assert!(again <= sealed.header.size);
    // The tag is made of the one that the plain header states, so both are right or none.
    assert_eq!(found.is_ok(), opened.is_ok(), "{found:?} {opened:?}");
    let _ = stored_prefix(&bytes, &asked, 100, lock);
    for cut in [bytes.len(), bytes.len() / 2, HEADER_BYTES] {
        let _ = parse_info_with(&bytes[..cut], cut == bytes.len(), lock);
    }
    // Without the secrets nothing is read, and what was changed is seen all the same.
    let none = BTreeMap::new();
    let locked = Lock::Sealed { key: &KEYS.sealer.key, epochs: &none };
    assert!(check_body(&bytes, &asked, locked).is_ok());
    assert!(matches!(open_with(&bytes, &asked, locked, |_| {}), Err(WalObjectError::Sealed(_))));
    let foreign = SealKey::new([8; 32]);
    let foreign = Lock::Sealed { key: &foreign, epochs: &KEYS.epochs };
    assert!(matches!(check_body(&bytes, &asked, foreign), Err(WalObjectError::Mac)));
}
