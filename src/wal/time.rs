//! Times as PostgreSQL stores them in WAL: microseconds since 2000-01-01 00:00 UTC (`TimestampTz`).
//!
//! Printing uses the proleptic Gregorian calendar and always says `+00`: a time without its zone is how restores go wrong.
//! Leap seconds do not exist here, as in PostgreSQL. Pure. Source of truth: `datatype/timestamp.h`.

use std::fmt;

/// Microseconds from the Unix epoch to PostgreSQL's.
const EPOCH_IN_UNIX_MICROS: i64 = 946_684_800_000_000;
const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// A moment, to the microsecond. Any 64-bit number is one; what WAL holds lies between 4713 BC and AD 294276.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTime(i64);

impl PgTime {
    /// The moment `micros` microseconds after 2000-01-01 00:00 UTC.
    pub const fn from_raw(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 2000-01-01 00:00 UTC.
    pub const fn raw(self) -> i64 {
        self.0
    }

    /// The moment `micros` microseconds after 1970-01-01 00:00 UTC; held at the earliest one there is.
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(EPOCH_IN_UNIX_MICROS))
    }

    /// Microseconds since 1970-01-01 00:00 UTC; held at the largest number.
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_IN_UNIX_MICROS)
    }

    /// The moment `seconds` after 1970-01-01 00:00 UTC (`pg_time_t`); held at both ends.
    pub const fn from_unix_seconds(seconds: i64) -> Self {
        Self::from_unix_micros(seconds.saturating_mul(MICROS_PER_SECOND))
    }

    /// Microseconds from `earlier` to `self`; negative if `earlier` is later; held at both ends.
    pub const fn micros_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for PgTime {
    /// `2025-10-17 10:30:00.123456+00`: what PostgreSQL accepts as `recovery_target_time`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0.div_euclid(MICROS_PER_DAY));
        let micros = self.0.rem_euclid(MICROS_PER_DAY);
        let seconds = micros / MICROS_PER_SECOND;
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
        let fraction = micros % MICROS_PER_SECOND;
        write!(f, "{shown:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{fraction:06}+00{era}")
    }
}

impl fmt::Debug for PgTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Year, month and day of the day `days` after 2000-01-01. Counts in years that begin on 1 March, so that the leap day comes
/// last; 400 of them have 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let since_march_2000 = days - 60;
    let era = since_march_2000.div_euclid(146_097);
    let day_of_era = since_march_2000.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, next_year) =
        if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    (2000 + era * 400 + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_what_postgresql_prints() {
        assert_eq!(PgTime::from_raw(0).to_string(), "2000-01-01 00:00:00.000000+00");
        assert_eq!(PgTime::from_raw(-1).to_string(), "1999-12-31 23:59:59.999999+00");
        assert_eq!(PgTime::from_unix_seconds(0).to_string(), "1970-01-01 00:00:00.000000+00");
        assert_eq!(
            PgTime::from_unix_micros(1_760_697_000_123_456).to_string(),
            "2025-10-17 10:30:00.123456+00"
        );
        assert_eq!(PgTime::from_raw(59 * MICROS_PER_DAY).to_string(), "2000-02-29 00:00:00.000000+00");
        assert_eq!(PgTime::from_raw(-730_119 * MICROS_PER_DAY).to_string(), "0001-01-01 00:00:00.000000+00");
        assert_eq!(
            PgTime::from_raw(-730_120 * MICROS_PER_DAY).to_string(),
            "0001-12-31 00:00:00.000000+00 BC"
        );
    }

    proptest! {
        #[test]
        fn agrees_with_a_calendar_that_is_not_ours(micros in -62_000_000_000_000_000_i64..250_000_000_000_000_000) {
            let theirs = jiff::Timestamp::from_microsecond(micros).unwrap();
            let ours = PgTime::from_unix_micros(micros).to_string();
            prop_assert_eq!(ours, theirs.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string());
        }

        #[test]
        fn any_number_prints(micros: i64) {
            prop_assert!(!PgTime::from_raw(micros).to_string().is_empty());
        }
    }
}
