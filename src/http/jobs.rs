//! `GET /runner-jobs` and `PUT /runner-jobs/{job_id}`: the jobs, and the status of one.

use super::events::{json_body, may_ingest};
use super::problem::Problem;
use super::{App, JobPath, number, query};
use crate::event::JobStatus;
use crate::telemetry;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

pub async fn list(request: HttpRequest, app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let asked = query(&request)?;
    let limit = number(&asked, "limit", 50, 1, 1000)?;
    let status = match asked.get("status").filter(|status| !status.is_empty()) {
        None => None,
        Some(text) => Some(text.parse::<JobStatus>().map_err(|error| Problem::bad_query(error.to_string()))?),
    };
    let jobs = app.source.jobs(status, limit).await?;
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(json!({ "jobs": jobs })))
}

pub async fn put(
    request: HttpRequest,
    path: web::Path<JobPath>,
    body: web::Payload,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let answer = set_status(request, path, body, &app).await;
    telemetry::INGEST.increment(&[("outcome", if answer.is_ok() { "status" } else { "attempts" })], 1);
    answer
}

async fn set_status(
    request: HttpRequest,
    path: web::Path<JobPath>,
    body: web::Payload,
    app: &App,
) -> Result<HttpResponse, Problem> {
    let job = path.job()?;
    may_ingest(&request, app)?;
    let bytes = json_body(&request, body, &app.settings).await?;
    let wanted: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| Problem::bad_json(format!("the body is no JSON: {error}")))?;
    let fields = wanted.as_object().filter(|fields| fields.len() == 1);
    let text = fields.and_then(|fields| fields.get("status")).and_then(|status| status.as_str());
    let text = text.ok_or_else(|| Problem::bad_status("send {\"status\": \"RUNNING\"}, and nothing else"))?;
    let status: JobStatus =
        text.parse().map_err(|error: crate::event::BadStatus| Problem::bad_status(error.to_string()))?;
    app.source.set_status(&job, status).await?;
    Ok(HttpResponse::Ok().json(json!({ "jobId": job, "status": status })))
}
