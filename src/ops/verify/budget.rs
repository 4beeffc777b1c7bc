//! The bound on bytes in flight: whoever reads a body takes its share first, and waits while others hold too much.
//!
//! Counted in KiB. A body larger than everything that may be in flight is read alone. So memory is bounded by the budget whatever
//! the number of readers, and by one segment of 1 GiB at the worst.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes in flight at most.
pub const IN_FLIGHT: u64 = 192 << 20;

/// What may be in flight.
#[derive(Debug)]
pub(super) struct Budget(Semaphore);

impl Budget {
    pub(super) fn new() -> Self {
        Self(Semaphore::new(usize::try_from(IN_FLIGHT >> 10).unwrap_or(usize::MAX)))
    }

    /// Waits until `bytes` more may be in flight; they are until the permit is dropped.
    pub(super) async fn take(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let share = (bytes >> 10).clamp(1, IN_FLIGHT >> 10);
        // Never closed, so this waits and does not fail.
        self.0.acquire_many(u32::try_from(share).unwrap_or(u32::MAX)).await.ok()
    }
}
