//! The beginning of a stream, found before the answer so that the answer's head can name it.

use super::appear::{GivenUp, Wait};
use super::edge;
use super::problem::Problem;
use super::stream::{head, stalled};
use super::{App, access};
use crate::cursor::set::{self, MAX_TEXT, Members};
use crate::cursor::{Cursor, Start};
use crate::delivery::admission::{Origin, StreamPermit};
use crate::delivery::body::Body;
use crate::delivery::handoff::HandoffSlot;
use crate::delivery::source_error;
use crate::error::SourceError;
use crate::event::JobId;
use crate::hub::Outage;
use crate::logging::ACCESS;
use crate::replay::{Position, Replay, Step};
use crate::sse::{self, ControlEvent, Reset};
use crate::telemetry;
use crate::topic::Topic;
use actix_web::http::{Method, Version};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// The jobs of a set that the source is asked about at a time.
const QUESTIONS_AT_A_TIME: usize = 4;

/// Opens the stream, and waits for so long until there is one of its jobs. Meanwhile the request counts as a stream, which
/// operators see and close as one.
pub async fn open_once_there(
    app: &App,
    topic: &Topic,
    mut start: Start,
    permit: &StreamPermit,
    patience: Duration,
) -> Result<Opened, GivenUp> {
    let mut waiting = None;
    loop {
        let opened = Opened::open(app, topic, &start).await.map_err(GivenUp::Outage)?;
        if !matches!(opened.first, Step::NoSuchJob) {
            return Ok(opened);
        }
        let begin = || (app.streams.registry.enter(permit, topic), Wait::new(app, topic.jobs(), patience));
        let (registration, wait) = waiting.get_or_insert_with(begin);
        wait.next(registration, permit).await?;
        if matches!(start, Start::Now | Start::Last(_)) {
            // The caller came before the first event.
            start = Start::Beginning;
        }
    }
}

/// The place where a reader begins, by what it asked for.
pub struct Begun {
    pub position: Position,
    /// The source made the position itself.
    pub is_own: bool,
    /// Set if what was asked for means nothing: all begins as it would without it.
    pub is_unknown: bool,
    /// The jobs of a set that the cursor says nothing of.
    pub added: Vec<JobId>,
}

impl Begun {
    /// Finds the place of a reader of `topic`.
    pub async fn find(app: &App, topic: &Topic, start: &Start) -> Result<Self, SourceError> {
        let Start::After(text, otherwise) = start else {
            let position = topic.position_at(&beginnings(app, topic.jobs(), start).await?);
            return Ok(Self { position, is_own: true, is_unknown: false, added: Vec::new() });
        };
        let jobs = topic.jobs();
        // One job alone that loses its place is told so and gets its whole history.
        let otherwise = if jobs.len() == 1 { &Start::Beginning } else { &**otherwise };
        let known = resolve(app, topic, text).await?;
        let unknown = jobs.iter().zip(&known).filter(|(_, known)| known.is_none());
        let added: Vec<JobId> = unknown.map(|(job, _)| job.clone()).collect();
        let mut others = beginnings(app, &added, otherwise).await?.into_iter();
        let cursors: Vec<Cursor> = known.into_iter().filter_map(|known| known.or_else(|| others.next())).collect();
        let is_unknown = added.len() == jobs.len();
        let added = if is_unknown { Vec::new() } else { added };
        Ok(Self { position: topic.position_at(&cursors), is_own: is_unknown, is_unknown, added })
    }
}

/// Returns the place of each job that foreign text means, where it means one.
async fn resolve(app: &App, topic: &Topic, text: &str) -> Result<Vec<Option<Cursor>>, SourceError> {
    let jobs = topic.jobs();
    if let [job] = jobs {
        // The cursor of a set is good for each of its jobs alone, too.
        let in_set = set::open(&Members::new([job.clone()]), text).and_then(|known| known.into_iter().next().flatten());
        let text = in_set.as_ref().map_or(text, Cursor::as_str);
        return Ok(vec![app.resolve(job, text).await?]);
    }
    let named = if text.len() <= MAX_TEXT { topic.open(text) } else { None };
    let named = named.unwrap_or_else(|| vec![None; jobs.len()]);
    let resolved = jobs.iter().zip(named).map(|(job, cursor)| async move {
        let Some(cursor) = cursor else { return Ok(None) };
        match app.source.resolve(job, cursor.as_str()).await {
            // The first page says whether it is good, once that job's rows can be read.
            Err(error) if error.is_of_job(job) => Ok(Some(cursor)),
            resolved => resolved,
        }
    });
    stream::iter(resolved).buffered(QUESTIONS_AT_A_TIME).try_collect().await
}

