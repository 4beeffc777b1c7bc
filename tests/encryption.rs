//! Encryption on real servers: a host that archives and backs up without any key that opens, and what a person can do with one.
//!
//! The oracles are rows of PostgreSQL, the bytes in the repository, and exit codes. The kit, and the loss of the host, are in
//! tests/kit.rs.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a test says how much was fetched")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::agent::{Agent, configure, own_repository, status};
use support::cluster::{Install, Stop, as_server, give_to_server};
use support::meter::Meter;
use support::office::{Office, ROWS, fill, is_in_clear, sealed, sealed_here};
use support::s3::S3;
use support::site::{Answer, Site, SiteOptions, open, settle, until};

#[test]
fn a_host_without_a_key_archives_and_backs_up_and_nothing_is_in_clear() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    fill(&site)?;
    site.switch()?;
    let backup = site.backup()?;
    site.cluster.psql("DELETE FROM t WHERE n > 1500")?;
    site.switch()?;
    let clear = is_in_clear(&site.repository)?;
    ensure!(clear.is_empty(), "in clear: {clear:?}");
    let check = site.ask(&["check"])?;
    ensure!(check.code == 0 && check.out.contains("all the host file's"), "{check:?}");

    let info = site.json(&["info", "--json"])?;
    ensure!(info["repositories"][0]["backups"][0]["restorable"] == true, "{info}");
    let blind = site.ask(&["verify"])?;
    ensure!(blind.code == 0 && blind.out.contains("contents were not looked at"), "{blind:?}");
    site.ask(&["verify", "--decode"])?.expect(7, &["--decode"])?;
    let daily = office.daily().display().to_string();
    let whole = site.ask(&["verify", "--decode", "--identity", &daily])?;
    ensure!(whole.code == 0 && whole.out.contains("no damage found"), "{whole:?}");
    let expire = site.ask(&["expire", "--dry-run"])?;
    ensure!(expire.code == 0 || expire.code == 3, "{expire:?}");

    let rows = site.cluster.psql(ROWS)?;
    let id = backup["id"].as_str().context("an id")?;
    for identity in [office.daily(), office.offline()] {
        let identity = identity.display().to_string();
        let (copy, _) = site.restored(&["--backup", id, "--identity", &identity])?;
        ensure!(copy.psql(ROWS)? == rows, "other rows came back");
    }
    Ok(())
}

#[test]
fn a_missing_or_wrong_key_stops_what_opens_and_nothing_else() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    fill(&site)?;
    let segment = site.switch()?;
    site.backup()?;
    let stranger = Office::new(&site.place().join("other.host"))?;
    let (daily, wrong) = (office.daily().display().to_string(), stranger.daily().display().to_string());
    let target = site.place().join("target").display().to_string();
    let dest = site.place().join("dest").display().to_string();
    site.ask(&["archive-get", &segment, &dest])?.expect(207, &["e0001"])?;
    site.ask(&["--identity", &wrong, "archive-get", &segment, &dest])?.expect(207, &["e0001"])?;
    ensure!(!Path::new(&dest).exists(), "a file was delivered without a key");
    site.ask(&["--identity", &daily, "archive-get", &segment, &dest])?.expect(0, &[])?;
    ensure!(Path::new(&dest).exists());
    let restore = ["restore", "--copy", "--target-dir", &target];
    site.ask(&restore)?.expect(7, &["encrypted"])?;
    site.ask(&[&restore[..], &["--identity", &wrong]].concat())?.expect(7, &["no identity at hand opens"])?;
    // A person's environment counts for looking, and is not there when PostgreSQL recovers.
    let mut by_variable = site.pitr(&["verify", "--decode"])?;
    by_variable.env("PITR_IDENTITY", office.secret(&office.daily())?);
    Answer::of(&mut by_variable)?.expect(0, &[])?;
    let mut by_variable = site.pitr(&restore)?;
    by_variable.env("PITR_IDENTITY", office.secret(&office.daily())?);
    Answer::of(&mut by_variable)?.expect(7, &["in a file"])?;
    let mut get = site.pitr(&["archive-get", &segment, &dest])?;
    get.env("PITR_IDENTITY", office.secret(&office.daily())?);
    Answer::of(&mut get)?.expect(207, &[])?;
    // The fingerprint of another cluster.
    let other = stranger.pitr(&["key", "list", "--json", "--host-file", "x"])?;
    ensure!(other.code != 0);
    let zeros = "00".repeat(32);
    site.ask(&[&restore[..], &["--identity", &daily, "--seal-fingerprint", &zeros]].concat())?
        .expect(7, &["fingerprint"])?;
    ensure!(!Path::new(&target).exists(), "something was written");
    // Without the host file nothing is stored, and what is stored still restores; the archiver keeps the segment.
    let host_file = site.place().join("main.host");
    let aside = site.place().join("main.host.aside");
    fs::rename(&host_file, &aside)?;
    site.cluster.psql("CREATE TABLE later (n int)")?;
    site.cluster.psql("SELECT pg_switch_wal()")?;
    until(
        || Ok(site.cluster.psql("SELECT failed_count > 0 FROM pg_stat_archiver")? == "t"),
        || "the archiver does not fail".to_owned(),
    )?;
    ensure!(site.cluster.log_text().contains("host file"), "{}", site.cluster.log_text());
    let (copy, _) = site.restored(&["--identity", &daily])?;
    ensure!(copy.psql("SELECT count(*) FROM t")? == "2000");
    fs::rename(&aside, &host_file)?;
    site.switch()?;
    Ok(())
}

