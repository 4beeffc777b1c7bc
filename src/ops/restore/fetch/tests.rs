//! Fetching from packs in memory: whole, damaged, short, and in any cut.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::super::image::manifest_of;
use super::*;
use crate::codec::{self, Compression};
use crate::ops::Silent;
use crate::repo::manifest::{Extent, FileEntry, FileKind, Path};
use crate::repo::pack::{PackBuilder, PackInfo, TARGET, compress_frame};

fn long(n: usize) -> u64 {
    u64::try_from(n).unwrap()
}

#[derive(Default)]
struct Held {
    objects: Vec<(Vec<u8>, PackTable)>,
    infos: Vec<PackInfo>,
    reads: AtomicUsize,
    /// Damage that shows in the first read only.
    flaky: bool,
}

impl Held {
    /// Packs made of these frames.
    fn of(packs: &[Vec<Vec<u8>>]) -> Self {
        let mut held = Self::default();
        for frames in packs {
            let mut builder = PackBuilder::new(TARGET);
            for frame in frames {
                builder.push(compress_frame(frame, Compression::Zstd { level: 1 }).unwrap()).unwrap();
            }
            let pack = builder.finish().unwrap();
            held.infos.push(pack.info);
            let object = pack.chunks.concat();
            let table = PackTable::parse(&object).unwrap();
            held.objects.push((object, table));
        }
        held
    }
}

impl Packs for Held {
    async fn table(&self, pack: &PackLine) -> Result<PackTable> {
        Ok(self.objects[usize::try_from(pack.number).unwrap()].1.clone())
    }

    async fn read(&self, pack: &PackLine, range: Range<u64>) -> Result<Bytes> {
        let object = &self.objects[usize::try_from(pack.number).unwrap()].0;
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let mut bytes = object[range].to_vec();
        if self.reads.fetch_add(1, Ordering::Relaxed) == 0 && self.flaky {
            *bytes.last_mut().unwrap() ^= 1;
        }
        Ok(bytes.into())
    }
}

#[derive(Debug, Default)]
struct Files(Mutex<BTreeMap<u32, BTreeMap<u64, Vec<u8>>>>);

impl Sink for Files {
    fn put(&self, file: &File, at: u64, bytes: &[u8]) -> Result<()> {
        let twice = self.0.lock().unwrap().entry(file.number).or_default().insert(at, bytes.to_vec());
        assert!(twice.is_none(), "every byte comes once");
        Ok(())
    }
}

impl Files {
    /// The content of a file whose parts came in any order but leave no hole.
    fn content(&self, row: u32) -> Vec<u8> {
        let files = self.0.lock().unwrap();
        let mut whole = Vec::new();
        for (at, bytes) in files.get(&row).into_iter().flatten() {
            assert_eq!(*at, long(whole.len()), "a hole or an overlap");
            whole.extend_from_slice(bytes);
        }
        whole
    }
}

/// An image of files that lie one after the other in the packs, each pack holding `pack_bytes` of them.
fn world(files: &[Vec<u8>], frame_bytes: usize, frames_per_pack: usize) -> (Image, Held) {
    let stream: Vec<u8> = files.concat();
    let frames: Vec<Vec<u8>> = stream.chunks(frame_bytes).map(<[u8]>::to_vec).collect();
    let held = Held::of(&frames.chunks(frames_per_pack).map(<[_]>::to_vec).collect::<Vec<_>>());
    let pack_bytes = frame_bytes * frames_per_pack;
    let (mut entries, mut start) = (Vec::new(), 0);
    for (index, bytes) in files.iter().enumerate() {
        let mut extents = Vec::new();
        let (mut at, end) = (start, start + bytes.len());
        while at < end {
            let to = end.min((at / pack_bytes + 1) * pack_bytes);
            let (pack, offset) = (u32::try_from(at / pack_bytes).unwrap(), long(at % pack_bytes));
            extents.push(Extent { pack, offset, len: long(to - at) });
            at = to;
        }
        start = end;
        let crc = codec::hex(&crc32c::crc32c(bytes).to_le_bytes());
        entries.push(FileEntry {
            path: Path::new(format!("base/5/{index:06}")).unwrap(),
            kind: FileKind::File {
                size: long(bytes.len()),
                extents,
                checksum: Some(format!("CRC32C:{crc}")),
            },
            mode: 0o600,
            mtime: 0,
            uid: 0,
            gid: 0,
            user: String::new(),
            group: String::new(),
        });
    }
    let backup = || "20251017-103000-1a2b3c4d".parse().unwrap();
    let line = |(info, number): (&PackInfo, u32)| PackLine { backup: backup(), number, info: *info };
    let packs: Vec<PackLine> = held.infos.iter().zip(0..).map(line).collect();
    (Image::of(&manifest_of(&packs, &entries).unwrap()).unwrap(), held)
}

