//! The history of one job: pages of events, the newest position, and the position of an event id.

use super::entry::{Entry, EntryId, StreamInfo, mean_size, parse_entries};
use super::error::is_wrong_type;
use super::lookups::Found;
use super::mapping::Mapping;
use super::position::{Position, StreamSlice, ordinal_from_end};
use super::reply::number;
use super::topology::NodeError;
use super::{JobKey, MAX_ENTRIES_PER_REQUEST, Store};
use crate::cursor::Cursor;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{Limit, Page, PageBuilder, PageResult, Standing};
use redis::{Value, cmd};
use std::collections::HashSet;

/// Entries in the first request for a stream, while the size of its entries is not known.
const FIRST_REQUEST_ENTRIES: usize = 32;
/// Bounds of the entries, from the newest back, among which an event id is looked for. Redis has no index that leads to
/// it, and the server sends all of them.
const MAX_SEARCH_ENTRIES: u64 = 10_000;
const MAX_SEARCH_BYTES: usize = 2 << 20;
/// Entries in the first request of such a search.
const FIRST_SEARCH_ENTRIES: usize = 16;

/// Bounds of the newest entries among which a final event is looked for.
const MAX_ENDING_ENTRIES: usize = 256;
const MAX_ENDING_BYTES: usize = 256 << 10;

/// The key of a job's stream, as a reader finds it.
enum Readable {
    /// The state of the stream, where there is one.
    Stream(Option<StreamInfo>),
    /// The key holds something else.
    OtherType,
}

/// Reads entries of one job until the page is full or the stream ends.
struct PageReader {
    page: PageBuilder,
    limit: Limit,
    /// The position after the last entry that was read, an event or not.
    read: Position,
    /// The entry of the last event in the page.
    last_event: Option<EntryId>,
    /// The entries to ask for next, so that their bytes about fill the page.
    fitting_entries: usize,
    /// The final status, where an entry said that the job has ended.
    final_status: Option<JobStatus>,
}

/// Progress of a page after one more request.
enum Progress {
    Unfinished,
    Full,
    /// Nothing is left. This is the position after the whole stream, as the server told it in this request.
    EndOfStream(Position),
}

impl PageReader {
    fn new(after: Position, limit: Limit) -> Self {
        let page = PageBuilder::new(limit);
        Self { page, limit, read: after, last_event: None, fitting_entries: FIRST_REQUEST_ENTRIES, final_status: None }
    }

    /// Returns the number of entries to ask for.
    fn count(&self) -> usize {
        let room = self.limit.events.saturating_sub(self.page.len());
        self.fitting_entries.min(MAX_ENTRIES_PER_REQUEST).min(room).max(1)
    }

    /// Takes the entries of a slice, each with the position after it.
    fn take(&mut self, mapping: &Mapping, job: &JobId, slice: &StreamSlice, positions: Vec<Position>) -> Progress {
        if let Some(size) = mean_size(&slice.entries) {
            self.fitting_entries = self.limit.bytes.saturating_sub(self.page.bytes()) / size + 1;
        }
        for (entry, position) in slice.entries.iter().zip(positions) {
            if self.page.is_full() {
                return Progress::Full;
            }
            self.read = position;
            let mapped = mapping.read(entry, job);
            self.page.push(mapped.event, position.seal(job));
            self.last_event = Some(entry.id);
            self.final_status = mapped.end.or(self.final_status);
        }
        match slice.end(self.read.id) {
            Some(end) => Progress::EndOfStream(end),
            None if self.page.is_full() => Progress::Full,
            None => Progress::Unfinished,
        }
    }

    /// Returns the events, and the position after them. Without `end`, the end of the stream, they go to one reader
    /// alone, and their positions may descend from foreign input.
    fn finish(self, job: &JobId, end: Option<Position>) -> (Vec<(Event, Cursor)>, Cursor) {
        let mut events = self.page.into_events();
        let Some(end) = end else {
            let last = events.last().map(|(_, cursor)| cursor.clone());
            return (events, last.unwrap_or_else(|| self.read.seal(job)));
        };
        let cursor = end.seal(job);
        // One place has one name.
        if let Some((_, last)) = events.last_mut().filter(|_| self.last_event == Some(end.id)) {
            *last = cursor.clone();
        }
        (events, cursor)
    }
}

/// The beginning of a page, which was asked for together with those of other jobs.
pub struct PageHead {
    pub key: JobKey,
    /// The first entries after the position.
    pub slice: Result<StreamSlice, NodeError>,
}

impl Store {
    pub(super) async fn page(&self, job: &JobId, after: Position, limit: Limit) -> Result<PageResult, NodeError> {
        // The status comes before the events: where it is final by then, all events come before the end.
        let key = self.job_state(job).await?;
        let count = PageReader::new(after, limit).count();
        let slice = self.parse_stream(self.send(self.stream_request(job, &after, count)).await, &after, count);
        self.page_from(job, after, limit, PageHead { key, slice }).await
    }

