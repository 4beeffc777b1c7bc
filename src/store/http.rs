//! The HTTP client under object_store, with one change: it keeps what a refusal said.
//!
//! object_store reduces a refused request to a few kinds of error. pitr needs more: the error code tells a missing
//! object from a missing bucket, a header tells a deleted object from one that never was, another the region. So every
//! answer that is no success becomes a [`Refusal`], which travels up the chain of errors whole.
//! Requests for credentials go through the same client, to other servers. Their failures are kept apart: a metadata
//! service that answers 404 says nothing about an object.
//! Invariants: a [`Refusal`] comes from the store itself; at most [`BODY_LIMIT`] bytes of one are read.
//! Source of truth: the S3 API "Error responses", Azure Blob "Status and error codes".

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use object_store::ClientOptions;
use object_store::client::{
    DnsFuture, DnsResolver, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

use crate::clock::{Clock as _, SystemClock};
use crate::resolve;

/// What looking up the store's name may take; connecting has a limit of its own, which covers it.
const LOOKUP: Duration = Duration::from_secs(10);
/// Clocks that differ by less are never the reason of a refusal: S3 and Azure permit a quarter of an hour, Google's tokens some minutes.
const APART: SignedDuration = SignedDuration::from_mins(4);
/// What is read of the body of a refusal.
const BODY_LIMIT: usize = 16 << 10;
/// Characters of its message that are shown.
const MESSAGE_LIMIT: usize = 200;

/// An answer that is no success.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// `NoSuchKey`, `SignatureDoesNotMatch`, ...; empty if the answer had none.
    pub(super) code: String,
    pub(super) message: String,
    /// The object is there, under a delete marker.
    pub(super) delete_marker: bool,
    /// Where the bucket is, if it is elsewhere.
    pub(super) region: Option<String>,
    /// How far this host's clock is ahead of the store's, if it is by so much that a request can be refused for it.
    pub(super) ahead: Option<SignedDuration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store answered {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if let Some(ahead) = self.ahead {
            let side = if ahead.is_negative() { "behind" } else { "ahead of" };
            write!(f, "; this host's clock is {} {side} the store's", amount(ahead))?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// The size of a difference between two clocks.
fn amount(difference: SignedDuration) -> String {
    let minutes = difference.unsigned_abs().as_secs() / 60;
    match (minutes / (24 * 60), minutes / 60, minutes % 60) {
        (days, ..) if days >= 2 => format!("{days} d"),
        (_, 0, minutes) => format!("{minutes} min"),
        (_, hours, 0) => format!("{hours} h"),
        (_, hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

/// The server that gives out credentials did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no credentials from {server}: {cause}")]
pub(super) struct NoCredentials {
    pub(super) server: String,
    pub(super) cause: String,
    /// What it answered, if it did.
    pub(super) status: Option<u16>,
}

/// Names of hosts are looked up as for PostgreSQL, not by the C library.
#[derive(Debug)]
pub(super) struct Names;

impl DnsResolver for Names {
    fn resolve(&self, host: &str) -> DnsFuture {
        let host = host.to_owned();
        Box::pin(async move { Ok(resolve::lookup(&host, LOOKUP).await?) })
    }
}

/// Connects as object_store does, and wraps the client.
#[derive(Debug)]
pub(super) struct Connector {
    /// The bucket or container: every request to the store names it, no request for credentials does.
    root: String,
    inner: ReqwestConnector,
}

impl Connector {
    pub(super) fn new(root: &str) -> Self {
        Self { root: root.to_owned(), inner: ReqwestConnector::default() }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Client { root: self.root.clone(), inner: self.inner.connect(options)? }))
    }
}

#[derive(Debug)]
struct Client {
    root: String,
    inner: HttpClient,
}

impl Client {
    async fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        #[cfg(feature = "testing")]
        if let Some(said) = super::answers::said() {
            return said;
        }
        self.inner.execute(request).await
    }
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let server = request.uri().host().unwrap_or_default().to_owned();
        let of_store = names(&server, request.uri().path(), &self.root);
        let no_credentials = |kind, cause, status| {
            HttpError::new(kind, NoCredentials { server: server.clone(), cause, status })
        };
        let of_batch = request.uri().query().is_some_and(|query| query.contains("comp=batch"));
        let response = match self.execute(request).await {
            Ok(response) if response.status().is_success() && of_batch => return only_part(response).await,
            Ok(response) if response.status().is_success() => return Ok(response),
            Ok(response) => response,
            Err(error) if of_store => return Err(error),
            Err(error) => return Err(no_credentials(error.kind(), innermost(&error), None)),
        };
        let refusal = read_refusal(response).await;
        Err(if of_store {
            HttpError::new(HttpErrorKind::Unknown, refusal)
        } else {
            no_credentials(HttpErrorKind::Unknown, refusal.to_string(), Some(refusal.status))
        })
    }
}

/// Azure deletes in batches; each of ours has one part. object_store takes the number of a part for an index, and a part that is not there for a
/// success: an answer that is about anything but our part is none.
async fn only_part(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (parts, body) = response.into_parts();
    let (body, broken) = read_bytes(body).await;
    if let Some(error) = broken {
        return Err(error);
    }
    let text = String::from_utf8_lossy(&body);
    let numbers =
        text.lines().filter_map(|line| line.split_once(':').filter(|(name, _)| is_content_id(name)));
    let numbers: Vec<&str> = numbers.map(|(_, number)| number.trim()).collect();
    if numbers == ["0"] && body.len() < BODY_LIMIT {
        return Ok(HttpResponse::from_parts(parts, Bytes::from(body).into()));
    }
    let strange = std::io::Error::other("the answer to a batch is not about the one object in it");
    Err(HttpError::new(HttpErrorKind::Decode, strange))
}

fn is_content_id(name: &str) -> bool {
    name.trim().eq_ignore_ascii_case("content-id")
}

/// Is this request about the bucket? It is part of the host or of the path.
fn names(host: &str, path: &str, root: &str) -> bool {
    let in_host = host == root || host.strip_prefix(root).is_some_and(|rest| rest.starts_with('.'));
    in_host || path.split('/').any(|part| is_encoded(part, root))
}

/// Is `part` of a path `text`, with any of its bytes as `%2D`? For GCS, object_store writes all of a bucket's name so that is no
/// letter or digit.
fn is_encoded(part: &str, text: &str) -> bool {
    let mut rest = part;
    for byte in text.bytes() {
        let encoded = format!("%{byte:02X}");
        let plain = char::from(byte);
        let Some(after) = rest.strip_prefix(plain).or_else(|| rest.strip_prefix(encoded.as_str())) else {
            return false;
        };
        rest = after;
    }
    rest.is_empty()
}

/// The innermost cause, which is the one that tells.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error).to_string()
}

async fn read_refusal(response: HttpResponse) -> Refusal {
    let header = |name: &str| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.map(|value| value.chars().take(MESSAGE_LIMIT).collect::<String>())
    };
    let mut refusal = Refusal {
        status: response.status().as_u16(),
        code: header("x-ms-error-code").unwrap_or_default(),
        delete_marker: header("x-amz-delete-marker").as_deref() == Some("true"),
        region: header("x-amz-bucket-region"),
        ..Refusal::default()
    };
    let date = header("date");
    let body = read_some(response.into_body()).await;
    if let Some(code) = element(&body, "Code") {
        refusal.code = code;
    }
    let message = element(&body, "Message").or_else(|| (!body.contains('<')).then(|| shown(&body)));
    refusal.message = message.unwrap_or_default();
    if matches!(refusal.status, 400 | 401 | 403) {
        let told = element(&body, "ServerTime").or(date);
        refusal.ahead = told.and_then(|told| clock_apart(&told, SystemClock.now()));
    }
    refusal
}

