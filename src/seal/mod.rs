//! Keys and sealing: who may read what a repository holds, and who must have written it.
//!
//! ```text
//!  seal key K      one per cluster    BLAKE3 keyed: tag and head of a file, mac of a header or a JSON object      the host has it
//!  epoch           X25519 pair        public: age bodies are made with it (host)     secret: opens them (nowhere on the host)
//!  wrap            secret + K, encrypted to the recipients' own keys: lies in every repository
//!  host file       K, the epoch's public key, the wraps                    identity file   a recipient's secret key
//! ```
//! Invariants: what the host file holds cannot decrypt anything; nothing printable here shows a secret (`Debug` shows fingerprints);
//! secrets are wiped when dropped; every size that is read is bounded. Pure but for random numbers.
//! Source of truth: REPOSITORY.md 3 and 5, FORMAT.md "Sealed folders", the age specification (C2SP).

pub mod body;
pub mod epoch;
pub mod host;
pub mod identity;
pub mod key;
pub mod parts;
pub mod wrap;

pub use body::{AGE_MAGIC, Opener};
pub use epoch::{Epoch, EpochKey};
pub use host::{HostEpoch, HostFile, NamedRecipient};
pub use identity::{Identity, Recipient};
pub use key::{Fingerprint, SealKey};
pub use wrap::{Opened, Wrap};

/// Something sealed that cannot be opened, or a file of keys that cannot be read. None of them quotes a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// None of the keys at hand opens it.
    #[error("none of the keys at hand opens it")]
    NoKey,
    /// It is no age file, or not one of ours.
    #[error("it is not an age file as pitr writes them: {0}")]
    Malformed(&'static str),
    /// A key opens it, and what it holds was changed or cut.
    #[error("its encrypted content was changed or cut off")]
    Broken,
    /// It could not be made.
    #[error("cannot encrypt: {0}")]
    Encrypt(&'static str),
    /// A file of keys that cannot be one.
    #[error("{0}")]
    KeyFile(String),
}
