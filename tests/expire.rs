//! `pitr expire` on repositories of real servers: what is promised is restored and compared by rows, the rest is gone.
//!
//! A window of a millisecond makes every backup but the newest old at once, and `grace = "0"` lets the next run delete what the last one
//! marked. What the store calls old is made by setting the times of its files back.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::cluster::{Install, give_to_server, run};
use support::restored::{Restored, Said, Source, walk};
use support::s3::S3;
use support::site::until;

const AT_ONCE: &str = "retention = { window = \"1ms\", grace = \"0\" }";

/// Backups with rows between them: row n is in backup n and all later ones.
struct Bench {
    source: Source,
    install: Install,
    backups: Vec<String>,
    /// A moment after each backup, with its row and without the next one.
    moments: Vec<String>,
}

impl Bench {
    fn new(count: u32, retention: &str) -> Result<Option<Self>> {
        Self::with(count, retention, |_| Ok(()))
    }

    /// `prepare` may change the configuration before the first backup.
    fn with(count: u32, retention: &str, prepare: impl Fn(&Source) -> Result<()>) -> Result<Option<Self>> {
        let Some(install) = Install::find_or_skip(15) else { return Ok(None) };
        let source = Source::new(&install, "")?;
        prepare(&source)?;
        let mut bench = Self { source, install, backups: Vec::new(), moments: Vec::new() };
        bench.configure(retention)?;
        for n in 1..=count {
            bench.source.row(n * 10)?;
            bench.backups.push(bench.source.backup()?);
            bench.moments.push(bench.source.row(n * 10 + 1)?);
            bench.source.archive_all()?;
            bench.source.archive_all()?;
        }
        Ok(Some(bench))
    }

    /// Adds lines to the last `[[repository]]`.
    fn configure(&self, lines: &str) -> Result<()> {
        let text = fs::read_to_string(&self.source.config)?;
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("retention")).collect();
        fs::write(&self.source.config, format!("{}\n{lines}\n", kept.join("\n")))?;
        give_to_server(&self.source.config)
    }

    fn expire(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["expire", "--json"];
        all.extend(args);
        let said = self.source.pitr(&all)?.expect(0)?.json()?;
        ensure!(said["schema"] == "pitr.expire.v1", "{said}");
        Ok(said)
    }

    /// The rows of a copy that is restored with these flags.
    fn rows(&self, name: &str, flags: &[&str]) -> Result<String> {
        let target = self.source.target(name);
        self.source.restore(&target, flags)?.expect(0)?;
        Restored::start_copy(&self.install, &target)?.promoted()?.rows()
    }

    /// What `info` says of each backup: restorable, state, pinned.
    fn info(&self) -> Result<BTreeMap<String, (bool, String, bool)>> {
        let info = self.source.pitr(&["info", "--json"])?.expect(0)?.json()?;
        let mut found = BTreeMap::new();
        for backup in info["repositories"][0]["backups"].as_array().context("backups")? {
            let text = |key: &str| backup[key].as_str().unwrap_or_default().to_owned();
            found.insert(text("id"), (backup["restorable"] == true, text("state"), backup["pinned"] == true));
        }
        Ok(found)
    }

    /// Keys of all objects, without pins and leases.
    fn objects(&self) -> Result<BTreeSet<String>> {
        objects(&self.source.repository)
    }

    fn folder_of(&self, backup: &str) -> Result<PathBuf> {
        Ok(self.source.folder()?.join("backups").join(backup))
    }
}

fn objects(repository: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    walk(repository, &mut |path| {
        if let Ok(key) = path.strip_prefix(repository)
            && !["pins", "leases"].iter().any(|part| key.components().any(|own| own.as_os_str() == *part))
        {
            found.insert(key.display().to_string());
        }
    })?;
    Ok(found)
}

