//! `moto`: the double of AWS, as a bucket that keeps versions, locks objects, and lets nobody do what no policy of his allows.
//!
//! It checks signatures and policies from the moment it is told to; before that, and for what a test does in the owner's name, it lets
//! everything pass. In three things it is not like AWS. Its conditional writes are not atomic: `moto_one_by_one.py` beside this file lets one request in
//! at a time. A put under object lock must name its checksum's algorithm in a header of the SDKs, where AWS is content with the checksum;
//! and whoever may put may also shorten a retention: [`Moto::like_aws`] is a proxy that makes up for both. It does not look at conditions in
//! policies.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use pitr::store::{Settings, Store, StoreOptions, StoreUrl, parse_credentials_file};

use super::cluster::{give_to_server, run, setting};
use super::site::until;

/// Where the repository of a test is in the bucket, as the policies have it.
pub const URL: &str = "s3://bucket/pitr";

/// How a bucket is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    /// It replaces and deletes.
    Plain,
    /// It keeps versions.
    Versions,
    /// It keeps versions, and every new object for a day, in this mode.
    Locked(&'static str),
}

/// A command that serves on that port of this host; without one it says that it is not installed.
pub fn moto(port: u16) -> Option<Command> {
    let Some(python) = setting("PITR_MOTO_PYTHON") else {
        eprintln!("SKIPPED: moto is not installed; run tests/setup.sh");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/moto_one_by_one.py"));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    Some(command)
}

/// The server, ended with the test.
pub struct Moto {
    server: Child,
    port: u16,
    /// Where clients connect.
    pub endpoint: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

impl Moto {
    /// Starts one with a bucket, or says that it is not installed.
    pub fn start(bucket: Bucket) -> Result<Option<Self>> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let Some(mut command) = moto(port) else { return Ok(None) };
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let moto = Self { server, port, endpoint: format!("http://127.0.0.1:{port}") };
        until(|| Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()), || "moto does not listen".to_owned())?;
        let lock = matches!(bucket, Bucket::Locked(_)).to_string();
        moto.s3(&["-X", "PUT", "-H", &format!("x-amz-bucket-object-lock-enabled: {lock}")], "bucket")?;
        if bucket != Bucket::Plain {
            let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
            moto.s3(&["-X", "PUT", "-d", on], "bucket?versioning")?;
        }
        if let Bucket::Locked(mode) = bucket {
            let rule = format!(
                "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>{mode}</Mode>\
                 <Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
            );
            moto.s3(&["-X", "PUT", "-d", &rule], "bucket?object-lock")?;
        }
        Ok(Some(moto))
    }

    /// The same behind a proxy that answers as AWS does where moto does not.
    pub fn like_aws(mut self) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        self.endpoint = format!("http://{}", listener.local_addr()?);
        let port = self.port;
        // Ends with the process of the test.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                thread::spawn(move || pass(client, port).ok());
            }
        });
        Ok(self)
    }

    /// A request in the owner's name, while no signatures are asked for; its answer.
    fn s3(&self, args: &[&str], path: &str) -> Result<String> {
        self.curl("s3", &[&["-H", "Content-Type: application/xml"][..], args].concat(), path)
    }

    fn curl(&self, service: &str, args: &[&str], path: &str) -> Result<String> {
        // moto finds the service by what a request says that it is signed for.
        let signed = format!(
            "Authorization: AWS4-HMAC-SHA256 Credential=owner/20260101/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=0"
        );
        let url = format!("http://127.0.0.1:{}/{path}", self.port);
        run(Command::new("curl").args(["-sSf", "-H", &signed]).args(args).arg(url))
    }

    /// From now on only who is known and may is served.
    pub fn enforce(&self) -> Result<()> {
        self.s3(&["-d", "0"], "moto-api/reset-auth").map(drop)
    }

    /// Does something as the bucket's owner, in a moment in which everything passes.
    pub fn as_owner(&self, args: &[&str], path: &str) -> Result<String> {
        self.s3(&["-d", "inf"], "moto-api/reset-auth")?;
        let answer = self.s3(args, path);
        self.enforce()?;
        answer
    }

    /// All versions of the objects whose key begins so, delete markers last.
    pub fn versions(&self, key: &str) -> Result<Vec<Version>> {
        let xml = self.as_owner(&[], &format!("bucket?versions&prefix=pitr/{key}"))?;
        let mut found = Vec::new();
        for (tag, marker) in [("Version", false), ("DeleteMarker", true)] {
            for part in xml.split(&format!("<{tag}>")).skip(1) {
                let text = |name: &str| {
                    let rest = part.split(&format!("<{name}>")).nth(1)?;
                    Some(rest.split('<').next().unwrap_or_default().to_owned())
                };
                let key = text("Key").context("a key")?;
                found.push(Version { key, id: text("VersionId").context("an id")?, marker });
            }
        }
        Ok(found)
    }

    /// A user with these policies: the lines of his credentials file.
    pub fn user(&self, name: &str, policies: &[String]) -> Result<String> {
        let iam = |args: &[&str]| self.curl("iam", &[&["-d", "Version=2010-05-08"][..], args].concat(), "");
        let user = format!("UserName={name}");
        iam(&["-d", "Action=CreateUser", "-d", &user])?;
        for (n, policy) in policies.iter().enumerate() {
            let (title, document) = (format!("PolicyName=p{n}"), format!("PolicyDocument={policy}"));
            iam(&["-d", "Action=PutUserPolicy", "-d", &user, "-d", &title, "--data-urlencode", &document])?;
        }
        let keys = iam(&["-d", "Action=CreateAccessKey", "-d", &user])?;
        let text = |tag: &str| {
            let value = keys.split(&format!("<{tag}>")).nth(1).and_then(|rest| rest.split('<').next());
            value.map(str::to_owned).with_context(|| format!("{tag}: {keys}"))
        };
        let (id, secret) = (text("AccessKeyId")?, text("SecretAccessKey")?);
        Ok(format!("access_key_id = {id}\nsecret_access_key = {secret}\n"))
    }

    /// What a `[[repository]]` in the bucket says besides name and URL; the credentials go into `<place>/<name>.keys`.
    pub fn settings(&self, place: &Path, name: &str, keys: &str) -> Result<String> {
        let file = place.join(format!("{name}.keys"));
        fs::write(&file, keys)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        give_to_server(&file)?;
        let (endpoint, file) = (&self.endpoint, file.display());
        Ok(format!(
            "endpoint = \"{endpoint}\"\nallow_http = true\nregion = \"us-east-1\"\ncredentials_file = \"{file}\"\n"
        ))
    }

    /// The repository's place, opened with such credentials.
    pub fn store(&self, keys: &str) -> Result<Store> {
        let credentials: Settings = parse_credentials_file(keys)?;
        let options = StoreOptions {
            endpoint: Some(self.endpoint.clone()),
            region: Some("us-east-1".to_owned()),
            allow_http: true,
            credentials,
            ..StoreOptions::default()
        };
        Ok(Store::open(&URL.parse::<StoreUrl>()?, &options)?)
    }
}

