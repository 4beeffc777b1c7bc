//! The configuration: one TOML file, read into types, every mistake pointed at.
//!
//! ```text
//!  text ─► toml (spans) ─► Section: each key asked for once ─► Config
//!                               └─ what nobody asked for: "unknown key", line, column, the nearest key
//! ```
//! Invariants: [`Config::parse`] is pure and touches no file; paths are absolute, because PostgreSQL runs us inside its data
//! directory; cluster and repository names are safe as parts of keys; at least one repository is required. Defaults stand in
//! [`defaults`] and nowhere else. Names are those of INTERFACE: users script against them.

pub mod initial;
pub mod load;
mod read;
pub mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::error::{Error, Kind, Result};
use crate::repo::path::ClusterName;
use crate::repo::retention::DEFAULT_GRACE;
pub use crate::repo::retention::Policy as Retention;
use crate::seal::Fingerprint;
use crate::target::{self, TargetError};
use read::{Document, Section, nearest};

/// What holds where the file says nothing.
pub mod defaults {
    use std::time::Duration;

    /// `archive.level`: on WAL it packs as well as level 3, at more than twice the speed.
    pub const LEVEL: i32 = 1;
    /// `archive.push_ahead`.
    pub const PUSH_AHEAD: u32 = 8;
    /// `archive.timeout`: a request's deadline before its bytes are counted.
    pub const TIMEOUT: Duration = Duration::from_secs(60);
    /// `agent.tail_interval`.
    pub const TAIL_INTERVAL: Duration = Duration::from_secs(1);
    /// `agent.tail_size`.
    pub const TAIL_SIZE: u64 = 1024 * 1024;
    /// `promise.rpo`.
    pub const RPO: Duration = Duration::from_secs(5 * 60);
    /// `state_dir` is this and the cluster's name.
    pub const STATE_ROOT: &str = "/var/lib/pitr";
    /// `agent.socket` is this, the cluster's name and `.sock`.
    pub const SOCKET_ROOT: &str = "/run/pitr";
}

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, absolute; `None` if flags replace a file.
    pub path: Option<PathBuf>,
    /// [`fingerprint`] of the text that all of this was read from.
    pub fingerprint: String,
    /// Folder of the cluster in each repository.
    pub cluster: ClusterName,
    /// Zone of naive times.
    pub timezone: Option<TimeZone>,
    /// Disposable cache.
    pub state_dir: PathBuf,
    /// `[postgres]`.
    pub postgres: PostgresConfig,
    /// `[archive]`.
    pub archive: ArchiveConfig,
    /// `[agent]`.
    pub agent: AgentConfig,
    /// `[promise]`.
    pub promise: PromiseConfig,
    /// `[keys]`; `None`: nothing is encrypted.
    pub keys: Option<KeysConfig>,
    /// `[[repository]]`, in the order of the file, at least one.
    pub repositories: Vec<RepositoryConfig>,
}

/// `[keys]`: what opens and seals an encrypted repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeysConfig {
    /// What a host seals with; it opens nothing.
    pub host_file: Option<PathBuf>,
    /// What opens: for recovery, never needed to archive or to back up.
    pub identity_file: Option<PathBuf>,
    /// Fingerprint of the seal key: what the recovery kit prints.
    pub seal_fingerprint: Option<Fingerprint>,
}

/// `[postgres]`: the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PostgresConfig {
    /// libpq keywords or a URI; `None`: the socket, user postgres.
    pub conninfo: Option<String>,
    /// The data directory; `None`: the server is asked.
    pub data_dir: Option<PathBuf>,
    /// Where `postgres` itself is, for what starts a server.
    pub bin_dir: Option<PathBuf>,
}

/// How WAL and backups are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// zstd at a level from 1 to 19.
    Zstd(i32),
    /// Not at all.
    None,
}

/// `[archive]`: how WAL is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// `compression` and `level`.
    pub compression: Compression,
    /// Segments stored ahead of being asked for.
    pub push_ahead: u32,
    /// Base of each request's deadline.
    pub timeout: Duration,
}

