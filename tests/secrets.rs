//! Nothing that pitr prints, and nobody who looks at its processes, gives a secret away.
//!
//! Commands fail here in every way that has to do with keys, credentials and passwords, and some succeed. The exit code says that each met
//! the failure it was made for; then all it printed is searched, as text and as JSON with all details, for pieces of every secret there is.
//! So are the logs of the server and of an agent.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::cell::RefCell;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use nix::sys::signal::Signal;
use pitr::seal::{Epoch, Identity, Wrap};
use serde_json::Value;
use support::agent::{Agent, configure, own_repository};
use support::cluster::{Install, as_server, give_to_server};
use support::office::{Office, sealed_here};
use support::s3::S3;
use support::site::{Answer, Site, until};

/// A password with a blank in it, which people forget to put into quotes.
const PASSWORD: &str = "blue parakeets";
/// One that has what a URI would need to be written otherwise.
const IN_URI: &str = "olive@macaques";
/// The secret half of credentials that a store does not take.
const STORE_KEY: &str = "kJ8sWq0ZpLx2NvTb4RmYc6HdFg1Au3Ei5Oo7";
/// How long a piece of a secret must be that counts as the secret.
const PIECE: usize = 16;

/// A sealed cluster with some WAL and a backup, and the secrets of all who have to do with it.
struct Scene {
    site: Site,
    office: Office,
    stranger: Office,
    segment: String,
    /// A copy of that segment, to push once more.
    copy: String,
    seal: String,
    fingerprint: String,
    secrets: Vec<(String, String)>,
    wrong: RefCell<Vec<String>>,
}

impl Scene {
    fn new(install: &Install) -> Result<Self> {
        let (site, office) = sealed_here(install)?;
        let stranger = Office::new(&site.place().join("stranger.host"))?;
        site.cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n")?;
        let segment = site.switch()?;
        site.backup()?;
        // The server may have removed its own.
        let copy = shown(&site.place().join(&segment));
        let opens = shown(&office.daily());
        site.ask(&["--identity", &opens, "archive-get", &segment, &copy])?.expect(0, &[])?;
        let host: Value = serde_json::from_str(&fs::read_to_string(site.place().join("main.host"))?)?;
        let seal = host["seal_key"].as_str().context("seal key")?.to_owned();
        let listed = site.json(&["key", "list", "--json"])?;
        let fingerprint = listed["seal_fingerprint"].as_str().context("a fingerprint")?.to_owned();
        let wrap = Wrap(Bytes::from(fs::read(site.folder()?.join("keys/e0001/wrap-0001.age"))?));
        let daily = Identity::parse_file(&fs::read_to_string(office.daily())?)?;
        let epoch = wrap.open(&daily, "main", Epoch::FIRST)?.key.identity.to_text();
        let mut scene = Self {
            site,
            office,
            stranger,
            segment,
            copy,
            seal: seal.clone(),
            fingerprint,
            secrets: Vec::new(),
            wrong: RefCell::default(),
        };
        scene.keep("the seal key", &seal);
        scene.keep("the epoch's key", &epoch);
        scene.keep("the daily identity", &scene.office.secret(&scene.office.daily())?);
        scene.keep("the offline identity", &scene.office.secret(&scene.office.offline())?);
        scene.keep("a stranger's identity", &scene.stranger.secret(&scene.stranger.daily())?);
        scene.keep("the store's key", STORE_KEY);
        for word in [PASSWORD, IN_URI].iter().flat_map(|text| text.split([' ', '@'])) {
            scene.secrets.push(("a password".to_owned(), word.to_owned()));
        }
        Ok(scene)
    }

    /// Remembers a secret, by its pieces: half of a key is a secret too, and so is one in other letters.
    fn keep(&mut self, name: &str, secret: &str) {
        let secret = secret.strip_prefix("AGE-SECRET-KEY-1").unwrap_or(secret).to_ascii_lowercase();
        let letters: Vec<char> = secret.chars().collect();
        let pieces = letters.chunks_exact(PIECE).map(|piece| piece.iter().collect::<String>());
        self.secrets.extend(pieces.map(|piece| (name.to_owned(), piece)));
    }

