//! What is said on the agent's socket: one question, one answer, then it is closed.
//!
//! ```text
//!  client   length (u32, little endian) │ "pitr 1" NUL version NUL digest of the configuration NUL verb NUL fields NUL ...
//!  agent    "+" at once   "." each second while it works   "=" length │ verb NUL fields NUL ...
//! ```
//! Fields hold any bytes but NUL, as paths do. Invariants: nothing longer than [`LONGEST`] is read; a client that does not understand
//! an answer has none, and does the work itself. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Longest question or answer in bytes.
pub const LONGEST: usize = 64 * 1024;
/// "I have heard."
pub const HEARD: u8 = b'+';
/// "I am at it."
pub const AT_IT: u8 = b'.';
/// An answer follows.
pub const ANSWER: u8 = b'=';

/// What every question begins with.
const PROTOCOL: &[u8] = b"pitr 1";

/// A question, with what the asker goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The asker's version.
    pub version: String,
    /// The fingerprint of the asker's configuration.
    pub config: String,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Is this file of `pg_wal` in every required repository?
    Push {
        /// The asker's working directory.
        directory: PathBuf,
        /// The file, relative to it or absolute.
        path: PathBuf,
    },
    /// A file for recovery.
    Get {
        /// The file's name.
        file: String,
        /// How it is to be fetched.
        errand: Errand,
    },
    /// How is it going?
    Status,
}

/// What `restore_command` says besides the name of a file: the same for a whole recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// The data directory that recovers: the asker's working directory.
    pub directory: PathBuf,
    /// The one repository to ask; all if `None`.
    pub repository: Option<String>,
    /// `--timeline`.
    pub timeline: Option<u32>,
    /// `--until`.
    pub until: Option<String>,
    /// `--system-id`.
    pub system: Option<u64>,
    /// `--seal-fingerprint`: who believes another seal key does not fetch for it.
    pub seal: Option<String>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is, durably. Warnings are for the log.
    Yes {
        /// Of optional repositories.
        warnings: Vec<String>,
    },
    /// The file for recovery, checked and synced, in the spool of `pg_wal`: the asker's to move.
    Spooled {
        /// Where it lies.
        path: PathBuf,
    },
    /// The file for recovery is proven not to be in the archive.
    Absent,
    /// It is not, and asking anybody else now would say the same.
    No {
        /// Exit code of the failure's kind.
        code: u8,
        /// Message, causes and hint, ready to print.
        report: String,
    },
    /// The agent cannot tell: the asker must do it alone.
    Unsure {
        /// Why.
        why: String,
    },
    /// That is another server's recovery, such as a trial restore beside the agent's, or another process fetches ahead for this one: the asker
    /// looks elsewhere, or does it alone, and nothing is amiss.
    Elsewhere,
    /// A JSON object.
    Status {
        /// The object as text.
        json: String,
    },
}

impl Question {
    /// The bytes to send; `None` if it is longer than a question may be, or holds a NUL.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let head = [PROTOCOL, self.version.as_bytes(), self.config.as_bytes()];
        match &self.ask {
            Ask::Push { directory, path } => {
                framed(head.into_iter().chain([&b"push"[..], bytes(directory), bytes(path)]))
            }
            Ask::Get { file, errand } => {
                let number = |n: Option<String>| n.unwrap_or_default();
                let texts = [
                    errand.repository.clone().unwrap_or_default(),
                    number(errand.timeline.map(|n| n.to_string())),
                    errand.until.clone().unwrap_or_default(),
                    number(errand.system.map(|n| n.to_string())),
                    errand.seal.clone().unwrap_or_default(),
                ];
                let told = [&b"get"[..], file.as_bytes(), bytes(&errand.directory)];
                framed(head.into_iter().chain(told).chain(texts.iter().map(String::as_bytes)))
            }
            Ask::Status => framed(head.into_iter().chain([&b"status"[..]])),
        }
    }

    /// Reads the bytes behind the length.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = fields(body)?;
        if fields.next()? != PROTOCOL {
            return None;
        }
        let (version, config) = (text(fields.next()?)?, text(fields.next()?)?);
        let ask = match fields.next()? {
            b"push" => Ask::Push { directory: path(fields.next()?), path: path(fields.next()?) },
            b"get" => {
                let (file, directory) = (text(fields.next()?)?, path(fields.next()?));
                let mut said = || text(fields.next()?);
                let (repository, timeline, until, system, seal) =
                    (said()?, said()?, said()?, said()?, said()?);
                let some = |word: String| Some(word).filter(|word| !word.is_empty());
                let errand = Errand {
                    directory,
                    repository: some(repository),
                    timeline: some(timeline).map(|n| n.parse().ok()).map_or(Some(None), |n| n.map(Some))?,
                    until: some(until),
                    system: some(system).map(|n| n.parse().ok()).map_or(Some(None), |n| n.map(Some))?,
                    seal: some(seal),
                };
                Ask::Get { file, errand }
            }
            b"status" => Ask::Status,
            _ => return None,
        };
        fields.next().is_none().then_some(Self { version, config, ask })
    }
}

