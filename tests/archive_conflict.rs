//! Two primaries archive under one name: the refusal says of both what can be known, and nothing that cannot.
//!
//! ```text
//!  host db1: server ──► segment, backup ──► repository ◄──── the same name, other bytes ── server :host db2
//!       └── its data directory, copied ────────────────────────────────────────────────────────┘
//! ```
//! Two real servers of one system identifier on one timeline, each on a host of its own name (a UTS namespace). What is said is read where
//! people do: in the server's log, from the command, and from the agent.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use support::agent::{Agent, own_repository, status};
use support::cluster::{Cluster, Install, Stop, as_server_on, give_to_server, has_hosts, run};
use support::site::{Answer, Site, SiteOptions, until};

const FIRST: &str = "db1";
const SECOND: &str = "db2";

/// Starts a server on a host of that name.
fn start(cluster: &Cluster, host: &str) -> Result<()> {
    let mut command = as_server_on(host, cluster.install.bin.join("pg_ctl"))?;
    command.args(["-s", "-w", "-t", "90", "-D"]).arg(&cluster.data).arg("-l").arg(&cluster.log).arg("start");
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "{host}: {}", cluster.log_text());
    Ok(())
}

/// Both primaries: the one that was there before, and the copy of it.
struct Brain {
    site: Site,
    other: Site,
    backup: String,
}

impl Brain {
    /// None, said as a skipped test does, where there cannot be two hosts.
    fn split() -> Result<Option<Self>> {
        let Some(install) = Install::find_or_skip(15).filter(|_| has_hosts()) else { return Ok(None) };
        let conf = "wal_keep_size = 4GB\nautovacuum = off\n";
        let site = Site::new(&install, &SiteOptions { conf, ..SiteOptions::default() })?;
        site.cluster.psql("CREATE TABLE t (n int)")?;
        site.switch()?;
        let answer = Answer::of(&mut site.pitr_on(FIRST, &["backup", "--full", "--json"])?)?;
        answer.expect(0, &[])?;
        let done: serde_json::Value = serde_json::from_str(&answer.out)?;
        let backup = done["id"].as_str().context("an id")?.to_owned();
        site.cluster.stop(Stop::Fast)?;
        let copy = Cluster::around(&install)?;
        run(Command::new("cp").arg("-a").args([&site.cluster.data, &copy.data]))?;
        copy.append_conf("postgresql.conf", &copy.own_settings())?;
        let other = site.beside(copy, "other.toml")?;
        start(&site.cluster, FIRST)?;
        start(&other.cluster, SECOND)?;
        let command = site.cluster.psql("SHOW archive_command")?;
        let [own, others] = [&site, &other].map(|site| site.config.display().to_string());
        ensure!(command.contains(&own), "{command}");
        let command = command.replace(&own, &others).replace('\'', "''");
        other.cluster.psql(&format!("ALTER SYSTEM SET archive_command = '{command}'"))?;
        other.cluster.psql("SELECT pg_reload_conf()")?;
        Ok(Some(Self { site, other, backup }))
    }

    /// Each writes a segment of the same name; the first one's is stored. Its name.
    fn diverge(&self) -> Result<String> {
        self.site.cluster.psql("INSERT INTO t VALUES (1)")?;
        let name = self.site.switch()?;
        self.other.cluster.psql("INSERT INTO t VALUES (2), (3)")?;
        self.other.cluster.psql("SELECT pg_switch_wal()")?;
        Ok(name)
    }

    fn logged(&self, words: &[&str]) -> Result<()> {
        let log = || self.other.cluster.log_text();
        until(|| Ok(words.iter().all(|word| log().contains(word))), || format!("not {words:?} in {}", log()))
    }

    fn said_of_the_second(&self) -> String {
        format!("offered by host {SECOND} from {}", self.other.cluster.data.display())
    }
}

