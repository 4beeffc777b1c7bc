//! `pin`, `unpin`, `accept`, `expire --backup` and the keys, in process on a store in memory.
//!
//! What an operator was told stands in the repository: a pin that was made, one that was released, a gap that is known before the damaged
//! segment is there, a tombstone on the chosen backup and on no other, wraps of every epoch in the host file.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use pitr::clock::SystemClock;
use pitr::error::{Error, Kind};
use pitr::ops::archive::accept;
use pitr::ops::expire::{OneRequest, one};
use pitr::ops::{init, key, pin};
use pitr::repo::path::BackupId;
use pitr::repo::{Keyring, Repository};
use pitr::seal::{HostFile, Identity, NamedRecipient};
use pitr::store::Store;

use super::archive::{COMPRESSION, Files, auditor};
use super::support::audit::{Auditor, Objects, objects, objects_in, store_of};
use super::support::cluster::Install;
use super::support::site::{Site, small_site};
use super::{Command, Said, repository, survive, wait};

/// A server with two backups: their names, the older first, and the repository that holds them.
fn two_backups(install: &Install) -> Result<(Site, [BackupId; 2], Objects)> {
    let site = small_site(install)?;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(site.backup()?["id"].as_str().context("an id")?.parse::<BackupId>()?);
    }
    let stored = objects_in(&site.repository)?;
    let ids = ids.try_into().map_err(|_| anyhow::anyhow!("two backups"))?;
    Ok((site, ids, stored))
}

/// The operators' pins of a backup, and how many of them are released.
fn pins_of(objects: &Objects, id: &BackupId) -> (usize, usize) {
    let pins = objects.iter().filter(|(key, bytes)| {
        let text = String::from_utf8_lossy(bytes);
        key.contains("/pins/operator-") && key.ends_with(".json") && text.contains(id.as_str())
    });
    let pins: Vec<_> = pins.filter_map(|(key, _)| key.strip_suffix(".json")).collect();
    let released = pins.iter().filter(|pin| objects.contains_key(&format!("{pin}.released"))).count();
    (pins.len(), released)
}

struct Pin {
    id: BackupId,
    stored: Objects,
}

impl Command for Pin {
    fn name(&self) -> String {
        "pin".into()
    }

    fn least_calls(&self) -> usize {
        4
    }

    fn world(&mut self) -> Result<Store> {
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        wait(true, pin::pin(&[repository], &self.id, "kept", true, Timestamp::now())).map(|_| Said::Done)
    }

    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()> {
        let (pins, released) = pins_of(after, &self.id);
        ensure!(said.is_err() || pins > 0, "a yes, and there is no pin");
        ensure!(released == 0, "a pin was released by making one");
        Ok(())
    }

    /// "There is no such backup": of a store that says so, everybody believes it.
    fn believes_a_lie(&self) -> bool {
        true
    }
}

struct Unpin {
    id: BackupId,
    stored: Objects,
    /// The last attempt in this world took effect, or may have.
    tried: Cell<bool>,
}

impl Command for Unpin {
    fn name(&self) -> String {
        "unpin".into()
    }

    fn least_calls(&self) -> usize {
        4
    }

    fn world(&mut self) -> Result<Store> {
        self.tried.set(false);
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        match wait(true, pin::unpin(&[repository], &self.id)) {
            // What was released cannot be released again: the answer is true, and what was asked for is done.
            Err(error) if error.kind() == Kind::NotFound && self.tried.get() => Ok(Said::Done),
            done => {
                self.tried.set(true);
                done.map(|_| Said::Done)
            }
        }
    }

    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()> {
        let (pins, released) = pins_of(after, &self.id);
        ensure!(pins == 2, "{pins} pins are left");
        ensure!(said.is_err() || released == pins, "a yes, and {released} of {pins} pins are released");
        Ok(())
    }

    fn believes_a_lie(&self) -> bool {
        true
    }
}

#[test]
fn whatever_call_of_pin_or_unpin_fails_a_yes_is_true() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, [id, _], stored) = two_backups(&install)?;
    let mut auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
    survive(&mut Pin { id: id.clone(), stored: stored.clone() }, &mut auditor)?;
    let pinned = wait(true, async {
        let store = store_of(&stored).await?;
        let repositories = [repository(store.clone())?];
        for reason in ["one", "another"] {
            pin::pin(&repositories, &id, reason, false, Timestamp::now()).await?;
        }
        objects(&store).await
    })?;
    survive(&mut Unpin { id, stored: pinned, tried: Cell::new(false) }, &mut auditor)
}

/// `expire --backup` of the older of two backups.
struct Expire {
    ids: [BackupId; 2],
    stored: Objects,
}

impl Command for Expire {
    fn name(&self) -> String {
        "expire --backup".into()
    }

    fn least_calls(&self) -> usize {
        8
    }

    fn world(&mut self) -> Result<Store> {
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let [id, _] = self.ids.clone();
        let request =
            OneRequest { id, policy: None, below_promise: false, dry_run: false, now: Timestamp::now() };
        wait(true, one(&repository, &request)).map(|_| Said::Done)
    }

    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()> {
        let [chosen, other] = self.ids.each_ref().map(|id| {
            let end = format!("/backups/{id}/expired.json");
            after.keys().any(|key| key.ends_with(&end))
        });
        ensure!(said.is_err() || chosen, "a yes, and it is not marked");
        ensure!(!other, "another backup than the chosen one is marked");
        Ok(())
    }

    fn believes_a_lie(&self) -> bool {
        true
    }
}

#[test]
fn whatever_call_of_expire_with_a_chosen_backup_fails_that_one_alone_is_marked() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, ids, stored) = two_backups(&install)?;
    let mut auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
    survive(&mut Expire { ids, stored }, &mut auditor)
}

