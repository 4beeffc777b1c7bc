//! A disk that fails: the n-th sync, link, rename or write at an offset ends with an error, for n = 1, 2, 3 … and every command; and
//! file systems that are full or read-only.
//!
//! ```text
//!  world ─► pitr under strace, call n refused ─► audit ─► the same command, nothing refused ─► must succeed ─► audit ─┐
//!    ▲                                                                                                                │ until no thread
//!    └────────────────────────────────── n + 1 ◄──────────────────────────────────────────────────────────────────────┘ makes n such calls
//! ```
//! The whole program is run, as PostgreSQL and people run it; strace counts the calls of each thread by itself. What it refused is read from its
//! log, and with it must stand in the answer: no success, the path, advice. The kernel forgets bytes that it could not write, and a
//! second fsync of them succeeds; so a yes is believed only of a run in which nothing was refused. Plain writes are not refused, because
//! the program wakes its own threads by them: real file systems of a few MiB do that. SKIPPED without strace, or root.
#![cfg(feature = "testing")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

#[path = "bad_disk/full.rs"]
mod full;
#[path = "bad_disk/gone.rs"]
mod gone;
#[path = "bad_disk/kept.rs"]
mod kept;
#[path = "bad_disk/late.rs"]
mod late;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use support::cluster::as_server;
use support::site::Answer;

/// A system call, and the error that it ends with instead of being made.
#[derive(Debug, Clone, Copy)]
struct Harm {
    call: &'static str,
    error: &'static str,
}

fn no_strace() -> bool {
    let missing = Command::new("strace").arg("-V").output().is_err();
    if missing {
        eprintln!("SKIPPED: strace is not installed, see tests/setup.sh");
    }
    missing
}

/// Runs a command under strace, which refuses the `nth` such call of every thread (which thread does what differs from run to run); how it ended, and the calls that were refused, such as
/// `fsync(9</repository/main>)`.
fn harmed(command: &Command, harm: Harm, nth: &str, log: &Path) -> Result<(Answer, Vec<String>)> {
    let answer = Answer::of(&mut traced(command, harm, nth, log, &[])?)?;
    let text = fs::read_to_string(log)?;
    ensure!(answer.code < 128 || answer.code >= 200, "strace: {answer:?}\n{text}");
    Ok((answer, refused(&text)))
}

/// The same command under strace; `more` are flags of strace.
fn traced(command: &Command, harm: Harm, nth: &str, log: &Path, more: &[&str]) -> Result<Command> {
    let Harm { call, error } = harm;
    let mut traced = as_server("strace")?;
    traced.env("PITR_TEST_TRACED", "1");
    traced.args(more).args(["-f", "-y", "-qq", "--seccomp-bpf", "-e", &format!("trace={call}")]);
    traced.args(["-e", &format!("inject={call}:error={error}:when={nth}"), "-o"]).arg(log).arg("--");
    traced.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        traced.current_dir(dir);
    }
    Ok(traced)
}

/// The calls that a log says were refused. One that another thread interrupts stands there in two parts.
fn refused(log: &str) -> Vec<String> {
    let mut begun = BTreeMap::new();
    let mut found = Vec::new();
    for line in log.lines() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(thread.to_owned(), start.to_owned());
        }
        if call.ends_with("(INJECTED)") {
            let whole = if call.starts_with("<...") { begun.remove(thread) } else { Some(call.to_owned()) };
            found.extend(whole);
        }
    }
    found
}

#[test]
fn what_strace_refused_is_read_from_its_log() {
    let log = "12 fsync(9</a>) = -1 EIO (Input/output error) (INJECTED)\n\
               13 fsync(4</b> <unfinished ...>\n\
               12 fsync(9</c>) = 0\n\
               13 <... fsync resumed>) = -1 EIO (Input/output error) (INJECTED)\n";
    let found = refused(log);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("fsync(9</a>") && found[1].starts_with("fsync(4</b>"), "{found:?}");
}
