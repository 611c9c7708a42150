//! The public addresses and their handlers, and what is wrapped around all of them: CORS and an answer to panics.

use super::problem::Problem;
use super::{App, events, ingest, jobs, page, stream};
use crate::config;
use actix_cors::Cors;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::middleware::{Next, from_fn};
use actix_web::{Error, Resource, Route, web};
use std::future::ready;

/// Answers a request whose handler panicked as every other error is answered. Handlers return their errors as answers, so
/// that only `CatchPanic` gets here, and its own answer has no body.
pub async fn answer_panic(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    next.call(request)
        .await
        .map_err(|_| Problem::internal("this request met an error in Jobcast itself; see its log").into())
}

/// Adds all addresses of the public listener.
pub fn configure(config: &mut web::ServiceConfig, app: &web::Data<App>) {
    let settings = &app.settings;
    let ingest = || from_fn(ingest::count);
    config
        .app_data(app.clone())
        .service(resource(&settings.stream_path).route(web::get().to(stream::get)).route(web::head().to(stream::get)))
        .service(
            resource(&settings.events_path)
                .route(web::get().to(events::get))
                .route(web::post().to(ingest::append).wrap(ingest())),
        )
        .service(resource("/runner-jobs").route(web::get().to(jobs::list)))
        .service(
            resource("/runner-jobs/{job_id}")
                .route(web::get().to(jobs::get))
                .route(web::put().to(ingest::set_status).wrap(ingest())),
        )
        .service(resource("/openapi.json").route(web::get().to(page::openapi)));
    for asset in page::ASSETS.iter().filter(|asset| settings.live_page || asset.is_client()) {
        let answer = move |app: web::Data<App>| async move { asset.answer(&app) };
        config.service(resource(asset.path).route(web::get().to(answer)).wrap(page::headers()));
    }
    config.default_service(problem(|| Problem::not_found("nothing is here; see /openapi.json")));
}

/// An address that answers methods without a route of their own with 405.
fn resource(path: &str) -> Resource {
    web::resource(path).default_service(problem(|| Problem::not_allowed("see /openapi.json for what may be done here")))
}

fn problem(make: fn() -> Problem) -> Route {
    web::to(move || ready(Err::<(), _>(make())))
}

/// Lets the pages of `http.cors.origins` watch.
pub fn cors(settings: &config::Cors) -> Cors {
    let mut cors = Cors::default()
        .allowed_methods([Method::GET, Method::POST, Method::PUT])
        .allowed_headers(["Last-Event-ID", "Authorization", "Content-Type", "Cache-Control", "Accept"])
        .expose_headers(["X-Jobcast-Connection", "X-Jobcast-Replay", "X-Jobcast-Cursor", "Retry-After"])
        .max_age(3600);
    for origin in &settings.origins {
        cors = if origin == "*" { cors.allow_any_origin() } else { cors.allowed_origin(origin) };
    }
    if settings.credentials { cors.supports_credentials() } else { cors }
}
