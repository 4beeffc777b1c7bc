//! Configuration files: any bytes are answered, stripping nothing changes nothing, what is written is read back, and no
//! recovery setting survives a restore.
//!
//! Also the small files that have a syntax of their own: backup_label, tablespace_map, postmaster.pid, and our own marker of an unfinished
//! restore. Source of truth: `guc-file.l`, `xlogrecovery.c`, `miscinit.c`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::ops::restore::marker::Marker;
use pitr::pgdata::PidFile;
use pitr::pgdata::conf::{self, ItemKind};
use pitr::pgdata::label::{BackupLabel, TablespaceMap};
use pitr::pgdata::recovery;
use pitr::wal::PgMajor;

fuzz_target!(|data: &[u8]| {
    assert_eq!(conf::strip_settings(data, |_| false), data);
    if let Ok(finished) = recovery::finish(data) {
        for item in conf::parse(&finished.text).unwrap_or_default() {
            if let ItemKind::Setting { name, value } = item.kind {
                assert!(!recovery::is_recovery_setting(&name));
                let line =
                    format!("{name} = {}", conf::quote_value(&value).expect("values hold no NUL byte"));
                let again = conf::parse(line.as_bytes()).expect("what is quoted can be read");
                assert!(matches!(&again[..], [one] if one.kind == ItemKind::Setting { name, value }));
            }
        }
    }
    let _ = BackupLabel::parse(data);
    let said = PidFile::parse(data);
    // Handed to kill(2), where a negative number is a whole group of processes.
    assert!(said.process.is_none_or(|process| process >= 0), "{said:?}");
    let _ = Marker::parse(data);
    for major in [PgMajor::V13, PgMajor::V14] {
        if let Ok(map) = TablespaceMap::parse(data, major)
            && let Ok(bytes) = map.to_bytes(major)
        {
            assert_eq!(TablespaceMap::parse(&bytes, major), Ok(map));
        }
    }
});
