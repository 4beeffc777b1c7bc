//! `pitr agent`: the resident process, and the question how it goes.
//!
//! Runs in the foreground as the owner of the data directory, under systemd (`Type=notify`) or any supervisor; a socket's directory that is
//! not there is made while pitr is still root. What it notices goes to standard error, as log lines; standard output stays empty.

use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use serde_json::Value;

use super::archive::compression;
use super::privilege;
use super::thin::Door;
use crate::agent::wire::{Answer, Ask};
use crate::agent::{self, Setup};
use crate::cli::args::{AgentArgs, Common};
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::{output, resident};
use crate::config::load::Caller;
use crate::error::{Error, Result};
use crate::ops::words::{bytes, seconds};

/// Runs the command.
///
/// # Errors
/// As [`agent::run`]; `Usage` for a configuration without a data directory, `NotFound` for `--status` where nobody listens.
pub fn run(common: &Common, args: &AgentArgs) -> Result<Ended> {
    let context = Context::load(common, Caller::Operator)?;
    if args.status {
        return status(&context);
    }
    needed(&context)?;
    if let Some(named) = common.repository.first() {
        // archive_command goes by the whole configuration, and would take its yes for all of them.
        return Err(Error::usage(format!(
            "the agent stores in every repository of its configuration, not in {named} alone"
        ))
        .hint(
            "start it without --repository; what need not be stored somewhere is `required = false` there",
        ));
    }
    make_directory(&context)?;
    context.act_as_owner()?;
    let setup = setup(&context)?;
    // Found by its place from now on, wherever it was looked for.
    let common = Common { config: context.config.path.clone(), ..common.clone() };
    let load = move || setup_again(&common);
    let ready = || {
        if let Err(e) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!("systemd cannot be told that the agent is ready: {e}");
        }
    };
    resident(|cancel| async move {
        agent::run(setup, load, ready, &cancel).await?;
        // What it was told to do is done: stopping is no failure.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        Ok(Ended::Well)
    })
}

fn setup_again(common: &Common) -> Result<Setup> {
    setup(&Context::load(common, Caller::Operator)?)
}

/// The data directory of a configuration that an agent can go by.
fn needed(context: &Context) -> Result<&Path> {
    let missing = |what: &str| {
        Error::usage(format!("the agent needs {what}"))
            .hint("`pitr init` writes a configuration with all that is needed; name it with --config")
    };
    if context.config.path.is_none() {
        return Err(missing("a configuration file"));
    }
    let data_dir = context.config.postgres.data_dir.as_deref();
    data_dir.ok_or_else(|| missing("data_dir in the [postgres] section of the configuration"))
}

fn setup(context: &Context) -> Result<Setup> {
    let (config, data_dir) = (&context.config, needed(context)?);
    let keys = config.keys.iter().flat_map(|keys| [keys.host_file.clone(), keys.identity_file.clone()]);
    Ok(Setup {
        config: config.fingerprint.clone(),
        socket: config.agent.socket.clone(),
        data_dir: data_dir.to_owned(),
        repositories: context.repositories()?,
        key_files: keys.flatten().collect(),
        compression: compression(&config.archive),
        push_ahead: usize::try_from(config.archive.push_ahead).unwrap_or(usize::MAX),
        rpo: config.promise.rpo,
    })
}

