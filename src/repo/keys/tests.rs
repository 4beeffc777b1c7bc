//! A sealed folder in memory: what a host may do, what a reader may, and what somebody who writes to the bucket cannot.
//!
//! Each test about tampering is a row of the threat model in SECURITY.md.

use jiff::Timestamp;

use super::*;
use crate::clock;
use crate::codec::{Compression, Digest, len_u64};
use crate::ops::expire::{self, ExpireRequest};
use crate::repo::archive::{Absence, Stored};
use crate::repo::objects::{Expired, Floor, encode};
use crate::repo::path::{BackupId, PinKind, Sealing};
use crate::repo::walobject::tests::scan;
use crate::repo::walobject::{Facts, WalHeader, WalObject, WalObjectBuilder};
use crate::repo::{NewIdentity, Novelty};
use crate::seal::{EpochKey, NamedRecipient};
use crate::store::{Policy, Store, StoreOptions, StoreUrl};
use crate::wal::scan::SegmentEnd;
use crate::wal::{Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize, WalFileName};

const SYSTEM: SystemId = SystemId::new(7_301_234_567_890_123_456);
const MIB: u64 = 1 << 20;

/// The keys of one cluster, and a store.
struct World {
    store: Store,
    host: HostFile,
    daily: Identity,
    offline: Identity,
}

fn keys_of(cluster: &str) -> (HostFile, Identity, Identity) {
    let (daily, offline) = (Identity::generate(), Identity::generate());
    let named = |name: &str, identity: &Identity| NamedRecipient {
        name: name.to_owned(),
        recipient: identity.recipient(),
    };
    let mut host = HostFile {
        cluster: cluster.to_owned(),
        seal: SealKey::new(clock::random_bytes().unwrap()),
        epoch: Epoch::FIRST,
        epochs: Vec::new(),
        recipients: vec![named("daily", &daily), named("offline", &offline)],
    };
    rotate(&mut host, Epoch::FIRST);
    (host, daily, offline)
}

fn opened(epoch: Epoch, seal: SealKey) -> Opened {
    Opened { key: EpochKey::generate(epoch), seal, created: now(), recipients: Vec::new() }
}

fn rotate(host: &mut HostFile, epoch: Epoch) {
    let opened = opened(epoch, host.seal.clone());
    let recipients: Vec<_> = host.recipients.iter().map(|r| &r.recipient).collect();
    let wrap = opened.wrap(&host.cluster, &recipients).unwrap();
    host.begin(&opened, wrap);
}

impl World {
    fn new() -> Self {
        let store = Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
        let (host, daily, offline) = keys_of("main");
        Self { store, host, daily, offline }
    }

    fn with(
        &self,
        host: Option<&HostFile>,
        identities: &[&Identity],
        expected: Option<Fingerprint>,
    ) -> Repository {
        let identities = identities.iter().map(|i| (*i).clone()).collect();
        let ring = Keyring::new(host.cloned(), identities, expected).unwrap();
        let plain = Repository::new(self.store.clone(), "cloud", "main".parse().unwrap(), true);
        plain.with_keys(Arc::new(ring), false)
    }

    /// What the database host has.
    fn on_host(&self) -> Repository {
        self.with(Some(&self.host), &[], None)
    }

    /// What a person has on the day of the recovery.
    fn with_identity(&self, identity: &Identity) -> Repository {
        self.with(None, &[identity], None)
    }

    async fn system(&self) -> System {
        self.on_host().create_identity(facts(), now()).await.unwrap().0
    }

    async fn listing(&self) -> Vec<String> {
        let root = format!("main/{SYSTEM}/");
        let objects = self.store.list(&root).await.unwrap();
        objects.into_iter().map(|o| o.key.replacen(&root, "", 1)).collect()
    }

    async fn get(&self, key: &str) -> Bytes {
        self.store.get(key).await.unwrap().unwrap()
    }

    /// What an attacker with every right on the bucket does.
    async fn replace(&self, key: &str, bytes: impl Into<Bytes>) {
        self.store.delete(key).await.unwrap();
        self.store.create(key, bytes.into()).await.unwrap();
    }
}

fn now() -> Timestamp {
    "2025-10-17T10:30:00Z".parse().unwrap()
}

fn facts() -> NewIdentity {
    NewIdentity {
        system: SYSTEM,
        major: PgMajor::V15,
        segment_size: SegmentSize::new(MIB).unwrap(),
        sealing: Sealing::Sealed,
    }
}

fn nth(n: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, SegmentNo::new(n), SegmentSize::new(MIB).unwrap())
}

fn file(n: u64) -> WalFileName {
    WalFileName::Segment(nth(n))
}

fn build(system: &System, name: WalFileName, plain: &[u8], facts: Facts<'_>) -> WalObject {
    let compression = Compression::Zstd { level: 1 };
    let mut builder = WalObjectBuilder::new(system.asked(name), len_u64(plain), compression).unwrap();
    builder.push(plain).unwrap();
    builder.finish(facts).unwrap()
}

