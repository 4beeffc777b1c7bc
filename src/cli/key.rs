//! `pitr key`: the keys of an encrypted cluster. Text, or `pitr.key-<what>.v1`.
//!
//! ```text
//!  init      on an operator's machine by preference: makes the host file, and identity files if asked to
//!  rotate, add, remove   change the host file, then every repository that is named or configured
//!  recover   makes a host file of what the repositories hold, for who lost it
//!  list, test            look            kit   prints the page that a person keeps
//! ```
//! Nothing secret is printed, but by `kit --with-identity`, whose purpose it is. Files of secrets are made with mode 0600 and never
//! replaced, the host file excepted. That one is changed by one command at a time, and only from the newest copy: what the repositories hold
//! and it does not know says that it is not.

mod kit;
mod recover;
mod test;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::args::{Common, KeyArgs, KeyCommand, KeyInitArgs};
use crate::cli::context::Context;
use crate::cli::exit::Ended;
use crate::cli::keyring;
use crate::cli::output::{self, say, table};
use crate::cli::privilege::{self, Account};
use crate::clock::{Clock as _, SystemClock};
use crate::config::load::Caller;
use crate::durable::{self, DirLock, Owner};
use crate::error::{Error, Kind, Result};
use crate::ops::key;
use crate::repo::Keyring;
use crate::repo::path::ClusterName;
use crate::seal::{HostFile, Identity, NamedRecipient, Recipient};
use crate::wal::SystemId;

/// Runs `key`.
///
/// # Errors
/// See [`key`].
pub async fn run(common: &Common, args: &KeyArgs) -> Result<Ended> {
    match &args.command {
        KeyCommand::Init(init) => self::init(common, args, init),
        KeyCommand::Rotate => rotate(common, args).await,
        KeyCommand::Add { recipient } => add(common, args, named(recipient)?).await,
        KeyCommand::Remove { name } => remove(common, args, name).await,
        KeyCommand::Recover(wanted) => recover::run(common, args, wanted).await,
        KeyCommand::List => list(common, args).await,
        KeyCommand::Test => test::run(common).await,
        KeyCommand::Kit { with_identity } => kit::run(common, args, *with_identity).await,
    }
}

/// The host file's place: as the flag says, else the configuration.
fn place(args: &KeyArgs, context: Option<&Context>) -> Result<PathBuf> {
    let configured = context.and_then(|c| c.config.keys.as_ref()).and_then(|keys| keys.host_file.clone());
    args.host_file.clone().or(configured).ok_or_else(|| {
        Error::usage("no host file is named")
            .hint("give --host-file FILE, or host_file under [keys] in the configuration")
    })
}

/// `NAME=KEY`.
fn pair(text: &str) -> Result<(String, &str)> {
    let pair = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty());
    let (name, value) = pair.ok_or_else(|| {
        // Not shown: it may be a secret key, given by mistake.
        Error::usage("a recipient is written NAME=KEY")
            .hint("such as --recipient daily=age1…, or --generate daily=/root/daily.key")
    })?;
    Ok((name.to_owned(), value))
}

fn named(text: &str) -> Result<NamedRecipient> {
    let (name, value) = pair(text)?;
    let recipient: Recipient = value.parse().map_err(|e| {
        Error::usage(format!("recipient {name} has no public key"))
            .source(e)
            .hint("age-keygen -y FILE prints it; a secret key never belongs on the command line")
    })?;
    Ok(NamedRecipient { name, recipient })
}

fn init(common: &Common, args: &KeyArgs, wanted: &KeyInitArgs) -> Result<Ended> {
    let environment = crate::cli::context::environment();
    let found = crate::config::load::load(common.config.as_deref(), &environment, Caller::Operator)?;
    let configured = found.as_ref().map(|config| config.cluster.to_string());
    let name = common.cluster.clone().or(configured).unwrap_or_else(|| "main".to_owned());
    let cluster: ClusterName = name.parse().map_err(|e| Error::usage(format!("--cluster: {e}")))?;
    let configured = found.as_ref().and_then(|c| c.keys.as_ref()).and_then(|keys| keys.host_file.clone());
    let path = args.host_file.clone().or(configured);
    let path = path.ok_or_else(|| {
        Error::usage("no host file is named").hint("give --host-file FILE, such as /etc/pitr/main.host")
    })?;
    let path = std::path::absolute(&path)
        .map_err(|e| Error::usage(format!("cannot find {}", path.display())).source(e))?;
    let (recipients, made) = who(wanted)?;
    all_new(made.iter().map(|(_, file, _)| file).chain([&path]))?;
    let host = key::init(&cluster, recipients, SystemClock.now())?;
    let own: Vec<Identity> = made.iter().map(|(_, _, identity)| identity.clone()).collect();
    key::prove(&host, &own)?;
    if let Some(identities) = common.identity.as_deref().map(keyring::identity_file).transpose()? {
        key::prove(&host, &identities)?;
    }
    let owner =
        found.as_ref().and_then(|config| config.postgres.data_dir.as_deref()).and_then(Account::owner_of);
    let owner = owner.or_else(|| Account::named("postgres"));
    write_files(&made, &host, &path, owner.as_ref())?;
    show_init(common, &host, &path, &made);
    Ok(Ended::Well)
}

