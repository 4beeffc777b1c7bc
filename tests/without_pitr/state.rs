//! What the script takes for true, and what it leaves behind.
//!
//! A copy recovers to its end and opens, whatever its source was doing; a backup is restored only if it is a whole one; and what a folder
//! or a path says is never run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pitr::codec::Digest;

use super::support::cluster::{Cluster, Install, give_to_server};
use super::support::site::{Answer, open};
use super::{ROWS, Rescue, Source, tools};

/// Settings that a server may be left with: a recovery that was asked for, a standby that it was.
const LEFT: &str = "recovery_target = 'immediate'\nrecovery_target_action = 'pause'\nrecovery_end_command = 'touch ran'\n\
     archive_cleanup_command = 'touch ran'\nprimary_conninfo = 'host=/nowhere'\nprimary_slot_name = 'production'\n\
     synchronous_standby_names = 'production'\nrecovery_min_apply_delay = '1d'\n";

#[test]
fn a_copy_of_a_standby_recovers_to_the_end_and_opens() -> Result<()> {
    for (major, sealed, file) in [(13, false, "postgresql.auto.conf"), (17, true, "postgresql.conf")] {
        let Some(install) = Install::find_or_skip(major).filter(|_| tools()) else { continue };
        standby(&install, sealed, file).with_context(|| format!("PostgreSQL {major}, {file}"))?;
    }
    Ok(())
}

fn standby(install: &Install, sealed: bool, file: &str) -> Result<()> {
    let source = Source::new(install, sealed)?;
    let cluster = &source.site.cluster;
    source.table()?;
    source.site.switch()?;
    // The server that runs looks at neither; it is what its backup says of it.
    cluster.append_conf(file, LEFT)?;
    let signal = cluster.data.join("standby.signal");
    fs::write(&signal, b"")?;
    give_to_server(&signal)?;
    source.site.backup()?;
    cluster.psql("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(501, 900) n")?;
    source.site.switch()?;
    let rescue = source.rescue()?;
    let copy = rescue.restored(install, &[])?;
    ensure!(copy.psql(ROWS)? == rescue.rows, "other rows came back");
    copy.psql("CREATE TABLE written AS SELECT 1")?;
    let is = |name: &str| copy.psql(&format!("SHOW {name}"));
    for name in ["primary_conninfo", "primary_slot_name", "recovery_target", "synchronous_standby_names"] {
        ensure!(is(name)?.is_empty(), "{name} = {}", is(name)?);
    }
    ensure!(is("archive_mode")? == "off", "it archives");
    ensure!(!copy.data.join("ran").exists(), "a command of the source ran");
    Ok(())
}

/// Blanks, and what means something to a shell, to PostgreSQL's configuration or to its `restore_command`.
#[test]
fn directories_have_any_name_that_a_restore_command_can_say() -> Result<()> {
    for (major, sealed) in [(17, true), (13, false)] {
        let Some(install) = Install::find_or_skip(major).filter(|_| tools()) else { continue };
        let mut rescue = Rescue::of(&install, sealed)?;
        let folder = rescue.fresh("the folder, 100% $(touch ran) \"quoted\"");
        fs::rename(&rescue.folder, &folder)?;
        rescue.folder = folder;
        let mut copy = Cluster::around(&install)?;
        copy.data = copy.root().join("a  data & directory; *");
        rescue.restore(&copy.data, &[])?.expect(0, &[])?;
        open(&copy)?;
        ensure!(copy.psql(ROWS)? == rescue.rows, "PostgreSQL {major}: other rows came back");
    }
    Ok(())
}

/// A JSON object of the repository with `from` made `to`, and its sum made right again.
fn edit(path: &Path, from: &str, to: &str) -> Result<Vec<u8>> {
    let good = fs::read(path)?;
    let text = String::from_utf8(good.clone())?;
    ensure!(text.contains(from), "no {from} in {text}");
    let text = text.replacen(from, to, 1);
    let (covered, _) = text.rsplit_once(",\n  \"sum\"").context("a sum")?;
    fs::write(path, format!("{covered},\n  \"sum\": \"{}\"\n}}\n", Digest::of(covered.as_bytes()).short()))?;
    Ok(good)
}

#[test]
fn a_backup_that_is_named_must_be_as_good_as_one_that_is_chosen() -> Result<()> {
    let Some(install) = Install::find_or_skip(17).filter(|_| tools()) else { return Ok(()) };
    let source = Source::new(&install, false)?;
    source.table()?;
    source.site.switch()?;
    let id = |done: serde_json::Value| done["id"].as_str().map(str::to_owned).context("an id");
    let mut ids = [id(source.site.backup()?)?, id(source.site.backup()?)?];
    // Within one second their names decide.
    ids.sort();
    let [older, newer] = ids;
    source.site.switch()?;
    let rescue = source.rescue()?;
    let target = rescue.fresh("target");
    let verdict = rescue.folder.join(format!("backups/{newer}/backup.json"));
    let refused = |says: &str| -> Result<()> {
        rescue.restore(&target, &["-b", &newer])?.expect(1, &[&newer, says])?;
        ensure!(!target.exists(), "{says}: something was left");
        // The other one is chosen.
        let chosen = rescue.restore(&target, &[])?;
        ensure!(chosen.code == 0 && chosen.out.contains(&older), "{says}: {chosen:?}");
        fs::remove_dir_all(&target)?;
        fs::remove_dir_all(rescue.fresh("target.restore"))?;
        Ok(())
    };
    for (from, to, says) in [
        ("\"kind\": \"full\"", "\"kind\": \"incremental\"", "incremental"),
        ("\"status\": \"complete\"", "\"status\": \"abandoned\"", "abandoned"),
        ("\"checksums\": \"ok\"", "\"checksums\": \"corrupt\"", "damaged pages"),
        ("\"nonce\": \"", "\"nonce\": \"0", "intent.json"),
    ] {
        let good = edit(&verdict, from, to)?;
        refused(says).context(to.to_owned())?;
        fs::write(&verdict, good)?;
    }
    let tombstone = verdict.with_file_name("expired.json");
    fs::write(&tombstone, b"{}")?;
    refused("expired")?;
    fs::remove_file(&tombstone)?;
    let away = rescue.fresh("away");
    fs::rename(&verdict, &away)?;
    refused("never finished")?;
    fs::rename(&away, &verdict)?;

    rescue.restore(&target, &["-b", "20200101-000000-00000000"])?.expect(1, &["not there"])?;
    ensure!(!target.exists(), "something was left");
    // Damage in the newest one is said and not passed over.
    let good = super::flip(&verdict, 300)?;
    for (n, more) in [&[][..], &["-b", &newer]].into_iter().enumerate() {
        let answer = rescue.restore(&rescue.fresh(&format!("damaged-{n}")), more)?;
        answer.expect(1, &["backup.json was changed"])?;
    }
    fs::write(&verdict, good)?;
    let done = rescue.restore(&target, &["-b", &newer])?;
    ensure!(done.code == 0 && done.out.contains(&newer), "{done:?}");
    Ok(())
}

