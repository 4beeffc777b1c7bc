//! kill -9 at the first, second, third … point of a command (of those beyond the twentieth, at some), and then an audit: nothing
//! acknowledged is lost, nothing half done is listed or can start, and the same command repeated succeeds.
//!
//! ```text
//!  world ─► command, killed at point n ─► audit ─► command again, not killed ─► must succeed ─► audit ─┐
//!    ▲                                                                                                 │ until n is beyond
//!    └───────────────────────────────────────── n + 1 ◄────────────────────────────────────────────────┘ its last point
//! ```
//! The process kills itself, so that the point is exact: at a call of the store before it is done (`kill`) or after it (`killed-after`,
//! see `store::fault`), and between the local steps of `durable` (`durable::crash`). A command is one value of [`Work`]. The page cache
//! survives a kill: that bytes reach the disk is the subject of `tests/durable.rs`, not of this.
#![cfg(feature = "testing")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

#[path = "crash/adopt.rs"]
mod adopt;
#[path = "crash/agent.rs"]
mod agent;
#[path = "crash/ahead.rs"]
mod ahead;
#[path = "crash/archive.rs"]
mod archive;
#[path = "crash/attack.rs"]
mod attack;
#[path = "crash/backup.rs"]
mod backup;
#[path = "crash/decisions.rs"]
mod decisions;
#[path = "crash/expire.rs"]
mod expire;
#[path = "crash/keys.rs"]
mod keys;
#[path = "crash/moving.rs"]
mod moving;
#[path = "crash/restore.rs"]
mod restore;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use support::site::Answer;
use support::tree::{copy, remove, tree};

/// What a shell says of a process that ended by SIGKILL.
const KILLED: i32 = 137;
/// No command of these worlds has more points; a loop that gets here does not end.
const MOST_POINTS: u64 = 20_000;

/// At which points a command is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// Calls of the store, before they take effect.
    Call,
    /// Calls of the store, when they have taken effect.
    CallDone,
    /// Steps on the local file system.
    Step,
    /// Such steps of one name.
    StepNamed(&'static str),
}

impl Point {
    const ALL: [Self; 3] = [Self::Call, Self::CallDone, Self::Step];

    fn arm(self, nth: u64, command: &mut Command) {
        match self {
            Self::Call => command.env("PITR_TEST_FAULTS", format!("kill:{nth}")),
            Self::CallDone => command.env("PITR_TEST_FAULTS", format!("killed-after:{nth}")),
            Self::Step => command.env("PITR_TEST_CRASH", nth.to_string()),
            Self::StepNamed(name) => command.env("PITR_TEST_CRASH", format!("{name}:{nth}")),
        };
    }
}

/// One command in one world.
trait Work {
    /// Names it in a failure.
    fn name(&self) -> String;

    /// It has at least so many points of this kind; less means that the test has lost its object.
    fn least(&self, point: Point) -> u64;

    /// Makes the world anew, with nothing that an earlier round made.
    fn world(&mut self) -> Result<()>;

    /// The command, the same for the run that is killed and for its repetition.
    fn command(&self) -> Result<Command>;

    /// What must hold now. `answer` is how the command ended: killed, or well.
    fn audit(&mut self, answer: &Answer) -> Result<()>;

    /// How it ends when nothing kills it.
    fn good(&self) -> i32 {
        0
    }

    /// Whether what it was to do is done, so that there is nothing to repeat.
    fn is_done(&self) -> bool {
        false
    }
}

/// Kills a command at its first, second, … point until it gets through.
fn kill_at_each(work: &mut dyn Work, point: Point) -> Result<()> {
    // Beyond the first points those of many files, or of many segments, are alike.
    let points = std::iter::successors(Some(1), |nth| Some(nth + 1 + nth / 20 * 5));
    for nth in points.take_while(|nth| *nth < MOST_POINTS) {
        work.world()?;
        let mut command = work.command()?;
        point.arm(nth, &mut command);
        let answer = Answer::of(&mut command)?;
        let what = format!("{}, {point:?} {nth}: {answer:?}", work.name());
        work.audit(&answer).with_context(|| what.clone())?;
        if answer.code != KILLED {
            ensure!(answer.code == work.good() && !answer.err.contains("injected"), "{what}");
            ensure!(nth > work.least(point), "it has too few points: {what}");
            return Ok(());
        }
        if !work.is_done() {
            let again = Answer::of(&mut work.command()?)?;
            ensure!(again.code == work.good(), "{what}\nrepeated: {again:?}");
            work.audit(&again).with_context(|| format!("{what}\nrepeated: {again:?}"))?;
        }
    }
    anyhow::bail!("{} does not end", work.name())
}

fn kill_everywhere(work: &mut dyn Work) -> Result<()> {
    Point::ALL.into_iter().try_for_each(|point| kill_at_each(work, point))
}

/// Makes every file below a directory so much older, as the store sees it.
fn age(root: &Path, by: Duration) -> Result<()> {
    let then = SystemTime::now() - by;
    support::restored::walk(root, &mut |path| {
        let file = fs::File::options().write(true).open(path);
        file.and_then(|file| file.set_modified(then)).ok();
    })
}
