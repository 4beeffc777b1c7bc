//! Commands that make one decision of a person's: `accept`, `expire --backup`, `restore --finish`.
//!
//! Each is taken or not, wherever its command was killed: no object of it stands without the one that must come before it, and no
//! file is half the old and half the new one.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::support::cluster::{Install, Stop, give_to_server};
use super::support::site::{Answer, Site, small_site};
use super::{Point, Work, copy, kill_everywhere, remove};

struct Accept<'a> {
    site: &'a Site,
    /// A file that is no segment of that name.
    segment: PathBuf,
    /// The record of the gap, and the segment as it is stored.
    objects: [PathBuf; 2],
}

impl Work for Accept<'_> {
    fn name(&self) -> String {
        "accept".into()
    }

    fn least(&self, point: Point) -> u64 {
        if point == Point::Step { 4 } else { 5 }
    }

    fn world(&mut self) -> Result<()> {
        self.objects.iter().try_for_each(|object| remove(object))
    }

    fn command(&self) -> Result<Command> {
        self.site.pitr(&["accept", &self.segment.display().to_string(), "--damaged"])
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let [record, stored] = self.objects.each_ref().map(|object| object.exists());
        ensure!(record || !stored, "the segment is stored, and nothing says that it is damaged");
        ensure!(answer.code != 0 || stored, "a yes, and it is not stored");
        let info = self.site.json(&["info", "--json"])?;
        ensure!(info["repositories"][0]["backups"][0]["restorable"] == true, "{info}");
        Ok(())
    }
}

#[test]
fn a_damaged_segment_is_recorded_before_it_is_stored_wherever_accept_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    let content = site.cluster.wal_files()?.into_iter().next().context("a segment")?;
    let name = content.file_name().and_then(|name| name.to_str()?.get(..16)).context("a name")?;
    let name = format!("{name}000000EE");
    let segment = site.place().join(&name);
    fs::copy(&content, &segment)?;
    give_to_server(&segment)?;
    let stored = site.object(&name)?;
    let objects = [stored.with_file_name(format!("{name}.gap.json")), stored];
    kill_everywhere(&mut Accept { site: &site, segment, objects })
}

struct GiveUp<'a> {
    site: &'a Site,
    world: PathBuf,
    backups: [String; 2],
}

impl Work for GiveUp<'_> {
    fn name(&self) -> String {
        "expire --backup".into()
    }

    fn least(&self, point: Point) -> u64 {
        if point == Point::Step { 1 } else { 8 }
    }

    fn world(&mut self) -> Result<()> {
        copy(&self.world, &self.site.repository)
    }

    fn command(&self) -> Result<Command> {
        self.site.pitr(&["expire", "--backup", &self.backups[0]])
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let info = self.site.json(&["info", "--json"])?;
        let listed = info["repositories"][0]["backups"].as_array().context("backups")?;
        let restorable = |id: &str| listed.iter().any(|b| b["id"] == id && b["restorable"] == true);
        ensure!(restorable(&self.backups[1]), "{info}");
        ensure!(answer.code != 0 || !restorable(&self.backups[0]), "{info}");
        Ok(())
    }
}

#[test]
fn a_chosen_backup_is_given_up_or_not_wherever_expire_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let taken = || -> Result<String> { Ok(site.backup()?["id"].as_str().context("an id")?.to_owned()) };
    let backups = [taken()?, taken()?];
    let world = site.place().join("two");
    copy(&site.repository, &world)?;
    kill_everywhere(&mut GiveUp { site: &site, world, backups })
}

struct Finish<'a> {
    site: &'a Site,
    data: PathBuf,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Finish<'_> {
    fn file(&self) -> PathBuf {
        self.data.join("postgresql.auto.conf")
    }
}

impl Work for Finish<'_> {
    fn name(&self) -> String {
        "restore --finish".into()
    }

    fn least(&self, point: Point) -> u64 {
        u64::from(point == Point::Step)
    }

    fn world(&mut self) -> Result<()> {
        Ok(fs::write(self.file(), &self.before)?)
    }

    fn command(&self) -> Result<Command> {
        self.site.pitr(&["restore", "--finish", "--target-dir", &self.data.display().to_string()])
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let now = fs::read(self.file())?;
        ensure!(now == self.before || now == self.after, "half of it: {}", String::from_utf8_lossy(&now));
        ensure!(answer.code != 0 || now == self.after, "a yes, and the settings are there still");
        Ok(())
    }
}

#[test]
fn the_settings_of_a_restore_are_all_there_or_all_gone_wherever_finish_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    site.switch()?;
    let (restored, _) = site.restored(&[])?;
    restored.stop(Stop::Fast)?;
    let data = restored.data.clone();
    let before = fs::read(data.join("postgresql.auto.conf"))?;
    let mut finish = Finish { site: &site, data, before, after: Vec::new() };
    let whole = Answer::of(&mut finish.command()?)?;
    whole.expect(0, &[])?;
    finish.after = fs::read(finish.file())?;
    ensure!(finish.after != finish.before, "nothing to remove");
    kill_everywhere(&mut finish)
}
