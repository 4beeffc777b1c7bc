//! `backup`: a base backup over the replication protocol, stored while it streams, real with its last object.
//!
//! ```text
//!  prepare ─ lease ─ intent.json ─ BASE_BACKUP ─ tar ─ frames ─ packs ─ manifest ─ WAL is there? ─ backup.json
//!  checks    nothing of the backup counts before the last of these objects is created; a run that dies leaves garbage, no more
//! ```
//! Source of truth: REPOSITORY.md 4 (order of writes), RECOVERY.md 24 to 26, `basebackup.c` of PostgreSQL 13 to 18.

pub mod catalogue;
