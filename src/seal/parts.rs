//! Parts of an age file: where plain bytes lie in it, and opening a few of them without the rest.
//!
//! ```text
//!  stored   │ header │ nonce │ chunk 0 │ chunk 1 │ …  │ chunk n │ …  │ last chunk │
//!  held     ├─ head ─────────┤         ├─ a range ────┤         ├─ tail ──────────┤      the rest is not there, and reading it fails
//! ```
//! The cryptography is age's own: its reader seeks in what is held. It looks at the last chunk when it seeks to the start of another one, to
//! make sure of the length. A part authenticates itself, not its file: who made it, and that nothing was exchanged, is for a digest to say
//! that somebody vouches for. Invariants: nothing is allocated beyond what is held; a range that is not there is an error. Pure.

use std::io::{Error, ErrorKind, Read, Result as IoResult, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;

use super::SealError;
use super::body::{CHUNK, MAX_HEADER, NONCE, Opener, STORED_CHUNK, preamble};
use crate::codec::len_u64;

/// Bytes at the start of an age file that hold its header and nonce, whatever the length of the header.
pub const HEAD: u64 = wide(MAX_HEADER) + wide(NONCE);

const fn wide(n: usize) -> u64 {
    // At most 64 bits everywhere that this is built for.
    n as u64
}

/// Bytes at the end of an age file that hold its last `plain` bytes and its whole last chunk, whatever the length of the header.
pub fn tail_for(plain: u64) -> u64 {
    plain.div_ceil(wide(CHUNK)).saturating_add(1).saturating_mul(wide(STORED_CHUNK))
}

/// Where the plain bytes of an age file lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the file.
    stored: u64,
    /// Bytes before the first chunk.
    preamble: u64,
}

impl Layout {
    /// That of a file of `stored` bytes which begins with `head`: at least [`HEAD`] bytes, or all of it.
    ///
    /// # Errors
    /// [`SealError::Malformed`] if it does not begin as an age file.
    pub fn of(head: &[u8], stored: u64) -> Result<Self, SealError> {
        let preamble = preamble(head)?;
        if head.len() < preamble || wide(preamble) >= stored {
            return Err(SealError::Malformed("it ends before its content"));
        }
        Ok(Self { stored, preamble: wide(preamble) })
    }

    /// Plain bytes in it, if it is whole.
    pub fn plain_len(&self) -> u64 {
        let sealed = self.stored.saturating_sub(self.preamble);
        let chunks = sealed.div_ceil(wide(STORED_CHUNK));
        sealed.saturating_sub(chunks.saturating_mul(wide(STORED_CHUNK - CHUNK)))
    }

    /// The stored bytes of the chunks that hold the bytes `plain`; `None` if the file does not hold them all.
    pub fn chunks(&self, plain: &Range<u64>) -> Option<Range<u64>> {
        if plain.start > plain.end || plain.end > self.plain_len() {
            return None;
        }
        let at = |chunk: u64| self.preamble.saturating_add(chunk.saturating_mul(wide(STORED_CHUNK)));
        let end = at(plain.end.div_ceil(wide(CHUNK))).min(self.stored);
        Some(at(plain.start.checked_div(wide(CHUNK))?).min(end)..end)
    }
}

/// Some ranges of a file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Held {
    len: u64,
    at: u64,
    parts: Vec<(u64, Bytes)>,
}

impl Held {
    /// Nothing yet of a file of `len` bytes.
    pub fn of(len: u64) -> Self {
        Self { len, at: 0, parts: Vec::new() }
    }

    /// Adds the bytes that lie at `offset`.
    #[must_use]
    pub fn with(mut self, offset: u64, bytes: Bytes) -> Self {
        self.parts.push((offset, bytes));
        self
    }

    /// What is not there of `range`, as one range; empty if all is.
    pub fn missing(&self, range: Range<u64>) -> Range<u64> {
        let Range { mut start, mut end } = range;
        for (first, bytes) in &self.parts {
            let after = first.saturating_add(len_u64(bytes));
            if *first <= start && start < after {
                start = after.min(end);
            }
            if *first < end && end <= after {
                end = (*first).max(start);
            }
        }
        start..end
    }

