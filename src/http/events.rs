//! `GET /runner-jobs/{job_id}/events`: the same events as JSON, for clients that cannot stream.

use super::App;
use super::client_address::ClientAddress;
use super::extract::{JobPath, PollQuery, Query};
use super::limits::Refusal;
use super::problem::Problem;
use crate::cursor::{Cursor, Start};
use crate::event::{Event, JobId, JobStatus};
use crate::hub::Listening;
use crate::replay::{Replay, Step};
use crate::source::{Limit, Page, PageResult};
use crate::sse::Reset;
use crate::tail;
use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

/// Bytes of payloads in one answer, at most.
const PAGE_BYTES: usize = 4 << 20;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Polled {
    events: Vec<Sent>,
    /// Position after these events, for `after` of the next request.
    cursor: Cursor,
    complete: bool,
    status: Option<JobStatus>,
    retry_ms: u64,
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
    JobPath(job): JobPath,
    Query(query): Query<PollQuery>,
    client: ClientAddress,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let refused = |refusal: Refusal| refusal.problem().retry_after(app.retry_later().as_secs());
    app.let_in(client, &job).map_err(refused)?;
    // A poll that is held counts as a stream does.
    let _permit = (!query.wait.is_zero()).then(|| app.admit(client)).transpose().map_err(refused)?;
    let until = Instant::now() + query.wait;
    let limit = Limit { events: query.limit, bytes: PAGE_BYTES };
    let (mut after, mut reset) = begin(&app, &job, query.start).await?;
    loop {
        match app.streams.pages.plain(&job, &after, limit).await? {
            PageResult::NoSuchJob => return Err(Problem::no_such_job(format!("there is no job {job}"))),
            PageResult::Lost(reason) => {
                reset = Some(reason);
                after = app.source.beginning(&job);
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

/// Finds the first position, and the reason why it is not the one that was asked for. For a job that there is none of it
/// is the beginning: the first page says so.
async fn begin(app: &App, job: &JobId, start: Start) -> Result<(Cursor, Option<Reset>), Problem> {
    let beginning = || app.source.beginning(job);
    Ok(match start {
        Start::Beginning => (beginning(), None),
        Start::Now => (app.newest(job).await?.unwrap_or_else(beginning), None),
        Start::After(text) => match app.resolve(job, &text).await? {
            Some(cursor) => (cursor, None),
            None => (beginning(), Some(Reset::Unknown)),
        },
    })
}

fn answer(app: &App, page: Page, reset: Option<Reset>) -> HttpResponse {
    tail::count_unreadable(&page.events);
    HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(Polled {
        events: page.events.into_iter().map(|(event, cursor)| Sent { event, cursor }).collect(),
        cursor: page.end,
        complete: page.is_complete,
        status: page.status,
        retry_ms: app.streams.rules.retry.as_millis() as u64,
        reset: reset.map(|reason| ResetNote { reason }),
    })
}

/// Waits until there is something after `cursor`, and returns false if the time is up first.
async fn something_new(app: &App, job: &JobId, cursor: &Cursor, until: Instant) -> bool {
    timeout_at(until, wait_for_news(app, job, cursor)).await.is_ok()
}

/// Watches the job as a stream would, and returns when there is something after `cursor`.
async fn wait_for_news(app: &App, job: &JobId, cursor: &Cursor) {
    let mut replay = Replay::after(app.streams.pages.clone(), app.streams.hub.clone(), job.clone(), cursor.clone());
    loop {
        match replay.next().await {
            Step::Live { missing, subscription, place, .. } if missing.is_empty() => {
                let listening = Listening::new(&app.streams.hub, subscription);
                let channel = listening.channel();
                while channel.newest().0 <= place && channel.ended().is_none() {
                    listening.changed().await;
                }
                return;
            }
            Step::Outage(..) => {}
            _ => return,
        }
    }
}
