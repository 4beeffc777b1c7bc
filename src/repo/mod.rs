//! The repository: where the bytes go, how each object looks, and who may create what.
//!
//! ```text
//!  mod      Repository: open, create identity, put and get each kind of object      the only part that does IO
//!  ------------------------------------------------------------------------------------------------------------
//!  path     every object key               objects   the small JSON objects
//!  walobject, annex   one WAL segment      pack, manifest   one backup
//! ```
//! Objects are created, never changed; `expire` alone deletes. Data first, then the one small object that makes it real.
//! FORMAT.md fixes every byte.

pub mod annex;
mod binary;
pub mod manifest;
pub mod objects;
pub mod pack;
pub mod path;
pub mod walobject;
