//! A client of a running Jobcast for the commands: JSON requests, a job's stream, and errors that say if trying again
//! can help.

use super::sse_parser::{MAX_MESSAGE_BYTES, Message, Parser};
use crate::cursor::Start;
use crate::event::JobId;
use crate::outbound::{self, add_authorities, cause, public_authorities};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use rustls::RootCertStore;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

/// Longest silence on a stream before its connection counts as dead; longer than any sensible heartbeat.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time to connect, and time until an answer's head is there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Characters of an answer that are shown when it is not one of Jobcast's own errors.
const MAX_SHOWN_CHARS: usize = 200;
/// `http.stream_path`, unless it was changed.
pub const STREAM_PATH: &str = "/runner-jobs/{job_id}/events/stream";
/// Address of the stream of several jobs.
const SET_STREAM_PATH: &str = "/runner-jobs/events/stream";
/// All but the unreserved characters of RFC 3986.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The authorities that a command trusts under https.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Trust {
    /// PEM file with an authority to trust besides the public ones and those in $SSL_CERT_FILE
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Trust {
    /// The authorities that the user trusts.
    pub fn roots(&self) -> Result<RootCertStore, Failure> {
        let mut roots = public_authorities();
        if let Some(file) = &self.ca {
            let added = add_authorities(&mut roots, file);
            added.map_err(|cause| Failure::Authority { file: file.clone(), cause })?;
        }
        // This variable is set for all programs, so what it names may be of no concern here.
        if let Some(file) = std::env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty())
            && let Err(cause) = add_authorities(&mut roots, Path::new(&file))
        {
            tracing::debug!(?file, cause, "SSL_CERT_FILE is not used");
        }
        Ok(roots)
    }
}

/// Makes an HTTP client for the address that a command was given.
pub fn http_client(trust: &Trust) -> Result<reqwest::Client, Failure> {
    outbound::client(trust.roots()?)
        .map_err(Failure::Setup)?
        .connect_timeout(ANSWER_TIMEOUT)
        .build()
        .map_err(|error| Failure::Setup(cause(&error)))
}

/// A running Jobcast, seen from outside.
#[derive(Clone)]
pub struct Jobcast {
    client: reqwest::Client,
    /// Address without a slash at its end.
    base: String,
    /// Sent as `Authorization: Bearer` with every request.
    token: Option<String>,
}

/// Reason why a request or a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(String),
    #[error("{} cannot be used as an authority: {cause} (give the PEM file of the one that signed the server's certificate)", .file.display())]
    Authority { file: PathBuf, cause: String },
    #[error("{url} does not answer: {cause}")]
    Unreachable { url: String, cause: String },
    #[error("{url} answered {status}: {detail}")]
    Refused {
        url: String,
        status: StatusCode,
        /// The problem's detail and code, or the beginning of any other body.
        detail: String,
        /// Set when the answer is one of Jobcast's own errors, not a proxy's.
        is_ours: bool,
        retry_after: Option<Duration>,
    },
    #[error("{url} answered with {kind:?}, not with an event stream: is this a Jobcast?")]
    NotAStream { url: String, kind: String },
    #[error("{url} answered with something that is no JSON: {cause}")]
    NotJson { url: String, cause: String },
    #[error("the stream broke: {0}")]
    Broken(String),
    #[error("nothing came for {SILENCE_TIMEOUT:?}, not even a heartbeat")]
    Silent,
}

