//! The target directory: what is there, whether it may be used, and how what is there is kept.
//!
//! ```text
//!  absent, empty ........ used
//!  our own leftovers .... `pitr.restoring` and no `global/pg_control`: emptied and used
//!  anything else ........ exit 9, unless --move-aside renames it
//!  a running server ..... exit 9, always
//! ```
//! Everything here is looked at before anything is written. Invariants: a directory in which a server may run is never touched;
//! nothing is deleted but what a killed restore of ours had written, which its marker proves; the marker goes away in the same
//! rename that brings `pg_control` (see [`super::marker`]), so no directory ever has both; a move aside that was interrupted is gone
//! on with (see [`super::moving`]).
//! Source of truth: RECOVERY.md 9 and 21; `CreateLockFile` in `miscinit.c` for `postmaster.pid`.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::durable::{self, Owner, TreeWriter};
use crate::error::{Error, Result};
use crate::pgdata::ControlFile;
use crate::pgdata::pidfile::{self, PidFile};

use super::{marker, moving};

/// What is in a target directory.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nothing has this name; the directory that will hold it exists.
    Absent,
    /// A directory without entries (a file system's own `lost+found` apart).
    Empty,
    /// What a killed restore left.
    Leftover,
    /// A PostgreSQL data directory; its control file, where it can be read.
    Cluster(Option<Box<ControlFile>>),
    /// Something else, with so many entries.
    Other(usize),
}

/// A target directory as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Absolute, symbolic links followed.
    pub path: PathBuf,
    /// What is in it.
    pub state: State,
    /// It is the root of a file system: it cannot be renamed, its contents can.
    pub mount_point: bool,
    /// Who owns it, where it exists.
    pub owner: Option<Owner>,
    /// Where an interrupted restore was moving to what was here: the tablespaces of that directory, or some of its files, are still to
    /// follow.
    pub unfinished: Option<PathBuf>,
}

impl Place {
    /// Looks at `target`. Changes nothing.
    ///
    /// # Errors
    /// Kind `NotFound` if the directory above is missing (a mount that is not there?), `Refused` if a server runs in it.
    pub fn inspect(target: &Path) -> Result<Self> {
        let Some(path) = real_path(target)? else {
            let path = path_of_absent(target)?;
            let unfinished = unfinished(&path, false)?;
            return Ok(Self { path, state: State::Absent, mount_point: false, owner: None, unfinished });
        };
        let meta = std::fs::metadata(&path).map_err(|e| cannot("look at", &path, e))?;
        if !meta.is_dir() {
            return Err(Error::refused(format!("{} is not a directory", path.display()))
                .hint("name a directory, or a place where there is nothing, with --target-dir"));
        }
        refuse_running(&path)?;
        let above = path.parent().and_then(|p| std::fs::metadata(p).ok());
        let mount_point = above.is_some_and(|above| above.dev() != meta.dev());
        let owner = Some(Owner { uid: meta.uid(), gid: meta.gid() });
        let unfinished = unfinished(&path, mount_point)?;
        let half = unfinished.as_deref().filter(|_| mount_point);
        Ok(Self { state: state_of(&path, mount_point, half)?, path, mount_point, owner, unfinished })
    }

    /// True if something must be moved aside before the directory can be used.
    pub fn is_occupied(&self) -> bool {
        matches!(self.state, State::Cluster(_) | State::Other(_))
    }

    /// Refuses an occupied directory unless it may be moved aside.
    ///
    /// # Errors
    /// Kind `Refused`.
    pub fn check_free(&self, move_aside: bool) -> Result<()> {
        if let Some(kept) = self.unfinished.as_ref().filter(|_| self.is_occupied() && !self.mount_point) {
            return Err(Error::refused(format!(
                "an interrupted restore was moving tablespaces to {}, and something else is at {} now",
                kept.display(),
                self.path.display()
            ))
            .hint("move that away and repeat the command: it goes on where it was interrupted"));
        }
        if !self.is_occupied() || move_aside {
            return Ok(());
        }
        let what = match &self.state {
            State::Cluster(Some(control)) => {
                format!("{} holds a PostgreSQL cluster (system {})", self.path.display(), control.system_id)
            }
            State::Cluster(None) => format!("{} holds a PostgreSQL cluster", self.path.display()),
            State::Other(n) => format!("{} is not empty ({n} entries)", self.path.display()),
            State::Absent | State::Empty | State::Leftover => return Ok(()),
        };
        Err(Error::refused(what)
            .hint("give --move-aside to keep it under another name, or another --target-dir"))
    }

