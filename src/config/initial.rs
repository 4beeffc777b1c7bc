//! The configuration that `pitr init` writes: a commented TOML file with what was found on the host, and the rest as comments.
//!
//! Settings that equal their default are written as comments, so that a later default applies. The file is never rewritten by
//! pitr: it belongs to its reader. Invariant: [`Initial::render`] gives a text that [`super::Config::parse`] reads back to the same values
//! (tested for arbitrary paths and connection strings).

use std::path::Path;

use jiff::tz::TimeZone;

use super::defaults::SOCKET_ROOT;
use crate::repo::path::ClusterName;
use crate::target::zone_name;

/// What `init` found out.
#[derive(Debug, Clone)]
pub struct Initial<'a> {
    /// The cluster's name in the repository.
    pub cluster: &'a ClusterName,
    /// Zone of naive times; `None` leaves it to the user.
    pub timezone: Option<&'a TimeZone>,
    /// How to connect.
    pub conninfo: &'a str,
    /// The data directory.
    pub data_dir: Option<&'a Path>,
    /// Where `postgres` is.
    pub bin_dir: Option<&'a Path>,
    /// URL of the repository.
    pub url: &'a str,
    /// The promised recovery point objective, as a duration.
    pub rpo: &'a str,
    /// The host file of an encrypted cluster.
    pub host_file: Option<&'a Path>,
    /// Fingerprint of its seal key.
    pub seal_fingerprint: Option<&'a str>,
}

impl Initial<'_> {
    /// The file. Paths that are not UTF-8 are left out, as TOML cannot hold them.
    pub fn render(&self) -> String {
        let cluster = quoted(self.cluster.as_str());
        let zone = match self.timezone.filter(|zone| zone.iana_name().is_some()) {
            Some(zone) => format!("timezone = {}", quoted(&zone_name(zone))),
            None => "# timezone = \"Asia/Jakarta\"".to_owned(),
        };
        let path = |key: &str, path: Option<&Path>| match path.and_then(Path::to_str) {
            Some(path) => format!("{key} = {}", quoted(path)),
            None => format!("# {key} = \"\""),
        };
        let data_dir = path("data_dir", self.data_dir);
        let bin_dir = path("bin_dir", self.bin_dir);
        let keys = self.keys();
        let socket = quoted(&format!("{SOCKET_ROOT}/{}.sock", self.cluster));
        let (conninfo, url, rpo) = (quoted(self.conninfo), quoted(self.url), quoted(self.rpo));
        format!(
            "# Configuration of pitr. Lines that begin with # show defaults or examples.\n\
             # archive_command and restore_command name this file: keep its place.\n\
             \n\
             cluster  = {cluster}   # folder in the repository; one name per PostgreSQL cluster\n\
             # Zone of times without one, such as --to \"2025-10-17 10:30\". Without it such a time is refused.\n\
             {zone}\n\
             \n\
             [postgres]\n\
             conninfo = {conninfo}   # libpq keywords or URI; no password here, use .pgpass\n\
             {data_dir}\n\
             {bin_dir}\n\
             \n\
             [archive]\n\
             # compression = \"zstd\"   # zstd | none\n\
             # level       = 1\n\
             # push_ahead  = 8          # files that `pitr agent` has under way at once\n\
             # timeout     = \"60s\"     # base of each request's deadline\n\
             \n\
             # `pitr agent` makes archiving and recovery faster; it listens here.\n\
             # [agent]\n\
             # socket = {socket}\n\
             \n\
             [promise]                 # `check` measures against it\n\
             rpo = {rpo}                # most that may be lost\n\
             \n\
             {keys}\
             \n\
             [[repository]]\n\
             name = \"main\"\n\
             url  = {url}\n\
             # Any moment of the window can be restored; daily, weekly, monthly, yearly keep single backups for longer.\n\
             # Without retention everything is kept. See `pitr expire --dry-run`.\n\
             # retention = {{ window = \"7d\", daily = \"30d\" }}\n\
             \n\
             # A second repository, off the site. Credentials come from a file, because the server's environment has none.\n\
             # [[repository]]\n\
             # name     = \"cloud\"\n\
             # url      = \"s3://bucket/prefix\"\n\
             # required = false\n\
             # region   = \"us-east-1\"\n\
             # credentials_file = \"/etc/pitr/cloud.credentials\"   # mode 0600\n\
             # retention = {{ window = \"30d\", monthly = \"365d\" }}\n",
        )
    }

    fn keys(&self) -> String {
        match (self.host_file.and_then(Path::to_str), self.seal_fingerprint) {
            (Some(path), Some(fingerprint)) => format!(
                "[keys]                    # everything that holds data is encrypted; see `pitr key`\n\
                 host_file        = {}   # seals, opens nothing; mode 0600, the server's user's\n\
                 seal_fingerprint = {}\n\
                 # identity_file = \"/etc/pitr/daily.key\"   # opens: only for recovery, so only where that is to happen\n",
                quoted(path),
                quoted(fingerprint)
            ),
            _ => "# Encryption: `pitr key init` makes what is named here; it cannot be had later for the same URL.\n\
                  # [keys]\n\
                  # host_file = \"/etc/pitr/main.host\"\n"
                .to_owned(),
        }
    }
}

/// A basic string of TOML.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
