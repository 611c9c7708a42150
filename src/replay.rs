//! What a subscriber gets before it is live: history in pages from the source until its ring reaches back, one read
//! for all who ask alike.

use crate::backoff::Backoff;
use crate::config;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{JobId, JobStatus};
use crate::hub::{Hub, Join, Place, Seed, Subscription};
use crate::source::{Limit, PageResult, Source};
use crate::sse::{Reset, Segment, Shape};
use crate::tail;
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
    pace: config::Pace,
    in_flight: Mutex<HashMap<(JobId, Cursor), WeakShared<PageRead>>>,
}

type PageRead = BoxFuture<'static, Result<Arc<EncodedPage>, SourceError>>;

enum EncodedPage {
    Page { segments: Vec<Arc<Segment>>, end: Cursor, is_last: bool, complete: Option<JobStatus> },
    NoSuchJob,
    Lost(Reset),
}

impl Pages {
    pub fn new(source: Arc<dyn Source>, shape: Shape, pace: config::Pace) -> Arc<Self> {
        Arc::new(Self { source, shape, pace, in_flight: Mutex::default() })
    }

    fn read(self: &Arc<Self>, job: &JobId, after: &Cursor) -> Shared<PageRead> {
        let key = (job.clone(), after.clone());
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = in_flight.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let pages = self.clone();
        let flight = async move {
            let answer = pages.source.page(&key.0, &key.1, PAGE).await;
            // Landed: whoever asks from now on may want what was written meanwhile.
            pages.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            answer.map(|answer| Arc::new(pages.encode(answer))).inspect_err(tail::report)
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            in_flight.insert((job.clone(), after.clone()), weak);
        }
        flight
    }

    fn encode(&self, answer: PageResult) -> EncodedPage {
        match answer {
            PageResult::Page(page) => EncodedPage::Page {
                segments: tail::encode(&page.events, self.shape),
                end: page.end,
                is_last: page.is_last,
                complete: page.status.filter(|_| page.is_complete),
            },
            PageResult::NoSuchJob => EncodedPage::NoSuchJob,
            PageResult::Lost(reset) => EncodedPage::Lost(reset),
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
    is_caught_up: bool,
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
        let is_caught_up = false;
        Self { pages, hub, job, cursor, is_caught_up, seed: None, complete: None, backoff: None, has_read: false }
    }

    /// Only what comes from now on; `cursor` is the newest position that the source told just now.
    pub fn from_newest(pages: Arc<Pages>, hub: Hub, job: JobId, cursor: Cursor) -> Self {
        Self { is_caught_up: true, ..Self::after(pages, hub, job, cursor) }
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
            if self.is_caught_up {
                match self.hub.join_or_create(&self.job, &self.cursor, self.seed.take()) {
                    Join::CaughtUp(level) => return self.live(level.missing, level.subscription, level.place),
                    Join::Wait(answer) => match answer.await {
                        Ok(level) => return self.live(level.missing, level.subscription, level.place),
                        Err(_) => self.is_caught_up = false,
                    },
                }
            }
            if let Some((_, wait)) = &self.backoff {
                tokio::time::sleep(*wait).await;
            }
            self.has_read = true;
            let answer = self.pages.read(&self.job, &self.cursor).await;
            match answer.as_deref() {
                Ok(EncodedPage::Page { segments, end, is_last, complete }) => {
                    self.backoff = None;
                    let base = std::mem::replace(&mut self.cursor, end.clone());
                    self.is_caught_up = *is_last;
                    self.complete = *complete;
                    if !segments.is_empty() {
                        self.seed = Some(Seed { base, segments: segments.clone() });
                        return Step::Events(segments.clone());
                    }
                }
                Ok(EncodedPage::NoSuchJob) => return Step::NoSuchJob,
                Ok(EncodedPage::Lost(reset)) => {
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
