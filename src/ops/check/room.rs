//! When is `pg_wal` full? A full one stops the server (PANIC), so this is said while there is time.
//!
//! ```text
//!  something holds WAL: the archiver, or a slot    ─┐
//!  how fast it is written: now, or since the queue ─┼─► seconds until the file system of pg_wal is full ─► grade
//!  free bytes there                                ─┘
//! ```
//! While nothing holds WAL the server recycles its segments, and `pg_wal` stays as large as it is; on an idle server nothing fills.
//! Segments that wait to be recycled are written before new ones are made, so the end comes a little later than is said. Pure.

use std::time::Duration;

use super::Grade;

/// Full within this: at risk.
pub const FULL_SOON: Duration = Duration::from_hours(24);
/// Full within this: as good as full.
pub const FULL_NOW: Duration = Duration::from_hours(1);
/// Room for fewer segments than this is none: the next burst of writes takes them.
pub const LEAST_SEGMENTS: u64 = 4;
/// A queue younger than this says little about how fast it grows.
const TELLING: Duration = Duration::from_mins(1);

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that the server may still write on the file system of `pg_wal`.
    pub free: u64,
    /// Bytes of a segment.
    pub segment: u64,
    /// Bytes by which `pg_wal` grows in a second; `None` if nothing holds WAL, or it is not known how fast it is written.
    pub growth: Option<u64>,
}

impl Room {
    /// Seconds until it is full; `None` if it does not fill.
    pub fn seconds_to_full(&self) -> Option<u64> {
        self.growth.and_then(|bytes| self.free.checked_div(bytes))
    }

    /// How bad that is.
    pub fn grade(&self) -> Grade {
        let full_within = |span: Duration| self.seconds_to_full().is_some_and(|left| left <= span.as_secs());
        if full_within(FULL_NOW) || self.free < self.segment.saturating_mul(LEAST_SEGMENTS) {
            return Grade::Bad;
        }
        if full_within(FULL_SOON) { Grade::Risk } else { Grade::Good }
    }
}

/// Bytes in a second between two looks at the end of WAL, each in bytes and milliseconds. `None` if either went back: the server, or its
/// clock, was set back.
pub fn rate(before: (u64, u64), after: (u64, u64)) -> Option<u64> {
    let (written, passed) = (after.0.checked_sub(before.0)?, after.1.checked_sub(before.1)?);
    u64::try_from(u128::from(written) * 1000 / u128::from(passed).max(1)).ok()
}

/// How fast WAL piles up: as fast as it is written now, or as fast as the queue grew so far if that was faster.
pub fn growth(now: Option<u64>, queued: u64, oldest: Duration) -> Option<u64> {
    let so_far = (oldest >= TELLING).then(|| queued / oldest.as_secs().max(1));
    now.max(so_far)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const SEGMENT: u64 = 16 << 20;

    fn graded(free: u64, growth: Option<u64>) -> (Grade, Option<u64>) {
        let room = Room { free, segment: SEGMENT, growth };
        (room.grade(), room.seconds_to_full())
    }

    #[test]
    fn the_grade_follows_from_the_time_that_is_left() {
        // At 1 MiB/s a second is a MiB.
        let mib = Some(1 << 20);
        assert_eq!(graded(86_401 << 20, mib), (Grade::Good, Some(86_401)));
        assert_eq!(graded(86_400 << 20, mib), (Grade::Risk, Some(86_400)));
        assert_eq!(graded(3_601 << 20, mib), (Grade::Risk, Some(3_601)));
        assert_eq!(graded(3_600 << 20, mib), (Grade::Bad, Some(3_600)));
        assert_eq!(graded(GIB, Some(u64::MAX)), (Grade::Bad, Some(0)));
    }

    #[test]
    fn what_does_not_grow_does_not_fill() {
        assert_eq!(graded(GIB, None), (Grade::Good, None));
        assert_eq!(graded(GIB, Some(0)), (Grade::Good, None));
    }

    #[test]
    fn room_for_a_few_segments_is_none() {
        assert_eq!(graded(4 * SEGMENT, None), (Grade::Good, None));
        assert_eq!(graded(4 * SEGMENT - 1, None), (Grade::Bad, None));
        assert_eq!(graded(0, None), (Grade::Bad, None));
    }

    #[test]
    fn a_rate_is_bytes_between_two_looks_by_the_servers_clock() {
        assert_eq!(rate((1000, 5_000), (3000, 6_000)), Some(2000));
        assert_eq!(rate((1000, 5_000), (1000, 6_000)), Some(0));
        assert_eq!(rate((1000, 5_000), (3000, 5_000)), Some(2_000_000));
        assert_eq!(rate((3000, 5_000), (1000, 6_000)), None, "another timeline");
        assert_eq!(rate((1000, 5_000), (3000, 4_000)), None, "the clock was set back");
        assert_eq!(rate((0, 0), (u64::MAX, 1)), None);
    }

    #[test]
    fn a_queue_that_grew_faster_than_wal_is_written_now_decides() {
        let hour = Duration::from_hours(1);
        assert_eq!(growth(Some(10), 36_000_000, hour), Some(10_000));
        assert_eq!(growth(Some(20_000), 36_000_000, hour), Some(20_000));
        assert_eq!(growth(Some(10), 36_000_000, Duration::from_secs(59)), Some(10), "too young to tell");
        assert_eq!(growth(None, 0, Duration::ZERO), None);
    }
}
