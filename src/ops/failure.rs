//! From what a store, a repository or PostgreSQL answered to the error a command ends with: its kind, and what to do next.
//!
//! The layers below say what is wrong; only here is it known that a person or PostgreSQL will read it. One table, so that the same
//! failure reads the same in every command.

use crate::error::{Error, Kind};
use crate::pgwire::ConnError;
use crate::repo::RepoError;
use crate::repo::keys::OPENS_NOTHING;
use crate::store::{StoreError, StoreErrorKind};

/// The error of a command that could not ask PostgreSQL; `message` says what for.
pub fn of_server(message: &str, error: ConnError) -> Error {
    let hint = error.hint();
    let outer = Error::failed(message).source(error);
    match hint {
        Some(hint) => outer.hint(hint),
        None => outer,
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind {
            StoreErrorKind::Credentials | StoreErrorKind::Denied => Kind::Key,
            StoreErrorKind::Usage => Kind::Usage,
            StoreErrorKind::Unsupported => Kind::Refused,
            StoreErrorKind::TooLarge => Kind::Corrupt,
            _ => Kind::Failed,
        };
        let (hint, silent) = (error.hint(), error.kind == StoreErrorKind::Unreachable);
        let error = Self::new(kind, error.to_string()).hint(hint);
        if silent { error.unanswered() } else { error }
    }
}

impl From<RepoError> for Error {
    fn from(error: RepoError) -> Self {
        let (kind, hint) = match error {
            RepoError::Store(store) => return store.into(),
            RepoError::Corrupt { .. } => {
                (Kind::Corrupt, "nothing was changed; another repository may hold a good copy")
            }
            RepoError::Missing { .. } => {
                (Kind::Corrupt, "the object was deleted by something other than pitr")
            }
            RepoError::NoIdentity { .. } => (
                Kind::NotFound,
                "run `pitr init` for this cluster; if it was run before, is this the right repository, and is the disk mounted?",
            ),
            RepoError::Foreign { .. } => {
                (Kind::Refused, "is this the right cluster name and repository? see `pitr info`")
            }
            RepoError::NewerFormat { .. } => (Kind::Refused, "a newer pitr writes here: use that version"),
            RepoError::Sealed { ref what, .. } | RepoError::NoKeys { ref what, .. }
                if what.contains(OPENS_NOTHING) =>
            {
                (
                    Kind::Key,
                    "the identity is no recipient's of that epoch: it was made later, or removed before, or is another cluster's; `pitr key list` on the host names the recipients",
                )
            }
            RepoError::Sealed { .. } => {
                (Kind::Key, "give an identity that opens it: identity_file under [keys], or --identity FILE")
            }
            RepoError::NoKeys { .. } => (
                Kind::Key,
                "name host_file or identity_file under [keys] in the configuration, or give --identity FILE; see docs/encryption.md",
            ),
            RepoError::Forged { .. } => (
                Kind::Corrupt,
                "somebody writes to the repository who should not, or bytes were damaged; nothing was changed, another repository may hold a good copy",
            ),
            RepoError::NotSealed { .. } => (
                Kind::Refused,
                "if it was never encrypted, say sealed = false in its [[repository]]; otherwise somebody replaced it",
            ),
            RepoError::Untrusted { .. } => (
                Kind::Refused,
                "compare the fingerprint on the recovery kit: --seal-fingerprint takes it, and only what agrees is used then. A wrap that the host file does not hold: keep a copy of it and look for the host file that does (`pitr key list` compares); only if there is none, delete the object, and `pitr init` puts the host file's there",
            ),
            RepoError::Conflict { .. } => (Kind::Refused, "two servers may be writing under one name"),
            RepoError::BelowFloor { .. } | RepoError::Expired { .. } => {
                (Kind::NotFound, "retention gave it up; see `pitr info` for what is kept")
            }
            RepoError::Abandoned { .. } => (Kind::Failed, "run `pitr backup` again"),
            RepoError::Busy { .. } => {
                (Kind::Busy, "wait for it; a dead backup is taken over after 15 minutes")
            }
            RepoError::Unfinished { .. } | RepoError::Unstable { .. } => {
                (Kind::Failed, "try again; if it stays, see `pitr info`")
            }
            _ => return Self::failed(error.to_string()),
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}
