//! Connection strings as libpq understands them: `host=... user=...`, `postgresql://...`, `PG*` variables, defaults.
//!
//! ```text
//!  text  ─► settings ─┐
//!  PG*   ─► settings ─┴► known, allowed?  ─► ConnInfo (typed)
//! ```
//! Pure: the environment is handed in. Every keyword of libpq is in `KEYWORDS` with what pitr does about it: used, harmless to
//! ignore, or refused, because ignoring it would connect in another way than the user asked for. Source of truth: `fe-connect.c`
//! (`PQconninfoOptions`, `conninfo_parse`, `conninfo_uri_parse`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use core::net::IpAddr;

mod parse;

/// What the process knows of its surroundings.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Environment variables; only those of libpq are looked at.
    pub variables: BTreeMap<String, String>,
    /// Name of the operating system's user, the default role.
    pub os_user: Option<String>,
    /// Home directory, where the default password file is.
    pub home: Option<PathBuf>,
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

/// A complete description of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// Where.
    pub target: Target,
    /// Port, also part of a Unix socket's name.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Database of an SQL session.
    pub dbname: String,
    /// Password, if it was given here.
    pub password: Option<Secret>,
    /// Where to look for it otherwise.
    pub passfile: Option<PathBuf>,
    /// Limit for connecting and logging in.
    pub connect_timeout: Option<Duration>,
    /// Shown in `pg_stat_activity`, and what `synchronous_standby_names` matches.
    pub application_name: String,
    /// Command-line options for the server process, such as `-c work_mem=64MB`.
    pub options: Option<String>,
    /// TCP keepalive, unless switched off.
    pub keepalive: Option<Keepalive>,
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
        reason: &'static str,
    },
    /// Something that libpq can do and pitr cannot.
    #[error("{name} is not supported: {reason}")]
    Unsupported {
        /// Keyword or environment variable, with its value.
        name: String,
        /// Why, and what to do instead.
        reason: &'static str,
    },
    /// An encrypted connection was demanded.
    #[error("{name}={value} needs TLS, and this version of pitr does not speak TLS yet: it comes later")]
    Tls {
        /// Keyword or environment variable.
        name: String,
        /// The mode.
        value: String,
    },
    /// No role was named and the operating system's user is unknown.
    #[error("no user is named, and the name of the operating system's user is unknown")]
    NoUser,
}

/// What pitr does about a keyword.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// It has an effect.
    Used,
    /// Ignoring it changes nothing that was asked for, as long as the connection is not encrypted.
    Ignored,
    /// Only these values mean what pitr does anyway.
    Only(&'static [&'static str], &'static str),
    /// It cannot be honoured.
    Refused(&'static str),
}

const NO_GSS: &str = "pitr does not speak GSSAPI";
const NO_SERVICE: &str = "write the settings of the service into the connection string";
const NO_OAUTH: &str = "pitr does not speak OAuth";

/// Keyword, environment variable, rule.
const KEYWORDS: &[(&str, &str, Rule)] = &[
    ("host", "PGHOST", Rule::Used),
    ("hostaddr", "PGHOSTADDR", Rule::Used),
    ("port", "PGPORT", Rule::Used),
    ("dbname", "PGDATABASE", Rule::Used),
    ("user", "PGUSER", Rule::Used),
    ("password", "PGPASSWORD", Rule::Used),
    ("passfile", "PGPASSFILE", Rule::Used),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Rule::Used),
    ("application_name", "PGAPPNAME", Rule::Used),
    ("fallback_application_name", "", Rule::Used),
    ("options", "PGOPTIONS", Rule::Used),
    ("keepalives", "", Rule::Used),
    ("keepalives_idle", "", Rule::Used),
    ("keepalives_interval", "", Rule::Used),
    ("keepalives_count", "", Rule::Used),
    ("sslmode", "PGSSLMODE", Rule::Used),
    ("tcp_user_timeout", "", Rule::Ignored),
    ("client_encoding", "PGCLIENTENCODING", Rule::Ignored),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Rule::Ignored),
    ("sslcompression", "PGSSLCOMPRESSION", Rule::Ignored),
    ("sslnegotiation", "PGSSLNEGOTIATION", Rule::Ignored),
    ("sslcert", "PGSSLCERT", Rule::Ignored),
    ("sslkey", "PGSSLKEY", Rule::Ignored),
    ("sslkeylogfile", "", Rule::Ignored),
    ("sslpassword", "", Rule::Ignored),
    ("sslrootcert", "PGSSLROOTCERT", Rule::Ignored),
    ("sslcrl", "PGSSLCRL", Rule::Ignored),
    ("sslcrldir", "PGSSLCRLDIR", Rule::Ignored),
    ("sslsni", "PGSSLSNI", Rule::Ignored),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Rule::Ignored),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Rule::Ignored),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Rule::Only(&["3.0"], "pitr speaks protocol 3.0")),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Rule::Ignored),
    ("krbsrvname", "PGKRBSRVNAME", Rule::Ignored),
    ("gsslib", "PGGSSLIB", Rule::Ignored),
    ("gssdelegation", "PGGSSDELEGATION", Rule::Ignored),
    ("gssencmode", "PGGSSENCMODE", Rule::Only(&["disable", "prefer"], NO_GSS)),
    ("sslcertmode", "PGSSLCERTMODE", Rule::Only(&["disable", "allow"], "certificates come with TLS")),
    ("channel_binding", "PGCHANNELBINDING", Rule::Only(&["disable", "prefer"], "it comes with TLS")),
    (
        "target_session_attrs",
        "PGTARGETSESSIONATTRS",
        Rule::Only(&["any"], "pitr connects to the one server that is named, whatever its role"),
    ),
    ("requirepeer", "PGREQUIREPEER", Rule::Refused("pitr cannot check the server's user yet")),
    ("require_auth", "PGREQUIREAUTH", Rule::Refused("pitr answers whatever method the server asks for")),
    ("service", "PGSERVICE", Rule::Refused(NO_SERVICE)),
    ("servicefile", "", Rule::Refused(NO_SERVICE)),
    ("replication", "", Rule::Refused("pitr decides itself which of its connections are for replication")),
    ("scram_client_key", "", Rule::Refused("give the password")),
    ("scram_server_key", "", Rule::Refused("give the password")),
    ("oauth_issuer", "", Rule::Refused(NO_OAUTH)),
    ("oauth_client_id", "", Rule::Refused(NO_OAUTH)),
    ("oauth_client_secret", "", Rule::Refused(NO_OAUTH)),
    ("oauth_scope", "", Rule::Refused(NO_OAUTH)),
];

