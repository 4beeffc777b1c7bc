//! `expire`: whatever call fails, what runs that nobody disturbs keep is kept, nothing that is offered is half deleted, and the next
//! runs finish.
//!
//! ```text
//!  fresh    three backups, of which the second is pinned; one whose writer died, one abandoned; a released pin, leases
//!           ─► the run marks, abandons the silent one, raises a floor that keeps the pinned backup's WAL, deletes what is abandoned
//!  marked   the same after that run, its floor followed by another a day ago
//!           ─► the run deletes packs, manifests, signs, WAL, the old floor
//! ```
//! The repository is a directory, because ages must differ; each round gets one of hard links: objects are never changed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pitr::error::Error;
use pitr::ops::Silent;
use pitr::ops::expire::{ExpireRequest, SystemReport, expire};
use pitr::ops::pin;
use pitr::ops::verify::{self, Sample};
use pitr::repo::objects::{BackupKind, Floor, Intent};
use pitr::repo::path::{BackupId, BackupObject};
use pitr::repo::retention::Policy as Retention;
use pitr::repo::{Repository, System, nonce, this_process};
use pitr::store::{Policy, Store};

use super::backup::store_at;
use super::support::audit::{Auditor, Objects, objects_in};
use super::support::cluster::{Install, run, scratch_in_memory};
use super::support::promise::Promise;
use super::support::restored::walk;
use super::support::site::{Site, small_site};
use super::{Command, Said, repository, survive, wait};

/// No grace, and a window that makes all but the newest backup old.
fn request() -> ExpireRequest {
    let window = Duration::from_millis(1);
    let policy = Retention { window, grace: Duration::ZERO, ..Retention::default() };
    ExpireRequest { policy: Some(policy), zone: TimeZone::UTC, now: Timestamp::now(), dry_run: false }
}

async fn once_more(repository: &Repository) -> Result<SystemReport, Error> {
    let mut reports = expire(repository, &[], &request(), &Silent).await?;
    reports.pop().ok_or_else(|| Error::not_found("no system folder").hint("is this the right world?"))
}

/// Whether a run found something to do.
fn did_something(report: &SystemReport) -> bool {
    let deleted = &report.deleted;
    let marked = report.plan.as_ref().map_or(0, |plan| plan.go.len()) + report.abandoned.len();
    marked > 0 || deleted.objects > 0 || deleted.wal_objects > 0 || deleted.leftovers > 0
}

/// Runs without faults until there is nothing left to do.
pub fn finish(at: &Path) -> Result<()> {
    for _ in 0..5 {
        let report = wait(true, once_more(&repository(store_at(at)?)?));
        if !did_something(&report.map_err(|error| anyhow::anyhow!(error.report()))?) {
            return Ok(());
        }
    }
    anyhow::bail!("five runs do not come to an end")
}

/// The same directory of the same files: cheap, and an object that is changed in place would show in the original.
pub fn linked(from: &Path, to: &Path) -> Result<()> {
    super::support::tree::remove(to)?;
    run(Process::new("cp").arg("-al").args([from, to])).map(drop)
}

/// Makes a file older than a day.
fn age(path: &Path) -> Result<()> {
    let then = SystemTime::now() - Duration::from_secs(30 * 3600);
    Ok(fs::File::options().write(true).open(path)?.set_modified(then)?)
}

/// A file, as far as its content may have changed: nothing is written in place.
type Seen = (u64, i64, i64, u64);

/// A directory of hard links, read: what was read of the same file before is not read again.
#[derive(Debug, Default)]
struct Reader(RefCell<BTreeMap<Seen, Bytes>>);

impl Reader {
    fn objects_in(&self, root: &Path) -> Result<Objects> {
        let (mut found, mut seen) = (Objects::new(), self.0.borrow_mut());
        let mut read = |path: &Path| -> Result<()> {
            if pitr::durable::is_temporary(path.file_name().context("a name")?) {
                return Ok(());
            }
            let meta = fs::metadata(path)?;
            let file = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len());
            let bytes = match seen.get(&file) {
                Some(bytes) => bytes.clone(),
                None => seen.entry(file).or_insert(fs::read(path)?.into()).clone(),
            };
            found.insert(path.strip_prefix(root)?.to_str().context("a key")?.to_owned(), bytes);
            Ok(())
        };
        let mut failed = Ok(());
        walk(root, &mut |path| {
            if failed.is_ok() {
                failed = read(path);
            }
        })?;
        failed.map(|()| found)
    }
}

