//! `pitr demo`: the main job end to end on a throw-away cluster, so that a reader sees it before trusting it.
//!
//! ```text
//!  initdb ─ start ─ pitr init ─ load ─ pitr backup ─ load more ─ [moment] ─ damage ─ pitr restore --to MOMENT ─ start ─ compare
//! ```
//! Every step runs the real program as a user would, this very binary included, and every command is printed before it runs. The
//! rows that came back are compared with what the table held at the moment; a difference is a failure. Nothing outside one
//! temporary directory is touched, no TCP port is opened.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::cli::args::DemoArgs;
use crate::cli::exit::Ended;
use crate::cli::output::{say, warn};
use crate::cli::privilege::{self, Account};
use crate::error::Error;
use crate::pgdata::pidfile::{self, PidFile};

/// Majors to look for, newest first, where Debian and its derivatives put them.
const MAJORS: [u32; 6] = [18, 17, 16, 15, 14, 13];
/// How long PostgreSQL may take to come up or to finish recovery.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the table holds, as one line that a row lost or changed would alter.
const FINGERPRINT: &str =
    "select count(*) || ' orders, ' || sum(amount) || ' in all, newest ' || max(note) from public.orders";

/// Where everything of the demo lives.
struct Stage {
    root: PathBuf,
    bin: PathBuf,
    pitr: PathBuf,
    keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// Names the step that failed and shows what it printed.
pub fn run(args: &DemoArgs, json: bool) -> Result<Ended, Error> {
    let bin = find_postgres(args.bin_dir.as_deref())?;
    step_down()?;
    let stage = Stage::set_up(bin, args.keep)?;
    let outcome = play(&stage, json);
    // A server left running would keep the directory busy; whatever happened, both are stopped.
    for data in ["primary", "restored"] {
        stage.stop(data);
    }
    if stage.keep {
        say(&format!("kept: {}", stage.root.display()));
    } else if let Err(e) = std::fs::remove_dir_all(&stage.root) {
        warn(&format!("cannot remove {}: {e}", stage.root.display()));
    }
    outcome.map(|()| Ended::Well)
}

fn play(stage: &Stage, json: bool) -> Result<(), Error> {
    let tell = |text: &str| {
        if !json {
            say(text);
        }
    };
    tell("1. a throw-away cluster, with pitr as its archiver");
    stage.make_primary()?;
    tell("2. orders come in; a base backup is taken while they do");
    stage.sql("primary", "create table public.orders (id int primary key, amount int, note text)")?;
    stage.sql(
        "primary",
        "insert into public.orders select n, n % 97, 'order ' || n from generate_series(1, 20000) n",
    )?;
    stage.pitr(&["backup", "--label", "demo"], !json)?;
    stage.sql(
        "primary",
        "insert into public.orders select n, n % 97, 'order ' || n from generate_series(20001, 30000) n",
    )?;
    let before = stage.sql("primary", FINGERPRINT)?;
    let moment = stage.sql(
        "primary",
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'",
    )?;
    tell(&format!("   the table now: {before}\n   the moment:    {moment}"));
    // The damage must be later than the moment by more than the clock's grain.
    std::thread::sleep(Duration::from_millis(50));
    tell("3. somebody forgets a where clause");
    stage.sql("primary", "delete from public.orders")?;
    stage.sql("primary", "insert into public.orders values (0, 0, 'life goes on')")?;
    stage.sql("primary", "select pg_switch_wal()")?;
    stage.wait_for_archiver()?;
    tell("4. the plan, before a byte is written");
    let copy = stage.path("restored").display().to_string();
    let to = ["restore", "--to", moment.as_str(), "--copy", "--target-dir", copy.as_str()];
    stage.pitr(&[to.as_slice(), &["--dry-run"]].concat(), !json)?;
    tell("5. the restore, into a copy beside the primary");
    stage.pitr(&to, !json)?;
    stage.start("restored")?;
    stage.wait_until_open("restored")?;
    let after = stage.sql("restored", FINGERPRINT)?;
    tell(&format!("   before the damage: {before}\n   what came back:    {after}"));
    if before != after {
        return Err(Error::failed("the restored rows differ from those before the damage"));
    }
    if json {
        crate::cli::output::json(&serde_json::json!({
            "schema": "pitr.demo.v1", "place": stage.root, "moment": moment, "before": before, "restored": after, "equal": true,
        }));
    }
    tell(
        "every row is back. The same three commands work on your cluster: pitr init, pitr backup, pitr restore.",
    );
    Ok(())
}

/// The directory with `postgres` and `initdb`.
fn find_postgres(asked: Option<&Path>) -> Result<PathBuf, Error> {
    let complete = |dir: &Path| ["postgres", "initdb", "pg_ctl"].iter().all(|p| dir.join(p).is_file());
    if let Some(dir) = asked {
        return if complete(dir) {
            Ok(dir.to_owned())
        } else {
            Err(Error::not_found(format!("{} has no postgres, initdb and pg_ctl", dir.display())))
        };
    }
    let debian = MAJORS.iter().map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
    let fedora = MAJORS.iter().map(|major| PathBuf::from(format!("/usr/pgsql-{major}/bin")));
    #[expect(clippy::disallowed_methods, reason = "the command line may read the environment")]
    let path = std::env::var("PATH").unwrap_or_default();
    let search: Vec<PathBuf> = std::env::split_paths(&path).collect();
    debian.chain(fedora).chain(search).find(|dir| complete(dir)).ok_or_else(|| {
        Error::not_found("no PostgreSQL server programs were found")
            .hint("install PostgreSQL 13 to 18 (Debian: apt-get install postgresql), or name the directory: --bin-dir DIR")
    })
}

/// PostgreSQL refuses root. The postgres account if there is one, else nobody: both own nothing that the demo could harm.
fn step_down() -> Result<(), Error> {
    if !privilege::is_root() {
        return Ok(());
    }
    let account = Account::named("postgres").or_else(|| Account::named("nobody")).ok_or_else(|| {
        Error::failed(
            "root must become another user to start PostgreSQL, and there is neither postgres nor nobody",
        )
        .hint("run the demo as an ordinary user")
    })?;
    // The account must be able to run this binary, which may lie in root's own directories.
    privilege::step_down(&account)
}

impl Stage {
    fn set_up(bin: PathBuf, keep: bool) -> Result<Self, Error> {
        let failed =
            |e: std::io::Error| Error::failed("cannot make a temporary directory for the demo").source(e);
        let random =
            crate::clock::random_hex::<4>().map_err(|e| Error::failed("no random bytes").source(e))?;
        // Socket paths are limited to 107 bytes, so not below a long TMPDIR.
        let root = PathBuf::from(format!("/tmp/pitr-demo-{random}"));
        std::fs::create_dir(&root).map_err(failed)?;
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
        // A copy of the running program: the path it was started from may be closed to the account that runs the demo.
        let pitr = root.join("pitr");
        std::fs::copy("/proc/self/exe", &pitr).map_err(failed)?;
        std::fs::set_permissions(&pitr, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        Ok(Self { root, bin, pitr, keep })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn make_primary(&self) -> Result<(), Error> {
        let data = self.path("primary");
        self.postgres(
            "initdb",
            &["-D", &data.display().to_string(), "-U", "postgres", "-A", "trust", "--locale=C", "-E", "UTF8"],
        )?;
        let root = self.root.display();
        let config = self.path("pitr.toml");
        let command = format!("{root}/pitr --config {root}/pitr.toml archive-push %p");
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{root}'\nport = 5432\nfsync = off\n\
             archive_mode = on\narchive_command = '{command}'\narchive_timeout = 60\nwal_level = replica\n"
        );
        self.append(&data.join("postgresql.conf"), &settings)?;
        let text = format!(
            "cluster = \"demo\"\ntimezone = \"UTC\"\nstate_dir = \"{root}/state\"\n\n\
             [postgres]\nconninfo = \"host={root} port=5432 user=postgres dbname=postgres\"\ndata_dir = \"{root}/primary\"\n\
             bin_dir = \"{}\"\n\n[[repository]]\nname = \"local\"\nurl = \"file://{root}/repository\"\n",
            self.bin.display()
        );
        self.append(&config, &text)?;
        self.start("primary")?;
        self.pitr(&["init"], false)?;
        Ok(())
    }

    /// Appends to one of the demo's own files.
    fn append(&self, path: &Path, text: &str) -> Result<(), Error> {
        use std::io::Write;
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| Error::failed(format!("cannot write {}", path.display())).source(e))
    }

