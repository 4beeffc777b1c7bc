//! Durations and sizes as people write them: `5m`, `1h30m`, `7d`, `64MiB`.
//!
//! A number without a unit is refused, except 0: whether 30 means seconds or minutes is the reader's guess. Sizes have binary
//! units only, spelt so: `64MB` could mean either. Round trip: what [`show_duration`] and [`show_size`] print is read back.

use std::time::Duration;

/// Units of time, largest first. A month has no fixed length and is not among them; a year is 365 days.
const TIME_UNITS: [(&str, u64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads a duration: one or more numbers with a unit, or `0`.
///
/// # Errors
/// Words that follow the value in a message.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "is not a duration such as 30s, 5m, 1h30m, 7d or 52w".to_owned();
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()) {
        return Err("has no unit: ms, s, m, h, d, w or y".to_owned());
    }
    let mut total: Option<u64> = None;
    while !rest.is_empty() {
        let (number, unit, after) = number_and_unit(rest).ok_or_else(wrong)?;
        let (_, millis) = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let part = number.checked_mul(*millis).ok_or_else(wrong)?;
        total = Some(total.unwrap_or(0).checked_add(part).ok_or_else(wrong)?);
        rest = after;
    }
    total.map(Duration::from_millis).ok_or_else(wrong)
}

/// Reads a size: a number with a binary unit, or `0`.
///
/// # Errors
/// Words that follow the value in a message.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || "is not a size such as 512KiB, 64MiB or 1GiB".to_owned();
    if text.trim() == "0" {
        return Ok(0);
    }
    let (number, unit, after) = number_and_unit(text.trim()).ok_or_else(wrong)?;
    let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    if after.is_empty() { number.checked_mul(*bytes).ok_or_else(wrong) } else { Err(wrong()) }
}

/// A number, the letters behind it, and the rest; one blank may stand between number and unit.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, after) = text.split_at_checked(digits)?;
    let after = after.strip_prefix(' ').unwrap_or(after);
    let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (unit, after) = after.split_at_checked(letters)?;
    Some((number.parse().ok()?, unit, after.trim_start()))
}

/// A duration in the largest units that say it exactly: `1h30m`. Parts below a millisecond are dropped.
pub fn show_duration(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0".to_owned();
    }
    let mut text = String::new();
    // Weeks and years are for writing; days are what people count in.
    for (name, unit) in TIME_UNITS.iter().filter(|(name, _)| !matches!(*name, "y" | "w")) {
        let count = millis / unit;
        millis %= unit;
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
        }
    }
    text
}

/// A size in the largest unit that says it exactly: `64MiB`.
pub fn show_size(bytes: u64) -> String {
    let fits = |(_, unit): &&(&str, u64)| bytes >= *unit && bytes.is_multiple_of(*unit);
    SIZE_UNITS
        .iter()
        .find(fits)
        .map_or_else(|| "0".to_owned(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, seconds) in [
            ("0", 0),
            ("90s", 90),
            ("5m", 300),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("7 d", 604_800),
            ("52w", 31_449_600),
            ("1y", 31_536_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("30"), Err("has no unit: ms, s, m, h, d, w or y".to_owned()));
        for bad in ["", " ", "m", "-5m", "5 mo", "1.5h", "5M", "5m,", "18446744073709551615y", "5m 3"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [("0", 0), ("1B", 1), ("64MiB", 64 << 20), ("2 GiB", 2 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "64", "64MB", "64mib", "1MiB1KiB", "99999999TiB", "-1B"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(n: u64) {
            prop_assert_eq!(parse_size(&show_size(n)), Ok(n));
            prop_assert_eq!(parse_duration(&show_duration(Duration::from_millis(n))), Ok(Duration::from_millis(n)));
        }
    }
}
