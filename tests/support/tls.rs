//! A server that speaks TLS on an address of its own, with certificates made by the `openssl` program.
//!
//! ```text
//!  ca.crt     ─► good, wrong (another host), expired, v1 (no extensions), between ─► chained
//!  other.crt  ─► another authority
//!  self.crt      signed by itself and an authority too, as `openssl req -x509` makes it
//! ```
//! Which certificate the server shows is switched by a reload, and settled when a new session reports it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::cluster::{Cluster, Install, Options, give_to_server};

/// The host that the good certificates are for. It is never looked up: `hostaddr` tells the address.
pub const HOST: &str = "db.pitr.test";

/// Any address of 127/8 is this host: one per process keeps PostgreSQL's port free.
pub fn address(number: u8) -> String {
    let pid = std::process::id().to_be_bytes();
    format!("127.{}.{}.{}", 100 + 50 * (number % 3) + pid[1] % 50, pid[2], pid[3].max(1))
}

/// Runs `openssl` in a directory.
pub fn openssl(dir: &Path, line: &str) -> Result<()> {
    let output = Command::new("openssl").args(line.split_whitespace()).current_dir(dir).output()?;
    ensure!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// True if there is no `openssl`, and says so as a skipped test does.
pub fn no_openssl() -> bool {
    let missing = Command::new("openssl").arg("version").output().is_err();
    if missing {
        eprintln!("SKIPPED: openssl is not installed, see tests/setup.sh");
    }
    missing
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// A certificate to be signed by an authority of the same directory.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Names of its files.
    pub name: &'a str,
    /// Common name.
    pub cn: &'a str,
    /// Extensions, a line each; none makes a certificate of version 1.
    pub extensions: &'a str,
    /// From now; below 0 it has expired.
    pub days: i32,
    /// Who signs.
    pub authority: &'a str,
    /// What key to make.
    pub key: &'a str,
    /// More options of the signature.
    pub signature: &'a str,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        Self {
            name: "good",
            cn: HOST,
            extensions: "subjectAltName=DNS:db.pitr.test\nbasicConstraints=CA:FALSE",
            days: 2,
            authority: "ca",
            key: KEY,
            signature: "",
        }
    }
}

/// Makes `NAME.crt` and `NAME.key`.
pub fn certificate(dir: &Path, wanted: &Wanted<'_>) -> Result<()> {
    let Wanted { name, cn, extensions, days, authority, key, signature } = wanted;
    openssl(dir, &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={cn}"))?;
    fs::write(dir.join(format!("{name}.ext")), extensions)?;
    let extensions = if extensions.is_empty() { String::new() } else { format!("-extfile {name}.ext") };
    let signed = format!("-CA {authority}.crt -CAkey {authority}.key -CAcreateserial {signature}");
    openssl(dir, &format!("x509 -req -in {name}.csr {signed} {extensions} -days {days} -out {name}.crt"))?;
    own_key(&dir.join(format!("{name}.key")))
}

/// Makes an authority that signed itself: `NAME.crt` and `NAME.key`.
pub fn authority(dir: &Path, name: &str, cn: &str) -> Result<()> {
    openssl(dir, &format!("req -new -x509 {KEY} -days 2 -keyout {name}.key -out {name}.crt -subj /CN={cn}"))?;
    own_key(&dir.join(format!("{name}.key")))
}

/// A key as the server, and libpq, want it.
fn own_key(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    give_to_server(path)
}

/// A cluster that listens with TLS.
#[derive(Debug)]
pub struct TlsCluster {
    /// The cluster; it runs.
    pub cluster: Cluster,
    /// Where it listens.
    pub address: String,
    /// Certificates and keys.
    pub dir: PathBuf,
}

impl TlsCluster {
    /// A running cluster with the certificates of the drawing above, which shows the good one. None if this PostgreSQL was built without
    /// TLS, which is said as a skipped test does.
    pub fn start(install: &Install, conf: &str) -> Result<Option<Self>> {
        let address = address(0);
        let conf = format!("listen_addresses = '{address}'\n{conf}");
        let cluster = Cluster::init(install, &Options { conf, ..Options::default() })?;
        cluster.append_conf(
            "pg_hba.conf",
            "host all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n",
        )?;
        cluster.start()?;
        if cluster.psql("SHOW ssl_library")?.is_empty() {
            eprintln!("SKIPPED: this PostgreSQL {} was built without TLS", install.major);
            return Ok(None);
        }
        let dir = cluster.root().join("tls");
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        authority(&dir, "ca", "authority")?;
        authority(&dir, "other", "other")?;
        authority(&dir, "self", HOST)?;
        let usual = Wanted::default();
        certificate(&dir, &usual)?;
        let elsewhere =
            "subjectAltName=DNS:elsewhere.pitr.test,DNS:*.example.pitr.test\nbasicConstraints=CA:FALSE";
        certificate(&dir, &Wanted { name: "wrong", extensions: elsewhere, ..usual })?;
        certificate(&dir, &Wanted { name: "expired", days: -1, ..usual })?;
        certificate(&dir, &Wanted { name: "v1", extensions: "", ..usual })?;
        certificate(
            &dir,
            &Wanted { name: "between", cn: "between", extensions: "basicConstraints=CA:TRUE", ..usual },
        )?;
        certificate(&dir, &Wanted { name: "chained", authority: "between", ..usual })?;
        let chain = ["chained.crt", "between.crt"].map(|name| fs::read_to_string(dir.join(name)));
        let [chained, between] = chain;
        fs::write(dir.join("chained.crt"), chained? + &between?)?;
        let this = Self { cluster, address, dir };
        this.show("good")?;
        Ok(Some(this))
    }

    /// The file of a certificate.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Lets the server show another certificate.
    pub fn show(&self, name: &str) -> Result<()> {
        let (cert, key) = (self.file(&format!("{name}.crt")), self.file(&format!("{name}.key")));
        self.set(&[("ssl_cert_file", &cert), ("ssl_key_file", &key), ("ssl", "on")])
    }

    /// Changes settings by a reload, and waits until new sessions have them.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<()> {
        let mut sql = String::new();
        for (name, value) in settings {
            sql.push_str(&format!("ALTER SYSTEM SET {name} = '{value}';\n"));
        }
        self.cluster.psql(&format!("{sql}SELECT pg_reload_conf();"))?;
        for (name, value) in settings {
            self.cluster.wait_for(&format!("SELECT current_setting('{name}')"), value)?;
        }
        Ok(())
    }

    /// Replaces `pg_hba.conf`; the superuser keeps the socket.
    pub fn hba(&self, lines: &str) -> Result<()> {
        let text = format!("local all postgres trust\nlocal replication postgres trust\n{lines}");
        fs::write(self.cluster.data.join("pg_hba.conf"), &text)?;
        let before = self.cluster.psql("SELECT pg_conf_load_time()")?;
        self.cluster.psql("SELECT pg_reload_conf()")?;
        self.cluster.wait_for(&format!("SELECT pg_conf_load_time() > '{before}'"), "t")
    }

    /// A connection string over TCP, with the name of the good certificate.
    pub fn conninfo(&self, more: &str) -> String {
        format!("host={HOST} hostaddr={} user=postgres dbname=postgres {more}", self.address)
    }
}