/// Segment `n`: `valid` bytes of it are WAL, filled with `fill`.
fn segment(system: &System, n: u64, valid: u64, fill: u8) -> WalObject {
    let end = if valid == MIB { SegmentEnd::Full } else { SegmentEnd::Short };
    let mut scan = scan(valid, end);
    (scan.name, scan.start, scan.valid_to) = (nth(n), Lsn::new(n * MIB), Lsn::new(n * MIB + valid));
    let mut plain = vec![fill; 1 << 20];
    plain[usize::try_from(valid).unwrap()..].fill(0);
    build(system, file(n), &plain, Facts::Scanned(&scan))
}

fn history(system: &System, text: &str) -> WalObject {
    let name = WalFileName::History(TimelineId::new(2).unwrap());
    build(system, name, text.as_bytes(), Facts::Unscanned)
}

fn is_forged<T: std::fmt::Debug>(result: Result<T, RepoError>, key: &str) {
    match result {
        Err(RepoError::Forged { key: named, .. }) => assert!(named.ends_with(key), "{named}"),
        other => panic!("{key} was not refused as forged: {other:?}"),
    }
}

#[tokio::test]
async fn a_host_stores_without_a_secret_and_a_recipient_reads_it_back() {
    let world = World::new();
    let system = world.system().await;
    assert_eq!(world.listing().await, ["identity.json", "keys/e0001/wrap-0001.age"]);
    let object = segment(&system, 3, MIB, 7);
    assert_eq!(system.put_wal(&object).await.unwrap(), Stored::New);
    assert_eq!(system.put_wal(&segment(&system, 3, MIB, 7)).await.unwrap(), Stored::AlreadyThere);
    assert!(matches!(system.put_wal(&segment(&system, 3, MIB, 8)).await.unwrap(), Stored::Conflict(_)));
    let key = system.keys().wal(file(3));
    let stored = world.get(&key).await;
    let header = WalHeader::parse(&stored).unwrap();
    assert_eq!(header.key, Some(Epoch::FIRST));
    assert_ne!(header.tag, object.header.tag, "the tag of the plain bytes would tell what they are");
    assert!(stored.windows(64).all(|w| w != [7; 64]));

    let fetched = system.fetch_wal(file(3)).await.unwrap().unwrap();
    let error = fetched.plain().unwrap_err();
    assert!(matches!(error, RepoError::Sealed { .. }), "{error}");
    assert!(error.to_string().contains("e0001"), "{error}");
    fetched.check_stored().unwrap();
    assert!(fetched.holds(&vec![7; 1 << 20]) && !fetched.holds(&vec![8; 1 << 20]));
    for identity in [&world.daily, &world.offline] {
        let reader = world.with_identity(identity).open(SYSTEM).await.unwrap();
        assert!(reader.is_unverified());
        let fetched = reader.fetch_wal(file(3)).await.unwrap().unwrap();
        assert_eq!(fetched.plain().unwrap(), vec![7; 1 << 20]);
        let info = reader.segment_info(nth(3)).await.unwrap().unwrap();
        assert_eq!(info.annex.commits, fetched.annex().unwrap().commits);
        assert!(info.annex.commits.is_some());
    }
    let blind = system.segment_info(nth(3)).await.unwrap().unwrap();
    assert_eq!((blind.header.valid, blind.annex.commits), (header.valid, None));
}

#[tokio::test]
async fn a_wrap_that_was_deleted_is_put_back_and_one_that_was_exchanged_stops_the_push() {
    let mut world = World::new();
    world.system().await;
    let wrap = format!("main/{SYSTEM}/keys/e0001/wrap-0001.age");
    let good = world.get(&wrap).await;
    // Whoever writes to the bucket takes the way to read away, or thinks so.
    world.store.delete(&wrap).await.unwrap();
    let host = world.on_host().open(SYSTEM).await.unwrap();
    assert_eq!(host.put_wal(&segment(&host, 3, MIB, 7)).await.unwrap(), Stored::New);
    assert_eq!(world.get(&wrap).await, good);
    let reader = world.with_identity(&world.daily).open(SYSTEM).await.unwrap();
    assert_eq!(reader.fetch_wal(file(3)).await.unwrap().unwrap().plain().unwrap(), vec![7; 1 << 20]);

    let (other, ..) = keys_of("main");
    let other = other.wraps().next().unwrap().2.0.clone();
    for planted in [Bytes::from_static(b"nothing"), Bytes::new(), other] {
        world.replace(&wrap, planted).await;
        let host = world.on_host().open(SYSTEM).await.unwrap();
        let refused = host.put_wal(&segment(&host, 4, MIB, 7)).await;
        assert!(
            matches!(&refused, Err(RepoError::Untrusted { what, .. }) if what.contains(&wrap)),
            "{refused:?}"
        );
        assert!(host.seal_data(vec![Bytes::from_static(b"pack")]).await.is_err());
        assert!(!world.listing().await.iter().any(|key| key.contains("000000000004")), "it was stored");
    }
    world.replace(&wrap, good).await;

    // An epoch that began elsewhere, whose wraps never got here.
    rotate(&mut world.host, Epoch::new(2).unwrap());
    let host = world.on_host().open(SYSTEM).await.unwrap();
    assert_eq!(host.put_wal(&segment(&host, 5, MIB, 7)).await.unwrap(), Stored::New);
    let stored = world.listing().await;
    assert!(stored.iter().any(|key| key == "keys/e0002/wrap-0001.age"), "{stored:?}");
}

