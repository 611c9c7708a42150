//! SIGTERM: say so, let everybody go in peace, and be gone in time.

use crate::support::daemon::{stream_path, write_rows};
use crate::support::http::request;
use crate::support::{Daemon, Stream, eventually, numbers};
use futures_util::future::join_all;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn leaving_tells_each_stream_when_to_come_back_and_loses_nothing() {
    // All that is to be seen of the grace is seen in that time, also on a busy machine.
    let mut daemon = Daemon::with(&[("shutdown.grace", "20s"), ("shutdown.drain", "4s")]).await;
    daemon.write("job", 0..5).await;
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
    let mut streams = join_all((0..30).map(|_| daemon.stream("job"))).await;
    let mut old = TcpStream::connect(daemon.http).await.expect("connect");
    old.write_all(format!("GET {} HTTP/1.0\r\n\r\n", stream_path("job")).as_bytes()).await.expect("ask");
    streams.push(Stream::on(old).await.expect("an answer"));
    daemon.has_subscribers(31).await;

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

#[tokio::test]
async fn a_long_poll_is_answered_before_the_listener_goes_though_no_stream_is_open() {
    let mut daemon = Daemon::with(&[("shutdown.grace", "0s"), ("shutdown.drain", "10m")]).await;
    daemon.write("job", 0..1).await;
    let first = daemon.get("/runner-jobs/job/events").await.json();
    let path = format!("/runner-jobs/job/events?wait=60&after={}", first["cursor"].as_str().expect("a cursor"));
    let began = Instant::now();
    let (answer, ()) = tokio::join!(daemon.get(&path), async {
        daemon.metric_is("jobcast_channels", 1.0).await;
        daemon.signal("TERM");
    });
    assert_eq!((answer.status, &answer.json()["events"]), (200, &json!([])));
    assert_eq!(answer.json()["cursor"], first["cursor"]);
    assert_eq!(answer.header("Connection"), Some("close"));
    assert!(daemon.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(30), "it waited for its own time: {:?}", began.elapsed());
}

#[tokio::test]
async fn sigquit_is_a_request_to_leave_like_sigterm() {
    let mut daemon = Daemon::with(&[("shutdown.grace", "0s"), ("shutdown.drain", "2s")]).await;
    daemon.write("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    stream.event().await;
    daemon.signal("QUIT");
    assert_eq!(stream.rest().await[0].json()["reason"], "drain");
    assert!(daemon.exit().await.success());
}

#[tokio::test]
async fn five_thousand_streams_leave_within_the_drain_spread_over_it_and_lose_nothing_that_is_written_meanwhile() {
    const STREAMS: usize = 5000;
    const DRAIN: Duration = Duration::from_secs(10);
    let _alone = crate::support::alone();
    rlimit::increase_nofile_limit(2 * STREAMS as u64).expect("open files");
    let mut daemon = Daemon::with(&[("shutdown.grace", "0s"), ("shutdown.drain", "10s")]).await;
    daemon.write("job", 0..3).await;
    let (mut streams, mut firsts) = (Vec::new(), Vec::new());
    while streams.len() < STREAMS {
        let mut more = join_all((0..250).map(|_| daemon.stream("job"))).await;
        let seen = join_all(more.iter_mut().map(|stream| stream.take(3))).await;
        firsts.extend(seen.iter().map(|seen| seen[2].cursor().to_string()));
        streams.append(&mut more);
    }
    daemon.has_subscribers(STREAMS).await;
    let mut rows = daemon.rows().await;
    let began = Instant::now();
    daemon.signal("TERM");
    // The runner knows nothing of it, and goes on writing until the last of them has left.
    let (written, is_over) = (AtomicU64::new(3), AtomicBool::new(false));
    let runner = async {
        while !is_over.load(Ordering::Relaxed) {
            let next = written.fetch_add(1, Ordering::Relaxed);
            write_rows(&mut rows, "job", [next]).await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    let leaving = async {
        let ends = join_all(streams.iter_mut().map(|stream| async {
            let rest = stream.rest().await;
            (began.elapsed(), rest)
        }))
        .await;
        is_over.store(true, Ordering::Relaxed);
        (ends, began.elapsed())
    };
    let ((ends, took), ()) = tokio::join!(leaving, runner);
    let written = written.into_inner();
    assert!(daemon.exit().await.success());
    // Reading the ends of so many takes a busy machine a while.
    assert!(took < DRAIN * 3, "{took:?}");
    let (mut waits, mut tenths, mut lasts) = (BTreeSet::new(), [0; 10], BTreeSet::new());
    for (at, rest) in &ends {
        let (bye, events) = rest.split_last().expect("a farewell");
        assert!(bye.is("stream.bye"), "{bye:?}");
        assert_eq!(numbers(events), Vec::from_iter(3..3 + events.len() as u64));
        lasts.insert(events.len());
        waits.insert(bye.json()["retryInMs"].as_u64().expect("a wait"));
        tenths[((at.as_secs_f64() / took.as_secs_f64() * 10.0) as usize).min(9)] += 1;
    }
    assert!(waits.len() > STREAMS / 10, "they would come back together: {} waits", waits.len());
    assert!(tenths.iter().all(|streams| *streams < STREAMS / 4), "closed together: {tenths:?}");
    assert!(lasts.len() > 2, "they left at few places: {lasts:?}");
    drop(streams);

    daemon.restart().await;
    write_rows(&mut rows, "job", written..written + 2).await;
    // Each comes back from its own last event, among those who left early and those who left late.
    let sample = ends.iter().zip(&firsts).step_by(STREAMS / 250);
    let resumed = join_all(sample.map(|((_, rest), first)| async {
        let (_, events) = rest.split_last().expect("a farewell");
        let last = events.last().map_or(first.as_str(), |event| event.cursor());
        let next = 3 + events.len() as u64;
        let seen = daemon.stream_after("job", last).await.take((written + 2 - next) as usize).await;
        assert_eq!(numbers(&seen), Vec::from_iter(next..written + 2));
    }))
    .await;
    assert_eq!(resumed.len(), 250);
}
