//! `pitr restore`: from flags to a plan, shown; from a plan to a directory, and what to do next.
//!
//! ```text
//!  flags ─► request, target ─► repository ─► WAL of the old directory stored ─► plan ─► prepare ─┬─► --dry-run: shown
//!                                                                                                └─► perform ─► next steps
//! ```
//! Decisions are `ops::restore`'s; this file chooses the repository, reads times in the operator's zone and speaks. A command that
//! runs as root stays root: it gives what it writes to the user the server runs as, and tries `restore_command` as that user.

mod old;
mod show;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

use crate::cli::archive::compression;
use crate::cli::args::{ActionArg, Common, RestoreArgs, TargetArgs};
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::verify::UNVERIFIED;
use crate::cli::{keyring, output, terminal};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::config::load::Caller;
use crate::error::{Error, Kind, Result};
use crate::ops::Progress;
use crate::ops::facts::Archive;
use crate::ops::plan::{
    PlanBackup, PlanRequest, RecoveryPlan, RecoveryTarget, Refusal, Stop, TimelineChoice, Want,
};
use crate::ops::restore::directory::Place;
use crate::ops::restore::settings::KeyFlags;
use crate::ops::restore::stored::StoredBackup;
use crate::ops::restore::tablespaces::Move;
use crate::ops::restore::{self, Life, Prepared, Purpose, Request, Site};
use crate::pgdata::recovery::Action;
use crate::repo::{Repository, System};
use crate::target::{self, ToSpec};
use crate::wal::{PgTime, SegmentName, SystemId, TimelineId};

/// Reads in flight at most, by default: each holds about 16 MiB.
const MOST_JOBS: usize = 8;

/// Runs the command, from its flags on. Interrupted, it leaves an unfinished directory, which PostgreSQL refuses and a repeated
/// restore takes over.
///
/// # Errors
/// See `ops::restore`: what is refused is refused before anything is written.
pub async fn command(common: &Common, args: &RestoreArgs, cancel: CancellationToken) -> Result<Ended> {
    let context = Context::load(common, Caller::Operator)?;
    let target_dir = target_dir(args, &context.config)?;
    if args.finish {
        let finished = restore::finish(&target_dir)?;
        show::finished(&finished, &target_dir, common.json);
        return Ok(Ended::Well);
    }
    let now = SystemClock.now();
    let server = server_zone(args, &context).await;
    let question = question(args, &context.config, now, server.as_ref())?;
    let progress = terminal(common);
    let deciding = Box::pin(decide(&context, args, &target_dir, &question, now, &progress));
    let prepared = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(Error::interrupted("the restore was interrupted before it wrote anything").hint("repeat the command")),
        decided = deciding => decided?,
    };
    if args.dry_run {
        show::plan(&prepared, &question, common.json);
        return Ok(Ended::Well);
    }
    if !common.json && !common.quiet {
        show::plan(&prepared, &question, false);
    }
    let jobs = args.jobs.filter(|n| *n > 0).unwrap_or_else(default_jobs);
    let report = restore::perform(&prepared, jobs, now, &cancel, &progress).await?;
    show::done(&prepared, &report, &question, common);
    Ok(Ended::Well)
}

/// From the flags to a decided restore. Only WAL of the old data directory is written, and that into the repository.
async fn decide(
    context: &Context,
    args: &RestoreArgs,
    target_dir: &Path,
    question: &PlanRequest,
    now: Timestamp,
    progress: &dyn Progress,
) -> Result<Prepared> {
    let repositories = context.repositories()?;
    let mut request = request(args, target_dir)?;
    let site = site(context, now)?;
    let mut archive = choose(&repositories, args.system_id, progress).await?;
    let purpose = purpose(&mut archive, &request, &site).await?;
    request.purpose = Some(purpose);
    archive.system.require_open().await?;
    if !args.dry_run {
        needs_identity_file(context, &archive)?;
    }
    let old = old::look(&archive, &request, &site, args.without_old_wal).await?;
    let mut warnings = old.warnings(&question.target, args.dry_run);
    warnings.extend(archive.system.is_unverified().then(|| UNVERIFIED.to_owned()));
    if !args.dry_run && purpose == Purpose::Replace {
        let policy = old::Policy {
            compression: compression(&context.config.archive),
            may_lose: args.without_old_wal || question.target != RecoveryTarget::Latest,
        };
        let stored = old.store(&repositories, &policy, progress).await?;
        warnings.extend(stored.warnings);
        if stored.tried {
            archive = Archive::read(&archive.system).await?;
        }
    }
    let plan = match plan(&mut archive, question, request.action).await {
        Ok(plan) => plan,
        Err(error) => {
            // The refusal is about what the archive lacks: this is where it may be.
            let mut elsewhere = old.warnings(&RecoveryTarget::Latest, args.dry_run);
            elsewhere.extend(other_systems(&archive, args.system_id).await);
            elsewhere.iter().for_each(|warning| output::warn(&format!("warning: {warning}")));
            return Err(match reaching(&repositories, &mut archive, question, args.system_id).await {
                Some(name) => {
                    let advice = error.advice().unwrap_or_default().to_owned();
                    error.hint(format!("{advice}\nrepository {name} reaches it: --repository {name}"))
                }
                None => error,
            });
        }
    };
    restore::epochs::check(&archive.system, &plan.segments).await?;
    let mut prepared = prepare(&archive, plan, purpose, &request, &site, warnings).await?;
    prepared.old_wal = old.found;
    Ok(prepared)
}

