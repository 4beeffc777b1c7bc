//! What stands between pitr and the S3 server: it passes each request on, byte for byte, until it is told to do something else.
//!
//! A request is one connection (`Connection: close` is added, which no signature covers). Ended with the test.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};

/// Longest head of a message that is read.
const HEAD: usize = 64 << 10;

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// The real server answers.
    Pass,
    /// It is taken and never answered.
    Silence,
    /// The head of the answer and half of its body come, then nothing. Where there is no body: nothing.
    Half,
    /// The real server does it, and its answer is lost with the connection.
    Lost,
    /// The connection is reset when half of the request's body has come, or its head where there is none: nothing is done.
    Reset,
    /// The head of the answer and half of its body come, then the connection ends. Where there is no body it is reset.
    Cut,
    /// WAL is handed out once the test says so; what else is asked for, and the segment of this name, at once.
    Hold(String),
    /// This answer comes instead: a status and a body of XML.
    Refuse(u16, String),
    /// The real server answers, from a clock that is so far ahead.
    Shift(SignedDuration),
}

struct State {
    upstream: String,
    /// What is done at which requests, and how many there were.
    plan: Mutex<(RangeInclusive<usize>, Deed, usize)>,
    /// Requests whose answers were lost, each by its first line.
    lost: Mutex<Vec<String>>,
    ended: AtomicBool,
    /// What was held is let go.
    released: AtomicBool,
    /// Requests that are held.
    held: AtomicUsize,
}

/// The server between; stops listening when it is dropped.
pub struct Between {
    address: SocketAddr,
    state: Arc<State>,
}

impl Between {
    /// One before the server at `upstream`, which passes everything on.
    pub fn start(upstream: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let plan = Mutex::new((1..=usize::MAX, Deed::Pass, 0));
        let (lost, ended) = (Mutex::default(), AtomicBool::new(false));
        let (released, held) = (AtomicBool::new(false), AtomicUsize::new(0));
        let state = Arc::new(State { upstream: upstream.to_owned(), plan, lost, ended, released, held });
        let (address, shared) = (listener.local_addr()?, Arc::clone(&state));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let state = Arc::clone(&shared);
                // A connection that the client gives up is no failure of the test.
                thread::spawn(move || state.serve(stream).ok());
            }
        });
        Ok(Self { address, state })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From the `nth` request on, counted from now, this is done.
    pub fn from(&self, nth: usize, deed: Deed) {
        self.at(nth..=usize::MAX, deed);
    }

    /// At these requests, counted from now, this is done.
    pub fn at(&self, which: RangeInclusive<usize>, deed: Deed) {
        *self.state.plan.lock().unwrap_or_else(PoisonError::into_inner) = (which, deed, 0);
    }

    /// The first lines of the requests whose answers were lost.
    pub fn lost(&self) -> Vec<String> {
        self.state.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests that are held now.
    pub fn held(&self) -> usize {
        self.state.held.load(Ordering::SeqCst)
    }

    /// Lets go what is held, and holds nothing any more.
    pub fn release(&self) {
        self.state.released.store(true, Ordering::SeqCst);
    }

    /// How many requests came since then.
    pub fn seen(&self) -> usize {
        self.state.plan.lock().unwrap_or_else(PoisonError::into_inner).2
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        TcpStream::connect(self.address).ok();
    }
}

impl State {
    fn next(&self) -> Deed {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        plan.2 += 1;
        if plan.0.contains(&plan.2) { plan.1.clone() } else { Deed::Pass }
    }

    fn serve(&self, mut client: TcpStream) -> Result<()> {
        // A client that sends no request, because it wants to hear of TLS first, waits here.
        let (head, rest) = read_head(&mut client)?;
        let length = header(&head, "content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut body = rest;
        let missing = u64::try_from(length)?.saturating_sub(u64::try_from(body.len())?);
        let deed = self.next();
        let read = if deed == Deed::Reset { missing / 2 } else { missing };
        Read::take(&mut client, read).read_to_end(&mut body)?;
        if let Deed::Hold(but) = &deed {
            self.hold(head.lines().next().unwrap_or_default(), but);
        }
        match deed {
            Deed::Reset => reset(client),
            Deed::Silence => wait_for_its_end(&mut client),
            Deed::Refuse(status, xml) => {
                let empty = head.starts_with("HEAD");
                let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
                client.write_all(answer(status, &date, if empty { "" } else { &xml }).as_bytes())?;
                Ok(client.shutdown(Shutdown::Write)?)
            }
            deed => {
                let request = head;
                let (head, body) = self.ask(&request, &body)?;
                match deed {
                    Deed::Lost => {
                        let line = request.lines().next().unwrap_or_default().to_owned();
                        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                        Ok(())
                    }
                    Deed::Half if body.len() < 2 => wait_for_its_end(&mut client),
                    Deed::Half => {
                        client.write_all(head.as_bytes())?;
                        client.write_all(body.get(..body.len() / 2).unwrap_or_default())?;
                        wait_for_its_end(&mut client)
                    }
                    Deed::Cut if body.len() < 2 => reset(client),
                    Deed::Cut => {
                        client.write_all(head.as_bytes())?;
                        client.write_all(body.get(..body.len() / 2).unwrap_or_default())?;
                        Ok(client.shutdown(Shutdown::Both)?)
                    }
                    Deed::Shift(by) => {
                        let (head, body) = shift(&head, &body, by)?;
                        client.write_all(head.as_bytes())?;
                        Ok(client.write_all(&body)?)
                    }
                    _ => {
                        client.write_all(head.as_bytes())?;
                        Ok(client.write_all(&body)?)
                    }
                }
            }
        }
    }

    fn hold(&self, line: &str, but: &str) {
        if !line.contains(".wal") || line.contains(but) {
            return;
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        while !self.released.load(Ordering::SeqCst) && !self.ended.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(2));
        }
        self.held.fetch_sub(1, Ordering::SeqCst);
    }

