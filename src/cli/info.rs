//! `pitr info`: backups, WAL, and the span of time that can be restored, per repository.
//!
//! Text for people, newest backup last, so that it stands above the prompt; `--json` for scripts (`pitr.info.v1`). Times are in the
//! configured zone in text and RFC 3339 UTC in JSON. A repository that cannot be read is an error, shown after the others.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::args::{Common, InfoArgs};
use crate::cli::exit::Ended;
use crate::cli::operator;
use crate::cli::output::{self, bytes, say, table};
use crate::cli::verify::UNVERIFIED;
use crate::error::{Error, Result};
use crate::ops::info::{self, RepositoryInfo, ShownBackup, ShownWal};
use crate::wal::{PgTime, SegmentSize, SystemId};

/// Runs `info`.
///
/// # Errors
/// If no repository could be read, or one of several could not.
pub async fn run(common: &Common, args: &InfoArgs) -> Result<Ended> {
    let context = operator(common)?;
    let mut shown = Vec::new();
    let mut failure: Option<Error> = None;
    for repository in context.repositories()? {
        match info::read(&repository, args.system_id.map(SystemId::new)).await {
            Ok(info) => shown.push(info),
            Err(e) => {
                let e = e.context(format!("repository {}", repository.name()));
                if let Some(earlier) = failure.replace(e) {
                    output::warn(&earlier.report());
                }
            }
        }
    }
    if common.json && !shown.is_empty() {
        output::json(&json(context.config.cluster.as_str(), &shown));
    } else {
        let zone = context.config.timezone.clone().unwrap_or(TimeZone::UTC);
        shown.iter().for_each(|info| say(&text(context.config.cluster.as_str(), info, &zone)));
    }
    failure.map_or(Ok(Ended::Well), Err)
}

/// A PostgreSQL time as a timestamp; times outside jiff's range (year 9999) are held at its ends.
pub(in crate::cli) fn moment(time: PgTime) -> Timestamp {
    Timestamp::from_microsecond(time.unix_micros()).unwrap_or(Timestamp::MAX)
}

/// With the offset and every digit, so that it can be given as `--to`.
pub(in crate::cli) fn local(time: Timestamp, zone: &TimeZone) -> String {
    crate::target::show(time, zone)
}

