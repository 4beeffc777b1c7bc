//! The small JSON objects: who a folder belongs to, what a backup intends, and what became of it.
//!
//! ```text
//!  { "pitr": "intent 1", ... }        first member: kind and format
//!  { ..., "sum": "<32 hex>" }         last member: half the BLAKE3 of all bytes before the comma that precedes it
//!  { ..., "mac": "<32 hex>" }         in a sealed folder instead, keyed, and over the object's key too
//! ```
//! Invariants: an object is at most [`MAX_DOCUMENT`] bytes; a reader refuses another kind and a newer format by name, and
//! skips members that it does not know. A changed bit is seen by the sum; an object without one is read all the same, so that a person
//! can mend it by hand, and only `verify` minds. Times are RFC 3339 in UTC and inform people: nothing is deleted because of one. Pure.

mod closing;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use closing::check_head;
pub use closing::{Closing, decode, decode_as, encode, encode_as, has_sum};

use super::path::{BackupId, ClusterName, MAX_PACKS, PinId, PinKind};
use crate::codec::{Digest, ShortDigest, hex, unhex};
use crate::seal::Epoch;
use crate::wal::timeline::{HistoryEntry, HistoryError};
use crate::wal::{Lsn, PgMajor, SegmentName, SegmentSize, SystemId, TimelineHistory, TimelineId};

/// Largest JSON object: a verdict that refers to every pack of 10,000 backups stays far below.
pub const MAX_DOCUMENT: u64 = 16 << 20;

/// A kind of JSON object.
pub trait Document: Serialize + DeserializeOwned {
    /// What its `pitr` member says before the format.
    const KIND: &'static str;
    /// The newest format this program knows.
    const FORMAT: u32 = 1;
}

/// Bytes that are not the expected object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON of the right shape.
    #[error("not an intact {kind} object: {what}")]
    Damaged {
        /// The expected kind.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// An object of another kind.
    #[error("a {kind} object was expected, {found:?} is there")]
    OtherKind {
        /// The expected kind.
        kind: &'static str,
        /// Its `pitr` member.
        found: String,
    },
    /// In a sealed folder: its mac is absent, or not that of the cluster's seal key under this name.
    #[error("the {kind} object {what}")]
    Forged {
        /// The expected kind.
        kind: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// Written by a newer pitr.
    #[error("the {kind} object has format {format}, this pitr reads up to {known}")]
    NewerFormat {
        /// The kind.
        kind: &'static str,
        /// Its format.
        format: u32,
        /// The newest format known here.
        known: u32,
    },
}

/// 16 random bytes that make one object different from all others: who created a key is found out by comparing it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// The nonce made of these random bytes.
    pub const fn new(random: [u8; 16]) -> Self {
        Self(random)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Nonce {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        let bytes = unhex(&text).and_then(|b| b.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a nonce has 32 lower-case hexadecimal digits"))
    }
}

/// `identity.json`: whose folder this is. Created once; without it the folder is no cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's folder.
    pub cluster: ClusterName,
    /// The system identifier.
    pub system: SystemId,
    /// PostgreSQL's major version.
    pub major: PgMajor,
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether objects here are encrypted.
    pub sealed: bool,
    /// Counts the system folders of one cluster, so that the newest is known. May tie: then `created`, then the system decides.
    pub sequence: u32,
    /// When it was created.
    pub created: Timestamp,
    /// Tells two creations apart.
    pub nonce: Nonce,
    /// The pitr that created it.
    pub version: String,
}

impl Identity {
    /// True if two identities state the same: two inits at once are one.
    pub fn same_cluster(&self, other: &Self) -> bool {
        let facts = |i: &Self| (i.cluster.clone(), i.system, i.major, i.segment_size, i.sealed);
        facts(self) == facts(other)
    }

    /// Where it stands among the system folders of its cluster; the greatest is the current one.
    pub fn order(&self) -> (u32, Timestamp, SystemId) {
        (self.sequence, self.created, self.system)
    }
}

/// `format/<n>.json`: objects of format n are written for this cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatMark {
    /// The format.
    pub format: u32,
    /// When it was marked.
    pub created: Timestamp,
    /// The pitr that marked it.
    pub version: String,
}

/// Full or incremental.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Every byte is in the backup's own packs.
    Full,
    /// Unchanged ranges are in packs of earlier backups.
    Incremental,
}

/// `intent.json`: created before any other object of a backup, it keeps expiry away from what the backup needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The backup.
    pub id: BackupId,
    /// The writer's; its verdict carries the same.
    pub nonce: Nonce,
    /// The cluster's folder.
    pub cluster: ClusterName,
    /// The system identifier.
    pub system: SystemId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// When the writer began.
    pub started_at: Timestamp,
    /// The timeline at that moment.
    pub timeline: TimelineId,
    /// First segment the backup can need.
    #[serde(with = "segment_text")]
    pub wal_floor: SegmentName,
    /// Foreign packs it may refer to.
    pub references: Vec<PackRefs>,
    /// The backup whose lease it takes over.
    pub takes_over: Option<BackupId>,
    /// The writer's process.
    pub process: Process,
}