fn target_dir(args: &RestoreArgs, config: &Config) -> Result<PathBuf> {
    args.target_dir.clone().or_else(|| config.postgres.data_dir.clone()).ok_or_else(|| {
        Error::usage("no directory to restore into")
            .hint("give --target-dir DIR; the configuration names no data_dir")
    })
}

fn request(args: &RestoreArgs, target_dir: &Path) -> Result<Request> {
    let purpose = match (args.replace, args.copy) {
        (true, _) => Some(Purpose::Replace),
        (false, true) => Some(Purpose::Copy),
        (false, false) => None,
    };
    let action = match args.action {
        ActionArg::Promote => Action::Promote,
        ActionArg::Pause => Action::Pause,
        ActionArg::Shutdown => Action::Shutdown,
    };
    let moves = args.tablespace.iter().map(|text| Move::parse(text)).collect::<Result<_>>()?;
    Ok(Request { target_dir: target_dir.to_owned(), purpose, move_aside: args.move_aside, moves, action })
}

/// The server's zone as the newest backup knows it, asked for only where a time is about to be refused for want of one.
async fn server_zone(args: &RestoreArgs, context: &Context) -> Option<TimeZone> {
    let text = args.target.to.as_deref()?;
    if !target::lacks_zone(text, context.config.timezone.as_ref()) {
        return None;
    }
    // What cannot be read only makes the refusal shorter.
    for repository in context.repositories().ok()? {
        let Ok(Some(archive)) = look(&repository, args.system_id).await else { continue };
        let Some(newest) = archive.world.backups.iter().filter(|b| b.restorable).max_by_key(|b| b.stop_time)
        else {
            continue;
        };
        let verdict = archive.backup(&newest.id).cloned()?;
        let (catalogue, _) = StoredBackup::new(archive.system.clone(), verdict).catalogue().await.ok()?;
        return catalogue.and_then(|catalogue| target::of_server(&catalogue.timezone));
    }
    None
}

fn question(
    args: &RestoreArgs,
    config: &Config,
    now: Timestamp,
    server: Option<&TimeZone>,
) -> Result<PlanRequest> {
    let timeline = match args.timeline.as_deref() {
        None => None,
        Some("latest") => Some(TimelineChoice::Latest),
        Some(text) => {
            let number = text.parse().ok().and_then(TimelineId::new);
            Some(TimelineChoice::Number(number.ok_or_else(|| {
                Error::usage(format!("--timeline {text}: it is neither a number nor \"latest\""))
                    .hint("`pitr info` lists the timelines")
            })?))
        }
    };
    Ok(PlanRequest {
        target: recovery_target(&args.target, config, now, server)?,
        timeline,
        backup: args.backup.clone(),
        now: Some(PgTime::from_unix_micros(now.as_microsecond())),
    })
}

/// The target flags as the planner's question. Clap has made sure that there is at most one.
fn recovery_target(
    args: &TargetArgs,
    config: &Config,
    now: Timestamp,
    server: Option<&TimeZone>,
) -> Result<RecoveryTarget> {
    if let Some(text) = &args.to {
        // A TZ that names no zone makes it unknown, not UTC.
        let host = TimeZone::try_system().ok().filter(|zone| !zone.is_unknown());
        let context =
            target::Context { now, configured: config.timezone.as_ref(), host: host.as_ref(), server };
        let spec = target::parse(text, &context).map_err(|e| Error::from(e).context("--to"))?;
        if matches!(spec, ToSpec::At(moment) if moment > now) {
            output::warn(&format!("warning: --to {text:?} lies in the future of this host's clock"));
        }
        return Ok(match spec {
            ToSpec::Latest => RecoveryTarget::Latest,
            ToSpec::At(moment) => RecoveryTarget::Time(PgTime::from_unix_micros(moment.as_microsecond())),
        });
    }
    if let Some(text) = &args.to_lsn {
        return text.parse().map(RecoveryTarget::Lsn).map_err(|e| {
            Error::usage(format!("--to-lsn: {e}"))
                .hint("such as --to-lsn 0/3000060; `pitr info` shows what is stored")
        });
    }
    Ok(match (args.to_xid, args.to_before_xid, &args.to_name) {
        (Some(xid), _, _) => RecoveryTarget::Xid(xid),
        (None, Some(xid), _) => RecoveryTarget::BeforeXid(xid),
        (None, None, Some(name)) => RecoveryTarget::Name(name.clone()),
        (None, None, None) if args.immediate => RecoveryTarget::Immediate,
        (None, None, None) => RecoveryTarget::Latest,
    })
}

