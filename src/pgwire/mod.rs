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
pub mod conninfo;
pub mod message;
pub mod passfile;
pub mod replication;
pub mod tar;
pub mod tarwrite;
