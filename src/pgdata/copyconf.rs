//! The configuration of a copy, made from nothing: what recovery needs, and nothing that reaches the outside world.
//!
//! ```text
//!  from the control file   five settings that must not be smaller than the primary's, wal_level, commit timestamps
//!  from the source         locale, time zone, search configuration; preload libraries that exist here     (allow-list)
//!  ours                    no archiving, no listening, no synchronous standby, own port, socket, log
//!  everything else         PostgreSQL's defaults; the source's files are kept beside it, unused
//! ```
//! A copy that inherited its settings deleted the source's pid file, wrote into its log directory and ran its cleanup commands
//! (RECOVERY 23); so the list is of what is taken over, never of what is left out. `postgresql.auto.conf` of a copy holds the
//! recovery block alone. Access is by the socket, as the operating system's user says (peer). Pure.

use std::path::Path;

use super::conf::{QuoteError, quote_value};
use super::control::{ControlFile, WalLevel};
use crate::wal::{PgMajor, SegmentSize};

/// Longest path of a unix socket (`sun_path` with its NUL byte).
const MAX_SOCKET_PATH: usize = 107;

/// `DEFAULT_MIN_WAL_SEGS` and `DEFAULT_MAX_WAL_SEGS` of `xlog_internal.h`.
const INITDB_MIN_SEGMENTS: u64 = 5;
const INITDB_MAX_SEGMENTS: u64 = 64;

/// Settings of the source that a copy takes over if they work here: they change what a query returns or whether the server
/// starts, and reach nothing outside.
pub const TAKEN_OVER: &[&str] = &[
    "bytea_output",
    "datestyle",
    "default_text_search_config",
    "extra_float_digits",
    "intervalstyle",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "shared_preload_libraries",
    "session_preload_libraries",
    "standard_conforming_strings",
    "timezone",
    "xmlbinary",
    "xmloption",
];

/// Preload libraries whose workers act on their own, on other hosts too: a copy never loads them.
pub const NEVER_LOADED: &[&str] =
    &["bdr", "pg_cron", "pg_failover_slots", "pg_net", "pg_partman_bgw", "pglogical", "repmgr", "spock"];

/// What the host of the copy has.
pub trait Host {
    /// True if the server could load the library.
    fn has_library(&self, name: &str) -> bool;
    /// True if the operating system knows the locale.
    fn has_locale(&self, name: &str) -> bool;
}

/// Where a copy lives.
#[derive(Debug, Clone)]
pub struct CopyPlace<'a> {
    /// Port, which is part of the socket's name.
    pub port: u16,
    /// Directory of the socket, mode 0700.
    pub socket_dir: &'a Path,
    /// Directory of the log files.
    pub log_dir: &'a Path,
    /// Users of the operating system who may connect.
    pub os_users: &'a [&'a str],
    /// Roles that each of them may take, beside the one of the same name.
    pub roles: &'a [&'a str],
}

/// What the copy's configuration is made from.
pub struct CopySource<'a> {
    /// The restored control file.
    pub control: &'a ControlFile,
    /// The major version of the cluster.
    pub major: PgMajor,
    /// Settings of the source in effect, names in any case. Only [`TAKEN_OVER`] are looked at.
    pub settings: &'a [(String, String)],
    /// What is installed here.
    pub host: &'a dyn Host,
}

impl std::fmt::Debug for CopySource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopySource").field("control", self.control).field("settings", &self.settings).finish()
    }
}

/// The three files, and what the operator should be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyConfig {
    /// `postgresql.conf`.
    pub postgresql_conf: String,
    /// `pg_hba.conf`.
    pub pg_hba: String,
    /// `pg_ident.conf`.
    pub pg_ident: String,
    /// What of the source works only there, such as `shared_preload_libraries: timescaledb is not installed here`.
    pub left_out: Vec<String>,
}

