//! The same through the agent: it says no as the command itself does, stays, and says yes when the store serves again.
//!
//! Each time a new agent is asked, which knows nothing yet; from its n-th request on the store falls silent, stops half-way, is overloaded,
//! resets the connection in the middle of a request, or ends it in the middle of an answer.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::between::{Between, Deed};
use super::support::agent::{Agent, status};
use super::support::site::until;
use super::{HANGS, World, within};

/// A world whose configuration names an agent's socket and a store behind a [`Between`], and the file to push.
fn world_with_agent() -> Result<Option<(World, Between, String)>> {
    let Some(mut world) = World::new()? else { return Ok(None) };
    let between = Between::start(&world.s3.address())?;
    let socket = world.site.place().join("agent.sock");
    let more = format!("[agent]\nsocket = \"{}\"\n", socket.display());
    world.site.config = world.config("agent.toml", &format!("http://{}", between.address()), &more)?;
    let push = format!("pg_wal/{}", world.partial);
    Ok(Some((world, between, push)))
}

#[test]
fn an_agent_beside_a_store_that_does_not_serve_says_no_and_stays() -> Result<()> {
    let Some((world, between, push)) = world_with_agent()? else { return Ok(()) };
    let busy = "<Error><Code>SlowDown</Code><Message>later</Message></Error>".to_owned();
    for deed in [Deed::Silence, Deed::Half, Deed::Refuse(503, busy), Deed::Reset, Deed::Cut] {
        for nth in [1, 2, 4] {
            let what = format!("{deed:?} from request {nth} on");
            fs::remove_file(world.site.object(&world.partial)?).ok();
            between.from(1, Deed::Pass);
            let agent = Agent::start(&world.site)?;
            between.from(nth, deed.clone());
            let answer = within(HANGS, world.site.pitr(&["archive-push", &push])?)?;
            // Half an answer without a body is a whole one to some requests.
            if between.seen() >= nth && answer.code != 0 {
                ensure!((1..=125).contains(&answer.code), "{what}: {answer:?}");
                ensure!(
                    answer.err.contains("s3://bucket/pre") && answer.err.contains("HINT"),
                    "{what}: {answer:?}"
                );
                ensure!(status(&world.site)?["repositories"][0]["failing"].is_string(), "{what}");
            } else {
                ensure!(answer.code == 0 && matches!(deed, Deed::Half | Deed::Cut), "{what}: {answer:?}");
                ensure!(world.site.object(&world.partial)?.exists(), "{what}: it says yes");
            }
            between.from(1, Deed::Pass);
            let answer = within(HANGS, world.site.pitr(&["archive-push", &push])?)?;
            ensure!(answer.code == 0, "{what}, and then it serves: {answer:?}\n{}", agent.log());
            ensure!(!answer.err.contains("alone"), "{what}: the agent answers: {answer:?}");
            ensure!(world.site.object(&world.partial)?.exists(), "{what}");
            ensure!(status(&world.site)?["repositories"][0]["failing"].is_null(), "{what}");
            agent.end(nix::sys::signal::Signal::SIGTERM).context("it stays")?;
        }
    }
    Ok(())
}

/// What a store refuses its credentials for is stored there when the file has good ones, though nothing waits for an optional repository.
#[test]
fn renewed_credentials_of_an_optional_repository_are_used_by_a_running_agent() -> Result<()> {
    let Some((world, _between, push)) = world_with_agent()? else { return Ok(()) };
    let site = &world.site;
    let local = site.place().join("local");
    let text = fs::read_to_string(&site.config)?;
    let text = text.replacen("[[repository]]\n", "[[repository]]\nrequired = false\n", 1);
    let more = format!("[[repository]]\nname = \"local\"\nurl = \"file://{}\"\n", local.display());
    fs::write(&site.config, format!("{text}{more}"))?;
    site.json(&["init", "--superuser", &site.cluster.conninfo(), "--json"])?;
    let keys = site.place().join("keys");
    let good = fs::read_to_string(&keys)?;
    let wrong = good.replace("not-so-secret", "rotated-away");
    ensure!(wrong != good);
    fs::write(&keys, wrong)?;
    let agent = Agent::start(site)?;
    let optional = || -> Result<serde_json::Value> {
        let said = status(site)?;
        let mut all = said["repositories"].as_array().into_iter().flatten();
        all.find(|lane| lane["required"] == false).cloned().context("it is there")
    };
    let answer = site.ask(&["archive-push", &push])?;
    ensure!(answer.code == 0, "{answer:?}\n{}", agent.log());
    until(|| Ok(optional()?["failing"].is_string()), || agent.log())?;
    ensure!(!site.object(&world.partial)?.exists());
    fs::write(&keys, good)?;
    until(|| Ok(optional()?["failing"].is_null() && site.object(&world.partial)?.exists()), || agent.log())
}

#[test]
fn an_agent_that_lost_the_reply_finds_that_it_was_stored() -> Result<()> {
    let Some((world, between, push)) = world_with_agent()? else { return Ok(()) };
    let object = world.site.object(&world.partial)?;
    let (own, to) = (fs::read(world.site.cluster.data.join(&push))?, world.site.place().join("fetched"));
    // One reply is lost, and two: that of the create that is repeated too.
    for requests in (1..8).flat_map(|nth| [nth..=nth, nth..=nth + 1]) {
        fs::remove_file(&object).ok();
        between.from(1, Deed::Pass);
        let agent = Agent::start(&world.site)?;
        between.at(requests.clone(), Deed::Lost);
        let answer = within(HANGS, world.site.pitr(&["archive-push", &push])?)?;
        ensure!(answer.code == 0 && object.exists(), "{requests:?}: {answer:?}\n{}", agent.log());
        ensure!(!answer.err.contains("alone"), "{requests:?}: the agent answers: {answer:?}");
        between.from(1, Deed::Pass);
        let get = ["archive-get", &world.partial, &to.display().to_string()];
        let answer = within(HANGS, world.site.pitr(&get)?)?;
        ensure!(answer.code == 0 && fs::read(&to)? == own, "{answer:?}");
        agent.end(nix::sys::signal::Signal::SIGTERM)?;
    }
    let stored = |line: &&String| line.starts_with("PUT") && line.contains(&world.partial);
    let lost = between.lost();
    ensure!(lost.iter().filter(stored).count() >= 2, "no reply was lost after the write: {lost:?}");
    Ok(())
}