fn texts(list: &Value, member: &str) -> Vec<String> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| if member.is_empty() { value.clone() } else { value[member].clone() };
    list.iter().filter_map(|value| text(value).as_str().map(str::to_owned)).collect()
}

/// The one system of the only repository in what `expire` says.
fn system(said: &Value) -> &Value {
    &said["repositories"][0]["systems"][0]
}

/// Makes files old, as the store sees it.
fn age(path: &Path, days: u64) -> Result<()> {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    Ok(fs::File::options().write(true).open(path)?.set_modified(then)?)
}

#[test]
fn what_is_promised_is_restored_and_what_is_not_is_gone() -> Result<()> {
    let Some(bench) = Bench::new(4, AT_ONCE)? else { return Ok(()) };
    let [one, two, three, four] = bench.backups.as_slice() else { unreachable!() };
    bench.source.row(45)?;
    bench.source.archive_all()?;
    let before = bench.objects()?;
    let pinned =
        bench.source.pitr(&["pin", two, "--reason", "before the move", "--json"])?.expect(0)?.json()?;
    ensure!(pinned["schema"] == "pitr.pin.v1", "{pinned}");

    let dry = bench.expire(&["--dry-run"])?;
    ensure!(texts(&system(&dry)["lost"], "id") == [one.clone(), three.clone()], "{dry}");
    ensure!(system(&dry)["deleted"]["wal_objects"].as_u64() > Some(3), "{dry}");
    ensure!(bench.objects()? == before, "a dry run changes nothing");

    let said = bench.expire(&[])?;
    ensure!(texts(&system(&said)["lost"], "id") == [one.clone(), three.clone()], "{said}");
    ensure!(
        system(&said)["deleted"]["backups"] == serde_json::json!([]),
        "marked now, deleted later: {said}"
    );
    let info = bench.info()?;
    ensure!(info[one] == (false, "expired: to be deleted".into(), false), "{info:?}");
    ensure!(info[two].0 && info[two].2 && info[four].0 && !info[four].2, "{info:?}");

    let said = bench.expire(&[])?;
    ensure!(texts(&system(&said)["deleted"]["backups"], "") == [one.clone(), three.clone()], "{said}");
    let after = bench.objects()?;
    for gone in [one, three] {
        ensure!(!after.iter().any(|key| key.contains(gone.as_str())), "{after:?}");
    }
    ensure!(after.is_subset(&before.union(&after).cloned().collect()), "nothing else is new");
    let again = bench.expire(&[])?;
    ensure!(
        system(&again)["deleted"]["objects"] == 0 && system(&again)["deleted"]["wal_objects"] == 0,
        "{again}"
    );
    ensure!(bench.objects()? == after, "a run with nothing to do does nothing");

    bench.source.pitr(&["verify"])?.expect(0)?;
    ensure!(bench.rows("pinned", &["--backup", two, "--immediate"])? == "10,11,20");
    ensure!(bench.rows("window", &["--to", &bench.moments[3]])? == "10,11,20,21,30,31,40,41");
    ensure!(bench.rows("latest", &[])? == "10,11,20,21,30,31,40,41,45");
    // Between the two nothing is promised any more, and nothing is made up.
    let lost = bench.source.restore(&bench.source.target("lost"), &["--to", &bench.moments[1]])?.expect(4)?;
    ensure!(lost.err.contains("can be restored") || lost.err.contains("reach"), "{lost:?}");
    // The cluster goes on archiving, and the next backup frees the pinned one's place.
    bench.source.row(50)?;
    bench.source.archive_all()?;
    bench.source.pitr(&["unpin", two])?.expect(0)?;
    bench.source.pitr(&["unpin", two])?.expect(5)?;
    let said = bench.expire(&[])?;
    ensure!(texts(&system(&said)["lost"], "id") == [two.clone()], "{said}");
    ensure!(bench.rows("last", &[])?.ends_with(",45,50"));
    Ok(())
}

