//! Timelines: which line of history a piece of WAL belongs to, and how lines fork.
//!
//! ```text
//!  TLI 1  ────────────┬─────────── (abandoned)
//!                     └ fork 0/5000148
//!  TLI 2              ├──────┬────
//!                            └ fork 0/70000A0
//!  TLI 3                     ├─────
//! ```
//! A history file (`00000003.history`) lists the parents of one timeline, oldest first, with the LSN at which each was left
//! (`timeline.c`). Timeline 1 has none. Invariant of [`TimelineHistory`]: timelines ascend strictly, fork LSNs never descend,
//! and every parent is below the timeline itself. In a file forks may descend: who recovers towards timeline 2 but stops before it
//! begins makes a timeline 3 that leaves "timeline 2" there. Nothing past the later fork is on such a route, so that is where the
//! parents before it are left too (`tliOfPointInHistory` comes to the same). Pure.

use std::fmt;
use std::num::NonZeroU32;

use super::lsn::Lsn;

/// Upper bound of a history file in bytes: more is refused before it is parsed.
pub const MAX_HISTORY_BYTES: usize = 1024 * 1024;
/// Most parents of a timeline: a promotion a day for a quarter of a century.
pub const MAX_PARENTS: usize = 10_000;

/// A timeline number, 1 or above. Prints in decimal, as PostgreSQL's messages do; file names use [`TimelineId::hex`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline that initdb creates.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline numbered `n`, or `None` for 0.
    pub fn new(n: u32) -> Option<Self> {
        NonZeroU32::new(n).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Eight upper-case hexadecimal digits, as in file names.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLI {}", self.0)
    }
}

impl serde::Serialize for TimelineId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(self.get())
    }
}

impl<'de> serde::Deserialize<'de> for TimelineId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(u32::deserialize(from)?)
            .ok_or_else(|| serde::de::Error::custom("timeline 0 does not exist"))
    }
}

/// One parent in a history file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The parent timeline.
    pub timeline: TimelineId,
    /// Where it was left: bytes at or past this position belong to the next timeline.
    pub switch: Lsn,
}

/// The ancestry of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    parents: Vec<HistoryEntry>,
}

/// A history file that PostgreSQL would not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line that is not `timeline <tab> X/X <tab> reason`.
    #[error("line {0} of the history file is not \"timeline, switch LSN, reason\"")]
    Syntax(usize),
    /// Timelines that do not ascend.
    #[error("line {0} of the history file does not ascend: timelines must grow")]
    Order(usize),
    /// No parent at all: PostgreSQL writes at least one line for a timeline above 1.
    #[error("the history file names no parent timeline")]
    Empty,
    /// Larger than [`MAX_HISTORY_BYTES`].
    #[error("the history file has {0} bytes, more than any real one")]
    TooLarge(usize),
    /// More than [`MAX_PARENTS`].
    #[error("the history file names more than {MAX_PARENTS} timelines, more than any real one")]
    TooMany,
}

impl TimelineHistory {
    /// The history of timeline 1, which has no file and no parent.
    pub fn first() -> Self {
        Self { timeline: TimelineId::FIRST, parents: Vec::new() }
    }

    /// A timeline of whose parents nothing is known.
    pub fn alone(timeline: TimelineId) -> Self {
        Self { timeline, parents: Vec::new() }
    }

