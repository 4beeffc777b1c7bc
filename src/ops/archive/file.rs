//! One file of `pg_wal`, read once: checked, scanned, digested and compressed in the same pass.
//!
//! ```text
//!  first page ─► whose is it?  (system id, segment size)       before anything else is read
//!  blocks ─┬─ wal::scan        records, CRCs, times
//!          └─ WalObjectBuilder BLAKE3, zstd: a second thread   ► one object, ready for every repository
//! ```
//! Invariants: the bytes that were checked are the bytes that are stored, because nothing is read twice; memory is the compressed
//! file and a few blocks. What is refused here, and what is not, is decided in `wal::scan`.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use crate::codec::Compression;
use crate::error::Error;
use crate::repo::path::ClusterName;
use crate::repo::walobject::{Asked, Facts, WalObject, WalObjectBuilder};
use crate::wal::page::PageHeader;
use crate::wal::scan::{Keep, ScanError, Scanner, SegmentScan};
use crate::wal::timeline::{MAX_HISTORY_BYTES, TimelineHistory};
use crate::wal::{PAGE_SIZE, SegmentName, SegmentSize, SystemId, WalFileName};

/// Read at a time. Large enough that a system call costs nothing, small enough to stay in the second-level cache.
pub(super) const BLOCK: usize = 256 * 1024;
/// Blocks on their way from the reader to the builder.
const BLOCKS: usize = 3;
/// Upper bound of a history or backup history file; real ones have some hundred bytes.
const MAX_SMALL_FILE: u64 = MAX_HISTORY_BYTES as u64;

/// A file that was opened and whose owner is known; its content is not read yet.
#[derive(Debug)]
pub struct WalSource {
    path: PathBuf,
    file: File,
    /// Its name.
    pub name: WalFileName,
    /// Its size in bytes.
    pub size: u64,
    /// Who wrote it, and with which segment size; `None` for files that hold no WAL.
    pub origin: Option<(SystemId, SegmentSize)>,
    first: Vec<u8>,
    opened: Stamp,
}

/// Which file it is, and when its content was last written: PostgreSQL gives a segment that it needs no more another name and writes to it,
/// and whoever has it open reads that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

/// A file that was read, and what became of it.
#[derive(Debug)]
pub struct WalContent {
    /// The object to store.
    pub object: WalObject,
    /// What the scan learned, of a file that holds WAL.
    pub scan: Option<SegmentScan>,
}

