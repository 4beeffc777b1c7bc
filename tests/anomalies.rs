//! For n = 1, 2, 3 … the n-th call to the store fails, loses its reply, stalls, is cut short or lies, for every command: the
//! promises hold, and the command repeated without faults succeeds.
//!
//! ```text
//!  world ─► command with fault n ─► audit ─► command again, no fault ─► must succeed ─► audit ─┐
//!    ▲                                                                                         │ until n is beyond
//!    └──────────────────────────────────── n + 1 ◄─────────────────────────────────────────────┘ the command's calls
//! ```
//! A command is one value of [`Command`]; the loop is the same for all. Two rounds: without repetition by the store, so that a
//! single failure reaches the command and must be reported truthfully; and with it, so that a single failure must not be noticed.
//! The auditor is `support::audit`; what a command wrote on disk is judged by the command's own `audit`.
#![cfg(feature = "testing")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

#[path = "anomalies/archive.rs"]
mod archive;
#[path = "anomalies/backup.rs"]
mod backup;
#[path = "anomalies/expire.rs"]
mod expire;
#[path = "anomalies/program.rs"]
mod program;
#[path = "anomalies/replace.rs"]
mod replace;
#[path = "anomalies/restore.rs"]
mod restore;
#[path = "anomalies/upkeep.rs"]
mod upkeep;
#[path = "anomalies/verify.rs"]
mod verify;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitr::error::Error;
use pitr::repo::Repository;
use pitr::store::{Policy, Store};
use support::audit::{Auditor, Objects};

/// What can happen to a call, where it differs: a reply that is lost matters for what changes something, a body that is cut short
/// for what has one.
const ONCE: [&str; 7] = ["deny", "stall", "lost@create", "lost@delete", "short@open", "lie@open", "lie@head"];
/// What the store's own repetition must make good.
const REPEATED: [&str; 4] = ["fail", "lost@create", "lost@delete", "short@open"];
/// No command needs more calls than this in these worlds; a loop that gets here does not end.
const MOST_CALLS: u64 = 200;

/// What a command came to, as far as it did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// It did what it is for.
    Done,
    /// `archive-get`: the file is proven not to be there.
    Absent,
    /// What it showed.
    Shown(String),
}

/// One command in one world.
trait Command {
    /// Names it in a failure.
    fn name(&self) -> String;

    /// A run without faults makes at least so many calls; less means that the test has lost its object.
    fn least_calls(&self) -> usize;

    /// Makes the world anew. The store may be the same one, with what earlier rounds left.
    fn world(&mut self) -> Result<Store>;

    /// Runs it against this repository.
    fn run(&self, repository: Repository) -> Result<Said, Error>;

    /// What must hold of the answer, of the repository, and of what it wrote elsewhere.
    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()>;

    /// Reads the repository.
    fn objects(&self, store: &Store) -> Result<Objects> {
        wait(false, support::audit::objects(store))
    }

    /// What must hold of the repository by itself.
    fn check(&self, auditor: &mut Auditor, before: &Objects, after: &Objects) -> Result<()> {
        auditor.check(before, after)
    }

    /// A call whose failure need not be the command's: what only tidies up.
    fn can_do_without(&self, call: &str) -> bool {
        call.starts_with("delete")
    }

    /// What a store that denies an object may make it say in vain. Others must notice.
    fn believes_a_lie(&self) -> bool {
        false
    }
}

/// Deadlines of a store that never repeats, short: a stalled call must end the command.
fn once() -> Policy {
    Policy { base: Duration::from_secs(1), ..Policy::default().once() }
}

/// Repetition without long waits.
fn patient() -> Policy {
    let wait = Duration::from_millis(1);
    Policy { first_wait: wait, longest_wait: wait, ..Policy::default() }
}

fn repository(store: Store) -> Result<Repository> {
    Ok(Repository::new(store, "main", "main".parse()?, true))
}

/// Blocks on the library. The clock is paused where no socket and no child process is waited for.
fn wait<F: Future>(paused: bool, future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(paused).build().expect("a runtime").block_on(future)
}

