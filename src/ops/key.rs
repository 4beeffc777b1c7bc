//! `key`: the cluster's keys, made and handed on. Only here are new secrets made.
//!
//! ```text
//!  init     seal key, epoch e0001, its wrap for all recipients ─► host file
//!  rotate   the next epoch, wrapped for the same recipients    ─► host file ─► repositories          takes no secret
//!  add      a new wrap of every epoch                          ─► host file ─► repositories          takes an identity that opens them
//!  remove   the same, and the next epoch                       ─► host file ─► repositories          the same
//!  recover  all of it from the wraps, and the next epoch       ─► new host file ─► repositories      the same
//! ```
//! The host file is written first, the repositories follow; whoever dies in between has lost nothing, since a push puts what its folder
//! lacks. What was made is opened again with every identity at hand before anything is written. Nothing that is stored is rewritten.
//! The host file belongs to the server's user, so it is not believed about who may read what is stored already: an epoch is wrapped anew
//! only for whom a wrap of it names, and for whom the operator names. Rules: REPOSITORY.md 5.

mod recover;

use jiff::Timestamp;

pub use recover::{Folders, recover};

use crate::clock;
use crate::error::{Error, Result};
use crate::repo::path::{ClusterName, Sealing};
use crate::repo::{Repository, System};
use crate::seal::wrap::MAX_WRAPS;
use crate::seal::{
    Epoch, EpochKey, HostEpoch, HostFile, Identity, NamedRecipient, Opened, Recipient, SealError, SealKey,
};
use crate::wal::SystemId;

/// Fewest recipients: the one for every day, and the one that lies elsewhere.
pub const FEWEST: usize = 2;

/// The keys of a new cluster.
///
/// # Errors
/// Kind `Usage` for fewer than two recipients, or one twice.
pub fn init(cluster: &ClusterName, recipients: Vec<NamedRecipient>, now: Timestamp) -> Result<HostFile> {
    enough(&recipients)?;
    let random = |e| Error::failed("no random numbers").source(e);
    let mut host = HostFile {
        cluster: cluster.to_string(),
        seal: SealKey::new(clock::random_bytes().map_err(random)?),
        epoch: Epoch::FIRST,
        epochs: Vec::new(),
        recipients,
    };
    begin(&mut host, Epoch::FIRST, now)?;
    Ok(host)
}

/// Begins the next epoch.
///
/// # Errors
/// Kind `Failed` after epoch 9999.
pub fn rotate(host: &mut HostFile, now: Timestamp) -> Result<Epoch> {
    let newest = host.epochs.last().map_or(Epoch::FIRST, |e| e.epoch);
    let next = newest.next().ok_or_else(|| Error::failed("there is no key epoch after e9999"))?;
    begin(host, next, now)?;
    Ok(next)
}

fn begin(host: &mut HostFile, epoch: Epoch, now: Timestamp) -> Result<()> {
    let (key, seal) = (EpochKey::generate(epoch), host.seal.clone());
    let opened = Opened { key, seal, created: now, recipients: Vec::new() };
    let wrap = opened.wrap(&host.cluster, &for_all(host)).map_err(unwrappable)?;
    host.begin(&opened, wrap);
    Ok(())
}

fn for_all(host: &HostFile) -> Vec<&Recipient> {
    host.recipients.iter().map(|r| &r.recipient).collect()
}

fn unwrappable(cause: SealError) -> Error {
    Error::failed("the key cannot be encrypted to its recipients").source(cause)
}

fn enough(recipients: &[NamedRecipient]) -> Result<()> {
    if recipients.len() < FEWEST {
        return Err(Error::usage(format!("{} recipients are too few: {FEWEST} at least", recipients.len()))
            .hint(
                "one key for every day, and one that is kept elsewhere for the day on which that one is gone",
            ));
    }
    for (index, one) in recipients.iter().enumerate() {
        let rest = recipients.get(index.saturating_add(1)..).unwrap_or_default();
        if rest.iter().any(|other| other.name == one.name || other.recipient == one.recipient) {
            return Err(Error::usage(format!("recipient {} is given twice", one.name))
                .hint("each recipient has a name and a key of its own"));
        }
    }
    Ok(())
}

