//! `jobcast check`: checks settings and source, and prints every problem at once, each with its remedy.

use super::{ConfigFile, misused, printed};
use crate::http::Certificates;
use crate::source;
use std::process::ExitCode;

pub async fn run(config: ConfigFile) -> ExitCode {
    let settings = match config.load() {
        Ok(settings) => settings,
        Err(errors) => return misused(errors),
    };
    let mut said = format!("# the settings in effect, secrets masked\n{}\n", settings.to_toml());
    let mut problems = 0;
    if settings.http.tls.is_enabled() {
        match Certificates::open(&settings.http.tls) {
            Ok(_) => said += "ok       http.tls.cert and http.tls.key are a pair\n",
            Err(error) => {
                problems += 1;
                said += &format!("PROBLEM  {error}\n");
            }
        }
    }
    for finding in source::driver(settings.source.kind).check(&settings.source).await {
        if finding.is_problem {
            problems += 1;
            said += &format!("PROBLEM  {}\n         mend: {}\n", finding.summary, finding.help);
        } else {
            said += &format!("ok       {}\n", finding.summary);
        }
    }
    if problems == 0 {
        return printed(said + "ok       nothing to mend", ExitCode::SUCCESS);
    }
    printed(format!("{said}{problems} to mend"), ExitCode::FAILURE)
}
