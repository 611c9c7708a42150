//! The bytes of a stream (WHATWG HTML, "Server-sent events"), each event encoded once however many subscribers it has.
//!
//! Bytes are kept with their HTTP/1.1 chunk framing (RFC 9112, section 7.1) around every event, so that a run of events
//! is one contiguous slice for a socket that was handed over; [`unframe`] gives what a streaming body needs.

use crate::cursor::{Cursor, fingerprint};
use crate::event::{Event, JobId, JobStatus};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::Write;
use std::time::Duration;

/// The end of a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The contents of an event's `data:` line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// The whole event.
    #[default]
    Envelope,
    /// Only its payload, with `stepId` merged in, for pages written against the old API.
    Payload,
}

/// Consecutive events of one job, encoded. Holds at least one event; shared between subscribers and never changed.
///
/// An event of Jobcast's own is a segment of its own. One that has no id on the wire, as a change of a job's status, stands
/// where the event before it ended, and yet has a place in the order that all who watch see.
#[derive(Debug)]
pub struct Segment {
    bytes: Bytes,
    /// The offset in `bytes` at which each event ends.
    ends: Box<[u32]>,
    /// The mark of the cursor after each event.
    marks: Box<[Mark]>,
    /// The position at which an event of Jobcast's own stands; `None` for events, each of which has its own.
    stands_at: Option<Cursor>,
    /// The job of whose state this tells, which may change.
    state_of: Option<(JobId, State)>,
}

/// A state of a job that an event of Jobcast's own tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Status,
    End,
}

/// A hash of a cursor, so that a search for it need not take events apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

impl Mark {
    pub fn of(token: &str) -> Self {
        Self(u32::from_be_bytes(fingerprint(token.as_bytes())))
    }
}

impl Segment {
    /// A segment is closed when it holds this much, so that a ring can let go of the old in small pieces.
    pub const MAX_EVENTS: usize = 128;
    pub const MAX_BYTES: usize = 64 * 1024;

    /// The number of events.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All events, each framed as a chunk.
    pub fn framed(&self) -> &Bytes {
        &self.bytes
    }

    /// The offset at which event `index` begins; for `len()`, at which the last one ends.
    pub fn offset(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    /// The index of the event that the byte at `offset` belongs to; `len()` at the end.
    pub fn event_at(&self, offset: usize) -> usize {
        self.ends.partition_point(|end| *end as usize <= offset)
    }

    /// Event `index` as a streaming body sends it.
    pub fn event(&self, index: usize) -> Bytes {
        unframe(&self.bytes.slice(self.offset(index)..self.offset(index + 1)))
    }

    /// A change of the job's status, for those who have received everything up to `at`.
    pub fn status(job: &JobId, status: JobStatus, at: Cursor) -> Self {
        let event = ControlEvent::Status { job: job.clone(), status };
        Self { state_of: Some((job.clone(), State::Status)), ..Self::control(&event, at) }
    }

    /// The end of one job of a set.
    pub fn end_of(job: &JobId, status: JobStatus, at: Cursor) -> Self {
        let event = ControlEvent::Complete { job: job.clone(), status, cursor: at.clone() };
        Self { state_of: Some((job.clone(), State::End)), ..Self::control(&event, at) }
    }

    /// An event of Jobcast's own, for those who have received everything up to `at`, or go on from there.
    pub fn control(event: &ControlEvent, at: Cursor) -> Self {
        Self::single(event.encode_framed(), at)
    }

    /// No event, but the position after some that are not wanted here.
    pub fn position(at: Cursor) -> Self {
        Self::single(framed(&position(&at)), at)
    }

    fn single(bytes: Bytes, at: Cursor) -> Self {
        let (ends, marks) = ([bytes.len() as u32].into(), [Mark::of(at.as_str())].into());
        Self { ends, marks, bytes, stands_at: Some(at), state_of: None }
    }

    /// A comment of the same length, in place of what tells of this state of the job; `None` for all else.
    pub fn outdated(&self, job: &JobId, state: State) -> Option<Self> {
        self.state_of.as_ref().filter(|(of, told)| of == job && *told == state)?;
        let stands_at = Some(self.stands_at.clone()?);
        let mut comment = vec![b' '; unframe(&self.bytes).len()];
        comment[0] = b':';
        comment.iter_mut().rev().take(2).for_each(|byte| *byte = b'\n');
        let (ends, marks) = (self.ends.clone(), self.marks.clone());
        Some(Self { bytes: framed(&comment), ends, marks, stands_at, state_of: None })
    }

    /// The position after event `index`.
    pub fn cursor(&self, index: usize) -> &str {
        if let Some(cursor) = &self.stands_at {
            return cursor.as_str();
        }
        let event = &self.bytes[self.offset(index)..self.offset(index + 1)];
        // `{length}\r\nid: {cursor}\n…`, as written by `encode`
        let line = event.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
        std::str::from_utf8(line.strip_prefix(b"id: ").unwrap_or_default()).unwrap_or_default()
    }

    /// The position after the last event.
    pub fn end(&self) -> Cursor {
        Cursor::trusted(self.cursor(self.len() - 1))
    }

    /// The index of the event whose cursor is `token`, which has this mark, newest first.
    pub fn find(&self, token: &str, mark: Mark) -> Option<usize> {
        let marked = self.marks.iter().enumerate().rev().filter(|(_, other)| **other == mark);
        marked.map(|(index, _)| index).find(|index| self.cursor(*index) == token)
    }
}

/// Encodes events, each with the cursor after it, into segments of bounded size.
pub fn encode<'a>(events: impl IntoIterator<Item = (&'a Event, &'a Cursor)>, shape: Shape) -> Vec<Segment> {
    let (mut segments, mut plain) = (Segments::default(), Vec::new());
    for (event, cursor) in events {
        plain.clear();
        write_id(&mut plain, cursor);
        write_rest(&mut plain, event, shape);
        segments.push(&plain, cursor);
    }
    segments.finish()
}

