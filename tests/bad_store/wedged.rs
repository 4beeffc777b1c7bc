//! A store that takes connections and does not answer, or not to the end.
//!
//! Every command ends by its deadlines and says that it knows nothing; when the store serves again it succeeds.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::between::Deed;
use super::{Seat, World, side_by_side};

/// No command makes so many requests in this world.
const MOST_REQUESTS: usize = 2_000;

/// The store falls silent at the first, second, fourth … request of a command; then it serves again.
fn fall_silent(seat: &Seat<'_>, deed: &Deed) -> Result<()> {
    for nth in std::iter::successors(Some(1), |nth| Some(nth * 2)).take_while(|nth| *nth < MOST_REQUESTS) {
        seat.between.from(nth, deed.clone());
        let answer = seat.run()?;
        let what = format!("{:?}, {deed:?} from request {nth} on: {answer:?}", seat.row.args);
        if seat.between.seen() < nth {
            return seat.is_good(&answer).context(what);
        }
        if !seat.only_tidied_up(&answer).with_context(|| what.clone())? {
            seat.judge(&answer, seat.row.silent, &[]).context(what)?;
        }
    }
    anyhow::bail!("{:?} makes more requests than it should", seat.row.args)
}

#[test]
fn a_store_that_never_answers_ends_every_command_and_is_never_an_absence() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    side_by_side(&Seat::all(&world, "silent")?, |seat| fall_silent(seat, &Deed::Silence))
}

#[test]
fn a_store_that_stops_in_the_middle_of_an_answer_ends_every_command_and_is_never_an_absence() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    side_by_side(&Seat::all(&world, "half")?, |seat| fall_silent(seat, &Deed::Half))
}

#[test]
fn a_store_that_resets_connections_ends_every_command_and_is_never_an_absence() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    side_by_side(&Seat::all(&world, "reset")?, |seat| fall_silent(seat, &Deed::Reset))
}

#[test]
fn a_store_whose_answers_are_cut_off_ends_every_command_and_is_never_an_absence() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    side_by_side(&Seat::all(&world, "cut")?, |seat| fall_silent(seat, &Deed::Cut))
}

#[test]
fn a_store_that_never_says_hello_in_tls_ends_every_command_and_is_never_an_absence() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let seats = Seat::all(&world, "hello")?;
    for seat in &seats {
        let text = fs::read_to_string(&seat.config)?;
        fs::write(&seat.config, text.replace("endpoint = \"http:", "endpoint = \"https:"))?;
    }
    side_by_side(&seats, |seat| {
        let answer = seat.run()?;
        let what = format!("{:?}: {answer:?}", seat.row.args);
        seat.judge(&answer, seat.row.silent, &[]).context(what)?;
        ensure!(seat.between.seen() == 0, "a request came without TLS");
        Ok(())
    })
}
