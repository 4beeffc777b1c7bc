//! The command line: flags, text and JSON, exit codes. A file per command.
//!
//! ```text
//!  args ─ Caller (whose exit codes?) ─ clap ─ configuration ─ step down from root ─ ops::… ─ text or JSON ─ exit code
//! ```
//! The first step comes before parsing because even a usage error of `archive-get` must stop recovery (`exit.rs`). Nothing below
//! this module prints, reads the environment or knows about exit codes.

pub mod args;
pub mod exit;
pub mod output;
pub mod privilege;
pub mod progress;