    fn start(&self, name: &str) -> Result<(), Error> {
        let data = self.path(name).display().to_string();
        let log = self.path(&format!("{name}.log")).display().to_string();
        self.postgres("pg_ctl", &["-D", &data, "-l", &log, "-w", "-t", "60", "start"]).map(|_| ()).map_err(
            |e| {
                let tail = std::fs::read_to_string(&log).unwrap_or_default();
                let last: Vec<&str> = tail.lines().rev().take(8).collect();
                e.hint(format!(
                    "the server's log says:\n{}",
                    last.into_iter().rev().collect::<Vec<_>>().join("\n")
                ))
            },
        )
    }

    fn stop(&self, name: &str) {
        let data = self.path(name);
        if data.join(pidfile::NAME).exists() {
            // The directory goes away next: how the server stops does not matter.
            let _ = self
                .postgres("pg_ctl", &["-D", &data.display().to_string(), "-m", "immediate", "-w", "stop"]);
        }
    }

    /// One statement, through pitr's own client: the demo needs no psql.
    fn sql(&self, name: &str, statement: &str) -> Result<String, Error> {
        let server = address(&self.path(name))
            .ok_or_else(|| Error::failed(format!("the {name} server is not running")))?;
        crate::cli::sql::one(&server.0, server.1, statement)
    }

