//! One suite for every kind of store: what pitr relies on must hold on all of them alike.
//!
//! Memory, local disk and a double of Google Cloud Storage always; a real server that speaks S3 (`s3s-fs`), the reference double
//! of AWS (`moto`) and Azure's own emulator where tests/setup.sh has installed them, else SKIPPED. Each server is started on a free
//! port for one test and ended with it. The double of GCS is ours: it shows what we send, not what Google answers.
//! Known faults of s3s-fs, not asserted there: racing creates may have several winners; a missing bucket is reported as
//! a missing object; a key that is a folder of others is an internal error.
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pitr::store::{Class, Created, Policy, Settings, Store, StoreErrorKind, StoreOptions};
use support::azurite::{ACCOUNT, Azurite, KEY};
use support::cluster::setting;
use support::gcs_double::{GcsDouble, WRITER};
use support::moto::moto;
use support::store_rules::{Held, all_rules, every_call_fails, impatient, open};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const KEY_ID: &str = "conformance";
const SECRET: &str = "not-so-secret";

fn keys_of(secret: &str) -> Settings {
    [("access_key_id", KEY_ID), ("secret_access_key", secret)].into_iter().collect()
}

#[tokio::test]
async fn memory_conforms() -> Result<()> {
    all_rules(&open("memory:", &StoreOptions::default())?, Held::Fully).await
}

#[tokio::test]
async fn a_local_disk_conforms() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let url = format!("file://{}/made/by pitr", dir.path().display());
    let store = open(&url, &StoreOptions::default())?;
    store.make_root().await?;
    all_rules(&store, Held::Fully).await
}

#[tokio::test]
async fn an_unmounted_disk_is_an_error_in_every_call() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = open(&format!("file://{}/not/mounted", dir.path().display()), &StoreOptions::default())?;
    every_call_fails(&store, StoreErrorKind::NoRoot).await
}

#[tokio::test]
async fn what_a_disk_has_beside_objects_is_not_listed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = open(&format!("file://{}", dir.path().display()), &StoreOptions::default())?;
    store.create("main/object", "x").await?;
    std::fs::create_dir_all(dir.path().join("lost+found"))?;
    std::fs::create_dir_all(dir.path().join(".snapshot/main"))?;
    std::os::unix::fs::symlink("object", dir.path().join("main/.pitr-tmp-0011223344556677"))?;
    let found: Vec<String> = store.list("").await?.into_iter().map(|info| info.key).collect();
    ensure!(found == ["main/object"], "{found:?}");
    // A link that leads nowhere is a disk that is not mounted, not an absence.
    std::os::unix::fs::symlink("/nonexistent/disk", dir.path().join("main/wal"))?;
    ensure!(store.list("main/").await.is_err() && store.get("main/wal").await.is_err());
    Ok(())
}

