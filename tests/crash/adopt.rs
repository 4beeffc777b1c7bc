//! `init --adopt`: the history first, then the mark of a copy, then the settings.
//!
//! Wherever it is killed, a server that archives is no copy, and what is no copy has its history in the repository. The settings are
//! read where PostgreSQL keeps them, in `postgresql.auto.conf`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use super::support::cluster::{Cluster, Install, as_server, give_to_server};
use super::support::site::{Answer, Site, small_site};
use super::{Point, Work, copy, kill_everywhere};

struct Adopt<'a> {
    site: &'a Site,
    /// The promoted copy; it runs.
    server: Cluster,
    config: PathBuf,
    /// The repository before.
    world: PathBuf,
    mark: Vec<u8>,
}

impl Adopt<'_> {
    fn marker(&self) -> PathBuf {
        self.server.data.join("pitr.copy")
    }

    /// Whether the server will archive after its next start.
    fn archives(&self) -> Result<bool> {
        let settings = fs::read_to_string(self.server.data.join("postgresql.auto.conf"))?;
        Ok(settings.lines().any(|line| line.starts_with("archive_command") && line.contains("archive-push")))
    }
}

impl Work for Adopt<'_> {
    fn name(&self) -> String {
        "init --adopt".into()
    }

    fn least(&self, point: Point) -> u64 {
        if point == Point::Step { 3 } else { 5 }
    }

    fn world(&mut self) -> Result<()> {
        copy(&self.world, &self.site.repository)?;
        self.server.psql("ALTER SYSTEM RESET archive_command")?;
        self.server.psql("ALTER SYSTEM RESET archive_mode")?;
        self.server.psql("SELECT pg_reload_conf()")?;
        fs::write(self.marker(), &self.mark)?;
        give_to_server(&self.marker())
    }

    fn command(&self) -> Result<Command> {
        let mut command = as_server(self.site.program())?;
        command.arg("--config").arg(&self.config).args(["init", "--adopt", "--superuser"]);
        command.arg(self.server.conninfo());
        Ok(command)
    }

    fn audit(&mut self, answer: &Answer) -> Result<()> {
        let stored = self.site.folder()?.join("wal/00000002.history").exists();
        let (marked, archives) = (self.marker().exists(), self.archives()?);
        ensure!(marked || stored, "no copy any more, and its history is nowhere");
        ensure!(!archives || !marked, "a copy that archives");
        ensure!(answer.code != 0 || (archives && !marked), "a yes, and it does not archive");
        Ok(())
    }
}

#[test]
fn a_copy_archives_only_after_its_history_is_stored_wherever_adopt_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.backup()?;
    site.switch()?;
    let (server, _) = site.restored(&[])?;
    let config = site.place().join("adopted.toml");
    let text = format!(
        "cluster = \"main\"\ntimezone = \"UTC\"\n[postgres]\ndata_dir = \"{}\"\n[[repository]]\nname = \"local\"\nurl = \"file://{}\"\n",
        server.data.display(),
        site.repository.display(),
    );
    fs::write(&config, text)?;
    give_to_server(&config)?;
    let world = site.place().join("world");
    copy(&site.repository, &world)?;
    let mark = fs::read(server.data.join("pitr.copy"))?;
    kill_everywhere(&mut Adopt { site: &site, server, config, world, mark })
}
