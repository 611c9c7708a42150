//! `GET /runner-jobs/{job_id}/events/stream`: the stream.

use super::problem::Problem;
use super::{App, JobPath, client_address, query};
use crate::cursor::{Cursor, Start};
use crate::delivery::admission::{LimitReached, StreamPermit};
use crate::delivery::body::Body;
use crate::delivery::handoff::HandoffSlot;
use crate::delivery::source_error;
use crate::error::SourceError;
use crate::event::JobId;
use crate::hub::Outage;
use crate::replay::{Replay, Step};
use crate::shutdown::Phase;
use crate::sse::{self, Bye, ControlEvent, Reset};
use crate::telemetry;
use actix_web::http::{Method, StatusCode, Version, header};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError, web};
use bytes::Bytes;
use futures_util::stream;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// The longest cursor or event id that is looked up; no source has longer ones.
const MAX_ID_BYTES: usize = 256;

pub async fn get(request: HttpRequest, path: web::Path<JobPath>, app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let job = path.job()?;
    let start = start(&request)?;
    if app.streams.shutdown.phase() >= Phase::Draining {
        telemetry::CONNECTIONS.increment(&[("outcome", "draining")], 1);
        let wait = app.streams.reconnect_delay();
        return Ok(turned_away(
            &request,
            ControlEvent::Bye { reason: Bye::Drain, retry_in: wait },
            Problem::draining("this Jobcast is leaving; come back"),
            wait,
        ));
    }
    let permit = match app.streams.admission.admit(client_address(&request, &app)) {
        Ok(permit) => permit,
        Err(full) => return Ok(full_up(&request, &app, full)),
    };
    let opened = match Opened::open(&app, &job, start).await {
        Ok(opened) => opened,
        Err(error) => return source_failed(&request, &app, error),
    };
    let outcome = |outcome| telemetry::CONNECTIONS.increment(&[("outcome", outcome)], 1);
    match (&opened.first, opened.is_resume) {
        (Step::NoSuchJob, _) => {
            outcome("not_found");
            Err(Problem::no_such_job(format!("there is no job {job}")))
        }
        // At the end of a job that has ended: EventSource stops at a 204.
        (Step::Complete(..), true) => {
            outcome("complete");
            Ok(HttpResponse::NoContent().insert_header((header::CACHE_CONTROL, "no-store")).finish())
        }
        (Step::Outage(error, _), _) => source_failed(&request, &app, error.clone()),
        _ => {
            outcome("accepted");
            Ok(opened.answer(&request, &app, permit))
        }
    }
}

/// The beginning of a stream. It is found before the request is answered, since the answer's head depends on it.
struct Opened {
    /// The source does not answer just now, so that events may come late.
    outage: Option<Arc<Outage>>,
    /// The requested position is unknown or lost: all events after this cursor follow instead.
    reset: Option<(Reset, Cursor)>,
    /// The client's position before the first event, for one that asked for nothing but new events.
    position: Option<Cursor>,
    replay: Replay,
    first: Step,
    /// The client came with a cursor, and it is valid.
    is_resume: bool,
    /// The origin of the replay, as the metric names it.
    from: &'static str,
}

impl Opened {
    async fn open(app: &App, job: &JobId, start: Start) -> Result<Self, SourceError> {
        let new = |cursor| Replay::after(app.streams.pages.clone(), app.streams.hub.clone(), job.clone(), cursor);
        let beginning = app.source.beginning(job);
        let (mut reset, mut position) = (None, None);
        let is_now = start == Start::Now;
        let mut is_resume = matches!(start, Start::After(_));
        let mut replay = match start {
            Start::Beginning => new(beginning),
            Start::After(text) => match find(app, job, &text).await? {
                Some(cursor) => new(cursor),
                None => {
                    is_resume = false;
                    reset = Some((Reset::Unknown, beginning.clone()));
                    new(beginning)
                }
            },
            Start::Now => match newest(app, job).await? {
                Some(cursor) => {
                    position = Some(cursor.clone());
                    Replay::from_newest(app.streams.pages.clone(), app.streams.hub.clone(), job.clone(), cursor)
                }
                None => new(beginning), // Its first page finds out that there is no such job.
            },
        };
        let mut first = replay.next().await;
        if let Step::Reset(reason, beginning) = first {
            is_resume = false;
            reset = Some((reason, beginning));
            first = replay.next().await;
        }
        // A reader that was served by the ring alone has not noticed an outage.
        let outage = app.streams.hub.outage().filter(|_| !replay.has_read());
        if let Some(outage) = outage.as_ref().filter(|outage| !outage.error.is_retryable()) {
            return Err(outage.error.clone());
        }
        let from = match (&reset, replay.has_read()) {
            (Some(_), _) => "reset",
            (None, _) if is_now => "none",
            (None, true) => "source",
            (None, false) => "ring",
        };
        Ok(Self { outage, reset, position, replay, first, is_resume, from })
    }

