//! Why a server could not be talked to, and what to do about it.
//!
//! Every message of a failed connection names the place and the role; the cause is the server's, the kernel's or the certificate's own.
//! The advice is separate ([`ConnError::hint`]), because a command may know better. Invariant: no password is ever part of one.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::basebackup::{BackupFailure, ChecksumFailure, OptionsError};
use super::conninfo::{SslMode, TargetSession};
use super::message::{ServerNotice, WireError};
use super::tls::verify::CertificateFault;

/// Why a server could not be talked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnError {
    /// Nobody answers there.
    #[error("cannot reach PostgreSQL at {at}: {source}")]
    Unreachable {
        /// Where.
        at: String,
        /// Why.
        source: io::Error,
    },
    /// The server was silent for too long.
    #[error("PostgreSQL at {at} did not {what} within {} s", after.as_secs_f64())]
    Timeout {
        /// Where.
        at: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection to PostgreSQL at {at} was lost: {source}")]
    Lost {
        /// Where.
        at: String,
        /// How.
        source: io::Error,
    },
    /// The connection cannot be encrypted as it should be.
    #[error("no TLS connection to PostgreSQL at {at}: {fault}")]
    Tls {
        /// Where.
        at: String,
        /// Why not.
        fault: TlsFault,
    },
    /// The server did not let us in.
    #[error("PostgreSQL at {at} refuses the log-in: {notice}")]
    Refused {
        /// Where.
        at: String,
        /// Its words.
        notice: Box<ServerNotice>,
        /// Where the password was from, if it asked for one.
        password_from: Option<String>,
    },
    /// A server that is not what was asked for.
    #[error("PostgreSQL at {at} is {found}, but target_session_attrs={wanted}")]
    NotWanted {
        /// Where.
        at: String,
        /// What it is.
        found: &'static str,
        /// What was asked for.
        wanted: TargetSession,
    },
    /// None of several attempts succeeded.
    #[error("{}", each(.0))]
    NoneOf(Vec<Self>),
    /// The server refused a command, in its own words.
    #[error("PostgreSQL says: {0}")]
    Server(Box<ServerNotice>),
    /// The server wants a password and there is none.
    #[error("PostgreSQL at {at} asks for a password, and {reason}")]
    Password {
        /// Where, and for whom.
        at: String,
        /// Where it was looked for.
        reason: String,
    },
    /// The server wants to be convinced in a way that pitr does not know, or may not use.
    #[error("PostgreSQL at {at} asks for {method} authentication, {reason}")]
    Method {
        /// Where.
        at: String,
        /// The method.
        method: String,
        /// Why that is not possible.
        reason: String,
    },
    /// The server could not prove that it knows the password, or that it is the one at the end of the TLS connection.
    #[error("PostgreSQL at {at} failed to authenticate itself: {reason}")]
    Impostor {
        /// Where.
        at: String,
        /// What went wrong.
        reason: String,
    },
    /// Older than what pitr supports.
    #[error("PostgreSQL at {at} is version {found}; pitr supports 13 and later")]
    Version {
        /// Where.
        at: String,
        /// Its `server_version_num`.
        found: u32,
    },
    /// A mistake of the caller: an answer was not read to its end, or none is due.
    #[error("the connection to {at} is in the middle of another command")]
    Busy {
        /// Where.
        at: String,
    },
    /// Options of a base backup that no server takes.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The base backup is complete, but pages of the source are damaged.
    #[error("pages of the source are damaged: {}", .0.error.message)]
    Checksums(Box<ChecksumFailure>),
    /// What came is not what the protocol says.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// What stands in the way of TLS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// A file of ours.
    #[error("{keyword} {}: {reason}", path.display())]
    File {
        /// The keyword that names it.
        keyword: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to check a certificate by.
    #[error("sslmode={mode} needs the certificate of an authority, and {looked} does not exist")]
    NoRoots {
        /// The mode.
        mode: SslMode,
        /// The file that was looked for.
        looked: String,
    },
    /// The server does not speak it.
    #[error("the server does not support TLS, but sslmode={0}")]
    NotOffered(SslMode),
    /// The server has no idea of TLS without PostgreSQL's question first.
    #[error(
        "the server does not take TLS at once, as sslnegotiation=direct asks for; PostgreSQL 17 and later do"
    )]
    NotDirect,
    /// Its certificate is not good enough.
    #[error("its certificate is not accepted: {0}")]
    Certificate(CertificateFault),
    /// The server ended the handshake.
    #[error("the server refuses it: {0}")]
    Alert(String),
    /// Anything else.
    #[error("{0}")]
    Handshake(String),
}