#[test]
fn a_restore_that_was_planned_before_its_backup_was_marked_comes_to_its_end() -> Result<()> {
    let Some(bench) = Bench::new(3, "retention = { window = \"1ms\" }")? else { return Ok(()) };
    let [one, two, three] = bench.backups.as_slice() else { unreachable!() };
    let target = bench.source.target("planned");
    bench.source.restore(&target, &["--to", &bench.moments[1]])?.expect(0)?;
    let first = bench.source.target("first");
    bench.source.restore(&first, &["--backup", one, "--to", &bench.moments[1]])?.expect(0)?;
    let before = bench.objects()?;

    let said = bench.expire(&[])?;
    ensure!(texts(&system(&said)["lost"], "id") == [one.clone(), two.clone()], "{said}");
    ensure!(system(&said)["deleted"]["wal_objects"] == 0, "{said}");
    let waiting = system(&said)["wal_waiting"].clone();
    ensure!(waiting["segments"].as_u64() > Some(1) && waiting["until"].is_string(), "{said}");
    let shown = bench.source.pitr(&["expire"])?.expect(0)?.out;
    ensure!(shown.contains("given up: ") && shown.contains("deleted by a run after"), "{shown}");
    ensure!(bench.objects()?.is_superset(&before), "everything is there for seven days");
    ensure!(!bench.info()?[one].0 && bench.info()?[three].0);
    // The servers start only now, and fetch what they replay.
    ensure!(Restored::start_copy(&bench.install, &target)?.promoted()?.rows()? == "10,11,20,21");
    ensure!(Restored::start_copy(&bench.install, &first)?.promoted()?.rows()? == "10,11,20,21");

    let marks = |days| -> Result<()> {
        let mut marks = Vec::new();
        walk(&bench.source.folder()?, &mut |path| {
            if path.ends_with("expired.json") || path.components().any(|part| part.as_os_str() == "floor") {
                marks.push(path.to_owned());
            }
        })?;
        marks.iter().try_for_each(|path| age(path, days))
    };
    marks(6)?;
    let said = bench.expire(&[])?;
    ensure!(
        system(&said)["deleted"]["objects"] == 0 && system(&said)["deleted"]["wal_objects"] == 0,
        "{said}"
    );
    ensure!(bench.objects()?.is_superset(&before));
    marks(8)?;
    let said = bench.expire(&[])?;
    ensure!(texts(&system(&said)["deleted"]["backups"], "") == [one.clone(), two.clone()], "{said}");
    ensure!(system(&said)["deleted"]["wal_objects"].as_u64() >= waiting["segments"].as_u64(), "{said}");
    ensure!(system(&said)["wal_waiting"].is_null(), "{said}");
    bench.source.pitr(&["verify"])?.expect(0)?;
    ensure!(bench.rows("last", &[])? == "10,11,20,21,30,31");
    Ok(())
}

#[test]
fn one_backup_a_day_is_kept_with_the_wal_that_makes_it_consistent() -> Result<()> {
    let daily = "retention = { window = \"1ms\", daily = \"30d\", grace = \"0\" }";
    let Some(bench) = Bench::new(3, daily)? else { return Ok(()) };
    let [one, two, three] = bench.backups.as_slice() else { unreachable!() };
    let said = bench.expire(&[])?;
    // All of one day, unless midnight came between them: the first stands for it.
    let lost = texts(&system(&said)["lost"], "id");
    ensure!(!lost.contains(one) && !lost.contains(three), "{said}");
    bench.expire(&[])?;
    ensure!(bench.folder_of(two)?.join("backup.json").exists() != lost.contains(two), "{said}");
    ensure!(bench.rows("day", &["--backup", one, "--immediate"])? == "10");
    ensure!(bench.rows("now", &[])? == "10,11,20,21,30,31");
    bench.source.pitr(&["verify", "--decode"])?.expect(0)?;
    Ok(())
}

