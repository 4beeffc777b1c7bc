//! Random histories; written next.
//!
//! Nothing here yet.
