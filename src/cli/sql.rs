//! One SQL statement over a socket, for `demo`: it needs no psql on the machine.
//!
//! A runtime of its own, because the demo itself is a sequence of blocking steps.
//! Statements are the demo's own constants.

use std::path::Path;

use crate::error::{Error, Result};
use crate::pgwire::{ConnInfo, Deadlines, Environment, Sql};

/// Runs `statement` on the server whose socket for `port` is in `directory` and returns the first value of the first row, or nothing.
///
/// # Errors
/// What the server or the connection said.
pub fn one(directory: &Path, port: u16, statement: &str) -> Result<String> {
    let failed =
        |e: &dyn std::fmt::Display| Error::failed(format!("SQL failed: {statement}")).source(e.to_string());
    let text = format!("host={} port={port} user=postgres dbname=postgres", directory.display());
    let info = ConnInfo::parse(&text, &Environment::default()).map_err(|e| failed(&e))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| failed(&e))?;
    runtime.block_on(async {
        let mut session = Sql::connect(&info, &Deadlines::default()).await.map_err(|e| failed(&e))?;
        let answer = session.one(statement).await.map_err(|e| failed(&e))?;
        Ok(answer.unwrap_or_default())
    })
}
