//! A store that is there and does not serve: it takes the connection and never answers, stops in the middle of a body, refuses the
//! credentials, or lives at another time than this host.
//!
//! ```text
//!  pitr ──► between (a TCP server of the test) ──► s3s-fs, a real S3 server
//!            passes requests on until the n-th, then: silence, half an answer, a refusal; or shifts the store's clock
//! ```
//! For n = 1, 2, 4 … and each command of the table: it ends, by the deadlines of docs/deadlines.md (`archive.timeout` is a second here); its exit code is
//! the documented one, and never "not there"; it names the store, says why and what to do; and with a store that serves again it succeeds. No
//! time is measured, beyond that a command ended at all.
#![cfg(feature = "testing")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

#[path = "bad_store/between.rs"]
mod between;
#[path = "bad_store/fetching.rs"]
mod fetching;
#[path = "bad_store/refused.rs"]
mod refused;
#[path = "bad_store/resident.rs"]
mod resident;
#[path = "bad_store/skewed.rs"]
mod skewed;
#[path = "bad_store/wedged.rs"]
mod wedged;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use between::Between;
use support::audit::{Objects, objects_in};
use support::cluster::{Install, as_server, give_to_server, scratch, scratch_in_memory};
use support::promise::Promise;
use support::s3::S3;
use support::site::{Answer, Site, SiteOptions, until};
use support::tree::copy;

/// A command that still runs by then hangs: the longest of them adds up to a fraction of this.
const HANGS: Duration = Duration::from_secs(150);

/// A server with a backup and WAL in a bucket.
struct World {
    s3: S3,
    site: Site,
    /// A stored segment, and one that never was.
    segment: String,
    later: String,
    /// A file to push that nobody else needs: the end of a timeline, as a promoted server leaves it.
    partial: String,
    expiring: OnceLock<Expiring>,
}

/// Copies of the repository, in which retention gives something up.
struct Expiring {
    /// Two backups, of which the older goes.
    fresh: PathBuf,
    /// It is marked.
    marked: PathBuf,
    /// What runs leave that nobody disturbs.
    left: Objects,
}

impl World {
    /// None, said as a skipped test does, without PostgreSQL or the S3 server.
    fn new() -> Result<Option<Self>> {
        let (Some(install), Some(s3)) = (Install::find_or_skip(15), S3::start()?) else { return Ok(None) };
        let place = scratch("pitr-bad-store-")?;
        let more = s3.settings(place.path())?;
        let conf = "wal_keep_size = 4GB\nautovacuum = off\n";
        let options = SiteOptions { conf, ..SiteOptions::default() };
        let mut site = Site::at(&install, &options, place, "s3://bucket/pre", Some(&more))?;
        // The S3 server keeps objects as files.
        site.repository = s3.directory.path().join("bucket/pre");
        site.backup()?;
        site.cluster.psql("CREATE TABLE t AS SELECT 42 AS n")?;
        let segment = site.cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
        site.switch()?;
        let later = format!("{}000000F0", segment.split_at(16).0);
        let partial = format!("{segment}.partial");
        let pg_wal = site.cluster.data.join("pg_wal");
        fs::copy(pg_wal.join(&segment), pg_wal.join(&partial))?;
        give_to_server(&pg_wal.join(&partial))?;
        Ok(Some(Self { s3, site, segment, later, partial, expiring: OnceLock::new() }))
    }

    /// A configuration of the same cluster that reaches the bucket by another address.
    fn config(&self, name: &str, endpoint: &str, more: &str) -> Result<PathBuf> {
        let text = fs::read_to_string(&self.site.config)?;
        let text = text.replace(&self.s3.endpoint(), endpoint);
        let path = self.site.place().join(name);
        fs::write(&path, format!("{text}\n{more}\n[archive]\ntimeout = \"1s\"\n"))?;
        give_to_server(&path)?;
        Ok(path)
    }

    /// Where the objects below a prefix of the bucket are.
    fn prefix(&self, name: &str) -> PathBuf {
        self.s3.directory.path().join("bucket").join(name)
    }