/// Lets one more read, everything stored so far included.
///
/// # Errors
/// Kind `Usage` for a name or a key that is there already; kind `Key` if no identity opens one of the epochs.
pub fn add(host: &mut HostFile, new: NamedRecipient, identities: &[Identity]) -> Result<()> {
    let mut recipients = host.recipients.clone();
    let public = new.recipient.clone();
    recipients.push(new);
    enough(&recipients)?;
    let mut changed = host.clone();
    rewrap(&mut changed, recipients, Some(&public), identities)?;
    prove_recipients(&changed, identities)?;
    *host = changed;
    Ok(())
}

/// Takes a recipient out, and begins the next epoch without him: of the present one he has the key, whatever it is wrapped for from now on.
/// What was stored before he can read still. All of it or nothing.
///
/// # Errors
/// Kind `NotFound` for a name that is none, `Usage` if too few would be left, `Key` if no identity opens one of the
/// epochs.
pub fn remove(host: &mut HostFile, name: &str, identities: &[Identity], now: Timestamp) -> Result<Epoch> {
    let mut recipients = host.recipients.clone();
    recipients.retain(|r| r.name != name);
    if recipients.len() == host.recipients.len() {
        let names: Vec<&str> = host.recipients.iter().map(|r| r.name.as_str()).collect();
        return Err(
            Error::not_found("no recipient has that name").hint(format!("there are: {}", names.join(", ")))
        );
    }
    enough(&recipients)?;
    let mut changed = host.clone();
    rewrap(&mut changed, recipients, None, identities)?;
    let epoch = rotate(&mut changed, now)?;
    prove_recipients(&changed, identities)?;
    *host = changed;
    Ok(epoch)
}

/// A new wrap of every epoch, for `recipients`, of whom the operator names `new`. All of them or none.
///
/// # Errors
/// Kind `Key` if no identity opens one of the epochs; kind `Refused` for a recipient for whom nothing but the host file speaks.
fn rewrap(
    host: &mut HostFile,
    recipients: Vec<NamedRecipient>,
    new: Option<&Recipient>,
    identities: &[Identity],
) -> Result<()> {
    let opened: Vec<Opened> =
        host.epochs.iter().map(|epoch| open(host, epoch, identities)).collect::<Result<_>>()?;
    for epoch in &host.epochs {
        let known = recipients.iter().filter(|r| Some(&r.recipient) != new);
        if let Some(stranger) = stranger(host, epoch, known, identities) {
            return Err(Error::refused(format!(
                "recipient {} ({}) stands in the host file, but no wrap of epoch {} that opens was made for that key: nothing was changed",
                stranger.name, stranger.recipient, epoch.epoch
            ))
            .hint("whoever can write the host file may have put it there: compare it with the recovery kit, restore a host file that you trust, and `pitr key add` the key if it is one of yours"));
        }
    }
    let cluster = host.cluster.clone();
    let keys: Vec<&Recipient> = recipients.iter().map(|r| &r.recipient).collect();
    let wraps = opened.iter().map(|opened| opened.wrap(&cluster, &keys)).collect::<Result<Vec<_>, _>>();
    let wraps = wraps.map_err(unwrappable)?;
    if host.epochs.iter().any(|e| u32::try_from(e.wraps.len()).is_ok_and(|n| n >= MAX_WRAPS)) {
        return Err(Error::failed(format!("an epoch has {MAX_WRAPS} wraps already: rotate first")));
    }
    for (epoch, wrap) in host.epochs.iter_mut().zip(wraps) {
        epoch.wraps.push(wrap);
    }
    host.recipients = recipients;
    Ok(())
}

/// One of `recipients` whom no wrap of `epoch` that opens was made for. Where none says for whom, as an older pitr made them, all are believed.
fn stranger<'a>(
    host: &HostFile,
    epoch: &HostEpoch,
    mut recipients: impl Iterator<Item = &'a NamedRecipient>,
    identities: &[Identity],
) -> Option<&'a NamedRecipient> {
    let opened = epoch.wraps.iter().filter_map(|wrap| wrap.open(identities, &host.cluster, epoch.epoch).ok());
    let genuine = opened.filter(|opened| opened.key.recipient() == epoch.recipient);
    let named: Vec<Vec<Recipient>> =
        genuine.map(|opened| opened.recipients).filter(|named| !named.is_empty()).collect();
    if named.is_empty() {
        return None;
    }
    recipients.find(|r| !named.iter().flatten().any(|known| *known == r.recipient))
}

