//! The replication client against real servers, PostgreSQL 13 to 18: logging in, small commands, whole base backups.
//!
//! The oracle of a base backup is PostgreSQL's own `pg_verifybackup` on the tree we extracted, with the manifest the server sent; it
//! knows every file, its size and its checksum. What must fail is made to fail by the server itself: a killed walsender, a crash,
//! a page that was overwritten.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::panic, clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitr::pgwire::tar::{MemberKind, TarEnd, TarItem, TarReader};
use pitr::pgwire::{
    BackupEvent, BaseBackupOptions, Checkpoint, ConnError, ConnInfo, Deadlines, Environment, ReplicationConn,
    Sql, TablespaceInfo,
};
use pitr::wal::{Lsn, SegmentSize, TimelineId};
use support::cluster::{Cluster, Install, MAJORS, Options, Stop, give_to_server, run};

/// One test per major, so that they run side by side and fail by name.
macro_rules! on_every_major {
    ($($name:ident)*) => {$(
        mod $name {
            on_every_major!(@ $name v13 13, v14 14, v15 15, v16 16, v17 17, v18 18);
        }
    )*};
    (@ $name:ident $($version:ident $major:literal),*) => {$(
        #[tokio::test]
        async fn $version() -> anyhow::Result<()> {
            match super::Install::find_or_skip($major) {
                Some(install) => super::bodies::$name(install).await,
                None => Ok(()),
            }
        }
    )*};
}

on_every_major! {
    a_base_backup_is_what_pg_verifybackup_wants
    every_option_is_understood_by_the_server
    damaged_pages_are_told_after_a_complete_backup
    small_commands_are_answered
    a_server_that_dies_in_the_middle_is_an_error
}

fn info(cluster: &Cluster) -> ConnInfo {
    ConnInfo::parse(&cluster.conninfo(), &Environment::default()).expect("a connection string of ours")
}

async fn connect(cluster: &Cluster) -> Result<ReplicationConn> {
    Ok(ReplicationConn::connect(&info(cluster), &Deadlines::default()).await?)
}

async fn sql(cluster: &Cluster) -> Result<Sql> {
    Ok(Sql::connect(&info(cluster), &Deadlines::default()).await?)
}

fn started(install: &Install, conf: &str) -> Result<Cluster> {
    let cluster = Cluster::init(install, &Options { conf: conf.into(), ..Options::default() })?;
    cluster.start()?;
    Ok(cluster)
}

/// A cluster with a tablespace and tables in both places; returns the tablespace's oid.
fn with_tablespace(cluster: &Cluster) -> Result<u32> {
    let place = cluster.root().join("a space");
    fs::create_dir(&place)?;
    give_to_server(&place)?;
    cluster.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", place.display()))?;
    cluster.psql(
        "CREATE TABLE here AS SELECT n, repeat('x', 100) AS t FROM generate_series(1, 50000) n;\n\
         CREATE TABLE there TABLESPACE fast AS SELECT n FROM generate_series(1, 1000) n;\n\
         CREATE UNLOGGED TABLE gone AS SELECT 1 AS n;\nCHECKPOINT;",
    )?;
    Ok(cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")?.parse()?)
}

/// Everything a backup told, with its files below `dir`.
#[derive(Default)]
struct Received {
    start: Option<(Lsn, TimelineId)>,
    end: Option<(Lsn, TimelineId)>,
    tablespaces: Vec<TablespaceInfo>,
    archives: Vec<(Option<u32>, Vec<String>, TarEnd)>,
    manifest: Vec<u8>,
    progress: Vec<u64>,
    data_bytes: u64,
    failure: Option<ConnError>,
}

async fn receive(conn: &mut ReplicationConn, options: &BaseBackupOptions, dir: &Path) -> Result<Received> {
    let mut stream = conn.base_backup(options).await?;
    let mut got = Received::default();
    let mut open: Option<Extraction> = None;
    loop {
        let event = match stream.next().await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(error) => {
                got.failure = Some(error);
                break;
            }
        };
        match event {
            BackupEvent::Started { lsn, timeline } => got.start = Some((lsn, timeline)),
            BackupEvent::Tablespaces(list) => got.tablespaces = list,
            BackupEvent::ArchiveBegin { tablespace } => open = Some(Extraction::new(dir, tablespace)?),
            BackupEvent::ArchiveData(data) => {
                got.data_bytes += data.len() as u64;
                open.as_mut().context("data outside of an archive")?.push(data)?;
            }
            BackupEvent::ArchiveEnd => {
                got.archives.push(open.take().context("an end without a beginning")?.finish()?);
            }
            BackupEvent::ManifestBegin => ensure!(got.manifest.is_empty() && open.is_none()),
            BackupEvent::ManifestData(data) => got.manifest.extend_from_slice(&data),
            BackupEvent::Progress { bytes } => got.progress.push(bytes),
            BackupEvent::Notice(_) => {}
            BackupEvent::Ended { lsn, timeline } => got.end = Some((lsn, timeline)),
        }
    }
    fs::write(dir.join("backup_manifest"), &got.manifest)?;
    Ok(got)
}

