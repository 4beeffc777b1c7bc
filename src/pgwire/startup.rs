//! Logging in: the start-up packet, and whatever proof of identity the server asks for.
//!
//! ```text
//!  StartupMessage ─►        ◄─ AuthenticationOk | CleartextPassword | MD5Password | SASL ── SCRAM-SHA-256 ─┐
//!                           ◄─ ParameterStatus* BackendKeyData ReadyForQuery                 verified both ways
//! ```
//! Invariants: once SCRAM has begun, nothing but the server's valid signature lets us in, so a server that does not know the
//! password is noticed; the password file is read only when a password is asked for, and only if nobody else can read it.
//! Source of truth: `protocol.sgml`, `fe-auth-scram.c`, `fe-connect.c`.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use postgres_protocol::authentication::{md5_hash, sasl};
use tokio::io::AsyncReadExt as _;

use super::conninfo::{ConnInfo, Secret};
use super::message::{self, Authentication, Message, WireError};
use super::passfile::{self, Lookup, MAX_PASSFILE};
use super::socket::{ConnError, Deadlines, Wire};

/// What the session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    /// A physical replication connection: replication commands only.
    Replication,
    /// An SQL session whose statements are stopped by the server after this time.
    Sql {
        /// `statement_timeout`
        statement_timeout: Duration,
    },
}

/// Connects and logs in. Dropped in the middle, nothing remains but a connection that the server closes.
pub(super) async fn login(
    info: &ConnInfo,
    session: Session,
    deadlines: &Deadlines,
) -> Result<Wire, ConnError> {
    let limit = info.connect_timeout.unwrap_or(deadlines.connect);
    let begun = tokio::time::Instant::now();
    let mut wire = Wire::dial(info, limit).await?;
    let at = wire.at().to_owned();
    let rest = limit.saturating_sub(begun.elapsed());
    let work = async move {
        put_startup(info, session, &mut wire)?;
        wire.request(limit).await?;
        authenticate(info, session, &mut wire, limit).await?;
        until_ready(&mut wire, limit).await?;
        Ok(wire)
    };
    match tokio::time::timeout(rest, work).await {
        Ok(result) => result,
        Err(_) => Err(ConnError::Timeout { at, what: "let us in", after: limit }),
    }
}

fn put_startup(info: &ConnInfo, session: Session, wire: &mut Wire) -> Result<(), WireError> {
    let timeout;
    let mut parameters = vec![
        ("user", info.user.as_str()),
        ("client_encoding", "UTF8"),
        ("application_name", info.application_name.as_str()),
    ];
    if let Some(options) = &info.options {
        parameters.push(("options", options));
    }
    match session {
        Session::Replication => parameters.push(("replication", "true")),
        Session::Sql { statement_timeout } => {
            timeout = format!("{}ms", statement_timeout.as_millis());
            parameters.extend([
                ("database", info.dbname.as_str()),
                ("statement_timeout", timeout.as_str()),
                ("DateStyle", "ISO"),
                // Nobody's schema may put its own functions and operators in front of PostgreSQL's.
                ("search_path", "pg_catalog"),
            ]);
        }
    }
    message::put_startup(&parameters, &mut wire.out)
}

/// How far SCRAM has come.
enum Scram {
    NotBegun,
    First(sasl::ScramSha256),
    Second(sasl::ScramSha256),
    Verified,
}

