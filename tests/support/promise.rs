//! What runs of `expire` must leave, whatever became of the last one: judged from the repository's bytes.
//!
//! ```text
//!  kept       what runs that nobody disturbs leave of backups and WAL     is there at any time, and the same
//!  offered    backups without a tombstone                                 whole, or not there: nothing is half deleted that counts
//!  finished   kept, and nothing else                                      once runs are through, whatever happened to earlier ones
//! ```

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::audit::{Auditor, Objects};

/// The promise, and who watches over it.
#[derive(Debug)]
pub struct Promise {
    /// The repository when undisturbed runs were through.
    left: Objects,
    kept: Objects,
    auditor: Auditor,
}

impl Promise {
    /// To leave what is `left`, of a server that keeps its WAL.
    pub fn new(pg_wal: &Path, left: Objects) -> Self {
        Self { kept: data(left.clone()), left, auditor: Auditor::of_server(pg_wal) }
    }

    /// What is kept, of backups and WAL.
    pub fn kept(&self) -> &Objects {
        &self.kept
    }

    /// Fails if anything that is kept is gone or another one, or if a backup is offered that is not whole. How many are offered.
    pub fn check(&mut self, now: &Objects) -> Result<usize> {
        let offered = offered(now.clone());
        self.auditor.check(&self.kept, &offered)?;
        let whole = self.auditor.whole(&offered)?;
        ensure!(whole >= 1, "no backup is left");
        Ok(whole)
    }

    /// Fails unless runs are through, and left what undisturbed ones leave.
    pub fn check_finished(&self, now: &Objects) -> Result<()> {
        let left = data(now.clone());
        let differ = |one: &Objects, other: &Objects| -> Vec<String> {
            one.iter()
                .filter(|(key, bytes)| other.get(*key) != Some(*bytes))
                .map(|(key, _)| key.clone())
                .collect()
        };
        ensure!(left == self.kept, "left over: {:?}", differ(&left, &self.kept));
        for folder in ["/pins/", "/leases/"] {
            let of_it = |all: &Objects| -> BTreeSet<String> {
                all.keys().filter(|key| key.contains(folder)).cloned().collect()
            };
            let (now, then) = (of_it(now), of_it(&self.left));
            ensure!(now == then, "{folder}: {now:?} is left instead of {then:?}");
        }
        let (now, then) = (floor(now)?, floor(&self.left)?);
        ensure!(now == then, "the floor is {now} instead of {then}");
        Ok(())
    }
}

/// What the newest floor says.
fn floor(objects: &Objects) -> Result<Value> {
    let newest = objects.iter().rfind(|(key, _)| key.contains("/floor/")).context("no floor")?;
    let floor: Value = serde_json::from_slice(newest.1)?;
    ensure!(floor["timelines"].is_array(), "{floor}");
    Ok(floor["timelines"].clone())
}

/// Backups and WAL; everything else has numbers or names of its own in every run.
pub fn data(mut objects: Objects) -> Objects {
    objects.retain(|key, _| key.contains("/backups/") || key.contains("/wal/"));
    objects
}

/// Without backups that are given up: they may be whole or half there.
fn offered(mut objects: Objects) -> Objects {
    let tombs = objects.keys().filter_map(|key| key.strip_suffix("expired.json").map(str::to_owned));
    for folder in tombs.collect::<BTreeSet<_>>() {
        objects.retain(|key, _| !key.starts_with(&folder));
    }
    objects
}
