//! `restore`: a backup becomes a data directory, and PostgreSQL knows how far to replay.
//!
//! ```text
//!  Archive::plan      which backup, which route, where to stop                            ops::facts, ops::plan
//!  prepare            target directory, tablespaces, host, configuration, settings        nothing is written; --dry-run ends here
//!  perform            aside, marker, packs, settings, fsync, pg_control last              killed anywhere: repeat it
//!  finish             after promotion: the recovery settings go
//! ```
//! Whatever can be refused is refused before the first byte. Source of truth: RECOVERY.md 9, 17, 21 to 25.

pub mod configuration;
pub mod directory;
pub mod epochs;
pub mod fetch;
pub mod finish;
mod found;
mod hold;
pub mod host;
pub mod image;
mod kept;
pub mod layout;
pub mod marker;
pub mod moving;
pub mod outside;
pub mod perform;
pub mod prepare;
pub mod purpose;
mod sealed;
pub mod settings;
pub mod stored;
pub mod tablespaces;
pub mod trees;
mod trial;
pub mod unarchived;

pub use finish::{Finished, finish};
pub use perform::{Report, perform};
pub use prepare::{Prepared, Request, Site, prepare};
pub use purpose::Life;

/// What the restored server is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The new primary: archiving stays on.
    Replace,
    /// A copy beside the primary: archiving off, configuration of its own.
    Copy,
}

impl Purpose {
    /// A word for JSON and people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Copy => "copy",
        }
    }
}
