//! Clusters with what real ones also have: tablespaces at awkward places, in-place ones, unlogged relations, a relation of more than
//! one file, and files whose names are no text.
//!
//! Each is backed up, restored elsewhere and opened. The oracles are PostgreSQL (rows, its server programs) and the bytes and modes of
//! files; what PostgreSQL itself leaves out of a backup is not expected.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use support::cluster::{Install, Stop, give_to_server};
use support::restored::{Restored, Said, Source};

/// PostgreSQL refuses longer paths: they don't fit into its tar headers.
const LONGEST_PATH: usize = 99;

/// A cluster with all of it.
struct Odd {
    source: Source,
    /// Where the tablespace is.
    far: PathBuf,
    /// Whether there is a tablespace inside the data directory.
    in_place: bool,
    /// Files of nobody's, by their path in the data directory, and what they hold.
    files: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Odd {
    fn new(install: &Install) -> Result<Self> {
        let source = Source::new(install, "archive_timeout = 60")?;
        let far = source.target("a \"far\" pläce\\of it");
        fs::create_dir(&far)?;
        give_to_server(&far)?;
        let sql = |text: &str| source.cluster.psql(text);
        sql(&format!("CREATE TABLESPACE far LOCATION '{}'", far.display()))?;
        sql(
            "CREATE TABLE there TABLESPACE far AS SELECT n, repeat(n::text, 50) AS pad FROM generate_series(1, 2000) n",
        )?;
        let in_place = install.major >= 16;
        if in_place {
            sql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE inside LOCATION ''")?;
            sql("CREATE TABLE inside TABLESPACE inside AS SELECT generate_series(1, 3000) AS n")?;
        }
        sql("CREATE UNLOGGED TABLE lost AS SELECT generate_series(1, 1000) AS n; CREATE INDEX ON lost (n)")?;
        sql("CREATE UNLOGGED TABLE lost_there (n int) TABLESPACE far; INSERT INTO lost_there VALUES (1)")?;
        if install.major >= 15 {
            sql("CREATE UNLOGGED SEQUENCE counter; SELECT nextval('counter'); SELECT nextval('counter')")?;
        }
        let mut odd = Self { source, far, in_place, files: Vec::new() };
        odd.two_files_of_a_relation()?;
        odd.files_of_nobodys()?;
        Ok(odd)
    }

    /// Makes `large` fill its first file with pages that were never written, so that its rows lie in the second one.
    fn two_files_of_a_relation(&self) -> Result<()> {
        let cluster = &self.source.cluster;
        cluster
            .psql("CREATE TABLE large (n int, pad text); ALTER TABLE large ALTER pad SET STORAGE PLAIN")?;
        let file = cluster.data.join(cluster.psql("SELECT pg_relation_filepath('large')")?);
        cluster.stop(Stop::Fast)?;
        fs::File::options().write(true).open(&file)?.set_len(1 << 30)?;
        cluster.start()?;
        cluster.psql("INSERT INTO large SELECT n, repeat('y', 5000) FROM generate_series(1, 20) n")?;
        let second = PathBuf::from(format!("{}.1", file.display()));
        ensure!(second.exists(), "{} was not begun", second.display());
        Ok(())
    }

    /// What an administrator, a tool or an accident may leave in a data directory.
    fn files_of_nobodys(&mut self) -> Result<()> {
        let long = [b"long/".as_slice(), &[b'n'; LONGEST_PATH - 5]].concat();
        let names: [&[u8]; 6] = [
            b"not text \xFF\xFE",
            b"two\nlines",
            b"spaces and 'quotes' and \"more\"",
            b"empty",
            b"-rf",
            &long,
        ];
        for (index, name) in names.into_iter().enumerate() {
            let content =
                if name == b"empty" { Vec::new() } else { vec![b'0' + u8::try_from(index)?; 10_007] };
            let path = self.source.cluster.data.join(OsStr::from_bytes(name));
            let folder = path.parent().context("a folder")?;
            fs::create_dir_all(folder)?;
            fs::write(&path, &content)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
            give_to_server(folder)?;
            give_to_server(&path)?;
            self.files.push((name.to_owned(), content));
        }
        let hollow = self.source.cluster.data.join("hollow/deep");
        fs::create_dir_all(&hollow)?;
        for folder in [hollow.parent().context("a folder")?, &hollow] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
            give_to_server(folder)?;
        }
        // What PostgreSQL leaves out must not trouble anybody.
        std::os::unix::fs::symlink("/etc/passwd", self.source.cluster.data.join("a_link"))?;
        Ok(())
    }

    /// The files and directories that are nobody's, in a restored data directory.
    fn check_files(&self, data: &Path) -> Result<()> {
        for (name, content) in &self.files {
            let path = data.join(OsStr::from_bytes(name));
            let found = fs::read(&path).with_context(|| format!("{path:?}"))?;
            ensure!(found == *content, "{path:?} differs");
        }
        ensure!(data.join("hollow/deep").is_dir(), "an empty directory is gone");
        Ok(())
    }

