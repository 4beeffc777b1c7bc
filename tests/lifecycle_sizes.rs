//! The life cycle in other places: segments of 1 and 64 MiB, and repositories in S3, Azure and Google Cloud Storage.
//!
//! Segment names depend on the segment size, so a wrong one puts WAL under names that recovery never asks for. The S3 server is
//! `s3s-fs`, whose objects are files below its directory. It lets several racing creates win, so it is used as the unsafe store it is.
//! Azure is Microsoft's emulator, Google's service a double of ours: the latter shows that pitr agrees with itself and the manual.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use support::azurite::{ACCOUNT, Azurite};
use support::cluster::{Install, Stop, give_to_server, scratch, setting};
use support::gcs_double::{GcsDouble, WRITER};
use support::log::{CLOCK, Client, Load, assert_balanced, assert_rows, rows};
use support::s3::S3;
use support::site::{Answer, Site, SiteOptions, switch};

/// Backs up under load and restores to a time between commits and to the end. `switch` ends the WAL.
fn cycle(site: &Site, switch: impl Fn() -> Result<()>) -> Result<()> {
    let load = Load::on(&site.cluster, 50)?;
    let mut client = Client::connect(&site.cluster, 1)?;
    client.commits(5)?;
    client.during(|| site.backup())?;
    let mark = client.commits(5)?;
    switch()?;
    client.commits(5)?;
    load.end(&site.cluster)?;
    switch()?;
    let expected = client.up_to(&mark);
    for (target, expected) in [(vec!["--to", mark.time.as_str()], expected), (vec![], client.all())] {
        let (copy, _) = site.restored(&target)?;
        assert_rows(&rows(&copy)?, &expected, &format!("{target:?}"))?;
        assert_balanced(&copy)?;
    }
    Ok(())
}

fn segments_of(mib: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions { segment_mib: mib, ..SiteOptions::default() })?;
    ensure!(site.cluster.psql("SHOW wal_segment_size")? == format!("{mib}MB"));
    cycle(&site, || site.switch().map(drop))
}

#[test]
fn a_cluster_with_segments_of_1_mib_can_be_restored() -> Result<()> {
    segments_of(1)
}

#[test]
fn a_cluster_with_segments_of_64_mib_can_be_restored() -> Result<()> {
    segments_of(64)
}

/// No AWS_* reaches what the server runs: the credentials come from the file that the configuration names.
fn in_s3(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let Some(s3) = S3::start()? else { return Ok(()) };
    let place = scratch("pitr-site-")?;
    let more = s3.settings(place.path())?;
    let site = Site::at(&install, &SiteOptions::default(), place, "s3://bucket/some/prefix", Some(&more))?;
    let wal = s3.directory.path().join("bucket/some/prefix/main").join(site.system()?).join("wal");
    let stored = |name: &str| {
        let (timeline, log) = (name.get(..8).context("a name")?, name.get(8..16).context("a name")?);
        Ok(wal.join(timeline).join(log).join(format!("{name}.wal")).exists())
    };
    cycle(&site, || switch(&site.cluster, stored).map(drop))?;
    // Without the store a moment is not "not there".
    let between = site.cluster.psql(&format!("SELECT {CLOCK}"))?;
    site.cluster.stop(Stop::Fast)?;
    drop(s3);
    let dir = site.place().join("nothing").display().to_string();
    let refused = site.ask(&["restore", "--copy", "--target-dir", &dir, "--to", &between])?;
    ensure!(![0, 4, 5].contains(&refused.code) && refused.err.contains("s3://bucket"), "{refused:?}");
    Ok(())
}

#[test]
fn a_cluster_of_15_can_be_restored_from_s3() -> Result<()> {
    in_s3(15)
}

#[test]
fn a_cluster_of_17_can_be_restored_from_s3() -> Result<()> {
    in_s3(17)
}

/// A site whose repository is in another cloud. The credentials are in a file that the configuration names.
fn in_cloud(url: &str, endpoint: &str, credentials: &str) -> Result<Option<Site>> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(None) };
    let place = scratch("pitr-site-")?;
    let file = place.path().join("credentials");
    fs::write(&file, credentials)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    give_to_server(&file)?;
    let more =
        format!("endpoint = \"{endpoint}\"\nallow_http = true\ncredentials_file = \"{}\"\n", file.display());
    Site::at(&install, &SiteOptions::default(), place, url, Some(&more)).map(Some)
}

/// The server's own word for it: the archiver has been told that the segment is stored.
fn archived(site: &Site) -> impl Fn(&str) -> Result<bool> {
    |name| {
        Ok(site.cluster.psql(&format!("SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver"))? == "t")
    }
}

/// With a token that may neither replace nor delete. The probe of `init` needs no more, and leaves an object that says so.
#[test]
fn a_cluster_can_be_restored_from_azure_with_a_token_that_may_read_list_and_create() -> Result<()> {
    let Some(program) = setting("PITR_AZURITE").map(PathBuf::from) else {
        eprintln!("SKIPPED: Azurite is not installed; run tests/setup.sh");
        return Ok(());
    };
    let server = Azurite::start(program, "pitr-test")?;
    let token = server.token("rlc", 12)?;
    let credentials = format!("account_name = {ACCOUNT}\nsas_token = {token}\n");
    let Some(site) = in_cloud("az://pitr-test/some/prefix", &server.endpoint(), &credentials)? else {
        return Ok(());
    };
    cycle(&site, || switch(&site.cluster, archived(&site)).map(drop))?;
    let info = site.json(&["info", "--json"])?;
    ensure!(info["repositories"][0]["backups"][0]["restorable"] == true, "{info}");
    Ok(())
}

#[test]
fn a_cluster_can_be_restored_from_a_double_of_gcs_with_a_key_or_a_machines_own_token() -> Result<()> {
    let double = GcsDouble::start("pitr-test_1")?;
    let (endpoint, key) = (double.endpoint(), double.key_of(WRITER)?);
    let Some(site) = in_cloud("gs://pitr-test_1/some/prefix", &endpoint, &key)? else { return Ok(()) };
    cycle(&site, || switch(&site.cluster, archived(&site)).map(drop))?;
    ensure!(double.metadata_tokens() == 0);
    let names = double.names();
    ensure!(names.iter().any(|name| name.ends_with("/backup.json")), "{names:?}");
    // Without a key the machine's metadata server is asked for a token.
    let with_key = site.json(&["info", "--json"])?;
    let only = format!(
        "[[repository]]\nname = \"only\"\nurl = \"gs://pitr-test_1/some/prefix\"\nendpoint = \"{endpoint}\"\nallow_http = true\n"
    );
    site.write_config(&only)?;
    let info = |metadata: &str| {
        let mut info = site.pitr(&["info", "--json"])?;
        Answer::of(info.env("GCE_METADATA_HOST", metadata).env("GCE_METADATA_IP", metadata))
    };
    let answer = info(&double.address())?;
    answer.expect(0, &[])?;
    let with_token: serde_json::Value = serde_json::from_str(&answer.out)?;
    ensure!(with_token["repositories"] == with_key["repositories"], "{with_token}\n{with_key}");
    ensure!(double.metadata_tokens() > 0);
    // On a machine without one, nothing is known of the repository, least of all that it is empty.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    info(&format!("127.0.0.1:{port}"))?.expect(7, &["no credentials"])
}
