//! A double of Google Cloud Storage: the part of its XML API that object_store speaks, and the metadata server.
//!
//! No server in any registry speaks that part, so this one was written from Google's reference ("XML API", "Request preconditions",
//! "Service accounts: JSON Web Tokens"). It refuses what the service refuses: a call without a token, a token whose signature,
//! issuer, scope or hour is wrong, an unknown bucket, a write by who may only read, a condition that does not hold, a body
//! without a length. It is no proof that the real service agrees.
//! One thread per connection; all objects are in memory; it ends when it is dropped.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

/// A service account that may do everything in the bucket.
pub const WRITER: &str = "writer@project.iam.example";
/// A service account that may get and list.
pub const READER: &str = "reader@project.iam.example";

/// As many keys and prefixes as the service puts on one page.
const PAGE: usize = 1000;
/// Larger requests are none of ours.
const HEAD_LIMIT: usize = 32 << 10;
const BODY_LIMIT: usize = 128 << 20;
/// The longest life of a token, and how far clocks may differ, in seconds.
const TOKEN_LIFE: i64 = 3600;
const SKEW: i64 = 300;
const METADATA_TOKEN: &str = "token-of-the-metadata-server";

/// The service, with one bucket in it.
#[derive(Debug)]
pub struct GcsDouble {
    service: Arc<Service>,
}

#[derive(Debug)]
struct Service {
    address: SocketAddr,
    bucket: String,
    /// Private and public key of the service accounts.
    keys: tempfile::TempDir,
    objects: Mutex<BTreeMap<String, Object>>,
    generation: AtomicUsize,
    /// Answers to the next requests, whatever they ask.
    refusals: Mutex<VecDeque<u16>>,
    /// Tokens found good, and whose they are.
    known: Mutex<BTreeMap<String, String>>,
    metadata_tokens: AtomicUsize,
    ended: AtomicBool,
}

#[derive(Debug, Clone)]
struct Object {
    body: Arc<Vec<u8>>,
    generation: usize,
    written: Timestamp,
}

impl Drop for GcsDouble {
    fn drop(&mut self) {
        self.service.ended.store(true, Ordering::Release);
        TcpStream::connect(self.service.address).ok(); // it waits for a connection
    }
}

impl GcsDouble {
    /// Starts it on a free port.
    pub fn start(bucket: &str) -> Result<Self> {
        let keys = tempfile::tempdir()?;
        openssl(&["genpkey", "-quiet", "-algorithm", "RSA", "-out"], keys.path(), "private.pem")?;
        openssl(&["pkey", "-in", "private.pem", "-pubout", "-out"], keys.path(), "public.pem")?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let service = Arc::new(Service {
            address: listener.local_addr()?,
            bucket: bucket.to_owned(),
            keys,
            objects: Mutex::default(),
            generation: AtomicUsize::new(1),
            refusals: Mutex::default(),
            known: Mutex::default(),
            metadata_tokens: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&service);
        thread::spawn(move || {
            for connection in listener.incoming() {
                if accepting.ended.load(Ordering::Acquire) {
                    break;
                }
                let (Ok(connection), service) = (connection, Arc::clone(&accepting)) else { continue };
                thread::spawn(move || service.serve(&connection));
            }
        });
        Ok(Self { service })
    }

    /// Where it is.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.service.address)
    }

    /// Host and port, as `GCE_METADATA_HOST` wants them.
    pub fn address(&self) -> String {
        self.service.address.to_string()
    }

    /// The key file of a service account, as Google's console makes it. The address of its token server is never asked.
    pub fn key_of(&self, account: &str) -> Result<String> {
        Ok(json!({
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "key-1",
            "private_key": fs::read_to_string(self.service.keys.path().join("private.pem"))?,
            "client_email": account,
            "client_id": "1",
            "token_uri": format!("{}/token", self.endpoint()),
        })
        .to_string())
    }

    /// Answers the next requests with these codes and does nothing of what they ask.
    pub fn refuse_next(&self, codes: &[u16]) {
        lock(&self.service.refusals).extend(codes);
    }

