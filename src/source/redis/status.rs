//! The key that says how a job is: a hash with a field for the status, or a text that is the status or holds it in JSON.

use super::reply::{check_reply, text};
use super::values::text_at;
use crate::config;
use crate::config::FinalStatuses;
use crate::event::JobStatus;
use redis::{Cmd, RedisError, Value, cmd};

/// The form of the key, and the places in it.
pub enum StatusForm {
    /// A hash: names of the fields that are asked for.
    Hash {
        status: Option<String>,
        /// A field that is there only once the job has ended.
        ended: Option<String>,
        /// A field that says how it ended.
        outcome: Option<String>,
    },
    /// A text that is the status.
    Text,
    /// A text that is JSON: the pointer to the status in it.
    Json(String),
}

/// The state of a job, as its key tells it.
#[derive(Clone, Debug, Default)]
pub struct JobState {
    /// The status as it is written.
    pub text: Option<String>,
    /// The final status, once the job has ended.
    pub end: Option<JobStatus>,
}

impl StatusForm {
    pub fn new(settings: &config::Redis) -> Self {
        let name = |name: &str| Some(name.to_string()).filter(|name| !name.is_empty());
        let (status, ended) = (name(&settings.job_status_field), name(&settings.job_ended_field));
        match (status, ended) {
            (None, None) => Self::Text,
            (Some(pointer), _) if pointer.starts_with('/') => Self::Json(pointer),
            (status, ended) => {
                let outcome = name(&settings.outcome).filter(|name| ended.is_some() && !name.starts_with('/'));
                Self::Hash { status, ended, outcome }
            }
        }
    }

    /// Makes the command that reads it.
    pub fn command(&self, key: &str) -> Cmd {
        match self {
            Self::Hash { status, ended, outcome } => {
                let fields: Vec<&String> = [status, ended, outcome].into_iter().flatten().collect();
                let mut get = cmd(if fields.len() == 1 { "HGET" } else { "HMGET" });
                get.arg(key).arg(fields);
                get
            }
            Self::Text | Self::Json(_) => {
                let mut get = cmd("GET");
                get.arg(key);
                get
            }
        }
    }

    /// Reads the reply to [`StatusForm::command`].
    pub fn parse(&self, reply: Value, statuses: &FinalStatuses) -> Result<JobState, RedisError> {
        let values = match check_reply(reply)? {
            Value::Array(values) => values,
            value => vec![value],
        };
        let mut values = values.iter().map(|value| text(value).filter(|text| !text.is_empty()).map(str::to_string));
        let mut next = || values.next().flatten();
        let known = |text: Option<String>| {
            let end = text.as_deref().and_then(|text| statuses.find(text));
            JobState { text, end }
        };
        Ok(match self {
            Self::Text => known(next()),
            Self::Json(pointer) => known(next().and_then(|json| text_at(&json, pointer))),
            Self::Hash { status, ended, outcome } => {
                let state = known(status.as_ref().and_then(|_| next()));
                let has_ended = ended.as_ref().and_then(|_| next()).is_some();
                let outcome = outcome.as_ref().and_then(|_| next());
                let outcome = outcome.and_then(|text| statuses.find_outcome(&text)).unwrap_or(JobStatus::Completed);
                JobState { end: state.end.or(has_ended.then_some(outcome)), ..state }
            }
        })
    }

    /// Returns the field of the hash that holds the status; `None` where there is no such hash.
    pub fn hash_field(&self) -> Option<&str> {
        if let Self::Hash { status, .. } = self { status.as_deref() } else { None }
    }

    /// The type of the key, as the server names it.
    pub fn key_type(&self) -> &'static str {
        match self {
            Self::Hash { .. } => "hash",
            Self::Text | Self::Json(_) => "string",
        }
    }
}
