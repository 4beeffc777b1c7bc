//! The `pitr` program: hands its arguments to the library and exits with the code that comes back.
//!
//! Everything else lives in the library, so that tests, fuzz targets and benches reach it.

fn main() {}