impl Failure {
    /// Returns true if trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken(_) | Self::NotJson { .. } | Self::Silent => true,
            // A 502 of Jobcast's own says that its source needs a person; a proxy's says that Jobcast is away.
            Self::Refused { status, is_ours, .. } => {
                status.is_server_error() && !(*status == StatusCode::BAD_GATEWAY && *is_ours)
                    || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
            Self::NotAStream { .. } | Self::Setup(_) | Self::Authority { .. } => false,
        }
    }

    /// Wait that the answer asked for in `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Jobcast {
    pub fn new(url: &str, token: Option<String>, trust: &Trust) -> Result<Self, Failure> {
        Ok(Self { client: http_client(trust)?, base: url.trim_end_matches('/').to_string(), token })
    }

    pub fn events_url(&self, job: &JobId) -> String {
        format!("{}/events", self.job_url(job))
    }

    pub fn job_url(&self, job: &JobId) -> String {
        format!("{}/runner-jobs/{}", self.base, utf8_percent_encode(job.as_str(), SEGMENT))
    }

    fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Opens a job's stream; `None` if the job has ended and nothing more of it will come.
    pub async fn stream(&self, job: &JobId, start: &Start) -> Result<Option<Stream>, Failure> {
        self.stream_at(&self.stream_url(job, STREAM_PATH), start).await
    }

    /// Returns the address of a job's stream. `path` has `{job_id}` in it, as `http.stream_path`.
    pub fn stream_url(&self, job: &JobId, path: &str) -> String {
        let job = utf8_percent_encode(job.as_str(), SEGMENT).to_string();
        format!("{}/{}", self.base, path.trim_start_matches('/')).replace("{job_id}", &job)
    }

    /// Opens one stream of several jobs; `None` if all of them have ended and nothing more of them will come.
    pub async fn set_stream(&self, jobs: &[JobId], start: &Start) -> Result<Option<Stream>, Failure> {
        let named: Vec<String> =
            jobs.iter().map(|job| format!("job={}", utf8_percent_encode(job.as_str(), SEGMENT))).collect();
        self.stream_at(&format!("{}{SET_STREAM_PATH}?{}", self.base, named.join("&")), start).await
    }

    /// As [`Jobcast::stream`], from an address that may have a query of its own.
    pub async fn stream_at(&self, address: &str, start: &Start) -> Result<Option<Stream>, Failure> {
        let query = match start {
            // An event's id may be any text, and not every text fits into a header.
            Start::After(id, _) => format!("lastEventId={}", utf8_percent_encode(id, SEGMENT)),
            Start::Last(count) => format!("last={count}"),
            Start::Now => "from=now".into(),
            Start::Beginning => String::new(),
        };
        let url = match (query.is_empty(), address.contains('?')) {
            (true, _) => address.to_string(),
            (false, true) => format!("{address}&{query}"),
            (false, false) => format!("{address}?{query}"),
        };
        let request = self.request(Method::GET, &url).header(header::ACCEPT, "text/event-stream");
        let answer = send(&url, request).await?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(Failure::NotAStream { kind: kind.into(), url });
        }
        Ok(Some(Stream { answer, parser: Parser::default(), messages: Vec::new().into_iter() }))
    }

    /// Sends JSON, or nothing, and returns the JSON of an answer that says that it went well.
    pub async fn json(&self, method: Method, url: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let request = self.request(method, url);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let body = read_body(send(url, request).await?).await?;
        serde_json::from_slice(&body).map_err(|error| Failure::NotJson { url: url.into(), cause: error.to_string() })
    }
}

/// Sends a request and returns its answer, with only the head read, if the status says that it went well.
async fn send(url: &str, request: RequestBuilder) -> Result<Response, Failure> {
    let unreachable = |cause: String| Failure::Unreachable { url: url.into(), cause };
    let answer = timeout(ANSWER_TIMEOUT, request.send())
        .await
        .map_err(|_| unreachable(format!("nothing for {ANSWER_TIMEOUT:?}")))?
        .map_err(|error| unreachable(cause(&error)))?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = timeout(ANSWER_TIMEOUT, read_body(answer)).await.ok().and_then(Result::ok).unwrap_or_default();
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let detail = match (problem["detail"].as_str(), problem["code"].as_str()) {
        (Some(detail), Some(code)) => format!("{detail} ({code})"),
        _ => String::from_utf8_lossy(&body).chars().take(MAX_SHOWN_CHARS).collect(),
    };
    Err(Failure::Refused {
        url: url.into(),
        status,
        detail,
        is_ours: problem["code"].is_string(),
        retry_after: retry_after.map(Duration::from_secs),
    })
}

async fn read_body(mut answer: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(bytes) = answer.chunk().await.map_err(|error| Failure::Broken(cause(&error)))? {
        if body.len() + bytes.len() > MAX_MESSAGE_BYTES {
            return Err(Failure::Broken(format!("the answer has more than {MAX_MESSAGE_BYTES} bytes")));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

/// An open stream.
pub struct Stream {
    answer: Response,
    parser: Parser,
    /// Messages that were parsed and not given out yet.
    messages: std::vec::IntoIter<Message>,
}

impl Stream {
    /// Returns the next message; `None` once the other side has closed.
    pub async fn next(&mut self) -> Result<Option<Message>, Failure> {
        loop {
            if let Some(message) = self.messages.next() {
                return Ok(Some(message));
            }
            let bytes = match timeout(SILENCE_TIMEOUT, self.answer.chunk()).await {
                Err(_) => return Err(Failure::Silent),
                Ok(Err(error)) => return Err(Failure::Broken(cause(&error))),
                Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(bytes))) => bytes,
            };
            let messages = self.parser.feed(&bytes).map_err(|error| Failure::Broken(error.to_string()))?;
            self.messages = messages.into_iter();
        }
    }

    /// Wait before reconnecting, as the stream's last `retry:` set it.
    pub fn retry(&self) -> Option<Duration> {
        self.parser.retry()
    }
}
