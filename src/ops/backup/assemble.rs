//! The server's archives become one tar stream of ours, cut into frames.
//!
//! ```text
//!  archive of tablespace 16400 ─┐  names get "pg_tblspc/16400/" in front      ┌ frame ┬ frame ┬ …  plain bytes, at most FRAME_BYTES,
//!  archive of the base ─────────┴► TarReader ─► header data padding … END ───►│ parts │ parts │    with a note of which bytes are whose
//! ```
//! A page of a relation is never split between two frames, so that it can be checked where its frame is compressed.
//! Runs on the task that reads the socket, so it only copies: digests, checksums and compression come later, on other threads. The
//! headers are written anew (the server's have `./` in places, and 13/14 send no end), in the order in which members come:
//! `global/pg_control` stays last. Pure. Source of truth: `basebackup.c`, `tar.c`.

use bytes::Bytes;

use crate::ops::archive::COPY_MARKER;
use crate::pgdata::page::{MAX_BLOCK, PageLayout};
use crate::pgwire::tar::{Member, MemberKind, TarError, TarItem, TarReader, padding};
use crate::pgwire::tarwrite;
use crate::repo::pack::FRAME_BYTES;

/// Files whose content the backup itself reads, with the most bytes that are kept of one.
const READ_HERE: [&[u8]; 3] = [b"backup_label", b"tablespace_map", b"global/pg_control"];
const MOST_READ_HERE: usize = 1 << 20;

/// What a frame holds, in the order of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// A member begins (its header is in this frame or starts in the one before).
    Begin(Box<Member>),
    /// Data of the member that began last.
    Data {
        /// Offset in the frame.
        at: usize,
        /// Length.
        len: usize,
        /// Number of the page that it begins with, if its pages are to be checked.
        block: Option<u32>,
    },
    /// That member is complete.
    End,
}

/// A piece of the tar stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its bytes.
    pub(super) plain: Vec<u8>,
    /// Whose they are.
    pub(super) parts: Vec<Part>,
}

/// Turns archives into frames.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    reader: TarReader,
    prefix: Vec<u8>,
    first: bool,
    open: Frame,
    full: Option<Frame>,
    keep: Option<usize>,
    is_copy: bool,
    kept: [Vec<u8>; READ_HERE.len()],
    pad: u64,
    /// Given if pages are to be checked.
    pages: Option<PageLayout>,
    /// Of the open member, if it has pages: the number of its first.
    first_block: Option<u32>,
    /// Bytes of the open member so far.
    passed: u64,
}

impl Assembler {
    /// For a cluster whose relations are cut by `pages`, if pages are to be checked.
    pub(super) fn new(pages: Option<PageLayout>) -> Self {
        Self { pages, ..Self::default() }
    }

    /// Bytes of the next archive follow: of the tablespace `oid`, or of the data directory.
    ///
    /// # Errors
    /// [`TarError`] if the archive before is not complete.
    pub(super) fn archive(&mut self, tablespace: Option<u32>) -> Result<(), TarError> {
        std::mem::take(&mut self.reader).finish()?;
        self.prefix = tablespace.map(|oid| format!("pg_tblspc/{oid}/").into_bytes()).unwrap_or_default();
        self.first = true;
        Ok(())
    }

