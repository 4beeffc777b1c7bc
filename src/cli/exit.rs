//! Exit codes, which PostgreSQL and scripts read.
//!
//! ```text
//!               delivered/ok   absent   failure              panic
//!  archive-get       0           1      200 + code (<= 219)   220    above 125 stops recovery; 1..125 means "end of WAL"
//!  archive-push      0           -      1..125                1      above 125 kills the archiver process
//!  all others        0           -      1..10, 130            1
//! ```
//! PostgreSQL's reading of these numbers: `RestoreArchivedFile` in `xlogarchive.c` (`wait_result_is_any_signal`) and
//! `shell_archive_file` in `shell_archive.c`. A usage error or a panic of `archive-get` is a failure like any other: the defaults of
//! clap (2) and of Rust (101) would both open a database early.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::error::Kind;

/// `archive-get` adds this to a failure's ordinary code.
const GET_FAILURE: u8 = 200;
/// `archive-get` after a panic.
const GET_PANIC: u8 = 220;

/// Whose reading of exit codes applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// `archive-get`, started by PostgreSQL's startup process.
    Recovery,
    /// `archive-push`, started by PostgreSQL's archiver.
    Archiver,
    /// A person or a script.
    Person,
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Done.
    Well,
    /// `archive-get`: the file is proven not to be in the archive.
    Absent,
    /// `check`, `status`: something is at risk.
    AtRisk,
    /// `verify`: something is damaged or lost.
    Damaged,
    /// `verify`: not all could be looked at, and in what could nothing is damaged.
    Unsure,
    /// `verify`: not all could be opened with the keys at hand, and in what could be looked at nothing is damaged.
    Locked,
}

impl Caller {
    /// Decided from the bare arguments, before they are parsed: a parse error must already exit with the right code.
    pub fn of(args: &[OsString]) -> Self {
        // The first word that is neither a flag nor the value of a global flag is the command: a file named "archive-get" must
        // not decide.
        let mut words = args.iter().skip(1).map(|a| a.to_string_lossy());
        while let Some(word) = words.next() {
            match word.as_ref() {
                "archive-get" => return Self::Recovery,
                "archive-push" => return Self::Archiver,
                "--config" | "--cluster" | "--repository" => {
                    words.next();
                }
                flag if flag.starts_with('-') => {}
                _ => break,
            }
        }
        // A flag that was not understood may have shifted the words: when in doubt, the code that stops recovery.
        let named = |name: &str| args.iter().skip(1).any(|a| a == name);
        match (named("archive-get"), named("archive-push")) {
            (true, _) => Self::Recovery,
            (false, true) => Self::Archiver,
            (false, false) => Self::Person,
        }
    }

    /// The code of a failure of this kind.
    pub fn failure(self, kind: Kind) -> u8 {
        self.code(kind.exit_code())
    }

    /// The code of a failure that a person would see as `code`.
    pub fn code(self, code: u8) -> u8 {
        match self {
            Self::Recovery => GET_FAILURE.saturating_add(code.min(GET_PANIC - GET_FAILURE - 1)),
            Self::Archiver => code.clamp(1, 125),
            Self::Person => code,
        }
    }

    /// The code after a panic.
    pub fn panic(self) -> u8 {
        match self {
            Self::Recovery => GET_PANIC,
            Self::Archiver | Self::Person => 1,
        }
    }
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Well => Self::SUCCESS,
            Ended::Absent | Ended::Unsure => Self::from(1),
            Ended::AtRisk => Self::from(2),
            Ended::Damaged => Self::from(Kind::Corrupt.exit_code()),
            Ended::Locked => Self::from(Kind::Key.exit_code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(words: &[&str]) -> Caller {
        Caller::of(
            &std::iter::once("pitr").chain(words.iter().copied()).map(OsString::from).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn the_caller_is_known_before_arguments_are_parsed() {
        assert_eq!(caller(&["--config", "/etc/x", "archive-get", "a", "b"]), Caller::Recovery);
        assert_eq!(caller(&["--bogus", "archive-get"]), Caller::Recovery);
        assert_eq!(caller(&["--config=/x", "archive-push", "archive-get"]), Caller::Archiver);
        assert_eq!(caller(&["--config", "archive-get", "archive-push", "p"]), Caller::Archiver);
        assert_eq!(caller(&["info"]), Caller::Person);
        assert_eq!(caller(&[]), Caller::Person);
    }

    #[test]
    fn no_failure_of_archive_get_reads_as_end_of_wal_and_none_of_archive_push_kills_the_archiver() {
        let kinds = [
            Kind::Failed,
            Kind::AtRisk,
            Kind::Usage,
            Kind::Unreachable,
            Kind::NotFound,
            Kind::Corrupt,
            Kind::Key,
            Kind::Busy,
            Kind::Refused,
            Kind::Interrupted,
        ];
        for kind in kinds {
            assert!((200..220).contains(&Caller::Recovery.failure(kind)), "{kind:?}");
            assert!((1..=125).contains(&Caller::Archiver.failure(kind)), "{kind:?}");
        }
        assert_eq!(Caller::Recovery.panic(), 220);
    }
}
