//! What a cloud's store makes of an answer, for tests: the same bytes are the answer to every request, and nothing is sent.
//!
//! Whoever stands between us and a bucket may answer anything. A made-up answer takes the place of the socket below object_store, so that
//! what reads XML, headers, dates and refusals is all that runs in production. Feature `testing`.

use std::cell::RefCell;

use bytes::Bytes;
use jiff::Timestamp;
use object_store::HeaderValue;
use object_store::client::{HttpError, HttpErrorKind, HttpResponse};

use super::backend::{Backend as _, Created, Listing, Payload};
use super::error::{Fault, StoreError};
use super::options::StoreOptions;
use super::remote::Remote;
use super::s3::{Bucket, Protection, retention};
use super::url::StoreUrl;

thread_local! {
    /// The answer to every request of this thread; with none, requests are sent.
    static SAID: RefCell<Option<Answer>> = const { RefCell::new(None) };
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// 100 to 999.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// What follows the headers.
    pub body: Bytes,
}

impl Answer {
    /// What HTTP cannot carry fails as it would where it is read.
    fn response(&self) -> Result<HttpResponse, HttpError> {
        let mut response = HttpResponse::new(self.body.clone().into());
        *response.status_mut() =
            self.status.try_into().map_err(|error| HttpError::new(HttpErrorKind::Decode, error))?;
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(value)
                .map_err(|error| HttpError::new(HttpErrorKind::Decode, error))?;
            response.headers_mut().insert(*name, value);
        }
        Ok(response)
    }
}

/// The answer that this thread is to take for the store's.
pub(super) fn said() -> Option<Result<HttpResponse, HttpError>> {
    SAID.with_borrow(|said| said.as_ref().map(Answer::response))
}

/// What each call came to. An error is its text.
#[derive(Debug, Clone)]
pub struct Heard {
    /// A create.
    pub created: Result<Created, String>,
    /// The bytes of an object; `None`: proven absent.
    pub read: Result<Option<Bytes>, String>,
    /// Its size.
    pub size: Result<Option<u64>, String>,
    /// Keys and folders of a listing.
    pub listed: Result<Vec<String>, String>,
    /// A delete, which an absent object does not make fail.
    pub deleted: Result<(), String>,
    /// The retention that new objects get, if the body is the settings of a bucket.
    pub retention: Option<String>,
    /// What only S3 has.
    pub versions: Option<HeardVersions>,
}

/// What each call about versions and locks came to. An error is its text.
#[derive(Debug, Clone)]
pub struct HeardVersions {
    /// The version of the current object.
    pub current: Result<Option<String>, String>,
    /// The bytes of a version; `None`: there is none.
    pub read: Result<Option<Bytes>, String>,
    /// A deletion by name: the version of the marker.
    pub marked: Result<Option<String>, String>,
    /// A deletion of a version.
    pub deleted: Result<(), String>,
    /// The end of a retention was moved.
    pub shortened: Result<(), String>,
    /// What the bucket does with what is overwritten or deleted.
    pub protection: Result<Protection, String>,
}

/// A store in a cloud that is never asked.
#[derive(Debug)]
pub struct Cloud(Remote);

impl Cloud {
    /// Opens it.
    ///
    /// # Errors
    /// As [`super::Store::open`].
    pub fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, StoreError> {
        Remote::open(url, options).map(Self).map_err(|fault| fault.on("open", url.to_string()))
    }

    /// Makes each call once, on the object `key`, and takes `answer` for what the store says.
    pub async fn hear(&self, key: &str, answer: &Answer) -> Heard {
        SAID.with_borrow_mut(|said| *said = Some(answer.clone()));
        let heard = self.calls(key, answer).await;
        SAID.with_borrow_mut(|said| *said = None);
        heard
    }

