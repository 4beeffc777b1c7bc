//! `pitr check` on real servers: an archiver that stands still, commands that only pretend to archive, roles that may not see all.
//!
//! What is said is compared with what was done to the server. Ages are made by setting back the files that PostgreSQL takes them from.

#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use support::cluster::{Install, Stop, as_server, give_to_server, run};
use support::site::{Answer, Site, SiteOptions, until};

/// With fsync off, as tests have it, `check` would say so.
const CONF: &str = "fsync = on\nautovacuum = off\n";
const MIB: u64 = 1 << 20;
/// How many files wait.
const WAITING: &str = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";

fn site(install: &Install) -> Result<Site> {
    Site::new(install, &SiteOptions { conf: CONF, ..SiteOptions::default() })
}

/// What one run said.
struct Said {
    code: i32,
    json: Value,
}

impl Said {
    fn of(site: &Site) -> Result<Self> {
        let Answer { code, out, err } = site.ask(&["check", "--json"])?;
        // A failure adds the object of its error.
        let first = serde_json::Deserializer::from_str(&out).into_iter::<Value>().next();
        let json = first.with_context(|| format!("{code}: {out}{err}"))??;
        ensure!(json["schema"] == "pitr.check.v1", "{json}");
        Ok(Self { code, json })
    }

    fn finding(&self, what: &str) -> Result<(&str, &str, &str)> {
        let all = self.json["findings"].as_array().context("findings")?;
        let text = |finding: &'_ Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        match all.iter().find(|finding| finding["what"] == what) {
            Some(f) => {
                ensure!(text(f, "grade") == "ok" || !text(f, "hint").is_empty(), "no advice: {f}");
                let str = |key: &str| f[key].as_str().unwrap_or_default();
                Ok((str("grade"), str("found"), str("hint")))
            }
            None => bail!("nothing about {what}: {}", self.json),
        }
    }

    /// Fails unless the finding has this grade and says this.
    fn says(&self, what: &str, grade: &str, words: &[&str]) -> Result<()> {
        let (found_grade, found, _) = self.finding(what)?;
        let missing: Vec<_> = words.iter().filter(|word| !found.contains(**word)).collect();
        ensure!(found_grade == grade && missing.is_empty(), "{grade} {missing:?}: {}", self.json);
        Ok(())
    }

    fn number(&self, group: &str, key: &str) -> Result<u64> {
        self.json["server"][group][key].as_u64().with_context(|| format!("{group}.{key}: {}", self.json))
    }
}

fn set(site: &Site, name: &str, value: &str) -> Result<()> {
    let value = value.replace('\'', "''");
    site.cluster.psql(&format!("ALTER SYSTEM SET {name} = '{value}'; SELECT pg_reload_conf();"))?;
    site.cluster.wait_for(&format!("SHOW {name}"), &value)
}

/// All WAL is archived, and nothing waits.
fn settle(site: &Site) -> Result<()> {
    site.switch()?;
    site.cluster.wait_for(WAITING, "0")
}

/// Finishes segments; the first of them.
fn finish_segments(site: &Site, count: usize) -> Result<String> {
    let name = site.cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    for _ in 0..count {
        site.cluster.psql("SELECT pg_create_restore_point('r'); SELECT pg_switch_wal();")?;
    }
    Ok(name)
}

/// Everything that waits for the archiver waits since ten minutes.
fn set_back(site: &Site) -> Result<()> {
    let status = site.cluster.data.join("pg_wal/archive_status");
    let files = std::fs::read_dir(&status)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let ready = files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "ready"));
    run(as_server("touch")?.args(["-d", "10 minutes ago"]).args(ready)).map(drop)
}

/// Adds an optional repository `other`; its place.
fn with_optional(site: &Site) -> Result<PathBuf> {
    let other = site.place().join("other");
    let section = |name: &str, more: &str, place: &Path| {
        format!("[[repository]]\nname = \"{name}\"\n{more}url = \"file://{}\"\n", place.display())
    };
    let optional = section("other", "required = false\n", &other);
    site.write_config(&format!("{}{optional}", section("main", "", &site.repository)))?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--json"])?;
    Ok(other)
}

