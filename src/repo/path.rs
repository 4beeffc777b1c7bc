//! Object keys: every key is built and read back here, and nowhere else.
//!
//! ```text
//!  <cluster>/format/<n>.json
//!  <cluster>/<SYSID>/identity.json                       one folder per system identifier
//!  <cluster>/<SYSID>/wal/<TLI>/<LOG>/<SEGMENT>.wal       later, longer copies: .2.wal, .3.wal
//!  <cluster>/<SYSID>/wal/<TLI>/<LOG>/<SEGMENT>.gap.json  an operator let this damaged segment be archived
//!  <cluster>/<SYSID>/wal/<TLI>.history               sealed folders: <TLI>.ancestry.json beside it
//!  <cluster>/<SYSID>/keys/e0001/wrap-0001.age        who may open what the epoch sealed
//!  <cluster>/<SYSID>/backups/<ID>/backup.json            the verdict; intent, packs and manifest beside it
//! ```
//! Keys are relative to the repository's prefix. Invariants: a key that parses is printed back byte for byte; hexadecimal is
//! upper case in PostgreSQL's own names alone; no key is longer than 512 bytes. Pure.

use std::fmt;
use std::str::FromStr;

use crate::seal::Epoch;
use crate::wal::{SegmentName, SystemId, TimelineId, WalFileName};

/// Longest key that every store accepts together with a prefix.
pub const MAX_KEY: usize = 512;
/// Packs of one backup: their five digits keep `cat pack-*` in order.
pub const MAX_PACKS: u32 = 100_000;

/// A name that breaks the rule of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind} ({rule})")]
pub struct PathError {
    text: String,
    kind: &'static str,
    rule: &'static str,
}

impl PathError {
    fn new(text: &str, kind: &'static str, rule: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), kind, rule }
    }
}

/// The folder of one PostgreSQL cluster in the repository: `[a-z0-9][a-z0-9_-]{0,39}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

/// A backup: UTC start time and eight random digits, `20251017-103000-1a2b3c4d`. Sorts by start.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

/// A pin: what kind of holder, and 16 random digits, `reader-0123456789abcdef`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinId(String);

macro_rules! name_text {
    ($name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = PathError;

            fn from_str(text: &str) -> Result<Self, PathError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(PathError::new(text, $kind, $rule)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_text!(ClusterName, "cluster name", "1 to 40 of a-z, 0-9, _ and -, not starting with _ or -", |text| {
    (1..=40).contains(&text.len())
        && !text.starts_with(['_', '-'])
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
});
name_text!(BackupId, "backup id", "such as 20251017-103000-1a2b3c4d", |text| {
    let mut parts = text.split('-');
    let mut part = |len: usize, digit: fn(u8) -> bool| {
        parts.next().is_some_and(|p| p.len() == len && p.bytes().all(digit))
    };
    let decimal: fn(u8) -> bool = |b| b.is_ascii_digit();
    part(8, decimal) && part(6, decimal) && part(8, lower_hex) && parts.next().is_none()
});
name_text!(PinId, "pin id", "such as reader-0123456789abcdef", |text| {
    text.split_once('-').is_some_and(|(kind, random)| {
        PinKind::ALL.iter().any(|k| k.word() == kind) && random.len() == 16 && random.bytes().all(lower_hex)
    })
});

fn lower_hex(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}

impl BackupId {
    /// The id of a backup that starts at `start`.
    pub fn new(start: jiff::Timestamp, random: u32) -> Self {
        let utc = start.to_zoned(jiff::tz::TimeZone::UTC);
        Self(format!("{}-{random:08x}", utc.strftime("%Y%m%d-%H%M%S")))
    }

    /// When the backup began, to the second; `None` if that is no date.
    pub fn began(&self) -> Option<jiff::Timestamp> {
        let (start, _) = self.0.rsplit_once('-')?;
        let start = jiff::civil::DateTime::strptime("%Y%m%d-%H%M%S", start).ok()?;
        start.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|start| start.timestamp())
    }
}

/// Who holds a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinKind {
    /// A running restore, verify or copy: renewed daily by a new pin, counts for three days.
    Reader,
    /// A person: counts until it is released.
    Operator,
}

impl PinKind {
    const ALL: [Self; 2] = [Self::Reader, Self::Operator];

    fn word(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
        }
    }
}

impl PinId {
    /// The id of a new pin.
    pub fn new(kind: PinKind, random: u64) -> Self {
        Self(format!("{}-{random:016x}", kind.word()))
    }