/// `[agent]`: the resident process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// Stream WAL too.
    pub receive: bool,
    /// Name of the replication slot.
    pub slot: String,
    /// Longest wait before new WAL is stored.
    pub tail_interval: Duration,
    /// Most WAL that waits.
    pub tail_size: u64,
    /// Socket of push and get.
    pub socket: PathBuf,
    /// Address of metrics, health and status page; `None`: not served.
    pub listen: Option<SocketAddr>,
}

/// `[promise]`: what status, alerts and reports measure against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromiseConfig {
    /// Most that may be lost, in time.
    pub rpo: Duration,
    /// Longest time a recovery may take; `None`: not promised.
    pub rto: Option<Duration>,
}

/// `[[repository]]`: one place where the bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// Its name here; the repository itself does not know it.
    pub name: String,
    /// `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
    pub url: String,
    /// WAL is acknowledged only when it is here.
    pub required: bool,
    /// Server of an S3-compatible store.
    pub endpoint: Option<String>,
    /// Region of the bucket.
    pub region: Option<String>,
    /// Allow an endpoint without TLS.
    pub allow_http: bool,
    /// Further CA certificates, PEM.
    pub ca_file: Option<PathBuf>,
    /// Credentials, because the server's environment has none.
    pub credentials_file: Option<PathBuf>,
    /// Where tails go if this bucket locks its objects.
    pub tail_url: Option<String>,
    /// Use a store without conditional creates, DEGRADED.
    pub allow_unsafe_store: bool,
    /// False: this repository is not encrypted, though there are `[keys]`.
    pub sealed: bool,
    /// What is kept; `None`: everything.
    pub retention: Option<Retention>,
}

/// Names a configuration by its text, so that two processes can tell whether they go by the same one.
pub fn fingerprint(text: &[u8]) -> String {
    blake3::hash(text).to_hex().chars().take(32).collect()
}

/// The same where flags stand for a file.
pub fn fingerprint_of_flags(urls: &[String], cluster: &str) -> String {
    fingerprint(format!("{urls:?} {cluster}").as_bytes())
}

impl Config {
    /// Reads the text of a configuration file; `path` is what errors name.
    ///
    /// # Errors
    /// [`Kind::Usage`] with line, column and advice.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let document = Document::new(text, &shown);
        let table = document.table()?;
        let mut top = Section::top(&document, &table);
        let cluster: ClusterName =
            top.required("cluster", |name| name.parse().map_err(|e| format!("{e}")))?;
        let timezone = top.text("timezone", |name| target::named(name).map_err(|e| two_lines(&e)))?;
        let state_dir = top.path("state_dir")?;
        let config = Self {
            path: Some(path.to_owned()),
            timezone,
            fingerprint: fingerprint(text.as_bytes()),
            state_dir: state_dir.unwrap_or_else(|| Path::new(defaults::STATE_ROOT).join(cluster.as_str())),
            postgres: postgres(&mut top)?,
            archive: archive(&mut top)?,
            agent: agent(&mut top, &cluster)?,
            promise: promise(&mut top)?,
            keys: keys(&mut top)?,
            repositories: repositories(&mut top)?,
            cluster,
        };
        top.finish()?;
        Ok(config)
    }

    /// What `--repository URL --cluster NAME` stands for where there is no file.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a name or URL that cannot be one, or no URL at all.
    pub fn without_file(urls: &[String], cluster: &str) -> Result<Self> {
        let cluster: ClusterName = cluster.parse().map_err(|e| Error::usage(format!("--cluster: {e}")))?;
        let mut repositories = Vec::new();
        for (index, url) in urls.iter().enumerate() {
            let url = repository_url(url).map_err(|why| {
                Error::usage(format!("--repository: {why}"))
                    .hint("such as --repository file:///var/backups/pitr, or s3://bucket/prefix")
            })?;
            let name = if index == 0 { "repository".to_owned() } else { format!("repository{}", index + 1) };
            repositories.push(RepositoryConfig::new(name, url));
        }
        if repositories.is_empty() {
            return Err(
                Error::usage("no repository is given").hint("give --repository URL, or --config FILE")
            );
        }
        Ok(Self {
            path: None,
            fingerprint: fingerprint_of_flags(urls, cluster.as_str()),
            timezone: None,
            state_dir: Path::new(defaults::STATE_ROOT).join(cluster.as_str()),
            postgres: PostgresConfig::default(),
            archive: ArchiveConfig::default(),
            agent: AgentConfig::of(&cluster),
            promise: PromiseConfig::default(),
            keys: None,
            repositories,
            cluster,
        })
    }

    /// The repository called `name`.
    ///
    /// # Errors
    /// [`Kind::Usage`] naming the nearest one.
    pub fn repository(&self, name: &str) -> Result<&RepositoryConfig> {
        let found = self.repositories.iter().find(|repository| repository.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.repositories.iter().map(|r| r.name.as_str()).collect();
            let error = Error::usage(format!("no repository is called {name:?}"));
            match nearest(name, &names) {
                Some(near) => error.hint(format!("did you mean {near:?}?")),
                None => error.hint(format!("there are: {}", names.join(", "))),
            }
        })
    }

    /// True if the file itself holds a secret, and must not be readable by others.
    pub fn holds_secret(&self) -> bool {
        self.postgres.conninfo.as_deref().is_some_and(holds_password)
    }
}

