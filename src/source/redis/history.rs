//! The history of one job: pages of events, the newest position, and the position of an event id.

use super::connections::Request;
use super::entry::{Entry, StreamInfo, mean_size, parse_entries};
use super::position::{Position, StreamSlice};
use super::reply::number;
use super::topology::NodeError;
use super::{MAX_ENTRIES_PER_REQUEST, Store, info_command};
use crate::cursor::Cursor;
use crate::event::JobId;
use crate::source::{Limit, Page, PageBuilder, PageResult, Standing};
use crate::telemetry;
use redis::{Value, cmd};

/// Entries in the first request for a stream, while the size of its entries is not known.
const FIRST_REQUEST_ENTRIES: usize = 32;
/// Entries, from the newest back, among which an event id is looked for. Redis has no index that leads to it.
const MAX_ID_SEARCH: usize = 10_000;

/// Reads entries of one job until the page is full or the stream ends.
struct PageReader {
    page: PageBuilder,
    limit: Limit,
    /// The position after the last entry that was read, an event or not.
    read: Position,
    /// The entries to ask for next, so that their bytes about fill the page.
    fitting_entries: usize,
    skipped: u64,
}

/// Progress of a page after one more request.
enum Progress {
    Unfinished,
    Full,
    EndOfStream,
}

impl PageReader {
    fn new(after: Position, limit: Limit) -> Self {
        let page = PageBuilder::new(limit);
        Self { page, limit, read: after, fitting_entries: FIRST_REQUEST_ENTRIES, skipped: 0 }
    }

    /// Returns the number of entries to ask for.
    fn count(&self) -> usize {
        let room = self.limit.events.saturating_sub(self.page.len());
        self.fitting_entries.min(MAX_ENTRIES_PER_REQUEST).min(room).max(1)
    }

    /// Takes the entries of a slice, each with the position after it.
    fn take(&mut self, job: &JobId, slice: &StreamSlice, positions: Vec<Position>) -> Progress {
        if let Some(size) = mean_size(&slice.entries) {
            self.fitting_entries = self.limit.bytes.saturating_sub(self.page.bytes()) / size + 1;
        }
        for (entry, position) in slice.entries.iter().zip(positions) {
            if self.page.is_full() {
                return Progress::Full;
            }
            self.read = position;
            match entry.event(job) {
                Some(event) => self.page.push(event, position.seal(job)),
                None => self.skipped += 1,
            }
        }
        if !slice.is_cut {
            Progress::EndOfStream
        } else if self.page.is_full() {
            Progress::Full
        } else {
            Progress::Unfinished
        }
    }
}

impl Store {
    pub(super) async fn page(&self, job: &JobId, after: Position, limit: Limit) -> Result<PageResult, NodeError> {
        // before the events: where the status is final by then, all events come before the end
        let status = self.status(job).await?;
        let mut reader = PageReader::new(after, limit);
        let (info, is_last) = loop {
            let (count, at) = (reader.count(), reader.read);
            let slice = self.parse_stream(self.send(self.stream_request(job, &at, count)).await, &at, count)?;
            let positions = match at.follow(&slice) {
                Ok(positions) => positions,
                Err(reset) => return Ok(PageResult::Lost(reset)),
            };
            match reader.take(job, &slice, positions) {
                Progress::Unfinished => {}
                Progress::Full => break (slice.info, false),
                Progress::EndOfStream => break (slice.info, true),
            }
        };
        telemetry::SKIPPED.counter(&[]).increment(reader.skipped);
        if !self.exists(job, info.as_ref(), status.as_deref()).await? {
            return Ok(PageResult::NoSuchJob);
        }
        let end = self.resolve_end(status.as_deref(), info.as_ref(), &reader.read);
        Ok(PageResult::Page(Page {
            end: end_of_page(job, &after, &reader, info.as_ref()),
            is_last,
            is_complete: is_last && end.is_some(),
            status: self.resolve_status(end, status.as_deref()),
            events: reader.page.into_events(),
        }))
    }

