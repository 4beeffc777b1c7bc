//! `global/pg_control`: the 8 KiB file that says which cluster this is and from where it would start.
//!
//! ```text
//!  0        24      40            128              172            216        248     288|292          8192
//!  │ identity│ state │ CheckPoint  │ recovery bounds │ five settings │ geometry │ flags │ CRC-32C │ zeros │
//! ```
//! The server rewrites it in place, so a read beside a running server may be torn: [`ControlError::Crc`] means read again, and
//! only when it stays so is the file damaged. PostgreSQL writes no major here; [`ControlFile::major`] knows it from the catalogue
//! version. Layouts: control version 1300 (13 to 16), 1700 (17) and 1800 (18). Little-endian only, as every supported build is.
//! Source of truth: `src/include/catalog/pg_control.h`.

use std::fmt;

use crate::wal::{Lsn, PgMajor, SegmentSize, SegmentSizeError, SystemId, TimelineId};

/// Size of the file (`PG_CONTROL_FILE_SIZE`).
pub const CONTROL_FILE_SIZE: usize = 8192;

/// Why bytes are not a control file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The file has another size than PostgreSQL gives it.
    #[error("pg_control has {0} bytes, PostgreSQL writes {CONTROL_FILE_SIZE}")]
    Length(usize),
    /// Written by a server that this program does not know.
    #[error("pg_control has version {0}, known are 1300 (PostgreSQL 13 to 16), 1700 (17) and 1800 (18)")]
    Version(u32),
    /// Written on a machine of the other byte order.
    #[error("pg_control was written by a machine of another byte order")]
    ByteOrder,
    /// The checksum does not match: torn by a read beside the running server, or damaged.
    #[error("pg_control has checksum {found:08X}, its bytes give {computed:08X}")]
    Crc {
        /// Stored in the file.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A value that no server writes, behind a matching checksum.
    #[error("pg_control states {field} {value}")]
    Field {
        /// Which one.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The segment size is none.
    #[error("pg_control states a wrong WAL segment size")]
    SegmentSize(#[source] SegmentSizeError),
}

/// State of the cluster (`DBState`). Prints as `pg_controldata` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DbState {
    /// initdb is at work.
    StartingUp,
    /// Cleanly shut down.
    ShutDown,
    /// Cleanly shut down as a standby.
    ShutDownInRecovery,
    /// The shutdown checkpoint is being written.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a standby.
    InArchiveRecovery,
    /// Running, or crashed while running.
    InProduction,
}

impl DbState {
    fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }

    /// True if the server ended on purpose, so that its WAL ends with a checkpoint.
    pub fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

impl fmt::Display for DbState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// Setting `wal_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Not enough for an archive.
    Minimal,
    /// Enough for archive and standbys.
    Replica,
    /// And for logical decoding.
    Logical,
}

impl WalLevel {
    fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Minimal,
            1 => Self::Replica,
            2 => Self::Logical,
            _ => return None,
        })
    }
}

impl fmt::Display for WalLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        })
    }
}

/// The copy of the latest checkpoint record (`CheckPoint`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckPoint {
    /// Where recovery would begin.
    pub redo: Lsn,
    /// The timeline it lies on.
    pub timeline: TimelineId,
    /// The timeline before, other than `timeline` only at its start.
    pub previous_timeline: TimelineId,
    /// `full_page_writes` at that moment.
    pub full_page_writes: bool,
    /// `wal_level` at that moment; stored since 17.
    pub wal_level: Option<WalLevel>,
    /// Next transaction id with its epoch in the upper half.
    pub next_xid: u64,
    /// Next OID.
    pub next_oid: u32,
    /// Next multixact id.
    pub next_multi: u32,
    /// Next multixact member.
    pub next_multi_offset: u32,
    /// Oldest transaction id that is not frozen everywhere.
    pub oldest_xid: u32,
    /// The database that holds it back.
    pub oldest_xid_db: u32,
    /// Oldest multixact id in use.
    pub oldest_multi: u32,
    /// The database that holds it back.
    pub oldest_multi_db: u32,
    /// When it was made, in seconds of Unix time.
    pub time: i64,
    /// Oldest transaction with a commit timestamp.
    pub oldest_commit_ts_xid: u32,
    /// Newest transaction with a commit timestamp.
    pub newest_commit_ts_xid: u32,
    /// Oldest transaction that ran then; 0 for none.
    pub oldest_active_xid: u32,
}