    /// Where an occupied directory goes: beside it, or into itself if it is the root of a file system; or where an interrupted restore
    /// was moving it.
    pub fn aside(&self, now: jiff::Timestamp) -> PathBuf {
        if let Some(kept) = &self.unfinished {
            return kept.clone();
        }
        let base = if self.mount_point {
            self.path.join(format!("{}{}", moving::KEPT, stamp(now)))
        } else {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".before-{}", stamp(now)));
            name.into()
        };
        // Two in one second never share a name.
        let numbered = |n: u32| {
            let mut name = base.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        let mut names = std::iter::once(base.clone()).chain((2..).map(numbered));
        names.find(|name| name.symlink_metadata().is_err()).unwrap_or(base)
    }

    /// Makes the directory empty: moves aside what is in it, or removes what a killed restore left.
    ///
    /// # Errors
    /// As the file system answers; what was moved stays moved.
    pub fn clear(&self, to: &Path, writer: &TreeWriter, mode: u32, owner: Option<Owner>) -> Result<()> {
        match self.state {
            State::Cluster(_) | State::Other(_) if self.mount_point => {
                moving::move_contents(&self.path, to, writer, owner)?;
            }
            State::Cluster(_) | State::Other(_) => {
                durable::move_aside(&self.path, to).map_err(durable_error)?;
            }
            State::Leftover => remove_leftovers(&self.path)?,
            State::Absent | State::Empty => {}
        }
        writer.make_root(mode).map_err(durable_error)
    }
}