#[test]
fn a_run_that_is_killed_anywhere_leaves_a_repository_that_the_next_one_finishes() -> Result<()> {
    let Some(bench) = Bench::new(3, AT_ONCE)? else { return Ok(()) };
    bench.expire(&[])?;
    let last = bench.backups[2].clone();
    let saved = Saved::new(&bench, "saved")?;
    // The floor of the second run itself comes first; what is deleted is the same whatever happened before.
    let of_backups =
        || -> Result<usize> { Ok(bench.objects()?.iter().filter(|key| key.contains("/backups/")).count()) };
    let done = bench.expire(&[])?;
    let deletes = system(&done)["deleted"]["objects"].as_u64().context("a number")?;
    ensure!(deletes > 6, "{done}");
    let finished = bench.objects()?;
    for nth in 1..=deletes {
        saved.back()?;
        let before = of_backups()?;
        let mut command = bench.source.command(&["expire"])?;
        command.env("PITR_TEST_FAULTS", format!("stall@delete/backups:{nth}+"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let deleted = usize::try_from(nth - 1)?;
        until(
            || Ok(before.checked_sub(of_backups()?) == Some(deleted)),
            || format!("{deleted} objects are not deleted"),
        )?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL)?;
        child.wait()?;
        let info = bench.info()?;
        ensure!(
            info[&last].0 && info.values().filter(|(restorable, ..)| *restorable).count() == 1,
            "{info:?}"
        );
        bench.expire(&[])?;
        ensure!(bench.objects()? == finished, "killed before delete {nth}");
    }
    bench.source.pitr(&["verify"])?.expect(0)?;
    ensure!(bench.rows("last", &[])? == "10,11,20,21,30,31");
    Ok(())
}

/// A copy of the repository, to begin from again.
struct Saved<'a> {
    bench: &'a Bench,
    copy: PathBuf,
}

impl<'a> Saved<'a> {
    fn new(bench: &'a Bench, name: &str) -> Result<Self> {
        let copy = bench.source.target(name);
        run(Command::new("cp").arg("-a").arg(&bench.source.repository).arg(&copy))?;
        Ok(Self { bench, copy })
    }

    fn back(&self) -> Result<()> {
        fs::remove_dir_all(&self.bench.source.repository)?;
        run(Command::new("cp").arg("-a").arg(&self.copy).arg(&self.bench.source.repository)).map(drop)
    }
}

#[test]
fn every_call_may_fail_once_and_the_next_run_finishes() -> Result<()> {
    let Some(bench) = Bench::new(3, AT_ONCE)? else { return Ok(()) };
    let last = bench.backups[2].clone();
    // How many floors there were on the way makes no difference.
    let kept = || -> Result<BTreeSet<String>> {
        Ok(bench.objects()?.into_iter().filter(|key| !key.contains("/floor/")).collect())
    };
    // The first run marks and raises the floor, the second one deletes.
    let marks = Saved::new(&bench, "marks")?;
    bench.expire(&[])?;
    let deletes = Saved::new(&bench, "deletes")?;
    bench.expire(&[])?;
    let finished = kept()?;
    let mut met = BTreeSet::new();
    for (state, saved) in [("marks", marks), ("deletes", deletes)] {
        for (call, effect, nth) in ["create", "list", "open", "delete", "head"].into_iter().flat_map(|call| {
            ["fail", "lost"].into_iter().flat_map(move |effect| [1, 2, 4, 8].map(|nth| (call, effect, nth)))
        }) {
            saved.back()?;
            let mut command = bench.source.command(&["expire"])?;
            command.env("PITR_TEST_FAULTS", format!("{effect}@{call}:{nth}"));
            let said = Said::of(&command.output()?).expect(0)?;
            if !said.err.contains("injected") {
                continue;
            }
            met.insert((state, call));
            ensure!(bench.info()?[&last].0, "{state}: {effect} at {call} {nth}");
            bench.expire(&[])?;
            bench.expire(&[])?;
            ensure!(kept()? == finished, "{state}: {effect} at {call} {nth}");
        }
    }
    for wanted in [("marks", "create"), ("marks", "list"), ("deletes", "delete"), ("deletes", "open")] {
        ensure!(met.contains(&wanted), "no fault at {wanted:?}: {met:?}");
    }
    bench.source.pitr(&["verify"])?.expect(0)?;
    ensure!(bench.rows("last", &[])? == "10,11,20,21,30,31");
    Ok(())
}

