//! `--to`: the text of a moment becomes the moment, or is refused; a time zone is never guessed.
//!
//! ```text
//!  latest                                the end of what is stored
//!  2025-10-17 10:30:00.123456+07         an offset (+07, +07:00, +0700, Z): says it all
//!  2025-10-17T10:30 Asia/Jakarta         a zone by name, also [Asia/Jakarta]
//!  2025-10-17 10:30                      read in the configured `timezone`; refused without one
//!  10 minutes ago, 1 hour 30 minutes ago elapsed time: a day is 24 hours
//! ```
//! A local time that the clocks skipped or showed twice is refused with both readings. Abbreviations such as WIB or EST are refused with
//! what they could mean, and words such as "yesterday" with today's date. Seconds may be absent; more than six digits of a second are refused, as PostgreSQL would round them and a
//! commit could fall on the other side. Pure: `now` and the zones are given. Used for `--to` and for every other time on the
//! command line.

mod abbreviation;
mod scan;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp};

use scan::{Scan, ZonePart};

/// Longest text that is looked at.
const MAX_TEXT: usize = 200;

/// What `--to` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToSpec {
    /// Everything that is stored.
    Latest,
    /// A moment, in whole microseconds.
    At(Timestamp),
}

/// What is needed to read a time.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The moment that "ago" counts from.
    pub now: Timestamp,
    /// `timezone` of the configuration: the zone of naive times.
    pub configured: Option<&'a TimeZone>,
    /// The zone of this host, shown when a naive time is refused.
    pub host: Option<&'a TimeZone>,
    /// The zone of the server, shown when a naive time is refused.
    pub server: Option<&'a TimeZone>,
}

/// A time that is refused: what is wrong, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TargetError {
    /// What is wrong.
    pub message: String,
    /// The possible readings, or the form expected.
    pub hint: String,
    /// It is refused because its zone is open: what the server's zone makes of it is worth showing.
    pub lacks_zone: bool,
}

impl TargetError {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), lacks_zone: false }
    }

    fn without_zone(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { lacks_zone: true, ..Self::new(message, hint) }
    }
}

/// Reads the text of `--to`.
///
/// # Errors
/// [`TargetError`] for anything that is not exactly one moment.
pub fn parse(text: &str, context: &Context<'_>) -> Result<ToSpec, TargetError> {
    let text = text.trim();
    if text.len() > MAX_TEXT {
        return Err(TargetError::new(format!("a time of {} bytes cannot be read", text.len()), FORMS));
    }
    if text.eq_ignore_ascii_case("latest") {
        return Ok(ToSpec::Latest);
    }
    if let Some(error) = special(text).or_else(|| dateless(text, context)) {
        return Err(error);
    }
    if let Some(elapsed) = scan::ago(text) {
        let elapsed = elapsed.ok_or_else(|| unreadable(text))?;
        return before(text, context.now, elapsed).map(ToSpec::At);
    }
    let mut scan = Scan::new(text);
    let date = date(text, &mut scan)?;
    let time = time(text, date, &mut scan)?;
    let zone = scan.zone().ok_or_else(|| unreadable(text))?;
    moment(text, date.to_datetime(time), &zone, context).map(ToSpec::At)
}

/// Words that PostgreSQL knows for a time and that would mean another one on each call.
fn special(text: &str) -> Option<TargetError> {
    let known = ["now", "epoch", "infinity", "-infinity"];
    known.iter().any(|word| text.eq_ignore_ascii_case(word)).then(|| {
        TargetError::new(
            format!("{text:?} is not a target"),
            "write `latest`, a time such as \"10 minutes ago\", or a date and time",
        )
    })
}

