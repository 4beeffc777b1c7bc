//! Which keys are at hand for a repository, and opening and making what is sealed.
//!
//! ```text
//!  host file      ─► seal key, epoch's public key      write: everything       read: what stands in clear, and whose it is
//!  identity file  ─► wraps in the repository ─► epochs' secrets, seal key       read: everything
//! ```
//! Invariants: a folder that says it is sealed is opened only with its seal key, and its identity must bear that key's mac; nothing sealed is
//! written to a folder that lacks its epoch's wraps; wraps that disagree about the seal key are refused, unless the host file or a fingerprint
//! says which one is right. The wraps are read when the first secret is needed. Of a secret that is not at hand only what needs it fails: an
//! identity that opens nothing stops nobody who pushes. Source of truth: REPOSITORY.md 5, FORMAT.md "Sealed folders".

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::objects::{Ancestry, Closing, Identity as FolderIdentity};
use super::path::{BackupObject, SystemKeys, SystemObject};
use super::walobject::{Lock, Sealer};
use super::{RepoError, Repository, System};
use crate::seal::parts::Held;
use crate::seal::wrap::MAX_WRAP;
use crate::seal::{
    AGE_MAGIC, Epoch, Fingerprint, HostEpoch, HostFile, Identity, Opened, Opener, SealError, SealKey, Wrap,
    body,
};
use crate::store::Payload;
use crate::wal::{SystemId, TimelineHistory, TimelineId};
use chosen::{Chosen, There};

/// Wraps that are read or put at one time.
const WRAPS_AT_ONCE: usize = 16;

/// How an error begins that is about the identities at hand: what was given is not asked for again.
pub const OPENS_NOTHING: &str = "no identity at hand opens";

const NO_IDENTITY: &str = "no identity is at hand";

/// How long it is believed that no wrap opens: who reads a thousand objects of an epoch need not read its wraps a thousand times.
const LACKED_FOR: Duration = Duration::from_secs(10);

/// Secrets of epochs.
pub type Epochs = BTreeMap<Epoch, Identity>;

/// The keys that a configuration names.
#[derive(Debug, Default)]
pub struct Keyring {
    host: Option<HostFile>,
    identities: Vec<Identity>,
    expected: Option<Fingerprint>,
    problem: Option<String>,
    unlocked: Mutex<Unlocked>,
    /// What was looked for in vain, and when. Each folder has wraps of its own.
    lacked: Mutex<BTreeMap<Wanted, (Instant, Lacked)>>,
    /// It was said that the identities open nothing.
    said: AtomicBool,
}

/// Of which repository and folder the secret was, and of which epoch; of any, if none is named.
type Wanted = (String, SystemId, Option<Epoch>);

/// What a look for a secret in vain came to.
#[derive(Debug, Clone)]
enum Lacked {
    /// No wrap opens, in words.
    All(String),
    /// Others do.
    This,
}

#[derive(Debug, Default, Clone)]
struct Unlocked {
    seal: Option<SealKey>,
    epochs: Arc<Epochs>,
}

impl Keyring {
    /// The keys at hand. `expected` is the fingerprint of the seal key, as the recovery kit prints it.
    ///
    /// # Errors
    /// [`SealError::KeyFile`] if the host file's seal key is not the expected one.
    pub fn new(
        host: Option<HostFile>,
        identities: Vec<Identity>,
        expected: Option<Fingerprint>,
    ) -> Result<Self, SealError> {
        if let (Some(host), Some(expected)) = (&host, expected)
            && host.seal.fingerprint() != expected
        {
            let text = format!("its seal key has fingerprint {}, not {expected}", host.seal.fingerprint());
            return Err(SealError::KeyFile(text));
        }
        Ok(Self { host, identities, expected, ..Self::default() })
    }

    /// The same, knowing why a file of keys that was named could not be used: said when it is missed, since what needs none of it goes on.
    #[must_use]
    pub fn because(mut self, problem: Option<String>) -> Self {
        self.problem = problem;
        self
    }

    /// Why there is no key, in words.
    pub(super) fn lack(&self, otherwise: &str) -> String {
        self.problem.clone().unwrap_or_else(|| otherwise.to_owned())
    }

