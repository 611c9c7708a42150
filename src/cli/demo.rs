//! `jobcast demo`: the daemon on a throw-away file, and a runner that only writes rows to it.

mod runner;

use super::{failed, misused};
use crate::config::Settings;
use crate::shutdown::Phase;
use crate::telemetry;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// Where the page is to be; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where health and metrics are to be
    #[arg(long, default_value = "127.0.0.1:9464")]
    admin_listen: SocketAddr,
}

pub async fn run(args: Args) -> ExitCode {
    if !args.listen.ip().is_loopback() {
        return misused(format!("--listen {}: the demo lets anybody write, so it stays on loopback", args.listen));
    }
    let folder = match Folder::new() {
        Ok(folder) => folder,
        Err(error) => {
            return failed(format!(
                "cannot make a temporary directory: {error} (set TMPDIR to one that can be written)"
            ));
        }
    };
    let database = folder.0.join("demo.db");
    let mut settings = Settings::default();
    settings.http.listen = args.listen;
    settings.admin.listen = args.admin_listen;
    settings.source.sqlite.path = database.clone();
    // Nobody balances load over a demo: Ctrl-C is to end it.
    settings.shutdown.grace = Duration::ZERO;
    settings.shutdown.drain = Duration::from_millis(500);
    telemetry::log_to_stderr("warn", settings.log.format);
    let mut runner = None;
    let served = super::serve::serve(settings, |address, shutdown| {
        println!("Jobs are running: open http://{address}/ (Ctrl-C ends the demo)");
        runner = Some(tokio::spawn(async move { runner::run(&database, shutdown.reached(Phase::Unready)).await }));
    })
    .await;
    let ran = match runner {
        Some(runner) => runner.await.unwrap_or(Ok(())),
        None => Ok(()),
    };
    match (served, ran) {
        (Ok(()), Ok(())) => ExitCode::SUCCESS,
        // what is a setting elsewhere is an option here
        (Err(why), _) => {
            failed(why.to_string().replace("admin.listen", "--admin-listen").replace("http.listen", "--listen"))
        }
        (_, Err(error)) => failed(format!("the demo's runner cannot write: {error}")),
    }
}

/// A directory that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("jobcast-demo-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
