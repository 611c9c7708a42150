//! `GET /runner-jobs/{job_id}/events`: the same events as JSON, for clients that cannot stream.

use super::App;
use super::answer::Room;
use super::appear::{CLOSED, GivenUp};
use super::client_address::ClientAddress;
use super::extract::{PollQuery, Query};
use super::limits::Refusal;
use super::problem::Problem;
use super::rights::WatchedJob;
use super::sets::{Poll, Sent};
use crate::cursor::Cursor;
use crate::cursor::set::Size;
use crate::delivery::admission::StreamPermit;
use crate::delivery::connections::Registration;
use crate::error::SourceError;
use crate::event::JobStatus;
use crate::hub::{Hub, Listening, Place, Subscription};
use crate::replay::{Position, Replay, Step};
use crate::shutdown::Phase;
use crate::source::EventKey;
use crate::sse::Reset;
use crate::topic::Topic;
use actix_web::http::{Method, header};
use actix_web::{HttpResponse, web};
use serde::Serialize;
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

/// A poll that is held, as an open stream is.
pub type Held = (Registration, StreamPermit);

pub async fn get(
    WatchedJob { job, right }: WatchedJob,
    Query(query): Query<PollQuery>,
    client: ClientAddress,
    method: Method,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let topic = Topic::new([job], query.types.clone(), Size::Short);
    let (poll, room) = Poll::read(&app, topic, &query, right.clone().into_grant(), client, &method).await?;
    right.check()?;
    answer(&app, room, poll)
}

/// The answer to a caller whose jobs are not waited for any longer.
pub fn gave_up(app: &App, topic: &Topic, client: ClientAddress, given_up: GivenUp) -> Problem {
    let later = app.retry_later().as_secs();
    match given_up {
        GivenUp::NoSuchJob => Problem::no_such_job(format!("there is no job {topic}")),
        GivenUp::TooMany => {
            Refusal::Waiting.note(client.0);
            Refusal::Waiting.problem().retry_after(later)
        }
        GivenUp::Draining => Problem::draining("this Jobcast is leaving; come back").retry_after(later),
        GivenUp::Closed => Problem::closed(CLOSED).retry_after(later),
        GivenUp::Outage(error) => error.into(),
    }
}

/// Returns the milliseconds after which a caller is to come back. Those who are sent away by a drain do not come back at
/// once, nor all together.
pub fn retry_of(app: &App) -> u64 {
    let is_draining = app.streams.shutdown.phase() >= Phase::Draining;
    let retry = if is_draining { app.streams.reconnect_delay() } else { app.streams.rules.retry };
    retry.as_millis() as u64
}

fn answer(app: &App, room: Room, poll: Poll<'_>) -> Result<HttpResponse, Problem> {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    let polled = Polled {
        complete: poll.is_complete(),
        status: poll.statuses.last().map(|(_, status)| *status),
        reset: poll.resets.last().map(|(_, reason)| ResetNote { reason: *reason }),
        events: poll.events,
        cursor: poll.position.token,
        retry_ms: retry_of(app),
        unique: app.source.event_key(),
    };
    room.json(response, &polled)
}

/// Waits until there is something after `after`. Returns false if the time is up first, the process drains, or the poll may
/// not go on; the caller's next request is told why. Fails where the source does, since a caller who is told of nothing
/// takes that for news of the job.
pub async fn something_new(
    app: &App,
    topic: &Topic,
    after: &Position,
    until: Instant,
    held: Option<&Held>,
) -> Result<bool, SourceError> {
    let Some((registration, permit)) = held else { return Ok(false) };
    tokio::select! {
        () = registration.ended(permit) => Ok(false),
        news = timeout_at(until, wait_for_news(app, topic, after)) => news.map_or(Ok(false), |news| news.map(|()| true)),
        () = app.streams.shutdown.reached(Phase::Draining) => Ok(false),
    }
}

/// Watches the topic as a stream would, and returns when there is something after `after`.
async fn wait_for_news(app: &App, topic: &Topic, after: &Position) -> Result<(), SourceError> {
    let hub = &app.streams.hub;
    let mut replay = Replay::after(app.streams.pages.clone(), hub.clone(), topic.clone(), after.clone());
    loop {
        match replay.next().await {
            Step::Live { missing, subscription, place, .. } if missing.is_empty() => {
                return wait_for_growth(hub, subscription, place).await;
            }
            Step::Outage(error, _) => return Err(error),
            // Jobs of a set that have ended are no news.
            Step::Events(_) if !replay.has_given() => {}
            _ => return Ok(()),
        }
    }
}

async fn wait_for_growth(hub: &Hub, subscription: Subscription, place: Place) -> Result<(), SourceError> {
    let (listening, mut outages) = (Listening::new(hub, subscription), hub.outages());
    loop {
        let Ok(unread) = listening.channel().read_from(place) else { return Ok(()) };
        if unread.end > place || unread.ended.is_some() {
            return Ok(());
        }
        let outage =
            unread.faults.into_iter().next().map(|fault| fault.outage).or_else(|| outages.borrow_and_update().clone());
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