/// A process that works on the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Host name.
    pub host: String,
    /// The host's boot id, which tells a process number of today from one before a reboot. Empty if unknown.
    pub boot: String,
    /// Process number.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

/// Packs of one other backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRefs {
    /// The backup whose packs they are.
    pub backup: BackupId,
    /// Their numbers.
    pub packs: PackSet,
}

/// A set of pack numbers, written as ranges: `0-41,57`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackSet(Vec<(u32, u32)>);

impl PackSet {
    /// Adds one number.
    pub fn insert(&mut self, pack: u32) {
        let at = self.0.partition_point(|range| range.0 <= pack);
        let joins_left = at
            .checked_sub(1)
            .filter(|left| self.0.get(*left).is_some_and(|range| pack <= range.1.saturating_add(1)));
        let joins_right = self.0.get(at).is_some_and(|range| range.0 == pack.saturating_add(1));
        match joins_left {
            Some(left) => {
                let right_end = if joins_right { self.0.remove(at).1 } else { pack };
                if let Some(range) = self.0.get_mut(left) {
                    range.1 = range.1.max(right_end);
                }
            }
            None if joins_right => {
                if let Some(range) = self.0.get_mut(at) {
                    range.0 = pack;
                }
            }
            None => self.0.insert(at, (pack, pack)),
        }
    }

    /// Adds all of `other`: as much work as both have ranges.
    pub fn add_all(&mut self, other: &Self) {
        let mut ranges = std::mem::take(&mut self.0);
        ranges.extend(&other.0);
        ranges.sort_unstable();
        for (first, last) in ranges {
            match self.0.last_mut().filter(|range| first <= range.1.saturating_add(1)) {
                Some(range) => range.1 = range.1.max(last),
                None => self.0.push((first, last)),
            }
        }
    }

    /// Whether the set holds `pack`.
    pub fn contains(&self, pack: u32) -> bool {
        let at = self.0.partition_point(|range| range.0 <= pack);
        at.checked_sub(1).and_then(|left| self.0.get(left)).is_some_and(|range| pack <= range.1)
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<u32> for PackSet {
    fn from_iter<I: IntoIterator<Item = u32>>(packs: I) -> Self {
        let mut set = Self::default();
        packs.into_iter().for_each(|pack| set.insert(pack));
        set
    }
}

impl fmt::Display for PackSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

impl FromStr for PackSet {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const BAD: &str = "a set of packs is written as ascending ranges, such as 0-41,57";
        let mut set = Self::default();
        if text.is_empty() {
            return Ok(set);
        }
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse().map_err(|_| BAD)?, last.parse().map_err(|_| BAD)?);
            let follows = set.0.last().is_none_or(|range| first > range.1.saturating_add(1));
            if !follows || last < first || last >= MAX_PACKS {
                return Err(BAD);
            }
            set.0.push((first, last));
        }
        Ok(set)
    }
}

impl Serialize for PackSet {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PackSet {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `backup.json`: created by the writer it makes the backup real, created by expiry it makes it abandoned. Whoever comes second
/// finds out by reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte of the backup, and all WAL from its start to its stop, was there when this was created.
    Complete(Box<Backup>),
    /// The backup will never be.
    Abandoned(Abandoned),
}

impl Verdict {
    /// The backup.
    pub fn id(&self) -> &BackupId {
        match self {
            Self::Complete(backup) => &backup.id,
            Self::Abandoned(abandoned) => &abandoned.id,
        }
    }

    /// The nonce of who decided.
    pub fn nonce(&self) -> Nonce {
        match self {
            Self::Complete(backup) => backup.nonce,
            Self::Abandoned(abandoned) => abandoned.nonce,
        }
    }

    /// The object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Complete(backup) => encode(&**backup),
            Self::Abandoned(abandoned) => encode(abandoned),
        }
    }

    /// Reads either verdict.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        Self::decode_as(bytes, Closing::Sum)
    }

    /// Reads either verdict, held against `closing`.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn decode_as(bytes: &[u8], closing: Closing<'_>) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Head {
            status: Status,
        }
        check_head(bytes, Backup::KIND, Backup::FORMAT, closing)?;
        let head: Head = serde_json::from_slice(bytes)
            .map_err(|e| DocumentError::Damaged { kind: Backup::KIND, what: e.to_string() })?;
        Ok(match head.status {
            Status::Complete => Self::Complete(Box::new(decode_as(bytes, closing)?)),
            Status::Abandoned => Self::Abandoned(decode_as(bytes, closing)?),
        })
    }
}

