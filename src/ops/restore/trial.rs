//! The trial run of `restore_command`: exactly the line that the server will run, as the user it runs as.
//!
//! ```text
//!  /bin/sh -c '<line with %f and %p filled in>'    working directory: the target; environment: empty; user: the server's
//! ```
//! A command that works for the operator often does not work for the server: another user, no AWS_*, a short PATH, a relative
//! configuration path. It is found out here, while `pg_control` is still missing and nothing can start, and not by a server that
//! takes the failure for the end of WAL. Source of truth: RECOVERY.md 17; `BuildRestoreCommand` in `xlogarchive.c` for the
//! placeholders.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::durable::Owner;
use crate::error::{Error, Result};
use crate::wal::{SegmentName, SegmentSize};

/// Where PostgreSQL itself lets a segment be put (`RECOVERYXLOG` in `xlog.c`).
const DESTINATION: &str = "pg_wal/RECOVERYXLOG";
/// A command that hangs would hang the server too.
const BASE_PATIENCE: Duration = Duration::from_secs(120);
/// As much of the command's output as an error repeats.
const OUTPUT_SHOWN: usize = 2000;

/// What is tried.
#[derive(Debug, Clone)]
pub struct Trial<'a> {
    /// The value of `restore_command`.
    pub command: &'a str,
    /// The restored directory.
    pub root: &'a Path,
    /// A segment that is stored.
    pub segment: SegmentName,
    /// Its size.
    pub size: SegmentSize,
    /// The server's user, if this process can and must become it.
    pub owner: Option<Owner>,
    /// This program, which steps down to that user with all its groups: credentials may be readable through one.
    pub binary: &'a Path,
}

impl Trial<'_> {
    /// Runs the command and removes what it delivered.
    ///
    /// # Errors
    /// Kind `Failed`, with what the command printed, if it does not end with 0 and a segment of the right size.
    pub async fn run(&self) -> Result<()> {
        let line = fill_in(self.command, &self.segment.to_string(), DESTINATION);
        let place = self.root.join(DESTINATION);
        remove(&place)?;
        let patience = BASE_PATIENCE.saturating_add(Duration::from_secs(self.size.bytes() >> 20));
        let ended = tokio::time::timeout(patience, self.start(&line)).await;
        let delivered = place.symlink_metadata().map(|m| m.len()).ok();
        remove(&place)?;
        let output = match ended {
            Ok(Ok(output)) => output,
            Ok(Err(cause)) => return Err(self.failure(&line, &format!("cannot be run: {cause}"))),
            Err(_) => {
                let text = format!("did not end within {} seconds", patience.as_secs());
                return Err(self.failure(&line, &text));
            }
        };
        if !output.status.success() {
            return Err(self.failure(&line, &format!("failed ({})\n{}", output.status, said(&output))));
        }
        match delivered {
            Some(bytes) if bytes == self.size.bytes() => Ok(()),
            Some(bytes) => {
                let text = format!("delivered {bytes} bytes instead of {}", self.size.bytes());
                Err(self.failure(&line, &text))
            }
            None => Err(self.failure(&line, "ended with 0 but delivered nothing")),
        }
    }

    async fn start(&self, line: &str) -> std::io::Result<Output> {
        let mut command = match self.owner {
            None => tokio::process::Command::new("/bin/sh"),
            Some(owner) => {
                let mut command = tokio::process::Command::new(self.binary);
                command.args(["exec-as", &owner.uid.to_string(), &owner.gid.to_string(), "--", "/bin/sh"]);
                command
            }
        };
        command.arg("-c").arg(line).current_dir(self.root).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.output().await
    }

    fn failure(&self, line: &str, what: &str) -> Error {
        Error::failed(format!("the restore_command does not work for the server: {what}"))
            .source(format!("tried: {line}"))
            .hint(
                "it runs as the server's user with an empty environment: check the rights of the binary, of the configuration file \
                 and of the repository, and give cloud credentials by credentials_file; then repeat the restore",
            )
    }
}

/// The command with its placeholders filled in as PostgreSQL does it. `%r` cannot be known yet: no restartpoint was made.
fn fill_in(command: &str, file: &str, path: &str) -> String {
    let mut line = String::with_capacity(command.len() + file.len() + path.len());
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            line.push(c);
            continue;
        }
        match chars.next() {
            Some('f') => line.push_str(file),
            Some('p') => line.push_str(path),
            Some('r') => line.push_str("000000000000000000000000"),
            Some('%') | None => line.push('%'),
            Some(other) => line.extend(['%', other]),
        }
    }
    line
}

fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stdout));
    let shown: String = text.trim_end().chars().take(OUTPUT_SHOWN).collect();
    if shown.is_empty() { "it printed nothing".to_owned() } else { shown }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(super::directory::cannot("remove", path, e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial<'a>(command: &'a str, root: &'a Path) -> Trial<'a> {
        let segment = SegmentName::parse("000000010000000000000002").unwrap();
        Trial {
            command,
            root,
            segment,
            size: SegmentSize::new(1 << 20).unwrap(),
            owner: None,
            binary: Path::new("/nowhere"),
        }
    }

    async fn run(command: &str) -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let result = trial(command, dir.path()).run().await;
        assert!(!dir.path().join(DESTINATION).exists(), "the delivered file was left");
        result
    }

    #[test]
    fn placeholders_are_filled_in_as_postgresql_does() {
        assert_eq!(
            fill_in("a %f \"%p\" 50%% %r %x %", "F", "P"),
            "a F \"P\" 50% 000000000000000000000000 %x %"
        );
    }

    #[tokio::test]
    async fn a_command_that_delivers_a_whole_segment_passes() {
        run("/usr/bin/head -c 1048576 /dev/zero > \"%p\"; test %f = 000000010000000000000002").await.unwrap();
    }

    #[tokio::test]
    async fn a_command_that_fails_says_nothing_or_delivers_short_is_refused() {
        let short = run("echo x > \"%p\"").await.unwrap_err();
        assert!(short.message().contains("delivered 2 bytes"), "{short}");
        let silent = run("exit 0").await.unwrap_err();
        assert!(silent.message().contains("delivered nothing"), "{silent}");
        let failed = run("echo no bucket >&2; exit 200").await.unwrap_err();
        assert!(failed.message().contains("200") && failed.message().contains("no bucket"), "{failed}");
    }

    #[tokio::test]
    async fn the_environment_is_empty() {
        // HOME and PATH of the test run must not reach the command.
        let seen = run("test -z \"$HOME$CARGO_MANIFEST_DIR\" || exit 9; exit 3").await.unwrap_err();
        assert!(seen.message().contains("exit status: 3"), "{seen}");
    }
}
