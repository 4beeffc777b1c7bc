//! What the script takes for true, and what it leaves behind.
//!
//! A copy recovers to its end and opens, whatever its source was doing; a backup is restored only if it is a whole one; and what a folder
//! or a path says is never run.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::support::cluster::{Cluster, Install, give_to_server};
use super::support::site::open;
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
