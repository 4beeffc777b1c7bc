//! Root steps down: a command started as root acts as the owner of the data directory where it touches it or a repository.
//!
//! PostgreSQL refuses to run as root, and a repository with root's files in it would stop the server's own `archive-push`. The
//! change is made once, for the whole process, before any work, and cannot be taken back.

use nix::sys::prctl;
use nix::unistd::{Gid, Uid};

pub use crate::account::Account;
use crate::error::Error;

/// True if this process may change its user.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// From now on no core dump is written of this process: secrets in its memory would lie in it. Nor do other processes of its user
/// read its memory or its environment.
///
/// # Errors
/// If the kernel refuses.
pub fn no_core_dumps() -> Result<(), Error> {
    // Tests refuse system calls by their paths, which a tracer reads from this process.
    #[cfg(feature = "testing")]
    if std::env::var_os("PITR_TEST_TRACED").is_some() {
        return Ok(());
    }
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)
        .map_err(|e| Error::failed("cannot tell whether core dumps are written").source(e))?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)
        .map_err(|e| Error::failed("cannot forbid core dumps").source(e))?;
    // A program that `core_pattern` names is handed the core whatever that limit says (core(5)), but for this.
    prctl::set_dumpable(false).map_err(|e| Error::failed("cannot forbid core dumps").source(e))
}

/// Changes the user of this process, and leaves it as closed to other processes as it was: the kernel goes back to its default
/// (`fs.suid_dumpable`) then.
fn change_user(change: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
    let open = prctl::get_dumpable()?;
    change()?;
    if open { Ok(()) } else { prctl::set_dumpable(false) }
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
    // Supplementary groups matter: Debian's postgres reads its TLS key through one.
    nix::unistd::setgroups(&account.groups()).map_err(|e| failed("setgroups", e))?;
    change_user(|| nix::unistd::setgid(gid)).map_err(|e| failed("setgid", e))?;
    change_user(|| nix::unistd::setuid(uid)).map_err(|e| failed("setuid", e))
}

/// Becomes `account` and then `program` (a path and its arguments). Returns only if that fails.
pub fn exec_as(account: &Account, program: &[std::ffi::OsString]) -> Error {
    use std::os::unix::process::CommandExt as _;
    let Some((name, arguments)) = program.split_first() else { return Error::usage("no program is named") };
    if let Err(error) = step_down(account) {
        return error;
    }
    let cause = std::process::Command::new(name).args(arguments).exec();
    Error::failed(format!("cannot run {}", name.display())).source(cause)
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
    change_user(|| nix::unistd::setegid(Gid::from_raw(account.gid))).map_err(failed)?;
    change_user(|| nix::unistd::seteuid(Uid::from_raw(account.uid))).map_err(failed)?;
    let done = work();
    change_user(|| nix::unistd::seteuid(Uid::from_raw(0))).map_err(failed)?;
    change_user(|| nix::unistd::setegid(Gid::from_raw(0))).map_err(failed)?;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_holds_a_secret_stays_closed_when_its_user_changes() {
        assert!(prctl::get_dumpable().unwrap());
        no_core_dumps().unwrap();
        assert!(!prctl::get_dumpable().unwrap());
        // What the kernel does at a change of user, where `fs.suid_dumpable` is not zero.
        change_user(|| prctl::set_dumpable(true)).unwrap();
        assert!(!prctl::get_dumpable().unwrap());
        // Its own files in /proc are root's now, and can be used all the same.
        assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() > 2);
        assert!(std::fs::read_link("/proc/self/exe").is_ok());
        prctl::set_dumpable(true).unwrap();
        change_user(|| Ok(())).unwrap();
        assert!(prctl::get_dumpable().unwrap());
    }
}
