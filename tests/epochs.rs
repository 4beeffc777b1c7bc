//! Who has an identity that opens a part of what is stored, or nothing of it: what needs the rest says so and names the epoch, before
//! anything is written and never as "fine" or "damaged"; what needs none of it goes on.
//!
//! A recipient who was removed has such an identity; so has everybody once somebody deletes the wraps of an epoch.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pitr::seal::Identity;
use serde_json::Value;
use support::cluster::{Install, Stop, as_server, give_to_server};
use support::keys;
use support::office::{Office, sealed_here};
use support::site::{Answer, Site, until};

/// Row 1 lies in an epoch that both recipients open, row 2 in one that `offline` does not.
struct World {
    site: Site,
    office: Office,
    /// The last segment of the older epoch.
    old: String,
    /// The first one of the newer epoch.
    new: String,
    /// The newer epoch, such as `e0002`.
    epoch: String,
    /// Behind row 2.
    behind: String,
}

impl World {
    fn new() -> Result<Option<Self>> {
        let Some(install) = Install::find_or_skip(17) else { return Ok(None) };
        let (site, office) = sealed_here(&install)?;
        let row = |n: u32| site.cluster.psql(&format!("INSERT INTO t VALUES ({n})"));
        site.cluster.psql("CREATE TABLE t (n int)")?;
        site.backup()?;
        row(1)?;
        let old = site.switch()?;
        let daily = shown(&office.daily());
        let other = format!("other={}", Identity::generate().recipient());
        site.ask(&["key", "add", &other, "--identity", &daily])?.expect(0, &[])?;
        site.ask(&["key", "remove", "offline", "--identity", &daily])?.expect(0, &[])?;
        site.ask(&["key", "rotate"])?.expect(0, &[])?;
        row(2)?;
        let new = site.switch()?;
        let behind = site
            .cluster
            .psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')")?
            + "Z";
        row(3)?;
        site.switch()?;
        let epoch = newest(&site.folder()?.join("keys"))?;
        Ok(Some(Self { site, office, old, new, epoch, behind }))
    }

    fn with(&self, identity: &Path, args: &[&str]) -> Result<Answer> {
        self.site.ask(&[args, &["--identity", &shown(identity)]].concat())
    }

    fn target(&self) -> PathBuf {
        self.site.place().join("target")
    }

    /// A configuration without the host file: all there is elsewhere.
    fn bare(&self) -> Result<String> {
        let config = self.site.place().join("bare.toml");
        let text = fs::read_to_string(&self.site.config)?;
        let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("host_file")).collect();
        fs::write(&config, text.join("\n"))?;
        give_to_server(&config)?;
        Ok(shown(&config))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn newest(keys: &Path) -> Result<String> {
    let names = fs::read_dir(keys)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<Vec<_>>>()?.into_iter().max().context("an epoch")
}

fn json(answer: &Answer) -> Result<Value> {
    serde_json::from_str(&answer.out).with_context(|| format!("{answer:?}"))
}

#[test]
fn an_identity_that_lacks_an_epoch_is_refused_what_needs_it_before_anything_is_written() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (offline, daily, epoch) = (world.office.offline(), world.office.daily(), world.epoch.as_str());
    let target = shown(&world.target());
    let restore = ["restore", "--copy", "--target-dir", &target];
    for more in [&[][..], &["--dry-run"], &["--to", &world.behind], &["--to", &world.behind, "--dry-run"]] {
        let said = world.with(&offline, &[&restore[..], more].concat())?;
        said.expect(7, &[&world.new, epoch, "--identity"]).with_context(|| format!("{more:?}"))?;
        ensure!(!world.target().exists(), "{more:?}");
    }
    world.with(&daily, &[&restore[..], &["--to", &world.behind, "--dry-run"]].concat())?.expect(0, &[])?;
    // What lies before it needs no other key: the end of the last segment of the older epoch.
    let number = u64::from_str_radix(world.old.get(16..).context("a number")?, 16)? + 1;
    let lsn = format!("0/{:X}", number * world.site.segment_size()?.bytes());
    world.with(&offline, &[&restore[..], &["--to-lsn", &lsn, "--dry-run"]].concat())?.expect(0, &[])?;

    let said = world.with(&offline, &["info"])?;
    said.expect(0, &[])?;
    ensure!(said.out.contains(epoch) && said.out.contains("no identity at hand opens"), "{said:?}");
    ensure!(!world.with(&daily, &["info"])?.out.contains("no identity at hand opens"));
    Ok(())
}

