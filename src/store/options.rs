//! What it takes to open a store, beside its URL.
//!
//! Nothing here is read from the environment or from files by itself: `config` hands it over, so that a command run by
//! the server (with an empty environment) and one run by an operator differ only in what they were given.
//! Invariant: printing options for debugging never prints a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::policy::Policy;
use crate::durable::Owner;

/// Names and values, some of them secret: prints the names alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets a value.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// Nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Settings {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// How to open a store.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// The server, if it is not the cloud's own: `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// The region, for S3.
    pub region: Option<String>,
    /// Permits an endpoint without TLS.
    pub allow_http: bool,
    /// Certificate authorities to trust instead of the host's, as a PEM bundle.
    pub ca_file: Option<PathBuf>,
    /// The parsed content of `credentials_file` ([`super::parse_credentials_file`]). Where it has keys, nothing else
    /// is looked at.
    pub credentials: Settings,
    /// The environment of the process, for each cloud's own variables and for `~/.aws`.
    pub environment: Settings,
    /// Who shall own the files of a `file://` store, if this process is root.
    pub owner: Option<Owner>,
    /// The operator accepts a store without conditional create.
    pub allow_unsafe_store: bool,
    /// What a request may take before its bytes are counted (`[archive] timeout`); 60 s if absent.
    pub request_timeout_base: Option<Duration>,
}

impl StoreOptions {
    /// Deadlines and repetition that follow from the options.
    pub(super) fn policy(&self) -> Policy {
        let policy = Policy::default();
        Policy { base: self.request_timeout_base.unwrap_or(policy.base), ..policy }
    }
}
