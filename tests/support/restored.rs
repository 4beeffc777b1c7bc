//! A cluster that archives and is backed up by the program as users run it, and the servers that restores of it become.
//!
//! Everything runs as the servers' user; the program is the one under test. Oracles are rows that PostgreSQL returns, file modes,
//! and bytes of files: nothing here asks pitr whether pitr did well.

#![allow(dead_code, reason = "each test binary uses a part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};

use super::cluster::{Cluster, Install, Options, Stop, as_server, give_to_server, run, scratch};

/// The program.
pub const PITR: &str = env!("CARGO_BIN_EXE_pitr");

/// A cluster, its repository, and a place for restores.
pub struct Source {
    /// The cluster.
    pub cluster: Cluster,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its repository.
    pub repository: PathBuf,
    /// Directories of restores go here.
    pub place: tempfile::TempDir,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Of an ended command.
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// The JSON it printed.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {self:?}"))
    }

    /// Itself, if it ended with this code.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "exit code {} instead of {code}\n{}{}", self.code, self.out, self.err);
        Ok(self)
    }
}

impl Source {
    /// A cluster that archives, with table `t` and no backup yet. `conf` is added to `postgresql.conf`.
    pub fn new(install: &Install, conf: &str) -> Result<Self> {
        let place = scratch("pitr-r-")?;
        let (config, repository) = (place.path().join("pitr.toml"), place.path().join("repo"));
        let archive = format!(
            "wal_level = replica\narchive_mode = on\narchive_command = '{PITR} --config {} archive-push %p'\n\
             checkpoint_timeout = 1h\nautovacuum = off\n{conf}\n",
            config.display()
        );
        let cluster =
            Cluster::init(install, &Options { segment_mib: 1, conf: archive, ..Options::default() })?;
        fs::create_dir(&repository)?;
        give_to_server(&repository)?;
        let text = format!(
            "cluster = \"main\"\ntimezone = \"UTC\"\nstate_dir = \"{}\"\n[postgres]\nconninfo = \"{}\"\ndata_dir = \"{}\"\n\
             bin_dir = \"{}\"\n[[repository]]\nname = \"local\"\nurl = \"file://{}\"\n",
            place.path().join("state").display(),
            cluster.conninfo(),
            cluster.data.display(),
            install.bin.display(),
            repository.display(),
        );
        fs::write(&config, text)?;
        give_to_server(&config)?;
        cluster.start()?;
        let source = Self { cluster, config, repository, place };
        source.pitr(&["init"])?.expect(0)?;
        source.cluster.psql("CREATE TABLE t (n int PRIMARY KEY, pad text)")?;
        Ok(source)
    }

    /// A command of the program, as the servers' user.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = as_server(PITR)?;
        command.arg("--config").arg(&self.config).args(args);
        Ok(command)
    }

    /// Runs the program.
    pub fn pitr(&self, args: &[&str]) -> Result<Said> {
        Ok(Said::of(&self.command(args)?.output()?))
    }

    /// Takes a backup; its id.
    pub fn backup(&self) -> Result<String> {
        let said = self.pitr(&["backup", "--json"])?.expect(0)?;
        Ok(said.json()?["id"].as_str().context("an id")?.to_owned())
    }

    /// Adds a row in a transaction of its own; the server's clock after it, as `--to` takes it.
    pub fn row(&self, n: u32) -> Result<String> {
        self.cluster.psql(&format!("INSERT INTO t VALUES ({n}, repeat('x', 100))"))?;
        let time =
            self.cluster.psql("SELECT to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS.US') || '+00'")?;
        thread::sleep(Duration::from_millis(20));
        Ok(time)
    }

    /// Switches the segment and waits until it is archived.
    pub fn archive_all(&self) -> Result<()> {
        let name = self.cluster.psql("SELECT pg_walfile_name(pg_switch_wal())")?;
        self.cluster.wait_for(&format!("SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver"), "t")
    }

    /// The folder of this cluster in the repository.
    pub fn folder(&self) -> Result<PathBuf> {
        let main = self.repository.join("main");
        let mut folders = fs::read_dir(&main)?.filter_map(|e| Some(e.ok()?.path()));
        folders.find(|path| path.join("identity.json").exists()).with_context(|| main.display().to_string())
    }

    /// A path for a restore.
    pub fn target(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Restores into `target` with these flags.
    pub fn restore(&self, target: &Path, flags: &[&str]) -> Result<Said> {
        let target = target.display().to_string();
        let mut args = vec!["restore", "--json", "--target-dir", &target];
        args.extend(flags);
        self.pitr(&args)
    }

    /// Every pack in the repository, by path.
    pub fn packs(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        walk(&self.repository, &mut |path| {
            if path.to_string_lossy().contains("/pack-") {
                found.push(path.to_owned());
            }
        })?;
        found.sort();
        Ok(found)
    }
}

