//! The keys of an encrypted cluster: `key init`, `rotate`, `add`, `remove`, `recover`, `test`.
//!
//! No file of keys is ever half of one, what was readable stays readable, and the repository gets what it lacks of the host file with the
//! next push: whoever dies between the two has lost nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use pitr::seal::{HostFile, Identity};

use super::support::cluster::{Install, as_server, give_to_server};
use super::support::office::{Office, sealed_here};
use super::support::site::{Answer, Site, shrink, until};
use super::{KILLED, Point, Work, copy, kill_everywhere, remove, tree};

/// A command that changes the host file, then the repository, or only looks.
struct Change<'a> {
    site: &'a Site,
    office: &'a Office,
    args: Vec<String>,
    /// The host file and the folder of wraps, as each round finds them, and where they were saved.
    saved: [(PathBuf, PathBuf); 2],
    before: HostFile,
    /// A segment to push.
    segment: String,
    done: bool,
}

impl Change<'_> {
    fn host_file(&self) -> PathBuf {
        self.saved[0].0.clone()
    }
}

fn host_at(path: &Path) -> Result<HostFile> {
    HostFile::parse(&fs::read_to_string(path)?).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}

impl Work for Change<'_> {
    fn name(&self) -> String {
        self.args.join(" ")
    }

    fn least(&self, point: Point) -> u64 {
        match point {
            Point::Step => u64::from(!self.args.contains(&"test".to_owned())),
            _ => 5,
        }
    }

    fn world(&mut self) -> Result<()> {
        for (path, saved) in &self.saved {
            copy(saved, path)?;
        }
        self.done = false;
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let daily = self.office.daily().display().to_string();
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.site.pitr(&[&["--identity", &daily], args.as_slice()].concat())
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let now = host_at(&self.host_file())?;
        let same = now == self.before;
        let changes = !self.args.contains(&"test".to_owned());
        ensure!(answer.code != 0 || same != changes, "a yes, and the host file is {now:?}");
        ensure!(same || now.epochs.len() >= self.before.epochs.len(), "an epoch is gone: {now:?}");
        // What a push does without being told.
        self.site.ask(&["archive-push", &self.segment])?.expect(0, &[])?;
        let daily = self.office.daily().display().to_string();
        self.site.ask(&["--identity", &daily, "key", "test"])?.expect(0, &[])?;
        self.site.ask(&["--identity", &daily, "verify", "--decode"])?.expect(0, &[])?;
        let list = self.site.json(&["key", "list", "--json"])?;
        ensure!(!list.to_string().contains("wrap-"), "wraps differ from the host file's: {list}");
        self.done = !same;
        Ok(())
    }

    /// The host file says so, and the rest went there with the push.
    fn is_done(&self) -> bool {
        self.done
    }
}

/// From here on nobody else stores anything: what is sealed with an epoch that the next round undoes could not be read.
fn stop_archiving(site: &Site) -> Result<()> {
    let status = site.cluster.data.join("pg_wal/archive_status");
    let waits = |entry: fs::DirEntry| entry.path().extension().is_some_and(|end| end == "ready");
    let idle = || Ok(!fs::read_dir(&status)?.flatten().any(waits));
    until(idle, || "the archiver does not get through".to_owned())?;
    site.cluster.psql("ALTER SYSTEM SET archive_command = 'false'")?;
    site.cluster.psql("SELECT pg_reload_conf()").map(drop)
}

#[test]
fn keys_are_changed_or_not_and_open_everything_wherever_the_change_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let daily = office.daily().display().to_string();
    let recipient = |name: &str| format!("{name}={}", Identity::generate().recipient());
    site.ask(&["--identity", &daily, "key", "add", &recipient("third")])?.expect(0, &[])?;
    site.backup()?;
    let last = site.switch()?;
    stop_archiving(&site)?;
    let saved = [
        (site.place().join("main.host"), site.place().join("saved.host")),
        (site.folder()?.join("keys"), site.place().join("saved.keys")),
    ];
    for (path, to) in &saved {
        copy(path, to)?;
    }
    let before = host_at(&saved[0].0)?;
    let words = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let late = recipient("late");
    for args in
        [&["key", "rotate"][..], &["key", "add", &late], &["key", "remove", "third"], &["key", "test"]]
    {
        let (args, saved, before) = (words(args), saved.clone(), before.clone());
        let (segment, done) = (format!("pg_wal/{last}"), false);
        kill_everywhere(&mut Change { site: &site, office: &office, args, saved, before, segment, done })?;
    }
    Ok(())
}

/// `key init`, which makes two identities and the host file.
struct Init<'a> {
    office: &'a Office,
    host: PathBuf,
    identities: [PathBuf; 2],
}

impl Work for Init<'_> {
    fn name(&self) -> String {
        "key init".into()
    }

    fn least(&self, point: Point) -> u64 {
        // It asks no store.
        if point == Point::Step { 3 } else { 0 }
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.host)?;
        self.identities.iter().try_for_each(|file| remove(file))
    }

    fn command(&self) -> Result<Command> {
        let mut command = as_server(env!("CARGO_BIN_EXE_pitr"))?;
        command.current_dir(self.host.parent().unwrap_or(&self.host)).args(["key", "init", "--host-file"]);
        command.arg(&self.host);
        for (name, file) in ["daily", "offline"].iter().zip(&self.identities) {
            command.args(["--generate", &format!("{name}={}", file.display())]);
        }
        Ok(command)
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let mut whole = Vec::new();
        for file in self.identities.iter().filter(|file| file.exists()) {
            let text = fs::read_to_string(file)?;
            whole
                .extend(Identity::parse_file(&text).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?);
        }
        ensure!(answer.code == KILLED || self.host.exists(), "a yes, and there is no host file");
        if self.host.exists() {
            // Written last: whoever seals can be read by those who were named.
            let host = host_at(&self.host)?;
            ensure!(whole.len() == 2, "a host file that {} of 2 identities open", whole.len());
            for identity in &whole {
                pitr::ops::key::prove(&host, std::slice::from_ref(identity))
                    .map_err(|e| anyhow::anyhow!(e.report()))?;
            }
        }
        // Whoever is not named in it opens nothing: the office's key is another cluster's.
        ensure!(self.office.daily().exists());
        Ok(())
    }

    /// Keys are never replaced: what is left is for a person to take away, and other files to be named.
    fn is_done(&self) -> bool {
        self.host.exists() || self.identities.iter().any(|file| file.exists())
    }
}