/// Settings by keyword, each with the name under which it was given.
#[derive(Debug, Default)]
struct Settings(BTreeMap<&'static str, (String, String)>);

impl ConnInfo {
    /// Reads `text`, completes it from the environment and with libpq's defaults. An empty text is all defaults.
    ///
    /// # Errors
    /// [`ConnInfoError`] names the keyword or variable that is wrong.
    pub fn parse(text: &str, environment: &Environment) -> Result<Self, ConnInfoError> {
        let pairs = parse::pairs(text)?;
        let mut settings = Settings::default();
        for (keyword, variable, _) in KEYWORDS.iter().filter(|entry| !entry.1.is_empty()) {
            if let Some(value) = environment.variables.get(*variable) {
                settings.0.insert(keyword, ((*variable).to_owned(), value.clone()));
            }
        }
        for (keyword, value) in pairs {
            settings.0.insert(known(&keyword)?, (keyword, value));
        }
        settings.check()?;
        settings.build(environment)
    }

    /// The same server and role, another database.
    #[must_use]
    pub fn with_dbname(mut self, dbname: &str) -> Self {
        dbname.clone_into(&mut self.dbname);
        self
    }

    /// The names under which the password file may know the server (`PQconnectdb` takes the default socket for `localhost`).
    pub fn passfile_hosts(&self) -> Vec<String> {
        match &self.target {
            Target::DefaultSocket => vec!["localhost".into()],
            Target::Socket(dir) if USUAL_SOCKET_DIRS.iter().any(|usual| dir.as_os_str() == *usual) => {
                vec!["localhost".into(), dir.to_string_lossy().into_owned()]
            }
            Target::Socket(dir) => vec![dir.to_string_lossy().into_owned()],
            Target::Abstract(name) => vec![format!("@{name}")],
            Target::Tcp { host, .. } => vec![host.clone()],
        }
    }
}

/// Directories in which packages of PostgreSQL put their socket: Debian and Red Hat, then upstream's default.
pub const USUAL_SOCKET_DIRS: [&str; 3] = ["/run/postgresql", "/var/run/postgresql", "/tmp"];

/// The place of a connection, for messages: no password, no role.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::DefaultSocket => write!(f, "the local PostgreSQL on port {}", self.port),
            Target::Socket(dir) => write!(f, "{}/.s.PGSQL.{}", dir.display(), self.port),
            Target::Abstract(name) => write!(f, "@{name}/.s.PGSQL.{}", self.port),
            Target::Tcp { host, .. } if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Target::Tcp { host, .. } => write!(f, "{host}:{}", self.port),
        }
    }
}

fn known(keyword: &str) -> Result<&'static str, ConnInfoError> {
    if let Some((name, ..)) = KEYWORDS.iter().find(|(name, ..)| *name == keyword) {
        return Ok(name);
    }
    let distance = |name: &&str| strsim::damerau_levenshtein(name, keyword);
    let nearest = KEYWORDS.iter().map(|(name, ..)| *name).min_by_key(distance);
    let nearest = nearest.filter(|name| distance(name) <= 2).map(str::to_owned);
    Err(ConnInfoError::UnknownKeyword { keyword: keyword.chars().take(64).collect(), nearest })
}

impl Settings {
    /// Applies the rules that need no understanding of the value.
    fn check(&self) -> Result<(), ConnInfoError> {
        for (keyword, _, rule) in KEYWORDS {
            let Some((name, value)) = self.0.get(keyword).filter(|(_, value)| !value.is_empty()) else {
                continue;
            };
            match rule {
                Rule::Used | Rule::Ignored => {}
                Rule::Only(values, _) if values.contains(&value.as_str()) => {}
                Rule::Only(_, reason) => {
                    return Err(ConnInfoError::Unsupported { name: format!("{name}={value}"), reason });
                }
                Rule::Refused(reason) => {
                    return Err(ConnInfoError::Unsupported { name: name.clone(), reason });
                }
            }
        }
        Ok(())
    }

