//! `POST /runner-jobs/{job_id}/events` and `PUT /runner-jobs/{job_id}`: events and statuses that are sent in.

use super::App;
use super::bounded::Progress;
use super::extract::JobPath;
use super::limits::Refusal;
use super::problem::Problem;
use crate::event::{BadStatus, JobStatus, Payload};
use crate::source::NewEvent;
use crate::sse;
use crate::telemetry;
use actix_web::body::MessageBody;
use actix_web::dev::{self, ServiceRequest, ServiceResponse};
use actix_web::http::{Method, StatusCode, header};
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, web};
use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use serde_json::value::RawValue;
use std::fmt;
use std::future::{Future, Ready, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use subtle::ConstantTimeEq;
use tokio::time::timeout;

/// Longest type, step id, actor and event id.
const MAX_TEXT_CHARS: usize = 200;

/// Headers by which proxies say that they passed a request on.
const FORWARDING: &[&str] = &[
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-original-forwarded-for",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "cdn-loop",
];

/// Permission to write: nobody has it unless ingest is on, and then everybody who gives the token, if one is set.
pub struct IngestRight(());

impl FromRequest for IngestRight {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut dev::Payload) -> Self::Future {
        ready(App::of(request).and_then(|app| Self::check(request, app)))
    }
}

impl IngestRight {
    fn check(request: &HttpRequest, app: &App) -> Result<Self, Problem> {
        if !app.ingest_enabled {
            return Err(Problem::ingest_off("this Jobcast only reads: it takes no events"));
        }
        let Some(token) = app.ingest.token.get() else { return Self::check_direct(request) };
        let given = request.headers().get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes).unwrap_or_default();
        // In constant time: a wrong guess takes as long as a right one.
        let is_right = bool::from(given.ct_eq(format!("Bearer {token}").as_bytes()));
        telemetry::AUTH.increment(&[("outcome", if is_right { "allowed" } else { "unauthenticated" })], 1);
        if !is_right {
            return Err(Problem::no_token("send the ingest token as `Authorization: Bearer …`"));
        }
        Ok(Self(()))
    }

    /// Without a token, loopback is all that guards ingest. A proxy of the same machine opens that to everybody, and gives
    /// itself away by the headers that it adds.
    fn check_direct(request: &HttpRequest) -> Result<Self, Problem> {
        if FORWARDING.iter().all(|name| !request.headers().contains_key(*name)) {
            return Ok(Self(()));
        }
        Refusal::Forwarded.note(request.peer_addr().map(|peer| peer.ip().to_canonical()));
        Err(Problem::forwarded("events are not taken through a proxy here"))
    }
}

/// Bytes of a body of type `application/json`, at most `http.max_body`. A page of another origin cannot send this type
/// without being allowed to (Fetch, CORS).
pub struct JsonBody(web::Bytes);

impl FromRequest for JsonBody {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let is_json = request.content_type().eq_ignore_ascii_case("application/json");
        let settings = App::of(request).map(|app| (app.settings.max_body.as_u64() as usize, app.settings.body_timeout));
        let peer = request.peer_addr().map(|peer| peer.ip().to_canonical());
        let progress = request.conn_data::<Progress>().cloned();
        let payload = web::Payload::from_request(request, payload);
        Box::pin(async move {
            let (limit, body_timeout) = settings?;
            if !is_json {
                return Err(Problem::not_json("send the body with `Content-Type: application/json`"));
            }
            let incomplete = |error| Problem::bad_json(format!("the body did not arrive whole: {error}"));
            let read = payload.await.map_err(incomplete)?.to_bytes_limited(limit);
            match timeout(body_timeout, read).await {
                Ok(Ok(Ok(bytes))) => {
                    progress.iter().for_each(|progress| progress.take_body(bytes.len()));
                    Ok(Self(bytes))
                }
                Ok(Ok(Err(error))) => Err(incomplete(error)),
                Ok(Err(_)) => {
                    Refusal::Body.note(peer);
                    Err(Problem::too_large(format!("the body has more than {limit} bytes")))
                }
                Err(_) => {
                    Refusal::BodyTimeout.note(peer);
                    Err(Problem::body_timeout("the body did not arrive in time"))
                }
            }
        })
    }
}

/// A `T` that is written as an object. What is derived for it would also take an array, by the order of its fields.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InObject<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InObject<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }
        from.deserialize_map(InObject(PhantomData)).map(Self)
    }
}

/// Reads JSON as `T`; JSON of another form is `wrong_form`.
fn parse<'a, T: Deserialize<'a>>(json: &'a [u8], wrong_form: fn(String) -> Problem) -> Result<T, Problem> {
    serde_json::from_slice(json).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => wrong_form(error.to_string()),
        _ => Problem::bad_json(format!("the body is no JSON: {error}")),
    })
}

/// Events that a body brings.
pub enum Sent {
    One(NewEvent),
    All(Vec<NewEvent>),
}

