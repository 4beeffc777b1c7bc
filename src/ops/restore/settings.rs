//! The files that a restore writes itself: recovery settings, and for a copy a configuration made from nothing.
//!
//! ```text
//!               postgresql.auto.conf            postgresql.conf, pg_hba.conf, pg_ident.conf     markers
//!  --replace    the cluster's own, and block    the cluster's own                               recovery.signal
//!  --copy       the block alone                 written from an allow-list; originals: *.source recovery.signal, pitr.copy
//! ```
//! Invariants: recovery follows one timeline by number and stops at most at one target; a copy inherits no setting that reaches
//! outside it. Pure: files come out as bytes. Source of truth: RECOVERY.md 22 and 23.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ops::plan::{self, RecoveryPlan};
use crate::pgdata::conf::{self, CommandSource};
use crate::pgdata::copyconf::{self, CopyPlace, CopySource};
use crate::pgdata::recovery::{Action, Inclusive, RecoveryError, RecoverySettings, Stop};
use crate::repo::objects::Backup;
use crate::wal::{Lsn, SystemId, TimelineId};

use super::layout;

/// A file to be written, relative to the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFile {
    /// Its path.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl OwnFile {
    fn new(path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), bytes: bytes.into() }
    }
}

/// How recovery finds its WAL: this program and the repository the restore used.
#[derive(Debug, Clone)]
pub struct WalSource<'a> {
    /// Absolute path of this program.
    pub binary: &'a Path,
    /// Where it finds the repository.
    pub source: CommandSource<'a>,
    /// What opens it, where the configuration does not say.
    pub keys: &'a KeyFlags,
}

/// Flags that tell `restore_command` how an encrypted repository opens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyFlags {
    /// Absolute path of the identity file.
    pub identity: Option<PathBuf>,
    /// Fingerprint of the seal key.
    pub fingerprint: Option<String>,
}

/// The value of `restore_command`. With `until`, the segment in which recovery stops may be one that is stored only in part.
///
/// # Errors
/// Kind `Usage` for a path that cannot stand in it.
pub fn restore_command(
    wal: &WalSource<'_>,
    timeline: TimelineId,
    until: Option<Lsn>,
    system: SystemId,
) -> Result<String> {
    const ARGUMENTS: &str = " %f \"%p\"";
    let wrong = |e: conf::QuoteError| {
        Error::usage(format!("the restore_command cannot be written: {e}"))
            .source(e)
            .hint("give --config an absolute path in UTF-8, and install the program under one")
    };
    let command = conf::restore_command(wal.binary, &wal.source, Some(timeline)).map_err(wrong)?;
    let (identity, fingerprint) = (wal.keys.identity.as_deref(), wal.keys.fingerprint.as_deref());
    let keys = conf::key_flags(identity, fingerprint).map_err(wrong)?;
    // Said, not looked up: when the command is tried there is no pg_control yet, and the repository's current system may be a
    // later one.
    let words = command.strip_suffix(ARGUMENTS).unwrap_or(&command);
    let until = until.map(|lsn| format!(" --until {lsn}")).unwrap_or_default();
    Ok(format!("{words}{keys}{until} --system-id {system}{ARGUMENTS}"))
}

/// The settings for `plan`. `extra` holds for the time of recovery and goes with the block.
pub fn recovery(
    plan: &RecoveryPlan,
    restore_command: String,
    action: Action,
    extra: Vec<(String, String)>,
) -> RecoverySettings {
    let stop = match &plan.stop {
        plan::Stop::Lsn(record) => Stop::Lsn(record.lsn),
        plan::Stop::Immediate { .. } => Stop::Immediate,
        plan::Stop::EndOfWal { .. } => Stop::EndOfWal,
    };
    RecoverySettings {
        restore_command,
        stop,
        inclusive: Inclusive::Yes,
        timeline: plan.recovery_target_timeline,
        action,
        extra,
    }
}

/// What `--replace` sets beside the target: a standby that has not come back must not hold up the first commit (RECOVERY.md 23), and
/// recovery needs the primary's limits (25).
pub fn replacement_extras(too_small: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut extra = vec![("synchronous_standby_names".to_owned(), String::new())];
    extra.extend(too_small);
    extra
}

