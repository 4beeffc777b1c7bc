//! `key recover`: a host file made anew from what the repositories hold, for who lost the host and has an identity.
//!
//! ```text
//!  wraps of all folders ─► opened by the identity ─► seal key, every epoch's key ─► a wrap more of each ─► the next epoch ─► host file
//! ```
//! The wraps hold all of it but the recipients' names: those are said anew. The next epoch begins at once: who has the old host file by now
//! cannot open anything with it, but whom the old wraps were for is not known. Invariant: the new host file knows every wrap that is stored,
//! so that it is the newest copy there is; what it cannot know stops everything, by name, before anything is written.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{begin, enough, is_readable, unwrappable};
use crate::error::{Error, Result};
use crate::repo::path::{ClusterName, Sealing};
use crate::repo::{Keyring, RepoError, Repository};
use crate::seal::wrap::MAX_WRAPS;
use crate::seal::{Epoch, HostEpoch, HostFile, NamedRecipient, Opened, Recipient, Wrap};

/// What the sealed folders of a cluster hold of its keys.
#[derive(Debug, Default)]
pub struct Folders {
    wraps: BTreeMap<(Epoch, u32), Wrap>,
    /// Epochs that backups were sealed with, whether or not a wrap of them is left.
    named: BTreeSet<Epoch>,
}

/// One that is only away may know a newer epoch.
fn unread(repository: &Repository, error: RepoError) -> Error {
    Error::from(error).context(format!("repository {} cannot be read", repository.name())).hint(
        "every repository must answer, since each may know an epoch that the others lack; if it is lost for good, name the others by --repository NAME",
    )
}

impl Folders {
    /// Reads them from all `repositories`, each of which must answer.
    ///
    /// # Errors
    /// Kind `NotFound` if there is no sealed folder; kind `Refused` for two wraps of one name that differ; what opening a folder says, whose
    /// seal key is compared with the one that the wraps hold.
    pub async fn read(repositories: &[Repository]) -> Result<Self> {
        let mut found = Self::default();
        for repository in repositories.iter().filter(|repository| repository.is_to_be_sealed()) {
            let systems = repository.systems().await.map_err(|e| unread(repository, e))?;
            for system in systems {
                let wraps = repository.wraps(system).await?;
                // An `init` that was cut off leaves wraps without an identity.
                let Some(sealing) = repository.sealing(system).await? else {
                    found.take(repository, wraps)?;
                    continue;
                };
                let opened = repository.open(system).await?;
                if sealing == Sealing::Sealed {
                    found.take(repository, wraps)?;
                    found.named.extend(super::sealed_with(&opened).await?);
                }
            }
        }
        if found.wraps.is_empty() {
            return Err(Error::not_found("no repository holds an encrypted folder of this cluster")
                .hint("`pitr info` shows what there is"));
        }
        Ok(found)
    }

    fn take(&mut self, repository: &Repository, wraps: Vec<(Epoch, u32, Wrap)>) -> Result<()> {
        for (epoch, n, wrap) in wraps {
            if self.wraps.get(&(epoch, n)).is_some_and(|other| *other != wrap) {
                return Err(Error::refused(format!(
                    "{} in repository {} is not what lies elsewhere under that name: nothing was changed",
                    name(epoch, n),
                    repository.name()
                ))
                .hint("one of them was put there by somebody else: `pitr key test --repository NAME` shows where the epoch opens; move the other one away"));
            }
            self.wraps.insert((epoch, n), wrap);
        }
        Ok(())
    }

    /// The epochs that there were, of which there may be no wrap any more: what they sealed cannot be read.
    pub fn without_wraps(&self) -> Vec<Epoch> {
        let has = |epoch: &Epoch| self.wraps.keys().any(|(of, _)| of == epoch);
        let newest = self.newest();
        let next = |epoch: &Epoch| epoch.next().filter(|next| *next <= newest);
        std::iter::successors(Some(Epoch::FIRST), next).filter(|epoch| !has(epoch)).collect()
    }

    fn newest(&self) -> Epoch {
        let known = self.wraps.keys().map(|(epoch, _)| *epoch);
        known.chain(self.named.iter().copied()).max().unwrap_or(Epoch::FIRST)
    }
}

fn name(epoch: Epoch, n: u32) -> String {
    format!("{epoch}/wrap-{n:04}.age")
}