#[test]
fn damage_is_found_without_a_key_and_forgery_is_named() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    fill(&site)?;
    let segment = site.switch()?;
    let backup = site.backup()?;
    site.switch()?;
    let daily = office.daily().display().to_string();
    let object = site.object(&segment)?;
    let good = fs::read(&object)?;
    let faults = |args: &[&str]| -> Result<(i32, String)> {
        let said = site.ask(args)?;
        Ok((said.code, said.out + &said.err))
    };
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    fs::write(&object, &bad)?;
    let (code, said) = faults(&["verify"])?;
    ensure!(code == 6 && said.contains(&segment), "{code} {said}");
    let dest = site.place().join("dest").display().to_string();
    site.ask(&["archive-get", &segment, &dest])?.expect(206, &["damaged"])?;
    // A header that says something else, with its checksum made right again.
    let mut header = String::from_utf8(good[8..512].to_vec())?;
    header = header.replace("codec=zstd", "codec=none");
    let (lines, _) = header.rsplit_once("crc=").context("crc")?;
    let header = format!("{lines}crc={:08x}\n", crc32fast::hash(lines.as_bytes()));
    let forged = [&good[..8], format!("{header:504}").as_bytes(), &good[512..]].concat();
    fs::write(&object, &forged)?;
    let (code, said) = faults(&["verify"])?;
    ensure!(code == 6 && said.contains("forged") && said.contains(&segment), "{code} {said}");
    site.ask(&["--identity", &daily, "archive-get", &segment, &dest])?.expect(206, &["forged"])?;
    fs::write(&object, &good)?;

    // A pack with another byte: the manifest's digest tells before a byte is written, and without a key the verdict's.
    let folder = site.folder()?.join("backups").join(backup["id"].as_str().context("an id")?);
    let pack = folder.join("pack-00000.tar.zst.age");
    let whole = fs::read(&pack)?;
    let mut swapped = whole.clone();
    let middle = swapped.len() / 2;
    swapped[middle] ^= 1;
    fs::write(&pack, &swapped)?;
    let target = site.place().join("target").display().to_string();
    let restore = ["restore", "--copy", "--target-dir", &target, "--identity", &daily];
    site.ask(&restore)?.expect(6, &["pack-00000"])?;
    let opened = ["verify", "--identity", &daily];
    for look in [&["verify"][..], &opened] {
        let (code, said) = faults(look)?;
        ensure!(code == 6 && said.contains("pack-00000"), "{look:?}: {code} {said}");
    }
    fs::write(&pack, &whole)?;
    // The verdict with another manifest's digest, its sum made anew by who has no seal key.
    let verdict = folder.join("backup.json");
    let text = fs::read_to_string(&verdict)?;
    fs::write(&verdict, text.replace("\"label\": \"\"", "\"label\": \"x\""))?;
    let (code, said) = faults(&["verify"])?;
    ensure!(code == 6 && said.contains("forged") && said.contains("backup.json"), "{code} {said}");
    fs::write(&verdict, text)?;
    site.ask(&["verify", "--decode", "--identity", &daily])?.expect(0, &[])
}

