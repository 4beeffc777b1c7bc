//! What a running server says about itself, read over a plain SQL session for the checks and for the [`Catalogue`].
//!
//! Every statement works with the rights of a backup role (REPLICATION and pg_monitor) or less; what needs more is asked for one by one,
//! and a refusal becomes a line in `missing` instead of an error. Values travel as text.
//! Source of truth: facts/wal-recovery 12; `system_views.sql` of PostgreSQL 13 to 18.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::catalogue::{Catalogue, ConfigFile, ConfigRole, Database, Extension, Setting, TablespaceName};
use crate::error::{Error, Result};
use crate::ops::failure;
use crate::pgdata::page::PageLayout;
use crate::pgwire::{ConnError, Sql};
use crate::wal::{Lsn, PgTime, TimelineId};

/// What else may speak PostgreSQL's protocol.
const NOT_A_SERVER: &str = "connect to the server itself, not through a pooler or a proxy";

/// Most bytes of one configuration file that are kept.
const MOST_FILE_BYTES: u64 = 1 << 20;
/// Most configuration files that are kept.
const MOST_FILES: usize = 64;

/// A row of text.
type Cells = Vec<Option<String>>;

/// What the checks need to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerFacts {
    /// `server_version_num`.
    pub(super) version_num: u32,
    /// The server is a standby, or still recovers.
    pub(super) in_recovery: bool,
    /// How relations are cut into pages, if `data_checksums` is on.
    pub(super) pages: Option<PageLayout>,
    /// `archive_mode`.
    pub(super) archive_mode: String,
    /// `archive_command`.
    pub(super) archive_command: String,
    /// `archive_library`, 15 and later.
    pub(super) archive_library: String,
    /// `wal_level`.
    pub(super) wal_level: String,
    /// `full_page_writes`.
    pub(super) full_page_writes: bool,
    /// The data directory, if this role may know it.
    pub(super) data_directory: Option<PathBuf>,
}

/// Moment and place of the server, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// Every commit up to this time has its record before `lsn`. The server's clock on a primary, the last replayed commit on a standby.
    pub(super) time: PgTime,
    /// Where WAL was written to (primary) or replayed to (standby) just after.
    pub(super) lsn: Lsn,
}

/// Runs one statement that answers with rows.
pub(super) async fn rows(sql: &mut Sql, statement: &str) -> Result<Vec<Cells>> {
    sql.rows(statement, &[]).await.map_err(connection)
}

/// A failed connection or statement as the program's error.
pub(super) fn connection(error: ConnError) -> Error {
    failure::of_server("the server cannot be asked", error)
}

async fn one_row(sql: &mut Sql, statement: &str) -> Result<Cells> {
    let found = rows(sql, statement).await?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| Error::failed("the server answered a query without a row").hint(NOT_A_SERVER))
}

fn text(row: &Cells, column: usize) -> String {
    row.get(column).cloned().flatten().unwrap_or_default()
}

fn maybe(row: &Cells, column: usize) -> Option<String> {
    row.get(column).cloned().flatten()
}

fn number<T: std::str::FromStr>(row: &Cells, column: usize, what: &str) -> Result<T> {
    let found = text(row, column);
    found.parse().map_err(|_| {
        Error::failed(format!("the server's {what} is {found:?}, which is no number")).hint(NOT_A_SERVER)
    })
}

