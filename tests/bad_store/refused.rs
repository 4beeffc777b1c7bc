//! Credentials that expired, were rotated, do not belong together or may not do what is asked; and a request whose time the store does not
//! believe.
//!
//! Each is told apart in words, with its own advice, and none of them is an absence. The codes are S3's; one test asks a real server.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};

use super::between::Deed;
use super::{Seat, World, side_by_side};

/// An answer as S3 gives it.
fn refusal(status: u16, code: &str, message: &str, more: &str) -> Deed {
    let xml = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    );
    Deed::Refuse(status, xml)
}

/// Refusals, and what must be said of each. S3's own words; the store's clock is three hours behind ours, or twenty minutes ahead.
fn refusals() -> Result<Vec<(Deed, Vec<&'static str>)>> {
    let server_time = |minutes| -> Result<String> {
        let time = Timestamp::now().checked_add(SignedDuration::from_mins(minutes))?;
        Ok(format!("<ServerTime>{}</ServerTime>", time.strftime("%Y-%m-%dT%H:%M:%SZ")))
    };
    let skew = "The difference between the request time and the current time is too large.";
    Ok(vec![
        (
            refusal(400, "ExpiredToken", "The provided token has expired.", ""),
            vec!["ExpiredToken", "the credentials have expired"],
        ),
        (
            refusal(
                403,
                "InvalidAccessKeyId",
                "The AWS Access Key Id you provided does not exist in our records.",
                "",
            ),
            vec!["InvalidAccessKeyId", "does not know this access key"],
        ),
        (
            refusal(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.", ""),
            vec!["SignatureDoesNotMatch", "does not belong to the access key"],
        ),
        (refusal(403, "AccessDenied", "Access Denied", ""), vec!["AccessDenied", "may not do this"]),
        (
            refusal(403, "RequestTimeTooSkewed", skew, &server_time(-180)?),
            vec!["this host's clock is 3 h ahead of the store's", "set this host's clock"],
        ),
        (
            refusal(403, "RequestTimeTooSkewed", skew, &server_time(20)?),
            vec!["this host's clock is 20 min behind the store's", "set this host's clock"],
        ),
    ])
}

#[test]
fn every_refusal_of_credentials_is_told_apart_by_every_command() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let refusals = refusals()?;
    side_by_side(&Seat::all(&world, "refused")?, |seat| {
        for (deed, words) in &refusals {
            seat.between.from(1, deed.clone());
            let answer = seat.run()?;
            let what = format!("{:?}, {deed:?}: {answer:?}", seat.row.args);
            seat.judge(&answer, seat.row.refused, words).context(what)?;
        }
        seat.between.from(1, Deed::Pass);
        seat.is_good(&seat.run()?)
    })
}

#[test]
fn credentials_that_expire_at_any_request_are_said_to_have_expired() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let (deed, words) = refusals()?.swap_remove(0);
    side_by_side(&Seat::all(&world, "expired")?, |seat| {
        // Where things are deleted every request counts: between two of them nothing may be half there.
        let left_out = |nth| if seat.expires.is_some() { 0 } else { nth / 4 };
        for nth in std::iter::successors(Some(1), |nth| Some(nth + 1 + left_out(*nth))) {
            seat.between.from(nth, deed.clone());
            let answer = seat.run()?;
            let what = format!("{:?}, from request {nth} on: {answer:?}", seat.row.args);
            if seat.between.seen() < nth {
                return seat.is_good(&answer).context(what);
            }
            if !seat.only_tidied_up(&answer).with_context(|| what.clone())? {
                // Where they expire during the trial, it is the trial that failed: docs/errors.md.
                let trial = answer.err.contains("the restore_command does not work for the server");
                seat.judge(&answer, if trial { &[1] } else { seat.row.refused }, &words).context(what)?;
            }
        }
        Ok(())
    })
}

#[test]
fn keys_that_were_rotated_at_a_real_server_are_refused_until_the_file_has_the_new_ones() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let keys = world.site.place().join("keys");
    let good = fs::read_to_string(&keys)?;
    let seat = |number| Seat::new(&world, &format!("rotated-{number}.toml"), number);
    let (push, get) = (seat(0)?, seat(1)?);
    for (wrong, words) in [
        (good.replace("not-so-secret", "rotated-away"), "does not belong to the access key"),
        (good.replace("= tester", "= nobody"), "403 "),
    ] {
        ensure!(wrong != good);
        fs::write(&keys, wrong)?;
        for seat in [&push, &get] {
            let answer = seat.run()?;
            let what = format!("{:?}: {answer:?}", seat.row.args);
            seat.judge(&answer, seat.row.refused, &[words]).context(what)?;
        }
    }
    fs::write(&keys, good)?;
    for seat in [&push, &get] {
        seat.is_good(&seat.run()?)?;
    }
    Ok(())
}