#[test]
fn keys_are_made_whole_and_the_host_file_last_wherever_key_init_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let at = |name: &str| site.place().join(name);
    let identities = [at("new-daily.key"), at("new-offline.key")];
    kill_everywhere(&mut Init { office: &office, host: at("new.host"), identities })
}

/// `key recover` on a machine that has an identity and a configuration without keys.
struct Recover<'a> {
    site: &'a Site,
    office: &'a Office,
    /// That configuration.
    bare: PathBuf,
    /// The host file that it makes.
    host: PathBuf,
    /// The folder of wraps, and where it was saved; the host's own file of keys, which is lost.
    wraps: [PathBuf; 2],
    lost: [PathBuf; 2],
    fingerprint: String,
    segment: String,
}

impl Recover<'_> {
    /// The program on that machine.
    fn pitr_with(&self, identity: &Path, args: &[&str]) -> Result<Command> {
        let mut command = as_server(self.site.program())?;
        command.arg("--config").arg(&self.bare).arg("--identity").arg(identity);
        command.args(["--seal-fingerprint", &self.fingerprint]).args(args);
        Ok(command)
    }
}

impl Work for Recover<'_> {
    fn name(&self) -> String {
        "key recover".into()
    }

    fn least(&self, point: Point) -> u64 {
        if point == Point::Step { 3 } else { 6 }
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.host)?;
        copy(&self.wraps[1], &self.wraps[0])?;
        copy(&self.lost[1], &self.lost[0])
    }

    fn command(&self) -> Result<Command> {
        let [daily, offline] = [("daily", self.office.daily()), ("offline", self.office.offline())]
            .map(|(name, file)| self.office.public(&file).map(|key| format!("{name}={key}")));
        let host = self.host.display().to_string();
        let args = ["key", "recover", "--host-file", &host, "--recipient", &daily?, "--recipient", &offline?];
        self.pitr_with(&self.office.daily(), &args)
    }

    /// Made or not: what was stored is there as it was, and who could open it can.
    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let (was, is) = (tree(&self.wraps[1])?, tree(&self.wraps[0])?);
        ensure!(was.iter().all(|(path, wrap)| is.get(path) == Some(wrap)), "a wrap is gone, or another one");
        for identity in [self.office.daily(), self.office.offline()] {
            Answer::of(&mut self.pitr_with(&identity, &["key", "test"])?)?.expect(0, &[])?;
            Answer::of(&mut self.pitr_with(&identity, &["verify", "--decode"])?)?.expect(0, &[])?;
        }
        if !self.host.exists() {
            ensure!(answer.code == KILLED && was == is, "wraps that no host file knows: {:?}", is.keys());
            return Ok(());
        }
        // Written first: whatever became of the wraps, the host that gets it stores what is missing with its next push.
        let host = host_at(&self.host)?;
        let known = host.wraps().count();
        ensure!(answer.code != 0 || is.len() == known, "a yes, and {} of {known} wraps are stored", is.len());
        copy(&self.host, &self.lost[0])?;
        self.site.ask(&["archive-push", &self.segment])?.expect(0, &[])?;
        let list = self.site.json(&["key", "list", "--json"])?;
        ensure!(!list.to_string().contains("wrap-"), "wraps differ from the host file's: {list}");
        ensure!(tree(&self.wraps[0])?.len() == known, "not every wrap is stored");
        Ok(())
    }

    /// No file of keys is replaced: what was made is good.
    fn is_done(&self) -> bool {
        self.host.exists()
    }
}

#[test]
fn keys_are_recovered_or_not_and_open_everything_wherever_key_recover_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    shrink(&site)?;
    site.ask(&["key", "rotate"])?.expect(0, &[])?;
    let segment = format!("pg_wal/{}", site.switch()?);
    stop_archiving(&site)?;
    let list = site.json(&["key", "list", "--json"])?;
    let fingerprint = list["seal_fingerprint"].as_str().context("a fingerprint")?.to_owned();
    let bare = site.place().join("bare.toml");
    let url = site.repository.display();
    fs::write(
        &bare,
        format!("cluster = \"main\"\n[[repository]]\nname = \"only\"\nurl = \"file://{url}\"\n"),
    )?;
    give_to_server(&bare)?;
    let at = |name: &str| site.place().join(name);
    let (wraps, lost) =
        ([site.folder()?.join("keys"), at("saved.keys")], [at("main.host"), at("saved.host")]);
    copy(&wraps[0], &wraps[1])?;
    copy(&lost[0], &lost[1])?;
    let host = at("new.host");
    kill_everywhere(&mut Recover {
        site: &site,
        office: &office,
        bare,
        host,
        wraps,
        lost,
        fingerprint,
        segment,
    })
}
