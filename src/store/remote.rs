//! S3, Google Cloud Storage and Azure Blob Storage over object_store.
//!
//! object_store signs and speaks the three languages; repetition and deadlines are ours, so that each attempt is
//! signed anew. What a refusal means is decided here, from its status and code.
//! Invariants: "not there" only if the store said so of the object itself: a 404 that may speak of the bucket is
//! settled by a listing; a conflict on a create is "the key is taken"; what may have reached the store before it failed
//! has an unknown outcome.
//! Source of truth: REPOSITORY.md section 2; the S3 API "Error responses", Azure Blob "Status and error codes".

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use object_store::{PutMode, PutOptions, PutPayload};

use super::backend::{Backend, Created, Listing, ObjectInfo, Opened, Page, Payload};
use super::builder::{self, Clients};
use super::error::{Class, Fault, StoreErrorKind};
use super::http::{NoCredentials, Refusal, innermost};
use super::options::StoreOptions;
use super::s3::Bucket;
use super::url::{KEY_LIMIT, StoreUrl};

/// How Azure refuses a create of a key that is taken to credentials that may create and not replace: the first to a token, the
/// second to a role as well, which may also mean that nothing at all may be created.
const OVERWRITES: [&str; 2] = ["UnauthorizedBlobOverwrite", "AuthorizationPermissionMismatch"];

/// A bucket or container, and what all keys in it begin with.
#[derive(Debug)]
pub(super) struct Remote {
    objects: Arc<dyn ObjectStore>,
    pages: PageStore,
    bucket: Option<Bucket>,
    /// Empty, or ends with `/`.
    prefix: String,
}

struct PageStore(Arc<dyn PaginatedListStore>);

impl std::fmt::Debug for PageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageStore")
    }
}

impl Remote {
    pub(super) fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, Fault> {
        let prefix = match url {
            StoreUrl::S3 { prefix, .. } | StoreUrl::Gcs { prefix, .. } | StoreUrl::Azure { prefix, .. } => {
                prefix
            }
            StoreUrl::File(_) | StoreUrl::Memory(_) => return Err(Fault::usage("it is not in a cloud")),
        };
        let Clients { objects, pages, bucket } = builder::build(url, options)?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { objects, pages: PageStore(pages), bucket, prefix })
    }

    fn path(&self, key: &str) -> Result<Path, Fault> {
        let key = format!("{}{key}", self.prefix);
        if key.len() > KEY_LIMIT {
            return Err(Fault::usage(format!(
                "with the prefix of the URL the key is longer than {KEY_LIMIT} bytes"
            )));
        }
        Path::parse(key).map_err(|error| Fault::usage(error.to_string()))
    }

    /// What a failed create means: the key is taken, or a fault whose outcome may be open.
    async fn create_outcome(&self, key: &str, error: &object_store::Error) -> Result<Created, Fault> {
        let fault = judge(error);
        if let Some(refusal) = find::<Refusal>(error) {
            // Azure says conflict also of a container that is being deleted.
            let of_container = refusal.code.starts_with("Container") || refusal.code.starts_with("Account");
            return match refusal.status {
                304 | 409 | 412 if !of_container => Ok(Created::Exists),
                // Azure to one who may create and not replace, or may do neither.
                403 if OVERWRITES.contains(&refusal.code.as_str()) => match self.head(key).await? {
                    Some(_) => Ok(Created::Exists),
                    None => Err(fault),
                },
                404 => Err(Fault::permanent(StoreErrorKind::NoRoot, refusal.to_string())),
                // "Not now": nothing was done. Any other failure of the server may have come after it stored.
                429 | 503 => Err(fault),
                _ if fault.class == Class::Retry => Err(fault.outcome_unknown()),
                _ => Err(fault),
            };
        }
        let not_sent = find::<NoCredentials>(error).is_some()
            || find::<HttpError>(error).is_some_and(|error| error.kind() == HttpErrorKind::Connect);
        Err(if not_sent || fault.class == Class::Permanent { fault } else { fault.outcome_unknown() })
    }

    /// `Ok` if the error proves that there is no such object.
    async fn prove_absent(&self, key: &str, error: &object_store::Error) -> Result<(), Fault> {
        let refusal = refusal_of(error).filter(|refusal| refusal.status == 404);
        let refusal = refusal.ok_or_else(|| judge(error))?;
        if refusal.delete_marker {
            return Err(Fault::permanent(StoreErrorKind::Hidden, "it is hidden by a delete marker"));
        }
        match refusal.code.as_str() {
            "NoSuchKey" | "BlobNotFound" => return Ok(()),
            "NoSuchBucket" | "ContainerNotFound" | "ResourceNotFound" => return Err(judge(error)),
            _ => {}
        }
        // No code, as in every answer to HEAD: the listing tells whether the bucket is there.
        let listing = Listing { prefix: key.to_owned(), limit: Some(1), ..Listing::default() };
        let page = self.list(&listing).await?;
        if page.objects.iter().any(|info| info.key == key) {
            return Err(Fault::unreachable("the store lists the object and says that it is not there"));
        }
        Ok(())
    }

    fn info(&self, meta: &ObjectMeta) -> Option<ObjectInfo> {
        let key = meta.location.as_ref().strip_prefix(self.prefix.as_str())?.to_owned();
        let nanos = i32::try_from(meta.last_modified.timestamp_subsec_nanos()).unwrap_or(0);
        let modified = Timestamp::new(meta.last_modified.timestamp(), nanos).unwrap_or(Timestamp::UNIX_EPOCH);
        Some(ObjectInfo { key, size: meta.size, modified })
    }

    fn info_of(&self, key: &str, meta: &ObjectMeta) -> ObjectInfo {
        let info = self.info(meta);
        info.unwrap_or_else(|| ObjectInfo {
            key: key.to_owned(),
            size: meta.size,
            modified: Timestamp::UNIX_EPOCH,
        })
    }

    async fn put(&self, key: &str, body: &Payload, mode: PutMode) -> object_store::Result<()> {
        let path = self
            .path(key)
            .map_err(|fault| object_store::Error::Generic { store: "pitr", source: fault.cause.into() })?;
        let payload: PutPayload = body.chunks().iter().cloned().collect();
        self.objects.put_opts(&path, payload, PutOptions { mode, ..PutOptions::default() }).await.map(drop)
    }
}

