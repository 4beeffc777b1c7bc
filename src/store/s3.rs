//! What only S3 has: versions of an object, and object lock.
//!
//! object_store reads a version and tells the version of the current object; it can neither delete one nor ask for the
//! bucket's settings. Those requests are made here and signed by object_store's own signer, with the credentials of the
//! store, and go through the same client, so that a refusal means the same as elsewhere.
//! Invariants: nothing here is called while data is stored or read; what is deleted or unlocked is a probe
//! ([`super::attack`]); at most a few KiB of an answer are read.
//! Source of truth: the S3 API, `DeleteObject`, `PutObjectRetention`, `GetBucketVersioning`, `GetObjectLockConfiguration`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpConnector as _, HttpError, HttpRequest, HttpResponse};
use object_store::path::Path;
use object_store::signer::{HeaderValue, Method, Signer as _, Url};
use object_store::{ClientOptions, GetOptions, ObjectStore as _, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};

use super::error::{Fault, StoreErrorKind};
use super::http::{Connector, element, read_some};
use super::remote::{judge, refusal_of};

/// Permits what a retention in governance mode forbids, to who has the right to bypass it.
const BYPASS: &str = "x-amz-bypass-governance-retention";
/// How it is said that a bucket has no object lock: asked for its settings, for a retention, and to bypass one. Of the last two the codes
/// (`InvalidRequest`, `InvalidArgument`) say other things too, hence their words.
const NO_LOCK: [&str; 3] = [
    "ObjectLockConfigurationNotFoundError",
    "Bucket is missing Object",
    "only applicable to Object Lock enabled buckets",
];
/// A URL that is signed only to learn where an object is.
const PASSING: Duration = Duration::from_secs(60);

/// What a bucket does with an object that is overwritten or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// It keeps the version before.
    Kept,
    /// It kept versions once, and replaces now.
    Suspended,
    /// It replaces and deletes.
    None,
}

/// What a bucket itself does against the loss of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protection {
    /// Whether versions are kept.
    pub versions: Versions,
    /// Object lock is on.
    pub lock: bool,
    /// What every new object gets without being asked: `COMPLIANCE, 30 days`.
    pub retention: Option<String>,
}

/// A bucket of S3, for the requests that object_store does not have.
#[derive(Debug)]
pub(super) struct Bucket {
    s3: Arc<AmazonS3>,
    region: String,
    name: String,
    options: ClientOptions,
    /// Opened by the first request.
    client: OnceLock<HttpClient>,
    /// Empty, or ends with `/`.
    prefix: String,
}

impl Bucket {
    pub(super) fn new(
        s3: Arc<AmazonS3>,
        region: String,
        name: &str,
        options: ClientOptions,
        prefix: &str,
    ) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { s3, region, name: name.to_owned(), options, client: OnceLock::new(), prefix }
    }

    fn path(&self, key: &str) -> Result<Path, Fault> {
        Path::parse(format!("{}{key}", self.prefix)).map_err(|error| Fault::usage(error.to_string()))
    }

    /// The version of the object that a plain read gets; `None` where no versions are kept.
    pub(super) async fn version(&self, key: &str) -> Result<Option<String>, Fault> {
        let meta = self.s3.head(&self.path(key)?).await.map_err(|error| judge(&error))?;
        Ok(meta.version)
    }

    /// A version of an object; `None` if there is no such version.
    pub(super) async fn read(&self, key: &str, version: &str) -> Result<Option<Bytes>, Fault> {
        let options = GetOptions { version: Some(version.to_owned()), ..GetOptions::default() };
        let error = match self.s3.get_opts(&self.path(key)?, options).await {
            Ok(found) => match found.bytes().await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => error,
            },
            Err(error) => error,
        };
        match refusal_of(&error) {
            Some(refusal) if refusal.status == 404 => Ok(None),
            _ => Err(judge(&error)),
        }
    }

    /// Deletes a version for good that nothing retains.
    pub(super) async fn delete(&self, key: &str, version: &str) -> Result<(), Fault> {
        self.remove(key, Some(version), false).await.map(drop)
    }

    /// Deletes a version for good, past a retention in governance mode if the credentials may.
    pub(super) async fn delete_past_retention(&self, key: &str, version: &str) -> Result<(), Fault> {
        // Not with the header at once: AWS refuses it to who may not bypass, even where nothing is retained, and in a bucket without
        // object lock to everybody.
        let refused = match self.delete(key, version).await {
            Err(fault) if fault.kind == StoreErrorKind::Credentials => fault,
            done => return done,
        };
        match self.remove(key, Some(version), true).await {
            Err(fault) if is_without_lock(&fault) => Err(refused),
            done => done.map(drop),
        }
    }

    /// Deletes an object by its name: the version of the delete marker that lies over it from then on. `None`: there is no marker.
    pub(super) async fn delete_by_name(&self, key: &str) -> Result<Option<String>, Fault> {
        let response = self.remove(key, None, false).await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let marked = header("x-amz-delete-marker") == Some("true");
        Ok(header("x-amz-version-id").filter(|_| marked).map(str::to_owned))
    }

    async fn remove(&self, key: &str, version: Option<&str>, bypass: bool) -> Result<HttpResponse, Fault> {
        let url = self.object_url(key).await?;
        let query: Vec<_> = version.map(|version| ("versionId", version)).into_iter().collect();
        let mut request = request(Method::DELETE, url, &query, Bytes::new())?;
        if bypass {
            request.headers_mut().insert(BYPASS, HeaderValue::from_static("true"));
        }
        self.send(request).await
    }

    /// Ends the retention of a version at `until`, which the store requires to be in the future.
    pub(super) async fn shorten(&self, key: &str, version: &str, until: Timestamp) -> Result<(), Fault> {
        let date = until.strftime("%Y-%m-%dT%H:%M:%SZ");
        let body = Bytes::from(format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>GOVERNANCE</Mode>\
             <RetainUntilDate>{date}</RetainUntilDate></Retention>"
        ));
        let sum = BASE64_STANDARD.encode(Sha256::digest(&body));
        let sum = HeaderValue::from_str(&sum).map_err(|error| Fault::usage(error.to_string()))?;
        let url = self.object_url(key).await?;
        let mut request = request(Method::PUT, url, &[("retention", ""), ("versionId", version)], body)?;
        let headers = request.headers_mut();
        headers.insert(BYPASS, HeaderValue::from_static("true"));
        headers.insert("x-amz-checksum-sha256", sum);
        headers.insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
        self.send(request).await.map(drop)
    }

    /// What the bucket does with what is overwritten or deleted.
    pub(super) async fn protection(&self) -> Result<Protection, Fault> {
        let lock = match self.ask("object-lock").await {
            Ok(answer) => answer,
            Err(fault) if is_without_lock(&fault) => String::new(),
            Err(fault) => return Err(fault),
        };
        let on = element(&lock, "ObjectLockEnabled").as_deref() == Some("Enabled");
        let kept = self.ask("versioning").await?;
        let versions = match element(&kept, "Status").as_deref() {
            Some("Enabled") => Versions::Kept,
            Some(_) => Versions::Suspended,
            None => Versions::None,
        };
        Ok(Protection { versions, lock: on, retention: retention(&lock).filter(|_| on) })
    }

    async fn ask(&self, what: &str) -> Result<String, Fault> {
        let mut url = self.object_url("x").await?;
        // The bucket, wherever its name is: what is above the prefix.
        let below = self.path("x")?.parts().count();
        if let Ok(mut parts) = url.path_segments_mut() {
            for _ in 0..below {
                parts.pop();
            }
        }
        let response = self.send(request(Method::GET, url, &[(what, "")], Bytes::new())?).await?;
        Ok(read_some(response.into_body()).await)
    }

    async fn object_url(&self, key: &str) -> Result<Url, Fault> {
        let signed = self.s3.signed_url(Method::GET, &self.path(key)?, PASSING).await;
        let mut url = signed.map_err(|error| judge(&error))?;
        url.set_query(None);
        Ok(url)
    }

    /// Signs and sends.
    async fn send(&self, mut request: HttpRequest) -> Result<HttpResponse, Fault> {
        let credentials = self.s3.credentials().get_credential().await.map_err(|error| judge(&error))?;
        let signer = AwsAuthorizer::new(&credentials, "s3", &self.region);
        signer.try_authorize(&mut request, None).map_err(|error| judge(&error))?;
        self.client()?.execute(request).await.map_err(judged)
    }

    fn client(&self) -> Result<&HttpClient, Fault> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Connector::new(&self.name).connect(&self.options).map_err(|error| judge(&error))?;
        Ok(self.client.get_or_init(|| client))
    }
}

