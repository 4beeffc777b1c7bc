//! WAL in a repository: put it once, get it back whole, and say "not there" only when that is proven.
//!
//! ```text
//!  put     create ─ exists? ─► read the header: equal, covered, an unfinished copy to store beside, or two histories
//!  get     first copy ─ unfinished? ─► later copies ─► the longest
//!  absent  404, identity read, not below the floor, and no later segment of the timeline: then, and only then
//! ```
//! Invariants: nothing that is stored is replaced; every byte handed out was checked against the tag; doubt is an error or
//! [`Absence::Doubt`], never "absent". Source of truth: FORMAT.md, "WAL objects".

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::annex::{Annex, AnnexError};
use super::document::{ATTEMPTS, PAUSE, Put};
use super::keys::Epochs;
use super::objects::{AcceptedGap, Floor};
use super::path::SystemObject;
use super::walobject::{
    Asked, HEADER_BYTES, INFO_BYTES, Lock, SameName, Side, WalEnd, WalHeader, WalObject, WalObjectError,
    check_body, compare, open_with, parse_info_with, stored_prefix,
};
use super::{RepoError, System};
use crate::clock;
use crate::codec::Digest;
use crate::seal::{Epoch, SealKey};
use crate::store::{Created, ObjectInfo, StoreError, StoreErrorKind};
use crate::wal::{Lsn, SegmentName, TimelineHistory, TimelineId, WalFileName};

/// Copies of one segment: each is longer than the one before, so more than a few mean that something is wrong.
pub const MAX_COPIES: u32 = 99;
/// As [`INFO_BYTES`], of a sealed object: header, age's own header, and the first chunk, which opens only whole.
const SEALED_INFO_BYTES: u64 = 80 << 10;
/// What a put came to. All but the last are success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// The object is new.
    New,
    /// The same bytes were there.
    AlreadyThere,
    /// A stored copy holds all valid WAL of this one: nothing was written.
    Covered,
    /// A shorter copy was there; this one is stored beside it, with this number.
    LongerCopy(u32),
    /// Other content is stored under this name; nothing was written.
    Conflict(Box<WalHeader>),
}

/// A WAL object as fetched, not yet opened.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Its header.
    pub header: WalHeader,
    /// Which copy it is.
    pub copy: u32,
    key: String,
    repository: String,
    asked: Asked,
    object: Bytes,
    seal: Option<SealKey>,
    epochs: Arc<Epochs>,
    lack: Option<String>,
}

impl Fetched {
    /// Bytes of the object.
    pub fn stored(&self) -> u64 {
        crate::codec::len_u64(&self.object)
    }

    /// Hands the plain bytes to `plain`, checking everything. Takes as long as decompressing does: not for a thread of the
    /// runtime.
    ///
    /// # Errors
    /// [`RepoError::Corrupt`]; what was handed out must then be thrown away.
    pub fn open(&self, plain: impl FnMut(&[u8])) -> Result<(), RepoError> {
        let opened = open_with(&self.object, &self.asked, self.lock(), plain);
        opened.map(|_| ()).map_err(|e| self.error(&e))
    }

    fn error(&self, error: &WalObjectError) -> RepoError {
        object_error(&self.repository, &self.key, error, self.lack.as_deref())
    }

