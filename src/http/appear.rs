//! The wait for jobs of which the source does not know one yet: a page is often there before its job's first row.

use super::App;
use crate::delivery::admission::StreamPermit;
use crate::delivery::connections::Registration;
use crate::error::SourceError;
use crate::event::JobId;
use crate::hub::{Appearance, Outage};
use crate::shutdown::Phase;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// First pause before a question, where the source was said to know the job and then did not: it may have been asked at a
/// standby that lags. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The sentence for a caller whose wait was closed.
pub const CLOSED: &str = "this request was closed, or the right that it came with has ended; come back";

/// One request's wait. The request holds its permit meanwhile, as an open stream does.
pub struct Wait<'a> {
    app: &'a App,
    jobs: Vec<JobId>,
    until: Instant,
    state: State,
    outages: watch::Receiver<Option<Arc<Outage>>>,
}

enum State {
    /// The source was asked once.
    New,
    Waiting(Vec<Appearance>),
    /// The source was said to know a job, but did not. It is asked again after this pause.
    Asking(Vec<Appearance>, Duration),
    /// The time is up: the next answer of the source counts.
    Over,
}

/// Reason for which a job is not waited for any longer.
pub enum GivenUp {
    /// The time is up, and the source does not know the job.
    NoSuchJob,
    /// `http.max_waiting` requests wait already.
    TooMany,
    /// The process is leaving.
    Draining,
    /// An operator closed the request, or the caller's right has ended.
    Closed,
    /// The source does not answer any more.
    Outage(SourceError),
}

impl<'a> Wait<'a> {
    /// A wait of so long at most, until one of the jobs is there. With no time it is over at once.
    pub fn new(app: &'a App, jobs: &[JobId], time: Duration) -> Self {
        let mut outages = app.streams.hub.outages();
        outages.mark_unchanged();
        let state = if time.is_zero() { State::Over } else { State::New };
        Self { app, jobs: jobs.to_vec(), until: Instant::now() + time, state, outages }
    }

    /// Returns when the source is to be asked once more, after it has said that there is no such job.
    pub async fn next(&mut self, registration: &Registration, permit: &StreamPermit) -> Result<(), GivenUp> {
        let streams = &self.app.streams;
        self.state = match std::mem::replace(&mut self.state, State::Over) {
            State::New => {
                let begin = |job| streams.hub.await_job(job, self.app.settings.max_waiting).ok_or(GivenUp::TooMany);
                State::Waiting(self.jobs.iter().map(begin).collect::<Result<_, _>>()?)
            }
            State::Waiting(appearances) => State::Asking(appearances, FIRST_PAUSE),
            State::Asking(appearances, pause) => State::Asking(appearances, pause * 2),
            State::Over => return Err(GivenUp::NoSuchJob),
        };
        let announced = async {
            match &mut self.state {
                State::Waiting(appearances) => {
                    let announced = appearances.iter_mut().map(|appearance| Box::pin(appearance.announced()));
                    futures_util::future::select_all(announced).await;
                }
                State::Asking(_, pause) => sleep(*pause).await,
                State::New | State::Over => {}
            }
        };
        tokio::select! {
            () = registration.ended(permit) => Err(GivenUp::Closed),
            () = streams.shutdown.reached(Phase::Draining) => Err(GivenUp::Draining),
            error = next_outage(&mut self.outages) => Err(GivenUp::Outage(error)),
            () = announced => Ok(()),
            () = sleep_until(self.until) => {
                self.state = State::Over;
                Ok(())
            }
        }
    }
}

/// Returns when an outage begins.
async fn next_outage(outages: &mut watch::Receiver<Option<Arc<Outage>>>) -> SourceError {
    loop {
        if outages.changed().await.is_err() {
            // The hub keeps the sender.
            std::future::pending::<()>().await;
        }
        if let Some(outage) = &*outages.borrow_and_update() {
            return outage.error.clone();
        }
    }
}
