//! Packs of an encrypted repository: fetched whole, held against the manifest's digest, opened once, and kept for the reads that follow.
//!
//! A pack there is one age file. Its frames could be read by ranges, but only the digest of all of it says that it is the pack that the
//! manifest means: age accepts another one made for the same key. A restore reads packs in order, and all of most, so a few at a time are
//! kept, those that come next among them. Invariant: what is kept was checked against the manifest.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::fetch::PACKS_AHEAD;
use crate::error::Result;

/// Packs kept: those that reads are in, the last of one and the first of the next, and those announced.
const KEPT: usize = 2 + PACKS_AHEAD;

/// A pack's place, and its plain bytes once they are there.
type Slot = (String, Arc<OnceCell<Bytes>>);

/// Opened packs.
#[derive(Debug, Default)]
pub(super) struct WholePacks(Mutex<VecDeque<Slot>>);

impl WholePacks {
    /// The pack at `key`: kept, or what `fetch` brings. Whoever asks while it is fetched waits for it; a failure is not kept.
    pub(super) async fn get<F: Future<Output = Result<Bytes>>>(
        &self,
        key: &str,
        fetch: impl FnOnce() -> F,
    ) -> Result<Bytes> {
        let cell = self.slot(key);
        cell.get_or_try_init(fetch).await.cloned()
    }

    fn slot(&self, key: &str) -> Arc<OnceCell<Bytes>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cell)) = kept.iter().find(|(known, _)| known == key) {
            return Arc::clone(cell);
        }
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        let cell = Arc::new(OnceCell::new());
        kept.push_back((key.to_owned(), Arc::clone(&cell)));
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_pack_is_fetched_once_while_it_is_kept_and_a_failure_is_forgotten() {
        let (packs, fetched) = (WholePacks::default(), AtomicU32::new(0));
        let get = |key: &'static str| {
            packs.get(key, || async {
                fetched.fetch_add(1, Ordering::Relaxed);
                Ok(Bytes::from_static(key.as_bytes()))
            })
        };
        for key in ["a", "b", "a", "b", "c", "d", "a"] {
            assert_eq!(get(key).await.unwrap(), key.as_bytes());
        }
        assert_eq!(fetched.load(Ordering::Relaxed), 4);
        get("e").await.unwrap();
        get("a").await.unwrap();
        assert_eq!(fetched.load(Ordering::Relaxed), 6);
        let failed = packs.get("f", || async { Err(Error::failed("the store is gone")) }).await;
        assert!(failed.is_err());
        assert_eq!(get("f").await.unwrap(), "f");
    }
}