/// An epoch's secret, by the newest wrap that one of `identities` opens.
///
/// # Errors
/// Kind `Key`, which names the epoch.
pub fn open(host: &HostFile, epoch: &HostEpoch, identities: &[Identity]) -> Result<Opened> {
    let found = epoch.wraps.iter().rev().find_map(|w| w.open(identities, &host.cluster, epoch.epoch).ok());
    let found = found.ok_or_else(|| {
        Error::key(format!("no identity at hand opens a wrap of epoch {}", epoch.epoch))
            .hint("give one of the recipients' identities: --identity FILE, or PITR_IDENTITY; `pitr key list` names them")
    })?;
    if found.seal == host.seal && found.key.recipient() == epoch.recipient {
        return Ok(found);
    }
    Err(another_key(epoch.epoch))
}

/// The host file seals for a key that is not the one in its wraps.
pub fn another_key(epoch: Epoch) -> Error {
    Error::key(format!("the host file seals epoch {epoch} with another key than its wraps hold")).hint(
        "somebody changed the host file, and what was sealed by it since opens for him alone: bring back one that you trust, then `pitr key rotate` and `pitr backup --full`",
    )
}

/// Proves that each identity opens every epoch, before anybody relies on it.
///
/// # Errors
/// Kind `Key`.
pub fn prove(host: &HostFile, identities: &[Identity]) -> Result<()> {
    for identity in identities {
        for epoch in &host.epochs {
            open(host, epoch, std::slice::from_ref(identity))?;
        }
    }
    Ok(())
}

/// As [`prove`], with those of `identities` that belong to a recipient.
///
/// # Errors
/// Kind `Key`.
pub fn prove_recipients(host: &HostFile, identities: &[Identity]) -> Result<()> {
    let is_one = |identity: &&Identity| host.recipients.iter().any(|r| r.recipient == identity.recipient());
    prove(host, &identities.iter().filter(is_one).cloned().collect::<Vec<_>>())
}

/// A sealed folder, and how its wraps are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The repository.
    pub repository: String,
    /// The system whose folder it is.
    pub system: SystemId,
    /// Wraps of the host file that the folder lacks.
    pub missing: Vec<String>,
    /// Wraps that are other ones than the host file's, or that it does not know.
    pub strange: Vec<String>,
}

/// How the wraps of all sealed folders of `repository` compare with the host file's.
///
/// # Errors
/// As the store answers.
pub async fn compare(repository: &Repository, host: &HostFile) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for system in repository.systems().await? {
        if repository.sealing(system).await? != Some(Sealing::Sealed) {
            continue;
        }
        let stored = repository.wraps(system).await?;
        let name = |epoch: Epoch, n: u32| format!("{epoch}/wrap-{n:04}.age");
        let missing = host.wraps().filter(|(e, n, _)| !stored.iter().any(|(f, m, _)| (f, m) == (e, n)));
        let missing = missing.map(|(epoch, n, _)| name(epoch, n)).collect();
        let known = |(e, n, wrap): &&(Epoch, u32, crate::seal::Wrap)| {
            host.wraps().any(|(f, m, own)| (f, m) == (*e, *n) && own == wrap)
        };
        let strange = stored.iter().filter(|found| !known(found)).map(|(e, n, _)| name(*e, *n)).collect();
        places.push(Place { repository: repository.name().to_owned(), system, missing, strange });
    }
    Ok(places)
}

/// The epochs that the complete backups of a folder were sealed with.
///
/// # Errors
/// As the store answers.
pub async fn sealed_with(system: &System) -> Result<Vec<Epoch>> {
    let backups = system.catalog().await?.backups;
    Ok(backups.iter().filter_map(|backup| backup.complete()?.key).collect())
}

