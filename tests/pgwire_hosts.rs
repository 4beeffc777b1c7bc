//! Several servers, services, passwords per host, names, and commands that are given up: against real servers.
//!
//! Where libpq knows the same keyword, `psql` gets the same connection string and must end on the same server.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use pitr::pgwire::{
    BaseBackupOptions, Checkpoint, ConnError, ConnInfo, Deadlines, Environment, ReplicationConn, Sql,
};
use support::cluster::{Cluster, Install, Options, Stop, as_server};
use support::site::{Answer, Site, SiteOptions};
use support::tls::{TlsCluster, address, no_openssl};

fn environment(home: &Path) -> Environment {
    let read_file: fn(&Path) -> std::io::Result<String> = |path| fs::read_to_string(path);
    Environment { home: Some(home.into()), read_file: Some(read_file), ..Environment::default() }
}

/// The address of the server that a session ended on.
async fn ours(text: &str, home: &Path) -> Result<String, ConnError> {
    let info = ConnInfo::parse(text, &environment(home)).expect("a connection string of ours");
    let mut sql = Sql::connect(&info, &Deadlines::default()).await?;
    Ok(sql.one("select host(inet_server_addr())").await?.unwrap_or_default())
}

fn libpq(text: &str, home: &Path) -> Result<Result<String, String>> {
    let mut psql = as_server("psql")?;
    psql.env("HOME", home).args(["-XAtqw", "-c", "select host(inet_server_addr())", text]);
    let answer = Answer::of(&mut psql)?;
    Ok(if answer.code == 0 { Ok(answer.out.trim().to_owned()) } else { Err(answer.err) })
}

async fn agree(text: &str, home: &Path) -> Result<Result<String, ConnError>> {
    let (ours, theirs) = (ours(text, home).await, libpq(text, home)?);
    let same = match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        (Err(_), Err(_)) => true,
        _ => false,
    };
    ensure!(same, "{text}\nours:   {ours:?}\nlibpq:  {theirs:?}");
    Ok(ours)
}

fn listening(install: &Install, number: u8, conf: &str) -> Result<(Cluster, String)> {
    let address = address(number);
    let conf = format!("listen_addresses = '{address}'\n{conf}");
    let cluster = Cluster::init(install, &Options { conf, ..Options::default() })?;
    cluster.append_conf(
        "pg_hba.conf",
        "host all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n",
    )?;
    cluster.start()?;
    Ok((cluster, address))
}

fn home() -> Result<tempfile::TempDir> {
    let home = support::cluster::scratch("pitr-home-")?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
    Ok(home)
}

async fn the_server_that_is_wanted_is_found(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let (primary, first) = listening(&install, 0, "")?;
    let (standby, second) = listening(&install, 1, "")?;
    standby.stop(Stop::Fast)?;
    standby.append_conf("standby.signal", "")?;
    standby.start()?;
    primary.psql("CREATE ROLE read_only LOGIN REPLICATION; ALTER ROLE read_only SET default_transaction_read_only = on;")?;
    let (home, dead) = (home()?, address(2));
    let list = format!("host={dead},{second},{first} dbname=postgres");
    for (user, wanted, expected) in [
        ("postgres", "any", Some(&second)),
        ("postgres", "read-write", Some(&first)),
        ("postgres", "primary", Some(&first)),
        ("postgres", "standby", Some(&second)),
        ("postgres", "read-only", Some(&second)),
        ("postgres", "prefer-standby", Some(&second)),
    ] {
        let text = format!("{list} user={user} target_session_attrs={wanted}");
        let ours = agree(&text, home.path()).await?;
        ensure!(ours.as_ref().ok() == expected, "{text}: {ours:?}");
        // A walsender is judged by the same rule, though it runs no SQL.
        let info = ConnInfo::parse(&text, &environment(home.path()))?;
        let conn = ReplicationConn::connect(&info, &Deadlines::default()).await?;
        ensure!(
            expected.is_some_and(|address| conn.host().to_string() == format!("{address}:5432")),
            "{wanted}"
        );
    }
    for (text, words) in [
        (
            format!("host={first} user=postgres dbname=postgres target_session_attrs=standby"),
            vec!["is a primary, but target_session_attrs=standby"],
        ),
        (
            format!("host={first} user=read_only dbname=postgres target_session_attrs=read-write"),
            vec!["whose sessions are read-only"],
        ),
        (
            format!("host={dead},{second} user=postgres dbname=postgres target_session_attrs=primary"),
            vec!["cannot reach PostgreSQL", "is a standby", &dead, &second, "role postgres"],
        ),
    ] {
        let error = agree(&text, home.path()).await?.err().context(text)?;
        let missing: Vec<_> = words.iter().filter(|word| !error.to_string().contains(**word)).collect();
        ensure!(missing.is_empty() && error.hint().is_some(), "{missing:?} not in {error}");
    }
    let text =
        format!("host={dead},{first} user=postgres dbname=postgres target_session_attrs=prefer-standby");
    ensure!(agree(&text, home.path()).await?.ok() == Some(first.clone()), "no standby: anything will do");
    // A refused log-in ends the search: the next server may have another password for the same role.
    let text = format!("host={first},{second} user=nobody dbname=postgres");
    let error = agree(&text, home.path()).await?.err().context("nobody got in")?;
    ensure!(error.to_string().contains(&first) && !error.to_string().contains(&second), "{error}");
    Ok(())
}

