//! Before anything is written: is this the right server, may it be backed up, and what should the operator know?
//!
//! ```text
//!  replication + SQL session ─► version 13 to 18 ─► whose cluster? ─► copy marker? ─► archiving on? ─► first sample, WAL floor
//!        refused: foreign cluster, a copy, encrypted repository, what the server would leave out        warned: archiving that will not bring the WAL
//! ```
//! The WAL floor goes into the intent, so that `expire` keeps what the backup will need although its start is not known yet: the
//! flush position, or on a standby the redo position of the control file (REPOSITORY.md 4).

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::BackupRequest;
use super::catalogue::{Catalogue, TablespaceName};
use super::facts::{self, Sample, ServerFacts};
use crate::error::{Error, Result};
use crate::ops::archive::COPY_MARKER;
use crate::ops::archive::command::push_command;
use crate::pgdata::ControlFile;
use crate::pgwire::{Identity, ReplicationConn, Sql};
use crate::wal::{Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize};

/// A server that may be backed up.
#[derive(Debug)]
pub(super) struct Server {
    /// For the backup.
    pub(super) replication: ReplicationConn,
    /// For everything else.
    pub(super) sql: Sql,
    /// Whose cluster, which timeline.
    pub(super) identity: Identity,
    /// Its version.
    pub(super) major: PgMajor,
    /// Its segment size.
    pub(super) segment_size: SegmentSize,
    /// What it says about itself.
    pub(super) facts: ServerFacts,
    /// The server's clock before the backup.
    pub(super) started_at: Timestamp,
    /// Commits and position before the backup.
    pub(super) first: Option<Sample>,
    /// First segment that the backup can need.
    pub(super) floor: SegmentName,
    /// Nothing below this is needed.
    pub(super) floor_lsn: Lsn,
    /// The data directory, if it is on this host.
    pub(super) local: Option<PathBuf>,
    /// For the catalogue object.
    pub(super) catalogue: Catalogue,
    /// What the operator should know.
    pub(super) warnings: Vec<String>,
}

impl Server {
    /// Ends what is under way on the server, within a few seconds.
    pub(super) async fn abandon(self) {
        tokio::join!(self.replication.abandon(), self.sql.abandon());
    }
}

/// Connects and looks. Nothing is changed on the server.
pub(super) async fn server(request: &BackupRequest) -> Result<Server> {
    let mut replication =
        ReplicationConn::connect(&request.conninfo, &request.deadlines).await.map_err(facts::connection)?;
    let identity = replication.identify_system().await.map_err(facts::connection)?;
    let segment_size = replication.segment_size().await.map_err(facts::connection)?;
    // Of several servers, the one that the backup comes from.
    let same = request.conninfo.only(replication.host());
    let mut sql = Sql::connect(&same, &request.deadlines).await.map_err(facts::connection)?;
    let facts = facts::server(&mut sql).await?;
    let major = PgMajor::from_version_num(facts.version_num).ok_or_else(|| {
        Error::usage(format!("this pitr does not know PostgreSQL {}", facts.version_num / 10_000))
            .hint("it backs up PostgreSQL 13 to 18; use a newer pitr for a newer server")
    })?;
    let is_local = replication.host().is_local();
    let candidate = facts.data_directory.clone().or_else(|| request.data_dir.clone());
    let local = candidate.filter(|dir| is_local && is_data_directory(dir, &identity));
    refuse_copy(&mut sql, local.as_deref()).await?;
    let (floor_lsn, floor_timeline) = match facts.in_recovery {
        true => facts::control_redo(&mut sql).await?,
        false => (identity.xlogpos, identity.timeline),
    };
    let number = SegmentNo::containing(floor_lsn, segment_size);
    let started_at = facts::clock(&mut sql).await?;
    let first = facts::sample(&mut sql, facts.in_recovery).await?;
    let catalogue = facts::catalogue(&mut sql, &facts, local.as_deref()).await?;
    refuse_left_out(&catalogue, major)?;
    let mut warnings = archiving_warnings(&facts);
    warnings.extend(catalogue.missing.iter().map(|what| format!("not in the backup's catalogue: {what}")));
    Ok(Server {
        floor: SegmentName::new(floor_timeline, number, segment_size),
        replication,
        sql,
        identity,
        major,
        segment_size,
        facts,
        started_at,
        first,
        floor_lsn,
        local,
        catalogue,
        warnings,
    })
}

