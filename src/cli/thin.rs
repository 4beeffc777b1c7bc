//! The short way of `archive-push`: ask the agent, and end.
//!
//! ```text
//!  pitr --config FILE archive-push PATH ─► cluster and socket of FILE ─► the agent's answer ─► exit
//!      └ any other form, no agent, a doubt: `None`, and the command goes its ordinary way
//! ```
//! PostgreSQL starts this for each segment, so it costs what it costs to start a program: no runtime, no certificates, no flags beyond the one
//! form that `init` writes. Invariant: a success that is said here was said by an agent of this user or root, for this very text of the
//! configuration.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;

use crate::agent::client::{self, NoAgent};
use crate::agent::wire::{self, Answer, Ask, Question};
use crate::cli::exit::Caller;
use crate::cli::output;
use crate::config::defaults::SOCKET_ROOT;
use crate::config::load::{MAX_BYTES, SYSTEM_FILE, VARIABLE};

/// The two facts of a configuration that are needed to ask. Whatever else is in it, and wrong with it, is the agent's to know.
#[derive(Debug, Deserialize)]
struct Facts {
    cluster: String,
    #[serde(default)]
    agent: Agent,
}

#[derive(Debug, Default, Deserialize)]
struct Agent {
    socket: Option<PathBuf>,
}

/// Where an agent listens, and the configuration to name to it.
#[derive(Debug)]
pub struct Door {
    /// Its socket.
    pub socket: PathBuf,
    /// [`wire::digest`] of the configuration file.
    pub config: String,
}

impl Door {
    /// The door that the configuration file names; `None` if that cannot be told.
    pub fn of(file: &Path) -> Option<Self> {
        let mut text = String::new();
        std::fs::File::open(file).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        let Facts { cluster, agent } = toml::from_str(&text).ok()?;
        let default = || Path::new(SOCKET_ROOT).join(format!("{cluster}.sock"));
        Some(Self { socket: agent.socket.unwrap_or_else(default), config: wire::digest(text.as_bytes()) })
    }

    /// Asks who listens there.
    ///
    /// # Errors
    /// [`NoAgent`].
    pub fn ask(&self, ask: Ask, trusted: &[u32]) -> Result<Answer, NoAgent> {
        let (version, config) = (env!("CARGO_PKG_VERSION").to_owned(), self.config.clone());
        client::ask(&self.socket, trusted, &Question { version, config, ask })
    }
}

/// The exit code, if these arguments are for an agent and one answered.
pub fn answer(args: &[OsString]) -> Option<ExitCode> {
    let (file, path) = push_form(args)?;
    let door = Door::of(&file)?;
    if !door.socket.exists() {
        return None;
    }
    let directory = std::env::current_dir().ok()?;
    let own = nix::unistd::Uid::effective();
    let mut trusted = vec![own.as_raw(), 0];
    if own.is_root() {
        // Root pushes as the owner of the file.
        trusted.extend(std::fs::metadata(&path).ok().map(|found| found.uid()));
    }
    match door.ask(Ask::Push { directory, path }, &trusted) {
        Ok(Answer::Yes { warnings }) => {
            warnings.iter().for_each(|text| output::warn(&format!("warning: {text}")));
            Some(ExitCode::SUCCESS)
        }
        Ok(Answer::No { code, report }) => {
            output::warn(report.trim_end());
            Some(ExitCode::from(Caller::Archiver.code(code)))
        }
        Ok(Answer::Unsure { why }) => {
            output::warn(&format!("the agent leaves this one to archive-push itself: {why}"));
            None
        }
        Ok(Answer::Status { .. }) | Err(NoAgent::Absent) => None,
        Err(e) => {
            output::warn(&format!("warning: archive-push works alone: {e}"));
            None
        }
    }
}

/// Configuration and file of `pitr --config FILE archive-push PATH`, the form that PostgreSQL is given.
fn push_form(args: &[OsString]) -> Option<(PathBuf, PathBuf)> {
    let words: Vec<&OsStr> = args.iter().skip(1).map(OsString::as_os_str).collect();
    let (config, path) = match *words.as_slice() {
        [flag, file, command, path] if flag == "--config" && command == "archive-push" => (Some(file), path),
        [command, flag, file, path] if flag == "--config" && command == "archive-push" => (Some(file), path),
        [command, path] if command == "archive-push" => (None, path),
        _ => return None,
    };
    if path.as_encoded_bytes().starts_with(b"-") {
        return None;
    }
    let variable = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let file = config
        .map(OsStr::to_owned)
        .or_else(variable)
        .map_or_else(|| PathBuf::from(SYSTEM_FILE), PathBuf::from);
    Some((file, PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(words: &[&str]) -> Option<(PathBuf, PathBuf)> {
        push_form(
            &std::iter::once("pitr").chain(words.iter().copied()).map(OsString::from).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn only_the_servers_own_form_goes_the_short_way() {
        let found = Some((PathBuf::from("/f"), PathBuf::from("pg_wal/A")));
        assert_eq!(form(&["--config", "/f", "archive-push", "pg_wal/A"]), found);
        assert_eq!(form(&["archive-push", "--config", "/f", "pg_wal/A"]), found);
        for words in [
            &["--config", "/f", "--json", "archive-push", "pg_wal/A"][..],
            &["--config", "/f", "archive-push", "--help"],
            &["--config", "/f", "archive-get", "A"],
            &["--config", "/f", "archive-push"],
            &["info"],
            &[],
        ] {
            assert_eq!(form(words), None, "{words:?}");
        }
    }

    #[test]
    fn the_door_is_where_the_whole_configuration_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pitr.toml");
        let door = |text: &str| {
            crate::durable::write_replace(&file, text.as_bytes(), 0o600, None).unwrap();
            let door = Door::of(&file);
            let config = crate::config::Config::parse(text, &file);
            if let (Some(door), Ok(config)) = (&door, config) {
                assert_eq!(door.socket, config.agent.socket);
            }
            door
        };
        let rest = "[[repository]]\nname = \"a\"\nurl = \"memory:x\"\n";
        assert_eq!(
            door(&format!("cluster = \"main\"\n{rest}")).unwrap().socket,
            Path::new("/run/pitr/main.sock")
        );
        let named = format!("cluster = \"main\"\n[agent]\nsocket = \"/x/y.sock\"\n{rest}");
        let first = door(&named).unwrap();
        assert_eq!(first.socket, Path::new("/x/y.sock"));
        assert_ne!(first.config, door(&format!("{named}\n")).unwrap().config, "any change counts");
        assert!(door("cluster = ").is_none());
        assert!(Door::of(&dir.path().join("no")).is_none());
    }
}