/// The host file, with every epoch wrapped for `recipients` too, and the next one begun.
///
/// # Errors
/// Kind `Usage` for fewer than two recipients or one twice; kind `Key` if an epoch does not open, kind `Refused` if a wrap lies where only a
/// newer one than those that open would.
pub fn recover(
    cluster: &ClusterName,
    folders: &Folders,
    ring: &Keyring,
    recipients: Vec<NamedRecipient>,
    now: Timestamp,
) -> Result<HostFile> {
    enough(&recipients)?;
    let wraps: Vec<(Epoch, u32, Wrap)> =
        folders.wraps.iter().map(|((e, n), w)| (*e, *n, w.clone())).collect();
    let opened = ring.open_wraps(cluster.as_str(), &wraps).map_err(|what| {
        Error::refused(format!("the wraps are not those of one cluster: {what}"))
            .hint("--seal-fingerprint takes what the recovery kit prints, and only what agrees is used then")
    })?;
    let keys: Vec<&Recipient> = recipients.iter().map(|r| &r.recipient).collect();
    let mut epochs: Vec<HostEpoch> = Vec::new();
    for epoch in wraps.iter().map(|(epoch, ..)| *epoch).collect::<BTreeSet<_>>() {
        epochs.push(known(cluster, folders, epoch, &opened, (ring, &keys))?);
    }
    let seal = opened.into_iter().next().map(|opened| opened.seal);
    let seal = seal.ok_or_else(|| Error::key("there is no wrap of any epoch"))?;
    let newest = folders.newest();
    let next = newest.next().ok_or_else(|| Error::failed("there is no key epoch after e9999"))?;
    let mut host = HostFile { cluster: cluster.to_string(), seal, epoch: newest, epochs, recipients };
    begin(&mut host, next, now)?;
    is_readable(&host)?;
    Ok(host)
}

