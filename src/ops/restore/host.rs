//! This host: which PostgreSQL it has, what a copy can load here, and how the restored server is started.
//!
//! Nothing here decides what is restored; it decides what is warned of and what is printed. Programs that are asked (`postgres
//! --version`, `locale -a`, `getconf`) are asked with a bound on nothing but their exit: they print a line and end.
//! Source of truth: RECOVERY.md 23 to 25; Debian's `postgresql-common` for its layout.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Uid;

use crate::account::Account;
use crate::durable::Owner;
use crate::error::{Error, Result};
use crate::ops::backup::catalogue::Catalogue;
use crate::pgdata::conf::quote_shell;
use crate::pgdata::copyconf;
use crate::wal::PgMajor;

/// Ports that a copy is offered: the first free one of these.
const COPY_PORTS: std::ops::RangeInclusive<u16> = 5433..=5533;

/// What is installed here.
#[derive(Debug, Clone, Default)]
pub struct Installed {
    /// Directory of `postgres` and `pg_ctl`, if the configuration names one.
    pub bin_dir: Option<PathBuf>,
    locales: BTreeSet<String>,
}

impl Installed {
    /// Looks around.
    pub fn look(bin_dir: Option<&Path>) -> Self {
        let listed = said("locale", &["-a"]).unwrap_or_default();
        let locales = listed.lines().chain(["C", "POSIX"]).map(plain_locale).collect();
        Self { bin_dir: bin_dir.map(Path::to_owned), locales }
    }

    /// The major version of the installed server, if `bin_dir` is known and has one.
    ///
    /// # Errors
    /// If the program is there and does not say.
    pub fn server_major(&self) -> Result<Option<u32>> {
        let Some(program) = self.bin_dir.as_ref().map(|dir| dir.join("postgres")).filter(|p| p.exists())
        else {
            return Ok(None);
        };
        let shown = program.display().to_string();
        let answer = said(&shown, &["--version"]);
        let major = answer.as_deref().and_then(major_of);
        major.map(Some).ok_or_else(|| {
            Error::failed(format!("{shown} --version does not say its version"))
                .hint("set bin_dir to the programs of PostgreSQL")
        })
    }

    /// Refuses a server of another major version: it cannot open the files.
    ///
    /// # Errors
    /// Kind `Refused`.
    pub fn check_major(&self, wanted: PgMajor) -> Result<()> {
        match self.server_major()? {
            Some(found) if found != wanted.number() => Err(Error::refused(format!(
                "the backup is of PostgreSQL {wanted}, bin_dir has PostgreSQL {found}"
            ))
            .hint(format!("set bin_dir to the programs of PostgreSQL {wanted}"))),
            _ => Ok(()),
        }
    }

    /// Databases whose collations were built with another C library: their text indexes may be in another order here.
    pub fn collation_warnings(catalogue: &Catalogue) -> Vec<String> {
        let answer = said("getconf", &["GNU_LIBC_VERSION"]).unwrap_or_default();
        let Some(here) = answer.trim().strip_prefix("glibc ") else { return Vec::new() };
        let differs = |version: &&str| *version != here;
        let of_libc = catalogue.databases.iter().filter(|d| d.provider == "c");
        let versions: BTreeSet<&str> =
            of_libc.filter_map(|d| d.collation_version.as_deref()).filter(differs).collect();
        let warning = |version: &str| {
            format!(
                "text indexes were built with collations of glibc {version}, this host has {here}: reindex them after the restore"
            )
        };
        versions.into_iter().map(warning).collect()
    }

    /// The command that starts a server in `data_dir`.
    pub fn start_command(&self, data_dir: &Path, config: Option<&Path>) -> String {
        let quoted = |path: &Path| {
            let text = path.display().to_string();
            quote_shell(&text).unwrap_or(text)
        };
        if let Some((version, name)) = config.and_then(debian_cluster) {
            return format!("pg_ctlcluster {version} {name} start");
        }
        let program = self.bin_dir.as_ref().map_or_else(|| PathBuf::from("pg_ctl"), |dir| dir.join("pg_ctl"));
        let options = config.map(|c| format!(" -o \"-c config_file={}\"", quoted(c))).unwrap_or_default();
        format!("{} -D {}{options} start", quoted(&program), quoted(data_dir))
    }
}

