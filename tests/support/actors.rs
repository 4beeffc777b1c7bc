//! Writers, readers and expirers of one repository, as actors under a schedule, and the auditor that watches them.
//!
//! ```text
//!  writer    (lease) ─► intent ─► parent usable? floor? ─► packs, WAL ─► verdict    pitr's own calls, with packs of a few bytes
//!  reader    pin ─► (tombstone?) ─► reads for a while ─► release
//!  planner   looks at what is there, tells nobody, and reads for as long as the grace
//!  expirer   ops::expire::expire
//!  auditor   after every step: what is complete, pinned and read, or planned within the grace misses nothing
//! ```
//! Model: a backup's packs may be its own or its parent's; its WAL is some segments of timeline 1. The auditor reads the raw store, by
//! names it builds itself, and judges by presence alone; and of two who decide about one backup, only one may believe that he did.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pitr::codec::Digest;
use pitr::ops::Silent;
use pitr::ops::expire::{ExpireRequest, expire};
use pitr::repo::lease::LeaseState;
use pitr::repo::objects::{
    Backup, BackupKind, Checksums, Intent, Nonce, ObjectRef, PackRefs, PackTotals, Status, Verdict,
};
use pitr::repo::path::{BackupId, BackupObject, PinKind, Sealing};
use pitr::repo::pins::{Pinned, READER_COUNTS};
use pitr::repo::retention::Policy;
use pitr::repo::{NewIdentity, Repository, System, nonce, this_process};
use pitr::store::schedule::{Actor, Schedule};
use pitr::store::{Store, StoreOptions};
use pitr::wal::{Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId, WalFileName};

const SYSTEM: u64 = 7_301_234_567_890_123_456;
const MIB: u64 = 1 << 20;
/// Packs of each backup.
const PACKS: u32 = 2;

/// One repository, the actors' common knowledge, and what they did.
#[derive(Debug)]
pub struct Scene {
    /// The order of things.
    pub schedule: Schedule,
    /// What lies beneath all.
    pub plain: Store,
    shared: Rc<RefCell<Shared>>,
    next_actor: usize,
    /// Whether time passes at all. Where it does not, every age is zero, and order alone protects.
    clock_moves: bool,
}

#[derive(Debug, Default)]
struct Shared {
    /// The segment that the server writes now.
    segment: u64,
    backups: u32,
    /// Backups that a reader has pinned and found usable, until when its pin counts.
    reading: BTreeMap<usize, (BackupId, Timestamp)>,
    /// Backups whose writer was told that they are complete.
    acknowledged: BTreeMap<BackupId, Nonce>,
    /// What restores need that were planned and not announced, until when the grace keeps it.
    planned: Vec<(Timestamp, BTreeSet<String>)>,
    tally: BTreeMap<&'static str, u64>,
    failures: Vec<String>,
}

impl Scene {
    /// A repository with an identity and one complete backup, in memory or in a directory.
    pub async fn new(seed: u64, url: &str, clock_moves: bool) -> Result<Self> {
        let schedule = Schedule::new(seed, "2025-10-17T10:30:00Z".parse()?);
        let plain = Store::open(&url.parse()?, &StoreOptions::default())?;
        plain.make_root().await?;
        let shared = Shared { segment: 10, ..Shared::default() };
        let scene =
            Self { schedule, plain, shared: Rc::new(RefCell::new(shared)), next_actor: 0, clock_moves };
        let repository = repository(scene.schedule.free(&scene.plain))?;
        let facts = NewIdentity {
            system: SystemId::new(SYSTEM),
            major: PgMajor::V15,
            segment_size: size(),
            sealing: Sealing::Plain,
        };
        repository.create_identity(facts, scene.schedule.now()).await?;
        let writer = scene.writer_on(&scene.schedule.free(&scene.plain), usize::MAX, 0);
        writer.write().await?;
        Ok(scene)
    }

    /// Time passes, if it does.
    pub fn pass(&self, span: SignedDuration) {
        if self.clock_moves {
            self.schedule.advance(span);
        }
    }

    fn number(&mut self) -> usize {
        self.next_actor += 1;
        self.next_actor
    }

    fn writer_on(&self, store: &Store, number: usize, behind: u64) -> Writer {
        let (schedule, shared) = (self.schedule.clone(), Rc::clone(&self.shared));
        let clock_moves = self.clock_moves;
        // Where time stands still a lease never becomes stale: who died with it would keep everybody out.
        let courteous = clock_moves && number != usize::MAX && self.schedule.one_in(2);
        Writer { store: store.clone(), schedule, shared, number, behind, clock_moves, courteous }
    }