/// What a verdict says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The backup exists.
    Complete,
    /// It never will.
    Abandoned,
}

/// The verdict of a backup that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Always complete.
    pub status: Status,
    /// The backup.
    pub id: BackupId,
    /// The same as its intent's.
    pub nonce: Nonce,
    /// Full or incremental.
    pub kind: BackupKind,
    /// The cluster's folder.
    pub cluster: ClusterName,
    /// The system identifier.
    pub system: SystemId,
    /// PostgreSQL's major version.
    pub major: PgMajor,
    /// PostgreSQL's full version, such as 150018.
    pub server_version: u32,
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where replay of it starts (`START WAL LOCATION`).
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// When it started, by the server's clock: what is older than this cannot be reached from it.
    pub started_at: Timestamp,
    /// When it was finished, by this host's clock.
    pub finished_at: Timestamp,
    /// The server's time at its stop: the archive covers every moment up to it.
    pub stop_time: Timestamp,
    /// Largest commit time between start and stop, if known: earlier moments need an older backup.
    pub window_earliest: Option<Timestamp>,
    /// Key epoch that its objects are sealed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Epoch>,
    /// First segment it can need.
    #[serde(with = "segment_text")]
    pub wal_floor: SegmentName,
    /// The operator's label.
    pub label: String,
    /// It was taken from a standby.
    pub from_standby: bool,
    /// What page checksums said.
    pub checksums: Checksums,
    /// With `corrupt`: which pages are damaged, a line for people each, the first hundred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<String>,
    /// Bytes of all files of the cluster.
    pub cluster_bytes: u64,
    /// Bytes of them that are in this backup's own packs.
    pub new_bytes: u64,
    /// Bytes this backup takes in the store: packs and manifests.
    pub stored_bytes: u64,
    /// Files, directories and links.
    pub files: u64,
    /// Tablespaces beside the default ones.
    pub tablespaces: Vec<Tablespace>,
    /// The backup's own packs: 0 to count - 1. Each is described in the manifest.
    pub packs: PackTotals,
    /// Of each of them, by number, the digest of its bytes as stored: what `verify` without a key compares. In sealed folders alone,
    /// where only a key opens the manifest; verdicts of before have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pack_digests: Vec<ShortDigest>,
    /// Foreign packs it needs.
    pub references: Vec<PackRefs>,
    /// `manifest.jsonl.zst`.
    pub manifest: ObjectRef,
    /// `backup_manifest`, PostgreSQL's own.
    pub pg_manifest: Option<ObjectRef>,
    /// `catalogue.json.zst`.
    pub catalogue: Option<ObjectRef>,
    /// The writer's process.
    pub process: Process,
}

/// Page checksums of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksums {
    /// Every page was checked and right, by the server's look and by ours.
    Ok,
    /// The cluster has none.
    Off,
    /// At least one page was wrong: the backup holds what the server holds. Restored only if it is asked for by name, never a parent.
    Corrupt,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// OID: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it was on the server.
    pub location: String,
}

/// All packs of one backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PackTotals {
    /// How many: at most [`MAX_PACKS`].
    #[serde(deserialize_with = "pack_count")]
    pub count: u32,
    /// Bytes of the objects.
    pub stored: u64,
    /// Bytes of the tar stream in them.
    pub plain: u64,
}

/// Readers count up to it.
fn pack_count<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let count = u32::deserialize(from)?;
    let bound = || serde::de::Error::custom(format!("{count} packs are more than {MAX_PACKS}"));
    if count <= MAX_PACKS { Ok(count) } else { Err(bound()) }
}

/// An object another one vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its size.
    pub stored: u64,
    /// BLAKE3 of its bytes as stored.
    pub digest: Digest,
}

/// The verdict on a backup that will never be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    /// Always abandoned.
    pub status: Status,
    /// The backup.
    pub id: BackupId,
    /// Of who abandoned it.
    pub nonce: Nonce,
    /// When.
    pub created: Timestamp,
    /// Why, for people.
    pub reason: String,
    /// Who.
    pub process: Process,
}

/// `expired.json`: the backup is to be deleted; new readers and writers keep away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// The backup.
    pub id: BackupId,
    /// Tells two tombstones apart.
    pub nonce: Nonce,
    /// When.
    pub created: Timestamp,
    /// Why, for people.
    pub reason: String,
}

/// `alive-<k>.json`: the writer still waits for WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// The backup.
    pub id: BackupId,
    /// The writer's.
    pub nonce: Nonce,
    /// When.
    pub created: Timestamp,
}

