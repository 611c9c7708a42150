//! Events that are sent in: many in one request cost the server no more statements than one.

use super::RECOMMENDED;
use crate::support::daemon::numbered;
use crate::support::postgres::append;
use crate::support::{Daemon, Postgres, numbers};
use serde_json::{Value, json};
use sqlx::Executor;

const PATH: &str = "/runner-jobs/job/events";
const EVENTS: u64 = 3000;

#[tokio::test]
async fn a_request_of_thousands_of_events_takes_a_few_statements_and_tells_the_place_of_each() {
    let server = Postgres::start().await;
    server.set("log_statement = 'all'\n");
    server.down("fast");
    server.up().await;
    server.execute(RECOMMENDED).await;
    let settings = [
        ("ingest.enabled", "true"),
        ("source.poll_interval", "1s"),
        ("http.max_body", "1MiB"),
        ("ingest.max_events", "5000"),
    ];
    let daemon = Daemon::on("postgres", &server.url("postgres"), &settings).await;
    let (mut late, mut rows) = (server.connect().await, server.connect().await);
    append(&mut rows, "job", [0]).await;
    // What is still open when the events are written has a place before them, and is given out after them.
    late.execute("BEGIN").await.expect("begin");
    append(&mut late, "job", [10_000, 10_001]).await;
    append(&mut rows, "job", [1, 2]).await;

    let statements = || server.log().lines().filter(|line| line.contains("statement:")).count();
    let before = statements();
    let events: Vec<Value> = [0, 2].into_iter().chain(3..EVENTS).map(numbered).collect();
    let answer = daemon.send("POST", PATH, &json!(events)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let took = statements() - before;
    assert!(took < 100, "{took} statements");

    late.execute("COMMIT").await.expect("commit");
    let answer = answer.json();
    let stored = answer.as_array().expect("an array");
    assert_eq!(stored.len(), events.len());
    for (at, number) in [(0, 0), (1, 2), (2, 3), (700, 701), (EVENTS as usize - 2, EVENTS - 1)] {
        assert_eq!(stored[at]["payload"]["n"], number);
        let mut rest = daemon.stream_after("job", stored[at]["cursor"].as_str().expect("a cursor")).await;
        let mut rest = numbers(&rest.take((EVENTS - number + 1) as usize).await);
        rest.sort();
        assert_eq!(rest, Vec::from_iter((number + 1..EVENTS).chain([10_000, 10_001])), "after {number}");
    }
}
