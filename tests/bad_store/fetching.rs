//! Recovery through the agent while the store does not serve, and while the disk that it fetches to fails: what it is given are the bytes that
//! were archived, or doubt; the end of WAL is said when it is proven, and at no other time.
//!
//! A directory asks as a recovering server does; what is handed over, and what lies in the spool, is held against the server's own files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::between::{Between, Deed};
use super::support::agent::Agent;
use super::support::cluster::give_to_server;
use super::support::mounted::Mounted;
use super::support::recovering::{Recovering, SPOOL};
use super::support::site::{Answer, until};
use super::{HANGS, World, within};

/// Segments that are archived, in order.
fn archived(world: &World) -> Result<Vec<String>> {
    let rows = "INSERT INTO t SELECT generate_series(1, 250000)";
    world.site.cluster.psql(rows)?;
    let last = world.site.switch()?;
    let name = |path: PathBuf| path.file_name()?.to_str().map(str::to_owned);
    let files = world.site.cluster.wal_files()?.into_iter().filter_map(name);
    let names: Vec<String> = files.filter(|name| *name >= world.segment && *name <= last).collect();
    ensure!(names.len() > 12, "{names:?}");
    Ok(names)
}

/// A recovering server with an agent of its own, whose way to the store is the test's.
struct Post<'a> {
    world: &'a World,
    between: Between,
    at: Recovering,
    config: PathBuf,
}

impl<'a> Post<'a> {
    fn new(world: &'a World, name: &str) -> Result<Self> {
        let at = Recovering::new(&world.site, name)?;
        // Who fetches ahead without an agent is another test's: this is a server that restarts.
        let between = Between::start(&world.s3.address())?;
        let socket =
            format!("[agent]\nsocket = \"{}\"\n", world.site.place().join(format!("{name}.sock")).display());
        let config =
            world.config(&format!("{name}.toml"), &format!("http://{}", between.address()), &socket)?;
        let (text, data) = (fs::read_to_string(&config)?, world.site.cluster.data.display().to_string());
        fs::write(&config, text.replace(&data, &at.data.display().to_string()))?;
        Ok(Self { world, between, at, config })
    }

    fn agent(&self) -> Result<Agent> {
        let agent = Agent::spawn(&self.world.site, self.world.pitr(&self.config, &["-v", "agent"])?)?;
        let status = || Answer::of(&mut self.world.pitr(&self.config, &["agent", "--status"])?);
        until(|| Ok(status()?.code != 5), || agent.log())?;
        Ok(agent)
    }

    fn ask(&self, name: &str) -> Result<Answer> {
        let args = ["archive-get", "--timeline", "1", name, "pg_wal/RECOVERYXLOG"];
        let mut command = self.world.pitr(&self.config, &args)?;
        command.current_dir(&self.at.data);
        within(HANGS, command)
    }

    fn is_given(&self, name: &str) -> Result<()> {
        self.ask(name)?.expect(0, &[]).with_context(|| name.to_owned())?;
        self.at.replayed(&self.world.site, name)
    }

    /// Whole or not at all: what the spool shows under a segment's name is what the server wrote.
    fn spool_is_sound(&self) -> Result<usize> {
        let mut sound = 0;
        for entry in fs::read_dir(self.at.data.join(SPOOL)).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some((_, name)) = file.split_once('-').filter(|(_, name)| name.len() == 24) else { continue };
            let own = fs::read(self.world.site.cluster.data.join("pg_wal").join(name))?;
            ensure!(fs::read(entry.path())? == own, "{name} in the spool is not what the server wrote");
            sound += 1;
        }
        Ok(sound)
    }
}

/// From its n-th request on the store does this; then it serves again, and the same agent is asked on.
fn recover_beside(post: &Post<'_>, names: &[String], deed: &Deed) -> Result<()> {
    for nth in [1, 2, 4, 9] {
        let what = format!("{deed:?} from request {nth} on");
        post.between.from(1, Deed::Pass);
        let agent = post.agent()?;
        post.between.from(nth, deed.clone());
        let mut next = names;
        // A server stops at the first doubt; and is started, and asks for the same one again.
        for _ in 0..2 {
            let Some((name, rest)) = next.split_first() else { break };
            let answer = post.ask(name)?;
            match answer.code {
                0 => {
                    post.at.replayed(&post.world.site, name).with_context(|| what.clone())?;
                    next = rest;
                }
                200..=220 => ensure!(answer.err.contains("s3://bucket/pre"), "{what}: {answer:?}"),
                _ => anyhow::bail!("{what}: {name}: {answer:?}"),
            }
            ensure!(!post.at.data.join("pg_wal/RECOVERYXLOG").exists(), "{what}: it failed, and delivered");
            post.spool_is_sound().with_context(|| what.clone())?;
        }
        let beyond = post.ask(&post.world.later)?;
        let cannot_know = beyond.code != 1 || post.between.seen() < nth;
        ensure!(cannot_know, "{what}: the end of WAL, out of nowhere: {beyond:?}");
        post.between.from(1, Deed::Pass);
        next.iter()
            .try_for_each(|name| post.is_given(name))
            .with_context(|| format!("{what}, and then it serves"))?;
        ensure!(post.ask(&post.world.later)?.code == 1, "{what}: the end of WAL");
        agent.end(Signal::SIGTERM)?;
    }
    Ok(())
}

