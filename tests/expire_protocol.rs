//! Writers, readers and runs of expire at once, in thousands of orders: nothing that counts ever misses what it needs.
//!
//! The code is pitr's own; the order of its calls to the store is a seed's (`pitr::store::schedule`), and actors are killed between any
//! two of them; in two histories of three, replies to calls that took effect are lost. Mostly there is no grace, so that nothing but the
//! order of the protocol protects anything: REPOSITORY.md 4, W1 to W6, E1, D1 to D3, floor and pins. With one, a restore that nobody was
//! told of must find all it planned for as long as that. `PITR_SEED=N` repeats one history, `PITR_SEEDS=N` tries more of them.
#![cfg(feature = "testing")]
#![expect(clippy::disallowed_methods, reason = "a seed to repeat comes from the environment")]
#![expect(clippy::print_stdout, reason = "what happened in the histories")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::SignedDuration;
use pitr::store::schedule::Actor;
use support::actors::{Scene, merciless};

/// Actors that are awake at a time.
const AWAKE: usize = 3;
/// Steps of one history.
const STEPS: usize = 2500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn start(scene: &mut Scene, grace: Duration) -> Actor<'static> {
    if !grace.is_zero() && scene.schedule.one_in(8) {
        return scene.planner(SignedDuration::try_from(grace).unwrap_or(SignedDuration::ZERO));
    }
    match scene.schedule.below(10) {
        0..=3 => {
            let behind = scene.schedule.below(6);
            scene.writer(u64::try_from(behind).unwrap_or(0))
        }
        4..=7 => scene.expirer(merciless(grace)),
        8 => scene.reader(),
        _ => scene.operator(),
    }
}

/// An actor that, at some point of its life, stands still for as long as others take for all of theirs.
struct Life {
    actor: Actor<'static>,
    steps: usize,
    sleeps_after: usize,
    wakes_at: usize,
}

impl Life {
    fn begin(actor: Actor<'static>, scene: &Scene, sleeps_within: usize) -> Self {
        Self { actor, steps: 0, sleeps_after: scene.schedule.below(sleeps_within), wakes_at: 0 }
    }

    /// One step; true if it was the last.
    async fn step(&mut self, scene: &Scene, now: usize) -> bool {
        self.steps += 1;
        if self.steps == self.sleeps_after {
            self.wakes_at = now + scene.schedule.below(900);
        }
        scene.schedule.step(&mut self.actor).await
    }
}

/// One history; what happened in it.
async fn history(seed: u64, url: &str, steps: usize, grace: Duration) -> Result<BTreeMap<&'static str, u64>> {
    let mut scene = Scene::new(seed, url, seed.is_multiple_of(2) || !grace.is_zero()).await?;
    if !seed.is_multiple_of(3) {
        scene.schedule.lose_one_reply_in(15);
    }
    let mut lives: Vec<Life> = Vec::new();
    for now in 0..steps {
        while lives.iter().filter(|life| life.wakes_at <= now).count() < AWAKE {
            let actor = start(&mut scene, grace);
            lives.push(Life::begin(actor, &scene, 60));
        }
        if scene.schedule.one_in(50) {
            // Long enough for silence to mean something, or not.
            let hours = [1, 3, 25].get(scene.schedule.below(3)).copied().unwrap_or(1);
            scene.pass(SignedDuration::from_hours(hours));
        }
        let awake: Vec<usize> = (0..lives.len()).filter(|n| lives[*n].wakes_at <= now).collect();
        let chosen = awake[scene.schedule.below(awake.len())];
        if scene.schedule.one_in(300) {
            scene.killed(&lives.swap_remove(chosen).actor);
            continue;
        }
        if lives[chosen].step(&scene, now).await {
            lives.swap_remove(chosen);
        }
        audit(&scene).await.with_context(|| format!("PITR_SEED={seed}, step {now}"))?;
    }
    Ok(scene.tally())
}

/// Audits after a call that changed something: reading changes nothing that could be found missing.
async fn audit(scene: &Scene) -> Result<()> {
    let changes = |call: String| [" create ", " delete ", " lost "].iter().any(|word| call.contains(word));
    if !scene.schedule.last_call().is_some_and(changes) {
        return Ok(());
    }
    scene.audit().await.with_context(|| {
        let calls = scene.schedule.calls();
        let last = calls.iter().rev().take(60).rev().cloned().collect::<Vec<_>>().join("\n");
        format!("the last calls:\n{last}")
    })
}