/// "10:30", "yesterday 22:00": of which day depends on where one asks, and on which side of midnight. The date is worked out and shown.
fn dateless(text: &str, context: &Context<'_>) -> Option<TargetError> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let days = match word.to_ascii_lowercase().as_str() {
        "today" => 0,
        "yesterday" => -1,
        "tomorrow" => 1,
        _ => {
            Scan::new(text).clock()?;
            0
        }
    };
    let utc = TimeZone::UTC;
    let zone = context.configured.or(context.host).unwrap_or(&utc);
    let today = zone.to_datetime(context.now).date();
    let date = today.checked_add(Span::new().days(days)).ok()?;
    let named = if context.configured.is_some() { String::new() } else { format!(" {}", zone_name(zone)) };
    let clock = if text.starts_with(|c: char| c.is_ascii_digit()) { text } else { rest.trim() };
    let clock = if clock.is_empty() { "00:00" } else { clock };
    let named = if clock.contains(' ') { String::new() } else { named };
    Some(TargetError::new(
        format!("{text:?} has no date"),
        format!("today is {today} in {}: write \"{date} {clock}{named}\"", zone_name(zone)),
    ))
}

fn before(text: &str, now: Timestamp, elapsed: SignedDuration) -> Result<Timestamp, TargetError> {
    let moment = now.checked_sub(elapsed).map_err(|_| unreadable(text))?;
    // The clock has nanoseconds, commits have microseconds.
    Timestamp::from_microsecond(moment.as_microsecond()).map_err(|_| unreadable(text))
}

fn unreadable(text: &str) -> TargetError {
    TargetError::new(format!("{text:?} is not a time"), FORMS)
}

const FORMS: &str = "forms: \"2025-10-17 10:30:00+07\", \"2025-10-17 10:30 Asia/Jakarta\", \"2025-10-17T03:30:00Z\", \"10 minutes ago\", latest";

fn date(text: &str, scan: &mut Scan<'_>) -> Result<Date, TargetError> {
    let (year, month, day) = scan.date().ok_or_else(|| unreadable(text))?;
    Date::new(year, month, day).map_err(|_| {
        TargetError::new(
            format!("{year:04}-{month:02}-{day:02} is not a day of the calendar"),
            "the order is year-month-day",
        )
    })
}

fn time(text: &str, date: Date, scan: &mut Scan<'_>) -> Result<Time, TargetError> {
    if scan.is_empty() {
        return Err(TargetError::new(
            format!("{text:?} has no time of day"),
            format!("its first moment is \"{date} 00:00\", its last \"{date} 23:59:59.999999\""),
        ));
    }
    let clock = scan.clock().ok_or_else(|| unreadable(text))?;
    if clock.fraction_digits > 6 {
        return Err(TargetError::new(
            format!("{text:?} has more than six digits of a second"),
            "PostgreSQL's times have microseconds",
        ));
    }
    Time::new(clock.hour, clock.minute, clock.second, clock.nanosecond).map_err(|_| {
        let hint = next(date, &clock).map_or_else(
            || "hours go from 00 to 23, minutes and seconds from 00 to 59".to_owned(),
            |next| format!("write \"{}\"; PostgreSQL's times know no leap second", plain(next)),
        );
        TargetError::new(
            format!("{:02}:{:02}:{:02} is not a time of day", clock.hour, clock.minute, clock.second),
            hint,
        )
    })
}

/// What is meant by the end of a day (24:00) or a leap second (:60): PostgreSQL reads both as the next moment.
fn next(date: Date, clock: &scan::Clock) -> Option<DateTime> {
    let (hour, minute) = (i64::from(clock.hour), i64::from(clock.minute));
    let sensible = match (clock.hour, clock.second) {
        (24, second) => clock.minute == 0 && second == 0,
        (0..24, 60) => (0..60).contains(&clock.minute),
        _ => false,
    };
    let end = Span::new().hours(hour).minutes(minute).seconds(i64::from(clock.second));
    sensible.then(|| date.to_datetime(Time::midnight()).checked_add(end).ok()).flatten()
}