#[test]
fn recovery_through_an_agent_gets_what_was_archived_or_doubt_while_the_store_does_not_serve() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let names = archived(&world)?;
    let busy = "<Error><Code>SlowDown</Code><Message>later</Message></Error>".to_owned();
    let deeds = [Deed::Silence, Deed::Half, Deed::Refuse(503, busy), Deed::Reset, Deed::Cut];
    let posts: Vec<Post<'_>> =
        (0..deeds.len()).map(|n| Post::new(&world, &format!("post-{n}"))).collect::<Result<_>>()?;
    let names = names.as_slice();
    thread::scope(|scope| {
        let pairs = posts.iter().zip(&deeds);
        let threads: Vec<_> =
            pairs.map(|(post, deed)| scope.spawn(move || recover_beside(post, names, deed))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?)
    })
}

/// Who waited for a store that does not answer hears it from the agent, and is not sent to wait for it once more.
#[test]
fn a_store_that_falls_silent_is_waited_for_once() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let names = archived(&world)?;
    let (post, agent) = fetching(&world, "silent", &names[0], "6s")?;
    post.is_given(&names[0])?;
    until(|| Ok(post.between.held() >= 8), || agent.log())?;
    // One that is on its way already, and one that is asked for anew; then for a standby, which asks again by itself.
    let at_first = post.ask(&names[1])?;
    let anew = post.ask(&names[1])?;
    for answer in [&at_first, &anew] {
        ensure!((200..=220).contains(&answer.code), "{answer:?}\n{}", agent.log());
    }
    fs::write(post.at.data.join("standby.signal"), "")?;
    let standby = post.ask(&names[1])?;
    ensure!(standby.code == 1 && standby.err.contains("this is a standby"), "{standby:?}");
    for answer in [at_first, anew, standby] {
        ensure!(answer.err.contains("s3://bucket/pre") && answer.err.contains("HINT"), "{answer:?}");
        ensure!(!answer.err.contains("leaves this one"), "{answer:?}");
    }
    post.between.release();
    names.iter().skip(1).try_for_each(|name| post.is_given(name)).with_context(|| agent.log())?;
    agent.end(Signal::SIGTERM)?;
    Ok(())
}

/// An agent that has been asked for the first segment and fetches the next eight, none of which the store has handed out yet. `patience` is what
/// the store is given.
fn fetching<'a>(world: &'a World, name: &str, first: &str, patience: &str) -> Result<(Post<'a>, Agent)> {
    let post = Post::new(world, name)?;
    let text = fs::read_to_string(&post.config)?;
    let text = text.replace("timeout = \"1s\"", &format!("timeout = \"{patience}\""));
    fs::write(&post.config, text)?;
    post.between.from(1, Deed::Hold(first.to_owned()));
    let agent = post.agent()?;
    Ok((post, agent))
}

#[test]
fn a_disk_that_fills_while_files_are_fetched_ahead_takes_none_of_them_and_recovery_goes_on() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let names = archived(&world)?;
    // Whether a few of those that are fetched still fit, or none.
    for (n, kib) in [1100, 2600, 4300].into_iter().enumerate() {
        let (post, agent) = fetching(&world, &format!("full-{n}"), &names[0], "60s")?;
        let Some(disk) = Mounted::at(&post.at.data.join("pg_wal"), "64m")? else { return Ok(()) };
        post.is_given(&names[0])?;
        until(|| Ok(post.between.held() >= 8), || agent.log())?;
        let filler = disk.fill(kib)?;
        post.between.release();
        let failed = || agent.log().matches("No space left on device").count() > n;
        until(|| Ok(failed()), || agent.log())?;
        post.spool_is_sound()?;
        // There is room for the one that replay needs now, and for nothing ahead of it.
        names.iter().skip(1).try_for_each(|name| post.is_given(name)).with_context(|| agent.log())?;
        ensure!(post.ask(&world.later)?.code == 1, "the end of WAL");
        drop(filler);
        agent.end(Signal::SIGTERM)?;
    }
    Ok(())
}

#[test]
fn a_spool_that_cannot_be_written_to_any_more_is_done_without() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let names = archived(&world)?;
    let (post, agent) = fetching(&world, "unwritable", &names[0], "60s")?;
    post.is_given(&names[0])?;
    until(|| Ok(post.between.held() >= 8), || agent.log())?;
    fs::set_permissions(post.at.data.join(SPOOL), fs::Permissions::from_mode(0o500))?;
    post.between.release();
    until(|| Ok(agent.log().contains("Permission denied")), || agent.log())?;
    ensure!(post.spool_is_sound()? == 0);
    names.iter().skip(1).try_for_each(|name| post.is_given(name)).with_context(|| agent.log())?;
    ensure!(post.ask(&world.later)?.code == 1, "the end of WAL");
    agent.end(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_read_only_disk_is_doubt_and_never_the_end_of_wal() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let names = archived(&world)?;
    let post = Post::new(&world, "read-only")?;
    let Some(disk) = Mounted::at(&post.at.data.join("pg_wal"), "64m")? else { return Ok(()) };
    disk.remount("ro")?;
    let agent = post.agent()?;
    for _ in 0..2 {
        let answer = post.ask(&names[0])?;
        ensure!(
            (200..=220).contains(&answer.code) && answer.err.contains("Read-only file system"),
            "{answer:?}"
        );
    }
    disk.remount("rw")?;
    give_to_server(&post.at.data.join("pg_wal"))?;
    names.iter().try_for_each(|name| post.is_given(name)).with_context(|| agent.log())?;
    agent.end(Signal::SIGTERM)?;
    Ok(())
}
