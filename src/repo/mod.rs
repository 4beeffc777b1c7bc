//! The repository: where the bytes go, how each object looks, and who may create what.
//!
//! ```text
//!  mod      Repository: a store, a cluster      System: the folder of one system identifier
//!  archive  WAL: put, get, proven absent        backups  intent, packs, verdict       lease, pins, expiry       keys  sealing
//!  ------------------------------------------------------------------------------------- below: no IO
//!  path     every object key                    objects   the small JSON objects
//!  walobject, annex   one WAL segment           pack, manifest   one backup           catalog   what a listing tells      retention   what may go
//! ```
//! Objects are created, never changed; `expire` alone deletes. Data first, then the one small object that makes it real.
//! Every function may be dropped at any await: what was created stays, complete, and repeating the call succeeds.
//! FORMAT.md fixes every byte.

pub mod annex;
pub mod archive;
pub mod backups;
pub(crate) mod binary;
pub mod catalog;
mod document;
mod error;
pub mod expiry;
pub mod keys;
pub mod lease;
pub mod manifest;
pub mod objects;
pub mod pack;
pub mod path;
pub mod pins;
pub mod retention;
pub mod scrutiny;
pub mod timelines;
pub mod transfer;
pub mod walobject;

use std::sync::Arc;

use jiff::Timestamp;

pub use error::RepoError;
pub use keys::Keyring;

use crate::clock;
use crate::seal::HostFile;
use crate::store::Store;
use crate::wal::{PgMajor, SegmentSize, SystemId};
use document::Put;
use keys::FolderSeal;
use objects::{Closing, FormatMark, Identity, Nonce, Process};
use path::{ClusterName, Sealing, SystemKeys, SystemObject};

/// The newest format of a repository this program knows, and the one it writes.
pub const REPOSITORY_FORMAT: u32 = 1;
/// What objects say wrote them.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One configured repository, seen from one cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Repository(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    name: String,
    cluster: ClusterName,
    required: bool,
    keys: Option<Arc<Keyring>>,
    may_be_plain: bool,
}

/// What a new identity states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewIdentity {
    /// The system identifier.
    pub system: SystemId,
    /// PostgreSQL's major version.
    pub major: PgMajor,
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether objects are encrypted.
    pub sealing: Sealing,
}

/// Whether something was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// This call made it.
    New,
    /// It was there, and says the same.
    Old,
}

/// An identity, and what its folder is sealed with.
type Identified = (Identity, Option<Arc<FolderSeal>>);

impl Repository {
    /// The repository called `name` in `store`. Nothing is asked of the store yet.
    pub fn new(store: Store, name: &str, cluster: ClusterName, required: bool) -> Self {
        let (name, keys) = (name.to_owned(), None);
        Self(Arc::new(Inner { store, name, cluster, required, keys, may_be_plain: true }))
    }

    /// The same repository, with keys. Unless it `may_be_plain`, a folder that is not sealed is refused: otherwise whoever writes to the
    /// store could have everything after that stored for him to read.
    #[must_use]
    pub fn with_keys(&self, keys: Arc<Keyring>, may_be_plain: bool) -> Self {
        let Inner { store, name, cluster, required, .. } = &*self.0;
        let (store, name, cluster) = (store.clone(), name.clone(), cluster.clone());
        Self(Arc::new(Inner { store, name, cluster, required: *required, keys: Some(keys), may_be_plain }))
    }

    /// The same repository for who looks at it anew ([`Store::anew`]).
    #[must_use]
    pub fn anew(&self) -> Self {
        let Inner { store, name, cluster, required, keys, may_be_plain } = &*self.0;
        let (store, name, cluster, keys) = (store.anew(), name.clone(), cluster.clone(), keys.clone());
        Self(Arc::new(Inner { store, name, cluster, required: *required, keys, may_be_plain: *may_be_plain }))
    }

    /// The keys at hand.
    pub fn keys(&self) -> Option<&Keyring> {
        self.0.keys.as_deref()
    }

    /// Whether a folder that is made here is to be sealed.
    pub fn is_to_be_sealed(&self) -> bool {
        self.0.keys.is_some() && !self.0.may_be_plain
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.0.cluster
    }

    /// Whether a segment counts as archived only when it is here.
    pub fn is_required(&self) -> bool {
        self.0.required
    }