    /// A writer whose server lies `behind` segments behind what is stored, as a standby may.
    pub fn writer(&mut self, behind: u64) -> Actor<'static> {
        let number = self.number();
        let writer = self.writer_on(&self.schedule.store(&self.plain, number), number, behind);
        let shared = Rc::clone(&self.shared);
        Actor::new(number, async move {
            let done = writer.write().await;
            note(&shared, if done.is_ok() { "backups completed" } else { "backups given up" });
        })
    }

    /// A run of expire, keeping what `policy` says.
    pub fn expirer(&mut self, policy: Policy) -> Actor<'static> {
        let number = self.number();
        let store = self.schedule.store(&self.plain, number);
        let (schedule, shared) = (self.schedule.clone(), Rc::clone(&self.shared));
        Actor::new(number, async move {
            let request = ExpireRequest {
                policy: Some(policy),
                zone: TimeZone::UTC,
                now: schedule.now(),
                dry_run: false,
            };
            let done = match repository(store) {
                Ok(repository) => Box::pin(expire(&repository, &[], &request, &Silent)).await,
                Err(e) => return fail(&shared, format!("{e:#}")),
            };
            match done {
                Ok(reports) => {
                    let deleted = reports.iter().map(|report| &report.deleted);
                    for done in deleted {
                        add(&shared, "backups deleted", u64::try_from(done.backups.len()).unwrap_or(0));
                        add(&shared, "backups kept in part", u64::try_from(done.remain.len()).unwrap_or(0));
                        add(&shared, "WAL deleted", done.wal_objects);
                    }
                    let frozen = |r: &pitr::ops::expire::SystemReport| {
                        r.plan.as_ref().is_some_and(|plan| plan.frozen.is_some())
                    };
                    add(&shared, "runs frozen", u64::from(reports.iter().any(frozen)));
                    note(&shared, "runs of expire");
                }
                // Two runs at once may take a small object from under each other, and a store may lose every reply; nothing was lost by it.
                Err(error) => {
                    note(&shared, "runs of expire given up");
                    let report = error.report();
                    if !(report.contains("missing") || report.contains("injected loss")) {
                        fail(&shared, report);
                    }
                }
            }
        })
    }

    /// A restore: pins a backup that it finds usable, and reads it for a while.
    pub fn reader(&mut self) -> Actor<'static> {
        let number = self.number();
        let store = self.schedule.store(&self.plain, number);
        let (schedule, shared) = (self.schedule.clone(), Rc::clone(&self.shared));
        Actor::new(number, async move {
            let read = read(store, &schedule, &shared, number).await;
            note(&shared, if read.is_ok_and(|read| read) { "restores" } else { "restores refused" });
            shared.borrow_mut().reading.remove(&number);
        })
    }

    /// A restore by somebody who may not pin, to the end of all WAL: from when it looked it has the grace.
    pub fn planner(&mut self, grace: SignedDuration) -> Actor<'static> {
        let number = self.number();
        let store = self.schedule.store(&self.plain, number);
        let (schedule, shared) = (self.schedule.clone(), Rc::clone(&self.shared));
        Actor::new(number, async move {
            let until = schedule.now() + grace;
            if let Ok(Some(needed)) = look(store, &schedule).await {
                shared.borrow_mut().planned.push((until, needed));
                note(&shared, "restores planned");
            }
        })
    }

    /// Somebody gives up any one backup, whatever retention says.
    pub fn operator(&mut self) -> Actor<'static> {
        let number = self.number();
        let store = self.schedule.store(&self.plain, number);
        let (schedule, shared) = (self.schedule.clone(), Rc::clone(&self.shared));
        Actor::new(number, async move {
            let work = async {
                let system = repository(store)?.open(SystemId::new(SYSTEM)).await?;
                let catalog = system.catalog().await?;
                let complete: Vec<_> = catalog.complete().map(|b| b.id.clone()).collect();
                if let Some(id) = complete.get(schedule.below(complete.len())) {
                    system.expire(id, "chosen", schedule.now()).await?;
                }
                anyhow::Ok(())
            };
            work.await.ok();
            note(&shared, "tombstones by hand");
        })
    }

    /// A process that was killed reads no more.
    pub fn killed(&self, actor: &Actor<'_>) {
        self.shared.borrow_mut().reading.remove(&actor.number());
        note(&self.shared, "kills");
    }

    /// How often what happened.
    pub fn tally(&self) -> BTreeMap<&'static str, u64> {
        self.shared.borrow().tally.clone()
    }

    /// Fails if an actor did, or if anything that must be there is not.
    pub async fn audit(&self) -> Result<()> {
        let failures = self.shared.borrow().failures.clone();
        ensure!(failures.is_empty(), "{failures:?}");
        let objects: BTreeSet<String> = self.plain.list("").await?.into_iter().map(|info| info.key).collect();
        let now = self.schedule.now();
        self.shared.borrow_mut().planned.retain(|(until, _)| now < *until);
        for (until, needed) in &self.shared.borrow().planned {
            let missing: Vec<_> = needed.difference(&objects).collect();
            ensure!(missing.is_empty(), "a restore that has until {until} lost {missing:?}");
        }
        let verdicts: Vec<&String> = objects.iter().filter(|key| key.ends_with("/backup.json")).collect();
        for key in verdicts {
            let folder = key.trim_end_matches("backup.json");
            let id = folder.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            let reading = self.is_read(id);
            if objects.contains(&format!("{folder}expired.json")) && !reading {
                continue;
            }
            let bytes = self.plain.get(key).await?.context("between steps nothing moves")?;
            let verdict = Verdict::decode(&bytes)?;
            self.only_one_believes(id, &verdict, objects.contains(&format!("{folder}intent.json")))?;
            let Verdict::Complete(backup) = verdict else { continue };
            let intent = self.plain.get(&format!("{folder}intent.json")).await?;
            let owner = intent.map(|bytes| pitr::repo::objects::decode::<Intent>(&bytes)).transpose()?;
            let needed = needed(&backup);
            if reading {
                let missing: Vec<_> = needed.iter().filter(|key| !objects.contains(*key)).collect();
                ensure!(missing.is_empty(), "backup {id}, which is being restored, lost {missing:?}");
            } else if owner.is_some_and(|intent| intent.nonce == backup.nonce) {
                let missing: Vec<_> = needed.iter().filter(|key| !objects.contains(*key)).collect();
                ensure!(missing.is_empty(), "complete backup {id} lost {missing:?}");
            }
        }
        Ok(())
    }

    /// A backup whose writer was told "complete" was abandoned by nobody, as long as it is not deleted.
    fn only_one_believes(&self, id: &str, verdict: &Verdict, owned: bool) -> Result<()> {
        let shared = self.shared.borrow();
        let told =
            shared.acknowledged.iter().find(|(known, _)| known.as_str() == id).map(|(_, nonce)| *nonce);
        let complete = matches!(verdict, Verdict::Complete(backup) if Some(backup.nonce) == told);
        ensure!(told.is_none() || complete || !owned, "{id} was acknowledged, and is {verdict:?}");
        Ok(())
    }

    fn is_read(&self, id: &str) -> bool {
        let shared = self.shared.borrow();
        shared.reading.values().any(|(read, until)| read.as_str() == id && self.schedule.now() < *until)
    }
}

