//! The connection itself: Unix socket or TCP, a read buffer, and a deadline on every wait.
//!
//! ```text
//!  out ──► one write per request            buffer (256 KiB) ◄── reads as large as the kernel has
//!                                           └─ split ─► Message; copy data stays in place
//! ```
//! Invariants: `Wire::receive` keeps all its state in the buffer, so dropping it in `select!` loses nothing, and its patience goes
//! on counting; a request is sent only when the answer to the one before was read to its end. Closing the socket is how a walsender
//! is cancelled. Source of truth: `protocol.sgml`.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::basebackup::{BackupFailure, ChecksumFailure, OptionsError};
use super::conninfo::{ConnInfo, Keepalive, Target, USUAL_SOCKET_DIRS};
use super::message::{self, Message, Phase, Row, ServerNotice, WireError};

/// Size of the read buffer: some eight frames of a base backup.
const READ_BUFFER: usize = 256 << 10;
/// Below this much room a new buffer is taken instead of reading in small pieces.
const LEAST_ROOM: usize = 64 << 10;
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Bytes of one answer that is kept as rows.
const MAX_ANSWER: usize = 64 << 20;
/// Notices that are kept until somebody asks for them.
const MAX_NOTICES: usize = 200;
/// Least time to look at the socket, even if the patience ran out while nobody was looking.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// What a patience beyond the end of the clock amounts to.
const A_LONG_TIME: Duration = Duration::from_secs(365 * 86_400);

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Connecting and logging in; `connect_timeout` of the connection string goes before it.
    pub connect: Duration,
    /// The answer to a small command or a statement.
    pub answer: Duration,
    /// From `BASE_BACKUP` to its first data: a spread checkpoint, and the estimate of sizes.
    pub prepare: Duration,
    /// Silence in a stream of data.
    pub idle: Duration,
}

impl Default for Deadlines {
    /// Ten seconds, thirty seconds, one hour, five minutes: a stalled disk of the server should not cost hours of a backup.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            prepare: Duration::from_secs(3600),
            idle: Duration::from_secs(300),
        }
    }
}

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
    /// The server refused, in its own words.
    #[error("PostgreSQL says: {0}")]
    Server(Box<ServerNotice>),
    /// The server wants a password and there is none.
    #[error("PostgreSQL at {at} asks for a password of role {user}, and {reason}")]
    Password {
        /// Where.
        at: String,
        /// For whom.
        user: String,
        /// Where it was looked for.
        reason: String,
    },
    /// The server wants to be convinced in a way that pitr does not know.
    #[error("PostgreSQL at {at} asks for {method} authentication, which pitr does not speak")]
    Method {
        /// Where.
        at: String,
        /// The method.
        method: String,
    },
    /// The server could not prove that it knows the password.
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
            Self::Server(notice) => Some(&notice.code),
            Self::Checksums(failure) => Some(&failure.error.code),
            _ => None,
        }
    }
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A socket with its buffers.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    at: String,
    phase: Phase,
    buffer: BytesMut,
    /// Messages to be sent with the next [`Wire::request`].
    pub(super) out: BytesMut,
    /// True from a request to the ReadyForQuery that answers it.
    busy: bool,
    /// Since when [`Wire::receive`] has waited for bytes.
    waiting_since: Option<Instant>,
    notices: Vec<ServerNotice>,
}

impl Wire {
    /// Connects; nothing is sent yet.
    pub(super) async fn dial(info: &ConnInfo, limit: Duration) -> Result<Self, ConnError> {
        let at = info.to_string();
        let stream = match &info.target {
            Target::Tcp { host, address } => {
                let connect = tcp(host, *address, info.port, info.keepalive, limit);
                within(limit, &at, "accept a connection", connect).await
            }
            Target::Socket(_) | Target::Abstract(_) | Target::DefaultSocket => {
                within(limit, &at, "accept a connection", unix(info)).await
            }
        }?;
        Ok(Self {
            stream,
            at,
            phase: Phase::Startup,
            buffer: BytesMut::with_capacity(READ_BUFFER),
            out: BytesMut::new(),
            busy: false,
            waiting_since: None,
            notices: Vec::new(),
        })
    }