/// Two writers, two runs of expire and somebody who gives a backup up, once each, while time stands still: the world of the exhaustive
/// models that the protocol was made with.
async fn small_world(seed: u64) -> Result<()> {
    let mut scene = Scene::new(seed, "memory:", false).await?;
    // The models read one folder at a time; this reads one key.
    scene.schedule.set_page(1);
    let actors = [
        scene.writer(0),
        scene.writer(3),
        scene.operator(),
        scene.expirer(merciless(Duration::ZERO)),
        scene.expirer(merciless(Duration::ZERO)),
    ];
    let mut lives: Vec<Life> = actors.into_iter().map(|actor| Life::begin(actor, &scene, 40)).collect();
    let mut now = 0;
    while !lives.is_empty() {
        now += 1;
        let mut awake: Vec<usize> = (0..lives.len()).filter(|n| lives[*n].wakes_at <= now).collect();
        if awake.is_empty() {
            awake = (0..lives.len()).collect();
        }
        let chosen = awake[scene.schedule.below(awake.len())];
        if lives[chosen].step(&scene, now).await {
            lives.swap_remove(chosen);
        }
        audit(&scene).await.with_context(|| format!("seed {seed}, step {now}"))?;
    }
    Ok(())
}

#[test]
fn two_writers_and_two_runs_lose_nothing_though_time_stands_still() -> Result<()> {
    for seed in 0..number("PITR_SEEDS").unwrap_or(60) * 12 {
        run(small_world(seed))??;
    }
    Ok(())
}

fn run<T>(work: impl Future<Output = T>) -> Result<T> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_time().start_paused(true).build()?.block_on(work))
}

#[test]
fn nothing_that_counts_ever_misses_what_it_needs() -> Result<()> {
    if let Some(seed) = number("PITR_SEED") {
        return run(history(seed, "memory:", STEPS, Duration::ZERO))?.map(|tally| println!("{tally:?}"));
    }
    let mut total = BTreeMap::new();
    for seed in 0..number("PITR_SEEDS").unwrap_or(60) {
        for (what, n) in run(history(seed, "memory:", STEPS, Duration::ZERO))?? {
            *total.entry(what).or_insert(0) += n;
        }
    }
    // A history in which nothing is deleted, refused or killed would prove nothing.
    for what in [
        "backups completed",
        "backups given up",
        "backups deleted",
        "backups kept in part",
        "WAL deleted",
        "restores",
        "restores refused",
        "runs of expire",
        "kills",
        "leases taken",
        "leases respected",
        "leases taken over",
    ] {
        ensure!(total.get(what).is_some_and(|n| *n >= 20), "too few {what}: {total:?}");
    }
    println!("{total:?}");
    Ok(())
}

#[test]
fn a_restore_that_nobody_was_told_of_has_the_grace() -> Result<()> {
    let mut total = BTreeMap::new();
    let seeds =
        number("PITR_SEED").map_or_else(|| 0..number("PITR_SEEDS").unwrap_or(40), |seed| seed..seed + 1);
    for seed in seeds.clone() {
        let hours = [1, 10, 30, 100].get(usize::try_from(seed % 4)?).copied().unwrap_or(1);
        for (what, n) in run(history(seed, "memory:", STEPS, Duration::from_secs(hours * 3600)))?? {
            *total.entry(what).or_insert(0) += n;
        }
    }
    for what in ["restores planned", "backups deleted", "backups kept in part", "WAL deleted", "kills"] {
        let enough = seeds.end - seeds.start < 2 || total.get(what).is_some_and(|n| *n >= 20);
        ensure!(enough, "too few {what}: {total:?}");
    }
    println!("{total:?}");
    Ok(())
}

#[test]
fn and_so_on_a_directory() -> Result<()> {
    let place = tempfile::tempdir()?;
    for seed in 0..3 {
        let url = format!("file://{}/{seed}", place.path().display());
        run(history(seed, &url, 250, Duration::ZERO))??;
    }
    Ok(())
}
