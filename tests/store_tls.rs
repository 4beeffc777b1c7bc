//! Whom a store's certificate may come from: `ca_file` is trusted, and nothing that it does not vouch for.
//!
//! A throw-away authority and server certificate are made by the `openssl` program, whose test server then speaks TLS and
//! no S3. SKIPPED without it. What is judged is how far the connection came.
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pitr::store::{Class, Policy, Store, StoreError, StoreErrorKind, StoreOptions};

fn openssl(dir: &Path, line: &str) -> Result<()> {
    let output = Command::new("openssl").args(line.split_whitespace()).current_dir(dir).output()?;
    ensure!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Makes `ca.pem` and a server certificate for 127.0.0.1 that it signed.
fn make_certificates(dir: &Path) -> Result<()> {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(dir, &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority"))?;
    openssl(dir, &format!("req -x509 {key} -keyout other.key -out other.pem -subj /CN=other"))?;
    let names = "-addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE";
    let signed = "-CA ca.pem -CAkey ca.key";
    openssl(dir, &format!("req -x509 {key} {signed} {names} -keyout srv.key -out srv.pem -subj /CN=store"))
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn serve(dir: &Path) -> Result<(Server, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let line = format!("s_server -quiet -www -accept 127.0.0.1:{port} -cert srv.pem -key srv.key");
    let mut command = Command::new("openssl");
    command.args(line.split_whitespace()).current_dir(dir);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let server = Server(child);
    let patience = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < patience, "the TLS server does not listen");
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok((server, port))
}

async fn get(port: u16, ca_file: Option<&Path>) -> Result<StoreError> {
    let options = StoreOptions {
        endpoint: Some(format!("https://127.0.0.1:{port}")),
        ca_file: ca_file.map(Path::to_path_buf),
        credentials: [("access_key_id", "a"), ("secret_access_key", "s")].into_iter().collect(),
        ..StoreOptions::default()
    };
    let policy = Policy { base: Duration::from_secs(10), ..Policy::default().once() };
    let store = Store::open(&"s3://bkt/p".parse()?, &options)?.with_policy(policy);
    store.get("key").await.err().context("it is no S3 server")
}

#[tokio::test]
async fn only_what_the_authority_vouches_for_is_trusted() -> Result<()> {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: openssl is not installed");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    make_certificates(dir.path())?;
    let (_server, port) = serve(dir.path())?;
    for stranger in [None, Some(dir.path().join("other.pem"))] {
        let error = get(port, stranger.as_deref()).await?;
        ensure!((error.kind, error.class()) == (StoreErrorKind::Usage, Class::Permanent), "{error:?}");
        ensure!(error.hint().contains("ca_file"), "{error:?}");
    }
    // Trusted: the connection stands, and what is wrong is the answer.
    let error = get(port, Some(&dir.path().join("ca.pem"))).await?;
    ensure!(!error.to_string().contains("certificate"), "{error:?}");
    ensure!(error.kind != StoreErrorKind::Unreachable, "{error:?}");
    Ok(())
}
