//! Tar archives: any bytes are answered, however they are cut, and no accepted path leads out of the target.
//!
//! The first byte is the size of the pieces, the rest the archive. What is accepted can be written again and reads the same. Checksums
//! are repaired before reading, or nothing behind them would ever be reached.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pitr::pgwire::tar::{BLOCK, MemberKind, TarEnd, TarError, TarItem, TarReader, parse_header};
use pitr::pgwire::tarwrite;

fuzz_target!(|data: &[u8]| {
    let Some((&piece, archive)) = data.split_first() else { return };
    let mut archive = archive.to_vec();
    archive.chunks_exact_mut(BLOCK).for_each(repair);
    let whole = read(&archive, archive.len().max(1));
    assert_eq!(whole, read(&archive, usize::from(piece).max(1)));
    for item in &whole.0 {
        let TarItem::Member(member) = item else { continue };
        let plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
        assert!(member.path.split(|&byte| byte == b'/').all(plain), "{member:?}");
        if let Ok(header) = tarwrite::header(member)
            && header.len() == BLOCK
        {
            assert_eq!(parse_header(header.first_chunk().expect("one block"), 0).as_ref(), Ok(member));
        }
    }
});

/// Gives a block that looks like a header the right checksum.
fn repair(block: &mut [u8]) {
    if block.get(257..262) != Some(b"ustar") {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The items but for data, whose pieces differ; the bytes of data; and how it ended.
fn read(archive: &[u8], piece: usize) -> (Vec<TarItem>, u64, Result<TarEnd, TarError>) {
    let (mut reader, mut items, mut bytes, mut left) = (TarReader::new(), Vec::new(), 0, 0);
    for chunk in archive.chunks(piece) {
        reader.push(Bytes::copy_from_slice(chunk));
        loop {
            match reader.next() {
                Ok(None) => break,
                Ok(Some(TarItem::Data(data))) => {
                    let count = u64::try_from(data.len()).expect("a length");
                    assert!(count > 0 && count <= left);
                    (bytes, left) = (bytes + count, left - count);
                }
                Ok(Some(item)) => {
                    assert_eq!(left, 0);
                    if let TarItem::Member(member) = &item
                        && let MemberKind::File { size } = member.kind
                    {
                        left = size;
                    }
                    items.push(item);
                }
                Err(error) => return (items, bytes, Err(error)),
            }
        }
    }
    (items, bytes, reader.finish())
}
