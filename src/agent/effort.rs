//! How hard to compress while others wait.
//!
//! ```text
//!  files waiting      0 ... 2x ahead        ... 8x ahead        more
//!  level              as configured         1                   -3, then -7
//!
//!  a segment          packed ──── 1 of min(processors, ahead) ───► stored ──── 1 of ahead ───► archived
//!                     which of both lets fewer through, were all packed as configured?
//! ```
//! Only where processors are what there is too little of: while uploads are, larger objects would make it worse. On WAL of pgbench, level -7
//! takes 0.6 of the time of level 1 and gives 1.8 times the bytes. Pure.

use std::time::Duration;

use crate::codec::Compression;

/// How long segments took of late: to pack them, and to store them then.
#[derive(Debug)]
pub struct Pace {
    /// Of those that were packed as configured: what is packed faster says nothing of what that would take.
    packing: Option<Duration>,
    /// For each repository that is waited for.
    storing: Vec<Option<Duration>>,
}

impl Pace {
    /// Nothing is known yet of so many repositories.
    pub fn new(repositories: usize) -> Self {
        Self { packing: None, storing: vec![None; repositories] }
    }

    /// One was packed as configured.
    pub fn packed(&mut self, took: Duration) {
        blend(&mut self.packing, took);
    }

    /// One that was packed is stored in that repository.
    pub fn stored(&mut self, repository: usize, took: Duration) {
        if let Some(known) = self.storing.get_mut(repository) {
            blend(known, took);
        }
    }

    /// Whether packing as configured would hold the queue up, and not the slowest repository. `packers` work at once, `ahead` files may be
    /// under way.
    pub fn is_held_by_packing(&self, packers: usize, ahead: usize) -> bool {
        let times = |took: Duration, n: usize| took.saturating_mul(u32::try_from(n).unwrap_or(u32::MAX));
        match (self.packing, self.storing.iter().flatten().max()) {
            (Some(packing), Some(storing)) => times(packing, ahead) > times(*storing, packers),
            _ => false,
        }
    }
}

/// The newest counts for a quarter.
fn blend(known: &mut Option<Duration>, took: Duration) {
    *known = Some(known.map_or(took, |known| known.saturating_mul(3).saturating_add(took) / 4));
}

/// The compression of the next file. `waiting` files are not stored yet, `ahead` may be under way at once; `busy` says that compressing is
/// what holds them up.
pub fn effort(configured: Compression, waiting: usize, ahead: usize, busy: bool) -> Compression {
    let Compression::Zstd { level } = configured else { return configured };
    let most = match waiting / ahead.max(1) {
        _ if !busy => level,
        0..2 => level,
        2..8 => 1,
        8..32 => -3,
        _ => -7,
    };
    Compression::Zstd { level: level.min(most) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_queue_costs_less_and_less_and_an_idle_one_gets_what_was_configured() {
        let level = |level, waiting, busy| match effort(Compression::Zstd { level }, waiting, 8, busy) {
            Compression::Zstd { level } => level,
            Compression::Stored => unreachable!(),
        };
        assert_eq!(
            [0, 15, 16, 63, 64, 255, 256, 100_000].map(|n| level(3, n, true)),
            [3, 3, 1, 1, -3, -3, -7, -7]
        );
        assert_eq!([0, 100_000].map(|n| level(3, n, false)), [3, 3], "the processors have time");
        assert_eq!(level(1, 20, true), 1);
        assert_eq!(effort(Compression::Stored, 1000, 8, true), Compression::Stored);
    }

    #[test]
    fn what_lets_fewer_through_holds_the_queue_up() {
        let ms = Duration::from_millis;
        let held = |packing: u64, storing: &[u64], packers, ahead| {
            let mut pace = Pace::new(storing.len());
            pace.packed(ms(packing));
            storing.iter().enumerate().for_each(|(i, took)| pace.stored(i, ms(*took)));
            pace.is_held_by_packing(packers, ahead)
        };
        for ahead in [1, 2, 8] {
            assert!(held(900, &[40], ahead, ahead), "a processor for each of {ahead}");
            assert!(!held(40, &[900], ahead, ahead), "the network, {ahead}");
            assert!(!held(900, &[40, 2000], ahead, ahead), "one of both repositories, {ahead}");
        }
        assert!(held(80, &[300], 2, 8), "two pack 25 in a second, 8 uploads take 26");
        assert!(!held(80, &[400], 2, 8), "and 20");
        assert!(!Pace::new(1).is_held_by_packing(2, 8), "nothing is known");
    }

    #[test]
    fn what_is_packed_faster_meanwhile_does_not_hide_what_would_hold_the_queue_up() {
        let mut pace = Pace::new(1);
        pace.packed(Duration::from_millis(900));
        for _ in 0..100 {
            pace.stored(0, Duration::from_millis(60));
        }
        assert!(pace.is_held_by_packing(1, 1));
        // Larger objects, and now it is the network.
        for _ in 0..100 {
            pace.stored(0, Duration::from_millis(1000));
        }
        assert!(!pace.is_held_by_packing(1, 1));
    }
}
