//! `archive-push` and `archive-get`: what PostgreSQL runs.
//!
//! Their world is the server's: the working directory is the data directory, the environment is bare, signals keep their default
//! action, and only the exit code is read (`exit.rs`). A standby is the exception of RECOVERY 15: it asks again by itself and never
//! opens on "absent", while an exit code above 125 would kill it; so with `standby.signal` present, doubt ends as "absent" after a
//! short wait, with the reason on standard error.

use std::path::Path;
use std::time::Duration;

use crate::agent::fetcher::sweep;
use crate::cli::ahead;
use crate::cli::args::{Common, GetArgs, PushArgs};
use crate::cli::asker::Asker;
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::output;
use crate::codec;
use crate::config::load::Caller;
use crate::config::{ArchiveConfig, Compression};
use crate::error::{Error, Kind, Result};
use crate::ops::archive::{Got, PushReport, Route, get_file, store_file};
use crate::pgdata::ControlFile;
use crate::wal::{Lsn, SystemId, TimelineId, WalFileName};

/// For how long a standby's question is asked again before doubt becomes "absent", and how far apart. A try that is under way is not
/// cut off, since it may be delivering: against a store that never answers, one try's patience is added.
const STANDBY_PATIENCE: Duration = Duration::from_secs(3);
const STANDBY_PAUSE: Duration = Duration::from_secs(1);
/// What makes a server one, below its data directory.
pub(super) const STANDBY_SIGNAL: &str = "standby.signal";

/// What becomes of doubt on a standby, which asks again by itself; `report` is said.
pub(super) fn end_of_standby(report: &str) -> Ended {
    output::warn(&format!("{report}\nthis is a standby: answering \"not there\", it will ask again"));
    Ended::Absent
}

/// Runs `archive-push`.
///
/// # Errors
/// See [`store_file`].
pub async fn push(common: &Common, args: &PushArgs) -> Result<Ended> {
    let context = Context::load(common, Caller::Server)?;
    context.act_as_owner()?;
    let repositories = context.repositories()?;
    let data_dir = context.config.postgres.data_dir.as_deref();
    let report =
        store_file(&repositories, &args.path, data_dir, compression(&context.config.archive)).await?;
    for warning in &report.warnings {
        output::warn(&format!("warning: {warning}"));
    }
    if common.json {
        output::json(&push_json("pitr.archive-push.v1", &report));
    }
    // Where no agent does it: what fetched ahead for the recovery of this server may have been killed.
    data_dir.into_iter().for_each(sweep);
    Ok(Ended::Well)
}

/// What was stored where.
pub(super) fn push_json(schema: &str, report: &PushReport) -> serde_json::Value {
    let outcomes: Vec<_> = report
        .outcomes
        .iter()
        .map(|(name, stored)| serde_json::json!({ "repository": name, "outcome": format!("{stored:?}") }))
        .collect();
    serde_json::json!({
        "schema": schema,
        "file": report.name.to_string(),
        "system_identifier": report.system.to_string(),
        "bytes": report.size,
        "stored_bytes": report.stored,
        "repositories": outcomes,
        "warnings": report.warnings,
    })
}

/// Runs `archive-get`.
///
/// # Errors
/// Everything that is not proven absence.
pub async fn get(common: &Common, args: &GetArgs) -> Result<Ended> {
    let standby = Path::new(STANDBY_SIGNAL).exists();
    let (began, asker) = (std::time::Instant::now(), Asker::at_first());
    loop {
        let error = match get_once(common, args, asker).await {
            Ok(ended) => return Ok(ended),
            Err(e) if !standby || e.kind() == Kind::Usage => return Err(e),
            Err(e) => e,
        };
        if began.elapsed() >= STANDBY_PATIENCE || error.kind() == Kind::Corrupt {
            return Ok(end_of_standby(&error.report()));
        }
        crate::clock::sleep(STANDBY_PAUSE).await;
    }
}

async fn get_once(common: &Common, args: &GetArgs, asker: Asker) -> Result<Ended> {
    let name = WalFileName::parse(&args.file).map_err(|e| {
        Error::usage("cannot fetch that")
            .source(e)
            .hint("restore_command passes %f and %p: archive-get %f \"%p\"")
    })?;
    let timeline = match args.route.timeline {
        None => None,
        Some(n) => Some(
            TimelineId::new(n)
                .ok_or_else(|| Error::usage("timeline 0 does not exist").hint("timelines count from 1"))?,
        ),
    };
    let until = args.route.until.as_deref().map(|text| {
        text.parse::<Lsn>().map_err(|e| {
            Error::usage(format!("--until {text:?} is no position")).source(e).hint("such as 0/3000028")
        })
    });
    let route = Route { timeline, until: until.transpose()? };
    let context = Context::load(common, Caller::Server)?;
    context.act_as_owner()?;
    let repositories = context.repositories()?;
    let system = args.route.system_id.map(SystemId::new).or_else(working_directory_system);
    // What a person fetches may outlive his terminal.
    let recovers = args.destination.starts_with("pg_wal");
    let wanted = move || !recovers || asker.waits();
    let got = get_file(&repositories, name, &args.destination, system, route, wanted).await?;
    if common.json {
        let (outcome, size) = match &got {
            Got::Delivered { size, .. } => ("delivered", Some(*size)),
            Got::Absent => ("absent", None),
        };
        output::json(&serde_json::json!({
            "schema": "pitr.archive-get.v1", "file": args.file, "outcome": outcome, "bytes": size,
        }));
    }
    Ok(match got {
        Got::Delivered { .. } => {
            ahead::leave_behind(common, args);
            Ended::Well
        }
        Got::Absent => Ended::Absent,
    })
}

/// Whose data directory PostgreSQL started us in, if it did.
fn working_directory_system() -> Option<SystemId> {
    let bytes = std::fs::read("global/pg_control").ok()?;
    ControlFile::parse(&bytes).ok().map(|control| control.system_id)
}

/// How the configuration wants WAL compressed.
pub fn compression(config: &ArchiveConfig) -> codec::Compression {
    match config.compression {
        Compression::Zstd(level) => codec::Compression::Zstd { level },
        Compression::None => codec::Compression::Stored,
    }
}