fn each(attempts: &[ConnError]) -> String {
    attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl From<BackupFailure> for ConnError {
    fn from(failure: BackupFailure) -> Self {
        match failure {
            BackupFailure::Server(notice) => Self::Server(notice),
            BackupFailure::Checksums(failure) => Self::Checksums(failure),
            BackupFailure::Wire(error) => Self::Wire(error),
        }
    }
}

impl ConnError {
    /// SQLSTATE of the server's error, if it is one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server(notice) | Self::Refused { notice, .. } => Some(&notice.code),
            Self::Checksums(failure) => Some(&failure.error.code),
            Self::NoneOf(attempts) => attempts.last().and_then(Self::code),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "is the host's name in conninfo right, or the directory of the socket? names come from /etc/hosts and DNS"
            }
            Self::Unreachable { .. } => {
                "does the server run there, and does it listen on that address and port (listen_addresses, port)?"
            }
            Self::Timeout { what: "look up its name" | "accept a connection", .. } => {
                "a firewall may swallow packets, or the host is down; connect_timeout in conninfo gives it more time"
            }
            Self::Refused { notice, password_from, .. } => return refusal(notice, password_from.as_deref()),
            Self::Server(notice) => return refusal(notice, None),
            Self::Password { .. } => {
                "put the password into ~/.pgpass (mode 0600) of the user who runs pitr, or into PGPASSWORD; never into the configuration"
            }
            Self::Impostor { .. } => {
                "if this is the right server, nobody stands between, and the password is right: set it again with ALTER ROLE ... PASSWORD"
            }
            Self::NotWanted { .. } => {
                "list all servers of the cluster in host, or change target_session_attrs in conninfo"
            }
            Self::Tls { fault, .. } => return fault.hint(),
            Self::NoneOf(attempts) => return attempts.iter().rev().find_map(Self::hint),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Advice by SQLSTATE.
fn refusal(notice: &ServerNotice, password_from: Option<&str>) -> Option<String> {
    let said = &notice.message;
    let hint = match notice.code.as_str() {
        "28000" if said.contains("pg_hba.conf") && said.contains("no encryption") => {
            "pg_hba.conf may want TLS from here: try sslmode=require; else add a line for this role and database \
             (and one for replication), `pitr init` prints them, and reload the server"
        }
        "28000" if said.contains("pg_hba.conf") => {
            "add a line for this role and database (and one for replication) to pg_hba.conf; `pitr init` prints them; then reload the server"
        }
        "28000" if said.contains("channel binding") => {
            "somebody stands between who shows a certificate of his own: a proxy that ends TLS, or an attacker. Connect to the server itself"
        }
        "28000" if said.contains("certificate") => {
            "name a client certificate whose common name is the role with sslcert and sslkey in conninfo"
        }
        "28P01" => {
            let from = password_from.unwrap_or("nowhere");
            return Some(format!(
                "the password came from {from}: correct it there, or set it with ALTER ROLE ... PASSWORD"
            ));
        }
        "42501" | "28000" => {
            "the role needs LOGIN and REPLICATION, and pg_monitor; `pitr init` prints the statements"
        }
        "53300" => {
            "raise max_connections or max_wal_senders: a backup takes one of each, a streaming receiver another"
        }
        "57P03" => {
            "the server is starting, stopping, or in recovery without hot_standby: its log says which; try again then"
        }
        "3D000" => "name a database that exists with dbname in conninfo; postgres will do",
        _ => return None,
    };
    Some(hint.to_owned())
}

impl TlsFault {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotOffered(_) => {
                "set ssl = on, ssl_cert_file and ssl_key_file at the server, or sslmode=prefer in conninfo if you trust the network"
            }
            Self::NotDirect => "leave out sslnegotiation, or set it to postgres",
            Self::NoRoots { .. } => {
                "copy the authority's certificate there, name it with sslrootcert (system for those of this host), or use sslmode=require"
            }
            Self::Certificate(CertificateFault::SelfSigned { .. }) => {
                "put the server's own certificate (its ssl_cert_file) into the file that sslrootcert names"
            }
            Self::Certificate(CertificateFault::UnknownIssuer { .. }) => {
                "put the certificate of that authority into the file that sslrootcert names"
            }
            Self::Certificate(CertificateFault::WrongName { .. }) => {
                "name the host as the certificate does (hostaddr can tell its address), or have one made for this name; \
                 sslmode=verify-ca does not look at names"
            }
            Self::Certificate(CertificateFault::Expired(_) | CertificateFault::NotYet(_)) => {
                "renew the server's certificate and reload the server; is this host's clock right?"
            }
            Self::Alert(_) => "is the client certificate right (sslcert, sslkey)? the server's log says more",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
