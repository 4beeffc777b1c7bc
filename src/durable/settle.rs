//! Many new files made durable at once: one `syncfs` per file system instead of an fsync per file.
//!
//! ```text
//!  begin   a descriptor on each file system        the kernel notes how many failed writes it had so far
//!  ahead     … files are written and closed …      what is there goes to the disk meanwhile, through other descriptors
//!  finish  syncfs through that descriptor          writes everything, and fails if a write failed since begin
//! ```
//! Linux tells `syncfs` of failed writes since 5.8, per descriptor, so one that is opened late, or another kernel, would hide them:
//! there, and on file systems that are not known to write all of their data and names this way, every file is fsynced.
//! Invariant: what was written below the roots after `begin` is durable when `finish` returned, or it failed.
//! Source of truth: syncfs(2); `recovery_init_sync_method` in `fd.c`, which makes the same choice.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};

use super::crash::point;
use super::{Context as _, DurableError, open_dir, parent_of, sync_dir, sync_tree};

/// File systems whose `syncfs` is complete and tells of failures.
const COMPLETE: [FsType; 4] = [BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC];
/// First kernel whose `syncfs` tells of failed writes.
const FIRST_KERNEL: (u32, u32) = (5, 8);

/// Trees that are being written.
#[derive(Debug)]
pub struct Settle {
    roots: Vec<PathBuf>,
    /// One descriptor on each file system, if `syncfs` serves on all of them.
    systems: Option<Vec<(File, PathBuf)>>,
}

impl Settle {
    /// Takes note of the file systems of these directories, before anything is written below them.
    ///
    /// # Errors
    /// If one of them cannot be opened.
    pub fn begin(roots: Vec<PathBuf>) -> Result<Self, DurableError> {
        let mut systems = Some(Vec::new());
        let mut devices = BTreeSet::new();
        for root in &roots {
            let dir = open_dir(root)?;
            let serves = is_complete(&dir);
            let new = devices.insert(dir.metadata().context("look at", root)?.dev());
            match systems.as_mut().filter(|_| serves) {
                Some(systems) if new => systems.push((dir, root.clone())),
                Some(_) => {}
                None => systems = None,
            }
        }
        Ok(Self { roots, systems })
    }

    /// Writes what is there already, so that less is left for the end. Whether it succeeds is for [`Settle::finish`] to say: its
    /// descriptors see every failure, and a descriptor that was told of one is not told again.
    pub fn ahead(&self) {
        for (_, root) in self.systems.iter().flatten() {
            let _ = open_dir(root).map(|dir| nix::unistd::syncfs(&dir));
        }
    }

    /// Makes everything below the roots, and their own names, durable. `threads` fsync where that is done file by file.
    ///
    /// # Errors
    /// The first failure, with its path: for `syncfs` the root.
    pub fn finish(&self, threads: usize) -> Result<(), DurableError> {
        point("unsettled");
        let Some(systems) = &self.systems else {
            self.roots.iter().try_for_each(|root| sync_tree(root, threads))?;
            point("settled");
            return Ok(());
        };
        for (dir, root) in systems {
            nix::unistd::syncfs(dir).context("sync the file system of", root)?;
        }
        point("settled");
        // The directory above a root may lie on another file system.
        self.roots.iter().try_for_each(|root| sync_dir(parent_of(root)))
    }
}

fn is_complete(dir: &File) -> bool {
    let known = fstatfs(dir).is_ok_and(|stat| COMPLETE.contains(&stat.filesystem_type()));
    known && nix::sys::utsname::uname().is_ok_and(|name| tells_failures(&name.release().to_string_lossy()))
}

/// Is this kernel, such as `6.1.0-18-amd64`, one that tells?
fn tells_failures(release: &str) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    parts.next().zip(parts.next()).is_some_and(|version| version >= FIRST_KERNEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_hide_failed_writes_are_known() {
        for (release, tells) in [
            ("5.7.19", false),
            ("5.8.0-rc1", true),
            ("6.1.0-18-amd64", true),
            ("4.19.0", false),
            ("weird", false),
        ] {
            assert_eq!(tells_failures(release), tells, "{release}");
        }
    }

    #[test]
    fn trees_settle_by_either_way_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        std::fs::create_dir(&root).unwrap();
        let mut settle = Settle::begin(vec![root.clone(), dir.path().to_owned()]).unwrap();
        crate::durable::write_replace(&root.join("1259"), b"rows", 0o600, None).unwrap();
        assert!(
            settle.systems.as_ref().is_none_or(|systems| systems.len() == 1),
            "one file system, one sync"
        );
        settle.systems = None;
        settle.finish(2).unwrap();
        Settle::begin(vec![root]).unwrap().finish(2).unwrap();
        let missing = Settle::begin(vec![dir.path().join("none")]).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
