//! Events: the records of a WAL stream that recovery, planning and people ask about. All others are only counted.
//!
//! Positions follow PostgreSQL: a record is named by the LSN of its first byte, and a stop "at" a record is that LSN.
//! Times are what the server's clock said, and need not ascend with the LSN: a transaction takes its commit time before it
//! takes its place in WAL, and clocks get set back. Source of truth: `xact.h`, `xlog_internal.h`, `pg_control.h`,
//! `dbcommands_xlog.h`, `tablespace.h` of PostgreSQL 13 to 18.

use super::lsn::Lsn;
use super::time::PgTime;
use super::timeline::TimelineId;

/// One record that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// First byte of the record.
    pub lsn: Lsn,
    /// First byte after the record, not rounded up to where the next may start. On a page boundary it is the boundary itself.
    pub end: Lsn,
    /// The transaction: for COMMIT PREPARED and ABORT PREPARED the prepared one, not the (absent) one that finished it. 0 = none.
    pub xid: u32,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A transaction committed. Recovery to a time can stop just before one.
    Commit {
        /// Commit time.
        time: PgTime,
        /// It was COMMIT PREPARED.
        prepared: bool,
    },
    /// A transaction rolled back. Recovery to a time can stop just before one.
    Abort {
        /// Abort time.
        time: PgTime,
        /// It was ROLLBACK PREPARED.
        prepared: bool,
    },
    /// PREPARE TRANSACTION: from here on the transaction survives a crash.
    Prepare {
        /// Prepare time.
        time: PgTime,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// When it was made.
        time: PgTime,
        /// Its name; bytes that are not UTF-8 are replaced, since the server's encoding is unknown here.
        name: String,
    },
    /// A checkpoint, at its own record (which comes after its redo position).
    Checkpoint {
        /// When it was made, to the second.
        time: PgTime,
        /// Where replay starts from it.
        redo: Lsn,
        /// It was written by a shutdown, or by the end of a recovery.
        shutdown: bool,
        /// The timeline after it.
        timeline: TimelineId,
    },
    /// A recovery ended and opened a new timeline.
    EndOfRecovery {
        /// When.
        time: PgTime,
        /// The new timeline.
        timeline: TimelineId,
        /// The timeline it left.
        previous: TimelineId,
    },
    /// A base backup ended; before this record a restore of it is not consistent.
    BackupEnd {
        /// Where that backup started.
        start: Lsn,
    },
    /// `pg_switch_wal` or `archive_timeout`: the rest of the segment is padding.
    Switch,
    /// Settings that a standby, or a restored server, must not set lower.
    ParameterChange {
        /// `max_connections`.
        max_connections: i32,
        /// `max_worker_processes`.
        max_worker_processes: i32,
        /// `max_wal_senders`.
        max_wal_senders: i32,
        /// `max_prepared_transactions`.
        max_prepared_xacts: i32,
        /// `max_locks_per_transaction`.
        max_locks_per_xact: i32,
        /// 0 minimal, 1 replica, 2 logical.
        wal_level: i32,
    },
    /// DROP DATABASE removed the files of these databases; it acts here, before its commit.
    DatabaseDrop {
        /// OIDs.
        databases: Vec<u32>,
    },
    /// CREATE DATABASE.
    DatabaseCreate {
        /// OID.
        database: u32,
    },
    /// CREATE TABLESPACE: replay makes it at this very place.
    TablespaceCreate {
        /// OID.
        tablespace: u32,
        /// Where; bytes, since the server's encoding is unknown here. Empty for one inside the data directory.
        place: Vec<u8>,
    },
    /// After a crash the server abandoned a record that was never completed.
    OverwriteContrecord {
        /// Start of the abandoned record.
        lsn: Lsn,
    },
}

impl EventKind {
    /// The time recovery compares with `recovery_target_time`: of commits and aborts, prepared ones included.
    pub fn stop_time(&self) -> Option<PgTime> {
        match self {
            Self::Commit { time, .. } | Self::Abort { time, .. } => Some(*time),
            Self::Prepare { .. }
            | Self::RestorePoint { .. }
            | Self::Checkpoint { .. }
            | Self::EndOfRecovery { .. }
            | Self::BackupEnd { .. }
            | Self::Switch
            | Self::ParameterChange { .. }
            | Self::DatabaseDrop { .. }
            | Self::DatabaseCreate { .. }
            | Self::TablespaceCreate { .. }
            | Self::OverwriteContrecord { .. } => None,
        }
    }

    /// Any time the record carries: the server was alive then.
    pub fn time(&self) -> Option<PgTime> {
        match self {
            Self::Commit { time, .. }
            | Self::Abort { time, .. }
            | Self::Prepare { time }
            | Self::RestorePoint { time, .. }
            | Self::Checkpoint { time, .. }
            | Self::EndOfRecovery { time, .. } => Some(*time),
            Self::BackupEnd { .. }
            | Self::Switch
            | Self::ParameterChange { .. }
            | Self::DatabaseDrop { .. }
            | Self::DatabaseCreate { .. }
            | Self::TablespaceCreate { .. }
            | Self::OverwriteContrecord { .. } => None,
        }
    }
}