struct Extraction {
    root: PathBuf,
    tablespace: Option<u32>,
    tar: TarReader,
    names: Vec<String>,
    file: Option<fs::File>,
}

impl Extraction {
    fn new(dir: &Path, tablespace: Option<u32>) -> Result<Self> {
        let root = tablespace.map_or_else(|| dir.to_owned(), |oid| dir.join(format!("pg_tblspc/{oid}")));
        fs::create_dir_all(&root)?;
        Ok(Self { root, tablespace, tar: TarReader::new(), names: Vec::new(), file: None })
    }

    fn push(&mut self, data: bytes::Bytes) -> Result<()> {
        self.tar.push(data);
        while let Some(item) = self.tar.next()? {
            match item {
                TarItem::Member(member) => {
                    let name = String::from_utf8(member.path)?;
                    let path = self.root.join(&name);
                    match member.kind {
                        MemberKind::Directory => fs::create_dir_all(&path)?,
                        MemberKind::File { .. } => {
                            self.file = Some(fs::File::create(&path)?);
                            fs::set_permissions(&path, fs::Permissions::from_mode(member.mode))?;
                        }
                        MemberKind::Symlink { target } => anyhow::bail!("{name} is a link to {target:?}"),
                    }
                    self.names.push(name);
                }
                TarItem::Data(data) => {
                    std::io::Write::write_all(self.file.as_mut().context("data without a file")?, &data)?;
                }
                TarItem::MemberEnd => self.file = None,
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(Option<u32>, Vec<String>, TarEnd)> {
        Ok((self.tablespace, self.names, self.tar.finish()?))
    }
}

fn verify(install: &Install, dir: &Path) -> Result<()> {
    let mut command = std::process::Command::new(install.tool("pg_verifybackup"));
    run(command.args(["-n", "-e"]).arg(dir)).map(drop)
}

fn target() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("pitr-pgwire-").tempdir()?)
}

fn installed_15() -> Option<Install> {
    Install::find_or_skip(15)
}

mod bodies {
    use super::*;