/// An identity that is made: its name, the file that it goes into, itself.
type Made = (String, PathBuf, Identity);

/// The recipients that flags name, and the identities that are to be made for some of them.
fn who(wanted: &KeyInitArgs) -> Result<(Vec<NamedRecipient>, Vec<Made>)> {
    let mut recipients = wanted.recipient.iter().map(|r| named(r)).collect::<Result<Vec<_>>>()?;
    let mut made = Vec::new();
    for text in &wanted.generate {
        let (name, file) = pair(text)?;
        let identity = Identity::generate();
        recipients.push(NamedRecipient { name: name.clone(), recipient: identity.recipient() });
        made.push((name, PathBuf::from(file), identity));
    }
    Ok((recipients, made))
}

/// Writes the identities that were made, then the host file: one that seals for a lost identity would be worse than none. If one of them
/// cannot be written and no host file is there, those before it go again: they open nothing, and would be in the way of a repetition.
fn write_files(made: &[Made], host: &HostFile, path: &Path, owner: Option<&Account>) -> Result<()> {
    let identities = made.iter().map(|(name, file, identity)| {
        let what = format!("pitr: recipient {name} of cluster {}", host.cluster);
        write(file, identity.file(&what).as_bytes(), None)
    });
    let host_file = std::iter::once_with(|| write(path, host.render().as_bytes(), owner));
    for (before, written) in identities.chain(host_file).enumerate() {
        let Err(error) = written else { continue };
        // A failed sync leaves it there, perhaps.
        let sealing = !matches!(path.try_exists(), Ok(false));
        for (_, file, _) in made.iter().take(before).filter(|_| !sealing) {
            if durable::remove_durably(file).is_err() {
                return Err(error.hint(format!("delete {} too: it opens nothing", file.display())));
            }
        }
        return Err(error);
    }
    Ok(())
}

/// Each key has a file of its own, which is not there yet. Looked at before anything is written, so that not half of them are.
fn all_new<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    let mut named = BTreeSet::new();
    for file in files {
        if file.exists() {
            return Err(is_there(file));
        }
        let absolute = std::path::absolute(file);
        let absolute =
            absolute.map_err(|e| Error::usage(format!("cannot find {}", file.display())).source(e))?;
        if !named.insert(absolute) {
            return Err(Error::usage(format!("{} is named for two keys", file.display()))
                .hint("the second would replace the first: each key has a file of its own"));
        }
    }
    Ok(())
}

fn is_there(file: &Path) -> Error {
    Error::refused(format!("{} is there already", file.display()))
        .hint("keys are never replaced: name another file")
}

/// Writes a new file of secrets; as root, for `owner`.
fn write(path: &Path, bytes: &[u8], owner: Option<&Account>) -> Result<()> {
    let cannot = |e: &dyn std::fmt::Display| {
        Error::failed(format!("cannot write {}", path.display()))
            .source(e.to_string())
            .hint("run the command as root, or name a place that you may write")
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| cannot(&e))?;
    }
    let owner = owner.filter(|_| privilege::is_root()).map(|a| Owner { uid: a.uid, gid: a.gid });
    let new = durable::write_new(path, bytes, 0o600, owner).map_err(|e| cannot(&e))?;
    // By another name of the same file, or by somebody else a moment ago.
    if new { Ok(()) } else { Err(is_there(path)) }
}

fn show_init(common: &Common, host: &HostFile, path: &Path, made: &[Made]) {
    let fingerprint = host.seal.fingerprint();
    if common.json {
        let files: Vec<_> =
            made.iter().map(|(name, file, _)| json!({ "name": name, "file": file })).collect();
        output::json(&json!({
            "schema": "pitr.key-init.v1",
            "cluster": host.cluster,
            "host_file": path,
            "epoch": host.epoch,
            "seal_fingerprint": fingerprint.to_string(),
            "identities": files,
        }));
        return;
    }
    let mut text = format!(
        "host file      {} (seals, opens nothing; belongs to the server's user)\nfingerprint    {fingerprint}\n",
        path.display()
    );
    for (name, file, _) in made {
        text.push_str(&format!(
            "identity       {name}: {} (opens everything: take it off this host)\n",
            file.display()
        ));
    }
    text.push_str(&format!(
        "next: pitr init --repository URL --host-file {}, or in a configuration that is there:\n[keys]\nhost_file = \"{}\"\nseal_fingerprint = \"{fingerprint}\"\nthen: pitr key kit --with-identity, printed and kept where this host is not\n",
        path.display(),
        path.display()
    ));
    say(&text);
}