#[tokio::test]
async fn who_works_long_looks_at_the_wraps_again() {
    let world = World::new();
    world.system().await;
    let wrap = format!("main/{SYSTEM}/keys/e0001/wrap-0001.age");
    let good = world.get(&wrap).await;
    let host = world.on_host().open(SYSTEM).await.unwrap();
    host.sealer().await.unwrap();
    world.store.delete(&wrap).await.unwrap();
    // What SECURITY.md says of who has looked already.
    host.sealer().await.unwrap();
    assert!(!world.listing().await.iter().any(|key| key.contains("wrap-0001")));
    host.look_at_wraps_again().await.unwrap();
    assert_eq!(world.get(&wrap).await, good);
    world.replace(&wrap, Bytes::from_static(b"another")).await;
    host.sealer().await.unwrap();
    let refused = host.look_at_wraps_again().await;
    assert!(
        matches!(&refused, Err(RepoError::Untrusted { what, .. }) if what.contains(&wrap)),
        "{refused:?}"
    );
    assert!(host.sealer().await.is_err(), "it was remembered");
}

#[tokio::test]
async fn longer_copies_are_told_without_a_secret_and_what_cannot_be_told_is_a_conflict() {
    let world = World::new();
    let system = world.system().await;
    assert_eq!(system.put_wal(&segment(&system, 3, 9000, 7)).await.unwrap(), Stored::New);
    assert_eq!(system.put_wal(&segment(&system, 3, MIB, 7)).await.unwrap(), Stored::LongerCopy(2));
    assert!(matches!(system.put_wal(&segment(&system, 3, MIB, 8)).await.unwrap(), Stored::Conflict(_)));
    let host = world.with(Some(&world.host), &[&world.daily], None).open(SYSTEM).await.unwrap();
    assert_eq!(host.put_wal(&segment(&host, 4, MIB, 7)).await.unwrap(), Stored::New);
    // The stored copy is longer: only who can read it can say that it agrees.
    let short = segment(&system, 4, 9000, 7);
    assert!(matches!(system.put_wal(&short).await.unwrap(), Stored::Conflict(_)));
    assert_eq!(host.put_wal(&short).await.unwrap(), Stored::Covered);
    assert!(matches!(host.put_wal(&segment(&host, 4, 9000, 8)).await.unwrap(), Stored::Conflict(_)));
}

#[tokio::test]
async fn a_history_is_encrypted_and_its_parents_are_known_without_a_secret() {
    let world = World::new();
    let system = world.system().await;
    let text = "1\t0/3000100\tat restore point \"before the merger\"\n";
    assert_eq!(system.put_wal(&history(&system, text)).await.unwrap(), Stored::New);
    assert_eq!(system.put_wal(&history(&system, text)).await.unwrap(), Stored::AlreadyThere);
    let other = history(&system, "1\t0/4000100\tx\n");
    assert!(matches!(system.put_wal(&other).await.unwrap(), Stored::Conflict(_)));
    for key in world.listing().await {
        let bytes = world.get(&format!("main/{SYSTEM}/{key}")).await;
        assert!(!String::from_utf8_lossy(&bytes).contains("merger"), "{key} says it in clear");
    }
    let two = TimelineId::new(2).unwrap();
    let elsewhere = TimelineHistory::parse(two, b"1\t0/4000100\n").unwrap();
    assert!(!system.put_ancestry(&elsewhere).await.unwrap(), "other parents are there");
    let known = system.history(two).await.unwrap().unwrap();
    let reader = world.with_identity(&world.offline).open(SYSTEM).await.unwrap();
    assert_eq!(reader.history(two).await.unwrap().unwrap(), known);
    assert_eq!(reader.absence(file(1)).await.unwrap(), Absence::Proven);
}

#[tokio::test]
async fn rotation_begins_an_epoch_and_what_was_sealed_before_still_opens() {
    let mut world = World::new();
    let system = world.system().await;
    system.put_wal(&segment(&system, 3, MIB, 7)).await.unwrap();
    rotate(&mut world.host, Epoch::new(2).unwrap());
    let system = world.on_host().open(SYSTEM).await.unwrap();
    assert_eq!(system.put_wal(&segment(&system, 3, MIB, 7)).await.unwrap(), Stored::AlreadyThere, "same tag");
    let before = world.listing().await;
    assert!(
        before.contains(&"keys/e0002/wrap-0001.age".to_owned()),
        "a push puts what is missing: {before:?}"
    );
    system.put_wal(&segment(&system, 4, MIB, 8)).await.unwrap();
    let reader = world.with_identity(&world.offline).open(SYSTEM).await.unwrap();
    for (n, fill) in [(3, 7), (4, 8)] {
        let fetched = reader.fetch_wal(file(n)).await.unwrap().unwrap();
        assert_eq!(fetched.header.key, Epoch::new(u32::try_from(n).unwrap() - 2));
        assert_eq!(fetched.plain().unwrap(), vec![fill; 1 << 20]);
    }
}

