//! What archiving does right now: the archiver's account of itself, its queue, and the room that is left for WAL.
//!
//! ```text
//!  pg_stat_archiver           does it fail, and at what
//!  pg_ls_archive_statusdir()  what waits, and for how long       (pg_monitor; without it: by positions, which is less)
//!  pg_control_checkpoint()    how old WAL that no segment brought to the archive is at least
//!  pg_replication_slots       who else holds WAL
//!  statvfs of pg_wal          free bytes, if the data directory of this very server is on this host
//! ```
//! What is read is read in a few statements; a second look at the end of WAL is taken only if something holds WAL. What is judged is
//! judged by pure functions of [`Live`]. Source of truth: `pgarch.c`, `xlogarchive.c`, `slotfuncs.c` of 13 to 18.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::room::{self, Room};
use super::settings::{archives, timeout};
use super::{Finding, Grade};
use crate::clock;
use crate::durable;
use crate::error::Result;
use crate::ops::init::facts::{ServerFacts, failed};
use crate::ops::words::{bytes, seconds};
use crate::pgdata::pidfile::{self, PidFile};
use crate::pgwire::Sql;
use crate::wal::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};

/// Between two looks at how fast WAL is written.
const RATE_LOOK: Duration = Duration::from_secs(1);
/// A queue whose oldest file waits for less is a queue at work: the archiver takes a new look at the latest every minute.
const STUCK_AFTER: Duration = Duration::from_mins(1);
/// WAL of an idle server: a few records that say that nothing happened.
const IDLE_BYTES: u64 = 16 << 10;
/// Segments that a slot which is read from may hold: its reader's flushes, and a checkpoint's worth of WAL, lie behind the end.
const ACTIVE_MAY_HOLD: u64 = 64;
/// Most of `postmaster.pid` that is read; it has eight lines.
const PID_FILE: u64 = 4096;
/// How far two notes of one start of a server may lie apart.
const SAME_START: u64 = 300;
/// What to look at if the archiver does not get on.
const SEE_LOG: &str = "the server's log shows what archive-push said";

/// Files that wait for the archiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// All of them.
    pub files: u64,
    /// Those of them that are as large as a segment.
    pub segments: u64,
    /// Bytes in those.
    pub bytes: u64,
    /// The one that waits longest.
    pub oldest: Option<String>,
    /// For how many seconds.
    pub oldest_seconds: u64,
}

/// Where the WAL of a primary ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Written up to here.
    pub lsn: Lsn,
    /// When that was, in milliseconds by the server's clock.
    pub at: u64,
    /// On this timeline.
    pub timeline: TimelineId,
    /// Where the newest checkpoint began.
    pub redo: Lsn,
    /// How many seconds ago that was.
    pub redo_seconds: u64,
}

/// A replication slot that holds WAL: nobody reads from it, or who does is far behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Bytes of WAL that it holds.
    pub held: u64,
    /// Bytes that it may go on to hold, if `max_slot_wal_keep_size` ends it.
    pub limit: Option<u64>,
    /// Somebody is connected to it.
    pub active: bool,
}

impl Slot {
    /// More than one that is read from needs to, or anything worth the name where nobody reads.
    fn holds_much(&self, size: SegmentSize) -> bool {
        self.held >= size.bytes().saturating_mul(if self.active { ACTIVE_MAY_HOLD } else { 1 })
    }
}

/// Who holds WAL in `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The archiver does not get on.
    Archiver,
    /// The slot of this name.
    Slot(String),
}

/// All that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The role that asked, quoted.
    pub role: String,
    /// `None` if the role may not list it.
    pub queue: Option<Queue>,
    /// `None` on a standby.
    pub end: Option<End>,
    /// The one that holds most.
    pub slot: Option<Slot>,
    /// `None` if nothing holds WAL.
    pub holder: Option<Holder>,
    /// Bytes by which `pg_wal` grows in a second.
    pub growth: Option<u64>,
    /// `None` if `pg_wal` is not on this host.
    pub room: Option<Room>,
}

