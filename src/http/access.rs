//! The access log, and the span in which everything is logged that is done for a request: each of its lines says whose
//! request it was.

use super::App;
use super::client_address::ClientAddress;
use super::problem::Code;
use crate::auth::Grant;
use crate::delivery::admission::Origin;
use crate::event::JobId;
use crate::logging::{self, ACCESS};
use crate::traces::{self, TraceHeaders};
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest};
use std::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use uuid::Uuid;

/// Characters of an id that a proxy gave a request, at most.
const MAX_ID: usize = 64;

/// Answers a request within its span, and logs it with its answer.
pub async fn log(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let began = Instant::now();
    let (span, origin) = span(request.request());
    let traced = traced(request.request());
    if logging::has_access_log() {
        request.extensions_mut().insert(origin);
    }
    let answered = next.call(request).instrument(span.clone()).instrument(traced.clone()).await;
    let _entered = span.enter();
    if let Ok(response) = &answered {
        let (request, head) = (response.request(), response.response());
        traces::note_answer(&traced, head.status().as_u16());
        tracing::info!(
            target: ACCESS,
            method = request.method().as_str(),
            path = request.path(),
            status = head.status().as_u16(),
            code = head.extensions().get::<Code>().map(|code| code.0),
            seconds = began.elapsed().as_secs_f64(),
            "request"
        );
    }
    answered
}

/// The request as it is traced, within the trace that its caller has begun.
fn traced(request: &HttpRequest) -> Span {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let headers = TraceHeaders { traceparent: header("traceparent"), tracestate: header("tracestate") };
    let route = request.match_pattern();
    traces::request(request.method().as_str(), route.as_deref(), request.path(), &headers)
}

/// The span of a request, and of its fields those that a stream outlives. The span is made at the highest level, so that lines
/// of each level have its fields. The query is not among them: it may hold a token.
fn span(request: &HttpRequest) -> (Span, Origin) {
    let peer = request.peer_addr().map(|peer| peer.ip().to_canonical());
    let address = App::of(request).ok().and_then(|app| ClientAddress::of(request, app).0);
    let origin = Origin { request: id(request), peer: peer.filter(|peer| Some(*peer) != address) };
    let span = tracing::error_span!(
        "request",
        request = origin.request,
        address = address.map(tracing::field::display),
        peer = origin.peer.map(tracing::field::display),
        job = Empty,
        subject = Empty,
        connection = Empty,
        outcome = Empty
    );
    (span, origin)
}

/// The id that a proxy gave the request in `X-Request-Id`, so that its log and this one can be laid side by side; else one of
/// our own.
fn id(request: &HttpRequest) -> String {
    let given = request.headers().get("X-Request-Id").and_then(|id| id.to_str().ok());
    let is_id = |id: &&str| {
        (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b))
    };
    given.filter(is_id).map_or_else(|| Uuid::now_v7().simple().to_string(), str::to_string)
}

/// Notes the job that the request at hand is about.
pub fn note_job(job: &JobId) {
    Span::current().record("job", job.as_str());
}

/// Notes the caller of the request at hand, where its credentials have a name.
pub fn note_caller(grant: Option<&Grant>) {
    if let Some(subject) = grant.and_then(Grant::subject) {
        Span::current().record("subject", subject);
    }
}

/// Notes how a request for a stream ended, in the words of the metric.
pub fn note_outcome(outcome: &'static str) {
    Span::current().record("outcome", outcome);
}

/// Notes the stream that answers the request at hand.
pub fn note_connection(id: &str) {
    Span::current().record("connection", id);
}