/// Encodes an event without the line that says where it stands, for several channels.
pub fn rest(event: &Event, shape: Shape) -> Bytes {
    let mut rest = Vec::new();
    write_rest(&mut rest, event, shape);
    rest.into()
}

/// Encodes events by their [`rest`]s, each with the cursor after it.
pub fn encode_rests<'a>(events: impl IntoIterator<Item = (&'a Bytes, Cursor)>) -> Vec<Segment> {
    let (mut segments, mut plain) = (Segments::default(), Vec::new());
    for (rest, cursor) in events {
        plain.clear();
        write_id(&mut plain, &cursor);
        plain.extend_from_slice(rest);
        segments.push(&plain, &cursor);
    }
    segments.finish()
}

/// Segments in the making.
#[derive(Default)]
struct Segments {
    done: Vec<Segment>,
    bytes: BytesMut,
    ends: Vec<u32>,
    marks: Vec<Mark>,
}

impl Segments {
    fn push(&mut self, plain: &[u8], cursor: &Cursor) {
        frame(&mut self.bytes, plain);
        self.marks.push(Mark::of(cursor.as_str()));
        self.ends.push(self.bytes.len() as u32);
        if self.ends.len() >= Segment::MAX_EVENTS || self.bytes.len() >= Segment::MAX_BYTES {
            self.close();
        }
    }

    fn close(&mut self) {
        let (ends, marks) = (std::mem::take(&mut self.ends).into(), std::mem::take(&mut self.marks).into());
        self.done.push(Segment { bytes: exact(&self.bytes), ends, marks, stands_at: None, state_of: None });
        self.bytes.clear();
    }

    fn finish(mut self) -> Vec<Segment> {
        if !self.ends.is_empty() {
            self.close();
        }
        self.done
    }
}

