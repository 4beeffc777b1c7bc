//! What was fetched of packs and is wanted again soon: a few at a time, each fetched once, however many ask.
//!
//! The two ends of packs of an encrypted repository, without which no part of one can be read. Invariant: a failure is never kept. Nothing
//! vouches for what is kept, though: whoever fails with it says so, and it is fetched anew.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use crate::error::Result;

/// A pack's place, and what is kept of it once it is there.
type Slot<T> = (String, Arc<OnceCell<T>>);

/// The last `N` that were asked for first.
#[derive(Debug)]
pub(super) struct Kept<T, const N: usize>(Mutex<VecDeque<Slot<T>>>);

impl<T, const N: usize> Default for Kept<T, N> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone, const N: usize> Kept<T, N> {
    /// What is kept of the pack at `key`, or what `fetch` brings. Whoever asks while it is fetched waits for it.
    pub(super) async fn get<F: Future<Output = Result<T>>>(
        &self,
        key: &str,
        fetch: impl FnOnce() -> F,
    ) -> Result<T> {
        let cell = self.slot(key);
        cell.get_or_try_init(fetch).await.cloned()
    }

    /// Forgets what is kept of the pack at `key`.
    pub(super) fn forget(&self, key: &str) {
        self.lock().retain(|(known, _)| known != key);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Slot<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, key: &str) -> Arc<OnceCell<T>> {
        let mut kept = self.lock();
        if let Some((_, cell)) = kept.iter().find(|(known, _)| known == key) {
            return Arc::clone(cell);
        }
        if kept.len() >= N {
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
        let (packs, fetched) = (Kept::<String, 4>::default(), AtomicU32::new(0));
        let get = |key: &'static str| {
            packs.get(key, || async {
                fetched.fetch_add(1, Ordering::Relaxed);
                Ok(key.to_owned())
            })
        };
        for key in ["a", "b", "a", "b", "c", "d", "a"] {
            assert_eq!(get(key).await.unwrap(), key);
        }
        assert_eq!(fetched.load(Ordering::Relaxed), 4);
        // The fifth takes the place of the first.
        for key in ["e", "e", "a"] {
            get(key).await.unwrap();
        }
        assert_eq!(fetched.load(Ordering::Relaxed), 6);
        let failed = packs.get("f", || async { Err(Error::failed("the store is gone")) }).await;
        assert!(failed.is_err());
        assert_eq!(get("f").await.unwrap(), "f");
        let before = fetched.load(Ordering::Relaxed);
        packs.forget("f");
        for key in ["a", "f", "f"] {
            get(key).await.unwrap();
        }
        assert_eq!(fetched.load(Ordering::Relaxed), before + 1, "no other was forgotten");
    }
}