/// `accept` of a segment with a hole in it.
struct Accept<'a> {
    files: &'a Files,
    segment: String,
    stored: Objects,
}

impl Command for Accept<'_> {
    fn name(&self) -> String {
        format!("accept {}", self.segment)
    }

    fn least_calls(&self) -> usize {
        4
    }

    fn world(&mut self) -> Result<Store> {
        wait(true, store_of(&self.stored))
    }

    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let path = self.files.path(&self.segment);
        wait(true, accept(&[repository], &path, Some(&self.files.data), COMPRESSION)).map(|_| Said::Done)
    }

    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()> {
        let gap = after.keys().any(|key| key.ends_with(&format!("/{}.gap.json", self.segment)));
        let there = Auditor::comes_back(after, &self.segment, &self.files.bytes(&self.segment)?);
        ensure!(said.is_err() || there, "a yes, and the segment does not come back");
        ensure!(!there || gap, "a damaged segment, and nothing says that there is a gap");
        Ok(())
    }
}

#[test]
fn whatever_call_of_accept_fails_the_gap_is_known_before_the_segment_is_there() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let files = Files::new(&install)?;
    let [first, second, ..] = files.segments.as_slice() else { unreachable!() };
    let stored = files.repository_with(&[first])?;
    let mut damaged = files.bytes(second)?;
    let half = damaged.len() / 2;
    damaged[half..half + 8192].fill(0xFF);
    files.put(second, &damaged)?;
    let mut auditor = auditor(&files)?;
    survive(&mut Accept { files: &files, segment: second.clone(), stored }, &mut auditor)
}

type Change = fn(&mut HostFile, &[Identity]) -> Result<(), Error>;

/// `key rotate`, `key add` or `key remove`: the host file is written, then the repository gets what it lacks.
struct Keys {
    name: &'static str,
    change: Change,
    identities: Vec<Identity>,
    /// The host file as each round finds it.
    before: HostFile,
    /// As it is.
    host: RefCell<HostFile>,
    stored: Objects,
}

impl Keys {
    fn with_keys(&self, repository: &Repository, host: &HostFile) -> Result<Repository, Error> {
        let keys =
            Keyring::new(Some(host.clone()), Vec::new(), None).map_err(|e| Error::key(e.to_string()))?;
        Ok(repository.with_keys(Arc::new(keys), false))
    }
}

impl Command for Keys {
    fn name(&self) -> String {
        self.name.into()
    }

    fn least_calls(&self) -> usize {
        6
    }

    fn world(&mut self) -> Result<Store> {
        self.host.replace(self.before.clone());
        wait(true, store_of(&self.stored))
    }

    /// As `cli::key` does it.
    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let mut host = self.host.borrow().clone();
        let repository = self.with_keys(&repository, &host)?;
        wait(true, async {
            for place in key::compare(&repository, &host).await? {
                if let Some(strange) = place.strange.first() {
                    return Err(Error::refused(format!("the host file does not know {strange}")));
                }
            }
            // Repeated, it has been done: what is left are the repositories.
            if host == self.before {
                (self.change)(&mut host, &self.identities)?;
                self.host.replace(host.clone());
            }
            key::spread(&[repository], &host).await.map(|_| Said::Done)
        })
    }

    fn audit(&self, said: &Result<Said, Error>, after: &Objects) -> Result<()> {
        let host = self.host.borrow();
        let mut missing = 0;
        for (epoch, n, wrap) in host.wraps() {
            let end = format!("/keys/{epoch}/wrap-{n:04}.age");
            match after.iter().find(|(key, _)| key.ends_with(&end)) {
                Some((key, stored)) => {
                    ensure!(*stored == wrap.0, "{key} is another one than the host file's");
                }
                None => missing += 1,
            }
        }
        let stored = after.keys().filter(|key| key.contains("/keys/")).count();
        ensure!(stored + missing == host.wraps().count(), "a wrap that the host file does not know");
        ensure!(said.is_err() || missing == 0, "a yes, and {missing} wraps are missing");
        Ok(())
    }

    fn believes_a_lie(&self) -> bool {
        true
    }
}

#[test]
fn whatever_call_of_a_change_of_keys_fails_the_host_file_knows_every_wrap_that_is_stored() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let files = Files::new(&install)?;
    let identities: Vec<Identity> = (0..3).map(|_| Identity::generate()).collect();
    let named =
        |name: &str, n: usize| NamedRecipient { name: name.into(), recipient: identities[n].recipient() };
    let recipients = vec![named("daily", 0), named("offline", 1), named("third", 2)];
    let mut host = key::init(&"main".parse()?, recipients, Timestamp::now())?;
    key::rotate(&mut host, Timestamp::now())?;
    let stored = wait(true, async {
        let store = store_of(&Objects::new()).await?;
        let keys = Arc::new(Keyring::new(Some(host.clone()), Vec::new(), None)?);
        let sealed = repository(store.clone())?.with_keys(keys, false);
        init::repository(&sealed, &files.facts, None, &SystemClock).await?;
        objects(&store).await
    })?;
    let changes: [(&'static str, Change); 3] = [
        ("key rotate", |host, _| key::rotate(host, Timestamp::now()).map(drop)),
        ("key add", |host, identities| {
            let recipient = Identity::generate().recipient();
            key::add(host, NamedRecipient { name: "late".into(), recipient }, identities)
        }),
        ("key remove", |host, identities| key::remove(host, "third", identities, Timestamp::now()).map(drop)),
    ];
    for (name, change) in changes {
        let (before, identities) = (host.clone(), identities.clone());
        let host = RefCell::new(host.clone());
        let mut keys = Keys { name, change, identities, before, host, stored: stored.clone() };
        survive(&mut keys, &mut Auditor::default())?;
    }
    Ok(())
}
