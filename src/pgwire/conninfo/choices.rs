//! The values of a connection that are one word out of few: TLS modes, channel binding, session attributes, methods.
//!
//! Each enumeration carries libpq's own words in `NAMES`, so that reading, showing and refusing use one list.
//! Source of truth: `pqConnectOptions2` in `fe-connect.c`.

use std::fmt;

/// A word of libpq and what it stands for.
pub(super) type Names<T> = &'static [(&'static str, T)];

/// How much TLS is wanted, and what it must prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server refuses a plain connection.
    Allow,
    /// If the server can; else plain.
    Prefer,
    /// Always; the certificate is checked only if there is something to check it by.
    Require,
    /// Always, with a certificate from a trusted authority.
    VerifyCa,
    /// Always, with such a certificate for this very host.
    VerifyFull,
}

impl SslMode {
    pub(super) const NAMES: Names<Self> = &[
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(Self::NAMES, *self))
    }
}

/// How TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negotiation {
    /// With PostgreSQL's own question first.
    Postgres,
    /// At once, as everywhere else; PostgreSQL 17 and later.
    Direct,
}

impl Negotiation {
    pub(super) const NAMES: Names<Self> = &[("postgres", Self::Postgres), ("direct", Self::Direct)];
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.0 and 1.1: a lower bound for servers, but nothing that pitr speaks.
    Old,
    /// 1.2
    V1_2,
    /// 1.3
    V1_3,
}

impl TlsVersion {
    pub(super) const NAMES: Names<Self> =
        &[("TLSv1", Self::Old), ("TLSv1.1", Self::Old), ("TLSv1.2", Self::V1_2), ("TLSv1.3", Self::V1_3)];
}

/// Whether SCRAM must be bound to the TLS connection it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Always: no other log-in is acceptable.
    Require,
}

impl ChannelBinding {
    pub(super) const NAMES: Names<Self> =
        &[("disable", Self::Disable), ("prefer", Self::Prefer), ("require", Self::Require)];
}

/// What the server must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    /// Anything.
    Any,
    /// A session that can write.
    ReadWrite,
    /// A session that cannot.
    ReadOnly,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery if one of the hosts is, else anything.
    PreferStandby,
}

impl TargetSession {
    pub(super) const NAMES: Names<Self> = &[
        ("any", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
        ("prefer-standby", Self::PreferStandby),
    ];
}

impl fmt::Display for TargetSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(Self::NAMES, *self))
    }
}

/// How a server may ask who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// The password itself.
    Password,
    /// Its MD5 digest.
    Md5,
    /// GSSAPI
    Gss,
    /// SSPI
    Sspi,
    /// SCRAM-SHA-256, with channel binding or without.
    Scram,
    /// OAuth
    OAuth,
    /// Not at all: trust, peer, or a client certificate.
    None,
}

impl AuthMethod {
    pub(super) const NAMES: Names<Self> = &[
        ("password", Self::Password),
        ("md5", Self::Md5),
        ("gss", Self::Gss),
        ("sspi", Self::Sspi),
        ("scram-sha-256", Self::Scram),
        ("oauth", Self::OAuth),
        ("none", Self::None),
    ];
}

/// The methods that `require_auth` lets the server use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequireAuth {
    /// As it was written, for messages.
    pub text: String,
    allowed: Vec<AuthMethod>,
}

impl RequireAuth {
    /// Reads a list of methods, or one of methods that are each ruled out by `!`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (mut named, mut negated) = (Vec::new(), None);
        for item in text.split(',') {
            let item = item.trim();
            let (name, no) = item.strip_prefix('!').map_or((item, false), |name| (name, true));
            if negated.is_some_and(|before| before != no) {
                return Err("either name the methods that are allowed, or rule out each with \"!\"".into());
            }
            negated = Some(no);
            let method = find(AuthMethod::NAMES, name)?;
            if named.contains(&method) {
                return Err(format!("{name} is named twice"));
            }
            named.push(method);
        }
        let all = AuthMethod::NAMES.iter().map(|(_, method)| *method);
        let ruled_out = negated == Some(true);
        let allowed = all.filter(|method| named.contains(method) != ruled_out).collect();
        Ok(Self { text: text.to_owned(), allowed })
    }

    /// Whether the server may use this method.
    pub fn allows(&self, method: AuthMethod) -> bool {
        self.allowed.contains(&method)
    }
}

/// The value of a word; the error lists the words there are.
pub(super) fn find<T: Copy>(names: Names<T>, word: &str) -> Result<T, String> {
    let found = names.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let all: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        format!("it is one of {}", all.join(", "))
    })
}

fn name_of<T: Copy + PartialEq>(names: Names<T>, value: T) -> &'static str {
    names.iter().find(|(_, other)| *other == value).map_or("", |(name, _)| name)
}
