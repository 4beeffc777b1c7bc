//! `--to` on real servers: whatever zone the host, the server and the text are in, the moment is the same position in WAL.
//!
//! The oracle of local times is PostgreSQL's own `AT TIME ZONE`, that of rows the client's log. On the days on which clocks change, a
//! server with a clock of its own commits in the hour that did not exist or happened twice. Rules: RECOVERY 1, 4, 6, promise P6.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::clock::ServerClock;
use support::cluster::{Cluster, Install, Stop, give_to_server};
use support::log::{Client, Commit, assert_rows, rows};
use support::site::{Answer, Site, SiteOptions};

/// The `--to` of a plan and what is around it.
struct Plan<'a> {
    site: &'a Site,
    /// `timezone` of the configuration.
    configured: Option<&'a str>,
    /// `TZ` of the process.
    host: Option<&'a str>,
}

impl Plan<'_> {
    fn command(&self, to: &str) -> Result<Command> {
        let text = fs::read_to_string(&self.site.config)?;
        let line =
            self.configured.map_or_else(|| "# none".to_owned(), |zone| format!("timezone = \"{zone}\""));
        let text: String = text
            .lines()
            .map(|old| if old.starts_with("timezone") || old == "# none" { line.as_str() } else { old })
            .flat_map(|line| [line, "\n"])
            .collect();
        fs::write(&self.site.config, text)?;
        give_to_server(&self.site.config)?;
        let dir = self.site.place().join("nothing").display().to_string();
        let mut command = self.site.pitr(&[
            "restore",
            "--copy",
            "--dry-run",
            "--json",
            "--target-dir",
            &dir,
            "--to",
            to,
        ])?;
        match self.host {
            Some(zone) => command.env("TZ", zone),
            None => command.env_remove("TZ"),
        };
        Ok(command)
    }

    fn ask(&self, to: &str) -> Result<Answer> {
        Answer::of(&mut self.command(to)?)
    }

    /// Where recovery would stop.
    fn stop(&self, to: &str) -> Result<String> {
        let answer = self.ask(to)?;
        ensure!(answer.code == 0, "--to {to:?}: {answer:?}");
        let plan: Value = serde_json::from_str(&answer.out)?;
        Ok(plan["stop_lsn"].as_str().context("stop_lsn")?.to_owned())
    }
}

/// The moment as clocks in `zone` show it, says PostgreSQL.
fn local(cluster: &Cluster, moment: &str, zone: &str, format: &str) -> Result<String> {
    cluster.psql(&format!("SELECT to_char('{moment}'::timestamptz AT TIME ZONE '{zone}', '{format}')"))
}

const BLANK: &str = "YYYY-MM-DD HH24:MI:SS.US";
const ISO: &str = "YYYY-MM-DD\"T\"HH24:MI:SS.US";

/// Every way to write a moment, and the zone that the configuration must have for it.
fn forms(cluster: &Cluster, moment: &str) -> Result<Vec<(String, Option<&'static str>)>> {
    let at = |zone: &str, format: &str| local(cluster, moment, zone, format);
    let mut forms = vec![
        (moment.to_owned(), None),
        (moment.replace('T', " ").replace('Z', "+00"), None),
        (format!("{}+05:30", at("Asia/Kolkata", BLANK)?), None),
        (format!("{}+0530", at("Asia/Kolkata", ISO)?), None),
        (format!("{}+07", at("Asia/Jakarta", BLANK)?.replace('.', ",")), None),
        (format!("{} Asia/Kathmandu", at("Asia/Kathmandu", BLANK)?), None),
        (format!("{}[America/St_Johns]", at("America/St_Johns", ISO)?), None),
        (format!("{} Japan", at("Asia/Tokyo", BLANK)?), None),
        (format!("{} utc", at("UTC", BLANK)?), None),
    ];
    for zone in ["Asia/Jakarta", "America/New_York", "Australia/Lord_Howe", "UTC"] {
        forms.push((at(zone, BLANK)?, Some(zone)));
        forms.push((at(zone, ISO)?, Some(zone)));
    }
    // A configured zone changes nothing of a time that has its own.
    forms.push((moment.to_owned(), Some("Pacific/Chatham")));
    Ok(forms)
}

