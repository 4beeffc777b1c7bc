//! The program itself, each command as users and PostgreSQL run it: what a refusal, or a defect of ours, at the n-th call makes of
//! its exit code, and what becomes of it when nobody reads what it prints.
//!
//! `PITR_TEST_FAULTS` refuses the call for good, so that the store's own repetition does not hide it. What the program prints and
//! the repository are all that is looked at.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{fs, iter};

use anyhow::{Context as _, Result, ensure};
use clap::CommandFactory as _;
use pitr::cli::args::Cli;
use pitr::seal::Identity;

use super::MOST_CALLS;
use super::expire::{Worlds, finish, linked};
use super::support::audit::{Auditor, Objects, objects_in};
use super::support::cluster::{Cluster, Install, as_server, give_to_server, scratch_in_memory};
use super::support::office::{Office, sealed_here};
use super::support::promise::Promise;
use super::support::site::{Answer, Site, small_site};
use super::support::tree::{copy, remove};

/// A command line and the codes that it may end with when one of its calls is refused.
struct Row {
    args: Vec<String>,
    /// Without faults.
    good: i32,
    /// With one that is not survived: "a key or a permission is missing", as its caller reads it.
    refused: &'static [i32],
    least_calls: u64,
    /// Makes its world, because it uses it up.
    world: World,
    /// What completes it, where repeating it says that it is done already.
    completed_by: Option<Vec<String>>,
    /// Which calls are counted, as `store::fault` writes it; all of them.
    calls: &'static str,
    /// Another configuration than the site's.
    config: Option<PathBuf>,
    /// A repository of its own, of which things may go, and what must not.
    expires: Option<(PathBuf, RefCell<Promise>)>,
}

type World = Box<dyn Fn(&Site) -> Result<()>>;

impl Row {
    fn new(args: &[&str], good: i32, refused: &'static [i32], least_calls: u64) -> Self {
        let world: World = Box::new(|_| Ok(()));
        let (args, calls) = (owned(args), "");
        let (completed_by, config, expires) = (None, None, None);
        Self { args, good, refused, least_calls, world, completed_by, calls, config, expires }
    }

    fn with_config(self, config: PathBuf) -> Self {
        Self { config: Some(config), ..self }
    }

    fn repository(&self, site: &Site) -> PathBuf {
        self.expires.as_ref().map_or_else(|| site.repository.clone(), |(at, _)| at.clone())
    }

    /// What must hold of the repository by itself.
    fn check(&self, auditor: &mut Auditor, before: &Objects, after: &Objects) -> Result<()> {
        match &self.expires {
            Some((_, promise)) => promise.borrow_mut().check(after).map(drop),
            None => auditor.check(before, after),
        }
    }

    /// Where things go: the next runs finish.
    fn check_finished(&self) -> Result<()> {
        let Some((at, promise)) = &self.expires else { return Ok(()) };
        finish(at)?;
        promise.borrow().check_finished(&objects_in(at)?)
    }

    /// The names of the command, as clap reads them.
    fn command(&self) -> Result<String> {
        let matches = Cli::command()
            .try_get_matches_from(iter::once("pitr").chain(self.args.iter().map(String::as_str)))?;
        let (mut names, mut at) = (Vec::new(), &matches);
        while let Some((name, inner)) = at.subcommand() {
            names.push(name);
            at = inner;
        }
        Ok(names.join(" "))
    }