/// A password in a connection string: as a keyword, or between the user and the host of a URI.
pub fn holds_password(conninfo: &str) -> bool {
    let in_authority = conninfo.split_once("://").is_some_and(|(_, rest)| {
        let authority = rest.split(['/', '?']).next().unwrap_or("");
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    });
    let text = decoded(conninfo).to_ascii_lowercase();
    // `require_auth=password` has none.
    in_authority || text.split("password").skip(1).any(|rest| rest.trim_start().starts_with('='))
}

/// The text with all `%41` in it decoded, as in a URI.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match digits {
            Some(byte) => {
                decoded.push(char::from(byte));
                decoded.push_str(part.get(2..).unwrap_or_default());
            }
            None => {
                decoded.push('%');
                decoded.push_str(part);
            }
        }
    }
    decoded
}

impl Default for ArchiveConfig {
    fn default() -> Self {
        Self {
            compression: Compression::Zstd(defaults::LEVEL),
            push_ahead: defaults::PUSH_AHEAD,
            timeout: defaults::TIMEOUT,
        }
    }
}

impl AgentConfig {
    /// The agent of a cluster without `[agent]`.
    fn of(cluster: &ClusterName) -> Self {
        Self {
            receive: true,
            slot: format!("pitr_{}", cluster.as_str().replace('-', "_")),
            tail_interval: defaults::TAIL_INTERVAL,
            tail_size: defaults::TAIL_SIZE,
            socket: Path::new(defaults::SOCKET_ROOT).join(format!("{cluster}.sock")),
            listen: None,
        }
    }
}

impl Default for PromiseConfig {
    fn default() -> Self {
        Self { rpo: defaults::RPO, rto: None }
    }
}

impl RepositoryConfig {
    /// A required repository with nothing but a name and a URL.
    fn new(name: String, url: String) -> Self {
        Self {
            name,
            url,
            required: true,
            endpoint: None,
            region: None,
            allow_http: false,
            ca_file: None,
            credentials_file: None,
            tail_url: None,
            allow_unsafe_store: false,
            sealed: true,
            retention: None,
        }
    }
}

fn postgres(top: &mut Section<'_>) -> Result<PostgresConfig> {
    let Some(mut section) = top.section("postgres")? else { return Ok(PostgresConfig::default()) };
    let postgres = PostgresConfig {
        conninfo: section.text("conninfo", |text| Ok(text.to_owned()))?,
        data_dir: section.path("data_dir")?,
        bin_dir: section.path("bin_dir")?,
    };
    section.finish()?;
    Ok(postgres)
}

