//! The keys of a command: from the configuration's files, from flags, and for a person also from the environment.
//!
//! ```text
//!  [keys] host_file        seals: archive-push, backup            absent on a host that only restores
//!  [keys] identity_file    opens     --identity FILE instead      PITR_IDENTITY: the key itself, for commands that a person runs
//! ```
//! A file that is absent or cannot be read is no error here: archiving must not stop for a key that it does not need. Whoever misses the
//! key is told why. What PostgreSQL starts never looks into its environment. No secret is taken from the command line; one that stands there
//! by a slip, or where a file's name should be, is not shown.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::cli::args::Common;
use crate::codec::len_u64;
use crate::config::load::{Caller, check_secret};
use crate::config::{Config, KeysConfig};
use crate::error::{Error, Kind, Result};
use crate::repo::Keyring;
use crate::repo::path::ClusterName;
use crate::seal::host::MAX_HOST_FILE;
use crate::seal::{Fingerprint, HostFile, Identity};

/// The variable that holds an identity.
pub const VARIABLE: &str = "PITR_IDENTITY";
/// Largest identity file.
const MAX_IDENTITY_FILE: u64 = 64 * 1024;
/// How an identity begins.
const IDENTITY_START: &str = "AGE-SECRET-KEY-1";
/// With so many more characters it is no name of a file that speaks of keys.
const IDENTITY_MORE: usize = 16;

/// Refuses arguments that hold the text of an identity, whatever they are meant for: whatever is wrong with an argument, an error shows it.
///
/// # Errors
/// Kind `Usage`, without the text.
pub fn refuse_secrets(args: &[OsString]) -> Result<()> {
    if !args.iter().any(|arg| holds_identity(Path::new(arg))) {
        return Ok(());
    }
    Err(Error::usage("a secret key is on the command line").hint(
        "--identity takes the file that holds it; a list of processes or a shell's history may have shown the key: `pitr key add` another, `remove` this one, and `rotate`",
    ))
}

/// Whether the text of an identity is in what should be the name of a file.
fn holds_identity(path: &Path) -> bool {
    let text = Zeroizing::new(path.to_string_lossy().to_ascii_uppercase());
    let more = text.split(IDENTITY_START).skip(1);
    more.map(|rest| rest.chars().take_while(char::is_ascii_alphanumeric).count()).any(|n| n >= IDENTITY_MORE)
}

/// The keys that flags, configuration and environment name; `None` if nothing names any: then nothing is encrypted.
///
/// # Errors
/// Kind `Usage` for a fingerprint that is none; kind `Key` for a file that others can read, one that `--identity` names and that cannot be
/// used, and a host file of another cluster.
pub fn read(
    common: &Common,
    config: &Config,
    environment: &BTreeMap<String, String>,
    caller: Caller,
) -> Result<Option<Arc<Keyring>>> {
    let variable = environment.get(VARIABLE).filter(|value| caller == Caller::Operator && !value.is_empty());
    let none = KeysConfig::default();
    let named = config.keys.as_ref().unwrap_or(&none);
    if config.keys.is_none()
        && common.identity.is_none()
        && variable.is_none()
        && common.seal_fingerprint.is_none()
    {
        return Ok(None);
    }
    let mut problem = None;
    let mut or_problem = |what: &str, path: &Path, error: Error| {
        let shown = if holds_identity(path) { "of [keys]".to_owned() } else { path.display().to_string() };
        problem = Some(format!("{what} {shown}: {}", error.message()));
    };
    let host = match named.host_file.as_deref() {
        None => None,
        Some(path) => match host_file(path, config) {
            Ok(host) => Some(host),
            // Another cluster's: whatever was stored with it would be lost.
            Err(e) if e.kind() == Kind::Refused => return Err(e),
            Err(e) => {
                or_problem("the host file", path, e);
                None
            }
        },
    };
    let mut identities = Vec::new();
    if let Some(path) = &common.identity {
        identities = identity_file(path)?;
    } else if let Some(text) = variable {
        identities = Identity::parse_file(text).map_err(|e| {
            Error::key(format!("{VARIABLE} holds no age identity"))
                .source(e)
                .hint("it takes the text of an identity file, AGE-SECRET-KEY-1…")
        })?;
    } else if let Some(path) = named.identity_file.as_deref() {
        match identity_file(path) {
            Ok(found) => identities = found,
            Err(e) => or_problem("the identity file", path, e),
        }
    }
    let expected = fingerprint(common, named)?;
    if let (Some(host), Some(expected)) = (&host, expected)
        && *host.seal.to_hex() == expected.to_string()
    {
        return Err(Error::usage("the seal key itself was given as its fingerprint")
            .hint("`pitr key list` and the recovery kit print the fingerprint; who saw the key can forge what is stored"));
    }
    let ring = Keyring::new(host, identities, expected).map_err(|e| {
        Error::key("the host file is not the one whose fingerprint was given")
            .source(e)
            .hint("the recovery kit prints the fingerprint: is this the right cluster's host file?")
    })?;
    Ok(Some(Arc::new(ring.because(problem))))
}

