//! One stream for many jobs: each entry names its job in a field.
//!
//! A [`mirror`] holds the newest entries of the stream, by job. It is read once for all who ask, however many jobs there
//! are: loaded from the newest entry back, within bounds, and then carried on by what is new. Pages, look-ups and the
//! [`tail`] are served from it.

mod mirror;
mod tail;

pub use mirror::Mirror;
pub use tail::SharedTail;

use super::entry::EntryId;
use super::error::is_denied_key;
use super::position::Position;
use super::topology::NodeError;
use super::{JobKey, Store};
use crate::cursor::Cursor;
use crate::event::{JobId, JobStatus, Rfc3339};
use crate::source::{JobSummary, Limit, Page, PageBuilder, PageResult, Standing};
use crate::sse::Reset;
use mirror::Kept;
use tokio::sync::Mutex;

/// Most jobs in a list.
const MAX_LISTED_JOBS: usize = 2_000;

/// The one shared stream of a source.
pub type Shared = Mutex<Mirror>;

impl Store {
    /// Returns a page of a job in the shared stream.
    pub(super) async fn shared_page(
        &self,
        shared: &Shared,
        job: &JobId,
        after: Position,
        limit: Limit,
    ) -> Result<PageResult, NodeError> {
        // The status comes before the events: where it is final by then, all events come before the end.
        let key = self.job_state(job).await?;
        let mut mirror = shared.lock().await;
        mirror.refresh(self, &self.nodes).await?;
        self.page_of(&mirror, (job, &key), after, limit, None).await
    }

    /// Returns a page of what the mirror holds of a job, beside the key that says how the job is; a staged one up to an
    /// earlier place of the stream.
    pub(super) async fn page_of(
        &self,
        mirror: &Mirror,
        (job, key): (&JobId, &JobKey),
        after: Position,
        limit: Limit,
        stage: Option<Position>,
    ) -> Result<PageResult, NodeError> {
        if let Err(reset) = mirror.judge(job, &after) {
            let end = key.state().and_then(|state| state.end).filter(|_| reset == Reset::Expired);
            let Some(status) = end.filter(|status| self.has_ended_without_stream(job, *status, &after)) else {
                return Ok(PageResult::Lost(reset));
            };
            return Ok(PageResult::Page(Page::of_ended(Vec::new(), mirror.end().seal(job), status)));
        }
        if !mirror.holds(job) && !self.has_key(job, key).await? {
            return Ok(PageResult::NoSuchJob);
        }
        let mut page = PageBuilder::new(limit);
        let mut has_all = true;
        let mut last = None;
        let is_within = |kept: &&Kept| stage.is_none_or(|stage| kept.entry.id <= stage.id);
        for kept in mirror.after(job, after.id).take_while(is_within) {
            if page.is_full() {
                has_all = false;
                break;
            }
            page.push(self.mapping.read(&kept.entry, job).event, kept.position.seal(job));
            last = Some(kept.position);
        }
        let mut events = page.into_events();
        let end = if has_all { stage.unwrap_or(mirror.end()) } else { last.unwrap_or(after) };
        let is_last = has_all && stage.is_none();
        // One place has one name.
        if let Some((_, cursor)) = events.last_mut().filter(|_| last.is_some_and(|last| last.id == end.id)) {
            *cursor = end.seal(job);
        }
        let final_status = mirror.end_of(job).or_else(|| key.state()?.end);
        let last_id = mirror.all_of(job).next_back().map_or(EntryId::ZERO, |kept| kept.entry.id);
        Ok(PageResult::Page(Page {
            events,
            end: end.seal(job),
            is_last,
            is_staged: has_all && stage.is_some(),
            is_complete: is_last && final_status.is_some_and(|status| self.is_over(job, status, last_id)),
            status: self.resolve_status(final_status, key.state()),
        }))
    }

