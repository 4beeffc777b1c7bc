//! What can go wrong with a repository, as the reaction it calls for.
//!
//! Every variant names the object or the repository. "Not there" is a value of the functions that look, never an error of theirs;
//! [`RepoError::Missing`] is for an object that another one vouches for.
//! Advice belongs to the callers, who know what was being tried.

use crate::clock::NoRandomness;
use crate::store::{StoreError, StoreErrorKind};
use crate::wal::{Lsn, SystemId, WalFileName};

use super::path::{BackupId, ClusterName};

/// What can go wrong with a repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// The store failed, or does not answer: nothing is known.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored object is damaged.
    #[error("{key} in repository {repository} is damaged: {what}")]
    Corrupt {
        /// The repository.
        repository: String,
        /// The object.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// No identity: the folder is no cluster's, the disk is not mounted, or the cluster was never initialised here.
    #[error("repository {repository} holds nothing of system {system} in cluster {cluster}")]
    NoIdentity {
        /// The repository.
        repository: String,
        /// The cluster.
        cluster: ClusterName,
        /// The system identifier.
        system: SystemId,
    },
    /// The folder belongs to something else.
    #[error("repository {repository}: {what}")]
    Foreign {
        /// The repository.
        repository: String,
        /// Whose it is.
        what: String,
    },
    /// A newer pitr writes here.
    #[error("repository {repository}: {what}")]
    NewerFormat {
        /// The repository.
        repository: String,
        /// Which format, and which one is known.
        what: String,
    },
    /// The object is encrypted, and the keys at hand do not open it. Says nothing against the object.
    #[error("{key} in repository {repository} is encrypted: {what}")]
    Sealed {
        /// The repository.
        repository: String,
        /// The object.
        key: String,
        /// Which key it takes, and what is wrong.
        what: String,
    },
    /// The folder is encrypted, and what is needed to work on it is not at hand.
    #[error("repository {repository} is encrypted: {what}")]
    NoKeys {
        /// The repository.
        repository: String,
        /// What is missing.
        what: String,
    },
    /// An object of an encrypted folder that the cluster's seal key does not vouch for.
    #[error("{key} in repository {repository} was changed or forged: {what}")]
    Forged {
        /// The repository.
        repository: String,
        /// The object.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// Keys are configured, and the folder is not encrypted: it may have been put in the place of one that was.
    #[error("repository {repository} is not encrypted, and keys are configured for it")]
    NotSealed {
        /// The repository.
        repository: String,
    },
    /// The wraps in the repository are not those of one cluster.
    #[error("the keys in repository {repository} cannot be trusted: {what}")]
    Untrusted {
        /// The repository.
        repository: String,
        /// What is wrong.
        what: String,
    },
    /// Something else is stored under the name.
    #[error("{key} in repository {repository} is stored already, with other content")]
    Conflict {
        /// The repository.
        repository: String,
        /// The object.
        key: String,
    },
    /// An object that another one vouches for is not there.
    #[error("{key} is missing in repository {repository}")]
    Missing {
        /// The repository.
        repository: String,
        /// The object.
        key: String,
    },
    /// WAL that retention gave up.
    #[error("{name} is below the WAL that repository {repository} still keeps: it has expired")]
    BelowFloor {
        /// The repository.
        repository: String,
        /// The file.
        name: WalFileName,
    },
    /// Only an unfinished or a damaged copy of a segment is stored, though WAL goes on after it.
    #[error("repository {repository} holds {name} only up to {valid_to}, though WAL goes on behind that")]
    Unfinished {
        /// The repository.
        repository: String,
        /// The segment.
        name: WalFileName,
        /// Where its valid WAL ends.
        valid_to: Lsn,
    },
    /// The backup was abandoned before it was finished.
    #[error("backup {id} was abandoned: {reason}")]
    Abandoned {
        /// The backup.
        id: BackupId,
        /// As the verdict says.
        reason: String,
    },
    /// The backup has expired.
    #[error("backup {id} has expired")]
    Expired {
        /// The backup.
        id: BackupId,
    },
    /// Another backup is running.
    #[error("backup {id} is running on {host} (process {pid})")]
    Busy {
        /// The backup that holds the lease.
        id: BackupId,
        /// Its host.
        host: String,
        /// Its process.
        pid: u32,
    },
    /// The object kept appearing and disappearing.
    #[error("{key} in repository {repository} is there for one call and absent for the next")]
    Unstable {
        /// The repository.
        repository: String,
        /// The object.
        key: String,
    },
    /// What was to be written breaks a rule of its format.
    #[error("{key} cannot be written: {what}")]
    Unwritable {
        /// The object.
        key: String,
        /// Which rule.
        what: String,
    },
    /// No random bytes for a nonce.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

impl RepoError {
    /// True if the object lies under a delete marker: somebody deleted it where versions are kept, and only a record of expiry tells that it
    /// was expiry.
    pub fn is_hidden(&self) -> bool {
        matches!(self, Self::Store(store) if store.kind == StoreErrorKind::Hidden)
    }

    /// True if no key at hand opens it. Not for a store that refuses to show it: who has the key gets the same answer there.
    pub fn lacks_a_key(&self) -> bool {
        matches!(self, Self::Sealed { .. } | Self::NoKeys { .. })
    }

    /// True if the object itself was read and is not what it must be: asking again would teach nothing. False for everything else,
    /// a store that does not answer above all: doubt is neither damage nor absence (I8).
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } | Self::Foreign { .. } | Self::NewerFormat { .. } | Self::Forged { .. } => {
                true
            }
            Self::Store(store) => store.kind == StoreErrorKind::TooLarge,
            _ => false,
        }
    }
}
