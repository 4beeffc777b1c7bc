//! Standard output and standard error, the only two places where pitr speaks to people.
//!
//! Standard output carries the result (text, or one JSON object with `--json`); standard error carries errors, warnings and
//! progress. A reader that went away (`pitr info | head`) is not an error; a result that could not be written (a full disk) is.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
pub use crate::ops::words::{bytes, seconds};

/// A result did not reach whom it was for.
static LOST: AtomicBool = AtomicBool::new(false);

/// True if something that was to be printed to standard output could not be written: no success, whatever the command did.
pub fn is_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Prints `text` to standard output. A closed pipe is ignored.
pub fn say(text: &str) {
    let mut out = io::stdout().lock();
    let end: &[u8] = if text.ends_with('\n') { b"" } else { b"\n" };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(end)).and_then(|()| out.flush());
    match written {
        // A reader that closed the pipe has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe && !LOST.swap(true, Ordering::Relaxed) => {
            warn(&format!("error: cannot write the result to standard output: {error}"));
        }
        _ => {}
    }
}

/// Prints one JSON object, indented on a terminal, on one line otherwise.
pub fn json(value: &serde_json::Value) {
    let text = if io::stdout().is_terminal() { format!("{value:#}") } else { value.to_string() };
    say(&text);
}

/// Prints a line to standard error.
pub fn warn(text: &str) {
    // Nothing can be done about a standard error that is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints an error with its causes and its hint; with `--json` also as an object on standard output. One without advice of its own gets
/// that of its kind. `code` is what the process will exit with.
pub fn error(error: Error, code: u8, as_json: bool) {
    let error = error.advised();
    if as_json {
        json(&serde_json::json!({
            "schema": "pitr.error.v1",
            "kind": error.kind().name(),
            "exit_code": code,
            "message": error.message(),
            "hint": error.advice(),
            "report": error.report(),
        }));
    }
    warn(error.report().trim_end());
}

/// Rows as columns of equal width, two spaces between them.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|v| v.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(value, width)| format!("{value:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
