//! Rows sorted by a key, held compressed: what is known of the files of a backup, for millions of them.
//!
//! ```text
//!  push ─► buffer of 8 MiB ─► sorted ─► run: frames of 64 KiB, zstd      any number of runs
//!  rows ─► one open frame of each run that has begun ─► the smallest key  merge
//! ```
//! A row of a file takes 10 to 30 bytes this way instead of 100 to 200, and sorting needs no disk. Keys are compared as bytes; rows
//! with equal keys come in the order in which they were pushed. Memory: the buffer, the compressed rows, and while reading one frame
//! of each run; a run opens when its first key is due, so that runs that do not overlap are open one at a time.
//! Pure: an external merge sort whose outside is memory.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::ops::Range;

use crate::codec::{Compression, compress, decompress};
use crate::error::{Error, Result};

/// Bytes of rows that are sorted at a time.
const BUFFER: usize = 8 << 20;
/// Plain bytes at which a frame is closed.
const FRAME: usize = 64 << 10;
/// Longest key or value: many times a file name or its extents.
const MOST: usize = 1 << 20;
/// Bytes before key and value of a row in a frame: their lengths.
const HEAD: usize = 8;
/// Rows are compressed once and read a few times.
const COMPRESSION: Compression = Compression::Zstd { level: 1 };

/// What a row about a file of the data directory is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; what it points to is its target.
    Symlink,
}

impl RowKind {
    /// As the first byte of a row's value.
    pub(in crate::ops) fn code(self) -> u8 {
        match self {
            Self::File => 0,
            Self::Directory => 1,
            Self::Symlink => 2,
        }
    }

    /// Reads [`Self::code`] back.
    pub(in crate::ops) fn of(code: u8) -> Option<Self> {
        [Self::File, Self::Directory, Self::Symlink].into_iter().find(|kind| kind.code() == code)
    }
}

/// The error for a value that is not what was pushed: a defect of this program, or memory that fails.
pub(in crate::ops) fn unreadable() -> Error {
    Error::failed("the list of the files of a backup cannot be read back")
}

/// Collects rows.
#[derive(Debug, Default)]
pub(in crate::ops) struct Runs {
    /// Keys and values of the rows that are not in a run yet.
    buffer: Vec<u8>,
    fresh: Vec<Fresh>,
    runs: Vec<Run>,
}

/// A row in the buffer: its value follows its key.
#[derive(Debug, Clone, Copy)]
struct Fresh {
    at: usize,
    key: usize,
    value: usize,
}

#[derive(Debug)]
struct Run {
    first: Vec<u8>,
    frames: Vec<Box<[u8]>>,
}

impl Runs {
    /// Takes a row.
    ///
    /// # Errors
    /// If key or value have more than a mebibyte.
    pub(in crate::ops) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if key.len() > MOST || value.len() > MOST {
            return Err(Error::failed(format!("a row of {} bytes is too long", key.len().max(value.len()))));
        }
        let full = self.buffer.len().saturating_add(key.len()).saturating_add(value.len()) > BUFFER;
        if full && !self.fresh.is_empty() {
            self.close()?;
        }
        self.fresh.push(Fresh { at: self.buffer.len(), key: key.len(), value: value.len() });
        self.buffer.extend_from_slice(key);
        self.buffer.extend_from_slice(value);
        Ok(())
    }

    /// No more rows will come.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub(in crate::ops) fn sort(mut self) -> Result<Sorted> {
        self.close()?;
        self.runs.shrink_to_fit();
        Ok(Sorted { runs: self.runs })
    }

    /// Makes a run of what is in the buffer.
    fn close(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut fresh = std::mem::take(&mut self.fresh);
        let cut = |from: usize, len: usize| buffer.get(from..from.saturating_add(len)).unwrap_or_default();
        // Stable: equal keys stay in their order.
        fresh.sort_by(|a, b| cut(a.at, a.key).cmp(cut(b.at, b.key)));
        let Some(first) = fresh.first().map(|row| cut(row.at, row.key).to_vec()) else { return Ok(()) };
        let mut run = Run { first, frames: Vec::new() };
        let mut frame = Vec::with_capacity(FRAME);
        for row in &fresh {
            let value_at = row.at.saturating_add(row.key);
            frame.extend_from_slice(&length(row.key));
            frame.extend_from_slice(&length(row.value));
            frame.extend_from_slice(cut(row.at, row.key));
            frame.extend_from_slice(cut(value_at, row.value));
            if frame.len() >= FRAME {
                run.frames.push(packed(&frame)?);
                frame.clear();
            }
        }
        if !frame.is_empty() {
            run.frames.push(packed(&frame)?);
        }
        self.runs.push(run);
        // Their memory serves for the next run.
        (self.buffer, self.fresh) = (buffer, fresh);
        self.buffer.clear();
        self.fresh.clear();
        Ok(())
    }
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("at most MOST").to_le_bytes()
}

fn packed(frame: &[u8]) -> Result<Box<[u8]>> {
    Ok(compress(frame, COMPRESSION).map_err(own)?.into_boxed_slice())
}

/// Bytes that never left this process cannot be wrong but by a defect, or for want of memory.
fn own(error: crate::codec::CodecError) -> Error {
    Error::failed("the list of the files of a backup cannot be held").source(error)
}