#[test]
fn an_optional_repository_that_missed_something_is_told() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install)?;
    settle(&site)?;
    // It comes to be there after the newest segment was archived.
    with_optional(&site)?;
    let said = Said::of(&site)?;
    ensure!(said.code == 2, "{}", said.json);
    said.says("round trip", "at risk", &["comes back", "optional repository other does not have it"])?;
    let newest = "SELECT last_archived_wal FROM pg_stat_archiver";
    let before = site.cluster.psql(newest)?;
    finish_segments(&site, 1)?;
    // The server counts a little later than it archives.
    until(|| Ok(site.cluster.psql(newest)? != before), || before.clone())?;
    Said::of(&site)?.says("round trip", "ok", &["comes back"])
}

fn stands_still(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let site = site(&install)?;
    settle(&site)?;
    let well = Said::of(&site)?;
    ensure!(well.code == 0, "{}", well.json);
    well.says("archive queue", "ok", &["nothing waits"])?;
    well.says("pg_wal", "ok", &["free; neither the archiver nor a slot holds WAL back"])?;
    ensure!(well.number("queue", "files")? == 0 && well.number("pg_wal", "free_bytes")? > 0);
    ensure!(well.json["server"]["pg_wal"]["seconds_to_full"].is_null(), "an idle server: {}", well.json);

    // pitr, that fails.
    let good = site.cluster.psql("SHOW archive_command")?;
    set(
        &site,
        "archive_command",
        &format!("{} --config /nowhere archive-push %p", site.program().display()),
    )?;
    let first = finish_segments(&site, 3)?;
    site.cluster.wait_for("SELECT failed_count > 1 FROM pg_stat_archiver", "t")?;
    let failing = Said::of(&site)?;
    ensure!(failing.code == 2, "{}", failing.json);
    failing.says("archive_command", "ok", &[])?;
    failing.says("archiver", "at risk", &[&first, "fails", "failures, the last", "last archived: 0000"])?;
    failing.says("archive queue", "ok", &["3 files are waiting (3.0 MiB)", &first])?;
    ensure!(failing.number("queue", "files")? == 3 && failing.number("queue", "segments")? == 3);
    ensure!(failing.number("queue", "bytes")? == 3 * MIB && failing.number("archiver", "failed_count")? > 1);
    let server = &failing.json["server"];
    ensure!(server["queue"]["oldest"] == first && server["archiver"]["failing"] == true, "{server}");
    ensure!(server["pg_wal"]["held_by"] == "archiver", "{server}");

    set_back(&site)?;
    let late = Said::of(&site)?;
    ensure!(late.code == 1, "{}", late.json);
    late.says("archiver", "FAILED", &[&first])?;
    late.says("archive queue", "FAILED", &["for 10m", "promised are 5m 00s"])?;
    let growth = late.number("pg_wal", "growth_bytes_per_second")?;
    // A queue of 3 MiB in ten minutes, and a few seconds.
    ensure!(growth > 4 * 1024, "{growth}");
    let (free, left) = (late.number("pg_wal", "free_bytes")?, late.number("pg_wal", "seconds_to_full")?);
    ensure!(left == free / growth, "{}", late.json);
    late.finding("pg_wal")?;

    // As soon as it gets on, all is well.
    set(&site, "archive_command", &good)?;
    finish_segments(&site, 1)?;
    site.cluster.wait_for(WAITING, "0")?;
    let again = Said::of(&site)?;
    ensure!(again.code == 0 && again.json["server"]["archiver"]["failing"] == false, "{}", again.json);
    Ok(())
}

#[test]
fn an_archiver_that_stands_still_is_counted_aged_and_timed_13() -> Result<()> {
    stands_still(13)
}

#[test]
fn an_archiver_that_stands_still_is_counted_aged_and_timed_14() -> Result<()> {
    stands_still(14)
}

#[test]
fn an_archiver_that_stands_still_is_counted_aged_and_timed_15() -> Result<()> {
    stands_still(15)
}

#[test]
fn an_archiver_that_stands_still_is_counted_aged_and_timed_16() -> Result<()> {
    stands_still(16)
}

#[test]
fn an_archiver_that_stands_still_is_counted_aged_and_timed_17() -> Result<()> {
    stands_still(17)
}

#[test]
fn an_archiver_that_stands_still_is_counted_aged_and_timed_18() -> Result<()> {
    stands_still(18)
}

