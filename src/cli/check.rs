//! `jobcast check`: checks settings and source, and prints every problem at once, each with its remedy.

use super::{ConfigFile, misused, printed};
use crate::auth::Auth;
use crate::config::Settings;
use crate::http::Certificates;
use crate::source::{self, Finding, Grade};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Leaves out the settings and all that is as it should be
    #[arg(long, short)]
    quiet: bool,
    /// Prints the findings as JSON: [{"grade":"fine|improvable|wrong","summary":…,"mend":…}]
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

pub async fn run(args: Args) -> ExitCode {
    let settings = match args.config.load() {
        Ok(settings) => settings,
        Err(errors) => return misused(errors),
    };
    let mut findings = check(&settings).await;
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let (wrong, improvable) = (count(Grade::Wrong), count(Grade::Improvable));
    let code = if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.quiet {
        findings.retain(|finding| finding.grade != Grade::Fine);
    }
    if args.json {
        // Nothing in a finding can fail to be JSON.
        return printed(serde_json::to_string_pretty(&findings).unwrap_or_default(), code);
    }
    let mut said = String::new();
    if !args.quiet {
        said += &format!("# the settings in effect, secrets masked\n{}\n", settings.to_toml());
    }
    for (setting, meaning) in settings.weaknesses() {
        said += &format!("weak     {setting}: {meaning}\n");
    }
    said.extend(findings.iter().map(lines));
    printed(said + &verdict(wrong, improvable), code)
}

async fn check(settings: &Settings) -> Vec<Finding> {
    let tls = &settings.http.tls;
    let tls = tls.is_enabled().then(|| match Certificates::open(tls) {
        Ok(_) => Finding::fine("http.tls.cert and http.tls.key are a pair"),
        Err(error) => Finding::problem(error.to_string(), "see docs/tls.md"),
    });
    let auth = Auth::new(&settings.auth).err().map(|error| Finding::problem(error.to_string(), "see docs/auth.md"));
    let of_source = source::driver(settings.source.kind).check(&settings.source).await;
    tls.into_iter().chain(auth).chain(of_source).collect()
}

/// The finding for people, the lines of its mend below each other.
fn lines(finding: &Finding) -> String {
    let label = match finding.grade {
        Grade::Fine => "ok     ",
        Grade::Improvable => "improve",
        Grade::Wrong => "PROBLEM",
    };
    let mend = match finding.grade {
        Grade::Fine => String::new(),
        _ => format!("         mend: {}\n", finding.mend.trim_end().replace('\n', "\n               ")),
    };
    format!("{label}  {}\n{mend}", finding.summary)
}

fn verdict(wrong: usize, improvable: usize) -> String {
    let improvable = match improvable {
        0 => String::new(),
        count => format!("; {count} to improve, where the tables are yours"),
    };
    match wrong {
        0 => format!("ok       nothing to mend{improvable}"),
        count => format!("{count} to mend{improvable}"),
    }
}