/// All rows, sorted.
#[derive(Debug, Default)]
pub(in crate::ops) struct Sorted {
    runs: Vec<Run>,
}

impl Sorted {
    /// The rows from the first on.
    pub(in crate::ops) fn rows(&self) -> Rows<'_> {
        let heads = self.runs.iter().enumerate().map(|(order, run)| Head {
            run,
            order,
            bytes: run.first.clone(),
            key: 0..run.first.len(),
            value: 0..0,
            next_frame: 0,
        });
        Rows { heads: heads.collect(), begun: false }
    }
}

/// Reads rows in order.
#[derive(Debug)]
pub(in crate::ops) struct Rows<'a> {
    heads: BinaryHeap<Head<'a>>,
    begun: bool,
}

impl Rows<'_> {
    /// The next row: key and value.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub(in crate::ops) fn next(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        if let Some(mut top) = self.heads.peek_mut() {
            // The row on top was given out the last time.
            if std::mem::replace(&mut self.begun, true) && !top.advance()? {
                PeekMut::pop(top);
            }
        }
        if let Some(mut top) = self.heads.peek_mut()
            && top.next_frame == 0
        {
            // Opened only now; its key was known before and stays, so it stays on top.
            top.advance()?;
        }
        Ok(self.heads.peek().map(Head::row))
    }
}

/// One run, and the row at which it stands.
#[derive(Debug)]
struct Head<'a> {
    run: &'a Run,
    order: usize,
    /// The open frame; before that the first key alone.
    bytes: Vec<u8>,
    key: Range<usize>,
    value: Range<usize>,
    next_frame: usize,
}

impl Head<'_> {
    fn key(&self) -> &[u8] {
        self.bytes.get(self.key.clone()).unwrap_or_default()
    }

    fn row(&self) -> (&[u8], &[u8]) {
        (self.key(), self.bytes.get(self.value.clone()).unwrap_or_default())
    }

    /// Goes on to the next row; false at the end.
    fn advance(&mut self) -> Result<bool> {
        if self.next_frame == 0 || self.value.end >= self.bytes.len() {
            let Some(frame) = self.run.frames.get(self.next_frame) else { return Ok(false) };
            let limit = FRAME.saturating_add(HEAD).saturating_add(2 * MOST);
            self.bytes = decompress(frame, u64::try_from(limit).unwrap_or(u64::MAX)).map_err(own)?;
            self.next_frame = self.next_frame.saturating_add(1);
            self.value.end = 0;
        }
        let at = self.value.end;
        let len = |from: usize| {
            let bytes = self.bytes.get(from..).and_then(|rest| rest.first_chunk::<4>());
            bytes.and_then(|b| usize::try_from(u32::from_le_bytes(*b)).ok()).unwrap_or(0)
        };
        let (key, value) = (len(at), len(at.saturating_add(HEAD / 2)));
        let from = at.saturating_add(HEAD);
        self.key = from..from.saturating_add(key);
        self.value = self.key.end..self.key.end.saturating_add(value);
        Ok(true)
    }
}

impl Ord for Head<'_> {
    /// The smallest key is the greatest head: that is what a [`BinaryHeap`] has on top.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.key(), other.order).cmp(&(self.key(), self.order))
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(rows: &[(Vec<u8>, Vec<u8>)], close_every: usize) -> Sorted {
        let mut runs = Runs::default();
        for (n, (key, value)) in rows.iter().enumerate() {
            runs.push(key, value).unwrap();
            if n % close_every == close_every - 1 {
                runs.close().unwrap();
            }
        }
        runs.sort().unwrap()
    }

    fn all(sorted: &Sorted) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (mut rows, mut all) = (sorted.rows(), Vec::new());
        while let Some((key, value)) = rows.next().unwrap() {
            all.push((key.to_vec(), value.to_vec()));
        }
        assert!(rows.next().unwrap().is_none(), "the end stays the end");
        all
    }

    proptest! {
        #[test]
        fn rows_come_sorted_and_equal_keys_in_their_order(
            rows in proptest::collection::vec(
                (proptest::collection::vec(0_u8..3, 0..4), proptest::collection::vec(any::<u8>(), 0..300)), 0..200),
            close_every in 1_usize..50,
        ) {
            let sorted = sorted(&rows, close_every);
            let mut want = rows.clone();
            want.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(all(&sorted), want.clone());
            prop_assert_eq!(all(&sorted), want, "a second reading");
        }
    }

    #[test]
    fn rows_fill_many_frames_and_several_runs_by_themselves() {
        let row = |n: u32| (n.wrapping_mul(2_654_435_761).to_be_bytes().to_vec(), vec![7; 100]);
        let rows: Vec<_> = (0..200_000).map(row).collect();
        let sorted = sorted(&rows, usize::MAX);
        assert!(sorted.runs.len() > 1 && sorted.runs.iter().all(|run| run.frames.len() > 1));
        let found = all(&sorted);
        assert!(found.is_sorted() && found.len() == rows.len());
    }

    #[test]
    fn a_row_may_be_longer_than_a_frame_but_not_without_bound() {
        let rows = [(vec![2; MOST], vec![3; MOST]), (vec![1; 5], Vec::new())];
        assert_eq!(all(&sorted(&rows, 9)), [rows[1].clone(), rows[0].clone()]);
        assert!(Runs::default().push(&[], &[0; MOST + 1]).is_err());
    }
}
