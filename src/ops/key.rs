//! `key`: the cluster's keys, made and handed on. Only here are new secrets made.
//!
//! ```text
//!  init     seal key, epoch e0001, its wrap for all recipients ─► host file
//!  rotate   the next epoch, wrapped for the same recipients    ─► host file ─► repositories          takes no secret
//!  add      a new wrap of every epoch                          ─► host file ─► repositories          takes an identity that opens them
//!  remove   the next epoch, without whom is removed            ─► host file ─► repositories          the same
//!  recover  all of it from the wraps, and the next epoch       ─► new host file ─► repositories      the same
//! ```
//! The host file is written first, the repositories follow; whoever dies in between has lost nothing, since a push puts what its folder
//! lacks. What was made is opened again with every identity at hand before anything is written, and nothing is that would be too much to be
//! read: a repository that can never be opened again is worse than a change that is refused. Nothing that is stored is rewritten.
//! The host file belongs to the server's user, so it is not believed about who may read what is stored already: an epoch is wrapped anew
//! only for whom a wrap of it names, and for whom the operator names. Rules: REPOSITORY.md 5.

mod recover;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use recover::{Folders, recover};

use crate::clock;
use crate::codec::len_u64;
use crate::error::{Error, Result};
use crate::repo::path::{ClusterName, Sealing};
use crate::repo::{Repository, System};
use crate::seal::host::MAX_HOST_FILE;
use crate::seal::wrap::{MAX_WRAP, MAX_WRAPS, MOST_WRAPS};
use crate::seal::{
    Epoch, EpochKey, HostEpoch, HostFile, Identity, NamedRecipient, Opened, Recipient, SealError, SealKey,
    Wrap,
};
use crate::wal::SystemId;

/// Fewest recipients: the one for every day, and the one that lies elsewhere.
pub const FEWEST: usize = 2;

const BEGIN_ANEW: &str = "begin anew: `pitr key init` makes other keys, and `pitr init` another URL with them; keep this repository until its backups are not needed any more";

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
    is_readable(&host)?;
    Ok(host)
}

/// Begins the next epoch, or changes nothing.
///
/// # Errors
/// Kind `Failed` after epoch 9999, `Refused` if the host file would be too large.
pub fn rotate(host: &mut HostFile, now: Timestamp) -> Result<Epoch> {
    let newest = host.epochs.last().map_or(Epoch::FIRST, |e| e.epoch);
    let next = newest.next().ok_or_else(|| Error::failed("there is no key epoch after e9999"))?;
    let mut changed = host.clone();
    begin(&mut changed, next, now)?;
    is_readable(&changed)?;
    *host = changed;
    Ok(next)
}

