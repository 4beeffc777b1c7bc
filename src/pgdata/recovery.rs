//! Recovery settings: the one marked block that a restore writes into `postgresql.auto.conf`, and its removal.
//!
//! ```text
//!  shared_buffers = '1GB'                    the user's ALTER SYSTEM, kept
//!  # >>> pitr restore ...                    begin of the block
//!  recovery_target_name = ''  ...            empty targets first: the other order is FATAL "multiple recovery targets"
//!  recovery_target_lsn = '0/3000060'         then the one target
//!  restore_command = '...'
//!  # <<< pitr restore                        end
//! ```
//! Invariants: outside the block no setting of [`is_recovery_setting`] remains; the file has one block at most; removal leaves every
//! other byte. A server that ran ALTER SYSTEM has rewritten the file without comments: [`finish`] then removes the settings by name.
//! Source of truth: `xlogrecovery.c`, `guc_tables.c` of PostgreSQL 13 to 18; RECOVERY 22.

use super::conf::{self, ItemKind, QuoteError, quote_value};
use crate::wal::{Lsn, TimelineId};

const BEGIN: &str = "# >>> pitr restore";
const BEGIN_LINE: &str =
    "# >>> pitr restore: recovery settings, written by pitr; `pitr restore --finish` removes this block";
const END: &str = "# <<< pitr restore";

/// Longest name of a restore point (`MAXFNAMELEN` - 1).
const MAX_POINT_NAME: usize = 63;

/// The target settings, of which at most one may be non-empty.
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// Settings that belong to one recovery or one standby, of PostgreSQL 13 to 18. None may be inherited by a restored server.
pub const RECOVERY_SETTINGS: &[&str] = &[
    "archive_cleanup_command", // would delete from the source's archive
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file", // until 15
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// Tuning of recovery whose names only look alike: a property of the host, kept.
const KEPT: &[&str] = &["recovery_init_sync_method", "recovery_prefetch"];

/// True for a setting that a restore removes from `postgresql.auto.conf`: [`RECOVERY_SETTINGS`], and any other `recovery_*` that a
/// newer server may know, but for two that tune the host.
pub fn is_recovery_setting(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.as_str();
    RECOVERY_SETTINGS.contains(&name) || (name.starts_with("recovery_") && !KEPT.contains(&name))
}

/// Why settings cannot be written or a block cannot be removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// PostgreSQL takes restore point names of 1 to 63 bytes.
    #[error("restore point name has {0} bytes, PostgreSQL takes 1 to {MAX_POINT_NAME}")]
    PointName(usize),
    /// A value that no configuration file can hold.
    #[error("setting {name} cannot be written")]
    Value {
        /// The setting.
        name: String,
        /// Why.
        #[source]
        source: QuoteError,
    },
    /// The begin of a block without its end: someone edited the file by hand.
    #[error("the block of recovery settings that begins in line {line} has no end")]
    Unterminated {
        /// Number of the line, from 1.
        line: usize,
    },
    /// An end without its begin.
    #[error("line {line} ends a block of recovery settings that has no begin")]
    Unopened {
        /// Number of the line, from 1.
        line: usize,
    },
}

/// Where recovery stops. Times do not occur: a plan turns them into an LSN (RECOVERY 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// At the end of WAL.
    EndOfWal,
    /// As soon as the backup is consistent.
    Immediate,
    /// At a record's start.
    Lsn(Lsn),
    /// At the commit or abort of a transaction.
    Xid(u32),
    /// At a named restore point.
    Name(String),
}

/// Whether the record that the target names is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inclusive {
    /// Stop after it.
    Yes,
    /// Stop before it.
    No,
}

/// What the server does when the target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Open for writing, on a new timeline.
    Promote,
    /// Wait, open for reading.
    Pause,
    /// Shut down.
    Shutdown,
}

impl Action {
    /// The value of `recovery_target_action`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Pause => "pause",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Everything that a restored server needs to recover to its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySettings {
    /// Value of `restore_command`, see [`conf::restore_command`].
    pub restore_command: String,
    /// Where to stop.
    pub stop: Stop,
    /// Whether to replay the record named by `stop`.
    pub inclusive: Inclusive,
    /// The timeline to follow: always a number, `latest` could change between plan and replay.
    pub timeline: TimelineId,
    /// What to do there.
    pub action: Action,
    /// Further settings for the time of recovery, such as an empty `synchronous_standby_names`. Undone with the block.
    pub extra: Vec<(String, String)>,
}

