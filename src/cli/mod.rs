//! The command line: flags, text and JSON, exit codes. A file per command.
//!
//! ```text
//!  args ─ Caller (whose exit codes?) ─ thin (an agent's answer?) ─ clap ─ configuration ─ step down from root ─ ops::… ─ text or JSON ─ exit code
//! ```
//! The first step comes before parsing because even a usage error of `archive-get` must stop recovery (`exit.rs`). Nothing below
//! this module prints, reads the environment or knows about exit codes.

pub mod accept;
pub mod agent;
pub mod ahead;
pub mod archive;
pub mod args;
mod asker;
pub mod attack;
pub mod backup;
pub mod check;
pub mod context;
pub mod demo;
pub mod exit;
pub mod expire;
pub mod info;
pub mod init;
pub mod key;
pub mod keyring;
pub mod output;
pub mod pin;
pub mod privilege;
pub mod progress;
pub mod restore;
pub mod sql;
pub mod thin;
pub mod verify;

use std::ffi::OsString;
use std::future::Future;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use args::{Cli, Command};
use context::Context;
use exit::{Caller, Ended};
use progress::{Talk, Terminal};

/// Runs the program with `args` (the program's name first) and returns its exit code.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let caller = Caller::of(&args);
    // A panic unwinds to here, so that it ends with the code that its caller reads rightly; the hook has printed where it was.
    let code = std::panic::catch_unwind(move || closed(args, caller)).unwrap_or_else(|_| {
        output::warn(DEFECT);
        ExitCode::from(caller.panic())
    });
    if code == ExitCode::SUCCESS && output::is_lost() {
        return ExitCode::from(caller.failure(crate::error::Kind::Failed));
    }
    code
}

/// How long file work that is still under way is waited for at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a person should know after a panic.
const DEFECT: &str = "error: pitr met a defect of its own and stopped; the lines above say where
HINT: what was not reported as done is not done, and can be repeated; please report the lines above";

/// Runs where no other process looks in: keys, passwords and credentials may come into this one's memory.
fn closed(args: Vec<OsString>, caller: Caller) -> ExitCode {
    if let Err(e) = privilege::no_core_dumps().and_then(|()| keyring::refuse_secrets(&args)) {
        let code = caller.failure(e.kind());
        output::error(e, code, args.iter().any(|arg| arg == "--json"));
        return ExitCode::from(code);
    }
    parse_and_run(args, caller)
}

fn parse_and_run(args: Vec<OsString>, caller: Caller) -> ExitCode {
    if let Some(code) = thin::answer(&args) {
        return code;
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return usage(&e, caller),
    };
    log_to_stderr(cli.common.verbose);
    let json = cli.common.json;
    match dispatch(cli) {
        Ok(ended) => ended.into(),
        Err(e) => {
            let code = caller.failure(e.kind());
            output::error(e, code, json);
            ExitCode::from(code)
        }
    }
}

/// Help and version are answers; everything else is a usage error, whose code depends on who reads it.
fn usage(error: &clap::Error, caller: Caller) -> ExitCode {
    if error.use_stderr() {
        output::warn(error.render().to_string().trim_end());
        return ExitCode::from(caller.failure(crate::error::Kind::Usage));
    }
    output::say(&error.render().to_string());
    // PostgreSQL never asks for help: a restore_command that does is wrong, and must not read as "delivered".
    if caller == Caller::Person {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(caller.failure(crate::error::Kind::Usage))
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    // Fails only if a logger is set already, as in tests.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        // PostgreSQL's log is no terminal.
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        // It would tell of a standard error that is gone on that standard error, and panic.
        .log_internal_errors(false)
        .try_init();
}

fn dispatch(cli: Cli) -> Result<Ended, Error> {
    let common = cli.common;
    match cli.command {
        Command::ArchivePush(args) => alone(archive::push(&common, &args)),
        Command::ArchiveGet(args) => alone(archive::get(&common, &args)),
        Command::Agent(args) => agent::run(&common, &args),
        Command::FetchAhead(args) => Ok(ahead::run(&common, &args)),
        Command::Accept(args) => with_threads(|_| accept::run(&common, &args)),
        Command::Demo(args) => demo::run(&args, common.json),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pitr", &mut text);
            output::say(&String::from_utf8_lossy(&text));
            Ok(Ended::Well)
        }
        Command::Man => {
            let mut text = Vec::new();
            let render = clap_mangen::Man::new(Cli::command()).render(&mut text);
            render.map_err(|e| Error::failed("cannot render the manual page").source(e))?;
            output::say(&String::from_utf8_lossy(&text));
            Ok(Ended::Well)
        }
        Command::ExecAs { uid, gid, program } => {
            Err(privilege::exec_as(&privilege::Account::of_ids(uid, gid), &program))
        }
        Command::Init(args) => init::run(&common, &args),
        Command::Backup(args) => backup::run(&common, &args),
        Command::Restore(args) => with_threads(|cancel| restore::command(&common, &args, cancel)),
        Command::Check(args) => with_threads(|_| check::run(&common, &args)),
        Command::Info(args) => with_threads(|_| info::run(&common, &args)),
        Command::Verify(args) => with_threads(|cancel| verify::run(&common, &args, cancel)),
        Command::Expire(args) => with_threads(|cancel| expire::run(&common, &args, cancel)),
        Command::Key(args) => with_threads(|_| async move { key::run(&common, &args).await }),
        Command::Pin(args) => with_threads(|_| pin::pin(&common, &args)),
        Command::Unpin(args) => with_threads(|_| pin::unpin(&common, &args)),
    }
}

