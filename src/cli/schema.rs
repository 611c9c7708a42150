//! `jobcast schema`: prints the recommended tables as SQL.

use super::{ConfigFile, misused, printed};
use crate::source;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// For which kind of source
    #[arg(value_parser = with_tables(), default_value = "sqlite")]
    kind: String,
    /// PostgreSQL: without the triggers that wake Jobcast up; it polls
    #[arg(long)]
    no_trigger: bool,
    /// PostgreSQL: what an existing event table lacks, with the names of the settings, as a script for psql
    #[arg(long)]
    migrate: bool,
    #[command(flatten)]
    config: ConfigFile,
}

/// Accepts the kinds of stores that have tables.
fn with_tables() -> impl TypedValueParser<Value = String> {
    let drivers = source::DRIVERS.iter().filter(|driver| !driver.schema(false).is_empty());
    PossibleValuesParser::new(drivers.map(|driver| driver.name()))
}

pub fn run(args: Args) -> ExitCode {
    let Some(driver) = source::DRIVERS.iter().find(|driver| driver.name() == args.kind) else {
        return misused(format!("there is no kind of source called {}", args.kind));
    };
    let with_trigger = !args.no_trigger;
    let sql = if args.migrate {
        let settings = match args.config.load() {
            Ok(settings) => settings,
            Err(errors) => return misused(errors),
        };
        match driver.migration(&settings.source, with_trigger) {
            Some(sql) => sql,
            None => return misused("--migrate is for postgres: no other kind of table lacks anything"),
        }
    } else {
        driver.schema(with_trigger).join("\n")
    };
    printed(sql.trim_end(), ExitCode::SUCCESS)
}