    /// A configuration with retention, of a copy of the repository below another prefix.
    fn expiring_config(&self, name: &str, endpoint: &str, prefix: &str) -> Result<PathBuf> {
        let path = self.config(name, endpoint, "retention = { window = \"1ms\", grace = \"0\" }")?;
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains("s3://bucket/pre\""), "{text}");
        fs::write(&path, text.replace("s3://bucket/pre\"", &format!("s3://bucket/{prefix}\"")))?;
        Ok(path)
    }

    fn expiring(&self) -> Result<&Expiring> {
        if let Some(made) = self.expiring.get() {
            return Ok(made);
        }
        self.site.backup()?;
        self.site.switch()?;
        let (at, config) = (
            self.prefix("pre-frozen"),
            self.expiring_config("frozen.toml", &self.s3.endpoint(), "pre-frozen")?,
        );
        let expire = || Answer::of(&mut self.pitr(&config, &["expire"])?)?.expect(0, &[]);
        let [fresh, marked] = ["fresh", "marked"].map(|name| self.site.place().join(name));
        copy(&self.site.repository, &at)?;
        copy(&at, &fresh)?;
        expire()?;
        copy(&at, &marked)?;
        // S3 tells times in seconds: what was marked in this one is no older than it.
        let is_gone = || {
            expire()?;
            Ok(objects_in(&at)?.keys().all(|key| !key.ends_with("/expired.json")))
        };
        until(is_gone, || "what is marked does not go".to_owned())?;
        expire()?;
        let left = objects_in(&at)?;
        ensure!(left.len() + 5 < objects_in(&marked)?.len(), "little is deleted: {:?}", left.keys());
        Ok(self.expiring.get_or_init(|| Expiring { fresh, marked, left }))
    }

    fn pitr(&self, config: &Path, args: &[&str]) -> Result<Command> {
        let mut command = as_server(self.site.program())?;
        command.current_dir(&self.site.cluster.data).arg("--config").arg(config).args(args);
        Ok(command)
    }
}

/// A command, and how it ends.
struct Row {
    args: Vec<String>,
    /// With a store that serves.
    good: i32,
    /// With one that does not, for the two reasons.
    silent: &'static [i32],
    refused: &'static [i32],
    /// Where it delivers, if it does.
    target: Option<PathBuf>,
    /// It deletes: in a copy of its own.
    expires: Option<Stage>,
}

/// What a run of `expire` finds.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Something to mark and to raise a floor for.
    Fresh,
    /// Something to delete.
    Marked,
}

fn rows(world: &World, place: &Path) -> Vec<Row> {
    let row = |args: &[&str], good, silent, refused| {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Row { args, good, silent, refused, target: None, expires: None }
    };
    let got = place.join("got").display().to_string();
    let copy = place.join("copy").display().to_string();
    let restore = row(&["restore", "--copy", "--target-dir", &copy], 0, &[1], &[7]);
    let push = format!("pg_wal/{}", world.partial);
    vec![
        row(&["archive-push", &push], 0, &[1], &[7]),
        Row {
            target: Some(place.join("got")),
            ..row(&["archive-get", &world.segment, &got], 0, &[201], &[207])
        },
        row(&["archive-get", &world.later, &got], 1, &[201], &[207]),
        row(&["archive-get", "00000002.history", &got], 1, &[201], &[207]),
        row(&["backup"], 0, &[1], &[7]),
        row(&["info"], 0, &[1], &[7]),
        // At risk: this server keeps no conditional creates.
        row(&["check"], 2, &[1], &[1]),
        row(&["verify"], 0, &[1], &[1, 7]),
        Row { expires: Some(Stage::Fresh), ..row(&["expire"], 0, &[1], &[7]) },
        Row { expires: Some(Stage::Marked), ..row(&["expire"], 0, &[1], &[7]) },
        Row { target: Some(place.join("copy/global/pg_control")), ..restore },
    ]
}

/// A row, its way to the store, and a place of its own; so that rows, which mostly wait, can go on side by side.
struct Seat<'a> {
    world: &'a World,
    row: Row,
    between: Between,
    config: PathBuf,
    place: tempfile::TempDir,
    /// Of a row that expires: its repository as it is found, where, and what must not go.
    expires: Option<(PathBuf, PathBuf, Mutex<Promise>)>,
}

impl<'a> Seat<'a> {
    fn all(world: &'a World, name: &str) -> Result<Vec<Self>> {
        let count = rows(world, Path::new("/")).len();
        (0..count).map(|number| Self::new(world, &format!("{name}-{number}.toml"), number)).collect()
    }