    fn size(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes.len()).fold(0, usize::saturating_add)
    }
}

impl Read for Held {
    fn read(&mut self, into: &mut [u8]) -> IoResult<usize> {
        if self.at >= self.len || into.is_empty() {
            return Ok(0);
        }
        let here = self.parts.iter().find_map(|(first, bytes)| {
            let skip = usize::try_from(self.at.checked_sub(*first)?).ok()?;
            bytes.get(skip..).filter(|rest| !rest.is_empty())
        });
        let here = here.ok_or_else(|| Error::new(ErrorKind::NotFound, "that part was not fetched"))?;
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let read = here.len().min(into.len()).min(left);
        into.iter_mut().zip(here).for_each(|(to, from)| *to = *from);
        self.at = self.at.saturating_add(wide(read));
        Ok(read)
    }
}

impl Seek for Held {
    fn seek(&mut self, to: SeekFrom) -> IoResult<u64> {
        let found = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.at = found.ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

impl Opener<'_> {
    /// The plain bytes `plain` of an age file of which `held` is there: its head, the chunks of that range, and its last one.
    ///
    /// # Errors
    /// [`SealError`]; [`SealError::Broken`] also for a range that is not there.
    pub fn range(&self, held: Held, plain: &Range<u64>) -> Result<Vec<u8>, SealError> {
        let broken = |_| SealError::Broken;
        let wanted = plain.end.checked_sub(plain.start).ok_or(SealError::Broken)?;
        let mut out = Vec::with_capacity(usize::try_from(wanted).unwrap_or(usize::MAX).min(held.size()));
        let head = held.parts.iter().find(|(first, _)| *first == 0).map(|(_, bytes)| bytes.clone());
        // age's reader takes for granted that a place asked for lies inside.
        let layout = Layout::of(&head.unwrap_or_default(), held.len)?;
        layout.chunks(plain).ok_or(SealError::Broken)?;
        let mut reader = self.reader(held)?;
        reader.seek(SeekFrom::Start(plain.start)).map_err(broken)?;
        reader.take(wanted).read_to_end(&mut out).map_err(broken)?;
        if len_u64(&out) == wanted { Ok(out) } else { Err(SealError::Broken) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{Identity, body};

    fn at(n: u64) -> usize {
        usize::try_from(n).unwrap()
    }

    fn numbers(len: usize) -> Vec<u8> {
        (0_u32..).flat_map(u32::to_le_bytes).take(len).collect()
    }

    fn sealed(plain: &[u8], identity: &Identity) -> Bytes {
        body::encrypt([Bytes::copy_from_slice(plain)], &[&identity.recipient()]).unwrap().concat().into()
    }

    /// Head, chunks and tail, and nothing else.
    fn held(file: &Bytes, plain: &Range<u64>) -> Held {
        let len = len_u64(file);
        let layout = Layout::of(file, len).unwrap();
        let tail = len.saturating_sub(tail_for(1));
        let ends = Held::of(len).with(0, file.slice(..at(HEAD.min(len)))).with(tail, file.slice(at(tail)..));
        let missing = ends.missing(layout.chunks(plain).unwrap());
        ends.with(missing.start, file.slice(at(missing.start)..at(missing.end)))
    }

    #[test]
    fn any_range_opens_from_its_own_chunks() {
        let key = [Identity::generate()];
        for len in [1, CHUNK - 1, CHUNK, CHUNK + 1, 8 * CHUNK - 1, 8 * CHUNK, 8 * CHUNK + 1, 9 * CHUNK + 77] {
            let (plain, end) = (numbers(len), wide(len));
            let file = sealed(&plain, &key[0]);
            assert_eq!(Layout::of(&file, len_u64(&file)).unwrap().plain_len(), end, "{len}");
            let borders =
                [0, 1, wide(CHUNK) - 1, wide(CHUNK), wide(CHUNK) + 1, 3 * wide(CHUNK), end - 1, end];
            for start in borders.into_iter().filter(|start| *start <= end) {
                for stop in borders.into_iter().filter(|stop| (start..=end).contains(stop)) {
                    let range = start..stop;
                    let found = Opener(&key).range(held(&file, &range), &range).unwrap();
                    assert!(found == plain[at(start)..at(stop)], "{range:?} of {len}");
                }
            }
        }
    }

    #[test]
    fn a_range_takes_its_chunks_and_two_ends_whatever_the_size_of_the_file() {
        let key = Identity::generate();
        let file = sealed(&vec![7; 200 * CHUNK], &key);
        let range = 100 * wide(CHUNK) + 5..100 * wide(CHUNK) + 9;
        let held = held(&file, &range);
        assert!(held.size() <= at(HEAD) + 3 * STORED_CHUNK, "{}", held.size());
        assert_eq!(Opener(&[key]).range(held, &range).unwrap(), [7; 4]);
    }

    #[test]
    fn what_is_not_there_or_was_changed_or_lies_beyond_the_end_is_refused() {
        let (key, other) = (Identity::generate(), Identity::generate());
        let plain = numbers(5 * CHUNK + 9);
        let file = sealed(&plain, &key);
        let range = 2 * wide(CHUNK)..2 * wide(CHUNK) + 100;
        let open = |held: Held, range: &Range<u64>| Opener(std::slice::from_ref(&key)).range(held, range);
        let good = held(&file, &range);
        assert!(open(good.clone(), &range).is_ok());
        assert_eq!(Opener(&[other]).range(good.clone(), &range), Err(SealError::NoKey));
        for part in 0..3 {
            let mut less = good.clone();
            less.parts.remove(part);
            assert!(open(less, &range).is_err(), "without part {part}");
            for from_end in [false, true] {
                let mut bad = good.clone();
                let mut bytes = bad.parts[part].1.to_vec();
                let at = if from_end { bytes.len() - 1 } else { 30 };
                bytes[at] ^= 1;
                bad.parts[part].1 = bytes.into();
                // Behind the header the head holds chunks that this range does not need, and so does the tail before the last one.
                let needless = (part == 0 && from_end) || (part == 1 && !from_end);
                assert_eq!(open(bad, &range).is_err(), !needless, "part {part}, {from_end}");
            }
        }
        // Chunks of another place of the same file.
        let mut moved = good.clone();
        let chunk = Layout::of(&file, len_u64(&file)).unwrap().chunks(&(0..9)).unwrap();
        moved.parts[2].1 = file.slice(at(chunk.start)..at(chunk.end));
        assert_eq!(open(moved, &range), Err(SealError::Broken));
        for beyond in
            [wide(plain.len())..wide(plain.len()) + 1, u64::MAX - 1..u64::MAX, Range { start: 9, end: 8 }]
        {
            assert_eq!(open(good.clone(), &beyond), Err(SealError::Broken), "{beyond:?}");
        }
        // Shorter than it is said to be, and said to be shorter than it is.
        for len in [len_u64(&file) - 1, len_u64(&file) + 1, 100, 1] {
            assert!(open(Held { len, ..good.clone() }, &range).is_err(), "{len}");
        }
        assert!(Layout::of(b"", 5).is_err() && Layout::of(&file[..50], 5000).is_err());
    }

    #[test]
    fn what_is_missing_is_what_no_part_holds() {
        let held = Held::of(100).with(0, Bytes::from_static(&[0; 10])).with(80, Bytes::from_static(&[0; 20]));
        for (asked, missing) in [
            (0..10, 10..10),
            (5..40, 10..40),
            (20..30, 20..30),
            (20..90, 20..80),
            (85..100, 100..100),
            (0..100, 10..80),
        ] {
            let found = held.missing(asked.clone());
            assert!(found == missing || (found.is_empty() && missing.is_empty()), "{asked:?}: {found:?}");
        }
    }
}