    fn in_world(self, world: impl Fn(&Site) -> Result<()> + 'static) -> Self {
        Self { world: Box::new(world), ..self }
    }
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn rows(site: &Site, [older, backup]: [String; 2], target: &Path) -> Result<Vec<Row>> {
    let files = site.cluster.wal_files()?;
    let name = |path: Option<&PathBuf>| -> Result<String> {
        Ok(path.and_then(|path| path.file_name()?.to_str()).context("a segment")?.to_owned())
    };
    let first = name(files.first())?;
    let later = format!("{}000000F0", first.get(..16).context("a segment")?);
    let push = format!("pg_wal/{first}");
    let damaged = damaged_segment(site, files.first().context("a segment")?)?;
    let target = target.display().to_string();
    let superuser = site.cluster.conninfo();
    let tombstone = site.folder()?.join("backups").join(&older).join("expired.json");
    let is_kept = move |_: &Site| match tombstone.exists() {
        true => Ok(fs::remove_file(&tombstone)?),
        false => Ok(()),
    };
    let (row, pinned) = (Row::new, backup.clone());
    let is_pinned = move |site: &Site| site.ask(&["pin", &pinned])?.expect(0, &[]);
    Ok(vec![
        row(&["init", "--superuser", &superuser], 0, &[7], 8),
        row(&["check"], 0, &[1], 8),
        row(&["archive-push", &push], 0, &[7], 3),
        row(&["archive-get", &first, "pg_wal/RECOVERYXLOG"], 0, &[207], 2),
        row(&["archive-get", &later, "pg_wal/RECOVERYXLOG"], 1, &[207], 4),
        row(&["archive-get", "00000002.history", "pg_wal/RECOVERYHISTORY"], 1, &[207], 4),
        row(&["backup"], 0, &[7], 12),
        row(&["info"], 0, &[7], 8),
        // What it could look at is sound, and it says that this is not all.
        row(&["verify"], 0, &[1, 7], 8),
        row(&["verify", "--decode"], 0, &[1, 7], 8),
        row(&["pin", &backup], 0, &[7], 4),
        row(&["unpin", &backup], 0, &[7], 4).in_world(is_pinned),
        // Nothing is given up without retention; with it: `rows_of_expiry`.
        row(&["expire"], 0, &[7], 8),
        row(&["expire", "--backup", &older], 0, &[7], 8).in_world(is_kept),
        row(&["restore", "--copy", "--target-dir", &target, "--dry-run"], 0, &[7], 8),
        row(&["restore", "--copy", "--target-dir", &target], 0, &[7], 15),
        row(&["accept", &damaged, "--damaged"], 0, &[7], 6),
    ])
}

/// What changes or tries the keys of an encrypted cluster.
fn rows_of_keys(site: &Site, office: &Office) -> Result<Vec<Row>> {
    let daily = office.daily().display().to_string();
    let (new_host, new_key) = (site.place().join("new.host"), site.place().join("new.key"));
    let generate = |name: &str| format!("{name}={}", new_key.with_extension(name).display());
    let (new_host_text, one, two) = (new_host.display().to_string(), generate("one"), generate("two"));
    let init = ["key", "--host-file", &new_host_text, "init", "--generate", &one, "--generate", &two];
    let made = [new_host, new_key.with_extension("one"), new_key.with_extension("two")];
    let is_new = move |_: &Site| {
        made.iter().filter(|file| file.exists()).try_for_each(|file| Ok(fs::remove_file(file)?))
    };
    // The host file, and the wraps in the repository, as they were.
    let (host, wraps) = (site.place().join("main.host"), site.folder()?.join("keys"));
    let (old_host, old_wraps) = (site.place().join("old.host"), site.place().join("old.keys"));
    copy(&host, &old_host)?;
    copy(&wraps, &old_wraps)?;
    let as_before = move |_: &Site| {
        copy(&old_host, &host)?;
        copy(&old_wraps, &wraps)
    };
    let somebody = format!("late={}", Identity::generate().recipient());
    let changed = |args: &[&str]| Row {
        completed_by: Some(owned(&["init", "--superuser", &site.cluster.conninfo()])),
        ..Row::new(args, 0, &[7], 6).in_world(as_before.clone())
    };
    Ok(vec![
        // It stores nothing: no store keeps anybody from having keys.
        Row::new(&init, 0, &[], 0).in_world(is_new),
        Row::new(&["--identity", &daily, "key", "test"], 0, &[7], 5),
        changed(&["key", "rotate"]),
        changed(&["--identity", &daily, "key", "add", &somebody]),
        changed(&["--identity", &daily, "key", "remove", "third"]),
        Row::new(&["key", "list"], 0, &[7], 5),
        Row::new(&["key", "kit"], 0, &[7], 3),
        recover(site, office, as_before.clone())?,
    ])
}

/// `key recover`, where the configuration names a host file that is lost: with what it makes, `init` goes on.
fn recover(site: &Site, office: &Office, as_before: impl Fn(&Site) -> Result<()> + 'static) -> Result<Row> {
    let (config, host) = (site.place().join("recovered.toml"), site.place().join("recovered.host"));
    let lost = site.place().join("main.host").display().to_string();
    let text = fs::read_to_string(&site.config)?.replace(&lost, &host.display().to_string());
    fs::write(&config, text)?;
    give_to_server(&config)?;
    let list = site.json(&["key", "list", "--json"])?;
    let fingerprint = list["seal_fingerprint"].as_str().context("a fingerprint")?.to_owned();
    let named = |name: &str, file: &Path| Ok::<_, anyhow::Error>(format!("{name}={}", office.public(file)?));
    let (daily, offline) = (named("daily", &office.daily())?, named("offline", &office.offline())?);
    let identity = office.daily().display().to_string();
    let args = [
        &["--identity", &identity, "--seal-fingerprint", &fingerprint, "key", "recover"][..],
        &["--recipient", &daily, "--recipient", &offline],
    ];
    let lost_again = move |site: &Site| {
        remove(&host)?;
        as_before(site)
    };
    Ok(Row {
        completed_by: Some(owned(&["init", "--superuser", &site.cluster.conninfo()])),
        ..Row::new(&args.concat(), 0, &[7], 6).in_world(lost_again).with_config(config)
    })
}

/// A configuration of the site's cluster with another repository.
fn config_of(site: &Site, name: &str, repository: &str) -> Result<PathBuf> {
    let text = fs::read_to_string(&site.config)?;
    let (head, _) = text.split_once("[[repository]]").context("a repository")?;
    let path = site.place().join(name);
    fs::write(&path, format!("{head}{repository}"))?;
    give_to_server(&path)?;
    Ok(path)
}

/// `expire` where retention gives something up: it marks and raises a floor in one world, deletes in the other.
fn rows_of_expiry(worlds: &Worlds) -> Result<Vec<Row>> {
    // Of many calls some are left out: deletes are counted once more, for themselves.
    [("fresh", "", 40), ("marked", "", 40), ("marked", "@delete", 12)]
        .into_iter()
        .map(|(name, calls, least)| {
            let (world, at) = (worlds.place.path().join(name), worlds.place.path().join("program"));
            let retention = "retention = { window = \"1ms\", grace = \"0\" }";
            let repository =
                format!("[[repository]]\nname = \"main\"\nurl = \"file://{}\"\n{retention}\n", at.display());
            let config = config_of(&worlds.site, "retention.toml", &repository)?;
            let expires = Some((at.clone(), RefCell::new(worlds.promise())));
            let row = Row::new(&["expire"], 0, &[7], least).with_config(config);
            Ok(Row { expires, calls, ..row.in_world(move |_| linked(&world, &at)) })
        })
        .collect()
}

/// `init --adopt` of a copy that was promoted. It stores the history of the copy's timeline.
fn row_of_adoption(site: &Site, copy: &Cluster) -> Result<Row> {
    let text = format!(
        "cluster = \"main\"\ntimezone = \"UTC\"\n[postgres]\ndata_dir = \"{}\"\n[[repository]]\nname = \"local\"\nurl = \"file://{}\"\n",
        copy.data.display(),
        site.repository.display(),
    );
    let config = site.place().join("adopted.toml");
    fs::write(&config, text)?;
    give_to_server(&config)?;
    let (marker, history) = (copy.data.join("pitr.copy"), site.folder()?.join("wal/00000002.history"));
    let mark = fs::read(&marker)?;
    let conninfo = copy.conninfo();
    let is_copy = move |_: &Site| {
        remove(&history)?;
        fs::write(&marker, &mark)?;
        give_to_server(&marker)
    };
    Ok(Row::new(&["init", "--adopt", "--superuser", &conninfo], 0, &[7], 5)
        .with_config(config)
        .in_world(is_copy))
}

/// Commands without a row, and why.
const WITHOUT_A_ROW: [(&str, &str); 6] = [
    ("agent", "it stays until it is told to end, and repeats: tests/agent.rs, tests/bad_store/resident.rs"),
    (
        "fetch-ahead",
        "its exit code is 0 whatever it meets, and it needs a recovery: tests/ahead.rs, tests/crash/ahead.rs",
    ),
    ("demo", "it runs the other commands on a cluster of its own"),
    ("completions", "it asks no store"),
    ("man", "it asks no store"),
    ("exec-as", "it asks no store"),
];

/// All commands of the program, the inner ones by both names.
fn commands_of(command: &clap::Command, before: &str) -> BTreeSet<String> {
    let found = command.get_subcommands().filter(|inner| inner.get_name() != "help").flat_map(|inner| {
        let name = format!("{before}{}", inner.get_name());
        match inner.has_subcommands() {
            true => commands_of(inner, &format!("{name} ")),
            false => BTreeSet::from([name]),
        }
    });
    found.collect()
}

/// Fails, naming it, for a command that has no row, or that has one and an excuse.
fn no_command_is_left_out(met: &BTreeSet<String>) -> Result<()> {
    let excused: BTreeSet<String> = WITHOUT_A_ROW.iter().map(|(name, _)| (*name).to_owned()).collect();
    let expected: BTreeSet<String> = commands_of(&Cli::command(), "").difference(&excused).cloned().collect();
    let differ: Vec<_> = expected.symmetric_difference(met).collect();
    ensure!(differ.is_empty(), "commands without a row, or rows of none: {differ:?}");
    Ok(())
}

/// A later segment's name with a content that is none of its own: damaged from its first byte on.
fn damaged_segment(site: &Site, content: &Path) -> Result<String> {
    let name = content
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.get(..16))
        .context("a name")?;
    let path = site.place().join(format!("{name}000000EE"));
    fs::copy(content, &path)?;
    give_to_server(&path)?;
    Ok(path.display().to_string())
}