/// How far `now` is ahead of the time that a store told, if that is worth a word.
fn clock_apart(told: &str, now: Timestamp) -> Option<SignedDuration> {
    let of_http = || jiff::fmt::rfc2822::parse(told).map(|zoned| zoned.timestamp());
    let ahead = now.duration_since(told.parse::<Timestamp>().or_else(|_| of_http()).ok()?);
    // To the next minute, because the answer was under way for a while.
    let rounded = SignedDuration::from_mins((ahead.as_secs() + 30 * ahead.as_secs().signum()) / 60);
    (ahead.abs() >= APART).then_some(rounded)
}

/// The beginning of a body, as far as it comes.
pub(super) async fn read_some(body: HttpResponseBody) -> String {
    String::from_utf8_lossy(&read_bytes(body).await.0).into_owned()
}

/// The beginning of a body, and what it broke off with.
async fn read_bytes(body: HttpResponseBody) -> (Vec<u8>, Option<HttpError>) {
    let mut bytes = Vec::new();
    let mut stream = body.bytes_stream();
    let mut broken = None;
    while bytes.len() < BODY_LIMIT && broken.is_none() {
        match stream.next().await {
            Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
            Some(Err(error)) => broken = Some(error),
            None => break,
        }
    }
    bytes.truncate(BODY_LIMIT);
    (bytes, broken)
}