impl Answer {
    /// The bytes to send, [`ANSWER`] included. Text that is too long is cut.
    pub fn encode(&self) -> Vec<u8> {
        let code;
        let parts: Vec<&[u8]> = match self {
            Self::Yes { warnings } => {
                std::iter::once(&b"yes"[..]).chain(warnings.iter().map(String::as_bytes)).collect()
            }
            Self::No { code: number, report } => {
                code = number.to_string();
                vec![b"no", code.as_bytes(), report.as_bytes()]
            }
            Self::Spooled { path } => vec![b"spooled", bytes(path)],
            Self::Absent => vec![b"absent"],
            Self::Unsure { why } => vec![b"unsure", why.as_bytes()],
            Self::Elsewhere => vec![b"elsewhere"],
            Self::Status { json } => vec![b"status", json.as_bytes()],
        };
        let mut clean: Vec<Vec<u8>> = parts.iter().map(|part| without_nul(part)).collect();
        let mut whole = framed(clean.iter().map(Vec::as_slice));
        if whole.is_none() {
            let least = LONGEST / clean.len().max(1) - 1;
            clean.iter_mut().for_each(|part| part.truncate(least));
            whole = framed(clean.iter().map(Vec::as_slice));
        }
        let mut answer = vec![ANSWER];
        answer.extend(whole.unwrap_or_default());
        answer
    }

    /// Reads the bytes behind the length.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = fields(body)?.peekable();
        if fields.next_if(|verb| *verb == b"spooled").is_some() {
            return Some(Self::Spooled { path: path(fields.next()?) });
        }
        let mut lossy = || fields.next().map(|field| String::from_utf8_lossy(field).into_owned());
        Some(match lossy()?.as_str() {
            "yes" => Self::Yes { warnings: std::iter::from_fn(lossy).collect() },
            "no" => Self::No { code: lossy()?.parse().ok()?, report: lossy()? },
            "absent" => Self::Absent,
            "unsure" => Self::Unsure { why: lossy()? },
            "elsewhere" => Self::Elsewhere,
            "status" => Self::Status { json: lossy()? },
            _ => return None,
        })
    }
}

/// The length of what follows, from its four bytes; `None` if that is more than anybody says.
pub fn length(bytes: [u8; 4]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes)).ok().filter(|length| *length <= LONGEST)
}

fn framed<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    for part in parts {
        if part.contains(&0) {
            return None;
        }
        body.extend_from_slice(part);
        body.push(0);
    }
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= LONGEST)?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.append(&mut body);
    Some(frame)
}

fn fields(body: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    Some(body.strip_suffix(&[0])?.split(|byte| *byte == 0))
}

fn without_nul(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| *byte != 0).collect()
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(field))
}

fn text(field: &[u8]) -> Option<String> {
    String::from_utf8(field.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(frame: &[u8]) -> &[u8] {
        let (head, body) = frame.split_first_chunk::<4>().unwrap();
        assert_eq!(length(*head), Some(body.len()));
        body
    }

    fn asks() -> impl Strategy<Value = Ask> {
        let field = || proptest::collection::vec(1_u8.., 0..40);
        let errand = || {
            let route = (any::<Option<u32>>(), "[0-9A-F/]{0,9}", any::<Option<u64>>());
            let parts = (field(), "[a-z]{0,5}", route, "[0-9a-f]{0,9}");
            parts.prop_map(|(directory, repository, (timeline, until, system), seal)| Errand {
                directory: path(&directory),
                repository: Some(repository).filter(|word| !word.is_empty()),
                timeline,
                until: Some(until).filter(|word| !word.is_empty()),
                system,
                seal: Some(seal).filter(|word| !word.is_empty()),
            })
        };
        prop_oneof![
            Just(Ask::Status),
            ("[0-9A-F.]{0,30}", errand()).prop_map(|(file, errand)| Ask::Get { file, errand }),
            (field(), field()).prop_map(|(d, p)| Ask::Push { directory: path(&d), path: path(&p) }),
        ]
    }

    fn answers() -> impl Strategy<Value = Answer> {
        let line = || "[^\0]{0,30}";
        prop_oneof![
            proptest::collection::vec(line(), 0..3).prop_map(|warnings| Answer::Yes { warnings }),
            (any::<u8>(), line()).prop_map(|(code, report)| Answer::No { code, report }),
            line().prop_map(|why| Answer::Unsure { why }),
            line().prop_map(|place| Answer::Spooled { path: PathBuf::from(place) }),
            Just(Answer::Absent),
            Just(Answer::Elsewhere),
            line().prop_map(|json| Answer::Status { json }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_what_is_heard(ask in asks(), version in "[a-z0-9.]{1,9}", answer in answers()) {
            let question = Question { version, config: "0".repeat(32), ask };
            let frame = question.encode().unwrap();
            prop_assert_eq!(Question::decode(body(&frame)), Some(question));
            let said = answer.encode();
            let (mark, frame) = said.split_first().unwrap();
            prop_assert_eq!(*mark, ANSWER);
            prop_assert_eq!(Answer::decode(body(frame)), Some(answer));
        }

        #[test]
        fn noise_is_no_question_and_no_answer_and_hurts_nobody(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Question::decode(&noise), None);
            let _ = Answer::decode(&noise);
        }
    }

    #[test]
    fn what_is_too_long_is_not_asked_and_cut_in_an_answer() {
        let ask = Ask::Push { directory: PathBuf::from("/"), path: PathBuf::from("x".repeat(LONGEST)) };
        assert_eq!(Question { version: "1".into(), config: String::new(), ask }.encode(), None);
        let said = Answer::No { code: 1, report: "r".repeat(LONGEST * 2) }.encode();
        let (_, frame) = said.split_first().unwrap();
        assert!(
            matches!(Answer::decode(body(frame)), Some(Answer::No { code: 1, report }) if report.len() > 1000)
        );
        assert_eq!(length(u32::MAX.to_le_bytes()), None);
    }
}
