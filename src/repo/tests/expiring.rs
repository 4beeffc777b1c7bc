//! Readers beside a running expiry, in a store that keeps versions: what expiry deletes is as if it were gone, what somebody else
//! deletes stays a doubt.
//!
//! The reader's listing is older than its reads, by any number of the steps in which a backup is deleted.

use super::*;
use crate::repo::catalog::BackupFiles;
use crate::store::Policy;
use crate::store::fault::Faults;

/// A folder in a store that keeps what is deleted under delete markers.
async fn versioned() -> (System, Faults) {
    let (store, faults) = repository().store().with_faults(Policy::default().once());
    faults.add("hide@delete:1+").unwrap();
    let repository = Repository::new(store, "cloud", "main".parse().unwrap(), true);
    (repository.create_identity(facts(SYSTEM), now()).await.unwrap().0, faults)
}

async fn delete(system: &System, object: BackupObject) {
    system.store().delete(&system.keys().backup(&id(1), object)).await.unwrap();
}

fn is_hidden<T: std::fmt::Debug>(found: &Result<T, RepoError>) {
    assert!(matches!(found, Err(e) if e.is_hidden()), "{found:?}");
}

/// As expiry deletes.
const STEPS: [BackupObject; 5] = [
    BackupObject::Pack(0),
    BackupObject::Manifest,
    BackupObject::Intent,
    BackupObject::Verdict,
    BackupObject::Expired,
];

#[tokio::test]
async fn a_backup_that_is_deleted_while_it_is_listed_fails_no_listing() {
    for marked in [true, false] {
        for seen in 0..=STEPS.len() {
            let (system, _) = versioned().await;
            if marked {
                store_backup(&system, 1).await;
                system.expire(&id(1), "test", now()).await.unwrap();
            } else {
                system.create_intent(&intent(1)).await.unwrap();
                system.abandon(&id(1), "its writer is gone", now()).await.unwrap();
            }
            let mut listing = BackupFiles::default();
            for (step, object) in STEPS.iter().enumerate() {
                if step == seen {
                    listing = system.listed(&id(1)).await.unwrap();
                }
                delete(&system, *object).await;
                let is_read = listing.has(BackupObject::Intent) || listing.has(BackupObject::Verdict);
                if step < seen || !is_read {
                    continue;
                }
                let read = system.read_backup(id(1), listing.clone()).await.unwrap();
                let is_left = !system.listed(&id(1)).await.unwrap().is_empty();
                assert_eq!(read.is_some(), is_left, "{marked} {seen} {step}: {read:?}");
                assert!(system.catalog().await.unwrap().complete().next().is_none());
            }
        }
    }
}

#[tokio::test]
async fn what_somebody_deletes_of_a_backup_that_is_kept_is_a_doubt() {
    for object in [BackupObject::Intent, BackupObject::Verdict] {
        let (system, _) = versioned().await;
        store_backup(&system, 1).await;
        let listing = system.listed(&id(1)).await.unwrap();
        delete(&system, object).await;
        is_hidden(&system.read_backup(id(1), listing).await);
        is_hidden(&system.usable_parent(&id(1)).await);
    }
}