fn site(context: &Context, now: Timestamp) -> Result<Site> {
    let (config, common) = (&context.config, &context.common);
    // Resolved by the kernel: the path that exists now, whatever link or PATH led here.
    let binary =
        std::env::current_exe().map_err(|e| Error::failed("cannot tell where this program is").source(e))?;
    Ok(Site {
        binary,
        config: config.path.clone(),
        keys: KeyFlags {
            identity: keyring::identity_for_recovery(common)?,
            fingerprint: common.seal_fingerprint.as_deref().map(|text| text.split_whitespace().collect()),
        },
        data_dir: config.postgres.data_dir.clone(),
        bin_dir: config.postgres.bin_dir.clone(),
        rpo: config.promise.rpo,
        now,
    })
}

/// An encrypted repository is restored from with an identity, and recovery, which PostgreSQL runs, must find it in a file.
fn needs_identity_file(context: &Context, archive: &Archive) -> Result<()> {
    let configured = context.config.keys.as_ref().is_some_and(|keys| keys.identity_file.is_some());
    if archive.system.seal_key().is_none() || context.common.identity.is_some() || configured {
        return Ok(());
    }
    Err(Error::key("recovery needs the identity in a file: PostgreSQL starts restore_command without your environment")
        .hint("put it into a file of the server's user, mode 0600, and give it by --identity FILE or identity_file under [keys]"))
}

/// Reads in flight where nobody said how many.
pub(in crate::cli) fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().saturating_mul(2)).min(MOST_JOBS)
}

/// The first repository that has a restorable backup, the required ones first: an optional one may lack the newest WAL, and nobody
/// would see it. One that cannot be read is passed over, and named.
async fn choose(
    repositories: &[Repository],
    system: Option<u64>,
    progress: &dyn Progress,
) -> Result<Archive> {
    let mut empty = None;
    let mut failed: Option<Error> = None;
    let mut candidates: Vec<&Repository> = repositories.iter().collect();
    candidates.sort_by_key(|repository| !repository.is_required());
    for repository in candidates {
        match look(repository, system).await {
            Ok(Some(archive)) if archive.world.backups.iter().any(PlanBackup::is_offered) => {
                if !repository.is_required() && repositories.iter().any(Repository::is_required) {
                    output::warn(&format!(
                        "warning: repository {} is optional: it may lack WAL that a required one holds",
                        repository.name()
                    ));
                }
                return Ok(archive);
            }
            Ok(Some(archive)) => empty = empty.or(Some(archive)),
            Ok(None) => {}
            Err(error) => {
                progress.note(&format!("repository {} cannot be read: {error}", repository.name()));
                failed = failed.or(Some(error));
            }
        }
    }
    if let Some(error) = failed {
        return Err(error.context("no repository that can be read has a restorable backup"));
    }
    empty.ok_or_else(|| {
        let names: Vec<&str> = repositories.iter().map(Repository::name).collect();
        let what = system.map_or_else(|| "this cluster".to_owned(), |id| format!("system {id}"));
        Error::not_found(format!("{} holds nothing of {what}", names.join(", ")))
            .hint("are URL and cluster right, and is the disk mounted?")
    })
}

/// A repository that reaches what the one that was asked does not: one may keep more than another, or lack less. Not where it only knows less:
/// what the one that was asked found doubtful is so.
async fn reaching(
    repositories: &[Repository],
    asked: &mut Archive,
    question: &PlanRequest,
    system: Option<u64>,
) -> Option<String> {
    let refusal = asked.answer(question).await.ok()?.err()?;
    let lacks_backup = matches!(*refusal, Refusal::TooEarly { .. });
    let lacks = lacks_backup
        || matches!(
            *refusal,
            Refusal::NotCovered { .. }
                | Refusal::Gap { .. }
                | Refusal::NoBackup { .. }
                | Refusal::UnknownBackup { .. }
                | Refusal::BackupNotRestorable { .. }
                | Refusal::UnknownTimeline { .. }
                | Refusal::XidNotFound { .. }
                | Refusal::NameNotFound { .. }
        );
    for repository in repositories.iter().filter(|r| lacks && r.name() != asked.system.repository().name()) {
        let Ok(Some(mut archive)) = look(repository, system).await else { continue };
        let Ok(plan) = archive.plan(question).await else { continue };
        if !lacks_backup || !asked.world.backups.iter().any(|backup| backup.id == plan.backup) {
            return Some(repository.name().to_owned());
        }
    }
    None
}

