//! `jobcast schema`: the recommended tables as SQL.

use crate::config::SourceKind;
use crate::source;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// For which kind of source
    #[arg(value_enum, default_value = "sqlite")]
    kind: Kind,
    /// PostgreSQL: without the triggers that wake Jobcast up; it polls
    #[arg(long)]
    no_trigger: bool,
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
    println!("{}", source::schema(kind, !args.no_trigger).join("\n").trim_end());
    ExitCode::SUCCESS
}
