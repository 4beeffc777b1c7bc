//! Azurite, Microsoft's own emulator of Azure Blob Storage, on a free port with one container, and tokens for it.
//!
//! Account name and key are those that every Azurite has and that are printed in its manual. It checks signatures, hours and
//! permissions of shared access signatures as the service does; it is told to contact nobody.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};

/// The account of every Azurite.
pub const ACCOUNT: &str = "devstoreaccount1";
/// Its key.
pub const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// What tokens are signed for: the last version before encryption scopes.
const VERSION: &str = "2019-12-12";
const PROTOCOLS: &str = "https,http";

/// A server, ended with the test.
#[derive(Debug)]
pub struct Azurite {
    child: Child,
    port: u16,
    container: String,
    _dir: tempfile::TempDir,
}

impl Drop for Azurite {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Azurite {
    /// Starts `program` and makes a container.
    pub fn start(program: PathBuf, container: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(program);
        command.args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobHost", "127.0.0.1"]);
        command.args(["--blobPort", &port.to_string(), "--location"]).arg(dir.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.context("start Azurite")?;
        let azurite = Self { child, port, container: container.to_owned(), _dir: dir };
        let patience = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < patience, "Azurite does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        azurite.make_container()?;
        Ok(azurite)
    }

    /// Where the account is.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    /// A shared access signature of the container with these permissions that ends so many hours from now.
    pub fn token(&self, permissions: &str, hours: i64) -> Result<String> {
        let (start, end) = (time(hours.min(0) - 1), time(hours));
        let resource = format!("/blob/{ACCOUNT}/{}", self.container);
        let signed =
            format!("{permissions}\n{start}\n{end}\n{resource}\n\n\n{PROTOCOLS}\n{VERSION}\nc\n\n\n\n\n\n");
        Ok(format!(
            "sv={VERSION}&sr=c&sp={permissions}&st={}&se={}&spr={}&sig={}",
            escaped(&start),
            escaped(&end),
            escaped(PROTOCOLS),
            escaped(&sign(&signed)?)
        ))
    }

    /// Only a token of the whole account may make a container.
    fn make_container(&self) -> Result<()> {
        let (start, end) = (time(-1), time(1));
        let signed = format!("{ACCOUNT}\nc\nb\nc\n{start}\n{end}\n\n{PROTOCOLS}\n{VERSION}\n");
        let token = format!(
            "sv={VERSION}&ss=b&srt=c&sp=c&st={}&se={}&spr={}&sig={}",
            escaped(&start),
            escaped(&end),
            escaped(PROTOCOLS),
            escaped(&sign(&signed)?)
        );
        let url = format!("{}/{}?restype=container&{token}", self.endpoint(), self.container);
        let done = Command::new("curl").args(["-sfX", "PUT", "-H", "Content-Length: 0", &url]).status();
        ensure!(done.context("run curl")?.success(), "make the container");
        Ok(())
    }
}

fn time(hours: i64) -> String {
    (Timestamp::now() + SignedDuration::from_hours(hours)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn escaped(text: &str) -> String {
    let pairs = [('+', "%2B"), ('/', "%2F"), ('=', "%3D"), (':', "%3A"), (',', "%2C")];
    pairs.iter().fold(text.to_owned(), |text, (plain, escaped)| text.replace(*plain, escaped))
}

/// HMAC-SHA256 with the account's key, as base64.
fn sign(text: &str) -> Result<String> {
    let script = "key=$(printf %s \"$1\" | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \\n')\n\
                  printf %s \"$2\" | openssl dgst -sha256 -mac HMAC -macopt \"hexkey:$key\" -binary | openssl base64 -A";
    let out = Command::new("/bin/sh").args(["-ec", script, "sh", KEY, text]).output()?;
    ensure!(out.status.success(), "openssl: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}
