//! An agent whose socket is taken away while it runs, as systemd does with the directory when another unit that names it stops.
//!
//! It must be reachable again without a restart, and stay the only one: a second agent is refused, and one that lost its place to another
//! leaves the other's socket alone.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use support::agent::{Agent, own_repository, status};
use support::cluster::{Install, give_to_server};
use support::site::{Site, SiteOptions, until};

/// How long an agent may take to end on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A site whose agent listens in a directory of its own; the socket.
fn site() -> Result<Option<(Site, PathBuf)>> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(None) };
    let site = Site::new(&install, &SiteOptions { archives: false, ..SiteOptions::default() })?;
    let directory = site.place().join("run");
    make(&directory)?;
    let socket = directory.join("a.sock");
    site.write_config(&format!("[agent]\nsocket = \"{}\"\n{}", socket.display(), own_repository(&site)))?;
    Ok(Some((site, socket)))
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir(directory)?;
    give_to_server(directory)
}

/// Another agent does not begin.
fn a_second_one_is_refused(site: &Site, agent: &Agent) -> Result<()> {
    let mut second = Agent::spawn(site, site.pitr(&["agent"])?)?;
    let ended = second.ends_within(PATIENCE)?.with_context(|| format!("two agents run\n{}", agent.log()))?;
    ensure!(
        ended.code() == Some(8) && agent.log().contains("another agent listens"),
        "{ended:?}\n{}",
        agent.log()
    );
    Ok(())
}

#[test]
fn an_agent_whose_socket_was_taken_away_listens_again_and_stays_alone() -> Result<()> {
    let Some((site, socket)) = site()? else { return Ok(()) };
    let (lock, directory) = (socket.with_extension("lock"), socket.parent().context("a directory")?);
    let mut agent = Agent::start(&site)?;
    let answers = || Ok(socket.exists() && lock.exists() && site.ask(&["agent", "--status"])?.code != 5);
    for gone in [&[&socket, &lock][..], &[&socket], &[&lock]] {
        gone.iter().try_for_each(fs::remove_file)?;
        until(answers, || format!("{gone:?}: nobody answers\n{}", agent.log()))?;
        a_second_one_is_refused(&site, &agent)?;
        ensure!(status(&site)?["pid"] == agent.pid()?.as_raw(), "{gone:?}");
    }
    // The directory too: nobody can make a socket before it is there again.
    fs::remove_dir_all(directory)?;
    let complains = || Ok(agent.log().contains("nobody can ask the agent"));
    until(complains, || format!("it does not notice\n{}", agent.log()))?;
    make(directory)?;
    until(answers, || format!("nobody answers\n{}", agent.log()))?;
    a_second_one_is_refused(&site, &agent)?;
    // It ends as ever, and takes the new socket with it.
    agent.signal(Signal::SIGTERM)?;
    let ended = agent.ends_within(PATIENCE)?.with_context(|| agent.log())?;
    ensure!(ended.success() && !socket.exists(), "{ended:?}\n{}", agent.log());
    Ok(())
}

#[test]
fn an_agent_that_lost_its_place_to_another_ends_and_leaves_the_other_its_socket() -> Result<()> {
    let Some((site, socket)) = site()? else { return Ok(()) };
    let mut first = Agent::start(&site)?;
    first.stand_still()?;
    fs::remove_file(&socket)?;
    fs::remove_file(socket.with_extension("lock"))?;
    let second = Agent::start(&site)?;
    let made = fs::symlink_metadata(&socket)?.ino();
    first.signal(Signal::SIGCONT)?;
    let ended = first.ends_within(PATIENCE)?.with_context(|| format!("two agents run\n{}", first.log()))?;
    ensure!(
        ended.code() == Some(8) && first.log().contains("another agent listens"),
        "{ended:?}\n{}",
        first.log()
    );
    ensure!(fs::symlink_metadata(&socket)?.ino() == made, "another socket lies there");
    ensure!(status(&site)?["pid"] == second.pid()?.as_raw());
    Ok(())
}
