//! The first ten minutes on a stock Debian cluster, exactly as the README says: no file is edited by hand.
//!
//! pg_createcluster, start, `pitr init --apply`, restart, `pitr check`, `pitr backup`, `pitr info`, `pitr restore`; run as root, as an
//! operator would, with the configuration outside the data directory. Then an accident, and `--replace --move-aside` in Debian's
//! own layout. Needs root and Debian's PostgreSQL 15; otherwise it says why it was skipped.

#![expect(
    clippy::print_stdout,
    clippy::panic,
    reason = "a test says why it is skipped or failed, and writes its own files"
)]

use std::path::Path;
use std::process::{Command, Output};

const CLUSTER: &str = "pitrtest";
const VERSION: &str = "15";

struct Debian {
    dir: tempfile::TempDir,
}

impl Debian {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pitr-debian-").tempdir_in("/tmp").expect("a directory");
        Command::new("chmod").arg("755").arg(dir.path()).status().expect("chmod");
        let _ = drop_cluster();
        sh(&format!("pg_createcluster {VERSION} {CLUSTER} -- -k"));
        sh(&format!("pg_ctlcluster {VERSION} {CLUSTER} start"));
        let bin = dir.path().join("pitr");
        std::fs::copy(env!("CARGO_BIN_EXE_pitr"), &bin).expect("the program");
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn port(&self) -> String {
        let text = sh(&format!("pg_conftool -s {VERSION} {CLUSTER} show port"));
        text.trim().to_owned()
    }

