//! One tail, many readers: everything in one order, soon, whoever writes and however slowly one reads.

use crate::support::daemon::{numbered, stream_path};
use crate::support::store::Store;
use crate::support::{Daemon, Stream, eventually, narrow, numbers, write_big};
use futures_util::future::join_all;
use serde_json::Value;

pub async fn history_comes_first_then_what_is_live_then_the_end<S: Store>() {
    let store = S::start().await;
    is_tailed(&store.daemon(&[]).await, &store).await;
}

/// Follows a job from its first events to its end, and resumes it from each of the live ones.
pub async fn is_tailed(daemon: &Daemon, store: &impl Store) {
    store.set_status("job", "RUNNING").await;
    store.append("job", 0..10).await;
    let mut stream = daemon.stream("job").await;
    assert_eq!(numbers(&stream.take(10).await), Vec::from_iter(0..10));
    store.append("job", 10..30).await;
    let live = stream.take(20).await;
    assert_eq!(numbers(&live), Vec::from_iter(10..30));
    for (index, message) in live.iter().enumerate() {
        let mut again = daemon.stream_after("job", message.cursor()).await;
        assert_eq!(numbers(&again.take(19 - index).await), Vec::from_iter(11 + index as u64..30));
    }
    let mut by_id = daemon.stream_after("job", "e-25").await;
    assert_eq!(numbers(&by_id.take(4).await), [26, 27, 28, 29]);
    for no_job in ["nosuch", "%7B%7D", "*"] {
        assert_eq!(daemon.get(&format!("/runner-jobs/{no_job}/events")).await.status, 404, "{no_job}");
    }
    store.set_status("job", "FAILED").await;
    let end = stream.event().await;
    assert!(end.is("stream.complete") && end.json()["status"] == "FAILED", "{end:?}");
    assert_eq!(daemon.stream_after("job", end.cursor()).await.head.status, 204);
}

pub async fn each_watched_job_gets_its_own_events_and_no_others<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    let jobs: Vec<String> = (0..10).map(|number| format!("job-{number}")).collect();
    join_all(jobs.iter().map(|job| store.append(job, 0..1))).await;
    let mut streams = join_all(jobs.iter().map(|job| daemon.stream(job))).await;
    for round in 1..6 {
        join_all(jobs.iter().map(|job| store.append(job, round..round + 1))).await;
    }
    for (stream, job) in streams.iter_mut().zip(&jobs) {
        let seen = stream.take(6).await;
        assert_eq!(numbers(&seen), Vec::from_iter(0..6), "{job}");
        assert!(seen.iter().all(|message| message.json()["jobId"] == **job), "{job}: {seen:?}");
        store.set_status(job, "COMPLETED").await;
        let rest = stream.rest().await;
        assert!(rest.len() == 1 && rest[0].json()["jobId"] == **job, "{job}: {rest:?}");
    }
}

pub async fn one_job_tells_its_status_its_newest_event_and_its_watchers<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.set_status("job", "RUNNING").await;
    store.append("job", 0..3).await;
    let mut streams = [daemon.stream("job").await, daemon.stream("job").await];
    for stream in &mut streams {
        assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
    }
    let told = has_watchers(&daemon, 2).await;
    let listed = daemon.get("/runner-jobs").await.json()["jobs"][0].clone();
    for field in ["jobId", "status", "lastEventAt"] {
        assert_eq!(told[field], listed[field], "{told} {listed}");
    }
    assert!(
        told["status"] == "RUNNING" && told["lastEventAt"].as_str().is_some_and(|at| at.starts_with("20")),
        "{told}"
    );
    assert_eq!(daemon.get("/runner-jobs/nosuch").await.code(), "job.not_found");
}

/// Waits until so many streams of the job are live, and returns the job as it is described then.
async fn has_watchers(daemon: &Daemon, count: usize) -> Value {
    eventually(&format!("{count} streams to be live"), async || {
        Some(daemon.get("/runner-jobs/job").await.json()).filter(|told| told["watchers"] == count)
    })
    .await
}

pub async fn all_who_watch_a_job_see_one_order_whoever_writes<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[]).await;
    store.append("job", 0..1).await;
    let mut streams = join_all((0..8).map(|_| daemon.stream("job"))).await;
    for stream in &mut streams {
        stream.take(1).await;
    }
    // History has an order of its own.
    has_watchers(&daemon, 8).await;
    let write = async |writer: u64| {
        for number in 1..21 {
            let number = writer * 100 + number;
            store.append("job", number..number + 1).await;
        }
    };
    join_all((0..5).map(write)).await;
    let mut orders = Vec::new();
    for stream in &mut streams {
        orders.push(numbers(&stream.take(100).await));
    }
    let mut all = orders[0].clone();
    all.sort();
    assert_eq!(all, Vec::from_iter((0..5).flat_map(|writer| writer * 100 + 1..writer * 100 + 21)));
    for order in &orders {
        assert_eq!(order, &orders[0]);
    }
}

/// The poll would come too late for the test.
pub async fn rows_that_others_write_arrive_without_waiting_for_the_poll<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[("source.poll_interval", "10m")]).await;
    store.append("job", 0..1).await;
    let mut stream = daemon.stream("job").await;
    stream.take(1).await;
    for number in 1..50 {
        store.append("job", number..number + 1).await;
        assert_eq!(stream.event().await.number(), number);
    }
}

pub async fn subscribers_that_the_ring_overtakes_are_fed_from_the_source_and_lose_nothing<S: Store>() {
    let store = S::start().await;
    // nobody is closed for reading slowly, however slowly the store takes the events in
    let settings = [("hub.ring_events", "50"), ("stream.heartbeat", "50ms"), ("stream.write_timeout", "10m")];
    let daemon = store.daemon(&settings).await;
    let events = 3000;
    daemon.send("POST", "/runner-jobs/job/events", &numbered(0)).await;
    let mut slow = Vec::new();
    for version in ["1.1", "1.1", "1.0"] {
        let request = format!("GET {} HTTP/{version}\r\nHost: localhost\r\n\r\n", stream_path("job"));
        let mut stream = Stream::on(narrow(daemon.http, request.as_bytes()).await).await.expect("an answer");
        assert_eq!(stream.event().await.number(), 0);
        slow.push(stream);
    }
    write_big(&daemon, "job", 1..events).await;
    // all of it was written before they read on
    for stream in &mut slow {
        assert_eq!(numbers(&stream.take(events as usize - 1).await), Vec::from_iter(1..events));
    }
    daemon.metric_reaches("jobcast_subscriber_overtaken_total", 3.0).await;
    store.set_status("job", "COMPLETED").await;
    for stream in &mut slow {
        assert!(stream.event().await.is("stream.complete"));
        assert_eq!(stream.next().await, None);
    }
}
