//! What can go wrong with a store, as the reaction it calls for.
//!
//! Two questions decide everything: may the same call be repeated (the class), and what must a person change (the
//! kind). "Not there" is never an error, and an error is never "not there": absence is a value of its own, proven
//! by the store, so that no outage can be taken for an empty archive.
//! Source of truth: REPOSITORY.md 2 and 3 (created, already exists, unknown; proven absent).

use crate::durable::DurableError;

/// May the call be repeated?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It had no effect; later it may work.
    Retry,
    /// It will fail again until somebody changes something.
    Permanent,
    /// A create whose reply was lost: it may have taken effect, now or later. The way out is the same create with
    /// the same bytes, never a look.
    Unknown,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No answer, or one that says "not now".
    Unreachable,
    /// The credentials are missing, wrong, expired or not allowed to do this.
    Credentials,
    /// The bucket, the container or the directory (an unmounted disk) is not there.
    NoRoot,
    /// The disk is full or the quota used up.
    Full,
    /// The file system refuses this process: permissions or a read-only mount.
    Denied,
    /// The stored object is larger than the caller is willing to hold.
    TooLarge,
    /// Configuration or caller: an impossible URL, key, option or credentials file.
    Usage,
    /// The store cannot do what pitr's promises rest on.
    Unsupported,
    /// The object is hidden by a delete marker: somebody deleted it in a bucket that keeps versions.
    Hidden,
    /// Anything else.
    Other,
}

/// A failed call: what was tried, on which object, and why it failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {action} {object}: {cause}")]
pub struct StoreError {
    /// A verb: "create", "read", "list".
    pub action: &'static str,
    /// The whole URL of the object, or of the store.
    pub object: String,
    /// What is wrong.
    pub kind: StoreErrorKind,
    /// What the store or the network said.
    pub cause: String,
    pub(super) class: Class,
}

impl StoreError {
    /// May the call be repeated?
    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether the store knows the credentials, and they may not do this.
    pub fn is_forbidden(&self) -> bool {
        self.kind == StoreErrorKind::Credentials && FORBIDDEN.iter().any(|word| self.cause.contains(word))
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        let has = |text: &str| self.cause.contains(text);
        match self.kind {
            StoreErrorKind::Unreachable => {
                "is the store up, and can this host reach it? then repeat the command; `pitr check` tests the store"
            }
            StoreErrorKind::Credentials => credentials_hint(&self.cause),
            StoreErrorKind::NoRoot if self.object.starts_with("file:") => "is the disk mounted?",
            StoreErrorKind::NoRoot => "create the bucket or container first; pitr does not",
            StoreErrorKind::Full => "make room in the repository, then repeat the command",
            StoreErrorKind::Denied => {
                "is the file system mounted read-only? the user pitr runs as must be able to write there"
            }
            StoreErrorKind::TooLarge => "something other than pitr wrote this object: nothing of it was used",
            StoreErrorKind::Usage if has("certificate") => "name the certificate authority's file as ca_file",
            StoreErrorKind::Usage => "correct the repository's part of the configuration",
            StoreErrorKind::Unsupported => {
                "use a store that supports conditional writes, or see allow_unsafe_store"
            }
            StoreErrorKind::Hidden => {
                "somebody deleted it, and the bucket keeps its versions: remove the delete marker to bring the object back (docs/roles.md)"
            }
            StoreErrorKind::Other => "mend the cause, then repeat the command; `pitr check` tests the store",
        }
    }
}

/// Words of a store that knows the credentials and does not let them do this.
const FORBIDDEN: &[&str] =
    &["AccessDenied", "AllAccessDisabled", "AuthorizationPermissionMismatch", "UnauthorizedBlobOverwrite"];

/// Words of refusals, and what each calls for: the first that is found counts. S3's codes, Azure's, Google's.
const CREDENTIALS_HINTS: [(&[&str], &str); 5] = [
    (
        &["this host's clock is", "RequestTimeTooSkewed"],
        "set this host's clock (and let a time server keep it), then repeat the command",
    ),
    (
        &["ExpiredToken", "TokenRefreshRequired", "RequestExpired", "specified time frame"],
        "the credentials have expired: put new ones into credentials_file (or where these come from), then repeat the command",
    ),
    (
        &["InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId"],
        "the store does not know this access key or token: was it rotated? put the new one into credentials_file, then repeat the command",
    ),
    (
        &["SignatureDoesNotMatch"],
        "the secret key does not belong to the access key: put both of one pair into credentials_file, then repeat the command",
    ),
    (
        FORBIDDEN,
        "the store knows these credentials, and they may not do this: docs/roles.md says what each role must permit; then run `pitr check`",
    ),
];

fn credentials_hint(cause: &str) -> &'static str {
    let fits = |words: &&[&str]| words.iter().any(|word| cause.contains(word));
    let found = CREDENTIALS_HINTS.iter().find(|(words, _)| fits(words));
    found.map_or("check credentials_file (or the cloud's own variables) and what its user may do; then run `pitr check`", |(_, hint)| hint)
}

/// A failure before it is known on which object of which store: what the back ends report.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) kind: StoreErrorKind,
    pub(super) class: Class,
    pub(super) cause: String,
}

impl Fault {
    pub(super) fn permanent(kind: StoreErrorKind, cause: impl Into<String>) -> Self {
        Self { kind, class: Class::Permanent, cause: cause.into() }
    }

    pub(super) fn retry(kind: StoreErrorKind, cause: impl Into<String>) -> Self {
        Self { kind, class: Class::Retry, cause: cause.into() }
    }

    pub(super) fn unreachable(cause: impl Into<String>) -> Self {
        Self::retry(StoreErrorKind::Unreachable, cause)
    }

    pub(super) fn usage(cause: impl Into<String>) -> Self {
        Self::permanent(StoreErrorKind::Usage, cause)
    }

    /// As the failure of a create: whatever may have reached the store leaves the outcome open.
    pub(super) fn outcome_unknown(self) -> Self {
        Self { class: Class::Unknown, ..self }
    }

    pub(super) fn on(self, action: &'static str, object: String) -> StoreError {
        StoreError { action, object, kind: self.kind, cause: self.cause, class: self.class }
    }
}

impl From<DurableError> for Fault {
    fn from(error: DurableError) -> Self {
        let kind = match () {
            () if error.is_full() => StoreErrorKind::Full,
            () if error.is_denied() => StoreErrorKind::Denied,
            () if error.is_moved() => StoreErrorKind::NoRoot,
            () => StoreErrorKind::Other,
        };
        // A stale handle of a network file system heals with the next lookup.
        match error.source.kind() {
            std::io::ErrorKind::StaleNetworkFileHandle | std::io::ErrorKind::Interrupted => {
                Self::unreachable(error.to_string())
            }
            _ => Self::permanent(kind, error.to_string()),
        }
    }
}
