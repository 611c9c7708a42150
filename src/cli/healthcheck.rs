//! `jobcast healthcheck`: asks `/readyz`, for containers that have no curl.

use super::client::{Failure, Trust, http_client};
use super::{ConfigFile, failed, misused};
use crate::outbound::cause;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

/// Time for the whole question and answer.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Args {
    /// The admin listener; by default the one in the settings
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    config: ConfigFile,
}

pub async fn run(args: Args) -> ExitCode {
    let base = match (args.url, args.config.admin_listen()) {
        (Some(url), _) => url,
        (None, Ok(listen)) => format!("http://{}", reachable(listen)),
        (None, Err(errors)) => return misused(errors),
    };
    match probe(&format!("{}/readyz", base.trim_end_matches('/')), &args.trust).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(failure),
    }
}

async fn probe(url: &str, trust: &Trust) -> Result<(), Failure> {
    let unreachable = |error: reqwest::Error| Failure::Unreachable { url: url.into(), cause: cause(&error) };
    let answer = http_client(trust)?.get(url).timeout(TIMEOUT).send().await.map_err(unreachable)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let detail = answer.text().await.unwrap_or_default();
    Err(Failure::Refused { url: url.into(), status, detail, is_ours: true, retry_after: None })
}

/// Address at which a listener is reached from the same machine, also if it listens on all addresses.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