/// Checks that no bound is passed at which readers stop, before anything of it is written.
///
/// # Errors
/// Kind `Refused`.
fn is_readable(host: &HostFile) -> Result<()> {
    let wraps = host.wraps().count();
    if wraps > MOST_WRAPS {
        return Err(Error::refused(format!(
            "the host file would hold {wraps} wraps, and no more than {MOST_WRAPS} are ever read: nothing was changed"
        ))
        .hint(BEGIN_ANEW));
    }
    if let Some((epoch, n, _)) = host.wraps().find(|(_, n, _)| *n > MAX_WRAPS) {
        return Err(Error::refused(format!(
            "epoch {epoch} would have {n} wraps, and no more than {MAX_WRAPS} of one are ever read: nothing was changed"
        ))
        .hint(BEGIN_ANEW));
    }
    if let Some((epoch, _, wrap)) = host.wraps().find(|(_, _, wrap)| len_u64(&wrap.0) > MAX_WRAP) {
        return Err(Error::refused(format!(
            "a wrap of epoch {epoch} for {} recipients would have {} bytes, and no more than {MAX_WRAP} are ever read: nothing was changed",
            host.recipients.len(),
            wrap.0.len()
        ))
        .hint("fewer recipients: people who share a duty may share a key"));
    }
    let bytes = host.most_bytes();
    if bytes > MAX_HOST_FILE {
        return Err(Error::refused(format!(
            "the host file would have {bytes} bytes, and no more than {MAX_HOST_FILE} are ever read: nothing was changed"
        ))
        .hint(BEGIN_ANEW));
    }
    Ok(())
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
/// Kind `Usage` for a name or a key that is there already; kind `Key` if no identity opens one of the epochs; kind `Refused` if it would be
/// too much to be read.
pub fn add(host: &mut HostFile, new: NamedRecipient, identities: &[Identity]) -> Result<()> {
    let mut recipients = host.recipients.clone();
    let public = new.recipient.clone();
    recipients.push(new);
    enough(&recipients)?;
    let mut changed = host.clone();
    let opened = vouched(host, &recipients, Some(&public), identities)?;
    let keys: Vec<&Recipient> = recipients.iter().map(|r| &r.recipient).collect();
    for (epoch, opened) in changed.epochs.iter_mut().zip(opened) {
        epoch.wraps.push(opened.wrap(&host.cluster, &keys).map_err(unwrappable)?);
    }
    changed.recipients = recipients;
    is_readable(&changed)?;
    prove_recipients(&changed, identities)?;
    *host = changed;
    Ok(())
}

/// Takes a recipient out, and begins the next epoch without him: of the present one and those before he has the keys, and the others have
/// wraps, so that nothing is wrapped anew. What was stored before he can read still. All of it or nothing.
///
/// # Errors
/// Kind `NotFound` for a name that is none, `Usage` if too few would be left, `Key` if no identity opens one of the
/// epochs, `Refused` for a recipient for whom nothing but the host file speaks, and as [`rotate`].
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
    vouched(host, &recipients, None, identities)?;
    let mut changed = HostFile { recipients, ..host.clone() };
    let epoch = rotate(&mut changed, now)?;
    prove_recipients(&changed, identities)?;
    *host = changed;
    Ok(epoch)
}

