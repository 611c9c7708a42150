//! A subscriber that sees every block of a stream.

use super::daemon::stream_path;
use super::http::{Answer, encode, unchunk};
use super::{Daemon, PATIENCE};
use serde_json::Value;
use std::collections::VecDeque;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One block of a stream, up to its empty line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub id: Option<String>,
    pub event: Option<String>,
    pub data: Option<String>,
    pub retry: Option<u64>,
    pub comments: Vec<String>,
}

impl Message {
    pub fn parse(block: &str) -> Self {
        let mut message = Self::default();
        for line in block.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_string();
            match name {
                "" => message.comments.push(value),
                "id" => message.id = Some(value),
                "event" => message.event = Some(value),
                "data" => assert_eq!(message.data.replace(value), None, "data is one line: {block}"),
                "retry" => message.retry = Some(value.parse().expect("retry")),
                _ => panic!("not of this protocol: {line:?}"),
            }
        }
        message
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(self.data.as_deref().expect("data")).expect("JSON")
    }

    pub fn number(&self) -> u64 {
        self.json()["payload"]["n"].as_u64().unwrap_or_else(|| panic!("not numbered: {self:?}"))
    }

    pub fn cursor(&self) -> &str {
        self.id.as_deref().expect("an id")
    }

    pub fn is(&self, event: &str) -> bool {
        self.event.as_deref() == Some(event)
    }
}

/// A connection, in the clear or by TLS.
pub trait Link: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Link for T {}

pub struct Stream {
    pub head: Answer,
    socket: Box<dyn Link>,
    bytes: Vec<u8>,
    plain: Vec<u8>,
    blocks: VecDeque<Message>,
    is_over: bool,
    /// Shows `stream.status`, which most tests have no use for.
    shows_statuses: bool,
}

impl Stream {
    /// Opens a stream; the answer may be anything.
    pub async fn open(to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::try_open(to, path, headers).await.unwrap_or_else(|error| panic!("GET {path} got no answer: {error}"))
    }

    /// Fails where nobody answers.
    pub async fn try_open(to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect(to).await?;
        let mut all = vec![("Accept", "text/event-stream")];
        all.extend_from_slice(headers);
        socket.write_all(&encode("GET", path, &all, b"")).await?;
        Self::on(socket).await
    }

    /// Reads the answer on a socket that has asked.
    pub async fn on(socket: impl Link + 'static) -> std::io::Result<Self> {
        let mut socket: Box<dyn Link> = Box::new(socket);
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(head) = Answer::head(&mut bytes) {
                break head;
            }
            if timeout(PATIENCE, socket.read_buf(&mut bytes)).await.expect("an answer in time")? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        };
        let mut stream = Self {
            head,
            socket,
            bytes,
            plain: Vec::new(),
            blocks: VecDeque::new(),
            is_over: false,
            shows_statuses: false,
        };
        stream.digest();
        if stream.head.status >= 400 {
            while stream.try_next().await?.is_some() {}
            stream.head.body = std::mem::take(&mut stream.plain);
        }
        Ok(stream)
    }

    /// The same stream, with the statuses of its job.
    pub fn with_statuses(mut self) -> Self {
        self.shows_statuses = true;
        self
    }

    /// The next block; `None` at the end of the stream, which must be a proper one.
    pub async fn next(&mut self) -> Option<Message> {
        match timeout(PATIENCE, self.try_next()).await {
            Ok(Ok(next)) => next,
            Ok(Err(error)) => {
                panic!("the stream broke: {error}; left over: {:?}", String::from_utf8_lossy(&self.plain))
            }
            Err(_) => panic!("nothing came for {PATIENCE:?}; left over: {:?}", String::from_utf8_lossy(&self.plain)),
        }
    }

    /// Fails where the connection breaks. May be dropped while it waits.
    pub async fn try_next(&mut self) -> std::io::Result<Option<Message>> {
        loop {
            match self.blocks.pop_front() {
                Some(block) if block.is("stream.status") && !self.shows_statuses => continue,
                Some(block) => return Ok(Some(block)),
                None => {}
            }
            if self.is_over {
                return Ok(None);
            }
            if self.socket.read_buf(&mut self.bytes).await? == 0 {
                if self.head.is_chunked() {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                self.is_over = true;
            }
            self.digest();
        }
    }

    fn digest(&mut self) {
        let length = self.head.header("Content-Length").and_then(|length| length.parse::<usize>().ok());
        if let Some(length) = length {
            self.is_over |= self.bytes.len() >= length;
            if self.is_over {
                self.plain.append(&mut self.bytes);
            }
        } else if self.head.is_chunked() {
            self.is_over = self.bytes.ends_with(b"\r\n0\r\n\r\n") || self.bytes == b"0\r\n\r\n";
            let plain = unchunk(&mut self.bytes);
            self.plain.extend(plain);
        } else {
            self.plain.append(&mut self.bytes);
        }
        while let Some(end) = self.plain.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = self.plain.drain(..end + 2).collect();
            let text = std::str::from_utf8(&block).expect("UTF-8");
            self.blocks.push_back(Message::parse(text.trim_end_matches('\n')));
        }
    }

    /// The next block that has data; `None` at the end. Heartbeats are no reason to wait for longer.
    async fn next_event(&mut self) -> Option<Message> {
        let next = async {
            loop {
                let next = self.next().await;
                if next.as_ref().is_none_or(|message| message.data.is_some()) {
                    return next;
                }
            }
        };
        timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("no event came for {PATIENCE:?}"))
    }

    pub async fn event(&mut self) -> Message {
        self.next_event().await.expect("an event before the end of the stream")
    }

    pub async fn take(&mut self, count: usize) -> Vec<Message> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.event().await);
        }
        taken
    }

    /// Everything with data, to the proper end of the stream.
    pub async fn rest(&mut self) -> Vec<Message> {
        let mut rest = Vec::new();
        while let Some(message) = self.next_event().await {
            rest.push(message);
        }
        rest
    }

    /// The origin of the replay, as the head says.
    pub fn replay(&self) -> &str {
        self.head.header("X-Jobcast-Replay").expect("X-Jobcast-Replay")
    }
}

impl Daemon {
    /// The stream after a cursor, as soon as the source answers again.
    pub async fn stream_when_back(&self, job: &str, after: &str) -> Stream {
        let (path, headers) = (stream_path(job), [("Last-Event-ID", after)]);
        super::eventually("the source to be back", async || {
            Some(Stream::open(self.http, &path, &headers).await).filter(|stream| stream.head.status == 200)
        })
        .await
    }

    /// Waits until so many streams are open.
    pub async fn has_subscribers(&self, count: usize) {
        self.metric_is("jobcast_subscribers", count as f64).await;
    }
}