impl Live {
    /// Asks the server, and looks at the disk if `configured` or what the server calls its data directory is that of this server.
    ///
    /// # Errors
    /// What the connection said.
    pub async fn read(sql: &mut Sql, facts: &ServerFacts, configured: Option<&Path>) -> Result<Self> {
        let role = sql.one("select quote_ident(current_user)").await.map_err(failed)?.unwrap_or_default();
        let queue = queue(sql, facts).await?;
        let end = if facts.in_recovery { None } else { end(sql).await? };
        let slot = if facts.in_recovery { None } else { slot(sql, facts.segment_size).await? };
        let started = sql.one("select extract(epoch from pg_postmaster_start_time())::bigint").await;
        let started = started.map_err(failed)?.and_then(|text| text.parse::<u64>().ok());
        let directories = [facts.data_dir.as_deref(), configured];
        let pg_wal = directories.into_iter().flatten().find_map(|dir| of_this_server(dir, started?));
        let free = pg_wal.as_deref().and_then(durable::free_bytes);
        let mut live = Self { role, queue, end, slot, holder: None, growth: None, room: None };
        live.holder = live.who_holds(facts, free);
        if let (Some(_), Some(first)) = (&live.holder, live.end) {
            clock::sleep(RATE_LOOK).await;
            let again = self::end(sql).await?;
            let now = again.and_then(|e| room::rate((first.lsn.get(), first.at), (e.lsn.get(), e.at)));
            let (queued, oldest) = live.queue.as_ref().map_or((0, 0), |q| (q.bytes, q.oldest_seconds));
            live.growth = room::growth(now, queued, Duration::from_secs(oldest));
        }
        let segment = facts.segment_size.bytes();
        live.room = free.map(|free| Room { free, segment, growth: live.growth });
        Ok(live)
    }

    /// Does the archiver fail? A failure that nothing waits for any more is past.
    pub fn fails(&self, facts: &ServerFacts) -> bool {
        facts.archiver.failing && self.queue.as_ref().is_none_or(|queue| queue.files > 0)
    }

    /// Who holds WAL, if anybody does for longer than it takes to store it.
    pub(super) fn who_holds(&self, facts: &ServerFacts, free: Option<u64>) -> Option<Holder> {
        let archiver = match &self.queue {
            Some(queue) => {
                let stuck = queue.oldest_seconds >= STUCK_AFTER.as_secs() || self.fails(facts);
                archives(facts) && queue.segments > 0 && stuck
            }
            None => archives(facts) && self.fails(facts),
        };
        if archiver {
            return Some(Holder::Archiver);
        }
        // A slot that is ended before the disk is full does not fill it.
        let fills = |slot: &&Slot| slot.limit.is_none_or(|limit| free.is_some_and(|free| limit > free));
        let slot = self.slot.as_ref().filter(|slot| slot.holds_much(facts.segment_size)).filter(fills)?;
        Some(Holder::Slot(slot.name.clone()))
    }

    /// Whole segments behind the newest archived one, and how many seconds ago the newest WAL of a busy server that is in none was written at the latest.
    fn by_position(&self, facts: &ServerFacts) -> Option<(u64, Option<u64>)> {
        let (end, size) = (self.end?, facts.segment_size);
        let newest = newest_archived(facts).filter(|name| name.timeline() == end.timeline)?;
        let newest = newest.number(size).ok()?;
        let whole = SegmentNo::containing(end.lsn, size).get().saturating_sub(newest.next().get());
        let busy = end.redo >= newest.end(size).saturating_add(IDLE_BYTES);
        Some((whole, busy.then_some(end.redo_seconds)))
    }
}

/// The newest segment that is archived for certain: a backup's label follows its segment.
fn newest_archived(facts: &ServerFacts) -> Option<SegmentName> {
    match WalFileName::parse(facts.archiver.last_archived.as_deref()?).ok()? {
        WalFileName::Segment(name) | WalFileName::BackupHistory(name, _) => Some(name),
        WalFileName::Partial(_) | WalFileName::History(_) => None,
    }
}

/// The first row, as text.
async fn row(sql: &mut Sql, statement: &str) -> Result<Vec<Option<String>>> {
    let rows = sql.rows(statement, &[]).await.map_err(failed)?;
    Ok(rows.into_iter().next().unwrap_or_default())
}

/// A number of a column; what is below 0, after a clock that was set back, is 0.
fn number(row: &[Option<String>], column: usize) -> Option<u64> {
    let text = row.get(column)?.as_deref()?;
    text.parse::<i64>().ok().map(|n| u64::try_from(n).unwrap_or(0))
}

