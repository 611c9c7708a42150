//! `GET` and `POST /runner-jobs/{job_id}/events`: the same events as JSON, for clients that cannot stream, and ingest.

use super::problem::Problem;
use super::{App, JobPath, number, query};
use crate::config;
use crate::cursor::Cursor;
use crate::event::{Event, JobId, JobStatus, Payload};
use crate::hub::Listening;
use crate::replay::{Replay, Step};
use crate::source::{Limit, NewEvent, Page, PageResult};
use crate::sse::{self, Reset};
use crate::telemetry;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;
use tokio::time::Instant;

/// Payload bytes of one answer.
const PAGE_BYTES: usize = 4 << 20;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Polled {
    events: Vec<Sent>,
    /// To be given as `after` next time.
    cursor: Cursor,
    complete: bool,
    status: Option<JobStatus>,
    retry_ms: u64,
    /// What was asked for cannot be given in full: the events are all there is, from the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    reset: Option<ResetNote>,
}

#[derive(Serialize)]
struct ResetNote {
    reason: Reset,
}

#[derive(Serialize)]
struct Sent {
    #[serde(flatten)]
    event: Event,
    cursor: Cursor,
}

pub async fn get(request: HttpRequest, path: web::Path<JobPath>, app: web::Data<App>) -> Result<HttpResponse, Problem> {
    let job = path.job()?;
    let asked = query(&request)?;
    let limit = Limit { events: number(&asked, "limit", 100, 1, 1000)?, bytes: PAGE_BYTES };
    let wait = number(&asked, "wait", 0, 0, 60)?;
    let until = Instant::now() + Duration::from_secs(wait as u64);
    let beginning = app.source.beginning(&job);
    let mut reset = None;
    let mut after = match asked.get("after").filter(|after| !after.is_empty()) {
        // where there is no such job, the first page says so
        None if super::stream::is_from_now(&asked)? => {
            super::stream::newest(&app, &job).await?.unwrap_or_else(|| beginning.clone())
        }
        None => beginning.clone(),
        Some(text) => match super::stream::find(&app, &job, text).await? {
            Some(cursor) => cursor,
            None => {
                reset = Some(Reset::Unknown);
                beginning.clone()
            }
        },
    };
    loop {
        match app.source.page(&job, &after, limit).await? {
            PageResult::NoSuchJob => return Err(Problem::no_such_job(format!("there is no job {job}"))),
            PageResult::Lost(reason) => {
                reset = Some(reason);
                after = beginning.clone();
            }
            PageResult::Page(page) => {
                let is_news = !page.events.is_empty() || page.is_complete || reset.is_some();
                if is_news || !something_new(&app, &job, &page.end, until).await {
                    return Ok(answer(&app, page, reset));
                }
                after = page.end;
            }
        }
    }
}

fn answer(app: &App, page: Page, reset: Option<Reset>) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(Polled {
        events: page.events.into_iter().map(|(event, cursor)| Sent { event, cursor }).collect(),
        cursor: page.end,
        complete: page.is_complete,
        status: page.status,
        retry_ms: app.streams.rules.retry.as_millis() as u64,
        reset: reset.map(|reason| ResetNote { reason }),
    })
}

/// Watches the job as a stream would, until there is something after `cursor`, or the time is up.
async fn something_new(app: &App, job: &JobId, cursor: &Cursor, until: Instant) -> bool {
    let waited = async {
        let mut replay = Replay::after(app.streams.pages.clone(), app.streams.hub.clone(), job.clone(), cursor.clone());
        loop {
            match replay.next().await {
                Step::Live { missing, subscription, place, .. } if missing.is_empty() => {
                    let listening = Listening::new(&app.streams.hub, subscription);
                    let channel = listening.channel();
                    while channel.newest().0 <= place && channel.ended().is_none() {
                        listening.news().await;
                    }
                    return;
                }
                Step::Outage(..) => {}
                _ => return,
            }
        }
    };
    tokio::time::timeout_at(until, waited).await.is_ok()
}

/// An event as it is sent in.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Incoming {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "given")]
    payload: Option<Box<RawValue>>,
    step_id: Option<String>,
    actor: Option<String>,
    id: Option<String>,
    timestamp: Option<String>,
}

/// A payload of `null` is a payload, too.
fn given<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

pub async fn post(
    request: HttpRequest,
    path: web::Path<JobPath>,
    body: web::Payload,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let answer = append(request, path, body, &app).await;
    let outcome = match &answer {
        Ok(response) if response.status().as_u16() == 201 => "appended",
        Ok(_) => "repeated",
        Err(_) => "attempts",
    };
    telemetry::INGEST.increment(&[("outcome", outcome)], 1);
    answer
}

