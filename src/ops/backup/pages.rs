//! Page checksums by our own rules, beside the server's: a second opinion on what arrived.
//!
//! ```text
//!  compressing threads   every page of a frame ─► [`Finding`]: this block is not plainly right
//!  packer, in order      whose file it is      ─► [`PageFindings`], bounded
//!  when the stop is known                      ─► [`PageReport`]: damage, and what only deserves a note
//! ```
//! A wrong page does not matter if it was changed after the backup began: replay writes it anew, from a full image, because the
//! server forces those while a backup runs. BASE_BACKUP therefore skips pages whose LSN is not below the start, and so passes over
//! a page whose LSN is garbage. Here such a page waits for the stop: no page that was read before it can be newer. A page that is
//! wrong with an LSN below the start was wrong twice in the server's hands (it reads a page again before it complains), or
//! changed on the way. One that is new by its header and not empty was half written when it was read, or lost a sector: a second look at the
//! file tells, on the server's host. Pure. Source of truth: `basebackup.c` of PostgreSQL 13 to 18; RECOVERY.md 26.

use crate::pgdata::page::{self, PageLayout, PageLook, WrongPage};
use crate::wal::Lsn;

/// Damaged pages that are named; more are only counted.
const MOST_NAMED: usize = 100;
/// Pages that are waiting for the stop. Beyond twice as many, those with the lowest LSNs go: they are the likeliest to be excused.
const MOST_SUSPECTS: usize = 1000;
/// Notes that are kept.
const MOST_NOTES: usize = 20;

/// By what the pages of a backup are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageRule {
    /// How the cluster cuts relations.
    pub(super) layout: PageLayout,
    /// Where replay of the backup starts.
    pub(super) start: Lsn,
}

/// A page that is not plainly right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Finding {
    block: u32,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Wrong, and older than the backup.
    Wrong(WrongPage),
    /// Wrong, and changed since the start, if its LSN can be believed.
    Suspect(WrongPage),
    BadHeader,
    HalfNew,
    /// The file ends so many bytes into the page.
    Cut(usize),
}

impl PageRule {
    /// Looks at the pages of one piece of a file, which begins with block `first`.
    pub(super) fn examine(&self, data: &[u8], first: u32) -> Vec<Finding> {
        let size = self.layout.block_bytes();
        let mut findings = Vec::new();
        for (page, number) in data.chunks(size).zip(0_u32..) {
            let block = first.wrapping_add(number);
            let what = match page::look(page, block) {
                _ if page.len() < size => What::Cut(page.len()),
                PageLook::Right | PageLook::Empty => continue,
                PageLook::Wrong(wrong) if wrong.lsn < self.start => What::Wrong(wrong),
                PageLook::Wrong(wrong) => What::Suspect(wrong),
                PageLook::BadHeader => What::BadHeader,
                PageLook::HalfNew => What::HalfNew,
            };
            findings.push(Finding { block, what });
        }
        findings
    }
}

/// What was found so far, by file.
#[derive(Debug, Default)]
pub(super) struct PageFindings {
    damage: Bounded,
    notes: Bounded,
    suspects: Vec<(Lsn, String)>,
    /// Pages that look new and are not empty, by file and block, as many as are noted.
    half_new: Vec<(Vec<u8>, u32)>,
}

fn half_new(place: &str) -> String {
    format!("{place}: new by its header but not empty: half written just then, or damaged")
}

/// The first few, and how many there are.
#[derive(Debug, Default)]
struct Bounded {
    named: Vec<String>,
    count: u64,
}

impl Bounded {
    fn add(&mut self, most: usize, line: impl FnOnce() -> String) {
        self.count = self.count.saturating_add(1);
        if self.named.len() < most {
            self.named.push(line());
        }
    }