#[test]
fn a_backup_that_is_being_restored_stays_until_its_reader_is_gone() -> Result<()> {
    let Some(bench) = Bench::new(3, AT_ONCE)? else { return Ok(()) };
    let one = bench.backups[0].clone();
    let target = bench.source.target("slow").display().to_string();
    let mut command =
        bench.source.command(&["restore", "--target-dir", &target, "--to", &bench.moments[0]])?;
    // It has pinned the backup when it looks for the tombstone.
    command.env("PITR_TEST_FAULTS", "stall@head/expired:1+");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    until(|| Ok(bench.info()?[&one].2), || "the restore does not pin".to_owned())?;
    for _ in 0..2 {
        let said = bench.expire(&[])?;
        ensure!(!texts(&system(&said)["lost"], "id").contains(&one), "{said}");
    }
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL)?;
    child.wait()?;
    ensure!(
        !bench.folder_of(&bench.backups[1])?.join("backup.json").exists(),
        "the one between them is gone"
    );
    // All it needs is still there, WAL after the backup included.
    ensure!(bench.rows("again", &["--backup", &one, "--to", &bench.moments[0]])? == "10,11");
    // A pin that nobody renewed for three days counts no more.
    let mut pins = Vec::new();
    walk(&bench.source.folder()?.join("pins"), &mut |path| pins.push(path.to_owned()))?;
    pins.iter().try_for_each(|path| age(path, 4))?;
    bench.expire(&[])?;
    bench.expire(&[])?;
    ensure!(!bench.folder_of(&one)?.join("backup.json").exists());
    ensure!(pins.iter().all(|path| !path.exists()), "{pins:?}");
    ensure!(bench.rows("last", &[])? == "10,11,20,21,30,31");
    Ok(())
}

#[test]
fn without_retention_nothing_expires_but_what_was_chosen() -> Result<()> {
    let Some(bench) = Bench::new(2, "")? else { return Ok(()) };
    let [one, two] = bench.backups.as_slice() else { unreachable!() };
    let before = bench.objects()?;
    let said = bench.source.pitr(&["expire"])?.expect(0)?;
    ensure!(said.out.contains("nothing is ever expired"), "{said:?}");
    ensure!(bench.objects()? == before);
    bench.source.pitr(&["expire", "--backup", "20200101-000000-00000000"])?.expect(5)?;
    bench.source.pitr(&["expire", "--backup", "nonsense"])?.expect(3)?;
    bench.source.pitr(&["expire", "--below-promise"])?.expect(3)?;
    let chosen = bench.source.pitr(&["expire", "--backup", one, "--dry-run"])?.expect(0)?;
    ensure!(chosen.out.contains("can go") && bench.objects()? == before, "{chosen:?}");
    bench.source.pitr(&["expire", "--backup", one])?.expect(0)?;
    ensure!(!bench.info()?[one].0);
    bench.source.pitr(&["expire", "--backup", one])?.expect(0)?;
    let last = bench.source.pitr(&["expire", "--backup", two])?.expect(9)?;
    ensure!(last.err.contains("no sound backup"), "{last:?}");
    let gone = bench.source.restore(&bench.source.target("x"), &["--backup", one])?;
    ensure!(gone.code != 0, "{gone:?}");
    // The grace is seven days where nothing says otherwise.
    bench.expire(&[])?;
    ensure!(bench.folder_of(one)?.join("backup.json").exists());
    age(&bench.folder_of(one)?.join("expired.json"), 6)?;
    bench.expire(&[])?;
    ensure!(bench.folder_of(one)?.join("backup.json").exists());
    age(&bench.folder_of(one)?.join("expired.json"), 8)?;
    bench.expire(&[])?;
    ensure!(!bench.folder_of(one)?.join("backup.json").exists());
    ensure!(bench.rows("last", &[])? == "10,11,20,21");
    Ok(())
}

