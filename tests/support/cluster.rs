//! Real PostgreSQL servers for tests: found, initialised, started, crashed and removed here.
//!
//! Each cluster lives in a directory of its own below the system's temporary directory, listens on a socket in it and on no
//! port, and is gone when its [`Cluster`] is dropped. As root, all programs run as `postgres`, which refuses to be root.
//! Which servers there are is what `tests/setup.sh` wrote into `substrate.env`; Debian's 15 is found without it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so, and a failed one where it left things")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

/// All majors that tests run on.
pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];

const DEBIAN_BIN: &str = "/usr/lib/postgresql/15/bin";
const PORT: &str = "5432"; // of the socket's name; nothing listens on TCP

/// One installed PostgreSQL.
#[derive(Debug, Clone)]
pub struct Install {
    /// Its major version.
    pub major: u32,
    /// Where the server, initdb and `pg_ctl` are.
    pub bin: PathBuf,
    /// Where the client programs of this very major are (`pg_waldump`, `pg_verifybackup`), if anywhere.
    pub tools: Option<PathBuf>,
}

impl Install {
    /// PostgreSQL `major`, or why it is not to be had.
    pub fn find(major: u32) -> Result<Self, String> {
        let known = substrate();
        let dir = |what: &str| {
            let path = known.get(&format!("PITR_PG{major}_{what}")).map(PathBuf::from);
            path.or_else(|| (major == 15).then(|| PathBuf::from(DEBIAN_BIN))).filter(|path| path.is_dir())
        };
        match dir("BIN") {
            Some(bin) => Ok(Self { major, bin, tools: dir("TOOLS") }),
            None => Err(format!("PostgreSQL {major} is not installed; run tests/setup.sh")),
        }
    }

    /// PostgreSQL `major`; if it is not there, says so as a skipped test does.
    pub fn find_or_skip(major: u32) -> Option<Self> {
        Self::find(major).inspect_err(|why| eprintln!("SKIPPED {why}")).ok()
    }

    /// A client program: of this major if there is one, else Debian's, which can talk to all.
    pub fn tool(&self, name: &str) -> PathBuf {
        let own = self.own_tool(name);
        own.unwrap_or_else(|| Path::new(DEBIAN_BIN).join(name))
    }

    /// A client program of this very major.
    pub fn own_tool(&self, name: &str) -> Option<PathBuf> {
        let dirs = [self.tools.as_deref(), Some(self.bin.as_path())];
        dirs.into_iter().flatten().map(|dir| dir.join(name)).find(|path| path.is_file())
    }
}

/// KEY=VALUE lines of `substrate.env`; empty if `tests/setup.sh` did not run.
fn substrate() -> HashMap<String, String> {
    let cache = match (env::var_os("PITR_TEST_CACHE"), env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, _) if geteuid().is_root() => PathBuf::from("/var/cache/pitr-tests"),
        (None, home) => PathBuf::from(home.unwrap_or_default()).join(".cache/pitr-tests"),
    };
    let text = fs::read_to_string(cache.join("substrate.env")).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// What `tests/setup.sh` noted under this name, such as where a program is.
pub fn setting(name: &str) -> Option<String> {
    substrate().remove(name)
}

/// A command that runs as the servers' user, with little environment, in a directory that this user can enter.
pub fn as_server(program: impl AsRef<OsStr>) -> Result<Command> {
    let mut command = Command::new(program);
    command.env_clear().current_dir(env::temp_dir()).stdin(Stdio::null());
    command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    if geteuid().is_root() {
        let user = User::from_name("postgres")?.context("no user postgres; run tests/setup.sh")?;
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(command)
}

/// As [`as_server`], on a host of that name: a UTS namespace of its own, which takes root.
pub fn as_server_on(host: &str, program: impl AsRef<OsStr>) -> Result<Command> {
    let script = "hostname \"$0\" && exec setpriv --reuid postgres --regid postgres --clear-groups -- \"$@\"";
    let mut command = Command::new("unshare");
    command.env_clear().current_dir(env::temp_dir()).stdin(Stdio::null());
    command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    command.args(["--uts", "--", "sh", "-c", script, host]).arg(program);
    Ok(command)
}

/// Whether there can be hosts of other names; if not, says so as a skipped test does.
pub fn has_hosts() -> bool {
    let tried = as_server_on("another", "hostname").and_then(|mut command| Ok(command.output()?));
    let works = tried.is_ok_and(|output| output.stdout == b"another\n");
    if !works {
        eprintln!("SKIPPED: a host of another name takes root, unshare and setpriv");
    }
    works
}

/// Runs a command to its end; its standard output if it succeeds, an error with all it said otherwise.
pub fn run(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("cannot run {command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "{command:?}: {status}\n{out}{err}");
    Ok(out.into_owned())
}

/// A temporary directory that the servers' user owns and may enter.
pub fn scratch(prefix: &str) -> Result<tempfile::TempDir> {
    scratch_in(&env::temp_dir(), prefix)
}

/// The same in memory, if there is such a place: for many files that are synced again and again.
pub fn scratch_in_memory(prefix: &str) -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { scratch_in(memory, prefix) } else { scratch(prefix) }
}

fn scratch_in(place: &Path, prefix: &str) -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(place)?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    give_to_server(dir.path())?;
    Ok(dir)
}

