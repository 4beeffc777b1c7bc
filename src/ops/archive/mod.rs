//! The one road into the archive, and the road out.
//!
//! ```text
//!  push  file ─► checked and compressed in one pass ─► one conditional PUT per repository ─► yes
//!  get   repositories in turn ─► checked ─► private file ─► synced ─► renamed        or: proven absent        or: an error
//! ```
//! A yes of push means: durable in every required repository, and get returns the same bytes. Everything that brings WAL into a
//! repository calls [`push::store_file`]; only what an operator takes over although it is damaged comes by [`accept()`]. Rules: RECOVERY 7, 8, 12, 15 to 18, 20; FORMAT.md "WAL objects".

pub mod accept;
mod catchup;
pub(in crate::ops) mod command;
mod conflict;
mod evidence;
pub mod file;
pub mod get;
mod place;
pub mod push;

pub use accept::{AcceptReport, accept};
pub use catchup::{CaughtUp, catch_up};
pub use file::Stamp;
pub use get::{Course, Got, Route, Source, get_ahead, get_file};
pub use place::Place;
pub use push::{Offered, Packed, Packing, PushReport, store_each, store_file};
pub(in crate::ops) use push::{store_file_of_copy, store_history};

use std::path::{Path, PathBuf};

/// A file at the top of a data directory that is a copy: nothing may be archived or backed up from there until `pitr init --adopt`.
pub const COPY_MARKER: &str = "pitr.copy";

/// Directories that may be the data directory `path` (a file of `pg_wal`) belongs to, the likeliest first: where PostgreSQL started
/// us, what the path itself implies, and what the configuration says. `pg_wal` may be a link to elsewhere, so no single one is right.
fn data_directories(path: &Path, configured: Option<&Path>) -> Vec<PathBuf> {
    let implied = path.parent().and_then(Path::parent).map(Path::to_owned);
    let here = path.is_relative().then(|| PathBuf::from("."));
    here.into_iter().chain(implied).chain(configured.map(Path::to_owned)).collect()
}