struct Expire {
    name: &'static str,
    /// The repository as each round finds it, and where.
    world: PathBuf,
    at: PathBuf,
    promise: RefCell<Promise>,
    reader: Reader,
}

impl Command for Expire {
    fn name(&self) -> String {
        format!("expire of a repository that is {}", self.name)
    }

    fn least_calls(&self) -> usize {
        40
    }

    fn world(&mut self) -> Result<Store> {
        linked(&self.world, &self.at)?;
        store_at(&self.at)
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        wait(true, once_more(&repository)).map(|_| Said::Done)
    }

    fn objects(&self, _: &Store) -> Result<Objects> {
        self.reader.objects_in(&self.at)
    }

    /// Its own auditor: this command deletes.
    fn check(&self, _: &mut Auditor, _: &Objects, after: &Objects) -> Result<()> {
        let mut promise = self.promise.borrow_mut();
        promise.check(after)?;
        // Half deleted is no damage either: what is dead is left alone, what is not is all there.
        let store = store_at(&self.at)?;
        let request = verify::Request { backup: None, sample: Sample::Nothing, decode: false, jobs: 4 };
        let report = wait(true, verify::verify(&repository(store)?, &request, &Silent));
        let report = report.map_err(|error| anyhow::anyhow!(error.report()))?;
        ensure!(report.count() == 0 && report.stopped.is_none(), "{report:?}");
        Ok(())
    }

    fn audit(&self, said: &Result<Said, Error>, _: &Objects) -> Result<()> {
        if said.is_ok() {
            finish(&self.at)?;
            self.promise.borrow().check_finished(&self.reader.objects_in(&self.at)?)?;
        }
        Ok(())
    }

    /// The passing objects by which it asks for the store's time; all else that it deletes is what it is for.
    fn can_do_without(&self, call: &str) -> bool {
        call.starts_with("delete") && call.contains("/probe-")
    }
}

/// A backup that began hours ago, got as far as a pack, and has no writer any more.
async fn unfinished(system: &System, hours: i64) -> Result<BackupId> {
    let started_at =
        Timestamp::from_second(Timestamp::now().as_second())? - SignedDuration::from_hours(hours);
    let catalog = system.catalog().await?;
    let first = catalog.complete().next().context("a backup")?;
    let intent = Intent {
        id: BackupId::new(started_at, 1),
        nonce: nonce()?,
        cluster: "main".parse()?,
        system: system.identity().system,
        kind: BackupKind::Full,
        started_at,
        timeline: first.timeline,
        wal_floor: first.wal_floor,
        references: Vec::new(),
        takes_over: None,
        process: this_process(),
    };
    system.create_intent(&intent).await?;
    let body = Bytes::from_static(b"as far as it came");
    system.put_backup_object(&intent.id, BackupObject::Pack(0), body).await?;
    Ok(intent.id)
}

/// What each phase of a run finds something to do in.
async fn furnish(site: &Site, pinned: &BackupId, newest: &BackupId) -> Result<()> {
    let repositories = [repository(store_at(&site.repository)?)?];
    let system = repositories[0].open_current().await?.context("a system")?;
    pin::pin(&repositories, newest, "released", true, Timestamp::now()).await?;
    pin::unpin(&repositories, newest).await?;
    pin::pin(&repositories, pinned, "kept", false, Timestamp::now()).await?;
    let abandoned = unfinished(&system, 4).await?;
    system.abandon(&abandoned, "disk full", Timestamp::now()).await?;
    unfinished(&system, 5).await.map(drop)
}