#[test]
fn a_command_that_only_pretends_to_archive_is_found_and_init_replaces_it() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let site = site(&install)?;
    let good = site.cluster.psql("SHOW archive_command")?;
    settle(&site)?;

    set(&site, "archive_command", "")?;
    let first = finish_segments(&site, 2)?;
    set_back(&site)?;
    let said = Said::of(&site)?;
    ensure!(said.code == 1, "{}", said.json);
    said.says("archive_command", "FAILED", &["empty: WAL piles up"])?;
    // Nothing is tried, so nothing fails: the queue alone tells.
    said.says("archiver", "ok", &["last archived"])?;
    said.says("archive queue", "FAILED", &["2 files are waiting", &first])?;

    set(&site, "archive_command", "false")?;
    Said::of(&site)?.says("archive_command", "FAILED", &["says no to all"])?;
    set(&site, "archive_command", "/bin/true")?;
    // Another segment wakes the archiver, which else waits for a minute after three failures.
    finish_segments(&site, 1)?;
    site.cluster.wait_for(WAITING, "0")?;
    let said = Said::of(&site)?;
    ensure!(said.code == 1 && !site.object(&first)?.exists(), "{}", said.json);
    said.says("archive_command", "FAILED", &["says yes and stores nothing"])?;
    said.says("archive queue", "ok", &["nothing waits"])?;

    // What cannot be read in a script is known by what comes back, or does not.
    set(&site, "archive_command", "test -n %f")?;
    finish_segments(&site, 1)?;
    site.cluster.wait_for(WAITING, "0")?;
    let said = Said::of(&site)?;
    said.says("archive_command", "at risk", &["cannot be seen"])?;
    ensure!(said.code == 1, "{}", said.json);
    said.says("round trip", "FAILED", &["does not have it"])?;

    set(&site, "archive_command", "true")?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--apply", "--json"])?;
    site.cluster.wait_for("SHOW archive_command", &good)?;
    finish_segments(&site, 1)?;
    settle(&site)?;
    ensure!(Said::of(&site)?.code == 0, "{}", Said::of(&site)?.json);

    // What else undermines it.
    set(&site, "fsync", "off")?;
    set(&site, "full_page_writes", "off")?;
    let said = Said::of(&site)?;
    ensure!(said.code == 2, "{}", said.json);
    said.says("fsync", "at risk", &["off: a crash of the host"])?;
    said.says("full_page_writes", "ok", &["backups of this server are sound"])?;
    site.cluster.psql("ALTER SYSTEM SET archive_mode = off; SELECT pg_reload_conf();")?;
    site.cluster.wait_for("SELECT pending_restart FROM pg_settings WHERE name = 'archive_mode'", "t")?;
    Said::of(&site)?.says("archive_mode", "at risk", &["a restart is waiting"])?;
    site.cluster.psql("ALTER SYSTEM SET wal_level = minimal; ALTER SYSTEM SET max_wal_senders = 0;")?;
    site.cluster.stop(Stop::Fast)?;
    site.cluster.start()?;
    let said = Said::of(&site)?;
    ensure!(said.code == 1, "{}", said.json);
    said.says("archive_mode", "FAILED", &["off"])?;
    said.says("wal_level", "FAILED", &["minimal"])?;
    said.says("max_wal_senders", "FAILED", &["no backup"])
}

/// What PostgreSQL does with a library beside the command differs: 15 uses the library, later ones neither.
fn library(major: u32, words: &str) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let site = site(&install)?;
    settle(&site)?;
    set(&site, "archive_library", "nowhere")?;
    let first = finish_segments(&site, 1)?;
    set_back(&site)?;
    let said = Said::of(&site)?;
    ensure!(said.code == 1, "{}", said.json);
    said.says("archive_library", "FAILED", &["nowhere", words])?;
    ensure!(said.finding("archive_command").is_err(), "it is not run: {}", said.json);
    said.says("archive queue", "FAILED", &[&first])?;
    let both = || {
        let said = |line: &str| line.contains("both") && line.contains("archive_library");
        site.cluster.log_text().lines().any(said)
    };
    // A connection wakes the postmaster, which starts the archiver that gave up.
    let awake = |done: &dyn Fn() -> bool| site.cluster.psql("SELECT 1").map(|_| done());
    if major >= 16 {
        until(|| awake(&both), || site.cluster.log_text())?;
    } else {
        ensure!(!both(), "{}", site.cluster.log_text());
    }

    set(&site, "archive_command", "")?;
    Said::of(&site)?.says("archive_library", "FAILED", &["and pitr is not"])?;
    // The HINT works.
    set(&site, "archive_library", "")?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--apply", "--json"])?;
    until(|| awake(&|| site.object(&first).is_ok_and(|path| path.exists())), || site.cluster.log_text())?;
    site.cluster.wait_for(WAITING, "0")?;
    let said = Said::of(&site)?;
    ensure!(said.code == 0, "{}", said.json);
    Ok(())
}