#[test]
fn a_standby_waits_at_a_segment_that_is_forged_or_locked_and_promoted_it_ends_before_it() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    fill(&site)?;
    site.switch()?;
    site.backup()?;
    site.cluster.psql("CREATE TABLE before (n int)")?;
    site.switch()?;
    let before = site.cluster.psql("SELECT count(*) FROM pg_class")?;
    site.cluster.psql("CREATE TABLE later (n int)")?;
    let last = site.switch()?;
    let daily = office.daily().display().to_string();
    // A doubt is no end of WAL elsewhere; a standby asks again by itself, and any other answer would end it.
    let (copy, _) = site.restore(&["--identity", &daily])?;
    let get = |identity: &[&str]| {
        let mut command = site.pitr(&[&["archive-get", &last, "dest"], identity].concat())?;
        Answer::of(command.current_dir(&copy.data))
    };
    get(&[])?.expect(207, &["e0001"])?;
    fs::rename(copy.data.join("recovery.signal"), copy.data.join("standby.signal"))?;
    get(&[])?.expect(1, &["e0001", "this is a standby"])?;
    let object = site.object(&last)?;
    let mut bytes = fs::read(&object)?;
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&object, &bytes)?;
    get(&["--identity", &daily])?.expect(1, &["damaged", "this is a standby"])?;
    ensure!(!copy.data.join("dest").exists(), "something was delivered");

    settle(&copy)?;
    copy.start()?;
    until(|| Ok(copy.log_text().contains("this is a standby")), || copy.log_text())?;
    ensure!(copy.psql("SELECT pg_is_in_recovery()")? == "t");
    copy.promote()?;
    copy.wait_for("SELECT pg_is_in_recovery()", "f")?;
    ensure!(copy.psql("SELECT count(*) FROM pg_class")? == before, "not what was there before that segment");
    Ok(())
}

