//! What we read from and write into a data directory, against real servers of 13 to 18.
//!
//! Oracles that are not ours: `pg_controldata` for the control file, `pg_basebackup` for manifest, label, map and exclusions,
//! `postgres -C` for the syntax of configuration values, and servers that must start with what we wrote for them.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "says what was compared")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pitr::pgdata::backup_manifest::{Algorithm, FileHasher, PgManifest};
use pitr::pgdata::conf::{self, CommandSource, ItemKind};
use pitr::pgdata::control::{ControlFile, DbState};
use pitr::pgdata::copyconf::{CopyPlace, CopySource, Host, copy_config};
use pitr::pgdata::label::{BackupFrom, BackupLabel, TablespaceMap};
use pitr::pgdata::page::{self, PageLayout, PageLook};
use pitr::pgdata::paths::{self, PathClass};
use pitr::pgdata::recovery::{self, Action, Inclusive, RecoverySettings, Stop as Target};
use pitr::wal::{PgMajor, TimelineId};
use support::cluster::{Cluster, Install, MAJORS, Options, Stop, as_server, give_to_server, run, scratch};

fn control_of(cluster: &Cluster) -> Result<ControlFile> {
    Ok(ControlFile::parse(&fs::read(cluster.data.join("global/pg_control"))?)?)
}

/// `pg_controldata`'s lines. Debian's 15 reads the files of 13 to 16 as well: their layout is one.
fn controldata(cluster: &Cluster) -> Result<Option<BTreeMap<String, String>>> {
    let own = cluster.install.own_tool("pg_controldata");
    let program = match own {
        Some(program) => program,
        None if cluster.install.major <= 16 => cluster.install.tool("pg_controldata"),
        None => return Ok(None),
    };
    let text = run(as_server(program)?.arg(&cluster.data))?;
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    Ok(Some(pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()))
}

/// The same lines from our reading.
fn as_controldata(control: &ControlFile) -> Vec<(&'static str, String)> {
    let on = |flag: bool| if flag { "on" } else { "off" }.to_owned();
    let tli = |tli: Option<TimelineId>| tli.map_or(0, TimelineId::get).to_string();
    let point = &control.checkpoint;
    vec![
        ("pg_control version number", control.control_version.to_string()),
        ("Catalog version number", control.catalog_version.to_string()),
        ("Database system identifier", control.system_id.to_string()),
        ("Database cluster state", control.state.to_string()),
        ("Latest checkpoint location", control.checkpoint_lsn.to_string()),
        ("Latest checkpoint's REDO location", point.redo.to_string()),
        ("Latest checkpoint's TimeLineID", point.timeline.to_string()),
        ("Latest checkpoint's PrevTimeLineID", point.previous_timeline.to_string()),
        ("Latest checkpoint's full_page_writes", on(point.full_page_writes)),
        ("Latest checkpoint's NextXID", format!("{}:{}", point.next_xid >> 32, point.next_xid & 0xFFFF_FFFF)),
        ("Latest checkpoint's NextOID", point.next_oid.to_string()),
        ("Latest checkpoint's NextMultiXactId", point.next_multi.to_string()),
        ("Latest checkpoint's NextMultiOffset", point.next_multi_offset.to_string()),
        ("Latest checkpoint's oldestXID", point.oldest_xid.to_string()),
        ("Latest checkpoint's oldestXID's DB", point.oldest_xid_db.to_string()),
        ("Latest checkpoint's oldestActiveXID", point.oldest_active_xid.to_string()),
        ("Latest checkpoint's oldestMultiXid", point.oldest_multi.to_string()),
        ("Latest checkpoint's oldestMulti's DB", point.oldest_multi_db.to_string()),
        ("Latest checkpoint's oldestCommitTsXid", point.oldest_commit_ts_xid.to_string()),
        ("Latest checkpoint's newestCommitTsXid", point.newest_commit_ts_xid.to_string()),
        ("Fake LSN counter for unlogged rels", control.unlogged_lsn.to_string()),
        ("Minimum recovery ending location", control.min_recovery_point.to_string()),
        ("Min recovery ending loc's timeline", tli(control.min_recovery_timeline)),
        ("Backup start location", control.backup_start.to_string()),
        ("Backup end location", control.backup_end.to_string()),
        ("End-of-backup record required", if control.backup_end_required { "yes" } else { "no" }.to_owned()),
        ("wal_level setting", control.wal_level.to_string()),
        ("wal_log_hints setting", on(control.wal_log_hints)),
        ("max_connections setting", control.required.max_connections.to_string()),
        ("max_worker_processes setting", control.required.max_worker_processes.to_string()),
        ("max_wal_senders setting", control.required.max_wal_senders.to_string()),
        ("max_prepared_xacts setting", control.required.max_prepared_transactions.to_string()),
        ("max_locks_per_xact setting", control.required.max_locks_per_transaction.to_string()),
        ("track_commit_timestamp setting", on(control.track_commit_timestamp)),
        ("Database block size", control.block_size.to_string()),
        ("Blocks per segment of large relation", control.relation_segment_blocks.to_string()),
        ("WAL block size", control.wal_page_size.to_string()),
        ("Bytes per WAL segment", control.segment_size.bytes().to_string()),
        ("Maximum length of identifiers", control.name_data_len.to_string()),
        ("Maximum columns in an index", control.index_max_keys.to_string()),
        ("Maximum size of a TOAST chunk", control.toast_chunk_size.to_string()),
        ("Size of a large-object chunk", control.large_object_chunk_size.to_string()),
        ("Data page checksum version", control.checksum_version.to_string()),
    ]
}

