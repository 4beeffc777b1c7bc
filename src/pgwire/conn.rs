//! A physical replication connection: small commands, and a base backup as a stream of events.
//!
//! Invariants: [`BaseBackupStream::next`] returns `None` only after the server confirmed the backup with CommandComplete; it may be
//! dropped at any time without losing data; dropping the stream before its end leaves a connection that refuses further commands,
//! and closing it is how the server is told to stop. Source of truth: `walsender.c`, `basebackup.c`.

use super::basebackup::{BackupEvent, BaseBackup, BaseBackupOptions};
use super::connect::login;
use super::conninfo::{ConnInfo, Host};
use super::error::ConnError;
use super::message::{self, Row, ServerNotice, WireError};
use super::replication::{self, HistoryFile, Identity, OLDEST_VERSION};
use super::socket::{Deadlines, Wire};
use super::startup::Session;
use crate::wal::{SegmentSize, TimelineId};

/// SQLSTATE `undefined_file`: how the server says that it has no such history file.
const UNDEFINED_FILE: &str = "58P01";

/// A connection to a walsender.
#[derive(Debug)]
pub struct ReplicationConn {
    wire: Wire,
    deadlines: Deadlines,
    version_num: u32,
}

impl ReplicationConn {
    /// Connects with `replication=true` and asks for the version.
    ///
    /// # Errors
    /// [`ConnError`], with the server's own words if it refused.
    pub async fn connect(info: &ConnInfo, deadlines: &Deadlines) -> Result<Self, ConnError> {
        let wire = login(info, Session::Replication, deadlines).await?;
        let mut conn = Self { wire, deadlines: *deadlines, version_num: 0 };
        // ParameterStatus tells a version too, but with whatever a packager appended to it.
        let text = conn.show("server_version_num").await?;
        conn.version_num = text.parse().map_err(|_| answer("SHOW server_version_num", &text))?;
        if conn.version_num < OLDEST_VERSION {
            return Err(ConnError::Version { at: conn.wire.at().to_owned(), found: conn.version_num });
        }
        Ok(conn)
    }

    /// The server's `server_version_num`, such as 150018.
    pub fn server_version_num(&self) -> u32 {
        self.version_num
    }

    /// The server that was reached, of all that were named.
    pub fn host(&self) -> &Host {
        self.wire.host()
    }

    /// Notices that came with small commands since the last call, the first 200.
    pub fn take_notices(&mut self) -> Vec<ServerNotice> {
        self.wire.take_notices()
    }

    /// Which cluster this is, and where it stands.
    ///
    /// # Errors
    /// [`ConnError`]
    pub async fn identify_system(&mut self) -> Result<Identity, ConnError> {
        let row = self.one_row("IDENTIFY_SYSTEM", "IDENTIFY_SYSTEM").await?;
        Ok(replication::identity(&row)?)
    }

    /// A setting, as people read it: `16MB`.
    ///
    /// # Errors
    /// [`ConnError::Server`] with code 42704 if there is no such setting.
    pub async fn show(&mut self, name: &str) -> Result<String, ConnError> {
        let text = replication::show(name)?;
        let row = self.one_row(&text, "SHOW").await?;
        Ok(replication::setting(&row)?)
    }

    /// The size of the cluster's WAL segments.
    ///
    /// # Errors
    /// [`ConnError`]
    pub async fn segment_size(&mut self) -> Result<SegmentSize, ConnError> {
        let text = self.show("wal_segment_size").await?;
        let size = replication::parse_size(&text).and_then(|bytes| SegmentSize::new(bytes).ok());
        size.ok_or_else(|| answer("SHOW wal_segment_size", &text).into())
    }

    /// The history file of a timeline, or `None` if the server says that it has none (timeline 1 never has one).
    ///
    /// # Errors
    /// [`ConnError`]
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Option<HistoryFile>, ConnError> {
        match self.one_row(&replication::timeline_history(timeline), "TIMELINE_HISTORY").await {
            Ok(row) => Ok(Some(replication::history(&row, timeline)?)),
            Err(error) if error.code() == Some(UNDEFINED_FILE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends `BASE_BACKUP` and returns; the server begins with a checkpoint.
    ///
    /// # Errors
    /// [`ConnError::Options`] before anything is sent; [`ConnError`] if it could not be sent.
    pub async fn base_backup(
        &mut self,
        options: &BaseBackupOptions,
    ) -> Result<BaseBackupStream<'_>, ConnError> {
        let command = options.command(self.version_num)?;
        message::put_query(&command, &mut self.wire.out)?;
        self.wire.request(self.deadlines.answer).await?;
        let backup = BaseBackup::new(self.version_num, options);
        Ok(BaseBackupStream { wire: &mut self.wire, deadlines: self.deadlines, backup })
    }

    /// Says good-bye. Dropping the connection does as well, less politely.
    pub async fn close(self) {
        self.wire.close().await;
    }

    /// Ends what is under way on the server, within a few seconds, and closes. Without it, a walsender that waits for a checkpoint would
    /// go on waiting.
    pub async fn abandon(self) {
        self.wire.abandon().await;
    }

    async fn one_row(&mut self, command: &str, name: &'static str) -> Result<Row, ConnError> {
        message::put_query(command, &mut self.wire.out)?;
        self.wire.request(self.deadlines.answer).await?;
        let mut rows = self.wire.rows(self.deadlines.answer).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (_, others) => {
                let reason = format!("{others} rows came instead of one");
                Err(WireError::Answer { command: name, reason }.into())
            }
        }
    }
}

fn answer(command: &'static str, text: &str) -> WireError {
    let shown: String = text.chars().take(40).collect();
    WireError::Answer { command, reason: format!("{shown:?} is not a number that can be used") }
}

/// A base backup on its way.
#[derive(Debug)]
pub struct BaseBackupStream<'a> {
    wire: &'a mut Wire,
    deadlines: Deadlines,
    backup: BaseBackup,
}

impl BaseBackupStream<'_> {
    /// The next event; `None` after the server has confirmed the backup, and only then. Safe to drop at any time.
    ///
    /// # Errors
    /// [`ConnError::Checksums`] after all data: the backup is complete, but a copy of damaged pages. Anything else: there is no
    /// backup. The stream is over after an error; after one of the server's own the connection takes commands again.
    pub async fn next(&mut self) -> Result<Option<BackupEvent>, ConnError> {
        loop {
            if let Some(event) = self.backup.next_event() {
                return Ok(Some(event));
            }
            if self.backup.is_done() {
                return Ok(None);
            }
            let (patience, what) = if self.backup.is_preparing() {
                (self.deadlines.prepare, "begin the base backup")
            } else {
                (self.deadlines.idle, "send more of the base backup")
            };
            match self.wire.receive(patience, what).await {
                Ok(message) => self.backup.on(message)?,
                // A FATAL error ends the connection without ReadyForQuery.
                Err(error) => return Err(self.backup.take_failure().map_or(error, ConnError::from)),
            }
        }
    }
}
