//! Bodies: age files made for one epoch, written and read as streams.
//!
//! ```text
//!  age-encryption.org/v1 ⏎ -> X25519 … ⏎ --- mac ⏎     header, some hundred bytes, bounded
//!  nonce, 16 │ chunk 0 │ chunk 1 │ … │ last chunk        64 KiB of plain bytes each, and 16 of authentication
//! ```
//! Invariants: no plain byte is handed out before its chunk was authenticated; a body that is cut at a chunk's end is not taken for a whole
//! one; a header longer than [`MAX_HEADER`] is refused before it is parsed. `age -d` opens all of them.
//! age authenticates the content, not the sender: that is what macs are for. Pure but for random numbers.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::rc::Rc;

use age::stream::StreamReader;
use age::{DecryptError, Decryptor, Encryptor};
use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::SealError;
use super::identity::{Identity, Recipient};
use crate::codec;

/// How every age file begins.
pub const AGE_MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// Longest header that is accepted: one recipient and the random lines that age adds take less than 1 KiB.
pub const MAX_HEADER: usize = 8 << 10;
/// Plain bytes of a chunk.
pub(super) const CHUNK: usize = 64 << 10;
/// Bytes of a chunk as stored.
pub(super) const STORED_CHUNK: usize = CHUNK + 16;
/// Bytes of the nonce before the first chunk.
pub(super) const NONCE: usize = 16;
/// Size of the pieces in which encrypted bytes are handed out: that of an encoder's, whose memory they take over.
const PIECE: usize = codec::CHUNK;

/// Encrypted bytes in pieces, so that a segment needs no single allocation of its size.
#[derive(Default)]
struct Pieces {
    done: Vec<Bytes>,
    open: BytesMut,
    spare: Rc<Spare>,
}

/// Memory of plain pieces that are done with. Encrypted ones go there: fresh pages cost as much time as the cipher does.
#[derive(Default)]
struct Spare(RefCell<Vec<BytesMut>>);

impl Spare {
    /// Takes the memory of a piece, unless somebody else still has it.
    fn give(&self, piece: Bytes) {
        let mut spare = self.0.borrow_mut();
        // What is encrypted follows what is plain by a chunk: there is never use for more.
        if spare.len() < 2
            && let Ok(mut memory) = piece.try_into_mut()
        {
            memory.clear();
            // A larger one would be held for a piece of this size.
            if (PIECE..2 * PIECE).contains(&memory.capacity()) {
                spare.push(memory);
            }
        }
    }