    pub(super) async fn a_base_backup_is_what_pg_verifybackup_wants(install: Install) -> Result<()> {
        let cluster = started(&install, "")?;
        let oid = with_tablespace(&cluster)?;
        let dir = target()?;
        let mut conn = connect(&cluster).await?;
        let got = receive(&mut conn, &BaseBackupOptions::default(), dir.path()).await?;
        ensure!(got.failure.is_none(), "{:?}", got.failure);
        verify(&install, dir.path())?;

        let kinds: Vec<_> = got.archives.iter().map(|(tablespace, _, end)| (*tablespace, *end)).collect();
        let end = if install.major < 15 { TarEnd::Bare } else { TarEnd::Terminated };
        assert_eq!(kinds, [(Some(oid), end), (None, end)]);
        let base = &got.archives[1].1;
        assert_eq!(base.first().map(String::as_str), Some("backup_label"));
        assert_eq!(base.last().map(String::as_str), Some("global/pg_control"));
        assert!(base.iter().any(|name| name == "pg_wal/archive_status"), "a leading ./ is gone");
        assert_eq!(base.len(), base.iter().collect::<BTreeSet<_>>().len());

        let place = cluster.root().join("a space");
        let map = fs::read_to_string(dir.path().join("tablespace_map"))?;
        assert_eq!(map, format!("{oid} {}\n", place.display()));
        let [space, data] = &got.tablespaces[..] else { panic!("{:?}", got.tablespaces) };
        assert_eq!(
            (space.oid, space.location.as_deref()),
            (Some(oid), Some(place.as_os_str().as_encoded_bytes()))
        );
        assert_eq!((data.oid, data.location.as_deref()), (None, None));
        let estimate = space.size.context("no size")? + data.size.context("no size")?;
        assert!(
            estimate > got.data_bytes / 2 && estimate < got.data_bytes * 2,
            "{estimate} {}",
            got.data_bytes
        );
        assert_eq!(got.progress.is_empty(), install.major < 15);
        assert!(got.progress.is_sorted());

        let manifest = String::from_utf8(got.manifest)?;
        let ((start, timeline), (stop, _)) = (got.start.context("no start")?, got.end.context("no end")?);
        let range = format!("\"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{stop}\"");
        assert!(manifest.contains(&range), "{range} is not in the manifest");
        assert!(manifest.contains("\"Checksum-Algorithm\": \"CRC32C\""));
        // The connection serves another command afterwards.
        assert_eq!(conn.identify_system().await?.timeline, TimelineId::FIRST);
        conn.close().await;
        Ok(())
    }

    pub(super) async fn every_option_is_understood_by_the_server(install: Install) -> Result<()> {
        let cluster = started(&install, "checkpoint_timeout = 30s")?;
        let dir = target()?;
        let options = BaseBackupOptions {
            label: r"it's \ a label".into(),
            checkpoint: Checkpoint::Spread,
            estimate_sizes: false,
            max_rate: Some(1_048_576),
            manifest: false,
            verify_checksums: false,
        };
        let got = receive(&mut connect(&cluster).await?, &options, dir.path()).await?;
        ensure!(got.failure.is_none(), "{:?}", got.failure);
        assert!(got.manifest.is_empty() && got.tablespaces.iter().all(|space| space.size.is_none()));
        let label = fs::read_to_string(dir.path().join("backup_label"))?;
        assert!(label.contains(&format!("\nLABEL: {}\n", options.label)), "{label}");
        Ok(())
    }

    pub(super) async fn damaged_pages_are_told_after_a_complete_backup(install: Install) -> Result<()> {
        let cluster = started(&install, "")?;
        cluster.psql("CREATE TABLE t AS SELECT n, repeat('x', 100) FROM generate_series(1, 2000) n;")?;
        let path = cluster.data.join(cluster.psql("SELECT pg_relation_filepath('t')")?);
        cluster.stop(Stop::Fast)?;
        let file = fs::OpenOptions::new().write(true).open(&path)?;
        for block in [3, 5] {
            file.write_all_at(b"garbage", block * 8192 + 4000)?;
        }
        cluster.start()?;
        let dir = target()?;
        let mut conn = connect(&cluster).await?;
        let mut got = receive(&mut conn, &BaseBackupOptions::default(), dir.path()).await?;
        let Some(ConnError::Checksums(failure)) = got.failure.take() else {
            panic!("no checksum failure but {:?}", got.failure)
        };
        verify(&install, dir.path()).context("the backup is complete nevertheless")?;
        assert_eq!(failure.error.code, "XX001");
        assert_eq!(Some(failure.end), got.end);
        let name = path.file_name().context("a file")?.to_string_lossy().into_owned();
        let blocks =
            failure.warnings.iter().filter(|w| w.message.contains(&name) && w.message.contains("block"));
        assert_eq!(blocks.count(), 2, "{:?}", failure.warnings);
        assert_eq!(conn.show("data_checksums").await?, "on", "the connection takes commands again");
        Ok(())
    }

