//! Directories as values: what is below one, how two differ, one as it was before, and where a restore moves one aside.
//!
//! A file that cannot be read counts as an empty one; times and owners are copied, and not compared.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::cluster::run;
use super::restored::walk;

/// Files by their place below the directory, and what is in them.
pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Files in which two restores of one backup differ: a free port, the time, the configuration's name, the reader's pin.
const OWN: [&str; 3] = ["postgresql.conf", "postgresql.auto.conf", "pitr.copy"];

/// Every file below a directory; nothing if it is not there.
pub fn tree(root: &Path) -> Result<Tree> {
    let mut found = Tree::new();
    if root.exists() {
        walk(root, &mut |path| {
            let name = path.strip_prefix(root).unwrap_or(path).to_owned();
            found.insert(name, fs::read(path).unwrap_or_default());
        })?;
    }
    Ok(found)
}

/// The same but for what each restore has of its own.
pub fn without_own(mut tree: Tree) -> Tree {
    let own = tree.iter_mut().filter(|(path, _)| OWN.iter().any(|own| path.as_path() == Path::new(own)));
    own.for_each(|(_, bytes)| bytes.clear());
    tree
}

/// Files that are in one alone, or another one in each.
pub fn differ(one: &Tree, other: &Tree) -> Vec<PathBuf> {
    let mut all: Vec<&PathBuf> = one.keys().chain(other.keys()).collect();
    all.sort();
    all.dedup();
    all.into_iter().filter(|path| one.get(*path) != other.get(*path)).cloned().collect()
}

/// Makes sure that nothing is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(fs::remove_dir_all(path)?),
        Ok(_) => Ok(fs::remove_file(path)?),
        Err(_) => Ok(()),
    }
}

/// A file or a directory again as it was, times and owners too.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    remove(to)?;
    run(Command::new("cp").arg("-a").args([from, to])).map(drop)
}

/// Where restores moved what was at `data`.
pub fn aside(data: &Path) -> Result<Vec<PathBuf>> {
    let name = data.file_name().context("a name")?.to_string_lossy().into_owned() + ".before-";
    let beside = fs::read_dir(data.parent().context("a parent")?)?.collect::<std::io::Result<Vec<_>>>()?;
    let is_aside = |entry: &&fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&name);
    Ok(beside.iter().filter(is_aside).map(fs::DirEntry::path).collect())
}
