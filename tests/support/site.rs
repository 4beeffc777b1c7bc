//! One PostgreSQL cluster that archives through pitr, set up as users do: `pitr init --apply` and a restart, no file written by hand.
//!
//! The program is run as the servers' user with a bare environment. What it answers is taken from exit codes, `--json` and the
//! files of the `file://` repository; nothing here looks into the library. Restores are copies in directories of their own.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use pitr::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use serde_json::Value;

use super::cluster::{
    Cluster, Install, Options, Stop, as_server, as_server_on, give_to_server, run, scratch,
};

/// How long a condition may take to come true on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where and as what a site is made.
#[derive(Debug, Clone)]
pub struct SiteOptions {
    /// Segment size in MiB.
    pub segment_mib: u32,
    /// The promised RPO.
    pub rpo: &'static str,
    /// Settings of the server from the start.
    pub conf: &'static str,
    /// True if the server shall archive (`init --apply`), false if the test pushes by hand.
    pub archives: bool,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self { segment_mib: 1, rpo: "5m", conf: "", archives: true }
    }
}

/// A cluster and its repository.
#[derive(Debug)]
pub struct Site {
    /// The cluster; it runs.
    pub cluster: Cluster,
    /// The configuration that `init` wrote.
    pub config: PathBuf,
    /// The root of the repository, if it is a directory.
    pub repository: PathBuf,
    program: PathBuf,
    place: tempfile::TempDir,
}

impl Site {
    /// Initialises and starts a cluster, and sets up archiving into a new `file://` repository.
    pub fn new(install: &Install, options: &SiteOptions) -> Result<Self> {
        let place = scratch("pitr-site-")?;
        let url = format!("file://{}", place.path().join("repo").display());
        Self::at(install, options, place, &url, None)
    }

    /// The same with a repository elsewhere. `more` are keys of its `[[repository]]`, which `init` then finds in a configuration.
    pub fn at(
        install: &Install,
        options: &SiteOptions,
        place: tempfile::TempDir,
        url: &str,
        more: Option<&str>,
    ) -> Result<Self> {
        let conf = format!("checkpoint_timeout = 1h\n{}\n", options.conf);
        let segment_mib = options.segment_mib;
        let cluster = Cluster::init(install, &Options { segment_mib, conf, ..Options::default() })?;
        cluster.start()?;
        let (config, repository) = (place.path().join("pitr.toml"), place.path().join("repo"));
        let program = program(place.path())?;
        let site = Self { cluster, config, repository, program, place };
        match more {
            Some(more) => {
                site.write_config(&format!("[[repository]]\nname = \"only\"\nurl = \"{url}\"\n{more}"))?;
                // What is not on this host is made in clear only where that is said.
                let plain = if more.contains("[keys]") { &[][..] } else { &["--plain"] };
                site.init(plain, options)?;
            }
            None => site.init(&["--repository", url, "--cluster", "main"], options)?,
        }
        Ok(site)
    }

    /// Another cluster that archives into the same repository, by a configuration of its own.
    pub fn beside(&self, cluster: Cluster, config: &str) -> Result<Self> {
        let place = scratch("pitr-site-")?;
        let (config, program) = (place.path().join(config), program(place.path())?);
        let other = Self { cluster, config, repository: self.repository.clone(), program, place };
        let url = format!("file://{}", self.repository.display());
        other.write_config(&format!("[[repository]]\nname = \"main\"\nurl = \"{url}\"\n"))?;
        Ok(other)
    }

    fn init(&self, more: &[&str], options: &SiteOptions) -> Result<()> {
        let conninfo = self.cluster.conninfo();
        let mut args = vec!["init", "--superuser", &conninfo, "--rpo", options.rpo, "--json"];
        args.extend(more);
        if options.archives {
            args.push("--apply");
        }
        let done = self.json(&args)?;
        ensure!(done["schema"] == "pitr.init.v1", "{done}");
        if options.archives {
            ensure!(done["restart_needed"] == true, "archive_mode takes a restart: {done}");
            self.cluster.stop(Stop::Fast)?;
            self.cluster.start()?;
        }
        Ok(())
    }