/// Why a copy's configuration cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The socket's path would be longer than the operating system takes.
    #[error("the socket {0} would have a path of more than {MAX_SOCKET_PATH} bytes")]
    SocketPath(String),
    /// A directory that is relative or not UTF-8.
    #[error("{0:?} is not an absolute path in UTF-8")]
    Path(std::path::PathBuf),
    /// A value that no configuration file can hold.
    #[error("setting {name} cannot be written")]
    Value {
        /// The setting.
        name: String,
        /// Why.
        #[source]
        source: QuoteError,
    },
    /// A user or role that `pg_hba.conf` cannot name.
    #[error("{0:?} cannot be named in pg_ident.conf")]
    Role(String),
}

/// Makes the configuration of a copy.
///
/// # Errors
/// [`CopyError`] for places and names that cannot be written.
pub fn copy_config(source: &CopySource<'_>, place: &CopyPlace<'_>) -> Result<CopyConfig, CopyError> {
    let mut left_out = Vec::new();
    let mut settings = recovery_needs(source.control);
    settings.extend(taken_over(source, &mut left_out));
    settings.extend(isolation(source.major));
    settings.extend(location(place)?);
    let mut text = String::from(
        "# Configuration of a copy, written by pitr from nothing: no setting of the source is inherited but its locale,\n\
         # time zone and preload libraries. The source's own files are kept beside this one, unused.\n",
    );
    for (name, value) in settings {
        let quoted =
            quote_value(&value).map_err(|source| CopyError::Value { name: name.to_owned(), source })?;
        text.push_str(&format!("{name} = {quoted}\n"));
    }
    Ok(CopyConfig { postgresql_conf: text, pg_hba: hba(), pg_ident: ident(place)?, left_out })
}

type Setting = (&'static str, String);

fn recovery_needs(control: &ControlFile) -> Vec<Setting> {
    let on = |flag: bool| if flag { "on" } else { "off" }.to_owned();
    let mut settings: Vec<Setting> =
        control.required.by_name().into_iter().map(|(name, value)| (name, value.to_string())).collect();
    // A server cannot have WAL senders at level minimal, and a copy may become someone's primary.
    let level = control.wal_level.max(WalLevel::Replica);
    settings.extend([
        ("wal_level", level.to_string()),
        ("wal_log_hints", on(control.wal_log_hints)),
        ("track_commit_timestamp", on(control.track_commit_timestamp)),
        ("hot_standby", "on".to_owned()),
    ]);
    settings.extend(wal_sizes(control.segment_size));
    settings
}

/// What initdb derives from the segment size: with larger segments a server does not start on the built-in defaults.
fn wal_sizes(size: SegmentSize) -> Vec<Setting> {
    if size <= SegmentSize::DEFAULT {
        return Vec::new();
    }
    let segments = |n: u64| format!("{}MB", size.bytes().saturating_mul(n) >> 20);
    vec![("min_wal_size", segments(INITDB_MIN_SEGMENTS)), ("max_wal_size", segments(INITDB_MAX_SEGMENTS))]
}

fn taken_over(source: &CopySource<'_>, left_out: &mut Vec<String>) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for name in TAKEN_OVER {
        // The last one counts, as in the server's own files.
        let found = source.settings.iter().rev().find(|(theirs, _)| theirs.eq_ignore_ascii_case(name));
        let Some((_, value)) = found else { continue };
        let value = if name.ends_with("_preload_libraries") {
            libraries(name, value, source.host, left_out)
        } else if name.starts_with("lc_") && !value.is_empty() && !source.host.has_locale(value) {
            left_out.push(format!("{name}: locale {value} is not known here"));
            continue;
        } else {
            value.clone()
        };
        settings.push((name, value));
    }
    settings
}

/// The libraries of a list that exist here. Items may be in double quotes.
fn libraries(name: &str, list: &str, host: &dyn Host, left_out: &mut Vec<String>) -> String {
    let mut kept = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let library = item.trim_matches('"');
        let file_name = library.rsplit('/').next().unwrap_or(library);
        if NEVER_LOADED.contains(&file_name.strip_suffix(".so").unwrap_or(file_name)) {
            left_out.push(format!("{name}: {library} acts on its own and is never loaded by a copy"));
        } else if host.has_library(library) {
            kept.push(item);
        } else {
            left_out.push(format!("{name}: {library} is not installed here"));
        }
    }
    kept.join(", ")
}

