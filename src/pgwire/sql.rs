//! An SQL session for control queries: settings, functions, `ALTER SYSTEM`. Rows come as text.
//!
//! The same socket, log-in and deadlines as the replication connection. Statements go through the extended protocol, so that values
//! are parameters, never parts of the text, and one call is one statement. The server stops a statement itself (`statement_timeout`)
//! before our own deadline gives the connection up. `search_path` holds `pg_catalog` alone.

use std::time::Duration;

use super::connect::login;
use super::conninfo::ConnInfo;
use super::error::ConnError;
use super::message::{self, Row, ServerNotice};
use super::socket::{Deadlines, Wire};
use super::startup::Session;

/// What the server may spend less than the deadline of an answer, so that its own message arrives in time.
const HEAD_START: Duration = Duration::from_secs(2);

/// A database without an encoding has names of any bytes, and would fail to send those that are not UTF-8.
const AS_IT_IS: &str = "SELECT set_config('client_encoding', 'SQL_ASCII', false) WHERE current_setting('server_encoding') = 'SQL_ASCII'";

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
        let mut sql = Self { wire, deadlines: *deadlines };
        sql.rows(AS_IT_IS, &[]).await?;
        Ok(sql)
    }

    /// Runs one statement; `parameters` are the values of `$1`, `$2`, ..., as text. A statement without rows returns none. Bytes that are
    /// not UTF-8 are replaced: names and places of a cluster may be in any encoding, or none, and those that come from here are shown.
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
        Ok(rows.iter().map(texts).collect())
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

fn texts(row: &Row) -> Vec<Option<String>> {
    let text = |cell: &bytes::Bytes| String::from_utf8_lossy(cell).into_owned();
    row.iter().map(|cell| cell.as_ref().map(text)).collect()
}
