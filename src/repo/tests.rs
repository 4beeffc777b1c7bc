//! Tests of the repository on a store in memory: races have one outcome, doubt is never taken for absence, order is kept.
//!
//! Whole listings are compared, not single keys: an object too many is as wrong as one too few.
//! What fails underneath, and how often a call is repeated, is the store's business and tested there.

use bytes::Bytes;
use futures_util::future::join_all;

use super::archive::{Absence, Stored};
use super::backups::Abandonment;
use super::catalog::{BackupState, Run, runs, wal_complete};
use super::lease::LeaseState;
use super::objects::*;
use super::path::{BackupId, BackupObject, PinKind};
use super::pins::Pinned;
use super::walobject::tests::{scan, segment};
use super::walobject::{Facts, WalObject, WalObjectBuilder};
use super::*;
use crate::codec::{Compression, Digest, len_u64};
use crate::store::{StoreOptions, StoreUrl};
use crate::wal::scan::SegmentEnd;
use crate::wal::{Lsn, SegmentName, SegmentNo, TimelineId, WalFileName};

mod expiring;
mod timelines;

const SYSTEM: u64 = 7_301_234_567_890_123_456;
const MIB: u64 = 1 << 20;

fn now() -> Timestamp {
    "2025-10-17T10:30:00Z".parse().unwrap()
}

fn repository() -> Repository {
    let store = Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
    Repository::new(store, "local", "main".parse().unwrap(), true)
}

fn facts(system: u64) -> NewIdentity {
    NewIdentity {
        system: SystemId::new(system),
        major: PgMajor::V15,
        segment_size: SegmentSize::new(MIB).unwrap(),
        sealing: Sealing::Plain,
    }
}

async fn opened() -> System {
    repository().create_identity(facts(SYSTEM), now()).await.unwrap().0
}

async fn listing(system: &System) -> Vec<String> {
    let objects = system.store().list(system.keys().root()).await.unwrap();
    objects.into_iter().map(|o| o.key.replacen(system.keys().root(), "", 1)).collect()
}

fn name(text: &str) -> WalFileName {
    WalFileName::parse(text).unwrap()
}

fn nth(n: u64) -> WalFileName {
    let size = SegmentSize::new(MIB).unwrap();
    WalFileName::Segment(SegmentName::new(TimelineId::FIRST, SegmentNo::new(n), size))
}

fn build(system: &System, name: WalFileName, plain: &[u8], facts: Facts<'_>) -> WalObject {
    let compression = Compression::Zstd { level: 1 };
    let mut builder = WalObjectBuilder::new(system.asked(name), len_u64(plain), compression).unwrap();
    builder.push(plain).unwrap();
    builder.finish(facts).unwrap()
}

/// The third segment; `valid` bytes of it are WAL.
fn copy(system: &System, valid: u64, end: SegmentEnd, fill: u8) -> WalObject {
    let mut plain = vec![fill; 1 << 20];
    plain[usize::try_from(valid).unwrap()..].fill(0);
    build(system, nth(3), &plain, Facts::Scanned(&scan(valid, end)))
}

async fn store_segment(system: &System, n: u64) {
    let mut scan = scan(MIB, SegmentEnd::Full);
    let WalFileName::Segment(segment) = nth(n) else { unreachable!() };
    (scan.name, scan.start, scan.valid_to) = (segment, Lsn::new(n * MIB), Lsn::new((n + 1) * MIB));
    let object = build(system, nth(n), &vec![7; 1 << 20], Facts::Scanned(&scan));
    assert_eq!(system.put_wal(&object).await.unwrap(), Stored::New);
}

async fn store_history(system: &System, file: &str, text: &str) {
    let object = build(system, name(file), text.as_bytes(), Facts::Unscanned);
    assert_eq!(system.put_wal(&object).await.unwrap(), Stored::New);
}