#[test]
fn keys_rotate_recipients_come_and_go_and_check_compares_the_wraps() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    fill(&site)?;
    site.switch()?;
    site.backup()?;
    let (daily, offline) = (office.daily().display().to_string(), office.offline().display().to_string());
    let rotated = site.json(&["key", "rotate", "--json"])?;
    ensure!(rotated["epoch"] == "e0002", "{rotated}");
    site.cluster.psql("SELECT pg_create_restore_point('rotated')")?;
    let later = site.switch()?;
    let head = fs::read(site.object(&later)?)?;
    ensure!(String::from_utf8_lossy(&head[..512]).contains("key=e0002"), "the new epoch is not used");
    site.ask(&["key", "test", "--identity", &daily])?.expect(0, &[])?;

    let late = Office::new(&site.place().join("late.host"))?;
    let keygen = fs::read_to_string(late.daily())?;
    let public = keygen.lines().find_map(|l| l.strip_prefix("# public key: ")).context("public key")?;
    let new = late.daily().display().to_string();
    site.ask(&["key", "test", "--identity", &new])?.expect(7, &[])?;
    site.ask(&["key", "add", &format!("late={public}")])?.expect(7, &["e0001"])?;
    site.ask(&["key", "add", &format!("late={public}"), "--identity", &offline])?.expect(0, &[])?;
    site.ask(&["key", "test", "--identity", &new])?.expect(0, &[])?;
    let secret = office.secret(&office.daily())?;
    let refused = site.ask(&["key", "add", &format!("oops={secret}")])?;
    ensure!(refused.code == 3 && !refused.err.contains(&secret), "{refused:?}");
    site.ask(&["key", "remove", "late", "--identity", &offline])?.expect(0, &[])?;
    site.cluster.psql("SELECT pg_create_restore_point('removed')")?;
    site.switch()?;
    site.ask(&["key", "test", "--identity", &new])?.expect(7, &["e0003"])?;
    site.ask(&["key", "remove", "daily", "--identity", &offline])?.expect(3, &["too few"])?;
    let list: Value = site.json(&["key", "list", "--json"])?;
    ensure!(list["epochs"].as_array().map(Vec::len) == Some(3), "{list}");
    ensure!(list["recipients"].as_array().map(Vec::len) == Some(2), "{list}");

    let kit = site.json(&["key", "kit", "--json"])?;
    let page = kit["text"].as_str().unwrap_or_default();
    ensure!(kit["schema"] == "pitr.key-kit.v1" && kit["with_identity"] == false, "{kit}");
    ensure!(page.starts_with("RECOVERY KIT") && page.contains("e0003"), "{kit}");
    // It says what a key looks like, and has none.
    ensure!(!page.replace("AGE-SECRET-KEY-1...", "").contains("SECRET"), "{kit}");

    let rows = site.cluster.psql(ROWS)?;
    let (copy, _) = site.restored(&["--identity", &daily])?;
    ensure!(copy.psql(ROWS)? == rows, "segments of two epochs");
    let keys = site.folder()?.join("keys/e0001");
    fs::remove_file(keys.join("wrap-0001.age"))?;
    let check = site.ask(&["check"])?;
    ensure!(check.code == 1 && check.out.contains("e0001/wrap-0001.age"), "{check:?}");
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--json"])?;
    fs::write(keys.join("wrap-0099.age"), b"planted")?;
    give_to_server(&keys.join("wrap-0099.age"))?;
    let check = site.ask(&["check"])?;
    ensure!(check.code == 2 && check.out.contains("wrap-0099.age"), "{check:?}");
    site.ask(&["key", "test", "--identity", &daily])?.expect(0, &[])?;
    fs::remove_file(keys.join("wrap-0099.age"))?;
    let path = site.place().join("main.host");
    let mut host: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let newest = host["epochs"].as_array_mut().and_then(|epochs| epochs.last_mut()).context("an epoch")?;
    let made = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(335 * 24);
    newest["created"] = made.to_string().into();
    fs::write(&path, serde_json::to_vec(&host)?)?;
    let check = site.ask(&["check"])?;
    ensure!(check.code == 2 && check.out.contains("is 335 days old"), "{check:?}");
    Ok(())
}

#[test]
fn a_backup_whose_wraps_are_exchanged_while_it_runs_is_none() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, _office) = sealed_here(&install)?;
    let keys = format!("[keys]\nhost_file = \"{}\"\n", site.place().join("main.host").display());
    configure(&site, &format!("{}{keys}", own_repository(&site)))?;
    // It has looked at the wraps, and goes on storing WAL for some minutes: any other archiver would stop, and the backup wait for it.
    let agent = Agent::start(&site)?;
    fill(&site)?;
    site.switch()?;
    let wrap = site.folder()?.join("keys/e0001/wrap-0001.age");
    let good = fs::read(&wrap)?;
    let wraps = |bytes: &[u8]| fs::write(&wrap, bytes);
    // The server takes its time for the first checkpoint, until it is asked for one.
    let begun = || -> Result<std::process::Child> {
        let before = fs::read_dir(site.folder()?.join("backups")).map_or(0, Iterator::count);
        let mut command = site.pitr(&["backup", "--full", "--checkpoint", "spread"])?;
        let child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn()?;
        let there = || Ok(fs::read_dir(site.folder()?.join("backups")).map_or(0, Iterator::count) > before);
        until(there, || "no backup begins".to_owned())?;
        Ok(child)
    };
    let running = begun()?;
    wraps(b"another")?;
    site.cluster.psql("CHECKPOINT")?;
    let done = running.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(9) && said.contains("e0001/wrap-0001.age"), "{done:?}");
    wraps(&good)?;
    let info = site.json(&["info", "--json"])?;
    let backups = info["repositories"][0]["backups"].as_array().context("backups")?;
    ensure!(!backups.iter().any(|backup| backup["restorable"] == true), "{info}");

    // One that was deleted is there again before the verdict is.
    let running = begun()?;
    fs::remove_file(&wrap)?;
    site.cluster.psql("CHECKPOINT")?;
    let done = running.wait_with_output()?;
    ensure!(done.status.code() == Some(0) && fs::read(&wrap)? == good, "{done:?}");
    agent.end(nix::sys::signal::Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_promoted_server_archives_its_history_without_a_key_and_restores_from_it() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    fill(&site)?;
    site.switch()?;
    site.backup()?;
    site.cluster.psql("INSERT INTO t VALUES (5000, 'lost')")?;
    site.switch()?;
    let daily = office.daily().display().to_string();
    site.cluster.stop(Stop::Fast)?;
    let target = site.cluster.data.display().to_string();
    site.ask(&[
        "restore",
        "--replace",
        "--move-aside",
        "--immediate",
        "--target-dir",
        &target,
        "--identity",
        &daily,
    ])?
    .expect(0, &[])?;
    settle(&site.cluster)?;
    site.cluster.start()?;
    site.cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
    site.cluster.psql("INSERT INTO t VALUES (6000, 'kept')")?;
    let segment = site.switch()?;
    ensure!(segment.starts_with("00000002"), "{segment}");
    let wal = site.folder()?.join("wal");
    ensure!(wal.join("00000002.history").exists() && wal.join("00000002.ancestry.json").exists());
    site.backup()?;
    site.switch()?;
    let rows = site.cluster.psql(ROWS)?;
    let verify = site.ask(&["verify"])?;
    ensure!(verify.code == 0, "{verify:?}");
    let (copy, _) = site.restored(&["--identity", &daily])?;
    ensure!(copy.psql(ROWS)? == rows, "the new timeline did not come back");
    ensure!(copy.psql("SELECT count(*) FROM t WHERE n IN (5000, 6000)")? == "1");
    Ok(())
}

