//! `GET /runner-jobs`: the jobs, newest activity first.

use super::App;
use super::extract::{JobsQuery, Query};
use super::problem::Problem;
use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde_json::json;

pub async fn list(Query(query): Query<JobsQuery>, app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let jobs = app.source.jobs(query.status, query.limit).await?;
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(json!({ "jobs": jobs })))
}