#[test]
fn a_chosen_backup_that_the_window_rests_on_is_refused_unless_said() -> Result<()> {
    let Some(bench) = Bench::new(3, "retention = { window = \"7d\" }")? else { return Ok(()) };
    let [one, two, _] = bench.backups.as_slice() else { unreachable!() };
    let refused = bench.source.pitr(&["expire", "--backup", one])?.expect(9)?;
    ensure!(refused.err.contains("window") && refused.err.contains("--below-promise"), "{refused:?}");
    bench.source.pitr(&["pin", two])?.expect(0)?;
    let pinned = bench.source.pitr(&["expire", "--backup", two])?.expect(9)?;
    ensure!(pinned.err.contains("pinned") && pinned.err.contains("unpin"), "{pinned:?}");
    bench.source.pitr(&["unpin", two])?.expect(0)?;
    let said = bench.source.pitr(&["expire", "--backup", two, "--json"])?.expect(0)?.json()?;
    ensure!(said["repositories"][0]["breaks_window"] == false, "{said}");
    let said =
        bench.source.pitr(&["expire", "--backup", one, "--below-promise", "--json"])?.expect(0)?.json()?;
    ensure!(said["repositories"][0]["breaks_window"] == true, "{said}");
    // The WAL of the marked ones stays until they are deleted.
    let said = bench.expire(&[])?;
    ensure!(system(&said)["deleted"]["wal_objects"].as_u64() < Some(6), "{said}");
    ensure!(texts(&system(&said)["waiting"], "id").len() == 2, "{said}");
    Ok(())
}

#[test]
fn nothing_is_deleted_while_an_object_cannot_be_read_that_may_speak_for_others() -> Result<()> {
    let Some(bench) = Bench::new(3, AT_ONCE)? else { return Ok(()) };
    bench.expire(&[])?;
    let before = bench.objects()?;
    let pins = bench.source.folder()?.join("pins");
    fs::create_dir_all(&pins)?;
    let pin = pins.join("operator-0123456789abcdef.json");
    let intent = bench.folder_of(&bench.backups[2])?.join("intent.json");
    let good = fs::read(&intent)?;
    for (path, name) in [(&pin, "operator-0123456789abcdef.json"), (&intent, "intent.json")] {
        fs::write(path, "{ torn")?;
        give_to_server(path)?;
        let refused = bench.source.pitr(&["expire"])?.expect(6)?;
        ensure!(refused.err.contains(name), "{refused:?}");
        ensure!(bench.objects()? == before, "{name}");
        let _ = fs::remove_file(&pin); // it may be the intent's turn
        fs::write(&intent, &good)?;
    }
    // One of a backup that is dead speaks for nobody.
    fs::write(bench.folder_of(&bench.backups[0])?.join("intent.json"), "{ torn")?;
    bench.expire(&[])?;
    ensure!(bench.info()?.len() == 1);
    Ok(())
}

