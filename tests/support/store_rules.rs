//! What pitr relies on of every kind of store, as checks of one store: `tests/store_conformance.rs` runs them on each.
//!
//! Each check takes the store as it finds it and uses keys below a folder of its own. A store that is there must pass [`all_rules`];
//! one that is not (no bucket, no disk, no credentials) must fail every call in the same way: [`every_call_fails`].

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use pitr::store::{Class, Created, Policy, Store, StoreErrorKind, StoreOptions, StoreUrl};

/// Deadlines short enough for tests and long enough for a loaded machine.
pub fn impatient() -> Policy {
    let wait = Duration::from_millis(50);
    Policy { base: Duration::from_secs(20), attempts: 3, first_wait: wait, longest_wait: wait }
}

/// Opens a store with these deadlines.
pub fn open(url: &str, options: &StoreOptions) -> Result<Store> {
    Ok(Store::open(&url.parse::<StoreUrl>()?, options)?.with_policy(impatient()))
}

/// How far a store can be held to the rules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Held {
    /// To all of them.
    Fully,
    /// To what s3s-fs does right.
    ButForItsFaults,
}

/// Every rule, on one store.
pub async fn all_rules(store: &Store, held: Held) -> Result<()> {
    a_second_create_finds_the_first_and_changes_nothing(store).await.context("create twice")?;
    racing_creates_have_one_winner(store, held).await.context("race")?;
    a_range_is_cut_to_the_object(store).await.context("range")?;
    listings_are_in_order_and_complete(store).await.context("list")?;
    folders_are_what_holds_an_object(store).await.context("folders")?;
    what_is_not_there_is_none_and_deleting_it_succeeds(store, held).await.context("absence")?;
    every_permitted_character_may_be_in_a_key(store).await.context("characters")?;
    larger_than_expected_is_refused(store).await.context("limit")?;
    impossible_keys_are_refused(store).await.context("keys")
}

async fn a_second_create_finds_the_first_and_changes_nothing(store: &Store) -> Result<()> {
    let body = vec![Bytes::from_static(b"one "), Bytes::new(), Bytes::from_static(b"body")];
    ensure!(store.create("twice/a.json", body.clone()).await? == Created::New);
    ensure!(store.create("twice/a.json", body).await? == Created::Exists);
    ensure!(store.create("twice/a.json", "another body").await? == Created::Exists);
    ensure!(store.get("twice/a.json").await?.as_deref() == Some(b"one body".as_slice()));
    let info = store.head("twice/a.json").await?.context("head finds it")?;
    ensure!((info.key.as_str(), info.size) == ("twice/a.json", 8));
    let age = jiff::Timestamp::now().duration_since(info.modified).as_secs();
    ensure!(age.abs() < 300, "written {age} s ago");
    let large = Bytes::from(vec![7; 20 << 20]);
    ensure!(store.create("twice/large.bin", large.clone()).await? == Created::New);
    ensure!(store.get("twice/large.bin").await? == Some(large));
    ensure!(store.create("twice/empty", "").await? == Created::New);
    ensure!(store.get("twice/empty").await? == Some(Bytes::new()));
    Ok(())
}

async fn racing_creates_have_one_winner(store: &Store, held: Held) -> Result<()> {
    let report = store.probe_create_race("race/").await?;
    ensure!(report.readback_equal && report.later_refused && report.left_behind.is_none(), "{report:?}");
    ensure!(report.winners >= 1 && (report.is_safe() || held == Held::ButForItsFaults), "{report:?}");
    ensure!(store.list("race/").await?.is_empty());
    Ok(())
}

async fn a_range_is_cut_to_the_object(store: &Store) -> Result<()> {
    store.create("range/ten", "0123456789").await?;
    for (range, expected) in
        [(0..10, "0123456789"), (2..5, "234"), (8..99, "89"), (10..20, ""), (50..60, ""), (3..3, "")]
    {
        let found = store.get_range("range/ten", range.clone()).await?;
        ensure!(found.as_deref() == Some(expected.as_bytes()), "{range:?}: {found:?}");
    }
    ensure!(store.get_range("range/none", 0..5).await?.is_none());
    ensure!(store.get_range("range/none", 5..5).await?.is_none());
    Ok(())
}

/// More keys than a server puts on one page.
async fn listings_are_in_order_and_complete(store: &Store) -> Result<()> {
    let expected: Vec<String> = (0..1_100).map(|n| format!("many/{:02}/{n:05}.wal", n / 256)).collect();
    let mut creates = tokio::task::JoinSet::new();
    for key in expected.iter().rev() {
        if creates.len() >= 16 {
            creates.join_next().await.context("a create")???;
        }
        let (store, key) = (store.clone(), key.clone());
        creates.spawn(async move { store.create(&key, "x").await });
    }
    while let Some(done) = creates.join_next().await {
        done??;
    }
    let keys =
        |found: Vec<pitr::store::ObjectInfo>| found.into_iter().map(|info| info.key).collect::<Vec<_>>();
    ensure!(keys(store.list("many/").await?) == expected);
    ensure!(keys(store.list("many/01/003").await?) == expected[300..400]);
    ensure!(keys(store.list_after("many/", Some(&expected[700]), None).await?) == expected[701..]);
    ensure!(keys(store.list_after("many/", Some(&expected[700]), Some(1)).await?) == expected[701..702]);
    ensure!(keys(store.list_after("many/", Some(&expected[1_099]), Some(1)).await?).is_empty());
    ensure!(store.list_dirs("many/").await? == ["00", "01", "02", "03", "04"]);
    ensure!(keys(store.list_folder("many/01/").await?.objects) == expected[256..512]);
    ensure!(store.list("many/9").await?.is_empty());
    Ok(())
}

