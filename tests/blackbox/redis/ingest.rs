//! Many writers at once on one job: all of them are answered, and each event is stored once.

use super::daemon_on;
use crate::support::daemon::numbered;
use crate::support::redis::{ask, stream_key};
use crate::support::{Daemon, Redis, numbers};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::HashMap;

const WRITERS: u64 = 64;

async fn post(daemon: &Daemon, body: &Value) -> (u16, Value) {
    let answer = daemon.send("POST", "/runner-jobs/job/events", body).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn of_many_who_write_the_same_ids_at_once_one_is_told_that_it_is_new_and_all_get_the_stored_event() {
    let server = Redis::start().await;
    let settings = [("ingest.enabled", "true")];
    let daemons = [daemon_on(&server.url(), &settings).await, daemon_on(&server.url(), &settings).await];
    // more than one call of the script reads, and the last of them deleted
    let mut rows = server.connect().await;
    let entries = crate::support::redis::append(&mut rows, "job", 0..2500).await;
    ask::<()>(&mut rows, &["XDEL", &stream_key("job"), &entries[2499]]).await;
    let writers = (0..WRITERS).map(async |writer| {
        let daemon = &daemons[(writer % 2) as usize];
        let mut answers = Vec::new();
        // repeats of what a runner wrote, of what the others write, and of itself, and three events of its own
        let own: Vec<Value> = (0..3).map(|number| numbered(10_000 + 3 * writer + number)).collect();
        let batch = json!([own[0], numbered(writer * 30), own[1], numbered(5000), own[2], own[0]]);
        let (status, answer) = post(daemon, &batch).await;
        assert_eq!(status, 201, "{answer}");
        answers.extend(answer.as_array().expect("an array").iter().cloned());
        for number in [2499, writer * 30, 5001] {
            let (status, answer) = post(daemon, &numbered(number)).await;
            assert!(matches!((status, number), (200, _) | (201, 2499 | 5001)), "{number}: {status} {answer}");
            answers.push(answer);
        }
        answers
    });
    let answers: Vec<Value> = join_all(writers).await.into_iter().flatten().collect();
    let mut by_id: HashMap<String, &Value> = HashMap::new();
    for answer in &answers {
        let first = by_id.entry(answer["id"].to_string()).or_insert(answer);
        assert_eq!((&first["payload"], &first["timestamp"]), (&answer["payload"], &answer["timestamp"]), "{answer}");
    }
    // 2499 anew, 5000, 5001, and three of each writer
    assert_eq!(ask::<u64>(&mut rows, &["XLEN", &stream_key("job")]).await, 2499 + 3 + 3 * WRITERS);
    let seen = numbers(&daemons[0].stream("job").await.take(2499 + 3 + 3 * WRITERS as usize).await);
    for writer in 0..WRITERS {
        let of_writer = |number: &u64| (10_000 + 3 * writer..10_003 + 3 * writer).contains(number);
        let at = seen.iter().position(of_writer).expect("its first event");
        let own: Vec<u64> = seen[at..].iter().copied().filter(|number| of_writer(number)).collect();
        assert_eq!(own, Vec::from_iter(10_000 + 3 * writer..10_003 + 3 * writer), "in the order of the request");
    }
}

#[tokio::test]
async fn a_stream_that_is_deleted_between_two_writes_begins_anew() {
    let server = Redis::start().await;
    let daemon = daemon_on(&server.url(), &[("ingest.enabled", "true")]).await;
    let mut rows = server.connect().await;
    for _ in 0..3 {
        assert_eq!(post(&daemon, &json!([numbered(0), numbered(1)])).await.0, 201);
        assert_eq!(post(&daemon, &numbered(1)).await.0, 200);
        ask::<()>(&mut rows, &["DEL", &stream_key("job")]).await;
    }
    // a key of another type is refused, and the next write to it is not
    ask::<()>(&mut rows, &["SET", &stream_key("job"), "x"]).await;
    assert_eq!(post(&daemon, &numbered(2)).await.0, 503);
    ask::<()>(&mut rows, &["DEL", &stream_key("job")]).await;
    assert_eq!(post(&daemon, &numbered(2)).await.0, 201);
}
