//! `GET /runner-jobs/{job_id}/events`: the same events as JSON, for clients that cannot stream.

use super::App;
use super::answer::Room;
use super::appear::{CLOSED, GivenUp, Wait};
use super::client_address::ClientAddress;
use super::extract::{PollQuery, Query};
use super::limits::Refusal;
use super::problem::Problem;
use super::rights::WatchedJob;
use crate::cursor::{Cursor, Start};
use crate::delivery::admission::StreamPermit;
use crate::delivery::connections::Registration;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus};
use crate::hub::{Hub, Listening, Place, Subscription};
use crate::replay::{Replay, Step};
use crate::shutdown::Phase;
use crate::source::{EventKey, Limit, Page, PageResult};
use crate::sse::Reset;
use crate::tail;
use crate::telemetry;
use actix_web::http::{Method, header};
use actix_web::{HttpResponse, web};
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Polled {
    events: Vec<Sent>,
    /// Position after these events, for `after` of the next request.
    cursor: Cursor,
    complete: bool,
    status: Option<JobStatus>,
    retry_ms: u64,
    /// The part that tells the events of this job apart.
    unique: EventKey,
    /// Set if what was asked for cannot be given in full: the events are all there are, from the beginning.
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

pub async fn get(
    WatchedJob { job, right }: WatchedJob,
    Query(query): Query<PollQuery>,
    client: ClientAddress,
    method: Method,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let refused = |refusal: Refusal| refusal.problem().retry_after(app.retry_later().as_secs());
    app.let_in(client, &job).map_err(refused)?;
    // A poll that may be held counts as a stream does, and operators see it as one.
    let patience = if method == Method::HEAD { Duration::ZERO } else { query.wait };
    let permit = (!patience.is_zero()).then(|| app.admit(client)).transpose().map_err(refused)?;
    let permit = permit.map(|permit| permit.with_grant(right.clone().into_grant()));
    let held = permit.map(|permit| (app.streams.registry.enter(&permit, &job), permit));
    let _polling = held.as_ref().map(|_| telemetry::LONG_POLLS.hold());
    let until = Instant::now() + patience;
    let mut wait = Wait::new(&app, &job, patience.min(app.appear));
    let (mut after, mut reset) = begin(&app, &job, query.start).await?;
    loop {
        let room = app.answers.room();
        let limit = Limit { events: query.limit, bytes: room.bytes() };
        match app.streams.pages.plain(&job, &after, limit).await? {
            PageResult::NoSuchJob => {
                let waited = match &held {
                    Some((registration, permit)) => wait.next(registration, permit).await,
                    None => Err(GivenUp::NoSuchJob),
                };
                waited.map_err(|given_up| gave_up(&app, &job, client, given_up))?;
            }
            PageResult::Lost(reason) => {
                reset = Some(reason);
                after = app.source.beginning(&job);
            }
            PageResult::Page(page) => {
                let is_news = !page.events.is_empty() || page.is_complete || reset.is_some();
                if is_news {
                    right.check()?;
                    return answer(&app, room, page, reset);
                }
                // Nobody keeps room for what is not there yet.
                drop(room);
                if !something_new(&app, &job, &page.end, until, held.as_ref()).await? {
                    right.check()?;
                    return answer(&app, app.answers.room(), page, reset);
                }
                after = page.end;
            }
        }
    }
}

/// The answer to a caller whose job is not waited for any longer.
fn gave_up(app: &App, job: &JobId, client: ClientAddress, given_up: GivenUp) -> Problem {
    let later = app.retry_later().as_secs();
    match given_up {
        GivenUp::NoSuchJob => Problem::no_such_job(format!("there is no job {job}")),
        GivenUp::TooMany => {
            Refusal::Waiting.note(client.0);
            Refusal::Waiting.problem().retry_after(later)
        }
        GivenUp::Draining => Problem::draining("this Jobcast is leaving; come back").retry_after(later),
        GivenUp::Closed => Problem::closed(CLOSED).retry_after(later),
        GivenUp::Outage(error) => error.into(),
    }
}

/// Finds the first position, and the reason why it is not the one that was asked for. For a job that there is none of it
/// is the beginning: the first page says so.
async fn begin(app: &App, job: &JobId, start: Start) -> Result<(Cursor, Option<Reset>), Problem> {
    let beginning = || app.source.beginning(job);
    Ok(match start {
        Start::Beginning => (beginning(), None),
        Start::Now => (app.newest(job).await?.map_or_else(beginning, |newest| newest.cursor), None),
        Start::After(text) => match app.resolve(job, &text).await? {
            Some(cursor) => (cursor, None),
            None => (beginning(), Some(Reset::Unknown)),
        },
    })
}

fn answer(app: &App, room: Room, page: Page, reset: Option<Reset>) -> Result<HttpResponse, Problem> {
    tail::count_unreadable(&page.events);
    if let Some(reason) = reset {
        telemetry::RESETS.increment(&[("reason", reason.as_str())], 1);
    }
    // Those who are sent away by a drain do not come back at once, nor all together.
    let is_draining = app.streams.shutdown.phase() >= Phase::Draining;
    let retry = if is_draining { app.streams.reconnect_delay() } else { app.streams.rules.retry };
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    let polled = Polled {
        events: page.events.into_iter().map(|(event, cursor)| Sent { event, cursor }).collect(),
        cursor: page.end,
        complete: page.is_complete,
        status: page.status,
        retry_ms: retry.as_millis() as u64,
        unique: app.source.event_key(),
        reset: reset.map(|reason| ResetNote { reason }),
    };
    room.json(response, &polled)
}

/// Waits until there is something after `cursor`. Returns false if the time is up first, the process drains, or the poll may
/// not go on; the caller's next request is told why. Fails where the source does, since a caller who is told of nothing
/// takes that for news of the job.
async fn something_new(
    app: &App,
    job: &JobId,
    cursor: &Cursor,
    until: Instant,
    held: Option<&(Registration, StreamPermit)>,
) -> Result<bool, SourceError> {
    let Some((registration, permit)) = held else { return Ok(false) };
    tokio::select! {
        () = registration.ended(permit) => Ok(false),
        news = timeout_at(until, wait_for_news(app, job, cursor)) => news.map_or(Ok(false), |news| news.map(|()| true)),
        () = app.streams.shutdown.reached(Phase::Draining) => Ok(false),
    }
}

/// Watches the job as a stream would, and returns when there is something after `cursor`.
async fn wait_for_news(app: &App, job: &JobId, cursor: &Cursor) -> Result<(), SourceError> {
    let hub = &app.streams.hub;
    let mut replay = Replay::after(app.streams.pages.clone(), hub.clone(), job.clone(), cursor.clone());
    match replay.next().await {
        Step::Live { missing, subscription, place, .. } if missing.is_empty() => {
            wait_for_growth(hub, subscription, place).await
        }
        Step::Outage(error, _) => Err(error),
        _ => Ok(()),
    }
}

async fn wait_for_growth(hub: &Hub, subscription: Subscription, place: Place) -> Result<(), SourceError> {
    let (listening, mut outages) = (Listening::new(hub, subscription), hub.outages());
    loop {
        let Ok(unread) = listening.channel().read_from(place) else { return Ok(()) };
        if unread.end > place || unread.ended.is_some() {
            return Ok(());
        }
        let outage = unread.fault.map(|fault| fault.outage).or_else(|| outages.borrow_and_update().clone());
        if let Some(outage) = outage {
            return Err(outage.error.clone());
        }
        tokio::select! {
            () = listening.changed() => {}
            // The hub keeps the sender.
            _ = outages.changed() => {}
        }
    }
}