fn run(site: &Site, row: &Row, args: &[String], faults: Option<&str>) -> Result<Answer> {
    let mut command = as_server(site.program())?;
    command.current_dir(&site.cluster.data).arg("--config");
    command.arg(row.config.as_ref().unwrap_or(&site.config)).args(args);
    command.envs(faults.map(|faults| ("PITR_TEST_FAULTS", faults)));
    Answer::of(&mut command)
}

/// What is done to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// The store says "not you".
    Deny,
    /// We fall over.
    Panic,
}

impl Harm {
    fn rule(self, calls: &str, nth: u64) -> String {
        let effect = match self {
            Self::Deny => "deny",
            Self::Panic => "panic",
        };
        format!("{effect}{calls}:{nth}")
    }

    /// May a command that met it end so?
    fn explains(self, row: &Row, answer: &Answer) -> bool {
        // A defect in a thread of its own is a failure like others; one in the main thread has its own code.
        let get = row.args.iter().any(|arg| arg == "archive-get");
        let advised = answer.err.contains("HINT") || answer.out.contains("refusal");
        match self {
            Self::Deny => row.refused.contains(&answer.code) && advised,
            Self::Panic if get => matches!(answer.code, 201 | 220) && answer.err.contains("panicked"),
            Self::Panic => answer.code == 1 && answer.err.contains("panicked"),
        }
    }
}