fn fingerprint(common: &Common, named: &KeysConfig) -> Result<Option<Fingerprint>> {
    let Some(text) = &common.seal_fingerprint else { return Ok(named.seal_fingerprint) };
    let parsed = text.parse().map_err(|e| {
        Error::usage("--seal-fingerprint is no fingerprint").source(e).hint("the recovery kit prints it")
    });
    parsed.map(Some)
}

/// The host file at `path`.
///
/// # Errors
/// Kind `Key` if it cannot be used, `Refused` if it is another cluster's.
pub fn host_file(path: &Path, config: &Config) -> Result<HostFile> {
    host_file_of(path, &config.cluster)
}

/// As [`host_file`], for a cluster that has no configuration yet.
///
/// # Errors
/// As [`host_file`].
pub fn host_file_of(path: &Path, cluster: &ClusterName) -> Result<HostFile> {
    let host = HostFile::parse(&text(path, MAX_HOST_FILE)?).map_err(|e| {
        Error::key(e.to_string())
            .hint("`pitr key init` writes one; a copy of it may lie beside the recovery kit")
    })?;
    if host.cluster != cluster.as_str() {
        return Err(Error::refused(format!(
            "{} is the host file of cluster {}, this is cluster {}",
            path.display(),
            host.cluster,
            cluster
        ))
        .hint("name this cluster's own host_file under [keys]"));
    }
    Ok(host)
}

/// The identities of the file at `path`.
///
/// # Errors
/// Kind `Key`.
pub fn identity_file(path: &Path) -> Result<Vec<Identity>> {
    Identity::parse_file(&text(path, MAX_IDENTITY_FILE)?).map_err(|e| {
        Error::key(format!("{} is not an identity file", path.display()))
            .source(e)
            .hint("it holds AGE-SECRET-KEY-1… lines, as `pitr key init` and age-keygen write them")
    })
}

fn text(path: &Path, most: u64) -> Result<Zeroizing<String>> {
    if holds_identity(path) {
        return Err(Error::key("a secret key stands where the name of its file should be")
            .hint("write the key into a file, mode 0600, and name that"));
    }
    let cannot = |e: std::io::Error| {
        Error::key(format!("cannot read {}", path.display()))
            .source(e)
            .hint("it must belong to the server's user, mode 0600")
    };
    let file = std::fs::File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    check_secret(path, &metadata)?;
    // Half of it would be called damaged, or be a host file that lacks the newest epochs.
    let too_large = |bytes: u64| {
        Error::key(format!("{} has {bytes} bytes, and no more than {most} are ever read", path.display()))
            .hint("pitr writes none so large: is it the right file?")
    };
    if metadata.len() > most {
        return Err(too_large(metadata.len()));
    }
    // A text that grows leaves copies of itself behind; what looks for the end wants some room too.
    let room = usize::try_from(metadata.len()).unwrap_or(0).saturating_add(64);
    let mut text = Zeroizing::new(String::with_capacity(room));
    file.take(most.saturating_add(1)).read_to_string(&mut text).map_err(cannot)?;
    let read = len_u64(text.as_bytes());
    if read > most { Err(too_large(read)) } else { Ok(text) }
}

/// The identity file that a restore's `restore_command` must name itself, because the configuration does not.
pub fn identity_for_recovery(common: &Common) -> Result<Option<PathBuf>> {
    let Some(path) = &common.identity else { return Ok(None) };
    std::path::absolute(path)
        .map(Some)
        .map_err(|e| Error::usage(format!("cannot find {}", path.display())).source(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable;

    #[test]
    fn the_text_of_a_key_is_told_from_names_that_speak_of_one() {
        let key = Identity::generate().to_text();
        let shown = |text: &str| {
            let error = refuse_secrets(&["pitr".into(), text.into()]).err().map(|e| e.report());
            assert!(error.as_ref().is_none_or(|error| !error.contains(key.as_str())), "{error:?}");
            error.is_some()
        };
        let most: String = key.chars().take(40).collect();
        for text in [key.to_string(), format!("x={}", key.as_str()), key.to_ascii_lowercase(), most] {
            assert!(shown(&text), "{text}");
        }
        for text in ["daily.key", "/root/AGE-SECRET-KEY-1", "AGE-SECRET-KEY-1.of-the-host", "age1xyz"] {
            assert!(!shown(text), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.host");
        let said = |bytes: usize, most: u64| {
            durable::write_replace(&path, "x".repeat(bytes).as_bytes(), 0o600, None).unwrap();
            text(&path, most).map(|text| text.len()).map_err(|e| (e.kind(), e.message().to_owned()))
        };
        assert_eq!(said(100, 100), Ok(100));
        let (kind, message) = said(101, 100).unwrap_err();
        assert_eq!(kind, Kind::Key);
        assert!(
            message.ends_with("main.host has 101 bytes, and no more than 100 are ever read"),
            "{message}"
        );
        let large = said((64 << 10) + 1, MAX_IDENTITY_FILE);
        assert!(large.is_err() && identity_file(&path).unwrap_err().message().contains("has 65537 bytes"));
    }
}
