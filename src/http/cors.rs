//! Pages of other origins: which of them may watch, and with what (Fetch, section 3.2).

use super::problem::Problem;
use crate::config;
use actix_cors::{Cors, CorsError};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{Method, header};
use actix_web::middleware::Next;
use actix_web::{Error, ResponseError};

/// Headers that Jobcast reads.
const READ: [&str; 5] = ["Last-Event-ID", "Authorization", "Content-Type", "Cache-Control", "Accept"];

/// Headers of answers that a page may read.
const TOLD: [&str; 5] =
    ["X-Jobcast-Connection", "X-Jobcast-Replay", "X-Jobcast-Unique", "X-Jobcast-Cursor", "Retry-After"];

/// Lets the pages of `http.cors.origins` watch. It answers preflights itself, so that they need no credentials.
pub fn allow(settings: &config::Cors) -> Cors {
    let mut cors = Cors::default()
        .allowed_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT])
        .allowed_headers(READ)
        .expose_headers(TOLD)
        .max_age(3600);
    for header in &settings.headers {
        cors = cors.allowed_header(header.as_str());
    }
    for origin in &settings.origins {
        cors = if origin == "*" { cors.allow_any_origin() } else { cors.allowed_origin(origin) };
    }
    if settings.credentials { cors.supports_credentials() } else { cors }
}

/// Says why a preflight was refused as every other error is said.
pub async fn explain(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let response = next.call(request).await?.map_into_boxed_body();
    let Some(why) = response.response().error().and_then(|error| error.as_error::<CorsError>()) else {
        return Ok(response);
    };
    let problem = Problem::bad_preflight(format!("pages of other origins may not send this: {why}"));
    let (request, _) = response.into_parts();
    let mut response = problem.error_response();
    let varies =
        header::HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers");
    response.headers_mut().insert(header::VARY, varies);
    Ok(ServiceResponse::new(request, response))
}
