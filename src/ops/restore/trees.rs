//! The trees that a restore writes: the data directory and each tablespace elsewhere.
//!
//! ```text
//!  a file in one part      create ─ write ─ time ─ close       most files: opened once
//!  a file in several       create ─ write, write, … ─ time ─ close      held open from its first part to its last
//! ```
//! Parts come from many threads. Invariants: a file is created once and never over an existing one; nothing leads out of its tree;
//! open files are those of which parts are under way. Whether a file is whole is for `fetch` to know. Symbolic links come last, so
//! that no file can be written through one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::directory::durable_error;
use super::fetch::Sink;
use super::image::{File, Image, Row};
use super::layout::Layout;
use super::prepare::Prepared;
use crate::durable::{RestoreFile, TreeWriter};
use crate::error::Result;
use crate::ops::runs::RowKind;

/// Where files go.
#[derive(Debug)]
pub(super) struct Trees {
    layout: Layout,
    writers: Vec<TreeWriter>,
    /// Mode of a directory that no row of the backup names.
    dir_mode: u32,
    open: Mutex<HashMap<u32, Arc<Open>>>,
    written: AtomicU64,
}

/// A file of which parts are there.
#[derive(Debug)]
struct Open {
    file: RestoreFile,
    left: AtomicU64,
}

impl Trees {
    pub(super) fn new(p: &Prepared) -> Self {
        let places = p.tablespaces.iter().filter_map(|(t, _)| t.place.as_ref());
        let roots = std::iter::once(&p.place.path).chain(places);
        Self {
            layout: p.layout.clone(),
            writers: roots.map(|root| TreeWriter::new(root, p.owner())).collect(),
            dir_mode: p.access.directory_mode(),
            open: Mutex::default(),
            written: AtomicU64::new(0),
        }
    }

    /// The data directory.
    pub(super) fn root(&self) -> &TreeWriter {
        self.writers.first().expect("new() puts the data directory first")
    }

    /// Bytes of files so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Is this file restored?
    pub(super) fn takes(&self, path: &[u8]) -> bool {
        self.destination(path).is_some()
    }

    /// The tree of a file of the backup, and its path there.
    pub(super) fn destination(&self, path: &[u8]) -> Option<(&TreeWriter, PathBuf)> {
        let (tree, path) = self.layout.destination(path)?;
        Some((self.writers.get(tree)?, path))
    }

    /// Makes a file without bytes.
    pub(super) fn empty_file(&self, writer: &TreeWriter, path: &Path, row: &Row<'_>) -> Result<()> {
        self.create(writer, path, row.mode)?.set_modified(modified(row.mtime)).map_err(durable_error)
    }

    /// Makes the symbolic links. Those of tablespaces are PostgreSQL's to make.
    pub(super) fn links(&self, image: &Image) -> Result<()> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut rows = image.rows();
        while let Some(row) = rows.next_row()? {
            if row.kind != RowKind::Symlink || row.path.starts_with(b"pg_tblspc/") {
                continue;
            }
            if let Some((0, path)) = self.layout.destination(row.path) {
                let target = Path::new(std::ffi::OsStr::from_bytes(row.target));
                self.root().create_symlink(&path, target).map_err(durable_error)?;
            }
        }
        Ok(())
    }

    /// Creates a file; makes its directory if no row did.
    fn create(&self, writer: &TreeWriter, path: &Path, mode: u32) -> Result<RestoreFile> {
        let made = match writer.create_file(path, mode) {
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
                if let Some(above) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                    writer.create_dir(above, self.dir_mode).map_err(durable_error)?;
                }
                writer.create_file(path, mode)
            }
            made => made,
        };
        made.map_err(durable_error)
    }

    /// The open file; the first part creates it.
    fn opened(&self, file: &File, writer: &TreeWriter, path: &Path) -> Result<Arc<Open>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get(&file.number) {
            return Ok(Arc::clone(known));
        }
        let created = self.create(writer, path, file.mode)?;
        let fresh = Arc::new(Open { file: created, left: AtomicU64::new(file.size) });
        open.insert(file.number, Arc::clone(&fresh));
        Ok(fresh)
    }
}

impl Sink for Trees {
    fn put(&self, file: &File, at: u64, bytes: &[u8]) -> Result<()> {
        let Some((writer, path)) = self.destination(&file.path) else { return Ok(()) };
        let len = crate::codec::len_u64(bytes);
        self.written.fetch_add(len, Ordering::Relaxed);
        if len == file.size {
            let created = self.create(writer, &path, file.mode)?;
            created.write_at(0, bytes).map_err(durable_error)?;
            return created.set_modified(modified(file.mtime)).map_err(durable_error);
        }
        let open = self.opened(file, writer, &path)?;
        open.file.write_at(at, bytes).map_err(durable_error)?;
        if open.left.fetch_sub(len, Ordering::AcqRel) == len {
            open.file.set_modified(modified(file.mtime)).map_err(durable_error)?;
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&file.number);
        }
        Ok(())
    }
}

/// Modification times are kept for later comparisons (`--delta`) and for people; one that the clock cannot tell becomes 1970.
fn modified(mtime: i64) -> SystemTime {
    let distance = Duration::from_secs(mtime.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let told = if mtime < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    told.unwrap_or(epoch)
}