    fn new(world: &'a World, name: &str, number: usize) -> Result<Self> {
        let place = scratch_in_memory("pitr-seat-")?;
        let row = rows(world, place.path()).swap_remove(number);
        let between = Between::start(&world.s3.address())?;
        let endpoint = format!("http://{}", between.address());
        let Some(stage) = row.expires else {
            let config = world.config(name, &endpoint, "")?;
            return Ok(Self { world, row, between, config, place, expires: None });
        };
        let (prefix, all) = (format!("pre-{}", name.trim_end_matches(".toml")), world.expiring()?);
        let found = match stage {
            Stage::Fresh => all.fresh.clone(),
            Stage::Marked => all.marked.clone(),
        };
        let promise = Promise::new(&world.site.cluster.data.join("pg_wal"), all.left.clone());
        let expires = Some((found, world.prefix(&prefix), Mutex::new(promise)));
        let config = world.expiring_config(name, &endpoint, &prefix)?;
        Ok(Self { world, row, between, config, place, expires })
    }

    /// Runs the command in a world as it was; fails if it does not end.
    fn run(&self) -> Result<Answer> {
        for leftover in ["got", "copy"] {
            let path = self.place.path().join(leftover);
            if path.is_dir() {
                fs::remove_dir_all(&path)?;
            } else if path.exists() {
                fs::remove_file(&path)?;
            }
        }
        if self.row.args[0] == "archive-push" {
            fs::remove_file(self.world.site.object(&self.world.partial)?).ok();
        }
        if let Some((found, at, _)) = &self.expires {
            copy(found, at)?;
        }
        let args: Vec<&str> = self.row.args.iter().map(String::as_str).collect();
        let answer = within(HANGS, self.world.pitr(&self.config, &args)?)?;
        if let Some((_, at, promise)) = &self.expires {
            let mut promise = promise.lock().unwrap_or_else(PoisonError::into_inner);
            promise.check(&objects_in(at)?).with_context(|| format!("{answer:?}"))?;
        }
        Ok(answer)
    }

    /// What a command says that met the bad store: one of these codes, where, and what to do.
    fn judge(&self, answer: &Answer, codes: &[i32], words: &[&str]) -> Result<()> {
        let said = format!("{}{}", answer.out, answer.err);
        ensure!(codes.contains(&answer.code), "exit code");
        ensure!(self.row.target.as_ref().is_none_or(|target| !target.exists()), "it failed, and delivered");
        ensure!(said.contains("s3://bucket/pre"), "it does not say where");
        let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
        ensure!(missing.is_empty(), "it does not say {missing:?}");
        ensure!(self.row.args[0] == "check" || answer.err.contains("HINT: "), "no advice");
        Ok(())
    }

    /// It said yes although the store did not serve to the end: all that was left was to tidy up, which not every command does.
    fn only_tidied_up(&self, answer: &Answer) -> Result<bool> {
        if answer.code != 0 || self.row.good != 0 {
            return Ok(false);
        }
        ensure!(["backup", "expire", "restore"].contains(&self.row.args[0].as_str()), "it says yes");
        self.is_good(answer).map(|()| true)
    }

    /// The store serves, and the command does what it is for.
    fn is_good(&self, answer: &Answer) -> Result<()> {
        ensure!(answer.code == self.row.good, "{:?}: {answer:?}", self.row.args);
        ensure!(self.row.target.as_ref().is_none_or(|target| target.exists()), "it delivered nothing");
        Ok(())
    }
}

/// Runs seats side by side; the first failure.
fn side_by_side(seats: &[Seat<'_>], work: impl Fn(&Seat<'_>) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = seats.iter().map(|seat| scope.spawn(move || work(seat))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?)
    })
}

/// Runs a command to its end, which must come.
fn within(limit: Duration, mut command: Command) -> Result<Answer> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        thread::spawn(move || {
            let mut text = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let err = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let [out, err] = [out, err].map(|thread| thread.join().unwrap_or_default());
    let status = status.with_context(|| format!("{command:?} does not end:\n{out}\n{err}"))?;
    Ok(Answer { code: status.code().unwrap_or(-1), out, err })
}