#[test]
fn a_segment_that_two_primaries_wrote_is_refused_with_the_names_of_both() -> Result<()> {
    let Some(brain) = Brain::split()? else { return Ok(()) };
    let name = brain.diverge()?;
    let (offered, backup) = (brain.said_of_the_second(), &brain.backup);
    let taken = format!("backups on timeline 1 were begun by host {FIRST} (last: {backup})");
    let both = [&*name, "is already archived in repository", "the first difference is at", &offered, &taken];
    brain.logged(&both)?;
    let push = format!("pg_wal/{name}");
    let on = |host: &str, args: &[&str]| Answer::of(&mut brain.other.pitr_on(host, args)?);
    let answer = on(SECOND, &["archive-push", &push])?;
    answer.expect(9, &both)?;
    // Times of both, and they are those of the servers: nobody committed on another day.
    let day = brain.site.cluster.psql("SELECT to_char(now(), 'YYYY-MM-DD')")?;
    let times: Vec<&str> = answer.err.lines().filter(|line| line.contains("commit")).collect();
    ensure!(times.len() == 2 && times.iter().all(|line| line.contains(&day)), "{times:?}");
    ensure!(times[1].contains(" by the store's clock"), "{times:?}");
    // With its JSON it is one object.
    let answer = on(SECOND, &["--json", "archive-push", &push])?;
    let said: serde_json::Value = serde_json::from_str(&answer.out)?;
    ensure!(said.to_string().contains(&taken) && said.to_string().contains(&offered), "{said}");
    // A host that finds only its own name there cannot tell who it was.
    let own = "which is this one's name: who stored it is not known";
    on(FIRST, &["archive-push", &push])?.expect(9, &[&format!("(last: {backup}), {own}")])?;
    // A backup that the second begins names it too.
    on(SECOND, &["backup", "--full"])?.expect(0, &[])?;
    let named = format!("host {SECOND}, which is this one's name (last: ");
    let both = format!(", host {FIRST} (last: {backup})");
    on(SECOND, &["archive-push", &push])?.expect(9, &[&named, &both])?;
    ensure!(fs::read(brain.site.object(&name)?)?.len() > 512 && brain.site.object(&name)?.exists());
    Ok(())
}

#[test]
fn the_agent_says_of_both_primaries_what_the_command_says() -> Result<()> {
    let Some(brain) = Brain::split()? else { return Ok(()) };
    let name = brain.diverge()?;
    let other = &brain.other;
    let socket = other.place().join("agent.sock");
    other.write_config(&format!(
        "[agent]\nsocket = \"{}\"\n{}",
        socket.display(),
        own_repository(&brain.site)
    ))?;
    let agent = Agent::spawn(other, other.pitr_on(SECOND, &["-v", "agent"])?)?;
    until(|| Ok(other.ask(&["agent", "--status"])?.code != 5), || agent.log())?;
    let offered = brain.said_of_the_second();
    let taken = format!("backups on timeline 1 were begun by host {FIRST} (last: {})", brain.backup);
    let refused = || Ok(status(other)?["refused"].as_u64() >= Some(1));
    until(refused, || format!("{:?}\n{}", status(other), agent.log()))?;
    let said = status(other)?;
    let why = said["first_refused"]["why"].as_str().context("a reason")?;
    ensure!(
        said["first_refused"]["file"] == name && why.contains(&offered) && why.contains(&taken),
        "{said}"
    );
    let shown = other.ask(&["agent", "--status"])?;
    ensure!(shown.code == 2 && shown.out.contains(&offered) && shown.out.contains(&taken), "{shown:?}");
    ensure!(agent.log().contains(&offered) && agent.log().contains(&taken), "{}", agent.log());
    let answer = Answer::of(&mut other.pitr_on(SECOND, &["archive-push", &format!("pg_wal/{name}")])?)?;
    answer.expect(9, &["the agent leaves this one to archive-push itself", &offered, &taken])?;
    agent.end(Signal::SIGTERM)?;
    Ok(())
}

