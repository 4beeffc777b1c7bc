//! Sets of whole numbers as spans: segments of one timeline, or bytes of the WAL stream.
//!
//! ```text
//!  0   1   2   3   4   5   6   7   8   9
//!      [--------]          [---]       []        (1,3) (6,7) (9,9)
//! ```
//! Invariants: spans ascend, do not touch, and both ends belong to them; so equal sets are equal values, and a set takes as much
//! memory as it has holes. Pure.

/// A set of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spans(Vec<(u64, u64)>);

impl Spans {
    /// The numbers from `first` to `last`; none if `last` is smaller.
    pub fn one(first: u64, last: u64) -> Self {
        Self(if first <= last { vec![(first, last)] } else { Vec::new() })
    }

    /// True if it holds no number.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The spans, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// The smallest number.
    pub fn first(&self) -> Option<u64> {
        self.0.first().map(|span| span.0)
    }

    /// The largest number.
    pub fn last(&self) -> Option<u64> {
        self.0.last().map(|span| span.1)
    }

    /// How many numbers it holds.
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, (first, last)| {
            sum.saturating_add(last.saturating_sub(*first)).saturating_add(1)
        })
    }

    /// Whether it holds `n`.
    pub fn contains(&self, n: u64) -> bool {
        self.span_of(n).is_some()
    }

    /// Whether it holds every number from `first` to `last`.
    pub fn contains_all(&self, first: u64, last: u64) -> bool {
        last < first || self.span_of(first).is_some_and(|span| last <= span.1)
    }

    /// The span that holds `n`.
    pub fn span_of(&self, n: u64) -> Option<(u64, u64)> {
        let at = self.0.partition_point(|span| span.0 <= n);
        at.checked_sub(1).and_then(|i| self.0.get(i)).copied().filter(|span| n <= span.1)
    }

    /// Adds the numbers from `first` to `last`.
    pub fn add(&mut self, first: u64, last: u64) {
        if last < first {
            return;
        }
        let from = self.0.partition_point(|span| span.1.saturating_add(1) < first);
        let to = self.0.partition_point(|span| span.0 <= last.saturating_add(1));
        let met = self.0.get(from..to).unwrap_or_default();
        let low = met.first().map_or(first, |span| span.0.min(first));
        let high = met.last().map_or(last, |span| span.1.max(last));
        self.0.splice(from..to.max(from), [(low, high)]);
    }

    /// Adds all of `other`.
    pub fn add_all(&mut self, other: &Self) {
        other.iter().for_each(|(first, last)| self.add(first, last));
    }

    /// The numbers that both hold.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = Self::default();
        let (mut mine, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        while let (Some(a), Some(b)) = (mine.peek().copied(), theirs.peek().copied()) {
            both.add(a.0.max(b.0), a.1.min(b.1));
            if a.1 <= b.1 {
                mine.next()
            } else {
                theirs.next()
            };
        }
        both
    }

    /// The numbers that `other` does not hold.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut gaps = Self::default();
        let mut next = Some(0);
        for (first, last) in other.iter() {
            if let (Some(from), Some(to)) = (next, first.checked_sub(1)) {
                gaps.add(from, to);
            }
            next = last.checked_add(1);
        }
        if let Some(from) = next {
            gaps.add(from, u64::MAX);
        }
        self.and(&gaps)
    }
}

impl FromIterator<u64> for Spans {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut spans = Self::default();
        numbers.into_iter().for_each(|n| spans.add(n, n));
        spans
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(spans: &Spans) -> BTreeSet<u64> {
        spans.iter().flat_map(|(first, last)| first..=last).collect()
    }

    fn numbers() -> impl Strategy<Value = BTreeSet<u64>> {
        proptest::collection::btree_set(0_u64..40, 0..30)
    }

    proptest! {
        #[test]
        fn spans_are_sets(a in numbers(), b in numbers(), order in any::<u64>()) {
            let mut shuffled: Vec<u64> = a.iter().copied().collect();
            shuffled.sort_by_key(|n| n.wrapping_mul(order | 1).rotate_left(17));
            let (one, two): (Spans, Spans) = (shuffled.into_iter().collect(), b.iter().copied().collect());
            prop_assert_eq!(&one, &a.iter().copied().collect::<Spans>(), "whatever the order of insertion");
            prop_assert_eq!(set(&one), a.clone());
            prop_assert_eq!(set(&one.and(&two)), &a & &b);
            prop_assert_eq!(set(&one.without(&two)), &a - &b);
            let mut both = one.clone();
            both.add_all(&two);
            prop_assert_eq!(set(&both), &a | &b);
            prop_assert_eq!(one.count(), u64::try_from(a.len()).unwrap());
            prop_assert_eq!((one.first(), one.last()), (a.first().copied(), a.last().copied()));
            for n in 0..41 {
                prop_assert_eq!(one.contains(n), a.contains(&n));
                prop_assert_eq!(one.contains_all(n, n + 2), (n..=n + 2).all(|n| a.contains(&n)));
            }
        }
    }

    #[test]
    fn the_largest_number_is_one_like_others() {
        let mut all = Spans::one(0, u64::MAX);
        assert!(all.contains(u64::MAX) && all.without(&all).is_empty());
        all.add(u64::MAX, u64::MAX);
        assert_eq!(all.iter().collect::<Vec<_>>(), [(0, u64::MAX)]);
        assert_eq!(all.without(&Spans::one(5, u64::MAX)), Spans::one(0, 4));
    }
}
