//! The addresses, one module each, and the server that answers them. No SQL, no event's bytes.

mod admin;
mod events;
mod jobs;
mod page;
mod problem;
mod stream;

pub use admin::{Health, serve as serve_admin};

use crate::config;
use crate::delivery::StreamContext;
use crate::delivery::handoff::Connection;
use crate::delivery::threads::Threads;
use crate::event::JobId;
use crate::source::Source;
use actix_http::{Extensions, HttpService, KeepAlive};
use actix_service::{ServiceFactoryExt, fn_service, map_config};
use actix_web::dev::AppConfig;
use actix_web::http::Method;
use actix_web::middleware::Condition;
use actix_web::{HttpRequest, web};
use problem::Problem;
use serde::Deserialize;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

/// At 128, which is what `std` asks for, SYNs are dropped when many browsers come back at once.
const BACKLOG: i32 = 4096;
/// What the kernel may hold for one subscriber who reads slowly; more would be memory that no setting bounds.
const SEND_BUFFER: usize = 128 * 1024;

/// What handlers work with.
pub struct App {
    pub source: Arc<dyn Source>,
    pub streams: StreamContext,
    pub settings: config::Http,
    pub ingest: config::Ingest,
    pub ingest_enabled: bool,
}

/// Binds a listener on which many may arrive at once; the error says what to do.
pub fn listen(key: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let bind = || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    bind().map_err(|error: io::Error| {
        let mend = match error.kind() {
            io::ErrorKind::AddrInUse => "another process listens there: stop it",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE: grant it",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address: give one that it has",
            _ => "see the cause",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error} ({mend}, or change {key})"))
    })
}

/// The public listener. Connections are wrapped so that a live stream's socket can leave actix.
pub fn serve(listener: TcpListener, app: web::Data<App>, threads: Threads) -> io::Result<actix_server::Server> {
    let workers = app.settings.worker_count();
    let header_timeout = app.settings.header_timeout;
    let write_timeout = app.streams.rules.write_timeout;
    let server = actix_server::Server::build()
        .workers(workers)
        // handed-over streams do not count here; a little more, for those that are to be told so
        .max_concurrent_connections(app.settings.max_connections.saturating_add(1024))
        .disable_signals()
        .shutdown_timeout(1);
    let server = server.listen("http", listener, move || {
        let app = app.clone();
        let threads = threads.clone();
        let routes = {
            let app = app.clone();
            actix_web::App::new()
                .wrap(Condition::new(has_cors(&app), cors(&app)))
                .configure(move |config| routes(config, &app))
        };
        let http = HttpService::build()
            .keep_alive(KeepAlive::Timeout(Duration::from_secs(75)))
            .client_request_timeout(header_timeout)
            .client_disconnect_timeout(Duration::from_secs(1))
            .h1_allow_half_closed(false)
            .on_connect_ext(|connection: &Connection, data: &mut Extensions| {
                data.insert(connection.slot());
            })
            .h1(map_config(routes, |_| AppConfig::default()));
        fn_service(move |socket: tokio::net::TcpStream| {
            let peer = socket.peer_addr().ok();
            tune(&socket, write_timeout);
            let connection = Connection::new(socket, threads.clone());
            std::future::ready(Ok::<_, actix_http::error::DispatchError>((connection, peer)))
        })
        .and_then(http)
    })?;
    Ok(server.run())
}

/// Best effort: a socket that cannot be tuned still works.
fn tune(socket: &tokio::net::TcpStream, write_timeout: Duration) {
    let socket = socket2::SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(write_timeout));
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(write_timeout));
}

fn routes(config: &mut web::ServiceConfig, app: &web::Data<App>) {
    let settings = &app.settings;
    let not_allowed = || {
        web::to(|| {
            std::future::ready(Err::<(), _>(Problem::not_allowed("see /openapi.json for what may be done here")))
        })
    };
    config
        .app_data(app.clone())
        .service(
            web::resource(settings.stream_path.as_str())
                .route(web::get().to(stream::get))
                .route(web::head().to(stream::get))
                .default_service(not_allowed()),
        )
        .service(
            web::resource(settings.events_path.as_str())
                .route(web::get().to(events::get))
                .route(web::post().to(events::post))
                .default_service(not_allowed()),
        )
        .service(web::resource("/runner-jobs").route(web::get().to(jobs::list)).default_service(not_allowed()))
        .service(web::resource("/runner-jobs/{job_id}").route(web::put().to(jobs::put)).default_service(not_allowed()))
        .service(web::resource("/openapi.json").route(web::get().to(page::openapi)).default_service(not_allowed()));
    for asset in page::ASSETS.iter().filter(|asset| settings.live_page || asset.is_client()) {
        let resource = web::resource(asset.path)
            .route(web::get().to(move |app: web::Data<App>| async move { asset.answer(&app) }));
        config.service(resource.default_service(not_allowed()));
    }
    config.default_service(web::to(|| {
        std::future::ready(Err::<(), _>(Problem::not_found("nothing is here; see /openapi.json")))
    }));
}

fn has_cors(app: &App) -> bool {
    !app.settings.cors.origins.is_empty()
}

fn cors(app: &App) -> actix_cors::Cors {
    let settings = &app.settings.cors;
    let mut cors = actix_cors::Cors::default()
        .allowed_methods([Method::GET, Method::POST, Method::PUT])
        .allowed_headers(["Last-Event-ID", "Authorization", "Content-Type", "Cache-Control", "Accept"])
        .expose_headers(["X-Jobcast-Connection", "X-Jobcast-Replay", "X-Jobcast-Cursor", "Retry-After"])
        .max_age(3600);
    for origin in &settings.origins {
        cors = if origin == "*" { cors.allow_any_origin() } else { cors.allowed_origin(origin) };
    }
    if settings.credentials { cors.supports_credentials() } else { cors }
}

/// `{job_id}` of a path.
#[derive(Deserialize)]
pub struct JobPath {
    job_id: String,
}

impl JobPath {
    fn job(&self) -> Result<JobId, Problem> {
        self.job_id.parse().map_err(|error: crate::event::BadJobId| Problem::bad_job_id(error.to_string()))
    }
}

/// The query's parameters; the last of equal names counts.
fn query(request: &HttpRequest) -> Result<HashMap<String, String>, Problem> {
    web::Query::<HashMap<String, String>>::from_query(request.query_string())
        .map(web::Query::into_inner)
        .map_err(|error| Problem::bad_query(format!("the query cannot be read: {error}")))
}

/// A whole number in the query, within its bounds.
fn number(
    query: &HashMap<String, String>,
    name: &str,
    default: usize,
    least: usize,
    most: usize,
) -> Result<usize, Problem> {
    let Some(text) = query.get(name) else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| Problem::bad_query(format!("{name}={text:?} is no whole number from {least} to {most}")))
}

/// The caller's address: the peer's, or behind trusted proxies the last one in X-Forwarded-For that is none of them.
fn client_address(request: &HttpRequest, app: &App) -> Option<IpAddr> {
    let peer = request.peer_addr()?.ip();
    let trusted = &app.settings.trusted_proxies;
    if !trusted.contains(&peer) {
        return Some(peer);
    }
    let values = request.headers().get_all("X-Forwarded-For").filter_map(|value| value.to_str().ok());
    let hops: Vec<IpAddr> =
        values.flat_map(|value| value.split(',')).filter_map(|hop| hop.trim().parse().ok()).collect();
    hops.into_iter().rev().find(|hop| !trusted.contains(hop)).or(Some(peer))
}