    async fn calls(&self, key: &str, answer: &Answer) -> Heard {
        let text = |fault: Fault| fault.cause;
        let listing = Listing { prefix: key.to_owned(), fold: true, ..Listing::default() };
        let page = self.0.list(&listing).await.map_err(text);
        Heard {
            created: self.0.create(key, &Payload::from(b"body".to_vec())).await.map_err(text),
            read: self.read(key).await.map_err(text),
            size: self.0.head(key).await.map(|info| info.map(|info| info.size)).map_err(text),
            listed: page.map(|page| page.objects.into_iter().map(|info| info.key).chain(page.dirs).collect()),
            deleted: self.0.delete(key).await.map_err(text),
            retention: retention(&String::from_utf8_lossy(&answer.body)),
            versions: match self.0.bucket() {
                Some(bucket) => Some(of_versions(bucket, key).await),
                None => None,
            },
        }
    }

    async fn read(&self, key: &str) -> Result<Option<Bytes>, Fault> {
        use futures_util::TryStreamExt as _;
        let Some(opened) = self.0.open(key, None).await? else { return Ok(None) };
        let pieces: Vec<Bytes> = opened.body.try_collect().await?;
        Ok(Some(pieces.concat().into()))
    }
}

async fn of_versions(bucket: &Bucket, key: &str) -> HeardVersions {
    let text = |fault: Fault| fault.cause;
    HeardVersions {
        current: bucket.version(key).await.map_err(text),
        read: bucket.read(key, "1").await.map_err(text),
        marked: bucket.delete_by_name(key).await.map_err(text),
        deleted: bucket.delete_past_retention(key, "1").await.map_err(text),
        shortened: bucket.shorten(key, "1", Timestamp::UNIX_EPOCH).await.map_err(text),
        protection: bucket.protection().await.map_err(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody is asked instead: the host of this bucket is not there, and its name is looked up by nobody.
    #[tokio::test]
    async fn an_answer_that_http_cannot_carry_is_a_broken_one() {
        let credentials = [("aws_access_key_id", "A"), ("aws_secret_access_key", "S")].into_iter().collect();
        let options = StoreOptions { credentials, ..StoreOptions::default() };
        let cloud = Cloud::open(&"s3://bucket/prefix".parse().unwrap(), &options).unwrap();
        for (status, value) in [(200, &b"two\nlines"[..]), (99, b"plain")] {
            let answer = Answer { status, headers: vec![("etag", value.to_vec())], body: Bytes::new() };
            let heard = cloud.hear("key", &answer).await;
            let read = heard.read.unwrap_err();
            assert!(read.contains("invalid") || read.contains("failed to parse"), "{read}");
            assert!(heard.created.is_err() && heard.listed.is_err() && heard.deleted.is_err());
        }
    }

    /// object_store would take the number for an index, or its lack for a success.
    #[tokio::test]
    async fn an_answer_to_a_batch_is_about_the_one_object_in_it() {
        let credentials = [("azure_storage_account_name", "a"), ("azure_storage_account_key", "c2VjcmV0")];
        let credentials = credentials.into_iter().collect();
        let options = StoreOptions { credentials, ..StoreOptions::default() };
        let cloud = Cloud::open(&"az://container/prefix".parse().unwrap(), &options).unwrap();
        let part = |id: &str, status: &str| format!("--b\r\n{id}\r\nHTTP/1.1 {status}\r\n\r\n");
        let of = |id: &str, status: &str| part(&format!("Content-ID: {id}\r\n"), status);
        for (parts, well) in [
            (of("0", "202 Accepted"), true),
            (of("0", "403 Forbidden"), false),
            (of("5", "404 Not Found"), false),
            (of("5", "202 Accepted"), false),
            (of("0", "202 Accepted") + &of("1", "404 Not Found"), false),
            (part("", "202 Accepted"), false),
        ] {
            let headers = vec![("content-type", b"multipart/mixed; boundary=b".to_vec())];
            let answer = Answer { status: 202, headers, body: format!("{parts}--b--\r\n").into() };
            let heard = cloud.hear("key", &answer).await;
            assert_eq!(heard.deleted.is_ok(), well, "{parts} {heard:?}");
        }
    }
}