fn archive(top: &mut Section<'_>) -> Result<ArchiveConfig> {
    let Some(mut section) = top.section("archive")? else { return Ok(ArchiveConfig::default()) };
    let packed = section.text("compression", |name| match name {
        "zstd" => Ok(true),
        "none" => Ok(false),
        _ => Err("is neither \"zstd\" nor \"none\"".to_owned()),
    })?;
    let level = section.integer("level", 1..=19)?;
    let level = level.and_then(|level| i32::try_from(level).ok()).unwrap_or(defaults::LEVEL);
    let push_ahead = section.integer("push_ahead", 0..=64)?;
    let archive = ArchiveConfig {
        compression: if packed.unwrap_or(true) { Compression::Zstd(level) } else { Compression::None },
        push_ahead: push_ahead.and_then(|n| u32::try_from(n).ok()).unwrap_or(defaults::PUSH_AHEAD),
        timeout: section
            .duration("timeout", Duration::from_secs(1)..=Duration::from_secs(3600))?
            .unwrap_or(defaults::TIMEOUT),
    };
    section.finish()?;
    Ok(archive)
}

fn agent(top: &mut Section<'_>, cluster: &ClusterName) -> Result<AgentConfig> {
    let default = AgentConfig::of(cluster);
    let Some(mut section) = top.section("agent")? else { return Ok(default) };
    let agent = AgentConfig {
        receive: section.flag("receive")?.unwrap_or(default.receive),
        slot: section.text("slot", slot_name)?.unwrap_or(default.slot),
        tail_interval: section
            .duration("tail_interval", Duration::from_millis(100)..=Duration::from_secs(3600))?
            .unwrap_or(default.tail_interval),
        tail_size: section.size("tail_size", 8192..=64 << 20)?.unwrap_or(default.tail_size),
        socket: section.path("socket")?.unwrap_or(default.socket),
        listen: section.text("listen", |text| {
            text.parse().map_err(|_| "is not an address and a port such as 127.0.0.1:9432".to_owned())
        })?,
    };
    section.finish()?;
    Ok(agent)
}

/// A name that PostgreSQL takes for a slot.
fn slot_name(text: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits { Ok(text.to_owned()) } else { Err("is not a slot's name: 1 to 63 of a-z, 0-9 and _".to_owned()) }
}

fn promise(top: &mut Section<'_>) -> Result<PromiseConfig> {
    const LONGEST: Duration = Duration::from_secs(366 * 86_400);
    let Some(mut section) = top.section("promise")? else { return Ok(PromiseConfig::default()) };
    let promise = PromiseConfig {
        rpo: section.duration("rpo", Duration::from_secs(1)..=LONGEST)?.unwrap_or(defaults::RPO),
        rto: section.duration("rto", Duration::from_secs(1)..=LONGEST)?,
    };
    section.finish()?;
    Ok(promise)
}

fn keys(top: &mut Section<'_>) -> Result<Option<KeysConfig>> {
    let Some(mut section) = top.section("keys")? else { return Ok(None) };
    let keys = KeysConfig {
        host_file: section.path("host_file")?,
        identity_file: section.path("identity_file")?,
        seal_fingerprint: section.text("seal_fingerprint", |text| {
            text.parse().map_err(|_| "is not a fingerprint of 64 hexadecimal digits".to_owned())
        })?,
    };
    section.finish()?;
    Ok(Some(keys))
}

fn repositories(top: &mut Section<'_>) -> Result<Vec<RepositoryConfig>> {
    let mut repositories: Vec<RepositoryConfig> = Vec::new();
    for mut section in top.sections("repository")? {
        let repository = repository(&mut section)?;
        if repositories.iter().any(|other| other.name == repository.name) {
            return Err(section.fault_at("name", "is the name of another repository too"));
        }
        if repositories
            .iter()
            .any(|other| other.url == repository.url && other.endpoint == repository.endpoint)
        {
            return Err(section.fault_at("url", "is the place of another repository too"));
        }
        section.finish()?;
        repositories.push(repository);
    }
    if repositories.is_empty() {
        return Err(top
            .fault("no [[repository]] is configured")
            .hint("add one:\n[[repository]]\nname = \"local\"\nurl = \"file:///var/backups/pitr\""));
    }
    if !repositories.iter().any(|repository| repository.required) {
        return Err(top
            .fault("no repository is required, so WAL would be acknowledged without being stored")
            .hint("leave `required` out of at least one [[repository]]"));
    }
    Ok(repositories)
}

