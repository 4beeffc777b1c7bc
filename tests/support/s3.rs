//! `s3s-fs`: a server that speaks S3 and keeps its objects as files, so that a test can look at them.
//!
//! It lets several racing creates win, so pitr uses it as the unsafe store it is (`allow_unsafe_store`). Ended with the test.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Result;

use super::cluster::{give_to_server, scratch, setting};
use super::site::until;

/// An S3 server with one bucket, ended with the test.
pub struct S3 {
    server: Child,
    port: u16,
    /// Where its buckets are.
    pub directory: tempfile::TempDir,
}

impl S3 {
    /// Starts one, or says that it is not installed.
    pub fn start() -> Result<Option<Self>> {
        let Some(program) = setting("PITR_S3S_FS") else {
            eprintln!("SKIPPED: s3s-fs is not installed; run tests/setup.sh");
            return Ok(None);
        };
        let directory = scratch("pitr-s3-")?;
        fs::create_dir(directory.path().join("bucket"))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", "tester", "--secret-key", "not-so-secret"]).arg(directory.path());
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let s3 = Self { server, port, directory };
        until(
            || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()),
            || "s3s-fs does not listen".to_owned(),
        )?;
        Ok(Some(s3))
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The same as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// What a `[[repository]]` in its bucket says besides name and URL. The credentials go into a file in `place`.
    pub fn settings(&self, place: &Path) -> Result<String> {
        let keys = place.join("keys");
        fs::write(&keys, "access_key_id = tester\nsecret_access_key = not-so-secret\n")?;
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
        give_to_server(&keys)?;
        Ok(format!(
            "endpoint = \"{}\"\nallow_http = true\nregion = \"us-east-1\"\nallow_unsafe_store = true\n\
             credentials_file = \"{}\"\n",
            self.endpoint(),
            keys.display()
        ))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}
