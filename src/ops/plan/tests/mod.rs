//! Tests of the planner: the rules one by one, and random histories against a simulation of PostgreSQL.
//!
//! `model` makes worlds and answers wants; `rules` has one test per rule; `oracle` knows the right answer by brute force over
//! all records and checks plans and refusals of thousands of random worlds.

mod generate;
mod model;
mod oracle;
mod rules;

use super::{Answer, Facts, PlanRequest, RecoveryPlan, RecoveryTarget, Refusal, plan};
use model::Model;

/// Asks until the planner needs nothing more; returns the answer and the rounds it took.
fn ask(model: &Model, request: &PlanRequest) -> (Result<RecoveryPlan, Box<Refusal>>, usize) {
    ask_with(model, request, Facts::default())
}

/// As [`ask`], with facts known from the start.
fn ask_with(
    model: &Model,
    request: &PlanRequest,
    mut facts: Facts,
) -> (Result<RecoveryPlan, Box<Refusal>>, usize) {
    let world = model.world();
    for round in 0..60 {
        match plan(request, &world, &facts) {
            Answer::Plan(plan) => return (Ok(*plan), round),
            Answer::Refuse(refusal) => return (Err(refusal), round),
            Answer::Need(wants) => {
                assert!(!wants.is_empty() && wants.len() <= super::MAX_WANTS);
                wants.into_iter().for_each(|want| model.fetch(want, &mut facts));
            }
        }
    }
    panic!("{request:?} never ends");
}

fn to(model: &Model, target: RecoveryTarget) -> Result<RecoveryPlan, Box<Refusal>> {
    ask(model, &PlanRequest::new(target)).0
}