fn compare_control(cluster: &Cluster, state: DbState) -> Result<()> {
    let control = control_of(cluster)?;
    ensure!(control.state == state, "PostgreSQL {}: state {}", cluster.install.major, control.state);
    ensure!(control.major().map(PgMajor::number) == Some(cluster.install.major), "{:?}", control.major());
    let Some(theirs) = controldata(cluster)? else {
        eprintln!("SKIPPED no pg_controldata for {}", cluster.install.major);
        return Ok(());
    };
    for (name, value) in as_controldata(&control) {
        // Newer servers print LSNs with leading zeros in the lower half.
        let plain = |text: &str| text.replace("/00", "/").replace("/0", "/");
        let said = theirs.get(name).with_context(|| format!("pg_controldata prints no {name}"))?;
        ensure!(
            plain(said) == plain(&value),
            "PostgreSQL {}: {name}: {said}, we read {value}",
            cluster.install.major
        );
    }
    Ok(())
}

#[test]
fn control_file_says_what_pg_controldata_says() -> Result<()> {
    for install in MAJORS.into_iter().filter_map(Install::find_or_skip) {
        let conf = "max_prepared_transactions = 7\nmax_locks_per_transaction = 99\nmax_worker_processes = 11\n\
                    track_commit_timestamp = on\nwal_log_hints = on\nwal_level = logical\n";
        let options = Options { segment_mib: 1, conf: conf.to_owned(), checksums: true };
        let cluster = Cluster::init(&install, &options)?;
        compare_control(&cluster, DbState::ShutDown)?;
        cluster.start()?;
        cluster.psql(
            "create table t as select 1 as a; checkpoint; select pg_switch_wal(); insert into t values (2)",
        )?;
        let unlike = control_of(&cluster)?;
        ensure!(unlike.wal_level.to_string() == "logical" && unlike.required.max_prepared_transactions == 7);
        cluster.crash()?;
        compare_control(&cluster, DbState::InProduction)?;
    }
    Ok(())
}

/// All files below `dir` with the name that they have in a backup; a tablespace's link is followed.
fn files_below(dir: &Path, name: &str, into: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let file = path.file_name().context("a name")?.to_string_lossy().into_owned();
        let name = if name.is_empty() { file } else { format!("{name}/{file}") };
        if path.is_dir() {
            files_below(&path, &name, into)?;
        } else {
            into.push((name, path));
        }
    }
    Ok(())
}