#[test]
fn an_agent_seals_what_it_stores_and_fetches_for_who_believes_its_seal_key() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let keys = format!(
        "[keys]\nhost_file = \"{}\"\nidentity_file = \"{}\"\n",
        site.place().join("main.host").display(),
        office.daily().display()
    );
    configure(&site, &format!("{}{keys}", own_repository(&site)))?;
    let agent = Agent::start(&site)?;
    fill(&site)?;
    let segment = site.switch()?;
    ensure!(status(&site)?["repositories"][0]["failing"].is_null(), "{}", agent.log());
    let object = fs::read(site.object(&segment)?)?;
    let head = String::from_utf8_lossy(&object[..512]).into_owned();
    ensure!(head.contains("key=e0001"), "{head}");
    let clear = is_in_clear(&site.repository)?;
    ensure!(clear.is_empty(), "in clear: {clear:?}");
    // Its memory holds an identity: the kernel writes none of it to a file. What it hands to a program is in tests/secrets.rs.
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid()?))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit")?;
    ensure!(core.split_whitespace().nth(4) == Some("0"), "{core}");

    let get = |seal: &str| {
        let mut command = site.pitr(&["archive-get", "--seal-fingerprint", seal])?;
        command.current_dir(&site.cluster.data).args([&segment, "pg_wal/RECOVERYXLOG"]);
        Answer::of(&mut command)
    };
    let host: Value = site.json(&["key", "list", "--json"])?;
    let seal = host["seal_fingerprint"].as_str().context("a fingerprint")?;
    let answer = get(seal)?;
    ensure!(answer.code == 0 && answer.err.is_empty(), "{answer:?}");
    let (delivered, own) = (site.cluster.data.join("pg_wal/RECOVERYXLOG"), site.cluster.data.join("pg_wal"));
    ensure!(own.join("pitr-spool").exists(), "the agent fetched it: {}", agent.log());
    ensure!(fs::read(&delivered)? == fs::read(own.join(&segment))?, "not what the server wrote");
    fs::remove_file(&delivered)?;
    // The agent has the very segment, and does not hand it to who believes another key.
    get(&"00".repeat(32))?.expect(207, &["another seal key", "fingerprint"])?;
    ensure!(!delivered.exists());
    agent.end(nix::sys::signal::Signal::SIGTERM)?;
    Ok(())
}

/// The epoch that a stored segment is sealed with.
fn epoch_of(site: &Site, segment: &str) -> Result<String> {
    let object = fs::read(site.object(segment)?)?;
    let head = String::from_utf8_lossy(object.get(..512).context("a header")?).into_owned();
    let line = head.lines().find_map(|line| line.strip_prefix("key=")).map(str::to_owned);
    line.with_context(|| format!("no key in {head}"))
}