/// Calls `see` for every file below `dir`.
pub fn walk(dir: &Path, see: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { walk(&entry.path(), see)? } else { see(&entry.path()) }
    }
    Ok(())
}

/// A server in a restored directory; stopped when dropped.
pub struct Restored {
    /// The data directory.
    pub data: PathBuf,
    install: Install,
    socket: PathBuf,
    port: String,
    log: PathBuf,
}

impl Restored {
    /// Starts the copy in `data`; its configuration is the one the restore wrote.
    pub fn start_copy(install: &Install, data: &Path) -> Result<Self> {
        let conf = fs::read_to_string(data.join("postgresql.conf"))?;
        let value = |name: &str| {
            let line = conf.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(" = '"));
            line.map(|v| v.trim_end_matches('\'').to_owned()).with_context(|| format!("no {name} in {conf}"))
        };
        let socket = PathBuf::from(value("unix_socket_directories")?.trim_matches('"'));
        Self::start(install, data, socket, value("port")?)
    }

    /// Starts the server in `data`, whose socket is where its configuration says.
    pub fn start(install: &Install, data: &Path, socket: PathBuf, port: String) -> Result<Self> {
        let log = data.with_extension("start.log");
        let restored = Self { data: data.to_owned(), install: install.clone(), socket, port, log };
        let mut start = restored.pg_ctl()?;
        start.args(["-w", "-t", "90", "-l"]).arg(&restored.log).arg("start");
        let status = start.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "did not start:\n{}", restored.log_text());
        Ok(restored)
    }

    /// Waits until recovery is over.
    pub fn promoted(self) -> Result<Self> {
        self.wait_for("SELECT pg_is_in_recovery()", "f").map(|()| self)
    }

    /// Waits until a query answers `expected`.
    pub fn wait_for(&self, sql: &str, expected: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            match self.psql(sql) {
                Ok(answer) if answer == expected => return Ok(()),
                last if Instant::now() > deadline => bail!("still {last:?}\n{}", self.log_text()),
                _ => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Runs SQL.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.psql_as("postgres", sql)
    }

    /// The same as another role.
    pub fn psql_as(&self, role: &str, sql: &str) -> Result<String> {
        let mut psql = as_server(self.install.tool("psql"))?;
        psql.env("PGHOST", &self.socket).env("PGPORT", &self.port).env("PGUSER", role);
        let out = run(psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", sql]))?;
        Ok(out.trim_end().to_owned())
    }

    /// The rows of `t`, as `1,2,3`.
    pub fn rows(&self) -> Result<String> {
        self.psql("SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM t")
    }

    /// What the server logged, at its start and after.
    pub fn log_text(&self) -> String {
        let own = fs::read_to_string(self.data.join("log/postgresql.log")).unwrap_or_default();
        fs::read_to_string(&self.log).unwrap_or_default() + &own
    }

    /// Stops it.
    pub fn stop(&self, how: Stop) -> Result<()> {
        let mode = if how == Stop::Fast { "fast" } else { "immediate" };
        run(self.pg_ctl()?.args(["-w", "-m", mode, "stop"])).map(drop)
    }

    fn pg_ctl(&self) -> Result<Command> {
        let mut command = as_server(self.install.bin.join("pg_ctl"))?;
        command.arg("-s").arg("-D").arg(&self.data);
        Ok(command)
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            let _ = self.stop(Stop::Immediate); // a server that does not stop is found by its directory's removal
        }
    }
}
