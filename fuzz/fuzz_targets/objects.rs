//! The JSON objects and keys: any bytes are answered, and what is accepted comes back when written again.
//!
//! Whoever may write to the bucket may put anything there; a reader must neither panic nor take one kind for another, and in a sealed folder
//! an object counts at its own place alone.
//! Source of truth: FORMAT.md, "JSON objects" and "Layout".
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::codec::{Compression, compress};
use pitr::ops::backup::catalogue::Catalogue;
use pitr::repo::objects::{
    AcceptedGap, Alive, Ancestry, Closing, Document, DocumentError, Expired, Floor, FormatMark, Identity,
    Intent, Lease, PackSet, Pin, Verdict, decode, decode_as, encode, encode_as,
};
use pitr::repo::path::{self, BackupId, ClusterName, PinId, Sealing, SystemKeys};
use pitr::seal::SealKey;
use pitr::wal::{SystemId, TimelineHistory};

fuzz_target!(|data: &[u8]| {
    again::<Identity>(data);
    again::<FormatMark>(data);
    again::<Intent>(data);
    again::<Expired>(data);
    again::<Alive>(data);
    again::<Floor>(data);
    again::<Lease>(data);
    again::<Pin>(data);
    again::<AcceptedGap>(data);
    again::<Ancestry>(data);
    again::<Catalogue>(data);
    if let Ok(history) = decode::<Ancestry>(data).map(|ancestry| ancestry.history())
        && let Ok(history) = history
    {
        let again = Ancestry::of(&history);
        assert_eq!(again.history().as_ref().map(TimelineHistory::parents), Ok(history.parents()));
    }
    let _ = Catalogue::decode(data);
    let frame = compress(data, Compression::Stored).expect("it is small");
    if let Ok(catalogue) = Catalogue::decode(&frame) {
        assert_eq!(Catalogue::decode(&catalogue.encode().expect("small")), Ok(catalogue));
    }
    if let Ok(verdict) = Verdict::decode(data) {
        assert_eq!(Verdict::decode(&verdict.encode()), Ok(verdict));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        names(text);
    }
});

/// Keys, and the names that are in them.
fn names(text: &str) {
    let cluster: ClusterName = "main".parse().expect("a name");
    for sealing in [Sealing::Plain, Sealing::Sealed] {
        let keys = SystemKeys::new(&cluster, SystemId::new(1), sealing);
        let key = format!("{}{text}", keys.root());
        if let Some(object) = keys.parse(&key) {
            assert_eq!(keys.key(&object), key);
        }
    }
    let key = format!("{}{text}", path::format_dir(&cluster));
    if let Some(format) = path::parse_format_key(&cluster, &key) {
        assert_eq!(path::format_key(&cluster, format), key);
    }
    let folder = format!("{}{text}", path::cluster_dir(&cluster));
    if let Some(system) = path::parse_system_dir(&cluster, &folder) {
        let keys = SystemKeys::new(&cluster, system, Sealing::Plain);
        assert_eq!(keys.root().trim_end_matches('/'), folder.trim_end_matches('/'));
    }
    if let Ok(set) = text.parse::<PackSet>() {
        assert_eq!(set.to_string().parse(), Ok(set));
    }
    let printed = [
        text.parse::<ClusterName>().map(|name| name.to_string()),
        text.parse::<BackupId>().map(|name| name.to_string()),
        text.parse::<PinId>().map(|name| name.to_string()),
    ];
    assert!(printed.into_iter().flatten().all(|name| name == text));
}

fn again<D: Document + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let seal = SealKey::new([7; 32]);
    let at = |place| Closing::Mac { seal: &seal, place };
    // Nobody but the holder of the key makes a mac, least of all the fuzzer.
    assert!(decode_as::<D>(data, at("a")).is_err());
    let Ok(document) = decode::<D>(data) else { return };
    let sealed = encode_as(&document, at("a"));
    assert!(matches!(decode_as::<D>(&sealed, at("b")), Err(DocumentError::Forged { .. })));
    assert_eq!(decode_as::<D>(&sealed, at("a")).as_ref(), Ok(&document));
    assert_eq!(decode::<D>(&encode(&document)), Ok(document));
}
