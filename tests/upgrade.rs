//! pg_upgrade, walked as docs/upgrade.md says: a new system identifier under the same cluster name, both histories restorable.
//!
//! PostgreSQL's own pg_upgrade makes 17 of 15. The new server's WAL is refused before `init --system-id` confirms it, and nothing of
//! the old history is lost by it: a moment before the upgrade still comes back, on 15.
#![cfg(feature = "testing")]
#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use anyhow::{Context as _, Result, ensure};
use support::cluster::{Cluster, Install, Options, Stop, as_server, give_to_server, run, scratch};
use support::site::{Answer, Site, SiteOptions};

const ROWS: &str = "SELECT string_agg(n::text, ',' ORDER BY n) FROM t";

/// The cluster that pg_upgrade makes of `old`, not started.
fn upgraded(old: &Cluster, install: &Install) -> Result<Cluster> {
    let options = Options { segment_mib: 1, ..Options::default() };
    let new = Cluster::init(install, &options)?;
    let place = scratch("pitr-upgrade-")?;
    let mut upgrade = as_server(install.tool("pg_upgrade"))?;
    upgrade.current_dir(place.path()).arg("-b").arg(&old.install.bin).arg("-B").arg(&install.bin);
    upgrade
        .arg("-d")
        .arg(&old.data)
        .arg("-D")
        .arg(&new.data)
        .args(["-U", "postgres", "-s"])
        .arg(place.path());
    run(&mut upgrade)?;
    Ok(new)
}

#[test]
fn both_histories_stay_restorable_after_pg_upgrade() -> Result<()> {
    let (Some(fifteen), Some(seventeen)) = (Install::find_or_skip(15), Install::find_or_skip(17)) else {
        return Ok(());
    };
    let mut site = Site::new(&fifteen, &SiteOptions::default())?;
    let before = site.system()?;
    site.cluster.psql("CREATE TABLE t AS SELECT 1 AS n")?;
    site.backup()?;
    site.cluster.psql("INSERT INTO t VALUES (2)")?;
    let moment = site.cluster.psql("SELECT clock_timestamp() AT TIME ZONE 'UTC'")?;
    site.cluster.psql("INSERT INTO t VALUES (3)")?;
    site.switch()?;
    site.cluster.stop(Stop::Fast)?;

    let new = upgraded(&site.cluster, &seventeen)?;
    let old = std::mem::replace(&mut site.cluster, new);
    let command = format!(
        "archive_command = '{} --config {} archive-push %p'\n",
        site.program().display(),
        site.config.display()
    );
    site.cluster.append_conf(
        "postgresql.conf",
        &format!("fsync = on\narchive_mode = on\narchive_timeout = 60\n{command}"),
    )?;
    site.cluster.start()?;
    let after = site.system()?;
    ensure!(before != after);
    // Where it listens stays the same on a real host; the directories in the configuration are the old ones.
    let text = std::fs::read_to_string(&site.config)?;
    let (was, is) = (old.socket.display().to_string(), site.cluster.socket.display().to_string());
    std::fs::write(&site.config, text.replace(&was, &is))?;

    nothing_of_the_new_server_is_taken_unasked(&site, &before, &after)?;
    let conninfo = site.cluster.conninfo();
    let confirmed = site.ask(&["init", "--superuser", &conninfo, "--system-id", &after, "--apply"])?;
    confirmed.expect(0, &[])?;
    // The configuration still names the old directories: said, so that no `restore --replace` goes there.
    let (data, bin) =
        (site.cluster.data.display().to_string(), site.cluster.install.bin.display().to_string());
    ensure!(confirmed.out.contains(&format!("data_dir = \"{data}\", bin_dir = \"{bin}\"")), "{confirmed:?}");
    let repository =
        format!("[[repository]]\nname = \"main\"\nurl = \"file://{}\"\n", site.repository.display());
    site.write_config(&repository)?;
    ensure!(
        site.json(&["init", "--superuser", &conninfo, "--json"])?["stale"].is_null(),
        "said once, and done"
    );
    site.ask(&["check"])?.expect(0, &[])?;
    site.cluster.psql("INSERT INTO t VALUES (4)")?;
    site.backup()?;
    site.switch()?;

    the_old_history_is_still_there(&site, &old, &before, &moment)?;
    let (copy, _) = site.restored(&["--to", "latest"])?;
    ensure!(copy.psql(ROWS)? == "1,2,3,4" && copy.psql("SHOW server_version_num")?.starts_with("17"));
    let plan = site.ask(&["expire", "--dry-run"])?;
    plan.expect(0, &[])?;
    ensure!(plan.out.contains(&before) && plan.out.contains(&after), "{plan:?}");
    Ok(())
}

/// Its archiver waits, a backup and `init` are refused: all name both systems.
fn nothing_of_the_new_server_is_taken_unasked(site: &Site, before: &str, after: &str) -> Result<()> {
    let segment = site.cluster.wal_files()?.first().cloned().context("a segment")?;
    let name = format!("pg_wal/{}", segment.file_name().and_then(|n| n.to_str()).context("a name")?);
    let objects = site.listing()?.len();
    site.ask(&["archive-push", &name])?.expect(9, &[before, after, "--system-id"])?;
    site.ask(&["backup"])?.expect(9, &[before, after])?;
    let conninfo = site.cluster.conninfo();
    site.ask(&["init", "--superuser", &conninfo])?.expect(9, &[before, after, "--system-id"])?;
    ensure!(site.listing()?.len() == objects, "something was stored");
    Ok(())
}

fn the_old_history_is_still_there(site: &Site, old: &Cluster, before: &str, moment: &str) -> Result<()> {
    let shown = site.json(&["info", "--json"])?;
    ensure!(shown["repositories"][0]["system_identifier"] != *before, "{shown}");
    let shown = site.json(&["info", "--system-id", before, "--json"])?;
    ensure!(shown["repositories"][0]["backups"][0]["restorable"] == true, "{shown}");
    site.ask(&["info", "--system-id", "42"])?.expect(5, &[before])?;
    let place = scratch("pitr-before-")?;
    let target = place.path().join("copy").display().to_string();
    let flags = ["restore", "--to", moment, "--copy", "--target-dir", &target];
    // Without the identifier the newest system is meant; the refusal says where to look.
    site.ask(&flags)?.expect(4, &[&format!("--system-id {before} (PostgreSQL 15)")])?;
    let flags = [&flags[..], &["--system-id", before]].concat();
    // The configuration now names 17's programs, which cannot run what 15 wrote.
    site.ask(&flags)?.expect(9, &["the backup is of PostgreSQL 15, bin_dir has PostgreSQL 17"])?;
    let text = std::fs::read_to_string(&site.config)?;
    let (seventeen, fifteen) = (&site.cluster.install.bin, &old.install.bin);
    let text = text.replace(&seventeen.display().to_string(), &fifteen.display().to_string());
    let other = site.place().join("fifteen.toml");
    std::fs::write(&other, text)?;
    give_to_server(&other)?;
    let mut restore = as_server(site.program())?;
    restore.current_dir(place.path()).arg("--config").arg(&other).args(&flags);
    Answer::of(&mut restore)?.expect(0, &[])?;
    let copy = support::restored::Restored::start_copy(&old.install, target.as_ref())?.promoted()?;
    ensure!(copy.psql(ROWS)? == "1,2");
    copy.stop(Stop::Fast)
}
