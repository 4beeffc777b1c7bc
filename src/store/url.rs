//! Where a repository is, and what the keys in it may look like.
//!
//! `file:///abs/path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`; `memory:name` for tests.
//! Invariants: a parsed URL prints as what was parsed, short of a trailing slash; a valid key means the same
//! object on every kind of store: no component begins with a dot, nothing needs escaping, nothing is normalised.
//! Source of truth: REPOSITORY.md section 1, INTERFACE.md (`[[repository]] url`).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest key, the prefix of the URL included; S3 allows 1024 bytes, one local file name 255.
pub const KEY_LIMIT: usize = 512;
/// Longest component of a key.
const COMPONENT_LIMIT: usize = 200;

/// The URL of a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoreUrl {
    /// A local directory.
    File(PathBuf),
    /// A bucket of S3, or of a server that speaks its language.
    S3 {
        /// The bucket.
        bucket: String,
        /// What all keys begin with; may be empty.
        prefix: String,
    },
    /// A bucket of Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: String,
        /// What all keys begin with; may be empty.
        prefix: String,
    },
    /// A container of Azure Blob Storage.
    Azure {
        /// The container.
        container: String,
        /// What all keys begin with; may be empty.
        prefix: String,
    },
    /// Lives as long as the process; two opens of one name share it. For tests.
    Memory(String),
}

/// A URL that names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} names no repository: {reason}")]
pub struct UrlError {
    url: String,
    reason: &'static str,
}

impl FromStr for StoreUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let fail = |reason| UrlError { url: url.to_owned(), reason };
        if let Some(name) = url.strip_prefix("memory:") {
            return Ok(Self::Memory(name.to_owned()));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(fail("it begins with none of file:// s3:// gs:// az://"));
        };
        if scheme == "file" {
            return parse_path(rest).map(Self::File).map_err(fail);
        }
        let (root, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix).to_owned();
        if !matches!(scheme, "s3" | "gs" | "az") {
            return Err(fail("it begins with none of file:// s3:// gs:// az://"));
        }
        let bucket_byte = |b: u8| b.is_ascii_alphanumeric() || b"-._$".contains(&b);
        if root.is_empty() || !root.bytes().all(bucket_byte) {
            return Err(fail("the bucket or container is missing or has impossible characters"));
        }
        if !prefix.is_empty() && check_key(&prefix).is_err() {
            return Err(fail("the prefix has characters or components that a key cannot have"));
        }
        let root = root.to_owned();
        Ok(match scheme {
            "s3" => Self::S3 { bucket: root, prefix },
            "gs" => Self::Gcs { bucket: root, prefix },
            _ => Self::Azure { container: root, prefix },
        })
    }
}

/// The path of a `file://` URL is taken as it stands; nothing in it is decoded.
fn parse_path(rest: &str) -> Result<PathBuf, &'static str> {
    if !rest.starts_with('/') {
        return Err("the path after file:// must be absolute: file:///var/backups/pitr");
    }
    let path = PathBuf::from(rest.trim_end_matches('/'));
    if path.file_name().is_none() {
        return Err("the root directory, or a path ending in .., is no place for a repository");
    }
    Ok(path)
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, root, prefix) = match self {
            Self::File(path) => return write!(f, "file://{}", path.display()),
            Self::Memory(name) => return write!(f, "memory:{name}"),
            Self::S3 { bucket, prefix } => ("s3", bucket, prefix),
            Self::Gcs { bucket, prefix } => ("gs", bucket, prefix),
            Self::Azure { container, prefix } => ("az", container, prefix),
        };
        write!(f, "{scheme}://{root}")?;
        if prefix.is_empty() { Ok(()) } else { write!(f, "/{prefix}") }
    }
}

/// Why a text cannot be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing, or more than [`KEY_LIMIT`] bytes.
    #[error("a key has 1 to {KEY_LIMIT} bytes")]
    Length,
    /// An empty or overlong component, or one that begins or ends with a dot.
    #[error("a part of the key is empty, too long, or begins or ends with a dot")]
    Component,
    /// A byte that some store would escape or refuse.
    #[error("a key consists of letters, digits and - _ . = + @ ~")]
    Byte,
}

/// Refuses a key that would not mean the same object on every store.
pub fn check_key(key: &str) -> Result<(), KeyError> {
    if key.is_empty() || key.len() > KEY_LIMIT {
        return Err(KeyError::Length);
    }
    key.split('/').try_for_each(check_component)
}

/// Refuses a prefix that no key can begin with. Empty is every key.
pub(super) fn check_prefix(prefix: &str) -> Result<(), KeyError> {
    if prefix.len() > KEY_LIMIT {
        return Err(KeyError::Length);
    }
    match prefix.rsplit_once('/') {
        Some((dir, name)) => check_key(dir).and_then(|()| check_start(name)),
        None => check_start(prefix),
    }
}

fn check_component(part: &str) -> Result<(), KeyError> {
    if part.is_empty() || part.len() > COMPONENT_LIMIT || part.ends_with('.') {
        return Err(KeyError::Component);
    }
    check_start(part)
}

fn check_start(part: &str) -> Result<(), KeyError> {
    if part.starts_with('.') {
        return Err(KeyError::Component);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.=+@~".contains(&b);
    if part.bytes().all(allowed) { Ok(()) } else { Err(KeyError::Byte) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_prints_as_what_was_parsed() {
        for url in [
            "file:///var/backups/pitr",
            "file:///with space/%20",
            "s3://bucket",
            "s3://my.bucket/a/b",
            "gs://bucket/prefix",
            "az://container/prefix",
            "memory:one",
        ] {
            assert_eq!(url.parse::<StoreUrl>().unwrap().to_string(), url);
        }
        assert_eq!("s3://b/p/".parse(), Ok(StoreUrl::S3 { bucket: "b".into(), prefix: "p".into() }));
        assert_eq!("file:///a/".parse(), Ok(StoreUrl::File("/a".into())));
    }

    #[test]
    fn a_url_that_names_no_store_is_refused_with_the_reason() {
        for url in
            ["", "/var/x", "file://relative", "file:///", "http://x/y", "s3://", "s3://b/../x", "s3://b//x"]
        {
            assert!(url.parse::<StoreUrl>().is_err(), "{url}");
        }
    }

    #[test]
    fn keys_that_some_store_would_change_are_refused() {
        for key in ["a", "main/7/wal/00000001/00000001/000000010000000000000001.wal", "a=b/c@1.x"] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        let long = "x/".repeat(300);
        for key in ["", "/a", "a/", "a//b", "../a", "a/.b", "a.", "a#1", "a b", "a\u{e9}", "a%2f", &long] {
            assert!(check_key(key).is_err(), "{key}");
        }
        for prefix in ["", "a", "a/", "a/b", "a/b-"] {
            assert_eq!(check_prefix(prefix), Ok(()), "{prefix}");
        }
        for prefix in ["/", "a//", "../", "a/."] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
    }
}