    /// Reads a page that begins with this.
    pub(super) async fn page_from(
        &self,
        job: &JobId,
        after: Position,
        limit: Limit,
        PageHead { key, slice }: PageHead,
    ) -> Result<PageResult, NodeError> {
        let mut reader = PageReader::new(after, limit);
        let mut first = Some(slice);
        let (info, stream_end) = loop {
            let (count, at) = (reader.count(), reader.read);
            let slice = match first.take() {
                Some(slice) => slice,
                None => self.parse_stream(self.send(self.stream_request(job, &at, count)).await, &at, count),
            };
            let slice = match slice {
                Err(error) if is_wrong_type(&error.error) => return Ok(PageResult::NoSuchJob),
                slice => slice?,
            };
            let positions = match at.follow(&slice) {
                Ok(positions) => positions,
                Err(reset) if slice.info.is_some() => return Ok(PageResult::Lost(reset)),
                Err(reset) => {
                    return Ok(self
                        .page_without_stream(job, &key, &at, reader)
                        .ok_or(reset)
                        .unwrap_or_else(PageResult::Lost));
                }
            };
            match reader.take(&self.mapping, job, &slice, positions) {
                Progress::Unfinished => {}
                Progress::Full => break (slice.info, None),
                Progress::EndOfStream(end) => break (slice.info, Some(end)),
            }
        };
        if !self.exists(job, info.as_ref(), &key).await? {
            return Ok(PageResult::NoSuchJob);
        }
        let is_last = stream_end.is_some();
        let last_id = info.as_ref().map_or(EntryId::ZERO, |info| info.last_id);
        let final_status = match (key.state().and_then(|state| state.end).or(reader.final_status), stream_end) {
            (None, Some(end)) => self.end_in_stream(job, info.as_ref(), &end).await?,
            (status, _) => status,
        };
        let (events, end) = reader.finish(job, stream_end);
        Ok(PageResult::Page(Page {
            events,
            end,
            is_last,
            is_staged: false,
            is_complete: is_last && final_status.is_some_and(|status| self.is_over(job, status, last_id)),
            status: self.resolve_status(final_status, key.state()),
        }))
    }

    /// Returns the position before the last `count` events of a job. `None` where there is no such job.
    pub(super) async fn before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, NodeError> {
        let info = match self.readable_info(job).await? {
            Readable::Stream(Some(info)) => info,
            Readable::Stream(None) => {
                let is_there = self.has_key(job, &self.job_state(job).await?).await?;
                return Ok(is_there.then(|| Position::BEGINNING.seal(job)));
            }
            Readable::OtherType => return Ok(None),
        };
        if count == 0 {
            return Ok(Some(Position::newest(Some(&info)).seal(job)));
        }
        let mut size = info.last_entry.as_ref().map_or(1, Entry::size).max(1);
        let (mut from, mut newer) = (info.last_id.to_string(), 0);
        loop {
            let asked = (count + 1 - newer).min(MAX_SEARCH_BYTES / size).clamp(1, MAX_ENTRIES_PER_REQUEST);
            let request = self.events_request(job, |key| vec![older_entries_command(key, &from, asked)]);
            let entries = self.parse_range(self.send(request).await?.pop())?;
            if let Some(entry) = entries.get(count - newer) {
                return Ok(Some(Position::begin_after(entry, count as u64, &info).seal(job)));
            }
            let Some(oldest) = entries.last().filter(|_| entries.len() == asked) else {
                return Ok(Some(Position::BEGINNING.seal(job)));
            };
            from = format!("({}", oldest.id);
            newer += entries.len();
            size = mean_size(&entries).unwrap_or(size);
        }
    }

    /// Returns the end of a job whose stream is gone, for a reader who has read all of it. `None` where that is a loss.
    fn page_without_stream(
        &self,
        job: &JobId,
        key: &JobKey,
        after: &Position,
        reader: PageReader,
    ) -> Option<PageResult> {
        let state = key.state()?;
        let status = match (state.end, &state.text) {
            (Some(status), _) => self.has_ended_without_stream(job, status, after).then_some(status)?,
            (None, None) => self.remembered_end(job, after)?,
            (None, Some(_)) => return None,
        };
        let (events, end) = reader.finish(job, Some(Position::newest(None)));
        Some(PageResult::Page(Page::of_ended(events, end, status)))
    }

    /// A job exists if it has a stream or a key that says how it is.
    async fn exists(&self, job: &JobId, info: Option<&StreamInfo>, key: &JobKey) -> Result<bool, NodeError> {
        Ok(info.is_some() || self.has_key(job, key).await?)
    }

    /// Tells if a job has a key that says how it is.
    pub(super) async fn has_key(&self, job: &JobId, key: &JobKey) -> Result<bool, NodeError> {
        match key {
            JobKey::State(state) if state.text.is_some() || state.end.is_some() => return Ok(true),
            JobKey::OtherType => return Ok(false),
            JobKey::State(_) => {}
        }
        let Some(job_key) = &self.job_key else { return Ok(false) };
        let key = job_key.key(job);
        let mut exists = cmd("EXISTS");
        exists.arg(&key);
        let reply = self.send_command(&key, exists).await?;
        Ok(number(&reply).is_some_and(|count| count > 0))
    }

