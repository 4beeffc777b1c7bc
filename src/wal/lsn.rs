//! Log sequence numbers: a byte position in the WAL stream of a cluster.
//!
//! PostgreSQL prints an LSN as two hexadecimal halves, `16/B374D848` (`pg_lsn.c`). Arithmetic is by named methods that say
//! what happens at the ends, never by operators. Pure.

use std::fmt;
use std::str::FromStr;

/// Size of a WAL page in bytes (`XLOG_BLCKSZ`). Every packaged PostgreSQL 13 to 18 uses 8 KiB; a page header that states
/// another size is refused.
pub const PAGE_SIZE: u64 = 8192;

/// A byte position in the WAL stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

/// Text that is not an LSN of the form `X/X`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN (expected two hexadecimal numbers, such as 0/3000060)")]
pub struct LsnError(pub String);

impl Lsn {
    /// `0/0`, PostgreSQL's `InvalidXLogRecPtr`.
    pub const ZERO: Self = Self(0);
    /// The largest position.
    pub const MAX: Self = Self(u64::MAX);

    /// The position `bytes` from the start of the stream.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the start of the stream.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// True for `0/0`, which PostgreSQL uses for "no position".
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// `self + bytes`, or `None` past the end of the stream.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// `self + bytes`, held at the end of the stream.
    pub const fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// `self - bytes`, held at `0/0`.
    pub const fn saturating_sub(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }

    /// Bytes from `earlier` to `self`; 0 if `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Offset inside the WAL page that holds this byte.
    pub const fn page_offset(self) -> u64 {
        self.0 % PAGE_SIZE
    }

    /// Start of the page that holds this byte.
    pub const fn page_start(self) -> Self {
        Self(self.0 - self.0 % PAGE_SIZE)
    }

    /// The position rounded up to a multiple of 8 (`MAXALIGN`): where the next record may start. Held at the end of the stream.
    pub const fn aligned(self) -> Self {
        Self(self.0.saturating_add(7) & !7)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = LsnError;

    fn from_str(text: &str) -> Result<Self, LsnError> {
        let bad = || LsnError(text.chars().take(40).collect());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let half = |part: &str| {
            let digits = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            if digits { u32::from_str_radix(part, 16).map_err(|_| bad()) } else { Err(bad()) }
        };
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_as_postgresql_does() {
        assert_eq!(Lsn::new(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn::ZERO.to_string(), "0/0");
    }

    #[test]
    fn refuses_what_pg_lsn_refuses() {
        for bad in ["", "/", "0/", "/0", "0", "0/123456789", "g/0", "+1/0", "0/-1", " 0/0", "0/0/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(n: u64) {
            prop_assert_eq!(Lsn::new(n).to_string().parse::<Lsn>().unwrap(), Lsn::new(n));
        }
    }
}