    /// What the restored server says.
    fn check_rows(&self, restored: &Restored, major: u32) -> Result<()> {
        let is = |sql: &str, expected: &str| -> Result<()> {
            let found = restored.psql(sql)?;
            ensure!(found == expected, "{sql}: {found}");
            Ok(())
        };
        is("SELECT count(*), sum(n) FROM there", "2000|2001000")?;
        if self.in_place {
            is("SELECT count(*), sum(n) FROM inside", "3000|4501500")?;
        }
        is("SELECT count(*), sum(length(pad)) FROM large", "20|100000")?;
        // Unlogged relations come back as what they are after a crash: empty, with indexes that work.
        is("SELECT count(*) FROM lost", "0")?;
        is("SELECT count(*) FROM lost_there", "0")?;
        restored.psql("INSERT INTO lost VALUES (7)")?;
        is("SET enable_seqscan = off; SELECT n FROM lost WHERE n = 7", "7")?;
        if major >= 15 {
            is("SELECT nextval('counter')", "1")?;
        }
        restored.psql("CREATE EXTENSION amcheck")?;
        if major >= 14 {
            let tables =
                if self.in_place { "'there', 'large', 'lost', 'inside'" } else { "'there', 'large', 'lost'" };
            is(
                &format!(
                    "SELECT count(*) FROM unnest(ARRAY[{tables}]) t, LATERAL verify_heapam(t::regclass)"
                ),
                "0",
            )?;
        }
        is("SELECT count(bt_index_check(oid, true)) > 0 FROM pg_class WHERE relname = 'lost_n_idx'", "t")
    }
}

fn everything_comes_back(install: &Install) -> Result<()> {
    let odd = Odd::new(install)?;
    let source = &odd.source;
    let backup = source.pitr(&["backup", "--json"])?.expect(0)?.json()?;
    ensure!(backup["id"].is_string(), "{backup}");
    source.cluster.psql("UPDATE there SET n = n WHERE n <= 100; INSERT INTO lost VALUES (8)")?;
    source.row(1)?;
    source.archive_all()?;
    source.pitr(&["verify", "--decode", "--json"])?.expect(0)?.json()?;
    source.pitr(&["info", "--json"])?.expect(0)?.json()?;

    let (target, near) = (source.target("restored"), source.target("new 'place' = ümlaut"));
    let unescaped = format!("{}={}", odd.far.display(), near.display());
    let said = source.restore(&target, &["--copy", "--tablespace", &unescaped])?.expect(3)?;
    ensure!(said.err.contains(r"as \="), "{said:?}");
    let moved = format!("{}={}", odd.far.display(), near.display().to_string().replace('=', r"\="));
    let unmoved = source.restore(&target, &["--copy"])?.expect(9)?;
    ensure!(unmoved.err.contains("--tablespace"), "{unmoved:?}");
    source.restore(&target, &["--copy", "--tablespace", &moved])?.expect(0)?;
    odd.check_files(&target)?;
    let restored = Restored::start_copy(install, &target)?.promoted()?;
    let link = target
        .join("pg_tblspc")
        .join(source.cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'far'")?);
    ensure!(fs::read_link(&link)? == near, "{} leads to {:?}", link.display(), fs::read_link(&link)?);
    odd.check_rows(&restored, install.major)?;
    ensure!(restored.rows()? == "1", "the row after the backup");
    restored.stop(Stop::Fast)
}

#[test]
fn odd_tablespaces_relations_and_names_come_back() -> Result<()> {
    for major in [15, 13, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        everything_comes_back(&install).with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

/// PostgreSQL ends the backup at a path that does not fit into its tar headers: its own words must arrive, and nothing may be left that looks like
/// a backup.
#[test]
fn a_path_that_postgresql_cannot_send_is_named_and_no_backup_is_listed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    let path = source.cluster.data.join("n".repeat(LONGEST_PATH + 1));
    fs::write(&path, "x")?;
    give_to_server(&path)?;
    let said = source.pitr(&["backup"])?.expect(1)?;
    ensure!(said.err.contains("too long for tar format") && said.err.contains("nnnn"), "{said:?}");
    let info = source.pitr(&["info", "--json"])?.expect(0)?.json()?;
    let backups = info["repositories"][0]["backups"].as_array().context("backups")?;
    ensure!(backups.iter().all(|backup| backup["restorable"] == false), "{info}");
    fs::remove_file(&path)?;
    source.backup().map(drop)
}

/// 15 and older send nothing of a tablespace inside the data directory, and say nothing of it.
#[test]
fn what_the_server_would_leave_out_of_a_backup_is_refused() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "allow_in_place_tablespaces = on")?;
    source.cluster.psql("CREATE TABLESPACE inside LOCATION ''")?;
    let said = source.pitr(&["backup"])?.expect(9)?;
    ensure!(said.err.contains("tablespace inside lies inside the data directory"), "{said:?}");
    let info = source.pitr(&["info", "--json"])?.expect(0)?.json()?;
    ensure!(info["repositories"][0]["backups"].as_array().is_some_and(Vec::is_empty), "{info}");
    source.cluster.psql("DROP TABLESPACE inside")?;
    source.backup().map(drop)
}

