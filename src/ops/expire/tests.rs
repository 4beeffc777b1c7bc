//! Runs of `expire` on small repositories in memory, where a whole server would add nothing: failures, pins, other repositories, clocks.
//!
//! Backups are a pack and a manifest of a few bytes, WAL is a name: what decides here reads neither. There is no grace unless a test
//! says so, so that a second run deletes what the first one gave up.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Unit};

use super::*;
use crate::clock::{Clock as _, SystemClock};
use crate::codec::Compression;
use crate::ops::Silent;
use crate::repo::objects::{Backup, BackupKind, Checksums, Intent, KeptRange};
use crate::repo::path::Sealing;
use crate::repo::walobject::tests::scan;
use crate::repo::walobject::{Facts, WalObjectBuilder};
use crate::repo::{NewIdentity, nonce, this_process};
use crate::store::{Store, StoreOptions, StoreUrl};
use crate::wal::scan::SegmentEnd;
use crate::wal::{Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId, WalFileName};

const SYSTEM: SystemId = SystemId::new(7_301_234_567_890_123_456);
const MIB: u64 = 1 << 20;

fn now() -> Timestamp {
    SystemClock.now()
}

fn nth(n: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, SegmentNo::new(n), SegmentSize::new(MIB).unwrap())
}

/// No grace, and every moment of the last hour.
fn hour() -> Policy {
    Policy { window: Duration::from_secs(3600), grace: Duration::ZERO, ..Policy::default() }
}

struct World {
    repository: Repository,
    system: System,
}

impl World {
    async fn new(name: &str) -> Self {
        let store = Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
        let repository = Repository::new(store, name, "main".parse().unwrap(), true);
        let facts = NewIdentity {
            system: SYSTEM,
            major: PgMajor::V15,
            segment_size: SegmentSize::new(MIB).unwrap(),
            sealing: Sealing::Plain,
        };
        let system = repository.create_identity(facts, now()).await.unwrap().0;
        Self { repository, system }
    }

    async fn create(&self, key: &str, body: &'static str) {
        self.repository.store().create(key, Bytes::from_static(body.as_bytes())).await.unwrap();
    }

    async fn wal(&self, segments: impl IntoIterator<Item = u64>) {
        for n in segments {
            self.create(&self.system.keys().wal(WalFileName::Segment(nth(n))), "wal").await;
        }
    }

    /// Begins a backup some hours ago, in the segment `segment`, and stores its files.
    async fn begin(&self, serial: u32, hours: i64, segment: u64) -> Intent {
        let started_at = (now() - SignedDuration::from_hours(hours)).round(Unit::Second).unwrap();
        let intent = Intent {
            id: BackupId::new(started_at, serial),
            nonce: nonce().unwrap(),
            cluster: "main".parse().unwrap(),
            system: SYSTEM,
            kind: BackupKind::Full,
            started_at,
            timeline: TimelineId::FIRST,
            wal_floor: nth(segment),
            references: Vec::new(),
            takes_over: None,
            process: this_process(),
        };
        self.system.create_intent(&intent).await.unwrap();
        for (object, body) in [(BackupObject::Pack(0), "pack"), (BackupObject::Manifest, "manifest")] {
            let body = Bytes::from_static(body.as_bytes());
            self.system.put_backup_object(&intent.id, object, body).await.unwrap();
        }
        intent
    }

    async fn backup(&self, serial: u32, hours: i64, segment: u64, checksums: Checksums) -> BackupId {
        let intent = self.begin(serial, hours, segment).await;
        self.create(&self.system.keys().wal(WalFileName::Segment(nth(segment))), "wal").await;
        let ended = intent.started_at + 1.minute();
        let backup = Backup {
            start_lsn: Lsn::new(segment * MIB + 40),
            stop_lsn: Lsn::new(segment * MIB + 400),
            started_at: intent.started_at,
            finished_at: ended,
            stop_time: ended,
            checksums,
            ..crate::repo::tests::backup(&intent)
        };
        self.system.publish(&backup).await.unwrap();
        intent.id
    }

    async fn run(&self, policy: Policy, others: &[Repository]) -> SystemReport {
        let request = ExpireRequest { policy: Some(policy), zone: TimeZone::UTC, now: now(), dry_run: false };
        expire(&self.repository, others, &request, &Silent).await.unwrap().remove(0)
    }

    /// What is left of a backup.
    async fn files(&self, id: &BackupId) -> Vec<String> {
        let dir = format!("{}{id}/", self.system.keys().backups_dir());
        let objects = self.repository.store().list(&dir).await.unwrap();
        objects.into_iter().map(|o| o.key.replacen(&dir, "", 1)).collect()
    }

    async fn backups(&self) -> BTreeSet<BackupId> {
        self.system.catalog().await.unwrap().complete().map(|b| b.id.clone()).collect()
    }

