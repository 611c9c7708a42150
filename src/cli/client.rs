//! A subscriber for terminals: a stream's bytes as messages, and what an answer means for who wants to come back.

use crate::event::JobId;
use awc::error::PayloadError;
use awc::http::StatusCode;
use awc::http::header;
use bytes::Bytes;
use futures_util::StreamExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::time::Duration;
use tokio::time::timeout;

/// More than any heartbeat that makes sense: the connection is dead.
const SILENCE: Duration = Duration::from_secs(60);
/// For connecting, and for the head of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// A message that is longer is not one of ours.
const MAX_MESSAGE: usize = 64 << 20;
/// All but the unreserved characters of RFC 3986.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A running Jobcast, as it is seen from outside.
#[derive(Clone)]
pub struct Jobcast {
    client: awc::Client,
    /// Without a slash at its end.
    base: String,
    token: Option<String>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{url} does not answer: {cause}")]
    Unreachable { url: String, cause: String },
    #[error("{url} answered {status}: {said}")]
    Refused { url: String, status: StatusCode, said: String, is_ours: bool, retry_after: Option<Duration> },
    #[error("{url} answered with {kind:?}, not with an event stream: is this a Jobcast?")]
    Foreign { url: String, kind: String },
    #[error("the stream broke: {0}")]
    Broken(String),
    #[error("nothing came for {SILENCE:?}, not even a heartbeat")]
    Silent,
}

impl Failure {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken(_) | Self::Silent => true,
            // a 502 of Jobcast's own says that its source needs a person; a proxy's, that Jobcast is away
            Self::Refused { status, is_ours, .. } => {
                status.is_server_error() && !(*status == StatusCode::BAD_GATEWAY && *is_ours)
                    || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
            Self::Foreign { .. } => false,
        }
    }

    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Jobcast {
    pub fn new(url: &str, token: Option<String>) -> Self {
        let connector = awc::Connector::new().limit(0).timeout(ANSWER);
        let client = awc::Client::builder().connector(connector).disable_timeout().finish();
        Self { client, base: url.trim_end_matches('/').to_string(), token }
    }

    pub fn events_url(&self, job: &JobId) -> String {
        format!("{}/events", self.job_url(job))
    }

    pub fn job_url(&self, job: &JobId) -> String {
        format!("{}/runner-jobs/{}", self.base, utf8_percent_encode(job.as_str(), SEGMENT))
    }

    fn signed(&self, request: awc::ClientRequest) -> awc::ClientRequest {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Opens a job's stream after `last`; `None` where the job has ended and nothing more of it will come.
    pub async fn stream(&self, job: &JobId, last: Option<&str>, from_now: bool) -> Result<Option<Stream>, Failure> {
        let from = match last {
            // an event's id may be anything: not every one fits into a header
            Some(last) => format!("?lastEventId={}", utf8_percent_encode(last, SEGMENT)),
            None if from_now => "?from=now".into(),
            None => String::new(),
        };
        let url = format!("{}/stream{from}", self.events_url(job));
        let request = self.signed(self.client.get(&url)).insert_header((header::ACCEPT, "text/event-stream"));
        let answer = answered(&url, request.send()).await?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(Failure::Foreign { url, kind: kind.into() });
        }
        Ok(Some(Stream { body: Box::new(answer), parser: Parser::default(), messages: Vec::new().into_iter() }))
    }

    /// Sends or fetches JSON; the answer must say that it went well.
    pub async fn json(
        &self,
        method: awc::http::Method,
        url: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<serde_json::Value, Failure> {
        let request = self.signed(self.client.request(method, url));
        let sent = match body {
            Some(body) => request.send_json(body),
            None => request.send(),
        };
        let mut answer = answered(url, sent).await?;
        let broken = |error: awc::error::JsonPayloadError| Failure::Broken(format!("{url}: {error}"));
        answer.json().limit(MAX_MESSAGE).await.map_err(broken)
    }
}

async fn answered(url: &str, sent: awc::SendClientRequest) -> Result<awc::ClientResponse, Failure> {
    let unreachable = |cause: String| Failure::Unreachable { url: url.into(), cause };
    let mut answer = timeout(ANSWER, sent)
        .await
        .map_err(|_| unreachable(format!("nothing for {ANSWER:?}")))?
        .map_err(|error| unreachable(error.to_string()))?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = timeout(ANSWER, answer.body()).await.ok().and_then(Result::ok).unwrap_or_default();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = match (problem["detail"].as_str(), problem["code"].as_str()) {
        (Some(detail), Some(code)) => format!("{detail} ({code})"),
        _ => String::from_utf8_lossy(&body).chars().take(200).collect(),
    };
    Err(Failure::Refused {
        url: url.into(),
        status: answer.status(),
        said,
        is_ours: problem["code"].is_string(),
        retry_after: retry_after.map(Duration::from_secs),
    })
}

/// An open stream.
pub struct Stream {
    body: Box<dyn futures_util::Stream<Item = Result<Bytes, PayloadError>> + Unpin>,
    parser: Parser,
    messages: std::vec::IntoIter<Message>,
}

impl Stream {
    /// The next message; `None` where the other side closed.
    pub async fn next(&mut self) -> Result<Option<Message>, Failure> {
        loop {
            if let Some(message) = self.messages.next() {
                return Ok(Some(message));
            }
            match timeout(SILENCE, self.body.next()).await {
                Err(_) => return Err(Failure::Silent),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(Failure::Broken(error.to_string())),
                Ok(Some(Ok(bytes))) => self.messages = self.parser.feed(&bytes)?.into_iter(),
            }
        }
    }

    /// How long to wait before coming back, once the stream has said so.
    pub fn retry(&self) -> Option<Duration> {
        self.parser.retry
    }
}

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The last event id as of this message; empty for none.
    pub id: String,
    /// Without `data:` it is not dispatched by browsers; here it tells a position.
    pub data: Option<String>,
    /// "message" where the stream names none.
    pub kind: String,
}

