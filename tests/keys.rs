//! `pitr key` and `pitr init --host-file` in the hands of somebody who errs: an old copy of the host file, one file for two keys, wraps that
//! somebody deleted, a configuration that does not name the host file that is given, a recipient who was removed, a host file that is lost.
//!
//! What must never happen: a secret that replaces another, a host file whose epoch finds no place, a cluster in clear that somebody believed
//! to be encrypted, "it opens" of what does not open.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use support::agent::{Agent, configure, own_repository};
use support::cluster::{Install, as_server, give_to_server, scratch};
use support::keys;
use support::s3::S3;
use support::site::{Answer, Site, SiteOptions, until};

/// A server that archives into an encrypted repository, and the operator's directory.
struct World {
    site: Site,
    office: tempfile::TempDir,
}

impl World {
    fn new() -> Result<Option<Self>> {
        let Some(install) = Install::find_or_skip(17) else { return Ok(None) };
        let (place, office) = (scratch("pitr-keys-")?, scratch("pitr-office-")?);
        let host = place.path().join("main.host");
        keys::init(&host, office.path(), &[])?;
        let url = format!("file://{}", place.path().join("repo").display());
        let more = format!("[keys]\nhost_file = \"{}\"\n", host.display());
        let site = Site::at(&install, &SiteOptions::default(), place, &url, Some(&more))?;
        Ok(Some(Self { site, office }))
    }

    fn host_file(&self) -> PathBuf {
        self.site.place().join("main.host")
    }

    fn daily(&self) -> String {
        keys::daily(self.office.path()).display().to_string()
    }

    /// The wraps of an epoch in the repository.
    fn wraps(&self, epoch: &str) -> Result<PathBuf> {
        Ok(self.site.folder()?.join("keys").join(epoch))
    }

    /// A public key that nobody has yet.
    fn somebody(&self) -> Result<String> {
        let office = scratch("pitr-somebody-")?;
        keys::init(&office.path().join("host"), office.path(), &[])?;
        let text = fs::read_to_string(keys::daily(office.path()))?;
        let public = text.lines().find_map(|line| line.strip_prefix("# public key: "));
        public.map(str::to_owned).context("a public key")
    }
}

/// `pitr key init` into `office` with these flags.
fn key_init(office: &Path, args: &[&str]) -> Result<Answer> {
    let mut command = as_server(env!("CARGO_BIN_EXE_pitr"))?;
    Answer::of(command.current_dir(office).args(["key", "init", "--cluster", "main"]).args(args))
}

/// What was printed, wherever.
fn says(answer: &Answer, code: i32, words: &[&str]) -> Result<()> {
    let said = format!("{}{}", answer.out, answer.err);
    ensure!(answer.code == code && words.iter().all(|word| said.contains(word)), "{words:?}: {answer:?}");
    Ok(())
}

