//! Pages of many jobs: what their first requests ask for goes to each server in one batch.

use super::error::{failed, is_wrong_type};
use super::history::PageHead;
use super::position::Position;
use super::shared::Shared;
use super::status::JobState;
use super::topology::NodeError;
use super::{JobKey, Store};
use crate::event::JobId;
use crate::source::{Limit, Page, PageResult, PagesBuilder, brings_on};
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

    /// Reads pages of jobs in the shared stream as of one moment: all last pages end at one place, and staged ones at an
    /// earlier one.
    pub(super) async fn shared_pages<'a>(
        &self,
        shared: &Shared,
        wanted: &[Wanted<'a>],
        limit: Limit,
    ) -> Result<Vec<PageResult>, FailedAt<'a>> {
        // The statuses come before the events: where one is final by then, all events come before the end.
        let states = self.job_states(wanted).await;
        let mut mirror = shared.lock().await;
        let Some((first, _)) = wanted.first() else { return Ok(Vec::new()) };
        mirror.refresh(self, &self.nodes).await.map_err(|error| (*first, error))?;
        let keys: Vec<Result<JobKey, NodeError>> = states.into_iter().map(JobKey::of).collect();
        let positions = wanted.iter().filter_map(|(_, after)| *after);
        let highest = positions.max_by_key(|after| after.id).filter(|highest| mirror.has_place(highest));
        if let Some(stage) = highest {
            let mut pages = PagesBuilder::new(limit);
            for ((job, after), key) in wanted.iter().zip(&keys) {
                let Some(rest) = pages.rest() else { break };
                let page = match (after, key) {
                    (None, _) => Ok(PageResult::Lost(Reset::Unknown)),
                    (Some(after), _) if after.id >= stage.id => Ok(PageResult::Page(Page::staged(after.seal(job)))),
                    (Some(after), Ok(key)) => self.page_of(&mirror, (job, key), *after, rest, Some(stage)).await,
                    (Some(_), Err(_)) => break,
                };
                if !pages.add(page).map_err(|error| (*job, error))? {
                    break;
                }
            }
            let pages = pages.into_results();
            let sealed = |(job, after): &Wanted<'_>| ((*job).clone(), after.unwrap_or(Position::BEGINNING).seal(job));
            if brings_on(&wanted.iter().map(sealed).collect::<Vec<_>>(), &pages) {
                return Ok(pages);
            }
        }
        let mut pages = PagesBuilder::new(limit);
        for ((job, after), key) in wanted.iter().zip(keys) {
            let Some(rest) = pages.rest() else { break };
            let page = match (after, key) {
                (Some(after), Ok(key)) => self.page_of(&mirror, (job, &key), *after, rest, None).await,
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
