//! `init`, `check`, `archive-push` and `archive-get`, in process on a store in memory, with files of a real server.
//!
//! The clock is paused: a deadline passes at once, and so does the wait before a repetition.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pitr::clock::SystemClock;
use pitr::codec::Compression;
use pitr::error::Error;
use pitr::ops::archive::{Got, Route, get_file, store_file};
use pitr::ops::check::{self, Grade};
use pitr::ops::init::facts::{Archiver, ServerFacts};
use pitr::ops::{info, init};
use pitr::repo::Repository;
use pitr::store::Store;
use pitr::wal::{PgMajor, SegmentSize, SystemId, TimelineId, WalFileName};

use super::support::audit::{Auditor, Objects, objects, store_of};
use super::support::cluster::{Install, Stop, scratch};
use super::support::site::{Site, SiteOptions};
use super::{Command, Said, repository, survive, wait};

pub const COMPRESSION: Compression = Compression::Zstd { level: 1 };

/// Files of a server that ran for a while, in a directory that looks like its own.
pub struct Files {
    /// Kept for its directory.
    _place: tempfile::TempDir,
    pub data: PathBuf,
    out: PathBuf,
    pub facts: ServerFacts,
    /// Complete segments of timeline 1, in order.
    pub segments: Vec<String>,
}

impl Files {
    pub fn new(install: &Install) -> Result<Self> {
        let conf = "wal_keep_size = 512MB\n";
        let site = Site::new(install, &SiteOptions { archives: false, conf, ..SiteOptions::default() })?;
        site.cluster.psql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 60000) n; SELECT pg_switch_wal()")?;
        let current = site.cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")?;
        let system: u64 = site.system()?.parse()?;
        let files = site.cluster.wal_files()?;
        site.cluster.stop(Stop::Fast)?;
        let place = scratch("pitr-anomalies-")?;
        let (data, out) = (place.path().join("data"), place.path().join("out"));
        for dir in ["data/pg_wal", "data/global", "out"] {
            fs::create_dir_all(place.path().join(dir))?;
        }
        fs::copy(site.cluster.data.join("global/pg_control"), data.join("global/pg_control"))?;
        let mut segments = Vec::new();
        for path in files {
            let name = path.file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
            if name < current {
                fs::copy(&path, data.join("pg_wal").join(&name))?;
                segments.push(name);
            }
        }
        segments.drain(..segments.len().saturating_sub(4));
        ensure!(segments.len() == 4, "{segments:?}");
        let facts = ServerFacts {
            major: PgMajor::from_number(install.major).context("a major")?,
            version: install.major.to_string(),
            system: SystemId::new(system),
            segment_size: SegmentSize::new(1 << 20)?,
            data_dir: Some(data.clone()),
            bin_dir: None,
            timezone: "UTC".into(),
            in_recovery: false,
            superuser: true,
            settings: Default::default(),
            archiver: Archiver::default(),
        };
        let files = Self { _place: place, data, out, facts, segments };
        files.put("00000002.history", &files.history()?)?;
        let last = files.segments.last().context("a segment")?.clone();
        files.put(&child_of(&last), &files.bytes(&last)?)?;
        files.put(&format!("{last}.partial"), &files.bytes(&last)?)?;
        files.put(&format!("{last}.00000028.backup"), b"START WAL LOCATION: 0/2000028\n")?;
        Ok(files)
    }

    /// Timeline 2 leaves timeline 1 in the last segment.
    fn history(&self) -> Result<Vec<u8>> {
        let last = self.segments.last().context("a segment")?;
        let within = u64::from_str_radix(last.get(16..).context("a number")?, 16)?;
        Ok(format!("1\t0/{:X}\tno recovery target specified\n", (within << 20) + 0x40).into_bytes())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.data.join("pg_wal").join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(fs::write(self.path(name), bytes)?)
    }

    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.path(name))?)
    }

    /// A repository that knows the cluster and holds these files.
    pub fn repository_with(&self, names: &[&str]) -> Result<Objects> {
        wait(true, async {
            let store = store_of(&Objects::new()).await?;
            init::repository(&repository(store.clone())?, &self.facts, None, &SystemClock).await?;
            for name in names {
                self.push(&repository(store.clone())?, &self.path(name)).await?;
            }
            objects(&store).await
        })
    }

    async fn push(&self, repository: &Repository, path: &Path) -> Result<(), Error> {
        let repositories = [repository.clone()];
        store_file(&repositories, path, Some(&self.data), COMPRESSION).await.map(drop)
    }
}

fn child_of(segment: &str) -> String {
    segment.replacen("00000001", "00000002", 1)
}

/// `archive-push` of one file into a repository that holds `stored`.
struct Push<'a> {
    files: &'a Files,
    file: String,
    stored: Objects,
}

