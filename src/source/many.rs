//! Reads of a source that has no quicker way: several jobs one after the other, and a place counted from the end.

use super::{Limit, PageResult, Source};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::JobId;
use std::collections::VecDeque;

/// The size of a page that is read only to count its events.
const COUNTED: Limit = Limit { events: 1000, bytes: 1 << 20 };

/// The room that a limit leaves to the pages of several jobs, after those that were read.
pub struct PagesRoom {
    limit: Limit,
    events: usize,
    bytes: usize,
    is_cut: bool,
}

impl PagesRoom {
    pub fn new(limit: Limit) -> Self {
        Self { limit, events: 0, bytes: 0, is_cut: false }
    }

    /// The limit of the next page. `None` where no more is to be read.
    pub fn rest(&self) -> Option<Limit> {
        let is_full = self.is_cut || self.limit.is_reached_by(self.events, self.bytes);
        let rest = Limit {
            events: self.limit.events.saturating_sub(self.events),
            bytes: self.limit.bytes.saturating_sub(self.bytes),
        };
        (!is_full).then_some(rest)
    }

    pub fn take(&mut self, result: &PageResult) {
        if let PageResult::Page(page) = result {
            self.events += page.events.len();
            self.bytes += page.events.iter().map(|(event, _)| event.payload.as_json().len()).sum::<usize>();
            self.is_cut = !(page.is_last || page.is_staged);
        }
    }
}

/// Pages of several jobs, gathered in their order until the limit of all of them is reached. See [`Source::pages`].
///
/// Invariant: only the last page is cut short; there is room for at least one.
pub struct PagesBuilder {
    limit: Limit,
    results: Vec<PageResult>,
    room: PagesRoom,
}

impl PagesBuilder {
    pub fn new(limit: Limit) -> Self {
        Self { limit, results: Vec::new(), room: PagesRoom::new(limit) }
    }

    /// The limit of the next page. `None` where no more is to be read.
    pub fn rest(&self) -> Option<Limit> {
        let rest = self.room.rest();
        if self.results.is_empty() { rest.or(Some(self.limit)) } else { rest }
    }

    pub fn push(&mut self, result: PageResult) {
        self.room.take(&result);
        self.results.push(result);
    }

    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// Adds the page of the next job, if it could be read. False where it could not, and the next read begins with this job.
    /// The error of the first job is returned.
    pub fn add<E>(&mut self, page: Result<PageResult, E>) -> Result<bool, E> {
        match page {
            Ok(page) => self.push(page),
            Err(_) if !self.is_empty() => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    pub fn into_results(self) -> Vec<PageResult> {
        self.results
    }
}

/// Tells whether staged pages bring their reader on. If not, there is nothing left up to their level.
pub fn brings_on(wanted: &[(JobId, Cursor)], pages: &[PageResult]) -> bool {
    wanted.iter().zip(pages).any(|((_, after), result)| match result {
        PageResult::Page(page) => !page.events.is_empty() || page.end != *after,
        PageResult::Lost(_) => true,
        PageResult::NoSuchJob | PageResult::Unreadable(_) => false,
    })
}

/// Reads each job's page by itself. See [`Source::pages`].
pub async fn pages_one_by_one(
    source: &dyn Source,
    wanted: &[(JobId, Cursor)],
    limit: Limit,
) -> Result<Vec<PageResult>, SourceError> {
    let mut pages = PagesBuilder::new(limit);
    for (job, after) in wanted {
        let Some(rest) = pages.rest() else { break };
        if !pages.add(source.page(job, after, rest).await)? {
            break;
        }
    }
    Ok(pages.into_results())
}

/// Reads a job's whole history to find the place of its last events. See [`Source::before_last`].
pub async fn before_last_by_paging(
    source: &dyn Source,
    job: &JobId,
    count: usize,
) -> Result<Option<Cursor>, SourceError> {
    let mut after = source.beginning(job);
    let mut places = VecDeque::from([after.clone()]);
    loop {
        let page = match source.page(job, &after, COUNTED).await? {
            PageResult::Page(page) => page,
            PageResult::NoSuchJob | PageResult::Unreadable(_) => return Ok(None),
            PageResult::Lost(_) => return Ok(Some(source.beginning(job))),
        };
        let is_empty = page.events.is_empty();
        for (_, cursor) in page.events {
            places.push_back(cursor);
            if places.len() > count + 1 {
                places.pop_front();
            }
        }
        if page.is_last || (is_empty && page.end == after) {
            return Ok(places.pop_front());
        }
        after = page.end;
    }
}