    /// Parses the content of `<timeline>.history` by the rules of `readTimeLineHistory` in `timeline.c`: `#` and blank lines are
    /// skipped, text after the LSN is a comment for people.
    ///
    /// # Errors
    /// [`HistoryError`] names the first line that is wrong.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        if content.len() > MAX_HISTORY_BYTES {
            return Err(HistoryError::TooLarge(content.len()));
        }
        let text = String::from_utf8_lossy(content);
        let mut parents: Vec<HistoryEntry> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index.saturating_add(1);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let (tli, lsn) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let parent =
                tli.parse::<u32>().ok().and_then(TimelineId::new).ok_or(HistoryError::Syntax(number))?;
            let switch = lsn.parse::<Lsn>().map_err(|_| HistoryError::Syntax(number))?;
            if parents.last().is_some_and(|p| p.timeline >= parent) || parent >= timeline {
                return Err(HistoryError::Order(number));
            }
            if parents.len() >= MAX_PARENTS {
                return Err(HistoryError::TooMany);
            }
            for earlier in parents.iter_mut().rev().take_while(|p| p.switch > switch) {
                earlier.switch = switch;
            }
            parents.push(HistoryEntry { timeline: parent, switch });
        }
        if parents.is_empty() {
            return Err(HistoryError::Empty);
        }
        Ok(Self { timeline, parents })
    }

    /// The file of `ancestor`, out of `content`, the file of one of its descendants. A server that was made of another one's descendant
    /// never had it, and need not: PostgreSQL writes the parent's file, a newline and one line of its own into the child's
    /// (`writeTimeLineHistory` in `timeline.c`). `None` if `content` has no line of `ancestor`, or none before that.
    pub fn file_of_ancestor(content: &[u8], ancestor: TimelineId) -> Option<Vec<u8>> {
        let mut before = 0_usize;
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            let text = String::from_utf8_lossy(line);
            let word = text.split_whitespace().next().unwrap_or_default();
            if word.parse().is_ok_and(|tli: u32| tli == ancestor.get()) {
                let file = content.get(..before)?;
                let file = file.strip_suffix(b"\n").unwrap_or(file);
                return Self::parse(ancestor, file).is_ok().then(|| file.to_vec());
            }
            before = before.saturating_add(line.len());
        }
        None
    }

    /// The timeline whose ancestry this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Its parents, oldest first.
    pub fn parents(&self) -> &[HistoryEntry] {
        &self.parents
    }

    /// The direct parent and the fork position, or `None` for timeline 1.
    pub fn fork(&self) -> Option<&HistoryEntry> {
        self.parents.last()
    }

    /// True if `timeline` is this timeline or one of its ancestors.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.parents.iter().any(|p| p.timeline == timeline)
    }

    /// Where `timeline` begins on this route: `0/0` for the oldest, else the fork from its parent. `None` if it is not on it.
    pub fn begin(&self, timeline: TimelineId) -> Option<Lsn> {
        let mut begin = Lsn::ZERO;
        for parent in &self.parents {
            if parent.timeline == timeline {
                return Some(begin);
            }
            begin = parent.switch;
        }
        (timeline == self.timeline).then_some(begin)
    }

    /// Where this route leaves `timeline`: the fork position, or `None` for the newest (it has no end) and for one that is not
    /// on the route.
    pub fn end(&self, timeline: TimelineId) -> Option<Lsn> {
        self.parents.iter().find(|p| p.timeline == timeline).map(|p| p.switch)
    }

    /// The timeline that owns the byte at `lsn` on this route. A byte at a fork position belongs to the child.
    pub fn owner(&self, lsn: Lsn) -> TimelineId {
        self.parents.iter().find(|p| lsn < p.switch).map_or(self.timeline, |p| p.timeline)
    }

    /// The timelines of the route, oldest first, this one last.
    pub fn route(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.parents.iter().map(|p| p.timeline).chain([self.timeline])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    fn parse(timeline: u32, text: &str) -> Result<TimelineHistory, HistoryError> {
        TimelineHistory::parse(tli(timeline), text.as_bytes())
    }

    #[test]
    fn no_more_parents_are_read_than_any_real_timeline_has() {
        let text = |n: usize| (1..=n).map(|tli| format!("{tli}\t0/{:X}\n", n - tli + 1)).collect::<String>();
        assert!(parse(u32::MAX, &text(MAX_PARENTS)).is_ok());
        assert_eq!(parse(u32::MAX, &text(MAX_PARENTS + 1)), Err(HistoryError::TooMany));
    }

    #[test]
    fn reads_what_postgresql_writes() {
        let text = "1\t0/5000148\tbefore 2026-11-20 10:04:35.419003+00\n\n2\t0/70000A0\tno recovery target specified\n";
        let history = parse(3, text).unwrap();
        let at = |text: &str| text.parse::<Lsn>().unwrap();
        assert_eq!(
            history.parents(),
            [
                HistoryEntry { timeline: tli(1), switch: at("0/5000148") },
                HistoryEntry { timeline: tli(2), switch: at("0/70000A0") }
            ]
        );
        assert_eq!(history.owner(at("0/5000147")), tli(1));
        assert_eq!(history.owner(at("0/5000148")), tli(2), "a byte at the fork belongs to the child");
        assert_eq!(history.owner(at("0/70000A0")), tli(3));
        assert_eq!(history.route().collect::<Vec<_>>(), [tli(1), tli(2), tli(3)]);
    }

    #[test]
    fn the_file_of_an_ancestor_is_the_beginning_of_each_descendants_file() {
        // As `writeTimeLineHistory` does it: the parent's file, then, after a newline if there is one, the own line.
        let child = |parent: &str, tli: u32, rest: &str| {
            let newline = if parent.is_empty() { "" } else { "\n" };
            format!("{parent}{newline}{tli}\t{rest}\n")
        };
        let two = child("", 1, "0/5000148\tbefore 2026-11-20 10:04:35.419003+00");
        let five = child(&two, 2, "0/70000A0\tno recovery target specified");
        // Somebody's comment, and no newline at the end.
        let nine = child(&format!("{five}# 7 was never archived"), 5, "0/80000A0\tafter LSN 0/8000060");
        let twelve = child(&nine, 9, "0/90000A0\tno recovery target specified");
        let of = |content: &str, tli_: u32| {
            TimelineHistory::file_of_ancestor(content.as_bytes(), tli(tli_))
                .map(|file| String::from_utf8(file).unwrap())
        };
        for content in [&nine, &twelve] {
            assert_eq!(of(content, 2).unwrap(), two);
            assert_eq!(of(content, 5).unwrap(), format!("{five}# 7 was never archived"));
        }
        assert_eq!(of(&twelve, 9).unwrap(), nine);
        // Timeline 1 has no file; 7 and 12 are no ancestors.
        for none in [1, 7, 12] {
            assert_eq!(of(&twelve, none), None, "{none}");
        }
    }

    #[test]
    fn comments_and_blank_lines_are_skipped_and_counted() {
        assert!(parse(2, "# a comment\n\n  \n1\t0/5000148\n").is_ok());
        assert_eq!(parse(2, "# a comment\n\n1 x\n"), Err(HistoryError::Syntax(3)));
    }

    #[test]
    fn histories_postgresql_would_not_accept_are_refused() {
        assert_eq!(parse(2, ""), Err(HistoryError::Empty));
        assert_eq!(parse(2, "x\t0/1\n"), Err(HistoryError::Syntax(1)));
        assert_eq!(parse(2, "0\t0/1\n"), Err(HistoryError::Syntax(1)));
        assert_eq!(parse(2, "2\t0/1\n"), Err(HistoryError::Order(1)), "its own parent");
        assert_eq!(parse(4, "2\t0/1\n1\t0/2\n"), Err(HistoryError::Order(2)));
        let large = vec![b'#'; MAX_HISTORY_BYTES + 1];
        assert_eq!(
            TimelineHistory::parse(tli(2), &large),
            Err(HistoryError::TooLarge(MAX_HISTORY_BYTES + 1))
        );
    }

    /// Ascending forks of an ascending subset of timelines.
    fn histories() -> impl Strategy<Value = TimelineHistory> {
        proptest::collection::vec((1_u32..5, 0_u64..10_000), 1..8).prop_map(|steps| {
            let (mut timeline, mut switch, mut text) = (0_u32, 0_u64, String::new());
            for (up, on) in steps {
                timeline += up;
                switch += on;
                text += &format!("{timeline}\t{}\twhy\n\n", Lsn::new(switch));
            }
            parse(timeline + 1, &text).unwrap()
        })
    }

    proptest! {
        #[test]
        fn the_owner_is_the_one_that_postgresql_finds_whatever_order_forks_have(
            forks in proptest::collection::vec(0_u64..100, 1..6), lsn in 0_u64..110,
        ) {
            let line = |(tli, switch): (u32, &u64)| format!("{tli}\t{}\n", Lsn::new(*switch));
            let text: String = (1..).zip(&forks).map(line).collect();
            let newest = u32::try_from(forks.len()).unwrap() + 1;
            // tliOfPointInHistory: newest first, the first whose span holds the position; spans lie between lines of the file.
            let begins = [0].into_iter().chain(forks.iter().copied());
            let ends = forks.iter().map(|end| Some(*end)).chain([None]);
            let spans: Vec<_> = (1..=newest).zip(begins.zip(ends)).collect();
            let found = spans.iter().rev().find(|(_, (begin, end))| *begin <= lsn && end.is_none_or(|end| lsn < end));
            let owner = parse(newest, &text).unwrap().owner(Lsn::new(lsn));
            prop_assert_eq!(Some(owner.get()), found.map(|(timeline, _)| *timeline));
        }

        #[test]
        fn owner_begin_and_end_tell_one_story(history in histories(), lsn in 0_u64..90_000) {
            let lsn = Lsn::new(lsn);
            let owner = history.owner(lsn);
            let holds = |timeline| {
                history.begin(timeline).is_some_and(|begin| begin <= lsn)
                    && history.end(timeline).is_none_or(|end| lsn < end)
            };
            prop_assert!(holds(owner));
            prop_assert_eq!(history.route().filter(|t| holds(*t)).collect::<Vec<_>>(), vec![owner]);
        }

        #[test]
        fn each_timeline_begins_where_its_parent_is_left(history in histories()) {
            let route: Vec<_> = history.route().collect();
            for pair in route.windows(2) {
                prop_assert_eq!(history.end(pair[0]), history.begin(pair[1]));
                prop_assert!(history.contains(pair[0]));
            }
            prop_assert_eq!(history.begin(route[0]), Some(Lsn::ZERO));
            prop_assert_eq!(history.end(history.timeline()), None);
            let stranger = TimelineId::new(history.timeline().get() + 1).unwrap();
            prop_assert_eq!((history.contains(stranger), history.begin(stranger)), (false, None));
        }

        #[test]
        fn any_content_is_answered(timeline in 1_u32.., content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = TimelineHistory::parse(tli(timeline), &content); // an answer of any kind, no panic
        }
    }
}