#[test]
fn a_library_beside_the_command_is_named_15() -> Result<()> {
    library(15, "archive_command is not run")
}

#[test]
fn a_library_beside_the_command_is_named_16() -> Result<()> {
    library(16, "the archiver refuses to run with both")
}

#[test]
fn a_library_beside_the_command_is_named_18() -> Result<()> {
    library(18, "the archiver refuses to run with both")
}

#[test]
fn a_role_that_may_not_see_the_queue_is_told_what_to_grant() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install)?;
    settle(&site)?;
    site.cluster.psql("CREATE ROLE watcher LOGIN REPLICATION")?;
    site.cluster
        .psql("GRANT EXECUTE ON FUNCTION pg_switch_wal(), pg_create_restore_point(text) TO watcher")?;
    let text = std::fs::read_to_string(&site.config)?;
    let as_role = |role: &str| -> Result<()> {
        run(Command::new("sed").args(["-i", &format!("s/user=[a-z]*/user={role}/")]).arg(&site.config))
            .map(drop)
    };
    ensure!(text.contains("user=postgres"), "{text}");
    as_role("watcher")?;
    let said = Said::of(&site)?;
    ensure!(said.code == 0 && said.json["server"]["queue"].is_null(), "{}", said.json);
    said.says("archive queue", "ok", &["role watcher may not list it", "0 segments ahead"])?;
    // Its data directory is hidden from the role, and in the configuration.
    said.says("pg_wal", "ok", &["free"])?;
    let (_, _, hint) = said.finding("archive queue")?;
    let grant = hint.split_once("GRANT").context("no GRANT")?.1.trim_end_matches(';');
    site.cluster.psql(&format!("GRANT {grant}"))?;
    let said = Said::of(&site)?;
    ensure!(said.code == 0 && said.number("queue", "files")? == 0, "{}", said.json);

    // The role that init makes needs no more.
    as_role("fresh")?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--apply", "--json"])?;
    let said = Said::of(&site)?;
    ensure!(said.code == 0 && said.number("queue", "files")? == 0, "{}", said.json);
    Ok(())
}

#[test]
fn a_slot_that_nobody_reads_is_named_as_what_holds_wal() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install)?;
    site.cluster.psql("SELECT pg_create_physical_replication_slot('forgotten', true)")?;
    finish_segments(&site, 3)?;
    settle(&site)?;
    let said = Said::of(&site)?;
    let wal = &said.json["server"]["pg_wal"];
    ensure!(wal["held_by"] == "slot" && wal["held_by_slot"] == "forgotten", "{}", said.json);
    ensure!(said.finding("pg_wal")?.1.contains("held by slot forgotten ("), "{}", said.json);
    // One that is ended before the disk is full does not fill it.
    set(&site, "max_slot_wal_keep_size", "64MB")?;
    let said = Said::of(&site)?;
    ensure!(said.json["server"]["pg_wal"]["held_by"].is_null(), "{}", said.json);
    Ok(())
}

/// A file system in memory, unmounted with the test.
struct Small(PathBuf);