/// Puts the host file's wraps into every sealed folder; the folders.
///
/// # Errors
/// Kind `Refused` where another wrap lies under the same name; else as the store answers.
pub async fn spread(repositories: &[Repository], host: &HostFile) -> Result<Vec<(String, SystemId)>> {
    let mut done = Vec::new();
    for repository in repositories {
        for system in repository.systems().await? {
            if repository.sealing(system).await? == Some(Sealing::Sealed) {
                repository.put_wraps(system, host).await?;
                done.push((repository.name().to_owned(), system));
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn named(name: &str, identity: &Identity) -> NamedRecipient {
        NamedRecipient { name: name.to_owned(), recipient: identity.recipient() }
    }

    fn cluster() -> ClusterName {
        "main".parse().unwrap()
    }

    #[test]
    fn two_recipients_with_names_and_keys_of_their_own_are_the_least() {
        let (one, two) = (Identity::generate(), Identity::generate());
        let made = |recipients| init(&cluster(), recipients, Timestamp::UNIX_EPOCH).map_err(|e| e.kind());
        assert_eq!(made(vec![named("daily", &one)]), Err(Kind::Usage));
        assert_eq!(made(vec![named("daily", &one), named("daily", &two)]), Err(Kind::Usage));
        assert_eq!(made(vec![named("daily", &one), named("offline", &one)]), Err(Kind::Usage));
        let host = made(vec![named("daily", &one), named("offline", &two)]).unwrap();
        prove(&host, &[one, two]).unwrap();
        assert_eq!(prove(&host, &[Identity::generate()]).unwrap_err().kind(), Kind::Key);
    }

    #[test]
    fn rotation_takes_no_secret_and_a_new_recipient_reads_all_epochs() {
        let (daily, offline, late) = (Identity::generate(), Identity::generate(), Identity::generate());
        let recipients = vec![named("daily", &daily), named("offline", &offline)];
        let mut host = init(&cluster(), recipients, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(rotate(&mut host, Timestamp::UNIX_EPOCH).unwrap().get(), 2);
        prove(&host, &[daily.clone(), offline.clone()]).unwrap();
        let before = host.clone();
        assert_eq!(
            add(&mut host, named("late", &late), std::slice::from_ref(&late)).unwrap_err().kind(),
            Kind::Key
        );
        assert_eq!(host, before, "a failed change changes nothing");
        add(&mut host, named("late", &late), std::slice::from_ref(&offline)).unwrap();
        prove(&host, &[daily.clone(), offline.clone(), late.clone()]).unwrap();
        assert_eq!(remove(&mut host, "daily", &[late], Timestamp::UNIX_EPOCH).unwrap().get(), 3);
        let newest = host.epochs.last().unwrap();
        let opens = |who: &Identity| open(&host, newest, std::slice::from_ref(who)).is_ok();
        assert!(
            opens(&offline) && !opens(&daily),
            "who was removed opens nothing that is stored from now on"
        );
        assert_eq!(
            remove(&mut host, "daily", std::slice::from_ref(&offline), Timestamp::UNIX_EPOCH)
                .unwrap_err()
                .kind(),
            Kind::NotFound
        );
        let too_few = remove(&mut host, "late", &[offline], Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(too_few.kind(), Kind::Usage);
    }

    #[test]
    fn a_host_file_that_was_changed_hands_nothing_on() {
        let (daily, offline, thief) = (Identity::generate(), Identity::generate(), Identity::generate());
        let recipients = vec![named("daily", &daily), named("offline", &offline)];
        let host = init(&cluster(), recipients, Timestamp::UNIX_EPOCH).unwrap();
        let (own, audit) = (std::slice::from_ref(&daily), Identity::generate());
        let mut changed = host.clone();
        changed.recipients[1].recipient = thief.recipient();
        // An epoch that the changed file begins is the thief's to read; none before it becomes so.
        rotate(&mut changed, Timestamp::UNIX_EPOCH).unwrap();
        let before = changed.clone();
        let error = add(&mut changed, named("audit", &audit), own).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains("offline") && error.to_string().contains("e0001"), "{error}");
        changed.recipients.push(named("third", &audit));
        assert_eq!(
            remove(&mut changed, "third", own, Timestamp::UNIX_EPOCH).unwrap_err().kind(),
            Kind::Refused
        );
        changed.recipients.pop();
        assert_eq!(changed, before, "a failed change changes nothing");
        // Whoever names the key himself vouches for it.
        let mut one = host.clone();
        one.recipients.pop();
        add(&mut one, named("third", &thief), own).unwrap();
        prove(&one, std::slice::from_ref(&thief)).unwrap();

        let mut exchanged = host;
        exchanged.epochs[0].recipient = EpochKey::generate(Epoch::FIRST).recipient();
        let error = prove_recipients(&exchanged, own).unwrap_err();
        assert!(error.to_string().contains("another key"), "{error}");
        assert_eq!(error.kind(), Kind::Key);
    }
}
