//! `pitr expire`: what goes and what stays, said as moments that can be restored, not as files; `pitr.expire.v1`, or `pitr.expire-backup.v1`
//! for the one that `--backup` names.
//!
//! Each repository has a retention of its own, and each is told of the others, whose WAL it may be the last to have. One without a
//! `retention` table keeps everything, which is said. With several, one that fails does not keep the others from being expired.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::args::{Common, ExpireArgs};
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::output::{self, bytes, say, table};
use crate::cli::pin::backup_id;
use crate::cli::{operator, terminal};
use crate::clock::{Clock as _, SystemClock};
use crate::config::units::show_duration;
use crate::config::{RepositoryConfig, Retention};
use crate::error::{Error, Kind, Result};
use crate::ops::expire::{Deleted, ExpireRequest, One, OneRequest, SystemReport, WalWaiting, expire, one};
use crate::repo::Repository;
use crate::repo::retention::{Period, Plan, Reason};
use tokio_util::sync::CancellationToken;

/// Runs `expire`.
///
/// # Errors
/// As [`expire`] and [`one`]; with several repositories the last failure, after the others were done.
pub async fn run(common: &Common, args: &ExpireArgs, cancel: CancellationToken) -> Result<Ended> {
    let context = operator(common)?;
    let work = async {
        match &args.backup {
            Some(id) => choose(&context, args, id).await,
            None => all(&context, args).await,
        }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::interrupted("expire was interrupted").hint("run it again: it goes on")),
        done = work => done,
    }
}

/// A repository to work on, what it promises, and those beside it.
struct Chosen {
    repository: Repository,
    policy: Option<Retention>,
    others: Vec<Repository>,
}

fn chosen(context: &Context) -> Result<Vec<Chosen>> {
    let configured: Vec<(Repository, &RepositoryConfig)> =
        context.config.repositories.iter().map(|c| Ok((context.open(c)?, c))).collect::<Result<_>>()?;
    let named = context.repositories()?;
    let policy = |name: &str| {
        configured.iter().find(|(_, config)| config.name == name).and_then(|(_, config)| config.retention)
    };
    let beside = |name: &str| {
        configured.iter().filter(|(_, c)| c.name != name).map(|(repository, _)| repository.clone()).collect()
    };
    Ok(named
        .into_iter()
        .map(|repository| {
            let (policy, others) = (policy(repository.name()), beside(repository.name()));
            Chosen { repository, policy, others }
        })
        .collect())
}

async fn all(context: &Context, args: &ExpireArgs) -> Result<Ended> {
    let common = &context.common;
    let zone = context.config.timezone.clone().unwrap_or(TimeZone::UTC);
    let progress = terminal(common);
    let (mut shown, mut failure) = (Vec::new(), None);
    for Chosen { repository, policy, others } in chosen(context)? {
        let request =
            ExpireRequest { policy, zone: zone.clone(), now: SystemClock.now(), dry_run: args.dry_run };
        match expire(&repository, &others, &request, &progress).await {
            Ok(reports) => {
                if !(common.json || common.quiet) {
                    say(&text(&repository, policy.as_ref(), &reports, &request));
                }
                shown.push(json(&repository, policy.as_ref(), &reports));
            }
            Err(error) => {
                let error = error.context(format!("repository {}", repository.name()));
                if let Some(earlier) = failure.replace(error) {
                    output::warn(&earlier.report());
                }
            }
        }
    }
    if common.json && !shown.is_empty() {
        output::json(&serde_json::json!({
            "schema": "pitr.expire.v1",
            "cluster": context.config.cluster.as_str(),
            "dry_run": args.dry_run,
            "repositories": shown,
        }));
    }
    failure.map_or(Ok(Ended::Well), Err)
}

/// One backup, in every chosen repository that has it.
async fn choose(context: &Context, args: &ExpireArgs, id: &str) -> Result<Ended> {
    let common = &context.common;
    let id = backup_id(id)?;
    let (mut shown, mut absent) = (Vec::new(), None);
    for Chosen { repository, policy, .. } in chosen(context)? {
        let request = OneRequest {
            id: id.clone(),
            policy,
            below_promise: args.below_promise,
            dry_run: args.dry_run,
            now: SystemClock.now(),
        };
        let done = match one(&repository, &request).await {
            Err(error) if error.kind() == Kind::NotFound => {
                absent = Some(error);
                continue;
            }
            done => done?,
        };
        let grace = policy.unwrap_or_default().grace;
        if !(common.json || common.quiet) {
            say(&format!(
                "repository {}: backup {id} {}",
                repository.name(),
                one_text(done, args.dry_run, &show_duration(grace))
            ));
        }
        shown.push(serde_json::json!({
            "name": repository.name(),
            "backup": id,
            "marked": matches!(done, One::Marked { .. }) && !args.dry_run,
            "breaks_window": done == One::Marked { breaks_window: true },
        }));
    }
    if let (true, Some(error)) = (shown.is_empty(), absent) {
        return Err(error);
    }
    if common.json {
        output::json(&serde_json::json!({
            "schema": "pitr.expire-backup.v1",
            "cluster": context.config.cluster.as_str(),
            "dry_run": args.dry_run,
            "repositories": shown,
        }));
    }
    Ok(Ended::Well)
}

