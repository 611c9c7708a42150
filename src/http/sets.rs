//! `GET /runner-jobs/events?job=A&job=B`: the events of a set of jobs as JSON. Also one job's where only some types of its
//! events are wanted.

use super::App;
use super::answer::Room;
use super::appear::{CLOSED, GivenUp, Wait};
use super::client_address::ClientAddress;
use super::events::{Held, gave_up, retry_of, something_new};
use super::extract::{PollQuery, Query};
use super::limits::Refusal;
use super::opening::Begun;
use super::problem::Problem;
use super::rights::{Right, WatchedSet};
use crate::auth::Grant;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus};
use crate::replay::Position;
use crate::source::{EventKey, Limit, PageResult};
use crate::sse::Reset;
use crate::tail;
use crate::telemetry;
use crate::topic::Topic;
use actix_web::http::{Method, header};
use actix_web::{HttpResponse, web};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pages without one event that is wanted that an answer reads on over. After so many it gives the position that it came to.
const MAX_EMPTY_PAGES: usize = 16;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Polled<'a> {
    events: &'a [Sent],
    /// Position after these events, for `after` of the next request.
    cursor: &'a Cursor,
    /// All jobs have ended, and these were their last events.
    complete: bool,
    jobs: BTreeMap<&'a str, Job<'a>>,
    retry_ms: u64,
    /// The part that tells the events of a job apart.
    unique: EventKey,
    /// The jobs that begin again, or anew.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    resets: Vec<ResetNote<'a>>,
}

#[derive(Serialize)]
pub struct Sent {
    #[serde(flatten)]
    pub event: Event,
    pub cursor: Cursor,
}

#[derive(Default, Serialize)]
struct Job<'a> {
    status: Option<JobStatus>,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobError<'a>>,
}

#[derive(Serialize)]
struct JobError<'a> {
    code: &'a str,
    message: &'a str,
    /// The next request may find it mended.
    retryable: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResetNote<'a> {
    job_id: &'a str,
    reason: Reset,
}

pub async fn get(
    WatchedSet { query: wanted, allowed, refused: forbidden }: WatchedSet,
    Query(query): Query<PollQuery>,
    client: ClientAddress,
    method: Method,
    app: web::Data<App>,
) -> Result<HttpResponse, Problem> {
    let topic = Topic::new(allowed.iter().map(|(job, _)| job.clone()), wanted.types, wanted.ids);
    let grants = allowed.iter().filter_map(|(_, right)| right.clone().into_grant());
    let (poll, room) = Poll::read(&app, topic, &query, grants, client, &method).await?;
    check(&app, &allowed)?;
    poll.answer(room, &forbidden)
}

/// Fails if a right has ended meanwhile. Where others hold, the caller comes back from the same position, and is told of that
/// job alone; an answer without its events would move the position over them.
fn check(app: &App, allowed: &[(JobId, Right)]) -> Result<(), Problem> {
    let mut ended = allowed.iter().filter_map(|(_, right)| right.check().err());
    match (ended.next(), ended.count() + 1 < allowed.len()) {
        (None, _) => Ok(()),
        (Some(_), true) => Err(Problem::closed(CLOSED).retry_after(app.retry_later().as_secs())),
        (Some(problem), false) => Err(problem),
    }
}

/// A poll on its way to an answer.
pub struct Poll<'a> {
    app: &'a App,
    topic: Topic,
    pub position: Position,
    pub events: Vec<Sent>,
    pub statuses: Vec<(JobId, JobStatus)>,
    pub over: Vec<JobId>,
    pub resets: Vec<(JobId, Reset)>,
    /// The jobs whose rows cannot be read just now.
    faults: Vec<(JobId, SourceError)>,
}

/// The end of one look at the source.
enum Look {
    /// None of the jobs is there.
    NoSuchJob,
    /// There was no more, if that is what it says.
    Read { is_last: bool },
}

impl<'a> Poll<'a> {
    /// Reads what an answer has to say. A poll that may be held counts as a stream does, and operators see it as one.
    pub async fn read(
        app: &'a App,
        topic: Topic,
        query: &PollQuery,
        grants: impl IntoIterator<Item = Arc<Grant>>,
        client: ClientAddress,
        method: &Method,
    ) -> Result<(Self, Room), Problem> {
        let refused = |refusal: Refusal| refusal.problem().retry_after(app.retry_later().as_secs());
        app.let_in(client, &topic).map_err(refused)?;
        let patience = if *method == Method::HEAD { Duration::ZERO } else { query.wait };
        let permit = (!patience.is_zero()).then(|| app.admit(client)).transpose().map_err(refused)?;
        let permit = permit.map(|permit| permit.with_grants(grants));
        let held = permit.map(|permit| (app.streams.registry.enter(&permit, &topic), permit));
        let _polling = held.as_ref().map(|_| telemetry::LONG_POLLS.hold());
        let begun = Begun::find(app, &topic, &query.start).await?;
        let mut poll = Self::new(app, topic, begun);
        let room = poll.wait(client, query.limit, patience, held.as_ref()).await?;
        Ok((poll, room))
    }

    fn new(app: &'a App, topic: Topic, begun: Begun) -> Self {
        let all = topic.jobs().iter().filter(|_| begun.is_unknown);
        let resets: Vec<_> = all.chain(&begun.added).map(|job| (job.clone(), Reset::Unknown)).collect();
        let position = begun.position;
        for (_, reason) in &resets {
            telemetry::RESETS.increment(&[("reason", reason.as_str())], 1);
        }
        Self {
            app,
            topic,
            position,
            events: Vec::new(),
            statuses: Vec::new(),
            over: Vec::new(),
            resets,
            faults: Vec::new(),
        }
    }

