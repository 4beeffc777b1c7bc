//! Speed of the segment scan, in bytes per second on one core: what `archive-push` pays before it compresses.
//!
//! Synthetic segments of 16 MiB: small records (commits and single rows), middling ones, and pages full of images. A real one
//! is taken from the file that `PITR_BENCH_SEGMENT` names, if it is set.
//!   cargo bench --features testing --bench wal_scan
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use pitr::wal::testing::Wal;
use pitr::wal::{Keep, Lsn, PgTime, Scanner, SegmentName, SegmentSize};

fn synthetic(record: usize, commit_every: usize) -> (SegmentName, Vec<u8>) {
    let mut wal = Wal::starting_at(Lsn::new(16 << 20)).segment_size(SegmentSize::DEFAULT);
    let mut count = 0_i64;
    while wal.position() < Lsn::new((32 << 20) - 100_000) {
        for _ in 0..commit_every {
            wal = wal.filler(record);
        }
        count += 1;
        wal = wal.commit(PgTime::from_raw(count * 1000));
    }
    wal.fill_segment(record).segments().remove(0)
}

fn real() -> Option<(SegmentName, Vec<u8>)> {
    let path = PathBuf::from(std::env::var_os("PITR_BENCH_SEGMENT")?);
    let name = SegmentName::parse(path.file_name()?.to_str()?).ok()?;
    Some((name, std::fs::read(path).ok()?))
}

fn scan(group: &mut BenchmarkGroup<'_, WallTime>, label: &str, segment: &(SegmentName, Vec<u8>)) {
    let (name, bytes) = segment;
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let Ok(size) = SegmentSize::new(length) else { return };
    group.throughput(Throughput::Bytes(length));
    group.bench_function(label, |bencher| {
        bencher.iter(|| {
            let mut scanner = Scanner::new(*name, size, Keep::Summary)?;
            for piece in bytes.chunks(256 << 10) {
                scanner.push(black_box(piece))?;
            }
            scanner.finish()
        });
    });
}

fn wal_scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal_scan");
    scan(&mut group, "records of 64 bytes", &synthetic(64, 3));
    scan(&mut group, "records of 200 bytes", &synthetic(200, 10));
    scan(&mut group, "records of 8 KiB", &synthetic(8192, 2));
    if let Some(segment) = real() {
        scan(&mut group, "real segment", &segment);
    }
    group.finish();
}

criterion_group!(benches, wal_scan);
criterion_main!(benches);
