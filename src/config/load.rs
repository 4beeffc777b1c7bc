//! Finding and reading the configuration file, and the rule about files that hold secrets.
//!
//! Order: `--config FILE`, `$PITR_CONFIG`, `./pitr.toml`, `/etc/pitr/pitr.toml`. The commands that the server runs never look into
//! their working directory: it is the data directory, where a restored file could pose as a configuration. A file that is named
//! must exist; one that is merely looked for may be absent. The environment is handed in by `cli`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Config;
use crate::error::{Error, Result};

/// The file that is looked for last.
pub const SYSTEM_FILE: &str = "/etc/pitr/pitr.toml";
/// Its name in the working directory.
pub const LOCAL_FILE: &str = "pitr.toml";
/// The variable that names a file.
pub const VARIABLE: &str = "PITR_CONFIG";

/// Longest file that is read.
pub const MAX_BYTES: u64 = 1024 * 1024;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A person or their script: `./pitr.toml` counts.
    Operator,
    /// PostgreSQL (`archive-push`, `archive-get`): it does not.
    Server,
}

/// A file that may be the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it would be.
    pub path: PathBuf,
    /// True if it was named, so that its absence is an error.
    pub named: bool,
}

/// The files to try, first one first. A named one is the only one.
pub fn candidates(
    flag: Option<&Path>,
    environment: &BTreeMap<String, String>,
    caller: Caller,
) -> Vec<Candidate> {
    let variable = environment.get(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = flag.map(Path::to_owned).or(variable) {
        return vec![Candidate { path, named: true }];
    }
    let local = (caller == Caller::Operator).then_some(LOCAL_FILE);
    let looked_for = local.into_iter().chain([SYSTEM_FILE]);
    looked_for.map(|path| Candidate { path: PathBuf::from(path), named: false }).collect()
}

/// The configuration, or `None` if none was named and none is there.
///
/// # Errors
/// Kind `Usage` for a file that is absent though named, unreadable or wrong; kind `Key` for one that holds a secret and is readable by
/// others.
pub fn load(
    flag: Option<&Path>,
    environment: &BTreeMap<String, String>,
    caller: Caller,
) -> Result<Option<Config>> {
    for candidate in candidates(flag, environment, caller) {
        if let Some(config) = load_file(&candidate)? {
            return Ok(Some(config));
        }
    }
    Ok(None)
}

fn load_file(candidate: &Candidate) -> Result<Option<Config>> {
    // Absolute, because restore_command and archive_command name it.
    let path = std::path::absolute(&candidate.path)
        .map_err(|e| Error::usage(format!("cannot find {}", candidate.path.display())).source(e))?;
    let shown = path.display();
    let cannot = |e: std::io::Error| {
        Error::usage(format!("cannot read the configuration {shown}"))
            .source(e)
            .hint("is the name right, and may this user read it? `pitr init` writes one")
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound && !candidate.named => return Ok(None),
        Err(e) => return Err(cannot(e)),
    };
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(cannot)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_BYTES) {
        return Err(Error::usage(format!(
            "{shown} is longer than a configuration can be ({MAX_BYTES} bytes)"
        )));
    }
    let config = Config::parse(&text, &path)?;
    if config.holds_secret() {
        check_secret_file(&path)?;
    }
    let keys = config.keys.iter().flat_map(|keys| [&keys.host_file, &keys.identity_file]);
    for secret in keys.flatten() {
        check_secret_file_if_there(secret)?;
    }
    for credentials in config.repositories.iter().filter_map(|r| r.credentials_file.as_deref()) {
        check_secret_file_if_there(credentials)?;
    }
    Ok(Some(config))
}

/// Refuses a file that others than its owner and group may read.
///
/// # Errors
/// Kind `Key` naming the file and its mode, or that it cannot be looked at.
pub fn check_secret_file(path: &Path) -> Result<()> {
    let metadata =
        fs::metadata(path).map_err(|e| Error::key(format!("cannot read {}", path.display())).source(e))?;
    check_secret(path, &metadata)
}

/// As [`check_secret_file`], of a file that is open: another one may be at `path` by now.
///
/// # Errors
/// Kind `Key` naming the file and its mode.
pub fn check_secret(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    let shown = path.display();
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(Error::key(format!(
            "{shown} holds a secret and has mode {mode:04o}: others can read or change it"
        ))
        .hint(format!("chmod 0600 {shown}")));
    }
    Ok(())
}

/// An absent file is for the one who needs it to report: `info` on one repository must not fail for the credentials of another.
fn check_secret_file_if_there(path: &Path) -> Result<()> {
    if fs::exists(path).unwrap_or(false) { check_secret_file(path) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const TEXT: &str = "cluster = \"main\"\n[[repository]]\nname = \"a\"\nurl = \"memory:x\"\n";

    /// Writes without `durable`, which is for what must survive a crash.
    fn file(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        use std::io::Write;
        let path = dir.join(name);
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_named_file_is_the_only_one_and_the_server_never_looks_around() {
        let environment = BTreeMap::from([(VARIABLE.to_owned(), "/e.toml".to_owned())]);
        let paths = |flag: Option<&str>, environment: &BTreeMap<String, String>, caller| {
            let found = candidates(flag.map(Path::new), environment, caller);
            found
                .iter()
                .map(|c| format!("{}{}", c.path.display(), if c.named { "!" } else { "" }))
                .collect::<Vec<_>>()
        };
        assert_eq!(paths(Some("/f.toml"), &environment, Caller::Operator), ["/f.toml!"]);
        assert_eq!(paths(None, &environment, Caller::Server), ["/e.toml!"]);
        let empty = BTreeMap::new();
        assert_eq!(paths(None, &empty, Caller::Operator), ["pitr.toml", "/etc/pitr/pitr.toml"]);
        assert_eq!(paths(None, &empty, Caller::Server), ["/etc/pitr/pitr.toml"]);
    }

    #[test]
    fn a_named_file_must_exist_and_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let absent = load(Some(&dir.path().join("no.toml")), &BTreeMap::new(), Caller::Server).unwrap_err();
        assert_eq!(absent.kind(), Kind::Usage);
        let path = file(dir.path(), "pitr.toml", TEXT, 0o644);
        let config = load(Some(&path), &BTreeMap::new(), Caller::Server).unwrap().unwrap();
        assert_eq!(config.path.as_deref(), Some(path.as_path()));
    }

    #[test]
    fn files_with_secrets_must_not_be_readable_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let keys = file(dir.path(), "keys", "x", 0o604);
        let text = format!("{TEXT}credentials_file = \"{}\"\n", keys.display());
        let open = file(dir.path(), "a.toml", &text, 0o644);
        let read = |path: &Path| load(Some(path), &BTreeMap::new(), Caller::Server);
        assert_eq!(read(&open).unwrap_err().kind(), Kind::Key);
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&open).is_ok());

        let text = format!("{TEXT}[postgres]\nconninfo = \"postgresql://u:secret@h/\"\n");
        assert_eq!(read(&file(dir.path(), "b.toml", &text, 0o644)).unwrap_err().exit_code(), 7);
        assert!(read(&file(dir.path(), "c.toml", &text, 0o600)).is_ok());
    }
}