    /// How many of those answers are still to be given.
    pub fn refusals_left(&self) -> usize {
        lock(&self.service.refusals).len()
    }

    /// How many tokens the metadata server gave out.
    pub fn metadata_tokens(&self) -> usize {
        self.service.metadata_tokens.load(Ordering::Acquire)
    }

    /// The names of all objects.
    pub fn names(&self) -> Vec<String> {
        lock(&self.service.objects).keys().cloned().collect()
    }
}

fn openssl(args: &[&str], dir: &Path, last: &str) -> Result<()> {
    let mut openssl = Command::new("openssl");
    let done =
        openssl.current_dir(dir).args(args).arg(last).stderr(Stdio::null()).stdout(Stdio::null()).status();
    ensure!(done.context("run openssl")?.success(), "openssl {args:?}");
    Ok(())
}

/// A panic elsewhere is that test's; the objects are as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    /// The next request of a connection; `None` at its end.
    fn read(from: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Self>> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let read = from.by_ref().take(32 << 10).read_until(b'\n', &mut head)?;
            if read == 0 || head.len() > HEAD_LIMIT {
                return Ok(None);
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let header = |line: &str| {
            line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let mut request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.split('&').filter_map(|pair| pair.split_once('=')).map(decoded_pair).collect(),
            headers: lines.filter_map(header).collect(),
            body: Vec::new(),
        };
        let length =
            request.headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if length > BODY_LIMIT {
            return Ok(None);
        }
        request.body = vec![0; length];
        from.read_exact(&mut request.body)?;
        Ok(Some(request))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

fn decoded_pair((name, value): (&str, &str)) -> (String, String) {
    (decoded(&name.replace('+', " ")), decoded(&value.replace('+', " ")))
}

/// Percent-decoding.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        bytes.extend(u8::from_str_radix(hex, 16).ok());
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Debug, Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Of a body that is only told of (HEAD).
    length: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    fn refusal(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        );
        Self::new(status, body).with("Content-Type", "application/xml; charset=UTF-8")
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn write(mut self, mut to: &TcpStream, method: &str) -> std::io::Result<()> {
        let length = self.length.unwrap_or(self.body.len());
        if method == "HEAD" {
            self.body.clear();
        }
        let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {length}\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        to.write_all(head.as_bytes())?;
        to.write_all(&self.body)
    }
}

impl Service {
    fn serve(&self, connection: &TcpStream) {
        let mut reader = BufReader::new(connection);
        while let Ok(Some(request)) = Request::read(&mut reader) {
            let answer = self.answer(&request).unwrap_or_else(|refusal| refusal);
            if answer.write(connection, &request.method).is_err() || self.ended.load(Ordering::Acquire) {
                break;
            }
        }
    }

    fn answer(&self, request: &Request) -> Result<Answer, Answer> {
        if request.path.starts_with("/computeMetadata/") {
            return self.metadata(request);
        }
        if request.header("host") != Some(&self.address.to_string()) {
            return Err(Answer::refusal(400, "InvalidURI"));
        }
        if let Some(status) = lock(&self.refusals).pop_front() {
            return Err(Answer::refusal(status, "SlowDown").with("Retry-After", "1"));
        }
        let account = self.account(request)?;
        let mut parts = request.path.strip_prefix('/').unwrap_or_default().splitn(2, '/');
        let (bucket, name) = (decoded(parts.next().unwrap_or_default()), parts.next().map(decoded));
        if bucket != self.bucket {
            return Err(Answer::refusal(404, "NoSuchBucket"));
        }
        let name = name.filter(|name| !name.is_empty());
        let may_write = account == WRITER;
        match (request.method.as_str(), name) {
            ("GET", None) => self.list(request),
            ("GET" | "HEAD", Some(name)) => self.get(&name, request),
            ("PUT" | "DELETE", Some(_)) if !may_write => Err(Answer::refusal(403, "AccessDenied")),
            ("PUT", Some(name)) => self.put(name, request),
            ("DELETE", Some(name)) => self.delete(&name),
            _ => Err(Answer::refusal(405, "MethodNotAllowed")),
        }
    }

    /// What the metadata server of a machine answers; its header is what keeps a browser from asking.
    fn metadata(&self, request: &Request) -> Result<Answer, Answer> {
        if request.header("metadata-flavor") != Some("Google") {
            return Err(Answer::new(403, "Missing required header: Metadata-Flavor"));
        }
        if !request.path.ends_with("/instance/service-accounts/default/token") {
            return Err(Answer::new(404, "not found"));
        }
        self.metadata_tokens.fetch_add(1, Ordering::AcqRel);
        let token =
            json!({ "access_token": METADATA_TOKEN, "expires_in": TOKEN_LIFE, "token_type": "Bearer" });
        Ok(Answer::new(200, token.to_string()).with("Content-Type", "application/json"))
    }

    /// Whose token came with the request.
    fn account(&self, request: &Request) -> Result<String, Answer> {
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Err(Answer::refusal(403, "AccessDenied"));
        };
        if token == METADATA_TOKEN {
            return Ok(WRITER.to_owned());
        }
        if let Some(account) = lock(&self.known).get(token) {
            return Ok(account.clone());
        }
        let account = self.signer(token).map_err(|_| Answer::refusal(401, "AuthenticationRequired"))?;
        if ![WRITER, READER].contains(&account.as_str()) {
            return Err(Answer::refusal(403, "AccessDenied"));
        }
        lock(&self.known).insert(token.to_owned(), account.clone());
        Ok(account)
    }

    /// The issuer of a JSON Web Token that is signed with the private key, and of now.
    fn signer(&self, token: &str) -> Result<String> {
        let (message, signature) = token.rsplit_once('.').context("three parts")?;
        let (header, claims) = message.split_once('.').context("three parts")?;
        let parsed = |part| -> Result<Value> { Ok(serde_json::from_slice(&base64url(part)?)?) };
        let (header, claims) = (parsed(header)?, parsed(claims)?);
        ensure!(header["alg"] == "RS256" && header["kid"] == "key-1", "header {header}");
        let (issued, expires) =
            (claims["iat"].as_i64().context("iat")?, claims["exp"].as_i64().context("exp")?);
        let now = Timestamp::now().as_second();
        ensure!(issued <= now + SKEW && now < expires && expires - issued <= TOKEN_LIFE, "hours {claims}");
        let scopes = claims["scope"].as_str().context("scope")?;
        let enough =
            |scope: &str| scope.ends_with("/cloud-platform") || scope.ends_with("/devstorage.read_write");
        ensure!(scopes.split(' ').any(enough) && claims["iss"] == claims["sub"], "claims {claims}");
        let dir = tempfile::tempdir_in(self.keys.path())?;
        fs::write(dir.path().join("signature"), base64url(signature)?)?;
        fs::write(dir.path().join("message"), message)?;
        let verify = ["dgst", "-sha256", "-verify", "../public.pem", "-signature", "signature"];
        openssl(&verify, dir.path(), "message")?;
        Ok(claims["iss"].as_str().context("iss")?.to_owned())
    }

    fn put(&self, name: String, request: &Request) -> Result<Answer, Answer> {
        if request.header("content-length").is_none() {
            return Err(Answer::refusal(411, "MissingContentLength"));
        }
        let wanted = request.header("x-goog-if-generation-match").map(str::parse::<usize>).transpose();
        let wanted = wanted.map_err(|_| Answer::refusal(400, "InvalidArgument"))?;
        let mut objects = lock(&self.objects);
        let present = objects.get(&name).map_or(0, |object| object.generation);
        if wanted.is_some_and(|wanted| wanted != present) {
            return Err(Answer::refusal(412, "PreconditionFailed"));
        }
        let generation = self.generation.fetch_add(1, Ordering::AcqRel);
        let body = Arc::new(request.body.clone());
        objects.insert(name, Object { body, generation, written: Timestamp::now() });
        Ok(Answer::new(200, "")
            .with("ETag", format!("\"{generation}\""))
            .with("x-goog-generation", generation.to_string()))
    }

    fn get(&self, name: &str, request: &Request) -> Result<Answer, Answer> {
        let object = lock(&self.objects).get(name).cloned();
        let object = object.ok_or_else(|| Answer::refusal(404, "NoSuchKey"))?;
        let size = object.body.len();
        let whole = |status, body: &[u8]| {
            Answer::new(status, body)
                .with("ETag", format!("\"{}\"", object.generation))
                .with("x-goog-generation", object.generation.to_string())
                .with("Last-Modified", object.written.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        };
        let Some(range) = request.header("range") else {
            return Ok(Answer { length: Some(size), ..whole(200, &object.body) });
        };
        let bounds = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        let bounds =
            bounds.and_then(|(first, last)| Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok())));
        let (first, last) = bounds.ok_or_else(|| Answer::refusal(400, "InvalidArgument"))?;
        let end = last.map_or(size, |last| last.saturating_add(1).min(size));
        let part = object.body.get(first..end).filter(|part| !part.is_empty());
        let part = part.ok_or_else(|| Answer::refusal(416, "InvalidRange"))?;
        Ok(whole(206, part).with("Content-Range", format!("bytes {first}-{}/{size}", end - 1)))
    }

    fn delete(&self, name: &str) -> Result<Answer, Answer> {
        let removed = lock(&self.objects).remove(name);
        removed.map(|_| Answer::new(204, "")).ok_or_else(|| Answer::refusal(404, "NoSuchKey"))
    }

    fn list(&self, request: &Request) -> Result<Answer, Answer> {
        let of = |name: &str| request.query.get(name).map(String::as_str);
        let known = ["list-type", "prefix", "delimiter", "start-after", "continuation-token", "max-keys"];
        if of("list-type") != Some("2") || request.query.keys().any(|name| !known.contains(&name.as_str())) {
            return Err(Answer::refusal(400, "InvalidArgument"));
        }
        let (prefix, delimiter) = (of("prefix").unwrap_or(""), of("delimiter"));
        let most = of("max-keys").and_then(|most| most.parse().ok()).unwrap_or(PAGE).min(PAGE);
        let after = of("continuation-token").or_else(|| of("start-after")).unwrap_or("");
        let (mut items, mut truncated) = (Vec::new(), false);
        let objects = lock(&self.objects);
        for (key, object) in objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let rest = key.strip_prefix(prefix).unwrap_or_default();
            let folder = delimiter.and_then(|delimiter| Some(rest.split_once(delimiter)?.0));
            let item = folder.map_or_else(|| key.clone(), |folder| format!("{prefix}{folder}/"));
            if item.as_str() <= after || items.last().is_some_and(|(last, _)| *last == item) {
                continue;
            }
            if items.len() == most {
                truncated = true;
                break;
            }
            items.push((item, folder.is_none().then_some(object)));
        }
        let mut xml = "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>".to_owned();
        for (item, object) in &items {
            let item = escaped(item);
            xml.push_str(&match object {
                None => format!("<CommonPrefixes><Prefix>{item}</Prefix></CommonPrefixes>"),
                Some(object) => format!(
                    "<Contents><Key>{item}</Key><Generation>{generation}</Generation><LastModified>{}</LastModified>\
                     <ETag>\"{generation}\"</ETag><Size>{}</Size></Contents>",
                    object.written,
                    object.body.len(),
                    generation = object.generation,
                ),
            });
        }
        let token = items.last().filter(|_| truncated).map(|(last, _)| escaped(last));
        let token = token.map(|last| format!("<NextContinuationToken>{last}</NextContinuationToken>"));
        xml.push_str(&format!("<IsTruncated>{truncated}</IsTruncated>{}", token.unwrap_or_default()));
        xml.push_str("</ListBucketResult>");
        Ok(Answer::new(200, xml).with("Content-Type", "application/xml; charset=UTF-8"))
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Base64 with the alphabet of URLs and without padding.
fn base64url(text: &str) -> Result<Vec<u8>> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0_u32);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => anyhow::bail!("no base64: {letter}"),
        };
        (bits, held) = ((bits << 6) | u32::from(value), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.extend((bits >> held).to_le_bytes().first());
            bits &= (1 << held) - 1;
        }
    }
    Ok(bytes)
}