    /// Who holds it.
    pub fn kind(&self) -> PinKind {
        if self.0.starts_with("operator") { PinKind::Operator } else { PinKind::Reader }
    }
}

/// Whether the objects of a system folder are encrypted; fixed when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sealing {
    /// Readable by whoever can read the store.
    Plain,
    /// Packs, manifest and catalogue carry `.age`.
    Sealed,
}

impl Sealing {
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Sealed => ".age",
        }
    }
}

/// What lies in the folder of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackupObject {
    /// `intent.json`, written before anything else.
    Intent,
    /// `pack-<nnnnn>.tar.zst`.
    Pack(u32),
    /// `manifest.jsonl.zst`.
    Manifest,
    /// `backup_manifest`, PostgreSQL's own.
    PgManifest,
    /// `catalogue.json.zst`, the names behind OIDs.
    Catalogue,
    /// `alive-<k>.json`, a sign of life while the writer waits.
    Alive(u32),
    /// `backup.json`, the verdict.
    Verdict,
    /// `expired.json`, the tombstone.
    Expired,
}

impl BackupObject {
    fn file(self, sealing: Sealing) -> String {
        let age = sealing.suffix();
        match self {
            Self::Intent => "intent.json".to_owned(),
            Self::Pack(n) => format!("pack-{n:05}.tar.zst{age}"),
            Self::Manifest => format!("manifest.jsonl.zst{age}"),
            Self::PgManifest => format!("backup_manifest{age}"),
            Self::Catalogue => format!("catalogue.json.zst{age}"),
            Self::Alive(k) => format!("alive-{k}.json"),
            Self::Verdict => "backup.json".to_owned(),
            Self::Expired => "expired.json".to_owned(),
        }
    }

    fn parse(file: &str, sealing: Sealing) -> Option<Self> {
        let between = |text: &str, start, end| number(text.strip_prefix(start)?.strip_suffix(end)?);
        let numbered = || {
            let stem = file.strip_suffix(sealing.suffix()).unwrap_or(file);
            // Leading zeros belong to a pack's number; the comparison below refuses every other spelling.
            let pack = stem.strip_prefix("pack-").and_then(|s| s.strip_suffix(".tar.zst"));
            let pack = pack.and_then(|s| s.parse().ok()).filter(|n| *n < MAX_PACKS).map(Self::Pack);
            pack.or_else(|| between(file, "alive-", ".json").map(Self::Alive))
        };
        let fixed =
            [Self::Intent, Self::Manifest, Self::PgManifest, Self::Catalogue, Self::Verdict, Self::Expired];
        let found = fixed.into_iter().find(|o| o.file(sealing) == file).or_else(numbered)?;
        (found.file(sealing) == file).then_some(found)
    }
}

/// An object in the folder of one system identifier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SystemObject {
    /// `identity.json`.
    Identity,
    /// A WAL object; copies count from 1, and only segments, partial ones included, have more than one.
    Wal(WalFileName, u32),
    /// `<SEGMENT>.gap.json` beside a segment: an operator accepted it with damage in it.
    Gap(SegmentName),
    /// `wal/<TLI>.ancestry.json`: the parents of a timeline, in sealed folders.
    Ancestry(TimelineId),
    /// `keys/<epoch>/wrap-<n>.age`.
    Wrap(Epoch, u32),
    /// `floor/<n>.json`.
    Floor(u32),
    /// An object of a backup.
    Backup(BackupId, BackupObject),
    /// `leases/<n>.json`.
    Lease(u32),
    /// `pins/<id>.json`.
    Pin(PinId),
    /// `pins/<id>.released`.
    PinReleased(PinId),
}

/// Builds and reads the keys below `<cluster>/<SYSID>/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemKeys {
    root: String,
    sealing: Sealing,
}

/// Folder of a cluster, with the slash.
pub fn cluster_dir(cluster: &ClusterName) -> String {
    format!("{cluster}/")
}

/// Folder of the format marks of a cluster, with the slash.
pub fn format_dir(cluster: &ClusterName) -> String {
    format!("{cluster}/format/")
}

/// Key of the mark that objects of format `n` are written for this cluster.
pub fn format_key(cluster: &ClusterName, n: u32) -> String {
    format!("{cluster}/format/{n}.json")
}

/// The format that `key` marks.
pub fn parse_format_key(cluster: &ClusterName, key: &str) -> Option<u32> {
    number(key.strip_prefix(&format_dir(cluster))?.strip_suffix(".json")?)
}

/// Key of a passing object that tells the store's time; `nonce` makes it fresh.
pub fn probe_key(cluster: &ClusterName, nonce: &str) -> String {
    format!("{cluster}/probe-{nonce}")
}

