//! `jobcast demo`: the daemon on a throw-away SQLite file, and a simulated runner that only writes rows to it.

mod runner;

use super::serve::{self, ServeError};
use super::{ConfigFile, failed, misused};
use crate::config::{AuthMode, ConfigErrors, Settings};
use crate::http::Listener;
use crate::logging;
use crate::shutdown::Phase;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Address of the page, 127.0.0.1:8080 unless it is set; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address of health and metrics, 127.0.0.1:9464 unless it is set
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    /// Lets anybody who reaches --listen watch, where that is not loopback: in a container, say. They cannot write
    #[arg(long)]
    allow_anonymous: bool,
}

pub async fn run(args: Args) -> ExitCode {
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
    let settings = match settings(&args, &database, ConfigFile::variables()) {
        Ok(settings) => settings,
        Err(errors) => return misused(errors),
    };
    let http = &settings.http;
    if !http.listen.ip().is_loopback() && settings.auth.mode == AuthMode::None && !settings.auth.allow_anonymous {
        return misused(format!(
            "--listen {}: anybody who reaches it could watch; add --allow-anonymous if that is meant, or listen on loopback",
            http.listen
        ));
    }
    let scheme = if http.tls.is_enabled() { "https" } else { "http" };
    let _log = logging::to_stderr(&settings.log.level, settings.log.access, settings.log.format, None);
    let mut runner = None;
    let served = serve::serve(settings, |address, shutdown| {
        let page = reachable(address);
        // A demo that nobody reads goes on all the same.
        let _ = writeln!(std::io::stdout(), "Jobs are running: open {scheme}://{page}/ (Ctrl-C ends the demo)");
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

/// The demo's own settings, by their variables: those of the environment lie over them.
const OWN: &[(&str, &str)] = &[
    ("JOBCAST_LOG__LEVEL", "warn"),
    // No balancer has to notice that a demo leaves, so Ctrl-C ends it at once.
    ("JOBCAST_SHUTDOWN__GRACE", "0s"),
    ("JOBCAST_SHUTDOWN__DRAIN", "500ms"),
];
/// Variables that a demo cannot follow, since it has a store of its own.
const STORE: &[&str] =
    &["JOBCAST_SOURCE__KIND", "JOBCAST_SOURCE__SQLITE__", "JOBCAST_SOURCE__POSTGRES__", "JOBCAST_SOURCE__REDIS__"];

/// Lays the environment over the demo's own settings, and the options of the command line over both.
fn settings(
    args: &Args,
    database: &Path,
    environment: impl IntoIterator<Item = (String, OsString)>,
) -> Result<Settings, ConfigErrors> {
    let mut variables: BTreeMap<String, OsString> =
        OWN.iter().map(|(name, value)| (name.to_string(), value.into())).collect();
    variables.extend(environment.into_iter().filter(|(name, _)| !STORE.iter().any(|store| name.starts_with(store))));
    variables.insert("JOBCAST_SOURCE__SQLITE__PATH".into(), database.into());
    // An address that is open to others is looked at here, so that the mend that is named is the demo's own option.
    let is_anonymous = variables.insert("JOBCAST_AUTH__ALLOW_ANONYMOUS".into(), "true".into());
    for (name, address) in [("JOBCAST_HTTP__LISTEN", args.listen), ("JOBCAST_ADMIN__LISTEN", args.admin_listen)] {
        if let Some(address) = address {
            variables.insert(name.into(), address.to_string().into());
        }
    }
    let mut settings = Settings::load(None, variables)?;
    settings.auth.allow_anonymous = args.allow_anonymous || is_anonymous.is_some_and(|given| given == "true");
    settings.http.is_demo = true;
    Ok(settings)
}

/// The address at which a browser of this machine finds what listens on all of its addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Option of the command line that gives a listener its address.
fn option(listener: Listener) -> &'static str {
    match listener {
        Listener::Public => "--listen",
        Listener::Admin => "--admin-listen",
    }
}
