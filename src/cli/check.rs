//! `jobcast check`: checks settings and source, and prints every problem at once, each with its remedy.

use super::{ConfigFile, misused, printed};
use crate::auth::Auth;
use crate::http::Certificates;
use crate::source::{self, Finding};
use std::process::ExitCode;

pub async fn run(config: ConfigFile) -> ExitCode {
    let settings = match config.load() {
        Ok(settings) => settings,
        Err(errors) => return misused(errors),
    };
    let mut said = format!("# the settings in effect, secrets masked\n{}\n", settings.to_toml());
    let mut problems = 0;
    for (setting, meaning) in settings.weaknesses() {
        said += &format!("weak     {setting}: {meaning}\n");
    }
    let tls = &settings.http.tls;
    let tls = tls.is_enabled().then(|| match Certificates::open(tls) {
        Ok(_) => Finding::fine("http.tls.cert and http.tls.key are a pair"),
        Err(error) => Finding::problem(error.to_string(), "see docs/tls.md"),
    });
    let auth = Auth::new(&settings.auth).err().map(|error| Finding::problem(error.to_string(), "see docs/auth.md"));
    let of_source = source::driver(settings.source.kind).check(&settings.source).await;
    for finding in tls.into_iter().chain(auth).chain(of_source) {
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
