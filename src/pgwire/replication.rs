//! The small commands of the replication protocol: what to send, and what the answers mean.
//!
//! A walsender takes one command at a time as a simple query and answers in text (`repl_gram.y`, `walsender.c`). Column types
//! differ between versions (a timeline is int4 up to 15, int8 from 16 on), so only the text is read. Pure.

use bytes::Bytes;

use super::message::{Row, WireError};
use crate::wal::{Lsn, SystemId, TimelineId};

/// The oldest server that is understood, in the form of `server_version_num`.
pub const OLDEST_VERSION: u32 = 130_000;

/// Answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Which cluster this is.
    pub system_id: SystemId,
    /// Its current timeline.
    pub timeline: TimelineId,
    /// How far its WAL is flushed; on a standby, received and replayed.
    pub xlogpos: Lsn,
    /// The database of the session; none on a physical replication connection.
    pub dbname: Option<String>,
}

/// Answer to `TIMELINE_HISTORY`: the file as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryFile {
    /// `00000002.history`
    pub name: String,
    /// Its bytes.
    pub content: Bytes,
}

/// Reads the row of `IDENTIFY_SYSTEM`.
///
/// # Errors
/// [`WireError::Answer`] if a column is missing or is not what it should be.
pub fn identity(row: &Row) -> Result<Identity, WireError> {
    let cells = Cells { command: "IDENTIFY_SYSTEM", row };
    Ok(Identity {
        system_id: cells.parsed(0, "system identifier")?,
        timeline: cells.timeline(1)?,
        xlogpos: cells.parsed(2, "WAL position")?,
        dbname: cells.optional(3).map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
    })
}

/// The text of `SHOW name`.
///
/// # Errors
/// [`WireError::Unsendable`] if `name` is not the name of a setting.
pub fn show(name: &str) -> Result<String, WireError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if name.is_empty() || !name.chars().all(plain) {
        let reason = format!("{name:?} is not the name of a setting");
        return Err(WireError::Unsendable { what: "SHOW", reason });
    }
    Ok(format!("SHOW {name}"))
}

/// Reads the row of `SHOW`.
///
/// # Errors
/// [`WireError::Answer`] if there is no text.
pub fn setting(row: &Row) -> Result<String, WireError> {
    Cells { command: "SHOW", row }.text(0, "value").map(str::to_owned)
}

/// The text of `TIMELINE_HISTORY`.
pub fn timeline_history(timeline: TimelineId) -> String {
    format!("TIMELINE_HISTORY {timeline}")
}

/// Reads the row of `TIMELINE_HISTORY`. The content is declared as text but is the raw file.
///
/// # Errors
/// [`WireError::Answer`] if a column is missing, or the name is not the one of `timeline`.
pub fn history(row: &Row, timeline: TimelineId) -> Result<HistoryFile, WireError> {
    let cells = Cells { command: "TIMELINE_HISTORY", row };
    let name = cells.text(0, "file name")?.to_owned();
    if name != format!("{}.history", timeline.hex()) {
        return Err(cells.wrong(format!("it is the file {name:?}, not the one of timeline {timeline}")));
    }
    let content = row.get(1).cloned().flatten().ok_or_else(|| cells.wrong("it has no content".into()))?;
    Ok(HistoryFile { name, content })
}

/// Bytes of a memory setting as `SHOW` prints it, such as `16MB`. A bare number is taken as bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

/// The columns of an answer, read with errors that name the command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cells<'a> {
    pub(super) command: &'static str,
    pub(super) row: &'a Row,
}

impl<'a> Cells<'a> {
    pub(super) fn wrong(&self, reason: String) -> WireError {
        WireError::Answer { command: self.command, reason }
    }

    pub(super) fn optional(&self, index: usize) -> Option<&'a Bytes> {
        self.row.get(index).and_then(Option::as_ref)
    }

    pub(super) fn text(&self, index: usize, what: &str) -> Result<&'a str, WireError> {
        let bytes = self.optional(index).ok_or_else(|| self.wrong(format!("the {what} is missing")))?;
        std::str::from_utf8(bytes).map_err(|_| self.wrong(format!("the {what} is not text")))
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, index: usize, what: &str) -> Result<T, WireError> {
        let text = self.text(index, what)?;
        text.parse().map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            self.wrong(format!("{shown:?} is not a {what}"))
        })
    }

    pub(super) fn timeline(&self, index: usize) -> Result<TimelineId, WireError> {
        let number = self.parsed::<u32>(index, "timeline")?;
        TimelineId::new(number).ok_or_else(|| self.wrong("timeline 0 does not exist".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[Option<&str>]) -> Row {
        cells.iter().map(|cell| cell.map(|text| Bytes::copy_from_slice(text.as_bytes()))).collect()
    }

    #[test]
    fn an_identity_is_read() {
        let seen = identity(&row(&[Some("7561234567890123456"), Some("3"), Some("16/B374D848"), None]));
        let expected = Identity {
            system_id: SystemId::new(7_561_234_567_890_123_456),
            timeline: TimelineId::new(3).unwrap(),
            xlogpos: Lsn::new(0x16_B374_D848),
            dbname: None,
        };
        assert_eq!(seen, Ok(expected));
    }

    #[test]
    fn an_answer_that_is_not_one_is_named() {
        for (cells, word) in [
            (&[Some("x"), Some("1"), Some("0/1"), None][..], "\"x\" is not a system identifier"),
            (&[Some("1"), Some("0"), Some("0/1"), None], "timeline 0"),
            (&[Some("1"), Some("1"), None, None], "WAL position is missing"),
            (&[], "system identifier is missing"),
        ] {
            let message = identity(&row(cells)).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("IDENTIFY_SYSTEM"), "{message}");
        }
    }

    #[test]
    fn a_history_of_another_timeline_is_refused() {
        let two = row(&[Some("00000002.history"), Some("1\t0/5000148\tno reason\n")]);
        let timeline = |n| TimelineId::new(n).unwrap();
        assert_eq!(&history(&two, timeline(2)).unwrap().content[..2], b"1\t");
        assert!(history(&two, timeline(3)).unwrap_err().to_string().contains("00000002.history"));
    }

    #[test]
    fn only_names_of_settings_are_shown() {
        assert_eq!(show("wal_segment_size").as_deref(), Ok("SHOW wal_segment_size"));
        for bad in ["", "a b", "a;b", "\"a\"", "a'"] {
            assert!(show(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn sizes_are_read_as_show_prints_them() {
        assert_eq!(parse_size("16MB"), Some(16 << 20));
        assert_eq!(parse_size("1GB"), Some(1 << 30));
        assert_eq!(parse_size("8192"), Some(8192));
        for bad in ["", "MB", "16mb", "-1MB", "99999999999TB", "1.5GB"] {
            assert_eq!(parse_size(bad), None, "{bad:?}");
        }
    }
}
