//! The commands that move one file, and the small ones: `archive-push`, `archive-get`, `pin`, `unpin`, `verify`, `check`, `init`.
//!
//! What `archive-push` said yes to comes back, and what it was killed over is stored whole or not at all. PostgreSQL's name for what
//! `archive-get` delivers shows the old file or the whole new one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::support::audit::{Auditor, Objects, objects_in};
use super::support::cluster::{Install, as_server, give_to_server};
use super::support::site::{Answer, Site, small_site};
use super::{KILLED, Point, Work, kill_everywhere, remove};

/// Name of the first segment of the server, and its bytes.
fn first_segment(site: &Site) -> Result<(String, Vec<u8>)> {
    let path = site.cluster.wal_files()?.into_iter().next().context("a segment")?;
    let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
    Ok((name.to_owned(), fs::read(&path)?))
}

struct Push<'a> {
    site: &'a Site,
    segment: String,
    content: Vec<u8>,
    /// It is stored already: the server asks again after it crashed.
    stored: bool,
    auditor: Auditor,
    before: Objects,
}

impl Work for Push<'_> {
    fn name(&self) -> String {
        format!("archive-push, stored: {}", self.stored)
    }

    fn least(&self, point: Point) -> u64 {
        match (point, self.stored) {
            (Point::Step, true) => 0,
            (Point::Step, false) => 2,
            _ => 3,
        }
    }

    fn world(&mut self) -> Result<()> {
        let object = self.site.object(&self.segment)?;
        if !self.stored {
            remove(&object)?;
        }
        self.before = objects_in(&self.site.repository)?;
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        self.site.pitr(&["archive-push", &format!("pg_wal/{}", self.segment)])
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let after = objects_in(&self.site.repository)?;
        self.auditor.check(&self.before, &after)?;
        let comes_back = Auditor::comes_back(&after, &self.segment, &self.content);
        ensure!(comes_back || answer.code == KILLED, "a yes, and it does not come back");
        self.before = after;
        Ok(())
    }
}

#[test]
fn a_segment_is_stored_whole_or_not_wherever_archive_push_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let (segment, content) = first_segment(&site)?;
    for stored in [false, true] {
        let auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
        let (segment, content) = (segment.clone(), content.clone());
        let push = Push { site: &site, segment, content, stored, auditor, before: Objects::new() };
        kill_everywhere(&mut { push })?;
    }
    Ok(())
}

struct Get<'a> {
    site: &'a Site,
    segment: String,
    content: Vec<u8>,
    /// What has the name before: PostgreSQL leaves a file of an earlier attempt there.
    old: Option<Vec<u8>>,
}

impl Get<'_> {
    fn destination(&self) -> PathBuf {
        self.site.cluster.data.join("pg_wal/RECOVERYXLOG")
    }
}

impl Work for Get<'_> {
    fn name(&self) -> String {
        format!("archive-get, over a file: {}", self.old.is_some())
    }

    fn least(&self, point: Point) -> u64 {
        if point == Point::Step { 1 } else { 2 }
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.destination())?;
        if let Some(old) = &self.old {
            fs::write(self.destination(), old)?;
            give_to_server(&self.destination())?;
        }
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        self.site.pitr(&["archive-get", &self.segment, "pg_wal/RECOVERYXLOG"])
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let found = fs::read(self.destination()).ok();
        let whole = found.as_ref() == Some(&self.content);
        ensure!(
            whole || (answer.code == KILLED && found == self.old),
            "neither the old file nor the new one"
        );
        if answer.code == 0 {
            let left = fs::read_dir(self.site.cluster.data.join("pg_wal"))?;
            for entry in left {
                let name = entry?.file_name();
                ensure!(!pitr::durable::is_temporary(&name), "{name:?} is left in pg_wal");
            }
        }
        Ok(())
    }
}

#[test]
fn recovery_finds_the_old_file_or_the_whole_new_one_wherever_archive_get_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let (segment, content) = first_segment(&site)?;
    for old in [None, Some(b"of an earlier attempt".to_vec())] {
        let (segment, content) = (segment.clone(), content.clone());
        kill_everywhere(&mut Get { site: &site, segment, content, old })?;
    }
    Ok(())
}

/// A command that changes little in the repository, or nothing.
struct Small<'a> {
    site: &'a Site,
    args: Vec<String>,
    /// What makes its world.
    first: Option<Vec<String>>,
    auditor: Auditor,
    before: Objects,
    /// Whether the backup is pinned when it said yes.
    pinned: Option<bool>,
}

