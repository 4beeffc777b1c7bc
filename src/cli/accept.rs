//! `pitr accept`: what was accepted, up to where it is good, and what to do next; or `pitr.accept.v1`.
//!
//! The segment is a file, or a name in `pg_wal` of the configured data directory, as errors and the server's log show it.
//! The flag `--damaged` is the decision; nothing is asked.

use std::path::{Path, PathBuf};

use crate::cli::archive::{compression, push_json};
use crate::cli::args::{AcceptArgs, Common};
use crate::cli::exit::Ended;
use crate::cli::{operator, output};
use crate::error::Result;
use crate::ops::archive::accept;

/// Runs `accept`.
///
/// # Errors
/// As [`accept()`].
pub async fn run(common: &Common, args: &AcceptArgs) -> Result<Ended> {
    let context = operator(common)?;
    let data_dir = context.config.postgres.data_dir.as_deref();
    let path = file(&args.segment, data_dir);
    let repositories = context.repositories()?;
    let done = accept(&repositories, &path, data_dir, compression(&context.config.archive)).await?;
    for warning in &done.push.warnings {
        output::warn(&format!("warning: {warning}"));
    }
    if common.json {
        let mut json = push_json("pitr.accept.v1", &done.push);
        if let Some(map) = json.as_object_mut() {
            map.insert("damage".to_owned(), done.damage.into());
            map.insert("valid_to".to_owned(), done.valid_to.to_string().into());
        }
        output::json(&json);
    } else if !common.quiet {
        let names: Vec<_> = done.push.outcomes.iter().map(|(name, _)| name.as_str()).collect();
        output::say(&format!(
            "{}\nstored as it is in {}; what it holds up to {} can be restored, and archiving goes on behind it\n\
             moments after that need a new backup: run `pitr backup` now",
            done.damage,
            names.join(", "),
            done.valid_to
        ));
    }
    Ok(Ended::Well)
}

/// A bare name that is no file here is one of the server's.
fn file(segment: &Path, data_dir: Option<&Path>) -> PathBuf {
    let bare = segment.components().count() == 1 && !segment.exists();
    match data_dir.filter(|_| bare) {
        Some(data_dir) => data_dir.join("pg_wal").join(segment),
        None => segment.to_owned(),
    }
}
