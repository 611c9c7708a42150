//! The service manager, by systemd's protocol: it is told how the process stands (sd_notify(3)), and it may hand over
//! listening sockets that it keeps open over a restart (sd_listen_fds(3)). Where there is none, nobody is told, and nothing
//! is handed over.

use crate::shutdown::{Phase, ShutdownWatch};
use crate::supervise::Supervisor;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// The names that sockets are handed over by: `FileDescriptorName=` of a socket unit.
const NAMES: [&str; 2] = ["http", "admin"];

/// The listening sockets that the service manager has handed over.
#[derive(Debug, Default)]
pub struct Sockets {
    pub http: Option<TcpListener>,
    pub admin: Option<TcpListener>,
}

/// A socket was handed over that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "socket {number} that the service manager hands over is no TCP listener: {cause} (see ListenStream= in the socket unit)"
    )]
    NoListener { number: usize, cause: std::io::Error },
    #[error(
        "the service manager hands over a socket named {0:?}, which has no use here (set FileDescriptorName= to http or admin)"
    )]
    UnknownName(String),
    #[error("the service manager hands over two sockets named {0:?} (remove one ListenStream= from the socket unit)")]
    Twice(&'static str),
}

impl Sockets {
    /// Takes what was handed over to this process. Where the sockets have no names of ours, the first is for `http.listen` and
    /// the second for `admin.listen`.
    pub fn inherited() -> Result<Self, SocketError> {
        // Read first, as `listenfd` takes the variables that it knows away.
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut handed_over = ListenFd::from_env();
        let mut sockets = Self::default();
        for number in 0..handed_over.len() {
            let listener = handed_over.take_tcp_listener(number);
            let Some(listener) = listener.map_err(|cause| SocketError::NoListener { number, cause })? else { continue };
            let name = use_of(number, names.get(number).copied().unwrap_or_default())?;
            let place = if name == "http" { &mut sockets.http } else { &mut sockets.admin };
            if place.replace(listener).is_some() {
                return Err(SocketError::Twice(name));
            }
        }
        Ok(sockets)
    }

    /// The addresses of the two sockets, where they were handed over.
    pub fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let address = |listener: &Option<TcpListener>| listener.as_ref()?.local_addr().ok();
        (address(&self.http), address(&self.admin))
    }
}

/// Returns the listener that a socket is for, by its name. systemd names a socket after its unit, or "unknown", where the
/// unit says nothing else.
fn use_of(number: usize, name: &str) -> Result<&'static str, SocketError> {
    let is_of_unit = matches!(name, "" | "unknown") || name.ends_with(".socket");
    let by_name = NAMES.into_iter().find(|known| *known == name);
    let by_number = NAMES.get(number).copied().filter(|_| is_of_unit);
    by_name.or(by_number).ok_or_else(|| SocketError::UnknownName(name.to_string()))
}

/// Says that everything is served.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that the settings are being read again; [`ready`] ends it.
pub fn reloading() {
    // systemd wants the time with it, to tell whether a reload that it asked for has begun.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the monotonic clock cannot be read"),
    }
}

/// Says that the process is alive, where a watchdog asks for it, and that it leaves, as soon as it does. Ends with the
/// process.
pub async fn keep_informed<F: Future<Output = bool>>(
    supervisor: Supervisor,
    shutdown: ShutdownWatch,
    is_alive: impl Fn() -> F,
) {
    let leaving = async {
        shutdown.reached(Phase::Unready).await;
        tell(&[NotifyState::Stopping]);
        std::future::pending().await
    };
    tokio::select! {
        () = feed_watchdog(&supervisor, is_alive) => {}
        () = leaving => {}
        () = shutdown.reached(Phase::Stopped) => {}
    }
}

/// Says twice within the watchdog's time that no part of the process has failed, and that `is_alive` agrees. Never ends.
async fn feed_watchdog<F: Future<Output = bool>>(supervisor: &Supervisor, is_alive: impl Fn() -> F) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| *limit > Duration::ZERO) else {
        return std::future::pending().await;
    };
    loop {
        if supervisor.failure().is_none() && is_alive().await {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the watchdog is not told that this process is alive, since a part of it is not");
        }
        tokio::time::sleep(limit / 2).await;
    }
}

fn tell(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::warn!(%error, "the service manager in NOTIFY_SOCKET cannot be told how this process stands");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_the_listener_that_it_is_named_after_and_else_by_its_order() {
        for (number, name, expected) in [
            (0, "admin", Some("admin")),
            (1, "http", Some("http")),
            (0, "jobcast.socket", Some("http")),
            (1, "unknown", Some("admin")),
            (0, "", Some("http")),
            (2, "", None),
            (0, "https", None),
        ] {
            assert_eq!(use_of(number, name).ok(), expected, "{number} {name}");
        }
    }
}
