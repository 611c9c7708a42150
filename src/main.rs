//! The binary: everything is in the library, where tests, benches and fuzzing reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobcast::cli::run()
}
