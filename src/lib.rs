//! pitr: WAL archiving and point-in-time recovery for PostgreSQL.
//!
//! ```text
//!  main.rs  cli/                       flags, text and JSON, exit codes
//!           agent/                     the resident process: socket, what is stored ahead
//!           ops/                       archive backup plan restore init check info expire
//!  repo/ (access)  store  pgwire/conn  durable  clock      the only places that touch the world
//!  ---------------------------------------------------------------------- below: no IO, no clock, no async
//!  repo formats   pgwire messages   seal   codec   pgdata   wal
//! ```
//! The order of values everywhere: the data is right, then the reader understands, then the machine is fast.
//! ARCHITECTURE.md draws the paths of the data; FORMAT.md fixes every stored byte.

pub mod account;
pub mod agent;
pub mod authorities;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod config;
pub mod durable;
pub mod error;
pub mod ops;
pub mod pgdata;
pub mod pgwire;
pub mod repo;
pub mod resolve;
pub mod seal;
pub mod store;
pub mod target;
pub mod wal;
