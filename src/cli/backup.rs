//! `pitr backup`: flags to a request, the report to text or JSON.
//!
//! The backup goes to every required repository, or to those that `--repository` names; an optional one is left out and said so, since
//! it gets its copy later (`pitr copy`). One with damaged pages is stored and marked, and ends with the code for damage.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cli::args::{BackupArgs, CheckpointArg, Common};
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::{operator, output, terminal, with_threads};
use crate::config::units;
use crate::error::Error;
use crate::ops::Progress;
use crate::ops::backup::{BackupReport, BackupRequest, WAL_PATIENCE, backup};
use crate::pgwire::{Checkpoint, Deadlines};
use crate::repo::Repository;
use crate::repo::objects::{Backup, Checksums};

/// Limits of BASE_BACKUP's MAX_RATE, in kB/s.
const RATES: std::ops::RangeInclusive<u64> = 32..=1_048_576;

/// A day, and what is then still to be written.
const LONGEST_CHECKPOINT: Duration = Duration::from_secs(25 * 3600);

/// Runs the command.
///
/// # Errors
/// As [`backup`], and for flags that make no sense.
pub fn run(common: &Common, args: &BackupArgs) -> Result<Ended, Error> {
    let context = operator(common)?;
    let progress = terminal(common);
    with_threads(|cancel| async move { perform(&context, args, &progress, &cancel).await })
}

async fn perform(
    context: &Context,
    args: &BackupArgs,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Ended, Error> {
    let request = BackupRequest {
        conninfo: context.conninfo()?,
        deadlines: deadlines(args.checkpoint),
        data_dir: context.config.postgres.data_dir.clone(),
        label: args.label.clone().unwrap_or_default(),
        checkpoint: match args.checkpoint {
            CheckpointArg::Fast => Checkpoint::Fast,
            CheckpointArg::Spread => Checkpoint::Spread,
        },
        max_rate: args.max_rate.as_deref().map(max_rate).transpose()?,
        wal_patience: WAL_PATIENCE,
    };
    let repositories = chosen(context, progress)?;
    let report = backup(&request, &repositories, progress, cancel).await?;
    if context.common.json {
        output::json(&as_json(&report));
    } else if !context.common.quiet {
        output::say(&as_text(&report));
    }
    if report.backup.checksums == Checksums::Corrupt {
        output::warn(&damage(&report.backup).report());
        return Ok(Ended::Damaged);
    }
    Ok(Ended::Well)
}

/// Pages of the source are damaged: which, and what now.
fn damage(backup: &Backup) -> Error {
    Error::corrupt(format!(
        "pages of the server are damaged, so backup {} is marked corrupt and is no good one:\n{}",
        backup.id,
        backup.damage.join("\n")
    ))
    .hint(format!(
        "in the database with the number behind base/ (`SELECT oid, datname FROM pg_database`), \
         `SELECT pg_filenode_relation(0, <number of the file>)` names the relation: an index can be rebuilt (REINDEX), a table be \
         brought back from an older backup (`pitr restore --copy`); older backups and the WAL since them are still good, and nothing \
         of them expires meanwhile; `pitr restore --backup {}` takes this one all the same",
        backup.id
    ))
}

/// A spread checkpoint takes most of checkpoint_timeout, whose limit is a day; TCP keepalive notices a server that is gone.
fn deadlines(checkpoint: CheckpointArg) -> Deadlines {
    let deadlines = Deadlines::default();
    match checkpoint {
        CheckpointArg::Fast => deadlines,
        CheckpointArg::Spread => Deadlines { prepare: LONGEST_CHECKPOINT, ..deadlines },
    }
}

/// The repositories that were named, else the required ones.
fn chosen(context: &Context, progress: &dyn Progress) -> Result<Vec<Repository>, Error> {
    let all = context.repositories()?;
    if !context.common.repository.is_empty() {
        return Ok(all);
    }
    let (required, optional): (Vec<_>, Vec<_>) = all.into_iter().partition(Repository::is_required);
    for repository in optional {
        let name = repository.name();
        progress.note(&format!(
            "repository {name} is optional and gets no copy now; name it with --repository to back up into it"
        ));
    }
    Ok(required)
}

/// MAX_RATE in kB/s of a size per second.
fn max_rate(text: &str) -> Result<u32, Error> {
    let wrong = |why: String| Error::usage(format!("--max-rate {text:?}: {why}"));
    let bytes = units::parse_size(text).map_err(wrong)?;
    let rate = bytes / 1024;
    let rate = Some(rate).filter(|rate| RATES.contains(rate)).and_then(|rate| u32::try_from(rate).ok());
    rate.ok_or_else(|| wrong("PostgreSQL takes 32KiB to 1GiB per second".to_owned()))
}

/// Bytes per second; a backup of less than a second counts as one.
fn rate(report: &BackupReport) -> u64 {
    report.backup.cluster_bytes / report.took.as_secs().max(1)
}

fn as_text(report: &BackupReport) -> String {
    let backup = &report.backup;
    let from = if backup.from_standby { "a standby of " } else { "" };
    let rows: Vec<Vec<String>> = [
        (
            "cluster",
            format!("{from}{}, system {}, PostgreSQL {}", backup.cluster, backup.system, backup.major),
        ),
        ("WAL", format!("{} to {} on timeline {}", backup.start_lsn, backup.stop_lsn, backup.timeline)),
        (
            "size",
            format!("{} in {} files and directories", output::bytes(backup.cluster_bytes), backup.files),
        ),
        ("stored", format!("{} in {} packs", output::bytes(backup.stored_bytes), backup.packs.count)),
        ("took", format!("{} ({}/s)", output::seconds(report.took.as_secs()), output::bytes(rate(report)))),
        ("where", report.repositories.join(", ")),
    ]
    .into_iter()
    .map(|(name, value)| vec![format!("  {name}"), value])
    .collect();
    let state = if backup.checksums == Checksums::Corrupt { "stored, and corrupt" } else { "complete" };
    let mut text = format!("backup {} is {state}\n{}", backup.id, output::table(&rows));
    // Warnings were said when they came up.
    text.push_str(
        "Next: `pitr info` lists the backups, `pitr restore --dry-run` shows what a restore would do.",
    );
    text
}

fn as_json(report: &BackupReport) -> serde_json::Value {
    let backup = &report.backup;
    json!({
        "schema": "pitr.backup.v1",
        "cluster": backup.cluster,
        "system_identifier": backup.system,
        "id": backup.id,
        "kind": backup.kind,
        "label": backup.label,
        "started_at": backup.started_at,
        "finished_at": backup.finished_at,
        "start_lsn": backup.start_lsn,
        "stop_lsn": backup.stop_lsn,
        "timeline": backup.timeline,
        "from_standby": backup.from_standby,
        "checksums": backup.checksums,
        "damage": backup.damage,
        "cluster_bytes": backup.cluster_bytes,
        "new_bytes": backup.new_bytes,
        "stored_bytes": backup.stored_bytes,
        "files": backup.files,
        "packs": backup.packs.count,
        "seconds": report.took.as_secs_f64(),
        "bytes_per_second": rate(report),
        "repositories": report.repositories,
        "warnings": report.warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_base_backup_takes() {
        assert_eq!(max_rate("50MiB").unwrap(), 51_200);
        assert_eq!(max_rate("1GiB").unwrap(), 1_048_576);
        for bad in ["1KiB", "2GiB", "fast"] {
            assert_eq!(max_rate(bad).unwrap_err().exit_code(), 3, "{bad}");
        }
    }
}