/// The moment at which clocks in the given zone show `local`.
fn moment(
    text: &str,
    local: DateTime,
    zone: &ZonePart<'_>,
    context: &Context<'_>,
) -> Result<Timestamp, TargetError> {
    match zone {
        ZonePart::None => match context.configured {
            Some(zone) => in_zone(local, zone),
            None => Err(naive(text, local, context)),
        },
        ZonePart::Offset(seconds) => with_offset(text, local, *seconds),
        ZonePart::Name(name) => match named(name) {
            Ok(zone) => in_zone(local, &zone),
            Err(error) if abbreviation::is_one(name) => Err(abbreviated(error, local, name, context)),
            Err(error) => Err(error),
        },
        ZonePart::Both(seconds, name) => {
            let zone = named(name)?;
            let moment = with_offset(text, local, *seconds)?;
            let actual = zone.to_offset(moment);
            if actual.seconds() != *seconds {
                return Err(TargetError::new(
                    format!("{text:?} contradicts itself: {name} was at {} then", offset_text(actual)),
                    "write the offset or the zone, not both",
                ));
            }
            Ok(moment)
        }
    }
}

fn with_offset(text: &str, local: DateTime, seconds: i32) -> Result<Timestamp, TargetError> {
    let offset = Offset::from_seconds(seconds).map_err(|_| unreadable(text))?;
    offset.to_timestamp(local).map_err(|_| unreadable(text))
}

/// Files beside the zones that are none: this host's own zone, what POSIX rules follow, what no administrator has set yet.
const NO_ZONES: [&str; 3] = ["localtime", "posixrules", "Factory"];
/// The same zones again, with and without leap seconds: `right/UTC` is half a minute off.
const COPIES: [&str; 2] = ["posix/", "right/"];

/// The zone called `name` in the IANA database.
///
/// # Errors
/// [`TargetError`] for an abbreviation and for an unknown name.
pub fn named(name: &str) -> Result<TimeZone, TargetError> {
    if name.eq_ignore_ascii_case("UTC") || name.eq_ignore_ascii_case("GMT") {
        return Ok(TimeZone::UTC);
    }
    let is_none = NO_ZONES.iter().any(|other| name.eq_ignore_ascii_case(other));
    if is_none || COPIES.iter().any(|start| name.to_ascii_lowercase().starts_with(start)) {
        return Err(TargetError::new(
            format!("{name:?} is no place's time zone"),
            "names are those of the IANA database, such as Asia/Jakarta",
        ));
    }
    let zone = TimeZone::get(name);
    // CET, EST5EDT and the like are in the database; Japan and Singapore are, too, and mean one place.
    let is_place =
        |zone: &TimeZone| zone.iana_name().is_some_and(|n| n.contains(|c: char| c.is_ascii_lowercase()));
    if !name.contains('/') && !zone.as_ref().is_ok_and(is_place) {
        return Err(TargetError::new(
            format!("{name:?} is an abbreviation, and these are used for more than one offset"),
            "write the zone's name such as Asia/Jakarta, or an offset such as +07",
        ));
    }
    zone.map_err(|_| {
        TargetError::new(
            format!("{name:?} is not a time zone"),
            "names are those of the IANA database, such as Asia/Jakarta",
        )
    })
}

/// The zone that a server calls so: also abbreviations that are in the database, and rules of POSIX such as `EST5EDT,M3.2.0,M11.1.0`.
/// For showing what a time would mean there, never for reading one.
pub fn of_server(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).or_else(|_| TimeZone::posix(name)).ok()
}

/// Is it only a zone that keeps this text from being a moment? Then the server's is worth asking for.
pub fn lacks_zone(text: &str, configured: Option<&TimeZone>) -> bool {
    let context = Context { now: Timestamp::UNIX_EPOCH, configured, host: None, server: None };
    parse(text, &context).is_err_and(|error| error.lacks_zone)
}

fn out_of_range(local: DateTime, name: &str) -> TargetError {
    TargetError::new(format!("{local} in {name} is out of range"), FORMS)
}