#[test]
fn no_key_is_written_over_another() -> Result<()> {
    let office = scratch("pitr-office-")?;
    let inside = || -> Result<Vec<String>> {
        let names = fs::read_dir(office.path())?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    for files in [
        ["main.host", "daily=x.key", "offline=x.key"],
        ["main.host", "daily=x.key", "offline=./x.key"],
        ["y.key", "daily=y.key", "offline=x.key"],
    ] {
        let [host, daily, offline] = files;
        let args = ["--host-file", host, "--generate", daily, "--generate", offline];
        key_init(office.path(), &args)?.expect(3, &["is named for two keys"])?;
        ensure!(inside()?.is_empty(), "{files:?}: {:?}", inside()?);
    }
    // By another way to the same place.
    std::os::unix::fs::symlink(".", office.path().join("here"))?;
    let twice = ["--host-file", "main.host", "--generate", "daily=x.key", "--generate", "offline=here/x.key"];
    key_init(office.path(), &twice)?.expect(9, &["here/x.key is there already"])?;
    // What was written before it went wrong opens nothing, and is not in the way of a repetition.
    ensure!(inside()? == ["here"], "{:?}", inside()?);
    let both = ["--generate", "daily=x.key", "--generate", "offline=y.key", "--host-file"];
    let answer = key_init(office.path(), &[&both[..], &["/proc/main.host"]].concat())?;
    answer.expect(1, &["cannot write /proc/main.host"])?;
    ensure!(inside()? == ["here"], "{:?}", inside()?);
    key_init(office.path(), &[&both[..], &["main.host"]].concat())?.expect(0, &[])?;
    let text = fs::read_to_string(office.path().join("x.key"))?;
    ensure!(text.contains("recipient daily") && office.path().join("main.host").exists(), "{text}");
    Ok(())
}

#[test]
fn the_host_file_is_changed_from_the_newest_copy_only_and_by_one_at_a_time() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let site = &world.site;
    let old = site.place().join("old.host");
    fs::copy(world.host_file(), &old)?;
    give_to_server(&old)?;
    let before = fs::read(&old)?;
    site.ask(&["key", "rotate"])?.expect(0, &[])?;
    let (old_file, late) = (old.display().to_string(), format!("late={}", world.somebody()?));
    let daily = world.daily();
    for args in [
        &["key", "rotate"][..],
        &["key", "add", &late, "--identity", &daily],
        &["key", "remove", "offline", "--identity", &daily],
    ] {
        let args = [args, &["--host-file", &old_file]].concat();
        site.ask(&args)?.expect(9, &["e0002/wrap-0001.age", "nothing was changed", "newest"])?;
        ensure!(fs::read(&old)? == before, "{args:?} changed the old copy");
    }
    // Somebody plants what would be the next epoch's.
    let newest = fs::read(world.host_file())?;
    let listing = site.listing()?;
    let planted = world.wraps("e0003")?;
    fs::create_dir(&planted)?;
    fs::write(planted.join("wrap-0001.age"), "planted")?;
    give_to_server(&planted)?;
    give_to_server(&planted.join("wrap-0001.age"))?;
    site.ask(&["key", "rotate"])?.expect(9, &["e0003/wrap-0001.age", "planted"])?;
    ensure!(fs::read(world.host_file())? == newest, "the host file was changed");
    fs::remove_dir_all(&planted)?;
    ensure!(site.listing()? == listing);

    // Another command holds the directory.
    let place = fs::File::open(site.place())?;
    let lock = Flock::lock(place, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    let busy = site.ask(&["key", "rotate"])?;
    drop(lock);
    busy.expect(8, &["another command is changing keys"])?;
    ensure!(fs::read(world.host_file())? == newest, "the host file was changed");
    says(&site.ask(&["key", "rotate"])?, 0, &["e0003"])?;
    site.switch()?;
    Ok(())
}

#[test]
fn an_epoch_without_wraps_opens_nothing_and_every_missing_key_is_named_by_its_epoch() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (site, daily) = (&world.site, world.daily());
    let stranger = scratch("pitr-stranger-")?;
    keys::init(&stranger.path().join("host"), stranger.path(), &[])?;
    let wrong = keys::daily(stranger.path()).display().to_string();
    let segment = site.switch()?;
    site.backup()?;
    site.ask(&["key", "rotate"])?.expect(0, &[])?;
    site.switch()?;
    says(&site.ask(&["key", "test", "--identity", &daily])?, 0, &["e0001: opens", "e0002: opens"])?;
    let target = site.place().join("target").display().to_string();
    let dest = site.place().join("dest").display().to_string();
    let restore = ["restore", "--copy", "--target-dir", &target];
    // A machine that has nothing but a configuration: no host file.
    let config = site.place().join("bare.toml");
    let text = fs::read_to_string(&site.config)?;
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("host_file")).collect();
    fs::write(&config, text.join("\n"))?;
    give_to_server(&config)?;
    let bare = config.display().to_string();
    for identity in [&[][..], &["--identity", &wrong]] {
        for start in [&[][..], &["--config", &bare]] {
            let ask = |args: &[&str]| -> Result<Answer> {
                let mut command = as_server(site.program())?;
                command.current_dir(&site.cluster.data);
                if start.is_empty() {
                    command.arg("--config").arg(&site.config);
                }
                Answer::of(command.args(start).args(args).args(identity))
            };
            if identity.is_empty() {
                ask(&["verify", "--decode"])?.expect(7, &["e0001"])?;
            }
            ask(&restore)?.expect(7, &["e0001"]).with_context(|| format!("{start:?} {identity:?}"))?;
            ask(&["archive-get", &segment, &dest])?
                .expect(207, &["e0001"])
                .with_context(|| format!("{start:?} {identity:?}"))?;
        }
    }
    // Whoever deletes the wraps of an old epoch takes away what it sealed.
    let wraps = world.wraps("e0001")?;
    let aside = site.place().join("aside");
    fs::rename(&wraps, &aside)?;
    says(&site.ask(&["key", "test", "--identity", &daily])?, 7, &["epoch e0001: HAS NO WRAPS"])?;
    site.ask(&[&restore[..], &["--identity", &daily]].concat())?.expect(7, &["e0001"])?;
    fs::rename(world.wraps("e0002")?, site.place().join("aside2"))?;
    says(&site.ask(&["key", "test", "--identity", &daily])?, 7, &["e0002: HAS NO WRAPS"])?;
    // Without the host file the backups tell which epochs there were.
    fs::rename(&aside, &wraps)?;
    let again = Answer::of(as_server(site.program())?.args([
        "--config",
        &bare,
        "key",
        "test",
        "--identity",
        &daily,
    ]))?;
    says(&again, 0, &["e0001: opens"])?;
    fs::rename(site.place().join("aside2"), world.wraps("e0002")?)?;
    says(&site.ask(&["key", "test", "--identity", &daily])?, 0, &["e0002: opens"])
}