/// The lock is on the directory: the file itself is replaced.
fn locked(path: &Path) -> Result<DirLock> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let taken =
        DirLock::take(dir).map_err(|e| Error::failed(format!("cannot lock {}", dir.display())).source(e))?;
    taken.ok_or_else(|| {
        Error::busy(format!("another command is changing keys in {}", dir.display()))
            .hint("wait for it, then repeat the command")
    })
}

/// What a command that changes the host file works on.
struct Held {
    context: Context,
    path: PathBuf,
    host: HostFile,
    owner: Option<Owner>,
}

impl Held {
    /// What a command changes, which nobody else changes meanwhile. Repositories are looked at before anything is written.
    async fn to_change(common: &Common, args: &KeyArgs) -> Result<(Self, DirLock)> {
        let context = Context::load(common, Caller::Operator)?;
        let path = place(args, Some(&context))?;
        let lock = locked(&path)?;
        let held = Self::read(common, args)?;
        held.is_newest().await?;
        Ok((held, lock))
    }

    /// An epoch that is begun from an old copy of the host file would be the second of its number: its wraps find no place, and the host
    /// that takes it up can store nothing.
    async fn is_newest(&self) -> Result<()> {
        for repository in self.context.repositories()? {
            for place in key::compare(&repository, &self.host).await? {
                let Some(strange) = place.strange.first() else { continue };
                return Err(Error::refused(format!(
                    "{} does not know {strange}, which is in repository {}, system {}: nothing was changed",
                    self.path.display(),
                    place.repository,
                    place.system
                ))
                .hint("it is an old copy of the host file: use the newest one, as `pitr key list` compares it; if no copy knows that wrap, somebody planted it"));
            }
        }
        Ok(())
    }

    fn read(common: &Common, args: &KeyArgs) -> Result<Self> {
        let context = Context::load(common, Caller::Operator)?;
        let path = place(args, Some(&context))?;
        let host = keyring::host_file(&path, &context.config)?;
        // It stays the server's user's.
        let owner = Owner::of(&path).ok().filter(|_| privilege::is_root());
        Ok(Self { context, path, host, owner })
    }

    fn identities(&self) -> Vec<Identity> {
        self.context.keys.as_deref().map(Keyring::identities).unwrap_or_default().to_vec()
    }

    /// Writes the host file, then what the repositories lack of it.
    async fn store(&self) -> Result<Vec<Stored>> {
        durable::write_replace(&self.path, self.host.render().as_bytes(), 0o600, self.owner).map_err(
            |e| {
                Error::failed(format!("cannot write {}", self.path.display()))
                    .source(e)
                    .hint("nothing was changed; run the command as root or as the file's owner")
            },
        )?;
        spread(&self.context, &self.host).await
    }

    /// `begun`: the host file's epoch is one that this command began.
    fn show(&self, schema: &str, done: &[Stored], begun: bool, said: &str) {
        if self.context.common.json {
            output::json(&json!({
                "schema": schema,
                "epoch": self.host.epoch,
                "new_epoch": begun,
                "recipients": recipients_json(&self.host),
                "repositories": places_json(done),
            }));
            return;
        }
        let recipients =
            self.host.recipients.iter().map(|r| format!("readable for   {}: {}\n", r.name, r.recipient));
        say(&format!(
            "{said}\nhost file      {}\nwraps stored   {}\n{}",
            self.path.display(),
            places_text(done),
            recipients.collect::<String>()
        ));
    }
}

/// A folder that has the wraps now: its repository and system.
type Stored = (String, SystemId);

/// Puts what the repositories lack of a host file that is written, as the owner of the files there.
async fn spread(context: &Context, host: &HostFile) -> Result<Vec<Stored>> {
    context.act_as_owner()?;
    key::spread(&context.repositories()?, host).await.map_err(|e| match e.kind() {
        Kind::Refused => e.hint(
            "somebody changed another copy of the host file at this moment, or planted a wrap: `pitr key list` compares; use one copy everywhere",
        ),
        _ => e.hint("the host file is written and good: `pitr init` puts the wraps where they are missing, and so does the next push"),
    })
}

fn recipients_json(host: &HostFile) -> Vec<serde_json::Value> {
    host.recipients.iter().map(|r| json!({ "name": r.name, "recipient": r.recipient.to_string() })).collect()
}

