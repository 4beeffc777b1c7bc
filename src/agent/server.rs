//! The agent's end of the socket: who may ask, and what is answered.
//!
//! ```text
//!  accept ─► the server's user or root? ─► "+" ─► question ─► same version, same configuration, same pg_wal? ─► push ─► yes / no
//!                  └ no: closed                                        └ no: "unsure", the asker works alone
//! ```
//! Invariants: only what this module can stand for is answered; for all else the asker is sent to do it itself. The number of conversations and
//! the length of each are bounded.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::Setup;
use super::fetcher::{ENOUGH, Fetcher};
use super::pusher::{Pusher, Status};
use super::queue::Turn;
use super::wire::{self, AT_IT, Answer, Ask, Errand, HEARD, Question};
use crate::codec::Compression;
use crate::durable;
use crate::error::{Error, Kind};
use crate::ops::archive::COPY_MARKER;
use crate::wal::WalFileName;

/// Conversations at once: PostgreSQL has one, a person a few.
const MOST: usize = 64;
/// Longest wait for a question.
const TO_ASK: Duration = Duration::from_secs(2);
/// Between two signs of life.
const SIGN: Duration = Duration::from_secs(1);
/// Longest wait until an asker takes what it is told.
const TO_HEAR: Duration = Duration::from_secs(2);
/// Longest work on one question: beyond all deadlines of the store, so that only a defect of ours gets there.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The configuration that the agent goes by, and what works by it.
#[derive(Debug)]
pub(super) struct Generation {
    /// The fingerprint of the configuration.
    pub(super) config: String,
    /// Answers for `archive-push`; a process that only fetches ahead has none.
    pub(super) pusher: Option<Arc<Pusher>>,
    /// Answers for `archive-get`.
    pub(super) fetcher: Arc<Fetcher>,
}

impl Generation {
    /// Whether it goes by this configuration and these credentials already.
    pub(super) fn goes_by(&self, setup: &Setup) -> bool {
        let same = |pusher: &Arc<Pusher>| {
            let mut pairs = pusher.repositories().zip(&setup.repositories);
            pairs.all(|(ours, theirs)| ours.store().has_credentials_of(theirs.store()))
        };
        self.config == setup.config && self.pusher.as_ref().is_some_and(same)
    }
}

/// Why the configuration is to be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// An asker goes by another text of it.
    Configuration,
    /// A store refused the credentials, which may lie in another file.
    Credentials,
    /// A file of keys was replaced, or somebody says that something was (SIGHUP).
    Keys,
}

/// What all conversations share.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) version: String,
    pub(super) current: RwLock<Arc<Generation>>,
    /// Asks for the configuration to be read again.
    pub(super) reload: mpsc::Sender<Wish>,
}

impl Desk {
    pub(super) fn generation(&self) -> Arc<Generation> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn answer(&self, question: &Question) -> Answer {
        let answer = self.look_into(question).await;
        if let (Ask::Push { .. }, Answer::Unsure { .. }) = (&question.ask, &answer) {
            self.is_passed_by();
        }
        answer
    }

    /// An asker of a push stores the file by himself.
    fn is_passed_by(&self) {
        if let Some(pusher) = self.generation().pusher.as_ref() {
            pusher.is_passed_by();
        }
    }

    async fn look_into(&self, question: &Question) -> Answer {
        let generation = self.generation();
        let unsure = |why: &str| Answer::Unsure { why: why.to_owned() };
        let pushes = generation.pusher.as_ref();
        if question.ask == Ask::Status {
            let said = pushes.map(|pusher| status(&self.version, pusher));
            return said.unwrap_or_else(|| unsure("it only fetches ahead"));
        }
        if question.version != self.version {
            return Answer::Unsure {
                why: format!("it is pitr {}: restart it to run this one", self.version),
            };
        }
        if let Ask::Get { errand, .. } = &question.ask
            && !is_same(&errand.directory, generation.fetcher.data_dir())
        {
            return Answer::Elsewhere;
        }
        if question.config != generation.config {
            // A full channel has a wish in it already.
            let _ = self.reload.try_send(Wish::Configuration);
            return unsure(
                "it goes by another configuration, which it reads again now; if this is said again and again, start it with the same --config as archive_command",
            );
        }
        match (&question.ask, pushes) {
            (Ask::Push { directory, path }, Some(pusher)) => self.push(pusher, &directory.join(path)).await,
            (Ask::Get { file, errand }, _) => get(&generation.fetcher, file, errand).await,
            (Ask::Push { .. } | Ask::Status, _) => unsure("it only fetches ahead"),
        }
    }

    async fn push(&self, pusher: &Arc<Pusher>, path: &Path) -> Answer {
        let unsure = |why: String| Answer::Unsure { why };
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(Ok(name)) = name.map(WalFileName::parse) else {
            return unsure("that is no name of a WAL file".to_owned());
        };
        let pg_wal = pusher.data_dir().join("pg_wal");
        if !is_same(path.parent().unwrap_or(path), &pg_wal) {
            return unsure(format!("it archives {} and nothing else", pg_wal.display()));
        }
        if pusher.data_dir().join(COPY_MARKER).exists() {
            return unsure("its data directory is a copy".to_owned());
        }
        match pusher.push(&Turn::of(name), path).await {
            Ok(warnings) => Answer::Yes { warnings },
            Err(e) if matches!(e.kind(), Kind::Failed | Kind::Busy) => no(e),
            Err(e) => unsure(e.to_string()),
        }
    }
}

