//! The admin listener: health, readiness, metrics, and a view of the live jobs. It must not be reachable for the public.

use crate::delivery::admission::Admission;
use crate::hub::Hub;
use crate::shutdown::{Phase, ShutdownWatch};
use crate::supervise::Supervisor;
use crate::telemetry::MetricsExporter;
use actix_web::{App, HttpResponse, HttpServer, web};
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
    /// The parts without which the process is of no use.
    pub supervisor: Supervisor,
    pub metrics: MetricsExporter,
    /// Length of an outage after which `/readyz` says no.
    pub ready_grace: Duration,
}

/// Starts the admin server, on one thread of its own.
pub fn serve(listener: TcpListener, health: Health) -> io::Result<actix_web::dev::Server> {
    let server = HttpServer::new(move || {
        App::new()
            .wrap(CatchPanic::default())
            .app_data(web::Data::new(health.clone()))
            .route("/healthz", web::get().to(healthy))
            .route("/readyz", web::get().to(ready))
            .route("/metrics", web::get().to(metrics))
            .route("/debug/channels", web::get().to(channels))
    });
    Ok(server.workers(1).disable_signals().shutdown_timeout(1).listen(listener)?.run())
}

/// Problem code of a process that ends because one of its parts has failed.
const PART_FAILED: &str = "server.part_failed";

async fn healthy(health: web::Data<Health>) -> HttpResponse {
    match health.supervisor.failure() {
        None => HttpResponse::Ok().json(json!({ "status": "ok" })),
        Some(failure) => HttpResponse::ServiceUnavailable()
            .json(json!({ "status": "failed", "code": PART_FAILED, "detail": failure.to_string() })),
    }
}

async fn ready(health: web::Data<Health>) -> HttpResponse {
    let not = |code: &str, detail: String| {
        HttpResponse::ServiceUnavailable().json(json!({ "status": "unready", "code": code, "detail": detail }))
    };
    if let Some(failure) = health.supervisor.failure() {
        return not(PART_FAILED, failure.to_string());
    }
    if health.shutdown.phase() > Phase::Serving {
        return not("server.draining", "this Jobcast is leaving".into());
    }
    match health.hub.outage() {
        Some(outage) if outage.since.elapsed() > health.ready_grace || !outage.error.is_retryable() => {
            not(outage.error.code.as_str(), outage.error.to_string())
        }
        _ => HttpResponse::Ok().json(json!({ "status": "ready" })),
    }
}

async fn metrics(health: web::Data<Health>) -> HttpResponse {
    // The media type of the text format (Prometheus, "Exposition formats").
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(health.metrics.render())
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
                "jobId": channel.job,
                "subscribers": channel.subscribers(),
                "ring": { "events": events, "bytes": bytes },
                "cursor": cursor,
                "secondsSinceLastEvent": lag,
            })
        })
        .collect();
    HttpResponse::Ok().json(json!({ "streams": health.admission.open(), "channels": channels }))
}
