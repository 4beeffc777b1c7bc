//! Keys and age bodies: any bytes are answered; nothing is opened that was not sealed, and no error quotes what it read.
//!
//! The input is tried as an age file, as a wrap, as a host file, as an identity file, and behind a header that is right, as the body of one.
//! Once more it says which pieces of a file that is right were fetched, what was changed in them, and which range is wanted: that range comes
//! out as it was sealed, or not at all. Source of truth: FORMAT.md, "Sealed folders".
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pitr::seal::parts::{Held, Layout};
use pitr::seal::{AGE_MAGIC, Epoch, HostFile, Identity, Opener, Recipient, Wrap, body};

/// A fixed one, so that an input means the same in every run.
static KEY: LazyLock<Identity> = LazyLock::new(|| {
    let text = "AGE-SECRET-KEY-1QYPQXPQ9QCRSSZG2PVXQ6RS0ZQG3YYC5Z5TPWXQERGD3C8G7RUSQGPQYEE";
    Identity::parse_file(text).expect("it is one").remove(0)
});

/// Three chunks and a piece of a fourth.
static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| (0_u32..50_000).flat_map(u32::to_le_bytes).collect());
static SEALED: LazyLock<Bytes> = LazyLock::new(|| {
    let pieces = body::encrypt([Bytes::from(PLAIN.clone())], &[&KEY.recipient()]).expect("a recipient");
    pieces.concat().into()
});

fuzz_target!(|data: &[u8]| {
    let opener = Opener(std::slice::from_ref(&KEY));
    for file in [data.to_vec(), [AGE_MAGIC, data].concat()] {
        assert!(opener.plain(&file).is_err(), "nothing here was made for this key");
        let _ = opener.start(&file, false);
        for stored in [file.len() as u64, u64::MAX] {
            layout(&file, stored);
        }
        let wrap = Wrap(file.into());
        assert!(wrap.open(std::slice::from_ref(&KEY), "main", Epoch::FIRST).is_err());
    }
    pieces(opener, data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(host) = HostFile::parse(text) {
        assert_eq!(HostFile::parse(&host.render()), Ok(host));
    }
    let _ = Identity::parse_file(text);
    let _ = text.parse::<Epoch>();
    if let Ok(recipient) = text.parse::<Recipient>() {
        assert_eq!(recipient.to_string().parse(), Ok(recipient));
    }
});

/// Whatever a file says of itself, its chunks lie inside.
fn layout(head: &[u8], stored: u64) {
    let Ok(layout) = Layout::of(head, stored) else { return };
    let plain = layout.plain_len();
    assert!(plain <= stored);
    for range in [0..plain, 0..plain / 2, plain / 3..plain, plain..plain] {
        let chunks = layout.chunks(&range).expect("it is inside");
        assert!(chunks.start <= chunks.end && chunks.end <= stored);
    }
    assert_eq!(layout.chunks(&(0..plain.saturating_add(1))).is_some(), plain == u64::MAX);
}

/// Range wanted: two numbers. Then pieces: where, how much, and one byte changed or none.
fn pieces(opener: Opener<'_>, data: &[u8]) {
    let Some(([a, b, c, d, e, f], mut rest)) = data.split_first_chunk() else { return };
    let number = |low: &u8, middle: &u8, high: &u8| u64::from(u32::from_le_bytes([*low, *middle, *high, 0]));
    let range = number(a, b, c)..number(a, b, c).saturating_add(number(d, e, f));
    let file = &*SEALED;
    let mut held = Held::of(file.len() as u64);
    while let Some(([a, b, c, d, e, f, change], more)) = rest.split_first_chunk() {
        rest = more;
        let at = usize::try_from(number(a, b, c)).unwrap_or(0).min(file.len());
        let end = at.saturating_add(usize::try_from(number(d, e, f)).unwrap_or(0)).min(file.len());
        let mut piece = file[at..end].to_vec();
        if let Some(byte) = piece.get_mut(usize::from(change >> 1)).filter(|_| change & 1 == 1) {
            *byte ^= 1 << (change >> 5);
        }
        held = held.with(at as u64, piece.into());
    }
    let missing = held.missing(range.clone());
    assert!(range.is_empty() || (missing.start >= range.start && missing.end <= range.end));
    if let Ok(plain) = opener.range(held, &range) {
        let wanted = usize::try_from(range.start).expect("small")..usize::try_from(range.end).expect("small");
        assert!(PLAIN.get(wanted) == Some(&plain), "other bytes than were sealed, at {range:?}");
    }
}
