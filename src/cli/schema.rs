//! `jobcast schema`: prints the recommended tables as SQL.

use super::{ConfigFile, misused};
use crate::config::SourceKind;
use crate::source;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Kind of the source
    #[arg(value_enum, default_value = "sqlite")]
    kind: Kind,
    /// PostgreSQL: without the triggers that wake Jobcast up; it polls
    #[arg(long)]
    no_trigger: bool,
    /// PostgreSQL: what an existing event table lacks, with the names of the settings, without a rewrite
    #[arg(long)]
    migrate: bool,
    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Sqlite,
    Postgres,
}

pub fn run(args: Args) -> ExitCode {
    let kind = match args.kind {
        Kind::Sqlite => SourceKind::Sqlite,
        Kind::Postgres => SourceKind::Postgres,
    };
    let sql = if args.migrate {
        let settings = match args.config.load() {
            Ok(settings) => settings,
            Err(errors) => return misused(errors),
        };
        match source::migration(kind, &settings.source, !args.no_trigger) {
            Some(sql) => sql,
            None => return misused("--migrate is for postgres: no other kind of table lacks anything"),
        }
    } else {
        source::schema(kind, !args.no_trigger).join("\n")
    };
    println!("{}", sql.trim_end());
    ExitCode::SUCCESS
}