impl Small<'_> {
    fn run(&self, args: &[String]) -> Result<Command> {
        self.site.pitr(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Work for Small<'_> {
    fn name(&self) -> String {
        self.args.join(" ")
    }

    fn least(&self, point: Point) -> u64 {
        match (point, self.pinned) {
            (Point::Step, None) => 0,
            (Point::Step, Some(_)) => 1,
            _ => 3,
        }
    }

    fn world(&mut self) -> Result<()> {
        if let Some(first) = &self.first {
            Answer::of(&mut self.run(first)?)?.expect(0, &[])?;
        }
        self.before = objects_in(&self.site.repository)?;
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        self.run(&self.args)
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let after = objects_in(&self.site.repository)?;
        self.auditor.check(&self.before, &after)?;
        let info = self.site.json(&["info", "--json"])?;
        let backup = &info["repositories"][0]["backups"][0];
        ensure!(backup["restorable"] == true, "{info}");
        if let (Some(pinned), 0) = (self.pinned, answer.code) {
            ensure!(backup["pinned"] == pinned, "{info}");
        }
        self.before = after;
        Ok(())
    }

    /// What is not pinned cannot be unpinned again: that is an answer of its own.
    fn is_done(&self) -> bool {
        let pinned = || {
            Some(self.site.json(&["info", "--json"]).ok()?["repositories"][0]["backups"][0]["pinned"] == true)
        };
        self.pinned == Some(false) && pinned() == Some(false)
    }
}

#[test]
fn pins_and_reports_leave_a_repository_as_it_was_wherever_they_are_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let id = site.backup()?["id"].as_str().context("an id")?.to_owned();
    let words = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let (pin, unpin) = (words(&["pin", &id]), words(&["unpin", &id]));
    site.ask(&["pin", &id])?.expect(0, &[])?;
    for (args, first, pinned) in [
        (pin.clone(), Some(unpin.clone()), Some(true)),
        (unpin, Some(pin), Some(false)),
        (words(&["verify", "--decode"]), None, None),
        (words(&["check"]), None, None),
    ] {
        let auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
        kill_everywhere(&mut Small { site: &site, args, first, auditor, before: Objects::new(), pinned })?;
    }
    Ok(())
}

const COMMAND: &str = "SELECT current_setting('archive_command')";

/// `init --apply` of a repository, a configuration and settings that are not there yet.
struct Init<'a> {
    site: &'a Site,
    auditor: Auditor,
    /// What the configuration is when nothing is killed.
    whole: Option<String>,
}

impl Init<'_> {
    fn config(&self) -> PathBuf {
        self.site.place().join("new.toml")
    }

    fn repository(&self) -> PathBuf {
        self.site.place().join("new/repo")
    }

    fn objects(&self) -> Result<Objects> {
        let there = self.repository().exists();
        if there { objects_in(&self.repository()) } else { Ok(Objects::new()) }
    }
}

impl Work for Init<'_> {
    fn name(&self) -> String {
        "init".into()
    }

    fn least(&self, point: Point) -> u64 {
        if point == Point::Step { 10 } else { 8 }
    }

    fn world(&mut self) -> Result<()> {
        remove(&self.config())?;
        remove(&self.site.place().join("new"))?;
        let reset = ["archive_command", "archive_timeout", "restore_command"];
        let reset = reset.map(|name| format!("ALTER SYSTEM RESET {name};\n")).concat();
        self.site.cluster.psql(&format!("{reset}SELECT pg_reload_conf();"))?;
        self.site.cluster.wait_for(&format!("{COMMAND} = ''"), "t")
    }

    fn command(&self) -> Result<Command> {
        let mut command = as_server(self.site.program())?;
        command.current_dir(self.site.place()).arg("--config").arg(self.config()).arg("init").arg("--apply");
        command.args(["--superuser", &self.site.cluster.conninfo(), "--cluster", "main", "--repository"]);
        command.arg(format!("file://{}", self.repository().display()));
        Ok(command)
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let objects = self.objects()?;
        self.auditor.check(&Objects::new(), &objects)?;
        let config = fs::read_to_string(self.config()).ok();
        if answer.code == 0 {
            self.site.cluster.wait_for(&format!("{COMMAND} LIKE '%new.toml%'"), "t")?;
            ensure!(objects.keys().any(|key| key.ends_with("/identity.json")), "{:?}", objects.keys());
            let same = self.whole.is_none() || self.whole == config;
            ensure!(config.is_some() && same, "another configuration: {config:?}");
            self.whole.clone_from(&config);
            no_temporary_below(&self.site.place().join("new"))?;
        }
        let half = config.is_some() && self.whole.is_some() && config != self.whole;
        ensure!(!half, "half a configuration: {config:?}");
        Ok(())
    }
}

fn no_temporary_below(place: &Path) -> Result<()> {
    let mut left = Vec::new();
    super::support::restored::walk(place, &mut |path| {
        if path.file_name().is_some_and(pitr::durable::is_temporary) {
            left.push(path.to_owned());
        }
    })?;
    ensure!(left.is_empty(), "temporary files are left: {left:?}");
    Ok(())
}

#[test]
fn a_cluster_is_set_up_by_the_next_init_wherever_one_was_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let auditor = Auditor::of_server(&site.cluster.data.join("pg_wal"));
    let mut init = Init { site: &site, auditor, whole: None };
    init.world()?;
    let whole = Answer::of(&mut init.command()?)?;
    whole.expect(0, &[])?;
    init.audit(&whole)?;
    kill_everywhere(&mut init)
}