/// Harms the first, second, ... call of a command, until it is through.
fn harm_each_call(site: &Site, row: &Row, target: &Path, auditor: &mut Auditor, harm: Harm) -> Result<()> {
    let delivered =
        ["RECOVERYXLOG", "RECOVERYHISTORY"].map(|name| site.cluster.data.join("pg_wal").join(name));
    // Beyond the first calls those of many segments are alike.
    let calls = iter::successors(Some(1), |nth| Some(nth + 1 + nth / 20 * 5));
    for nth in calls.take_while(|nth| *nth < 10 * MOST_CALLS) {
        if target.exists() {
            fs::remove_dir_all(target)?;
        }
        for file in delivered.iter().filter(|file| file.exists()) {
            fs::remove_file(file)?;
        }
        (row.world)(site)?;
        let repository = row.repository(site);
        let before = objects_in(&repository)?;
        let answer = run(site, row, &row.args, Some(&harm.rule(row.calls, nth)))?;
        let what = format!("{:?}, {harm:?} at call {nth}: {answer:?}", row.args);
        let hit = answer.err.contains("injected");
        row.check(auditor, &before, &objects_in(&repository)?).context(what.clone())?;
        let restored = target.join("global/pg_control").exists();
        ensure!(!restored || answer.code == 0, "{what}: what failed can start");
        let left = delivered.iter().any(|file| file.exists());
        ensure!(!left || answer.code == 0, "{what}: what failed left a file");
        if !hit {
            ensure!(answer.code == row.good && nth > row.least_calls, "{what}");
            return row.check_finished();
        }
        // What a command can do without (a probe that stays, a pin that runs out) is no failure; but it is never "not there".
        let survived = harm == Harm::Deny && answer.code == 0 && row.good == 0;
        ensure!(survived || harm.explains(row, &answer), "{what}");
        if answer.code != 0 {
            let mut again = run(site, row, &row.args, None)?;
            if let Some(args) = row.completed_by.as_ref().filter(|_| again.code != row.good) {
                again = run(site, row, args, None)?;
            }
            ensure!(again.code == row.good, "{what}: repeated: {again:?}");
            row.check_finished().context(what)?;
        }
    }
    anyhow::bail!("{:?} does not end", row.args)
}