/// Looks at every page of a stopped cluster: how many there are that were written. None may be anything but right or empty.
fn written_pages(cluster: &Cluster) -> Result<u32> {
    let control = control_of(cluster)?;
    let layout = PageLayout::new(control.block_size, control.relation_segment_blocks).context("a layout")?;
    let mut files = Vec::new();
    files_below(&cluster.data, "", &mut files)?;
    let mut written = 0;
    for (name, path) in files {
        let Some(first) = layout.first_block(name.as_bytes()) else { continue };
        let bytes = fs::read(&path)?;
        for (page, block) in bytes.chunks(layout.block_bytes()).zip(first..) {
            match page::look(page, block) {
                PageLook::Right => written += 1,
                PageLook::Empty => {}
                other => anyhow::bail!("{name}, block {block}: {other:?}"),
            }
        }
    }
    Ok(written)
}

#[test]
fn every_page_of_a_stopped_server_carries_the_checksum_that_we_compute() -> Result<()> {
    for install in [13, 15, 18].into_iter().filter_map(Install::find_or_skip) {
        let cluster = Cluster::init(&install, &Options::default())?;
        cluster.start()?;
        let space = cluster.root().join("far");
        fs::create_dir(&space)?;
        give_to_server(&space)?;
        cluster.psql(&format!("create tablespace far location '{}'", space.display()))?;
        cluster.psql(
            "create table t tablespace far as select n, repeat('x', 500) x from generate_series(1, 9999) n",
        )?;
        cluster.psql(
            "create unlogged table u as select n from generate_series(1, 9999) n; create index on u (n);
             create index on t using gin (string_to_array(x, 'y')); create index on t using brin (n);
             create index on t using hash (n); create index on t using gist (box(point(n, n), point(n, n)));
             create index on t using spgist (x); create sequence s",
        )?;
        cluster.psql("vacuum")?;
        cluster.stop(Stop::Fast)?;
        let written = written_pages(&cluster)?;
        ensure!(written > 3000, "PostgreSQL {}: {written} pages", install.major);
        eprintln!("PostgreSQL {}: {written} pages have their checksums", install.major);
    }
    Ok(())
}

/// `pg_checksums` computes and writes checksums of whatever has a relation's name: it says what the blocks of a second file count.
#[test]
fn blocks_of_later_files_count_as_pg_checksums_counts_them() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let cluster = Cluster::init(&install, &Options { checksums: false, ..Options::default() })?;
    cluster.start()?;
    cluster.psql("create table t as select generate_series(1, 9999)")?;
    let file = cluster.psql("select pg_relation_filepath('t')")?;
    cluster.stop(Stop::Fast)?;
    let pages = fs::read(cluster.data.join(&file))?;
    let more = ["base/1/99999.1", "base/1/99999_fsm.3", "base/1/99998.40", "global/99997_init.2"];
    for name in more {
        fs::write(cluster.data.join(name), &pages)?;
        give_to_server(&cluster.data.join(name))?;
    }
    run(as_server(install.tool("pg_checksums"))?.args(["--enable", "--no-sync"]).arg(&cluster.data))?;
    let written = written_pages(&cluster)?;
    let ours = u32::try_from(pages.len() / 8192 * more.len())?;
    ensure!(written > ours, "{written}");
    let moved = cluster.data.join("base/1/99999.2");
    fs::rename(cluster.data.join(more[0]), &moved)?;
    let error = written_pages(&cluster).expect_err("pages of another file");
    ensure!(error.to_string().contains("base/1/99999.2, block 262144: Wrong"), "{error}");
    Ok(())
}

