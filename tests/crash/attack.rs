//! `check --attack`, which destroys on purpose: wherever it is killed, it touched nothing but objects of its own.
//!
//! A bucket that another server keeps as files; what lies in it is compared byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::support::cluster::{as_server, give_to_server, scratch};
use super::support::s3::S3;
use super::support::site::Answer;
use super::{KILLED, Point, Work, kill_everywhere, remove, tree};

struct Attack<'a> {
    config: &'a Path,
    bucket: PathBuf,
    /// What is stored.
    stored: BTreeMap<PathBuf, Vec<u8>>,
}

impl Attack<'_> {
    /// Objects; what the server notes for itself has names that no key has.
    fn objects(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut found = tree(&self.bucket)?;
        found.retain(|path, _| {
            path.components().all(|part| !part.as_os_str().as_encoded_bytes().starts_with(b"."))
        });
        Ok(found)
    }
}

impl Work for Attack<'_> {
    fn name(&self) -> String {
        "check --attack".into()
    }

    fn good(&self) -> i32 {
        // The bucket keeps no versions: all can be destroyed.
        2
    }

    fn least(&self, point: Point) -> u64 {
        if point == Point::Step { 0 } else { 10 }
    }

    fn world(&mut self) -> Result<()> {
        for path in self.objects()?.keys().filter(|path| !self.stored.contains_key(*path)) {
            remove(&self.bucket.join(path))?;
        }
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let mut command = as_server(env!("CARGO_BIN_EXE_pitr"))?;
        command.current_dir("/").arg("--config").arg(self.config).args(["check", "--attack"]);
        Ok(command)
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let mut after = self.objects()?;
        for (path, bytes) in &self.stored {
            ensure!(after.remove(path).as_ref() == Some(bytes), "{} was touched", path.display());
        }
        let own = |path: &PathBuf| path.display().to_string().starts_with("p/main/probe-attack-");
        ensure!(after.keys().all(own), "it left what nobody takes for its own: {:?}", after.keys());
        let verdict = "an attacker with these credentials can destroy the repository";
        ensure!(answer.code == KILLED || answer.out.contains(verdict), "another verdict");
        Ok(())
    }
}

#[test]
fn an_attack_touches_nothing_but_its_own_wherever_it_is_killed() -> Result<()> {
    let Some(s3) = S3::start()? else { return Ok(()) };
    let place = scratch("pitr-attack-")?;
    let config = place.path().join("pitr.toml");
    let settings = s3.settings(place.path())?;
    let repository = format!("[[repository]]\nname = \"r\"\nurl = \"s3://bucket/p\"\n{settings}");
    fs::write(&config, format!("cluster = \"main\"\n{repository}"))?;
    give_to_server(&config)?;
    let bucket = s3.directory.path().join("bucket");
    for key in
        ["identity.json", "wal/00000001/00000000/000000010000000000000001.wal", "backups/x/backup.json"]
    {
        let path = bucket.join("p/main/1").join(key);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, key)?;
    }
    let mut attack = Attack { config: &config, bucket, stored: BTreeMap::new() };
    attack.stored = attack.objects()?;
    ensure!(attack.stored.len() == 3, "{:?}", attack.stored);
    kill_everywhere(&mut attack)
}