    fn lock(&self) -> Lock<'_> {
        match &self.seal {
            None => Lock::None,
            Some(key) => Lock::Sealed { key, epochs: &self.epochs },
        }
    }

    /// Whether the plain bytes can be had: false of a sealed object without its key.
    pub fn can_open(&self) -> bool {
        self.header.key.is_none_or(|epoch| self.epochs.contains_key(&epoch))
    }

    /// All that can be checked without opening: whose it is, that it was not forged, and that no byte changed.
    ///
    /// # Errors
    /// [`RepoError::Corrupt`], [`RepoError::Forged`].
    pub fn check_stored(&self) -> Result<(), RepoError> {
        let checked = check_body(&self.object, &self.asked, self.lock());
        checked.map(drop).map_err(|e| self.error(&e))
    }

    /// Whether it is `plain` that is stored, by the tag: what may be asked without opening it. Takes as long as hashing does.
    pub fn holds(&self, plain: &[u8]) -> bool {
        let digest = Digest::of(plain);
        let tag = match &self.seal {
            None => digest,
            Some(key) => key.tag(&self.asked.system, &self.asked.name, crate::codec::len_u64(plain), &digest),
        };
        tag == self.header.tag
    }

    /// The object as it is stored, to be stored elsewhere: whole, authentic, and checked without being decoded.
    ///
    /// # Errors
    /// [`RepoError::Corrupt`], [`RepoError::Forged`].
    pub fn verbatim(&self) -> Result<WalObject, RepoError> {
        let header = check_body(&self.object, &self.asked, self.lock()).map_err(|e| self.error(&e))?;
        Ok(WalObject::verbatim(header, self.object.clone(), None))
    }

    /// As [`Self::verbatim`], of an object that is not sealed, so that a sealed folder can take it. Takes as long as decompressing does: not
    /// for a thread of the runtime.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn for_sealing(&self) -> Result<WalObject, RepoError> {
        let valid = self.header.valid.zip(self.header.segment_start());
        let end = valid.map_or(0, |(valid, start)| valid.to.bytes_since(start));
        let prefix =
            stored_prefix(&self.object, &self.asked, end, self.lock()).map_err(|e| self.error(&e))?;
        Ok(WalObject::verbatim(self.header.clone(), self.object.clone(), Some(prefix)))
    }

    /// What the annex says.
    ///
    /// # Errors
    /// [`RepoError::Corrupt`].
    pub fn annex(&self) -> Result<Annex, RepoError> {
        let parsed = parse_info_with(&self.object, true, self.lock());
        parsed.map(|(_, annex)| annex).map_err(|e| self.error(&e))
    }

    /// The plain bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn plain(&self) -> Result<Vec<u8>, RepoError> {
        let mut plain = Vec::new();
        self.open(|bytes| plain.extend_from_slice(bytes))?;
        Ok(plain)
    }
}

/// What planning knows of a stored segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The segment.
    pub name: SegmentName,
    /// Which copy: the longest one.
    pub copy: u32,
    /// Its header.
    pub header: WalHeader,
    /// What the scan learned; empty if it is locked.
    pub annex: Annex,
    /// The epoch whose key it takes to know more, and that is not at hand.
    pub locked: Option<Epoch>,
}

/// A segment in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedSegment {
    /// The segment.
    pub name: SegmentName,
    /// Copies of it, at least 1.
    pub copies: u32,
    /// Bytes of all copies in the store.
    pub stored: u64,
    /// An operator accepted it with damage in it; a good copy may have come since.
    pub accepted: bool,
}

/// Whether a file that was not found is truly not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// It is not, and nothing speaks against it.
    Proven,
    /// It is there.
    Present,
    /// Retention gave it up.
    Expired,
    /// It is not there, but should be.
    Doubt(String),
}

/// Why a sealed object cannot be opened where nobody said.
const NO_KEYS: &str = "no keys are configured";

/// `lack` says why a key is not at hand.
fn object_error(repository: &str, key: &str, error: &WalObjectError, lack: Option<&str>) -> RepoError {
    let (repository, key) = (repository.to_owned(), key.to_owned());
    match error {
        WalObjectError::Sealed(_) => {
            RepoError::Sealed { repository, key, what: format!("{error}; {}", lack.unwrap_or(NO_KEYS)) }
        }
        WalObjectError::Age { .. } => RepoError::Sealed { repository, key, what: error.to_string() },
        WalObjectError::Mac | WalObjectError::Unsealed => {
            RepoError::Forged { repository, key, what: error.to_string() }
        }
        WalObjectError::Foreign { .. } => RepoError::Foreign { repository, what: format!("{key}: {error}") },
        WalObjectError::Header(super::walobject::HeaderError::NewerFormat(_)) => {
            RepoError::NewerFormat { repository, what: format!("{key}: {error}") }
        }
        WalObjectError::Header(_)
        | WalObjectError::Body
        | WalObjectError::Annex(_)
        | WalObjectError::Codec(_)
        | WalObjectError::Size { .. }
        | WalObjectError::Tag => RepoError::Corrupt { repository, key, what: error.to_string() },
    }
}

