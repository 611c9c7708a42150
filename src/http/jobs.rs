//! `GET /runner-jobs`: the jobs, newest activity first. `GET /runner-jobs/{job_id}`: one of them.

use super::App;
use super::extract::{JobsQuery, Query};
use super::problem::Problem;
use super::rights::{EveryJob, WatchedJob};
use crate::source::JobSummary;
use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use serde_json::json;

pub async fn list(_: EveryJob, Query(query): Query<JobsQuery>, app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let jobs = app.source.jobs(query.status, query.limit).await?;
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(json!({ "jobs": jobs })))
}

/// Describes one job, with the number of streams that watch it in this process.
pub async fn get(WatchedJob { job, .. }: WatchedJob, app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let Some(summary) = app.source.job(&job).await? else {
        return Err(Problem::no_such_job(format!("there is no job {job}")));
    };
    let watchers = app.streams.hub.watchers(&job);
    let described = Described { summary, watchers };
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(described))
}

#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    summary: JobSummary,
    watchers: usize,
}
