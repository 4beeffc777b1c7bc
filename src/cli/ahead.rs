//! Fetching ahead where there is no agent: a bare machine that is being restored.
//!
//! ```text
//!  restore_command #1 ─► archive-get works alone, delivers, and leaves a process behind ─► it fetches what follows into pg_wal/pitr-spool
//!  restore_command #2 ─► asks that process (`thin`)
//! ```
//! The process is its own session, holds nothing that PostgreSQL had open, and ends with recovery, with the server, or when nothing was asked
//! of it for a minute (RECOVERY.md 19). It is a help only: whatever keeps it from starting keeps nobody from recovering.
//!
//! Invariant: whatever comes of its work, its exit code is 0. Where the server is the first process of its container it inherits this one, and
//! takes a child that ends with more than 1, or by a signal, for one of its own that crashed: it would kill all of them and begin its recovery
//! anew (`postmaster.c`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::agent::fetcher::{is_owned, is_recovering};
use crate::agent::wire::Errand;
use crate::agent::{Prefetch, prefetch};
use crate::cli::args::{AheadArgs, Common, GetArgs};
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::output;
use crate::cli::resident;
use crate::cli::thin::SPOOL_SOCKET;
use crate::config::load::Caller;
use crate::error::{Error, Result};
use crate::pgdata::pidfile::{self, PidFile};
use crate::wal::SegmentName;

/// Leaves a process behind that fetches what follows, if this is a recovery and nobody does so already.
pub fn leave_behind(common: &Common, args: &GetArgs) {
    let recovers = args.destination.starts_with("pg_wal")
        && SegmentName::parse(&args.file).is_ok()
        && is_recovering(Path::new("."))
        && postmaster().is_some()
        && common.repository.len() <= 1
        && !is_owned(Path::new("."));
    if !recovers {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut words: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: OsString| words.extend([OsString::from(name), value]);
    if let Some(file) = &common.config {
        flag("--config", file.into());
    }
    common.repository.iter().for_each(|repository| flag("--repository", repository.into()));
    if let Some(cluster) = &common.cluster {
        flag("--cluster", cluster.into());
    }
    if let Some(file) = &common.identity {
        flag("--identity", file.into());
    }
    if let Some(fingerprint) = &common.seal_fingerprint {
        flag("--seal-fingerprint", fingerprint.into());
    }
    if let Some(timeline) = args.route.timeline {
        flag("--timeline", timeline.to_string().into());
    }
    if let Some(until) = &args.route.until {
        flag("--until", until.into());
    }
    if let Some(system) = args.route.system_id {
        flag("--system-id", system.to_string().into());
    }
    let mut command = Command::new(program);
    command.arg("fetch-ahead").args(words).arg(&args.file);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Its parent ends before it does; init takes it over.
    if let Err(e) = command.spawn() {
        tracing::info!("nothing is fetched ahead: {e}");
    }
}

/// The process of the server in the working directory.
fn postmaster() -> Option<i32> {
    PidFile::parse(&std::fs::read(pidfile::NAME).ok()?).process
}

/// Runs `fetch-ahead`. What goes wrong is said, and is no failure.
pub fn run(common: &Common, args: &AheadArgs) -> Ended {
    if let Err(e) = fetch(common, args) {
        output::warn(&e.report());
    }
    Ended::Well
}

fn fetch(common: &Common, args: &AheadArgs) -> Result<Ended> {
    // A session of its own: a signal for the server's processes is none for this one.
    let _ = nix::unistd::setsid();
    close_inherited();
    let segment =
        SegmentName::parse(&args.file).map_err(|e| Error::usage("cannot fetch ahead of that").source(e))?;
    let directory =
        std::env::current_dir().map_err(|e| Error::failed("cannot tell the working directory").source(e))?;
    let context = Context::load(common, Caller::Server)?;
    let config = &context.config;
    // Where flags stand for a file they name all repositories there are.
    let repository = config.path.as_ref().and_then(|_| common.repository.first().cloned());
    let setup = Prefetch {
        config: config.fingerprint.clone(),
        socket: PathBuf::from(SPOOL_SOCKET),
        data_dir: directory.clone(),
        repositories: context.repositories()?,
        from: segment,
        errand: Errand {
            directory,
            repository,
            timeline: args.route.timeline,
            until: args.route.until.clone(),
            system: args.route.system_id,
            seal: common.seal_fingerprint.clone(),
        },
    };
    let server = postmaster();
    let lives = move || {
        is_recovering(Path::new(".")) && server.is_some() && postmaster() == server && is_alive(server)
    };
    resident(|cancel| async move {
        prefetch(setup, lives, &cancel).await?;
        Ok(Ended::Well)
    })
}

fn is_alive(process: Option<i32>) -> bool {
    process.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

/// Data files, sockets and the log's pipe come along from PostgreSQL: whoever waits for their end would wait for this process.
fn close_inherited() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|n| *n > 2).collect::<Vec<_>>() {
        // The directory's own is closed by now.
        let _ = nix::unistd::close(number);
    }
}
