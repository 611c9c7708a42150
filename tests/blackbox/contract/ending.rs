//! The end that is not the end: lines that come after the final status, and the statuses on the way there.

use crate::support::daemon::stream_path;
use crate::support::http::encode;
use crate::support::store::Store;
use crate::support::{Daemon, Message, Stream, numbers};
use futures_util::future::join_all;
use serde_json::Value;
use std::any::type_name;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Jobs that end at about the same time.
const JOBS: u64 = 100;
/// The grace of the jobs that get late lines. Whether a line came within it is measured, since a disk may take longer.
const GRACE: Duration = Duration::from_secs(6);
/// So long that all that is done within it is done, also on a machine that is busy with much else.
const LONG_GRACE: (&str, &str) = ("source.end_grace", "20s");

/// Takes the streams of a job to their end, which must come after all of its events, if they were written in time.
async fn gets_all_of(streams: Vec<Stream>, job: &str, events: u64, in_time: bool) {
    for mut stream in streams {
        assert_eq!(stream.head.status, 200, "{job}");
        let seen = stream.rest().await;
        let (complete, seen) = seen.split_last().expect("an end");
        assert!(complete.is("stream.complete"), "{job}: {complete:?}");
        let seen = numbers(seen);
        assert!(seen.len() as u64 == events || !in_time, "{job}: {seen:?}");
        assert_eq!(seen, Vec::from_iter(0..seen.len() as u64), "{job}");
    }
}

/// Ends one job, and writes lines 0.1 to 1.9 s later, and more after those: in transactions of their own, in one that was open
/// before, and with the status in the transaction of the lines before it. Some watch it, others come in between. Returns true
/// if each line was there within the grace, which begins with what was written before it.
async fn ends_with_late_lines<S: Store>(store: &S, daemons: &[Daemon; 2], number: u64) -> bool {
    let job = &format!("job-{number}");
    let late = Duration::from_millis(100 + number * 1800 / (JOBS - 1));
    store.append(job, 0..2).await;
    let mut streams = Vec::new();
    streams.push(daemons[0].stream(job).await);
    let ended = Instant::now();
    if number.is_multiple_of(2) {
        store.append_and_end(job, 2..4, 0, "FAILED").await;
    } else {
        store.append(job, 2..4).await;
        store.set_status(job, "FAILED").await;
    }
    let latecomers = async {
        sleep(late / 2).await;
        join_all(daemons.iter().map(|daemon| daemon.stream(job))).await
    };
    let lines = async {
        if number.is_multiple_of(3) {
            store.append_within(job, 4..6, late).await;
        } else {
            sleep(late).await;
            store.append(job, 4..6).await;
        }
        if number.is_multiple_of(5) {
            sleep(late).await;
            store.append(job, 6..7).await;
        }
        ended.elapsed() < GRACE
    };
    let (comers, in_time) = tokio::join!(latecomers, lines);
    streams.extend(comers.into_iter().filter(|stream| in_time || stream.head.status != 204));
    gets_all_of(streams, job, if number.is_multiple_of(5) { 7 } else { 6 }, in_time).await;
    in_time
}

pub async fn late_lines_reach_who_watches_and_who_comes_late_before_stream_complete<S: Store>() {
    let store = S::start().await;
    let grace = format!("{}s", GRACE.as_secs());
    let grace = [("source.end_grace", &*grace)];
    let daemons = [store.daemon(&grace).await, store.daemon(&grace).await];
    let in_time = join_all((0..JOBS).map(|number| ends_with_late_lines(&store, &daemons, number))).await;
    assert!(in_time.contains(&true), "the disk took longer than the grace for every job");
    // Whoever comes back with the end gets a 204, however late the last line was.
    for (job, last) in [(0, "e-6"), (1, "e-5"), (5, "e-6")].into_iter().filter(|(job, _)| in_time[*job]) {
        assert_eq!(daemons[0].stream_after(&format!("job-{job}"), last).await.head.status, 204, "{job}");
    }
}

pub async fn a_job_that_ended_long_ago_is_complete_at_once_whatever_the_grace<S: Store>() {
    let store = S::start().await;
    // It makes the tables where there are none yet.
    drop(store.daemon(&[]).await);
    store.append_at("job", 0..5, Duration::from_secs(2 * 3600)).await;
    store.set_status("job", "CANCELLED").await;
    // With so long a grace nobody would ever see the end of a job that is waited for.
    let daemon = store.daemon(&[("source.end_grace", "1h")]).await;
    // As often as shows what it takes; the first is also the first statement of its kind.
    let mut took = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..11 {
        let began = Instant::now();
        seen = daemon.stream("job").await.rest().await;
        took.push(began.elapsed());
    }
    took[1..].sort();
    println!("{}: complete after {:?} at first, then {:?} (median)", type_name::<S>(), took[0], took[6]);
    assert_eq!((numbers(&seen[..5]), seen.len()), (vec![0, 1, 2, 3, 4], 6));
    assert_eq!(seen[5].json()["status"], "CANCELLED");
    assert_eq!(daemon.stream_after("job", seen[5].cursor()).await.head.status, 204);
    let polled = daemon.get("/runner-jobs/job/events").await.json();
    assert_eq!((&polled["complete"], &polled["status"]), (&Value::Bool(true), &"CANCELLED".into()));
    let mut from_now = Stream::open(daemon.http, &format!("{}?from=now", stream_path("job")), &[]).await;
    assert!(from_now.event().await.is("stream.complete"));
}