/// Makes the servers' user the owner of one file or directory.
pub fn give_to_server(path: &Path) -> Result<()> {
    if geteuid().is_root() {
        let user = User::from_name("postgres")?.context("no user postgres")?;
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, a checkpoint is written.
    Fast,
    /// No checkpoint: the next start recovers.
    Immediate,
}

/// How to initialise a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// Segment size in MiB.
    pub segment_mib: u32,
    /// More lines for `postgresql.conf`.
    pub conf: String,
    /// Data checksums (18 has them by default, the others not).
    pub checksums: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_mib: 16, conf: String::new(), checksums: true }
    }
}

/// A PostgreSQL cluster of a test.
#[derive(Debug)]
pub struct Cluster {
    /// Which PostgreSQL.
    pub install: Install,
    /// The data directory.
    pub data: PathBuf,
    /// The directory of the socket.
    pub socket: PathBuf,
    /// The server's log.
    pub log: PathBuf,
    root: Option<tempfile::TempDir>,
}

impl Cluster {
    /// Initialises a cluster; it is not started.
    pub fn init(install: &Install, options: &Options) -> Result<Self> {
        let cluster = Self::around(install)?;
        let mut initdb = as_server(install.bin.join("initdb"))?;
        initdb.arg("--pgdata").arg(&cluster.data).args(["--no-sync", "--username=postgres", "--auth=trust"]);
        initdb.args(["--locale=C", "--encoding=UTF8"]).arg(format!("--wal-segsize={}", options.segment_mib));
        if options.checksums {
            initdb.arg("--data-checksums");
        }
        run(&mut initdb)?;
        cluster.append_conf("postgresql.conf", &cluster.own_settings())?;
        cluster.append_conf("postgresql.conf", &options.conf)?;
        Ok(cluster)
    }

    /// A place for a cluster whose data directory somebody else fills, for instance a restore. It does not exist yet.
    pub fn around(install: &Install) -> Result<Self> {
        let root = scratch("pitr-pg-")?;
        let socket = root.path().join("s");
        fs::create_dir(&socket)?;
        give_to_server(&socket)?;
        let (data, log) = (root.path().join("data"), root.path().join("server.log"));
        Ok(Self { install: install.clone(), data, socket, log, root: Some(root) })
    }

