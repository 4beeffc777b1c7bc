//! The facade under faults: what is repeated, what an unknown outcome becomes, what a probe finds out.
//!
//! The store beneath is memory; faults are injected between it and the facade, under a paused clock.
//! What all kinds of store have in common is in `tests/store_conformance.rs`.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::fault::Faults;
use super::*;

fn faulty(policy: Policy, rules: &str) -> (Store, Store, Faults) {
    let plain = Store::open(&"memory:".parse().unwrap(), &StoreOptions::default()).unwrap();
    let (store, faults) = plain.with_faults(policy);
    faults.add(rules).unwrap();
    (plain, store, faults)
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_reply_was_lost_is_created_again_and_found() {
    let (plain, store, faults) = faulty(Policy::default(), "lost@create:1");
    assert_eq!(store.create("key", "body").await.unwrap(), Created::Exists);
    assert_eq!(faults.calls(), ["create key", "create key"]);
    assert_eq!(plain.get("key").await.unwrap().as_deref(), Some(b"body".as_slice()));
}

#[tokio::test(start_paused = true)]
async fn a_create_that_had_no_effect_is_repeated_until_it_has() {
    let (plain, store, faults) = faulty(Policy::default(), "fail@create:1,stall@create:2");
    assert_eq!(store.create("key", "body").await.unwrap(), Created::New);
    assert_eq!(faults.calls().len(), 3);
    assert_eq!(plain.list("").await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_repetition_each_failure_says_whether_it_may_have_had_an_effect() {
    for (rule, class) in [
        ("fail:1", Class::Retry),
        ("deny:1", Class::Permanent),
        ("lost:1", Class::Unknown),
        ("stall:1", Class::Unknown),
    ] {
        let (_, store, _) = faulty(Policy::default().once(), rule);
        let error = store.create("key", "body").await.unwrap_err();
        assert_eq!(error.class(), class, "{rule}: {error}");
        assert!(error.to_string().starts_with("cannot create memory:/key: "), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_cut_short_is_read_again_and_never_returned() {
    let (plain, store, faults) = faulty(Policy::default(), "short@open:1");
    plain.create("key", "0123456789").await.unwrap();
    assert_eq!(store.get("key").await.unwrap().as_deref(), Some(b"0123456789".as_slice()));
    assert_eq!(faults.calls().len(), 2);
    let (_, once, _) =
        (&plain, store.with_policy(Policy::default().once()), faults.add("short@open:1").unwrap());
    let error = once.get_range("key", 2..6).await.unwrap_err();
    assert_eq!((error.class(), error.kind), (Class::Retry, StoreErrorKind::Unreachable));
}

#[tokio::test(start_paused = true)]
async fn silence_is_never_an_absence() {
    for rule in ["fail:1+", "stall:1+", "deny:1+", "lost:1+"] {
        let (_, store, _) = faulty(Policy::default(), rule);
        assert!(store.get("key").await.is_err(), "{rule}");
        assert!(store.head("key").await.is_err(), "{rule}");
        assert!(store.list("").await.is_err(), "{rule}");
        assert!(store.list_dirs("").await.is_err(), "{rule}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_listing_lacks_the_newest_object_once() {
    let (_, store, _) = faulty(Policy::default(), "stale@list:1");
    store.create("a", "1").await.unwrap();
    store.create("b", "2").await.unwrap();
    let keys = |found: Vec<ObjectInfo>| found.into_iter().map(|info| info.key).collect::<Vec<_>>();
    assert_eq!(keys(store.list("").await.unwrap()), ["a"]);
    assert_eq!(keys(store.list("").await.unwrap()), ["a", "b"]);
}

#[test]
fn rules_are_read_and_nonsense_is_refused() {
    let faults = Faults::default();
    faults.add("fail:3, lost@create/backup.json:1,stall@list:2+").unwrap();
    assert!(format!("{faults:?}").contains("backup.json"));
    for text in ["fail", "fail:", "fail:x", "burn:1", ":1"] {
        assert!(faults.add(text).is_err(), "{text}");
    }
}

/// A store that ignores the condition of a create, as some servers do, or refuses it as unknown. Its listings begin at the first
/// key, wherever they shall begin; it counts their pages.
#[derive(Debug, Default)]
struct Careless {
    inner: Arc<memory::Memory>,
    refuses: bool,
    pages: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl Backend for Careless {
    async fn create(&self, key: &str, body: &Payload) -> Result<Created, Fault> {
        if self.refuses {
            return Err(Fault::permanent(StoreErrorKind::Unsupported, "no conditions here"));
        }
        // As a real server, it takes a while.
        tokio::task::yield_now().await;
        self.inner.overwrite(key, body).await.map(|()| Created::New)
    }

    async fn overwrite(&self, key: &str, body: &Payload) -> Result<(), Fault> {
        self.inner.overwrite(key, body).await
    }

    async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
        self.inner.open(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        self.inner.head(key).await
    }

    async fn list(&self, listing: &Listing) -> Result<Page, Fault> {
        self.pages.fetch_add(1, Ordering::Relaxed);
        let all = Listing { after: None, limit: None, ..listing.clone() };
        let Page { mut objects, dirs, .. } = self.inner.list(&all).await?;
        let begin = listing.token.as_ref().map_or(0, |token| token.parse().unwrap());
        let end = objects.len().min(begin + listing.limit.unwrap_or(1000));
        let token = (end < objects.len()).then(|| end.to_string());
        objects.truncate(end);
        Ok(Page { objects: objects.split_off(begin), dirs, token })
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        self.inner.delete(key).await
    }

    async fn make_root(&self) -> Result<(), Fault> {
        Ok(())
    }
}

fn careless(refuses: bool, accepted: bool) -> Store {
    let options = StoreOptions { allow_unsafe_store: accepted, ..StoreOptions::default() };
    let plain = Store::open(&"memory:".parse().unwrap(), &options).unwrap();
    plain.rebuilt(Arc::new(Careless { refuses, ..Careless::default() }), Policy::default())
}

#[tokio::test]
async fn a_probe_finds_out_a_store_that_ignores_the_condition_and_cleans_up() {
    for accepted in [false, true] {
        let store = careless(false, accepted);
        let report = store.probe_create_race("main/").await.unwrap();
        assert_eq!((report.winners, report.is_safe()), (8, false));
        assert!(!report.later_refused);
        assert!(store.list("").await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_probe_of_a_store_that_knows_no_conditions_says_so() {
    let error = careless(true, false).probe_create_race("").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unsupported);
    assert!(error.hint().contains("allow_unsafe_store"));
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_reply_was_lost_runs_another_race() {
    let (_, store, faults) = faulty(Policy::default(), "lost@create:5");
    assert!(store.probe_create_race("").await.unwrap().is_safe());
    assert_eq!(faults.calls().iter().filter(|call| call.starts_with("create")).count(), 8 + 8 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_racer_that_is_told_to_come_later_did_not_race_and_one_racer_is_no_race() {
    let creates = |faults: &Faults| faults.calls().iter().filter(|call| call.starts_with("create")).count();
    let (_, store, faults) = faulty(Policy::default(), "fail@create:1,fail@create:5,fail@create:9");
    assert!(store.probe_create_race("").await.unwrap().is_safe());
    assert_eq!(creates(&faults), 8 + 2);
    let seven: Vec<String> = (1..=7).map(|n| format!("fail@create:{n}")).collect();
    let (_, store, faults) = faulty(Policy::default(), &seven.join(","));
    assert!(store.probe_create_race("").await.unwrap().is_safe());
    assert_eq!(creates(&faults), 8 + 8 + 1);
}

#[tokio::test]
async fn a_listing_that_begins_at_the_first_key_all_the_same_is_read_in_large_pages() {
    let careless = Careless::default();
    let pages = Arc::clone(&careless.pages);
    let plain = Store::open(&"memory:".parse().unwrap(), &StoreOptions::default()).unwrap();
    let store = plain.rebuilt(Arc::new(careless), Policy::default());
    for n in 0..3_000 {
        store.create(&format!("wal/{n:04}"), "x").await.unwrap();
    }
    let found = store.list_after("wal/", Some("wal/2500"), Some(1)).await.unwrap();
    assert_eq!(found.iter().map(|info| info.key.as_str()).collect::<Vec<_>>(), ["wal/2501"]);
    assert_eq!(pages.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn an_accepted_unsafe_store_is_looked_at_before_and_after() {
    for refuses in [false, true] {
        let store = careless(refuses, true);
        assert!(store.is_unsafe());
        assert_eq!(store.create("key", "one").await.unwrap(), Created::New);
        assert_eq!(store.create("key", "two").await.unwrap(), Created::Exists);
        assert_eq!(store.get("key").await.unwrap().as_deref(), Some(b"one".as_slice()));
    }
}

#[tokio::test]
async fn stores_in_memory_of_one_name_are_one_store() {
    let open = |url: &str| Store::open(&url.parse().unwrap(), &StoreOptions::default()).unwrap();
    open("memory:shared-by-name").create("key", "x").await.unwrap();
    assert!(open("memory:shared-by-name").get("key").await.unwrap().is_some());
    assert!(open("memory:").get("key").await.unwrap().is_none());
}

/// A server of S3 that answers every request that ends with `body` with this.
async fn answering(status: &'static str) -> Store {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"body") && client.read_buf(&mut request).await.is_ok_and(|n| n > 0) {}
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            client.write_all(answer.as_bytes()).await.ok();
        }
    });
    let options = StoreOptions {
        endpoint: Some(endpoint),
        region: Some("us-east-1".to_owned()),
        allow_http: true,
        credentials: parse_credentials_file("access_key_id = a\nsecret_access_key = b\n").unwrap(),
        ..StoreOptions::default()
    };
    Store::open(&"s3://bucket".parse().unwrap(), &options).unwrap()
}

#[tokio::test]
async fn a_conflict_means_that_a_key_is_taken_only_where_that_was_the_condition() {
    for status in ["409 Conflict", "412 Precondition Failed", "304 Not Modified"] {
        let store = answering(status).await;
        let backend = &store.0.backend;
        let body = Payload::from("body");
        assert_eq!(backend.create("key", &body).await.unwrap(), Created::Exists, "{status}");
        let fault = backend.overwrite("key", &body).await.unwrap_err();
        assert!(
            !matches!(fault.kind, StoreErrorKind::Credentials | StoreErrorKind::Unsupported),
            "{fault:?}"
        );
    }
}

/// The parts of the keys that say what was attempted.
fn attempts(text: &str) -> Vec<&str> {
    let names = Attempt::ALL.map(Attempt::name);
    let ends = |key: &str| names.into_iter().find(|name| key.trim_end_matches(',').ends_with(name));
    let (_, keys) = text.split_once("left behind, may go: ").unwrap_or_default();
    keys.split(' ').filter_map(ends).collect()
}

#[tokio::test(start_paused = true)]
async fn an_attack_names_all_that_it_leaves_even_if_it_comes_to_no_end() {
    let attack = async |rules: &str| {
        let (plain, store, _) = faulty(Policy::default().once(), rules);
        let done = store.attack("").await;
        let left: Vec<String> = plain.list("").await.unwrap().into_iter().map(|info| info.key).collect();
        (done, left)
    };
    // The third write is the second attempt's create, after the first one's create and overwriting.
    let (done, left) = attack("deny@delete:1+,fail@create:3").await;
    let said = done.unwrap_err().to_string();
    assert_eq!((attempts(&said), left.len()), (vec!["overwrite"], 1), "{said}");
    let (done, left) = attack("deny@delete:1+,lost@create:3").await;
    let said = done.unwrap_err().to_string();
    assert_eq!((attempts(&said), left.len()), (vec!["overwrite", "delete"], 2), "{said}");
    let (done, left) = attack("fail@create:3").await;
    let said = done.unwrap_err().to_string();
    assert!(left.is_empty() && !said.contains("left behind"), "{said}");
    // What only an overwriting made.
    let (done, left) = attack("deny@create:1").await;
    assert!(done.unwrap().left_behind.is_empty() && left.is_empty(), "{left:?}");
    let sorted = |done: Result<Attack, StoreError>| {
        let mut keys = done.unwrap().left_behind;
        keys.sort();
        keys
    };
    let (done, left) = attack("deny@create:1,deny@delete:1+").await;
    assert_eq!((sorted(done), left.len()), (left.clone(), 5));
    // What could not be read back.
    let (done, left) = attack("fail@open:1+,deny@delete:1+").await;
    assert_eq!((sorted(done), left.len()), (left.clone(), 5));
}