    fn look(&self, what: &str, text: &str) {
        let text = text.to_ascii_lowercase();
        let found = self.secrets.iter().filter(|(_, piece)| text.contains(piece.as_str()));
        let mut wrong = self.wrong.borrow_mut();
        wrong.extend(found.map(|(name, piece)| format!("{what} shows {name} ({piece}):\n{text}")));
    }

    /// Runs a command twice, as text and as JSON with all details; both must end with `code` and show nothing.
    fn run_with(&self, config: &Path, variables: &[(&str, &str)], code: i32, args: &[&str]) -> Result<()> {
        for more in [&[][..], &["-vv", "--json"]] {
            let mut command = as_server(self.site.program())?;
            command.current_dir(&self.site.cluster.data).arg("--config").arg(config).args(more).args(args);
            let said = Answer::of(command.envs(variables.iter().copied()))?;
            let what = format!("{} {more:?} {args:?}", config.display());
            self.look(&what, &format!("{}\n{}", said.out, said.err));
            if said.code != code {
                self.wrong.borrow_mut().push(format!("{what} ends with {}, not {code}: {said:?}", said.code));
            }
        }
        Ok(())
    }

    fn run(&self, code: i32, args: &[&str]) -> Result<()> {
        self.run_with(&self.site.config, &[], code, args)
    }

    /// A file in the site's place that is the servers' user's.
    fn file(&self, name: &str, mode: u32, text: &str) -> Result<PathBuf> {
        let path = self.site.place().join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        give_to_server(&path)?;
        Ok(path)
    }

    /// The site's configuration with some of its text replaced.
    fn config(&self, name: &str, from: &str, to: &str) -> Result<PathBuf> {
        let text = fs::read_to_string(&self.site.config)?;
        ensure!(text.contains(from), "{from} is not in {text}");
        self.file(&format!("{name}.toml"), 0o600, &text.replace(from, to))
    }

    fn host_file(&self) -> PathBuf {
        self.site.place().join("main.host")
    }