/// The first error of this type in the chain of causes.
fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref::<E>())
}

/// What the store answered. Azure deletes in batches, and object_store tells of a refused part of one in words alone:
/// "... BlobNotFound (code: 404)".
pub(super) fn refusal_of(error: &object_store::Error) -> Option<Cow<'_, Refusal>> {
    if let Some(refusal) = find::<Refusal>(error) {
        return Some(Cow::Borrowed(refusal));
    }
    let text = error.to_string();
    let (message, status) = text.strip_suffix(')')?.rsplit_once(" (code: ")?;
    Some(Cow::Owned(Refusal {
        status: status.parse().ok()?,
        message: message.to_owned(),
        ..Refusal::default()
    }))
}

/// What a failed call means for a caller that only reads.
pub(super) fn judge(error: &object_store::Error) -> Fault {
    if let Some(missing) = find::<NoCredentials>(error) {
        // A service that is not there may be on another machine tomorrow; one that says no means it.
        let final_no = missing.status.is_some_and(|status| (400..500).contains(&status) && status != 429);
        let fault = Fault::retry(StoreErrorKind::Credentials, missing.to_string());
        return if final_no { Fault { class: Class::Permanent, ..fault } } else { fault };
    }
    if let Some(refusal) = refusal_of(error) {
        return judge_refusal(&refusal);
    }
    match error {
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            return Fault::permanent(StoreErrorKind::Unsupported, error.to_string());
        }
        _ => {}
    }
    let Some(transport) = find::<HttpError>(error) else {
        return Fault::permanent(StoreErrorKind::Other, error.to_string());
    };
    let cause = innermost(transport);
    if cause.contains("certificate") {
        return Fault::usage(cause);
    }
    Fault::unreachable(match transport.kind() {
        HttpErrorKind::Connect => format!("cannot connect: {cause}"),
        _ => cause,
    })
}