/// A site with three backups and all the rest; the ids of the three.
fn site(install: &Install) -> Result<(Site, Vec<BackupId>)> {
    let site = small_site(install)?;
    let mut ids = Vec::new();
    for n in 1..=3 {
        ids.push(site.backup()?["id"].as_str().context("an id")?.parse::<BackupId>()?);
        for more in 0..2 {
            site.cluster.psql(&format!("INSERT INTO t VALUES ({n}, '{more}')"))?;
            site.switch()?;
        }
    }
    let [_, pinned, newest] = ids.as_slice() else { unreachable!() };
    wait(false, furnish(&site, pinned, newest))?;
    // Whoever is silent for a day has no writer any more.
    walk(&site.repository, &mut |path| age(path).expect("an older file"))?;
    Ok((site, ids))
}

/// A first run, and a floor after its own, so that one is left over.
async fn mark(repository: &Repository) -> Result<()> {
    once_more(repository).await.map_err(|error| anyhow::anyhow!(error.report()))?;
    let system = repository.open_current().await?.context("a system")?;
    let again = |before: Option<&Floor>| before.map(|floor| floor.timelines.clone());
    system.raise_floor(again, Timestamp::now()).await?.context("a floor").map(drop)
}

/// The worlds, and what undisturbed runs leave of both.
pub struct Worlds {
    pub site: Site,
    ids: Vec<BackupId>,
    /// In which `fresh` and `marked` are.
    pub place: tempfile::TempDir,
    left: Objects,
}

impl Worlds {
    pub fn new(install: &Install) -> Result<Self> {
        let (site, ids) = site(install)?;
        let place = scratch_in_memory("pitr-expired-")?;
        let [fresh, marked, done] = ["fresh", "marked", "done"].map(|name| place.path().join(name));
        run(Process::new("cp").arg("-a").args([&site.repository, &fresh]))?;
        run(Process::new("cp").arg("-a").args([&fresh, &marked]))?;
        wait(true, mark(&repository(store_at(&marked)?)?))?;
        walk(&marked.join("main"), &mut |path| {
            if path.parent().is_some_and(|parent| parent.ends_with("floor")) {
                age(path).expect("an older floor");
            }
        })?;
        linked(&marked, &done)?;
        finish(&done)?;
        let left = objects_in(&done)?;
        Ok(Self { site, ids, place, left })
    }

    pub fn promise(&self) -> Promise {
        Promise::new(&self.site.cluster.data.join("pg_wal"), self.left.clone())
    }

    fn command(&self, name: &'static str) -> Expire {
        let promise = self.promise();
        let at = self.place.path().join(format!("{name}-now"));
        Expire {
            name,
            world: self.place.path().join(name),
            at,
            promise: RefCell::new(promise),
            reader: Reader::default(),
        }
    }
}

#[test]
fn whatever_call_of_expire_fails_what_is_kept_is_whole_and_the_next_runs_finish() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let worlds = Worlds::new(&install)?;
    let commands = ["fresh", "marked"].map(|name| worlds.command(name));
    std::thread::scope(|scope| {
        let survive = |mut command| survive(&mut command, &mut Auditor::default());
        let threads = commands.map(|command| scope.spawn(move || survive(command)));
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?)
    })
}