/// Runs on this thread, with SIGTERM and SIGINT at their defaults: what PostgreSQL starts must die when it says so, and starting
/// more threads costs more than they would gain for one segment. File work that was given up and hangs keeps it no longer than `FAREWELL`.
fn alone(work: impl Future<Output = Result<Ended, Error>>) -> Result<Ended, Error> {
    let runtime = runtime(&mut tokio::runtime::Builder::new_current_thread())?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(FAREWELL);
    done
}

/// As [`with_threads`], for what stays until it is told to end. File work that hangs (a network file system whose server is gone) keeps it no
/// longer than `FAREWELL`: what is cut off is as after a kill -9, which loses nothing that was said yes to.
pub fn resident<F>(work: impl FnOnce(CancellationToken) -> F) -> Result<Ended, Error>
where
    F: Future<Output = Result<Ended, Error>>,
{
    let runtime = runtime(&mut tokio::runtime::Builder::new_multi_thread())?;
    let done = runtime.block_on(until_told(work));
    runtime.shutdown_timeout(FAREWELL);
    done
}

/// Runs on several threads; Ctrl-C and SIGTERM cancel, so that nothing half-done is left that could be told apart from a crash.
pub fn with_threads<F>(work: impl FnOnce(CancellationToken) -> F) -> Result<Ended, Error>
where
    F: Future<Output = Result<Ended, Error>>,
{
    // Dropping it waits for file work that has begun: what a command made is there when it ends.
    runtime(&mut tokio::runtime::Builder::new_multi_thread())?.block_on(until_told(work))
}

async fn until_told<F>(work: impl FnOnce(CancellationToken) -> F) -> Result<Ended, Error>
where
    F: Future<Output = Result<Ended, Error>>,
{
    let cancel = CancellationToken::new();
    let watched = cancel.clone();
    // Before any work: whoever is told to end while something of it lies there takes it away.
    let signals = Signals::listen();
    let signals = tokio::spawn(async move {
        let Ok(mut signals) = signals else { return };
        signals.next().await;
        watched.cancel();
        // A second signal means: at once.
        signals.next().await;
        std::process::exit(i32::from(crate::error::Kind::Interrupted.exit_code()));
    });
    let done = work(cancel).await;
    signals.abort();
    done
}

/// Ctrl-C and SIGTERM, from [`Signals::listen`] on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn runtime(builder: &mut tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Error> {
    builder.enable_all().build().map_err(|e| Error::failed("cannot start the runtime").source(e))
}

/// What a command says besides its result.
pub fn terminal(common: &args::Common) -> Terminal {
    let talk = match (common.quiet || common.json, common.verbose) {
        (true, _) => Talk::Quiet,
        (false, 0) => Talk::Normal,
        (false, _) => Talk::Verbose,
    };
    Terminal::new(talk)
}

/// The configuration as an operator's command sees it, with root stepped down.
pub fn operator(common: &args::Common) -> Result<Context, Error> {
    let context = Context::load(common, crate::config::load::Caller::Operator)?;
    context.act_as_owner()?;
    Ok(context)
}
