//! The letters and digits of a time: dates, clocks, offsets and zone names, without any meaning yet.
//!
//! Every reader takes what it understands from the front, or nothing. Digits are counted: `2025-1-7` and `7:5` are not read, as a
//! shortened number is more often a slip than a wish. Pure; never looks at more than the given text.

use jiff::SignedDuration;

/// The rest of the text.
pub(super) struct Scan<'a> {
    rest: &'a str,
}

/// A time of day as written; ranges are not checked.
pub(super) struct Clock {
    pub(super) hour: i8,
    pub(super) minute: i8,
    pub(super) second: i8,
    pub(super) nanosecond: i32,
    pub(super) fraction_digits: usize,
}

/// What is said about the zone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ZonePart<'a> {
    /// Nothing.
    None,
    /// Seconds east of UTC.
    Offset(i32),
    /// A name, not looked up.
    Name(&'a str),
    /// An offset and a name in brackets (RFC 9557).
    Both(i32, &'a str),
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, expected: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    fn blanks(&mut self) -> usize {
        let rest = self.rest.trim_start_matches(' ');
        let count = self.rest.len() - rest.len();
        self.rest = rest;
        count
    }

    /// Exactly `count` digits that no further digit follows.
    fn digits(&mut self, count: usize) -> Option<i32> {
        let length = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        if length != count {
            return None;
        }
        let (digits, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        digits.parse().ok()
    }

    fn two(&mut self) -> Option<i8> {
        i8::try_from(self.digits(2)?).ok()
    }

    /// `YYYY-MM-DD`, and the `T` or blanks behind it.
    pub(super) fn date(&mut self) -> Option<(i16, i8, i8)> {
        let year = i16::try_from(self.digits(4)?).ok()?;
        self.take('-')?;
        let month = self.two()?;
        self.take('-')?;
        let day = self.two()?;
        let separated =
            self.rest.is_empty() || self.take('T').or_else(|| self.take('t')).is_some() || self.blanks() > 0;
        separated.then_some((year, month, day))
    }

    /// `HH:MM`, `HH:MM:SS`, `HH:MM:SS.ffffff`; ISO 8601 has a comma for the point as well.
    pub(super) fn clock(&mut self) -> Option<Clock> {
        let hour = self.two()?;
        self.take(':')?;
        let mut clock = Clock { hour, minute: self.two()?, second: 0, nanosecond: 0, fraction_digits: 0 };
        if self.take(':').is_none() {
            return Some(clock);
        }
        clock.second = self.two()?;
        if self.take('.').or_else(|| self.take(',')).is_some() {
            let length = self.rest.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, rest) = self.rest.split_at_checked(length)?;
            self.rest = rest;
            clock.fraction_digits = length;
            // Digits beyond nine are only counted: the caller refuses them.
            let nanos = digits.bytes().chain(std::iter::repeat(b'0')).take(9);
            clock.nanosecond = nanos.fold(0, |n, digit| n * 10 + i32::from(digit - b'0'));
            if length == 0 {
                return None;
            }
        }
        Some(clock)
    }

    /// The zone and the end of the text.
    pub(super) fn zone(&mut self) -> Option<ZonePart<'a>> {
        let blanks = self.blanks();
        let offset =
            if self.take('Z').or_else(|| self.take('z')).is_some() { Some(0) } else { self.offset()? };
        self.blanks();
        if let Some(name) = self.rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return is_zone_name(name)
                .then(|| offset.map_or(ZonePart::Name(name), |o| ZonePart::Both(o, name)));
        }
        match (offset, self.rest) {
            (Some(offset), "") => Some(ZonePart::Offset(offset)),
            (None, "") => Some(ZonePart::None),
            (None, name) if blanks > 0 && is_zone_name(name) => Some(ZonePart::Name(name)),
            _ => None,
        }
    }

    /// `+07`, `+0700`, `+07:00`, `-03:30`. The inner `None` is no offset at all, the outer one a malformed one.
    fn offset(&mut self) -> Option<Option<i32>> {
        let sign = match self.rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Some(None),
        };
        self.rest = self.rest.get(1..)?;
        let (hours, minutes) = match self.digits(4) {
            Some(both) => (both / 100, both % 100),
            None => {
                let hours = self.digits(2)?;
                let minutes = if self.take(':').is_some() { self.digits(2)? } else { 0 };
                (hours, minutes)
            }
        };
        // No place was ever further from UTC than about 16 hours.
        (hours <= 18 && minutes < 60).then_some(Some(sign * (hours * 3600 + minutes * 60)))
    }
}

fn is_zone_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+-".contains(&b))
}

/// `10 minutes ago`, `1 hour 30 minutes ago`, `90s ago`. The outer `None`: it does not end in "ago"; the inner one: it does, and is
/// malformed.
pub(super) fn ago(text: &str) -> Option<Option<SignedDuration>> {
    let lower = text.to_ascii_lowercase();
    let amount = lower.strip_suffix("ago")?.strip_suffix(' ')?;
    Some(elapsed(amount))
}

fn elapsed(text: &str) -> Option<SignedDuration> {
    let mut rest = text.trim();
    let mut total: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let after = after.trim_start();
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let seconds: i64 = match unit {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(seconds)?)?;
        rest = after.trim_start();
    }
    Some(SignedDuration::from_secs(total))
}
