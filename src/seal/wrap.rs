//! Wraps: an epoch's secret and the seal key, encrypted to the people who may read.
//!
//! ```text
//!  age -d -i MY.key wrap-0001.age
//!  # pitr epoch e0001
//!  # cluster: main
//!  # created: 2026-01-31T12:00:00Z
//!  # seal key: 64 hexadecimal digits
//!  # recipient: age1…                    one for each whom it was made for
//!  AGE-SECRET-KEY-1…                     so this is an identity file: age -d -i it opens every body of the epoch
//! ```
//! A wrap says whose it is, and a reader compares: one taken from another cluster or put under another epoch is refused. Only who has the
//! epoch's secret can make one, so its recipients are believed where a host file's are not. Pure but for random numbers.

use std::fmt::Write as _;

use bytes::Bytes;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::epoch::{Epoch, EpochKey};
use super::identity::{Identity, Recipient};
use super::key::SealKey;
use super::{Opener, SealError, body};

/// Largest wrap: hundreds of recipients.
pub const MAX_WRAP: u64 = 64 << 10;
/// Room for a wrap's text besides the name of the cluster: a text that grows leaves copies of itself behind.
const TEXT_ROOM: usize = 512;
/// Room for a recipient's line.
const LINE_ROOM: usize = 96;
/// What a recipient's line begins with.
const RECIPIENT: &str = "# recipient: ";
/// Most wraps of one epoch: one for each recipient that came later.
pub const MAX_WRAPS: u32 = 999;
/// Most wraps of a cluster. Who comes gets one of every epoch, and who goes begins an epoch: as many as 400 replaced recipients leave.
pub const MOST_WRAPS: usize = 100_000;
/// Most bytes of them: what half of [`MAX_HOST_FILE`](super::host::MAX_HOST_FILE) has room for, in which they are written in hexadecimal.
pub const MOST_WRAP_BYTES: u64 = super::host::MAX_HOST_FILE / 2;

/// A wrap's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrap(pub Bytes);

/// What a wrap holds.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The epoch and its secret.
    pub key: EpochKey,
    /// The cluster's seal key.
    pub seal: SealKey,
    /// When the epoch was made.
    pub created: Timestamp,
    /// Whom the wrap says that it was made for; one of an older pitr says nothing.
    pub recipients: Vec<Recipient>,
}

impl Opened {
    /// Its text: an identity file of age.
    fn text(&self, cluster: &str, recipients: &[&Recipient]) -> Zeroizing<String> {
        let room = TEXT_ROOM.saturating_add(cluster.len());
        let room = room.saturating_add(LINE_ROOM.saturating_mul(recipients.len()));
        let mut text = Zeroizing::new(String::with_capacity(room));
        write!(
            text,
            "# pitr epoch {}\n# cluster: {cluster}\n# created: {}\n# seal key: {}\n",
            self.key.epoch,
            self.created,
            self.seal.to_hex().as_str(),
        )
        .expect("text takes all that is written");
        for recipient in recipients {
            writeln!(text, "{RECIPIENT}{recipient}").expect("text takes all that is written");
        }
        text.push_str(&self.key.identity.to_text());
        text.push('\n');
        text
    }

    /// Encrypts it to `recipients`.
    ///
    /// # Errors
    /// [`SealError::Encrypt`].
    pub fn wrap(&self, cluster: &str, recipients: &[&Recipient]) -> Result<Wrap, SealError> {
        // Handed over, not copied: wiped when the last one lets go of it.
        let pieces = body::encrypt([Bytes::from_owner(self.text(cluster, recipients))], recipients)?;
        Ok(Wrap(pieces.concat().into()))
    }
}

