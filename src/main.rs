use std::process::ExitCode;

fn main() -> ExitCode {
    jobcast::cli::run()
}
