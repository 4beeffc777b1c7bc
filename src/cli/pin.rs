//! `pitr pin` and `pitr unpin`: one line per repository, or `pitr.pin.v1` and `pitr.unpin.v1`.
//!
//! Without `--repository` a pin is made in every configured repository that holds the backup, because each expires by itself.
//! Unpinning a backup that is not pinned is exit 5: a script learns that somebody else was there.

use crate::cli::args::{Common, PinArgs, UnpinArgs};
use crate::cli::exit::Ended;
use crate::cli::{operator, output};
use crate::clock::{Clock as _, SystemClock};
use crate::error::{Error, Result};
use crate::ops::pin::{self, PinDone};
use crate::repo::path::BackupId;

/// Runs `pin`.
///
/// # Errors
/// As [`pin::pin`].
pub async fn pin(common: &Common, args: &PinArgs) -> Result<Ended> {
    let (context, id) = (operator(common)?, backup_id(&args.backup)?);
    let reason = args.reason.as_deref().unwrap_or_default();
    let done = pin::pin(&context.repositories()?, &id, reason, args.with_wal, SystemClock.now()).await?;
    show(common, "pitr.pin.v1", &id, &done, "pinned");
    Ok(Ended::Well)
}

/// Runs `unpin`.
///
/// # Errors
/// As [`pin::unpin`].
pub async fn unpin(common: &Common, args: &UnpinArgs) -> Result<Ended> {
    let (context, id) = (operator(common)?, backup_id(&args.backup)?);
    let done = pin::unpin(&context.repositories()?, &id).await?;
    show(common, "pitr.unpin.v1", &id, &done, "no longer pinned");
    Ok(Ended::Well)
}

/// A backup's identifier from the command line.
///
/// # Errors
/// Kind `Usage`.
pub fn backup_id(text: &str) -> Result<BackupId> {
    text.parse().map_err(|e| Error::usage(format!("{e}")).hint("`pitr info` lists the backups"))
}

fn show(common: &Common, schema: &str, id: &BackupId, done: &[PinDone], word: &str) {
    if common.json {
        let pins: Vec<_> =
            done.iter().map(|d| serde_json::json!({ "repository": d.repository, "pin": d.pin })).collect();
        output::json(&serde_json::json!({ "schema": schema, "backup": id, "pins": pins }));
    } else if !common.quiet {
        for d in done {
            output::say(&format!("backup {id} is {word} in repository {}", d.repository));
        }
    }
}