#[test]
fn a_running_agent_takes_up_a_new_epoch_and_puts_its_wraps_there_first() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let host_file = site.place().join("main.host");
    let keys = format!("[keys]\nhost_file = \"{}\"\n", host_file.display());
    configure(&site, &format!("{}{keys}", own_repository(&site)))?;
    let agent = Agent::start(&site)?;
    fill(&site)?;
    ensure!(epoch_of(&site, &site.switch()?)? == "e0001");
    let taken_up = |epoch: &str| {
        let change = || site.cluster.psql("SELECT pg_create_restore_point('x')");
        let used = || {
            change()?;
            Ok(epoch_of(&site, &site.switch()?)? == epoch)
        };
        until(used, || format!("{epoch} is not used\n{}", agent.log()))
    };
    site.json(&["key", "rotate", "--json"])?;
    taken_up("e0002")?;

    // Rotated on an operator's machine, and brought here as a file: nobody has put the wraps into the repository.
    let brought = site.place().join("brought.host");
    fs::copy(&host_file, &brought)?;
    fs::set_permissions(&brought, fs::Permissions::from_mode(0o600))?;
    give_to_server(&brought)?;
    let (brought_name, elsewhere) = (brought.display().to_string(), site.place().join("elsewhere"));
    fs::create_dir(&elsewhere)?;
    give_to_server(&elsewhere)?;
    let url = format!("file://{}", elsewhere.display());
    let rotate = ["--repository", &url, "key", "rotate", "--cluster", "main", "--host-file", &brought_name];
    office.pitr(&rotate)?.expect(0, &[])?;
    let wrap = site.folder()?.join("keys/e0003/wrap-0001.age");
    ensure!(!wrap.exists());
    fs::rename(&brought, &host_file)?;
    taken_up("e0003")?;
    ensure!(wrap.exists(), "sealed with an epoch that nobody can open");
    ensure!(agent.log().contains("lacked") && agent.log().contains("e0003/wrap-0001.age"), "{}", agent.log());
    let daily = office.daily().display().to_string();
    site.ask(&["key", "test", "--identity", &daily])?.expect(0, &[])?;

    // Half a host file: the agent goes on, and says so.
    let good = fs::read(&host_file)?;
    fs::write(&host_file, good.get(..good.len() / 2).context("half of it")?)?;
    until(|| Ok(agent.log().contains("cannot be used any more")), || agent.log())?;
    ensure!(epoch_of(&site, &site.switch()?)? == "e0003");
    fs::write(&host_file, &good)?;
    let rows = site.cluster.psql(ROWS)?;
    site.backup()?;
    site.switch()?;
    agent.end(nix::sys::signal::Signal::SIGTERM)?;
    let (copy, _) = site.restored(&["--identity", &daily])?;
    ensure!(copy.psql(ROWS)? == rows, "other rows came back");
    Ok(())
}