pub async fn a_poll_is_complete_when_the_grace_is_over_and_not_before<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[LONG_GRACE]).await;
    store.append("job", 0..2).await;
    store.set_status("job", "COMPLETED").await;
    let page = daemon.get("/runner-jobs/job/events").await.json();
    assert_eq!((&page["complete"], &page["status"]), (&Value::Bool(false), &"COMPLETED".into()));
    let after = page["cursor"].as_str().expect("a cursor").to_string();
    let poll = format!("/runner-jobs/job/events?wait=60&after={after}");
    let (held, ()) = tokio::join!(daemon.get(&poll), store.append("job", 2..3));
    let held = held.json();
    let after = held["cursor"].as_str().expect("a cursor");
    assert_eq!(held["events"][0]["payload"]["n"], 2);
    let end = daemon.get(&format!("/runner-jobs/job/events?wait=60&after={after}")).await.json();
    assert_eq!((&end["complete"], end["events"].as_array().map(Vec::len)), (&Value::Bool(true), Some(0)));
}

/// A stream with all that it is sent, which is delivered by a thread, or by actix: HTTP/1.0 knows no chunks.
async fn open(daemon: &Daemon, job: &str, by_actix: bool) -> Stream {
    let mut request = encode("GET", &stream_path(job), &[("Accept", "text/event-stream")], b"");
    if by_actix {
        let text = String::from_utf8(request).expect("text");
        request = text.replacen("HTTP/1.1", "HTTP/1.0", 1).into_bytes();
    }
    let mut socket = TcpStream::connect(daemon.http).await.expect("a connection");
    tokio::io::AsyncWriteExt::write_all(&mut socket, &request).await.expect("a request");
    Stream::on(socket).await.expect("an answer").with_statuses()
}

/// Statuses and events in short: `RUNNING`, `e3`, and the end as `complete FAILED`.
fn shown(message: &Message) -> String {
    let status = || message.json()["status"].as_str().expect("a status").to_string();
    match message.event.as_deref() {
        Some("stream.status") => {
            assert_eq!((&message.id, &message.json()["jobId"]), (&None, &"job".into()), "{message:?}");
            status()
        }
        Some("stream.complete") => format!("complete {}", status()),
        _ => format!("e{}", message.number()),
    }
}

pub async fn the_status_comes_first_and_whenever_it_changes_on_both_ways_of_delivery<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[LONG_GRACE]).await;
    store.set_status("job", "QUEUED").await;
    let mut streams = [open(&daemon, "job", false).await, open(&daemon, "job", true).await];
    let see = async |streams: &mut [Stream], expected: &[&str]| {
        for stream in streams.iter_mut() {
            for expected in expected {
                assert_eq!(shown(&stream.event().await), *expected);
            }
        }
    };
    see(&mut streams, &["QUEUED"]).await;
    store.set_status("job", "RUNNING").await;
    see(&mut streams, &["RUNNING"]).await;
    store.append("job", 0..2).await;
    see(&mut streams, &["e0", "e1"]).await;
    // Whoever comes later is told the newest before the first event, and nothing of the past.
    let mut late = [open(&daemon, "job", false).await, open(&daemon, "job", true).await];
    for stream in &mut late {
        let seen = see_up_to(stream, "e1").await;
        assert!(seen.ends_with(&["RUNNING", "e0", "e1"].map(String::from)), "{seen:?}");
        assert!(!seen.contains(&"QUEUED".into()), "{seen:?}");
    }
    store.set_status("job", "FAILED").await;
    see(&mut streams, &["FAILED"]).await;
    see(&mut late, &["FAILED"]).await;
    store.append("job", 2..3).await;
    let latest = see_up_to(&mut open(&daemon, "job", false).await, "complete FAILED").await;
    assert_eq!(latest[0], "FAILED", "{latest:?}");
    assert!(!latest.contains(&"RUNNING".into()), "{latest:?}");
    see(&mut streams, &["e2", "complete FAILED"]).await;
    see(&mut late, &["e2", "complete FAILED"]).await;
    // One that has ended is all history.
    see(&mut [open(&daemon, "job", true).await], &["FAILED", "e0", "e1", "e2", "complete FAILED"]).await;
}

async fn see_up_to(stream: &mut Stream, last: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while seen.last().is_none_or(|shown| shown != last) {
        seen.push(shown(&stream.event().await));
    }
    seen
}

pub async fn a_job_whose_status_is_taken_back_within_the_grace_has_not_ended<S: Store>() {
    let store = S::start().await;
    // Even a busy machine takes a status back in that time.
    let daemon = store.daemon(&[("source.end_grace", "10s")]).await;
    store.append("job", 0..1).await;
    store.set_status("job", "RUNNING").await;
    let mut stream = daemon.stream("job").await.with_statuses();
    see_up_to(&mut stream, "e0").await;
    for round in 1..3 {
        store.set_status("job", "COMPLETED").await;
        assert_eq!(shown(&stream.event().await), "COMPLETED");
        store.set_status("job", "RUNNING").await;
        assert_eq!(shown(&stream.event().await), "RUNNING");
        if round == 2 {
            // Longer than the grace of both: an end would come before the event.
            sleep(Duration::from_millis(10_500)).await;
        }
        store.append("job", round..round + 1).await;
        assert_eq!(shown(&stream.event().await), format!("e{round}"));
    }
    store.set_status("job", "COMPLETED").await;
    assert_eq!(shown(&stream.event().await), "COMPLETED");
    assert_eq!(shown(&stream.event().await), "complete COMPLETED");
}