fn places_json(done: &[Stored]) -> Vec<serde_json::Value> {
    done.iter().map(|(name, system)| json!({ "repository": name, "system": system.to_string() })).collect()
}

fn places_text(done: &[Stored]) -> String {
    let names: Vec<String> = done.iter().map(|(name, system)| format!("{name} (system {system})")).collect();
    if names.is_empty() { "no encrypted folder yet".to_owned() } else { names.join(", ") }
}

async fn rotate(common: &Common, args: &KeyArgs) -> Result<Ended> {
    let (mut held, _lock) = Held::to_change(common, args).await?;
    let epoch = key::rotate(&mut held.host, SystemClock.now())?;
    key::prove_recipients(&held.host, &held.identities())?;
    let done = held.store().await?;
    let said =
        format!("epoch {epoch} begins; nothing is rewritten. A running `pitr agent` takes it up by itself");
    held.show("pitr.key-rotate.v1", &done, true, &said);
    Ok(Ended::Well)
}

async fn remove(common: &Common, args: &KeyArgs, name: &str) -> Result<Ended> {
    let (mut held, _lock) = Held::to_change(common, args).await?;
    let identities = held.identities();
    let epoch = key::remove(&mut held.host, name, &identities, SystemClock.now())?;
    let done = held.store().await?;
    let said = format!(
        "epoch {epoch} begins, which {name} cannot open; what was stored before can be read with that key still.\n\
         A running `pitr agent` takes the epoch up by itself. A host that has a copy of the host file needs this newer one:\n\
         what it stores until then, {name} can open"
    );
    held.show("pitr.key-change.v1", &done, true, &said);
    Ok(Ended::Well)
}

async fn add(common: &Common, args: &KeyArgs, new: NamedRecipient) -> Result<Ended> {
    let (mut held, _lock) = Held::to_change(common, args).await?;
    let said = format!("{} can read everything that is stored", new.name);
    let identities = held.identities();
    key::add(&mut held.host, new, &identities)?;
    let done = held.store().await?;
    held.show("pitr.key-change.v1", &done, false, &said);
    Ok(Ended::Well)
}

async fn list(common: &Common, args: &KeyArgs) -> Result<Ended> {
    let held = Held::read(common, args)?;
    held.context.act_as_owner()?;
    let (host, now) = (&held.host, SystemClock.now());
    let mut places = Vec::new();
    for repository in held.context.repositories()? {
        places.extend(key::compare(&repository, host).await?);
    }
    let days = |made: jiff::Timestamp| now.duration_since(made).as_hours() / 24;
    if common.json {
        let epochs: Vec<_> = host
            .epochs
            .iter()
            .map(|e| json!({ "epoch": e.epoch, "created": e.created, "age_days": days(e.created), "current": e.epoch == host.epoch, "wraps": e.wraps.len() }))
            .collect();
        let places: Vec<_> = places
            .iter()
            .map(|p| json!({ "repository": p.repository, "system": p.system.to_string(), "missing": p.missing, "strange": p.strange }))
            .collect();
        output::json(&json!({
            "schema": "pitr.key-list.v1",
            "cluster": host.cluster,
            "seal_fingerprint": host.seal.fingerprint().to_string(),
            "epochs": epochs,
            "recipients": recipients_json(host),
            "repositories": places,
        }));
        return Ok(Ended::Well);
    }
    let mut text = format!("cluster {}, seal fingerprint {}\n\n", host.cluster, host.seal.fingerprint());
    let mut rows = vec![["EPOCH", "CREATED", "DAYS", "WRAPS"].map(str::to_owned).to_vec()];
    rows.extend(host.epochs.iter().map(|e| {
        vec![
            e.epoch.to_string(),
            e.created.to_string(),
            days(e.created).to_string(),
            e.wraps.len().to_string(),
        ]
    }));
    text.push_str(&format!("{}\n", table(&rows)));
    let mut rows = vec![["RECIPIENT", "PUBLIC KEY"].map(str::to_owned).to_vec()];
    rows.extend(host.recipients.iter().map(|r| vec![r.name.clone(), r.recipient.to_string()]));
    text.push_str(&format!("{}\n", table(&rows)));
    for place in &places {
        let state = match (place.missing.len(), place.strange.len()) {
            (0, 0) => "all wraps are there".to_owned(),
            (missing, strange) => {
                format!("{missing} wraps are missing, {strange} are strange: see `pitr check`")
            }
        };
        text.push_str(&format!("repository {}, system {}: {state}\n", place.repository, place.system));
    }
    say(&text);
    Ok(Ended::Well)
}