    /// The system identifiers of which the cluster has a folder here, whether it has an identity or not.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn systems(&self) -> Result<Vec<SystemId>, RepoError> {
        let dir = path::cluster_dir(self.cluster());
        let names = self.store().list_dirs(&dir).await?;
        Ok(names
            .iter()
            .filter_map(|n| path::parse_system_dir(self.cluster(), &format!("{dir}{n}")))
            .collect())
    }

    /// The identities of the cluster, the current one last.
    ///
    /// # Errors
    /// [`RepoError`] if one cannot be read.
    pub async fn identities(&self) -> Result<Vec<Identity>, RepoError> {
        Ok(self.all_identified().await?.into_iter().map(|(identity, _)| identity).collect())
    }

    async fn all_identified(&self) -> Result<Vec<Identified>, RepoError> {
        let mut found = Vec::new();
        for system in self.systems().await? {
            found.extend(self.identified(system).await?);
        }
        found.sort_by_key(|(identity, _)| identity.order());
        Ok(found)
    }

    /// The identity of `system`'s folder; `None` if the store proves that it has none.
    ///
    /// # Errors
    /// [`RepoError::Foreign`] if the folder's identity is another one's.
    pub async fn identity(&self, system: SystemId) -> Result<Option<Identity>, RepoError> {
        Ok(self.identified(system).await?.map(|(identity, _)| identity))
    }

    async fn identified(&self, system: SystemId) -> Result<Option<Identified>, RepoError> {
        // Sealing changes no name that is used here.
        let key = SystemKeys::new(self.cluster(), system, Sealing::Plain).key(&SystemObject::Identity);
        let bytes = self.store().get_limited(&key, objects::MAX_DOCUMENT).await?;
        let Some(bytes) = bytes else { return Ok(None) };
        let identity: Identity = objects::decode(&bytes).map_err(|e| self.document_error(&key, &e))?;
        if identity.cluster != *self.cluster() || identity.system != system {
            let what = format!("{key} says it is system {} of cluster {}", identity.system, identity.cluster);
            return Err(RepoError::Foreign { repository: self.name().to_owned(), what });
        }
        let seal = self.seal_of(&key, &bytes, &identity).await?;
        Ok(Some((identity, seal)))
    }

    /// Whether the folder of `system` says that it is sealed, which nothing vouches for here; `None` if that cannot be read.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn sealing(&self, system: SystemId) -> Result<Option<Sealing>, RepoError> {
        let key = SystemKeys::new(self.cluster(), system, Sealing::Plain).key(&SystemObject::Identity);
        let Some(bytes) = self.store().get_limited(&key, objects::MAX_DOCUMENT).await? else {
            return Ok(None);
        };
        let identity: Option<Identity> = objects::decode(&bytes).ok();
        Ok(identity.map(|identity| if identity.sealed { Sealing::Sealed } else { Sealing::Plain }))
    }

    /// Opens the folder of `system`.
    ///
    /// # Errors
    /// [`RepoError::NoIdentity`] if it has no identity.
    pub async fn open(&self, system: SystemId) -> Result<System, RepoError> {
        let found = self.identified(system).await?;
        found.map(|(identity, seal)| System::new(self, identity, seal)).ok_or_else(|| RepoError::NoIdentity {
            repository: self.name().to_owned(),
            cluster: self.cluster().clone(),
            system,
        })
    }

    /// Opens the cluster's current folder: the one initialised last. `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::identities`].
    pub async fn open_current(&self) -> Result<Option<System>, RepoError> {
        let newest = self.all_identified().await?.pop();
        Ok(newest.map(|(identity, seal)| System::new(self, identity, seal)))
    }

    /// Creates the identity of a system folder, or finds that it says the same already. Several inits at once succeed.
    ///
    /// A crash leaves nothing, a format mark, or all of it.
    ///
    /// # Errors
    /// [`RepoError::Foreign`] if the folder exists with other facts.
    pub async fn create_identity(
        &self,
        new: NewIdentity,
        now: Timestamp,
    ) -> Result<(System, Novelty), RepoError> {
        self.mark_format(now).await?;
        let newest = self.identities().await?.iter().map(|i| i.sequence).max().unwrap_or(0);
        let identity = Identity {
            cluster: self.cluster().clone(),
            system: new.system,
            major: new.major,
            segment_size: new.segment_size,
            sealed: new.sealing == Sealing::Sealed,
            sequence: newest.saturating_add(1),
            created: now,
            nonce: nonce()?,
            version: VERSION.to_owned(),
        };
        let key = SystemKeys::new(self.cluster(), new.system, new.sealing).key(&SystemObject::Identity);
        let host = if identity.sealed { Some(self.host_for_a_folder()?) } else { None };
        let put = match host {
            None => self.put_clear(&key, &identity).await?,
            Some(host) => {
                // Before the identity, so that whoever finds the folder finds who may open it.
                self.put_wraps(new.system, host).await?;
                let closing = Closing::Mac { seal: &host.seal, place: &key };
                self.put_document(&key, &identity, closing).await?
            }
        };
        match put {
            Put::Ours => Ok((self.open(new.system).await?, Novelty::New)),
            Put::Theirs(theirs) if theirs.same_cluster(&identity) => {
                Ok((self.open(new.system).await?, Novelty::Old))
            }
            Put::Theirs(theirs) => {
                let sealed = if theirs.sealed { "encrypted" } else { "not encrypted" };
                let what = format!(
                    "{key} says PostgreSQL {}, segments of {} bytes, {sealed}, which differs from what was asked for",
                    theirs.major,
                    theirs.segment_size.bytes()
                );
                Err(RepoError::Foreign { repository: self.name().to_owned(), what })
            }
        }
    }

    /// The host file, which making an encrypted folder takes.
    ///
    /// # Errors
    /// [`RepoError::NoKeys`] without it.
    pub fn host_for_a_folder(&self) -> Result<&HostFile, RepoError> {
        self.keys().and_then(Keyring::host).ok_or_else(|| {
            let lack = self.keys().map(|ring| ring.lack("it is not named in the configuration"));
            let what = format!("making a folder takes the host file; {}", lack.unwrap_or_default());
            RepoError::NoKeys { repository: self.name().to_owned(), what }
        })
    }

    async fn mark_format(&self, now: Timestamp) -> Result<(), RepoError> {
        self.check_writable().await?;
        let mark = FormatMark { format: REPOSITORY_FORMAT, created: now, version: VERSION.to_owned() };
        // Whoever marked it first: it is the same mark.
        self.put_clear(&path::format_key(self.cluster(), REPOSITORY_FORMAT), &mark).await.map(|_| ())
    }

    /// Checks that no newer pitr writes here: this one would not understand what it must not contradict.
    ///
    /// # Errors
    /// [`RepoError::NewerFormat`].
    pub async fn check_writable(&self) -> Result<(), RepoError> {
        let marks = self.store().list(&path::format_dir(self.cluster())).await?;
        let newest = marks.iter().filter_map(|o| path::parse_format_key(self.cluster(), &o.key)).max();
        match newest {
            Some(format) if format > REPOSITORY_FORMAT => Err(RepoError::NewerFormat {
                repository: self.name().to_owned(),
                what: format!("objects have format {format}, this pitr writes {REPOSITORY_FORMAT}"),
            }),
            _ => Ok(()),
        }
    }

    /// The store's own time, told by a small object that is created and deleted again. Only differences to other times of the
    /// same store mean anything.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn store_time(&self) -> Result<Timestamp, RepoError> {
        let key = path::probe_key(self.cluster(), &clock::nonce()?);
        self.store().create(&key, "time").await?;
        let found = self.store().head(&key).await?;
        // Where deleting is forbidden (object lock) it stays: a few bytes that nobody reads.
        self.store().remove_probe(&key).await.ok();
        found.map(|info| info.modified).ok_or_else(|| self.unstable(&key))
    }

    fn unstable(&self, key: &str) -> RepoError {
        RepoError::Unstable { repository: self.name().to_owned(), key: key.to_owned() }
    }

    fn corrupt(&self, key: &str, what: &dyn std::fmt::Display) -> RepoError {
        RepoError::Corrupt { repository: self.name().to_owned(), key: key.to_owned(), what: what.to_string() }
    }

    fn conflict(&self, key: &str) -> RepoError {
        RepoError::Conflict { repository: self.name().to_owned(), key: key.to_owned() }
    }

    fn forged(&self, key: &str, what: &dyn std::fmt::Display) -> RepoError {
        RepoError::Forged { repository: self.name().to_owned(), key: key.to_owned(), what: what.to_string() }
    }

    fn missing(&self, key: &str) -> RepoError {
        RepoError::Missing { repository: self.name().to_owned(), key: key.to_owned() }
    }
}

