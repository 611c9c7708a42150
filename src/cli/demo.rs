//! `jobcast demo`: the daemon on a throw-away SQLite file, and a simulated runner that only writes rows to it.

mod runner;

use super::serve::{self, ServeError};
use super::{failed, misused};
use crate::config::Settings;
use crate::http::Listener;
use crate::logging;
use crate::shutdown::Phase;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// Address of the page; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Address of health and metrics
    #[arg(long, default_value = "127.0.0.1:9464")]
    admin_listen: SocketAddr,
    /// Lets anybody who reaches --listen watch, where that is not loopback: in a container, say. They cannot write
    #[arg(long)]
    allow_anonymous: bool,
}

pub async fn run(args: Args) -> ExitCode {
    if !args.listen.ip().is_loopback() && !args.allow_anonymous {
        return misused(format!(
            "--listen {}: anybody who reaches it could watch; add --allow-anonymous if that is meant, or listen on loopback",
            args.listen
        ));
    }
    // Removed when it is dropped.
    let folder = match tempfile::Builder::new().prefix("jobcast-demo-").tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            return failed(format!(
                "cannot make a temporary directory: {error} (set TMPDIR to one that can be written)"
            ));
        }
    };
    let database = folder.path().join("demo.db");
    let settings = settings(&args, &database);
    let _log = logging::to_stderr("warn", settings.log.format);
    let mut runner = None;
    let served = serve::serve(settings, |address, shutdown| {
        // A demo that nobody reads goes on all the same.
        let _ = writeln!(std::io::stdout(), "Jobs are running: open http://{address}/ (Ctrl-C ends the demo)");
        runner = Some(tokio::spawn(async move { runner::run(&database, shutdown.reached(Phase::Unready)).await }));
    })
    .await;
    let ran = match runner {
        Some(runner) => runner.await.unwrap_or(Ok(())),
        None => Ok(()),
    };
    match (served, ran) {
        (Ok(()), Ok(())) => ExitCode::SUCCESS,
        (Err(ServeError::Listen(error)), _) => failed(error.describe(option(error.listener))),
        (Err(error), _) => failed(error),
        (_, Err(error)) => failed(format!("the demo's runner cannot write: {error}")),
    }
}

fn settings(args: &Args, database: &Path) -> Settings {
    let mut settings = Settings::default();
    settings.http.listen = args.listen;
    settings.admin.listen = args.admin_listen;
    settings.auth.allow_anonymous = args.allow_anonymous;
    settings.source.sqlite.path = database.to_path_buf();
    // No balancer has to notice that a demo leaves, so Ctrl-C ends it at once.
    settings.shutdown.grace = Duration::ZERO;
    settings.shutdown.drain = Duration::from_millis(500);
    settings
}

/// Option of the command line that gives a listener its address.
fn option(listener: Listener) -> &'static str {
    match listener {
        Listener::Public => "--listen",
        Listener::Admin => "--admin-listen",
    }
}
