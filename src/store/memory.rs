//! A store in memory, for tests: exact, instant and gone with the process.
//!
//! `memory:NAME` opened twice in one process is one store, so that two commands of a test see each other's objects;
//! `memory:` without a name is a new one each time.
//! Invariants: behaves as a correct S3 does, conditional create included; all else is judged against it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::backend::{Backend, Created, Listing, ObjectInfo, Opened, Page, Payload};
use super::error::Fault;
use crate::clock::{Clock as _, SystemClock};

type Objects = BTreeMap<String, (Bytes, Timestamp)>;

/// Objects by key.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Objects>);

impl Memory {
    /// The store of this name, made if there is none.
    pub(super) fn named(name: &str) -> Arc<Self> {
        static ALL: Mutex<BTreeMap<String, Arc<Memory>>> = Mutex::new(BTreeMap::new());
        if name.is_empty() {
            return Arc::default();
        }
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(name.to_owned()).or_default())
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn info(key: &str, (bytes, modified): &(Bytes, Timestamp)) -> ObjectInfo {
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    ObjectInfo { key: key.to_owned(), size, modified: *modified }
}

/// The part of `range` that an object of this size has.
pub(super) fn clamp(range: Option<Range<u64>>, size: u64) -> Range<u64> {
    let range = range.unwrap_or(0..size);
    let end = range.end.min(size);
    range.start.min(end)..end
}

#[async_trait]
impl Backend for Memory {
    async fn create(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Ok(Created::Exists);
        }
        objects.insert(key.to_owned(), (body.to_bytes(), SystemClock.now()));
        Ok(Created::New)
    }

    async fn overwrite(&self, key: &str, body: &Payload) -> Result<(), Fault> {
        self.objects().insert(key.to_owned(), (body.to_bytes(), SystemClock.now()));
        Ok(())
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
        let Some(object) = self.objects().get(key).cloned() else { return Ok(None) };
        let info = info(key, &object);
        let range = clamp(range, info.size);
        let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = object.0.slice(at(range.start)..at(range.end));
        let body = futures_util::stream::iter([Ok(bytes)]).boxed();
        Ok(Some(Opened { info, range, body }))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        Ok(self.objects().get(key).map(|object| info(key, object)))
    }

    async fn list(&self, listing: &Listing) -> Result<Page, Fault> {
        let mut page = Page::default();
        let objects = self.objects();
        let begin =
            listing.after.as_ref().filter(|after| **after >= listing.prefix).unwrap_or(&listing.prefix);
        for (key, object) in objects.range(begin.clone()..) {
            let Some(rest) = key.strip_prefix(listing.prefix.as_str()) else { break };
            match rest.split_once('/') {
                Some((dir, _)) if listing.fold => {
                    let dir = format!("{}{dir}", listing.prefix);
                    if page.dirs.last() != Some(&dir) {
                        page.dirs.push(dir);
                    }
                }
                _ if listing.after.as_ref() == Some(key) => {}
                _ => page.objects.push(info(key, object)),
            }
            if listing.limit.is_some_and(|limit| page.objects.len() >= limit) {
                break;
            }
        }
        Ok(page)
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        self.objects().remove(key);
        Ok(())
    }

    async fn make_root(&self) -> Result<(), Fault> {
        Ok(())
    }
}