/// One version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The key in the bucket.
    pub key: String,
    /// Its id.
    pub id: String,
    /// It is a delete marker.
    pub marker: bool,
}

/// A policy of `contrib/policies`, for the bucket of the tests.
pub fn policy(name: &str) -> Result<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("contrib/policies/s3-{name}.json"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(text.contains("BUCKET/PREFIX/"), "{name}");
    Ok(text.replace("BUCKET", "bucket").replace("PREFIX", "pitr"))
}

/// Who may do everything, as no role of pitr's may.
pub fn owner_policy() -> String {
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#.to_owned()
}

/// One request to moto and its answer.
fn pass(mut client: TcpStream, port: u16) -> Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 64 << 10];
    let head = loop {
        let read = client.read(&mut piece)?;
        ensure!(read > 0, "the client went");
        request.extend_from_slice(&piece[..read]);
        if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
    };
    let lines = String::from_utf8_lossy(&request[..head]).into_owned();
    let value = |name: &str| {
        let found = lines
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value.to_owned())
    };
    let length: usize = value("content-length").map_or(Ok(0), |length| length.parse())?;
    while request.len() < head + 4 + length {
        let read = client.read(&mut piece)?;
        ensure!(read > 0, "the client went");
        request.extend_from_slice(&piece[..read]);
    }
    let first = lines.lines().next().unwrap_or_default();
    if first.starts_with("PUT ") && first.contains("retention=") {
        let body = "<Error><Code>AccessDenied</Code><Message>Access Denied because object protected by object lock.</Message></Error>";
        let length = body.len();
        let answer =
            format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        return Ok(client.write_all(answer.as_bytes())?);
    }
    let mut add = "\r\nConnection: close".to_owned();
    if value("x-amz-checksum-sha256").is_some() {
        add.push_str("\r\nx-amz-sdk-checksum-algorithm: SHA256");
    }
    let mut moto = TcpStream::connect(("127.0.0.1", port))?;
    moto.write_all(&request[..head])?;
    moto.write_all(add.as_bytes())?;
    moto.write_all(&request[head..])?;
    std::io::copy(&mut moto, &mut client)?;
    Ok(())
}
