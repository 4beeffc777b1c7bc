//! `pitr verify`: what is damaged or lost in the repositories, said in restore points; as text or as one JSON object.
//!
//! Text puts what is wrong last but one and what to do last, above the prompt. A repository that cannot be looked at is no damage:
//! exit 1, unless another one has some (6) or a key is what it lacks (7). Times are in the configured zone in text, RFC 3339 UTC in JSON (`pitr.verify.v1`).

use std::fmt::Write as _;

use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cli::args::{Common, VerifyArgs};
use crate::cli::exit::Ended;
use crate::cli::info::{local, moment};
use crate::cli::output::{self, bytes, say};
use crate::cli::restore::default_jobs;
use crate::cli::{operator, terminal};
use crate::clock::{Clock as _, SystemClock};
use crate::error::{Error, Kind, Result};
use crate::ops::plan::{Gap, Moment, OTHER_IDENTITY, Window};
use crate::ops::verify::{self, Affected, Finding, Folder, Lost, Report, Request, Sample, Subject, Unopened};
use crate::repo::path::BackupId;
use crate::seal::Epoch;

/// Said where only the repository vouches for its own seal key.
pub(in crate::cli) const UNVERIFIED: &str = "UNVERIFIED: nothing but the repository itself vouches for its seal key; --seal-fingerprint takes what the recovery kit prints";
/// Findings and names that text shows; JSON has all that were kept.
const SHOWN: usize = 40;

/// Runs `verify`. Interrupted, it leaves nothing behind.
///
/// # Errors
/// If a repository could not be looked at, and none that could has damage.
pub async fn run(common: &Common, args: &VerifyArgs, cancel: CancellationToken) -> Result<Ended> {
    let context = operator(common)?;
    let request = request(args)?;
    let progress = terminal(common);
    let (mut reports, mut failures) = (Vec::new(), Vec::<Error>::new());
    for repository in context.repositories()? {
        let work = Box::pin(verify::verify(&repository, &request, &progress));
        let done = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::interrupted("the look was interrupted").hint("repeat the command")),
            done = work => done,
        };
        let stopped = match done {
            Ok(mut report) => {
                let stopped = report.stopped.take();
                failures.extend(unread(&report));
                failures.extend(unopened(&report));
                reports.push((report, stopped.is_none()));
                stopped
            }
            Err(e) => Some(e),
        };
        let name = repository.name();
        failures.extend(stopped.map(|e| e.context(format!("repository {name} could not be looked at"))));
    }
    let damaged = reports.iter().any(|(report, _)| report.count() > 0);
    let cluster = context.config.cluster.as_str();
    if reports.is_empty() {
        // Nothing to report: the first failure is the answer.
        return failures.into_iter().next().map_or(Ok(Ended::Well), Err);
    }
    if common.json {
        output::json(&as_json(cluster, &request, &reports, &failures));
    } else {
        let zone = context.config.timezone.clone().unwrap_or(TimeZone::UTC);
        reports.iter().for_each(|(report, whole)| say(&text(cluster, &request, report, *whole, &zone)));
    }
    failures.iter().for_each(|e| output::warn(&e.report()));
    Ok(match (damaged, failures.is_empty()) {
        (true, _) => Ended::Damaged,
        (false, true) => Ended::Well,
        (false, false) if failures.iter().any(|e| e.kind() == Kind::Key) => Ended::Locked,
        (false, false) => Ended::Unsure,
    })
}

/// Packs that nothing could be held against are not clean.
fn unread(report: &Report) -> Option<Error> {
    let ids: Vec<&str> =
        report.folders.iter().flat_map(|folder| &folder.unread).map(BackupId::as_str).collect();
    let (first, count) = (ids.first()?, ids.len());
    let named = if count == 1 { format!("backup {first}") } else { format!("{count} backups") };
    let text = format!(
        "repository {}: the packs of {named} could not be checked without a key: only the encrypted manifest has their digests",
        report.name
    );
    Some(Error::failed(text).hint(
        "give an identity (identity_file under [keys], or --identity FILE); backups taken from now on need none",
    ))
}