async fn queue(sql: &mut Sql, facts: &ServerFacts) -> Result<Option<Queue>> {
    // Counted by the server: a queue can be a hundred thousand files.
    let statement = "with ready as (select left(name, -6) as name, modification from pg_ls_archive_statusdir() \
         where right(name, 6) = '.ready') \
         select count(*), count(*) filter (where name ~ '^[0-9A-F]{24}([.]partial)?$'), \
         (select name from ready order by modification, name limit 1), \
         extract(epoch from clock_timestamp() - min(modification))::bigint from ready";
    let rows = match sql.rows(statement, &[]).await {
        Ok(rows) => rows,
        Err(error) if error.code() == Some("42501") => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let row = rows.into_iter().next().unwrap_or_default();
    let segments = number(&row, 1).unwrap_or(0);
    Ok(Some(Queue {
        files: number(&row, 0).unwrap_or(0),
        segments,
        bytes: segments.saturating_mul(facts.segment_size.bytes()),
        oldest: row.get(2).cloned().flatten(),
        oldest_seconds: number(&row, 3).unwrap_or(0),
    }))
}

async fn end(sql: &mut Sql) -> Result<Option<End>> {
    let statement = "select pg_current_wal_lsn(), (extract(epoch from clock_timestamp()) * 1000)::bigint, \
         substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), redo_lsn, \
         extract(epoch from clock_timestamp() - checkpoint_time)::bigint from pg_control_checkpoint()";
    let row = row(sql, statement).await?;
    let text = |column: usize| row.get(column).and_then(Option::as_deref);
    let lsn = |column: usize| text(column).and_then(|text| text.parse::<Lsn>().ok());
    let timeline = text(2).and_then(|text| u32::from_str_radix(text, 16).ok()).and_then(TimelineId::new);
    Ok(match (lsn(0), number(&row, 1), timeline, lsn(3), number(&row, 4)) {
        (Some(lsn), Some(at), Some(timeline), Some(redo), Some(redo_seconds)) => {
            Some(End { lsn, at, timeline, redo, redo_seconds })
        }
        _ => None,
    })
}

/// Of the slots that hold more than they may, one that nothing ends rather than one with a limit; if none does, the one that holds most.
async fn slot(sql: &mut Sql, size: SegmentSize) -> Result<Option<Slot>> {
    // The oldest of those that are read from, and of those that are not.
    let statement = "select distinct on (active) slot_name, \
         pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, safe_wal_size, active::int \
         from pg_replication_slots where restart_lsn is not null \
         and wal_status is distinct from 'lost' order by active, restart_lsn";
    let rows = sql.rows(statement, &[]).await.map_err(failed)?;
    let slots = rows.into_iter().filter_map(|row| {
        let name = row.first().cloned().flatten()?;
        let active = number(&row, 3) == Some(1);
        Some(Slot { name, held: number(&row, 1).unwrap_or(0), limit: number(&row, 2), active })
    });
    Ok(slots.max_by_key(|slot| (slot.holds_much(size), slot.limit.is_none(), slot.held)))
}

/// `pg_wal` of the server that was started then. A directory of the same name on this host may be another server's, such as its standby's:
/// `postmaster.pid` knows when its server was started.
pub(super) fn of_this_server(data_dir: &Path, started: u64) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(data_dir.join(pidfile::NAME)).ok()?;
    file.take(PID_FILE).read_to_end(&mut bytes).ok()?;
    let noted = PidFile::parse(&bytes).started?;
    (noted.abs_diff(started) <= SAME_START).then(|| data_dir.join("pg_wal"))
}

/// Judges what was read against the promise.
pub fn judge(facts: &ServerFacts, live: &Live, rpo: Duration) -> Vec<Finding> {
    let mut found = Vec::new();
    let runs = archives(facts) && (!facts.in_recovery || facts.setting("archive_mode") == "always");
    if runs {
        found.push(archiver(facts, live, rpo));
        found.push(match &live.queue {
            Some(queue) => waiting(facts, live, queue, rpo),
            None => hidden(facts, live, rpo),
        });
    }
    found.extend(live.room.as_ref().map(|room| pg_wal(live, room)));
    found
}

fn ago(span: Option<u64>) -> String {
    span.map_or_else(String::new, |span| format!(", {} ago", seconds(span)))
}

fn archiver(facts: &ServerFacts, live: &Live, rpo: Duration) -> Finding {
    let archiver = &facts.archiver;
    let last = archiver.last_archived.as_deref().unwrap_or("nothing yet");
    let last = format!("last archived: {last}{}", ago(archiver.archived_ago));
    if !live.fails(facts) {
        return Finding::new(Grade::Good, "archiver", last);
    }
    let file = archiver.last_failed.as_deref().unwrap_or("a file");
    let waits = live.queue.as_ref().map(|queue| queue.oldest_seconds).or(archiver.archived_ago);
    let never = archiver.archived_ago.is_none();
    let grade = if never || waits > Some(rpo.as_secs()) { Grade::Bad } else { Grade::Risk };
    let text =
        format!("{file} fails: {} failures, the last{}; {last}", archiver.failures, ago(archiver.failed_ago));
    Finding::new(grade, "archiver", text.replace("last, ", "last ")).hint(SEE_LOG)
}