#[test]
fn a_refused_delete_names_the_object_and_loses_nothing() -> Result<()> {
    let Some(bench) = Bench::new(3, AT_ONCE)? else { return Ok(()) };
    bench.expire(&[])?;
    let folder = bench.folder_of(&bench.backups[0])?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o500))?;
    let refused = bench.source.pitr(&["expire"])?.expect(7)?;
    ensure!(refused.err.contains(&bench.backups[0]) && refused.err.contains("pack-00000"), "{refused:?}");
    ensure!(refused.err.contains("may delete"), "{refused:?}");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    let mut denied = bench.source.command(&["expire"])?;
    let denied = Said::of(&denied.env("PITR_TEST_FAULTS", "deny@delete/backups:1+").output()?).expect(7)?;
    // Not who is told that he may not, but who is not known.
    ensure!(denied.err.contains("HINT") && !denied.err.contains("may delete"), "{denied:?}");
    ensure!(bench.rows("last", &[])? == "10,11,20,21,30,31");
    bench.expire(&[])?;
    ensure!(bench.info()?.len() == 1);
    Ok(())
}

#[test]
fn wal_that_another_repository_wants_and_lacks_stays() -> Result<()> {
    let second = |source: &Source| -> Result<()> {
        let text = fs::read_to_string(&source.config)?;
        let place = source.target("second");
        fs::create_dir(&place)?;
        give_to_server(&place)?;
        fs::write(
            &source.config,
            format!(
                "{text}{AT_ONCE}\n[[repository]]\nname = \"second\"\nrequired = false\nurl = \"file://{}\"\n",
                place.display()
            ),
        )?;
        source.pitr(&["init"])?.expect(0).map(drop)
    };
    let Some(bench) = Bench::with(1, "", |_| Ok(()))? else { return Ok(()) };
    second(&bench.source)?;
    let place = bench.source.target("second");
    let segments = |place: &Path| -> Result<BTreeSet<String>> {
        let name = |key: &String| Path::new(key).file_name().map(|name| name.to_string_lossy().into_owned());
        let all = objects(place)?;
        Ok(all.iter().filter(|key| key.contains("/wal/")).filter_map(name).collect())
    };
    // Segments that both have; then some that only the first has, because the other's disk is away.
    for n in [20, 21] {
        bench.source.row(n)?;
        bench.source.archive_all()?;
    }
    let both = segments(&place)?;
    let away = bench.source.target("away");
    fs::rename(&place, &away)?;
    for n in [30, 31] {
        bench.source.row(n)?;
        bench.source.archive_all()?;
    }
    bench.source.pitr(&["backup", "--repository", "local"])?.expect(0)?;
    let before = segments(&bench.source.repository)?;
    let said = bench.expire(&["--repository", "local"])?;
    ensure!(system(&said)["notes"][0].as_str().is_some_and(|note| note.contains("second")), "{said}");
    ensure!(system(&said)["deleted"]["wal_objects"] == 0, "{said}");
    ensure!(segments(&bench.source.repository)? == before, "unreachable counts as lacking everything");

    // A directory that is there and empty is a disk that is not mounted.
    fs::create_dir(&place)?;
    give_to_server(&place)?;
    let said = bench.expire(&["--repository", "local"])?;
    ensure!(system(&said)["notes"][0].as_str().is_some_and(|note| note.contains("mounted")), "{said}");
    ensure!(segments(&bench.source.repository)? == before);
    fs::remove_dir(&place)?;

    fs::rename(&away, &place)?;
    let said = bench.expire(&["--repository", "local"])?;
    let left = segments(&bench.source.repository)?;
    let there = segments(&place)?;
    ensure!(system(&said)["deleted"]["wal_objects"].as_u64() > Some(0), "{said}");
    let oldest = both.first().context("a segment")?;
    for segment in before.difference(&left) {
        ensure!(segment < oldest || there.contains(segment), "{segment} is nowhere: {said}");
    }
    let missing: Vec<_> = before.iter().filter(|s| *s > oldest && !there.contains(*s)).collect();
    ensure!(
        missing.len() > 1 && missing.iter().all(|segment| left.contains(*segment)),
        "{missing:?} {left:?}"
    );
    // And what stays can still be fetched and is still taken.
    let fetched = bench.source.target("fetched").display().to_string();
    let name = missing[0].trim_end_matches(".wal");
    bench.source.pitr(&["archive-get", name, &fetched])?.expect(0)?;
    Ok(())
}