/// The system identifier whose folder, `<cluster>/<SYSID>/` with or without the slash, `dir` is.
pub fn parse_system_dir(cluster: &ClusterName, dir: &str) -> Option<SystemId> {
    let name = dir.strip_prefix(&cluster_dir(cluster))?;
    let name = name.strip_suffix('/').unwrap_or(name);
    name.parse().ok()
}

impl SystemKeys {
    /// The keys of `system` in `cluster`.
    pub fn new(cluster: &ClusterName, system: SystemId, sealing: Sealing) -> Self {
        Self { root: format!("{cluster}/{system}/"), sealing }
    }

    /// The folder itself, with the slash.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Whether the names say that objects are encrypted.
    pub fn sealing(&self) -> Sealing {
        self.sealing
    }

    /// The key of `object`.
    pub fn key(&self, object: &SystemObject) -> String {
        let root = &self.root;
        match object {
            SystemObject::Identity => format!("{root}identity.json"),
            SystemObject::Wal(WalFileName::History(timeline), _) => {
                format!("{root}wal/{}.history", timeline.hex())
            }
            SystemObject::Wal(name @ WalFileName::BackupHistory(segment, _), _) => {
                format!("{}{name}", self.segment_dir(*segment))
            }
            SystemObject::Wal(
                name @ (WalFileName::Segment(segment) | WalFileName::Partial(segment)),
                copy,
            ) => {
                let copy = if *copy > 1 { format!(".{copy}") } else { String::new() };
                format!("{}{name}{copy}.wal", self.segment_dir(*segment))
            }
            SystemObject::Gap(segment) => format!("{}{segment}.gap.json", self.segment_dir(*segment)),
            SystemObject::Ancestry(timeline) => format!("{root}wal/{}.ancestry.json", timeline.hex()),
            SystemObject::Wrap(epoch, n) => format!("{root}keys/{epoch}/wrap-{n:04}.age"),
            SystemObject::Floor(n) => format!("{root}floor/{n}.json"),
            SystemObject::Backup(id, object) => format!("{root}backups/{id}/{}", object.file(self.sealing)),
            SystemObject::Lease(n) => format!("{root}leases/{n}.json"),
            SystemObject::Pin(id) => format!("{root}pins/{id}.json"),
            SystemObject::PinReleased(id) => format!("{root}pins/{id}.released"),
        }
    }

    /// The key of a WAL object's first copy.
    pub fn wal(&self, name: WalFileName) -> String {
        self.key(&SystemObject::Wal(name, 1))
    }

    /// Folder of all WAL.
    pub fn wal_dir(&self) -> String {
        format!("{}wal/", self.root)
    }

    /// Folder of the segments of one timeline.
    pub fn timeline_dir(&self, timeline: TimelineId) -> String {
        format!("{}wal/{}/", self.root, timeline.hex())
    }

    /// Folder of the segments that share `name`'s timeline and log.
    pub fn segment_dir(&self, name: SegmentName) -> String {
        format!("{}wal/{}/{:08X}/", self.root, name.timeline().hex(), name.log())
    }

    /// Folder of all backups.
    pub fn backups_dir(&self) -> String {
        format!("{}backups/", self.root)
    }

    /// Folder of one backup.
    pub fn backup_dir(&self, id: &BackupId) -> String {
        format!("{}backups/{id}/", self.root)
    }

    /// The key of an object of a backup.
    pub fn backup(&self, id: &BackupId, object: BackupObject) -> String {
        self.key(&SystemObject::Backup(id.clone(), object))
    }

    /// Folder of the wraps of all epochs.
    pub fn wrap_dir(&self) -> String {
        format!("{}keys/", self.root)
    }

    /// Folder of the floors.
    pub fn floor_dir(&self) -> String {
        format!("{}floor/", self.root)
    }

    /// Folder of the leases.
    pub fn lease_dir(&self) -> String {
        format!("{}leases/", self.root)
    }

    /// Folder of the pins.
    pub fn pin_dir(&self) -> String {
        format!("{}pins/", self.root)
    }