fn judge_refusal(refusal: &Refusal) -> Fault {
    let permanent = |kind| Fault::permanent(kind, refusal.to_string());
    if let Some(region) = &refusal.region
        && (300..=400).contains(&refusal.status)
    {
        return Fault::usage(format!("the bucket is in region {region:?}"));
    }
    let cold = ["InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"].contains(&refusal.code.as_str());
    let expired = ["ExpiredToken", "InvalidToken", "TokenRefreshRequired"].contains(&refusal.code.as_str());
    match refusal.status {
        _ if expired => permanent(StoreErrorKind::Credentials),
        // In a class of storage that must be thawed first, which takes hours.
        _ if cold => permanent(StoreErrorKind::Other),
        401 | 403 => permanent(StoreErrorKind::Credentials),
        300..400 => permanent(StoreErrorKind::Usage),
        // Called to read an object, this is settled by `prove_absent`; of anything else, it is the bucket.
        404 => permanent(StoreErrorKind::NoRoot),
        400 if refusal.code == "RequestTimeout" => Fault::unreachable(refusal.to_string()),
        501 => permanent(StoreErrorKind::Unsupported),
        507 => permanent(StoreErrorKind::Full),
        408 | 409 | 425 | 429 | 500.. => Fault::unreachable(refusal.to_string()),
        _ => permanent(StoreErrorKind::Other),
    }
}

#[async_trait]
impl Backend for Remote {
    async fn create(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        match self.put(key, body, PutMode::Create).await {
            Ok(()) => Ok(Created::New),
            Err(error) => self.create_outcome(key, &error).await,
        }
    }

    async fn overwrite(&self, key: &str, body: &Payload) -> Result<(), Fault> {
        // No condition was set, so a conflict is not "the key is taken".
        self.put(key, body, PutMode::Overwrite).await.map_err(|error| judge(&error))
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
        let start = range.as_ref().map_or(0, |range| range.start);
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let error = match self.objects.get_opts(&self.path(key)?, options).await {
            Ok(result) => {
                let (info, range) = (self.info_of(key, &result.meta), result.range.clone());
                // Half a body is worth nothing; whatever cut it, the next attempt may bring the whole.
                let body =
                    result.into_stream().map_err(|error| Fault::unreachable(innermost(&error))).boxed();
                return Ok(Some(Opened { info, range, body }));
            }
            Err(error) => error,
        };
        // The object ends before the range, or is empty. Most stores answer 416; Azurite sends no bytes as "bytes 10-9/10".
        let unreadable = || find::<HttpError>(&error).is_none() && error.to_string().contains("range");
        if find::<Refusal>(&error).map_or_else(unreadable, |refusal| refusal.status == 416) {
            let Some(info) = self.head(key).await? else { return Ok(None) };
            if start >= info.size {
                let (range, body) = (info.size..info.size, futures_util::stream::empty().boxed());
                return Ok(Some(Opened { info, range, body }));
            }
        }
        self.prove_absent(key, &error).await.map(|()| None)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        match self.objects.head(&self.path(key)?).await {
            Ok(meta) => Ok(Some(self.info_of(key, &meta))),
            Err(error) => {
                // An answer to HEAD has no body: why credentials are refused, S3 says only of a request that can have one. Expired ones
                // are a bare 400.
                let silent = find::<Refusal>(&error).is_some_and(|refusal| {
                    matches!(refusal.status, 400 | 401 | 403) && refusal.code.is_empty()
                });
                if silent {
                    let listing = Listing { prefix: key.to_owned(), limit: Some(1), ..Listing::default() };
                    self.list(&listing).await?;
                }
                self.prove_absent(key, &error).await.map(|()| None)
            }
        }
    }

    async fn list(&self, listing: &Listing) -> Result<Page, Fault> {
        let prefix = format!("{}{}", self.prefix, listing.prefix);
        let options = PaginatedListOptions {
            offset: listing.after.as_ref().map(|after| format!("{}{after}", self.prefix)),
            delimiter: listing.fold.then_some(Cow::Borrowed("/")),
            max_keys: listing.limit,
            page_token: listing.token.clone(),
            ..PaginatedListOptions::default()
        };
        let prefix = (!prefix.is_empty()).then_some(prefix.as_str());
        let page = self.pages.0.list_paginated(prefix, options).await.map_err(|error| judge(&error))?;
        let below = |path: &Path| path.as_ref().strip_prefix(self.prefix.as_str()).map(str::to_owned);
        Ok(Page {
            objects: page.result.objects.iter().filter_map(|meta| self.info(meta)).collect(),
            dirs: page.result.common_prefixes.iter().filter_map(below).collect(),
            token: page.page_token.filter(|token| !token.is_empty()),
        })
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        match self.objects.delete(&self.path(key)?).await {
            Ok(()) => Ok(()),
            Err(error) => self.prove_absent(key, &error).await,
        }
    }

    fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    async fn make_root(&self) -> Result<(), Fault> {
        Ok(())
    }
}