impl System {
    fn object_error(&self, key: &str, error: &WalObjectError) -> RepoError {
        let lack = self.seal_key().map(|_| self.lack());
        object_error(self.repository.name(), key, error, lack.as_deref())
    }

    /// What an object under the name must say it is.
    pub fn asked(&self, name: WalFileName) -> Asked {
        Asked { cluster: self.repository.cluster().clone(), system: self.identity.system, name }
    }

    /// Stores a WAL object. Once it returns anything but an error or a conflict, the repository holds all valid WAL of it, durably.
    ///
    /// # Errors
    /// [`RepoError::Store`], or a stored object of this name that cannot be read.
    pub async fn put_wal(&self, object: &WalObject) -> Result<Stored, RepoError> {
        let name = object.header.name;
        let form = self.form(object).await?;
        if let (WalFileName::History(timeline), Some(_)) = (name, self.seal_key())
            && let Some(stored) = self.differs_in_ancestry(timeline, object).await?
        {
            return Ok(Stored::Conflict(Box::new(stored)));
        }
        let mut copy = 1;
        let mut absent = 0;
        while absent < ATTEMPTS {
            let key = self.keys.key(&SystemObject::Wal(name, copy));
            if self.store().create(&key, form.chunks.clone()).await? == Created::New {
                return Ok(if copy == 1 { Stored::New } else { Stored::LongerCopy(copy) });
            }
            match self.relation(&key, object, &form.header).await? {
                None => {
                    absent += 1;
                    clock::sleep(PAUSE).await;
                }
                Some((SameName::Equal, _)) => return Ok(Stored::AlreadyThere),
                Some((SameName::StoredCovers, _)) => return Ok(Stored::Covered),
                Some((SameName::Extends, _)) if copy < MAX_COPIES => copy += 1,
                Some((_, stored)) => return Ok(Stored::Conflict(Box::new(stored))),
            }
        }
        Err(self.repository.unstable(&self.keys.wal(name)))
    }

    /// The object as it is stored here: as it is, or sealed. One that comes sealed from another repository must be this cluster's.
    async fn form(&self, object: &WalObject) -> Result<WalObject, RepoError> {
        if object.header.key.is_some() {
            let key = self.keys.wal(object.header.name);
            self.lock(&Epochs::new()).check(&object.header).map_err(|e| self.object_error(&key, &e))?;
            self.has_wraps(object.header.key).await?;
            return Ok(object.clone());
        }
        let Some(sealer) = self.sealer().await? else { return Ok(object.clone()) };
        let (object, key) = (object.clone(), self.keys.wal(object.header.name));
        let work = tokio::task::spawn_blocking(move || object.sealed(&sealer));
        let sealed = work.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        sealed.map_err(|e| RepoError::Unwritable { key, what: e.to_string() })
    }

    /// Puts down the parents of a timeline beside its history. If others are there, two servers were promoted to it: the stored header.
    async fn differs_in_ancestry(
        &self,
        timeline: TimelineId,
        object: &WalObject,
    ) -> Result<Option<WalHeader>, RepoError> {
        let asked = self.asked(object.header.name);
        let mut content = Vec::new();
        let key = self.keys.wal(object.header.name);
        if object.header.key.is_some() {
            // Whoever copies it has put its parents there.
            return self.ancestry(timeline).await.map(|_| None);
        }
        open_with(&object.chunks.concat(), &asked, Lock::None, |bytes| content.extend_from_slice(bytes))
            .map_err(|e| self.object_error(&key, &e))?;
        let history = TimelineHistory::parse(timeline, &content)
            .map_err(|e| RepoError::Unwritable { key: key.clone(), what: e.to_string() })?;
        if self.put_ancestry(&history).await? {
            return Ok(None);
        }
        let stored = self.header_at(&key, &asked).await?;
        stored
            .map(Some)
            .ok_or_else(|| self.repository.conflict(&self.keys.key(&SystemObject::Ancestry(timeline))))
    }