impl Wrap {
    /// What it holds, if one of `identities` opens it and it is that of `epoch` in `cluster`.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, identities: &[Identity], cluster: &str, epoch: Epoch) -> Result<Opened, SealError> {
        let plain = Opener(identities).secret(&self.0)?;
        let bad = SealError::Malformed("a wrap holds an epoch's key, and says whose");
        let text = std::str::from_utf8(&plain).map_err(|_| bad.clone())?;
        let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
        let found = line("# pitr epoch ").ok_or_else(|| bad.clone())?.parse::<Epoch>();
        if found != Ok(epoch) {
            return Err(SealError::Malformed("this wrap is that of another epoch"));
        }
        if line("# cluster: ") != Some(cluster) {
            return Err(SealError::Malformed("this wrap is that of another cluster"));
        }
        let seal = SealKey::from_hex(line("# seal key: ").ok_or_else(|| bad.clone())?)?;
        let created = line("# created: ").and_then(|t| t.parse().ok()).ok_or_else(|| bad.clone())?;
        let identity = Identity::parse_file(text)?.pop().ok_or(bad)?;
        let recipients = text.lines().filter_map(|line| line.strip_prefix(RECIPIENT)?.parse().ok()).collect();
        Ok(Opened { key: EpochKey { epoch, identity }, seal, created, recipients })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrap_opens_for_each_recipient_and_says_whose_it_is() {
        let (daily, offline, stranger) = (Identity::generate(), Identity::generate(), Identity::generate());
        let opened = Opened {
            key: EpochKey::generate(Epoch::FIRST),
            seal: SealKey::new([3; 32]),
            created: Timestamp::UNIX_EPOCH,
            recipients: Vec::new(),
        };
        let wrap = opened.wrap("main", &[&daily.recipient(), &offline.recipient()]).unwrap();
        for identity in [&daily, &offline] {
            let found = wrap.open(std::slice::from_ref(identity), "main", Epoch::FIRST).unwrap();
            assert_eq!((found.seal, found.created), (opened.seal.clone(), opened.created));
            assert_eq!(found.key.recipient(), opened.key.recipient());
            assert_eq!(found.recipients, [daily.recipient(), offline.recipient()]);
        }
        let refused = |who: &Identity, cluster: &str, epoch: u32| {
            wrap.open(std::slice::from_ref(who), cluster, Epoch::new(epoch).unwrap()).unwrap_err()
        };
        assert_eq!(refused(&stranger, "main", 1), SealError::NoKey);
        assert!(refused(&daily, "other", 1).to_string().contains("another cluster"));
        assert!(refused(&daily, "main", 2).to_string().contains("another epoch"));
        assert!(!format!("{opened:?}").contains("AGE-SECRET"), "{opened:?}");
    }
    /// Says what the child is to open; and that it is to keep a copy, by which the search is known to find one.
    const CHILD: &str = "PITR_TEST_OPENS_A_WRAP";
    const KEEPS: &str = "PITR_TEST_KEEPS_A_COPY";
    /// What is looked for is at no place in memory as it is.
    const MASK: u8 = 0x5a;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "what a child is to do is in its environment")]
    fn nothing_of_a_wrap_stays_in_memory() {
        if let Ok(task) = std::env::var(CHILD) {
            return opens_and_looks(&task);
        }
        let daily = Identity::generate();
        let key = EpochKey::generate(Epoch::FIRST);
        let masked = |text: &str| crate::codec::hex(&text.bytes().map(|b| b ^ MASK).collect::<Vec<_>>());
        let wanted = [masked(&key.identity.to_text()), masked(&"a7".repeat(32))];
        let (seal, created) = (SealKey::new([0xa7; 32]), Timestamp::UNIX_EPOCH);
        let opened = Opened { key, seal, created, recipients: Vec::new() };
        let wrap = crate::codec::hex(&opened.wrap("main", &[&daily.recipient()]).unwrap().0);
        let task = [&wrap, daily.to_text().as_str(), &wanted[0], &wanted[1]].join(" ");
        // In a process of its own: this one has made the secrets.
        let run = |keeps: &str| {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "--nocapture", "seal::wrap::tests::nothing_of_a_wrap_stays_in_memory"]);
            let output = command.env(CHILD, &task).env(KEEPS, keeps).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let kept = run("yes");
        assert!(kept.contains("looked and found [true, true]"), "{kept}");
        let wiped = run("no");
        assert!(wiped.contains("looked and found [false, false]"), "{wiped}");
    }

    #[expect(clippy::print_stdout, clippy::disallowed_methods, reason = "it talks with the parent")]
    fn opens_and_looks(task: &str) {
        let words: Vec<&str> = task.split(' ').collect();
        let [wrap, identity, first, second] = words.as_slice() else { unreachable!("four words") };
        let wrap = Wrap(crate::codec::unhex(wrap).unwrap().into());
        let opened = wrap.open(&Identity::parse_file(identity).unwrap(), "main", Epoch::FIRST).unwrap();
        let copies = (std::env::var(KEEPS).unwrap() == "yes")
            .then(|| (opened.key.identity.to_text().to_string(), opened.seal.to_hex().to_string()));
        drop(opened);
        let wanted = [first, second].map(|text| crate::codec::unhex(text).unwrap());
        println!("looked and found {:?}", wanted.map(|masked| is_in_memory(&masked)));
        drop(copies);
    }

    fn is_in_memory(masked: &[u8]) -> bool {
        use std::os::unix::fs::FileExt as _;
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut block = vec![0; 1 << 20];
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let (from, rest) = line.split_once('-').unwrap();
            let to = rest.split(' ').next().unwrap();
            let (mut at, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
            while at < to {
                let len = usize::try_from(to - at).unwrap().min(block.len());
                // Not all of it can be read: the kernel's own pages.
                let Ok(read) = memory.read_at(&mut block[..len], at) else { break };
                let same = |window: &[u8]| window.iter().zip(masked).all(|(a, b)| a ^ MASK == *b);
                if block[..read].windows(masked.len()).any(same) {
                    return true;
                }
                let next = read.saturating_sub(masked.len() - 1).max(1);
                at += if read == len && len < block.len() { to - at } else { u64::try_from(next).unwrap() };
            }
        }
        false
    }
}