    /// Asks the real server; head and body of its answer.
    fn ask(&self, head: &str, body: &[u8]) -> Result<(String, Vec<u8>)> {
        let mut server = TcpStream::connect(&self.upstream)?;
        let (line, headers) = head.split_once("\r\n").context("a request")?;
        server.write_all(format!("{line}\r\nConnection: close\r\n{headers}").as_bytes())?;
        server.write_all(body)?;
        let (head, mut rest) = read_head(&mut server)?;
        server.read_to_end(&mut rest)?;
        Ok((head, rest))
    }
}

/// A whole answer.
fn answer(status: u16, date: &str, xml: &str) -> String {
    format!(
        "HTTP/1.1 {status} No\r\nDate: {date}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{xml}",
        xml.len()
    )
}

/// Ends a connection as a crash does: without a word, and with what was not read.
fn reset(client: TcpStream) -> Result<()> {
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    Ok(())
}

/// Holds the connection open until the client gives it up.
fn wait_for_its_end(client: &mut TcpStream) -> Result<()> {
    let mut sink = [0; 1024];
    while client.read(&mut sink)? > 0 {}
    Ok(())
}

/// The head with its empty line, and what came behind it.
fn read_head(stream: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        let count = stream.read(&mut piece)?;
        anyhow::ensure!(count > 0 && bytes.len() < HEAD, "no message");
        bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes)?, rest));
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// All times that an answer tells, so far ahead: `Date`, `Last-Modified`, and `LastModified` in listings, which keeps its length.
fn shift(head: &str, body: &[u8], by: SignedDuration) -> Result<(String, Vec<u8>)> {
    let mut lines = Vec::new();
    for line in head.split("\r\n") {
        let time = line.split_once(": ").filter(|(name, _)| {
            ["date", "last-modified"].iter().any(|known| name.eq_ignore_ascii_case(known))
        });
        lines.push(match time {
            Some((name, value)) => {
                let moment = jiff::fmt::rfc2822::parse(value)?.timestamp().checked_add(by)?;
                format!("{name}: {}", moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
            }
            None => line.to_owned(),
        });
    }
    const OPEN: &str = "<LastModified>";
    let Ok(text) = std::str::from_utf8(body) else { return Ok((lines.join("\r\n"), body.to_owned())) };
    let mut parts = text.split(OPEN);
    let mut shifted = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (time, rest) = part.split_once('<').context("a time")?;
        let moment: Timestamp = time.parse::<Timestamp>()?.checked_add(by)?;
        // As long as it was, because the head says how long all of it is.
        let written = moment.strftime("%Y-%m-%dT%H:%M:%S.000000000Z").to_string();
        let written = format!("{}Z", written.get(..time.len() - 1).unwrap_or_default());
        shifted.push_str(&format!("{OPEN}{written}<{rest}"));
    }
    Ok((lines.join("\r\n"), shifted.into_bytes()))
}

#[test]
fn times_are_shifted_and_nothing_else() -> Result<()> {
    let head = "HTTP/1.1 200 OK\r\nLast-Modified: Mon, 02 Nov 2026 23:00:00 GMT\r\nETag: \"x\"\r\n\r\n";
    let body = b"<Key>a</Key><LastModified>2026-11-02T23:00:00.000Z</LastModified><Size>1</Size>";
    let (head, shifted) = shift(head, body, SignedDuration::from_hours(2))?;
    assert_eq!(
        head,
        "HTTP/1.1 200 OK\r\nLast-Modified: Tue, 03 Nov 2026 01:00:00 GMT\r\nETag: \"x\"\r\n\r\n"
    );
    assert_eq!(
        String::from_utf8(shifted)?,
        "<Key>a</Key><LastModified>2026-11-03T01:00:00.000Z</LastModified><Size>1</Size>"
    );
    Ok(())
}