    /// Takes the next bytes of the archive. Call [`Assembler::frame`] until it returns `None` before the next push.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.reader.push(bytes);
    }

    /// The next full frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`TarError`] of a damaged archive.
    pub(super) fn frame(&mut self) -> Result<Option<Frame>, TarError> {
        loop {
            if let Some(full) = self.full.take() {
                return Ok(Some(full));
            }
            match self.reader.next()? {
                None => return Ok(None),
                Some(TarItem::Member(member)) => self.member(member)?,
                Some(TarItem::Data(data)) => self.data(&data),
                Some(TarItem::MemberEnd) => {
                    self.open.parts.push(Part::End);
                    self.keep = None;
                    self.zeros(self.pad);
                }
            }
        }
    }

    /// The archives are complete: the last frame, closed by the end of the tar stream.
    ///
    /// # Errors
    /// [`TarError`] if the last archive is cut off.
    pub(super) fn finish(mut self) -> Result<(Frame, Kept), TarError> {
        std::mem::take(&mut self.reader).finish()?;
        // Not through `put`: the two blocks may make the last frame a little longer, and save a frame of its own.
        self.open.plain.extend_from_slice(&tarwrite::END);
        let [label, tablespace_map, control] = self.kept;
        Ok((self.open, Kept { label, tablespace_map, control, is_copy: self.is_copy }))
    }

    fn member(&mut self, mut member: Member) -> Result<(), TarError> {
        if let Some(path) = self.prefix.strip_suffix(b"/") {
            // The archive of a tablespace does not name the directory that its names start from.
            if std::mem::take(&mut self.first) {
                let own = Member { path: path.to_vec(), kind: MemberKind::Directory, mode: 0o700, ..member };
                self.begin(own)?;
                self.open.parts.push(Part::End);
            }
            member.path.splice(0..0, self.prefix.iter().copied());
        }
        self.begin(member)
    }

    fn begin(&mut self, member: Member) -> Result<(), TarError> {
        let header = tarwrite::header(&member)?;
        self.pad = if let MemberKind::File { size } = member.kind { padding(size) } else { 0 };
        self.is_copy |= member.path == COPY_MARKER.as_bytes();
        self.keep = READ_HERE.iter().position(|path| *path == member.path);
        self.first_block = self.pages.and_then(|pages| pages.first_block(&member.path));
        self.passed = 0;
        self.put(&header);
        self.open.parts.push(Part::Begin(Box::new(member)));
        Ok(())
    }

    fn data(&mut self, data: &[u8]) {
        if let Some(kept) = self.keep.and_then(|index| self.kept.get_mut(index)) {
            let room = MOST_READ_HERE.saturating_sub(kept.len()).min(data.len());
            kept.extend_from_slice(data.get(..room).unwrap_or_default());
        }
        // A frame that is full is handed over when the next byte comes, so this splits at most once: the server's pieces are
        // far below a frame. Longer ones make a longer frame, which the format allows.
        let room = self.room();
        let (now, later) = data.split_at(room.min(data.len()));
        self.data_part(now);
        if !later.is_empty() {
            self.turn();
            self.data_part(later);
        }
    }

    /// How much of the open member still belongs into the open frame: with pages, up to the end of one.
    fn room(&self) -> usize {
        let free = FRAME_BYTES.saturating_sub(self.open.plain.len());
        let Some(page) = self.page_bytes() else { return free };
        let page_u64 = u64::try_from(page).unwrap_or(1);
        let inside = usize::try_from(self.passed % page_u64).unwrap_or(0);
        inside.saturating_add(free).next_multiple_of(page).saturating_sub(inside)
    }

    /// Bytes of a page of the open member, if it has pages.
    fn page_bytes(&self) -> Option<usize> {
        self.first_block.and(self.pages).map(PageLayout::block_bytes)
    }

    /// The number of the page that the next byte of the open member begins.
    fn block(&self) -> Option<u32> {
        let page = u64::try_from(self.page_bytes()?).ok()?;
        let number = u32::try_from(self.passed.checked_div(page)?).ok()?;
        Some(self.first_block?.wrapping_add(number))
    }

    fn data_part(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let (at, block) = (self.open.plain.len(), self.block());
        self.passed = self.passed.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        self.open.plain.extend_from_slice(data);
        match self.open.parts.last_mut() {
            Some(Part::Data { at: from, len, .. }) if from.saturating_add(*len) == at => {
                *len = len.saturating_add(data.len());
            }
            _ => self.open.parts.push(Part::Data { at, len: data.len(), block }),
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.open.plain.len().saturating_add(bytes.len()) > FRAME_BYTES && self.full.is_none() {
            self.turn();
        }
        self.open.plain.extend_from_slice(bytes);
    }

    fn zeros(&mut self, count: u64) {
        const BLOCK: [u8; 512] = [0; 512];
        let count = usize::try_from(count).unwrap_or(0);
        self.put(BLOCK.get(..count).unwrap_or_default());
    }

    fn turn(&mut self) {
        let longest = FRAME_BYTES.saturating_add(usize::try_from(MAX_BLOCK).unwrap_or(0));
        let next = Frame { plain: Vec::with_capacity(longest), parts: Vec::new() };
        self.full = Some(std::mem::replace(&mut self.open, next));
    }
}