    /// What `key` is; `None` for a key that this pitr would not write here.
    pub fn parse(&self, key: &str) -> Option<SystemObject> {
        let rest = key.strip_prefix(&self.root)?;
        let parts: Vec<&str> = rest.split('/').take(6).collect();
        let found = match parts.as_slice() {
            ["identity.json"] => SystemObject::Identity,
            ["wal", file] | ["wal", _, _, file] => parse_wal_file(file)?,
            ["keys", epoch, file] => {
                let n = file.strip_prefix("wrap-")?.strip_suffix(".age")?;
                SystemObject::Wrap(epoch.parse().ok()?, n.parse().ok()?)
            }
            ["floor", file] => SystemObject::Floor(number(file.strip_suffix(".json")?)?),
            ["leases", file] => SystemObject::Lease(number(file.strip_suffix(".json")?)?),
            ["backups", id, file] => {
                SystemObject::Backup(id.parse().ok()?, BackupObject::parse(file, self.sealing)?)
            }
            ["pins", file] => match file.strip_suffix(".json") {
                Some(id) => SystemObject::Pin(id.parse().ok()?),
                None => SystemObject::PinReleased(file.strip_suffix(".released")?.parse().ok()?),
            },
            _ => return None,
        };
        // One comparison refuses every second spelling: a wrong folder, a leading zero, lower-case hexadecimal.
        (self.key(&found) == key).then_some(found)
    }
}

fn parse_wal_file(file: &str) -> Option<SystemObject> {
    if let Some(segment) = file.strip_suffix(".gap.json") {
        return SegmentName::parse(segment).ok().map(SystemObject::Gap);
    }
    if let Some(timeline) = file.strip_suffix(".ancestry.json") {
        // By the one parser of such names; the key is compared afterwards.
        return match WalFileName::parse(&format!("{timeline}.history")).ok()? {
            WalFileName::History(timeline) => Some(SystemObject::Ancestry(timeline)),
            _ => None,
        };
    }
    let Some(stem) = file.strip_suffix(".wal") else {
        return match WalFileName::parse(file).ok()? {
            name @ (WalFileName::History(_) | WalFileName::BackupHistory(..)) => {
                Some(SystemObject::Wal(name, 1))
            }
            WalFileName::Segment(_) | WalFileName::Partial(_) => None,
        };
    };
    let (name, copy) = match stem.rsplit_once('.').and_then(|(name, copy)| Some((name, number(copy)?))) {
        Some((name, copy)) => (name, if copy >= 2 { copy } else { return None }),
        None => (stem, 1),
    };
    match WalFileName::parse(name).ok()? {
        name @ (WalFileName::Segment(_) | WalFileName::Partial(_)) => Some(SystemObject::Wal(name, copy)),
        WalFileName::History(_) | WalFileName::BackupHistory(..) => None,
    }
}