impl WalSource {
    /// Opens `path` and looks at its first page.
    ///
    /// # Errors
    /// For a name that is not PostgreSQL's, a file that cannot be read, and a file whose size or first page cannot be a segment's.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = WalFileName::parse(&text).map_err(|e| {
            Error::usage(format!("cannot archive {}", path.display()))
                .source(e)
                .hint("archive_command passes %p: 'pitr --config FILE archive-push %p'")
        })?;
        let file = File::open(path).map_err(|e| unreadable(path, e))?;
        let found = file.metadata().map_err(|e| unreadable(path, e))?;
        let (size, opened) = (found.len(), Stamp::from(&found));
        let mut source =
            Self { path: path.to_owned(), file, name, size, origin: None, first: Vec::new(), opened };
        match name {
            WalFileName::Segment(_) | WalFileName::Partial(_) => source.read_first_page()?,
            WalFileName::History(_) | WalFileName::BackupHistory(..) if size > MAX_SMALL_FILE => {
                return Err(Error::refused(format!("{name} has {size} bytes, more than any real one"))
                    .hint("nothing was stored: look at what it holds"));
            }
            WalFileName::History(_) | WalFileName::BackupHistory(..) => {}
        }
        Ok(source)
    }

    fn read_first_page(&mut self) -> Result<(), Error> {
        let mut page = vec![0_u8; usize::try_from(PAGE_SIZE).unwrap_or(8192)];
        let read = read_full(&mut self.file, &mut page).map_err(|e| unreadable(&self.path, e))?;
        page.truncate(read);
        let name = self.name;
        let damaged = |what: String| {
            Error::corrupt(format!("{name} is not a WAL segment: {what}"))
                .hint("nothing was stored; is the path right, and is the file complete? If it is damaged for good, see `pitr accept`")
        };
        let header = PageHeader::parse(&page).map_err(|e| damaged(e.to_string()))?;
        let long = header.long.ok_or_else(|| damaged("its first page has no long header".to_owned()))?;
        let size = SegmentSize::new(u64::from(long.segment_size)).map_err(|e| damaged(e.to_string()))?;
        if self.size != size.bytes() {
            let text = format!("{name} has {} bytes, but its first page says {}", self.size, size.bytes());
            return Err(
                Error::corrupt(text).hint("the file is truncated or still being written; nothing was stored")
            );
        }
        self.origin = Some((long.system_id, size));
        self.first = page;
        Ok(())
    }

    /// Reads the content in one pass. Blocking; takes a processor for as long as compression takes.
    ///
    /// # Errors
    /// Names the file and what is wrong with it. Nothing was stored.
    pub fn read(
        self,
        cluster: &ClusterName,
        system: SystemId,
        compression: Compression,
    ) -> Result<WalContent, Error> {
        let asked = Asked { cluster: cluster.clone(), system, name: self.name };
        match self.name {
            WalFileName::Segment(name) => self.read_wal(name, asked, compression),
            WalFileName::Partial(name) => self.read_wal(name, asked, compression),
            WalFileName::History(timeline) => {
                let content = self.read_small()?;
                TimelineHistory::parse(timeline, &content).map_err(|e| {
                    Error::corrupt(format!("{} is damaged", self.name))
                        .source(e)
                        .hint("copy it from the server that was promoted; nothing was stored")
                })?;
                self.store_small(asked, &content, compression)
            }
            WalFileName::BackupHistory(..) => {
                let content = self.read_small()?;
                self.store_small(asked, &content, compression)
            }
        }
    }

    fn read_wal(
        mut self,
        segment: SegmentName,
        asked: Asked,
        compression: Compression,
    ) -> Result<WalContent, Error> {
        let name = self.name;
        let Some((_, size)) = self.origin else {
            return Err(Error::corrupt(format!("{name} is not a WAL segment")));
        };
        let builder =
            WalObjectBuilder::new(asked, self.size, compression).map_err(|e| unbuildable(name, e))?;
        // A partial segment is never replayed under its full name; damage in it is no reason to lose it.
        let partial = matches!(name, WalFileName::Partial(_));
        let mut scanner = Some(Scanner::new(segment, size, Keep::Summary).map_err(|e| refused(&e))?);
        let scan = |block: &[u8]| {
            if let Some(scan) = scanner.as_mut()
                && let Err(e) = scan.push(block)
            {
                if !partial {
                    return Err(refused(&e));
                }
                scanner = None;
            }
            Ok(())
        };
        let read = self.read_into(builder, scan);
        // Before it is judged: what was read of another file is no damage of this one.
        self.is_the_one_opened()?;
        let builder = read?;
        let scan = match scanner.map(Scanner::finish) {
            Some(Ok(scan)) => Some(scan),
            Some(Err(e)) if !partial => return Err(refused(&e)),
            Some(Err(_)) | None => None,
        };
        let facts = scan.as_ref().map_or(Facts::Unscanned, Facts::Scanned);
        let object = builder.finish(facts).map_err(|e| unbuildable(name, e))?;
        Ok(WalContent { object, scan })
    }

    fn is_the_one_opened(&self) -> Result<(), Error> {
        let now = std::fs::metadata(&self.path).ok().map(|found| Stamp::from(&found));
        if now == Some(self.opened) {
            return Ok(());
        }
        Err(Error::failed(format!("{} became another file while it was read", self.path.display())).hint(
            "nothing was stored; if it still waits to be archived, PostgreSQL offers it again by itself",
        ))
    }

    /// Hands the file to `scan` and to the builder, block by block. The builder has a thread of its own: digest and compression take longer
    /// than reading and scanning, and PostgreSQL waits for the longer of the two only.
    fn read_into(
        &mut self,
        mut builder: WalObjectBuilder,
        mut scan: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<WalObjectBuilder, Error> {
        let name = self.name;
        let (hand_on, blocks) = mpsc::sync_channel::<Vec<u8>>(BLOCKS);
        let (give_back, used) = mpsc::channel();
        std::thread::scope(|scope| {
            let building = scope.spawn(move || {
                for block in blocks {
                    builder.push(&block)?;
                    // The reader may have come to its end.
                    let _ = give_back.send(block);
                }
                Ok(builder)
            });
            let mut block = std::mem::take(&mut self.first);
            let read = loop {
                if let Err(e) = scan(&block) {
                    break Err(e);
                }
                if hand_on.send(block).is_err() {
                    // The builder failed, and says why.
                    break Ok(());
                }
                block = used.try_recv().unwrap_or_default();
                block.resize(BLOCK, 0);
                match read_full(&mut self.file, &mut block) {
                    Ok(0) => break Ok(()),
                    Ok(read) => block.truncate(read),
                    Err(e) => break Err(unreadable(&self.path, e)),
                }
            };
            drop(hand_on);
            let built = building.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            read?;
            built.map_err(|e| unbuildable(name, e))
        })
    }

    fn read_small(&self) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        (&self.file).take(MAX_SMALL_FILE).read_to_end(&mut content).map_err(|e| unreadable(&self.path, e))?;
        self.is_the_one_opened()?;
        Ok(content)
    }

    fn store_small(
        &self,
        asked: Asked,
        content: &[u8],
        compression: Compression,
    ) -> Result<WalContent, Error> {
        Ok(WalContent { object: small_object(asked, content, compression)?, scan: None })
    }
}