/// Files of a tar archive, and their bytes.
fn members(tar: &Path, below: &str) -> Result<Vec<(String, tar::EntryType, Vec<u8>)>> {
    let mut archive = tar::Archive::new(File::open(tar)?);
    let mut members = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        let path = format!("{below}{}", String::from_utf8(paths::normalise(&path).to_vec())?);
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        members.push((path, entry.header().entry_type(), bytes));
    }
    Ok(members)
}

#[test]
fn base_backup_says_the_same_in_manifest_label_map_and_names() -> Result<()> {
    let algorithms =
        [Algorithm::Sha224, Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512, Algorithm::Crc32c];
    for (install, algorithm) in
        MAJORS.into_iter().filter_map(Install::find_or_skip).zip(algorithms.into_iter().cycle())
    {
        if install.major > 15 && install.own_tool("pg_basebackup").is_none() {
            eprintln!("SKIPPED no pg_basebackup for {}", install.major);
            continue;
        }
        check_backup(&install, algorithm).with_context(|| format!("PostgreSQL {}", install.major))?;
    }
    Ok(())
}

fn check_backup(install: &Install, algorithm: Algorithm) -> Result<()> {
    let cluster = Cluster::init(install, &Options::default())?;
    cluster.start()?;
    let space = cluster.root().join("a space \\ and more");
    fs::create_dir(&space)?;
    give_to_server(&space)?;
    let quoted = space.display().to_string().replace('\'', "''");
    cluster.psql(&format!("create tablespace s location '{quoted}'"))?;
    cluster.psql("create table t tablespace s as select generate_series(1, 9999) as a; create unlogged table u (a int)")?;
    cluster.psql("insert into u values (1); vacuum t; checkpoint")?;
    let target = scratch("pitr-backup-")?;
    let mut backup = cluster.client("pg_basebackup", "")?;
    backup.args(["-Ft", "-X", "none", "--checkpoint=fast", "--label=two words"]);
    backup.arg(format!("--manifest-checksums={}", algorithm.name())).arg("-D").arg(target.path().join("b"));
    run(&mut backup)?;
    let dir = target.path().join("b");
    let base = members(&dir.join("base.tar"), "")?;
    let get = |name: &str| {
        base.iter().find(|(path, ..)| path == name).map(|(.., bytes)| bytes).with_context(|| name.to_owned())
    };

    let major = PgMajor::from_number(install.major).context("major")?;
    let map = TablespaceMap::parse(get("tablespace_map")?, major)?;
    ensure!(map.links.len() == 1 && map.links[0].path == space.display().to_string().into_bytes(), "{map:?}");
    ensure!(
        &map.to_bytes(major)? == get("tablespace_map")?,
        "the map is not written as PostgreSQL writes it"
    );
    let oid = map.links[0].oid;
    let mut all = base.clone();
    all.extend(members(&dir.join(format!("{oid}.tar")), &format!("pg_tblspc/{oid}/"))?);

    let manifest = PgManifest::parse(&fs::read(dir.join("backup_manifest"))?)?;
    let label = BackupLabel::parse(get("backup_label")?)?;
    let control = ControlFile::parse(get("global/pg_control")?)?;
    ensure!((label.label.as_str(), label.from) == ("two words", BackupFrom::Primary), "{label:?}");
    ensure!(label.start_lsn == control.checkpoint.redo && label.checkpoint_lsn == control.checkpoint_lsn);
    ensure!(
        manifest.summary.wal_ranges.len() == 1 && manifest.summary.wal_ranges[0].start == label.start_lsn
    );
    ensure!((install.major >= 17) == manifest.summary.system_id.is_some());
    ensure!(manifest.summary.system_id.is_none_or(|id| id == control.system_id));
    check_files(&manifest, &all, algorithm)?;
    check_names(&cluster, &all)
}

