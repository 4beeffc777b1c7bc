//! Data pages: their checksum, and whether one is what PostgreSQL wrote.
//!
//! ```text
//!  lsn u64 │ checksum u16 │ flags u16 │ lower u16 │ upper u16 │ special u16 │ size, version u16 │ prune xid u32 │ items … tuples │ special
//!  0         8              10          12          14          16            18                  20
//! ```
//! The checksum mixes in the number of the block, so a page in the wrong place is found too. `upper` is 0 on a page that was never
//! written since its file grew; such a page has no checksum. Whether a wrong page matters is not decided here: beside a running
//! server it does not if WAL replay writes it anew. Pure.
//! Source of truth: `checksum_impl.h`, `bufpage.c` (`PageIsVerified`), `basebackup.c` of PostgreSQL 13 to 18, all the same in this.

use super::paths::RelationFile;
use crate::wal::Lsn;

/// Largest page that PostgreSQL can be built with.
pub const MAX_BLOCK: u32 = 32 << 10;
/// Smallest one.
const MIN_BLOCK: u32 = 1 << 10;
/// Bytes of the header.
const HEADER: usize = 24;
/// Flags that a header may have (`PD_VALID_FLAG_BITS`).
const FLAGS: u16 = 0x0007;
/// What the end of the items is aligned to on every 64-bit machine.
const ALIGN: u16 = 8;

const LANES: usize = 32;
/// Bytes that the lanes take at a time.
const ROW: usize = LANES * 4;
const PRIME: u32 = 16_777_619;
const START: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// The checksum of `page` as block `block` of its fork. The page's own checksum does not count. A length that is not a multiple of
/// 128 bytes is no page's; what is over does not count either.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = START;
    let (rows, _) = page.as_chunks::<ROW>();
    let mut rows = rows.iter();
    if let Some(first) = rows.next() {
        let mut first = *first;
        if let Some(own) = first.get_mut(8..10) {
            own.fill(0);
        }
        mix_row(&mut sums, &first);
    }
    for row in rows {
        mix_row(&mut sums, row);
    }
    // Two rounds of zeros: the last words reach all bits.
    mix_row(&mut sums, &[0; ROW]);
    mix_row(&mut sums, &[0; ROW]);
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    // Never 0, and less than 65536.
    u16::try_from(folded % 65_535 + 1).unwrap_or(u16::MAX)
}

/// One word per lane; all lanes are alike and independent, which is what the compiler needs to use wide registers.
#[inline(always)]
fn mix_row(sums: &mut [u32; LANES], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// What a page shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageLook {
    /// Its checksum and its header are right.
    Right,
    /// Never written since its file grew: nothing but zeros.
    Empty,
    /// New by its header, but not empty. PostgreSQL refuses to read it; beside a running server it may be half written.
    HalfNew,
    /// The checksum is right and the header cannot be: PostgreSQL refuses to read it.
    BadHeader,
    /// The checksum is wrong.
    Wrong(WrongPage),
}

/// A page with a wrong checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongPage {
    /// The end of the last record that changed it, if that can be believed.
    pub lsn: Lsn,
    /// The checksum it carries.
    pub stored: u16,
    /// The checksum of its bytes.
    pub computed: u16,
}

/// Looks at one page, block `block` of its fork. Bytes too few for a header look empty or half new.
pub fn look(page: &[u8], block: u32) -> PageLook {
    let field =
        |at: usize| page.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u16::from_le_bytes);
    let upper = field(14);
    if upper == 0 {
        return if page.iter().all(|byte| *byte == 0) { PageLook::Empty } else { PageLook::HalfNew };
    }
    let (stored, computed) = (field(8), checksum(page, block));
    if stored != computed {
        return PageLook::Wrong(WrongPage { lsn: lsn(page), stored, computed });
    }
    let (flags, lower, special) = (field(10), field(12), field(16));
    let sane = flags & !FLAGS == 0
        && lower <= upper
        && upper <= special
        && usize::from(special) <= page.len()
        && special.is_multiple_of(ALIGN);
    if sane { PageLook::Right } else { PageLook::BadHeader }
}

/// High half first, each in the machine's order.
fn lsn(page: &[u8]) -> Lsn {
    let half =
        |at: usize| page.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_le_bytes);
    Lsn::new(u64::from(half(0)) << 32 | u64::from(half(4)))
}

/// How a cluster cuts its relations into pages and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLayout {
    block: u32,
    segment_blocks: u32,
}

