//! `pitr check`: a line per finding, and an exit code that cron can act on.
//!
//! 0: all is well; 2: at risk; 1: something does not work. `--offline` leaves the server out, for a host that only reads the
//! repository. `--attack` asks another question ([`super::attack`]). `--json` adds the numbers that the live findings are made of, for monitoring.

use serde_json::{Value, json};

use crate::cli::args::{CheckArgs, Common};
use crate::cli::attack;
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::{operator, output};
use crate::error::{Error, Result};
use crate::ops::check::live::{self, Holder, Live};
use crate::ops::check::{self, Finding, Grade, settings};
use crate::ops::init::facts::{ServerFacts, failed};
use crate::pgwire::{Deadlines, Sql};

/// Runs `check`.
///
/// # Errors
/// Kind `Failed` if something does not work; the findings were printed.
pub async fn run(common: &Common, args: &CheckArgs) -> Result<Ended> {
    let context = operator(common)?;
    if args.attack {
        return attack::run(&context, common).await;
    }
    let repositories = context.repositories()?;
    let mut findings = Vec::new();
    let (mut session, mut numbers) = (None, Value::Null);
    if !args.offline {
        match connect(&context).await {
            Ok((mut sql, facts)) => {
                let (rpo, data_dir) =
                    (context.config.promise.rpo, context.config.postgres.data_dir.as_deref());
                findings.extend(settings::server(&facts, rpo));
                match Live::read(&mut sql, &facts, data_dir).await {
                    Ok(read) => {
                        findings.extend(live::judge(&facts, &read, rpo));
                        numbers = numbers_of(&facts, &read);
                    }
                    Err(e) => findings.push(Finding::failed("server", &e)),
                }
                session = Some((sql, facts));
            }
            Err(e) => findings.push(Finding::failed("server", &e)),
        }
    }
    for repository in &repositories {
        findings.extend(check::repository(repository, session.as_ref().map(|(_, facts)| facts)).await);
    }
    let sound = findings.iter().all(|f| f.grade != Grade::Bad);
    if let Some((sql, facts)) = session.as_mut().filter(|_| sound) {
        findings.push(check::round_trip(sql, facts, &repositories).await);
    }
    show(&findings, &numbers, common.json);
    match findings.iter().map(|f| f.grade).max().unwrap_or(Grade::Good) {
        Grade::Good => Ok(Ended::Well),
        Grade::Risk => Ok(Ended::AtRisk),
        Grade::Bad => Err(Error::failed("check found something that does not work")
            .hint("each line above has its own advice")),
    }
}

async fn connect(context: &Context) -> Result<(Sql, ServerFacts)> {
    let info = context.conninfo()?;
    let mut sql = Sql::connect(&info, &Deadlines::default()).await.map_err(failed)?;
    let facts = ServerFacts::read(&mut sql).await?;
    Ok((sql, facts))
}

/// What monitoring wants to plot. Sizes are bytes; what is not known is null.
fn numbers_of(facts: &ServerFacts, live: &Live) -> Value {
    let archiver = &facts.archiver;
    let queue = live.queue.as_ref().map(|queue| {
        json!({
            "files": queue.files,
            "segments": queue.segments,
            "bytes": queue.bytes,
            "oldest": queue.oldest,
            "oldest_seconds": queue.oldest_seconds,
        })
    });
    let (holder, slot) = match &live.holder {
        Some(Holder::Archiver) => (Some("archiver"), None),
        Some(Holder::Slot(name)) => (Some("slot"), Some(name)),
        None => (None, None),
    };
    json!({
        "archiver": {
            "failing": live.fails(facts),
            "failed_count": archiver.failures,
            "last_failed": archiver.last_failed,
            "last_failed_seconds": archiver.failed_ago,
            "last_archived": archiver.last_archived,
            "last_archived_seconds": archiver.archived_ago,
        },
        "queue": queue,
        "pg_wal": {
            "free_bytes": live.room.map(|room| room.free),
            "growth_bytes_per_second": live.growth,
            "seconds_to_full": live.room.and_then(|room| room.seconds_to_full()),
            "held_by": holder,
            "held_by_slot": slot,
        },
    })
}

fn show(findings: &[Finding], numbers: &Value, json: bool) {
    let word = |grade: Grade| match grade {
        Grade::Good => "ok",
        Grade::Risk => "at risk",
        Grade::Bad => "FAILED",
    };
    if json {
        let rows: Vec<_> = findings
            .iter()
            .map(|f| json!({ "what": f.what, "grade": word(f.grade), "found": f.found, "hint": f.hint }))
            .collect();
        output::json(&json!({ "schema": "pitr.check.v1", "findings": rows, "server": numbers }));
        return;
    }
    let mut text = String::new();
    for finding in findings {
        text.push_str(&format!("{:8} {:18} {}\n", word(finding.grade), finding.what, finding.found));
        if let Some(hint) = &finding.hint {
            text.push_str(&format!("{:27} {hint}\n", ""));
        }
    }
    output::say(&text);
}