fn check_files(
    manifest: &PgManifest,
    members: &[(String, tar::EntryType, Vec<u8>)],
    algorithm: Algorithm,
) -> Result<()> {
    let files = members.iter().filter(|(_, kind, _)| kind.is_file());
    let mut ours: BTreeMap<&[u8], _> = BTreeMap::new();
    for (path, _, bytes) in files {
        let mut hasher = FileHasher::new(algorithm);
        hasher.update(bytes);
        ours.insert(path.as_bytes(), (u64::try_from(bytes.len())?, Some(hasher.finish())));
    }
    let theirs: BTreeMap<&[u8], _> =
        manifest.files.iter().map(|f| (f.path.as_slice(), (f.size, f.checksum.clone()))).collect();
    ensure!(ours.len() > 900 && ours == theirs, "{} files, the manifest lists {}", ours.len(), theirs.len());
    Ok(())
}

/// Our classes against what the server sent: all it sent is stored, all it left out we leave out.
fn check_names(cluster: &Cluster, members: &[(String, tar::EntryType, Vec<u8>)]) -> Result<()> {
    let sent: BTreeSet<&str> = members.iter().map(|(path, ..)| path.as_str()).collect();
    for path in sent.iter().filter(|path| !matches!(**path, "backup_label" | "tablespace_map")) {
        ensure!(paths::classify(path.as_bytes()) != PathClass::Excluded, "{path} was sent, we leave it out");
    }
    let mut found = Vec::new();
    walk(&cluster.data, "", &mut found)?;
    let mut unlogged = 0;
    for path in &found {
        let init = paths::init_fork_of(path.as_bytes()).and_then(|init| String::from_utf8(init).ok());
        if init.is_some_and(|init| found.contains(&init)) {
            unlogged += 1;
            ensure!(!sent.contains(path.as_str()), "{path} is unlogged and was sent");
            continue;
        }
        let left_out = paths::classify(path.as_bytes()) == PathClass::Excluded;
        ensure!(left_out != sent.contains(path.as_str()), "{path}: left out by us: {left_out}");
    }
    ensure!(unlogged > 0 && found.len() > 900, "{unlogged} unlogged, {} files", found.len());
    let major = PgMajor::from_number(cluster.install.major).context("major")?;
    for dir in paths::required_directories(major) {
        ensure!(sent.contains(dir) || dir == "pg_stat_tmp", "{dir} was not sent");
    }
    Ok(())
}

/// Everything below the data directory, following links into tablespaces.
fn walk(dir: &Path, prefix: &str, into: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if fs::metadata(entry.path()).is_ok_and(|m| m.is_dir()) {
            walk(&entry.path(), &format!("{path}/"), into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}

/// A reproducible choice of pieces that mean something to the lexer.
fn random_values(count: usize) -> Vec<String> {
    let pieces = [
        "'", "''", "\\", "\\'", "\\101", "\\7", "n", "a", "a.b", "x/y", ".", "-", "+", "0x1F", "10", "1.5",
        "e3", "MB", " ", "#", "=", ":", "_", "\t", "%",
    ];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::from(state.to_le_bytes()[3]) % below
    };
    let mut values = Vec::new();
    for _ in 0..count {
        let open = if next(2) == 0 { "'" } else { "" };
        let inner: String = (0..1 + next(5)).map(|_| pieces[next(pieces.len())]).collect();
        values.push(format!("{open}{inner}{open}"));
    }
    values
}

#[test]
fn configuration_values_are_read_as_the_server_reads_them() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let dir = scratch("pitr-conf-")?;
    let file = dir.path().join("postgresql.conf");
    let (mut good, mut bad) = (0, 0);
    let fixed = [
        "'a\\\\b'",
        "a",
        "C.UTF",
        "en_US.UTF-8",
        "1.5GB",
        "'it''s' # c",
        "",
        "-5",
        "0x",
        "1e5",
        "'\\q\\n'",
        "'\\777'",
    ];
    for value in fixed.into_iter().map(str::to_owned).chain(random_values(250)) {
        let line = format!("my.Value = {value}");
        fs::write(&file, format!("{line}\n"))?;
        give_to_server(&file)?;
        let mut asked = as_server(install.bin.join("postgres"))?;
        let output = asked.arg("-D").arg(dir.path()).args(["-C", "my.value"]).output()?;
        let theirs = output.status.success().then(|| output.stdout.strip_suffix(b"\n").map(<[u8]>::to_vec));
        let ours = conf::parse(line.as_bytes()).ok().map(|items| match items.into_iter().next()?.kind {
            ItemKind::Setting { value, .. } => Some(value.into_bytes()),
            ItemKind::Include { .. } => None,
        });
        // We refuse values that are not UTF-8; the server passes their bytes on.
        if theirs.as_ref().is_some_and(|t| t.as_ref().is_some_and(|v| std::str::from_utf8(v).is_err())) {
            continue;
        }
        ensure!(ours == theirs, "{line:?}: the server reads {theirs:?}, we {ours:?}");
        if ours.is_some() { good += 1 } else { bad += 1 }
    }
    ensure!(good > 40 && bad > 40, "{good} good and {bad} bad lines prove little");
    Ok(())
}

