//! `init`: a repository that knows the cluster, and a server that archives into it.
//!
//! ```text
//!  server's facts ─► repository: race probed, identity created ─► settings: listed, or made (ALTER SYSTEM and a reload)
//! ```
//! The order matters: the identity is there before `archive_command` names the repository, or the first segment would be refused.
//! Everything may be repeated; what is right already is left alone. A server is never restarted. Rules: REPOSITORY 1, 2; INTERFACE,
//! `init`.

pub mod adopt;
pub mod facts;
pub mod settings;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::pgwire::Sql;
use crate::repo::objects::Identity;
use crate::repo::path::Sealing;
use crate::repo::{Keyring, NewIdentity, Novelty, Repository};
use crate::wal::SystemId;
use facts::{ServerFacts, failed};
use settings::Change;

/// What became of one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryReport {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The identity is new.
    pub created: bool,
    /// Everything that holds data is encrypted.
    pub sealed: bool,
    /// The operator accepted a store that keeps no conditional create.
    pub degraded: bool,
    /// The key of the object that the race left, where nothing can be deleted.
    pub left_behind: Option<String>,
    /// Other system identifiers under the same name: what was there before pg_upgrade or initdb.
    pub others: Vec<SystemId>,
}

/// Makes sure that `repository` keeps the promise of conditional creates and knows the cluster.
///
/// # Errors
/// Kind `Refused` for a store that lets two creates of one key win, and for a name under which another system identifier is kept,
/// unless `confirmed` names the new one.
pub async fn repository(
    repository: &Repository,
    facts: &ServerFacts,
    confirmed: Option<SystemId>,
    clock: &dyn Clock,
) -> Result<RepositoryReport> {
    let store = repository.store();
    store.make_root().await?;
    let others: Vec<Identity> = repository
        .identities()
        .await?
        .into_iter()
        .filter(|identity| identity.system != facts.system)
        .collect();
    if !others.is_empty() && confirmed != Some(facts.system) {
        let known: Vec<String> = others.iter().map(|i| i.system.to_string()).collect();
        let known_already = repository.identity(facts.system).await?.is_some();
        if !known_already {
            return Err(Error::refused(format!(
                "cluster {} in repository {} is system {}, the server is system {}",
                repository.cluster(),
                repository.name(),
                known.join(", "),
                facts.system
            ))
            .hint(format!(
                "after pg_upgrade or a new initdb both histories are kept: repeat with --system-id {}; otherwise choose another --cluster",
                facts.system
            )));
        }
    }
    let left_behind = probe(repository).await?;
    let new = NewIdentity {
        system: facts.system,
        major: facts.major,
        segment_size: facts.segment_size,
        sealing: if repository.is_to_be_sealed() { Sealing::Sealed } else { Sealing::Plain },
    };
    let (system, novelty) = repository.create_identity(new, clock.now()).await?;
    if let (Some(_), Some(host)) = (system.seal_key(), repository.keys().and_then(Keyring::host)) {
        // Those of later epochs too, whoever was first.
        repository.put_wraps(facts.system, host).await?;
    }
    Ok(RepositoryReport {
        name: repository.name().to_owned(),
        url: store.url().to_string(),
        created: novelty == Novelty::New,
        sealed: system.seal_key().is_some(),
        degraded: store.is_unsafe(),
        left_behind,
        others: others.into_iter().map(|i| i.system).collect(),
    })
}

/// Races creates of one key: a store that lets two of them win would lose WAL silently. The key of what could not be deleted again.
///
/// # Errors
/// Kind `Refused` unless the operator accepted it.
pub async fn probe(repository: &Repository) -> Result<Option<String>> {
    let store = repository.store();
    let report = store.probe_create_race(&crate::repo::path::cluster_dir(repository.cluster())).await?;
    if report.is_safe() || store.is_unsafe() {
        return Ok(report.left_behind);
    }
    Err(Error::refused(format!(
        "{} does not keep conditional creates: {} of 8 racing creates of one key won",
        store.url(),
        report.winners
    ))
    .hint("a second writer could replace WAL there unseen; use another store, or accept it with allow_unsafe_store = true"))
}

/// Makes the settings. What needs a restart waits for one.
///
/// # Errors
/// What the server said: ALTER SYSTEM wants a superuser.
pub async fn apply(sql: &mut Sql, changes: &[Change]) -> Result<()> {
    for change in changes {
        sql.rows(&change.statement(), &[]).await.map_err(|e| {
            Error::failed(format!("cannot set {}", change.name))
                .source(e)
                .hint("ALTER SYSTEM wants a superuser: --superuser CONNINFO")
        })?;
    }
    if !changes.is_empty() {
        sql.one("select pg_reload_conf()").await.map_err(failed)?;
    }
    Ok(())
}

/// The role that pitr connects as, with what it needs and no more.
pub fn role_statements(role: &str) -> Vec<String> {
    let name = format!("\"{}\"", role.replace('"', "\"\""));
    vec![
        format!("CREATE ROLE {name} LOGIN REPLICATION"),
        format!("GRANT pg_read_all_settings, pg_read_all_stats TO {name}"),
        format!(
            "GRANT EXECUTE ON FUNCTION pg_switch_wal(), pg_create_restore_point(text), pg_read_file(text), \
             pg_ls_archive_statusdir() TO {name}"
        ),
    ]
}
