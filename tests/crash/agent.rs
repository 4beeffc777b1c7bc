//! The agent: what it said yes to is there, and recovery gets what it would have got, wherever the agent is killed.
//!
//! It dies at named points of its own (`agent-takes`, `agent-stored`, `agent-answers`, `agent-fetched`, `agent-hands-over`), at any step on the
//! local file system, and before and after calls of the store. Real servers archive through it; the oracle is their own file. Its client
//! dies when it has asked, has heard, and has put the file in its place (`thin-asked`, `thin-answered`, `thin-moved`).

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use std::os::unix::process::ExitStatusExt as _;

use super::support::agent::{Agent, all_archived, all_is_there, configure, marked, own_repository};
use super::support::cluster::Install;
use super::support::recovering::{Recovering, archived};
use super::support::site::{Answer, Site, SiteOptions, small_site};
use super::{KILLED, Point};

/// How long an agent may take to come to its point on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);
/// Beyond these the points are those of other files, and alike.
const MOST: u64 = 5;
/// How often a round begins anew whose agent was too slow to be heard.
const HEARINGS: u32 = 5;

/// An agent that will be killed, and listens until then.
fn doomed(site: &Site, point: Point, nth: u64, socket: &Path) -> Result<Agent> {
    let mut command: Command = site.pitr(&["-v", "agent"])?;
    point.arm(nth, &mut command);
    let mut agent = Agent::spawn(site, command)?;
    // What waits already may have brought it to its point before it listens. Its socket has a name before anybody listens there.
    while UnixStream::connect(socket).is_err() && agent.ends_within(Duration::from_millis(50))?.is_none() {}
    Ok(agent)
}

fn was_killed(agent: &mut Agent, what: &str) -> Result<()> {
    let ended =
        agent.ends_within(PATIENCE)?.with_context(|| format!("{what}: it lives on\n{}", agent.log()))?;
    ensure!(ended.signal() == Some(9), "{what}: {ended:?}\n{}", agent.log());
    Ok(())
}

#[test]
fn what_an_agent_acknowledged_is_there_wherever_it_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    let socket = configure(&site, &own_repository(&site))?;
    let named = ["agent-takes", "agent-stored", "agent-answers"].map(Point::StepNamed);
    for point in named.into_iter().chain(Point::ALL) {
        for nth in 1..=MOST {
            let what = format!("{point:?} {nth}");
            // A dead one's socket is not one that a new one listens at.
            std::fs::remove_file(&socket).ok();
            let mut agent = doomed(&site, point, nth, &socket)?;
            // A segment of 1 MiB for each point, and one more.
            for _ in 0..=nth {
                site.cluster.psql("INSERT INTO t SELECT n, 'more' FROM generate_series(1, 100) n")?;
                site.cluster.psql("SELECT pg_switch_wal()")?;
            }
            was_killed(&mut agent, &what)?;
        }
        // PostgreSQL goes on alone, and all that it was told is true.
        all_archived(&site)?;
        ensure!(all_is_there(&site)? >= 5, "{point:?}");
    }
    let done = marked(&site, ".done")?;
    ensure!(done.len() > 60, "{done:?}");
    Ok(())
}

/// Waits until all is fetched ahead that will be, by the agent or, when it has died, by whoever follows it.
fn fetched_or_dead(at: &Recovering, agent: &mut Agent) -> Result<()> {
    let began = Instant::now();
    while at.spooled().len() < 8 && agent.ends_within(Duration::from_millis(20))?.is_none() {
        ensure!(began.elapsed() < PATIENCE, "{:?}\n{}", at.spooled(), agent.log());
    }
    Ok(())
}

#[test]
fn recovery_gets_every_segment_wherever_its_agent_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let site = small_site(&install)?;
    site.cluster.psql("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 130000) n")?;
    let last = site.switch()?;
    let names: Vec<String> = marked(&site, ".done")?.into_iter().filter(|name| *name <= last).collect();
    ensure!(names.len() > 10, "{names:?}");
    let own = std::fs::read_to_string(&site.config)?;
    let named = ["agent-fetched", "agent-hands-over", "agent-answers"].map(Point::StepNamed);
    for point in named.into_iter().chain(Point::ALL) {
        for nth in 1..=MOST {
            let what = format!("{point:?} {nth}");
            let mut hearings = 0..HEARINGS;
            while !recovered(&site, &names, point, nth, hearings.next().context("it never hears in time")?)
                .with_context(|| what.clone())?
            {
                std::fs::write(&site.config, &own)?;
            }
            std::fs::write(&site.config, &own)?;
        }
    }
    Ok(())
}