struct ThisHost;

impl Host for ThisHost {
    fn has_library(&self, _: &str) -> bool {
        false
    }

    fn has_locale(&self, name: &str) -> bool {
        name == "C"
    }
}

#[test]
fn a_copy_starts_with_the_configuration_made_for_it() -> Result<()> {
    for install in MAJORS.into_iter().filter_map(Install::find_or_skip) {
        let mut cluster = Cluster::init(&install, &Options::default())?;
        let control = control_of(&cluster)?;
        let theirs = [
            ("lc_messages", "C"),
            ("lc_time", "xx_XX"),
            ("timezone", "Asia/Jakarta"),
            ("shared_preload_libraries", "not_here"),
            ("archive_command", "touch /tmp/never"),
        ];
        let theirs: Vec<_> = theirs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let major = PgMajor::from_number(install.major).context("major")?;
        let source = CopySource { control: &control, major, settings: &theirs, host: &ThisHost };
        let log_dir = cluster.root().join("log, of \"it\"");
        let place = CopyPlace {
            port: 5432,
            socket_dir: &cluster.socket,
            log_dir: &log_dir,
            os_users: &["postgres", "nobody"],
            roles: &["postgres"],
        };
        let made = copy_config(&source, &place)?;
        ensure!(made.left_out.len() == 2, "{:?}", made.left_out);
        for (name, text) in [
            ("postgresql.conf", &made.postgresql_conf),
            ("pg_hba.conf", &made.pg_hba),
            ("pg_ident.conf", &made.pg_ident),
        ] {
            fs::write(cluster.data.join(name), text)?;
        }
        cluster.log = cluster.root().join("start.log");
        cluster.start()?;
        for (setting, value) in [
            ("archive_mode", "off"),
            ("archive_command", "(disabled)"),
            ("listen_addresses", ""),
            ("timezone", "Asia/Jakarta"),
            ("shared_preload_libraries", ""),
            ("max_connections", &control.required.max_connections.to_string()),
        ] {
            ensure!(
                cluster.psql(&format!("show {setting}"))? == value,
                "PostgreSQL {}: {setting}",
                install.major
            );
        }
        ensure!(log_dir.join("postgresql.log").is_file(), "the log is where it was told to be");
        let errors = "select count(*) from pg_hba_file_rules where error is not null";
        ensure!(cluster.psql(errors)? == "0", "pg_hba.conf of {}", install.major);
        if install.major >= 15 {
            let errors = "select count(*) from pg_ident_file_mappings where error is not null";
            ensure!(cluster.psql(errors)? == "0", "pg_ident.conf of {}", install.major);
        }
    }
    Ok(())
}

#[test]
fn a_server_recovers_by_our_block_and_loses_it_afterwards() -> Result<()> {
    for install in MAJORS.into_iter().filter_map(Install::find_or_skip) {
        recover(&install).with_context(|| format!("PostgreSQL {}", install.major))?;
    }
    Ok(())
}