    /// A job exists if it has a stream or a hash.
    async fn exists(&self, job: &JobId, info: Option<&StreamInfo>, status: Option<&str>) -> Result<bool, NodeError> {
        if info.is_some() || status.is_some() {
            return Ok(true);
        }
        let Some(job_key) = &self.job_key else { return Ok(false) };
        let key = job_key.key(job);
        let mut exists = cmd("EXISTS");
        exists.arg(&key);
        let reply = self.send_command(&key, exists).await?;
        Ok(number(&reply).is_some_and(|count| count > 0))
    }

    pub(super) async fn newest(&self, job: &JobId) -> Result<Option<Standing>, NodeError> {
        let status = self.status(job).await?;
        let info = self.stream_info(job).await?;
        if !self.exists(job, info.as_ref(), status.as_deref()).await? {
            return Ok(None);
        }
        let position = Position::newest(info.as_ref());
        let end = self.resolve_end(status.as_deref(), info.as_ref(), &position);
        let status = self.resolve_status(end, status.as_deref());
        Ok(Some(Standing { cursor: position.seal(job), status }))
    }

    /// Returns the position after the event with this id, if it is among the newest [`MAX_ID_SEARCH`] entries.
    pub(super) async fn find(&self, job: &JobId, id: &str) -> Result<Option<Cursor>, NodeError> {
        let (info, mut entries) = self.newest_entries(job).await?;
        let Some(info) = info else { return Ok(None) };
        // entries that were added after this one and are still there
        let mut newer = 0;
        while let Some(oldest) = entries.last().map(|entry| entry.id) {
            // an entry above `last_id` was added after the state was read, and is not counted in it
            for entry in entries.iter().filter(|entry| entry.id <= info.last_id) {
                if entry.event_id() == id && entry.kind().is_some() {
                    return Ok(Some(Position::after(entry, ordinal_from_end(&info, entry, newer)).seal(job)));
                }
                newer += 1;
            }
            if newer >= MAX_ID_SEARCH as u64 {
                break;
            }
            let request = self.events_request(job, |key| vec![older_entries_command(key, &format!("({oldest}"))]);
            entries = self.parse_range(self.send(request).await?.pop())?;
        }
        Ok(None)
    }

    /// Reads the state of a stream, and then its newest entries, the newest first.
    async fn newest_entries(&self, job: &JobId) -> Result<(Option<StreamInfo>, Vec<Entry>), NodeError> {
        let commands = |key: &str| vec![info_command(key), older_entries_command(key, "+")];
        let request: Request = self.events_request(job, commands);
        let mut replies = self.send(request).await?;
        let range = replies.pop();
        Ok((self.parse_info(replies.pop())?, self.parse_range(range)?))
    }

    pub(super) fn parse_range(&self, reply: Option<Value>) -> Result<Vec<Entry>, NodeError> {
        self.checked(parse_entries(reply.unwrap_or(Value::Nil)))
    }
}

/// Returns the position after a page. A reader that got no events stays where it was; one that begins now learns its
/// position.
fn end_of_page(job: &JobId, after: &Position, reader: &PageReader, info: Option<&StreamInfo>) -> Cursor {
    if let Some(end) = reader.page.end() {
        end.clone()
    } else if *after != Position::BEGINNING {
        after.seal(job)
    } else if reader.read != *after {
        reader.read.seal(job)
    } else {
        Position::newest(info).seal(job)
    }
}

/// Returns the ordinal of an entry with `newer` entries after it, where none of those was deleted.
fn ordinal_from_end(info: &StreamInfo, entry: &Entry, newer: u64) -> Option<u64> {
    info.max_deleted_id.filter(|deleted| *deleted < entry.id)?;
    info.entries_added?.checked_sub(newer)
}

/// Makes the command that reads entries from `newest` backwards.
fn older_entries_command(key: &str, newest: &str) -> redis::Cmd {
    let mut range = cmd("XREVRANGE");
    range.arg(key).arg(newest).arg("-").arg("COUNT").arg(MAX_ENTRIES_PER_REQUEST);
    range
}
