//! What arrived against what the server says it sent: every file of `backup_manifest` with its size and CRC-32C, and no other.
//!
//! The server computes its checksums while it reads the files, we ours after the bytes went through socket, tar and frames; if both
//! agree, nothing was lost or changed between. The manifest's own checksum is verified on the way.
//! Pure. Source of truth: `backup_manifest.c`; `pg_verifybackup` makes the same comparison on a restored directory.

use std::cmp::Ordering;
use std::fmt;

use super::held::Held;
use super::listing::{Row, Sealed};
use crate::error::{Error, Result};
use crate::ops::runs::RowKind;
use crate::ops::runs::Runs;
use crate::pgdata::backup_manifest::{
    Algorithm, ManifestError, ManifestFile, ManifestReader, ManifestSummary, crc32c_hex,
};

/// Differences that are named; more are only counted.
const MOST_NAMED: usize = 10;

/// Why the backup is not what the server sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    /// The manifest itself is damaged.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Files differ.
    #[error("{0}")]
    Differs(Differences),
    /// The lists cannot be held.
    #[error("{0}")]
    Held(#[from] Error),
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

/// Compares the two: both sorted by path, side by side.
///
/// # Errors
/// [`CheckError`] if the manifest is damaged, or a file is missing, differs, or is not listed.
pub(super) fn against_manifest(
    manifest: &Held,
    sent: &Sealed,
) -> std::result::Result<ManifestSummary, CheckError> {
    let (mut reader, mut listed) = (ManifestReader::new(), Runs::default());
    let mut failure = None;
    manifest.read(|chunk| {
        reader.push(chunk, &mut |file| {
            if let Err(error) = listed.push(&file.path, &stated(&file)) {
                failure.get_or_insert(error);
            }
        })?;
        failure.take().map_or(Ok(()), |error| Err(CheckError::from(error)))
    })?;
    let summary = reader.finish()?;
    let mut differences = Differences::default();
    side_by_side(listed, sent, &mut differences)?;
    if differences.count > 0 { Err(CheckError::Differs(differences)) } else { Ok(summary) }
}

/// Size and checksum as a row holds them. We asked for CRC-32C; a manifest without it proves nothing.
fn stated(file: &ManifestFile) -> Vec<u8> {
    let mut value = file.size.to_le_bytes().to_vec();
    if let Some(stated) = file.checksum.as_ref().filter(|stated| stated.algorithm == Algorithm::Crc32c) {
        value.extend_from_slice(&stated.bytes);
    }
    value
}

fn side_by_side(listed: Runs, sent: &Sealed, differences: &mut Differences) -> Result<()> {
    let listed = listed.sort()?;
    let (mut listed, mut sent) = (listed.rows(), sent.rows());
    let (mut left, mut right) = (listed.next()?, sent.next()?);
    let mut last: Option<Vec<u8>> = None;
    loop {
        // Manifests list regular files only.
        if right.as_ref().is_some_and(|row| row.kind != RowKind::File) {
            right = sent.next()?;
            continue;
        }
        let order = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((path, _)), Some(row)) => (*path).cmp(row.path),
        };
        if let (Some((path, value)), true) = (left, order.is_le()) {
            match right.as_ref().filter(|_| order.is_eq()) {
                Some(row) => compare(path, value, row, differences),
                None if last.as_deref() == Some(path) => differences.add(path, "listed twice"),
                None => differences.add(path, "listed, but not sent"),
            }
            last = Some(path.to_vec());
            left = listed.next()?;
        } else if let (Some(row), true) = (&right, order.is_gt()) {
            differences.add(row.path, "sent, but not listed");
        }
        if order.is_ge() {
            right = sent.next()?;
        }
    }
}

fn compare(path: &[u8], stated: &[u8], row: &Row<'_>, differences: &mut Differences) {
    let (size, checksum) = stated.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let size = u64::from_le_bytes(*size);
    if row.size != size {
        return differences.add(path, &format!("{size} bytes listed, {} sent", row.size));
    }
    match checksum.first_chunk::<4>() {
        Some(stated) if u32::from_le_bytes(*stated) == row.crc => {}
        Some(stated) => {
            let (listed, ours) = (crc32c_hex(u32::from_le_bytes(*stated)), crc32c_hex(row.crc));
            differences.add(path, &format!("checksum CRC32C:{listed} listed, its bytes have {ours}"));
        }
        None => differences.add(path, "listed without a CRC-32C"),
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
            listing.begin(Member { path, kind, mode: 0o600, uid: 0, gid: 0, mtime: 0 });
            listing.extend(Extent { pack: 0, offset: 0, len: size }, crc32c::crc32c(data));
            listing.end().unwrap();
        }
        listing.seal().unwrap()
    }

    /// A manifest as `backup_manifest.c` writes it.
    fn manifest(files: &[(&str, &[u8])]) -> Held {
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
        held(format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n").as_bytes())
    }

    fn held(bytes: &[u8]) -> Held {
        let mut held = Held::default();
        held.push(bytes).unwrap();
        held
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
        let mut bytes = manifest(&files).chunks().unwrap().concat();
        let at = bytes.windows(10).position(|w| w == b"2025-10-17").unwrap();
        bytes[at + 3] = b'6';
        let error = against_manifest(&held(&bytes), &sent(&files)).unwrap_err();
        assert!(matches!(error, CheckError::Manifest(ManifestError::Checksum { .. })), "{error}");
    }
}
