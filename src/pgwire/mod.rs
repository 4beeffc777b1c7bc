//! Talking to a PostgreSQL server, versions 13 to 18: the replication protocol and plain SQL, without libpq.
//!
//! ```text
//!   conninfo ── passfile   certificate       where, as whom, whose certificate     pure
//!   message                                  bytes <-> messages                    pure
//!   replication   basebackup   tar tarwrite  what the answers mean                 pure
//!   ------------------------------------------------------------------------------------
//!   dial ── tls ── files                     look up, connect, encrypt             IO
//!   connect ── startup ── password           which host, log in                    IO
//!   socket                                   messages, deadlines, cancel           IO
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
pub mod certificate;
pub mod conn;
mod connect;
pub mod conninfo;
mod dial;
pub mod error;
mod files;
pub mod message;
pub mod passfile;
mod password;
pub mod replication;
mod socket;
pub mod sql;
mod startup;
pub mod tar;
pub mod tarwrite;
pub mod tls;

pub use basebackup::{BackupEvent, BaseBackupOptions, Checkpoint, ChecksumFailure, TablespaceInfo};
pub use conn::{BaseBackupStream, ReplicationConn};
pub use conninfo::{ConnInfo, ConnInfoError, Environment, Host, Target};
pub use error::ConnError;
pub use message::ServerNotice;
pub use replication::{HistoryFile, Identity};
pub use socket::Deadlines;
pub use sql::Sql;