#[tokio::test]
async fn the_server_that_is_wanted_is_found_on_13() -> Result<()> {
    the_server_that_is_wanted_is_found(13).await
}

#[tokio::test]
async fn the_server_that_is_wanted_is_found_on_15() -> Result<()> {
    the_server_that_is_wanted_is_found(15).await
}

#[tokio::test]
async fn a_random_order_reaches_every_server() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (_cluster, both) =
        listening(&install, 0, &format!("listen_addresses = '{},{}'", address(0), address(1)))
            .map(|(cluster, first)| (cluster, [first, address(1)]))?;
    let home = home()?;
    for (balance, expected) in [("disable", 1), ("random", 2)] {
        let text =
            format!("host={} user=postgres dbname=postgres load_balance_hosts={balance}", both.join(","));
        let mut seen = BTreeSet::new();
        // The chance to see only one of two is that of forty heads in a row.
        for _ in 0..40 {
            seen.insert(ours(&text, home.path()).await?);
        }
        ensure!(seen.len() == expected, "{balance}: {seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn each_host_has_its_line_in_the_password_file() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let home = home()?;
    let (mut lines, mut clusters) = (String::new(), Vec::new());
    for number in [0, 1] {
        let (cluster, address) = listening(&install, number, "")?;
        cluster.psql(&format!("CREATE ROLE bob LOGIN REPLICATION PASSWORD 'secret{number}'"))?;
        fs::write(
            cluster.data.join("pg_hba.conf"),
            "local all all trust\nhost all,replication bob 127.0.0.0/8 scram-sha-256\n",
        )?;
        cluster.psql("SELECT pg_reload_conf()")?;
        cluster.wait_for("SELECT count(*) FROM pg_hba_file_rules", "2")?;
        lines.push_str(&format!("{address}:5432:postgres:bob:secret{number}\n"));
        clusters.push((cluster, address));
    }
    let passfile = home.path().join("passwords");
    fs::write(&passfile, lines)?;
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600))?;
    support::cluster::give_to_server(&passfile)?;
    for order in [[0, 1], [1, 0]] {
        let [first, second] = order.map(|index: usize| clusters[index].1.as_str());
        let dead = address(2);
        let text =
            format!("host={dead},{first},{second} user=bob dbname=postgres passfile={}", passfile.display());
        ensure!(agree(&text, home.path()).await?.ok().as_deref() == Some(first), "{text}");
    }
    let text = format!("host={} user=bob dbname=template1 passfile={}", clusters[0].1, passfile.display());
    let error = agree(&text, home.path()).await?.err().context("no line is for template1")?;
    for words in [passfile.display().to_string(), format!("{}:5432:template1:bob", clusters[0].1)] {
        ensure!(error.to_string().contains(&words), "{words} is not in {error}");
    }
    fs::write(&passfile, "*:*:*:*:wrong\n")?;
    let error = agree(&text, home.path()).await?.err().context("a wrong password")?;
    ensure!(
        error.hint().is_some_and(|hint| hint.contains(&passfile.display().to_string())),
        "{:?}",
        error.hint()
    );
    Ok(())
}

#[tokio::test]
async fn a_service_connects_as_with_libpq() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (_cluster, first) = listening(&install, 0, "")?;
    let home = home()?;
    let dead = address(2);
    fs::write(
        home.path().join(".pg_service.conf"),
        format!(
            "[main]\nhost={first}\nuser=postgres\ndbname=postgres\n[dead]\nhost={dead}\nuser=postgres\n[typo]\nhots=x\n"
        ),
    )?;
    ensure!(agree("service=main", home.path()).await?.ok() == Some(first.clone()));
    ensure!(
        agree(&format!("service=dead host={first} dbname=postgres"), home.path()).await?.ok() == Some(first)
    );
    ensure!(agree("service=dead", home.path()).await?.is_err());
    for text in ["service=typo", "service=nowhere"] {
        ensure!(
            ConnInfo::parse(text, &environment(home.path())).is_err() && libpq(text, home.path())?.is_err(),
            "{text}"
        );
    }
    Ok(())
}