    /// Writes a configuration of this cluster with these repositories, in place of the present one.
    pub fn write_config(&self, repositories: &str) -> Result<()> {
        let text = format!(
            "cluster = \"main\"\ntimezone = \"UTC\"\n[postgres]\nconninfo = \"{}\"\ndata_dir = \"{}\"\nbin_dir = \"{}\"\n{repositories}",
            self.cluster.conninfo(),
            self.cluster.data.display(),
            self.cluster.install.bin.display(),
        );
        fs::write(&self.config, text)?;
        give_to_server(&self.config)
    }

    /// A directory of the test's own.
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// The program, as the servers' user runs it.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// `pitr --config FILE ARGS`, started in the data directory as PostgreSQL does.
    pub fn pitr(&self, args: &[&str]) -> Result<Command> {
        let mut command = as_server(&self.program)?;
        command.current_dir(&self.cluster.data).arg("--config").arg(&self.config).args(args);
        Ok(command)
    }

    /// The same on a host of that name.
    pub fn pitr_on(&self, host: &str, args: &[&str]) -> Result<Command> {
        let mut command = as_server_on(host, &self.program)?;
        command.current_dir(&self.cluster.data).arg("--config").arg(&self.config).args(args);
        Ok(command)
    }

    /// Runs it to its end, however that is.
    pub fn ask(&self, args: &[&str]) -> Result<Answer> {
        Answer::of(&mut self.pitr(args)?)
    }

    /// Runs it; it must succeed and print one JSON object.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let answer = self.ask(args)?;
        ensure!(answer.code == 0, "{args:?}: {answer:?}\n{}", self.cluster.log_text());
        serde_json::from_str(&answer.out).with_context(|| format!("{args:?}: {answer:?}"))
    }

    /// Takes a full backup.
    pub fn backup(&self) -> Result<Value> {
        let done = self.json(&["backup", "--full", "--json"])?;
        ensure!(done["schema"] == "pitr.backup.v1" && done["kind"] == "full", "{done}");
        Ok(done)
    }

    /// The system identifier.
    pub fn system(&self) -> Result<String> {
        self.cluster.psql("SELECT system_identifier FROM pg_control_system()")
    }

    /// The folder of this cluster in a `file://` repository.
    pub fn folder(&self) -> Result<PathBuf> {
        let main = self.repository.join("main");
        let mut found = Vec::new();
        for entry in fs::read_dir(&main).with_context(|| main.display().to_string())? {
            let path = entry?.path();
            if path.join("identity.json").exists() {
                found.push(path);
            }
        }
        match found.as_slice() {
            [] => bail!("no system folder in {}", main.display()),
            [only] => Ok(only.clone()),
            // After pg_upgrade: the folder of the server that is there now.
            _ => Ok(main.join(self.system()?)),
        }
    }

    /// Where a segment is stored.
    pub fn object(&self, segment: &str) -> Result<PathBuf> {
        let (timeline, log) = (segment.get(..8), segment.get(8..16));
        let dir = self.folder()?.join("wal");
        Ok(match (timeline, log) {
            (Some(timeline), Some(log)) if segment.len() >= 24 => {
                dir.join(timeline).join(log).join(format!("{segment}.wal"))
            }
            _ => dir.join(segment),
        })
    }

    /// All objects by key and size; what readers leave (pins) apart.
    pub fn listing(&self) -> Result<BTreeMap<PathBuf, u64>> {
        let mut found = BTreeMap::new();
        walk(&self.repository, &mut found)?;
        found.retain(|path, _| !path.components().any(|part| part.as_os_str() == "pins"));
        Ok(found)
    }

    /// The segment size of the cluster.
    pub fn segment_size(&self) -> Result<SegmentSize> {
        let bytes = self.cluster.psql("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'")?;
        Ok(SegmentSize::new(bytes.parse()?)?)
    }

    /// Ends the current segment and waits until all WAL up to now is in the repository; the last segment.
    pub fn switch(&self) -> Result<String> {
        switch(&self.cluster, |name| Ok(self.object(name)?.exists()))
    }

    /// Ends the timeline, as a failover does: the server goes on on the next one.
    pub fn promote(&self) -> Result<()> {
        self.cluster.stop(Stop::Fast)?;
        let signal = self.cluster.data.join("standby.signal");
        fs::write(&signal, "")?;
        give_to_server(&signal)?;
        self.cluster.start()?;
        self.cluster.wait_for("SELECT pg_promote()", "t")?;
        self.cluster.wait_for("SELECT pg_is_in_recovery()", "f")
    }

    /// Restores a copy into a directory of its own; the server is not started.
    pub fn restore(&self, args: &[&str]) -> Result<(Cluster, Value)> {
        let copy = Cluster::around(&self.cluster.install)?;
        let target = copy.data.display().to_string();
        let mut all = vec!["restore", "--copy", "--target-dir", target.as_str(), "--json"];
        all.extend(args);
        let done = self.json(&all)?;
        ensure!(done["schema"] == "pitr.restore.v1" && done["purpose"] == "copy", "{done}");
        Ok((copy, done))
    }

    /// Restores a copy, starts it where it disturbs nobody, and waits until it is open for writing.
    pub fn restored(&self, args: &[&str]) -> Result<(Cluster, Value)> {
        let (copy, done) = self.restore(args)?;
        open(&copy)?;
        Ok((copy, done))
    }
}

