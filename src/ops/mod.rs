//! The verbs: archive, get, back up, plan, restore, verify, init, check, info, expire, pin.
//!
//! Each takes a request of plain values and the open repositories, and returns a report of plain values; printing is `cli`'s work.
//! Operations read as phases: what is checked before anything is written, what is written, and the one small object that makes
//! it real. A command killed anywhere leaves the repository readable, and repeating it succeeds.

pub mod archive;
pub mod backup;
pub mod check;
pub mod expire;
pub mod facts;
pub mod failure;
pub mod info;
pub mod init;
pub mod key;
pub mod pin;
pub mod plan;
pub mod restore;
mod runs;
pub mod verify;
pub mod words;

/// Where an operation tells how far it is. Implementations must be cheap: `advance` is called for every block.
pub trait Progress: Send + Sync {
    /// A phase begins; `total` is in bytes where it is known.
    fn begin(&self, phase: &str, total: Option<u64>);
    /// The phase's size became known.
    fn total(&self, bytes: u64);
    /// That many bytes more are done.
    fn advance(&self, bytes: u64);
    /// Something a person should see now: a warning of the server, a wait and its reason.
    fn note(&self, text: &str);
    /// The phase is over.
    fn end(&self);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _phase: &str, _total: Option<u64>) {}
    fn total(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _text: &str) {}
    fn end(&self) {}
}