#[test]
fn the_state_directory_may_go_between_any_two_commands_and_holds_nothing() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let state = site.place().join("state");
    let keys = format!("[keys]\nhost_file = \"{}\"\n", site.place().join("main.host").display());
    let retention = "retention = { window = \"7d\" }\n";
    configure(&site, &format!("{}{retention}{keys}", own_repository(&site)))?;
    let text = fs::read_to_string(&site.config)?;
    fs::write(&site.config, format!("state_dir = \"{}\"\n{text}", state.display()))?;
    let daily = office.daily().display().to_string();
    let dest = site.place().join("dest").display().to_string();
    // There, gone, and impossible to make: a file is in its place.
    for round in ["made", "gone", "a file"] {
        let prepare = || -> Result<()> {
            if state.is_dir() {
                let left: Vec<_> = fs::read_dir(&state)?.flatten().map(|entry| entry.file_name()).collect();
                ensure!(left.is_empty(), "docs/encryption.md says that nothing is kept there: {left:?}");
                fs::remove_dir_all(&state)?;
            } else if state.exists() {
                fs::remove_file(&state)?;
            }
            match round {
                "made" => fs::create_dir(&state)?,
                "gone" => return Ok(()),
                _ => fs::write(&state, "in the way")?,
            }
            give_to_server(&state)
        };
        let run = |args: &[&str]| {
            prepare()?;
            site.ask(args)?.expect(0, &[]).with_context(|| format!("{round}: {args:?}"))
        };
        run(&["init", "--superuser", &site.cluster.conninfo()])?;
        run(&["key", "rotate"])?;
        run(&["key", "list"])?;
        if round == "made" {
            fill(&site)?;
        }
        prepare()?;
        let alone = site.switch()?;
        run(&["check"])?;
        run(&["backup", "--full"])?;
        prepare()?;
        let agent = Agent::start(&site)?;
        site.cluster.psql(&format!("INSERT INTO t VALUES (7000, '{round}')"))?;
        prepare()?;
        let segment = site.switch()?;
        run(&["agent", "--status"])?;
        ensure!(agent.end(nix::sys::signal::Signal::SIGTERM)?.success());
        run(&["info"])?;
        run(&["verify", "--decode", "--identity", &daily])?;
        for name in [&alone, &segment] {
            run(&["--identity", &daily, "archive-get", name, &dest])?;
        }
        run(&["expire"])?;
        let rows = site.cluster.psql(ROWS)?;
        prepare()?;
        let (copy, _) = site.restore(&["--identity", &daily])?;
        prepare()?;
        open(&copy)?;
        ensure!(copy.psql(ROWS)? == rows, "{round}: other rows came back");
        prepare()?;
        ensure!(round != "gone" || !state.exists(), "somebody made it");
    }
    Ok(())
}

#[test]
fn a_look_at_a_few_files_of_a_large_encrypted_backup_fetches_little() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let Some(s3) = S3::start()? else { return Ok(()) };
    let meter = Meter::before(&s3.address())?;
    let (site, office) = sealed(
        &install,
        &SiteOptions::default(),
        |_| "s3://bucket/pg".to_owned(),
        |place| Ok(s3.settings(place)?.replace(&s3.address(), meter.address())),
    )?;
    fill(&site)?;
    // What does not compress and writes no WAL: a base backup takes every file.
    let noise = site.cluster.data.join("noise");
    let mut bytes = vec![0; 160 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    fs::write(&noise, &bytes)?;
    give_to_server(&noise)?;
    let backup = site.backup()?;
    let stored = backup["stored_bytes"].as_u64().context("stored_bytes")?;
    ensure!(stored > 160 << 20, "{backup}");
    let daily = office.daily().display().to_string();
    let target = site.place().join("look").display().to_string();
    let before = meter.fetched();
    site.ask(&["restore", "--copy", "--target-dir", &target, "--identity", &daily, "--dry-run"])?
        .expect(0, &[])?;
    let fetched = meter.fetched() - before;
    eprintln!("a plan fetched {fetched} of {stored} bytes");
    ensure!(fetched < stored / 4, "a plan fetched {fetched} of {stored} bytes");
    let rows = site.cluster.psql(ROWS)?;
    let before = meter.fetched();
    let (copy, _) = site.restored(&["--identity", &daily])?;
    ensure!(copy.psql(ROWS)? == rows, "other rows came back");
    ensure!(fs::read(copy.data.join("noise"))? == bytes, "another file came back");
    let fetched = meter.fetched() - before;
    eprintln!("a restore fetched {fetched} of {stored} bytes");
    ensure!(fetched < stored + stored / 3, "packs were fetched more than once: {fetched} of {stored}");
    Ok(())
}

#[test]
fn a_repository_elsewhere_is_not_left_in_clear_without_a_word() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, _office) = sealed_here(&install)?;
    let config = site.place().join("new.toml");
    let mut command = as_server(env!("CARGO_BIN_EXE_pitr"))?;
    command.arg("--config").arg(&config).args(["--repository", "s3://bucket/none", "init", "--superuser"]);
    Answer::of(command.arg(site.cluster.conninfo()))?.expect(3, &["how it is to be encrypted", "--plain"])?;
    ensure!(!config.exists(), "a configuration was written");
    Ok(())
}