/// SECURITY.md: the host file is the server's user's, and whoever becomes that user can write it.
#[test]
fn whoever_changes_the_host_file_gets_nothing_that_is_stored_and_is_found() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (site, daily) = (&world.site, world.daily());
    let office = scratch("pitr-thief-")?;
    keys::init(&office.path().join("host"), office.path(), &[])?;
    let thief = keys::daily(office.path());
    let text = fs::read_to_string(&thief)?;
    let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).context("a public key")?;
    let thief = thief.display().to_string();
    let segment = site.switch()?;
    site.backup()?;
    let good = fs::read(world.host_file())?;
    let change = |change: &dyn Fn(&mut serde_json::Value)| -> Result<()> {
        let mut host = serde_json::from_slice(&good)?;
        change(&mut host);
        Ok(fs::write(world.host_file(), serde_json::to_vec_pretty(&host)?)?)
    };

    // Among the recipients: the next epoch is for him too, which is said; what is stored is not.
    change(&|host| host["recipients"][1]["recipient"] = public.into())?;
    let audit = format!("audit={}", world.somebody()?);
    let refused = ["stands in the host file", public, "e0001"];
    site.ask(&["key", "add", &audit, "--identity", &daily])?.expect(9, &refused)?;
    let rotated = site.ask(&["key", "rotate"])?;
    says(&rotated, 0, &["e0002", &format!("readable for   offline: {public}")])?;
    site.ask(&["key", "add", &audit, "--identity", &daily])?.expect(9, &refused)?;
    get(site, &segment, &thief)?.expect(207, &["e0001"])?;
    fs::remove_dir_all(world.wraps("e0002")?)?;

    // In the place of the epoch's key: nothing on the host tells, whoever has an identity is told.
    change(&|host| host["epochs"][0]["recipient"] = public.into())?;
    let stolen = self::segment(site)?;
    site.backup()?;
    get(site, &stolen, &daily)?.expect(207, &[])?;
    let found = site.ask(&["key", "test", "--identity", &daily])?;
    says(&found, 7, &["DOES NOT OPEN", "with another key than its wraps hold"])?;
    site.ask(&["key", "rotate", "--identity", &daily])?.expect(7, &["another key"])?;
    ensure!(!world.wraps("e0002")?.exists(), "it rotated");
    // The right one is back: what was sealed by the other one is named still, also where there is no host file.
    fs::write(world.host_file(), &good)?;
    for bare in [false, true] {
        if bare {
            configure(site, &own_repository(site))?;
        }
        let found = site.ask(&["key", "test", "--identity", &daily])?;
        says(&found, 7, &["opens by its wraps, and DOES NOT OPEN", "does not open main/"])?;
        ensure!(found.out.contains("UNVERIFIED") == bare, "{found:?}");
    }
    Ok(())
}

#[test]
fn a_host_file_that_the_configuration_does_not_name_is_refused() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let options = SiteOptions { archives: false, ..SiteOptions::default() };
    let site = Site::new(&install, &options)?;
    let (office, host) = (scratch("pitr-office-")?, site.place().join("main.host"));
    keys::init(&host, office.path(), &[])?;
    let (host, conninfo) = (host.display().to_string(), site.cluster.conninfo());
    let elsewhere = site.place().join("elsewhere");
    let init = ["init", "--superuser", &conninfo, "--host-file", &host];
    let repository = format!("[[repository]]\nname = \"only\"\nurl = \"file://{}\"\n", elsewhere.display());
    site.write_config(&repository)?;
    site.ask(&init)?.expect(3, &["names no host file", "[keys]"])?;
    ensure!(!elsewhere.exists(), "a repository was made in clear");
    let other = site.place().join("other.host").display().to_string();
    site.write_config(&format!("{repository}[keys]\nhost_file = \"{other}\"\n"))?;
    site.ask(&init)?.expect(3, &["other.host", "main.host"])?;
    ensure!(!elsewhere.exists(), "a repository was made");
    site.write_config(&format!("{repository}[keys]\nhost_file = \"{host}\"\n"))?;
    says(&site.ask(&init)?, 0, &["cluster created, encrypted"])
}

