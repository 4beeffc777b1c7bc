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

mod outcome;
mod refusal;
mod request;
mod world;

pub use outcome::{Answer, RecoveryPlan, RouteStep, Stop, StopKind, StopRecord, Warning};
pub use refusal::{Branch, Gap, Moment, Refusal, RefusalClass};
pub use request::{PlanRequest, RecoveryTarget, TimelineChoice};
pub use world::{Facts, PlanBackup, RecordSpan, SegmentFacts, Want, World};

/// The most facts asked for in one round: enough to keep a store busy, few enough to hold.
pub const MAX_WANTS: usize = 512;
