//! Opening WAL objects, sealed or not; and making a sealed one of a plain one.
//!
//! ```text
//!  plain    header │ annex │ frame                       tag, head: BLAKE3
//!  sealed   header │ age( annex │ frame )                tag, head, mac: keyed        tail -c +513 X | age -d | zstd -d
//! ```
//! The body's digest is looked at before any key is: damage is found by who cannot read. Invariants: the plain bytes handed out are those
//! whose tag the header states; of a sealed folder, none whose header's mac is not the cluster's. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::annex::{Annex, AnnexError};
use super::{Asked, HEADER_BYTES, HeaderError, Valid, WalHeader, WalObject, WalObjectError};
use crate::codec::{Digest, FrameDecoder, Hasher, ShortDigest};
use crate::seal::{Epoch, Fingerprint, Identity, Opener, Recipient, SealKey, body};
use crate::wal::Lsn;

/// How the objects of a folder are known and opened.
#[derive(Debug, Clone, Copy)]
pub enum Lock<'a> {
    /// Nothing is encrypted.
    None,
    /// Everything is.
    Sealed {
        /// The cluster's seal key.
        key: &'a SealKey,
        /// The secrets at hand.
        epochs: &'a BTreeMap<Epoch, Identity>,
    },
}

impl Lock<'_> {
    /// Checks that the header was written with the cluster's seal key, where there is one.
    ///
    /// # Errors
    /// [`WalObjectError::Mac`], [`WalObjectError::Unsealed`], and [`WalObjectError::Sealed`] where nothing should be.
    pub fn check(&self, header: &WalHeader) -> Result<(), WalObjectError> {
        match (self, header.key) {
            (Self::None, None) => Ok(()),
            (Self::None, Some(epoch)) => Err(WalObjectError::Sealed(epoch)),
            (Self::Sealed { .. }, None) => Err(WalObjectError::Unsealed),
            (Self::Sealed { key, .. }, Some(_)) if header.mac == Some(key.header_mac(&header.lines())) => {
                Ok(())
            }
            (Self::Sealed { .. }, Some(_)) => Err(WalObjectError::Mac),
        }
    }

    fn tag(&self, header: &WalHeader, plain: Digest) -> Digest {
        match self {
            Self::None => plain,
            Self::Sealed { key, .. } => key.tag(&header.system, &header.name, header.size, &plain),
        }
    }

    /// What `head` says of valid WAL that ends at `to` and has the digest `prefix`.
    pub fn head(&self, asked: &Asked, to: Lsn, prefix: &Digest) -> ShortDigest {
        match self {
            Self::None => prefix.short(),
            Self::Sealed { key, .. } => key.head(&asked.system, &asked.name, &to, prefix),
        }
    }

    fn secret(&self, epoch: Epoch) -> Result<&[Identity], WalObjectError> {
        let found = match self {
            Self::None => None,
            Self::Sealed { epochs, .. } => epochs.get(&epoch),
        };
        found.map(std::slice::from_ref).ok_or(WalObjectError::Sealed(epoch))
    }
}

/// Reads header and annex at the start of an object that is not sealed.
///
/// # Errors
/// As [`parse_info_with`].
pub fn parse_info(bytes: &[u8]) -> Result<(WalHeader, Annex), WalObjectError> {
    parse_info_with(bytes, false, Lock::None)
}

/// Reads header and annex at the start of an object; `whole` says that `bytes` is all of it. In a folder whose key is not at hand the
/// annex is that of an object at which nobody looked.
///
/// # Errors
/// [`WalObjectError::Annex`] with [`AnnexError::NeedMore`] counts from the start of the object: read that much and ask again.
pub fn parse_info_with(
    bytes: &[u8],
    whole: bool,
    lock: Lock<'_>,
) -> Result<(WalHeader, Annex), WalObjectError> {
    let header = WalHeader::parse(bytes)?;
    lock.check(&header)?;
    let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
    let Some(epoch) = header.key else {
        return match Annex::parse(body) {
            Ok((annex, _)) => Ok((header, annex)),
            Err(AnnexError::NeedMore(n)) => Err(AnnexError::NeedMore(n.saturating_add(HEADER_BYTES)).into()),
            Err(e) => Err(e.into()),
        };
    };
    let Ok(secret) = lock.secret(epoch) else { return Ok((header, Annex::default())) };
    let need = |plain: usize| AnnexError::NeedMore(body::bytes_for_start(plain).saturating_add(HEADER_BYTES));
    if !whole && body.len() < body::bytes_for_start(1) {
        return Err(need(1).into());
    }
    // The digest in the header is that of the whole body, so damage here cannot be told from a wrong key; the mac was right.
    let plain = Opener(secret).start(body, whole).map_err(|cause| WalObjectError::Age { epoch, cause })?;
    match Annex::parse(&plain) {
        Ok((annex, _)) => Ok((header, annex)),
        Err(AnnexError::NeedMore(n)) if !whole => Err(need(n).into()),
        Err(e) => Err(e.into()),
    }
}

