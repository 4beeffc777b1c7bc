//! The short way of `archive-push` and `archive-get`: ask who has the answer, and end.
//!
//! ```text
//!  pitr --config FILE archive-push PATH ──────► the agent's answer ─► exit
//!  pitr ... archive-get FILE DEST ──► the agent, else who fetches ahead in pg_wal/pitr-spool ─► rename onto DEST ─► exit
//!      └ any other form, nobody there, a doubt: `None`, and the command goes its ordinary way
//! ```
//! PostgreSQL starts this for each segment, so it costs what it costs to start a program: no runtime, no certificates, no flags beyond those
//! that `init` and `restore` write. Invariant: a success that is said here was said by a process of this user or root, which goes by this
//! very text of the configuration.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;

use crate::agent::client::{self, NoAgent};
use crate::agent::wire::{Answer, Ask, Errand, Question};
use crate::cli::archive::{STANDBY_SIGNAL, end_of_standby};
use crate::cli::asker::Asker;
use crate::cli::exit::Caller;
use crate::cli::output;
use crate::config::defaults::SOCKET_ROOT;
use crate::config::load::{MAX_BYTES, SYSTEM_FILE, VARIABLE};
use crate::config::{fingerprint, fingerprint_of_flags};
use crate::durable;
use crate::error::Kind;

/// Where who fetches ahead for one recovery listens, below the data directory.
pub const SPOOL_SOCKET: &str = "pg_wal/pitr-spool/socket";

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
    /// [`fingerprint`] of the configuration.
    pub config: String,
}

impl Door {
    /// The door that the configuration file names; `None` if that cannot be told.
    pub fn of(file: &Path) -> Option<Self> {
        let mut text = String::new();
        std::fs::File::open(file).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        Self::parse(&text)
    }

    /// The door that the text of a configuration names.
    pub fn parse(text: &str) -> Option<Self> {
        let Facts { cluster, agent } = toml::from_str(text).ok()?;
        let default = || Path::new(SOCKET_ROOT).join(format!("{cluster}.sock"));
        Some(Self { socket: agent.socket.unwrap_or_else(default), config: fingerprint(text.as_bytes()) })
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
    let words = args.get(1..)?;
    if !words.iter().any(|word| word == "archive-push" || word == "archive-get") {
        return None;
    }
    let form = Form::parse(words)?;
    match form.files.as_slice() {
        [path] if form.command == "archive-push" && form.is_plain() => push(&form, path),
        [file, destination] if form.command == "archive-get" => get(&form, file.to_str()?, destination),
        _ => None,
    }
}

fn push(form: &Form, path: &Path) -> Option<ExitCode> {
    let door = Door::of(&form.file()).filter(|door| door.socket.exists())?;
    let directory = std::env::current_dir().ok()?;
    let own = nix::unistd::Uid::effective();
    let mut trusted = vec![own.as_raw(), 0];
    if own.is_root() {
        // Root pushes as the owner of the file.
        trusted.extend(std::fs::metadata(path).ok().map(|found| found.uid()));
    }
    match heard(door.ask(Ask::Push { directory, path: path.to_owned() }, &trusted), form)? {
        Answer::Yes { warnings } => {
            warnings.iter().for_each(|text| output::warn(&format!("warning: {text}")));
            Some(ExitCode::SUCCESS)
        }
        Answer::No { code, report } => {
            output::warn(report.trim_end());
            Some(ExitCode::from(Caller::Archiver.code(code)))
        }
        _ => None,
    }
}

fn get(form: &Form, file: &str, destination: &Path) -> Option<ExitCode> {
    let door = match form.cluster.as_deref() {
        Some(cluster) => Door {
            socket: PathBuf::new(),
            config: fingerprint_of_flags(&form.repositories, cluster.to_str()?),
        },
        None => Door::of(&form.file())?,
    };
    let repository = match form.repositories.as_slice() {
        _ if form.cluster.is_some() => None,
        [] => None,
        [one] => Some(one.clone()),
        _ => return None,
    };
    let errand = Errand {
        directory: std::env::current_dir().ok()?,
        repository,
        timeline: form.timeline,
        until: form.until.clone(),
        system: form.system,
        seal: form.seal.clone(),
    };
    let beside = Door { socket: PathBuf::from(SPOOL_SOCKET), config: door.config.clone() };
    let asker = Asker::at_first();
    let own = nix::unistd::Uid::effective().as_raw();
    for door in [door, beside].into_iter().filter(|door| door.socket.exists()) {
        let ask = Ask::Get { file: file.to_owned(), errand: errand.clone() };
        match heard(door.ask(ask, &[own, 0]), form) {
            Some(Answer::Absent) => return Some(ExitCode::from(1)),
            // The next one may ask for another file under this very name by now (RECOVERY.md 18).
            Some(Answer::Spooled { .. }) if !asker.waits() => {
                output::warn(&format!("error: who asked for {file} is gone: nothing was put in its place"));
                return Some(ExitCode::from(Caller::Recovery.failure(Kind::Failed)));
            }
            Some(Answer::Spooled { path }) => match std::fs::rename(&path, destination) {
                Ok(()) => {
                    durable::crash_point("thin-moved");
                    return Some(ExitCode::SUCCESS);
                }
                Err(e) => output::warn(&format!("warning: cannot take {}: {e}", path.display())),
            },
            Some(Answer::No { code, report }) => {
                let report = report.trim_end();
                if Path::new(STANDBY_SIGNAL).exists() {
                    return Some(ExitCode::from(end_of_standby(report)));
                }
                output::warn(report);
                return Some(ExitCode::from(Caller::Recovery.code(code)));
            }
            _ => {}
        }
    }
    None
}

/// The answer, if it is one.
fn heard(answer: Result<Answer, NoAgent>, form: &Form) -> Option<Answer> {
    match answer {
        Ok(Answer::Unsure { why }) => {
            output::warn(&format!("the agent leaves this one to {} itself: {why}", form.command));
            None
        }
        Ok(Answer::Elsewhere) | Err(NoAgent::Absent) => None,
        Ok(answer) => {
            durable::crash_point("thin-answered");
            Some(answer)
        }
        Err(e) => {
            output::warn(&format!("warning: {} works alone: {e}", form.command));
            None
        }
    }
}

/// The arguments that PostgreSQL is given.
#[derive(Debug, Default, PartialEq, Eq)]
struct Form {
    command: String,
    config: Option<PathBuf>,
    repositories: Vec<String>,
    cluster: Option<OsString>,
    timeline: Option<u32>,
    until: Option<String>,
    system: Option<u64>,
    seal: Option<String>,
    /// `--identity` was given.
    identity: bool,
    files: Vec<PathBuf>,
}

impl Form {
    /// `None` for whatever is not understood here.
    fn parse(words: &[OsString]) -> Option<Self> {
        let mut form = Self::default();
        let mut words = words.iter().map(OsString::as_os_str);
        while let Some(word) = words.next() {
            let mut text = || words.next()?.to_str().map(str::to_owned);
            match word.to_str() {
                Some("--config") => form.config = Some(PathBuf::from(words.next()?)),
                Some("--cluster") => form.cluster = Some(words.next()?.to_owned()),
                Some("--repository") => form.repositories.push(text()?),
                Some("--timeline") => form.timeline = Some(text()?.parse().ok()?),
                Some("--until") => form.until = Some(text()?),
                Some("--seal-fingerprint") => form.seal = Some(text()?),
                // Which key opens it is of no matter to who has it already.
                Some("--identity") => form.identity = words.next().is_some(),
                Some("--system-id") => form.system = Some(text()?.parse().ok()?),
                Some(flag) if flag.starts_with('-') => return None,
                Some(command) if form.command.is_empty() => command.clone_into(&mut form.command),
                _ => form.files.push(PathBuf::from(word)),
            }
        }
        // A file and flags that contradict it are for the ordinary way to judge.
        (form.config.is_none() || form.cluster.is_none()).then_some(form)
    }