fn set_zone(cluster: &Cluster, zone: &str) -> Result<()> {
    cluster.psql(&format!(
        "ALTER SYSTEM SET timezone = '{zone}'; ALTER SYSTEM SET log_timezone = '{zone}'; SELECT pg_reload_conf()"
    ))?;
    cluster.wait_for("SHOW timezone", zone)
}

fn matrix(major: u32, servers: &[&str], hosts: &[Option<&str>]) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions::default())?;
    let mut client = Client::connect(&site.cluster, 1)?;
    client.commits(2)?;
    for (round, server) in servers.iter().enumerate() {
        set_zone(&site.cluster, server)?;
        site.backup()?;
        client.commits(2)?;
        let mark = client.commits(1)?;
        client.commits(2)?;
        site.cluster.psql("SELECT pg_create_restore_point('a sign of life')")?;
        site.switch()?;
        let position = Plan { site: &site, configured: None, host: None }.stop(&mark.time)?;
        for (n, (to, configured)) in forms(&site.cluster, &mark.time)?.into_iter().enumerate() {
            // All hosts with the first zone of the server, one of them in turn with the others.
            let some = if round == 0 { hosts } else { &hosts[n % hosts.len()..][..1] };
            for host in some {
                let stop = Plan { site: &site, configured, host: *host }.stop(&to)?;
                ensure!(
                    stop == position,
                    "{to:?} is {stop}, not {position}: {server} {host:?} {configured:?}"
                );
            }
        }
        let to = format!("{} {server}", local(&site.cluster, &mark.time, server, BLANK)?);
        let (copy, _) = site.restored(&["--to", &to])?;
        assert_rows(&rows(&copy)?, &client.up_to(&mark), server)?;
    }
    Ok(())
}

/// `:` and garbage are what a broken unit file or container puts into TZ.
#[test]
fn a_moment_of_15_is_the_same_in_every_zone_of_host_server_and_text() -> Result<()> {
    let hosts = [None, Some("Pacific/Chatham"), Some(":"), Some("garbage/\u{fc}")];
    matrix(15, &["Asia/Kolkata", "America/St_Johns", "Asia/Pyongyang"], &hosts)
}

#[test]
fn a_moment_of_18_is_the_same_in_every_zone_of_host_server_and_text() -> Result<()> {
    matrix(18, &["Australia/Lord_Howe"], &[Some("America/New_York")])
}

/// A host without a zone database, as in a slim container: the names are known all the same.
#[test]
fn zones_are_known_on_a_host_without_a_zone_database() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to hide /usr/share/zoneinfo");
        return Ok(());
    }
    let site = Site::new(&install, &SiteOptions::default())?;
    let mut client = Client::connect(&site.cluster, 1)?;
    site.backup()?;
    let mark = client.commits(2)?;
    client.commits(2)?;
    site.switch()?;
    let to = format!("{} Asia/Pyongyang", local(&site.cluster, &mark.time, "Asia/Pyongyang", BLANK)?);
    let plan = Plan { site: &site, configured: Some("Europe/Berlin"), host: Some("America/New_York") };
    let position = plan.stop(&mark.time)?;
    let inner = plan.command(&to)?;
    let mut hidden = Command::new("unshare");
    let script = "mount -t tmpfs none /usr/share/zoneinfo && test ! -e /usr/share/zoneinfo/UTC && exec \
                  setpriv --reuid=postgres --regid=postgres --init-groups \"$@\"";
    hidden.args(["-m", "/bin/sh", "-ec", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    let answer = Answer::of(hidden.current_dir(&site.cluster.data).env("TZ", "America/New_York"))?;
    ensure!(answer.code == 0, "{answer:?}");
    let found: Value = serde_json::from_str(&answer.out)?;
    ensure!(found["stop_lsn"] == position.as_str(), "{found} {position}");
    Ok(())
}

/// P6. What the text could mean is shown for UTC, the host and the server, whose zone the newest backup knows.
#[test]
fn a_time_without_a_zone_is_refused_with_its_readings_in_utc_host_and_server() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = Site::new(&install, &SiteOptions::default())?;
    set_zone(&site.cluster, "Asia/Kolkata")?;
    site.backup()?;
    let plan = |host, configured| Plan { site: &site, configured, host };
    let naive = "2025-10-17 10:30";
    plan(Some("America/New_York"), None).ask(naive)?.expect(
        3,
        &[
            "--to \"2025-10-17 10:30:00+00:00\"  (UTC)",
            "--to \"2025-10-17 10:30:00-04:00\"  (this host, America/New_York)",
            "--to \"2025-10-17 10:30:00+05:30\"  (the server, Asia/Kolkata)",
        ],
    )?;
    // A TZ that is no zone is not taken for UTC.
    let refused = plan(Some("garbage/x"), None).ask(naive)?;
    refused.expect(3, &["(UTC)", "(the server, Asia/Kolkata)"])?;
    ensure!(!refused.err.contains("this host"), "{refused:?}");
    // The end of a log line of that server. Its own zone comes first.
    let refused = plan(None, Some("UTC")).ask("2025-10-17 10:30:15.123 IST")?;
    refused.expect(3, &["\"IST\" is an abbreviation"])?;
    let readings: Vec<&str> =
        refused.err.lines().filter(|line| line.contains("--to \"")).map(str::trim).collect();
    let expected = [
        "--to \"2025-10-17 10:30:15.123000+05:30\"  (IST in Asia/Kolkata)",
        "--to \"2025-10-17 10:30:15.123000+01:00\"  (IST in Europe/Dublin)",
        "--to \"2025-10-17 10:30:15.123000+02:00\"  (IST in Asia/Jerusalem)",
        "--to \"2025-10-17 10:30:15.123000+03:00\"  (Asia/Jerusalem on that day)",
    ];
    ensure!(readings == expected, "{readings:?}");
    for to in ["yesterday", "10:30", "2025-10-17", "10/17/2025 10:30", "2025-10-17 10:30 am", "1 month ago"] {
        plan(None, Some("UTC")).ask(to)?.expect(3, &["--to", "HINT"])?;
    }
    // Nothing but the refusal: no plan, no directory.
    ensure!(!site.place().join("nothing").exists());
    Ok(())
}

