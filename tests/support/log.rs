//! A client that keeps its own log: what it committed, in which order, and between which moments.
//!
//! It is the oracle of restores: a restored server must hold exactly the rows whose commits its log puts before the target, no
//! row more and none less. One client commits one transaction at a time, so its log has no doubt in it, whatever others do at
//! the same time. It speaks to the server through `psql`, which is not ours.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pitr::wal::Lsn;

use super::cluster::{Cluster, run};

/// One transaction of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The row it inserted.
    pub n: u64,
    /// Its transaction number.
    pub xid: u32,
    /// A position before its commit record.
    pub before: Lsn,
    /// A position at or after the end of its commit record.
    pub after: Lsn,
    /// A moment after its commit and before the next one, on the server's clock, RFC 3339.
    pub time: String,
}

/// The client. Its rows are in the table `ledger`.
#[derive(Debug)]
pub struct Client {
    psql: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    /// What it committed, in order.
    pub log: Vec<Commit>,
    next: u64,
}

/// Between two commits beside other work: without it a slow backup drowns in its own load.
const BREATH: Duration = Duration::from_millis(5);

/// As many rows as an error names.
const SHOWN: usize = 20;

/// The server's clock in RFC 3339.
pub const CLOCK: &str = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

impl Client {
    /// Connects; `first` is the number of its first row. The table is made if it is not there.
    pub fn connect(cluster: &Cluster, first: u64) -> Result<Self> {
        cluster.psql("CREATE TABLE IF NOT EXISTS ledger (n bigint PRIMARY KEY, text text)")?;
        let mut psql = cluster.client("psql", "postgres")?;
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = psql.spawn().context("cannot start psql")?;
        let to = psql.stdin.take();
        let from = BufReader::new(psql.stdout.take().context("no pipe")?);
        Ok(Self { psql, to, from, log: Vec::new(), next: first })
    }

    /// Commits one row.
    pub fn commit(&mut self) -> Result<Commit> {
        let n = self.next;
        let sql = format!(
            "BEGIN; INSERT INTO ledger VALUES ({n}, repeat(md5('{n}'), 4));\n\
             SELECT pg_current_xact_id()::text || ' ' || pg_current_wal_insert_lsn();\nCOMMIT;\n\
             SELECT {CLOCK} || ' ' || pg_current_wal_insert_lsn();\n"
        );
        let to = self.to.as_mut().context("it was closed")?;
        to.write_all(sql.as_bytes())?;
        to.flush()?;
        let ((xid, before), (time, after)) = (self.pair()?, self.pair()?);
        let commit = Commit { n, xid: xid.parse()?, before: before.parse()?, after: after.parse()?, time };
        self.log.push(commit.clone());
        self.next += 1;
        Ok(commit)
    }

    /// Commits `count` rows; the last one.
    pub fn commits(&mut self, count: usize) -> Result<Commit> {
        for _ in 0..count {
            self.commit()?;
        }
        self.log.last().cloned().context("nothing was committed")
    }

    /// Commits all the time while `work` runs.
    pub fn during<T: Send>(&mut self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let result = work();
                done.store(true, Ordering::Release);
                result
            });
            while !done.load(Ordering::Acquire) && !worker.is_finished() {
                self.commit()?;
                thread::sleep(BREATH);
            }
            worker.join().map_err(|_| anyhow::anyhow!("it panicked"))?
        })
    }

    /// The rows up to and with `last`, as [`rows`] tells them.
    pub fn up_to(&self, last: &Commit) -> Vec<u64> {
        self.log.iter().map(|c| c.n).filter(|n| *n <= last.n).collect()
    }

    /// All rows.
    pub fn all(&self) -> Vec<u64> {
        self.log.iter().map(|c| c.n).collect()
    }

    fn pair(&mut self) -> Result<(String, String)> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let (one, two) = line.trim_end().split_once(' ').with_context(|| format!("psql said {line:?}"))?;
        Ok((one.to_owned(), two.to_owned()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.to.take()); // psql ends at the end of its input
        self.psql.kill().ok();
        self.psql.wait().ok();
    }
}

/// The rows that a server holds.
pub fn rows(cluster: &Cluster) -> Result<Vec<u64>> {
    let text = cluster.psql("SELECT n FROM ledger WHERE text = repeat(md5(n::text), 4) ORDER BY n")?;
    Ok(text.lines().map(str::parse).collect::<Result<_, _>>()?)
}

/// Fails with the difference, not with thousands of numbers.
pub fn assert_rows(found: &[u64], expected: &[u64], what: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let set = |rows: &[u64]| rows.iter().copied().collect::<BTreeSet<u64>>();
    let (found, expected) = (set(found), set(expected));
    let missing: Vec<_> = expected.difference(&found).take(SHOWN).collect();
    let surplus: Vec<_> = found.difference(&expected).take(SHOWN).collect();
    bail!(
        "{what}: {} rows, expected {}; missing {missing:?}, too many {surplus:?}",
        found.len(),
        expected.len()
    )
}

/// pgbench in the background, until it is dropped.
#[derive(Debug)]
pub struct Load(Child);

impl Load {
    /// Makes pgbench's tables and starts two clients at `rate` transactions per second.
    pub fn on(cluster: &Cluster, rate: u32) -> Result<Self> {
        run(cluster.client("pgbench", "postgres")?.args(["-i", "-q", "-s", "1"]))?;
        let mut bench = cluster.client("pgbench", "postgres")?;
        bench.args(["-n", "-c", "2", "-T", "600", "-R"]).arg(rate.to_string());
        Ok(Self(bench.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    /// Ends it, and waits until none of its transactions is under way.
    pub fn end(self, cluster: &Cluster) -> Result<()> {
        drop(self);
        cluster.wait_for("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'", "0")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What pgbench's transactions keep true, each of them as a whole: the same sum in four tables.
pub fn assert_balanced(cluster: &Cluster) -> Result<()> {
    let sums = cluster.psql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),\n\
         (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    )?;
    let mut parts: Vec<_> = sums.split('|').collect();
    parts.dedup();
    ensure!(parts.len() == 1, "half a transaction was restored: {sums}");
    Ok(())
}
