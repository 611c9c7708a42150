//! `GET /runner-jobs/{job_id}/events/stream`, and the same for a set of jobs: answers a request for a stream.

use super::appear::{CLOSED, GivenUp};
use super::client_address::ClientAddress;
use super::extract::{Query, TypesQuery, accepts_stream};
use super::limits::Refusal;
use super::opening::open_once_there;
use super::problem::Problem;
use super::rights::{Right, WatchedJob, WatchedSet};
use super::{App, access};
use crate::auth::Withdrawal;
use crate::cursor::Start;
use crate::cursor::set::Size;
use crate::delivery::admission::StreamPermit;
use crate::delivery::socket::Stalled;
use crate::delivery::source_error;
use crate::error::SourceError;
use crate::event::JobId;
use crate::shutdown::Phase;
use crate::sse::{self, Bye, ControlEvent};
use crate::telemetry;
use crate::topic::Topic;
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError, web};
use std::time::{Duration, Instant};

pub async fn get(
    watched: Result<WatchedJob, Problem>,
    types: Result<Query<TypesQuery>, Problem>,
    start: Start,
    client: ClientAddress,
    request: HttpRequest,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let asked = watched.and_then(|watched| Ok((watched, types?.0.0))).map(|(WatchedJob { job, right }, types)| Asked {
        topic: Topic::new([job], types, Size::Short),
        rights: vec![right],
        refused: Vec::new(),
    });
    serve(asked, start, client, request, app).await
}

/// The same for a set of jobs.
pub async fn get_set(
    watched: Result<WatchedSet, Problem>,
    start: Start,
    client: ClientAddress,
    request: HttpRequest,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let asked = watched.map(|WatchedSet { query, allowed, refused }| {
        let (jobs, rights): (Vec<JobId>, Vec<Right>) = allowed.into_iter().unzip();
        Asked { topic: Topic::new(jobs, query.types, query.ids), rights, refused }
    });
    serve(asked, start, client, request, app).await
}

/// The topic that a caller may have, of what it wants.
struct Asked {
    topic: Topic,
    rights: Vec<Right>,
    /// The jobs that it may not watch, while it may watch the others.
    refused: Vec<(JobId, Problem)>,
}

async fn serve(
    asked: Result<Asked, Problem>,
    start: Start,
    client: ClientAddress,
    request: HttpRequest,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    if app.streams.shutdown.phase() >= Phase::Draining {
        return Ok(draining(&request, &app));
    }
    let Asked { topic, rights, refused: forbidden } = match asked {
        Ok(asked) => asked,
        Err(problem) if problem.is_retryable() => return Ok(come_back(&request, &app, problem)),
        Err(problem) => return Err(problem),
    };
    let permit = match app.let_in(client, &topic).and_then(|()| app.admit(client)) {
        Ok(permit) => permit.with_grants(rights.into_iter().filter_map(Right::into_grant)),
        Err(refusal) => return Ok(refused(&request, &app, refusal)),
    };
    // HEAD asks how it stands now.
    let patience = if request.method() == Method::HEAD { Duration::ZERO } else { app.appear };
    let opened = match open_once_there(&app, &topic, start, &permit, patience).await {
        Ok(opened) => opened.refusing(forbidden),
        Err(GivenUp::NoSuchJob) => {
            outcome("not_found");
            return Err(Problem::no_such_job(format!("there is no job {topic}")));
        }
        Err(GivenUp::TooMany) => {
            Refusal::Waiting.note(client.0);
            return Ok(refused(&request, &app, Refusal::Waiting));
        }
        Err(GivenUp::Draining) => return Ok(draining(&request, &app)),
        Err(GivenUp::Closed) => return Ok(closed(&request, &app, &permit)),
        Err(GivenUp::Outage(error)) => return source_failed(&request, &app, error),
    };
    if opened.is_at_the_end() {
        // A 204 makes EventSource stop.
        outcome("complete");
        return Ok(HttpResponse::NoContent().insert_header((header::CACHE_CONTROL, "no-store")).finish());
    }
    if let Some(error) = opened.outage_at_once() {
        return source_failed(&request, &app, error);
    }
    outcome("accepted");
    Ok(opened.answer(&request, &app, permit))
}

fn outcome(outcome: &'static str) {
    access::note_outcome(outcome);
    telemetry::CONNECTIONS.increment(&[("outcome", outcome)], 1);
}

/// Finds the state of the peer: that of its connection, or of its stream on one.
pub(super) fn stalled(request: &HttpRequest) -> Stalled {
    let of_stream = request.extensions().get::<Stalled>().cloned();
    of_stream.or_else(|| request.conn_data::<Stalled>().cloned()).unwrap_or_default()
}

pub(super) fn head() -> HttpResponseBuilder {
    let mut response = HttpResponse::build(StatusCode::OK);
    response
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "no-cache, no-store, no-transform"))
        .insert_header(("X-Accel-Buffering", "no"));
    response
}

/// Refuses a stream. A browser gives up for good on anything but a 200 (WHATWG HTML, EventSource), so it is told in one
/// to reconnect; other callers get the plain status.
fn turned_away(request: &HttpRequest, event: ControlEvent, problem: Problem, wait: Duration) -> HttpResponse {
    if !accepts_stream(request) {
        return problem.retry_after(wait.as_secs().max(1)).error_response();
    }
    let opening = sse::opening(wait);
    head().body([opening, event.encode()].concat())
}

/// Sends a caller to the next process.
fn draining(request: &HttpRequest, app: &App) -> HttpResponse {
    outcome("draining");
    let wait = app.streams.reconnect_delay();
    let bye = ControlEvent::Bye { reason: Bye::Drain, retry_in: wait };
    turned_away(request, bye, Problem::draining("this Jobcast is leaving; come back"), wait)
}

/// Ends the wait of a caller whose right has ended, or whose request an operator closed.
fn closed(request: &HttpRequest, app: &App, permit: &StreamPermit) -> HttpResponse {
    outcome("closed");
    let is_expired = permit.withdrawal(Instant::now()) == Some(Withdrawal::Expired);
    let reason = if is_expired { Bye::Expired } else { Bye::Revoked };
    let wait = app.streams.reconnect_delay();
    turned_away(request, ControlEvent::Bye { reason, retry_in: wait }, Problem::closed(CLOSED), wait)
}

fn refused(request: &HttpRequest, app: &App, refusal: Refusal) -> HttpResponse {
    outcome(refusal.outcome());
    come_back(request, app, refusal.problem())
}

/// Refuses a stream for a while, longer than any other wait, and spread out.
fn come_back(request: &HttpRequest, app: &App, problem: Problem) -> HttpResponse {
    let wait = app.retry_later();
    let message = problem.detail().to_string();
    let error = ControlEvent::Error { code: problem.code(), message, retry_in: Some(wait) };
    turned_away(request, error, problem, wait)
}

fn source_failed(request: &HttpRequest, app: &App, error: SourceError) -> Result<HttpResponse, Problem> {
    outcome("source_failed");
    if !error.is_retryable() {
        return Err(error.into());
    }
    let wait = app.streams.reconnect_delay().max(app.streams.rules.retry);
    Ok(turned_away(request, source_error(&error, wait), error.into(), wait))
}
