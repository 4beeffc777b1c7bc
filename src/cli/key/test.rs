//! `pitr key test`: does the key in the safe still open everything?
//!
//! Every epoch there was is asked for, also one whose wraps are gone: those that the wraps, the backups' verdicts and the host file name, and
//! all before them. A sealed folder without a single wrap is a lost key and no absence. A wrap that opens is not enough, since a host file that
//! somebody changed seals for a key of his: of each epoch the manifest of its newest backup is opened, and of the folder its newest segment.

use serde_json::json;

use crate::cli::args::Common;
use crate::cli::exit::Ended;
use crate::cli::output::{self, say};
use crate::cli::verify::UNVERIFIED;
use crate::error::{Error, Result};
use crate::ops::key;
use crate::repo::path::{BackupObject, Sealing};
use crate::repo::{Keyring, RepoError, Repository, System};
use crate::seal::{Epoch, Identity, Wrap};
use crate::wal::{SystemId, WalFileName};

/// Whether the identities at hand open what is stored: each epoch's wraps, by reading them from the repositories.
///
/// # Errors
/// Kind `Key` if they do not, or if there are no wraps of an epoch that something was sealed with.
pub(super) async fn run(common: &Common) -> Result<Ended> {
    let context = crate::cli::operator(common)?;
    let identities = context.keys.as_deref().map(Keyring::identities).unwrap_or_default().to_vec();
    if identities.is_empty() {
        return Err(Error::key("no identity is given")
            .hint("--identity FILE, identity_file under [keys], or PITR_IDENTITY"));
    }
    let mut shown = Vec::new();
    for repository in context.repositories()? {
        shown.extend(tested(&repository, &identities).await?);
    }
    if shown.is_empty() {
        return Err(Error::not_found("no repository holds an encrypted folder of this cluster")
            .hint("`pitr info` shows what there is"));
    }
    let unverified = context.keys.as_deref().is_none_or(Keyring::is_unverified);
    if common.json {
        let rows: Vec<_> = shown
            .iter()
            .map(|t| json!({ "repository": t.repository, "system": t.system.to_string(), "epoch": t.epoch, "wraps": t.wraps, "opens": t.is_good(), "opened": t.opened, "locked": t.locked }))
            .collect();
        output::json(&json!({ "schema": "pitr.key-test.v1", "unverified": unverified, "epochs": rows }));
    } else {
        if unverified {
            say(UNVERIFIED);
        }
        for t in &shown {
            say(&format!(
                "repository {}, system {}, epoch {}: {}",
                t.repository,
                t.system,
                t.epoch,
                t.word()
            ));
        }
    }
    shown.iter().find(|t| !t.is_good()).map_or(Ok(Ended::Well), |locked| Err(locked.problem()))
}

/// An epoch of a sealed folder.
struct Tested {
    repository: String,
    system: SystemId,
    epoch: Epoch,
    /// How many wraps of it are there.
    wraps: u32,
    /// A wrap of it opens.
    opens: bool,
    /// The host file at hand seals for another key.
    exchanged: bool,
    /// What was sealed with it and opened.
    opened: Vec<String>,
    /// What was sealed with it, as it says, and does not open.
    locked: Option<String>,
}

impl Tested {
    fn is_good(&self) -> bool {
        self.opens && !self.exchanged && self.locked.is_none()
    }

    fn word(&self) -> String {
        match (self.wraps, self.opens, &self.locked) {
            (0, false, _) => "HAS NO WRAPS".to_owned(),
            (_, false, _) => "DOES NOT OPEN".to_owned(),
            (_, true, Some(key)) => format!("opens by its wraps, and DOES NOT OPEN {key}"),
            (_, true, None) if self.exchanged => "opens, and the host file SEALS FOR ANOTHER KEY".to_owned(),
            (_, true, None) if self.opened.is_empty() => "opens".to_owned(),
            (_, true, None) => format!("opens, and so does {}", self.opened.join(", ")),
        }
    }

    fn problem(&self) -> Error {
        let Self { repository, system, epoch, .. } = self;
        if self.exchanged {
            return key::another_key(*epoch);
        }
        if let Some(key) = &self.locked {
            return Error::key(format!(
                "the key in the wraps of epoch {epoch} does not open {key} in repository {repository}, which says that it was sealed with it"
            ))
            .hint("whoever sealed it had a host file with another key in it: bring back one that you trust, then `pitr key rotate` and `pitr backup --full`");
        }
        if self.wraps == 0 {
            return Error::key(format!(
                "repository {repository}, system {system}, has no wraps of epoch {epoch}: nothing that was sealed with it can be read"
            ))
            .hint("somebody deleted them: `pitr init` on a host that has the host file puts them back, and another repository may hold them");
        }
        Error::key(format!("the identities at hand do not open epoch {epoch} in repository {repository}"))
            .hint("another recipient's identity may; `pitr key list` names the recipients")
    }
}

