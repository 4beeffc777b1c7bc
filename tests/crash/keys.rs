//! The keys of an encrypted cluster: `key init`, `rotate`, `add`, `remove`, `test`.
//!
//! No file of keys is ever half of one, what was readable stays readable, and the repository gets what it lacks of the host file with the
//! next push: whoever dies between the two has lost nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use pitr::seal::{HostFile, Identity};

use super::support::cluster::{Install, as_server};
use super::support::office::{Office, sealed_here};
use super::support::site::{Answer, Site, until};
use super::{KILLED, Point, Work, copy, kill_everywhere, remove};

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

fn host_at(path: &std::path::Path) -> Result<HostFile> {
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

#[test]
fn keys_are_changed_or_not_and_open_everything_wherever_the_change_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, office) = sealed_here(&install)?;
    let daily = office.daily().display().to_string();
    let recipient = |name: &str| format!("{name}={}", Identity::generate().recipient());
    site.ask(&["--identity", &daily, "key", "add", &recipient("third")])?.expect(0, &[])?;
    site.backup()?;
    let last = site.switch()?;
    // From here on nobody else stores anything: what is sealed with an epoch that the next round undoes could not be read.
    let status = site.cluster.data.join("pg_wal/archive_status");
    let waits = |entry: fs::DirEntry| entry.path().extension().is_some_and(|end| end == "ready");
    let idle = || Ok(!fs::read_dir(&status)?.flatten().any(waits));
    until(idle, || "the archiver does not get through".to_owned())?;
    site.cluster.psql("ALTER SYSTEM SET archive_command = 'false'")?;
    site.cluster.psql("SELECT pg_reload_conf()")?;
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