/// The keys of everything that a backup needs.
fn needed(backup: &Backup) -> Vec<String> {
    let root = format!("main/{SYSTEM}/");
    let pack = |id: &BackupId, n: u32| format!("{root}backups/{id}/pack-{n:05}.tar.zst");
    let own = (0..backup.packs.count).map(|n| pack(&backup.id, n));
    let foreign =
        backup.references.iter().flat_map(|refs| refs.packs.iter().map(move |n| pack(&refs.backup, n)));
    let wal = (backup.start_lsn.get() / MIB..=(backup.stop_lsn.get() - 1) / MIB).map(|n| {
        let name = format!("00000001{:08X}{:08X}", n / 4096, n % 4096);
        format!("{root}wal/00000001/{:08X}/{name}.wal", n / 4096)
    });
    let manifest = format!("{root}backups/{}/manifest.jsonl.zst", backup.id);
    own.chain(foreign).chain(wal).chain([manifest]).collect()
}

/// What some complete backup needs, and all WAL after it that is promised.
async fn look(store: Store, schedule: &Schedule) -> Result<Option<BTreeSet<String>>> {
    let system = repository(store)?.open(SystemId::new(SYSTEM)).await?;
    let catalog = system.catalog().await?;
    let complete: Vec<&Backup> = catalog.complete().collect();
    let Some(backup) = complete.get(schedule.below(complete.len())) else { return Ok(None) };
    let floor = system.floor().await?;
    let mut all: BTreeSet<String> = needed(backup).into_iter().collect();
    for folder in system.wal_folders(TimelineId::FIRST).await? {
        let promised = |name: SegmentName| {
            name >= backup.wal_floor && floor.as_ref().is_none_or(|floor| floor.keeps_from(name))
        };
        let stored = system.wal_in(&folder).await?;
        all.extend(
            stored.into_iter().filter(|listed| promised(listed.segment)).map(|listed| listed.object.key),
        );
    }
    Ok(Some(all))
}

