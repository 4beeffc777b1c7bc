//! The keys of an encrypted cluster, made by `pitr key init` as an operator does.
//!
//! The host file goes where the host will look for it. The identities go into a directory of their own, which stands for the operator's
//! machine: what is in it a database host does not have.

#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::cluster::as_server;
use super::site::Answer;

/// The identity file of every day.
pub fn daily(office: &Path) -> PathBuf {
    office.join("daily.key")
}

/// The identity file that is kept elsewhere.
pub fn offline(office: &Path) -> PathBuf {
    office.join("offline.key")
}

/// Makes the keys of cluster `main`; what was said of it. `more` are further flags.
pub fn init(host_file: &Path, office: &Path, more: &[&str]) -> Result<Answer> {
    let mut command = as_server(env!("CARGO_BIN_EXE_pitr"))?;
    command.current_dir(office).args(["key", "init", "--cluster", "main", "--host-file"]).arg(host_file);
    for (name, file) in [("daily", daily(office)), ("offline", offline(office))] {
        command.args(["--generate", &format!("{name}={}", file.display())]);
    }
    let answer = Answer::of(command.args(more))?;
    answer.expect(0, &[])?;
    Ok(answer)
}

/// The programs that restore without pitr are there, or a word about the one that is missing.
pub fn tools() -> bool {
    let missing = ["age", "zstd", "tar", "b3sum"].into_iter().find(|tool| {
        !Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success())
    });
    if let Some(tool) = missing {
        eprintln!("SKIPPED: {tool} is not installed; run tests/setup.sh");
    }
    missing.is_none()
}