/// A server on a clock of its own, with a backup; the clock stands at `start`.
fn on_its_own_clock(start: &str) -> Result<Option<(Site, ServerClock, Client)>> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(None) };
    let site = Site::new(&install, &SiteOptions::default())?;
    let Some(clock) = ServerClock::find_or_skip(site.place())? else { return Ok(None) };
    site.switch()?;
    site.cluster.stop(Stop::Fast)?;
    clock.set(start)?;
    clock.start(&site.cluster)?;
    // What was committed while it was made, by this host's clock, lies before all that is told here.
    fs::remove_dir_all(site.folder()?.join("wal"))?;
    let client = Client::connect(&site.cluster, 1)?;
    site.backup()?;
    Ok(Some((site, clock, client)))
}

/// Commits a row at this moment.
fn commit_at(clock: &ServerClock, client: &mut Client, moment: &str) -> Result<Commit> {
    clock.set(moment)?;
    let commit = client.commit()?;
    ensure!(commit.time.get(..16) == moment.get(..16), "the server's clock shows {}", commit.time);
    Ok(commit)
}

/// The texts of `--to` in a refusal.
fn offered(answer: &Answer) -> Vec<String> {
    let quoted = |line: &str| Some(line.split_once("--to \"")?.1.split_once('"')?.0.to_owned());
    answer.err.lines().filter_map(quoted).collect()
}

