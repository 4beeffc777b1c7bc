//! What a server sends: any bytes are answered, however the socket cuts them, and a base backup tells its story in order.
//!
//! The first byte chooses the version, the second the size of the pieces; the rest is the stream. Nothing but CommandComplete at its
//! place ends a backup, and nothing arrives after its end.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use pitr::pgwire::basebackup::BaseBackup;
use pitr::pgwire::message::{Message, Phase, WireError, split};
use pitr::pgwire::{BackupEvent, BaseBackupOptions};

fuzz_target!(|data: &[u8]| {
    let Some(([version, piece], stream)) = data.split_first_chunk() else { return };
    let whole = messages(stream, stream.len().max(1));
    assert_eq!(whole, messages(stream, usize::from(*piece).max(1)));

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

fn messages(stream: &[u8], piece: usize) -> (Vec<Message>, Option<WireError>) {
    let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
    for bytes in stream.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            match split(&mut buffer, Phase::Session) {
                Ok(Some(message)) => seen.push(message),
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
    }
    (seen, None)
}
