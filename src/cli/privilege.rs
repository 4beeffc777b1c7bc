//! Root steps down: a command started as root acts as the owner of the data directory where it touches it or a repository.
//!
//! PostgreSQL refuses to run as root, and a repository with root's files in it would stop the server's own `archive-push`. The
//! change is made once, for the whole process, before any work, and cannot be taken back.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User};

use crate::error::Error;

/// Who a command acts as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Login name, where the id has one.
    pub name: Option<String>,
    /// Home directory, where the id has one.
    pub home: Option<PathBuf>,
}

impl Account {
    /// The account that owns `path`.
    pub fn owner_of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self::of_ids(Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid())))
    }

    /// The account called `name`.
    pub fn named(name: &str) -> Option<Self> {
        let user = User::from_name(name).ok().flatten()?;
        Some(Self::of_ids(user.uid, user.gid))
    }

    /// The account this process runs as now.
    pub fn current() -> Self {
        Self::of_ids(Uid::effective(), Gid::effective())
    }

    /// The login name, or the number where there is none.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("uid {}", self.uid))
    }

    fn of_ids(uid: Uid, gid: Gid) -> Self {
        let known = User::from_uid(uid).ok().flatten();
        Self {
            uid: uid.as_raw(),
            gid: gid.as_raw(),
            name: known.as_ref().map(|u| u.name.clone()),
            home: known.map(|u| u.dir),
        }
    }
}

/// True if this process may change its user.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Becomes `account` for good. Does nothing when not root, or when `account` is root itself.
///
/// # Errors
/// If the kernel refuses (a container without CAP_SETUID).
pub fn step_down(account: &Account) -> Result<(), Error> {
    if !is_root() || account.uid == 0 {
        return Ok(());
    }
    let failed = |what: &str, errno: nix::Error| {
        Error::failed(format!("cannot become {} ({what})", account.label()))
            .source(errno)
            .hint("run the command as the owner of the data directory")
    };
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    match account.name.as_ref().and_then(|n| std::ffi::CString::new(n.as_str()).ok()) {
        // Supplementary groups matter: Debian's postgres reads its TLS key through one.
        Some(name) => nix::unistd::initgroups(&name, gid).map_err(|e| failed("initgroups", e))?,
        None => nix::unistd::setgroups(&[gid]).map_err(|e| failed("setgroups", e))?,
    }
    nix::unistd::setgid(gid).map_err(|e| failed("setgid", e))?;
    nix::unistd::setuid(uid).map_err(|e| failed("setuid", e))
}

/// Runs `work` with the effective user of `account`, then becomes root again: for the one question that must be asked as the
/// server's user (peer authentication looks at the effective user) while files that only root may write are still to come.
///
/// # Errors
/// If the kernel refuses, or what `work` returns.
pub fn acting_as<T>(account: &Account, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    if !is_root() || account.uid == 0 {
        return work();
    }
    let failed =
        |errno: nix::Error| Error::failed(format!("cannot act as {}", account.label())).source(errno);
    nix::unistd::setegid(Gid::from_raw(account.gid)).map_err(failed)?;
    nix::unistd::seteuid(Uid::from_raw(account.uid)).map_err(failed)?;
    let done = work();
    nix::unistd::seteuid(Uid::from_raw(0)).map_err(failed)?;
    nix::unistd::setegid(Gid::from_raw(0)).map_err(failed)?;
    done
}