    fn lines(mut self) -> Vec<String> {
        let named = u64::try_from(self.named.len()).unwrap_or(u64::MAX);
        let more = self.count.saturating_sub(named);
        if more > 0 {
            self.named.push(format!("and {more} more"));
        }
        self.named
    }
}

impl PageFindings {
    /// A page of the file at `path`.
    pub(super) fn add(&mut self, path: &[u8], finding: Finding) {
        let block = finding.block;
        let place = || format!("{}, block {block}", String::from_utf8_lossy(path));
        match finding.what {
            What::Wrong(wrong) => {
                self.damage.add(MOST_NAMED, || format!("{}: {}", place(), checksums(&wrong)));
            }
            What::BadHeader => self.damage.add(MOST_NAMED, || {
                format!("{}: its header cannot be, though its checksum is right", place())
            }),
            What::Suspect(wrong) => self.suspect(wrong.lsn, || format!("{}: {}", place(), checksums(&wrong))),
            What::HalfNew if self.half_new.len() < MOST_NOTES => self.half_new.push((path.to_vec(), block)),
            What::HalfNew => self.notes.add(MOST_NOTES, || half_new(&place())),
            What::Cut(bytes) => self.notes.add(MOST_NOTES, || {
                format!(
                    "{}: the file ends {bytes} bytes into it: it was growing just then, or is damaged",
                    place()
                )
            }),
        }
    }

    fn suspect(&mut self, lsn: Lsn, line: impl FnOnce() -> String) {
        self.suspects.push((lsn, line()));
        if self.suspects.len() >= 2 * MOST_SUSPECTS {
            self.suspects.sort_by_key(|(lsn, _)| std::cmp::Reverse(*lsn));
            self.suspects.truncate(MOST_SUSPECTS);
        }
    }

    /// The judgement, now that it is known where the backup stops. `again` is a second look at a page of a file, if one can be had: a page
    /// that was half written when it was read is whole by now.
    pub(super) fn judge(mut self, stop: Lsn, again: impl Fn(&[u8], u32) -> Option<PageLook>) -> PageReport {
        for (lsn, line) in self.suspects {
            if lsn > stop {
                let line = || format!("{line}, and its LSN {lsn} lies past the end of the backup, {stop}");
                self.damage.add(MOST_NAMED, line);
            }
        }
        for (path, block) in self.half_new {
            let place = format!("{}, block {block}", String::from_utf8_lossy(&path));
            match again(&path, block) {
                Some(PageLook::HalfNew) => {
                    let line =
                        || format!("{place}: new by its header but not empty, also when it was read again");
                    self.damage.add(MOST_NAMED, line);
                }
                Some(_) => {}
                None => self.notes.add(MOST_NOTES, || half_new(&place)),
            }
        }
        PageReport { damage: self.damage.lines(), notes: self.notes.lines() }
    }
}

fn checksums(wrong: &WrongPage) -> String {
    format!("it carries checksum {:04X}, its bytes have {:04X}", wrong.stored, wrong.computed)
}