/// Whether the store said that the bucket locks no objects.
pub(super) fn is_without_lock(fault: &Fault) -> bool {
    NO_LOCK.iter().any(|words| fault.cause.contains(words))
}

fn judged(error: HttpError) -> Fault {
    judge(&object_store::Error::Generic { store: "S3", source: Box::new(error) })
}

fn request(method: Method, mut url: Url, query: &[(&str, &str)], body: Bytes) -> Result<HttpRequest, Fault> {
    url.query_pairs_mut().extend_pairs(query);
    let mut request = HttpRequest::new(body.into());
    *request.method_mut() = method;
    *request.uri_mut() =
        url.as_str().parse().map_err(|_| Fault::usage("the URL of the bucket is impossible"))?;
    Ok(request)
}

/// `COMPLIANCE, 30 days`, of an object lock configuration that gives new objects a retention.
pub(super) fn retention(configuration: &str) -> Option<String> {
    let mode = element(configuration, "Mode").filter(|mode| !mode.is_empty())?;
    let span = |name: &str, unit: &str| {
        let count = element(configuration, name).filter(|count| !matches!(count.as_str(), "" | "0"))?;
        Some(format!("{count} {unit}"))
    };
    let span = span("Days", "days").or_else(|| span("Years", "years"))?;
    Some(format!("{mode}, {span}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_retention_is_read_from_the_configuration_and_nothing_else() {
        let of = |rule: &str| retention(&format!("<Rule><DefaultRetention>{rule}</DefaultRetention></Rule>"));
        assert_eq!(of("<Mode>COMPLIANCE</Mode><Days>30</Days>").as_deref(), Some("COMPLIANCE, 30 days"));
        assert_eq!(
            of("<Mode>GOVERNANCE</Mode><Days>0</Days><Years>2</Years>").as_deref(),
            Some("GOVERNANCE, 2 years")
        );
        assert_eq!(of("<Mode>GOVERNANCE</Mode>"), None);
        assert_eq!(retention("<ObjectLockConfiguration/>"), None);
    }

    #[test]
    fn a_bucket_without_object_lock_is_told_from_any_other_refusal() {
        let said = |code: &str, message: &str| {
            let fault =
                Fault::permanent(StoreErrorKind::Other, format!("the store answered 400 {code}: {message}"));
            is_without_lock(&fault)
        };
        assert!(said("InvalidRequest", "Bucket is missing Object Lock Configuration"));
        assert!(said("InvalidRequest", "Bucket is missing ObjectLockConfiguration"));
        let bypass = "x-amz-bypass-governance-retention is only applicable to Object Lock enabled buckets.";
        assert!(said("InvalidArgument", bypass));
        assert!(!said("InvalidRequest", "The retain until date must be in the future!"));
        assert!(!said("InvalidArgument", "Unknown wormMode directive."));
    }
}
