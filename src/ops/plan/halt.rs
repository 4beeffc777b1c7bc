//! Why a planning step cannot go on: it lacks facts, or it must refuse.
//!
//! Steps return early with `?`; the planner is simply run again once the facts are there. Invariant: a step halts for a fact
//! only when every outcome of that fact could matter, so a run with all facts never halts for one.

use std::collections::BTreeSet;

use super::MAX_WANTS;
use super::refusal::Refusal;
use super::world::Want;

/// Why a step stopped.
#[derive(Debug)]
pub(super) enum Halt {
    /// These facts are missing.
    Need(Vec<Want>),
    /// It cannot be done.
    Refuse(Box<Refusal>),
}

/// The result of a planning step.
pub(super) type Step<T> = Result<T, Halt>;

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(Box::new(refusal))
    }
}

impl From<Want> for Halt {
    fn from(want: Want) -> Self {
        Self::Need(vec![want])
    }
}

/// Gathers missing facts, so that one round asks for many.
#[derive(Debug, Default)]
pub(super) struct Wants(BTreeSet<Want>);

impl Wants {
    /// Notes one; false once the round is full.
    pub(super) fn add(&mut self, want: Want) -> bool {
        if self.0.len() < MAX_WANTS {
            self.0.insert(want);
        }
        self.0.len() < MAX_WANTS
    }

    /// Halts if anything is missing.
    pub(super) fn settle(self) -> Step<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Halt::Need(self.0.into_iter().collect())) }
    }
}
