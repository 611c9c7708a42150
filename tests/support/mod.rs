//! Tools of the black-box tests: the built binary as a user starts it, real servers, and a client that sees every byte.

pub mod address;
pub mod daemon;
pub mod flap;
pub mod foreign;
pub mod http;
pub mod http2;
pub mod manager;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod sse;
pub mod store;
pub mod tls;
pub mod token;
pub mod web;

pub use daemon::Daemon;
pub use foreign::ForeignFile;
pub use http::Answer;
pub use manager::Manager;
pub use postgres::{Pooler, Postgres};
pub use redis::{Cluster, Redis, Sentinel};
pub use sse::{Message, Stream};
pub use token::Signer;
pub use web::Web;

use serde_json::{Value, json};
use std::fs::File;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

/// Longer than anything that is waited for should ever take, also on a machine that is busy with much else; what is late by so
/// much has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again and again until `found` finds something.
pub async fn eventually<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for this in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The numbers that [`Daemon::write`] put into the payloads.
pub fn numbers(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(Message::number).collect()
}

/// Waits until no other heavy test runs on this machine's checkout, in whichever process, and keeps others waiting until
/// it is dropped. For tests that have a dozen writers and a server of their own: two at a time, neither gets anywhere.
pub fn alone() -> File {
    let file = File::create(concat!(env!("CARGO_TARGET_TMPDIR"), "/heavy.lock")).expect("a lock file");
    file.lock().expect("a lock");
    file
}

/// A socket whose kernel buffers little, so that the other side soon feels that nobody reads; it has sent a request.
pub async fn narrow(to: SocketAddr, request: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut socket = socket.connect(to).await.expect("connect");
    socket.write_all(request).await.expect("ask");
    socket
}

/// Appends by ingest events of 2 KB each, so that some hundred of them fill every buffer between.
pub async fn write_big(daemon: &Daemon, job: &str, numbers: Range<u64>) {
    write_sized(daemon, job, numbers, 2000).await;
}

/// Appends by ingest events with so many bytes of ballast each.
pub async fn write_sized(daemon: &Daemon, job: &str, numbers: Range<u64>, ballast: usize) {
    let at_once = 200_000 / ballast;
    for first in numbers.clone().step_by(at_once) {
        let events: Vec<Value> = (first..numbers.end.min(first + at_once as u64))
            .map(|number| {
                let mut event = daemon::numbered(number);
                event["payload"]["line"] = "x".repeat(ballast).into();
                event
            })
            .collect();
        assert_eq!(daemon.send("POST", &format!("/runner-jobs/{job}/events"), &json!(events)).await.status, 201);
    }
}