/// Copies without spare capacity, since a ring keeps segments for long.
fn exact(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn write_id(to: &mut Vec<u8>, cursor: &Cursor) {
    infallible(writeln!(to, "id: {cursor}"));
}

fn write_rest(to: &mut Vec<u8>, event: &Event, shape: Shape) {
    let name = &event.kind;
    // A row written by others may neither use one of our types, nor break the line, nor fire a page's `onerror` or `onopen`:
    // it is sent without a type, which its envelope has all the same.
    let fires_a_handler = matches!(name.as_str(), "error" | "open");
    if name.is_empty() || is_reserved(name) || fires_a_handler || name.contains(['\n', '\r', '\0']) {
        to.extend_from_slice(b"data: ");
    } else {
        infallible(write!(to, "event: {name}\ndata: "));
    }
    match shape {
        Shape::Envelope => write_json(to, event),
        Shape::Payload => write_payload(to, event),
    }
    to.extend_from_slice(b"\n\n");
}

/// Tells the types that only Jobcast itself sends: those of [`ControlEvent`], and of later releases.
pub fn is_reserved(kind: &str) -> bool {
    kind.starts_with("stream.")
}

fn write_payload(to: &mut Vec<u8>, event: &Event) {
    let payload = event.payload.as_json().trim();
    let fields = payload.strip_prefix('{').map(str::trim_start);
    match (&event.step_id, fields) {
        (Some(step), Some(fields)) => {
            to.extend_from_slice(b"{\"stepId\":");
            write_json(to, step);
            to.extend_from_slice(if fields == "}" { b"" } else { b"," });
            to.extend_from_slice(fields.as_bytes());
        }
        _ => to.extend_from_slice(payload.as_bytes()),
    }
}

fn write_json(to: &mut Vec<u8>, value: &impl Serialize) {
    // Encoding fails only for a map whose keys are no strings, or a writer that fails. There is neither here.
    if let Err(error) = serde_json::to_writer(to, value) {
        debug_assert!(false, "encoding: {error}");
    }
}

fn infallible(written: std::io::Result<()>) {
    debug_assert!(written.is_ok(), "writing to memory");
}

/// Appends `plain` as one chunk of a chunked body.
fn frame(to: &mut BytesMut, plain: &[u8]) {
    let mut length = [0; 20];
    let mut rest = &mut length[..];
    infallible(write!(rest, "{:x}\r\n", plain.len()));
    let left = rest.len();
    let digits = length.len() - left;
    to.reserve(digits + plain.len() + 2);
    to.extend_from_slice(&length[..digits]);
    to.extend_from_slice(plain);
    to.extend_from_slice(b"\r\n");
}

/// Returns `plain` as one chunk of a chunked body.
pub fn framed(plain: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    frame(&mut bytes, plain);
    bytes.freeze()
}

/// Returns the contents of one chunk.
pub fn unframe(chunk: &Bytes) -> Bytes {
    let begin = chunk.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    chunk.slice(begin..chunk.len() - 2)
}

/// The first bytes of every stream: the client's wait before it reconnects, and a comment, so that there is something
/// to flush.
pub fn opening(retry: Duration) -> Bytes {
    Bytes::from(format!("retry: {}\n: jobcast\n\n", retry.as_millis()))
}

/// A comment sent after a silence, so that proxies and clients know that the stream is alive.
pub const HEARTBEAT: &[u8] = b": heartbeat\n\n";

/// A comment sent once, when the events that there were have been sent: those that follow are new.
pub const LIVE: &[u8] = b": live\n\n";

/// Sets the client's last event id without an event, so that a connection lost before the first event loses nothing.
pub fn position(cursor: &Cursor) -> Bytes {
    Bytes::from(format!("id: {cursor}\n\n"))
}

/// A reason of Jobcast's own for closing a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bye {
    /// The process is shutting down.
    Drain,
    /// The stream has reached `stream.max_age`.
    Age,
    /// The credentials that the stream was opened with have run out.
    Expired,
    /// The caller has lost the right to watch, or an operator closed the stream.
    Revoked,
}

impl Bye {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Age => "age",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// The reason why a request for events after a cursor cannot be met in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reset {
    /// The cursor or event id is not known here.
    Unknown,
    /// Some of the events after the cursor no longer exist.
    Trimmed,
    /// The stream of the job is gone, before the job had ended: it expired, or was deleted.
    Expired,
    /// The source went back in time: it was restored, flushed, or failed over to a replica that lagged.
    Rewound,
}

impl Reset {
    /// The reason as the wire and the metric name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Trimmed => "trimmed",
            Self::Expired => "expired",
            Self::Rewound => "rewound",
        }
    }
}

/// The end of a job's watch: the source reports no further events of the job to its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// The job ended, and all of its events were published.
    Complete(JobStatus),
    /// The watch's position is no longer valid: each subscriber must replay from its own cursor.
    Lost(Reset),
}