/// Ends recovery at once on a new timeline, as a promotion does.
fn promote(site: &Site, host: &str) -> Result<String> {
    site.cluster.stop(Stop::Fast)?;
    site.cluster.append_conf("postgresql.auto.conf", "restore_command = '/bin/false'\n")?;
    let signal = site.cluster.data.join("recovery.signal");
    fs::write(&signal, "")?;
    give_to_server(&signal)?;
    start(&site.cluster, host)?;
    site.cluster.wait_for("SELECT pg_is_in_recovery()", "f")?;
    let history = fs::read_to_string(site.cluster.data.join("pg_wal/00000002.history"))?;
    let fork = history.lines().last().and_then(|line| line.split('\t').nth(1)).context("a fork")?;
    Ok(fork.to_owned())
}

#[test]
fn a_history_that_two_promoted_servers_wrote_is_refused_with_the_names_of_both() -> Result<()> {
    let Some(brain) = Brain::split()? else { return Ok(()) };
    brain.diverge()?;
    brain.other.cluster.psql("INSERT INTO t SELECT generate_series(1, 1000)")?;
    let stored = promote(&brain.site, FIRST)?;
    let history = brain.site.object("00000002.history")?;
    until(|| Ok(history.exists()), || brain.site.cluster.log_text())?;
    let own = promote(&brain.other, SECOND)?;
    ensure!(stored != own, "{stored}");
    let offered = brain.said_of_the_second();
    let forks = format!("the stored one leaves timeline 1 at {stored}, the offered one timeline 1 at {own}");
    let nobody = "no backup on timeline 2 names a host: who stored it is not known";
    brain.logged(&["00000002.history is already archived", &forks, &offered, nobody])?;
    // A segment of that timeline shows it as well, and so does one that begins a backup.
    let segment = brain.other.cluster.psql("SELECT pg_walfile_name(pg_switch_wal())")?;
    let on = |args: &[&str]| Answer::of(&mut brain.other.pitr_on(SECOND, args)?);
    let words = ["00000002.history", "this server left its parent elsewhere", &forks, &offered, nobody];
    on(&["archive-push", &format!("pg_wal/{segment}")])?.expect(9, &words)?;
    let answer = Answer::of(&mut brain.site.pitr_on(FIRST, &["backup", "--full"])?)?;
    answer.expect(0, &[])?;
    let taken = format!("backups on timeline 2 were begun by host {FIRST} (last: ");
    on(&["archive-push", &format!("pg_wal/{segment}")])?.expect(9, &[&forks, &taken])?;
    // Which of two that began within one second is the newer one, their ids do not tell.
    let (second, first) = (format!("host {SECOND}, which is"), format!("host {FIRST} (last: "));
    let words = ["it left its parent elsewhere", " by the store's clock", &second, &first];
    on(&["backup", "--full"])?.expect(9, &words)
}

/// Whatever becomes of the looking, a refusal stays one.
#[cfg(feature = "testing")]
#[test]
fn evidence_that_cannot_be_read_is_said_and_changes_no_refusal() -> Result<()> {
    let Some(brain) = Brain::split()? else { return Ok(()) };
    let name = brain.diverge()?;
    let offered = brain.said_of_the_second();
    for (faults, words) in [
        ("fail@list/backups:1+", "which hosts began backups on timeline 1 could not be read"),
        ("stall@list/backups:1+", "which hosts began backups on timeline 1 could not be read"),
        ("deny@open/intent.json:1+", "(not all could be looked at): who stored it is not known"),
        ("fail@head:1+", "stored at a time that the store does not tell"),
    ] {
        let mut command = as_server_on(SECOND, "env")?;
        command.arg(format!("PITR_TEST_FAULTS={faults}")).arg(brain.other.program()).arg("--config");
        command.arg(&brain.other.config).args(["archive-push", &format!("pg_wal/{name}")]);
        let answer = Answer::of(command.current_dir(&brain.other.cluster.data))?;
        answer.expect(9, &[&offered, words]).with_context(|| faults.to_owned())?;
    }
    Ok(())
}