/// Annex first, then the frame, in pieces of any size.
struct Content<F> {
    annex: Option<Vec<u8>>,
    decoder: FrameDecoder,
    hasher: Hasher,
    plain: F,
}

impl<F: FnMut(&[u8])> Content<F> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), WalObjectError> {
        let Some(mut gathered) = self.annex.take() else { return self.frame(bytes) };
        // Nearly always all of it is in the first piece, which is then not copied.
        let first = gathered.is_empty();
        if !first {
            gathered.extend_from_slice(bytes);
        }
        let so_far = if first { bytes } else { &gathered };
        match Annex::parse(so_far) {
            Ok((_, end)) => self.frame(so_far.get(end..).unwrap_or_default()),
            // An annex states its length, and a length above the bound is refused.
            Err(AnnexError::NeedMore(_)) => {
                self.annex = Some(if first { bytes.to_vec() } else { gathered });
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<(), WalObjectError> {
        let (hasher, plain) = (&mut self.hasher, &mut self.plain);
        let pushed = self.decoder.push(bytes, |bytes| {
            hasher.update(bytes);
            plain(bytes);
        });
        Ok(pushed?)
    }
}

/// As [`open_with`], for an object that is not sealed.
///
/// # Errors
/// As [`open_with`].
pub fn open(object: &[u8], asked: &Asked, plain: impl FnMut(&[u8])) -> Result<WalHeader, WalObjectError> {
    open_with(object, asked, Lock::None, plain)
}

/// Opens a whole object and hands its plain bytes to `plain`, in order and never more than the header says.
///
/// # Errors
/// [`WalObjectError`], in the order of checks of the format. After an error, what `plain` was given must be thrown away.
pub fn open_with(
    object: &[u8],
    asked: &Asked,
    lock: Lock<'_>,
    plain: impl FnMut(&[u8]),
) -> Result<WalHeader, WalObjectError> {
    let header = check_body(object, asked, lock)?;
    let body = object.get(HEADER_BYTES..).unwrap_or_default();
    let mut content = Content {
        annex: Some(Vec::new()),
        decoder: FrameDecoder::new(header.size)?,
        hasher: Hasher::new(),
        plain,
    };
    match header.key {
        None => content.push(body)?,
        Some(epoch) => {
            let mut failed = None;
            let opened = Opener(lock.secret(epoch)?).open(body, |bytes| {
                if failed.is_none() {
                    failed = content.push(bytes).err();
                }
            });
            opened.map_err(|cause| WalObjectError::Age { epoch, cause })?;
            failed.map_or(Ok(()), Err)?;
        }
    }
    if let Some(gathered) = content.annex {
        return Err(Annex::parse(&gathered).err().map_or(WalObjectError::Body, WalObjectError::Annex));
    }
    let found = content.decoder.finish()?;
    if found != header.size {
        return Err(WalObjectError::Size { size: header.size, found });
    }
    if lock.tag(&header, content.hasher.digest()) != header.tag {
        return Err(WalObjectError::Tag);
    }
    Ok(header)
}

/// All that can be said of a whole object without opening it: header, whose it is, mac, and that no byte of the body changed.
///
/// # Errors
/// [`WalObjectError`].
pub fn check_body(object: &[u8], asked: &Asked, lock: Lock<'_>) -> Result<WalHeader, WalObjectError> {
    let header = WalHeader::parse(object)?;
    header.check_asked(asked)?;
    lock.check(&header)?;
    let body = object.get(HEADER_BYTES..).unwrap_or_default();
    if Digest::of(body) == header.body { Ok(header) } else { Err(WalObjectError::Body) }
}

/// The digest of the first `prefix` bytes of an object's content: to find out whether another copy agrees.
///
/// # Errors
/// As [`open_with`].
pub fn stored_prefix(
    object: &[u8],
    asked: &Asked,
    prefix: u64,
    lock: Lock<'_>,
) -> Result<Digest, WalObjectError> {
    let mut hasher = Hasher::new();
    let mut missing = usize::try_from(prefix).unwrap_or(usize::MAX);
    open_with(object, asked, lock, |bytes| {
        let (wanted, _) = bytes.split_at(missing.min(bytes.len()));
        hasher.update(wanted);
        missing -= wanted.len();
    })?;
    Ok(hasher.digest())
}

/// What a host seals with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealer {
    /// The cluster's seal key.
    pub key: SealKey,
    /// The current epoch.
    pub epoch: Epoch,
    /// Its public key.
    pub recipient: Recipient,
}

/// A sealed form, and what it was sealed with.
#[derive(Debug, Clone)]
pub(super) struct Cached {
    by: (Fingerprint, Epoch),
    object: WalObject,
}

impl WalObject {
    /// An object as it was read, to be stored elsewhere. With `prefix`, the digest of its plain bytes up to the end of valid WAL, one that
    /// is not sealed can be.
    pub fn verbatim(header: WalHeader, mut object: Bytes, prefix: Option<Digest>) -> Self {
        let body = object.split_off(HEADER_BYTES.min(object.len()));
        Self { header, chunks: vec![object, body], prefix, sealed: std::sync::Arc::default() }
    }