/// The text of the first element of this name.
pub(super) fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(shown(text))
}

/// The text on one line and not too long. What cannot be shown leaves a mark: without it a mangled code would read as another one, such as
/// that which says that an object is not there.
fn shown(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().map(|c| if c.is_control() { '?' } else { c }).take(MESSAGE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_the_stores_if_it_names_the_bucket() {
        for (host, path) in [
            ("127.0.0.1", "/bkt/key"),
            ("bkt.s3.eu.amazonaws.com", "/key"),
            ("h", "/account/bkt"),
            ("h", "/bkt"),
        ] {
            assert!(names(host, path, "bkt"), "{host}{path}");
        }
        assert!(names("h", "/a%2Db%5Fc/key", "a-b_c") && names("h", "/a-b_c", "a-b_c"));
        assert!(!names("h", "/a%2Db", "a-b_c") && !names("h", "/a%2Db%5Fcd", "a-b_c"));
        for (host, path) in [("169.254.169.254", "/latest/api/token"), ("bktx.h", "/"), ("h", "/bktx/bk")] {
            assert!(!names(host, path, "bkt"), "{host}{path}");
        }
    }

    #[test]
    fn clocks_that_differ_are_told_in_words_from_either_form_of_time() {
        let now: Timestamp = "2026-11-26T12:00:10Z".parse().unwrap();
        let said = |told: &str| {
            let refusal = Refusal { status: 403, ahead: clock_apart(told, now), ..Refusal::default() };
            refusal.to_string().split_once("; ").map(|(_, words)| words.to_owned())
        };
        let words = |words: &str| Some(format!("this host's clock is {words} the store's"));
        assert_eq!(said("2026-11-26T09:00:00Z"), words("3 h ahead of"));
        assert_eq!(said("Thu, 26 Nov 2026 12:20:00 GMT"), words("20 min behind"));
        assert_eq!(said("Thu, 26 Nov 2026 10:30:00 GMT"), words("1 h 30 min ahead of"));
        assert_eq!(said("2025-10-22T12:00:00Z"), words("400 d ahead of"));
        for unworthy in ["2026-11-26T11:58:00Z", "", "yesterday", "9999-99-99T00:00:00Z"] {
            assert_eq!(said(unworthy), None, "{unworthy}");
        }
    }

    #[test]
    fn code_and_message_are_found_in_the_body_and_shortened() {
        let xml = "<?xml?><Error><Code>NoSuchKey</Code><Message>The key\n does not exist.</Message></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("NoSuchKey"));
        assert_eq!(element(xml, "Message").as_deref(), Some("The key does not exist."));
        assert_eq!(element("<Code>open", "Code"), None);
        assert_eq!(shown(&"x".repeat(9999)).len(), MESSAGE_LIMIT);
        assert_eq!(shown("a\u{1b}[31m b"), "a?[31m b");
        assert_eq!(element("<Code>NoSuch\u{4}\0Key</Code>", "Code").as_deref(), Some("NoSuch??Key"));
    }
}