    /// The host file.
    pub fn host(&self) -> Option<&HostFile> {
        self.host.as_ref()
    }

    /// The identities.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// Whether anything here opens what is encrypted.
    pub fn has_identity(&self) -> bool {
        !self.identities.is_empty()
    }

    /// True if only the repository itself vouches for the seal key: whoever could replace all of it was not noticed.
    pub fn is_unverified(&self) -> bool {
        self.host.is_none() && self.expected.is_none()
    }

    /// The seal key that was found in the wraps, or that the host file holds.
    pub fn seal(&self) -> Option<SealKey> {
        self.host.as_ref().map(|host| host.seal.clone()).or_else(|| self.unlocked().seal)
    }

    fn unlocked(&self) -> Unlocked {
        self.unlocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds to what is known: one repository may have a wrap that another one lacks. Keys of another cluster take its place.
    fn keep(&self, mut found: Unlocked) -> Unlocked {
        let mut known = self.unlocked.lock().unwrap_or_else(PoisonError::into_inner);
        if known.seal == found.seal {
            let mut all = Epochs::clone(&known.epochs);
            all.extend(found.epochs.iter().map(|(epoch, identity)| (*epoch, identity.clone())));
            found.epochs = Arc::new(all);
        }
        *known = found.clone();
        found
    }

    /// What a look for the secret of `wanted` came to a moment ago, if in vain.
    fn lacked(&self, wanted: &Wanted) -> Option<Lacked> {
        let lacked = self.lacked.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lacked.get(wanted).filter(|(at, _)| at.elapsed() < LACKED_FOR);
        found.map(|(_, what)| what.clone())
    }

    fn note_lack(&self, wanted: Wanted, what: Lacked) {
        let mut lacked = self.lacked.lock().unwrap_or_else(PoisonError::into_inner);
        lacked.insert(wanted, (Instant::now(), what));
    }

    fn trusts(&self) -> Option<Fingerprint> {
        self.host.as_ref().map(|host| host.seal.fingerprint()).or(self.expected)
    }

    /// What those of `wraps` hold that open here and bear the seal key that is believed.
    ///
    /// # Errors
    /// In words, if they do not add up to one cluster's keys.
    pub fn open_wraps(&self, cluster: &str, wraps: &[(Epoch, u32, Wrap)]) -> Result<Vec<Opened>, String> {
        let opened = wraps.iter().filter_map(|(e, _, wrap)| wrap.open(&self.identities, cluster, *e).ok());
        let believed =
            |found: &Opened| self.trusts().is_none_or(|trusted| trusted == found.seal.fingerprint());
        let opened: Vec<Opened> = opened.filter(believed).collect();
        if !opened.is_empty() {
            self.agree(opened.clone())?;
        }
        Ok(opened)
    }

    /// What the wraps that could be opened add up to.
    fn agree(&self, opened: Vec<Opened>) -> Result<Unlocked, String> {
        let mut seal: Option<SealKey> = None;
        let mut epochs = Epochs::new();
        for found in opened {
            if self.trusts().is_some_and(|trusted| trusted != found.seal.fingerprint()) {
                continue;
            }
            if seal.as_ref().is_some_and(|seal| *seal != found.seal) {
                return Err("its wraps hold different seal keys".to_owned());
            }
            let (epoch, identity) = (found.key.epoch, found.key.identity);
            let same = |other: &Identity| other.recipient() == identity.recipient();
            if epochs.get(&epoch).is_some_and(|other| !same(other)) {
                return Err(format!("the wraps of epoch {epoch} hold different keys"));
            }
            seal = Some(found.seal);
            epochs.insert(epoch, identity);
        }
        match (&seal, self.trusts()) {
            (None, Some(_)) => Err("no wrap holds the seal key whose fingerprint was given".to_owned()),
            _ => Ok(Unlocked { seal, epochs: Arc::new(epochs) }),
        }
    }
}

/// What a sealed folder is worked on with.
#[derive(Debug)]
pub(super) struct FolderSeal {
    key: SealKey,
    /// The wraps of the current epoch were seen in the folder, or put there.
    wrapped: AtomicBool,
}

impl Repository {
    /// Whether the seal key that is believed here, whatever the repository says, is the one with this fingerprint.
    pub fn believes(&self, fingerprint: &str) -> bool {
        let asked = fingerprint.parse().ok();
        asked.is_some() && self.keys().and_then(Keyring::trusts) == asked
    }