/// What no identity at hand opens was not looked into.
fn unopened(report: &Report) -> Vec<Error> {
    let epochs = report.folders.iter().flat_map(|folder| &folder.unopened);
    let error = |(epoch, found): (&Epoch, &Unopened)| {
        let more = found.objects.saturating_sub(1);
        let more = if more > 0 { format!(" and {more} more objects") } else { String::new() };
        let text = format!(
            "repository {}: {}{more} were not looked into: they are sealed with epoch {epoch}, which no identity at hand opens",
            report.name, found.first
        );
        Error::key(text).hint(OTHER_IDENTITY)
    };
    epochs.map(error).collect()
}

fn request(args: &VerifyArgs) -> Result<Request> {
    let day = SystemClock.now().as_second().div_euclid(24 * 60 * 60);
    let day = u64::try_from(day).unwrap_or(0);
    let backup = args.backup.as_deref().map(str::parse).transpose();
    Ok(Request {
        backup: backup.map_err(|e: crate::repo::path::PathError| Error::usage(e.to_string()))?,
        sample: args.sample.as_deref().map_or(Ok(Sample::All), |text| Sample::parse(text, day))?,
        decode: args.decode,
        jobs: args.jobs.filter(|n| *n > 0).unwrap_or_else(default_jobs),
    })
}

fn text(cluster: &str, request: &Request, report: &Report, whole: bool, zone: &TimeZone) -> String {
    let mut text = String::new();
    for folder in &report.folders {
        let major = folder.identity.as_ref().map(|i| format!(", PostgreSQL {}", i.major)).unwrap_or_default();
        let _ = writeln!(
            text,
            "cluster {cluster}, system {}{major}\nrepository {} {}",
            folder.system, report.name, report.url
        );
        let _ = writeln!(text, "{}", extent(request, folder, whole));
        if folder.locked {
            let _ = writeln!(
                text,
                "encrypted, and no identity is at hand: macs and digests were checked, contents were not looked at"
            );
        }
        for epoch in folder.unopened.keys() {
            let _ =
                writeln!(text, "what epoch {epoch} sealed was NOT LOOKED INTO: no identity at hand opens it");
        }
        for id in &folder.unread {
            let _ = writeln!(
                text,
                "backup {id}: its packs WERE NOT CHECKED, which without a key is not possible"
            );
        }
        if folder.unverified {
            let _ = writeln!(text, "{UNVERIFIED}");
        }
        works(&mut text, folder, zone);
        leftovers(&mut text, folder, zone);
        findings(&mut text, &folder.findings, zone);
    }
    if report.unknown_count > 0 {
        let _ = writeln!(text, "{} names that are not pitr's, left alone:", report.unknown_count);
        report.unknown.iter().take(SHOWN).for_each(|key| {
            let _ = writeln!(text, "  {key}");
        });
    }
    findings(&mut text, &report.findings, zone);
    let count = report.count();
    let _ = match (count, whole && is_read(report)) {
        (0, true) => writeln!(text, "no damage found"),
        (0, false) => writeln!(text, "no damage found in what could be looked at, which is not all"),
        (n, _) => writeln!(text, "{n} {} found", if n == 1 { "fault" } else { "faults" }),
    };
    for step in next(report) {
        let _ = writeln!(text, "next: {step}");
    }
    text
}

/// Whether all that was due could be held against something.
fn is_read(report: &Report) -> bool {
    report.folders.iter().all(|folder| folder.unread.is_empty() && folder.unopened.is_empty())
}

fn extent(request: &Request, folder: &Folder, whole: bool) -> String {
    let extent = folder.extent;
    let how = match request.sample {
        Sample::All => String::new(),
        Sample::Nothing => ", small objects and manifests alone".to_owned(),
        Sample::Bucket { of, today } => format!(", part {} of {of} that is due today", today + 1),
    };
    let what = match &request.backup {
        Some(id) => format!("backup {id}: "),
        None => String::new(),
    };
    let decoded = if request.decode { "; records decoded, files compared" } else { "" };
    let stopped = if whole { "" } else { "; the look ended before all was seen" };
    format!(
        "{what}{} objects there, {} read whole and checked ({}{how}){decoded}{stopped}",
        extent.listed,
        extent.read,
        bytes(extent.bytes)
    )
}