    /// Without the flags that only `archive-get` knows, or that choose repositories.
    fn is_plain(&self) -> bool {
        let Self { repositories, cluster, timeline, until, system, seal, identity, .. } = self;
        !identity
            && seal.is_none()
            && repositories.is_empty()
            && cluster.is_none()
            && timeline.is_none()
            && until.is_none()
            && system.is_none()
    }

    /// The configuration file.
    fn file(&self) -> PathBuf {
        let variable = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(variable).unwrap_or_else(|| PathBuf::from(SYSTEM_FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(words: &[&str]) -> Option<Form> {
        Form::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn only_the_servers_own_forms_go_the_short_way() {
        let found = form(&["--config", "/f", "archive-push", "pg_wal/A"]).unwrap();
        assert!(found.command == "archive-push" && found.is_plain());
        assert_eq!(
            (found.file(), found.files.as_slice()),
            (PathBuf::from("/f"), &[PathBuf::from("pg_wal/A")][..])
        );
        assert_eq!(form(&["archive-push", "--config", "/f", "pg_wal/A"]), Some(found));
        let restore = [
            "archive-get",
            "--config",
            "/f",
            "--repository",
            "r",
            "--timeline",
            "3",
            "--system-id",
            "42",
            "--until",
            "0/5",
            "A",
            "pg_wal/RECOVERYXLOG",
        ];
        let found = form(&restore).unwrap();
        assert_eq!((found.timeline, found.system, found.until.as_deref()), (Some(3), Some(42), Some("0/5")));
        assert!(!found.is_plain() && found.files.len() == 2 && found.repositories == ["r"]);
        for words in [
            &["--config", "/f", "--json", "archive-push", "pg_wal/A"][..],
            &["--config=/f", "archive-push", "pg_wal/A"],
            &["--config", "/f", "archive-push", "--help"],
            &["--config", "/f", "--cluster", "x", "archive-push", "A"],
            &["archive-get", "--timeline", "x", "A", "B"],
            &["--config"],
        ] {
            assert_eq!(form(words), None, "{words:?}");
        }
        assert_eq!(answer(&["pitr", "info"].map(OsString::from)), None);
    }

    #[test]
    fn the_door_is_where_the_whole_configuration_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pitr.toml");
        let door = |text: &str| {
            durable::write_replace(&file, text.as_bytes(), 0o600, None).unwrap();
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