/// One epoch that was, with all its wraps and a new one for `keys`. Numbers that are free below the newest wrap get the new one too: a host
/// file has no gaps.
fn known(
    cluster: &ClusterName,
    folders: &Folders,
    epoch: Epoch,
    opened: &[Opened],
    (ring, keys): (&Keyring, &[&Recipient]),
) -> Result<HostEpoch> {
    let found = opened.iter().find(|opened| opened.key.epoch == epoch).ok_or_else(|| {
        Error::key(format!("no identity at hand opens a wrap of epoch {epoch}")).hint(
            "give the identity of a recipient who was not removed; if nobody ever began that epoch, somebody planted the wrap: move it away",
        )
    })?;
    let of_it = folders.wraps.iter().filter(|((of, _), _)| *of == epoch);
    let of_it: BTreeMap<u32, &Wrap> = of_it.map(|((_, n), wrap)| (*n, wrap)).collect();
    let opens = |wrap: &Wrap| {
        let opened = wrap.open(ring.identities(), cluster.as_str(), epoch);
        opened.is_ok_and(|opened| opened.seal == found.seal)
    };
    // Whoever is a recipient now opens the newest wrap of each epoch.
    let newest = of_it.iter().filter(|(_, wrap)| opens(wrap)).map(|(n, _)| *n).max().unwrap_or(0);
    if let Some(n) = of_it.keys().find(|n| **n > newest) {
        return Err(Error::refused(format!("no identity at hand opens {}: nothing was changed", name(epoch, *n)))
            .hint("give the identity of a recipient who was not removed; or somebody planted that wrap: move it away"));
    }
    if newest >= MAX_WRAPS {
        return Err(Error::failed(format!("epoch {epoch} has {MAX_WRAPS} wraps already"))
            .hint("delete the oldest one that you do not need, and repeat the command"));
    }
    let new = found.wrap(cluster.as_str(), keys).map_err(unwrappable)?;
    let wraps = (1..=newest).map(|n| of_it.get(&n).map_or(&new, |wrap| *wrap).clone());
    let wraps = wraps.chain([new.clone()]).collect();
    Ok(HostEpoch { epoch, created: found.created, recipient: found.key.recipient(), wraps })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::seal::Identity;

    fn named(name: &str, identity: &Identity) -> NamedRecipient {
        NamedRecipient { name: name.to_owned(), recipient: identity.recipient() }
    }

    fn folders(host: &HostFile) -> Folders {
        let wraps = host.wraps().map(|(epoch, n, wrap)| ((epoch, n), wrap.clone()));
        Folders { wraps: wraps.collect(), named: BTreeSet::new() }
    }

    struct World {
        cluster: ClusterName,
        host: HostFile,
        daily: Identity,
        offline: Identity,
    }

    /// Three epochs: a recipient came in the second, and was removed.
    fn world() -> World {
        let (daily, offline, late) = (Identity::generate(), Identity::generate(), Identity::generate());
        let cluster: ClusterName = "main".parse().unwrap();
        let recipients = vec![named("daily", &daily), named("offline", &offline)];
        let now = Timestamp::UNIX_EPOCH;
        let mut host = super::super::init(&cluster, recipients, now).unwrap();
        super::super::rotate(&mut host, now).unwrap();
        let own = std::slice::from_ref(&offline);
        super::super::add(&mut host, named("late", &late), own).unwrap();
        super::super::remove(&mut host, "late", own, now).unwrap();
        World { cluster, host, daily, offline }
    }

    impl World {
        fn recover(&self, folders: &Folders, who: &Identity) -> Result<HostFile> {
            let expected = Some(self.host.seal.fingerprint());
            let ring = Keyring::new(None, vec![who.clone()], expected).unwrap();
            let new = vec![named("one", &self.daily), named("two", &self.offline)];
            recover(&self.cluster, folders, &ring, new, Timestamp::UNIX_EPOCH)
        }
    }

    #[test]
    fn all_but_the_names_comes_back_and_a_new_epoch_begins() {
        let world = world();
        let found = world.recover(&folders(&world.host), &world.offline).unwrap();
        assert_eq!((found.epoch.get(), &found.seal), (4, &world.host.seal));
        for (was, is) in world.host.epochs.iter().zip(&found.epochs) {
            assert_eq!((was.epoch, &was.recipient, was.created), (is.epoch, &is.recipient, is.created));
            assert!(
                is.wraps.starts_with(&was.wraps) && is.wraps.len() == was.wraps.len() + 1,
                "{}",
                is.epoch
            );
        }
        super::super::prove(&found, &[world.daily.clone(), world.offline.clone()]).unwrap();
        assert_eq!(HostFile::parse(&found.render()).unwrap(), found);
    }

    #[test]
    fn wraps_that_were_deleted_leave_no_gap_and_no_number_is_used_twice() {
        let world = world();
        let mut found = folders(&world.host);
        let first = Epoch::FIRST;
        found.wraps.remove(&(first, 1));
        let whole = world.recover(&found, &world.daily).unwrap();
        assert_eq!(whole.epochs[0].wraps.len(), 3);
        assert_eq!(whole.epochs[0].wraps[1], world.host.epochs[0].wraps[1]);
        super::super::prove(&whole, &[world.daily.clone(), world.offline.clone()]).unwrap();
        // Of two epochs no wrap is left; backups tell of the later one.
        let last = world.host.epoch;
        found.wraps.retain(|(epoch, _), _| *epoch != first && *epoch != last);
        found.named.insert(last);
        assert_eq!(found.without_wraps(), [first, last]);
        assert_eq!(world.recover(&found, &world.daily).unwrap().epoch.get(), 4);
    }

    #[test]
    fn what_does_not_open_stops_it_by_name() {
        let world = world();
        let why = |folders: &Folders, who: &Identity| world.recover(folders, who).unwrap_err();
        let stranger = why(&folders(&world.host), &Identity::generate());
        assert!(stranger.kind() == Kind::Key && stranger.message().contains("e0001"), "{stranger:?}");
        for (place, kind, said) in
            [((1, 4), Kind::Refused, "e0001/wrap-0004.age"), ((9, 1), Kind::Key, "e0009")]
        {
            let mut planted = folders(&world.host);
            planted.wraps.insert((Epoch::new(place.0).unwrap(), place.1), Wrap("planted".into()));
            let error = why(&planted, &world.offline);
            assert!(error.kind() == kind && error.message().contains(said), "{error:?}");
        }
        // Somebody's own seal key, wrapped for the same recipient.
        let other = super::super::init(
            &world.cluster,
            vec![named("daily", &world.daily), named("offline", &world.offline)],
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
        let error = why(&folders(&other), &world.offline);
        assert!(error.kind() == Kind::Key && error.message().contains("e0001"), "{error:?}");
        let ring = Keyring::new(None, vec![world.offline.clone()], None).unwrap();
        let mut mixed = folders(&world.host);
        mixed.wraps.insert((Epoch::FIRST, 4), other.epochs[0].wraps[0].clone());
        let new = vec![named("one", &world.daily), named("two", &world.offline)];
        let error = recover(&world.cluster, &mixed, &ring, new, Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(error.kind() == Kind::Refused && error.message().contains("not those of one cluster"));
    }
}