impl Small {
    /// `None`, said as a skipped test does, where mounting is not allowed.
    fn at(at: &Path, size: &str) -> Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let options = format!("size={size},mode=0700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "pitr-test"]).arg(at).output();
        if !mount.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: mounting a small file system needs root");
            return Ok(None);
        }
        give_to_server(at)?;
        Ok(Some(Self(at.to_owned())))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

#[test]
fn the_room_of_a_pg_wal_on_a_disk_of_its_own_is_what_counts() -> Result<()> {
    let Some(install) = Install::find_or_skip(16) else { return Ok(()) };
    let site = site(&install)?;
    let Some(small) = Small::at(&site.place().join("wal-disk"), "64m")? else { return Ok(()) };
    settle(&site)?;
    site.cluster.stop(Stop::Fast)?;
    let (inside, outside) = (site.cluster.data.join("pg_wal"), small.0.join("pg_wal"));
    run(as_server("mv")?.arg(&inside).arg(&outside))?;
    run(as_server("ln")?.arg("-s").arg(&outside).arg(&inside))?;
    site.cluster.start()?;
    let said = Said::of(&site)?;
    ensure!(said.code == 0 && said.number("pg_wal", "free_bytes")? < 64 * MIB, "{}", said.json);

    // Stuck since ten minutes, with twelve MiB: what is left lasts for less than an hour.
    set(&site, "archive_command", "false")?;
    finish_segments(&site, 12)?;
    set_back(&site)?;
    let said = Said::of(&site)?;
    said.says("pg_wal", "FAILED", &["full in about", "WAL is held by the archiver"])?;
    ensure!(said.number("pg_wal", "seconds_to_full")? < 3600, "{}", said.json);
    ensure!(said.finding("pg_wal")?.2.contains("a full pg_wal stops the server"), "{}", said.json);

    // Whoever fills it.
    let filler = small.0.join("filler");
    let free = nix::sys::statvfs::statvfs(&small.0)?;
    let bytes = free.blocks_available() * free.fragment_size() - 3 * MIB;
    run(as_server("fallocate")?.args(["-l", &bytes.to_string()]).arg(&filler))?;
    set(&site, "archive_command", "true")?;
    finish_segments(&site, 1)?;
    site.cluster.wait_for(WAITING, "0")?;
    Said::of(&site)?.says(
        "pg_wal",
        "FAILED",
        &["MiB free; neither the archiver nor a slot holds WAL back"],
    )?;
    site.cluster.stop(Stop::Fast)
}

/// Who can delete takes away the newest: what is left looks whole, and the server knows better.
#[test]
fn what_was_archived_and_is_gone_is_told() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let site = site(&install)?;
    let what = "WAL in repository main";
    settle(&site)?;
    let none = Said::of(&site)?;
    none.says(what, "ok", &["no complete backup is stored"])?;
    let done = site.backup()?;
    let id = done["id"].as_str().context("an id")?;
    let ended = || -> Result<String> {
        site.cluster.psql("SELECT pg_create_restore_point('r')")?;
        site.switch()
    };
    let names = [ended()?, ended()?, ended()?];
    let whole = Said::of(&site)?;
    whole.says(what, "ok", &[id, &names[2]])?;

    let away = site.place().join("away");
    for (gone, words) in [(1, [names[1].as_str(), "is missing"]), (2, [names[2].as_str(), "is missing"])] {
        let object = site.object(&names[gone])?;
        std::fs::rename(&object, &away)?;
        let said = Said::of(&site)?;
        said.says(what, "FAILED", &words)?;
        ensure!(said.code == 1, "{}", said.json);
        std::fs::rename(&away, &object)?;
    }
    let (first, last) = (site.object(&names[0])?, site.object(&names[2])?);
    std::fs::rename(&first, &away)?;
    std::fs::remove_file(&last)?;
    Said::of(&site)?.says(what, "FAILED", &[&names[0], "and 1 more"])?;
    std::fs::rename(&away, &first)?;
    // All since some day: backups too.
    std::fs::remove_dir_all(site.folder()?.join("backups"))?;
    Said::of(&site)?.says(what, "ok", &["no complete backup is stored"])
}

/// Behind the last segment that the server archived an agent stores ahead, in any order; an optional repository may be behind.
#[test]
fn what_is_stored_ahead_or_lacks_in_an_optional_repository_is_no_loss() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = site(&install)?;
    let other = with_optional(&site)?;
    site.ask(&["backup", "--repository", "other"])?.expect(0, &[])?;
    site.backup()?;
    let names = [finish_segments(&site, 1)?, finish_segments(&site, 1)?, finish_segments(&site, 1)?];
    settle(&site)?;
    Said::of(&site)?.says("WAL in repository other", "ok", &["are there"])?;
    let lacks = other.join(site.object(&names[1])?.strip_prefix(&site.repository)?);
    std::fs::remove_file(&lacks)?;
    let last = site.switch()?;
    let number = u64::from_str_radix(last.get(8..).context("a number")?, 16)?;
    let ahead = format!("{}{:016X}", last.get(..8).context("a timeline")?, number + 2);
    std::fs::copy(site.object(&last)?, site.object(&ahead)?)?;
    let said = Said::of(&site)?;
    said.says("WAL in repository main", "ok", &["are there"])?;
    said.says("WAL in repository other", "at risk", &[&names[1], "is missing"])
}
