//! The two listeners and the public server. Its connections are wrapped so that a live stream's socket can leave actix.

use super::connection::{Bounded, Connections};
use super::{App, cors, edge, routes};
use crate::delivery::handoff::Connection;
use crate::delivery::threads::Threads;
use actix_http::{Extensions, HttpService, KeepAlive};
use actix_service::{ServiceFactoryExt, fn_service, map_config};
use actix_web::dev::AppConfig;
use actix_web::middleware::{Condition, from_fn};
use actix_web::web;
use actix_web_lab::middleware::CatchPanic;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Connections that the kernel holds until they are accepted. With 128, which `std` asks for, it drops SYNs when many
/// browsers reconnect at once.
const BACKLOG: i32 = 4096;
/// Bytes that the kernel may hold for one subscriber that reads slowly; more would be memory that no setting bounds.
const SEND_BUFFER: usize = 128 * 1024;
/// Connections beyond `http.max_connections` that are accepted, so that they can be told to come back.
const SPARE_CONNECTIONS: usize = 1024;
/// Time that an idle connection is kept for the next request.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// One of the two listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Public,
    Admin,
}

impl Listener {
    /// Setting of its address.
    fn setting(self) -> &'static str {
        match self {
            Self::Public => "http.listen",
            Self::Admin => "admin.listen",
        }
    }
}

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe(self.listener.setting()))]
pub struct ListenError {
    pub listener: Listener,
    address: SocketAddr,
    cause: io::Error,
}

impl ListenError {
    /// The error with what to do about it; `setting` is what the address was given by.
    pub fn describe(&self, setting: &str) -> String {
        let Self { address, cause, .. } = self;
        let help = match cause.kind() {
            io::ErrorKind::AddrInUse => "another process listens there: stop it",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE: grant it",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address: give one that it has",
            _ => "see the cause",
        };
        format!("cannot listen on {address}: {cause} ({help}, or change {setting})")
    }
}

/// Binds a listener that many may connect to at once.
pub fn listen(listener: Listener, address: SocketAddr) -> Result<TcpListener, ListenError> {
    bind(address).map_err(|cause| ListenError { listener, address, cause })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Starts the public server.
pub fn serve(listener: TcpListener, app: web::Data<App>, threads: Threads) -> io::Result<actix_server::Server> {
    let header_timeout = app.settings.header_timeout;
    let write_timeout = app.streams.rules.write_timeout;
    let max_connections = app.settings.max_connections.saturating_add(SPARE_CONNECTIONS);
    let connections = Connections::new(max_connections, app.settings.max_connections_per_ip);
    let server = actix_server::Server::build()
        .workers(app.settings.worker_count())
        // For each worker; `Connections` bounds all of them. Streams whose sockets left actix do not count here.
        .max_concurrent_connections(max_connections)
        .disable_signals()
        .shutdown_timeout(1);
    let server = server.listen("http", listener, move || {
        let (app, threads, connections) = (app.clone(), threads.clone(), connections.clone());
        let trusted = app.settings.trusted_proxies.clone();
        let routes = actix_web::App::new()
            .wrap(CatchPanic::default())
            .wrap(from_fn(routes::answer_panic))
            .wrap(Condition::new(!app.settings.cors.origins.is_empty(), cors::allow(&app.settings.cors)))
            .wrap(Condition::new(!app.settings.cors.origins.is_empty(), from_fn(cors::explain)))
            .wrap(from_fn(edge::check))
            .configure(move |config| routes::configure(config, &app));
        let http = HttpService::build()
            .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
            .client_request_timeout(header_timeout)
            .client_disconnect_timeout(Duration::from_secs(1))
            .h1_allow_half_closed(false)
            .on_connect_ext(|connection: &Bounded<Connection>, data: &mut Extensions| {
                data.insert(connection.connection().slot());
                data.insert(connection.progress());
            })
            .h1(map_config(routes, |_| AppConfig::default()));
        fn_service(move |socket: tokio::net::TcpStream| {
            let peer = socket.peer_addr().ok();
            let ip = peer.map(|peer| peer.ip().to_canonical());
            // A trusted proxy has the connections of all of its clients.
            let limited = ip.filter(|ip| !trusted.iter().any(|network| network.contains(*ip)));
            std::future::ready(match connections.admit(limited) {
                Ok(permit) => {
                    tune(&socket, write_timeout);
                    let connection = Connection::new(socket, threads.clone());
                    Ok((Bounded::new(connection, permit, header_timeout, ip), peer))
                }
                Err(refusal) => {
                    refusal.note(ip);
                    Err(actix_http::error::DispatchError::InternalError)
                }
            })
        })
        .and_then(http)
    })?;
    Ok(server.run())
}

/// Sets a socket's options. A socket that refuses one still works.
fn tune(socket: &tokio::net::TcpStream, write_timeout: Duration) {
    let socket = socket2::SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(write_timeout));
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(write_timeout));
}