    fn end(self) -> Result<()> {
        self.look("the server's log", &self.site.cluster.log_text());
        let wrong = self.wrong.into_inner();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        Ok(())
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn no_command_that_fails_prints_a_secret() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let scene = Scene::new(&install)?;
    identities_that_do_not_open(&scene)?;
    keys_in_the_wrong_place(&scene)?;
    the_variable_alone(&scene)?;
    broken_host_files(&scene)?;
    what_succeeds(&scene)?;
    scene.end()
}

fn identities_that_do_not_open(scene: &Scene) -> Result<()> {
    let (host, segment) = (shown(&scene.host_file()), scene.segment.as_str());
    let wrong = shown(&scene.stranger.daily());
    let daily = fs::read_to_string(scene.office.daily())?;
    let offline = scene.office.secret(&scene.office.offline())?;
    let torn = shown(&scene.file("torn.key", 0o600, &format!("{daily}{offline}x\n"))?);
    let half = shown(&scene.file("half.key", 0o600, offline.get(..50).context("half a key")?)?);
    let open = shown(&scene.file("open.key", 0o644, &daily)?);
    let none = shown(&scene.site.place().join("none.key"));
    let place = shown(scene.site.place());
    let (dest, target) = (shown(&scene.site.place().join("d")), shown(&scene.site.place().join("target")));
    let restore = ["restore", "--copy", "--target-dir", &target];
    scene.run(7, &["verify", "--decode"])?;
    scene.run(7, &restore)?;
    scene.run(207, &["archive-get", segment, &dest])?;
    scene.run(7, &["key", "test"])?;
    scene.run(7, &["key", "kit", "--with-identity"])?;
    let public = fs::read_to_string(scene.stranger.daily())?;
    let public = public.lines().find_map(|l| l.strip_prefix("# public key: ")).context("public key")?;
    let new = format!("x={public}");
    scene.run(7, &["key", "add", &new])?;
    for file in [&wrong, &torn, &half, &open, &none, &place, &host] {
        scene.run(7, &["verify", "--decode", "--identity", file])?;
        scene.run(7, &[&restore[..], &["--identity", file]].concat())?;
        scene.run(207, &["archive-get", segment, &dest, "--identity", file])?;
        scene.run(7, &["key", "test", "--identity", file])?;
        scene.run(7, &["key", "kit", "--with-identity", "--identity", file])?;
        scene.run(7, &["key", "add", &new, "--identity", file])?;
    }
    let daily = shown(&scene.office.daily());
    let zeros = "00".repeat(32);
    for command in [&["info"][..], &["verify"], &["backup", "--full"], &["expire"], &["key", "rotate"]] {
        scene.run(7, &[command, &["--seal-fingerprint", &zeros]].concat())?;
        scene.run(3, &[command, &["--seal-fingerprint", "none"]].concat())?;
    }
    scene.run(7, &[&restore[..], &["--identity", &daily, "--seal-fingerprint", &zeros]].concat())?;
    scene.run(207, &["archive-get", segment, &dest, "--seal-fingerprint", &zeros])?;
    Ok(())
}

/// Secrets on the command line and in the configuration, where something else belongs.
fn keys_in_the_wrong_place(scene: &Scene) -> Result<()> {
    let secret = scene.office.secret(&scene.office.daily())?;
    let (small, most) = (secret.to_ascii_lowercase(), secret.get(..60).context("most of it")?);
    let segment = scene.segment.as_str();
    let (pair, flag) = (format!("x={secret}"), format!("--identity={secret}"));
    for command in [&["info"][..], &["verify"], &["backup"], &["expire"], &["key", "rotate"], &["check"]] {
        for key in [secret.as_str(), &small, most] {
            scene.run(3, &[command, &["--identity", key]].concat())?;
        }
    }
    scene.run(203, &["archive-get", segment, "d", "--identity", &secret])?;
    scene.run(203, &["archive-get", segment, "d", &flag])?;
    scene.run(3, &["archive-push", &secret])?;
    scene.run(3, &["--bogus", &secret])?;
    scene.run(3, &[&secret])?;
    scene.run(3, &["key", "add", &secret])?;
    scene.run(3, &["key", "add", &pair])?;
    scene.run(3, &["key", "remove", &secret])?;
    scene.run(3, &["key", "list", "--host-file", &secret])?;
    scene.run(3, &["key", "init", "--host-file", "x", "--generate", &pair, "--recipient", &pair])?;
    scene.run(3, &["init", "--host-file", &secret, "--repository", "s3://bucket/x"])?;
    scene.run(3, &["restore", "--to", &secret])?;
    scene.run(3, &["backup", "--label", &secret])?;
    for command in [&["info"][..], &["verify"], &["backup"], &["expire"], &["key", "rotate"]] {
        scene.run(3, &[command, &["--seal-fingerprint", &scene.seal]].concat())?;
    }
    scene.run(5, &["key", "remove", &scene.seal, "--identity", &shown(&scene.office.daily())])?;

    let host = shown(&scene.host_file());
    let line = format!("host_file = \"{host}\"\n");
    // Not even an absolute path, and one that could be.
    for (code, text) in [(3, secret.clone()), (7, format!("/{secret}"))] {
        let key = scene.config("key-for-host", &host, &text)?;
        scene.run_with(&key, &[], code, &["backup", "--full"])?;
        scene.run_with(&key, &[], code, &["key", "list"])?;
        scene.run_with(&key, &[], code, &["archive-push", &scene.copy])?;
        let key = scene.config("key-for-file", &line, &format!("{line}identity_file = \"{text}\"\n"))?;
        scene.run_with(&key, &[], code, &["verify", "--decode"])?;
        scene.run_with(&key, &[], 200 + code, &["archive-get", segment, "d"])?;
    }
    for name in ["identity", "identity_flie", "seal_fingerprint"] {
        let key = scene.config("key-for-name", &line, &format!("{line}{name} = \"{secret}\"\n"))?;
        scene.run_with(&key, &[], 3, &["info"])?;
    }
    let key =
        scene.config("seal-for-print", &line, &format!("{line}seal_fingerprint = \"{}\"\n", scene.seal))?;
    scene.run_with(&key, &[], 3, &["info"])
}

/// `PITR_IDENTITY` with something else in it than an identity that opens.
fn the_variable_alone(scene: &Scene) -> Result<()> {
    let secret = scene.office.secret(&scene.office.offline())?;
    let (wrong, segment) = (scene.stranger.secret(&scene.stranger.daily())?, scene.segment.as_str());
    let target = shown(&scene.site.place().join("target"));
    let two = format!("{secret}\n{wrong}x");
    let file = shown(&scene.office.daily());
    let quoted = format!("\"{secret}\"");
    let half = secret.get(..50).context("half a key")?;
    for text in [wrong.as_str(), &two, &file, &quoted, half, &scene.seal] {
        let variable = [("PITR_IDENTITY", text)];
        let run = |code: i32, args: &[&str]| scene.run_with(&scene.site.config, &variable, code, args);
        run(7, &["verify", "--decode"])?;
        run(7, &["key", "test"])?;
        run(7, &["key", "kit", "--with-identity"])?;
        run(7, &["restore", "--copy", "--target-dir", &target])?;
        // What PostgreSQL starts does not look at it.
        run(207, &["archive-get", segment, "d"])?;
        run(0, &["archive-push", &scene.copy])?;
        if text != wrong {
            run(7, &["backup", "--full"])?;
            run(7, &["expire"])?;
            run(7, &["key", "rotate"])?;
        }
    }
    Ok(())
}

fn broken_host_files(scene: &Scene) -> Result<()> {
    let good = fs::read_to_string(scene.host_file())?;
    let half = good.get(..good.len() / 2).context("half of it")?;
    let rest = scene.seal.get(1..).context("its other digits")?;
    let digit = good.replace(&scene.seal, &format!("g{rest}"));
    let number = good.replace(&format!("\"{}\"", scene.seal), "7");
    let newer = good.replace("host 1", "host 2");
    let names = ["half", "digit", "number", "newer"];
    for (name, text) in names.iter().zip([half, &digit, &number, &newer]) {
        ensure!(text != good, "{name}");
        let file = shown(&scene.file(&format!("{name}.host"), 0o600, text)?);
        let config = scene.config(name, &shown(&scene.host_file()), &file)?;
        unusable(scene, &config, &file)?;
    }
    let daily = shown(&scene.office.daily());
    unusable(scene, &scene.config("identity", &shown(&scene.host_file()), &daily)?, &daily)?;
    // Another cluster's, and one that others can read, stop everything.
    let other = scene.file("other.host", 0o600, &good.replace("\"main\"", "\"other\""))?;
    let open = scene.file("open.host", 0o644, &good)?;
    for (file, code) in [(other, 9), (open, 7)] {
        let config = scene.config("refused", &shown(&scene.host_file()), &shown(&file))?;
        for command in [&["info"][..], &["backup", "--full"], &["expire"], &["key", "rotate"]] {
            scene.run_with(&config, &[], code, command)?;
        }
        scene.run_with(&config, &[], code, &["archive-push", &scene.copy])?;
        scene.run_with(&config, &[], 200 + code, &["archive-get", &scene.segment, "d"])?;
    }
    Ok(())
}

/// A host file that cannot be used stops who writes, and who would read without an identity.
fn unusable(scene: &Scene, config: &Path, file: &str) -> Result<()> {
    for command in [&["backup", "--full"][..], &["key", "rotate"], &["key", "list"], &["info"], &["expire"]] {
        scene.run_with(config, &[], 7, command)?;
    }
    scene.run_with(config, &[], 7, &["archive-push", &scene.copy])?;
    scene.run_with(config, &[], 207, &["archive-get", &scene.segment, "d"])?;
    scene.run(7, &["key", "list", "--host-file", file])
}

/// What goes well says nothing either; the kit shows an identity where it is asked for, and no other secret.
fn what_succeeds(scene: &Scene) -> Result<()> {
    let (daily, target) = (shown(&scene.office.daily()), shown(&scene.site.place().join("target")));
    for command in [
        &["info"][..],
        &["check"],
        &["verify", "--decode", "--identity", &daily],
        &["restore", "--copy", "--target-dir", &target, "--identity", &daily, "--dry-run"],
        &["archive-push", &scene.copy],
        &["archive-get", &scene.segment, "d", "--identity", &daily],
        &["key", "list"],
        &["key", "kit"],
        &["key", "kit", "--identity", &daily],
        &["key", "test", "--identity", &daily],
        &["key", "rotate"],
        &["backup", "--full"],
        &["info", "--identity", &daily, "--seal-fingerprint", &scene.fingerprint],
    ] {
        scene.run(0, command)?;
    }
    Ok(())
}

#[test]
fn no_store_or_server_that_refuses_makes_a_command_print_a_secret() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let scene = Scene::new(&install)?;
    passwords(&scene)?;
    let url = format!("url = \"file://{}\"\n", scene.site.repository.display());
    let store = |name: &str, endpoint: &str, keys: &Path| {
        let text = format!(
            "url = \"s3://bucket/x\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\nallow_http = true\nallow_unsafe_store = true\ncredentials_file = \"{}\"\n",
            keys.display()
        );
        scene.config(name, &url, &text)
    };
    let pair = format!("access_key_id = tester\nsecret_access_key = {STORE_KEY}\n");
    let keys = scene.file("keys", 0o600, &pair)?;
    for (name, mode, text, code) in [
        ("line", 0o600, STORE_KEY.to_owned(), 3),
        ("name", 0o600, format!("secret_key_access = {STORE_KEY}\n"), 3),
        ("json", 0o600, format!("{{\"type\": \"{STORE_KEY}"), 3),
        ("open", 0o644, pair, 7),
    ] {
        let keys = scene.file(&format!("keys-{name}"), mode, &text)?;
        let config = store(name, "http://127.0.0.1:1", &keys)?;
        scene.run_with(&config, &[], code, &["info"])?;
        scene.run_with(&config, &[], code, &["archive-push", &scene.copy])?;
    }
    let away = store("away", "http://127.0.0.1:1", &keys)?;
    for (code, args) in [
        (1, &["backup", "--full"][..]),
        (1, &["expire"]),
        (1, &["archive-push", &scene.copy]),
        (201, &["archive-get", &scene.segment, "d"]),
    ] {
        scene.run_with(&away, &[], code, args)?;
    }
    if let Some(s3) = S3::start()? {
        let refused = store("refused", &s3.endpoint(), &keys)?;
        for (code, args) in [
            (7, &["info"][..]),
            (7, &["backup", "--full"]),
            (7, &["expire"]),
            (7, &["key", "rotate"]),
            (7, &["archive-push", &scene.copy]),
            (207, &["archive-get", &scene.segment, "d"]),
        ] {
            scene.run_with(&refused, &[], code, args)?;
        }
    }
    scene.end()
}