/// A server that archives, small, and keeps its WAL for the auditor.
pub fn small_site(install: &Install) -> Result<Site> {
    // With fsync off, `check` would say so.
    let conf = "wal_keep_size = 4GB\nautovacuum = off\nfsync = on\n";
    let site = Site::new(install, &SiteOptions { conf, ..SiteOptions::default() })?;
    shrink(&site)?;
    site.cluster.psql("CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 1000) n")?;
    site.switch()?;
    Ok(site)
}

/// Makes the cluster one of one database: two thirds less to copy, hundreds of times.
pub fn shrink(site: &Site) -> Result<()> {
    site.cluster.psql("ALTER DATABASE template0 IS_TEMPLATE false")?;
    site.cluster.psql("ALTER DATABASE template1 IS_TEMPLATE false")?;
    site.cluster.psql("DROP DATABASE template0")?;
    site.cluster.psql("DROP DATABASE template1").map(drop)
}

/// Gives a restored directory a socket where the test looks for it.
pub fn settle(copy: &Cluster) -> Result<()> {
    copy.append_conf("postgresql.conf", &format!("{}logging_collector = off\n", copy.own_settings()))
}

/// Starts a restored directory and waits until recovery is over.
pub fn open(copy: &Cluster) -> Result<()> {
    settle(copy)?;
    copy.start()?;
    copy.wait_for("SELECT pg_is_in_recovery()", "f")
}

/// Ends the current segment of a server and waits until `stored` says yes of the last one; its name.
pub fn switch(cluster: &Cluster, stored: impl Fn(&str) -> Result<bool>) -> Result<String> {
    let bytes = cluster.psql("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'")?;
    let size = SegmentSize::new(bytes.parse()?)?;
    let end: Lsn = cluster.psql("SELECT pg_switch_wal()")?.parse()?;
    let timeline = cluster.psql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")?;
    let timeline = TimelineId::new(u32::from_str_radix(&timeline, 16)?).context("a timeline")?;
    let name = SegmentName::new(timeline, SegmentNo::ending_at(end, size), size).to_string();
    until(|| stored(&name), || format!("{name} is not archived\n{}", cluster.log_text()))?;
    Ok(name)
}

/// Polls a condition.
pub fn until(condition: impl Fn() -> Result<bool>, what: impl Fn() -> String) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(Instant::now() < deadline, "{}", what());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Answer {
    /// The exit code; 128 and the signal if it was killed.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Result<Self> {
        use std::os::unix::process::ExitStatusExt as _;
        let Output { status, stdout, stderr } =
            command.output().with_context(|| format!("cannot run {command:?}"))?;
        let code = status.code().or_else(|| status.signal().map(|n| 128 + n)).unwrap_or(-1);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self { code, out: text(stdout), err: text(stderr) })
    }

    /// Fails unless the code is `code` and standard error says each of `words`.
    pub fn expect(&self, code: i32, words: &[&str]) -> Result<()> {
        let missing: Vec<_> = words.iter().filter(|word| !self.err.contains(**word)).collect();
        ensure!(self.code == code && missing.is_empty(), "not exit {code} with {missing:?}: {self:?}");
        Ok(())
    }
}

/// The program where the servers' user can run it: in place, or copied if that is below somebody's home.
fn program(place: &Path) -> Result<PathBuf> {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_pitr"));
    if as_server(&built)?.arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(built);
    }
    let copy = place.join("pitr");
    fs::copy(&built, &copy)?;
    run(as_server(&copy)?.arg("--version"))?;
    Ok(copy)
}

fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, u64>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), found)?;
        } else {
            found.insert(entry.path(), entry.metadata()?.len());
        }
    }
    Ok(())
}
