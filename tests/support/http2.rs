//! A daemon behind TLS, an honest client of HTTP/2, and a peer that writes frames by hand.

use super::daemon::{numbered, stream_path};
use super::tls::{Authority, keep};
use super::{Daemon, Message, PATIENCE};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// A daemon with a certificate for `localhost`.
pub struct Secure {
    pub daemon: Daemon,
    pub authority: Authority,
    pub folder: TempDir,
}

impl Secure {
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let (authority, folder) = (Authority::new("An authority"), tempfile::tempdir().expect("a directory"));
        let (certificate, key) = authority.certify("localhost");
        let cert = keep(&folder, "cert.pem", &certificate.pem());
        let key = keep(&folder, "key.pem", &key.serialize_pem());
        let own = [("http.tls.cert", &*cert), ("http.tls.key", &*key)];
        let daemon = Daemon::with(&[&own, settings].concat()).await;
        Self { daemon, authority, folder }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.daemon.http, &self.authority).await
    }

    /// A peer that has sent the beginning of an HTTP/2 connection.
    pub async fn raw(&self) -> Raw {
        let socket = TcpStream::connect(self.daemon.http).await.expect("connect");
        Raw::on(self.authority.connect_on(socket, "h2").await.expect("a handshake")).await
    }
}

/// One HTTP/2 connection of an honest client, with windows that are never in its way.
#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Bytes>,
}

impl Client {
    pub async fn connect(to: SocketAddr, authority: &Authority) -> Self {
        Self::with(to, authority, 8 << 20).await
    }

    /// Connects with a window of so many bytes for each stream.
    pub async fn with(to: SocketAddr, authority: &Authority, stream_window: u32) -> Self {
        let link = authority.connect(to, "h2").await.expect("a handshake");
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(stream_window).initial_connection_window_size(1 << 30);
        let (requests, connection) = builder.handshake(link).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self { requests }
    }

    pub async fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<Response<RecvStream>, h2::Error> {
        let request = Request::builder().method(method).uri(format!("https://localhost{path}"));
        let request = request.header("content-type", "application/json").body(()).expect("a request");
        let (answer, mut content) = self.begin(request, body.is_empty()).await?;
        if !body.is_empty() {
            content.send_data(Bytes::copy_from_slice(body), true)?;
        }
        timeout(PATIENCE, answer).await.expect("an answer in time")
    }

    /// Sends the head of a request.
    pub async fn begin(
        &self,
        head: Request<()>,
        is_whole: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.requests.clone().ready().await?.send_request(head, is_whole)
    }

    /// Appends numbered events by ingest.
    pub async fn write(&self, job: &str, numbers: impl IntoIterator<Item = u64>) {
        self.append(job, numbers.into_iter().map(numbered).collect()).await;
    }

    pub async fn append(&self, job: &str, events: Vec<Value>) {
        let path = format!("/runner-jobs/{job}/events");
        let answer = self.request("POST", &path, json!(events).to_string().as_bytes()).await.expect("an answer");
        assert_eq!(answer.status(), 201);
    }

    /// Reads an answer of JSON.
    pub async fn json(&self, path: &str) -> Value {
        let mut content = self.request("GET", path, b"").await.expect("an answer").into_body();
        let mut bytes = Vec::new();
        while let Some(piece) = timeout(PATIENCE, content.data()).await.expect("bytes in time") {
            let piece = piece.expect("bytes");
            let _ = content.flow_control().release_capacity(piece.len());
            bytes.extend_from_slice(&piece);
        }
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// Opens a stream; the answer may be anything.
    pub async fn stream(&self, job: &str) -> Stream {
        let (head, content) = self.request("GET", &stream_path(job), b"").await.expect("an answer").into_parts();
        Stream {
            status: head.status.as_u16(),
            headers: head.headers,
            content,
            plain: Vec::new(),
            blocks: VecDeque::new(),
        }
    }
}

/// One stream of events on an HTTP/2 connection.
pub struct Stream {
    pub status: u16,
    pub headers: HeaderMap,
    content: RecvStream,
    plain: Vec<u8>,
    blocks: VecDeque<Message>,
}

impl Stream {
    /// The next block; `None` at the proper end.
    pub async fn try_next(&mut self) -> Result<Option<Message>, h2::Error> {
        loop {
            self.blocks.retain(|block| !block.is("stream.status"));
            if let Some(block) = self.blocks.pop_front() {
                return Ok(Some(block));
            }
            let Some(bytes) = timeout(PATIENCE, self.content.data()).await.expect("bytes in time") else {
                return Ok(None);
            };
            let bytes = bytes?;
            self.content.flow_control().release_capacity(bytes.len())?;
            self.plain.extend_from_slice(&bytes);
            while let Some(end) = self.plain.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.plain.drain(..end + 2).collect();
                let text = String::from_utf8(block).expect("UTF-8");
                self.blocks.push_back(Message::parse(text.trim_end_matches('\n')));
            }
        }
    }

    pub async fn next(&mut self) -> Option<Message> {
        self.try_next().await.expect("a whole stream")
    }

    pub async fn heartbeat(&mut self) {
        while self.next().await.expect("a heartbeat").data.is_some() {}
    }

