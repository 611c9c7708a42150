//! The admin listener: health, readiness, metrics, the settings, the log's level, a view of the live jobs, the open streams, and
//! the way out. It must not be reachable for the public.

use super::connections::{self, Connections};
use super::edge;
use super::extract::{LevelQuery, Query};
use super::hosts::Hosts;
use super::problem::Problem;
use super::routes::{self, address, reading};
use crate::config::Effective;
use crate::delivery::admission::Admission;
use crate::hub::Hub;
use crate::logging;
use crate::shutdown::{DrainRequest, Phase, ShutdownWatch};
use crate::supervise::Supervisor;
use crate::telemetry::MetricsExporter;
use actix_web::http::header;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, ResponseError, web};
use actix_web_lab::middleware::CatchPanic;
use serde_json::json;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

/// Parts of the process that the admin listener reports on.
#[derive(Clone)]
pub struct Health {
    /// Live jobs, and the outage of the source, if there is one.
    pub hub: Hub,
    /// Count of open streams.
    pub admission: Admission,
    pub shutdown: ShutdownWatch,
    pub drain: DrainRequest,
    /// The parts without which the process is of no use.
    pub supervisor: Supervisor,
    pub metrics: MetricsExporter,
    /// Length of an outage after which `/readyz` says no; zero for never.
    pub ready_grace: Duration,
    /// Names that the listener answers to.
    pub hosts: Hosts,
    pub settings: Effective,
}

/// Open connections, at most, so that the process keeps files for everything else.
pub const MAX_CONNECTIONS: usize = 32;

/// Starts the admin server, on one thread of its own.
pub fn serve(listener: TcpListener, health: Health, connections: Connections) -> io::Result<actix_web::dev::Server> {
    let server = HttpServer::new(move || {
        App::new()
            .wrap(CatchPanic::default())
            .wrap(from_fn(routes::answer_panic))
            .wrap(from_fn(edge::check_host))
            .app_data(health.hosts.clone())
            .app_data(web::Data::new(health.clone()))
            .app_data(web::Data::new(connections.clone()))
            .service(reading("/healthz", healthy))
            .service(reading("/readyz", ready))
            .service(reading("/metrics", metrics))
            .service(reading("/debug/channels", channels))
            .service(reading("/settings", settings))
            .service(
                address("/log/level", "GET, HEAD, PUT")
                    .route(web::get().to(log_level))
                    .route(web::head().to(log_level))
                    .route(web::put().to(set_log_level)),
            )
            .service(address("/drain", "POST").route(web::post().to(drain)))
            .service(
                address("/connections", "GET, HEAD, DELETE")
                    .route(web::get().to(connections::list))
                    .route(web::head().to(connections::list))
                    .route(web::delete().to(connections::close)),
            )
            .default_service(web::to(async || Problem::not_found(ADDRESSES).error_response()))
    });
    let server = server.workers(1).max_connections(MAX_CONNECTIONS).disable_signals().shutdown_timeout(1);
    Ok(server.listen(listener)?.run())
}

/// The answer's detail where nothing is.
const ADDRESSES: &str = "nothing is here; there are /healthz, /readyz, /metrics, /settings, /log/level, /debug/channels, \
                         /connections and /drain";

/// Problem code of a process that ends because one of its parts has failed.
const PART_FAILED: &str = "server.part_failed";

async fn healthy(health: web::Data<Health>) -> HttpResponse {
    match health.supervisor.failure() {
        None => HttpResponse::Ok().json(json!({ "status": "ok" })),
        Some(failure) => HttpResponse::ServiceUnavailable()
            .json(json!({ "status": "failed", "code": PART_FAILED, "detail": failure.to_string() })),
    }
}

/// Answers 200 also while the source is down, since streams are held and answered better here than by a balancer; the JSON
/// says so. Only `source.ready_grace` makes it a 503.
async fn ready(health: web::Data<Health>) -> HttpResponse {
    let not = |code: &str, detail: &str| {
        HttpResponse::ServiceUnavailable().json(json!({ "status": "unready", "code": code, "detail": detail }))
    };
    if let Some(failure) = health.supervisor.failure() {
        return not(PART_FAILED, &failure.to_string());
    }
    if health.shutdown.phase() > Phase::Serving {
        return not("server.draining", "this Jobcast is leaving");
    }
    let Some(outage) = health.hub.outage() else { return HttpResponse::Ok().json(json!({ "status": "ready" })) };
    let code = outage.error.code.as_str();
    if !health.ready_grace.is_zero() && outage.since.elapsed() >= health.ready_grace {
        return not(code, "the source does not answer");
    }
    let detail = if outage.error.kind_is_retryable() {
        "the source does not answer; streams are held, and go on when it does"
    } else {
        "the source cannot be read until an operator mends it; the log says how"
    };
    HttpResponse::Ok().json(json!({ "status": "source_down", "code": code, "detail": detail }))
}

async fn metrics(health: web::Data<Health>) -> HttpResponse {
    // The media type of the text format (Prometheus, "Exposition formats").
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(health.metrics.render())
}

/// Answers with the settings that are in effect, secrets masked.
async fn settings(health: web::Data<Health>) -> HttpResponse {
    // The media type of TOML v1.0.0, section "MIME Type".
    HttpResponse::Ok().content_type("application/toml; charset=utf-8").body(health.settings.to_toml())
}

/// Answers with the level from which lines are logged: `{"level"}`.
async fn log_level() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "level": logging::level() }))
}

/// Changes the level of the log until the settings are read again, or the process ends.
async fn set_log_level(Query(LevelQuery(level)): Query<LevelQuery>) -> HttpResponse {
    logging::change_level(&level);
    log_level().await
}

/// Makes the process leave, as SIGTERM does. Whoever asks again, or while it leaves, changes nothing.
async fn drain(request: HttpRequest, health: web::Data<Health>) -> Result<HttpResponse, Problem> {
    // A browser sends this with every POST, also with those that a page of anywhere makes it send to this machine.
    if request.headers().contains_key(header::ORIGIN) {
        return Err(Problem::sent_by_page("pages may not make Jobcast leave; ask from a program"));
    }
    if health.shutdown.phase() == Phase::Serving {
        health.drain.make();
    }
    Ok(HttpResponse::Accepted().json(json!({ "status": "leaving", "streams": health.admission.open() })))
}

async fn channels(health: web::Data<Health>) -> HttpResponse {
    let channels: Vec<_> = health
        .hub
        .all()
        .iter()
        .map(|channel| {
            let (events, bytes, cursor) = channel.holds();
            let lag = channel.last_read().elapsed().as_secs_f64();
            json!({
                "jobId": channel.topic.jobs()[0],
                "jobs": channel.topic.jobs().len(),
                "subscribers": channel.subscribers(),
                "ring": { "events": events, "bytes": bytes },
                "cursor": cursor,
                "secondsSinceLastEvent": lag,
            })
        })
        .collect();
    HttpResponse::Ok().json(json!({ "streams": health.admission.open(), "channels": channels }))
}