#[tokio::test]
async fn a_reader_is_told_that_the_backup_expired_and_not_of_markers() {
    let (system, _) = versioned().await;
    let backup = store_backup(&system, 1).await;
    let is_expired = async || {
        let found = system.manifest(&backup).await;
        assert!(matches!(found, Err(RepoError::Expired { .. })), "{found:?}");
    };
    delete(&system, BackupObject::Manifest).await;
    is_hidden(&system.manifest(&backup).await);
    system.expire(&id(1), "test", now()).await.unwrap();
    is_expired().await;
    for object in STEPS {
        delete(&system, object).await;
        is_expired().await;
    }
    // The tombstone went too: neither can be pinned, nor is it anybody's parent, nor does its lease hold.
    let pinned = system.pin(PinKind::Reader, &id(1), segment(), "restore", now()).await;
    assert!(matches!(pinned, Err(RepoError::Expired { .. })), "{pinned:?}");
    assert!(system.usable_parent(&id(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn the_tombstone_of_a_backup_that_is_there_is_missed() {
    let (system, _) = versioned().await;
    store_backup(&system, 1).await;
    system.expire(&id(1), "test", now()).await.unwrap();
    delete(&system, BackupObject::Expired).await;
    is_hidden(&system.is_expired(&id(1)).await);
    delete(&system, BackupObject::Pack(0)).await;
    assert!(!system.went(&id(1)).await.unwrap());
}

/// Nobody can follow them; whoever put them there is named by the key.
#[tokio::test]
async fn the_last_number_there_is_is_named_and_not_written_again() {
    let (system, _) = versioned().await;
    store_backup(&system, 1).await;
    let lease = Lease { backup: id(1), nonce: Nonce::new([2; 16]), created: now(), process: this_process() };
    let last = SystemObject::Lease(u32::MAX);
    system.put_document(&system.keys().key(&last), &lease).await.unwrap();
    let error = system.lease_state().await.unwrap_err().to_string();
    assert!(error.contains("4294967295") && error.contains("the last there is"), "{error}");
    let floor = Floor { nonce: Nonce::new([1; 16]), created: now(), timelines: Vec::new() };
    system.put_document(&system.keys().key(&SystemObject::Floor(u32::MAX)), &floor).await.unwrap();
    let error = system.raise_floor(|_| Some(Vec::new()), now()).await.unwrap_err().to_string();
    assert!(error.contains("4294967295") && error.contains("the last there is"), "{error}");
    // Its readers would have to refuse it.
    let keep = vec![KeptRange { first: segment(), last: segment() }; 200_000];
    let line = TimelineFloor { timeline: segment().timeline(), first: segment(), keep };
    let floor = Floor { timelines: vec![line], ..floor };
    let error = system.put_document(&system.keys().key(&SystemObject::Floor(7)), &floor).await.unwrap_err();
    assert!(matches!(&error, RepoError::Unwritable { .. }), "{error}");
}

#[tokio::test]
async fn the_lease_of_a_backup_that_expired_is_free() {
    let (system, _) = versioned().await;
    system.begin_backup(&intent(1), &LeaseState::Free { next: 1 }, now()).await.unwrap();
    system.abandon(&id(1), "ended", now()).await.unwrap();
    delete(&system, BackupObject::Verdict).await;
    is_hidden(&system.lease_state().await);
    delete(&system, BackupObject::Intent).await;
    assert_eq!(system.lease_state().await.unwrap(), LeaseState::Free { next: 2 });
}

#[tokio::test]
async fn a_pin_that_expiry_deletes_while_pins_are_listed_no_longer_counts() {
    let (system, _) = versioned().await;
    store_backup(&system, 1).await;
    let mut pins = Vec::new();
    for kind in [PinKind::Operator, PinKind::Reader] {
        let pinned = system.pin(kind, &id(1), segment(), "audit", now()).await.unwrap();
        let Pinned::Yes(pin) = pinned else { unreachable!() };
        pins.push(pin);
    }
    let listed = || async { system.store().list(&system.keys().pin_dir()).await.unwrap() };
    let (before, keys) =
        (listed().await, pins.iter().map(|id| system.keys().key(&SystemObject::Pin(id.clone()))));
    let keys: Vec<String> = keys.collect();
    system.release(&pins[0]).await.unwrap();
    let released = listed().await;
    system.store().delete(&keys[0]).await.unwrap();
    assert_eq!(system.pins_among(released.clone()).await.unwrap().len(), 1);
    // Nothing in the listing says that it might go.
    is_hidden(&system.pins_among(before).await);
    system.store().delete(&system.keys().key(&SystemObject::PinReleased(pins[0].clone()))).await.unwrap();
    assert_eq!(system.pins_among(released.clone()).await.unwrap().len(), 1);
    system.store().delete(&keys[1]).await.unwrap();
    is_hidden(&system.pins_among(released.clone()).await);
    let mut old = released;
    old.iter_mut().for_each(|object| object.modified = now());
    assert!(system.pins_among(old).await.unwrap().is_empty(), "a reader's runs out");
}

#[tokio::test]
async fn wal_that_expires_while_it_is_looked_at_is_not_there_and_other_wal_is_a_doubt() {
    let (system, _) = versioned().await;
    for n in [3, 4] {
        store_segment(&system, n).await;
        system.store().delete(&system.keys().wal(nth(n))).await.unwrap();
    }
    let name = |n| match nth(n) {
        WalFileName::Segment(name) => name,
        _ => unreachable!(),
    };
    is_hidden(&system.segment_info(name(3)).await);
    let lines = vec![TimelineFloor { timeline: TimelineId::FIRST, first: name(4), keep: Vec::new() }];
    system.raise_floor(|_| Some(lines.clone()), now()).await.unwrap();
    assert!(system.segment_info(name(3)).await.unwrap().is_none());
    assert!(system.segment_header(name(3)).await.unwrap().is_none());
    is_hidden(&system.segment_info(name(4)).await);
    is_hidden(&system.segment_header(name(4)).await);
}
