//! `jobcast check`: checks settings and source, and prints every problem at once, each with its remedy.

use super::{ConfigFile, misused};
use crate::source;
use std::process::ExitCode;

pub async fn run(config: ConfigFile) -> ExitCode {
    let settings = match config.load() {
        Ok(settings) => settings,
        Err(errors) => return misused(errors),
    };
    println!("# the settings in effect, secrets masked\n{}", settings.to_toml());
    let mut problems = 0;
    for finding in source::driver(settings.source.kind).check(&settings.source).await {
        if finding.is_problem {
            problems += 1;
            println!("PROBLEM  {}\n         mend: {}", finding.summary, finding.help);
        } else {
            println!("ok       {}", finding.summary);
        }
    }
    if problems == 0 {
        println!("ok       nothing to mend");
        return ExitCode::SUCCESS;
    }
    println!("{problems} to mend");
    ExitCode::FAILURE
}