/// `20251017T103000Z`: sorts, and needs no quoting in a shell.
pub fn stamp(now: jiff::Timestamp) -> String {
    now.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The error of a file system call on a path.
pub(super) fn cannot(action: &str, path: &Path, cause: io::Error) -> Error {
    Error::failed(format!("cannot {action} {}: {cause}", path.display())).source(cause)
}

/// The error of [`crate::durable`] with advice where there is some.
pub(super) fn durable_error(error: durable::DurableError) -> Error {
    let full = error.is_full();
    let denied = error.is_denied();
    let text = error.to_string();
    match (full, denied) {
        (true, _) => Error::failed(text).source(error).hint(
            "the file system is full: the directory has no pg_control, so PostgreSQL refuses it; make room and repeat the command",
        ),
        (_, true) => Error::new(crate::error::Kind::Key, text)
            .source(error)
            .hint("run the restore as the user that PostgreSQL runs as, or as root"),
        _ => Error::failed(text).source(error),
    }
}

/// `target` with links followed, or `None` if there is nothing.
fn real_path(target: &Path) -> Result<Option<PathBuf>> {
    match target.canonicalize() {
        Ok(path) => Ok(Some(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound && target.symlink_metadata().is_err() => Ok(None),
        Err(e) => Err(cannot("look at", target, e)),
    }
}

/// The absolute path of something that does not exist yet, in a directory that does.
fn path_of_absent(target: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(target).map_err(|e| cannot("look at", target, e))?;
    let (Some(above), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(Error::usage(format!("{} is not a directory name", target.display())));
    };
    match above.canonicalize() {
        Ok(above) => Ok(above.join(name)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Error::not_found(format!("{} does not exist", above.display()))
                .hint("is a file system not mounted? otherwise make the directory first"))
        }
        Err(e) => Err(cannot("look at", above, e)),
    }
}

/// An interrupted move, and that no server runs where it leads.
fn unfinished(path: &Path, mount_point: bool) -> Result<Option<PathBuf>> {
    let found = moving::unfinished(path, mount_point)?;
    found.as_deref().map_or(Ok(()), refuse_running)?;
    Ok(found)
}

/// What is in `path`. `half` holds the part of it that an interrupted move has moved already.
fn state_of(path: &Path, mount_point: bool, half: Option<&Path>) -> Result<State> {
    let mut entries = 0;
    for entry in std::fs::read_dir(path).map_err(|e| cannot("list", path, e))? {
        let name = entry.map_err(|e| cannot("list", path, e))?.file_name();
        let stays = if mount_point { moving::stays(&name) } else { name == "lost+found" };
        entries += usize::from(!stays);
    }
    let exists = |p: &Path| p.symlink_metadata().is_ok();
    let either = |below: &str| {
        half.map(|half| half.join(below)).into_iter().chain([path.join(below)]).find(|p| exists(p))
    };
    Ok(if entries == 0 && half.is_none() {
        State::Empty
    } else if let Some(control) = either("global/pg_control") {
        let read = std::fs::read(&control).ok().and_then(|bytes| ControlFile::parse(&bytes).ok());
        State::Cluster(read.map(Box::new))
    } else if exists(&path.join(marker::NAME)) {
        State::Leftover
    } else if either("PG_VERSION").is_some() {
        State::Cluster(None)
    } else {
        State::Other(entries)
    })
}

/// Refuses a directory in which a server may run.
fn refuse_running(path: &Path) -> Result<()> {
    let file = path.join(pidfile::NAME);
    let said = match std::fs::read(&file) {
        Ok(bytes) => PidFile::parse(&bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(cannot("read", &file, e)),
    };
    let running = said.process.is_some_and(|pid| is_postmaster(pid, path)) || answers(&said);
    if !running {
        return Ok(());
    }
    let shown = said.process.map_or_else(String::new, |pid| format!(" (process {pid})"));
    Err(Error::refused(format!("a server runs in {}{shown}", path.display()))
        .hint("stop it first, or restore beside it with --copy --target-dir DIR"))
}

/// True if `pid` may be the postmaster of `dir`. Numbers are used again: a process of another name, or one that works in
/// another directory, is not it. What cannot be read counts as yes.
fn is_postmaster(pid: i32, dir: &Path) -> bool {
    use nix::errno::Errno;
    if pid <= 1 {
        return false;
    }
    if matches!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None), Err(Errno::ESRCH)) {
        return false;
    }
    let of = |what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
    if let Ok(name) = std::fs::read_to_string(of("comm"))
        && !name.starts_with("postgres")
        && !name.starts_with("postmaster")
    {
        return false;
    }
    std::fs::read_link(of("cwd")).map_or(true, |cwd| cwd == dir)
}

/// True if somebody listens where `postmaster.pid` says: a server in another container has a process number that means nothing here.
fn answers(said: &PidFile) -> bool {
    let (Some(port), Some(folder)) = (said.port, &said.socket_dir) else { return false };
    std::os::unix::net::UnixStream::connect(Path::new(folder).join(format!(".s.PGSQL.{port}"))).is_ok()
}

/// Removes everything but the marker; links are removed, never followed.
fn remove_leftovers(path: &Path) -> Result<()> {
    for entry in std::fs::read_dir(path).map_err(|e| cannot("list", path, e))? {
        let entry = entry.map_err(|e| cannot("list", path, e))?;
        let own = entry.file_name();
        if own == marker::NAME || moving::stays(&own) {
            continue;
        }
        durable::crash_point("leftover");
        let kind = entry.file_type().map_err(|e| cannot("look at", &entry.path(), e))?;
        let removed = if kind.is_dir() {
            std::fs::remove_dir_all(entry.path())
        } else {
            std::fs::remove_file(entry.path())
        };
        removed.map_err(|e| cannot("remove", &entry.path(), e))?;
    }
    Ok(())
}

/// The mode of a data directory: what the backup's own root had, held to what PostgreSQL accepts (`checkDataDir`).
pub fn accepted_mode(path: &Path) -> u32 {
    let group = std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o040 != 0);
    if group { 0o750 } else { 0o700 }
}
