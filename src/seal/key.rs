//! The seal key: one secret per cluster, by which its objects know each other.
//!
//! ```text
//!  tag   B3k("pitr1 tag"  sys name size     B3(file))           same file, same tag, whatever epoch, codec and time
//!  head  B3k("pitr1 head" sys name valid_to B3(prefix))
//!  mac   B3k("pitr1 header" lines)     B3k("pitr1 json" key of the object, bytes before the mac)
//! ```
//! What is digested is text, one `key=value` a line, so that `b3sum --keyed` makes the same. The first line keeps the kinds apart. Pure.

use std::fmt;

use zeroize::{Zeroize as _, Zeroizing};

use super::SealError;
use crate::codec::{Digest, ShortDigest, hex, unhex};

/// The secret by which objects of a sealed cluster are told from forged ones. It decrypts nothing.
#[derive(Clone)]
pub struct SealKey(Zeroizing<[u8; 32]>);

/// `BLAKE3(K)`: names a seal key without giving it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(Digest);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        plain
            .to_ascii_lowercase()
            .parse()
            .map(Self)
            .map_err(|_| SealError::KeyFile("a fingerprint has 64 hexadecimal digits".to_owned()))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.fingerprint())
    }
}

impl PartialEq for SealKey {
    fn eq(&self, other: &Self) -> bool {
        // By digests: how long that takes tells nothing of the keys.
        self.fingerprint() == other.fingerprint()
    }
}

impl Eq for SealKey {}

impl SealKey {
    /// The key with these bytes, which must be random.
    pub fn new(mut bytes: [u8; 32]) -> Self {
        let key = Self(Zeroizing::new(bytes));
        bytes.zeroize();
        key
    }

    /// The key that 64 lower-case hexadecimal digits stand for.
    ///
    /// # Errors
    /// [`SealError::KeyFile`], without the text.
    pub fn from_hex(text: &str) -> Result<Self, SealError> {
        let bad = || SealError::KeyFile("the seal key has not 64 hexadecimal digits".to_owned());
        let bytes = Zeroizing::new(unhex(text).ok_or_else(bad)?);
        let array: [u8; 32] = bytes.as_slice().try_into().map_err(|_| bad())?;
        Ok(Self::new(array))
    }

    /// The key as hexadecimal digits, for the files that hold it.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(self.0.as_slice()))
    }

    /// What names it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(Digest::of(self.0.as_slice()))
    }

    fn keyed(&self, parts: &[&[u8]]) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        parts.iter().for_each(|part| {
            hasher.update(part);
        });
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    /// Identity of a file's content.
    pub fn tag(
        &self,
        system: &dyn fmt::Display,
        name: &dyn fmt::Display,
        size: u64,
        plain: &Digest,
    ) -> Digest {
        let text = format!("pitr1 tag\nsys={system}\nname={name}\nsize={size}\nplain={plain}\n");
        self.keyed(&[text.as_bytes()])
    }

    /// Identity of the first part of a segment, up to `valid_to`.
    pub fn head(
        &self,
        system: &dyn fmt::Display,
        name: &dyn fmt::Display,
        valid_to: &dyn fmt::Display,
        prefix: &Digest,
    ) -> ShortDigest {
        let text = format!("pitr1 head\nsys={system}\nname={name}\nvalid_to={valid_to}\nplain={prefix}\n");
        self.keyed(&[text.as_bytes()]).short()
    }

    /// The mac of a WAL object's header: of all its lines before the mac's own.
    pub fn header_mac(&self, lines: &str) -> ShortDigest {
        self.keyed(&[b"pitr1 header\n", lines.as_bytes()]).short()
    }

    /// The mac of the JSON object at `key`: of all its bytes before the comma that precedes the mac. With the key in it, an object
    /// put under another name is seen.
    pub fn document_mac(&self, key: &str, covered: &[u8]) -> ShortDigest {
        self.keyed(&[b"pitr1 json\nkey=", key.as_bytes(), b"\n", covered]).short()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_fields_are_told_apart_and_the_key_is_never_shown() {
        let key = SealKey::new([7; 32]);
        let plain = Digest::of(b"plain");
        let tag = key.tag(&1, &"000000010000000000000001", 16, &plain);
        assert_eq!(tag, key.tag(&1, &"000000010000000000000001", 16, &plain));
        for other in [
            key.tag(&2, &"000000010000000000000001", 16, &plain),
            key.tag(&1, &"000000010000000000000002", 16, &plain),
            key.tag(&1, &"000000010000000000000001", 17, &plain),
            key.tag(&1, &"000000010000000000000001", 16, &tag),
            SealKey::new([8; 32]).tag(&1, &"000000010000000000000001", 16, &plain),
            plain,
        ] {
            assert_ne!(tag, other);
        }
        assert_ne!(key.document_mac("a/b", b"c"), key.document_mac("a/c", b"c"));
        assert_ne!(key.header_mac("x"), key.document_mac("", b"x"));
        let digits = key.to_hex();
        let shown = format!("{key:?} {}", key.fingerprint());
        assert!(!shown.contains(digits.as_str()), "{shown}");
        assert_eq!(SealKey::from_hex(&digits).unwrap(), key);
        assert!(SealKey::from_hex("07").is_err());
    }

    #[test]
    fn b3sum_makes_the_same_digests() {
        // `printf 'pitr1 header\nx' | b3sum --keyed`, with thirty-two bytes of 07 as the key.
        let mut hasher = blake3::Hasher::new_keyed(&[7; 32]);
        hasher.update(b"pitr1 header\nx");
        let by_hand = hasher.finalize().to_hex().chars().take(32).collect::<String>();
        assert_eq!(SealKey::new([7; 32]).header_mac("x").to_string(), by_hand);
    }
}