/// The settings that a server in recovery must not have below those of the primary (RECOVERY 25).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequiredSettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl RequiredSettings {
    /// Raises each to at least these, which are in the order of [`Self::by_name`].
    pub fn raise(&mut self, least: [u32; 5]) {
        let own = [
            &mut self.max_connections,
            &mut self.max_worker_processes,
            &mut self.max_wal_senders,
            &mut self.max_prepared_transactions,
            &mut self.max_locks_per_transaction,
        ];
        for (own, least) in own.into_iter().zip(least) {
            *own = least.max(*own);
        }
    }

    /// Names as the configuration spells them, with values.
    pub fn by_name(&self) -> [(&'static str, u32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }
}

/// A parsed control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Which cluster.
    pub system_id: SystemId,
    /// Layout of this file.
    pub control_version: u32,
    /// Layout of the system catalogues; one per major.
    pub catalog_version: u32,
    /// What the server was doing.
    pub state: DbState,
    /// When the file was last written, in seconds of Unix time.
    pub time: i64,
    /// LSN of the latest checkpoint record.
    pub checkpoint_lsn: Lsn,
    /// That record.
    pub checkpoint: CheckPoint,
    /// Counter of the LSNs that pages of unlogged relations get.
    pub unlogged_lsn: Lsn,
    /// Recovery must reach this before the cluster is consistent; `0/0` for none.
    pub min_recovery_point: Lsn,
    /// Its timeline; `None` if there is no such point.
    pub min_recovery_timeline: Option<TimelineId>,
    /// Start of the backup that is being recovered; `0/0` for none.
    pub backup_start: Lsn,
    /// Its end, if it came from a standby; `0/0` for none.
    pub backup_end: Lsn,
    /// The end of the backup must still be seen in WAL.
    pub backup_end_required: bool,
    /// Setting `wal_level`.
    pub wal_level: WalLevel,
    /// Setting `wal_log_hints`.
    pub wal_log_hints: bool,
    /// The five settings of [`RequiredSettings`].
    pub required: RequiredSettings,
    /// Setting `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// Bytes in a data page.
    pub block_size: u32,
    /// Pages in a segment of a relation.
    pub relation_segment_blocks: u32,
    /// Bytes in a WAL page.
    pub wal_page_size: u32,
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// Longest identifier plus one.
    pub name_data_len: u32,
    /// Most columns of an index.
    pub index_max_keys: u32,
    /// Bytes in a TOAST chunk.
    pub toast_chunk_size: u32,
    /// Bytes in a large-object chunk.
    pub large_object_chunk_size: u32,
    /// Eight-byte floats are passed by value.
    pub float8_by_value: bool,
    /// Version of data page checksums; 0 for none.
    pub checksum_version: u32,
    /// Signedness of `char` where initdb ran; stored since 18.
    pub default_char_signed: Option<bool>,
}

