//! The asker's end of the socket: blocking, without a runtime, done in a millisecond when the agent has the answer.
//!
//! ```text
//!  connect ─► is it the server's user or root who listens? ─► ask ─► "+" ─► "." "." ─► "="
//!     └────────────── within one second ───────────────────────┘      └ five silent seconds ─► no agent
//! ```
//! Whatever is not a clear answer means that there is no agent: the caller then works alone, which is always right and only slower. That
//! both may store the same file at once is harmless, because objects are created and never replaced.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, SockAddr, Socket, Type};

use super::wire::{self, ANSWER, AT_IT, Answer, HEARD, Question};
use crate::durable;

/// In which it must be clear whether anybody listens.
const TO_BE_HEARD: Duration = Duration::from_secs(1);
/// Longest silence of an agent that works; it says something each second.
const SILENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAgent {
    /// Nobody listens there: the usual case where no agent is wanted.
    #[error("no agent listens at the socket")]
    Absent,
    /// Something is there and does not answer as an agent does.
    #[error("the agent did not answer: {0}")]
    Silent(std::io::Error),
    /// Another user listens there.
    #[error("user {0} listens at the agent's socket, who is neither this one nor root")]
    Foreign(u32),
    /// The question cannot be put.
    #[error("the question is too long for the agent")]
    Question,
    /// What came back is no answer.
    #[error("the agent said what is no answer")]
    Garbled,
}

/// Asks the agent at `socket`, if it runs as one of `trusted` (user ids).
///
/// # Errors
/// [`NoAgent`].
pub fn ask(socket: &Path, trusted: &[u32], question: &Question) -> Result<Answer, NoAgent> {
    let began = Instant::now();
    let frame = question.encode().ok_or(NoAgent::Question)?;
    let mut stream = connect(socket)?;
    let peer = getsockopt(&stream, PeerCredentials).map_err(|e| NoAgent::Silent(e.into()))?;
    if !trusted.contains(&peer.uid()) {
        return Err(NoAgent::Foreign(peer.uid()));
    }
    stream.write_all(&frame).map_err(NoAgent::Silent)?;
    durable::crash_point("thin-asked");
    let left = TO_BE_HEARD.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
    if next(&mut stream, left)? != HEARD {
        return Err(NoAgent::Garbled);
    }
    loop {
        match next(&mut stream, SILENCE)? {
            AT_IT => {}
            ANSWER => break,
            _ => return Err(NoAgent::Garbled),
        }
    }
    let mut head = [0; 4];
    stream.read_exact(&mut head).map_err(NoAgent::Silent)?;
    let mut body = vec![0; wire::length(head).ok_or(NoAgent::Garbled)?];
    stream.read_exact(&mut body).map_err(NoAgent::Silent)?;
    Answer::decode(&body).ok_or(NoAgent::Garbled)
}

fn connect(socket: &Path) -> Result<UnixStream, NoAgent> {
    let open = || {
        let address = SockAddr::unix(socket)?;
        let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // A listener whose queue is full makes connect wait: this bounds it.
        stream.set_write_timeout(Some(TO_BE_HEARD))?;
        stream.connect(&address)?;
        Ok(UnixStream::from(stream))
    };
    open().map_err(|e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => NoAgent::Absent,
        _ => NoAgent::Silent(e),
    })
}

fn next(stream: &mut UnixStream, patience: Duration) -> Result<u8, NoAgent> {
    let mut byte = [0];
    stream.set_read_timeout(Some(patience)).map_err(NoAgent::Silent)?;
    stream.read_exact(&mut byte).map_err(NoAgent::Silent)?;
    let [byte] = byte;
    Ok(byte)
}