    pub(super) async fn newest(&self, job: &JobId) -> Result<Option<Standing>, NodeError> {
        let key = self.job_state(job).await?;
        let Readable::Stream(info) = self.readable_info(job).await? else { return Ok(None) };
        if !self.exists(job, info.as_ref(), &key).await? {
            return Ok(None);
        }
        let position = Position::newest(info.as_ref());
        let end = match key.state().and_then(|state| state.end) {
            None => self.end_in_stream(job, info.as_ref(), &position).await?,
            end => end,
        };
        let status = self.resolve_status(end, key.state());
        Ok(Some(Standing { cursor: position.seal(job), status }))
    }

    /// Returns the final status that an entry up to `read` says, the newest first. It looks as far back as
    /// [`MAX_ENDING_ENTRIES`]: a final event is the last or nearly the last one.
    pub(super) async fn end_in_stream(
        &self,
        job: &JobId,
        info: Option<&StreamInfo>,
        read: &Position,
    ) -> Result<Option<JobStatus>, NodeError> {
        let Some(last) = info.and_then(|info| info.last_entry.as_ref()).filter(|_| self.mapping.has_ends()) else {
            return Ok(None);
        };
        if let Some(status) = self.mapping.end_of(last, job).filter(|_| last.id <= read.id) {
            return Ok(Some(status));
        }
        let count = (MAX_ENDING_BYTES / last.size().max(1)).clamp(1, MAX_ENDING_ENTRIES);
        let from = read.id.to_string();
        let request = self.events_request(job, |key| vec![older_entries_command(key, &from, count)]);
        let entries = self.parse_range(self.send(request).await?.pop())?;
        Ok(entries.iter().find_map(|entry| self.mapping.end_of(entry, job)))
    }

    /// Returns the state of a job's stream.
    async fn readable_info(&self, job: &JobId) -> Result<Readable, NodeError> {
        match self.stream_info(job).await {
            Ok(info) => Ok(Readable::Stream(info)),
            Err(error) if is_wrong_type(&error.error) => Ok(Readable::OtherType),
            Err(error) => Err(error),
        }
    }

    /// Finds an event's id.
    pub(super) async fn look_up(&self, job: &JobId, id: &str) -> Result<Option<Cursor>, NodeError> {
        self.lookups.find(job, id, |ids| self.search(job, ids)).await
    }

    /// Returns the positions after the events with these ids, as far as they are among the newest [`MAX_SEARCH_ENTRIES`]
    /// entries and [`MAX_SEARCH_BYTES`] bytes.
    async fn search(&self, job: &JobId, mut wanted: HashSet<String>) -> Result<Found, NodeError> {
        let mut found = Found::new();
        let Readable::Stream(Some(info)) = self.readable_info(job).await? else { return Ok(found) };
        let mut bytes = MAX_SEARCH_BYTES;
        let mut count = FIRST_SEARCH_ENTRIES;
        let mut size = info.last_entry.as_ref().map_or(1, Entry::size).max(1);
        let mut from = "+".to_string();
        // It counts the entries that were added after this one and are still there.
        let mut newer = 0;
        while !wanted.is_empty() && newer < MAX_SEARCH_ENTRIES && bytes >= size {
            // There are only twice as many as before, since the older ones may be larger.
            count = count.min(bytes / size).min(MAX_ENTRIES_PER_REQUEST);
            let request = self.events_request(job, |key| vec![older_entries_command(key, &from, count)]);
            let _turn = self.lookups.turn().await;
            let entries = self.parse_range(self.send(request).await?.pop())?;
            // An entry above `last_id` was added after the state was read, and is not counted in it.
            for entry in entries.iter().filter(|entry| entry.id <= info.last_id) {
                if let Some(id) = wanted.take(&self.mapping.event_id(entry)) {
                    let position = Position::after(entry, ordinal_from_end(&info, entry, newer));
                    found.insert(id, position.seal(job));
                }
                newer += 1;
            }
            let Some(oldest) = entries.last().filter(|_| entries.len() == count) else { break };
            from = format!("({}", oldest.id);
            bytes = bytes.saturating_sub(entries.iter().map(Entry::size).sum());
            size = mean_size(&entries).unwrap_or(size);
            count *= 2;
        }
        Ok(found)
    }

    pub(super) fn parse_range(&self, reply: Option<Value>) -> Result<Vec<Entry>, NodeError> {
        self.checked(parse_entries(reply.unwrap_or(Value::Nil)))
    }
}

/// Makes the command that reads entries from `newest` backwards.
pub fn older_entries_command(key: &str, newest: &str, count: usize) -> redis::Cmd {
    let mut range = cmd("XREVRANGE");
    range.arg(key).arg(newest).arg("-").arg("COUNT").arg(count);
    range
}
