//! `pitr key test`: does the key in the safe still open everything?
//!
//! Every epoch there was is asked for, also one whose wraps are gone: those that the wraps, the backups' verdicts and the host file name, and
//! all before them. A sealed folder without a single wrap is a lost key and no absence.

use serde_json::json;

use crate::cli::args::Common;
use crate::cli::exit::Ended;
use crate::cli::output::{self, say};
use crate::error::{Error, Result};
use crate::ops::key;
use crate::repo::path::Sealing;
use crate::repo::{Keyring, RepoError, Repository, System};
use crate::seal::{Epoch, Identity, Wrap};
use crate::wal::SystemId;

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
    if common.json {
        let rows: Vec<_> = shown
            .iter()
            .map(|t| json!({ "repository": t.repository, "system": t.system.to_string(), "epoch": t.epoch, "wraps": t.wraps, "opens": t.opens }))
            .collect();
        output::json(&json!({ "schema": "pitr.key-test.v1", "epochs": rows }));
    } else {
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
    shown.iter().find(|t| !t.opens).map_or(Ok(Ended::Well), |locked| Err(locked.problem()))
}

/// An epoch of a sealed folder.
struct Tested {
    repository: String,
    system: SystemId,
    epoch: Epoch,
    /// How many wraps of it are there.
    wraps: u32,
    opens: bool,
}

impl Tested {
    fn word(&self) -> &'static str {
        match (self.wraps, self.opens) {
            (_, true) => "opens",
            (0, false) => "HAS NO WRAPS",
            (_, false) => "DOES NOT OPEN",
        }
    }

    fn problem(&self) -> Error {
        let Self { repository, system, epoch, .. } = self;
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
        let trusted = opened.as_ref().and_then(System::seal_key);
        for epoch in epochs(repository, opened.as_ref(), &wraps).await? {
            let of_it = wraps.iter().filter(|(of, ..)| *of == epoch);
            let opens = of_it.clone().any(|(_, _, wrap)| {
                let opened = wrap.open(identities, repository.cluster().as_str(), epoch);
                opened.is_ok_and(|opened| trusted == Some(&opened.seal))
            });
            let wraps = u32::try_from(of_it.count()).unwrap_or(u32::MAX);
            shown.push(Tested { repository: repository.name().to_owned(), system, epoch, wraps, opens });
        }
    }
    Ok(shown)
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
