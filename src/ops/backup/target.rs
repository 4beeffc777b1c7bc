//! The repositories that one backup goes to, all of them at once.
//!
//! A backup is streamed once; its packs and objects are created in every chosen repository, and each gets an intent, a lease and a
//! verdict of its own, all with one id and one nonce: a repository is restorable by itself. A failure of one fails the backup, and the
//! others are told by {abandoned}; only between the first and the last `publish` can one repository have it and another not, which
//! each verdict says truthfully.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};

use super::prepare::Server;
use crate::clock::{self, Clock as _, SystemClock};
use crate::codec::Compression;
use crate::error::{Error, Kind, Result};
use crate::ops::archive::store_file;
use crate::repo::lease::LeaseState;
use crate::repo::objects::{Backup, BackupKind, Intent, Nonce};
use crate::repo::path::{BackupId, BackupObject};
use crate::repo::{RepoError, Repository, System, backup_id, nonce, this_process};
use crate::seal::Epoch;
use crate::store::{Payload, StoreErrorKind};
use crate::wal::scan::{Keep, Scanner};
use crate::wal::{SegmentName, SegmentScan, WalFileName};

/// How long saying {abandoned} may take: a courtesy must not hold up the failure that it follows.
const FAREWELL: Duration = Duration::from_secs(15);
/// Between two signs of life; a backup without a new object for 15 minutes counts as dead.
const ALIVE_EVERY: Duration = Duration::from_secs(300);
/// How WAL is packed that the archiver did not bring.
pub(super) const WAL_COMPRESSION: Compression = Compression::Zstd { level: 1 };

/// All of them, and which backup they get.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    list: Arc<Vec<System>>,
    id: BackupId,
    nonce: Nonce,
}

/// A failed call to a repository as the program's error.
pub(super) fn failure(error: RepoError) -> Error {
    let full = matches!(&error, RepoError::Store(store) if store.kind == StoreErrorKind::Full);
    let error = Error::from(error);
    if full {
        error.hint("make room in the repository; what this backup left there is recognised as unfinished")
    } else {
        error
    }
}

impl Targets {
    /// Opens the cluster's folder in each repository and takes intent and lease there.
    ///
    /// # Errors
    /// Kind `Refused` for a repository that knows nothing of the cluster, `Busy` while another backup runs there.
    pub(super) async fn claim(repositories: &[Repository], server: &Server) -> Result<Self> {
        let random = |error| Error::failed("no random numbers").source(error);
        let now = SystemClock.now();
        let mut targets = Self {
            list: Arc::new(Vec::new()),
            id: backup_id(now).map_err(random)?,
            nonce: nonce().map_err(random)?,
        };
        let mut opened = Vec::new();
        for repository in repositories {
            opened.push(open(repository, server).await?);
        }
        if opened.is_empty() {
            return Err(Error::usage("no repository to back up into")
                .hint("add a [[repository]] to the configuration, or run `pitr init`"));
        }
        same_sealing(&opened)?;
        let mut claimed = Vec::new();
        for system in opened {
            let intent = targets.intent(&system, server, now);
            let begun = begin(&system, &intent).await.map_err(failure);
            let busy = begun.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
            if !busy {
                claimed.push(system);
            }
            if let Err(error) = begun {
                targets.list = Arc::new(claimed);
                targets.abandon(&error).await;
                return Err(error);
            }
        }
        targets.list = Arc::new(claimed);
        Ok(targets)
    }

    fn intent(&self, system: &System, server: &Server, now: jiff::Timestamp) -> Intent {
        Intent {
            id: self.id.clone(),
            nonce: self.nonce,
            cluster: system.repository().cluster().clone(),
            system: server.identity.system_id,
            kind: BackupKind::Full,
            started_at: now,
            timeline: server.identity.timeline,
            wal_floor: server.floor,
            references: Vec::new(),
            takes_over: None,
            process: this_process(),
        }
    }