    /// This object sealed; made once, however many repositories ask. Costs time: not for a thread of the runtime.
    ///
    /// # Errors
    /// [`WalObjectError::Age`] if it cannot be encrypted, [`WalObjectError::Header`] if it is sealed already.
    pub fn sealed(&self, sealer: &Sealer) -> Result<Self, WalObjectError> {
        let by = (sealer.key.fingerprint(), sealer.epoch);
        // Held while it is made, so that the others wait for it instead of making their own.
        let mut cache = self.sealed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(cached) = cache.as_ref().filter(|cached| cached.by == by) {
            return Ok(cached.object.clone());
        }
        let body = self.chunks.iter().skip(1).cloned();
        let object = Self::seal(&self.header, body, self.prefix.as_ref(), sealer)?;
        *cache = Some(Cached { by, object: object.clone() });
        Ok(object)
    }

    /// As [`Self::sealed`], for who needs the plain form no more: its bytes are let go of while they are encrypted, so that the object is not
    /// held twice.
    ///
    /// # Errors
    /// As [`Self::sealed`].
    pub fn into_sealed(self, sealer: &Sealer) -> Result<Self, WalObjectError> {
        let Self { header, chunks, prefix, .. } = self;
        Self::seal(&header, chunks.into_iter().skip(1), prefix.as_ref(), sealer)
    }

    fn seal(
        plain: &WalHeader,
        body: impl Iterator<Item = Bytes>,
        prefix: Option<&Digest>,
        sealer: &Sealer,
    ) -> Result<Self, WalObjectError> {
        if plain.key.is_some() {
            return Err(HeaderError::Field("key").into());
        }
        let (key, epoch) = (&sealer.key, sealer.epoch);
        let valid = match (plain.valid, prefix) {
            (Some(valid), Some(prefix)) => {
                Some(Valid { head: key.head(&plain.system, &plain.name, &valid.to, prefix), ..valid })
            }
            (None, _) => None,
            (Some(_), None) => return Err(HeaderError::Field("head").into()),
        };
        let body = body::encrypt(body, &[&sealer.recipient])
            .map_err(|cause| WalObjectError::Age { epoch, cause })?;
        let mut digest = Hasher::new();
        body.iter().for_each(|chunk| digest.update(chunk));
        let mut header = WalHeader {
            key: Some(epoch),
            valid,
            tag: key.tag(&plain.system, &plain.name, plain.size, &plain.tag),
            body: digest.digest(),
            ..plain.clone()
        };
        header.mac = Some(key.header_mac(&header.lines()));
        let first = Bytes::copy_from_slice(&header.encode()?);
        let chunks = std::iter::once(first).chain(body).collect();
        Ok(Self { header, chunks, prefix: None, sealed: std::sync::Arc::default() })
    }
}
