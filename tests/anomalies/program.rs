//! The program itself, each command as users and PostgreSQL run it: what a refusal at the n-th call makes of its exit code.
//!
//! `PITR_TEST_FAULTS` refuses the call for good, so that the store's own repetition does not hide it. What the program prints and
//! the repository are all that is looked at.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::MOST_CALLS;
use super::backup::small_site;
use super::support::audit::{Auditor, objects_in};
use super::support::cluster::{Install, give_to_server, scratch_in_memory};
use super::support::site::{Answer, Site};

/// A command line and the codes that it may end with when one of its calls is refused.
struct Row {
    args: Vec<String>,
    /// Without faults.
    good: i32,
    /// With one that is not survived: "a key or a permission is missing", as its caller reads it.
    refused: i32,
    least_calls: u64,
}

fn rows(site: &Site, target: &Path) -> Result<Vec<Row>> {
    let files = site.cluster.wal_files()?;
    let name = |path: Option<&std::path::PathBuf>| -> Result<String> {
        Ok(path.and_then(|path| path.file_name()?.to_str()).context("a segment")?.to_owned())
    };
    let first = name(files.first())?;
    let later = format!("{}000000F0", first.get(..16).context("a segment")?);
    let push = format!("pg_wal/{first}");
    let target = target.display().to_string();
    let superuser = site.cluster.conninfo();
    let row = |args: &[&str], good, refused, least_calls| {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Row { args, good, refused, least_calls }
    };
    Ok(vec![
        row(&["init", "--superuser", &superuser], 0, 7, 8),
        row(&["check"], 0, 1, 8),
        row(&["archive-push", &push], 0, 7, 3),
        row(&["archive-get", &first, "pg_wal/RECOVERYXLOG"], 0, 207, 2),
        row(&["archive-get", &later, "pg_wal/RECOVERYXLOG"], 1, 207, 4),
        row(&["archive-get", "00000002.history", "pg_wal/RECOVERYHISTORY"], 1, 207, 4),
        row(&["backup"], 0, 7, 12),
        row(&["info"], 0, 7, 8),
        row(&["restore", "--copy", "--target-dir", &target], 0, 7, 15),
    ])
}

fn run(site: &Site, row: &Row, faults: Option<&str>) -> Result<Answer> {
    let args: Vec<&str> = row.args.iter().map(String::as_str).collect();
    let mut command = site.pitr(&args)?;
    command.envs(faults.map(|faults| ("PITR_TEST_FAULTS", faults)));
    Answer::of(&mut command)
}

/// Refuses the first, second, ... call of a command, until it is through.
fn refuse_each_call(site: &Site, row: &Row, target: &Path, auditor: &mut Auditor) -> Result<()> {
    for nth in 1..MOST_CALLS {
        let before = objects_in(&site.repository)?;
        if target.exists() {
            fs::remove_dir_all(target)?;
        }
        let answer = run(site, row, Some(&format!("deny:{nth}")))?;
        let what = format!("{:?}, deny at call {nth}: {answer:?}", row.args);
        let hit = answer.err.contains("injected");
        auditor.check(&without_passing(before), &objects_in(&site.repository)?).context(what.clone())?;
        let restored = target.join("global/pg_control").exists();
        ensure!(!restored || answer.code == 0, "{what}: what failed can start");
        if !hit {
            ensure!(answer.code == row.good && nth > row.least_calls, "{what}");
            return Ok(());
        }
        // What a command can do without (a probe that stays, a pin that runs out) is no failure; but it is never "not there".
        let survived = answer.code == 0 && row.good == 0;
        ensure!(survived || answer.code == row.refused, "{what}");
        ensure!(
            survived || answer.err.contains("HINT") || answer.out.contains("refusal"),
            "{what}: no advice"
        );
        if answer.code != 0 {
            let again = run(site, row, None)?;
            ensure!(again.code == row.good, "{what}: repeated: {again:?}");
        }
    }
    anyhow::bail!("{:?} makes {MOST_CALLS} calls and more", row.args)
}

fn without_passing(mut objects: super::support::audit::Objects) -> super::support::audit::Objects {
    objects.retain(|key, _| !key.contains("/probe-"));
    objects
}

#[test]
fn every_command_ends_with_its_documented_code_whatever_call_is_refused() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    let place = scratch_in_memory("pitr-program-")?;
    let target = place.path().join("target");
    give_to_server(place.path())?;
    let mut auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
    for row in rows(&site, &target)? {
        refuse_each_call(&site, &row, &target, &mut auditor)?;
    }
    Ok(())
}