#[test]
fn hours_that_did_not_exist_or_happened_twice_are_refused_and_each_reading_is_its_own_moment() -> Result<()> {
    let Some((site, clock, mut client)) = on_its_own_clock("2018-05-04T14:00:00Z")? else { return Ok(()) };
    // Pyongyang went from +08:30 to +09:00 at 23:30 of 4 May 2018; Berlin skipped 02:00 of 30 March 2025, and had it twice on
    // 26 October; New York had 01:00 twice on 2 November.
    let moments = [
        "2018-05-04T14:40:00Z",
        "2018-05-04T15:10:00Z",
        "2025-03-30T00:20:00Z",
        "2025-03-30T01:20:00Z",
        "2025-10-26T00:20:00Z",
        "2025-10-26T01:20:00Z",
        "2025-11-02T05:20:00Z",
        "2025-11-02T06:20:00Z",
    ];
    let mut commits = Vec::new();
    for moment in moments {
        commits.push(commit_at(&clock, &mut client, moment)?);
    }
    clock.set("2025-11-02T08:00:00Z")?;
    site.cluster.psql("SELECT pg_create_restore_point('a sign of life')")?;
    site.switch()?;
    let cases = [
        ("2018-05-04 23:45", "Asia/Pyongyang", "did not exist", 0),
        ("2025-03-30 02:30", "Europe/Berlin", "did not exist", 2),
        ("2025-10-26 02:30", "Europe/Berlin", "happened twice", 4),
        ("2025-11-02 01:30", "America/New_York", "happened twice", 6),
    ];
    for (to, zone, word, first) in cases {
        let plan = Plan { site: &site, configured: Some(zone), host: Some("Asia/Jakarta") };
        let named = plan.ask(&format!("{to} {zone}"))?;
        named.expect(3, &[word, zone])?;
        let naive = plan.ask(to)?;
        naive.expect(3, &[word, zone])?;
        let readings = offered(&naive);
        ensure!(readings.len() == 2 && offered(&named) == readings, "{naive:?}");
        for (reading, commit) in readings.iter().zip(&commits[first..]) {
            let stop = plan.stop(reading)?;
            let expected = plan.stop(&commit.time)?;
            ensure!(stop == expected, "{to} {zone}: {reading} is {stop}, not {expected}");
        }
    }
    // One of them to its end, with rows.
    let plan = Plan { site: &site, configured: Some("Europe/Berlin"), host: None };
    let second = offered(&plan.ask("2025-10-26 02:30")?).pop().context("two readings")?;
    let (copy, _) = site.restored(&["--to", &second])?;
    assert_rows(&rows(&copy)?, &client.up_to(&commits[5]), "the second 02:30")
}

/// RECOVERY 4. PostgreSQL would stop at the first commit past the target, and lose what the clock dates before it.
#[test]
fn a_clock_that_was_set_back_is_refused_with_both_moments_and_an_lsn_decides() -> Result<()> {
    let Some((site, clock, mut client)) = on_its_own_clock("2025-10-17T12:00:00Z")? else { return Ok(()) };
    let early = commit_at(&clock, &mut client, "2025-10-17T12:01:00Z")?;
    let passed = commit_at(&clock, &mut client, "2025-10-17T12:30:00Z")?;
    // Half an hour back: a commit later in WAL than one of 12:30.
    let late = commit_at(&clock, &mut client, "2025-10-17T12:05:00Z")?;
    commit_at(&clock, &mut client, "2025-10-17T12:40:00Z")?;
    site.cluster.psql("SELECT pg_create_restore_point('a sign of life')")?;
    site.switch()?;
    let plan = Plan { site: &site, configured: None, host: None };
    let refused = plan.ask("2025-10-17 12:10 UTC")?;
    refused.expect(4, &["clock was set back", "12:30:0", "12:05:0", "--to-lsn"])?;
    let lsns: Vec<&str> =
        refused.err.split("--to-lsn ").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect();
    let [one, other] = lsns[..] else { anyhow::bail!("two positions: {refused:?}") };
    for (lsn, last) in [(one, &early), (other, &late)] {
        let (copy, _) = site.restored(&["--to-lsn", lsn])?;
        assert_rows(&rows(&copy)?, &client.up_to(last), lsn)?;
    }
    // Where the clock leaves no doubt, a time is enough: before anything went wrong, and after.
    for (to, last) in [("2025-10-17 12:03 UTC", &early), ("2025-10-17 12:35 UTC", &late)] {
        let stop = plan.stop(to)?.parse::<pitr::wal::Lsn>()?;
        ensure!(last.before <= stop && stop < last.after, "{to}: {stop} is not the commit of {last:?}");
    }
    ensure!(passed.n < late.n);
    Ok(())
}

