//! `pitr check`: a line per finding, and an exit code that cron can act on.
//!
//! 0: all is well; 2: at risk; 1: something does not work. `--offline` leaves the server out, for a host that only reads the
//! repository.

use crate::cli::args::{CheckArgs, Common};
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::{operator, output};
use crate::error::{Error, Result};
use crate::ops::check::{self, Finding, Grade};
use crate::ops::init::facts::{ServerFacts, failed};
use crate::pgwire::{Deadlines, Sql};

/// Runs `check`.
///
/// # Errors
/// Kind `Failed` if something does not work; the findings were printed.
pub async fn run(common: &Common, args: &CheckArgs) -> Result<Ended> {
    let context = operator(common)?;
    let repositories = context.repositories()?;
    let mut findings = Vec::new();
    let mut session = None;
    if !args.offline {
        match connect(&context).await {
            Ok((sql, facts)) => {
                findings.extend(check::server(&facts, context.config.promise.rpo));
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
    show(&findings, common.json);
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

fn show(findings: &[Finding], json: bool) {
    let word = |grade: Grade| match grade {
        Grade::Good => "ok",
        Grade::Risk => "at risk",
        Grade::Bad => "FAILED",
    };
    if json {
        let rows: Vec<_> = findings
            .iter()
            .map(|f| serde_json::json!({ "what": f.what, "grade": word(f.grade), "found": f.found, "hint": f.hint }))
            .collect();
        output::json(&serde_json::json!({ "schema": "pitr.check.v1", "findings": rows }));
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