/// What is known of the pages of a backup.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PageReport {
    /// Damaged pages, a line each.
    pub(super) damage: Vec<String>,
    /// Pages that cannot be judged beside a running server.
    pub(super) notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x0200_0000;
    const STOP: Lsn = Lsn::new(0x0300_0000);

    fn rule() -> PageRule {
        PageRule { layout: PageLayout::new(8192, 131_072).unwrap(), start: Lsn::new(START) }
    }

    fn page(block: u32, lsn: u64) -> Vec<u8> {
        let mut page = vec![9; 8192];
        page[0..4].copy_from_slice(&u32::try_from(lsn >> 32).unwrap().to_le_bytes());
        page[4..8].copy_from_slice(&u32::try_from(lsn & 0xFFFF_FFFF).unwrap().to_le_bytes());
        for (at, value) in [(10, 0_u16), (12, 28), (14, 8000), (16, 8192), (18, 0x2004)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let sum = page::checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn judged(data: &[u8], first: u32) -> PageReport {
        let mut findings = PageFindings::default();
        for finding in rule().examine(data, first) {
            findings.add(b"base/5/16384", finding);
        }
        findings.judge(STOP, |_, _| None)
    }

    #[test]
    fn pages_that_are_right_or_empty_say_nothing() {
        let data = [page(131_072, 7), vec![0; 8192], page(131_074, STOP.get() + 9)].concat();
        assert_eq!(judged(&data, 131_072), PageReport::default());
        assert_eq!(judged(&[], 0), PageReport::default());
    }

    #[test]
    fn a_wrong_page_is_damage_unless_replay_writes_it_anew() {
        let wrong = |lsn: u64| {
            let mut page = page(7, lsn);
            page[5000] ^= 1;
            judged(&page, 7).damage
        };
        let old = wrong(START - 1);
        assert!(old[0].starts_with("base/5/16384, block 7: it carries checksum "), "{old:?}");
        assert_eq!(wrong(START), Vec::<String>::new());
        assert_eq!(wrong(STOP.get()), Vec::<String>::new());
        assert!(
            wrong(STOP.get() + 1)[0].ends_with("LSN 0/3000001 lies past the end of the backup, 0/3000000")
        );
        assert_eq!(wrong(u64::MAX).len(), 1);
    }

    #[test]
    fn what_a_running_server_can_show_is_noted_and_no_damage() {
        let mut half = page(0, 7);
        half[..512].fill(0);
        let report = judged(&[half, page(1, 7), vec![1; 100]].concat(), 0);
        assert_eq!(report.damage, Vec::<String>::new());
        let [cut, half] = report.notes.as_slice() else { panic!("{report:?}") };
        assert!(half.contains("block 0: new by its header"), "{half}");
        assert!(cut.contains("block 2: the file ends 100 bytes into it"), "{cut}");
    }

    #[test]
    fn a_page_that_looks_half_written_twice_is_damage() {
        let mut half = page(0, 7);
        half[..512].fill(0);
        let report = |again: PageLook| {
            let mut findings = PageFindings::default();
            findings.add(b"base/5/16384", rule().examine(&half, 0)[0]);
            findings.judge(STOP, |path, block| (path == b"base/5/16384" && block == 0).then_some(again))
        };
        assert!(report(PageLook::HalfNew).damage[0].contains("also when it was read again"));
        for whole in [PageLook::Right, PageLook::Empty] {
            assert_eq!(report(whole), PageReport::default());
        }
    }

    #[test]
    fn an_impossible_header_is_damage() {
        let mut bad = page(0, 7);
        bad[16..18].copy_from_slice(&8190_u16.to_le_bytes());
        let sum = page::checksum(&bad, 0);
        bad[8..10].copy_from_slice(&sum.to_le_bytes());
        assert!(judged(&bad, 0).damage[0].contains("its header cannot be"));
    }

    #[test]
    fn very_many_findings_are_counted_and_the_worst_suspects_kept() {
        let mut findings = PageFindings::default();
        let mut bad = page(0, u64::MAX);
        bad[5000] ^= 1;
        let worst = rule().examine(&bad, 0);
        findings.add(b"worst", worst[0]);
        let mut bad = page(0, START);
        bad[5000] ^= 1;
        let excused = rule().examine(&bad, 0);
        let mut bad = page(0, 1);
        bad[5000] ^= 1;
        let wrong = rule().examine(&bad, 0);
        for _ in 0..5 * MOST_SUSPECTS {
            findings.add(b"excused", excused[0]);
            findings.add(b"wrong", wrong[0]);
        }
        assert!(findings.suspects.len() < 2 * MOST_SUSPECTS);
        let report = findings.judge(STOP, |_, _| None);
        assert_eq!(report.damage.len(), MOST_NAMED + 1);
        assert_eq!(report.damage[MOST_NAMED], "and 4901 more");
    }
}
