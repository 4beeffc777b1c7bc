//! The connection against servers that misbehave: silent, cut off, out of turn, in small pieces, impostors.
//!
//! The server's side is a script on a Unix socket; time is paused, so a deadline of minutes costs nothing.

use super::*;
use crate::pgwire::conn::ReplicationConn;
use crate::pgwire::{BackupEvent, BaseBackupOptions, ConnInfo, Environment, Sql};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

fn row(cells: &[&str]) -> Vec<u8> {
    let count = u16::try_from(cells.len()).unwrap().to_be_bytes();
    let cell =
        |text: &&str| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    frame(b'D', &[&count[..], &cells.iter().flat_map(cell).collect::<Vec<_>>()].concat())
}

fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

fn complete(tag: &str) -> Vec<u8> {
    frame(b'C', format!("{tag}\0").as_bytes())
}

fn welcome() -> Vec<u8> {
    [frame(b'R', &[0; 4]), frame(b'S', b"server_version\x0015 (x)\0"), frame(b'K', &[0; 8]), ready()].concat()
}

fn version() -> Vec<u8> {
    [row(&["150018"]), complete("SHOW"), ready()].concat()
}

/// What the server does, step by step.
enum Step {
    /// Waits for any request.
    Hear,
    Say(Vec<u8>),
    Sleep(u64),
}

/// A server that plays `steps` for one connection, then closes it.
struct Script {
    _dir: tempfile::TempDir,
    info: ConnInfo,
    server: tokio::task::JoinHandle<()>,
}

fn script(steps: Vec<Step>) -> Script {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
    let text = format!("host={} user=bob password=secret", dir.path().display());
    let info = ConnInfo::parse(&text, &Environment::default()).unwrap();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        for step in steps {
            match step {
                Step::Hear => assert!(socket.read(&mut [0; 4096]).await.unwrap() > 0),
                Step::Say(bytes) => socket.write_all(&bytes).await.unwrap(),
                Step::Sleep(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            }
        }
    });
    Script { _dir: dir, info, server }
}

fn greeted(mut steps: Vec<Step>) -> Script {
    let mut all = vec![Step::Hear, Step::Say(welcome()), Step::Hear, Step::Say(version())];
    all.append(&mut steps);
    script(all)
}

