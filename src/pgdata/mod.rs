//! What PostgreSQL keeps in a data directory, read and written without PostgreSQL.
//!
//! ```text
//!  PGDATA ─┬ global/pg_control                control          the cluster's state: deleted first, written last in a restore
//!          ├ backup_label  tablespace_map     label            where recovery starts; never edited
//!          ├ backup_manifest                  backup_manifest  PostgreSQL's own list of a base backup's files
//!          ├ postgresql.conf                  conf             its syntax
//!          │   └ of a copy                    copyconf         made from nothing, by an allow-list
//!          ├ postgresql.auto.conf             recovery         one marked block of recovery settings
//!          ├ postmaster.pid                   pidfile          who runs there
//!          └ base global pg_tblspc pg_wal     paths            what a name means: relation, temporary, excluded
//!             └ of a relation              page             its pages and their checksums
//! ```
//! Pure: bytes in, values or text out. No IO, no clock. Source of truth: PostgreSQL 13 to 18, `pg_control.h`,
//! `backup_manifest.c`, `xlogrecovery.c`, `guc-file.l`, `basebackup.c`, `checksum_impl.h`.

pub mod backup_manifest;
pub mod conf;
pub mod control;
pub mod copyconf;
pub mod label;
pub mod page;
pub mod paths;
pub mod pidfile;
pub mod recovery;

pub use backup_manifest::{ManifestReader, PgManifest};
pub use control::{ControlFile, DbState};
pub use label::{BackupLabel, TablespaceMap};
pub use pidfile::PidFile;
pub use recovery::RecoverySettings;
