//! Connection strings as libpq understands them: `host=... user=...`, `postgresql://...`, services, `PG*` variables, defaults.
//!
//! ```text
//!  text     ─► parse    ─┐
//!  service= ─► service  ─┼► settings ─► hosts, choices ─► ConnInfo (typed)
//!  PG*                  ─┘     └ keywords: known, allowed?
//! ```
//! Pure: the environment, and how a service file is read, are handed in. Every keyword of libpq is in `keywords` with what pitr does
//! about it; docs/connections.md says the same to people. Source of truth: `fe-connect.c` (`PQconninfoOptions`, `conninfo_parse`,
//! `conninfo_uri_parse`).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use core::net::IpAddr;

mod choices;
mod hosts;
mod keywords;
mod parse;
pub mod service;
mod settings;

pub use choices::{AuthMethod, ChannelBinding, Negotiation, RequireAuth, SslMode, TargetSession, TlsVersion};

/// What the process knows of its surroundings.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Environment variables; only those of libpq are looked at.
    pub variables: BTreeMap<String, String>,
    /// Name of the operating system's user, the default role.
    pub os_user: Option<String>,
    /// Home directory, where the default password, service and certificate files are.
    pub home: Option<PathBuf>,
    /// How a service file is read; without it there are none.
    pub read_file: Option<fn(&Path) -> io::Result<String>>,
}

impl Environment {
    fn read(&self, path: &Path) -> io::Result<String> {
        let read = self.read_file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        read(path)
    }
}

/// Something that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, for the one place that sends them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket in the first of the usual directories that has one.
    DefaultSocket,
    /// A Unix socket in this directory.
    Socket(PathBuf),
    /// A Unix socket in Linux' abstract name space, without the leading `@`.
    Abstract(String),
    /// A TCP port.
    Tcp {
        /// The name, for messages and the password file.
        host: String,
        /// Its address, if given: then the name is not looked up.
        address: Option<IpAddr>,
    },
}

/// TCP keepalive, so that a server that vanished is noticed even while nothing is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes before the connection is given up.
    pub count: u32,
}

/// One of the servers that are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Where.
    pub target: Target,
    /// Port, also part of a Unix socket's name.
    pub port: u16,
}

/// A file that TLS needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFile {
    /// Where it is.
    pub path: PathBuf,
    /// It was asked for; one in the usual place need not exist.
    pub named: bool,
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The authorities that the host trusts.
    System,
    /// Those of a file, if there is one.
    File(Option<TlsFile>),
}

/// All about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// How much of it.
    pub mode: SslMode,
    /// How it begins.
    pub negotiation: Negotiation,
    /// Who may vouch for the server.
    pub roots: Roots,
    /// Certificates that no longer count.
    pub crl: Option<TlsFile>,
    /// Our own certificate.
    pub certificate: Option<TlsFile>,
    /// The key that belongs to it.
    pub key: Option<TlsFile>,
    /// Tell the server's front end which host is meant.
    pub sni: bool,
    /// The lowest and the highest version that may be used.
    pub versions: (TlsVersion, TlsVersion),
}

/// A complete description of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// The servers, at least one; the first that answers and is what `target_session` wants is taken.
    pub hosts: Vec<Host>,
    /// Try them in a random order.
    pub load_balance: bool,
    /// What the server must be.
    pub target_session: TargetSession,
    /// Role.
    pub user: String,
    /// Database of an SQL session.
    pub dbname: String,
    /// Password, if it was given here.
    pub password: Option<Secret>,
    /// Where to look for it otherwise.
    pub passfile: Option<PathBuf>,
    /// Limit for connecting to one server and logging in.
    pub connect_timeout: Option<Duration>,
    /// Shown in `pg_stat_activity`, and what `synchronous_standby_names` matches.
    pub application_name: String,
    /// Command-line options for the server process, such as `-c work_mem=64MB`.
    pub options: Option<String>,
    /// TCP keepalive, unless switched off.
    pub keepalive: Option<Keepalive>,
    /// How long sent data may stay unacknowledged.
    pub tcp_user_timeout: Option<Duration>,
    /// Encryption.
    pub tls: TlsOptions,
    /// Must the password be bound to the encryption?
    pub channel_binding: ChannelBinding,
    /// The only methods by which the server may ask who we are.
    pub require_auth: Option<RequireAuth>,
}

/// A connection string that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnInfoError {
    /// Not in one of the two forms.
    #[error("the connection string is not understood: {0}")]
    Syntax(String),
    /// A keyword that libpq does not know.
    #[error("{keyword:?} is not a connection keyword{}", nearest.as_ref().map_or_else(String::new, |n| format!(" (is it {n}?)")))]
    UnknownKeyword {
        /// The keyword.
        keyword: String,
        /// The nearest one that exists.
        nearest: Option<String>,
    },
    /// A value that is none.
    #[error("{name}={value:?} cannot be used: {reason}")]
    Value {
        /// Keyword or environment variable.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A service that is not defined, or badly.
    #[error("service {name:?} cannot be used: {reason}")]
    Service {
        /// The service.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Something that libpq can do and pitr cannot.
    #[error("{name} is not supported: {reason}")]
    Unsupported {
        /// Keyword or environment variable, with its value.
        name: String,
        /// Why, and what to do instead.
        reason: &'static str,
    },
    /// No role was named and the operating system's user is unknown.
    #[error("no user is named, and the name of the operating system's user is unknown")]
    NoUser,
}

impl ConnInfo {
    /// Reads `text`, completes it from services and the environment and with libpq's defaults. An empty text is all defaults.
    ///
    /// # Errors
    /// [`ConnInfoError`] names the keyword or variable that is wrong.
    pub fn parse(text: &str, environment: &Environment) -> Result<Self, ConnInfoError> {
        settings::Settings::collect(parse::pairs(text)?, environment)?.build(environment)
    }

    /// The same server and role, another database.
    #[must_use]
    pub fn with_dbname(mut self, dbname: &str) -> Self {
        dbname.clone_into(&mut self.dbname);
        self
    }

    /// The same, but this server alone, whatever it is: a second session must not end up elsewhere than the first.
    #[must_use]
    pub fn only(&self, host: &Host) -> Self {
        Self { hosts: vec![host.clone()], target_session: TargetSession::Any, ..self.clone() }
    }
}

/// Directories in which packages of PostgreSQL put their socket: Debian and Red Hat, then upstream's default.
pub const USUAL_SOCKET_DIRS: [&str; 3] = ["/run/postgresql", "/var/run/postgresql", "/tmp"];

/// The place of a connection, for messages: no password, no role.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.hosts.iter().enumerate() {
            let between = if index == 0 { "" } else { ", " };
            write!(f, "{between}{host}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
