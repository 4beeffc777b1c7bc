//! Packs of an encrypted folder in memory: what a look at a few files fetches, and what is made of packs that somebody tampered with.

use std::collections::BTreeMap;

use super::super::image::{Image, manifest_of};
use super::super::{fetch, fetch::Sink, image::File};
use super::*;
use crate::codec::{Compression, Digest, len_u64};
use crate::ops::Silent;
use crate::repo::manifest::{Extent, FileEntry, FileKind, Path};
use crate::repo::objects::Verdict;
use crate::repo::pack::{PackBuilder, PackInfo, compress_frame};
use crate::repo::path::{BackupId, BackupObject, Sealing};
use crate::repo::{Keyring, NewIdentity, Repository, System};
use crate::seal::{Epoch, EpochKey, HostFile, Identity, NamedRecipient, Opened, Recipient, SealKey, body};
use crate::store::fault::Faults;
use crate::store::{Policy, Store, StoreOptions, StoreUrl};
use crate::wal::{PgMajor, SegmentSize, SystemId};

const MIB: u64 = 1 << 20;
const FRAME: u64 = 4 * MIB;
/// Frames of a pack.
const FRAMES: u64 = 6;
const SMALL: &[u8] = b"small/file";

/// Two packs of six frames; a file in each frame, and a small one at the end of the fourth.
struct World {
    store: Store,
    calls: Faults,
    system: System,
    epoch: Recipient,
    packs: Vec<PackLine>,
    image: Image,
}

fn id() -> BackupId {
    "20251017-103000-1a2b3c4d".parse().unwrap()
}