#[tokio::test]
async fn a_wrong_key_is_a_key_problem_and_damage_is_found_without_one() {
    let world = World::new();
    let system = world.system().await;
    system.put_wal(&segment(&system, 3, MIB, 7)).await.unwrap();
    let stranger = Identity::generate();
    let error = world.with_identity(&stranger).open(SYSTEM).await.unwrap_err();
    assert!(matches!(error, RepoError::NoKeys { .. }) && !error.is_damage(), "{error}");
    let wrong = world.with(Some(&world.host), &[&stranger], None).open(SYSTEM).await.unwrap();
    let error = wrong.fetch_wal(file(3)).await.unwrap_err();
    assert!(matches!(error, RepoError::NoKeys { .. }) && error.to_string().contains("e0001"), "{error}");

    let key = system.keys().wal(file(3));
    let mut bytes = world.get(&key).await.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    world.replace(&key, bytes).await;
    let error = system.fetch_wal(file(3)).await.unwrap().unwrap().check_stored().unwrap_err();
    assert!(matches!(error, RepoError::Corrupt { .. }), "{error}");
    let error = wrong.fetch_wal(file(3)).await.unwrap_err();
    assert!(matches!(error, RepoError::Corrupt { .. }), "damage is damage whatever the key: {error}");
    // At the start, where planning reads a range of it.
    let mut bytes = world.get(&key).await.to_vec();
    bytes[900] ^= 1;
    world.replace(&key, bytes).await;
    let reader = world.with_identity(&world.daily).open(SYSTEM).await.unwrap();
    let error = reader.segment_info(nth(3)).await.unwrap_err();
    assert!(matches!(error, RepoError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_forged_swapped_truncated_or_replayed_segment_is_refused_by_name() {
    let world = World::new();
    let system = world.system().await;
    for n in [3, 4] {
        system.put_wal(&segment(&system, n, MIB, u8::try_from(n).unwrap())).await.unwrap();
    }
    let (three, four) = (system.keys().wal(file(3)), system.keys().wal(file(4)));
    let good = world.get(&three).await;
    let reader = world.with_identity(&world.daily).open(SYSTEM).await.unwrap();
    let fetch = || reader.fetch_wal(file(3));

    // Swapped: the segment of another name.
    world.replace(&three, world.get(&four).await).await;
    assert!(matches!(fetch().await, Err(RepoError::Foreign { .. })));
    // Its header renamed to fit, as who has no seal key would.
    let mut header = WalHeader::parse(&world.get(&four).await).unwrap();
    header.name = file(3);
    header.valid = WalHeader::parse(&good).unwrap().valid;
    let body = world.get(&four).await.slice(512..);
    let renamed = [header.encode().unwrap().as_slice(), &body].concat();
    world.replace(&three, renamed).await;
    is_forged(fetch().await, ".wal");
    // Forged: made with the epoch's public key, which is no secret, and another seal key.
    let (other, ..) = keys_of("main");
    let recipient = world.host.current().unwrap().recipient.clone();
    let sealer = Sealer { key: other.seal, epoch: Epoch::FIRST, recipient };
    let forged = segment(&system, 3, MIB, 66).sealed(&sealer).unwrap();
    world.replace(&three, forged.chunks.concat()).await;
    is_forged(fetch().await, ".wal");
    // Not encrypted at all.
    world.replace(&three, segment(&system, 3, MIB, 66).chunks.concat()).await;
    is_forged(fetch().await, ".wal");
    // Truncated, at a chunk's end or anywhere.
    world.replace(&three, good.slice(..good.len() - 20)).await;
    let error = fetch().await.unwrap().unwrap().plain().unwrap_err();
    assert!(matches!(error, RepoError::Corrupt { .. }), "{error}");
    // The body of an older object of the same name under its header: replayed by halves.
    let again = segment(&system, 3, MIB, 3).sealed(&system.sealer().await.unwrap().unwrap()).unwrap();
    let mixed = [&good[..512], &again.chunks.concat()[512..]].concat();
    world.replace(&three, mixed).await;
    let error = fetch().await.unwrap().unwrap().plain().unwrap_err();
    assert!(matches!(error, RepoError::Corrupt { .. }), "{error}");
    world.replace(&three, good).await;
    assert_eq!(fetch().await.unwrap().unwrap().plain().unwrap(), vec![3; 1 << 20]);
}

#[tokio::test]
async fn an_object_of_another_cluster_is_refused_even_with_the_same_recipients() {
    let world = World::new();
    let system = world.system().await;
    let (mut other, ..) = keys_of("main");
    other.recipients.clone_from(&world.host.recipients);
    other.epochs.clear();
    rotate(&mut other, Epoch::FIRST);
    let store = Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
    let ring = Keyring::new(Some(other), Vec::new(), None).unwrap();
    let theirs = Repository::new(store.clone(), "x", "main".parse().unwrap(), true);
    let theirs = theirs.with_keys(Arc::new(ring), false).create_identity(facts(), now()).await.unwrap().0;
    theirs.put_wal(&segment(&theirs, 3, MIB, 7)).await.unwrap();
    let key = theirs.keys().wal(file(3));
    world.store.create(&key, store.get(&key).await.unwrap().unwrap()).await.unwrap();
    is_forged(system.fetch_wal(file(3)).await, ".wal");
    // The whole folder put in the place of this one's.
    for object in store.list(theirs.keys().root()).await.unwrap() {
        world.replace(&object.key, store.get(&object.key).await.unwrap().unwrap()).await;
    }
    is_forged(world.on_host().open(SYSTEM).await, "identity.json");
    let expected = Some(world.host.seal.fingerprint());
    let error = world.with(None, &[&world.daily], expected).open(SYSTEM).await.unwrap_err();
    assert!(matches!(error, RepoError::Untrusted { .. }), "{error}");
    // Without the fingerprint nobody could tell, and it says so.
    assert!(world.with_identity(&world.daily).open(SYSTEM).await.unwrap().is_unverified());
}

#[tokio::test]
async fn a_folder_that_is_said_to_be_plain_is_not_taken_for_the_sealed_one() {
    let world = World::new();
    let system = world.system().await;
    let key = system.keys().key(&SystemObject::Identity);
    let plain = FolderIdentity { sealed: false, ..system.identity().clone() };
    world.replace(&key, encode(&plain)).await;
    for repository in [world.on_host(), world.with_identity(&world.daily)] {
        let error = repository.open(SYSTEM).await.unwrap_err();
        assert!(matches!(error, RepoError::NotSealed { .. }), "{error}");
    }
}

#[tokio::test]
async fn json_objects_need_the_mac_of_their_own_name() {
    let world = World::new();
    let system = world.system().await;
    let floor = Floor { nonce: crate::repo::nonce().unwrap(), created: now(), timelines: Vec::new() };
    let key = |n| system.keys().key(&SystemObject::Floor(n));
    // Made without the seal key: a sum is no mac.
    world.store.create(&key(1), Bytes::from(encode(&floor))).await.unwrap();
    is_forged(system.floor().await, "floor/1.json");
    world.store.delete(&key(1)).await.unwrap();
    system.raise_floor(|_| Some(Vec::new()), now()).await.unwrap();
    assert!(system.floor().await.unwrap().is_some());
    // Replayed under a later name.
    world.store.create(&key(9), world.get(&key(1)).await).await.unwrap();
    is_forged(system.floor().await, "floor/9.json");
}

#[tokio::test]
async fn a_forged_tombstone_or_release_lets_nothing_go() {
    let world = World::new();
    let system = world.system().await;
    let id: BackupId = "20251017-103000-1a2b3c4d".parse().unwrap();
    let tombstone = system.keys().backup(&id, BackupObject::Expired);
    let expired = Expired {
        id: id.clone(),
        nonce: crate::repo::nonce().unwrap(),
        created: now(),
        reason: "because I say so".to_owned(),
    };
    world.store.create(&tombstone, Bytes::from(encode(&expired))).await.unwrap();
    assert!(!system.is_expired(&id).await.unwrap());
    is_forged(system.expire(&id, "too old", now()).await, "expired.json");
    world.store.delete(&tombstone).await.unwrap();
    system.expire(&id, "too old", now()).await.unwrap();
    assert!(system.is_expired(&id).await.unwrap());

    let other: BackupId = "20251018-103000-1a2b3c4d".parse().unwrap();
    let pinned = system.pin(PinKind::Operator, &other, nth(3), "audit", now()).await.unwrap();
    let crate::repo::pins::Pinned::Yes(pin) = pinned else { panic!("not pinned") };
    let release = system.keys().key(&SystemObject::PinReleased(pin.clone()));
    world.store.create(&release, Bytes::from_static(b"released\n")).await.unwrap();
    assert!(!system.pins().await.unwrap()[0].released);
    // What somebody planted is not taken for one's own: the operator is told, instead of believing that the pin is gone.
    is_forged(system.release(&pin).await, ".released");
    let expire = async || {
        let request =
            ExpireRequest { policy: None, zone: jiff::tz::TimeZone::UTC, now: now(), dry_run: false };
        let done = expire::expire(&world.on_host(), &[], &request, &crate::ops::Silent).await.unwrap();
        done[0].deleted.leftovers
    };
    assert_eq!(expire().await, 0);
    assert!(
        !system.pins().await.unwrap()[0].released,
        "a run of expire leaves it, and what was planted beside it"
    );
    world.store.delete(&release).await.unwrap();
    system.release(&pin).await.unwrap();
    system.release(&pin).await.unwrap();
    assert!(system.pins().await.unwrap()[0].released);
    assert_eq!(expire().await, 2);
    assert!(world.listing().await.iter().all(|key| !key.starts_with("pins/")));
    // Beside nothing, it is rubbish.
    world.store.create(&release, Bytes::from_static(b"released\n")).await.unwrap();
    assert_eq!(expire().await, 1);
}

#[tokio::test]
async fn a_recipient_planted_in_the_bucket_is_given_nothing() {
    let world = World::new();
    let system = world.system().await;
    let thief = Identity::generate();
    // All that an attacker can wrap is an epoch and a seal key of his own.
    let planted = opened(Epoch::FIRST, SealKey::new([6; 32]));
    let both = [&thief.recipient(), &world.daily.recipient()];
    let newer = Opened { key: EpochKey::generate(Epoch::new(2).unwrap()), ..planted.clone() };
    let key = system.keys().key(&SystemObject::Wrap(Epoch::new(2).unwrap(), 1));
    world.store.create(&key, newer.wrap("main", &both).unwrap().0).await.unwrap();
    let error = world.with_identity(&world.daily).open(SYSTEM).await.unwrap_err();
    assert!(error.to_string().contains("different seal keys"), "{error}");
    let key = system.keys().key(&SystemObject::Wrap(Epoch::FIRST, 2));
    world.store.create(&key, planted.wrap("main", &both).unwrap().0).await.unwrap();
    // The host takes neither epoch nor recipient from there.
    let system = world.on_host().open(SYSTEM).await.unwrap();
    system.put_wal(&segment(&system, 3, MIB, 7)).await.unwrap();
    let error = world.with_identity(&thief).open(SYSTEM).await.unwrap_err();
    is_forged::<()>(Err(error), "identity.json");
    // Who has only an identity meets two seal keys; who knows the fingerprint is not misled.
    let error = world.with_identity(&world.daily).open(SYSTEM).await.unwrap_err();
    assert!(matches!(error, RepoError::Untrusted { .. }), "{error}");
    let expected = Some(world.host.seal.fingerprint());
    for repository in
        [world.with(None, &[&world.daily], expected), world.with(Some(&world.host), &[&world.daily], None)]
    {
        let reader = repository.open(SYSTEM).await.unwrap();
        assert_eq!(reader.fetch_wal(file(3)).await.unwrap().unwrap().plain().unwrap(), vec![7; 1 << 20]);
    }
}

#[tokio::test]
async fn nothing_of_a_backup_is_put_into_a_sealed_folder_as_it_is() {
    let world = World::new();
    let system = world.system().await;
    let id: BackupId = "20251017-103000-1a2b3c4d".parse().unwrap();
    let pack = vec![Bytes::from_static(b"the rows of the cluster")];
    let error = system.put_backup_object(&id, BackupObject::Pack(0), pack.clone()).await.unwrap_err();
    assert!(matches!(error, RepoError::Unwritable { .. }), "{error}");
    let sealed = system.seal_data(pack).await.unwrap();
    system.put_backup_object(&id, BackupObject::Pack(0), sealed.clone()).await.unwrap();
    assert!(world.listing().await.contains(&format!("backups/{id}/pack-00000.tar.zst.age")));
    let stored = Bytes::from(sealed.concat());
    let error = system.unsealed("pack", Some(Epoch::FIRST), stored.clone()).await.unwrap_err();
    assert!(matches!(error, RepoError::Sealed { .. }) && error.to_string().contains("e0001"), "{error}");
    let reader = world.with_identity(&world.daily).open(SYSTEM).await.unwrap();
    assert_eq!(reader.unsealed("pack", Some(Epoch::FIRST), stored).await.unwrap(), "the rows of the cluster");
}

#[tokio::test]
async fn without_keys_nothing_is_known_and_with_an_identity_alone_nothing_is_written() {
    let world = World::new();
    world.system().await;
    let bare = Repository::new(world.store.clone(), "cloud", "main".parse().unwrap(), true);
    assert!(matches!(bare.open(SYSTEM).await, Err(RepoError::NoKeys { .. })));
    let reader = world.with_identity(&world.daily).open(SYSTEM).await.unwrap();
    let error = reader.put_wal(&segment(&reader, 3, MIB, 7)).await.unwrap_err();
    assert!(matches!(error, RepoError::NoKeys { .. }), "{error}");
    let (_, novelty) = world.on_host().create_identity(facts(), now()).await.unwrap();
    assert_eq!(novelty, Novelty::Old);
    let tag = Digest::of(b"x");
    assert_ne!(tag, world.host.seal.tag(&1, &"x", 1, &tag));
}

#[tokio::test]
async fn sealed_objects_go_from_one_repository_to_another_as_they_are() {
    let world = World::new();
    let system = world.system().await;
    let reading = world.with(Some(&world.host), &[&world.daily], None).open(SYSTEM).await.unwrap();
    let mut other = World::new();
    other.host = world.host.clone();
    let target = other.system().await;
    system.put_wal(&segment(&system, 3, MIB, 7)).await.unwrap();
    let name = WalFileName::History(TimelineId::new(2).unwrap());
    system.put_wal(&history(&system, "1\t0/3000100\tx\n")).await.unwrap();

    let copied = system.fetch_wal(file(3)).await.unwrap().unwrap().verbatim().unwrap();
    assert_eq!(target.put_wal(&copied).await.unwrap(), Stored::New);
    assert_eq!(target.put_wal(&copied).await.unwrap(), Stored::AlreadyThere);
    assert_eq!(target.put_wal(&segment(&target, 3, MIB, 7)).await.unwrap(), Stored::AlreadyThere);
    let key = system.keys().wal(file(3));
    assert_eq!(other.get(&key).await, world.get(&key).await);
    let copied = system.fetch_wal(name).await.unwrap().unwrap().verbatim().unwrap();
    let early = target.put_wal(&copied).await;
    assert!(matches!(early, Err(RepoError::Missing { .. })), "its parents come first: {early:?}");
    let known = system.history(TimelineId::new(2).unwrap()).await.unwrap().unwrap();
    assert!(target.put_ancestry(&known).await.unwrap());
    assert_eq!(target.put_wal(&copied).await.unwrap(), Stored::New);
    assert_eq!(target.history(TimelineId::new(2).unwrap()).await.unwrap(), Some(known));

    // A longer copy beside a shorter one takes a look inside.
    target.put_wal(&segment(&target, 4, 9000, 7)).await.unwrap();
    reading.put_wal(&segment(&reading, 4, MIB, 7)).await.unwrap();
    let longer = reading.fetch_wal(file(4)).await.unwrap().unwrap().verbatim().unwrap();
    assert!(matches!(target.put_wal(&longer).await.unwrap(), Stored::Conflict(_)));
    let able = other.with(Some(&other.host), &[&world.daily], None).open(SYSTEM).await.unwrap();
    assert_eq!(able.put_wal(&longer).await.unwrap(), Stored::LongerCopy(2));

    // Into another cluster's folder, one without the epoch's wraps, and a plain one: no.
    let strange = World::new();
    let theirs = strange.system().await;
    is_forged(theirs.put_wal(&copied).await, ".history");
    let mut later = world.host.clone();
    rotate(&mut later, Epoch::new(2).unwrap());
    let sealer = Sealer {
        key: later.seal.clone(),
        epoch: later.epoch,
        recipient: later.current().unwrap().recipient.clone(),
    };
    let newer = segment(&target, 5, MIB, 7).sealed(&sealer).unwrap();
    assert!(matches!(target.put_wal(&newer).await, Err(RepoError::NoKeys { .. })));
    let store = Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
    let plain = Repository::new(store, "plain", "main".parse().unwrap(), true);
    let new = NewIdentity { sealing: Sealing::Plain, ..facts() };
    let plain = plain.create_identity(new, now()).await.unwrap().0;
    assert!(matches!(plain.put_wal(&copied).await, Err(RepoError::Sealed { .. })));
}

#[tokio::test]
async fn wraps_that_are_planted_by_the_thousand_stop_only_who_cannot_tell_them_from_others() {
    let mut world = World::new();
    rotate(&mut world.host, Epoch::new(100).unwrap());
    world.system().await;
    // The newest epoch comes last in the list, behind all of these.
    world.on_host().put_wraps(SYSTEM, &world.host).await.unwrap();
    for n in 1..=2001 {
        for name in [format!("e0099/wrap-{n:04}"), format!("e0001/wrap-{:04}", n + 999)] {
            let key = format!("main/{SYSTEM}/keys/{name}.age");
            world.store.create(&key, Bytes::from("planted")).await.unwrap();
        }
    }
    let fingerprint = Some(world.host.seal.fingerprint());
    let system = world.with(None, &[&world.offline], fingerprint).open(SYSTEM).await.unwrap();
    assert!(system.opens(Epoch::new(100)).await.unwrap());
    // What the host file names is read, wherever it is in the list.
    let found = world.on_host().wraps(SYSTEM).await.unwrap();
    assert_eq!(found.len(), 1001, "as many of an epoch as there can be");
    let named: Vec<u32> = found.iter().map(|(epoch, ..)| epoch.get()).filter(|n| *n != 99).collect();
    assert_eq!(named, [1, 100]);
    let unsure = world.with_identity(&world.offline).open(SYSTEM).await.err().map(|e| e.to_string());
    assert!(unsure.as_ref().is_some_and(|e| e.contains("one wrap too many")), "{unsure:?}");
}

#[tokio::test(start_paused = true)]
async fn wraps_are_read_and_put_side_by_side() {
    let mut world = World::new();
    for epoch in 2..=40 {
        rotate(&mut world.host, Epoch::new(epoch).unwrap());
    }
    let (store, faults) = world.store.with_faults(Policy::default());
    let world = World { store, ..world };
    for call in ["create", "open"] {
        faults.add(&format!("stall@{call}/e0001/:1")).unwrap();
        let before = faults.calls().len();
        world.on_host().put_wraps(SYSTEM, &world.host).await.unwrap();
        let found = world.on_host().wraps(SYSTEM).await.unwrap();
        assert!(found.iter().map(|(epoch, ..)| epoch.get()).eq(1..=40));
        let calls = faults.calls().split_off(before);
        if call == "create" {
            let newest = calls.iter().rev().find(|said| said.starts_with("create"));
            assert!(
                newest.is_some_and(|said| said.contains("e0040/")),
                "by which all are known to be there: {calls:?}"
            );
        }
        let mut of = calls.iter().filter(|said| said.starts_with(call));
        assert!(of.next().is_some_and(|said| said.contains("e0001/")), "{calls:?}");
        let meanwhile = of.take_while(|said| !said.contains("e0001/")).count();
        assert!(meanwhile >= WRAPS_AT_ONCE - 1, "{call}: {meanwhile} of {calls:?}");
    }
}

/// Two repositories of one configuration have one ring of keys between them.
#[tokio::test]
async fn what_one_repository_lacks_of_the_keys_another_is_not_said_to_lack() {
    let near = World::new();
    let (daily, offline) = (near.daily.clone(), near.offline.clone());
    let far = World { host: near.host.clone(), daily, offline, ..World::new() };
    let second = Epoch::FIRST.next().unwrap();
    let mut rotated = near.host.clone();
    rotate(&mut rotated, second);
    for world in [&near, &far] {
        world.system().await;
        for (n, host) in [(1, &near.host), (2, &rotated)] {
            let system = world.with(Some(host), &[], None).open(SYSTEM).await.unwrap();
            system.put_wal(&segment(&system, n, MIB, 1)).await.unwrap();
        }
    }
    let ring = || {
        let expected = Some(near.host.seal.fingerprint());
        Arc::new(Keyring::new(None, vec![near.daily.clone()], expected).unwrap())
    };
    let repository = |world: &World, name: &str, ring: &Arc<Keyring>| {
        let plain = Repository::new(world.store.clone(), name, "main".parse().unwrap(), true);
        plain.with_keys(Arc::clone(ring), false)
    };
    let wrap = format!("main/{SYSTEM}/keys/e0002/wrap-0001.age");
    near.store.delete(&wrap).await.unwrap();
    let shared = ring();
    let here = repository(&near, "near", &shared).open(SYSTEM).await.unwrap();
    let there = repository(&far, "far", &shared).open(SYSTEM).await.unwrap();
    assert_eq!(here.segment_info(nth(2)).await.unwrap().unwrap().locked, Some(second));
    assert!(!here.opens(Some(second)).await.unwrap());
    assert_eq!(there.segment_info(nth(2)).await.unwrap().unwrap().locked, None, "it has the wrap");
    assert!(there.fetch_wal(file(2)).await.unwrap().unwrap().can_open());
    assert!(here.opens(Some(second)).await.unwrap(), "the key is the same in both");

    near.store.delete(&wrap.replace("e0002", "e0001")).await.unwrap();
    let shared = ring();
    let lost = repository(&near, "near", &shared).open(SYSTEM).await.unwrap_err();
    assert!(matches!(&lost, RepoError::NoKeys { repository, .. } if repository == "near"), "{lost}");
    let there = repository(&far, "far", &shared).open(SYSTEM).await.unwrap();
    assert!(there.fetch_wal(file(1)).await.unwrap().unwrap().can_open());
}

/// Whoever plants a wrap for an identity that opens nothing else stops nobody who needs none.
#[tokio::test]
async fn a_wrap_with_another_seal_key_does_not_stop_a_host_that_has_its_own() {
    let world = World::new();
    world.system().await;
    let (foreign, stranger, _) = keys_of("main");
    let planted = foreign.wraps().next().unwrap().2.0.clone();
    world.store.create(&format!("main/{SYSTEM}/keys/e0001/wrap-0900.age"), planted).await.unwrap();
    let system = world.with(Some(&world.host), &[&stranger], None).open(SYSTEM).await.unwrap();
    assert!(system.epochs(None).await.unwrap().is_empty());
    assert!(matches!(system.epochs(Some(Epoch::FIRST)).await, Err(RepoError::NoKeys { .. })));
    system.put_wal(&segment(&system, 1, MIB, 1)).await.unwrap();
    // Without a host file it is the fingerprint that tells.
    let expected = Some(world.host.seal.fingerprint());
    let refused = world.with(None, &[&stranger], expected).open(SYSTEM).await.unwrap_err();
    assert!(matches!(refused, RepoError::Untrusted { .. }), "{refused}");
}
