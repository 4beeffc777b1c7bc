//! How the queue stands against the promise and against the disk, said while there is time.
//!
//! ```text
//!  archive_status: files waiting, since when the first ─┐
//!  how much the queue grew in the last minute           ├─► grade ─► a log line when it gets worse, again while it is bad, and when it is over
//!  statvfs of pg_wal: free bytes                        ─┘       └─► `pitr agent --status`
//! ```
//! The agent asks the server nothing, so what it says comes from the file system alone; `pitr check` asks both. A queue that shrinks
//! fills no disk. The judging is pure.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::clock::{Clock as _, SystemClock};
use crate::durable;
use crate::ops::check::Grade;
use crate::ops::check::room::{self, Room};
use crate::ops::words::{bytes, seconds};

/// Between two measurements of how much the queue grows.
const SPAN: Duration = Duration::from_mins(1);
/// A first guess needs this much.
const FIRST_SPAN: Duration = Duration::from_secs(10);
/// Between two log lines of the same grade.
const AGAIN_RISK: Duration = Duration::from_hours(1);
const AGAIN_BAD: Duration = Duration::from_mins(10);

/// What is seen at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    /// Files in the queue, and the first of them with how long it has waited.
    pub(super) files: usize,
    pub(super) first: Option<(String, Duration)>,
    /// Bytes that the server may still write beside `pg_wal`; `None` if that cannot be told.
    pub(super) free: Option<u64>,
}

impl Look {
    /// Looks at the queue (its length, its first file) and at the disk.
    pub(super) fn take(data_dir: &Path, files: usize, first: Option<String>) -> Self {
        let pg_wal = data_dir.join("pg_wal");
        // One whose marker is gone waits no more. One that is there waits whatever the clock says, which tells nothing of how long if it was
        // set back.
        let first = first.and_then(|name| {
            let marker =
                std::fs::metadata(pg_wal.join("archive_status").join(format!("{name}.ready"))).ok()?;
            let made = marker.modified().ok().and_then(|made| jiff::Timestamp::try_from(made).ok());
            let age = made.and_then(|made| Duration::try_from(SystemClock.now().duration_since(made)).ok());
            Some((name, age.unwrap_or_default()))
        });
        Self { files, first, free: durable::free_bytes(&pg_wal) }
    }
}

/// How it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Seconds for which the first file has waited.
    pub waits: Option<u64>,
    /// Bytes free for WAL.
    pub free: Option<u64>,
    /// Seconds until they are used up, if the queue goes on growing as it does.
    pub full_in: Option<u64>,
    /// True if a promise is in danger, or the disk.
    pub at_risk: bool,
}

/// Follows one queue.
#[derive(Debug)]
pub(super) struct Watch {
    segment: u64,
    rpo: Duration,
    /// When the queue was measured, and how long it was.
    measured: Option<(Instant, usize)>,
    /// Bytes in a second that were found then; `None` while it does not grow.
    growth: Option<u64>,
    said: Option<(Instant, Grade)>,
    /// The first file of the queue, and since when it is seen there.
    first: Option<(String, Instant)>,
    now: Outlook,
}

impl Watch {
    /// Of a queue of segments of so many bytes, none of which shall wait for longer than `rpo`.
    pub(super) fn new(segment: u64, rpo: Duration) -> Self {
        Self { segment, rpo, measured: None, growth: None, said: None, first: None, now: Outlook::default() }
    }

    /// How it stood at the last look.
    pub(super) fn outlook(&self) -> &Outlook {
        &self.now
    }

