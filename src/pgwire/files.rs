//! The small files that a connection needs: passwords, certificates, keys.
//!
//! Looked at before they are opened, because opening a pipe would wait for a writer; bounded; and refused if others could read what
//! must be secret, by the rules of libpq. Source of truth: `passwordFromFile` in `fe-connect.c`, `initialize_SSL` in
//! `fe-secure-openssl.c`.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tokio::io::AsyncReadExt as _;

/// Larger files are not read.
const MAX_FILE: u64 = 1 << 20;

/// Who else may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// Anybody.
    Open,
    /// Nobody.
    Own,
    /// Nobody; but a file of root's may be read by its group, as distributions keep keys.
    OwnOrRoots,
}

/// The content of a file.
pub(super) async fn read(path: &Path, secrecy: Secrecy) -> io::Result<Vec<u8>> {
    check(&tokio::fs::metadata(path).await?, secrecy)?;
    let file = tokio::fs::File::open(path).await?;
    check(&file.metadata().await?, secrecy)?;
    let mut content = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut content).await?;
    Ok(content)
}

fn check(metadata: &Metadata, secrecy: Secrecy) -> io::Result<()> {
    let mode = metadata.mode() & 0o777;
    let (forbidden, wanted) = match secrecy {
        Secrecy::Open => (0, ""),
        Secrecy::OwnOrRoots if metadata.uid() == 0 => (0o037, "0640, as it belongs to root"),
        Secrecy::Own | Secrecy::OwnOrRoots => (0o077, "0600"),
    };
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if mode & forbidden != 0 {
        return Err(io::Error::other(format!("others may use it (mode {mode:04o}; it must be {wanted})")));
    }
    if metadata.len() > MAX_FILE {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(())
}
