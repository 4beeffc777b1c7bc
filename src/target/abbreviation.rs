//! What an abbreviation such as CET, EST or IST may mean: PostgreSQL's log lines end in one, and so do times that people type.
//!
//! ```text
//!  2025-07-17 10:30 CET ──┬─ +01:00, as Berlin has it in winter
//!                         └─ +02:00, which Berlin's clocks showed on that day
//! ```
//! It is never taken for a zone: IST is India's, Israel's and Ireland's, and many who write CET in July mean what the clock on the wall
//! shows. But it is shown what it could mean, the zones of the server and of this host first. Used only where a time is refused.

use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

use super::{out_of_range, show, zone_name};

/// Looked at before all others, so that an offset is shown with a place that people know.
const WELL_KNOWN: [&str; 16] = [
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Los_Angeles",
    "America/Sao_Paulo",
    "Europe/London",
    "Europe/Berlin",
    "Europe/Dublin",
    "Europe/Moscow",
    "Asia/Kolkata",
    "Asia/Jakarta",
    "Asia/Jerusalem",
    "Asia/Shanghai",
    "Asia/Tokyo",
    "Australia/Sydney",
    "Pacific/Auckland",
];
/// Readings shown at most.
const MOST: usize = 6;

/// May this be an abbreviation?
pub(super) fn is_one(name: &str) -> bool {
    (2..=6).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphabetic())
}

/// The readings of `local` with this abbreviation, one line each, in a form that can be given as `--to`; none if no zone uses it.
pub(super) fn readings(local: DateTime, abbreviation: &str, near: &[&TimeZone]) -> Vec<String> {
    let known = WELL_KNOWN.iter().filter_map(|name| TimeZone::get(name).ok());
    let first: Vec<TimeZone> = near.iter().map(|zone| (*zone).clone()).chain(known).collect();
    let rest = jiff::tz::db().available().filter_map(|name| TimeZone::get(name.as_str()).ok());
    let mut found: Vec<Offset> = Vec::new();
    let mut lines = Vec::new();
    for (zone, is_known) in first.into_iter().map(|zone| (zone, true)).chain(rest.map(|zone| (zone, false))) {
        let Some(meant) = meaning(local, abbreviation, &zone) else { continue };
        let name = zone_name(&zone);
        let shown = on_that_day(local, &zone).filter(|shown| is_known && *shown != meant);
        let readings = [
            (Some(meant), format!("{} in {name}", abbreviation.to_ascii_uppercase())),
            (shown, format!("{name} on that day")),
        ];
        for (offset, whose) in readings.into_iter().filter_map(|(offset, whose)| Some((offset?, whose))) {
            if !found.contains(&offset)
                && lines.len() < MOST
                && let Ok(moment) = offset.to_timestamp(local).map_err(|_| out_of_range(local, &name))
            {
                found.push(offset);
                lines.push(format!("  --to \"{}\"  ({whose})", show(moment, &TimeZone::fixed(offset))));
            }
        }
    }
    lines
}

/// The offset that a zone gives this name within half a year of `local`.
fn meaning(local: DateTime, abbreviation: &str, zone: &TimeZone) -> Option<Offset> {
    let around = Offset::UTC.to_timestamp(local).ok()?;
    (-3_i64..=3).find_map(|step| {
        let info = zone.to_offset_info(around.checked_add(SignedDuration::from_hours(step * 61 * 24)).ok()?);
        info.abbreviation().eq_ignore_ascii_case(abbreviation).then(|| info.offset())
    })
}

/// What the zone's clocks had at `local`, if they showed it once.
fn on_that_day(local: DateTime, zone: &TimeZone) -> Option<Offset> {
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => Some(offset),
        AmbiguousOffset::Gap { .. } | AmbiguousOffset::Fold { .. } => None,
    }
}