async fn folders_are_what_holds_an_object(store: &Store) -> Result<()> {
    for key in ["tree/b/deep/1", "tree/a/1", "tree/a-b/1", "tree/file", "tree/a.b"] {
        store.create(key, "x").await?;
    }
    ensure!(store.list_dirs("tree/").await? == ["a", "a-b", "b"]);
    let beside =
        |found: pitr::store::Folder| found.objects.into_iter().map(|info| info.key).collect::<Vec<_>>();
    ensure!(beside(store.list_folder("tree/").await?) == ["tree/a.b", "tree/file"]);
    ensure!(beside(store.list_folder("tree/b/").await?).is_empty());
    let order: Vec<String> = store.list("tree/").await?.into_iter().map(|info| info.key).collect();
    ensure!(order == ["tree/a-b/1", "tree/a.b", "tree/a/1", "tree/b/deep/1", "tree/file"], "{order:?}");
    store.delete("tree/b/deep/1").await?;
    ensure!(store.list_dirs("tree/").await? == ["a", "a-b"]);
    ensure!(store.list_dirs("tree/nothing/").await?.is_empty());
    ensure!(store.list_dirs("").await?.contains(&"tree".to_owned()));
    ensure!(store.list_dirs("tree").await.is_err());
    Ok(())
}

async fn what_is_not_there_is_none_and_deleting_it_succeeds(store: &Store, held: Held) -> Result<()> {
    store.create("gone/once", "x").await?;
    store.delete("gone/once").await?;
    let folders = if held == Held::Fully { ["gone", "twice/a.json/below"].as_slice() } else { &[] };
    for &key in ["gone/once", "gone/never"].iter().chain(folders) {
        ensure!(store.get(key).await.with_context(|| key.to_owned())?.is_none(), "{key}");
        ensure!(store.head(key).await.with_context(|| key.to_owned())?.is_none(), "{key}");
    }
    store.delete("gone/once").await?;
    store.delete("gone/never/there").await?;
    ensure!(store.create("gone/once", "again").await? == Created::New);
    Ok(())
}

async fn every_permitted_character_may_be_in_a_key(store: &Store) -> Result<()> {
    let keys = ["odd/A-Z_a.z=0+9@h~t", "odd/a+b/c=d@e", "odd/a-b", "odd/a.b/~", "odd/a=b"];
    for key in keys {
        ensure!(store.create(key, key).await? == Created::New, "{key}");
        ensure!(store.create(key, "other").await? == Created::Exists, "{key}");
        ensure!(store.get(key).await?.as_deref() == Some(key.as_bytes()), "{key}");
        ensure!(store.head(key).await?.is_some_and(|info| info.key == key), "{key}");
    }
    let listed =
        |found: Vec<pitr::store::ObjectInfo>| found.into_iter().map(|info| info.key).collect::<Vec<_>>();
    ensure!(listed(store.list("odd/").await?) == keys);
    ensure!(listed(store.list("odd/a+").await?) == keys[1..2]);
    ensure!(listed(store.list_after("odd/", Some("odd/a-b"), None).await?) == keys[3..]);
    ensure!(store.list_dirs("odd/").await? == ["a+b", "a.b"]);
    for key in keys {
        store.delete(key).await.with_context(|| key.to_owned())?;
    }
    ensure!(store.list("odd/").await?.is_empty());
    Ok(())
}

async fn larger_than_expected_is_refused(store: &Store) -> Result<()> {
    store.create("limit/100", vec![1; 100]).await?;
    ensure!(store.get_limited("limit/100", 100).await?.is_some());
    let error = store.get_limited("limit/100", 99).await.err().context("refused")?;
    ensure!(error.kind == StoreErrorKind::TooLarge && error.class() == Class::Permanent, "{error}");
    Ok(())
}

async fn impossible_keys_are_refused(store: &Store) -> Result<()> {
    for key in ["", "/a", "a/", "../a", "a//b", ".hidden", "a b"] {
        let error = store.create(key, "x").await.err().with_context(|| format!("{key:?} is refused"))?;
        ensure!(error.kind == StoreErrorKind::Usage, "{error}");
        ensure!(store.get(key).await.is_err() && store.delete(key).await.is_err());
    }
    Ok(())
}

/// No call takes the absence of the store for the absence of an object.
pub async fn every_call_fails(store: &Store, kind: StoreErrorKind) -> Result<()> {
    let failures = [
        store.get("a/b").await.err(),
        store.get_range("a/b", 0..9).await.err(),
        store.head("a/b").await.err(),
        store.create("a/b", "x").await.err(),
        store.list("a/").await.err(),
        store.list("").await.err(),
        store.list_dirs("").await.err(),
        store.list_folder("a/").await.err(),
        store.list_after("a/", Some("a/b"), Some(1)).await.err(),
        store.delete("a/b").await.err(),
        store.probe_create_race("").await.err(),
    ];
    for (call, failure) in failures.into_iter().enumerate() {
        let error = failure.with_context(|| format!("call {call} fails"))?;
        ensure!(error.kind == kind, "call {call}: {error:?}");
        ensure!(error.to_string().contains(&store.url().to_string()), "{error}");
    }
    Ok(())
}