    fn answer(self, request: &HttpRequest, app: &App, mut permit: StreamPermit) -> HttpResponse {
        telemetry::RESUMES.increment(&[("from", self.from)], 1);
        // A reset is replayed from the source, too.
        let replayed = if self.from == "reset" { "source" } else { self.from };
        let id = permit.id();
        tracing::debug!(connection = id, job = %self.replay.job(), replay = self.from, "stream begins");
        let mut opening = vec![sse::opening(app.streams.rules.retry)];
        let outage = self.outage.as_deref();
        opening.extend(outage.map(|outage| source_error(&outage.error, outage.retry_in).encode()));
        opening.extend(self.position.as_ref().map(sse::position));
        opening.extend(self.reset.map(|(reason, cursor)| ControlEvent::Reset { reason, cursor }.encode()));
        let mut response = head();
        response.insert_header(("X-Jobcast-Connection", id)).insert_header(("X-Jobcast-Replay", replayed));
        if let Some(position) = &self.position {
            // For clients whose parser does not report an id without an event.
            response.insert_header(("X-Jobcast-Cursor", position.as_str()));
        }
        if request.method() == Method::HEAD {
            return response.finish();
        }
        permit.begins();
        // Only a plain HTTP/1.1 connection, whose body is chunked, can leave actix.
        let slot = request.conn_data::<HandoffSlot>().filter(|_| request.version() == Version::HTTP_11).cloned();
        let body = Body::new(app.streams.clone(), permit, slot, opening, self.replay, self.first);
        let mut response = response.streaming(stream::unfold(body, |mut body| async move {
            let bytes = body.next().await?;
            Some((Ok::<Bytes, Infallible>(bytes), body))
        }));
        // HTTP/1.0 has no chunks: the end of the connection is the end of the body.
        response.head_mut().no_chunking(request.version() < Version::HTTP_11);
        response
    }
}

/// Returns the cursor that foreign text stands for: a cursor, or an event's id. None if it is unknown.
pub async fn find(app: &App, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
    if text.is_empty() || text.len() > MAX_ID_BYTES || text.chars().any(char::is_control) {
        return Ok(None);
    }
    app.source.resolve(job, text).await
}

/// Returns the position after a job's newest event: its ring's, or else the source's. None if there is no such job.
pub async fn newest(app: &App, job: &JobId) -> Result<Option<Cursor>, SourceError> {
    if let Some(cursor) = app.streams.hub.newest(job) {
        return Ok(Some(cursor));
    }
    Ok(app.source.newest(job).await?.map(|standing| standing.cursor))
}

/// Returns the position at which the client wants to begin. The header goes before the query, because a browser that
/// reconnects to the same URL has its newer position there.
fn start(request: &HttpRequest) -> Result<Start, Problem> {
    if let Some(last) = request.headers().get("Last-Event-ID").filter(|last| !last.is_empty()) {
        // A value that is no text becomes one that no cursor or id can be.
        return Ok(Start::After(last.to_str().unwrap_or("\0").to_string()));
    }
    let asked = query(request)?;
    match asked.get("lastEventId").filter(|last| !last.is_empty()) {
        Some(last) => Ok(Start::After(last.clone())),
        None if is_from_now(&asked)? => Ok(Start::Now),
        None => Ok(Start::Beginning),
    }
}

/// Reads `from` of a query that has no position.
pub fn is_from_now(asked: &HashMap<String, String>) -> Result<bool, Problem> {
    match asked.get("from").map(String::as_str) {
        Some("now") => Ok(true),
        None | Some("start") => Ok(false),
        Some(other) => Err(Problem::bad_query(format!(
            "from={other:?} is neither \"start\" nor \"now\"; a cursor goes into lastEventId or after"
        ))),
    }
}

fn head() -> HttpResponseBuilder {
    let mut response = HttpResponse::build(StatusCode::OK);
    response
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "no-cache, no-store, no-transform"))
        .insert_header(("X-Accel-Buffering", "no"));
    response
}

/// Answers a client that cannot be served now. `EventSource` gives up for good on anything but a 200 (WHATWG HTML), so it
/// gets a stream of one event that says when to come back. Other clients get the plain status.
fn turned_away(request: &HttpRequest, event: ControlEvent, problem: Problem, wait: Duration) -> HttpResponse {
    if !accepts_stream(request) {
        return problem.retry_after(wait.as_secs().max(1)).error_response();
    }
    let opening = sse::opening(wait);
    head().body([opening, event.encode()].concat())
}

fn full_up(request: &HttpRequest, app: &App, full: LimitReached) -> HttpResponse {
    let (outcome, problem) = match full {
        LimitReached::Process => {
            ("full", Problem::too_many_streams("http.max_connections streams are open; come back later"))
        }
        LimitReached::Address => (
            "full_address",
            Problem::too_many_from_address(
                "http.max_connections_per_ip streams are open from this address; come back later",
            ),
        ),
    };
    telemetry::CONNECTIONS.increment(&[("outcome", outcome)], 1);
    // Longer than any other wait, and spread out.
    let wait = app.streams.reconnect_delay() + app.streams.rules.retry * 3;
    let message = problem.detail().to_string();
    let error = ControlEvent::Error { code: problem.code(), message, retry_in: Some(wait) };
    turned_away(request, error, problem, wait)
}

fn source_failed(request: &HttpRequest, app: &App, error: SourceError) -> Result<HttpResponse, Problem> {
    telemetry::CONNECTIONS.increment(&[("outcome", "source_failed")], 1);
    if !error.is_retryable() {
        return Err(error.into());
    }
    let wait = app.streams.reconnect_delay().max(app.streams.rules.retry);
    Ok(turned_away(request, source_error(&error, wait), error.into(), wait))
}

/// Tells whether the client takes a stream. Many tools send no `Accept`; only one that names other types does not.
fn accepts_stream(request: &HttpRequest) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("*/*");
    accept.split(',').any(|one| {
        let kind = one.split(';').next().unwrap_or_default().trim();
        matches!(kind, "text/event-stream" | "text/*" | "*/*")
    })
}
