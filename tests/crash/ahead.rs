//! Who fetches ahead for a recovery, killed in the middle: what he leaves in the spool is nobody's, and recovery goes on without him.
//!
//! The oracle is what the server wrote. A repository that is away tells what came from the spool: of a dead one, nothing.

use std::fs;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Point;
use super::support::cluster::Install;
use super::support::recovering::{Recovering, SPOOL, archived};
use super::support::site::{Site, until};

/// Ends with the test.
struct Ahead(Child);

impl Drop for Ahead {
    fn drop(&mut self) {
        // One that was killed already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fetches ahead of the fifth segment and is killed at this point; whether it was. What it leaves lies ahead of what recovery asks for.
fn is_killed(site: &Site, at: &Recovering, names: &[String], point: Point, nth: u64) -> Result<bool> {
    let mut command = site.pitr(&["fetch-ahead", "--timeline", "1", &names[4]])?;
    point.arm(nth, &mut command);
    let child = command.current_dir(&at.data).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut ahead = Ahead(child);
    let all = names.get(5..13).context("segments")?;
    let mut killed = false;
    let mut state = || -> Result<bool> {
        killed = ahead.0.try_wait()?.is_some();
        Ok(killed || at.spooled() == all)
    };
    for _ in 0..2400 {
        if state()? {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    ensure!(killed || at.spooled() == all, "neither killed nor done: {:?}", at.spooled());
    Ok(killed)
}

/// What recovery gets after that.
fn recovers(site: &Site, at: &Recovering, names: &[String]) -> Result<()> {
    let aside = site.place().join("aside");
    fs::rename(&site.repository, &aside)?;
    for name in names.iter().take(3) {
        let answer = at.ask(site, name, &["--timeline", "1"])?;
        ensure!((200..=220).contains(&answer.code), "{name} from nobody's spool: {answer:?}");
    }
    fs::rename(&aside, &site.repository)?;
    // His successor has cleared the spool, and fetches on.
    for (n, name) in names.iter().enumerate().take(3) {
        at.ask(site, name, &["--timeline", "1"])?.expect(0, &[])?;
        at.replayed(site, name)?;
        at.is_spooled(names.get(n + 1..n + 9).context("segments")?)?;
    }
    Ok(())
}

#[test]
fn recovery_gets_what_was_archived_wherever_who_fetches_ahead_is_killed() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let (site, names) = archived(&install, 240_000)?;
    for (point, least) in [(Point::Call, 8), (Point::CallDone, 8), (Point::Step, 8)] {
        let points = std::iter::successors(Some(1), |nth| Some(nth + 1 + nth / 6));
        for nth in points {
            let at = Recovering::new(&site, &format!("{point:?}-{nth}"))?;
            let what = format!("{point:?} {nth}");
            if !is_killed(&site, &at, &names, point, nth).context(what.clone())? {
                ensure!(nth > least, "it has too few points: {what}");
                break;
            }
            recovers(&site, &at, &names).with_context(|| format!("{what}, spool: {:?}", at.spooled()))?;
            let (spool, data) = (at.data.join(SPOOL), at.data.clone());
            // The server is gone, and with it who was left behind.
            drop(at);
            until(|| Ok(!spool.exists()), || format!("{what}: the spool stays"))?;
            fs::remove_dir_all(data)?;
        }
    }
    Ok(())
}