#[test]
fn nothing_is_made_elsewhere_in_clear_unless_somebody_says_so() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let Some(s3) = S3::start()? else { return Ok(()) };
    let options = SiteOptions { archives: false, ..SiteOptions::default() };
    let site = Site::new(&install, &options)?;
    let conninfo = site.cluster.conninfo();
    let (near, settings) = (site.place().join("near"), s3.settings(site.place())?);
    let far = |name: &str, more: &str| {
        // The other one, which needs no word, is not made either.
        let near = format!("[[repository]]\nname = \"near\"\nurl = \"file://{}\"\n", near.display());
        let far = format!("[[repository]]\nname = \"far\"\nurl = \"s3://bucket/{name}\"\n{settings}{more}");
        site.write_config(&format!("{near}{far}"))
    };
    let made = |name: &str| s3.directory.path().join("bucket").join(name).exists();
    far("a", "")?;
    let refused = site.ask(&["init", "--superuser", &conninfo])?;
    refused.expect(3, &["s3://bucket/a", "[keys]", "sealed = false", "--plain"])?;
    ensure!(!made("a") && !near.exists(), "something was made");
    for (name, more, flag) in [("b", "sealed = false\n", &[][..]), ("c", "", &["--plain"])] {
        far(name, more)?;
        site.ask(&[&["init", "--superuser", &conninfo][..], flag].concat())?.expect(0, &[])?;
        ensure!(made(name), "{name} was not made");
        // What is there already is no decision any more.
        far(name, "")?;
        says(&site.ask(&["init", "--superuser", &conninfo])?, 0, &["there already, not encrypted"])?;
    }
    Ok(())
}

#[test]
fn an_init_that_lacks_the_host_file_leaves_nothing_behind() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (site, host) = (&world.site, world.host_file().display().to_string());
    let (place, conninfo) = (site.place(), site.cluster.conninfo());
    let url = format!("file://{}", site.repository.display());
    let config = place.join("new.toml");
    let init = |more: &[&str]| {
        let mut command = as_server(site.program())?;
        command.arg("--config").arg(&config).args(["--repository", &url, "--cluster", "main"]);
        Answer::of(command.args(["init", "--superuser", &conninfo]).args(more))
    };
    init(&[])?.expect(7, &["encrypted", "--host-file", "key recover"])?;
    ensure!(!config.exists(), "a configuration was left");
    init(&["--host-file", &host])?.expect(0, &[])?;
    ensure!(fs::read_to_string(&config)?.contains(&host));
    Ok(())
}

/// Fetches a segment with an identity.
fn get(site: &Site, segment: &str, identity: &str) -> Result<Answer> {
    let dest = site.place().join("dest").display().to_string();
    let answer = site.ask(&["--identity", identity, "archive-get", segment, &dest])?;
    ensure!(Path::new(&dest).exists() == (answer.code == 0), "{answer:?}");
    fs::remove_file(&dest).ok();
    Ok(answer)
}

/// Ends a segment in which something happened.
fn segment(site: &Site) -> Result<String> {
    site.cluster.psql("SELECT pg_create_restore_point('x')")?;
    site.switch()
}

