//! What is there: one listing of the cluster's folder, every name told apart.
//!
//! ```text
//!  main/format/1.json        marks
//!  main/<SYSID>/…            a folder per system identifier: known names by what they are
//!  main/probe-…              passing
//!  everything else           unknown: counted, named, never called damage
//! ```
//! Memory: about 150 bytes for each object.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::repo::path::{self, Sealing, SystemKeys, SystemObject};
use crate::repo::{RepoError, Repository};
use crate::wal::SystemId;

/// Unknown names that are kept; more are only counted.
pub const MAX_UNKNOWN: usize = 1000;

/// Objects of one folder by what they are, with their sizes.
pub type Listed = BTreeMap<SystemObject, u64>;

/// What is there of a cluster.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The formats that are marked.
    pub(super) formats: BTreeSet<u32>,
    /// The folders.
    pub(super) folders: BTreeMap<SystemId, Listed>,
    /// Names that are not ours, the first [`MAX_UNKNOWN`] of them.
    pub(super) unknown: Vec<String>,
    /// How many there are.
    pub(super) unknown_count: u64,
}

impl Survey {
    /// Lists the folder of `repository`'s cluster.
    pub(super) async fn read(repository: &Repository) -> Result<Self, RepoError> {
        let cluster = repository.cluster();
        let mut survey = Self::default();
        let mut keys: BTreeMap<SystemId, Vec<SystemKeys>> = BTreeMap::new();
        for object in repository.store().list(&path::cluster_dir(cluster)).await? {
            if let Some(format) = path::parse_format_key(cluster, &object.key) {
                survey.formats.insert(format);
                continue;
            }
            let folder = object.key.split('/').take(2).collect::<Vec<_>>().join("/");
            let Some(system) = path::parse_system_dir(cluster, &folder) else {
                if !object.key.starts_with(&path::probe_key(cluster, "")) {
                    survey.add_unknown(object.key);
                }
                continue;
            };
            let spelt = match keys.entry(system) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(spellings(repository, system).await?),
            };
            match spelt.iter().find_map(|keys| keys.parse(&object.key)) {
                Some(known) => {
                    survey.folders.entry(system).or_default().insert(known, object.size);
                }
                None => survey.add_unknown(object.key),
            }
        }
        Ok(survey)
    }

    fn add_unknown(&mut self, key: String) {
        self.unknown_count += 1;
        if self.unknown.len() < MAX_UNKNOWN {
            self.unknown.push(key);
        }
    }
}

/// How names in the folder of `system` are spelt; where its identity cannot say, both ways.
async fn spellings(repository: &Repository, system: SystemId) -> Result<Vec<SystemKeys>, RepoError> {
    let sealings = match repository.sealing(system).await? {
        Some(sealing) => vec![sealing],
        None => vec![Sealing::Plain, Sealing::Sealed],
    };
    let keys = |sealing| SystemKeys::new(repository.cluster(), system, sealing);
    Ok(sealings.into_iter().map(keys).collect())
}
