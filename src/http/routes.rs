//! The public addresses and their handlers, and the answer to panics that is wrapped around all of them.

use super::problem::Problem;
use super::{App, events, ingest, jobs, page, sets, stream};
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::guard::{GuardContext, fn_guard};
use actix_web::middleware::{Next, from_fn};
use actix_web::{Error, FromRequest, Handler, Resource, Responder, Route, web};
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
        .service(reading(&settings.stream_path, stream::get))
        .service(of_set(&settings.stream_path, stream::get_set))
        .service(of_set(&settings.events_path, sets::get).guard(fn_guard(names_jobs)))
        .service(
            address(&settings.events_path, "GET, HEAD, POST")
                .route(web::get().to(events::get))
                .route(web::head().to(events::get))
                .route(web::post().to(ingest::append).wrap(ingest())),
        )
        .service(reading("/runner-jobs", jobs::list))
        .service(
            address("/runner-jobs/{job_id}", "GET, HEAD, PUT")
                .route(web::get().to(jobs::get))
                .route(web::head().to(jobs::get))
                .route(web::put().to(ingest::set_status).wrap(ingest())),
        )
        .service(reading("/openapi.json", page::openapi));
    for asset in page::ASSETS.iter().filter(|asset| settings.live_page || asset.is_client()) {
        let answer = move |app: web::Data<App>| async move { asset.answer(&app) };
        config.service(reading(asset.path, answer).wrap(page::headers()));
    }
    config.default_service(nothing());
}

/// An address that is only read: it answers HEAD as GET, without the body.
pub fn reading<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args, Output: Responder> + Clone,
    Args: FromRequest + 'static,
{
    address(path, "GET, HEAD").route(web::get().to(handler.clone())).route(web::head().to(handler))
}

/// The address of a set of jobs: that of one job, without the job.
fn of_set<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args, Output: Responder> + Clone,
    Args: FromRequest + 'static,
{
    reading(&path.replacen("/{job_id}", "", 1), handler)
}

/// Tells a request to a set's address from others to the same path, which may be that of a job with the name of its last
/// segment.
fn names_jobs(context: &GuardContext<'_>) -> bool {
    let query = context.head().uri.query();
    query.is_some_and(|query| query.split('&').any(|part| part.starts_with("job=")))
}

/// An address that answers other methods than these with a 405.
pub fn address(path: &str, methods: &'static str) -> Resource {
    web::resource(path).default_service(web::to(move || ready(Err::<(), _>(Problem::not_allowed_but(methods)))))
}

/// The answer of all addresses that are none.
pub fn nothing() -> Route {
    web::to(|| ready(Err::<(), _>(Problem::not_found("nothing is here; see /openapi.json"))))
}