#[test]
fn what_is_stored_once_a_recipient_is_removed_is_closed_to_him() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (site, daily) = (&world.site, world.daily());
    let offline = keys::offline(world.office.path()).display().to_string();
    let other = scratch("pitr-late-")?;
    keys::init(&other.path().join("host"), other.path(), &[])?;
    let late = keys::daily(other.path());
    let public = fs::read_to_string(&late)?;
    let public = public.lines().find_map(|line| line.strip_prefix("# public key: ")).context("a key")?;
    let (late, pair) = (late.display().to_string(), format!("late={public}"));
    let added = site.json(&["key", "add", &pair, "--identity", &daily, "--json"])?;
    ensure!(added["epoch"] == "e0001" && added["new_epoch"] == false, "{added}");
    let before = segment(site)?;
    let removed = site.json(&["key", "remove", "late", "--identity", &daily, "--json"])?;
    ensure!(removed["epoch"] == "e0002" && removed["new_epoch"] == true, "{removed}");
    let after = segment(site)?;
    for identity in [&daily, &offline] {
        get(site, &before, identity)?.expect(0, &[])?;
        get(site, &after, identity)?.expect(0, &[])?;
    }
    get(site, &before, &late)?.expect(0, &[])?;
    get(site, &after, &late)?.expect(207, &["e0002"])?;
    site.ask(&["key", "add", &pair, "--identity", &daily])?.expect(0, &[])?;
    get(site, &after, &late)?.expect(0, &[])?;

    // An agent that runs since before that.
    let host = format!("[keys]\nhost_file = \"{}\"\n", world.host_file().display());
    configure(site, &format!("{}{host}", own_repository(site)))?;
    let agent = Agent::start(site)?;
    get(site, &segment(site)?, &late)?.expect(0, &[])?;
    let said = site.ask(&["key", "remove", "late", "--identity", &daily])?;
    says(
        &said,
        0,
        &["epoch e0003 begins, which late cannot open", "before can be read with that key still"],
    )?;
    let closed = || {
        let newest = segment(site)?;
        get(site, &newest, &daily)?.expect(0, &[])?;
        Ok(get(site, &newest, &late)?.code == 207)
    };
    until(closed, || agent.log())?;
    agent.end(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_host_file_is_made_anew_only_from_what_is_vouched_for_and_over_no_other() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (site, daily) = (&world.site, world.daily());
    let wrong = scratch("pitr-wrong-")?;
    keys::init(&wrong.path().join("host"), wrong.path(), &[])?;
    let wrong = keys::daily(wrong.path()).display().to_string();
    let list = site.json(&["key", "list", "--json"])?;
    let fingerprint = list["seal_fingerprint"].as_str().context("a fingerprint")?;
    let one = format!("one={}", world.somebody()?);
    let two = format!("two={}", list["recipients"][0]["recipient"].as_str().context("a recipient")?);
    // A machine that has nothing but a configuration.
    let bare = site.place().join("bare.toml").display().to_string();
    let url = site.repository.display();
    fs::write(
        &bare,
        format!("cluster = \"main\"\n[[repository]]\nname = \"only\"\nurl = \"file://{url}\"\n"),
    )?;
    give_to_server(Path::new(&bare))?;
    let new = site.place().join("new.host");
    let file = new.display().to_string();
    let recover = |identity: &str, more: &[&str]| {
        let mut command = as_server(site.program())?;
        command.args(["--config", &bare, "--identity", identity, "key", "recover", "--host-file", &file]);
        Answer::of(command.args(more))
    };
    let both = ["--recipient", &one, "--recipient", &two];
    let vouched = ["--seal-fingerprint", fingerprint];
    let before = site.listing()?;
    recover(&daily, &both)?.expect(3, &["nothing says which seal key", "--unverified"])?;
    recover(&daily, &[&both[..2], &vouched].concat())?.expect(3, &["too few"])?;
    recover(&wrong, &[&both[..], &vouched].concat())?.expect(7, &["e0001"])?;
    let zeros = "00".repeat(32);
    recover(&daily, &[&both[..], &["--seal-fingerprint", &zeros]].concat())?
        .expect(9, &["no wrap holds the seal key whose fingerprint was given"])?;
    let planted = world.wraps("e0001")?.join("wrap-0002.age");
    fs::write(&planted, "planted")?;
    give_to_server(&planted)?;
    recover(&daily, &[&both[..], &vouched].concat())?.expect(9, &["e0001/wrap-0002.age", "planted"])?;
    fs::remove_file(&planted)?;
    ensure!(!new.exists() && site.listing()? == before, "something was written");
    let done = recover(&daily, &[&both[..], &["--unverified", "--json"]].concat())?;
    done.expect(0, &[])?;
    let json: serde_json::Value = serde_json::from_str(&done.out)?;
    ensure!(json["epoch"] == "e0002" && json["verified"] == false, "{json}");
    ensure!(
        json["seal_fingerprint"] == fingerprint && json["repositories"][0]["repository"] == "only",
        "{json}"
    );
    let (mode, bytes) = (fs::metadata(&new)?.permissions().mode() & 0o7777, fs::read(&new)?);
    ensure!(mode == 0o600, "{mode:o}");
    recover(&daily, &[&both[..], &vouched].concat())?.expect(9, &["new.host is there already"])?;
    ensure!(fs::read(&new)? == bytes, "it was replaced");
    // It is the newest copy now, and knows all that is stored.
    site.ask(&["key", "rotate"])?.expect(9, &["e0001/wrap-0002.age", "old copy"])?;
    fs::rename(&new, world.host_file())?;
    let list = site.json(&["key", "list", "--json"])?;
    let only = &list["repositories"][0];
    ensure!(only["missing"] == serde_json::json!([]) && only["strange"] == serde_json::json!([]), "{list}");
    get(site, &segment(site)?, &daily)?.expect(0, &[])
}
