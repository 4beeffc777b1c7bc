//! Recipients and identities: the two halves of an age X25519 key, as people keep them.
//!
//! An identity file is what `age-keygen` writes: lines of `AGE-SECRET-KEY-1…`, and comments. Only X25519 keys are taken: what a
//! recovery depends on must open without plug-ins and without somebody's agent. Pure but for random numbers.

use std::fmt;
use std::str::FromStr;

use age::secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use super::SealError;

/// Most keys in one identity file.
const MAX_IDENTITIES: usize = 64;

/// The public half: what is encrypted for it, its identity opens.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(age::x25519::Recipient);

/// The secret half. Wiped when dropped; `Debug` shows the public half.
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl Recipient {
    pub(super) fn as_age(&self) -> &age::x25519::Recipient {
        &self.0
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Recipient {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        // A secret key given by mistake is not quoted.
        text.parse().map(Self).map_err(|why: &str| {
            SealError::KeyFile(format!("not the public key of an age identity, age1…: {why}"))
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient())
    }
}

impl Identity {
    /// A new one.
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// Its public half.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    pub(super) fn as_age(&self) -> &age::x25519::Identity {
        &self.0
    }

    /// Its text, `AGE-SECRET-KEY-1…`, for the file that holds it.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string().expose_secret().to_owned())
    }

    /// The identities of a file; lines that are empty or begin with `#` are passed over.
    ///
    /// # Errors
    /// [`SealError::KeyFile`] naming the line, never its text.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, SealError> {
        let mut found = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let identity = line.parse().map_err(|_| {
                let number = index.saturating_add(1);
                SealError::KeyFile(format!("line {number} is not an age identity, AGE-SECRET-KEY-1…"))
            })?;
            found.push(Self(identity));
        }
        if found.is_empty() || found.len() > MAX_IDENTITIES {
            return Err(SealError::KeyFile(format!("it holds {} identities", found.len())));
        }
        Ok(found)
    }

    /// The text of a new identity file.
    pub fn file(&self, what: &str) -> Zeroizing<String> {
        let recipient = self.recipient().to_string();
        let secret = self.to_text();
        // A text that grows leaves copies of itself behind.
        let room =
            [what, &recipient, &secret].iter().fold(64_usize, |sum, part| sum.saturating_add(part.len()));
        let mut text = Zeroizing::new(String::with_capacity(room));
        for part in ["# ", what, "\n# public key: ", &recipient, "\n", &secret, "\n"] {
            text.push_str(part);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_identities_is_read_and_a_wrong_line_is_named_without_its_text() {
        let (one, two) = (Identity::generate(), Identity::generate());
        let text = format!("{}\n{}", one.file("daily key").as_str(), two.to_text().as_str());
        let found = Identity::parse_file(&text).unwrap();
        let recipients: Vec<Recipient> = found.iter().map(Identity::recipient).collect();
        assert_eq!(recipients, [one.recipient(), two.recipient()]);
        let broken = format!("{}\n{}x\n", one.to_text().as_str(), two.to_text().as_str());
        let error = Identity::parse_file(&broken).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("AGE-SECRET-KEY-1Q"), "{error}");
        assert!(!error.contains(two.to_text().trim_end()), "{error}");
        assert!(Identity::parse_file("# nothing\n").is_err());
        assert!(!format!("{one:?}").contains("SECRET"));
        let swapped = one.to_text().parse::<Recipient>().unwrap_err().to_string();
        assert!(!swapped.contains(one.to_text().as_str()), "{swapped}");
    }
}