/// Files come, grow, shrink and go while they are sent; what is in no WAL has the bytes of some moment, and replay mends the rest.
#[test]
fn files_that_change_while_they_are_sent_do_no_harm() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    source.cluster.psql(
        "CREATE TABLE wide AS SELECT n, repeat(md5(n::text), 60) AS pad FROM generate_series(1, 30000) n",
    )?;
    let sql = "DO $$ BEGIN FOR i IN 1..400 LOOP EXECUTE 'CREATE TABLE x' || i || ' AS SELECT 1 AS n'; \
               EXECUTE 'TRUNCATE wide2'; INSERT INTO wide2 SELECT n, repeat('z', 900) FROM generate_series(1, 200) n; \
               EXECUTE 'DROP TABLE x' || i; COMMIT; END LOOP; END $$";
    source.cluster.psql("CREATE TABLE wide2 (n int, pad text)")?;
    let file = source.cluster.data.join("changes");
    let changer = |stop: &std::sync::atomic::AtomicBool| -> Result<()> {
        let file = fs::File::create(&file)?;
        let mut size = 0_u64;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            size = (size * 7 + 8191) % 3_000_000;
            file.set_len(size)?;
            file.write_all_at(&[1; 100], size)?;
            fs::write(source.cluster.data.join("comes_and_goes"), "x")?;
            fs::remove_file(source.cluster.data.join("comes_and_goes"))?;
        }
        Ok(())
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let changing = scope.spawn(|| changer(&stop));
        let load = scope.spawn(|| source.cluster.psql(sql));
        let taken = (0..3).try_for_each(|_| source.backup().map(drop));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        changing.join().expect("no panic")?;
        load.join().expect("no panic")?;
        taken
    })?;
    source.row(1)?;
    source.archive_all()?;
    let verify = source.pitr(&["verify", "--decode"])?.expect(0)?;
    let target = source.target("restored");
    source.restore(&target, &["--copy"])?.expect(0)?;
    let restored = Restored::start_copy(&install, &target)?.promoted()?;
    let counts = restored
        .psql("SELECT (SELECT count(*) FROM wide), (SELECT count(*) FROM wide2), (SELECT count(*) FROM t)")?;
    ensure!(counts == "30000|200|1", "{counts} {verify:?}");
    Ok(())
}

/// A tablespace whose place is no text in any encoding of ours: named by its bytes, or by its OID.
#[test]
fn a_tablespace_at_a_place_that_is_no_text_comes_back() -> Result<()> {
    for major in [13, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        bytes_of_a_place(&install).with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

fn bytes_of_a_place(install: &Install) -> Result<()> {
    let source = Source::new(install, "")?;
    let place = |name: &[u8]| source.place.path().join(OsStr::from_bytes(name));
    let far = place(b"caf\xE9");
    fs::create_dir(&far)?;
    give_to_server(&far)?;
    // Only a database whose encoding asks nothing of bytes can name it.
    source.cluster.psql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0")?;
    let make = format!("CREATE TABLESPACE far LOCATION E'{}/caf\\351'", source.place.path().display());
    source.cluster.psql_in("bytes", &make)?;
    source.cluster.psql("CREATE TABLE there TABLESPACE far AS SELECT generate_series(1, 2000) AS n")?;
    let oid = source.cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'far'")?;
    source.backup()?;
    // Such names too, and asked in a database that sends bytes as they are.
    source.cluster.psql_in("bytes", "SELECT E'CREATE DATABASE \"caf\\351\" TEMPLATE template0' \\gexec")?;
    let config = fs::read_to_string(&source.config)?;
    fs::write(&source.config, config.replace("conninfo = \"", "conninfo = \"dbname=bytes "))?;
    source.backup()?;
    source.row(1)?;
    source.archive_all()?;
    source.pitr(&["info"])?.expect(0)?;

    let (one, other) = (source.target("one"), source.target("other"));
    let unmoved = source.restore(&one, &["--copy"])?.expect(9)?;
    ensure!(unmoved.err.contains(&format!("--tablespace {oid}=/new/place")), "{unmoved:?}");
    let near = source.target("near");
    source.restore(&one, &["--copy", "--tablespace", &format!("{oid}={}", near.display())])?.expect(0)?;
    let mut by_bytes = source.command(&["restore", "--copy", "--target-dir"])?;
    let latin = place(b"sp\xE4t");
    let moved = [far.as_os_str().as_bytes(), b"=", latin.as_os_str().as_bytes()].concat();
    by_bytes.arg(&other).arg("--tablespace").arg(OsStr::from_bytes(&moved));
    Said::of(&by_bytes.output()?).expect(0)?;
    for (target, new) in [(one, near), (other, latin)] {
        let restored = Restored::start_copy(install, &target)?.promoted()?;
        let link = target.join("pg_tblspc").join(&oid);
        ensure!(fs::read_link(&link)? == new, "{} leads to {:?}", link.display(), fs::read_link(&link)?);
        ensure!(restored.psql("SELECT count(*), sum(n) FROM there")? == "2000|2001000");
        restored.stop(Stop::Fast)?;
    }
    Ok(())
}