/// A backup that began before the target by the clock holds a commit of after it, which lies before the backup in WAL.
#[test]
fn a_backup_that_was_taken_after_the_clock_was_set_back_holds_what_came_before() -> Result<()> {
    let Some((site, clock, mut client)) = on_its_own_clock("2025-10-17T12:00:00Z")? else { return Ok(()) };
    let early = commit_at(&clock, &mut client, "2025-10-17T12:01:00Z")?;
    commit_at(&clock, &mut client, "2025-10-17T12:30:00Z")?;
    clock.set("2025-10-17T12:02:00Z")?;
    site.switch()?;
    let id = site.backup()?["id"].as_str().context("an id")?.to_owned();
    let late = commit_at(&clock, &mut client, "2025-10-17T12:05:00Z")?;
    commit_at(&clock, &mut client, "2025-10-17T12:40:00Z")?;
    site.cluster.psql("SELECT pg_create_restore_point('a sign of life')")?;
    site.switch()?;
    let plan = Plan { site: &site, configured: None, host: None };
    let (copy, _) = site.restored(&["--to", "2025-10-17 12:03 UTC"])?;
    assert_rows(&rows(&copy)?, &client.up_to(&early), "12:03")?;
    plan.ask("2025-10-17 12:10 UTC")?.expect(4, &["clock was set back", "12:30:0", "--to-lsn"])?;
    let (copy, _) = site.restored(&["--to", "2025-10-17 12:35 UTC"])?;
    assert_rows(&rows(&copy)?, &client.up_to(&late), "12:35")?;
    // Whoever names that backup takes what it holds, and is told. Where there is no older one, he must.
    let named = ["--to", "2025-10-17 12:03 UTC", "--backup", &id];
    let (copy, report) = site.restored(&named)?;
    ensure!(report.to_string().contains("committed up to 2025-10-17 12:30:0"), "{report}");
    ensure!(rows(&copy)?.len() == 2, "both rows that lie before it");
    let mut older = None;
    for entry in fs::read_dir(site.folder()?.join("backups"))? {
        older = older.max(Some(entry?.path()).filter(|path| !path.ends_with(&id)));
    }
    fs::remove_dir_all(older.context("the first backup")?)?;
    plan.ask("2025-10-17 12:03 UTC")?.expect(4, &["cannot be told", &id, "12:30:0", "--backup"])
}

/// "30 minutes ago" is counted on this host's clock; the server's last commits were made an hour ago by its own.
#[test]
fn elapsed_time_is_counted_back_from_now_whatever_the_zones() -> Result<()> {
    let ago = |minutes: i64| {
        let moment = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(minutes);
        moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    let Some((site, clock, mut client)) = on_its_own_clock(&ago(90))? else { return Ok(()) };
    clock.set(&ago(60))?;
    let mark = client.commit()?;
    clock.set(&ago(20))?;
    client.commit()?;
    site.cluster.psql("SELECT pg_create_restore_point('a sign of life')")?;
    site.switch()?;
    for to in ["30 minutes ago", "0h 40 min ago", "1800s ago", "2400 Seconds Ago"] {
        for host in ["America/New_York", "Asia/Kathmandu", "garbage/x"] {
            let stop = Plan { site: &site, configured: None, host: Some(host) }.stop(to)?;
            let stop = stop.parse::<pitr::wal::Lsn>()?;
            ensure!(mark.before <= stop && stop < mark.after, "{to}: {stop} is not the commit of {mark:?}");
        }
    }
    // An hour that is still to come.
    let future = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string();
    let plan = Plan { site: &site, configured: None, host: None };
    plan.ask(future.get(..16).map(|minute| format!("{minute}Z")).as_deref().unwrap_or_default())?
        .expect(4, &["in the future", "not covered"])
}

/// One second before a table was emptied, and one before another was dropped.
#[test]
fn a_second_before_truncate_or_drop_table_the_rows_are_there() -> Result<()> {
    let Some((site, clock, mut client)) = on_its_own_clock("2025-10-17T12:00:00Z")? else { return Ok(()) };
    for table in ["emptied", "dropped"] {
        site.cluster.psql(&format!("CREATE TABLE {table} AS SELECT n FROM generate_series(1, 1000) n"))?;
    }
    let mark = commit_at(&clock, &mut client, "2025-10-17T12:05:00Z")?;
    clock.set("2025-10-17T12:10:00Z")?;
    site.cluster.psql("TRUNCATE emptied")?;
    clock.set("2025-10-17T12:20:00Z")?;
    site.cluster.psql("DROP TABLE dropped")?;
    clock.set("2025-10-17T12:30:00Z")?;
    client.commit()?;
    site.switch()?;
    let sum = "SELECT (SELECT count(*) FROM emptied), (SELECT sum(n) FROM dropped)";
    for (to, expected) in [("2025-10-17T12:09:59Z", "1000|500500"), ("2025-10-17 14:19:59+02", "0|500500")] {
        let (copy, _) = site.restored(&["--to", to])?;
        let found = copy.psql(sum)?;
        ensure!(found == expected, "{to}: {found}, not {expected}");
        assert_rows(&rows(&copy)?, &client.up_to(&mark), to)?;
    }
    Ok(())
}
