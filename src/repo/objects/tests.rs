//! Tests of the JSON objects: what is written comes back, and what is wrong is refused by name.
//!
//! Golden bytes of every object are in `tests/formats.rs`.
//! Sets of packs are compared with a plain sorted set.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn expired() -> Expired {
    Expired {
        id: "20251017-103000-1a2b3c4d".parse().unwrap(),
        nonce: Nonce::new([7; 16]),
        created: "2025-10-24T00:00:00Z".parse().unwrap(),
        reason: "older than 7 days".to_owned(),
    }
}

#[test]
fn an_object_says_first_what_it_is() {
    let bytes = encode(&expired());
    assert!(
        bytes.starts_with(b"{\n  \"pitr\": \"expired 1\",\n  \"id\": "),
        "{}",
        String::from_utf8_lossy(&bytes)
    );
    assert_eq!(decode::<Expired>(&bytes), Ok(expired()));
}

#[test]
fn members_of_the_future_are_skipped_and_formats_of_the_future_refused() {
    let text = String::from_utf8(encode(&expired())).unwrap();
    let (before, _) = text.split_once(",\n  \"sum\"").unwrap();
    let text = format!("{before}\n}}\n");
    assert!(!has_sum(text.as_bytes()));
    let sealed = text.replace("\n}", ",\n  \"mac\": \"00112233445566778899aabbccddeeff\"\n}");
    assert_eq!(decode::<Expired>(sealed.as_bytes()), Ok(expired()));
    let newer = text.replace("expired 1", "expired 2");
    assert_eq!(
        decode::<Expired>(newer.as_bytes()).unwrap_err().to_string(),
        "the expired object has format 2, this pitr reads up to 1"
    );
}

#[test]
fn every_changed_bit_of_an_object_is_seen() {
    let bytes = encode(&expired());
    assert!(has_sum(&bytes) && bytes.ends_with(b"\"\n}\n"));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // A bit in the sum's own name leaves an object without one, which readers take and `verify` does not.
        assert!(decode::<Expired>(&bad).is_err() || !has_sum(&bad), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(decode::<Expired>(&bytes[..len]).is_err() || !has_sum(&bytes[..len]), "{len} bytes");
    }
}

#[test]
fn another_kind_is_refused_by_name() {
    let bytes = encode(&expired());
    assert_eq!(
        decode::<Lease>(&bytes).unwrap_err().to_string(),
        "a lease object was expected, \"expired 1\" is there"
    );
    assert!(matches!(decode::<Expired>(b"{}"), Err(DocumentError::Damaged { .. })));
    assert!(matches!(decode::<Expired>(&bytes[..bytes.len() / 2]), Err(DocumentError::Damaged { .. })));
}

#[test]
fn floors_keep_what_lies_above_and_the_ranges_below() {
    let name = |text: &str| SegmentName::parse(text).unwrap();
    let floor = Floor {
        nonce: Nonce::new([0; 16]),
        created: Timestamp::UNIX_EPOCH,
        timelines: vec![TimelineFloor {
            timeline: TimelineId::FIRST,
            first: name("000000010000000000000010"),
            keep: vec![KeptRange {
                first: name("000000010000000000000004"),
                last: name("000000010000000000000006"),
            }],
        }],
    };
    let kept: Vec<u32> =
        (1..0x12).filter(|n| floor.keeps(name(&format!("0000000100000000{n:08X}")))).collect();
    assert_eq!(kept, [4, 5, 6, 0x10, 0x11]);
    assert!(floor.keeps(name("000000020000000000000001")), "other timelines have no floor");
}

#[test]
fn digests_of_the_most_packs_there_can_be_leave_room_in_a_verdict() {
    let text =
        String::from_utf8(include_bytes!("../../../tests/fixtures/format/backup.json").to_vec()).unwrap();
    let Ok(Verdict::Complete(mut verdict)) = Verdict::decode(text.as_bytes()) else { panic!("{text}") };
    assert_eq!(verdict.pack_digests, []);
    assert!(!text.contains("pack_digests"), "a verdict without them is what it was");
    verdict.pack_digests = (0..MAX_PACKS).map(|n| Digest::of(&n.to_le_bytes()).short()).collect();
    let bytes = encode(&*verdict);
    assert!(u64::try_from(bytes.len()).unwrap() < MAX_DOCUMENT / 3, "{}", bytes.len());
    assert_eq!(Verdict::decode(&bytes), Ok(Verdict::Complete(verdict)));
}

/// Readers ask for each of them.
#[test]
fn a_verdict_with_more_packs_than_there_can_be_is_refused() {
    let text = include_str!("../../../tests/fixtures/format/backup.json");
    let Ok(Verdict::Complete(mut verdict)) = Verdict::decode(text.as_bytes()) else { panic!("{text}") };
    verdict.packs.count = MAX_PACKS;
    assert!(Verdict::decode(&encode(&*verdict)).is_ok());
    verdict.packs.count = MAX_PACKS + 1;
    let refused = Verdict::decode(&encode(&*verdict)).unwrap_err().to_string();
    assert!(refused.contains("100001 packs are more than 100000"), "{refused}");
}

proptest! {
    #[test]
    fn a_pack_set_is_a_set(packs in proptest::collection::vec(0u32..60, 0..60)) {
        let set: PackSet = packs.iter().copied().collect();
        let plain: BTreeSet<u32> = packs.into_iter().collect();
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), plain.iter().copied().collect::<Vec<_>>());
        prop_assert!((0..62).all(|n| set.contains(n) == plain.contains(&n)));
        prop_assert_eq!(set.to_string().parse::<PackSet>().unwrap(), set);
    }

    #[test]
    fn a_pack_set_grows_by_another_as_by_its_numbers(
        one in proptest::collection::vec(0u32..60, 0..40), other in proptest::collection::vec(0u32..60, 0..40),
    ) {
        let mut set: PackSet = one.iter().copied().collect();
        set.add_all(&other.iter().copied().collect());
        prop_assert_eq!(set, one.into_iter().chain(other).collect::<PackSet>());
    }

    #[test]
    fn text_that_is_not_canonical_is_no_pack_set(text in "[0-9,-]{0,12}") {
        if let Ok(set) = text.parse::<PackSet>() {
            prop_assert!(set.len() <= 100_000);
            prop_assert!(set.to_string().len() <= text.len());
        }
    }
}