/// The password of a superuser, in the ways in which people write one.
fn passwords(scene: &Scene) -> Result<()> {
    let socket = scene.site.cluster.socket.display();
    let quoted = format!("host={socket} port=5432 user=nobody dbname=postgres password='{PASSWORD}'");
    let bare = format!("host={socket} user=postgres password={PASSWORD}");
    let unknown = format!("{quoted} hots=x");
    let open = format!("host={socket} password='{PASSWORD}");
    let uri = format!("postgres://postgres:{IN_URI}@localhost:5432/postgres");
    let percent = "postgres://postgres:blue%zzparakeets@localhost/postgres";
    let away = format!("host=127.0.0.1 port=1 user=postgres password='{PASSWORD}'");
    let well = format!("{} password='{PASSWORD}'", scene.site.cluster.conninfo());
    for (code, conninfo) in [
        (1, quoted.as_str()),
        (3, &bare),
        (3, &unknown),
        (3, &open),
        (3, &uri),
        (3, percent),
        (1, &away),
        (0, &well),
    ] {
        // Whoever lists processes sees it.
        for flag in ["--superuser", "--conninfo"] {
            scene.run(3, &["init", flag, conninfo])?;
        }
        let own = scene.site.cluster.conninfo();
        let config = scene.config("conninfo", &own, &conninfo.replace('"', "\\\""))?;
        if code != 0 {
            scene.run_with(&config, &[], code, &["backup", "--full"])?;
        }
    }
    let misspelt =
        scene.config("misspelt", "conninfo = \"", &format!("coninfo = \"password='{PASSWORD}' "))?;
    scene.run_with(&misspelt, &[], 3, &["backup", "--full"])?;
    let by_variable = scene.config("variable", "user=postgres", "user=nobody")?;
    scene.run_with(&by_variable, &[("PGPASSWORD", PASSWORD)], 1, &["backup", "--full"])
}

