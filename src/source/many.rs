//! Reads of a source that has no quicker way: several jobs one after the other, and a place counted from the end.

use super::{Limit, PageResult, Source};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::JobId;
use std::collections::VecDeque;

/// The size of a page that is read only to count its events.
const COUNTED: Limit = Limit { events: 1000, bytes: 1 << 20 };

/// Reads each job's page by itself. See [`Source::pages`].
pub async fn pages_one_by_one(
    source: &dyn Source,
    wanted: &[(JobId, Cursor)],
    limit: Limit,
) -> Result<Vec<PageResult>, SourceError> {
    let (mut pages, mut events, mut bytes) = (Vec::with_capacity(wanted.len()), 0, 0);
    for (job, after) in wanted {
        if limit.is_reached_by(events, bytes) {
            break;
        }
        let rest = Limit { events: limit.events - events, bytes: limit.bytes - bytes };
        let result = source.page(job, after, rest).await?;
        let mut is_cut = false;
        if let PageResult::Page(page) = &result {
            events += page.events.len();
            bytes += page.events.iter().map(|(event, _)| event.payload.as_json().len()).sum::<usize>();
            is_cut = !page.is_last;
        }
        pages.push(result);
        if is_cut {
            break;
        }
    }
    Ok(pages)
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
            PageResult::NoSuchJob => return Ok(None),
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