/// Every epoch, opened, where the wraps speak for all of `recipients` but `new`, whom the operator names.
///
/// # Errors
/// Kind `Key` if no identity opens one of the epochs; kind `Refused` for a recipient for whom nothing but the host file speaks.
fn vouched(
    host: &HostFile,
    recipients: &[NamedRecipient],
    new: Option<&Recipient>,
    identities: &[Identity],
) -> Result<Vec<Opened>> {
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
    Ok(opened)
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
        let name = |epoch: Epoch, n: u32| format!("{epoch}/wrap-{n:04}.age");
        let stored = repository.wraps(system).await?.into_iter();
        let stored: BTreeMap<(Epoch, u32), Wrap> = stored.map(|(e, n, wrap)| ((e, n), wrap)).collect();
        let own: BTreeMap<(Epoch, u32), &Wrap> = host.wraps().map(|(e, n, wrap)| ((e, n), wrap)).collect();
        let missing = own.keys().filter(|place| !stored.contains_key(place));
        let missing = missing.map(|(epoch, n)| name(*epoch, *n)).collect();
        let strange = stored.iter().filter(|(place, found)| own.get(place) != Some(found));
        let strange = strange.map(|((epoch, n), _)| name(*epoch, *n)).collect();
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

    #[test]
    fn who_is_removed_costs_one_wrap_and_not_one_of_every_epoch() {
        let (daily, offline) = (Identity::generate(), Identity::generate());
        let recipients = vec![named("daily", &daily), named("offline", &offline)];
        let mut host = init(&cluster(), recipients, Timestamp::UNIX_EPOCH).unwrap();
        let own = std::slice::from_ref(&offline);
        let mut wraps = vec![host.wraps().count()];
        for _ in 0..4 {
            add(&mut host, named("late", &Identity::generate()), own).unwrap();
            wraps.push(host.wraps().count());
            remove(&mut host, "late", own, Timestamp::UNIX_EPOCH).unwrap();
            wraps.push(host.wraps().count());
        }
        assert_eq!(wraps, [1, 2, 3, 5, 6, 9, 10, 14, 15]);
        prove(&host, &[daily, offline]).unwrap();
    }

    /// Changes a host file by each of the commands that write one; what they say, if they refuse. The file is as it was then.
    fn refusals(host: &HostFile, own: &[Identity]) -> Vec<Option<Error>> {
        let now = Timestamp::UNIX_EPOCH;
        let tried = |change: &dyn Fn(&mut HostFile) -> Result<()>| {
            let mut changed = host.clone();
            let error = change(&mut changed).err();
            assert_eq!(error.is_some(), changed == *host, "a failed change changes nothing");
            assert!(
                error.as_ref().is_none_or(|e| e.kind() == Kind::Refused && e.advice().is_some()),
                "{error:?}"
            );
            error
        };
        vec![
            tried(&|host| add(host, named("late", &Identity::generate()), own)),
            tried(&|host| remove(host, "third", own, now).map(drop)),
            tried(&|host| rotate(host, now).map(drop)),
        ]
    }

    #[test]
    fn no_command_writes_more_than_is_ever_read() {
        let (daily, offline, third) = (Identity::generate(), Identity::generate(), Identity::generate());
        let recipients = vec![named("daily", &daily), named("offline", &offline), named("third", &third)];
        let mut host = init(&cluster(), recipients, Timestamp::UNIX_EPOCH).unwrap();
        let own = std::slice::from_ref(&offline);
        assert!(refusals(&host, own).iter().all(Option::is_none));
        let said = |host: &HostFile| {
            let found = refusals(host, own).into_iter();
            found.map(|e| e.map(|e| e.message().to_owned()).unwrap_or_default()).collect::<Vec<_>>()
        };
        // Of one epoch.
        // What nobody opens is passed over soonest.
        let genuine = host.epochs[0].wraps[0].clone();
        let most = usize::try_from(MAX_WRAPS).unwrap();
        host.epochs[0].wraps.splice(0..0, vec![Wrap("nothing".into()); most - 1]);
        let all = said(&host);
        assert!(all[0].contains("e0001 would have 1000 wraps") && all[1..].concat().is_empty(), "{all:?}");
        // In all.
        host.epochs[0].wraps = vec![genuine];
        let mut many = host.clone();
        while many.epochs.len() < 101 {
            rotate(&mut many, Timestamp::UNIX_EPOCH).unwrap();
        }
        let mut room = MOST_WRAPS - many.wraps().count();
        for epoch in &mut many.epochs {
            let more = room.min(990);
            epoch.wraps.splice(0..0, vec![Wrap("nothing".into()); more]);
            room -= more;
        }
        assert_eq!(many.wraps().count(), MOST_WRAPS);
        let error = rotate(&mut many, Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(error.message().contains("100001 wraps, and no more than 100000"), "{error}");
        // In bytes.
        let mut large = host.clone();
        large.epochs[0].wraps.splice(0..0, vec![Wrap(vec![7; 64 << 10].into()); 511]);
        let room = usize::try_from((MAX_HOST_FILE - large.most_bytes() - 32) / 2).unwrap();
        large.epochs[0].wraps.insert(0, Wrap(vec![7; room].into()));
        assert!(is_readable(&large).is_ok() && large.most_bytes() + 1 >= MAX_HOST_FILE);
        let all = said(&large);
        assert!(all.iter().all(|said| said.contains("bytes, and no more than 67108864")), "{all:?}");
        // For too many people.
        let mut crowd: Vec<NamedRecipient> = host.recipients.clone();
        crowd.extend((0..600).map(|n| named(&n.to_string(), &Identity::generate())));
        let error = init(&cluster(), crowd, Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(error.message().contains("for 603 recipients would have"), "{error}");
    }
}