    fn take(&self) -> BytesMut {
        self.0.borrow_mut().pop().unwrap_or_else(|| BytesMut::with_capacity(PIECE))
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.open.len() >= PIECE || self.open.capacity() == 0 {
            self.turn();
        }
        let room = PIECE.saturating_sub(self.open.len());
        let (now, _) = bytes.split_at(room.min(bytes.len()));
        self.open.extend_from_slice(now);
        Ok(now.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Pieces {
    fn turn(&mut self) {
        let full = std::mem::replace(&mut self.open, self.spare.take());
        if !full.is_empty() {
            self.done.push(full.freeze());
        }
    }
}

/// The age file that holds `plain`, for `recipients`. The pieces of `plain` are let go of as they are done with, and what is encrypted goes
/// into their memory if nobody else holds them.
///
/// # Errors
/// [`SealError::Encrypt`].
pub fn encrypt(
    plain: impl IntoIterator<Item = Bytes>,
    recipients: &[&Recipient],
) -> Result<Vec<Bytes>, SealError> {
    let recipients = recipients.iter().map(|r| r.as_age() as &dyn age::Recipient);
    let encryptor =
        Encryptor::with_recipients(recipients).map_err(|_| SealError::Encrypt("there is no recipient"))?;
    let failed = |_| SealError::Encrypt("the stream did not take all bytes");
    let pieces = Pieces::default();
    let spare = Rc::clone(&pieces.spare);
    let mut writer = encryptor.wrap_output(pieces).map_err(failed)?;
    for piece in plain {
        writer.write_all(&piece).map_err(failed)?;
        spare.give(piece);
    }
    let mut pieces = writer.finish().map_err(failed)?;
    if !pieces.open.is_empty() {
        pieces.done.push(pieces.open.freeze());
    }
    Ok(pieces.done)
}

/// Bytes of the header and the nonce at the start of an age file.
pub(super) fn preamble(file: &[u8]) -> Result<usize, SealError> {
    let head = file.get(..file.len().min(MAX_HEADER)).unwrap_or_default();
    if !head.starts_with(AGE_MAGIC) {
        return Err(SealError::Malformed("it does not begin as one"));
    }
    let mac = head.windows(5).position(|w| w == b"\n--- ").map(|at| at.saturating_add(1));
    let rest = mac.and_then(|at| head.get(at..)).ok_or(SealError::Malformed("its header does not end"))?;
    let line =
        rest.iter().position(|b| *b == b'\n').ok_or(SealError::Malformed("its header does not end"))?;
    let header = head.len().saturating_sub(rest.len()).saturating_add(line).saturating_add(1);
    Ok(header.saturating_add(NONCE))
}

/// How many bytes at the start of an age file hold its first `plain` bytes, whatever the length of its header.
pub fn bytes_for_start(plain: usize) -> usize {
    MAX_HEADER.saturating_add(NONCE).saturating_add(plain.div_ceil(CHUNK).saturating_mul(STORED_CHUNK))
}

/// What opens bodies: the secrets of some epochs.
#[derive(Debug, Clone, Copy)]
pub struct Opener<'a>(pub &'a [Identity]);

impl Opener<'_> {
    /// What reads the plain bytes of `file`, whose header was found to be of bounded length.
    pub(super) fn reader<R: Read>(&self, file: R) -> Result<StreamReader<R>, SealError> {
        let malformed = |_| SealError::Malformed("its header cannot be read");
        let decryptor = Decryptor::new(file).map_err(malformed)?;
        if decryptor.is_scrypt() {
            return Err(SealError::Malformed("it is encrypted with a passphrase"));
        }
        let identities = self.0.iter().map(|i| i.as_age() as &dyn age::Identity);
        decryptor.decrypt(identities).map_err(|error| match error {
            DecryptError::NoMatchingKeys => SealError::NoKey,
            _ => SealError::Malformed("its header was changed"),
        })
    }

    /// Hands the plain bytes of `file` to `plain`, in order. After an error they must be thrown away.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn open(&self, file: &[u8], mut plain: impl FnMut(&[u8])) -> Result<(), SealError> {
        preamble(file)?;
        let mut reader = self.reader(file)?;
        let mut block = vec![0; CHUNK];
        loop {
            match reader.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(read) => plain(block.get(..read).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(SealError::Broken),
            }
        }
    }

    /// All plain bytes of a small `file` that is itself a secret: they are wiped when dropped, and no copy of them stays behind. Wiping the
    /// memory of every pack would cost time and hide nothing that is not in the data directory.
    ///
    /// # Errors
    /// [`SealError`].
    pub(super) fn secret(&self, file: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        preamble(file)?;
        let mut reader = self.reader(file)?;
        // The plain bytes are fewer than the file's: it never grows, which would leave a copy, and has room to see the end.
        let mut out = Zeroizing::new(vec![0; file.len()]);
        let mut len = 0_usize;
        loop {
            match reader.read(out.get_mut(len..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(read) => len = len.saturating_add(read),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(SealError::Broken),
            }
        }
        out.truncate(len);
        Ok(out)
    }

    /// All plain bytes of `file`, which are fewer than its own.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn plain(&self, file: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut out = Vec::with_capacity(file.len());
        self.open(file, |bytes| out.extend_from_slice(bytes))?;
        Ok(out)
    }