/// What recovery of this very backup demands of any server. Where the segment behind the last one that the plan needs is missing, it must
/// not be fetched ahead; where a tablespace lies inside the data directory, recovery ends with a PANIC unless that is allowed
/// (`CheckTablespaceDirectory`).
pub fn demanded(plan: &RecoveryPlan, backup: &Backup) -> Vec<(String, String)> {
    let looks_ahead = plan.hole_behind && backup.major.number() >= 15;
    let in_place = backup.tablespaces.iter().any(|tablespace| !tablespace.location.starts_with('/'));
    let wanted = [(looks_ahead, "recovery_prefetch", "off"), (in_place, "allow_in_place_tablespaces", "on")];
    let wanted = wanted.into_iter().filter(|(is, ..)| *is);
    wanted.map(|(_, name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The files of a replacement: its own settings and the block.
///
/// # Errors
/// Kind `Refused` if the old `postgresql.auto.conf` cannot be understood, `Usage` for a value that cannot be written.
pub fn replacement(settings: &RecoverySettings, auto_conf: &[u8]) -> Result<Vec<OwnFile>> {
    let text = settings.apply(auto_conf).map_err(unwritable)?;
    Ok(vec![OwnFile::new(layout::AUTO_CONF, text), OwnFile::new("recovery.signal", "")])
}

/// The files of a copy, and what of the source it cannot use here.
///
/// # Errors
/// Kind `Usage` for places that cannot be written.
pub fn copy(
    settings: &RecoverySettings,
    source: &CopySource<'_>,
    place: &CopyPlace<'_>,
    origin: &Origin<'_>,
) -> Result<(Vec<OwnFile>, Vec<String>)> {
    let made = copyconf::copy_config(source, place).map_err(|e| Error::usage(e.to_string()).source(e))?;
    let block = settings.apply(b"").map_err(unwritable)?;
    let mut marker = serde_json::to_vec_pretty(origin).unwrap_or_default();
    marker.push(b'\n');
    let files = vec![
        OwnFile::new("postgresql.conf", made.postgresql_conf),
        OwnFile::new("pg_hba.conf", made.pg_hba),
        OwnFile::new("pg_ident.conf", made.pg_ident),
        OwnFile::new(layout::AUTO_CONF, block),
        OwnFile::new(layout::COPY_MARKER, marker),
        OwnFile::new("recovery.signal", ""),
    ];
    Ok((files, made.left_out))
}

/// What the marker of a copy says.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Origin<'a> {
    /// The cluster's folder in the repository.
    pub cluster: &'a str,
    /// The system identifier it shares with its source.
    pub system_identifier: String,
    /// The backup it was made from.
    pub backup: &'a str,
    /// When, RFC 3339 in UTC.
    pub made_at: String,
    /// For people who find the file.
    pub note: &'static str,
}

impl Origin<'_> {
    /// What the marker is for.
    pub const NOTE: &'static str = "a copy made by pitr restore --copy: archiving and backups from here are refused until \
                                    `pitr init --adopt` makes it a primary of its own";
}

#[expect(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
fn unwritable(error: RecoveryError) -> Error {
    match &error {
        RecoveryError::Unterminated { .. } | RecoveryError::Unopened { .. } => {
            Error::refused(format!("{} of the backup: {error}", layout::AUTO_CONF))
        }
        _ => Error::usage(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::plan::{RecoveryTarget, StopKind, StopRecord};
    use crate::wal::Lsn;

    fn planned(stop: plan::Stop) -> RecoveryPlan {
        RecoveryPlan {
            backup: "20251017-103000-1a2b3c4d".into(),
            target: RecoveryTarget::Latest,
            stop,
            route: Vec::new(),
            recovery_target_timeline: TimelineId::new(3).unwrap(),
            segments: Vec::new(),
            hole_behind: false,
            wal_bytes: 0,
            met: plan::Met::default(),
            last_kept: None,
            first_lost: None,
            warnings: Vec::new(),
        }
    }

    fn at(lsn: u64) -> plan::Stop {
        let lsn = Lsn::new(lsn);
        plan::Stop::Lsn(StopRecord { lsn, end: lsn, time: None, xid: None, what: StopKind::Commit })
    }

    #[test]
    fn the_command_names_program_configuration_repository_and_route() {
        let source =
            CommandSource::Config { path: Path::new("/etc/pitr/50%.toml"), repository: Some("cloud") };
        let none = KeyFlags::default();
        let wal = WalSource { binary: Path::new("/opt/pi tr/pitr"), source, keys: &none };
        assert_eq!(
            restore_command(&wal, TimelineId::new(3).unwrap(), None, SystemId::new(42)).unwrap(),
            "'/opt/pi tr/pitr' archive-get --config '/etc/pitr/50%%.toml' --repository cloud --timeline 3 --system-id 42 %f \"%p\""
        );
        let relative = WalSource { binary: Path::new("pitr"), ..wal };
        assert_eq!(
            restore_command(&relative, TimelineId::FIRST, None, SystemId::new(42)).unwrap_err().kind(),
            crate::error::Kind::Usage
        );
    }

    #[test]
    fn a_replacement_keeps_its_settings_and_gets_one_block() {
        let settings = recovery(
            &planned(at(0x300_0060)),
            "x".into(),
            Action::Promote,
            replacement_extras(vec![("max_connections".into(), "200".into())]),
        );
        let files = replacement(&settings, b"work_mem = '8MB'\nrecovery_target_name = 'old'\n").unwrap();
        let text = String::from_utf8(files[0].bytes.clone()).unwrap();
        assert!(text.starts_with("work_mem = '8MB'\n# >>> pitr restore"), "{text}");
        for line in [
            "recovery_target_lsn = '0/3000060'",
            "recovery_target_inclusive = 'on'",
            "recovery_target_timeline = '3'",
            "recovery_target_action = 'promote'",
            "synchronous_standby_names = ''",
            "max_connections = '200'",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("old"));
        assert_eq!(files[1], OwnFile::new("recovery.signal", ""));
    }

    #[test]
    fn the_end_of_wal_has_no_target() {
        let settings = recovery(
            &planned(plan::Stop::EndOfWal { lsn: Lsn::MAX }),
            "x".into(),
            Action::Promote,
            Vec::new(),
        );
        assert_eq!(settings.stop, Stop::EndOfWal);
    }
}
