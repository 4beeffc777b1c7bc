//! Which of the wraps in a folder are read, where somebody may have put more there than anybody reads.
//!
//! ```text
//!  named by the host file     all of them
//!  others                     the newest of each epoch, then the ones before those, and so on, within the bounds that the writers keep
//! ```
//! Invariants: what the writers keep within their bounds is read whole; of what is more, the oldest wraps of each epoch are passed over
//! first, since whoever may read now opens the newest; the memory that wraps take is bounded. Pure.

use crate::seal::Epoch;
use crate::seal::wrap::{MAX_WRAP, MAX_WRAPS, MOST_WRAP_BYTES, MOST_WRAPS};

/// A wrap that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct There {
    pub(super) epoch: Epoch,
    pub(super) n: u32,
    pub(super) size: u64,
    pub(super) key: String,
}

/// The wraps of a folder, sorted out.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    named: Vec<There>,
    others: Vec<There>,
    /// Keys of those that are passed over.
    surplus: Vec<String>,
}

impl Chosen {
    /// Takes a wrap, which the host file names or not.
    pub(super) fn add(&mut self, found: There, named: bool) {
        // No change of recipients makes so many of one epoch: they do not count against those of another.
        if found.size > MAX_WRAP || (!named && found.n > MAX_WRAPS) {
            self.surplus.push(found.key);
        } else if named {
            self.named.push(found);
        } else {
            self.others.push(found);
        }
    }

    /// What is read, by epoch and number, and the keys of what is not.
    pub(super) fn finish(self) -> (Vec<There>, Vec<String>) {
        self.within(MOST_WRAPS, MOST_WRAP_BYTES)
    }

    fn within(self, most: usize, most_bytes: u64) -> (Vec<There>, Vec<String>) {
        let Self { named: mut all, mut others, mut surplus } = self;
        others.sort_by_key(|found| std::cmp::Reverse((found.epoch, found.n)));
        // How many newer ones of its epoch there are.
        let (mut of, mut newer) = (None, 0_usize);
        let ranked = others.into_iter().map(|found| {
            newer = if of == Some(found.epoch) { newer.saturating_add(1) } else { 0 };
            of = Some(found.epoch);
            (newer, found)
        });
        let mut ranked: Vec<(usize, There)> = ranked.collect();
        ranked.sort_by_key(|(newer, _)| *newer);
        let (mut taken, mut bytes) = (0_usize, 0_u64);
        for (newer, found) in ranked {
            let fits = bytes.saturating_add(found.size) <= most_bytes;
            if fits && (newer == 0 || taken < most) {
                taken = taken.saturating_add(1);
                bytes = bytes.saturating_add(found.size);
                all.push(found);
            } else {
                surplus.push(found.key);
            }
        }
        all.sort_by_key(|found| (found.epoch, found.n));
        surplus.sort();
        (all, surplus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(epoch: u32, n: u32, size: u64) -> There {
        There { epoch: Epoch::new(epoch).unwrap(), n, size, key: format!("{epoch}/{n}") }
    }

    fn read(of: &[There], named: &[There], most: usize, most_bytes: u64) -> (Vec<(u32, u32)>, usize) {
        let mut chosen = Chosen::default();
        of.iter().for_each(|found| chosen.add(found.clone(), false));
        named.iter().for_each(|found| chosen.add(found.clone(), true));
        let (all, surplus) = chosen.within(most, most_bytes);
        (all.iter().map(|found| (found.epoch.get(), found.n)).collect(), surplus.len())
    }

    /// Three wraps of the first epoch, two of the second, one of the newest.
    fn some() -> Vec<There> {
        [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)].map(|(epoch, n)| there(epoch, n, 10)).to_vec()
    }

    #[test]
    fn the_oldest_of_each_epoch_are_passed_over_first() {
        let all = vec![(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)];
        assert_eq!(read(&some(), &[], 6, 60), (all.clone(), 0));
        assert_eq!(read(&some(), &[], 5, 60), (all[1..].to_vec(), 1));
        let newest = vec![(1, 3), (2, 2), (3, 1)];
        for most in 0..=3 {
            assert_eq!(read(&some(), &[], most, 60), (newest.clone(), 3), "{most}");
        }
        assert_eq!(read(&some(), &[], 6, 35), (newest, 3));
        assert_eq!(read(&some(), &[], 6, 10), (vec![(3, 1)], 5), "memory is bounded");
    }

    #[test]
    fn what_the_host_file_names_is_read_and_what_is_no_wrap_is_not() {
        let (named, planted) = ([there(1, 1, 10), there(4, 1, 10)], [there(1, MAX_WRAPS + 1, 1)]);
        let large = [there(5, 1, MAX_WRAP + 1)];
        let others = [planted.as_slice(), large.as_slice()].concat();
        assert_eq!(read(&others, &named, 0, 0), (vec![(1, 1), (4, 1)], 2));
    }

    #[test]
    fn what_the_writers_may_leave_is_read_whole() {
        // As many replaced recipients as there is room for: each leaves an epoch, and a wrap of all epochs before.
        let mut all = Vec::new();
        for epoch in 1..=440 {
            all.extend((1..=441 - epoch).map(|n| there(epoch, n, 300)));
        }
        let count = all.len();
        assert!(count > 97_000 && count <= MOST_WRAPS, "{count}");
        let (read, surplus) = read(&all, &[], MOST_WRAPS, MOST_WRAP_BYTES);
        assert_eq!((read.len(), surplus), (count, 0));
    }
}