/// A literal that no setting of the session can misread.
pub(super) fn quoted(value: &str) -> String {
    format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Reads what the checks need.
pub(super) async fn server(sql: &mut Sql) -> Result<ServerFacts> {
    let row = one_row(
        sql,
        "SELECT current_setting('server_version_num'), pg_is_in_recovery(), current_setting('data_checksums'), \
         current_setting('archive_mode'), current_setting('archive_command'), \
         current_setting('archive_library', true), current_setting('wal_level'), \
         current_setting('full_page_writes'), \
         (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'), \
         current_setting('block_size'), \
         (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'segment_size')",
    )
    .await?;
    let pages = match text(&row, 2).as_str() {
        "on" => Some(layout(&row)?),
        _ => None,
    };
    Ok(ServerFacts {
        version_num: number(&row, 0, "version")?,
        in_recovery: text(&row, 1) == "t",
        pages,
        archive_mode: text(&row, 3),
        archive_command: text(&row, 4),
        archive_library: text(&row, 5),
        wal_level: text(&row, 6),
        full_page_writes: text(&row, 7) == "on",
        data_directory: maybe(&row, 8).map(PathBuf::from),
    })
}

/// Block size and blocks per file, columns 9 and 10.
fn layout(row: &Cells) -> Result<PageLayout> {
    let (block, blocks) = (number(row, 9, "block size")?, number(row, 10, "segment size of relations")?);
    PageLayout::new(block, blocks).ok_or_else(|| {
        Error::failed(format!("the server has pages of {block} bytes, {blocks} to a file, which cannot be"))
    })
}

/// Reads clock and WAL position. A backend takes the time of its commit a moment before it writes the record: between our two
/// readings lies time enough for that, so a commit with an earlier time cannot have its record after the position.
pub(super) async fn sample(sql: &mut Sql, in_recovery: bool) -> Result<Option<Sample>> {
    let statement = if in_recovery {
        "SELECT (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint, NULL, \
         pg_last_wal_replay_lsn()"
    } else {
        "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, pg_sleep(0.1), \
         pg_current_wal_insert_lsn()"
    };
    let row = one_row(sql, statement).await?;
    let (Some(micros), Some(lsn)) = (maybe(&row, 0), maybe(&row, 2)) else { return Ok(None) };
    match (micros.parse(), lsn.parse()) {
        (Ok(micros), Ok(lsn)) => Ok(Some(Sample { time: PgTime::from_unix_micros(micros), lsn })),
        _ => Ok(None),
    }
}

/// The server's clock.
pub(super) async fn clock(sql: &mut Sql) -> Result<Timestamp> {
    let row = one_row(sql, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?;
    let micros = number(&row, 0, "clock")?;
    Timestamp::from_microsecond(micros)
        .map_err(|error| Error::failed("the server's clock is out of range").source(error))
}

/// Redo position of the control file's checkpoint: on a standby nothing before it is needed by a backup that starts now.
pub(super) async fn control_redo(sql: &mut Sql) -> Result<(Lsn, TimelineId)> {
    let row = one_row(sql, "SELECT redo_lsn, timeline_id FROM pg_control_checkpoint()").await?;
    let timeline = TimelineId::new(number(&row, 1, "timeline")?);
    let timeline = timeline.ok_or_else(|| Error::failed("the server's control file names timeline 0"))?;
    Ok((number(&row, 0, "redo position")?, timeline))
}

/// Where the server writes now, if it is no standby.
pub(super) async fn write_position(sql: &mut Sql) -> Result<Lsn> {
    let row = one_row(sql, "SELECT pg_current_wal_lsn()").await?;
    number(&row, 0, "write position")
}

/// Closes the current segment; `false` if this role may not.
pub(super) async fn switch_segment(sql: &mut Sql) -> bool {
    rows(sql, "SELECT pg_switch_wal()").await.is_ok()
}

/// What the archiver says about itself, in one line.
pub(super) async fn archiver(sql: &mut Sql) -> Result<String> {
    let row = one_row(
        sql,
        "SELECT archived_count, last_archived_wal, failed_count, last_failed_wal, last_failed_time, \
         last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_catalog.pg_stat_archiver",
    )
    .await?;
    let last = maybe(&row, 1).map_or_else(String::new, |wal| format!(", the last {wal}"));
    let archived = format!("archived {} files{last}", text(&row, 0));
    Ok(match maybe(&row, 3) {
        Some(wal) if text(&row, 5) == "t" => {
            format!("{archived}; it fails: {wal} at {} ({} failures)", text(&row, 4), text(&row, 2))
        }
        _ => archived,
    })
}

/// Whether the copy marker lies in the data directory; `None` if this role may not look.
pub(super) async fn has_file(sql: &mut Sql, name: &str) -> Option<bool> {
    let statement = format!("SELECT size FROM pg_stat_file({}, true)", quoted(name));
    let found = rows(sql, &statement).await.ok()?;
    Some(found.first().is_some_and(|row| maybe(row, 0).is_some()))
}

/// Reads the catalogue. A part that cannot be read is named in `missing`.
pub(super) async fn catalogue(sql: &mut Sql, facts: &ServerFacts, local: Option<&Path>) -> Result<Catalogue> {
    let row = one_row(
        sql,
        "SELECT version(), current_setting('TimeZone'), current_setting('log_timezone'), current_database(), \
         (SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10)",
    )
    .await?;
    let mut catalogue = Catalogue {
        version: text(&row, 0),
        version_num: facts.version_num,
        data_directory: facts.data_directory.as_ref().map(|dir| dir.display().to_string()),
        timezone: text(&row, 1),
        log_timezone: text(&row, 2),
        connected_to: text(&row, 3),
        superuser: maybe(&row, 4),
        databases: databases(sql, facts.version_num).await?,
        tablespaces: tablespaces(sql).await?,
        extensions: extensions(sql).await?,
        settings: settings(sql).await?,
        ..Catalogue::default()
    };
    files(sql, &mut catalogue, facts.data_directory.as_deref().or(local)).await?;
    Ok(catalogue)
}

async fn databases(sql: &mut Sql, version_num: u32) -> Result<Vec<Database>> {
    let (provider, locale, version) = match version_num / 10_000 {
        ..=14 => ("'c'", "NULL", "NULL"),
        15 | 16 => ("datlocprovider", "daticulocale", "datcollversion"),
        _ => ("datlocprovider", "datlocale", "datcollversion"),
    };
    let statement = format!(
        "SELECT oid, datname, pg_encoding_to_char(encoding), datcollate, datctype, {provider}, {locale}, {version}, \
         datallowconn, dattablespace FROM pg_catalog.pg_database ORDER BY oid"
    );
    let mut found = Vec::new();
    for row in rows(sql, &statement).await? {
        found.push(Database {
            oid: number(&row, 0, "database OID")?,
            name: text(&row, 1),
            encoding: text(&row, 2),
            collate: text(&row, 3),
            ctype: text(&row, 4),
            provider: text(&row, 5),
            locale: maybe(&row, 6),
            collation_version: maybe(&row, 7),
            connectable: text(&row, 8) == "t",
            tablespace: number(&row, 9, "tablespace OID")?,
        });
    }
    Ok(found)
}

async fn tablespaces(sql: &mut Sql) -> Result<Vec<TablespaceName>> {
    let statement = "SELECT oid, spcname, pg_tablespace_location(oid) FROM pg_catalog.pg_tablespace \
                     WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";
    let mut found = Vec::new();
    for row in rows(sql, statement).await? {
        let oid = number(&row, 0, "tablespace OID")?;
        found.push(TablespaceName { oid, name: text(&row, 1), location: text(&row, 2) });
    }
    Ok(found)
}

async fn extensions(sql: &mut Sql) -> Result<Vec<Extension>> {
    let found = rows(sql, "SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY extname").await?;
    Ok(found.iter().map(|row| Extension { name: text(row, 0), version: text(row, 1) }).collect())
}

async fn settings(sql: &mut Sql) -> Result<Vec<Setting>> {
    // What the client sent (`session`, `client`) says nothing about the server.
    let statement = "SELECT name, setting, unit, source, sourcefile, sourceline FROM pg_catalog.pg_settings \
                     WHERE source NOT IN ('default', 'client', 'session', 'interactive', 'test') ORDER BY name";
    let found = rows(sql, statement).await?;
    let setting = |row: &Cells| Setting {
        name: text(row, 0),
        value: text(row, 1),
        unit: maybe(row, 2),
        source: text(row, 3),
        file: maybe(row, 4),
        line: maybe(row, 5).and_then(|line| line.parse().ok()),
    };
    Ok(found.iter().map(setting).collect())
}

/// The configuration files that the server names, then those its settings were included from.
async fn files(sql: &mut Sql, catalogue: &mut Catalogue, data_dir: Option<&Path>) -> Result<()> {
    let statement = "SELECT name, setting FROM pg_catalog.pg_settings \
                     WHERE name IN ('config_file', 'hba_file', 'ident_file') AND setting <> '' ORDER BY name";
    let mut wanted: Vec<(ConfigRole, String)> = Vec::new();
    for row in rows(sql, statement).await? {
        let role = match text(&row, 0).as_str() {
            "config_file" => ConfigRole::Config,
            "hba_file" => ConfigRole::Hba,
            _ => ConfigRole::Ident,
        };
        wanted.push((role, text(&row, 1)));
    }
    if wanted.is_empty() {
        let why = "configuration files: this role may not know where they are (grant it pg_monitor)";
        catalogue.missing.push(why.to_owned());
    }
    for file in catalogue.settings.iter().filter_map(|setting| setting.file.as_ref()) {
        if wanted.len() < MOST_FILES && !wanted.iter().any(|(_, path)| path == file) {
            wanted.push((ConfigRole::Included, file.clone()));
        }
    }
    for (role, path) in wanted {
        let text = match read_file(sql, Path::new(&path)).await {
            Ok(text) => Some(text),
            Err(why) => {
                catalogue.missing.push(format!("{path}: {why}"));
                None
            }
        };
        let in_data_directory = data_dir.is_some_and(|dir| Path::new(&path).starts_with(dir));
        catalogue.files.push(ConfigFile { role, path, in_data_directory, text });
    }
    Ok(())
}

/// Reads a file of the server: through the server if the role may, else from this host's disk if it is there.
async fn read_file(sql: &mut Sql, path: &Path) -> std::result::Result<String, String> {
    let statement = format!(
        "SELECT encode(pg_read_binary_file({}, 0, {MOST_FILE_BYTES}), 'hex')",
        quoted(&path.display().to_string())
    );
    let refused = match rows(sql, &statement).await {
        Ok(found) => {
            let hex = found.first().map(|row| text(row, 0)).unwrap_or_default();
            let bytes = crate::codec::unhex(&hex).ok_or("the server's answer is not hexadecimal")?;
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        Err(refused) => refused,
    };
    let too_large = |len: u64| len > MOST_FILE_BYTES;
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && !too_large(meta.len()) => std::fs::read(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|error| error.to_string()),
        Ok(_) => Err("it is no file of a usual size".to_owned()),
        Err(_) => Err(format!("the server refuses ({refused}), and it is not on this host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_cannot_be_broken_out_of() {
        assert_eq!(quoted(r"a'b\'c"), r"E'a''b\\''c'");
    }
}