/// The object of a file that holds no WAL.
pub(super) fn small_object(
    asked: Asked,
    content: &[u8],
    compression: Compression,
) -> Result<WalObject, Error> {
    let name = asked.name;
    let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
    let mut builder = WalObjectBuilder::new(asked, size, compression).map_err(|e| unbuildable(name, e))?;
    builder.push(content).map_err(|e| unbuildable(name, e))?;
    builder.finish(Facts::Unscanned).map_err(|e| unbuildable(name, e))
}

/// As many bytes as fit or the file has.
pub(super) fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => filled = filled.saturating_add(n),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

pub(super) fn unreadable(path: &Path, cause: std::io::Error) -> Error {
    let error = Error::failed(format!("cannot read {}", path.display()));
    let hint = match cause.kind() {
        ErrorKind::NotFound => {
            "a relative path counts from the data directory, where PostgreSQL starts archive_command"
        }
        ErrorKind::PermissionDenied => "run the command as the owner of the data directory",
        _ => "nothing was stored; PostgreSQL will offer the file again",
    };
    error.source(cause).hint(hint)
}

fn refused(cause: &ScanError) -> Error {
    Error::corrupt(cause.to_string()).hint(
        "nothing was stored, and PostgreSQL keeps the file; compare with pg_waldump. If no good copy can be had (a standby may have one), `pitr accept FILE --damaged` lets archiving go on past it; then take a new backup",
    )
}

pub(super) fn unbuildable(name: WalFileName, cause: crate::repo::walobject::WalObjectError) -> Error {
    Error::failed(format!("cannot make an object of {name}")).source(cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::write_replace;
    use crate::wal::Lsn;
    use crate::wal::testing::Wal;

    /// A checkpoint gives a segment that is archived the name of a later one, and the server writes there: whoever still has it open reads the
    /// new WAL after the old first page.
    #[test]
    fn a_segment_that_is_used_again_while_it_is_open_is_neither_stored_nor_called_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let wal = Wal::starting_at(Lsn::new(1 << 20)).filler(200_000);
        let (name, bytes) = wal.segments().into_iter().next().unwrap();
        let system = PageHeader::parse(bytes.get(..8192).unwrap()).unwrap().long.unwrap().system_id;
        let path = dir.path().join(name.to_string());
        let opened = || {
            write_replace(&path, &bytes, 0o600, None).unwrap();
            WalSource::open(&path).unwrap()
        };
        let read =
            |source: WalSource| source.read(&"main".parse().unwrap(), system, Compression::Stored).map(drop);
        read(opened()).unwrap();
        // Under its new name, with other bytes or with none yet.
        let source = opened();
        let later = dir.path().join("0000000100000000000000AA");
        std::fs::rename(&path, &later).unwrap();
        let error = read(source).unwrap_err();
        assert!(
            error.kind() == crate::error::Kind::Failed && error.message().contains("another file"),
            "{error}"
        );
        // In its place, and what is read of it looks like damage.
        let source = opened();
        let mut file = File::options().write(true).open(&path).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(100_000)).unwrap();
        std::io::Write::write_all(&mut file, &[0xFF; 40_000]).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let error = read(source).unwrap_err();
        assert!(error.message().contains("another file"), "{error}");
    }
}
