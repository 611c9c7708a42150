//! Streams that are deleted with the final status, or expire after it: who had everything has lost nothing.

use super::daemon_on;
use crate::support::redis::{append, ask, job_key, set_status, stream_key};
use crate::support::{Daemon, Redis, Stream, eventually, numbers};
use redis::{Pipeline, Value};

/// The ways in which a stream goes: it is deleted, or expires.
#[derive(Clone, Copy, Debug)]
enum Goes {
    Deleted,
    Expired,
}

impl Goes {
    fn add_to(self, all: &mut Pipeline, job: &str) {
        match self {
            Self::Deleted => all.cmd("DEL").arg(stream_key(job)),
            Self::Expired => all.cmd("PEXPIRE").arg(stream_key(job)).arg(1),
        };
    }

    /// Waits until it has gone.
    async fn happens(self, server: &Redis, job: &str) {
        let mut one = Pipeline::new();
        self.add_to(&mut one, job);
        one.query_async::<Value>(&mut server.connect().await).await.expect("an end");
        eventually("the stream to go", async || {
            (server.ask::<u64>(&["EXISTS", &stream_key(job)]).await == 0).then_some(())
        })
        .await;
    }
}

/// Ends a job and lets its stream go, in one transaction.
async fn end_and_go(server: &Redis, job: &str, goes: Goes) {
    let mut both = Pipeline::new();
    both.atomic();
    both.cmd("HSET").arg(job_key(job)).arg("status").arg("COMPLETED");
    goes.add_to(&mut both, job);
    both.query_async::<Value>(&mut server.connect().await).await.expect("an end");
}

async fn is_over(daemon: &Daemon, job: &str, after: &str) {
    assert_eq!(daemon.stream_after(job, after).await.head.status, 204, "{job} after {after}");
    let polled = daemon.get(&format!("/runner-jobs/{job}/events?after={after}")).await.json();
    assert_eq!((&polled["complete"], polled.get("reset")), (&true.into(), None), "{polled}");
}

#[tokio::test]
async fn a_stream_that_goes_with_the_final_status_ends_its_readers_without_a_reset() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[("source.end_grace", "500ms")]).await;
    let mut rows = server.connect().await;
    for number in 0..10 {
        let job = format!("job-{number}");
        set_status(&mut rows, &job, "RUNNING").await;
        append(&mut rows, &job, 0..5).await;
        let mut stream = daemon.stream(&job).await;
        let seen = stream.take(5).await;
        end_and_go(&server, &job, if number % 2 == 0 { Goes::Deleted } else { Goes::Expired }).await;
        let rest = stream.rest().await;
        assert_eq!((rest.len(), rest[0].is("stream.complete")), (1, true), "{rest:?}");
        for cursor in [seen[4].cursor(), rest[0].cursor()] {
            is_over(&daemon, &job, cursor).await;
        }
        // Another process, which knows nothing of the job, says the same.
        let other = daemon_on(&server.url(), &[]).await;
        is_over(&other, &job, seen[4].cursor()).await;
    }
}

#[tokio::test]
async fn a_stream_that_expires_after_the_end_is_over_for_who_had_it_and_lost_for_who_is_known_to_lack_some() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[("source.end_grace", "100ms")]).await;
    let mut rows = server.connect().await;
    for goes in [Goes::Deleted, Goes::Expired] {
        let (ended, other) = (format!("{goes:?}"), format!("other-{goes:?}"));
        append(&mut rows, &ended, 0..5).await;
        set_status(&mut rows, &ended, "FAILED").await;
        let seen = daemon.stream(&ended).await.rest().await;
        assert_eq!(numbers(&seen[..5]), [0, 1, 2, 3, 4]);
        is_over(&daemon, &ended, seen[4].cursor()).await;
        goes.happens(&server, &ended).await;
        is_over(&daemon, &ended, seen[4].cursor()).await;
        assert!(daemon.stream_after(&ended, seen[2].cursor()).await.event().await.is("stream.reset"));
        set_status(&mut rows, &other, "RUNNING").await;
        append(&mut rows, &other, 0..5).await;
        let seen = daemon.stream(&other).await.take(5).await;
        goes.happens(&server, &other).await;
        // Without a final status it is a loss.
        assert!(daemon.stream_after(&other, seen[4].cursor()).await.event().await.is("stream.reset"));
    }
}

#[tokio::test]
async fn a_job_of_a_set_that_is_deleted_after_its_end_disturbs_none_of_the_others() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[("source.poll_interval", "50ms")]).await;
    let mut rows = server.connect().await;
    for job in ["a", "b"] {
        set_status(&mut rows, job, "RUNNING").await;
        append(&mut rows, job, [0]).await;
    }
    let mut stream = Stream::open(daemon.http, "/runner-jobs/events/stream?job=a&job=b", &[]).await;
    stream.take(2).await;
    set_status(&mut rows, "a", "COMPLETED").await;
    let end = stream.event().await;
    assert!(end.is("stream.complete") && end.json()["jobId"] == "a", "{end:?}");
    ask::<()>(&mut rows, &["DEL", &job_key("a"), &stream_key("a")]).await;
    for number in 1..20 {
        append(&mut rows, "b", [number]).await;
        let event = stream.event().await;
        assert_eq!(event.number(), number, "{event:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