/// What can be restored as things are.
fn works(text: &mut String, folder: &Folder, zone: &TimeZone) {
    for backup in &folder.backups {
        let _ = writeln!(
            text,
            "backup {} {}",
            backup.id,
            match (backup.restorable, backup.corrupt) {
                (true, false) => "is restorable",
                (true, true) => "holds damaged pages of the server: it is restored only by its name",
                (false, _) => "IS NOT RESTORABLE",
            }
        );
    }
    for window in &folder.windows {
        for span in &window.spans {
            let _ = writeln!(
                text,
                "can be restored: {} to {}, on timeline {}",
                when(&span.earliest, zone),
                when(&span.latest, zone),
                window.timeline
            );
            if let Some(gap) = &span.gap {
                let _ = writeln!(text, "  then a gap: {gap}");
            }
        }
    }
    if folder.windows.is_empty() {
        text.push_str("nothing can be restored\n");
    }
}

fn leftovers(text: &mut String, folder: &Folder, zone: &TimeZone) {
    for left in &folder.leftovers {
        let _ = writeln!(
            text,
            "left over: {} ({}), {} objects, {}",
            left.of,
            left.why,
            left.objects,
            bytes(left.bytes)
        );
    }
    for known in &folder.known {
        let _ = writeln!(text, "known gap: {} was accepted as damaged", known.object);
        known.lost.iter().for_each(|lost| lost_line(text, lost, zone));
    }
}