fn recover(install: &Install) -> Result<()> {
    let source =
        Cluster::init(install, &Options { conf: "wal_keep_size = '1GB'".to_owned(), ..Options::default() })?;
    source.start()?;
    source.psql("create table t as select 1 as a")?;
    let copy = Cluster::around(install)?;
    if install.major > 15 && install.own_tool("pg_basebackup").is_none() {
        eprintln!("SKIPPED no pg_basebackup for {}", install.major);
        return Ok(());
    }
    run(source.client("pg_basebackup", "")?.args(["-X", "none", "--checkpoint=fast", "-D"]).arg(&copy.data))?;
    source.psql(
        "insert into t values (2); select pg_create_restore_point($$it's \\ 100%$$); insert into t values (3); \
         select pg_switch_wal()",
    )?;
    source.stop(Stop::Fast)?;

    copy.append_conf("postgresql.conf", &copy.own_settings())?;
    let file = copy.data.join("postgresql.auto.conf");
    // Leftovers that would make it stop elsewhere, or not start at all, and a setting of the user's.
    fs::write(
        &file,
        "work_mem = '5MB'\nrecovery_target_time = '2000-01-01 00:00:00+00'\nrecovery_min_apply_delay = '1h'\n",
    )?;
    // Stands for our binary, at a path with everything that a shell, a configuration file and PostgreSQL's %-escapes trip over.
    let program = copy.root().join("100% it's \\ \"$x\"");
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = \"archive-get --config /it's 5%.toml --timeline 1 $6 $7\" ] || exit 200\n\
         exec cp '{}'/\"$6\" \"$7\"\n",
        source.data.join("pg_wal").display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let config = CommandSource::Config { path: Path::new("/it's 5%.toml"), repository: None };
    let settings = RecoverySettings {
        restore_command: conf::restore_command(&program, &config, Some(TimelineId::FIRST))?,
        stop: Target::Name("it's \\ 100%".to_owned()),
        inclusive: Inclusive::Yes,
        timeline: TimelineId::FIRST,
        action: Action::Promote,
        extra: vec![("maintenance_work_mem".to_owned(), "17MB".to_owned())],
    };
    fs::write(&file, settings.apply(&fs::read(&file)?)?)?;
    fs::write(copy.data.join("recovery.signal"), "")?;
    give_to_server(&copy.data.join("recovery.signal"))?;
    copy.start()?;
    copy.wait_for("select pg_is_in_recovery()", "f")?;
    ensure!(copy.psql("select string_agg(a::text, ',') from t")? == "1,2", "stopped elsewhere");
    ensure!(copy.psql("show maintenance_work_mem")? == "17MB");
    check_finish(&copy, &file)
}

fn check_finish(copy: &Cluster, file: &Path) -> Result<()> {
    let finished = recovery::finish(&fs::read(file)?)?;
    ensure!(finished.found && finished.unmarked.is_empty(), "{finished:?}");
    ensure!(finished.text == b"work_mem = '5MB'\n", "{:?}", String::from_utf8_lossy(&finished.text));
    // ALTER SYSTEM rewrites the file without our marks: the settings go by name.
    copy.psql("alter system set work_mem = '6MB'")?;
    let finished = recovery::finish(&fs::read(file)?)?;
    ensure!(!finished.found && finished.unmarked.len() == 14, "{finished:?}");
    let left = conf::parse(&finished.text)?.into_iter().map(|item| match item.kind {
        ItemKind::Setting { name, .. } => name,
        ItemKind::Include { path, .. } => path,
    });
    let left: BTreeSet<String> = left.collect();
    ensure!(left == BTreeSet::from(["maintenance_work_mem".to_owned(), "work_mem".to_owned()]), "{left:?}");
    copy.stop(Stop::Fast)?;
    fs::write(file, finished.text)?;
    copy.start()
}
