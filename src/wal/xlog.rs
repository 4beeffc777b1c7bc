//! Records of the cluster itself: checkpoints, restore points, switches, ends of recovery, databases made or dropped, tablespaces made.
//!
//! CREATE and DROP DATABASE changed their codes in 15: 0x10 is a drop in 13 and 14 and a creation from 15 on, where a drop is
//! 0x20. Checkpoint times are Unix seconds, all others microseconds since 2000. Pure.
//! Source of truth: `pg_control.h`, `xlog_internal.h`, `dbcommands_xlog.h`, `tablespace.h` of PostgreSQL 13 to 18.

use super::event::EventKind;
use super::lsn::Lsn;
use super::page::PgMajor;
use super::record::RecordHeader;
use super::time::PgTime;
use super::timeline::TimelineId;

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
pub(super) const SWITCH: u8 = 0x40;
const BACKUP_END: u8 = 0x50;
const PARAMETER_CHANGE: u8 = 0x60;
pub(super) const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;
const OVERWRITE_CONTRECORD: u8 = 0xD0;

/// Bytes of a restore point's name, its final NUL included (`MAXFNAMELEN`).
pub(super) const RESTORE_POINT_NAME: usize = 64;

/// True for operations that [`decode_xlog`] turns into an event.
pub(super) fn is_event(operation: u8) -> bool {
    matches!(
        operation,
        CHECKPOINT_SHUTDOWN
            | CHECKPOINT_ONLINE
            | SWITCH
            | BACKUP_END
            | PARAMETER_CHANGE
            | RESTORE_POINT
            | END_OF_RECOVERY
            | OVERWRITE_CONTRECORD
    )
}

/// The event in a record of resource manager XLOG.
pub(super) fn decode_xlog(header: &RecordHeader, main: &[u8]) -> Option<EventKind> {
    let main = Fields(main);
    match header.operation() {
        operation @ (CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE) => Some(EventKind::Checkpoint {
            time: PgTime::from_unix_seconds(main.i64(64)?),
            redo: Lsn::new(main.u64(0)?),
            shutdown: operation == CHECKPOINT_SHUTDOWN,
            timeline: TimelineId::new(main.u32(8)?)?,
        }),
        SWITCH => Some(EventKind::Switch),
        BACKUP_END => Some(EventKind::BackupEnd { start: Lsn::new(main.u64(0)?) }),
        PARAMETER_CHANGE => Some(EventKind::ParameterChange {
            max_connections: main.i32(0)?,
            max_worker_processes: main.i32(4)?,
            max_wal_senders: main.i32(8)?,
            max_prepared_xacts: main.i32(12)?,
            max_locks_per_xact: main.i32(16)?,
            wal_level: main.i32(20)?,
        }),
        RESTORE_POINT => {
            let name = main.0.get(8..8 + RESTORE_POINT_NAME)?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            Some(EventKind::RestorePoint { time: PgTime::from_raw(main.i64(0)?), name })
        }
        END_OF_RECOVERY => Some(EventKind::EndOfRecovery {
            time: PgTime::from_raw(main.i64(0)?),
            timeline: TimelineId::new(main.u32(8)?)?,
            previous: TimelineId::new(main.u32(12)?)?,
        }),
        OVERWRITE_CONTRECORD => Some(EventKind::OverwriteContrecord { lsn: Lsn::new(main.u64(0)?) }),
        _ => None,
    }
}

/// The event in a record of resource manager DBASE.
pub(super) fn decode_database(major: PgMajor, header: &RecordHeader, main: &[u8]) -> Option<EventKind> {
    let main = Fields(main);
    let codes_of_15 = match major {
        PgMajor::V13 | PgMajor::V14 => false,
        PgMajor::V15 | PgMajor::V16 | PgMajor::V17 | PgMajor::V18 => true,
    };
    let database = main.u32(0)?;
    match (header.operation(), codes_of_15) {
        (0x00, _) | (0x10, true) => Some(EventKind::DatabaseCreate { database }),
        // One record drops one database; the tablespaces it names are all places where that one had files.
        (0x10, false) | (0x20, true) => Some(EventKind::DatabaseDrop { databases: vec![database] }),
        _ => None,
    }
}

/// The event in a record of resource manager TBLSPC: a creation.
pub(super) fn decode_tablespace(header: &RecordHeader, main: &[u8]) -> Option<EventKind> {
    let (oid, path) = main.split_first_chunk::<4>()?;
    let place = path.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    let created = header.operation() == 0x00;
    created.then_some(EventKind::TablespaceCreate { tablespace: u32::from_le_bytes(*oid), place })
}

/// Little-endian fields; `None` for those that are not all there.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> Option<u32> {
        self.0.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.0.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
    }

    fn i32(&self, at: usize) -> Option<i32> {
        self.0.get(at..)?.first_chunk().map(|b| i32::from_le_bytes(*b))
    }

    fn i64(&self, at: usize) -> Option<i64> {
        self.0.get(at..)?.first_chunk().map(|b| i64::from_le_bytes(*b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database_record(major: PgMajor, info: u8) -> Option<EventKind> {
        let mut bytes = [0; 24];
        bytes[16] = info;
        bytes[17] = 4;
        let main = [16_400_u32, 1, 1663].map(u32::to_le_bytes).concat();
        decode_database(major, &RecordHeader::parse(&bytes), &main)
    }

    #[test]
    fn codes_of_databases_changed_in_15() {
        let drop = Some(EventKind::DatabaseDrop { databases: vec![16_400] });
        let create = Some(EventKind::DatabaseCreate { database: 16_400 });
        for major in PgMajor::ALL {
            let old = major < PgMajor::V15;
            assert_eq!(database_record(major, 0x00), create);
            assert_eq!(database_record(major, 0x10), if old { drop.clone() } else { create.clone() });
            assert_eq!(database_record(major, 0x20), if old { None } else { drop.clone() });
        }
    }
}