fn harm_every_command(harm: Harm) -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let mut met = BTreeSet::new();
    let place = scratch_in_memory("pitr-program-")?;
    let target = place.path().join("target");
    let mut harm_all = |site: &Site, rows: Vec<Row>, auditor: &mut Auditor| {
        rows.into_iter().try_for_each(|row| {
            met.insert(row.command()?);
            harm_each_call(site, &row, &target, auditor, harm)
        })
    };
    let site = small_site(&install)?;
    let taken = || -> Result<String> { Ok(site.backup()?["id"].as_str().context("an id")?.to_owned()) };
    let backups = [taken()?, taken()?];
    let mut auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
    site.switch()?;
    let (copy, _) = site.restored(&[])?;
    harm_all(&site, rows(&site, backups, &target)?, &mut auditor)?;
    // The history is the copy's, which no server of the auditor's wrote.
    let history = fs::read(copy.data.join("pg_wal/00000002.history"))?;
    auditor.offer("00000002.history", &history);
    harm_all(&site, vec![row_of_adoption(&site, &copy)?], &mut auditor)?;
    let worlds = Worlds::new(&install)?;
    harm_all(&worlds.site, rows_of_expiry(&worlds)?, &mut Auditor::default())?;
    let (site, office) = sealed_here(&install)?;
    // What the server would seal with an epoch that the next round undoes could not be read.
    site.cluster.psql("ALTER SYSTEM SET archive_command = 'false'")?;
    site.cluster.psql("SELECT pg_reload_conf()")?;
    let third = format!("third={}", Identity::generate().recipient());
    let daily = office.daily().display().to_string();
    site.ask(&["--identity", &daily, "key", "add", &third])?.expect(0, &[])?;
    harm_all(&site, rows_of_keys(&site, &office)?, &mut Auditor::default())?;
    no_command_is_left_out(&met)
}

#[test]
fn every_command_ends_with_its_documented_code_whatever_call_is_refused() -> Result<()> {
    harm_every_command(Harm::Deny)
}

/// PostgreSQL must not take a defect of ours for the end of WAL.
#[test]
fn a_defect_in_the_middle_of_a_command_stops_recovery_and_is_no_success() -> Result<()> {
    harm_every_command(Harm::Panic)
}

/// Where the output of a command goes in vain.
fn deaf(site: &Site, args: &[&str], out: Stdio, err: Stdio) -> Result<Option<i32>> {
    let mut command = site.pitr(args)?;
    // A warning is due, so that there is something to say.
    command.env("PITR_TEST_FAULTS", "fail:1").stdin(Stdio::null());
    Ok(command.stdout(out).stderr(err).status()?.code())
}

/// The end of a pipe whose reader is gone.
fn unread() -> Result<Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

fn full() -> Result<Stdio> {
    Ok(fs::OpenOptions::new().write(true).open("/dev/full")?.into())
}

#[test]
fn commands_do_their_work_when_nobody_reads_them_and_a_result_that_is_lost_is_no_success() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    let first = site.cluster.wal_files()?.first().and_then(|p| p.file_name()?.to_str().map(str::to_owned));
    let first = first.context("a segment")?;
    let (push, got) = (format!("pg_wal/{first}"), site.cluster.data.join("pg_wal/RECOVERYXLOG"));
    let get = ["archive-get", &first, "pg_wal/RECOVERYXLOG"];
    for make in [unread, full] {
        assert_eq!(deaf(&site, &["archive-push", &push], make()?, make()?)?, Some(0));
        assert_eq!(deaf(&site, &get, make()?, make()?)?, Some(0));
        ensure!(got.exists(), "the segment was delivered");
        fs::remove_file(&got)?;
        let absent = ["archive-get", "0000000100000000000000F0", "pg_wal/RECOVERYXLOG"];
        assert_eq!(deaf(&site, &absent, make()?, make()?)?, Some(1), "absence stays absence");
    }
    for args in [&["info", "--json"][..], &["info"], &["verify", "--json"], &["check", "--json"]] {
        assert_eq!(deaf(&site, args, unread()?, unread()?)?, Some(0), "{args:?} | head");
        assert_eq!(deaf(&site, args, full()?, Stdio::null())?, Some(1), "{args:?} > /dev/full");
    }
    Ok(())
}
