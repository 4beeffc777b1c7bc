//! Who may do what in Azure and in Google Cloud Storage, and what pitr makes of a refusal there.
//!
//! Azure is Microsoft's own emulator, which checks keys, hours and permissions; SKIPPED where tests/setup.sh has not installed it.
//! Google's service is a double of ours, which checks the signature of every token. That both behave as stores is in
//! `store_conformance`.
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use pitr::store::{Class, Created, Settings, Store, StoreErrorKind, StoreOptions, parse_credentials_file};
use support::azurite::{ACCOUNT, Azurite};
use support::cluster::setting;
use support::gcs_double::{GcsDouble, READER, WRITER};
use support::store_rules::{every_call_fails, open};

fn azurite() -> Result<Option<Azurite>> {
    let program = setting("PITR_AZURITE").map(PathBuf::from).filter(|path| path.exists());
    if program.is_none() {
        eprintln!("SKIPPED: PITR_AZURITE is not installed, see tests/setup.sh");
    }
    program.map(|program| Azurite::start(program, "pitr-test")).transpose()
}

fn options(endpoint: String, credentials: Settings) -> StoreOptions {
    StoreOptions { endpoint: Some(endpoint), allow_http: true, credentials, ..StoreOptions::default() }
}

/// A store in Azure that is opened with a credentials file of two lines.
fn azure(endpoint: String, name: &str, secret: &str) -> Result<Store> {
    let file = format!("AZURE_STORAGE_ACCOUNT_NAME = {ACCOUNT}\nAZURE_STORAGE_{name} = {secret}\n");
    open("az://pitr-test/p", &options(endpoint, parse_credentials_file(&file)?))
}

fn gcs(double: &GcsDouble, key: &str) -> Result<Store> {
    open("gs://pitr-test/p", &options(double.endpoint(), parse_credentials_file(key)?))
}

