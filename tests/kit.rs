//! The recovery kit: one page, with which a cluster comes back when its host is gone, with pitr and without.
//!
//! What the page says is done to the letter: its commands are run as they are printed, its files are written as it says, and nothing of the
//! lost host is used but the bucket. PostgreSQL is started on the result, and its rows are compared.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so, and a recovery its time")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::cluster::{Cluster, Install, as_server, give_to_server, run, scratch};
use support::keys::{self, tools};
use support::office::{IN_ROWS, Office, ROWS, fill, is_in_clear, sealed, sealed_here};
use support::s3::S3;
use support::site::{Answer, Site, SiteOptions, open, settle, switch};

/// What the page does not have, and says so: the owner keeps it elsewhere.
const CREDENTIALS: [(&str, &str); 2] = [("access_key_id", "tester"), ("secret_access_key", "not-so-secret")];

/// A desk somewhere, with the page on it.
struct Desk {
    place: tempfile::TempDir,
    /// The page, with a directory of the test in the place of /etc/pitr.
    page: String,
}

impl Desk {
    fn new(page: &str) -> Result<Self> {
        let place = scratch("pitr-desk-")?;
        let etc = place.path().join("pitr");
        fs::create_dir(&etc)?;
        let page = page.replace("/etc/pitr", &etc.display().to_string());
        Ok(Self { place, page })
    }

    fn etc(&self) -> PathBuf {
        self.place.path().join("pitr")
    }

    fn config(&self) -> PathBuf {
        self.etc().join("restore.toml")
    }

    /// Writes the files that the page names, and gives them to the server's user as it says.
    fn write_files(&self) -> Result<()> {
        let lines = || self.page.lines().map(str::trim);
        let key = lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).context("no key")?;
        fs::write(self.etc().join("recovery.key"), format!("{key}\n"))?;
        let (_, rest) = self.page.split_once("restore.toml:\n\n").context("no configuration")?;
        let (text, _) = rest.split_once("\n\n").context("no end of it")?;
        fs::write(self.config(), text)?;
        for line in lines().filter(|line| line.contains(": who pitr is to the store of ")) {
            let (path, _) = line.split_once(": who").context("a path")?;
            let (_, after) = self.page.split_once(line).context("its lines")?;
            let names = after.lines().skip(1).take_while(|line| line.starts_with("    "));
            let filled = names.map(|line| {
                let (name, dots) = line.trim().split_once(" = ").context("a name")?;
                ensure!(dots == "...", "{line}");
                let value = CREDENTIALS.iter().find(|(known, _)| *known == name).context("another secret")?;
                Ok(format!("{name} = {}\n", value.1))
            });
            fs::write(path, filled.collect::<Result<String>>()?)?;
        }
        let chown = lines().find(|line| line.starts_with("chown")).context("no chown")?;
        if nix::unistd::geteuid().is_root() {
            run(Command::new("sh").args(["-c", chown]))?;
        } else {
            eprintln!("SKIPPED in part: who is not root does not change the owner of files");
        }
        Ok(())
    }

    fn pitr(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pitr"));
        command.arg("--config").arg(self.config()).args(args);
        command
    }

    fn ask(&self, args: &[&str]) -> Result<Answer> {
        Answer::of(&mut self.pitr(args))
    }

    /// Runs the command of pitr on the page that begins so, as it is printed but for where the program is.
    fn printed(&self, words: &str) -> Result<Answer> {
        let start = format!("pitr --config {} {words}", self.config().display());
        let (_, rest) = self.page.split_once(&start).with_context(|| format!("no {start}"))?;
        let mut text = start.replacen("pitr", env!("CARGO_BIN_EXE_pitr"), 1);
        for line in rest.lines() {
            text.push_str(line);
            if !line.ends_with('\\') {
                break;
            }
            text.push('\n');
        }
        Answer::of(Command::new("sh").args(["-c", &text]))
    }

    /// A copy beside everything, restored from that backup and open.
    fn copy(&self, install: &Install, backup: &str) -> Result<Cluster> {
        let copy = Cluster::around(install)?;
        let target = copy.data.display().to_string();
        self.ask(&["restore", "--copy", "--backup", backup, "--target-dir", &target, "--json"])?
            .expect(0, &[])?;
        open(&copy)?;
        Ok(copy)
    }
}

