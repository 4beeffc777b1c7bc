//! From a host to an open stream: look-up, connect, TLS; each step with what is left of the time.
//!
//! ```text
//!  Host ─► addresses (resolve) ─► socket ─► TLS if wanted ─► Stream
//!                                    └─► Peer: the way back to the very same server, for a cancel request
//! ```
//! Invariants: every step names itself when the time is over; each address of a name gets its share, so that one that swallows packets
//! does not hide the next. Source of truth: `PQconnectPoll` in `fe-connect.c`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use core::net::{IpAddr, SocketAddr};

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::certificate;
use super::conninfo::{ConnInfo, Host, Keepalive, Target, USUAL_SOCKET_DIRS};
use super::error::ConnError;
use super::tls::{Secured, Tls, TlsStream};
use crate::resolve;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// A moment by which something must be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    until: Instant,
    whole: Duration,
}

impl Limit {
    pub(super) fn new(whole: Duration) -> Self {
        Self { until: Instant::now() + whole, whole }
    }

    /// What is left.
    pub(super) fn rest(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Runs `work`; the error goes on "did not ...".
    pub(super) async fn on<T>(
        &self,
        at: &str,
        what: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T, ConnError> {
        let late = |_| ConnError::Timeout { at: at.to_owned(), what, after: self.whole };
        timeout_at(self.until, work).await.map_err(late)
    }
}

/// An open connection of one of the three kinds.
#[derive(Debug)]
pub(super) enum Stream {
    /// A Unix socket.
    Unix(UnixStream),
    /// TCP without encryption.
    Tcp(TcpStream),
    /// TCP with TLS.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Sends all of `bytes`.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.write_all(bytes).await,
            Self::Tcp(socket) => socket.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Reads what has come, up to the free room of `buffer`; 0 at the end.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.read_buf(buffer).await,
            Self::Tcp(socket) => socket.read_buf(buffer).await,
            Self::Tls(stream) => stream.read_buf(buffer).await,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The channel binding data; none without TLS, an error if the certificate has none.
    pub(super) fn end_point(&self) -> Option<Result<Vec<u8>, String>> {
        let Self::Tls(stream) = self else { return None };
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        Some(shown.map_or_else(|| Err("there is none".into()), |der| certificate::end_point_hash(der)))
    }
}

#[derive(Debug, Clone)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A server that was reached, and how.
#[derive(Debug)]
pub(super) struct Peer {
    /// Host and role, for messages.
    pub(super) at: String,
    /// The host, with the address that answered.
    pub(super) host: Host,
    address: Address,
    keepalive: Option<Keepalive>,
    user_timeout: Option<Duration>,
    tls: Option<Tls>,
}

/// Host and role, as messages name a connection.
pub(super) fn place(info: &ConnInfo, host: &Host) -> String {
    format!("{host} (role {})", info.user)
}

/// Opens a connection to `host`, over TLS if `tls` says how.
pub(super) async fn dial(
    info: &ConnInfo,
    host: &Host,
    tls: Option<Tls>,
    limit: &Limit,
) -> Result<(Stream, Peer), ConnError> {
    let at = place(info, host);
    let failed = |source| ConnError::Unreachable { at: at.clone(), source };
    let addresses = addresses(host, limit, &at, info.load_balance).await?;
    let mut peer = Peer {
        at: at.clone(),
        host: host.clone(),
        address: Address::Unix(PathBuf::new()),
        keepalive: info.keepalive,
        user_timeout: info.tcp_user_timeout,
        tls,
    };
    let share = limit.rest() / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let mut failure = None;
    for address in addresses {
        peer.address = address;
        match timeout(share, peer.connect()).await {
            Ok(Ok(stream)) => {
                if let (Target::Tcp { address, .. }, Address::Tcp(found)) =
                    (&mut peer.host.target, &peer.address)
                {
                    *address = Some(found.ip());
                }
                let stream = peer.encrypt(stream, limit).await?;
                return Ok((stream, peer));
            }
            // A stale socket or a closed door says more than a directory that has no socket.
            Ok(Err(error))
                if matches!(host.target, Target::DefaultSocket)
                    && error.kind() == io::ErrorKind::NotFound => {}
            Ok(Err(error)) => failure = Some(failed(peer.named(error))),
            Err(_) => {
                let what = "accept a connection";
                failure = Some(ConnError::Timeout { at: at.clone(), what, after: limit.whole });
            }
        }
    }
    let none = || {
        let text = format!("no socket .s.PGSQL.{} in {}", host.port, USUAL_SOCKET_DIRS.join(", "));
        failed(io::Error::new(io::ErrorKind::NotFound, text))
    };
    Err(failure.unwrap_or_else(none))
}

async fn addresses(host: &Host, limit: &Limit, at: &str, shuffled: bool) -> Result<Vec<Address>, ConnError> {
    let name = format!(".s.PGSQL.{}", host.port);
    let tcp = |address: IpAddr| Address::Tcp((address, host.port).into());
    Ok(match &host.target {
        Target::Socket(dir) => vec![Address::Unix(dir.join(name))],
        Target::Abstract(prefix) => vec![Address::Unix(format!("\0{prefix}/{name}").into())],
        Target::DefaultSocket => {
            let dirs = USUAL_SOCKET_DIRS.iter().map(PathBuf::from);
            dirs.map(|dir| Address::Unix(dir.join(&name))).collect()
        }
        Target::Tcp { address: Some(address), .. } => vec![tcp(*address)],
        Target::Tcp { host, address: None } => {
            let found = limit.on(at, "look up its name", resolve::lookup(host, limit.rest())).await?;
            let found = found.map_err(|source| ConnError::Unreachable { at: at.to_owned(), source })?;
            let mut found: Vec<_> = found.into_iter().map(tcp).collect();
            if shuffled {
                shuffle(&mut found);
            }
            found.truncate(MAX_ADDRESSES);
            found
        }
    })
}

/// Any order is as likely as any other; without randomness, the order that was.
pub(super) fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let Ok(random) = getrandom::u64() else { return };
        let among = u64::try_from(last).unwrap_or(0).saturating_add(1);
        items.swap(last, usize::try_from(random % among).unwrap_or(0));
    }
}