/// The last segment that recovery needs is stored twice: unfinished in an epoch that both open, and longer in one that `offline` does not.
#[test]
fn the_longest_copy_of_a_segment_tells_which_key_it_takes() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let sql = |sql: &str| site.cluster.psql(sql);
    sql("CREATE TABLE t (n int)")?;
    site.backup()?;
    sql("INSERT INTO t VALUES (1)")?;
    let segment = sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    let unfinished = site.place().join(&segment);
    fs::copy(site.cluster.data.join("pg_wal").join(&segment), &unfinished)?;
    give_to_server(&unfinished)?;
    site.ask(&["archive-push", &shown(&unfinished)])?.expect(0, &[])?;
    let (daily, other) = (office.daily(), format!("other={}", Identity::generate().recipient()));
    site.ask(&["key", "add", &other, "--identity", &shown(&daily)])?.expect(0, &[])?;
    site.ask(&["key", "remove", "offline", "--identity", &shown(&daily)])?.expect(0, &[])?;
    let within = sql("INSERT INTO t VALUES (2) RETURNING pg_current_wal_insert_lsn()")?;
    sql("INSERT INTO t VALUES (3)")?;
    sql("SELECT pg_switch_wal()")?;
    let longer = site.object(&format!("{segment}.2"))?;
    until(|| Ok(longer.exists()), || format!("{segment} has no longer copy"))?;

    let epoch = newest(&site.folder()?.join("keys"))?;
    let target = shown(&site.place().join("target"));
    let restore = |identity: &Path, more: &[&str]| {
        let args = ["restore", "--copy", "--target-dir", &target, "--identity", &shown(identity)];
        site.ask(&[&args[..], more].concat())
    };
    for more in [&[][..], &["--to-lsn", &within]] {
        restore(&office.offline(), more)?.expect(7, &[&segment, &epoch, "--identity"])?;
        ensure!(!Path::new(&target).exists(), "something was written");
    }
    restore(&daily, &["--to-lsn", &within, "--dry-run"])?.expect(0, &[])
}

#[test]
fn verify_says_what_it_could_not_open_and_that_nobody_can_any_more() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (offline, daily, epoch) = (world.office.offline(), world.office.daily(), world.epoch.as_str());
    world.with(&daily, &["verify", "--decode"])?.expect(0, &[])?;
    for args in [&["verify", "--json"][..], &["verify", "--decode", "--json"]] {
        let said = world.with(&offline, args)?;
        said.expect(7, &[epoch, &world.new])?;
        let report = json(&said)?;
        let system = &report["repositories"][0]["systems"][0];
        ensure!(report["clean"] == false && system["contents_read"] == false, "{report}");
        ensure!(system["epochs_unopened"] == serde_json::json!([epoch]), "{report}");
        // The backup is of the older epoch: that much was looked into.
        ensure!(system["backups"][0]["restorable"] == true && system["faults"] == 0, "{report}");
    }
    let said = world.with(&offline, &["verify"])?;
    ensure!(!said.out.contains("no damage found\n") && said.out.contains("NOT LOOKED INTO"), "{said:?}");
    // A changed byte is found without the key.
    let object = world.site.object(&world.new)?;
    let good = fs::read(&object)?;
    let mut bad = good.clone();
    *bad.last_mut().context("bytes")? ^= 1;
    fs::write(&object, bad)?;
    world.with(&offline, &["verify"])?.expect(6, &[])?;
    fs::write(&object, good)?;

    // Without its wraps nobody opens what an epoch sealed: lost, whoever looks.
    let (wraps, aside) = (world.site.folder()?.join("keys").join(epoch), world.site.place().join("aside"));
    fs::rename(&wraps, &aside)?;
    for identity in [&[][..], &["--identity", &shown(&daily)]] {
        let said = world.site.ask(&[&["verify", "--json"][..], identity].concat())?;
        said.expect(6, &[])?;
        let report = json(&said)?;
        let faults = report["repositories"][0]["systems"][0]["findings"].to_string();
        ensure!(
            faults.contains(&format!("keys/{epoch}/wrap-0001.age")) && faults.contains("\"lost\":[{"),
            "{report}"
        );
    }
    let target = shown(&world.target());
    let restore = ["restore", "--copy", "--target-dir", &target];
    world.with(&daily, &restore)?.expect(7, &[epoch, &world.new])?;
    world.with(&daily, &[&restore[..], &["--to", &world.behind]].concat())?.expect(7, &[epoch])?;
    ensure!(!world.target().exists());
    let said = world.site.ask(&["verify"])?;
    said.expect(6, &[])?;
    ensure!(said.out.contains("lost: everything after"), "{said:?}");
    fs::rename(&aside, &wraps)?;
    world.with(&daily, &["verify", "--decode"])?.expect(0, &[])
}