    /// Returns the position before the last `count` events of a job that the mirror holds.
    pub(super) async fn shared_before_last(
        &self,
        shared: &Shared,
        job: &JobId,
        count: usize,
    ) -> Result<Option<Cursor>, NodeError> {
        let key = self.job_state(job).await?;
        let mut mirror = shared.lock().await;
        mirror.refresh(self, &self.nodes).await?;
        if !mirror.holds(job) && !self.has_key(job, &key).await? {
            return Ok(None);
        }
        let before = mirror.all_of(job).rev().nth(count).map(|kept| kept.position);
        let position = if count == 0 { Some(mirror.end()) } else { before };
        Ok(Some(position.unwrap_or(Position::BEGINNING).seal(job)))
    }

    /// Returns the position after the newest entry, for a job that is there.
    pub(super) async fn shared_newest(&self, shared: &Shared, job: &JobId) -> Result<Option<Standing>, NodeError> {
        let key = self.job_state(job).await?;
        let mut mirror = shared.lock().await;
        mirror.refresh(self, &self.nodes).await?;
        if !mirror.holds(job) && !self.has_key(job, &key).await? {
            return Ok(None);
        }
        let final_status = mirror.end_of(job).or_else(|| key.state()?.end);
        let status = self.resolve_status(final_status, key.state());
        Ok(Some(Standing { cursor: mirror.end().seal(job), status }))
    }

    /// Returns the position after the event with this id, if the mirror holds it.
    pub(super) async fn shared_find(
        &self,
        shared: &Shared,
        job: &JobId,
        id: &str,
    ) -> Result<Option<Cursor>, NodeError> {
        let mut mirror = shared.lock().await;
        mirror.refresh(self, &self.nodes).await?;
        let mut newest_first = mirror.all_of(job).rev();
        let found = newest_first.find(|kept| self.mapping.event_id(&kept.entry) == id);
        Ok(found.map(|kept| kept.position.seal(job)))
    }

    /// Returns what a list says of one job.
    pub(super) async fn shared_job(&self, shared: &Shared, job: &JobId) -> Result<Option<JobSummary>, NodeError> {
        let key = self.job_state(job).await?;
        let mut mirror = shared.lock().await;
        mirror.refresh(self, &self.nodes).await?;
        if !mirror.holds(job) && !self.has_key(job, &key).await? {
            return Ok(None);
        }
        Ok(Some(self.shared_summary(&mirror, job, &key)))
    }

    /// Returns the jobs whose entries the mirror holds, the newest first.
    pub(super) async fn shared_jobs(
        &self,
        shared: &Shared,
        status: Option<JobStatus>,
        limit: usize,
    ) -> Result<Vec<JobSummary>, NodeError> {
        let mut jobs = {
            let mut mirror = shared.lock().await;
            mirror.refresh(self, &self.nodes).await?;
            mirror.jobs()
        };
        jobs.truncate(MAX_LISTED_JOBS);
        let requests: Vec<_> = jobs.iter().filter_map(|job| self.status_request(job)).collect();
        let mut replies = self.nodes.send(&requests).await.into_iter();
        let mut summaries = Vec::with_capacity(jobs.len());
        let mirror = shared.lock().await;
        for job in &jobs {
            let key = match replies.next().map(|replies| self.parse_job_key(replies)).transpose() {
                // The stream has jobs whose key this user may not read, too.
                Err(error) if is_denied_key(&error.error) => continue,
                key => key?,
            };
            summaries.push(self.shared_summary(&mirror, job, &key.unwrap_or_default()));
        }
        summaries.retain(|summary| status.is_none() || summary.status == status);
        summaries.truncate(limit);
        Ok(summaries)
    }

    fn shared_summary(&self, mirror: &Mirror, job: &JobId, key: &JobKey) -> JobSummary {
        let final_status = mirror.end_of(job).or_else(|| key.state()?.end);
        let last = mirror.all_of(job).next_back();
        let time = last.and_then(|kept: &Kept| self.mapping.read(&kept.entry, job).event.timestamp);
        JobSummary {
            job_id: job.clone(),
            status: self.resolve_status(final_status, key.state()),
            last_event_at: time.map(|at| Rfc3339(at).to_string()),
        }
    }
}
