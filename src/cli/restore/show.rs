//! What `pitr restore` says: the plan, the result and what to do next, as text or as one JSON object.
//!
//! Times are shown in UTC with their offset: a restore is the wrong moment for guessing zones. Names in JSON are those of the
//! interface that scripts use (`pitr.restore.v1`).

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::args::Common;
use crate::cli::output;
use crate::ops::plan::{PlanRequest, Stop};
use crate::ops::restore::outside::Home;
use crate::ops::restore::{Finished, Prepared, Purpose, Report};
use crate::pgdata::recovery::Action;
use crate::repo::Keyring;
use crate::wal::{PgTime, Stamp};

/// Prints the plan.
pub(super) fn plan(prepared: &Prepared, question: &PlanRequest, as_json: bool) {
    if as_json {
        let mut value = plan_json(prepared, question);
        set(&mut value, "dry_run", json!(true));
        output::json(&value);
    } else {
        output::say(&plan_text(prepared, question));
    }
}

/// Prints the result.
pub(super) fn done(prepared: &Prepared, report: &Report, question: &PlanRequest, common: &Common) {
    if common.json {
        let mut value = plan_json(prepared, question);
        for (name, more) in [
            ("dry_run", json!(false)),
            ("files", json!(report.files)),
            ("bytes_restored", json!(report.bytes)),
            ("moved_aside", json!(report.aside)),
            ("written_outside", json!(report.outside)),
            ("unpinned", json!(report.unpinned)),
            ("next", json!(next(prepared))),
        ] {
            set(&mut value, name, more);
        }
        output::json(&value);
        return;
    }
    let mut text = format!(
        "Restored backup {} into {} ({} files, {}).\n",
        prepared.plan.backup,
        report.target.display(),
        report.files,
        output::bytes(report.bytes)
    );
    if let Some(aside) = &report.aside {
        let _ = writeln!(text, "The old contents are in {}.", aside.display());
    }
    for path in &report.outside {
        let _ = writeln!(text, "Wrote {}.", path.display());
    }
    if let Some(why) = &report.unpinned {
        let _ = writeln!(text, "The backup could not be pinned, so it can expire: {why}.");
    }
    text.push_str("\nNext:\n");
    for step in next(prepared) {
        let _ = writeln!(text, "  {step}");
    }
    output::say(&text);
}

/// Prints what `--finish` did.
pub(super) fn finished(finished: &Finished, data_dir: &Path, as_json: bool) {
    if as_json {
        output::json(&json!({
            "schema": "pitr.restore.v1",
            "finished": true,
            "file": finished.file,
            "changed": finished.changed,
            "also_removed": finished.unmarked,
        }));
        return;
    }
    let mut text = if finished.changed {
        format!("Removed the recovery settings from {}.\n", finished.file.display())
    } else {
        format!("{} holds no recovery settings.\n", finished.file.display())
    };
    if finished.rewritten {
        text.push_str(
            "ALTER SYSTEM had rewritten the file: look whether synchronous_standby_names and the limits of connections and \
             workers in it are what you want.\n",
        );
    }
    if finished.changed {
        let _ = writeln!(text, "Make the server read it: pg_ctl -D {} reload", data_dir.display());
    }
    output::say(&text);
}

fn set(value: &mut Value, name: &str, more: Value) {
    if let Some(object) = value.as_object_mut() {
        object.insert(name.to_owned(), more);
    }
}

fn plan_json(p: &Prepared, question: &PlanRequest) -> Value {
    let verdict = p.stored.verdict();
    let stamp =
        |stamp: &Option<Stamp>| stamp.map(|s| json!({ "lsn": s.lsn, "time": rfc3339(s.time), "xid": s.xid }));
    let timelines: Vec<Value> = p
        .plan
        .route
        .iter()
        .map(|step| json!({ "timeline": step.timeline, "from": step.from, "to": step.to }))
        .collect();
    let settings: Vec<Value> =
        p.settings_shown().into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let (kind, at) = match &p.plan.stop {
        Stop::Lsn(record) => ("record", record.lsn),
        Stop::Immediate { lsn } => ("immediate", *lsn),
        Stop::EndOfWal { lsn } => ("end_of_wal", *lsn),
    };
    json!({
        "schema": "pitr.restore.v1",
        "cluster": p.stored.system().repository().cluster().as_str(),
        "system_identifier": verdict.system.to_string(),
        "repository": p.stored.system().repository().name(),
        "target": question.target.to_string(),
        "target_dir": p.place.path,
        "purpose": p.purpose.word(),
        "action": p.settings.action.name(),
        "backup": p.plan.backup,
        "stop": kind,
        "stop_lsn": at,
        "timelines": timelines,
        "recovery_target_timeline": p.plan.recovery_target_timeline,
        "segments": p.plan.segments.len(),
        "wal_bytes": p.plan.wal_bytes,
        "last_kept": stamp(&p.plan.last_kept),
        "first_lost": stamp(&p.plan.first_lost),
        "cluster_bytes": p.image.bytes(),
        "bytes_to_fetch": p.bytes_to_fetch,
        "settings": settings,
        "start": p.start,
        "tablespaces_aside": p.old_tablespaces.iter().map(|old| &old.kept).collect::<Vec<_>>(),
        "old_wal": p.old_wal.as_ref().map(|old| json!({
            "data_dir": old.data_dir,
            "files": old.files.len(),
            "end_lsn": old.end,
            "newest_commit": stamp(&old.newest_commit),
        })),
        "warnings": p.warnings,
    })
}