/// `floor/<n>.json`: which WAL is still kept. The one with the highest number counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// Tells two floors apart.
    pub nonce: Nonce,
    /// When.
    pub created: Timestamp,
    /// One for each timeline of which WAL was given up.
    pub timelines: Vec<TimelineFloor>,
}

/// What is kept of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineFloor {
    /// The timeline.
    pub timeline: TimelineId,
    /// From here on everything is kept.
    #[serde(with = "segment_text")]
    pub first: SegmentName,
    /// Below it: what older backups need to become consistent.
    pub keep: Vec<KeptRange>,
}

/// Segments that are kept below a floor, both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRange {
    /// First.
    #[serde(with = "segment_text")]
    pub first: SegmentName,
    /// Last.
    #[serde(with = "segment_text")]
    pub last: SegmentName,
}

impl Floor {
    /// Whether the segment is kept: false means it may be gone, which is no gap.
    pub fn keeps(&self, name: SegmentName) -> bool {
        let mut lines = self.timelines.iter().filter(|line| line.timeline == name.timeline());
        lines.all(|line| {
            name >= line.first || line.keep.iter().any(|range| (range.first..=range.last).contains(&name))
        })
    }

    /// Whether everything of the segment's timeline from it on is kept.
    pub fn keeps_from(&self, name: SegmentName) -> bool {
        self.timelines.iter().filter(|line| line.timeline == name.timeline()).all(|line| name >= line.first)
    }
}

/// `<SEGMENT>.gap.json`: an operator let a damaged segment be archived, so WAL has a gap there. Created before the segment's own
/// object, so that whoever lists the segment lists this too and knows that its header must be looked at: the header decides, since
/// a good copy of the segment may have been stored since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedGap {
    /// The segment.
    #[serde(with = "segment_text")]
    pub segment: SegmentName,
    /// First byte after the last valid record of it.
    pub valid_to: Lsn,
    /// What is wrong with it, for people.
    pub damage: String,
    /// Tells two decisions apart.
    pub nonce: Nonce,
    /// When.
    pub created: Timestamp,
    /// Who.
    pub process: Process,
}

/// `wal/<TLI>.ancestry.json`, in sealed folders: the parents of a timeline in clear, as its encrypted history file names them. Who
/// archives and expires without a key must know them; they hold nothing that the names of segments do not show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestry {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its parents, the oldest first.
    pub parents: Vec<Parent>,
}

/// A parent of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The parent.
    pub timeline: TimelineId,
    /// Where it was left.
    pub switch: Lsn,
}

impl Ancestry {
    /// What `history` says.
    pub fn of(history: &TimelineHistory) -> Self {
        let parent = |p: &HistoryEntry| Parent { timeline: p.timeline, switch: p.switch };
        Self { timeline: history.timeline(), parents: history.parents().iter().map(parent).collect() }
    }

    /// The history that it was made of, by the rules that a history file is read by.
    ///
    /// # Errors
    /// As [`TimelineHistory::parse`].
    pub fn history(&self) -> Result<TimelineHistory, HistoryError> {
        let lines: String = self.parents.iter().map(|p| format!("{}\t{}\n", p.timeline, p.switch)).collect();
        TimelineHistory::parse(self.timeline, lines.as_bytes())
    }
}

/// `leases/<n>.json`: a backup is running. A courtesy between writers; no safety depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The backup that holds it.
    pub backup: BackupId,
    /// The writer's.
    pub nonce: Nonce,
    /// When it was taken.
    pub created: Timestamp,
    /// The writer's process.
    pub process: Process,
}

/// `pins/<id>.json`: somebody needs a backup and the WAL after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The pin.
    pub id: PinId,
    /// Who holds it.
    pub kind: PinKind,
    /// When.
    pub created: Timestamp,
    /// The backup that must stay, with the packs and WAL that it needs.
    pub backup: BackupId,
    /// First segment that must stay; all later ones on any timeline stay too.
    #[serde(with = "segment_text")]
    pub wal_from: SegmentName,
    /// What for, for people.
    pub note: String,
    /// The holder's process.
    pub process: Process,
}

macro_rules! documents {
    ($($name:ident $kind:literal),* $(,)?) => {
        $(impl Document for $name {
            const KIND: &'static str = $kind;
        })*
    };
}

documents!(
    Identity "identity", FormatMark "format", Intent "intent", Backup "backup", Abandoned "backup", Expired "expired",
    Alive "alive", Ancestry "ancestry", Floor "floor", AcceptedGap "gap", Lease "lease", Pin "pin",
);

/// A segment's name as JSON text.
mod segment_text {
    use super::SegmentName;
    use serde::Deserialize;

    pub(super) fn serialize<S: serde::Serializer>(name: &SegmentName, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(name)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SegmentName, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        SegmentName::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