/// Files that were kept while they passed; empty where the server sent none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// `backup_label`.
    pub(super) label: Vec<u8>,
    /// `tablespace_map`.
    pub(super) tablespace_map: Vec<u8>,
    /// `global/pg_control`.
    pub(super) control: Vec<u8>,
    /// The mark of a copy was among the files.
    pub(super) is_copy: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read as _;

    /// An archive as the server sends it; `end` as of 15.
    fn archive(files: &[(&str, &[u8])], end: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, data) in files {
            let kind = MemberKind::File { size: u64::try_from(data.len()).unwrap() };
            let member =
                Member { path: path.as_bytes().to_vec(), kind, mode: 0o600, uid: 0, gid: 0, mtime: 9 };
            out.extend(tarwrite::header(&member).unwrap());
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        if end {
            out.extend(tarwrite::END);
        }
        out
    }

    fn assemble(archives: &[(Option<u32>, Vec<u8>)], cut: usize) -> (Vec<Frame>, Kept) {
        assemble_with(Assembler::default(), archives, cut)
    }

    fn assemble_with(
        mut assembler: Assembler,
        archives: &[(Option<u32>, Vec<u8>)],
        cut: usize,
    ) -> (Vec<Frame>, Kept) {
        let mut frames = Vec::new();
        for (tablespace, bytes) in archives {
            assembler.archive(*tablespace).unwrap();
            for piece in bytes.chunks(cut) {
                assembler.push(Bytes::copy_from_slice(piece));
                while let Some(frame) = assembler.frame().unwrap() {
                    frames.push(frame);
                }
            }
        }
        let (last, kept) = assembler.finish().unwrap();
        frames.push(last);
        (frames, kept)
    }

    /// Read by a tar reader that is not ours.
    fn unpacked(frames: &[Frame]) -> Vec<(String, Vec<u8>)> {
        let stream: Vec<u8> = frames.iter().flat_map(|f| f.plain.clone()).collect();
        let mut tar = tar::Archive::new(stream.as_slice());
        let mut found = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            found.push((path, data));
        }
        assert!(stream.ends_with(&[0; 1024]) && stream.len().is_multiple_of(512));
        found
    }

    /// The members' data as the parts tell it.
    fn by_parts(frames: &[Frame]) -> Vec<(String, Vec<u8>)> {
        let mut found: Vec<(String, Vec<u8>)> = Vec::new();
        for frame in frames {
            for part in &frame.parts {
                match part {
                    Part::Begin(member) => {
                        let slash = if member.kind == MemberKind::Directory { "/" } else { "" };
                        found.push((format!("{}{slash}", String::from_utf8_lossy(&member.path)), Vec::new()));
                    }
                    Part::Data { at, len, .. } => {
                        found.last_mut().unwrap().1.extend_from_slice(&frame.plain[*at..at + len]);
                    }
                    Part::End => {}
                }
            }
        }
        found
    }

    #[test]
    fn tablespaces_and_base_become_one_archive_that_ends_once() {
        let archives = [
            (Some(16400), archive(&[("PG_15_202209061/5/16401", b"rows")], true)),
            (None, archive(&[("backup_label", b"START"), ("global/pg_control", b"C")], false)),
        ];
        let (frames, kept) = assemble(&archives, 100);
        let want = [
            ("pg_tblspc/16400/", &b""[..]),
            ("pg_tblspc/16400/PG_15_202209061/5/16401", b"rows"),
            ("backup_label", b"START"),
            ("global/pg_control", b"C"),
        ]
        .map(|(path, data)| (path.to_owned(), data.to_vec()));
        assert_eq!(unpacked(&frames), want);
        assert_eq!(by_parts(&frames), want);
        assert_eq!((kept.label.as_slice(), kept.control.as_slice()), (&b"START"[..], &b"C"[..]));
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let mut assembler = Assembler::default();
        assembler.archive(None).unwrap();
        let whole = archive(&[("a", b"12345")], true);
        assembler.push(Bytes::copy_from_slice(&whole[..514]));
        assert!(assembler.frame().unwrap().is_none());
        assert!(assembler.archive(None).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4))]
        #[test]
        fn files_of_any_size_come_out_as_they_went_in(
            sizes in proptest::collection::vec(prop_oneof![0_usize..3000, 4_190_000_usize..4_200_000], 1..6),
            cut in 600_usize..70_000,
        ) {
            let data: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(i, size)| vec![u8::try_from(i + 1).unwrap(); *size]).collect();
            let names: Vec<String> = (0..data.len()).map(|i| format!("base/{i}")).collect();
            let files: Vec<(&str, &[u8])> =
                names.iter().map(String::as_str).zip(data.iter().map(Vec::as_slice)).collect();
            let (frames, _) = assemble(&[(None, archive(&files, true))], cut);
            let want: Vec<(String, Vec<u8>)> =
                files.iter().map(|(path, data)| ((*path).to_owned(), data.to_vec())).collect();
            prop_assert!(unpacked(&frames) == want);
            prop_assert!(by_parts(&frames) == want);
            for frame in &frames {
                prop_assert!(frame.plain.len() <= FRAME_BYTES + 70_000);
            }
        }

        #[test]
        fn no_page_is_split_and_each_part_knows_its_first_block(
            pages in proptest::collection::vec(0_usize..700, 1..6), rest in 0_usize..8192, before in 0_usize..5000,
            cut in 600_usize..70_000,
        ) {
            let layout = PageLayout::new(8192, 131_072).unwrap();
            let mut files = vec![("base/5/PG_VERSION".to_owned(), vec![1; before])];
            for (i, count) in pages.iter().enumerate() {
                let mut data: Vec<u8> = (0..u32::try_from(*count).unwrap())
                    .flat_map(|block| block.to_le_bytes().repeat(2048))
                    .collect();
                data.resize(data.len() + if i % 2 == 0 { rest } else { 0 }, 0xEE);
                files.push((format!("base/5/{}.1", 16384 + i), data));
            }
            let files: Vec<(&str, &[u8])> =
                files.iter().map(|(path, data)| (path.as_str(), data.as_slice())).collect();
            let (frames, _) = assemble_with(Assembler::new(Some(layout)), &[(None, archive(&files, true))], cut);
            let want: Vec<(String, Vec<u8>)> =
                files.iter().map(|(path, data)| ((*path).to_owned(), data.to_vec())).collect();
            prop_assert!(by_parts(&frames) == want);
            let mut checked = 0;
            for frame in &frames {
                prop_assert!(frame.plain.len() < FRAME_BYTES + 8192);
                for part in &frame.parts {
                    let Part::Data { at, len, block: Some(block) } = part else { continue };
                    for (page, number) in frame.plain[*at..at + len].as_chunks::<8192>().0.iter().zip(*block..) {
                        prop_assert_eq!(page[..4].to_vec(), (number - 131_072).to_le_bytes().to_vec());
                        checked += 1;
                    }
                }
            }
            prop_assert_eq!(checked, pages.iter().sum::<usize>());
        }
    }
}
