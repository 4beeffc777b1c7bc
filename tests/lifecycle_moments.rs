//! Moments at which something large happens: databases made and dropped, transactions prepared, while others commit.
//!
//! ```text
//!  backup   CREATE DATABASE shop · copies    PREPARE · COMMIT PREPARED    DROP DATABASE shop
//!  ├────┤        t0     t1   t2    t3            t4        t5               t6   t7
//! ```
//! A client commits rows before, between and, while a database is dropped, at the same time; its log is the oracle of rows, what each database
//! answers that of databases. Rules: RECOVERY 1 (PREPARE is a place to stop at), 5 (DROP DATABASE acts before its commit).

mod support;

use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::cluster::{Cluster, Install};
use support::log::{CLOCK, Client, assert_rows, rows};
use support::site::{Site, SiteOptions};

const PREPARED: &str = "max_prepared_transactions = 4";
/// What a database that is whole answers.
const WHOLE: &str = "SELECT count(*) || ' ' || sum(n) || ' ' || count(DISTINCT text) FROM goods";
const ANSWER: &str = "5000 12502500 5000";

/// A moment and the rows of the client that are there at it.
struct Moment {
    time: String,
    rows: Vec<u64>,
}

struct Story {
    site: Site,
    client: Client,
}

impl Story {
    fn begin(install: &Install) -> Result<Self> {
        let site = Site::new(install, &SiteOptions { conf: PREPARED, ..SiteOptions::default() })?;
        let mut client = Client::connect(&site.cluster, 1)?;
        client.commits(2)?;
        site.backup()?;
        Ok(Self { site, client })
    }

    /// Now, after one more commit of the client.
    fn moment(&mut self) -> Result<Moment> {
        self.client.commit()?;
        self.now()
    }

    /// Now, with nothing of the client's since the last thing that happened.
    fn now(&self) -> Result<Moment> {
        let time = self.site.cluster.psql(&format!("SELECT {CLOCK}"))?;
        Ok(Moment { time, rows: self.client.all() })
    }

    /// Makes a database with goods in it.
    fn shop(&self) -> Result<()> {
        self.site.cluster.psql("CREATE DATABASE shop")?;
        self.site.cluster.psql_in(
            "shop",
            "CREATE TABLE goods AS SELECT n, md5(n::text) AS text FROM generate_series(1, 5000) n; CREATE INDEX ON goods (text)",
        )?;
        ensure!(self.site.cluster.psql_in("shop", WHOLE)? == ANSWER);
        Ok(())
    }

    /// Archives all, and loses the host.
    fn end(&mut self) -> Result<()> {
        self.client.commit()?;
        self.site.switch()?;
        self.site.cluster.crash()
    }

    fn at(&self, moment: &Moment, what: &str) -> Result<Cluster> {
        let (copy, _) = self.site.restored(&["--to", &moment.time]).with_context(|| what.to_owned())?;
        assert_rows(&rows(&copy)?, &moment.rows, what)?;
        Ok(copy)
    }
}

/// The databases that users made.
fn databases(cluster: &Cluster) -> Result<String> {
    cluster.psql(
        "SELECT coalesce(string_agg(datname, ',' ORDER BY datname), '') FROM pg_database WHERE oid >= 16384 AND datname <> 'postgres'",
    )
}

fn whole(cluster: &Cluster, database: &str) -> Result<()> {
    let answer = cluster.psql_in(database, WHOLE)?;
    ensure!(answer == ANSWER, "{database} answers {answer}");
    // Not from the index alone, and not from the table alone.
    let found = cluster
        .psql_in(database, "SET enable_seqscan = off; SELECT n FROM goods WHERE text = md5('4711')")?;
    ensure!(found == "4711", "{database}: {found:?}");
    Ok(())
}

/// A stop just after a database was made has it whole, one just before has nothing of it, whichever way its files came to be.
fn made(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let mut story = Story::begin(&install)?;
    story.shop()?;
    let before = story.moment()?;
    let strategies: &[(&str, &str)] = match major {
        ..15 => &[("copied", "")],
        15.. => &[("logged", " STRATEGY wal_log"), ("copied", " STRATEGY file_copy")],
    };
    let mut moments = Vec::new();
    for (name, strategy) in strategies {
        story.site.cluster.psql(&format!("CREATE DATABASE {name} TEMPLATE shop{strategy}"))?;
        moments.push((*name, story.now()?));
    }
    story.end()?;
    let copy = story.at(&before, "before a database was made")?;
    ensure!(databases(&copy)? == "shop", "{}", databases(&copy)?);
    whole(&copy, "shop")?;
    for (name, moment) in &moments {
        let copy = story.at(moment, name)?;
        whole(&copy, name)?;
        whole(&copy, "shop")?;
        let later = moments.iter().filter(|(_, other)| other.time > moment.time).count();
        ensure!(
            databases(&copy)?.split(',').count() == 1 + strategies.len() - later,
            "{}",
            databases(&copy)?
        );
    }
    Ok(())
}

#[test]
fn a_database_of_13_is_whole_right_after_it_was_made_and_absent_before() -> Result<()> {
    made(13)
}

#[test]
fn a_database_of_15_is_whole_right_after_it_was_made_and_absent_before() -> Result<()> {
    made(15)
}

#[test]
fn a_database_of_18_is_whole_right_after_it_was_made_and_absent_before() -> Result<()> {
    made(18)
}

