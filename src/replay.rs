//! What a subscriber gets before it is live: history in pages from the source until its ring reaches back, one read
//! for all who ask alike.

use crate::config;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{JobId, JobStatus};
use crate::hub::{Hub, Join, Place, Seed, Subscription};
use crate::source::{Answer, Limit, Source};
use crate::sse::{Reset, Segment, Shape};
use crate::tail::{self, Backoff};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One page. What a subscriber who reads nothing holds of it is one of these, so it is small.
const PAGE: Limit = Limit { events: 512, bytes: 64 * 1024 };

/// Reads pages, encoded; whoever asks for a page that is being read waits for the same read.
pub struct Pages {
    source: Arc<dyn Source>,
    shape: Shape,
    pace: config::Source,
    flights: Mutex<HashMap<(JobId, Cursor), WeakShared<Flight>>>,
}

type Flight = BoxFuture<'static, Result<Arc<Encoded>, SourceError>>;

enum Encoded {
    Page { segments: Vec<Arc<Segment>>, end: Cursor, is_last: bool, complete: Option<JobStatus> },
    NoSuchJob,
    Lost(Reset),
}

impl Pages {
    pub fn new(source: Arc<dyn Source>, shape: Shape, pace: config::Source) -> Arc<Self> {
        Arc::new(Self { source, shape, pace, flights: Mutex::default() })
    }

    fn read(self: &Arc<Self>, job: &JobId, after: &Cursor) -> Shared<Flight> {
        let key = (job.clone(), after.clone());
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let pages = self.clone();
        let flight = async move {
            let answer = pages.source.page(&key.0, &key.1, PAGE).await;
            // Landed: whoever asks from now on may want what was written meanwhile.
            pages.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            answer.map(|answer| Arc::new(pages.encode(answer))).inspect_err(tail::report)
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert((job.clone(), after.clone()), weak);
        }
        flight
    }

    fn encode(&self, answer: Answer) -> Encoded {
        match answer {
            Answer::Page(page) => Encoded::Page {
                segments: tail::encode(&page.events, self.shape),
                end: page.end,
                is_last: page.is_last,
                complete: page.status.filter(|_| page.is_complete),
            },
            Answer::NoSuchJob => Encoded::NoSuchJob,
            Answer::Lost(reset) => Encoded::Lost(reset),
        }
    }
}

/// One reader on its way to being live.
pub struct Replay {
    pages: Arc<Pages>,
    hub: Hub,
    job: JobId,
    /// After everything that was given so far.
    cursor: Cursor,
    /// The last page was the last there was.
    is_level: bool,
    /// What a channel that begins with this reader begins with.
    seed: Option<Seed>,
    complete: Option<JobStatus>,
    backoff: Option<(Backoff, Duration)>,
    has_read: bool,
}

/// What comes next.
pub enum Step {
    /// Older events.
    Events(Vec<Arc<Segment>>),
    /// Nothing is between the reader and the ring any more, once `missing` is given.
    Live {
        missing: Vec<Arc<Segment>>,
        subscription: Subscription,
        place: Place,
        cursor: Cursor,
    },
    /// The job has ended and everything was given.
    Complete(JobStatus, Cursor),
    /// What the reader stood on is gone. Going on gives all there is, from the beginning.
    Reset(Reset, Cursor),
    NoSuchJob,
    /// The source does not answer; told once. Going on waits and tries again.
    Outage(SourceError, Duration),
}

impl Replay {
    /// Everything after `cursor`.
    pub fn after(pages: Arc<Pages>, hub: Hub, job: JobId, cursor: Cursor) -> Self {
        let is_level = false;
        Self { pages, hub, job, cursor, is_level, seed: None, complete: None, backoff: None, has_read: false }
    }

    /// Only what comes from now on; `cursor` is the newest position that the source told just now.
    pub fn from_newest(pages: Arc<Pages>, hub: Hub, job: JobId, cursor: Cursor) -> Self {
        Self { is_level: true, ..Self::after(pages, hub, job, cursor) }
    }

    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// After everything that was given so far.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Whether the source had to be asked.
    pub fn has_read(&self) -> bool {
        self.has_read
    }

    /// May be dropped at any time, and called again, without losing or repeating anything.
    pub async fn next(&mut self) -> Step {
        loop {
            if let Some(status) = self.complete {
                return Step::Complete(status, self.cursor.clone());
            }
            if let Some((subscription, place)) = self.hub.join(&self.job, &self.cursor) {
                return self.live(Vec::new(), subscription, place);
            }
            if self.is_level {
                match self.hub.begin(&self.job, &self.cursor, self.seed.take()) {
                    Join::Level(level) => return self.live(level.missing, level.subscription, level.place),
                    Join::Wait(answer) => match answer.await {
                        Ok(level) => return self.live(level.missing, level.subscription, level.place),
                        Err(_) => self.is_level = false,
                    },
                }
            }
            if let Some((_, wait)) = &self.backoff {
                tokio::time::sleep(*wait).await;
            }
            self.has_read = true;
            let answer = self.pages.read(&self.job, &self.cursor).await;
            match answer.as_deref() {
                Ok(Encoded::Page { segments, end, is_last, complete }) => {
                    self.backoff = None;
                    let base = std::mem::replace(&mut self.cursor, end.clone());
                    self.is_level = *is_last;
                    self.complete = *complete;
                    if !segments.is_empty() {
                        self.seed = Some(Seed { base, segments: segments.clone() });
                        return Step::Events(segments.clone());
                    }
                }
                Ok(Encoded::NoSuchJob) => return Step::NoSuchJob,
                Ok(Encoded::Lost(reset)) => {
                    self.backoff = None;
                    self.seed = None;
                    self.cursor = self.pages.source.beginning(&self.job);
                    return Step::Reset(*reset, self.cursor.clone());
                }
                Err(error) => {
                    let is_first = self.backoff.is_none();
                    let mut backoff = self.backoff.take().map_or_else(
                        || Backoff::new(self.pages.pace.retry_initial, self.pages.pace.retry_max),
                        |(backoff, _)| backoff,
                    );
                    let wait = backoff.failed();
                    self.backoff = Some((backoff, wait));
                    if is_first {
                        return Step::Outage(error.clone(), wait);
                    }
                }
            }
        }
    }

    fn live(&mut self, missing: Vec<Arc<Segment>>, subscription: Subscription, place: Place) -> Step {
        if let Some(last) = missing.last() {
            self.cursor = last.end();
        }
        Step::Live { missing, subscription, place, cursor: self.cursor.clone() }
    }
}