async fn tested(repository: &Repository, identities: &[Identity]) -> Result<Vec<Tested>> {
    let mut shown = Vec::new();
    for system in repository.systems().await? {
        let wraps = repository.wraps(system).await?;
        // An identity that cannot be read is found out by opening it.
        let unsealed = match repository.sealing(system).await? {
            Some(sealing) => sealing == Sealing::Plain,
            None => wraps.is_empty(),
        };
        if unsealed {
            continue;
        }
        // The folder's own check of its seal key comes with it; who opens nothing is told so below.
        let opened = match repository.open(system).await {
            Ok(opened) => Some(opened),
            Err(RepoError::NoKeys { .. }) => None,
            Err(e) => return Err(e.into()),
        };
        let samples = match &opened {
            Some(opened) => samples(opened).await?,
            None => Vec::new(),
        };
        let host = repository.keys().and_then(Keyring::host);
        for epoch in epochs(repository, opened.as_ref(), &wraps).await? {
            let of_it = wraps.iter().filter(|(of, ..)| *of == epoch);
            let secrets = of_it
                .clone()
                .filter_map(|(_, _, wrap)| wrap.open(identities, repository.cluster().as_str(), epoch).ok());
            let trusted = opened.as_ref().and_then(System::seal_key);
            let public: Vec<_> = secrets
                .filter(|found| trusted == Some(&found.seal))
                .map(|found| found.key.recipient())
                .collect();
            let own = host.and_then(|host| host.epochs.iter().find(|known| known.epoch == epoch));
            let (locked, opened): (Vec<&Sample>, _) =
                samples.iter().filter(|s| s.epoch == epoch).partition(|s| s.locked);
            shown.push(Tested {
                repository: repository.name().to_owned(),
                system,
                epoch,
                wraps: u32::try_from(of_it.count()).unwrap_or(u32::MAX),
                opens: !public.is_empty(),
                exchanged: !public.is_empty() && own.is_some_and(|own| !public.contains(&own.recipient)),
                opened: opened.iter().map(|s| s.key.clone()).collect(),
                locked: locked.first().filter(|_| !public.is_empty()).map(|s| s.key.clone()),
            });
        }
    }
    Ok(shown)
}

/// Something that is stored, and whether it opens.
struct Sample {
    epoch: Epoch,
    key: String,
    locked: bool,
}

/// What is opened of a folder: of each epoch the manifest of the newest complete backup, and the newest segment of the newest timeline.
async fn samples(system: &System) -> Result<Vec<Sample>> {
    let mut samples: Vec<Sample> = Vec::new();
    let catalog = system.catalog().await?;
    let mut backups: Vec<_> = catalog.complete().collect();
    backups.sort_by_key(|backup| std::cmp::Reverse((backup.timeline, backup.stop_lsn)));
    for backup in backups {
        let Some(epoch) = backup.key.filter(|epoch| !samples.iter().any(|s| s.epoch == *epoch)) else {
            continue;
        };
        let key = system.keys().backup(&backup.id, BackupObject::Manifest);
        match system.manifest(backup).await {
            Ok(_) => samples.push(Sample { epoch, key, locked: false }),
            Err(RepoError::Sealed { .. }) => samples.push(Sample { epoch, key, locked: true }),
            Err(RepoError::NoKeys { .. } | RepoError::Expired { .. }) => {}
            // `verify` finds it; what the keys open is asked here.
            Err(e) if e.is_damage() => output::warn(&format!("warning: {key} was not opened: {e}")),
            Err(e) => return Err(e.into()),
        }
    }
    let timelines = system.timelines().await?;
    let newest = match timelines.keys().next_back() {
        Some(timeline) => system.segments(*timeline).await?.last().map(|listed| listed.name),
        None => None,
    };
    if let Some(name) = newest
        && let Some(fetched) = system.fetch_wal_to_check(WalFileName::Segment(name)).await?
        && let Some(epoch) = fetched.header.key.filter(|_| fetched.can_open())
    {
        let opened = tokio::task::spawn_blocking(move || fetched.open(|_| {})).await;
        let locked = match opened.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())) {
            Ok(()) => false,
            Err(RepoError::Sealed { .. }) => true,
            Err(e) if e.is_damage() => {
                output::warn(&format!("warning: {name} was not opened: {e}"));
                return Ok(samples);
            }
            Err(e) => return Err(e.into()),
        };
        samples.push(Sample { epoch, key: name.to_string(), locked });
    }
    Ok(samples)
}

/// All epochs there were: none is ever left out.
async fn epochs(
    repository: &Repository,
    opened: Option<&System>,
    wraps: &[(Epoch, u32, Wrap)],
) -> Result<Vec<Epoch>> {
    let mut named: Vec<Epoch> = wraps.iter().map(|(epoch, ..)| *epoch).collect();
    named.extend(repository.keys().and_then(Keyring::host).map(|host| host.epoch));
    if let Some(opened) = opened {
        named.extend(key::sealed_with(opened).await?);
    }
    let newest = named.into_iter().max().unwrap_or(Epoch::FIRST);
    let next = |epoch: &Epoch| epoch.next().filter(|next| *next <= newest);
    Ok(std::iter::successors(Some(Epoch::FIRST), next).collect())
}
