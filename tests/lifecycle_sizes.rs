//! The life cycle in other places: segments of 1 and 64 MiB, and a repository in an S3 server.
//!
//! Segment names depend on the segment size, so a wrong one puts WAL under names that recovery never asks for. The S3 server is
//! `s3s-fs`, whose objects are files below its directory. It lets several racing creates win, so it is used as the unsafe store it is.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use support::cluster::{Install, Stop, give_to_server, scratch, setting};
use support::log::{CLOCK, Client, Load, assert_balanced, assert_rows, rows};
use support::site::{Site, SiteOptions, switch, until};

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

/// An S3 server with one bucket, ended with the test.
struct S3 {
    server: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl S3 {
    fn start() -> Result<Option<Self>> {
        let Some(program) = setting("PITR_S3S_FS") else {
            eprintln!("SKIPPED: s3s-fs is not installed; run tests/setup.sh");
            return Ok(None);
        };
        let directory = scratch("pitr-s3-")?;
        fs::create_dir(directory.path().join("bucket"))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", "tester", "--secret-key", "not-so-secret"]).arg(directory.path());
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let s3 = Self { server, port, directory };
        until(
            || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()),
            || "s3s-fs does not listen".to_owned(),
        )?;
        Ok(Some(s3))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// No AWS_* reaches what the server runs: the credentials come from the file that the configuration names.
fn in_s3(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let Some(s3) = S3::start()? else { return Ok(()) };
    let place = scratch("pitr-site-")?;
    let keys = place.path().join("keys");
    fs::write(&keys, "access_key_id = tester\nsecret_access_key = not-so-secret\n")?;
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
    give_to_server(&keys)?;
    let more = format!(
        "endpoint = \"http://127.0.0.1:{}\"\nallow_http = true\nregion = \"us-east-1\"\nallow_unsafe_store = true\n\
         credentials_file = \"{}\"\n",
        s3.port,
        keys.display()
    );
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