/// Returns the place where each job begins for a reader without a cursor. For a job that there is none of, and for one of
/// several whose rows cannot be read, it is the beginning: the first page says so.
async fn beginnings(app: &App, jobs: &[JobId], start: &Start) -> Result<Vec<Cursor>, SourceError> {
    let found = jobs.iter().map(|job| async move {
        let found = match start {
            Start::Beginning | Start::After(..) => Ok(None),
            Start::Now => app.newest(job).await.map(|newest| newest.map(|newest| newest.cursor)),
            Start::Last(count) => app.source.before_last(job, *count).await,
        };
        let found = match found {
            Err(error) if jobs.len() > 1 && error.is_of_job(job) => None,
            found => found?,
        };
        Ok(found.unwrap_or_else(|| app.source.beginning(job)))
    });
    stream::iter(found).buffered(QUESTIONS_AT_A_TIME).try_collect().await
}

/// Beginning of a stream.
pub struct Opened {
    /// Set while the source does not answer.
    outage: Option<Arc<Outage>>,
    /// Set if the position that was asked for is unknown or gone: the whole history follows.
    reset: Option<(Reset, Cursor)>,
    /// The jobs of a set that begin, while the others go on.
    added: Vec<JobId>,
    /// The jobs of a set that the caller may not watch.
    forbidden: Vec<(JobId, Problem)>,
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
    async fn open(app: &App, topic: &Topic, start: &Start) -> Result<Self, SourceError> {
        let (pages, hub) = (app.streams.pages.clone(), app.streams.hub.clone());
        let is_now = *start == Start::Now;
        let mut is_resume = matches!(start, Start::After(..));
        let (mut reset, mut added) = (None, Vec::new());
        let position;
        let newest = match (topic, is_now) {
            (Topic::Job(job), true) => app.newest(job).await?.map(|newest| (job, newest)),
            _ => None,
        };
        let mut replay = match newest {
            Some((job, newest)) => {
                position = Some(newest.cursor.clone());
                Replay::from_newest(pages, hub, job.clone(), newest)
            }
            None => {
                let begun = Begun::find(app, topic, start).await?;
                let token = &begun.position.token;
                if begun.is_unknown {
                    is_resume = false;
                    reset = Some((Reset::Unknown, token.clone()));
                }
                position = (is_now && matches!(topic, Topic::Set(_))).then(|| token.clone());
                added = begun.added;
                match begun.is_own {
                    true => Replay::at(pages, hub, topic.clone(), begun.position),
                    false => Replay::after(pages, hub, topic.clone(), begun.position),
                }
            }
        };
        let mut first = replay.next().await;
        if let Step::Reset(None, reason, beginning) = first {
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
        Ok(Self { outage, reset, added, forbidden: Vec::new(), position, replay, first, is_resume, from })
    }

    /// Tells the client of jobs that it may not watch, while it watches the others.
    pub fn refusing(self, forbidden: Vec<(JobId, Problem)>) -> Self {
        Self { forbidden, ..self }
    }

    /// Tells if the client stands at the end of jobs that have all ended.
    pub fn is_at_the_end(&self) -> bool {
        self.is_resume && self.added.is_empty() && self.replay.is_complete_without_news()
    }

    /// Returns the failure of the source, where it is the first that there is to say.
    pub fn outage_at_once(&self) -> Option<SourceError> {
        match &self.first {
            Step::Outage(error, _) => Some(error.clone()),
            _ => None,
        }
    }

    /// The bytes before the first event.
    fn opening(&mut self, app: &App, before: &Cursor) -> Vec<Bytes> {
        let mut opening = vec![sse::opening(app.streams.rules.retry)];
        let outage = self.outage.as_deref();
        opening.extend(outage.map(|outage| source_error(&outage.error, outage.retry_in).encode()));
        opening.extend(self.position.as_ref().map(sse::position));
        let reset = self.reset.take().map(|(reason, cursor)| {
            telemetry::RESETS.increment(&[("reason", reason.as_str())], 1);
            ControlEvent::Reset { reason, cursor }
        });
        let added = self.added.drain(..).map(|job| {
            let (reason, cursor) = (Reset::Unknown, before.clone());
            telemetry::RESETS.increment(&[("reason", reason.as_str())], 1);
            ControlEvent::ResetOf { job, reason, cursor }
        });
        let forbidden = self.forbidden.drain(..).map(|(job, problem)| {
            let (code, message) = (problem.code(), problem.detail().to_string());
            ControlEvent::ErrorOf { job, code, message, retry_in: None }
        });
        let events = reset.into_iter().chain(added).chain(forbidden).chain(self.replay.untold_statuses());
        opening.extend(events.map(|event| event.encode()));
        opening
    }

    pub fn answer(mut self, request: &HttpRequest, app: &App, mut permit: StreamPermit) -> HttpResponse {
        telemetry::RESUMES.increment(&[("from", self.from)], 1);
        // After a reset, too, the events come from the source.
        let replayed = if self.from == "reset" { "source" } else { self.from };
        let id = permit.id();
        access::note_connection(&id);
        tracing::info!(target: ACCESS, connection = id, replay = self.from, "stream begins");
        let before = self.replay.began_at().clone();
        let opening = self.opening(app, &before);
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
        permit.begins(&self.replay.topic().jobs()[0], request.extensions_mut().remove::<Origin>());
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
