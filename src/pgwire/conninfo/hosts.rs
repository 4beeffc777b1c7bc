//! The servers of a connection: lists of `host`, `hostaddr` and `port`, matched up one by one.
//!
//! ```text
//!  host=a,b hostaddr= port=5432            a:5432  b:5432        one port serves all
//!  host=a,b port=5432,5433                 a:5432  b:5433
//!  host=,/tmp                              the default socket, /tmp
//! ```
//! Pure. Source of truth: `pqConnectOptions2` in `fe-connect.c`.

use std::fmt;
use std::path::PathBuf;

use core::net::IpAddr;

use super::settings::Settings;
use super::{ConnInfoError, Host, Target, USUAL_SOCKET_DIRS};

/// PostgreSQL's port where none is given.
const DEFAULT_PORT: u16 = 5432;
/// More servers than anybody lists.
const MAX_HOSTS: usize = 64;

impl Settings {
    /// All servers, in the order of the text.
    pub(super) fn hosts(&self) -> Result<Vec<Host>, ConnInfoError> {
        let (names, addresses, ports) = (self.list("host"), self.list("hostaddr"), self.list("port"));
        let count = if addresses.is_empty() { names.len().max(1) } else { addresses.len() };
        if count > MAX_HOSTS {
            return Err(self.wrong("host", format!("at most {MAX_HOSTS} servers can be listed")));
        }
        if !addresses.is_empty() && !names.is_empty() && names.len() != count {
            let reason = format!("{} host names do not match {count} addresses", names.len());
            return Err(self.wrong("hostaddr", reason));
        }
        if ports.len() > 1 && ports.len() != count {
            let reason = format!("{} ports do not match {count} servers", ports.len());
            return Err(self.wrong("port", reason));
        }
        let item = |list: &[&str], index: usize| list.get(index).copied().unwrap_or_default().to_owned();
        (0..count)
            .map(|index| {
                let port = if ports.len() == 1 { item(&ports, 0) } else { item(&ports, index) };
                let target = self.target(&item(&names, index), &item(&addresses, index))?;
                Ok(Host { target, port: self.port(&port)? })
            })
            .collect()
    }

    /// The items of a list; none if the keyword is not given.
    fn list(&self, keyword: &str) -> Vec<&str> {
        self.text(keyword).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
    }

    fn port(&self, text: &str) -> Result<u16, ConnInfoError> {
        if text.is_empty() {
            return Ok(DEFAULT_PORT);
        }
        let port = text.parse::<u16>().ok().filter(|&port| port > 0);
        port.ok_or_else(|| self.wrong("port", "a port is a number from 1 to 65535".into()))
    }

    fn target(&self, host: &str, address: &str) -> Result<Target, ConnInfoError> {
        let address = match address {
            "" => None,
            text => Some(
                text.parse::<IpAddr>()
                    .map_err(|_| self.wrong("hostaddr", "it is not a numeric address".into()))?,
            ),
        };
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
}

impl Host {
    /// The names under which the password file may know the server (`PQconnectdb` takes the default socket for `localhost`).
    pub fn passfile_names(&self) -> Vec<String> {
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

    /// True if the server is on this host for certain.
    pub fn is_local(&self) -> bool {
        match &self.target {
            Target::DefaultSocket | Target::Socket(_) | Target::Abstract(_) => true,
            Target::Tcp { address: Some(address), .. } => address.is_loopback(),
            Target::Tcp { host, address: None } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

/// The place, for messages: no password, no role.
impl fmt::Display for Host {
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