/// The directory of the socket belongs to the server's user.
fn make_directory(context: &Context) -> Result<()> {
    let Some(directory) = context.config.agent.socket.parent().filter(|dir| !dir.exists()) else {
        return Ok(());
    };
    let failed = |e: std::io::Error| {
        Error::failed(format!("cannot make {}, the directory of the agent's socket", directory.display()))
            .source(e)
            .hint("make it as root, or name another socket in [agent]")
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
    if let Some(owner) = context.owner().filter(|_| privilege::is_root()) {
        // Who may write above could have put a link in its place by now: root gives away the directory, or nothing.
        let plain = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let opened = std::fs::File::options().read(true).custom_flags(plain.bits()).open(directory);
        let given = opened.and_then(|dir| std::os::unix::fs::fchown(dir, Some(owner.uid), Some(owner.gid)));
        given.map_err(failed)?;
    }
    Ok(())
}

fn status(context: &Context) -> Result<Ended> {
    let absent = |socket: &Path| {
        Error::not_found(format!("no agent answers at {}", socket.display()))
            .hint("start it: `pitr agent`, or `systemctl start` of its unit; archive-push works without it, only slower")
    };
    let door = context.config.path.as_deref().and_then(Door::of);
    let Some(door) = door else { return Err(absent(&context.config.agent.socket)) };
    let own = nix::unistd::Uid::effective().as_raw();
    let trusted: Vec<u32> = [own, 0].into_iter().chain(context.owner().map(|account| account.uid)).collect();
    let answer = door.ask(Ask::Status, &trusted).map_err(|e| absent(&door.socket).source(e))?;
    let Answer::Status { json } = answer else { return Err(absent(&door.socket)) };
    let said: Value = serde_json::from_str(&json)
        .map_err(|e| Error::failed("the agent's account of itself cannot be read").source(e))?;
    if context.common.json {
        output::json(&said);
    } else {
        output::say(&as_text(&said));
    }
    let failing = |repository: &Value| !repository["failing"].is_null();
    let troubled = said["repositories"].as_array().is_some_and(|all| all.iter().any(failing));
    let refused = said["refused"].as_u64().is_some_and(|files| files > 0);
    Ok(if troubled || refused || said["at_risk"] == true { Ended::AtRisk } else { Ended::Well })
}

/// How hard it compresses now, and how hard when there is time.
fn effort(said: &Value) -> String {
    match (said["level"].as_i64(), said["configured_level"].as_i64()) {
        (Some(now), Some(configured)) if now < configured => {
            format!("compresses with level {now} while the queue is long, else {configured}\n")
        }
        (Some(now), _) => format!("compresses with level {now}\n"),
        (None, _) => "does not compress\n".to_owned(),
    }
}

fn as_text(said: &Value) -> String {
    let number = |key: &str| said[key].as_u64().unwrap_or(0);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut text = format!(
        "agent {} (pid {}) archives {}\nready {}, not yet stored {}, under way {}\n",
        word(&said["version"]),
        number("pid"),
        word(&said["data_dir"]),
        number("ready"),
        number("waiting"),
        number("under_way"),
    );
    if let Some(first) = said["first_waiting"].as_str() {
        text.push_str(&format!("next {first}\n"));
    }
    if let Some(file) = said["first_refused"]["file"].as_str() {
        let why = word(&said["first_refused"]["why"]).replace('\n', "\n  ");
        text.push_str(&format!("refused {}, the first of them {file}:\n  {why}\n", number("refused")));
    }
    text.push_str(&effort(said));
    if let Some(waits) = said["oldest_waits_seconds"].as_u64() {
        text.push_str(&format!("the oldest waits for {}\n", seconds(waits)));
    }
    if let Some(free) = said["free_bytes"].as_u64() {
        let full = said["full_in_seconds"].as_u64();
        let full = full.map_or_else(String::new, |left| format!(", full in about {}", seconds(left)));
        text.push_str(&format!("pg_wal has {} free{full}\n", bytes(free)));
    }
    for repository in said["repositories"].as_array().into_iter().flatten() {
        let kind = if repository["required"] == true { "required" } else { "optional" };
        let lacks = repository["lacks"].as_u64().unwrap_or(0);
        let state = match repository["failing"].as_str() {
            Some(why) => format!("fails: {why}"),
            None => "works".to_owned(),
        };
        let state = match (repository["behind"] == true, repository["copied"].as_u64()) {
            (true, Some(copied)) => format!("{state}, is being caught up ({copied} files so far)"),
            (true, None) => format!("{state}, is behind"),
            (false, _) => state,
        };
        text.push_str(&format!(
            "repository {} ({kind}): lacks {lacks}, {state}\n",
            word(&repository["name"])
        ));
    }
    text
}