/// An event of Jobcast's own. Its type begins with `stream.`, which no event of a job may (see [`is_reserved`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// The job ended and all of its events were sent. A client that comes back with `cursor` all the same gets a 204.
    Complete { job: JobId, status: JobStatus, cursor: Cursor },
    /// The request cannot be met in full; the events after `cursor` are all there are.
    Reset { reason: Reset, cursor: Cursor },
    /// The same for one job of a set.
    ResetOf { job: JobId, reason: Reset, cursor: Cursor },
    /// The stream cannot be served. It goes on after `retry_in`, or, where that is missing, trying again does not help.
    Error { code: &'static str, message: String, retry_in: Option<Duration> },
    /// One job of a set cannot be served, and the others go on.
    ErrorOf { job: JobId, code: &'static str, message: String, retry_in: Option<Duration> },
    /// The job has this status now. It is a state and no place in the history, so it has no id.
    Status { job: JobId, status: JobStatus },
    /// Jobcast closes the stream for its own reasons; the client should come back after `retry_in`.
    Bye { reason: Bye, retry_in: Duration },
}

impl ControlEvent {
    /// The event's type on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Complete { .. } => "stream.complete",
            Self::Reset { .. } | Self::ResetOf { .. } => "stream.reset",
            Self::Error { .. } | Self::ErrorOf { .. } => "stream.error",
            Self::Status { .. } => "stream.status",
            Self::Bye { .. } => "stream.bye",
        }
    }

    /// The position that clients come back with after it, where the event has an `id`.
    pub fn cursor(&self) -> Option<&Cursor> {
        match self {
            Self::Complete { cursor, .. } | Self::Reset { cursor, .. } | Self::ResetOf { cursor, .. } => Some(cursor),
            Self::Error { .. } | Self::ErrorOf { .. } | Self::Status { .. } | Self::Bye { .. } => None,
        }
    }

    /// The event as a streaming body sends it.
    pub fn encode(&self) -> Bytes {
        let (fields, data) = match self {
            Self::Complete { job, status, cursor } => {
                (format!("id: {cursor}\n"), json!({ "jobId": job.as_str(), "status": status.as_str() }))
            }
            Self::Reset { reason, cursor } => {
                (format!("id: {cursor}\n"), json!({ "reason": reason, "cursor": cursor.as_str() }))
            }
            Self::ResetOf { job, reason, cursor } => {
                let data = json!({ "reason": reason, "cursor": cursor.as_str(), "jobId": job.as_str() });
                (format!("id: {cursor}\n"), data)
            }
            // The wait is the job's own, and none of the connection.
            Self::ErrorOf { job, code, message, retry_in } => {
                let mut data = json!({
                    "code": code, "message": message, "retryable": retry_in.is_some(), "jobId": job.as_str()
                });
                if let Some(wait) = retry_in {
                    data["retryInMs"] = (wait.as_millis() as u64).into();
                }
                (String::new(), data)
            }
            Self::Error { code, message, retry_in: None } => {
                (String::new(), json!({ "code": code, "message": message, "retryable": false }))
            }
            Self::Error { code, message, retry_in: Some(wait) } => {
                let ms = wait.as_millis() as u64;
                let data = json!({ "code": code, "message": message, "retryable": true, "retryInMs": ms });
                (format!("retry: {ms}\n"), data)
            }
            Self::Status { job, status } => {
                (String::new(), json!({ "jobId": job.as_str(), "status": status.as_str() }))
            }
            Self::Bye { reason, retry_in } => {
                let ms = retry_in.as_millis() as u64;
                (format!("retry: {ms}\n"), json!({ "reason": reason.as_str(), "retryInMs": ms }))
            }
        };
        Bytes::from(format!("{fields}event: {}\ndata: {data}\n\n", self.name()))
    }

    /// The same bytes as one chunk, for a socket that actix has let go of.
    pub fn encode_framed(&self) -> Bytes {
        framed(&self.encode())
    }
}

/// Segments for tests.
#[cfg(test)]
pub mod samples {
    use super::*;
    use std::sync::Arc;

