//! Subscribers that come and go, while events are written and while the daemon dies.

use crate::support::daemon::{numbered, write_rows};
use crate::support::flap::{Flap, Resume};
use crate::support::http::request;
use crate::support::{Daemon, alone, eventually};
use futures_util::future::join_all;
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{interval, sleep};

const SUBSCRIBERS: usize = 24;
const JOBS: [&str; 3] = ["alpha", "beta", "gamma"];
/// Each job's, so that all three together get 500 events a second.
const BATCH: u64 = 5;
const PACE: Duration = Duration::from_millis(30);

const FLAP: Flap = Flap {
    stays: 400,
    away: 100,
    resumes: &[Resume::Query, Resume::Header, Resume::EventId],
    patience: Duration::from_secs(120),
};

async fn all_see_each_event_once(to: SocketAddr, events: u64) {
    let to = [to];
    let flaps = (0..SUBSCRIBERS).map(|number| FLAP.watch(&to, JOBS[number % JOBS.len()]));
    for (number, seen) in join_all(flaps).await.into_iter().enumerate() {
        let first_wrong = seen.iter().zip(0..).find(|(seen, expected)| **seen != *expected);
        assert!(first_wrong.is_none(), "subscriber {number} saw {first_wrong:?} (seen, expected)");
        assert_eq!(seen.len() as u64, events, "subscriber {number}");
    }
}

#[tokio::test]
async fn flapping_subscribers_see_each_of_500_events_a_second_once_in_one_order() {
    let _alone = alone();
    let daemon = Daemon::start().await;
    let events = 1000;
    for job in JOBS {
        daemon.set_status(job, "RUNNING").await;
    }
    let write = async {
        let mut pace = interval(PACE);
        for first in (0..events).step_by(BATCH as usize) {
            pace.tick().await;
            join_all(JOBS.map(|job| daemon.write(job, first..first + BATCH))).await;
        }
        join_all(JOBS.map(|job| daemon.set_status(job, "COMPLETED"))).await;
    };
    tokio::join!(write, all_see_each_event_once(daemon.http, events));
    assert_eq!(daemon.metric("jobcast_source_errors_total").await, 0.0);
    daemon.has_subscribers(0).await;
}

#[tokio::test]
async fn a_tiny_ring_foreign_writers_and_kill_9_lose_and_repeat_nothing() {
    let _alone = alone();
    let mut daemon = Daemon::with(&[("hub.ring_events", "8"), ("hub.linger", "50ms")]).await;
    let events = 1000;
    for job in JOBS {
        daemon.set_status(job, "RUNNING").await;
    }
    let (to, mut rows) = (daemon.http, daemon.rows().await);
    let write = async move {
        let mut pace = interval(PACE);
        for first in (0..events).step_by(BATCH as usize) {
            pace.tick().await;
            for job in JOBS {
                write_rows(&mut rows, job, first..first + BATCH).await;
            }
        }
        for job in JOBS {
            let end = "UPDATE runner_jobs SET status = 'FAILED' WHERE id = ?1";
            sqlx::query(end).bind(job).execute(&mut rows).await.expect("end");
        }
    };
    let kill = async {
        for _ in 0..4 {
            sleep(Duration::from_millis(1200)).await;
            daemon.kill();
            sleep(Duration::from_millis(150)).await;
            daemon.restart().await;
        }
    };
    tokio::join!(write, kill, all_see_each_event_once(to, events));
}

#[tokio::test]
async fn ingest_repeated_until_it_is_answered_stores_each_event_once_through_kill_9() {
    let _alone = alone();
    let mut daemon = Daemon::start().await;
    daemon.set_status("job", "RUNNING").await;
    let (to, events) = (daemon.http, 400);
    let write = async move {
        for first in (0..events).step_by(4) {
            let body = json!((first..first + 4).map(numbered).collect::<Vec<_>>()).to_string();
            eventually("ingest to be answered", async || {
                let try_once = tokio::spawn(async move { tokio::net::TcpStream::connect(to).await.is_ok() });
                if !try_once.await.unwrap_or(false) {
                    return None;
                }
                let body = body.clone();
                let sent = tokio::spawn(async move {
                    let headers = [("Content-Type", "application/json")];
                    request(to, "POST", "/runner-jobs/job/events", &headers, body.as_bytes()).await.status
                });
                // no answer at all: the daemon died just then
                matches!(sent.await, Ok(200 | 201)).then_some(())
            })
            .await;
            sleep(Duration::from_millis(10)).await;
        }
    };
    let kill = async {
        for _ in 0..3 {
            sleep(Duration::from_millis(400)).await;
            daemon.kill();
            daemon.restart().await;
        }
    };
    tokio::join!(write, kill);
    let mut stream = daemon.stream("job").await;
    assert_eq!(crate::support::numbers(&stream.take(events as usize).await), Vec::from_iter(0..events));
    daemon.set_status("job", "COMPLETED").await;
    assert!(stream.event().await.is("stream.complete"));
}