/// Of a backup whose epoch has no wraps nothing can be restored, though each of its bytes is there.
#[test]
fn a_backup_whose_epoch_lost_its_wraps_is_named_and_another_identity_is_no_damage() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let stranger = support::cluster::scratch("pitr-stranger-")?;
    keys::init(&stranger.path().join("host"), stranger.path(), &[])?;
    let wrong = keys::daily(stranger.path());
    for args in [&["verify"][..], &["verify", "--decode"]] {
        let said = world.with(&wrong, args)?;
        said.expect(7, &["e0001", &world.epoch])?;
        ensure!(said.out.contains("is restorable") && !said.out.contains("fault"), "{said:?}");
    }
    fs::rename(world.site.folder()?.join("keys/e0001"), world.site.place().join("aside"))?;
    let said = world.site.ask(&["verify"])?;
    said.expect(6, &[])?;
    ensure!(
        said.out.contains("IS NOT RESTORABLE") && said.out.contains("keys/e0001/wrap-0001.age"),
        "{said:?}"
    );
    Ok(())
}

#[test]
fn an_identity_file_that_opens_nothing_stops_nobody_who_needs_none() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (site, stranger) = (&world.site, support::cluster::scratch("pitr-stranger-")?);
    keys::init(&stranger.path().join("host"), stranger.path(), &[])?;
    let wrong = site.place().join("wrong.key");
    fs::copy(keys::daily(stranger.path()), &wrong)?;
    give_to_server(&wrong)?;
    let text = fs::read_to_string(&site.config)?;
    let named = format!("identity_file = \"{}\"\nhost_file", wrong.display());
    fs::write(&site.config, text.replacen("host_file", &named, 1))?;
    // On a second timeline a push reads the first one's history.
    site.cluster.stop(Stop::Fast)?;
    fs::write(site.cluster.data.join("standby.signal"), "")?;
    give_to_server(&site.cluster.data.join("standby.signal"))?;
    site.cluster.start()?;
    site.cluster.psql("SELECT pg_promote()")?;
    site.cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
    site.cluster.psql("INSERT INTO t VALUES (4)")?;
    let segment = site.switch()?;
    ensure!(segment.starts_with("00000002"), "{segment}");
    site.backup()?;
    let said = site.ask(&["info"])?;
    said.expect(0, &["no identity at hand opens any of its"])?;
    let check = site.ask(&["check"])?;
    ensure!(check.code != 7 && check.out.contains("comes back as it was archived"), "{check:?}");
    // Who needs one is told so.
    let dest = shown(&site.place().join("dest"));
    site.ask(&["archive-get", &segment, &dest])?.expect(207, &[&world.epoch])?;
    let target = shown(&world.target());
    site.ask(&["restore", "--copy", "--target-dir", &target])?.expect(7, &[&world.epoch])
}

#[test]
fn a_restore_says_that_only_the_repository_vouches_for_its_key_and_takes_one_from_the_environment_to_look()
-> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (bare, target, daily) = (world.bare()?, shown(&world.target()), world.office.daily());
    let ask = |args: &[&str], environment: Option<&str>| -> Result<Answer> {
        let mut command = as_server(world.site.program())?;
        command.args(["--config", &bare, "restore", "--copy", "--target-dir", &target]).args(args);
        environment.into_iter().for_each(|text| {
            command.env("PITR_IDENTITY", text);
        });
        Answer::of(&mut command)
    };
    let named = shown(&daily);
    let plain = ["--dry-run", "--json", "--identity", &named];
    let said = json(&ask(&plain, None)?)?;
    ensure!(said["warnings"].to_string().contains("UNVERIFIED"), "{said}");
    let said = ask(&["--dry-run", "--identity", &named], None)?;
    said.expect(0, &["UNVERIFIED"])?;
    let listed = world.site.json(&["key", "list", "--json"])?;
    let fingerprint = listed["seal_fingerprint"].as_str().with_context(|| listed.to_string())?.to_owned();
    let said = json(&ask(&[&plain[..], &["--seal-fingerprint", &fingerprint]].concat(), None)?)?;
    ensure!(!said.to_string().contains("UNVERIFIED"), "{said}");
    let other = fingerprint.replace(['0', '1', '2', '3', '4'], "5");
    ask(&[&plain[..], &["--seal-fingerprint", &other]].concat(), None)?.expect(9, &["fingerprint"])?;

    let text = fs::read_to_string(&daily)?;
    ask(&["--dry-run"], Some(&text))?.expect(0, &[])?;
    ask(&[], Some(&text))?.expect(7, &["restore_command", "--identity FILE"])?;
    ensure!(!world.target().exists());
    Ok(())
}
