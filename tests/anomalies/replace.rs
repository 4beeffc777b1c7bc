//! `restore --replace --move-aside` after a crash: the n-th call is refused, from the look at the repository over the old WAL that is stored
//! first to the last file.
//!
//! ```text
//!  data, crashed ─► old WAL stored ─► data aside ─► marker, files, pg_control
//!  refused anywhere: the old directory is whole, here or aside, and what stands in its place starts only when it is whole
//! ```
//! Segments that only the old directory held come back byte for byte; the rows that the last server returns are those that were
//! committed before the crash.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::MOST_CALLS;
use super::support::audit::{Auditor, objects_in};
use super::support::cluster::Install;
use super::support::site::{Answer, Site, open, small_site};
use super::support::tree::{Tree, aside, copy, differ, remove, tree};

/// A crashed server and its repository, each kept to begin anew with.
struct Accident {
    site: Site,
    old: PathBuf,
    stored: PathBuf,
    /// What is in the old directory.
    before: Tree,
    /// Segments that were not stored, the unfinished one last.
    unstored: Vec<(String, Vec<u8>)>,
}

impl Accident {
    fn new(install: &Install) -> Result<Self> {
        let site = small_site(install)?;
        site.backup()?;
        site.cluster.psql("ALTER SYSTEM SET archive_command = 'false'")?;
        site.cluster.psql("SELECT pg_reload_conf()")?;
        let mut unstored = Vec::new();
        for n in 1..=2 {
            let sql =
                format!("CREATE TABLE late{n} AS SELECT {n} AS n; SELECT pg_walfile_name(pg_switch_wal())");
            let name = site.cluster.psql(&sql)?.lines().last().context("a segment")?.to_owned();
            unstored.push((name, Vec::new()));
        }
        site.cluster.psql("CREATE TABLE last AS SELECT 3 AS n")?;
        // Of the one that is being written the whole file is kept too.
        unstored
            .push((site.cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?, Vec::new()));
        site.cluster.crash()?;
        for (name, content) in &mut unstored {
            *content = fs::read(site.cluster.data.join("pg_wal").join(&*name))?;
        }
        let (old, stored) = (site.place().join("old"), site.place().join("stored"));
        copy(&site.cluster.data, &old)?;
        copy(&site.repository, &stored)?;
        let before = tree(&old)?;
        Ok(Self { site, old, stored, before, unstored })
    }

    fn data(&self) -> &Path {
        &self.site.cluster.data
    }

    fn begin_anew(&self) -> Result<()> {
        aside(self.data())?.iter().try_for_each(|old| remove(old))?;
        copy(&self.old, self.data())?;
        copy(&self.stored, &self.site.repository)
    }

    fn replace(&self, faults: Option<&str>) -> Result<Answer> {
        let target = self.data().display().to_string();
        let mut command =
            self.site.pitr(&["restore", "--target-dir", &target, "--replace", "--move-aside"])?;
        Answer::of(command.envs(faults.map(|faults| ("PITR_TEST_FAULTS", faults))))
    }

    /// After a refusal: nothing of the old directory is lost, and nothing half-restored starts.
    fn audit_refused(&self) -> Result<()> {
        let aside = aside(self.data())?;
        ensure!(aside.len() <= 1, "more than one is aside: {aside:?}");
        let lost = differ(&self.before, &tree(aside.first().map_or_else(|| self.data(), PathBuf::as_path))?);
        ensure!(lost.is_empty(), "the old directory is not what it was: {lost:?}");
        let startable = self.data().join("global/pg_control").exists();
        ensure!(aside.is_empty() || !startable, "what failed can start");
        Ok(())
    }

    fn audit_done(&self) -> Result<()> {
        let objects = objects_in(&self.site.repository)?;
        for (name, content) in &self.unstored {
            ensure!(Auditor::comes_back(&objects, name, content), "{name} is not stored");
        }
        let aside = aside(self.data())?;
        let [place] = aside.as_slice() else { anyhow::bail!("aside: {aside:?}") };
        let lost = differ(&self.before, &tree(place)?);
        ensure!(lost.is_empty(), "what is aside is another one: {lost:?}");
        ensure!(self.data().join("global/pg_control").exists(), "a yes, and there is no pg_control");
        Ok(())
    }
}

#[test]
fn whatever_call_of_a_replacement_is_refused_the_old_directory_is_whole_and_repeating_it_loses_nothing()
-> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let accident = Accident::new(&install)?;
    let mut auditor = Auditor::of_server(&accident.old.join("pg_wal"));
    let mut refused = 0;
    // Beyond the first calls those of many files are alike.
    for nth in
        std::iter::successors(Some(1), |nth| Some(nth + 1 + nth / 40 * 4)).take_while(|nth| *nth < MOST_CALLS)
    {
        accident.begin_anew()?;
        let before = objects_in(&accident.site.repository)?;
        let answer = accident.replace(Some(&format!("deny:{nth}")))?;
        let what = format!("denied at call {nth}: {answer:?}");
        let after = objects_in(&accident.site.repository)?;
        auditor.check(&before, &after).context(what.clone())?;
        if answer.code != 0 {
            refused += 1;
            ensure!(matches!(answer.code, 7 | 9) && answer.err.contains("HINT"), "{what}");
            accident.audit_refused().context(what.clone())?;
            let again = accident.replace(None)?;
            ensure!(again.code == 0, "{what}: repeated: {again:?}");
            auditor.check(&after, &objects_in(&accident.site.repository)?).context(what.clone())?;
        }
        accident.audit_done().context(what.clone())?;
        if !answer.err.contains("injected") {
            ensure!(answer.code == 0 && refused > 10 && nth > 20, "{what}: {refused} refused");
            let server = &accident.site.cluster;
            open(server)?;
            let rows = server.psql(
                "SELECT (SELECT n FROM late1) || ' ' || (SELECT n FROM late2) || ' ' || (SELECT n FROM last)",
            )?;
            ensure!(rows == "1 2 3", "{rows}");
            return Ok(());
        }
    }
    anyhow::bail!("it does not end")
}