#[tokio::test]
async fn many_inits_at_once_create_one_identity() {
    let repository = repository();
    let results = join_all((0..8).map(|_| repository.create_identity(facts(SYSTEM), now()))).await;
    let new = results.iter().filter(|r| r.as_ref().unwrap().1 == Novelty::New).count();
    assert_eq!(new, 1);
    let identities = repository.identities().await.unwrap();
    assert_eq!(identities.len(), 1);
    assert!(results.iter().all(|r| *r.as_ref().unwrap().0.identity() == identities[0]));
}

#[tokio::test]
async fn an_identity_with_other_facts_is_refused() {
    let repository = repository();
    repository.create_identity(facts(SYSTEM), now()).await.unwrap();
    let other = NewIdentity { segment_size: SegmentSize::DEFAULT, ..facts(SYSTEM) };
    let error = repository.create_identity(other, now()).await.unwrap_err();
    assert!(matches!(error, RepoError::Foreign { .. }), "{error}");
    assert!(matches!(repository.open(SystemId::new(1)).await, Err(RepoError::NoIdentity { .. })));
}

#[tokio::test]
async fn the_system_initialised_last_is_the_current_one() {
    let repository = repository();
    assert!(repository.open_current().await.unwrap().is_none());
    repository.create_identity(facts(9), now()).await.unwrap();
    repository.create_identity(facts(3), now()).await.unwrap();
    assert_eq!(repository.open_current().await.unwrap().unwrap().identity().system, SystemId::new(3));
    assert_eq!(repository.systems().await.unwrap(), [SystemId::new(3), SystemId::new(9)]);
}