    /// No repository at all, for tests of what comes before them.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        let (list, nonce) = (Arc::default(), nonce().expect("random numbers"));
        Self { list, id: backup_id(SystemClock.now()).expect("random numbers"), nonce }
    }

    /// Each repository.
    pub(super) fn iter(&self) -> impl Iterator<Item = &System> {
        self.list.iter()
    }

    /// One of them, where any will do.
    pub(super) fn first(&self) -> Result<&System> {
        self.list.first().ok_or_else(|| {
            Error::usage("no repository to back up into")
                .hint("add a [[repository]] to the configuration, or run `pitr init`")
        })
    }

    /// The backup.
    pub(super) fn id(&self) -> &BackupId {
        &self.id
    }

    /// Its writer's nonce.
    pub(super) fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// Stores a file of `pg_wal` by the one road into the archive, in all of them.
    ///
    /// # Errors
    /// As [`store_file`].
    pub(super) async fn archive(&self, path: &Path, data_dir: &Path) -> Result<()> {
        let repositories: Vec<Repository> = self.iter().map(|system| system.repository().clone()).collect();
        store_file(&repositories, path, Some(data_dir), WAL_COMPRESSION).await.map(drop)
    }

    /// The bytes of an object of the backup as the repositories store them: encrypted, if they are.
    pub(super) async fn sealed(&self, chunks: Vec<Bytes>) -> Result<Vec<Bytes>> {
        self.first()?.seal_data(chunks).await.map_err(failure)
    }

    /// The key epoch that takes.
    pub(super) async fn epoch(&self) -> Result<Option<Epoch>> {
        Ok(self.first()?.sealer().await.map_err(failure)?.map(|sealer| sealer.epoch))
    }

    /// Creates an object of the backup everywhere.
    pub(super) async fn put(&self, object: BackupObject, chunks: Vec<Bytes>) -> Result<()> {
        let body = Payload::from(chunks);
        let each = self.iter().map(|system| {
            let body = body.clone();
            async move { system.put_backup_object(&self.id, object, body).await.map_err(failure) }
        });
        try_join_all(each).await.map(drop)
    }

    /// Creates signs of life for as long as it is polled, so that nobody takes the backup for dead: a spread checkpoint, a slow
    /// transfer or a wait for WAL may go long without another object. One that fails is of no interest here: what the backup
    /// itself does next meets the same store.
    pub(super) async fn heartbeat(&self) -> Infallible {
        for number in 1.. {
            clock::sleep(ALIVE_EVERY).await;
            let now = SystemClock.now();
            join_all(self.iter().map(|system| system.create_alive(&self.id, self.nonce, number, now))).await;
        }
        std::future::pending().await
    }

    /// Checks once more that what was sealed since the beginning, some hours ago perhaps, can be opened by whom the host file says.
    ///
    /// # Errors
    /// As [`System::sealer`].
    pub(super) async fn are_wrapped(&self) -> Result<()> {
        try_join_all(self.iter().map(System::look_at_wraps_again)).await.map(drop).map_err(failure)
    }

    /// Creates the verdict everywhere. The backup exists in each repository whose create is done.
    pub(super) async fn publish(&self, backup: &Backup) -> Result<()> {
        // All of them to their end: a verdict under way must not be forgotten because another one failed.
        let results = join_all(self.iter().map(|system| system.publish(backup))).await;
        let (mut have, mut failed) = (Vec::new(), None);
        for (system, result) in self.iter().zip(results) {
            match result {
                Ok(()) => have.push(system.repository().name()),
                Err(error) => failed = Some(failed.unwrap_or_else(|| failure(error))),
            }
        }
        match failed {
            None => Ok(()),
            Some(error) if have.is_empty() => Err(error),
            Some(error) => Err(error.context(format!(
                "backup {} is complete in {}, but not everywhere",
                self.id,
                have.join(", ")
            ))),
        }
    }

    /// Says that the backup will never be, as far as the repositories still answer. Without it the same follows later from
    /// silence, so its own failure is of no interest.
    pub(super) async fn abandon(&self, why: &Error) {
        let now = SystemClock.now();
        let reason = why.message().lines().next().unwrap_or_default().to_owned();
        let each = self.iter().map(|system| system.abandon(&self.id, &reason, now));
        tokio::time::timeout(FAREWELL, join_all(each)).await.ok();
    }
}