/// A server that takes minutes for a spread checkpoint: it sleeps a tenth of a second for each of some thousand pages.
const SLOW: &str = "checkpoint_timeout = 1h\ncheckpoint_completion_target = 0.9\nshared_buffers = 64MB\n";
/// Not CREATE TABLE AS, which writes its pages itself.
const DIRTY: &str = "CREATE TABLE dirty (n int, t text);\n\
                     INSERT INTO dirty SELECT n, repeat('x', 200) FROM generate_series(1, 80000) n;";
const WALSENDERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";

async fn a_command_that_is_given_up_leaves_no_walsender(major: u32, more: &str) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    if no_openssl() {
        return Ok(());
    }
    let Some(server) = TlsCluster::start(&install, SLOW)? else { return Ok(()) };
    server.cluster.psql(DIRTY)?;
    let text = server.conninfo(&format!("{more} sslrootcert={}", server.file("ca.crt")));
    let info = ConnInfo::parse(&text, &Environment::default())?;
    let mut conn = ReplicationConn::connect(&info, &Deadlines::default()).await?;
    let options = BaseBackupOptions { checkpoint: Checkpoint::Spread, ..BaseBackupOptions::default() };
    drop(conn.base_backup(&options).await?);
    server
        .cluster
        .wait_for("SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase ~ 'checkpoint'", "1")?;
    conn.abandon().await;
    server.cluster.wait_for(WALSENDERS, "0")?;

    // A statement, too: pg_sleep does not notice a closed socket.
    let deadlines = Deadlines { answer: std::time::Duration::from_secs(600), ..Deadlines::default() };
    let mut sql = Sql::connect(&info, &deadlines).await?;
    let sleep = sql.one("SELECT pg_sleep(600)");
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep' AND state = 'active'";
    tokio::select! {
        answer = sleep => anyhow::bail!("it slept in no time: {answer:?}"),
        asleep = tokio::task::spawn_blocking(move || server.cluster.wait_for(sleeping, "1").map(|()| server)) => {
            let server = asleep??;
            sql.abandon().await;
            server.cluster.wait_for(sleeping, "0")
        }
    }
}

#[tokio::test]
async fn a_command_that_is_given_up_leaves_no_walsender_on_13() -> Result<()> {
    a_command_that_is_given_up_leaves_no_walsender(13, "sslmode=disable").await
}

#[tokio::test]
async fn a_command_that_is_given_up_over_tls_leaves_no_walsender_on_15() -> Result<()> {
    a_command_that_is_given_up_leaves_no_walsender(15, "sslmode=verify-full").await
}

#[tokio::test]
async fn a_command_that_is_given_up_over_direct_tls_leaves_no_walsender_on_17() -> Result<()> {
    a_command_that_is_given_up_leaves_no_walsender(17, "sslmode=verify-full sslnegotiation=direct").await
}

#[test]
fn a_backup_that_is_interrupted_leaves_no_walsender() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let options = SiteOptions { conf: SLOW, ..SiteOptions::default() };
    let site = Site::new(&install, &options)?;
    site.cluster.psql(DIRTY)?;
    let mut backup = site.pitr(&["backup", "--checkpoint", "spread"])?;
    let child = backup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let waits = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase ~ 'checkpoint'";
    site.cluster.wait_for(waits, "1")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id())?),
        nix::sys::signal::Signal::SIGINT,
    )?;
    let ended = child.wait_with_output()?;
    ensure!(ended.status.code() == Some(130), "{ended:?}");
    site.cluster.wait_for(WALSENDERS, "0")
}

#[test]
fn no_plug_in_of_the_c_library_is_loaded_for_a_name() -> Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIPPED: strace is not installed, see tests/setup.sh");
        return Ok(());
    }
    // Nobody listens at port 1: the name is looked up, and that is all.
    let place = support::cluster::scratch("pitr-names-")?;
    let config = place.path().join("pitr.toml");
    fs::write(
        &config,
        format!(
            "cluster = \"main\"\ntimezone = \"UTC\"\n[postgres]\nconninfo = \"host=localhost port=1 user=x\"\n\
             [[repository]]\nname = \"only\"\nurl = \"file://{}/repo\"\n",
            place.path().display()
        ),
    )?;
    let log = place.path().join("calls");
    let mut command = Command::new("strace");
    command
        .env("PITR_TEST_TRACED", "1")
        .args(["-f", "-e", "trace=open,openat,connect", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_pitr"));
    let answer = Answer::of(command.arg("--config").arg(&config).args(["check"]))?;
    let calls = fs::read_to_string(&log)?;
    ensure!(answer.out.contains("localhost:1"), "{answer:?}");
    ensure!(
        calls.contains("/etc/hosts") && calls.contains("htons(1)"),
        "the name was not looked up:\n{calls}"
    );
    for word in ["libnss", "nsswitch", "nscd", "/etc/gai.conf"] {
        ensure!(!calls.contains(word), "{word} in\n{calls}");
    }
    Ok(())
}