/// Reads work, and whatever changes something is refused for good.
async fn only_reads(store: &Store) -> Result<()> {
    ensure!(store.get("there").await?.as_deref() == Some(b"x".as_slice()));
    ensure!(store.get("absent").await?.is_none());
    ensure!(store.list("").await?.len() == 1);
    let writes = [
        store.create("new", "x").await.err(),
        store.delete("there").await.err(),
        store.probe_create_race("").await.err(),
    ];
    for (call, failure) in writes.into_iter().enumerate() {
        let error = failure.with_context(|| format!("write {call} is refused"))?;
        let found = (error.kind, error.class());
        ensure!(found == (StoreErrorKind::Credentials, Class::Permanent), "write {call}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn azure_refuses_a_wrong_key_and_an_expired_token_in_every_call_and_no_error_shows_a_token()
-> Result<()> {
    let Some(server) = azurite()? else { return Ok(()) };
    let key = azure(server.endpoint(), "ACCOUNT_KEY", "bm90LXRoZS1rZXk=")?;
    every_call_fails(&key, StoreErrorKind::Credentials).await?;
    let token = server.token("rwdlc", -1)?;
    let expired = azure(server.endpoint(), "SAS_TOKEN", &token)?;
    every_call_fails(&expired, StoreErrorKind::Credentials).await?;
    // The token is part of every URL: of a refused request, and of one that reaches nobody.
    let nobody = azure(format!("http://127.0.0.1:{}/{ACCOUNT}", free_port()?), "SAS_TOKEN", &token)?;
    let (_, signature) = token.split_once("sig=").context("a signature")?;
    for store in [&expired, &nobody] {
        for error in [
            store.get("k").await.err(),
            store.create("k", "x").await.err(),
            store.list("").await.err(),
            store.delete("k").await.err(),
        ] {
            let shown = format!("{:?} {0}", error.context("it fails")?);
            ensure!(!shown.contains(signature) && !shown.contains("sig="), "{shown}");
        }
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[tokio::test]
async fn a_token_of_azure_that_may_only_read_reads_and_writes_nothing() -> Result<()> {
    let Some(server) = azurite()? else { return Ok(()) };
    let all = azure(server.endpoint(), "SAS_TOKEN", &server.token("rwdlc", 1)?)?;
    ensure!(all.create("there", "x").await? == Created::New);
    only_reads(&azure(server.endpoint(), "SAS_TOKEN", &server.token("rl", 1)?)?).await
}

/// What a database host needs: it can neither replace nor delete what it wrote.
#[tokio::test]
async fn a_token_of_azure_that_may_read_list_and_create_is_enough_to_archive() -> Result<()> {
    let Some(server) = azurite()? else { return Ok(()) };
    let store = azure(server.endpoint(), "SAS_TOKEN", &server.token("rlc", 1)?)?;
    ensure!(store.create("once", "x").await? == Created::New);
    ensure!(store.create("once", "y").await? == Created::Exists);
    ensure!(store.get("once").await?.as_deref() == Some(b"x".as_slice()));
    let error = store.delete("once").await.err().context("it may not delete")?;
    ensure!(error.kind == StoreErrorKind::Credentials, "{error:?}");
    let report = store.probe_create_race("").await?;
    ensure!(report.is_safe() && report.left_behind.is_some(), "{report:?}");
    Ok(())
}

#[tokio::test]
async fn racing_creates_in_azure_have_one_winner_every_time() -> Result<()> {
    let Some(server) = azurite()? else { return Ok(()) };
    let store = azure(server.endpoint(), "SAS_TOKEN", &server.token("rwdlc", 1)?)?;
    for race in 0..10 {
        let report = store.probe_create_race(&format!("race-{race}/")).await?;
        ensure!(report.is_safe() && report.left_behind.is_none(), "race {race}: {report:?}");
    }
    ensure!(store.list("").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn gcs_is_asked_with_tokens_that_the_accounts_key_signed() -> Result<()> {
    let double = GcsDouble::start("pitr-test")?;
    let writer = gcs(&double, &double.key_of(WRITER)?)?;
    ensure!(writer.create("there", "x").await? == Created::New);
    ensure!(double.names() == ["p/there"], "{:?}", double.names());
    only_reads(&gcs(&double, &double.key_of(READER)?)?).await?;
    // Signed by another key, as after a rotation; an account that has no rights here.
    let other = GcsDouble::start("other")?;
    every_call_fails(&gcs(&double, &other.key_of(WRITER)?)?, StoreErrorKind::Credentials).await?;
    every_call_fails(&gcs(&double, &double.key_of("stranger@project")?)?, StoreErrorKind::Credentials).await
}

#[tokio::test]
async fn gcs_may_say_not_now_and_is_asked_again_a_few_times() -> Result<()> {
    let double = GcsDouble::start("pitr-test")?;
    let store = gcs(&double, &double.key_of(WRITER)?)?;
    double.refuse_next(&[429, 503]);
    ensure!(store.create("key", "x").await? == Created::New && double.refusals_left() == 0);
    double.refuse_next(&[503, 429]);
    ensure!(store.get("key").await?.is_some() && double.refusals_left() == 0);
    double.refuse_next(&[429]);
    ensure!(store.list("").await?.len() == 1 && double.refusals_left() == 0);
    // Some racers of a probe are turned away, as GCS does with many writes of one key.
    double.refuse_next(&[429, 429, 429]);
    ensure!(store.probe_create_race("").await?.is_safe());
    double.refuse_next(&[429; 3]);
    let error = store.create("another", "x").await.err().context("patience ends")?;
    ensure!((error.kind, error.class()) == (StoreErrorKind::Unreachable, Class::Retry), "{error:?}");
    // Of an internal error nobody knows when it happened; the same create finds out.
    double.refuse_next(&[500]);
    ensure!(store.create("third", "x").await? == Created::New);
    ensure!(double.names() == ["p/key", "p/third"], "{:?}", double.names());
    Ok(())
}

/// A variable of another program must not move the repository.
#[tokio::test]
async fn a_variable_that_names_another_bucket_does_not_move_the_repository() -> Result<()> {
    let double = GcsDouble::start("pitr-test")?;
    let key = parse_credentials_file(&double.key_of(WRITER)?)?;
    let key = key.get("google_service_account_key").context("a key")?;
    let environment: Settings =
        [("GOOGLE_SERVICE_ACCOUNT_KEY", key), ("GOOGLE_BUCKET", "elsewhere")].into_iter().collect();
    let options = StoreOptions { environment, ..options(double.endpoint(), Settings::default()) };
    let store = open("gs://pitr-test/p", &options)?;
    ensure!(store.create("key", "x").await? == Created::New);
    ensure!(double.names() == ["p/key"], "{:?}", double.names());
    Ok(())
}
