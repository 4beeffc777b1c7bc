//! Talking to a PostgreSQL server, versions 13 to 18: the replication protocol and plain SQL, without libpq.
//!
//! ```text
//!   conninfo ── passfile                     where, as whom                        pure
//!   message                                  bytes <-> messages                    pure
//!   replication   basebackup   tar tarwrite  what the answers mean                 pure
//!   ------------------------------------------------------------------------------------
//!   socket ── startup                        connect, log in, deadlines            IO
//!   conn                                     IDENTIFY_SYSTEM, SHOW, BASE_BACKUP    IO
//!   sql                                      statements, rows as text              IO
//! ```
//! A base backup is one command with several answers (`basebackup.c`, `walsender.c`):
//! ```text
//!   BASE_BACKUP ──►  start LSN, timeline        one row; may take a whole spread checkpoint
//!                    tablespaces                one row each, the data directory last
//!                    15+:   one copy stream     n(ew archive) d(ata) p(rogress) m(anifest)
//!                    13/14: a copy stream each  raw tar, in the order of the rows; then the manifest
//!                    end LSN, timeline          one row
//!                    CommandComplete            only this makes it a backup
//! ```
//! One client serves both kinds of session: one way to log in, one discipline of deadlines, no background task.

pub mod basebackup;
pub mod conn;
pub mod conninfo;
pub mod message;
pub mod passfile;
pub mod replication;
pub mod socket;
pub mod sql;
mod startup;
pub mod tar;
pub mod tarwrite;

pub use basebackup::{BackupEvent, BaseBackupOptions, Checkpoint, ChecksumFailure, TablespaceInfo};
pub use conn::{BaseBackupStream, ReplicationConn};
pub use conninfo::{ConnInfo, ConnInfoError, Environment, Target};
pub use message::ServerNotice;
pub use replication::{HistoryFile, Identity};
pub use socket::{ConnError, Deadlines};
pub use sql::Sql;