/// A server, ended with the test.
struct Server {
    child: Child,
    endpoint: String,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Server {
    async fn start(mut command: Command, port: u16, dir: tempfile::TempDir) -> Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.spawn().with_context(|| format!("start {command:?}"))?;
        let server = Self { child, endpoint: format!("http://127.0.0.1:{port}"), _dir: dir };
        let patience = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < patience, "{command:?} does not listen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    fn options(&self, secret: &str) -> StoreOptions {
        StoreOptions {
            endpoint: Some(self.endpoint.clone()),
            allow_http: true,
            credentials: keys_of(secret),
            ..StoreOptions::default()
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A program that tests/setup.sh installed, by its name in substrate.env; `None` with a word if it is not there.
fn installed(name: &str) -> Option<PathBuf> {
    let path = setting(name).map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        eprintln!("SKIPPED: {name} is not installed, see tests/setup.sh");
    }
    path
}

async fn s3s_fs() -> Result<Option<Server>> {
    let Some(program) = installed("PITR_S3S_FS") else { return Ok(None) };
    let (dir, port) = (tempfile::tempdir()?, free_port()?);
    std::fs::create_dir(dir.path().join("bkt"))?;
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--access-key", KEY_ID, "--secret-key", SECRET]).arg(dir.path());
    Server::start(command, port, dir).await.map(Some)
}

#[tokio::test]
async fn a_real_s3_server_conforms_but_for_its_races() -> Result<()> {
    let Some(server) = s3s_fs().await? else { return Ok(()) };
    all_rules(&open("s3://bkt/some/prefix", &server.options(SECRET))?, Held::ButForItsFaults).await?;
    all_rules(&open("s3://bkt", &server.options(SECRET))?, Held::ButForItsFaults).await
}

#[tokio::test]
async fn a_wrong_secret_is_an_error_that_speaks_of_credentials() -> Result<()> {
    let Some(server) = s3s_fs().await? else { return Ok(()) };
    let store = open("s3://bkt/p", &server.options("wrong"))?;
    every_call_fails(&store, StoreErrorKind::Credentials).await?;
    let error = store.get("key").await.err().context("refused")?;
    ensure!(error.class() == Class::Permanent && error.hint().contains("credentials_file"), "{error:?}");
    let shown = format!("{error:?} {error} {:?}", server.options("wrong"));
    ensure!(!shown.contains("wrong\""), "a secret is shown: {shown}");
    Ok(())
}

#[tokio::test]
async fn the_double_of_aws_conforms_and_a_missing_bucket_is_an_error_in_every_call() -> Result<()> {
    let (dir, port) = (tempfile::tempdir()?, free_port()?);
    let Some(command) = moto(port) else { return Ok(()) };
    let server = Server::start(command, port, dir).await?;
    let made = Command::new("curl").args(["-sfX", "PUT", &format!("{}/bkt", server.endpoint)]).status();
    ensure!(made.context("run curl")?.success(), "make the bucket");
    all_rules(&open("s3://bkt/p", &server.options(SECRET))?, Held::Fully).await?;
    every_call_fails(&open("s3://no-such-bucket/p", &server.options(SECRET))?, StoreErrorKind::NoRoot).await
}

#[tokio::test]
async fn azures_emulator_conforms_and_a_missing_container_is_an_error_in_every_call() -> Result<()> {
    let Some(program) = installed("PITR_AZURITE") else { return Ok(()) };
    let server = Azurite::start(program, "pitr-test")?;
    let options = StoreOptions {
        endpoint: Some(server.endpoint()),
        allow_http: true,
        credentials: [("account_name", ACCOUNT), ("account_key", KEY)].into_iter().collect(),
        ..StoreOptions::default()
    };
    all_rules(&open("az://pitr-test/some/prefix", &options)?, Held::Fully).await?;
    every_call_fails(&open("az://no-such-container/p", &options)?, StoreErrorKind::NoRoot).await
}

#[tokio::test]
async fn a_double_of_gcs_conforms_and_a_missing_bucket_is_an_error_in_every_call() -> Result<()> {
    // Names of buckets have hyphens, underscores and dots.
    let double = GcsDouble::start("pitr-test_1.example")?;
    let options = StoreOptions {
        endpoint: Some(double.endpoint()),
        allow_http: true,
        credentials: pitr::store::parse_credentials_file(&double.key_of(WRITER)?)?,
        ..StoreOptions::default()
    };
    all_rules(&open("gs://pitr-test_1.example/some/prefix", &options)?, Held::Fully).await?;
    every_call_fails(&open("gs://no-such-bucket/p", &options)?, StoreErrorKind::NoRoot).await
}

/// A server that gives every request the same answer.
struct Answering {
    endpoint: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Answering {
    async fn start(answer: &str) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let answer = answer.to_owned();
        let task = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                // The whole request, or what came until there was a pause: closing on unread bytes would be a reset.
                let mut request = [0; 4096];
                let pause = Duration::from_millis(20);
                while let Ok(Ok(1..)) = tokio::time::timeout(pause, socket.read(&mut request)).await {}
                socket.write_all(answer.as_bytes()).await.ok();
            }
        });
        Ok(Self { endpoint, task })
    }

    fn store(&self) -> Result<Store> {
        let options = StoreOptions {
            endpoint: Some(self.endpoint.clone()),
            allow_http: true,
            credentials: keys_of(SECRET),
            ..StoreOptions::default()
        };
        open("s3://bkt/p", &options)
    }
}