impl RecoverySettings {
    /// Names and values in the order in which they are written.
    ///
    /// # Errors
    /// [`RecoveryError::PointName`].
    pub fn settings(&self) -> Result<Vec<(String, String)>, RecoveryError> {
        let target = self.target()?;
        let target_name = target.as_ref().map(|(name, _)| *name);
        let mut settings: Vec<(String, String)> = Vec::new();
        let mut put = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
        for name in TARGETS.iter().filter(|name| Some(**name) != target_name) {
            put(name, "");
        }
        if let Some((name, value)) = &target {
            put(name, value);
        }
        put("recovery_target_inclusive", if self.inclusive == Inclusive::Yes { "on" } else { "off" });
        put("recovery_target_timeline", &self.timeline.to_string());
        put("recovery_target_action", self.action.name());
        put("restore_command", &self.restore_command);
        // Nothing of these may come from postgresql.conf either: they delay the recovery or run commands of the source.
        put("recovery_min_apply_delay", "0");
        for name in
            ["archive_cleanup_command", "recovery_end_command", "primary_conninfo", "primary_slot_name"]
        {
            put(name, "");
        }
        for (name, value) in &self.extra {
            put(name, value);
        }
        Ok(settings)
    }

    fn target(&self) -> Result<Option<(&'static str, String)>, RecoveryError> {
        Ok(match &self.stop {
            Stop::EndOfWal => None,
            Stop::Immediate => Some(("recovery_target", "immediate".to_owned())),
            Stop::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
            Stop::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
            Stop::Name(name) if (1..=MAX_POINT_NAME).contains(&name.len()) => {
                Some(("recovery_target_name", name.clone()))
            }
            Stop::Name(name) => return Err(RecoveryError::PointName(name.len())),
        })
    }

    /// The marked block.
    ///
    /// # Errors
    /// [`RecoveryError`] for a value that PostgreSQL would refuse.
    pub fn block(&self) -> Result<String, RecoveryError> {
        let mut block = format!("{BEGIN_LINE}\n");
        for (name, value) in self.settings()? {
            let quoted =
                quote_value(&value).map_err(|source| RecoveryError::Value { name: name.clone(), source })?;
            block.push_str(&format!("{name} = {quoted}\n"));
        }
        block.push_str(END);
        block.push('\n');
        Ok(block)
    }

    /// `postgresql.auto.conf` for the restored server: the old text without its recovery settings and without an earlier block,
    /// then this block.
    ///
    /// # Errors
    /// [`RecoveryError`] for a value that PostgreSQL would refuse, or an earlier block without an end.
    pub fn apply(&self, auto_conf: &[u8]) -> Result<Vec<u8>, RecoveryError> {
        let mut text = finish(auto_conf)?.text;
        if text.last().is_some_and(|b| *b != b'\n') {
            text.push(b'\n');
        }
        text.extend_from_slice(self.block()?.as_bytes());
        Ok(text)
    }
}

/// A file without its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The rest of the file.
    pub text: Vec<u8>,
    /// True if there was a block.
    pub found: bool,
}

/// Removes the marked block, and nothing else.
///
/// # Errors
/// [`RecoveryError::Unterminated`] or [`RecoveryError::Unopened`]: removing the rest of the file would be a guess.
pub fn remove_block(text: &[u8]) -> Result<Removed, RecoveryError> {
    let mut kept = Vec::with_capacity(text.len());
    let mut open: Option<usize> = None;
    let mut found = false;
    for (index, line) in text.split_inclusive(|b| *b == b'\n').enumerate() {
        let number = index + 1;
        match open {
            _ if line.starts_with(BEGIN.as_bytes()) => match open.replace(number) {
                Some(line) => return Err(RecoveryError::Unterminated { line }),
                None => found = true,
            },
            Some(_) if line.starts_with(END.as_bytes()) => open = None,
            None if line.starts_with(END.as_bytes()) => return Err(RecoveryError::Unopened { line: number }),
            Some(_) => {}
            None => kept.extend_from_slice(line),
        }
    }
    match open {
        Some(line) => Err(RecoveryError::Unterminated { line }),
        None => Ok(Removed { text: kept, found }),
    }
}

/// A file after recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The file without block and recovery settings.
    pub text: Vec<u8>,
    /// Names of recovery settings that stood outside a block: leftovers, or a block whose comments ALTER SYSTEM dropped.
    pub unmarked: Vec<String>,
    /// True if the block was there.
    pub found: bool,
}

/// Removes the block and every recovery setting: what a promoted server must not keep, because a standby made from it would
/// not start.
///
/// # Errors
/// Those of [`remove_block`].
pub fn finish(text: &[u8]) -> Result<Finished, RecoveryError> {
    let removed = remove_block(text)?;
    let unmarked = std::cell::RefCell::new(Vec::new());
    let text = conf::strip_settings(&removed.text, |name| {
        let drop = is_recovery_setting(name);
        if drop {
            unmarked.borrow_mut().push(name.to_owned());
        }
        drop
    });
    Ok(Finished { text, unmarked: unmarked.into_inner(), found: removed.found })
}

