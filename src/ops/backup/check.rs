//! What arrived against what the server says it sent: every file of `backup_manifest` with its size and CRC-32C, and no other.
//!
//! The server computes its checksums while it reads the files, we ours after the bytes went through socket, tar and frames; if both
//! agree, nothing was lost or changed between. The manifest's own checksum is verified on the way.
//! Pure. Source of truth: `backup_manifest.c`; `pg_verifybackup` makes the same comparison on a restored directory.

use std::fmt;

use bytes::Bytes;

use super::listing::{RowKind, Sealed};
use crate::pgdata::backup_manifest::{
    Algorithm, ManifestError, ManifestFile, ManifestReader, ManifestSummary, crc32c_hex,
};

/// Differences that are named; more are only counted.
const MOST_NAMED: usize = 10;

/// Why the backup is not what the server sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckError {
    /// The manifest itself is damaged.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Files differ.
    #[error("{0}")]
    Differs(Differences),
}

/// Files that differ, the first of them by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Differences {
    named: Vec<String>,
    count: u64,
}

impl Differences {
    fn add(&mut self, path: &[u8], what: &str) {
        self.count = self.count.saturating_add(1);
        if self.named.len() < MOST_NAMED {
            self.named.push(format!("{}: {what}", String::from_utf8_lossy(path)));
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files differ from the server's backup_manifest: {}", self.count, self.named.join("; "))
    }
}

/// Compares the two.
///
/// # Errors
/// [`CheckError`] if the manifest is damaged, or a file is missing, differs, or is not listed.
pub(super) fn against_manifest(manifest: &[Bytes], sent: &Sealed) -> Result<ManifestSummary, CheckError> {
    let mut differences = Differences::default();
    let mut listed = vec![false; sent.rows().len()];
    let mut reader = ManifestReader::new();
    for chunk in manifest {
        reader.push(chunk, &mut |file| compare(&file, sent, &mut listed, &mut differences))?;
    }
    let summary = reader.finish()?;
    for (row, listed) in sent.rows().iter().zip(listed) {
        if row.kind == RowKind::File && !listed {
            differences.add(sent.path(row), "sent, but not listed");
        }
    }
    if differences.count > 0 { Err(CheckError::Differs(differences)) } else { Ok(summary) }
}

fn compare(file: &ManifestFile, sent: &Sealed, listed: &mut [bool], differences: &mut Differences) {
    let found = sent.find(&file.path).and_then(|at| Some((sent.rows().get(at)?, listed.get_mut(at)?)));
    let Some((row, listed)) = found.filter(|(row, _)| row.kind == RowKind::File) else {
        return differences.add(&file.path, "listed, but not sent");
    };
    if std::mem::replace(listed, true) {
        return differences.add(&file.path, "listed twice");
    }
    if row.size != file.size {
        return differences.add(&file.path, &format!("{} bytes listed, {} sent", file.size, row.size));
    }
    match &file.checksum {
        // We asked for CRC-32C; a manifest without it proves nothing.
        Some(stated) if stated.algorithm == Algorithm::Crc32c => {
            if *stated.bytes != row.crc.to_le_bytes() {
                let ours = crc32c_hex(row.crc);
                differences.add(&file.path, &format!("checksum {stated} listed, its bytes have {ours}"));
            }
        }
        _ => differences.add(&file.path, "listed without a CRC-32C"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::backup::listing::{Extent, Listing};
    use crate::pgwire::tar::{Member, MemberKind};
    use sha2::Digest as _;

    fn sent(files: &[(&str, &[u8])]) -> Sealed {
        let mut listing = Listing::default();
        for (path, data) in files {
            let size = u64::try_from(data.len()).unwrap();
            let kind = MemberKind::File { size };
            let path = path.as_bytes().to_vec();
            listing.begin(&Member { path, kind, mode: 0o600, uid: 0, gid: 0, mtime: 0 }).unwrap();
            listing.extend(Extent { pack: 0, offset: 0, len: size }, crc32c::crc32c(data));
            listing.end().unwrap();
        }
        listing.seal().unwrap()
    }

    /// A manifest as `backup_manifest.c` writes it.
    fn manifest(files: &[(&str, &[u8])]) -> Vec<Bytes> {
        let entries: Vec<String> = files
            .iter()
            .map(|(path, data)| {
                format!(
                    "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2025-10-17 10:30:00 GMT\", \
                     \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
                    data.len(),
                    crc32c_hex(crc32c::crc32c(data)),
                )
            })
            .collect();
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n",
            entries.join(",\n")
        );
        let sum: String = sha2::Sha256::digest(body.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        vec![body.into(), format!("\"Manifest-Checksum\": \"{sum}\"}}\n").into()]
    }

    fn complaint(listed: &[(&str, &[u8])], came: &[(&str, &[u8])]) -> String {
        against_manifest(&manifest(listed), &sent(came)).unwrap_err().to_string()
    }

    #[test]
    fn equal_files_pass() {
        let files: [(&str, &[u8]); 3] = [("PG_VERSION", b"15\n"), ("base/1/1", b"rows"), ("empty", b"")];
        let summary = against_manifest(&manifest(&files), &sent(&files)).unwrap();
        assert_eq!((summary.files, summary.bytes), (3, 7));
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let listed: [(&str, &[u8]); 2] = [("a", b"12"), ("b", b"34")];
        assert!(complaint(&listed, &[("a", b"12"), ("b", b"35")]).contains("b: checksum CRC32C:"));
        assert!(complaint(&listed, &[("a", b"12")]).contains("b: listed, but not sent"));
        assert!(complaint(&listed, &[("a", b"12"), ("b", b"3")]).contains("b: 2 bytes listed, 1 sent"));
        assert!(complaint(&listed[..1], &listed).contains("b: sent, but not listed"));
        assert!(complaint(&[listed[0], listed[0]], &listed[..1]).contains("a: listed twice"));
    }

    #[test]
    fn a_manifest_with_one_changed_byte_is_refused() {
        let files: [(&str, &[u8]); 1] = [("a", b"12")];
        let mut bytes = manifest(&files).concat();
        let at = bytes.windows(10).position(|w| w == b"2025-10-17").unwrap();
        bytes[at + 3] = b'6';
        let error = against_manifest(&[bytes.into()], &sent(&files)).unwrap_err();
        assert!(matches!(error, CheckError::Manifest(ManifestError::Checksum { .. })), "{error}");
    }
}