/// A kind of fault, and whether the store repeats.
#[derive(Debug, Clone, Copy)]
struct Round {
    effect: &'static str,
    repeated: bool,
}

fn rounds() -> impl Iterator<Item = Round> {
    let once = ONCE.into_iter().map(|effect| Round { effect, repeated: false });
    once.chain(REPEATED.into_iter().map(|effect| Round { effect, repeated: true }))
}

/// All faults at all calls of a command.
fn survive(command: &mut dyn Command, auditor: &mut Auditor) -> Result<()> {
    rounds().try_for_each(|round| each_call(command, auditor, round))
}

/// The same, shared among worlds that do not disturb each other: for commands that mostly wait.
fn survive_apart<C: Command + Send>(worlds: Vec<(C, Auditor)>) -> Result<Vec<Auditor>> {
    let next = std::sync::Mutex::new(rounds());
    let work = |(mut command, mut auditor): (C, Auditor)| -> Result<Auditor> {
        loop {
            let round = next.lock().map_err(|_| anyhow::anyhow!("another world failed"))?.next();
            let Some(round) = round else { return Ok(auditor) };
            each_call(&mut command, &mut auditor, round)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = worlds.into_iter().map(|world| scope.spawn(|| work(world))).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?);
        joined.collect()
    })
}

/// One fault at the first, second, ... call.
fn each_call(command: &mut dyn Command, auditor: &mut Auditor, round: Round) -> Result<()> {
    let Round { effect, repeated } = round;
    let policy = if repeated { patient() } else { once() };
    let mut failed = 0;
    for nth in 1..MOST_CALLS {
        let store = command.world()?;
        let before = command.objects(&store)?;
        let (faulty, faults) = store.with_faults(policy);
        faults.add(&format!("{effect}:{nth}"))?;
        let said = command.run(repository(faulty)?);
        let calls = matching(effect, faults.calls());
        let hit = usize::try_from(nth - 1)?;
        let what = format!("{}, {effect} at call {nth} ({:?})", command.name(), calls.get(hit));
        let after = command.objects(&store)?;
        command.check(auditor, &before, &after).context(what.clone())?;
        let believed = effect.starts_with("lie") && command.believes_a_lie();
        if !believed {
            command.audit(&said, &after).context(what.clone())?;
        }
        if let (Ok(_), "deny", Some(call)) = (&said, effect, calls.get(hit)) {
            ensure!(command.can_do_without(call), "{what}: nobody noticed");
        }
        if let Err(error) = &said {
            failed += 1;
            ensure!(calls.len() > hit, "{what}: it fails without a fault: {}", error.report());
            ensure!(!repeated, "{what}: a single failure is noticed: {}", error.report());
            ensure!(believed || is_useful(error), "{what}: no name or no advice: {}", error.report());
        }
        // After a success that made good a failure there is nothing to repeat.
        if !repeated {
            let again = command.run(repository(store.clone())?);
            let last = command.objects(&store)?;
            command.check(auditor, &after, &last).context(what.clone())?;
            if let Err(error) = &again {
                anyhow::bail!("{what}: repeated, it fails: {}", error.report());
            }
            command.audit(&again, &last).context(what)?;
        }
        if calls.len() <= hit {
            let enough = effect.contains('@') || calls.len() >= command.least_calls();
            ensure!(enough, "{} makes only {calls:?}", command.name());
            let noticed = failed > 0 || repeated || effect.contains('@');
            ensure!(noticed, "{}: {effect} never made it fail", command.name());
            return Ok(());
        }
    }
    anyhow::bail!("{} makes {MOST_CALLS} calls and more", command.name())
}

/// The calls that a fault of this text counts.
fn matching(effect: &str, calls: Vec<String>) -> Vec<String> {
    let name = effect.split_once('@').map_or("", |(_, name)| name);
    calls.into_iter().filter(|call| call.starts_with(name)).collect()
}

/// A failure names the repository or an object in it, says why, and what to do next.
fn is_useful(error: &Error) -> bool {
    let report = error.report();
    let named = ["repository main", "memory:", "file://"].iter().any(|name| report.contains(name));
    named && error.advice().is_some()
}