/// A run that marks, and the order of its calls and of those of the run that deletes: REPOSITORY.md 4.
#[test]
fn a_run_looks_again_after_its_floor_and_deletes_signs_last() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let worlds = Worlds::new(&install)?;
    let calls = |name| -> Result<Vec<String>> {
        let mut command = worlds.command(name);
        let (store, faults) = command.world()?.with_faults(Policy::default());
        wait(true, once_more(&repository(store)?)).map_err(|error| anyhow::anyhow!(error.report()))?;
        Ok(faults.calls())
    };
    let place = |calls: &[String], call: &str, key: &str| {
        let is_it = |made: &String| made.starts_with(call) && made.contains(key);
        let first = calls.iter().position(is_it).with_context(|| format!("no {call} {key}: {calls:?}"));
        first.and_then(|first| Ok((first, calls.iter().rposition(is_it).context("a last one")?)))
    };
    let marks = calls("fresh")?;
    let (floor, _) = place(&marks, "create", "/floor/")?;
    let (_, last_mark) = place(&marks, "create", "/expired.json")?;
    let (_, abandons) = place(&marks, "create", "/backup.json")?;
    ensure!(last_mark < floor && abandons < floor, "{marks:?}");
    let first = worlds.ids.first().context("a backup")?;
    let deletes = calls("marked")?;
    let data = calls_of(&deletes, &format!("/backups/{first}/"));
    let kinds = ["pack-", "manifest", "intent.json", "backup.json", "expired.json"];
    let ranks: Vec<_> =
        data.iter().filter_map(|key| kinds.iter().position(|kind| key.contains(kind))).collect();
    ensure!(ranks.is_sorted() && kinds.iter().enumerate().all(|(n, _)| ranks.contains(&n)), "{data:?}");
    let looks = |calls: &[String]| -> Result<()> {
        let looks: Vec<usize> = (0..calls.len()).filter(|n| is_look(&calls[*n])).collect();
        let deleted = calls.iter().position(|call| call.starts_with("delete") && call.contains("/backups/"));
        let changed = calls.iter().rposition(|call| call.starts_with("create")).context("a create")?;
        ensure!(looks.len() == 2 && deleted.context("a delete")? > looks[1], "{calls:?}");
        ensure!(looks[0] < changed && changed < looks[1], "{calls:?}");
        Ok(())
    };
    looks(&marks)
}

/// What is deleted of a folder, in order.
fn calls_of<'a>(calls: &'a [String], folder: &str) -> Vec<&'a str> {
    calls.iter().filter_map(|call| call.strip_prefix("delete ")).filter(|key| key.contains(folder)).collect()
}

/// A listing of all backups.
fn is_look(call: &str) -> bool {
    call.starts_with("list") && call.ends_with("/backups/")
}

/// The second look sees a need that was announced after the first one: the dead backup of `marked` is pinned while the second listing is waited
/// for.
#[test]
fn what_is_pinned_between_the_two_looks_of_a_run_stays() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let worlds = Worlds::new(&install)?;
    let first = worlds.ids.first().context("a backup")?;
    let mut command = worlds.command("marked");
    let plain = command.world()?;
    let (key, bytes) = pin_of(&worlds, first)?;
    let wait_long = Duration::from_secs(10);
    let patient = Policy { first_wait: wait_long, longest_wait: wait_long, ..Policy::default() };
    let (faulty, faults) = plain.with_faults(patient);
    faults.add("fail@list/backups:2")?;
    let (run, pinned) = wait(true, async {
        let repository = repository(faulty)?;
        let pinning = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            plain.create(&key, bytes).await
        };
        anyhow::Ok(tokio::join!(once_more(&repository), pinning))
    })?;
    run.map_err(|error| anyhow::anyhow!(error.report()))?;
    pinned?;
    let looks = faults.calls().iter().filter(|call| is_look(call)).count();
    ensure!(looks == 3, "the second look was to be repeated once: {:?}", faults.calls());
    // Its tombstone apart, all of it is there, and its WAL.
    let mut after = command.objects(&plain)?;
    after.retain(|key, _| !key.ends_with("/expired.json"));
    let whole = Auditor::of_server(&worlds.site.cluster.data.join("pg_wal")).whole(&after)?;
    ensure!(whole == worlds.ids.len(), "{whole} backups are whole");
    Ok(())
}

/// A pin of a backup, as who was faster than its tombstone made it.
fn pin_of(worlds: &Worlds, id: &BackupId) -> Result<(String, Bytes)> {
    let mut fresh = worlds.command("fresh");
    let repositories = [repository(fresh.world()?)?];
    let made = wait(true, pin::pin(&repositories, id, "in time", true, Timestamp::now()));
    let pin = made.map_err(|error| anyhow::anyhow!(error.report()))?.pop().context("a pin")?.pin;
    let mut objects = fresh.reader.objects_in(&fresh.at)?.into_iter();
    objects.find(|(key, _)| key.contains(pin.as_str())).context("the pin")
}