impl copyconf::Host for Installed {
    fn has_library(&self, name: &str) -> bool {
        let stem = name.rsplit('/').next().unwrap_or(name);
        let file = if stem.ends_with(".so") { stem.to_owned() } else { format!("{stem}.so") };
        // `$libdir` is one of these, by how the packages are built.
        let folders = ["../lib", "../lib/postgresql", "../lib64"];
        let Some(bin_dir) = &self.bin_dir else { return false };
        folders.iter().any(|folder| bin_dir.join(folder).join(&file).is_file())
    }

    fn has_locale(&self, name: &str) -> bool {
        self.locales.contains(&plain_locale(name))
    }
}

/// `en_US.UTF-8` and `en_US.utf8` are one locale.
fn plain_locale(name: &str) -> String {
    name.chars().filter(|c| *c != '-').collect::<String>().to_lowercase()
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` and `… 18beta1` say their major version.
fn major_of(answer: &str) -> Option<u32> {
    let after = answer.split_once("(PostgreSQL)")?.1.trim_start();
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Version and name of a Debian cluster, from the path of its configuration: `/etc/postgresql/15/main/postgresql.conf`.
pub fn debian_cluster(config: &Path) -> Option<(String, String)> {
    let rest = config.strip_prefix("/etc/postgresql").ok()?;
    let parts: Vec<&str> = rest.iter().filter_map(|p| p.to_str()).collect();
    match parts.as_slice() {
        [version, name, "postgresql.conf"] if version.parse::<u32>().is_ok() => {
            Some(((*version).to_owned(), (*name).to_owned()))
        }
        _ => None,
    }
}

/// What a program prints, if it can be run and ends well.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The login name of a user id.
pub fn user_name(uid: u32) -> Option<String> {
    Account::of_ids(uid, 0).name
}

/// Who this process is.
pub fn ourselves() -> Owner {
    Owner { uid: Uid::effective().as_raw(), gid: nix::unistd::Gid::effective().as_raw() }
}

/// The user `postgres`, where there is one.
pub fn postgres_user() -> Option<Owner> {
    Account::named("postgres").map(|user| Owner { uid: user.uid, gid: user.gid })
}

/// A port on which nobody listens here now.
pub fn free_port() -> u16 {
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    COPY_PORTS.clone().find(free).unwrap_or(*COPY_PORTS.start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_postgres_prints() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_of("postgres\n"), None);
    }

    #[test]
    fn a_debian_cluster_is_started_by_its_own_tool() {
        let here = Installed { bin_dir: Some("/usr/lib/postgresql/15/bin".into()), ..Installed::default() };
        let dir = Path::new("/srv/it's here");
        assert_eq!(
            here.start_command(dir, Some(Path::new("/etc/postgresql/15/main/postgresql.conf"))),
            "pg_ctlcluster 15 main start"
        );
        assert_eq!(
            here.start_command(dir, Some(Path::new("/opt/pg/postgresql.conf"))),
            "/usr/lib/postgresql/15/bin/pg_ctl -D '/srv/it'\\''s here' -o \"-c config_file=/opt/pg/postgresql.conf\" start"
        );
        assert_eq!(Installed::default().start_command(Path::new("/d"), None), "pg_ctl -D /d start");
    }

    #[test]
    fn locales_compare_without_the_spelling_of_their_encoding() {
        use copyconf::Host as _;
        let here = Installed { locales: [plain_locale("en_US.utf8")].into(), ..Installed::default() };
        assert!(here.has_locale("en_US.UTF-8") && !here.has_locale("id_ID.UTF-8"));
    }
}