impl Command for Push<'_> {
    fn name(&self) -> String {
        format!("archive-push {}", self.file)
    }

    fn least_calls(&self) -> usize {
        3
    }

    fn world(&mut self) -> Result<Store> {
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let path = self.files.path(&self.file);
        wait(true, self.files.push(&repository, &path)).map(|()| Said::Done)
    }

    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()> {
        let bytes = self.files.bytes(&self.file)?;
        let there = Auditor::comes_back(after, &self.file, &bytes);
        ensure!(said.is_err() || there, "acknowledged, and it does not come back");
        // Without the history of its timeline nothing on that timeline can be reached.
        let needs_history = self.file.starts_with("00000002") && self.file.len() == 24;
        let history =
            || Auditor::comes_back(after, "00000002.history", &self.files.history().unwrap_or_default());
        ensure!(!there || !needs_history || history(), "a segment before the history of its timeline");
        Ok(())
    }
}

/// `archive-get` of one file out of a repository that holds `stored`.
struct Get<'a> {
    files: &'a Files,
    file: String,
    /// Recovery goes to this timeline.
    timeline: Option<TimelineId>,
    stored: Objects,
    /// What it must deliver; `None` if it is not there.
    content: Option<Vec<u8>>,
    /// Stored in two copies, of which one is longer: only the store can tell that there is a second.
    copies: bool,
}

impl Get<'_> {
    fn destination(&self) -> PathBuf {
        self.files.out.join("RECOVERYXLOG")
    }
}

impl Command for Get<'_> {
    fn name(&self) -> String {
        format!("archive-get {} ({:?})", self.file, self.timeline)
    }

    fn least_calls(&self) -> usize {
        2
    }

    fn world(&mut self) -> Result<Store> {
        fs::write(self.destination(), "was here before")?;
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let name = WalFileName::parse(&self.file).map_err(|error| Error::usage(error.to_string()))?;
        let system = Some(self.files.facts.system);
        let got = wait(
            true,
            get_file(
                &[repository],
                name,
                &self.destination(),
                system,
                Route { timeline: self.timeline, until: None },
                || true,
            ),
        );
        got.map(|got| match got {
            Got::Delivered { .. } => Said::Done,
            Got::Absent => Said::Absent,
        })
    }

    fn audit(&self, said: &Result<Said, Error>, _: &Objects) -> Result<()> {
        let found = fs::read(self.destination())?;
        match (said, &self.content) {
            (Ok(Said::Done), Some(content)) => ensure!(&found == content, "not what was archived"),
            (Ok(Said::Absent), None) | (Err(_), _) => {
                let kept = found == b"was here before" || Some(&found) == self.content.as_ref();
                ensure!(kept, "the destination was touched: {} bytes", found.len());
            }
            (said, _) => anyhow::bail!("it said {said:?}"),
        }
        ensure!(fs::read_dir(&self.files.out)?.count() == 1, "something was left beside the destination");
        Ok(())
    }

    fn believes_a_lie(&self) -> bool {
        self.copies
    }
}

/// `init` of a repository.
struct Init<'a> {
    files: &'a Files,
    stored: Objects,
}

impl Command for Init<'_> {
    fn name(&self) -> String {
        format!("init of a repository with {} objects", self.stored.len())
    }

    fn least_calls(&self) -> usize {
        10
    }

    fn world(&mut self) -> Result<Store> {
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        wait(true, init::repository(&repository, &self.files.facts, None, &SystemClock)).map(|_| Said::Done)
    }

    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()> {
        let identities = after.keys().filter(|key| key.ends_with("/identity.json")).count();
        let marks = after.keys().filter(|key| key.starts_with("main/format/")).count();
        ensure!(identities <= 1 && marks >= identities, "{:?}", after.keys());
        ensure!(said.is_err() || identities == 1, "initialised, and there is no identity");
        Ok(())
    }
}

/// `check` of a repository; a finding that is not good counts as a failure.
struct Check<'a> {
    files: &'a Files,
    stored: Objects,
}

impl Command for Check<'_> {
    fn name(&self) -> String {
        "check".into()
    }

    fn least_calls(&self) -> usize {
        10
    }

    fn world(&mut self) -> Result<Store> {
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let found = wait(true, check::repository(&repository, Some(&self.files.facts)));
        match found.iter().find(|finding| finding.grade != Grade::Good) {
            None => Ok(Said::Done),
            Some(bad) => {
                let error = Error::failed(format!("{}: {}", bad.what, bad.found));
                Err(bad.hint.iter().fold(error, Error::hint))
            }
        }
    }

    fn audit(&self, _: &Result<Said, Error>, after: &Objects) -> Result<()> {
        let new = after.keys().filter(|key| !self.stored.contains_key(*key) && !key.contains("/probe-"));
        ensure!(new.count() == 0, "check has written something");
        Ok(())
    }
}