    pub async fn event(&mut self) -> Message {
        loop {
            let next = self.next().await.expect("an event before the end");
            if next.data.is_some() {
                return next;
            }
        }
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
        while let Some(message) = self.next().await {
            rest.extend(Some(message).filter(|message| message.data.is_some()));
        }
        rest
    }
}

/// The kinds of frames (RFC 9113, section 6), and their flags.
pub mod kind {
    pub const DATA: u8 = 0x0;
    pub const HEADERS: u8 = 0x1;
    pub const PRIORITY: u8 = 0x2;
    pub const RST_STREAM: u8 = 0x3;
    pub const SETTINGS: u8 = 0x4;
    pub const PING: u8 = 0x6;
    pub const GOAWAY: u8 = 0x7;
    pub const WINDOW_UPDATE: u8 = 0x8;
    pub const CONTINUATION: u8 = 0x9;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
}

pub fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut frame = (content.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(content);
    frame
}

/// Settings by their numbers (RFC 9113, section 6.5.2).
pub fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let values = settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(kind::SETTINGS, 0, 0, &values.collect::<Vec<u8>>())
}

/// A block of headers, written out in full (RFC 7541, section 6.2.2).
pub fn header_block(method: &str, path: &str) -> Vec<u8> {
    let lines = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)];
    let mut block = Vec::new();
    for (name, value) in lines {
        block.extend([0, name.len() as u8]);
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// A request without content.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(kind::HEADERS, kind::END_HEADERS | kind::END_STREAM, stream, &header_block("GET", path))
}

/// A peer that writes frames by hand.
pub struct Raw(TlsStream<TcpStream>);

impl Raw {
    pub async fn on(mut link: TlsStream<TcpStream>) -> Self {
        link.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("the preface");
        link.write_all(&settings(&[])).await.expect("settings");
        Self(link)
    }

    pub async fn send(&mut self, frames: &[u8]) {
        self.0.write_all(frames).await.expect("frames are taken");
    }

    /// Sends what may be refused at any moment.
    pub async fn try_send(&mut self, frames: &[u8]) -> std::io::Result<()> {
        self.0.write_all(frames).await?;
        self.0.flush().await
    }

    /// Sends nothing more, and reads until the other side closes.
    pub async fn leave(mut self) {
        let _ = self.0.shutdown().await;
        self.end().await;
    }

    /// Reads until the other side closes; the reason that it gave, if it gave any.
    pub async fn end(mut self) -> Option<Reason> {
        let mut received = Vec::new();
        // A connection that is reset is over, too.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut received)).await.expect("the end in time");
        reason(&received)
    }

    /// Reads until the answer to a request begins; the connection must not end before.
    pub async fn is_answered(&mut self, stream: u32) {
        let mut received = Vec::new();
        let answered =
            |received: &[u8]| frames(received).any(|(kind, of, _)| kind == kind::HEADERS && of == stream.to_be_bytes());
        while !answered(&received) {
            let read = timeout(PATIENCE, self.0.read_buf(&mut received)).await.expect("an answer in time");
            assert!(read.expect("a connection") > 0, "ended: {:?}", reason(&received));
        }
    }

    /// Reads until the other side closes; the kind and the first bytes of each frame, which name its stream.
    pub async fn received(mut self) -> Vec<(u8, Vec<u8>)> {
        let mut received = Vec::new();
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut received)).await.expect("the end in time");
        frames(&received).map(|(kind, stream, _)| (kind, stream.to_vec())).collect()
    }

    /// As [`Raw::flood`], but reads nothing of what comes.
    pub async fn flood_unread(mut self, flood: impl Fn(u32) -> Vec<u8>) {
        let send = async {
            let mut number = 0;
            while self.0.write_all(&flood(number)).await.is_ok() && self.0.flush().await.is_ok() {
                number += 1;
            }
        };
        timeout(PATIENCE, send).await.expect("the flood is ended");
    }

    /// Sends `flood`'s frames, a batch for each number, and reads whatever comes, until the other side ends the
    /// connection. Returns the reason that it gave, if that got through.
    pub async fn flood(self, flood: impl Fn(u32) -> Vec<u8>) -> Option<Reason> {
        let (mut from, mut to) = tokio::io::split(self.0);
        let mut received = Vec::new();
        let send = async {
            let mut number = 0;
            while to.write_all(&flood(number)).await.is_ok() && to.flush().await.is_ok() {
                number += 1;
            }
        };
        let receive = async {
            let _ = from.read_to_end(&mut received).await;
        };
        let ended = async {
            tokio::select! {
                () = receive => {}
                () = send => {}
            }
        };
        timeout(PATIENCE, ended).await.expect("the flood is ended");
        reason(&received)
    }
}

/// The frames in these bytes: kind, stream and content.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (content, after) = rest.split_at_checked(length)?;
        bytes = after;
        Some((head[3], &head[5..], content))
    })
}

/// The reason in the last GOAWAY among these frames.
fn reason(bytes: &[u8]) -> Option<Reason> {
    let codes =
        frames(bytes).filter(|(kind, ..)| *kind == kind::GOAWAY).filter_map(|(_, _, content)| content.get(4..8));
    codes.last().and_then(|code| code.try_into().ok()).map(|code| Reason::from(u32::from_be_bytes(code)))
}