/// Whether `dir` is the data directory of that cluster on this host. A copy beside it would have the same identity: what is taken
/// from here (complete WAL segments) is the same there.
fn is_data_directory(dir: &Path, identity: &Identity) -> bool {
    let control = std::fs::read(dir.join("global/pg_control"));
    control.is_ok_and(|bytes| {
        // Torn while it was written: then without a local directory, which only costs comfort.
        ControlFile::parse(&bytes).is_ok_and(|control| control.system_id == identity.system_id)
    })
}

/// A copy made by `restore --copy` must not enter the repository as if it were the cluster (RECOVERY.md 9).
async fn refuse_copy(sql: &mut Sql, local: Option<&Path>) -> Result<()> {
    let seen = facts::has_file(sql, COPY_MARKER).await;
    let here = || local.is_some_and(|dir| dir.join(COPY_MARKER).exists());
    if seen.unwrap_or_else(here) { Err(is_a_copy()) } else { Ok(()) }
}

/// The error for a server that is a copy.
pub(super) fn is_a_copy() -> Error {
    Error::refused(format!(
        "this server is a copy ({COPY_MARKER} lies in its data directory); its backups would pass for the original's"
    ))
    .hint("back up the original; or make this copy a cluster of its own with `pitr init --adopt`")
}

/// PostgreSQL 15 and older leave a tablespace inside the data directory (`allow_in_place_tablespaces`, made for tests) out of a base
/// backup without a word: `do_pg_backup_start` passes over what is no link.
fn refuse_left_out(catalogue: &Catalogue, major: PgMajor) -> Result<()> {
    let left_out = |t: &&TablespaceName| major.number() < 16 && t.location.starts_with("pg_tblspc/");
    match catalogue.tablespaces.iter().find(left_out) {
        None => Ok(()),
        Some(one) => Err(Error::refused(format!(
            "tablespace {} lies inside the data directory, and PostgreSQL {major} leaves such a one out of base backups",
            one.name
        ))
        .hint("move its relations to a tablespace with a place of its own, or to pg_default, and drop it")),
    }
}

/// Settings under which the WAL that the backup needs may never arrive.
fn archiving_warnings(facts: &ServerFacts) -> Vec<String> {
    let mut warnings = Vec::new();
    let ours = push_command(&facts.archive_command).is_some();
    let on = facts.archive_mode != "off";
    if facts.in_recovery && facts.archive_mode != "always" {
        warnings.push(
            "the server is a standby: the WAL of this backup must be archived by its primary (or be streamed)".to_owned(),
        );
    } else if !on {
        warnings.push(
            "archive_mode is off: no WAL is archived, so no moment after the backup can be restored"
                .to_owned(),
        );
    } else if !ours && facts.archive_library.is_empty() {
        warnings.push("archive_command does not run `pitr archive-push`; see `pitr init`".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ServerFacts {
        ServerFacts {
            version_num: 150_018,
            in_recovery: false,
            pages: None,
            archive_mode: "on".into(),
            archive_command: "/usr/local/bin/pitr --config /etc/pitr/pitr.toml archive-push %p".into(),
            archive_library: String::new(),
            wal_level: "replica".into(),
            full_page_writes: true,
            data_directory: None,
        }
    }

    #[test]
    fn settings_that_bring_the_wal_are_not_warned_of() {
        assert_eq!(archiving_warnings(&facts()), Vec::<String>::new());
        let always = ServerFacts { in_recovery: true, archive_mode: "always".into(), ..facts() };
        assert_eq!(archiving_warnings(&always), Vec::<String>::new());
    }

    #[test]
    fn settings_that_lose_the_wal_are_named() {
        let off = ServerFacts { archive_mode: "off".into(), ..facts() };
        assert!(archiving_warnings(&off)[0].starts_with("archive_mode is off"));
        let other = ServerFacts { archive_command: "cp %p /archive/%f".into(), ..facts() };
        assert!(archiving_warnings(&other)[0].starts_with("archive_command does not run"));
        let standby = ServerFacts { in_recovery: true, ..facts() };
        assert!(archiving_warnings(&standby)[0].starts_with("the server is a standby"));
    }
}