/// A recovery of all segments beside an agent that is killed; false if the agent did not hear its first question in time, on a machine that is
/// busy with other tests: whoever asks works alone then, fetches ahead alone, and the agent comes to none of its points.
fn recovered(site: &Site, names: &[String], point: Point, nth: u64, hearing: u32) -> Result<bool> {
    let directory = format!("{point:?}-{nth}-{hearing}").replace(['"', ' ', '(', ')'], "");
    let at = Recovering::new(site, &directory)?;
    let socket = configure(site, &own_repository(site))?;
    let text = std::fs::read_to_string(&site.config)?;
    let (data, recovering) = (site.cluster.data.display().to_string(), at.data.display().to_string());
    std::fs::write(&site.config, text.replace(&data, &recovering))?;
    std::fs::remove_file(&socket).ok();
    let mut agent = doomed(site, point, nth, &socket)?;
    let mut said = String::new();
    for name in names {
        let answer = at.ask(site, name, &["--timeline", "1"])?;
        ensure!(answer.code == 0, "{name}: {answer:?}\n{}", agent.log());
        at.replayed(site, name)?;
        said += &format!("{name}: {}\n", answer.err);
        // Whoever asks faster than anything is fetched ahead passes none of its points.
        if *name == names[0] {
            if !answer.err.is_empty() && agent.ends_within(Duration::ZERO)?.is_none() {
                return Ok(false);
            }
            fetched_or_dead(&at, &mut agent)?;
        }
    }
    was_killed(&mut agent, &directory).context(said)?;
    Ok(true)
}

/// The client's answer when it is killed at its point of this name; it must get there.
fn killed_at(name: &'static str, mut command: Command) -> Result<()> {
    Point::StepNamed(name).arm(1, &mut command);
    let answer = Answer::of(&mut command)?;
    ensure!(answer.code == KILLED, "{name}: {answer:?}");
    Ok(())
}

/// The next client was answered by the agent, and did not have to work alone.
fn answered_by_the_agent(answer: &Answer, what: &str, agent: &Agent) -> Result<()> {
    ensure!(answer.code == 0 && answer.err.is_empty(), "{what}: {answer:?}\n{}", agent.log());
    Ok(())
}

#[test]
fn a_push_beside_an_agent_that_is_killed_at_any_stage_can_be_repeated() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    // What is not archived by the server: each file is the test's to push.
    let conf = "wal_keep_size = 4GB\nautovacuum = off\n";
    let site = Site::new(&install, &SiteOptions { archives: false, conf, ..SiteOptions::default() })?;
    configure(&site, &own_repository(&site))?;
    let agent = Agent::start(&site)?;
    for round in 0..3 {
        for point in ["thin-asked", "thin-answered"] {
            let name = site.cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")?;
            site.cluster.psql(&format!("CREATE TABLE \"{point}-{round}\" ()"))?;
            site.cluster.psql("SELECT pg_switch_wal()")?;
            let (what, path) = (format!("{point} {round}: {name}"), format!("pg_wal/{name}"));
            let own = std::fs::read(site.cluster.data.join(&path))?;
            killed_at(point, site.pitr(&["archive-push", &path])?)?;
            let to = site.place().join("fetched");
            let get = ["archive-get", &name, &to.display().to_string()].map(str::to_owned);
            let there = || -> Result<()> {
                let answer = site.ask(&get.each_ref().map(String::as_str))?;
                ensure!(answer.code == 0 && std::fs::read(&to)? == own, "{what}: {answer:?}");
                Ok(())
            };
            // It had heard a yes.
            if point == "thin-answered" {
                there()?;
            }
            answered_by_the_agent(&site.ask(&["archive-push", &path])?, &what, &agent)?;
            there()?;
        }
    }
    Ok(())
}

#[test]
fn a_get_beside_an_agent_that_is_killed_at_any_stage_can_be_repeated() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 130_000)?;
    let at = Recovering::new(&site, "recovering")?;
    configure(&site, &own_repository(&site))?;
    let text = std::fs::read_to_string(&site.config)?;
    let (data, recovering) = (site.cluster.data.display().to_string(), at.data.display().to_string());
    std::fs::write(&site.config, text.replace(&data, &recovering))?;
    let agent = Agent::start(&site)?;
    let points = ["thin-asked", "thin-answered", "thin-moved"];
    ensure!(names.len() > points.len() * 3, "{names:?}");
    let delivered = at.data.join("pg_wal/RECOVERYXLOG");
    for (name, point) in names.iter().zip(points.into_iter().cycle()) {
        let what = format!("{point}: {name}");
        let mut command = site.pitr(&["archive-get"])?;
        command.current_dir(&at.data).args(["--timeline", "1", name, "pg_wal/RECOVERYXLOG"]);
        killed_at(point, command)?;
        // Whole or not at all; and not, unless it was put there.
        ensure!(delivered.exists() == (point == "thin-moved"), "{what}");
        if delivered.exists() {
            at.replayed(&site, name).with_context(|| what.clone())?;
        }
        answered_by_the_agent(&at.ask(&site, name, &["--timeline", "1"])?, &what, &agent)?;
        at.replayed(&site, name).with_context(|| what.clone())?;
    }
    Ok(())
}
