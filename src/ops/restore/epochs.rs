//! Keys for the way: every epoch that recovery meets opens with what is at hand, known before anything is written.
//!
//! ```text
//!  e0001 e0001 e0001 │ e0002 e0002 │ e0003          headers stand in clear: those of both ends, then of the middle where they differ
//! ```
//! Epochs ascend along the WAL, so that between two segments of one epoch lie others of it alone: some twenty small reads for each change,
//! however long the way. Where that does not hold (a host file that was put back), PostgreSQL stops at the segment: `archive-get` answers 207.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ops::plan::OTHER_IDENTITY;
use crate::repo::System;
use crate::seal::Epoch;
use crate::wal::SegmentName;

/// Checks that what recovery needs of `segments`, in order, can be opened.
///
/// # Errors
/// Kind `Key`, naming the segment and its epoch.
pub async fn check(system: &System, segments: &[SegmentName]) -> Result<()> {
    let (Some(last), Some(_)) = (segments.len().checked_sub(1), system.seal_key()) else { return Ok(()) };
    let mut looked: BTreeMap<usize, Option<Epoch>> = BTreeMap::new();
    let mut ranges = vec![(0, last)];
    while let Some((low, high)) = ranges.pop() {
        for at in [low, high] {
            if let (false, Some(name)) = (looked.contains_key(&at), segments.get(at)) {
                // Of its longest copy, which may be of a later epoch than the first: recovery gets that one.
                let info = system.segment_info(*name).await?;
                // One that is gone is what `archive-get` will say.
                looked.insert(at, info.and_then(|info| info.header.key));
            }
        }
        let middle = low.midpoint(high);
        if middle > low && looked.get(&low) != looked.get(&high) {
            ranges.extend([(low, middle), (middle, high)]);
        }
    }
    for (at, epoch) in looked {
        if let (false, Some(epoch), Some(name)) = (system.opens(epoch).await?, epoch, segments.get(at)) {
            return Err(Error::key(format!(
                "recovery needs segment {name}, which is sealed with epoch {epoch}, and no identity at hand opens that"
            ))
            .hint(OTHER_IDENTITY));
        }
    }
    Ok(())
}
