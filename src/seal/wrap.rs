//! Wraps: an epoch's secret and the seal key, encrypted to the people who may read.
//!
//! ```text
//!  age -d -i MY.key wrap-0001.age
//!  # pitr epoch e0001
//!  # cluster: main
//!  # created: 2026-01-31T12:00:00Z
//!  # seal key: 64 hexadecimal digits
//!  AGE-SECRET-KEY-1…                     so this is an identity file: age -d -i it opens every body of the epoch
//! ```
//! A wrap says whose it is, and a reader compares: one taken from another cluster or put under another epoch is refused. Pure but for
//! random numbers.

use bytes::Bytes;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::epoch::{Epoch, EpochKey};
use super::identity::{Identity, Recipient};
use super::key::SealKey;
use super::{Opener, SealError, body};

/// Largest wrap: hundreds of recipients.
pub const MAX_WRAP: u64 = 64 << 10;
/// Most wraps of one epoch: one for each change of its recipients.
pub const MAX_WRAPS: u32 = 999;

/// A wrap's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrap(pub Bytes);

/// What a wrap holds.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The epoch and its secret.
    pub key: EpochKey,
    /// The cluster's seal key.
    pub seal: SealKey,
    /// When the epoch was made.
    pub created: Timestamp,
}

impl Opened {
    /// Its text: an identity file of age.
    fn text(&self, cluster: &str) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "# pitr epoch {}\n# cluster: {cluster}\n# created: {}\n# seal key: {}\n{}\n",
            self.key.epoch,
            self.created,
            self.seal.to_hex().as_str(),
            self.key.identity.to_text().as_str()
        ))
    }

    /// Encrypts it to `recipients`.
    ///
    /// # Errors
    /// [`SealError::Encrypt`].
    pub fn wrap(&self, cluster: &str, recipients: &[&Recipient]) -> Result<Wrap, SealError> {
        let text = self.text(cluster);
        let pieces = body::encrypt([Bytes::copy_from_slice(text.as_bytes())], recipients)?;
        Ok(Wrap(pieces.concat().into()))
    }
}

impl Wrap {
    /// What it holds, if one of `identities` opens it and it is that of `epoch` in `cluster`.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, identities: &[Identity], cluster: &str, epoch: Epoch) -> Result<Opened, SealError> {
        let plain = Zeroizing::new(Opener(identities).plain(&self.0)?);
        let bad = SealError::Malformed("a wrap holds an epoch's key, and says whose");
        let text = std::str::from_utf8(&plain).map_err(|_| bad.clone())?;
        let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
        let found = line("# pitr epoch ").ok_or_else(|| bad.clone())?.parse::<Epoch>();
        if found != Ok(epoch) {
            return Err(SealError::Malformed("this wrap is that of another epoch"));
        }
        if line("# cluster: ") != Some(cluster) {
            return Err(SealError::Malformed("this wrap is that of another cluster"));
        }
        let seal = SealKey::from_hex(line("# seal key: ").ok_or_else(|| bad.clone())?)?;
        let created = line("# created: ").and_then(|t| t.parse().ok()).ok_or_else(|| bad.clone())?;
        let identity = Identity::parse_file(text)?.pop().ok_or(bad)?;
        Ok(Opened { key: EpochKey { epoch, identity }, seal, created })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrap_opens_for_each_recipient_and_says_whose_it_is() {
        let (daily, offline, stranger) = (Identity::generate(), Identity::generate(), Identity::generate());
        let opened = Opened {
            key: EpochKey::generate(Epoch::FIRST),
            seal: SealKey::new([3; 32]),
            created: Timestamp::UNIX_EPOCH,
        };
        let wrap = opened.wrap("main", &[&daily.recipient(), &offline.recipient()]).unwrap();
        for identity in [&daily, &offline] {
            let found = wrap.open(std::slice::from_ref(identity), "main", Epoch::FIRST).unwrap();
            assert_eq!((found.seal, found.created), (opened.seal.clone(), opened.created));
            assert_eq!(found.key.recipient(), opened.key.recipient());
        }
        let refused = |who: &Identity, cluster: &str, epoch: u32| {
            wrap.open(std::slice::from_ref(who), cluster, Epoch::new(epoch).unwrap()).unwrap_err()
        };
        assert_eq!(refused(&stranger, "main", 1), SealError::NoKey);
        assert!(refused(&daily, "other", 1).to_string().contains("another cluster"));
        assert!(refused(&daily, "main", 2).to_string().contains("another epoch"));
        assert!(!format!("{opened:?}").contains("AGE-SECRET"), "{opened:?}");
    }
}