fn note(shared: &RefCell<Shared>, what: &'static str) {
    add(shared, what, 1);
}

fn add(shared: &RefCell<Shared>, what: &'static str, n: u64) {
    *shared.borrow_mut().tally.entry(what).or_default() += n;
}

fn fail(shared: &RefCell<Shared>, what: String) {
    shared.borrow_mut().failures.push(what);
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).expect("a power of two")
}

fn segment(number: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, SegmentNo::new(number), size())
}

fn repository(store: Store) -> Result<Repository> {
    Ok(Repository::new(store, "only", "main".parse()?, true))
}

async fn read(store: Store, schedule: &Schedule, shared: &RefCell<Shared>, number: usize) -> Result<bool> {
    let system = repository(store)?.open(SystemId::new(SYSTEM)).await?;
    let catalog = system.catalog().await?;
    let complete: Vec<&Backup> = catalog.complete().collect();
    let Some(backup) = complete.get(schedule.below(complete.len())).map(|b| (*b).clone()) else {
        return Ok(false);
    };
    let until = schedule.now() + READER_COUNTS;
    let pinned = system.pin(PinKind::Reader, &backup.id, backup.wal_floor, "restore", schedule.now()).await?;
    let Pinned::Yes(pin) = pinned else { return Ok(false) };
    // WAL may have gone between the plan and the pin: a restore notices, and reads nothing.
    if system.floor().await?.is_some_and(|floor| !floor.keeps(backup.wal_floor)) {
        system.release(&pin).await?;
        return Ok(false);
    }
    shared.borrow_mut().reading.insert(number, (backup.id.clone(), until));
    for n in 0..6 {
        let key = system.keys().backup(&backup.id, BackupObject::Pack(n % PACKS));
        let found = system.repository().store().get(&key).await?.is_some();
        // A reader that is slower than its pin counts would have renewed it.
        ensure!(found || schedule.now() >= until, "{key} is not there");
    }
    shared.borrow_mut().reading.remove(&number);
    system.release(&pin).await?;
    Ok(true)
}

struct Writer {
    store: Store,
    schedule: Schedule,
    shared: Rc<RefCell<Shared>>,
    number: usize,
    behind: u64,
    clock_moves: bool,
    /// It asks for the lease, and waits for no one.
    courteous: bool,
}

impl Writer {
    async fn write(&self) -> Result<()> {
        let system = repository(self.store.clone())?.open(SystemId::new(SYSTEM)).await?;
        let parent = self.parent(&system).await?;
        let (first, serial) = {
            let mut shared = self.shared.borrow_mut();
            shared.segment += 1;
            shared.backups += 1;
            (shared.segment - self.behind.min(shared.segment - 1), shared.backups)
        };
        let now = self.schedule.now();
        // Hosts' clocks differ: a backup may be listed before the one whose packs it refers to.
        let skew = SignedDuration::from_hours(i64::try_from(self.schedule.below(40))?);
        let intent = self.intent(BackupId::new(now - skew, serial), first, parent.as_ref(), now)?;
        let (lease, intent) = self.lease(&system, intent, serial).await?;
        system.begin_backup(&intent, &lease, now).await?;
        let references = match &parent {
            Some(parent) if system.usable_parent(&parent.id).await?.is_some() => intent.references.clone(),
            _ => Vec::new(),
        };
        for n in 0..PACKS {
            system.put_backup_object(&intent.id, BackupObject::Pack(n), pack()).await?;
        }
        system.put_backup_object(&intent.id, BackupObject::Manifest, Bytes::from_static(b"files")).await?;
        self.archive(&system, first).await?;
        let backup = self.verdict(&intent, first, references);
        system.publish(&backup).await?;
        self.shared.borrow_mut().acknowledged.insert(backup.id.clone(), backup.nonce);
        Ok(())
    }