    /// The WAL that is left, by the last digits of its segments and what follows them.
    async fn left(&self) -> Vec<String> {
        let (dir, folder) = (self.system.keys().wal_dir(), self.system.keys().segment_dir(nth(0)));
        let objects = self.repository.store().list(&dir).await.unwrap();
        let common = format!("{folder}0000000100000000000000");
        objects.into_iter().map(|o| o.key.replacen(&common, "", 1)).collect()
    }
}

fn is_failing(report: &SystemReport, id: &BackupId) -> bool {
    let frozen = report.plan.as_ref().unwrap().frozen.as_ref();
    matches!(frozen, Some(Freeze::Failing(failure)) if failure.id == *id)
}

const SIGNS: [&str; 2] = ["backup.json", "intent.json"];

#[tokio::test]
async fn what_froze_retention_is_deleted_no_sooner_than_a_sound_backup_came() {
    let world = World::new("local").await;
    let first = world.backup(1, 30, 3, Checksums::Ok).await;
    let second = world.backup(2, 20, 5, Checksums::Ok).await;
    let older = world.begin(3, 4, 6).await.id;
    let failed = world.begin(4, 3, 6).await.id;
    for id in [&older, &failed] {
        world.system.abandon(id, "disk full", now()).await.unwrap();
    }
    for _ in 0..3 {
        let report = world.run(hour(), &[]).await;
        assert!(is_failing(&report, &failed) && report.plan.unwrap().go.is_empty());
        assert_eq!(world.files(&failed).await, SIGNS, "it fills no store, and says that backups fail");
        assert!(world.files(&older).await.is_empty());
    }
    let third = world.backup(5, 0, 7, Checksums::Ok).await;
    world.run(hour(), &[]).await;
    assert!(world.files(&failed).await.is_empty());
    assert_eq!(world.backups().await, BTreeSet::from([second, third]), "{first} is given up");
}

#[tokio::test]
async fn without_a_sound_backup_one_that_is_said_to_be_abandoned_stays_if_its_files_do() {
    let world = World::new("local").await;
    let whole = world.begin(1, 30, 3).await.id;
    let half = world.begin(2, 3, 5).await.id;
    let manifest = world.system.keys().backup(&half, BackupObject::Manifest);
    world.repository.store().delete(&manifest).await.unwrap();
    for id in [&whole, &half] {
        world.system.abandon(id, "I say so", now()).await.unwrap();
    }
    let all = world.files(&whole).await;
    for _ in 0..2 {
        world.run(hour(), &[]).await;
        assert_eq!(world.files(&whole).await, all);
        assert!(world.files(&half).await.is_empty());
    }
    world.backup(3, 0, 7, Checksums::Ok).await;
    world.run(hour(), &[]).await;
    assert!(world.files(&whole).await.is_empty());
}

#[tokio::test]
async fn a_corrupt_backup_can_be_pinned_and_stays() {
    let world = World::new("local").await;
    let sound = world.backup(1, 30, 3, Checksums::Ok).await;
    let wanted = world.backup(2, 20, 4, Checksums::Corrupt).await;
    let other = world.backup(3, 18, 5, Checksums::Corrupt).await;
    let newest = world.backup(4, 10, 6, Checksums::Corrupt).await;
    let repositories = [world.repository.clone()];
    let pinned = crate::ops::pin::pin(&repositories, &wanted, "the row of 1987", false, now()).await.unwrap();
    assert_eq!(pinned.len(), 1);
    for _ in 0..2 {
        world.run(hour(), &[]).await;
    }
    assert_eq!(world.backups().await, BTreeSet::from([sound.clone(), wanted.clone(), newest.clone()]));
    assert!(world.files(&other).await.is_empty() && world.files(&wanted).await.len() == 4);
    crate::ops::pin::unpin(&repositories, &wanted).await.unwrap();
    world.run(hour(), &[]).await;
    assert_eq!(world.backups().await, BTreeSet::from([sound, newest]));
}

/// Whoever may write can make names, of encrypted repositories too. Without a window only the newest timeline tells what is behind a backup.
#[tokio::test]
async fn a_name_of_a_timeline_that_nothing_leads_to_gives_nothing_up_and_raises_no_floor() {
    let world = World::new("local").await;
    world.backup(1, 30, 3, Checksums::Ok).await;
    world.backup(2, 20, 5, Checksums::Ok).await;
    world.wal(6..=9).await;
    let size = SegmentSize::new(MIB).unwrap();
    for (timeline, number) in [(u32::MAX, 0), (2, SegmentNo::containing(Lsn::MAX, size).get())] {
        let name = SegmentName::new(TimelineId::new(timeline).unwrap(), SegmentNo::new(number), size);
        world.create(&world.system.keys().wal(WalFileName::Segment(name)), "no WAL").await;
    }
    let daily = Duration::from_secs(30 * 86_400);
    let policy = Policy { daily, grace: Duration::ZERO, ..Policy::default() };
    for _ in 0..3 {
        let report = world.run(policy, &[]).await;
        let told = report.notes.iter().filter(|note| note.contains("neither counted on nor given up"));
        assert_eq!(told.count(), 2, "{:?}", report.notes);
    }
    let left = world.left().await;
    assert!(["05.wal", "06.wal", "09.wal"].iter().all(|name| left.contains(&(*name).to_owned())), "{left:?}");
    let floor = world.system.floor().await.unwrap();
    let lines = floor.iter().flat_map(|floor| &floor.timelines);
    assert!(lines.clone().all(|line| line.timeline == TimelineId::FIRST), "{floor:?}");
}

