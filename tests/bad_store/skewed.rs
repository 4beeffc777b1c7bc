//! A store that lives at another time than this host, by hours and by more than a year, in either direction: nothing becomes old by it.
//!
//! All times that the store tells are shifted on the way. What a run with both clocks right would keep is kept.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use jiff::SignedDuration;
use serde_json::Value;

use super::World;
use super::between::{Between, Deed};
use super::support::site::Answer;

/// Identifiers of the backups that can be restored.
fn restorable(world: &World) -> Result<BTreeSet<String>> {
    let info = world.site.json(&["info", "--json"])?;
    let backups = info["repositories"][0]["backups"].as_array().context("backups")?;
    let good = backups.iter().filter(|backup| backup["restorable"] == true);
    Ok(good.filter_map(|backup| backup["id"].as_str().map(str::to_owned)).collect())
}

fn expire(world: &World, between: &Between, retention: &str) -> Result<Value> {
    let config = world.config("skewed.toml", &format!("http://{}", between.address()), retention)?;
    let answer = Answer::of(&mut world.pitr(&config, &["expire", "--json"])?)?;
    ensure!(answer.code == 0, "{answer:?}");
    Ok(serde_json::from_str(&answer.out)?)
}

#[test]
fn a_store_at_another_time_makes_nothing_old() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    for n in 1..=2 {
        world.site.backup()?;
        world.site.cluster.psql(&format!("INSERT INTO t VALUES ({n})"))?;
    }
    let all = restorable(&world)?;
    ensure!(all.len() == 3, "{all:?}");
    let between = Between::start(&world.s3.address())?;
    // Everything is minutes old, the window an hour. What was before the first backup goes.
    let retention = "retention = { window = \"1h\", grace = \"0\" }";
    expire(&world, &between, retention)?;
    // By more than two days, expiry would be frozen, as if backups failed.
    for hours in [30, -30, 9600, -9600] {
        between.from(1, Deed::Shift(SignedDuration::from_hours(hours)));
        let said = expire(&world, &between, retention)?;
        ensure!(between.seen() > 10, "it did not ask this way");
        let system = &said["repositories"][0]["systems"][0];
        ensure!(system["lost"] == serde_json::json!([]), "{hours} hours: {said}");
        ensure!(
            system["deleted"]["objects"] == 0 && system["deleted"]["wal_objects"] == 0,
            "{hours} hours: {said}"
        );
        ensure!(restorable(&world)? == all, "{hours} hours");
    }
    Ok(())
}

#[test]
fn the_grace_is_told_by_the_store_alone() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.site.backup()?;
    let between = Between::start(&world.s3.address())?;
    let retention = "retention = { window = \"1ms\", grace = \"1h\" }";
    // One run marks, the other would delete what was marked an hour ago: for this host's clock that was.
    for hours in [30, -30] {
        between.from(1, Deed::Shift(SignedDuration::from_hours(hours)));
        let said = expire(&world, &between, retention)?;
        let system = &said["repositories"][0]["systems"][0];
        ensure!(system["deleted"]["objects"] == 0, "{hours} hours: {said}");
    }
    // Right again, and marked just now.
    between.from(1, Deed::Pass);
    let said = expire(&world, &between, retention)?;
    let system = &said["repositories"][0]["systems"][0];
    ensure!(system["waiting"].as_array().is_some_and(|waiting| waiting.len() == 1), "{said}");
    Ok(())
}
