//! The commands, one file each. They put the modules together: they may use all of them, and none uses them.

mod bench;
mod check;
mod client;
mod completions;
mod demo;
mod doctor;
mod emit;
mod files;
mod healthcheck;
mod meters;
mod reload;
mod schema;
pub mod serve;
mod sse_parser;
mod tail;

use crate::config::{ConfigErrors, Settings, Values};
use crate::logging::say;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Tails a job-event store once and casts each event to every browser that watches, over Server-Sent Events.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Without a command, Jobcast serves: `jobcast` is `jobcast serve`.\n\nExit codes: 0 ok, 1 failed, 2 wrong use or settings."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigFile,
}

#[derive(clap::Args, Clone, Default)]
struct ConfigFile {
    /// Settings in TOML; JOBCAST_… variables lie over it
    #[arg(long, value_name = "FILE", env = "JOBCAST_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Settings, ConfigErrors> {
        Settings::load(self.config.as_deref(), Self::variables())
    }

    /// As [`Self::load`], with the values by key.
    fn load_with_values(&self) -> Result<(Settings, Values), ConfigErrors> {
        Settings::load_with_values(self.config.as_deref(), Self::variables())
    }

    fn admin_listen(&self) -> Result<SocketAddr, ConfigErrors> {
        Settings::admin_listen(self.config.as_deref(), Self::variables())
    }

    /// The files that the settings come from.
    fn files(&self) -> Vec<PathBuf> {
        let secrets = Settings::secret_files(Self::variables());
        self.config.iter().cloned().chain(secrets).collect()
    }

    fn variables() -> impl Iterator<Item = (String, OsString)> {
        // A name that is not UTF-8 is none of ours.
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
    }
}

#[derive(Subcommand)]
enum Command {
    /// The daemon
    #[command(
        after_help = "Example:\n  JOBCAST_SOURCE__SQLITE__PATH=/var/lib/jobcast/jobs.db jobcast serve --config jobcast.toml"
    )]
    Serve(ConfigFile),
    /// The daemon on a throw-away file, with a simulated runner that keeps writing believable jobs
    #[command(
        after_help = "Example:\n  jobcast demo          then open the address that it prints\n  jobcast demo --listen 0.0.0.0:8080 --allow-anonymous          in a container"
    )]
    Demo(demo::Args),
    /// Checks settings and source, and says every problem with what to do about it
    #[command(after_help = "Example:\n  jobcast check --config jobcast.toml")]
    Check(check::Args),
    /// Prints the recommended tables as SQL that may be run twice
    #[command(after_help = "Example:\n  jobcast schema sqlite | sqlite3 jobs.db")]
    Schema(schema::Args),
    /// Appends one event to the configured source and prints its id
    #[command(
        after_help = "Example:\n  jobcast emit build-7 step.output --step compile --payload '{\"line\":\"hello\"}'"
    )]
    Emit(emit::Args),
    /// Follows a job in the terminal until it ends (exit code 0 completed, 3 failed, 4 cancelled)
    #[command(
        after_help = "Example:\n  jobcast tail build-7 --url http://127.0.0.1:8080\n  jobcast tail build-7 --json | jq .payload"
    )]
    Tail(tail::Args),
    /// Opens subscribers against a running Jobcast, publishes, and reports latency
    #[command(
        after_help = "Example:\n  jobcast bench --url http://127.0.0.1:8080 --subscribers 1000 --events 200 --rate 20"
    )]
    Bench(bench::Args),
    /// Exits 0 when /readyz answers 200: for containers that have no curl
    #[command(after_help = "Example:\n  HEALTHCHECK CMD [\"jobcast\", \"healthcheck\"]")]
    Healthcheck(healthcheck::Args),
    /// Asks a running Jobcast through its proxies, and says what stands in the way and how to mend it
    #[command(
        after_help = "Example:\n  jobcast doctor https://app.example.org/live --job build-7 --origin https://app.example.org"
    )]
    Doctor(doctor::Args),
    /// Prints a script that completes commands in a shell: for packages
    #[command(hide = true, after_help = "Example:\n  jobcast completions bash > /etc/bash_completion.d/jobcast")]
    Completions(completions::Args),
    /// Prints the manual's page: for packages
    #[command(hide = true, after_help = "Example:\n  jobcast man > jobcast.1")]
    Man,
}

/// Parses the command line and runs the command.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command.unwrap_or(Command::Serve(cli.config));
    if !matches!(command, Command::Bench(_)) {
        return actix_rt::System::new().block_on(execute(command));
    }
    // Thousands of subscribers keep every core busy; the other commands need one thread.
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(execute(command)),
        Err(error) => failed(format!("cannot start threads: {error}")),
    }
}

async fn execute(command: Command) -> ExitCode {
    match command {
        Command::Serve(config) => serve::run(config).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Schema(args) => schema::run(args),
        Command::Emit(args) => emit::run(args).await,
        Command::Tail(args) => tail::run(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Healthcheck(args) => healthcheck::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Completions(args) => completions::completions(args),
        Command::Man => completions::man(),
    }
}

/// Prints a command's result, and returns `then`. A reader that has gone is no failure; a full disk is one.
fn printed(text: impl Display, then: ExitCode) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => then,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => then,
        Err(error) => failed(format_args!("cannot print: {error}")),
    }
}

/// Prints why a command failed and returns exit code 1.
fn failed(why: impl Display) -> ExitCode {
    say(why);
    ExitCode::FAILURE
}

/// Prints what is wrong with the command line or the settings and returns exit code 2.
fn misused(why: impl Display) -> ExitCode {
    why.to_string().lines().for_each(say);
    ExitCode::from(2)
}
