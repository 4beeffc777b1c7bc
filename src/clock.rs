//! Time and randomness, the two things that make a run unlike the one before.
//!
//! Whatever needs the time takes a `&dyn Clock`, so that a test can decide what "now" is; whatever needs an
//! identity takes it from here, so that there is one source of randomness (the kernel's) to reason about.
//! Invariants: nothing in pitr rests its safety on this clock (REPOSITORY.md 4: order, never clocks); it only
//! dates things for people and measures patience.

use std::time::Duration;

use jiff::Timestamp;

/// Bytes of a nonce: 64 bits tell two writers of one key apart, which is all a nonce is for.
pub const NONCE_BYTES: usize = 8;

/// Where the time of day comes from.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that moves only when a test moves it.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub struct ManualClock(std::sync::Mutex<Timestamp>);

#[cfg(any(test, feature = "testing"))]
impl ManualClock {
    /// A clock that stands at `at`.
    pub fn at(at: Timestamp) -> Self {
        Self(std::sync::Mutex::new(at))
    }

    /// Moves the clock; a negative span moves it back, as real clocks do.
    pub fn advance(&self, span: jiff::SignedDuration) {
        let mut now = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *now = now.saturating_add(span).unwrap_or(Timestamp::MAX);
    }
}

#[cfg(any(test, feature = "testing"))]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Waits. The only sleep of pitr, so that a paused runtime of a test governs every wait.
pub async fn sleep(span: Duration) {
    tokio::time::sleep(span).await;
}

/// The kernel would not give random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the kernel gave no random bytes: {0}")]
pub struct NoRandomness(getrandom::Error);

/// `N` bytes from the kernel's generator.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(bytes)
}

/// A new nonce: [`NONCE_BYTES`] random bytes as lower-case hex. It marks who wrote an object, so that a writer
/// whose reply was lost recognises its own work (REPOSITORY.md 2).
pub fn nonce() -> Result<String, NoRandomness> {
    Ok(hex(&random_bytes::<NONCE_BYTES>()?))
}

/// `N` random bytes as lower-case hex, such as the tail of a backup's name.
pub fn random_hex<const N: usize>() -> Result<String, NoRandomness> {
    Ok(hex(&random_bytes::<N>()?))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_sixteen_lower_case_hex_digits_and_differ() {
        let (one, two) = (nonce().unwrap(), nonce().unwrap());
        assert_eq!(one.len(), 16);
        assert!(one.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        assert_ne!(one, two);
        assert_eq!(random_hex::<4>().unwrap().len(), 8);
        assert_eq!(hex(&[0, 0x0a, 0xff]), "000aff");
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::at(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
        clock.advance(jiff::SignedDuration::from_secs(-5));
        assert_eq!(clock.now().as_second(), -5);
    }
}