/// The folder of one system identifier in a repository. Cheap to clone.
#[derive(Debug, Clone)]
pub struct System {
    repository: Repository,
    identity: Arc<Identity>,
    keys: Arc<SystemKeys>,
    seal: Option<Arc<FolderSeal>>,
}

impl System {
    fn new(repository: &Repository, identity: Identity, seal: Option<Arc<FolderSeal>>) -> Self {
        let sealing = if identity.sealed { Sealing::Sealed } else { Sealing::Plain };
        let keys = SystemKeys::new(repository.cluster(), identity.system, sealing);
        Self { repository: repository.clone(), identity: Arc::new(identity), keys: Arc::new(keys), seal }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Its identity, as read when it was opened.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its keys.
    pub fn keys(&self) -> &SystemKeys {
        &self.keys
    }

    fn store(&self) -> &Store {
        self.repository.store()
    }
}

/// A new nonce.
///
/// # Errors
/// [`RepoError::Random`].
pub fn nonce() -> Result<Nonce, RepoError> {
    Ok(Nonce::new(clock::random_bytes()?))
}

/// A new backup id for a backup that starts at `start`.
///
/// # Errors
/// [`RepoError::Random`].
pub fn backup_id(start: Timestamp) -> Result<path::BackupId, RepoError> {
    Ok(path::BackupId::new(start, u32::from_le_bytes(clock::random_bytes()?)))
}

/// This process, as objects name it.
pub fn this_process() -> Process {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Process { host, boot: boot.trim().to_owned(), pid: std::process::id(), version: VERSION.to_owned() }
}

#[cfg(test)]
pub(crate) mod tests;