    fn sql(&self, statement: &str) -> String {
        let port = self.port();
        let output = Command::new("setpriv")
            .args([
                "--reuid=postgres",
                "--regid=postgres",
                "--init-groups",
                "psql",
                "-XqAt",
                "-p",
                &port,
                "-d",
                "postgres",
                "-c",
                statement,
            ])
            .current_dir("/")
            .output()
            .expect("psql");
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn pitr(&self, args: &[&str]) -> Output {
        let config = self.path("etc/pitr.toml");
        Command::new(self.path("pitr"))
            .args(["--config", &config])
            .args(args)
            .current_dir("/")
            .output()
            .expect("pitr")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.pitr(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "pitr {}: {}\n{out}\n{err}", args.join(" "), output.status);
        out.into_owned()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = drop_cluster();
        let aside = format!("/var/lib/postgresql/{VERSION}");
        for entry in std::fs::read_dir(aside).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("{CLUSTER}.before-")) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn drop_cluster() -> Output {
    Command::new("pg_dropcluster").args(["--stop", VERSION, CLUSTER]).output().expect("pg_dropcluster")
}

fn sh(command: &str) -> String {
    let output = Command::new("/bin/sh").args(["-ec", command]).current_dir("/").output().expect("a shell");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {}\n{err}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn skipped() -> Option<&'static str> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("needs root to make a Debian cluster");
    }
    let there = Path::new("/usr/bin/pg_createcluster").exists()
        && Path::new("/usr/lib/postgresql/15/bin/postgres").exists();
    if there { None } else { Some("needs Debian's postgresql-15") }
}

#[test]
fn the_first_ten_minutes_work_as_the_readme_says() {
    if let Some(why) = skipped() {
        println!("SKIPPED {why}");
        return;
    }
    let debian = Debian::new();
    let url = format!("file://{}", debian.path("backups"));
    let superuser = format!("host=/var/run/postgresql port={} user=postgres dbname=postgres", debian.port());
    let said = debian.ok(&[
        "init",
        "--superuser",
        &superuser,
        "--repository",
        &url,
        "--cluster",
        "main",
        "--apply",
        "--timezone",
        "UTC",
    ]);
    assert!(
        said.contains(&format!("pg_ctlcluster {VERSION} {CLUSTER} restart")),
        "no restart command in:\n{said}"
    );
    let owner = sh(&format!("stat -c %U:%a {} {}", debian.path("backups"), debian.path("etc/pitr.toml")));
    assert_eq!(owner, "postgres:700\nroot:640\n");
    sh(&format!("pg_ctlcluster {VERSION} {CLUSTER} restart"));
    let said = debian.ok(&["check"]);
    assert!(said.contains("comes back as it was archived"), "no round trip in:\n{said}");
    debian.sql("create table t as select n from generate_series(1, 1000) n");
    debian.ok(&["backup"]);
    debian.sql("insert into t select n from generate_series(1001, 1500) n");
    let moment =
        debian.sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')");
    debian.sql("drop table t");
    debian.sql("create table later (n int)");
    debian.sql("select pg_switch_wal()");
    wait_for_archiver(&debian);
    let info: serde_json::Value = serde_json::from_str(&debian.ok(&["info", "--json"])).expect("JSON");
    assert_eq!(info["repositories"][0]["backups"][0]["restorable"], true, "{info}");
    the_primary_itself_comes_back(&debian, &moment);
}

fn wait_for_archiver(debian: &Debian) {
    let done = "select coalesce(last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1), false) from pg_stat_archiver";
    for _ in 0..300 {
        if debian.sql(done) == "t" {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the archiver did not come: {}", debian.sql("select * from pg_stat_archiver"));
}

fn the_primary_itself_comes_back(debian: &Debian, moment: &str) {
    let running = debian.pitr(&["restore", "--to", moment, "--replace", "--move-aside"]);
    assert_eq!(
        running.status.code(),
        Some(9),
        "a running server was not refused: {}",
        String::from_utf8_lossy(&running.stderr)
    );
    sh(&format!("pg_ctlcluster {VERSION} {CLUSTER} stop -m fast"));
    let said = debian.ok(&["restore", "--to", moment, "--replace", "--move-aside"]);
    assert!(
        said.contains(&format!("pg_ctlcluster {VERSION} {CLUSTER} start")),
        "no start command in:\n{said}"
    );
    sh(&format!("pg_ctlcluster {VERSION} {CLUSTER} start"));
    wait_until_open(debian);
    assert_eq!(debian.sql("select count(*) || ' ' || sum(n) from t"), "1500 1125750");
    assert_eq!(debian.sql("select to_regclass('later') is null"), "t");
    debian.ok(&["restore", "--finish"]);
    // The new primary archives on its own timeline, and the next full backup goes through.
    debian.ok(&["backup"]);
    debian.sql("create table last as select 42 n");
    debian.sql("select pg_switch_wal()");
    wait_for_archiver(debian);
    a_lost_host_comes_back(debian);
}

/// Data directory and configuration are gone: all there is are the repository and pitr's own configuration.
fn a_lost_host_comes_back(debian: &Debian) {
    let before = layout();
    // Nothing of ours gets into the way of its `rm -r`.
    let dropped = drop_cluster();
    assert!(dropped.status.success(), "{dropped:?}");
    assert!(!Path::new(&format!("/etc/postgresql/{VERSION}/{CLUSTER}")).exists());
    let said = debian.ok(&["restore", "--replace"]);
    assert!(
        said.contains(&format!("pg_ctlcluster {VERSION} {CLUSTER} start")),
        "no start command in:\n{said}"
    );
    sh(&format!("pg_ctlcluster {VERSION} {CLUSTER} start"));
    wait_until_open(debian);
    assert_eq!(debian.sql("select n from public.last"), "42");
    assert_eq!(debian.sql("select count(*) from t"), "1500");
    assert_eq!(layout(), before, "not the layout that pg_createcluster made");
    // Anybody's psql finds the server by Debian's own wrapper, which reads its port.
    let seen = sh(&format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups pg_lsclusters -h {VERSION} {CLUSTER}"
    ));
    let words: Vec<&str> = seen.split_whitespace().collect();
    let data = format!("/var/lib/postgresql/{VERSION}/{CLUSTER}");
    assert_eq!(words[2..6], [debian.port().as_str(), "online", "postgres", data.as_str()], "{seen}");
    // And it starts with the host, as before.
    sh(&format!("pg_ctlcluster {VERSION} {CLUSTER} restart"));
    wait_until_open(debian);
}

/// The files of the cluster's configuration with owners, modes and contents, and the data directory's own. What pg_createcluster
/// lays down beside them (start.conf, pg_ctl.conf, environment) is its default, holds nothing of the server's, and may be missing.
fn layout() -> String {
    let etc = format!("/etc/postgresql/{VERSION}/{CLUSTER}");
    let names = "! -name start.conf ! -name pg_ctl.conf ! -name environment";
    sh(&format!(
        "cd {etc} && find . {names} -printf '%P %u:%g %m %y\\n' | sort && find . -type f {names} | sort | xargs sha256sum \
         && stat -c '%U:%G %a' /var/lib/postgresql/{VERSION}/{CLUSTER}"
    ))
}

fn wait_until_open(debian: &Debian) {
    for _ in 0..300 {
        if debian.sql("select pg_is_in_recovery()") == "f" {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("recovery does not end");
}