#[test]
fn an_agent_that_meets_trouble_with_its_keys_logs_no_secret() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let scene = Scene::new(&install)?;
    let site = &scene.site;
    let (host, daily) = (scene.host_file(), scene.site.place().join("daily.key"));
    fs::copy(scene.office.daily(), &daily)?;
    fs::set_permissions(&daily, fs::Permissions::from_mode(0o600))?;
    give_to_server(&daily)?;
    let keys = format!("[keys]\nhost_file = \"{}\"\nidentity_file = \"{}\"\n", shown(&host), shown(&daily));
    configure(site, &format!("{}{keys}", own_repository(site)))?;
    let agent = Agent::start(site)?;
    site.cluster.psql("INSERT INTO t VALUES (1)")?;
    site.switch()?;
    let zeros = "00".repeat(32);
    scene.run(207, &["archive-get", &scene.segment, "pg_wal/RECOVERYXLOG", "--seal-fingerprint", &zeros])?;
    scene.run(0, &["key", "rotate"])?;
    let (good, own) = (fs::read_to_string(&host)?, fs::read_to_string(&daily)?);
    let stranger = fs::read_to_string(site.place().join("stranger.host"))?;
    let torn = format!("{own}{}x\n", scene.office.secret(&scene.office.offline())?);
    let half = good.get(..good.len() / 2).context("half of it")?;
    for (file, text) in [(&host, half), (&daily, &torn), (&host, &stranger)] {
        let before = fs::read_to_string(file)?;
        let told = agent.log().len();
        fs::write(file, text)?;
        site.cluster.psql("INSERT INTO t VALUES (1); SELECT pg_switch_wal()")?;
        until(|| Ok(agent.log().len() > told), || format!("nothing is said of {}", file.display()))?;
        let status = site.ask(&["agent", "--status", "--json"])?;
        scene.look("the agent's status", &format!("{}{}", status.out, status.err));
        fs::write(file, before)?;
    }
    site.switch()?;
    ensure!(agent.log().contains("cannot be used any more"), "{}", agent.log());
    let log = site.place().join("agent.log");
    agent.end(Signal::SIGTERM)?;
    scene.look("the agent's log", &fs::read_to_string(log)?);
    scene.end()
}