    /// The place, for messages.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    /// What the server said besides its answers; each notice is handed out once.
    pub(super) fn take_notices(&mut self) -> Vec<ServerNotice> {
        std::mem::take(&mut self.notices)
    }

    /// Sends what was put into `out` and expects an answer. Dropped in the middle, the connection is of no further use.
    pub(super) async fn request(&mut self, limit: Duration) -> Result<(), ConnError> {
        if self.busy {
            self.out.clear();
            return Err(ConnError::Busy { at: self.at.clone() });
        }
        self.busy = true;
        self.flush(limit).await
    }

    /// Sends what is in `out`, as part of a request that is under way.
    pub(super) async fn flush(&mut self, limit: Duration) -> Result<(), ConnError> {
        let bytes = self.out.split().freeze();
        let send = async {
            match &mut self.stream {
                Stream::Unix(socket) => socket.write_all(&bytes).await,
                Stream::Tcp(socket) => socket.write_all(&bytes).await,
            }
        };
        match timeout(limit, send).await {
            Err(_) => Err(self.timed_out("take a request", limit)),
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(self.last_words(source).await),
        }
    }

    /// A server that closes the connection has often said why before.
    async fn last_words(&mut self, source: io::Error) -> ConnError {
        self.busy = true;
        for _ in 0..MAX_NOTICES {
            match self.receive(LAST_LOOK, "explain itself").await {
                Ok(Message::Error(notice)) => return ConnError::Server(notice),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        ConnError::Lost { at: self.at.clone(), source }
    }

    /// The next message. Safe to drop at any time: what has arrived stays in the buffer, and the patience goes on counting.
    pub(super) async fn receive(
        &mut self,
        patience: Duration,
        what: &'static str,
    ) -> Result<Message, ConnError> {
        if !self.busy {
            return Err(ConnError::Busy { at: self.at.clone() });
        }
        loop {
            if let Some(message) = message::split(&mut self.buffer, self.phase)? {
                self.waiting_since = None;
                if message == Message::ReadyForQuery {
                    (self.busy, self.phase) = (false, Phase::Session);
                }
                return Ok(message);
            }
            let now = Instant::now();
            let since = *self.waiting_since.get_or_insert(now);
            let patient = since.checked_add(patience).unwrap_or(now + A_LONG_TIME);
            let until = patient.max(now + LAST_LOOK.min(patience));
            match timeout_at(until, self.fill()).await {
                Err(_) => return Err(self.timed_out(what, patience)),
                Ok(Err(source)) => return Err(ConnError::Lost { at: self.at.clone(), source }),
                Ok(Ok(())) => self.waiting_since = None,
            }
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.buffer.capacity().saturating_sub(self.buffer.len()) < LEAST_ROOM {
            self.buffer.reserve(READ_BUFFER);
        }
        let count = match &mut self.stream {
            Stream::Unix(socket) => socket.read_buf(&mut self.buffer).await?,
            Stream::Tcp(socket) => socket.read_buf(&mut self.buffer).await?,
        };
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it"));
        }
        Ok(())
    }

    /// Reads a whole answer that consists of rows; the server's error, if any, once the connection is ready again.
    pub(super) async fn rows(&mut self, patience: Duration) -> Result<Vec<Row>, ConnError> {
        let (mut rows, mut size, mut failure) = (Vec::new(), 0_usize, None);
        loop {
            let message = match self.receive(patience, "answer").await {
                Ok(message) => message,
                Err(error) => return Err(failure.map_or(error, ConnError::Server)),
            };
            match message {
                Message::ReadyForQuery => {
                    return failure.map_or(Ok(rows), |said| Err(ConnError::Server(said)));
                }
                Message::Error(said) => failure = failure.or(Some(said)),
                Message::Notice(said) => self.note(*said),
                Message::DataRow(row) => {
                    size = row.iter().flatten().fold(size, |sum, cell| sum.saturating_add(cell.len()));
                    rows.push(row);
                    if size.max(rows.len()) > MAX_ANSWER {
                        let reason = format!("it has more than {MAX_ANSWER} bytes");
                        return Err(WireError::Answer { command: "a statement", reason }.into());
                    }
                }
                Message::RowDescription
                | Message::CommandComplete(_)
                | Message::EmptyQuery
                | Message::Acknowledged
                | Message::ParameterStatus(..) => {}
                other => return Err(WireError::Unexpected { got: other.name(), expected: "rows" }.into()),
            }
        }
    }

    /// Keeps a notice for [`Wire::take_notices`].
    pub(super) fn note(&mut self, notice: ServerNotice) {
        if self.notices.len() < MAX_NOTICES {
            self.notices.push(notice);
        }
    }

    /// Says good-bye if nothing is under way, and closes. Nothing depends on it: the server copes with a closed socket.
    pub(super) async fn close(mut self) {
        if !self.busy {
            message::put_terminate(&mut self.out);
            // The answer would be a closed socket either way.
            let _ = self.flush(LAST_LOOK).await;
        }
    }

    fn timed_out(&self, what: &'static str, after: Duration) -> ConnError {
        ConnError::Timeout { at: self.at.clone(), what, after }
    }
}

async fn within(
    limit: Duration,
    at: &str,
    what: &'static str,
    work: impl Future<Output = io::Result<Stream>>,
) -> Result<Stream, ConnError> {
    match timeout(limit, work).await {
        Err(_) => Err(ConnError::Timeout { at: at.to_owned(), what, after: limit }),
        Ok(result) => result.map_err(|source| ConnError::Unreachable { at: at.to_owned(), source }),
    }
}

/// Each address of a name gets its share of the time, so that one that swallows packets does not hide the next.
async fn tcp(
    host: &str,
    address: Option<core::net::IpAddr>,
    port: u16,
    keepalive: Option<Keepalive>,
    limit: Duration,
) -> io::Result<Stream> {
    let addresses: Vec<_> = match address {
        Some(address) => vec![(address, port).into()],
        None => tokio::net::lookup_host((host, port)).await?.take(MAX_ADDRESSES).collect(),
    };
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                socket.set_nodelay(true)?;
                if let Some(keepalive) = keepalive {
                    let set = socket2::TcpKeepalive::new()
                        .with_time(keepalive.idle)
                        .with_interval(keepalive.interval)
                        .with_retries(keepalive.count);
                    socket2::SockRef::from(&socket).set_tcp_keepalive(&set)?;
                }
                return Ok(Stream::Tcp(socket));
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(failure)
}

async fn unix(info: &ConnInfo) -> io::Result<Stream> {
    let name = format!(".s.PGSQL.{}", info.port);
    let (paths, usual) = match &info.target {
        Target::Socket(dir) => (vec![dir.join(&name)], false),
        Target::Abstract(prefix) => (vec![format!("\0{prefix}/{name}").into()], false),
        Target::DefaultSocket | Target::Tcp { .. } => {
            (USUAL_SOCKET_DIRS.iter().map(|dir| std::path::Path::new(dir).join(&name)).collect(), true)
        }
    };
    let mut failure = None;
    for path in paths {
        match UnixStream::connect(&path).await {
            Ok(socket) => return Ok(Stream::Unix(socket)),
            // A stale socket or a closed door says more than a directory that has no socket.
            Err(error) if error.kind() == io::ErrorKind::NotFound && usual => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let none = || format!("no socket {name} in {}", USUAL_SOCKET_DIRS.join(", "));
    Err(failure.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, none())))
}

#[cfg(test)]
mod tests;