#[tokio::test]
async fn nothing_is_written_where_a_newer_pitr_writes() {
    let repository = repository();
    repository.store().create("main/format/2.json", "{}").await.unwrap();
    let error = repository.create_identity(facts(SYSTEM), now()).await.unwrap_err();
    assert!(matches!(error, RepoError::NewerFormat { .. }), "{error}");
    assert_eq!(repository.store().list("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_folder_with_the_identity_of_another_is_foreign() {
    let system = opened().await;
    let store = system.store();
    let bytes = store.get(&system.keys().key(&SystemObject::Identity)).await.unwrap().unwrap();
    store.create("main/42/identity.json", bytes).await.unwrap();
    let error = system.repository().open(SystemId::new(42)).await.unwrap_err();
    assert!(matches!(error, RepoError::Foreign { .. }), "{error}");
}

#[tokio::test]
async fn a_segment_is_stored_once_and_comes_back() {
    let system = opened().await;
    let object = copy(&system, MIB, SegmentEnd::Full, 5);
    let puts = join_all((0..8).map(|_| system.put_wal(&object))).await;
    let new = puts.iter().filter(|p| *p.as_ref().unwrap() == Stored::New).count();
    assert_eq!(new, 1);
    assert!(puts.iter().all(|p| matches!(p, Ok(Stored::New | Stored::AlreadyThere))));
    let fetched = system.fetch_wal(nth(3)).await.unwrap().unwrap();
    assert!(fetched.plain().unwrap() == vec![5; 1 << 20]);
    assert_eq!(
        listing(&system).await,
        ["identity.json", "wal/00000001/00000000/000000010000000000000003.wal"]
    );
}

#[tokio::test]
async fn another_history_under_the_same_name_is_a_conflict_and_changes_nothing() {
    let system = opened().await;
    let ours = copy(&system, MIB, SegmentEnd::Full, 5);
    assert_eq!(system.put_wal(&ours).await.unwrap(), Stored::New);
    let before = listing(&system).await;
    let theirs = copy(&system, MIB, SegmentEnd::Full, 6);
    assert_eq!(system.put_wal(&theirs).await.unwrap(), Stored::Conflict(Box::new(ours.header.clone())));
    assert_eq!(listing(&system).await, before);
    assert_eq!(system.fetch_wal(nth(3)).await.unwrap().unwrap().header, ours.header);
}

#[tokio::test]
async fn longer_copies_of_an_unfinished_segment_stand_beside_it_and_the_longest_is_read() {
    let system = opened().await;
    let put = async |valid, end| system.put_wal(&copy(&system, valid, end, 5)).await.unwrap();
    assert_eq!(put(9000, SegmentEnd::Short).await, Stored::New);
    assert_eq!(put(9000, SegmentEnd::Short).await, Stored::AlreadyThere);
    assert_eq!(put(8000, SegmentEnd::Short).await, Stored::Covered);
    assert_eq!(put(9500, SegmentEnd::Short).await, Stored::LongerCopy(2));
    assert_eq!(put(9200, SegmentEnd::Short).await, Stored::Covered);
    assert_eq!(put(MIB, SegmentEnd::Full).await, Stored::LongerCopy(3));
    assert_eq!(put(9900, SegmentEnd::Short).await, Stored::Covered);
    assert_eq!(put(MIB, SegmentEnd::Full).await, Stored::AlreadyThere);
    let fetched = system.fetch_wal(nth(3)).await.unwrap().unwrap();
    assert_eq!((fetched.copy, fetched.header.valid.unwrap().to), (3, Lsn::new(4 * MIB)));
    let info = system.segment_info(segment()).await.unwrap().unwrap();
    assert_eq!((info.copy, info.header, info.annex.commits.unwrap().commits), (3, fetched.header, 2));
    let listed = system.segments(TimelineId::FIRST).await.unwrap();
    assert_eq!((listed.len(), listed[0].name, listed[0].copies), (1, segment(), 3));
}

#[tokio::test]
async fn an_unfinished_copy_is_no_answer_while_wal_goes_on_after_it() {
    let system = opened().await;
    system.put_wal(&copy(&system, 9000, SegmentEnd::Short, 5)).await.unwrap();
    assert!(system.fetch_for_recovery(nth(3)).await.unwrap().is_some());
    store_segment(&system, 4).await;
    let error = system.fetch_for_recovery(nth(3)).await.unwrap_err();
    assert!(
        matches!(error, RepoError::Unfinished { valid_to, .. } if valid_to == Lsn::new(3 * MIB + 9000)),
        "{error}"
    );
}

#[tokio::test]
async fn a_damaged_or_misplaced_object_is_never_served() {
    let system = opened().await;
    let object = copy(&system, MIB, SegmentEnd::Full, 5).chunks.concat();
    let mut damaged = object.clone();
    *damaged.last_mut().unwrap() ^= 1;
    system.store().create(&system.keys().wal(nth(3)), damaged).await.unwrap();
    let fetched = system.fetch_wal(nth(3)).await.unwrap().unwrap();
    assert!(matches!(fetched.plain(), Err(RepoError::Corrupt { .. })));
    system.store().create(&system.keys().wal(nth(4)), object.clone()).await.unwrap();
    assert!(matches!(system.fetch_wal(nth(4)).await, Err(RepoError::Foreign { .. })));
    system.store().create(&system.keys().wal(nth(5)), object[..100].to_vec()).await.unwrap();
    assert!(matches!(system.fetch_wal(nth(5)).await, Err(RepoError::Corrupt { .. })));
}

/// Every row of "proven absent": what is stored, what is asked for, what must be said.
#[tokio::test]
async fn absence_is_proven_or_doubted_by_the_table() {
    let system = opened().await;
    let ask = async |n| system.absence(n).await.unwrap();
    let doubt = |absence: Absence| matches!(absence, Absence::Doubt(_));
    assert_eq!(ask(nth(3)).await, Absence::Proven, "an empty archive");
    assert_eq!(ask(name("00000001.history")).await, Absence::Proven);
    assert_eq!(ask(name("00000002.history")).await, Absence::Proven);
    store_segment(&system, 3).await;
    assert_eq!(ask(nth(3)).await, Absence::Present);
    assert_eq!(ask(nth(4)).await, Absence::Proven, "the end of WAL");
    assert!(doubt(ask(nth(2)).await), "a hole");
    store_segment(&system, 4097).await;
    assert!(doubt(ask(nth(4)).await), "a hole before the next log");
    assert_eq!(ask(nth(4098)).await, Absence::Proven);
    assert_eq!(ask(name("000000020000000000000002")).await, Absence::Proven, "other timelines say nothing");
    store_history(&system, "00000003.history", "1\t0/300000\tx\n2\t0/400000\tx\n").await;
    assert_eq!(ask(name("00000003.history")).await, Absence::Present);
    assert!(doubt(ask(name("00000002.history")).await), "a later history names it");
    assert_eq!(ask(name("00000004.history")).await, Absence::Proven);
    store_history(&system, "00000009.history", "1\t0/300000\tx\n").await;
    assert_eq!(ask(name("00000004.history")).await, Absence::Proven, "a later history does not name it");
}

#[tokio::test]
async fn wal_of_a_timeline_makes_the_absence_of_its_history_doubtful() {
    let system = opened().await;
    let key = system.keys().wal(name("000000050000000000000003"));
    system.store().create(&key, "x").await.unwrap();
    assert!(matches!(system.absence(name("00000005.history")).await.unwrap(), Absence::Doubt(_)));
}

#[tokio::test]
async fn a_partial_segment_after_the_one_asked_for_is_doubt_its_own_is_not() {
    let system = opened().await;
    let partial = system.keys().wal(name("000000010000000000000003.partial"));
    system.store().create(&partial, "x").await.unwrap();
    assert_eq!(system.absence(nth(3)).await.unwrap(), Absence::Proven);
    assert!(matches!(system.absence(nth(2)).await.unwrap(), Absence::Doubt(_)));
}

#[tokio::test]
async fn a_lost_first_copy_is_doubt() {
    let system = opened().await;
    let key = system.keys().key(&SystemObject::Wal(nth(3), 2));
    system.store().create(&key, "x").await.unwrap();
    assert!(matches!(system.absence(nth(3)).await.unwrap(), Absence::Doubt(_)));
}

#[tokio::test]
async fn a_folder_whose_identity_is_gone_proves_nothing() {
    let system = opened().await;
    system.store().delete(&system.keys().key(&SystemObject::Identity)).await.unwrap();
    assert!(matches!(system.absence(nth(3)).await, Err(RepoError::NoIdentity { .. })));
}

#[tokio::test]
async fn wal_below_the_floor_has_expired_and_is_not_taken_again() {
    let system = opened().await;
    let WalFileName::Segment(first) = nth(0x10) else { unreachable!() };
    let line = TimelineFloor { timeline: TimelineId::FIRST, first, keep: Vec::new() };
    for (n, timelines) in [(1, Vec::new()), (2, vec![line])] {
        let floor = Floor { nonce: nonce().unwrap(), created: now(), timelines };
        let key = system.keys().key(&SystemObject::Floor(n));
        system.store().create(&key, encode(&floor)).await.unwrap();
    }
    assert_eq!(system.absence(nth(3)).await.unwrap(), Absence::Expired);
    assert_eq!(system.absence(nth(0x10)).await.unwrap(), Absence::Proven);
    let floor = system.floor().await.unwrap().unwrap();
    assert!(floor.keeps(first) && matches!(nth(3), WalFileName::Segment(gone) if !floor.keeps(gone)));
}

fn id(n: u32) -> BackupId {
    BackupId::new(now(), n)
}

fn intent(n: u32) -> Intent {
    Intent {
        id: id(n),
        nonce: nonce().unwrap(),
        cluster: "main".parse().unwrap(),
        system: SystemId::new(SYSTEM),
        kind: BackupKind::Full,
        started_at: now(),
        timeline: TimelineId::FIRST,
        wal_floor: segment(),
        references: Vec::new(),
        takes_over: None,
        process: this_process(),
    }
}

/// What a verdict says of a backup of a pack and a manifest of a few bytes.
pub(crate) fn backup(intent: &Intent) -> Backup {
    Backup {
        status: Status::Complete,
        id: intent.id.clone(),
        nonce: intent.nonce,
        kind: intent.kind,
        cluster: intent.cluster.clone(),
        system: intent.system,
        major: PgMajor::V15,
        server_version: 150_018,
        segment_size: SegmentSize::new(MIB).unwrap(),
        timeline: intent.timeline,
        start_lsn: Lsn::new(3 * MIB + 40),
        stop_lsn: Lsn::new(3 * MIB + 400),
        started_at: now(),
        finished_at: now(),
        stop_time: now(),
        window_earliest: None,
        key: None,
        wal_floor: intent.wal_floor,
        label: String::new(),
        from_standby: false,
        checksums: Checksums::Ok,
        damage: Vec::new(),
        cluster_bytes: 10,
        new_bytes: 10,
        stored_bytes: 12,
        files: 1,
        tablespaces: Vec::new(),
        packs: PackTotals { count: 1, stored: 4, plain: 10 },
        pack_digests: Vec::new(),
        references: Vec::new(),
        manifest: ObjectRef { stored: 8, digest: Digest::of(b"manifest") },
        pg_manifest: None,
        catalogue: None,
        process: intent.process.clone(),
    }
}

/// A whole backup, as far as a listing can tell.
async fn store_backup(system: &System, n: u32) -> Backup {
    let intent = intent(n);
    let backup = backup(&intent);
    system.create_intent(&intent).await.unwrap();
    system.put_backup_object(&intent.id, BackupObject::Pack(0), Bytes::from_static(b"pack")).await.unwrap();
    system
        .put_backup_object(&intent.id, BackupObject::Manifest, Bytes::from_static(b"manifest"))
        .await
        .unwrap();
    system.publish(&backup).await.unwrap();
    backup
}

async fn state(system: &System, n: u32) -> BackupState {
    system.catalog().await.unwrap().get(&id(n)).unwrap().state.clone()
}

#[tokio::test]
async fn a_backup_is_listed_only_once_its_verdict_is_there() {
    let system = opened().await;
    let intent = intent(1);
    system.create_intent(&intent).await.unwrap();
    assert_eq!(state(&system, 1).await, BackupState::Unfinished);
    system.put_backup_object(&intent.id, BackupObject::Pack(0), Bytes::from_static(b"pack")).await.unwrap();
    system
        .put_backup_object(&intent.id, BackupObject::Manifest, Bytes::from_static(b"manifest"))
        .await
        .unwrap();
    system.create_alive(&intent.id, intent.nonce, 1, now()).await.unwrap();
    assert_eq!(state(&system, 1).await, BackupState::Unfinished);
    system.publish(&backup(&intent)).await.unwrap();
    system.publish(&backup(&intent)).await.unwrap();
    assert_eq!(state(&system, 1).await, BackupState::Complete);
    system.expire(&intent.id, "test", now()).await.unwrap();
    assert_eq!(state(&system, 1).await, BackupState::Expired);
    assert!(system.usable_parent(&intent.id).await.unwrap().is_none());
}

/// Whoever referred to its packs would restore what the pages were.
#[tokio::test]
async fn a_backup_of_damaged_pages_is_complete_and_nobodys_parent() {
    let system = opened().await;
    for (n, checksums, usable) in
        [(1, Checksums::Ok, true), (2, Checksums::Off, true), (3, Checksums::Corrupt, false)]
    {
        let intent = intent(n);
        system.create_intent(&intent).await.unwrap();
        system.publish(&Backup { checksums, ..backup(&intent) }).await.unwrap();
        assert!(system.complete_backup(&intent.id).await.unwrap().is_some());
        assert_eq!(system.usable_parent(&intent.id).await.unwrap().is_some(), usable, "{checksums:?}");
    }
}

#[tokio::test]
async fn writer_and_expiry_agree_on_the_verdict_whoever_is_first() {
    let system = opened().await;
    let (one, two) = (intent(1), intent(2));
    system.create_intent(&one).await.unwrap();
    system.create_intent(&two).await.unwrap();
    assert_eq!(system.abandon(&one.id, "no sign of life", now()).await.unwrap(), Abandonment::Done);
    assert!(matches!(system.publish(&backup(&one)).await, Err(RepoError::Abandoned { .. })));
    assert_eq!(system.abandon(&one.id, "again", now()).await.unwrap(), Abandonment::Done);
    assert_eq!(state(&system, 1).await, BackupState::Abandoned);
    system.publish(&backup(&two)).await.unwrap();
    let complete = system.abandon(&two.id, "no sign of life", now()).await.unwrap();
    assert_eq!(complete, Abandonment::Complete(Box::new(backup(&two))));
}

#[tokio::test]
async fn a_verdict_without_its_intent_is_garbage() {
    let system = opened().await;
    store_backup(&system, 1).await;
    system.store().delete(&system.keys().backup(&id(1), BackupObject::Intent)).await.unwrap();
    assert_eq!(state(&system, 1).await, BackupState::Damaged("intent.json is missing".to_owned()));
    system.store().delete(&system.keys().backup(&id(1), BackupObject::Pack(0))).await.unwrap();
    assert_eq!(state(&system, 1).await, BackupState::Garbage);
    let (ours, theirs) = (intent(2), intent(2));
    system.create_intent(&ours).await.unwrap();
    system.publish(&backup(&theirs)).await.unwrap();
    let BackupState::Unreadable(what) = state(&system, 2).await else { panic!("another nonce") };
    assert!(what.contains("their nonces differ"), "{what}");
    assert!(system.usable_parent(&id(2)).await.unwrap().is_none());
    assert!(matches!(system.create_intent(&theirs).await, Err(RepoError::Conflict { .. })));
}

/// What an object may have become: cut off, overwritten, written by a later pitr, another backup's.
fn damages(bytes: &[u8], other: &[u8]) -> [(&'static str, Bytes); 5] {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let newer =
        text.replacen(" 1\",", " 2\",", 1).lines().filter(|l| !l.contains("\"sum\"")).collect::<String>();
    [
        ("cut off", Bytes::copy_from_slice(&bytes[..bytes.len() / 2])),
        ("empty", Bytes::new()),
        ("garbage", Bytes::from(vec![0xA5; bytes.len()])),
        ("newer", newer.replacen(",}", "}", 1).into()),
        ("another's", Bytes::copy_from_slice(other)),
    ]
}

#[tokio::test]
async fn a_damaged_intent_or_verdict_takes_its_own_backup_away_and_no_other() {
    for object in [BackupObject::Intent, BackupObject::Verdict] {
        for n in 0..5 {
            let system = opened().await;
            store_backup(&system, 1).await;
            store_backup(&system, 2).await;
            let key = |n: u32| system.keys().backup(&id(n), object);
            let read = async |n: u32| system.store().get(&key(n)).await.unwrap().unwrap();
            let (how, bytes) = damages(&read(1).await, &read(2).await)[n].clone();
            system.store().delete(&key(1)).await.unwrap();
            system.store().create(&key(1), bytes).await.unwrap();
            let catalog = system.catalog().await.unwrap();
            let BackupState::Unreadable(what) = &catalog.get(&id(1)).unwrap().state else {
                panic!("{how}: {:?}", catalog.get(&id(1)))
            };
            assert!(what.contains(&key(1)), "{how}: {what}");
            assert_eq!(catalog.complete().map(|b| &b.id).collect::<Vec<_>>(), [&id(2)], "{how}");
            system.expire(&id(1), "test", now()).await.unwrap();
            assert_eq!(state(&system, 1).await, BackupState::Expired, "{how}");
        }
    }
}

#[tokio::test]
async fn a_lease_whose_verdict_is_damaged_is_free() {
    let system = opened().await;
    let intent = intent(1);
    system.begin_backup(&intent, &LeaseState::Free { next: 1 }, now()).await.unwrap();
    let key = system.keys().backup(&id(1), BackupObject::Verdict);
    system.store().create(&key, "{}").await.unwrap();
    assert_eq!(system.lease_state().await.unwrap(), LeaseState::Free { next: 2 });
}

#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_makes_no_backup_unreadable() {
    let system = opened().await;
    store_backup(&system, 1).await;
    let (store, faults) = system.store().with_faults(crate::store::Policy::default());
    let faulty = Repository::new(store, "cloud", "main".parse().unwrap(), true);
    let faulty = faulty.open(SystemId::new(SYSTEM)).await.unwrap();
    for rule in [
        "fail@open/intent.json:1+",
        "fail@open/backup.json:1+",
        "deny@open/intent.json:1+",
        "short@open/backup.json:1+",
    ] {
        faults.clear();
        faults.add(rule).unwrap();
        assert!(matches!(faulty.catalog().await, Err(RepoError::Store(_))), "{rule}");
    }
}

#[tokio::test]
async fn a_backup_that_lost_an_object_is_damaged_and_so_is_one_that_refers_to_it() {
    let system = opened().await;
    store_backup(&system, 1).await;
    let second = intent(2);
    let mut verdict = backup(&second);
    verdict.packs = PackTotals::default();
    verdict.references = vec![PackRefs { backup: id(1), packs: [0].into_iter().collect() }];
    system.create_intent(&second).await.unwrap();
    system
        .put_backup_object(&second.id, BackupObject::Manifest, Bytes::from_static(b"manifest"))
        .await
        .unwrap();
    system.publish(&verdict).await.unwrap();
    assert_eq!(
        [state(&system, 1).await, state(&system, 2).await],
        [BackupState::Complete, BackupState::Complete]
    );
    system.store().delete(&system.keys().backup(&id(1), BackupObject::Pack(0))).await.unwrap();
    assert_eq!(state(&system, 1).await, BackupState::Damaged("pack 0 is missing".to_owned()));
    assert_eq!(
        state(&system, 2).await,
        BackupState::Damaged(format!("pack 0 of backup {} is missing", id(1)))
    );
    assert_eq!(system.catalog().await.unwrap().complete().count(), 0);
}

#[tokio::test]
async fn a_pack_is_created_once_and_other_bytes_are_a_conflict() {
    let system = opened().await;
    let put = async |bytes| {
        system.put_backup_object(&id(1), BackupObject::Pack(0), Bytes::from_static(bytes)).await
    };
    put(b"pack").await.unwrap();
    put(b"pack").await.unwrap();
    assert!(matches!(put(b"kcap").await, Err(RepoError::Conflict { .. })));
    assert!(matches!(put(b"longer").await, Err(RepoError::Conflict { .. })));
}

#[tokio::test]
async fn one_backup_at_a_time_and_the_next_after_a_verdict() {
    let system = opened().await;
    let first = system.lease_state().await.unwrap();
    assert_eq!(first, LeaseState::Free { next: 1 });
    system.begin_backup(&intent(1), &first, now()).await.unwrap();
    let held = system.lease_state().await.unwrap();
    assert!(matches!(&held, LeaseState::Held(lease) if lease.backup == id(1)));
    assert!(matches!(system.begin_backup(&intent(2), &held, now()).await, Err(RepoError::Busy { .. })));
    assert!(
        !listing(&system).await.iter().any(|key| key.contains(id(2).as_str())),
        "nothing is written while held"
    );
    // Asked before the first one took it: the loser abandons its own intent.
    assert!(matches!(system.begin_backup(&intent(3), &first, now()).await, Err(RepoError::Busy { .. })));
    assert_eq!(state(&system, 3).await, BackupState::Abandoned);
    system.abandon(&id(1), "ended", now()).await.unwrap();
    assert_eq!(system.lease_state().await.unwrap(), LeaseState::Free { next: 2 });
}

#[tokio::test]
async fn the_lease_of_a_dead_process_is_taken_over_after_its_backup_is_abandoned() {
    let system = opened().await;
    let mut dead = intent(1);
    dead.process.pid = u32::MAX;
    system.begin_backup(&dead, &LeaseState::Free { next: 1 }, now()).await.unwrap();
    let state_before = system.lease_state().await.unwrap();
    assert!(matches!(&state_before, LeaseState::Stale { lease, next: 2 } if lease.backup == id(1)));
    system.begin_backup(&intent(2), &state_before, now()).await.unwrap();
    assert_eq!(state(&system, 1).await, BackupState::Abandoned);
    assert!(matches!(system.publish(&backup(&dead)).await, Err(RepoError::Abandoned { .. })));
    assert!(matches!(system.lease_state().await.unwrap(), LeaseState::Held(lease) if lease.backup == id(2)));
    assert!(!listing(&system).await.iter().any(|key| key.contains("probe")), "what told the time is gone");
}

#[tokio::test]
async fn many_backups_at_once_leave_one_that_holds_the_lease() {
    let system = opened().await;
    let state = system.lease_state().await.unwrap();
    let intents: Vec<_> = (1..6).map(intent).collect();
    let results = join_all(intents.iter().map(|i| system.begin_backup(i, &state, now()))).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    let catalog = system.catalog().await.unwrap();
    let unfinished: Vec<_> = catalog.backups.iter().filter(|b| b.state == BackupState::Unfinished).collect();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(catalog.backups.len(), 5);
}

#[tokio::test]
async fn a_pin_holds_only_what_has_not_expired() {
    let system = opened().await;
    store_backup(&system, 1).await;
    let pin = async || system.pin(PinKind::Reader, &id(1), segment(), "restore", now()).await;
    let Pinned::Yes(pinned) = pin().await.unwrap() else { unreachable!() };
    assert_eq!(system.pins().await.unwrap().iter().filter(|p| !p.released).count(), 1);
    system.release(&pinned).await.unwrap();
    system.release(&pinned).await.unwrap();
    assert_eq!(system.pins().await.unwrap().iter().filter(|p| !p.released).count(), 0);
    system.expire(&id(1), "test", now()).await.unwrap();
    assert!(matches!(pin().await, Err(RepoError::Expired { .. })));
    assert_eq!(system.pins().await.unwrap().iter().filter(|p| !p.released).count(), 0);
}

#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_a_success_and_a_store_that_is_down_never_proves_absence() {
    let system = opened().await;
    let (store, faults) = system.store().with_faults(crate::store::Policy::default());
    let faulty = Repository::new(store, "cloud", "main".parse().unwrap(), true);
    let faulty = faulty.open(SystemId::new(SYSTEM)).await.unwrap();
    faults.add("lost@create:1").unwrap();
    let object = copy(&faulty, MIB, SegmentEnd::Full, 5);
    assert!(matches!(faulty.put_wal(&object).await.unwrap(), Stored::New | Stored::AlreadyThere));
    faults.add("lost@create/backup.json:1").unwrap();
    store_backup(&faulty, 1).await;
    assert_eq!(state(&faulty, 1).await, BackupState::Complete);
    for call in ["open", "head", "list"] {
        faults.clear();
        faults.add(&format!("fail@{call}:1+")).unwrap();
        assert!(matches!(faulty.absence(nth(9)).await, Err(RepoError::Store(_))), "{call}");
    }
    faults.clear();
    faults.add("deny@create/pins:1+").unwrap();
    let pinned = faulty.pin(PinKind::Reader, &id(1), segment(), "restore", now()).await.unwrap();
    assert!(matches!(pinned, Pinned::NotAllowed(_)));
}

#[test]
fn runs_end_where_a_segment_is_missing() {
    let size = SegmentSize::DEFAULT;
    let name = |n| SegmentName::new(TimelineId::FIRST, SegmentNo::new(n), size);
    let found = runs([254, 255, 256, 258, 260, 261].map(name), size);
    let run = |first, last| Run { first: name(first), last: name(last) };
    assert_eq!(found, [run(254, 256), run(258, 258), run(260, 261)]);
    let lsn = |segment: u64, offset: u64| Lsn::new(segment * size.bytes() + offset);
    let complete = |start, stop| wal_complete(&found, TimelineId::FIRST, size, start, stop);
    assert_eq!(complete(lsn(254, 40), lsn(256, 8)), Ok(()));
    assert_eq!(complete(lsn(254, 40), lsn(257, 0)), Ok(()), "a stop on the border needs no more");
    assert_eq!(complete(lsn(254, 40), lsn(257, 1)), Err(name(257)));
    assert_eq!(complete(lsn(259, 0), lsn(259, 0)), Err(name(259)));
    assert_eq!(complete(lsn(258, 0), lsn(261, 9)), Err(name(259)));
}