impl PageLayout {
    /// A layout of pages of `block` bytes and `segment_blocks` pages per file; `None` if PostgreSQL cannot be built so.
    pub fn new(block: u32, segment_blocks: u32) -> Option<Self> {
        let known = block.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&block) && segment_blocks > 0;
        known.then_some(Self { block, segment_blocks })
    }

    /// Bytes of a page.
    pub fn block_bytes(self) -> usize {
        usize::try_from(self.block).unwrap_or(HEADER)
    }

    /// Where in its file page `block` of a fork begins, in bytes.
    pub fn offset(self, block: u32) -> u64 {
        let in_file = block.checked_rem(self.segment_blocks).unwrap_or(0);
        u64::from(in_file).saturating_mul(u64::from(self.block))
    }

    /// The number of the first page in the file at `path`, a normalised path; `None` for a file without pages.
    pub fn first_block(self, path: &[u8]) -> Option<u32> {
        // A number past 2^32 belongs to no relation that could exist; PostgreSQL's own sum wraps in the same way.
        RelationFile::parse(path).map(|file| file.segment.wrapping_mul(self.segment_blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the C code does it, word by word and lane by lane.
    fn plainly(page: &[u8], block: u32) -> u16 {
        let mut page = page.to_vec();
        page[8..10].fill(0);
        let word = |row: usize, lane: usize| {
            let at = row * ROW + lane * 4;
            page.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        };
        let lanes = START.iter().enumerate().map(|(lane, start)| {
            (0..page.len() / ROW + 2).fold(*start, |sum, row| {
                let mixed = sum ^ word(row, lane);
                mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
            })
        });
        let all = lanes.fold(0, |all, lane| all ^ lane) ^ block;
        u16::try_from(all % 65_535 + 1).unwrap()
    }

    /// A page with a plausible header and the right checksum.
    fn page(fill: u8, block: u32, edit: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut page = vec![fill; 8192];
        page[0..4].copy_from_slice(&0_u32.to_le_bytes());
        page[4..8].copy_from_slice(&0x0150_0000_u32.to_le_bytes());
        for (at, value) in [(10, 4_u16), (12, 28), (14, 8000), (16, 8192), (18, 0x2004)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        edit(&mut page);
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn the_checksums_of_postgresql_come_out() {
        let steps: Vec<u8> = (0..8192).map(|i| u8::try_from(i % 256).unwrap()).collect();
        assert_eq!(checksum(&[0; 8192], 0), 50_858);
        assert_eq!(checksum(&[0x55; 8192], 0), 26_888);
        assert_eq!(checksum(&steps, 1), 59_143);
    }

    #[test]
    fn a_good_page_is_right_only_as_the_block_that_it_is() {
        let good = page(7, 41, |_| ());
        assert_eq!(look(&good, 41), PageLook::Right);
        let PageLook::Wrong(wrong) = look(&good, 42) else { panic!("in the wrong place") };
        assert_eq!(wrong.lsn, Lsn::new(0x0150_0000));
    }

    #[test]
    fn pages_never_written_are_told_from_those_that_lost_their_header() {
        assert_eq!(look(&[0; 8192], 3), PageLook::Empty);
        let mut late = [0; 8192];
        late[8191] = 1;
        assert_eq!(look(&late, 3), PageLook::HalfNew);
        let mut zeroed = page(7, 3, |_| ());
        zeroed[..512].fill(0);
        assert_eq!(look(&zeroed, 3), PageLook::HalfNew);
        assert_eq!(look(&[], 0), PageLook::Empty);
        assert_eq!(look(&[1], 0), PageLook::HalfNew);
    }

    #[test]
    fn a_header_that_postgresql_would_refuse_is_seen_behind_a_right_checksum() {
        for (at, value) in [(10, 8_u16), (12, 8001), (14, 8193), (16, 7992), (16, 8191), (16, 8200)] {
            let bad = page(7, 0, |page| page[at..at + 2].copy_from_slice(&value.to_le_bytes()));
            assert_eq!(look(&bad, 0), PageLook::BadHeader, "{value} at {at}");
        }
    }

    #[test]
    fn blocks_are_counted_over_the_files_of_a_fork() {
        let layout = PageLayout::new(8192, 131_072).unwrap();
        for (path, first) in [
            ("base/5/16384", Some(0)),
            ("base/5/16384.1", Some(131_072)),
            ("base/5/16384_fsm.3", Some(393_216)),
            ("global/1262_vm", Some(0)),
            ("base/5/16384_init", Some(0)),
            ("pg_tblspc/16400/PG_15_202209061/5/16401.2", Some(262_144)),
            ("base/5/t3_16384", None),
            ("base/5/pg_filenode.map", None),
            ("base/5/PG_VERSION", None),
            ("base/5/pg_internal.init", None),
            ("global/pg_control", None),
            ("pg_xact/0000", None),
        ] {
            assert_eq!(layout.first_block(path.as_bytes()), first, "{path}");
        }
        for (block, blocks) in [(0, 1), (512, 1), (8191, 1), (65_536, 1), (8192, 0)] {
            assert_eq!(PageLayout::new(block, blocks), None);
        }
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let good = page(7, 9, |_| ());
        // Not at random: one flip in 65,535 leaves the checksum as it is. None of these does.
        for bit in (0..8192 * 8).step_by(61) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(look(&bad, 9), PageLook::Right, "bit {bit}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn lanes_give_what_the_plain_loop_gives(
            seed in proptest::collection::vec(any::<u8>(), 1..300), size in 10_u32..16, block: u32,
        ) {
            let page: Vec<u8> = seed.iter().copied().cycle().take(1 << size).collect();
            prop_assert_eq!(checksum(&page, block), plainly(&page, block));
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300), block: u32) {
            let _ = (look(&bytes, block), checksum(&bytes, block));
        }
    }
}