impl ControlFile {
    /// Parses the whole file.
    ///
    /// # Errors
    /// [`ControlError`]: [`ControlError::Crc`] is worth reading again beside a running server, the others are final.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let file: &[u8; CONTROL_FILE_SIZE] =
            bytes.try_into().map_err(|_| ControlError::Length(bytes.len()))?;
        let raw = Raw(file);
        let control_version = raw.u32(8);
        let crc_at = match control_version {
            1300 | 1700 => 288,
            1800 => 292,
            swapped if matches!(swapped.swap_bytes(), 1300 | 1700 | 1800) => {
                return Err(ControlError::ByteOrder);
            }
            other => return Err(ControlError::Version(other)),
        };
        let computed = crc32c::crc32c(file.get(..crc_at).unwrap_or_default());
        let found = raw.u32(crc_at);
        if computed != found {
            return Err(ControlError::Crc { found, computed });
        }
        raw.control_file(control_version)
    }

    /// The major version, `None` for a catalogue version of no release (a beta, or a server newer than this program).
    pub fn major(&self) -> Option<PgMajor> {
        Some(match self.catalog_version {
            202_007_201 => PgMajor::V13,
            202_107_181 => PgMajor::V14,
            202_209_061 => PgMajor::V15,
            202_307_071 => PgMajor::V16,
            202_406_281 => PgMajor::V17,
            202_506_291 => PgMajor::V18,
            _ => return None,
        })
    }

    /// True if data pages carry checksums.
    pub fn has_checksums(&self) -> bool {
        self.checksum_version != 0
    }
}

/// Fixed-offset reads. Every offset is below 8192 - 8, so the fallback values are never taken.
struct Raw<'a>(&'a [u8; CONTROL_FILE_SIZE]);

