//! PostgreSQL's backup_manifest: any bytes are answered, the size of the pieces never matters, and no accepted path leads out
//! of a data directory.
//!
//! Source of truth: `parse_manifest.c`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pgdata::backup_manifest::{ManifestError, ManifestFile, ManifestReader, ManifestSummary};

fn read(data: &[u8], piece: usize) -> (Vec<ManifestFile>, Result<ManifestSummary, ManifestError>) {
    let (mut reader, mut files) = (ManifestReader::new(), Vec::new());
    for bytes in data.chunks(piece) {
        if let Err(error) = reader.push(bytes, &mut |file| files.push(file)) {
            return (files, Err(error));
        }
    }
    (files, reader.finish())
}

fuzz_target!(|data: &[u8]| {
    let (files, whole) = read(data, usize::MAX);
    for file in &files {
        assert!(file.path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b"..")));
    }
    for piece in [1, 7, 100] {
        let (again, result) = read(data, piece);
        assert_eq!(again, files);
        assert_eq!(result, whole);
    }
});
