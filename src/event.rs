//! Domain types: jobs, their events, their statuses. No I/O.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A job's id: 1 to [`JobId::MAX_CHARS`] characters, none of them a control character. In URLs it is one segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(Arc<str>);

impl JobId {
    pub const MAX_CHARS: usize = 200;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a job id has 1 to {} characters and no control characters", JobId::MAX_CHARS)]
pub struct BadJobId;

impl FromStr for JobId {
    type Err = BadJobId;

    fn from_str(text: &str) -> Result<Self, BadJobId> {
        let fits = !text.is_empty() && text.chars().count() <= Self::MAX_CHARS && !text.chars().any(char::is_control);
        fits.then(|| Self(text.into())).ok_or(BadJobId)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobStatus {
    Pending,
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl JobStatus {
    pub const ALL: [JobStatus; 6] =
        [Self::Pending, Self::Queued, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Tells whether a job with this status has ended.
    pub fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Cancelled => true,
            Self::Pending | Self::Queued | Self::Running => false,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no job status (PENDING, QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED)")]
pub struct BadStatus(String);

impl FromStr for JobStatus {
    type Err = BadStatus;

    fn from_str(text: &str) -> Result<Self, BadStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| BadStatus(text.chars().take(40).collect()))
    }
}

/// One event of a job. Its JSON is the envelope in the stream's `data:`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub id: String,
    pub job_id: JobId,
    pub step_id: Option<String>,
    #[serde(rename = "type")]
    pub kind: String,
    /// `None` where the store has no time for it, or none that a calendar has.
    #[serde(serialize_with = "milliseconds")]
    pub timestamp: Option<Timestamp>,
    pub actor: Option<String>,
    pub payload: Payload,
    /// Parts that could not be read as they are stored; each is lossy or null here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Part>,
}

#[cfg(test)]
impl Event {
    /// An event for tests, with nothing in it that need not be.
    pub fn sample(job_id: JobId, id: impl Into<String>) -> Self {
        let (step_id, kind, payload) = (None, "x".into(), Payload::null());
        Self { id: id.into(), job_id, step_id, kind, timestamp: None, actor: None, payload, unreadable: Vec::new() }
    }
}

/// A part of an event, by its name in the envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    Id,
    StepId,
    Type,
    Timestamp,
    Actor,
    Payload,
}

/// Returns foreign bytes as text. Where they are no UTF-8 the text is lossy, and `part` joins the `unreadable` ones.
pub fn text_of(part: Part, bytes: Vec<u8>, unreadable: &mut Vec<Part>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        unreadable.push(part);
        String::from_utf8_lossy(error.as_bytes()).into_owned()
    })
}

fn milliseconds<S: serde::Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => to.collect_str(&Rfc3339(*at)),
        None => to.serialize_none(),
    }
}

/// A timestamp, displayed as RFC 3339 in UTC with milliseconds: `2026-11-23T21:00:00.000Z`.
pub struct Rfc3339(pub Timestamp);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

/// An event's payload: any JSON value, on one line, and otherwise spelled as its writer spelled it.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Payload(Box<RawValue>);

impl Payload {
    /// Keeps JSON as it is. Anything else becomes a JSON string, so that no event is lost for its payload.
    pub fn from_text(text: String) -> Self {
        Self::json(&text).unwrap_or_else(|| Self::text(&text))
    }

    /// Keeps JSON as it is, on one line; `None` for anything else.
    pub fn json(text: &str) -> Option<Self> {
        // JSON allows no raw line ends inside strings, and outside of them they are mere space
        RawValue::from_string(text.replace(['\n', '\r'], " ")).ok().map(Self)
    }

    /// Makes a JSON string of a text.
    pub fn text(text: &str) -> Self {
        serde_json::value::to_raw_value(text).map_or_else(|_| Self::null(), Self)
    }

    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    pub fn as_json(&self) -> &str {
        self.0.get()
    }
}