    /// Takes a look into account; what is to be said of it now, and how bad it is.
    pub(super) fn see(&mut self, look: &Look, now: Instant) -> Option<(Grade, String)> {
        self.measure(look, now);
        let waits = self.waits(look, now);
        let queued = u64::try_from(look.files).unwrap_or(u64::MAX).saturating_mul(self.segment);
        let growth = match waits {
            // It may have grown faster before than in the last minute, but not while it gets shorter.
            Some(waits) if self.growth.is_some() => room::growth(self.growth, queued, waits),
            _ => None,
        };
        let room = look.free.map(|free| Room { free, segment: self.segment, growth });
        let late = match waits {
            Some(waits) if waits > self.rpo => Grade::Bad,
            Some(waits) if waits > self.rpo / 2 => Grade::Risk,
            _ => Grade::Good,
        };
        let grade = room.as_ref().map_or(Grade::Good, Room::grade).max(late);
        self.now = Outlook {
            waits: waits.map(|waits| waits.as_secs()),
            free: look.free,
            full_in: room.as_ref().and_then(Room::seconds_to_full),
            at_risk: grade != Grade::Good,
        };
        self.is_due(grade, now).then(|| (grade, self.text(look, grade)))
    }

    /// How long the first file has waited, by its own time or by how long it is seen, whichever is longer.
    fn waits(&mut self, look: &Look, now: Instant) -> Option<Duration> {
        let Some((name, waits)) = &look.first else {
            self.first = None;
            return None;
        };
        let seen = match &self.first {
            Some((first, since)) if first == name => *since,
            _ => self.first.insert((name.clone(), now)).1,
        };
        Some(now.saturating_duration_since(seen).max(*waits))
    }

    fn measure(&mut self, look: &Look, now: Instant) {
        let Some((then, files)) = self.measured else {
            self.measured = Some((now, look.files));
            return;
        };
        let passed = now.saturating_duration_since(then);
        if passed >= SPAN || (self.growth.is_none() && passed >= FIRST_SPAN && look.files > files) {
            let bytes = |files: usize| u64::try_from(files).unwrap_or(u64::MAX).saturating_mul(self.segment);
            let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
            self.growth = room::rate((bytes(files), 0), (bytes(look.files), millis)).filter(|rate| *rate > 0);
            self.measured = Some((now, look.files));
        }
    }

    fn is_due(&mut self, grade: Grade, now: Instant) -> bool {
        let due = match self.said {
            None => grade != Grade::Good,
            Some((_, said)) if grade > said => true,
            // An end is one only if it is well again.
            Some(_) if grade == Grade::Good => true,
            Some((when, _)) => {
                let again = if grade == Grade::Bad { AGAIN_BAD } else { AGAIN_RISK };
                now.saturating_duration_since(when) >= again
            }
        };
        if due {
            self.said = (grade != Grade::Good).then_some((now, grade));
        }
        due
    }

