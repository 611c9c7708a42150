//! Pages of many jobs: what their first requests ask for goes to each server in one batch.

use super::error::{failed, is_wrong_type};
use super::history::PageHead;
use super::position::Position;
use super::shared::Shared;
use super::status::JobState;
use super::topology::NodeError;
use super::{JobKey, Store};
use crate::event::JobId;
use crate::source::{Limit, PageResult, PagesBuilder};
use crate::sse::Reset;

/// Jobs of one batch.
const JOBS_AT_ONCE: usize = 16;
/// Entries that a batch asks for of each job: all together about as many as one request.
const ENTRIES_AHEAD: usize = 16;

/// A job and the position after which it is read; `None`: its cursor means nothing.
pub type Wanted<'a> = (&'a JobId, Option<Position>);

/// A failure, and the job at which it was met.
type FailedAt<'a> = (&'a JobId, NodeError);

impl Store {
    /// Reads pages of jobs with a stream each, until the limit of all of them is reached. Each ends for itself: an entry's id
    /// means nothing in another stream.
    pub(super) async fn pages<'a>(&self, wanted: &[Wanted<'a>], limit: Limit) -> Result<Vec<PageResult>, FailedAt<'a>> {
        let mut pages = PagesBuilder::new(limit);
        for batch in wanted.chunks(JOBS_AT_ONCE) {
            if pages.rest().is_none() {
                break;
            }
            for ((job, after), head) in batch.iter().zip(self.page_heads(batch).await) {
                let Some(rest) = pages.rest() else { break };
                let page = match (after, head) {
                    (None, _) => Ok(PageResult::Lost(Reset::Unknown)),
                    (Some(_), Err(error) | Ok(PageHead { slice: Err(error), .. })) if is_wrong_type(&error.error) => {
                        Ok(PageResult::Unreadable(failed("reading history", error).of_job((*job).clone())))
                    }
                    (Some(after), Ok(head)) => self.page_from(job, *after, rest, head).await,
                    (Some(_), Err(error)) => Err(error),
                };
                if !pages.add(page).map_err(|error| (*job, error))? {
                    return Ok(pages.into_results());
                }
            }
        }
        Ok(pages.into_results())
    }

    /// Reads how jobs are, and then the first entries of each.
    async fn page_heads(&self, batch: &[Wanted<'_>]) -> Vec<Result<PageHead, NodeError>> {
        let states = self.job_states(batch).await;
        let at = |after: Option<Position>| after.unwrap_or(Position::BEGINNING);
        let requests: Vec<_> =
            batch.iter().map(|(job, after)| self.stream_request(job, &at(*after), ENTRIES_AHEAD)).collect();
        let replies = self.nodes.send(&requests).await;
        let heads = batch.iter().zip(states).zip(replies).map(|(((_, after), state), replies)| {
            let slice = self.parse_stream(replies, &at(*after), ENTRIES_AHEAD);
            Ok(PageHead { key: JobKey::State(state?), slice })
        });
        heads.collect()
    }

    /// Reads the keys that say how jobs are.
    async fn job_states(&self, jobs: &[Wanted<'_>]) -> Vec<Result<JobState, NodeError>> {
        let requests: Option<Vec<_>> = jobs.iter().map(|(job, _)| self.status_request(job)).collect();
        match requests {
            Some(requests) => {
                let replies = self.nodes.send(&requests).await;
                replies.into_iter().map(|replies| self.parse_status(replies)).collect()
            }
            None => jobs.iter().map(|_| Ok(JobState::default())).collect(),
        }
    }

    /// Reads pages of jobs in the shared stream as of one moment: all last pages end at one place.
    pub(super) async fn shared_pages<'a>(
        &self,
        shared: &Shared,
        wanted: &[Wanted<'a>],
        limit: Limit,
    ) -> Result<Vec<PageResult>, FailedAt<'a>> {
        // The statuses come before the events: where one is final by then, all events come before the end.
        let states = self.job_states(wanted).await;
        let mut mirror = shared.lock().await;
        let mut pages = PagesBuilder::new(limit);
        let Some((first, _)) = wanted.first() else { return Ok(Vec::new()) };
        mirror.refresh(self, &self.nodes).await.map_err(|error| (*first, error))?;
        for ((job, after), state) in wanted.iter().zip(states) {
            let Some(rest) = pages.rest() else { break };
            let page = match (after, JobKey::of(state)) {
                (Some(after), Ok(key)) => self.page_of(&mirror, (job, &key), *after, rest).await,
                (Some(_), Err(error)) => Err(error),
                (None, _) => Ok(PageResult::Lost(Reset::Unknown)),
            };
            if !pages.add(page).map_err(|error| (*job, error))? {
                break;
            }
        }
        Ok(pages.into_results())
    }
}
