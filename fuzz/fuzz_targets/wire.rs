//! What a server sends: any bytes are taken, however the socket cuts them, and a base backup tells its story in order.
//!
//! The first byte chooses the version, the second the size of the pieces; the rest is the stream. Nothing but CommandComplete at its
//! place ends a backup, and nothing arrives after its end. Every row is also read as the answer to each small command. With the second bit
//! of the first byte, the stream is what a server says from the log-in on, and then closes: each call ends, and no password is sent in clear.
//! With the fourth it is text: an answer a line, made into rows of cells as those of a server that says what it is.
#![no_main]

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as Listener};

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use pitr::ops::init::facts::ServerFacts;
use pitr::pgwire::basebackup::BaseBackup;
use pitr::pgwire::message::{Message, Phase, Row, WireError, split};
use pitr::pgwire::{
    BackupEvent, BaseBackupOptions, ConnInfo, Deadlines, Environment, ReplicationConn, Sql, replication,
};
use pitr::wal::TimelineId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};

fuzz_target!(|data: &[u8]| {
    let Some(([version, piece], stream)) = data.split_first_chunk() else { return };
    if version & 8 == 8 {
        return SERVER.with(|server| server.tell(stream));
    }
    if version & 2 == 2 {
        return SERVER.with(|server| server.hear(stream, version & 4 == 4));
    }
    for phase in [Phase::Startup, Phase::Session] {
        let whole = messages(stream, stream.len().max(1), phase);
        assert_eq!(whole, messages(stream, usize::from(*piece).max(1), phase));
    }
    let whole = messages(stream, stream.len().max(1), Phase::Session);
    for message in &whole.0 {
        if let Message::DataRow(row) = message {
            answers(row);
        }
    }

    let version = if version & 1 == 0 { 130_000 } else { 150_000 };
    let mut backup = BaseBackup::new(version, &BaseBackupOptions::default());
    let (mut open, mut ended) = (false, false);
    for message in whole.0 {
        let result = backup.on(message);
        while let Some(event) = backup.next_event() {
            match event {
                BackupEvent::ArchiveBegin { .. } => assert!(!std::mem::replace(&mut open, true) && !ended),
                BackupEvent::ArchiveData(data) => assert!(open && !data.is_empty()),
                BackupEvent::ArchiveEnd => assert!(std::mem::replace(&mut open, false)),
                BackupEvent::ManifestData(data) => assert!(!open && !ended && !data.is_empty()),
                BackupEvent::Ended { .. } => assert!(!open && !std::mem::replace(&mut ended, true)),
                _ => {}
            }
        }
        assert!(ended || !backup.is_done());
        if result.is_err() || backup.is_done() {
            return;
        }
    }
});

/// A row as the answer to each of the commands that are answered by one.
fn answers(row: &Row) {
    let _ = replication::identity(row);
    if let Ok(text) = replication::setting(row) {
        let _ = replication::parse_size(&text);
    }
    let timeline = TimelineId::new(2).expect("not 0");
    if let Ok(history) = replication::history(row, timeline) {
        assert_eq!(history.name, "00000002.history");
    }
}

thread_local! {
    static SERVER: Server = Server::start();
}

/// A server at a socket without a file, which says what it is told to and closes.
struct Server {
    runtime: Runtime,
    listener: UnixListener,
    info: ConnInfo,
}

impl Server {
    fn start() -> Self {
        let name = format!("pitr-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(format!("{name}/.s.PGSQL.5432")).expect("a name");
        let listener = Listener::bind_addr(&address).expect("nobody has it");
        listener.set_nonblocking(true).expect("a socket");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(async { UnixListener::from_std(listener) }).expect("a socket");
        let text = format!("host=@{name} user=bob password=secret require_auth=scram-sha-256,none");
        let info = ConnInfo::parse(&text, &Environment::default()).expect("it is one");
        Self { runtime, listener, info }
    }

    fn hear(&self, stream: &[u8], sql: bool) {
        self.runtime.block_on(async {
            let ((), heard) = tokio::join!(self.client(sql), self.serve(stream));
            assert!(!heard.windows(6).any(|part| part == b"secret"), "the password was sent in clear");
        });
    }

    /// Says all of it at once, and closes; what it was told.
    async fn serve(&self, stream: &[u8]) -> Vec<u8> {
        let (mut socket, _) = self.listener.accept().await.expect("the client comes");
        let _ = socket.write_all(stream).await;
        let _ = socket.shutdown().await;
        // Until the client closes: it is never told of a broken pipe instead of what was said.
        let mut heard = Vec::new();
        let _ = socket.read_to_end(&mut heard).await;
        heard
    }

    /// A server that lets everybody in and answers each statement with a line: rows end with a semicolon, cells with a comma.
    fn tell(&self, lines: &[u8]) {
        let mut stream = said(b'R', &[0; 4]);
        stream.extend(said(b'S', b"server_version\x0015.18\0"));
        stream.extend(said(b'Z', b"I"));
        // The first is to the client's own question about the encoding.
        for line in std::iter::once(&b""[..]).chain(lines.split(|&byte| byte == b'\n')) {
            stream.extend([said(b'1', b""), said(b'2', b"")].concat());
            for row in line.split(|&byte| byte == b';').filter(|row| !row.is_empty()) {
                let cells: Vec<&[u8]> = row.split(|&byte| byte == b',').take(64).collect();
                let mut body = (cells.len() as u16).to_be_bytes().to_vec();
                for cell in cells {
                    let null = cell == b"-";
                    body.extend(if null { -1 } else { cell.len() as i32 }.to_be_bytes());
                    body.extend_from_slice(if null { b"" } else { cell });
                }
                stream.extend(said(b'D', &body));
            }
            stream.extend([said(b'C', b"SELECT 1\0"), said(b'Z', b"I")].concat());
        }
        self.runtime.block_on(async {
            let ask = async {
                let mut sql = Sql::connect(&self.info, &Deadlines::default()).await.expect("it lets us in");
                if let Ok(facts) = ServerFacts::read(&mut sql).await {
                    assert!((13..=18).contains(&facts.major.number()));
                }
                sql.close().await;
            };
            tokio::join!(ask, self.serve(&stream));
        });
    }

    async fn client(&self, sql: bool) {
        let deadlines = Deadlines::default();
        if sql {
            let Ok(mut sql) = Sql::connect(&self.info, &deadlines).await else { return };
            let _ = (sql.one("select 1").await, sql.take_notices());
            return sql.close().await;
        }
        let Ok(mut server) = ReplicationConn::connect(&self.info, &deadlines).await else { return };
        assert!(server.server_version_num() >= replication::OLDEST_VERSION);
        let _ = (server.identify_system().await, server.segment_size().await);
        let _ = server.timeline_history(TimelineId::new(2).expect("not 0")).await;
        if let Ok(mut backup) = server.base_backup(&BaseBackupOptions::default()).await {
            while let Ok(Some(_)) = backup.next().await {}
        }
        server.close().await;
    }
}

/// A message of a server.
fn said(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn messages(stream: &[u8], piece: usize, phase: Phase) -> (Vec<Message>, Option<WireError>) {
    let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
    for bytes in stream.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            match split(&mut buffer, phase) {
                Ok(Some(message)) => seen.push(message),
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
    }
    (seen, None)
}