async fn append(
    request: HttpRequest,
    path: web::Path<JobPath>,
    body: web::Payload,
    app: &App,
) -> Result<HttpResponse, Problem> {
    let job = path.job()?;
    may_ingest(&request, app)?;
    let bytes = json_body(&request, body, &app.settings).await?;
    let is_array = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let incoming: Vec<Incoming> = if is_array { parse(&bytes)? } else { vec![parse(&bytes)?] };
    if incoming.is_empty() {
        return Err(Problem::bad_event("the array is empty; send at least one event"));
    }
    let events = incoming
        .into_iter()
        .enumerate()
        .map(|(index, one)| {
            one.check().map_err(|why| {
                Problem::bad_event(if is_array { format!("event {index}: {why}; none was stored") } else { why })
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut stored = app.source.append(&job, events).await?;
    let mut response = match stored.iter().any(|one| one.is_new) {
        true => HttpResponse::Created(),
        false => HttpResponse::Ok(),
    };
    Ok(match (is_array, stored.len()) {
        (false, 1) => response.json(stored.remove(0)),
        _ => response.json(stored),
    })
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::bad_event(error.to_string()),
        _ => Problem::bad_json(format!("the body is no JSON: {error}")),
    })
}

impl Incoming {
    fn check(self) -> Result<NewEvent, String> {
        let Self { kind, payload, step_id, actor, id, timestamp } = self;
        check_text("type", &kind)?;
        if sse::is_reserved(&kind) {
            return Err(format!("type {kind:?}: types that begin with \"stream.\" are Jobcast's own"));
        }
        for (name, text) in [("stepId", &step_id), ("actor", &actor), ("id", &id)] {
            if let Some(text) = text {
                check_text(name, text)?;
            }
        }
        let timestamp = match timestamp {
            None => Timestamp::now(),
            Some(text) => {
                text.parse().map_err(|_| format!("timestamp {text:?} is not RFC 3339, such as 2026-11-23T21:00:00Z"))?
            }
        };
        let payload = payload.map_or_else(|| "{}".into(), |payload| payload.get().to_string());
        // bounded nesting and numbers that every reader can read: what a store's own check would refuse later
        if let Err(error) = serde_json::from_str::<serde_json::Value>(&payload) {
            return Err(format!("payload cannot be read: {error}"));
        }
        let id = id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        Ok(NewEvent { id, step_id, kind, timestamp, actor, payload: Payload::from_text(payload) })
    }
}

fn check_text(name: &str, text: &str) -> Result<(), String> {
    let chars = text.chars().count();
    if chars == 0 || chars > 200 {
        return Err(format!("{name} must have 1 to 200 characters, not {chars}"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{name} must not have control characters"));
    }
    Ok(())
}

/// Who may write: nobody unless it is enabled, and then whoever has the token, where there is one.
pub fn may_ingest(request: &HttpRequest, app: &App) -> Result<(), Problem> {
    if !app.ingest_enabled {
        return Err(Problem::ingest_off("this Jobcast only reads; set ingest.enabled = true to send events in"));
    }
    let Some(token) = app.ingest.token.get() else { return Ok(()) };
    let given = request.headers().get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes).unwrap_or_default();
    let wanted = format!("Bearer {token}");
    // as long for a wrong guess as for a right one
    let differs =
        given.len() != wanted.len() || given.iter().zip(wanted.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) != 0;
    telemetry::AUTH.increment(&[("outcome", if differs { "denied" } else { "allowed" })], 1);
    if differs { Err(Problem::no_token("send the ingest token as `Authorization: Bearer …`")) } else { Ok(()) }
}

/// A body of `application/json`, which a page of another origin cannot send without being asked for (Fetch, CORS).
pub async fn json_body(
    request: &HttpRequest,
    body: web::Payload,
    settings: &config::Http,
) -> Result<web::Bytes, Problem> {
    use actix_web::HttpMessage;
    if request.content_type() != "application/json" {
        return Err(Problem::not_json("send the body with `Content-Type: application/json`"));
    }
    let most = settings.max_body.as_u64() as usize;
    match body.to_bytes_limited(most).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(Problem::bad_json(format!("the body did not arrive whole: {error}"))),
        Err(_) => Err(Problem::too_large(format!("the body has more than {most} bytes, which is http.max_body"))),
    }
}