    fn build(&self, environment: &Environment) -> Result<ConnInfo, ConnInfoError> {
        self.check_tls()?;
        let user = self.text("user").map(str::to_owned).or_else(|| environment.os_user.clone());
        let user = user.filter(|user| !user.is_empty()).ok_or(ConnInfoError::NoUser)?;
        let dbname = self.text("dbname").unwrap_or(&user).to_owned();
        let default_passfile = || environment.home.as_ref().map(|home| home.join(".pgpass"));
        let application = self.text("application_name").or_else(|| self.text("fallback_application_name"));
        let timeout = self.number("connect_timeout", 0, 1_000_000)?.filter(|&seconds| seconds > 0);
        Ok(ConnInfo {
            target: self.target()?,
            port: self.port()?,
            dbname,
            password: self.text("password").map(|text| Secret::new(text.as_bytes().to_vec())),
            passfile: self.text("passfile").map(PathBuf::from).or_else(default_passfile),
            // libpq: below 2 s there would be no time to look up a name
            connect_timeout: timeout.map(|seconds| Duration::from_secs(u64::from(seconds.max(2)))),
            application_name: application.unwrap_or("pitr").to_owned(),
            options: self.text("options").map(str::to_owned),
            keepalive: self.keepalive()?,
            user,
        })
    }

    /// The value of a keyword; an empty one counts as not given.
    fn text(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn wrong(&self, keyword: &str, reason: &'static str) -> ConnInfoError {
        let (name, value) = self.0.get(keyword).cloned().unwrap_or_default();
        ConnInfoError::Value { name, value, reason }
    }

    fn number(&self, keyword: &str, least: u32, most: u32) -> Result<Option<u32>, ConnInfoError> {
        let Some(text) = self.text(keyword) else { return Ok(None) };
        let number = text.trim().parse::<u32>().ok().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| self.wrong(keyword, "it is not a number in the possible range"))
    }

    fn port(&self) -> Result<u16, ConnInfoError> {
        let Some(text) = self.text("port") else { return Ok(5432) };
        if text.contains(',') {
            return Err(self.one_server("port"));
        }
        let port = text.trim().parse::<u16>().ok().filter(|&port| port > 0);
        port.ok_or_else(|| self.wrong("port", "a port is a number from 1 to 65535"))
    }

    fn target(&self) -> Result<Target, ConnInfoError> {
        let address = match self.text("hostaddr") {
            Some(text) if text.contains(',') => return Err(self.one_server("hostaddr")),
            Some(text) => Some(
                text.parse::<IpAddr>().map_err(|_| self.wrong("hostaddr", "it is not a numeric address"))?,
            ),
            None => None,
        };
        let host = self.text("host").unwrap_or_default();
        if host.contains(',') {
            return Err(self.one_server("host"));
        }
        Ok(match (host.strip_prefix('@'), address) {
            (_, Some(address)) => {
                let name = if host.is_empty() { address.to_string() } else { host.to_owned() };
                Target::Tcp { host: name, address: Some(address) }
            }
            (Some(name), None) => Target::Abstract(name.to_owned()),
            (None, None) if host.is_empty() => Target::DefaultSocket,
            (None, None) if host.starts_with('/') => Target::Socket(PathBuf::from(host)),
            (None, None) => Target::Tcp { host: host.to_owned(), address: None },
        })
    }

    fn one_server(&self, keyword: &str) -> ConnInfoError {
        let name = self.0.get(keyword).map(|(name, value)| format!("{name}={value}")).unwrap_or_default();
        let reason = "name one server; several at once come later";
        ConnInfoError::Unsupported { name, reason }
    }

    fn keepalive(&self) -> Result<Option<Keepalive>, ConnInfoError> {
        if self.number("keepalives", 0, 1)? == Some(0) {
            return Ok(None);
        }
        let seconds = |keyword, default| {
            let given = self.number(keyword, 0, 32_767)?.filter(|&seconds| seconds > 0);
            Ok(Duration::from_secs(u64::from(given.unwrap_or(default))))
        };
        Ok(Some(Keepalive {
            idle: seconds("keepalives_idle", 30)?,
            interval: seconds("keepalives_interval", 10)?,
            count: self.number("keepalives_count", 0, 127)?.filter(|&count| count > 0).unwrap_or(3),
        }))
    }

    fn check_tls(&self) -> Result<(), ConnInfoError> {
        match self.text("sslmode") {
            None | Some("disable" | "allow" | "prefer") => Ok(()),
            Some("require" | "verify-ca" | "verify-full") => {
                let (name, value) = self.0.get("sslmode").cloned().unwrap_or_default();
                Err(ConnInfoError::Tls { name, value })
            }
            Some(_) => {
                Err(self
                    .wrong("sslmode", "it is one of disable, allow, prefer, require, verify-ca, verify-full"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
