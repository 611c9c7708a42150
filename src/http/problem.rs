//! Errors as RFC 9457 problem details, each with a stable code. The table here has every code but those of the source,
//! which stand in `error.rs`.

use crate::auth::Refusal;
use crate::error::{Scope, SourceCode, SourceError};
use crate::tail;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;
use std::fmt;

/// Error of a request, as the caller gets it.
#[derive(Debug)]
pub struct Problem {
    /// Stable name, for programs.
    code: &'static str,
    status: StatusCode,
    /// Sentence for people, which says what to do.
    detail: String,
    /// Seconds of `Retry-After`, if trying again can help.
    retry_after_s: Option<u64>,
    /// Methods of `Allow`, where another one was used.
    allow: Option<&'static str>,
}

/// Code of the problem that an answer holds, for the access log.
pub struct Code(pub &'static str);

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $code:literal;)*) => {
        impl Problem {
            $($(#[$doc])* pub fn $name(detail: impl Into<String>) -> Self {
                Self { code: $code, status: StatusCode::$status, detail: detail.into(), retry_after_s: None, allow: None }
            })*
        }
    };
}

problems! {
    /// The request names a host that this listener does not answer to.
    bad_host = MISDIRECTED_REQUEST, "request.host";
    target_too_long = URI_TOO_LONG, "request.target";
    headers_too_large = REQUEST_HEADER_FIELDS_TOO_LARGE, "request.headers";
    bad_preflight = BAD_REQUEST, "request.cors";
    /// A page has made a browser send what only programs may.
    sent_by_page = FORBIDDEN, "request.origin";
    body_timeout = REQUEST_TIMEOUT, "request.timeout";
    bad_job_id = BAD_REQUEST, "request.job_id";
    bad_query = BAD_REQUEST, "request.query";
    bad_json = BAD_REQUEST, "request.json";
    /// The body is JSON, but no event.
    bad_event = UNPROCESSABLE_ENTITY, "ingest.event";
    bad_status = UNPROCESSABLE_ENTITY, "ingest.status";
    too_large = PAYLOAD_TOO_LARGE, "request.too_large";
    not_json = UNSUPPORTED_MEDIA_TYPE, "request.media_type";
    too_many_events = PAYLOAD_TOO_LARGE, "ingest.too_many";
    /// Ingest without a token came through a proxy.
    forwarded = FORBIDDEN, "ingest.forwarded";
    no_token = UNAUTHORIZED, "ingest.token";
    no_credentials = UNAUTHORIZED, "auth.missing";
    bad_credentials = UNAUTHORIZED, "auth.invalid";
    forbidden = FORBIDDEN, "auth.forbidden";
    auth_unavailable = SERVICE_UNAVAILABLE, "auth.unavailable";
    ingest_off = FORBIDDEN, "ingest.disabled";
    not_found = NOT_FOUND, "request.not_found";
    no_such_job = NOT_FOUND, "job.not_found";
    not_allowed = METHOD_NOT_ALLOWED, "request.method";
    draining = SERVICE_UNAVAILABLE, "server.draining";
    busy = SERVICE_UNAVAILABLE, "server.busy";
    internal = INTERNAL_SERVER_ERROR, "server.internal";
    too_many_streams = SERVICE_UNAVAILABLE, "server.too_many_streams";
    too_many_replays = SERVICE_UNAVAILABLE, "server.too_many_replays";
    too_many_jobs = SERVICE_UNAVAILABLE, "server.too_many_jobs";
    too_many_waiting = SERVICE_UNAVAILABLE, "server.too_many_waiting";
    /// An operator closed the request, or the right that it came with has ended.
    closed = SERVICE_UNAVAILABLE, "server.closed";
    too_often = TOO_MANY_REQUESTS, "server.rate";
    too_many_from_address = TOO_MANY_REQUESTS, "server.too_many_from_address";
}

impl Problem {
    pub fn code(&self) -> &'static str {
        self.code
    }

    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Returns true if trying again can help.
    pub fn is_retryable(&self) -> bool {
        self.retry_after_s.is_some()
    }

    /// The problem of a method that an address does not answer; `methods` are those that it does.
    pub fn not_allowed_but(methods: &'static str) -> Self {
        Self { allow: Some(methods), ..Self::not_allowed(format!("this address answers {methods}")) }
    }

    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => {
                Self::no_credentials("send a token as `Authorization: Bearer`, or the cookies that you were given")
            }
            Refusal::Invalid => Self::bad_credentials("these credentials do not count, or not any more; get new ones"),
            Refusal::Forbidden => Self::forbidden("these credentials do not allow this"),
            Refusal::Unavailable => {
                Self::auth_unavailable("nobody can say now what these credentials allow; try again").retry_after(1)
            }
        }
    }
}

impl From<SourceError> for Problem {
    fn from(error: SourceError) -> Self {
        tail::count_error(&error);
        if error.begins_incident() {
            tracing::warn!(code = error.code.as_str(), scope = ?error.scope, %error, "a request failed at the source");
        }
        let (status, retry_after_s) = match (error.is_retryable(), error.code) {
            _ if matches!(error.scope, Scope::Job(_)) => (StatusCode::SERVICE_UNAVAILABLE, Some(1)),
            (_, SourceCode::Refused) => (StatusCode::UNPROCESSABLE_ENTITY, None),
            (_, SourceCode::ReadOnly) => (StatusCode::FORBIDDEN, None),
            (_, SourceCode::DiskFull) => (StatusCode::INSUFFICIENT_STORAGE, Some(10)),
            (true, _) => (StatusCode::SERVICE_UNAVAILABLE, Some(1)),
            (false, _) => (StatusCode::BAD_GATEWAY, None),
        };
        // The operation, the cause and the remedy name hosts, files and tables: they are for the log.
        Self { code: error.code.as_str(), status, detail: error.told().into(), retry_after_s, allow: None }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        response.insert_header((header::CONTENT_TYPE, "application/problem+json"));
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        if let Some(seconds) = self.retry_after_s {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if let Some(methods) = self.allow {
            response.insert_header((header::ALLOW, methods));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 6750, section 3.
            let is_invalid = self.code == Self::bad_credentials("").code;
            let challenge = if is_invalid { "Bearer error=\"invalid_token\"" } else { "Bearer" };
            response.insert_header((header::WWW_AUTHENTICATE, challenge));
        }
        let title = self.status.canonical_reason().unwrap_or_default();
        let body = json!({
            "type": format!("urn:jobcast:{}", self.code),
            "title": title,
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        let mut response = response.body(body.to_string());
        response.extensions_mut().insert(Code(self.code));
        response
    }
}