async fn authenticate(
    info: &ConnInfo,
    session: Session,
    wire: &mut Wire,
    limit: Duration,
) -> Result<(), ConnError> {
    let mut scram = Scram::NotBegun;
    loop {
        let request = match wire.receive(limit, "let us in").await? {
            Message::Authentication(request) => request,
            Message::Error(said) => return Err(ConnError::Server(said)),
            Message::Notice(said) => {
                wire.note(*said);
                continue;
            }
            other => {
                let expected = "an authentication request";
                return Err(WireError::Unexpected { got: other.name(), expected }.into());
            }
        };
        scram = match (request, scram) {
            (Authentication::Ok, Scram::NotBegun | Scram::Verified) => return Ok(()),
            (Authentication::Cleartext, Scram::NotBegun) => {
                let password = password(info, session, wire.at()).await?;
                message::put_password(password.expose(), &mut wire.out)?;
                Scram::NotBegun
            }
            (Authentication::Md5(salt), Scram::NotBegun) => {
                let password = password(info, session, wire.at()).await?;
                let digest = md5_hash(info.user.as_bytes(), password.expose(), salt);
                message::put_password(digest.as_bytes(), &mut wire.out)?;
                Scram::NotBegun
            }
            (Authentication::Sasl(mechanisms), Scram::NotBegun) => {
                if !mechanisms.iter().any(|name| name == sasl::SCRAM_SHA_256) {
                    return Err(method(wire, mechanisms.join(" or ")));
                }
                let password = password(info, session, wire.at()).await?;
                let first = sasl::ScramSha256::new(password.expose(), sasl::ChannelBinding::unsupported());
                message::put_sasl_initial(sasl::SCRAM_SHA_256, first.message(), &mut wire.out)?;
                Scram::First(first)
            }
            (Authentication::SaslContinue(data), Scram::First(mut exchange)) => {
                exchange.update(&data).map_err(|error| impostor(wire, &error))?;
                message::put_sasl(exchange.message(), &mut wire.out)?;
                Scram::Second(exchange)
            }
            (Authentication::SaslFinal(data), Scram::Second(mut exchange)) => {
                exchange.finish(&data).map_err(|error| impostor(wire, &error))?;
                Scram::Verified
            }
            (Authentication::Other(name), _) => return Err(method(wire, name.to_owned())),
            (_, _) => return Err(impostor(wire, &"an authentication step came out of turn")),
        };
        wire.flush(limit).await?;
    }
}

fn method(wire: &Wire, method: String) -> ConnError {
    ConnError::Method { at: wire.at().to_owned(), method }
}

fn impostor(wire: &Wire, reason: &impl ToString) -> ConnError {
    ConnError::Impostor { at: wire.at().to_owned(), reason: reason.to_string() }
}

async fn until_ready(wire: &mut Wire, limit: Duration) -> Result<(), ConnError> {
    loop {
        match wire.receive(limit, "begin the session").await? {
            Message::ReadyForQuery => return Ok(()),
            Message::ParameterStatus(..) | Message::BackendKeyData => {}
            Message::Notice(said) => wire.note(*said),
            Message::Error(said) => return Err(ConnError::Server(said)),
            other => {
                return Err(WireError::Unexpected { got: other.name(), expected: "ReadyForQuery" }.into());
            }
        }
    }
}

/// The password of the connection string, else of the password file. A line for the database `replication` is preferred on a
/// replication connection; one for the session's own database answers too, since the role has one password.
async fn password(info: &ConnInfo, session: Session, at: &str) -> Result<Secret, ConnError> {
    if let Some(password) = &info.password {
        return Ok(password.clone());
    }
    let missing = |reason: String| ConnError::Password { at: at.to_owned(), user: info.user.clone(), reason };
    let Some(path) = &info.passfile else {
        return Err(missing("none was given; there is no password file either".into()));
    };
    let content = match read_private(path).await {
        Ok(content) => content,
        Err(error) => return Err(missing(format!("{} was not used: {error}", path.display()))),
    };
    let (hosts, port) = (info.passfile_hosts(), info.port.to_string());
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let find = |database: &str| {
        passfile::find(&content, &Lookup { hosts: &hosts, port: &port, database, user: &info.user })
    };
    let found = match session {
        Session::Replication => find("replication").or_else(|| find(&info.dbname)),
        Session::Sql { .. } => find(&info.dbname),
    };
    found.map(Secret::new).ok_or_else(|| missing(format!("no line of {} matches", path.display())))
}

/// Reads a file that is nobody else's business.
async fn read_private(path: &Path) -> io::Result<Vec<u8>> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    check_private(&tokio::fs::metadata(path).await?)?;
    let file = tokio::fs::File::open(path).await?;
    check_private(&file.metadata().await?)?;
    let mut content = Vec::new();
    file.take(MAX_PASSFILE).read_to_end(&mut content).await?;
    Ok(content)
}

fn check_private(metadata: &std::fs::Metadata) -> io::Result<()> {
    let mode = metadata.permissions().mode() & 0o777;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if mode & 0o077 != 0 {
        return Err(io::Error::other(format!("others may read it (mode {mode:04o}; it must be 0600)")));
    }
    if metadata.len() > MAX_PASSFILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(())
}
