//! Where the password comes from: the connection string, else the password file.
//!
//! The file is read only when a server asks for a password, and looked through anew for each host, since every host may have a line of
//! its own. Source of truth: `pqConnectOptions2` in `fe-connect.c`.

use super::conninfo::{ConnInfo, Host, Secret};
use super::files::{self, Secrecy};
use super::passfile::{self, Lookup};
use super::startup::Session;

/// A password, and where it was found.
pub(super) struct Found {
    pub(super) password: Secret,
    pub(super) from: String,
}

/// The password for `host`; the error goes on "asks for a password, and ...".
///
/// A line for the database `replication` is preferred on a replication connection; one for the session's own database answers too,
/// since the role has one password.
pub(super) async fn find(info: &ConnInfo, host: &Host, session: Session) -> Result<Found, String> {
    if let Some(password) = &info.password {
        return Ok(Found { password: password.clone(), from: "the connection string or PGPASSWORD".into() });
    }
    let Some(path) = &info.passfile else {
        return Err("none was given; there is no password file either".into());
    };
    let shown = path.display();
    let content = files::read(path, Secrecy::Own).await;
    let content = content.map_err(|error| format!("none was given; {shown} was not used: {error}"))?;
    let (hosts, port) = (host.passfile_names(), host.port.to_string());
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let line = |database: &str| {
        passfile::find(&content, &Lookup { hosts: &hosts, port: &port, database, user: &info.user })
    };
    let found = match session {
        Session::Replication => line("replication").or_else(|| line(&info.dbname)),
        Session::Sql { .. } => line(&info.dbname),
    };
    match found {
        Some(password) => Ok(Found { password: Secret::new(password), from: shown.to_string() }),
        None => Err(format!(
            "none was given; no line of {shown} matches {}:{port}:{}:{}",
            hosts.join(" or "),
            info.dbname,
            info.user
        )),
    }
}