    /// Checks that an identity is what the configuration says of the repository, and that the cluster's seal key vouches for it.
    pub(super) async fn seal_of(
        &self,
        key: &str,
        bytes: &[u8],
        identity: &FolderIdentity,
    ) -> Result<Option<Arc<FolderSeal>>, RepoError> {
        if !identity.sealed {
            return if self.is_to_be_sealed() {
                Err(RepoError::NotSealed { repository: self.name().to_owned() })
            } else {
                Ok(None)
            };
        }
        let seal = self.seal_key(identity.system).await?;
        super::objects::decode_as::<FolderIdentity>(bytes, Closing::Mac { seal: &seal, place: key })
            .map_err(|e| self.document_error(key, &e))?;
        Ok(Some(Arc::new(FolderSeal { key: seal, wrapped: AtomicBool::new(false) })))
    }

    /// What all that is put here will be sealed with, where the keys alone say so, whatever the folder says.
    pub fn seals_with(&self) -> Option<Sealer> {
        let host = self.keys().filter(|_| self.is_to_be_sealed()).and_then(Keyring::host)?;
        let epoch = host.current()?;
        Some(Sealer { key: host.seal.clone(), epoch: epoch.epoch, recipient: epoch.recipient.clone() })
    }

    async fn seal_key(&self, system: SystemId) -> Result<SealKey, RepoError> {
        let missing =
            |what: &str| RepoError::NoKeys { repository: self.name().to_owned(), what: what.to_owned() };
        let ring = self.keys().ok_or_else(|| missing("no keys are configured"))?;
        if let Some(seal) = ring.seal() {
            return Ok(seal);
        }
        if let Some(seal) = self.unlock(system, None).await?.seal {
            return Ok(seal);
        }
        let lack = ring.lack("neither a host file nor an identity is at hand");
        Err(missing(&format!("{lack}{}", self.epochs_there(system).await)))
    }

    /// Which epochs the wraps in a folder are of, in brackets, to be said of a key that is missing. Nothing if the store does not say.
    pub async fn epochs_there(&self, system: SystemId) -> String {
        let keys = SystemKeys::new(self.cluster(), system, super::path::Sealing::Sealed);
        let listed = self.store().list(&keys.wrap_dir()).await.unwrap_or_default();
        let epochs = listed.iter().filter_map(|object| match keys.parse(&object.key) {
            Some(SystemObject::Wrap(epoch, _)) => Some(epoch),
            _ => None,
        });
        said_of(&epochs.collect())
    }

    /// Reads the wraps, if the secret of `wanted` is not known yet; without one, if none is.
    async fn unlock(&self, system: SystemId, wanted: Option<Epoch>) -> Result<Unlocked, RepoError> {
        let Some(ring) = self.keys().filter(|ring| ring.has_identity()) else {
            return Ok(Unlocked::default());
        };
        let known = ring.unlocked();
        let enough = match wanted {
            Some(epoch) => known.epochs.contains_key(&epoch),
            None => known.seal.is_some(),
        };
        if enough {
            return Ok(known);
        }
        let in_vain = |what| RepoError::NoKeys { repository: self.name().to_owned(), what };
        let place = (self.name().to_owned(), system, wanted);
        match ring.lacked(&place) {
            Some(Lacked::All(what)) => return Err(in_vain(what)),
            Some(Lacked::This) => return Ok(known),
            None => {}
        }
        let (mut opened, mut seen, mut epochs) = (Vec::new(), 0_usize, BTreeSet::new());
        for (epoch, _, wrap) in self.wraps(system).await? {
            seen = seen.saturating_add(1);
            epochs.insert(epoch);
            // Not every wrap is for this identity, and what somebody planted is no reason to stop.
            opened.extend(wrap.open(&ring.identities, self.cluster().as_str(), epoch));
        }
        let found = opened.len();
        opened.retain(|opened| ring.trusts().is_none_or(|trusted| trusted == opened.seal.fingerprint()));
        if opened.is_empty() && found > 0 && ring.host.is_none() {
            let what = "no wrap holds the seal key whose fingerprint was given".to_owned();
            return Err(RepoError::Untrusted { repository: self.name().to_owned(), what });
        }
        if opened.is_empty() {
            let of = wanted.map(|epoch| format!(", and epoch {epoch} is needed")).unwrap_or_default();
            let what = if seen == 0 {
                format!("it holds no wraps of its keys{of}")
            } else {
                format!("{OPENS_NOTHING} any of its {seen} wraps{}{of}", said_of(&epochs))
            };
            ring.note_lack(place, Lacked::All(what.clone()));
            return Err(in_vain(what));
        }
        let unlocked = ring
            .agree(opened)
            .map_err(|what| RepoError::Untrusted { repository: self.name().to_owned(), what })?;
        let unlocked = ring.keep(unlocked);
        if wanted.is_some_and(|epoch| !unlocked.epochs.contains_key(&epoch)) {
            ring.note_lack(place, Lacked::This);
        }
        Ok(unlocked)
    }

