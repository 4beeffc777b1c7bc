//! Service files: named groups of connection settings, `pg_service.conf`.
//!
//! ```text
//!  # a comment
//!  [main]                     a service; the first of this name counts
//!  host=db.example            keyword=value without blanks around "=", the first of a keyword counts
//!  user=backup
//! ```
//! Which file: the one that `servicefile` or `PGSERVICEFILE` names, else `~/.pg_service.conf`; if the service is not in it, the one of
//! `PGSYSCONFDIR` or of the usual packages. Pure: the caller hands in how files are read.
//! Source of truth: `parseServiceInfo` and `parseServiceFile` in `fe-connect.c`.

use std::io;
use std::path::{Path, PathBuf};

use super::{ConnInfoError, Environment};

/// Where packages look for the file of the whole host: Debian's, those of postgresql.org for Red Hat, and a plain `/etc`.
const SYSTEM_DIRS: [&str; 3] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc"];

type Pairs = Vec<(String, String)>;

/// The settings of service `name`. `named_file` is a file that was asked for.
pub(super) fn settings(
    name: &str,
    named_file: Option<&str>,
    environment: &Environment,
) -> Result<Pairs, ConnInfoError> {
    let own = environment.home.as_ref().map(|home| home.join(".pg_service.conf"));
    let first = named_file.map(PathBuf::from).or(own);
    let mut looked = Vec::new();
    let system = match environment.variables.get("PGSYSCONFDIR") {
        Some(dir) => vec![Path::new(dir).join("pg_service.conf")],
        None => SYSTEM_DIRS.iter().map(|dir| Path::new(dir).join("pg_service.conf")).collect(),
    };
    let files = first.into_iter().map(|path| (path, named_file.is_some()));
    for (path, must) in files.chain(system.into_iter().map(|path| (path, false))) {
        let error = |reason: String| ConnInfoError::Service { name: name.to_owned(), reason };
        match environment.read(&path) {
            Ok(text) => {
                let found = parse(&text, name).map_err(|why| error(format!("{}: {why}", path.display())))?;
                if let Some(pairs) = found {
                    return Ok(pairs);
                }
            }
            Err(cause) if !must && cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(error(format!("{} cannot be read: {cause}", path.display()))),
        }
        looked.push(path.display().to_string());
    }
    let reason = format!("it is defined in none of {}", looked.join(", "));
    Err(ConnInfoError::Service { name: name.to_owned(), reason })
}

/// The settings of one service in the text of a file; nothing if it is not there.
///
/// # Errors
/// What is wrong with which line of that service.
pub fn parse(text: &str, service: &str) -> Result<Option<Pairs>, String> {
    let mut found: Option<Pairs> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            let here = header.strip_prefix(service).is_some_and(|rest| rest.starts_with(']'));
            found = here.then(Pairs::new);
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        let number = index.saturating_add(1);
        let Some((keyword, value)) = line.split_once('=') else {
            return Err(format!("\"=\" is missing in line {number}"));
        };
        match keyword {
            "service" | "servicefile" => return Err(format!("line {number}: a service cannot name another")),
            _ if pairs.iter().any(|(other, _)| other == keyword) => {}
            _ => pairs.push((keyword.to_owned(), value.to_owned())),
        }
    }
    Ok(found)
}
