//! Which objects are read today: all, none, or the bucket of the day, so that in N days each was read once.
//!
//! ```text
//!  key ─► BLAKE3 ─► bucket (0 to N - 1)        read today: the bucket that equals the day since 1970, modulo N
//! ```
//! Nothing is remembered between runs: where an object belongs follows from its name, what is due from the date (UTC). Run daily it
//! reads everything once in N days; a day without a run leaves its bucket for N days more. Pure.

use crate::codec::Digest;
use crate::error::{Error, Result};

/// Longest cycle.
const MAX_DAYS: u64 = 3650;

/// Which bodies are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// All.
    All,
    /// None: names, sizes and the small objects alone.
    Nothing,
    /// One of `of` buckets.
    Bucket {
        /// How many there are: the days of a cycle.
        of: u64,
        /// The one that is due.
        today: u64,
    },
}

impl Sample {
    /// What `text` means on the day numbered `day` (since 1970): `30d`, `10%` or `0.1` (both: every ten days), `0`, `1`.
    ///
    /// # Errors
    /// Kind `Usage`.
    pub fn parse(text: &str, day: u64) -> Result<Self> {
        let wrong = || {
            Error::usage(format!("--sample {text}: it is neither a part nor a number of days")).hint(
                "such as 30d (everything once in 30 days), 10%, 0.1, or 0 (names and small objects alone)",
            )
        };
        let days = match text.strip_suffix('d') {
            Some(days) => days.parse().map_err(|_| wrong())?,
            None => {
                let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
                let part = number.parse::<f64>().map_err(|_| wrong())? / scale;
                match cycle(part).ok_or_else(wrong)? {
                    0 => return Ok(Self::Nothing),
                    days => days,
                }
            }
        };
        match days {
            1 => Ok(Self::All),
            2..=MAX_DAYS => Ok(Self::Bucket { of: days, today: day % days }),
            _ => Err(wrong()),
        }
    }

    /// Whether the object called `key` is read.
    pub fn takes(self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Bucket { of, today } => {
                let digest = Digest::of(key.as_bytes());
                let number = digest.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
                number % of == today
            }
        }
    }
}

/// Days in which parts of this size make a whole; 0 for no part.
fn cycle(part: f64) -> Option<u64> {
    if part == 0.0 {
        return Some(0);
    }
    if !(part > 0.0 && part <= 1.0) {
        return None;
    }
    // Counted up instead of converted: no cast loses anything.
    let mut days = 1_u64;
    let mut reached = part;
    while reached < 1.0 - 1e-9 && days <= MAX_DAYS {
        days += 1;
        reached += part;
    }
    Some(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_read_once_in_a_cycle_and_nothing_twice() {
        let keys: Vec<String> = (0..1000).map(|n| format!("main/1/wal/{n}")).collect();
        for (text, days) in [("30d", 30), ("10%", 10), ("0.3", 4), ("1d", 1), ("1", 1)] {
            let mut times = vec![0; keys.len()];
            for day in 20_000..20_000 + days {
                let sample = Sample::parse(text, day).unwrap();
                for (key, times) in keys.iter().zip(&mut times) {
                    *times += usize::from(sample.takes(key));
                }
            }
            assert!(times.iter().all(|n| *n == 1), "{text}");
        }
        let due = |day| keys.iter().filter(|k| Sample::parse("10d", day).unwrap().takes(k)).count();
        assert!((50..200).contains(&due(0)), "buckets are about equal: {}", due(0));
    }

    #[test]
    fn what_is_no_part_and_no_days_is_refused() {
        for bad in ["", "x", "0d", "-1", "2", "101%", "nan", "inf", "9999d", "1.5d", "0.00001"] {
            assert!(Sample::parse(bad, 0).is_err(), "{bad}");
        }
        assert_eq!(Sample::parse("0", 7).unwrap(), Sample::Nothing);
        assert_eq!(Sample::parse("0%", 7).unwrap(), Sample::Nothing);
    }
}
