//! `GET /runner-jobs/{job_id}/events/stream`: answers a request for a stream.

use super::appear::{CLOSED, GivenUp, Wait};
use super::client_address::ClientAddress;
use super::edge;
use super::extract::accepts_stream;
use super::limits::Refusal;
use super::problem::Problem;
use super::rights::WatchedJob;
use super::{App, access};
use crate::auth::Withdrawal;
use crate::cursor::{Cursor, Start};
use crate::delivery::admission::StreamPermit;
use crate::delivery::body::Body;
use crate::delivery::handoff::HandoffSlot;
use crate::delivery::socket::Stalled;
use crate::delivery::source_error;
use crate::error::SourceError;
use crate::event::JobId;
use crate::hub::Outage;
use crate::logging::ACCESS;
use crate::replay::{Replay, Step};
use crate::shutdown::Phase;
use crate::sse::{self, Bye, ControlEvent, Reset};
use crate::telemetry;
use actix_web::http::{Method, StatusCode, Version, header};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError, web};
use bytes::Bytes;
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub async fn get(
    watched: Result<WatchedJob, Problem>,
    start: Start,
    client: ClientAddress,
    request: HttpRequest,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    if app.streams.shutdown.phase() >= Phase::Draining {
        return Ok(draining(&request, &app));
    }
    let WatchedJob { job, right } = match watched {
        Ok(watched) => watched,
        Err(problem) if problem.is_retryable() => return Ok(come_back(&request, &app, problem)),
        Err(problem) => return Err(problem),
    };
    let permit = match app.let_in(client, &job).and_then(|()| app.admit(client)) {
        Ok(permit) => permit.with_grant(right.into_grant()),
        Err(refusal) => return Ok(refused(&request, &app, refusal)),
    };
    // HEAD asks how it stands now.
    let patience = if request.method() == Method::HEAD { Duration::ZERO } else { app.appear };
    let opened = match open_once_there(&app, &job, start, &permit, patience).await {
        Ok(opened) => opened,
        Err(GivenUp::NoSuchJob) => {
            outcome("not_found");
            return Err(Problem::no_such_job(format!("there is no job {job}")));
        }
        Err(GivenUp::TooMany) => {
            Refusal::Waiting.note(client.0);
            return Ok(refused(&request, &app, Refusal::Waiting));
        }
        Err(GivenUp::Draining) => return Ok(draining(&request, &app)),
        Err(GivenUp::Closed) => return Ok(closed(&request, &app, &permit)),
        Err(GivenUp::Outage(error)) => return source_failed(&request, &app, error),
    };
    match (&opened.first, opened.is_resume) {
        // The client stands at the end of a job that has ended; a 204 makes EventSource stop.
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

fn outcome(outcome: &'static str) {
    telemetry::CONNECTIONS.increment(&[("outcome", outcome)], 1);
    access::note_outcome(outcome);
}

/// Opens the stream, and waits for so long until there is such a job. Meanwhile the request counts as a stream, which
/// operators see and close as one.
async fn open_once_there(
    app: &App,
    job: &JobId,
    mut start: Start,
    permit: &StreamPermit,
    patience: Duration,
) -> Result<Opened, GivenUp> {
    let mut waiting = None;
    loop {
        let opened = Opened::open(app, job, start.clone()).await.map_err(GivenUp::Outage)?;
        if !matches!(opened.first, Step::NoSuchJob) {
            return Ok(opened);
        }
        let begin = || (app.streams.registry.enter(permit, job), Wait::new(app, job, patience));
        let (registration, wait) = waiting.get_or_insert_with(begin);
        wait.next(registration, permit).await?;
        if start == Start::Now {
            // The caller came before the job's first event.
            start = Start::Beginning;
        }
    }
}

/// Beginning of a stream, found before the answer so that the answer's head can name it.
struct Opened {
    /// Set while the source does not answer.
    outage: Option<Arc<Outage>>,
    /// Set if the position that was asked for is unknown or gone: the whole history follows.
    reset: Option<(Reset, Cursor)>,
    /// Position to send before the first event, so that a client that drops before it loses nothing.
    position: Option<Cursor>,
    replay: Replay,
    first: Step,
    /// Set if the client came with a cursor that is still good.
    is_resume: bool,
    /// The origin of the replay, as the metric names it.
    from: &'static str,
}

impl Opened {
    async fn open(app: &App, job: &JobId, start: Start) -> Result<Self, SourceError> {
        let (pages, hub) = (app.streams.pages.clone(), app.streams.hub.clone());
        let from_beginning = || Replay::from_beginning(pages.clone(), hub.clone(), job.clone());
        let (mut reset, mut position) = (None, None);
        let is_now = start == Start::Now;
        let mut is_resume = matches!(start, Start::After(_));
        let mut replay = match start {
            Start::Beginning => from_beginning(),
            Start::After(text) => match app.resolve(job, &text).await? {
                Some(cursor) => app.streams.replay_after(job.clone(), cursor),
                None => {
                    is_resume = false;
                    reset = Some((Reset::Unknown, app.source.beginning(job)));
                    from_beginning()
                }
            },
            Start::Now => match app.newest(job).await? {
                Some(newest) => {
                    position = Some(newest.cursor.clone());
                    Replay::from_newest(pages.clone(), hub.clone(), job.clone(), newest)
                }
                // There is no such job, which the first page will say.
                None => from_beginning(),
            },
        };
        let mut first = replay.next().await;
        if let Step::Reset(reason, beginning) = first {
            is_resume = false;
            reset = Some((reason, beginning));
            first = replay.next().await;
        }
        // A replay that only read the ring has not noticed an outage.
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

    fn answer(mut self, request: &HttpRequest, app: &App, mut permit: StreamPermit) -> HttpResponse {
        telemetry::RESUMES.increment(&[("from", self.from)], 1);
        // After a reset, too, the events come from the source.
        let replayed = if self.from == "reset" { "source" } else { self.from };
        let id = permit.id();
        access::note_connection(&id);
        tracing::info!(target: ACCESS, connection = id, replay = self.from, "stream begins");
        let mut opening = vec![sse::opening(app.streams.rules.retry)];
        let outage = self.outage.as_deref();
        opening.extend(outage.map(|outage| source_error(&outage.error, outage.retry_in).encode()));
        opening.extend(self.position.as_ref().map(sse::position));
        opening.extend(self.reset.map(|(reason, cursor)| {
            telemetry::RESETS.increment(&[("reason", reason.as_str())], 1);
            ControlEvent::Reset { reason, cursor }.encode()
        }));
        let job = self.replay.job().clone();
        let status = self.replay.untold_status().map(|status| ControlEvent::Status { job, status });
        opening.extend(status.map(|status| status.encode()));
        let mut response = head();
        response.insert_header(("X-Jobcast-Connection", id)).insert_header(("X-Jobcast-Replay", replayed));
        response.insert_header(("X-Jobcast-Unique", app.source.event_key().as_str()));
        if let Some(position) = &self.position {
            // For clients whose parser does not report an id without an event.
            response.insert_header(("X-Jobcast-Cursor", position.as_str()));
        }
        if request.method() == Method::HEAD {
            return response.finish();
        }
        permit.begins(self.replay.job());
        // actix keeps the sockets of answers without chunks, which HTTP/1.0 does not know; HTTP/2 and TLS have no slot.
        let is_chunked = request.version() >= Version::HTTP_11 && !edge::wants_other_protocol(request);
        let slot = request.conn_data::<HandoffSlot>().filter(|_| is_chunked).cloned();
        let stalled = stalled(request);
        let body = Body::new(app.streams.clone(), permit, slot, stalled, opening, self.replay, self.first);
        if !is_chunked {
            // Without chunks, the end of the connection is the end of the body.
            response.force_close();
        }
        let mut response = response.streaming(stream::unfold(body, |mut body| async move {
            let bytes = body.next().await?;
            Some((Ok::<Bytes, Infallible>(bytes), body))
        }));
        response.head_mut().no_chunking(!is_chunked);
        response
    }
}

/// Finds the state of the peer: that of its connection, or of its stream on one.
fn stalled(request: &HttpRequest) -> Stalled {
    let of_stream = request.extensions().get::<Stalled>().cloned();
    of_stream.or_else(|| request.conn_data::<Stalled>().cloned()).unwrap_or_default()
}

fn head() -> HttpResponseBuilder {
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
