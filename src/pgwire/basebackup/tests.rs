//! The two dialects of `BASE_BACKUP` as sequences of messages, whole, cut short, and out of order.
//!
//! Each conversation is written once as a list; the rule that only the whole of it is a success is then tried by leaving out every
//! single message.

use super::*;
use proptest::prelude::*;

const V13: u32 = 130_023;
const V15: u32 = 150_018;

fn row(cells: &[Option<&str>]) -> Message {
    Message::DataRow(
        cells.iter().map(|cell| cell.map(|text| Bytes::copy_from_slice(text.as_bytes()))).collect(),
    )
}

fn data(bytes: &'static [u8]) -> Message {
    Message::CopyData(Bytes::from_static(bytes))
}

fn complete(tag: &str) -> Message {
    Message::CommandComplete(tag.into())
}

fn notice(severity: &str, code: &str, message: &str) -> ServerNotice {
    let (severity, code, message) = (severity.into(), code.into(), message.into());
    ServerNotice { severity, code, message, detail: None, hint: None }
}

fn head() -> Vec<Message> {
    vec![
        Message::RowDescription,
        row(&[Some("0/2000028"), Some("1")]),
        complete("SELECT"),
        Message::RowDescription,
        row(&[Some("16390"), Some("/srv/ts"), Some("8")]),
        row(&[None, None, Some("30000")]),
        complete("SELECT"),
    ]
}

fn tail() -> Vec<Message> {
    vec![
        Message::RowDescription,
        row(&[Some("0/2000100"), Some("1")]),
        complete("SELECT"),
        complete("BASE_BACKUP"),
        Message::ReadyForQuery,
    ]
}

fn conversation(version: u32) -> Vec<Message> {
    let body = if version == V13 {
        vec![
            Message::CopyOut,
            data(b"tablespace tar"),
            Message::CopyDone,
            Message::CopyOut,
            data(b"base "),
            data(b"tar"),
            Message::CopyDone,
            Message::CopyOut,
            data(b"{}"),
            Message::CopyDone,
        ]
    } else {
        vec![
            Message::CopyOut,
            data(b"n16390.tar\0/srv/ts\0"),
            data(b"dtablespace tar"),
            data(b"p\0\0\0\0\0\0\x04\0"),
            data(b"nbase.tar\0\0"),
            data(b"dbase "),
            data(b"dtar"),
            data(b"m"),
            data(b"d{}"),
            Message::CopyDone,
        ]
    };
    [head(), body, tail()].concat()
}

fn run(version: u32, messages: Vec<Message>) -> (Vec<BackupEvent>, Result<bool, BackupFailure>) {
    let mut backup = BaseBackup::new(version, &BaseBackupOptions::default());
    let mut events = Vec::new();
    for message in messages {
        let result = backup.on(message);
        events.extend(std::iter::from_fn(|| backup.next_event()));
        if let Err(failure) = result {
            return (events, Err(failure));
        }
    }
    (events, Ok(backup.is_done()))
}

fn events(version: u32) -> Vec<BackupEvent> {
    let first = TimelineId::FIRST;
    let mut events = vec![
        BackupEvent::Started { lsn: Lsn::new(0x200_0028), timeline: first },
        BackupEvent::Tablespaces(vec![
            TablespaceInfo { oid: Some(16390), location: Some(b"/srv/ts".to_vec()), size: Some(8192) },
            TablespaceInfo { oid: None, location: None, size: Some(30_720_000) },
        ]),
        BackupEvent::ArchiveBegin { tablespace: Some(16390) },
        BackupEvent::ArchiveData(Bytes::from_static(b"tablespace tar")),
        BackupEvent::ArchiveEnd,
        BackupEvent::ArchiveBegin { tablespace: None },
        BackupEvent::ArchiveData(Bytes::from_static(b"base ")),
        BackupEvent::ArchiveData(Bytes::from_static(b"tar")),
        BackupEvent::ArchiveEnd,
        BackupEvent::ManifestBegin,
        BackupEvent::ManifestData(Bytes::from_static(b"{}")),
        BackupEvent::Ended { lsn: Lsn::new(0x200_0100), timeline: first },
    ];
    if version == V15 {
        events.insert(4, BackupEvent::Progress { bytes: 1024 });
    }
    events
}

#[test]
fn a_list_of_tablespaces_is_bounded_by_its_bytes_too() {
    let mut messages = head();
    messages.truncate(4);
    let place = Bytes::from(vec![b'x'; 1 << 20]);
    messages.extend((0..64).map(|_| Message::DataRow(vec![Some(place.clone())])));
    let (_, result) = run(V15, messages);
    assert!(result.unwrap_err().to_string().contains("67108864 bytes"));
}

#[test]
fn both_dialects_tell_the_same_story() {
    for version in [V13, V15] {
        assert_eq!(run(version, conversation(version)), (events(version), Ok(true)));
    }
}

#[test]
fn a_conversation_with_anything_left_out_is_no_success() {
    for version in [V13, V15] {
        let whole = conversation(version);
        for left_out in 0..whole.len() {
            let mut messages = whole.clone();
            let gone = messages.remove(left_out);
            let harmless = match &gone {
                Message::RowDescription => true,                             // carries nothing
                Message::CopyData(_) if version == V13 => true, // bytes of a tar: the tar reader notices
                Message::CopyData(frame) => matches!(frame[0], b'd' | b'p'), // likewise
                _ => false,
            };
            let (_, result) = run(version, messages);
            assert_eq!(result == Ok(true), harmless, "{version} without {gone:?}: {result:?}");
        }
    }
}

