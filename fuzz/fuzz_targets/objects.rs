//! The JSON objects and keys: any bytes are answered, and what is accepted comes back when written again.
//!
//! Whoever may write to the bucket may put anything there; a reader must neither panic nor take one kind for another.
//! Source of truth: FORMAT.md, "JSON objects" and "Layout".
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::repo::objects::{
    Alive, Document, Expired, Floor, FormatMark, Identity, Intent, Lease, Pin, Verdict, decode, encode,
};
use pitr::repo::path::{Sealing, SystemKeys};
use pitr::wal::SystemId;

fuzz_target!(|data: &[u8]| {
    again::<Identity>(data);
    again::<FormatMark>(data);
    again::<Intent>(data);
    again::<Expired>(data);
    again::<Alive>(data);
    again::<Floor>(data);
    again::<Lease>(data);
    again::<Pin>(data);
    if let Ok(verdict) = Verdict::decode(data) {
        assert_eq!(Verdict::decode(&verdict.encode()), Ok(verdict));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let keys = SystemKeys::new(&"main".parse().expect("a name"), SystemId::new(1), Sealing::Plain);
    let key = format!("{}{text}", keys.root());
    if let Some(object) = keys.parse(&key) {
        assert_eq!(keys.key(&object), key);
    }
});

fn again<D: Document + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(document) = decode::<D>(data) {
        assert_eq!(decode::<D>(&encode(&document)), Ok(document));
    }
}
