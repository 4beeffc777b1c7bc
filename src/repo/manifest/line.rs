//! The lines of a manifest as JSON, each self-contained: `zstd -d manifest.jsonl.zst | jq .` reads them.
//!
//! Members have short names, since there is a line for every file; those that say nothing (no names of owners, no checksum) are
//! left out. A path or a link's target that is not UTF-8 stands as hexadecimal under another name, as in PostgreSQL's own
//! manifest. Unknown members are skipped. Pure.

use serde::{Deserialize, Serialize};

use super::{
    Extent, FileEntry, FileKind, MAX_PACK_LINES, MAX_PATH, ManifestError, ManifestHeader, PackLine, Path,
    bytes_of, text_or_hex,
};
use crate::codec::Digest;
use crate::repo::pack::{MAX_FRAMES, MAX_PACK, PackInfo};
use crate::repo::path::{BackupId, MAX_PACKS};
use crate::wal::SystemId;

#[derive(Serialize, Deserialize)]
struct HeaderLine {
    /// `manifest 1`.
    pitr: String,
    /// The backup.
    backup: BackupId,
    /// The system identifier.
    system: SystemId,
    /// Number of pack lines that follow.
    packs: u32,
}

#[derive(Serialize, Deserialize)]
struct PackText {
    /// The backup whose pack it is.
    backup: BackupId,
    /// Its number.
    pack: u32,
    /// Bytes of the object.
    stored: u64,
    /// Plain bytes.
    plain: u64,
    /// Frames in it.
    frames: u32,
    /// BLAKE3 of the object.
    digest: Digest,
    /// BLAKE3 of its table.
    table: Digest,
}

#[derive(Serialize, Deserialize)]
struct FileText {
    /// Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    p: Option<String>,
    /// Path in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    /// `f`, `d` or `l`.
    t: char,
    /// Permissions in octal.
    mode: String,
    /// Seconds since 1970.
    mtime: i64,
    /// Owner.
    uid: u32,
    /// Group.
    gid: u32,
    /// Owner's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    user: String,
    /// Group's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    group: String,
    /// Size of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// PostgreSQL's checksum.
    #[serde(skip_serializing_if = "Option::is_none")]
    sum: Option<String>,
    /// Extents of a file: pack, offset, length.
    #[serde(skip_serializing_if = "Option::is_none")]
    ext: Option<Vec<(u32, u64, u64)>>,
    /// Target of a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// Target of a link in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    tox: Option<String>,
}

fn json<T: Serialize>(line: &T) -> String {
    serde_json::to_string(line).expect("these structs hold nothing that JSON cannot say")
}

fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(line).map_err(|e| ManifestError::Line(e.to_string()))
}

pub(super) fn header(header: &ManifestHeader, packs: u32) -> String {
    let pitr = "manifest 1".to_owned();
    json(&HeaderLine { pitr, backup: header.backup.clone(), system: header.system, packs })
}

pub(super) fn parse_header(line: &[u8]) -> Result<(ManifestHeader, u32), ManifestError> {
    #[derive(Deserialize)]
    struct Head {
        pitr: String,
    }
    let head: Head = read(line)?;
    match head.pitr.strip_prefix("manifest ").and_then(|n| n.parse::<u32>().ok()) {
        Some(1) => {}
        Some(newer) if newer > 1 => return Err(ManifestError::NewerFormat(newer)),
        _ => return Err(ManifestError::Line("the first line is no manifest's".to_owned())),
    }
    let line: HeaderLine = read(line)?;
    if line.packs > MAX_PACK_LINES {
        return Err(ManifestError::Line(format!("{} packs are more than {MAX_PACK_LINES}", line.packs)));
    }
    Ok((ManifestHeader { backup: line.backup, system: line.system }, line.packs))
}

pub(super) fn pack(pack: &PackLine) -> String {
    let PackInfo { stored, plain, frames, digest, table } = pack.info;
    json(&PackText { backup: pack.backup.clone(), pack: pack.number, stored, plain, frames, digest, table })
}

pub(super) fn parse_pack(line: &[u8]) -> Result<PackLine, ManifestError> {
    let line: PackText = read(line)?;
    let PackText { stored, plain, frames, digest, table, .. } = line;
    let info = PackInfo { stored, plain, frames, digest, table };
    if info.table_range().is_none() {
        return Err(ManifestError::Line(format!("pack {} is smaller than its table", line.pack)));
    }
    let possible = stored <= MAX_PACK
        && line.pack < MAX_PACKS
        && usize::try_from(frames).is_ok_and(|frames| frames <= MAX_FRAMES);
    if !possible {
        return Err(ManifestError::Line(format!(
            "pack {} is larger than any, or beyond the last",
            line.pack
        )));
    }
    Ok(PackLine { backup: line.backup, number: line.pack, info })
}

pub(super) fn file(entry: &FileEntry) -> String {
    let (p, x) = text_or_hex(entry.path.as_bytes());
    let mut line = FileText {
        p,
        x,
        t: 'd',
        mode: format!("{:04o}", entry.mode),
        mtime: entry.mtime,
        uid: entry.uid,
        gid: entry.gid,
        user: entry.user.clone(),
        group: entry.group.clone(),
        size: None,
        sum: None,
        ext: None,
        to: None,
        tox: None,
    };
    match &entry.kind {
        FileKind::Directory => {}
        FileKind::File { size, extents, checksum } => {
            (line.t, line.size, line.sum) = ('f', Some(*size), checksum.clone());
            line.ext = Some(extents.iter().map(|e| (e.pack, e.offset, e.len)).collect());
        }
        FileKind::Symlink { target } => {
            line.t = 'l';
            (line.to, line.tox) = text_or_hex(target);
        }
    }
    json(&line)
}

pub(super) fn parse_file(line: &[u8]) -> Result<FileEntry, ManifestError> {
    let line: FileText = read(line)?;
    let bad = |what: &str| ManifestError::Line(what.to_owned());
    let path = bytes_of(line.p, line.x.as_deref())
        .ok_or_else(|| bad("its path is missing or not in its only form"))?;
    let path = Path::new(path)?;
    let mode = u32::from_str_radix(&line.mode, 8).ok().filter(|m| *m <= 0o7777);
    let mode = mode.ok_or_else(|| bad("its mode is not an octal number"))?;
    let target = bytes_of(line.to, line.tox.as_deref());
    let kind = match (line.t, line.size, line.ext, target) {
        ('f', Some(size), Some(ext), None) => {
            let extents = ext.into_iter().map(|(pack, offset, len)| Extent { pack, offset, len }).collect();
            FileKind::File { size, extents, checksum: line.sum }
        }
        ('d', None, None, None) => FileKind::Directory,
        ('l', None, None, Some(target)) if target.len() <= MAX_PATH && !target.contains(&0) => {
            FileKind::Symlink { target }
        }
        _ => return Err(bad("its members do not fit its type")),
    };
    Ok(FileEntry {
        path,
        kind,
        mode,
        mtime: line.mtime,
        uid: line.uid,
        gid: line.gid,
        user: line.user,
        group: line.group,
    })
}
