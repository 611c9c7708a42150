//! SIGTERM: say so, let everybody go in peace, and be gone in time.

use crate::support::daemon::stream_path;
use crate::support::http::request;
use crate::support::{Daemon, Stream, eventually, numbers};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn leaving_tells_each_stream_when_to_come_back_and_loses_nothing() {
    let mut daemon = Daemon::with(&[("shutdown.grace", "10s"), ("shutdown.drain", "4s")]).await;
    daemon.write("job", 0..5).await;
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
    let mut streams = join_all((0..30).map(|_| daemon.stream("job"))).await;
    let mut old = TcpStream::connect(daemon.http).await.expect("connect");
    old.write_all(format!("GET {} HTTP/1.0\r\n\r\n", stream_path("job")).as_bytes()).await.expect("ask");
    streams.push(Stream::on(old).await.expect("an answer"));
    daemon.has_subscribers(31).await;

    let began = Instant::now();
    daemon.signal("TERM");
    let unready = eventually("readiness to go", async || {
        let answer = daemon.ask_admin("/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(unready.json()["code"], "server.draining");
    assert_eq!(daemon.ask_admin("/healthz").await.status, 200);
    // still served: a load balancer may not have noticed
    daemon.write("job", 5..6).await;
    let mut late = daemon.stream("job").await;
    assert_eq!(numbers(&late.take(6).await), [0, 1, 2, 3, 4, 5]);
    assert!(began.elapsed() < Duration::from_secs(10), "too slow a machine to see the grace");

    // once it drains, new ones are turned away kindly
    let http = daemon.http;
    let turned_away = async {
        eventually("the drain", async || {
            let mut stream = Stream::try_open(http, &stream_path("job"), &[]).await.ok()?;
            let first = stream.event().await;
            first.is("stream.bye").then_some(first)
        })
        .await;
        request(http, "GET", &stream_path("job"), &[("Accept", "application/json")], b"").await
    };
    let ends = join_all(streams.iter_mut().chain([&mut late]).map(|stream| async { stream.rest().await }));
    let (plain, ends) = tokio::join!(turned_away, ends);
    assert_eq!((plain.status, plain.code().as_str()), (503, "server.draining"));
    let mut waits = BTreeSet::new();
    for rest in &ends {
        let bye = rest.last().expect("a farewell");
        assert!(bye.is("stream.bye"), "{bye:?}");
        assert_eq!(bye.json()["reason"], "drain");
        assert_eq!(bye.retry, bye.json()["retryInMs"].as_u64());
        waits.insert(bye.retry);
    }
    assert!(waits.len() > 20, "they would all come back at once: {waits:?}");
    assert!(daemon.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(10 + 4 + 10), "{:?}", began.elapsed());

    daemon.restart().await;
    let last = ends[0][ends[0].len() - 2].cursor().to_string();
    daemon.write("job", 6..8).await;
    assert_eq!(numbers(&daemon.stream_after("job", &last).await.take(2).await), [6, 7]);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_with_success() {
    let mut daemon = Daemon::with(&[("shutdown.grace", "10m"), ("shutdown.drain", "10m")]).await;
    daemon.write("job", 0..1).await;
    let _stream = daemon.stream("job").await;
    daemon.signal("INT");
    eventually("readiness to go", async || (daemon.ask_admin("/readyz").await.status == 503).then_some(())).await;
    daemon.signal("TERM");
    assert!(daemon.exit().await.success());
}

#[tokio::test]
async fn a_daemon_that_nobody_watches_leaves_without_waiting_for_the_drain() {
    let mut daemon = Daemon::with(&[("shutdown.grace", "0s"), ("shutdown.drain", "10m")]).await;
    daemon.signal("TERM");
    assert!(daemon.exit().await.success());
}

#[tokio::test]
async fn an_old_stream_is_told_to_come_back_and_loses_nothing() {
    let daemon = Daemon::with(&[("stream.max_age", "1s")]).await;
    daemon.write("job", 0..3).await;
    let mut stream = daemon.stream("job").await;
    let rest = stream.rest().await;
    assert_eq!(numbers(&rest[..3]), [0, 1, 2]);
    assert_eq!(rest[3].json()["reason"], "age");
    daemon.write("job", 3..4).await;
    assert_eq!(daemon.stream_after("job", rest[2].cursor()).await.event().await.number(), 3);
}
