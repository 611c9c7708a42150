//! HTTP/1.1 by hand, so that tests see what is really sent.

use super::PATIENCE;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// The stable code of problem details, which every error must be.
    pub fn code(&self) -> String {
        assert_eq!(self.header("Content-Type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], self.status, "{body}");
        assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
        body["code"].as_str().expect("a code").to_string()
    }

    /// Splits a head off `bytes` once it is there whole.
    pub fn head(bytes: &mut Vec<u8>) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes.drain(..end);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_string(), v.to_string()));
        Some(Self { status, headers: headers.collect(), body: Vec::new() })
    }

    pub fn is_chunked(&self) -> bool {
        self.header("Transfer-Encoding") == Some("chunked")
    }
}

/// One request on its own connection.
pub async fn request(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut all = vec![("Connection", "close")];
    all.extend_from_slice(headers);
    let bytes = encode(method, path, &all, body);
    exchange(to, &bytes).await
}

pub fn encode(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Sends these very bytes, and reads one answer until the other side closes.
pub async fn exchange(to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut received = raw(to, bytes).await;
    let mut answer = Answer::head(&mut received).unwrap_or_else(|| panic!("no answer: {received:?}"));
    answer.body = if answer.is_chunked() { unchunk(&mut received) } else { received };
    answer
}

/// Sends these very bytes, and reads until the other side closes.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut received = Vec::new();
    let talk = async {
        let mut socket = TcpStream::connect(to).await.expect("connect");
        // the other side may close before it has read everything: its answer counts all the same
        let _ = socket.write_all(bytes).await;
        let _ = socket.read_to_end(&mut received).await;
    };
    timeout(PATIENCE, talk).await.expect("an answer in time");
    received
}

/// Takes all whole chunks out of `bytes`.
pub fn unchunk(bytes: &mut Vec<u8>) -> Vec<u8> {
    let mut plain = Vec::new();
    while let Some(line) = bytes.windows(2).position(|two| two == b"\r\n") {
        let digits = std::str::from_utf8(&bytes[..line]).expect("a chunk's length");
        let length = usize::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("no chunk's length: {digits:?}"));
        if bytes.len() < line + 2 + length + 2 {
            break;
        }
        assert_eq!(&bytes[line + 2 + length..line + 4 + length], b"\r\n", "a chunk ends where it says");
        plain.extend_from_slice(&bytes[line + 2..line + 2 + length]);
        bytes.drain(..line + 4 + length);
    }
    plain
}