/// PREPARE is a place to stop at: without it the transaction would be lost, although it was promised. One that was made after the
/// moment, which PostgreSQL would replay, is not there.
fn prepared(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let mut story = Story::begin(&install)?;
    let before = story.moment()?;
    story
        .site
        .cluster
        .psql("BEGIN; INSERT INTO ledger VALUES (900, repeat(md5('900'), 4)); PREPARE TRANSACTION 'nine'")?;
    let promised = story.now()?;
    story.client.commits(2)?;
    story.site.cluster.psql("COMMIT PREPARED 'nine'")?;
    let mut kept = story.now()?;
    kept.rows.push(900);
    story.end()?;
    let open = "SELECT coalesce(string_agg(gid, ','), '') FROM pg_prepared_xacts";
    for (moment, gids, what) in [
        (&before, "", "before PREPARE"),
        (&promised, "nine", "after PREPARE"),
        (&kept, "", "after COMMIT PREPARED"),
    ] {
        let copy = story.at(moment, what)?;
        ensure!(copy.psql(open)? == gids, "{what}: {}", copy.psql(open)?);
        if gids == "nine" {
            copy.psql("COMMIT PREPARED 'nine'")?;
            let all: Vec<u64> = moment.rows.iter().copied().chain([900]).collect();
            assert_rows(&rows(&copy)?, &all, "after it was committed in the copy")?;
        }
    }
    Ok(())
}

#[test]
fn a_transaction_of_13_that_was_prepared_at_the_moment_can_still_be_committed() -> Result<()> {
    prepared(13)
}

#[test]
fn a_transaction_of_15_that_was_prepared_at_the_moment_can_still_be_committed() -> Result<()> {
    prepared(15)
}

#[test]
fn a_transaction_of_18_that_was_prepared_at_the_moment_can_still_be_committed() -> Result<()> {
    prepared(18)
}

/// A process of the server that stands still until this is dropped.
struct Held(Pid);

impl Held {
    fn checkpointer(cluster: &Cluster) -> Result<Self> {
        let pid = cluster.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")?;
        let held = Self(Pid::from_raw(pid.parse()?));
        kill(held.0, Signal::SIGSTOP)?;
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).ok();
    }
}

/// Until the commit of a drop the database is there for everybody, but not for a recovery that stops in between.
fn dropped(major: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let mut story = Story::begin(&install)?;
    story.shop()?;
    let before = story.moment()?;
    // A drop has written its first records and waits for a checkpoint, which does not come before others have committed.
    let Story { site, client } = &mut story;
    let during = thread::scope(|scope| {
        let held = Held::checkpointer(&site.cluster)?;
        let drop_it = scope.spawn(|| site.cluster.psql("DROP DATABASE shop"));
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event IN ('CheckpointStart', 'CheckpointDone')";
        site.cluster.wait_for(waiting, "1")?;
        client.commits(3)?;
        let during = client.log.iter().skip(before.rows.len()).cloned().collect::<Vec<_>>();
        drop(held);
        drop_it.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        anyhow::Ok(during)
    })?;
    story.client.commits(2)?;
    let gone = story.now()?;
    story.end()?;

    let copy = story.at(&before, "before the drop")?;
    whole(&copy, "shop")?;
    let copy = story.at(&gone, "after the drop")?;
    ensure!(databases(&copy)?.is_empty(), "{}", databases(&copy)?);
    // What was committed while the drop was under way cannot be had with the database, and that is said.
    let [first, .., last] = during.as_slice() else { anyhow::bail!("three commits: {during:?}") };
    for commit in [first, last] {
        let dir = story.site.place().join("nothing").display().to_string();
        let plan = story.site.ask(&[
            "restore",
            "--copy",
            "--dry-run",
            "--target-dir",
            &dir,
            "--to",
            &commit.time,
        ])?;
        plan.expect(0, &["was dropping a database"])?;
    }
    let inside = Moment { time: last.time.clone(), rows: before.rows.clone() };
    let copy = story.at(&inside, "inside the drop")?;
    whole(&copy, "shop")
}

#[test]
fn a_database_of_13_is_whole_at_every_moment_before_its_drop_was_committed() -> Result<()> {
    dropped(13)
}

#[test]
fn a_database_of_15_is_whole_at_every_moment_before_its_drop_was_committed() -> Result<()> {
    dropped(15)
}

#[test]
fn a_database_of_18_is_whole_at_every_moment_before_its_drop_was_committed() -> Result<()> {
    dropped(18)
}

/// A fast repository that keeps little is asked first; another one keeps more.
#[test]
fn a_moment_that_one_repository_does_not_reach_is_found_in_another() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions::default())?;
    site.cluster.psql("CREATE TABLE t AS SELECT 1 n")?;
    site.backup()?;
    site.cluster.psql("INSERT INTO t VALUES (2)")?;
    let moment = site
        .cluster
        .psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')")?
        + "Z";
    site.cluster.psql("INSERT INTO t VALUES (3)")?;
    site.switch()?;
    let section = |name: &str, place: &Path| {
        format!("[[repository]]\nname = \"{name}\"\nurl = \"file://{}\"\n", place.display())
    };
    let young = section("young", &site.place().join("young"));
    site.write_config(&format!("{young}{}", section("old", &site.repository)))?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--json"])?;
    site.backup()?;
    site.switch()?;
    let target = site.place().join("target").display().to_string();
    let restore = ["restore", "--copy", "--target-dir", &target, "--dry-run", "--to", &moment];
    let refused = site.ask(&restore)?;
    refused.expect(4, &["the earliest moment is", "repository old reaches it: --repository old"])?;
    site.ask(&[&restore[..], &["--repository", "old"]].concat())?.expect(0, &[])
}