impl Peer {
    async fn connect(&self) -> io::Result<Stream> {
        let address = match &self.address {
            Address::Unix(path) => return UnixStream::connect(path).await.map(Stream::Unix),
            Address::Tcp(address) => address,
        };
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        if let Some(keepalive) = self.keepalive {
            let set = TcpKeepalive::new()
                .with_time(keepalive.idle)
                .with_interval(keepalive.interval)
                .with_retries(keepalive.count);
            SockRef::from(&socket).set_tcp_keepalive(&set)?;
        }
        if self.user_timeout.is_some() {
            SockRef::from(&socket).set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(Stream::Tcp(socket))
    }

    /// An address that the user did not write is worth naming.
    fn named(&self, error: io::Error) -> io::Error {
        match &self.address {
            Address::Tcp(address) => io::Error::new(error.kind(), format!("{address}: {error}")),
            Address::Unix(_) => error,
        }
    }

    async fn encrypt(&self, stream: Stream, limit: &Limit) -> Result<Stream, ConnError> {
        let (socket, tls) = match (stream, &self.tls) {
            (Stream::Tcp(socket), Some(tls)) => (socket, tls),
            (stream, _) => return Ok(stream),
        };
        match limit.on(&self.at, "complete the TLS handshake", tls.start(socket)).await? {
            Ok(Secured::Tls(stream)) => Ok(Stream::Tls(stream)),
            Ok(Secured::Plain(socket)) => Ok(Stream::Tcp(socket)),
            Err(fault) => Err(ConnError::Tls { at: self.at.clone(), fault }),
        }
    }

    /// Opens one more connection to the same address, encrypted in the same way.
    pub(super) async fn again(&self, limit: &Limit) -> Result<Stream, ConnError> {
        let stream = limit.on(&self.at, "accept a connection", self.connect()).await?;
        let stream = stream.map_err(|source| ConnError::Unreachable { at: self.at.clone(), source })?;
        self.encrypt(stream, limit).await
    }
}