/// A repository that gives up segments 3 to 7, of which all that another has goes.
async fn giving_up() -> World {
    let world = World::new("here").await;
    world.wal(4..=7).await;
    world.backup(1, 30, 3, Checksums::Ok).await;
    world.backup(2, 20, 8, Checksums::Ok).await;
    world
}

fn copy_of(world: &World, n: u64, copy: &str) -> String {
    let first = world.system.keys().wal(WalFileName::Segment(nth(n)));
    first.replace(".wal", &format!(".{copy}"))
}

#[tokio::test]
async fn a_segment_of_which_another_repository_has_fewer_copies_stays() {
    let (here, there) = (giving_up().await, World::new("there").await);
    here.create(&copy_of(&here, 5, "2.wal"), "more wal").await;
    there.wal(3..=8).await;
    let others = [there.repository.clone()];
    let report = here.run(hour(), &others).await;
    assert_eq!(report.notes, ["1 segments stay because repository there lacks them"]);
    here.run(hour(), &others).await;
    assert_eq!(here.left().await, ["05.2.wal", "05.wal", "08.wal"]);
    there.create(&copy_of(&there, 5, "2.wal"), "more wal").await;
    here.run(hour(), &others).await;
    assert_eq!(here.left().await, ["08.wal"]);
}

#[tokio::test]
async fn a_segment_that_another_repository_accepted_with_damage_stays() {
    let (here, there) = (giving_up().await, World::new("there").await);
    there.wal([3, 5, 7, 8]).await;
    // Of both it is known that they were accepted; of the sixth a good copy has come.
    for (n, facts) in [(4, Facts::Damaged(None)), (6, Facts::Unscanned)] {
        let name = WalFileName::Segment(nth(n));
        let mut scan = scan(MIB, SegmentEnd::Full);
        (scan.name, scan.start, scan.valid_to) = (nth(n), Lsn::new(n * MIB), Lsn::new((n + 1) * MIB));
        let facts = if matches!(facts, Facts::Unscanned) { Facts::Scanned(&scan) } else { facts };
        let compression = Compression::Zstd { level: 1 };
        let mut builder = WalObjectBuilder::new(there.system.asked(name), MIB, compression).unwrap();
        builder.push(&[7; 1 << 20]).unwrap();
        there.system.put_wal(&builder.finish(facts).unwrap()).await.unwrap();
        there.create(&copy_of(&there, n, "gap.json"), "{}").await;
    }
    let others = [there.repository.clone()];
    for _ in 0..2 {
        here.run(hour(), &others).await;
    }
    assert_eq!(here.left().await, ["04.wal", "08.wal"]);
}

#[tokio::test]
async fn of_what_another_repository_lacks_it_wants_what_its_floor_keeps() {
    let (here, there) = (giving_up().await, World::new("there").await);
    there.wal([8]).await;
    let kept = KeptRange { first: nth(4), last: nth(5) };
    let line = TimelineFloor { timeline: TimelineId::FIRST, first: nth(7), keep: vec![kept] };
    there.system.raise_floor(|_| Some(vec![line.clone()]), now()).await.unwrap();
    let others = [there.repository.clone()];
    let report = here.run(hour(), &others).await;
    assert_eq!(report.notes, ["3 segments stay because repository there lacks them"]);
    for _ in 0..2 {
        here.run(hour(), &others).await;
    }
    assert_eq!(here.left().await, ["04.wal", "05.wal", "07.wal", "08.wal"]);
}

#[tokio::test]
async fn a_chosen_backup_is_no_older_for_a_host_whose_clock_runs_ahead() {
    let world = World::new("local").await;
    let first = world.backup(1, 2, 3, Checksums::Ok).await;
    world.backup(2, 0, 5, Checksums::Ok).await;
    for ahead in [0, 30, 9600] {
        let request = OneRequest {
            id: first.clone(),
            policy: Some(hour()),
            below_promise: false,
            dry_run: false,
            now: now() + SignedDuration::from_hours(ahead),
        };
        let refused = one(&world.repository, &request).await.unwrap_err();
        assert_eq!(refused.kind(), crate::error::Kind::Refused, "{ahead} hours: {refused}");
    }
    assert_eq!(world.backups().await.len(), 2);
}