/// Of failures the asker finds out for itself, or says what they mean, which depends on who recovers (RECOVERY.md 15). The directory is the agent's.
async fn get(fetcher: &Fetcher, file: &str, errand: &Errand) -> Answer {
    let unsure = |why: String| Answer::Unsure { why };
    let Ok(name) = WalFileName::parse(file) else {
        return unsure("that is no name of a WAL file".to_owned());
    };
    let began = Instant::now();
    match fetcher.get(name, errand).await {
        Ok(Some(path)) => Answer::Spooled { path },
        Ok(None) => Answer::Absent,
        // Who has it answers at a door of its own.
        Err(e) if e.kind() == Kind::Busy => Answer::Elsewhere,
        // A store that does not answer: to wait for that once more teaches nothing.
        Err(e) if e.is_unanswered() && began.elapsed() >= ENOUGH => no(e),
        Err(e) => unsure(e.to_string()),
    }
}

fn no(error: Error) -> Answer {
    let error = error.advised();
    Answer::No { code: error.exit_code(), report: error.report() }
}

fn is_same(one: &Path, two: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    identity(one).is_some_and(|found| identity(two) == Some(found))
}

fn status(version: &str, pusher: &Pusher) -> Answer {
    let Status { ready, waiting, first_waiting, under_way, refused, compression, configured, lanes, outlook } =
        pusher.status();
    let lanes: Vec<_> = lanes
        .iter()
        .map(|lane| {
            serde_json::json!({
                "name": lane.repository, "required": lane.required, "lacks": lane.lacks, "failing": lane.failing,
                "behind": lane.behind || lane.copied.is_some(), "copied": lane.copied,
            })
        })
        .collect();
    let level = |compression| match compression {
        Compression::Zstd { level } => Some(level),
        Compression::Stored => None,
    };
    let first_refused = refused.first.map(|(file, why)| serde_json::json!({ "file": file, "why": why }));
    let json = serde_json::json!({
        "schema": "pitr.agent-status.v1",
        "version": version,
        "pid": std::process::id(),
        "data_dir": pusher.data_dir(),
        "ready": ready,
        "waiting": waiting,
        "first_waiting": first_waiting,
        "under_way": under_way,
        "refused": refused.files,
        "first_refused": first_refused,
        "level": level(compression),
        "configured_level": level(configured),
        "oldest_waits_seconds": outlook.waits,
        "free_bytes": outlook.free,
        "full_in_seconds": outlook.full_in,
        "at_risk": outlook.at_risk,
        "repositories": lanes,
    });
    Answer::Status { json: json.to_string() }
}

/// Answers until the listener is dropped.
pub(super) async fn serve(listener: UnixListener, desk: Arc<Desk>) {
    let places = Arc::new(Semaphore::new(MOST));
    let own = nix::unistd::Uid::effective().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // No descriptors left, for a moment: asking again at once would only heat.
                tracing::warn!("the socket takes no connection: {e}");
                crate::clock::sleep(SIGN).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            desk.is_passed_by();
            continue;
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own || peer.uid() == 0 => {}
            Ok(peer) => {
                tracing::warn!("user {} asked at the socket and was turned away", peer.uid());
                continue;
            }
            Err(_) => continue,
        }
        let desk = Arc::clone(&desk);
        tokio::spawn(async move {
            // An asker that went away needs no answer.
            let _ = converse(stream, &desk).await;
            drop(place);
        });
    }
}

async fn converse(mut stream: UnixStream, desk: &Desk) -> std::io::Result<()> {
    tell(&mut stream, &[HEARD]).await?;
    let Some(question) = tokio::time::timeout(TO_ASK, read(&mut stream)).await?? else {
        let why = "it did not understand the question".to_owned();
        return tell(&mut stream, &Answer::Unsure { why }.encode()).await;
    };
    let work = tokio::time::timeout(PATIENCE, desk.answer(&question));
    tokio::pin!(work);
    let mut signs = tokio::time::interval_at(tokio::time::Instant::now() + SIGN, SIGN);
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut work => {
                break answer.unwrap_or_else(|_| Answer::Unsure { why: "it came to no answer".to_owned() });
            }
            _ = signs.tick() => tell(&mut stream, &[AT_IT]).await?,
        }
    };
    durable::crash_point("agent-answers");
    tell(&mut stream, &answer.encode()).await
}

/// One who asks and does not listen (a stopped process) has a place for so long and no longer.
async fn tell(stream: &mut UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    tokio::time::timeout(TO_HEAR, stream.write_all(bytes)).await?
}

async fn read(stream: &mut UnixStream) -> std::io::Result<Option<Question>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let Some(length) = wire::length(head) else { return Ok(None) };
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Question::decode(&body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_asker_that_does_not_listen_is_left_in_the_end() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let more_than_fits = vec![0; 8 << 20];
        let told = tell(&mut ours, &more_than_fits).await;
        assert_eq!(told.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }
}