async fn connected(script: &Script) -> ReplicationConn {
    ReplicationConn::connect(&script.info, &Deadlines::default()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let script = script(vec![Step::Hear, Step::Sleep(100_000)]);
    let error = ReplicationConn::connect(&script.info, &Deadlines::default()).await.unwrap_err();
    assert!(matches!(&error, ConnError::Timeout { after, .. } if after.as_secs() == 10), "{error}");
    script.server.abort();
}

#[tokio::test(start_paused = true)]
async fn each_wait_of_a_base_backup_has_its_own_deadline() {
    let head = [row(&["0/2000028", "1"]), complete("SELECT")].concat();
    let steps = vec![Step::Hear, Step::Sleep(3000), Step::Say(head), Step::Sleep(100_000)];
    let script = greeted(steps);
    let mut conn = connected(&script).await;
    let mut stream = conn.base_backup(&BaseBackupOptions::default()).await.unwrap();
    assert!(
        matches!(stream.next().await, Ok(Some(BackupEvent::Started { .. }))),
        "a slow checkpoint is waited for"
    );
    let error = stream.next().await.unwrap_err();
    assert!(matches!(&error, ConnError::Timeout { after, .. } if after.as_secs() == 3600), "{error}");
    script.server.abort();
}

#[tokio::test(start_paused = true)]
async fn dropping_next_loses_no_data_and_does_not_extend_the_patience() {
    let list = frame(b'D', &[&[0, 3][..], &[0xff; 12]].concat());
    let head = [row(&["0/2000028", "1"]), complete("SELECT"), list, complete("SELECT"), frame(b'H', &[0; 3])];
    let halves = frame(b'd', b"nbase.tar\0\0");
    let (one, two) = halves.split_at(7);
    let script = greeted(vec![
        Step::Hear,
        Step::Say(head.concat()),
        Step::Say(one.to_vec()),
        Step::Sleep(200),
        Step::Say(two.to_vec()),
        Step::Sleep(100_000),
    ]);
    let mut conn = connected(&script).await;
    let mut stream = conn.base_backup(&BaseBackupOptions::default()).await.unwrap();
    let begun = Instant::now();
    let mut events = Vec::new();
    let error = loop {
        match timeout(Duration::from_secs(7), stream.next()).await {
            Err(_) => {}
            Ok(Ok(event)) => events.push(event.expect("no confirmation was sent")),
            Ok(Err(error)) => break error,
        }
    };
    assert_eq!(events.last(), Some(&BackupEvent::ArchiveBegin { tablespace: None }));
    assert_eq!(events.len(), 3);
    assert!(matches!(&error, ConnError::Timeout { after, .. } if after.as_secs() == 300), "{error}");
    let seconds = begun.elapsed().as_secs();
    assert!((490..520).contains(&seconds), "200 s until the last byte and 300 s of patience, not {seconds}");
    script.server.abort();
}

#[tokio::test]
async fn a_connection_that_is_cut_is_an_error_and_not_an_end() {
    let head = [row(&["0/2000028", "1"]), complete("SELECT")].concat();
    let script = greeted(vec![Step::Hear, Step::Say(head)]);
    let mut conn = connected(&script).await;
    let mut stream = conn.base_backup(&BaseBackupOptions::default()).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, ConnError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn the_last_words_of_a_server_are_passed_on() {
    let fatal = frame(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");
    let script = greeted(vec![Step::Hear, Step::Say(fatal)]);
    let mut conn = connected(&script).await;
    let mut stream = conn.base_backup(&BaseBackupOptions::default()).await.unwrap();
    let error = stream.next().await.unwrap_err();
    assert_eq!(error.code(), Some("57P01"), "{error}");
}

#[tokio::test]
async fn an_error_leaves_the_connection_usable() {
    let no = [frame(b'E', b"SERROR\0VERROR\0C42704\0Mno such setting\0\0"), ready()].concat();
    let yes = [row(&["on"]), complete("SHOW"), ready()].concat();
    let script = greeted(vec![Step::Hear, Step::Say(no), Step::Hear, Step::Say(yes)]);
    let mut conn = connected(&script).await;
    assert_eq!(conn.show("nothing").await.unwrap_err().code(), Some("42704"));
    assert_eq!(conn.show("data_checksums").await.unwrap(), "on");
    script.server.await.unwrap();
}

#[tokio::test]
async fn a_stream_that_was_left_takes_no_other_command() {
    let head = [row(&["0/2000028", "1"]), complete("SELECT")].concat();
    let script = greeted(vec![Step::Hear, Step::Say(head), Step::Sleep(1)]);
    let mut conn = connected(&script).await;
    let mut stream = conn.base_backup(&BaseBackupOptions::default()).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    drop(stream);
    assert!(matches!(conn.show("port").await, Err(ConnError::Busy { .. })));
}

#[tokio::test]
async fn a_server_that_skips_its_own_proof_is_refused() {
    let sasl = frame(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let script = script(vec![Step::Hear, Step::Say(sasl), Step::Hear, Step::Say(welcome()), Step::Sleep(1)]);
    let error = ReplicationConn::connect(&script.info, &Deadlines::default()).await.unwrap_err();
    assert!(matches!(error, ConnError::Impostor { .. }), "{error}");
}

#[tokio::test]
async fn methods_that_pitr_does_not_speak_are_named() {
    for (body, word) in [
        (&b"\0\0\0\x07"[..], "GSSAPI"),
        (b"\0\0\0\x09", "SSPI"),
        (b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0OAUTHBEARER\0\0", "SCRAM-SHA-256-PLUS or OAUTHBEARER"),
    ] {
        let script = script(vec![Step::Hear, Step::Say(frame(b'R', body)), Step::Sleep(1)]);
        let error = Sql::connect(&script.info, &Deadlines::default()).await.unwrap_err();
        assert!(matches!(&error, ConnError::Method { method, .. } if method == word), "{error}");
    }
}

#[tokio::test]
async fn an_old_server_is_refused_by_its_version() {
    let old = [row(&["120022"]), complete("SHOW"), ready()].concat();
    let script = script(vec![Step::Hear, Step::Say(welcome()), Step::Hear, Step::Say(old)]);
    let error = ReplicationConn::connect(&script.info, &Deadlines::default()).await.unwrap_err();
    assert!(matches!(error, ConnError::Version { found: 120_022, .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_is_told_with_the_place() {
    let info = ConnInfo::parse("host=/nowhere/at/all user=bob", &Environment::default()).unwrap();
    let error = Sql::connect(&info, &Deadlines::default()).await.unwrap_err();
    assert!(matches!(error, ConnError::Unreachable { .. }));
    assert!(error.to_string().contains("/nowhere/at/all/.s.PGSQL.5432"), "{error}");
}

#[tokio::test]
async fn the_abstract_name_space_is_reached() {
    let name = format!("pitr-test-{}", std::process::id());
    let listener = UnixListener::bind(format!("\0{name}/.s.PGSQL.5432")).unwrap();
    let info = ConnInfo::parse(&format!("host=@{name} user=bob"), &Environment::default()).unwrap();
    let limit = Limit::new(Duration::from_secs(5));
    let dialled = crate::pgwire::dial::dial(&info, &info.hosts[0], None, &limit);
    let (dialled, accepted) = tokio::join!(dialled, listener.accept());
    assert!(dialled.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn data_of_any_size_passes_through_the_buffer_unharmed() {
    let list = frame(b'D', &[&[0, 3][..], &[0xff; 12]].concat());
    let mut bytes = [row(&["0/2000028", "1"]), complete("SELECT"), list, complete("SELECT")].concat();
    bytes.extend([frame(b'H', &[0; 3]), frame(b'd', b"nbase.tar\0\0")].concat());
    let mut sent = Vec::new();
    for size in [1_usize, 511, 32_768, 1_000_000, 3, 300_000] {
        let data: Vec<u8> = (0..size).map(|at| u8::try_from((at * 7 + size) % 251).unwrap()).collect();
        bytes.extend(frame(b'd', &[b"d", &data[..]].concat()));
        sent.extend(data);
    }
    let script = greeted(vec![Step::Hear, Step::Say(bytes)]);
    let mut conn = connected(&script).await;
    let mut stream = conn.base_backup(&BaseBackupOptions::default()).await.unwrap();
    let mut seen: Vec<Bytes> = Vec::new();
    while let Ok(Some(event)) = stream.next().await {
        if let BackupEvent::ArchiveData(data) = event {
            seen.push(data);
        }
    }
    assert_eq!(seen.len(), 6);
    assert!(seen.concat() == sent);
}
