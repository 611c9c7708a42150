//! One stream that holds many jobs.

use super::daemon_on;
use crate::support::redis::ask;
use crate::support::{Daemon, Redis, Stream, numbers};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use serde_json::json;

pub const SHARED: [(&str, &str); 3] =
    [("source.redis.events_key", "queue"), ("source.redis.job_id_field", "job"), ("source.redis.payload_kind", "json")];

/// Adds numbered entries of these jobs in turn.
pub async fn add(to: &mut MultiplexedConnection, jobs: &[String], numbers: std::ops::Range<u64>) {
    let mut all = Pipeline::new();
    for number in numbers {
        for job in jobs {
            let payload = format!("{{\"n\":{number}}}");
            all.cmd("XADD").arg("queue").arg(&["*", "job", job, "type", "x", "payload", &payload]);
        }
    }
    all.query_async::<Value>(to).await.expect("XADD");
}

fn jobs(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("job-{number}")).collect()
}

async fn xrange_calls(server: &Redis) -> u64 {
    let said: String = server.ask(&["INFO", "commandstats"]).await;
    let of_it = said.lines().find_map(|line| line.strip_prefix("cmdstat_xrange:calls="));
    of_it.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_shared_stream_is_read_once_however_many_jobs_are_watched() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let daemon = daemon_on(&server.url(), &SHARED).await;
    let all = jobs(200);
    add(&mut rows, &all, 0..2).await;
    let mut streams = Vec::new();
    for job in &all {
        streams.push(daemon.stream(job).await);
    }
    for stream in &mut streams {
        assert_eq!(numbers(&stream.take(2).await), [0, 1]);
    }
    let before = xrange_calls(&server).await;
    for number in 2..12 {
        add(&mut rows, &all, number..number + 1).await;
        for stream in &mut streams {
            assert_eq!(stream.event().await.number(), number);
        }
    }
    let calls = xrange_calls(&server).await - before;
    assert!(calls < 400, "{calls} reads for 2,000 entries of 200 watched jobs");
    // a bare id of an event, a cursor, the list
    let page = daemon.get("/runner-jobs/job-7/events").await.json();
    let (id, cursor) = (page["events"][3]["id"].as_str().expect("an id"), page["cursor"].as_str().expect("a cursor"));
    assert_eq!(daemon.stream_after("job-7", id).await.event().await.number(), 4);
    let mut live = daemon.stream_after("job-7", cursor).await;
    add(&mut rows, &all[7..8], 12..13).await;
    assert_eq!(live.event().await.number(), 12);
    let listed = daemon.get("/runner-jobs?limit=1").await.json();
    assert_eq!(listed["jobs"][0]["jobId"], "job-7", "{listed}");
    assert_eq!(daemon.get("/runner-jobs/unknown/events").await.status, 404);
}

/// Reads up to the event with this number; returns the reset's reason, if there is one.
async fn reason(mut stream: Stream, last: u64) -> (Option<String>, u64) {
    let first = stream.event().await;
    let reason = first.is("stream.reset").then(|| first.json()["reason"].as_str().expect("a reason").to_string());
    let begin = if reason.is_some() { stream.event().await.number() } else { first.number() };
    let mut number = begin;
    while number != last {
        number = stream.event().await.number();
    }
    (reason, begin)
}

#[tokio::test]
async fn what_a_shared_stream_lost_is_said_to_the_jobs_that_lost_it() {
    let server = Redis::start().await;
    let mut rows = server.connect().await;
    let daemon = daemon_on(&server.url(), &SHARED).await;
    let (busy, quiet) = (["busy".to_string()], ["quiet".to_string()]);
    add(&mut rows, &quiet, 0..2).await;
    add(&mut rows, &busy, 0..10).await;
    add(&mut rows, &quiet, 2..4).await;
    add(&mut rows, &busy, 10..20).await;
    let cursor = async |daemon: &Daemon, job: &str, at: usize| {
        daemon.stream(job).await.take(at + 1).await[at].cursor().to_string()
    };
    let (early, late) = (cursor(&daemon, "busy", 4).await, cursor(&daemon, "busy", 12).await);
    let of_quiet = cursor(&daemon, "quiet", 3).await;
    ask::<()>(&mut rows, &["XTRIM", "queue", "MAXLEN", "8"]).await;
    // one that held them still gives them
    assert_eq!(reason(daemon.stream_after("busy", &early).await, 19).await, (None, 5));
    // one that never had them says so, to whom it concerns
    let other = daemon_on(&server.url(), &SHARED).await;
    assert_eq!(reason(other.stream_after("busy", &early).await, 19).await, (Some("trimmed".into()), 12));
    assert_eq!(reason(other.stream_after("busy", &late).await, 19).await, (None, 13));
    // all watchers are told when the stream is gone, once each
    let mut watchers = [daemon.stream_after("quiet", &of_quiet).await, daemon.stream_after("busy", &late).await];
    watchers[1].take(7).await;
    add(&mut rows, &quiet, 4..5).await;
    assert_eq!(watchers[0].event().await.number(), 4);
    ask::<()>(&mut rows, &["DEL", "queue"]).await;
    for watcher in &mut watchers {
        let reset = watcher.event().await;
        assert_eq!((reset.is("stream.reset"), &reset.json()["reason"]), (true, &json!("expired")), "{reset:?}");
    }
}
