//! Watches a stream and notes when its bytes come.

use super::finding::Finding;
use super::{LATE, since};
use crate::cli::sse_parser::{Message, Parser};
use crate::outbound::cause;
use crate::sse;
use reqwest::header::{self, HeaderMap};
use reqwest::{RequestBuilder, StatusCode};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// A stream as it was received.
pub struct Watched {
    /// Head of the answer; `None` if none came.
    pub head: Option<Head>,
    /// Time from the request to the first byte after the head.
    pub first: Option<Duration>,
    pub end: End,
}

/// Reason why the watching ended.
pub enum End {
    /// A heartbeat came after this silence.
    Heartbeat { silence: Duration },
    /// The connection ended after this silence, and Jobcast had not said that it would.
    Cut { silence: Duration },
    /// Jobcast said that the stream ends.
    Farewell,
    /// Events that were written over this time came in one piece.
    Bunch { spread: Duration },
    /// The time was over, this long after the last byte.
    Watched { silence: Duration },
}

pub struct Head {
    pub status: StatusCode,
    headers: HeaderMap,
}

impl Head {
    fn get(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Compares the head with the one that Jobcast sends.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let kind = self.get("content-type");
        if !kind.starts_with("text/event-stream") {
            findings.push(Finding::WrongHead { header: "Content-Type", seen: kind.into(), sent: "text/event-stream" });
        }
        let encoding = self.get("content-encoding");
        if !matches!(encoding, "" | "identity") {
            findings.push(Finding::Compressed { by: encoding.into() });
        }
        let caching = self.get("cache-control");
        if !caching.contains("no-transform") {
            let sent = "no-cache, no-store, no-transform";
            findings.push(Finding::WrongHead { header: "Cache-Control", seen: caching.into(), sent });
        }
        if self.headers.contains_key(header::CONTENT_LENGTH) {
            let (header, seen) = ("Content-Length", self.get("content-length").into());
            findings.push(Finding::WrongHead { header, seen, sent: "none, since a stream has no length" });
        }
        findings
    }
}

/// Watches until a heartbeat has come, the stream has ended, or the time is over.
///
/// # Errors
/// The cause, if there is no connection.
pub async fn watch(request: RequestBuilder, limit: Duration) -> Result<Watched, String> {
    let began = Instant::now();
    let rest = || limit.saturating_sub(began.elapsed());
    let mut answer = match timeout(limit, request.send()).await {
        Err(_) => return Ok(Watched { head: None, first: None, end: End::Watched { silence: limit } }),
        Ok(Err(error)) if error.is_connect() => return Err(cause(&error)),
        // Whatever closes a connection before the head has come held the head back.
        Ok(Err(_)) => return Ok(Watched { head: None, first: None, end: End::Cut { silence: since(began) } }),
        Ok(Ok(answer)) => answer,
    };
    let head = Head { status: answer.status(), headers: answer.headers().clone() };
    let (mut parser, mut first, mut last) = (Parser::default(), None, Instant::now());
    // Bytes that a proxy has compressed cannot be told apart, and the head tells of that.
    let is_opaque = answer.headers().contains_key(header::CONTENT_ENCODING);
    let mut has_said_farewell = false;
    let end = loop {
        let piece = match timeout(rest(), answer.chunk()).await {
            Err(_) => break End::Watched { silence: since(last) },
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) | Ok(Err(_)) if has_said_farewell => break End::Farewell,
            Ok(Ok(None)) | Ok(Err(_)) => break End::Cut { silence: since(last) },
        };
        let silence = since(last);
        last = Instant::now();
        let messages = parser.feed(&piece).unwrap_or_default();
        has_said_farewell |= messages.iter().any(|one| matches!(one.kind.as_str(), "stream.bye" | "stream.complete"));
        let spread = spread(&messages);
        if first.is_some() && spread > LATE {
            break End::Bunch { spread };
        }
        if first.is_some() && (is_opaque || piece.starts_with(sse::HEARTBEAT)) {
            break End::Heartbeat { silence };
        }
        first = first.or(Some(since(began)));
    };
    Ok(Watched { head: Some(head), first, end })
}

/// Time between the earliest and the latest of these events, by their own timestamps.
fn spread(messages: &[Message]) -> Duration {
    let time = |message: &Message| -> Option<jiff::Timestamp> {
        let data: serde_json::Value = serde_json::from_str(message.data.as_deref()?).ok()?;
        data["timestamp"].as_str()?.parse().ok()
    };
    let times: Vec<_> = messages.iter().filter_map(time).collect();
    match (times.iter().min(), times.iter().max()) {
        (Some(first), Some(last)) => last.duration_since(*first).unsigned_abs(),
        _ => Duration::ZERO,
    }
}