async fn fetched(image: &Image, held: &Held, jobs: usize) -> Result<Arc<Files>> {
    let files = Arc::new(Files::default());
    fetch(held, image, &|_| true, jobs, &files, &Silent).await?;
    Ok(files)
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_file_comes_back_however_it_is_cut(
        sizes in proptest::collection::vec(0_usize..5000, 1..30),
        frame in 100_usize..6000, per_pack in 1_usize..5, jobs in 1_usize..5,
    ) {
        let fill = |(n, size): (usize, &usize)| (0..*size).map(|i| u8::try_from((i * 7 + n) % 251).unwrap()).collect();
        let files: Vec<Vec<u8>> = sizes.iter().enumerate().map(fill).collect();
        let (image, held) = world(&files, frame, per_pack);
        let back = block(fetched(&image, &held, jobs)).unwrap();
        for (index, bytes) in files.iter().enumerate() {
            prop_assert_eq!(&back.content(u32::try_from(index).unwrap()), bytes);
        }
    }
}

#[test]
fn only_frames_that_hold_wanted_bytes_are_read() {
    let files: Vec<Vec<u8>> = (0..10).map(|n| vec![n; 1000]).collect();
    let (image, held) = world(&files, 1000, 10);
    let sink = Arc::new(Files::default());
    block(fetch(&held, &image, &|path| path == b"base/5/000004", 2, &sink, &Silent)).unwrap();
    assert_eq!(sink.content(4), files[4]);
    assert_eq!((sink.0.lock().unwrap().len(), held.reads.load(Ordering::Relaxed)), (1, 1));
}

#[test]
fn a_flipped_bit_is_corruption_and_names_the_pack() {
    let files = vec![(0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()];
    let (image, mut held) = world(&files, 100_000, 3);
    let object = &mut held.objects[1].0;
    let middle = object.len() / 2;
    object[middle] ^= 0x10;
    let error = block(fetched(&image, &held, 2)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.message().contains("pack 00001"), "{error}");
}

#[test]
fn damage_that_a_second_read_does_not_show_is_survived() {
    let (image, mut held) = world(&[vec![7; 5000]], 1000, 5);
    held.flaky = true;
    assert_eq!(block(fetched(&image, &held, 1)).unwrap().content(0), vec![7; 5000]);
    assert_eq!(held.reads.load(Ordering::Relaxed), 2);
}

#[test]
fn bytes_that_no_frame_holds_are_missed() {
    let (image, mut held) = world(&[vec![7; 5000]], 1000, 5);
    held.objects[0].1 = Held::of(&[vec![vec![7; 1000]; 4]]).objects.remove(0).1;
    assert_eq!(block(fetched(&image, &held, 1)).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn intact_frames_with_the_wrong_bytes_are_found_by_postgresqls_own_checksum() {
    let files = vec![vec![1; 1000], vec![2; 1000]];
    let (image, mut held) = world(&files, 1000, 2);
    // Two frames of equal size change places, digests and all.
    let swapped = Held::of(&[vec![vec![2; 1000], vec![1; 1000]]]);
    held.objects = swapped.objects;
    let error = block(fetched(&image, &held, 1)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.message().contains("base/5/000000"), "{error}");
}
