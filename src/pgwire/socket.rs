//! The conversation itself: an open stream, a read buffer, and a deadline on every wait.
//!
//! ```text
//!  out ──► one write per request            buffer (256 KiB) ◄── reads as large as the kernel has
//!                                           └─ split ─► Message; copy data stays in place
//! ```
//! Invariants: `Wire::receive` keeps all its state in the buffer, so dropping it in `select!` loses nothing, and its patience goes
//! on counting; a request is sent only when the answer to the one before was read to its end. A command that is given up is cancelled
//! over a second connection before the first is closed (`Wire::abandon`): a server that waits for a checkpoint, or for a full socket,
//! does not notice a closed one. Source of truth: `protocol.sgml`, `PQcancel` in `fe-cancel.c`.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, timeout, timeout_at};

use super::conninfo::Host;
use super::dial::{Limit, Peer, Stream};
use super::error::{ConnError, TlsFault};
use super::message::{self, Message, Phase, Row, ServerNotice, WireError};
use super::tls;

/// Size of the read buffer: some eight frames of a base backup.
const READ_BUFFER: usize = 256 << 10;
/// Below this much room a new buffer is taken instead of reading in small pieces.
const LEAST_ROOM: usize = 64 << 10;
/// Bytes of one answer that is kept as rows.
const MAX_ANSWER: usize = 64 << 20;
/// Notices that are kept until somebody asks for them.
const MAX_NOTICES: usize = 200;
/// Least time to look at the socket, even if the patience ran out while nobody was looking.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// What a patience beyond the end of the clock amounts to.
const A_LONG_TIME: Duration = Duration::from_secs(365 * 86_400);
/// What cancelling a command may take.
const CANCEL: Duration = Duration::from_secs(3);

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

/// A socket with its buffers.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    peer: Peer,
    /// By what the server knows this session, if it told.
    key: Option<(i32, i32)>,
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
    /// Nothing is sent yet.
    pub(super) fn new(stream: Stream, peer: Peer) -> Self {
        Self {
            stream,
            peer,
            key: None,
            phase: Phase::Startup,
            buffer: BytesMut::with_capacity(READ_BUFFER),
            out: BytesMut::new(),
            busy: false,
            waiting_since: None,
            notices: Vec::new(),
        }
    }

    /// The place, for messages.
    pub(super) fn at(&self) -> &str {
        &self.peer.at
    }

    /// The server that was reached.
    pub(super) fn host(&self) -> &Host {
        &self.peer.host
    }

    /// The stream, for what is known of its encryption.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Remembers what a cancel request needs.
    pub(super) fn keep_key(&mut self, process: i32, secret: i32) {
        self.key = Some((process, secret));
    }

    /// What the server said besides its answers; each notice is handed out once.
    pub(super) fn take_notices(&mut self) -> Vec<ServerNotice> {
        std::mem::take(&mut self.notices)
    }

    /// Sends what was put into `out` and expects an answer. Dropped in the middle, the connection is of no further use.
    pub(super) async fn request(&mut self, limit: Duration) -> Result<(), ConnError> {
        if self.busy {
            self.out.clear();
            return Err(ConnError::Busy { at: self.peer.at.clone() });
        }
        self.busy = true;
        self.flush(limit).await
    }

    /// Sends what is in `out`, as part of a request that is under way.
    pub(super) async fn flush(&mut self, limit: Duration) -> Result<(), ConnError> {
        let bytes = self.out.split().freeze();
        match timeout(limit, self.stream.send(&bytes)).await {
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
        self.lost(source)
    }

    /// With TLS 1.3 a server that does not like our certificate says so only now.
    fn lost(&self, source: io::Error) -> ConnError {
        let at = self.peer.at.clone();
        match tls::fault(&source) {
            fault @ TlsFault::Alert(_) => ConnError::Tls { at, fault },
            _ => ConnError::Lost { at, source },
        }
    }

    /// The next message. Safe to drop at any time: what has arrived stays in the buffer, and the patience goes on counting.
    pub(super) async fn receive(
        &mut self,
        patience: Duration,
        what: &'static str,
    ) -> Result<Message, ConnError> {
        if !self.busy {
            return Err(ConnError::Busy { at: self.peer.at.clone() });
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
                Ok(Err(source)) => return Err(self.lost(source)),
                Ok(Ok(())) => self.waiting_since = None,
            }
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.buffer.capacity().saturating_sub(self.buffer.len()) < LEAST_ROOM {
            self.buffer.reserve(READ_BUFFER);
        }
        if self.stream.read(&mut self.buffer).await? == 0 {
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
                    size = size.saturating_add(message::memory_of(&row));
                    rows.push(row);
                    if size > MAX_ANSWER {
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

    /// Ends what is under way: asks the server to cancel it, and closes. Takes a few seconds at most, and fails silently: a server that
    /// cannot be reached any more notices the closed socket in its own time.
    pub(super) async fn abandon(self) {
        if let (true, Some((process, secret))) = (self.busy, self.key) {
            let limit = Limit::new(CANCEL);
            let cancel = async {
                let mut stream = self.peer.again(&limit).await.ok()?;
                let mut request = BytesMut::new();
                message::put_cancel(process, secret, &mut request);
                stream.send(&request).await.ok()?;
                // The server closes once the signal is sent.
                stream.read(&mut request).await.ok()
            };
            let _ = timeout(limit.rest(), cancel).await;
        }
        self.close().await;
    }

    fn timed_out(&self, what: &'static str, after: Duration) -> ConnError {
        ConnError::Timeout { at: self.peer.at.clone(), what, after }
    }
}

#[cfg(test)]
mod tests;
