//! `jobcast healthcheck`: asks `/readyz`, for containers that have no curl.

use super::{ConfigFile, failed, misused};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// The admin listener; by default the one in the settings
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

pub async fn run(args: Args) -> ExitCode {
    let base = match (args.url, args.config.load()) {
        (Some(url), _) => url,
        (None, Ok(settings)) => format!("http://{}", reachable(settings.admin.listen)),
        (None, Err(errors)) => return misused(errors),
    };
    let url = format!("{}/readyz", base.trim_end_matches('/'));
    let client = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    match client.get(&url).send().await {
        Ok(mut answer) if !answer.status().is_success() => {
            let body = answer.body().await.unwrap_or_default();
            failed(format!("{url} answered {}: {}", answer.status(), String::from_utf8_lossy(&body)))
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => failed(format!("{url} does not answer: {error}")),
    }
}

/// Where a listener on all addresses is reached from the same machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
