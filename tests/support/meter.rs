//! A relay on loopback that counts what comes back through it.
//!
//! How many bytes a command really fetched is what its user pays for; what it says of itself is no oracle.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::Result;

/// A relay to one server. It ends with the process.
pub struct Meter {
    address: String,
    fetched: Arc<AtomicU64>,
}

impl Meter {
    /// Relays to `server`.
    pub fn before(server: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let meter = Self { address: listener.local_addr()?.to_string(), fetched: Arc::default() };
        let (server, fetched) = (server.to_owned(), Arc::clone(&meter.fetched));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                let fetched = Arc::clone(&fetched);
                thread::spawn(move || pass(from, to, &AtomicU64::new(0)));
                thread::spawn(move || pass(server, client, &fetched));
            }
        });
        Ok(meter)
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Bytes that came from the server so far, heads of answers included.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        count.fetch_add(u64::try_from(read).unwrap_or(0), Ordering::SeqCst);
        if to.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
            break;
        }
    }
    // Who waits for more learns that there is none.
    let _ = (to.shutdown(Shutdown::Write), from.shutdown(Shutdown::Read));
}