fn one_text(done: One, dry_run: bool, grace: &str) -> String {
    let lost = "; moments of the promised window are lost with it";
    match done {
        One::Before => "is marked already".to_owned(),
        One::Marked { breaks_window } => {
            let (word, lost) =
                (if dry_run { "can go" } else { "is marked" }, if breaks_window { lost } else { "" });
            format!(
                "{word}: it can no longer be restored, and a run of `pitr expire` after {grace} deletes it{lost}"
            )
        }
    }
}

fn local(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

fn promise(policy: &Retention) -> String {
    let spans = Period::ALL.iter().map(|period| (period.word(), policy.span(*period)));
    let all = std::iter::once(("window", policy.window)).chain(spans).filter(|(_, span)| !span.is_zero());
    all.map(|(word, span)| format!("{word} {}", show_duration(span))).collect::<Vec<_>>().join(", ")
}

fn text(
    repository: &Repository,
    policy: Option<&Retention>,
    reports: &[SystemReport],
    request: &ExpireRequest,
) -> String {
    let mut text = format!("repository {} {}\n", repository.name(), repository.store().url());
    match policy {
        Some(policy) => text.push_str(&format!("promised: {}\n", promise(policy))),
        None => text.push_str(
            "no retention is configured for it: nothing is ever expired, only what was marked by hand is deleted\n",
        ),
    }
    for report in reports {
        if reports.len() > 1 {
            let past = if report.superseded { ", followed by a newer one" } else { "" };
            text.push_str(&format!(
                "\nsystem {} of PostgreSQL {}{past}\n",
                report.identity.system, report.identity.major
            ));
        }
        if let Some(plan) = &report.plan {
            text.push_str(&plan_text(plan, &request.zone));
        }
        text.push_str(&report_text(report, request));
    }
    text
}

fn plan_text(plan: &Plan, zone: &TimeZone) -> String {
    let mut text = String::new();
    if let Some(freeze) = &plan.frozen {
        text.push_str(&format!("FROZEN, nothing expires: {freeze}\n"));
    }
    let since = |moment: Option<Timestamp>| match moment {
        Some(moment) => format!("every moment since {}", local(moment, zone)),
        None => "nothing".to_owned(),
    };
    text.push_str(&format!("can be restored now: {}\n", since(plan.window.before)));
    if plan.window.left != plan.window.before {
        text.push_str(&format!("and afterwards: {}\n", since(plan.window.left)));
    }
    if plan.go.is_empty() {
        text.push_str("restore points lost: none\n");
    } else {
        let rows: Vec<Vec<String>> =
            std::iter::once(["RESTORE POINT LOST", "BACKUP", "WHY"].map(str::to_owned).to_vec())
                .chain(
                    plan.go.iter().map(|going| {
                        vec![local(going.moment, zone), going.id.to_string(), going.why.clone()]
                    }),
                )
                .collect();
        text.push_str(&table(&rows));
    }
    text.push_str(&format!("kept: {}\n", kept_text(plan)));
    text
}

/// `5 backups: 3 for the window, 2 daily, 1 pinned`. A backup may be kept for several reasons.
fn kept_text(plan: &Plan) -> String {
    let count = |wanted: fn(&Reason) -> bool| plan.keep.values().filter(|r| r.iter().any(wanted)).count();
    let named = [
        (count(|r| *r == Reason::Window), "for the window"),
        (count(|r| matches!(r, Reason::Stands(Period::Day, _))), "daily"),
        (count(|r| matches!(r, Reason::Stands(Period::Week, _))), "weekly"),
        (count(|r| matches!(r, Reason::Stands(Period::Month, _))), "monthly"),
        (count(|r| matches!(r, Reason::Stands(Period::Year, _))), "yearly"),
        (count(|r| *r == Reason::Pinned), "pinned"),
        (count(|r| *r == Reason::Recent), "not sound"),
        (count(|r| *r == Reason::Unread), "for WAL that cannot be read"),
    ];
    let parts: Vec<String> =
        named.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    let all = plan.keep.len();
    format!("{all} backup{}: {}", if all == 1 { "" } else { "s" }, parts.join(", "))
}

fn report_text(report: &SystemReport, request: &ExpireRequest) -> String {
    let mut text = String::new();
    let would = if request.dry_run { "would be " } else { "" };
    if !report.abandoned.is_empty() {
        text.push_str(&format!("{would}given up: {} whose writers are gone\n", report.abandoned.len()));
    }
    for waiting in &report.waiting {
        let until = if waiting.until == Timestamp::MAX {
            "stays for now: it is pinned, or backups fail".to_owned()
        } else {
            format!("is deleted after {}", local(waiting.until, &request.zone))
        };
        text.push_str(&format!("marked before: backup {} {until}\n", waiting.id));
    }
    if let Some(WalWaiting { segments, until }) = report.wal_waiting {
        text.push_str(&format!(
            "given up: {segments} segments of WAL; the last of them {} deleted by a run after {}\n",
            if request.dry_run { "would be" } else { "is" },
            local(until, &request.zone)
        ));
    }
    let Deleted { backups, remain, objects, bytes: stored, wal_objects, wal_bytes, .. } = &report.deleted;
    if *objects > 0 || *wal_objects > 0 {
        text.push_str(&format!(
            "{would}deleted: {} marked before ({}), {wal_objects} files of WAL ({})\n",
            backups.len(),
            bytes(*stored),
            bytes(*wal_bytes)
        ));
    }
    if !remain.is_empty() {
        text.push_str(&format!("{} stay in part: newer backups need their packs\n", remain.len()));
    }
    report.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
    text
}

fn json(repository: &Repository, policy: Option<&Retention>, reports: &[SystemReport]) -> serde_json::Value {
    serde_json::json!({
        "name": repository.name(),
        "url": repository.store().url().to_string(),
        "retention": policy.map(promise),
        "systems": reports.iter().map(system_json).collect::<Vec<_>>(),
    })
}

fn system_json(report: &SystemReport) -> serde_json::Value {
    let plan = report.plan.as_ref();
    let kept = plan.into_iter().flat_map(|p| &p.keep).map(|(id, reasons)| {
        serde_json::json!({ "id": id, "reasons": reasons.iter().map(|r| reason(*r)).collect::<Vec<_>>() })
    });
    let lost = plan
        .into_iter()
        .flat_map(|p| &p.go)
        .map(|going| serde_json::json!({ "id": going.id, "moment": going.moment, "why": going.why }));
    let waiting = report.waiting.iter().map(|w| {
        let until = (w.until != Timestamp::MAX).then_some(w.until);
        serde_json::json!({ "id": w.id, "until": until })
    });
    let deleted = &report.deleted;
    serde_json::json!({
        "system_identifier": report.identity.system.to_string(),
        "superseded": report.superseded,
        "frozen": plan.and_then(|p| p.frozen.as_ref()).map(ToString::to_string),
        "window": {
            "promised_from": plan.and_then(|p| p.window.promised),
            "before": plan.and_then(|p| p.window.before),
            "left": plan.and_then(|p| p.window.left),
        },
        "lost": lost.collect::<Vec<_>>(),
        "kept": kept.collect::<Vec<_>>(),
        "abandoned": report.abandoned,
        "waiting": waiting.collect::<Vec<_>>(),
        "wal_waiting": report.wal_waiting.map(|w| serde_json::json!({ "segments": w.segments, "until": w.until })),
        "deleted": {
            "backups": deleted.backups,
            "partly": deleted.remain,
            "objects": deleted.objects,
            "bytes": deleted.bytes,
            "wal_objects": deleted.wal_objects,
            "wal_bytes": deleted.wal_bytes,
            "leftovers": deleted.leftovers,
        },
        "notes": report.notes,
    })
}

fn reason(reason: Reason) -> String {
    match reason {
        Reason::Window => "window".to_owned(),
        Reason::Stands(period, begin) => format!("{} {begin}", period.word()),
        Reason::Newest => "newest".to_owned(),
        Reason::Pinned => "pinned".to_owned(),
        Reason::Recent => "not sound".to_owned(),
        Reason::Unread => "WAL that cannot be read".to_owned(),
        Reason::Frozen => "frozen".to_owned(),
    }
}
