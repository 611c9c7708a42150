//! `jobcast schema`: the recommended tables as SQL.

use crate::config::SourceKind;
use crate::source;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// For which kind of source
    #[arg(value_enum, default_value = "sqlite")]
    kind: Kind,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Sqlite,
}

pub fn run(args: Args) -> ExitCode {
    let kind = match args.kind {
        Kind::Sqlite => SourceKind::Sqlite,
    };
    print!("{}", source::schema(kind));
    ExitCode::SUCCESS
}
