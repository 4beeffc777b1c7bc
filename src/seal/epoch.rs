//! Key epochs: one X25519 pair each; rotation begins the next and rewrites nothing.
//!
//! An epoch belongs to the cluster, not to a repository. Its number stands in clear in every object that it sealed, so that a reader
//! without its secret can say which one it lacks. Pure but for random numbers.

use std::fmt;
use std::str::FromStr;

use super::SealError;
use super::identity::{Identity, Recipient};

/// The number of an epoch, 1 to 9999; prints as `e0001`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u32);

/// Largest number: four digits.
const MAX: u32 = 9999;

impl Epoch {
    /// The first one.
    pub const FIRST: Self = Self(1);

    /// The epoch with this number.
    pub fn new(number: u32) -> Option<Self> {
        (1..=MAX).contains(&number).then_some(Self(number))
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The one after it.
    pub fn next(self) -> Option<Self> {
        Self::new(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{:04}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let number = text.strip_prefix('e').filter(|digits| digits.len() == 4);
        let number = number.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let epoch = number.and_then(|digits| digits.parse().ok()).and_then(Self::new);
        epoch.ok_or_else(|| SealError::KeyFile("a key epoch is written e0001 to e9999".to_owned()))
    }
}

impl serde::Serialize for Epoch {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Epoch {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An epoch with its secret: opens what the epoch sealed.
#[derive(Debug, Clone)]
pub struct EpochKey {
    /// Its number.
    pub epoch: Epoch,
    /// Its secret.
    pub identity: Identity,
}

impl EpochKey {
    /// A new epoch.
    pub fn generate(epoch: Epoch) -> Self {
        Self { epoch, identity: Identity::generate() }
    }

    /// What seals for it.
    pub fn recipient(&self) -> Recipient {
        self.identity.recipient()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_one_spelling() {
        assert_eq!("e0012".parse::<Epoch>().unwrap().to_string(), "e0012");
        for bad in ["", "e0000", "e1", "0001", "e00001", "e+001", "E0001"] {
            assert!(bad.parse::<Epoch>().is_err(), "{bad}");
        }
        assert_eq!(Epoch::new(9999).unwrap().next(), None);
    }
}