/// A process that a test started; killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether other processes of its user can read the memory of a process, and the kernel hands it to who collects cores.
fn is_open(pid: &str) -> Result<bool> {
    let proc = PathBuf::from("/proc").join(pid);
    let status = fs::read_to_string(proc.join("status"))?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("no user")?;
    let user: u32 = uids.split_whitespace().nth(1).context("no user")?.parse()?;
    // proc(5): what is not dumpable belongs to root there.
    Ok(fs::metadata(proc.join("environ"))?.uid() == user)
}

#[test]
fn the_memory_of_every_command_is_closed_to_other_processes_and_to_core_dumps() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    // A store that takes connections and never answers: the command stays.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let text = format!(
        "cluster = \"main\"\n[[repository]]\nname = \"silent\"\nurl = \"s3://bucket/x\"\nendpoint = \"http://{}\"\nregion = \"us-east-1\"\nallow_http = true\n",
        silent.local_addr()?
    );
    let config = site.place().join("silent.toml");
    fs::write(&config, text)?;
    let start = |more: &[&str]| -> Result<Running> {
        let mut command = as_server(site.program())?;
        command.arg("--config").arg(&config).args(["info"]).args(more);
        command.env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", STORE_KEY);
        let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        // Whoever calls has read its keys.
        silent.accept()?;
        Ok(running)
    };
    let (with, without) = (start(&["--identity", &shown(&office.daily())])?, start(&[])?);
    ensure!(!is_open(&with.0.id().to_string())?, "a command that holds an identity");
    ensure!(!is_open(&without.0.id().to_string())?, "one that holds the credentials of a store");
    let limits = fs::read_to_string(format!("/proc/{}/limits", without.0.id()))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit")?;
    ensure!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    let other = Running(as_server("sleep")?.arg("60").spawn()?);
    until(|| is_open(&other.0.id().to_string()), || "other processes are open to their user".to_owned())?;

    let keys = format!("[keys]\nhost_file = \"{}\"\n", shown(&site.place().join("main.host")));
    configure(&site, &format!("{}{keys}", own_repository(&site)))?;
    let agent = Agent::start(&site)?;
    ensure!(!is_open(&agent.pid()?.to_string())?, "an agent");
    agent.end(Signal::SIGTERM)?;
    Ok(())
}