    fn text(&self, look: &Look, grade: Grade) -> String {
        let free =
            self.now.free.map_or_else(String::new, |free| format!("; {} free for pg_wal", bytes(free)));
        if grade == Grade::Good {
            return format!("the archive queue is as it should be again: {} files wait{free}", look.files);
        }
        let mut text = match &look.first {
            Some((name, _)) => format!(
                "{} files wait to be archived, {name} for {}; promised are {}",
                look.files,
                seconds(self.now.waits.unwrap_or_default()),
                seconds(self.rpo.as_secs())
            ),
            None => "nothing waits to be archived".to_owned(),
        };
        text.push_str(&free);
        if let Some(left) = self.now.full_in {
            text.push_str(&format!(", full in about {}: a full pg_wal stops the server", seconds(left)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;
    const GIB: u64 = 1 << 30;

    fn look(files: usize, waits: u64, free: u64) -> Look {
        let first = (files > 0).then(|| ("00000001000000000000002A".to_owned(), Duration::from_secs(waits)));
        Look { files, first, free: Some(free) }
    }

    struct Queue {
        watch: Watch,
        start: Instant,
        /// The clock was set back: how long a file waits cannot be seen on it.
        blind: bool,
    }

    impl Queue {
        fn new() -> Self {
            Self { watch: Watch::new(SEGMENT, Duration::from_secs(300)), start: Instant::now(), blind: false }
        }

        fn at(&mut self, second: u64, look: &Look) -> Option<(Grade, String)> {
            let mut look = look.clone();
            if let Some((name, waits)) = look.first.as_mut().filter(|_| !self.blind) {
                // One that began to wait at another time is another file.
                *name = format!("0000000100000000{:08X}", 1000 + second - waits.as_secs());
            }
            self.watch.see(&look, self.start + Duration::from_secs(second))
        }
    }

    #[test]
    fn a_queue_that_waits_is_said_once_and_again_and_when_it_is_over() {
        let mut queue = Queue::new();
        assert_eq!(queue.at(0, &look(2, 3, 900 * GIB)), None);
        assert_eq!(queue.at(150, &look(2, 150, 900 * GIB)), None);
        let (grade, text) = queue.at(151, &look(2, 151, 900 * GIB)).unwrap();
        assert_eq!(grade, Grade::Risk);
        assert!(text.starts_with("2 files wait to be archived, 0000000100000000000003E8 for "), "{text}");
        assert_eq!(queue.at(152, &look(2, 152, 900 * GIB)), None, "said already");
        assert_eq!(queue.at(301, &look(2, 301, 900 * GIB)).unwrap().0, Grade::Bad);
        assert_eq!(queue.at(900, &look(2, 900, 900 * GIB)), None);
        assert_eq!(queue.at(901, &look(2, 901, 900 * GIB)).unwrap().0, Grade::Bad, "still");
        // Better, not well: nothing to say before its time.
        assert_eq!(queue.at(902, &look(2, 200, 900 * GIB)), None);
        assert_eq!(queue.at(903, &look(1, 2, 900 * GIB)).unwrap().0, Grade::Good);
        assert_eq!(queue.at(904, &look(1, 3, 900 * GIB)), None);
    }

    #[test]
    fn a_clock_that_was_set_back_hides_no_queue() {
        let mut queue = Queue { blind: true, ..Queue::new() };
        // The time of its file is yet to come.
        assert_eq!(queue.at(0, &look(2, 0, 900 * GIB)), None);
        assert_eq!(queue.at(100, &look(2, 0, 900 * GIB)), None);
        let (grade, text) = queue.at(301, &look(3, 0, 900 * GIB)).unwrap();
        assert!(grade == Grade::Bad && text.contains(" for 5m"), "{text}");
        // Another one is first: it has waited for no time that is known.
        let mut next = look(2, 0, 900 * GIB);
        next.first.as_mut().unwrap().0 = "00000001000000000000002B".to_owned();
        assert_eq!(queue.at(302, &next).unwrap().0, Grade::Good);
    }

    #[test]
    fn a_disk_that_fills_is_said_hours_before() {
        let mut queue = Queue::new();
        // Four segments a minute into a queue that nothing leaves: about a MiB a second.
        assert_eq!(queue.at(0, &look(0, 0, 80 * GIB)), None);
        let (grade, text) = queue.at(60, &look(4, 60, 80 * GIB)).unwrap();
        assert_eq!(grade, Grade::Risk);
        assert!(text.contains("full in about"), "{text}");
        assert_eq!(queue.watch.outlook().full_in, Some(80 * GIB / (4 * SEGMENT / 60)));
        assert_eq!(queue.at(120, &look(8, 120, 3 * GIB)).unwrap().0, Grade::Bad, "within the hour");
    }

    #[test]
    fn a_queue_that_gets_shorter_fills_nothing() {
        let mut queue = Queue::new();
        queue.at(0, &look(400, 100, 2 * GIB));
        queue.at(60, &look(100, 140, 2 * GIB));
        assert_eq!(queue.watch.outlook().full_in, None);
        assert!(!queue.watch.outlook().at_risk);
        assert_eq!(queue.at(61, &look(100, 141, 3 * SEGMENT)).unwrap().0, Grade::Bad, "no room for anything");
    }
}
