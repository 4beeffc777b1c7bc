//! What `init` and `check` ask a server: who it is, where it lives, how it archives.
//!
//! Settings come with their source, so that advice can say where a value was set. A role without `pg_read_all_settings` does not see
//! the data directory; that is `None`, not an error. Source of truth: `pg_settings`, `pg_control_system()`, `pg_stat_archiver`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::ops::failure;
use crate::pgwire::{ConnError, Sql};
use crate::wal::{PgMajor, SegmentName, SegmentSize, SystemId};

/// One setting of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its value, in the base unit.
    pub value: String,
    /// The file it was set in, where the role may know.
    pub file: Option<String>,
    /// A restart is waiting to change it.
    pub pending_restart: bool,
}

/// How archiving goes, by `pg_stat_archiver`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archiver {
    /// The last file that was archived.
    pub last_archived: Option<String>,
    /// Seconds since then.
    pub archived_ago: Option<u64>,
    /// The last file that failed.
    pub last_failed: Option<String>,
    /// Seconds since then.
    pub failed_ago: Option<u64>,
    /// Failures in all.
    pub failures: u64,
    /// The last thing that happened was a failure.
    pub failing: bool,
}

impl Archiver {
    /// The last file that was archived, if that was a segment.
    pub fn newest_segment(&self) -> Option<SegmentName> {
        self.last_archived.as_deref().and_then(|name| SegmentName::parse(name).ok())
    }
}

/// What a server says of itself.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Its major version.
    pub major: PgMajor,
    /// Its version as people write it.
    pub version: String,
    /// Its system identifier.
    pub system: SystemId,
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// Its data directory.
    pub data_dir: Option<PathBuf>,
    /// Where its programs are.
    pub bin_dir: Option<PathBuf>,
    /// Its time zone.
    pub timezone: String,
    /// True for a standby.
    pub in_recovery: bool,
    /// The role that asked is a superuser.
    pub superuser: bool,
    /// The settings that archiving depends on.
    pub settings: BTreeMap<String, Setting>,
    /// How archiving goes.
    pub archiver: Archiver,
}

/// Settings that are looked at.
const SETTINGS: &str = "'archive_mode','archive_command','archive_library','archive_timeout','wal_level','max_wal_senders',\
     'data_directory','TimeZone','wal_segment_size','server_version','server_version_num','hba_file','config_file','full_page_writes','fsync'";

impl ServerFacts {
    /// Asks the server.
    ///
    /// # Errors
    /// What the connection said, and a version that pitr does not know.
    pub async fn read(sql: &mut Sql) -> Result<Self> {
        let rows = sql
            .rows(&format!("select name, setting, sourcefile, pending_restart from pg_settings where name in ({SETTINGS})"), &[])
            .await
            .map_err(failed)?;
        let mut settings = BTreeMap::new();
        for row in rows {
            let mut columns = row.into_iter();
            let mut next = || columns.next().flatten();
            if let (Some(name), Some(value), file, pending) = (next(), next(), next(), next()) {
                settings
                    .insert(name, Setting { value, file, pending_restart: pending.as_deref() == Some("t") });
            }
        }
        let value = |name: &str| settings.get(name).map(|s| s.value.clone());
        let number: u32 = value("server_version_num").and_then(|v| v.parse().ok()).unwrap_or(0);
        let major = PgMajor::from_version_num(number).ok_or_else(|| {
            Error::refused(format!(
                "the server is PostgreSQL {}; pitr knows 13 to 18",
                value("server_version").unwrap_or_default()
            ))
        })?;
        let system = sql.one("select system_identifier from pg_control_system()").await.map_err(failed)?;
        let system = system.and_then(|s| s.parse::<i64>().ok()).map(|n| SystemId::new(n.cast_unsigned()));
        let segment = value("wal_segment_size").and_then(|v| v.parse().ok()).unwrap_or(0);
        let flag = async |sql: &mut Sql, text: &str| {
            Ok::<_, Error>(sql.one(text).await.map_err(failed)?.as_deref() == Some("t"))
        };
        let superuser = flag(sql, "select rolsuper from pg_roles where rolname = current_user").await?;
        let bin_dir = if superuser {
            sql.one("select setting from pg_config where name = 'BINDIR'").await.map_err(failed)?
        } else {
            None
        };
        Ok(Self {
            major,
            version: value("server_version").unwrap_or_default(),
            system: system.ok_or_else(|| Error::failed("the server did not tell its system identifier"))?,
            segment_size: SegmentSize::new(segment).map_err(|e| Error::failed(e.to_string()))?,
            data_dir: value("data_directory").map(PathBuf::from),
            bin_dir: bin_dir.map(PathBuf::from),
            timezone: value("TimeZone").unwrap_or_default(),
            in_recovery: flag(sql, "select pg_is_in_recovery()").await?,
            superuser,
            archiver: archiver(sql).await?,
            settings,
        })
    }

    /// The value of a setting; empty if the role does not see it.
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |s| s.value.as_str())
    }
}

async fn archiver(sql: &mut Sql) -> Result<Archiver> {
    let ago = |column: &str| format!("extract(epoch from clock_timestamp() - {column})::bigint");
    let statement = format!(
        "select last_archived_wal, {}, last_failed_wal, {}, failed_count, \
         coalesce(last_failed_time > last_archived_time, last_failed_time is not null) from pg_stat_archiver",
        ago("last_archived_time"),
        ago("last_failed_time")
    );
    let rows = sql.rows(&statement, &[]).await.map_err(failed)?;
    let Some(row) = rows.into_iter().next() else { return Ok(Archiver::default()) };
    let mut columns = row.into_iter();
    let mut next = || columns.next().flatten();
    let number = |text: Option<String>| {
        text.and_then(|t| t.parse::<i64>().ok()).map(|n| u64::try_from(n).unwrap_or(0))
    };
    Ok(Archiver {
        last_archived: next(),
        archived_ago: number(next()),
        last_failed: next(),
        failed_ago: number(next()),
        failures: number(next()).unwrap_or(0),
        failing: next().as_deref() == Some("t"),
    })
}

/// The error of a connection that failed.
pub fn failed(error: ConnError) -> Error {
    failure::of_server("cannot ask the server", error)
}