impl Raw<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.bytes(at))
    }

    fn lsn(&self, at: usize) -> Lsn {
        Lsn::new(self.u64(at))
    }

    fn bool(&self, at: usize) -> bool {
        self.bytes::<1>(at) != [0]
    }

    fn timeline(&self, field: &'static str, at: usize) -> Result<TimelineId, ControlError> {
        TimelineId::new(self.u32(at)).ok_or(ControlError::Field { field, value: 0 })
    }

    /// A setting that PostgreSQL keeps as a signed integer and never lets fall below 0.
    fn setting(&self, field: &'static str, at: usize) -> Result<u32, ControlError> {
        let value = self.u32(at);
        if i32::try_from(value).is_err() {
            return Err(ControlError::Field { field, value: u64::from(value) });
        }
        Ok(value)
    }

    fn wal_level(&self, at: usize) -> Result<WalLevel, ControlError> {
        let value = self.u32(at);
        WalLevel::from_raw(value)
            .ok_or_else(|| ControlError::Field { field: "wal_level", value: u64::from(value) })
    }

    fn control_file(&self, control_version: u32) -> Result<ControlFile, ControlError> {
        let state = self.u32(16);
        let segment_size = SegmentSize::new(u64::from(self.u32(228))).map_err(ControlError::SegmentSize)?;
        Ok(ControlFile {
            system_id: SystemId::new(self.u64(0)),
            control_version,
            catalog_version: self.u32(12),
            state: DbState::from_raw(state)
                .ok_or_else(|| ControlError::Field { field: "cluster state", value: u64::from(state) })?,
            time: self.i64(24),
            checkpoint_lsn: self.lsn(32),
            checkpoint: self.checkpoint(control_version)?,
            unlogged_lsn: self.lsn(128),
            min_recovery_point: self.lsn(136),
            min_recovery_timeline: TimelineId::new(self.u32(144)),
            backup_start: self.lsn(152),
            backup_end: self.lsn(160),
            backup_end_required: self.bool(168),
            wal_level: self.wal_level(172)?,
            wal_log_hints: self.bool(176),
            required: RequiredSettings {
                max_connections: self.setting("max_connections", 180)?,
                max_worker_processes: self.setting("max_worker_processes", 184)?,
                max_wal_senders: self.setting("max_wal_senders", 188)?,
                max_prepared_transactions: self.setting("max_prepared_transactions", 192)?,
                max_locks_per_transaction: self.setting("max_locks_per_transaction", 196)?,
            },
            track_commit_timestamp: self.bool(200),
            block_size: self.u32(216),
            relation_segment_blocks: self.u32(220),
            wal_page_size: self.u32(224),
            segment_size,
            name_data_len: self.u32(232),
            index_max_keys: self.u32(236),
            toast_chunk_size: self.u32(240),
            large_object_chunk_size: self.u32(244),
            float8_by_value: self.bool(248),
            checksum_version: self.u32(252),
            default_char_signed: (control_version >= 1800).then(|| self.bool(256)),
        })
    }

    fn checkpoint(&self, control_version: u32) -> Result<CheckPoint, ControlError> {
        Ok(CheckPoint {
            redo: self.lsn(40),
            timeline: self.timeline("checkpoint timeline", 48)?,
            previous_timeline: self.timeline("previous timeline", 52)?,
            full_page_writes: self.bool(56),
            wal_level: if control_version >= 1700 { Some(self.wal_level(60)?) } else { None },
            next_xid: self.u64(64),
            next_oid: self.u32(72),
            next_multi: self.u32(76),
            next_multi_offset: self.u32(80),
            oldest_xid: self.u32(84),
            oldest_xid_db: self.u32(88),
            oldest_multi: self.u32(92),
            oldest_multi_db: self.u32(96),
            time: self.i64(104),
            oldest_commit_ts_xid: self.u32(112),
            newest_commit_ts_xid: self.u32(116),
            oldest_active_xid: self.u32(120),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plausible file of layout `version`; real ones are compared with pg_controldata in tests/pgdata.rs.
    fn made(version: u32, edit: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut file = vec![0; CONTROL_FILE_SIZE];
        let crc_at = if version == 1800 { 292 } else { 288 };
        file[0..8].copy_from_slice(&7_712_244_905_592_793_365_u64.to_le_bytes());
        file[8..12].copy_from_slice(&version.to_le_bytes());
        file[12..16].copy_from_slice(&202_209_061_u32.to_le_bytes());
        file[16] = 6;
        file[48] = 1;
        file[52] = 1;
        file[228..232].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        edit(&mut file);
        let crc = crc32c::crc32c(&file[..crc_at]);
        file[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        file
    }

    #[test]
    fn every_layout_is_read() {
        for version in [1300, 1700, 1800] {
            let control = ControlFile::parse(&made(version, |_| ())).unwrap();
            assert_eq!(control.system_id.get(), 7_712_244_905_592_793_365);
            assert_eq!(control.state.to_string(), "in production");
            assert_eq!(control.min_recovery_timeline, None);
            assert_eq!(control.checkpoint.wal_level.is_some(), version >= 1700);
            assert_eq!(control.default_char_signed.is_some(), version == 1800);
        }
    }

    #[test]
    fn each_flipped_bit_is_noticed() {
        let good = made(1300, |_| ());
        for bit in 0..292 * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ControlFile::parse(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn wrong_files_are_named() {
        let field = |edit: fn(&mut [u8])| ControlFile::parse(&made(1300, edit)).unwrap_err().to_string();
        assert_eq!(field(|f| f[16] = 7), "pg_control states cluster state 7");
        assert_eq!(field(|f| f[48] = 0), "pg_control states checkpoint timeline 0");
        assert_eq!(field(|f| f[172] = 3), "pg_control states wal_level 3");
        assert_eq!(field(|f| f[183] = 0x80), "pg_control states max_connections 2147483648");
        assert_eq!(field(|f| f[228] = 1), "pg_control states a wrong WAL segment size");
        assert_eq!(
            field(|f| f[8..12].reverse()),
            "pg_control was written by a machine of another byte order"
        );
        assert_eq!(ControlFile::parse(&made(1300, |f| f[8] = 0)), Err(ControlError::Version(0x0500)));
        assert_eq!(ControlFile::parse(&[]), Err(ControlError::Length(0)));
        assert_eq!(ControlFile::parse(&[0; 8193]), Err(ControlError::Length(8193)));
    }
}
