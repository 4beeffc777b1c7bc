//! The files of keys that a configuration names, looked at each second: who replaces one need not restart the agent.
//!
//! `pitr key rotate` replaces the host file by a rename. A look is a `stat`; what a file holds is read with the configuration, of which it is a
//! part. Invariant: a change is told once, and none is missed, however soon after the reading it comes.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

/// A file that was changed less than this before it was looked at may change again without showing it.
const FRESH: SignedDuration = SignedDuration::from_secs(2);

/// Which file it is, and when it was last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Of the inode: a rename shows in it too.
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// A time that is yet to come is of a clock that was set back since, and says as much as an old one.
    fn is_fresh(&self, now: Timestamp) -> bool {
        Timestamp::new(self.changed.0, i32::try_from(self.changed.1).unwrap_or(0))
            .is_ok_and(|changed| now.duration_since(changed).abs() < FRESH)
    }
}

/// Files, and how they were when they were read.
#[derive(Debug)]
pub(super) struct KeyFiles(Vec<(PathBuf, Option<Stamp>)>);

impl KeyFiles {
    /// The files at `paths`, which were read just before `now`.
    pub(super) fn read(paths: &[PathBuf], now: Timestamp) -> Self {
        let settled = |path: &PathBuf| (path.clone(), Stamp::of(path).filter(|stamp| !stamp.is_fresh(now)));
        Self(paths.iter().map(settled).collect())
    }

    /// Whether one of them is another one now. One that is gone is none: whoever replaces it may be about to.
    pub(super) fn have_changed(&self) -> bool {
        self.0.iter().any(|(path, seen)| Stamp::of(path).is_some_and(|now| Some(now) != *seen))
    }

    /// The change was told.
    pub(super) fn note(&mut self) {
        for (path, seen) in &mut self.0 {
            *seen = Stamp::of(path).or(*seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::durable::write_replace;

    #[test]
    fn a_replaced_file_is_told_once_and_one_that_is_gone_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("main.host"), dir.path().join("none")];
        let put = |text: &str| write_replace(&paths[0], text.as_bytes(), 0o600, None).unwrap();
        put("one");
        let now = SystemClock.now();
        assert!(KeyFiles::read(&paths, now).have_changed(), "it may have been changed since it was read");
        let mut files = KeyFiles::read(&paths, now + FRESH + FRESH);
        assert!(!files.have_changed());
        assert!(!KeyFiles::read(&paths, now - FRESH - FRESH).have_changed(), "the clock was set back");
        // As long as before.
        put("two");
        assert!(files.have_changed());
        files.note();
        assert!(!files.have_changed());
        let aside = dir.path().join("aside");
        std::fs::rename(&paths[0], &aside).unwrap();
        assert!(!files.have_changed());
        files.note();
        std::fs::rename(&aside, &paths[0]).unwrap();
        assert!(files.have_changed(), "it came by a rename");
    }
}