    /// Reads until there is something to say, or the time is up.
    async fn wait(
        &mut self,
        client: ClientAddress,
        limit: usize,
        patience: Duration,
        held: Option<&Held>,
    ) -> Result<Room, Problem> {
        let app = self.app;
        let until = Instant::now() + patience;
        let mut wait = Wait::new(app, self.topic.jobs(), patience.min(app.appear));
        let mut empty_pages = 0;
        loop {
            let room = app.answers.room();
            let look = self.look(Limit { events: limit, bytes: room.bytes() }).await?;
            let is_news = !self.events.is_empty() || self.is_complete();
            match look {
                // After a loss the beginning is read at once.
                Look::Read { is_last: true } if !self.resets.is_empty() => return Ok(room),
                Look::NoSuchJob => {
                    let waited = match held {
                        Some((registration, permit)) => wait.next(registration, permit).await,
                        None => Err(GivenUp::NoSuchJob),
                    };
                    waited.map_err(|given_up| gave_up(app, &self.topic, client, given_up))?;
                }
                Look::Read { .. } if is_news => return Ok(room),
                Look::Read { is_last: false } if empty_pages < MAX_EMPTY_PAGES => empty_pages += 1,
                Look::Read { is_last: false } => return Ok(room),
                Look::Read { is_last: true } => {
                    drop(room);
                    let is_news = something_new(app, &self.topic, &self.position, until, held).await?;
                    if !is_news {
                        return Ok(app.answers.room());
                    }
                }
            }
        }
    }

    pub fn is_complete(&self) -> bool {
        self.over.len() == self.topic.jobs().len()
    }

    /// Reads once for all jobs.
    async fn look(&mut self, limit: Limit) -> Result<Look, SourceError> {
        let jobs = self.topic.jobs().to_vec();
        let wanted: Vec<_> = jobs.iter().cloned().zip(self.position.cursors(&self.topic)).collect();
        let pages = &self.app.streams.pages;
        let results = match &wanted[..] {
            [(job, after)] => vec![Ok(pages.plain(job, after, limit).await?)],
            _ => pages.plain_of_set(&self.topic, &wanted, limit).await?,
        };
        if results.iter().all(|result| matches!(result, Ok(PageResult::NoSuchJob))) {
            return Ok(Look::NoSuchJob);
        }
        let mut is_last = results.len() == jobs.len();
        let mut levels: Vec<_> = wanted.iter().map(|(_, cursor)| cursor.level()).collect();
        (self.statuses, self.over, self.faults) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (job, result)) in jobs.iter().zip(results).enumerate() {
            let beginning = self.app.source.beginning(job).level();
            match result {
                Ok(PageResult::Page(page)) => {
                    tail::count_unreadable(&page.events);
                    is_last &= page.is_last;
                    self.statuses.extend(page.status.map(|status| (job.clone(), status)));
                    self.over.extend(page.is_complete.then(|| job.clone()));
                    for (event, cursor) in page.events {
                        if !self.topic.has_type(&event.kind) {
                            continue;
                        }
                        let cursor = match &jobs[..] {
                            [_] => cursor,
                            _ => {
                                levels[index] = cursor.level();
                                self.topic.token(&levels)
                            }
                        };
                        self.events.push(Sent { event, cursor });
                    }
                    levels[index] = page.end.level();
                }
                Ok(PageResult::NoSuchJob) if levels[index] == beginning => {}
                Ok(PageResult::NoSuchJob) => {
                    self.resets.push((job.clone(), Reset::Unknown));
                    levels[index] = beginning;
                }
                Ok(PageResult::Lost(reset)) => {
                    is_last = false;
                    self.resets.push((job.clone(), reset));
                    levels[index] = beginning;
                }
                Ok(PageResult::Unreadable(error)) | Err(error) => self.faults.push((job.clone(), error)),
            }
        }
        self.position = match &self.topic {
            Topic::Job(job) => Position::of_job(levels[0].cursor(job)),
            Topic::Set(_) => self.topic.position(levels),
        };
        Ok(Look::Read { is_last })
    }

    fn answer(&self, room: Room, forbidden: &[(JobId, Problem)]) -> Result<HttpResponse, Problem> {
        let mut jobs: BTreeMap<&str, Job<'_>> =
            self.topic.jobs().iter().map(|job| (job.as_str(), Job::default())).collect();
        for (job, status) in &self.statuses {
            jobs.entry(job.as_str()).or_default().status = Some(*status);
        }
        for job in &self.over {
            jobs.entry(job.as_str()).or_default().complete = true;
        }
        for (job, problem) in forbidden {
            let error = Some(JobError { code: problem.code(), message: problem.detail(), retryable: false });
            jobs.insert(job.as_str(), Job { error, ..Job::default() });
        }
        for (job, fault) in &self.faults {
            let error = Some(JobError { code: fault.code.as_str(), message: fault.told(), retryable: true });
            jobs.entry(job.as_str()).or_default().error = error;
        }
        let mut response = HttpResponse::Ok();
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        let polled = Polled {
            events: &self.events,
            cursor: &self.position.token,
            complete: self.is_complete(),
            jobs,
            retry_ms: retry_of(self.app),
            unique: self.app.source.event_key(),
            resets: self
                .resets
                .iter()
                .map(|(job, reason)| ResetNote { job_id: job.as_str(), reason: *reason })
                .collect(),
        };
        room.json(response, &polled)
    }
}
