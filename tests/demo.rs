//! What the README's first command shows: `pitr demo`, as root and as the servers' user, with nothing in its environment.
//!
//! The rows are compared by the demo itself, on a real server; here it must say so, and leave nothing
//! behind.
#![cfg(feature = "testing")]

mod support;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use support::cluster::{Install, as_server, give_to_server, scratch};
use support::site::Answer;

/// Runs it to its end, in a directory of the test's own.
fn plays(mut command: Command, install: &Install) -> Result<()> {
    let place = scratch("pitr-demo-test-")?;
    command.env_clear().current_dir(place.path());
    let answer = Answer::of(command.args(["demo", "--json", "--bin-dir"]).arg(&install.bin))?;
    answer.expect(0, &[])?;
    let told: serde_json::Value = serde_json::from_str(answer.out.lines().last().unwrap_or_default())?;
    ensure!(told["schema"] == "pitr.demo.v1" && told["equal"] == true, "{answer:?}");
    ensure!(told["restored"].as_str().is_some_and(|rows| rows.starts_with("30000 ")), "{told}");
    let used = told["place"].as_str().context("a place")?;
    ensure!(used.starts_with('/') && !std::path::Path::new(used).exists(), "{used} is left");
    ensure!(std::fs::read_dir(place.path())?.next().is_none(), "it cleans up after itself");
    Ok(())
}

#[test]
fn the_first_command_of_the_readme_brings_the_rows_back() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let program = env!("CARGO_BIN_EXE_pitr");
    plays(Command::new(program), &install)?;
    // The servers' user, who may not read what root built.
    let place = scratch("pitr-demo-program-")?;
    let copy = place.path().join("pitr");
    std::fs::copy(program, &copy)?;
    give_to_server(&copy)?;
    plays(as_server(&copy)?, &install)
}