#[test]
fn a_lost_host_comes_back_from_the_kit_and_the_bucket() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let Some(s3) = S3::start()? else { return Ok(()) };
    let url = |_: &Path| "s3://bucket/pg".to_owned();
    let (site, office) = sealed(&install, &SiteOptions::default(), url, |place| s3.settings(place))?;
    fill(&site)?;
    let folder = s3.directory.path().join("bucket/pg/main").join(site.system()?);
    let stored = |name: &str| {
        let part = |range| name.get(range).unwrap_or_default();
        Ok(folder.join("wal").join(part(0..8)).join(part(8..16)).join(format!("{name}.wal")).exists())
    };
    switch(&site.cluster, stored)?;
    let old = site.backup()?;
    site.cluster
        .psql(&format!("INSERT INTO t SELECT n, '{IN_ROWS} ' || n FROM generate_series(2001, 3000) n"))?;
    let rows = site.cluster.psql(ROWS)?;
    switch(&site.cluster, stored)?;
    let offline = office.offline().display().to_string();
    let kit = site.ask(&["key", "kit", "--with-identity", "--identity", &offline])?;
    kit.expect(0, &[])?;
    let clear = is_in_clear(s3.directory.path())?;
    ensure!(clear.is_empty(), "in clear: {clear:?}");

    // The host, its configuration and its host file are gone, and so is the office: a page of paper is left. What it says is done to the
    // letter, as root.
    site.cluster.crash()?;
    let lost = site.cluster.conninfo();
    drop((site, office));
    let (began, desk) = (Instant::now(), Desk::new(&kit.out)?);
    desk.write_files()?;
    let info = desk.printed("info")?;
    ensure!(info.code == 0 && !info.out.contains("UNVERIFIED"), "{info:?}");
    let server = Cluster::around(&install)?;
    let target = server.data.display().to_string();
    let restored = desk.ask(&["restore", "--replace", "--target-dir", &target])?;
    ensure!(restored.code == 0 && restored.out.contains("`pitr key recover` makes one"), "{restored:?}");
    open(&server)?;
    ensure!(server.psql(ROWS)? == rows, "other rows came back");
    eprintln!("from kit and bucket to an open server in {:?}", began.elapsed());

    // It archives again, with a host file that was made anew from the key.
    let (host, config) = (desk.etc().join("main.host"), fs::read_to_string(desk.config())?);
    desk.printed("key recover")?.expect(0, &[])?;
    // The new server is reached by another socket than the lost one, and says so in the place of that.
    let reached = format!("conninfo = \"{}\"", server.conninfo());
    let config =
        config.replace("# host_file", "host_file").replace(&format!("# conninfo = \"{lost}\""), &reached);
    ensure!(host.exists() && config.contains("\n  host_file") && config.contains(&reached), "{config}");
    fs::write(desk.config(), config)?;
    desk.ask(&["init", "--apply", "--superuser", &server.conninfo()])?.expect(0, &[])?;
    server.psql("INSERT INTO t VALUES (7000, 'after the loss')")?;
    switch(&server, stored)?;
    let backup = desk.ask(&["backup", "--full", "--json"])?;
    backup.expect(0, &[])?;
    let new: Value = serde_json::from_str(&backup.out)?;
    let rows = server.psql(ROWS)?;
    switch(&server, stored)?;
    for backup in [&old, &new] {
        let copy = desk.copy(&install, backup["id"].as_str().context("an id")?)?;
        ensure!(copy.psql(ROWS)? == rows, "other rows came back from {backup}");
    }
    desk.ask(&["key", "test"])?.expect(0, &[])?;
    eprintln!("to a host that archives and is backed up in {:?}", began.elapsed());
    Ok(())
}