#[test]
fn corrupt_backups_do_not_pile_up_and_nothing_else_goes_meanwhile() -> Result<()> {
    let Some(bench) = Bench::new(2, AT_ONCE)? else { return Ok(()) };
    let cluster = &bench.source.cluster;
    cluster.psql("CREATE TABLE damaged AS SELECT generate_series(1, 1000) n; CHECKPOINT")?;
    let path = cluster.data.join(cluster.psql("SELECT pg_relation_filepath('damaged')")?);
    let mut bytes = fs::read(&path)?;
    bytes[5000] ^= 0xFF;
    fs::write(&path, bytes)?;
    let mut corrupt = Vec::new();
    for _ in 0..3 {
        // Ids count seconds: their order would be chance.
        std::thread::sleep(Duration::from_millis(1100));
        let said = bench.source.pitr(&["backup", "--json"])?.expect(6)?.json()?;
        corrupt.push(said["id"].as_str().context("an id")?.to_owned());
    }
    let first = bench.expire(&[])?;
    ensure!(system(&first)["frozen"].as_str().is_some_and(|why| why.contains("corrupt pages")), "{first}");
    let second = bench.expire(&[])?;
    ensure!(texts(&system(&second)["deleted"]["backups"], "") == corrupt[..2], "{second}");
    let left: BTreeSet<String> = bench.info()?.into_keys().collect();
    let wanted = bench.backups.iter().chain(&corrupt[2..]).cloned().collect();
    ensure!(left == wanted, "{left:?}");
    ensure!(bench.rows("all", &[])? == "10,11,20,21");
    Ok(())
}

#[test]
fn expiry_in_a_bucket_leaves_what_is_promised() -> Result<()> {
    let Some(s3) = S3::start()? else { return Ok(()) };
    let bucket = s3.directory.path().join("bucket");
    let into_bucket = |source: &Source| -> Result<()> {
        let text = fs::read_to_string(&source.config)?;
        let (head, _) = text.split_once("[[repository]]").context("a repository")?;
        let more = s3.settings(source.place.path())?;
        fs::write(
            &source.config,
            format!("{head}[[repository]]\nname = \"cloud\"\nurl = \"s3://bucket/pre\"\n{more}"),
        )?;
        source.pitr(&["init", "--plain"])?.expect(0).map(drop)
    };
    let Some(bench) = Bench::with(3, AT_ONCE, into_bucket)? else { return Ok(()) };
    let (one, two, last) = (&bench.backups[0], &bench.backups[1], &bench.backups[2]);
    let before = objects(&bucket)?;
    // A bucket tells its time in whole seconds: within the one in which the last backup ended, a window of a
    // millisecond begins before that end and holds the backup before it too.
    std::thread::sleep(Duration::from_millis(1100));
    let said = bench.expire(&[])?;
    ensure!(texts(&system(&said)["lost"], "id") == [one.clone(), two.clone()], "{said}");
    // For the same reason the tombstones are made older by one.
    let tombstones = objects(&bucket)?.into_iter().filter(|key| key.ends_with("expired.json"));
    tombstones.map(|key| age(&bucket.join(key), 1)).collect::<Result<Vec<()>>>()?;
    let said = bench.expire(&[])?;
    ensure!(texts(&system(&said)["deleted"]["backups"], "") == [one.clone(), two.clone()], "{said}");
    let after = objects(&bucket)?;
    ensure!(after.len() + 10 < before.len(), "{after:?}");
    ensure!(!after.iter().any(|key| key.contains(one.as_str()) || key.contains(two.as_str())), "{after:?}");
    ensure!(after.iter().any(|key| key.contains(last.as_str())), "{after:?}");
    bench.source.pitr(&["verify"])?.expect(0)?;
    ensure!(bench.rows("last", &[])? == "10,11,20,21,30,31");
    Ok(())
}
