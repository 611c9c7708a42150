//! A client that has stopped reading while its stream was trimmed.

use super::daemon_on;
use crate::support::daemon::stream_path;
use crate::support::redis::{append, stream_key};
use crate::support::{Redis, Stream, narrow, numbers};
use redis::{Pipeline, Value};
use std::ops::Range;

/// Entries that the stream keeps.
const KEPT: u64 = 500;

/// Appends events of 1 KB each to a stream that keeps the newest of them, no faster than this reader is given them.
async fn append_trimmed(server: &Redis, job: &str, range: Range<u64>, reader: &mut Stream) {
    let (mut rows, line) = (server.connect().await, "x".repeat(1000));
    for first in range.clone().step_by(100) {
        let some = first..range.end.min(first + 100);
        let mut all = Pipeline::new();
        for number in some.clone() {
            let add = all.cmd("XADD").arg(stream_key(job)).arg("MAXLEN").arg(KEPT).arg("*");
            add.arg("type").arg("x").arg("payload").arg(format!("{{\"n\":{number},\"line\":\"{line}\"}}"));
        }
        all.query_async::<Value>(&mut rows).await.expect("XADD");
        assert_eq!(numbers(&reader.take(some.clone().count()).await), Vec::from_iter(some));
    }
}

#[tokio::test]
async fn a_client_far_behind_a_trimmed_stream_gets_one_reset_and_then_all_that_is_there() {
    const LAST: u64 = 20_000;
    let server = Redis::with("appendonly no").await;
    // nobody is closed for reading slowly, and the ring does not stand in for the stream
    let daemon = daemon_on(&server.url(), &[("hub.ring_events", "50"), ("stream.write_timeout", "10m")]).await;
    append(&mut server.connect().await, "job", [0]).await;
    let mut stopped = Vec::new();
    // one is served by a delivery thread, one by actix
    for version in ["1.1", "1.0"] {
        let request = format!("GET {} HTTP/{version}\r\nHost: localhost\r\n\r\n", stream_path("job"));
        let mut stream = Stream::on(narrow(daemon.http, request.as_bytes()).await).await.expect("an answer");
        assert_eq!(stream.event().await.number(), 0);
        stopped.push(stream);
    }
    let mut reader = daemon.stream("job").await;
    assert_eq!(reader.event().await.number(), 0);
    append_trimmed(&server, "job", 1..LAST + 1, &mut reader).await;
    // each has what the sockets between had taken in, then a loss, and then what the stream still holds
    for stream in &mut stopped {
        let mut before = vec![0];
        let reset = loop {
            let event = stream.event().await;
            if event.is("stream.reset") {
                break event;
            }
            before.push(event.number());
        };
        assert_eq!(reset.json()["reason"], "trimmed", "{reset:?}");
        assert_eq!(before, Vec::from_iter(0..before.len() as u64));
        assert_eq!(numbers(&stream.take(KEPT as usize).await), Vec::from_iter(LAST + 1 - KEPT..LAST + 1));
    }
    append(&mut server.connect().await, "job", [LAST + 1]).await;
    for stream in &mut stopped {
        assert_eq!(stream.event().await.number(), LAST + 1, "it goes on, and no reset follows");
    }
}
