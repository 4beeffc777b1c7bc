//! Which timelines a repository knows, among names of anybody's.
//!
//! What each question costs is counted: a name that somebody else chose must not make a server's question last.

use super::*;
use crate::store::fault::Faults;
use crate::store::{Created, Policy};

/// The repository, and the calls of its store from now on.
async fn counted() -> (System, Faults) {
    let store = Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
    let (store, faults) = store.with_faults(Policy::default());
    let repository = Repository::new(store, "local", "main".parse().unwrap(), true);
    (repository.create_identity(facts(SYSTEM), now()).await.unwrap().0, faults)
}

async fn create(system: &System, below_wal: &str) {
    let key = format!("{}{below_wal}", system.keys().wal_dir());
    assert_eq!(system.store().create(&key, "x").await.unwrap(), Created::New);
}

/// Timeline, whether its history is stored, and the first of its other files.
async fn told(system: &System) -> Vec<(u32, bool, Option<String>)> {
    let all = system.timelines().await.unwrap();
    all.into_iter()
        .map(|(t, found)| (t.get(), found.history, found.first_wal.map(|n| n.to_string())))
        .collect()
}

fn row(timeline: u32, history: bool, first: Option<&str>) -> (u32, bool, Option<String>) {
    (timeline, history, first.map(str::to_owned))
}

#[tokio::test]
async fn timelines_are_told_without_listing_their_segments() {
    let system = opened().await;
    for n in [1, 2, 3, 5000] {
        store_segment(&system, n).await;
    }
    store_history(&system, "00000002.history", "1\t0/300000\tx\n").await;
    system.store().create(&system.keys().wal(name("00000003000000000000000A")), "x").await.unwrap();
    // No file of WAL is in these folders.
    create(&system, "00000004/00000000/000000040000000000000001.gap.json").await;
    create(&system, "0000000a/00000000/0000000A0000000000000001.wal").await;
    create(&system, "00000000/00000000/000000000000000000000001.wal").await;
    create(&system, "5.history").await;
    let expected = [
        row(1, false, Some("000000010000000000000001")),
        row(2, true, None),
        row(3, false, Some("00000003000000000000000A")),
    ];
    assert_eq!(told(&system).await, expected);
    let history = system.history(TimelineId::new(2).unwrap()).await.unwrap().unwrap();
    assert_eq!(history.fork().unwrap().switch, Lsn::new(0x30_0000));
}

#[tokio::test]
async fn names_of_somebody_else_cost_no_request_of_their_own() {
    let (system, faults) = counted().await;
    store_segment(&system, 7).await;
    for n in 0..200 {
        create(&system, &format!("a{n}")).await;
        create(&system, &format!("b{n}/x/y")).await;
        create(&system, &format!("00000001/00000000/0000000000{n}")).await;
    }
    let before = faults.calls().len();
    assert_eq!(told(&system).await, [row(1, false, Some("000000010000000000000007"))]);
    // The folder of all WAL; of timeline 1 a few keys, then many.
    assert_eq!(faults.calls()[before..].len(), 3, "{:?}", &faults.calls()[before..]);
}

#[tokio::test]
async fn a_server_that_asks_for_a_history_does_not_wait_for_other_timelines() {
    let (system, faults) = counted().await;
    for timeline in 2..60 {
        create(&system, &format!("{timeline:08X}/00000000/{timeline:08X}0000000000000001.wal")).await;
    }
    let asked = WalFileName::History(TimelineId::new(80).unwrap());
    let before = faults.calls().len();
    assert_eq!(system.absence(asked).await.unwrap(), Absence::Proven);
    let calls = &faults.calls()[before..];
    let lists = calls.iter().filter(|call| call.starts_with("list")).count();
    // The folder of all WAL, and the folder of the timeline.
    assert_eq!(lists, 2, "{calls:?}");

    // A folder without a file of WAL is none; one with a file is doubt, as is a history that names it.
    create(&system, "00000050/x").await;
    assert_eq!(system.absence(asked).await.unwrap(), Absence::Proven);
    store_history(&system, "00000051.history", "80\t0/300000\tx\n").await;
    assert!(matches!(system.absence(asked).await.unwrap(), Absence::Doubt(why) if why.contains("81")));
    create(&system, "00000050/00000000/000000500000000000000001.wal").await;
    assert!(matches!(system.absence(asked).await.unwrap(), Absence::Doubt(why) if why.contains("WAL of")));
}