fn rfc3339(time: PgTime) -> Option<String> {
    jiff::Timestamp::from_microsecond(time.unix_micros()).ok().map(|t| t.to_string())
}

fn plan_text(p: &Prepared, question: &PlanRequest) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    let verdict = p.stored.verdict();
    let repository = p.stored.system().repository();
    row(
        "cluster",
        format!("{} (system {}, PostgreSQL {})", repository.cluster(), verdict.system, verdict.major),
    );
    row("target", question.target.to_string());
    row(
        "backup",
        format!(
            "{} of {}, {}, in repository {}",
            p.plan.backup,
            verdict.started_at,
            output::bytes(p.image.bytes()),
            repository.name()
        ),
    );
    row("route", route(p));
    row("stop", stop(p));
    let commit = |s: Stamp| format!("transaction {} at {}, {}", s.xid, s.lsn, s.time);
    row("last kept", p.plan.last_kept.map_or_else(|| "no commit is replayed".to_owned(), commit));
    if let Some(lost) = p.plan.first_lost {
        row("first lost", commit(lost));
    }
    row("WAL", segments(p));
    row(
        "to fetch",
        format!(
            "{} of backup, {} of WAL before compression",
            output::bytes(p.bytes_to_fetch),
            output::bytes(p.plan.wal_bytes)
        ),
    );
    let what = match p.purpose {
        Purpose::Replace => "the new primary: archiving stays on",
        Purpose::Copy => "a copy: archiving off, configuration of its own",
    };
    row("into", format!("{} ({what})", p.place.path.display()));
    for (tablespace, _) in &p.tablespaces {
        let place = tablespace.place.as_ref().unwrap_or(&tablespace.original);
        row("tablespace", format!("{} at {}", tablespace.oid, place.display()));
    }
    if let Some(aside) = &p.aside {
        row("moved aside", format!("to {}", aside.display()));
    }
    for old in &p.old_tablespaces {
        row("", format!("tablespace {} to {}", old.place.display(), old.kept.display()));
    }
    match &p.home {
        Home::DataDir => {}
        Home::Kept(main) => row("configuration", format!("{} as it is", main.display())),
        Home::Written { main, .. } => {
            row("configuration", format!("{}, written from the backup", main.display()));
        }
        Home::Missing(main) => row("configuration", format!("{} is missing", main.display())),
    }
    for (index, (name, value)) in p.settings_shown().into_iter().filter(|(_, v)| !v.is_empty()).enumerate() {
        row(if index == 0 { "settings" } else { "" }, format!("{name} = {value}"));
    }
    output::table(&rows)
}

fn route(p: &Prepared) -> String {
    let steps: Vec<String> =
        p.plan.route.iter().map(|s| format!("timeline {} from {} to {}", s.timeline, s.from, s.to)).collect();
    steps.join(", then ")
}

fn stop(p: &Prepared) -> String {
    match &p.plan.stop {
        Stop::Lsn(record) => {
            let xid = record.xid.map(|xid| format!(" of transaction {xid}")).unwrap_or_default();
            let time = record.time.map(|t| format!(", {t}")).unwrap_or_default();
            format!("after the {}{xid} at {}{time}", record.what, record.lsn)
        }
        Stop::Immediate { lsn } => format!("as soon as the backup is consistent, at {lsn}"),
        Stop::EndOfWal { lsn } => format!("at the end of the archive, {lsn} by now"),
    }
}

fn segments(p: &Prepared) -> String {
    match (p.plan.segments.first(), p.plan.segments.last()) {
        (Some(first), Some(last)) if first != last => {
            format!("{} segments, {first} to {last}", p.plan.segments.len())
        }
        (Some(only), _) => format!("1 segment, {only}"),
        _ => "none".to_owned(),
    }
}

/// What is left to do, in order.
fn next(p: &Prepared) -> Vec<String> {
    let dir = p.place.path.display();
    let mut steps = vec![format!("start the server: {}", p.start)];
    steps.push(match p.settings.action {
        Action::Promote => "it replays WAL up to the stop and opens for writing on a new timeline".to_owned(),
        Action::Pause => "it replays WAL up to the stop and stays read-only: look at the data, then promote it \
                          (SELECT pg_wal_replay_resume()), or restore to another moment"
            .to_owned(),
        Action::Shutdown => "it replays WAL up to the stop and shuts down. To go on to a later moment, restore again; to open it \
                             as it is, set recovery_target_action = 'promote' in postgresql.auto.conf and start it. Do not \
                             delete recovery.signal: the server would replay past the stop, on the same timeline"
            .to_owned(),
    });
    steps.push(format!("after promotion: pitr restore --finish --target-dir {dir}"));
    match p.purpose {
        Purpose::Replace => {
            let (sealed, repository) =
                (p.stored.system().seal_key().is_some(), p.stored.system().repository());
            if sealed && repository.keys().and_then(Keyring::host).is_none() {
                steps.push(
                    "it archives nothing yet, for want of the host file: bring a copy of it, or `pitr key recover` makes one from the \
                     identity (docs/encryption.md, Coming back; the recovery kit has the commands)"
                        .to_owned(),
                );
            }
            steps.push("then take a full backup: pitr backup --full".to_owned());
        }
        Purpose::Copy => steps.push(format!(
            "it is a copy: it archives nothing, and the source's own configuration is beside it as *.source; \
             `pitr init --adopt` makes a primary of it (data directory {dir})"
        )),
    }
    steps
}