#[test]
fn a_tombstone_that_is_not_the_hosts_own_hides_no_backup() -> Result<()> {
    let Some(install) = Install::find_or_skip(17).filter(|_| tools()) else { return Ok(()) };
    let rescue = Rescue::of(&install, true)?;
    let verdict = rescue.a_file("backups", "backup.json")?;
    fs::write(
        verdict.with_file_name("expired.json"),
        b"{\n  \"pitr\": \"expired 1\",\n  \"mac\": \"00\"\n}\n",
    )?;
    rescue.restore(&rescue.fresh("target"), &[])?.expect(0, &["is not believed"])
}

#[test]
fn what_a_folder_says_of_itself_gets_into_no_command() -> Result<()> {
    let Some(install) = Install::find_or_skip(17).filter(|_| tools()) else { return Ok(()) };
    let mut rescue = Rescue::of(&install, false)?;
    let (identity, ran) = (rescue.folder.join("identity.json"), rescue.fresh("ran"));
    let target = rescue.fresh("target");
    let refused = |rescue: &Rescue, target: &Path, more: &[&str], says: &str| -> Result<()> {
        rescue.restore(target, more)?.expect(1, &[says])?;
        ensure!(!target.exists() && !ran.exists(), "{says}: something was left");
        Ok(())
    };
    let command = format!("$(touch {})", ran.display());
    let text = fs::read_to_string(&identity)?;
    let line = |name: &str| -> Result<String> {
        let found = text.lines().find(|line| line.trim_start().starts_with(&format!("\"{name}\"")));
        found.map(str::to_owned).with_context(|| format!("no {name} in {text}"))
    };
    for (name, says) in
        [("cluster", "no cluster"), ("system", "no system identifier"), ("segment_size", "no segment size")]
    {
        for value in
            [format!("1'{command}'"), command.clone(), "'".to_owned(), "../x".to_owned(), String::new()]
        {
            let good = edit(&identity, &line(name)?, &format!("  \"{name}\": \"{value}\","))?;
            refused(&rescue, &target, &[], says).with_context(|| format!("{name} = {value}"))?;
            fs::write(&identity, good)?;
        }
    }
    for backup in ["../x", "*", &format!("20200101{command}")] {
        refused(&rescue, &target, &["-b", backup], "no backup id")?;
    }
    for odd in ["it's", "100%", "a\"b", "a\\b", "a\nb", "a\n", "$HOME", "`id`"] {
        refused(&rescue, &rescue.fresh(odd), &[], "restore_command").with_context(|| odd.to_owned())?;
    }
    let verdict = rescue.a_file("backups", "backup.json")?;
    for (from, to, says) in [
        ("\"major\": 17", "\"major\": \"1; id\"", "no major version"),
        ("\"count\": ", "\"count\": \"x\", \"y\": ", "no number of packs"),
    ] {
        let good = edit(&verdict, from, to)?;
        rescue.restore(&rescue.fresh(says), &[])?.expect(1, &[says])?;
        fs::write(&verdict, good)?;
    }
    let quoted = rescue.fresh("it's here");
    fs::rename(&rescue.folder, &quoted)?;
    rescue.folder = quoted;
    refused(&rescue, &target, &[], "it's here")
}

/// Who decompresses fails at the very end, and nothing can be written any more that would say so.
#[test]
fn a_backup_that_was_read_in_part_is_not_taken_for_whole() -> Result<()> {
    let Some(install) = Install::find_or_skip(17).filter(|_| tools()) else { return Ok(()) };
    let rescue = Rescue::of(&install, false)?;
    let bin = rescue.fresh("bin");
    fs::create_dir(&bin)?;
    let zstd = "/usr/bin/zstd \"$@\" || exit\n[ $# != 1 ] # as a filter";
    for (tool, does) in [("zstd", zstd), ("touch", "exit 1")] {
        fs::write(bin.join(tool), format!("#!/bin/sh\n{does}\n"))?;
        fs::set_permissions(bin.join(tool), fs::Permissions::from_mode(0o755))?;
    }
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let mut script = rescue.script(&rescue.fresh("target"), &[])?;
    Answer::of(script.env("PATH", path))?.expect(1, &["a pack does not open"])
}