/// `info`: all of it, or an error. Part of it would be read as loss, or as absence.
pub struct Info {
    /// The repository it shows.
    pub stored: Objects,
    shown: RefCell<Option<String>>,
}

impl Info {
    /// Of this repository.
    pub fn new(stored: Objects) -> Self {
        Self { stored, shown: RefCell::default() }
    }
}

impl Command for Info {
    fn name(&self) -> String {
        format!("info of {} objects", self.stored.len())
    }

    fn least_calls(&self) -> usize {
        8
    }

    fn world(&mut self) -> Result<Store> {
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let info = wait(true, info::read(&repository, None))?;
        // The URL differs with each store in memory.
        let shown = format!("{:?} {:?} {:?} {:?}", info.identity, info.backups, info.wal, info.windows);
        Ok(Said::Shown(shown))
    }

    fn audit(&self, said: &Result<Said, Error>, _: &Objects) -> Result<()> {
        if let Ok(Said::Shown(shown)) = said {
            let expected = self.shown.borrow_mut().get_or_insert_with(|| shown.clone()).clone();
            ensure!(*shown == expected, "it shows another repository:\n{shown}\n{expected}");
        }
        Ok(())
    }

    fn believes_a_lie(&self) -> bool {
        true
    }
}

#[test]
fn whatever_call_of_archive_push_fails_nothing_acknowledged_is_lost() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let files = Files::new(&install)?;
    let [first, .., last] = files.segments.as_slice() else { unreachable!() };
    let mut auditor = auditor(&files)?;
    let base = files.repository_with(&[])?;
    // A copy that ends early: its rest is to come.
    let whole = files.bytes(first)?;
    let mut short = whole.clone();
    short[whole.len() / 2..].fill(0);
    auditor.offer(first, &short);
    files.put(first, &short)?;
    let with_short = files.repository_with(&[first])?;
    files.put(first, &whole)?;
    let cases = [
        (last.clone(), base.clone()),
        (last.clone(), files.repository_with(&[last])?),
        (first.clone(), with_short),
        (child_of(last), base.clone()),
        ("00000002.history".into(), base.clone()),
        (format!("{last}.partial"), base.clone()),
        (format!("{last}.00000028.backup"), base),
    ];
    for (file, stored) in cases {
        survive(&mut Push { files: &files, file, stored }, &mut auditor)?;
    }
    Ok(())
}

pub fn auditor(files: &Files) -> Result<Auditor> {
    let mut auditor = Auditor::default();
    for entry in fs::read_dir(files.data.join("pg_wal"))? {
        let name = entry?.file_name().to_str().context("a name")?.to_owned();
        auditor.offer(&name, &files.bytes(&name)?);
    }
    Ok(auditor)
}

#[test]
fn whatever_call_of_archive_get_fails_doubt_is_never_absence() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let files = Files::new(&install)?;
    let [first, second, third, last] = files.segments.as_slice() else { unreachable!() };
    let mut auditor = auditor(&files)?;
    let three = files.repository_with(&[first, second, third])?;
    let whole = files.bytes(first)?;
    let mut short = whole.clone();
    short[whole.len() / 2..].fill(0);
    auditor.offer(first, &short);
    files.put(first, &short)?;
    let mut copies = files.repository_with(&[first])?;
    files.put(first, &whole)?;
    copies = wait(true, async {
        let store = store_of(&copies).await?;
        files.push(&repository(store.clone())?, &files.path(first)).await?;
        objects(&store).await
    })?;
    let forked = files.repository_with(&[first, second, third, last, "00000002.history"])?;
    let mut cut = files.bytes(last)?;
    cut[0x40..].fill(0);
    let two = TimelineId::new(2);
    let cases = [
        (third.clone(), None, three.clone(), Some(files.bytes(third)?)),
        (last.clone(), None, three.clone(), None),
        ("00000002.history".into(), None, three.clone(), None),
        (child_of(last), None, three, None),
        (first.clone(), None, copies, Some(whole.clone())),
        ("00000002.history".into(), None, forked.clone(), Some(files.history()?)),
        (third.clone(), two, forked.clone(), Some(files.bytes(third)?)),
        (last.clone(), two, forked.clone(), Some(cut)),
        (child_of(last), two, forked, None),
    ];
    for (file, timeline, stored, content) in cases {
        let copies = content.as_ref() == Some(&whole);
        survive(&mut Get { files: &files, file, timeline, stored, content, copies }, &mut auditor)?;
    }
    Ok(())
}

#[test]
fn whatever_call_of_init_or_check_fails_it_is_said_and_can_be_repeated() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let files = Files::new(&install)?;
    let mut auditor = auditor(&files)?;
    let stored = files.repository_with(&[&files.segments[0]])?;
    for stored in [Objects::new(), stored.clone()] {
        survive(&mut Init { files: &files, stored }, &mut auditor)?;
    }
    survive(&mut Check { files: &files, stored }, &mut auditor)
}