fn repository(section: &mut Section<'_>) -> Result<RepositoryConfig> {
    let name = section.required("name", repository_name)?;
    let url = section.required("url", repository_url)?;
    let repository = RepositoryConfig {
        required: section.flag("required")?.unwrap_or(true),
        endpoint: section.text("endpoint", endpoint)?,
        region: section.text("region", |text| Ok(text.to_owned()))?,
        allow_http: section.flag("allow_http")?.unwrap_or(false),
        ca_file: section.path("ca_file")?,
        credentials_file: section.path("credentials_file")?,
        tail_url: section.text("tail_url", repository_url)?,
        allow_unsafe_store: section.flag("allow_unsafe_store")?.unwrap_or(false),
        sealed: section.flag("sealed")?.unwrap_or(true),
        retention: retention(section)?,
        ..RepositoryConfig::new(name, url)
    };
    if repository.endpoint.as_deref().is_some_and(|e| e.starts_with("http://")) && !repository.allow_http {
        return Err(section
            .fault_at("endpoint", "is not encrypted")
            .hint("use https://, or write allow_http = true if the network is trusted"));
    }
    Ok(repository)
}

fn repository_name(text: &str) -> Result<String, String> {
    // The rule of cluster names, as both are typed on command lines and written into restore_command.
    text.parse::<ClusterName>().map(|_| text.to_owned()).map_err(|_| {
        "is not a repository's name: 1 to 40 of a-z, 0-9, _ and -, not starting with _ or -".to_owned()
    })
}

fn repository_url(text: &str) -> Result<String, String> {
    let known = ["file:///", "s3://", "gs://", "az://", "memory:"];
    let Some(scheme) = known.iter().find(|scheme| text.starts_with(**scheme)) else {
        return Err(format!(
            "{text:?} is not file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
        ));
    };
    if text.len() == scheme.len() && *scheme != "memory:" {
        return Err(format!("{text:?} names no place"));
    }
    if *scheme != "file:///" && text.contains(['@', '?', '#', ' ']) {
        return Err(
            "has a character that no bucket or prefix may have; secrets belong into credentials_file"
                .to_owned(),
        );
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn endpoint(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(host) if !host.is_empty() && !host.contains(['@', ' ', '?', '#']) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err("is not a server such as https://s3.example.com:9000".to_owned()),
    }
}

fn retention(section: &mut Section<'_>) -> Result<Option<Retention>> {
    const LONGEST: Duration = Duration::from_secs(1000 * 366 * 86_400);
    let Some(mut inner) = section.section("retention")? else { return Ok(None) };
    let mut read = |key| inner.duration(key, Duration::ZERO..=LONGEST);
    let retention = Retention {
        window: read("window")?.unwrap_or_default(),
        daily: read("daily")?.unwrap_or_default(),
        weekly: read("weekly")?.unwrap_or_default(),
        monthly: read("monthly")?.unwrap_or_default(),
        yearly: read("yearly")?.unwrap_or_default(),
        grace: read("grace")?.unwrap_or(DEFAULT_GRACE),
    };
    inner.finish()?;
    if retention.keeps_nothing() {
        return Err(section
            .fault_at("retention", "keeps nothing")
            .hint("give it a window such as \"7d\", or leave retention out to keep everything"));
    }
    Ok(Some(retention))
}

/// The two parts of an error for a place that has one.
fn two_lines(error: &TargetError) -> String {
    format!("{}; {}", error.message, error.hint)
}

impl From<TargetError> for Error {
    fn from(error: TargetError) -> Self {
        Self::new(Kind::Usage, error.message).hint(error.hint)
    }
}

#[cfg(test)]
mod tests;