impl Sent {
    /// Reads a body: one event, or an array of at most `most`.
    pub fn read(json: &[u8], most: usize) -> Result<Self, Problem> {
        let is_array = json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
        if !is_array {
            let Object::<Incoming>(incoming) = parse(json, Problem::bad_event)?;
            return incoming.check().map(Self::One).map_err(|error| Problem::bad_event(error.to_string()));
        }
        let incoming: Vec<Object<Incoming>> = parse(json, Problem::bad_event)?;
        if incoming.len() > most {
            Refusal::Body.note(None);
            return Err(Problem::too_many_events(format!("the array has more than {most} events; send it in parts")));
        }
        if incoming.is_empty() {
            return Err(Problem::bad_event("the array is empty; send at least one event"));
        }
        let check = |(index, Object(one)): (usize, Object<Incoming>)| {
            one.check().map_err(|error| Problem::bad_event(format!("event {index}: {error}; none was stored")))
        };
        incoming.into_iter().enumerate().map(check).collect::<Result<_, _>>().map(Self::All)
    }
}

/// Counts every request that sends something in, also one that an extractor refuses.
pub async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let is_status = *request.method() == Method::PUT;
    let answer = next.call(request).await;
    let status = answer.as_ref().map_or(StatusCode::INTERNAL_SERVER_ERROR, ServiceResponse::status);
    let outcome = match (is_status, status) {
        (true, StatusCode::OK) => "status",
        (false, StatusCode::CREATED) => "appended",
        (false, StatusCode::OK) => "repeated",
        _ => "refused",
    };
    telemetry::INGEST.increment(&[("outcome", outcome)], 1);
    answer
}

/// Appends one event, or all events of an array or none.
pub async fn append(
    JobPath(job): JobPath,
    _: IngestRight,
    body: JsonBody,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let (events, is_array) = match Sent::read(&body.0, app.ingest.max_events)? {
        Sent::One(event) => (vec![event], false),
        Sent::All(events) => (events, true),
    };
    let stored = app.source.append(&job, events).await?;
    app.streams.hub.announce_jobs([&job]);
    let is_any_new = stored.iter().any(|one| one.is_new);
    let mut response = if is_any_new { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(match &stored[..] {
        [one] if !is_array => response.json(one),
        all => response.json(all),
    })
}

/// Sets a job's status.
pub async fn set_status(
    JobPath(job): JobPath,
    _: IngestRight,
    body: JsonBody,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let bad_form = |_| Problem::bad_status("send {\"status\": \"RUNNING\"}, and nothing else");
    let Object(NewStatus { status }) = parse(&body.0, bad_form)?;
    let status: JobStatus = status.parse().map_err(|error: BadStatus| Problem::bad_status(error.to_string()))?;
    app.source.set_status(&job, status).await?;
    app.streams.hub.announce_jobs([&job]);
    Ok(HttpResponse::Ok().json(json!({ "jobId": job, "status": status })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewStatus {
    status: String,
}

/// An event as it is sent in.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Incoming {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "present")]
    payload: Option<Box<RawValue>>,
    step_id: Option<String>,
    actor: Option<String>,
    id: Option<String>,
    timestamp: Option<String>,
}

/// Reads a payload that is there, which may be `null`.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

/// Reason why something of the right form is no event.
#[derive(Debug, thiserror::Error)]
enum BadEvent {
    #[error("type {0:?}: types that begin with \"stream.\" are Jobcast's own")]
    ReservedType(String),
    #[error("{field} must have 1 to {MAX_TEXT_CHARS} characters, not {chars}")]
    Length { field: &'static str, chars: usize },
    #[error("{field} must not have control characters")]
    ControlCharacters { field: &'static str },
    #[error("timestamp {0:?} is not RFC 3339, such as 2026-11-23T21:00:00Z")]
    Timestamp(String),
    #[error("payload cannot be read: {0}")]
    Payload(serde_json::Error),
}

impl Incoming {
    /// Checks all fields and gives the event an id and a time, where it has none.
    fn check(self) -> Result<NewEvent, BadEvent> {
        let Self { kind, payload, step_id, actor, id, timestamp } = self;
        check_text("type", &kind)?;
        if sse::is_reserved(&kind) {
            return Err(BadEvent::ReservedType(kind));
        }
        for (field, text) in [("stepId", &step_id), ("actor", &actor), ("id", &id)] {
            if let Some(text) = text {
                check_text(field, text)?;
            }
        }
        let timestamp = match timestamp {
            None => Timestamp::now(),
            Some(text) => text.parse().map_err(|_| BadEvent::Timestamp(text))?,
        };
        let payload = payload.map_or_else(|| "{}".into(), |payload| payload.get().to_string());
        // A store, or a reader, would refuse deeper nesting and larger numbers than this takes.
        serde_json::from_str::<serde_json::Value>(&payload).map_err(BadEvent::Payload)?;
        let id = id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        Ok(NewEvent { id, step_id, kind, timestamp, actor, payload: Payload::from_text(payload) })
    }
}

fn check_text(field: &'static str, text: &str) -> Result<(), BadEvent> {
    let chars = text.chars().count();
    if chars == 0 || chars > MAX_TEXT_CHARS {
        return Err(BadEvent::Length { field, chars });
    }
    if text.chars().any(char::is_control) {
        return Err(BadEvent::ControlCharacters { field });
    }
    Ok(())
}
