//! `moto`: the double of AWS, as a bucket that keeps versions, locks objects, and lets nobody do what no policy of his allows.
//!
//! It checks signatures and policies from the moment it is told to; before that, and for what a test does in the owner's name, it lets
//! everything pass. In three things it is not like AWS. Its conditional writes are not atomic: `moto_one_by_one.py` beside this file lets one request in
//! at a time. A put under object lock must name its checksum's algorithm in a header of the SDKs, where AWS is content with the checksum;
//! whoever may put may also shorten any retention, and whoever may delete a version may bypass one: [`Moto::like_aws`] is a proxy that makes
//! up for these, and refuses to bypass as AWS does. It does not look at conditions in policies.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
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
    bucket: Bucket,
    /// The access keys of who may bypass a retention in governance mode.
    bypass: Arc<Mutex<Vec<String>>>,
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
        let endpoint = format!("http://127.0.0.1:{port}");
        let moto = Self { server, port, bucket, bypass: Arc::default(), endpoint };
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
        let aws = Aws { port: self.port, bucket: self.bucket, bypass: Arc::clone(&self.bypass) };
        // Ends with the process of the test.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let aws = aws.clone();
                thread::spawn(move || aws.pass(client).ok());
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
        // A policy that names the right forbids it.
        let has = |words: &str| policies.iter().any(|policy| policy.contains(words));
        if has("s3:*") && !has("s3:BypassGovernanceRetention") {
            self.bypass.lock().map_err(|_| anyhow::anyhow!("a user could not be made"))?.push(id.clone());
        }
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
    Ok(text.replace("BUCKET", "bucket").replace("PREFIX", "pitr/main"))
}

/// Who may do everything, as no role of pitr's may.
pub fn owner_policy() -> String {
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#.to_owned()
}

/// As [`owner_policy`], and past no retention.
pub fn no_bypass() -> String {
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"s3:BypassGovernanceRetention","Resource":"*"}]}"#.to_owned()
}

/// What AWS does and moto does not.
#[derive(Clone)]
struct Aws {
    port: u16,
    bucket: Bucket,
    bypass: Arc<Mutex<Vec<String>>>,
}

impl Aws {
    /// One request to moto and its answer.
    fn pass(&self, mut client: TcpStream) -> Result<()> {
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
        let length: usize = header(&lines, "content-length").map_or(Ok(0), str::parse)?;
        while request.len() < head + 4 + length {
            let read = client.read(&mut piece)?;
            ensure!(read > 0, "the client went");
            request.extend_from_slice(&piece[..read]);
        }
        if let Some((status, code, message)) = self.refusal(&lines) {
            let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            return Ok(client.write_all(answer.as_bytes())?);
        }
        let mut add = "\r\nConnection: close".to_owned();
        // Twice, it would no longer be as it was signed.
        let algorithm = "x-amz-sdk-checksum-algorithm";
        if header(&lines, "x-amz-checksum-sha256").is_some() && header(&lines, algorithm).is_none() {
            add.push_str(&format!("\r\n{algorithm}: SHA256"));
        }
        let mut moto = TcpStream::connect(("127.0.0.1", self.port))?;
        moto.write_all(&request[..head])?;
        moto.write_all(add.as_bytes())?;
        moto.write_all(&request[head..])?;
        std::io::copy(&mut moto, &mut client)?;
        Ok(())
    }

    /// The header that bypasses a retention, and a request that shortens one, as AWS refuses them.
    fn refusal(&self, lines: &str) -> Option<(&'static str, &'static str, &'static str)> {
        let protected = "Access Denied because object protected by object lock.";
        let who = header(lines, "authorization").and_then(|signed| signed.split("Credential=").nth(1));
        let who = who.and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let may = self.bypass.lock().is_ok_and(|keys| keys.iter().any(|key| key == who));
        let first = lines.lines().next().unwrap_or_default();
        let shortens = first.starts_with("PUT ") && first.contains("retention=");
        let bypasses = header(lines, "x-amz-bypass-governance-retention").is_some();
        match self.bucket {
            Bucket::Locked("COMPLIANCE") if shortens => Some(("403 Forbidden", "AccessDenied", protected)),
            Bucket::Locked(_) if bypasses && !may => Some(("403 Forbidden", "AccessDenied", "Access Denied")),
            Bucket::Plain | Bucket::Versions if bypasses && first.starts_with("DELETE ") => {
                let only =
                    "x-amz-bypass-governance-retention is only applicable to Object Lock enabled buckets.";
                Some(("400 Bad Request", "InvalidArgument", only))
            }
            _ => None,
        }
    }
}

/// The value of a header.
fn header<'a>(lines: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = lines.lines().filter_map(|line| line.split_once(": "));
    headers.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}
