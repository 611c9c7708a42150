//! The server of a store dies, and comes back.

use crate::support::daemon::stream_path;
use crate::support::store::Server;
use crate::support::{Stream, eventually, numbers};
use futures_util::future::join_all;

pub async fn a_server_that_dies_and_comes_back_is_told_once_and_loses_nothing<S: Server>() {
    let mut store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.append("job", 0..10).await;
    let mut stream = daemon.stream("job").await;
    let seen = stream.take(10).await;
    for round in 0..2 {
        match round {
            0 => store.crash().await,
            _ => store.shut_down().await,
        }
        let error = stream.event().await;
        assert!(error.is("stream.error"), "{error:?}");
        assert_eq!(error.json()["retryable"], true, "{error:?}");
        // a new stream is answered, told, and closed or kept
        let mut other = Stream::open(daemon.http, &stream_path("another"), &[]).await;
        assert_eq!(other.head.status, 200);
        assert!(other.event().await.is("stream.error"));
        store.come_back().await;
        let first = 10 + 5 * round;
        store.append("job", first..first + 5).await;
        assert_eq!(numbers(&stream.take(5).await), Vec::from_iter(first..first + 5));
    }
    let mut back = daemon.stream_after("job", seen[4].cursor()).await;
    assert_eq!(numbers(&back.take(15).await), Vec::from_iter(5..20));
}

pub async fn a_daemon_starts_without_its_server_and_comes_up_when_that_comes<S: Server>() {
    let mut store = S::start().await;
    store.append("job", 0..3).await;
    store.shut_down().await;
    let daemon = store.daemon(&[]).await;
    let down = eventually("the outage to be said", async || {
        Some(daemon.ask_admin("/readyz").await).filter(|answer| answer.json()["code"] == "source.unreachable")
    })
    .await;
    assert_eq!((down.status, &down.json()["status"]), (200, &"source_down".into()), "streams are held here");
    let mut early = Stream::open(daemon.http, &stream_path("job"), &[]).await;
    assert_eq!(early.head.status, 200);
    let error = early.event().await;
    assert_eq!((&error.json()["code"], &error.json()["retryable"]), (&"source.unreachable".into(), &true.into()));
    store.come_back().await;
    eventually("to be ready", async || (daemon.ask_admin("/readyz").await.json()["status"] == "ready").then_some(()))
        .await;
    assert_eq!(numbers(&daemon.stream("job").await.take(3).await), [0, 1, 2]);
}

pub async fn an_outage_is_one_warning_however_many_ask<S: Server>() {
    let mut store = S::start().await;
    let daemon = store.daemon(&[("source.ready_grace", "1ms")]).await;
    store.append("job", 0..3).await;
    daemon.stream("job").await.take(3).await;
    store.shut_down().await;
    for answer in join_all((0..50).map(|_| daemon.get("/runner-jobs/job/events"))).await {
        assert_eq!((answer.status, answer.header("Retry-After").is_some()), (503, true), "{answer:?}");
    }
    eventually("not to be ready after the grace", async || {
        (daemon.ask_admin("/readyz").await.status == 503).then_some(())
    })
    .await;
    daemon.logs(&["WARN"]).await;
    let warnings = daemon.log().lines().filter(|line| line.contains("WARN")).count();
    // Another code, such as that of a server which is just leaving, is another incident.
    assert!((1..=3).contains(&warnings), "{warnings} warnings: {}", daemon.log());
    daemon.metric_reaches("jobcast_source_errors_total", 50.0).await;
    store.come_back().await;
    eventually("to be ready", async || (daemon.ask_admin("/readyz").await.status == 200).then_some(())).await;
}

pub async fn a_long_poll_that_waits_when_the_server_dies_is_told_of_it<S: Server>() {
    let mut store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.append("job", 0..3).await;
    let page = daemon.get("/runner-jobs/job/events").await.json();
    let poll = format!("/runner-jobs/job/events?after={}&wait=60", page["cursor"].as_str().expect("a cursor"));
    let dies = async {
        daemon.metric_reaches("jobcast_channels", 1.0).await;
        store.crash().await;
    };
    let (answer, ()) = tokio::join!(daemon.get(&poll), dies);
    assert_eq!((answer.status, answer.header("Retry-After").is_some()), (503, true), "{answer:?}");
    assert!(answer.code().starts_with("source."), "{answer:?}");
}