/// Recovery settings with a value among `items`, which a restore refuses in `postgresql.conf` and its includes: `(line, name)`.
/// An empty value says nothing and is fine; so are the commands and connections of a standby, which the block overrides.
pub fn leftovers(items: &[conf::Item]) -> Vec<(usize, String)> {
    let stops = |name: &str| TARGETS.contains(&name);
    let found = items.iter().filter_map(|item| match &item.kind {
        ItemKind::Setting { name, value } if stops(name) && !value.is_empty() => {
            Some((item.line, name.clone()))
        }
        ItemKind::Setting { .. } | ItemKind::Include { .. } => None,
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn to(stop: Stop) -> RecoverySettings {
        RecoverySettings {
            restore_command: "/usr/bin/pitr archive-get %f \"%p\"".to_owned(),
            stop,
            inclusive: Inclusive::Yes,
            timeline: TimelineId::new(3).unwrap(),
            action: Action::Promote,
            extra: vec![("synchronous_standby_names".to_owned(), String::new())],
        }
    }

    #[test]
    fn the_block_empties_the_other_targets_before_it_sets_one() {
        let want = format!(
            "{BEGIN_LINE}\nrecovery_target = ''\nrecovery_target_name = ''\nrecovery_target_time = ''\n\
             recovery_target_xid = ''\nrecovery_target_lsn = '0/3000060'\nrecovery_target_inclusive = 'on'\n\
             recovery_target_timeline = '3'\nrecovery_target_action = 'promote'\n\
             restore_command = '/usr/bin/pitr archive-get %f \"%p\"'\nrecovery_min_apply_delay = '0'\n\
             archive_cleanup_command = ''\nrecovery_end_command = ''\nprimary_conninfo = ''\nprimary_slot_name = ''\n\
             synchronous_standby_names = ''\n{END}\n"
        );
        assert_eq!(to(Stop::Lsn(Lsn::new(0x300_0060))).block().unwrap(), want);
    }

    #[test]
    fn each_stop_sets_at_most_one_target() {
        for stop in [Stop::EndOfWal, Stop::Immediate, Stop::Xid(7), Stop::Name("it's".to_owned())] {
            let settings = to(stop.clone()).settings().unwrap();
            let targets: Vec<_> = settings.iter().filter(|(n, _)| TARGETS.contains(&n.as_str())).collect();
            assert_eq!(targets.len(), 5);
            let set = targets.iter().filter(|(_, v)| !v.is_empty()).count();
            assert_eq!(set, usize::from(stop != Stop::EndOfWal));
        }
        for length in [0, 64] {
            assert_eq!(to(Stop::Name("n".repeat(length))).block(), Err(RecoveryError::PointName(length)));
        }
    }

    #[test]
    fn applying_replaces_leftovers_and_an_earlier_block() {
        let settings = to(Stop::Immediate);
        let old = b"port = 5433\nRecovery_target_time = 'x'\nprimary_conninfo = 'y'\nrecovery_prefetch = off";
        let once = settings.apply(old).unwrap();
        let want = format!("port = 5433\nrecovery_prefetch = off\n{}", settings.block().unwrap());
        assert_eq!(String::from_utf8(once.clone()).unwrap(), want);
        assert_eq!(settings.apply(&once).unwrap(), once);
    }

    #[test]
    fn a_block_that_alter_system_rewrote_is_removed_by_name() {
        let mut rewritten = b"port = '1'\n".to_vec();
        for line in to(Stop::Immediate).block().unwrap().lines().filter(|l| !l.starts_with('#')) {
            rewritten.extend_from_slice(format!("{line}\n").as_bytes());
        }
        let finished = finish(&rewritten).unwrap();
        assert_eq!(String::from_utf8(finished.text).unwrap(), "port = '1'\nsynchronous_standby_names = ''\n");
        assert_eq!((finished.found, finished.unmarked.len()), (false, 14));
    }

    #[test]
    fn a_torn_block_is_refused() {
        let torn = |text: String| remove_block(text.as_bytes()).unwrap_err();
        assert_eq!(torn(format!("a = 1\n{BEGIN_LINE}\nb = 2\n")), RecoveryError::Unterminated { line: 2 });
        assert_eq!(torn(format!("{BEGIN}\n{BEGIN}\n{END}\n")), RecoveryError::Unterminated { line: 1 });
        assert_eq!(torn(format!("a = 1\n{END}\n")), RecoveryError::Unopened { line: 2 });
    }

    #[test]
    fn only_targets_count_as_leftovers_of_postgresql_conf() {
        let items =
            conf::parse(b"restore_command = 'cp'\nrecovery_target = ''\nrecovery_target_xid = 5\n").unwrap();
        assert_eq!(leftovers(&items), [(3, "recovery_target_xid".to_owned())]);
    }

    proptest! {
        #[test]
        fn removing_the_block_restores_the_file(
            before in proptest::collection::vec("[a-z]{1,5} = '[a-z ]{0,9}'", 0..5), name in "[ -~]{1,63}"
        ) {
            let file: String = before.iter().map(|line| format!("x{line}\n")).collect();
            let written = to(Stop::Name(name)).apply(file.as_bytes()).unwrap();
            prop_assert!(conf::parse(&written).is_ok());
            prop_assert_eq!(remove_block(&written).unwrap(), Removed { text: file.into_bytes(), found: true });
        }
    }
}