fn at(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

fn long(n: usize) -> u64 {
    u64::try_from(n).unwrap()
}

fn filling(pack: u64, frame: u64, salt: u8) -> Vec<u8> {
    let mut plain = vec![u8::try_from(pack * 16 + frame).unwrap() ^ salt; at(FRAME)];
    plain[at(FRAME) - 5..].copy_from_slice(b"small");
    plain
}

/// Frames as long as what they hold.
const LARGE: Compression = Compression::Stored;
/// Packs of some KiB.
const TINY: Compression = Compression::Zstd { level: 1 };

/// The chunks of a pack that is not encrypted.
fn plain_pack(pack: u64, salt: u8, how: Compression) -> (Vec<Bytes>, PackInfo) {
    let mut builder = PackBuilder::new(u64::MAX);
    for frame in 0..FRAMES {
        builder.push(compress_frame(&filling(pack, frame, salt), how).unwrap()).unwrap();
    }
    let pack = builder.finish().unwrap();
    (pack.chunks, pack.info)
}

fn entry(path: &str, pack: u32, offset: u64, len: u64) -> FileEntry {
    FileEntry {
        path: Path::new(path).unwrap(),
        kind: FileKind::File { size: len, extents: vec![Extent { pack, offset, len }], checksum: None },
        mode: 0o600,
        mtime: 0,
        uid: 0,
        gid: 0,
        user: String::new(),
        group: String::new(),
    }
}

impl World {
    async fn new(how: Compression) -> Self {
        let store = Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
        let (counted, calls) = store.with_faults(Policy::default().once());
        let (daily, key) = (Identity::generate(), EpochKey::generate(Epoch::FIRST));
        let now = "2025-10-17T10:30:00Z".parse().unwrap();
        let mut host = HostFile {
            cluster: "main".to_owned(),
            seal: SealKey::new([9; 32]),
            epoch: Epoch::FIRST,
            epochs: Vec::new(),
            recipients: vec![NamedRecipient { name: "daily".to_owned(), recipient: daily.recipient() }],
        };
        let opened = Opened { key, seal: host.seal.clone(), created: now, recipients: Vec::new() };
        let wrap = opened.wrap("main", &[&daily.recipient()]).unwrap();
        host.begin(&opened, wrap);
        let ring = Keyring::new(Some(host), vec![daily.clone()], None).unwrap();
        let plain = Repository::new(counted, "cloud", "main".parse().unwrap(), true);
        let facts = NewIdentity {
            system: SystemId::new(7),
            major: PgMajor::V15,
            segment_size: SegmentSize::new(MIB).unwrap(),
            sealing: Sealing::Sealed,
        };
        let repository = plain.with_keys(std::sync::Arc::new(ring), false);
        let (system, _) = repository.create_identity(facts, now).await.unwrap();
        let (mut packs, mut entries) = (Vec::new(), Vec::new());
        for number in 0..2_u32 {
            let (chunks, mut info) = plain_pack(number.into(), 0, how);
            let sealed = system.seal_data(chunks).await.unwrap();
            let whole = sealed.concat();
            (info.stored, info.digest) = (len_u64(&whole), Digest::of(&whole));
            system.put_backup_object(&id(), BackupObject::Pack(number), sealed).await.unwrap();
            packs.push(PackLine { backup: id(), number, info });
            entries.extend(
                (0..FRAMES).map(|n| entry(&format!("base/{number}{n}"), number, n * FRAME, FRAME - 5)),
            );
        }
        entries.push(entry("small/file", 0, 4 * FRAME - 5, 5));
        let image = Image::of(&manifest_of(&packs, &entries).unwrap()).unwrap();
        let epoch = opened.key.recipient();
        let world = Self { store, calls, system, epoch, packs, image };
        // Keys are looked up once.
        world.small(&world.backup()).await.unwrap();
        world
    }

    fn backup(&self) -> StoredBackup {
        let verdict = include_bytes!("../../../../tests/fixtures/format/backup.json");
        let Verdict::Complete(verdict) = Verdict::decode(verdict).unwrap() else { panic!("a complete one") };
        StoredBackup::new(self.system.clone(), *verdict)
    }

    async fn small(&self, backup: &StoredBackup) -> Result<Vec<u8>> {
        let asked = BTreeMap::from([(SMALL.to_vec(), 5)]);
        backup.files(&self.image, &asked).await.map(|mut files| files.remove(SMALL).unwrap())
    }

    fn key(&self, number: u32) -> String {
        self.system.keys().backup(&id(), BackupObject::Pack(number))
    }

    async fn object(&self, number: u32) -> Vec<u8> {
        self.store.get(&self.key(number)).await.unwrap().unwrap().to_vec()
    }

    async fn replace(&self, number: u32, bytes: Vec<u8>) {
        self.store.delete(&self.key(number)).await.unwrap();
        self.store.create(&self.key(number), bytes).await.unwrap();
    }

    /// What was asked of packs since `mark`, and how many bytes came.
    fn since(&self, mark: (usize, u64)) -> (usize, u64) {
        let calls = self.calls.calls();
        let of_packs = calls[mark.0..].iter().filter(|call| call.contains("pack-")).count();
        (of_packs, self.calls.bytes_read() - mark.1)
    }

    fn mark(&self) -> (usize, u64) {
        (self.calls.calls().len(), self.calls.bytes_read())
    }

    /// Somebody's pack in the place of the first one, made with what the repository shows: the epoch's public key.
    async fn forge(&self, chunks: Vec<Bytes>) {
        let stored = self.packs[0].info.stored;
        // age fills its header with random lines; a forger tries until the size is right.
        loop {
            let forged = body::encrypt(chunks.clone(), &[&self.epoch]).unwrap().concat();
            if len_u64(&forged) == stored {
                return self.replace(0, forged).await;
            }
        }
    }

    async fn refusal(&self) -> String {
        let error = self.small(&self.backup()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        error.to_string()
    }
}

struct Everything(std::sync::Mutex<BTreeMap<Vec<u8>, u64>>);

impl Sink for Everything {
    fn put(&self, file: &File, _at: u64, bytes: &[u8]) -> Result<()> {
        *self.0.lock().unwrap().entry(file.path.clone()).or_default() += len_u64(bytes);
        Ok(())
    }
}

#[tokio::test]
async fn a_small_file_takes_its_frame_and_two_ends_of_its_pack_and_nothing_of_another() {
    let world = World::new(LARGE).await;
    let backup = world.backup();
    let mark = world.mark();
    assert_eq!(world.small(&backup).await.unwrap(), b"small");
    let (calls, read) = world.since(mark);
    assert_eq!(calls, 3, "{:?}", world.calls.calls());
    let ends = parts::HEAD + parts::tail_for(1);
    assert!((FRAME..FRAME + ends + 3 * 65_552).contains(&read), "{read} of {}", world.packs[0].info.stored);
    // The ends are kept.
    let mark = world.mark();
    assert_eq!(world.small(&backup).await.unwrap(), b"small");
    assert_eq!(world.since(mark).0, 1);
}

#[tokio::test]
async fn all_of_a_pack_is_read_in_parts_and_no_byte_twice_but_chunks_where_two_meet() {
    let world = World::new(LARGE).await;
    let mark = world.mark();
    let sink = std::sync::Arc::new(Everything(Default::default()));
    fetch::fetch(&world.backup(), &world.image, &|_| true, 2, &sink, &Silent).await.unwrap();
    assert_eq!(sink.0.lock().unwrap().values().sum::<u64>(), 2 * FRAMES * (FRAME - 5) + 5);
    let stored = world.packs.iter().map(|pack| pack.info.stored).sum::<u64>();
    let (calls, read) = world.since(mark);
    // Two ends and each frame, of which two are more than a read takes; whole, it would take the memory of a pack.
    assert_eq!(calls, at(2 * (2 + FRAMES)));
    assert!((stored..stored + 65_552 * 2 * long(calls)).contains(&read), "{read} of {stored}");
}

#[tokio::test]
async fn a_pack_that_somebody_made_for_the_same_key_is_refused_in_part_too() {
    // Small ones: a forger tries a hundred times.
    let world = World::new(TINY).await;
    let good = world.object(0).await;
    // His own rows, and a table that fits them.
    world.forge(plain_pack(0, 1, TINY).0).await;
    let said = world.refusal().await;
    assert!(said.contains("pack-00000") && said.contains("digest"), "{said}");
    // His own rows under the very table of the pack, if he should know it.
    let (mut chunks, _) = plain_pack(0, 1, TINY);
    let last = chunks.len() - 1;
    chunks[last] = plain_pack(0, 0, TINY).0[last].clone();
    world.forge(chunks).await;
    let said = world.refusal().await;
    assert!(said.contains("pack 00000") && said.contains("other bytes"), "{said}");
    // Another pack of the same backup.
    world.replace(0, world.object(1).await).await;
    assert!(world.refusal().await.contains("pack-00000"));
    world.replace(0, good).await;
    assert_eq!(world.small(&world.backup()).await.unwrap(), b"small");
}

#[tokio::test]
async fn what_was_changed_or_cut_is_named_as_damage_wherever_it_lies() {
    let world = World::new(LARGE).await;
    let good = world.object(0).await;
    let len = good.len();
    // Magic, recipient, mac of the header, nonce, the frame, the last chunk.
    let header = good.windows(5).position(|w| w == b"\n--- ").unwrap();
    let flipped = |place: usize| {
        let mut bad = good.clone();
        bad[place] ^= 1;
        bad
    };
    for place in [3, 40, header + 10, header + 60, at(3 * FRAME + 2 * MIB), len - 1] {
        world.replace(0, flipped(place)).await;
        assert!(world.refusal().await.contains("pack-00000"), "changed at {place}");
    }
    // In a frame that nobody asked for.
    world.replace(0, flipped(at(2 * FRAME))).await;
    assert_eq!(world.small(&world.backup()).await.unwrap(), b"small");
    for cut in [0, 10, header, 9000, len / 2, len - 70_000, len - 1] {
        world.replace(0, good[..cut].to_vec()).await;
        assert!(world.refusal().await.contains("pack-00000"), "cut at {cut}");
    }
    world.store.delete(&world.key(0)).await.unwrap();
    assert!(world.refusal().await.contains("pack-00000"));
}

#[tokio::test]
async fn ends_that_were_read_badly_are_not_kept() {
    let world = World::new(LARGE).await;
    let good = world.object(0).await;
    for place in [good.len() - 1, 40] {
        let (backup, mut bad) = (world.backup(), good.clone());
        bad[place] ^= 1;
        world.replace(0, bad).await;
        assert!(world.small(&backup).await.is_err(), "changed at {place}");
        world.replace(0, good.clone()).await;
        let mark = world.mark();
        assert_eq!(world.small(&backup).await.unwrap(), b"small");
        let (calls, read) = world.since(mark);
        assert!(calls == 3 && read < 2 * FRAME, "changed at {place}: {calls} calls, {read} bytes");
    }
}

#[tokio::test]
async fn a_bad_read_of_kept_ends_costs_two_small_reads_and_no_pack() {
    let world = World::new(LARGE).await;
    let (good, backup) = (world.object(0).await, world.backup());
    // The ends come from a bad object, what is between them from the good one.
    let mut bad = good.clone();
    bad[40] ^= 1;
    world.replace(0, bad).await;
    backup.ends(&world.packs[0]).await.unwrap();
    world.replace(0, good).await;
    let mark = world.mark();
    assert_eq!(world.small(&backup).await.unwrap(), b"small");
    let (calls, read) = world.since(mark);
    assert!(calls <= 4 && read < 2 * FRAME, "{calls} calls, {read} bytes");
}

#[tokio::test]
async fn in_doubt_one_pack_is_held_at_a_time() {
    let world = World::new(LARGE).await;
    let mut bad = world.object(0).await;
    bad[40] ^= 1;
    world.replace(0, bad).await;
    let (backup, pack) = (world.backup(), &world.packs[0]);
    let held = backup.sealed.doubt.acquire().await.unwrap();
    let mark = world.mark();
    let mut reads =
        std::pin::pin!(async { tokio::join!(backup.sealed_read(pack, 0..1), backup.sealed_table(pack)) });
    let waited = tokio::time::timeout(std::time::Duration::from_millis(300), &mut reads).await;
    assert!(waited.is_err() && world.since(mark).1 < pack.info.stored, "parts were read, and no pack");
    drop(held);
    let (read, table) = reads.await;
    assert_eq!((read.unwrap_err().kind(), table.unwrap_err().kind()), (Kind::Corrupt, Kind::Corrupt));
    assert!(world.since(mark).1 > 2 * pack.info.stored);
}

#[tokio::test]
async fn without_the_right_key_it_is_the_key_that_is_missed() {
    let world = World::new(LARGE).await;
    let host = world.system.repository().keys().and_then(Keyring::host).unwrap().clone();
    let ring = Keyring::new(Some(host), vec![Identity::generate()], None).unwrap();
    let repository = world.system.repository().with_keys(std::sync::Arc::new(ring), false);
    let backup =
        StoredBackup::new(repository.open(SystemId::new(7)).await.unwrap(), world.backup().verdict().clone());
    assert_eq!(world.small(&backup).await.unwrap_err().kind(), Kind::Key);
}