    /// How `object`, whose header here is `ours`, relates to what is stored at `key`; `None` if that is gone.
    async fn relation(
        &self,
        key: &str,
        object: &WalObject,
        ours: &WalHeader,
    ) -> Result<Option<(SameName, WalHeader)>, RepoError> {
        let asked = self.asked(object.header.name);
        let Some(stored) = self.header_at(key, &asked).await? else { return Ok(None) };
        let SameName::NeedPrefix { of, bytes } = compare(&stored, ours, None) else {
            return Ok(Some((compare(&stored, ours, None), stored)));
        };
        let read = match of {
            Side::Offered => object.header.key,
            Side::Stored => stored.key,
        };
        let epochs = match read {
            None => Arc::default(),
            sealed => self.epochs(sealed).await?,
        };
        // Nobody here can tell whether it agrees, so nothing may be said to be covered.
        if read.is_some_and(|epoch| !epochs.contains_key(&epoch)) {
            return Ok(Some((SameName::Different, stored)));
        }
        let lock = if read.is_some() { self.lock(&epochs) } else { Lock::None };
        let prefix = match of {
            Side::Offered => stored_prefix(&object.chunks.concat(), &asked, bytes, lock),
            Side::Stored => match self.store().get(key).await? {
                Some(other) => stored_prefix(&other, &asked, bytes, lock),
                None => return Ok(None),
            },
        };
        let prefix = prefix.map_err(|e| self.object_error(key, &e))?;
        let end = object.header.segment_start().unwrap_or_default().saturating_add(bytes);
        let prefix = self.lock(&epochs).head(&asked, end, &prefix);
        Ok(Some((compare(&stored, ours, Some(prefix)), stored)))
    }

    async fn header_at(&self, key: &str, asked: &Asked) -> Result<Option<WalHeader>, RepoError> {
        let end = u64::try_from(HEADER_BYTES).unwrap_or(INFO_BYTES);
        let read = self.store().get_range(key, 0..end).await;
        let Some(bytes) = self.unless_expired(asked.name, read).await? else { return Ok(None) };
        let header = WalHeader::parse(&bytes).map_err(|e| self.object_error(key, &e.into()))?;
        let checked = header.check_asked(asked).and_then(|()| self.lock(&Epochs::new()).check(&header));
        checked.map_err(|e| self.object_error(key, &e))?;
        Ok(Some(header))
    }