fn findings(text: &mut String, findings: &verify::Findings, zone: &TimeZone) {
    for finding in findings.kept.iter().take(SHOWN) {
        let through = finding.through.as_ref().map(|key| format!(" to {key}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "\n{} {}{through}\n  {}",
            finding.fault.word().to_uppercase(),
            finding.object,
            finding.what
        );
        finding.affected.iter().for_each(|affected| {
            let _ = writeln!(text, "  {}", affected_line(finding, affected));
        });
        finding.lost.iter().for_each(|lost| lost_line(text, lost, zone));
        if finding.affected.is_empty() && finding.lost.is_empty() {
            text.push_str("  no restore point depends on it\n");
        }
    }
    let hidden = findings.count.saturating_sub(u64::try_from(SHOWN).unwrap_or(0));
    if hidden > 0 {
        let _ = writeln!(text, "\nand {hidden} more (--json lists up to {})", verify::finding::MAX_FINDINGS);
    }
    if findings.count > 0 {
        text.push('\n');
    }
}

fn affected_line(finding: &Finding, affected: &Affected) -> String {
    match (&finding.subject, affected.restorable) {
        (Subject::Extra(_), true) => {
            format!("backup {} still restores, but not all that belongs to it is there", affected.id)
        }
        (_, true) => format!("backup {} still restores", affected.id),
        (_, false) => format!("backup {} CAN NO LONGER BE RESTORED", affected.id),
    }
}

fn lost_line(text: &mut String, lost: &Lost, zone: &TimeZone) {
    let on = format!("on timeline {}", lost.timeline);
    let _ = match (lost.from, lost.to, lost.resumes) {
        (Some(from), Some(to), true) => {
            writeln!(text, "  lost: after {} and before {}, {on}", when(&from, zone), when(&to, zone))
        }
        (Some(from), Some(to), false) => {
            writeln!(
                text,
                "  lost: after {} up to the end of the archive, {}, {on}",
                when(&from, zone),
                when(&to, zone)
            )
        }
        (Some(from), None, _) => writeln!(text, "  lost: everything after {}, {on}", when(&from, zone)),
        (None, Some(to), true) => writeln!(text, "  lost: everything before {}, {on}", when(&to, zone)),
        (None, _, _) => writeln!(text, "  lost: everything {on}"),
    };
}

fn when(at: &Moment, zone: &TimeZone) -> String {
    match at.time {
        Some(time) => format!("{} (LSN {})", local(moment(time), zone), at.lsn),
        None => format!("LSN {}", at.lsn),
    }
}

/// What to do, most urgent first.
fn next(report: &Report) -> Vec<String> {
    let mut steps = Vec::new();
    let faults: Vec<&Finding> = report.folders.iter().flat_map(|f| &f.findings.kept).collect();
    let costs = |f: &&Finding| !f.lost.is_empty() || f.affected.iter().any(|a| !a.restorable);
    if faults.iter().any(costs) {
        steps.push("pitr backup --full    (a new line of restore points that needs none of this)".to_owned());
    }
    if report.count() > 0 {
        steps.push(
            "pitr verify --repository OTHER    (a good copy of the object may be there; the damaged one is never replaced by pitr: \
             delete it by hand, then put the good one in its place)"
                .to_owned(),
        );
    }
    steps
}

fn as_json(cluster: &str, request: &Request, reports: &[(Report, bool)], failures: &[Error]) -> Value {
    let sample = match request.sample {
        Sample::All => Value::Null,
        Sample::Nothing => json!({ "of": 0 }),
        Sample::Bucket { of, today } => json!({ "of": of, "part": today }),
    };
    json!({
        "schema": "pitr.verify.v1",
        "cluster": cluster,
        "backup": request.backup,
        "sample": sample,
        "decoded": request.decode,
        "clean": failures.is_empty() && reports.iter().all(|(report, _)| report.count() == 0),
        "errors": failures.iter().map(Error::report).collect::<Vec<_>>(),
        "repositories": reports.iter().map(|(report, whole)| repository_json(report, *whole)).collect::<Vec<_>>(),
    })
}

fn repository_json(report: &Report, whole: bool) -> Value {
    let folders = report.folders.iter().map(folder_json);
    json!({
        "name": report.name,
        "url": report.url,
        "complete": whole && is_read(report),
        "faults": report.count(),
        "systems": folders.collect::<Vec<_>>(),
        "findings": report.findings.kept.iter().map(finding_json).collect::<Vec<_>>(),
        "unknown": report.unknown,
        "unknown_count": report.unknown_count,
        "next": next(report),
    })
}

fn folder_json(folder: &Folder) -> Value {
    let leftovers = folder
        .leftovers
        .iter()
        .map(|left| json!({ "of": left.of, "why": left.why, "objects": left.objects, "bytes": left.bytes }));
    let known = folder.known.iter().map(
        |known| json!({ "object": known.object, "lost": known.lost.iter().map(lost_json).collect::<Vec<_>>() }),
    );
    let backups = folder
        .backups
        .iter()
        .map(|backup| json!({ "id": backup.id, "restorable": backup.restorable, "corrupt": backup.corrupt }));
    json!({
        "system_identifier": folder.system.to_string(),
        "encrypted": folder.identity.as_ref().map(|identity| identity.sealed),
        "contents_read": !folder.locked && folder.unopened.is_empty(),
        "epochs_unopened": folder.unopened.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "packs_unread": folder.unread,
        "unverified": folder.unverified,
        "objects": folder.extent.listed,
        "objects_read": folder.extent.read,
        "bytes_read": folder.extent.bytes,
        "backups": backups.collect::<Vec<_>>(),
        "windows": folder.windows.iter().map(window_json).collect::<Vec<_>>(),
        "faults": folder.findings.count,
        "findings": folder.findings.kept.iter().map(finding_json).collect::<Vec<_>>(),
        "leftovers": leftovers.collect::<Vec<_>>(),
        "known_gaps": known.collect::<Vec<_>>(),
    })
}

fn window_json(window: &Window) -> Value {
    let spans = window.spans.iter().map(|span| {
        json!({
            "earliest": moment_json(&span.earliest),
            "latest": moment_json(&span.latest),
            "backups": span.backups,
            "gap": span.gap.as_ref().map(|gap: &Gap| gap.to_string()),
        })
    });
    json!({ "timeline": window.timeline, "spans": spans.collect::<Vec<_>>() })
}

fn finding_json(finding: &Finding) -> Value {
    let affected = finding.affected.iter().map(|a| json!({ "id": a.id, "restorable": a.restorable }));
    json!({
        "fault": finding.fault.word(),
        "object": finding.object,
        "through": finding.through,
        "what": finding.what,
        "backups": affected.collect::<Vec<_>>(),
        "lost": finding.lost.iter().map(lost_json).collect::<Vec<_>>(),
    })
}

fn lost_json(lost: &Lost) -> Value {
    json!({
        "timeline": lost.timeline,
        "from": lost.from.as_ref().map(moment_json),
        "to": lost.to.as_ref().map(moment_json),
        "resumes": lost.resumes,
    })
}

fn moment_json(at: &Moment) -> Value {
    json!({ "lsn": at.lsn, "time": at.time.map(|time| moment(time).to_string()), "timeline": at.timeline })
}