    pub(super) async fn small_commands_are_answered(install: Install) -> Result<()> {
        let options = Options { segment_mib: 1, ..Options::default() };
        let cluster = Cluster::init(&install, &options)?;
        cluster.start()?;
        let mut conn = connect(&cluster).await?;
        assert_eq!(conn.server_version_num() / 10_000, install.major);
        let identity = conn.identify_system().await?;
        let system = cluster.psql("SELECT system_identifier FROM pg_control_system()")?;
        assert_eq!((identity.system_id.to_string(), identity.timeline), (system, TimelineId::FIRST));
        assert!(identity.xlogpos > Lsn::ZERO && identity.dbname.is_none());
        assert_eq!(conn.segment_size().await?, SegmentSize::new(1 << 20)?);
        assert_eq!(conn.show("no_such_setting").await.unwrap_err().code(), Some("42704"));
        assert_eq!(conn.timeline_history(TimelineId::FIRST).await?, None);
        conn.close().await;

        cluster.stop(Stop::Fast)?;
        cluster.append_conf("postgresql.conf", "restore_command = 'false'")?;
        cluster.append_conf("recovery.signal", "")?;
        cluster.start()?;
        cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
        let mut conn = connect(&cluster).await?;
        let second = TimelineId::new(2).context("two")?;
        assert_eq!(conn.identify_system().await?.timeline, second);
        let history = conn.timeline_history(second).await?.context("no history")?;
        let file = fs::read(cluster.data.join("pg_wal/00000002.history"))?;
        assert_eq!((history.name.as_str(), &history.content[..]), ("00000002.history", &file[..]));
        Ok(())
    }