/// The queue against the promise.
fn waiting(facts: &ServerFacts, live: &Live, queue: &Queue, rpo: Duration) -> Finding {
    let (what, promised) = ("archive queue", rpo.as_secs());
    let old = live.by_position(facts).and_then(|(_, old)| old);
    if queue.files == 0 {
        return unswitched(facts, old, rpo)
            .unwrap_or_else(|| Finding::new(Grade::Good, what, "nothing waits"));
    }
    let text = format!(
        "{} waiting ({}), {} for {}",
        if queue.files == 1 { "1 file is".to_owned() } else { format!("{} files are", queue.files) },
        bytes(queue.bytes),
        queue.oldest.as_deref().unwrap_or("the oldest"),
        seconds(queue.oldest_seconds),
    );
    let grade = match queue.oldest_seconds {
        age if age > promised => Grade::Bad,
        age if age > promised / 2 => Grade::Risk,
        _ => return Finding::new(Grade::Good, what, text),
    };
    let text = format!("{text}; promised are {}", seconds(promised));
    Finding::new(grade, what, text).hint(format!("archiving stands still or is too slow: {SEE_LOG}"))
}

/// WAL that is in no archived segment for longer than was promised, although nothing waits: the server does not switch.
fn unswitched(facts: &ServerFacts, old: Option<u64>, rpo: Duration) -> Option<Finding> {
    let old = old.filter(|old| *old > rpo.as_secs())?;
    let text = format!(
        "WAL written {} ago is in no archived segment; archive_timeout is {} s, promised are {}",
        seconds(old),
        timeout(facts),
        seconds(rpo.as_secs())
    );
    Some(
        Finding::new(Grade::Risk, "archive queue", text)
            .hint("see archive_timeout; at once: SELECT pg_switch_wal();"),
    )
}

/// A queue that the role may not list: positions tell how many segments, not since when.
fn hidden(facts: &ServerFacts, live: &Live, rpo: Duration) -> Finding {
    let grant = format!("to see the queue: GRANT pg_monitor TO {};", live.role);
    let unseen = format!("role {} may not list it", live.role);
    let Some((whole, old)) = live.by_position(facts) else {
        return Finding::new(Grade::Good, "archive queue", unseen).hint(grant);
    };
    if whole == 0
        && let Some(finding) = unswitched(facts, old, rpo)
    {
        return finding;
    }
    // Segments may have been finished this very second, so by itself a number is no fault.
    let late = whole > 0 && old.is_some_and(|old| old > rpo.as_secs());
    let grade = if late { Grade::Risk } else { Grade::Good };
    let text = format!("{unseen}; by its position, the server is {whole} segments ahead of the archive");
    Finding::new(grade, "archive queue", text).hint(grant)
}

fn pg_wal(live: &Live, room: &Room) -> Finding {
    let free = format!("{} free", bytes(room.free));
    let grade = room.grade();
    let Some(holder) = &live.holder else {
        // What a standby keeps for its own standbys was not looked at.
        let held = if live.end.is_some() { "; neither the archiver nor a slot holds WAL back" } else { "" };
        let finding = Finding::new(grade, "pg_wal", format!("{free}{held}"));
        return if grade == Grade::Good { finding } else { finding.hint("make room on its file system") };
    };
    let (who, advice) = match holder {
        Holder::Archiver => ("the archiver".to_owned(), SEE_LOG.to_owned()),
        Holder::Slot(name) => {
            let held = live.slot.as_ref().map_or(0, |slot| slot.held);
            let advice = if live.slot.as_ref().is_some_and(|slot| slot.active) {
                "its consumer is connected and far behind: see pg_stat_replication, and its own log"
                    .to_owned()
            } else {
                format!(
                    "if its consumer does not come back: SELECT pg_drop_replication_slot('{}');",
                    name.replace('\'', "''")
                )
            };
            (format!("slot {name} ({})", bytes(held)), advice)
        }
    };
    let when = match (room.growth, room.seconds_to_full()) {
        (Some(growth), Some(left)) => {
            format!("full in about {} at {} a second", seconds(left), bytes(growth))
        }
        _ => "and it does not grow at the moment".to_owned(),
    };
    let finding = Finding::new(grade, "pg_wal", format!("{free}, {when}; WAL is held by {who}"));
    if grade == Grade::Good {
        return finding;
    }
    finding.hint(format!("a full pg_wal stops the server; make room on its file system, and: {advice}"))
}
