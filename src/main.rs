//! The `pitr` program: hands its arguments to [`pitr::cli`] and exits with the code that comes back.
//!
//! Everything else lives in the library, so that tests, fuzz targets and benches reach it.
//! Exit codes are part of the protocol with PostgreSQL; see `cli/exit.rs`.

fn main() -> std::process::ExitCode {
    pitr::cli::main(std::env::args_os().collect())
}