fn text(cluster: &str, info: &RepositoryInfo, zone: &TimeZone) -> String {
    let identity = &info.identity;
    let mut text = format!(
        "cluster {cluster}, system {}, PostgreSQL {}\nrepository {} {}\n",
        identity.system, identity.major, info.name, info.url
    );
    for other in &info.others {
        text.push_str(&format!(
            "  also here: system {} of PostgreSQL {} (--system-id)\n",
            other.system, other.major
        ));
    }
    if info.locked {
        text.push_str("encrypted, and no identity is at hand: times and what is in WAL are not known\n");
    }
    for (epoch, first) in &info.unopened {
        text.push_str(&format!(
            "sealed with epoch {epoch}, which no identity at hand opens: {first} and others; times and what is in them are not known\n"
        ));
    }
    if info.unverified {
        text.push_str(&format!("{UNVERIFIED}\n"));
    }
    let time = |t: Option<PgTime>| t.map_or_else(|| "?".to_owned(), |t| local(moment(t), zone));
    match info.window() {
        Some((earliest, latest)) => {
            text.push_str(&format!("can be restored: {} to {}\n", time(earliest), time(latest)));
        }
        None if info.locked && info.backups.iter().any(|b| b.restorable) => {
            text.push_str("can be restored: with an identity\n");
        }
        None => text.push_str("nothing can be restored yet: run `pitr backup`\n"),
    }
    for span in info.windows.iter().flat_map(|w| &w.spans) {
        if let Some(gap) = &span.gap {
            text.push_str(&format!("  then a gap: {gap}\n"));
        }
    }
    let mut rows = vec![
        ["BACKUP", "FINISHED", "START", "STOP", "TLI", "CLUSTER", "STORED", "STATE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(info.backups.iter().map(|b| backup_row(b, zone)));
    if rows.len() > 1 {
        text.push_str(&format!("\n{}", table(&rows)));
    }
    let mut rows = vec![["WAL", "FIRST", "LAST", "STORED"].map(str::to_owned).to_vec()];
    for wal in &info.wal {
        for run in &wal.runs {
            rows.push(vec![
                format!("TLI {}", wal.timeline),
                run.first.to_string(),
                run.last.to_string(),
                bytes(wal.stored),
            ]);
        }
    }
    if rows.len() > 1 {
        text.push_str(&format!("\n{}", table(&rows)));
    }
    text
}

fn backup_row(backup: &ShownBackup, zone: &TimeZone) -> Vec<String> {
    let Some(verdict) = &backup.verdict else {
        let dash = || "-".to_owned();
        return vec![backup.id.clone(), dash(), dash(), dash(), dash(), dash(), dash(), backup.state.clone()];
    };
    let pinned = if backup.pinned { ", pinned" } else { "" };
    let label = if verdict.label.is_empty() { String::new() } else { format!(" ({})", verdict.label) };
    vec![
        backup.id.clone(),
        local(verdict.finished_at, zone),
        verdict.start_lsn.to_string(),
        verdict.stop_lsn.to_string(),
        verdict.timeline.to_string(),
        bytes(verdict.cluster_bytes),
        bytes(verdict.stored_bytes),
        format!("{}{pinned}{label}", backup.state),
    ]
}

fn json(cluster: &str, shown: &[RepositoryInfo]) -> serde_json::Value {
    let repositories: Vec<_> = shown
        .iter()
        .map(|info| {
            let window = info.window();
            let time = |t: Option<PgTime>| t.map(|t| moment(t).to_string());
            serde_json::json!({
                "name": info.name,
                "url": info.url,
                "system_identifier": info.identity.system.to_string(),
                "encrypted": info.identity.sealed,
                "unverified": info.unverified,
                "epochs_unopened": info.unopened.keys().map(ToString::to_string).collect::<Vec<_>>(),
                "backups": info.backups.iter().map(backup_json).collect::<Vec<_>>(),
                "wal": info.wal.iter().map(|w| wal_json(w, info.identity.segment_size)).collect::<Vec<_>>(),
                "window": {
                    "earliest": window.and_then(|w| time(w.0)),
                    "latest": window.and_then(|w| time(w.1)),
                },
            })
        })
        .collect();
    serde_json::json!({
        "schema": "pitr.info.v1",
        "cluster": cluster,
        "system_identifier": shown.first().map(|i| i.identity.system.to_string()),
        "repositories": repositories,
    })
}

fn backup_json(backup: &ShownBackup) -> serde_json::Value {
    let mut object = serde_json::json!({ "id": backup.id, "restorable": backup.restorable, "state": backup.state, "pinned": backup.pinned });
    if let (Some(verdict), Some(map)) = (&backup.verdict, object.as_object_mut()) {
        let more = serde_json::json!({
            "kind": verdict.kind,
            "started_at": verdict.started_at,
            "finished_at": verdict.finished_at,
            "start_lsn": verdict.start_lsn,
            "stop_lsn": verdict.stop_lsn,
            "timeline": verdict.timeline,
            "cluster_bytes": verdict.cluster_bytes,
            "new_bytes": verdict.new_bytes,
            "stored_bytes": verdict.stored_bytes,
            "label": verdict.label,
        });
        map.extend(more.as_object().cloned().unwrap_or_default());
    }
    object
}

fn wal_json(wal: &ShownWal, size: SegmentSize) -> serde_json::Value {
    let gaps: Vec<_> = wal
        .runs
        .windows(2)
        .filter_map(|pair| match pair {
            [before, after] => {
                let (first, last) =
                    (before.last.number(size).ok()?.next(), after.first.number(size).ok()?.previous());
                let name = |n| crate::wal::SegmentName::new(wal.timeline, n, size).to_string();
                Some(serde_json::json!({ "first": name(first), "last": name(last) }))
            }
            _ => None,
        })
        .collect();
    serde_json::json!({
        "timeline": wal.timeline,
        "first": wal.runs.first().map(|r| r.first.to_string()),
        "last": wal.runs.last().map(|r| r.last.to_string()),
        "gaps": gaps,
        "stored_bytes": wal.stored,
    })
}
