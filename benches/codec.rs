//! What a segment costs on its way in and out, piece by piece and whole, in bytes per second on one core.
//!
//! The headline is "segment in": scan, digest and zstd level 1 as `archive-push` does them, without the disk. Data: hashed text,
//! which compresses about 2.6 to 1 like rows of a real application, and the segment that `PITR_BENCH_SEGMENT` names, if it is set
//! (then also the whole way in, which needs real records).
//!   cargo bench --bench codec
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pitr::codec::{Compression, Digest, compress, decompress};
use pitr::pgdata::page::checksum;
use pitr::repo::walobject::{self, Asked, Facts, WalObjectBuilder};
use pitr::wal::{Keep, Scanner, SegmentName, SegmentSize, SystemId, WalFileName};

const LEVEL_1: Compression = Compression::Zstd { level: 1 };

/// Hexadecimal digests in rows: half a byte of information per byte, with a little repetition.
fn hashed_text(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 80);
    let mut n = 0_u64;
    while text.len() < bytes {
        text.extend_from_slice(format!("{n}\t{}\n", Digest::of(&n.to_le_bytes())).as_bytes());
        n += 1;
    }
    text.truncate(bytes);
    text
}

fn pieces(criterion: &mut Criterion) {
    let text = hashed_text(16 << 20);
    let frame = compress(&text, LEVEL_1).expect("compressible");
    let mut group = criterion.benchmark_group("codec, hashed text");
    group.throughput(Throughput::Bytes(16 << 20));
    group.bench_function("BLAKE3", |b| b.iter(|| Digest::of(black_box(&text))));
    group.bench_function("zstd 1", |b| b.iter(|| compress(black_box(&text), LEVEL_1)));
    group.bench_function("unzstd", |b| b.iter(|| decompress(black_box(&frame), 16 << 20)));
    group.finish();
}

/// The pages of a relation, in frames as a backup has them.
fn pages(criterion: &mut Criterion) {
    let text = hashed_text(4 << 20);
    let mut group = criterion.benchmark_group("pages, 4 MiB");
    group.throughput(Throughput::Bytes(4 << 20));
    group.bench_function("checksum", |b| {
        b.iter(|| black_box(&text).chunks(8192).zip(0..).fold(0, |all, (page, n)| all ^ checksum(page, n)));
    });
    group.bench_function("CRC-32C", |b| b.iter(|| crc32c::crc32c(black_box(&text))));
    group.finish();
}

fn segment(criterion: &mut Criterion) {
    let Some(path) = std::env::var_os("PITR_BENCH_SEGMENT").map(PathBuf::from) else { return };
    let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| SegmentName::parse(n).ok());
    let (Some(name), Ok(bytes)) = (name, std::fs::read(&path)) else { return };
    let Ok(size) = SegmentSize::new(u64::try_from(bytes.len()).unwrap_or(0)) else { return };
    let asked = Asked {
        cluster: "bench".parse().expect("a name"),
        system: SystemId::new(1),
        name: WalFileName::Segment(name),
    };
    let make = || {
        let mut scanner = Scanner::new(name, size, Keep::Summary).expect("a segment");
        let mut builder = WalObjectBuilder::new(asked.clone(), size.bytes(), LEVEL_1).expect("a size");
        for piece in bytes.chunks(256 << 10) {
            scanner.push(piece).expect("valid WAL");
            builder.push(piece).expect("in bounds");
        }
        builder.finish(Facts::Scanned(&scanner.finish().expect("valid WAL"))).expect("an object")
    };
    let object = make().chunks.concat();
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Bytes(size.bytes()));
    group.bench_function("in", |b| b.iter(make));
    group.bench_function("out", |b| {
        b.iter(|| {
            walobject::open(black_box(&object), &asked, |plain| {
                black_box(plain);
            })
        });
    });
    group.finish();
}

criterion_group!(benches, pieces, pages, segment);
criterion_main!(benches);
