//! Days, weeks, months and years of the configured time zone, and which backup stands for each.
//!
//! ```text
//!  Mon        Tue        Wed        Thu
//!  |  A   B   |  C       |          |  D   E  |        daily: A C D      weekly: A
//! ```
//! The **first** backup of a period stands for it. A later one never displaces it, so a choice made once is made again by every
//! later run, whatever was deleted in between; the last of a period would be another one after each backup. A week begins on Monday.
//! A period counts until its *end* is older than the promise: what is kept is never less than was promised. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use super::{HeldBackup, before};
use crate::repo::path::BackupId;

/// What backups are kept beyond the window for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// Midnight to midnight.
    Day,
    /// Monday to Sunday.
    Week,
    /// A calendar month.
    Month,
    /// A calendar year.
    Year,
}

impl Period {
    /// All of them, shortest first.
    pub const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::Year];

    /// The name of the promise: `daily`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }

    /// Its longest length.
    pub(super) fn length(self) -> Duration {
        let days = match self {
            Self::Day => 1,
            Self::Week => 7,
            Self::Month => 31,
            Self::Year => 366,
        };
        Duration::from_secs(days * 86_400)
    }

    /// The first day of the period that holds `day`.
    fn begin(self, day: Date) -> Date {
        match self {
            Self::Day => day,
            Self::Week => {
                day.checked_sub(i64::from(day.weekday().to_monday_zero_offset()).days()).unwrap_or(Date::MIN)
            }
            Self::Month => day.first_of_month(),
            Self::Year => day.first_of_year(),
        }
    }

    /// The first day after the period that begins on `begin`.
    fn next(self, begin: Date) -> Date {
        let span = match self {
            Self::Day => 1.day(),
            Self::Week => 1.week(),
            Self::Month => 1.month(),
            Self::Year => 1.year(),
        };
        begin.checked_add(span).unwrap_or(Date::MAX)
    }

    /// The first moment after the period; one past the end of the calendar never ends.
    fn end(self, begin: Date, zone: &TimeZone) -> Timestamp {
        self.next(begin).to_zoned(zone.clone()).map_or(Timestamp::MAX, |end| end.timestamp())
    }
}

/// The backups that stand for the periods of the last `span`, each with the day its period begins. `sound` is sorted by time;
/// `preferred` says which of them lie on the history that is alive: one that was left stands for a period only if no other does.
pub(super) fn chosen(
    period: Period,
    span: Duration,
    sound: &[&HeldBackup],
    preferred: impl Fn(&HeldBackup) -> bool,
    now: Timestamp,
    zone: &TimeZone,
) -> Vec<(BackupId, Date)> {
    if span.is_zero() {
        return Vec::new();
    }
    let oldest = before(now, span);
    let mut firsts: BTreeMap<Date, &HeldBackup> = BTreeMap::new();
    for backup in sound {
        let begin = period.begin(backup.stop_time.to_zoned(zone.clone()).date());
        if period.end(begin, zone) <= oldest {
            continue;
        }
        let first = firsts.entry(begin).or_insert(backup);
        if preferred(backup) && !preferred(first) {
            *first = backup;
        }
    }
    firsts.into_iter().map(|(begin, backup)| (backup.id.clone(), begin)).collect()
}