    pub(super) async fn a_server_that_dies_in_the_middle_is_an_error(install: Install) -> Result<()> {
        let cluster = started(&install, "")?;
        with_tablespace(&cluster)?;
        let mut conn = connect(&cluster).await?;
        let mut stream = conn.base_backup(&BaseBackupOptions::default()).await?;
        while !matches!(stream.next().await?, Some(BackupEvent::ArchiveData(_))) {}
        cluster.crash()?;
        let error = loop {
            match stream.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a crashed server confirmed the backup"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ConnError::Lost { .. }), "{error}");
        Ok(())
    }
}

#[tokio::test]
async fn a_terminated_walsender_is_an_error() -> Result<()> {
    let Some(install) = installed_15() else { return Ok(()) };
    let cluster = started(&install, "")?;
    with_tablespace(&cluster)?;
    let mut conn = connect(&cluster).await?;
    let mut stream = conn.base_backup(&BaseBackupOptions::default()).await?;
    while !matches!(stream.next().await?, Some(BackupEvent::ArchiveData(_))) {}
    let mut control = sql(&cluster).await?;
    let ended = control.one("SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await?;
    assert_eq!(ended.as_deref(), Some("t"));
    let error = loop {
        match stream.next().await {
            Ok(event) => assert!(event.is_some(), "a terminated walsender confirmed the backup"),
            Err(error) => break error,
        }
    };
    let told = error.code() == Some("57P01");
    assert!(told || matches!(error, ConnError::Lost { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn closing_the_socket_cancels_the_backup_on_the_server() -> Result<()> {
    let Some(install) = installed_15() else { return Ok(()) };
    let cluster = started(&install, "")?;
    with_tablespace(&cluster)?;
    let mut conn = connect(&cluster).await?;
    let mut stream = conn.base_backup(&BaseBackupOptions::default()).await?;
    while !matches!(stream.next().await?, Some(BackupEvent::ArchiveData(_))) {}
    assert_eq!(cluster.psql("SELECT count(*) FROM pg_stat_progress_basebackup")?, "1");
    drop(conn);
    cluster.wait_for("SELECT count(*) FROM pg_stat_progress_basebackup", "0")
}

/// A cluster that asks for passwords, on its socket and on an address of its own.
struct Guarded {
    cluster: Cluster,
    address: String,
}

fn guarded(install: &Install) -> Result<Guarded> {
    // Any address of 127/8 is this host: one per process keeps the fixed port free.
    let pid = std::process::id().to_be_bytes();
    let address = format!("127.{}.{}.{}", 100 + pid[1] % 100, pid[2], pid[3].max(1));
    let cluster = started(install, &format!("listen_addresses = '{address}'"))?;
    cluster.psql(
        "SET password_encryption = 'md5';\nCREATE ROLE by_md5 LOGIN REPLICATION PASSWORD 'p1';\n\
         SET password_encryption = 'scram-sha-256';\nCREATE ROLE by_scram LOGIN REPLICATION PASSWORD 'p\u{e4} 2';\n\
         CREATE ROLE by_plain LOGIN REPLICATION PASSWORD 'p3';\nCREATE ROLE nobody LOGIN;",
    )?;
    let mut hba = "local all postgres trust\n".to_owned();
    for (role, method) in [("by_md5", "md5"), ("by_scram", "scram-sha-256"), ("by_plain", "password")] {
        for database in ["all", "replication"] {
            hba.push_str(&format!(
                "local {database} {role} {method}\nhost {database} {role} 127.0.0.0/8 {method}\n"
            ));
        }
    }
    hba.push_str("local all nobody trust\nlocal replication nobody trust\n");
    fs::write(cluster.data.join("pg_hba.conf"), hba)?;
    cluster.psql("SELECT pg_reload_conf()")?;
    cluster.wait_for("SELECT count(*) FROM pg_hba_file_rules", "15")?;
    Ok(Guarded { cluster, address })
}

impl Guarded {
    async fn try_both(&self, text: &str, environment: &Environment) -> Result<(), ConnError> {
        let info = ConnInfo::parse(text, environment).expect("a connection string of ours");
        let deadlines = Deadlines::default();
        ReplicationConn::connect(&info, &deadlines).await?.identify_system().await?;
        let user = Sql::connect(&info, &deadlines).await?.one("SELECT current_user").await?;
        assert_eq!(user.as_deref(), Some(info.user.as_str()));
        Ok(())
    }

    fn places(&self) -> [String; 2] {
        [format!("host={}", self.cluster.socket.display()), format!("host={}", self.address)]
    }
}

#[tokio::test]
async fn every_method_lets_the_right_password_in_over_socket_and_tcp() -> Result<()> {
    let Some(install) = installed_15() else { return Ok(()) };
    let guarded = guarded(&install)?;
    for place in guarded.places() {
        for (role, password) in [("by_md5", "p1"), ("by_scram", "p\u{e4} 2"), ("by_plain", "p3")] {
            let text = format!("{place} user={role} password='{password}' dbname=postgres");
            guarded.try_both(&text, &Environment::default()).await.context(text)?;
            let text = format!("{place} user={role} password=wrong dbname=postgres");
            let error = guarded.try_both(&text, &Environment::default()).await.unwrap_err();
            assert_eq!(error.code(), Some("28P01"), "{error}");
            assert!(
                error.to_string().contains(&format!("password authentication failed for user \"{role}\""))
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_password_file_is_used_if_nobody_else_can_read_it() -> Result<()> {
    let Some(install) = installed_15() else { return Ok(()) };
    let guarded = guarded(&install)?;
    let home = target()?;
    let environment = Environment { home: Some(home.path().into()), ..Environment::default() };
    let passfile = home.path().join(".pgpass");
    let text = format!("host={} user=by_scram dbname=postgres", guarded.address);
    let refusal = async || guarded.try_both(&text, &environment).await.unwrap_err().to_string();

    let message = refusal().await;
    assert!(message.contains(".pgpass was not used: No such file"), "{message}");
    fs::write(&passfile, format!("{}:5432:*:by_scram:p\u{e4} 2\n", guarded.address))?;
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o640))?;
    let message = refusal().await;
    assert!(message.contains("mode 0640"), "{message}");
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600))?;
    guarded.try_both(&text, &environment).await?;
    fs::write(&passfile, "elsewhere:*:*:*:x\n")?;
    let message = refusal().await;
    assert!(message.contains("role by_scram") && message.contains("no line of"), "{message}");
    Ok(())
}

#[tokio::test]
async fn refusals_of_the_server_are_passed_on_in_its_words() -> Result<()> {
    let Some(install) = installed_15() else { return Ok(()) };
    let guarded = guarded(&install)?;
    let [socket, tcp] = guarded.places();
    let environment = Environment::default();
    for (text, code, words) in [
        (format!("{socket} user=nobody dbname=postgres"), "42501", "must be superuser or replication role"),
        (format!("{socket} user=unknown dbname=postgres"), "28000", "no pg_hba.conf entry"),
        (format!("{tcp} user=nobody dbname=postgres"), "28000", "no pg_hba.conf entry"),
        (format!("{socket} user=by_md5 password=p1 dbname=nothing"), "3D000", "\"nothing\" does not exist"),
    ] {
        let error = guarded.try_both(&text, &environment).await.unwrap_err();
        assert!(error.code() == Some(code) && error.to_string().contains(words), "{text}: {error}");
    }
    let text = format!("host={} port=1 user=x", guarded.address);
    let error = guarded.try_both(&text, &environment).await.unwrap_err();
    assert!(matches!(error, ConnError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&format!("{}:1", guarded.address)), "{error}");
    Ok(())
}

#[tokio::test]
async fn statements_take_parameters_and_survive_errors() -> Result<()> {
    let Some(install) = installed_15() else { return Ok(()) };
    let cluster = started(&install, "")?;
    let mut sql = sql(&cluster).await?;
    let rows = sql.rows("SELECT $1::text, $2::int + 1, NULL", &["it's; DROP", "41"]).await?;
    assert_eq!(rows, [[Some("it's; DROP".to_owned()), Some("42".into()), None]]);
    assert_eq!(sql.rows("SELECT n FROM generate_series(1, 100000) n", &[]).await?.len(), 100_000);
    assert_eq!(sql.rows("SELECT 1; SELECT 2", &[]).await.unwrap_err().code(), Some("42601"));
    assert_eq!(sql.one("SELECT 1/0").await.unwrap_err().code(), Some("22012"));
    assert_eq!(sql.one("SELECT 1 WHERE false").await?, None);
    assert_eq!(sql.one("SHOW search_path").await?.as_deref(), Some("pg_catalog"));
    sql.rows("DO $$ BEGIN RAISE NOTICE 'hello'; END $$", &[]).await?;
    assert_eq!(sql.take_notices().first().map(|notice| notice.message.as_str()), Some("hello"));
    sql.close().await;

    let deadlines = Deadlines { answer: Duration::from_secs(2), ..Deadlines::default() };
    let mut sql = Sql::connect(&info(&cluster), &deadlines).await?;
    let error = sql.one("SELECT pg_sleep(60)").await.unwrap_err();
    assert_eq!(error.code(), Some("57014"), "the server itself stops a statement: {error}");
    assert_eq!(sql.one("SELECT 1").await?.as_deref(), Some("1"));
    Ok(())
}

#[test]
fn every_supported_major_is_tried() {
    assert_eq!(MAJORS, [13, 14, 15, 16, 17, 18]);
}
