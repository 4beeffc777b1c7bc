//! The HTTP client under object_store, with one change: it keeps what a refusal said.
//!
//! object_store reduces a refused request to a few kinds of error. pitr needs more: the error code tells a missing
//! object from a missing bucket, a header tells a deleted object from one that never was, another the region. So every
//! answer that is no success becomes a [`Refusal`], which travels up the chain of errors whole.
//! Invariants: at most [`BODY_LIMIT`] bytes of a refusal are read; nothing secret is in it.
//! Source of truth: the S3 API "Error responses", Azure Blob "Status and error codes".

use std::fmt;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};

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
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// Connects as object_store does, and wraps the client.
#[derive(Debug, Default)]
pub(super) struct Connector(ReqwestConnector);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Client(self.0.connect(options)?)))
    }
}

#[derive(Debug)]
struct Client(HttpClient);

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.execute(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.map(|value| value.chars().take(MESSAGE_LIMIT).collect::<String>())
        };
        let mut refusal = Refusal {
            status: status.as_u16(),
            code: header("x-ms-error-code").unwrap_or_default(),
            delete_marker: header("x-amz-delete-marker").as_deref() == Some("true"),
            region: header("x-amz-bucket-region"),
            ..Refusal::default()
        };
        let body = read_some(response.into_body()).await;
        if let Some(code) = element(&body, "Code") {
            refusal.code = code;
        }
        let message = element(&body, "Message").or_else(|| (!body.contains('<')).then(|| shown(&body)));
        refusal.message = message.unwrap_or_default();
        Err(HttpError::new(HttpErrorKind::Unknown, refusal))
    }
}

/// The beginning of a body, as far as it comes.
async fn read_some(body: HttpResponseBody) -> String {
    let mut bytes = Vec::new();
    let mut stream = body.bytes_stream();
    while bytes.len() < BODY_LIMIT
        && let Some(Ok(chunk)) = stream.next().await
    {
        bytes.extend_from_slice(&chunk);
    }
    bytes.truncate(BODY_LIMIT);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The text of the first element of this name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(shown(text))
}

/// The text on one line and not too long.
fn shown(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().filter(|c| !c.is_control()).take(MESSAGE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_message_are_found_in_the_body_and_shortened() {
        let xml = "<?xml?><Error><Code>NoSuchKey</Code><Message>The key\n does not exist.</Message></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("NoSuchKey"));
        assert_eq!(element(xml, "Message").as_deref(), Some("The key does not exist."));
        assert_eq!(element("<Code>open", "Code"), None);
        assert_eq!(shown(&"x".repeat(9999)).len(), MESSAGE_LIMIT);
        assert_eq!(shown("a\u{1b}[31m b"), "a[31m b");
    }
}
