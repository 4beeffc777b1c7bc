//! The settings that make a server archive through pitr, and what is not right yet.
//!
//! Pure. `archive_timeout` follows from the promised RPO: a commit on a quiet server waits for the timeout, then for the archiver, then
//! for the upload, and one attempt may fail and be retried after a minute. A fifth of the promise leaves room for all of it (5 min:
//! 60 s).

use std::time::Duration;

use super::facts::ServerFacts;
use crate::error::{Error, Result};
use crate::ops::archive::command::{Outline, outline};

/// Least and most that is asked of `archive_timeout`; below, a server would switch segments all the time.
const TIMEOUT_BOUNDS: (u64, u64) = (10, 3600);

/// One setting to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The setting.
    pub name: &'static str,
    /// The value it should have, as it is written in a configuration file, unquoted.
    pub value: String,
    /// What it is now.
    pub now: String,
    /// It takes effect only with a restart.
    pub restart: bool,
}

impl Change {
    /// The statement that makes it.
    pub fn statement(&self) -> String {
        format!("ALTER SYSTEM SET {} = '{}'", self.name, self.value.replace('\'', "''"))
    }
}

/// `archive_timeout` in seconds for a promised RPO.
pub fn archive_timeout(rpo: Duration) -> u64 {
    let (least, most) = TIMEOUT_BOUNDS;
    (rpo.as_secs() / 5).clamp(least, most)
}

/// What must change on this server so that `command` archives within `rpo`. Empty if nothing.
///
/// # Errors
/// Kind `Refused` if another archiver is at work: pitr does not replace it unasked. One that stores nothing (`true`) is none.
pub fn changes(facts: &ServerFacts, command: &str, rpo: Duration) -> Result<Vec<Change>> {
    let other = facts.setting("archive_command");
    let (kind, shown) = (outline(other), other != "(disabled)");
    let foreign = shown && matches!(kind, Outline::Tool(_) | Outline::Copies(_) | Outline::Unknown);
    let library = facts.setting("archive_library");
    let active = facts.setting("archive_mode") != "off";
    if active && !library.is_empty() {
        return Err(Error::refused(format!("another archiver is at work: archive_library is {library:?}")).hint(format!(
            "a server with archive_library runs no archive_command; when it may go: ALTER SYSTEM RESET archive_library; {}",
            set_command(command)
        )));
    }
    if active && foreign {
        return Err(Error::refused(format!("another archiver is at work: archive_command is {other:?}"))
            .hint(format!(
                "to run both (docs/from-pgbackrest.md): {}\nwhen the other may go: {}",
                set_command(&format!("{other} && {command}")),
                set_command(command)
            )));
    }
    let mut found = Vec::new();
    let mut want = |name: &'static str, value: String, restart: bool| {
        found.push(Change { name, value, now: facts.setting(name).to_owned(), restart });
    };
    if facts.setting("wal_level") == "minimal" {
        want("wal_level", "replica".to_owned(), true);
    }
    if facts.setting("archive_mode") == "off" {
        want("archive_mode", "on".to_owned(), true);
    }
    // One that runs beside another stays as somebody made it.
    if other != command && !matches!(kind, Outline::Pitr(push) if push.beside) {
        want("archive_command", command.to_owned(), false);
    }
    let timeout = archive_timeout(rpo);
    let now: u64 = facts.setting("archive_timeout").parse().unwrap_or(0);
    if now == 0 || now > timeout {
        want("archive_timeout", timeout.to_string(), false);
    }
    if facts.setting("max_wal_senders").parse::<u32>().is_ok_and(|n| n < 3) {
        want("max_wal_senders", "10".to_owned(), true);
    }
    Ok(found)
}

fn set_command(command: &str) -> String {
    format!("ALTER SYSTEM SET archive_command = '{}'; SELECT pg_reload_conf();", command.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_of_five_minutes_switches_every_minute() {
        assert_eq!(archive_timeout(Duration::from_secs(300)), 60);
        assert_eq!(archive_timeout(Duration::from_secs(5)), 10);
        assert_eq!(archive_timeout(Duration::from_secs(86_400)), 3600);
    }

    #[test]
    fn a_value_cannot_break_out_of_its_statement() {
        let change = Change {
            name: "archive_command",
            value: "a 'b' %p".to_owned(),
            now: String::new(),
            restart: false,
        };
        assert_eq!(change.statement(), "ALTER SYSTEM SET archive_command = 'a ''b'' %p'");
    }
}
