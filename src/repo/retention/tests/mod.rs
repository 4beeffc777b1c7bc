//! Retention against an oracle that knows every moment of a simulated cluster, and against the rules one by one.
//!
//! ```text
//!  world    a cluster that lives, forks, loses segments; its repository; what each moment would need, segment by segment
//!  promises random worlds and policies: every promised point that could be restored before can be restored after
//!  rules    one small catalog and one rule each
//! ```
//! The oracle walks segments one at a time and asks no function of the code under test how far a route reaches.

mod promises;
mod rules;
mod world;