    /// Who holds the lease; of a dead writer it is taken over. The lease is a courtesy: the others take one that nobody asks for.
    async fn lease(&self, system: &System, intent: Intent, serial: u32) -> Result<(LeaseState, Intent)> {
        if !self.courteous {
            let next = u32::try_from(self.number % 1_000_000)? + serial * 1_000_000;
            return Ok((LeaseState::Free { next }, intent));
        }
        let state = system.lease_state().await?;
        let takes_over = match &state {
            LeaseState::Stale { lease, .. } => Some(lease.backup.clone()),
            LeaseState::Free { .. } | LeaseState::Held(_) => None,
        };
        match &state {
            LeaseState::Stale { .. } => note(&self.shared, "leases taken over"),
            LeaseState::Held(_) => note(&self.shared, "leases respected"),
            LeaseState::Free { .. } => note(&self.shared, "leases taken"),
        }
        Ok((state, Intent { takes_over, ..intent }))
    }

    /// A complete backup whose packs are referred to, or none.
    async fn parent(&self, system: &System) -> Result<Option<Backup>> {
        if self.schedule.one_in(4) {
            return Ok(None);
        }
        let catalog = system.catalog().await?;
        let complete: Vec<&Backup> = catalog.complete().collect();
        Ok(complete.get(self.schedule.below(complete.len())).map(|b| (*b).clone()))
    }

    fn intent(&self, id: BackupId, first: u64, parent: Option<&Backup>, now: Timestamp) -> Result<Intent> {
        let own = parent.map(|p| PackRefs { backup: p.id.clone(), packs: (0..p.packs.count).collect() });
        let inherited = parent.into_iter().flat_map(|p| p.references.iter().cloned());
        Ok(Intent {
            id,
            nonce: nonce()?,
            cluster: "main".parse()?,
            system: SystemId::new(SYSTEM),
            kind: BackupKind::Incremental,
            started_at: now,
            timeline: TimelineId::FIRST,
            wal_floor: segment(first),
            references: own.into_iter().chain(inherited).collect(),
            takes_over: None,
            process: this_process(),
        })
    }

    /// Waits until all WAL from the backup's start to its stop is stored. What is not there yet is pushed, if the floor takes it.
    async fn archive(&self, system: &System, first: u64) -> Result<()> {
        for number in first..=first + 1 {
            let name = WalFileName::Segment(segment(number));
            if self.store.head(&system.keys().wal(name)).await?.is_none() {
                let kept = system.floor().await?.is_none_or(|floor| floor.keeps(segment(number)));
                anyhow::ensure!(kept, "the floor lies above {name}");
                self.store.create(&system.keys().wal(name), "wal").await?;
            }
            if self.clock_moves {
                self.schedule.advance(SignedDuration::from_mins(1));
            }
        }
        Ok(())
    }

    fn verdict(&self, intent: &Intent, first: u64, references: Vec<PackRefs>) -> Backup {
        let now = self.schedule.now();
        Backup {
            status: Status::Complete,
            id: intent.id.clone(),
            nonce: intent.nonce,
            kind: intent.kind,
            cluster: intent.cluster.clone(),
            system: intent.system,
            major: PgMajor::V15,
            server_version: 150_018,
            segment_size: size(),
            timeline: intent.timeline,
            start_lsn: Lsn::new(first * MIB + 40),
            stop_lsn: Lsn::new((first + 1) * MIB + 400),
            started_at: intent.started_at,
            finished_at: now,
            stop_time: now,
            window_earliest: None,
            key: None,
            wal_floor: intent.wal_floor,
            label: String::new(),
            from_standby: self.behind > 0,
            checksums: Checksums::Ok,
            damage: Vec::new(),
            cluster_bytes: 10,
            new_bytes: 10,
            stored_bytes: 13,
            files: 1,
            tablespaces: Vec::new(),
            packs: PackTotals { count: PACKS, stored: 4 * u64::from(PACKS), plain: 10 },
            pack_digests: Vec::new(),
            references,
            manifest: ObjectRef { stored: 5, digest: Digest::of(b"files") },
            pg_manifest: None,
            catalogue: None,
            process: intent.process.clone(),
        }
    }
}

fn pack() -> Bytes {
    Bytes::from_static(b"pack")
}

/// No promise beyond the newest backup: everything goes that neither order nor the grace protects.
pub fn merciless(grace: Duration) -> Policy {
    Policy { grace, ..Policy::default() }
}
