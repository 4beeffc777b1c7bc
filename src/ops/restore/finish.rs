//! After promotion: the recovery settings that the restore wrote are removed (`restore --finish`).
//!
//! Left there, they do no harm to this server, but a standby or a clone made from it takes them up and does not start ("recovery
//! ended before configured recovery target was reached"), or reads from an archive that is not its own. Nothing is removed while
//! recovery is going on: a server that restarts then would run past its target.
//! Source of truth: RECOVERY.md 22; `xlogrecovery.c` removes `recovery.signal` and renames `backup_label` when recovery ends.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::durable::{self, Owner};
use crate::error::{Error, Result};
use crate::pgdata::{ControlFile, DbState, recovery};

use super::directory::{cannot, durable_error};
use super::marker;

/// What `--finish` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The file that was looked at.
    pub file: PathBuf,
    /// It held our settings, which are gone now.
    pub changed: bool,
    /// Recovery settings outside the marked block that were removed too.
    pub unmarked: Vec<String>,
    /// The marked block was not found because ALTER SYSTEM had rewritten the file: `synchronous_standby_names` may have been left
    /// empty by it.
    pub rewritten: bool,
}

/// Removes the recovery settings of the promoted server in `data_dir`.
///
/// # Errors
/// Kind `Refused` while recovery has not ended, `NotFound` if there is no cluster.
pub fn finish(data_dir: &Path) -> Result<Finished> {
    let control_path = data_dir.join("global/pg_control");
    if data_dir.join(marker::NAME).exists() {
        return Err(Error::refused(format!("{} holds an unfinished restore", data_dir.display()))
            .hint("repeat the restore"));
    }
    let control = match std::fs::read(&control_path) {
        Ok(bytes) => ControlFile::parse(&bytes).map_err(|e| Error::corrupt(e.to_string()).source(e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::not_found(format!("{} is no PostgreSQL data directory", data_dir.display()))
                .hint("name it with --target-dir"));
        }
        Err(e) => return Err(cannot("read", &control_path, e)),
    };
    refuse_in_recovery(data_dir, control.state)?;
    let file = data_dir.join("postgresql.auto.conf");
    let old = std::fs::read(&file).map_err(|e| cannot("read", &file, e))?;
    let new = recovery::finish(&old).map_err(|e| {
        Error::failed(format!("{}: {e}", file.display()))
            .source(e)
            .hint("remove the rest of the block by hand; nothing was changed")
    })?;
    let changed = new.text != old;
    if changed {
        let meta = std::fs::metadata(&file).map_err(|e| cannot("look at", &file, e))?;
        let owner = Owner { uid: meta.uid(), gid: meta.gid() }.to_give();
        let mode = meta.permissions().mode() & 0o7777;
        durable::write_replace(&file, &new.text, mode, owner).map_err(durable_error)?;
    }
    let rewritten = !new.found && !new.unmarked.is_empty();
    Ok(Finished { file, changed, unmarked: new.unmarked, rewritten })
}

fn refuse_in_recovery(data_dir: &Path, state: DbState) -> Result<()> {
    let left = ["recovery.signal", "standby.signal", "backup_label"].into_iter().find(|name| {
        // A link counts: what matters is whether PostgreSQL would find the name.
        data_dir.join(name).symlink_metadata().is_ok()
    });
    let why = match (left, state) {
        (Some(name), _) => format!("{name} is still there"),
        (
            None,
            DbState::InProduction | DbState::ShutDown | DbState::ShuttingDown | DbState::InCrashRecovery,
        ) => {
            return Ok(());
        }
        (None, other) => format!("its state is \"{other}\""),
    };
    Err(Error::refused(format!("the server in {} has not been promoted: {why}", data_dir.display()))
        .hint("start it, let it reach the target and promote it (pg_ctl promote); then repeat --finish"))
}