fn answer(status: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{header}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

fn code(code: &str) -> String {
    format!("<Error><Code>{code}</Code><Message>words</Message></Error>")
}

/// What each refusal means for a read and for a create.
#[tokio::test]
async fn a_refusal_is_what_its_status_and_code_say() -> Result<()> {
    use {Class::*, StoreErrorKind::*};
    let elsewhere = "x-amz-bucket-region: eu-x-1\r\n";
    for (status, header, name, kind, read, create) in [
        ("403 Forbidden", "", "AccessDenied", Credentials, Permanent, Permanent),
        ("400 Bad Request", "", "ExpiredToken", Credentials, Permanent, Permanent),
        ("403 Forbidden", "", "InvalidObjectState", Other, Permanent, Permanent),
        ("301 Moved", elsewhere, "PermanentRedirect", Usage, Permanent, Permanent),
        ("404 Not Found", "", "NoSuchBucket", NoRoot, Permanent, Permanent),
        ("400 Bad Request", "", "RequestTimeout", Unreachable, Retry, Unknown),
        ("500 Internal Server Error", "", "InternalError", Unreachable, Retry, Unknown),
        ("503 Slow Down", "", "SlowDown", Unreachable, Retry, Retry),
        ("501 Not Implemented", "", "NotImplemented", Unsupported, Permanent, Permanent),
    ] {
        let server = Answering::start(&answer(status, header, &code(name))).await?;
        let store = server.store()?;
        let error = store.get("key").await.err().with_context(|| format!("{status}: a read fails"))?;
        ensure!((error.kind, error.class()) == (kind, read), "{status}: {error:?}");
        let error =
            store.create("key", "x").await.err().with_context(|| format!("{status}: a create fails"))?;
        ensure!((error.kind, error.class()) == (kind, create), "{status}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_conflict_on_a_create_means_that_the_key_is_taken() -> Result<()> {
    for (status, body) in
        [("409 Conflict", code("ConditionalRequestConflict")), ("412 Failed", String::new())]
    {
        let server = Answering::start(&answer(status, "", &body)).await?;
        ensure!(server.store()?.create("key", "x").await? == Created::Exists, "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn only_a_404_that_speaks_of_the_object_is_an_absence() -> Result<()> {
    let plain = Answering::start(&answer("404 Not Found", "", &code("NoSuchKey"))).await?;
    ensure!(plain.store()?.get("key").await?.is_none());
    let marker = answer("404 Not Found", "x-amz-delete-marker: true\r\n", &code("NoSuchKey"));
    let marker = Answering::start(&marker).await?;
    for error in [marker.store()?.get("key").await.err(), marker.store()?.head("key").await.err()] {
        let error = error.context("a delete marker is no absence")?;
        ensure!(error.kind == StoreErrorKind::Hidden && error.hint().contains("delete marker"), "{error}");
    }
    // A proxy, a load balancer, another service on that port: nothing is proven.
    let proxy = Answering::start(&answer("404 Not Found", "", "nothing here")).await?;
    every_call_fails(&proxy.store()?, StoreErrorKind::NoRoot).await
}

#[tokio::test]
async fn a_server_that_is_down_is_an_error_soon() -> Result<()> {
    let options = StoreOptions {
        endpoint: Some(format!("http://127.0.0.1:{}", free_port()?)),
        allow_http: true,
        credentials: keys_of(SECRET),
        ..StoreOptions::default()
    };
    let begin = Instant::now();
    every_call_fails(&open("s3://bkt/p", &options)?, StoreErrorKind::Unreachable).await?;
    ensure!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    Ok(())
}

/// A server that accepts and says nothing: each attempt ends at its deadline, and a create's outcome is unknown.
#[tokio::test]
async fn a_server_that_never_answers_is_an_error_in_time_and_a_create_is_unknown() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let options = StoreOptions {
        endpoint: Some(format!("http://{}", listener.local_addr()?)),
        allow_http: true,
        credentials: keys_of(SECRET),
        ..StoreOptions::default()
    };
    let silent = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            held.push(socket);
        }
    });
    let policy = Policy { base: Duration::from_millis(300), ..impatient() };
    let store = open("s3://bkt/p", &options)?.with_policy(policy);
    let begin = Instant::now();
    let read = store.get("key").await.err().context("no answer")?;
    let create = store.create("key", "x").await.err().context("no answer")?;
    ensure!(read.class() == Class::Retry && create.class() == Class::Unknown, "{read:?} {create:?}");
    ensure!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    silent.abort();
    Ok(())
}

/// On a machine without a role, or with a metadata service that knows none, a 404 of that service is not an absence.
#[tokio::test]
async fn a_metadata_service_that_answers_404_is_a_lack_of_credentials() -> Result<()> {
    let service = Answering::start(&answer("404 Not Found", "", "")).await?;
    let options = |metadata: String| StoreOptions {
        endpoint: Some(service.endpoint.clone()),
        allow_http: true,
        environment: [("AWS_METADATA_ENDPOINT".to_owned(), metadata)].into_iter().collect(),
        ..StoreOptions::default()
    };
    every_call_fails(&open("s3://bkt/p", &options(service.endpoint.clone()))?, StoreErrorKind::Credentials)
        .await?;
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    every_call_fails(&open("s3://bkt/p", &options(nobody))?, StoreErrorKind::Credentials).await
}