    /// The plain bytes that the start of an age file holds, as far as whole chunks of it are there. `whole` says that `start` is all of it.
    ///
    /// # Errors
    /// [`SealError`] if not even the first chunk can be opened.
    pub fn start(&self, start: &[u8], whole: bool) -> Result<Vec<u8>, SealError> {
        if whole {
            return self.plain(start);
        }
        let preamble = preamble(start)?;
        let chunks = start.len().saturating_sub(preamble).checked_div(STORED_CHUNK).unwrap_or(0);
        let end = chunks.saturating_mul(STORED_CHUNK).saturating_add(preamble);
        let mut reader = self.reader(start.get(..end).unwrap_or(start))?;
        let mut out = vec![0; chunks.saturating_mul(CHUNK)];
        reader.read_exact(&mut out).map_err(|_| SealError::Broken)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(plain: &[u8], identity: &Identity) -> Vec<u8> {
        let pieces = plain.chunks(100_000).map(Bytes::copy_from_slice);
        encrypt(pieces, &[&identity.recipient()]).unwrap().concat()
    }

    #[test]
    fn what_was_encrypted_comes_back_and_only_with_its_key() {
        let (key, other) = (Identity::generate(), Identity::generate());
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1_000_000] {
            let plain: Vec<u8> = (0_u32..).map(|n| n.to_le_bytes()[0]).take(len).collect();
            let file = sealed(&plain, &key);
            assert_eq!(Opener(&[other.clone(), key.clone()]).plain(&file).unwrap(), plain, "{len}");
            assert_eq!(Opener(std::slice::from_ref(&other)).plain(&file), Err(SealError::NoKey));
            assert_eq!(Opener(&[]).plain(&file), Err(SealError::NoKey));
        }
    }

    #[test]
    fn encrypted_pieces_go_where_plain_ones_were_that_nobody_holds() {
        let key = Identity::generate();
        let plain: Vec<Bytes> = (0..8).map(|n| Bytes::from(vec![n; PIECE])).collect();
        let held: Vec<Bytes> = plain.iter().step_by(3).cloned().collect();
        let places: Vec<_> = plain.iter().map(|piece| piece.as_ptr()).collect();
        let content = plain.concat();
        let sealed = encrypt(plain, &[&key.recipient()]).unwrap();
        assert_eq!(Opener(std::slice::from_ref(&key)).plain(&sealed.concat()).unwrap(), content);
        assert!(sealed.iter().filter(|piece| places.contains(&piece.as_ptr())).count() >= 3);
        assert!(held.iter().zip([0, 3, 6]).all(|(piece, n)| **piece == vec![n; PIECE]));
    }

    #[test]
    fn a_file_cut_anywhere_or_changed_anywhere_is_refused() {
        let key = [Identity::generate()];
        let plain = vec![5; 2 * CHUNK];
        let file = sealed(&plain, &key[0]);
        let border = preamble(&file).unwrap() + STORED_CHUNK;
        let cuts = (0..border.min(700)).chain([border - 1, border, border + 1, file.len() - 1]);
        for cut in cuts {
            assert!(Opener(&key).plain(&file[..cut]).is_err(), "cut at {cut}");
        }
        for at in (0..file.len()).filter(|at| *at < 700 || at % 1009 == 0) {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(Opener(&key).plain(&bad).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn the_start_of_a_file_opens_without_the_rest() {
        let key = [Identity::generate()];
        let plain: Vec<u8> = (0_u32..100_000).flat_map(u32::to_le_bytes).collect();
        let file = sealed(&plain, &key[0]);
        let start = &file[..bytes_for_start(70_000)];
        let found = Opener(&key).start(start, false).unwrap();
        assert!(found.len() >= 70_000 && plain.starts_with(&found), "{}", found.len());
        // Exactly one full chunk, which is the last one.
        let file = sealed(&plain[..CHUNK], &key[0]);
        assert_eq!(Opener(&key).start(&file, true).unwrap().len(), CHUNK);
        assert_eq!(Opener(&key).start(&file, false).unwrap().len(), CHUNK);
    }

    #[test]
    fn a_header_without_end_is_refused_before_it_is_parsed() {
        let mut long = AGE_MAGIC.to_vec();
        long.extend(b"-> X25519 ".iter().copied().chain(std::iter::repeat_n(b'A', 100_000)));
        assert_eq!(
            Opener(&[Identity::generate()]).plain(&long),
            Err(SealError::Malformed("its header does not end"))
        );
        assert!(Opener(&[]).plain(b"").is_err());
    }
}