/// A wrap of the first epoch with somebody else's seal key in it, for a recipient whose public key he knows.
fn forged_wrap(public: &str) -> Result<Vec<u8>> {
    let place = scratch("pitr-forger-")?;
    let host = place.path().join("host");
    keys::init(&host, place.path(), &["--recipient", &format!("late={public}")])?;
    let host: Value = serde_json::from_str(&fs::read_to_string(&host)?)?;
    let hex = host["epochs"][0]["wraps"][0].as_str().context("a wrap")?;
    let byte = |at| Ok(u8::from_str_radix(hex.get(at..at + 2).context("two digits")?, 16)?);
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// A server with all that makes a restore by hand go wrong: a tablespace, settings of a recovery, two epochs, a recipient who came later,
/// a wrap that somebody planted for him, and a backup that was never finished. The identity of that recipient.
fn awkward(site: &Site, office: &Office, late: &Office) -> Result<()> {
    fill(site)?;
    let space = site.place().join("space");
    fs::create_dir(&space)?;
    give_to_server(&space)?;
    let psql = |sql: &str| site.cluster.psql(sql);
    psql(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()))?;
    psql("CREATE TABLE far TABLESPACE far AS SELECT generate_series(1, 500) n")?;
    for setting in
        ["recovery_target_xid = '3'", "primary_conninfo = 'host=/none'", "recovery_end_command = 'false'"]
    {
        psql(&format!("ALTER SYSTEM SET {setting}"))?;
    }
    site.switch()?;
    site.backup()?;
    psql("INSERT INTO t VALUES (5000, 'in the first epoch')")?;
    site.switch()?;
    site.ask(&["key", "rotate"])?.expect(0, &[])?;
    psql("INSERT INTO t VALUES (6000, 'in the second')")?;
    site.switch()?;
    let public = late.public(&late.daily())?;
    let daily = office.daily().display().to_string();
    site.ask(&["key", "add", &format!("late={public}"), "--identity", &daily])?.expect(0, &[])?;
    let planted = site.folder()?.join("keys/e0001/wrap-0009.age");
    fs::write(&planted, forged_wrap(&public)?)?;
    give_to_server(&planted)?;
    let unfinished = site.backup()?;
    let id = unfinished["id"].as_str().context("an id")?;
    fs::remove_file(site.folder()?.join("backups").join(id).join("backup.json"))?;
    Ok(())
}

/// The commands on the page, between the lines where it is to be cut.
fn by_hand(page: &str) -> Result<&str> {
    let line = "# - - - - - - - - 8< - - - - - - - -\n";
    let (_, rest) = page.split_once(line).context("no commands")?;
    Ok(rest.split_once(line).context("no end of them")?.0)
}

#[test]
fn by_hand_takes_a_backup_that_leads_to_the_newest_timeline() -> Result<()> {
    let Some(install) = Install::find_or_skip(17).filter(|_| tools()) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    fill(&site)?;
    let id = |done: Value| done["id"].as_str().map(str::to_owned).context("an id");
    let older = id(site.backup()?)?;
    let fork = site.cluster.psql("SELECT pg_current_wal_insert_lsn()")?;
    site.switch()?;
    // Of backups of one second the names decide which is the newer one.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let newer = id(site.backup()?)?;
    site.switch()?;
    let history = site.place().join("00000002.history");
    fs::write(&history, format!("1\t{fork}\tx\n"))?;
    give_to_server(&history)?;
    site.ask(&["archive-push", &history.display().to_string()])?.expect(0, &[])?;
    let kit = site.ask(&["key", "kit"])?;
    kit.expect(0, &[])?;

    let desk = scratch("pitr-desk-")?;
    run(as_server("cp")?.arg(office.daily()).arg(desk.path().join("recovery.key")))?;
    fs::write(desk.path().join("by-hand.sh"), by_hand(&kit.out)?)?;
    let folder = site.folder()?;
    let run = |backup: Option<&str>| {
        let mut command = as_server("sh")?;
        command.current_dir(desk.path()).env("R", &folder).env("FORKED", "1").arg("by-hand.sh");
        backup.map(|id| command.env("B", id));
        Answer::of(&mut command)
    };
    let refused = run(Some(&newer))?;
    ensure!(refused.code == 1 && refused.out.contains("timeline 00000002 cannot be reached"), "{refused:?}");
    ensure!(!desk.path().join("data").exists(), "something was written");
    let done = run(None)?;
    ensure!(done.code == 0 && done.out.contains(&format!("/{older}, epoch e0001")), "{done:?}");
    Ok(())
}