/// Reads a stream's bytes as they come (WHATWG HTML, "Interpreting an event stream").
#[derive(Debug, Default)]
pub struct Parser {
    has_begun: bool,
    line: Vec<u8>,
    /// The last byte ended a line and was a CR: an LF after it belongs to it.
    after_cr: bool,
    id: String,
    has_id: bool,
    kind: String,
    data: Option<String>,
    /// How long to wait before coming back, once the stream has said so.
    pub retry: Option<Duration>,
}

impl Parser {
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, Failure> {
        let mut messages = Vec::new();
        for byte in bytes {
            let follows_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    messages.extend(self.take_line(&line));
                }
                other => self.line.push(*other),
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MAX_MESSAGE {
                return Err(Failure::Broken(format!("a message has more than {MAX_MESSAGE} bytes")));
            }
        }
        Ok(messages)
    }

    fn take_line(&mut self, line: &[u8]) -> Option<Message> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let line = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| is_first).unwrap_or(line);
        if line.is_empty() {
            return self.dispatch();
        }
        let line = String::from_utf8_lossy(line);
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.into()),
            },
            "event" => self.kind = value.into(),
            "id" if !value.contains('\0') => {
                self.id = value.into();
                self.has_id = true;
            }
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis);
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Message> {
        let (kind, data) = (std::mem::take(&mut self.kind), self.data.take());
        let has_id = std::mem::take(&mut self.has_id);
        let kind = if kind.is_empty() { "message".into() } else { kind };
        (data.is_some() || has_id).then(|| Message { id: self.id.clone(), data, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a browser would dispatch: type, data, last event id.
    fn dispatched(pieces: &[&[u8]]) -> Vec<(String, String, String)> {
        let mut parser = Parser::default();
        let messages = pieces.iter().flat_map(|piece| parser.feed(piece).expect("short"));
        messages.filter_map(|one| Some((one.kind, one.data?, one.id))).collect()
    }

    fn one(kind: &str, data: &str, id: &str) -> (String, String, String) {
        (kind.into(), data.into(), id.into())
    }

    #[test]
    fn a_stream_means_what_the_standard_says() {
        for (stream, meant) in [
            ("data: a\n\n", vec![one("message", "a", "")]),
            ("data:a\rdata: b\r\r", vec![one("message", "a\nb", "")]),
            ("data\r\n\r\n", vec![one("message", "", "")]),
            ("data: a\n\ndata: b", vec![one("message", "a", "")]),
            (":comment\n\nevent: x\n\ndata:  two\n\n", vec![one("message", " two", "")]),
            ("event: x\ndata: 1\n\ndata: 2\n\n", vec![one("x", "1", ""), one("message", "2", "")]),
            (
                "id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
                vec![one("message", "a", "1"), one("message", "b", "1"), one("message", "c", "")],
            ),
            ("id: 1\0\ndata: a\n\n", vec![one("message", "a", "")]),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", vec![one("message", "a", "")]),
            ("validate: a\n data: b\ndata: c\n\n", vec![one("message", "c", "")]),
        ] {
            assert_eq!(dispatched(&[stream.as_bytes()]), meant, "{stream:?}");
        }
    }

    #[test]
    fn it_means_the_same_wherever_it_is_cut() {
        let stream = "\u{feff}retry: 1500\r\n: hällo\r\n\r\nid: c1\revent: x\rdata: \u{1F980}\r\rdata: a\ndata: ü\n\n"
            .as_bytes();
        let whole = dispatched(&[stream]);
        assert_eq!(whole, [one("x", "\u{1F980}", "c1"), one("message", "a\nü", "c1")]);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(dispatched(&pieces), whole, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn only_digits_say_when_to_come_back() {
        let mut parser = Parser::default();
        for (line, retry) in [("retry: x", None), ("retry: 1.5", None), ("retry: 20", Some(20)), ("retry:", Some(20))] {
            parser.feed(format!("{line}\n").as_bytes()).expect("short");
            assert_eq!(parser.retry, retry.map(Duration::from_millis), "{line}");
        }
    }
}
