//! The objects that make packs a backup: the map of all files, PostgreSQL's own manifest, the catalogue, and last the verdict.
//!
//! ```text
//!  catalogue.json.zst   backup_manifest   manifest.jsonl.zst     their digests go into ►  backup.json {complete}
//! ```
//! Pure: builds bytes. Who stores them, and in which order, is `mod.rs`.

use bytes::Bytes;

use super::listing::{Row, Sealed};
use crate::codec::{Compression, Hasher};
use crate::error::{Error, Result};
use crate::ops::runs::RowKind;
use crate::pgdata::backup_manifest::crc32c_hex;
use crate::repo::manifest::{
    FileEntry, FileKind, ManifestHeader, ManifestObject, ManifestWriter, PackLine, Path,
};
use crate::repo::objects::ObjectRef;
use crate::repo::pack::PackInfo;

/// Metadata is small and read often: a level that packs it better than the data.
const COMPRESSION: Compression = Compression::Zstd { level: 3 };

/// The map of all files.
pub(super) fn manifest(header: &ManifestHeader, packs: &[PackInfo], sent: &Sealed) -> Result<ManifestObject> {
    let lines: Vec<PackLine> = (0..)
        .zip(packs)
        .map(|(number, info)| PackLine { backup: header.backup.clone(), number, info: *info })
        .collect();
    let mut writer = ManifestWriter::new(header, &lines, COMPRESSION).map_err(unwritable)?;
    let mut rows = sent.rows();
    while let Some(row) = rows.next()? {
        writer.push(&entry(&row)?).map_err(unwritable)?;
    }
    writer.finish().map_err(unwritable)
}

fn entry(row: &Row<'_>) -> Result<FileEntry> {
    let kind = match row.kind {
        RowKind::File => FileKind::File {
            size: row.size,
            extents: row.extents(),
            checksum: Some(format!("CRC32C:{}", crc32c_hex(row.crc))),
        },
        RowKind::Directory => FileKind::Directory,
        RowKind::Symlink => FileKind::Symlink { target: row.target.to_vec() },
    };
    Ok(FileEntry {
        path: Path::new(row.path).map_err(unwritable)?,
        kind,
        mode: row.mode,
        mtime: i64::try_from(row.mtime).unwrap_or(i64::MAX),
        uid: row.uid,
        gid: row.gid,
        // The server's archives carry numbers; the names in them are the constant "postgres".
        user: String::new(),
        group: String::new(),
    })
}

/// How the verdict refers to an object.
pub(super) fn object_ref(chunks: &[Bytes]) -> ObjectRef {
    let mut hasher = Hasher::new();
    let mut stored = 0_u64;
    for chunk in chunks {
        hasher.update(chunk);
        stored = stored.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
    }
    ObjectRef { stored, digest: hasher.digest() }
}

fn unwritable(error: crate::repo::manifest::ManifestError) -> Error {
    Error::failed("cannot write the manifest of the backup").source(error)
}
