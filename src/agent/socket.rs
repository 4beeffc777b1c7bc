//! Where an agent listens: the socket's place in the file system, and the right to it.
//!
//! ```text
//!  lock beside the path ─► socket at the path ─► each second: are both still the ones that were made? ─ no ─► lock, if it is gone, and listen again
//!                                                                                                     └ another agent has the lock: the end
//! ```
//! Whoever tidies up a runtime directory (systemd does, when another unit that names it stops) takes both away, and the agent would be
//! unreachable for ever while a second one starts beside it. Invariants: only who holds the lock that lies there listens there; what another
//! agent made is never taken away.

use std::fs::{File, Metadata, TryLockError};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;

use super::LOOK;
use super::server::{self, Desk};
use crate::error::{Error, Kind, Result};

/// The socket, and the right to it.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Locked for as long as this lives.
    lock: File,
    /// The socket that was made.
    bound: Option<Inode>,
}

impl Socket {
    /// Takes the right to listen at `path`.
    ///
    /// # Errors
    /// `Busy` if another agent has it; `Failed` if the lock cannot be made.
    pub(super) fn reserve(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), lock: locked(path)?, bound: None })
    }

    /// Makes the socket. Needs a runtime.
    ///
    /// # Errors
    /// `Failed`.
    pub(super) fn listen(&mut self) -> Result<UnixListener> {
        // Left by one that was killed: whoever holds the lock may take it away.
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(unusable("replace the socket", &self.path, e));
            }
            _ => {}
        }
        let failed = |e: std::io::Error| {
            Error::failed(format!("cannot listen at {}", self.path.display()))
                .source(e)
                .hint("a socket's path has at most 107 bytes; name another one in [agent]")
        };
        let listener = UnixListener::bind(&self.path).map_err(failed)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        self.bound = Some(inode(&std::fs::symlink_metadata(&self.path).map_err(failed)?));
        Ok(listener)
    }

    /// Answers there, and listens again whenever the socket or its lock was taken away; until another agent has its place, which is what
    /// this returns.
    pub(super) async fn keep(mut self, mut listener: UnixListener, desk: Arc<Desk>) -> Error {
        loop {
            tokio::select! {
                () = server::serve(listener, Arc::clone(&desk)) => {}
                () = self.taken_away() => {}
            }
            tracing::warn!("the socket {} or its lock was taken away", self.path.display());
            listener = match self.listen_again().await {
                Ok(listener) => listener,
                Err(e) => return e,
            };
            tracing::warn!("the agent listens at {} again", self.path.display());
        }
    }

    async fn taken_away(&self) {
        while !self.lock_is_gone() && self.bound.is_some_and(|bound| !is_gone(&self.path, bound)) {
            crate::clock::sleep(LOOK).await;
        }
    }

    /// Tries for as long as the directory is not there or not usable: whoever took it away may make it again.
    async fn listen_again(&mut self) -> Result<UnixListener> {
        let mut complained = false;
        loop {
            match self.try_again() {
                Err(e) if e.kind() != Kind::Busy => {
                    if !complained {
                        tracing::warn!("nobody can ask the agent: {}", e.report());
                    }
                    complained = true;
                    crate::clock::sleep(LOOK).await;
                }
                done => return done,
            }
        }
    }

    fn try_again(&mut self) -> Result<UnixListener> {
        if self.lock_is_gone() {
            self.lock = locked(&self.path)?;
        }
        self.listen()
    }

    fn lock_is_gone(&self) -> bool {
        self.lock.metadata().is_ok_and(|ours| is_gone(&beside(&self.path), inode(&ours)))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another agent's stays. One of this agent that stays is replaced by the next.
        if self.bound.is_some_and(|bound| !is_gone(&self.path, bound)) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What tells one file from another for as long as the first one is open.
type Inode = (u64, u64);

fn inode(of: &Metadata) -> Inode {
    (of.dev(), of.ino())
}

/// Whether `path` is not this file any more. What cannot be looked at may be.
fn is_gone(path: &Path, ours: Inode) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(found) => inode(&found) != ours,
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

fn locked(path: &Path) -> Result<File> {
    let mut open = File::options();
    open.write(true).create(true).truncate(false).mode(0o600);
    let lock = open.open(beside(path)).map_err(|e| unusable("make the lock beside", path, e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(Error::busy(format!("another agent listens at {}", path.display()))
                .hint("one agent serves a cluster; `pitr agent --status` asks it how it goes"))
        }
        Err(TryLockError::Error(e)) => Err(unusable("lock what lies beside", path, e)),
    }
}

fn unusable(what: &str, path: &Path, e: std::io::Error) -> Error {
    Error::failed(format!("cannot {what} {}", path.display())).source(e).hint(
        "its directory must exist and belong to the server's user: under systemd, RuntimeDirectory=pitr makes it; else name another socket in [agent]",
    )
}