    /// Fetches a file: of a segment with unfinished copies the longest. `None` means that the store has no such object, which is
    /// not yet proven absence.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn fetch_wal(&self, name: WalFileName) -> Result<Option<Fetched>, RepoError> {
        self.fetch_longest(name, true).await
    }

    /// As [`Self::fetch_wal`]; where no key at hand opens it, what is there can be checked and not opened.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn fetch_wal_to_check(&self, name: WalFileName) -> Result<Option<Fetched>, RepoError> {
        self.fetch_longest(name, false).await
    }

    async fn fetch_longest(&self, name: WalFileName, needed: bool) -> Result<Option<Fetched>, RepoError> {
        let mut best: Option<Fetched> = None;
        for copy in 1..=MAX_COPIES {
            let Some(fetched) = self.fetch_copy(name, copy, needed).await? else { break };
            let may_grow = fetched.header.valid.is_some_and(|v| v.end.may_have_longer_copy());
            best = Some(fetched);
            if !may_grow {
                break;
            }
        }
        Ok(best)
    }

    /// Fetches one copy of a file, whichever is the longest. Where no key at hand opens it, it can be checked and not opened ([`Fetched::can_open`]).
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn fetch_to_check(&self, name: WalFileName, copy: u32) -> Result<Option<Fetched>, RepoError> {
        self.fetch_copy(name, copy, false).await
    }

    async fn fetch_copy(
        &self,
        name: WalFileName,
        copy: u32,
        needed: bool,
    ) -> Result<Option<Fetched>, RepoError> {
        let asked = self.asked(name);
        let key = self.keys.key(&SystemObject::Wal(name, copy));
        let Some(object) = self.store().get(&key).await? else { return Ok(None) };
        let header = WalHeader::parse(&object).map_err(|e| self.object_error(&key, &e.into()))?;
        let checked = header.check_asked(&asked).and_then(|()| self.lock(&Epochs::new()).check(&header));
        checked.map_err(|e| self.object_error(&key, &e))?;
        let epochs = match header.key {
            Some(epoch) => self.epochs(Some(epoch)).await,
            None => Ok(Arc::default()),
        };
        let epochs = match epochs {
            Ok(epochs) => epochs,
            Err(RepoError::NoKeys { .. }) if !needed => Arc::default(),
            Err(e) => {
                // Damage is damage, whatever keys somebody has.
                check_body(&object, &asked, self.lock(&Epochs::new()))
                    .map_err(|e| self.object_error(&key, &e))?;
                return Err(e);
            }
        };
        let (repository, seal) = (self.repository.name().to_owned(), self.seal_key().cloned());
        let lack = seal.is_some().then(|| self.lack());
        Ok(Some(Fetched { header, copy, key, repository, asked, object, seal, epochs, lack }))
    }

    /// As [`Self::fetch_wal`], for recovery: an unfinished copy is no answer while WAL goes on after it, and behind damage it did.
    ///
    /// # Errors
    /// [`RepoError::Unfinished`].
    pub async fn fetch_for_recovery(&self, name: WalFileName) -> Result<Option<Fetched>, RepoError> {
        let Some(fetched) = self.fetch_wal(name).await? else { return Ok(None) };
        let unfinished = fetched.header.valid.filter(|v| v.end.may_have_longer_copy());
        if let (WalFileName::Segment(segment), Some(valid)) = (name, unfinished)
            && (valid.end == WalEnd::Damaged || self.later_wal(segment).await?.is_some())
        {
            let repository = self.repository.name().to_owned();
            return Err(RepoError::Unfinished { repository, name, valid_to: valid.to });
        }
        Ok(Some(fetched))
    }

    /// Header and annex of a segment's longest copy: usually one small ranged read.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn segment_info(&self, name: SegmentName) -> Result<Option<SegmentInfo>, RepoError> {
        let mut best = None;
        for copy in 1..=MAX_COPIES {
            let key = self.keys.key(&SystemObject::Wal(WalFileName::Segment(name), copy));
            let Some((header, annex, locked)) = self.info_at(&key, WalFileName::Segment(name)).await? else {
                break;
            };
            let may_grow = header.valid.is_some_and(|v| v.end.may_have_longer_copy());
            best = Some(SegmentInfo { name, copy, header, annex, locked });
            if !may_grow {
                break;
            }
        }
        Ok(best)
    }

    /// The header of a segment's first copy.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn segment_header(&self, name: SegmentName) -> Result<Option<WalHeader>, RepoError> {
        let name = WalFileName::Segment(name);
        self.header_at(&self.keys.wal(name), &self.asked(name)).await
    }

    /// When the store took the object that has this header, by its own clock; `None` if there is none.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn taken_at(&self, header: &WalHeader) -> Result<Option<Timestamp>, RepoError> {
        for copy in 1..=MAX_COPIES {
            let key = self.keys.key(&SystemObject::Wal(header.name, copy));
            match self.header_at(&key, &self.asked(header.name)).await? {
                None => break,
                Some(found) if found == *header => {
                    return Ok(self.store().head(&key).await?.map(|info| info.modified));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Where valid WAL of the segment ends, if its longest copy is one that an operator accepted with damage in it.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn accepted_end(&self, name: SegmentName) -> Result<Option<Lsn>, RepoError> {
        let valid = self.segment_info(name).await?.and_then(|info| info.header.valid);
        Ok(valid.filter(|valid| valid.end == WalEnd::Damaged).map(|valid| valid.to))
    }

    /// Records that an operator accepts a segment with damage in it: before the segment itself is stored. Recorded twice is once.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn record_gap(&self, gap: &AcceptedGap) -> Result<(), RepoError> {
        let key = self.keys.key(&SystemObject::Gap(gap.segment));
        match self.put_document(&key, gap).await? {
            Put::Ours => Ok(()),
            Put::Theirs(theirs) if theirs.segment == gap.segment => Ok(()),
            Put::Theirs(_) => Err(self.repository.conflict(&key)),
        }
    }

    /// The record that an operator accepted the segment with damage in it.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn accepted_gap(&self, name: SegmentName) -> Result<Option<AcceptedGap>, RepoError> {
        let key = self.keys.key(&SystemObject::Gap(name));
        let gap = self.get_document::<AcceptedGap>(&key).await?;
        Ok(gap.filter(|gap| gap.segment == name))
    }

    async fn info_at(
        &self,
        key: &str,
        name: WalFileName,
    ) -> Result<Option<(WalHeader, Annex, Option<Epoch>)>, RepoError> {
        let mut epochs = self.epochs(None).await?;
        let mut looked = false;
        // A key that is not needed is not fetched for: a chunk of an encrypted body is sixteen times as much.
        let mut end = if epochs.is_empty() { INFO_BYTES } else { SEALED_INFO_BYTES };
        for _ in 0..4 {
            let read = self.store().get_range(key, 0..end).await;
            let Some(bytes) = self.unless_expired(name, read).await? else { return Ok(None) };
            let whole = crate::codec::len_u64(&bytes) < end;
            match parse_info_with(&bytes, whole, self.lock(&epochs)) {
                Ok((header, annex)) => {
                    header.check_asked(&self.asked(name)).map_err(|e| self.object_error(key, &e))?;
                    let locked = header.key.filter(|epoch| !epochs.contains_key(epoch));
                    if locked.is_some() && !looked && self.opens(locked).await? {
                        // It began after the wraps were read, or they were read in another repository.
                        (epochs, looked, end) =
                            (self.epochs(locked).await?, true, end.max(SEALED_INFO_BYTES));
                        continue;
                    }
                    return Ok(Some((header, annex, locked)));
                }
                Err(WalObjectError::Annex(AnnexError::NeedMore(needed))) if !whole => {
                    end = u64::try_from(needed).unwrap_or(end);
                }
                Err(e @ WalObjectError::Age { .. }) => return Err(self.age_error(key, name, &e).await?),
                Err(e) => return Err(self.object_error(key, &e)),
            }
        }
        Err(self.repository.corrupt(key, &"it is cut off"))
    }

    /// The start of an encrypted body did not open: is it damaged, or is it the key? Only the digest of all of it can tell.
    async fn age_error(
        &self,
        key: &str,
        name: WalFileName,
        error: &WalObjectError,
    ) -> Result<RepoError, RepoError> {
        let Some(object) = self.store().get(key).await? else { return Ok(self.repository.missing(key)) };
        let found = check_body(&object, &self.asked(name), self.lock(&Epochs::new()));
        Ok(self.object_error(key, &found.err().unwrap_or_else(|| error.clone())))
    }

    /// The history of `timeline`; `None` if the store has no such object. Timeline 1 has none and needs none.
    ///
    /// # Errors
    /// [`RepoError::Corrupt`] for one that PostgreSQL would not accept.
    pub async fn history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>, RepoError> {
        if timeline == TimelineId::FIRST {
            return Ok(Some(TimelineHistory::first()));
        }
        let name = WalFileName::History(timeline);
        // What its parents are stands in clear beside it.
        let Some(fetched) = self.fetch_to_check(name, 1).await? else { return Ok(None) };
        if !fetched.can_open() {
            fetched.check_stored()?;
            return self.ancestry(timeline).await.map(Some);
        }
        let parsed = TimelineHistory::parse(timeline, &fetched.plain()?);
        parsed.map(Some).map_err(|e| self.repository.corrupt(&self.keys.wal(name), &e))
    }

    /// The segments of one timeline, in order; partial ones are left out.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn segments(&self, timeline: TimelineId) -> Result<Vec<ListedSegment>, RepoError> {
        self.segments_after(timeline, None).await
    }

    /// As [`Self::segments`], from `from` on.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn segments_from(&self, from: SegmentName) -> Result<Vec<ListedSegment>, RepoError> {
        // All objects of the segment sort behind its bare name.
        let after = format!("{}{from}", self.keys.segment_dir(from));
        self.segments_after(from.timeline(), Some(&after)).await
    }

    async fn segments_after(
        &self,
        timeline: TimelineId,
        after: Option<&str>,
    ) -> Result<Vec<ListedSegment>, RepoError> {
        let objects = self.store().list_after(&self.keys.timeline_dir(timeline), after, None).await?;
        let mut found: BTreeMap<SegmentName, ListedSegment> = BTreeMap::new();
        for object in objects {
            let none = |name| ListedSegment { name, copies: 0, stored: 0, accepted: false };
            match self.keys.parse(&object.key) {
                Some(SystemObject::Wal(WalFileName::Segment(name), _)) => {
                    let listed = found.entry(name).or_insert_with(|| none(name));
                    listed.copies += 1;
                    listed.stored = listed.stored.saturating_add(object.size);
                }
                Some(SystemObject::Gap(name)) => {
                    found.entry(name).or_insert_with(|| none(name)).accepted = true;
                }
                _ => {}
            }
        }
        // Whoever accepted a segment and died before he stored it left the record alone.
        found.retain(|_, listed| listed.copies > 0);
        Ok(found.into_values().collect())
    }

    /// The floor that counts: which WAL is still kept. `None` if all is.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn floor(&self) -> Result<Option<Floor>, RepoError> {
        let Some(n) = self.newest_floor().await? else { return Ok(None) };
        let key = self.keys.key(&SystemObject::Floor(n));
        self.get_document(&key).await?.map(Some).ok_or_else(|| self.repository.missing(&key))
    }

    /// The number of the floor that counts.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn newest_floor(&self) -> Result<Option<u32>, RepoError> {
        let objects = self.store().list(&self.keys.floor_dir()).await?;
        let number = |o: &ObjectInfo| match self.keys.parse(&o.key)? {
            SystemObject::Floor(n) => Some(n),
            _ => None,
        };
        Ok(objects.iter().filter_map(number).max())
    }

    /// Whether `name`, which a get did not find, is truly absent here. Recovery may be told "not there" only if every configured
    /// repository answers [`Absence::Proven`] in the same call. The identity is read anew: a missing mount shows there.
    ///
    /// # Errors
    /// [`RepoError`]: nothing is known.
    pub async fn absence(&self, name: WalFileName) -> Result<Absence, RepoError> {
        if name == WalFileName::History(TimelineId::FIRST) {
            return Ok(Absence::Proven);
        }
        self.repository.open(self.identity.system).await?;
        match self.store().head(&self.keys.wal(name)).await {
            Ok(Some(_)) => return Ok(Absence::Present),
            Ok(None) => {}
            Err(error) if self.expired_by_marker(name, &error).await? => return Ok(Absence::Expired),
            Err(error) => return Err(error.into()),
        }
        match name {
            WalFileName::Segment(segment) => self.segment_absence(segment).await,
            WalFileName::History(timeline) => self.history_absence(timeline).await,
            // Recovery asks for neither.
            WalFileName::Partial(_) | WalFileName::BackupHistory(..) => Ok(Absence::Proven),
        }
    }

    /// Whether `error` is the marker that expiry leaves where a bucket keeps versions. Any other marker is doubt.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn expired_by_marker(&self, name: WalFileName, error: &StoreError) -> Result<bool, RepoError> {
        let WalFileName::Segment(segment) = name else { return Ok(false) };
        let hidden = error.kind == StoreErrorKind::Hidden;
        Ok(hidden && self.floor().await?.is_some_and(|floor| !floor.keeps(segment)))
    }

    /// Nothing, where `read` met the marker that expiry leaves.
    async fn unless_expired<T>(
        &self,
        name: WalFileName,
        read: Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, RepoError> {
        match read {
            Err(error) if self.expired_by_marker(name, &error).await? => Ok(None),
            read => Ok(read?),
        }
    }

    async fn segment_absence(&self, name: SegmentName) -> Result<Absence, RepoError> {
        if self.floor().await?.is_some_and(|floor| !floor.keeps(name)) {
            return Ok(Absence::Expired);
        }
        let copies = self.store().list(&format!("{}{name}.", self.keys.segment_dir(name))).await?;
        let copy = copies.iter().find(|object| {
            matches!(self.keys.parse(&object.key), Some(SystemObject::Wal(WalFileName::Segment(_), _)))
        });
        if let Some(copy) = copy {
            return Ok(Absence::Doubt(format!("{} is stored, the first copy is not", copy.key)));
        }
        Ok(match self.later_wal(name).await? {
            Some(later) => Absence::Doubt(format!("{later}, which comes after it, is stored")),
            None => Absence::Proven,
        })
    }
}
