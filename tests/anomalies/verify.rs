//! `verify` of a repository that is whole: a store that fails, stalls, cuts bodies short or denies once what it has makes it doubt, and never
//! say that something is damaged or lost; "no damage" it says only of what it read to the end.
//!
//! ```text
//!  plain     two timelines, a backup, pins, a floor; and the same with --decode
//!  sealed    two timelines, a backup; with an identity, and with the host file alone
//! ```
//! `hide` has no round: it is a delete that it strikes, and verify deletes nothing, which is looked at.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use pitr::error::Error;
use pitr::ops::verify::{Folder, Request, Sample, verify};
use pitr::ops::{Silent, pin};
use pitr::repo::objects::{Floor, TimelineFloor};
use pitr::repo::{Keyring, Repository};
use pitr::seal::{HostFile, Identity};
use pitr::store::Store;
use pitr::wal::{SegmentName, SegmentNo, TimelineId};

use super::backup::store_at;
use super::support::audit::{Auditor, Objects, objects_in, store_of};
use super::support::cluster::Install;
use super::support::office::sealed_here;
use super::support::site::{Site, shrink, small_site};
use super::{Command, Round, Said, each_call, repository, survive, wait};

struct Verify {
    name: &'static str,
    stored: Objects,
    keys: Option<Arc<Keyring>>,
    decode: bool,
    /// What it says without faults.
    good: String,
}

impl Verify {
    /// Looks once without faults: all is read, and nothing is wrong.
    fn new(name: &'static str, stored: Objects, keys: Option<Keyring>, decode: bool) -> Result<Self> {
        let mut command = Self { name, stored, keys: keys.map(Arc::new), decode, good: String::new() };
        let (store, faults) = command.world()?.with_faults(super::once());
        let said = command.run(repository(store)?).map_err(|error| anyhow::anyhow!(error.report()))?;
        let Said::Shown(good) = said else { anyhow::bail!("{said:?}") };
        ensure!(!good.contains("DAMAGE"), "{good}");
        let read = faults.calls();
        // Of wraps the name is enough: what they hold is the host file's business, and `key test`'s.
        let unread = |key: &&String| !read.contains(&format!("open {key}")) && !key.contains("/keys/");
        let unread: Vec<_> = command.stored.keys().filter(unread).collect();
        ensure!(unread.is_empty(), "{name}: {unread:?} were not read");
        ensure!(
            read.iter().all(|call| !call.starts_with("create") && !call.starts_with("delete")),
            "{read:?}"
        );
        command.good = good;
        Ok(command)
    }
}

/// Everything that it says of a folder, in one line.
fn shown(folder: &Folder) -> String {
    let Folder { extent, findings, backups, windows, leftovers, known, unread, unopened, locked, .. } =
        folder;
    let damage = if findings.count > 0 { "DAMAGE" } else { "clean" };
    format!(
        "{damage} {findings:?} {extent:?} {backups:?} {windows:?} {leftovers:?} {known:?} {unread:?} {unopened:?} {locked}"
    )
}

impl Command for Verify {
    fn name(&self) -> String {
        format!("verify of a repository that is {}", self.name)
    }

    fn least_calls(&self) -> usize {
        25
    }

    fn world(&mut self) -> Result<Store> {
        wait(true, store_of(&self.stored))
    }

    /// Damage is said whatever else happened: exit 6. Without it, what ended the look is the answer: exit 1.
    fn run(&self, repository: Repository) -> Result<Said, Error> {
        let repository = match &self.keys {
            Some(keys) => repository.with_keys(Arc::clone(keys), false),
            None => repository,
        };
        let request = Request { backup: None, sample: Sample::All, decode: self.decode, jobs: 2 };
        let report = wait(true, verify(&repository, &request, &Silent))?;
        let folders: Vec<String> = report.folders.iter().map(shown).collect();
        match report.stopped {
            Some(error)
                if folders.iter().all(|said| said.starts_with("clean")) && report.findings.count == 0 =>
            {
                Err(error)
            }
            _ => {
                let damage = if report.findings.count > 0 { "DAMAGE " } else { "" };
                Ok(Said::Shown(format!("{damage}{folders:?} {:?} {:?}", report.findings, report.unknown)))
            }
        }
    }

    fn check(&self, _: &mut Auditor, before: &Objects, after: &Objects) -> Result<()> {
        ensure!(before == after, "verify has written something");
        Ok(())
    }

    fn audit(&self, said: &Result<Said, Error>, _: &Objects) -> Result<()> {
        if let Ok(Said::Shown(shown)) = said {
            ensure!(
                *shown == self.good,
                "it says of a repository that is whole, or of part of it:\n{shown}\n{}",
                self.good
            );
        }
        Ok(())
    }
}

/// Two timelines, and a backup on the first.
fn fill(site: &Site) -> Result<String> {
    let backup = site.backup()?["id"].as_str().context("an id")?.to_owned();
    site.promote()?;
    site.switch()?;
    Ok(backup)
}

/// What else there can be: pins, one of them released, and a floor that keeps all.
async fn furnish(site: &Site, backup: &str) -> Result<()> {
    let (repositories, id) = ([repository(store_at(&site.repository)?)?], backup.parse()?);
    pin::pin(&repositories, &id, "released", true, Timestamp::now()).await?;
    pin::unpin(&repositories, &id).await?;
    pin::pin(&repositories, &id, "kept", false, Timestamp::now()).await?;
    let system = repositories[0].open_current().await?.context("a system")?;
    let first = SegmentName::new(TimelineId::FIRST, SegmentNo::new(1), system.identity().segment_size);
    let lines = |_: Option<&Floor>| {
        Some(vec![TimelineFloor { timeline: TimelineId::FIRST, first, keep: Vec::new() }])
    };
    system.raise_floor(lines, Timestamp::now()).await?.context("a floor").map(drop)
}

#[test]
fn whatever_call_of_verify_fails_a_whole_repository_is_not_called_damaged() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let backup = fill(&site)?;
    wait(false, furnish(&site, &backup))?;
    let stored = objects_in(&site.repository)?;
    survive(&mut Verify::new("plain", stored.clone(), None, false)?, &mut Auditor::default())?;
    // What it does besides is to look into what it has read: only what a read can bring is another.
    let mut decoding = Verify::new("plain, and decodes it", stored, None, true)?;
    ["deny", "short@open", "lie@open"].into_iter().try_for_each(|effect| {
        each_call(&mut decoding, &mut Auditor::default(), Round { effect, repeated: false })
    })
}

#[test]
fn whatever_call_of_verify_fails_a_whole_encrypted_repository_is_not_called_damaged() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    shrink(&site)?;
    fill(&site)?;
    let stored = objects_in(&site.repository)?;
    let host = HostFile::parse(&std::fs::read_to_string(site.place().join("main.host"))?);
    let host = host.map_err(|error| anyhow::anyhow!("{error}"))?;
    let identities = Identity::parse_file(&std::fs::read_to_string(office.daily())?);
    let identities = identities.map_err(|error| anyhow::anyhow!("{error}"))?;
    for (name, keys) in [
        ("sealed, with an identity", Some(Keyring::new(Some(host.clone()), identities, None)?)),
        ("sealed, with the host file", Some(Keyring::new(Some(host), Vec::new(), None)?)),
    ] {
        survive(&mut Verify::new(name, stored.clone(), keys, false)?, &mut Auditor::default())?;
    }
    Ok(())
}
