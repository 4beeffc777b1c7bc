//! An SQL session for control queries: settings, functions, `ALTER SYSTEM`. Rows come as text.
//!
//! The same socket, log-in and deadlines as the replication connection. Statements go through the extended protocol, so that values
//! are parameters, never parts of the text, and one call is one statement. The server stops a statement itself (`statement_timeout`)
//! before our own deadline gives the connection up. `search_path` holds `pg_catalog` alone.

use std::time::Duration;

use super::connect::login;
use super::conninfo::ConnInfo;
use super::error::ConnError;
use super::message::{self, Row, ServerNotice, WireError};
use super::socket::{Deadlines, Wire};
use super::startup::Session;

/// What the server may spend less than the deadline of an answer, so that its own message arrives in time.
const HEAD_START: Duration = Duration::from_secs(2);

/// A session in one database.
#[derive(Debug)]
pub struct Sql {
    wire: Wire,
    deadlines: Deadlines,
}

impl Sql {
    /// Connects to the database of `info`.
    ///
    /// # Errors
    /// [`ConnError`], with the server's own words if it refused.
    pub async fn connect(info: &ConnInfo, deadlines: &Deadlines) -> Result<Self, ConnError> {
        let answer = deadlines.answer;
        let statement_timeout = answer.saturating_sub(HEAD_START).max(answer / 2);
        let wire = login(info, Session::Sql { statement_timeout }, deadlines).await?;
        Ok(Self { wire, deadlines: *deadlines })
    }

    /// Runs one statement; `parameters` are the values of `$1`, `$2`, ..., as text. A statement without rows returns none.
    ///
    /// # Errors
    /// [`ConnError::Server`] if the statement failed; the session stays usable then.
    pub async fn rows(
        &mut self,
        statement: &str,
        parameters: &[&str],
    ) -> Result<Vec<Vec<Option<String>>>, ConnError> {
        message::put_statement(statement, parameters, &mut self.wire.out)?;
        self.wire.request(self.deadlines.answer).await?;
        let rows = self.wire.rows(self.deadlines.answer).await?;
        Ok(rows.iter().map(texts).collect::<Result<_, _>>()?)
    }

    /// The first column of the first row; `None` if there is no row or it is NULL.
    ///
    /// # Errors
    /// As [`Sql::rows`].
    pub async fn one(&mut self, statement: &str) -> Result<Option<String>, ConnError> {
        let rows = self.rows(statement, &[]).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// Notices that came since the last call, the first 200.
    pub fn take_notices(&mut self) -> Vec<ServerNotice> {
        self.wire.take_notices()
    }

    /// Says good-bye. Dropping the session does as well, less politely.
    pub async fn close(self) {
        self.wire.close().await;
    }

    /// Ends a statement that is under way, within a few seconds, and closes.
    pub async fn abandon(self) {
        self.wire.abandon().await;
    }
}

fn texts(row: &Row) -> Result<Vec<Option<String>>, WireError> {
    let text = |cell: &bytes::Bytes| {
        String::from_utf8(cell.to_vec()).map_err(|_| {
            let reason = "a column is not UTF-8; the database has no encoding".to_owned();
            WireError::Answer { command: "a statement", reason }
        })
    };
    row.iter().map(|cell| cell.as_ref().map(text).transpose()).collect()
}