    /// The wraps in the folder of `system`, by epoch and number. Where a host file or a fingerprint tells genuine ones from others, what
    /// somebody planted in great numbers or size is passed over, with a warning; where nothing does, it is refused.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn wraps(&self, system: SystemId) -> Result<Vec<(Epoch, u32, Wrap)>, RepoError> {
        let keys = SystemKeys::new(self.cluster(), system, super::path::Sealing::Sealed);
        let named: BTreeSet<(Epoch, u32)> = self
            .keys()
            .and_then(Keyring::host)
            .into_iter()
            .flat_map(HostFile::wraps)
            .map(|(e, n, _)| (e, n))
            .collect();
        let mut chosen = Chosen::default();
        for object in self.store().list(&keys.wrap_dir()).await? {
            let Some(SystemObject::Wrap(epoch, n)) = keys.parse(&object.key) else { continue };
            let found = There { epoch, n, size: object.size, key: object.key };
            chosen.add(found, named.contains(&(epoch, n)));
        }
        let (wanted, surplus) = chosen.finish();
        let wraps = stream::iter(wanted)
            .map(async |There { epoch, n, key, .. }| {
                let bytes = self.store().get_limited(&key, MAX_WRAP).await?;
                Ok::<_, RepoError>(bytes.map(|bytes| (epoch, n, Wrap(bytes))))
            })
            .buffered(WRAPS_AT_ONCE)
            .try_filter_map(async |found| Ok(found))
            .try_collect()
            .await?;
        let Some(first) = surplus.first() else { return Ok(wraps) };
        if self.keys().is_none_or(Keyring::is_unverified) {
            let what = format!("{first} is one wrap too many, or too large");
            return Err(RepoError::Untrusted { repository: self.name().to_owned(), what });
        }
        tracing::warn!(
            "repository {}: {} wraps were passed over, {first} first: they are too many, or too large, and somebody planted them",
            self.name(),
            surplus.len()
        );
        Ok(wraps)
    }

    /// Puts every wrap of the host file into the folder of `system`: before the first sealed object, and whenever one was added.
    ///
    /// # Errors
    /// [`RepoError::Untrusted`] if another one is there under the same name.
    pub async fn put_wraps(&self, system: SystemId, host: &HostFile) -> Result<(), RepoError> {
        let keys = SystemKeys::new(self.cluster(), system, super::path::Sealing::Sealed);
        let place =
            |(epoch, n, wrap): (Epoch, u32, &Wrap)| (keys.key(&SystemObject::Wrap(epoch, n)), wrap.0.clone());
        let put = async |(key, bytes): (String, Bytes)| {
            if self.put_bytes(&key, bytes).await?.is_some() {
                let what = format!("{key} is not the wrap that the host file holds");
                return Err(RepoError::Untrusted { repository: self.name().to_owned(), what });
            }
            Ok(())
        };
        let mut wraps: Vec<_> = host.wraps().map(place).collect();
        // Whoever seals looks for this one alone, and puts all again where it is missing: it comes after all others.
        let last = wraps.pop();
        stream::iter(wraps).map(put).buffered(WRAPS_AT_ONCE).try_collect::<()>().await?;
        match last {
            Some(last) => put(last).await,
            None => Ok(()),
        }
    }
}