    /// The settings without which a cluster would listen where others do. fsync is off: tests crash processes, not kernels.
    pub fn own_settings(&self) -> String {
        format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nport = {PORT}\nfsync = off\nmax_wal_senders = 8\n\
             max_connections = 30\nshared_buffers = 16MB\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n",
            self.socket.display()
        )
    }

    /// The directory that holds all of this cluster, and goes with it.
    pub fn root(&self) -> &Path {
        self.data.parent().unwrap_or(&self.data)
    }

    /// Adds lines to a configuration file of the data directory (made if it is not there).
    pub fn append_conf(&self, file: &str, lines: &str) -> Result<()> {
        let path = self.data.join(file);
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        text.push('\n');
        text.push_str(lines);
        fs::write(&path, text)?;
        give_to_server(&path)
    }

    /// Starts the server and waits until it takes connections.
    pub fn start(&self) -> Result<()> {
        let mut start = self.pg_ctl()?;
        start.args(["-w", "-t", "90", "-l"]).arg(&self.log).arg("start");
        // The server would hold a pipe open that it inherited, and reading it would never end.
        let status = start.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "PostgreSQL {} did not start:\n{}", self.install.major, self.log_text());
        Ok(())
    }

    /// Stops the server.
    pub fn stop(&self, how: Stop) -> Result<()> {
        let mode = match how {
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
        };
        run(self.pg_ctl()?.args(["-w", "-t", "90", "-m", mode, "stop"])).map(drop)
    }

    /// Promotes a standby and waits until it is a primary.
    pub fn promote(&self) -> Result<()> {
        run(self.pg_ctl()?.args(["-w", "-t", "90", "promote"])).map(drop)
    }

    /// SIGKILL to the server and all its processes, as when the host goes down.
    pub fn crash(&self) -> Result<()> {
        let postmaster = self.postmaster_pid().context("the server does not run")?;
        let children = children_of(postmaster)?;
        for pid in std::iter::once(postmaster).chain(children.iter().copied()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it may be gone already: that is as good
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::iter::once(&postmaster).chain(&children).any(|pid| is_alive(*pid)) {
            ensure!(Instant::now() < deadline, "processes of the server survive SIGKILL");
            thread::sleep(Duration::from_millis(10));
        }
        // Where process 1 does not collect orphans, the dead postmaster looks alive to the next one. A host that went down
        // leaves no process at all, and PostgreSQL then takes its lock files for stale by itself.
        for lock in [self.data.join("postmaster.pid"), self.socket.join(format!(".s.PGSQL.{PORT}.lock"))] {
            fs::remove_file(&lock).with_context(|| format!("no lock file {}", lock.display()))?;
        }
        Ok(())
    }

    /// The postmaster's process id, if the server runs.
    pub fn postmaster_pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok().filter(|pid| is_alive(*pid))
    }

    /// Runs SQL in database `postgres`; rows without header or alignment, fields separated by `|`.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.psql_in("postgres", sql)
    }

    /// Runs SQL in a database. Statements are run one by one, each in its own transaction; the first error ends it.
    pub fn psql_in(&self, database: &str, sql: &str) -> Result<String> {
        let script = self.root().join(format!("{:?}.sql", thread::current().id()));
        fs::write(&script, sql)?;
        give_to_server(&script)?;
        let out =
            run(self.client("psql", database)?.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&script))?;
        Ok(out.trim_end().to_owned())
    }

    /// A client program of PostgreSQL, told where the server is. `database` may be empty for none.
    pub fn client(&self, program: &str, database: &str) -> Result<Command> {
        let mut command = as_server(self.install.tool(program))?;
        command.env("PGHOST", &self.socket).env("PGPORT", PORT).env("PGUSER", "postgres");
        if !database.is_empty() {
            command.env("PGDATABASE", database);
        }
        Ok(command)
    }

    /// A libpq connection string.
    pub fn conninfo(&self) -> String {
        format!("host={} port={PORT} user=postgres dbname=postgres", self.socket.display())
    }

    /// Waits until a query answers `expected`.
    pub fn wait_for(&self, sql: &str, expected: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.psql(sql);
            match answer {
                Ok(answer) if answer == expected => return Ok(()),
                last if Instant::now() > deadline => {
                    bail!("{sql}: still {last:?}, not {expected:?}\n{}", self.log_text())
                }
                _ => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Complete and current segments in `pg_wal`, by name.
    pub fn wal_files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.data.join("pg_wal"))?.collect::<Result<Vec<_>, _>>()?;
        let is_segment = |path: &PathBuf| path.file_name().is_some_and(|name| name.len() == 24);
        let mut files: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).filter(is_segment).collect();
        files.sort();
        Ok(files)
    }

    /// What the server logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn pg_ctl(&self) -> Result<Command> {
        let mut command = as_server(self.install.bin.join("pg_ctl"))?;
        command.arg("-s").arg("-D").arg(&self.data);
        Ok(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.postmaster_pid().is_some() && self.crash().is_err() {
            eprintln!("a server of a test still runs in {}", self.data.display());
        }
        if env::var_os("PITR_TEST_KEEP").is_some() {
            let kept = self.root.take().map(tempfile::TempDir::keep);
            eprintln!("kept: {kept:?}");
        }
    }
}

fn is_alive(pid: i32) -> bool {
    // A zombie is dead: who started the server may not have waited for it yet.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn children_of(parent: i32) -> Result<Vec<i32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if after_name.split(' ').nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent) {
            children.push(pid);
        }
    }
    Ok(children)
}
