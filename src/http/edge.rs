//! Checks that every request passes before its handler: the listener's name, and the bounds of everything that is
//! parsed. Around it, the connection learns that a request is at work on it.

use super::App;
use super::bounded::{Busy, Progress};
use super::hosts::Hosts;
use super::limits::Refusal;
use super::problem::Problem;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{ConnectionType, Method, header};
use actix_web::middleware::Next;
use actix_web::{Error, HttpRequest, ResponseError};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Headers of a request, at most.
const MAX_HEADERS: usize = 64;
/// Bytes of a request's headers, at most.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Bytes of a request's target, at most. As many jobs as a set may have by default, with UUIDs for ids, take half of it.
const MAX_TARGET_BYTES: usize = 16 * 1024;
/// Parameters of a query, at most.
const MAX_PARAMETERS: usize = 256;

/// Passes on what is meant for the public listener and within bounds; everything else gets its problem.
pub async fn check(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<Guarded>, Error> {
    let progress = request.conn_data::<Progress>().cloned();
    let busy =
        progress.as_ref().map(|progress| progress.begin(head_bytes(request.request()), has_body(request.request())));
    // Not kept for a next request. actix forgets that a request asked for that once another comes behind it.
    let is_last = matches!(request.head().connection_type(), ConnectionType::Close | ConnectionType::Upgrade)
        || wants_other_protocol(request.request())
        || progress.is_some_and(|progress| progress.is_crowded());
    let mut response = match verdict(request.request()) {
        Ok(()) => next.call(request).await?.map_into_boxed_body(),
        Err((refusal, problem)) => {
            refusal.note(request.peer_addr().map(|peer| peer.ip().to_canonical()));
            request.into_response(problem.error_response())
        }
    };
    let head = response.response_mut().head_mut();
    if is_last {
        head.set_connection_type(ConnectionType::Close);
    }
    head.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    Ok(response.map_body(|_, body| Guarded { body, _busy: busy }))
}

/// Passes on what is meant for the admin listener.
pub async fn check_host(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if !request.app_data::<Hosts>().is_none_or(|hosts| hosts.are_named_by(request.request())) {
        Refusal::Host.note(request.peer_addr().map(|peer| peer.ip()));
        return Ok(request.into_response(bad_host().error_response()));
    }
    Ok(next.call(request).await?.map_into_boxed_body())
}

fn verdict(request: &HttpRequest) -> Result<(), (Refusal, Problem)> {
    let hosts = App::of(request).map(|app| &app.hosts);
    if !hosts.is_ok_and(|hosts| hosts.are_named_by(request)) {
        return Err((Refusal::Host, bad_host()));
    }
    within_bounds(request).map_err(|problem| (Refusal::Head, problem))
}

/// Bytes of a request's headers, written `name: value` with their ends of lines.
fn header_bytes(request: &HttpRequest) -> usize {
    request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Bytes of a request's whole head, in the form that clients usually give it.
fn head_bytes(request: &HttpRequest) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    request.method().as_str().len() + target + " HTTP/1.1\r\n \r\n".len() + header_bytes(request)
}

fn bad_host() -> Problem {
    Problem::bad_host("this address is not served under that name")
}

fn within_bounds(request: &HttpRequest) -> Result<(), Problem> {
    let uri = request.uri();
    let target = uri.path().len() + uri.query().map_or(0, str::len);
    if target > MAX_TARGET_BYTES {
        return Err(Problem::target_too_long(format!("the address has more than {MAX_TARGET_BYTES} bytes")));
    }
    let headers = request.headers();
    if headers.len() > MAX_HEADERS || header_bytes(request) > MAX_HEADER_BYTES {
        return Err(Problem::headers_too_large(format!(
            "the request has more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them"
        )));
    }
    if !is_percent_encoded(uri.path()) {
        return Err(Problem::bad_job_id("the address is not percent-encoded UTF-8"));
    }
    let query = uri.query().unwrap_or_default();
    if !is_percent_encoded(query) {
        return Err(Problem::bad_query("the query is not percent-encoded UTF-8"));
    }
    if query.split('&').count() > MAX_PARAMETERS {
        return Err(Problem::bad_query(format!("the query has more than {MAX_PARAMETERS} parameters")));
    }
    Ok(())
}

/// Tells if every `%` begins an encoded byte, and all together are UTF-8 (RFC 3986, section 2.1).
fn is_percent_encoded(text: &str) -> bool {
    let is_hex = |digits: Option<&str>| digits.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    text.match_indices('%').all(|(at, _)| is_hex(text.get(at + 1..at + 3)))
        && percent_decode_str(text).decode_utf8().is_ok()
}

/// Tells if the caller offers to speak another protocol after the head. None is spoken here; but actix takes all that follows
/// for that, and frames no answer on such a connection.
pub fn wants_other_protocol(request: &HttpRequest) -> bool {
    request.headers().contains_key(header::UPGRADE) || request.method() == Method::CONNECT
}

/// Tells if bytes follow the head that belong to this request.
fn has_body(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let has_length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    has_length || headers.contains_key(header::TRANSFER_ENCODING) || wants_other_protocol(request)
}

/// The body of an answer. Until it is dropped, its connection is at work.
pub struct Guarded {
    body: BoxBody,
    _busy: Option<Busy>,
}

impl MessageBody for Guarded {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_percent_encoded_utf_8_is_found() {
        for text in ["", "/runner-jobs/a%20b", "%F0%9F%A6%80", "%25", "a=b&c=%2f"] {
            assert!(is_percent_encoded(text), "{text}");
        }
        for text in ["%", "%f", "%FF", "%C3x", "%gg", "/a%", "%+1", "%\u{fc}x"] {
            assert!(!is_percent_encoded(text), "{text}");
        }
    }
}