#[test]
fn a_backup_that_stops_early_is_not_done() {
    for version in [V13, V15] {
        let whole = conversation(version);
        for len in 0..whole.len() {
            assert_eq!(run(version, whole[..len].to_vec()).1, Ok(false), "{version}: {len} messages");
        }
    }
}

#[test]
fn wrong_checksums_are_told_apart_after_all_data_was_handed_over() {
    for version in [V13, V15] {
        let warning =
            notice("WARNING", "01000", "checksum verification failed in file \"base/5/1\", block 0");
        let error = notice("ERROR", "XX001", "checksum verification failure during base backup");
        let mut messages = conversation(version);
        let ready = messages.pop().unwrap();
        messages.pop();
        messages.insert(8, Message::Notice(Box::new(warning.clone())));
        messages.extend([Message::Error(Box::new(error.clone())), ready]);
        let (mut seen, result) = run(version, messages);
        seen.retain(|event| !matches!(event, BackupEvent::Notice(_)));
        assert_eq!(seen, events(version));
        let end = (Lsn::new(0x200_0100), TimelineId::FIRST);
        let failure = ChecksumFailure { error, warnings: vec![warning], more_warnings: 0, end };
        assert_eq!(result, Err(BackupFailure::Checksums(Box::new(failure))));
    }
}

#[test]
fn the_same_code_before_the_end_is_an_ordinary_error() {
    let error = notice("ERROR", "XX001", "invalid page in block 3");
    let mut messages = conversation(V15);
    messages.truncate(10);
    messages.extend([Message::Error(Box::new(error.clone())), Message::ReadyForQuery]);
    assert_eq!(run(V15, messages).1, Err(BackupFailure::Server(Box::new(error))));
}

#[test]
fn an_error_that_ends_the_connection_is_not_lost() {
    let mut backup = BaseBackup::new(V15, &BaseBackupOptions::default());
    let fatal = notice("FATAL", "57P01", "terminating connection due to administrator command");
    backup.on(Message::Error(Box::new(fatal.clone()))).unwrap();
    assert_eq!(backup.take_failure(), Some(BackupFailure::Server(Box::new(fatal))));
}

#[test]
fn archives_out_of_turn_are_refused() {
    for (at, frame, word) in [
        (8, &b"nbase.tar\0\0"[..], "where \"16390.tar\" should come"),
        (8, b"n16390.tar.gz\0\0", "16390.tar.gz"),
        (8, b"n../x\0\0", "../x"),
        (8, b"m", "before all archives"),
        (8, b"dxx", "belongs to no archive"),
        (8, b"", "unknown kind None"),
        (8, b"q", "unknown kind Some(113)"),
        (10, b"p\0\0", "without a number"),
        (10, b"p\xff\0\0\0\0\0\0\0", "without a number"),
        (14, b"nbase.tar\0\0", "after the last one"),
    ] {
        let mut messages = conversation(V15);
        messages[at] = Message::CopyData(Bytes::copy_from_slice(frame));
        let message = run(V15, messages).1.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn the_command_is_written_in_the_grammar_of_the_server() {
    let options = BaseBackupOptions { label: "it's".into(), max_rate: Some(1000), ..Default::default() };
    assert_eq!(
        options.command(V15).unwrap(),
        "BASE_BACKUP (LABEL 'it''s', PROGRESS true, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP true, \
         VERIFY_CHECKSUMS true, MAX_RATE 1000, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
    );
    assert_eq!(
        options.command(V13).unwrap(),
        "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT TABLESPACE_MAP MAX_RATE 1000 MANIFEST 'yes' \
         MANIFEST_CHECKSUMS 'CRC32C'"
    );
    let quiet = BaseBackupOptions {
        checkpoint: Checkpoint::Spread,
        estimate_sizes: false,
        manifest: false,
        verify_checksums: false,
        label: "x".into(),
        max_rate: None,
    };
    assert_eq!(quiet.command(V13).unwrap(), "BASE_BACKUP LABEL 'x' NOWAIT TABLESPACE_MAP NOVERIFY_CHECKSUMS");
    assert_eq!(
        quiet.command(V15).unwrap(),
        "BASE_BACKUP (LABEL 'x', PROGRESS false, CHECKPOINT 'spread', WAIT false, TABLESPACE_MAP true, \
         VERIFY_CHECKSUMS false)"
    );
}

#[test]
fn options_that_no_server_takes_are_refused_before_sending() {
    let with = |label: &str, max_rate| {
        BaseBackupOptions { label: label.into(), max_rate, ..Default::default() }.command(V15)
    };
    assert_eq!(with("x", Some(0)), Err(OptionsError::MaxRate(0)));
    assert_eq!(with("x", Some(31)), Err(OptionsError::MaxRate(31)));
    assert!(with("x", Some(32)).is_ok());
    assert!(with("two\nlines", None).is_err() && with("zero\0", None).is_err());
    assert!(with(&"x".repeat(1024), None).is_ok() && with(&"x".repeat(1025), None).is_err());
}

fn any_message() -> impl Strategy<Value = Message> {
    let whole = [conversation(V13), conversation(V15)].concat();
    prop_oneof![
        proptest::sample::select(whole),
        proptest::collection::vec(any::<u8>(), 0..12).prop_map(|bytes| Message::CopyData(bytes.into())),
    ]
}

proptest! {
    #[test]
    fn no_order_of_messages_makes_it_panic(
        old: bool,
        start in 0_usize..20,
        messages in proptest::collection::vec(any_message(), 0..30),
    ) {
        let version = if old { V13 } else { V15 };
        let mut all = conversation(version);
        all.truncate(start);
        all.extend(messages);
        let _ = run(version, all);
    }
}