/// Other systems under the name, such as the one before pg_upgrade: what lies before this one's first backup may be theirs.
async fn other_systems(archive: &Archive, asked: Option<u64>) -> Option<String> {
    if asked.is_some() {
        return None;
    }
    let (own, repository) = (archive.system.identity().system, archive.system.repository());
    let known = repository.identities().await.unwrap_or_default();
    let others: Vec<String> = known
        .iter()
        .filter(|identity| identity.system != own)
        .map(|identity| format!("--system-id {} (PostgreSQL {})", identity.system, identity.major))
        .collect();
    (!others.is_empty()).then(|| {
        format!("repository {} also holds, under this name: {}", repository.name(), others.join(", "))
    })
}

async fn look(repository: &Repository, system: Option<u64>) -> Result<Option<Archive>> {
    let opened: Option<System> = match system {
        None => repository.open_current().await?,
        Some(id) => match repository.identity(SystemId::new(id)).await? {
            Some(_) => Some(repository.open(SystemId::new(id)).await?),
            None => None,
        },
    };
    match opened {
        Some(system) => Archive::read(&system).await.map(Some),
        None => Ok(None),
    }
}

/// Replacement or copy; looks for signs of life in the archive only where they decide.
async fn purpose(archive: &mut Archive, request: &Request, site: &Site) -> Result<Purpose> {
    let place = Place::inspect(&request.target_dir)?;
    place.check_free(request.move_aside)?;
    let life = if request.purpose.is_none() { life(archive).await? } else { None };
    restore::purpose::decide(request.purpose, &place.path, site.data_dir.as_deref(), life, site.rpo, site.now)
}

/// Plans. PostgreSQL heeds an action only at a target: to pause at the end of WAL, the end becomes one.
async fn plan(archive: &mut Archive, question: &PlanRequest, action: Action) -> Result<RecoveryPlan> {
    let plan = archive.plan(question).await?;
    let (Stop::EndOfWal { lsn }, false) = (&plan.stop, action == Action::Promote) else { return Ok(plan) };
    let exact = PlanRequest { target: RecoveryTarget::Lsn(*lsn), ..question.clone() };
    let exact = archive.plan(&exact).await?;
    Ok(RecoveryPlan { target: plan.target, ..exact })
}

/// The newest time that stored WAL or a backup carries.
async fn life(archive: &mut Archive) -> Result<Option<Life>> {
    let size = archive.world.segment_size;
    let newest: Vec<SegmentName> = archive
        .world
        .stored
        .iter()
        .filter_map(|(timeline, line)| Some(SegmentName::new(*timeline, *line.last()?, size)))
        .collect();
    let mut times: Vec<PgTime> = archive.world.backups.iter().map(|b| b.stop_time).collect();
    for name in newest {
        let facts = archive
            .resolve(|world, facts| {
                let listed = world.stored.get(&name.timeline());
                let there = name.number(size).is_ok_and(|n| listed.is_some_and(|line| line.contains(&n)));
                match facts.summaries.get(&name) {
                    Some(summary) => Ok(Some(summary.clone())),
                    None if there => Err(vec![Want::Summary(name)]),
                    None => Ok(None),
                }
            })
            .await?;
        if let Some(facts) = facts {
            times.extend(facts.commits.max);
            times.extend(facts.events.iter().filter_map(|event| event.kind.time()));
        }
    }
    let newest = times.into_iter().max().and_then(|t| Timestamp::from_microsecond(t.unix_micros()).ok());
    Ok(newest.map(|at| Life { at }))
}

async fn prepare(
    archive: &Archive,
    plan: RecoveryPlan,
    purpose: Purpose,
    request: &Request,
    site: &Site,
    warnings: Vec<String>,
) -> Result<Prepared> {
    let verdict = archive.backup(&plan.backup).cloned();
    let verdict = verdict.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("there is no backup {}", plan.backup))
            .hint("`pitr info` lists the backups")
    })?;
    let stored = StoredBackup::new(archive.system.clone(), verdict);
    let planned: Vec<String> = plan.warnings.iter().map(ToString::to_string).collect();
    let mut prepared = restore::prepare(stored, plan, purpose, request, site).await?;
    prepared.warnings = [planned, archive.unused_warnings(), warnings, prepared.warnings].concat();
    for warning in &prepared.warnings {
        output::warn(&format!("warning: {warning}"));
    }
    Ok(prepared)
}