fn in_zone(local: DateTime, zone: &TimeZone) -> Result<Timestamp, TargetError> {
    let name = zone_name(zone);
    let at = |offset: Offset| offset.to_timestamp(local).map_err(|_| out_of_range(local, &name));
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => at(offset),
        AmbiguousOffset::Gap { before, after } => Err(TargetError::new(
            format!("{} did not exist in {name}: the clocks were put forward over it", plain(local)),
            both_readings(local, zone, before, after),
        )),
        AmbiguousOffset::Fold { before, after } => Err(TargetError::new(
            format!("{} happened twice in {name}: the clocks were put back over it", plain(local)),
            both_readings(local, zone, before, after),
        )),
    }
}

/// The two moments that a skipped or repeated local time may mean, earlier first, in a form that can be given as `--to`.
fn both_readings(local: DateTime, zone: &TimeZone, before: Offset, after: Offset) -> String {
    let mut moments: Vec<Timestamp> =
        [before, after].iter().filter_map(|offset| offset.to_timestamp(local).ok()).collect();
    moments.sort_unstable();
    let lines = moments.iter().map(|moment| format!("  --to \"{}\"", show(*moment, zone)));
    format!("give the one you mean:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// An abbreviation, with what it may mean.
fn abbreviated(error: TargetError, local: DateTime, name: &str, context: &Context<'_>) -> TargetError {
    let near: Vec<&TimeZone> =
        [context.server, context.configured, context.host].into_iter().flatten().collect();
    let lines = abbreviation::readings(local, name, &near);
    if lines.is_empty() {
        return error;
    }
    TargetError::without_zone(error.message, format!("{}; it could mean\n{}", error.hint, lines.join("\n")))
}

fn naive(text: &str, local: DateTime, context: &Context<'_>) -> TargetError {
    let zones = [("UTC", Some(&TimeZone::UTC)), ("this host", context.host), ("the server", context.server)];
    let mut lines =
        vec!["give an offset or a zone, or set `timezone` in the configuration; it could mean".to_owned()];
    for (whose, zone) in zones.into_iter().filter_map(|(whose, zone)| Some((whose, zone?))) {
        let reading = match in_zone(local, zone) {
            Ok(moment) => format!("--to \"{}\"", show(moment, zone)),
            Err(error) => error.message,
        };
        let name = zone_name(zone);
        let whose = if name == whose { name } else { format!("{whose}, {name}") };
        lines.push(format!("  {reading}  ({whose})"));
    }
    TargetError::without_zone(format!("{text:?} has no time zone, and none is configured"), lines.join("\n"))
}

/// A moment as clocks in `zone` show it, with its offset, in a form that [`parse`] reads back: `2025-10-17 10:30:00+07:00`.
pub fn show(moment: Timestamp, zone: &TimeZone) -> String {
    let offset = zone.to_offset(moment);
    format!("{}{}", plain(offset.to_datetime(moment)), offset_text(offset))
}

/// Name of a zone for people; its offset if it has no name.
pub fn zone_name(zone: &TimeZone) -> String {
    let fixed = || zone.to_fixed_offset().map_or_else(|_| "unnamed zone".to_owned(), offset_text);
    zone.iana_name().map_or_else(fixed, str::to_owned)
}

fn plain(local: DateTime) -> String {
    let date = local.date();
    let (hour, minute, second) = (local.hour(), local.minute(), local.second());
    let micros = local.subsec_nanosecond() / 1_000;
    let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
    format!("{date} {hour:02}:{minute:02}:{second:02}{fraction}")
}

/// `+07:00`, with seconds only where a zone of long ago has them.
fn offset_text(offset: Offset) -> String {
    let seconds = offset.seconds();
    let sign = if seconds < 0 { '-' } else { '+' };
    let all = seconds.unsigned_abs();
    let (hours, minutes, rest) = (all / 3600, all / 60 % 60, all % 60);
    let tail = if rest == 0 { String::new() } else { format!(":{rest:02}") };
    format!("{sign}{hours:02}:{minutes:02}{tail}")
}

#[cfg(test)]
mod tests;
