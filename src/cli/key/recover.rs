//! `pitr key recover`: a host file for a cluster whose host is lost, from an identity and the repositories.
//!
//! ```text
//!  identity ─► wraps of every repository ─► seal key, compared with the fingerprint ─► new host file ─► wraps of its new epoch
//! ```
//! Whoever could replace a whole repository would hand his own seal key to the host, so a fingerprint must vouch for it, or the operator
//! must say that none does. No file is replaced, and every repository is read before anything is written.

use std::path::Path;

use serde_json::json;

use crate::cli::args::{Common, KeyArgs, KeyRecoverArgs};
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::output::{self, say};
use crate::clock::{Clock as _, SystemClock};
use crate::config::load::Caller;
use crate::error::{Error, Result};
use crate::ops::key::{self, Folders};
use crate::seal::{Epoch, HostFile, Identity};

use super::{Made, Stored};

/// Makes the host file.
///
/// # Errors
/// Kind `Usage` if nothing vouches for the seal key and `--unverified` is not given; kind `Key` without an identity; what
/// [`key::recover`] and [`Folders::read`] say. Nothing is written then.
pub(super) async fn run(common: &Common, args: &KeyArgs, wanted: &KeyRecoverArgs) -> Result<Ended> {
    let context = Context::load(common, Caller::Operator)?;
    let path = super::place(args, Some(&context))?;
    let path = std::path::absolute(&path)
        .map_err(|e| Error::usage(format!("cannot find {}", path.display())).source(e))?;
    let (recipients, made) = super::who(&wanted.recipients)?;
    super::all_new(made.iter().map(|(_, file, _)| file).chain([&path]))?;
    let ring = context.keys.as_deref().filter(|ring| ring.has_identity()).ok_or_else(|| {
        Error::key("no identity is given")
            .hint("--identity FILE, identity_file under [keys], or PITR_IDENTITY")
    })?;
    if ring.is_unverified() && !wanted.unverified {
        return Err(Error::usage("nothing says which seal key is this cluster's").hint(
            "--seal-fingerprint HEX, which the recovery kit prints; without it somebody's own repository would be taken for this cluster's, and --unverified does so",
        ));
    }
    let folders = Folders::read(&context.repositories()?).await?;
    let host = key::recover(&context.config.cluster, &folders, ring, recipients, SystemClock.now())?;
    let made_now = made.iter().map(|(_, _, identity)| identity);
    let at_hand: Vec<Identity> = ring.identities().iter().chain(made_now).cloned().collect();
    key::prove_recipients(&host, &at_hand)?;
    super::write_files(&made, &host, &path, context.owner().as_ref())?;
    let verified = !ring.is_unverified();
    let done = super::spread(&context, &host).await?;
    show(
        &context,
        &Shown { host: &host, path: &path, made: &made, verified, lost: folders.without_wraps(), done },
    );
    Ok(Ended::Well)
}

struct Shown<'a> {
    host: &'a HostFile,
    path: &'a Path,
    made: &'a [Made],
    verified: bool,
    /// Epochs whose wraps are gone.
    lost: Vec<Epoch>,
    done: Vec<Stored>,
}

fn show(context: &Context, shown: &Shown<'_>) {
    let Shown { host, path, made, verified, lost, done } = shown;
    let (path, fingerprint) = (path.display(), host.seal.fingerprint());
    if context.common.json {
        let files: Vec<_> =
            made.iter().map(|(name, file, _)| json!({ "name": name, "file": file })).collect();
        output::json(&json!({
            "schema": "pitr.key-recover.v1",
            "cluster": host.cluster,
            "host_file": path.to_string(),
            "epoch": host.epoch,
            "new_epoch": true,
            "seal_fingerprint": fingerprint.to_string(),
            "verified": verified,
            "identities": files,
            "epochs_without_wraps": lost,
            "repositories": super::places_json(done),
        }));
        return;
    }
    let names: Vec<&str> = host.recipients.iter().map(|r| r.name.as_str()).collect();
    let mut text = format!(
        "epoch {} begins; it and all before it open for {}\nhost file      {path} (seals, opens nothing; belongs to the server's user)\nfingerprint    {fingerprint}{}\nwraps stored   {}\n",
        host.epoch,
        names.join(", "),
        if *verified { "" } else { " UNVERIFIED: compare it with any page or file that has it" },
        super::places_text(done),
    );
    for epoch in lost {
        text.push_str(&format!(
            "lost           epoch {epoch}: no wrap of it is left, and nothing that was sealed with it can be read\n"
        ));
    }
    for (name, file, _) in *made {
        text.push_str(&format!(
            "identity       {name}: {} (opens everything: take it off this host)\n",
            file.display()
        ));
    }
    text.push_str(&format!(
        "next: in the configuration of the host that is to archive:\n[keys]\nhost_file = \"{path}\"\nseal_fingerprint = \"{fingerprint}\"\n\
         then: pitr init --apply, pitr check, pitr backup --full; and a new page: pitr key kit\n\
         Who has the old host file still can make objects that look genuine, and opens nothing.\n"
    ));
    say(&text);
}
