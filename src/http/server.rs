//! The two listeners and the public server: what every worker serves, and the options of its sockets.

use super::accept::{Acceptor, Rules};
use super::bounded::{Bounded, OpenConnections};
use super::current_cors::CurrentCors;
use super::{App, access, cors, edge, in_flight, routes};
use crate::delivery::handoff::Connection;
use crate::delivery::threads::Threads;
use actix_http::{Extensions, HttpService, KeepAlive};
use actix_server::GracefulShutdownSignal;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, fn_factory, fn_service};
use actix_web::dev::AppConfig;
use actix_web::middleware::from_fn;
use actix_web::web;
use actix_web_lab::middleware::CatchPanic;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Connections that the kernel holds until they are accepted. With 128, which `std` asks for, it drops SYNs when many
/// browsers reconnect at once.
const BACKLOG: i32 = 4096;
/// Bytes that the kernel may hold for one subscriber that reads slowly; more would be memory that no setting bounds.
const SEND_BUFFER: usize = 128 * 1024;
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

/// Starts the public server; `tls` holds its rules of TLS, or it serves HTTP in the clear.
pub fn serve(
    listener: TcpListener,
    app: web::Data<App>,
    threads: Threads,
    tls: Option<Arc<ServerConfig>>,
) -> io::Result<actix_server::Server> {
    let rules = Rules {
        tls,
        header_timeout: app.settings.header_timeout,
        write_timeout: app.streams.rules.write_timeout,
        trusted_proxies: app.settings.trusted_proxies.clone().into(),
        connections: OpenConnections::new(app.streams.admission.clone()),
    };
    let server = actix_server::Server::build()
        .workers(app.settings.worker_count())
        // `Admission` counts the connections, since those that have left actix count, too, and all workers together.
        .max_concurrent_connections(usize::MAX)
        .disable_signals()
        .shutdown_timeout(1);
    let leaving = server.graceful_shutdown_signal();
    let server = server.listen("http", listener, move || {
        let (app, threads, rules, leaving) = (app.clone(), threads.clone(), rules.clone(), leaving.clone());
        fn_factory(move || worker(app.clone(), threads.clone(), rules.clone(), leaving.clone()))
    })?;
    Ok(server.run())
}

/// Makes one worker's service. HTTP/1.1 and HTTP/2 call one app.
async fn worker(
    app: web::Data<App>,
    threads: Threads,
    rules: Rules,
    leaving: GracefulShutdownSignal,
) -> Result<impl Service<tokio::net::TcpStream, Response = (), Error = Infallible>, ()> {
    let (settings, streams) = (app.clone(), app.streams.clone());
    let routes = actix_web::App::new()
        .wrap(CatchPanic::default())
        .wrap(from_fn(routes::answer_panic))
        .wrap(CurrentCors::new(app.cors.clone()))
        .wrap(from_fn(cors::explain))
        .wrap(from_fn(in_flight::count))
        .wrap(from_fn(edge::check))
        .wrap(from_fn(access::log))
        .configure(move |config| routes::configure(config, &settings));
    let app = Rc::new(routes.into_factory().new_service(AppConfig::default()).await?);
    let shared = app.clone();
    let http1 = HttpService::build()
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .client_request_timeout(rules.header_timeout)
        .client_disconnect_timeout(Duration::from_secs(1))
        .graceful_shutdown_signal(move || {
            let leaving = leaving.clone();
            async move { leaving.notified().await }
        })
        .h1_allow_half_closed(false)
        .on_connect_ext(|bounded: &Bounded<Connection>, data: &mut Extensions| {
            let connection = bounded.connection();
            data.insert(connection.stalled());
            data.insert(bounded.progress());
            if let Some(slot) = connection.slot() {
                data.insert(slot);
            }
        })
        .h1(fn_factory(move || ready(Ok::<_, ()>(shared.clone()))))
        .new_service(())
        .await?;
    let acceptor = Rc::new(Acceptor::new(http1, app, rules, threads, streams));
    Ok(fn_service(move |socket| {
        let acceptor = acceptor.clone();
        async move {
            acceptor.serve(socket).await;
            Ok(())
        }
    }))
}

/// Sets a socket's options. A socket that refuses one still works.
pub fn tune(socket: &tokio::net::TcpStream, write_timeout: Duration) {
    let socket = socket2::SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(write_timeout));
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(write_timeout));
}
