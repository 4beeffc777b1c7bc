//! What docker-compose.yml would run, without Docker: uid 999, an empty home, a bare environment, a bucket.
//!
//! The compose file itself is validated by `docker-compose config` where that is installed. The commands in it are taken from the
//! file, so that the test runs what it says. Needs root (to become uid 999), Debian's PostgreSQL 15 and the S3 server of
//! `tests/setup.sh`; otherwise it says why it was skipped.

#![expect(
    clippy::print_stdout,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test says why it is skipped or failed, and writes its own files"
)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const UID: u32 = 999;
const BIN: &str = "/usr/lib/postgresql/15/bin";

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_compose_file_is_valid() {
    let Ok(output) = Command::new("docker-compose").arg("config").current_dir(repository()).output() else {
        println!("SKIPPED docker-compose is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn s3_server() -> Result<PathBuf, String> {
    let cache = std::env::var_os("PITR_TEST_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/pitr-tests"), PathBuf::from);
    let text =
        std::fs::read_to_string(cache.join("substrate.env")).map_err(|e| format!("no substrate: {e}"))?;
    let line =
        text.lines().find_map(|l| l.strip_prefix("PITR_MOTO=")).ok_or("no S3 server in the substrate")?;
    Ok(PathBuf::from(line))
}

struct Container {
    dir: tempfile::TempDir,
    s3: Child,
    port: u16,
}

impl Container {
    fn new(s3: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("pitr-box-").tempdir_in("/tmp").expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let root = dir.path();
        for folder in ["home", "sock"] {
            std::fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        std::fs::copy(env!("CARGO_BIN_EXE_pitr"), root.join("pitr")).expect("the program");
        // The one S3 server of the substrate that keeps conditional creates in a race; pitr refuses the others.
        let s3 = Command::new(s3)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the S3 server");
        let bucket = format!("http://127.0.0.1:{port}/pitr");
        wait(|| {
            Command::new("curl")
                .args(["-sf", "-o", "/dev/null", "-X", "PUT", &bucket])
                .status()
                .is_ok_and(|s| s.success())
        });
        let this = Self { dir, s3, port };
        this.configure();
        this
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The configuration of the compose file, with the places of this host.
    fn configure(&self) {
        let text = std::fs::read_to_string(repository().join("docker/pitr.toml")).expect("docker/pitr.toml");
        let text = text
            .replace("http://s3:9000", &format!("http://127.0.0.1:{}", self.port))
            .replace("/etc/pitr/s3-credentials", &self.path("s3-credentials"))
            .replace("/var/lib/postgresql/pitr-state", &self.path("state"))
            .replace("/var/lib/postgresql/data", &self.path("data"))
            .replace("/var/run/postgresql", &self.path("sock"));
        std::fs::write(self.path("pitr.toml"), text).expect("a file");
        let passwd =
            format!("root:x:0:0::/root:/bin/sh\npostgres:x:{UID}:{UID}::{}:/bin/sh\n", self.path("home"));
        std::fs::write(self.path("passwd"), passwd).expect("a file");
        let secret = "access_key_id = pitr\nsecret_access_key = change-me-please\n";
        std::fs::write(self.path("s3-credentials"), secret).expect("a file");
        let script = format!(
            "chmod 600 {0}/s3-credentials && chmod 755 {0}/pitr && chown -R {UID}:{UID} {0} && chmod 700 {0}",
            self.dir.path().display()
        );
        assert!(Command::new("/bin/sh").args(["-ec", &script]).status().expect("a shell").success());
    }

    /// Runs as uid 999 in a mount namespace whose `/etc/passwd` knows it, as in the image.
    fn run(&self, program: &str, args: &[&str]) -> Output {
        let become_it = format!(
            "mount --bind {}/passwd /etc/passwd && exec setpriv --reuid={UID} --regid={UID} --clear-groups -- \"$@\"",
            self.dir.path().display()
        );
        Command::new("unshare")
            .args(["-m", "/bin/sh", "-ec", &become_it, "sh", program])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.path("home"))
            .current_dir(self.path("home"))
            .output()
            .expect("a program")
    }

    fn ok(&self, program: &str, args: &[&str]) -> String {
        let output = self.run(program, args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {}: {}\n{out}\n{err}", args.join(" "), output.status);
        out.trim().to_owned()
    }

    fn pitr(&self, args: &[&str]) -> String {
        let config = self.path("pitr.toml");
        self.ok(&self.path("pitr"), &[&["--config", &config], args].concat())
    }

    fn sql(&self, socket: &str, statement: &str) -> String {
        self.ok(
            &format!("{BIN}/psql"),
            &["-XqAt", "-h", socket, "-U", "postgres", "-d", "postgres", "-c", statement],
        )
    }

    fn start(&self, data: &str) {
        self.ok(&format!("{BIN}/pg_ctl"), &["-D", data, "-w", "-l", &self.path("log"), "start"]);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for data in ["data", "copy"] {
            let _ = self.run(&format!("{BIN}/pg_ctl"), &["-D", &self.path(data), "-m", "immediate", "stop"]);
        }
        let _ = self.s3.kill();
        let _ = self.s3.wait();
    }
}

/// The `-c` settings that the compose file starts the server with, on this host's paths.
fn server_settings(container: &Container) -> String {
    let text = std::fs::read_to_string(repository().join("docker-compose.yml")).expect("docker-compose.yml");
    let settings = text.lines().filter_map(|line| {
        let (name, value) = line.trim().strip_prefix("- ")?.split_once('=')?;
        let known = ["wal_level", "archive_mode", "archive_command", "archive_timeout"].contains(&name);
        known.then(|| format!("{name} = '{value}'\n"))
    });
    let settings: String = settings.collect();
    assert!(settings.contains("archive_command") && settings.contains("archive_timeout"), "{settings}");
    settings
        .replace("/usr/local/bin/pitr", &container.path("pitr"))
        .replace("/etc/pitr/pitr.toml", &container.path("pitr.toml"))
}

#[test]
fn what_the_compose_file_runs_works_with_uid_999_an_empty_home_and_a_bare_environment() {
    let s3 = match s3_server() {
        _ if !nix::unistd::Uid::effective().is_root() => {
            return println!("SKIPPED needs root to become uid {UID}");
        }
        _ if !Path::new(BIN).exists() => return println!("SKIPPED needs Debian's postgresql-15"),
        Ok(path) => path,
        Err(why) => return println!("SKIPPED {why}"),
    };
    let container = Container::new(&s3);
    let (data, sock) = (container.path("data"), container.path("sock"));
    container.ok(&format!("{BIN}/initdb"), &["-D", &data, "-U", "postgres", "-A", "trust", "--locale=C"]);
    let settings = server_settings(&container);
    let extra = format!("listen_addresses = ''\nunix_socket_directories = '{sock}'\n{settings}");
    let mut conf = std::fs::read_to_string(format!("{data}/postgresql.conf")).expect("a file");
    conf.push_str(&extra);
    std::fs::write(format!("{data}/postgresql.conf"), conf).expect("a file");
    container.start(&data);
    // docker/init-pitr.sh, then what the comment at the top of the compose file says.
    container.pitr(&["init"]);
    container.sql(&sock, "create table t as select n from generate_series(1, 500) n");
    container.pitr(&["backup"]);
    container.sql(&sock, "insert into t values (501)");
    container.sql(&sock, "select pg_switch_wal()");
    let moment = container.sql(
        &sock,
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'",
    );
    container.sql(&sock, "insert into t values (502)");
    container.sql(&sock, "select pg_switch_wal()");
    wait(|| {
        container.sql(
            &sock,
            "select last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1) from pg_stat_archiver",
        ) == "t"
    });
    assert!(container.pitr(&["info"]).contains("can be restored"));
    let copy = container.path("copy");
    container.pitr(&["restore", "--to", &moment, "--copy", "--target-dir", &copy]);
    container.start(&copy);
    let port = std::fs::read_to_string(format!("{copy}/postmaster.pid")).expect("a pid file");
    let lines: Vec<&str> = port.lines().collect();
    let (port, socket) = (lines[3].to_owned(), lines[4].to_owned());
    let sql = |statement: &str| {
        container.ok(
            &format!("{BIN}/psql"),
            &["-XqAt", "-h", &socket, "-p", &port, "-U", "postgres", "-d", "postgres", "-c", statement],
        )
    };
    wait(|| sql("select pg_is_in_recovery()") == "f");
    assert_eq!(sql("select max(n) from t"), "501");
}

fn wait(mut ready: impl FnMut() -> bool) {
    for _ in 0..300 {
        if ready() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("waited 30 s in vain");
}