/// A number of 1 or above as people write it: no sign, no leading zero.
fn number(text: &str) -> Option<u32> {
    let plain = text.len() <= 10 && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(sealing: Sealing) -> SystemKeys {
        SystemKeys::new(&"main".parse().unwrap(), SystemId::new(7_301_234_567_890_123_456), sealing)
    }

    fn id() -> BackupId {
        BackupId::new("2025-10-17T10:30:00.9Z".parse().unwrap(), 0x1A2B_3C4D)
    }

    #[test]
    fn keys_are_laid_out_as_the_format_says() {
        let keys = keys(Sealing::Plain);
        let wal = |name: &str| keys.wal(WalFileName::parse(name).unwrap()).replace(keys.root(), "");
        assert_eq!(keys.root(), "main/7301234567890123456/");
        assert_eq!(wal("0000000200000003000000C3"), "wal/00000002/00000003/0000000200000003000000C3.wal");
        assert_eq!(
            wal("0000000200000003000000C3.partial"),
            "wal/00000002/00000003/0000000200000003000000C3.partial.wal"
        );
        assert_eq!(
            wal("0000000200000003000000C3.00000028.backup"),
            "wal/00000002/00000003/0000000200000003000000C3.00000028.backup"
        );
        assert_eq!(wal("00000002.history"), "wal/00000002.history");
        let pack = keys.backup(&id(), BackupObject::Pack(7)).replace(keys.root(), "");
        assert_eq!(pack, "backups/20251017-103000-1a2b3c4d/pack-00007.tar.zst");
    }

    #[test]
    fn a_second_spelling_of_a_key_is_not_a_key() {
        let keys = keys(Sealing::Plain);
        for bad in [
            "wal/00000002/00000003/0000000200000003000000c3.wal",
            "wal/00000001/00000003/0000000200000003000000C3.wal",
            "wal/00000002/00000004/0000000200000003000000C3.wal",
            "wal/00000002/00000003/0000000200000003000000C3.1.wal",
            "wal/00000002/00000003/0000000200000003000000C3.02.wal",
            "wal/00000002/00000003/0000000200000003000000C3",
            "wal/00000002/00000003/0000000200000003000000C3.2.partial.wal",
            "wal/00000002/00000002.history",
            "wal/00000002.2.history",
            "floor/01.json",
            "floor/0.json",
            "leases/+1.json",
            "backups/20251017-103000-1a2b3c4d/pack-7.tar.zst",
            "backups/20251017-103000-1a2b3c4d/pack-000007.tar.zst",
            "backups/20251017-103000-1a2b3c4d/pack-00007.tar.zst.age",
            "backups/20251017-103000-1A2B3C4D/backup.json",
            "pins/guest-0123456789abcdef.json",
            "identity.json/",
        ] {
            assert_eq!(keys.parse(&format!("{}{bad}", keys.root())), None, "{bad}");
        }
        assert_eq!(keys.parse("other/7301234567890123456/identity.json"), None);
    }

    #[test]
    fn cluster_names_are_folder_names_everywhere() {
        for good in ["a", "0", "main", "pg-17_blue", &"x".repeat(40)] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "Main", "a/b", "a.b", "..", "a b", "\u{e9}", &"x".repeat(41)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_folder_of_a_system_is_told_from_others() {
        let cluster = "main".parse().unwrap();
        let system = SystemId::new(42);
        assert_eq!(parse_system_dir(&cluster, "main/42/"), Some(system));
        assert_eq!(parse_system_dir(&cluster, "main/42"), Some(system));
        for other in ["main/042/", "main/format/", "main/", "spare/42/", "main/42/wal/"] {
            assert_eq!(parse_system_dir(&cluster, other), None, "{other}");
        }
        assert_eq!(parse_format_key(&cluster, &format_key(&cluster, 3)), Some(3));
    }

    fn objects() -> impl Strategy<Value = SystemObject> {
        let segment = (1u32.., any::<u32>(), 0u32..4096)
            .prop_map(|(t, log, seg)| SegmentName::parse(&format!("{t:08X}{log:08X}{seg:08X}")).unwrap());
        let backup = prop_oneof![
            Just(BackupObject::Intent),
            (0..MAX_PACKS).prop_map(BackupObject::Pack),
            Just(BackupObject::Manifest),
            Just(BackupObject::PgManifest),
            Just(BackupObject::Catalogue),
            (1u32..).prop_map(BackupObject::Alive),
            Just(BackupObject::Verdict),
            Just(BackupObject::Expired),
        ];
        let pin = (any::<bool>(), any::<u64>())
            .prop_map(|(reader, n)| PinId::new(if reader { PinKind::Reader } else { PinKind::Operator }, n));
        prop_oneof![
            Just(SystemObject::Identity),
            (segment.clone(), 1u32..).prop_map(|(s, n)| SystemObject::Wal(WalFileName::Segment(s), n)),
            (segment.clone(), 1u32..).prop_map(|(s, n)| SystemObject::Wal(WalFileName::Partial(s), n)),
            (segment.clone(), any::<u32>())
                .prop_map(|(s, o)| SystemObject::Wal(WalFileName::BackupHistory(s, o), 1)),
            (1u32..).prop_map(|t| SystemObject::Wal(WalFileName::History(TimelineId::new(t).unwrap()), 1)),
            segment.clone().prop_map(SystemObject::Gap),
            (1u32..).prop_map(|t| SystemObject::Ancestry(TimelineId::new(t).unwrap())),
            (1u32..10_000, 1u32..10_000).prop_map(|(e, n)| SystemObject::Wrap(Epoch::new(e).unwrap(), n)),
            (1u32..).prop_map(SystemObject::Floor),
            (1u32..).prop_map(SystemObject::Lease),
            pin.clone().prop_map(SystemObject::Pin),
            pin.prop_map(SystemObject::PinReleased),
            (any::<u32>(), backup).prop_map(|(n, o)| {
                SystemObject::Backup(BackupId::new(jiff::Timestamp::UNIX_EPOCH, n), o)
            }),
        ]
    }

    proptest! {
        #[test]
        fn every_key_parses_back(object in objects(), sealed: bool) {
            let keys = keys(if sealed { Sealing::Sealed } else { Sealing::Plain });
            let key = keys.key(&object);
            prop_assert!(key.len() <= MAX_KEY);
            prop_assert_eq!(keys.parse(&key), Some(object));
        }

        #[test]
        fn a_key_that_parses_prints_the_same(tail in "[a-z0-9A-F/.-]{0,80}") {
            let keys = keys(Sealing::Plain);
            let key = format!("{}{tail}", keys.root());
            if let Some(object) = keys.parse(&key) {
                prop_assert_eq!(keys.key(&object), key);
            }
        }
    }
}