    /// One segment of events with these numbers. The cursor after event n is `c{n}`.
    pub fn segment(numbers: std::ops::Range<u32>) -> Arc<Segment> {
        let event = Event::sample("j".parse().expect("id"), "e");
        let cursors: Vec<Cursor> = numbers.map(|number| Cursor::trusted(&format!("c{number}"))).collect();
        let mut segments = encode(cursors.iter().map(|cursor| (&event, cursor)), Shape::Payload);
        assert_eq!(segments.len(), 1);
        Arc::new(segments.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn event(kind: &str, payload: &str) -> Event {
        Event {
            step_id: Some("s\"1".into()),
            kind: kind.into(),
            timestamp: Some("2026-11-23T21:00:00Z".parse().expect("time")),
            payload: Payload::from_text(payload.into()),
            ..Event::sample("job-7".parse().expect("id"), "e1")
        }
    }

    fn text(kind: &str, payload: &str, shape: Shape) -> String {
        let segments = encode([(&event(kind, payload), &Cursor::trusted("c1"))], shape);
        assert_eq!(segments[0].cursor(0), "c1");
        String::from_utf8(segments[0].event(0).to_vec()).expect("UTF-8")
    }

    #[test]
    fn an_event_is_exactly_these_bytes() {
        assert_eq!(
            text("step.output", "{\"a\":\n1.0}", Shape::Envelope),
            "id: c1\nevent: step.output\ndata: {\"id\":\"e1\",\"jobId\":\"job-7\",\"stepId\":\"s\\\"1\",\"type\":\"step.output\",\
             \"timestamp\":\"2026-11-23T21:00:00.000Z\",\"actor\":null,\"payload\":{\"a\": 1.0}}\n\n"
        );
        assert_eq!(
            text("x", "{\"a\":1}", Shape::Payload),
            "id: c1\nevent: x\ndata: {\"stepId\":\"s\\\"1\",\"a\":1}\n\n"
        );
        assert_eq!(text("x", "{ }", Shape::Payload), "id: c1\nevent: x\ndata: {\"stepId\":\"s\\\"1\"}\n\n");
        assert_eq!(text("x", "[1]", Shape::Payload), "id: c1\nevent: x\ndata: [1]\n\n");
    }

    #[test]
    fn a_row_of_others_can_neither_speak_in_our_name_nor_break_a_line() {
        assert!(text("stream.complete", "{}", Shape::Envelope).starts_with("id: c1\ndata: {"));
        for fires_a_handler in ["error", "open"] {
            let sent = text(fires_a_handler, "{}", Shape::Envelope);
            assert!(
                sent.starts_with("id: c1\ndata: {") && sent.contains(&format!("\"type\":\"{fires_a_handler}\"")),
                "{sent}"
            );
        }
        assert!(text("errors", "{}", Shape::Envelope).contains("event: errors\n"));
        let broken = text("x", "not\njson", Shape::Envelope);
        assert!(broken.contains(r#""payload":"not\njson""#), "{broken}");
    }

    #[test]
    fn no_line_end_or_nul_of_a_row_forges_a_field_whatever_part_of_the_event_it_stands_in() {
        for forged in ["a\nid: 9", "a\rid: 9", "a\r\nid: 9", "\nevent: x", "a\0", "\0", "a\r\rdata: {}\n\n", "a\n"] {
            for shape in [Shape::Envelope, Shape::Payload] {
                let sent = |event: &Event| {
                    let segments = encode([(event, &Cursor::trusted("c1"))], shape);
                    String::from_utf8(segments[0].event(0).to_vec()).expect("UTF-8")
                };
                let in_type = sent(&event(forged, "{}"));
                assert!(in_type.starts_with("id: c1\ndata: {"), "{forged:?}: {in_type:?}");
                let elsewhere = sent(&Event {
                    id: forged.into(),
                    step_id: Some(forged.into()),
                    actor: Some(forged.into()),
                    payload: Payload::from_text(forged.into()),
                    ..event("x", "{}")
                });
                assert!(elsewhere.starts_with("id: c1\nevent: x\ndata: "), "{forged:?}: {elsewhere:?}");
                for (sent, fields) in [(&in_type, 2), (&elsewhere, 3)] {
                    // Lines end at CR, LF or both (WHATWG HTML, "Parsing an event stream").
                    let lines = sent.trim_end_matches('\n').split(['\r', '\n']).count();
                    assert!(lines == fields && !sent.contains(['\r', '\0']), "{forged:?}: {sent:?}");
                }
            }
        }
    }

    #[test]
    fn a_run_of_events_is_cut_where_events_end() {
        let (e, c) = (event("x", "{}"), Cursor::trusted("c"));
        let segments = encode(std::iter::repeat_n((&e, &c), 300), Shape::Envelope);
        assert_eq!(segments.iter().map(Segment::len).collect::<Vec<_>>(), [128, 128, 44]);
        let one = &segments[2];
        assert_eq!(one.event_at(0), 0);
        assert_eq!(one.event_at(one.offset(3)), 3);
        assert_eq!(one.event_at(one.offset(4) - 1), 3);
        assert_eq!(one.event_at(one.framed().len()), 44);
    }
}
