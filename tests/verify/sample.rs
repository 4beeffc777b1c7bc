//! "So that all is read in N days": the sample end to end, with a look on each of N days.
//!
//! The oracle is damage: a byte that differs is found on the one day on which its object is due, and on no other; and sums of bytes: what
//! all days read together is what a whole look reads.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pitr::ops::Silent;
use pitr::ops::verify::{Report, Request, Sample, verify};
use pitr::repo::Repository;
use pitr::store::{Store, StoreOptions};

use super::World;
use super::support::cluster::Install;

/// Days of a cycle, as `--sample` has them, and how many there are.
const CYCLE: (&str, u64) = ("5d", 5);
/// The cycle does not begin on its first day.
const BEGIN: u64 = 20_783;

fn look(copy: &Path, sample: Sample) -> Result<Report> {
    let url = format!("file://{}", copy.display()).parse()?;
    let repository =
        Repository::new(Store::open(&url, &StoreOptions::default())?, "main", "main".parse()?, true);
    let request = Request { backup: None, sample, decode: false, jobs: 2 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(verify(&repository, &request, &Silent));
    let report = report.map_err(|error| anyhow::anyhow!(error.report()))?;
    ensure!(report.stopped.is_none(), "{:?}", report.stopped);
    Ok(report)
}

/// Objects and bytes that were read.
fn extent(report: &Report) -> (u64, u64) {
    let extents = report.folders.iter().map(|folder| folder.extent);
    extents.fold((0, 0), |(objects, bytes), extent| (objects + extent.read, bytes + extent.bytes))
}

/// The days of one cycle.
fn days() -> Result<Vec<Sample>> {
    (BEGIN..BEGIN + CYCLE.1).map(|day| Ok(Sample::parse(CYCLE.0, day)?)).collect()
}

/// Packs and WAL, histories excepted: those are read every day.
fn is_body(key: &str) -> bool {
    let file = key.rsplit('/').next().unwrap_or_default();
    file.starts_with("pack-") || file.ends_with(".wal") || file.ends_with(".backup")
}

/// The days on which a look finds that this byte of an object was changed, and nothing else.
fn found_on(world: &World, key: &str, path: &Path, good: &[u8], at: usize) -> Result<Vec<Sample>> {
    let mut bad = good.to_vec();
    *bad.get_mut(at).context("a byte")? ^= 0x10;
    fs::write(path, &bad)?;
    let mut found = Vec::new();
    for day in days()? {
        let report = look(&world.copy, day)?;
        let all = report.folders.iter().flat_map(|folder| &folder.findings.kept);
        let named: Vec<&str> = all.map(|finding| finding.object.as_str()).collect();
        ensure!(named.iter().all(|object| *object == key), "{key}, byte {at}, {day:?}: {named:?}");
        found.extend((!named.is_empty()).then_some(day));
    }
    fs::write(path, good)?;
    Ok(found)
}

#[test]
fn in_the_days_of_a_sample_all_is_read_once_and_a_changed_byte_anywhere_is_found() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let (small, whole) = (look(&world.copy, Sample::Nothing)?, look(&world.copy, Sample::All)?);
    ensure!(whole.count() == 0, "{:?}", whole.folders);
    let mut sum = extent(&small);
    for day in days()? {
        let report = look(&world.copy, day)?;
        let ((objects, bytes), always) = (extent(&report), extent(&small));
        ensure!(report.count() == 0 && objects >= always.0, "{day:?}: {:?}", report.folders);
        sum = (sum.0 + objects - always.0, sum.1 + bytes - always.1);
    }
    ensure!(sum == extent(&whole), "{sum:?} was read in all days, {:?} is there", extent(&whole));

    let bodies: Vec<_> = world.objects()?.into_iter().filter(|(key, _)| is_body(key)).collect();
    ensure!(bodies.iter().filter(|(key, _)| key.contains("/pack-")).count() >= 2, "{bodies:?}");
    ensure!(bodies.iter().filter(|(key, _)| key.ends_with(".wal")).count() >= 8, "{bodies:?}");
    let mut busy = Vec::new();
    for (key, path) in bodies {
        let good = fs::read(&path)?;
        // A header and an annex are looked at on other days too: neighbours and plans go by them.
        let due = found_on(&world, &key, &path, &good, good.len() - 1)?;
        ensure!(due.len() == 1, "{key}: the last byte was found on {due:?}");
        for at in [0, 100, good.len() / 2] {
            let found = found_on(&world, &key, &path, &good, at)?;
            ensure!(found.contains(&due[0]), "{key}, byte {at}: found on {found:?}, due on {due:?}");
        }
        busy.extend(due);
    }
    ensure!(
        days()?.iter().filter(|day| busy.contains(day)).count() >= 3,
        "all is due on the same day: {busy:?}"
    );
    Ok(())
}