/// The objects of a backup are made once, for all repositories: they are encrypted in all of them or in none.
fn same_sealing(opened: &[System]) -> Result<()> {
    let named = |sealed: bool| opened.iter().find(|system| system.identity().sealed == sealed);
    let (Some(sealed), Some(plain)) = (named(true), named(false)) else { return Ok(()) };
    let name = |system: &System| system.repository().name().to_owned();
    Err(Error::usage(format!(
        "one backup cannot go into repository {}, which is encrypted, and {}, which is not",
        name(sealed),
        name(plain)
    ))
    .hint("take two: `pitr backup --repository NAME`, once with each"))
}

/// Takes intent and lease; of a dead backup it takes over.
async fn begin(system: &System, intent: &Intent) -> std::result::Result<(), RepoError> {
    let state = system.lease_state().await?;
    let takes_over = match &state {
        LeaseState::Stale { lease, .. } => Some(lease.backup.clone()),
        LeaseState::Free { .. } | LeaseState::Held(_) => None,
    };
    system.begin_backup(&Intent { takes_over, ..intent.clone() }, &state, intent.started_at).await
}

/// Opens the folder of the server's cluster.
async fn open(repository: &Repository, server: &Server) -> Result<System> {
    repository.check_writable().await.map_err(failure)?;
    let system = match repository.open(server.identity.system_id).await {
        Err(RepoError::NoIdentity { .. }) => return Err(unknown_cluster(repository, server).await),
        opened => opened.map_err(failure)?,
    };
    // Whoever cannot seal learns it before the server is asked for anything.
    system.sealer().await.map_err(failure)?;
    let identity = system.identity();
    if (identity.major, identity.segment_size) != (server.major, server.segment_size) {
        return Err(Error::refused(format!(
            "repository {} was made for PostgreSQL {} with segments of {} bytes; the server is {} with {}",
            repository.name(),
            identity.major,
            identity.segment_size.bytes(),
            server.major,
            server.segment_size.bytes()
        )));
    }
    Ok(system)
}

/// The error for a server whose cluster the repository does not know.
async fn unknown_cluster(repository: &Repository, server: &Server) -> Error {
    let (cluster, name, system) = (repository.cluster(), repository.name(), server.identity.system_id);
    let others = match repository.systems().await {
        Ok(others) => others,
        Err(error) => return failure(error),
    };
    if others.is_empty() {
        return Error::not_found(format!("repository {name} holds no cluster {cluster}"))
            .hint("run `pitr init`; if it was run before, is the disk mounted, and is the url right?");
    }
    let known: Vec<String> = others.iter().map(ToString::to_string).collect();
    Error::refused(format!(
        "the server is system {system}, but cluster {cluster} in repository {name} is system {}",
        known.join(", ")
    ))
    .hint("correct conninfo or the cluster's name; for a new cluster under this name run `pitr init`")
}

/// Reads a stored segment whole and scans it, every commit kept; `None` if no key at hand opens it. A store that refuses to show it is an
/// error: that is no lack of a key.
pub(super) async fn scan(system: &System, name: SegmentName) -> Result<Option<SegmentScan>> {
    let fetched = match system.fetch_wal(WalFileName::Segment(name)).await {
        Err(error) if error.lacks_a_key() => return Ok(None),
        fetched => fetched.map_err(failure)?,
    };
    let gone = || {
        Error::corrupt(format!("{name} was in repository {} and is not any more", system.repository().name()))
    };
    let fetched = fetched.ok_or_else(gone)?;
    let size = system.identity().segment_size;
    let scanned = tokio::task::spawn_blocking(move || {
        let mut scanner = Scanner::new(name, size, Keep::All)?;
        let mut wrong = Ok(());
        let opened = fetched.open(|bytes| {
            if wrong.is_ok() {
                wrong = scanner.push(bytes);
            }
        });
        Ok((wrong.and_then(|()| scanner.finish()), opened))
    });
    let damaged = |error| {
        Error::corrupt(format!("{name} in repository {} is damaged", system.repository().name()))
            .source(error)
    };
    let scanned = scanned.await.map_err(|error| Error::failed("a scan ended").source(error))?;
    match scanned.map_err(damaged)? {
        (_, Err(error)) if error.lacks_a_key() => Ok(None),
        (scan, opened) => {
            opened.map_err(failure)?;
            scan.map(Some).map_err(damaged)
        }
    }
}
