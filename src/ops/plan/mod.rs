//! The planner: decides a recovery before a byte is written.
//!
//! ```text
//!            start      stop (consistent)            fork
//!  backup      ├──────────┤                           │
//!  TLI 1   ────┴──────────┴───────────────────────────┼ ─ ─ ─ abandoned
//!  TLI 2                                              ├───────▲────────── end of what is stored
//!  segments    │    1   │    1   │    1   │    1   │   2   │  2│   │      └ stop: the START of a record, replayed
//! ```
//! A pure function from (question, world, facts) to a plan, a refusal, or a list of facts it still needs. It is run again with
//! them until it needs none; each run asks for many at once, and the answer depends on no fact that was not asked for.
//! The rules and their numbers are RECOVERY.md's; what PostgreSQL does at a stop is `recoveryStopsBefore` and
//! `recoveryStopsAfter` of `xlogrecovery.c` (`xlog.c` before 15).

mod branches;
mod crossing;
mod drops;
mod ends;
mod finish;
mod halt;
mod line;
mod look;
mod named;
mod outcome;
mod position;
mod refusal;
mod request;
mod select;
#[cfg(test)]
mod tests;
mod time;
mod window;
mod world;

pub use outcome::{Answer, Met, RecoveryPlan, RouteStep, Stop, StopKind, StopRecord, Warning};
pub use refusal::{Branch, Gap, Hole, Moment, OTHER_IDENTITY, Refusal, RefusalClass};
pub use request::{PlanRequest, RecoveryTarget, TimelineChoice};
pub use window::{Span, Window, window};
pub use world::{Facts, PlanBackup, RecordSpan, SegmentFacts, Want, World};

use halt::{Halt, Step};
use named::Edge;

/// The most facts asked for in one round: enough to keep a store busy, few enough to hold.
pub const MAX_WANTS: usize = 512;

/// Plans a recovery: answers with a plan, a refusal, or the facts that are still missing. Run it again with those added to
/// `facts` until it asks for none.
pub fn plan(request: &PlanRequest, world: &World, facts: &Facts) -> Answer {
    match decide(request, world, facts) {
        Ok(plan) => Answer::Plan(Box::new(plan)),
        Err(Halt::Need(wants)) => Answer::Need(wants),
        Err(Halt::Refuse(mut refusal)) => {
            if let Refusal::Undecoded { target, .. } | Refusal::Locked { target, .. } = &mut *refusal {
                *target = request.target.clone();
            }
            Answer::Refuse(refusal)
        }
    }
}

fn decide(request: &PlanRequest, world: &World, facts: &Facts) -> Step<RecoveryPlan> {
    let query = select::select(request, world, facts)?;
    match &request.target {
        RecoveryTarget::Latest => ends::plan_latest(&query),
        RecoveryTarget::Immediate => ends::plan_immediate(&query),
        RecoveryTarget::Time(time) => time::plan(&query, *time),
        RecoveryTarget::Lsn(lsn) => position::plan(&query, *lsn),
        RecoveryTarget::Xid(xid) => named::plan_xid(&query, *xid, Edge::Included),
        RecoveryTarget::BeforeXid(xid) => named::plan_xid(&query, *xid, Edge::Excluded),
        RecoveryTarget::Name(name) => named::plan_name(&query, name),
    }
}