/// Nothing goes out, nothing comes in, nothing of the source is touched.
fn isolation(major: PgMajor) -> Vec<Setting> {
    // external_pid_file is left out: its default is none, and an empty one makes every start complain.
    let mut settings = vec![("archive_mode", "off")];
    let empty = [
        "archive_command",
        "archive_cleanup_command",
        "recovery_end_command",
        "primary_conninfo",
        "primary_slot_name",
        "synchronous_standby_names",
        "listen_addresses",
    ];
    settings.extend(empty.map(|name| (name, "")));
    if major >= PgMajor::V15 {
        settings.push(("archive_library", ""));
    }
    // Subscriptions of the source would connect to their publishers and take their changes away.
    settings.push(("max_logical_replication_workers", "0"));
    settings.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

fn location(place: &CopyPlace<'_>) -> Result<Vec<Setting>, CopyError> {
    let socket_dir = absolute(place.socket_dir)?;
    let socket = format!("{socket_dir}/.s.PGSQL.{}", place.port);
    if socket.len() > MAX_SOCKET_PATH {
        return Err(CopyError::SocketPath(socket));
    }
    let log_dir = absolute(place.log_dir)?;
    Ok(vec![
        ("port", place.port.to_string()),
        // A list: commas and blanks of the path need its quotes.
        ("unix_socket_directories", format!("\"{}\"", socket_dir.replace('"', "\"\""))),
        ("unix_socket_permissions", "0700".to_owned()),
        ("logging_collector", "on".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("log_directory", log_dir.to_owned()),
        ("log_filename", "postgresql.log".to_owned()),
        ("log_rotation_age", "0".to_owned()),
        ("log_rotation_size", "0".to_owned()),
    ])
}

fn absolute(path: &Path) -> Result<&str, CopyError> {
    path.to_str().filter(|_| path.is_absolute()).ok_or_else(|| CopyError::Path(path.to_owned()))
}

fn hba() -> String {
    "# Of a copy, written by pitr: the socket alone, and who the operating system says it is.\n\
     local all         all peer map=pitr\n\
     local replication all peer map=pitr\n"
        .to_owned()
}

fn ident(place: &CopyPlace<'_>) -> Result<String, CopyError> {
    let mut text = String::from(
        "# Of a copy, written by pitr: users of the operating system and the roles they may take.\n",
    );
    for user in place.os_users {
        for role in std::iter::once(user).chain(place.roles.iter().filter(|role| *role != user)) {
            text.push_str(&format!("pitr {} {}\n", hba_token(user)?, hba_token(role)?));
        }
    }
    Ok(text)
}

/// Whether a user map can name the role.
pub fn is_role_of_a_map(name: &str) -> bool {
    hba_token(name).is_ok()
}

/// A name in double quotes, in which it means itself: no keyword, no regular expression, no list.
fn hba_token(name: &str) -> Result<String, CopyError> {
    // A slash begins a regular expression even in quotes; a quote is doubled only since 15.
    if name.is_empty() || name.starts_with('/') || name.contains(['"', '\n', '\r', '\0', '\\']) {
        return Err(CopyError::Role(name.to_owned()));
    }
    Ok(format!("\"{name}\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgdata::conf;

    struct Here;
    impl Host for Here {
        fn has_library(&self, name: &str) -> bool {
            name == "pg_stat_statements" || name == "auto explain"
        }
        fn has_locale(&self, name: &str) -> bool {
            name == "C.UTF-8"
        }
    }

    fn control() -> ControlFile {
        let mut file = vec![0; super::super::control::CONTROL_FILE_SIZE];
        file[8..12].copy_from_slice(&1300_u32.to_le_bytes());
        (file[48], file[52], file[180], file[184], file[196]) = (1, 1, 100, 8, 64);
        file[228..232].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        let crc = crc32c::crc32c(&file[..288]);
        file[288..292].copy_from_slice(&crc.to_le_bytes());
        ControlFile::parse(&file).unwrap()
    }

    fn made(settings: &[(&str, &str)], socket_dir: &str) -> Result<CopyConfig, CopyError> {
        let settings: Vec<_> = settings.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let control = control();
        let source = CopySource { control: &control, major: PgMajor::V15, settings: &settings, host: &Here };
        let place = CopyPlace {
            port: 5499,
            socket_dir: Path::new(socket_dir),
            log_dir: Path::new("/copy/log"),
            os_users: &["postgres", "root"],
            roles: &["postgres"],
        };
        copy_config(&source, &place)
    }

    #[test]
    fn nothing_is_inherited_but_the_allow_list() {
        let theirs = [
            ("external_pid_file", "/run/source.pid"),
            ("archive_cleanup_command", "rm -rf /"),
            ("log_directory", "/var/log"),
            ("synchronous_standby_names", "*"),
            ("shared_buffers", "64GB"),
            ("TimeZone", "UTC"),
            ("timezone", "Asia/Jakarta"),
            ("lc_messages", "id_ID"),
            ("lc_time", "C.UTF-8"),
            ("shared_preload_libraries", "pg_stat_statements, timescaledb,\"auto explain\",$libdir/pg_cron"),
        ];
        let config = made(&theirs, "/copy/socket").unwrap();
        let items = conf::parse(config.postgresql_conf.as_bytes()).unwrap();
        let value = |name: &str| {
            let of = items.iter().rev().find_map(|item| match &item.kind {
                conf::ItemKind::Setting { name: n, value } if n == name => Some(value.as_str()),
                _ => None,
            });
            of.map(str::to_owned)
        };
        for (name, want) in [
            ("external_pid_file", None),
            ("archive_cleanup_command", Some("")),
            ("archive_mode", Some("off")),
            ("log_directory", Some("/copy/log")),
            ("synchronous_standby_names", Some("")),
            ("shared_buffers", None),
            ("timezone", Some("Asia/Jakarta")),
            ("lc_messages", None),
            ("lc_time", Some("C.UTF-8")),
            ("shared_preload_libraries", Some("pg_stat_statements, \"auto explain\"")),
            ("max_connections", Some("100")),
            ("wal_level", Some("replica")),
            ("unix_socket_directories", Some("\"/copy/socket\"")),
        ] {
            assert_eq!(value(name).as_deref(), want, "{name}");
        }
        assert_eq!(
            config.left_out,
            [
                "lc_messages: locale id_ID is not known here",
                "shared_preload_libraries: timescaledb is not installed here",
                "shared_preload_libraries: $libdir/pg_cron acts on its own and is never loaded by a copy"
            ]
        );
    }

    #[test]
    fn segments_above_the_default_get_the_wal_sizes_that_a_server_of_them_needs() {
        let size = |mib: u64| wal_sizes(SegmentSize::new(mib << 20).unwrap());
        assert_eq!(size(1), []);
        assert_eq!(size(16), []);
        assert_eq!(size(64), [("min_wal_size", "320MB".to_owned()), ("max_wal_size", "4096MB".to_owned())]);
        assert_eq!(size(1024)[0].1, "5120MB");
    }

    #[test]
    fn users_of_the_host_map_to_the_named_roles() {
        let ident = made(&[], "/s").unwrap().pg_ident;
        let lines: Vec<_> = ident.lines().skip(1).collect();
        assert_eq!(
            lines,
            [r#"pitr "postgres" "postgres""#, r#"pitr "root" "root""#, r#"pitr "root" "postgres""#]
        );
        assert_eq!(hba_token("/x"), Err(CopyError::Role("/x".to_owned())));
    }

    #[test]
    fn places_that_cannot_work_are_refused() {
        assert!(matches!(made(&[], &format!("/{}", "s".repeat(93))), Err(CopyError::SocketPath(_))));
        assert!(made(&[], &format!("/{}", "s".repeat(92))).is_ok());
        assert!(matches!(made(&[], "socket"), Err(CopyError::Path(_))));
    }
}
