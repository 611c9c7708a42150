//! Redis Streams: one server, Sentinel, Cluster.

mod access;
mod ends;
mod entries;
mod ingest;
mod lost;
mod many;
mod one_reader;
mod scale;
mod scopes;
mod shared;
mod torture;
mod trimmed;

use super::contract::reading::is_tailed;
use crate::support::daemon::{numbered, run};
use crate::support::redis::ask;
use crate::support::{Cluster, Daemon, Redis, Sentinel, numbers};
use serde_json::json;

/// Everything that docs/redis.md says a user needs who only reads.
const READER: [&str; 11] = [
    "ACL",
    "SETUSER",
    "reader",
    "on",
    ">hunter2",
    "~runner-jobs:*",
    "+xrange",
    "+xrevrange",
    "+xinfo|stream",
    "+hget",
    "+exists",
];
const HEARS: [&str; 4] = ["ACL", "SETUSER", "reader", "+client|tracking"];

async fn daemon_on(url: &str, more: &[(&str, &str)]) -> Daemon {
    Daemon::on("redis", url, &[&[("source.retry_max", "300ms")], more].concat()).await
}

#[tokio::test]
async fn a_stream_is_tailed_with_no_more_than_the_right_to_read_it() {
    for hears in [true, false] {
        let server = Redis::start().await;
        server.ask::<()>(&READER).await;
        if hears {
            server.ask::<()>(&HEARS).await;
        }
        let url = server.url().replace("//", "//reader:hunter2@");
        let daemon = daemon_on(&url, &[]).await;
        is_tailed(&daemon, &server).await;
        daemon.logs_times("CLIENT TRACKING", usize::from(!hears)).await;
        assert!(!daemon.log().contains("hunter2"));
    }
}

#[tokio::test]
async fn without_hashes_a_job_begins_with_its_first_event_and_ends_with_a_final_one() {
    let server = Redis::start().await;
    let finals = [
        ("source.redis.events_key", "ci/$job_id"),
        ("source.redis.job_key", ""),
        ("source.redis.final_types.completed", "job.done"),
        ("source.redis.final_types.cancelled", "job.stopped, job.killed"),
    ];
    let daemon = daemon_on(&format!("{}/3", server.url()), &finals).await;
    assert_eq!(daemon.get("/runner-jobs/a/events").await.status, 404);
    let mut rows = server.connect().await;
    ask::<()>(&mut rows, &["SELECT", "3"]).await;
    for (job, last, status) in [("a", "job.done", "COMPLETED"), ("b", "job.killed", "CANCELLED")] {
        let key = format!("ci/{job}");
        // no id, no payload, a time in milliseconds
        ask::<()>(&mut rows, &["XADD", &key, "7-1", "type", "begin", "timestamp", "1795694400500"]).await;
        let mut stream = daemon.stream(job).await;
        let first = stream.event().await.json();
        let (id, time) = (&first["id"], &first["timestamp"]);
        assert_eq!((id, time), (&"7-1".into(), &"2026-11-26T12:00:00.500Z".into()), "{first}");
        assert_eq!(first["payload"], json!({}));
        ask::<()>(&mut rows, &["XADD", &key, "*", "type", last]).await;
        assert_eq!(stream.event().await.event.as_deref(), Some(last));
        assert_eq!(stream.event().await.json()["status"], status);
        // one that comes after the end is told the same
        let mut late = daemon.stream(job).await;
        assert_eq!(late.rest().await.last().expect("an end").json()["status"], status);
    }
    let jobs = daemon.get("/runner-jobs?status=CANCELLED").await.json();
    assert_eq!(jobs["jobs"][0]["jobId"], "b", "{jobs}");
}

#[tokio::test]
async fn events_may_be_sent_in_to_a_server_to_sentinel_and_to_a_cluster() {
    let (server, sentinel, cluster) = (Redis::start().await, Sentinel::start().await, Cluster::start().await);
    for url in [server.url(), sentinel.url(), cluster.url()] {
        let daemon = daemon_on(&url, &[("ingest.enabled", "true")]).await;
        daemon.write("job", 0..20).await;
        let mut stream = daemon.stream("job").await;
        assert_eq!(numbers(&stream.take(20).await), Vec::from_iter(0..20));
        // a repeat is answered with what is there, also by a process that knows nothing yet
        let other = daemon_on(&url, &[("ingest.enabled", "true")]).await;
        for daemon in [&daemon, &other] {
            let again = daemon.send("POST", "/runner-jobs/job/events", &numbered(7)).await;
            assert_eq!((again.status, &again.json()["payload"]["n"]), (200, &7.into()));
            let after = again.json()["cursor"].as_str().expect("a cursor").to_string();
            assert_eq!(daemon.stream_after("job", &after).await.event().await.number(), 8);
        }
        let mixed = json!([numbered(19), numbered(20), numbered(20), numbered(21)]);
        let mixed = other.send("POST", "/runner-jobs/job/events", &mixed).await;
        assert_eq!((mixed.status, mixed.json().as_array().map(Vec::len)), (201, Some(4)));
        let live = stream.take(2).await;
        assert_eq!(numbers(&live), [20, 21]);
        assert_eq!(live[1].cursor(), mixed.json()[3]["cursor"], "a place has one name");
        // many at once, by both
        let writes = (0..40).map(|n| if n % 2 == 0 { &daemon } else { &other }.write("job", [100 + n, 200 + n]));
        futures_util::future::join_all(writes).await;
        let mut seen = numbers(&stream.take(80).await);
        seen.sort();
        assert_eq!(seen, Vec::from_iter((100..140).chain(200..240)));
        daemon.set_status("idle", "QUEUED").await;
        let jobs = daemon.get("/runner-jobs").await.json();
        let listed = |at: usize| (jobs["jobs"][at]["jobId"].clone(), jobs["jobs"][at]["status"].clone());
        assert_eq!(
            (listed(0), listed(1)),
            (("job".into(), "RUNNING".into()), ("idle".into(), "QUEUED".into())),
            "{jobs}"
        );
        daemon.set_status("job", "CANCELLED").await;
        assert_eq!(stream.event().await.json()["status"], "CANCELLED");
        let emitted = run(
            &["emit", "job-2", "hello", "--payload", "{\"n\":1}"],
            &[("source.kind", "redis"), ("source.redis.url", &url)],
        )
        .await;
        assert!(emitted.status.success(), "{emitted:?}");
        assert_eq!(other.stream("job-2").await.event().await.number(), 1);
        let checked = run(&["check"], &[("source.kind", "redis"), ("source.redis.url", &url)]).await;
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success() && said.contains("CLIENT TRACKING"), "{said}");
    }
}