impl System {
    /// The cluster's seal key, if the folder is sealed.
    pub fn seal_key(&self) -> Option<&SealKey> {
        self.seal.as_ref().map(|seal| &seal.key)
    }

    /// Whether what is encrypted here can be opened: true of a plain folder.
    pub fn can_open(&self) -> bool {
        self.seal.is_none() || self.repository.keys().is_some_and(Keyring::has_identity)
    }

    /// Whether a secret at hand opens what was sealed in `epoch`; true of what was not.
    ///
    /// # Errors
    /// What is wrong with the wraps, but for want of a key.
    pub async fn opens(&self, epoch: Option<Epoch>) -> Result<bool, RepoError> {
        let Some(epoch) = epoch else { return Ok(true) };
        match self.epochs(Some(epoch)).await {
            Ok(epochs) => Ok(epochs.contains_key(&epoch)),
            Err(RepoError::NoKeys { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Checks that what is encrypted here can be opened, as far as that is known before anything is.
    ///
    /// # Errors
    /// [`RepoError::NoKeys`].
    pub async fn require_open(&self) -> Result<(), RepoError> {
        if self.can_open() {
            return Ok(());
        }
        let what = format!("{}{}", self.lack(), self.repository.epochs_there(self.identity.system).await);
        Err(RepoError::NoKeys { repository: self.repository.name().to_owned(), what })
    }

    /// True if the folder is sealed and only the repository itself vouches for its seal key.
    pub fn is_unverified(&self) -> bool {
        self.seal.is_some() && self.repository.keys().is_none_or(Keyring::is_unverified)
    }

    /// What to seal with; `None` in a plain folder. The folder has the wraps of that epoch afterwards.
    ///
    /// # Errors
    /// [`RepoError::NoKeys`] without a host file.
    pub async fn sealer(&self) -> Result<Option<Sealer>, RepoError> {
        let Some(seal) = &self.seal else { return Ok(None) };
        let lacking = |what: &str| RepoError::NoKeys {
            repository: self.repository.name().to_owned(),
            what: what.to_owned(),
        };
        let ring = self.repository.keys();
        let lack = ring.map_or_else(String::new, |ring| ring.lack("it is not named in the configuration"));
        let host = ring.and_then(Keyring::host);
        let host = host.ok_or_else(|| lacking(&format!("writing takes the host file; {lack}")))?;
        let epoch = host.current().ok_or_else(|| lacking("the host file names no epoch"))?;
        if !seal.wrapped.load(Ordering::Acquire) {
            self.make_sure_of_wraps(host, epoch).await?;
            seal.wrapped.store(true, Ordering::Release);
        }
        Ok(Some(Sealer { key: seal.key.clone(), epoch: epoch.epoch, recipient: epoch.recipient.clone() }))
    }

    /// Looks at the wraps again, and as [`Self::sealer`] does puts them back or refuses: for who worked long since it looked.
    ///
    /// # Errors
    /// As [`Self::sealer`].
    pub(crate) async fn look_at_wraps_again(&self) -> Result<(), RepoError> {
        if let Some(seal) = &self.seal {
            seal.wrapped.store(false, Ordering::Release);
        }
        self.sealer().await.map(drop)
    }

    /// Nobody must be able to store what nobody can ever read: the newest wrap of `epoch` is here, and it is the host file's. One that is not
    /// here is put back, since the host file has it; an epoch that began a moment ago is no reason to stop the archiver. It is said aloud:
    /// of an older epoch, somebody deleted it.
    async fn make_sure_of_wraps(&self, host: &HostFile, epoch: &HostEpoch) -> Result<(), RepoError> {
        let last = u32::try_from(epoch.wraps.len()).unwrap_or(u32::MAX);
        let key = self.keys.key(&SystemObject::Wrap(epoch.epoch, last));
        let wanted = epoch.wraps.last();
        let mut stored = self.store().get_limited(&key, MAX_WRAP).await?;
        if stored.is_none() {
            self.repository.put_wraps(self.identity.system, host).await?;
            tracing::warn!(
                "repository {} lacked {key}: it was put there from the host file. If epoch {} is not new, somebody deleted it",
                self.repository.name(),
                epoch.epoch
            );
            stored = self.store().get_limited(&key, MAX_WRAP).await?;
        }
        if wanted.is_some_and(|wrap| Some(&wrap.0) == stored.as_ref()) {
            return Ok(());
        }
        let what = format!("{key} is not the wrap that the host file holds");
        Err(RepoError::Untrusted { repository: self.repository.name().to_owned(), what })
    }

    /// Why something cannot be opened here, in words.
    pub(super) fn lack(&self) -> String {
        match self.repository.keys() {
            Some(ring) if ring.has_identity() => format!("{OPENS_NOTHING} a wrap of it"),
            Some(ring) => ring.lack(NO_IDENTITY),
            None => NO_IDENTITY.to_owned(),
        }
    }

    /// Checks that the folder has the wrap of the epoch, before an object that it sealed elsewhere is put here. Of an epoch that the host file
    /// knows it is the host file's.
    pub(super) async fn has_wraps(&self, epoch: Option<Epoch>) -> Result<(), RepoError> {
        let Some(epoch) = epoch.filter(|_| self.seal.is_some()) else { return Ok(()) };
        let host = self.repository.keys().and_then(Keyring::host);
        if host.is_some_and(|host| host.epoch == epoch) {
            return self.sealer().await.map(drop);
        }
        if let Some((host, known)) =
            host.and_then(|host| Some((host, host.epochs.iter().find(|e| e.epoch == epoch)?)))
        {
            return self.make_sure_of_wraps(host, known).await;
        }
        let key = self.keys.key(&SystemObject::Wrap(epoch, 1));
        if self.store().head(&key).await?.is_some() {
            return Ok(());
        }
        let what = format!(
            "{key} is missing, without which nothing of that epoch can be read; `pitr init` puts it there"
        );
        Err(RepoError::NoKeys { repository: self.repository.name().to_owned(), what })
    }

    /// The secrets at hand, that of `wanted` among them if it can be had. None at all is no error: what needs none goes on.
    pub(super) async fn epochs(&self, wanted: Option<Epoch>) -> Result<Arc<Epochs>, RepoError> {
        if self.seal.is_none() {
            return Ok(Arc::default());
        }
        match (self.repository.unlock(self.identity.system, wanted).await, wanted) {
            (Ok(unlocked), _) => Ok(unlocked.epochs),
            (Err(RepoError::NoKeys { what, .. }), None) => {
                let ring = self.repository.keys();
                if ring.is_some_and(|ring| !ring.said.swap(true, Ordering::Relaxed)) {
                    tracing::warn!("repository {}: {what}; what needs none goes on", self.repository.name());
                }
                Ok(Arc::default())
            }
            (Err(e), _) => Err(e),
        }
    }

    /// How objects are told from forged ones and opened, with these secrets.
    pub(super) fn lock<'a>(&'a self, epochs: &'a Epochs) -> Lock<'a> {
        match &self.seal {
            None => Lock::None,
            Some(seal) => Lock::Sealed { key: &seal.key, epochs },
        }
    }

    /// The bytes of an object of a backup as they are stored: as they are, or sealed. Also the epoch that they take.
    ///
    /// # Errors
    /// As [`Self::sealer`].
    pub async fn seal_data(&self, chunks: Vec<Bytes>) -> Result<Vec<Bytes>, RepoError> {
        let Some(sealer) = self.sealer().await? else { return Ok(chunks) };
        let work = tokio::task::spawn_blocking(move || body::encrypt(chunks, &[&sealer.recipient]));
        let sealed = work.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        sealed.map_err(|e| RepoError::Unwritable { key: self.keys.backups_dir(), what: e.to_string() })
    }

    /// The plain bytes of an object of a backup whose digest was found right, and which its verdict says to be sealed with `epoch`.
    ///
    /// # Errors
    /// [`RepoError::Sealed`] if no key at hand opens it.
    pub async fn unsealed(&self, key: &str, epoch: Option<Epoch>, stored: Bytes) -> Result<Bytes, RepoError> {
        if self.seal.is_none() {
            return Ok(stored);
        }
        self.opened(key, epoch, move |opener| opener.plain(&stored)).await
    }

    /// Some plain bytes of an object of a backup, of which those parts are at hand that [`Opener::range`] needs. No digest was looked at:
    /// the caller holds what comes back against one.
    ///
    /// # Errors
    /// [`RepoError::Sealed`] if no key at hand opens it, and if it was changed: parts do not tell one from the other.
    pub async fn unsealed_range(
        &self,
        key: &str,
        epoch: Option<Epoch>,
        held: Held,
        plain: Range<u64>,
    ) -> Result<Bytes, RepoError> {
        self.opened(key, epoch, move |opener| opener.range(held.clone(), &plain)).await
    }

    /// What `open` makes with the secrets at hand, that of `epoch` among them if it can be had.
    async fn opened<F>(&self, key: &str, epoch: Option<Epoch>, open: F) -> Result<Bytes, RepoError>
    where
        F: Fn(Opener<'_>) -> Result<Vec<u8>, SealError> + Send + Sync + 'static,
    {
        let epochs = self.epochs(epoch).await?;
        let known = epoch.is_none_or(|epoch| epochs.contains_key(&epoch));
        open_data(epochs, Arc::new(open)).await.map_err(|e| {
            let what = match epoch {
                Some(epoch) if !known => format!("it takes the key of epoch {epoch}; {}", self.lack()),
                _ => e.to_string(),
            };
            RepoError::Sealed { repository: self.repository.name().to_owned(), key: key.to_owned(), what }
        })
    }

    /// The last guard: nothing of a backup's data is put into a sealed folder as it is.
    pub(super) fn check_sealed(
        &self,
        key: &str,
        object: BackupObject,
        body: &Payload,
    ) -> Result<(), RepoError> {
        let data = matches!(
            object,
            BackupObject::Pack(_)
                | BackupObject::Manifest
                | BackupObject::PgManifest
                | BackupObject::Catalogue
        );
        let encrypted = body.chunks().first().is_some_and(|chunk| chunk.starts_with(AGE_MAGIC));
        if self.seal.is_none() || !data || encrypted {
            return Ok(());
        }
        Err(RepoError::Unwritable { key: key.to_owned(), what: "it is not encrypted".to_owned() })
    }

    /// The parents of a timeline, for who cannot open its history file. That the history is stored was found out before.
    pub(super) async fn ancestry(&self, timeline: TimelineId) -> Result<TimelineHistory, RepoError> {
        let key = self.keys.key(&SystemObject::Ancestry(timeline));
        let ancestry = self.get_document::<Ancestry>(&key).await?;
        let ancestry = ancestry.ok_or_else(|| self.repository.missing(&key))?;
        if ancestry.timeline != timeline {
            return Err(self.repository.corrupt(&key, &"it is that of another timeline"));
        }
        ancestry.history().map_err(|e| self.repository.corrupt(&key, &e))
    }

    /// Puts the parents of a timeline into a sealed folder, before its history file; false if others are there.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn put_ancestry(&self, history: &TimelineHistory) -> Result<bool, RepoError> {
        if self.seal.is_none() {
            return Ok(true);
        }
        let ours = Ancestry::of(history);
        let key = self.keys.key(&SystemObject::Ancestry(history.timeline()));
        match self.put_document(&key, &ours).await? {
            super::document::Put::Ours => Ok(true),
            super::document::Put::Theirs(theirs) => Ok(theirs == ours),
        }
    }
}

/// Names of epochs, for a sentence that ends so.
fn said_of(epochs: &BTreeSet<Epoch>) -> String {
    let names: Vec<String> = epochs.iter().map(ToString::to_string).collect();
    match names.len() {
        0 => String::new(),
        1 => format!(" (key epoch {})", names.concat()),
        _ => format!(" (key epochs {})", names.join(", ")),
    }
}

/// Opening takes a processor for long: not on the reactor.
async fn open_data<F>(epochs: Arc<Epochs>, open: Arc<F>) -> Result<Bytes, SealError>
where
    F: Fn(Opener<'_>) -> Result<Vec<u8>, SealError> + Send + Sync + 'static,
{
    let work = tokio::task::spawn_blocking(move || {
        let identities: Vec<Identity> = epochs.values().rev().cloned().collect();
        open(Opener(&identities))
    });
    let opened = work.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    opened.map(Bytes::from)
}

mod chosen;
#[cfg(test)]
mod tests;
