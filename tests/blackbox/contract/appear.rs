//! A job that is not there yet.

use crate::support::daemon::stream_path;
use crate::support::http::request;
use crate::support::store::{Server, Store};
use crate::support::{Daemon, Stream, eventually, numbers};
use futures_util::future::join_all;
use std::time::{Duration, Instant};

impl Daemon {
    /// Waits until so many requests wait for jobs.
    pub async fn has_waiting(&self, count: usize) {
        self.metric_is("jobcast_waiting_requests", count as f64).await;
    }
}

fn events(of: &serde_json::Value) -> Vec<u64> {
    let all = of["events"].as_array().expect("events");
    all.iter().map(|event| event["payload"]["n"].as_u64().expect("n")).collect()
}

/// Neither the poll nor the end of the wait would come in time for the test.
pub async fn a_stream_of_a_job_that_is_not_there_yet_opens_when_its_first_row_is_written<S: Store>() {
    let store = S::start().await;
    let daemon = store.daemon(&[("source.poll_interval", "10m"), ("source.appear", "10m")]).await;
    let from_now = format!("{}?from=now", stream_path("job"));
    let polls = ["/runner-jobs/job/events?wait=60", "/runner-jobs/job/events?wait=60&from=now"];
    let write = async {
        daemon.has_waiting(6).await;
        store.append("other", 0..1).await;
        store.append("job", 0..3).await;
    };
    let (mut streams, mut late, polled, ()) = tokio::join!(
        join_all((0..3).map(|_| daemon.stream("job"))),
        Stream::open(daemon.http, &from_now, &[]),
        join_all(polls.iter().map(|poll| daemon.get(poll))),
        write,
    );
    for stream in &mut streams {
        assert_eq!(numbers(&stream.take(3).await), [0, 1, 2]);
    }
    assert_eq!(numbers(&late.take(3).await), [0, 1, 2], "it asked before the job's first event");
    for answer in &polled {
        let seen = events(&answer.json());
        assert_eq!(seen, Vec::from_iter(0..seen.len() as u64), "{answer:?}");
        assert!(!seen.is_empty(), "{answer:?}");
    }
    daemon.has_waiting(0).await;
    for number in 3..20 {
        store.append("job", number..number + 1).await;
        assert_eq!(streams[0].event().await.number(), number);
    }
    // A status is enough.
    let write = async {
        daemon.has_waiting(1).await;
        store.set_status("queued", "QUEUED").await;
    };
    let (mut stream, ()) = tokio::join!(daemon.stream("queued"), write);
    assert_eq!(stream.head.status, 200);
    store.append("queued", 0..1).await;
    assert_eq!(stream.event().await.number(), 0);
}

pub async fn a_job_that_does_not_appear_is_none_after_the_wait_and_at_once_where_nobody_waits<S: Store>() {
    let store = S::start().await;
    let none = |answer: &crate::support::Answer| {
        assert_eq!((answer.status, answer.code().as_str()), (404, "job.not_found"), "{answer:?}");
    };
    let daemon = store.daemon(&[("source.appear", "1s")]).await;
    let began = Instant::now();
    let stream = stream_path("nosuch");
    let waited = [&stream, "/runner-jobs/nosuch/events?wait=60", "/runner-jobs/%7B%7D/events?wait=60"];
    join_all(waited.map(|path| daemon.get(path))).await.iter().for_each(none);
    assert!(began.elapsed() >= Duration::from_secs(1));
    daemon.has_waiting(0).await;

    let patient = store.daemon(&[("source.appear", "10m")]).await;
    for path in ["/runner-jobs/nosuch/events", "/runner-jobs/nosuch/events?wait=1", "/runner-jobs/nosuch"] {
        none(&patient.get(path).await);
    }
    for path in [stream.as_str(), "/runner-jobs/nosuch/events?wait=60"] {
        assert_eq!(request(patient.http, "HEAD", path, &[], b"").await.status, 404, "{path}");
    }
    let hasty = store.daemon(&[("source.appear", "0s")]).await;
    none(&hasty.get(&stream).await);
}

pub async fn whoever_waits_for_a_job_when_the_server_dies_is_told_so_and_to_come_back<S: Server>() {
    let mut store = S::start().await;
    let daemon = store.daemon(&[("source.appear", "10m")]).await;
    let dies = async {
        daemon.has_waiting(2).await;
        store.crash().await;
    };
    let (mut stream, polled, ()) =
        tokio::join!(daemon.stream("job"), daemon.get("/runner-jobs/job/events?wait=60"), dies);
    assert_eq!(stream.head.status, 200);
    let told = stream.rest().await;
    assert!(told.len() == 1 && told[0].is("stream.error") && told[0].json()["retryable"] == true, "{told:?}");
    assert_eq!((polled.status, polled.header("Retry-After").is_some()), (503, true), "{polled:?}");
    store.come_back().await;
    let write = async {
        daemon.has_waiting(1).await;
        store.append("job", 0..1).await;
    };
    let open = async { daemon.stream_when_waited_for("job").await };
    let (mut stream, ()) = tokio::join!(open, write);
    assert_eq!(stream.event().await.number(), 0);
}

impl Daemon {
    /// The stream of a job that is yet to be written, as soon as the source answers again.
    async fn stream_when_waited_for(&self, job: &str) -> Stream {
        eventually("the source to be back", async || {
            let stream = self.stream(job).await;
            stream.head.header("X-Jobcast-Replay").is_some().then_some(stream)
        })
        .await
    }
}
