//! Ten thousand segments through one agent: what it holds does not grow.
//!
//! The queue is made by the test (whole segments of synthetic WAL and their `.ready` files), asked for as PostgreSQL does and marked done;
//! memory and descriptors are the kernel's own account of the process.
#![cfg(feature = "testing")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pitr::agent::client;
use pitr::agent::wire::{Answer, Ask, Question};
use pitr::config::fingerprint;
use pitr::repo::path::Sealing;
use pitr::repo::{NewIdentity, Repository};
use pitr::store::{Store, StoreOptions};
use pitr::wal::testing::Wal;
use pitr::wal::{Lsn, PgMajor, PgTime, SegmentSize, SystemId};
use support::cluster::{as_server, give_to_server, scratch};

const ROUNDS: u64 = 20;
const SEGMENTS: u64 = 500;
const MIB: u64 = 1 << 20;
const SYSTEM: SystemId = SystemId::new(7_300_000_000_000_000_001);

/// A data directory without a server, its repository, and an agent for it.
struct Place {
    _dir: tempfile::TempDir,
    data: PathBuf,
    repository: PathBuf,
    socket: PathBuf,
    config: String,
    agent: Child,
    user: u32,
}

impl Place {
    fn new() -> Result<Self> {
        let dir = scratch("pitr-weeks-")?;
        let at = |name: &str| dir.path().join(name);
        let (data, repository, socket) = (at("data"), at("repo"), at("agent.sock"));
        fs::create_dir_all(data.join("pg_wal/archive_status"))?;
        fs::create_dir(data.join("global"))?;
        fs::create_dir(&repository)?;
        let url = format!("file://{}", repository.display());
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let store = Store::open(&url.parse()?, &StoreOptions::default())?;
            let new = NewIdentity {
                system: SYSTEM,
                major: PgMajor::V15,
                segment_size: SegmentSize::new(MIB)?,
                sealing: Sealing::Plain,
            };
            let repository = Repository::new(store, "main", "main".parse()?, true);
            repository.create_identity(new, jiff::Timestamp::now()).await?;
            anyhow::Ok(())
        })?;
        let text = format!(
            "cluster = \"main\"\n[postgres]\nconninfo = \"host=/nowhere\"\ndata_dir = \"{}\"\n[agent]\nsocket = \"{}\"\n\
             [promise]\nrpo = \"1h\"\n[[repository]]\nname = \"main\"\nurl = \"{url}\"\n",
            data.display(),
            socket.display()
        );
        let file = at("pitr.toml");
        fs::write(&file, &text)?;
        give_all_to_server(dir.path())?;
        let mut command = as_server(env!("CARGO_BIN_EXE_pitr"))?;
        command.env("PITR_TEST_TRACED", "1");
        command.arg("--config").arg(&file).arg("agent").stdout(Stdio::null());
        let agent = command.stderr(fs::File::create(at("agent.log"))?).spawn()?;
        let user = fs::metadata(&data)?.uid();
        let place =
            Self { _dir: dir, data, repository, socket, config: fingerprint(text.as_bytes()), agent, user };
        let since = Instant::now();
        while place.ask(Ask::Status).is_err() {
            ensure!(since.elapsed() < Duration::from_secs(60), "the agent does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(place)
    }

    fn ask(&self, ask: Ask) -> Result<Answer> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let question = Question { version, config: self.config.clone(), ask };
        Ok(client::ask(&self.socket, &[self.user, 0], &question)?)
    }

    fn ready(&self, name: &str) -> PathBuf {
        self.data.join(format!("pg_wal/archive_status/{name}.ready"))
    }

    /// Finishes a segment, as a server does.
    fn finish_segment(&self, n: u64) -> Result<String> {
        let time = PgTime::from_unix_micros(1_760_697_000_000_000 + i64::try_from(n)?);
        let wal = Wal::starting_at(Lsn::new(n * MIB)).commit(time).switch();
        let (name, bytes) = wal.segments().into_iter().next().context("a segment")?;
        let name = name.to_string();
        let path = self.data.join("pg_wal").join(&name);
        fs::write(&path, bytes)?;
        give_to_server(&path)?;
        fs::write(self.ready(&name), "")?;
        Ok(name)
    }

    /// Asks whether it is archived, and forgets it if so, as a server does.
    fn archive(&self, name: &str) -> Result<()> {
        let path = Path::new("pg_wal").join(name);
        let answer = self.ask(Ask::Push { directory: self.data.clone(), path: path.clone() })?;
        ensure!(matches!(answer, Answer::Yes { .. }), "{name}: {answer:?}");
        fs::remove_file(self.ready(name))?;
        Ok(fs::remove_file(self.data.join(path))?)
    }

    /// Resident memory that is the process's own, in KiB, and open descriptors.
    fn held(&self) -> Result<(u64, usize)> {
        let proc = PathBuf::from(format!("/proc/{}", self.agent.id()));
        let status = fs::read_to_string(proc.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
        let kib = line.trim().trim_end_matches(" kB").parse()?;
        Ok((kib, fs::read_dir(proc.join("fd"))?.count()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that ended already is fine.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

fn give_all_to_server(path: &Path) -> Result<()> {
    give_to_server(path)?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give_all_to_server(&entry?.path())?;
        }
    }
    Ok(())
}

#[test]
fn ten_thousand_segments_leave_no_trace_in_the_agent() -> Result<()> {
    let place = Place::new()?;
    let mut held = Vec::new();
    for round in 0..ROUNDS {
        let first = 1 + round * SEGMENTS;
        let names = (first..first + SEGMENTS).map(|n| place.finish_segment(n)).collect::<Result<Vec<_>>>()?;
        names.iter().try_for_each(|name| place.archive(name))?;
        held.push(place.held()?);
    }
    let stored = walk(&place.repository)?;
    ensure!(u64::try_from(stored)? == ROUNDS * SEGMENTS, "{stored} are stored");
    // The first rounds warm it up: its threads, their caches.
    let most = |held: &[(u64, usize)]| {
        let memory = held.iter().map(|(kib, _)| *kib).max().unwrap_or(0);
        (memory, held.iter().map(|(_, files)| *files).max().unwrap_or(0))
    };
    let (early, late) = held.split_at(held.len() / 2);
    let ((memory, files), (later, later_files)) = (most(early), most(late));
    ensure!(later <= memory + memory / 4 + 4096, "memory grew (KiB, descriptors): {held:?}");
    ensure!(later_files <= files + 8, "descriptors grew (KiB, descriptors): {held:?}");
    Ok(())
}

/// Segments stored below a folder.
fn walk(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        count += match path.is_dir() {
            true => walk(&path)?,
            false => usize::from(path.extension().is_some_and(|end| end == "wal")),
        };
    }
    Ok(count)
}