    fn wait_for_archiver(&self) -> Result<(), Error> {
        let switched =
            "select last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1) from pg_stat_archiver";
        self.wait("the archiver", || Ok(self.sql("primary", switched)? == "t"))
    }

    fn wait_until_open(&self, name: &str) -> Result<(), Error> {
        self.wait("the end of recovery", || {
            Ok(self.sql(name, "select pg_is_in_recovery()").is_ok_and(|answer| answer == "f"))
        })
    }

    fn wait(&self, what: &str, mut ready: impl FnMut() -> Result<bool, Error>) -> Result<(), Error> {
        let pause = Duration::from_millis(100);
        let mut waited = Duration::ZERO;
        while !ready()? {
            if waited > PATIENCE {
                return Err(Error::failed(format!("waited {} s for {what}", PATIENCE.as_secs()))
                    .hint(format!("run again with --keep and read the logs in {}", self.root.display())));
            }
            std::thread::sleep(pause);
            waited += pause;
        }
        Ok(())
    }

    /// Runs this program, as a user would.
    fn pitr(&self, args: &[&str], show: bool) -> Result<(), Error> {
        let config = self.path("pitr.toml").display().to_string();
        let mut command = Command::new(&self.pitr);
        command.args(["--config", &config]).args(args);
        if show {
            say(&format!("   $ pitr {}", args.join(" ")));
        }
        let output = finished(command, &self.root)?;
        if show {
            let text = String::from_utf8_lossy(&output.stdout);
            say(&text.lines().map(|l| format!("     {l}\n")).collect::<String>());
        }
        Ok(())
    }

    fn postgres(&self, program: &str, args: &[&str]) -> Result<Output, Error> {
        let mut command = Command::new(self.bin.join(program));
        command.args(args);
        finished(command, &self.root)
    }
}

/// Socket directory and port of a running server, from the file by which it says so.
fn address(data: &Path) -> Option<(PathBuf, u16)> {
    let said = PidFile::parse(&std::fs::read(data.join(pidfile::NAME)).ok()?);
    Some((PathBuf::from(said.socket_dir?), said.port?))
}

/// Runs a command to its end with no input; failure carries what it printed.
fn finished(mut command: Command, directory: &Path) -> Result<Output, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .current_dir(directory)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::failed(format!("cannot start {name}")).source(e))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::failed(format!("{name} ended with {}:\n{}", output.status, said.trim_end())))
}
