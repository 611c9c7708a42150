//! Jobs that readers wait for, because the source does not know them yet. The tail looks for all of them in its own reads,
//! so that nobody who waits asks the source.

use super::Hub;
use crate::event::JobId;
use crate::telemetry;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The awaited jobs, and the number of readers that wait.
///
/// Invariant: `readers` is the sum of the jobs' own, and a job is here only while it has one.
#[derive(Default)]
pub(super) struct AwaitedJobs(Mutex<State>);

#[derive(Default)]
struct State {
    jobs: HashMap<JobId, Awaited>,
    readers: usize,
}

struct Awaited {
    readers: usize,
    /// Wakes them once the source may know the job.
    appeared: watch::Sender<()>,
}

impl AwaitedJobs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader's wait for a job; its drop is the end.
pub struct Appearance {
    hub: Hub,
    job: JobId,
    appeared: watch::Receiver<()>,
}

impl Appearance {
    /// Returns when the source may know the job: ask it then.
    pub async fn announced(&mut self) {
        if self.appeared.changed().await.is_err() {
            // The sender stays for as long as somebody waits.
            std::future::pending().await
        }
    }
}

impl Drop for Appearance {
    fn drop(&mut self) {
        let mut state = self.hub.0.awaited.state();
        state.readers -= 1;
        telemetry::WAITING.gauge(&[]).set(state.readers as f64);
        if let Some(awaited) = state.jobs.get_mut(&self.job) {
            awaited.readers -= 1;
            if awaited.readers == 0 {
                state.jobs.remove(&self.job);
            }
        }
    }
}

impl Hub {
    /// Begins to wait for a job that the source has said not to know. `None` where `max` readers wait already.
    pub fn await_job(&self, job: &JobId, max: usize) -> Option<Appearance> {
        let appeared = {
            let mut state = self.0.awaited.state();
            if state.readers >= max {
                return None;
            }
            state.readers += 1;
            telemetry::WAITING.gauge(&[]).set(state.readers as f64);
            let new = || Awaited { readers: 0, appeared: watch::Sender::new(()) };
            let awaited = state.jobs.entry(job.clone()).or_insert_with(new);
            awaited.readers += 1;
            awaited.appeared.subscribe()
        };
        // It may have appeared since the source was asked: the tail looks at once.
        self.0.requested.notify_one();
        Some(Appearance { hub: self.clone(), job: job.clone(), appeared })
    }

    /// Returns the jobs that somebody waits for.
    pub fn awaited_jobs(&self) -> Vec<JobId> {
        self.0.awaited.state().jobs.keys().cloned().collect()
    }

    /// Wakes all who wait for one of these jobs, since the source may know it now.
    pub fn announce_jobs<'a>(&self, jobs: impl IntoIterator<Item = &'a JobId>) {
        let state = self.0.awaited.state();
        for awaited in jobs.into_iter().filter_map(|job| state.jobs.get(job)) {
            awaited.appeared.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::job;
    use super::*;
    use crate::config;
    use futures_util::FutureExt;

    #[test]
    fn all_who_wait_for_a_job_are_woken_and_one_that_nobody_waits_for_is_forgotten() {
        let hub = Hub::new(config::Hub::default());
        let mut readers: Vec<_> = (0..3).map(|_| hub.await_job(&job(), 3).expect("room")).collect();
        assert!(hub.await_job(&job(), 3).is_none());
        assert_eq!(hub.awaited_jobs(), [job()]);
        assert!(hub.requested().now_or_never().is_some(), "the tail looks at once");
        hub.announce_jobs(&["other".parse().expect("an id")]);
        assert!(readers.iter_mut().all(|reader| reader.announced().now_or_never().is_none()));
        hub.announce_jobs(&[job()]);
        for reader in &mut readers {
            assert!(reader.announced().now_or_never().is_some());
            assert!(reader.announced().now_or_never().is_none(), "once for each announcement");
        }
        readers.pop();
        assert!(hub.await_job(&job(), 3).is_some());
        readers.clear();
        assert!(hub.awaited_jobs().is_empty());
    }
}