#[test]
fn the_page_alone_restores_without_pitr() -> Result<()> {
    let Some(install) = Install::find_or_skip(17).filter(|_| tools()) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let late = Office::new(&site.place().join("late.host"))?;
    awkward(&site, &office, &late)?;
    let rows = site.cluster.psql(ROWS)?;
    let kit = site.ask(&["key", "kit"])?;
    kit.expect(0, &[])?;

    // A disk with a copy of the folder, the page, and the key; no pitr, no configuration, no server.
    let copy = Cluster::around(&install)?;
    let folder = copy.root().join("folder");
    run(as_server("cp")?.arg("-a").arg(site.folder()?).arg(&folder))?;
    run(as_server("cp")?.arg(late.daily()).arg(copy.root().join("recovery.key")))?;
    site.cluster.crash()?;
    drop((site, office, late));
    let commands = by_hand(&kit.out)?;
    let pitr =
        |line: &str| line.split(['|', ';', ' ']).any(|word| word == "pitr") && !line.contains("# pitr epoch");
    ensure!(!commands.lines().any(pitr) && commands.starts_with("# by-hand.sh"), "{commands}");
    fs::write(copy.root().join("by-hand.sh"), commands)?;
    let by_hand = |space: Option<&Path>| {
        let mut command = as_server("sh")?;
        command.current_dir(copy.root()).env("R", &folder).arg("by-hand.sh");
        space.map(|space| command.env("S", space));
        Answer::of(&mut command)
    };
    // Nobody said where the tablespace goes.
    let stopped = by_hand(None)?;
    ensure!(stopped.code != 0 && stopped.err.contains("where shall tablespaces go"), "{stopped:?}");
    fs::remove_dir_all(&copy.data)?;
    let done = by_hand(Some(&copy.root().join("spaces")))?;
    ensure!(done.code == 0 && done.out.contains("e0001.key\ne0002.key"), "{done:?}");
    // What the page says of other servers: this one has a socket of its own.
    settle(&copy)?;
    copy.start()?;
    copy.wait_for("SELECT pg_is_in_recovery()", "f").with_context(|| copy.log_text())?;
    ensure!(copy.psql(ROWS)? == rows, "other rows came back");
    ensure!(copy.psql("SELECT count(*) FROM far")? == "500", "the tablespace did not come back");
    let space = copy.psql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'far'")?;
    ensure!(space.starts_with(&copy.root().join("spaces").display().to_string()), "{space}");
    ensure!(copy.psql("SHOW archive_mode")? == "off", "it would archive into the source's repository");
    Ok(())
}

#[test]
fn the_page_has_no_dead_key_on_it_and_says_what_it_does_not_know() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let late = Office::new(&site.place().join("late.host"))?;
    let (daily, gone) = (office.daily().display().to_string(), late.daily().display().to_string());
    let public = late.public(&late.daily())?;
    site.ask(&["key", "add", &format!("late={public}"), "--identity", &daily])?.expect(0, &[])?;
    site.ask(&["key", "kit", "--with-identity", "--identity", &gone])?.expect(0, &[])?;
    site.ask(&["key", "remove", "late", "--identity", &daily])?.expect(0, &[])?;
    let refused = site.ask(&["key", "kit", "--with-identity", "--identity", &gone])?;
    refused.expect(7, &[&public, "no recipient"])?;
    ensure!(!refused.out.contains("SECRET"), "{refused:?}");

    // Two stores that do not answer, of which one has credentials of its own.
    let secret = site.place().join("cloud.secret");
    fs::write(&secret, "account_name = who\naccount_key = bm90LXNvLXNlY3JldA==\n")?;
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    give_to_server(&secret)?;
    let more = format!(
        "[archive]\ntimeout = \"1s\"\n[[repository]]\nname = \"cloud\"\nrequired = false\nurl = \"az://container/x\"\nallow_http = true\n\
         endpoint = \"http://127.0.0.1:1\"\ncredentials_file = \"{}\"\n\
         [[repository]]\nname = \"role\"\nrequired = false\nurl = \"s3://bucket/x\"\nallow_http = true\nendpoint = \"http://127.0.0.1:1\"\nregion = \"x\"\n",
        secret.display()
    );
    let text = fs::read_to_string(&site.config)?;
    fs::write(&site.config, format!("{text}{more}"))?;
    let kit = site.json(&["key", "kit", "--json"])?;
    let page = kit["text"].as_str().context("a page")?;
    let system = site.system()?;
    for words in [
        format!("repository only: folder main/{system}"),
        "repository cloud: folder below main/ not known: ".to_owned(),
        "credentials_file = \"/etc/pitr/cloud.credentials\"".to_owned(),
        "    account_key = ...\n    account_name = ...\n".to_owned(),
        "role has no credentials file".to_owned(),
    ] {
        ensure!(page.contains(&words), "{words}: {page}");
    }
    ensure!(page.matches("credentials_file = ").count() == 3, "{page}");
    ensure!(kit["unknown"][0]["repository"] == "cloud" && kit["unknown"][1]["repository"] == "role", "{kit}");
    ensure!(!page.contains("bm90LXNv") && !page.contains("= who"), "{page}");
    Ok(())
}
